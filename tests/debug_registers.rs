//! The registers of the translation-request interface and of the QoS ids, as a guest sees them. What a request is
//! answered is not the subject here, but that it is.
//!
//! Rule IDs are those of the register rules; offsets and values are worked out from the specification's diagrams.

#![expect(clippy::expect_used, reason = "a failure is a finding")]

mod common;

use common::Rig;
use riscv_viommu::mock::guest::register::{CAPABILITIES, IOMMU_QOSID, TR_REQ_CTL, TR_REQ_IOVA, TR_RESPONSE};
use riscv_viommu::{Capabilities, Config, ConfigError, InterruptKinds, Progress, Width};

const DBG: u64 = 1 << 31;
const QOSID: u64 = 1 << 41;
const FAULT: u64 = 1;

const ALL_ONES: u64 = u64::MAX;

/// Off, so that every request faults.
fn with_debug() -> Rig {
    Rig::start(Config::emulated().with_debug(true), InterruptKinds::Msi)
}

fn with_qos_bits(bits: u8) -> Rig {
    Rig::start(Config::emulated().with_qos_bits(bits), InterruptKinds::Msi)
}

// What is offered.

#[test]
fn what_was_not_configured_is_not_there() {
    let everything = Capabilities::from_bits(ALL_ONES).with_pas(56);
    let nothing = Capabilities::new().with_pas(56);
    let both = Config::emulated().with_debug(true).with_qos_bits(12);
    for (config, offered) in [
        (Config::emulated(), 0),
        (Config::emulated().with_capabilities(everything), 0),
        (Config::nested().with_capabilities(everything), 0),
        (Config::emulated().with_debug(true), DBG),
        (Config::emulated().with_qos_bits(1), QOSID),
        (both, DBG | QOSID),
        (both.with_capabilities(everything), DBG | QOSID),
        (both.with_capabilities(nothing), 0),
        (both.with_debug(false), QOSID),
        (both.with_qos_bits(0), DBG),
    ] {
        let mut rig = Rig::start(config, InterruptKinds::Msi);
        assert_eq!(rig.read8(CAPABILITIES) & (DBG | QOSID), offered, "REG-CAP-23, -28: {config:?}");
        for offset in [TR_REQ_IOVA, TR_REQ_CTL, TR_RESPONSE] {
            rig.write8(offset, ALL_ONES);
        }
        rig.write(IOMMU_QOSID, ALL_ONES);
        let present = [TR_REQ_IOVA, TR_REQ_CTL, TR_RESPONSE].map(|offset| rig.read8(offset) != 0);
        assert_eq!(present, [offered & DBG != 0; 3], "REG-MAP-23 to -25, REG-ACC-11: {config:?}");
        assert_eq!(rig.read(IOMMU_QOSID) != 0, offered & QOSID != 0, "REG-MAP-26, REG-QOS-06: {config:?}");
    }
}

#[test]
fn what_passthrough_devices_can_not_have_is_not_started() {
    for (config, error) in [
        (Config::nested().with_debug(true), ConfigError::EmulatedOnly("DBG")),
        (Config::nested().with_qos_bits(12), ConfigError::EmulatedOnly("QOSID")),
        (Config::emulated().with_qos_bits(13), ConfigError::QosBits(13)),
        (Config::emulated().with_qos_bits(255), ConfigError::QosBits(255)),
    ] {
        let mut rig = Rig::new(InterruptKinds::Msi);
        assert_eq!(rig.iommu.start(&config), Err(error));
        assert_eq!(rig.iommu.start(&Config::emulated()), Ok(()));
    }
}

// Translation requests.

#[test]
fn requests_have_the_fields_the_specification_defines() {
    let mut rig = with_debug();
    for offset in [TR_REQ_IOVA, TR_REQ_CTL, TR_RESPONSE] {
        assert_eq!(rig.read8(offset), 0, "REG-MAP-23 to -25");
    }
    rig.write8(TR_REQ_IOVA, ALL_ONES);
    assert_eq!(rig.read8(TR_REQ_IOVA), 0xffff_ffff_ffff_f000, "DBG-01, DBG-02");
    // All but Go.
    rig.write8(TR_REQ_CTL, ALL_ONES - 1);
    assert_eq!(rig.read8(TR_REQ_CTL), 0xffff_ff01_ffff_f00e, "DBG-04 to -12, DISC-R04, REG-ACC-14");
    rig.write8(TR_RESPONSE, ALL_ONES);
    assert_eq!(rig.read8(TR_RESPONSE), 0, "DBG-13 to -18: read-only");
    rig.write8(TR_REQ_CTL, 0);
    assert_eq!(rig.read8(TR_REQ_CTL), 0, "DBG-04 to -12");
    // Exe without NW is stored as it was written.
    rig.write8(TR_REQ_CTL, 0x4);
    assert_eq!(rig.read8(TR_REQ_CTL), 0x4, "DBG-05");
}

#[test]
fn a_request_is_answered_when_its_write_returns() {
    let mut rig = with_debug();
    rig.write8(TR_REQ_IOVA, 0x1234_5000);
    assert_eq!(rig.iommu.write(TR_REQ_CTL, Width::U64, 0x0000_0800_0000_0009), Progress::Idle);
    assert_eq!(rig.read8(TR_REQ_CTL), 0x0000_0800_0000_0008, "DBG-03, DBG-25");
    assert_eq!(rig.read8(TR_RESPONSE), FAULT, "DBG-13, DBG-15 to -17, DBG-24");
    assert_eq!(rig.read8(TR_REQ_IOVA), 0x1234_5000, "DBG-02");
    // Nothing of the response is the guest's to write, and a write without Go leaves it.
    rig.write8(TR_RESPONSE, 0);
    rig.write(TR_RESPONSE, 0);
    rig.write8(TR_REQ_CTL, 0);
    rig.write8(TR_REQ_IOVA, 0);
    assert_eq!(rig.read8(TR_RESPONSE), FAULT, "DBG-13");
}

#[test]
fn the_low_half_starts_a_request_and_the_high_half_does_not() {
    let mut rig = with_debug();
    rig.write(TR_REQ_IOVA + 4, 0x12);
    rig.write(TR_REQ_IOVA, 0x3456_7fff);
    assert_eq!(rig.read8(TR_REQ_IOVA), 0x12_3456_7000, "REG-ACC-06, -07, DBG-01");
    rig.write(TR_REQ_CTL + 4, 0xabcd_ef01);
    assert_eq!((rig.read8(TR_REQ_CTL), rig.read8(TR_RESPONSE)), (0xabcd_ef01_0000_0000, 0), "DBG-26");
    rig.write(TR_REQ_CTL, 0x5_4321 << 12 | 0x9);
    assert_eq!((rig.read8(TR_REQ_CTL), rig.read8(TR_RESPONSE)), (0xabcd_ef01_5432_1008, FAULT), "DBG-26");
    // The high half does not start it again: Go is 0 by now.
    let _ = rig.iommu.reset();
    rig.write(TR_REQ_CTL + 4, ALL_ONES);
    assert_eq!((rig.read8(TR_REQ_CTL), rig.read8(TR_RESPONSE)), (0xffff_ff01_0000_0000, 0), "DBG-26, REG-RST-01");
}

#[test]
fn the_mirror_shows_requests_and_responses() {
    let config = Config::emulated().with_debug(true).with_qos_bits(12).with_mirror(true);
    let mut rig = Rig::start(config, InterruptKinds::Msi);
    let unlike = |rig: &Rig| {
        let mirror = rig.memory.mirror();
        (600..628).step_by(4).find(|&at| mirror.get(&at).map(|word| u64::from(*word)) != Some(rig.read(at.into())))
    };
    assert_eq!(unlike(&rig), None, "0 from the start");
    rig.write8(TR_REQ_IOVA, 0x1234_5678_9abc_d000);
    rig.write8(TR_REQ_CTL, 0xabcd_ef01_5432_100f);
    rig.write(IOMMU_QOSID, 0x0123_0456);
    assert_eq!((rig.read8(TR_RESPONSE), rig.read(IOMMU_QOSID)), (FAULT, 0x0123_0456));
    assert_eq!(unlike(&rig), None);
    let _ = rig.iommu.reset();
    assert_eq!((rig.read8(TR_REQ_CTL), unlike(&rig)), (0, None), "REG-RST-01");
}

#[test]
fn an_access_that_covers_two_registers_touches_neither() {
    let config = Config::emulated().with_debug(true).with_qos_bits(12);
    let mut rig = Rig::start(config, InterruptKinds::Msi);
    for offset in [604, 612, 620, IOMMU_QOSID] {
        assert_eq!(rig.iommu.write(offset, Width::U64, ALL_ONES), Progress::Idle);
        assert_eq!(rig.read8(offset), 0, "REG-ACC-08, -09: {offset}");
    }
    assert!((600..628).step_by(4).all(|offset| rig.read(offset) == 0), "REG-ACC-08, -09");
}

// QoS ids.

#[test]
fn qos_ids_have_the_bits_that_were_configured() {
    for bits in 1..=12_u8 {
        let mut rig = with_qos_bits(bits);
        assert_eq!(rig.read(IOMMU_QOSID), 0, "REG-MAP-26");
        rig.write(IOMMU_QOSID, ALL_ONES);
        let mask = (1 << bits) - 1;
        assert_eq!(rig.read(IOMMU_QOSID), mask << 16 | mask, "REG-QOS-01 to -05: {bits}");
        rig.write(IOMMU_QOSID, 0x0001_0000);
        assert_eq!(rig.read(IOMMU_QOSID), 0x0001_0000, "REG-QOS-03");
        let _ = rig.iommu.reset();
        assert_eq!(rig.read(IOMMU_QOSID), 0, "REG-MAP-26");
    }
}

#[test]
fn qos_ids_are_zero_after_a_reset_to_bare() {
    let mut rig = Rig::start(Config::emulated().with_qos_bits(12).with_reset_to_bare(true), InterruptKinds::Msi);
    assert_eq!(rig.read(IOMMU_QOSID), 0, "REG-MAP-26, REG-QOS-01");
    rig.write(IOMMU_QOSID, ALL_ONES);
    let _ = rig.iommu.reset();
    assert_eq!(rig.read(IOMMU_QOSID), 0, "REG-MAP-26, REG-QOS-01");
}
