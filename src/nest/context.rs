//! From the guest's directory to the context hardware is given, by allow-list (rules MRG-01 to MRG-16).

use crate::backend::{Ats, Context, FirstStage};
use crate::ddt::{FirstStageContext, Iosatp, Reading};
use crate::id::FirstStageMode;

impl Reading {
    /// The context hardware is to have. Whatever it can not be given exactly is blocked.
    pub(super) fn context(&self) -> Context {
        match self {
            // No process_id is looked at (rule REG-DDTP-16).
            Self::Bare => Context::SecondStageOnly { process_ids: true, ats: Ats::Off },
            Self::None(_) => Context::Blocked,
            // A second stage of the guest's own can not be nested in hardware, and is not offered.
            Self::Context(dc) if dc.second_stage.is_some() => Context::Blocked,
            Self::Context(dc) => match dc.first_stage {
                FirstStageContext::Iosatp(None) => Context::SecondStageOnly { process_ids: false, ats: Ats::Off },
                FirstStageContext::Pdtp(None) => Context::SecondStageOnly { process_ids: true, ats: Ats::Off },
                FirstStageContext::Iosatp(Some(Iosatp { mode, root, pscid })) if mode != FirstStageMode::Sv32 => {
                    Context::FirstStage(FirstStage {
                        mode,
                        root,
                        pscid,
                        sade: dc.tc.sade(),
                        sbe: dc.tc.sbe(),
                        ats: Ats::Off,
                    })
                }
                // RV32 and process directories: not nested yet, and not offered where passthrough devices may be
                // attached.
                FirstStageContext::Iosatp(Some(_)) | FirstStageContext::Pdtp(Some(_)) => Context::Blocked,
            },
        }
    }
}
