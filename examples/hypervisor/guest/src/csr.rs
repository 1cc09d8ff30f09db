//! The hart: time, order of memory accesses, and the registers of its interrupt file.
#![expect(unsafe_code, reason = "instructions Rust has no words for")]

use core::arch::asm;
use core::hint;

/// Ticks of `time` in a millisecond.
const TICKS: u64 = 10_000;

/// The `time` counter.
pub(crate) fn time() -> u64 {
    let now;
    // SAFETY: reads a counter.
    unsafe { asm!("rdtime {}", out(reg) now, options(nomem, nostack)) };
    now
}

/// Waits until `done`, or gives up after some milliseconds; whether it is done.
pub(crate) fn within(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = time() + limit * TICKS;
    loop {
        if done() {
            return true;
        }
        if time() > end {
            return done();
        }
        hint::spin_loop();
    }
}

/// Orders every access to memory and devices before it before every one after it.
pub(crate) fn barrier() {
    // SAFETY: a fence.
    unsafe { asm!("fence iorw, iorw", options(nostack)) };
}

/// Writes an indirect register of the interrupt file.
pub(crate) fn write_indirect(select: u64, value: u64) {
    // SAFETY: `siselect` (0x150) and `sireg` (0x151) reach the hart's own interrupt file only, whose interrupts are
    // polled, so that no code is run by them.
    unsafe { asm!("csrw 0x150, {}", "csrw 0x151, {}", in(reg) select, in(reg) value, options(nomem, nostack)) };
}

/// Whether an external interrupt is pending, by message or by wire.
pub(crate) fn external_pending() -> bool {
    let pending: u64;
    // SAFETY: reads `sip`.
    unsafe { asm!("csrr {}, sip", out(reg) pending, options(nomem, nostack)) };
    pending & 1 << 9 != 0
}

/// Whether a software interrupt is pending; it is not after this.
pub(crate) fn take_software_interrupt() -> bool {
    let pending: u64;
    // SAFETY: clears a pending bit of `sip`; no interrupt is enabled.
    unsafe { asm!("csrrc {}, sip, {}", out(reg) pending, in(reg) 1 << 1, options(nomem, nostack)) };
    pending & 1 << 1 != 0
}

/// Takes the most urgent pending interrupt identity, 0 if there is none.
pub(crate) fn claim() -> u16 {
    let top: u64;
    // SAFETY: `stopei` (0x15c): a write clears the pending bit of the identity that is read.
    unsafe { asm!("csrrw {}, 0x15c, zero", out(reg) top, options(nomem, nostack)) };
    (top >> 16) as u16 & 0x7ff
}
