//! What only the crate itself sees of the registers.

use super::*;
use crate::addr::{Iova, Ppn};
use crate::id::{DeviceId, ProcessId};
use crate::regs::TrResponse;

fn with(setup: Setup) -> Registers {
    Registers::of(setup)
}

fn with_debug() -> Registers {
    with(Setup { capabilities: Capabilities::new().with_dbg(true), ..Setup::NONE })
}

#[test]
fn gxl_is_what_the_platform_says() {
    // After reset, after all ones, after 0.
    for (gxl, reset, ones, zero) in [(Gxl::Zero, 0, 0, 0), (Gxl::One, 4, 4, 4), (Gxl::Writable, 0, 4, 0)] {
        let mut registers = with(Setup { gxl, ..Setup::NONE });
        let read = |registers: &Registers| (registers.read(8, Width::U32), registers.fctl().gxl());
        assert_eq!(read(&registers), (reset, reset != 0), "REG-FCTL-03: {gxl:?}");
        assert_eq!(registers.write(8, Width::U32, u64::MAX), Effect::None);
        assert_eq!(read(&registers), (ones, ones != 0), "REG-FCTL-03 to -05: {gxl:?}");
        let _ = registers.write(8, Width::U32, 0);
        assert_eq!(read(&registers), (zero, zero != 0), "REG-FCTL-03: {gxl:?}");
        let _ = registers.write(8, Width::U32, 4);
        registers.reset();
        assert_eq!(read(&registers), (reset, reset != 0), "REG-RST-04: {gxl:?}");
        assert_eq!(registers.setup().gxl, gxl, "REG-FCTL-09: what the checks of a context are told");
    }
}

#[test]
fn gxl_does_not_change_while_anything_is_on() {
    let on = [(16, 1), (16, 2), (72, 1), (76, 1)];
    for (offset, enable) in on {
        let mut registers = with(Setup { gxl: Gxl::Writable, ..Setup::NONE });
        let _ = registers.write(offset, Width::U32, enable);
        let _ = registers.write(8, Width::U32, 4);
        assert!(!registers.fctl().gxl(), "REG-FCTL-07, REG-FCTL-08: {enable} at {offset}");
    }
}

#[test]
fn a_request_is_under_way_until_it_has_its_response() {
    let mut registers = with_debug();
    assert_eq!(registers.write(600, Width::U64, 0x1234_5678_9abc_def0), Effect::None);
    // DID 0xABCDEF, PV, PID 0x54321, NW, Exe, Priv and Go.
    assert_eq!(registers.write(608, Width::U64, 0xabcd_ef01_5432_100f), Effect::Debug, "DBG-03");
    assert_eq!(registers.read(608, Width::U64), 0xabcd_ef01_5432_100f, "DBG-03: busy");
    let (iova, ctl) = registers.debug_request();
    assert_eq!(iova, Iova::new(0x1234_5678_9abc_d000), "DBG-02");
    assert_eq!((ctl.did(), ctl.pv()), (DeviceId::truncate(0xab_cdef), true), "DBG-09, DBG-12");
    assert_eq!(ctl.pid(), ProcessId::truncate(0x5_4321), "DBG-08");
    assert!(ctl.nw() && ctl.exe() && ctl.is_priv(), "DBG-04 to DBG-06");
    // Neither register changes meanwhile, and nothing starts again.
    for (offset, width, value) in
        [(600, Width::U64, 0), (608, Width::U64, 1), (608, Width::U32, 0), (612, Width::U32, 0)]
    {
        assert_eq!(registers.write(offset, width, value), Effect::None, "DBG-25");
    }
    assert_eq!(registers.debug_request(), (iova, ctl), "DBG-03, DBG-25");
    assert_eq!(registers.read(616, Width::U64), 0);
    registers.set_debug_response(TrResponse::new().with_pbmt(2).with_s(true).with_ppn(Ppn::truncate(0x8_0007)));
    assert_eq!(registers.read(608, Width::U64), 0xabcd_ef01_5432_100e, "DBG-03");
    assert_eq!(registers.read(616, Width::U64), 0x2000_1f00, "DBG-13 to DBG-18");
    // The next one starts with what is stored.
    assert_eq!(registers.write(608, Width::U32, 1), Effect::Debug, "DBG-26");
    assert_eq!(registers.debug_request().1.into_bits(), 0xabcd_ef01_0000_0001, "DBG-26");
}

#[test]
fn without_the_interface_nothing_starts() {
    let mut registers = with(Setup::NONE);
    assert_eq!(registers.write(608, Width::U64, 1), Effect::None, "REG-ACC-11, REG-MAP-24");
    assert_eq!(registers.debug_request(), (Iova::new(0), crate::regs::TrReqCtl::new()));
}

#[test]
fn qos_ids_have_the_bits_that_are_implemented() {
    for (qos_bits, mask) in [(1, 1), (2, 3), (7, 0x7f), (11, 0x7ff), (12, 0xfff)] {
        let capabilities = Capabilities::new().with_qosid(true);
        let mut registers = with(Setup { capabilities, qos_bits, ..Setup::NONE });
        assert_eq!(registers.qosid().into_bits(), 0, "REG-MAP-26");
        let _ = registers.write(624, Width::U32, u64::MAX);
        assert_eq!((registers.qosid().rcid(), registers.qosid().mcid()), (mask, mask), "REG-QOS-01 to REG-QOS-05");
        assert_eq!(registers.qos_mask(), mask, "REG-QOS-05");
        registers.reset();
        assert_eq!(registers.qosid().into_bits(), 0, "REG-MAP-26");
    }
    let mut registers = with(Setup { qos_bits: 12, ..Setup::NONE });
    let _ = registers.write(624, Width::U32, u64::MAX);
    assert_eq!((registers.qosid().into_bits(), registers.qos_mask()), (0, 0), "REG-QOS-06");
}
