//! Changes of live tables: the commands that make them count.

use riscv_viommu::cmdq::{Command, Iotinval, PageRange};
use riscv_viommu::pt::Pte;
use riscv_viommu::{Cause, FirstStageMode, Gscid, Iova, Pscid};

use crate::bench::{Bench, DEVICE, PASSING, World};
use crate::memory::{PAGE, Pages, pattern};
use crate::nvme::{Outcome, Way};
use crate::tables::{leaf_bytes, pointer, read_only, read_write};
use crate::verdict::{Verdict, ensure, skip};

const IOVA: u64 = 0x11_2233_4000;
const ALL: Iotinval = Iotinval::ALL;

/// The PSCID of the spaces of [`Bench::world`].
const PSCID: Pscid = Pscid::truncate(5);

fn page_at(iova: u64) -> PageRange {
    PageRange::page(Iova::new(iova))
}

/// Pages that each have their own pattern.
fn marked(bench: &mut Bench, count: usize) -> Pages {
    let pages = bench.pool.pages(count);
    for index in 0..count {
        pages.page(index).fill(pattern(index as u64));
    }
    pages
}

pub(super) fn every_scope_of_invalidation_ends_an_old_translation(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let pages = marked(bench, 2);
    let entry = world.space.map(&mut bench.pool, IOVA, pages.gpa());
    // VMA-01 to VMA-04.
    for (round, scope) in
        [ALL, ALL.with_pscid(PSCID), ALL.with_range(page_at(IOVA)), ALL.with_range(page_at(IOVA)).with_pscid(PSCID)]
            .into_iter()
            .cycle()
            .take(16)
            .enumerate()
    {
        bench.reads(IOVA, round as u64 % 2)?;
        entry.set(read_write(pages.page((round + 1) % 2).gpa()));
        bench.iommu.run(&[Command::IotinvalVma(scope)])?;
        bench.reads(IOVA, (round as u64 + 1) % 2)?;
    }
    // Spaces under a second stage are others: naming one must do no harm (VMA-10, VC-22).
    bench.iommu.run(&[Command::IotinvalVma(ALL.with_gscid(Gscid::truncate(0)))])?;
    Ok(bench.reads(IOVA, 0)?)
}

pub(super) fn a_range_invalidation_covers_each_of_its_pages(bench: &mut Bench) -> Verdict {
    if !bench.iommu.capabilities.s() {
        skip!("no range invalidation");
    }
    let world = bench.sv39()?;
    let pages = marked(bench, 2);
    // VMA-14: 8 KiB to 4 MiB, its first page, its last and one between.
    for log2 in [1, 2, 5, 9, 10] {
        let first = (IOVA >> 24) << 24;
        let last = first + ((1 << log2) - 1) * PAGE as u64;
        let places = [first, first + PAGE as u64, last];
        for iova in places {
            world.space.map(&mut bench.pool, iova, pages.gpa());
        }
        bench.iommu.run(&[])?;
        for iova in places {
            bench.reads(iova, 0)?;
        }
        for iova in places {
            world.space.map(&mut bench.pool, iova, pages.page(1).gpa());
        }
        let range = PageRange::covering(Iova::new(first), Iova::new(last));
        bench.iommu.run(&[Command::IotinvalVma(ALL.with_range(range).with_pscid(PSCID))])?;
        for iova in places {
            bench.reads(iova, 1)?;
            world.space.entry(&mut bench.pool, iova, 0).set(Pte::new());
        }
        bench.iommu.run(&[Command::IotinvalVma(ALL.with_range(range))])?;
        for iova in places {
            bench.faults(iova, [Cause::ReadPageFault, Cause::WritePageFault], pages.page(0))?;
        }
        pages.page(0).fill(pattern(0));
    }
    Ok(())
}

pub(super) fn a_table_is_replaced_under_a_live_space(bench: &mut Bench) -> Verdict {
    for mode in crate::bench::MODES {
        let world = bench.world(2, mode)?;
        let pages = marked(bench, 2);
        // Two tables for the same addresses, one to each page.
        let tables = bench.pool.pages(2);
        for index in 0..2 {
            tables.page(index).fill(|_| read_write(pages.page(index).gpa()).into_bits());
        }
        let entry = world.space.entry(&mut bench.pool, IOVA, 1);
        let mut scopes = heapless::Vec::<Iotinval, 4>::new();
        scopes.extend_from_slice(&[ALL, ALL.with_pscid(PSCID)]).expect("room");
        if bench.iommu.capabilities.nl() {
            // VMA-13: non-leaf entries too, of one page and of a range.
            let range = PageRange::covering(Iova::new(IOVA), Iova::new(IOVA + leaf_bytes(1) - 1));
            let page = ALL.with_range(page_at(IOVA).with_non_leaf(true));
            let pages = ALL.with_range(range.with_non_leaf(true)).with_pscid(PSCID);
            scopes.extend_from_slice(&[page, pages]).expect("room");
        }
        for index in 0..=1 {
            for &scope in &scopes {
                for turn in [index, 1 - index] {
                    entry.set(pointer(tables.page(turn)));
                    bench.iommu.run(&[Command::IotinvalVma(scope)])?;
                    bench.reads(IOVA, turn as u64)?; // SWG-14
                }
            }
        }
    }
    Ok(())
}

pub(super) fn a_global_page_goes_with_an_address_and_with_everything(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let pages = marked(bench, 2);
    let leaf = |turn: usize| read_write(pages.page(turn).gpa()).with_g(true);
    let entry = world.space.entry(&mut bench.pool, IOVA, 0);
    entry.set(leaf(0));
    // VMA-01, VMA-03, CA-05: not by PSCID.
    for (round, scope) in [ALL, ALL.with_range(page_at(IOVA)), ALL].into_iter().enumerate() {
        bench.reads(IOVA, round as u64 % 2)?;
        entry.set(leaf((round + 1) % 2));
        bench.iommu.run(&[Command::IotinvalVma(scope)])?;
        bench.reads(IOVA, (round as u64 + 1) % 2)?;
    }
    Ok(())
}

pub(super) fn a_page_moved_300_times_is_always_the_new_one(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let pages = marked(bench, 8);
    let entry = world.space.map(&mut bench.pool, IOVA, pages.gpa());
    for round in 1..=300 {
        let turn = round * 5 % 8;
        entry.set(read_write(pages.page(turn).gpa()));
        let scope = ALL.with_range(page_at(IOVA)).with_pscid(PSCID);
        bench.iommu.run(&[Command::IotinvalVma(scope)])?;
        bench.reads(IOVA, turn as u64)?; // SWG-13, SYNC-03
    }
    Ok(())
}

pub(super) fn pages_move_while_others_are_in_use(bench: &mut Bench) -> Verdict {
    const BUSY: usize = 8;
    let world = bench.world(3, FirstStageMode::Sv48)?;
    let pages = marked(bench, 4);
    let busy = bench.pool.pages(BUSY);
    let busy_at = IOVA + leaf_bytes(1);
    world.space.map_all(&mut bench.pool, busy_at, busy);
    bench.stage(PAGE, 9)?;
    for round in 0..100_u64 {
        busy.fill(|_| round);
        for index in 0..BUSY as u64 {
            bench.nvme.submit(Way::ToMemory, PASSING, PAGE, [busy_at + index * PAGE as u64, 0]);
        }
        // Behind them, in the same queue, a read through a page that is moved meanwhile.
        let turn = round * 3 % 4;
        world.space.map(&mut bench.pool, IOVA, pages.page(turn as usize).gpa());
        bench.iommu.run(&[Command::IotinvalVma(ALL.with_range(page_at(IOVA)))])?;
        bench.nvme.submit(Way::FromMemory, PASSING + 16, PAGE, [IOVA, 0]);
        for _ in 0..=BUSY {
            let outcome = bench.nvme.wait();
            ensure!(outcome == Outcome::Done(0), "{outcome:?} in round {round}, {}", bench.next_fault());
        }
        for index in 0..BUSY {
            ensure!(busy.page(index).holds(PAGE, pattern(9)), "page {index} in round {round}");
        }
        let (buffer, iova) = bench.buffer();
        let outcome = bench.nvme.transfer(Way::ToMemory, PASSING + 16, PAGE, iova);
        ensure!(outcome == Outcome::Done(0), "{outcome:?} in round {round}");
        ensure!(buffer.holds(PAGE, pattern(turn)), "an old page in round {round}");
    }
    Ok(bench.no_fault()?)
}

pub(super) fn an_unmapped_page_is_out_of_reach(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let page = bench.page();
    for scope in [ALL, ALL.with_pscid(PSCID), ALL.with_range(page_at(IOVA))] {
        let entry = world.space.map(&mut bench.pool, IOVA, page.gpa());
        bench.leads(IOVA, page, 3)?;
        entry.set(Pte::new());
        bench.iommu.run(&[Command::IotinvalVma(scope)])?;
        bench.faults(IOVA, [Cause::ReadPageFault, Cause::WritePageFault], page)?; // S1-09, ACC-10
        // Only the right to write is taken.
        let entry = world.space.map(&mut bench.pool, IOVA, page.gpa());
        bench.leads(IOVA, page, 4)?;
        entry.set(read_only(page.gpa()));
        bench.iommu.run(&[Command::IotinvalVma(scope)])?;
        bench.write_faults(IOVA, Cause::WritePageFault, page)?;
    }
    Ok(())
}

pub(super) fn a_page_mapped_needs_no_invalidation(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    let page = bench.page();
    for round in 0..8 {
        let iova = IOVA + round * leaf_bytes(2);
        bench.faults(iova, [Cause::ReadPageFault, Cause::WritePageFault], page)?;
        world.space.map(&mut bench.pool, iova, page.gpa());
        bench.leads(iova, page, round)?; // CA-02, SYNC-09, SWG-17
    }
    Ok(())
}

/// The same address in another space, which leads to another page.
fn another(bench: &mut Bench, world: &World, pscid: u32, page: Pages) -> World {
    let space = bench.space(world.space.mode, pscid);
    space.map(&mut bench.pool, IOVA, page.gpa());
    World { space, ..*world }
}

pub(super) fn one_pscid_is_not_another(bench: &mut Bench) -> Verdict {
    let first = bench.sv39()?;
    let pages = marked(bench, 2);
    first.space.map(&mut bench.pool, IOVA, pages.gpa());
    let second = another(bench, &first, 6, pages.page(1));
    for round in 0..20_u64 {
        let world = if round % 2 == 0 { first } else { second };
        // Entries of the other space stay where they are: only the context changes, and the PSCID with it (CA-03).
        first.directory.set_word(0, 0);
        bench.iommu.run(&[Command::IodirInvalDdt(Some(DEVICE))])?;
        first.directory.set_base(world.space.context());
        bench.iommu.run(&[Command::IodirInvalDdt(Some(DEVICE))])?;
        bench.reads(IOVA, round % 2)?;
    }
    // Invalidating one leaves the other's new translation to be seen by its own command.
    second.space.map(&mut bench.pool, IOVA, pages.gpa());
    bench.iommu.run(&[
        Command::IotinvalVma(ALL.with_pscid(PSCID)),
        Command::IotinvalVma(ALL.with_pscid(Pscid::truncate(6))),
    ])?;
    Ok(bench.reads(IOVA, 0)?)
}

pub(super) fn two_spaces_take_turns(bench: &mut Bench) -> Verdict {
    let first = bench.world(1, FirstStageMode::Sv57)?;
    let pages = marked(bench, 2);
    first.space.map(&mut bench.pool, IOVA, pages.gpa());
    // The same PSCID, another root: the old root's translations have to go (SWG-03, PC-08).
    let second = another(bench, &first, first.space.pscid.get(), pages.page(1));
    for round in 0..20_u64 {
        let world = if round % 2 == 0 { second } else { first };
        bench.set_base_context(&first.directory, world.space.context())?;
        bench.reads(IOVA, (round + 1) % 2)?;
    }
    Ok(())
}
