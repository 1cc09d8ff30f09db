//! The device directory: extended-format contexts, 1 to 3 levels.

use core::sync::atomic::{AtomicU64, Ordering};

use riscv_viommu::ddt::DdtEntry;
use riscv_viommu::regs::DdtpMode;
use riscv_viommu::{DeviceId, Ppn};

use crate::frames::{Frames, Table};

/// Words of an extended-format context.
const CONTEXT: usize = 8;
/// Bits of a `device_id` that select a context in the last table, and an entry of the tables above.
const LEAF_BITS: u32 = 6;
const BITS: u32 = 9;
/// Words of a table: one page.
const WORDS: usize = 512;

/// A directory whose tables are made as devices need them.
#[derive(Debug)]
pub(super) struct Directory {
    root: Table,
    levels: u8,
}

impl Directory {
    pub(super) const fn new(root: Table) -> Self {
        Self { root, levels: 1 }
    }

    pub(super) fn root(&self) -> Ppn {
        self.root.ppn()
    }

    /// How many levels the IOMMU takes; before the first context.
    pub(super) const fn set_levels(&mut self, levels: u8) {
        self.levels = levels;
    }

    /// The context of a device, with the tables above it made where they are missing.
    pub(super) fn context(&self, frames: &mut Frames, device: DeviceId) -> Option<&'static [AtomicU64; CONTEXT]> {
        self.walk(device, || frames.take(1))
    }

    /// The context of a device, if there are tables that lead to it.
    pub(super) fn existing(&self, device: DeviceId) -> Option<&'static [AtomicU64; CONTEXT]> {
        self.walk(device, || None)
    }

    fn walk(
        &self,
        device: DeviceId,
        mut missing: impl FnMut() -> Option<Table>,
    ) -> Option<&'static [AtomicU64; CONTEXT]> {
        if !device.fits(DdtpMode::Levels(self.levels).device_id_width(true)) {
            return None;
        }
        let id = device.get();
        let mut table = self.root;
        for level in (1..u32::from(self.levels)).rev() {
            let index = id >> (LEAF_BITS + BITS * (level - 1)) & ((1 << BITS) - 1);
            let entry = &table.words()[index as usize];
            let pointer = DdtEntry::from_bits(entry.load(Ordering::Relaxed));
            table = if pointer.v() {
                // SAFETY: the line below stored it: a table of one page from the frames.
                unsafe { Table::at(pointer.ppn(), WORDS) }
            } else {
                let next = missing()?;
                entry.store(DdtEntry::new().with_v(true).with_ppn(next.ppn()).into_bits(), Ordering::Release);
                next
            };
        }
        let index = id & ((1 << LEAF_BITS) - 1);
        table.words()[index as usize * CONTEXT..].first_chunk()
    }
}
