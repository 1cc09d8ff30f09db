//! Index arithmetic of the circular queues, the same for all three.

use crate::addr::{Gpa, PAGE_SIZE};
use crate::regs::QueueBase;

/// Where a queue is and how large: what a base register says, for entries of `ENTRY` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring<const ENTRY: u64> {
    base: Gpa,
    mask: u32,
}

impl<const ENTRY: u64> Ring<ENTRY> {
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "at most 4096, checked here")]
    const PER_PAGE: u32 = {
        assert!(ENTRY.is_power_of_two() && ENTRY <= PAGE_SIZE);
        PAGE_SIZE.wrapping_div(ENTRY) as u32
    };

    #[inline]
    pub(crate) fn new(base: QueueBase) -> Self {
        Self { base: base.ppn().base(), mask: base.index_mask() }
    }

    /// Address of an entry (rule Q-03).
    // UNSPECIFIED: in a misaligned queue, base and offset are ORed (rule REG-QB-06).
    pub(crate) fn address(self, index: u32) -> Gpa {
        self.base.or(u64::from(index & self.mask).wrapping_mul(ENTRY))
    }

    /// The index after this one.
    pub(crate) const fn next(self, index: u32) -> u32 {
        self.after(index, 1)
    }

    /// The index so many entries after this one.
    pub(crate) const fn after(self, index: u32, entries: u32) -> u32 {
        index.wrapping_add(entries) & self.mask
    }

    /// Entries between head and tail.
    pub(crate) const fn len(self, head: u32, tail: u32) -> u32 {
        tail.wrapping_sub(head) & self.mask
    }

    /// Whether there is no room: one entry always stays free (rule Q-02).
    pub(crate) const fn is_full(self, head: u32, tail: u32) -> bool {
        self.next(tail) == head & self.mask
    }

    /// How many entries from `head` on lie in one page and before `tail`: what one load may read. The rest of a page
    /// never wraps, and within a page entries are contiguous also where the queue is misaligned.
    pub(crate) fn span(self, head: u32, tail: u32) -> u32 {
        let in_page = Self::PER_PAGE.saturating_sub(head & Self::PER_PAGE.saturating_sub(1));
        let before_wrap = (self.mask & !head).saturating_add(1);
        self.len(head, tail).min(in_page).min(before_wrap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ppn;

    /// A queue of 2^(`log2sz_minus_1` + 1) entries of 16 bytes.
    fn ring(log2sz_minus_1: u8) -> Ring<16> {
        Ring::new(QueueBase::new().with_log2sz_minus_1(log2sz_minus_1).with_ppn(Ppn::truncate(0x80)))
    }

    #[test]
    fn a_queue_of_two_entries_holds_one() {
        let ring = ring(0);
        assert!(!ring.is_full(0, 0), "Q-02");
        assert!(ring.is_full(0, 1), "Q-02");
        assert_eq!(ring.next(1), 0, "Q-04");
    }

    #[test]
    fn the_largest_queue_has_two_to_the_32_entries() {
        let ring = ring(31);
        assert_eq!(ring.next(u32::MAX), 0);
        assert_eq!(ring.len(5, 4), u32::MAX);
        assert_eq!(ring.address(u32::MAX).get(), 0x8_0000 | 0xf_ffff_fff0, "Q-03");
        assert!(ring.is_full(0, u32::MAX));
    }

    #[test]
    fn a_span_ends_at_the_page_at_the_wrap_and_at_the_tail() {
        assert_eq!(ring(9).span(0, 65), 65);
        assert_eq!(ring(9).span(250, 300), 6);
        assert_eq!(ring(9).span(1020, 3), 4);
        assert_eq!(ring(3).span(14, 3), 2);
        assert_eq!(ring(0).span(1, 0), 1);
        assert_eq!(ring(31).span(u32::MAX, 7), 1);
        assert_eq!(ring(9).span(9, 9), 0);
    }
}
