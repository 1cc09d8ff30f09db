//! From the guest's directory to the context hardware is given, by allow-list (rules MRG-01 to MRG-16).

use crate::backend::{Ats, Context, FirstStage, Processes};
use crate::ddt::{FirstStageContext, Iosatp, Pdtp, Reading, Tc};
use crate::id::FirstStageMode;

impl Reading {
    /// The context hardware is to have, with `grant` as the most the device may do besides. Whatever it can not be
    /// given exactly is blocked.
    pub(super) fn context(&self, grant: Ats) -> Context {
        let dc = match self {
            // No process_id is looked at (rule REG-DDTP-16), and there is no ATS (rule TR-03).
            Self::Bare => return Context::SecondStageOnly { process_ids: true, ats: Ats::Off },
            Self::None(_) => return Context::Blocked,
            // A second stage of the guest's own can not be nested in hardware, and is not offered.
            Self::Context(dc) if dc.second_stage.is_some() => return Context::Blocked,
            Self::Context(dc) => dc,
        };
        let (sade, sbe, ats) = (dc.tc.sade(), dc.tc.sbe(), asked(dc.tc).min(grant));
        match dc.first_stage {
            FirstStageContext::Iosatp(None) => Context::SecondStageOnly { process_ids: false, ats },
            FirstStageContext::Pdtp(None) => Context::SecondStageOnly { process_ids: true, ats },
            FirstStageContext::Iosatp(Some(Iosatp { mode, root, pscid })) if mode != FirstStageMode::Sv32 => {
                Context::FirstStage(FirstStage { mode, root, pscid, sade, sbe, ats })
            }
            // RV32 is not offered where passthrough devices may be attached.
            FirstStageContext::Iosatp(Some(_)) => Context::Blocked,
            FirstStageContext::Pdtp(Some(Pdtp { mode, root })) => {
                Context::Processes(Processes { mode, root, dpe: dc.tc.dpe(), sade, sbe, ats })
            }
        }
    }
}

/// What the guest turned on. Its `T2GPA` and `PRPR` are the host's to say (rules MRG-03, MRG-04).
const fn asked(tc: Tc) -> Ats {
    match (tc.en_ats(), tc.en_pri()) {
        (false, _) => Ats::Off,
        (true, false) => Ats::Translations,
        (true, true) => Ats::PageRequests,
    }
}

impl Context {
    /// The same without ATS.
    pub(super) const fn without_ats(self) -> Self {
        let ats = Ats::Off;
        match self {
            Self::Blocked | Self::Quiesced => self,
            Self::SecondStageOnly { process_ids, ats: _ } => Self::SecondStageOnly { process_ids, ats },
            Self::FirstStage(stage) => Self::FirstStage(FirstStage { ats, ..stage }),
            Self::Processes(processes) => Self::Processes(Processes { ats, ..processes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ppn;
    use crate::ddt::Checked;
    use crate::ddt::check::SecondStageContext;
    use crate::ddt::entry::Ta;
    use crate::id::{Gscid, Pscid, SecondStageMode};

    // No configuration with passthrough devices offers these, so that no directory leads to them.
    #[test]
    fn what_hardware_can_not_nest_is_blocked() {
        let stage = |mode| Iosatp { mode, root: Ppn::truncate(1), pscid: Pscid::truncate(1) };
        let with = |mode, second_stage| {
            let first_stage = FirstStageContext::Iosatp(Some(stage(mode)));
            Reading::Context(Checked { tc: Tc::new(), ta: Ta::new(), first_stage, second_stage, msi: None })
        };
        let second =
            SecondStageContext { mode: SecondStageMode::Sv39x4, root: Ppn::truncate(2), gscid: Gscid::truncate(0) };
        assert!(with(FirstStageMode::Sv39, None).context(Ats::Off).is_open(), "MRG-06");
        assert_eq!(with(FirstStageMode::Sv39, Some(second)).context(Ats::Off), Context::Blocked, "MRG-08");
        assert_eq!(with(FirstStageMode::Sv32, None).context(Ats::Off), Context::Blocked, "MRG-06");
    }
}
