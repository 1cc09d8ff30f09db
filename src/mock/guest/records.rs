//! The rings the guest's driver takes records from.

use std::vec::Vec;

use super::Ring;
use crate::addr::Gpa;
use crate::mock::memory::Memory;

/// A queue of records of `WORDS` times 8 bytes as the guest's driver sees it: it owns the head.
#[derive(Clone, Debug)]
pub struct RecordRing<const WORDS: usize> {
    ring: Ring,
    head: u32,
}

/// The fault queue.
pub type FaultRing = RecordRing<4>;

/// The page-request queue.
pub type PageRequestRing = RecordRing<2>;

impl<const WORDS: usize> RecordRing<WORDS> {
    /// A queue of 2^`log2_entries` entries at `base`, whose memory is mapped here.
    ///
    /// # Panics
    /// If there is no such size.
    #[must_use]
    pub fn new(memory: &Memory, log2_entries: u8, base: Gpa) -> Self {
        Self { ring: Ring::new(memory, log2_entries, base, Self::bytes()), head: 0 }
    }

    /// The records between the head and the tail, which is what `fqt` or `pqt` reads, taken out: write
    /// [`head`](Self::head) to `fqh` or `pqh` next.
    pub fn take(&mut self, tail: u64) -> Vec<[u64; WORDS]> {
        let mut records = Vec::new();
        while u64::from(self.head) != tail {
            let at = self.entry(self.head);
            let mut record = [0; WORDS];
            for (word, offset) in record.iter_mut().zip((0..).step_by(8)) {
                *word = self.ring.memory.read(at.or(offset));
            }
            records.push(record);
            self.head = self.ring.after(self.head);
        }
        records
    }

    /// What to write to `fqh` or `pqh`.
    #[must_use]
    pub const fn head(&self) -> u32 {
        self.head
    }

    /// Where the entry of this index is.
    #[must_use]
    pub fn entry(&self, index: u32) -> Gpa {
        self.ring.entry(index, Self::bytes())
    }

    fn restart(&mut self) -> u64 {
        self.head = 0;
        self.ring.base_register()
    }

    fn bytes() -> u64 {
        u64::try_from(WORDS).unwrap_or_default().wrapping_mul(8)
    }
}

impl FaultRing {
    /// What to write to `fqb`; the head is 0 then.
    pub fn fqb(&mut self) -> u64 {
        self.restart()
    }
}

impl PageRequestRing {
    /// What to write to `pqb`; the head is 0 then.
    pub fn pqb(&mut self) -> u64 {
        self.restart()
    }
}
