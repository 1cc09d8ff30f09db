//! What a fault of the physical IOMMU means to the guest (rules VT-02 to VT-07).

use crate::attachment::Attachment;
use crate::backend::GuestMemory;
use crate::fault::{Cause, Fault};
use crate::faultq::{HostFault, Origin};
use crate::regs::file::Registers;

use super::Nest;
use super::slot::{Phase, Reread};
use crate::ddt::Reading;

/// What to do with a host fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The guest is shown this; `dtf` is that of the device's context.
    Report { fault: Fault, origin: Origin, dtf: bool },
    /// The device's context changed, or its hardware context was in transition: nothing is shown, and the directory
    /// is read again.
    Reread,
    /// It comes from an earlier owner of the id, or after the device began to leave.
    NotOurs,
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Judges a fault of an attached device. Reads the guest's directory at most once, and only for a fault of the
    /// context lookup or of a device that is blocked.
    pub(crate) fn judge(
        &mut self,
        attachment: Attachment,
        fault: &HostFault,
        registers: &Registers,
        memory: &impl GuestMemory,
    ) -> Verdict {
        let Some(slot) =
            self.slots.iter_mut().find(|slot| slot.attachment == attachment && slot.phase != Phase::Leaving)
        else {
            return Verdict::NotOurs;
        };
        let HostFault { cause: _, access, process, privileged, iova } = *fault;
        let origin = Origin { device: slot.id(), access, process, privileged, iova };
        let report = |cause, dtf| Verdict::Report { fault: Fault::new(cause), origin, dtf };
        // A blocked state on the way to the context, or from the last one, has faults of the host's structures too.
        let in_transit = slot.was_blocked && !slot.step.is_final(self.completed);
        match shown_as(fault) {
            // Blocked devices do not have these: one that was open had it then, whatever it has been given since.
            Shown::Guests(cause) if slot.was_open => return report(cause, slot.dtf),
            Shown::Hosts(cause) if slot.is_open() && !in_transit => return report(cause, slot.dtf),
            _ => {}
        }
        // Hardware refused the transaction by its context. Whether the guest's own registers and directory refuse it
        // too decides what the guest is shown, whatever cause the host's context gave it (rule VT-04).
        let reading = Reading::take(registers, memory, slot.id());
        let dtf = reading.dtf().unwrap_or(false);
        if let Some(fault) = reading.refuses(access, process) {
            return Verdict::Report { fault, origin, dtf };
        }
        // The guest's context is good, and the host did not carry it out: it refused, or lost what it was given.
        let lost =
            !in_transit && slot.live == Some(reading.context(slot.granted())) && !is_the_hosts_alone(fault.cause);
        if slot.refused || self.locked || self.shut || lost {
            return report(access.access_fault(), dtf);
        }
        // Not `reread`: a fault is no reason to try a context again that the host refused.
        slot.stale = slot.stale.max(Some(Reread::Unasked));
        Verdict::Reread
    }
}

/// Faults that tell of the host and not of the transaction (rule VT-02).
const fn is_the_hosts_alone(cause: Cause) -> bool {
    matches!(cause, Cause::AllInboundDisallowed | Cause::InternalDataPathError | Cause::MsiWriteAccessFault)
}

/// What a fault is to a guest that has no second stage of its own.
enum Shown {
    /// A fault of the guest's structures, shown as it is.
    Guests(Cause),
    /// A fault of the host's second stage or MSI tables, shown as an access that reaches nothing.
    Hosts(Cause),
    /// A fault of the context lookup.
    Lookup,
}

const fn shown_as(fault: &HostFault) -> Shown {
    match fault.cause {
        // Rule VT-03.
        Cause::InstructionPageFault
        | Cause::ReadPageFault
        | Cause::WritePageFault
        | Cause::InstructionAccessFault
        | Cause::ReadAccessFault
        | Cause::WriteAccessFault
        | Cause::ReadMisaligned
        | Cause::WriteMisaligned
        | Cause::PtDataCorruption => Shown::Guests(fault.cause),
        // Rules VT-05, VT-06. A real IOMMU would leave the access itself to PMA and PMP checks behind it, and report
        // nothing; a guest that is told can do something about it.
        Cause::InstructionGuestPageFault
        | Cause::ReadGuestPageFault
        | Cause::WriteGuestPageFault
        | Cause::MsiPteLoadAccessFault
        | Cause::MsiPteNotValid
        | Cause::MsiPteMisconfigured
        | Cause::MrifAccessFault
        | Cause::MsiPtDataCorruption
        | Cause::MrifDataCorruption => Shown::Hosts(fault.access.access_fault()),
        _ => Shown::Lookup,
    }
}
