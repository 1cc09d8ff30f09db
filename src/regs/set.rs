//! Sets of registers.

use super::{Register, Width, low_half};

/// A set of registers: those whose value a mirror page does not show yet.
///
/// One bit for each 4 bytes of the first 1 KiB of the page, where all registers are; that of its first 4 bytes stands
/// for a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegisterSet([u64; 4]);

impl RegisterSet {
    /// Every register there is.
    pub(crate) const ALL: Self =
        Self([Self::word(0, false), Self::word(1, false), Self::word(2, false), Self::word(3, false)]);

    /// The registers of 8 bytes.
    pub(crate) const WIDE: Self =
        Self([Self::word(0, true), Self::word(1, true), Self::word(2, true), Self::word(3, true)]);

    /// The bits of all registers in this quarter of the 1 KiB, or of those of 8 bytes alone.
    const fn word(quarter: u64, wide: bool) -> u64 {
        let (mut word, mut bit) = (0_u64, 0_u64);
        while bit < 64 {
            let place = quarter.wrapping_mul(64).wrapping_add(bit);
            // The first goes furthest down.
            word >>= 1;
            match Register::at(place.wrapping_mul(4)) {
                Some(register) if !wide || matches!(register.width(), Width::U64) => word |= 1 << 63,
                _ => {}
            }
            bit = bit.wrapping_add(1);
        }
        word
    }

    /// Whether a register that is in it begins at `offset`.
    #[inline]
    pub(crate) fn has(self, offset: u64) -> bool {
        let word = usize::try_from(offset >> 8).ok().and_then(|quarter| self.0.get(quarter));
        offset.trailing_zeros() >= 2 && word.is_some_and(|word| word.wrapping_shr(low_half(offset >> 2)) & 1 != 0)
    }

    #[inline]
    pub(crate) fn insert(&mut self, register: Register) {
        let place = register.offset() >> 2;
        if let Some(word) = self.0.get_mut(usize::from(place >> 6)) {
            *word |= 1_u64.wrapping_shl(place.into());
        }
    }

    /// Takes one register out of the set, that with the lowest offset first.
    pub(crate) fn pop(&mut self) -> Option<Register> {
        let (quarter, word) = (0_u64..).zip(&mut self.0).find(|(_, word)| **word != 0)?;
        let place = quarter.wrapping_mul(64).wrapping_add(word.trailing_zeros().into());
        *word &= word.wrapping_sub(1);
        Register::at(place.wrapping_mul(4))
    }
}
