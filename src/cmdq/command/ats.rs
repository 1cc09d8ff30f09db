//! Operands of the ATS commands, and the payloads they carry to a device.

use bitfield_struct::bitfield;

use crate::id::{DeviceId, Prgi, ProcessId};

use super::PageRange;
use super::bits::{ATS, AtsBits};

/// The function an ATS command names, and the PASID of the message. Source: "IOMMU ATS commands".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Destination {
    /// `DSEG`, if `DSV`.
    pub segment: Option<u8>,
    /// `RID`.
    pub rid: u16,
    /// `PID`, if `PV`.
    pub process: Option<ProcessId>,
}

impl Destination {
    /// A function in a machine with one segment.
    #[must_use]
    pub const fn new(rid: u16) -> Self {
        Self { segment: None, rid, process: None }
    }

    /// The same function of this segment.
    #[must_use]
    pub const fn with_segment(self, segment: u8) -> Self {
        Self { segment: Some(segment), ..self }
    }

    /// The same with a PASID.
    #[must_use]
    pub const fn with_process(self, process: ProcessId) -> Self {
        Self { process: Some(process), ..self }
    }

    /// The `device_id` of the function.
    // UNSPECIFIED: without `DSV` it is that of segment 0 (rules ATC-01, PRI-01).
    #[must_use]
    pub fn device(self) -> DeviceId {
        DeviceId::truncate(u32::from(self.segment.unwrap_or(0)) << 16 | u32::from(self.rid))
    }

    pub(super) fn decode(bits: AtsBits) -> Self {
        Self { segment: bits.dsv().then(|| bits.dseg()), rid: bits.rid(), process: bits.pv().then(|| bits.pid()) }
    }

    fn encode(self) -> AtsBits {
        AtsBits::new()
            .with_opcode(ATS)
            .with_dsv(self.segment.is_some())
            .with_dseg(self.segment.unwrap_or(0))
            .with_rid(self.rid)
            .with_pv(self.process.is_some())
            .with_pid(self.process.unwrap_or(ProcessId::truncate(0)))
    }
}

/// Operands of `ATS.INVAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AtsInval {
    /// Whom the Invalidation Request goes to.
    pub destination: Destination,
    /// What the function is to forget.
    pub payload: InvalidationPayload,
}

impl AtsInval {
    /// An Invalidation Request to this function.
    #[must_use]
    pub const fn new(destination: Destination, payload: InvalidationPayload) -> Self {
        Self { destination, payload }
    }

    pub(super) fn decode(bits: AtsBits) -> Self {
        Self { destination: Destination::decode(bits), payload: InvalidationPayload::from_bits(bits.payload()).kept() }
    }

    pub(super) fn encode(self) -> u128 {
        self.destination.encode().with_payload(self.payload.into_bits()).into_bits()
    }
}

/// Operands of `ATS.PRGR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AtsPrgr {
    /// Whom the Page Request Group Response goes to.
    pub destination: Destination,
    /// The response.
    pub payload: ResponsePayload,
}

impl AtsPrgr {
    /// A Page Request Group Response to this function.
    #[must_use]
    pub const fn new(destination: Destination, payload: ResponsePayload) -> Self {
        Self { destination, payload }
    }

    pub(super) fn decode(bits: AtsBits) -> Self {
        Self { destination: Destination::decode(bits), payload: ResponsePayload::from_bits(bits.payload()).kept() }
    }

    pub(super) fn encode(self) -> u128 {
        self.destination.encode().with_func3(1).with_payload(self.payload.into_bits()).into_bits()
    }
}

/// Payload of an ATS Invalidation Request (64 bits). Source: "IOMMU ATS commands".
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationPayload {
    /// The entries of every PASID; without a PASID in the request it says nothing.
    pub g: bool,
    #[bits(10, access = RO)]
    rsvd0: u16,
    /// More than one page: the lowest 0 bit of the page number tells how many.
    pub s: bool,
    /// Page number of the untranslated address.
    #[bits(52)]
    pub page: u64,
}

impl InvalidationPayload {
    /// The pages that are meant.
    #[must_use]
    pub const fn range(self) -> PageRange {
        PageRange::decode(self.page(), self.s(), false)
    }

    /// Without the bits that mean nothing (rule CMD-16).
    const fn kept(self) -> Self {
        Self::new().with_g(self.g()).with_s(self.s()).with_page(self.page())
    }
}

/// Payload of a Page Request Group Response (64 bits). Source: "IOMMU ATS commands".
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct ResponsePayload {
    #[bits(32, access = RO)]
    rsvd0: u32,
    /// The group that is answered.
    #[bits(9, default = Prgi::truncate(0))]
    pub prgi: Prgi,
    #[bits(3, access = RO)]
    rsvd1: u8,
    /// The 4-bit response code as it stands; [`ResponseCode::decode`](crate::ResponseCode::decode) gives it a meaning.
    #[bits(4)]
    pub code: u8,
    #[bits(16, access = RO)]
    rsvd2: u16,
}

impl ResponsePayload {
    /// Without the bits that mean nothing (rule CMD-16).
    const fn kept(self) -> Self {
        Self::new().with_prgi(self.prgi()).with_code(self.code())
    }
}
