//! The physical device context as hardware reads it, from the figures of the specification.

use crate::addr::Ppn;
use crate::backend::{Ats, Context, FirstStage};
use crate::fault::Cause;
use crate::id::{FirstStageMode, Pscid};

/// A device context in the extended format (rules DC-01 to DC-31).
pub(super) type Dwords = [u64; 8];

pub(super) const TC: usize = 0;
pub(super) const IOHGATP: usize = 1;
pub(super) const TA: usize = 2;
pub(super) const FSC: usize = 3;

const TC_V: u64 = 1;
const TC_PDTV: u64 = 1 << 5;
const TC_SADE: u64 = 1 << 8;
const TC_SBE: u64 = 1 << 10;

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
}

/// What hardware makes of a context, or the fault of a request that meets it.
pub(super) fn decode(dwords: &Dwords) -> Result<Meaning, Cause> {
    let &[tc, iohgatp, ta, fsc, ref extended @ ..] = dwords;
    if tc & TC_V == 0 {
        return Err(Cause::DdtNotValid);
    }
    let unknown = tc & !(TC_V | TC_PDTV | TC_SADE | TC_SBE) != 0 || iohgatp >> 60 != 8;
    if unknown || extended.iter().any(|&dword| dword != 0) {
        return Err(Cause::DdtMisconfigured);
    }
    let process_ids = tc & TC_PDTV != 0;
    let mode = match (process_ids, fsc >> 60) {
        (_, 0) => None,
        (false, 8) => Some(FirstStageMode::Sv39),
        (false, 9) => Some(FirstStageMode::Sv48),
        (false, 10) => Some(FirstStageMode::Sv57),
        _ => return Err(Cause::DdtMisconfigured),
    };
    let context = match mode {
        _ if iohgatp == EMPTY => Context::Blocked,
        None => Context::SecondStageOnly { process_ids, ats: Ats::Off },
        Some(mode) => Context::FirstStage(FirstStage {
            mode,
            root: Ppn::truncate(fsc),
            pscid: Pscid::truncate(field(ta, 12)),
            sade: tc & TC_SADE != 0,
            sbe: tc & TC_SBE != 0,
            ats: Ats::Off,
        }),
    };
    Ok(Meaning { gscid: field(iohgatp, 44) & 0xffff, context })
}

/// The 32 bits from this one on.
fn field(dword: u64, low: u32) -> u32 {
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
        let first_stage = FirstStage {
            mode: FirstStageMode::Sv48,
            root: Ppn::truncate(0x12345),
            pscid: Pscid::new(0xfffff).unwrap(),
            sade: true,
            sbe: true,
            ats: Ats::Off,
        };
        let dwords = [0x501, 0x8000_7000_0010_001c, 0xffff_f000, 0x9000_0000_0001_2345, 0, 0, 0, 0];
        assert_eq!(decode(&dwords), Ok(Meaning { gscid: 7, context: Context::FirstStage(first_stage) }));
        assert_eq!(decode(&BLOCKED), Ok(Meaning { gscid: 0, context: Context::Blocked }));
    }
}
