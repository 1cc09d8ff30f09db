//! Process directories. The device sends no `process_id`: with a default process (`DPE`) its requests are process 0's.

use riscv_viommu::cmdq::{Command, Iotinval};
use riscv_viommu::ddt::{BaseContext, Fsc};
use riscv_viommu::pdt::{ProcessContext, ProcessTa};
use riscv_viommu::{Cause, FirstStageMode, ProcessId, Pscid};

use crate::bench::{Bench, DEVICE, QUEUES, World};
use crate::iommu;
use crate::memory::{Pages, pattern};
use crate::tables::{Processes, Space};
use crate::verdict::{Stop, Verdict, Why, ensure, skip, why};

const IOVA: u64 = 0x11_2233_4000;
/// PSCIDs of the spaces that processes 0 and 1 begin with.
const PSCIDS: [u32; 2] = [5, 6];

/// A device whose requests are process 0's.
struct Processed {
    world: World,
    processes: Processes,
    /// The spaces of processes 0 and 1, which have [`IOVA`] lead to a page of their own, with its own pattern.
    spaces: [Space; 2],
    pages: Pages,
}

impl Processed {
    /// A process directory in force, and the controller started in the space of process 0.
    fn new(bench: &mut Bench, mode: FirstStageMode) -> Result<Self, Stop> {
        if !bench.iommu.capabilities.pd8() {
            skip!("no process directories: QEMU has them right from 10.2 on");
        }
        let pages = bench.pool.pages(2);
        (0..2).for_each(|index| pages.page(index).fill(pattern(index as u64)));
        let spaces = [0, 1].map(|index| {
            let space = bench.space(mode, PSCIDS[index]);
            space.map(&mut bench.pool, IOVA, pages.page(index).gpa());
            space
        });
        let processes = Processes::new(&mut bench.pool);
        (0..).zip(&spaces).for_each(|(process, space)| processes.set(process, space.process()));
        let directory = bench.directory(2);
        directory.set_base(processes.context());
        bench.enter(directory.ddtp())?;
        bench.start(QUEUES, None)?;
        Ok(Self { world: World { directory, space: spaces[0] }, processes, spaces, pages })
    }
}

fn inval_pdt(process: u32) -> Command {
    Command::IodirInvalPdt(DEVICE, ProcessId::truncate(process))
}

fn inval_space(pscid: u32) -> Command {
    Command::IotinvalVma(Iotinval::ALL.with_pscid(Pscid::truncate(pscid)))
}

pub(super) fn requests_of_no_process_are_those_of_process_0(bench: &mut Bench) -> Verdict {
    for mode in crate::bench::MODES {
        let Processed { spaces, pages, processes, .. } = Processed::new(bench, mode)?;
        bench.reads(IOVA, 0)?; // TR-14, TR-15, PDT-05
        bench.leads(IOVA, pages.page(0), 30)?;
        // What becomes of another process is nothing to it (DIR-03).
        processes.unset(1);
        bench.iommu.run(&[inval_pdt(1), inval_space(PSCIDS[1])])?;
        bench.leads(IOVA, pages.page(0), 32)?;
        ensure!(pages.page(1).holds(pages.page(1).len(), pattern(1)), "another process's page was changed");
        // Its page faults are the device's, which has no process to show (FQ-21, FQ-22).
        let entry = spaces[0].entry(&mut bench.pool, IOVA, 0);
        entry.set(entry.get().with_v(false));
        bench.iommu.run(&[inval_space(PSCIDS[0])])?;
        bench.faults(IOVA, [Cause::ReadPageFault, Cause::WritePageFault], pages.page(0))?;
    }
    Ok(())
}

pub(super) fn without_a_default_process_addresses_are_let_through(bench: &mut Bench) -> Verdict {
    let Processed { world, processes, pages, .. } = Processed::new(bench, FirstStageMode::Sv39)?;
    let context = processes.context();
    let bare = BaseContext { tc: context.tc.with_dpe(false), ..context };
    for round in 0..3 {
        bench.set_base_context(&world.directory, bare)?;
        // The process directory is not looked at (TR-14).
        let page = pages.page(1);
        bench.start_untranslated()?;
        bench.leads(page.gpa(), page, 40 + round)?;
        bench.set_base_context(&world.directory, context)?;
        bench.start(QUEUES, None)?;
        bench.leads(IOVA, pages.page(0), 50 + round)?;
    }
    Ok(())
}

pub(super) fn a_process_context_changes_by_its_commands(bench: &mut Bench) -> Verdict {
    for mode in [FirstStageMode::Sv39, FirstStageMode::Sv48] {
        let Processed { spaces, processes, .. } = Processed::new(bench, mode)?;
        for round in 0..20 {
            // Another space under another PSCID: nothing of the old one is in its way (CA-03), so that only the
            // context itself has to go.
            let turn = (round + 1) % 2;
            bench.reads(IOVA, 1 - turn)?;
            processes.set(0, spaces[turn as usize].process());
            bench.iommu.run(&[inval_pdt(0)])?; // DIR-03
            bench.reads(IOVA, turn)?;
        }
        for round in 0..20 {
            // Another space under the same PSCID, whose translations have to go too (SWG-06, DIR-05).
            let turn = (round + 1) % 2;
            let space = Space { pscid: spaces[0].pscid, ..spaces[turn as usize] };
            processes.unset(0);
            bench.iommu.run(&[inval_pdt(0), inval_space(PSCIDS[0])])?;
            processes.set(0, space.process());
            bench.reads(IOVA, turn)?;
        }
        bench.no_fault()?;
    }
    Ok(())
}

pub(super) fn a_process_directory_is_replaced_under_a_live_device(bench: &mut Bench) -> Verdict {
    let Processed { world, spaces, processes, pages } = Processed::new(bench, FirstStageMode::Sv48)?;
    let other = Processes::new(&mut bench.pool);
    other.set(0, spaces[1].process());
    for round in 0..10_u64 {
        // A directory, another one, and none at all, from one to the next.
        bench.set_base_context(&world.directory, other.context())?;
        bench.reads(IOVA, 1)?;
        bench.set_base_context(&world.directory, processes.context())?;
        bench.reads(IOVA, 0)?;
        bench.set_base_context(&world.directory, spaces[(round % 2) as usize].context())?;
        bench.reads(IOVA, round % 2)?;
        // Its root alone, in one store (UPD-07).
        bench.set_base_context(&world.directory, processes.context())?;
        world.directory.set_word(3, other.context().fsc.into_bits());
        bench.iommu.run(&[Command::IodirInvalDdt(Some(DEVICE)), Command::IotinvalVma(Iotinval::ALL)])?;
        bench.reads(IOVA, 1)?;
    }
    bench.leads(IOVA, pages.page(1), 60)?;
    Ok(())
}

/// Contexts of a process that are wrong in one point each.
fn misconfigured(good: ProcessContext) -> [(&'static str, ProcessContext); 5] {
    // QEMU's IOMMU, here and under the hypervisor, does not look at bits 3 to 11.
    let ta = |bit: u32| ProcessContext { ta: ProcessTa::from_bits(good.ta.into_bits() | 1 << bit), ..good };
    let fsc = |fsc: Fsc| ProcessContext { fsc, ..good };
    [
        ("ta, bit 32", ta(32)), // PCK-01
        ("ta, bit 63", ta(63)),
        ("fsc, bit 44", fsc(Fsc::from_bits(good.fsc.into_bits() | 1 << 44))),
        ("iosatp.MODE 1", fsc(good.fsc.with_mode(1))), // PCK-02
        ("iosatp.MODE 11", fsc(good.fsc.with_mode(11))),
    ]
}

pub(super) fn a_process_without_a_good_context_is_blocked(bench: &mut Bench) -> Verdict {
    let Processed { spaces, processes, .. } = Processed::new(bench, FirstStageMode::Sv39)?;
    let good = spaces[0].process();
    let mut check = |what: &str, cause, damage: &dyn Fn()| -> Result<(), Why> {
        bench.reads(IOVA, 0)?;
        damage();
        bench.iommu.run(&[inval_pdt(0), inval_space(PSCIDS[0])])?;
        bench.blocked(cause).map_err(|why| why!("{what}: {why}"))?;
        processes.unset(0);
        bench.iommu.run(&[inval_pdt(0), inval_space(PSCIDS[0])])?;
        processes.set(0, good);
        bench.restart()
    };
    check("V=0", Cause::PdtNotValid, &|| processes.unset(0))?; // PDT-08
    for (what, context) in misconfigured(good) {
        check(what, Cause::PdtMisconfigured, &|| processes.set(0, context))?;
    }
    Ok(bench.reads(IOVA, 0)?)
}

pub(super) fn a_process_directory_outside_memory_blocks_the_device(bench: &mut Bench) -> Verdict {
    let Processed { world, processes, .. } = Processed::new(bench, FirstStageMode::Sv39)?;
    for outside in [bench.ram_end, 0x1_0000_0000, 1 << 45] {
        if bench.native && outside != 1 << 45 {
            continue;
        }
        bench.reads(IOVA, 0)?;
        bench.set_base_context(&world.directory, Processes { page: Pages::elsewhere(outside) }.context())?;
        bench.blocked(Cause::PdtLoadAccessFault).map_err(|why| why!("{outside:#x}: {why}"))?; // PDT-07, VT-05
        bench.set_base_context(&world.directory, processes.context())?;
        bench.restart()?;
    }
    iommu::set_ddtp(iommu::OFF)?;
    Ok(())
}
