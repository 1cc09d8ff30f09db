//! What a guest is answered that asks for translations through registers, and the quality-of-service ids of accesses.
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

use dma_rig::{DEVICE, everything, head};
use full_guest::{ENS, FILE, FSC, GPA, Guest, PAGE, PC_V, PROCESS, RWX, SPA, TA, TC, WINDOW};
use riscv_viommu::mock::guest::register::{IOMMU_QOSID, TR_REQ_CTL, TR_REQ_IOVA, TR_RESPONSE};
use riscv_viommu::mock::guest::{Iotinval, register};
use riscv_viommu::mock::tables::tc::{DPE, DTF, EN_ATS, GADE, PDTV, SADE, T2GPA};
use riscv_viommu::mock::tables::{Directory, PageTable, pte};
use riscv_viommu::{DeviceId, FirstStageMode, Iova, MemoryFault, ProcessId, Progress, Request, Target, Width};

/// Bits of `tr_req_ctl` (rules DBG-03 to DBG-09).
const GO: u64 = 1;
const PRIV: u64 = 1 << 1;
const EXE: u64 = 1 << 2;
const NW: u64 = 1 << 3;
const PV: u64 = 1 << 32;

/// `tr_response` of a fault (rule DBG-13).
const FAULT: u64 = 1;
/// `tr_response.S` (rule DBG-16).
const S: u64 = 1 << 9;

/// PID in 31:12, PV in 32 (rules DBG-08, DBG-09).
fn of_process() -> u64 {
    u64::from(PROCESS.get()) << 12 | PV
}

impl<const CACHE: usize> Guest<CACHE> {
    /// Asks for the translation of an address of the device; `tr_response`.
    fn debug(&mut self, iova: u64, ctl: u64) -> u64 {
        let ctl = ctl | u64::from(DEVICE) << 40;
        self.rig.write8(TR_REQ_IOVA, iova);
        self.rig.write8(TR_REQ_CTL, ctl | GO);
        assert_eq!(self.rig.read8(TR_REQ_CTL), ctl, "DBG-25, TRD-01: done when the write is");
        self.rig.read8(TR_RESPONSE)
    }
}

/// `tr_response` of a page of 4 KiB (rules DBG-15 to DBG-17).
fn page(at: u64) -> u64 {
    at >> 12 << 10
}

// The request.

#[test]
fn a_request_is_an_untranslated_one_of_the_kind_it_names() {
    let mut guest = Guest::new();
    for (ctl, ttyp, cause) in [(NW | EXE, 1, 12), (NW, 2, 13), (0, 3, 15), (EXE, 3, 15)] {
        assert_eq!(guest.debug(PAGE, ctl), page(GPA), "DBG-21, TRD-01, TRD-02");
        assert_eq!(guest.debug(0x1000, ctl), FAULT, "DBG-22");
        let expected = [head(cause, ttyp, None), 0, 0x1000, 0];
        assert_eq!(
            guest.rig.take_fault(),
            expected,
            "DBG-05, DBG-06, DBG-21, TRD-01: Exe alone is a write, UNSPECIFIED"
        );
    }
}

#[test]
fn a_request_needs_the_permissions_it_asks_for() {
    let plain = pte::V | pte::U | pte::A | pte::D;
    let mut guest = Guest::new();
    for (leaf, execute, read, write) in [
        (pte::R, false, true, false),
        (pte::R | pte::W, false, true, true),
        (pte::X, true, false, false),
        (pte::R | pte::X, true, true, false),
        (pte::R | pte::W | pte::X, true, true, true),
    ] {
        guest.first.map(PAGE, GPA, 0, plain | leaf);
        for (ctl, allowed) in [(NW | EXE, execute), (NW, read), (0, write), (EXE, write)] {
            let expected = if allowed { page(GPA) } else { FAULT };
            assert_eq!(guest.debug(PAGE, ctl), expected, "DBG-21, TRD-01, ACC-05: {leaf:#x}, {ctl:#x}");
        }
    }
}

#[test]
fn a_request_is_about_the_first_byte_of_its_page() {
    let mut guest = Guest::new();
    assert_eq!(guest.debug(PAGE | 0xfff, NW), page(GPA), "DBG-01, DBG-21");
    assert_eq!(guest.rig.read8(TR_REQ_IOVA), PAGE, "DBG-01, DBG-02");
    assert_eq!(guest.debug(0x1fff, NW), FAULT);
    assert_eq!(guest.rig.take_fault()[2], 0x1000, "DBG-22");
}

#[test]
fn process_and_privilege_count_where_pv_is_1() {
    let mut guest = Guest::new().with_processes();
    let process = of_process();
    assert_eq!(guest.debug(PAGE, process | NW), page(GPA), "DBG-08, DBG-09, TRD-01");
    assert_eq!(guest.debug(PAGE, process | NW | PRIV), FAULT, "DBG-04, S1-11: a user's page");
    assert_eq!(guest.rig.take_fault(), [head(13, 2, Some((PROCESS.get(), true))), 0, PAGE, 0], "DBG-04, FR-05");
    guest.first.map(PAGE, GPA, 0, RWX & !pte::U);
    assert_eq!(guest.debug(PAGE, process | NW | PRIV), page(GPA), "DBG-04");
    assert_eq!(guest.debug(PAGE, process | NW), FAULT, "DBG-04, S1-11");
    assert_eq!(guest.rig.take_fault(), [head(13, 2, Some((PROCESS.get(), false))), 0, PAGE, 0], "DBG-04, FR-05");
    guest.processes.set(PROCESS, [PC_V, guest.first.iosatp()]);
    assert_eq!(guest.debug(PAGE, process | NW | PRIV), FAULT, "TR-16");
    assert_eq!(guest.rig.take_fault()[0] & 0xfff, 260, "TR-16");
    // With PV = 0 neither is looked at: the device's own table, as a user, and a record without a process.
    guest.change(FSC, guest.first.iosatp());
    guest.change(TC, 1);
    assert_eq!(guest.debug(PAGE, (process | NW | PRIV) & !PV), FAULT, "DBG-04, DBG-09, ACC-02");
    assert_eq!(guest.rig.take_fault(), [head(13, 2, None), 0, PAGE, 0], "DBG-09, FR-05");
    assert_eq!(guest.debug(PAGE, process | NW), FAULT, "TR-09");
    assert_eq!(guest.rig.take_fault(), [head(260, 2, Some((PROCESS.get(), false))), 0, PAGE, 0], "TR-09");
}

#[test]
fn a_request_without_a_process_takes_the_default_one() {
    let mut guest = Guest::new().with_processes();
    // Without DPE there is no first stage then.
    assert_eq!(guest.debug(0x1000, NW), S | page(0x1fff_f000), "TR-14, SZ-01, UNSPECIFIED");
    guest.change(TC, 1 | PDTV | DPE);
    guest.processes.set(ProcessId::truncate(0), [PC_V | ENS, guest.first.iosatp()]);
    assert_eq!(guest.debug(PAGE, NW | PRIV), page(GPA), "DBG-28, TR-14");
    guest.first.map(PAGE, GPA, 0, RWX & !pte::U);
    assert_eq!(guest.debug(PAGE, NW | PRIV), FAULT, "DBG-28, TR-14: as a user");
    assert_eq!(guest.rig.take_fault(), [head(13, 2, None), 0, PAGE, 0], "DBG-28, FR-05: PV = 0");
}

#[test]
fn any_device_can_be_asked_for() {
    let mut guest = Guest::new();
    let other = DeviceId::truncate(0xff_ffff);
    let first = PageTable::first_stage(&guest.rig.memory, FirstStageMode::Sv48);
    first.map(0x1000, 0x7777_0000, 0, pte::RO);
    guest.rig.directory.set(other, &[1, 0, 0, first.iosatp()]);
    guest.rig.write8(TR_REQ_IOVA, 0x1000);
    guest.rig.write8(TR_REQ_CTL, 0xffff_ff00_0000_0000 | NW | GO);
    assert_eq!(guest.rig.read8(TR_RESPONSE), page(0x7777_0000), "DBG-12, TRD-01");
}

// When it is made.

#[test]
fn a_request_is_done_within_the_write_that_makes_it() {
    let mut guest = Guest::new();
    let ctl = u64::from(DEVICE) << 40 | NW;
    let write = |guest: &mut Guest, offset, width, value| guest.rig.iommu.write(offset, width, value);
    assert_eq!(write(&mut guest, TR_REQ_IOVA, Width::U64, PAGE), Progress::Idle);
    assert_eq!(write(&mut guest, TR_REQ_CTL, Width::U64, ctl | GO), Progress::Idle);
    assert_eq!((guest.rig.read8(TR_REQ_CTL), guest.rig.read8(TR_RESPONSE)), (ctl, page(GPA)), "DBG-03, DBG-25");
    // The next request needs no waiting, and the registers take it.
    assert_eq!(write(&mut guest, TR_REQ_IOVA, Width::U64, 0x1000), Progress::Idle);
    assert_eq!(guest.rig.read8(TR_RESPONSE), page(GPA), "DBG-26: not started by the address");
    assert_eq!(write(&mut guest, TR_REQ_CTL, Width::U64, ctl | GO), Progress::Idle);
    assert_eq!((guest.rig.read8(TR_REQ_CTL), guest.rig.read8(TR_RESPONSE)), (ctl, FAULT), "DBG-25");
    assert_eq!(guest.rig.take_fault()[2], 0x1000);
    // Writing 0 to Go starts nothing.
    assert_eq!(write(&mut guest, TR_REQ_IOVA, Width::U64, PAGE), Progress::Idle);
    assert_eq!(write(&mut guest, TR_REQ_CTL, Width::U64, ctl), Progress::Idle);
    assert_eq!(guest.rig.read8(TR_RESPONSE), FAULT, "DBG-03");
}

#[test]
fn written_in_halves_it_starts_with_the_low_one() {
    let mut guest = Guest::new();
    guest.rig.write(TR_REQ_IOVA + 4, PAGE >> 32);
    guest.rig.write(TR_REQ_IOVA, PAGE & 0xffff_ffff);
    guest.rig.write(TR_REQ_CTL + 4, u64::from(DEVICE) << 8);
    assert_eq!(guest.rig.read8(TR_RESPONSE), 0, "DBG-26");
    guest.rig.write(TR_REQ_CTL, NW | GO);
    assert_eq!((guest.rig.read(TR_REQ_CTL), guest.rig.read8(TR_RESPONSE)), (NW, page(GPA)), "DBG-25, DBG-26");
    // The high half again: Go is 0 by now.
    guest.first.unmap(PAGE, 0);
    guest.rig.write(TR_REQ_CTL + 4, u64::from(DEVICE) << 8);
    assert_eq!(guest.rig.read8(TR_RESPONSE), page(GPA), "DBG-26");
}

// The answer.

#[test]
fn a_fault_is_recorded_as_for_any_request() {
    let mut guest = Guest::new().with_processes().with_second_stage();
    let process = of_process();
    guest.second.unmap(GPA, 0);
    assert_eq!(guest.debug(PAGE, process), FAULT, "DBG-22, TRD-02");
    assert_eq!(guest.rig.take_fault(), [head(23, 3, Some((PROCESS.get(), false))), 0, PAGE, GPA], "DBG-22, FR-08");
    guest.rig.memory.fail(guest.processes.entry_address(PROCESS), 8, MemoryFault::Corruption);
    assert_eq!(guest.debug(PAGE, process | NW | EXE), FAULT, "DBG-22, TRD-02");
    assert_eq!(guest.rig.take_fault(), [head(269, 1, Some((PROCESS.get(), false))), 0, PAGE, 0], "DBG-22");
    guest.rig.directory.invalidate(DeviceId::truncate(DEVICE));
    assert_eq!(guest.debug(PAGE, process | NW), FAULT, "DBG-22, TRD-02");
    assert_eq!(guest.rig.take_fault(), [head(258, 2, Some((PROCESS.get(), false))), 0, PAGE, 0], "DBG-22");
    guest.rig.write8(register::DDTP, 0);
    let directory = Directory::new(&guest.rig.memory, 1, true);
    guest.rig.write8(register::DDTP, directory.ddtp());
    assert_eq!(guest.debug(PAGE, NW), FAULT, "DBG-22, TR-06");
    assert_eq!(guest.rig.take_fault(), [head(260, 2, None), 0, PAGE, 0], "DBG-22, TR-06");
}

#[test]
fn dtf_hides_the_record_and_not_the_fault() {
    let mut guest = Guest::new();
    guest.change(TC, 1 | DTF);
    assert_eq!(guest.debug(0x1000, NW), FAULT, "DBG-22, TRD-02");
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0], "DBG-22, TRD-02");
    guest.change(TC, 1 | DTF | 1 << 12);
    assert_eq!(guest.debug(0x1000, NW), FAULT, "DBG-22");
    assert_eq!(guest.rig.take_fault()[0], head(259, 2, None), "DBG-22, FR-03");
}

#[test]
fn a_record_of_a_request_interrupts() {
    let mut guest = Guest::new();
    guest.rig.write(register::FQCSR, register::ENABLE | register::INTERRUPT_ENABLE);
    assert_eq!(guest.debug(0x1000, NW), FAULT);
    assert_eq!(guest.rig.read(register::IPSR), register::FIP, "DBG-22, FR-11");
}

#[test]
fn off_refuses_and_bare_goes_where_it_says() {
    let mut guest = Guest::new();
    guest.rig.write8(register::DDTP, 0);
    for (ctl, ttyp) in [(NW | EXE, 1), (NW, 2), (0, 3)] {
        assert_eq!(guest.debug(PAGE, ctl), FAULT, "DBG-24");
        assert_eq!(guest.rig.take_fault(), [head(256, ttyp, None), 0, PAGE, 0], "DBG-24, TR-02");
    }
    guest.rig.write8(register::DDTP, 1);
    // The naturally aligned gigabyte that holds the page: bit 28 is 0 above ones (rule DBG-19).
    let expected = S | page(0x3e_0000_0000 | 0x1fff_f000);
    for ctl in [NW | EXE, NW, 0, of_process(), of_process() | PRIV] {
        assert_eq!(guest.debug(PAGE, ctl), expected, "DBG-24, TR-04, SZ-01, UNSPECIFIED");
    }
    assert_eq!(guest.rig.take_faults(), [[0; 4]; 0], "DBG-24");
}

#[test]
fn the_size_is_in_the_low_bits_of_the_page_number() {
    let mut guest = Guest::new();
    let to = 0x50_c000_0000_u64;
    let napot = (to | 0x8000) >> 2 | RWX | pte::N;
    // Level, entry, and the page number that is answered, with S.
    for (level, leaf, expected) in [
        (0, to >> 2 | RWX, page(to)),
        // 0111: 64 KiB.
        (0, napot, S | page(to | 0x7000)),
        // 0 1111 1111: 2 MiB.
        (1, to >> 2 | RWX, S | page(to | 0xf_f000)),
        // A 0 and seventeen ones: 1 GiB.
        (2, to >> 2 | RWX, S | page(to | 0x1fff_f000)),
    ] {
        guest.first.set(0x3f_0000_0000 - 0x4000_0000, level, 0);
        guest.first.set(0x3f_0000_0000 - 0x4000_0000, level, leaf);
        assert_eq!(guest.debug(0x3f_0000_0000 - 0x4000_0000, NW), expected, "DBG-16, DBG-17, DBG-19, SZ-02");
    }
}

#[test]
fn the_size_shrinks_beside_an_interrupt_file() {
    let mut guest = Guest::new().with_msi_table();
    guest.change(FSC, 0);
    guest.second.map(WINDOW, SPA, 1, RWX);
    for (offset, expected) in [
        (0x1000, page(SPA | 0x1000)),
        // 8 KiB: a 0 in bit 0.
        (0x2000, S | page(SPA | 0x2000)),
        (0x3000, S | page(SPA | 0x2000)),
        (0x7000, S | page(SPA | 0x5000)),
        (0x10_0000, S | page(SPA | 0x17_f000)),
    ] {
        assert_eq!(guest.debug(WINDOW + offset, NW), expected, "DBG-19, SZ-04, DX-28: {offset:#x}");
    }
}

#[test]
fn the_memory_type_is_that_of_both_stages() {
    let mut guest = Guest::new().with_second_stage();
    for (first, second, expected) in [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 2, 1), (2, 1, 2), (2, 0, 2)] {
        guest.first.map(PAGE, GPA, 0, RWX | first << 61);
        guest.second.map(GPA, SPA, 0, RWX | second << 61);
        assert_eq!(guest.debug(PAGE, NW), page(SPA) | expected << 7, "DBG-15, TRD-02, PB-02: {first} {second}");
    }
    // Not of a fault.
    guest.second.map(GPA, SPA, 0, RWX & !pte::U | 2 << 61);
    assert_eq!(guest.debug(PAGE, NW), FAULT, "DBG-15, DBG-16, DBG-17: UNSPECIFIED");
}

#[test]
fn an_interrupt_file_has_the_page_of_its_entry_and_one_in_memory_has_none() {
    let mut guest = Guest::new().with_msi_table();
    guest.first.map(PAGE, WINDOW, 1, RWX);
    for ctl in [NW, 0] {
        assert_eq!(guest.debug(PAGE, ctl), page(FILE), "DBG-23, TRD-02, SZ-05");
    }
    assert_eq!(guest.debug(PAGE, NW | EXE), FAULT, "DBG-23, MSI-11");
    assert_eq!(guest.rig.take_fault(), [head(1, 1, None), 0, PAGE, 0], "MSI-11");
    let (file, notice) = (guest.rig.memory.allocate(1), guest.rig.memory.allocate(1));
    guest.rig.memory.write_words(guest.msi, &[file.get() >> 2 | 0b011, notice.get() >> 2 | 1]);
    for (ctl, ttyp) in [(NW, 2), (0, 3)] {
        assert_eq!(guest.debug(PAGE, ctl), FAULT, "DBG-23, TRD-02");
        assert_eq!(guest.rig.take_fault(), [head(260, ttyp, None), 0, PAGE, 0], "DBG-23, TRD-02");
    }
    assert_eq!(guest.rig.memory.read(file), 0, "DBG-23: nothing is stored");
    guest.change(TC, 1 | DTF);
    assert_eq!((guest.debug(PAGE, 0), guest.rig.take_faults().len()), (FAULT, 0), "DBG-22, DBG-23");
    guest.rig.memory.write(guest.msi, 0);
    guest.change(TC, 1);
    assert_eq!(guest.debug(PAGE, 0), FAULT);
    assert_eq!(guest.rig.take_fault()[0], head(262, 3, None), "DBG-23, MSI-07");
}

// What a request does beside.

#[test]
fn a_request_marks_the_pages_as_an_access_would() {
    let mut guest = Guest::new().with_second_stage();
    guest.change(TC, 1 | SADE | GADE);
    guest.first.map(PAGE, GPA, 0, RWX & !pte::A & !pte::D);
    guest.second.map(GPA, SPA, 0, RWX & !pte::A & !pte::D);
    for (ctl, marks) in [(NW, pte::A), (0, pte::A | pte::D)] {
        assert_eq!(guest.debug(PAGE, ctl), page(SPA), "DBG-27");
        let found = [guest.first.get(PAGE, 0), guest.second.get(GPA, 0)].map(|leaf| leaf & (pte::A | pte::D));
        assert_eq!(found, [marks; 2], "DBG-27, AD-13");
    }
    guest.change(TC, 1);
    guest.first.map(PAGE, GPA, 0, RWX & !pte::D);
    assert_eq!((guest.debug(PAGE, NW), guest.debug(PAGE, 0)), (page(SPA), FAULT), "AD-01");
}

#[test]
fn requests_and_accesses_remember_for_each_other() {
    let mut guest = Guest::<16>::with(everything());
    let access = Request::read(guest.rig.device, Iova::new(PAGE));
    assert_eq!(guest.debug(PAGE, NW), page(GPA));
    guest.rig.forget_accesses();
    assert_eq!((guest.rig.address(access), guest.rig.memory.take_loads().len()), (Ok(GPA), 0), "DBG-27");
    guest.first.unmap(PAGE, 0);
    assert_eq!(guest.debug(PAGE, NW), page(GPA), "DBG-27, CA-06");
    let _ = guest.rig.run([Iotinval::ALL.vma()]);
    assert_eq!(guest.debug(PAGE, NW), FAULT, "DBG-27");
}

// Quality-of-service ids.

/// RCID in 51:40, MCID in 63:52 of `ta` (rule DC-22).
fn ta(rcid: u64, mcid: u64) -> u64 {
    rcid << 40 | mcid << 52
}

/// RCID and MCID of an access.
fn ids(guest: &mut Guest, request: Request) -> (u16, u16) {
    let qos = guest.rig.translate(request).expect("allowed").qos;
    (qos.rcid, qos.mcid)
}

#[test]
fn in_bare_the_ids_are_those_of_the_register() {
    let mut guest = Guest::with(everything().with_qos_bits(12));
    guest.change(TA, ta(0x111, 0x222));
    guest.rig.write8(register::DDTP, 1);
    let request = Request::write(guest.rig.device, Iova::new(PAGE));
    assert_eq!(ids(&mut guest, request), (0, 0), "QOS-01");
    // RCID in 11:0, MCID in 27:16.
    guest.rig.write(IOMMU_QOSID, 0x0abc_0def);
    assert_eq!(ids(&mut guest, request), (0xdef, 0xabc), "QOS-01, REG-QOS-01, REG-QOS-03, TR-04, REG-DDTP-17");
}

#[test]
fn otherwise_the_ids_are_those_of_the_context() {
    let mut guest = Guest::with(everything().with_qos_bits(12)).with_msi_table();
    guest.rig.write(IOMMU_QOSID, 0x0abc_0def);
    guest.first.map(PAGE + 0x1000, WINDOW, 0, RWX);
    guest.change(TA, ta(0x123, 0xfed));
    let device = guest.rig.device;
    let (page, file) = (Request::read(device, Iova::new(PAGE)), Request::write(device, Iova::new(PAGE + 0x1000)));
    for request in [page, file] {
        assert_eq!(ids(&mut guest, request), (0x123, 0xfed), "QOS-02, DC-22");
    }
    guest.rig.memory.write_words(guest.msi, &[0x8fff_f000 >> 2 | 0b011, 0]);
    let read = Request::read(device, Iova::new(PAGE + 0x1000)).with_length(4);
    assert_eq!(guest.rig.translate(read).expect("4 aligned bytes").target, Target::Mrif);
    assert_eq!(ids(&mut guest, read), (0x123, 0xfed), "QOS-02");
    for t2gpa in [0, T2GPA] {
        guest.change(TC, 1 | EN_ATS | t2gpa);
        let translated = Request::read(device, Iova::new(GPA)).translated();
        assert_eq!(ids(&mut guest, translated), (0x123, 0xfed), "QOS-02");
    }
    guest = guest.with_processes();
    assert_eq!(ids(&mut guest, page.with_process(PROCESS, false)), (0x123, 0xfed), "QOS-02");
    // The second stage has no page for an address that is not one of the first stage's.
    assert_eq!(guest.rig.address(page), Err(21), "TR-14");
}

#[test]
fn ids_have_the_bits_that_are_offered() {
    for (bits, good, bad) in [(1, 1, 2), (4, 0xf, 0x10), (12, 0xfff, 0)] {
        let mut guest = Guest::with(everything().with_qos_bits(bits));
        let request = Request::read(guest.rig.device, Iova::new(PAGE));
        guest.change(TA, ta(good, good));
        assert_eq!(
            ids(&mut guest, request),
            (u16::try_from(good).expect("12 bits"), u16::try_from(good).expect("12 bits")),
            "QOS-02"
        );
        for ta in [ta(bad, 0), ta(0, bad)] {
            guest.change(TA, ta);
            let expected = if bad == 0 { Ok(GPA) } else { Err(259) };
            assert_eq!(guest.rig.address(request), expected, "QOS-03, REG-QOS-05: {bits}");
        }
    }
}

#[test]
fn without_ids_they_are_0_and_reserved() {
    let mut guest = Guest::new();
    let request = Request::read(guest.rig.device, Iova::new(PAGE));
    assert_eq!(ids(&mut guest, request), (0, 0), "QOS-03");
    for ta in [ta(1, 0), ta(0, 1), ta(0x800, 0), ta(0, 0x800)] {
        guest.change(TA, ta);
        assert_eq!(guest.rig.address(request), Err(259), "QOS-03, REG-QOS-06");
    }
    guest.rig.write(IOMMU_QOSID, 0x0fff_0fff);
    guest.rig.write8(register::DDTP, 1);
    assert_eq!((ids(&mut guest, request), guest.rig.read(IOMMU_QOSID)), ((0, 0), 0), "QOS-03, REG-QOS-06");
}
