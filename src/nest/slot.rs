//! One attached device.
//!
//! Three facts move, each at its own pace:
//!
//! - its life: [`Phase`];
//! - its context: `stale` (the directory is to be read), `wanted`, then `live`. While `live` is not known the device is
//!   blocked before anything else is ordered. What changes `live` makes an invalidation `owed`, and is final after the
//!   fence that follows both (`step`). While the slot is on `hold` it waits for that fence, which the crate then issues
//!   by itself; else the next change may come at once, and the guest's fence serves;
//! - what the device keeps itself: [`Purge`].
//!
//! | history | what hardware and the device are told |
//! |---|---|
//! | adopted, restarted | Blocked, invalidation, fence; then the directory's context |
//! | leaving | Blocked, invalidation, fence; then released |
//! | restarted, leaving, may keep translations | Quiesced, invalidation, fence; forget, fence; then as above |
//! | in use, memory was taken from the guest | invalidation, fence; forget, fence |
//!
//! So the fence that a slot was on hold for lets it go on by this table:
//!
//! | | `Purge::No` | `Quiescing` | `Fencing` |
//! |---|---|---|---|
//! | `Entering` | becomes `Live`, and stale | `Forgetting` once it is Quiesced | to be blocked, on hold again |
//! | `Live` | its next context | `Forgetting` | `No`; without ATS, if it did not answer |
//! | `Leaving` | is released | `Forgetting` once it is Quiesced | to be blocked, on hold again |
//!
//! `Forgetting` needs no fence: when all requests are sent it becomes `Fencing`, on hold. Beside that, a context the
//! host `refused`, by a word or by too many `detours`, leaves the device blocked until somebody names it again; and one
//! that left [`MAX_TIMEOUTS`] requests in a row unanswered is blocked without being told to forget.

use core::num::NonZeroU64;

use crate::addr::Gpa;
use crate::attachment::Attachment;
use crate::backend::{Ats, Context, Ticket};
use crate::id::DeviceId;

use super::ats::Grant;

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

/// The fence after which something is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step(Ticket);

impl Step {
    /// It is.
    pub(super) const FINAL: Self = Self(Ticket::FIRST);
    /// No fence has been issued since.
    pub(super) const UNFENCED: Self = Self(Ticket::NEVER);

    /// It is when this one is complete.
    pub(super) const fn fenced(by: Ticket) -> Self {
        Self(by)
    }

    /// Whether it is final once every fence up to `completed` is complete.
    pub(super) fn is_final(self, completed: Ticket) -> bool {
        self.0 <= completed
    }
}

/// A page of guest memory, in as much room with `Option` as without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page(NonZeroU64);

impl Page {
    /// The one that holds this address.
    pub(super) fn of(at: Gpa) -> Self {
        Self(NonZeroU64::MIN | at.page().get())
    }

    /// Its first byte.
    pub(super) const fn base(self) -> Gpa {
        Gpa::new(self.0.get()).page()
    }
}

/// How far the device's own cache is emptied, before the device is blocked (rule SWG-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purge {
    /// It is not being emptied.
    No,
    /// Nothing is to be filled in any more: a fence after [`Context::Quiesced`] shows that.
    Quiescing,
    /// The device is told to forget: so many requests of [`PURGES`](super::ats::PURGES) have gone out.
    Forgetting(u8),
    /// A fence shows that it did, or that it does not answer.
    Fencing,
}

/// ATS invalidations in a row that a device may leave unanswered before it is trusted with ATS no more.
pub(super) const MAX_TIMEOUTS: u8 = 3;

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one device")]
pub(super) struct Slot<D> {
    pub(super) attachment: Attachment,
    pub(super) device: D,
    pub(super) grant: Grant,
    /// Its IOMMU has `T2GPA`, and so [`Context::Quiesced`].
    pub(super) quiesces: bool,
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
    /// Blocked because the directory has an entry with V = 0, in this page.
    pub(super) not_valid: Option<Page>,
    /// The page the host watches for the device.
    pub(super) watched: Option<Page>,
    /// `DTF` of the last context the directory gave.
    pub(super) dtf: bool,
    /// It may keep translations: it had ATS since it came, since the reset, or since its cache was last emptied.
    pub(super) had_ats: bool,
    pub(super) purge: Purge,
    /// ATS invalidations in a row that it left unanswered, up to [`MAX_TIMEOUTS`].
    pub(super) timeouts: u8,
}

impl<D> Slot<D> {
    /// A device just adopted: what context it has is not known.
    pub(super) const fn new(attachment: Attachment, device: D, grant: Grant, quiesces: bool) -> Self {
        Self {
            attachment,
            device,
            grant,
            quiesces,
            phase: Phase::Entering,
            stale: None,
            unasked: false,
            wanted: Context::Blocked,
            live: None,
            owed: true,
            step: Step::UNFENCED,
            hold: true,
            was_blocked: true,
            was_open: false,
            detours: 0,
            refused: false,
            not_valid: None,
            watched: None,
            dtf: false,
            had_ats: false,
            purge: Purge::No,
            timeouts: 0,
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

    /// Blocked, invalidated and fenced anew, whatever was known of it; what comes then is up to the phase. A device
    /// that may keep translations is made to forget them first, as long as it answers.
    pub(super) fn restart(&mut self) {
        // What it was being made to forget it may keep.
        if self.purge != Purge::No {
            self.distrust_what_it_keeps();
        }
        let purges = self.had_ats && self.quiesces && !self.is_quarantined();
        // A host that blocked it on the way to another context is called again after a fence.
        let on_the_way = self.hold && self.is_blocked();
        let Self {
            attachment: _,
            device: _,
            grant: _,
            quiesces: _,
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
            watched: _,
            dtf,
            had_ats: _,
            purge,
            timeouts: _,
        } = self;
        if *phase == Phase::Live {
            *phase = Phase::Entering;
        }
        *stale = None;
        *unasked = false;
        *wanted = Context::Blocked;
        *live = live.filter(|_| purges);
        *owed = true;
        *step = Step::UNFENCED;
        *hold = true;
        *was_blocked = true;
        *was_open = false;
        *detours = 0;
        *refused = false;
        *not_valid = None;
        *dtf = false;
        *purge = Purge::No;
        if purges {
            *purge = Purge::Quiescing;
            *wanted = Context::Quiesced;
            // What becomes of it is fenced without the guest's asking.
            *unasked = true;
            *hold = on_the_way || *live == Some(Context::Quiesced);
        }
    }

    /// The device is made to forget what it keeps, and goes on.
    pub(super) fn purge_in_use(&mut self) {
        self.purge = Purge::Quiescing;
        self.hold_for_fence();
    }

    /// Invalidated and fenced before anything else is done to it.
    pub(super) fn hold_for_fence(&mut self) {
        self.owed = true;
        self.step = Step::UNFENCED;
        self.hold = true;
    }

    /// Where nothing translates again what the device keeps, it has ATS only after the host has reset it, whatever was
    /// wanted for it before.
    pub(super) fn distrust_what_it_keeps(&mut self) {
        if self.had_ats && !self.quiesces {
            self.timeouts = MAX_TIMEOUTS;
            if self.phase == Phase::Live {
                self.want(self.wanted.without_ats());
                self.unasked = true;
            }
        }
    }

    /// Goes on with emptying the device's own cache after a fence.
    pub(super) fn purge_on(&mut self) {
        if self.phase == Phase::Live {
            match self.purge {
                Purge::Quiescing => self.purge = Purge::Forgetting(0),
                Purge::Fencing => self.forgot_in_use(),
                Purge::No | Purge::Forgetting(_) => {}
            }
            return;
        }
        match self.purge {
            Purge::Quiescing if self.live == Some(Context::Quiesced) => self.purge = Purge::Forgetting(0),
            // The host is on its way there.
            Purge::No | Purge::Quiescing | Purge::Forgetting(_) => {}
            Purge::Fencing => {
                self.had_ats = false;
                self.end_purge();
            }
        }
    }

    /// The device was told to forget, and did, unless it does not answer.
    fn forgot_in_use(&mut self) {
        self.purge = Purge::No;
        if self.timeouts != 0 {
            self.distrust_what_it_keeps();
        }
        if self.is_quarantined() {
            self.want(self.wanted.without_ats());
            self.unasked = true;
        }
    }

    /// Blocked, and not asked to forget anything, or not any more.
    pub(super) fn end_purge(&mut self) {
        if self.purge != Purge::No {
            self.distrust_what_it_keeps();
            self.purge = Purge::No;
            self.wanted = Context::Blocked;
            self.live = None;
            self.hold_for_fence();
        }
    }

    /// The directory is to be read again. Whoever says so gives the host another chance with a context it refused.
    pub(super) fn reread(&mut self, why: Reread) {
        self.stale = self.stale.max(Some(why));
        self.refused = false;
    }

    /// Hardware has another context now; caches may not know. `hold`: go on after a fence only.
    pub(super) fn changed(&mut self, live: Context, hold: bool) {
        self.was_blocked |= !self.is_open() || !live.is_open();
        self.live = Some(live);
        self.was_open |= self.is_open();
        self.had_ats |= live.ats() != Ats::Off;
        self.owed = true;
        self.step = Step::UNFENCED;
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
        // Part of it may have been done, and what a device keeps outlives that.
        self.had_ats |= self.wanted.ats() != Ats::Off;
        self.wanted = Context::Blocked;
        self.live = None;
        self.refused = true;
        self.detours = 0;
        self.purge = Purge::No;
        self.hold |= self.unasked;
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.live == Some(Context::Blocked)
    }

    /// Whether hardware translates for the device.
    pub(super) fn is_open(&self) -> bool {
        self.live.is_some_and(|live| live.is_open())
    }

    /// It did not answer too often, and gets no ATS before the host has reset it (rule VC-74).
    pub(super) const fn is_quarantined(&self) -> bool {
        self.timeouts >= MAX_TIMEOUTS
    }

    /// The most the guest may turn on for the device now.
    pub(super) fn granted(&self) -> Ats {
        if self.is_quarantined() { Ats::Off } else { self.grant.ats }
    }

    /// Nothing is left to be done to give the device the context of the guest's directory, as far as that was read.
    pub(super) fn is_settled(&self) -> bool {
        self.stale.is_none() && !self.hold && self.live == Some(self.wanted)
    }

    /// Settled, and every order and fence for it has been issued and is complete.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_settled()
            && !self.owed
            && self.step == Step::FINAL
            && self.purge == Purge::No
            && self.watched == self.not_valid
    }
}
