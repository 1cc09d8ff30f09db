//! Directories and page tables in guest memory, as a guest driver builds them.
//!
//! Everything is a literal of the specification's figures, independent of the crate's own formats. For big-endian
//! structures take a [`big_endian`](Memory::big_endian) handle.

mod pages;
mod process;

pub use pages::{FirstStageTable, PageSize, PageTable};
pub use process::ProcessDirectory;

use crate::addr::Gpa;
use crate::id::{DeviceId, FirstStageMode, Pscid};

use super::memory::Memory;

/// Bits of a leaf PTE.
pub mod pte {
    /// Valid.
    pub const V: u64 = 1;
    /// Readable.
    pub const R: u64 = 1 << 1;
    /// Writable.
    pub const W: u64 = 1 << 2;
    /// Executable.
    pub const X: u64 = 1 << 3;
    /// For user accesses; every device access without `process_id` is one.
    pub const U: u64 = 1 << 4;
    /// In every address space of its VM.
    pub const G: u64 = 1 << 5;
    /// Accessed.
    pub const A: u64 = 1 << 6;
    /// Dirty.
    pub const D: u64 = 1 << 7;
    /// Part of a range of 64 KiB (Svnapot).
    pub const N: u64 = 1 << 63;
    /// A page a device may read and write, with nothing left for the IOMMU to update.
    pub const RW: u64 = V | R | W | U | A | D;
    /// A page a device may read.
    pub const RO: u64 = V | R | U | A;
}

/// Bits of `tc` of a device context.
pub mod tc {
    /// Valid.
    pub const V: u64 = 1;
    /// ATS translation and translated requests are allowed.
    pub const EN_ATS: u64 = 1 << 1;
    /// Page requests are allowed.
    pub const EN_PRI: u64 = 1 << 2;
    /// ATS answers, and is asked with, guest-physical addresses.
    pub const T2GPA: u64 = 1 << 3;
    /// Faults of translation are not recorded.
    pub const DTF: u64 = 1 << 4;
    /// `fsc` is that of a process directory.
    pub const PDTV: u64 = 1 << 5;
    /// Page-request-group responses have a PASID.
    pub const PRPR: u64 = 1 << 6;
    /// The IOMMU updates A and D of the second stage.
    pub const GADE: u64 = 1 << 7;
    /// The IOMMU updates A and D of the first stage.
    pub const SADE: u64 = 1 << 8;
    /// Requests without a process are those of process 0.
    pub const DPE: u64 = 1 << 9;
    /// The process directory and the first stage are big-endian.
    pub const SBE: u64 = 1 << 10;
    /// The first stage is that of RV32.
    pub const SXL: u64 = 1 << 11;
}

/// Bits of `ta` of a process context.
pub mod process_ta {
    /// Valid.
    pub const V: u64 = 1;
    /// Requests for supervisor privilege are allowed.
    pub const ENS: u64 = 1 << 1;
    /// They may touch user pages.
    pub const SUM: u64 = 1 << 2;
}

/// A device context that translates nothing: V = 1, `iosatp` Bare.
#[must_use]
pub const fn bare() -> [u64; 4] {
    [1, 0, 0, 0]
}

/// A device context with a first stage: `ta.PSCID` is bits 31:12, `iosatp` has MODE in 63:60.
#[must_use]
pub fn first_stage(mode: FirstStageMode, root: Gpa, pscid: Pscid) -> [u64; 4] {
    [1, 0, u64::from(pscid.get()) << 12, u64::from(mode.encoding()) << 60 | root.get() >> 12]
}

/// A device directory in guest memory.
#[derive(Clone, Debug)]
pub struct Directory {
    memory: Memory,
    root: Gpa,
    levels: u8,
    extended: bool,
}

impl Directory {
    /// An empty directory of 1 to 3 levels, for 64-byte contexts if `extended`, else for 32-byte ones.
    ///
    /// # Panics
    /// If there is no such number of levels.
    #[must_use]
    pub fn new(memory: &Memory, levels: u8, extended: bool) -> Self {
        assert!((1..=3).contains(&levels), "a directory has 1 to 3 levels, not {levels}");
        Self { memory: memory.clone(), root: memory.allocate(1), levels, extended }
    }

    /// The root page.
    #[must_use]
    pub const fn root(&self) -> Gpa {
        self.root
    }

    /// What the guest writes to `ddtp`: the mode of this number of levels in 3:0, the root in 53:10.
    #[must_use]
    pub fn ddtp(&self) -> u64 {
        self.root.get() >> 2 | u64::from(self.levels.wrapping_add(1))
    }

    /// Writes the context of `device`, `tc` last; what is not given is 0.
    pub fn set(&self, device: DeviceId, context: &[u64]) {
        let at = self.entry_address(device);
        let dwords = if self.extended { 8 } else { 4 };
        for index in (0..dwords).rev() {
            let value = usize::try_from(index).ok().and_then(|index| context.get(index));
            self.memory.write(at.or(index << 3), value.copied().unwrap_or_default());
        }
    }

    /// Clears V of a context and leaves the rest of it.
    pub fn invalidate(&self, device: DeviceId) {
        let at = self.entry_address(device);
        self.memory.write(at, self.memory.read(at) & !1);
    }

    /// Where the context of `device` is; makes the way to it.
    #[must_use]
    pub fn entry_address(&self, device: DeviceId) -> Gpa {
        let (bits, size_log2) = if self.extended { (6, 6) } else { (7, 5) };
        let index = device.get() & 1_u32.wrapping_shl(bits).wrapping_sub(1);
        self.table(device, 0).or(u64::from(index).wrapping_shl(size_log2))
    }

    /// Where the non-leaf entry of `device` at `level` is, 1 being the level that points to contexts; makes the way
    /// to it, and leaves it as it is.
    #[must_use]
    pub fn non_leaf_address(&self, device: DeviceId, level: u8) -> Gpa {
        let leaf_bits: u32 = if self.extended { 6 } else { 7 };
        let shift = leaf_bits.wrapping_add(u32::from(level.saturating_sub(1)).wrapping_mul(9));
        let index = device.get().wrapping_shr(shift) & 0x1ff;
        self.table(device, level).or(u64::from(index) << 3)
    }

    /// The page that holds the entry of `device` at `level`; missing pages on the way are added.
    fn table(&self, device: DeviceId, level: u8) -> Gpa {
        let above = level.wrapping_add(1);
        if above >= self.levels {
            return self.root;
        }
        let at = self.non_leaf_address(device, above);
        follow(&self.memory, at, 0)
    }
}

/// The page that a non-leaf entry points to, which is added where there is none: V in bit 0, PPN in 53:10 (rules DDT-10,
/// PDT-04). Pointers are `offset` less than where memory has the page.
fn follow(memory: &Memory, entry: Gpa, offset: u64) -> Gpa {
    if memory.read(entry) & 1 == 0 {
        memory.write(entry, memory.allocate(1).get().wrapping_sub(offset) >> 2 | 1);
    }
    Gpa::new(((memory.read(entry) & 0x003f_ffff_ffff_fc00) << 2).wrapping_add(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_where_the_indices_say() {
        let memory = Memory::new();
        let device = DeviceId::new(0x12_3456).unwrap();
        // Base format: DDI[0] = 0x56, DDI[1] = 0x68, DDI[2] = 0x12 (DDT-02).
        let base = Directory::new(&memory, 3, false);
        base.set(device, &bare());
        let first = memory.read(Gpa::new(base.root().get() + 0x12 * 8));
        let second = memory.read(Gpa::new((first >> 10 << 12) + 0x68 * 8));
        assert_eq!(memory.read(Gpa::new((second >> 10 << 12) + 0x56 * 32)), 1);
        assert_eq!(base.non_leaf_address(device, 2), Gpa::new(base.root().get() + 0x12 * 8));
        assert_eq!(base.ddtp(), base.root().get() >> 12 << 10 | 4);
        // Extended format: DDI[0] = 0x16, DDI[1] = 0xd1, DDI[2] = 0x24.
        let extended = Directory::new(&memory.big_endian(), 3, true);
        extended.set(device, &[1]);
        let first = memory.read(Gpa::new(extended.root().get() + 0x24 * 8)).swap_bytes();
        let second = memory.read(Gpa::new((first >> 10 << 12) + 0xd1 * 8)).swap_bytes();
        assert_eq!(memory.read(Gpa::new((second >> 10 << 12) + 0x16 * 64)), 1 << 56);
    }
}
