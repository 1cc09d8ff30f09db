//! Second-stage page tables (Sv39x4): what a guest, or its devices, reach of the machine.
//!
//! Each VM has two: one for its hart, with RAM, interrupt file and device registers, and one for its devices' DMA, with
//! RAM alone. Their MSIs go through the MSI page table instead, so that no device writes to anything but RAM.

use core::sync::atomic::{AtomicU64, Ordering};

use riscv_viommu::addr::PAGE_SIZE;
use riscv_viommu::pt::Pte;
use riscv_viommu::{Gpa, Ppn, SecondStageMode};

use crate::frames::{Frames, Table};

/// The scheme: 41-bit guest-physical addresses, three levels, a root of four pages.
pub const MODE: SecondStageMode = SecondStageMode::Sv39x4;

const LEVELS: u32 = 3;
const ENTRIES: usize = 512;
const ROOT_ENTRIES: usize = 4 * ENTRIES;

/// What a leaf allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything. `A` and `D` are set, so that no hardware has to.
    All,
    /// Loads only.
    ReadOnly,
}

impl Access {
    fn leaf(self) -> Pte {
        let all = self == Self::All;
        // The second stage checks every access as a user's.
        Pte::new().with_v(true).with_r(true).with_w(all).with_x(all).with_u(true).with_a(true).with_d(all)
    }
}

/// Why a range is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frames are left for tables.
    OutOfFrames,
    /// The range is not made of whole pages, or lies beyond 41 bits.
    Range,
    /// Something else is mapped there.
    Taken,
}

/// One second stage.
#[derive(Clone, Copy, Debug)]
pub struct SecondStage {
    root: Table,
}

impl SecondStage {
    /// An empty one, through which nothing is reached.
    pub fn new(frames: &mut Frames) -> Option<Self> {
        Some(Self { root: frames.take(4)? })
    }

    /// Page of its root table, for `hgatp` and `iohgatp`.
    #[must_use]
    pub fn root(&self) -> Ppn {
        self.root.ppn()
    }

    /// Maps `size` bytes at `gpa` to `hpa`, with the largest leaves that fit.
    ///
    /// # Errors
    /// [`MapError`]; what was mapped before the error stays.
    pub fn map(&self, frames: &mut Frames, gpa: Gpa, hpa: u64, size: u64, access: Access) -> Result<(), MapError> {
        let whole = |address: u64| address.is_multiple_of(PAGE_SIZE);
        let end = gpa.get().checked_add(size).ok_or(MapError::Range)?;
        if !whole(gpa.get()) || !whole(hpa) || !whole(size) || end >> MODE.input_width() != 0 {
            return Err(MapError::Range);
        }
        let mut done = 0;
        while done < size {
            let (at, to) = (gpa.get() + done, hpa + done);
            let fits = |level: &u32| (at | to) % leaf_size(*level) == 0 && leaf_size(*level) <= size - done;
            let level = (0..LEVELS).rev().find(fits).ok_or(MapError::Range)?;
            let entry = self.entry(frames, at, level)?;
            if entry.load(Ordering::Relaxed) != 0 {
                return Err(MapError::Taken);
            }
            let leaf = access.leaf().with_ppn(Ppn::truncate(to / PAGE_SIZE));
            entry.store(leaf.into_bits(), Ordering::Release);
            done += leaf_size(level);
        }
        Ok(())
    }

    /// Takes out the leaf that maps `gpa`, if there is one. What is cached of it is the caller's to drop.
    #[must_use = "it is filled again, or meant to stay"]
    pub fn unmap(&self, gpa: Gpa) -> Option<Hole> {
        let (entry, level) = self.leaf(gpa)?;
        let size = leaf_size(level);
        let leaf = entry.swap(0, Ordering::AcqRel);
        Some(Hole { entry, leaf, first: Gpa::new(gpa.get() & !(size - 1)), size })
    }

    /// The entry for `at` in the table of `level`, with the tables above it made where they are missing.
    fn entry(&self, frames: &mut Frames, at: u64, level: u32) -> Result<&'static AtomicU64, MapError> {
        let mut table = self.root;
        for above in (level + 1..LEVELS).rev() {
            let entry = slot(table, at, above);
            let pte = Pte::from_bits(entry.load(Ordering::Relaxed));
            table = if !pte.v() {
                let next = frames.take(1).ok_or(MapError::OutOfFrames)?;
                entry.store(Pte::new().with_v(true).with_ppn(next.ppn()).into_bits(), Ordering::Release);
                next
            } else if is_leaf(pte) {
                return Err(MapError::Taken);
            } else {
                next_table(pte)
            };
        }
        Ok(slot(table, at, level))
    }

    /// The leaf that maps `gpa`, and its level.
    fn leaf(&self, gpa: Gpa) -> Option<(&'static AtomicU64, u32)> {
        if gpa.get() >> MODE.input_width() != 0 {
            return None;
        }
        let mut table = self.root;
        for level in (0..LEVELS).rev() {
            let entry = slot(table, gpa.get(), level);
            let pte = Pte::from_bits(entry.load(Ordering::Relaxed));
            if !pte.v() {
                return None;
            }
            if is_leaf(pte) {
                return Some((entry, level));
            }
            table = next_table(pte);
        }
        None
    }
}

/// A leaf that was taken out.
#[derive(Debug)]
pub struct Hole {
    entry: &'static AtomicU64,
    leaf: u64,
    /// First address it mapped.
    pub first: Gpa,
    /// Bytes it mapped.
    pub size: u64,
}

impl Hole {
    /// Puts the leaf back. Entries that were not valid are never cached: nothing has to be dropped.
    pub fn fill(self) {
        self.entry.store(self.leaf, Ordering::Release);
    }
}

const fn leaf_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * level)
}

fn is_leaf(pte: Pte) -> bool {
    pte.r() || pte.w() || pte.x()
}

fn slot(table: Table, at: u64, level: u32) -> &'static AtomicU64 {
    let entries = if level == LEVELS - 1 { ROOT_ENTRIES } else { ENTRIES };
    &table.words()[(at / leaf_size(level)) as usize % entries]
}

fn next_table(pte: Pte) -> Table {
    // SAFETY: only `entry` stores pointers, to tables of one page that it took from the frames.
    unsafe { Table::at(pte.ppn(), ENTRIES) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::test_frames;

    const RAM: Gpa = Gpa::new(0x8000_0000);

    fn mapped(stage: &SecondStage, gpa: u64) -> Option<u64> {
        let (entry, level) = stage.leaf(Gpa::new(gpa))?;
        let pte = Pte::from_bits(entry.load(Ordering::Relaxed));
        Some(pte.ppn().base().get() + gpa % leaf_size(level))
    }

    #[test]
    fn a_range_is_mapped_byte_for_byte_and_nothing_around_it() {
        let mut frames = test_frames(32);
        let stage = SecondStage::new(&mut frames).expect("frames");
        let size = 0x0060_1000;
        stage.map(&mut frames, RAM, 0x1_0000_0000, size, Access::All).expect("maps");
        for offset in [0, 0x1f_ffff, 0x20_0000, 0x60_0fff] {
            assert_eq!(mapped(&stage, RAM.get() + offset), Some(0x1_0000_0000 + offset));
        }
        assert_eq!(mapped(&stage, RAM.get() + size), None);
        assert_eq!(mapped(&stage, RAM.get() - 1), None);
        assert_eq!(mapped(&stage, 1 << 41), None);
    }

    #[test]
    fn what_is_mapped_is_not_mapped_over() {
        let mut frames = test_frames(32);
        let stage = SecondStage::new(&mut frames).expect("frames");
        stage.map(&mut frames, RAM, 0x1_0000_0000, 0x20_0000, Access::All).expect("maps");
        let again = stage.map(&mut frames, RAM, 0x1_2000_0000, 0x1000, Access::All);
        assert_eq!(again, Err(MapError::Taken));
        let too_far = stage.map(&mut frames, Gpa::new(1 << 41), 0, 0x1000, Access::All);
        assert_eq!(too_far, Err(MapError::Range));
    }

    #[test]
    fn a_hole_is_not_reached_until_it_is_filled() {
        let mut frames = test_frames(32);
        let stage = SecondStage::new(&mut frames).expect("frames");
        stage.map(&mut frames, RAM, 0x1_0000_0000, 0x40_0000, Access::All).expect("maps");
        let hole = stage.unmap(Gpa::new(0x8000_1234)).expect("was mapped");
        assert_eq!((hole.first, hole.size), (RAM, 0x20_0000));
        assert_eq!(mapped(&stage, 0x8000_0000), None);
        assert_eq!(mapped(&stage, 0x8020_0000), Some(0x1_0020_0000));
        hole.fill();
        assert_eq!(mapped(&stage, 0x8000_1234), Some(0x1_0000_1234));
    }
}
