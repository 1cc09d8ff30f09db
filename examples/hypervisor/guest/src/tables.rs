//! What the IOMMU walks: first-stage page tables and the device directory.

use riscv_viommu::ddt::{BaseContext, DdtEntry, ExtendedContext, Fsc, Ta, Tc};
use riscv_viommu::pdt::{ProcessContext, ProcessTa};
use riscv_viommu::pt::Pte;
use riscv_viommu::regs::{Ddtp, DdtpMode};
use riscv_viommu::{DeviceId, FirstStageMode, Ppn, ProcessDirectoryMode, Pscid};

use crate::csr;
use crate::memory::{PAGE, Pages, Pool};

/// A leaf a device may read and write.
pub(crate) fn read_write(gpa: u64) -> Pte {
    let leaf = Pte::new().with_v(true).with_r(true).with_w(true).with_u(true).with_a(true).with_d(true);
    leaf.with_ppn(Ppn::truncate(gpa >> 12))
}

/// A leaf a device may only read.
pub(crate) fn read_only(gpa: u64) -> Pte {
    read_write(gpa).with_w(false)
}

/// An entry that leads to the next table.
pub(crate) fn pointer(table: Pages) -> Pte {
    Pte::new().with_v(true).with_ppn(table.ppn())
}

/// Bytes mapped by a leaf at a level.
pub(crate) const fn leaf_bytes(level: u8) -> u64 {
    1 << (12 + 9 * level)
}

/// Where an entry is.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) table: Pages,
    index: usize,
}

impl Entry {
    pub(crate) fn get(self) -> Pte {
        Pte::from_bits(self.table.word(self.index))
    }

    pub(crate) fn set(self, pte: Pte) {
        self.table.put(self.index * 8, &pte.into_bits());
    }
}

/// A first-stage address space.
#[derive(Clone, Copy)]
pub(crate) struct Space {
    pub(crate) mode: FirstStageMode,
    pub(crate) pscid: Pscid,
    pub(crate) root: Pages,
}

impl Space {
    pub(crate) fn new(pool: &mut Pool, mode: FirstStageMode, pscid: u32) -> Self {
        Self { mode, pscid: Pscid::truncate(pscid), root: pool.pages(1) }
    }

    /// The entry for an address at a level, 0 being that of 4-KiB pages; makes the tables above it.
    pub(crate) fn entry(&self, pool: &mut Pool, iova: u64, level: u8) -> Entry {
        let at = |table, level: u8| Entry { table, index: (iova / leaf_bytes(level) % 512) as usize };
        let mut entry = at(self.root, self.mode.levels() - 1);
        for level in (level..self.mode.levels() - 1).rev() {
            if !entry.get().v() {
                entry.set(pointer(pool.pages(1)));
            }
            let next = entry.get().ppn().base().get();
            entry = at(pool.owned(next), level);
        }
        entry
    }

    /// Maps one page, read-write.
    pub(crate) fn map(&self, pool: &mut Pool, iova: u64, gpa: u64) -> Entry {
        let entry = self.entry(pool, iova, 0);
        entry.set(read_write(gpa));
        entry
    }

    /// Maps pages one by one, read-write.
    pub(crate) fn map_all(&self, pool: &mut Pool, iova: u64, pages: Pages) {
        for offset in (0..pages.len()).step_by(PAGE) {
            self.map(pool, iova + offset as u64, pages.gpa() + offset as u64);
        }
    }

    /// The device context that puts it in force.
    pub(crate) fn context(&self) -> BaseContext {
        BaseContext {
            tc: Tc::new().with_v(true),
            ta: Ta::new().with_pscid(self.pscid),
            fsc: self.fsc(),
            ..BaseContext::default()
        }
    }

    /// The same for a process.
    pub(crate) fn process(&self) -> ProcessContext {
        ProcessContext { ta: ProcessTa::new().with_v(true).with_pscid(self.pscid), fsc: self.fsc() }
    }

    fn fsc(&self) -> Fsc {
        Fsc::new().with_mode(self.mode.encoding()).with_ppn(self.root.ppn())
    }
}

/// A process directory of one level (`PD8`).
#[derive(Clone, Copy)]
pub(crate) struct Processes {
    pub(crate) page: Pages,
}

impl Processes {
    /// A directory whose every context is one that must not be looked at: valid with reserved bits set.
    pub(crate) fn new(pool: &mut Pool) -> Self {
        let page = pool.pages(1);
        page.fill(|_| u64::MAX);
        Self { page }
    }

    /// Writes the context of a process, its valid bit last.
    pub(crate) fn set(&self, process: u8, context: ProcessContext) {
        self.page.put(usize::from(process) * size_of::<ProcessContext>(), &context);
    }

    /// Makes it invalid, whatever else is in it.
    pub(crate) fn unset(&self, process: u8) {
        let word = usize::from(process) * size_of::<ProcessContext>() / 8;
        self.page.set_word(word, ProcessTa::from_bits(u64::MAX).with_v(false).into_bits());
        csr::barrier();
    }

    /// The device context that puts it in force, with process 0 for requests of no process.
    pub(crate) fn context(&self) -> BaseContext {
        BaseContext {
            tc: Tc::new().with_v(true).with_pdtv(true).with_dpe(true),
            fsc: Fsc::new().with_mode(ProcessDirectoryMode::Pd8.encoding()).with_ppn(self.page.ppn()),
            ..BaseContext::default()
        }
    }
}

/// A context that lets the device's addresses through.
pub(crate) fn identity() -> BaseContext {
    BaseContext { tc: Tc::new().with_v(true), ..BaseContext::default() }
}

/// A device directory with a context for one device.
#[derive(Clone, Copy)]
pub(crate) struct Directory {
    levels: u8,
    extended: bool,
    /// The pages from the root to the one with the context.
    pages: [Pages; 3],
    device: DeviceId,
}

impl Directory {
    /// A directory whose every other entry is one that must not be looked at: valid with reserved bits set.
    pub(crate) fn new(pool: &mut Pool, levels: u8, extended: bool, device: DeviceId) -> Self {
        let root = pool.pages(1);
        let mut directory = Self { levels, extended, pages: [root; 3], device };
        for depth in 0..levels {
            if depth != 0 {
                directory.pages[usize::from(depth)] = pool.pages(1);
            }
            directory.pages[usize::from(depth)].fill(|_| u64::MAX);
        }
        for depth in 1..levels {
            let next = directory.pages[usize::from(depth)];
            directory.set_entry(depth - 1, DdtEntry::new().with_v(true).with_ppn(next.ppn()));
        }
        directory.set(ExtendedContext::default());
        directory
    }

    fn mode(&self) -> DdtpMode {
        DdtpMode::Levels(self.levels)
    }

    /// The register value that puts it in force.
    pub(crate) fn ddtp(&self) -> Ddtp {
        Ddtp::new().with_iommu_mode(self.mode().encoding()).with_ppn(self.pages[0].ppn())
    }

    /// The non-leaf entry on the device's path, at a depth from the root.
    pub(crate) fn entry(&self, depth: u8) -> DdtEntry {
        DdtEntry::from_bits(self.pages[usize::from(depth)].word(self.index(depth)))
    }

    /// Writes it.
    pub(crate) fn set_entry(&self, depth: u8, entry: DdtEntry) {
        self.pages[usize::from(depth)].put(self.index(depth) * 8, &entry.into_bits());
    }

    /// Index of a non-leaf entry (rules DDT-02, DDT-06).
    fn index(&self, depth: u8) -> usize {
        let below = DdtpMode::Levels(self.levels - depth - 1).device_id_width(self.extended);
        (self.device.get() >> below) as usize % 512
    }

    /// Writes the device's context, in the format the capabilities ask for; `tc` goes last.
    pub(crate) fn set(&self, context: ExtendedContext) {
        if self.extended {
            self.leaf().put(self.offset(0), &context);
        } else {
            self.leaf().put(self.offset(0), &context.base);
        }
    }

    /// The same for what both formats have.
    pub(crate) fn set_base(&self, base: BaseContext) {
        self.set(ExtendedContext { base, ..ExtendedContext::default() });
    }

    /// Writes one word of the device's context.
    pub(crate) fn set_word(&self, word: usize, value: u64) {
        self.leaf().put(self.offset(word), &value);
    }

    /// Words of a context in its format.
    pub(crate) fn words(&self) -> usize {
        if self.extended { size_of::<ExtendedContext>() / 8 } else { size_of::<BaseContext>() / 8 }
    }

    fn leaf(&self) -> Pages {
        self.pages[usize::from(self.levels - 1)]
    }

    fn offset(&self, word: usize) -> usize {
        let contexts = 1 << DdtpMode::Levels(1).device_id_width(self.extended);
        (self.device.get() as usize % contexts * self.words() + word) * 8
    }
}
