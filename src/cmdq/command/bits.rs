//! Bit layout of the 128-bit commands, with the specification's bit numbers. Layout only.

use bitfield_struct::bitfield;

use crate::error::{Violation, refuse_if};
use crate::id::{DeviceId, Gscid, ProcessId, Pscid};
use crate::regs::Capabilities;

pub(super) const IOTINVAL: u8 = 1;
pub(super) const IOFENCE: u8 = 2;
pub(super) const IODIR: u8 = 3;
pub(super) const ATS: u8 = 4;

/// What every command begins with.
#[bitfield(u128, debug = false)]
pub(super) struct Head {
    #[bits(7)]
    pub(super) opcode: u8,
    #[bits(3)]
    pub(super) func3: u8,
    #[bits(118, access = RO)]
    pub(super) rsvd0: u128,
}

/// `IOTINVAL`; `page` is ADDR\[63:12\].
#[bitfield(u128, debug = false)]
pub(super) struct IotinvalBits {
    #[bits(7)]
    pub(super) opcode: u8,
    #[bits(3)]
    pub(super) func3: u8,
    pub(super) av: bool,
    #[bits(access = RO)]
    pub(super) rsvd0: bool,
    #[bits(20, default = Pscid::truncate(0))]
    pub(super) pscid: Pscid,
    pub(super) pscv: bool,
    pub(super) gv: bool,
    pub(super) nl: bool,
    #[bits(9, access = RO)]
    pub(super) rsvd1: u16,
    #[bits(16, default = Gscid::truncate(0))]
    pub(super) gscid: Gscid,
    #[bits(4, access = RO)]
    pub(super) rsvd2: u8,
    #[bits(9, access = RO)]
    pub(super) rsvd3: u16,
    pub(super) s: bool,
    #[bits(52)]
    pub(super) page: u64,
    #[bits(2, access = RO)]
    pub(super) rsvd4: u8,
}

/// `IOFENCE`; `addr` is ADDR\[63:2\].
#[bitfield(u128, debug = false)]
pub(super) struct IofenceBits {
    #[bits(7)]
    pub(super) opcode: u8,
    #[bits(3)]
    pub(super) func3: u8,
    pub(super) av: bool,
    pub(super) wsi: bool,
    pub(super) pr: bool,
    pub(super) pw: bool,
    #[bits(18, access = RO)]
    pub(super) rsvd0: u32,
    pub(super) data: u32,
    #[bits(62)]
    pub(super) addr: u64,
    #[bits(2, access = RO)]
    pub(super) rsvd1: u8,
}

/// `IODIR`.
#[bitfield(u128, debug = false)]
pub(super) struct IodirBits {
    #[bits(7)]
    pub(super) opcode: u8,
    #[bits(3)]
    pub(super) func3: u8,
    #[bits(2, access = RO)]
    pub(super) rsvd0: u8,
    #[bits(20, default = ProcessId::truncate(0))]
    pub(super) pid: ProcessId,
    #[bits(access = RO)]
    pub(super) rsvd1: bool,
    pub(super) dv: bool,
    #[bits(6, access = RO)]
    pub(super) rsvd2: u8,
    #[bits(24, default = DeviceId::truncate(0))]
    pub(super) did: DeviceId,
    #[bits(64, access = RO)]
    pub(super) rsvd3: u64,
}

/// `ATS`.
#[bitfield(u128, debug = false)]
pub(super) struct AtsBits {
    #[bits(7)]
    pub(super) opcode: u8,
    #[bits(3)]
    pub(super) func3: u8,
    #[bits(2, access = RO)]
    pub(super) rsvd0: u8,
    #[bits(20, default = ProcessId::truncate(0))]
    pub(super) pid: ProcessId,
    pub(super) pv: bool,
    pub(super) dsv: bool,
    #[bits(6, access = RO)]
    pub(super) rsvd1: u8,
    pub(super) rid: u16,
    pub(super) dseg: u8,
    pub(super) payload: u64,
}

type Checked = Result<(), &'static Violation>;

impl IotinvalBits {
    /// Reserved bits, and those that are without their capability (rule CMD-04).
    pub(super) fn check(self, capabilities: Capabilities) -> Checked {
        let reserved = self.rsvd0() || self.rsvd1() | self.rsvd3() != 0 || self.rsvd2() | self.rsvd4() != 0;
        refuse_if(reserved, &Violation("IOTINVAL", "has a reserved bit that is 1", "CMD-04"))?;
        refuse_if(self.nl() && !capabilities.nl(), &Violation("IOTINVAL.NL", "needs capabilities.NL", "CMD-04"))?;
        refuse_if(self.s() && !capabilities.s(), &Violation("IOTINVAL.S", "needs capabilities.S", "CMD-04"))
    }
}

impl IofenceBits {
    /// Reserved bits (rule CMD-08), and the wire the guest has to have chosen (rule CMD-09).
    pub(super) fn check(self, wsi: bool) -> Checked {
        let reserved = self.rsvd0() != 0 || self.rsvd1() != 0;
        refuse_if(reserved, &Violation("IOFENCE.C", "has a reserved bit that is 1", "CMD-08"))?;
        refuse_if(self.wsi() && !wsi, &Violation("IOFENCE.C.WSI", "needs fctl.WSI", "CMD-09"))
    }
}

impl IodirBits {
    /// Bits that are reserved in every `IODIR` command (rule CMD-10), and a `DID` that counts but is too wide.
    pub(super) fn check(self, device_id_width: u32) -> Checked {
        let reserved = self.rsvd0() != 0 || self.rsvd1() || self.rsvd2() != 0 || self.rsvd3() != 0;
        refuse_if(reserved, &Violation("IODIR", "has a reserved bit that is 1", "CMD-10"))?;
        let wide = self.dv() && !self.did().fits(device_id_width);
        refuse_if(wide, &Violation("IODIR.DID", "is wider than ddtp.iommu_mode takes", "CMD-13"))
    }

    /// `INVAL_DDT` names no process (rule CMD-11).
    pub(super) fn check_ddt(self) -> Checked {
        refuse_if(self.pid().get() != 0, &Violation("IODIR.INVAL_DDT.PID", "is reserved and not 0", "CMD-11"))
    }

    /// `INVAL_PDT` names a process of one device (rules CMD-12, CMD-14).
    pub(super) fn check_pdt(self, process_id_width: u32) -> Checked {
        refuse_if(!self.dv(), &Violation("IODIR.INVAL_PDT.DV", "is 0", "CMD-12"))?;
        let wide = !self.pid().fits(process_id_width);
        refuse_if(wide, &Violation("IODIR.INVAL_PDT.PID", "is wider than any process directory takes", "CMD-14"))
    }
}

impl AtsBits {
    /// The capability, and reserved bits (rule CMD-15). Those of the payload are not looked at (rule CMD-16).
    pub(super) fn check(self, capabilities: Capabilities) -> Checked {
        refuse_if(!capabilities.ats(), &Violation("ATS", "needs capabilities.ATS", "CMD-15"))?;
        let reserved = self.rsvd0() != 0 || self.rsvd1() != 0;
        refuse_if(reserved, &Violation("ATS", "has a reserved bit that is 1", "CMD-15"))
    }
}
