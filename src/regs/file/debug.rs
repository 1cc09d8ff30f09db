//! The registers of the translation-request interface, and `iommu_qosid`.

use crate::addr::Iova;
use crate::regs::{IommuQosid, Register, TrReqCtl, TrReqIova, TrResponse};

use super::{Effect, Registers};

impl Registers {
    pub(super) fn write_tr_req_iova(&mut self, new: TrReqIova) {
        if self.accepts_request() {
            self.put(Register::TrReqIova, TrReqIova::new().with_vpn(new.vpn()).into_bits());
        }
    }

    pub(super) fn write_tr_req_ctl(&mut self, new: TrReqCtl) -> Effect {
        if !self.accepts_request() {
            return Effect::None;
        }
        let ctl = TrReqCtl::new()
            .with_go_busy(new.go_busy())
            .with_is_priv(new.is_priv())
            .with_exe(new.exe())
            .with_nw(new.nw())
            .with_pid(new.pid())
            .with_pv(new.pv())
            .with_did(new.did());
        self.put(Register::TrReqCtl, ctl.into_bits());
        if new.go_busy() { Effect::Debug } else { Effect::None }
    }

    // UNSPECIFIED: a write while a request is under way is dropped. No guest sees one under way: the response is there
    // when the write that asks for it returns (rule DBG-25).
    fn accepts_request(&self) -> bool {
        self.setup.capabilities.dbg() && !self.debug_request().1.go_busy()
    }

    /// What [`Effect::Debug`] asks for.
    pub(crate) fn debug_request(&self) -> (Iova, TrReqCtl) {
        // The offset bits of the register are 0 (rule DBG-01).
        (Iova::new(self.value(Register::TrReqIova)), TrReqCtl::from_bits(self.value(Register::TrReqCtl)))
    }

    /// Ends the request.
    pub(crate) fn set_debug_response(&mut self, response: TrResponse) {
        self.put(Register::TrResponse, response.into_bits());
        let (_, ctl) = self.debug_request();
        self.put(Register::TrReqCtl, ctl.with_go_busy(false).into_bits());
    }

    /// The IDs of the IOMMU's own accesses, and of all requests in Bare mode.
    pub(crate) fn qosid(&self) -> IommuQosid {
        IommuQosid::from_bits(self.word(Register::IommuQosid))
    }

    /// The bits of RCID and MCID that are implemented, in this register and in contexts (rule REG-QOS-05).
    pub(crate) const fn qos_mask(&self) -> u16 {
        let bits = if self.setup.capabilities.qosid() { self.setup.qos_bits } else { 0 };
        low_bits(bits)
    }

    pub(super) fn write_iommu_qosid(&mut self, new: IommuQosid) {
        let mask = self.qos_mask();
        let qosid = IommuQosid::new().with_rcid(new.rcid() & mask).with_mcid(new.mcid() & mask);
        self.put(Register::IommuQosid, qosid.into_bits().into());
    }
}

/// The low `bits` bits of a 12-bit field.
#[expect(clippy::as_conversions, reason = "widening, and `From` is not const")]
const fn low_bits(bits: u8) -> u16 {
    !u16::MAX.wrapping_shl(bits as u32) & 0xfff
}
