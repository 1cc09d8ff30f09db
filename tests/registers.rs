//! The register page as a guest sees it: accesses, fields, state machines, reset and the mirror page.
//!
//! Rule IDs are those of the register rules; offsets and values are worked out from the specification's diagrams.

#![expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "small numbers, and a failure is a finding")]

mod common;

use common::{COMMANDS, DEVICE, FAULTS, ILLEGAL, Rig};
use proptest::prelude::*;
use proptest::sample::select;
use riscv_viommu::mock::guest::register::{
    BUSY, CAPABILITIES, CMD_ILL, CMD_TO, CQB, CQCSR, CQH, CQT, DDTP, DDTP_BUSY, ENABLE, FCTL, FENCE_W_IP, FQB, FQCSR,
    FQH, FQOF, FQT, ICVEC, INTERRUPT_ENABLE, IPSR, MEMORY_FAULT, MSI_CFG_TBL, ON,
};
use riscv_viommu::mock::guest::{Iofence, inval_ddt};
use riscv_viommu::mock::{Event, tables};
use riscv_viommu::{
    Attachment, Capabilities, Cause, Config, ConfigError, DeviceId, FenceOutcome, Gpa, Gxl, HostFault, InterruptKinds,
    Iova, MemoryFault, Post, Progress, TransactionType, Width,
};

const ALL_ONES: u64 = u64::MAX;

/// Offset and width of every register there is without ATS, HPM, DBG and QOSID (table REG-MAP).
fn map() -> Vec<(u64, u64)> {
    let mut map = vec![(0, 8), (8, 4), (16, 8), (24, 8), (32, 4), (36, 4), (40, 8), (48, 4), (52, 4)];
    map.extend([(72, 4), (76, 4), (84, 4), (760, 8)]);
    map.extend((768..1024).step_by(16).flat_map(|entry| [(entry, 8), (entry + 8, 4), (entry + 12, 4)]));
    map
}

/// The register an access reads, and the bit its lowest byte is at: `None` if it is not legal (REG-ACC-03).
fn target(map: &[(u64, u64)], offset: u64, bytes: u64) -> Option<((u64, u64), u64)> {
    let hits = |&&(at, width): &&(u64, u64)| {
        (offset, bytes) == (at, width) || (width == 8 && bytes == 4 && (offset == at || offset == at + 4))
    };
    map.iter().find(hits).map(|&(at, width)| ((at, width), (offset - at) * 8))
}

fn value(rig: &Rig, (offset, width): (u64, u64)) -> u64 {
    if width == 8 { rig.read8(offset) } else { rig.read(offset) }
}

fn snapshot(rig: &Rig) -> Vec<(u64, u64)> {
    map().into_iter().map(|register| (register.0, value(rig, register))).collect()
}

fn emulated() -> Rig {
    Rig::start(Config::emulated(), InterruptKinds::Msi)
}

/// With everything that makes a bit writable: both kinds of interrupt, END, 16 vectors.
fn full() -> Rig {
    Rig::start(Config::emulated().with_big_endian(true).with_vectors(16), InterruptKinds::Both)
}

/// A guest that has put something into every register.
fn in_use() -> Rig {
    let mut rig = full();
    rig.write8(ICVEC, 0x4321);
    for vector in 0..16 {
        let entry = MSI_CFG_TBL + 16 * vector;
        rig.write8(entry, 0x12_2800_0000 | vector << 12);
        rig.write(entry + 8, 0x8000_0100 + vector);
        // The vector of the command queue is masked: nothing is sent.
        rig.write(entry + 12, vector & 1);
    }
    let mut commands = rig.command_queue(4, ENABLE | INTERRUPT_ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(), ILLEGAL, ILLEGAL]));
    rig.fault_queue(3, ENABLE | INTERRUPT_ENABLE);
    rig.write(FQH, 5);
    rig.write8(DDTP, 0x12_3456_789a << 10 | 4);
    rig
}

fn page_fault(page: u64) -> HostFault {
    HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(page << 12))
}

// Accesses (section 1).

#[test]
fn an_access_that_is_not_legal_reads_zero_and_writes_nothing() {
    let mut rig = in_use();
    let (map, before) = (map(), snapshot(&rig));
    for offset in (0..4096 + 32).chain(u64::MAX - 32..=u64::MAX) {
        for bytes in 0..=17 {
            let mut buffer = [0xa5; 18];
            let width = u64::try_from(bytes).unwrap();
            rig.iommu.mmio_read(offset, &mut buffer[..bytes]);
            assert!(buffer[bytes..].iter().all(|&byte| byte == 0xa5), "{bytes} bytes at {offset}");
            if let Some((register, bit)) = target(&map, offset, width) {
                let expected = (value(&rig, register) >> bit).to_le_bytes();
                assert_eq!(buffer[..bytes], expected[..bytes], "REG-ACC-02, -03: {bytes} bytes at {offset}");
            } else {
                assert!(
                    buffer[..bytes].iter().all(|&byte| byte == 0),
                    "REG-ACC-08, DISC-R12: {bytes} bytes at {offset}"
                );
                let _ = rig.iommu.mmio_write(offset, &[0xff; 17][..bytes]);
            }
        }
        assert_eq!(snapshot(&rig), before, "REG-ACC-01, -08, -09, -12, -13: after stores at {offset}");
    }
}

#[test]
fn an_access_of_a_width_the_crate_takes_is_legal_only_within_one_register() {
    let mut rig = in_use();
    let (map, before) = (map(), snapshot(&rig));
    for offset in (0..4096 + 16).chain(u64::MAX - 16..=u64::MAX) {
        for (width, bytes) in [(Width::U32, 4), (Width::U64, 8)] {
            if target(&map, offset, bytes).is_none() {
                assert_eq!(rig.iommu.read(offset, width), 0, "REG-ACC-08, -09: {bytes} bytes at {offset}");
                let _ = rig.iommu.write(offset, width, ALL_ONES);
            }
        }
    }
    assert_eq!(snapshot(&rig), before, "REG-ACC-08, -09");
}

#[test]
fn registers_are_little_endian_whatever_fctl_be_says() {
    let mut rig = full();
    rig.write(FCTL, 1);
    assert_eq!(rig.read(FCTL), 1);
    let _ = rig.iommu.mmio_write(CQB, &[0x09, 0x04, 0, 0x20, 0, 0, 0, 0]);
    assert_eq!(rig.read8(CQB), 0x2000_0409, "REG-ACC-02");
    let mut bytes = [0; 4];
    rig.iommu.mmio_read(CQB, &mut bytes);
    assert_eq!(bytes, [0x09, 0x04, 0, 0x20], "REG-ACC-02, END-11, EDN-04");
}

#[test]
fn a_4_byte_store_ignores_what_is_above_its_value() {
    let mut rig = full();
    rig.write8(CQB, 0x1f);
    rig.write(CQT, ALL_ONES << 32 | 7);
    rig.write(CQB + 4, ALL_ONES << 32 | 3);
    assert_eq!((rig.read(CQT), rig.read8(CQB)), (0, 3 << 32 | 0x1f), "REG-ACC-03");
    rig.write(CQT, ALL_ONES << 32 | 7);
    assert_eq!(rig.read(CQT), 7, "REG-ACC-03");
}

#[test]
fn a_half_write_keeps_the_other_half_as_it_is_stored() {
    // Register, what all ones leave in it, and in each half.
    for (offset, whole) in [
        (CQB, 0x003f_ffff_ffff_fc1f_u64),
        (FQB, 0x003f_ffff_ffff_fc1f),
        (MSI_CFG_TBL, 0x00ff_ffff_ffff_fffc),
        (ICVEC, 0xffff),
    ] {
        let (low, high) = (whole & 0xffff_ffff, whole & !0xffff_ffff);
        let mut rig = full();
        rig.write(offset + 4, ALL_ONES);
        assert_eq!(rig.read8(offset), high, "REG-ACC-06, -07 at {offset}");
        rig.write(offset, ALL_ONES);
        assert_eq!(rig.read8(offset), whole, "REG-ACC-06, -07 at {offset}");
        assert_eq!((rig.read(offset), rig.read(offset + 4)), (low, high >> 32), "REG-ACC-03 at {offset}");
        rig.write(offset + 4, 0);
        assert_eq!(rig.read8(offset), low, "REG-ACC-07 at {offset}");
        rig.write(offset + 4, ALL_ONES);
        rig.write(offset, 0);
        assert_eq!(rig.read8(offset), high, "REG-ACC-07 at {offset}");
    }
}

#[test]
fn every_half_write_has_the_side_effects_of_a_write() {
    for (base, index) in [(CQB, CQT), (FQB, FQH)] {
        for half in [0, 4] {
            let mut rig = emulated();
            rig.write8(base, 0x2000_0009);
            rig.write(index, 77);
            assert_eq!(rig.read(index), 77);
            rig.write(base + half, 0x2000_0009 >> (half * 8));
            assert_eq!(rig.read(index), 0, "REG-ACC-07, REG-QB-08: half {half} of {base}");
            assert_eq!(rig.read8(base), 0x2000_0009, "REG-QB-11");
        }
    }
}

#[test]
fn an_8_byte_write_has_its_side_effects_once() {
    let mut rig = Rig::start(Config::nested().with_mirror(true), InterruptKinds::Msi);
    let _ = rig.attach();
    let directory = tables::Directory::new(&rig.memory, 3, false);
    directory.set(DeviceId::truncate(DEVICE), &tables::bare());
    let publishes = |rig: &Rig| {
        let events = rig.memory.take_events().into_iter();
        events.filter(|event| matches!(event, Event::Publish(..))).collect::<Vec<_>>()
    };
    // Halves as the registers show them; ddtp is at 16 and 20.
    let halves = |at: u16, value: u64| {
        [(at, value & 0xffff_ffff), (at + 4, value >> 32)]
            .map(|(at, half)| Event::Publish(at, u32::try_from(half).expect("32 bits")))
    };
    let ddtp = directory.ddtp() | 1 << 40;
    rig.forget_accesses();
    rig.write8(DDTP, ddtp);
    let mut events = publishes(&rig);
    events.sort_by_key(|event| if let Event::Publish(at, _) = event { *at } else { 0 });
    assert_eq!(events, halves(16, ddtp), "REG-ACC-05: each half once");
    rig.write8(DDTP, 0);
    rig.forget_accesses();
    rig.write8(DDTP, directory.ddtp());
    let loads = rig.memory.take_loads();
    let context = directory.entry_address(DeviceId::truncate(DEVICE));
    let walks = loads.iter().filter(|(at, _)| *at == context).count();
    assert_eq!((walks, loads.len()), (1, 3), "REG-ACC-05: one walk of 3 levels: {loads:x?}");
    // 8 bytes over two registers, cqh and cqt, are no doorbell at all.
    let mut commands = rig.command_queue(3, ENABLE);
    let cqt = commands.push(Iofence::PLAIN.encode());
    rig.write8(CQH, cqt << 32);
    assert_eq!((rig.read(CQH), rig.read(CQT)), (0, 0), "REG-ACC-08");
}

#[test]
fn reads_have_no_side_effects() {
    let rig = in_use();
    rig.forget_accesses();
    let before = (snapshot(&rig), rig.wires.levels());
    for offset in 0..4096 {
        let _ = (rig.read(offset), rig.read8(offset));
    }
    assert_eq!((snapshot(&rig), rig.wires.levels()), before, "REG-ACC-10");
    assert_eq!((rig.memory.take_events(), rig.memory.take_loads()), (vec![], vec![]), "REG-ACC-10");
}

#[test]
fn what_is_absent_or_reserved_is_zero_and_stays_zero() {
    let everything = Capabilities::from_bits(u64::MAX).with_pas(56);
    let mut rig = Rig::start(Config::emulated().with_capabilities(everything).with_vectors(16), InterruptKinds::Both);
    let map = map();
    let before = snapshot(&rig);
    for width in [8, 4] {
        for offset in (0..4096).step_by(4).filter(|&offset| target(&map, offset, 4).is_none()) {
            // ATS 56..72 and 80, HPM 88..600, DBG 600..624, QOSID 624, custom 12 and 688..760, the rest is reserved.
            let width = if width == 8 { Width::U64 } else { Width::U32 };
            let _ = rig.iommu.write(offset, width, ALL_ONES);
            assert_eq!(
                rig.iommu.read(offset, width),
                0,
                "REG-ACC-11 to -13, REG-MAP-11 to -13, -16, -18 to -28, -30 to -33, DISC-R05: {offset}"
            );
            assert_eq!(rig.read(offset), 0, "REG-ACC-11 to -13: {offset}");
        }
    }
    assert_eq!(snapshot(&rig), before);
    assert_eq!(rig.read8(80), 0, "REG-CAP-47, REG-PQCSR-10, REG-QB-12, DISC-R02");
}

#[test]
fn reserved_and_custom_fields_read_zero_after_all_ones() {
    let expected: [(u64, u64, &str); 12] = [
        (FCTL, 0x3, "REG-FCTL-03 to -05"),
        (DDTP, 0, "REG-DDTP-01: mode 15"),
        (CQB, 0x003f_ffff_ffff_fc1f, "REG-QB-01 to -04"),
        (CQH, 0, "REG-QI-01"),
        (CQT, 0xffff_ffff, "REG-QI-02"),
        (FQB, 0x003f_ffff_ffff_fc1f, "REG-QB-01 to -04"),
        (FQH, 0xffff_ffff, "REG-QI-03"),
        (FQT, 0, "REG-QI-04"),
        (FQCSR, 0x0001_0003, "REG-FQCSR-03 to -09"),
        // Turned on, the queue fetches from where there is no memory.
        (CQCSR, 0x0001_0103, "REG-CQCSR-03 to -12"),
        (IPSR, 1, "REG-IPSR-05 to -07, -16"),
        (ICVEC, 0xffff, "REG-ICVEC-05, -06"),
    ];
    let mut rig = full();
    for (offset, value, rules) in expected {
        rig.write8(offset, ALL_ONES);
        rig.write(offset, ALL_ONES);
        assert_eq!(rig.read8(offset) | rig.read(offset), value, "REG-ACC-14, ATTR-06, {rules}");
    }
    let mut rig = full();
    rig.write8(DDTP, ALL_ONES << 4 | 1);
    assert_eq!(rig.read8(DDTP), 0x003f_ffff_ffff_fc01, "REG-ACC-14, REG-DDTP-02, -03, -05");
    for entry in (MSI_CFG_TBL..1024).step_by(16) {
        rig.write8(entry, ALL_ONES);
        rig.write(entry + 8, ALL_ONES);
        rig.write(entry + 12, ALL_ONES);
        let read = (rig.read8(entry), rig.read(entry + 8), rig.read(entry + 12));
        assert_eq!(read, (0x00ff_ffff_ffff_fffc, 0xffff_ffff, 1), "REG-MSI-01 to -07 at {entry}");
    }
}

#[test]
fn a_vector_of_a_cause_that_is_absent_is_never_pending() {
    let mut rig = full();
    rig.write(IPSR, 0xf);
    assert_eq!(rig.read(IPSR), 0, "REG-IPSR-16, ATTR-03");
}

// capabilities (section 3).

#[test]
fn only_what_is_implemented_is_offered() {
    let everything = Config::emulated().with_capabilities(Capabilities::from_bits(u64::MAX).with_pas(56));
    let asked_for =
        everything.with_gxl(Gxl::Writable).with_ats(true).with_debug(true).with_counters(1).with_qos_bits(12);
    let nested = Config::nested().with_capabilities(Capabilities::from_bits(u64::MAX).with_pas(56));
    let cases = [
        (Config::emulated(), 0x0df8_0100_ce10),
        (everything, 0x0df8_09ee_ce10),
        (asked_for, 0x0ff8_cfef_cf10),
        (nested, 0x0c38_0840_0e10),
        (Config::emulated().with_capabilities(Capabilities::new().with_pas(32)), 0x0020_0000_0010),
        (Config::emulated().with_big_endian(true), 0x0df8_0900_ce10),
        // No T2GPA without a second stage.
        (Config::emulated().with_ats(true), 0x0df8_0300_ce10),
        (Config::emulated().with_extended_contexts(true), 0x0df8_0140_ce10),
        (Config::emulated().with_second_stage(true), 0x0df8_010e_ce10),
        (Config::emulated().with_pas(40), 0x0de8_0100_ce10),
    ];
    for (config, literal) in cases {
        for (kinds, igs) in [(InterruptKinds::Msi, 0), (InterruptKinds::Wired, 1), (InterruptKinds::Both, 2)] {
            let mut rig = Rig::start(config, kinds);
            let expected = literal | igs << 28;
            assert_eq!(rig.read8(CAPABILITIES), expected, "REG-CAP-01 to -32, -42, -48, -49");
            rig.write8(CAPABILITIES, ALL_ONES);
            rig.write8(CAPABILITIES, 0);
            rig.write(CAPABILITIES, 0);
            rig.write(CAPABILITIES + 4, ALL_ONES);
            assert_eq!(rig.read8(CAPABILITIES), expected, "REG-CAP-57");
            assert_eq!(rig.read(CAPABILITIES + 4), expected >> 32, "REG-ACC-03");
        }
    }
}

#[test]
fn what_the_specification_does_not_allow_is_not_started() {
    let offer = |capabilities: Capabilities| Config::emulated().with_capabilities(capabilities.with_pas(56));
    let mut refused = vec![
        (offer(Capabilities::new().with_sv57(true).with_sv39(true)), ConfigError::ModeOrder),
        (offer(Capabilities::new().with_sv48(true)), ConfigError::ModeOrder),
        (Config::emulated().with_budget(0), ConfigError::Budget),
    ];
    refused.extend([0, 31, 57, 63].map(|pas| (Config::emulated().with_pas(pas), ConfigError::Pas(pas))));
    refused.extend([64, 255].map(|pas| (Config::emulated().with_pas(pas), ConfigError::Pas(63))));
    refused.extend(
        [0, 3, 5, 12, 17, 32].map(|count| (Config::emulated().with_vectors(count), ConfigError::Vectors(count))),
    );
    for (config, error) in refused {
        let mut rig = Rig::new(InterruptKinds::Both);
        assert_eq!(rig.iommu.start(&config), Err(error), "REG-CAP-40, -45, REG-ICVEC-07");
        assert_eq!(rig.read8(CAPABILITIES), 0, "still not started");
        assert_eq!(rig.iommu.start(&Config::emulated()), Ok(()));
        assert_eq!(rig.iommu.start(&Config::emulated()), Err(ConfigError::AlreadyStarted));
    }
}

// fctl (section 4).

#[test]
fn fctl_takes_what_the_platform_lets_the_guest_choose() {
    // Kinds, END, after reset, after all ones, after 0.
    for (kinds, end, reset, ones, zero) in [
        (InterruptKinds::Msi, false, 0, 0, 0),
        (InterruptKinds::Msi, true, 0, 1, 0),
        (InterruptKinds::Wired, false, 2, 2, 2),
        (InterruptKinds::Wired, true, 2, 3, 2),
        (InterruptKinds::Both, false, 0, 2, 0),
        (InterruptKinds::Both, true, 0, 3, 0),
    ] {
        let mut rig = Rig::start(Config::emulated().with_big_endian(end), kinds);
        assert_eq!(rig.read(FCTL), reset, "REG-FCTL-06, REG-RST-04, DISC-R20: {kinds:?}");
        rig.write(FCTL, ALL_ONES);
        assert_eq!(rig.read(FCTL), ones, "REG-FCTL-01 to -05, REG-CAP-20: {kinds:?}, END {end}");
        rig.write(FCTL, 0);
        assert_eq!(rig.read(FCTL), zero, "REG-FCTL-01, -02: {kinds:?}, END {end}");
    }
}

#[test]
fn fctl_does_not_change_while_anything_is_on() {
    let on: [(u64, u64, u64); 6] =
        [(DDTP, 1, 0), (DDTP, 2, 0), (DDTP, 3, 0), (DDTP, 4, 0), (CQCSR, ENABLE, 0), (FQCSR, ENABLE, 0)];
    for (offset, enable, disable) in on {
        let mut rig = full();
        rig.write(FCTL, 1);
        rig.write(offset, enable);
        for value in [0, 2, 3] {
            rig.write(FCTL, value);
            assert_eq!(rig.read(FCTL), 1, "REG-FCTL-07, -08: {enable} at {offset}");
        }
        rig.write(offset, disable);
        rig.write(FCTL, 2);
        assert_eq!(rig.read(FCTL), 2, "REG-FCTL-07");
    }
}

// ddtp (section 5).

#[test]
fn ddtp_takes_the_steps_of_the_transition_table() {
    for from in 0..=4_u64 {
        for to in 0..=15_u64 {
            for write in [Rig::write8, Rig::write] {
                let mut rig = emulated();
                let old = 0x1234 << 10 | from;
                rig.write8(DDTP, old);
                assert_eq!(rig.read8(DDTP), old, "REG-DDTP-06: Off to {from}");
                let new = 0x8765 << 10 | to;
                write(&mut rig, DDTP, new);
                // REG-DDTP-01: 5 to 15 are no modes. REG-DDTP-10: no step from one directory to another.
                let is_step = to <= 4 && !(from >= 2 && to >= 2);
                let expected = if is_step { new } else { old };
                assert_eq!(
                    rig.read8(DDTP),
                    expected,
                    "REG-DDTP-01, -04, -06 to -10, -19, ATTR-05, DISC-R15: {from} to {to}"
                );
            }
        }
    }
}

#[test]
fn a_split_write_of_ddtp_has_its_high_half_first() {
    for mode in [0, 1] {
        let mut rig = emulated();
        rig.write(DDTP, mode);
        rig.write(DDTP + 4, 0x12_3456);
        assert_eq!(rig.read8(DDTP), 0x12_3456 << 32 | mode, "REG-DDTP-15 in mode {mode}");
        rig.write(DDTP, 0x789a_bc04);
        assert_eq!(rig.read8(DDTP), 0x0012_3456_789a_bc04, "REG-DDTP-15, REG-ACC-06");
        rig.write(DDTP + 4, 0);
        assert_eq!(rig.read8(DDTP), 0x0012_3456_789a_bc04, "REG-DDTP-15: the same mode again");
    }
}

#[test]
fn busy_and_reserved_bits_of_ddtp_are_not_written() {
    let mut rig = emulated();
    rig.write8(DDTP, 0xffc0_0000_0000_03f1);
    assert_eq!(rig.read8(DDTP), 1, "REG-DDTP-02, -03, -05");
}

#[test]
fn ddtp_is_busy_until_its_mode_is_in_force_and_ignores_writes_until_then() {
    let mut rig = Rig::start(Config::nested().with_big_endian(true), InterruptKinds::Msi);
    let _ = rig.attach();
    rig.hold_fences();
    rig.write8(DDTP, 0x77 << 10 | 1);
    assert_eq!(rig.read8(DDTP), 0x77 << 10 | 1 | DDTP_BUSY, "REG-DDTP-02");
    for write in [0, 2, 0x99 << 10 | 1] {
        rig.write8(DDTP, write);
        rig.write(DDTP, write);
        rig.write(DDTP + 4, 1);
        assert_eq!(rig.read8(DDTP), 0x77 << 10 | 1 | DDTP_BUSY, "REG-DDTP-11");
    }
    rig.end_fences(FenceOutcome::Complete);
    assert_eq!(rig.read8(DDTP), 0x77 << 10 | 1, "REG-DDTP-02, SYNC-02");
    rig.hold_fences();
    rig.write8(DDTP, 0);
    assert_eq!(rig.read8(DDTP), DDTP_BUSY, "REG-DDTP-12, SYNC-01");
    rig.write(FCTL, 1);
    assert_eq!(rig.read(FCTL), 0, "REG-FCTL-07: the old mode is still in force");
    rig.end_fences(FenceOutcome::Complete);
    rig.write(FCTL, 1);
    assert_eq!((rig.read8(DDTP), rig.read(FCTL)), (0, 1), "REG-DDTP-12");
}

#[test]
fn page_numbers_and_addresses_are_cut_to_the_physical_address_size() {
    for (pas, ppn, address) in [
        (32, 0x0000_0000_3fff_fc00_u64, 0xffff_fffc_u64),
        (39, 0x0000_001f_ffff_fc00, 0x7f_ffff_fffc),
        (50, 0x0000_ffff_ffff_fc00, 0x3_ffff_ffff_fffc),
        (55, 0x001f_ffff_ffff_fc00, 0x7f_ffff_ffff_fffc),
        (56, 0x003f_ffff_ffff_fc00, 0xff_ffff_ffff_fffc),
    ] {
        let mut rig = Rig::start(Config::emulated().with_pas(pas), InterruptKinds::Msi);
        rig.write8(CQB, ALL_ONES);
        rig.write8(FQB, ALL_ONES);
        rig.write8(MSI_CFG_TBL, ALL_ONES);
        assert_eq!((rig.read8(CQB), rig.read8(FQB)), (ppn | 0x1f, ppn | 0x1f), "REG-QB-03 with PAS {pas}");
        assert_eq!(rig.read8(MSI_CFG_TBL), address, "REG-MSI-03, -16 with PAS {pas}");
        for mode in 0..=4 {
            rig.write8(DDTP, ALL_ONES << 10 | mode);
            assert_eq!(rig.read8(DDTP), ppn | mode, "REG-DDTP-04 with PAS {pas}");
            rig.write8(DDTP, 0);
        }
    }
}

// Queue bases and indices (sections 6 and 7).

#[test]
fn the_linux_driver_probes_bases_and_gets_what_it_wrote() {
    for (base, index, csr) in [(CQB, CQT, CQCSR), (FQB, FQH, FQCSR)] {
        let mut rig = emulated();
        rig.memory.map(COMMANDS, 0x1000);
        rig.write8(base, 0x1f);
        assert_eq!(rig.read8(base), 0x1f, "GDRV-01, REG-QB-10: no fixed place, the size is free");
        rig.write(index, ALL_ONES);
        for log2 in 1..=32_u64 {
            let real = COMMANDS.get() >> 2 | (log2 - 1);
            rig.write8(base, real);
            assert_eq!((rig.read8(base), rig.read(index)), (real, 0), "GDRV-01, GDRV-02, REG-QB-01, -03, -08");
        }
        let real = COMMANDS.get() >> 2 | 7;
        rig.write8(base, real);
        // Enables with the error bits it wants cleared.
        rig.write(csr, ENABLE | INTERRUPT_ENABLE | MEMORY_FAULT);
        assert_eq!(rig.read(csr), ON | ENABLE | INTERRUPT_ENABLE, "GDRV-04");
        rig.write(IPSR, 0xf);
        assert_eq!(rig.read(IPSR), 0, "GDRV-04");
    }
}

#[test]
fn the_linux_driver_probes_modes_and_turns_everything_off() {
    let mut rig = emulated();
    rig.write8(DDTP, 0);
    assert_eq!(rig.read8(DDTP), 0, "GDRV-03: no fixed root, GDRV-09");
    rig.write8(DDTP, 0x8_0000 << 10 | 1);
    assert_eq!(rig.read8(DDTP) >> 10, 0x8_0000, "GDRV-03");
    rig.write8(DDTP, 0x8_0000 << 10 | 4);
    assert_eq!(rig.read8(DDTP) & 0xf, 4, "GDRV-03");
    rig.command_queue(4, ENABLE);
    rig.fault_queue(4, ENABLE);
    rig.write8(DDTP, 0);
    for csr in [CQCSR, FQCSR, 80] {
        rig.write(csr, 0);
        assert_eq!(rig.read(csr), 0, "GDRV-10: {csr}");
    }
    assert_eq!(rig.read8(DDTP), 0, "GDRV-10");
}

#[test]
fn an_index_has_the_bits_of_the_queue_size() {
    for (base, index) in [(CQB, CQT), (FQB, FQH)] {
        for log2 in 1..=32_u32 {
            let mut rig = emulated();
            rig.write8(base, u64::from(log2 - 1));
            rig.write(index, ALL_ONES);
            assert_eq!(rig.read(index), (1_u64 << log2) - 1, "REG-QI-02, -03, DISC-R11 with 2^{log2} entries");
            rig.write(index, 1_u64 << (log2 - 1));
            assert_eq!(rig.read(index), 1_u64 << (log2 - 1), "REG-QI-02, -03");
        }
    }
}

#[test]
fn a_base_is_not_written_while_its_queue_is_on() {
    for (base, index, csr) in [(CQB, CQT, CQCSR), (FQB, FQH, FQCSR)] {
        let mut rig = emulated();
        rig.memory.map(COMMANDS, 0x1_0000);
        let real = COMMANDS.get() >> 2 | 7;
        rig.write8(base, real);
        rig.write(csr, ENABLE);
        // The head of the fault queue is free; the tail of the command queue would be a doorbell.
        let kept = if index == FQH { 5 } else { 0 };
        rig.write(index, kept);
        rig.write8(base, 0x1f);
        rig.write(base, 0x1f);
        rig.write(base + 4, 1);
        assert_eq!((rig.read8(base), rig.read(index)), (real, kept), "REG-QB-07");
        rig.write(csr, 0);
        rig.write8(base, 0x1f);
        assert_eq!((rig.read8(base), rig.read(index)), (0x1f, 0), "REG-QB-07, -08");
    }
}

#[test]
fn a_base_write_leaves_the_index_of_the_iommu_alone() {
    let mut rig = Rig::start(Config::nested().with_reset_to_bare(true), InterruptKinds::Msi);
    let attachment = rig.attach();
    let mut commands = rig.command_queue(4, ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(); 3]));
    rig.fault_queue(4, ENABLE);
    let _ = rig.iommu.report_fault(attachment, &page_fault(1));
    let _ = rig.iommu.report_fault(attachment, &page_fault(2));
    rig.write(CQCSR, 0);
    rig.write(FQCSR, 0);
    assert_eq!((rig.read(CQH), rig.read(FQT)), (3, 2), "REG-QI-01, -04, REG-CQCSR-21");
    rig.write8(CQB, COMMANDS.get() >> 2 | 7);
    rig.write8(FQB, FAULTS.get() >> 2 | 7);
    assert_eq!((rig.read(CQH), rig.read(FQT)), (3, 2), "REG-QB-09");
    rig.write(CQH, 0);
    rig.write(FQT, 0);
    assert_eq!((rig.read(CQH), rig.read(FQT)), (3, 2), "REG-QI-01, -04, ATTR-01");
    rig.write(CQCSR, ENABLE);
    rig.write(FQCSR, ENABLE);
    assert_eq!((rig.read(CQH), rig.read(FQT)), (0, 0), "REG-QB-09, REG-CQCSR-01, REG-FQCSR-01");
}

#[test]
fn a_tail_put_back_to_the_head_empties_the_queue() {
    let mut rig = Rig::start(Config::emulated().with_budget(1), InterruptKinds::Msi);
    let mut commands = rig.command_queue(3, ENABLE);
    let tail = commands.push_all([Iofence::PLAIN.encode(); 5]);
    assert_eq!(rig.iommu.write(CQT, Width::U32, tail), Progress::Runnable, "Q-12");
    assert_eq!((rig.read(CQH), rig.read(CQT)), (1, 5), "REG-QI-09");
    // The same call that takes the commands out goes on: it finds none.
    assert_eq!(rig.iommu.write(CQT, Width::U32, 1), Progress::Idle, "REG-QI-08");
    assert_eq!((rig.read(CQH), rig.read(CQT)), (1, 1), "REG-QI-07, -08");
    rig.write(CQT, 7 | 0xffff_fff8);
    assert_eq!(rig.read(CQT), 7, "REG-QI-02, -08, DISC-R11: while on");
}

#[test]
fn a_tail_written_while_the_queue_is_off_is_only_stored() {
    let mut rig = emulated();
    let mut commands = rig.command_queue(3, 0);
    rig.forget_accesses();
    rig.write(CQT, commands.push_all([ILLEGAL; 2]));
    assert_eq!((rig.read(CQT), rig.read(CQH), rig.read(CQCSR)), (2, 0, 0), "REG-QI-08, -09");
    assert_eq!(rig.memory.take_loads(), []);
}

// cqcsr (section 8).

#[test]
fn enabling_the_command_queue_starts_at_entry_0_with_no_errors() {
    let mut rig = emulated();
    let mut commands = rig.command_queue(2, ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(), ILLEGAL]));
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | CMD_ILL, 1), "REG-CQCSR-06, -09, -24");
    rig.write(CQCSR, 0);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (CMD_ILL, 1), "REG-CQCSR-21");
    rig.memory.write(commands.entry(1), Iofence::PLAIN.encode()[0]);
    // The tail is still 2: both commands are carried out at once.
    rig.write(CQCSR, ENABLE);
    assert_eq!((rig.read(CQCSR), rig.read(CQH), rig.read(CQT)), (ON | ENABLE, 2, 2), "REG-CQCSR-01, -20, DISC-R10");
}

#[test]
fn writing_the_enable_bit_it_has_restarts_nothing() {
    let mut rig = emulated();
    let mut commands = rig.command_queue(2, ENABLE);
    let at = rig.memory.allocate(1);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.store(at, 7).encode(), ILLEGAL]));
    assert_eq!(rig.memory.read(at), 7);
    rig.memory.write(at, 0);
    rig.write(CQCSR, ENABLE | INTERRUPT_ENABLE);
    let expected = ON | ENABLE | INTERRUPT_ENABLE | CMD_ILL;
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (expected, 1), "REG-CQCSR-02, -26, ATTR-02");
    rig.write(CQCSR, ENABLE);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | CMD_ILL, 1), "REG-CQCSR-26");
    assert_eq!(rig.memory.read(at), 0, "REG-CQCSR-26: nothing is carried out again");
    rig.write(CQCSR, 0);
    rig.write(CQCSR, INTERRUPT_ENABLE);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (INTERRUPT_ENABLE | CMD_ILL, 1), "REG-CQCSR-26: off");
}

#[test]
fn each_error_stops_the_queue_until_it_is_cleared() {
    let fence = Iofence::PLAIN.encode();
    let unmapped = Iofence::PLAIN.store(Gpa::new(0x7000_0000), 1).encode();
    for (command, unreadable, bit, rule) in [
        (ILLEGAL, false, CMD_ILL, "REG-CQCSR-06"),
        (unmapped, false, MEMORY_FAULT, "REG-CQCSR-04"),
        (fence, true, MEMORY_FAULT, "REG-CQCSR-04, CQ-12"),
    ] {
        let mut rig = emulated();
        let mut commands = rig.command_queue(3, ENABLE);
        if unreadable {
            rig.memory.fail(commands.entry(0), 16, MemoryFault::Access);
        }
        rig.write(CQT, commands.push_all([command, fence]));
        let stopped = (ON | ENABLE | bit, 0);
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), stopped, "{rule}");
        // The same entry again.
        rig.write(CQCSR, ENABLE | bit);
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), stopped, "{rule}, REG-CQCSR-25, CQ-16");
        // Repaired, nothing but the bit lets it go on: no doorbell, no write without the bit or with the others.
        rig.memory.clear_failures();
        rig.memory.write_words(commands.entry(0), &fence);
        rig.forget_accesses();
        rig.write(CQT, commands.push(fence));
        assert_eq!(rig.iommu.run(), Progress::Idle, "{rule}, REG-CQCSR-24");
        rig.write(CQCSR, ENABLE);
        rig.write(CQCSR, ENABLE | (MEMORY_FAULT | CMD_TO | CMD_ILL | FENCE_W_IP) & !bit);
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), stopped, "{rule}, REG-CQCSR-24, ATTR-03");
        assert_eq!(rig.memory.take_loads(), [], "{rule}, CQ-02");
        rig.write(CQCSR, ENABLE | bit);
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE, 3), "{rule}, REG-CQCSR-25");
    }
}

#[test]
fn an_enable_takes_errors_away_before_its_interrupt_enable_counts() {
    // cqcsr, and what is left of the error and whether it interrupts.
    for (written, error, pending) in [(ENABLE | INTERRUPT_ENABLE, 0, 0), (INTERRUPT_ENABLE, CMD_ILL, 1)] {
        let mut rig = emulated();
        let mut commands = rig.command_queue(3, ENABLE);
        rig.write(CQT, commands.push(ILLEGAL));
        rig.write(CQCSR, 0);
        rig.write(CQT, 0);
        assert_eq!((rig.read(CQCSR), rig.read(IPSR)), (CMD_ILL, 0), "REG-CQCSR-28: an error, and no interrupt of it");
        rig.write(CQCSR, written);
        assert_eq!((rig.read(CQCSR) & CMD_ILL, rig.read(IPSR)), (error, pending), "REG-CQCSR-28, IRQ-06");
    }
}

#[test]
fn the_linux_driver_writes_back_what_it_read() {
    let mut rig = emulated();
    let mut commands = rig.command_queue(3, ENABLE | INTERRUPT_ENABLE);
    rig.write(CQT, commands.push(ILLEGAL));
    let read = rig.read(CQCSR);
    assert_eq!(read, ON | ENABLE | INTERRUPT_ENABLE | CMD_ILL);
    rig.write(CQCSR, read);
    rig.write(IPSR, 1);
    // Nothing was repaired: the same command again.
    assert_eq!((rig.read(CQCSR), rig.read(IPSR)), (read, 1), "GDRV-06");
}

#[test]
fn disabling_leaves_commands_behind() {
    let mut rig = Rig::start(Config::emulated().with_budget(1), InterruptKinds::Msi);
    let mut commands = rig.command_queue(3, ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(); 4]));
    rig.write(CQCSR, 0);
    assert_eq!(rig.read(CQCSR), 0, "REG-CQCSR-21");
    let head = rig.read(CQH);
    rig.forget_accesses();
    assert_eq!(rig.iommu.run(), Progress::Idle);
    rig.write(CQT, 4);
    assert_eq!((rig.read(CQH), rig.memory.take_loads()), (head, vec![]), "REG-CQCSR-09, -27, SYNC-05");
}

#[test]
fn a_queue_turned_off_is_busy_until_its_fence_is_done() {
    for (outcome, csr, head, rules) in
        [(FenceOutcome::Complete, 0, 1, "REG-CQCSR-22"), (FenceOutcome::AtsTimeout, CMD_TO, 0, "REG-CQCSR-05, -22")]
    {
        let mut rig = Rig::start(Config::nested(), InterruptKinds::Msi);
        let _ = rig.attach();
        let mut commands = rig.command_queue(3, ENABLE);
        rig.hold_fences();
        rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(); 2]));
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE, 0), "CQ-08, REG-CQCSR-29, GDRV-05");
        let base = rig.read8(CQB);
        rig.write(CQCSR, 0);
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | BUSY, 0), "{rules}");
        rig.write(CQCSR, ENABLE | INTERRUPT_ENABLE);
        rig.write8(CQB, 0x1f);
        assert_eq!((rig.read(CQCSR), rig.read8(CQB)), (ON | BUSY, base), "REG-CQCSR-10, -23, REG-QB-07");
        rig.end_fences(outcome);
        assert_eq!((rig.read(CQCSR), rig.read(CQH)), (csr, head), "{rules}");
    }
}

#[test]
fn a_timeout_stops_the_queue_on_the_fence() {
    let mut rig = Rig::start(Config::nested(), InterruptKinds::Msi);
    let _ = rig.attach();
    let mut commands = rig.command_queue(3, ENABLE);
    rig.hold_fences();
    rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(); 2]));
    rig.end_fences(FenceOutcome::AtsTimeout);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | CMD_TO, 0), "REG-CQCSR-05, -24");
    rig.write(CQCSR, ENABLE | MEMORY_FAULT | CMD_ILL);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | CMD_TO, 0), "REG-CQCSR-25, ATTR-03");
    rig.write(CQCSR, ENABLE | CMD_TO);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE, 2), "REG-CQCSR-25, CQ-18");
}

#[test]
fn bits_that_clear_when_written_are_not_lost_by_writes_to_others() {
    let mut rig = Rig::start(Config::nested().with_reset_to_bare(true), InterruptKinds::Wired);
    let attachment = rig.attach();
    let mut commands = rig.command_queue(3, ENABLE | INTERRUPT_ENABLE);
    rig.fault_queue(1, ENABLE | INTERRUPT_ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.wsi().encode(), ILLEGAL]));
    let _ = rig.iommu.report_fault(attachment, &page_fault(1));
    let _ = rig.iommu.report_fault(attachment, &page_fault(2));
    let cqcsr = ON | ENABLE | INTERRUPT_ENABLE | CMD_ILL | FENCE_W_IP;
    let fqcsr = ON | ENABLE | INTERRUPT_ENABLE | FQOF;
    let state = |rig: &Rig| (rig.read(CQCSR), rig.read(FQCSR), rig.read(IPSR));
    assert_eq!(state(&rig), (cqcsr, fqcsr, 3));
    for (offset, _) in map().into_iter().filter(|(offset, _)| ![CQCSR, FQCSR, IPSR].contains(offset)) {
        rig.write8(offset, ALL_ONES);
        rig.write(offset, ALL_ONES);
        rig.write(offset + 4, if [72, 76, 84].contains(&(offset + 4)) { 0x3 } else { ALL_ONES });
    }
    // 8 bytes over both registers, and each write of its own with the other bits.
    rig.write8(CQCSR, ALL_ONES);
    rig.write8(80, ALL_ONES);
    rig.write(IPSR, 0xffff_fffc);
    rig.write(FQCSR, ENABLE | INTERRUPT_ENABLE | MEMORY_FAULT);
    rig.write(CQCSR, ENABLE | INTERRUPT_ENABLE | MEMORY_FAULT | CMD_TO);
    assert_eq!(state(&rig), (cqcsr, fqcsr, 3), "ATTR-03, REG-ACC-07, -09");
    rig.write(CQCSR, ENABLE | INTERRUPT_ENABLE | FENCE_W_IP);
    assert_eq!(rig.read(CQCSR), cqcsr & !FENCE_W_IP, "REG-CQCSR-07");
}

#[test]
fn fence_w_ip_is_no_error_and_goes_with_the_next_enable() {
    let mut rig = Rig::start(Config::emulated(), InterruptKinds::Wired);
    let mut commands = rig.command_queue(3, ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.wsi().encode(), Iofence::PLAIN.encode()]));
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | FENCE_W_IP, 2), "REG-CQCSR-07");
    rig.write(CQCSR, 0);
    assert_eq!(rig.read(CQCSR), FENCE_W_IP, "REG-CQCSR-21");
    rig.write(CQT, 0);
    rig.write(CQCSR, ENABLE);
    assert_eq!(rig.read(CQCSR), ON | ENABLE, "REG-CQCSR-01");
}

#[test]
fn fence_w_ip_is_zero_where_there_are_no_wires() {
    let mut rig = full();
    rig.write(FCTL, 2);
    let mut commands = rig.command_queue(3, ENABLE);
    rig.write(CQT, commands.push(Iofence::PLAIN.wsi().encode()));
    rig.write(CQCSR, 0);
    assert_eq!(rig.read(CQCSR), FENCE_W_IP);
    rig.write(FCTL, 0);
    assert_eq!((rig.read(FCTL), rig.read(CQCSR)), (0, 0), "REG-CQCSR-07: read-only 0 with fctl.WSI = 0");
}

// fqcsr (section 9).

#[test]
fn enabling_the_fault_queue_starts_at_entry_0_with_no_errors() {
    let mut rig = Rig::start(Config::nested().with_reset_to_bare(true), InterruptKinds::Msi);
    let attachment = rig.attach();
    rig.fault_queue(1, ENABLE);
    let _ = rig.iommu.report_fault(attachment, &page_fault(1));
    let _ = rig.iommu.report_fault(attachment, &page_fault(2));
    assert_eq!((rig.read(FQCSR), rig.read(FQT)), (ON | ENABLE | FQOF, 1), "REG-FQCSR-05, -07");
    rig.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
    assert_eq!((rig.read(FQCSR), rig.read(FQT)), (ON | ENABLE | INTERRUPT_ENABLE | FQOF, 1), "REG-FQCSR-02");
    rig.write(FQH, 1);
    rig.write(FQCSR, 0);
    assert_eq!((rig.read(FQCSR), rig.read(FQT)), (FQOF, 1), "REG-FQCSR-10, REG-QI-10");
    rig.write(FQCSR, ENABLE);
    assert_eq!((rig.read(FQCSR), rig.read(FQT)), (ON | ENABLE, 0), "REG-FQCSR-01");
    assert_eq!(rig.read(FQH), 1, "REG-FQCSR-01, -11: the head is the guest's");
}

#[test]
fn the_error_bits_of_the_fault_queue_clear_one_by_one_and_can_not_be_set() {
    let mut rig = Rig::start(Config::nested().with_reset_to_bare(true), InterruptKinds::Msi);
    let attachment = rig.attach();
    rig.write(FQCSR, MEMORY_FAULT | FQOF);
    assert_eq!(rig.read(FQCSR), 0, "ATTR-03");
    // No memory at the base.
    rig.write(FQCSR, ENABLE | MEMORY_FAULT | FQOF);
    let _ = rig.iommu.report_fault(attachment, &page_fault(1));
    assert_eq!(rig.read(FQCSR), ON | ENABLE | MEMORY_FAULT, "REG-FQCSR-04");
    // What is lost while records are discarded would have been discarded too.
    let _ = rig.iommu.report_lost(1);
    rig.write(FQCSR, ENABLE | FQOF);
    assert_eq!(rig.read(FQCSR), ON | ENABLE | MEMORY_FAULT, "FQ-02, REG-FQCSR-04");
    rig.write(FQCSR, ENABLE | MEMORY_FAULT);
    let _ = rig.iommu.report_lost(1);
    assert_eq!(rig.read(FQCSR), ON | ENABLE | FQOF, "REG-FQCSR-05");
    rig.write(FQCSR, ENABLE | MEMORY_FAULT);
    assert_eq!(rig.read(FQCSR), ON | ENABLE | FQOF, "REG-FQCSR-05");
    rig.write(FQCSR, FQOF);
    assert_eq!(rig.read(FQCSR), 0, "REG-FQCSR-05, -10");
}

// icvec and the MSI table (section 12).

#[test]
fn each_icvec_field_has_the_bits_of_the_vector_count() {
    for (vectors, probe) in [(1, 0), (2, 0x1111), (4, 0x3333), (8, 0x7777), (16, 0xffff)] {
        let mut rig = Rig::start(Config::emulated().with_vectors(vectors), InterruptKinds::Both);
        rig.write8(ICVEC, ALL_ONES);
        assert_eq!(rig.read8(ICVEC), probe, "REG-ICVEC-01 to -07 with {vectors} vectors");
        rig.write(ICVEC + 4, 0);
        assert_eq!(rig.read8(ICVEC), probe, "REG-ICVEC-09, DISC-R03");
        rig.write(ICVEC, 0x4321);
        rig.write(ICVEC + 4, ALL_ONES);
        assert_eq!(rig.read8(ICVEC), 0x4321 & probe, "REG-ICVEC-08, -09, GDRV-08");
        assert_eq!(rig.read(ICVEC + 4), 0, "REG-ICVEC-06");
    }
}

#[test]
fn the_msi_table_has_as_many_entries_as_vectors_and_none_with_wires_alone() {
    for kinds in [InterruptKinds::Msi, InterruptKinds::Wired, InterruptKinds::Both] {
        for vectors in [1_u8, 2, 4, 8, 16] {
            let mut rig = Rig::start(Config::emulated().with_vectors(vectors), kinds);
            // With both kinds the table stays programmable while wires are used.
            rig.write(FCTL, 2);
            for vector in 0..16_u8 {
                let entry = MSI_CFG_TBL + 16 * u64::from(vector);
                rig.write8(entry, 0x2800_00ff | u64::from(vector) << 12);
                rig.write(entry + 8, 0xffff_ff00 | u64::from(vector));
                rig.write(entry + 12, 1);
            }
            for vector in 0..16_u8 {
                let entry = MSI_CFG_TBL + 16 * u64::from(vector);
                let read = (rig.read8(entry), rig.read(entry + 8), rig.read(entry + 12));
                let there = kinds != InterruptKinds::Wired && vector < vectors;
                let written = (0x2800_00fc | u64::from(vector) << 12, 0xffff_ff00 | u64::from(vector), 1);
                let expected = if there { written } else { (0, 0, 0) };
                assert_eq!(read, expected, "REG-MSI-01 to -09: {kinds:?}, {vector} of {vectors}");
            }
        }
    }
}

// tr_req_ctl (section 14).

#[test]
fn go_is_set_by_a_1_and_by_nothing_else() {
    // tr_req_ctl is at 608, with Go/Busy as bit 0; tr_response at 616, with fault as bit 0. The mode is Off.
    let (ctl, response) = (608, 616);
    let config = Config::emulated().with_debug(true);
    for write in [Rig::write8, Rig::write] {
        let mut rig = Rig::start(config.with_mirror(true), InterruptKinds::Msi);
        write(&mut rig, ctl, 0x0e);
        assert_eq!((rig.read8(ctl), rig.read8(response)), (0x0e, 0), "ATTR-04: 0 starts nothing");
        write(&mut rig, ctl, 0x0f);
        // Busy is over within the write, and the answer is there, also where no trap is taken for it.
        assert_eq!((rig.read8(ctl), rig.read8(response)), (0x0e, 1), "ATTR-04, SYNC-06");
        let mirror = rig.memory.mirror();
        assert_eq!([608, 616].map(|at| mirror.get(&at).copied()), [Some(0x0e), Some(1)], "SYNC-06");
        write(&mut rig, ctl, 0);
        assert_eq!((rig.read8(ctl), rig.read8(response)), (0, 1), "ATTR-04: 0 does not take the answer away");
        // Where there is no such interface it is 0 and stays 0.
        let mut rig = emulated();
        write(&mut rig, ctl, 0x0f);
        assert_eq!((rig.read8(ctl), rig.read8(response)), (0, 0), "ATTR-04, REG-ACC-11");
    }
}

// Reset (section 2.1).

#[test]
fn before_the_start_there_are_no_registers() {
    let mut rig = Rig::new(InterruptKinds::Both);
    for (offset, _) in map() {
        rig.write8(offset, ALL_ONES);
        rig.write(offset, ALL_ONES);
    }
    assert!(snapshot(&rig).iter().all(|&(_, value)| value == 0));
    let _ = (rig.iommu.run(), rig.iommu.reset(), rig.iommu.report_lost(1), rig.iommu.shutdown());
    assert!(snapshot(&rig).iter().all(|&(_, value)| value == 0));
    assert_eq!(rig.iommu.start(&Config::emulated()), Ok(()));
    assert_eq!(snapshot(&rig), snapshot(&Rig::start(Config::emulated(), InterruptKinds::Both)), "REG-RST-01");
}

#[test]
fn reset_gives_every_register_its_reset_value() {
    for (bare, mode) in [(false, 0), (true, 1)] {
        for (kinds, igs, wsi) in
            [(InterruptKinds::Msi, 0, 0), (InterruptKinds::Wired, 1, 2), (InterruptKinds::Both, 2, 0)]
        {
            let config = Config::emulated().with_reset_to_bare(bare).with_vectors(16).with_big_endian(true);
            let mut rig = Rig::start(config, kinds);
            let reset = snapshot(&rig);
            for &(offset, value) in &reset {
                let expected = match offset {
                    CAPABILITIES => 0x0df8_0900_ce10 | igs << 28,
                    FCTL => wsi,
                    DDTP => mode,
                    _ => 0,
                };
                assert_eq!(value, expected, "REG-RST-01 to -06, REG-MAP-01 to -32: {offset}");
            }
            rig.write8(DDTP, 0);
            rig.write(FCTL, 3);
            rig.write8(ICVEC, 0x1234);
            rig.write8(MSI_CFG_TBL + 16, 0x2800_0000);
            rig.write(MSI_CFG_TBL + 24, 5);
            rig.write(MSI_CFG_TBL + 28, 1);
            rig.memory.map(FAULTS, 0x1000);
            rig.write8(FQB, FAULTS.get() >> 2 | 4);
            rig.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
            rig.write(FQH, 3);
            rig.write8(CQB, 0x1f);
            rig.write(CQT, 3);
            rig.write(CQCSR, ENABLE | INTERRUPT_ENABLE);
            let _ = rig.iommu.report_lost(1);
            rig.write8(DDTP, 0x88 << 10 | 3);
            assert_eq!(rig.read(IPSR), 3);
            assert_eq!(rig.iommu.reset(), Progress::Idle);
            assert_eq!(snapshot(&rig), reset, "REG-RST-01 to -07");
        }
    }
}

#[test]
fn reset_forgets_the_fence_that_waits() {
    let mut rig = Rig::start(Config::nested(), InterruptKinds::Msi);
    let _ = rig.attach();
    let mut commands = rig.command_queue(3, ENABLE);
    rig.memory.map(Gpa::new(0x9000_0000), 8);
    rig.hold_fences();
    rig.write(CQT, commands.push(Iofence::PLAIN.store(Gpa::new(0x9000_0000), 7).encode()));
    let _ = rig.iommu.reset();
    rig.end_fences(FenceOutcome::Complete);
    let _ = rig.iommu.run();
    assert_eq!((rig.read(CQH), rig.read(CQCSR), rig.read8(DDTP)), (0, 0, 0), "REG-RST-07");
    assert_eq!(rig.memory.read(Gpa::new(0x9000_0000)), 0, "REG-RST-07: the store was never asked for");
}

// Bad input: queues of any size anywhere.

#[test]
fn a_queue_of_2_to_the_32_commands_is_worked_off_in_bounded_steps() {
    let mut rig = Rig::start(Config::emulated().with_budget(100), InterruptKinds::Msi);
    rig.memory.map(COMMANDS, 0x1000);
    rig.memory.write_words(COMMANDS, &[2, 0].repeat(256));
    rig.write8(CQB, COMMANDS.get() >> 2 | 0x1f);
    rig.write(CQCSR, ENABLE);
    assert_eq!(rig.iommu.write(CQT, Width::U32, 0xffff_ffff), Progress::Runnable, "Q-12, T14");
    assert_eq!((rig.read(CQH), rig.read(CQT)), (100, 0xffff_ffff), "Q-12");
    assert_eq!((rig.iommu.run(), rig.read(CQH)), (Progress::Runnable, 200), "Q-12");
    assert!(rig.memory.take_loads().len() <= 200);
    // Where the guest's memory ends.
    assert_eq!((rig.iommu.run(), rig.read(CQH)), (Progress::Idle, 256), "CQ-12");
    assert_eq!(rig.read(CQCSR), ON | ENABLE | MEMORY_FAULT, "CQ-12, Q-06");
}

#[test]
fn a_command_queue_at_the_end_of_the_physical_address_space_ends_there() {
    let mut rig = Rig::start(Config::emulated().with_pas(32), InterruptKinds::Msi);
    let last = Gpa::new(0xffff_f000);
    rig.memory.map(last, 0x3000);
    rig.memory.write_words(last, &[2, 0].repeat(512));
    // 512 entries: the second page would lie past PAS. Misaligned, its address is formed by OR (REG-QB-06).
    rig.write8(CQB, last.get() >> 2 | 8);
    rig.write(CQCSR, ENABLE);
    rig.write(CQT, 0x1ff);
    let _ = rig.iommu.run();
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE, 511), "REG-QB-06, REG-CAP-46");
    // An IOFENCE.C that stores past PAS.
    rig.memory.write_words(last, &Iofence::PLAIN.store(Gpa::new(0x1_0000_0000), 1).encode());
    rig.write(CQCSR, 0);
    rig.write(CQT, 1);
    rig.write(CQCSR, ENABLE);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | MEMORY_FAULT, 0), "REG-CAP-46, CQ-13");
    assert_eq!(rig.memory.read(Gpa::new(0x1_0000_0000)), 0x2, "the words after the end are as they were");
}

fn base_of(page: u64, log2: u64) -> u64 {
    page << 10 | log2
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_command_queue_of_any_size_anywhere_stops_or_goes_on_but_ends(
        page in select(vec![0, 1, 0x8_1000, 0x8_1001, 0xf_ffff, 0xfff_ffff_ffff]),
        log2 in 0..32_u64,
        tail in any::<u32>(),
        word in select(vec![2, 0x402, 3, 1, 0, u64::MAX]),
        mapped in any::<bool>(),
    ) {
        let mut rig = Rig::start(Config::emulated().with_pas(32).with_budget(64), InterruptKinds::Msi);
        let at = Gpa::new((page << 12) & 0xffff_f000);
        if mapped {
            rig.memory.map(at, 0x1000);
            rig.memory.write_words(at, &[word, 0].repeat(256));
        }
        rig.write8(CQB, base_of(page, log2));
        rig.write(CQT, u64::from(tail));
        rig.write(CQCSR, ENABLE);
        for _ in 0..16 {
            let _ = rig.iommu.run();
        }
        let (head, tail, csr) = (rig.read(CQH), rig.read(CQT), rig.read(CQCSR));
        prop_assert!(head <= 17 * 64, "Q-12: at most a budget for each call");
        prop_assert_eq!(tail >> (log2 + 1), 0, "REG-QI-02");
        prop_assert_eq!(csr & !(ON | ENABLE | MEMORY_FAULT | CMD_ILL), 0);
        let stopped = csr & (MEMORY_FAULT | CMD_ILL) != 0;
        prop_assert!(stopped || head == tail || rig.iommu.progress() == Progress::Runnable, "CQ-02");
        prop_assert!(rig.memory.take_loads().len() <= 2 * 17 * 64);
    }
}

// The mirror page.

#[test]
fn the_mirror_shows_everything_from_the_start() {
    let rig = Rig::start(Config::emulated().with_mirror(true).with_reset_to_bare(true), InterruptKinds::Wired);
    assert_eq!(unlike_mirror(&rig), None);
    assert_eq!(rig.memory.mirror().get(&16), Some(&1));
    let without = Rig::start(Config::emulated(), InterruptKinds::Wired);
    assert!(without.memory.mirror().is_empty(), "only where the host wants it");
}

#[test]
fn the_mirror_follows_what_a_write_does_to_other_registers() {
    let mut rig = Rig::start(Config::nested().with_reset_to_bare(true).with_mirror(true), InterruptKinds::Both);
    let attachment = rig.attach();
    // The index a base write sets to 0.
    for (base, index) in [(CQB, CQT), (FQB, FQH)] {
        rig.write8(base, 7);
        rig.write(index, 5);
        assert_eq!(unlike_mirror(&rig), None);
        rig.write(base + 4, 1);
        assert_eq!((rig.read(index), unlike_mirror(&rig)), (0, None), "REG-QB-08 after {base}");
    }
    // The indices and pending bits that change by themselves, and those an enable sets to 0.
    rig.fault_queue(1, ENABLE | INTERRUPT_ENABLE);
    for page in 1..3 {
        let _ = rig.iommu.report_fault(attachment, &page_fault(page));
        assert_eq!((rig.read(FQT), unlike_mirror(&rig)), (1, None), "REG-QI-04, REG-FQCSR-05");
    }
    let mut commands = rig.command_queue(3, ENABLE | INTERRUPT_ENABLE);
    rig.write(CQT, commands.push_all([Iofence::PLAIN.encode(), ILLEGAL]));
    assert_eq!((rig.read(CQH), rig.read(IPSR), unlike_mirror(&rig)), (1, 3, None), "REG-QI-01");
    for csr in [CQCSR, FQCSR] {
        for value in [0, ENABLE] {
            rig.write(csr, value);
            assert_eq!(unlike_mirror(&rig), None, "{value} to {csr}");
        }
    }
    assert_eq!((rig.read(CQH), rig.read(FQT)), (1, 0));
    let _ = rig.iommu.reset();
    assert_eq!(unlike_mirror(&rig), None, "REG-RST-01");
    // Busy bits that go when the host is done.
    let mut commands = rig.command_queue(3, ENABLE);
    rig.hold_fences();
    rig.write8(DDTP, 0);
    rig.write(CQT, commands.push(Iofence::PLAIN.encode()));
    rig.write(CQCSR, 0);
    assert_eq!((rig.read8(DDTP), rig.read(CQCSR), unlike_mirror(&rig)), (DDTP_BUSY, ON | BUSY, None));
    rig.end_fences(FenceOutcome::Complete);
    assert_eq!((rig.read8(DDTP), rig.read(CQCSR), rig.read(CQH)), (0, 0, 1), "SYNC-01, SYNC-05");
    assert_eq!(unlike_mirror(&rig), None, "REG-DDTP-02, REG-CQCSR-22");
}

#[test]
fn a_fault_is_published_after_its_record_and_before_its_message() {
    let config = Config::nested().with_reset_to_bare(true).with_mirror(true);
    let mut rig = Rig::start(config, InterruptKinds::Msi);
    let attachment = rig.attach();
    rig.memory.interrupt_page(Gpa::new(0x2800_0000));
    rig.write8(MSI_CFG_TBL, 0x2800_0000);
    rig.write(MSI_CFG_TBL + 8, 9);
    rig.fault_queue(4, ENABLE | INTERRUPT_ENABLE);
    rig.forget_accesses();
    let _ = rig.iommu.report_fault(attachment, &page_fault(3));
    let events = rig.memory.take_events();
    let at = |wanted: &Event| events.iter().position(|event| event == wanted).expect("it happened");
    let stored = events.iter().position(|event| matches!(event, Event::Store(FAULTS, _))).unwrap();
    assert!(stored < at(&Event::Publish(52, 1)), "FQ-10, Q-05, IRQ-18: {events:?}");
    assert!(at(&Event::Publish(52, 1)) < at(&Event::Publish(84, 2)), "IRQ-18: {events:?}");
    let message = Event::Post(Gpa::new(0x2800_0000), 9, Post::Interrupt);
    assert!(at(&Event::Publish(84, 2)) < at(&message), "IRQ-18: {events:?}");
}

#[test]
fn a_fence_is_published_after_its_store_and_before_its_wire() {
    let mut rig = Rig::start(Config::emulated().with_mirror(true), InterruptKinds::Wired);
    let mut commands = rig.command_queue(4, ENABLE | INTERRUPT_ENABLE);
    rig.memory.map(Gpa::new(0x9000_0000), 8);
    rig.forget_accesses();
    rig.write(CQT, commands.push(Iofence::PLAIN.store(Gpa::new(0x9000_0000), 7).wsi().encode()));
    let events = rig.memory.take_events();
    let at = |wanted: &Event| events.iter().position(|event| event == wanted).expect("it happened");
    let stored = at(&Event::Post(Gpa::new(0x9000_0000), 7, Post::FenceData));
    assert!(stored < at(&Event::Publish(32, 1)), "IRQ-18: {events:?}");
    assert!(at(&Event::Publish(32, 1)) < at(&Event::Wire(0, true)), "IRQ-18: {events:?}");
    assert!(at(&Event::Publish(84, 1)) < at(&Event::Wire(0, true)), "IRQ-18: {events:?}");
}

/// The first offset at which a load from the mirror page does not give what a trapped one does.
fn unlike_mirror(rig: &Rig) -> Option<u64> {
    let map = map();
    let mirror = rig.memory.mirror();
    let word = |offset: u64| u16::try_from(offset).ok().and_then(|offset| mirror.get(&offset)).copied().unwrap_or(0);
    let differs = |offset: &u64| {
        let (low, high) = (u64::from(word(*offset)), u64::from(word(*offset + 4)));
        let wide = map.contains(&(*offset, 8));
        low != rig.read(*offset) || (wide && (high << 32 | low) != rig.read8(*offset))
    };
    (0..4096).step_by(4).find(differs)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, Width, u64),
    Fault(u64),
    Lost,
    Run,
    Resync,
    HoldFences,
    EndFences(FenceOutcome),
    Reset,
}

/// What a guest and a host do, in any order.
fn step() -> impl Strategy<Value = Step> {
    let width = prop_oneof![Just(Width::U32), Just(Width::U64)];
    let registers: Vec<u64> = map().into_iter().filter(|(at, _)| *at < 800).flat_map(|(at, _)| [at, at + 4]).collect();
    let offset = prop_oneof![8 => select(registers), 1 => 0..4096_u64];
    let useful = select(vec![
        0,
        1,
        2,
        3,
        4,
        7,
        0xf,
        0x103,
        0xf03,
        COMMANDS.get() >> 2 | 2,
        FAULTS.get() >> 2 | 1,
        0x8300_0000 >> 2 | 2,
        0x2800_0000,
        0x3210,
    ]);
    let value = prop_oneof![6 => useful, 1 => any::<u64>()];
    prop_oneof![
        16 => (offset, width, value).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        4 => (0..3_u64).prop_map(Step::Fault),
        1 => Just(Step::Lost),
        1 => Just(Step::Run),
        1 => Just(Step::Resync),
        1 => Just(Step::HoldFences),
        1 => select(vec![FenceOutcome::Complete, FenceOutcome::AtsTimeout]).prop_map(Step::EndFences),
        1 => Just(Step::Reset),
    ]
}

fn take(rig: &mut Rig, attachment: Attachment, step: Step) {
    let _ = match step {
        Step::Write(offset, width, value) => rig.iommu.write(offset, width, value),
        Step::Fault(page) => rig.iommu.report_fault(attachment, &page_fault(page)),
        Step::Lost => rig.iommu.report_lost(1),
        Step::Run => rig.iommu.run(),
        Step::Resync => rig.iommu.resync(attachment.device()),
        Step::HoldFences => {
            rig.hold_fences();
            Progress::Idle
        }
        Step::EndFences(outcome) => {
            rig.end_fences(outcome);
            Progress::Idle
        }
        Step::Reset => rig.iommu.reset(),
    };
}

/// Memory with commands, a directory and room for faults, and an attached device.
fn any_guest(kinds: InterruptKinds) -> (Rig, Attachment) {
    let config = Config::nested().with_mirror(true).with_big_endian(true).with_budget(3).with_vectors(2);
    let mut rig = Rig::start(config, kinds);
    let attachment = rig.attach();
    rig.memory.interrupt_page(Gpa::new(0x2800_0000));
    rig.memory.map(COMMANDS, 0x1000);
    rig.memory.map(FAULTS, 0x1000);
    let fences = [Iofence::PLAIN.encode(), Iofence::PLAIN.wsi().encode(), inval_ddt(None), ILLEGAL];
    rig.memory.write_words(COMMANDS, fences.as_flattened());
    let directory = tables::Directory::new(&rig.memory, 3, false);
    directory.set(attachment.device(), &tables::bare());
    (rig, attachment)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_mirror_shows_what_a_trapped_read_does_after_anything(
        kinds in select(vec![InterruptKinds::Msi, InterruptKinds::Wired, InterruptKinds::Both]),
        steps in proptest::collection::vec(step(), 1..48),
    ) {
        let (mut rig, attachment) = any_guest(kinds);
        assert_eq!(attachment.device().get(), DEVICE);
        for step in steps {
            take(&mut rig, attachment, step);
            prop_assert_eq!(unlike_mirror(&rig), None, "after {:?}", step);
            prop_assert_eq!(rig.read(FCTL) & !3, 0, "REG-ACC-14");
            prop_assert_eq!(rig.read8(DDTP) & 0xffc0_0000_0000_03e0, 0, "REG-ACC-14");
            prop_assert_eq!(rig.read(CQCSR) & !0x3_0f03, 0, "REG-ACC-14");
            prop_assert_eq!(rig.read(FQCSR) & !0x1_0303, 0, "REG-ACC-14");
            prop_assert_eq!(rig.read(IPSR) & !3, 0, "REG-ACC-14");
        }
    }
}
