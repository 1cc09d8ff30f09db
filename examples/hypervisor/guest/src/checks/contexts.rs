//! Device contexts and the directory they are in.

use riscv_viommu::cmdq::Command;
use riscv_viommu::ddt::{BaseContext, DdtEntry, ExtendedContext, Fsc, Iohgatp, MsiPageBits, Msiptp, Ta, Tc};
use riscv_viommu::regs::Capabilities;
use riscv_viommu::{Cause, FirstStageMode};

use crate::bench::{Bench, DEVICE, MODES, QUEUES, World};
use crate::iommu;
use crate::memory::Pages;
use crate::tables::Directory;
use crate::verdict::{Verdict, Why, ensure, why};

const IOVA: u64 = 0x11_2233_4000;

pub(super) fn off_blocks_the_device(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    bench.stage(512, 1)?;
    iommu::set_ddtp(iommu::OFF)?;
    bench.blocked(Cause::AllInboundDisallowed)?; // TR-02, REG-DDTP-14
    bench.enter(world.directory.ddtp())?;
    Ok(works_again(bench, &world)?)
}

/// With its own context back the device does what it did.
fn works_again(bench: &mut Bench, world: &World) -> Result<(), Why> {
    bench.restart()?;
    let page = bench.page();
    world.space.map(&mut bench.pool, IOVA, page.gpa());
    bench.iommu.flush()?;
    bench.leads(IOVA, page, 11)
}

pub(super) fn a_context_made_invalid_blocks_the_device(bench: &mut Bench) -> Verdict {
    for levels in 1..=3 {
        let world = bench.world(levels, bench_mode(levels))?;
        bench.stage(512, 1)?;
        // tc.V alone; whatever else is in the context is not looked at (DDT-12, DDT-13, UPD-02).
        world.directory.set_word(0, Tc::from_bits(u64::MAX).with_v(false).into_bits());
        bench.iommu.run(&[Command::IodirInvalDdt(Some(DEVICE))])?;
        bench.blocked(Cause::DdtNotValid)?;
        bench.set_base_context(&world.directory, world.space.context())?;
        works_again(bench, &world)?;
    }
    Ok(())
}

fn bench_mode(levels: u8) -> FirstStageMode {
    MODES[usize::from(levels) - 1]
}

pub(super) fn a_context_made_valid_opens_the_device(bench: &mut Bench) -> Verdict {
    let directory = bench.directory(2);
    let space = bench.space(bench_mode(1), 5);
    bench.enter(directory.ddtp())?;
    directory.set_base(space.context());
    bench.iommu.run(&[Command::IodirInvalDdt(Some(DEVICE))])?;
    // Every device at once, too (DIR-01).
    bench.start(QUEUES, None)?;
    bench.stage(512, 1)?;
    directory.set_word(0, 0);
    bench.iommu.run(&[Command::IodirInvalDdt(None)])?;
    bench.blocked(Cause::DdtNotValid)?;
    directory.set_word(0, Tc::new().with_v(true).into_bits());
    bench.iommu.run(&[Command::IodirInvalDdt(None)])?;
    works_again(bench, &World { directory, space })?;
    // Without a command, too. An emulated IOMMU may learn of it by a transaction that it blocks (UPD-04, SYNC-08).
    directory.set_word(0, 0);
    bench.iommu.run(&[Command::IodirInvalDdt(None)])?;
    bench.blocked(Cause::DdtNotValid)?;
    directory.set_word(0, Tc::new().with_v(true).into_bits());
    let opened = (0..3).any(|_| bench.restart().is_ok());
    ensure!(opened, "the device stays blocked: {}", bench.next_fault());
    bench.drop_faults();
    Ok(works_again(bench, &World { directory, space })?)
}

/// Contexts that are wrong in one point each, if the capabilities say so.
fn misconfigured(good: BaseContext, caps: Capabilities) -> impl Iterator<Item = (&'static str, BaseContext)> {
    let tc = move |tc: Tc| BaseContext { tc, ..good };
    let fsc = move |fsc: Fsc| BaseContext { fsc, ..good };
    let gatp = move |mode| BaseContext { iohgatp: Iohgatp::new().with_mode(mode).with_ppn(good.fsc.ppn()), ..good };
    let v = good.tc;
    [
        (true, "tc, bit 12", tc(Tc::from_bits(v.into_bits() | 1 << 12))), // DCK-01
        (true, "tc, bit 23", tc(Tc::from_bits(v.into_bits() | 1 << 23))),
        (true, "tc, bit 32", tc(Tc::from_bits(v.into_bits() | 1 << 32))),
        (true, "tc, bit 63", tc(Tc::from_bits(v.into_bits() | 1 << 63))),
        (true, "ta, bit 0", BaseContext { ta: Ta::from_bits(good.ta.into_bits() | 1), ..good }),
        (true, "ta, bit 32", BaseContext { ta: Ta::from_bits(good.ta.into_bits() | 1 << 32), ..good }),
        (!caps.qosid(), "ta.RCID", BaseContext { ta: good.ta.with_rcid(1), ..good }),
        (true, "fsc, bit 44", fsc(Fsc::from_bits(good.fsc.into_bits() | 1 << 44))),
        (!caps.ats(), "EN_ATS", tc(v.with_en_ats(true))), // DCK-02
        (!caps.ats(), "PRPR", tc(v.with_prpr(true))),
        (true, "T2GPA without EN_ATS", tc(v.with_t2gpa(true))), // DCK-03
        (true, "EN_PRI without EN_ATS", tc(v.with_en_pri(true))), // DCK-04
        (!caps.pd8(), "PD8", fsc_of_directory(good, 1)),        // DCK-08
        (!caps.pd17(), "PD17", fsc_of_directory(good, 2)),
        (!caps.pd20(), "PD20", fsc_of_directory(good, 3)),
        (true, "pdtp.MODE 4", fsc_of_directory(good, 4)),
        (true, "iosatp.MODE 1", fsc(good.fsc.with_mode(1))), // DCK-09
        (true, "iosatp.MODE 11", fsc(good.fsc.with_mode(11))),
        (true, "iosatp.MODE 15", fsc(good.fsc.with_mode(15))),
        (true, "DPE without PDTV", tc(v.with_dpe(true))), // DCK-12
        (true, "iohgatp.MODE 1", gatp(1)),                // DCK-13
        (!caps.sv39x4(), "Sv39x4", gatp(8)),              // DCK-14
        (!caps.sv57x4(), "Sv57x4", gatp(10)),
        (!caps.amo_hwad(), "SADE", tc(v.with_sade(true))), // DCK-18
        (!caps.amo_hwad(), "GADE", tc(v.with_gade(true))),
        (!caps.end(), "SBE", tc(v.with_sbe(true))),  // DCK-19, DCK-21
        (!caps.sv32(), "SXL", tc(v.with_sxl(true))), // DCK-20
    ]
    .into_iter()
    .filter_map(|(wrong, what, context)| wrong.then_some((what, context)))
}

/// `fsc` as a process directory.
fn fsc_of_directory(good: BaseContext, mode: u8) -> BaseContext {
    BaseContext { tc: good.tc.with_pdtv(true), fsc: good.fsc.with_mode(mode), ..good }
}

/// With this context the device is blocked for its misconfiguration; then it has its own again.
fn is_refused(bench: &mut Bench, world: &World, what: &str, context: ExtendedContext) -> Result<(), Why> {
    bench.set_context(&world.directory, context)?;
    let refused = bench.blocked(Cause::DdtMisconfigured);
    if let Err(why) = refused {
        ensure!(bench.excused(), "{what}: {why}");
    }
    bench.drop_faults();
    bench.set_base_context(&world.directory, world.space.context())?;
    bench.restart()
}

pub(super) fn a_misconfigured_context_blocks_the_device(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    for (what, base) in misconfigured(world.space.context(), bench.iommu.capabilities) {
        is_refused(bench, &world, what, ExtendedContext { base, ..ExtendedContext::default() })?;
    }
    Ok(works_again(bench, &world)?)
}

/// Contexts that are wrong in one point each of what only the extended format has.
fn misconfigured_behind(base: BaseContext) -> [(&'static str, ExtendedContext); 6] {
    let good = ExtendedContext { base, ..ExtendedContext::default() };
    [
        ("msiptp.MODE 2", ExtendedContext { msiptp: Msiptp::new().with_mode(2), ..good }), // DCK-16
        ("msiptp, bit 44", ExtendedContext { msiptp: Msiptp::from_bits(1 << 44), ..good }), // DCK-01
        ("msi_addr_mask, bit 52", ExtendedContext { msi_addr_mask: MsiPageBits::from_bits(1 << 52), ..good }),
        ("msi_addr_pattern, bit 63", ExtendedContext { msi_addr_pattern: MsiPageBits::from_bits(1 << 63), ..good }),
        ("the last word", ExtendedContext { rsvd: 1, ..good }),
        // DCK-23.
        (
            "msiptp without a second stage",
            ExtendedContext { msiptp: Msiptp::new().with_mode(1).with_ppn(base.fsc.ppn()), ..good },
        ),
    ]
}

pub(super) fn words_behind_a_base_context_count_in_the_extended_format_only(bench: &mut Bench) -> Verdict {
    let world = bench.sv39()?;
    for (what, context) in misconfigured_behind(world.space.context()) {
        if bench.extended() {
            is_refused(bench, &world, what, context)?;
            continue;
        }
        // There they belong to the context of the next device (DDT-01, DDT-18).
        let ExtendedContext { msiptp, msi_addr_mask, msi_addr_pattern, rsvd, .. } = context;
        let behind = [msiptp.into_bits(), msi_addr_mask.into_bits(), msi_addr_pattern.into_bits(), rsvd];
        (world.directory.words()..).zip(behind).for_each(|(word, value)| world.directory.set_word(word, value));
        bench.set_base_context(&world.directory, world.space.context())?;
        works_again(bench, &world).map_err(|why| why!("{what}, in the next context: {why}"))?;
    }
    Ok(works_again(bench, &world)?)
}

pub(super) fn a_broken_directory_blocks_the_device(bench: &mut Bench) -> Verdict {
    let world = bench.world(3, bench_mode(2))?;
    let nowhere = Pages::elsewhere(bench.ram_end).ppn();
    let valid = DdtEntry::new().with_v(true);
    for depth in 0..2 {
        let kept = world.directory.entry(depth);
        for (entry, cause) in [
            (kept.with_v(false), Cause::DdtNotValid), // DDT-11, DDT-13
            (DdtEntry::from_bits(u64::MAX).with_v(false), Cause::DdtNotValid),
            (DdtEntry::from_bits(kept.into_bits() | 1 << 1), Cause::DdtMisconfigured),
            (DdtEntry::from_bits(kept.into_bits() | 1 << 63), Cause::DdtMisconfigured),
            (valid.with_ppn(nowhere), Cause::DdtLoadAccessFault), // FLT-01
        ] {
            bench.iommu.flush()?;
            world.directory.set_entry(depth, entry);
            bench.iommu.flush()?; // SWG-05
            bench.blocked(cause).map_err(|why| why!("{entry:x?} at depth {depth}: {why}"))?;
            world.directory.set_entry(depth, kept);
            bench.iommu.flush()?;
            bench.restart()?;
        }
    }
    // A root that is nowhere.
    bench.enter(world.directory.ddtp().with_ppn(nowhere))?;
    bench.blocked(Cause::DdtLoadAccessFault)?;
    bench.enter(world.directory.ddtp())?;
    Ok(works_again(bench, &world)?)
}

pub(super) fn a_process_directory_that_is_bare_lets_addresses_through(bench: &mut Bench) -> Verdict {
    let directory: Directory = bench.identity(2)?;
    let page = bench.page();
    for dpe in [false, true] {
        // TR-14, TR-15: no process_id, or the default one of a directory that is Bare; fsc.PPN counts for nothing.
        let tc = Tc::new().with_v(true).with_pdtv(true).with_dpe(dpe);
        let fsc = Fsc::new().with_ppn(Pages::elsewhere(0x1000).ppn());
        bench.set_base_context(&directory, BaseContext { tc, fsc, ..BaseContext::default() })?;
        bench.leads(page.gpa(), page, 21)?;
    }
    Ok(())
}
