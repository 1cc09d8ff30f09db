//! Experiments with what goes wrong while a device is at work, each with its own verdict.

use riscv_viommu::cmdq::{Command, Iotinval, PageRange};
use riscv_viommu::pt::Pte;
use riscv_viommu::{Cause, Iova};

use crate::bench::{Bench, PASSING, QUEUES, READ, WRITE};
use crate::console::say;
use crate::memory::{MEGA, PAGE, pattern};
use crate::nvme::{BLOCK, Outcome, Way};
use crate::tables::read_write;
use crate::verdict::{Why, ensure};

const IOVA: u64 = 0x11_2233_4000;
/// Where the controller finds its submission queue.
const SUBMISSIONS: u64 = QUEUES + (2 * PAGE) as u64;

/// Carries one out and gives the verdict.
pub(crate) fn run(bench: &mut Bench, name: &str) {
    let experiment = match name {
        "tables-emptied" => tables_emptied,
        "unmapped" => unmapped,
        "memory-hole-healed" => memory_hole_healed,
        _ => panic!("no scenario {name}"),
    };
    match bench.begin().and_then(|()| experiment(bench)).and_then(|()| bench.canaries_live()) {
        Ok(()) => say!("@hv pass {name}"),
        Err(why) => say!("@hv fail {name}: {why}"),
    }
}

/// The root of the first stage is emptied under a device at work, and filled again.
fn tables_emptied(bench: &mut Bench) -> Result<(), Why> {
    let world = bench.sv39()?;
    let page = bench.page();
    world.space.map(&mut bench.pool, IOVA, page.gpa());
    let root = world.space.root;
    for round in 0..10 {
        bench.leads(IOVA, page, round)?;
        let kept = bench.pool.pages(1);
        kept.fill(|index| root.word(index));
        root.fill(|_| 0);
        bench.iommu.run(&[Command::IotinvalVma(Iotinval::ALL)])?;
        bench.nvme.submit(Way::ToMemory, PASSING, BLOCK, [IOVA, 0]);
        let outcome = bench.nvme.wait();
        ensure!(outcome == Outcome::Fatal, "without tables the controller answers {outcome:?}");
        bench.expect(Cause::ReadPageFault, READ, SUBMISSIONS)?;
        root.fill(|index| kept.word(index));
        bench.restart()?;
    }
    bench.leads(IOVA, page, 99)
}

/// A page, then the controller's own queue, are unmapped; the data on the disk survives it.
fn unmapped(bench: &mut Bench) -> Result<(), Why> {
    let world = bench.sv39()?;
    let page = bench.page();
    for round in 0..10 {
        let entry = world.space.map(&mut bench.pool, IOVA, page.gpa());
        bench.leads(IOVA, page, round)?;
        bench.stage(PAGE, 1000 + round)?;
        let victim = |iova| Command::IotinvalVma(Iotinval::ALL.with_range(PageRange::page(Iova::new(iova))));
        entry.set(Pte::new());
        bench.iommu.run(&[victim(IOVA)])?;
        page.fill(pattern(7));
        bench.nvme.transfer(Way::ToMemory, PASSING, BLOCK, [IOVA, 0]);
        bench.expect(Cause::WritePageFault, WRITE, IOVA)?;
        bench.revive()?;
        let queue = world.space.entry(&mut bench.pool, SUBMISSIONS, 0);
        let kept = queue.get();
        queue.set(Pte::new());
        bench.iommu.run(&[victim(SUBMISSIONS)])?;
        let outcome = bench.nvme.transfer(Way::ToMemory, PASSING, BLOCK, [IOVA, 0]);
        ensure!(outcome == Outcome::Fatal, "without its queue the controller answers {outcome:?}");
        bench.expect(Cause::ReadPageFault, READ, SUBMISSIONS)?;
        ensure!(page.holds(PAGE, pattern(7)), "an unmapped page was written");
        queue.set(kept);
        entry.set(read_write(page.gpa()));
        bench.restart()?;
        let outcome = bench.nvme.transfer(Way::ToMemory, PASSING, PAGE, [IOVA, 0]);
        ensure!(outcome == Outcome::Done(0), "{outcome:?}, {}", bench.next_fault());
        ensure!(page.holds(PAGE, pattern(1000 + round)), "the data on the disk has changed");
    }
    bench.no_fault()
}

/// The host takes memory of the guest out of the device's reach, and gives it back.
fn memory_hole_healed(bench: &mut Bench) -> Result<(), Why> {
    // Its own 2 MiB: with the hole go neither tables nor queues.
    let page = bench.pool.aligned(MEGA / PAGE, MEGA).page(5);
    for round in 0..6 {
        // With a first stage and without one, which caches tell apart.
        let iova = if round % 2 == 0 {
            let world = bench.sv39()?;
            world.space.map(&mut bench.pool, IOVA, page.gpa());
            IOVA
        } else {
            bench.identity(2)?;
            page.gpa()
        };
        // Used just before, and so perhaps in a cache.
        bench.leads(iova, page, round)?;
        say!("@hv hole {:#x}", page.gpa());
        bench.faults(iova, [Cause::ReadAccessFault, Cause::WriteAccessFault], page)?;
        say!("@hv heal");
        bench.leads(iova, page, 50 + round)?;
    }
    Ok(())
}
