//! What a fault of the physical IOMMU means to the guest (rules VT-02 to VT-07).

use crate::backend::{Context, GuestMemory};
use crate::fault::{Cause, Fault};
use crate::faultq::{HostFault, Origin};
use crate::regs::file::Registers;

use super::Nest;
use super::context::Reading;
use super::slot::{Attachment, Phase};

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

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize> Nest<D, DEVICES, BATCH> {
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
            self.slots.iter_mut().find(|slot| slot.attachment() == attachment && slot.phase != Phase::Leaving)
        else {
            return Verdict::NotOurs;
        };
        let HostFault { cause: _, access, process, privileged, iova } = *fault;
        let origin = Origin { device: slot.id, access, process, privileged, iova };
        if let (Some(shown), false) = (shown_as(fault), matches!(slot.live, None | Some(Context::Blocked))) {
            return Verdict::Report { fault: Fault::new(shown), origin, dtf: slot.dtf };
        }
        // Hardware refused the transaction by its context. Whether the guest's own registers and directory refuse it
        // too decides what the guest is shown, whatever cause the host's context gave it (rule VT-04).
        let reading = Reading::take(registers, memory, slot.id);
        if let Some(fault) = reading.refuses(access, process.is_some()) {
            return Verdict::Report { fault, origin, dtf: reading.dtf() };
        }
        slot.stale = true;
        Verdict::Reread
    }
}

/// What a fault past the context lookup is to a guest that has no second stage of its own; `None` for a fault of the
/// lookup itself.
const fn shown_as(fault: &HostFault) -> Option<Cause> {
    match fault.cause {
        // Guest structures, shown as they are (rule VT-03).
        Cause::InstructionPageFault
        | Cause::ReadPageFault
        | Cause::WritePageFault
        | Cause::InstructionAccessFault
        | Cause::ReadAccessFault
        | Cause::WriteAccessFault
        | Cause::ReadMisaligned
        | Cause::WriteMisaligned
        | Cause::PtDataCorruption => Some(fault.cause),
        // The host's second stage and MSI tables: an access that reaches nothing (rules VT-05, VT-06).
        Cause::InstructionGuestPageFault
        | Cause::ReadGuestPageFault
        | Cause::WriteGuestPageFault
        | Cause::MsiPteLoadAccessFault
        | Cause::MsiPteNotValid
        | Cause::MsiPteMisconfigured
        | Cause::MrifAccessFault
        | Cause::MsiPtDataCorruption
        | Cause::MrifDataCorruption => Some(fault.access.access_fault()),
        _ => None,
    }
}
