//! Memory that devices read and write: pages above the program's image, accessed word by word.
#![expect(unsafe_code, reason = "volatile accesses to memory that devices share")]

use core::ptr;

use riscv_viommu::{Gpa, Ppn};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::csr;

pub(crate) const PAGE: usize = 4096;
pub(crate) const MEGA: usize = 2 << 20;
/// RAM begins here.
pub(crate) const RAM: u64 = 0x8000_0000;
/// First byte behind the image and the stack, as the linker script sets them.
pub(crate) const POOL: u64 = 0x8040_0000;
/// First byte behind what is used: the smallest guest has so much.
pub(crate) const POOL_END: u64 = 0x8400_0000;

/// Hands out pages, from low to high.
pub(crate) struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self { next: POOL, end: POOL_END }
    }

    /// Takes everything back. Pages handed out before are handed out again.
    pub(crate) fn reset(&mut self) {
        self.next = POOL;
    }

    /// Zeroed pages, aligned to `align` bytes.
    pub(crate) fn aligned(&mut self, pages: usize, align: usize) -> Pages {
        let base = self.next.next_multiple_of(align as u64);
        self.next = base + (pages * PAGE) as u64;
        assert!(self.next <= self.end, "out of memory");
        let pages = Pages { base, bytes: pages * PAGE };
        pages.fill(|_| 0);
        pages
    }

    /// Zeroed pages.
    pub(crate) fn pages(&mut self, pages: usize) -> Pages {
        self.aligned(pages, PAGE)
    }

    /// A page that was handed out before.
    pub(crate) fn owned(&self, gpa: u64) -> Pages {
        assert!((POOL..self.next).contains(&gpa) && gpa.is_multiple_of(PAGE as u64));
        Pages { base: gpa, bytes: PAGE }
    }

    /// Keeps back all from an address on.
    pub(crate) fn keep_from(&mut self, base: u64) -> Pages {
        assert!((self.next..POOL_END).contains(&base));
        self.end = base;
        Pages { base, bytes: (POOL_END - base) as usize }
    }
}

/// Contiguous pages that a device may read and write at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    base: u64,
    bytes: usize,
}

impl Pages {
    /// A name for what is not the program's to touch: no byte of it can be accessed.
    pub(crate) const fn elsewhere(base: u64) -> Self {
        Self { base, bytes: 0 }
    }

    pub(crate) const fn gpa(self) -> u64 {
        self.base
    }

    pub(crate) const fn ppn(self) -> Ppn {
        Ppn::truncate(self.base >> 12)
    }

    pub(crate) const fn len(self) -> usize {
        self.bytes
    }

    /// The address of a byte in it, as the IOMMU's structures hold it.
    pub(crate) const fn at(self, offset: usize) -> Gpa {
        Gpa::new(self.base + offset as u64)
    }

    /// Some of the pages.
    pub(crate) fn part(self, first: usize, count: usize) -> Self {
        assert!((first + count) * PAGE <= self.bytes);
        Self { base: self.base + (first * PAGE) as u64, bytes: count * PAGE }
    }

    pub(crate) fn page(self, index: usize) -> Self {
        self.part(index, 1)
    }

    pub(crate) fn word(self, index: usize) -> u64 {
        assert!(index < self.bytes / 8);
        // SAFETY: inside pages of the pool, which hold no Rust object and are accessed only here and by devices, both
        // in whole words; any bits are a number.
        unsafe { ptr::read_volatile(ptr::with_exposed_provenance(self.base as usize + index * 8)) }
    }

    pub(crate) fn set_word(self, index: usize, value: u64) {
        assert!(index < self.bytes / 8);
        // SAFETY: as above.
        unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut(self.base as usize + index * 8), value) }
    }

    /// Reads a record of whole words at a byte offset.
    pub(crate) fn get<T: FromBytes + IntoBytes>(self, offset: usize) -> T {
        let mut record = T::new_zeroed();
        csr::barrier();
        for (index, bytes) in record.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.word(offset / 8 + index).to_le_bytes());
        }
        record
    }

    /// Writes a record of whole words at a byte offset: its first word last, which is the one that makes it valid.
    pub(crate) fn put<T: IntoBytes + Immutable>(self, offset: usize, record: &T) {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        for (index, bytes) in record.as_bytes().chunks_exact(8).enumerate().rev() {
            let word = bytes.try_into().expect("a chunk of 8");
            if index == 0 {
                csr::barrier();
            }
            self.set_word(offset / 8 + index, u64::from_le_bytes(word));
        }
        csr::barrier();
    }

    /// Sets every word.
    pub(crate) fn fill(self, pattern: impl Fn(usize) -> u64) {
        for index in 0..self.bytes / 8 {
            self.set_word(index, pattern(index));
        }
        csr::barrier();
    }

    /// The first `bytes` bytes hold the pattern.
    pub(crate) fn holds(self, bytes: usize, pattern: impl Fn(usize) -> u64) -> bool {
        csr::barrier();
        (0..bytes / 8).all(|index| self.word(index) == pattern(index))
    }
}

/// Words that differ from page to page and from seed to seed.
pub(crate) fn pattern(seed: u64) -> impl Fn(usize) -> u64 + Copy {
    move |index| {
        let word = (seed << 20 ^ index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }
}
