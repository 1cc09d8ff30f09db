//! Every cause a translation can end with: what makes it, what the record says, whether DTF hides it, and what an ATS
//! translation request with it is answered.
//!
//! Rule IDs are those of the rules of queues and faults.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod nested_guest;

use dma_rig::DEVICE;
use nested_guest::{IOVA, MESSAGES, NOTICE, Nested, OUTPUT, PAGE, PROCESS};
use proptest::prelude::*;
use riscv_viommu::mock::Memory;
use riscv_viommu::mock::guest::register::DDTP;
use riscv_viommu::mock::tables::pte;
use riscv_viommu::mock::tables::tc::{DPE, DTF, EN_ATS, GADE, PDTV, SADE, V};
use riscv_viommu::{
    AtsCompletion, Cause, DeviceId, Gpa, Iova, MemoryFault, Post, ProcessId, Request, Target, TranslateError,
};

const TC: u64 = V | EN_ATS | PDTV;

/// What an ATS translation request that ends with the cause is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// UR, and a record.
    Unsupported,
    /// CA, and a record.
    Aborted,
    /// Success without permissions, and no record.
    Nothing,
}

use Told::{Aborted, Nothing, Unsupported};

/// The rules, the causes of an execution, a read and a write, of which page, what is wrong with what the guest built
/// with this `tc`, and the answer to an ATS translation request.
type Row = (&'static str, [u16; 3], u64, fn(&mut Nested, u64), Told);

fn fail(nested: &Nested, at: Gpa) {
    nested.rig.memory.fail(at, 8, MemoryFault::Access);
}

fn poison(nested: &Nested, at: Gpa) {
    nested.rig.memory.fail(at, 8, MemoryFault::Corruption);
}

fn context(nested: &Nested) -> Gpa {
    nested.rig.directory.entry_address(DeviceId::truncate(DEVICE))
}

fn process(nested: &Nested) -> Gpa {
    nested.processes.entry_address(PROCESS)
}

/// The guest-physical address of the leaf entry of the page.
fn leaf(nested: &Nested) -> u64 {
    Nested::<0>::gpa(nested.first.entry_address(IOVA, 0))
}

/// The guest-physical address of the process context.
fn process_gpa(nested: &Nested) -> u64 {
    Nested::<0>::gpa(process(nested))
}

/// An entry of the second stage for this address.
fn second(nested: &Nested, gpa: u64) -> Gpa {
    nested.second.entry_address(gpa, 0)
}

/// The first word of the entry of the MSI page that is looked at.
fn set_message(nested: &Nested, word: u64) {
    nested.rig.memory.write(nested.messages, word);
}

const ROWS: [Row; 29] = [
    ("FQ-C256", [256; 3], IOVA, |nested, _| nested.rig.write8(DDTP, 0), Unsupported),
    ("FQ-C257", [257; 3], IOVA, |nested, _| fail(nested, context(nested)), Unsupported),
    ("FQ-C258", [258; 3], IOVA, |nested, _| nested.rig.directory.invalidate(DeviceId::truncate(DEVICE)), Unsupported),
    ("FQ-C259", [259; 3], IOVA, |nested, tc| nested.set_tc(tc | 1 << 12), Unsupported),
    ("FQ-C260", [260; 3], IOVA, |nested, tc| nested.set_tc(tc & !PDTV), Unsupported),
    ("FQ-C268, DX-30, DISC-Q08", [268; 3], IOVA, |nested, _| poison(nested, context(nested)), Aborted),
    // The process directory.
    ("FQ-C265", [265; 3], IOVA, |nested, _| fail(nested, process(nested)), Aborted),
    ("FQ-C265", [265; 3], IOVA, |nested, _| fail(nested, second(nested, process_gpa(nested))), Aborted),
    ("FQ-C266", [266; 3], IOVA, |nested, _| nested.processes.set(PROCESS, [0xffe, u64::MAX]), Nothing),
    ("FQ-C267", [267; 3], IOVA, |nested, _| nested.processes.set(PROCESS, [9, 0]), Aborted),
    ("FQ-C269, DX-30, DISC-Q08", [269; 3], IOVA, |nested, _| poison(nested, process(nested)), Aborted),
    ("FQ-C269", [269; 3], IOVA, |nested, _| poison(nested, second(nested, process_gpa(nested))), Aborted),
    (
        "FQ-C020, FQ-C021, FQ-C023, FQ-48: the process directory's page",
        [20, 21, 23],
        IOVA,
        |nested, _| nested.set_second(process_gpa(nested), 0),
        Nothing,
    ),
    // The first stage.
    (
        "FQ-C001, FQ-C005, FQ-C007",
        [1, 5, 7],
        IOVA,
        |nested, _| fail(nested, nested.first.entry_address(IOVA, 0)),
        Aborted,
    ),
    (
        "FQ-C274, DX-30, DISC-Q08",
        [274; 3],
        IOVA,
        |nested, _| poison(nested, nested.first.entry_address(IOVA, 0)),
        Aborted,
    ),
    ("FQ-C012, FQ-C013, FQ-C015", [12, 13, 15], IOVA, |nested, _| nested.first.unmap(IOVA, 0), Nothing),
    ("FQ-C012, FQ-C013, FQ-C015: not canonical", [12, 13, 15], IOVA | 1 << 38, |_, _| {}, Nothing),
    (
        "FQ-C001, FQ-C005, FQ-C007: the second stage of its table",
        [1, 5, 7],
        IOVA,
        |nested, _| fail(nested, second(nested, leaf(nested))),
        Aborted,
    ),
    (
        "FQ-C274: the second stage of its table",
        [274; 3],
        IOVA,
        |nested, _| poison(nested, second(nested, leaf(nested))),
        Aborted,
    ),
    (
        "FQ-C020, FQ-C021, FQ-C023, FQ-48: the first stage's page",
        [20, 21, 23],
        IOVA,
        |nested, _| nested.set_second(leaf(nested), 0),
        Nothing,
    ),
    // The second stage.
    (
        "FQ-C001, FQ-C005, FQ-C007: the second stage",
        [1, 5, 7],
        IOVA,
        |nested, _| fail(nested, second(nested, PAGE)),
        Aborted,
    ),
    ("FQ-C274: the second stage", [274; 3], IOVA, |nested, _| poison(nested, second(nested, PAGE)), Aborted),
    ("FQ-C020, FQ-C021, FQ-C023", [20, 21, 23], IOVA, |nested, _| nested.second.unmap(PAGE, 0), Nothing),
    // MSI page tables. The second stage maps none of their pages, and is not asked.
    ("FQ-C261", [261; 3], MESSAGES, |nested, _| fail(nested, nested.messages), Aborted),
    ("FQ-C262", [262; 3], MESSAGES, |nested, _| set_message(nested, 6), Nothing),
    ("FQ-C263: M = 0", [263; 3], MESSAGES, |nested, _| set_message(nested, 1), Aborted),
    ("FQ-C263: M = 2", [263; 3], MESSAGES, |nested, _| set_message(nested, 5), Aborted),
    ("FQ-C263: a reserved bit", [263; 3], MESSAGES, |nested, _| set_message(nested, 1 << 54 | 7), Aborted),
    ("FQ-C270, DX-30, DISC-Q08", [270; 3], MESSAGES, |nested, _| poison(nested, nested.messages), Aborted),
];

fn broken(row: &Row, tc: u64) -> Nested {
    let mut nested = Nested::new(tc);
    row.3(&mut nested, tc);
    nested
}

/// Execution, read and write, with their TTYP.
fn accesses(nested: &Nested, iova: u64) -> [(Request, u64); 3] {
    let (device, iova) = (nested.rig.device, Iova::new(iova));
    [(Request::execute(device, iova), 1), (Request::read(device, iova), 2), (Request::write(device, iova), 3)]
}

/// The first word of a record of the process's, not privileged (FQ-20 to FQ-25).
fn head(code: u16, ttyp: u64) -> u64 {
    0x1234_5600_0000_0000 | ttyp << 34 | 1 << 32 | 0xb_3456 << 12 | u64::from(code)
}

#[test]
fn what_works_has_no_cause() {
    for iova in [IOVA, MESSAGES] {
        for at in [1, 2] {
            let mut nested = Nested::<0>::new(TC);
            let (request, _) = accesses(&nested, iova)[at];
            assert!(nested.rig.translate(request.with_process(PROCESS, false)).is_ok(), "the rows break what works");
        }
    }
}

#[test]
fn every_cause_is_recorded_with_the_request_it_ended() {
    for row in &ROWS {
        let (rules, codes, iova, ..) = *row;
        for (access, code) in codes.into_iter().enumerate() {
            let mut nested = broken(row, TC);
            let (request, ttyp) = accesses(&nested, iova)[access];
            let result = nested.rig.address(request.with_process(PROCESS, false));
            assert_eq!(result, Err(code), "{rules}: TTYP {ttyp}");
            let [first, second, iotval, iotval2] = nested.rig.take_fault();
            assert_eq!([first, second, iotval], [head(code, ttyp), 0, iova], "{rules}, FQ-53");
            assert!(iotval2 == 0 || [20, 21, 23].contains(&code), "{rules}, FQ-60: {iotval2:#x}");
        }
    }
}

#[test]
fn dtf_hides_every_cause_but_those_before_the_context() {
    for row in &ROWS {
        let (rules, codes, iova, ..) = *row;
        for (access, code) in codes.into_iter().enumerate() {
            let mut nested = broken(row, TC | DTF);
            let (request, ttyp) = accesses(&nested, iova)[access];
            assert_eq!(nested.rig.address(request.with_process(PROCESS, false)), Err(code), "{rules}, FQ-06");
            let shown = [256, 257, 258, 259, 268].contains(&code);
            let heads: Vec<_> = nested.rig.take_faults().iter().map(|record| record[0]).collect();
            let expected = if shown { vec![head(code, ttyp)] } else { vec![] };
            assert_eq!(heads, expected, "{rules}, FQ-46, FQ-47, FR-03");
        }
    }
}

#[test]
fn every_cause_has_its_answer_to_an_ats_request() {
    for row in &ROWS {
        let (rules, codes, iova, _, told) = *row;
        // One without NW asks for a read.
        for (executes, code) in [(true, codes[0]), (false, codes[1])] {
            let mut nested = broken(row, TC);
            let request = nested.ask(iova).with_process(PROCESS, false).with_execute(executes);
            let completion = nested.ats(&request);
            let heads: Vec<_> = nested.rig.take_faults().iter().map(|record| record[0]).collect();
            let recorded = vec![head(code, 8)];
            match (told, completion) {
                (Unsupported, AtsCompletion::UnsupportedRequest) | (Aborted, AtsCompletion::CompleterAbort) => {
                    assert_eq!(heads, recorded, "{rules}, FQ-41");
                }
                (Nothing, AtsCompletion::Success(answer)) => {
                    assert_eq!((answer.read, answer.write, answer.execute), (false, false, false), "{rules}, FQ-51");
                    assert_eq!(heads, [], "{rules}, FQ-51");
                }
                (_, completion) => panic!("{rules}: {completion:?} where {told:?} is expected"),
            }
        }
    }
}

#[test]
fn an_interrupt_file_that_can_not_be_updated_has_causes_of_its_own() {
    let iova = MESSAGES + 0x1000;
    for (fault, code, rules) in [(MemoryFault::Access, 264, "FQ-C264"), (MemoryFault::Corruption, 271, "FQ-C271")] {
        for (tc, recorded) in [(TC, vec![head(code, 3)]), (TC | DTF, vec![])] {
            for stores in [false, true] {
                let mut nested = Nested::<0>::new(tc);
                let fails = if stores { Memory::fail_stores } else { Memory::fail };
                fails(&nested.rig.memory, nested.file, 512, fault);
                let message = Request::msi(nested.rig.device, Iova::new(iova), 0x45).with_process(PROCESS, false);
                assert_eq!(nested.rig.translate(message), Err(TranslateError::Fault(cause(code))), "{rules}, FLT-08");
                let heads: Vec<_> = nested.rig.take_faults().iter().map(|record| record[0]).collect();
                assert_eq!(heads, recorded, "{rules}");
                assert_eq!(posts(&nested), [], "{rules}: no notice of what is not pending");
                // Nothing of the file is read for an ATS request.
                let answer = nested.answer(&nested.ask(iova).with_process(PROCESS, false));
                assert!(answer.untranslated_only && nested.rig.take_faults().is_empty(), "{rules}");
            }
        }
    }
    // The same file without a failure.
    let mut nested = Nested::<0>::new(TC);
    let message = Request::msi(nested.rig.device, Iova::new(iova), 0x45).with_process(PROCESS, false);
    assert_eq!(nested.rig.translate(message).map(|translation| translation.target), Ok(Target::Mrif));
    // Identity 0x45 is bit 5 of the second pair.
    assert_eq!(nested.rig.memory.read(nested.file.checked_add(16).expect("small")), 1 << 5, "MRIF-05");
    assert_eq!(posts(&nested), [(Gpa::new(NOTICE), 0x2a)], "MRIF-07");
}

fn cause(code: u16) -> Cause {
    Cause::decode(code).expect("a standard cause")
}

fn posts(nested: &Nested) -> Vec<(Gpa, u32)> {
    let notices = nested.rig.memory.take_posts().into_iter();
    notices.filter(|(_, _, why)| *why == Post::Notice).map(|(at, data, _)| (at, data)).collect()
}

#[test]
fn an_interrupt_file_can_not_be_executed() {
    for iova in [MESSAGES, MESSAGES + 0x1000] {
        let mut nested = Nested::<0>::new(TC);
        let execute = Request::execute(nested.rig.device, Iova::new(iova)).with_process(PROCESS, false);
        assert_eq!(nested.rig.address(execute), Err(1), "FQ-C001, MSI-11");
        assert_eq!(nested.rig.take_fault(), [head(1, 1), 0, iova, 0], "FQ-C001");
    }
}

// Who asked.

#[test]
fn a_default_process_is_not_reported() {
    for (tc, process) in [(TC | DPE, 0), (TC | DPE, 1)] {
        let mut nested = Nested::<0>::new(tc);
        nested.first.unmap(IOVA, 0);
        let read = nested.read(IOVA);
        let (request, expected) = match process {
            0 => (read, 0x1234_5600_0000_000d | 2 << 34),
            // The same process 0, but named: PV is 1.
            _ => (read.with_process(ProcessId::truncate(0), false), 0x1234_5600_0000_000d | 2 << 34 | 1 << 32),
        };
        assert_eq!(nested.rig.address(request), Err(13));
        assert_eq!(nested.rig.take_fault()[0], expected, "FQ-31, FQ-32, TR-01, FR-05");
    }
    // Privilege without a process is none.
    let mut nested = Nested::<0>::new(TC | DPE);
    nested.first.unmap(IOVA, 0);
    let mut request = nested.read(IOVA);
    request.privileged = true;
    assert_eq!(nested.rig.address(request), Err(13));
    assert_eq!(nested.rig.take_fault()[0], 0x1234_5600_0000_000d | 2 << 34, "FQ-32");
}

#[test]
fn privilege_is_reported_as_it_was_requested() {
    // ENS is 0, so that the request is not allowed: PRIV in 33 nevertheless.
    let mut nested = Nested::<0>::new(TC);
    let request = nested.read(IOVA).with_process(PROCESS, true);
    assert_eq!(nested.rig.address(request), Err(260), "FQ-C260");
    assert_eq!(nested.rig.take_fault()[0], head(260, 2) | 1 << 33, "FQ-32, FR-05");
}

// Whose addresses the pointers are.

#[test]
fn pointers_are_guest_physical_exactly_where_there_is_a_second_stage() {
    // With PDTV the pointers of pdtp, of both levels below it, and of the process context; without it iosatp.
    for (tc, missing) in [(TC, 265), (V | EN_ATS, 5)] {
        let mut nested = Nested::<0>::new(tc);
        let request = |nested: &Nested| match tc & PDTV {
            0 => nested.read(IOVA),
            _ => nested.read(IOVA).with_process(PROCESS, false),
        };
        // Pages that the pointers lead to, as the second stage is asked for them.
        let mut pages = vec![nested.first.root(), nested.first.entry_address(IOVA, 1)];
        if tc & PDTV != 0 {
            pages.extend([nested.processes.root(), nested.processes.non_leaf_address(PROCESS, 1), process(&nested)]);
        }
        let entries: Vec<_> = pages.iter().map(|at| second(&nested, Nested::<0>::gpa(*at))).collect();
        assert_eq!(nested.rig.address(request(&nested)), Ok(OUTPUT), "DC-26");
        let loads = nested.rig.memory.take_loads();
        let asked = entries.iter().filter(|entry| loads.iter().any(|(at, _)| at == *entry)).count();
        assert_eq!(asked, entries.len(), "DC-26, PDT-06, S1-06: {loads:x?}");
        // The same pointers without a second stage, and without an MSI page table, are addresses of the guest's memory.
        let mut context = nested.context(tc);
        (context[1], context[4]) = (0, 0);
        nested.rig.set_context(&context);
        assert_eq!(nested.rig.address(request(&nested)), Err(missing), "DC-26, PDT-15");
        let loads = nested.rig.memory.take_loads();
        assert!(!loads.iter().any(|(at, _)| entries.contains(at)), "DC-26");
        // The last load is of the table that there is not.
        let table = if tc & PDTV == 0 { nested.first.root() } else { nested.processes.root() };
        let last = loads.last().map(|(at, _)| at.get() & !0xfff);
        assert_eq!(last, Some(Nested::<0>::gpa(table)), "DC-26");
    }
}

// What a guest-page fault says of where it was: iotval2.

#[test]
fn a_guest_page_fault_names_the_guest_physical_address() {
    let mut nested = Nested::<0>::new(TC);
    nested.second.unmap(PAGE, 0);
    let request = nested.read(IOVA + 0x127).with_process(PROCESS, false);
    assert_eq!(nested.rig.address(request), Err(21));
    assert_eq!(nested.rig.take_fault(), [head(21, 2), 0, IOVA + 0x127, PAGE + 0x124], "FQ-56, FR-08");
    // An address wider than the scheme: bit 41 is not cut off.
    let mut nested = Nested::<0>::new(TC);
    nested.first.map(IOVA, 1 << 41, 0, pte::RW);
    let request = nested.read(IOVA).with_process(PROCESS, false);
    assert_eq!(nested.rig.address(request), Err(21));
    assert_eq!(nested.rig.take_fault()[3], 1 << 41, "FQ-56, S2-03");
}

#[test]
fn an_implicit_read_names_the_entry_in_full() {
    for (access, code) in [(0, 20), (1, 21), (2, 23)] {
        // Of a first-stage entry, at each level.
        for level in 0..3 {
            let mut nested = Nested::<0>::new(TC);
            let entry = Nested::<0>::gpa(nested.first.entry_address(IOVA, level));
            nested.set_second(entry, 0);
            let (request, ttyp) = accesses(&nested, IOVA)[access];
            assert_eq!(nested.rig.address(request.with_process(PROCESS, false)), Err(code));
            let expected = [head(code, ttyp), 0, IOVA, entry | 1];
            assert_eq!(nested.rig.take_fault(), expected, "FQ-57, DISC-Q13: level {level}");
        }
        // Of an entry of the process directory, at each level.
        for level in 0..3 {
            let mut nested = Nested::<0>::new(TC);
            let entry = match level {
                0 => process_gpa(&nested),
                _ => Nested::<0>::gpa(nested.processes.non_leaf_address(PROCESS, level)),
            };
            nested.set_second(entry, 0);
            let (request, ttyp) = accesses(&nested, IOVA)[access];
            assert_eq!(nested.rig.address(request.with_process(PROCESS, false)), Err(code));
            let expected = [head(code, ttyp), 0, IOVA, entry | 1];
            assert_eq!(nested.rig.take_fault(), expected, "FQ-59, PDT-06, PDT-10: level {level}");
        }
    }
}

#[test]
fn an_implicit_write_says_so() {
    let mut nested = Nested::<0>::new(TC | SADE | GADE);
    let (at, entry) = (nested.first.entry_address(IOVA, 0), leaf(&nested));
    // A = 0 in the page's entry, and the page that holds it can not be written.
    nested.first.map(IOVA, PAGE, 0, pte::V | pte::R | pte::U);
    nested.set_second(entry, pte::RO);
    let before = nested.rig.memory.read(at);
    let request = nested.read(IOVA).with_process(PROCESS, false);
    assert_eq!(nested.rig.address(request), Err(21));
    assert_eq!(nested.rig.take_fault(), [head(21, 2), 0, IOVA, entry | 3], "FQ-58, S2-09");
    assert_eq!(nested.rig.memory.read(at), before, "S2-09");
}

/// Flags of entries with any combination of V, R, W, X, U, G, A, D.
fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![Just(pte::RW | pte::X), Just(pte::RO), 0..0x100_u64]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_access_is_misaligned_and_none_writes_entries_without_sade(
        leaf_flags in flags(),
        table_flags in flags(),
        page_flags in flags(),
        memory_type in 0..4_u64,
        gade in any::<bool>(),
        offset in 0..0x1000_u64,
        length in 1..0x2000_u64,
        page in prop_oneof![Just(IOVA), Just(MESSAGES), Just(MESSAGES + 0x1000), Just(MESSAGES + 0x2000)],
    ) {
        let mut nested = Nested::<0>::new(TC | if gade { GADE } else { 0 });
        nested.first.map(IOVA, PAGE, 0, leaf_flags | memory_type << 61);
        nested.set_second(leaf(&nested), table_flags);
        nested.set_second(PAGE, page_flags);
        for (request, _) in accesses(&nested, page + offset) {
            let request = request.with_process(PROCESS, false).with_length(length);
            if let Err(TranslateError::Fault(cause)) = nested.rig.translate(request) {
                prop_assert!(![4, 6].contains(&cause.code()), "FQ-C004, FQ-C006, ACC-09");
            }
        }
        for [head, _, _, iotval2] in nested.rig.take_faults() {
            prop_assert!(![4, 6].contains(&(head & 0xfff)), "FQ-C004, FQ-C006, ACC-09");
            prop_assert_eq!(iotval2 & 2, 0, "FQ-61");
            prop_assert!(iotval2 == 0 || [20, 21, 23].contains(&(head & 0xfff)), "FQ-60");
        }
    }
}

#[test]
fn a_permission_denied_to_an_ats_request_is_no_fault() {
    // First stage, second stage; R, W.
    for (first, second, granted) in [
        (pte::RO, pte::RW, (true, false)),
        (pte::RW, pte::RO, (true, false)),
        (pte::RW, pte::RW, (true, true)),
        (pte::V | pte::X | pte::U | pte::A, pte::RW, (false, false)),
        (pte::RW, pte::V | pte::X | pte::U | pte::A, (false, false)),
    ] {
        let mut nested = Nested::<0>::new(TC);
        nested.first.map(IOVA, PAGE, 0, first);
        nested.set_second(PAGE, second);
        let answer = nested.answer(&nested.ask(IOVA).with_process(PROCESS, false));
        assert_eq!((answer.read, answer.write, answer.execute), (granted.0, granted.1, false), "FQ-51, ATS-10");
        assert_eq!(nested.rig.take_faults(), [[0; 4]; 0], "FQ-51");
    }
}
