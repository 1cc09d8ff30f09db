//! Page frames: zeroed memory that a hart and the IOMMU both know by its physical address.
//!
//! The hypervisor runs without translation of its own (`satp` Bare), so an address is a physical address. Frames are
//! handed out for good: every table of this hypervisor lives as long as the machine.

use core::sync::atomic::{AtomicU64, Ordering};

use riscv_viommu::Ppn;
use riscv_viommu::addr::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;

/// Memory not used yet.
#[derive(Debug)]
pub struct Frames {
    next: usize,
    end: usize,
}

impl Frames {
    /// Frames of the memory from `start` to `end`.
    ///
    /// # Safety
    /// The memory is there, readable and writable at its physical address, and nobody else's.
    #[must_use]
    pub const unsafe fn new(start: usize, end: usize) -> Self {
        Self { next: start.next_multiple_of(PAGE), end }
    }

    /// `pages` zeroed pages in a row, a power of two of them, aligned to their size. `None` when memory is used up.
    pub fn take(&mut self, pages: usize) -> Option<Table> {
        let size = pages.checked_mul(PAGE)?;
        let start = self.next.checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|&end| end <= self.end)?;
        self.next = end;
        // SAFETY: `new` was promised this memory, and `next` moves on, so that nobody gets it twice.
        let table = Table(unsafe { core::slice::from_raw_parts(start as *const AtomicU64, size / size_of::<u64>()) });
        for word in table.words() {
            word.store(0, Ordering::Relaxed);
        }
        Some(table)
    }
}

/// A table in memory: 64-bit words, each read and written as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Table(&'static [AtomicU64]);

impl Table {
    /// Its words.
    #[must_use]
    pub const fn words(self) -> &'static [AtomicU64] {
        self.0
    }

    /// Its first page.
    #[must_use]
    pub fn ppn(self) -> Ppn {
        Ppn::truncate(self.address() / PAGE_SIZE)
    }

    /// Physical address of its first byte.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// The table at this page.
    ///
    /// # Safety
    /// Memory of `words` words is there, for good, and is only ever accessed by atomics.
    #[must_use]
    pub unsafe fn at(ppn: Ppn, words: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { core::slice::from_raw_parts(ppn.base().get() as *const AtomicU64, words) })
    }
}

/// Memory for tests, at the address where it really is, which is a multiple of all that is taken.
#[cfg(test)]
pub(crate) fn test_frames(pages: usize) -> Frames {
    const ALIGN: usize = 64 * PAGE;
    let memory = Box::leak(vec![0_u8; ALIGN + pages * PAGE].into_boxed_slice());
    let start = (memory.as_ptr() as usize).next_multiple_of(ALIGN);
    // SAFETY: leaked, and used nowhere else.
    unsafe { Frames::new(start, start + pages * PAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_aligned_to_their_size_and_do_not_overlap() {
        let mut frames = test_frames(16);
        let one = frames.take(1).expect("a page");
        let four = frames.take(4).expect("four pages");
        assert_eq!(four.address() % (4 * PAGE_SIZE), 0);
        assert!(one.address() + PAGE_SIZE <= four.address());
        assert!(frames.take(16).is_none());
    }
}
