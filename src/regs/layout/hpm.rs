//! Registers of the hardware performance monitor. Types only: what counts is decided in `hpm.rs`.

use bitfield_struct::bitfield;

/// `iocountovf` (offset 88, 32 bits, read-only): the `OF` bits of all counters. Source: "Performance-monitoring counter
/// overflow status".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Iocountovf {
    /// `iohpmcycles.OF`.
    pub cy: bool,
    /// Bit n - 1 is `iohpmevt_n.OF`, so that bit n of the register is.
    #[bits(31)]
    pub hpm: u32,
}

/// `iocountinh` (offset 92, 32 bits): counters that stand still. Source: "Performance-monitoring counter inhibits".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Iocountinh {
    /// `iohpmcycles` does not count.
    pub cy: bool,
    /// Bit n - 1 is for `iohpmctr_n`, so that bit n of the register is.
    #[bits(31)]
    pub hpm: u32,
}

/// `iohpmcycles` (offset 96, 64 bits): clock cycles. Source: "Performance-monitoring cycles counter".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iohpmcycles {
    /// Cycles, 63 bits.
    #[bits(63)]
    pub counter: u64,
    /// The counter overflowed; while it is 1, no overflow interrupts.
    pub of: bool,
}

/// `iohpmevt1` to `iohpmevt31` (offsets 352 to 592, 64 bits): what `iohpmctr_n` counts, of which transactions. Source:
/// "Performance-monitoring event selectors".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iohpmevt {
    /// `eventID`, 0 for none.
    #[bits(15)]
    pub event_id: u16,
    /// 1: the low bits of `did_gscid` up to and including the lowest 0 are not compared.
    pub dmask: bool,
    /// `process_id`, with `idt` `PSCID`.
    #[bits(20)]
    pub pid_pscid: u32,
    /// `device_id`, with `idt` `GSCID`.
    #[bits(24)]
    pub did_gscid: u32,
    /// `pid_pscid` must match.
    pub pv_pscv: bool,
    /// `did_gscid` must match.
    pub dv_gscv: bool,
    /// Filter ID type: 0 for `device_id` and `process_id`, 1 for `GSCID` and `PSCID`.
    pub idt: bool,
    /// The counter overflowed; while it is 1, no overflow interrupts.
    pub of: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals are worked out from the bit diagrams of the registers.
    #[test]
    fn overflow_and_inhibit_bits_are_where_the_specification_puts_them() {
        assert_eq!(Iocountovf::new().with_cy(true).into_bits(), 0x1, "HPM-01");
        assert_eq!(Iocountovf::new().with_hpm(1).into_bits(), 0x2, "HPM-02");
        assert_eq!(Iocountovf::new().with_hpm(0x7fff_ffff).into_bits(), 0xffff_fffe, "HPM-02");
        assert_eq!(Iocountinh::new().with_cy(true).into_bits(), 0x1, "HPM-03");
        assert_eq!(Iocountinh::new().with_hpm(1 << 30).into_bits(), 0x8000_0000, "HPM-04");
    }

    #[test]
    fn the_cycles_counter_has_63_bits_below_its_overflow_bit() {
        assert_eq!(
            Iohpmcycles::new().with_counter(i64::MAX.unsigned_abs()).into_bits(),
            0x7fff_ffff_ffff_ffff,
            "HPM-05"
        );
        assert_eq!(Iohpmcycles::new().with_of(true).into_bits(), 0x8000_0000_0000_0000, "HPM-06");
    }

    #[test]
    fn event_selectors_are_laid_out_as_specified() {
        let event = Iohpmevt::new;
        let cases = [
            (event().with_event_id(0x7fff), 0x7fff, "HPM-08"),
            (event().with_dmask(true), 0x8000, "HPM-09"),
            (event().with_pid_pscid(0xf_ffff), 0xf_ffff_0000, "HPM-10"),
            (event().with_did_gscid(0xff_ffff), 0x0fff_fff0_0000_0000, "HPM-11"),
            (event().with_pv_pscv(true), 0x1000_0000_0000_0000, "HPM-12"),
            (event().with_dv_gscv(true), 0x2000_0000_0000_0000, "HPM-13"),
            (event().with_idt(true), 0x4000_0000_0000_0000, "HPM-14"),
            (event().with_of(true), 0x8000_0000_0000_0000, "HPM-15"),
        ];
        for (register, literal, rule) in cases {
            assert_eq!(register.into_bits(), literal, "{rule}");
        }
    }
}
