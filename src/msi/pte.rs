//! Format of the entries of MSI page tables: basic translate mode. Layout only.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Ppn;

/// An MSI page-table entry: 16 bytes, two 64-bit words. Source: the advanced interrupt architecture's "MSI page tables".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct MsiPte {
    /// Bits 63:0.
    pub flat: FlatMsiPte,
    /// Bits 127:64: not looked at in basic translate mode.
    pub rsvd: u64,
}

const _: () = assert!(size_of::<MsiPte>() == 16);

impl MsiPte {
    /// A valid entry in basic translate mode: MSIs go to the page `ppn`.
    #[must_use]
    pub const fn flat(ppn: Ppn) -> Self {
        Self { flat: FlatMsiPte::new().with_v(true).with_m(3).with_ppn(ppn), rsvd: 0 }
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
}
