//! Process directories.

use super::{follow, tc};
use crate::addr::Gpa;
use crate::id::ProcessId;
use crate::mock::Memory;

/// A process directory in guest memory.
#[derive(Clone, Debug)]
pub struct ProcessDirectory {
    memory: Memory,
    root: Gpa,
    levels: u8,
    offset: u64,
}

impl ProcessDirectory {
    /// An empty directory of 1 (PD8), 2 (PD17) or 3 (PD20) levels.
    ///
    /// # Panics
    /// If there is no such number of levels.
    #[must_use]
    pub fn new(memory: &Memory, levels: u8) -> Self {
        assert!((1..=3).contains(&levels), "a process directory has 1 to 3 levels, not {levels}");
        Self { memory: memory.clone(), root: memory.allocate(1), levels, offset: 0 }
    }

    /// The same, empty, whose pointers are `offset` less than where memory has its pages: what a second stage that adds
    /// `offset` makes right again.
    #[must_use]
    pub fn below(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// Where the root is in memory.
    #[must_use]
    pub const fn root(&self) -> Gpa {
        self.root
    }

    /// `pdtp`: MODE in 63:60, PPN in 43:0.
    #[must_use]
    pub fn pdtp(&self) -> u64 {
        u64::from(self.levels) << 60 | self.root.get().wrapping_sub(self.offset) >> 12
    }

    /// The device context that uses this directory, with these bits of [`tc`] besides V and PDTV.
    #[must_use]
    pub fn context(&self, bits: u64) -> [u64; 4] {
        [tc::V | tc::PDTV | bits, 0, 0, self.pdtp()]
    }

    /// Writes the context of `process`: `ta` and `fsc`, `ta` last.
    pub fn set(&self, process: ProcessId, [ta, fsc]: [u64; 2]) {
        let at = self.entry_address(process);
        self.memory.write(at.or(8), fsc);
        self.memory.write(at, ta);
    }

    /// Clears V of the context of `process` and leaves the rest of it.
    pub fn invalidate(&self, process: ProcessId) {
        let at = self.entry_address(process);
        self.memory.write(at, self.memory.read(at) & !1);
    }

    /// Where the context of `process` is in memory; makes the way to it.
    #[must_use]
    pub fn entry_address(&self, process: ProcessId) -> Gpa {
        self.table(process, 0).or(u64::from(process.get() & 0xff) << 4)
    }

    /// Where the non-leaf entry of `process` at `level` is, 1 being the level that points to contexts; makes the way to
    /// it.
    #[must_use]
    pub fn non_leaf_address(&self, process: ProcessId, level: u8) -> Gpa {
        let index = match level {
            1 => process.get() >> 8 & 0x1ff,
            _ => process.get() >> 17,
        };
        self.table(process, level).or(u64::from(index) << 3)
    }

    fn table(&self, process: ProcessId, level: u8) -> Gpa {
        let above = level.wrapping_add(1);
        if above >= self.levels {
            return self.root;
        }
        let at = self.non_leaf_address(process, above);
        follow(&self.memory, at, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_context_is_where_the_indices_say() {
        let memory = Memory::new();
        let directory = ProcessDirectory::new(&memory, 3);
        let process = ProcessId::new(0xb_3456).unwrap();
        directory.set(process, [1, 2]);
        // PDI[2] = 5, PDI[1] = 0x134, PDI[0] = 0x56 (PDT-01).
        let first = memory.read(Gpa::new(directory.root().get() + 5 * 8));
        let second = memory.read(Gpa::new((first >> 10 << 12) + 0x134 * 8));
        assert_eq!(memory.read_words(Gpa::new((second >> 10 << 12) + 0x56 * 16), 2), [1, 2]);
        assert_eq!(directory.pdtp(), 3 << 60 | directory.root().get() >> 12);
        assert_eq!(directory.context(tc::DPE | tc::EN_ATS), [0x223, 0, 0, directory.pdtp()]);
        directory.invalidate(process);
        assert_eq!(memory.read_words(directory.entry_address(process), 2), [0, 2]);
    }
}
