//! Proof that a device is attached, for passthrough and emulated devices alike.

use crate::id::DeviceId;

/// Proof of one attachment. What the host delivers for a device presents it, so that nothing meant for an earlier
/// owner of the same id arrives.
///
/// It is a number of the vIOMMU that gave it, and may equal one of another vIOMMU, or of an earlier one for the same VM:
/// to which vIOMMU an event goes is for the host to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    device: DeviceId,
    generation: u32,
}

impl Attachment {
    /// The guest's id of the device.
    #[must_use]
    pub const fn device(self) -> DeviceId {
        self.device
    }
}

/// Makes attachments, no two of one vIOMMU alike: one counter for every kind of device, which only grows, also across
/// resets.
#[derive(Debug)]
pub(crate) struct Generations(u32);

impl Generations {
    pub(crate) const fn new() -> Self {
        Self(0)
    }

    /// A new attachment of the device.
    pub(crate) fn attach(&mut self, device: DeviceId) -> Attachment {
        self.0 = self.0.wrapping_add(1);
        Attachment { device, generation: self.0 }
    }
}
