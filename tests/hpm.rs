//! The performance monitor as a guest sees it: its registers, the cycles its host supplies, its interrupt. What the
//! counters count is tested where it is decided.
//!
//! Rule IDs are those of the register rules; offsets and values are worked out from the specification's diagrams.

#![expect(clippy::expect_used, reason = "a failure is a finding")]

mod common;

use common::Rig;
use riscv_viommu::mock::Event;
use riscv_viommu::mock::guest::register::{
    CAPABILITIES, FCTL, ICVEC, IOCOUNTINH, IOCOUNTOVF, IOHPMCYCLES, IPSR, MSI_CFG_TBL, OF, PMIP, iohpmctr, iohpmevt,
};
use riscv_viommu::{Capabilities, Config, ConfigError, Gpa, InterruptKinds, Post, Progress, Width};

const HPM: u64 = 1 << 30;

const ALL_ONES: u64 = u64::MAX;

fn with_counters(counters: u8) -> Rig {
    Rig::start(Config::emulated().with_counters(counters), InterruptKinds::Msi)
}

// What is offered.

#[test]
fn a_monitor_is_there_where_it_was_configured() {
    let everything = Capabilities::from_bits(ALL_ONES).with_pas(56);
    for (config, hpm) in [
        (Config::emulated(), 0),
        (Config::emulated().with_capabilities(everything), 0),
        (Config::emulated().with_counters(1), HPM),
        (Config::emulated().with_counters(31).with_capabilities(everything), HPM),
        (Config::emulated().with_counters(31).with_counters(0), 0),
        (Config::emulated().with_counters(31).with_capabilities(everything.with_hpm(false)), 0),
        (Config::nested().with_capabilities(everything), 0),
    ] {
        let mut rig = Rig::start(config, InterruptKinds::Msi);
        assert_eq!(rig.read8(CAPABILITIES) & HPM, hpm, "REG-CAP-22, -43: {config:?}");
        rig.write8(IOHPMCYCLES, ALL_ONES);
        rig.write8(iohpmctr(1), ALL_ONES);
        rig.write8(iohpmevt(1), ALL_ONES);
        let present = [IOHPMCYCLES, iohpmctr(1), iohpmevt(1)].map(|offset| rig.read8(offset) != 0);
        assert_eq!(present, [hpm != 0; 3], "REG-CAP-43, REG-ACC-11: {config:?}");
    }
}

#[test]
fn what_can_not_be_counted_is_not_started() {
    for (config, error) in [
        (Config::nested().with_counters(1), ConfigError::EmulatedOnly("HPM")),
        (Config::emulated().with_counters(32), ConfigError::Counters(32)),
        (Config::emulated().with_counters(255), ConfigError::Counters(255)),
        (Config::emulated().with_counters(7).with_mirror(true), ConfigError::MirroredCounters),
    ] {
        let mut rig = Rig::new(InterruptKinds::Msi);
        assert_eq!(rig.iommu.start(&config), Err(error), "REG-CAP-43");
        assert_eq!(rig.iommu.start(&Config::emulated()), Ok(()));
    }
}

// Registers.

#[test]
fn registers_of_a_monitor_that_is_absent_are_zero_and_stay_zero() {
    let mut rig = with_counters(0);
    for offset in (88..600).step_by(4) {
        for width in [Width::U32, Width::U64] {
            assert_eq!(rig.iommu.write(offset, width, ALL_ONES), Progress::Idle);
            assert_eq!(rig.iommu.read(offset, width), 0, "REG-ACC-11, REG-MAP-18 to -22: {offset}");
        }
    }
    assert_eq!(rig.iommu.add_cycles(ALL_ONES), Progress::Idle);
    assert_eq!((rig.iommu.cycles_until_overflow(), rig.read(IPSR)), (None, 0), "REG-IPSR-16");
    assert!((88..600).step_by(4).all(|offset| rig.read(offset) == 0), "REG-MAP-20");
}

#[test]
fn as_many_counters_as_were_configured_are_there() {
    for counters in 1..=31_u8 {
        let mut rig = with_counters(counters);
        let last = u64::from(counters);
        let reset = (88..600).step_by(4).all(|offset| rig.read(offset) == 0);
        assert!(reset, "REG-MAP-18 to -22: 0 after reset");
        for n in 1..=31 {
            rig.write8(iohpmctr(n), ALL_ONES);
            rig.write8(iohpmevt(n), ALL_ONES - 0x7fff);
        }
        for n in 1..=31 {
            let (count, event) = if n <= last { (ALL_ONES, ALL_ONES - 0x7fff) } else { (0, 0) };
            let found = (rig.read8(iohpmctr(n)), rig.read8(iohpmevt(n)));
            assert_eq!(found, (count, event), "HPM-07, HPM-09 to -15, HPM-38, REG-MAP-21, -22: {n} of {counters}");
        }
        rig.write(IOCOUNTINH, ALL_ONES);
        assert_eq!(rig.read(IOCOUNTINH), (2 << last) - 1, "HPM-03, HPM-04: {counters}");
        assert_eq!(rig.read(IOCOUNTOVF), (2 << last) - 2, "HPM-02: {counters}");
        rig.write(IOCOUNTINH, 0);
        assert_eq!(rig.read(IOCOUNTINH), 0, "HPM-03, HPM-04");
        assert_eq!(rig.read(IPSR), 0, "HPM-36");
    }
}

#[test]
fn overflow_bits_are_shown_together_and_only_shown() {
    let mut rig = with_counters(31);
    assert_eq!(rig.read(IOCOUNTOVF), 0);
    for n in 1..=31 {
        rig.write8(iohpmevt(n), OF);
        assert_eq!(rig.read(IOCOUNTOVF), 1 << n, "HPM-02");
        rig.write(IOCOUNTOVF, ALL_ONES);
        rig.write(IOCOUNTOVF, 0);
        assert_eq!((rig.read(IOCOUNTOVF), rig.read8(iohpmevt(n))), (1 << n, OF), "HPM-01, HPM-02: read-only");
        rig.write8(iohpmevt(n), 0);
        assert_eq!(rig.read(IOCOUNTOVF), 0, "HPM-02");
    }
    rig.write(IOHPMCYCLES + 4, OF >> 32);
    assert_eq!((rig.read(IOCOUNTOVF), rig.read8(IOHPMCYCLES)), (1, OF), "HPM-01, HPM-06");
    rig.write(IOHPMCYCLES + 4, 0);
    assert_eq!((rig.read(IOCOUNTOVF), rig.read8(IOHPMCYCLES)), (0, 0), "HPM-01, HPM-06");
}

#[test]
fn an_event_that_is_not_known_leaves_the_one_before() {
    let mut rig = with_counters(1);
    rig.write8(iohpmctr(1), 0x1234);
    for known in 0..=8 {
        rig.write8(iohpmevt(1), known);
        assert_eq!(rig.read8(iohpmevt(1)), known, "HPM-08, HPM-23 to -30");
        for unknown in [9, 255, 256, 0x108, 16383, 16384, 32767] {
            rig.write8(iohpmevt(1), 0xabcd_ef01_2345_8000 | unknown);
            assert_eq!(rig.read8(iohpmevt(1)), 0xabcd_ef01_2345_8000 | known, "HPM-08, DISC-R09: {unknown}");
        }
        assert_eq!(rig.read8(iohpmctr(1)), 0x1234, "HPM-08: the counter keeps its value");
    }
}

#[test]
fn halves_are_written_one_at_a_time() {
    let mut rig = with_counters(2);
    for offset in [IOHPMCYCLES, iohpmctr(2), iohpmevt(2)] {
        rig.write8(offset, 0x1234_5678_9abc_0003);
        rig.write(offset + 4, 0x8765_4321);
        assert_eq!(rig.read8(offset), 0x8765_4321_9abc_0003, "REG-ACC-07 at {offset}");
        rig.write(offset, 0x1357_0004);
        assert_eq!(rig.read8(offset), 0x8765_4321_1357_0004, "REG-ACC-07 at {offset}");
        assert_eq!((rig.read(offset), rig.read(offset + 4)), (0x1357_0004, 0x8765_4321), "REG-ACC-03 at {offset}");
    }
    // The steps of a 32-bit driver: no event, high half, low half with the event.
    rig.write8(iohpmevt(1), 0x3000_0010_0001_0005);
    rig.write(iohpmevt(1), 0);
    assert_eq!(rig.read8(iohpmevt(1)), 0x3000_0010_0000_0000, "HPM-40");
    rig.write(iohpmevt(1) + 4, 0x2123_4560);
    assert_eq!(rig.read8(iohpmevt(1)), 0x2123_4560_0000_0000, "HPM-40");
    rig.write(iohpmevt(1), 0x8001);
    assert_eq!(rig.read8(iohpmevt(1)), 0x2123_4560_0000_8001, "HPM-40");
}

#[test]
fn an_access_covers_one_register() {
    let mut rig = with_counters(31);
    assert_eq!(rig.iommu.write(IOCOUNTOVF, Width::U64, ALL_ONES), Progress::Idle);
    assert_eq!((rig.read8(IOCOUNTOVF), rig.read(IOCOUNTINH)), (0, 0), "REG-ACC-09");
    for offset in (100..600).step_by(8) {
        assert_eq!(rig.iommu.write(offset, Width::U64, ALL_ONES), Progress::Idle);
        assert_eq!(rig.read8(offset), 0, "REG-ACC-08: {offset}");
    }
    assert!((88..600).step_by(4).all(|offset| rig.read(offset) == 0), "REG-ACC-08, -09");
}

// Cycles.

#[test]
fn cycles_are_those_the_host_supplies() {
    let mut rig = with_counters(1);
    assert_eq!(rig.iommu.add_cycles(5), Progress::Idle);
    assert_eq!(rig.iommu.add_cycles(0x1_0000_0000), Progress::Idle);
    assert_eq!(rig.read8(IOHPMCYCLES), 0x1_0000_0005, "HPM-05, HPM-41");
    rig.write8(IOHPMCYCLES, 100);
    rig.write(IOCOUNTINH, 1);
    assert_eq!(rig.iommu.add_cycles(1000), Progress::Idle);
    assert_eq!((rig.read8(IOHPMCYCLES), rig.iommu.cycles_until_overflow()), (100, None), "HPM-03");
    rig.write(IOCOUNTINH, 0b10);
    assert_eq!(rig.iommu.cycles_until_overflow(), Some(OF - 100), "HPM-41");
    assert_eq!(rig.iommu.add_cycles(10), Progress::Idle);
    assert_eq!(rig.read8(IOHPMCYCLES), 110, "HPM-37, DISC-R07: counter 1 is another");
}

#[test]
fn before_the_start_no_cycle_counts() {
    let mut rig = Rig::new(InterruptKinds::Both);
    assert_eq!(rig.iommu.add_cycles(ALL_ONES), Progress::Idle);
    assert_eq!(rig.iommu.cycles_until_overflow(), None);
    assert_eq!(rig.iommu.start(&Config::emulated().with_counters(1)), Ok(()));
    assert_eq!((rig.read8(IOHPMCYCLES), rig.read(IPSR)), (0, 0));
}

#[test]
fn an_overflow_is_a_message_of_the_vector_of_the_monitor() {
    let mut rig = with_counters(1);
    let file = Gpa::new(0x2800_3000);
    rig.memory.interrupt_page(file);
    rig.write8(ICVEC, 0x0300);
    rig.write8(MSI_CFG_TBL + 16 * 3, file.get());
    rig.write(MSI_CFG_TBL + 16 * 3 + 8, 0x43);
    rig.write8(IOHPMCYCLES, OF - 2);
    rig.forget_accesses();
    let _ = rig.iommu.add_cycles(1);
    assert_eq!((rig.read(IPSR), rig.memory.take_events()), (0, vec![]), "HPM-34");
    assert_eq!(rig.iommu.cycles_until_overflow(), Some(1), "HPM-41");
    let _ = rig.iommu.add_cycles(1);
    assert_eq!((rig.read8(IOHPMCYCLES), rig.read(IOCOUNTOVF), rig.read(IPSR)), (OF, 1, PMIP), "HPM-34, REG-IPSR-03");
    let message = [Event::Post(file, 0x43, Post::Interrupt)];
    assert_eq!(rig.memory.take_events(), message, "REG-IPSR-14");
    // Neither more cycles nor the clear of the pending bit sends another: OF is still 1.
    let _ = rig.iommu.add_cycles(OF);
    rig.write(IPSR, PMIP);
    let _ = rig.iommu.add_cycles(OF);
    assert_eq!((rig.read(IPSR), rig.memory.take_events()), (0, vec![]), "HPM-34, HPM-35, REG-IPSR-10");
    // Pending already, a second overflow is no second message.
    for _ in 0..2 {
        rig.write8(IOHPMCYCLES, OF - 1);
        let _ = rig.iommu.add_cycles(1);
    }
    assert_eq!((rig.read(IPSR), rig.memory.take_events()), (PMIP, message.into()), "REG-IPSR-13");
    rig.write8(IOHPMCYCLES, 0);
    assert_eq!(rig.read(IPSR), PMIP, "REG-IPSR-08");
}

#[test]
fn an_overflow_under_a_mask_is_a_message_later() {
    let mut rig = with_counters(1);
    let file = Gpa::new(0x2800_0000);
    rig.memory.interrupt_page(file);
    rig.write8(MSI_CFG_TBL, file.get());
    rig.write(MSI_CFG_TBL + 12, 1);
    rig.write8(IOHPMCYCLES, OF - 1);
    rig.forget_accesses();
    let _ = rig.iommu.add_cycles(1);
    assert_eq!((rig.read(IPSR), rig.memory.take_events()), (PMIP, vec![]), "REG-MSI-10");
    rig.write(MSI_CFG_TBL + 12, 0);
    assert_eq!(rig.memory.take_events(), [Event::Post(file, 0, Post::Interrupt)], "REG-MSI-10, -11");
}

#[test]
fn an_overflow_holds_its_wire_until_it_is_cleared() {
    let mut rig = Rig::start(Config::emulated().with_counters(1), InterruptKinds::Both);
    rig.write(FCTL, 2);
    rig.write8(ICVEC, 0x0210);
    rig.write8(IOHPMCYCLES, OF - 1);
    let _ = rig.iommu.add_cycles(1);
    assert_eq!((rig.read(IPSR), rig.wires.levels()), (PMIP, 1 << 2), "REG-WSI-01, REG-IPSR-14");
    rig.write8(ICVEC, 0x0110);
    assert_eq!(rig.wires.levels(), 1 << 1, "REG-WSI-01");
    rig.write(IPSR, PMIP);
    assert_eq!(rig.wires.levels(), 0, "REG-IPSR-09, REG-IPSR-10");
}

#[test]
fn an_overflow_bit_that_the_guest_sets_interrupts_nobody() {
    let mut rig = with_counters(31);
    rig.write8(IOHPMCYCLES, OF);
    for n in 1..=31 {
        rig.write8(iohpmevt(n), OF | 1);
    }
    let _ = rig.iommu.add_cycles(ALL_ONES);
    assert_eq!((rig.read(IOCOUNTOVF), rig.read(IPSR)), (0xffff_ffff, 0), "HPM-36");
    assert_eq!(rig.iommu.cycles_until_overflow(), None, "HPM-34");
}

#[test]
fn a_reset_forgets_what_was_counted() {
    let mut rig = with_counters(7);
    for offset in (88..600).step_by(4) {
        rig.write(offset, 0xffff_8005);
    }
    rig.write8(IOHPMCYCLES, OF - 1);
    let _ = rig.iommu.add_cycles(1);
    rig.write(IOCOUNTINH, 1);
    let _ = rig.iommu.reset();
    assert!((88..600).step_by(4).all(|offset| rig.read(offset) == 0), "REG-RST-01");
    assert_eq!((rig.read(IPSR), rig.read8(CAPABILITIES) & HPM), (0, HPM), "REG-MAP-17");
    rig.write8(iohpmevt(8), 1);
    rig.write8(iohpmevt(7), 1);
    assert_eq!((rig.read8(iohpmevt(7)), rig.read8(iohpmevt(8))), (1, 0), "HPM-38");
    let _ = rig.iommu.add_cycles(3);
    assert_eq!(rig.read8(IOHPMCYCLES), 3);
}
