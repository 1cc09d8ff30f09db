//! The host of a replay: guest memory from the trace, and a physical IOMMU that nests everything and writes down what
//! it is told, in words of the example's own that the checker compares.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use riscv_viommu::{
    Applied, Capabilities, Completion, Context, FenceScope, Gpa, GuestMemory, HostCapabilities, Igs, InterruptKinds,
    Interrupts, Invalidation, MemoryFault, OrderError, PhysicalIommu, Post, SecondStageMode, Ticket,
};

use super::command::{Pages, Scope};
use super::directory::Mapping;

/// Guest memory as far as the trace shows it, by address.
#[derive(Debug, Default)]
pub(crate) struct Memory(HashMap<u64, u64>);

impl Memory {
    pub(crate) fn put(&mut self, at: u64, word: u64) {
        self.0.insert(at, word);
    }

    /// The word at `at`; memory the trace does not show is zeroed, as a driver's fresh tables are.
    pub(crate) fn word(&self, at: u64) -> u64 {
        self.0.get(&at).copied().unwrap_or_default()
    }

    pub(crate) fn words<const N: usize>(&self, at: u64) -> [u64; N] {
        let mut next = at;
        [(); N].map(|()| {
            let word = self.word(next);
            next = next.wrapping_add(8);
            word
        })
    }
}

/// The one device there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device;

/// When fences are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fences {
    /// Before the call returns.
    AtOnce,
    /// When the registers have been looked at: what does not wait for them is seen to run ahead.
    Late,
}

/// One call of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Load {
        words: usize,
    },
    Store,
    FenceData {
        at: u64,
        data: u32,
    },
    Interrupt,
    Wire,
    Adopt,
    SetContext(Mapping),
    Invalidate(Vec<Order>),
    Fence {
        ticket: u64,
        reads: bool,
        writes: bool,
    },
    /// Not a call: fences up to this one are complete.
    Complete {
        ticket: u64,
    },
    Release,
}

/// One invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Translations(Scope),
    Device,
    /// Everything, or an order that is not known here.
    Everything,
}

pub(crate) struct Host {
    pub(crate) memory: Memory,
    capabilities: Capabilities,
    fences: Fences,
    pending: VecDeque<Ticket>,
    /// `load` has a shared reference.
    calls: RefCell<Vec<Call>>,
}

impl Host {
    /// A host that can nest whatever a vIOMMU with these `capabilities` offers.
    pub(crate) fn new(capabilities: u64, fences: Fences) -> Self {
        Self {
            memory: Memory::default(),
            capabilities: Capabilities::from_bits(capabilities),
            fences,
            pending: VecDeque::new(),
            calls: RefCell::default(),
        }
    }

    pub(crate) fn take_calls(&mut self) -> Vec<Call> {
        self.calls.take()
    }

    /// Completes the oldest fence that is pending.
    pub(crate) fn complete_one(&mut self) -> Option<Ticket> {
        let ticket = self.pending.pop_front()?;
        self.note(Call::Complete { ticket: ticket.get() });
        Some(ticket)
    }

    fn note(&self, call: Call) {
        self.calls.borrow_mut().push(call);
    }
}

impl GuestMemory for Host {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.note(Call::Load { words: out.len() });
        for (word, at) in out.iter_mut().zip((at.get()..).step_by(8)) {
            *word = self.memory.word(at);
        }
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.note(Call::Store);
        for (&word, at) in words.iter().zip((at.get()..).step_by(8)) {
            self.memory.put(at, word);
        }
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        self.note(match why {
            Post::FenceData => Call::FenceData { at: at.get(), data },
            _ => Call::Interrupt,
        });
        Ok(())
    }
}

impl Interrupts for Host {
    fn kinds(&self) -> InterruptKinds {
        match self.capabilities.igs() {
            Igs::Wsi => InterruptKinds::Wired,
            Igs::Both => InterruptKinds::Both,
            _ => InterruptKinds::Msi,
        }
    }

    fn set_wire(&mut self, _vector: u8, _level: bool) {
        self.note(Call::Wire);
    }
}

impl PhysicalIommu for Host {
    type Device = Device;

    fn capabilities(&self) -> HostCapabilities {
        let register = self.capabilities.with_sv39x4(true).with_sv48x4(true).with_sv57x4(true).with_pas(56);
        HostCapabilities::new(register, SecondStageMode::Sv57x4)
            .with_svnapot(true)
            .with_coherent(true)
            .with_leaves_dirty(true)
    }

    fn adopt(&mut self, Device: Device) -> Result<HostCapabilities, OrderError> {
        self.note(Call::Adopt);
        Ok(PhysicalIommu::capabilities(self))
    }

    fn set_context(&mut self, Device: Device, new: &Context) -> Result<Applied, OrderError> {
        self.note(Call::SetContext(Mapping::of(new)));
        Ok(Applied::Switched)
    }

    fn invalidate(&mut self, orders: &[Invalidation<Device>]) -> Result<(), OrderError> {
        self.note(Call::Invalidate(orders.iter().map(Order::of).collect()));
        Ok(())
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        self.note(Call::Fence { ticket: upto.get(), reads: scope.reads, writes: scope.writes });
        self.pending.push_back(upto);
        match self.fences {
            Fences::Late => Ok(Completion::Pending),
            Fences::AtOnce => {
                self.complete_one();
                Ok(Completion::Done)
            }
        }
    }

    fn release(&mut self, Device: Device) {
        self.note(Call::Release);
    }
}

impl Order {
    fn of(order: &Invalidation<Device>) -> Self {
        let pages = |first: u64, last: u64, non_leaf| Pages { first: first >> 12, last: last >> 12, non_leaf };
        Self::Translations(match order {
            Invalidation::Device(Device) => return Self::Device,
            Invalidation::FirstStage => Scope { pscid: None, pages: None },
            Invalidation::AddressSpace(pscid) => Scope { pscid: Some(pscid.get()), pages: None },
            Invalidation::Pages(range) => Scope {
                pscid: range.pscid.map(riscv_viommu::Pscid::get),
                pages: Some(pages(range.first.get(), range.last.get(), range.non_leaf)),
            },
            _ => return Self::Everything,
        })
    }
}
