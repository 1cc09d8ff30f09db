//! Accesses of emulated devices: what translating them in software may lose, keep too long, or reach.

use riscv_viommu::mock::Event;
use riscv_viommu::mock::guest::{Iofence, Iotinval, register as reg};
use riscv_viommu::mock::tables::PageTable;
use riscv_viommu::mock::tables::tc::{GADE, SADE};
use riscv_viommu::{Cause, Completion, MemoryFault, Post, Request, SecondStageMode, Target, TranslateError};

use super::dma_rig::{DmaRig, everything};
use super::*;

/// V, R, W, X and U.
const CLEAN: u64 = 0x1f;

const PAGE: u64 = 0x9876_5000;

/// Where the interrupt file of the guest's VM is, in the VM's addresses.
const FILE: u64 = 0x2800_0000;

/// A guest with one emulated device that has a first stage, or with a second stage alone.
fn guest<const CACHE: usize>(tc: u64, is_second: bool) -> (DmaRig<CACHE>, PageTable) {
    let rig = DmaRig::new(everything());
    let table = if is_second {
        let table = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
        rig.set_context(&[1 | tc, table.iohgatp(Gscid::truncate(1)), 0, 0]);
        table
    } else {
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        rig.set_context(&[1 | tc, 0, u64::from(PSCID.get()) << 12, table.iosatp()]);
        table
    };
    rig.forget_accesses();
    (rig, table)
}

fn write<const CACHE: usize>(rig: &DmaRig<CACHE>, address: u64) -> Request {
    Request::write(rig.device, Iova::new(address))
}

#[test]
fn t26_what_a_vcpu_sets_meanwhile_is_not_lost() {
    for is_second in [false, true] {
        let (mut rig, table) = guest::<0>(SADE | GADE, is_second);
        let entry = PAGE >> 2 | CLEAN;
        table.set(IOVA.get(), 0, entry);
        let at = table.entry_address(IOVA.get(), 0);
        // Its own bits, then A, then D: each just before the entry is stored to.
        let raced = [entry | 1 << 8, entry | 3 << 8, entry | 3 << 8 | pte::A];
        rig.memory.on_exchange(at, raced);
        let request = write(&rig, IOVA.get());
        assert_eq!(rig.address(request), Ok(PAGE));
        assert_eq!(table.get(IOVA.get(), 0), entry | 3 << 8 | pte::A | pte::D, "T26, AD-03");
    }
}

#[test]
fn t26_a_page_that_is_taken_back_meanwhile_is_not_marked_or_used() {
    for is_second in [false, true] {
        let (mut rig, table) = guest::<8>(SADE | GADE, is_second);
        table.set(IOVA.get(), 0, PAGE >> 2 | CLEAN);
        rig.memory.on_exchange(table.entry_address(IOVA.get(), 0), [0]);
        let request = write(&rig, IOVA.get());
        assert_eq!(rig.address(request), Err(if is_second { 23 } else { 15 }), "T26, AD-03");
        assert_eq!(table.get(IOVA.get(), 0), 0, "T26: not even A is in it");
        // Nor is it remembered.
        assert_eq!(rig.address(request), Err(if is_second { 23 } else { 15 }), "T26, CA-02");
    }
}

/// A device whose messages go to an interrupt file in memory: where that is.
fn with_file_in_memory<const CACHE: usize>(rig: &DmaRig<CACHE>) -> Gpa {
    let (file, msi) = (rig.memory.allocate(1), rig.memory.allocate(1));
    // V, M = 1, MRIF_Address[55:9] in 53:7; NID 5, NPPN in 53:10 (rule MSI-09).
    rig.memory.write_words(msi, &[file.get() >> 9 << 7 | 0b011, NOTICE.get() >> 2 | 5]);
    let table = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    rig.memory.interrupt_page(NOTICE);
    rig.set_context(&[1, table.iohgatp(Gscid::truncate(1)), 0, 0, 1 << 60 | msi.get() >> 12, 0, FILE >> 12, 0]);
    rig.forget_accesses();
    file
}

const NOTICE: Gpa = Gpa::new(0x2400_0000);

#[test]
fn t26_an_interrupt_that_a_vcpu_sets_or_takes_meanwhile_is_not_lost() {
    let mut rig = DmaRig::<0>::new(everything());
    let file = with_file_in_memory(&rig);
    // Identity 68 is bit 4 of the second pair.
    let pending = Gpa::new(file.get() + 16);
    rig.memory.write(pending, 0xff00);
    // Others come in, and one is taken, just before the store.
    rig.memory.on_exchange(pending, [0xff01, 0x7f01]);
    let message = Request::msi(rig.device, Iova::new(FILE), 68);
    assert_eq!(rig.translate(message).map(|found| found.target), Ok(Target::Mrif));
    assert_eq!(rig.memory.read(pending), 0x7f11, "T26, MRIF-05, MRIF-06");
    // The notice comes after the bit, once.
    let events = rig.memory.take_events();
    let expected = [Event::Exchange(pending, 0x7f01, 0x7f11), Event::Post(NOTICE, 5, Post::Notice)];
    assert_eq!(events, expected, "T26, MRIF-07");
}

#[test]
fn t26_a_file_that_changes_without_end_is_given_up_and_nothing_is_lost() {
    let mut rig = DmaRig::<0>::new(everything());
    let file = with_file_in_memory(&rig);
    rig.memory.on_exchange(file, (0..1000_u64).map(|turn| 0xff00 | turn & 1 ^ 1));
    let message = Request::msi(rig.device, Iova::new(FILE), 4);
    assert!(rig.translate(message).is_err(), "VT-13: it does not spin");
    assert_eq!(rig.memory.read(file) & !1, 0xff00, "T26");
    assert!(rig.memory.take_events().iter().all(|event| !matches!(event, Event::Post(..))), "MRIF-07");
}

#[test]
fn t28_a_superpage_is_forgotten_by_an_invalidation_of_any_of_its_pages() {
    for is_second in [false, true] {
        for (level, size) in [(0, 0x1000_u64), (1, 0x20_0000), (2, 0x4000_0000)] {
            for page in [0, (size / 2) & !0xfff, size - 0x1000] {
                let (mut rig, table) = guest::<8>(0, is_second);
                let base = 0x1_0000_0000;
                table.map(base, 0x4000_0000, level, pte::RW);
                let request = write(&rig, base);
                assert_eq!(rig.address(request), Ok(0x4000_0000));
                table.map(base, 0x8000_0000, level, pte::RW);
                let one = Iotinval::ALL.address(Iova::new(base + page));
                let command = if is_second { one.gscid(Gscid::truncate(1)).gvma() } else { one.pscid(PSCID).vma() };
                let _ = rig.run([command, Iofence::PLAIN.encode()]);
                assert_eq!(rig.address(request), Ok(0x8000_0000), "T28, VMA-11: level {level}, page {page:#x}");
            }
        }
    }
}

#[test]
fn t28_a_napot_range_is_forgotten_by_an_invalidation_of_any_of_its_pages() {
    for is_second in [false, true] {
        for page in 0..16 {
            let (mut rig, table) = guest::<8>(0, is_second);
            let set = |to: u64| {
                for page in 0..16_u64 {
                    table.set(0x1_0000 | page << 12, 0, (to >> 12 | 8) << 10 | pte::N | pte::RW);
                }
            };
            set(0x7_0000);
            let request = write(&rig, 0x1_3000);
            assert_eq!(rig.address(request), Ok(0x7_3000), "PTE-06");
            set(0x9_0000);
            let one = Iotinval::ALL.address(Iova::new(0x1_0000 | page << 12));
            let command = if is_second { one.gscid(Gscid::truncate(1)).gvma() } else { one.vma() };
            let _ = rig.run([command]);
            assert_eq!(rig.address(request), Ok(0x9_3000), "T28, PTE-06: page {page}");
        }
    }
}

#[test]
fn t28_a_superpage_is_forgotten_by_an_invalidation_of_a_range_that_touches_it() {
    let (mut rig, table) = guest::<8>(0, false);
    let base = 0x4000_0000;
    for (range, log2_pages, overlaps) in [
        // Around it, within it, and next to it on both sides.
        (base, 18, true),
        (base + 0x1f_0000, 2, true),
        (base + 0x20_0000, 9, false),
        (base - 0x20_0000, 9, false),
    ] {
        table.map(base, 0x8000_0000, 1, pte::RW);
        let _ = rig.run([Iotinval::ALL.vma()]);
        let request = write(&rig, base + 0x10_0000);
        assert_eq!(rig.address(request), Ok(0x8010_0000));
        table.map(base, 0xc000_0000, 1, pte::RW);
        let _ = rig.run([Iotinval::ALL.range(Iova::new(range), log2_pages).vma()]);
        let found = rig.address(request);
        // What is not named may be kept, or forgotten (CA-15).
        assert!(found == Ok(0xc010_0000) || (!overlaps && found == Ok(0x8010_0000)), "T28: {range:#x}, {found:x?}");
    }
}

#[test]
fn t28_a_permission_that_is_missing_is_looked_for_in_the_tables() {
    for is_second in [false, true] {
        let (mut rig, table) = guest::<8>(0, is_second);
        table.map(IOVA.get(), PAGE, 0, pte::RO);
        let read = Request::read(rig.device, IOVA);
        assert_eq!(rig.address(read), Ok(PAGE));
        // The guest allows more; a driver need not invalidate for that.
        table.map(IOVA.get(), PAGE, 0, pte::RW);
        let request = write(&rig, IOVA.get());
        assert_eq!(rig.address(request), Ok(PAGE), "T28, CA-08");
        // Where it does not, the fault has the address between the stages.
        let request = Request::execute(rig.device, Iova::new(IOVA.get() | 0x124));
        assert_eq!(rig.address(request), Err(if is_second { 20 } else { 12 }), "T28, CA-08");
        let expected = if is_second { IOVA.get() | 0x124 } else { 0 };
        assert_eq!(rig.take_fault()[3], expected, "CA-08, FR-08");
    }
}

#[test]
fn t28_another_address_space_s_entry_is_never_used() {
    // The same address in two spaces of the guest's: told apart by PSCID, by GSCID, and by having a second stage.
    let mut rig = DmaRig::<16>::new(everything());
    let [first, second] = [0x8_1000, 0x8_2000].map(|to| {
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        table.map(IOVA.get(), to, 0, pte::RW);
        (table.iosatp(), to)
    });
    let outer = [1, 2].map(|gscid| {
        let table = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
        // The tables are where they are, the pages elsewhere for each.
        table.map(0x8000_0000, 0x8000_0000, 1, pte::RW);
        for page in [0x8_1000, 0x8_2000] {
            table.map(page, page + u64::from(gscid) * 0x10_0000, 0, pte::RW);
        }
        (table.iohgatp(Gscid::truncate(gscid)), u64::from(gscid) * 0x10_0000)
    });
    let spaces = [(0, 0), outer[0], outer[1]];
    // Round and round: whatever is remembered belongs to the one before. INVAL_DDT lets the next context be seen.
    for turn in 0..3 {
        for (iohgatp, add) in spaces {
            for (pscid, (iosatp, to)) in [(1_u64, first), (2, second)] {
                rig.set_context(&[1, iohgatp, pscid << 12, iosatp]);
                let _ = rig.run([riscv_viommu::mock::guest::inval_ddt(None)]);
                let request = write(&rig, IOVA.get());
                assert_eq!(rig.address(request), Ok(to + add), "T28, CA-03, CA-04: turn {turn}");
            }
        }
    }
}

#[test]
fn t37_no_walk_or_update_reaches_what_is_not_memory() {
    let interrupts = Gpa::new(FILE);
    let rom = Gpa::new(0x7000_0000);
    for (at, readable) in [(Gpa::new(0x1001_0000), false), (interrupts, false), (rom, true)] {
        let (mut rig, table) = guest::<0>(SADE | GADE, false);
        rig.memory.interrupt_page(interrupts);
        rig.memory.map(rom, 0x1000);
        rig.memory.read_only(rom, 0x1000);
        if readable {
            // An entry in read-only memory whose A is to be set.
            rig.memory.write(rom, PAGE >> 2 | CLEAN);
        }
        table.set(0, 1, at.get() >> 2 | pte::V);
        rig.forget_accesses();
        for (request, code) in [(Request::read(rig.device, Iova::new(0)), 5), (write(&rig, 0), 7)] {
            assert_eq!(rig.address(request), Err(code), "T37, T43, VT-15: {at}");
            assert_eq!(rig.take_fault()[0] & 0xfff, code.into());
        }
        let stored = rig.memory.take_events();
        assert!(
            stored.iter().all(|event| matches!(event, Event::Store(record, _) if *record != at)),
            "T37: {stored:x?}"
        );
        if readable {
            assert_eq!(rig.memory.read(rom), PAGE >> 2 | CLEAN, "T37, T43");
        }
    }
}

#[test]
fn t37_an_implicit_access_is_never_a_message() {
    // A first-stage table in the pages that messages go to: it is read through the second stage, which has nothing
    // there, and not through the MSI page table.
    let mut rig = DmaRig::<0>::new(everything());
    let msi = rig.memory.allocate(1);
    let page = rig.memory.allocate(1);
    rig.memory.write(msi, page.get() >> 2 | 0b111);
    rig.memory.write(page, PAGE >> 2 | pte::RW);
    let table = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let iohgatp = table.iohgatp(Gscid::truncate(1));
    rig.set_context(&[1 | SADE, iohgatp, 0, 8 << 60 | FILE >> 12, 1 << 60 | msi.get() >> 12, 0, FILE >> 12, 0]);
    let request = write(&rig, 0x1000);
    assert_eq!(rig.address(request), Err(23), "T37, MSI-02");
    assert_eq!(rig.take_fault()[3], FILE | 1, "MSI-02, FR-08");
}

/// A host that counts DMA, all of which is under way, and a guest with one page.
fn counting() -> (DmaRig<8>, PageTable) {
    let memory = Memory::new();
    memory.answer_drain(Some(Completion::Pending));
    let rig = DmaRig::in_memory(everything().with_synchronous_dma(false), memory);
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    rig.set_context(&[1, 0, 0, table.iosatp()]);
    table.map(IOVA.get(), PAGE, 0, pte::RW);
    (rig, table)
}

#[test]
fn t38_a_fence_is_complete_only_when_dma_with_old_translations_is() {
    let (mut rig, table) = counting();
    let request = write(&rig, IOVA.get());
    let epoch = rig.translate(request).unwrap().epoch;
    let data = rig.memory.allocate(1);
    table.unmap(IOVA.get(), 0);
    rig.forget_accesses();
    let fence = Iofence::PLAIN.store(data, 1).wsi().accesses(true, true).encode();
    assert_eq!(rig.run([Iotinval::ALL.vma(), fence]), Progress::Waiting, "T38");
    assert_eq!((rig.read(reg::CQH), rig.memory.read(data)), (1, 0), "T38: neither the head nor the store");
    assert_eq!(rig.read(reg::CQCSR) & reg::FENCE_W_IP, 0, "T38");
    assert_eq!(rig.address(request), Err(15), "T38: what begins now sees the tables of now");
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
    assert_eq!((rig.read(reg::CQH), rig.memory.read(data)), (2, 1), "T38");
}

#[test]
fn t38_a_fence_waits_for_dma_that_uses_a_translation_the_host_remembered() {
    let (mut rig, table) = counting();
    let epoch = rig.translate(write(&rig, IOVA.get())).unwrap().epoch;
    let fence = Iofence::PLAIN.accesses(true, true).encode();
    assert_eq!(rig.run([fence]), Progress::Waiting);
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle);
    // Nothing was invalidated, so the host may go on with what it has; now the guest takes it back.
    table.unmap(IOVA.get(), 0);
    assert_eq!(rig.run([Iotinval::ALL.vma(), fence]), Progress::Waiting, "T38");
    assert_eq!(rig.memory.take_drains(), [epoch, epoch.next()], "T38");
    assert_eq!(rig.iommu.drained(epoch.next()), Progress::Idle, "T38");
}

#[test]
fn t45_an_address_above_the_width_does_not_alias_into_the_interrupt_files() {
    let mut rig = DmaRig::<0>::new(everything());
    let msi = rig.memory.allocate(1);
    rig.memory.write(msi, 0x100 << 10 | 0b111);
    let table = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    // Everything below the width is mapped, so that only the width can refuse.
    for gigabyte in 0..2048 {
        table.map(gigabyte << 30, gigabyte << 30, 2, pte::RW);
    }
    let iohgatp = table.iohgatp(Gscid::truncate(1));
    // A first stage that gives addresses of 56 bits, where the other gives those of 64.
    let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    for fsc in [0, first.iosatp()] {
        rig.set_context(&[1, iohgatp, 0, fsc, 1 << 60 | msi.get() >> 12, 0, FILE >> 12, 0]);
        let mut go = |to: u64| {
            let iova = if fsc == 0 { to } else { IOVA.get() };
            first.map(IOVA.get(), to, 0, pte::RW);
            let request = Request::msi(rig.device, Iova::new(iova), 1);
            let result = rig.translate(request).map(|found| found.target);
            (result, rig.take_faults().first().map_or(0, |record| record[3]))
        };
        assert_eq!(go(FILE), (Ok(Target::InterruptFile(Gpa::new(0x10_0000))), 0), "MSI-03");
        for bit in 30..if fsc == 0 { 64 } else { 56 } {
            let address = FILE | 1 << bit;
            let (result, iotval2) = go(address);
            if bit < 41 {
                assert_eq!(result, Ok(Target::Memory(Gpa::new(address))), "T45, MSI-03: bit {bit}");
            } else {
                let fault = Err(TranslateError::Fault(Cause::WriteGuestPageFault));
                assert_eq!((result, iotval2), (fault, address), "T45, MSI-03, S2-03: bit {bit}");
            }
        }
    }
}

#[test]
fn t43_an_update_that_can_not_be_stored_is_not_made_up_for() {
    for (failure, code) in [(MemoryFault::Access, 7), (MemoryFault::Corruption, 274)] {
        for is_second in [false, true] {
            let (mut rig, table) = guest::<8>(SADE | GADE, is_second);
            table.set(IOVA.get(), 0, PAGE >> 2 | CLEAN);
            rig.memory.fail_stores(table.entry_address(IOVA.get(), 0), 8, failure);
            let request = write(&rig, IOVA.get());
            // Twice: it is not remembered as done.
            for _ in 0..2 {
                assert_eq!(rig.address(request), Err(code), "T43, AD-05");
            }
            assert_eq!(table.get(IOVA.get(), 0), PAGE >> 2 | CLEAN, "T43");
        }
    }
}
