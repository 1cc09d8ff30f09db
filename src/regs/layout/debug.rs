//! Registers of the translation-request interface, and the IDs of the IOMMU's own accesses. Types only.

use bitfield_struct::bitfield;

use crate::addr::Ppn;
use crate::id::{DeviceId, ProcessId};

/// `tr_req_iova` (offset 600, 64 bits): what to translate. Source: "Translation-request IOVA".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TrReqIova {
    #[bits(12, access = RO)]
    rsvd0: u16,
    /// Page number of the IOVA.
    #[bits(52)]
    pub vpn: u64,
}

/// `tr_req_ctl` (offset 608, 64 bits): for whom to translate, and the start. Source: "Translation-request control".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TrReqCtl {
    /// `Go/Busy`: written 1 to start, 0 again when the response is there.
    pub go_busy: bool,
    /// `Priv`: privileged access; not looked at without `pv`.
    pub is_priv: bool,
    /// Execute permission is asked for; only with `nw`.
    pub exe: bool,
    /// No write: 1 asks for read permission, 0 for read and write permission.
    pub nw: bool,
    #[bits(8, access = RO)]
    rsvd0: u8,
    /// `process_id`; not looked at without `pv`.
    #[bits(20, default = ProcessId::truncate(0))]
    pub pid: ProcessId,
    /// There is a `process_id`.
    pub pv: bool,
    #[bits(3, access = RO)]
    rsvd1: u8,
    #[bits(4, access = RO)]
    custom: u8,
    /// `device_id`.
    #[bits(24, default = DeviceId::truncate(0))]
    pub did: DeviceId,
}

/// `tr_response` (offset 616, 64 bits, read-only): the result. Source: "Translation-response".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TrResponse {
    /// The translation faulted; the other fields mean nothing.
    pub fault: bool,
    #[bits(6, access = RO)]
    rsvd0: u8,
    /// Memory type as a page-table entry encodes it.
    #[bits(2)]
    pub pbmt: u8,
    /// The mapping is larger than 4 KiB, and `ppn` has its size in the low bits.
    pub s: bool,
    /// Page it leads to.
    #[bits(44, default = Ppn::truncate(0))]
    pub ppn: Ppn,
    #[bits(6, access = RO)]
    rsvd1: u8,
    #[bits(4, access = RO)]
    custom: u8,
}

/// `iommu_qosid` (offset 624, 32 bits): QoS IDs of what the IOMMU itself accesses, and of all requests in Bare mode.
/// Source: "IOMMU QoS ID".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IommuQosid {
    /// Resource-control ID.
    #[bits(12)]
    pub rcid: u16,
    #[bits(4, access = RO)]
    rsvd0: u8,
    /// Monitoring-counter ID.
    #[bits(12)]
    pub mcid: u16,
    #[bits(4, access = RO)]
    rsvd1: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals are worked out from the bit diagrams of the registers.
    #[test]
    fn requests_are_laid_out_as_specified() {
        assert_eq!(TrReqIova::new().with_vpn((1 << 52) - 1).into_bits(), 0xffff_ffff_ffff_f000, "DBG-01, DBG-02");
        let ctl = TrReqCtl::new;
        let cases = [
            (ctl().with_go_busy(true), 0x1, "DBG-03"),
            (ctl().with_is_priv(true), 0x2, "DBG-04"),
            (ctl().with_exe(true), 0x4, "DBG-05"),
            (ctl().with_nw(true), 0x8, "DBG-06"),
            (ctl().with_pid(ProcessId::truncate(u32::MAX)), 0xffff_f000, "DBG-07, DBG-08"),
            (ctl().with_pv(true), 0x1_0000_0000, "DBG-09"),
            (ctl().with_did(DeviceId::truncate(u32::MAX)), 0xffff_ff00_0000_0000, "DBG-10 to DBG-12"),
        ];
        for (register, literal, rule) in cases {
            assert_eq!(register.into_bits(), literal, "{rule}");
        }
    }

    #[test]
    fn responses_are_laid_out_as_specified() {
        assert_eq!(TrResponse::new().with_fault(true).into_bits(), 0x1, "DBG-13");
        assert_eq!(TrResponse::new().with_pbmt(3).into_bits(), 0x180, "DBG-14, DBG-15");
        assert_eq!(TrResponse::new().with_s(true).into_bits(), 0x200, "DBG-16");
        let widest = TrResponse::new().with_ppn(Ppn::truncate(u64::MAX));
        assert_eq!(widest.into_bits(), 0x003f_ffff_ffff_fc00, "DBG-17, DBG-18");
    }

    #[test]
    fn qos_ids_are_laid_out_as_specified() {
        assert_eq!(IommuQosid::new().with_rcid(0xfff).into_bits(), 0x0fff, "REG-QOS-01, REG-QOS-02");
        assert_eq!(IommuQosid::new().with_mcid(0xfff).into_bits(), 0x0fff_0000, "REG-QOS-03, REG-QOS-04");
    }
}
