//! A host that notes what the guest may see and what the physical side is told.

use std::collections::BTreeMap;

use riscv_viommu::{
    Applied, AtsInvalidation, Capabilities, Completion, Context, DeviceId, FenceScope, Gpa, GuestMemory,
    HostCapabilities, InterruptKinds, Interrupts, Invalidation, MemoryFault, OrderError, PageResponse, PhysicalIommu,
    Post, SecondStageMode, Ticket, Width,
};

/// Where memory begins, and its bytes.
pub(crate) const BASE: u64 = 0x8000_0000;
pub(crate) const BYTES: u64 = 0xc000;

/// What the guest may notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Store(u64, Vec<u64>),
    Post(u64, u32, Post),
    Exchange(u64, u64),
    Wire(u8, bool),
}

/// What the host is told; tickets are each vIOMMU's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Adopt(u32),
    Context(u32, Context),
    Invalidate(Vec<Invalidation<u32>>),
    Fence(FenceScope),
    AtsInvalidate(u32, AtsInvalidation),
    Respond(u32, PageResponse),
    Release(u32),
    Unmapped(Invalidation<DeviceId>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) words: Vec<u64>,
    pub(crate) events: Vec<Event>,
    pub(crate) orders: Vec<Order>,
    pub(crate) contexts: BTreeMap<u32, Context>,
    pub(crate) mirror: BTreeMap<u16, u32>,
    pub(crate) levels: u16,
    /// Fences stay pending.
    pub(crate) pending: bool,
    pub(crate) fences: Vec<Ticket>,
    /// A device was asked to forget, and fences wait for its answer.
    pub(crate) asked: bool,
}

impl Host {
    pub(crate) fn with_words(words: Vec<u64>) -> Self {
        Self { words, ..Self::default() }
    }
}

fn index(at: u64) -> Result<usize, MemoryFault> {
    let offset = at.checked_sub(BASE).filter(|offset| *offset < BYTES).ok_or(MemoryFault::Access)?;
    Ok(usize::try_from(offset / 8).unwrap())
}

impl GuestMemory for Host {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        let first = index(at.get())?;
        out.copy_from_slice(self.words.get(first..first + out.len()).ok_or(MemoryFault::Access)?);
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        let first = index(at.get())?;
        self.words.get_mut(first..first + words.len()).ok_or(MemoryFault::Access)?.copy_from_slice(words);
        self.events.push(Event::Store(at.get(), words.to_vec()));
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        let word = &mut self.words[index(at.get())?];
        let shift = (at.get() & 4) * 8;
        *word = *word & !(0xffff_ffff << shift) | u64::from(data) << shift;
        self.events.push(Event::Post(at.get(), data, why));
        Ok(())
    }

    fn has_compare_exchange(&self) -> bool {
        true
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        assert_eq!(width, Width::U64, "there are no tables of RV32 here");
        let word = &mut self.words[index(at.get())?];
        let same = *word == old;
        if same {
            *word = new;
            self.events.push(Event::Exchange(at.get(), new));
        }
        Ok(same)
    }

    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        self.orders.push(Order::Unmapped(*what));
    }

    fn publish(&mut self, offset: u16, value: u32) {
        self.mirror.insert(offset, value);
    }
}

impl Interrupts for Host {
    fn kinds(&self) -> InterruptKinds {
        InterruptKinds::Both
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        self.levels ^= 1 << vector;
        assert_eq!(self.levels >> vector & 1 == 1, level, "wires are set on changes only");
        self.events.push(Event::Wire(vector, level));
    }
}

impl PhysicalIommu for Host {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        let register = Capabilities::new().with_sv39(true).with_sv48(true).with_sv57(true).with_sv57x4(true);
        let register = register.with_end(true).with_amo_hwad(true).with_svpbmt(true).with_pas(56);
        let register = register.with_ats(true).with_t2gpa(true).with_pd8(true);
        HostCapabilities::new(register, SecondStageMode::Sv57x4)
            .with_svnapot(true)
            .with_leaves_dirty(true)
            .with_coherent(true)
    }

    fn adopt(&mut self, device: u32) -> Result<HostCapabilities, OrderError> {
        self.orders.push(Order::Adopt(device));
        Ok(self.capabilities())
    }

    fn set_context(&mut self, device: u32, new: &Context) -> Result<Applied, OrderError> {
        self.contexts.insert(device, *new);
        self.orders.push(Order::Context(device, *new));
        Ok(Applied::Switched)
    }

    fn invalidate(&mut self, orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        self.orders.push(Order::Invalidate(orders.to_vec()));
        Ok(())
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        self.orders.push(Order::Fence(scope));
        if self.pending {
            self.fences.push(upto);
        } else {
            self.asked = false;
        }
        Ok(if self.pending { Completion::Pending } else { Completion::Done })
    }

    fn ats_invalidate(&mut self, device: u32, what: &AtsInvalidation) -> Result<(), OrderError> {
        self.asked = true;
        self.orders.push(Order::AtsInvalidate(device, *what));
        Ok(())
    }

    fn page_response(&mut self, device: u32, response: &PageResponse) -> Result<(), OrderError> {
        self.orders.push(Order::Respond(device, *response));
        Ok(())
    }

    fn release(&mut self, device: u32) {
        self.orders.push(Order::Release(device));
    }
}
