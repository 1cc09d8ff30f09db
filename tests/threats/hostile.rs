//! A guest that does anything it can, at random, and a host that answers anything it may.

use std::cell::RefCell;

use log::{Level, LevelFilter, Log, Metadata, Record};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use riscv_viommu::mock::Strategy as Rewriting;
use riscv_viommu::mock::guest::{AtsCommand, Iotinval, inval_ddt, inval_pdt, register as reg};
use riscv_viommu::mock::tables::{bare, tc};
use riscv_viommu::{
    Applied, Cause, Completion, FenceOutcome, Health, HostFault, MemoryFault, OrderError, PageRequest,
    PageRequestOutcome, Prgi, ProcessId, ResponseCode, Ticket, TransactionType,
};

use super::*;

/// Something a guest does, or that happens to it.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Store {
        offset: u64,
        wide: bool,
        value: u64,
    },
    Bytes {
        offset: u64,
        bytes: Vec<u8>,
    },
    Load {
        offset: u64,
        wide: bool,
    },
    /// A word in memory that the vIOMMU looks at.
    Word {
        page: usize,
        word: u64,
        value: u64,
    },
    /// The same, stored while the vIOMMU reads it.
    Race {
        page: usize,
        word: u64,
        values: Vec<u64>,
    },
    Unreadable {
        page: usize,
        corrupt: bool,
    },
    Readable,
    Command([u64; 2]),
    Context(Vec<u64>),
    Directory,
    QueuesOn,
    Dma {
        write: bool,
        iova: u64,
    },
    Fault {
        cause: u16,
        ttyp: u8,
        iova: u64,
        process: Option<u32>,
    },
    Lost(u64),
    /// A device asks for a page.
    PageRequest {
        iova: u64,
        bits: u64,
        process: Option<u32>,
    },
    /// A device with a cache of its own reads, or makes an address up.
    Translated {
        iova: u64,
        process: Option<u32>,
        forged: bool,
    },
    Unresponsive(bool),
    Run,
    Pending(bool),
    FenceDone(u64),
    Complete,
}

/// An answer of the host's, to the next order of its kind.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Adopt(OrderError),
    Context(Result<Applied, OrderError>),
    Invalidate(OrderError),
    Fence(Result<Completion, OrderError>),
    Outcome(FenceOutcome),
    Attach(bool),
    Detach(bool),
    Resync,
    AtsInvalidate(OrderError),
    PageResponse(OrderError),
    /// The host resets a device.
    DeviceReset,
    /// It takes memory from the guest.
    TakeMemory(u64),
    LostState,
    /// The vIOMMU is saved, and is what was saved, with a bit changed perhaps.
    Restore(Option<(usize, u8)>),
    Reset,
    Shutdown,
}

/// Numbers at the edges, and others.
fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u64>(),
        2 => (0_u32..64).prop_map(|bit| 1 << bit),
        2 => (0_u32..64).prop_map(|bits| u64::MAX >> bits),
        1 => (0_u32..64).prop_map(|bits| u64::MAX << bits),
        2 => 0_u64..0x20,
        // Somewhere in memory, as an address and as a PPN with low bits.
        2 => (0_u64..16, 0_u64..0x1000).prop_map(|(page, low)| 0x8000_0000 | page << 12 | low),
        2 => (0_u64..16, 0_u64..0x20).prop_map(|(page, low)| (0x8000_0000 | page << 12) >> 2 | low),
    ]
}

fn offsets() -> impl Strategy<Value = u64> {
    let registers = [
        reg::FCTL,
        reg::DDTP,
        reg::CQB,
        reg::CQH,
        reg::CQT,
        reg::FQB,
        reg::FQH,
        reg::FQT,
        reg::CQCSR,
        reg::PQB,
        reg::PQH,
    ];
    prop_oneof![
        8 => prop::sample::select(registers.to_vec()),
        4 => prop::sample::select(vec![reg::CQT, reg::FQCSR, reg::PQCSR, reg::CQCSR, reg::IPSR, reg::ICVEC]),
        4 => (0_u64..256).prop_map(|index| 768 + index),
        2 => 0_u64..4096,
        1 => any::<u64>(),
    ]
}

fn commands() -> impl Strategy<Value = [u64; 2]> {
    let addresses = || values().prop_map(Iova::new);
    let device = || prop_oneof![Just(DEVICE), Just(OTHER), any::<u32>().prop_map(DeviceId::truncate)];
    let edges = prop_oneof![Just(0_u64), Just(u64::MAX), Just(u64::MAX << 13), Just(1 << 13)];
    prop_oneof![
        (addresses(), any::<bool>()).prop_map(|(iova, all)| {
            let page = Iotinval::ALL.address(iova);
            if all { page.vma() } else { page.pscid(PSCID).vma() }
        }),
        edges.prop_map(|iova| Iotinval::ALL.address(Iova::new(iova)).vma()),
        (addresses(), 1_u32..=52).prop_map(|(iova, size)| Iotinval::ALL.range(iova, size).non_leaf().vma()),
        any::<u32>().prop_map(|pscid| Iotinval::ALL.pscid(Pscid::truncate(pscid)).vma()),
        any::<u32>().prop_map(|gscid| Iotinval::ALL.gscid(Gscid::truncate(gscid)).gvma()),
        (values(), any::<u32>()).prop_map(|(at, data)| Iofence::PLAIN.store(Gpa::new(at & !3), data).encode()),
        Just(Iofence::PLAIN.accesses(true, true).encode()),
        device().prop_map(|device| inval_ddt(Some(device))),
        Just(inval_ddt(None)),
        device().prop_map(|device| inval_pdt(device, PROCESS)),
        (device(), values(), any::<bool>()).prop_map(|(device, payload, with_process)| {
            let to = AtsCommand::to((device.get() & 0xffff).try_into().unwrap());
            if with_process { to.process(PROCESS).inval(payload) } else { to.inval(payload) }
        }),
        (device(), 0_u16..4, 0_u8..16, any::<bool>()).prop_map(|(device, group, code, with_process)| {
            let to = AtsCommand::to((device.get() & 0xffff).try_into().unwrap());
            if with_process { to.process(PROCESS).prgr(group, code) } else { to.prgr(group, code) }
        }),
        [any::<u64>(), any::<u64>()],
        (0_u64..8, 0_u64..8, values(), values()).prop_map(|(op, func, low, high)| [low << 10 | func << 7 | op, high]),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let place = || (0_usize..6, 0_u64..512);
    let near = prop_oneof![3 => Just(IOVA.get()), 1 => values()];
    prop_oneof![
        8 => (offsets(), any::<bool>(), values())
            .prop_map(|(offset, wide, value)| Step::Store { offset, wide, value }),
        1 => (offsets(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(offset, bytes)| Step::Bytes { offset, bytes }),
        1 => (offsets(), any::<bool>()).prop_map(|(offset, wide)| Step::Load { offset, wide }),
        4 => (place(), values()).prop_map(|((page, word), value)| Step::Word { page, word, value }),
        1 => (place(), prop::collection::vec(values(), 1..4))
            .prop_map(|((page, word), values)| Step::Race { page, word, values }),
        1 => (0_usize..6, any::<bool>()).prop_map(|(page, corrupt)| Step::Unreadable { page, corrupt }),
        1 => Just(Step::Readable),
        12 => commands().prop_map(Step::Command),
        4 => (prop::collection::vec(values(), 8), 0_usize..4, 0_u64..0x80).prop_map(|(mut words, good, bits)| {
            words.iter_mut().zip(if bits & tc::PDTV == 0 { bare() } else { [bits, 0, 0, 0] }).take(good).for_each(
                |(word, value)| *word = value,
            );
            Step::Context(words)
        }),
        4 => Just(Step::Directory),
        3 => Just(Step::QueuesOn),
        2 => (any::<bool>(), near).prop_map(|(write, iova)| Step::Dma { write, iova }),
        3 => (0_u16..300, 0_u8..10, values(), prop::option::of(any::<u32>()))
            .prop_map(|(cause, ttyp, iova, process)| Step::Fault { cause, ttyp, iova, process }),
        1 => values().prop_map(Step::Lost),
        3 => (values(), 0_u64..32, prop::option::of(0_u32..5))
            .prop_map(|(iova, bits, process)| Step::PageRequest { iova, bits, process }),
        2 => (values(), prop::option::of(0_u32..5), any::<bool>())
            .prop_map(|(iova, process, forged)| Step::Translated { iova, process, forged }),
        1 => any::<bool>().prop_map(Step::Unresponsive),
        2 => Just(Step::Run),
        1 => any::<bool>().prop_map(Step::Pending),
        1 => (0_u64..40).prop_map(Step::FenceDone),
        2 => Just(Step::Complete),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
    let errors = || {
        prop_oneof![
            4 => Just(OrderError::Busy),
            3 => Just(OrderError::Refused { done: 0 }),
            1 => Just(OrderError::Fatal),
        ]
    };
    let outcomes =
        prop_oneof![Just(FenceOutcome::Complete), Just(FenceOutcome::AtsTimeout), Just(FenceOutcome::Failed)];
    prop_oneof![
        1 => prop_oneof![Just(OrderError::Busy), Just(OrderError::Refused { done: 0 })].prop_map(Answer::Adopt),
        // Not Refused, which blocking must not be: T39 has it.
        2 => prop_oneof![3 => Just(OrderError::Busy), 1 => Just(OrderError::Fatal)]
            .prop_map(|error| Answer::Context(Err(error))),
        2 => Just(Answer::Context(Ok(Applied::Blocked))),
        3 => errors().prop_map(Answer::Invalidate),
        1 => errors().prop_map(|error| Answer::Fence(Err(error))),
        1 => Just(Answer::Fence(Ok(Completion::Pending))),
        1 => outcomes.prop_map(Answer::Outcome),
        2 => any::<bool>().prop_map(Answer::Attach),
        1 => any::<bool>().prop_map(Answer::Detach),
        1 => Just(Answer::Resync),
        1 => errors().prop_map(Answer::AtsInvalidate),
        1 => errors().prop_map(Answer::PageResponse),
        1 => Just(Answer::DeviceReset),
        1 => values().prop_map(Answer::TakeMemory),
        1 => Just(Answer::LostState),
        1 => prop::option::of((0_usize..1200, 0_u8..8)).prop_map(Answer::Restore),
        1 => Just(Answer::Reset),
        1 => Just(Answer::Shutdown),
    ]
}

/// A VM whose guest runs wild.
struct Wild {
    vm: Vm,
    attachments: Vec<Attachment>,
    /// What the guest's structures lie in: the top, middle and last level of its directory, commands, faults, another.
    pages: [Gpa; 6],
    /// Where the context of [`DEVICE`] was at first.
    context: Gpa,
    /// The host failed at some time.
    failed: bool,
}

impl Wild {
    fn new(extended: bool, wired: bool) -> Self {
        let config = Config::nested().with_ats(true).with_extended_contexts(extended).with_budget(8).with_mirror(true);
        let kinds = if wired { InterruptKinds::Both } else { InterruptKinds::Msi };
        let hardware = Hardware::default();
        hardware.set_strategy(Rewriting::Stepwise);
        let mut vm = Vm::of(&hardware, 1, kinds, &config);
        vm.directory.set(DEVICE, &vm.table.context(PSCID));
        vm.directory.set(OTHER, &ProcessDirectory::new(&vm.memory, 1).context(tc::EN_ATS | tc::EN_PRI));
        vm.write(reg::DDTP, vm.directory.ddtp());
        let attachments =
            [(DEVICE, NVME), (OTHER, NIC)].map(|(id, device)| vm.attach_with(id, device, Ats::PageRequests));
        let attachments = attachments.to_vec();
        let way = [2, 1].map(|level| vm.directory.non_leaf_address(DEVICE, level));
        let context = vm.directory.entry_address(DEVICE);
        let pages = [way[0], way[1], context, vm.commands.entry(0), vm.faults.entry(0), vm.memory.allocate(1)];
        Self { vm, attachments, pages: pages.map(|at| Gpa::new(at.get() & !0xfff)), context, failed: false }
    }

    fn word(&self, page: usize, word: u64) -> Gpa {
        Gpa::new(self.pages[page].get() + word * 8)
    }

    fn step(&mut self, step: &Step) {
        let vm = &mut self.vm;
        let wide = |wide: bool| if wide { Width::U64 } else { Width::U32 };
        match step {
            Step::Store { offset, wide: is_wide, value } => drop(vm.iommu.write(*offset, wide(*is_wide), *value)),
            Step::Bytes { offset, bytes } => drop(vm.iommu.mmio_write(*offset, bytes)),
            Step::Load { offset, wide: is_wide } => {
                let mut bytes = [0xff; 16];
                vm.iommu.mmio_read(*offset, &mut bytes);
                assert_eq!(bytes, [0; 16], "too wide");
                let value = vm.iommu.read(*offset, wide(*is_wide));
                assert_eq!(value, vm.iommu.read(*offset, wide(*is_wide)), "no side effect");
            }
            Step::Word { page, word, value } => {
                let at = self.word(*page, *word);
                self.vm.memory.write(at, *value);
            }
            Step::Race { page, word, values } => {
                let at = self.word(*page, *word);
                self.vm.memory.on_load(at, values.iter().copied());
            }
            Step::Unreadable { page, corrupt } => {
                let fault = if *corrupt { MemoryFault::Corruption } else { MemoryFault::Access };
                vm.memory.fail(self.pages[*page], 64, fault);
                vm.memory.fail_stores(self.pages[*page], 64, fault);
            }
            Step::Readable => vm.memory.clear_failures(),
            Step::Command(command) => vm.ring(&[*command]),
            Step::Context(words) => {
                let at = self.context.get();
                words.iter().zip(0..).for_each(|(&word, index)| vm.memory.write(Gpa::new(at + index * 8), word));
            }
            Step::Directory => {
                vm.write(reg::DDTP, 0);
                vm.write(reg::DDTP, vm.directory.ddtp());
            }
            Step::QueuesOn => {
                vm.write(reg::CQCSR, 0);
                vm.write(reg::FQCSR, 0);
                vm.write(reg::PQCSR, 0);
                vm.turn_queues_on();
                vm.write(reg::FQCSR, reg::ENABLE | reg::INTERRUPT_ENABLE);
            }
            Step::Dma { write, iova } => drop(vm.hardware.dma(NVME, None, Iova::new(*iova), *write)),
            Step::Fault { cause, ttyp, iova, process } => {
                let (Some(cause), Some(access)) = (Cause::decode(*cause), TransactionType::decode(*ttyp)) else {
                    return;
                };
                let fault = HostFault::new(cause, access, Iova::new(*iova));
                let fault = process.map_or(fault, |id| fault.with_process(ProcessId::truncate(id), id % 2 == 0));
                for attachment in &self.attachments {
                    let _ = vm.iommu.report_fault(*attachment, &fault);
                }
            }
            Step::Lost(count) => drop(vm.iommu.report_lost(*count)),
            Step::PageRequest { iova, bits, process } => {
                let group = Prgi::truncate((bits >> 3).try_into().unwrap());
                let payload = PageRequest::read(Iova::new(*iova), group).payload;
                let payload = payload.with_r(bits & 1 != 0).with_w(bits & 2 != 0).with_l(bits & 4 != 0);
                let request = PageRequest::new(payload);
                let request = process.map_or(request, |id| request.with_process(ProcessId::truncate(id), id % 2 == 0));
                let _ = vm.hardware.page_request(NIC, &request);
                self.page_requests();
            }
            Step::Translated { iova, process, forged } => {
                let process = process.map(ProcessId::truncate);
                if *forged {
                    let _ = vm.hardware.translated(NIC, process, Gpa::new(*iova), true);
                } else {
                    let _ = vm.hardware.dma_through_atc(NIC, process, Iova::new(*iova), true);
                }
            }
            Step::Unresponsive(unresponsive) => vm.hardware.set_unresponsive(NIC, *unresponsive),
            Step::Run => drop(vm.iommu.run()),
            Step::Pending(pending) => vm.physical.set_pending(*pending),
            // Of a ticket that was completed before, or never given.
            Step::FenceDone(ticket) => {
                let completed = vm.physical.complete(Ticket::new(*ticket));
                let timed_out = completed.iter().any(|ticket| vm.physical.outcome(*ticket) == FenceOutcome::AtsTimeout);
                let outcome = if timed_out { FenceOutcome::AtsTimeout } else { FenceOutcome::Complete };
                let _ = vm.iommu.fence_done(Ticket::new(*ticket), outcome);
            }
            Step::Complete => self.complete(),
        }
    }

    fn complete(&mut self) {
        for ticket in self.vm.physical.complete_all() {
            let outcome = self.vm.physical.outcome(ticket);
            let _ = self.vm.iommu.fence_done(ticket, outcome);
        }
    }

    /// The host drains the physical page-request queue.
    fn page_requests(&mut self) {
        for (device, request) in self.vm.hardware.take_page_requests() {
            let newest = self.attachments.iter().rev().find(|attachment| attachment.device() == OTHER).unwrap();
            let answers = match self.vm.iommu.report_page_request(*newest, &request) {
                PageRequestOutcome::HostPage => Some(ResponseCode::Success),
                PageRequestOutcome::Discarded(response) => response.map(|response| response.code),
                _ => None,
            };
            // Of some it is told twice, and by an attachment that is long gone.
            let _ = self.vm.iommu.report_page_request(self.attachments[0], &request);
            if let Some(code) = answers.filter(|_| request.payload.wants_response()) {
                self.vm.hardware.answer_page_request(device, &request, code);
            }
        }
    }

    fn answer(&mut self, answer: &Answer) {
        let vm = &mut self.vm;
        let named = |first: bool| if first { (DEVICE, NVME) } else { (OTHER, NIC) };
        match answer {
            Answer::Adopt(error) => vm.physical.answer_next_adopt(Err(*error)),
            Answer::Context(answer) => vm.physical.answer_next_set_context(*answer),
            Answer::Invalidate(error) => vm.physical.answer_next_invalidate(Err(*error)),
            Answer::Fence(answer) => vm.physical.answer_next_fence(*answer),
            Answer::Outcome(outcome) => {
                for ticket in vm.physical.complete_all() {
                    let _ = vm.iommu.fence_done(ticket, *outcome);
                }
            }
            // The model of the host takes the first fence after a failure for the end of the reset.
            Answer::Attach(_) if self.failed && vm.progress() != Progress::Idle => {}
            Answer::Attach(first) => {
                let (id, device) = named(*first);
                if let Ok(attached) = vm.iommu.attach(id, device, DevicePolicy::default().with_ats(Ats::PageRequests)) {
                    self.attachments.push(attached.attachment);
                }
            }
            Answer::Detach(first) => drop(vm.iommu.detach(named(*first).0)),
            Answer::Resync => drop(vm.iommu.resync(DEVICE)),
            Answer::AtsInvalidate(error) => vm.physical.answer_next_ats_invalidate(Err(*error)),
            Answer::PageResponse(error) => vm.physical.answer_next_page_response(Err(*error)),
            Answer::DeviceReset => {
                vm.hardware.reset_function(NIC);
                let _ = vm.iommu.device_reset(OTHER);
            }
            Answer::TakeMemory(at) => drop(vm.iommu.invalidate_gpa(Gpa::new(*at)..=Gpa::new(at | 0xfff))),
            Answer::LostState => {
                vm.physical.lose_state();
                let _ = vm.iommu.host_lost_state();
            }
            Answer::Restore(spoilt) => {
                let mut image = vm.image();
                if let Some((byte, bit)) = spoilt.filter(|(byte, _)| *byte < image.len()) {
                    image[byte] ^= 1 << bit;
                }
                let _ = vm.iommu.restore(&image);
                self.finish();
            }
            // The guest does not run before it is done.
            Answer::Reset => {
                let _ = vm.iommu.reset();
                self.finish();
            }
            Answer::Shutdown => drop(vm.iommu.shutdown()),
        }
    }

    /// Goes on until nothing is left, or for long.
    fn finish(&mut self) {
        for _ in 0..500 {
            self.complete();
            if self.vm.iommu.run() == Progress::Idle {
                return;
            }
        }
    }

    /// Whatever was done, it comes to an end; and a host that has no bad answer left serves again after a reset.
    fn end(&mut self) -> Result<(), TestCaseError> {
        self.vm.physical.set_pending(false);
        self.vm.memory.clear_failures();
        for _ in 0..100 {
            self.finish();
            let _ = self.vm.iommu.reset();
            self.finish();
            if self.vm.progress() == Progress::Idle && self.vm.iommu.health() == Health::Good {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it does not recover"))
    }
}

#[test]
fn t16_nothing_a_guest_does_panics() {
    let scripts = (any::<bool>(), any::<bool>(), prop::collection::vec(steps(), 1..80));
    let outcome = runner(300).run(&scripts, |(extended, wired, steps)| {
        let mut wild = Wild::new(extended, wired);
        for step in &steps {
            wild.step(step);
        }
        wild.end()
    });
    assert_eq!(outcome, Ok(()));
}

#[test]
fn t16_no_answer_of_the_host_panics_or_leads_to_a_breach_of_its_contract() {
    let events = prop_oneof![3 => steps().prop_map(Ok), 1 => answers().prop_map(Err)];
    let scripts = (any::<bool>(), prop::collection::vec(events, 1..80));
    let outcome = runner(300).run(&scripts, |(extended, events)| {
        let mut wild = Wild::new(extended, true);
        for event in &events {
            match event {
                Ok(step) => wild.step(step),
                Err(answer) => wild.answer(answer),
            }
            wild.failed |= wild.vm.iommu.health() == Health::Failed;
        }
        wild.end()
    });
    assert_eq!(outcome, Ok(()));
}

/// Keeps the lines that the test of this thread caused.
struct Lines;

thread_local! {
    static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().starts_with("riscv_viommu") {
            LINES.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
        }
    }

    fn flush(&self) {}
}

#[test]
fn t17_nothing_a_guest_does_is_logged_louder_than_debug() {
    let _ = log::set_logger(&Lines);
    log::set_max_level(LevelFilter::Trace);
    let quiet = || LINES.with_borrow_mut(|lines| lines.drain(..).find(|(level, _)| *level < Level::Debug));
    // That it is listened to.
    let mut vm = Vm::translating();
    vm.ring(&[[0, 0]]);
    assert!(LINES.with_borrow(|lines| !lines.is_empty()));
    assert_eq!(quiet(), None);
    let scripts = (any::<bool>(), any::<bool>(), prop::collection::vec(steps(), 1..80));
    let outcome = runner(150).run(&scripts, |(extended, wired, steps)| {
        let mut wild = Wild::new(extended, wired);
        for step in &steps {
            wild.step(step);
        }
        wild.end()?;
        prop_assert_eq!(quiet(), None);
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
}

#[test]
fn t17_a_host_that_refuses_to_invalidate_is_complained_of_once() {
    let _ = log::set_logger(&Lines);
    log::set_max_level(LevelFilter::Trace);
    let mut vm = Vm::translating();
    (0..64).for_each(|_| vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 })));
    let _ = vm.iommu.detach(DEVICE);
    // The device that can not leave is tried again whenever the guest fences.
    (0..8).for_each(|_| vm.ring(&[Iofence::PLAIN.encode()]));
    let loud = LINES.with_borrow_mut(|lines| lines.drain(..).filter(|(level, _)| *level < Level::Debug).count());
    assert_eq!(loud, 1);
}
