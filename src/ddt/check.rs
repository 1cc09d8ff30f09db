//! The configuration checks of a device context, and what is left of one that passes them.

use crate::addr::Ppn;
use crate::error::{Violation, refuse_if};
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
        refuse_if(!base.tc.v(), &Violation("DC.tc.V", "is 0", "DDT-12"))
            .map_err(|reason| Fault::because(Cause::DdtNotValid, reason))?;
        self.check(rules).map_err(|reason| Fault::because(Cause::DdtMisconfigured, reason))?;
        Ok(Checked {
            tc: base.tc,
            ta: base.ta,
            first_stage: first_stage(base),
            second_stage: second_stage(base.iohgatp, rules.gxl),
            msi: self.msi(),
        })
    }

    /// "Device-context configuration checks", in the order of the specification. All lead to the same cause.
    fn check(&self, rules: &Rules) -> Result<(), &'static Violation> {
        let BaseContext { tc, iohgatp, ta, fsc } = *self.base();
        let caps = rules.capabilities;
        // 1.
        self.check_reserved_bits(caps)?;
        // 2-5.
        refuse_if(!caps.ats() && tc.en_ats(), &Violation("DC.tc.EN_ATS", "needs capabilities.ATS", "DCK-02"))?;
        refuse_if(!caps.ats() && tc.en_pri(), &Violation("DC.tc.EN_PRI", "needs capabilities.ATS", "DCK-02"))?;
        refuse_if(!caps.ats() && tc.prpr(), &Violation("DC.tc.PRPR", "needs capabilities.ATS", "DCK-02"))?;
        refuse_if(!tc.en_ats() && tc.t2gpa(), &Violation("DC.tc.T2GPA", "needs EN_ATS", "DCK-03"))?;
        refuse_if(!tc.en_ats() && tc.en_pri(), &Violation("DC.tc.EN_PRI", "needs EN_ATS", "DCK-04"))?;
        refuse_if(!tc.en_pri() && tc.prpr(), &Violation("DC.tc.PRPR", "needs EN_PRI", "DCK-05"))?;
        // 6-7.
        let bare = iohgatp.mode() == BARE;
        refuse_if(!caps.t2gpa() && tc.t2gpa(), &Violation("DC.tc.T2GPA", "needs capabilities.T2GPA", "DCK-06"))?;
        refuse_if(tc.t2gpa() && bare, &Violation("DC.tc.T2GPA", "needs a second stage in iohgatp", "DCK-07"))?;
        // 8-12.
        if tc.pdtv() {
            let offered = pdtp_mode_offered(fsc, caps);
            refuse_if(!offered, &Violation("DC.fsc.pdtp.MODE", "is not one that capabilities has", "DCK-08"))?;
        } else {
            let offered = iosatp_mode_offered(fsc, tc, caps);
            refuse_if(!offered, &Violation("DC.fsc.iosatp.MODE", "is not one that capabilities has", "DCK-09 to -11"))?;
            refuse_if(tc.dpe(), &Violation("DC.tc.DPE", "needs PDTV", "DCK-12"))?;
        }
        // 13-15.
        let offered = iohgatp_mode_offered(iohgatp, rules);
        refuse_if(!offered, &Violation("DC.iohgatp.MODE", "is not one that capabilities has", "DCK-13 to -15"))?;
        // 16.
        let msi = self.msi_mode().unwrap_or(BARE);
        refuse_if(msi > FLAT, &Violation("DC.msiptp.MODE", "is neither Off nor Flat", "DCK-16"))?;
        // 17.
        let misaligned = !bare && iohgatp.ppn().get() & 3 != 0;
        refuse_if(misaligned, &Violation("DC.iohgatp.PPN", "is not a multiple of 4", "DCK-17"))?;
        // 18.
        refuse_if(!caps.amo_hwad() && tc.sade(), &Violation("DC.tc.SADE", "needs capabilities.AMO_HWAD", "DCK-18"))?;
        refuse_if(!caps.amo_hwad() && tc.gade(), &Violation("DC.tc.GADE", "needs capabilities.AMO_HWAD", "DCK-18"))?;
        // 19, 21.
        let fixed = !caps.end() && tc.sbe() != rules.be;
        refuse_if(fixed, &Violation("DC.tc.SBE", "differs from fctl.BE without capabilities.END", "DCK-19"))?;
        // 20.
        refuse_if(rules.gxl && !tc.sxl(), &Violation("DC.tc.SXL", "is 0 although fctl.GXL is 1", "DCK-20"))?;
        let wide = !rules.gxl && !rules.gxl_writable && tc.sxl();
        refuse_if(wide, &Violation("DC.tc.SXL", "is 1 although fctl.GXL can only be 0", "DCK-20"))?;
        // 22. None without QOSID (DCK-01).
        refuse_if(ta.rcid() & !rules.qos_mask != 0, &Violation("DC.ta.RCID", "is too wide", "DCK-22"))?;
        refuse_if(ta.mcid() & !rules.qos_mask != 0, &Violation("DC.ta.MCID", "is too wide", "DCK-22"))?;
        // UNSPECIFIED: MSI translation without a second stage is refused, as the text recommends (rule DCK-23).
        refuse_if(bare && msi != BARE, &Violation("DC.msiptp.MODE", "needs a second stage in iohgatp", "DCK-23"))
    }

    fn check_reserved_bits(&self, caps: Capabilities) -> Result<(), &'static Violation> {
        const PROBLEM: &str = "has a reserved bit that is 1";
        const RULE: &str = "DCK-01";
        let BaseContext { tc, ta, fsc, .. } = *self.base();
        refuse_if(tc.rsvd0() != 0 || tc.rsvd1() != 0, &Violation("DC.tc", PROBLEM, RULE))?;
        refuse_if(ta.rsvd0() != 0 || ta.rsvd1() != 0, &Violation("DC.ta", PROBLEM, RULE))?;
        refuse_if(fsc.rsvd0() != 0, &Violation("DC.fsc", PROBLEM, RULE))?;
        let Self::Extended(ExtendedContext { base: _, msiptp, msi_addr_mask, msi_addr_pattern, rsvd }) = self else {
            return Ok(());
        };
        let wide = |bits: MsiPageBits| {
            // Page number bits past the guest-physical width (DC-30).
            let width = u32::from(caps.guest_physical_width()).saturating_sub(12);
            bits.rsvd0() != 0 || bits.page().checked_shr(width).is_some_and(|above| above != 0)
        };
        refuse_if(msiptp.rsvd0() != 0, &Violation("DC.msiptp", PROBLEM, RULE))?;
        refuse_if(wide(*msi_addr_mask), &Violation("DC.msi_addr_mask", PROBLEM, RULE))?;
        refuse_if(wide(*msi_addr_pattern), &Violation("DC.msi_addr_pattern", PROBLEM, RULE))?;
        refuse_if(*rsvd != 0, &Violation("DC", PROBLEM, RULE))
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
