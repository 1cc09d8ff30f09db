//! The physical device context: as the host driver writes it, and as hardware reads it.

use crate::addr::Ppn;
use crate::backend::{Context, FirstStage};
use crate::fault::Cause;
use crate::id::{FirstStageMode, Gscid, Pscid};

/// A device context in the extended format (rules DC-01 to DC-31).
pub(super) type Dwords = [u64; 8];

pub(super) const TC: usize = 0;
pub(super) const IOHGATP: usize = 1;
pub(super) const TA: usize = 2;
pub(super) const FSC: usize = 3;

pub(super) const TC_V: u64 = 1;
const TC_PDTV: u64 = 1 << 5;
const TC_SADE: u64 = 1 << 8;
const TC_SBE: u64 = 1 << 10;
const SV39X4: u64 = 8 << 60;
const MODE: u64 = 0xf << 60;
const PPN: u64 = 0xfff_ffff_ffff;

/// The host-owned empty second stage, under a GSCID that is used for nothing else (rule UPD-07).
pub(super) const EMPTY: u64 = SV39X4 | 4;

/// Blocked, for a device no VM has had yet.
pub(super) const BLOCKED: Dwords = [TC_V, EMPTY, 0, 0, 0, 0, 0, 0];

/// What a context means: whose second stage, and what the VM's device may do under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// 0 where nothing is translated.
    pub(super) gscid: u32,
    pub(super) context: Context,
}

/// The second stage of a VM: a made-up root, one for each GSCID.
fn second_stage(gscid: Gscid) -> u64 {
    SV39X4 | u64::from(gscid.get()) << 44 | 0x10_0000 | u64::from(gscid.get()) << 2
}

/// What the driver of this host writes for `context`.
pub(super) fn encode(context: &Context, gscid: Gscid) -> Dwords {
    let (iohgatp, tc, ta, fsc) = match *context {
        Context::Blocked => (EMPTY, 0, 0, 0),
        Context::SecondStageOnly { process_ids } => (second_stage(gscid), if process_ids { TC_PDTV } else { 0 }, 0, 0),
        Context::FirstStage(FirstStage { mode, root, pscid, sade, sbe }) => (
            second_stage(gscid),
            if sade { TC_SADE } else { 0 } | if sbe { TC_SBE } else { 0 },
            u64::from(pscid.get()) << 12,
            u64::from(mode.encoding()) << 60 | root.get(),
        ),
    };
    [TC_V | tc, iohgatp, ta, fsc, 0, 0, 0, 0]
}

/// What hardware makes of a context, or the fault of a request that meets it.
pub(super) fn decode(dwords: &Dwords) -> Result<Meaning, Cause> {
    let &[tc, iohgatp, ta, fsc, ref extended @ ..] = dwords;
    if tc & TC_V == 0 {
        return Err(Cause::DdtNotValid);
    }
    let gscid = Gscid::truncate(u32::try_from(iohgatp >> 44 & 0xffff).unwrap_or_default());
    let reserved = tc & !(TC_V | TC_PDTV | TC_SADE | TC_SBE) != 0 || extended.iter().any(|&dword| dword != 0);
    let foreign = iohgatp != EMPTY && (gscid.get() == 0 || iohgatp != second_stage(gscid));
    let mode = match (tc & TC_PDTV != 0, fsc & MODE) {
        (_, 0) => None,
        (false, mode) if mode == 8 << 60 => Some(FirstStageMode::Sv39),
        (false, mode) if mode == 9 << 60 => Some(FirstStageMode::Sv48),
        (false, mode) if mode == 10 << 60 => Some(FirstStageMode::Sv57),
        _ => return Err(Cause::DdtMisconfigured),
    };
    if reserved || foreign {
        return Err(Cause::DdtMisconfigured);
    }
    let context = match mode {
        _ if iohgatp == EMPTY => Context::Blocked,
        None => Context::SecondStageOnly { process_ids: tc & TC_PDTV != 0 },
        Some(mode) => Context::FirstStage(FirstStage {
            mode,
            root: Ppn::truncate(fsc & PPN),
            pscid: Pscid::truncate(u32::try_from(ta >> 12 & 0xf_ffff).unwrap_or_default()),
            sade: tc & TC_SADE != 0,
            sbe: tc & TC_SBE != 0,
        }),
    };
    Ok(Meaning { gscid: gscid.get(), context })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_reads_what_the_driver_means() {
        let gscid = Gscid::new(7).unwrap();
        let first_stage = FirstStage {
            mode: FirstStageMode::Sv48,
            root: Ppn::truncate(0x12345),
            pscid: Pscid::new(0xfffff).unwrap(),
            sade: true,
            sbe: true,
        };
        for context in [
            Context::SecondStageOnly { process_ids: true },
            Context::SecondStageOnly { process_ids: false },
            Context::FirstStage(first_stage),
        ] {
            assert_eq!(decode(&encode(&context, gscid)), Ok(Meaning { gscid: 7, context }));
        }
        let blocked = encode(&Context::Blocked, gscid);
        assert_eq!(blocked, BLOCKED);
        assert_eq!(decode(&blocked), Ok(Meaning { gscid: 0, context: Context::Blocked }));
        assert_eq!(
            encode(&Context::FirstStage(first_stage), gscid)[..4],
            [0x501, 0x8000_7000_0010_001c, 0xffff_f000, 0x9000_0000_0001_2345]
        );
    }

    #[test]
    fn an_invalid_context_is_no_misconfigured_one() {
        assert_eq!(decode(&[0, 1, 2, 3, 4, 5, 6, 7]), Err(Cause::DdtNotValid), "DDT-13");
        assert_eq!(decode(&[1, EMPTY, 0, 5 << 60, 0, 0, 0, 0]), Err(Cause::DdtMisconfigured), "DCK-09");
    }
}
