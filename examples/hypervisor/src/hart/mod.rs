//! What belongs to one hart: its control registers, and the way into a guest and back.

pub(crate) mod csr;
mod guest;

pub(crate) use guest::{Exit, Guest};

use csr::{clear, read, set, write};

/// Interrupt identity of the IOMMU's fault queue in the hypervisor's own interrupt file.
pub(crate) const FAULT_IDENTITY: u32 = 1;

/// Ticks of the longest wait: a hundredth of a second on QEMU.
const WAIT: u64 = 100_000;

/// Registers of an interrupt file, selected by `siselect`.
const EIDELIVERY: u64 = 0x70;
const EITHRESHOLD: u64 = 0x72;
const EIE0: u64 = 0xc0;

/// Prepares this hart for a guest whose second stage has its root at `root`.
pub(crate) fn prepare(root: u64, vmid: u64) {
    // Exceptions that concern the guest alone go to it; calls, and what its second stage stops, come here.
    let ours: u64 = 1 << 9 | 1 << 10 | 0xf << 20;
    write!(csr::HEDELEG, !ours);
    write!(csr::HIDELEG, 1 << 2 | 1 << 6 | 1 << 10);
    write!(csr::HCOUNTEREN, u64::MAX);
    // All the hart has, but what this hypervisor would have to save (shadow stacks, landing pads, double traps, pointer
    // masking), and with a flush where the guest would discard what others wrote (CBIE = 01).
    write!(csr::HENVCFG, !(1 << 59 | 1 << 2 | 1 << 3 | 3 << 32 | 1 << 5));
    write!(csr::HSTATEEN0, u64::MAX);
    write!(csr::VSTIMECMP, u64::MAX);
    // What no reset sets.
    write!(csr::HVIP, 0);
    write!(csr::HGEIE, 0);
    write!(csr::HTIMEDELTA, 0);
    write!(csr::VSSTATUS, 0);
    write!(csr::VSIE, 0);
    write!(csr::VSATP, 0);
    let sv39x4 = 8 << 60;
    write!(csr::HGATP, sv39x4 | vmid << 44 | root >> 12);
    flush_second_stage();
    // The hypervisor's own interrupts: from its interrupt file, from other harts, from its timer.
    for (register, value) in [(EIDELIVERY, 1), (EITHRESHOLD, 0), (EIE0, 1 << FAULT_IDENTITY)] {
        write!(csr::SISELECT, register);
        write!(csr::SIREG, value);
    }
    write!(csr::STIMECMP, u64::MAX);
    write!(csr::SIE, 1 << 1 | 1 << 5 | 1 << 9);
}

/// Drops what this hart has cached of second stages.
pub(crate) fn flush_second_stage() {
    // SAFETY: HFENCE.GVMA for all guests; it only drops.
    unsafe { core::arch::asm!(".insn r 0x73, 0, 0x31, x0, x0, x0", options(nostack)) };
}

/// Raises or lowers the external interrupt of the guest that runs on this hart, beside that of its interrupt file.
pub(crate) fn set_guest_external(level: bool) {
    // The other bits are interrupts the guest has been sent and not taken yet.
    if level {
        set!(csr::HVIP, 1 << 10);
    } else {
        clear!(csr::HVIP, 1 << 10);
    }
}

/// Takes the identity of the most urgent interrupt of the hypervisor's own file.
pub(crate) fn claim() -> u32 {
    (csr::swap!(csr::STOPEI, 0) >> 16) as u32
}

/// Forgets the interrupt another hart sent.
pub(crate) fn clear_software_interrupt() {
    clear!(csr::SIP, 1 << 1);
}

/// Now, in ticks.
pub(crate) fn time() -> u64 {
    read!(csr::TIME)
}

/// Comes back from the guest in a while, at the latest.
pub(crate) fn come_back(ticks: u64) {
    write!(csr::STIMECMP, time().saturating_add(ticks));
}

/// The timer has brought the hart back.
pub(crate) fn clear_timer() {
    write!(csr::STIMECMP, u64::MAX);
}

/// Waits for an interrupt of the hypervisor, which is then taken, but not for long.
pub(crate) fn wait() {
    come_back(WAIT);
    // SAFETY: only waits; nothing is taken, for interrupts are off outside guests.
    unsafe { core::arch::asm!("wfi", options(nostack)) };
    clear_timer();
    clear_software_interrupt();
    claim();
}

/// Timer of the guest that runs on this hart.
pub(crate) fn set_guest_timer(at: u64) {
    write!(csr::VSTIMECMP, at);
}

/// A software interrupt for the guest that runs on this hart.
pub(crate) fn interrupt_guest() {
    set!(csr::HVIP, 1 << 2);
}

/// Drops what this hart has cached of its guest's first stage.
pub(crate) fn flush_first_stage() {
    // SAFETY: HFENCE.VVMA for all address spaces of the guest; it only drops.
    unsafe { core::arch::asm!(".insn r 0x73, 0, 0x11, x0, x0, x0", options(nostack)) };
}

/// Lets this hart fetch what its guest has stored.
pub(crate) fn flush_instructions() {
    // SAFETY: only orders.
    unsafe { core::arch::asm!("fence.i", options(nostack)) };
}
