//! The register page: where each register is, how wide it is, and which part of it an access touches.
//!
//! [`layout`] and [`capabilities`] are the bit formats, [`file`] is the state and what reads and writes do to it.
//! Source: "Memory-mapped register interface".

use core::fmt;

pub mod capabilities;
pub(crate) mod file;
pub mod layout;
mod set;

pub use capabilities::{Capabilities, Igs};
pub use layout::{
    Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Gxl, Icvec, Iocountinh, Iocountovf, Iohpmcycles, Iohpmevt, IommuQosid, Ipsr,
    MsiAddr, MsiVecCtl, Pqcsr, QueueBase, TrReqCtl, TrReqIova, TrResponse,
};
pub(crate) use set::RegisterSet;

/// Width of a register access. Other widths are UNSPECIFIED; see [`mmio_read`](crate::VIommu::mmio_read).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Width {
    /// 4 bytes.
    U32,
    /// 8 bytes.
    U64,
}

impl Width {
    /// Number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }

    /// Number of 4-byte words.
    const fn words(self) -> usize {
        match self {
            Self::U32 => 1,
            Self::U64 => 2,
        }
    }
}

/// The low half of a register, or of a value on its way to or from one.
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(crate) const fn low_half(value: u64) -> u32 {
    value as u32
}

/// A register of the facilities this crate knows; [`Display`](fmt::Display) gives the specification's name.
///
/// A host's driver of the physical IOMMU takes the offsets from here, and a host that counts exits the names. In a
/// vIOMMU the registers of facilities that are not offered (ATS, HPM, DBG, QOSID, as the [`Config`](crate::Config)
/// says), reserved and custom offsets read 0 and ignore writes. Source: "Register layout".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Register {
    /// `capabilities`, [`Capabilities`].
    Capabilities,
    /// `fctl`, [`Fctl`].
    Fctl,
    /// `ddtp`, [`Ddtp`].
    Ddtp,
    /// `cqb`, [`QueueBase`].
    Cqb,
    /// `cqh`: index of the next command to be carried out.
    Cqh,
    /// `cqt`: index behind the last command; software's.
    Cqt,
    /// `fqb`, [`QueueBase`].
    Fqb,
    /// `fqh`: index of the next record to be read; software's.
    Fqh,
    /// `fqt`: index behind the last record.
    Fqt,
    /// `pqb`, [`QueueBase`].
    Pqb,
    /// `pqh`: index of the next page request to be read; software's.
    Pqh,
    /// `pqt`: index behind the last page request.
    Pqt,
    /// `cqcsr`, [`Cqcsr`].
    Cqcsr,
    /// `fqcsr`, [`Fqcsr`].
    Fqcsr,
    /// `pqcsr`, [`Pqcsr`].
    Pqcsr,
    /// `ipsr`, [`Ipsr`].
    Ipsr,
    /// `iocountovf`, [`Iocountovf`].
    Iocountovf,
    /// `iocountinh`, [`Iocountinh`].
    Iocountinh,
    /// `iohpmcycles`, [`Iohpmcycles`].
    Iohpmcycles,
    /// `iohpmctr_n` of this counter, 1 to 31: the count, 64 bits.
    Iohpmctr(u8),
    /// `iohpmevt_n` of this counter, 1 to 31, [`Iohpmevt`].
    Iohpmevt(u8),
    /// `tr_req_iova`, [`TrReqIova`].
    TrReqIova,
    /// `tr_req_ctl`, [`TrReqCtl`].
    TrReqCtl,
    /// `tr_response`, [`TrResponse`].
    TrResponse,
    /// `iommu_qosid`, [`IommuQosid`].
    IommuQosid,
    /// `icvec`, [`Icvec`].
    Icvec,
    /// `msi_addr_x` of this vector, 0 to 15, [`MsiAddr`].
    MsiAddr(u8),
    /// `msi_data_x` of this vector, 0 to 15: the 4 bytes that are stored.
    MsiData(u8),
    /// `msi_vec_ctl_x` of this vector, 0 to 15, [`MsiVecCtl`].
    MsiVecCtl(u8),
}

/// Which 4-byte lanes of a register an access covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// The whole register.
    All,
    /// Bits 31:0 of an 8-byte register.
    Low,
    /// Bits 63:32 of an 8-byte register.
    High,
}

impl Lanes {
    /// What an access of these lanes reads of a register that holds `value`.
    pub(crate) const fn select(self, value: u64) -> u64 {
        match self {
            Self::All => value,
            Self::Low => value & 0xffff_ffff,
            Self::High => value >> 32,
        }
    }

    /// `stored` with these lanes replaced by `written` (rule REG-ACC-07).
    pub(crate) const fn merge(self, stored: u64, written: u64) -> u64 {
        match self {
            Self::All => written,
            Self::Low => (stored & !0xffff_ffff) | (written & 0xffff_ffff),
            Self::High => (stored & 0xffff_ffff) | (written << 32),
        }
    }
}

impl Register {
    /// The register and lanes an access touches; `None` where there is no register, and for misaligned accesses and
    /// those that cover two registers.
    // UNSPECIFIED: such accesses read 0 and write nothing (rules REG-ACC-08, REG-ACC-09); an 8-byte access to an 8-byte
    // register is one operation (REG-ACC-05).
    pub(crate) const fn access(offset: u64, width: Width) -> Option<(Self, Lanes)> {
        let aligned = match width {
            Width::U32 => offset.trailing_zeros() >= 2,
            Width::U64 => offset.trailing_zeros() >= 3,
        };
        if !aligned {
            return None;
        }
        match (Self::at(offset), width) {
            (Some(register), _) => match (register.width(), width) {
                (Width::U32, Width::U32) | (Width::U64, Width::U64) => Some((register, Lanes::All)),
                (Width::U64, Width::U32) => Some((register, Lanes::Low)),
                (Width::U32, Width::U64) => None,
            },
            (None, Width::U32) => match Self::at(offset & !4) {
                Some(register) if matches!(register.width(), Width::U64) => Some((register, Lanes::High)),
                _ => None,
            },
            (None, Width::U64) => None,
        }
    }

    /// The register that starts at `offset` of the register page.
    #[must_use]
    pub const fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0 => Self::Capabilities,
            8 => Self::Fctl,
            16 => Self::Ddtp,
            24 => Self::Cqb,
            32 => Self::Cqh,
            36 => Self::Cqt,
            40 => Self::Fqb,
            48 => Self::Fqh,
            52 => Self::Fqt,
            56 => Self::Pqb,
            64 => Self::Pqh,
            68 => Self::Pqt,
            72 => Self::Cqcsr,
            76 => Self::Fqcsr,
            80 => Self::Pqcsr,
            84 => Self::Ipsr,
            88 => Self::Iocountovf,
            92 => Self::Iocountinh,
            96 => Self::Iohpmcycles,
            // Counter n is 8 n behind the cycles counter, and its event 8 n behind counter 31.
            104..352 if offset.trailing_zeros() >= 3 => Self::Iohpmctr(eighth(offset.wrapping_sub(96))),
            352..600 if offset.trailing_zeros() >= 3 => Self::Iohpmevt(eighth(offset.wrapping_sub(344))),
            600 => Self::TrReqIova,
            608 => Self::TrReqCtl,
            616 => Self::TrResponse,
            624 => Self::IommuQosid,
            760 => Self::Icvec,
            768..1024 => {
                // Four bits of vector number above four bits of place in the entry.
                #[expect(clippy::as_conversions, reason = "masked to four bits")]
                let vector = ((offset >> 4) & 0xf) as u8;
                match offset & 0xf {
                    0 => Self::MsiAddr(vector),
                    8 => Self::MsiData(vector),
                    12 => Self::MsiVecCtl(vector),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// Offset in the register page, in bytes.
    #[inline]
    #[must_use]
    pub fn offset(self) -> u16 {
        let entry = |vector: u8, place: u16| 0x300 | u16::from(vector & 0xf) << 4 | place;
        let counter = |base: u16, n: u8| base.wrapping_add(u16::from(n.clamp(1, 31)) << 3);
        match self {
            Self::Capabilities => 0,
            Self::Fctl => 8,
            Self::Ddtp => 16,
            Self::Cqb => 24,
            Self::Cqh => 32,
            Self::Cqt => 36,
            Self::Fqb => 40,
            Self::Fqh => 48,
            Self::Fqt => 52,
            Self::Pqb => 56,
            Self::Pqh => 64,
            Self::Pqt => 68,
            Self::Cqcsr => 72,
            Self::Fqcsr => 76,
            Self::Pqcsr => 80,
            Self::Ipsr => 84,
            Self::Iocountovf => 88,
            Self::Iocountinh => 92,
            Self::Iohpmcycles => 96,
            Self::Iohpmctr(n) => counter(96, n),
            Self::Iohpmevt(n) => counter(344, n),
            Self::TrReqIova => 600,
            Self::TrReqCtl => 608,
            Self::TrResponse => 616,
            Self::IommuQosid => 624,
            Self::Icvec => 760,
            Self::MsiAddr(vector) => entry(vector, 0),
            Self::MsiData(vector) => entry(vector, 8),
            Self::MsiVecCtl(vector) => entry(vector, 12),
        }
    }

    /// Architected width.
    #[inline]
    #[must_use]
    pub const fn width(self) -> Width {
        match self {
            Self::Capabilities
            | Self::Ddtp
            | Self::Cqb
            | Self::Fqb
            | Self::Pqb
            | Self::Icvec
            | Self::MsiAddr(_)
            | Self::Iohpmcycles
            | Self::Iohpmctr(_)
            | Self::Iohpmevt(_)
            | Self::TrReqIova
            | Self::TrReqCtl
            | Self::TrResponse => Width::U64,
            _ => Width::U32,
        }
    }
}

/// The eighth of a number below 256.
#[expect(clippy::as_conversions, reason = "masked to five bits")]
const fn eighth(bytes: u64) -> u8 {
    ((bytes >> 3) & 0x1f) as u8
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities => f.pad("capabilities"),
            Self::Fctl => f.pad("fctl"),
            Self::Ddtp => f.pad("ddtp"),
            Self::Cqb => f.pad("cqb"),
            Self::Cqh => f.pad("cqh"),
            Self::Cqt => f.pad("cqt"),
            Self::Fqb => f.pad("fqb"),
            Self::Fqh => f.pad("fqh"),
            Self::Fqt => f.pad("fqt"),
            Self::Pqb => f.pad("pqb"),
            Self::Pqh => f.pad("pqh"),
            Self::Pqt => f.pad("pqt"),
            Self::Cqcsr => f.pad("cqcsr"),
            Self::Fqcsr => f.pad("fqcsr"),
            Self::Pqcsr => f.pad("pqcsr"),
            Self::Ipsr => f.pad("ipsr"),
            Self::Iocountovf => f.pad("iocountovf"),
            Self::Iocountinh => f.pad("iocountinh"),
            Self::Iohpmcycles => f.pad("iohpmcycles"),
            Self::Iohpmctr(n) => write!(f, "iohpmctr{n}"),
            Self::Iohpmevt(n) => write!(f, "iohpmevt{n}"),
            Self::TrReqIova => f.pad("tr_req_iova"),
            Self::TrReqCtl => f.pad("tr_req_ctl"),
            Self::TrResponse => f.pad("tr_response"),
            Self::IommuQosid => f.pad("iommu_qosid"),
            Self::Icvec => f.pad("icvec"),
            Self::MsiAddr(vector) => write!(f, "msi_addr_{vector}"),
            Self::MsiData(vector) => write!(f, "msi_data_{vector}"),
            Self::MsiVecCtl(vector) => write!(f, "msi_vec_ctl_{vector}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_an_offset_of_its_own() {
        let (mut all, mut again) = (RegisterSet::ALL, RegisterSet::default());
        let mut seen = heapless::Vec::<_, 160>::new();
        while let Some(register) = all.pop() {
            let offset = register.offset();
            assert_eq!(Register::at(offset.into()), Some(register));
            assert!(seen.last().is_none_or(|last| *last < offset), "lowest first: {register}");
            seen.push(offset).unwrap();
            again.insert(register);
        }
        assert_eq!(seen.len(), 17 + 3 + 2 * 31 + 4 + 48, "REG-MAP-01 to REG-MAP-33");
        assert_eq!(again, RegisterSet::ALL);
        assert_eq!((0..8192).filter(|&offset| Register::at(offset).is_some()).count(), seen.len());
    }

    #[test]
    fn registers_are_where_the_register_layout_puts_them() {
        let cases = [
            (88, 4, Register::Iocountovf, "REG-MAP-18"),
            (92, 4, Register::Iocountinh, "REG-MAP-19"),
            (96, 8, Register::Iohpmcycles, "REG-MAP-20"),
            (104, 8, Register::Iohpmctr(1), "REG-MAP-21"),
            (0x158, 8, Register::Iohpmctr(31), "REG-MAP-21"),
            (352, 8, Register::Iohpmevt(1), "REG-MAP-22"),
            (0x250, 8, Register::Iohpmevt(31), "REG-MAP-22"),
            (600, 8, Register::TrReqIova, "REG-MAP-23"),
            (608, 8, Register::TrReqCtl, "REG-MAP-24"),
            (616, 8, Register::TrResponse, "REG-MAP-25"),
            (624, 4, Register::IommuQosid, "REG-MAP-26"),
        ];
        for (offset, bytes, register, rule) in cases {
            assert_eq!(Register::at(offset), Some(register), "{rule}");
            assert_eq!((u64::from(register.offset()), register.width().bytes()), (offset, bytes), "{rule}");
        }
        assert_eq!(Register::Iohpmctr(0).offset(), 104);
        assert_eq!(Register::Iohpmevt(u8::MAX).offset(), 592);
    }

    #[test]
    fn an_access_that_is_misaligned_or_covers_two_registers_touches_none() {
        for offset in [8, 32, 48, 64, 72, 80, 88, 624, 776, 1016] {
            assert_eq!(Register::access(offset, Width::U64), None, "REG-ACC-09 at {offset}");
        }
        for offset in [1, 2, 3, 5, 17, 18] {
            assert_eq!(Register::access(offset, Width::U32), None, "REG-ACC-08 at {offset}");
        }
        assert_eq!(Register::access(4, Width::U64), None);
        assert_eq!(Register::access(20, Width::U32), Some((Register::Ddtp, Lanes::High)));
        assert_eq!(Register::access(16, Width::U64), Some((Register::Ddtp, Lanes::All)));
        assert_eq!(Register::access(36, Width::U32), Some((Register::Cqt, Lanes::All)));
        assert_eq!(Register::access(!7, Width::U64), None);
    }

    #[test]
    fn lanes_select_and_merge_halves() {
        assert_eq!(Lanes::Low.merge(0x1111_2222_3333_4444, 0xaaaa_aaaa), 0x1111_2222_aaaa_aaaa);
        assert_eq!(Lanes::High.merge(0x1111_2222_3333_4444, 0xaaaa_aaaa), 0xaaaa_aaaa_3333_4444);
        assert_eq!(Lanes::High.select(0x1111_2222_3333_4444), 0x1111_2222);
    }
}
