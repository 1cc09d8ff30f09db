//! The physical device context as hardware reads it, from the figures of the specification.

use crate::addr::Ppn;
use crate::backend::{Ats, Context, FirstStage, Processes};
use crate::fault::Cause;
use crate::id::{FirstStageMode, ProcessDirectoryMode, Pscid};

/// A device context in the extended format (rules DC-01 to DC-31).
pub(super) type Dwords = [u64; 8];

pub(super) const TC: usize = 0;
pub(super) const IOHGATP: usize = 1;
pub(super) const TA: usize = 2;
pub(super) const FSC: usize = 3;

const TC_V: u64 = 1;
const TC_EN_ATS: u64 = 1 << 1;
const TC_EN_PRI: u64 = 1 << 2;
const TC_T2GPA: u64 = 1 << 3;
const TC_PDTV: u64 = 1 << 5;
const TC_SADE: u64 = 1 << 8;
const TC_DPE: u64 = 1 << 9;
const TC_SBE: u64 = 1 << 10;

/// The bits of `tc` that let a device do more than untranslated requests.
pub(super) const TC_ATS: u64 = TC_EN_ATS | TC_EN_PRI | TC_T2GPA;

/// `iohgatp` of the host-owned empty second stage: Sv39x4, GSCID 0, which is used for nothing else (rule UPD-07).
pub(super) const EMPTY: u64 = 8 << 60 | 4;

/// A device no VM has had yet.
pub(super) const BLOCKED: Dwords = [TC_V, EMPTY, 0, 0, 0, 0, 0, 0];

/// What a context means: whose second stage, and what the VM's device may do under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// 0 where the second stage is empty.
    pub(super) gscid: u32,
    pub(super) context: Context,
    /// `EN_ATS` and `EN_PRI`, also where the second stage is empty.
    pub(super) ats: Ats,
    /// `T2GPA`: what the device gets is translated again when it comes back.
    pub(super) t2gpa: bool,
}

impl Meaning {
    /// Translated requests reach any memory.
    pub(super) fn is_bypass(self) -> bool {
        self.ats != Ats::Off && !self.t2gpa
    }

    /// Whether a device may do no more under this than under `other`: its ATS may have been taken.
    pub(super) fn is_within(self, other: &Self) -> bool {
        let same = self.gscid == other.gscid && without_ats(self.context) == without_ats(other.context);
        same && self.ats <= other.ats && (self.ats == Ats::Off || self.t2gpa == other.t2gpa)
    }
}

/// What hardware makes of a context, or the fault of a request that meets it.
pub(super) fn decode(dwords: &Dwords) -> Result<Meaning, Cause> {
    let &[tc, iohgatp, ta, fsc, ref extended @ ..] = dwords;
    let bit = |bit: u64| tc & bit != 0;
    if !bit(TC_V) {
        return Err(Cause::DdtNotValid);
    }
    let unknown = tc & !(TC_V | TC_ATS | TC_PDTV | TC_SADE | TC_DPE | TC_SBE) != 0 || iohgatp >> 60 != 8;
    let reserved = fsc & 0x0fff_f000_0000_0000 != 0 || extended.iter().any(|&dword| dword != 0);
    // Rules DCK-03, DCK-04 and DCK-12.
    let senseless = (!bit(TC_EN_ATS) && (bit(TC_T2GPA) || bit(TC_EN_PRI))) || (bit(TC_DPE) && !bit(TC_PDTV));
    if unknown || reserved || senseless {
        return Err(Cause::DdtMisconfigured);
    }
    let ats = match (bit(TC_EN_ATS), bit(TC_EN_PRI)) {
        (false, _) => Ats::Off,
        (true, false) => Ats::Translations,
        (true, true) => Ats::PageRequests,
    };
    let (root, sade, sbe) = (Ppn::truncate(fsc), bit(TC_SADE), bit(TC_SBE));
    let translating = if bit(TC_PDTV) {
        let mode = match fsc >> 60 {
            0 => None,
            1 => Some(ProcessDirectoryMode::Pd8),
            2 => Some(ProcessDirectoryMode::Pd17),
            3 => Some(ProcessDirectoryMode::Pd20),
            _ => return Err(Cause::DdtMisconfigured),
        };
        mode.map(|mode| Context::Processes(Processes { mode, root, dpe: bit(TC_DPE), sade, sbe, ats }))
    } else {
        let pscid = Pscid::truncate(field(ta, 12));
        let mode = first_stage_mode(fsc).ok_or(Cause::DdtMisconfigured)?;
        mode.map(|mode| Context::FirstStage(FirstStage { mode, root, pscid, sade, sbe, ats }))
    };
    let context = match translating {
        _ if iohgatp == EMPTY && ats == Ats::Off => Context::Blocked,
        _ if iohgatp == EMPTY => Context::Quiesced,
        None => Context::SecondStageOnly { process_ids: bit(TC_PDTV), ats },
        Some(context) => context,
    };
    Ok(Meaning { gscid: field(iohgatp, 44) & 0xffff, context, ats, t2gpa: bit(TC_T2GPA) })
}

/// The mode of an `iosatp`, where it is one: `None` in it is Bare.
#[expect(clippy::option_option, reason = "not a mode, no translation, or a mode")]
pub(super) const fn first_stage_mode(iosatp: u64) -> Option<Option<FirstStageMode>> {
    match iosatp >> 60 {
        0 => Some(None),
        8 => Some(Some(FirstStageMode::Sv39)),
        9 => Some(Some(FirstStageMode::Sv48)),
        10 => Some(Some(FirstStageMode::Sv57)),
        _ => None,
    }
}

const fn without_ats(context: Context) -> Context {
    let ats = Ats::Off;
    match context {
        Context::Blocked | Context::Quiesced => Context::Blocked,
        Context::SecondStageOnly { process_ids, .. } => Context::SecondStageOnly { process_ids, ats },
        Context::FirstStage(stage) => Context::FirstStage(FirstStage { ats, ..stage }),
        Context::Processes(processes) => Context::Processes(Processes { ats, ..processes }),
    }
}

/// The 32 bits from this one on.
pub(super) fn field(dword: u64, low: u32) -> u32 {
    u32::try_from(dword.wrapping_shr(low) & 0xffff_ffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_context_is_no_misconfigured_one() {
        assert_eq!(decode(&[0, 1, 2, 3, 4, 5, 6, 7]), Err(Cause::DdtNotValid), "DDT-13");
        assert_eq!(decode(&[1, EMPTY, 0, 5 << 60, 0, 0, 0, 0]), Err(Cause::DdtMisconfigured), "DCK-09");
    }

    #[test]
    fn a_context_means_what_the_figures_say() {
        let means =
            |dwords: Dwords| decode(&dwords).map(|Meaning { gscid, context, t2gpa, .. }| (gscid, context, t2gpa));
        let stage = FirstStage {
            sade: true,
            sbe: true,
            ..FirstStage::new(FirstStageMode::Sv48, Ppn::truncate(0x12345), Pscid::new(0xfffff).unwrap())
        };
        let stage_2 = 0x8000_7000_0010_001c;
        let dwords = [0x501, stage_2, 0xffff_f000, 0x9000_0000_0001_2345, 0, 0, 0, 0];
        assert_eq!(means(dwords), Ok((7, Context::FirstStage(stage), false)));
        let processes = Processes {
            dpe: true,
            ats: Ats::PageRequests,
            ..Processes::new(ProcessDirectoryMode::Pd17, Ppn::truncate(0x12345))
        };
        let dwords = [0x22f, stage_2, 0, 0x2000_0000_0001_2345, 0, 0, 0, 0];
        assert_eq!(means(dwords), Ok((7, Context::Processes(processes), true)));
        assert_eq!(means(BLOCKED), Ok((0, Context::Blocked, false)));
        assert_eq!(means([0xb, EMPTY, 0, 0, 0, 0, 0, 0]), Ok((0, Context::Quiesced, true)));
    }

    #[test]
    fn bits_of_ats_without_ats_are_misconfigured() {
        for (tc, rule) in [(0x9, "DCK-03"), (0x5, "DCK-04"), (0x201, "DCK-12"), (0x41, "DCK-05")] {
            assert_eq!(decode(&[tc, EMPTY, 0, 0, 0, 0, 0, 0]), Err(Cause::DdtMisconfigured), "{rule}");
        }
    }
}
