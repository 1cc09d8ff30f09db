//! Whatever a guest does, in whatever way a host that keeps the contract answers: what a completed fence promised
//! holds.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "devices are counted here; a wrong number fails")]

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, OFF, PAGE_A, PAGE_B, Rig, id, pscid};
use proptest::prelude::*;
use riscv_viommu::mock::guest::{Iotinval, inval_ddt, register};
use riscv_viommu::mock::tables::pte;
use riscv_viommu::mock::{Access, Strategy as Way};
use riscv_viommu::{Applied, FenceOutcome, Gpa, Health, OrderError, Progress, Width};

const DEVICES: usize = 3;

/// What a device context in the directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    NotValid,
    Misconfigured,
    SecondStage,
    /// Table A, under one of its two PSCIDs: tables do not share them (rule CA-03).
    A(u32),
    B(u32),
}

#[derive(Clone, Debug)]
enum Action {
    /// The guest writes a context; it may say so.
    Context(usize, Says, bool),
    /// It maps [`IOVA`] elsewhere in a table, or nowhere; it may say so, and how is up to it.
    Page(bool, bool, Option<u8>),
    Fence,
    /// Off, Bare or the directory.
    Ddtp(u8),
    Cqen(bool),
    Doorbell,
    Resync(usize),
    Run,
    /// A device accesses memory.
    Dma(usize),
    /// From now on the host's fences are pending, or not, and it goes this way.
    Host(bool, Way),
    /// It is busy the next time, at a context, an invalidation or a fence.
    Busy(u8),
    /// It blocks on the way to the next context.
    Blocks,
    /// Its pending fences complete.
    Complete,
}

fn action() -> impl Strategy<Value = Action> {
    let says = prop_oneof![
        Just(Says::NotValid),
        Just(Says::Misconfigured),
        Just(Says::SecondStage),
        (1..3_u32).prop_map(Says::A),
        (3..5_u32).prop_map(Says::B),
    ];
    let way = prop::sample::select(vec![Way::Switch, Way::ThroughBlocked, Way::Stepwise]);
    prop_oneof![
        4 => (0..DEVICES, says, prop::bool::weighted(0.8)).prop_map(|(n, says, told)| Action::Context(n, says, told)),
        4 => (any::<bool>(), any::<bool>(), prop::option::weighted(0.8, 0..4_u8))
            .prop_map(|(a, mapped, told)| Action::Page(a, mapped, told)),
        5 => Just(Action::Fence),
        2 => (0..4_u8).prop_map(Action::Ddtp),
        1 => any::<bool>().prop_map(Action::Cqen),
        1 => Just(Action::Doorbell),
        1 => (0..DEVICES).prop_map(Action::Resync),
        2 => Just(Action::Run),
        6 => (0..DEVICES).prop_map(Action::Dma),
        1 => (any::<bool>(), way).prop_map(|(pending, way)| Action::Host(pending, way)),
        2 => (0..3_u8).prop_map(Action::Busy),
        1 => Just(Action::Blocks),
        3 => Just(Action::Complete),
    ]
}

/// The VM, and what its guest knows.
struct World {
    rig: Rig<16, 2>,
    says: [Says; DEVICES],
    /// The guest changed the context and has not said so.
    unsaid: [bool; DEVICES],
    mapped: [bool; 2],
    /// It changed the page in a table and has not said so.
    page_unsaid: [bool; 2],
    mode: u8,
    /// Nothing was changed or ordered since the last fence in the queue.
    fenced: bool,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::sized();
        for n in 0..3 {
            let _ = rig.attach(n);
        }
        let _ = rig.enter();
        assert!(rig.fence());
        Self {
            rig,
            says: [Says::NotValid; DEVICES],
            unsaid: [false; DEVICES],
            mapped: [true; 2],
            page_unsaid: [false; 2],
            mode: 2,
            fenced: true,
        }
    }

    fn act(&mut self, action: &Action) {
        let rig = &mut self.rig;
        // A driver waits for room; this one is content with what is there.
        let full = (rig.commands.tail().wrapping_sub(u32::try_from(rig.read(register::CQH)).unwrap()) & 0xff) > 200;
        match *action {
            Action::Context(n, says, told) if !full => {
                let device = id(u32::try_from(n).unwrap());
                let context = match says {
                    Says::NotValid => [0; 4],
                    Says::Misconfigured => [1 | 1 << 12, 0, 0, 0],
                    Says::SecondStage => [1, 0, 0, 0],
                    Says::A(number) => rig.a.context(pscid(number)),
                    Says::B(number) => rig.b.context(pscid(number)),
                };
                rig.directory.set(device, &context);
                self.says[n] = says;
                self.unsaid[n] = !told;
                self.fenced = false;
                if told {
                    let _ = rig.ring([inval_ddt(Some(device))]);
                }
            }
            Action::Page(a, mapped, told) if !full => {
                let (table, page) = if a { (&rig.a, PAGE_A) } else { (&rig.b, PAGE_B) };
                let value = if mapped { page.get() >> 2 | pte::RW } else { 0 };
                rig.memory.write(table.entry_address(IOVA, 0), value);
                self.mapped[usize::from(a)] = mapped;
                self.page_unsaid[usize::from(a)] = told.is_none();
                self.fenced = false;
                let spaces = if a { [1, 2] } else { [3, 4] }.map(pscid);
                let commands = match told {
                    None => Vec::new(),
                    Some(0) => vec![Iotinval::ALL.vma()],
                    Some(1) => vec![Iotinval::ALL.address(IOVA).vma()],
                    Some(2) => spaces.map(|space| Iotinval::ALL.pscid(space).vma()).to_vec(),
                    Some(_) => spaces.map(|space| Iotinval::ALL.pscid(space).address(IOVA).vma()).to_vec(),
                };
                if !commands.is_empty() {
                    let _ = rig.ring(commands);
                }
            }
            Action::Fence if !full => {
                let _ = rig.ring([FENCE.encode()]);
                self.fenced = true;
            }
            Action::Ddtp(mode) => {
                let busy = rig.ddtp_busy();
                let _ = match mode {
                    0 => rig.ddtp(OFF),
                    1 => rig.ddtp(BARE),
                    _ => rig.enter(),
                };
                let mode = mode.min(2);
                if !busy && mode != self.mode {
                    self.mode = mode;
                    // What is in the directory now is read.
                    self.unsaid = [false; DEVICES];
                }
            }
            Action::Cqen(on) => {
                let _ = rig.iommu.write(register::CQCSR, Width::U32, if on { register::ENABLE } else { 0 });
            }
            Action::Doorbell => {
                let _ = rig.ring([]);
            }
            Action::Resync(n) => {
                let _ = rig.iommu.resync(id(u32::try_from(n).unwrap()));
            }
            Action::Run => {
                let _ = rig.iommu.run();
            }
            Action::Dma(n) => {
                let _ = rig.dma(u32::try_from(n).unwrap());
            }
            Action::Host(pending, way) => {
                rig.physical.set_pending(pending);
                rig.physical.hardware().set_strategy(way);
            }
            Action::Busy(0) => rig.physical.answer_next_set_context(Err(OrderError::Busy)),
            Action::Busy(1) => rig.physical.answer_next_invalidate(Err(OrderError::Busy)),
            Action::Busy(_) => rig.physical.answer_next_fence(Err(OrderError::Busy)),
            Action::Blocks => rig.physical.answer_next_set_context(Ok(Applied::Blocked)),
            Action::Complete => {
                for ticket in rig.physical.complete_all() {
                    let _ = rig.iommu.fence_done(ticket, FenceOutcome::Complete);
                }
            }
            Action::Context(..) | Action::Page(..) | Action::Fence => {}
        }
    }

    /// Where the access of a device ends, if the guest was promised anything.
    fn promised(&self, n: usize) -> Option<Access> {
        let page = |a: bool, page| {
            let known = !self.page_unsaid[usize::from(a)];
            let fault = Access::Faulted(riscv_viommu::Cause::ReadPageFault);
            known.then_some(if self.mapped[usize::from(a)] { Access::Translated(page) } else { fault })
        };
        match (self.mode, self.says[n]) {
            (0, _) => Some(Access::Blocked),
            (1, _) => Some(Access::Translated(Gpa::new(IOVA.get()))),
            _ if self.unsaid[n] => None,
            (_, Says::NotValid | Says::Misconfigured) => Some(Access::Blocked),
            (_, Says::SecondStage) => Some(Access::Translated(Gpa::new(IOVA.get()))),
            (_, Says::A(_)) => page(true, PAGE_A),
            (_, Says::B(_)) => page(false, PAGE_B),
        }
    }

    /// What a completed fence and a `ddtp` that is not busy promise.
    fn check(&self) {
        if !self.fenced || !self.rig.passed() || self.rig.ddtp_busy() {
            return;
        }
        for n in 0..DEVICES {
            if let Some(promised) = self.promised(n) {
                let dma = self.rig.dma(u32::try_from(n).unwrap());
                // A host that had to block it five times on its way has refused the context.
                if self.rig.iommu.health() == Health::Degraded && dma.access == Access::Blocked {
                    continue;
                }
                assert_eq!(dma.access, promised, "device {n}: {:?} in mode {}", self.says[n], self.mode);
            }
        }
    }

    /// The host stops being difficult.
    fn drain(&mut self) {
        self.rig.physical.set_pending(false);
        for _ in 0..200 {
            let _ = self.rig.complete();
            // A queue that is being turned off does not hear it.
            let _ = self.rig.iommu.write(register::CQCSR, Width::U32, register::ENABLE);
            if self.rig.iommu.run() == Progress::Idle && self.rig.passed() {
                break;
            }
        }
        assert_eq!((self.rig.iommu.progress(), self.rig.passed(), self.rig.ddtp_busy()), (Progress::Idle, true, false));
        assert!(self.rig.iommu.health() <= Health::Degraded);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_completed_fence_promised_holds(actions in prop::collection::vec(action(), 1..60)) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
            world.check();
        }
        world.drain();
        world.check();
        // Everything said and fenced, nothing is stale.
        let _ = world.rig.ring([inval_ddt(None), Iotinval::ALL.vma(), FENCE.encode()]);
        world.drain();
        world.unsaid = [false; DEVICES];
        world.page_unsaid = [false; 2];
        world.fenced = true;
        world.check();
    }
}
