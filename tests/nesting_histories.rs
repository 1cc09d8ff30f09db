//! Whatever guest, host and devices do, in whatever order: the host's contract is kept, no fence stays incomplete, and
//! once the guest has said everything nothing stale is reached, not by what devices keep themselves either.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "devices are counted here; a wrong number fails"
)]

mod nesting_rig;

use nesting_rig::{FENCE, IOVA, OFF, PAGE_A, PAGE_B, Rig, id, pscid};
use proptest::prelude::*;
use riscv_viommu::mock::guest::{AtsCommand, Iotinval, PageRequestRing, inval_ddt, inval_pdt, register};
use riscv_viommu::mock::tables::tc::{EN_ATS, EN_PRI, PDTV, V};
use riscv_viommu::mock::tables::{ProcessDirectory, pte};
use riscv_viommu::mock::{Access, Hardware, Memory};
use riscv_viommu::{
    Applied, Ats, Attachment, Config, DevicePolicy, Gpa, Gscid, Health, Iova, OrderError, PageRequest,
    PageRequestOutcome, PhysicalIommu, Prgi, ProcessId, Progress, ResponseCode, Width,
};

const DEVICES: usize = 3;
const PROCESS: ProcessId = ProcessId::truncate(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    NotValid,
    A,
    B,
    /// By process, which has one of the tables.
    Processes,
}

#[derive(Clone, Debug)]
enum Action {
    /// A context, with ATS or not, and said or not.
    Context(usize, Says, bool, bool),
    /// What the process has.
    Process(bool),
    /// Where a table maps the page.
    Page(bool, bool),
    /// Says all of processes and pages, hardware first.
    Say,
    Inval(usize, bool),
    Answer(usize, u16, u8),
    Fence,
    Off(bool),
    Cqcsr,
    Run,
    Dma(usize),
    Ask(usize, u16, bool, bool),
    Attach(usize, bool),
    Detach(usize),
    Silent(usize),
    ResetFunction(usize),
    LostState,
    MemoryTaken,
    Wrote,
    Moves,
    Reset,
    Pending(bool),
    Busy(u8),
    Refused(u8),
    Complete,
}

fn action() -> impl Strategy<Value = Action> {
    let says = prop::sample::select(vec![Says::NotValid, Says::A, Says::B, Says::Processes]);
    let n = || 0..DEVICES;
    prop_oneof![
        5 => (n(), says, prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(n, says, ats, told)| Action::Context(n, says, ats, told)),
        2 => any::<bool>().prop_map(Action::Process),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(a, m)| Action::Page(a, m)),
        4 => Just(Action::Say),
        3 => (n(), any::<bool>()).prop_map(|(n, p)| Action::Inval(n, p)),
        2 => (n(), 0..4_u16, 0..3_u8).prop_map(|(n, g, c)| Action::Answer(n, g, c)),
        3 => Just(Action::Fence),
        1 => any::<bool>().prop_map(Action::Off),
        2 => Just(Action::Cqcsr),
        2 => Just(Action::Run),
        6 => n().prop_map(Action::Dma),
        3 => (n(), 0..4_u16, any::<bool>(), any::<bool>()).prop_map(|(n, g, l, p)| Action::Ask(n, g, l, p)),
        2 => (n(), any::<bool>()).prop_map(|(n, a)| Action::Attach(n, a)),
        1 => n().prop_map(Action::Detach),
        1 => n().prop_map(Action::Silent),
        1 => n().prop_map(Action::ResetFunction),
        1 => Just(Action::LostState),
        1 => Just(Action::MemoryTaken),
        1 => Just(Action::Wrote),
        1 => Just(Action::Moves),
        1 => Just(Action::Reset),
        2 => any::<bool>().prop_map(Action::Pending),
        2 => (0..5_u8).prop_map(Action::Busy),
        1 => (0..5_u8).prop_map(Action::Refused),
        3 => Just(Action::Complete),
    ]
}

struct World {
    rig: Rig<4, 3>,
    pages: PageRequestRing,
    processes: ProcessDirectory,
    attached: [Option<Attachment>; DEVICES],
    says: [Says; DEVICES],
    of_process: bool,
    mapped: [bool; 2],
    refused_to_forget: bool,
}

impl World {
    fn new(t2gpa: bool) -> Self {
        let mut host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
        host.capabilities = host.capabilities.with_ats(true).with_t2gpa(t2gpa).with_pd8(true);
        let mut rig: Rig<4, 3> = Rig::with(&Hardware::new(host), 1, &Config::nested().with_ats(true));
        let processes = ProcessDirectory::new(&rig.memory, 1);
        let pages = PageRequestRing::new(&rig.memory, 4, Gpa::new(0x7300_0000));
        let _ = rig.enter();
        let mut world = Self {
            rig,
            pages,
            processes,
            attached: [None; DEVICES],
            says: [Says::NotValid; DEVICES],
            of_process: true,
            mapped: [true; 2],
            refused_to_forget: false,
        };
        world.turn_on();
        world.set_process();
        for n in 0..DEVICES {
            world.attach(n, true);
        }
        world
    }

    fn turn_on(&mut self) {
        let pqb = self.pages.pqb();
        let _ = self.rig.iommu.write(register::PQB, Width::U64, pqb);
        let _ = self.rig.iommu.write(register::PQCSR, Width::U32, register::ENABLE);
    }

    fn set_process(&self) {
        let (table, number) = if self.of_process { (&self.rig.a, 3) } else { (&self.rig.b, 4) };
        let [_, _, ta, fsc] = table.context(pscid(number));
        self.processes.set(PROCESS, [ta | V, fsc]);
    }

    fn attach(&mut self, n: usize, granted: bool) {
        let ats = if granted { Ats::PageRequests } else { Ats::Off };
        let policy = DevicePolicy::default().with_ats(ats).with_trusted_translations(true);
        if let Ok((attachment, _)) = self.rig.try_attach_with(u32::try_from(n).unwrap(), policy) {
            self.attached[n] = Some(attachment);
        }
    }

    fn room(&self) -> bool {
        let head = u32::try_from(self.rig.read(register::CQH)).unwrap();
        self.rig.commands.tail().wrapping_sub(head) & 0xff < 200
    }

    fn everything() -> Vec<[u64; 2]> {
        let mut all = vec![inval_ddt(None), Iotinval::ALL.vma(), FENCE.encode()];
        for n in 0..DEVICES {
            let to = AtsCommand::to(8 + u16::try_from(n).unwrap());
            all.extend([to.inval(IOVA.get()), to.process(PROCESS).inval(IOVA.get()), FENCE.encode()]);
        }
        all
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action")]
    fn act(&mut self, action: &Action) {
        let device = |n: usize| id(u32::try_from(n).unwrap());
        let function = |n: usize| AtsCommand::to(8 + u16::try_from(n).unwrap());
        let hardware = self.rig.physical.hardware().clone();
        match *action {
            Action::Context(n, says, ats, told) if self.room() => {
                let bits = if ats { EN_ATS | EN_PRI } else { 0 };
                let of = |[tc, iohgatp, ta, fsc]: [u64; 4]| [tc | bits, iohgatp, ta, fsc];
                let context = match says {
                    Says::NotValid => [0; 4],
                    Says::A => of(self.rig.a.context(pscid(1))),
                    Says::B => of(self.rig.b.context(pscid(2))),
                    Says::Processes => [V | PDTV | bits, 0, 0, self.processes.pdtp()],
                };
                self.rig.directory.set(device(n), &context);
                self.says[n] = says;
                if told {
                    let _ = self.rig.ring([inval_ddt(Some(device(n)))]);
                }
            }
            Action::Process(a) => {
                self.of_process = a;
                self.set_process();
            }
            Action::Page(a, mapped) => {
                let (table, page) = if a { (&self.rig.a, PAGE_A) } else { (&self.rig.b, PAGE_B) };
                let value = if mapped { page.get() >> 2 | pte::RW } else { 0 };
                self.rig.memory.write(table.entry_address(IOVA, 0), value);
                self.mapped[usize::from(a)] = mapped;
            }
            Action::Say if self.room() => {
                let pdt = (0..DEVICES).map(|n| inval_pdt(device(n), PROCESS));
                let _ = self.rig.ring(pdt.chain([Iotinval::ALL.vma(), FENCE.encode()]));
            }
            Action::Inval(n, process) if self.room() => {
                let to = if process { function(n).process(PROCESS) } else { function(n) };
                let _ = self.rig.ring([to.inval(IOVA.get())]);
            }
            Action::Answer(n, group, code) if self.room() => {
                let _ = self.rig.ring([function(n).prgr(group, code)]);
            }
            Action::Fence if self.room() => {
                let _ = self.rig.fence();
            }
            Action::Off(off) => {
                let _ = if off { self.rig.ddtp(OFF) } else { self.rig.enter() };
            }
            Action::Cqcsr => {
                let all = register::ENABLE | register::CMD_TO;
                let _ = self.rig.iommu.write(register::CQCSR, Width::U32, all);
            }
            Action::Run => {
                let _ = self.rig.iommu.run();
            }
            Action::Dma(n) => {
                for process in [None, Some(PROCESS)] {
                    let device = self.rig.device(u32::try_from(n).unwrap());
                    let _ = hardware.dma(device, process, IOVA, false);
                    let _ = hardware.dma_through_atc(device, process, IOVA, false);
                }
            }
            Action::Ask(n, group, last, process) => self.ask(n, group, last, process),
            Action::Attach(n, granted) => self.attach(n, granted),
            Action::Detach(n) => {
                let _ = self.rig.iommu.detach(device(n));
            }
            Action::Silent(n) => hardware.set_unresponsive(self.rig.device(u32::try_from(n).unwrap()), true),
            Action::ResetFunction(n) => {
                hardware.reset_function(self.rig.device(u32::try_from(n).unwrap()));
                let _ = self.rig.iommu.device_reset(device(n));
            }
            Action::LostState => {
                self.rig.physical.lose_state();
                let _ = self.rig.iommu.host_lost_state();
            }
            Action::MemoryTaken => {
                let _ = self.rig.iommu.invalidate_gpa(PAGE_A..=PAGE_A);
            }
            Action::Wrote => {
                for n in 0..DEVICES {
                    let _ = self.rig.iommu.guest_wrote(self.rig.directory.entry_address(device(n)));
                }
            }
            Action::Moves => {
                let mut image = [0; 4096];
                let length = self.rig.iommu.snapshot(&mut image).unwrap();
                let _ = self.rig.iommu.restore(&image[..length]).unwrap();
                self.drain();
            }
            Action::Reset => {
                let _ = self.rig.iommu.reset();
                self.drain();
                self.rig.turn_on();
                self.turn_on();
                let tail = self.rig.commands.tail();
                let _ = self.rig.iommu.write(register::CQH, Width::U32, 0);
                let _ = self.rig.iommu.write(register::CQT, Width::U32, tail.into());
                let _ = self.rig.enter();
            }
            Action::Pending(pending) => self.rig.physical.set_pending(pending),
            Action::Busy(what) => self.answer_next(what, OrderError::Busy),
            Action::Refused(what) => {
                self.refused_to_forget |= what == 1;
                self.answer_next(what, OrderError::Refused { done: 0 });
            }
            Action::Complete => self.complete(),
            Action::Context(..) | Action::Say | Action::Inval(..) | Action::Answer(..) | Action::Fence => {}
        }
    }

    fn answer_next(&self, what: u8, error: OrderError) {
        match (what, error) {
            (0, OrderError::Refused { .. }) => self.rig.physical.answer_next_set_context(Ok(Applied::Blocked)),
            (0, _) => self.rig.physical.answer_next_set_context(Err(error)),
            (1, OrderError::Refused { .. }) => {
                // It is tried once more as a whole: refused for good.
                self.rig.physical.answer_next_invalidate(Err(error));
                self.rig.physical.answer_next_invalidate(Err(error));
            }
            (1, _) => self.rig.physical.answer_next_invalidate(Err(error)),
            (2, OrderError::Refused { .. }) => {}
            (2, _) => self.rig.physical.answer_next_fence(Err(error)),
            (3, _) => self.rig.physical.answer_next_ats_invalidate(Err(error)),
            _ => self.rig.physical.answer_next_page_response(Err(error)),
        }
    }

    fn ask(&mut self, n: usize, group: u16, last: bool, process: bool) {
        let hardware = self.rig.physical.hardware().clone();
        let device = self.rig.device(u32::try_from(n).unwrap());
        let request = PageRequest::read(Iova::new(0x7000_0000), Prgi::truncate(group.into())).with_last(last);
        let request = if process { request.with_process(PROCESS, false) } else { request };
        let _ = hardware.page_request(device, &request);
        for (from, request) in hardware.take_page_requests() {
            let from = usize::try_from(from.0 & 0xff).unwrap();
            let Some(attachment) = self.attached[from] else { continue };
            let code = match self.rig.iommu.report_page_request(attachment, &request) {
                PageRequestOutcome::Queued => continue,
                PageRequestOutcome::HostPage => ResponseCode::Success,
                PageRequestOutcome::Discarded(Some(response)) => response.code,
                _ => ResponseCode::InvalidRequest,
            };
            if request.payload.wants_response() {
                hardware.answer_page_request(self.rig.device(u32::try_from(from).unwrap()), &request, code);
            }
        }
        let _ = self.pages.take(self.rig.read(register::PQT));
        let _ = self.rig.iommu.write(register::PQH, Width::U32, self.pages.head().into());
        let _ = self.rig.iommu.write(register::PQCSR, Width::U32, register::ENABLE | 0x300);
    }

    fn complete(&mut self) {
        for ticket in self.rig.physical.complete_all() {
            let outcome = self.rig.physical.outcome(ticket);
            let _ = self.rig.iommu.fence_done(ticket, outcome);
        }
    }

    /// The host stops being difficult.
    fn drain(&mut self) {
        self.rig.physical.set_pending(false);
        for _ in 0..300 {
            self.complete();
            if self.rig.iommu.run() == Progress::Idle {
                break;
            }
        }
        assert_eq!(self.rig.iommu.progress(), Progress::Idle, "it goes on without an end");
    }

    /// Everything is said, and what that promised holds.
    fn check(&mut self) {
        let hardware = self.rig.physical.hardware().clone();
        for n in 0..DEVICES {
            let device = self.rig.device(u32::try_from(n).unwrap());
            hardware.reset_function(device);
            hardware.set_unresponsive(device, false);
            let _ = self.rig.iommu.device_reset(id(u32::try_from(n).unwrap()));
        }
        self.drain();
        let all = Self::everything();
        let _ = self.rig.ring([FENCE.encode()]);
        for commands in [Vec::new(), all] {
            let _ = self.rig.ring(commands);
            for _ in 0..300 {
                self.drain();
                let csr = register::ENABLE | register::CMD_TO;
                let _ = self.rig.iommu.write(register::CQCSR, Width::U32, csr);
                if self.rig.passed() {
                    break;
                }
            }
            assert!(self.rig.passed(), "a guest fence stays incomplete");
            assert!(
                !self.rig.ddtp_busy() && self.rig.iommu.is_gpa_invalidated() || self.rig.iommu.health() != Health::Good
            );
        }
        if self.refused_to_forget && self.rig.iommu.health() != Health::Good {
            // What the host's caches still hold is the host's to deal with.
            return;
        }
        for n in 0..DEVICES {
            let device = self.rig.device(u32::try_from(n).unwrap());
            for process in [None, Some(PROCESS)] {
                let dma = hardware.dma(device, process, IOVA, false);
                assert!(!dma.stale, "device {n} {process:?}: {dma:?} {:?}", self.says);
                let dma = hardware.dma_through_atc(device, process, IOVA, false);
                let wrong = match dma.access {
                    Access::Translated(page) => (page, false),
                    Access::Unchecked(page) => (Gpa::new(page), false),
                    _ => (Gpa::new(0), true),
                };
                assert!(wrong.1 || !dma.stale, "device {n} {process:?}: {dma:?} {:?}", self.says);
                let (a, b) = (self.mapped[1], self.mapped[0]);
                assert!(wrong.1 || wrong.0 != PAGE_A || a, "device {n} reaches what is not mapped");
                assert!(wrong.1 || wrong.0 != PAGE_B || b, "device {n} reaches what is not mapped");
            }
        }
    }
}

/// Shortest histories of what was once found.
#[test]
fn what_broke_the_contract_once_does_not_any_more() {
    use Action::{Busy, Context, Cqcsr, Detach, LostState, MemoryTaken, Pending, Refused, Say};
    use Says::{A, B, NotValid};
    let histories: [(bool, &[Action]); 3] = [
        // Every device is blocked for good, and a busy host has yet to forget what it lost.
        (false, &[Refused(1), Detach(0), Say, Busy(1), LostState, Cqcsr]),
        // A refused flush behind a request to a device, and a host too busy to block another one.
        (
            false,
            &[
                Say,
                Context(1, A, true, false),
                Context(0, NotValid, false, true),
                Pending(true),
                MemoryTaken,
                Detach(0),
                Busy(0),
                Refused(1),
                Context(1, NotValid, false, true),
            ],
        ),
        // The guest wants another context, then the device leaves, while the host has blocked it on the way to the first.
        (
            true,
            &[
                Pending(true),
                Context(2, A, true, true),
                Refused(0),
                Context(2, B, true, true),
                Context(2, A, false, true),
                Detach(2),
            ],
        ),
    ];
    for (t2gpa, actions) in histories {
        let mut world = World::new(t2gpa);
        for action in actions {
            world.act(action);
        }
        world.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_breaks_the_contract_or_stays_stuck(
        t2gpa in any::<bool>(),
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut world = World::new(t2gpa);
        for action in &actions {
            world.act(action);
        }
        world.check();
    }
}
