//! Counting, filters and overflow, on registers as a guest writes them.

#![expect(clippy::arithmetic_side_effects, reason = "small numbers")]

use super::*;
use crate::regs::file::Setup;
use crate::regs::{Capabilities, Width};

const IPSR: u64 = 84;
const IOCOUNTOVF: u64 = 88;
const IOCOUNTINH: u64 = 92;
const IOHPMCYCLES: u64 = 96;
const PMIP: u64 = 1 << 2;
const OF: u64 = 1 << 63;

const EVENTS: [Event; 8] = [
    Event::UntranslatedRequest,
    Event::TranslatedRequest,
    Event::AtsTranslationRequest,
    Event::TlbMiss,
    Event::DdtWalk,
    Event::PdtWalk,
    Event::FirstStageWalk,
    Event::SecondStageWalk,
];

/// Device `0x12_3456` without a process and without a stage.
const DEVICE: Tags = Tags { device: DeviceId::truncate(0x12_3456), process: None, gscid: None, pscid: None };

fn iohpmctr(n: u64) -> u64 {
    104 + 8 * (n - 1)
}

fn iohpmevt(n: u64) -> u64 {
    352 + 8 * (n - 1)
}

struct Monitor {
    registers: Registers,
    signals: Signals,
}

impl Monitor {
    fn new(counters: u8) -> Self {
        let capabilities = Capabilities::new().with_hpm(counters != 0);
        let registers = Registers::of(Setup { capabilities, counters, ..Setup::NONE });
        Self { registers, signals: Signals::new() }
    }

    /// One counter, with this event and filter.
    fn counting(iohpmevt1: u64) -> Self {
        let mut monitor = Self::new(1);
        monitor.write(iohpmevt(1), iohpmevt1);
        assert_eq!(monitor.read(iohpmevt(1)), iohpmevt1);
        monitor
    }

    fn write(&mut self, offset: u64, value: u64) {
        let width = if offset < 96 { Width::U32 } else { Width::U64 };
        let _ = self.registers.write(offset, width, value);
    }

    fn read(&self, offset: u64) -> u64 {
        self.registers.read(offset, if offset < 96 { Width::U32 } else { Width::U64 })
    }

    fn count(&mut self, event: Event, times: u32, tags: &Tags) {
        count(&mut self.registers, &mut self.signals, event, times, tags);
    }

    fn cycles(&mut self, cycles: u64) {
        add_cycles(&mut self.registers, &mut self.signals, cycles);
    }
}

/// Whether a counter with this selector counts the event.
fn counted(iohpmevt1: u64, event: Event, tags: &Tags) -> bool {
    let mut monitor = Monitor::counting(iohpmevt1);
    monitor.count(event, 1, tags);
    monitor.read(iohpmctr(1)) == 1
}

#[test]
fn a_counter_counts_its_event_and_no_other() {
    for (event, id) in EVENTS.into_iter().zip(1..) {
        for selector in 0..=8 {
            assert_eq!(counted(selector, event, &DEVICE), selector == id, "HPM-23 to HPM-30: {event:?}, {selector}");
        }
    }
}

#[test]
fn an_event_counts_as_often_as_it_happens_in_every_counter_that_asks_for_it() {
    let mut monitor = Monitor::new(31);
    for n in 1..=31 {
        monitor.write(iohpmevt(n), if n % 2 == 0 { 5 } else { 7 });
    }
    monitor.count(Event::DdtWalk, 3, &DEVICE);
    monitor.count(Event::DdtWalk, 2, &DEVICE);
    monitor.count(Event::FirstStageWalk, u32::MAX, &DEVICE);
    for n in 1..=31 {
        assert_eq!(monitor.read(iohpmctr(n)), if n % 2 == 0 { 5 } else { 0xffff_ffff }, "HPM-31: counter {n}");
    }
}

#[test]
fn a_filter_by_device_and_process_compares_what_it_is_told_to() {
    // device_id 0x123456 and process_id 0xABCDE.
    let (dv, pv) = (0x2000_0000_0000_0000_u64, 0x1000_0000_0000_0000_u64);
    let filter = 0x0123_456a_bcde_0000 | 1;
    let with = |process| Tags { process: Some(ProcessId::truncate(process)), ..DEVICE };
    let other = |tags| Tags { device: DeviceId::truncate(0x12_3457), ..tags };
    let (right, wrong) = (with(0xa_bcde), with(0xa_bcdf));
    // Valid bits, rule, and what counts: both match, process does not, there is none, device does not, neither.
    for (bits, rule, expected) in [
        (0, "HPM-16", [true, true, true, true, true]),
        (pv, "HPM-17", [true, false, false, true, false]),
        (dv, "HPM-18", [true, true, true, false, false]),
        (dv | pv, "HPM-19", [true, false, false, false, false]),
    ] {
        let tags = [right, wrong, DEVICE, other(right), other(wrong)];
        let found = tags.map(|tags| counted(filter | bits, Event::UntranslatedRequest, &tags));
        assert_eq!(found, expected, "{rule}");
    }
}

#[test]
fn a_filter_by_address_space_compares_what_it_is_told_to() {
    // IDT, GSCID 0x4321 and PSCID 0xABCDE.
    let (gv, pv) = (0x2000_0000_0000_0000_u64, 0x1000_0000_0000_0000_u64);
    let filter = 0x4004_321a_bcde_0000 | 8;
    let tags = |gscid: Option<u32>, pscid: Option<u32>| Tags {
        gscid: gscid.map(Gscid::truncate),
        pscid: pscid.map(Pscid::truncate),
        ..DEVICE
    };
    let cases = [
        tags(Some(0x4321), Some(0xa_bcde)),
        tags(Some(0x4321), Some(0xa_bcdd)),
        tags(Some(0x4321), None),
        tags(Some(0x4320), Some(0xa_bcde)),
        tags(None, Some(0xa_bcde)),
        tags(None, None),
    ];
    for (bits, rule, expected) in [
        (0, "HPM-16", [true; 6]),
        (pv, "HPM-20", [true, false, false, true, true, false]),
        (gv, "HPM-21", [true, true, true, false, false, false]),
        (gv | pv, "HPM-22", [true, false, false, false, false, false]),
    ] {
        let found = cases.map(|tags| counted(filter | bits, Event::SecondStageWalk, &tags));
        assert_eq!(found, expected, "{rule}");
    }
    // A device's ids are not looked at: these are its device_id and process_id.
    let device = Tags { process: Some(ProcessId::truncate(0xa_bcde)), ..DEVICE };
    assert!(!counted(0x7123_456a_bcde_0000 | 8, Event::SecondStageWalk, &device), "HPM-14");
}

#[test]
fn a_gscid_has_zeroes_above_its_16_bits() {
    let tags = Tags { gscid: Some(Gscid::truncate(0x4321)), ..DEVICE };
    assert!(counted(0x6004_3210_0000_0004, Event::TlbMiss, &tags), "HPM-21");
    assert!(!counted(0x6014_3210_0000_0004, Event::TlbMiss, &tags), "HPM-11");
    assert!(!counted(0x6804_3210_0000_0004, Event::TlbMiss, &tags), "HPM-11");
}

#[test]
fn an_event_without_an_address_space_is_not_counted_by_one() {
    let tags = Tags { gscid: Some(Gscid::truncate(0)), pscid: Some(Pscid::truncate(0)), ..DEVICE };
    for (event, id) in EVENTS.into_iter().zip(1..) {
        let supported = matches!(id, 4 | 7 | 8);
        for valid in 0..4 {
            let selector = 1 << 62 | valid << 60 | id;
            assert_eq!(counted(selector, event, &tags), supported, "HPM-32, DISC-R08: {event:?}, {valid}");
        }
    }
}

#[test]
fn a_partial_match_leaves_out_the_bits_up_to_the_lowest_zero() {
    // DMASK and DV.
    let selector = |value: u32| 0x2000_0000_0000_8000 | u64::from(value) << 36 | 1;
    let device = |id| Tags { device: DeviceId::truncate(id), ..DEVICE };
    // DID_GSCID, lowest and highest device_id that match, one on each side that does not.
    for (value, low, high) in [
        (0xab_cdeb_u32, 0xab_cde8, 0xab_cdef), // ...011: 8 functions
        (0xab_cd7f, 0xab_cd00, 0xab_cdff),     // 0111 1111: a bus
        (0xab_7fff, 0xab_0000, 0xab_ffff),     // a segment
        (0xab_cdee, 0xab_cdee, 0xab_cdef),     // bit 0 is 0: that bit alone
        (0x7f_ffff, 0, 0xff_ffff),
    ] {
        for id in [low, low | 1, high] {
            assert!(counted(selector(value), Event::UntranslatedRequest, &device(id)), "HPM-33: {value:#x}, {id:#x}");
        }
        for id in [low.wrapping_sub(1), high + 1].into_iter().filter(|id| DeviceId::new(*id).is_ok()) {
            assert!(!counted(selector(value), Event::UntranslatedRequest, &device(id)), "HPM-33: {value:#x}, {id:#x}");
        }
    }
    for id in [0, 0x12_3456, 0xff_ffff] {
        assert!(counted(selector(0xff_ffff), Event::UntranslatedRequest, &device(id)), "HPM-33: all ones");
    }
    // Without DMASK every bit counts; without DV DMASK means nothing.
    let exact = selector(0xab_cdeb) & !0x8000;
    assert!(counted(exact, Event::UntranslatedRequest, &device(0xab_cdeb)), "HPM-09");
    assert!(!counted(exact, Event::UntranslatedRequest, &device(0xab_cdea)), "HPM-09");
    assert!(counted(0x00ab_cdeb << 36 | 0x8001, Event::UntranslatedRequest, &device(0)), "HPM-16, HPM-33");
}

#[test]
fn a_gscid_can_be_matched_in_part() {
    let gscid = |id| Tags { gscid: Some(Gscid::truncate(id)), ..DEVICE };
    let selector = 0x6000_123b_0000_8000_u64 | 7;
    let counts = |id| counted(selector, Event::FirstStageWalk, &gscid(id));
    assert!(!counts(0x1238), "DID_GSCID is 0x0123B here");
    let selector = 0x6001_23b0_0000_8000_u64 | 7;
    let counts = |id| counted(selector, Event::FirstStageWalk, &gscid(id));
    assert!(counts(0x1238) && counts(0x123f) && !counts(0x1237) && !counts(0x1240), "HPM-33");
    assert!(!counted(selector, Event::FirstStageWalk, &DEVICE), "HPM-21: no second stage");
}

#[test]
fn a_counter_that_overflows_says_so_once() {
    let mut monitor = Monitor::counting(5);
    monitor.write(iohpmctr(1), u64::MAX - 1);
    monitor.count(Event::DdtWalk, 1, &DEVICE);
    assert_eq!((monitor.read(iohpmctr(1)), monitor.read(IPSR)), (u64::MAX, 0), "HPM-34");
    monitor.count(Event::DdtWalk, 3, &DEVICE);
    assert_eq!(monitor.read(iohpmctr(1)), 2, "HPM-34: it goes on");
    assert_eq!(monitor.read(iohpmevt(1)), OF | 5, "HPM-15, HPM-34");
    assert_eq!((monitor.read(IOCOUNTOVF), monitor.read(IPSR)), (2, PMIP), "HPM-02, HPM-34, REG-IPSR-03");
    // While OF is 1 there is nothing more to say.
    monitor.write(IPSR, PMIP);
    monitor.write(iohpmctr(1), u64::MAX);
    monitor.count(Event::DdtWalk, 1, &DEVICE);
    assert_eq!((monitor.read(iohpmctr(1)), monitor.read(IPSR)), (0, 0), "HPM-34, HPM-35, REG-IPSR-10");
    // Armed again.
    monitor.write(iohpmevt(1), 5);
    monitor.write(iohpmctr(1), u64::MAX);
    monitor.count(Event::DdtWalk, 1, &DEVICE);
    assert_eq!((monitor.read(iohpmevt(1)), monitor.read(IPSR)), (OF | 5, PMIP), "HPM-34");
}

#[test]
fn an_overflow_of_several_counters_at_once_is_one_interrupt() {
    let mut monitor = Monitor::new(31);
    for n in 1..=31 {
        monitor.write(iohpmevt(n), 1);
        monitor.write(iohpmctr(n), u64::MAX);
    }
    monitor.count(Event::UntranslatedRequest, 1, &DEVICE);
    assert_eq!((monitor.read(IOCOUNTOVF), monitor.read(IPSR)), (0xffff_fffe, PMIP), "HPM-02, REG-IPSR-13");
}

#[test]
fn an_overflow_bit_that_software_sets_interrupts_nobody() {
    let mut monitor = Monitor::counting(OF | 5);
    monitor.write(IOHPMCYCLES, OF);
    monitor.cycles(0);
    monitor.count(Event::DdtWalk, 1, &DEVICE);
    assert_eq!((monitor.read(IOCOUNTOVF), monitor.read(IPSR)), (3, 0), "HPM-36");
    assert_eq!(monitor.read(iohpmctr(1)), 1, "HPM-34: it counts nonetheless");
}

#[test]
fn an_inhibited_counter_stands_still() {
    for inhibited in 0..=31_u64 {
        let mut monitor = Monitor::new(31);
        for n in 1..=31 {
            monitor.write(iohpmevt(n), 4);
            monitor.write(iohpmctr(n), u64::MAX);
        }
        monitor.write(IOHPMCYCLES, OF - 1);
        monitor.write(IOCOUNTINH, 1 << inhibited);
        monitor.count(Event::TlbMiss, 1, &DEVICE);
        monitor.cycles(1);
        assert_eq!(monitor.read(IOCOUNTOVF), 0xffff_ffff & !(1 << inhibited), "HPM-03, HPM-37, DISC-R07: {inhibited}");
        for n in 1..=31 {
            let expected = if n == inhibited { u64::MAX } else { 0 };
            assert_eq!(monitor.read(iohpmctr(n)), expected, "HPM-37, DISC-R07: {inhibited}, {n}");
        }
        let expected = if inhibited == 0 { OF - 1 } else { OF };
        assert_eq!(monitor.read(IOHPMCYCLES), expected, "HPM-03: {inhibited}");
    }
}

#[test]
fn the_cycles_counter_has_63_bits_and_wraps_any_number_of_cycles() {
    let wrap = 1_u64 << 63;
    // Before, cycles, after, and whether it overflows.
    for (before, cycles, after, overflows) in [
        (0, 0, 0, false),
        (0, wrap - 1, wrap - 1, false),
        (wrap - 1, 0, wrap - 1, false),
        (wrap - 1, 1, 0, true),
        (1, wrap - 1, 0, true),
        (5, wrap, 5, true),
        (0, u64::MAX, wrap - 1, true),
        (wrap - 1, u64::MAX, wrap - 2, true),
    ] {
        let mut monitor = Monitor::new(1);
        monitor.write(IOHPMCYCLES, before);
        monitor.cycles(cycles);
        let of = if overflows { OF } else { 0 };
        assert_eq!(monitor.read(IOHPMCYCLES), after | of, "HPM-05, HPM-34: {before:#x} + {cycles:#x}");
        assert_eq!(monitor.read(IOCOUNTOVF), u64::from(overflows), "HPM-01");
        assert_eq!(monitor.read(IPSR), if overflows { PMIP } else { 0 }, "HPM-34");
        // OF stays, and keeps it quiet.
        monitor.write(IPSR, PMIP);
        monitor.write(IOHPMCYCLES, OF | (wrap - 1));
        monitor.cycles(2);
        assert_eq!((monitor.read(IOHPMCYCLES), monitor.read(IPSR)), (OF | 1, 0), "HPM-06, HPM-34");
    }
}

#[test]
fn a_host_is_told_when_the_cycles_counter_overflows() {
    let until = |monitor: &Monitor| cycles_until_overflow(&monitor.registers);
    let mut monitor = Monitor::new(1);
    assert_eq!(until(&monitor), Some(1 << 63));
    monitor.write(IOHPMCYCLES, OF - 10);
    assert_eq!(until(&monitor), Some(10));
    monitor.cycles(9);
    assert_eq!((until(&monitor), monitor.read(IPSR)), (Some(1), 0));
    monitor.write(IOCOUNTINH, 1);
    assert_eq!(until(&monitor), None);
    monitor.write(IOCOUNTINH, 2);
    monitor.cycles(1);
    assert_eq!((until(&monitor), monitor.read(IPSR)), (None, PMIP));
    assert_eq!(until(&Monitor::new(0)), None);
}

#[test]
fn without_counters_nothing_counts() {
    let mut monitor = Monitor::new(0);
    monitor.write(iohpmevt(1), 1);
    monitor.count(Event::UntranslatedRequest, u32::MAX, &DEVICE);
    monitor.cycles(u64::MAX);
    for offset in (96..600).step_by(8) {
        assert_eq!(monitor.read(offset), 0, "REG-ACC-11, REG-MAP-20 to REG-MAP-22: {offset}");
    }
    assert_eq!((monitor.read(IOCOUNTOVF), monitor.read(IPSR)), (0, 0), "REG-IPSR-16");
}

#[test]
fn counters_past_their_number_do_not_count() {
    let mut monitor = Monitor::new(2);
    for n in 1..=31 {
        monitor.write(iohpmevt(n), 1);
    }
    monitor.count(Event::UntranslatedRequest, 1, &DEVICE);
    for n in 1..=31 {
        assert_eq!(monitor.read(iohpmctr(n)), u64::from(n <= 2), "HPM-38");
    }
}
