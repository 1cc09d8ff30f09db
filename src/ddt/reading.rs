//! What the guest's registers and directory say of a device, and which transactions that refuses.

use crate::backend::GuestMemory;
use crate::error::{Violation, refuse_if};
use crate::fault::{Cause, Fault, TransactionType};
use crate::id::{DeviceId, ProcessId};
use crate::regs::DdtpMode;
use crate::regs::file::Registers;

use super::{Checked, Directory, FirstStageContext, Trail};

/// What the guest's registers and directory say of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    /// `ddtp` is Bare.
    Bare,
    /// The device has a context.
    Context(Checked),
    /// It has none: `ddtp` is Off, or the directory does not lead to a good one.
    None(Fault),
}

impl Reading {
    /// Reads it, once, afresh.
    pub(crate) fn take(registers: &Registers, memory: &impl GuestMemory, id: DeviceId) -> Self {
        Self::follow(registers, memory, id, &mut Trail::default())
    }

    /// The same, and how far the way went.
    pub(crate) fn follow(registers: &Registers, memory: &impl GuestMemory, id: DeviceId, trail: &mut Trail) -> Self {
        match (registers.mode(), Directory::of(registers)) {
            (DdtpMode::Bare, _) => Self::Bare,
            (_, None) => Self::None(Fault::new(Cause::AllInboundDisallowed)),
            (_, Some(directory)) => match directory.locate(memory, id, trail) {
                Ok(context) => Self::Context(context),
                Err(fault) => Self::None(fault),
            },
        }
    }

    /// The device has no context because an entry has V = 0. Setting V needs no invalidation (rule UPD-04), so such a
    /// device is read again without one.
    pub(crate) const fn is_not_valid(&self) -> bool {
        matches!(self, Self::None(Fault { cause: Cause::DdtNotValid, .. }))
    }

    /// `tc.DTF`; `None` if no context was found, so that none of the device's faults is one of a context (rule FQ-47).
    pub(crate) const fn dtf(&self) -> Option<bool> {
        match self {
            Self::Bare => Some(false),
            Self::Context(dc) => Some(dc.tc.dtf()),
            Self::None(_) => None,
        }
    }

    /// Steps 1 to 7 of the "Process to translate an IOVA": the fault, if the transaction is refused before any page
    /// table is looked at.
    pub(crate) fn refuses(&self, access: TransactionType, process: Option<ProcessId>) -> Option<Fault> {
        let allowed = match self {
            Self::None(fault) => return Some(*fault),
            Self::Bare => {
                let reason = &Violation("ddtp.iommu_mode", "is Bare, which has no ATS", "TR-03");
                refuse_if(!access.is_untranslated(), reason)
            }
            Self::Context(dc) => dc.allows(access, process),
        };
        allowed.err().map(|reason| Fault::because(Cause::TransactionTypeDisallowed, reason))
    }
}

impl Checked {
    fn allows(&self, access: TransactionType, process: Option<ProcessId>) -> Result<(), &'static Violation> {
        let is_ats = access == TransactionType::AtsTranslationRequest || access.is_translated();
        let is_message = access == TransactionType::MessageRequest;
        refuse_if(is_ats && !self.tc.en_ats(), &Violation("DC.tc.EN_ATS", "is 0", "TR-08"))?;
        refuse_if(is_message && !self.tc.en_pri(), &Violation("DC.tc.EN_PRI", "is 0", "PRI-02"))?;
        // A message is not translated: whether its process is one the directory has room for is not asked.
        if is_message {
            return Ok(());
        }
        match (process, self.first_stage) {
            (None, _) | (_, FirstStageContext::Pdtp(None)) => Ok(()),
            (Some(_), FirstStageContext::Iosatp(_)) => {
                Err(&Violation("DC.tc.PDTV", "is 0, and the request has a process_id", "TR-09"))
            }
            (Some(process), FirstStageContext::Pdtp(Some(pdtp))) => {
                let reason = &Violation("process_id", "is wider than pdtp.MODE takes", "TR-10");
                refuse_if(!process.fits(pdtp.mode.width()), reason)
            }
        }
    }
}
