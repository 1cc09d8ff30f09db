//! What the guest put into the queue: whether it is read, and by how much at a time.

use super::RawCommand;
use crate::backend::GuestMemory;
use crate::error::MemoryFault;
use crate::mem::View;
use crate::regs::Cqcsr;
use crate::regs::file::Registers;
use crate::ring::Ring;

/// Commands read at once: bytes of one load.
pub(super) const SPAN: usize = 16;

/// Whether a command may be fetched (rule CQ-02).
pub(super) const fn runs(csr: Cqcsr) -> bool {
    csr.cqen() && csr.cqon() && !csr.cqmf() && !csr.cmd_to() && !csr.cmd_ill()
}

/// Reads the commands at the head, one load where they are contiguous. A load that fails is tried again for the first
/// of them alone, so that those before the unreadable one are carried out.
pub(super) fn fetch<'b>(
    registers: &Registers,
    memory: &impl GuestMemory,
    buffer: &'b mut [RawCommand; SPAN],
) -> Result<&'b [RawCommand], MemoryFault> {
    let ring = Ring::<16>::new(registers.cqb());
    let view = View::of(registers);
    let at = ring.address(registers.cqh());
    let span = ring.span(registers.cqh(), registers.cqt());
    let commands = buffer.get_mut(..usize::try_from(span).unwrap_or(SPAN).min(SPAN)).unwrap_or_default();
    match (view.load(memory, at, &mut *commands), commands) {
        (Ok(()), commands) => Ok(commands),
        (Err(_), [first, _, ..]) => {
            view.load(memory, at, first)?;
            Ok(core::slice::from_ref(first))
        }
        (Err(fault), _) => Err(fault),
    }
}
