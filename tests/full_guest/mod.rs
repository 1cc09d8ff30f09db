//! A guest with every structure a device can be translated by: both stages, a process directory, an MSI page table of
//! one entry. Its device has the first stage until a test gives it more.

#![allow(dead_code, reason = "each test uses its part of it")]

use riscv_viommu::mock::Memory;
use riscv_viommu::mock::tables::tc::PDTV;
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{Config, FirstStageMode, Gpa, Gscid, Iova, ProcessId, Pscid, Request, SecondStageMode};

use crate::dma_rig::{DmaRig, everything};

/// Words of a context.
pub(crate) const TC: usize = 0;
pub(crate) const IOHGATP: usize = 1;
pub(crate) const TA: usize = 2;
pub(crate) const FSC: usize = 3;
pub(crate) const MSIPTP: usize = 4;
pub(crate) const ADDR_MASK: usize = 5;
pub(crate) const ADDR_PATTERN: usize = 6;

/// Bits of `ta` of a process context (rules PC-01 to PC-03).
pub(crate) const PC_V: u64 = 1;
pub(crate) const ENS: u64 = 1 << 1;
pub(crate) const SUM: u64 = 1 << 2;

pub(crate) const PROCESS: ProcessId = ProcessId::truncate(0xab);
pub(crate) const PSCID: Pscid = Pscid::truncate(0x1_2345);
pub(crate) const GSCID: Gscid = Gscid::truncate(0xbeef);

/// A page, what the first stage makes of it, and what the second stage makes of that.
pub(crate) const PAGE: u64 = 0x3e_0040_0000;
pub(crate) const GPA: u64 = 0x30_0000_0000;
pub(crate) const SPA: u64 = 0x50_0000_0000;
/// The page of the VM that is an interrupt file, and where the file is.
pub(crate) const WINDOW: u64 = 0x2800_0000;
pub(crate) const FILE: u64 = 0x4_5600_0000;

pub(crate) const RWX: u64 = pte::RW | pte::X;

pub(crate) struct Guest<const CACHE: usize = 0> {
    pub(crate) rig: DmaRig<CACHE>,
    pub(crate) first: PageTable,
    pub(crate) second: PageTable,
    pub(crate) processes: ProcessDirectory,
    pub(crate) msi: Gpa,
    pub(crate) context: [u64; 7],
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with(everything())
    }
}

impl<const CACHE: usize> Guest<CACHE> {
    pub(crate) fn with(config: Config) -> Self {
        Self::in_memory(config, Memory::new())
    }

    pub(crate) fn in_memory(config: Config, memory: Memory) -> Self {
        let rig = DmaRig::in_memory(config, memory);
        let memory = &rig.memory;
        let first = PageTable::first_stage(memory, FirstStageMode::Sv39);
        let second = PageTable::second_stage(memory, SecondStageMode::Sv39x4);
        let processes = ProcessDirectory::new(memory, 1);
        let msi = memory.allocate(1);
        first.map(PAGE, GPA, 0, RWX);
        // 4 KiB: three entries on the way. Where the tables are, addresses stay what they are: one gigabyte, one entry.
        second.map(GPA, SPA, 0, RWX);
        second.map(0x8000_0000, 0x8000_0000, 2, pte::RW);
        memory.write(msi, FILE >> 2 | 0b111);
        let pscid = u64::from(PSCID.get()) << 12;
        processes.set(PROCESS, [PC_V | ENS | pscid, first.iosatp()]);
        let context = [1, 0, pscid, first.iosatp(), 0, 0, 0];
        let guest = Self { rig, first, second, processes, msi, context };
        guest.rig.set_context(&guest.context);
        guest.rig.forget_accesses();
        guest
    }

    /// Changes a word of the context.
    pub(crate) fn change(&mut self, word: usize, value: u64) {
        self.context[word] = value;
        self.rig.set_context(&self.context);
        self.rig.forget_accesses();
    }

    /// The first stage is that of a process.
    pub(crate) fn with_processes(mut self) -> Self {
        self.change(FSC, self.processes.pdtp());
        self.change(TC, 1 | PDTV);
        self
    }

    pub(crate) fn with_second_stage(mut self) -> Self {
        self.change(IOHGATP, self.second.iohgatp(GSCID));
        self
    }

    /// A second stage, and the table of one entry for the page `WINDOW` of the VM.
    pub(crate) fn with_msi_table(self) -> Self {
        let mut guest = self.with_second_stage();
        guest.change(MSIPTP, 1 << 60 | guest.msi.get() >> 12);
        guest.change(ADDR_PATTERN, WINDOW >> 12);
        guest
    }

    /// Gives the process this `ta`, and the first stage.
    pub(crate) fn set_process(&self, ta: u64) {
        self.processes.set(PROCESS, [ta, self.first.iosatp()]);
    }

    pub(crate) fn read(&self, iova: u64) -> Request {
        Request::read(self.rig.device, Iova::new(iova))
    }
}
