//! Format of the entries of first- and second-stage page tables. Layout only.
//!
//! The 4-byte entries of Sv32 and Sv32x4 have the same fields in the same places, with 22 bits of `ppn` and nothing
//! above: widened with zeros they are a [`Pte`].

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Ppn;

/// A page-table entry (64 bits); with `R` = `W` = `X` = 0 it points to the next level. Source: the privileged
/// architecture's "Sv39 page table entry".
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pte {
    /// Valid.
    pub v: bool,
    /// Readable.
    pub r: bool,
    /// Writable.
    pub w: bool,
    /// Executable.
    pub x: bool,
    /// For user privilege; every second-stage leaf must have it.
    pub u: bool,
    /// Global: in every first-stage address space.
    pub g: bool,
    /// Accessed.
    pub a: bool,
    /// Dirty.
    pub d: bool,
    /// Software's.
    #[bits(2)]
    pub rsw: u8,
    /// Page of the next level, or first page of what a leaf maps.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    /// Reserved.
    #[bits(5, access = RO)]
    pub rsvd0: u8,
    /// Bits 60:59, software's with `Svrsw60t59b`, else reserved.
    #[bits(2)]
    pub rsw60t59: u8,
    /// Memory type with `Svpbmt`, else reserved.
    #[bits(2)]
    pub pbmt: u8,
    /// `Svnapot`: the leaf is part of a naturally aligned range; 64 KiB where the low four bits of `ppn` are 8.
    pub n: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_privileged_architecture_puts_them() {
        let pte = Pte::new;
        let cases = [
            (pte().with_v(true), 0x1),
            (pte().with_r(true), 0x2),
            (pte().with_w(true), 0x4),
            (pte().with_x(true), 0x8),
            (pte().with_u(true), 0x10),
            (pte().with_g(true), 0x20),
            (pte().with_a(true), 0x40),
            (pte().with_d(true), 0x80),
            (pte().with_rsw(3), 0x300),
            (pte().with_ppn(Ppn::truncate(1)), 0x400),
            (pte().with_ppn(Ppn::truncate(u64::MAX)), 0x003f_ffff_ffff_fc00),
            (pte().with_rsw60t59(3), 0x1800_0000_0000_0000),
            (pte().with_pbmt(3), 0x6000_0000_0000_0000),
            (pte().with_n(true), 0x8000_0000_0000_0000),
        ];
        for (pte, literal) in cases {
            assert_eq!(pte.into_bits(), literal);
        }
        assert_eq!(Pte::from_bits(0x07c0_0000_0000_0000).rsvd0(), 0x1f);
    }
}
