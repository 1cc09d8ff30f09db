//! The least a host is: memory that is a slice, no wires, a physical IOMMU whose orders cost nothing.

use std::hint::black_box;
use std::ops::Range;

use riscv_viommu::mock::Memory;
use riscv_viommu::{
    Applied, Capabilities, Completion, Context, FenceScope, Gpa, GuestMemory, HostCapabilities, InterruptKinds,
    Interrupts, Invalidation, MemoryFault, OrderError, Parts, PhysicalIommu, Post, SecondStageMode, Ticket,
};

/// Where [`Memory::allocate`] begins.
const BASE: u64 = 0x8000_0000;

/// The host of a guest whose passthrough devices are behind `P`.
pub type Host<P> = Parts<Ram, NoWires, P>;

/// Guest memory: words that lie behind each other, and nothing else.
#[derive(Debug)]
pub struct Ram(Box<[u64]>);

impl Ram {
    /// What a guest allocated of a modelled memory, as it is now.
    pub fn of(memory: &Memory) -> Self {
        let bytes = memory.allocate(1).get() - BASE;
        // Pages that were skipped to align others.
        memory.map(Gpa::new(BASE), bytes);
        Self(memory.read_words(Gpa::new(BASE), usize::try_from(bytes / 8).expect("a small guest")).into())
    }

    /// Writes words as the guest does.
    pub fn write(&mut self, at: Gpa, words: &[u64]) {
        self.store(at, words).expect("the guest writes to memory it has");
    }

    /// The word at `at`, as the guest reads it.
    pub fn read(&self, at: Gpa) -> u64 {
        let mut word = [0];
        self.load(at, &mut word).expect("the guest reads memory it has");
        word[0]
    }

    fn range(at: Gpa, words: usize) -> Range<usize> {
        // Below BASE the index wraps to one that no memory is large enough for.
        let first = usize::try_from(at.get().wrapping_sub(BASE) / 8).unwrap_or(usize::MAX);
        first..first.saturating_add(words)
    }
}

impl GuestMemory for Ram {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        out.copy_from_slice(self.0.get(Self::range(at, out.len())).ok_or(MemoryFault::Access)?);
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.0.get_mut(Self::range(at, words.len())).ok_or(MemoryFault::Access)?.copy_from_slice(words);
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, _why: Post) -> Result<(), MemoryFault> {
        let word = self.0.get_mut(Self::range(at, 1).start).ok_or(MemoryFault::Access)?;
        let shift = (at.get() & 4) * 8;
        *word = *word & !(0xffff_ffff << shift) | u64::from(data) << shift;
        Ok(())
    }
}

/// Interrupts are messages.
#[derive(Debug)]
pub struct NoWires;

impl Interrupts for NoWires {
    fn kinds(&self) -> InterruptKinds {
        InterruptKinds::Msi
    }

    fn set_wire(&mut self, _vector: u8, _level: bool) {}
}

/// A physical IOMMU that does everything at once and without an instruction: what is left is what the crate does to
/// give the orders.
#[derive(Debug)]
pub struct NoOp;

impl PhysicalIommu for NoOp {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        let register = Capabilities::new().with_sv39(true).with_sv48(true).with_sv57(true).with_sv48x4(true);
        HostCapabilities::new(register.with_pas(56), SecondStageMode::Sv48x4).with_svnapot(true).with_coherent(true)
    }

    fn adopt(&mut self, _device: u32) -> Result<HostCapabilities, OrderError> {
        Ok(self.capabilities())
    }

    fn set_context(&mut self, device: u32, new: &Context) -> Result<Applied, OrderError> {
        // Orders that nobody looks at would not be put together.
        black_box((device, new));
        Ok(Applied::Switched)
    }

    fn invalidate(&mut self, orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        black_box(orders);
        Ok(())
    }

    fn fence(&mut self, _upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
        Ok(Completion::Done)
    }

    fn release(&mut self, _device: u32) {}
}
