//! Bit layout of the 128-bit commands, with the specification's bit numbers. Layout only.

use bitfield_struct::bitfield;

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

impl IotinvalBits {
    /// Whether a bit is set that is reserved, or is without its capability (rule CMD-04).
    pub(super) fn is_reserved(self, capabilities: Capabilities) -> bool {
        self.rsvd0()
            || self.rsvd1() != 0
            || self.rsvd2() != 0
            || self.rsvd3() != 0
            || self.rsvd4() != 0
            || (self.nl() && !capabilities.nl())
            || (self.s() && !capabilities.s())
    }
}

impl IofenceBits {
    /// Whether a reserved bit is set (rule CMD-08).
    pub(super) fn is_reserved(self) -> bool {
        self.rsvd0() != 0 || self.rsvd1() != 0
    }
}

impl IodirBits {
    /// Whether a bit is set that is reserved in every `IODIR` command (rule CMD-10).
    pub(super) fn is_reserved(self) -> bool {
        self.rsvd0() != 0 || self.rsvd1() || self.rsvd2() != 0 || self.rsvd3() != 0
    }
}

impl AtsBits {
    /// Whether a reserved bit is set (rule CMD-15). Those of the payload are not looked at (rule CMD-16).
    pub(super) fn is_reserved(self) -> bool {
        self.rsvd0() != 0 || self.rsvd1() != 0
    }
}
