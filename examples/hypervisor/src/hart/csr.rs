//! Control and status registers, by number: the assembler knows the hypervisor's only with an option it is not given.

pub(crate) const SIE: u16 = 0x104;
pub(crate) const SCAUSE: u16 = 0x142;
pub(crate) const STVAL: u16 = 0x143;
pub(crate) const SIP: u16 = 0x144;
pub(crate) const STIMECMP: u16 = 0x14d;
pub(crate) const SISELECT: u16 = 0x150;
pub(crate) const SIREG: u16 = 0x151;
pub(crate) const STOPEI: u16 = 0x15c;
pub(crate) const VSSTATUS: u16 = 0x200;
pub(crate) const VSIE: u16 = 0x204;
pub(crate) const VSTVEC: u16 = 0x205;
pub(crate) const VSEPC: u16 = 0x241;
pub(crate) const VSCAUSE: u16 = 0x242;
pub(crate) const VSTVAL: u16 = 0x243;
pub(crate) const VSTIMECMP: u16 = 0x24d;
pub(crate) const VSATP: u16 = 0x280;
pub(crate) const HEDELEG: u16 = 0x602;
pub(crate) const HIDELEG: u16 = 0x603;
pub(crate) const HTIMEDELTA: u16 = 0x605;
pub(crate) const HCOUNTEREN: u16 = 0x606;
pub(crate) const HGEIE: u16 = 0x607;
pub(crate) const HENVCFG: u16 = 0x60a;
pub(crate) const HSTATEEN0: u16 = 0x60c;
pub(crate) const HTVAL: u16 = 0x643;
pub(crate) const HVIP: u16 = 0x645;
pub(crate) const HTINST: u16 = 0x64a;
pub(crate) const HGATP: u16 = 0x680;
pub(crate) const TIME: u16 = 0xc01;

/// Reads a register.
macro_rules! read {
    ($csr:expr) => {{
        let value: u64;
        // SAFETY: reading has no effect that memory or control flow would see.
        unsafe { core::arch::asm!("csrr {}, {}", out(reg) value, const $csr, options(nostack)) };
        value
    }};
}

/// Writes a register.
macro_rules! write {
    ($csr:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: what is written here changes what guests may do and which interrupts come, not this hart's own state.
        unsafe { core::arch::asm!("csrw {}, {}", const $csr, in(reg) value, options(nostack)) };
    }};
}

/// Sets bits of a register.
macro_rules! set {
    ($csr:expr, $bits:expr) => {{
        let bits: u64 = $bits;
        // SAFETY: as for `write`.
        unsafe { core::arch::asm!("csrs {}, {}", const $csr, in(reg) bits, options(nostack)) };
    }};
}

/// Clears bits of a register.
macro_rules! clear {
    ($csr:expr, $bits:expr) => {{
        let bits: u64 = $bits;
        // SAFETY: as for `write`.
        unsafe { core::arch::asm!("csrc {}, {}", const $csr, in(reg) bits, options(nostack)) };
    }};
}

/// Writes a register and answers what it had.
macro_rules! swap {
    ($csr:expr, $value:expr) => {{
        let value: u64 = $value;
        let old: u64;
        // SAFETY: as for `write`.
        unsafe { core::arch::asm!("csrrw {}, {}, {}", out(reg) old, const $csr, in(reg) value, options(nostack)) };
        old
    }};
}

pub(crate) use {clear, read, set, swap, write};
