//! A host that counts what it is asked, and answers as badly as it may.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use riscv_viommu::{
    Applied, AtsInvalidation, Capabilities, Completion, Context, DeviceId, Epoch, FenceScope, Gpa, GuestMemory,
    HostCapabilities, InterruptKinds, Interrupts, Invalidation, MemoryFault, OrderError, PageResponse, PhysicalIommu,
    Post, SecondStageMode, Ticket, Width,
};

use crate::cost::Cost;
use crate::random::Random;

/// How the host answers. A number is a turn: once in so many times, or never if it is 0.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent of each other")]
pub(crate) struct Manner {
    /// Loads of more than one command fail.
    pub(crate) narrow: bool,
    /// Messages can not be sent.
    pub(crate) mute: bool,
    /// Of so many contexts, all but one are set by way of a blocked state.
    pub(crate) detours: u64,
    /// An invalidation of less than everything is refused.
    pub(crate) coarse: bool,
    /// Contexts are changed for one device at a time, up to a fence; the others find it busy.
    pub(crate) one_by_one: bool,
    /// Words of tables change their lowest bit.
    pub(crate) flickers: u64,
    /// Contexts are in one page, and in the next one when they are read again.
    pub(crate) moves: bool,
    pub(crate) refuses: u64,
    pub(crate) pends: u64,
    pub(crate) times_out: u64,
    pub(crate) busy: u64,
    pub(crate) fails: u64,
    /// How often a vCPU is faster at each update of an entry, and undoes what was done.
    pub(crate) faster: u8,
    /// DMA of emulated devices goes on.
    pub(crate) drains: u64,
    /// Records and fence data can not be stored.
    pub(crate) full: u64,
}

impl Manner {
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut turn = |percent, end| if random.percent(percent) { 1 + random.below(end) } else { 0 };
        let [detours, refuses, pends, times_out] = [(40, 8), (30, 12), (30, 16), (30, 6)].map(|(p, e)| turn(p, e));
        let [busy, fails, drains, full] = [(30, 24), (5, 200), (30, 4), (10, 8)].map(|(p, e)| turn(p, e));
        let flickers = turn(30, 6);
        let [narrow, coarse] = [50; 2].map(|chance| random.percent(chance));
        let faster = random.below(10) as u8;
        let moves = random.percent(15);
        let [mute, one_by_one] = [25; 2].map(|chance| random.percent(chance));
        Self {
            narrow,
            mute,
            detours,
            coarse,
            one_by_one,
            flickers,
            moves,
            refuses,
            pends,
            times_out,
            busy,
            fails,
            faster,
            drains,
            full,
        }
    }
}

/// Memory in regions of 16 MiB, each the same eight words again and again.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) regions: HashMap<u64, [u64; 8]>,
    /// A region whose words are leaf entries, each of the region of its index.
    pub(crate) leaves: Option<u64>,
    /// Where memory ends.
    pub(crate) end: Option<u64>,
    pub(crate) manner: Manner,
    pub(crate) cost: Cell<Cost>,
    pub(crate) issued: Option<Ticket>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) asked: Cell<u64>,
    pub(crate) moved: Cell<bool>,
    pub(crate) exchanged: RefCell<HashMap<u64, u8>>,
    /// Whose context is being changed, and whether that is done but for a fence.
    pub(crate) busy_with: Option<(u32, bool)>,
}

pub(crate) const fn region(number: u64) -> u64 {
    0x8000_0000 + (number << 24)
}

pub(crate) const ROOT: u64 = 0;
pub(crate) const CONTEXTS: u64 = 2;
pub(crate) const COMMANDS: u64 = 3;
pub(crate) const RECORDS: u64 = 4;

impl Host {
    fn spend(&self, what: impl FnOnce(&mut Cost)) {
        let mut cost = self.cost.get();
        what(&mut cost);
        assert!(cost.loads < 1 << 20, "T14: a call does not end");
        self.cost.set(cost);
    }

    /// Whether it is the turn of an answer given once in `every` times.
    fn turn(&self, every: u64) -> bool {
        self.asked.set(self.asked.get() + 1);
        every != 0 && self.asked.get().is_multiple_of(every)
    }

    fn ordered(&self, what: impl FnOnce(&mut Cost)) -> Result<(), OrderError> {
        if self.turn(self.manner.busy) {
            self.spend(|cost| cost.busy += 1);
            return Err(OrderError::Busy);
        }
        self.spend(what);
        if self.turn(self.manner.fails) { Err(OrderError::Fatal) } else { Ok(()) }
    }

    fn obeyed(&self) -> Result<(), OrderError> {
        if self.turn(self.manner.refuses) { Err(OrderError::Refused { done: 0 }) } else { Ok(()) }
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not be counted")]
impl GuestMemory for Host {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.spend(|cost| {
            cost.loads += 1;
            cost.bytes += 8 * out.len() as u64;
        });
        let number = at.get().checked_sub(region(0)).ok_or(MemoryFault::Access)? >> 24;
        if self.end.is_some_and(|end| at.get() >= end) || (self.manner.narrow && out.len() > 2 && number == COMMANDS) {
            return Err(MemoryFault::Access);
        }
        let moved = self.moved.get() ^ (self.manner.moves && number == 1);
        self.moved.set(moved);
        let flip =
            u64::from(number != COMMANDS && self.turn(self.manner.flickers)) | u64::from(number == 1 && moved) << 10;
        for (word, at) in out.iter_mut().zip((at.get()..).step_by(8)) {
            let index = at >> 3;
            *word = flip
                ^ match self.regions.get(&number) {
                    _ if self.leaves == Some(number) => region(index & 0x1ff) >> 2 | 0x1f,
                    Some(words) => words[(index & 7) as usize],
                    None => return Err(MemoryFault::Access),
                };
        }
        Ok(())
    }

    fn store(&mut self, _at: Gpa, _words: &[u64]) -> Result<(), MemoryFault> {
        self.spend(|cost| cost.stores += 1);
        if self.turn(self.manner.full) { Err(MemoryFault::Access) } else { Ok(()) }
    }

    fn post(&mut self, _at: Gpa, _data: u32, why: Post) -> Result<(), MemoryFault> {
        self.spend(|cost| cost.posts += 1);
        let fails = if why == Post::FenceData { self.turn(self.manner.full) } else { self.manner.mute };
        if fails { Err(MemoryFault::Access) } else { Ok(()) }
    }

    fn has_compare_exchange(&self) -> bool {
        self.spend(|cost| cost.queries += 1);
        true
    }

    fn compare_exchange(&mut self, at: Gpa, _width: Width, _old: u64, _new: u64) -> Result<bool, MemoryFault> {
        self.spend(|cost| cost.exchanges += 1);
        let mut exchanged = self.exchanged.borrow_mut();
        let times = exchanged.entry(at.get()).or_default();
        *times = times.wrapping_add(1);
        Ok(times.is_multiple_of(self.manner.faster + 1))
    }

    fn counts_dma(&self) -> bool {
        self.spend(|cost| cost.queries += 1);
        true
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        self.spend(|cost| cost.drains += 1);
        self.epoch = Some(upto);
        if self.turn(self.manner.drains) { Completion::Pending } else { Completion::Done }
    }

    fn unmapped(&mut self, _what: &Invalidation<DeviceId>) {
        self.spend(|cost| cost.unmapped += 1);
    }

    fn watch(&mut self, _page: Gpa, _on: bool) {
        self.spend(|cost| cost.watches += 1);
    }

    fn publish(&mut self, _offset: u16, _value: u32) {
        self.spend(|cost| cost.publishes += 1);
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not be counted")]
impl Interrupts for Host {
    fn kinds(&self) -> InterruptKinds {
        self.spend(|cost| cost.queries += 1);
        InterruptKinds::Both
    }

    fn set_wire(&mut self, _vector: u8, _level: bool) {
        self.spend(|cost| cost.wires += 1);
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not be counted")]
impl PhysicalIommu for Host {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        self.spend(|cost| cost.queries += 1);
        let stages = Capabilities::new().with_sv39(true).with_sv48(true).with_sv57(true).with_sv57x4(true);
        let processes = stages.with_pd8(true).with_pd17(true).with_pd20(true);
        let register = processes.with_ats(true).with_t2gpa(true).with_pas(56);
        HostCapabilities::new(register, SecondStageMode::Sv57x4).with_svnapot(true).with_coherent(true)
    }

    fn adopt(&mut self, _device: u32) -> Result<HostCapabilities, OrderError> {
        self.ordered(|cost| cost.adopts += 1)?;
        let before = self.cost.get();
        let capabilities = self.capabilities();
        self.cost.set(before);
        Ok(capabilities)
    }

    fn set_context(&mut self, device: u32, new: &Context) -> Result<Applied, OrderError> {
        let opens = *new != Context::Blocked;
        if self.manner.one_by_one {
            match &mut self.busy_with {
                Some((with, _)) if *with != device && opens => {
                    self.spend(|cost| cost.busy += 1);
                    return Err(OrderError::Busy);
                }
                Some((with, done)) if *with == device => *done = !opens,
                Some(_) => {}
                None => self.busy_with = opens.then_some((device, false)),
            }
        }
        self.ordered(|cost| cost.contexts += 1)?;
        if opens {
            self.obeyed()?;
        }
        let detour = self.manner.detours != 0 && !self.turn(self.manner.detours);
        Ok(if detour && opens { Applied::Blocked } else { Applied::Switched })
    }

    fn invalidate(&mut self, orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        self.ordered(|cost| cost.invalidates += 1)?;
        match orders {
            [Invalidation::Everything] if self.manner.coarse => Ok(()),
            _ if self.manner.coarse => Err(OrderError::Refused { done: 0 }),
            _ => self.obeyed(),
        }
    }

    fn fence(&mut self, upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
        self.ordered(|cost| cost.fences += 1)?;
        self.issued = Some(upto);
        self.busy_with = self.busy_with.filter(|(_, done)| !done);
        Ok(match () {
            () if self.turn(self.manner.pends) => Completion::Pending,
            () if self.turn(self.manner.times_out) => Completion::AtsTimeout,
            () => Completion::Done,
        })
    }

    fn ats_invalidate(&mut self, _device: u32, _what: &AtsInvalidation) -> Result<(), OrderError> {
        self.ordered(|cost| cost.requests += 1)?;
        self.obeyed()
    }

    fn page_response(&mut self, _device: u32, _response: &PageResponse) -> Result<(), OrderError> {
        self.ordered(|cost| cost.responses += 1)?;
        self.obeyed()
    }

    fn release(&mut self, _device: u32) {
        self.spend(|cost| cost.releases += 1);
    }
}
