//! ATS towards emulated devices: invalidation requests and page responses on their way, and the fences that wait for
//! them.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    reason = "small numbers, and a failure is a finding"
)]

mod common;

use common::{ILLEGAL, Rig};
use proptest::prelude::*;
use riscv_viommu::mock::guest::register::{
    BUSY, CIP, CMD_ILL, CMD_TO, CQB, CQCSR, CQH, CQT, DDTP, ENABLE, FCTL, FENCE_W_IP, INTERRUPT_ENABLE, IPSR, ON,
};
use riscv_viommu::mock::guest::{AtsCommand, CommandRing, Iofence, Iotinval};
use riscv_viommu::mock::tables::{Directory, FirstStageTable, PageSize, pte};
use riscv_viommu::mock::{Event, Memory, Wires};
use riscv_viommu::{
    Ats, AtsCompletion, AtsRequest, AttachError, Attachment, Config, DetachError, DeviceId, DeviceMessage,
    DevicePolicy, FirstStageMode, Gpa, InterruptKinds, InvalidationCompletion, InvalidationRequest, Iova, Itag,
    NoPhysical, Parts, Post, ProcessId, Progress, Pscid, ResponseCode, VIommu, Width,
};

/// The function at 00:01.0.
const RID: u16 = 0x0008;
/// A page for what fences store.
const DATA: Gpa = Gpa::new(0x8300_0000);
/// `cqcsr` of a queue that is on.
const RUNNING: u64 = ENABLE | ON;
/// Invalidates one page.
const PAGE: u64 = 0x1234_5000;

fn id(device: u32) -> DeviceId {
    DeviceId::new(device).expect("24 bits")
}

/// Devices whose DMA is done before the vIOMMU is called again.
fn config() -> Config {
    Config::emulated().with_synchronous_dma(true)
}

fn granted() -> DevicePolicy {
    DevicePolicy::default().with_ats(Ats::PageRequests)
}

fn itag(number: u32) -> Itag {
    Itag::new(number).expect("5 bits")
}

fn inval() -> [u64; 2] {
    AtsCommand::to(RID).inval(PAGE)
}

fn prgr() -> [u64; 2] {
    AtsCommand::to(RID).prgr(5, 0)
}

fn fence() -> [u64; 2] {
    Iofence::PLAIN.encode()
}

/// A fence that shows itself in memory and on a wire.
fn telling() -> [u64; 2] {
    Iofence::PLAIN.store(DATA, 0x1122_3344).wsi().encode()
}

/// A guest whose command queue is on, and an emulated device that takes part in ATS.
struct Guest {
    rig: Rig,
    queue: CommandRing,
    device: Attachment,
}

impl Guest {
    fn new() -> Self {
        Self::of(config().with_ats(true))
    }

    fn of(config: Config) -> Self {
        let mut rig = Rig::start(config, InterruptKinds::Both);
        let device = rig.iommu.attach_emulated(id(RID.into()), granted()).expect("there is room");
        rig.write(FCTL, 2);
        rig.memory.map(DATA, 4096);
        let queue = rig.command_queue(8, ENABLE);
        rig.forget_accesses();
        Self { rig, queue, device }
    }

    fn read(&self, offset: u64) -> u64 {
        self.rig.read(offset)
    }

    fn write(&mut self, offset: u64, value: u64) -> Progress {
        self.rig.iommu.write(offset, Width::U32, value)
    }

    /// Puts commands into the queue and rings for them.
    fn ring(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> Progress {
        let tail = self.queue.push_all(commands);
        self.write(CQT, tail)
    }

    /// Takes every message there is.
    fn messages(&mut self) -> Vec<(Attachment, DeviceMessage)> {
        std::iter::from_fn(|| self.rig.iommu.next_message()).collect()
    }

    /// Takes every message; the requests among them, all to the device.
    fn requests(&mut self) -> Vec<InvalidationRequest> {
        let device = self.device;
        let request = |(to, message)| match message {
            DeviceMessage::Invalidation(request) => {
                assert_eq!(to, device);
                Some(request)
            }
            _ => None,
        };
        self.messages().into_iter().filter_map(request).collect()
    }

    /// Takes every message; the numbers of the requests.
    fn itags(&mut self) -> Vec<Itag> {
        self.requests().into_iter().map(|request| request.itag).collect()
    }

    /// The device completes the request with its only completion.
    fn complete(&mut self, itag: Itag) -> Progress {
        self.rig.iommu.ats_completion(self.device, InvalidationCompletion::of(itag))
    }

    fn time_out(&mut self, itag: Itag) -> Progress {
        self.rig.iommu.ats_timeout(self.device, itag)
    }

    fn unexpected(&self) -> u64 {
        self.rig.iommu.stats().unexpected_completions
    }

    /// `cqcsr` and `cqh`.
    fn state(&self) -> (u64, u64) {
        (self.read(CQCSR), self.read(CQH))
    }

    fn posts(&self) -> usize {
        self.rig.memory.take_posts().len()
    }
}

// What is sent.

#[test]
fn an_invalidation_request_has_what_the_command_says() {
    let process = ProcessId::new(0xa_bcde).expect("20 bits");
    let to = AtsCommand::to(RID);
    let range = 0x1234_3800;
    for (command, with, payload, rule) in [
        (to.inval(PAGE), None, PAGE, "ATC-01"),
        (to.inval(range | 1), None, range | 1, "ATC-01, CMD-18"),
        (to.process(process).inval(PAGE), Some(process), PAGE, "ATC-01: PV"),
        (to.segment(0).inval(PAGE), None, PAGE, "ATC-01: DSV"),
        // What is ignored: DSEG without DSV, PID without PV, zeros of the payload.
        ([to.inval(PAGE)[0] | 0x7f << 56 | 0xffff_f000, PAGE | 0x7fe], None, PAGE, "ATC-01, CMD-16, VC-72"),
    ] {
        let mut guest = Guest::new();
        assert_eq!(guest.ring([command]), Progress::Idle);
        assert_eq!(guest.state(), (RUNNING, 1), "ATC-02, CQ-04, CQX-06: {rule}");
        let [request] = guest.requests()[..] else { panic!("{rule}") };
        assert_eq!((request.process, request.payload.into_bits()), (with, payload), "{rule}");
        assert_eq!(guest.rig.iommu.stats().commands.ats_inval, 1);
    }
}

#[test]
fn a_response_has_its_group_its_code_and_the_pasid_of_the_command() {
    let process = ProcessId::new(7).expect("20 bits");
    for (code, meaning) in [
        (0, ResponseCode::Success),
        (1, ResponseCode::InvalidRequest),
        (2, ResponseCode::ResponseFailure),
        (0xf, ResponseCode::ResponseFailure),
    ] {
        for with in [None, Some(process)] {
            let mut guest = Guest::new();
            let to = with.map_or(AtsCommand::to(RID), |process| AtsCommand::to(RID).process(process));
            let [low, high] = to.prgr(0x1ff, code);
            // Zeros of the payload are not looked at, and go no further.
            assert_eq!(guest.ring([[low, high | 0xffff_0e00_ffff_ffff]]), Progress::Idle);
            let [(to, DeviceMessage::PageResponse(response))] = guest.messages()[..] else { panic!() };
            assert_eq!((to, response.process, response.group.get()), (guest.device, with, 0x1ff), "PRG-01, PRG-05");
            assert_eq!(response.code, meaning, "PRG-02, PRI-15");
            assert_eq!(guest.rig.iommu.stats().commands.ats_prgr, 1);
        }
    }
}

#[test]
fn a_segment_is_part_of_the_device_id() {
    let mut guest = Guest::new();
    let far = guest.rig.iommu.attach_emulated(id(0x12_0008), granted()).expect("there is room");
    let _ = guest.ring([AtsCommand::to(RID).segment(0x12).inval(0), inval()]);
    let to: Vec<_> = guest.messages().into_iter().map(|(to, _)| to).collect();
    assert_eq!(to, [far, guest.device], "ATC-01, PRI-01");
}

#[test]
fn a_command_for_what_is_no_emulated_device_with_ats_is_a_no_op() {
    let mut guest = Guest::new();
    guest.rig.iommu.attach_emulated(id(9), DevicePolicy::default()).expect("there is room");
    for to in [AtsCommand::to(9), AtsCommand::to(0xffff), AtsCommand::to(RID).segment(1)] {
        assert_eq!(guest.ring([to.inval(PAGE), to.prgr(1, 0), fence()]), Progress::Idle, "VC-11, VC-71, PRG-03");
        assert_eq!(guest.messages(), [], "T03, T23");
        assert_eq!(guest.state(), (RUNNING, guest.queue.tail().into()), "VC-71: no timeout is made up");
    }
}

#[test]
fn a_device_that_makes_no_page_requests_gets_no_response() {
    let mut guest = Guest::new();
    let policy = DevicePolicy::default().with_ats(Ats::Translations);
    guest.rig.iommu.attach_emulated(id(9), policy).expect("there is room");
    let prgr = AtsCommand::to(9).prgr(1, 0xf);
    assert_eq!(guest.ring([prgr, prgr, prgr, fence()]), Progress::Idle, "PRG-03: nothing waits for it");
    assert_eq!(guest.messages(), [], "PRG-03, T23");
}

#[test]
fn no_directory_is_read_for_a_message() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), prgr()]);
    let [itag] = guest.itags()[..] else { panic!() };
    let _ = guest.complete(itag);
    assert_eq!(guest.rig.memory.take_loads(), [(guest.queue.entry(0), 4)], "ATS-21: EN_ATS is not looked at");
}

#[test]
fn without_ats_the_commands_are_illegal() {
    for command in [inval(), prgr()] {
        let mut guest = Guest::of(config());
        let _ = guest.ring([command]);
        assert_eq!(guest.state(), (RUNNING | CMD_ILL, 0), "CMD-15, QCMD-06, QCMD-07");
        assert_eq!(guest.messages(), [], "CQX-04");
    }
    for reserved in [10, 11, 34, 39] {
        let mut guest = Guest::new();
        let [low, high] = inval();
        let _ = guest.ring([[low | 1 << reserved, high]]);
        assert_eq!(guest.state(), (RUNNING | CMD_ILL, 0), "CMD-15: bit {reserved}");
        assert_eq!(guest.messages(), [], "CQX-04, T05");
    }
}

// Fences.

#[test]
fn a_fence_waits_until_every_request_is_complete() {
    let mut guest = Guest::new();
    assert_eq!(guest.ring([inval(), inval(), telling(), inval()]), Progress::Waiting);
    let [first, second] = guest.itags()[..] else { panic!() };
    assert_ne!(first, second);
    for step in [Progress::Runnable, Progress::Waiting] {
        assert_eq!((guest.rig.iommu.progress(), guest.state()), (step, (RUNNING, 2)), "FEN-01, FEN-02, CQ-09");
        assert_eq!(guest.rig.iommu.run(), Progress::Waiting);
    }
    assert_eq!(guest.complete(second), Progress::Waiting, "T15");
    assert_eq!((guest.state(), guest.posts()), ((RUNNING, 2), 0), "FEN-02: no store, no wire");
    let _ = guest.rig.memory.take_loads();
    assert_eq!(guest.complete(first), Progress::Idle);
    assert_eq!(guest.state(), (RUNNING | FENCE_W_IP, 4), "CQ-07, CQ-08: the queue goes on by itself");
    assert_eq!(guest.rig.memory.take_posts(), [(DATA, 0x1122_3344, Post::FenceData)], "FEN-04");
    assert_eq!(guest.rig.memory.take_loads(), [(guest.queue.entry(3), 2)], "FEN-09: what is behind is fetched now");
    assert_eq!(guest.requests().len(), 1);
}

#[test]
fn the_store_of_a_fence_that_waited_comes_before_its_wire() {
    let mut guest = Guest::new();
    let _ = guest.write(CQCSR, ENABLE | INTERRUPT_ENABLE);
    let _ = guest.ring([inval(), telling()]);
    let [itag] = guest.itags()[..] else { panic!() };
    guest.rig.forget_accesses();
    let _ = guest.complete(itag);
    let events = guest.rig.memory.take_events();
    assert_eq!(events, [Event::Post(DATA, 0x1122_3344, Post::FenceData), Event::Wire(0, true)], "VC-47, IRQ-18");
}

#[test]
fn a_fence_waits_until_every_message_is_taken() {
    let mut guest = Guest::new();
    assert_eq!(guest.ring([prgr(), telling()]), Progress::Waiting);
    assert_eq!((guest.state(), guest.posts()), ((RUNNING, 1), 0), "PRG-07, VC-85");
    assert_eq!(guest.messages().len(), 1);
    assert_eq!(guest.rig.iommu.progress(), Progress::Runnable);
    assert_eq!(guest.rig.iommu.run(), Progress::Idle);
    assert_eq!((guest.state(), guest.posts()), ((RUNNING | FENCE_W_IP, 2), 1), "PRG-01: nothing else to wait for");
}

#[test]
fn nothing_behind_a_fence_that_waits_is_fetched() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), fence()]);
    let _ = guest.rig.memory.take_loads();
    assert_eq!(guest.ring([inval(), ILLEGAL]), Progress::Waiting);
    assert_eq!((guest.state(), guest.rig.memory.take_loads()), ((RUNNING, 1), vec![]), "FEN-09");
    assert_eq!(guest.requests().len(), 1);
}

#[test]
fn an_illegal_command_does_not_wait_for_requests() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), ILLEGAL]);
    assert_eq!(guest.state(), (RUNNING | CMD_ILL, 1), "CQ-11, CQX-04");
    let [itag] = guest.itags()[..] else { panic!() };
    assert_eq!(guest.complete(itag), Progress::Idle);
    assert_eq!(guest.unexpected(), 0);
}

// Completions.

#[test]
fn a_request_is_done_after_as_many_completions_as_they_say() {
    for (cc, count) in [(1, 1), (2, 2), (7, 7), (0, 8)] {
        let mut guest = Guest::new();
        let _ = guest.ring([inval(), fence()]);
        let [itag] = guest.itags()[..] else { panic!() };
        let completion = InvalidationCompletion::from_bits(cc << 32 | 1 << itag.get());
        for seen in 1..=count {
            assert_eq!(guest.state().1, 1, "ATS-20: {seen} of {count}");
            let _ = guest.rig.iommu.ats_completion(guest.device, completion);
        }
        assert_eq!((guest.state().1, guest.unexpected()), (2, 0), "ATS-20, CQ-24: {count}");
    }
}

#[test]
fn one_completion_may_complete_several_requests() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), inval(), fence()]);
    let vector = guest.itags().into_iter().fold(0, |vector, itag| vector | 1 << itag.get());
    let all = InvalidationCompletion::new().with_itags(vector).with_cc(1);
    assert_eq!(guest.rig.iommu.ats_completion(guest.device, all), Progress::Idle);
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 3), 0), "ATS-20");
}

#[test]
fn a_completion_nobody_waits_for_is_ignored() {
    let mut guest = Guest::new();
    let other = guest.rig.iommu.attach_emulated(id(9), granted()).expect("there is room");
    let _ = guest.ring([inval(), fence()]);
    // All 32 at once, while the request has not even been taken.
    let all = InvalidationCompletion::new().with_itags(u32::MAX).with_cc(1);
    assert_eq!(guest.rig.iommu.ats_completion(guest.device, all), Progress::Waiting);
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 1), 1), "ATC-04");
    let [itag] = guest.itags()[..] else { panic!() };
    assert_eq!(guest.rig.iommu.ats_completion(other, all), Progress::Waiting, "ATS-20: another device");
    let another = InvalidationCompletion::new().with_itags(!(1 << itag.get())).with_cc(1);
    assert_eq!(guest.rig.iommu.ats_completion(guest.device, another), Progress::Waiting, "ATS-20: another ITag");
    assert_eq!(guest.rig.iommu.ats_completion(guest.device, InvalidationCompletion::new()), Progress::Waiting);
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 1), 3), "ATC-04");
    assert_eq!(guest.rig.iommu.ats_completion(guest.device, all), Progress::Idle, "the one it has is among them");
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 2), 4));
    assert_eq!(guest.complete(itag), Progress::Idle);
    assert_eq!(guest.unexpected(), 5, "ATC-04: late");
}

// No ITag, no place.

#[test]
fn without_an_itag_the_queue_waits_on_the_command() {
    let mut guest = Guest::new();
    assert_eq!(guest.ring([inval(), inval(), inval(), inval(), fence()]), Progress::Waiting);
    assert_eq!(guest.state(), (RUNNING, 2), "ATC-03, CQ-24: two ITags");
    let [first, second] = guest.itags()[..] else { panic!() };
    assert_eq!((guest.rig.iommu.run(), guest.state()), (Progress::Waiting, (RUNNING, 2)));
    assert_eq!(guest.complete(first), Progress::Waiting);
    assert_eq!(guest.state(), (RUNNING, 3), "ATC-03: issued later");
    let [third] = guest.itags()[..] else { panic!() };
    assert_eq!(guest.time_out(second), Progress::Waiting);
    assert_eq!(guest.state(), (RUNNING, 4), "ATC-04: a timeout frees the ITag");
    let [fourth] = guest.itags()[..] else { panic!() };
    let _ = guest.complete(third);
    let _ = guest.complete(fourth);
    assert_eq!(guest.state(), (RUNNING | CMD_TO, 4), "FEN-10, CQ-14");
}

#[test]
fn the_patched_command_is_the_one_carried_out_when_the_wait_ends() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), inval(), inval()]);
    let [first, _] = guest.itags()[..] else { panic!() };
    // Not fetched yet, as far as the guest can know: `cqh` is on it.
    guest.rig.memory.write_words(guest.queue.entry(2), &AtsCommand::to(RID).inval(0x9000));
    let _ = guest.complete(first);
    let [third] = guest.requests()[..] else { panic!() };
    assert_eq!(third.payload.into_bits(), 0x9000, "CQX-05, Q-11");
}

#[test]
fn where_there_is_no_place_for_a_message_the_queue_waits_until_one_is_taken() {
    let mut guest = Guest::new();
    let responses: Vec<_> = (0..5).map(|group| AtsCommand::to(RID).prgr(group, 0)).collect();
    assert_eq!(guest.ring(responses), Progress::Waiting);
    assert_eq!(guest.state(), (RUNNING, 2));
    let mut groups = Vec::new();
    loop {
        for (_, message) in guest.messages() {
            let DeviceMessage::PageResponse(response) = message else { panic!() };
            groups.push(response.group.get());
        }
        if guest.rig.iommu.progress() == Progress::Idle {
            break;
        }
        assert_eq!(guest.rig.iommu.progress(), Progress::Runnable);
        let _ = guest.rig.iommu.run();
    }
    assert_eq!((groups, guest.state()), (vec![0, 1, 2, 3, 4], (RUNNING, 5)), "PRG-01: all, in order");
}

#[test]
fn a_vast_number_of_requests_keeps_the_host_from_nothing() {
    let mut guest = Guest::new();
    guest.queue.push_all([inval()].repeat(255));
    assert_eq!(guest.write(CQT, 255), Progress::Waiting, "T14, T41");
    let mut sent = guest.itags();
    assert_eq!(sent.len(), 2, "VC-74");
    for count in 3..=256 {
        assert!(guest.state().1 < 256);
        let _ = guest.complete(sent.remove(0));
        sent.extend(guest.itags());
        assert!(sent.len() <= 2, "VC-74: at request {count}");
    }
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 255), 0));
}

#[test]
fn there_are_as_many_itags_as_the_host_gives() {
    fn outstanding<const ITAGS: usize>() -> usize {
        let memory = Memory::new();
        let interrupts = Wires::new(InterruptKinds::Msi);
        let parts = Parts { memory: memory.clone(), interrupts, physical: NoPhysical };
        let mut iommu = VIommu::<_, 1, 1, 0, ITAGS>::new(parts);
        iommu.start(&config().with_ats(true)).expect("a configuration");
        iommu.attach_emulated(id(RID.into()), granted()).expect("there is room");
        let mut queue = CommandRing::new(&memory, 8, common::COMMANDS);
        let _ = iommu.write(CQB, Width::U64, queue.cqb());
        let _ = iommu.write(CQCSR, Width::U32, ENABLE);
        let tail = queue.push_all([inval()].repeat(100));
        let _ = iommu.write(CQT, Width::U32, tail);
        let mut itags: Vec<_> = std::iter::from_fn(|| iommu.next_message())
            .filter_map(|(_, message)| match message {
                DeviceMessage::Invalidation(request) => Some(request.itag.get()),
                _ => None,
            })
            .collect();
        itags.dedup();
        assert!(itags.iter().all(|&itag| itag < 32), "ATC-03: 5 bits");
        itags.len()
    }
    assert_eq!((outstanding::<1>(), outstanding::<3>(), outstanding::<32>()), (1, 3, 32), "ATC-03");
}

// Timeouts.

#[test]
fn a_timeout_is_told_by_the_next_fence_and_by_nothing_else() {
    let mut guest = Guest::new();
    let _ = guest.write(CQCSR, ENABLE | INTERRUPT_ENABLE);
    let running = RUNNING | INTERRUPT_ENABLE;
    let _ = guest.ring([inval()]);
    let [itag] = guest.itags()[..] else { panic!() };
    assert_eq!(guest.time_out(itag), Progress::Idle);
    assert_eq!((guest.state(), guest.read(IPSR)), ((running, 1), 0), "FEN-08, CQ-23");
    let _ = guest.ring([inval(), telling()]);
    let [second] = guest.itags()[..] else { panic!() };
    assert_eq!(guest.state(), (running, 2), "FEN-07: everything else is to be done first");
    let _ = guest.complete(second);
    assert_eq!((guest.state(), guest.read(IPSR)), ((running | CMD_TO, 2), CIP), "FEN-07, CQ-14, REG-CQCSR-05");
    assert_eq!(guest.posts(), 0, "FEN-07: no store, no wire");
    // The timeout is consumed: the same fence completes.
    let _ = guest.write(CQCSR, ENABLE | INTERRUPT_ENABLE | CMD_TO);
    assert_eq!((guest.state(), guest.posts()), ((running | FENCE_W_IP, 3), 1), "FEN-07, CQ-18");
}

#[test]
fn a_request_that_timed_out_is_done_with() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval()]);
    // Before it was taken it can not time out.
    let early = [0, 1, 2, 31].map(itag);
    for itag in early {
        let _ = guest.time_out(itag);
    }
    let [itag] = guest.itags()[..] else { panic!() };
    let _ = guest.time_out(itag);
    let before = guest.unexpected();
    let _ = (guest.complete(itag), guest.time_out(itag));
    assert_eq!((before, guest.unexpected()), (4, 6), "ATC-04: late, and twice");
    let _ = guest.ring([fence()]);
    assert_eq!(guest.state(), (RUNNING | CMD_TO, 1));
    let _ = guest.write(CQCSR, ENABLE | CMD_TO);
    assert_eq!(guest.state(), (RUNNING, 2), "FEN-07: once");
}

#[test]
fn a_timeout_of_what_was_not_requested_is_not_told() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval()]);
    let [wanted] = guest.itags()[..] else { panic!() };
    let other = guest.rig.iommu.attach_emulated(id(9), granted()).expect("there is room");
    let _ = guest.rig.iommu.ats_timeout(other, wanted);
    let _ = guest.time_out(itag(wanted.get() ^ 1));
    let _ = guest.complete(wanted);
    let _ = guest.time_out(wanted);
    let _ = guest.ring([fence()]);
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 2), 3), "ATC-04, FEN-07");
}

#[test]
fn a_late_completion_does_not_complete_the_request_that_came_after() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval()]);
    let [late] = guest.itags()[..] else { panic!() };
    let _ = guest.time_out(late);
    let _ = guest.ring([inval(), inval(), fence()]);
    let next = guest.itags();
    let _ = guest.complete(late);
    assert_eq!((guest.state().1, guest.unexpected()), (3, 1), "ATC-04: {late:?} is not among {next:?}");
}

// Turning off, reset, detach.

#[test]
fn a_queue_turned_off_is_busy_until_its_fence_is_done() {
    for times_out in [false, true] {
        let mut guest = Guest::new();
        let _ = guest.ring([inval(), telling(), inval()]);
        let [itag] = guest.itags()[..] else { panic!() };
        assert_eq!(guest.write(CQCSR, 0), Progress::Waiting);
        assert_eq!(guest.state(), (ON | BUSY, 1), "FEN-09, REG-CQCSR-22");
        let _ = if times_out { guest.time_out(itag) } else { guest.complete(itag) };
        let (expected, posts) = if times_out { ((CMD_TO, 1), 0) } else { ((FENCE_W_IP, 2), 1) };
        assert_eq!((guest.state(), guest.posts()), (expected, posts), "FEN-09, VC-46, REG-CQCSR-22");
        assert_eq!(guest.messages(), [], "REG-CQCSR-27: what is behind is not carried out");
    }
}

#[test]
fn a_queue_turned_off_does_not_wait_for_a_command_it_has_not_begun() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), inval(), inval()]);
    assert_eq!(guest.write(CQCSR, 0), Progress::Idle);
    assert_eq!(guest.state(), (0, 2), "REG-CQCSR-21, REG-CQCSR-27");
    let itags = guest.itags();
    // What was sent is under way all the same, and the fences of the next time wait for it.
    let _ = guest.write(CQT, 0);
    let _ = guest.write(CQCSR, ENABLE);
    let cqb = guest.queue.cqb();
    let _ = guest.write(CQCSR, 0);
    let _ = guest.rig.iommu.write(CQB, Width::U64, cqb);
    let _ = guest.write(CQCSR, ENABLE);
    assert_eq!(guest.ring([fence()]), Progress::Waiting, "FEN-01");
    for itag in itags {
        let _ = guest.complete(itag);
    }
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 1), 0));
}

#[test]
fn a_timeout_outlives_the_queue_that_caused_it() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval()]);
    let [itag] = guest.itags()[..] else { panic!() };
    let _ = guest.time_out(itag);
    let _ = guest.write(CQCSR, 0);
    let cqb = guest.queue.cqb();
    let _ = guest.rig.iommu.write(CQB, Width::U64, cqb);
    let _ = guest.write(CQCSR, ENABLE);
    let _ = guest.ring([fence()]);
    assert_eq!(guest.state(), (RUNNING | CMD_TO, 0), "CQ-25");
}

#[test]
fn a_reset_forgets_requests_messages_and_timeouts() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), inval()]);
    let before = guest.itags();
    let _ = guest.time_out(before[0]);
    let _ = guest.ring([prgr(), fence()]);
    assert_eq!(guest.rig.iommu.reset(), Progress::Idle);
    assert_eq!(guest.messages(), [], "REG-RST-07");
    guest.queue = guest.rig.command_queue(8, ENABLE);
    let _ = guest.ring([fence(), inval(), inval(), fence()]);
    assert_eq!(guest.state(), (RUNNING, 3), "REG-RST-07: no timeout, and no old request to wait for");
    let after = guest.itags();
    for itag in before {
        let _ = guest.complete(itag);
    }
    assert_eq!((guest.state(), guest.unexpected()), ((RUNNING, 3), 2), "ATC-04: completions of the time before");
    for itag in after {
        let _ = guest.complete(itag);
    }
    assert_eq!(guest.state(), (RUNNING, 4));
}

#[test]
fn a_device_that_leaves_takes_its_requests_and_messages_along() {
    let mut guest = Guest::new();
    let other = guest.rig.iommu.attach_emulated(id(9), granted()).expect("there is room");
    let _ = guest.ring([inval(), AtsCommand::to(9).prgr(1, 0)]);
    let old = guest.device;
    assert_eq!(guest.ring([prgr(), fence()]), Progress::Waiting);
    assert_eq!(guest.rig.iommu.detach(old.device()), Ok(Progress::Waiting));
    let [(to, _)] = guest.messages()[..] else { panic!() };
    assert_eq!(to, other, "T34: nothing to the one that is gone");
    assert_eq!(guest.rig.iommu.run(), Progress::Idle);
    assert_eq!(guest.state(), (RUNNING, 4), "VC-71: no timeout is made up");
    assert_eq!(guest.rig.iommu.detach(old.device()), Err(DetachError::NotAttached));
}

#[test]
fn a_function_that_was_reset_has_nothing_left_to_complete_and_stays() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), fence()]);
    assert_eq!(guest.state(), (RUNNING, 1));
    let device = guest.device.device();
    assert_eq!(guest.rig.iommu.device_reset(device), Progress::Idle);
    assert_eq!((guest.messages(), guest.state()), (vec![], (RUNNING, 2)), "VC-71: complete, and no timeout");
    let _ = guest.ring([inval(), fence()]);
    let [itag] = guest.itags()[..] else { panic!() };
    assert_eq!(guest.complete(itag), Progress::Idle, "it is the same attachment");
}

#[test]
fn what_is_told_for_an_old_attachment_does_not_reach_the_new_one() {
    let mut guest = Guest::new();
    let old = guest.device;
    let _ = guest.rig.iommu.detach(old.device());
    guest.device = guest.rig.iommu.attach_emulated(old.device(), granted()).expect("it is free");
    assert_ne!(guest.device, old);
    let _ = guest.ring([inval(), fence()]);
    let [itag] = guest.itags()[..] else { panic!() };
    let all = InvalidationCompletion::new().with_itags(u32::MAX).with_cc(1);
    assert_eq!(guest.rig.iommu.ats_completion(old, all), Progress::Runnable, "T34: what was left, still");
    let _ = guest.rig.iommu.ats_timeout(old, itag);
    let stats = guest.rig.iommu.stats();
    assert_eq!((guest.state(), stats.stale_events, stats.unexpected_completions), ((RUNNING, 1), 2, 0), "T34");
    assert_eq!(guest.complete(itag), Progress::Idle);
    assert_eq!(guest.state(), (RUNNING, 2));
}

#[test]
fn a_shutdown_leaves_no_device() {
    let mut guest = Guest::new();
    let _ = guest.ring([inval(), fence()]);
    assert_eq!(guest.rig.iommu.shutdown(), Progress::Idle);
    assert_eq!((guest.messages(), guest.state()), (vec![], (RUNNING, 2)));
    assert_eq!(guest.rig.iommu.detach(guest.device.device()), Err(DetachError::NotAttached));
}

// Together with translation.

/// What the device's own cache gets for the page of `iova`.
fn asked<const CACHE: usize>(
    iommu: &mut VIommu<Parts<Memory, Wires, NoPhysical>, 16, 16, CACHE>,
    device: Attachment,
    iova: Iova,
) -> u64 {
    match iommu.ats_translate(&AtsRequest::new(device, iova)) {
        Ok(AtsCompletion::Success(translation)) if translation.read && translation.write => translation.address,
        other => panic!("{other:?}"),
    }
}

fn a_device_that_forgets_gets_what_is_mapped_now<const CACHE: usize>() {
    let memory = Memory::new();
    let parts = Parts { memory: memory.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical: NoPhysical };
    let mut iommu = VIommu::<_, 16, 16, CACHE>::new(parts);
    iommu.start(&config().with_ats(true)).expect("a configuration");
    let device = iommu.attach_emulated(id(RID.into()), granted()).expect("there is room");
    let table = FirstStageTable::new(&memory, FirstStageMode::Sv39);
    let (iova, old, new) = (Iova::new(PAGE), memory.allocate(1), memory.allocate(1));
    table.map(iova, old, PageSize::K4, pte::RW);
    let directory = Directory::new(&memory, 1, false);
    let [tc, rest @ ..] = table.context(Pscid::truncate(1));
    // EN_ATS.
    directory.set(device.device(), &[&[tc | 1 << 1][..], &rest].concat());
    let _ = iommu.write(DDTP, Width::U64, directory.ddtp());
    let mut queue = CommandRing::new(&memory, 8, common::COMMANDS);
    let _ = iommu.write(CQB, Width::U64, queue.cqb());
    let _ = iommu.write(CQCSR, Width::U32, ENABLE);
    assert_eq!(asked(&mut iommu, device, iova), old.get());

    table.map(iova, new, PageSize::K4, pte::RW);
    // No fence between the two: commands are carried out in order all the same.
    let tail = queue.push_all([Iotinval::ALL.address(iova).vma(), inval(), fence()]);
    assert_eq!(iommu.write(CQT, Width::U32, tail), Progress::Waiting);
    let Some((to, DeviceMessage::Invalidation(request))) = iommu.next_message() else { panic!() };
    assert_eq!((to, request.payload.range().first(), request.payload.range().last()), (device, iova, iova));
    assert_eq!(asked(&mut iommu, device, iova), new.get(), "ATC-05, VC-73, ATS-18, SWG-18");
    assert_eq!(iommu.ats_completion(device, InvalidationCompletion::of(request.itag)), Progress::Idle);
    assert_eq!((iommu.read(CQH, Width::U32), iommu.read(CQCSR, Width::U32)), (3, RUNNING));
}

#[test]
fn a_device_told_to_forget_gets_what_is_mapped_now() {
    a_device_that_forgets_gets_what_is_mapped_now::<0>();
    a_device_that_forgets_gets_what_is_mapped_now::<8>();
}

// Taking devices in.

#[test]
fn an_id_has_one_device_passthrough_or_emulated() {
    let mut rig = Rig::new(InterruptKinds::Both);
    let policy = DevicePolicy::default();
    assert_eq!(rig.iommu.attach_emulated(id(1), policy), Err(AttachError::NotStarted));
    assert_eq!(rig.iommu.start(&Config::nested().with_synchronous_dma(true)), Ok(()));
    let emulated = rig.iommu.attach_emulated(id(1), policy).expect("there is room");
    let passthrough = rig.iommu.attach(id(2), 7, policy).expect("there is room").attachment;
    assert_eq!((emulated.device(), passthrough.device()), (id(1), id(2)));
    assert_eq!(rig.iommu.attach_emulated(id(1), policy), Err(AttachError::IdInUse));
    assert_eq!(rig.iommu.attach_emulated(id(2), policy), Err(AttachError::IdInUse));
    assert_eq!(rig.iommu.attach(id(1), 8, policy), Err(AttachError::IdInUse), "T40");
    // An id that is still being left is in use.
    rig.hold_fences();
    assert_eq!(rig.iommu.detach(id(2)), Ok(Progress::Waiting));
    assert_eq!(rig.iommu.attach_emulated(id(2), policy), Err(AttachError::IdInUse));
    rig.end_fences(riscv_viommu::FenceOutcome::Complete);
    let again = rig.iommu.attach_emulated(id(2), policy).expect("it is free");
    assert_ne!(again, passthrough, "T34: one counter for both kinds");
    let full = (3..).map(|n| rig.iommu.attach_emulated(id(n), policy)).take(15).last();
    assert_eq!(full, Some(Err(AttachError::Full)));
}

#[test]
fn ats_is_offered_only_where_it_is_configured() {
    for (config, offered) in [(Config::emulated(), 0), (Config::emulated().with_ats(true), 1 << 25)] {
        assert_eq!(Rig::start(config, InterruptKinds::Msi).read8(0) & 1 << 25, offered, "REG-CAP-18");
    }
}

// Anything.

#[derive(Clone, Copy, Debug)]
enum Step {
    Command([u64; 2]),
    Take,
    Complete(u32, u8),
    TimeOut(u32),
    Control(u64),
    Run,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::sample::select(vec![inval(), prgr(), fence(), telling(), AtsCommand::to(9).inval(0)]).prop_map(Step::Command),
        1 => any::<[u64; 2]>().prop_map(|[low, high]| Step::Command([low & !0x7b, high])),
        3 => Just(Step::Take),
        3 => (any::<u32>(), 0..8_u8).prop_map(|(itags, cc)| Step::Complete(itags, cc)),
        1 => (0..32_u32).prop_map(Step::TimeOut),
        1 => prop::sample::select(vec![0, ENABLE, ENABLE | CMD_TO | CMD_ILL]).prop_map(Step::Control),
        1 => Just(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_queue_gets_to_its_end_once_devices_answer(steps in prop::collection::vec(step(), 0..60)) {
        let mut guest = Guest::new();
        for step in steps {
            let _ = match step {
                Step::Command(command) => guest.ring([command]),
                Step::Take => {
                    let _ = guest.rig.iommu.next_message();
                    guest.rig.iommu.progress()
                }
                Step::Complete(itags, cc) => {
                    let completion = InvalidationCompletion::new().with_itags(itags).with_cc(cc);
                    guest.rig.iommu.ats_completion(guest.device, completion)
                }
                Step::TimeOut(number) => guest.time_out(itag(number)),
                Step::Control(csr) => guest.write(CQCSR, csr),
                Step::Run => guest.rig.iommu.run(),
            };
        }
        let all = InvalidationCompletion::new().with_itags(u32::MAX).with_cc(1);
        let mut rounds = 0;
        while guest.read(CQCSR) & BUSY != 0 || guest.read(CQH) != guest.read(CQT) {
            rounds += 1;
            prop_assert!(rounds < 1000, "stuck: {:x?}", guest.state());
            let _ = guest.messages();
            let _ = guest.rig.iommu.ats_completion(guest.device, all);
            let csr = guest.read(CQCSR);
            if csr & (CMD_ILL | CMD_TO) != 0 && csr & CMD_ILL != 0 {
                guest.rig.memory.write_words(guest.queue.entry(u32::try_from(guest.read(CQH)).unwrap()), &fence());
            }
            let _ = guest.write(CQCSR, ENABLE | CMD_TO | CMD_ILL);
        }
        prop_assert!(guest.read(CQCSR) & (CMD_ILL | CMD_TO) == 0);
    }
}
