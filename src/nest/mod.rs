//! Nesting: the attach table, and how what the guest says becomes orders for the physical IOMMU.
//!
//! Each attached device has a [`Slot`] that knows three contexts apart: what the guest's directory says (read when
//! `stale`), what hardware is `wanted` to have, and what it is known to have (`live`). [`settle`] brings the three
//! together; a guest's fence, a `ddtp` write, an attach and a detach are done only when they agree, the invalidations
//! owed for it have gone out, and a physical fence after them is complete. What devices keep themselves is the matter
//! of `ats`, what they ask for that of `pages`.

mod ats;
mod batch;
mod context;
mod counts;
mod events;
mod fault;
mod order;
mod pages;
mod restore;
mod settle;
mod slot;
mod table;

use crate::attachment::{Attachment, Generations};
use crate::backend::{Backend, Ticket};
use crate::config::{Mismatch, mismatch};
use crate::error::{AttachError, DetachError, OrderError};
use crate::id::DeviceId;
use crate::last_error::Noted;
use crate::regs::Capabilities;

use ats::Requests;
use batch::Batch;
use pages::Groups;
use restore::Restoring;
use slot::{Phase, Reread, Slot, Step};
use table::Slots;

pub(crate) use ats::Grant;
pub use counts::{Answers, OrderCounts};
pub(crate) use fault::Verdict;
pub(crate) use order::Barrier;
pub(crate) use pages::Requester;
pub(crate) use restore::{Saved, SavedDevice, SavedGroup};

/// Whether the physical side still does what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// Every order was carried out.
    Good,
    /// An order was refused. A device whose context was refused is blocked until the guest or
    /// [`resync`](crate::VIommu::resync) names it again. After a refused invalidation all are blocked until the
    /// reset, and the guest's fences complete: what the host's caches still hold is the host's to deal with. After
    /// a refused [`restore`](crate::VIommu::restore) all are blocked, too. Or a device did not answer invalidations of
    /// its own cache, again and again, and has no ATS until [`device_reset`](crate::VIommu::device_reset): a guest can
    /// bring that about, and it is no reason to stop the VM. Stays until [`reset`](crate::VIommu::reset);
    /// [`last_error`](crate::VIommu::last_error) says which it was, unless something else was refused since.
    Degraded,
    /// The physical IOMMU failed. Blocking every device was tried, no order was given since, and the guest's fence
    /// stays incomplete. Stays until [`reset`](crate::VIommu::reset); stop the VM.
    Failed,
}

/// Whether hardware may translate for any device of this VM; worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    /// As the guest's directory says.
    Open,
    /// A restore failed: every device is blocked until the reset.
    Shut,
    /// An invalidation was refused for good: the same. What is owed to devices that stay is not ordered any more, and
    /// fences do not wait for it.
    Locked,
}

#[derive(Debug)]
pub(crate) struct Nest<D, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize> {
    slots: Slots<D, DEVICES>,
    batch: Batch<D, BATCH>,
    requests: Requests<ITAGS>,
    groups: Groups<GROUPS>,
    issued: Ticket,
    completed: Ticket,
    /// Fences up to this one the physical side no longer knows: they are complete with a later one only.
    lost: Ticket,
    /// An ATS invalidation timed out and no guest fence has said so yet.
    timed_out: bool,
    /// Timeouts are the guest's from the fences after this one on, the first that is issued after a reset: it covers
    /// what was ordered before.
    told_after: Ticket,
    health: Health,
    gate: Gate,
    /// Every device is being driven anew after a restore, and what comes then.
    restoring: Option<Restoring<ITAGS>>,
    /// What was refused last, of the guest or by the host.
    pub(crate) noted: Noted,
    /// Since the beginning, also across resets.
    pub(crate) orders: OrderCounts,
    /// The fence after which no cache holds a translation tagged with this VM's GSCID: every device is blocked and
    /// invalidated (design rule: elide only when clean).
    residue: Step,
    /// Where the search for a context that became valid goes on.
    probed: usize,
}

/// The physical side has to do something first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stalled;

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    pub(crate) const fn new() -> Self {
        const { assert!(BATCH > 0, "BATCH must have room for one order") };
        Self {
            slots: Slots::new(),
            batch: Batch::new(),
            requests: Requests::new(),
            groups: Groups::new(),
            issued: Ticket::FIRST,
            completed: Ticket::FIRST,
            lost: Ticket::FIRST,
            timed_out: false,
            told_after: Ticket::FIRST,
            health: Health::Good,
            gate: Gate::Open,
            restoring: None,
            noted: Noted::NOTHING,
            orders: OrderCounts::NONE,
            residue: Step::FINAL,
            probed: 0,
        }
    }

    pub(crate) const fn health(&self) -> Health {
        self.health
    }

    /// Whether a device has this id, perhaps one that is leaving.
    pub(crate) fn has(&self, id: DeviceId) -> bool {
        self.slots.iter().any(|slot| slot.id() == id)
    }

    /// Takes a device in, blocked. Its context is read after a fence.
    pub(crate) fn attach<B: Backend<Device = D>>(
        &mut self,
        id: DeviceId,
        device: D,
        grant: Grant,
        promised: Capabilities,
        generations: &mut Generations,
        backend: &mut B,
    ) -> Result<Attachment, AttachError> {
        if self.health == Health::Failed || self.gate != Gate::Open {
            return Err(AttachError::NeedsReset);
        }
        if self.has(id) {
            return Err(AttachError::IdInUse);
        }
        if self.slots.iter().any(|slot| slot.device == device) {
            return Err(AttachError::DeviceInUse);
        }
        if self.slots.is_full() {
            return Err(AttachError::Full);
        }
        let host = match self.orders.adopt.count(backend.adopt(device)) {
            Ok(host) => host,
            Err(error) => {
                if error == OrderError::Fatal {
                    self.fail(backend);
                }
                return Err(AttachError::Host(error));
            }
        };
        let attachment = generations.attach(id);
        let grant = grant.offered(promised);
        let mut slot = Slot::new(attachment, device, grant, host.capabilities.t2gpa());
        let weaker = mismatch(promised, &host).map(Mismatch::name).or(grant.lacks(&host));
        if weaker.is_some() {
            // It was adopted: it leaves as every device does, blocked, invalidated and fenced.
            slot.leave();
        }
        if self.slots.push(slot).is_err() {
            return Err(AttachError::Full);
        }
        match weaker {
            None => Ok(attachment),
            Some(name) => Err(AttachError::Capability(name)),
        }
    }

    /// Begins to let a device go.
    pub(crate) fn detach(&mut self, id: DeviceId) -> Result<(), DetachError> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.id() == id && slot.phase != Phase::Leaving)
            .ok_or(DetachError::NotAttached)?;
        slot.leave();
        let attachment = slot.attachment;
        self.left(attachment);
        Ok(())
    }

    pub(crate) fn detach_all(&mut self) {
        for index in 0..self.slots.len() {
            if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.phase != Phase::Leaving) {
                slot.leave();
                let attachment = slot.attachment;
                self.left(attachment);
            }
        }
    }

    /// Forgets what a device that leaves asked the guest for. Where every device is blocked until the reset, it is not
    /// opened for its own cache's sake.
    fn left(&mut self, attachment: Attachment) {
        self.groups.forget(attachment);
        if let Some(restoring) = &mut self.restoring {
            restoring.requests.retain(|request| !request.is_of(attachment));
        }
        if self.is_locked() {
            for slot in self.slots.iter_mut().filter(|slot| slot.attachment == attachment) {
                slot.end_purge();
            }
        }
    }

    /// After a reset every device is blocked and fenced anew; those that were leaving go on leaving. Tickets only
    /// grow, also across resets.
    pub(crate) fn reset(&mut self) {
        let Self {
            slots,
            batch: _,
            requests,
            groups,
            issued: _,
            completed: _,
            lost: _,
            timed_out,
            told_after,
            health,
            gate,
            restoring,
            noted,
            orders: _,
            residue: _,
            probed,
        } = self;
        requests.disown();
        groups.clear();
        *timed_out = false;
        *told_after = Ticket::NEVER;
        *health = Health::Good;
        *gate = Gate::Open;
        *restoring = None;
        *noted = Noted::NOTHING;
        *probed = 0;
        for slot in slots.iter_mut() {
            slot.restart();
        }
    }

    /// `IODIR.INVAL_DDT`: hardware forgets the device's entries, and its context is read again.
    pub(crate) fn inval_ddt(&mut self, id: Option<DeviceId>) {
        for slot in self.slots.iter_mut().filter(|slot| id.is_none_or(|id| slot.id() == id)) {
            slot.reread(Reread::Named);
        }
    }

    /// Reads every context again: the directory is another one.
    pub(crate) fn reread_all(&mut self) {
        for slot in self.slots.iter_mut() {
            slot.reread(Reread::Directory);
        }
    }

    /// Reads the context of one device again.
    pub(crate) fn reread(&mut self, id: DeviceId) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id() == id) {
            slot.reread(Reread::Unasked);
        }
    }

    /// Reads one context again that was not valid when last looked at, each in its turn: a guest that sets V need not
    /// say so (rule UPD-04).
    pub(crate) fn reread_one_not_valid(&mut self) {
        let count = self.slots.len();
        let index = |turn| self.probed.wrapping_add(turn).checked_rem(count).unwrap_or(0);
        let is_not_valid = |&index: &usize| self.slots.get(index).is_some_and(|slot| slot.not_valid.is_some());
        let found = (0..count).map(index).find(is_not_valid);
        if let Some((index, slot)) = found.and_then(|index| Some((index, self.slots.get_mut(index)?))) {
            slot.reread(Reread::Unasked);
            self.probed = index.wrapping_add(1);
        }
    }
}
