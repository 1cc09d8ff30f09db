//! The way into a guest and back.

use core::mem::offset_of;

use super::csr::{self, read, write};

/// `sstatus`: privilege before the trap (1 = supervisor), floating point and vectors in use.
const SPP: u64 = 1 << 8;
const FS_DIRTY: u64 = 3 << 13;
const VS_DIRTY: u64 = 3 << 9;
const SIE: u64 = 1 << 1;
const SPIE: u64 = 1 << 5;
/// `hstatus`: the trap came from a guest; its privilege counts for HLV; which interrupt file the guest has.
const SPV: u64 = 1 << 7;
const SPVP: u64 = 1 << 8;
const VGEIN_1: u64 = 1 << 12;
/// `hstatus.VSXL`: 64 bits.
const VSXL_64: u64 = 2 << 32;

/// Registers of a guest that does not run. All others of the guest stay in the hart: it has no second guest.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Guest {
    /// x0 to x31.
    pub(crate) registers: [u64; 32],
    pub(crate) pc: u64,
    sstatus: u64,
    hstatus: u64,
    host_sp: u64,
}

/// Why a guest stopped running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// `scause`.
    pub(crate) cause: u64,
    /// `stval`.
    pub(crate) value: u64,
    /// The guest-physical address of a guest-page fault.
    pub(crate) address: u64,
    /// `htinst`.
    pub(crate) instruction: u64,
}

impl Guest {
    /// A guest that starts at `pc` in supervisor mode, with what its boot protocol wants in a0 and a1.
    pub(crate) fn new(pc: u64, a0: u64, a1: u64) -> Self {
        let mut registers = [0; 32];
        (registers[10], registers[11]) = (a0, a1);
        let sstatus = SPP | FS_DIRTY | VS_DIRTY;
        Self { registers, pc, sstatus, hstatus: SPV | SPVP | VGEIN_1 | VSXL_64, host_sp: 0 }
    }

    /// Runs the guest until it stops.
    pub(crate) fn run(&mut self) -> Exit {
        // SAFETY: the assembly below saves what the caller needs in its frame, and writes to `self` only.
        unsafe { enter_guest(self) };
        let value = read!(csr::STVAL);
        Exit {
            cause: read!(csr::SCAUSE),
            value,
            address: read!(csr::HTVAL) << 2 | value & 3,
            instruction: read!(csr::HTINST),
        }
    }

    /// Steps over the instruction that stopped the guest.
    pub(crate) fn skip(&mut self, length: u64) {
        self.pc = self.pc.wrapping_add(length);
    }

    /// Gives the guest an exception of its own.
    pub(crate) fn inject(&mut self, cause: u64, value: u64) {
        write!(csr::VSEPC, self.pc);
        write!(csr::VSCAUSE, cause);
        write!(csr::VSTVAL, value);
        let status = read!(csr::VSSTATUS);
        let enabled = if status & SIE == 0 { 0 } else { SPIE };
        write!(csr::VSSTATUS, status & !(SIE | SPIE | SPP) | enabled | self.sstatus & SPP);
        self.sstatus |= SPP;
        self.hstatus |= SPVP;
        self.pc = read!(csr::VSTVEC) & !3;
    }
}

unsafe extern "C" {
    fn enter_guest(guest: *mut Guest);
}

// The frame on the hypervisor's stack holds ra, gp, tp and s0 to s11: what a called function must keep, without the
// floating-point registers, which are the guest's: the hypervisor computes with integers only.
core::arch::global_asm!(
    ".macro each_guest_register op",
    ".irp n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "\\op x\\n, 8*\\n(a0)",
    ".endr",
    ".endm",
    ".macro each_host_register op",
    ".irp n, 1,3,4,8,9",
    "\\op x\\n, 8*\\n(sp)",
    ".endr",
    ".irp n, 18,19,20,21,22,23,24,25,26,27",
    "\\op x\\n, 8*\\n(sp)",
    ".endr",
    ".endm",
    ".text",
    ".global enter_guest",
    "enter_guest:",
    "addi sp, sp, -256",
    "each_host_register sd",
    "sd sp, {host_sp}(a0)",
    "csrw sscratch, a0",
    "la t0, guest_exit",
    "csrw stvec, t0",
    "ld t0, {pc}(a0)",
    "csrw sepc, t0",
    "ld t0, {sstatus}(a0)",
    "csrw sstatus, t0",
    "ld t0, {hstatus}(a0)",
    "csrw 0x600, t0",
    "each_guest_register ld",
    "ld a0, 80(a0)",
    "sret",
    ".balign 4",
    "guest_exit:",
    "csrrw a0, sscratch, a0",
    "each_guest_register sd",
    "csrr t0, sscratch",
    "sd t0, 80(a0)",
    "csrr t0, sepc",
    "sd t0, {pc}(a0)",
    "csrr t0, sstatus",
    "sd t0, {sstatus}(a0)",
    "csrr t0, 0x600",
    "sd t0, {hstatus}(a0)",
    "la t0, host_trap",
    "csrw stvec, t0",
    "ld sp, {host_sp}(a0)",
    "each_host_register ld",
    "addi sp, sp, 256",
    "ret",
    pc = const offset_of!(Guest, pc),
    sstatus = const offset_of!(Guest, sstatus),
    hstatus = const offset_of!(Guest, hstatus),
    host_sp = const offset_of!(Guest, host_sp),
);
