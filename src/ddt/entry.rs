//! Formats of the device directory: the non-leaf entry and the device context in its two sizes. Layout only.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Ppn;
use crate::id::{Gscid, Pscid};

/// A non-leaf entry of the directory (64 bits). Source: "Non-leaf DDT entry".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DdtEntry {
    /// Valid.
    pub v: bool,
    /// Reserved.
    #[bits(9, access = RO)]
    pub rsvd0: u16,
    /// Page of the next level, in the guest's physical space.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Reserved.
    #[bits(10, access = RO)]
    pub rsvd1: u16,
}

/// A device context of the base format: 32 bytes. Source: "Base-format device context".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct BaseContext {
    /// Translation control.
    pub tc: Tc,
    /// Second-stage address translation.
    pub iohgatp: Iohgatp,
    /// Translation attributes.
    pub ta: Ta,
    /// First-stage context.
    pub fsc: Fsc,
}

/// A device context of the extended format: 64 bytes. Source: "Extended-format device context".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct ExtendedContext {
    /// The fields both formats have.
    pub base: BaseContext,
    /// MSI page table pointer.
    pub msiptp: Msiptp,
    /// Which bits of a page number select an interrupt file.
    pub msi_addr_mask: MsiPageBits,
    /// What the other bits of the page number must be.
    pub msi_addr_pattern: MsiPageBits,
    /// All reserved.
    pub rsvd: u64,
}

const _: () = assert!(size_of::<BaseContext>() == 32 && size_of::<ExtendedContext>() == 64);

/// `tc` (64 bits): translation control. Source: "Translation control (tc)".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tc {
    /// Valid.
    pub v: bool,
    /// ATS is permitted.
    pub en_ats: bool,
    /// Page requests are permitted.
    pub en_pri: bool,
    /// ATS translations answer with guest-physical addresses.
    pub t2gpa: bool,
    /// Faults of the translation process are not recorded.
    pub dtf: bool,
    /// `fsc` is a process directory.
    pub pdtv: bool,
    /// Responses to page requests carry the PASID.
    pub prpr: bool,
    /// A and D bits of second-stage entries are updated by hardware.
    pub gade: bool,
    /// A and D bits of first-stage entries are updated by hardware.
    pub sade: bool,
    /// Requests without a `process_id` use `process_id` 0.
    pub dpe: bool,
    /// Process directory and first-stage tables are big-endian.
    pub sbe: bool,
    /// RV32 first stage.
    pub sxl: bool,
    /// Reserved.
    #[bits(12, access = RO)]
    pub rsvd0: u16,
    /// Custom.
    #[bits(access = RO)]
    pub custom: u8,
    /// Reserved.
    #[bits(access = RO)]
    pub rsvd1: u32,
}

/// `iohgatp` (64 bits): the second stage. Source: "IO hypervisor guest address translation and protection".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Iohgatp {
    /// Root page; the 16-KiB table is aligned to its size.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Tag of the address space.
    #[bits(16, default = Gscid::truncate(0))]
    pub gscid: Gscid,
    /// Scheme: 0 Bare.
    #[bits(4)]
    pub mode: u8,
}

/// `ta` (64 bits): translation attributes. Source: "Translation attributes (ta)".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ta {
    /// Reserved.
    #[bits(12, access = RO)]
    pub rsvd0: u16,
    /// Tag of the first-stage address space.
    #[bits(20, default = Pscid::truncate(0))]
    pub pscid: Pscid,
    /// Reserved.
    #[bits(access = RO)]
    pub rsvd1: u8,
    /// Quality-of-service resource-control id.
    #[bits(12)]
    pub rcid: u16,
    /// Quality-of-service monitoring-counter id.
    #[bits(12)]
    pub mcid: u16,
}

/// `fsc` (64 bits): `iosatp` with `PDTV = 0`, `pdtp` with `PDTV = 1`. Source: "First-stage context (fsc)".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fsc {
    /// Root page of the first-stage table or of the process directory.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Reserved.
    #[bits(access = RO)]
    pub rsvd0: u16,
    /// Scheme or number of levels: 0 Bare.
    #[bits(4)]
    pub mode: u8,
}

/// `msiptp` (64 bits): MSI page table pointer. Source: "MSI page table pointer (msiptp)".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Msiptp {
    /// Root page.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Reserved.
    #[bits(access = RO)]
    pub rsvd0: u16,
    /// 0 Off, 1 Flat.
    #[bits(4)]
    pub mode: u8,
}

/// `msi_addr_mask` and `msi_addr_pattern` (64 bits). Source: "MSI address mask and pattern".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsiPageBits {
    /// Bits of a guest-physical page number.
    #[bits(52)]
    pub page: u64,
    /// Reserved.
    #[bits(12, access = RO)]
    pub rsvd0: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals are worked out from the bit diagrams of the device-context chapter.
    #[test]
    fn tc_bits_are_where_the_specification_puts_them() {
        let tc = Tc::new;
        let cases = [
            (tc().with_v(true), 0x1),
            (tc().with_en_ats(true), 0x2),
            (tc().with_en_pri(true), 0x4),
            (tc().with_t2gpa(true), 0x8),
            (tc().with_dtf(true), 0x10),
            (tc().with_pdtv(true), 0x20),
            (tc().with_prpr(true), 0x40),
            (tc().with_gade(true), 0x80),
            (tc().with_sade(true), 0x100),
            (tc().with_dpe(true), 0x200),
            (tc().with_sbe(true), 0x400),
            (tc().with_sxl(true), 0x800),
        ];
        for (tc, literal) in cases {
            assert_eq!(tc.into_bits(), literal, "DC-01 to DC-12");
        }
        assert_eq!(Tc::from_bits(0xff_f000).rsvd0(), 0xfff, "DC-15");
        assert_eq!(Tc::from_bits(0xff00_0000).custom(), 0xff, "DC-16");
        assert_eq!(Tc::from_bits(0xffff_ffff_0000_0000).rsvd1(), u32::MAX, "DC-15");
    }

    #[test]
    fn the_other_words_are_laid_out_as_specified() {
        let iohgatp = Iohgatp::new().with_mode(8).with_gscid(Gscid::truncate(0xabcd)).with_ppn(Ppn::truncate(1));
        assert_eq!(iohgatp.into_bits(), 0x8abc_d000_0000_0001, "DC-17 to DC-19");
        assert_eq!(Ta::new().with_pscid(Pscid::truncate(1)).into_bits(), 0x1000, "DC-21");
        assert_eq!(Ta::new().with_rcid(0xfff).into_bits(), 0x000f_ff00_0000_0000, "DC-22");
        assert_eq!(Ta::new().with_mcid(0xfff).into_bits(), 0xfff0_0000_0000_0000, "DC-22");
        assert_eq!((Ta::from_bits(0xfff).rsvd0(), Ta::from_bits(0xff << 32).rsvd1()), (0xfff, 0xff), "DC-23");
        assert_eq!(Fsc::new().with_mode(10).with_ppn(Ppn::truncate(0x8_3b72)).into_bits(), 0xa000_0000_0008_3b72);
        assert_eq!(Fsc::from_bits(0x0fff_f000_0000_0000).rsvd0(), 0xffff, "DC-24");
        assert_eq!(Msiptp::new().with_mode(1).into_bits(), 1 << 60, "DC-27");
        assert_eq!(MsiPageBits::from_bits(u64::MAX).page(), (1 << 52) - 1, "DC-28");
        let entry = DdtEntry::new().with_v(true).with_ppn(Ppn::truncate(0x8_31e6));
        assert_eq!(entry.into_bits(), 0x20c7_9801, "DDT-10");
        assert_eq!(DdtEntry::from_bits(0x3fe).rsvd0(), 0x1ff, "DDT-10");
        assert_eq!(DdtEntry::from_bits(0xffc0_0000_0000_0000).rsvd1(), 0x3ff, "DDT-10");
    }
}
