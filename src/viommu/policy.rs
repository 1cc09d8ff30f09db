//! What the host decides of a device, and not its guest.

use crate::backend::Ats;

/// What the host grants a device beyond translation: nothing, unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DevicePolicy {
    /// The most the guest may turn on for the device, where [`Config::with_ats`](crate::Config::with_ats) offers it at
    /// all. The model of an emulated device answers invalidation requests.
    pub ats: Ats,
    /// For a passthrough device: it sends as translated only addresses that the IOMMU gave it.
    pub trusted_translations: bool,
    /// For a passthrough device: a Response Failure of the guest may turn its page requests off.
    pub response_failure: bool,
}

impl DevicePolicy {
    /// States [`ats`](Self::ats).
    #[must_use]
    pub const fn with_ats(self, ats: Ats) -> Self {
        Self { ats, ..self }
    }

    /// States [`trusted_translations`](Self::trusted_translations): the device gets ATS although its IOMMU has no
    /// `T2GPA`. Translated requests then pass every check, so that a device that makes addresses up reaches all memory
    /// of the host (rule MRG-03). And what it keeps can not be revoked while the guest has it: before it is detached
    /// the host resets the function, or turns its ATS off.
    #[must_use]
    pub const fn with_trusted_translations(self, trusted: bool) -> Self {
        Self { trusted_translations: trusted, ..self }
    }

    /// States [`response_failure`](Self::response_failure). A Response Failure turns the page requests of a function
    /// off and those of all functions that share its interface (PF and VFs): granted where all of them are the guest's,
    /// else the device is told that its request was invalid (rule PRG-06).
    #[must_use]
    pub const fn with_response_failure(self, granted: bool) -> Self {
        Self { response_failure: granted, ..self }
    }
}
