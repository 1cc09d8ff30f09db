//! A guest that gives its device to a VM of its own: both stages, a process directory, and an MSI page table.

#![allow(dead_code, reason = "each test uses its part of it")]

use riscv_viommu::mock::Memory;
use riscv_viommu::mock::tables::tc::{PDTV, SBE};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{
    AtsCompletion, AtsRequest, AtsTranslation, Config, FirstStageMode, Gpa, Gscid, Iova, ProcessId, Request,
    SecondStageMode,
};

use crate::dma_rig::{DmaRig, everything};

/// How much less a guest-physical address of the VM's tables is than their address in memory.
pub(crate) const OFFSET: u64 = 0x4000_0000;
/// A page of the process, and what the first and then the second stage make of it.
pub(crate) const IOVA: u64 = 0x20_0040_3000;
pub(crate) const PAGE: u64 = 0x6000_0000;
pub(crate) const OUTPUT: u64 = 0x12_3456_7000;
/// Four pages of the process, and the VM's interrupt files they are: one in basic translate mode, one in memory, and
/// two without a valid entry.
pub(crate) const MESSAGES: u64 = 0x20_0060_0000;
pub(crate) const FILES: u64 = 0x2800_0000;
/// What the first of the files is.
pub(crate) const FILE: u64 = 0x2c00_5000;
/// Where the notice of the second goes, with the number 0x2a.
pub(crate) const NOTICE: u64 = 0x2c00_6000;

/// PDI[2] = 5, PDI[1] = 0x134, PDI[0] = 0x56 (rule PDT-01).
pub(crate) const PROCESS: ProcessId = ProcessId::truncate(0xb_3456);

/// The guest, and handles on its tables.
pub(crate) struct Nested<const CACHE: usize = 0> {
    pub(crate) rig: DmaRig<CACHE>,
    /// In the byte order of SBE, as `processes` is.
    pub(crate) first: PageTable,
    /// In the byte order of `fctl.BE`, as `messages` is.
    pub(crate) second: PageTable,
    pub(crate) processes: ProcessDirectory,
    /// The MSI page table.
    pub(crate) messages: Gpa,
    /// The interrupt file in memory.
    pub(crate) file: Gpa,
}

impl<const CACHE: usize> Nested<CACHE> {
    /// Little-endian, with this `tc`. With PDTV the first stage is that of [`PROCESS`] and of process 0.
    pub(crate) fn new(tc: u64) -> Self {
        Self::of(everything(), tc, false)
    }

    /// With SBE in `tc`, and `fctl.BE`.
    pub(crate) fn of(config: Config, tc: u64, be: bool) -> Self {
        let little = Memory::new();
        let order = |big| if big { little.big_endian() } else { little.clone() };
        let mut rig = DmaRig::in_memory(config, order(be));
        if be {
            rig.set_fctl(1);
        }
        let ours = order(tc & SBE != 0);
        let second = PageTable::second_stage(&order(be), SecondStageMode::Sv39x4);
        let first = PageTable::first_stage(&ours, FirstStageMode::Sv39).below(OFFSET);
        let processes = ProcessDirectory::new(&ours, 3).below(OFFSET);
        // One page for each structure, so that each can be taken away.
        for page in 0..64 {
            let at = 0x8000_0000 + page * 0x1000;
            second.map(at - OFFSET, at, 0, pte::RW);
        }
        second.map(PAGE, OUTPUT, 0, pte::RW | pte::X);
        first.map(IOVA, PAGE, 0, pte::RW | pte::X);
        for file in 0..4 {
            first.map(MESSAGES + file * 0x1000, FILES + file * 0x1000, 0, pte::RW | pte::X);
        }
        // ta: V. The PSCIDs of the two are the same, and so are their tables.
        for process in [PROCESS, ProcessId::truncate(0)] {
            processes.set(process, [1, first.iosatp()]);
        }
        let (messages, file) = (rig.memory.allocate(1), rig.memory.allocate(1));
        // V in 0, M in 2:1 (3 basic, 1 MRIF), PPN in 53:10 or the address of the file in 53:7; NID, NPPN in 53:10.
        let file = Gpa::new(file.get() + 0x600);
        let entries = [FILE >> 2 | 7, 0, file.get() >> 9 << 7 | 3, NOTICE >> 2 | 0x2a];
        rig.memory.write_words(messages, &entries);
        rig.memory.interrupt_page(Gpa::new(NOTICE));
        let nested = Self { rig, first, second, processes, messages, file };
        nested.set_tc(tc);
        nested.rig.forget_accesses();
        nested
    }

    /// The device's context with this `tc`: `iohgatp`, `ta`, `fsc`, `msiptp` Flat, mask, pattern.
    pub(crate) fn context(&self, tc: u64) -> [u64; 8] {
        let fsc = if tc & PDTV == 0 { self.first.iosatp() } else { self.processes.pdtp() };
        let iohgatp = self.second.iohgatp(Gscid::truncate(0x1234));
        [tc, iohgatp, 0, fsc, 1 << 60 | self.messages.get() >> 12, 3, FILES >> 12, 0]
    }

    pub(crate) fn set_tc(&self, tc: u64) {
        self.rig.set_context(&self.context(tc));
    }

    /// The guest-physical address of something in memory.
    pub(crate) fn gpa(at: Gpa) -> u64 {
        at.get() - OFFSET
    }

    /// What the second stage makes of the page at `gpa` from now on, 0: nothing.
    pub(crate) fn set_second(&self, gpa: u64, flags: u64) {
        let entry = self.second.get(gpa, 0) & !0x3ff;
        self.second.set(gpa, 0, entry | flags);
    }

    pub(crate) fn read(&self, iova: u64) -> Request {
        Request::read(self.rig.device, Iova::new(iova))
    }

    pub(crate) fn write(&self, iova: u64) -> Request {
        Request::write(self.rig.device, Iova::new(iova))
    }

    pub(crate) fn ask(&self, iova: u64) -> AtsRequest {
        AtsRequest::new(self.rig.device, Iova::new(iova))
    }

    pub(crate) fn ats(&mut self, request: &AtsRequest) -> AtsCompletion {
        self.rig.iommu.ats_translate(request).expect("the device has ATS")
    }

    /// The answer to a request that succeeds.
    pub(crate) fn answer(&mut self, request: &AtsRequest) -> AtsTranslation {
        match self.ats(request) {
            AtsCompletion::Success(translation) => translation,
            other => panic!("{request:?} is answered {other:?}"),
        }
    }
}
