//! Format of the entries of MSI page tables. Layout only.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Gpa, Ppn};

/// An MSI page-table entry: 16 bytes, two 64-bit words. Source: the advanced interrupt architecture's "MSI page
/// tables".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct MsiPte {
    /// Bits 63:0, as basic translate mode has them; [`mrif`](Self::mrif) gives what they say in MRIF mode.
    pub flat: FlatMsiPte,
    /// Bits 127:64: not looked at in basic translate mode.
    pub notice: MrifNotice,
}

const _: () = assert!(size_of::<MsiPte>() == 16);

impl MsiPte {
    /// A valid entry in basic translate mode: MSIs go to the page `ppn`.
    #[must_use]
    pub const fn flat(ppn: Ppn) -> Self {
        Self { flat: FlatMsiPte::new().with_v(true).with_m(3).with_ppn(ppn), notice: MrifNotice::new() }
    }

    /// A valid entry in MRIF mode: MSIs go to the interrupt file in memory at `mrif`, a multiple of 512, and `notice`
    /// says what is stored where then.
    #[must_use]
    pub const fn to_mrif(mrif: Gpa, notice: MrifNotice) -> Self {
        let file = MrifMsiPte::new().with_v(true).with_m(1).with_address(mrif.get() >> 9);
        Self { flat: FlatMsiPte::from_bits(file.into_bits()), notice }
    }

    /// Bits 63:0 as MRIF mode has them.
    #[must_use]
    pub const fn mrif(self) -> MrifMsiPte {
        MrifMsiPte::from_bits(self.flat.into_bits())
    }
}

/// The first word of an entry in basic translate mode.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlatMsiPte {
    /// Valid.
    pub v: bool,
    /// Mode: 3 basic translate, 1 MRIF.
    #[bits(2)]
    pub m: u8,
    /// Reserved.
    #[bits(7, access = RO)]
    pub rsvd0: u8,
    /// Page of the interrupt file.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Reserved.
    #[bits(9, access = RO)]
    pub rsvd1: u16,
    /// Custom.
    #[bits(access = RO)]
    pub c: bool,
}

/// The first word of an entry in MRIF mode.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MrifMsiPte {
    /// Valid.
    pub v: bool,
    /// Mode: 1.
    #[bits(2)]
    pub m: u8,
    /// Reserved.
    #[bits(4, access = RO)]
    pub rsvd0: u8,
    /// Bits 55:9 of the address of the interrupt file in memory.
    #[bits(47)]
    pub address: u64,
    /// Reserved.
    #[bits(9, access = RO)]
    pub rsvd1: u16,
    /// Custom.
    #[bits(access = RO)]
    pub c: bool,
}

/// The second word of an entry in MRIF mode: the notice MSI.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MrifNotice {
    /// Bits 9:0 of the notice identity (`NID`).
    #[bits(10)]
    pub nid_low: u16,
    /// Page the notice is written to (`NPPN`).
    #[bits(44, default = Ppn::truncate(0))]
    pub nppn: Ppn,
    /// Reserved.
    #[bits(6, access = RO)]
    pub rsvd0: u8,
    /// Bit 10 of the notice identity.
    pub nid_high: bool,
    /// Reserved.
    #[bits(3, access = RO)]
    pub rsvd1: u8,
}

impl MrifNotice {
    /// The 11 bits of `NID`.
    #[must_use]
    pub fn nid(self) -> u32 {
        u32::from(self.nid_low()) | u32::from(self.nid_high()) << 10
    }

    /// The notice `nid`, 11 bits, stored to the page `nppn`.
    #[must_use]
    pub const fn to(nppn: Ppn, nid: u16) -> Self {
        Self::new().with_nppn(nppn).with_nid_low(nid & 0x3ff).with_nid_high(nid & 0x400 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let words: [u64; 2] = zerocopy::transmute!(MsiPte::flat(Ppn::truncate(0x2_8001)));
        assert_eq!(words, [0x0a00_0407, 0], "MSI-08");
        assert_eq!(FlatMsiPte::new().with_m(3).into_bits(), 0x6, "MSI-07");
        assert_eq!(FlatMsiPte::from_bits(0x3f8).rsvd0(), 0x7f, "MSI-08");
        assert_eq!(FlatMsiPte::from_bits(0x7fc0_0000_0000_0000).rsvd1(), 0x1ff, "MSI-08");
        assert!(FlatMsiPte::from_bits(1 << 63).c(), "MSI-07");
    }

    #[test]
    fn fields_of_mrif_mode_are_where_the_specification_puts_them() {
        let notice = MrifNotice::to(Ppn::truncate(0x2_8001), 0x7ff);
        let words: [u64; 2] = zerocopy::transmute!(MsiPte::to_mrif(Gpa::new(0x00ff_ffff_ffff_fe00), notice));
        // Address bits 55:9 at 53:7; NID 9:0 at 9:0, NPPN at 53:10, NID 10 at 60.
        assert_eq!(words, [0x003f_ffff_ffff_ff83, 0x1000_0000_0a00_07ff], "MSI-09");
        assert_eq!(notice.nid(), 0x7ff, "MSI-09");
        assert_eq!(MrifMsiPte::from_bits(0x78).rsvd0(), 0xf, "MSI-09");
        assert_eq!(MrifMsiPte::from_bits(0x7fc0_0000_0000_0000).rsvd1(), 0x1ff, "MSI-09");
        assert_eq!(MrifNotice::from_bits(0x0fc0_0000_0000_0000).rsvd0(), 0x3f, "MSI-09");
        assert_eq!(MrifNotice::from_bits(0xe000_0000_0000_0000).rsvd1(), 7, "MSI-09");
    }
}
