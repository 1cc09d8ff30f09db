//! Formats of the process directory: the non-leaf entry and the process context. Layout only.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Ppn;
use crate::ddt::entry::Fsc;
use crate::id::Pscid;

/// A non-leaf entry of the directory (64 bits). Source: "Non-leaf PDT entry".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PdtEntry {
    /// Valid.
    pub v: bool,
    /// Reserved.
    #[bits(9, access = RO)]
    pub rsvd0: u16,
    /// Page of the next level: guest-physical, where the device has a second stage.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Reserved.
    #[bits(10, access = RO)]
    pub rsvd1: u16,
}

/// A process context: 16 bytes, two 64-bit words. Source: "Process context".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct ProcessContext {
    /// Translation attributes.
    pub ta: ProcessTa,
    /// First-stage context: an `iosatp`, with the encodings of the device's `SXL`.
    pub fsc: Fsc,
}

const _: () = assert!(size_of::<ProcessContext>() == 16);

/// `ta` of a process context (64 bits). Source: "Process context", "Translation attributes (ta)".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProcessTa {
    /// Valid.
    pub v: bool,
    /// Requests for supervisor privilege are allowed.
    pub ens: bool,
    /// Supervisor accesses may touch user pages.
    pub sum: bool,
    /// Reserved.
    #[bits(9, access = RO)]
    pub rsvd0: u16,
    /// Tag of the first-stage address space.
    #[bits(20, default = Pscid::truncate(0))]
    pub pscid: Pscid,
    /// Reserved.
    #[bits(access = RO)]
    pub rsvd1: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals are worked out from the bit diagrams of the process-context chapter.
    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let ta = ProcessTa::new;
        assert_eq!(ta().with_v(true).into_bits(), 0x1, "PC-01");
        assert_eq!(ta().with_ens(true).into_bits(), 0x2, "PC-02");
        assert_eq!(ta().with_sum(true).into_bits(), 0x4, "PC-03");
        assert_eq!(ta().with_pscid(Pscid::truncate(0xf_ffff)).into_bits(), 0xffff_f000, "PC-04");
        assert_eq!(ProcessTa::from_bits(0xff8).rsvd0(), 0x1ff, "PC-05");
        assert_eq!(ProcessTa::from_bits(0xffff_ffff_0000_0000).rsvd1(), u32::MAX, "PC-05");
        let context = ProcessContext { ta: ta().with_v(true), fsc: Fsc::new().with_mode(8).with_ppn(Ppn::truncate(2)) };
        let words: [u64; 2] = zerocopy::transmute!(context);
        assert_eq!(words, [1, 0x8000_0000_0000_0002], "PC-06");
        let entry = PdtEntry::new().with_v(true).with_ppn(Ppn::truncate(0x8_31e6));
        assert_eq!(entry.into_bits(), 0x20c7_9801, "PDT-04");
        assert_eq!(PdtEntry::from_bits(0x3fe).rsvd0(), 0x1ff, "PDT-04");
        assert_eq!(PdtEntry::from_bits(0xffc0_0000_0000_0000).rsvd1(), 0x3ff, "PDT-04");
    }
}
