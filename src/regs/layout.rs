//! Bit layout of the registers. Types only: what a write does is decided in `regs/file.rs`.

mod debug;
mod hpm;

use bitfield_struct::bitfield;

use crate::addr::Ppn;

pub use debug::{IommuQosid, TrReqCtl, TrReqIova, TrResponse};
pub use hpm::{Iocountinh, Iocountovf, Iohpmcycles, Iohpmevt};

/// `fctl` (offset 8, 32 bits): features control. Source: "Features-control register".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Fctl {
    /// 1: the structures the IOMMU reads and writes in memory are big-endian.
    pub be: bool,
    /// 1: interrupts go out on wires, 0: as MSIs.
    pub wsi: bool,
    /// 1: the second stage of RV32 guests.
    pub gxl: bool,
    #[bits(13, access = RO)]
    rsvd0: u16,
    #[bits(16, access = RO)]
    custom: u16,
}

/// What `fctl.GXL` is: no capability says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gxl {
    /// Read-only 0: the second stage has the RV64 schemes.
    #[default]
    Zero,
    /// Read-only 1: the second stage has the RV32 scheme, and every first stage is RV32.
    One,
    /// The guest chooses, 0 after reset.
    Writable,
}

/// `ddtp` (offset 16, 64 bits): device-directory-table pointer. Source: "Device-directory-table pointer".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ddtp {
    /// The 4-bit `iommu_mode` as it stands in the register; [`DdtpMode::decode`] gives it a meaning.
    #[bits(4)]
    pub iommu_mode: u8,
    /// 1 while the effects of the last write are not complete.
    pub busy: bool,
    #[bits(5, access = RO)]
    rsvd0: u8,
    /// Root page of the directory, in the guest's physical space.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    #[bits(10, access = RO)]
    rsvd1: u16,
}

/// The modes of `ddtp.iommu_mode` that are defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DdtpMode {
    /// No transaction is allowed.
    Off,
    /// No translation.
    Bare,
    /// A directory of this many levels, 1 to 3.
    Levels(u8),
}

impl DdtpMode {
    /// The meaning of the 4-bit field, `None` for reserved and custom values.
    #[must_use]
    pub const fn decode(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Off),
            1 => Some(Self::Bare),
            2 => Some(Self::Levels(1)),
            3 => Some(Self::Levels(2)),
            4 => Some(Self::Levels(3)),
            _ => None,
        }
    }
}

impl DdtpMode {
    /// The value of the 4-bit field; a directory has 1 to 3 levels.
    #[must_use]
    pub const fn encoding(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Bare => 1,
            Self::Levels(levels) => levels.saturating_add(1),
        }
    }

    /// Bits of `device_id` that a directory of this mode takes, with extended-format contexts or base-format ones; all
    /// 24 where there is no directory.
    #[must_use]
    pub const fn device_id_width(self, extended: bool) -> u32 {
        match (self, extended) {
            (Self::Levels(1), true) => 6,
            (Self::Levels(1), false) => 7,
            (Self::Levels(2), true) => 15,
            (Self::Levels(2), false) => 16,
            _ => 24,
        }
    }
}

/// `cqb`, `fqb`, `pqb` (64 bits): base and size of a queue. Source: "Command-queue base" and its siblings.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueBase {
    /// `LOG2SZ-1`: the queue has 2^(value + 1) entries.
    #[bits(5)]
    pub log2sz_minus_1: u8,
    #[bits(5, access = RO)]
    rsvd0: u8,
    /// First page of the queue, in the guest's physical space.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    #[bits(10, access = RO)]
    rsvd1: u16,
}

/// `cqcsr` (offset 72, 32 bits): command-queue control and status. Source: "Command-queue CSR".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cqcsr {
    /// Enable.
    pub cqen: bool,
    /// Interrupt enable.
    pub cie: bool,
    #[bits(6, access = RO)]
    rsvd0: u8,
    /// Memory fault on a fetch or on the store of an IOFENCE.C.
    pub cqmf: bool,
    /// A command timed out.
    pub cmd_to: bool,
    /// Illegal or unsupported command.
    pub cmd_ill: bool,
    /// An IOFENCE.C with WSI completed.
    pub fence_w_ip: bool,
    #[bits(4, access = RO)]
    rsvd1: u8,
    /// Active.
    pub cqon: bool,
    /// A write to this register is not complete.
    pub busy: bool,
    #[bits(10, access = RO)]
    rsvd2: u16,
    #[bits(4, access = RO)]
    custom: u8,
}

/// `fqcsr` (offset 76, 32 bits): fault-queue control and status. Source: "Fault queue CSR".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Fqcsr {
    /// Enable.
    pub fqen: bool,
    /// Interrupt enable.
    pub fie: bool,
    #[bits(6, access = RO)]
    rsvd0: u8,
    /// Memory fault on the store of a record.
    pub fqmf: bool,
    /// A record was lost.
    pub fqof: bool,
    #[bits(6, access = RO)]
    rsvd1: u8,
    /// Active.
    pub fqon: bool,
    /// A write to this register is not complete.
    pub busy: bool,
    #[bits(10, access = RO)]
    rsvd2: u16,
    #[bits(4, access = RO)]
    custom: u8,
}

/// `pqcsr` (offset 80, 32 bits): page-request-queue control and status. Source: "Page-request-queue CSR".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Pqcsr {
    /// Enable.
    pub pqen: bool,
    /// Interrupt enable.
    pub pie: bool,
    #[bits(6, access = RO)]
    rsvd0: u8,
    /// Memory fault on the store of a message.
    pub pqmf: bool,
    /// A message was lost.
    pub pqof: bool,
    #[bits(6, access = RO)]
    rsvd1: u8,
    /// Active.
    pub pqon: bool,
    /// A write to this register is not complete.
    pub busy: bool,
    #[bits(10, access = RO)]
    rsvd2: u16,
    #[bits(4, access = RO)]
    custom: u8,
}

/// `ipsr` (offset 84, 32 bits): interrupt pending status. Source: "Interrupt pending status register".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Ipsr {
    /// Command queue.
    pub cip: bool,
    /// Fault queue.
    pub fip: bool,
    /// Performance monitor.
    pub pmip: bool,
    /// Page-request queue.
    pub pip: bool,
    #[bits(4, access = RO)]
    rsvd0: u8,
    #[bits(8, access = RO)]
    custom: u8,
    #[bits(16, access = RO)]
    rsvd1: u16,
}

/// `icvec` (offset 760, 64 bits): which vector each interrupt cause uses. Source: "Interrupt-cause-to-vector".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Icvec {
    /// Vector of the command queue.
    #[bits(4)]
    pub civ: u8,
    /// Vector of the fault queue.
    #[bits(4)]
    pub fiv: u8,
    /// Vector of the performance monitor.
    #[bits(4)]
    pub pmiv: u8,
    /// Vector of the page-request queue.
    #[bits(4)]
    pub piv: u8,
    #[bits(16, access = RO)]
    rsvd0: u16,
    #[bits(32, access = RO)]
    custom: u32,
}

/// `msi_addr_x` (64 bits): where the MSI of vector x is stored. Source: "MSI configuration table".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MsiAddr {
    #[bits(2, access = RO)]
    zero: u8,
    /// Bits 55:2 of the address, in the guest's physical space.
    #[bits(54)]
    pub addr: u64,
    #[bits(8, access = RO)]
    rsvd0: u8,
}

/// `msi_vec_ctl_x` (32 bits): control of vector x. Source: "MSI configuration table".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsiVecCtl {
    /// 1: no message is sent, it becomes pending.
    pub m: bool,
    #[bits(31, access = RO)]
    rsvd0: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every literal below is worked out from the specification's register diagrams.
    #[test]
    fn control_registers_are_laid_out_as_specified() {
        assert_eq!(Fctl::new().with_be(true).into_bits(), 0x1);
        assert_eq!(Fctl::new().with_wsi(true).into_bits(), 0x2);
        assert_eq!(Fctl::new().with_gxl(true).into_bits(), 0x4);
        let ddtp = Ddtp::new().with_iommu_mode(4).with_busy(true).with_ppn(Ppn::truncate(0x8_31e3));
        assert_eq!(ddtp.into_bits(), 0x20c7_8c14);
        assert_eq!(Ddtp::new().with_ppn(Ppn::truncate(u64::MAX)).into_bits(), 0x003f_ffff_ffff_fc00);
        let cqb = QueueBase::new().with_log2sz_minus_1(31).with_ppn(Ppn::truncate(1));
        assert_eq!(cqb.into_bits(), 0x41f);
    }

    #[test]
    fn queue_status_registers_are_laid_out_as_specified() {
        let bits = |csr: Cqcsr| csr.into_bits();
        assert_eq!(bits(Cqcsr::new().with_cqen(true).with_cie(true)), 0x3);
        assert_eq!(bits(Cqcsr::new().with_cqmf(true)), 0x100);
        assert_eq!(bits(Cqcsr::new().with_cmd_to(true)), 0x200);
        assert_eq!(bits(Cqcsr::new().with_cmd_ill(true)), 0x400);
        assert_eq!(bits(Cqcsr::new().with_fence_w_ip(true)), 0x800);
        assert_eq!(bits(Cqcsr::new().with_cqon(true)), 0x1_0000);
        assert_eq!(bits(Cqcsr::new().with_busy(true)), 0x2_0000);
        let bits = |csr: Fqcsr| csr.into_bits();
        assert_eq!(bits(Fqcsr::new().with_fqen(true).with_fie(true)), 0x3);
        assert_eq!(bits(Fqcsr::new().with_fqmf(true)), 0x100);
        assert_eq!(bits(Fqcsr::new().with_fqof(true)), 0x200);
        assert_eq!(bits(Fqcsr::new().with_fqon(true)), 0x1_0000);
        assert_eq!(bits(Fqcsr::new().with_busy(true)), 0x2_0000);
        let bits = |csr: Pqcsr| csr.into_bits();
        assert_eq!(bits(Pqcsr::new().with_pqen(true)), 0x1, "REG-PQCSR-01");
        assert_eq!(bits(Pqcsr::new().with_pie(true)), 0x2, "REG-PQCSR-02");
        assert_eq!(bits(Pqcsr::new().with_pqmf(true)), 0x100, "REG-PQCSR-04");
        assert_eq!(bits(Pqcsr::new().with_pqof(true)), 0x200, "REG-PQCSR-05");
        assert_eq!(bits(Pqcsr::new().with_pqon(true)), 0x1_0000, "REG-PQCSR-07");
        assert_eq!(bits(Pqcsr::new().with_busy(true)), 0x2_0000, "REG-PQCSR-08");
    }

    #[test]
    fn interrupt_registers_are_laid_out_as_specified() {
        let all = Ipsr::new().with_cip(true).with_fip(true).with_pmip(true).with_pip(true);
        assert_eq!(all.into_bits(), 0xf);
        let icvec = Icvec::new().with_civ(0).with_fiv(1).with_pmiv(3).with_piv(2);
        assert_eq!(icvec.into_bits(), 0x2310);
        assert_eq!(MsiAddr::from_bits(u64::MAX).with_addr(0x2800_0000 >> 2).addr(), 0x0a00_0000);
        assert_eq!(MsiAddr::new().with_addr((1 << 54) - 1).into_bits(), 0x00ff_ffff_ffff_fffc);
        assert_eq!(MsiVecCtl::new().with_m(true).into_bits(), 1);
    }

    #[test]
    fn only_the_defined_modes_decode() {
        assert_eq!(DdtpMode::decode(0), Some(DdtpMode::Off));
        assert_eq!(DdtpMode::decode(1), Some(DdtpMode::Bare));
        assert_eq!(DdtpMode::decode(4), Some(DdtpMode::Levels(3)));
        assert!((5..16).all(|bits| DdtpMode::decode(bits).is_none()));
        assert!((0..5).all(|bits| DdtpMode::decode(bits).is_some_and(|mode| mode.encoding() == bits)));
    }
}
