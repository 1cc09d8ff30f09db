//! The fault queue.

use riscv_viommu::Cause;
use riscv_viommu::cmdq::RawCommand;
use riscv_viommu::ddt::BaseContext;
use riscv_viommu::faultq::{FaultHead, FaultRecord};
use riscv_viommu::regs::{Fqcsr, Ipsr, Register};

use crate::bench::{Bench, WRITE, World};
use crate::csr;
use crate::imsic;
use crate::iommu::{self, fqcsr, ipsr, write};
use crate::memory::{PAGE, Pages, pattern};
use crate::tables::leaf_bytes;
use crate::verdict::{Verdict, Why, ensure, skip};

/// Unmapped, each page of it.
const NOTHING: u64 = 0x21_0000_0000;

/// The fault queue anew.
fn restart(bench: &mut Bench, pages: Pages, log2: u8, fie: bool) -> Result<(), Why> {
    write(Register::Fqcsr, Fqcsr::new().into_bits());
    let off = csr::within(1000, || !fqcsr().fqon() && !fqcsr().busy());
    ensure!(off, "the fault queue stays on: {:x?}", fqcsr());
    write(Register::Ipsr, Ipsr::new().with_fip(true).into_bits());
    bench.iommu.start_faults(pages, log2, fie)
}

/// The device writes to a page that is not mapped.
fn provoke(bench: &mut Bench, page: u64) -> Result<(), Why> {
    bench.deliver([NOTHING + page * PAGE as u64, 0], 512, page)?;
    bench.revive()
}

pub(super) fn a_fault_sends_a_message(bench: &mut Bench) -> Verdict {
    bench.sv39()?;
    let queue = bench.pool.aligned(4, 4 * PAGE);
    restart(bench, queue, 9, true)?;
    bench.stage(512, 1)?;
    imsic::drain();
    ensure!(!ipsr().fip(), "{:x?} without a fault", ipsr());
    for page in 0..4 {
        provoke(bench, page)?;
        ensure!(imsic::comes(imsic::FAULTS), "no message"); // IRQ-03, FQ-09
        ensure!(ipsr().fip(), "{:x?}", ipsr());
        // Cleared before the queue is drained, and not raised again by what is in it (IRQ-09, REG-IPSR-10).
        write(Register::Ipsr, Ipsr::new().with_fip(true).into_bits());
        bench.expect(Cause::WritePageFault, WRITE, NOTHING + page * PAGE as u64)?;
        write(Register::Ipsr, Ipsr::new().with_fip(true).into_bits());
        imsic::drain();
        ensure!(!ipsr().fip(), "{:x?} without a fault", ipsr());
    }
    Ok(())
}

pub(super) fn a_message_that_cannot_be_stored_is_a_fault(bench: &mut Bench) -> Verdict {
    if bench.native {
        skip!("QEMU's IOMMU does not look at what becomes of its messages");
    }
    let queue = bench.pool.pages(1);
    for outside in [0, bench.ram_end, 0x0301_0000] {
        iommu::stop()?;
        iommu::route_interrupts(outside, false);
        bench.iommu.start_faults(queue, 4, true)?;
        bench.iommu.start_commands(bench.pool.pages(1), 4, true)?;
        bench.iommu.push(RawCommand::default());
        bench.iommu.doorbell();
        bench.iommu.settle();
        // For the command queue's message, perhaps again for that of the record itself, no more (IRQ-14, FQ-07).
        let came = csr::within(1000, || bench.iommu.has_fault());
        ensure!(came, "no record of a message to {outside:#x}");
        let head = FaultHead::new().with_cause(Cause::MsiWriteAccessFault.code());
        let expected = FaultRecord { head, iotval: outside, ..FaultRecord::default() };
        let records = core::iter::from_fn(|| bench.iommu.fault());
        let count = records.take_while(|record| *record == expected).count(); // REG-MSI-15, FQ-55, FQ-30
        ensure!((1..=2).contains(&count), "{count} records of a message to {outside:#x}");
        bench.no_fault()?;
        iommu::quiesce()?;
    }
    Ok(())
}

pub(super) fn a_full_queue_says_so_and_recovers(bench: &mut Bench) -> Verdict {
    bench.sv39()?;
    let queue = bench.pool.pages(1);
    for log2 in [1, 2, 3] {
        restart(bench, queue, log2, true)?;
        imsic::drain();
        for page in 0..1 << log2 {
            ensure!(!fqcsr().fqof() || bench.native, "overflow after {page} faults");
            provoke(bench, page)?;
        }
        let full = csr::within(1000, || fqcsr().fqof());
        ensure!(full && ipsr().fip() && imsic::comes(imsic::FAULTS), "{:x?} {:x?}", fqcsr(), ipsr()); // FQ-02, FQ-03
        // What was recorded is whole and in order, what came later is lost (FQ-06).
        let mut records = 0;
        let mut last = 0;
        while let Some(FaultRecord { iotval, .. }) = bench.iommu.fault() {
            ensure!(iotval >= last && iotval >= NOTHING, "{iotval:#x} after {last:#x}");
            last = iotval;
            records += 1;
        }
        ensure!(records == (1 << log2) - 1, "{records} records in a queue of {}", 1 << log2);
        // Room alone does not help: the bit has to go (FQ-04).
        provoke(bench, 100)?;
        bench.no_fault()?;
        write(Register::Fqcsr, fqcsr().into_bits());
        ensure!(!fqcsr().fqof(), "{:x?}", fqcsr());
        provoke(bench, 101)?;
        bench.expect(Cause::WritePageFault, WRITE, NOTHING + 101 * PAGE as u64)?;
    }
    Ok(())
}

pub(super) fn the_fault_queue_wraps(bench: &mut Bench) -> Verdict {
    bench.sv39()?;
    let queue = bench.pool.aligned(4, 4 * PAGE);
    // QEMU's IOMMU has 128 records for each of these faults.
    for log2 in if bench.native { 8..=9 } else { 3..=7 } {
        restart(bench, queue, log2, false)?;
        for page in 0..20 {
            provoke(bench, page)?;
            bench.expect(Cause::WritePageFault, WRITE, NOTHING + page * PAGE as u64)?;
        }
    }
    Ok(())
}

pub(super) fn a_queue_that_is_off_records_nothing(bench: &mut Bench) -> Verdict {
    bench.sv39()?;
    let queue = bench.pool.pages(1);
    queue.fill(pattern(1));
    restart(bench, queue, 4, true)?;
    write(Register::Fqcsr, Fqcsr::new().into_bits());
    let off = csr::within(1000, || !fqcsr().fqon());
    ensure!(off, "{:x?}", fqcsr());
    write(Register::Ipsr, Ipsr::new().with_fip(true).into_bits());
    imsic::drain();
    provoke(bench, 1)?;
    // REG-FQCSR-12, FQ-02: no record, no bit, no interrupt.
    ensure!(queue.holds(PAGE, pattern(1)), "a queue that is off was written");
    let csr = fqcsr();
    ensure!(!csr.fqof() && !csr.fqmf() && !ipsr().fip(), "{csr:x?} {:x?}", ipsr());
    // Turned on, it does not remember (REG-FQCSR-01).
    bench.iommu.start_faults(queue, 4, true)?;
    bench.no_fault()?;
    provoke(bench, 2)?;
    Ok(bench.expect(Cause::WritePageFault, WRITE, NOTHING + 2 * PAGE as u64)?)
}

pub(super) fn an_unwritable_queue_is_a_memory_fault(bench: &mut Bench) -> Verdict {
    bench.sv39()?;
    let queue = bench.pool.pages(1);
    for outside in [0, bench.ram_end, 1 << 45] {
        // At 0 the machine has something that takes the record.
        if bench.native && outside == 0 {
            continue;
        }
        restart(bench, Pages::elsewhere(outside), 4, true)?;
        provoke(bench, 1)?;
        let failed = csr::within(1000, || fqcsr().fqmf());
        ensure!(failed && ipsr().fip(), "{outside:#x}: {:x?} {:x?}", fqcsr(), ipsr()); // FQ-02, REG-FQCSR-04
        ensure!(iommu::read(Register::Fqt) == 0, "fqt moved");
        restart(bench, queue, 4, false)?;
        ensure!(!fqcsr().fqmf(), "{:x?}", fqcsr());
        provoke(bench, 2)?;
        bench.expect(Cause::WritePageFault, WRITE, NOTHING + 2 * PAGE as u64)?;
    }
    Ok(())
}

pub(super) fn dtf_hides_faults_of_translation_only(bench: &mut Bench) -> Verdict {
    let World { directory, space } = bench.sv39()?;
    let context = space.context();
    let hidden = BaseContext { tc: context.tc.with_dtf(true), ..context };
    bench.set_base_context(&directory, hidden)?;
    for page in 0..3 {
        provoke(bench, page)?;
        bench.no_fault()?; // FQ-46, DC-05
    }
    // What is about the context itself is told (FR-03).
    bench.stage(512, 1)?;
    directory.set_word(0, hidden.tc.with_v(false).into_bits());
    bench.iommu.flush()?;
    bench.blocked(Cause::DdtNotValid)?;
    bench.set_base_context(&directory, context)?;
    bench.restart()?;
    let page = NOTHING + leaf_bytes(1);
    let victim = bench.page();
    Ok(bench.write_faults(page, Cause::WritePageFault, victim)?)
}
