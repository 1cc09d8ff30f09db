//! The geometry of a translation scheme: how an address is taken apart on the way down its tables.

use crate::id::{FirstStageMode, SecondStageMode};
use crate::regs::Width;

/// What the walk knows of a scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    levels: u8,
    /// Bits of an address that one level takes, the root's further bits not counted.
    index_bits: u8,
    /// Bits the index of the root has more: 2 in the second stage (rule S2-02).
    root_bits: u8,
    /// Entries of 4 or 8 bytes.
    pub(crate) width: Width,
}

impl Scheme {
    pub(crate) const fn first_stage(mode: FirstStageMode) -> Self {
        match mode {
            FirstStageMode::Sv32 => Self { levels: 2, index_bits: 10, root_bits: 0, width: Width::U32 },
            FirstStageMode::Sv39 => Self::rv64(3, 0),
            FirstStageMode::Sv48 => Self::rv64(4, 0),
            FirstStageMode::Sv57 => Self::rv64(5, 0),
        }
    }

    pub(crate) const fn second_stage(mode: SecondStageMode) -> Self {
        match mode {
            SecondStageMode::Sv32x4 => Self { levels: 2, index_bits: 10, root_bits: 2, width: Width::U32 },
            SecondStageMode::Sv39x4 => Self::rv64(3, 2),
            SecondStageMode::Sv48x4 => Self::rv64(4, 2),
            SecondStageMode::Sv57x4 => Self::rv64(5, 2),
        }
    }

    const fn rv64(levels: u8, root_bits: u8) -> Self {
        Self { levels, index_bits: 9, root_bits, width: Width::U64 }
    }

    pub(crate) const fn root_level(self) -> u8 {
        self.levels.saturating_sub(1)
    }

    /// An entry at `level` maps, or leads to, 2^this bytes.
    pub(crate) const fn shift(self, level: u8) -> u8 {
        // At most 5 levels of 10 bits.
        level.wrapping_mul(self.index_bits).wrapping_add(12)
    }

    /// Bytes from the start of its table to the entry at `level` for `address`.
    #[inline]
    pub(crate) fn offset(self, address: u64, level: u8) -> u64 {
        let bits =
            if level == self.root_level() { self.index_bits.saturating_add(self.root_bits) } else { self.index_bits };
        let index = address.wrapping_shr(self.shift(level).into()) & !u64::MAX.wrapping_shl(bits.into());
        index.wrapping_mul(self.width.bytes().into())
    }

    /// Width of the addresses it takes.
    pub(crate) const fn input_bits(self) -> u8 {
        self.shift(self.levels).saturating_add(self.root_bits)
    }

    /// Whether a first stage takes this address: sign-extended from its highest bit, for Sv32 zero-extended (rule
    /// S1-04).
    #[inline]
    pub(crate) fn is_canonical(self, iova: u64) -> bool {
        let bits = self.input_bits();
        match self.width {
            Width::U32 => iova.wrapping_shr(bits.into()) == 0,
            // All ones or all zeros from the highest bit on: one more makes 0 or 1.
            Width::U64 => {
                let upper = iova.wrapping_shr(bits.saturating_sub(1).into());
                upper == 0 || upper == u64::MAX.wrapping_shr(bits.saturating_sub(1).into())
            }
        }
    }

    /// Whether a second stage takes this address: zero-extended (rule S2-03).
    #[inline]
    pub(crate) fn is_within(self, address: u64) -> bool {
        address.wrapping_shr(self.input_bits().into()) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart_as_each_scheme_says() {
        // Offsets in the tables, from the root down, of an address with a different index at each level.
        let cases: [(Scheme, u64, &[u64]); 6] = [
            (Scheme::first_stage(FirstStageMode::Sv32), 0x3ff << 22 | 5 << 12, &[0xffc, 0x14]),
            (Scheme::first_stage(FirstStageMode::Sv39), 0x1ff << 30 | 6 << 21 | 5 << 12, &[0xff8, 0x30, 0x28]),
            (
                Scheme::first_stage(FirstStageMode::Sv57),
                1 << 48 | 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12,
                &[8, 16, 24, 32, 40],
            ),
            (Scheme::second_stage(SecondStageMode::Sv32x4), 0xfff << 22 | 5 << 12, &[0x3ffc, 0x14]),
            (Scheme::second_stage(SecondStageMode::Sv39x4), 0x7ff << 30 | 6 << 21 | 5 << 12, &[0x3ff8, 0x30, 0x28]),
            (Scheme::second_stage(SecondStageMode::Sv57x4), 0x7ff << 48 | 2 << 39, &[0x3ff8, 16, 0, 0, 0]),
        ];
        for (scheme, address, offsets) in cases {
            let found = (0..scheme.levels).rev().map(|level| scheme.offset(address, level));
            assert!(found.eq(offsets.iter().copied()), "S1-02, S1-03, S2-02: {scheme:?}");
        }
    }

    #[test]
    fn the_first_stage_takes_sign_extended_addresses_and_sv32_zero_extended_ones() {
        for (mode, top) in [(FirstStageMode::Sv39, 38), (FirstStageMode::Sv48, 47), (FirstStageMode::Sv57, 56)] {
            let scheme = Scheme::first_stage(mode);
            for (iova, canonical) in [
                ((1 << top) - 1, true),
                (1 << top, false),
                (u64::MAX << top, true),
                (u64::MAX << top << 1, false),
                (u64::MAX, true),
                (1 << 63, false),
            ] {
                assert_eq!(scheme.is_canonical(iova), canonical, "S1-04: {iova:#x} in {mode:?}");
            }
        }
        let sv32 = Scheme::first_stage(FirstStageMode::Sv32);
        assert!(sv32.is_canonical(0xffff_ffff) && sv32.is_canonical(0x8000_0000), "S1-04");
        assert!(!sv32.is_canonical(0x1_0000_0000) && !sv32.is_canonical(u64::MAX), "S1-04");
    }

    #[test]
    fn the_second_stage_takes_two_more_bits_zero_extended() {
        let modes =
            [SecondStageMode::Sv32x4, SecondStageMode::Sv39x4, SecondStageMode::Sv48x4, SecondStageMode::Sv57x4];
        for (mode, bits) in modes.into_iter().zip([34, 41, 50, 59]) {
            let scheme = Scheme::second_stage(mode);
            assert_eq!((scheme.input_bits(), mode.input_width()), (bits, bits), "S2-03");
            assert!(scheme.is_within((1 << bits) - 1) && !scheme.is_within(1 << bits), "S2-03");
            assert!(!scheme.is_within(u64::MAX), "S2-03");
        }
    }
}
