//! What the hypervisor answers to a guest's calls of its firmware. A guest has one hart, so that every call for other
//! harts is one for itself.

use sbi_spec::{base, dbcn, hsm, rfnc, spi, srst, time};

use riscv_viommu::Gpa;

use crate::hart;

/// A call: extension, function and arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    extension: usize,
    function: usize,
    arguments: [u64; 3],
}

/// What a call asks of the VM, beyond an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing: this is the answer.
    Answer(isize, u64),
    /// Print `length` bytes of guest memory.
    Print { at: Gpa, length: u64 },
    /// Print a byte.
    PrintByte(u8),
    /// The guest is done.
    Shutdown,
}

const OK: isize = 0;
const NOT_SUPPORTED: isize = -2;
pub(crate) const INVALID: isize = -3;
const ALREADY_AVAILABLE: isize = -6;

/// The implementation's number in the specification's list is nobody's yet.
const IMPLEMENTATION: u64 = 0x7669_6f6d;

impl Call {
    /// Takes a call from a guest's registers.
    pub(crate) const fn of(registers: &[u64; 32]) -> Self {
        Self {
            extension: registers[17] as usize,
            function: registers[16] as usize,
            arguments: [registers[10], registers[11], registers[12]],
        }
    }

    /// The extension's name, for the report.
    pub(crate) const fn name(self) -> &'static str {
        name(self.extension)
    }

    /// Carries out what the hart alone can do.
    pub(crate) fn decide(self) -> Request {
        let [first, second, third] = self.arguments;
        match (self.extension, self.function) {
            (base::EID_BASE, base::GET_SBI_SPEC_VERSION) => Request::Answer(OK, 2 << 24),
            (base::EID_BASE, base::GET_SBI_IMPL_ID) => Request::Answer(OK, IMPLEMENTATION),
            (base::EID_BASE, base::PROBE_EXTENSION) => Request::Answer(OK, u64::from(name(first as usize) != "other")),
            // Not told: version of the implementation, the machine's vendor, architecture and implementation.
            (base::EID_BASE, base::GET_SBI_IMPL_VERSION..=base::GET_MIMPID) => done(|| ()),
            (time::EID_TIME, time::SET_TIMER) => done(|| hart::set_guest_timer(first)),
            (spi::EID_SPI, spi::SEND_IPI) => for_this_hart(first, second, hart::interrupt_guest),
            (rfnc::EID_RFNC, rfnc::REMOTE_FENCE_I) => for_this_hart(first, second, hart::flush_instructions),
            (rfnc::EID_RFNC, rfnc::REMOTE_SFENCE_VMA | rfnc::REMOTE_SFENCE_VMA_ASID) => {
                for_this_hart(first, second, hart::flush_first_stage)
            }
            (hsm::EID_HSM, hsm::HART_GET_STATUS | hsm::HART_START) if first != 0 => Request::Answer(INVALID, 0),
            // Started.
            (hsm::EID_HSM, hsm::HART_GET_STATUS) => Request::Answer(OK, hsm::hart_state::STARTED as u64),
            (hsm::EID_HSM, hsm::HART_START) => Request::Answer(ALREADY_AVAILABLE, 0),
            (srst::EID_SRST, srst::SYSTEM_RESET) if first > srst::RESET_TYPE_WARM_REBOOT.into() => {
                Request::Answer(INVALID, 0)
            }
            // A guest that starts anew has ended here.
            (srst::EID_SRST, srst::SYSTEM_RESET) | (hsm::EID_HSM, hsm::HART_STOP) => Request::Shutdown,
            (dbcn::EID_DBCN, dbcn::CONSOLE_WRITE) if third == 0 => {
                Request::Print { at: Gpa::new(second), length: first }
            }
            (dbcn::EID_DBCN, dbcn::CONSOLE_WRITE) => Request::Answer(INVALID, 0),
            // Nobody types.
            (dbcn::EID_DBCN, dbcn::CONSOLE_READ) => Request::Answer(OK, 0),
            (dbcn::EID_DBCN, dbcn::CONSOLE_WRITE_BYTE) => Request::PrintByte(first as u8),
            _ => Request::Answer(NOT_SUPPORTED, 0),
        }
    }
}

fn done(action: impl FnOnce()) -> Request {
    action();
    Request::Answer(OK, 0)
}

/// A guest has hart 0 alone: a mask from there on, or all harts (a base of -1).
fn for_this_hart(mask: u64, base: u64, action: impl FnOnce()) -> Request {
    match (mask, base) {
        (1, 0) | (_, u64::MAX) => done(action),
        (0, _) => Request::Answer(OK, 0),
        _ => Request::Answer(INVALID, 0),
    }
}

const fn name(extension: usize) -> &'static str {
    match extension {
        base::EID_BASE => "BASE",
        time::EID_TIME => "TIME",
        spi::EID_SPI => "IPI",
        rfnc::EID_RFNC => "RFENCE",
        hsm::EID_HSM => "HSM",
        srst::EID_SRST => "SRST",
        dbcn::EID_DBCN => "DBCN",
        _ => "other",
    }
}
