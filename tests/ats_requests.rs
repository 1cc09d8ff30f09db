//! ATS translation requests: what a device's own cache is answered, and what the guest is told of it.
//!
//! Rule IDs are those of the translation rules; entries are worked out from the specification's figures.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod full_guest;

use dma_rig::{DEVICE, DmaRig, Emulated, everything, head};
use full_guest::{ADDR_PATTERN, ENS, FILE, FSC, GPA, GSCID, Guest, IOHGATP, PC_V, PROCESS, RWX, SPA, SUM, TC, WINDOW};
use riscv_viommu::mock::guest::{Iotinval, register};
use riscv_viommu::mock::tables::tc::{DPE, DTF, EN_ATS, GADE, PDTV, SADE, T2GPA};
use riscv_viommu::mock::tables::{Directory, PageTable, pte};
use riscv_viommu::mock::{Event, Memory, Wires};
use riscv_viommu::{
    AtsCompletion, AtsRequest, AtsTranslation, Config, DeviceId, DevicePolicy, Gpa, InterruptKinds, Iova, MemoryFault,
    NoPhysical, Parts, ProcessId, Request, SecondStageMode, TranslateError,
};

/// A page of the process that leads to `GPA`, in the upper half of its addresses.
const PAGE: u64 = 0x7e_0040_0000;
/// One that leads to the interrupt file at `WINDOW`.
const MSI_PAGE: u64 = 0x7e_0060_0000;

/// TTYP of an ATS translation request (rule ACC-03).
const ATS: u64 = 8;

impl<const CACHE: usize> Guest<CACHE> {
    /// A guest whose device may ask for everything there is.
    fn asked(config: Config) -> Self {
        let mut guest = Self::with(config).with_msi_table().with_processes();
        guest.map(PAGE, GPA, 0, RWX);
        guest.map(MSI_PAGE, WINDOW, 0, RWX);
        guest.change(TC, 1 | EN_ATS | PDTV);
        guest
    }

    /// No second stage, and so no MSI page table.
    fn without_second_stage(&mut self) {
        self.context[4..].fill(0);
        self.change(IOHGATP, 0);
    }

    /// Maps a page of the process, whose address is sign-extended.
    fn map(&self, iova: u64, gpa: u64, level: u8, flags: u64) {
        self.first.map(iova, gpa, level, flags);
    }

    fn any(&self, iova: u64) -> AtsRequest {
        AtsRequest::new(self.rig.device, Iova::new(sign_extended(iova)))
    }

    /// A request of the process.
    fn of(&self, iova: u64) -> AtsRequest {
        self.any(iova).with_process(PROCESS, false)
    }

    fn ask(&mut self, request: AtsRequest) -> AtsCompletion {
        self.rig.iommu.ats_translate(&request).expect("ATS is offered and granted")
    }

    fn answer(&mut self, request: AtsRequest) -> AtsTranslation {
        match self.ask(request) {
            AtsCompletion::Success(answer) => answer,
            other => panic!("{other:?}"),
        }
    }
}

/// Bits 63:39 of an Sv39 address are those of bit 38.
fn sign_extended(iova: u64) -> u64 {
    if iova >> 38 & 1 == 1 { iova | u64::MAX << 38 } else { iova }
}

/// The bits of an answer that are 1: R, W, eXecute, Privileged, Global, Untranslated only, CXL.io.
fn bits(answer: &AtsTranslation) -> String {
    let AtsTranslation { read, write, execute, privileged, global, untranslated_only, cxl_io, .. } = *answer;
    let all = [read, write, execute, privileged, global, untranslated_only, cxl_io];
    "RWXPGUC".chars().zip(all).filter(|(_, set)| *set).map(|(letter, _)| letter).collect()
}

/// Whether a page that is not there is told, and nothing beside.
fn tells_nothing(completion: AtsCompletion) -> bool {
    match completion {
        AtsCompletion::Success(answer) => bits(&answer).is_empty() && (answer.address, answer.size) == (0, 4096),
        _ => false,
    }
}

// Which fault is answered how.

/// A way for a request to fail.
struct Case {
    cause: u16,
    why: &'static str,
    spoil: fn(&mut Guest),
    /// The request that fails then.
    ask: fn(&Guest) -> AtsRequest,
}

const fn case(cause: u16, why: &'static str, spoil: fn(&mut Guest), ask: fn(&Guest) -> AtsRequest) -> Case {
    Case { cause, why, spoil, ask }
}

fn page(guest: &Guest) -> AtsRequest {
    guest.of(PAGE)
}

fn code(guest: &Guest) -> AtsRequest {
    guest.of(PAGE).with_execute(true)
}

fn file(guest: &Guest) -> AtsRequest {
    guest.of(MSI_PAGE)
}

fn privileged(guest: &Guest) -> AtsRequest {
    guest.any(PAGE).with_process(PROCESS, true)
}

/// UR (rule ATS-01).
const UNSUPPORTED: [Case; 11] = [
    case(256, "Off", |guest| guest.rig.write8(register::DDTP, 0), page),
    case(260, "Bare", |guest| guest.rig.write8(register::DDTP, 1), page),
    case(257, "a context without memory", |guest| fail(guest, device_entry(guest), MemoryFault::Access), page),
    case(257, "a directory without memory", |guest| fail(guest, directory_entry(guest), MemoryFault::Access), page),
    case(258, "a context that is not valid", |guest| guest.rig.directory.invalidate(DeviceId::truncate(DEVICE)), page),
    case(259, "a reserved bit", |guest| guest.change(TC, guest.context[TC] | 1 << 12), page),
    case(260, "a device_id that is too wide", shrink_directory, page),
    case(260, "EN_ATS = 0", |guest| guest.change(TC, guest.context[TC] & !EN_ATS), page),
    case(260, "a process and no directory", drop_processes, page),
    case(
        260,
        "a process_id that is too wide",
        |_| (),
        |guest| guest.any(PAGE).with_process(ProcessId::truncate(0x105), false),
    ),
    case(260, "ENS = 0", |guest| guest.set_process(PC_V), privileged),
];

/// CA (rules ATS-02, ATS-03).
const ABORTED: [Case; 15] = [
    case(268, "a corrupt context", |guest| fail(guest, device_entry(guest), MemoryFault::Corruption), page),
    case(265, "a process without memory", |guest| fail(guest, process_entry(guest), MemoryFault::Access), page),
    case(269, "a corrupt process", |guest| fail(guest, process_entry(guest), MemoryFault::Corruption), page),
    case(
        265,
        "no memory on the way to the process",
        |guest| fail(guest, tables_entry(guest), MemoryFault::Access),
        page,
    ),
    case(269, "a corrupt way to the process", |guest| fail(guest, tables_entry(guest), MemoryFault::Corruption), page),
    case(267, "a reserved bit of a process", |guest| guest.set_process(PC_V | 1 << 3), page),
    case(5, "a first-stage entry without memory", |guest| fail(guest, first_entry(guest), MemoryFault::Access), page),
    case(1, "the same, to execute", |guest| fail(guest, first_entry(guest), MemoryFault::Access), code),
    case(274, "a corrupt first-stage entry", |guest| fail(guest, first_entry(guest), MemoryFault::Corruption), page),
    case(5, "a second-stage entry without memory", |guest| fail(guest, second_entry(guest), MemoryFault::Access), page),
    case(274, "a corrupt second-stage entry", |guest| fail(guest, second_entry(guest), MemoryFault::Corruption), code),
    case(5, "an entry that can not be marked", freeze, page),
    case(261, "an MSI entry without memory", |guest| fail(guest, guest.msi, MemoryFault::Access), file),
    case(270, "a corrupt MSI entry", |guest| fail(guest, guest.msi, MemoryFault::Corruption), file),
    case(263, "an MSI entry with M = 0", |guest| guest.rig.memory.write(guest.msi, 1), file),
];

/// Success without permissions (rule ATS-04). The cause is what an untranslated request would end with.
const NOT_THERE: [Case; 13] = [
    case(266, "a process that is not valid", |guest| guest.set_process(ENS), page),
    case(13, "no page", |guest| guest.first.unmap(PAGE, 0), page),
    case(12, "no page, to execute", |guest| guest.first.unmap(PAGE, 1), code),
    case(13, "an address that is not canonical", |_| (), |guest| guest.of(1 << 39)),
    case(13, "a reserved bit", |guest| guest.map(PAGE, GPA, 0, RWX | 1 << 54), page),
    case(13, "A = 0", |guest| guest.map(PAGE, GPA, 0, RWX & !pte::A), page),
    case(13, "D = 0, and NW = 0", |guest| guest.map(PAGE, GPA, 0, RWX & !pte::D), page),
    case(21, "no page in the second stage", |guest| guest.second.unmap(GPA, 0), page),
    case(20, "no page in the second stage, to execute", |guest| guest.second.unmap(GPA, 0), code),
    case(21, "a supervisor's page in the second stage", |guest| guest.second.map(GPA, SPA, 0, RWX & !pte::U), page),
    case(21, "D = 0 in the second stage, and NW = 0", |guest| guest.second.map(GPA, SPA, 0, RWX & !pte::D), page),
    case(21, "tables the second stage does not have", |guest| guest.second.unmap(0x8000_0000, 2), page),
    case(262, "an MSI entry that is not valid", |guest| guest.rig.memory.write(guest.msi, 0b110), file),
];

fn fail(guest: &Guest, at: Gpa, fault: MemoryFault) {
    guest.rig.memory.fail(at, 8, fault);
}

fn device_entry(guest: &Guest) -> Gpa {
    guest.rig.directory.entry_address(DeviceId::truncate(DEVICE))
}

fn directory_entry(guest: &Guest) -> Gpa {
    guest.rig.directory.non_leaf_address(DeviceId::truncate(DEVICE), 2)
}

fn process_entry(guest: &Guest) -> Gpa {
    guest.processes.entry_address(PROCESS)
}

fn first_entry(guest: &Guest) -> Gpa {
    guest.first.entry_address(PAGE, 0)
}

fn second_entry(guest: &Guest) -> Gpa {
    guest.second.entry_address(GPA, 1)
}

/// Of the second stage, for the pages that hold the tables.
fn tables_entry(guest: &Guest) -> Gpa {
    guest.second.entry_address(0x8000_0000, 2)
}

fn shrink_directory(guest: &mut Guest) {
    guest.rig.write8(register::DDTP, 0);
    let directory = Directory::new(&guest.rig.memory, 2, true);
    guest.rig.write8(register::DDTP, directory.ddtp());
}

fn drop_processes(guest: &mut Guest) {
    guest.change(FSC, guest.first.iosatp());
    guest.change(TC, guest.context[TC] & !PDTV);
}

/// A is to be set where nothing can be written.
fn freeze(guest: &mut Guest) {
    guest.change(TC, guest.context[TC] | SADE);
    guest.map(PAGE, GPA, 0, RWX & !pte::A);
    guest.rig.memory.read_only(first_entry(guest), 8);
}

/// Asks a case's request; the completion, and the records of it.
fn try_case(case: &Case, dtf: bool) -> (AtsCompletion, Vec<[u64; 4]>, AtsRequest) {
    let mut guest = Guest::<0>::asked(everything());
    if dtf {
        guest.change(TC, guest.context[TC] | DTF);
    }
    (case.spoil)(&mut guest);
    let request = (case.ask)(&guest);
    let completion = guest.ask(request);
    (completion, guest.rig.take_faults(), request)
}

#[test]
fn configuration_that_does_not_allow_it_is_an_unsupported_request() {
    for case in &UNSUPPORTED {
        let (completion, records, request) = try_case(case, false);
        assert_eq!(completion, AtsCompletion::UnsupportedRequest, "ATS-01, TR-24: {}", case.why);
        let process = request.process.map(|process| (process.get(), request.privileged));
        let expected = [head(case.cause, ATS, process), 0, request.iova.get(), 0];
        assert_eq!(records, [expected], "ATS-01, ATS-19, FR-05, FR-07: {}", case.why);
    }
}

#[test]
fn structures_that_can_not_be_used_are_a_completer_abort() {
    for case in &ABORTED {
        let (completion, records, request) = try_case(case, false);
        assert_eq!(completion, AtsCompletion::CompleterAbort, "ATS-02, ATS-03, DX-30: {}", case.why);
        let expected = [head(case.cause, ATS, Some((PROCESS.get(), false))), 0, request.iova.get(), 0];
        assert_eq!(records, [expected], "ATS-02, ATS-03, ACC-07: {}", case.why);
    }
}

#[test]
fn a_page_that_is_not_there_is_a_success_without_permissions_and_is_not_recorded() {
    for case in &NOT_THERE {
        let (completion, records, _) = try_case(case, false);
        assert!(tells_nothing(completion), "ATS-04, DX-24: {}: {completion:x?}", case.why);
        assert_eq!(records, [[0; 4]; 0], "ATS-04: {}", case.why);
    }
}

#[test]
fn what_is_not_there_for_an_access_is_what_is_answered_without_permissions() {
    // The same worlds, and an untranslated read of the process: they fail for the cause that is named.
    for case in &NOT_THERE {
        let mut guest = Guest::<0>::asked(everything());
        (case.spoil)(&mut guest);
        let asked = (case.ask)(&guest);
        let access = if asked.execute { Request::execute } else { Request::read };
        let request = access(asked.device, asked.iova).with_process(PROCESS, false);
        // A store in place of a read where D is what is missing: its cause is two higher.
        let (request, cause) = if case.why.starts_with("D = 0") {
            (Request::write(asked.device, asked.iova).with_process(PROCESS, false), case.cause + 2)
        } else {
            (request, case.cause)
        };
        let found = guest.rig.address(request);
        assert_eq!(found, Err(cause), "ATS-04, ACC-04: {}", case.why);
    }
}

#[test]
fn dtf_hides_the_record_and_not_the_answer() {
    for case in UNSUPPORTED.iter().chain(&ABORTED).chain(&NOT_THERE) {
        let (shown, ..) = try_case(case, false);
        let (hidden, records, _) = try_case(case, true);
        assert_eq!(shown, hidden, "ATS-05: {}", case.why);
        // What is found before the context has no DTF: Off, Bare, a device_id that is too wide.
        let unlocated = matches!(case.why, "Bare" | "a device_id that is too wide");
        let recorded = matches!(case.cause, 256..=259 | 268) || unlocated;
        let causes: Vec<_> = records.iter().map(|record| record[0] & 0xfff).collect();
        let expected: &[u64] = if recorded { &[case.cause.into()] } else { &[] };
        assert_eq!(causes, expected, "ATS-05, FR-03, FR-04: {}", case.why);
    }
}

#[test]
fn a_failed_request_changes_nothing_but_the_fault_queue() {
    for case in UNSUPPORTED.iter().chain(&ABORTED).chain(&NOT_THERE) {
        let mut guest = Guest::<0>::asked(everything());
        (case.spoil)(&mut guest);
        let request = (case.ask)(&guest);
        guest.rig.forget_accesses();
        let _ = guest.ask(request);
        let events = guest.rig.memory.take_events();
        assert!(
            events.iter().all(|event| matches!(event, Event::Store(at, _) if at.get() >> 24 == 0x91)),
            "ACC-10: {}",
            case.why
        );
    }
}

#[test]
fn only_a_device_that_was_granted_ats_is_answered() {
    let mut guest = Guest::<0>::asked(everything());
    let other = DeviceId::truncate(8);
    let attached = guest.rig.iommu.attach_emulated(other, DevicePolicy::default()).expect("there is room");
    let request = AtsRequest::new(attached, Iova::new(0));
    assert_eq!(guest.rig.iommu.ats_translate(&request), Err(TranslateError::Unsupported));
    let _ = guest.rig.iommu.detach(other).expect("attached");
    assert_eq!(guest.rig.iommu.ats_translate(&request), Err(TranslateError::NotAttached));
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0], "the guest is shown nothing of it");
    let parts = Parts { memory: Memory::new(), interrupts: Wires::new(InterruptKinds::Wired), physical: NoPhysical };
    let mut fresh: Emulated<0> = Emulated::new(parts);
    assert_eq!(fresh.ats_translate(&request), Err(TranslateError::NotStarted));
    // A guest that is not offered ATS has no device that does it.
    let mut rig = DmaRig::<0>::new(everything().with_ats(false));
    let request = AtsRequest::new(rig.device, Iova::new(0));
    assert_eq!(rig.iommu.ats_translate(&request), Err(TranslateError::Unsupported));
}

// Permissions.

/// R, RW, X, RX, RWX: what a leaf can grant.
const LEAVES: [u64; 5] = [pte::R, pte::R | pte::W, pte::X, pte::R | pte::X, pte::R | pte::W | pte::X];

#[test]
fn permissions_are_those_of_both_stages_with_their_d_bits() {
    let mut guest = Guest::<0>::asked(everything());
    let plain = pte::V | pte::U | pte::A;
    for (first, second) in LEAVES.into_iter().flat_map(|first| LEAVES.map(|second| (first, second))) {
        for (first_d, second_d) in [(0, 0), (pte::D, 0), (0, pte::D), (pte::D, pte::D)] {
            guest.map(PAGE, GPA, 0, plain | first | first_d);
            guest.second.map(GPA, SPA, 0, plain | second | second_d);
            let both = first & second;
            for execute in [false, true] {
                let answer = guest.answer(guest.of(PAGE).with_no_write(true).with_execute(execute));
                let mut expected = String::new();
                if both & pte::R != 0 {
                    expected.push('R');
                    if both & pte::W != 0 && first_d & second_d != 0 {
                        expected.push('W');
                    }
                    if both & pte::X != 0 && execute {
                        expected.push('X');
                    }
                }
                let what = format!("{first:#x} {second:#x} {first_d:#x} {second_d:#x} {execute}");
                assert_eq!(bits(&answer), expected, "ATS-07, ATS-08, ATS-10, S1-12, S2-06: {what}");
            }
        }
    }
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0], "ATS-10");
}

#[test]
fn a_page_to_execute_alone_is_none() {
    let mut guest = Guest::<0>::asked(everything());
    guest.map(PAGE, GPA, 0, pte::V | pte::X | pte::U | pte::A);
    let answer = guest.answer(guest.of(PAGE).with_execute(true));
    assert_eq!(bits(&answer), "", "ATS-10");
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0], "ATS-10");
}

#[test]
fn execution_is_granted_where_it_is_requested_for_a_process() {
    let mut guest = Guest::<0>::asked(everything());
    for (request, expected) in [
        (guest.of(PAGE), "RW"),
        (guest.of(PAGE).with_execute(true), "RWX"),
        (guest.of(PAGE).with_execute(true).with_no_write(true), "RWX"),
    ] {
        assert_eq!(bits(&guest.answer(request)), expected, "ATS-07: {request:?}");
    }
    // Without a PASID, through the same table.
    guest.change(FSC, guest.first.iosatp());
    guest.change(TC, 1 | EN_ATS);
    let answer = guest.answer(guest.any(PAGE).with_execute(true));
    assert_eq!((bits(&answer).as_str(), answer.address), ("RW", SPA), "ATS-07, DX-26");
    // Nor does Execute Requested make its causes those of a fetch.
    fail(&guest, first_entry(&guest), MemoryFault::Access);
    let request = guest.any(PAGE).with_execute(true);
    assert_eq!(guest.ask(request), AtsCompletion::CompleterAbort);
    assert_eq!(guest.rig.take_fault()[0], head(5, ATS, None), "ACC-07");
}

#[test]
fn a_request_that_does_not_write_marks_no_page_dirty() {
    let mut guest = Guest::<0>::asked(everything());
    guest.change(TC, 1 | EN_ATS | PDTV | SADE | GADE);
    guest.map(PAGE, GPA, 0, RWX & !pte::D & !pte::A);
    guest.second.map(GPA, SPA, 0, RWX & !pte::D & !pte::A);
    let leaves =
        |guest: &Guest| [guest.first.get(PAGE, 0), guest.second.get(GPA, 0)].map(|leaf| leaf & (pte::A | pte::D));
    let answer = guest.answer(guest.of(PAGE).with_no_write(true));
    assert_eq!((bits(&answer).as_str(), leaves(&guest)), ("R", [pte::A; 2]), "ATS-08, AD-09");
    // One that may write does, and is answered so at once.
    let answer = guest.answer(guest.of(PAGE));
    assert_eq!((bits(&answer).as_str(), leaves(&guest)), ("RW", [pte::A | pte::D; 2]), "ATS-08, AD-09");
    let answer = guest.answer(guest.of(PAGE).with_no_write(true));
    assert_eq!(bits(&answer), "RW", "ATS-08: D is 1 everywhere");
}

#[test]
fn a_page_that_may_not_be_written_is_not_marked_dirty() {
    for (sade, gade) in [(0, 0), (SADE, GADE)] {
        let mut guest = Guest::<0>::asked(everything());
        guest.change(TC, 1 | EN_ATS | PDTV | sade | gade);
        guest.map(PAGE, GPA, 0, pte::RO | pte::X);
        guest.second.map(GPA, SPA, 0, pte::RO | pte::X);
        let answer = guest.answer(guest.of(PAGE).with_execute(true));
        assert_eq!(bits(&answer), "RX", "AD-09, ATS-10");
        let leaves = [guest.first.get(PAGE, 0), guest.second.get(GPA, 0)].map(|leaf| leaf & pte::D);
        assert_eq!(leaves, [0, 0], "AD-09");
    }
}

#[test]
fn a_page_the_first_stage_keeps_from_writes_is_clean_in_the_second() {
    for (gade, marks) in [(0, pte::A), (GADE, pte::A)] {
        let mut guest = Guest::<0>::asked(everything());
        guest.change(TC, 1 | EN_ATS | PDTV | gade);
        guest.map(PAGE, GPA, 0, pte::RO);
        guest.second.map(GPA, SPA, 0, RWX & !pte::D);
        let answer = guest.answer(guest.of(PAGE));
        assert_eq!(bits(&answer), "R", "AD-09, ATS-10: only W is denied");
        assert_eq!(guest.second.get(GPA, 0) & (pte::A | pte::D), marks, "AD-09, AD-04: D is left alone");
    }
}

#[test]
fn pages_are_marked_before_the_answer_is_there() {
    let mut guest = Guest::<0>::asked(everything());
    guest.change(TC, 1 | EN_ATS | PDTV | SADE | GADE);
    guest.map(PAGE, GPA, 0, RWX & !pte::D);
    guest.second.map(GPA, SPA, 0, RWX & !pte::A & !pte::D);
    guest.rig.forget_accesses();
    let (first, second) = (guest.first.get(PAGE, 0), guest.second.get(GPA, 0));
    let _ = guest.answer(guest.of(PAGE));
    let expected = [
        Event::Exchange(guest.first.entry_address(PAGE, 0), first, first | pte::D),
        Event::Exchange(guest.second.entry_address(GPA, 0), second, second | pte::A | pte::D),
    ];
    assert_eq!(guest.rig.memory.take_events(), expected, "ATS-17, AD-06");
}

// Privilege.

#[test]
fn the_privilege_is_that_of_the_request_where_there_is_a_process() {
    let mut guest = Guest::<0>::asked(everything());
    guest.map(PAGE, GPA, 0, RWX & !pte::U);
    let request = guest.any(PAGE).with_process(PROCESS, true);
    let answer = guest.answer(request);
    assert_eq!(bits(&answer), "RWP", "ATS-09");
    let answer = guest.answer(request.with_execute(true));
    assert_eq!(bits(&answer), "RWXP", "ATS-09, ATS-07");
    guest.map(PAGE, GPA, 0, RWX);
    let answer = guest.answer(guest.of(PAGE));
    assert_eq!(bits(&answer), "RW", "ATS-09");
    // Without a PASID there is no privilege, whatever the request says.
    guest.change(FSC, guest.first.iosatp());
    guest.change(TC, 1 | EN_ATS);
    let mut request = guest.any(PAGE);
    request.privileged = true;
    assert_eq!(bits(&guest.answer(request)), "RW", "ATS-09, ACC-02");
    guest.map(PAGE, GPA, 0, RWX & !pte::U);
    assert!(tells_nothing(guest.ask(request)), "ATS-11, ACC-02");
}

#[test]
fn a_page_of_the_other_privilege_is_not_there() {
    let mut guest = Guest::<0>::asked(everything());
    for (ta, user_page, privileged, execute, expected) in [
        (0, false, false, false, ""),
        (0, false, false, true, ""),
        (SUM, false, false, false, ""),
        // Priv says of which privilege there is no permission (ATS-09).
        (0, true, true, false, "P"),
        (0, true, true, true, "P"),
        (SUM, true, true, false, "RWP"),
        // The permissions of reads and writes, and none to execute.
        (SUM, true, true, true, "RWP"),
        (0, true, false, true, "RWX"),
        (SUM, true, false, true, "RWX"),
        (0, false, true, true, "RWXP"),
        (SUM, false, true, true, "RWXP"),
    ] {
        guest.set_process(PC_V | ENS | ta);
        guest.map(PAGE, GPA, 0, if user_page { RWX } else { RWX & !pte::U });
        let request = guest.any(PAGE).with_process(PROCESS, privileged).with_execute(execute);
        let answer = guest.answer(request);
        let what = format!("SUM {ta}, U {user_page}, privileged {privileged}, execute {execute}");
        assert_eq!(bits(&answer), expected, "ATS-11, S1-11, UNSPECIFIED: {what}");
        if expected.is_empty() && !privileged {
            assert!(tells_nothing(AtsCompletion::Success(answer)), "ATS-11, ATS-04: {what}");
        }
    }
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0], "ATS-11");
}

// The other fields.

#[test]
fn global_is_what_the_first_stage_says_to_a_process() {
    let mut guest = Guest::<0>::asked(everything());
    assert_eq!(bits(&guest.answer(guest.of(PAGE))), "RW", "ATS-12");
    guest.map(PAGE, GPA, 0, RWX | pte::G);
    assert_eq!(bits(&guest.answer(guest.of(PAGE))), "RWG", "ATS-12");
    // Of an entry above the leaf.
    guest.map(PAGE, GPA, 0, RWX);
    guest.first.set(PAGE, 2, guest.first.get(PAGE, 2) | pte::G);
    assert_eq!(bits(&guest.answer(guest.of(PAGE))), "RWG", "ATS-12, S1-10");
    // G of the second stage says nothing.
    guest.first.set(PAGE, 2, guest.first.get(PAGE, 2) & !pte::G);
    guest.second.map(GPA, SPA, 0, RWX | pte::G);
    assert_eq!(bits(&guest.answer(guest.of(PAGE))), "RW", "ATS-12, PTE-09");
    // Not of an interrupt file, nor of what is not there, nor without a PASID.
    guest.map(MSI_PAGE, WINDOW, 0, RWX | pte::G);
    assert_eq!(bits(&guest.answer(guest.of(MSI_PAGE))), "RW", "ATS-12");
    guest.map(PAGE, GPA, 0, RWX & !pte::A | pte::G);
    assert!(tells_nothing(guest.ask(guest.of(PAGE))), "ATS-12");
    guest.map(PAGE, GPA, 0, RWX | pte::G);
    guest.processes.set(ProcessId::truncate(0), [PC_V, guest.first.iosatp()]);
    guest.change(TC, 1 | EN_ATS | PDTV | DPE);
    let answer = guest.answer(guest.any(PAGE));
    assert_eq!((bits(&answer).as_str(), answer.address), ("RW", SPA), "ATS-12, TR-14");
}

#[test]
fn without_a_first_stage_nothing_is_global() {
    let mut guest = Guest::<0>::asked(everything());
    guest.processes.set(PROCESS, [PC_V, 0]);
    let answer = guest.answer(guest.of(GPA));
    assert_eq!((bits(&answer).as_str(), answer.address), ("RW", SPA), "ATS-12, UNSPECIFIED");
    guest.change(FSC, 0);
    let answer = guest.answer(guest.of(GPA));
    assert_eq!((bits(&answer).as_str(), answer.address), ("RW", SPA), "ATS-12, TR-15, UNSPECIFIED");
}

#[test]
fn a_cxl_device_is_told_what_it_has_to_access_through_cxl_io() {
    for (cxl, pbmt, t2gpa, msi, expected) in [
        (false, 0, 0, false, "RW"),
        (false, 1, 0, false, "RW"),
        (false, 2, T2GPA, false, "RW"),
        (false, 0, 0, true, "RW"),
        (true, 0, 0, false, "RW"),
        (true, 1, 0, false, "RWC"),
        (true, 2, 0, false, "RWC"),
        (true, 0, T2GPA, false, "RWC"),
        (true, 0, 0, true, "RWC"),
        (true, 0, T2GPA, true, "RWC"),
    ] {
        // The type of the first stage, or of the second where the first says nothing.
        for (first, second) in [(pbmt, 0), (0, pbmt)] {
            let mut guest = Guest::<0>::asked(everything());
            guest.change(TC, 1 | EN_ATS | PDTV | t2gpa);
            guest.map(PAGE, GPA, 0, RWX | first << 61);
            guest.second.map(GPA, SPA, 0, RWX | second << 61);
            let request = guest.of(if msi { MSI_PAGE } else { PAGE }).with_cxl(cxl);
            let what = format!("CXL {cxl}, PBMT {first} {second}, T2GPA {t2gpa}, MSI {msi}");
            assert_eq!(bits(&guest.answer(request)), expected, "ATS-13, UNSPECIFIED: {what}");
        }
    }
}

#[test]
fn the_size_is_that_of_the_smaller_leaf_and_is_told_in_the_address() {
    let mut guest = Guest::<0>::asked(everything());
    let napot = |to: u64| (to >> 2 & !0x3c00) | 8 << 10 | RWX | pte::N;
    // Level and entry of each stage: 4 KiB, 64 KiB, 2 MiB, 1 GiB.
    let (iova, gpa, spa) = (0x4d_c000_0000_u64, 0x31_4000_0000_u64, 0x51_8000_0000_u64);
    let kinds: [(u8, u64); 4] = [(0, 1 << 12), (0, 1 << 16), (1, 1 << 21), (2, 1 << 30)];
    let entry = |kind: usize, to: u64| {
        let (level, size) = kinds[kind];
        (level, if size == 1 << 16 { napot(to) } else { (to & !(size - 1)) >> 2 | RWX })
    };
    // Somewhere in the last 64 KiB of the last 2 MiB of the gigabyte.
    let within = 0x3fff_3000;
    for (first, second) in (0..4).flat_map(|first| (0..4).map(move |second| (first, second))) {
        let iova = iova + (u64::try_from(first * 4 + second).expect("small") << 30);
        let (level, leaf) = entry(first, gpa + within);
        guest.first.set(iova + within, level, leaf);
        // A stage of its own for each pair.
        guest.second = PageTable::second_stage(&guest.rig.memory, SecondStageMode::Sv39x4);
        guest.second.map(0x8000_0000, 0x8000_0000, 2, pte::RW);
        let (level, leaf) = entry(second, spa + within);
        guest.second.set(gpa + within, level, leaf);
        guest.change(IOHGATP, guest.second.iohgatp(GSCID));
        let size = kinds[first].1.min(kinds[second].1);
        let answer = guest.answer(guest.of(iova + within));
        let address = (spa + within) & !(size - 1);
        assert_eq!((answer.address, answer.size), (address, size), "ATS-15, SZ-01, PTE-06: {first} {second}");
        // S = 0: 4 KiB. Else ones below a zero: 0111, 0 1111 1111, 0 0001 and seventeen ones.
        let expected = match size {
            0x1000 => (address, false),
            0x1_0000 => (address | 0x7000, true),
            0x20_0000 => (address | 0xf_f000, true),
            _ => (address | 0x1fff_f000, true),
        };
        assert_eq!(answer.napot(), expected, "ATS-15, SZ-02: {size:#x}");
        assert_eq!(answer.napot().0 & 0xfff, 0, "ATS-15");
    }
}

#[test]
fn ranges_without_a_stage_are_large_and_keep_away_from_interrupt_files() {
    let mut guest = Guest::<0>::asked(everything());
    guest.processes.set(PROCESS, [PC_V, 0]);
    guest.second.map(0x4000_0000, 0x10_4000_0000, 2, RWX);
    guest.second.map(0, 0x10_0000_0000, 2, RWX);
    let answer = guest.answer(guest.of(0x7654_3000));
    assert_eq!((answer.address, answer.size), (0x10_4000_0000, 0x4000_0000), "ATS-15, SZ-01, UNSPECIFIED");
    // The file is in the first gigabyte: half of the half of it is free of it.
    let answer = guest.answer(guest.of(0x1000));
    assert_eq!((answer.address, answer.size), (0x10_0000_0000, 0x2000_0000), "SZ-04");
    let answer = guest.answer(guest.of(WINDOW + 0x1000));
    assert_eq!((answer.address, answer.size), (0x10_2800_1000, 0x1000), "SZ-04");
    // Without either stage.
    guest.without_second_stage();
    let answer = guest.answer(guest.of(0x1234_5678_9000));
    assert_eq!((answer.address, answer.size), (0x1234_4000_0000, 0x4000_0000), "ATS-15, SZ-01, UNSPECIFIED");
    assert_eq!(bits(&answer), "RW", "S1-01, S2-01");
    let answer = guest.answer(guest.of(0x1234_5678_9000).with_execute(true));
    assert_eq!(bits(&answer), "RWX", "S1-01, S2-01");
}

// Addresses of the guest's own VM.

#[test]
fn with_t2gpa_the_answer_is_an_address_of_the_vm() {
    let mut guest = Guest::<0>::asked(everything());
    guest.change(TC, 1 | EN_ATS | PDTV | T2GPA);
    let answer = guest.answer(guest.of(PAGE).with_execute(true));
    assert_eq!((answer.address, answer.size, bits(&answer).as_str()), (GPA, 4096, "RWX"), "ATS-06, DC-04, DX-21");
    // Range and permissions are still those of both stages.
    guest.map(PAGE, GPA, 1, RWX);
    guest.second.map(GPA, SPA, 0, pte::RO);
    let answer = guest.answer(guest.of(PAGE + 0x5000).with_no_write(true));
    assert!(tells_nothing(AtsCompletion::Success(answer)), "ATS-06: the second stage has one page");
    let answer = guest.answer(guest.of(PAGE).with_no_write(true));
    assert_eq!((answer.address, answer.size, bits(&answer).as_str()), (GPA, 4096, "R"), "ATS-06");
    guest.second.map(GPA, SPA, 1, RWX);
    let answer = guest.answer(guest.of(PAGE + 0x5000));
    assert_eq!((answer.address, answer.size), (GPA, 0x20_0000), "ATS-06, ATS-15");
    assert_eq!(answer.napot(), (GPA | 0xf_f000, true), "ATS-15, SZ-02");
    // The way back: a translated request with that address.
    let back = Request::read(guest.rig.device, Iova::new(GPA + 0x5123)).translated();
    assert_eq!(guest.rig.address(back), Ok(SPA + 0x5123), "TR-12");
}

#[test]
fn an_answer_from_memory_of_other_requests_is_still_an_address_of_the_vm() {
    let mut guest = Guest::<16>::asked(everything());
    guest.change(TC, 1 | EN_ATS | PDTV | T2GPA);
    let access = Request::write(guest.rig.device, guest.of(PAGE).iova).with_process(PROCESS, false);
    assert_eq!(guest.rig.address(access), Ok(SPA));
    let request = guest.of(PAGE);
    for _ in 0..2 {
        let answer = guest.answer(request);
        assert_eq!((answer.address, bits(&answer).as_str()), (GPA, "RW"), "ATS-06, ATS-07, CA-10, DX-22, DX-23");
        assert_eq!(guest.rig.address(access), Ok(SPA), "CA-10");
    }
}

// Interrupt files.

#[test]
fn a_page_of_an_interrupt_file_is_answered_as_any_other() {
    for (t2gpa, address) in [(0, FILE), (T2GPA, WINDOW)] {
        let mut guest = Guest::<0>::asked(everything());
        guest.change(TC, 1 | EN_ATS | PDTV | t2gpa);
        // The first stage has 2 MiB; the second has nothing there.
        guest.map(MSI_PAGE, WINDOW, 1, RWX);
        let answer = guest.answer(guest.of(MSI_PAGE | 0xabc).with_execute(true));
        assert_eq!((answer.address, answer.size), (address, 4096), "ATS-16, SZ-05");
        assert_eq!(bits(&answer), "RW", "ATS-16, ATS-07, MSI-11: never to execute");
        // Permissions are those of the first stage.
        guest.map(MSI_PAGE, WINDOW, 1, pte::RO);
        let answer = guest.answer(guest.of(MSI_PAGE));
        assert_eq!((answer.address, bits(&answer).as_str()), (address, "R"), "ATS-16, ATS-07, MSI-12");
        guest.map(MSI_PAGE, WINDOW, 1, RWX & !pte::D);
        let answer = guest.answer(guest.of(MSI_PAGE).with_no_write(true));
        assert_eq!(bits(&answer), "R", "ATS-16, ATS-07, AD-11");
    }
}

#[test]
fn a_page_of_a_file_in_memory_has_no_translated_address() {
    for t2gpa in [0, T2GPA] {
        let mut guest = Guest::<0>::asked(everything());
        guest.change(TC, 1 | EN_ATS | PDTV | t2gpa);
        let (file, notice) = (guest.rig.memory.allocate(1), guest.rig.memory.allocate(1));
        // V and M = 1, the file's address; its notice.
        guest.rig.memory.write_words(guest.msi, &[file.get() >> 2 | 0b011, notice.get() >> 2 | 1]);
        guest.map(MSI_PAGE, WINDOW, 1, RWX);
        let answer = guest.answer(guest.of(MSI_PAGE).with_execute(true));
        assert_eq!((answer.address, answer.size), (0, 4096), "ATS-14: neither the notice's page nor the file's");
        assert_eq!(bits(&answer), "RWU", "ATS-14, MSI-11");
        guest.map(MSI_PAGE, WINDOW, 1, pte::RO);
        let answer = guest.answer(guest.of(MSI_PAGE));
        assert_eq!(bits(&answer), "RU", "ATS-14: as the first stage grants");
        let answer = guest.answer(guest.of(MSI_PAGE).with_cxl(true));
        assert_eq!(bits(&answer), "RUC", "ATS-13");
        guest.rig.memory.write_words(guest.msi, &[file.get() >> 2 | 0b011, 1 << 63]);
        assert_eq!(guest.ask(guest.of(MSI_PAGE)), AtsCompletion::CompleterAbort, "ATS-02, MSI-09");
        assert_eq!(guest.rig.take_fault()[0], head(263, ATS, Some((PROCESS.get(), false))), "ATS-02");
    }
}

#[test]
fn a_window_is_found_after_the_first_stage() {
    let mut guest = Guest::<0>::asked(everything());
    guest.change(ADDR_PATTERN, GPA >> 12);
    let answer = guest.answer(guest.of(PAGE));
    assert_eq!(answer.address, FILE, "ATS-16, MSI-02");
}

// What is remembered.

#[test]
fn an_answer_may_come_from_what_is_remembered_until_it_is_invalidated() {
    let mut guest = Guest::<16>::asked(everything());
    let request = guest.of(PAGE);
    assert_eq!(bits(&guest.answer(request)), "RW");
    guest.first.unmap(PAGE, 0);
    assert_eq!(bits(&guest.answer(request)), "RW", "ATS-18, CA-06");
    let _ = guest.rig.run([Iotinval::ALL.gscid(GSCID).vma()]);
    assert!(tells_nothing(guest.ask(request)), "ATS-18");
    // What is not there is not remembered.
    guest.map(PAGE, GPA, 0, RWX);
    assert_eq!(bits(&guest.answer(request)), "RW", "CA-02");
}

#[test]
fn a_remembered_page_that_was_clean_is_looked_at_again_for_a_write() {
    let mut guest = Guest::<16>::asked(everything());
    guest.change(TC, 1 | EN_ATS | PDTV | SADE | GADE);
    guest.map(PAGE, GPA, 0, RWX & !pte::D);
    guest.second.map(GPA, SPA, 0, RWX & !pte::D);
    let request = guest.of(PAGE);
    assert_eq!(bits(&guest.answer(request.with_no_write(true))), "R", "ATS-08");
    assert_eq!(bits(&guest.answer(request)), "RW", "ATS-08, CA-08, DX-23");
    assert_eq!(bits(&guest.answer(request.with_no_write(true))), "RW", "ATS-08, DX-23");
}
