//! One attached device.

use crate::attachment::Attachment;
use crate::backend::{Context, Ticket};
use crate::id::DeviceId;

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

/// Why the guest's directory is to be read again, weakest reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reread {
    /// The guest did not ask: it need not fence a change that is found, so the crate does.
    Unasked,
    /// `ddtp` was written; `busy` waits for a fence.
    Directory,
    /// The guest named the device in an `IODIR.INVAL_DDT` and will fence it. Hardware is told to forget the device even
    /// if its context does not change (rule VC-51).
    Named,
}

/// The fence after which the last change of a context is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is.
    Final,
    /// No fence has been issued since.
    Unfenced,
    /// It is when this one is complete.
    Fenced(Ticket),
}

impl Step {
    /// Whether the change is final once every fence up to `completed` is complete.
    pub(super) fn is_final(self, completed: Ticket) -> bool {
        match self {
            Self::Final => true,
            Self::Unfenced => false,
            Self::Fenced(ticket) => ticket <= completed,
        }
    }
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one device")]
pub(super) struct Slot<D> {
    pub(super) attachment: Attachment,
    pub(super) device: D,
    pub(super) phase: Phase,
    pub(super) stale: Option<Reread>,
    /// The last reading was one the guest did not ask for.
    pub(super) unasked: bool,
    /// The context hardware is to have.
    pub(super) wanted: Context,
    /// The context hardware has; `None` while that is not known.
    pub(super) live: Option<Context>,
    /// An invalidation of the device is to go into the batch.
    pub(super) owed: bool,
    pub(super) step: Step,
    /// Nothing more is done to the device before that fence, which the crate issues by itself.
    pub(super) hold: bool,
    /// The device was blocked at some time since its context was last final.
    pub(super) was_blocked: bool,
    /// Hardware has translated for the device since it came, or since the reset.
    pub(super) was_open: bool,
    /// How often the host blocked the device on its way to `wanted`.
    pub(super) detours: u8,
    /// The host refused the last context; not tried again until the guest or the host names the device.
    pub(super) refused: bool,
    /// Blocked because the directory has an entry with V = 0.
    pub(super) not_valid: bool,
    /// `DTF` of the last context the directory gave.
    pub(super) dtf: bool,
}

impl<D> Slot<D> {
    /// A device just adopted: what context it has is not known.
    pub(super) const fn new(attachment: Attachment, device: D) -> Self {
        Self {
            attachment,
            device,
            phase: Phase::Entering,
            stale: None,
            unasked: false,
            wanted: Context::Blocked,
            live: None,
            owed: true,
            step: Step::Unfenced,
            hold: true,
            was_blocked: true,
            was_open: false,
            detours: 0,
            refused: false,
            not_valid: false,
            dtf: false,
        }
    }

    /// The guest's id of the device.
    pub(super) const fn id(&self) -> DeviceId {
        self.attachment.device()
    }

    /// Blocked, invalidated and fenced anew, then released.
    pub(super) fn leave(&mut self) {
        self.restart();
        self.phase = Phase::Leaving;
    }

    /// Blocked, invalidated and fenced anew, whatever was known of it; what comes then is up to the phase.
    pub(super) fn restart(&mut self) {
        let Self {
            attachment: _,
            device: _,
            phase,
            stale,
            unasked,
            wanted,
            live,
            owed,
            step,
            hold,
            was_blocked,
            was_open,
            detours,
            refused,
            not_valid,
            dtf,
        } = self;
        if *phase == Phase::Live {
            *phase = Phase::Entering;
        }
        *stale = None;
        *unasked = false;
        *wanted = Context::Blocked;
        *live = None;
        *owed = true;
        *step = Step::Unfenced;
        *hold = true;
        *was_blocked = true;
        *was_open = false;
        *detours = 0;
        *refused = false;
        *not_valid = false;
        *dtf = false;
    }

    /// The directory is to be read again. Whoever says so gives the host another chance with a context it refused.
    pub(super) fn reread(&mut self, why: Reread) {
        self.stale = self.stale.max(Some(why));
        self.refused = false;
    }

    /// Hardware has another context now; caches may not know. `hold`: go on after a fence only.
    pub(super) fn changed(&mut self, live: Context, hold: bool) {
        self.was_blocked |= !self.is_open() || live == Context::Blocked;
        self.live = Some(live);
        self.was_open |= self.is_open();
        self.owed = true;
        self.step = Step::Unfenced;
        self.hold |= hold;
    }

    /// Hardware is to have another context than before. A host that is on its way to the old one is told, even if the
    /// device is blocked already.
    pub(super) fn want(&mut self, wanted: Context) {
        if core::mem::take(&mut self.detours) != 0 && wanted == Context::Blocked {
            self.live = None;
        }
        self.wanted = wanted;
    }

    /// The host would not have the wanted context: blocked until somebody names the device again.
    pub(super) fn refuse(&mut self) {
        self.wanted = Context::Blocked;
        self.live = None;
        self.refused = true;
        self.detours = 0;
        self.hold |= self.unasked;
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.live == Some(Context::Blocked)
    }

    /// Whether hardware translates for the device.
    pub(super) fn is_open(&self) -> bool {
        self.live.is_some_and(|live| live != Context::Blocked)
    }
}
