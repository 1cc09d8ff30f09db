//! What the guest's registers and directory say of a device, and which transactions that refuses.

use crate::backend::GuestMemory;
use crate::fault::{Cause, Fault, TransactionType};
use crate::id::{DeviceId, ProcessId};
use crate::regs::DdtpMode;
use crate::regs::file::Registers;

use super::{Checked, Directory, FirstStageContext};

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
        Self::take_counted(registers, memory, id, &mut 0)
    }

    /// The same; `loads` counts the entries read.
    pub(crate) fn take_counted(
        registers: &Registers,
        memory: &impl GuestMemory,
        id: DeviceId,
        loads: &mut u32,
    ) -> Self {
        match (registers.mode(), Directory::of(registers)) {
            (DdtpMode::Bare, _) => Self::Bare,
            (_, None) => Self::None(Fault::new(Cause::AllInboundDisallowed)),
            (_, Some(directory)) => match directory.locate(memory, id, loads) {
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
        let disallowed = match self {
            Self::None(fault) => return Some(*fault),
            // TR-03, PRI-02.
            Self::Bare => !access.is_untranslated(),
            Self::Context(dc) => {
                let type_disallowed = match access {
                    // TR-08.
                    TransactionType::AtsTranslationRequest => !dc.tc.en_ats(),
                    translated if translated.is_translated() => !dc.tc.en_ats(),
                    // PRI-02.
                    TransactionType::MessageRequest => !dc.tc.en_pri(),
                    _ => false,
                };
                // TR-09, TR-10.
                type_disallowed || process.is_some_and(|process| !dc.first_stage.takes(process))
            }
        };
        disallowed.then(|| Fault::new(Cause::TransactionTypeDisallowed))
    }
}

impl FirstStageContext {
    /// Whether requests of this process are allowed.
    fn takes(&self, process: ProcessId) -> bool {
        match self {
            Self::Iosatp(_) => false,
            Self::Pdtp(None) => true,
            Self::Pdtp(Some(pdtp)) => process.fits(pdtp.mode.width()),
        }
    }
}
