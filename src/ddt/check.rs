//! The configuration checks of a device context, and what is left of one that passes them.

use crate::addr::Ppn;
use crate::fault::{Cause, Fault};
use crate::id::{FirstStageMode, Pscid};
use crate::regs::Capabilities;

use super::entry::{BaseContext, ExtendedContext, Fsc, Iohgatp, MsiPageBits, Tc};

/// A device context that was found valid and well configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) tc: Tc,
    pub(crate) iohgatp: Iohgatp,
    pub(crate) first_stage: FirstStageContext,
}

/// The meaning of `fsc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstStageContext {
    /// `PDTV = 0`, `iosatp.MODE` Bare: no first stage, and no request with a `process_id`.
    Bare,
    /// `PDTV = 0`: one table for the device.
    Iosatp {
        /// Scheme.
        mode: FirstStageMode,
        /// Root page.
        root: Ppn,
        /// Tag.
        pscid: Pscid,
    },
    /// `PDTV = 1`, `pdtp.MODE` Bare: no first stage, with or without a `process_id`.
    PdtpBare,
    /// A scheme that this crate checks but does not nest: RV32, or a process directory.
    Other(Fsc),
}

/// What the checks depend on: capabilities and `fctl` as the guest sees them. `GXL` is read-only 0 here, and `BE` is
/// writable exactly with `END` (rules REG-FCTL-01, REG-FCTL-09).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) capabilities: Capabilities,
    /// `fctl.BE`.
    pub(crate) be: bool,
}

/// The one copy of a context that everything is decided on (rule MRG-16).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copied {
    Base(BaseContext),
    Extended(ExtendedContext),
}

const BARE: u8 = 0;
const FLAT: u8 = 1;
const SV39: u8 = 8;
const SV48: u8 = 9;
const SV57: u8 = 10;
const PD8: u8 = 1;
const PD17: u8 = 2;
const PD20: u8 = 3;

impl Copied {
    const fn base(&self) -> &BaseContext {
        match self {
            Self::Base(base) => base,
            Self::Extended(extended) => &extended.base,
        }
    }

    /// # Errors
    /// 258 if it is not valid, 259 if it is misconfigured.
    pub(crate) fn judge(&self, rules: &Rules) -> Result<Checked, Fault> {
        let base = self.base();
        // Not valid: nothing else in it may be looked at (rule DDT-13).
        if !base.tc.v() {
            return Err(Fault::new(Cause::DdtNotValid));
        }
        if self.is_misconfigured(rules) {
            return Err(Fault::new(Cause::DdtMisconfigured));
        }
        Ok(Checked { tc: base.tc, iohgatp: base.iohgatp, first_stage: meaning(base) })
    }

    /// "Device-context configuration checks", in the order of the specification. All lead to the same cause.
    fn is_misconfigured(&self, rules: &Rules) -> bool {
        let BaseContext { tc, iohgatp, ta, fsc } = *self.base();
        let caps = rules.capabilities;
        // 1. Reserved bits (DCK-01).
        self.has_reserved_bits(caps)
            // 2. ATS (DCK-02).
            || (!caps.ats() && (tc.en_ats() || tc.en_pri() || tc.prpr()))
            // 3-5. Bits that need another one (DCK-03 to DCK-05).
            || (!tc.en_ats() && tc.t2gpa())
            || (!tc.en_ats() && tc.en_pri())
            || (!tc.en_pri() && tc.prpr())
            // 6-7. T2GPA (DCK-06, DCK-07).
            || (!caps.t2gpa() && tc.t2gpa())
            || (tc.t2gpa() && iohgatp.mode() == BARE)
            // 8-12. What fsc may hold (DCK-08 to DCK-12).
            || if tc.pdtv() { !pdtp_mode_offered(fsc, caps) } else { !iosatp_mode_offered(fsc, tc, caps) || tc.dpe() }
            // 13-15. iohgatp.MODE with GXL = 0 (DCK-13, DCK-14; DCK-15 needs GXL = 1).
            || !iohgatp_mode_offered(iohgatp, caps)
            // 16. msiptp.MODE (DCK-16).
            || self.msi_mode().is_some_and(|mode| mode > FLAT)
            // 17. Alignment of the second-stage root (DCK-17).
            || (iohgatp.mode() != BARE && iohgatp.ppn().get() & 3 != 0)
            // 18. A/D updates (DCK-18).
            || (!caps.amo_hwad() && (tc.sade() || tc.gade()))
            // 19, 21. SBE (DCK-19, DCK-21).
            || (!caps.end() && tc.sbe() != rules.be)
            // 20. SXL, with GXL read-only 0 (DCK-20).
            || tc.sxl()
            // 22. Width of the QoS ids: all 12 bits, where there are any (DCK-01, DCK-22).
            || (!caps.qosid() && (ta.rcid() != 0 || ta.mcid() != 0))
            // UNSPECIFIED: MSI translation without a second stage, which the text recommends to refuse (DCK-23).
            || (iohgatp.mode() == BARE && self.msi_mode().is_some_and(|mode| mode != BARE))
    }

    fn has_reserved_bits(&self, caps: Capabilities) -> bool {
        let BaseContext { tc, ta, fsc, .. } = *self.base();
        let base = tc.rsvd0() != 0 || tc.rsvd1() != 0 || ta.rsvd0() != 0 || ta.rsvd1() != 0 || fsc.rsvd0() != 0;
        match self {
            Self::Base(_) => base,
            Self::Extended(ExtendedContext { base: _, msiptp, msi_addr_mask, msi_addr_pattern, rsvd }) => {
                let wide = |bits: MsiPageBits| {
                    // Page number bits past the guest-physical width (DC-30).
                    let width = u32::from(caps.guest_physical_width()).saturating_sub(12);
                    bits.rsvd0() != 0 || bits.page().checked_shr(width).is_some_and(|above| above != 0)
                };
                base || msiptp.rsvd0() != 0 || wide(*msi_addr_mask) || wide(*msi_addr_pattern) || *rsvd != 0
            }
        }
    }

    /// `msiptp.MODE`; base-format contexts have none (rule DDT-18).
    fn msi_mode(&self) -> Option<u8> {
        match self {
            Self::Base(_) => None,
            Self::Extended(extended) => Some(extended.msiptp.mode()),
        }
    }
}

fn pdtp_mode_offered(fsc: Fsc, caps: Capabilities) -> bool {
    match fsc.mode() {
        BARE => true,
        PD8 => caps.pd8(),
        PD17 => caps.pd17(),
        PD20 => caps.pd20(),
        _ => false,
    }
}

fn iosatp_mode_offered(fsc: Fsc, tc: Tc, caps: Capabilities) -> bool {
    match (tc.sxl(), fsc.mode()) {
        (_, BARE) => true,
        // SXL = 1 gives the encoding of Sv39 to Sv32.
        (true, SV39) => caps.sv32(),
        (false, SV39) => caps.sv39(),
        (false, SV48) => caps.sv48(),
        (false, SV57) => caps.sv57(),
        _ => false,
    }
}

fn iohgatp_mode_offered(iohgatp: Iohgatp, caps: Capabilities) -> bool {
    match iohgatp.mode() {
        BARE => true,
        SV39 => caps.sv39x4(),
        SV48 => caps.sv48x4(),
        SV57 => caps.sv57x4(),
        _ => false,
    }
}

/// What a checked context says of the first stage.
fn meaning(context: &BaseContext) -> FirstStageContext {
    let BaseContext { tc, ta, fsc, .. } = *context;
    let iosatp = |mode| FirstStageContext::Iosatp { mode, root: fsc.ppn(), pscid: ta.pscid() };
    match (tc.pdtv(), fsc.mode()) {
        (false, BARE) => FirstStageContext::Bare,
        (false, SV39) if !tc.sxl() => iosatp(FirstStageMode::Sv39),
        (false, SV48) => iosatp(FirstStageMode::Sv48),
        (false, SV57) => iosatp(FirstStageMode::Sv57),
        (true, BARE) => FirstStageContext::PdtpBare,
        _ => FirstStageContext::Other(fsc),
    }
}

#[cfg(test)]
mod tests;
