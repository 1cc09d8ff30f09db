//! The configuration checks of a device context, and what is left of one that passes them.

use crate::addr::Ppn;
use crate::fault::{Cause, Fault};
use crate::id::{FirstStageMode, Gscid, ProcessDirectoryMode, Pscid, SecondStageMode};
use crate::regs::Capabilities;

use super::entry::{BaseContext, ExtendedContext, Fsc, Iohgatp, MsiPageBits, Ta, Tc};

/// A device context that was found valid and well configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) tc: Tc,
    pub(crate) ta: Ta,
    pub(crate) first_stage: FirstStageContext,
    /// `iohgatp`; `None`: Bare.
    pub(crate) second_stage: Option<SecondStageContext>,
    /// The MSI page table; `None`: Off, or a base-format context.
    pub(crate) msi: Option<MsiContext>,
}

/// The meaning of `fsc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstStageContext {
    /// `PDTV = 0`: one address space for the device, and no request with a `process_id`; `None`: `iosatp.MODE` Bare.
    Iosatp(Option<Iosatp>),
    /// `PDTV = 1`: an address space for each process; `None`: `pdtp.MODE` Bare, no first stage, with or without a
    /// `process_id`.
    Pdtp(Option<Pdtp>),
}

/// A first-stage table: of `iosatp`, or of a process context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Iosatp {
    pub(crate) mode: FirstStageMode,
    /// Root page, which the second stage translates.
    pub(crate) root: Ppn,
    pub(crate) pscid: Pscid,
}

/// A process directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pdtp {
    pub(crate) mode: ProcessDirectoryMode,
    /// Root page, which the second stage translates.
    pub(crate) root: Ppn,
}

/// A second-stage table of the guest's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecondStageContext {
    pub(crate) mode: SecondStageMode,
    pub(crate) root: Ppn,
    pub(crate) gscid: Gscid,
}

/// A flat MSI page table and the pages that select its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MsiContext {
    pub(crate) root: Ppn,
    /// Bits of a page number that select the entry.
    pub(crate) mask: u64,
    /// What the other bits must be.
    pub(crate) pattern: u64,
}

/// What the checks depend on: the registers as the guest sees them. `BE` is writable exactly with `END` (rules
/// REG-FCTL-01, REG-FCTL-09).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) capabilities: Capabilities,
    /// `fctl.BE`.
    pub(crate) be: bool,
    /// `fctl.GXL`.
    pub(crate) gxl: bool,
    /// Whether the guest may write `fctl.GXL`.
    pub(crate) gxl_writable: bool,
    /// Bits that `RCID` and `MCID` have.
    pub(crate) qos_mask: u16,
}

/// The one copy of a context that everything is decided on (rule MRG-16).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copied {
    Base(BaseContext),
    Extended(ExtendedContext),
}

const BARE: u8 = 0;
const FLAT: u8 = 1;
/// The same encoding, with `SXL` or `GXL`.
const SV32: u8 = 8;
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
        Ok(Checked {
            tc: base.tc,
            ta: base.ta,
            first_stage: first_stage(base),
            second_stage: second_stage(base.iohgatp, rules.gxl),
            msi: self.msi(),
        })
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
            // 13-15. iohgatp.MODE (DCK-13 to DCK-15).
            || !iohgatp_mode_offered(iohgatp, rules)
            // 16. msiptp.MODE (DCK-16).
            || self.msi_mode().is_some_and(|mode| mode > FLAT)
            // 17. Alignment of the second-stage root (DCK-17).
            || (iohgatp.mode() != BARE && iohgatp.ppn().get() & 3 != 0)
            // 18. A/D updates (DCK-18).
            || (!caps.amo_hwad() && (tc.sade() || tc.gade()))
            // 19, 21. SBE (DCK-19, DCK-21).
            || (!caps.end() && tc.sbe() != rules.be)
            // 20. SXL (DCK-20).
            || (rules.gxl && !tc.sxl())
            || (!rules.gxl && !rules.gxl_writable && tc.sxl())
            // 22. Width of the QoS ids, none without QOSID (DCK-01, DCK-22).
            || (ta.rcid() | ta.mcid()) & !rules.qos_mask != 0
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

    /// The MSI page table of a context that passed the checks.
    fn msi(&self) -> Option<MsiContext> {
        match self {
            Self::Extended(context) if context.msiptp.mode() == FLAT => Some(MsiContext {
                root: context.msiptp.ppn(),
                mask: context.msi_addr_mask.page(),
                pattern: context.msi_addr_pattern.page(),
            }),
            _ => None,
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

/// Whether the scheme of a first stage is one the guest was offered (rules DCK-09 to DCK-11, PCK-02 to PCK-04).
pub(crate) fn iosatp_mode_offered(fsc: Fsc, tc: Tc, caps: Capabilities) -> bool {
    match (tc.sxl(), fsc.mode()) {
        (_, BARE) => true,
        (true, SV32) => caps.sv32(),
        (false, SV39) => caps.sv39(),
        (false, SV48) => caps.sv48(),
        (false, SV57) => caps.sv57(),
        _ => false,
    }
}

fn iohgatp_mode_offered(iohgatp: Iohgatp, rules: &Rules) -> bool {
    let caps = rules.capabilities;
    match (rules.gxl, iohgatp.mode()) {
        (_, BARE) => true,
        (true, SV32) => caps.sv32x4(),
        (false, SV39) => caps.sv39x4(),
        (false, SV48) => caps.sv48x4(),
        (false, SV57) => caps.sv57x4(),
        _ => false,
    }
}

/// What `fsc` says of the first stage, in a context that passed the checks.
fn first_stage(context: &BaseContext) -> FirstStageContext {
    let BaseContext { tc, ta, fsc, .. } = *context;
    if !tc.pdtv() {
        return FirstStageContext::Iosatp(iosatp(fsc, tc, ta.pscid()));
    }
    let pdtp = |mode| Some(Pdtp { mode, root: fsc.ppn() });
    FirstStageContext::Pdtp(match fsc.mode() {
        PD8 => pdtp(ProcessDirectoryMode::Pd8),
        PD17 => pdtp(ProcessDirectoryMode::Pd17),
        PD20 => pdtp(ProcessDirectoryMode::Pd20),
        _ => None,
    })
}

/// The first-stage table of an `iosatp`, or of the `fsc` of a process context, that passed the checks.
pub(crate) fn iosatp(fsc: Fsc, tc: Tc, pscid: Pscid) -> Option<Iosatp> {
    let mode = match (tc.sxl(), fsc.mode()) {
        (true, SV32) => FirstStageMode::Sv32,
        (false, SV39) => FirstStageMode::Sv39,
        (false, SV48) => FirstStageMode::Sv48,
        (false, SV57) => FirstStageMode::Sv57,
        _ => return None,
    };
    Some(Iosatp { mode, root: fsc.ppn(), pscid })
}

fn second_stage(iohgatp: Iohgatp, gxl: bool) -> Option<SecondStageContext> {
    let mode = match (gxl, iohgatp.mode()) {
        (true, SV32) => SecondStageMode::Sv32x4,
        (false, SV39) => SecondStageMode::Sv39x4,
        (false, SV48) => SecondStageMode::Sv48x4,
        (false, SV57) => SecondStageMode::Sv57x4,
        // Of a Bare one nothing else counts (rule DC-20).
        _ => return None,
    };
    Some(SecondStageContext { mode, root: iohgatp.ppn(), gscid: iohgatp.gscid() })
}

#[cfg(test)]
mod tests;
