//! What the performance monitor counts of requests of emulated devices, of ATS translation and page requests, and of
//! the guest's own: which events, how often, and for whom.
//!
//! Rule IDs are those of the register and translation rules; registers and entries are worked out from the
//! specification's figures.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod full_guest;

use dma_rig::{DEVICE, DmaRig, everything};
use full_guest::{FSC, GPA, GSCID, Guest, IOHGATP, PAGE, PROCESS, PSCID, RWX, SPA, TA, TC, WINDOW};
use riscv_viommu::mock::guest::register::{
    IOCOUNTINH, IOCOUNTOVF, OF, PMIP, TR_REQ_CTL, TR_REQ_IOVA, iohpmctr, iohpmevt,
};
use riscv_viommu::mock::guest::{Iotinval, inval_ddt, inval_pdt, register};
use riscv_viommu::mock::tables::tc::{DPE, EN_ATS, EN_PRI, GADE, PDTV, SADE, T2GPA};
use riscv_viommu::mock::tables::{Directory, PageTable, ProcessDirectory, pte};
use riscv_viommu::{
    AtsRequest, DeviceId, FirstStageMode, Gpa, Iova, MemoryFault, PageRequest, Prgi, ProcessId, Request,
    SecondStageMode, Target,
};

/// Events (rules HPM-23 to HPM-30).
const UNTRANSLATED: u64 = 1;
const TRANSLATED: u64 = 2;
const ATS: u64 = 3;
const TLB_MISS: u64 = 4;
const DDT: u64 = 5;
const PDT: u64 = 6;
const FIRST: u64 = 7;
const SECOND: u64 = 8;

impl<const CACHE: usize> Guest<CACHE> {
    /// A guest whose counter n counts event n, for n from 1 to 8, without filters; more for filters.
    fn counting() -> Self {
        let mut guest = Self::with(everything().with_counters(16));
        for n in 1..=8 {
            guest.rig.write8(iohpmevt(n), n);
        }
        guest
    }

    /// A read of the process.
    fn of_process(&self) -> Request {
        self.read(PAGE).with_process(PROCESS, false)
    }

    fn ats(&self, iova: u64) -> AtsRequest {
        AtsRequest::new(self.rig.device, Iova::new(iova))
    }

    /// What was counted of the events 1 to 8 since this was last asked.
    fn take(&mut self) -> [u64; 8] {
        let counts = [1, 2, 3, 4, 5, 6, 7, 8].map(|n| self.rig.read8(iohpmctr(n)));
        for n in 1..=8 {
            self.rig.write8(iohpmctr(n), 0);
        }
        counts
    }

    /// What a request counts, whatever becomes of it.
    fn counts(&mut self, request: Request) -> [u64; 8] {
        let _ = self.take();
        let _ = self.rig.translate(request);
        self.take()
    }

    fn counts_of_ats(&mut self, request: AtsRequest) -> [u64; 8] {
        let _ = self.take();
        let _ = self.rig.iommu.ats_translate(&request);
        self.take()
    }

    /// Counter 9 counts with this selector; whether a request makes it count, and how often.
    fn selected(&mut self, selector: u64, request: Request) -> u64 {
        self.rig.write8(iohpmevt(9), selector);
        self.rig.write8(iohpmctr(9), 0);
        let _ = self.rig.translate(request);
        self.rig.read8(iohpmctr(9))
    }
}

// Requests.

#[test]
fn requests_count_by_their_kind_before_any_check() {
    let mut guest = Guest::<0>::counting();
    for ddtp in [0, 1] {
        guest.rig.write8(register::DDTP, ddtp);
        let (untranslated, ats) = (guest.read(PAGE), guest.ats(PAGE));
        assert_eq!(guest.counts(untranslated), [1, 0, 0, 0, 0, 0, 0, 0], "HPT-01, HPM-23: ddtp {ddtp}");
        assert_eq!(guest.counts(untranslated.translated()), [0, 1, 0, 0, 0, 0, 0, 0], "HPT-01, HPM-24: ddtp {ddtp}");
        assert_eq!(guest.counts_of_ats(ats), [0, 0, 1, 0, 0, 0, 0, 0], "HPT-01, HPM-25: ddtp {ddtp}");
    }
    let _ = guest.rig.take_faults();
    // EN_ATS = 0, and a process that is not allowed: the directory was walked, and no more.
    guest.rig.write8(register::DDTP, guest.rig.directory.ddtp());
    let (untranslated, ats) = (guest.read(PAGE), guest.ats(PAGE));
    assert_eq!(guest.counts(untranslated.translated()), [0, 1, 0, 0, 3, 0, 0, 0], "HPT-01, HPM-24, TR-08");
    assert_eq!(guest.counts_of_ats(ats), [0, 0, 1, 0, 3, 0, 0, 0], "HPT-01, HPM-25, TR-08");
    let process = guest.of_process();
    assert_eq!(guest.counts(process), [1, 0, 0, 0, 3, 0, 0, 0], "HPT-01, HPM-23, TR-09");
}

#[test]
fn reads_writes_and_fetches_are_one_request_each() {
    let mut guest = Guest::<0>::counting();
    let device = guest.rig.device;
    for request in [
        Request::read(device, Iova::new(PAGE)).with_length(4096),
        Request::write(device, Iova::new(PAGE)).with_length(64),
        Request::execute(device, Iova::new(PAGE)),
        Request::msi(device, Iova::new(PAGE), 7),
    ] {
        assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 0], "HPT-01, HPM-23, HPM-26, HPM-29");
    }
    // One that goes over two pages is two.
    guest.first.map(PAGE + 0x1000, GPA, 0, RWX);
    let request = guest.read(PAGE + 0x800).with_length(0x1000);
    let _ = guest.take();
    assert!(guest.rig.iommu.pieces(request).all(|piece| piece.is_ok()));
    assert_eq!(guest.take(), [2, 0, 0, 2, 6, 0, 6, 0], "HPT-01, ACC-08");
}

#[test]
fn a_request_that_goes_past_the_last_address_goes_on_at_the_first() {
    let mut guest = Guest::<0>::counting();
    guest.change(FSC, 0);
    let request = guest.read(u64::MAX - 0xf).with_length(0x48);
    let _ = guest.take();
    let pieces: Vec<_> = guest.rig.iommu.pieces(request).map(|piece| piece.expect("Bare")).collect();
    let found: Vec<_> = pieces.iter().map(|piece| (piece.target, piece.length)).collect();
    let memory = |at| Target::Memory(Gpa::new(at));
    assert_eq!(found, [(memory(u64::MAX - 0xf), 0x10), (memory(0), 0x38)], "ACC-08, UNSPECIFIED");
    assert_eq!(guest.take()[0], 2, "HPT-01, HPM-23");
}

#[test]
fn a_translated_request_counts_what_it_has_translated() {
    let mut guest = Guest::<0>::counting().with_second_stage();
    guest.change(TC, 1 | EN_ATS);
    let request = guest.read(GPA).translated();
    assert_eq!(guest.counts(request), [0, 1, 0, 0, 3, 0, 0, 0], "HPT-01, HPM-24, HPM-26, TR-11");
    guest.change(TC, 1 | EN_ATS | T2GPA);
    assert_eq!(guest.counts(request), [0, 1, 0, 1, 3, 0, 0, 3], "HPT-01, HPM-24, HPM-30, TR-12");
    let request = guest.ats(PAGE);
    assert_eq!(guest.counts_of_ats(request), [0, 0, 1, 1, 3, 0, 3, 6], "HPT-01, HPM-25, HPM-29, HPM-30");
}

#[test]
fn a_request_of_the_guest_itself_is_an_untranslated_one() {
    let mut guest = Guest::<0>::counting();
    guest.rig.write8(TR_REQ_IOVA, PAGE);
    for ctl in [1 << 3, 0, 1 << 3 | 1 << 2] {
        guest.rig.write8(TR_REQ_CTL, u64::from(DEVICE) << 40 | ctl | 1);
        assert_eq!(guest.take(), [1, 0, 0, 1, 3, 0, 3, 0], "HPM-42, HPM-23, HPT-01");
    }
    guest.rig.write8(register::DDTP, 0);
    guest.rig.write8(TR_REQ_CTL, u64::from(DEVICE) << 40 | 1);
    assert_eq!(guest.take(), [1, 0, 0, 0, 0, 0, 0, 0], "HPM-42");
}

#[test]
fn a_page_request_counts_the_directory_it_walks() {
    let mut guest = Guest::<0>::counting();
    let request = PageRequest::read(Iova::new(PAGE), Prgi::truncate(1));
    for (tc, expected) in [(1 | EN_ATS | EN_PRI, 3), (1, 3)] {
        guest.change(TC, tc);
        let _ = guest.rig.iommu.page_request(guest.rig.device, &request).expect("offered and granted");
        assert_eq!(guest.take(), [0, 0, 0, 0, expected, 0, 0, 0], "HPM-27");
    }
    guest.rig.write8(register::DDTP, 1);
    let _ = guest.rig.iommu.page_request(guest.rig.device, &request).expect("offered and granted");
    assert_eq!(guest.take(), [0; 8], "HPM-27");
}

#[test]
fn what_the_host_refuses_is_no_request_of_the_guest() {
    let mut guest = Guest::<0>::counting();
    let request = guest.read(PAGE);
    let _ = guest.rig.iommu.detach(DeviceId::truncate(DEVICE)).expect("attached");
    assert_eq!(guest.counts(request), [0; 8], "HPM-23");
}

// Walks.

#[test]
fn every_entry_of_the_device_directory_counts() {
    let mut guest = Guest::<0>::counting();
    let id = DeviceId::truncate(DEVICE);
    let request = guest.read(PAGE);
    for level in [1, 2] {
        let at = guest.rig.directory.non_leaf_address(id, level);
        let entry = guest.rig.memory.read(at);
        let loads = 3 - u64::from(level);
        guest.rig.memory.write(at, 0);
        assert_eq!(guest.counts(request), [1, 0, 0, 0, loads, 0, 0, 0], "HPM-27, HPM-31, HPT-01: V = 0 at {level}");
        guest.rig.memory.write(at, entry);
        guest.rig.memory.fail(at, 8, MemoryFault::Access);
        assert_eq!(guest.counts(request), [1, 0, 0, 0, loads, 0, 0, 0], "HPM-27, HPT-01: no memory at {level}");
        guest.rig.memory.clear_failures();
    }
    // Two levels do not take this id: nothing is read. One takes a small one, with one load.
    for (levels, device, loads) in [(2, DEVICE, 0), (1, 3, 1), (2, 3, 2)] {
        guest.rig.write8(register::DDTP, 0);
        let directory = Directory::new(&guest.rig.memory, levels, true);
        directory.set(DeviceId::truncate(3), &[1]);
        guest.rig.write8(register::DDTP, directory.ddtp());
        let _ = guest.take();
        guest.rig.write8(TR_REQ_CTL, u64::from(device) << 40 | 1);
        assert_eq!(guest.take(), [1, 0, 0, 0, loads, 0, 0, 0], "HPM-27, TR-06, DDT-04");
    }
}

#[test]
fn every_entry_of_the_process_directory_counts() {
    for levels in 1..=3 {
        let mut guest = Guest::<0>::counting().with_processes();
        guest.processes = ProcessDirectory::new(&guest.rig.memory, levels);
        guest.processes.set(PROCESS, [1, guest.first.iosatp()]);
        guest.change(FSC, guest.processes.pdtp());
        let request = guest.of_process();
        assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, levels.into(), 3, 0], "HPM-28, HPT-01: {levels}");
        guest.processes.set(PROCESS, [0, 0]);
        assert_eq!(guest.counts(request), [1, 0, 0, 0, 3, levels.into(), 0, 0], "HPM-28: V = 0");
        for level in (1..levels).rev() {
            let at = guest.processes.non_leaf_address(PROCESS, level);
            guest.rig.memory.write(at, guest.rig.memory.read(at) | 2);
            let loads = u64::from(levels - level);
            assert_eq!(guest.counts(request), [1, 0, 0, 0, 3, loads, 0, 0], "HPM-28: misconfigured at {level}");
            guest.rig.memory.write(at, guest.rig.memory.read(at) & !2);
        }
    }
}

#[test]
fn every_entry_of_the_first_stage_counts() {
    let modes = [(FirstStageMode::Sv39, 3), (FirstStageMode::Sv48, 4), (FirstStageMode::Sv57, 5)];
    for (mode, levels) in modes {
        for leaf in 0..3 {
            let mut guest = Guest::<0>::counting();
            guest.first = PageTable::first_stage(&guest.rig.memory, mode);
            guest.first.map(PAGE, GPA, leaf, RWX);
            guest.change(FSC, guest.first.iosatp());
            let request = guest.read(PAGE);
            let loads = levels - u64::from(leaf);
            assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, loads, 0], "HPM-29, HPT-01: {mode:?}, {leaf}");
            guest.first.unmap(PAGE, leaf);
            assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, loads, 0], "HPM-29: V = 0 counts as any");
        }
    }
    let mut guest = Guest::<0>::counting();
    let request = guest.read(1 << 39);
    let counts = guest.counts(request);
    assert_eq!(counts[6], 0, "HPM-29, S1-04: not canonical, nothing is read");
}

#[test]
fn every_entry_of_the_second_stage_counts_whatever_it_is_read_for() {
    let mut guest = Guest::<0>::counting().with_second_stage();
    let request = guest.read(PAGE);
    // One for each first-stage entry, three for the page.
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 3 + 3], "HPM-30, HPM-31, HPT-01");
    guest.second.map(GPA, SPA, 1, RWX);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 3 + 2], "HPM-30");
    guest.second.unmap(GPA, 2);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 3 + 1], "HPM-30: V = 0 counts as any");
    guest.second.unmap(0x8000_0000, 2);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 0, 1], "HPM-30: the root of the first stage is not there");
    let mut guest = Guest::<0>::counting().with_second_stage().with_processes();
    let request = guest.of_process();
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 1, 3, 1 + 3 + 3], "HPM-28, HPM-30: and one for the process");
    guest.change(FSC, 0);
    let request = guest.read(GPA).with_process(PROCESS, false);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 0, 3], "HPM-30, TR-15");
}

#[test]
fn the_longest_way_there_is_has_56_loads() {
    let mut guest = Guest::<0>::counting();
    let second = PageTable::second_stage(&guest.rig.memory, SecondStageMode::Sv57x4);
    let first = PageTable::first_stage(&guest.rig.memory, FirstStageMode::Sv57);
    let processes = ProcessDirectory::new(&guest.rig.memory, 3);
    first.map(PAGE, GPA, 0, pte::RO);
    processes.set(PROCESS, [1, first.iosatp()]);
    second.map(GPA, SPA, 0, pte::RO);
    for page in (0x8000_0000..0x8010_0000).step_by(0x1000) {
        second.map(page, page, 0, pte::RO);
    }
    guest.change(FSC, processes.pdtp());
    guest.change(IOHGATP, second.iohgatp(GSCID));
    guest.change(TC, 1 | PDTV);
    guest.rig.forget_accesses();
    let request = guest.of_process();
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 3, 5, (3 + 5) * 5 + 5], "HPT-01, HPM-27 to HPM-30");
    assert_eq!(guest.rig.memory.take_loads().len(), 56, "VT-13, HPM-31: one for each that was counted");
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0]);
}

#[test]
fn an_update_of_a_and_d_counts_once_more() {
    let mut guest = Guest::<0>::counting();
    guest.change(TC, 1 | SADE);
    let (read, write) = (guest.read(PAGE), Request::write(guest.rig.device, Iova::new(PAGE)));
    guest.first.map(PAGE, GPA, 0, RWX & !pte::A & !pte::D);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 4, 0], "HPT-01, HPM-29: A");
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 3, 0], "HPT-01, HPM-29: nothing to update");
    assert_eq!(guest.counts(write), [1, 0, 0, 1, 3, 0, 4, 0], "HPT-01, HPM-29: D");
    // Where it is not enabled there is none.
    guest.change(TC, 1);
    guest.first.map(PAGE, GPA, 0, RWX & !pte::A & !pte::D);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 3, 0], "HPT-01, HPM-29: a page fault");
    // Looked at again because it changed meanwhile: one load and one update more.
    guest.change(TC, 1 | SADE);
    let at = guest.first.entry_address(PAGE, 0);
    guest.rig.memory.on_exchange(at, [GPA >> 2 | RWX & !pte::A & !pte::D | 0x100]);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 6, 0], "HPT-01, HPM-29, AD-03");
}

#[test]
fn an_update_in_the_second_stage_counts_once_more() {
    let mut guest = Guest::<0>::counting().with_second_stage();
    guest.change(TC, 1 | GADE);
    let (read, write) = (guest.read(PAGE), Request::write(guest.rig.device, Iova::new(PAGE)));
    guest.second.map(GPA, SPA, 0, RWX & !pte::A & !pte::D);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 3, 3 + 4], "HPT-01, HPM-30: A");
    assert_eq!(guest.counts(write), [1, 0, 0, 1, 3, 0, 3, 3 + 4], "HPT-01, HPM-30: D");
    assert_eq!(guest.counts(write), [1, 0, 0, 1, 3, 0, 3, 3 + 3], "HPT-01, HPM-30: nothing to update");
    // The page of the tables: A by the first of three reads.
    guest.second.map(0x8000_0000, 0x8000_0000, 2, pte::RW & !pte::A & !pte::D);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 3, 4 + 3], "HPT-01, HPM-30, AD-02");
    // An update of the first stage is a store there: its leaf is looked at once more, and marked once more.
    guest.change(TC, 1 | SADE | GADE);
    guest.first.map(PAGE, GPA, 0, RWX & !pte::A);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 4, 3 + 2 + 3], "HPT-01, HPM-29, HPM-30, AD-07");
    guest.first.map(PAGE, GPA, 0, RWX & !pte::A);
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 4, 3 + 1 + 3], "HPT-01, HPM-29, HPM-30, AD-07");
}

#[test]
fn an_entry_of_an_msi_table_is_no_walk() {
    let mut guest = Guest::<0>::counting().with_msi_table();
    guest.first.map(PAGE, WINDOW, 0, RWX);
    let request = guest.read(PAGE);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 3], "HPT-01, HPM-30: of the first stage alone");
    guest.rig.memory.write(guest.msi, 0);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 3], "HPT-01, MSI-07");
    // Nor are the updates of an interrupt file in memory.
    let (file, notice) = (guest.rig.memory.allocate(1), guest.rig.memory.allocate(1));
    guest.rig.memory.write_words(guest.msi, &[file.get() >> 2 | 0b011, notice.get() >> 2 | 1]);
    let request = Request::msi(guest.rig.device, Iova::new(PAGE), 7);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 3, 3], "HPT-01");
    assert_eq!(guest.rig.memory.read(file), 1 << 7);
}

// What is remembered.

#[test]
fn what_is_remembered_is_neither_missed_nor_walked() {
    let mut guest = Guest::<16>::counting().with_second_stage().with_processes();
    let request = guest.of_process();
    // The entry of the gigabyte with the tables is remembered after its first use.
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 1, 3, 1 + 3], "HPT-01, HPM-26");
    assert_eq!(guest.counts(request), [1, 0, 0, 0, 0, 0, 0, 0], "HPT-01, HPM-26: a hit");
    let device = DeviceId::truncate(DEVICE);
    let vm = Iotinval::ALL.gscid(GSCID);
    for (command, expected) in [
        (inval_ddt(Some(device)), [1, 0, 0, 0, 3, 1, 0, 0]),
        (inval_pdt(device, PROCESS), [1, 0, 0, 0, 0, 1, 0, 0]),
        // Every entry of the first stage.
        (vm.vma(), [1, 0, 0, 1, 0, 0, 3, 0]),
        // The leaf alone.
        (vm.address(Iova::new(PAGE)).pscid(PSCID).vma(), [1, 0, 0, 1, 0, 0, 1, 0]),
        (vm.address(Iova::new(PAGE + 0x1000)).pscid(PSCID).vma(), [1, 0, 0, 0, 0, 0, 0, 0]),
        (vm.address(Iova::new(GPA)).gvma(), [1, 0, 0, 1, 0, 0, 0, 1]),
        (vm.gvma(), [1, 0, 0, 1, 0, 0, 0, 3]),
    ] {
        let _ = guest.rig.run([command]);
        assert_eq!(guest.counts(request), expected, "HPT-01, HPM-26 to HPM-30: {command:x?}");
        assert_eq!(guest.counts(request), [1, 0, 0, 0, 0, 0, 0, 0], "HPT-01, HPM-26");
    }
}

#[test]
fn what_is_remembered_and_not_enough_is_a_miss() {
    let mut guest = Guest::<16>::counting();
    guest.change(TC, 1 | SADE);
    guest.first.map(PAGE, GPA, 0, RWX & !pte::D);
    let (read, write) = (guest.read(PAGE), Request::write(guest.rig.device, Iova::new(PAGE)));
    assert_eq!(guest.counts(read), [1, 0, 0, 1, 3, 0, 3, 0], "HPT-01, HPM-26");
    // The leaf once more, and its update.
    assert_eq!(guest.counts(write), [1, 0, 0, 1, 0, 0, 2, 0], "HPT-01, HPM-26, CA-08");
    assert_eq!(guest.counts(write), [1, 0, 0, 0, 0, 0, 0, 0], "HPT-01, HPM-26");
}

#[test]
fn a_miss_counts_once_for_both_stages() {
    let mut guest = Guest::<0>::counting().with_second_stage().with_processes();
    let request = guest.of_process();
    for _ in 0..2 {
        assert_eq!(guest.counts(request)[3], 1, "HPM-26: nothing is remembered");
    }
    // With no stage at all there is nothing to miss.
    let mut guest = Guest::<0>::counting();
    guest.change(FSC, 0);
    let request = guest.read(PAGE);
    assert_eq!(guest.counts(request), [1, 0, 0, 0, 3, 0, 0, 0], "HPM-26, UNSPECIFIED");
}

#[test]
fn a_process_that_is_not_found_is_no_miss() {
    // The second stage of the way to a process is not what a request looks up.
    let mut guest = Guest::<0>::counting().with_second_stage().with_processes();
    let request = guest.of_process();
    guest.processes.set(PROCESS, [0, 0]);
    assert_eq!(guest.counts(request), [1, 0, 0, 0, 3, 1, 0, 1], "HPM-26: 266");
    guest.second.unmap(0x8000_0000, 2);
    assert_eq!(guest.counts(request), [1, 0, 0, 0, 3, 0, 0, 1], "HPM-26: 21");
}

#[test]
fn an_entry_of_an_msi_table_that_is_not_remembered_is_a_miss() {
    let mut guest = Guest::<16>::counting().with_msi_table();
    guest.change(FSC, 0);
    let request = guest.read(WINDOW);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 3, 0, 0, 0], "HPM-26, MSI-13");
    assert_eq!(guest.counts(request), [1, 0, 0, 0, 0, 0, 0, 0], "HPM-26, MSI-13: a hit");
}

// For whom.

#[test]
fn requests_and_walks_are_told_apart_by_device_and_process() {
    let mut guest = Guest::<0>::counting().with_second_stage().with_processes();
    let request = guest.of_process();
    let counts = [1, 0, 0, 1, 3, 1, 3, 7];
    // DID in 59:36, DV in 61; PID in 35:16, PV in 60; IDT = 0.
    let (device, process) = (1 << 61 | u64::from(DEVICE) << 36, 1 << 60 | u64::from(PROCESS.get()) << 16);
    for (event, count) in (1..).zip(counts) {
        for filter in [0, device, process, device | process] {
            assert_eq!(guest.selected(event | filter, request), count, "HPM-16 to -19, HPM-23 to -30: {event}");
        }
        for other in [device ^ 1 << 36, process ^ 1 << 16, device | process ^ 1 << 35] {
            assert_eq!(guest.selected(event | other, request), 0, "HPM-17, -18, -19: {event}");
        }
    }
    // A request without a process has none to compare.
    let request = guest.read(GPA);
    for (event, count) in [(UNTRANSLATED, 1), (TLB_MISS, 1), (DDT, 3), (SECOND, 3)] {
        assert_eq!(guest.selected(event, request), count, "HPM-16: {event}");
        assert_eq!(guest.selected(event | 1 << 60, request), 0, "HPM-17: {event}");
    }
}

#[test]
fn walks_and_misses_are_told_apart_by_address_space() {
    // GSCID in 59:36, GV in 61; PSCID in 35:16, PSCV in 60; IDT in 62.
    let (vm, space) = (1 << 61 | u64::from(GSCID.get()) << 36, 1 << 60 | u64::from(PSCID.get()) << 16);
    let idt = 1 << 62;
    let mut guest = Guest::<0>::counting().with_second_stage();
    let request = guest.read(PAGE);
    for (event, count) in [(TLB_MISS, 1), (FIRST, 3), (SECOND, 6)] {
        for filter in [0, vm, space, vm | space] {
            assert_eq!(guest.selected(event | idt | filter, request), count, "HPM-16, HPM-20 to -22: {event}");
        }
        for other in [vm ^ 1 << 36, space ^ 1 << 16, vm | space ^ 1 << 35, vm ^ 1 << 51 | space] {
            assert_eq!(guest.selected(event | idt | other, request), 0, "HPM-20 to -22: {event}");
        }
    }
    for event in [UNTRANSLATED, TRANSLATED, ATS, DDT, PDT] {
        assert_eq!(guest.selected(event | idt, request), 0, "HPM-32: {event} has no address space");
    }
    // Without a second stage there is no GSCID, without a first no PSCID.
    guest.change(IOHGATP, 0);
    assert_eq!(guest.selected(FIRST | idt | space, request), 3, "HPM-20");
    assert_eq!(guest.selected(FIRST | idt | 1 << 61, request), 0, "HPM-21: GSCID 0 is not none");
    guest = guest.with_second_stage();
    guest.change(FSC, 0);
    guest.change(TA, 0);
    let request = guest.read(GPA);
    assert_eq!(guest.selected(SECOND | idt | vm, request), 3, "HPM-21");
    assert_eq!(guest.selected(SECOND | idt | 1 << 60, request), 0, "HPM-20: PSCID 0 is not none");
    assert_eq!(guest.selected(TLB_MISS | idt | 1 << 60, request), 0, "HPM-20");
}

#[test]
fn the_address_space_of_a_process_is_that_of_its_context() {
    let mut guest = Guest::<0>::counting().with_processes();
    guest.change(TA, 0);
    let request = guest.of_process();
    let selector = FIRST | 1 << 62 | 1 << 60;
    assert_eq!(guest.selected(selector | u64::from(PSCID.get()) << 16, request), 3, "HPM-20, TR-17");
    assert_eq!(guest.selected(selector, request), 0, "HPM-20, TR-17");
}

#[test]
fn the_default_process_counts_for_walks_and_not_for_requests() {
    let mut guest = Guest::<0>::counting().with_second_stage().with_processes();
    guest.change(TC, 1 | PDTV | DPE);
    guest.processes.set(ProcessId::truncate(0), [1, guest.first.iosatp()]);
    let request = guest.read(PAGE);
    // PV = 1, PID = 0.
    let filter = 1 << 60;
    for (event, count) in [(UNTRANSLATED, 0), (DDT, 0), (TLB_MISS, 1), (PDT, 1), (FIRST, 3), (SECOND, 7)] {
        assert_eq!(guest.selected(event | filter, request), count, "HPM-39: {event}");
        assert_eq!(guest.selected(event | filter | 1 << 16, request), 0, "HPM-39: {event}");
    }
    // A request of process 0 counts for all of them.
    let request = request.with_process(ProcessId::truncate(0), false);
    for (event, count) in [(UNTRANSLATED, 1), (DDT, 3), (TLB_MISS, 1), (PDT, 1), (FIRST, 3), (SECOND, 7)] {
        assert_eq!(guest.selected(event | filter, request), count, "HPM-17: {event}");
    }
}

#[test]
fn translated_and_ats_requests_count_for_their_process() {
    let mut guest = Guest::<0>::counting().with_second_stage().with_processes();
    guest.change(TC, 1 | PDTV | EN_ATS);
    let filter = 1 << 60 | u64::from(PROCESS.get()) << 16;
    let request = guest.of_process().translated();
    assert_eq!(guest.selected(TRANSLATED | filter, request), 1, "HPM-24, HPM-17");
    assert_eq!(guest.selected(TRANSLATED | filter ^ 1 << 16, request), 0, "HPM-24, HPM-17");
    let request = guest.ats(PAGE).with_process(PROCESS, false);
    for (selector, count) in [(ATS | filter, 1), (ATS | filter ^ 1 << 16, 0), (PDT | filter, 1), (FIRST | filter, 3)] {
        guest.rig.write8(iohpmevt(9), selector);
        guest.rig.write8(iohpmctr(9), 0);
        let _ = guest.rig.iommu.ats_translate(&request).expect("offered and granted");
        assert_eq!(guest.rig.read8(iohpmctr(9)), count, "HPM-25, HPM-17");
    }
}

// Counters.

#[test]
fn a_translation_that_makes_a_counter_overflow_interrupts() {
    let mut guest = Guest::<0>::counting();
    // pmiv is bits 11:8 of icvec; wires follow ipsr.
    guest.rig.write8(register::ICVEC, 0x0300);
    let request = guest.read(PAGE);
    // Three loads from two below the end: 1 is left.
    guest.rig.write8(iohpmctr(FIRST), u64::MAX - 1);
    assert_eq!(guest.rig.address(request), Ok(GPA));
    assert_eq!(guest.rig.read8(iohpmctr(FIRST)), 1, "HPM-34: it counts on");
    let state = |guest: &Guest| {
        let wires = guest.rig.iommu.backend().interrupts.levels();
        (guest.rig.read8(iohpmevt(FIRST)), guest.rig.read(IOCOUNTOVF), guest.rig.read(register::IPSR), wires)
    };
    assert_eq!(state(&guest), (OF | FIRST, 1 << FIRST, PMIP, 1 << 3), "HPM-34, HPM-02, REG-WSI-01");
    // OF is 1 by now: the next overflow is not told.
    guest.rig.write(register::IPSR, PMIP);
    guest.rig.write8(iohpmctr(FIRST), u64::MAX);
    assert_eq!(guest.rig.address(request), Ok(GPA));
    assert_eq!(state(&guest), (OF | FIRST, 1 << FIRST, 0, 0), "HPM-34, HPM-35");
}

#[test]
fn a_request_that_faults_and_one_of_the_guest_interrupt_as_well() {
    let mut guest = Guest::<0>::counting();
    guest.rig.write8(iohpmctr(UNTRANSLATED), u64::MAX);
    let request = guest.read(0x1000);
    assert_eq!(guest.rig.address(request), Err(13));
    assert_eq!(guest.rig.read(register::IPSR) & PMIP, PMIP, "HPM-34");
    for (counter, offset, value) in
        [(DDT, TR_REQ_CTL, u64::from(DEVICE) << 40 | 1), (FIRST, TR_REQ_CTL, u64::from(DEVICE) << 40 | 1)]
    {
        guest.rig.write(register::IPSR, PMIP);
        guest.rig.write8(iohpmctr(counter), u64::MAX);
        guest.rig.write8(TR_REQ_IOVA, PAGE);
        guest.rig.write8(offset, value);
        assert_eq!(guest.rig.read(register::IPSR) & PMIP, PMIP, "HPM-34, HPM-42");
    }
    guest.rig.write(register::IPSR, PMIP);
    guest.rig.write8(iohpmctr(ATS), u64::MAX);
    let request = guest.ats(PAGE);
    let _ = guest.rig.iommu.ats_translate(&request).expect("offered and granted");
    assert_eq!(guest.rig.read(register::IPSR) & PMIP, PMIP, "HPM-34, HPM-25");
}

#[test]
fn counters_that_are_inhibited_or_count_nothing_stand_still() {
    let mut guest = Guest::<0>::counting();
    guest.rig.write(IOCOUNTINH, 1 << FIRST | 1 << UNTRANSLATED);
    guest.rig.write8(iohpmevt(DDT), 0);
    let request = guest.read(PAGE);
    assert_eq!(guest.counts(request), [0, 0, 0, 1, 0, 0, 0, 0], "HPM-37, HPM-08");
    guest.rig.write(IOCOUNTINH, 0);
    assert_eq!(guest.counts(request), [1, 0, 0, 1, 0, 0, 3, 0], "HPM-37");
}

#[test]
fn several_counters_may_count_the_same() {
    let mut guest = Guest::<0>::counting();
    for n in 9..=16 {
        guest.rig.write8(iohpmevt(n), FIRST);
    }
    let request = guest.read(PAGE);
    let _ = guest.rig.address(request);
    assert!((9..=16).all(|n| guest.rig.read8(iohpmctr(n)) == 3), "HPM-29, HPM-16");
}

#[test]
fn without_a_monitor_nothing_counts() {
    let mut rig = DmaRig::<0>::new(everything());
    rig.write8(iohpmevt(1), UNTRANSLATED);
    rig.set_context(&[1]);
    let request = Request::read(rig.device, Iova::new(PAGE));
    assert_eq!((rig.address(request), rig.read8(iohpmctr(1))), (Ok(PAGE), 0), "REG-ACC-11");
}
