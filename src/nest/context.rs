//! From the guest's directory to the context hardware is given, by allow-list (rules MRG-01 to MRG-16).

use crate::backend::{Context, FirstStage, GuestMemory};
use crate::ddt::{Checked, Directory, FirstStageContext, Iosatp};
use crate::fault::{Cause, Fault, TransactionType};
use crate::id::{DeviceId, FirstStageMode};
use crate::regs::DdtpMode;
use crate::regs::file::Registers;

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
        match (registers.mode(), Directory::of(registers)) {
            (DdtpMode::Bare, _) => Self::Bare,
            (_, None) => Self::None(Fault::new(Cause::AllInboundDisallowed)),
            (_, Some(directory)) => match directory.locate(memory, id) {
                Ok(context) => Self::Context(context),
                Err(fault) => Self::None(fault),
            },
        }
    }

    /// The context hardware is to have. Whatever it can not be given exactly is blocked.
    pub(crate) fn context(&self) -> Context {
        match self {
            // No process_id is looked at (rule REG-DDTP-16).
            Self::Bare => Context::SecondStageOnly { process_ids: true },
            Self::None(_) => Context::Blocked,
            // A second stage of the guest's own can not be nested in hardware, and is not offered.
            Self::Context(dc) if dc.second_stage.is_some() => Context::Blocked,
            Self::Context(dc) => match dc.first_stage {
                FirstStageContext::Iosatp(None) => Context::SecondStageOnly { process_ids: false },
                FirstStageContext::Pdtp(None) => Context::SecondStageOnly { process_ids: true },
                FirstStageContext::Iosatp(Some(Iosatp { mode, root, pscid })) if mode != FirstStageMode::Sv32 => {
                    Context::FirstStage(FirstStage { mode, root, pscid, sade: dc.tc.sade(), sbe: dc.tc.sbe() })
                }
                // RV32 and process directories: not nested yet, and not offered where devices are.
                FirstStageContext::Iosatp(Some(_)) | FirstStageContext::Pdtp(Some(_)) => Context::Blocked,
            },
        }
    }

    /// The device has no context because an entry has V = 0. Setting V needs no invalidation (rule UPD-04), so such a
    /// device is read again without one.
    pub(crate) fn is_not_valid(&self) -> bool {
        matches!(self, Self::None(Fault { cause: Cause::DdtNotValid, .. }))
    }

    /// `tc.DTF`; `None` if no context was found, so that none of the device's faults is one of a context (rule FQ-47).
    pub(crate) fn dtf(&self) -> Option<bool> {
        match self {
            Self::Bare => Some(false),
            Self::Context(dc) => Some(dc.tc.dtf()),
            Self::None(_) => None,
        }
    }

    /// Steps 1 to 7 of the "Process to translate an IOVA": the fault, if the transaction is refused before any page
    /// table is looked at.
    pub(crate) fn refuses(&self, access: TransactionType, has_process: bool) -> Option<Fault> {
        let disallowed = match self {
            Self::None(fault) => return Some(*fault),
            // TR-03, PRI-02.
            Self::Bare => !is_untranslated(access),
            Self::Context(dc) => {
                let type_disallowed = match access {
                    // TR-08.
                    TransactionType::AtsTranslationRequest => !dc.tc.en_ats(),
                    translated if translated.is_translated() => !dc.tc.en_ats(),
                    // PRI-02.
                    TransactionType::MessageRequest => !dc.tc.en_pri(),
                    _ => false,
                };
                // TR-09.
                type_disallowed || (has_process && !dc.tc.pdtv())
            }
        };
        disallowed.then(|| Fault::new(Cause::TransactionTypeDisallowed))
    }
}

const fn is_untranslated(access: TransactionType) -> bool {
    matches!(
        access,
        TransactionType::UntranslatedExecute | TransactionType::UntranslatedRead | TransactionType::UntranslatedWrite
    )
}
