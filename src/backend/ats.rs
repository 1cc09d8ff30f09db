//! What devices that keep translations of their own are allowed, and the messages to them.

use crate::addr::Iova;
use crate::id::{Prgi, ProcessId};

/// What a device may do besides untranslated requests; each step includes the one before.
///
/// Two bits of a physical context go with it that are the host's. `T2GPA` is 1 where the IOMMU has it, so that what the
/// device keeps are guest-physical addresses, which the second stage translates again; without it the device could
/// reach any memory, which takes a [policy](crate::DevicePolicy::with_trusted_translations). `PRPR` is what the
/// function asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "EN_PRI needs EN_ATS, and there is no third bit")]
pub enum Ats {
    /// Nothing: `EN_ATS` = `EN_PRI` = 0.
    #[default]
    Off,
    /// ATS translation requests, translated requests and invalidation completions: `EN_ATS` = 1.
    Translations,
    /// Page requests too: `EN_ATS` = `EN_PRI` = 1.
    PageRequests,
}

/// What a device is to forget of the translations it keeps itself: an ATS Invalidation Request, to the function whose
/// [`PhysicalIommu::Device`](super::PhysicalIommu::Device) comes with it. Everything in it is the guest's, or the
/// crate's own where a device leaves; the function's IDs are the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AtsInvalidation {
    /// PASID of the request.
    pub process: Option<ProcessId>,
    /// `G`: translations of every PASID; only with a `process`.
    pub global: bool,
    /// First byte of the first page, as the device knows it.
    pub first: Iova,
    /// First byte of the last page; the range is a power of two pages, aligned to its size.
    pub last: Iova,
}

impl AtsInvalidation {
    /// Every address, of requests without a PASID.
    pub const ALL: Self = Self { process: None, global: false, first: Iova::new(0), last: Iova::new(u64::MAX).page() };

    /// Every address of every PASID.
    pub const ALL_PROCESSES: Self = Self { process: Some(ProcessId::truncate(0)), global: true, ..Self::ALL };
}

/// A Page Request Group Response: of the guest, or of the IOMMU itself where the guest gets no record of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the device waits for it"]
#[non_exhaustive]
pub struct PageResponse {
    /// PASID. For an emulated device as it goes into the message; for a passthrough device that of the request, which
    /// the host sends where the function asks for one (`PRPR`), and with `ResponseFailure` always.
    pub process: Option<ProcessId>,
    /// The group that is answered. For an emulated device a guest may name one that was never requested: the device
    /// ignores it.
    pub group: Prgi,
    /// What is answered.
    pub code: ResponseCode,
}

/// What a Page Request Group Response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResponseCode {
    /// The pages were dealt with: the function asks for translations again.
    Success,
    /// The function may not have one of the pages.
    InvalidRequest,
    /// The function stops making page requests until they are enabled again.
    ResponseFailure,
}

impl ResponseCode {
    /// The meaning of the 4-bit field; a function takes codes that are not defined for a failure.
    #[must_use]
    pub const fn decode(bits: u8) -> Self {
        match bits {
            0 => Self::Success,
            1 => Self::InvalidRequest,
            _ => Self::ResponseFailure,
        }
    }

    /// The 4-bit code.
    #[must_use]
    pub const fn encoding(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::InvalidRequest => 1,
            Self::ResponseFailure => 0xf,
        }
    }
}
