//! What the guest is shown of a fault of the physical IOMMU (rules VT-02 to VT-07, UPD-06; threat T22).

#![expect(clippy::unwrap_used, reason = "a script that can not be set up fails")]

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, OFF, Rig, id, pscid};
use riscv_viommu::Cause::{self, *};
use riscv_viommu::TransactionType::{
    self, AtsTranslationRequest as Ats, MessageRequest as Message, TranslatedRead as Translated,
    UntranslatedExecute as Execute, UntranslatedRead as Read, UntranslatedWrite as Write,
};
use riscv_viommu::faultq::FaultHead;
use riscv_viommu::mock::Strategy;
use riscv_viommu::mock::guest::{inval_ddt, register};
use riscv_viommu::{
    Attachment, FaultRecord, Gpa, HostFault, Iova, MemoryFault, ProcessId, Progress, Quirks, SecondStageFault, Width,
};

/// Where device 0 stands when the fault is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Bare,
    /// `ddtp` points to a directory without a context for it.
    NotValid,
    Misconfigured,
    Unreadable,
    Lost,
    /// The directory has no place for its id.
    TooWide,
    FirstStage,
    /// PDTV = 1, `pdtp` Bare.
    Processes,
}

const STATES: [State; 9] = [
    State::Off,
    State::Bare,
    State::NotValid,
    State::Misconfigured,
    State::Unreadable,
    State::Lost,
    State::TooWide,
    State::FirstStage,
    State::Processes,
];

/// The causes a host may report, and what the fault of a read is shown as where the context translates: `None` is
/// judged by the guest's directory, and an access that reached nothing where that refuses nothing.
const CAUSES: [(Cause, Option<Cause>); 30] = [
    (InstructionAccessFault, Some(InstructionAccessFault)),
    (ReadMisaligned, Some(ReadMisaligned)),
    (ReadAccessFault, Some(ReadAccessFault)),
    (WriteMisaligned, Some(WriteMisaligned)),
    (WriteAccessFault, Some(WriteAccessFault)),
    (InstructionPageFault, Some(InstructionPageFault)),
    (ReadPageFault, Some(ReadPageFault)),
    (WritePageFault, Some(WritePageFault)),
    (PtDataCorruption, Some(PtDataCorruption)),
    (PdtLoadAccessFault, Some(PdtLoadAccessFault)),
    (PdtNotValid, Some(PdtNotValid)),
    (PdtMisconfigured, Some(PdtMisconfigured)),
    (PdtDataCorruption, Some(PdtDataCorruption)),
    (InstructionGuestPageFault, Some(ReadAccessFault)),
    (ReadGuestPageFault, Some(ReadAccessFault)),
    (WriteGuestPageFault, Some(ReadAccessFault)),
    (MsiPteLoadAccessFault, Some(ReadAccessFault)),
    (MsiPteNotValid, Some(ReadAccessFault)),
    (MsiPteMisconfigured, Some(ReadAccessFault)),
    (MrifAccessFault, Some(ReadAccessFault)),
    (MsiPtDataCorruption, Some(ReadAccessFault)),
    (MrifDataCorruption, Some(ReadAccessFault)),
    (DdtLoadAccessFault, None),
    (DdtNotValid, None),
    (DdtMisconfigured, None),
    (TransactionTypeDisallowed, None),
    (DdtDataCorruption, None),
    (AllInboundDisallowed, None),
    (InternalDataPathError, None),
    (MsiWriteAccessFault, None),
];

/// Those of no transaction (VT-02): a guest that is refused nothing is shown nothing.
const HOSTS_ALONE: [Cause; 3] = [AllInboundDisallowed, InternalDataPathError, MsiWriteAccessFault];

/// The device in this state, on hardware too.
fn rig(state: State, dtf: bool) -> (Rig, Attachment) {
    let levels = if state == State::TooWide { 1 } else { 3 };
    let mut rig = Rig::new().levels(levels, false);
    let mut context = match state {
        State::Processes => [1 | 1 << 5, 0, 0, 0],
        State::Misconfigured => [1 | 1 << 12, 0, 0, 0],
        State::NotValid | State::TooWide => [0; 4],
        _ => rig.a.context(pscid(1)),
    };
    context[0] |= u64::from(dtf) << 4;
    rig.directory.set(id(0), &context);
    let entry = rig.directory.entry_address(id(0));
    match state {
        State::Unreadable => rig.memory.fail(entry, 8, MemoryFault::Access),
        State::Lost => rig.memory.fail(entry, 8, MemoryFault::Corruption),
        _ => {}
    }
    let _ = match state {
        State::Off => rig.ddtp(OFF),
        State::Bare => rig.ddtp(BARE),
        _ => rig.enter(),
    };
    let device = if state == State::TooWide { riscv_viommu::DeviceId::truncate(0x80) } else { id(0) };
    let attached = rig.iommu.attach(device, rig.device(0), riscv_viommu::DevicePolicy::default()).unwrap();
    assert!(rig.fence());
    let _ = rig.orders();
    (rig, attached.attachment)
}

/// The cause the guest is shown, if it is.
fn shown(rig: &mut Rig, attachment: Attachment, fault: &HostFault) -> Option<u64> {
    let _ = rig.iommu.report_fault(attachment, fault);
    let records = rig.records();
    assert!(records.len() <= 1);
    records.first().map(|record| {
        assert_eq!((record[1], record[3]), (0, 0), "VT-02, VT-05: nothing of the host's");
        record[0] & 0xfff
    })
}

/// What the guest's own IOMMU says of a transaction that never got to a page table.
fn refused_by(state: State, access: TransactionType, process: bool) -> Option<Cause> {
    let plain = matches!(access, Execute | Read | Write);
    match state {
        State::Off => Some(AllInboundDisallowed),
        State::NotValid => Some(DdtNotValid),
        State::Misconfigured => Some(DdtMisconfigured),
        State::Unreadable => Some(DdtLoadAccessFault),
        State::Lost => Some(DdtDataCorruption),
        State::TooWide => Some(TransactionTypeDisallowed),
        // TR-03, TR-08, TR-09, PRI-02: neither ATS nor PRI is offered.
        _ if !plain => Some(TransactionTypeDisallowed),
        State::FirstStage if process => Some(TransactionTypeDisallowed),
        State::Bare | State::FirstStage | State::Processes => None,
    }
}

#[test]
fn every_cause_in_every_state_is_shown_as_the_guests_own_iommu_would() {
    let process = ProcessId::new(5).unwrap();
    for state in STATES {
        let translates = matches!(state, State::Bare | State::FirstStage | State::Processes);
        for (cause, past_the_lookup) in CAUSES {
            for access in [Read, Ats, Message, Translated] {
                for process in [None, Some(process)] {
                    for dtf in [false, true] {
                        let (mut rig, attachment) = rig(state, dtf);
                        let fault = HostFault::new(cause, access, IOVA);
                        let fault = process.map_or(fault, |process| fault.with_process(process, true));
                        let expected = match past_the_lookup {
                            // A message goes through no tables.
                            Some(shown) if translates && access != Message => Some(shown),
                            _ => refused_by(state, access, process.is_some())
                                .or((!HOSTS_ALONE.contains(&cause)).then(|| access.access_fault())),
                        };
                        // In Bare, and where no context is found, there is no DTF to go by.
                        let found = matches!(state, State::FirstStage | State::Processes);
                        let expected = expected.filter(|cause| !(dtf && found) || cause.ignores_dtf());
                        assert_eq!(
                            shown(&mut rig, attachment, &fault),
                            expected.map(|cause| cause.code().into()),
                            "VT-03 to VT-07: {cause:?} of {access:?}, {process:?}, {state:?}, dtf {dtf}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_guest_page_fault_becomes_the_access_fault_of_the_access() {
    for (access, cause) in [(Execute, 1), (Read, 5), (Write, 7), (Translated, 5)] {
        for reported in [InstructionGuestPageFault, ReadGuestPageFault, WriteGuestPageFault, MsiPteNotValid] {
            let (mut rig, attachment) = rig(State::FirstStage, false);
            let fault = HostFault::new(reported, access, IOVA);
            assert_eq!(shown(&mut rig, attachment, &fault), Some(cause), "VT-05, VT-06: {reported:?} of {access:?}");
        }
    }
}

#[test]
fn the_record_says_who_and_what_in_the_guests_terms() {
    let (mut rig, attachment) = rig(State::FirstStage, false);
    let fault = HostFault::new(WritePageFault, Write, IOVA);
    let _ = rig.iommu.report_fault(attachment, &fault);
    let _ = rig.iommu.report_fault(attachment, &fault.with_process(ProcessId::new(0xabcde).unwrap(), true));
    let _ = rig.iommu.report_fault(attachment, &fault.with_process(ProcessId::new(1).unwrap(), false));
    // CAUSE 11:0, PID 31:12, PV 32, PRIV 33, TTYP 39:34, DID 63:40.
    let head = 15 | 3 << 34 | 0x08 << 40;
    assert_eq!(
        rig.records(),
        [
            [head, 0, IOVA.get(), 0],
            [head | 0xabcde << 12 | 3 << 32, 0, IOVA.get(), 0],
            [head | 1 << 12 | 1 << 32, 0, IOVA.get(), 0],
        ],
        "VT-02"
    );
}

#[test]
fn what_concerns_the_host_alone_is_no_fault_of_a_device() {
    let record = |cause: u16, ttyp: u8| FaultRecord {
        head: FaultHead::new().with_cause(cause).with_ttyp(ttyp),
        ..FaultRecord::default()
    };
    for (cause, ttyp) in
        [(256, 2), (272, 2), (273, 0), (273, 2), (13, 0), (13, 4), (13, 10), (2, 2), (275, 2), (4095, 2)]
    {
        assert_eq!(HostFault::from_record(&record(cause, ttyp), Quirks::default()), None, "VT-02: {cause}, {ttyp}");
    }
    let seen = (0..4096).filter(|&cause| HostFault::from_record(&record(cause, 2), Quirks::default()).is_some());
    assert_eq!(seen.count(), 11 + 19 - 3);
}

#[test]
fn a_record_is_taken_over_field_by_field_and_quirks_are_set_right() {
    let process = ProcessId::new(0x123).unwrap();
    let head = FaultHead::new().with_ttyp(2).with_pv(true).with_pid(process).with_is_priv(true);
    let record = |cause| FaultRecord { head: head.with_cause(cause), custom: 9, iotval: 0x5000, iotval2: 0x77 };
    let read = HostFault::new(WritePageFault, Read, Iova::new(0x5000));
    let (quiet, all) = (Quirks::default(), Quirks::default().with_process_valid(true).with_transaction_type(true));
    assert_eq!(HostFault::from_record(&record(15), quiet), Some(read.with_process(process, true)));
    let write = HostFault::new(WritePageFault, Write, Iova::new(0x5000));
    assert_eq!(HostFault::from_record(&record(15), all), Some(write));
    for (cause, access) in [
        (1, Execute),
        (12, Execute),
        (20, Execute),
        (4, Read),
        (5, Read),
        (13, Read),
        (21, Read),
        (6, Write),
        (7, Write),
    ]
    .into_iter()
    .chain([(15, Write), (23, Write), (258, Read), (260, Read), (274, Read)])
    {
        let fault = HostFault::from_record(&record(cause), all).unwrap();
        assert_eq!((fault.access, fault.process, fault.privileged), (access, None, false), "{cause}");
        if cause < 256 {
            // Whatever the record says.
            let executes = FaultRecord { head: record(cause).head.with_ttyp(1), ..record(cause) };
            assert_eq!(HostFault::from_record(&executes, all).unwrap().access, access, "{cause}");
        }
    }
}

#[test]
fn what_a_guest_page_fault_was_about_is_in_iotval2_unless_that_can_not_be_trusted() {
    let record = |cause, iotval2| FaultRecord {
        head: FaultHead::new().with_ttyp(2).with_cause(cause),
        custom: 0,
        iotval: 0x5000,
        iotval2,
    };
    let at = SecondStageFault::new(Gpa::new(0x1234_5678_9abc));
    for (cause, iotval2, expected) in [
        (20, 0x1234_5678_9abc, Some(at)),
        (21, 0x1234_5678_9abd, Some(at.with_implicit(true))),
        (23, 0x1234_5678_9abf, Some(at.with_implicit(true))),
        (13, 0x1234_5678_9abd, None),
        (265, 0x1234_5678_9abd, None),
    ] {
        for (quirks, known) in [(Quirks::default(), true), (Quirks::default().with_second_stage(true), false)] {
            let fault = HostFault::from_record(&record(cause, iotval2), quirks).unwrap();
            assert_eq!(fault.second_stage, expected.filter(|_| known), "VT-05, FR-08: {cause}");
        }
    }
}

#[test]
fn a_fault_that_says_the_same_is_not_recorded_again_before_it_is_read() {
    let (mut rig, attachment) = rig(State::FirstStage, false);
    let fault = HostFault::new(ReadPageFault, Read, IOVA);
    for at in [0, 8, 0xff8] {
        let _ = rig.iommu.report_fault(attachment, &HostFault::new(ReadPageFault, Read, Iova::new(IOVA.get() | at)));
    }
    assert_eq!(rig.iommu.stats().faults_coalesced, 2, "VT-07");
    assert_eq!(rig.records().len(), 1);
    let _ = rig.iommu.report_fault(attachment, &fault);
    for other in [
        HostFault::new(ReadPageFault, Read, Iova::new(0x1000)),
        HostFault::new(ReadAccessFault, Read, Iova::new(0x1000)),
        HostFault::new(ReadAccessFault, Write, Iova::new(0x1000)),
        HostFault::new(ReadAccessFault, Write, Iova::new(0x1000)).with_process(ProcessId::new(0).unwrap(), false),
    ] {
        let _ = rig.iommu.report_fault(attachment, &other);
    }
    assert_eq!(rig.records().len(), 5, "FQ-07: each of these says something else");
    assert_eq!((rig.iommu.stats().faults_recorded, rig.iommu.stats().faults_coalesced), (6, 2));
}

#[test]
fn what_the_host_lost_sets_fqof_and_nothing_else() {
    let (mut rig, attachment) = rig(State::FirstStage, false);
    let before: Vec<u64> = (0..1024).step_by(4).map(|offset| rig.read(offset)).collect();
    assert_eq!(rig.iommu.report_lost(0), Progress::Idle);
    assert_eq!(rig.read(register::FQCSR) & register::FQOF, 0);
    assert_eq!(rig.iommu.report_lost(3), Progress::Idle);
    assert_eq!((rig.read(register::FQCSR) & register::FQOF, rig.iommu.stats().faults_lost), (register::FQOF, 3));
    let differs = |(at, &value): (u64, &u64)| (rig.read(at) != value).then_some(at);
    let changed: Vec<u64> = (0..1024).step_by(4).zip(&before).filter_map(differs).collect();
    assert_eq!(changed, [register::FQCSR]);
    // Cleared by the guest, faults go on.
    let _ = rig.iommu.write(register::FQCSR, Width::U32, register::FQOF | register::ENABLE);
    assert_eq!(shown(&mut rig, attachment, &HostFault::new(ReadPageFault, Read, IOVA)), Some(13));
    // A queue that is off has nothing to overflow.
    let _ = rig.iommu.write(register::FQCSR, Width::U32, 0);
    let _ = rig.iommu.report_lost(1);
    assert_eq!(rig.read(register::FQCSR), 0);
}

#[test]
fn a_context_that_became_valid_is_read_again_and_the_fault_is_not_shown() {
    let (mut rig, attachment) = rig(State::NotValid, false);
    rig.directory.set(id(0), &rig.a.context(pscid(1)));
    for cause in [ReadGuestPageFault, DdtNotValid, TransactionTypeDisallowed] {
        assert_eq!(shown(&mut rig, attachment, &HostFault::new(cause, Read, IOVA)), None);
        assert_eq!(rig.context(0), "A/1", "VC-55");
        rig.directory.invalidate(id(0));
        let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
    }
    assert_eq!(rig.iommu.stats().faults_withheld, 3);
}

// VT-04: the walk of the guest's directory yields nothing, and no transition is an excuse.
#[test]
fn a_context_the_host_lost_is_shown_as_an_access_that_reached_nothing() {
    for state in [State::FirstStage, State::Bare] {
        let (mut rig, attachment) = rig(state, false);
        for cause in [DdtNotValid, DdtMisconfigured, DdtLoadAccessFault, TransactionTypeDisallowed] {
            let fault = HostFault::new(cause, Write, IOVA);
            assert_eq!(shown(&mut rig, attachment, &fault), Some(7), "{cause:?}");
        }
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        let expected = if state == State::Bare { Some(5) } else { None };
        let fault = HostFault::new(DdtNotValid, Read, IOVA);
        assert_eq!(shown(&mut rig, attachment, &fault), expected, "a context that changed meanwhile is no loss");
    }
}

// UPD-06, VT-04: "nothing if the physical entry was merely in transition". Until the fence after it completes, the
// device may still meet the empty second stage it was blocked by.
#[test]
fn a_guest_page_fault_in_transition_is_not_shown_as_an_access_fault() {
    for fence in [FENCE, FENCE.accesses(false, false)] {
        let (mut rig, attachment) = rig(State::NotValid, false);
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        rig.physical.set_pending(true);
        let _ = rig.ring([inval_ddt(Some(id(0))), fence.encode()]);
        assert_eq!((rig.context(0).as_str(), rig.passed()), ("A/1", false));
        let fault = HostFault::new(ReadGuestPageFault, Read, IOVA);
        assert_ne!(shown(&mut rig, attachment, &fault), Some(5), "VT-04");
        let _ = rig.complete();
        assert!(rig.passed());
        assert_eq!(shown(&mut rig, attachment, &fault), Some(5), "VT-05: now it is the host's second stage");
    }
}

#[test]
fn a_fault_on_the_way_through_blocked_is_not_shown() {
    let (mut rig, attachment) = rig(State::FirstStage, false);
    rig.physical.hardware().set_strategy(Strategy::ThroughBlocked);
    rig.physical.set_pending(true);
    rig.directory.set(id(0), &rig.b.context(pscid(2)));
    let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
    assert_eq!(rig.context(0), "Blocked");
    for cause in [ReadGuestPageFault, DdtNotValid, TransactionTypeDisallowed] {
        assert_eq!(shown(&mut rig, attachment, &HostFault::new(cause, Read, IOVA)), None);
    }
    let _ = rig.complete();
    assert_eq!(rig.context(0), "B/2");
}

#[test]
fn a_storm_costs_one_walk_for_each_report_and_no_order() {
    let (mut rig, attachment) = rig(State::NotValid, false);
    let _ = rig.memory.take_loads();
    for page in 0..100 {
        let _ = rig.iommu.report_fault(attachment, &HostFault::new(ReadGuestPageFault, Read, Iova::new(page << 12)));
    }
    assert_eq!(rig.memory.take_loads().len(), 100 * 3, "T22");
    assert!(rig.orders().is_empty());
    // 63 fit into the queue of 64; then it is full, which is what fqof says.
    assert_eq!(rig.records().len(), 63);
    assert_eq!(rig.read(register::FQCSR) & register::FQOF, register::FQOF);
}

// A page fault was one of the context it happened under (VT-03); DTF is that context's (FQ-46).
#[test]
fn a_page_fault_that_comes_late_is_shown_as_it_happened() {
    for dtf in [false, true] {
        let (mut rig, attachment) = rig(State::FirstStage, dtf);
        let fault = HostFault::new(ReadPageFault, Read, IOVA);
        rig.directory.set(id(0), &[0; 4]);
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        assert_eq!(rig.context(0), "Blocked");
        assert_eq!(shown(&mut rig, attachment, &fault), (!dtf).then_some(13), "VT-03, FQ-46");
        let _ = rig.ddtp(0);
        assert_eq!(shown(&mut rig, attachment, &fault), (!dtf).then_some(13), "VT-03, FQ-46");
    }
}

// UPD-06 is about blocked states only: from one open context to the next there is none.
#[test]
fn a_hole_in_the_hosts_second_stage_is_shown_also_before_the_guest_fences() {
    let (mut rig, attachment) = rig(State::FirstStage, false);
    rig.directory.set(id(0), &rig.b.context(pscid(2)));
    let _ = rig.ring([inval_ddt(Some(id(0)))]);
    assert_eq!(shown(&mut rig, attachment, &HostFault::new(ReadGuestPageFault, Read, IOVA)), Some(5), "VT-05");
}
