//! Page requests of emulated devices: into the guest's queue, or answered by the IOMMU itself.

#![expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "small numbers, and a failure is a finding")]

mod common;

use common::Rig;
use proptest::prelude::*;
use riscv_viommu::mock::guest::register::{
    DDTP, ENABLE, FCTL, FIP, FQT, ICVEC, INTERRUPT_ENABLE, IPSR, MEMORY_FAULT, MSI_CFG_TBL, ON, PIP, PQB, PQCSR, PQH,
    PQOF, PQT, iohpmctr, iohpmevt,
};
use riscv_viommu::mock::guest::{FaultRing, PageRequestRing};
use riscv_viommu::mock::tables::tc::{DTF, EN_ATS, EN_PRI, PRPR, V};
use riscv_viommu::mock::{Event, tables::Directory};
use riscv_viommu::{
    Ats, Attachment, Config, DeviceId, DevicePolicy, Gpa, InterruptKinds, Iova, MemoryFault, PageRequest,
    PageRequestPayload, PageResponse, Post, Prgi, ProcessId, ResponseCode, TranslateError,
};

const ID: u32 = 0x12_3456;
/// Where the page-request queue is.
const PAGES: Gpa = Gpa::new(0x8400_0000);
/// `pqcsr` of a queue that is on.
const RUNNING: u64 = ENABLE | ON;

const PERMITTED: u64 = V | EN_ATS | EN_PRI;

/// Head of the fault record of a page request without PASID: TTYP 9, the device, the cause.
const fn fault(cause: u64) -> [u64; 4] {
    [0x1234_5600_0000_0000 | 9 << 34 | cause, 0, 0x04, 0]
}

/// ATS for devices whose DMA is done before the vIOMMU is called again.
fn config() -> Config {
    Config::emulated().with_ats(true).with_synchronous_dma(true)
}

fn id(device: u32) -> DeviceId {
    DeviceId::new(device).expect("24 bits")
}

fn process() -> ProcessId {
    ProcessId::new(0xa_bcde).expect("20 bits")
}

fn group(number: u32) -> Prgi {
    Prgi::new(number).expect("9 bits")
}

/// A request that wants a response.
fn request() -> PageRequest {
    PageRequest::write(Iova::new(0x1234_5678_9000), group(0x155))
}

fn stop_marker() -> PageRequest {
    PageRequest::new(PageRequestPayload::from_bits(0xaac)).with_process(process(), false)
}

/// What the device is told: the code, and the PASID.
type Answer = Option<(ResponseCode, Option<ProcessId>)>;

fn answer(response: Option<PageResponse>, request: &PageRequest) -> Answer {
    response.map(|response| {
        assert_eq!(response.group, request.payload.prgi(), "PRI-10, PQ-24");
        (response.code, response.process)
    })
}

/// A guest with an emulated device, its directory, and queues for faults and page requests.
struct Guest {
    rig: Rig,
    directory: Directory,
    faults: FaultRing,
    pages: PageRequestRing,
    device: Attachment,
}

impl Guest {
    /// Whose device may make page requests, with a page-request queue of 2^`log2` entries that is on.
    fn new(log2: u8) -> Self {
        Self::of(config(), log2, 0, PERMITTED)
    }

    fn with_tc(tc: u64) -> Self {
        Self::of(config(), 3, 0, tc)
    }

    fn of(config: Config, log2: u8, fctl: u64, tc: u64) -> Self {
        let mut rig = Rig::start(config, InterruptKinds::Both);
        let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
        let device = rig.iommu.attach_emulated(id(ID), policy).expect("there is room");
        rig.write(FCTL, fctl);
        let order = if fctl & 1 == 0 { rig.memory.clone() } else { rig.memory.big_endian() };
        let directory = Directory::new(&order, 3, false);
        directory.set(id(ID), &[tc, 0, 0, 0]);
        rig.write8(DDTP, directory.ddtp());
        let faults = rig.fault_queue(6, ENABLE);
        let pages = PageRequestRing::new(&order, log2, PAGES);
        let mut guest = Self { rig, directory, faults, pages, device };
        let pqb = guest.pages.pqb();
        guest.rig.write8(PQB, pqb);
        guest.rig.write(PQCSR, ENABLE);
        guest.rig.forget_accesses();
        guest
    }

    fn read(&self, offset: u64) -> u64 {
        self.rig.read(offset)
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.rig.write(offset, value);
    }

    fn ask(&mut self, request: &PageRequest) -> Answer {
        let response = self.rig.iommu.page_request(self.device, request);
        answer(response.expect("the device is attached"), request)
    }

    /// The page requests between head and tail; they count as read.
    fn requests(&mut self) -> Vec<[u64; 2]> {
        let records = self.pages.take(self.read(PQT));
        let head = self.pages.head();
        self.write(PQH, head.into());
        records
    }

    /// The faults between head and tail, taken out.
    fn records(&mut self) -> Vec<[u64; 4]> {
        self.faults.take(self.read(FQT))
    }

    /// `pqcsr` and `pqt`.
    fn state(&self) -> (u64, u64) {
        (self.read(PQCSR), self.read(PQT))
    }
}

// The record.

#[test]
fn a_request_is_laid_out_as_specified() {
    let plain = PageRequest::new(PageRequestPayload::from_bits(0x1234_5678_9abc_dfff));
    let with = plain.with_process(process(), false);
    let mut without_process = plain.with_execute(true);
    without_process.privileged = true;
    for (request, head, rules) in [
        (plain, 0x1234_5600_0000_0000_u64, "PQ-01, PQ-03, PQ-06, PQ-07"),
        (with, 0x1234_5601_abcd_e000, "PQ-02, PQ-03"),
        (plain.with_process(process(), true), 0x1234_5603_abcd_e000, "PQ-04"),
        (with.with_execute(true), 0x1234_5605_abcd_e000, "PQ-05"),
        (plain.with_process(ProcessId::truncate(0), false), 0x1234_5601_0000_0000, "PQ-03: PASID 0 is one"),
        (without_process, 0x1234_5600_0000_0000, "PQ-02, PQ-04, PQ-05, PRI-12, DISC-Q05"),
    ] {
        let mut guest = Guest::new(3);
        guest.rig.memory.write_words(PAGES, &[u64::MAX; 4]);
        assert_eq!(guest.ask(&request), None, "PQ-20");
        let words = guest.rig.memory.read_words(PAGES, 4);
        assert_eq!(words, [head, 0x1234_5678_9abc_dfff, u64::MAX, u64::MAX], "{rules}, PQ-08, PRI-13");
        assert_eq!((guest.state(), guest.records()), ((RUNNING, 1), vec![]), "PQ-20, Q-01, Q-03");
    }
}

#[test]
fn requests_are_read_and_write_requests_of_a_page() {
    let iova = Iova::new(0xffff_ffff_ffff_f123);
    let payload = |request: PageRequest| request.payload.into_bits();
    assert_eq!(payload(PageRequest::read(iova, group(1))), 0xffff_ffff_ffff_f00d, "PRI-13");
    assert_eq!(payload(PageRequest::write(iova, group(0x1ff))), 0xffff_ffff_ffff_ffff, "PRI-13");
    assert_eq!(payload(PageRequest::read(iova, group(0)).with_last(false)), 0xffff_ffff_ffff_f001, "PRI-13");
}

#[test]
fn a_big_endian_queue_is_written_in_its_order() {
    let config = config().with_big_endian(true);
    let mut guest = Guest::of(config, 3, 1, PERMITTED);
    assert_eq!(guest.ask(&request()), None);
    let words = [0x0000_0000_0056_3412, 0xaf9a_7856_3412_0000];
    assert_eq!(guest.rig.memory.read_words(PAGES, 2), words, "END-08: each doubleword, in their order");
}

#[test]
fn messages_that_want_no_response_are_queued_like_any_other() {
    let mut guest = Guest::new(3);
    let part = request().with_last(false);
    for request in [part, stop_marker(), request()] {
        assert_eq!(guest.ask(&request), None);
    }
    let payloads: Vec<_> = guest.requests().into_iter().map(|[_, payload]| payload).collect();
    assert_eq!(payloads, [0x1234_5678_9aab, 0xaac, 0x1234_5678_9aaf], "PQ-25, PRI-13");
}

#[test]
fn requests_go_around_the_ring() {
    let mut guest = Guest::new(1);
    for tail in [1, 0, 1] {
        assert_eq!(guest.ask(&request()), None);
        assert_eq!((guest.state(), guest.requests().len()), ((RUNNING, tail), 1), "Q-02, Q-04");
    }
}

// What keeps a request from the queue.

/// The rules, what the guest has done, the cause of the fault record, and the answer.
type Refusal = (&'static str, fn(&mut Guest), u64, ResponseCode);

const REFUSALS: [Refusal; 8] = [
    ("PQ-10, PRI-02, PRI-06", |guest| guest.rig.write8(DDTP, 0), 256, ResponseCode::ResponseFailure),
    (
        "PQ-11, PRI-02, PRI-07",
        |guest| {
            guest.rig.write8(DDTP, 0);
            guest.rig.write8(DDTP, 1);
        },
        260,
        ResponseCode::InvalidRequest,
    ),
    (
        "PQ-12, PRI-02, PRI-07",
        |guest| {
            let narrow = Directory::new(&guest.rig.memory, 2, false);
            guest.rig.write8(DDTP, 0);
            guest.rig.write8(DDTP, narrow.ddtp());
        },
        260,
        ResponseCode::InvalidRequest,
    ),
    (
        "PQ-13, PRI-06, DISC-Q07, DX-07",
        |guest| {
            let at = guest.directory.entry_address(id(ID));
            guest.rig.memory.fail(at, 32, MemoryFault::Access);
        },
        257,
        ResponseCode::ResponseFailure,
    ),
    ("PQ-13, PRI-06", |guest| guest.directory.invalidate(id(ID)), 258, ResponseCode::ResponseFailure),
    // EN_PRI without EN_ATS.
    ("PQ-13, PRI-06", |guest| guest.directory.set(id(ID), &[V | EN_PRI]), 259, ResponseCode::ResponseFailure),
    (
        "PQ-13, PRI-06",
        |guest| {
            let at = guest.directory.entry_address(id(ID));
            guest.rig.memory.fail(at, 32, MemoryFault::Corruption);
        },
        268,
        ResponseCode::ResponseFailure,
    ),
    ("PQ-14, PRI-07", |guest| guest.directory.set(id(ID), &[V | EN_ATS]), 260, ResponseCode::InvalidRequest),
];

#[test]
fn a_request_the_guest_does_not_permit_is_a_fault_and_is_answered() {
    for (rules, prepare, cause, code) in REFUSALS {
        let mut guest = Guest::new(3);
        prepare(&mut guest);
        guest.rig.forget_accesses();
        assert_eq!(guest.ask(&request()), Some((code, None)), "{rules}");
        assert_eq!(guest.records(), [fault(cause)], "{rules}, PQ-28, PRI-03, FQ-42, FQ-54");
        assert_eq!(guest.state(), (RUNNING, 0), "{rules}: not queued");
    }
}

#[test]
fn the_fault_of_a_request_has_its_pasid_and_its_privilege() {
    let mut without_process = request();
    without_process.privileged = true;
    for (request, head) in [
        (request().with_process(process(), false), 0x1234_5625_abcd_e100_u64),
        (request().with_process(process(), true).with_execute(true), 0x1234_5627_abcd_e100),
        (without_process, 0x1234_5624_0000_0100),
    ] {
        let mut guest = Guest::new(3);
        guest.rig.write8(DDTP, 0);
        let _ = guest.ask(&request);
        assert_eq!(guest.records(), [[head, 0, 0x04, 0]], "PQ-28, PRI-03");
    }
}

#[test]
fn a_fault_is_recorded_for_messages_that_want_no_response_too() {
    for (rules, prepare, cause, _) in REFUSALS {
        let mut guest = Guest::new(3);
        prepare(&mut guest);
        let part = request().with_last(false);
        assert_eq!(guest.ask(&part), None, "{rules}, PQ-21, PRI-05");
        assert_eq!(guest.ask(&stop_marker()), None, "{rules}, PQ-21, PRI-05, DISC-Q10");
        let causes: Vec<_> = guest.records().into_iter().map(|[head, ..]| head & 0xfff).collect();
        assert_eq!(causes, [cause; 2], "{rules}, PQ-21");
    }
}

#[test]
fn dtf_hides_that_requests_are_not_permitted_and_nothing_before_it() {
    let mut guest = Guest::with_tc(V | EN_ATS | DTF);
    assert_eq!(guest.ask(&request()), Some((ResponseCode::InvalidRequest, None)), "PQ-14");
    assert_eq!(guest.records(), [[0; 4]; 0], "PQ-14, PRI-03");
    guest.directory.set(id(ID), &[DTF]);
    let _ = guest.ask(&request());
    assert_eq!(guest.records(), [fault(258)], "PRI-03: no context was located");
}

/// The rules, what the guest has done, and the answer.
type Unqueued = (&'static str, fn(&mut Guest), ResponseCode);

const UNQUEUED: [Unqueued; 5] = [
    ("PQ-15", |guest| guest.write(PQCSR, 0), ResponseCode::ResponseFailure),
    ("PQ-19", |guest| guest.rig.memory.unmap(PAGES, 4096), ResponseCode::ResponseFailure),
    (
        "PQ-19, PRI-14",
        |guest| guest.rig.memory.fail_stores(PAGES, 16, MemoryFault::Corruption),
        ResponseCode::ResponseFailure,
    ),
    (
        "PQ-16",
        |guest| {
            guest.rig.memory.fail_stores(PAGES, 16, MemoryFault::Access);
            let _ = guest.ask(&request().with_last(false));
            guest.rig.memory.clear_failures();
        },
        ResponseCode::ResponseFailure,
    ),
    (
        "PQ-17, PQ-18",
        |guest| {
            for _ in 0..7 {
                assert_eq!(guest.ask(&request()), None);
            }
        },
        ResponseCode::Success,
    ),
];

#[test]
fn a_request_there_is_no_room_for_is_answered_without_a_fault() {
    for (rules, prepare, code) in UNQUEUED {
        let mut guest = Guest::new(3);
        prepare(&mut guest);
        let tail = guest.read(PQT);
        let part = request().with_last(false);
        assert_eq!((guest.ask(&part), guest.ask(&stop_marker())), (None, None), "{rules}, PQ-21, PRI-05");
        for _ in 0..2 {
            assert_eq!(guest.ask(&request()), Some((code, None)), "{rules}, PRI-06, PRI-08, PRI-11");
        }
        assert_eq!((guest.read(PQT), guest.records()), (tail, vec![]), "{rules}, PQ-27, PRI-04");
    }
}

#[test]
fn a_response_has_the_pasid_where_the_rules_say_so() {
    let with = request().with_process(process(), true);
    for prpr in [0, PRPR] {
        for (rules, prepare, code) in UNQUEUED {
            let mut guest = Guest::with_tc(PERMITTED | prpr);
            prepare(&mut guest);
            let echoed = code == ResponseCode::ResponseFailure || prpr != 0;
            let expected = Some((code, echoed.then(process)));
            assert_eq!(guest.ask(&with), expected, "PRI-09, PQ-23, DC-07, {rules}");
            assert_eq!(guest.ask(&request()), Some((code, None)), "PRI-09, PQ-23: it has none, {rules}");
        }
        for (rules, prepare, _, code) in REFUSALS {
            let mut guest = Guest::with_tc(PERMITTED | prpr);
            prepare(&mut guest);
            // Without a context, or without EN_PRI, PRPR is 0.
            let expected = Some((code, (code == ResponseCode::ResponseFailure).then(process)));
            assert_eq!(guest.ask(&with), expected, "PRI-09, PQ-23, {rules}");
        }
    }
}

// pqmf and pqof.

#[test]
fn a_request_that_can_not_be_written_stops_the_queue_until_the_bit_is_cleared() {
    let mut guest = Guest::new(3);
    guest.rig.memory.fail_stores(PAGES, 16, MemoryFault::Access);
    let _ = guest.ask(&request());
    assert_eq!(guest.state(), (RUNNING | MEMORY_FAULT, 0), "PQ-19, REG-PQCSR-04");
    guest.rig.memory.clear_failures();
    let _ = guest.ask(&request());
    assert_eq!(guest.state(), (RUNNING | MEMORY_FAULT, 0), "PQ-26");
    guest.write(PQCSR, ENABLE | MEMORY_FAULT);
    assert_eq!((guest.ask(&request()), guest.state()), (None, (RUNNING, 1)), "PQ-26");
}

#[test]
fn a_queue_that_overflowed_takes_nothing_until_the_bit_is_cleared() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.ask(&request()), None);
    assert_eq!(guest.state(), (RUNNING, 1), "Q-02, REG-QI-07: full is no error yet");
    let _ = guest.ask(&request());
    assert_eq!(guest.state(), (RUNNING | PQOF, 1), "PQ-18, REG-PQCSR-05");
    // Room alone does not help, and the bit alone not either.
    assert_eq!(guest.requests().len(), 1);
    assert_eq!(guest.ask(&request()), Some((ResponseCode::Success, None)), "PQ-17, PQ-26, REG-QI-10");
    guest.write(PQCSR, ENABLE | PQOF);
    assert_eq!((guest.ask(&request()), guest.state()), (None, (RUNNING, 0)), "PQ-26");
    guest.write(PQCSR, ENABLE | PQOF);
    let _ = guest.ask(&request());
    assert_eq!(guest.read(PQCSR), RUNNING | PQOF, "FQ-04 likewise: cleared without making room");
}

#[test]
fn a_full_queue_whose_memory_is_gone_overflows() {
    let mut guest = Guest::new(1);
    let _ = guest.ask(&request());
    guest.rig.memory.unmap(PAGES, 4096);
    let _ = guest.rig.memory.take_events();
    assert_eq!(guest.ask(&request()), Some((ResponseCode::Success, None)), "PRI-11");
    assert_eq!((guest.read(PQCSR), guest.rig.memory.take_events()), (RUNNING | PQOF, vec![]), "PRI-11: no store");
}

#[test]
fn a_queue_past_the_physical_address_size_is_never_written() {
    let config = config().with_pas(32);
    let mut guest = Guest::of(config, 1, 0, PERMITTED);
    guest.write(PQCSR, 0);
    // The last page of 32 bits, and 2^9 entries: the upper half is past it.
    guest.rig.memory.map(Gpa::new(0xffff_f000), 0x2000);
    guest.rig.write8(PQB, 0xffff_f000 >> 2 | 8);
    guest.write(PQCSR, ENABLE);
    for _ in 0..256 {
        assert_eq!(guest.ask(&request()), None);
    }
    // UNSPECIFIED, as misaligned: base and offset are ORed, so entry 256 is at the base.
    assert_eq!((guest.ask(&request()), guest.state()), (None, (RUNNING, 257)), "REG-QB-06, Q-03");
    guest.write(PQCSR, 0);
    guest.rig.write8(PQB, u64::MAX << 10);
    guest.write(PQCSR, ENABLE);
    assert_eq!(guest.rig.read8(PQB), 0xffff_f000 >> 2, "REG-QB-03: cut to PAS");
}

// The registers.

#[test]
fn enabling_the_queue_starts_at_entry_0_with_no_errors() {
    let mut guest = Guest::new(1);
    let _ = (guest.ask(&request()), guest.ask(&request()));
    guest.write(PQCSR, 0);
    assert_eq!(guest.state(), (PQOF, 1), "REG-PQCSR-01: off keeps its errors");
    guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE);
    assert_eq!(guest.state(), (RUNNING | INTERRUPT_ENABLE, 0), "REG-PQCSR-01, -02, -07");
    guest.write(PQH, 1);
    guest.rig.memory.fail_stores(PAGES, 4096, MemoryFault::Access);
    // Full with a stale head; then cleared by the enable too.
    guest.write(PQCSR, ENABLE);
    let _ = guest.ask(&request());
    assert_eq!(guest.read(PQCSR), RUNNING | PQOF, "REG-FQCSR-11 likewise");
    guest.write(PQH, 0);
    guest.write(PQCSR, ENABLE | PQOF);
    let _ = guest.ask(&request());
    assert_eq!(guest.read(PQCSR), RUNNING | MEMORY_FAULT, "REG-PQCSR-04");
    guest.write(PQCSR, 0);
    guest.write(PQCSR, ENABLE);
    assert_eq!(guest.read(PQCSR), RUNNING, "REG-PQCSR-01");
}

#[test]
fn the_registers_take_what_the_rules_let_them() {
    let mut rig = Rig::start(config(), InterruptKinds::Both);
    rig.write8(PQB, u64::MAX);
    assert_eq!(rig.read8(PQB), 0x003f_ffff_ffff_fc1f, "REG-QB-01 to -04");
    rig.write(PQH, 0xffff_ffff);
    rig.write(PQT, 0xffff_ffff);
    assert_eq!((rig.read(PQH), rig.read(PQT)), (0xffff_ffff, 0), "REG-QI-05, REG-QI-06");
    rig.write8(PQB, 4);
    assert_eq!(rig.read(PQH), 0, "REG-QB-08");
    rig.write(PQH, 0xffff_ffff);
    assert_eq!(rig.read(PQH), 0x1f, "REG-QI-05");
    rig.write(PQCSR, 0xffff_ffff);
    assert_eq!(rig.read(PQCSR), ON | INTERRUPT_ENABLE | ENABLE, "REG-PQCSR-03, -06, -08, -09: errors are not set");
    rig.write8(PQB, 0x400);
    rig.write(PQB + 4, 1);
    assert_eq!((rig.read8(PQB), rig.read(PQH)), (4, 0x1f), "REG-QB-07");
    rig.write(PQCSR, 0);
    rig.write(PQB + 4, 1);
    assert_eq!(rig.read8(PQB), 1 << 32 | 4, "REG-QB-11");
    assert_eq!(rig.read(PQCSR), 0, "REG-PQCSR-01");
}

#[test]
fn a_base_write_leaves_the_tail_alone() {
    let mut guest = Guest::new(3);
    let _ = guest.ask(&request());
    guest.write(PQCSR, 0);
    guest.rig.write8(PQB, 4);
    assert_eq!(guest.state(), (0, 1), "REG-QB-09");
}

#[test]
fn fctl_does_not_change_while_the_queue_is_on() {
    let mut rig = Rig::start(config().with_big_endian(true), InterruptKinds::Both);
    rig.write(PQCSR, ENABLE);
    rig.write(FCTL, 3);
    assert_eq!(rig.read(FCTL), 0, "REG-FCTL-07");
    rig.write(PQCSR, 0);
    rig.write(FCTL, 3);
    assert_eq!(rig.read(FCTL), 3, "REG-FCTL-07");
}

#[test]
fn without_ats_there_is_no_such_queue() {
    let mut rig = Rig::start(Config::emulated(), InterruptKinds::Both);
    for (offset, value) in [(PQB, u64::MAX), (PQH, 1), (PQT, 1), (PQCSR, ENABLE | INTERRUPT_ENABLE)] {
        rig.write(offset, value);
        rig.write8(offset & !7, value);
        assert_eq!(rig.read(offset), 0, "REG-QB-12, REG-QI-05, REG-QI-06, REG-PQCSR-10, DISC-R02: {offset}");
    }
}

#[test]
fn a_reset_turns_the_queue_off() {
    let mut guest = Guest::new(3);
    let _ = guest.ask(&request());
    let _ = guest.rig.iommu.reset();
    let read = (guest.rig.read8(PQB), guest.read(PQH), guest.state());
    assert_eq!(read, (0, 0, (0, 0)), "REG-RST-01, REG-RST-05");
}

// Interrupts.

/// With messages to vector 3 for page requests, whose interrupt is on, and vector 1 for faults.
fn messaging(log2: u8) -> Guest {
    let mut guest = Guest::new(log2);
    guest.rig.memory.map(Gpa::new(0x2800_0000), 4096);
    guest.rig.write8(MSI_CFG_TBL + 3 * 16, 0x2800_0000);
    guest.write(MSI_CFG_TBL + 3 * 16 + 8, 0x33);
    guest.rig.write8(ICVEC, 0x3010);
    guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE);
    guest
}

fn messages(guest: &Guest) -> usize {
    let posts = guest.rig.memory.take_posts();
    assert!(posts.iter().all(|post| *post == (Gpa::new(0x2800_0000), 0x33, Post::Interrupt)), "REG-IPSR-14");
    posts.len()
}

#[test]
fn a_request_makes_its_cause_pending_and_sends_one_message() {
    let mut guest = messaging(3);
    let _ = (guest.ask(&request()), guest.ask(&request()));
    assert_eq!((guest.read(IPSR), messages(&guest)), (PIP, 1), "IRQ-03, IRQ-07, REG-IPSR-04, REG-IPSR-13, PRI-14");
    guest.write(IPSR, PIP);
    assert_eq!((guest.read(IPSR), messages(&guest)), (0, 0), "IRQ-09, REG-IPSR-10: requests of the past");
    let _ = guest.ask(&request());
    assert_eq!((guest.read(IPSR), messages(&guest)), (PIP, 1), "REG-IPSR-09");
}

#[test]
fn an_error_keeps_its_cause_pending() {
    for (error, log2) in [(PQOF, 1), (MEMORY_FAULT, 3)] {
        let mut guest = messaging(log2);
        if error == PQOF {
            let _ = guest.ask(&request());
            guest.write(IPSR, PIP);
            let _ = messages(&guest);
        } else {
            guest.rig.memory.fail_stores(PAGES, 4096, MemoryFault::Access);
        }
        let _ = guest.ask(&request());
        assert_eq!((guest.read(IPSR), messages(&guest)), (PIP, 1), "IRQ-02, PQ-18, PQ-19, PRI-14");
        guest.write(IPSR, PIP);
        assert_eq!((guest.read(IPSR), messages(&guest)), (PIP, 1), "IRQ-05, IRQ-08, REG-IPSR-09");
        guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE | error);
        assert_eq!(guest.read(IPSR), PIP, "IRQ-04, REG-IPSR-08");
        guest.write(IPSR, PIP);
        assert_eq!((guest.read(IPSR), messages(&guest)), (0, 0), "IRQ-05");
    }
}

#[test]
fn without_its_enable_nothing_is_pending() {
    let mut guest = messaging(1);
    guest.write(PQCSR, ENABLE);
    let _ = guest.ask(&request());
    guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE);
    assert_eq!((guest.read(IPSR), messages(&guest)), (0, 0), "REG-IPSR-11: an event of the past");
    guest.write(PQCSR, ENABLE);
    let _ = guest.ask(&request());
    assert_eq!((guest.read(IPSR), guest.read(PQCSR)), (0, RUNNING | PQOF));
    guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE);
    assert_eq!((guest.read(IPSR), messages(&guest)), (PIP, 1), "IRQ-06, REG-IPSR-12");
    guest.write(PQCSR, 0);
    assert_eq!(guest.read(IPSR), PIP, "IRQ-13");
}

#[test]
fn a_wire_has_the_level_of_its_cause() {
    let mut guest = Guest::new(3);
    guest.write(PQCSR, 0);
    guest.rig.write8(DDTP, 0);
    guest.write(76, 0);
    guest.write(FCTL, 2);
    guest.rig.write8(ICVEC, 0x2000);
    guest.rig.write8(DDTP, guest.directory.ddtp());
    guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE);
    let _ = guest.ask(&request());
    assert_eq!(guest.rig.wires.levels(), 1 << 2, "IRQ-01, IRQ-19");
    guest.write(IPSR, PIP);
    assert_eq!(guest.rig.wires.levels(), 0, "IRQ-19");
}

#[test]
fn a_masked_vector_waits_for_its_mask_to_go() {
    let mut guest = messaging(3);
    guest.write(MSI_CFG_TBL + 3 * 16 + 12, 1);
    let _ = guest.ask(&request());
    assert_eq!((guest.read(IPSR), messages(&guest)), (PIP, 0), "IRQ-10");
    guest.write(MSI_CFG_TBL + 3 * 16 + 12, 0);
    assert_eq!(messages(&guest), 1, "IRQ-10");
}

#[test]
fn a_request_is_visible_before_its_tail_and_that_before_its_message() {
    let config = config().with_mirror(true);
    let mut guest = Guest::of(config, 3, 0, PERMITTED);
    guest.rig.memory.map(Gpa::new(0x2800_0000), 4096);
    guest.rig.write8(MSI_CFG_TBL, 0x2800_0000);
    guest.write(PQCSR, ENABLE | INTERRUPT_ENABLE);
    guest.rig.forget_accesses();
    let _ = guest.ask(&request());
    let events = guest.rig.memory.take_events();
    let place = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).expect("it happens");
    let order = [
        place(&|event| matches!(event, Event::Store(PAGES, _))),
        place(&|event| *event == Event::Publish(68, 1)),
        place(&|event| matches!(event, Event::Post(..))),
    ];
    assert!(order.is_sorted(), "PQ-29, Q-05, IRQ-18: {events:?}");
}

#[test]
fn the_fault_of_a_request_raises_the_fault_interrupt() {
    let mut guest = Guest::new(3);
    guest.write(76, ENABLE | INTERRUPT_ENABLE);
    guest.rig.write8(DDTP, 0);
    let _ = guest.ask(&request());
    assert_eq!(guest.read(IPSR) & (FIP | PIP), FIP, "IRQ-03");
}

// Who may ask.

#[test]
fn only_an_attached_device_that_was_granted_it_may_ask() {
    let ask = |rig: &mut Rig, device| rig.iommu.page_request(device, &request());
    let mut guest = Guest::new(3);
    let (old, ungranted) = (guest.device, guest.rig.iommu.attach_emulated(id(9), DevicePolicy::default()));
    let ungranted = ungranted.expect("there is room");
    assert_eq!(ask(&mut guest.rig, ungranted), Err(TranslateError::Unsupported), "T23");
    let _ = guest.rig.iommu.detach(old.device());
    assert_eq!(ask(&mut guest.rig, old), Err(TranslateError::NotAttached), "T34");
    let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
    let new = guest.rig.iommu.attach_emulated(old.device(), policy).expect("it is free");
    assert_eq!(ask(&mut guest.rig, old), Err(TranslateError::NotAttached), "T34");
    assert_eq!(guest.rig.iommu.stats().stale_events, 2);
    assert_eq!((guest.state(), guest.records()), ((RUNNING, 0), vec![]), "T34: the guest is shown nothing of it");
    assert_eq!(ask(&mut guest.rig, new), Ok(None));

    let mut other = Rig::start(Config::nested().with_synchronous_dma(true), InterruptKinds::Msi);
    let passthrough = other.attach();
    assert_eq!(ask(&mut other, passthrough), Err(TranslateError::NotAttached));
    let emulated = other.iommu.attach_emulated(id(9), policy).expect("there is room");
    assert_eq!(ask(&mut other, emulated), Err(TranslateError::Unsupported), "T23: the guest has no ATS");
    assert_eq!(ask(&mut Rig::new(InterruptKinds::Msi), passthrough), Err(TranslateError::NotStarted));
}

#[test]
fn a_request_is_decided_on_one_copy_of_the_context() {
    let mut guest = Guest::new(3);
    let at = guest.directory.entry_address(id(ID));
    // EN_PRI goes away right after it was read.
    guest.rig.memory.on_load(at, [PERMITTED, V]);
    assert_eq!((guest.ask(&request()), guest.state()), (None, (RUNNING, 1)), "Q-11, T08, VT-14");
    let loads = guest.rig.memory.take_loads();
    assert_eq!((loads.len(), loads[2]), (3, (at, 4)), "each level once");
}

#[test]
fn the_directory_entries_a_request_takes_are_counted() {
    for (cause, levels) in [(0, 3), (256, 0), (258, 3)] {
        let mut guest = Guest::of(config().with_counters(2), 3, 0, PERMITTED);
        // Directory walks of the device, and those with this PASID.
        guest.rig.write8(iohpmevt(1), 5 | 1 << 61 | u64::from(ID) << 36);
        guest.rig.write8(iohpmevt(2), 5 | 1 << 60 | u64::from(process().get()) << 16);
        match cause {
            256 => guest.rig.write8(DDTP, 0),
            258 => guest.directory.invalidate(id(ID)),
            _ => {}
        }
        let _ = guest.ask(&request());
        assert_eq!([guest.rig.read8(iohpmctr(1)), guest.rig.read8(iohpmctr(2))], [levels, 0], "HPM-27");
        let _ = guest.ask(&request().with_process(process(), false));
        assert_eq!([guest.rig.read8(iohpmctr(1)), guest.rig.read8(iohpmctr(2))], [levels * 2, levels], "HPM-27");
    }
}

// Anything.

/// What a guest does to its queue, and requests.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u64),
    Ask(u64, bool),
    Fail(u64),
    Heal,
}

fn step() -> impl Strategy<Value = Step> {
    let bits = prop::sample::select(vec![0, 1, 3, 0x101, 0x201, 0x303]);
    prop_oneof![
        1 => bits.prop_map(|bits| Step::Write(PQCSR, bits)),
        2 => (0..8_u64).prop_map(|head| Step::Write(PQH, head)),
        1 => (0..16_u64).prop_map(|bits| Step::Write(IPSR, bits)),
        6 => (any::<u64>(), any::<bool>()).prop_map(|(payload, pasid)| Step::Ask(payload, pasid)),
        1 => (0..8_u64).prop_map(Step::Fail),
        1 => Just(Step::Heal),
    ]
}

/// The queue by the letter of rules PQ-15 to PQ-20.
#[derive(Debug, Default)]
struct Model {
    on: bool,
    faulted: bool,
    overflowed: bool,
    head: u64,
    tail: u64,
    failing: Vec<u64>,
}

impl Model {
    fn control(&mut self, bits: u64) {
        if bits & 1 != 0 && !self.on {
            (self.tail, self.faulted, self.overflowed) = (0, false, false);
        }
        self.on = bits & 1 != 0;
        self.faulted &= bits & MEMORY_FAULT == 0;
        self.overflowed &= bits & PQOF == 0;
    }

    fn ask(&mut self) -> Option<ResponseCode> {
        if !self.on || self.faulted {
            return Some(ResponseCode::ResponseFailure);
        }
        if self.overflowed || (self.tail + 1) % 8 == self.head {
            self.overflowed = true;
            return Some(ResponseCode::Success);
        }
        if self.failing.contains(&self.tail) {
            self.faulted = true;
            return Some(ResponseCode::ResponseFailure);
        }
        self.tail = (self.tail + 1) % 8;
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_its_rules_say(steps in prop::collection::vec(step(), 0..80)) {
        let mut guest = Guest::new(3);
        // Where the messages of a table that is 0 go.
        guest.rig.memory.map(Gpa::new(0), 8);
        let mut model = Model { on: true, ..Model::default() };
        for step in steps {
            match step {
                Step::Write(offset, value) => {
                    guest.write(offset, value);
                    match offset {
                        PQCSR => model.control(value),
                        PQH => model.head = value,
                        _ => {}
                    }
                }
                Step::Ask(payload, pasid) => {
                    let mut request = PageRequest::new(PageRequestPayload::from_bits(payload));
                    request.process = pasid.then(process);
                    let at = PAGES.get() + model.tail * 16;
                    let code = model.ask();
                    let wanted = payload & 4 != 0 && payload & 3 != 0;
                    let answer = guest.ask(&request).map(|(code, _)| code);
                    prop_assert_eq!(answer, code.filter(|_| wanted), "PQ-15 to PQ-21");
                    if code.is_none() {
                        let head = 0x1234_5600_0000_0000 | if pasid { 0x1_abcd_e000 } else { 0 };
                        prop_assert_eq!(guest.rig.memory.read_words(Gpa::new(at), 2), [head, payload], "PQ-20");
                    }
                }
                Step::Fail(index) => {
                    let at = Gpa::new(PAGES.get() + index * 16);
                    guest.rig.memory.fail_stores(at, 16, MemoryFault::Access);
                    model.failing.push(index);
                }
                Step::Heal => {
                    guest.rig.memory.clear_failures();
                    model.failing.clear();
                }
            }
            let csr = guest.read(PQCSR);
            let bits = [ENABLE, MEMORY_FAULT, PQOF].map(|bit| csr & bit != 0);
            prop_assert_eq!(bits, [model.on, model.faulted, model.overflowed], "REG-PQCSR-01, -04, -05");
            prop_assert_eq!(guest.read(PQT), model.tail);
            let level = csr & INTERRUPT_ENABLE != 0 && csr & (MEMORY_FAULT | PQOF) != 0;
            prop_assert!(!level || guest.read(IPSR) & PIP != 0, "IRQ-05");
        }
        prop_assert_eq!(guest.records(), Vec::<[u64; 4]>::new(), "PQ-27");
    }
}

#[test]
fn a_queue_without_memory_reaches_no_memory() {
    let mut guest = Guest::new(3);
    guest.write(PQCSR, 0);
    guest.rig.write8(PQB, 0x7777_7000 >> 2);
    guest.write(PQCSR, ENABLE);
    assert_eq!(guest.ask(&request()), Some((ResponseCode::ResponseFailure, None)), "T07, T24, Q-06");
    assert_eq!(guest.state(), (RUNNING | MEMORY_FAULT, 0), "T07");
}
