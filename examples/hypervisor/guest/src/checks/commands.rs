//! The command queue.

use riscv_viommu::cmdq::{Command, IofenceC, Iotinval, PageRange, RawCommand};
use riscv_viommu::regs::{Cqcsr, Fctl, Igs, Ipsr, Register};
use riscv_viommu::{DeviceId, Gpa, Gscid, Iova, ProcessId, Pscid};

use crate::bench::{Bench, DEVICE};
use crate::csr;
use crate::imsic::{self, IMSIC};
use crate::iommu::{self, cqcsr, ipsr, is_stopped, read, write};
use crate::memory::{PAGE, Pages, pattern};
use crate::verdict::{Verdict, Why, ensure, skip, why};

const FENCE: IofenceC = IofenceC::READS_AND_WRITES;
const IOVA: u64 = 0x11_2233_4000;
const OLD: u64 = 0x1111_2222_3333_4444;

/// A fence that leaves a mark in a page.
fn mark(page: Pages, number: u32) -> RawCommand {
    Command::IofenceC(FENCE.with_store(page.at(number as usize * 4), 0xace0_0000 | number)).encode()
}

/// How many marks are there from the first on.
fn marks(page: Pages) -> u32 {
    let half = |number: u32| (page.word(number as usize / 2) >> (number % 2 * 32)) as u32;
    (0..512).take_while(|&number| half(number) == 0xace0_0000 | number).count() as u32
}

pub(super) fn the_command_queue_wraps_at_every_size(bench: &mut Bench) -> Verdict {
    let queue = bench.pool.aligned(4, 4 * PAGE);
    for log2 in 1..=10 {
        iommu::stop()?;
        bench.iommu.start_commands(queue, log2, false)?;
        ensure!(read(Register::Cqh) == 0, "cqh {} when turned on", read(Register::Cqh)); // REG-CQCSR-01
        let page = bench.pool.pages(1);
        let (size, mut number) = (1 << log2, 0);
        // Full batches, and one that ends on the last entry (CQX-07, Q-02, Q-04).
        for batch in [size - 1, 1, 1, size - 1, size / 2, size - 1] {
            for _ in 0..batch {
                bench.iommu.push(mark(page, number % 512));
                number += 1;
            }
            bench.iommu.doorbell();
            bench.iommu.drain()?;
        }
        ensure!(marks(page) == number.min(512), "{} fences of {number} in a queue of {size}", marks(page));
    }
    Ok(())
}

pub(super) fn commands_wait_for_the_queue_to_be_on(bench: &mut Bench) -> Verdict {
    if bench.native {
        skip!("QEMU's IOMMU keeps no index while the queue is off");
    }
    iommu::stop()?;
    let page = bench.pool.pages(1);
    // The queue's memory still holds what ran before; the new command is where the queue begins.
    bench.iommu.patch(0, mark(page, 0));
    write(Register::Cqt, 1_u32);
    ensure!(marks(page) == 0, "a queue that is off did something"); // REG-QI-09
    write(Register::Cqcsr, Cqcsr::new().with_cqen(true).into_bits());
    let done = crate::csr::within(1000, || read(Register::Cqh) == 1);
    ensure!(done && marks(page) == 1, "turned on, the queue does not begin"); // REG-CQCSR-20
    // A write of the same value starts nothing anew (REG-CQCSR-26).
    write(Register::Cqcsr, Cqcsr::new().with_cqen(true).into_bits());
    ensure!(read(Register::Cqh) == 1, "cqh is {}", read(Register::Cqh));
    Ok(())
}

pub(super) fn a_fence_stores_four_bytes_and_no_more(bench: &mut Bench) -> Verdict {
    let page = bench.pool.pages(1);
    page.fill(|_| OLD);
    let mut plain = FENCE;
    (plain.pr, plain.pw) = (false, false);
    let mut reads = plain;
    reads.pr = true;
    for (fence, at, expected) in [
        (plain, 8, 0x1111_2222_89ab_cdef),
        (reads, 20, 0x89ab_cdef_3333_4444),
        (FENCE, PAGE - 4, 0x89ab_cdef_3333_4444),
    ] {
        let command = Command::IofenceC(fence.with_store(page.at(at), 0x89ab_cdef)).encode();
        bench.iommu.push(command);
        ensure!(page.word(at / 8) == OLD, "stored before the doorbell");
        bench.iommu.doorbell();
        bench.iommu.drain()?;
        // The store is there once cqh has passed (FEN-01, FEN-04, CQ-26).
        ensure!(page.word(at / 8) == expected, "{:#x} at {at:#x}", page.word(at / 8));
        page.set_word(at / 8, OLD);
    }
    ensure!(page.holds(PAGE, |_| OLD), "other bytes were changed");
    Ok(())
}

pub(super) fn a_fence_can_store_to_the_interrupt_file(bench: &mut Bench) -> Verdict {
    let fence = FENCE.with_store(Gpa::new(IMSIC), imsic::FENCE.into());
    bench.iommu.run(&[Command::IofenceC(fence)])?;
    ensure!(imsic::comes(imsic::FENCE), "no message"); // CQ-26, IRQ-16
    Ok(())
}

pub(super) fn a_fence_with_a_wire_needs_wires(bench: &mut Bench) -> Verdict {
    let mut fence = FENCE;
    fence.wsi = true;
    // CMD-09, QCMD-03.
    bench.iommu.push(Command::IofenceC(fence).encode());
    bench.iommu.doorbell();
    let (head, csr) = bench.iommu.settle();
    if !is_stopped(csr) && bench.native {
        skip!("QEMU's IOMMU ignores WSI");
    }
    ensure!(head == 4 && csr.cmd_ill() && !csr.fence_w_ip(), "{csr:x?} without wires");
    if bench.iommu.capabilities.igs() != Igs::Both {
        return Ok(());
    }
    iommu::quiesce()?;
    write(Register::Fctl, Fctl::new().with_wsi(true).into_bits());
    let queue = bench.pool.pages(1);
    bench.iommu.start_commands(queue, 6, true)?;
    bench.iommu.run(&[Command::IofenceC(fence)])?;
    ensure!(cqcsr().fence_w_ip() && ipsr().cip(), "{:x?} {:x?}", cqcsr(), ipsr()); // FEN-06
    imsic::drain();
    ensure!(csr::external_pending(), "the wire is not up"); // REG-WSI-01
    // The queue goes on; cleared in the right order, the bits stay cleared (CQ-21, IRQ-17).
    bench.iommu.run(&[])?;
    write(Register::Cqcsr, Cqcsr::new().with_cqen(true).with_cie(true).with_fence_w_ip(true).into_bits());
    write(Register::Ipsr, Ipsr::new().with_cip(true).into_bits());
    ensure!(!cqcsr().fence_w_ip() && !ipsr().cip(), "{:x?} {:x?}", cqcsr(), ipsr());
    ensure!(!csr::external_pending(), "the wire is still up");
    Ok(())
}

/// Clears what stopped the queue.
fn resume(csr: Cqcsr) {
    write(Register::Cqcsr, csr.into_bits());
}

pub(super) fn an_illegal_command_stops_the_queue_at_itself(bench: &mut Bench) -> Verdict {
    let page = bench.pool.pages(2);
    bench.iommu.start_commands_anew(page.page(1))?;
    for number in 0..6 {
        bench.iommu.push(mark(page, number));
    }
    bench.iommu.patch(2, RawCommand::default());
    bench.iommu.patch(4, RawCommand { low: 0x7f, high: 0 });
    bench.iommu.doorbell();
    // CQ-11, CQX-04: nothing from it on; CQ-16: clearing alone does not skip it.
    for _ in 0..2 {
        let (head, csr) = bench.iommu.settle();
        ensure!(head == 2 && csr.cmd_ill() && !csr.cqmf() && csr.cqon(), "cqh {head}, {csr:x?}");
        ensure!(marks(page) == 2, "{} fences", marks(page));
        resume(csr);
    }
    // Mended in place, it is fetched again (CQX-05, CQ-17).
    bench.iommu.patch(2, mark(page, 2));
    resume(cqcsr());
    let (head, csr) = bench.iommu.settle();
    ensure!(head == 4 && csr.cmd_ill() && marks(page) == 4, "cqh {head}, {csr:x?}, {} fences", marks(page));
    // A doorbell does not start a stopped queue (CQ-02).
    bench.iommu.doorbell();
    ensure!(marks(page) == 4, "a stopped queue went on");
    bench.iommu.patch(4, mark(page, 4));
    resume(cqcsr());
    bench.iommu.drain()?;
    ensure!(marks(page) == 6, "{} fences", marks(page));
    Ok(())
}

/// Tries one command in a queue of its own; whether it was refused.
fn refused(bench: &mut Bench, queue: Pages, command: RawCommand) -> Result<bool, Why> {
    bench.iommu.start_commands_anew(queue)?;
    bench.iommu.push(command);
    bench.iommu.doorbell();
    let (head, csr) = bench.iommu.settle();
    ensure!(head == 1 || is_stopped(csr), "neither done nor refused: cqh {head}, {csr:x?}");
    ensure!(!csr.cqmf() && !csr.cmd_to(), "{csr:x?}");
    Ok(csr.cmd_ill())
}

pub(super) fn every_illegal_encoding_is_refused(bench: &mut Bench) -> Verdict {
    let ats = bench.iommu.capabilities.ats();
    let vma = Command::IotinvalVma(Iotinval::ALL).encode();
    let gvma = Command::IotinvalGvma(Iotinval::ALL).encode();
    let fence = Command::IofenceC(FENCE).encode();
    let ddt = Command::IodirInvalDdt(None).encode();
    let pdt = Command::IodirInvalPdt(DEVICE, ProcessId::truncate(0)).encode();
    let low = |command: RawCommand, bit: u32| RawCommand { low: command.low | 1 << bit, ..command };
    let high = |command: RawCommand, bit: u32| RawCommand { high: command.high | 1 << (bit - 64), ..command };
    let opcode = |low: u64| RawCommand { low, high: 0 };
    let queue = bench.pool.pages(1);
    let mut check = |command: RawCommand, what: &str| -> Verdict {
        let refused = refused(bench, queue, command)? || bench.excused();
        ensure!(refused, "{what}: {command:x?} was carried out");
        Ok(())
    };
    // CMD-01, QCMD-08, QCMD-09: reserved, custom and unsupported opcodes and functions.
    for number in [0, 5, 63, 64, 127] {
        check(opcode(number), "opcode")?;
    }
    for (number, functions) in [(1, 2..8), (2, 1..8), (3, 2..8), (4, if ats { 2..8 } else { 0..8 })] {
        for function in functions {
            check(opcode(function << 7 | number), "function")?;
        }
    }
    // CMD-03, CMD-04.
    for bit in [11].into_iter().chain(35..44).chain(60..64) {
        check(low(vma, bit), "IOTINVAL.VMA")?;
        check(low(gvma, bit), "IOTINVAL.GVMA")?;
    }
    for bit in (64..73).chain(126..128) {
        check(high(vma, bit), "IOTINVAL.VMA")?;
    }
    check(low(gvma, 32), "IOTINVAL.GVMA with PSCV")?; // CMD-06
    // CMD-08.
    for bit in 14..32 {
        check(low(fence, bit), "IOFENCE.C")?;
    }
    for bit in 126..128 {
        check(high(fence, bit), "IOFENCE.C")?;
    }
    // CMD-10, CMD-11: in INVAL_DDT also the PID.
    for bit in [10, 11, 12, 31, 32, 34, 39] {
        check(low(ddt, bit), "IODIR.INVAL_DDT")?;
    }
    for bit in [10, 11, 32, 34, 39] {
        check(low(pdt, bit), "IODIR.INVAL_PDT")?;
    }
    for bit in [64, 100, 127] {
        check(high(ddt, bit), "IODIR.INVAL_DDT")?;
        check(high(pdt, bit), "IODIR.INVAL_PDT")?;
    }
    check(RawCommand { low: pdt.low & !(1 << 33), high: 0 }, "IODIR.INVAL_PDT without DV") // CMD-12
}

pub(super) fn legal_commands_with_odd_operands_are_carried_out(bench: &mut Bench) -> Verdict {
    // Ids the IOMMU knows nothing of, and addresses that are none (CMD-13, VMA-15, QCMD-13, VC-11).
    let (gscid, pscid) = (Gscid::truncate(0xffff), Pscid::truncate(0xf_ffff));
    let [low, high] = [Iova::new(0), Iova::new(u64::MAX)];
    let all = Iotinval::ALL;
    let mut commands = heapless::Vec::<Command, 16>::new();
    let mut add = |more: &[Command]| commands.extend_from_slice(more).expect("room");
    add(&[
        Command::IotinvalVma(all.with_gscid(gscid).with_pscid(pscid)),
        Command::IotinvalVma(all.with_pscid(pscid).with_range(PageRange::page(high))),
        Command::IotinvalGvma(all.with_gscid(gscid).with_range(PageRange::page(low))),
        Command::IodirInvalDdt(Some(DeviceId::truncate(0xff_ffff))),
        Command::IodirInvalPdt(DEVICE, ProcessId::truncate(0xff)),
    ]);
    if bench.iommu.capabilities.s() && bench.iommu.capabilities.nl() {
        // The whole space, leaf entries and others (VMA-13, VMA-14).
        let whole = PageRange::covering(low, high);
        add(&[
            Command::IotinvalVma(all.with_range(whole)),
            Command::IotinvalVma(all.with_range(whole.with_non_leaf(true))),
            Command::IotinvalGvma(all.with_gscid(gscid).with_range(whole)),
        ]);
    }
    Ok(bench.iommu.run(&commands)?)
}

pub(super) fn operands_without_their_valid_bit_may_hold_anything(bench: &mut Bench) -> Verdict {
    let queue = bench.pool.pages(1);
    let caps = bench.iommu.capabilities;
    // NL and S are operands only where they are offered (CMD-05).
    let (nl, s) = (u64::from(caps.nl()) << 34, u64::from(caps.s()) << 9);
    let (pscid, gscid, did) = (0xf_ffff << 12, 0xffff << 44, 0xff_ffff << 40);
    let address = RawCommand { low: nl, high: ((1 << 52) - 1) << 10 | s };
    let gscid_valid = RawCommand { low: 1 << 33, high: 0 };
    let gvma_address = RawCommand { low: address.low | 1 << 10, ..address };
    let both = |command: RawCommand, more: RawCommand| RawCommand {
        low: command.low | more.low,
        high: command.high | more.high,
    };
    let low = |command: RawCommand, more: u64| both(command, RawCommand { low: more, high: 0 });
    let vma = Command::IotinvalVma(Iotinval::ALL).encode();
    let gvma = Command::IotinvalGvma(Iotinval::ALL).encode();
    let fence = Command::IofenceC(FENCE).encode();
    let world = bench.sv39()?;
    let pages = bench.pool.pages(2);
    (0..2).for_each(|index| pages.page(index).fill(pattern(index as u64)));
    for (turn, (what, command)) in [
        ("PSCID without PSCV", low(vma, pscid)), // CMD-07
        ("GSCID without GV", low(vma, gscid)),
        ("ADDR without AV", both(vma, address)),
        ("all three", low(both(vma, address), pscid | gscid)),
    ]
    .into_iter()
    .enumerate()
    {
        world.space.map(&mut bench.pool, IOVA, pages.page(turn % 2).gpa());
        ensure!(!refused(bench, queue, command)?, "{what}: {command:x?} is refused");
        bench.iommu.run(&[])?;
        // Nor do they narrow it: the translation used last goes (VMA-01).
        bench.reads(IOVA, turn as u64 % 2).map_err(|why| why!("{what}: {why}"))?;
    }
    for (what, command) in [
        ("GVMA: PSCID without PSCV", low(gvma, pscid)),
        ("GVMA: GSCID without GV", low(gvma, gscid)),
        ("GVMA: AV and ADDR without GV", both(gvma, gvma_address)),
        ("GVMA: ADDR without AV", both(both(gvma, gscid_valid), address)),
        ("INVAL_DDT: DID without DV", low(Command::IodirInvalDdt(None).encode(), did)), // CMD-11
        ("fence: DATA without AV", low(fence, 0xffff_ffff << 32)),
        ("fence: ADDR without AV", RawCommand { high: (1 << 62) - 1, ..fence }),
    ] {
        ensure!(!refused(bench, queue, command)?, "{what}: {command:x?} is refused");
    }
    Ok(())
}

pub(super) fn a_fence_outside_memory_stops_and_is_done_again(bench: &mut Bench) -> Verdict {
    let page = bench.pool.pages(2);
    for outside in [0, bench.ram_end, 1 << 45] {
        page.fill(|_| 0);
        bench.iommu.start_commands_anew(page.page(1))?;
        for number in 0..3 {
            bench.iommu.push(mark(page, number));
        }
        bench.iommu.patch(1, Command::IofenceC(FENCE.with_store(Gpa::new(outside), 7)).encode());
        bench.iommu.doorbell();
        for _ in 0..2 {
            let (head, csr) = bench.iommu.settle();
            ensure!(head == 1 && csr.cqmf() && !csr.cmd_ill(), "{outside:#x}: cqh {head}, {csr:x?}"); // CQ-13, FEN-05
            ensure!(marks(page) == 1, "{} fences", marks(page));
            resume(csr);
        }
        bench.iommu.patch(1, mark(page, 1));
        resume(cqcsr());
        bench.iommu.drain()?; // CQ-19
        ensure!(marks(page) == 3, "{} fences", marks(page));
    }
    Ok(())
}

pub(super) fn an_unreadable_queue_is_a_memory_fault(bench: &mut Bench) -> Verdict {
    let queue = bench.pool.pages(1);
    for outside in [0, bench.ram_end, 1 << 45] {
        iommu::stop()?;
        bench.iommu.start_commands(Pages::elsewhere(outside), 4, false)?;
        write(Register::Cqt, 3_u32);
        let (head, csr) = bench.iommu.settle();
        ensure!(head == 0 && csr.cqmf() && !csr.cmd_ill(), "{outside:#x}: cqh {head}, {csr:x?}"); // CQ-12, CQX-03
        // Off and on again, the error is gone (REG-CQCSR-01).
        bench.iommu.start_commands_anew(queue)?;
        ensure!(!is_stopped(cqcsr()), "{:x?}", cqcsr());
        bench.iommu.run(&[])?;
    }
    Ok(())
}

pub(super) fn an_error_of_the_command_queue_sends_a_message(bench: &mut Bench) -> Verdict {
    iommu::stop()?;
    let queue = bench.pool.pages(1);
    bench.iommu.start_commands(queue, 4, true)?;
    bench.iommu.run(&[])?;
    ensure!(!ipsr().cip() && imsic::silent(), "a message without a cause");
    bench.iommu.push(RawCommand::default());
    bench.iommu.doorbell();
    ensure!(imsic::comes(imsic::COMMANDS), "no message"); // IRQ-02, IRQ-07
    ensure!(ipsr().cip(), "{:x?}", ipsr());
    // The error is still there: cleared, the bit comes back with another message (IRQ-08, REG-IPSR-09).
    let cip = Ipsr::new().with_cip(true);
    write(Register::Ipsr, cip.into_bits());
    let again = imsic::comes(imsic::COMMANDS) && ipsr().cip();
    ensure!(again || bench.excused(), "no second message for an error that stays");
    bench.iommu.patch(1, Command::IofenceC(FENCE).encode());
    resume(cqcsr());
    bench.iommu.drain()?;
    ensure!(ipsr().cip() || bench.excused(), "clearing the error cleared cip"); // REG-IPSR-08
    write(Register::Ipsr, cip.into_bits());
    ensure!(!ipsr().cip() && imsic::silent(), "{:x?} without a cause", ipsr());
    Ok(())
}

pub(super) fn a_masked_message_waits(bench: &mut Bench) -> Verdict {
    if bench.native {
        skip!("QEMU's IOMMU has no masks");
    }
    iommu::stop()?;
    let queue = bench.pool.pages(1);
    iommu::route_interrupts(IMSIC, true);
    bench.iommu.start_commands(queue, 4, true)?;
    bench.iommu.push(RawCommand::default());
    bench.iommu.doorbell();
    bench.iommu.settle();
    ensure!(ipsr().cip() && imsic::silent(), "masked: {:x?}", ipsr()); // IRQ-10
    // It goes to where the entry says now (REG-MSI-10, REG-MSI-11).
    iommu::mask_commands(false);
    ensure!(imsic::comes(imsic::COMMANDS), "unmasked, it does not come");
    iommu::mask_commands(false);
    ensure!(imsic::silent(), "a second message"); // REG-MSI-13
    Ok(())
}
