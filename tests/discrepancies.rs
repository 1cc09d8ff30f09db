//! Where sources differ: what the crate does is what the text says, and not what the reference model does.
//!
//! Rule IDs are those of the tables of discrepancies.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod nested_guest;

use dma_rig::{DEVICE, DmaRig, everything};
use nested_guest::{FILE, FILES, IOVA, MESSAGES, NOTICE, Nested, OUTPUT, PAGE, PROCESS};
use riscv_viommu::mock::guest::register::{CQCSR, CQH, DDTP, ENABLE, ON};
use riscv_viommu::mock::guest::{Iofence, Iotinval, inval_ddt};
use riscv_viommu::mock::tables::tc::{DPE, EN_ATS, EN_PRI, GADE, PDTV, SADE, SBE, T2GPA, V};
use riscv_viommu::mock::tables::{Directory, PageTable, pte};
use riscv_viommu::mock::{Event, Memory};
use riscv_viommu::{
    Ats, Capabilities, Config, DeviceId, DevicePolicy, FirstStageMode, Gpa, Gscid, Gxl, Iova, PageRequest, Post, Prgi,
    ProcessId, Request, SecondStageMode, Target,
};

const TC: u64 = V | EN_ATS | PDTV;

/// Where the loads since the last time were from.
fn loads<const CACHE: usize>(rig: &DmaRig<CACHE>) -> Vec<u64> {
    rig.memory.take_loads().into_iter().map(|(at, _)| at.get()).collect()
}

fn posts<const CACHE: usize>(rig: &DmaRig<CACHE>) -> Vec<(u64, u32)> {
    let notices = rig.memory.take_posts().into_iter().filter(|(_, _, why)| *why == Post::Notice);
    notices.map(|(at, data, _)| (at.get(), data)).collect()
}

// Directories.

#[test]
fn an_id_too_wide_for_the_directory_is_refused_whatever_its_low_bits_are() {
    // Format, levels, ids whose index of a level that there is not has its highest bit alone.
    for (extended, levels, id) in [
        (true, 1, 0x4000),
        (true, 1, 0x40),
        (true, 1, 0x80_0000),
        (true, 2, 0x80_0000),
        (true, 2, 0x8000),
        (false, 1, 0x8000),
        (false, 1, 0x80),
        (false, 2, 0x80_0000),
        (false, 2, 0x1_0000),
    ] {
        let mut rig = DmaRig::<0>::new(everything().with_extended_contexts(extended));
        let directory = Directory::new(&rig.memory, levels, extended);
        directory.set(DeviceId::truncate(0), &[1]);
        rig.write8(DDTP, 0);
        rig.write8(DDTP, directory.ddtp());
        let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
        let device = rig.iommu.attach_emulated(DeviceId::truncate(id), policy).expect("there is room");
        rig.forget_accesses();
        assert_eq!(rig.address(Request::read(device, Iova::new(0))), Err(260), "DX-01, TR-06: {id:#x}");
        assert_eq!(loads(&rig), [], "DX-01, DDT-16: {id:#x}");
        assert_eq!(rig.take_fault()[0], u64::from(id) << 40 | 2 << 34 | 0x104, "DX-01");
        let request = PageRequest::read(Iova::new(0), Prgi::truncate(1));
        let response = rig.iommu.page_request(device, &request).expect("it has ATS").expect("it is the last");
        assert_eq!(response.payload().into_bits(), 1 << 32 | 1 << 44, "DX-01, DX-25, PRI-07");
    }
}

#[test]
fn page_number_bits_above_the_guest_physical_width_are_reserved() {
    // Sv57x4: 59 bits of address, 47 of its page number; in an MSI table that is not used either.
    for bit in 46..64 {
        for word in [5, 6] {
            let mut nested = Nested::<0>::new(V | EN_ATS);
            let mut context = nested.context(V | EN_ATS);
            context[4] = 0;
            context[word] |= 1 << bit;
            nested.rig.set_context(&context);
            let read = nested.read(IOVA);
            let expected = if bit < 47 { Ok(OUTPUT) } else { Err(259) };
            assert_eq!(nested.rig.address(read), expected, "DX-02: bit {bit} of word {word}");
        }
    }
}

#[test]
fn what_lies_behind_a_base_format_context_is_not_part_of_it() {
    let mut rig = DmaRig::<0>::new(everything().with_extended_contexts(false));
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    second.map(FILES, OUTPUT, 0, pte::RW);
    let messages = rig.memory.allocate(1);
    rig.memory.write(messages, FILE >> 2 | 7);
    rig.set_context(&[1, second.iohgatp(Gscid::truncate(1)), 0, 0]);
    // The context of the next device has what would be msiptp Flat, a mask, and a pattern.
    let next = DeviceId::truncate(DEVICE + 1);
    rig.directory.set(next, &[1 << 60 | messages.get() >> 12, 3, FILES >> 12, 0]);
    let device = DeviceId::truncate(DEVICE);
    assert_eq!(rig.directory.entry_address(next).get(), rig.directory.entry_address(device).get() + 32);
    rig.forget_accesses();
    let write = Request::write(rig.device, Iova::new(FILES));
    assert_eq!(rig.address(write), Ok(OUTPUT), "DX-03, DDT-18");
    assert!(!loads(&rig).contains(&messages.get()), "DX-03");
}

#[test]
fn each_level_of_a_process_directory_has_its_own_index() {
    for (levels, process, indices) in [
        // PDI[2], PDI[1], PDI[0], times the size of the entry.
        (3, 0xb_3456, vec![5 * 8, 0x134 * 8, 0x56 * 16]),
        (3, 0xf_ffff, vec![7 * 8, 0x1ff * 8, 0xff * 16]),
        (2, 0x1_3456, vec![0x134 * 8, 0x56 * 16]),
        (2, 0x1_ffff, vec![0x1ff * 8, 0xff * 16]),
        (1, 0x56, vec![0x56 * 16]),
    ] {
        let mut rig = DmaRig::<0>::new(everything());
        // Pages of its own, so that each load tells which level it is of.
        let root = rig.memory.allocate(1);
        let mut at = root.get();
        let mut expected = Vec::new();
        for (level, offset) in indices.iter().enumerate() {
            expected.push(at + offset);
            if level + 1 < indices.len() {
                let below = rig.memory.allocate(1).get();
                rig.memory.write(Gpa::new(at + offset), below >> 2 | 1);
                at = below;
            } else {
                rig.memory.write(Gpa::new(at + offset), 1);
            }
        }
        rig.set_context(&[V | PDTV, 0, 0, levels << 60 | root.get() >> 12]);
        rig.forget_accesses();
        let process = ProcessId::truncate(process);
        let read = Request::read(rig.device, Iova::new(0x1000)).with_process(process, false);
        assert_eq!(rig.address(read), Ok(0x1000), "DX-08, DISC-Q09, PDT-05");
        let mut found = loads(&rig);
        // The directory of devices comes first: 3 levels.
        let found = found.split_off(3);
        assert_eq!(found, expected, "DX-08, DISC-Q09, PDT-01, PDT-02, PDT-03, PDT-05");
    }
}

#[test]
fn a_device_without_any_scheme_has_pages_of_at_least_4_kib() {
    let nothing = Config::emulated().with_capabilities(Capabilities::new().with_pas(56)).with_synchronous_dma(true);
    for (config, tc) in [(nothing, V), (nothing.with_gxl(Gxl::One), V | 1 << 11)] {
        let mut rig = DmaRig::<0>::new(config);
        rig.set_context(&[tc]);
        let request = Request::write(rig.device, Iova::new(0x1234_5678)).with_length(8);
        let translation = rig.translate(request).expect("both stages are Bare");
        assert_eq!(translation.target, Target::Memory(Gpa::new(0x1234_5678)), "DX-09");
        assert!(translation.size >= 4096 && translation.size.is_power_of_two(), "DX-09: {:#x}", translation.size);
        assert_eq!(translation.length, 8, "DX-09");
    }
}

// ATS.

#[test]
fn with_t2gpa_an_ats_request_is_told_the_guest_physical_address() {
    fn check<const CACHE: usize>() {
        for iova in [IOVA, MESSAGES] {
            let mut nested = Nested::<CACHE>::new(TC | T2GPA);
            let gpa = if iova == IOVA { PAGE } else { FILES };
            let request = nested.ask(iova).with_process(PROCESS, false);
            for _ in 0..2 {
                let answer = nested.answer(&request);
                assert_eq!((answer.address, answer.size), (gpa, 4096), "DX-21, ATS-06, ATS-16");
                assert!(answer.read && answer.write, "DX-21, ATS-06");
            }
            // And without it what the second stage or the MSI page table makes of that.
            nested.set_tc(TC);
            let inval = inval_ddt(Some(DeviceId::truncate(DEVICE)));
            let _ = nested.rig.run([inval, Iofence::PLAIN.encode()]);
            let address = if iova == IOVA { OUTPUT } else { FILE };
            assert_eq!(nested.answer(&request).address, address, "DX-21");
        }
    }
    check::<0>();
    check::<16>();
}

#[test]
fn what_an_untranslated_request_left_behind_is_not_told_to_an_ats_request() {
    let mut nested = Nested::<16>::new(TC | T2GPA);
    let (read, ask) = (nested.read(IOVA).with_process(PROCESS, false), nested.ask(IOVA).with_process(PROCESS, false));
    let translated = nested.read(PAGE).translated();
    for _ in 0..2 {
        assert_eq!(nested.rig.address(read), Ok(OUTPUT), "DX-22, CA-10");
        assert_eq!(nested.answer(&ask).address, PAGE, "DX-22, CA-10, VT-09");
        assert_eq!(nested.rig.address(translated), Ok(OUTPUT), "DX-22, TR-12");
    }
    // The other way round.
    let mut nested = Nested::<16>::new(TC | T2GPA);
    let (read, ask) = (nested.read(IOVA).with_process(PROCESS, false), nested.ask(IOVA).with_process(PROCESS, false));
    assert_eq!(nested.answer(&ask).address, PAGE, "DX-22, CA-10");
    assert_eq!(nested.rig.address(read), Ok(OUTPUT), "DX-22, CA-10");
}

#[test]
fn a_dirty_page_can_be_written_after_a_hit_as_before() {
    for (flags, write) in [(pte::RW, true), (pte::RW & !pte::D, false)] {
        let mut nested = Nested::<16>::new(TC);
        nested.first.map(IOVA, PAGE, 0, flags);
        let request = nested.ask(IOVA).with_process(PROCESS, false).with_no_write(true);
        let answers = [(); 3].map(|()| nested.answer(&request));
        assert_eq!(answers.map(|answer| answer.write), [write; 3], "DX-23, ATS-07, ATS-08");
        assert_eq!(answers.map(|answer| answer.read), [true; 3], "DX-23");
    }
}

#[test]
fn an_answer_without_permissions_tells_nothing_else() {
    let mut nested = Nested::<16>::new(TC);
    // Everything is in use and remembered.
    nested.first.map(IOVA, PAGE, 0, pte::RW | pte::X | pte::G);
    let ask = |nested: &Nested<16>, iova| nested.ask(iova).with_process(PROCESS, true).with_execute(true);
    nested.processes.set(PROCESS, [7, nested.first.iosatp()]);
    let good = nested.answer(&nested.ask(IOVA).with_process(PROCESS, true));
    assert_eq!((good.address, good.read, good.global), (OUTPUT, true, true));
    // Page fault, guest-page fault, a page that can only be executed, and an MSI entry that is not valid.
    nested.first.map(IOVA + 0x2000, PAGE + 0x5000, 0, pte::RW);
    nested.first.map(IOVA + 0x3000, PAGE, 0, pte::V | pte::X | pte::G | pte::A | pte::D);
    for iova in [IOVA + 0x1000, IOVA + 0x2000, IOVA + 0x3000, MESSAGES + 0x2000] {
        let answer = nested.answer(&ask(&nested, iova));
        assert_eq!((answer.address, answer.napot()), (0, (0, false)), "DX-24, ATS-04, VT-09: {iova:#x}");
        let bits = [answer.read, answer.write, answer.execute, answer.global];
        assert_eq!((bits, answer.privileged), ([false; 4], true), "DX-24, ATS-04, ATS-09: {iova:#x}");
        assert!(!answer.untranslated_only && !answer.cxl_io, "DX-24, ATS-04: {iova:#x}");
    }
    assert_eq!(nested.rig.take_faults(), [[0; 4]; 0], "ATS-04");
}

#[test]
fn execute_is_granted_with_a_pasid_only() {
    // The default process: the same tables, with and without a PASID.
    let mut nested = Nested::<0>::new(TC | DPE);
    let ask = nested.ask(IOVA).with_execute(true);
    let without = nested.answer(&ask);
    assert_eq!((without.read, without.execute), (true, false), "DX-26, ATS-07");
    let with = nested.answer(&ask.with_process(ProcessId::truncate(0), false));
    assert_eq!((with.read, with.execute), (true, true), "DX-26, ATS-07");
    let not_asked = nested.answer(&nested.ask(IOVA).with_process(ProcessId::truncate(0), false));
    assert!(!not_asked.execute, "DX-26, ATS-07");
}

#[test]
fn a_response_of_the_iommu_has_no_requester_id_in_its_payload() {
    // The page-request queue is off: Response Failure.
    let mut nested = Nested::<0>::new(TC | EN_PRI);
    let request = PageRequest::write(Iova::new(IOVA), Prgi::truncate(0x155));
    let response = nested.rig.iommu.page_request(nested.rig.device, &request).expect("it has ATS");
    let payload = response.expect("it is the last of its group").payload().into_bits();
    assert_eq!(payload, 0x155 << 32 | 0xf << 44, "DX-25, PRI-10: the RID is 0x3456");
}

// Interrupt files.

#[test]
fn the_address_of_an_interrupt_file_in_memory_has_56_bits() {
    for bit in 36..56 {
        let mut nested = Nested::<0>::new(TC);
        let (file, cut) = (Gpa::new(1 << bit | 0x1234_5600), Gpa::new(0x1234_5600));
        nested.rig.memory.map(file, 512);
        nested.rig.memory.map(cut, 512);
        let entry = nested.messages.checked_add(16).expect("small");
        nested.rig.memory.write(entry, file.get() >> 9 << 7 | 3);
        let message = Request::msi(nested.rig.device, Iova::new(MESSAGES + 0x1000), 7).with_process(PROCESS, false);
        assert_eq!(nested.rig.translate(message).map(|translation| translation.target), Ok(Target::Mrif));
        let words = [file, cut].map(|at| nested.rig.memory.read(at));
        assert_eq!(words, [1 << 7, 0], "DX-27, MSI-09: bit {bit}");
        assert_eq!(posts(&nested.rig), [(NOTICE, 0x2a)], "DX-27, MSI-09");
    }
}

#[test]
fn a_range_is_told_without_the_interrupt_files_in_it() {
    // Masks of page numbers: adjacent files, one of every second page, files 4 GiB apart.
    for mask in [3_u64, 1 << 1, 1 << 4 | 1, 1 << 20, 0] {
        let mut nested = Nested::<0>::new(V);
        let pattern = FILES >> 12;
        let is_file = |page: u64| page & !mask == pattern & !mask;
        let mut context = nested.context(V);
        (context[3], context[5]) = (0, mask);
        nested.rig.set_context(&context);
        // 2 MiB with files, 2 MiB beside them, and where only the bits that do not count are those of the files.
        for base in [FILES, FILES + 0x20_0000, FILES + 0x1_0000_0000, FILES & 0x7fff, 0x7000_0000 | (FILES & 0xf000)] {
            let base = base & !0x1f_ffff;
            nested.second.map(base, base, 1, pte::RW);
            let pages = (base >> 12)..(base >> 12) + 512;
            let has_files = pages.clone().any(is_file);
            for page in pages.filter(|page| !is_file(*page)) {
                let address = page << 12;
                let translation = nested.rig.translate(nested.read(address)).expect("it is mapped");
                assert_eq!(translation.target, Target::Memory(Gpa::new(address)));
                let first = address & !(translation.size - 1);
                let mut range = (first >> 12)..((first + translation.size) >> 12);
                assert!(!range.any(is_file), "DX-28, SZ-04: {address:#x} of {:#x}", translation.size);
                let shrunk = translation.size < 0x20_0000;
                assert_eq!(shrunk, has_files, "DX-28, SZ-04: {address:#x} of {:#x}", translation.size);
            }
        }
    }
}

#[test]
fn a_table_that_is_only_read_need_not_be_dirty() {
    // SADE without GADE; the page of the table is W = 1 and D = 0, and nothing in it is to be changed.
    for request in [Nested::<0>::read, Nested::<0>::write] {
        let mut nested = Nested::<0>::new(TC | SADE);
        let table = Nested::<0>::gpa(nested.first.entry_address(IOVA, 0));
        nested.set_second(table, pte::RW & !pte::D);
        let request = request(&nested, IOVA).with_process(PROCESS, false);
        assert_eq!(nested.rig.address(request), Ok(OUTPUT), "DX-29, AD-08");
        // Where something is to be changed, it has to be.
        nested.first.map(IOVA, PAGE, 0, pte::RW & !pte::A);
        assert!(nested.rig.address(request).is_err(), "DX-29, AD-07");
        assert_eq!(nested.rig.take_fault()[3], table & !0xfff | (IOVA >> 9 & 0xff8) | 3, "DX-29, FQ-58, S2-09");
    }
}

#[test]
fn sv32x4_has_12_bits_of_index_and_no_address_above_34() {
    let mut rig = DmaRig::<0>::new(everything().with_gxl(Gxl::One));
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv32x4);
    second.map(0x3_ffc0_0000, 0x1_2340_0000, 1, pte::RW);
    // SXL is bit 11.
    rig.set_context(&[V | 1 << 11, second.iohgatp(Gscid::truncate(1)), 0, 0]);
    let device = rig.device;
    assert_eq!(rig.address(Request::read(device, Iova::new(0x3_ffc0_1008))), Ok(0x1_2340_1008), "DX-29, S2-02");
    rig.forget_accesses();
    assert_eq!(rig.address(Request::read(device, Iova::new(0x7_ffc0_1008))), Err(21), "DX-29, S2-03");
    assert!(!loads(&rig).iter().any(|at| at & !0x3fff == second.root().get()), "DX-29, S2-03");
}

#[test]
fn any_access_is_recognised_as_one_to_an_interrupt_file() {
    let mut nested = Nested::<0>::new(TC);
    for (offset, length) in [(0, 8), (0, 4), (0, 1), (8, 64), (0x123, 2), (0, 4096)] {
        for request in [Nested::<0>::read, Nested::<0>::write] {
            let request = request(&nested, MESSAGES + offset).with_process(PROCESS, false).with_length(length);
            let translation = nested.rig.translate(request).expect("the entry is valid");
            assert_eq!(translation.target, Target::InterruptFile(Gpa::new(FILE + offset)), "DX-32, MSI-03, MSI-14");
            assert_eq!((translation.length, translation.size), (length, 4096), "DX-32, SZ-05");
        }
    }
}

// Byte order.

#[test]
fn entries_of_msi_page_tables_are_in_the_order_of_fctl_be_not_of_sbe() {
    for (be, sbe) in [(false, SBE), (true, 0)] {
        let mut nested = Nested::<0>::of(everything(), TC | sbe, be);
        let write = nested.write(MESSAGES + 4).with_process(PROCESS, false);
        assert_eq!(nested.rig.address(write), Ok(FILE + 4), "DX-31, END-03, EDN-01: {be}");
    }
}

#[test]
fn each_structure_has_its_byte_order() {
    for (be, sbe) in [(false, 0), (false, SBE), (true, 0), (true, SBE)] {
        let mut nested = Nested::<0>::of(everything(), TC | sbe | SADE | GADE, be);
        // A and D of both stages are to be set.
        nested.first.map(IOVA, PAGE, 0, pte::RW & !pte::A & !pte::D);
        nested.set_second(PAGE, pte::RW & !pte::A & !pte::D);
        let write = nested.write(IOVA).with_process(PROCESS, false);
        assert_eq!(nested.rig.address(write), Ok(OUTPUT), "END-02, END-04, END-05, PDT-14, DX-05: {be}, {sbe:#x}");
        let first = nested.first.get(IOVA, 0);
        assert_eq!(first, PAGE >> 2 | pte::RW, "END-05, EDN-02, EDN-07: {be}, {sbe:#x}");
        let second = nested.second.get(PAGE, 0);
        assert_eq!(second, OUTPUT >> 2 | pte::RW, "END-02, EDN-01, EDN-07: {be}, {sbe:#x}");
        // A directory in the other order is not read as one in its own.
        nested.set_tc((TC | sbe) ^ SBE);
        let read = nested.read(IOVA).with_process(PROCESS, false);
        assert!(matches!(nested.rig.address(read), Err(265..=267 | 21)), "END-04, PDT-14, DX-05: {be}, {sbe:#x}");
    }
}

#[test]
fn entries_of_rv32_tables_are_swapped_by_themselves() {
    for be in [false, true] {
        let little = Memory::new();
        let memory = if be { little.big_endian() } else { little };
        let mut rig = DmaRig::<0>::in_memory(everything().with_gxl(Gxl::One), memory.clone());
        if be {
            rig.write8(DDTP, 0);
            for (csr, value) in [(CQCSR, 0), (76, 0), (8, 5), (CQCSR, 1), (76, 1)] {
                rig.write(csr, value);
            }
            rig.write8(DDTP, rig.directory.ddtp());
        }
        let first = PageTable::first_stage(&memory, FirstStageMode::Sv32);
        let second = PageTable::second_stage(&memory, SecondStageMode::Sv32x4);
        for page in 0..32 {
            second.map(0x8000_0000 + page * 0x1000, 0x8000_0000 + page * 0x1000, 0, pte::RW);
        }
        second.map(PAGE, 0x2_3456_7000, 0, pte::RW);
        // The two halves of a word have different entries.
        first.map(0x1234_4000, PAGE, 0, pte::RW);
        first.map(0x1234_5000, PAGE + 0x1000, 0, pte::RW);
        let tc = V | 1 << 11 | if be { SBE } else { 0 };
        rig.set_context(&[tc, second.iohgatp(Gscid::truncate(1)), 0, first.iosatp()]);
        let device = rig.device;
        assert_eq!(rig.address(Request::read(device, Iova::new(0x1234_4010))), Ok(0x2_3456_7010), "END-02, END-05");
        assert_eq!(rig.address(Request::read(device, Iova::new(0x1234_5010))), Err(21), "END-02, END-05");
    }
}

#[test]
fn interrupt_files_and_notices_are_little_endian() {
    for (be, sbe) in [(false, 0), (false, SBE), (true, 0), (true, SBE)] {
        let mut nested = Nested::<0>::of(everything(), TC | sbe, be);
        let message = Request::msi(nested.rig.device, Iova::new(MESSAGES + 0x1000), 3).with_process(PROCESS, false);
        let _ = nested.rig.take_faults();
        nested.rig.forget_accesses();
        assert_eq!(nested.rig.translate(message).map(|translation| translation.target), Ok(Target::Mrif));
        // As they lie in memory: bit 3 of the first byte, and the number as it is.
        let events = [Event::Exchange(nested.file, 0, 1 << 3), Event::Post(Gpa::new(NOTICE), 0x2a, Post::Notice)];
        assert_eq!(nested.rig.memory.take_events(), events, "END-12, EDN-05: {be}, {sbe:#x}");
    }
}

// Commands.

#[test]
fn an_invalidation_of_one_page_of_a_vm_is_of_no_other() {
    let mut nested = Nested::<64>::new(TC);
    let other = IOVA + 0x1000;
    nested.first.map(other, PAGE + 0x1000, 0, pte::RW);
    nested.second.map(PAGE + 0x1000, OUTPUT + 0x1000, 0, pte::RW);
    let [one, two] = [IOVA, other].map(|iova| nested.read(iova).with_process(PROCESS, false));
    assert_eq!([one, two].map(|read| nested.rig.address(read)), [Ok(OUTPUT), Ok(OUTPUT + 0x1000)]);
    // Both change, one is invalidated; it is the first to be looked at, and so the first to match.
    nested.second.map(PAGE, OUTPUT + 0x8000, 0, pte::RW);
    nested.second.map(PAGE + 0x1000, OUTPUT + 0x9000, 0, pte::RW);
    let entry = nested.second.entry_address(PAGE + 0x1000, 0).get();
    let gvma = Iotinval::ALL.gscid(Gscid::truncate(0x1234)).address(Iova::new(PAGE)).gvma();
    let _ = nested.rig.run([gvma, Iofence::PLAIN.encode()]);
    assert_eq!((nested.rig.read(CQCSR), nested.rig.read(CQH)), (ON | ENABLE, 2));
    nested.rig.forget_accesses();
    assert_eq!([one, two].map(|read| nested.rig.address(read)), [Ok(OUTPUT + 0x8000), Ok(OUTPUT + 0x1000)], "DX-41");
    assert!(!loads(&nested.rig).contains(&entry), "DX-41");
}

#[test]
fn a_fence_at_an_address_with_bits_63_and_62_does_not_store_below() {
    for bit in [62, 63] {
        let mut nested = Nested::<0>::new(TC);
        let low = nested.rig.memory.allocate(1);
        let fence = Iofence::PLAIN.store(Gpa::new(1 << bit | low.get()), 7);
        let _ = nested.rig.run([fence.encode()]);
        // cqmf is bit 8.
        assert_eq!((nested.rig.read(CQCSR), nested.rig.read(CQH)), (ON | ENABLE | 1 << 8, 0), "DX-42: bit {bit}");
        assert_eq!(nested.rig.memory.read(low), 0, "DX-42: bit {bit}");
    }
}

#[test]
fn an_id_in_a_command_is_as_wide_as_the_mode_not_as_the_iommu() {
    let mut rig = DmaRig::<0>::new(everything());
    let directory = Directory::new(&rig.memory, 1, true);
    rig.write8(DDTP, 0);
    rig.write8(DDTP, directory.ddtp());
    let _ = rig.run([inval_ddt(Some(DeviceId::truncate(0x3f)))]);
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE, 1), "DX-40");
    let _ = rig.run([inval_ddt(Some(DeviceId::truncate(0x1000)))]);
    // cmd_ill is bit 10.
    assert_eq!((rig.read(CQCSR), rig.read(CQH)), (ON | ENABLE | 1 << 10, 1), "DX-40, DX-44, CMD-13, DISC-Q04");
}
