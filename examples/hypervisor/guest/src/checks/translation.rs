//! First stages: what they let through, and where to.

use riscv_viommu::pt::Pte;
use riscv_viommu::{Cause, Ppn};

use crate::bench::{Bench, MODES, PASSING, QUEUES, READ, WRITE};
use crate::csr;
use crate::imsic::{self, IMSIC};
use crate::memory::{MEGA, PAGE, Pages, RAM, pattern};
use crate::nvme::{self, Outcome, Way};
use crate::tables::{Space, leaf_bytes, pointer, read_only, read_write};
use crate::verdict::{Verdict, Why, ensure, skip, why};

/// Somewhere that is no address of memory.
const IOVA: u64 = 0x11_2233_4000;
const PAGE_FAULTS: [Cause; 2] = [Cause::ReadPageFault, Cause::WritePageFault];
const ACCESS_FAULTS: [Cause; 2] = [Cause::ReadAccessFault, Cause::WriteAccessFault];

pub(super) fn bare_lets_addresses_through(bench: &mut Bench) -> Verdict {
    bench.bare()?;
    let (buffer, iova) = bench.buffer();
    let (blocks, bytes) = bench.nvme.identify(iova[0], buffer)?;
    ensure!(blocks >= 1024 && bytes == nvme::BLOCK, "{blocks} blocks of {bytes} bytes");
    let page = bench.page();
    bench.leads(page.gpa(), page, 1)?; // REG-DDTP-16, TR-04
    ensure!(imsic::comes(imsic::NVME + 1), "no message from the controller");
    Ok(())
}

pub(super) fn the_controller_answers_wherever_its_registers_are(bench: &mut Bench) -> Verdict {
    let page = bench.page();
    for base in [0x4000_0000, 0x7fff_0000, 0x7_ffe0_0000, 0x4_1230_0000] {
        bench.nvme.place(base);
        bench.bare()?;
        bench.leads(page.gpa(), page, base)?;
    }
    Ok(())
}

pub(super) fn a_bare_first_stage_lets_addresses_through(bench: &mut Bench) -> Verdict {
    for levels in 1..=3 {
        bench.identity(levels)?;
        let page = bench.page();
        bench.leads(page.gpa(), page, 2)?; // S1-01
    }
    Ok(())
}

pub(super) fn every_depth_of_directory_and_every_scheme_translates(bench: &mut Bench) -> Verdict {
    for levels in 1..=3 {
        for mode in MODES {
            bench.pool.pages(1);
            let world = bench.world(levels, mode)?;
            let page = bench.page();
            world.space.map(&mut bench.pool, IOVA, page.gpa());
            bench.leads(IOVA, page, u64::from(levels))?; // DDT-02 to DDT-06, S1-03
            imsic::drain();
        }
    }
    Ok(())
}

pub(super) fn leaves_of_every_size_translate_to_their_last_page(bench: &mut Bench) -> Verdict {
    for mode in MODES {
        let world = bench.world(3, mode)?;
        let pages = bench.pool.aligned(MEGA / PAGE, MEGA);
        for level in 1..mode.levels() {
            // The largest leaves begin at GPA 0: RAM is inside them. Each has an address of its own, beside the others.
            let iova = leaf_bytes(level) * 3;
            let base = pages.gpa() / leaf_bytes(level) * leaf_bytes(level);
            world.space.entry(&mut bench.pool, iova, level).set(read_write(base));
            for index in [0, 1, MEGA / PAGE - 1] {
                let page = pages.page(index);
                bench.leads(iova + (page.gpa() - base), page, u64::from(level) << 8 | index as u64)?; // PTE-08
            }
        }
        // 64 KiB, sixteen entries that are the same (PTE-06).
        let napot = IOVA & !0xffff;
        for index in 0..16 {
            let leaf = read_write(pages.gpa() + 0x8000).with_n(true);
            world.space.entry(&mut bench.pool, napot + index * PAGE as u64, 0).set(leaf);
        }
        for index in 0..16 {
            bench.leads(napot + (index * PAGE) as u64, pages.page(index), 0x400 + index as u64)?;
        }
    }
    Ok(())
}

pub(super) fn transfers_of_every_size_reach_their_bytes(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    // Two addresses with one page between, the pages next to each other, and the other way round.
    let pages = bench.pool.pages(2);
    world.space.map(&mut bench.pool, IOVA, pages.gpa());
    world.space.map(&mut bench.pool, IOVA + 2 * PAGE as u64, pages.page(1).gpa());
    let prp = [IOVA, IOVA + 2 * PAGE as u64];
    for (seed, bytes) in [512, 1024, 2048, 4096, 4608, 6144, 8192].into_iter().enumerate() {
        bench.transfers(prp, pages, bytes, 40 + 2 * seed as u64)?;
        bench.no_fault()?;
    }
    // From the middle of a page: 1536 bytes of it, and the rest in the next (ACC-08).
    pages.fill(pattern(3));
    bench.deliver([IOVA + 2560, prp[1]], PAGE, 4)?;
    let expected = |index| if (320..832).contains(&index) { pattern(4)(index - 320) } else { pattern(3)(index) };
    ensure!(pages.holds(2 * PAGE, expected), "4 KiB from the middle of a page are not where they belong");
    Ok(bench.no_fault()?)
}

pub(super) fn upper_addresses_translate_and_those_between_fault(bench: &mut Bench) -> Verdict {
    for mode in MODES {
        let world = bench.world(2, mode)?;
        let page = bench.page();
        let half = 1_u64 << (12 + 9 * mode.levels() - 1);
        // The last page of the lower half, the first and the last of the upper (S1-04).
        for iova in [half - PAGE as u64, half.wrapping_neg(), (PAGE as u64).wrapping_neg()] {
            world.space.map(&mut bench.pool, iova, page.gpa());
            bench.leads(iova, page, iova >> 12)?;
        }
        // Other pages than those above: QEMU's IOMMU, here and under the hypervisor, caches 56 bits of an address.
        for iova in [half + MEGA as u64, half.wrapping_neg() - MEGA as u64, 1 << 63 | MEGA as u64] {
            world.space.map(&mut bench.pool, iova, page.gpa());
            bench.faults(iova, PAGE_FAULTS, page)?;
        }
    }
    Ok(())
}

pub(super) fn an_entry_that_is_not_to_be_used_faults(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let page = bench.page();
    let leaf = read_write(page.gpa());
    let reserved = |pte: Pte, bit: u32| Pte::from_bits(pte.into_bits() | 1 << (54 + bit));
    let mut iova = IOVA;
    let mut check = |bench: &mut Bench, level, pte: Pte| -> Result<(), Why> {
        // An address of its own for each, so that no cache knows it.
        iova += leaf_bytes(1);
        world.space.entry(&mut bench.pool, iova, level).set(pte);
        bench.faults(iova, PAGE_FAULTS, page).map_err(|why| why!("{pte:x?} at level {level}: {why}"))
    };
    check(bench, 0, leaf.with_v(false))?; // PTE-02
    check(bench, 0, leaf.with_r(false))?; // PTE-02: write without read
    check(bench, 0, leaf.with_r(false).with_x(true))?; // PTE-02
    check(bench, 0, leaf.with_u(false))?; // S1-11: no process_id, hence a user's request (ACC-02)
    check(bench, 0, leaf.with_a(false))?; // AD-01
    check(bench, 0, leaf.with_n(true).with_ppn(Ppn::truncate(leaf.ppn().get() & !0xf | 4)))?; // PTE-06
    check(bench, 0, pointer(page))?; // PTE-07: no further level
    check(bench, 1, leaf)?; // PTE-08: page numbers are not multiples of 512
    check(bench, 1, read_write(0x8060_0000).with_n(true))?; // PTE-06: not at level 0
    for bit in 0..5 {
        check(bench, 0, reserved(leaf, bit))?; // PTE-03
    }
    let table = pointer(bench.pool.pages(1));
    for pte in [table.with_u(true), table.with_a(true), table.with_d(true), table.with_n(true), reserved(table, 0)] {
        check(bench, 1, pte)?; // PTE-07, PTE-03
    }
    Ok(())
}

pub(super) fn a_page_for_reading_is_not_written(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let page = bench.page();
    let read_only = read_only(page.gpa());
    let next = IOVA + PAGE as u64;
    world.space.entry(&mut bench.pool, IOVA, 0).set(read_only);
    world.space.entry(&mut bench.pool, next, 0).set(read_write(page.gpa()).with_d(false));
    for iova in [IOVA, next] {
        bench.write_faults(iova, Cause::WritePageFault, page)?; // ACC-05, AD-01
        page.fill(pattern(5));
        bench.reads(iova, 5)?;
    }
    // Nor is it once the translation may be in a cache (CA-07). QEMU's IOMMU, here and under the hypervisor, then
    // blocks without a record; that D was 0 it has forgotten (CA-08), so that is not tried.
    bench.deliver([IOVA, 0], nvme::BLOCK, 6)?;
    ensure!(page.holds(PAGE, pattern(5)), "a write changed a page for reading");
    bench.drop_faults();
    bench.revive()?;
    let execute = read_only.with_r(false).with_x(true);
    world.space.entry(&mut bench.pool, next + PAGE as u64, 0).set(execute);
    Ok(bench.faults(next + PAGE as u64, PAGE_FAULTS, page)?) // ACC-05: no page is readable for being executable
}

pub(super) fn messages_of_the_device_are_translated(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    imsic::drain();
    bench.stage(PAGE, 1)?;
    ensure!(imsic::comes(imsic::NVME + 1), "no message");
    // To a page of memory instead: a message is a write like any other.
    let (page, iova) = (bench.page(), IOVA);
    world.space.map(&mut bench.pool, iova, page.gpa());
    bench.start(QUEUES, Some(iova))?;
    bench.stage(PAGE, 2)?;
    let arrived = csr::within(1000, || page.word(0) == u64::from(imsic::NVME + 1));
    ensure!(arrived && imsic::silent(), "a message in memory reads {:#x}", page.word(0));
    // Nowhere: a fault of a write.
    bench.start(QUEUES, Some(iova + PAGE as u64))?;
    bench.drop_faults();
    bench.stage(PAGE, 3)?;
    bench.expect(Cause::WritePageFault, WRITE, iova + PAGE as u64)?;
    ensure!(imsic::silent(), "a message that faulted arrived");
    Ok(())
}

pub(super) fn memory_that_is_not_the_guests_is_out_of_reach(bench: &mut Bench) -> Verdict {
    if bench.native {
        skip!("behind QEMU's IOMMU is the whole machine");
    }
    let nowhere = Pages::elsewhere(0);
    // What the guest takes for physical memory has a second stage under it: its faults, and those of addresses too wide
    // for it, show as access faults (VT-05, S2-03, MRG-13).
    bench.bare()?;
    for gpa in bench.outside() {
        bench.faults(gpa, ACCESS_FAULTS, nowhere)?;
    }
    bench.identity(2)?;
    for gpa in bench.outside() {
        bench.faults(gpa, ACCESS_FAULTS, nowhere)?;
    }
    let world = bench.sv39()?;
    for (index, gpa) in (0..).zip(bench.outside().chain([1 << 41, 1 << 50, (1 << 56) - PAGE as u64])) {
        let iova = IOVA + index * PAGE as u64;
        world.space.map(&mut bench.pool, iova, gpa);
        bench.faults(iova, ACCESS_FAULTS, nowhere)?;
    }
    // A large leaf that begins in front of RAM and ends behind it: only what is RAM is reached.
    let (iova, page) = (3 << 30, bench.page());
    world.space.entry(&mut bench.pool, iova, 2).set(read_write(RAM));
    bench.leads(iova + (page.gpa() - RAM), page, 7)?;
    Ok(bench.faults(iova + (bench.ram_end - RAM), ACCESS_FAULTS, nowhere)?)
}

pub(super) fn the_interrupt_file_is_no_memory(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    world.space.map(&mut bench.pool, IOVA, IMSIC);
    let (buffer, iova) = bench.buffer();
    // Data whose first word is no identity: it faults or is lost, and is read back neither.
    buffer.fill(|index| if index == 0 { 0 } else { pattern(8)(index) });
    bench.nvme.transfer(Way::FromMemory, PASSING, PAGE, iova);
    imsic::drain();
    bench.nvme.transfer(Way::ToMemory, PASSING, PAGE, [IOVA, 0]);
    bench.drop_faults();
    bench.revive()?;
    imsic::drain();
    bench.nvme.transfer(Way::FromMemory, PASSING, PAGE, [IOVA, 0]);
    bench.drop_faults();
    bench.revive()?;
    let read = bench.collect(PAGE)?;
    ensure!((1..PAGE / 8).all(|index| read.word(index) != pattern(8)(index)), "it kept what was written");
    let page = bench.page();
    world.space.map(&mut bench.pool, IOVA + PAGE as u64, page.gpa());
    Ok(bench.leads(IOVA + PAGE as u64, page, 9)?)
}

pub(super) fn tables_that_are_not_in_memory_are_access_faults(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let nowhere = Pages::elsewhere(0);
    // Below the queues: whole gigabytes are taken away.
    let mut iova = 0x12_3000;
    for gpa in [0, bench.ram_end, 0x0301_0000] {
        for level in [1, 2] {
            iova += leaf_bytes(2);
            world.space.entry(&mut bench.pool, iova, level).set(pointer(Pages::elsewhere(gpa)));
            // S1-08, FLT-04. Where the registers of a device are, QEMU's IOMMU reads them.
            if !(bench.native && gpa != bench.ram_end) {
                bench.faults(iova, ACCESS_FAULTS, nowhere)?;
            }
        }
    }
    for mode in MODES {
        for gpa in [0, bench.ram_end] {
            let root = Pages::elsewhere(gpa);
            let context = Space { mode, root, ..world.space }.context();
            bench.set_base_context(&world.directory, context)?;
            let (_, iova) = bench.buffer();
            let outcome = bench.nvme.transfer(Way::ToMemory, PASSING, PAGE, iova);
            ensure!(outcome == Outcome::Fatal, "no tables, and yet {outcome:?}");
            if !(bench.native && gpa == 0) {
                bench.expect(Cause::ReadAccessFault, READ, QUEUES + 2 * PAGE as u64)?;
            }
            bench.drop_faults();
            bench.set_base_context(&world.directory, world.space.context())?;
            bench.restart()?;
        }
    }
    Ok(())
}
