//! Random choices that a seed repeats.

use std::ops::RangeInclusive;

use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Choices of one case.
#[derive(Debug)]
pub(crate) struct Random(TestRng);

impl Random {
    /// The choices of case `number` of a run with this seed.
    pub(crate) fn of(seed: u64, number: u64) -> Self {
        let bytes = [seed, number, 0, 0].map(u64::to_le_bytes);
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, bytes.as_flattened()))
    }

    pub(crate) fn bits(&mut self, count: u32) -> u64 {
        self.0.next_u64().checked_shr(64 - count).unwrap_or(0)
    }

    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.0.next_u64() % (range.end() - range.start() + 1)
    }

    /// True in `percent` of 100 calls.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.within(1..=100) <= percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// One of these, as often as its number says.
    pub(crate) fn weighted<T: Copy>(&mut self, from: &[(u64, T)]) -> T {
        let mut left = self.within(1..=from.iter().map(|&(weight, _)| weight).sum());
        for &(weight, choice) in from {
            if left <= weight {
                return choice;
            }
            left -= weight;
        }
        unreachable!("the weights add up to less than their sum")
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }

    fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.0.next_u64() % u64::try_from(count).unwrap()).unwrap()
    }
}
