//! One attached device.

use crate::backend::{Context, Ticket};
use crate::id::DeviceId;

/// Proof of one attachment. What the host delivers for a device presents it, so that nothing meant for an earlier
/// owner of the same id arrives (rule T34).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// Where an attachment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Blocked until a fence shows that nothing older is under way; then its context is read.
    Entering,
    /// Its context follows the guest's directory.
    Live,
    /// Blocked until a fence shows that nothing is under way; then it is released.
    Leaving,
}

/// The fence a slot needs before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    None,
    /// It needs one that has not been issued.
    Unfenced,
    /// It goes on when this one is complete.
    Fenced(Ticket),
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one device")]
pub(super) struct Slot<D> {
    pub(super) id: DeviceId,
    pub(super) device: D,
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) step: Step,
    /// The guest's directory is to be read again.
    pub(super) stale: bool,
    /// The guest ordered the device's entries to be dropped; hardware is told even if its context does not change
    /// (rule VC-51).
    pub(super) named: bool,
    /// An invalidation of the device is to go into the batch.
    pub(super) owed: bool,
    /// How often the host blocked the device on its way to `wanted`.
    pub(super) steps: u8,
    /// The host refused the last context; not tried again until the guest or the host names the device.
    pub(super) refused: bool,
    pub(super) wanted: Context,
    /// What hardware has; `None` while that is not known.
    pub(super) live: Option<Context>,
    /// Blocked because the directory has an entry with V = 0.
    pub(super) not_valid: bool,
    /// `DTF` of the context last read.
    pub(super) dtf: bool,
}

impl<D> Slot<D> {
    /// A device just adopted: what context it has is not known.
    pub(super) const fn new(id: DeviceId, device: D, generation: u32) -> Self {
        Self {
            id,
            device,
            generation,
            phase: Phase::Entering,
            step: Step::None,
            stale: false,
            named: false,
            owed: false,
            steps: 0,
            refused: false,
            wanted: Context::Blocked,
            live: None,
            not_valid: false,
            dtf: false,
        }
    }

    pub(super) const fn attachment(&self) -> Attachment {
        Attachment { device: self.id, generation: self.generation }
    }

    pub(super) fn leave(&mut self) {
        self.phase = Phase::Leaving;
        self.restart();
    }

    /// Blocked, invalidated and fenced anew; what comes then is up to the phase.
    pub(super) fn restart(&mut self) {
        if self.phase == Phase::Live {
            self.phase = Phase::Entering;
        }
        self.step = Step::None;
        self.stale = false;
        self.named = false;
        self.steps = 0;
        self.refused = false;
        self.not_valid = false;
        self.dtf = false;
        self.wanted = Context::Blocked;
        // Ordered again even if it is blocked: the orders before may have been lost.
        self.live = None;
        self.owed = true;
    }

    /// The host would not have the wanted context: blocked until somebody names the device again.
    pub(super) fn refuse(&mut self) {
        self.wanted = Context::Blocked;
        self.refused = true;
        self.steps = 0;
        self.owed = true;
    }
}
