//! Nesting: the attach table, and how what the guest says becomes orders for the physical IOMMU.
//!
//! Each attached device has a [`Slot`] that knows three contexts apart: what the guest's directory says (read when
//! `stale`), what hardware is `wanted` to have, and what it is known to have (`live`). [`settle`] brings the three
//! together; a guest's fence, a `ddtp` write, an attach and a detach are done only when they agree, the invalidations
//! owed for it have gone out, and a physical fence after them is complete.

mod batch;
mod context;
mod fault;
mod settle;

use heapless::Vec;

use crate::backend::{Backend, Completion, Context, FenceOutcome, FenceScope, Invalidation, PhysicalIommu, Ticket};
use crate::config::mismatch;
use crate::error::{AttachError, DetachError, OrderError};
use crate::id::DeviceId;
use crate::progress::{Budget, Progress};
use crate::regs::Capabilities;
use crate::regs::file::Registers;

use batch::Batch;
use context::Reading;

pub(crate) use fault::Verdict;

/// Whether the physical side still does what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// Every order was carried out.
    Good,
    /// An order was refused: a device without its context is blocked until the guest or
    /// [`resync`](crate::VIommu::resync) names it again; after a refused invalidation all are, until the reset. Stays
    /// until [`reset`](crate::VIommu::reset).
    Degraded,
    /// The physical IOMMU failed. Blocking every device was tried, no order was given since, and the guest's fence
    /// stays incomplete. Stays until [`reset`](crate::VIommu::reset); stop the VM.
    Failed,
}

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
enum Phase {
    /// Blocked until a fence shows that nothing older is under way; then its context is read.
    Entering,
    /// Its context follows the guest's directory.
    Live,
    /// Blocked until a fence shows that nothing is under way; then it is released.
    Leaving,
}

/// The fence a slot needs before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    None,
    /// It needs one that has not been issued.
    Unfenced,
    /// It goes on when this one is complete.
    Fenced(Ticket),
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one device")]
struct Slot<D> {
    id: DeviceId,
    device: D,
    generation: u32,
    phase: Phase,
    step: Step,
    /// The guest's directory is to be read again.
    stale: bool,
    /// The guest ordered the device's entries to be dropped; hardware is told even if its context does not change
    /// (rule VC-51).
    named: bool,
    /// An invalidation of the device is to go into the batch.
    owed: bool,
    /// The host blocked the device on its way to `wanted`.
    halfway: bool,
    /// The host refused the last context; not tried again until the guest or the host names the device.
    refused: bool,
    wanted: Context,
    /// What hardware has; `None` while that is not known.
    live: Option<Context>,
    /// Blocked because the directory has an entry with V = 0.
    not_valid: bool,
    /// `DTF` of the context last read.
    dtf: bool,
}

/// Whether caches may hold translations tagged with this VM's GSCID (design rule: elide only when clean).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Residue {
    None,
    Some,
    /// Every device is blocked and invalidated: none is left once this fence is complete.
    GoneAfter(Ticket),
}

#[derive(Debug)]
pub(crate) struct Nest<D, const DEVICES: usize, const BATCH: usize> {
    slots: Vec<Slot<D>, DEVICES>,
    batch: Batch<D, BATCH>,
    issued: Ticket,
    completed: Ticket,
    /// An ATS invalidation timed out and no guest fence has said so yet.
    timed_out: bool,
    health: Health,
    /// An invalidation was refused for good: nothing is unblocked until the reset.
    locked: bool,
    residue: Residue,
    generations: u32,
    /// Where the search for a context that became valid goes on.
    probed: usize,
}

/// A fence that somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    scope: FenceScope,
    ticket: Option<Ticket>,
}

impl Barrier {
    pub(crate) const fn new(scope: FenceScope) -> Self {
        Self { scope, ticket: None }
    }
}

/// The physical side has to do something first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stalled;

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize> Nest<D, DEVICES, BATCH> {
    pub(crate) const fn new() -> Self {
        const { assert!(BATCH > 0, "BATCH must have room for one order") };
        Self {
            slots: Vec::new(),
            batch: Batch::new(),
            issued: Ticket::FIRST,
            completed: Ticket::FIRST,
            timed_out: false,
            health: Health::Good,
            locked: false,
            residue: Residue::None,
            generations: 0,
            probed: 0,
        }
    }

    pub(crate) const fn health(&self) -> Health {
        self.health
    }

    /// Takes a device in, blocked. Its context is read after a fence.
    pub(crate) fn attach<B: Backend<Device = D>>(
        &mut self,
        id: DeviceId,
        device: D,
        promised: Capabilities,
        backend: &mut B,
    ) -> Result<Attachment, AttachError> {
        if self.health == Health::Failed || self.locked {
            return Err(AttachError::Failed);
        }
        if self.slots.iter().any(|slot| slot.id == id) {
            return Err(AttachError::IdInUse);
        }
        if self.slots.iter().any(|slot| slot.device == device) {
            return Err(AttachError::DeviceInUse);
        }
        if self.slots.is_full() {
            return Err(AttachError::Full);
        }
        let host = backend.adopt(device).map_err(AttachError::Host)?;
        self.generations = self.generations.wrapping_add(1);
        let slot = Slot {
            id,
            device,
            generation: self.generations,
            phase: Phase::Entering,
            step: Step::None,
            stale: false,
            named: false,
            owed: false,
            halfway: false,
            refused: false,
            wanted: Context::Blocked,
            live: None,
            not_valid: false,
            dtf: false,
        };
        let attachment = Attachment { device: id, generation: slot.generation };
        let weaker = mismatch(promised, &host);
        if self.slots.push(slot).is_err() {
            return Err(AttachError::Full);
        }
        match weaker {
            None => Ok(attachment),
            Some(mismatch) => {
                // It was adopted: it leaves as every device does, blocked, invalidated and fenced.
                let _ = self.detach(id);
                Err(AttachError::Capability(mismatch.name()))
            }
        }
    }

    /// Begins to let a device go.
    pub(crate) fn detach(&mut self, id: DeviceId) -> Result<(), DetachError> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.id == id && slot.phase != Phase::Leaving)
            .ok_or(DetachError::NotAttached)?;
        slot.leave();
        Ok(())
    }

    pub(crate) fn detach_all(&mut self) {
        for slot in &mut self.slots {
            slot.leave();
        }
    }

    /// After a reset every device is blocked and fenced anew; those that were leaving go on leaving. Tickets and
    /// generations only grow, also across resets.
    pub(crate) fn reset(&mut self) {
        let Self {
            slots,
            batch: _,
            issued: _,
            completed: _,
            timed_out,
            health,
            locked,
            residue: _,
            generations: _,
            probed,
        } = self;
        *timed_out = false;
        *health = Health::Good;
        *locked = false;
        *probed = 0;
        for slot in slots {
            slot.restart();
        }
    }

    /// `IODIR.INVAL_DDT`: hardware forgets the device's entries, and its context is read again.
    pub(crate) fn name(&mut self, id: Option<DeviceId>) {
        for slot in self.slots.iter_mut().filter(|slot| id.is_none_or(|id| slot.id == id)) {
            slot.stale = true;
            slot.named = true;
            slot.refused = false;
        }
    }

    /// Reads every context again: the directory is another one.
    pub(crate) fn reread_all(&mut self) {
        for slot in &mut self.slots {
            slot.stale = true;
            slot.refused = false;
        }
    }

    /// Reads the context of one device again.
    pub(crate) fn reread(&mut self, id: DeviceId) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == id) {
            slot.stale = true;
            slot.refused = false;
        }
    }

    /// Reads one context again that was not valid when last looked at, each in its turn: a guest that sets V need not
    /// say so (rule UPD-04).
    pub(crate) fn reread_one_not_valid(&mut self) {
        let count = self.slots.len();
        for turn in 0..count {
            let index = self.probed.wrapping_add(turn).checked_rem(count).unwrap_or(0);
            if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.not_valid) {
                slot.stale = true;
                self.probed = index.wrapping_add(1);
                return;
            }
        }
    }

    /// Takes an invalidation of first-stage translations in, unless there is nothing it could find.
    pub(crate) fn invalidate<P: PhysicalIommu<Device = D>>(
        &mut self,
        order: Invalidation<D>,
        physical: &mut P,
    ) -> Result<(), Progress> {
        if self.residue == Residue::None || self.batch.push(order) {
            return Ok(());
        }
        self.flush(physical).map_err(|Stalled| Progress::Waiting)?;
        self.batch.push(order);
        Ok(())
    }

    /// Lets what is held go out.
    pub(crate) fn release_batch<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) {
        // Where the physical side is busy the orders stay, and go out before the next fence.
        let _ = self.flush(physical);
    }

    /// Whether everything ordered so far is complete, with the device accesses in the barrier's scope.
    pub(crate) fn pass<B: Backend<Device = D>>(
        &mut self,
        barrier: &mut Barrier,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Result<(), Progress> {
        if barrier.ticket.is_none() {
            match self.settle(registers, backend, budget) {
                Progress::Idle => {}
                progress => return Err(progress),
            }
            if self.slots.is_empty() {
                // No device: hardware has nothing to finish for this VM.
                return Ok(());
            }
            let issued = self.flush(backend).and_then(|()| self.issue_fence(barrier.scope, backend));
            barrier.ticket = issued.ok();
        }
        let complete = barrier.ticket.is_some_and(|ticket| ticket <= self.completed);
        if complete && self.health != Health::Failed { Ok(()) } else { Err(Progress::Waiting) }
    }

    /// The host says how a pending fence ended. What is not known as issued is ignored.
    pub(crate) fn fence_done<P: PhysicalIommu<Device = D>>(
        &mut self,
        ticket: Ticket,
        outcome: FenceOutcome,
        physical: &mut P,
    ) {
        if ticket <= self.completed || ticket > self.issued {
            return;
        }
        match outcome {
            FenceOutcome::Complete => self.complete(ticket),
            FenceOutcome::AtsTimeout => {
                self.timed_out = true;
                self.complete(ticket);
            }
            FenceOutcome::Failed => self.fail(physical),
        }
    }

    /// Whether an ATS invalidation timed out since this was last asked (rule FEN-07).
    pub(crate) fn take_timeout(&mut self) -> bool {
        core::mem::take(&mut self.timed_out)
    }

    fn complete(&mut self, ticket: Ticket) {
        self.completed = self.completed.max(ticket);
        if let Residue::GoneAfter(last) = self.residue {
            if self.completed >= last {
                self.residue = Residue::None;
            }
        }
    }

    /// Gives the held orders out.
    fn flush<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        if self.batch.orders().is_empty() {
            return Ok(());
        }
        // A device whose context is not known is blocked before any other order.
        if self.health == Health::Failed || self.slots.iter().any(|slot| slot.live.is_none()) {
            return Err(Stalled);
        }
        loop {
            match physical.invalidate(self.batch.orders()) {
                Ok(()) => break,
                Err(OrderError::Busy) => return Err(Stalled),
                // Part of it may be done: all of it again, once, as one that covers everything.
                Err(OrderError::Refused { .. }) if !self.batch.is_widest() => self.batch.widen(),
                Err(OrderError::Refused { .. }) => {
                    self.batch.clear();
                    return self.lock(physical);
                }
                Err(OrderError::Fatal) => {
                    self.fail(physical);
                    return Err(Stalled);
                }
            }
        }
        self.batch.clear();
        Ok(())
    }

    fn issue_fence<P: PhysicalIommu<Device = D>>(
        &mut self,
        scope: FenceScope,
        physical: &mut P,
    ) -> Result<Ticket, Stalled> {
        if self.health == Health::Failed {
            return Err(Stalled);
        }
        let ticket = self.issued.next();
        self.issued = ticket;
        match physical.fence(ticket, scope) {
            Ok(completion) => {
                let quiet = self.slots.iter().all(|slot| slot.live == Some(Context::Blocked) && !slot.owed);
                if quiet && !self.locked && scope == FenceScope::ALL && self.residue == Residue::Some {
                    self.residue = Residue::GoneAfter(ticket);
                }
                if completion == Completion::Done {
                    self.complete(ticket);
                }
                Ok(ticket)
            }
            Err(OrderError::Busy) => Err(Stalled),
            // A fence is done or not: there is nothing narrower or wider to fall back to.
            Err(OrderError::Refused { .. } | OrderError::Fatal) => {
                self.fail(physical);
                Err(Stalled)
            }
        }
    }

    /// Caches can no longer be told to forget: every device is blocked until the reset.
    fn lock<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        log::warn!("the physical IOMMU refused to invalidate; every device of this VM is blocked");
        self.health = Health::Degraded;
        self.locked = true;
        for slot in &mut self.slots {
            slot.wanted = Context::Blocked;
            slot.live = None;
        }
        self.block_unknown(physical)
    }

    /// The physical side failed: one attempt to block every device, and no further order.
    fn fail<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) {
        log::warn!("the physical IOMMU failed; this VM must be stopped");
        self.health = Health::Failed;
        self.batch.clear();
        for slot in &mut self.slots {
            slot.wanted = Context::Blocked;
            let blocked = physical.set_context(slot.device, &Context::Blocked);
            slot.live = blocked.is_ok().then_some(Context::Blocked);
        }
    }
}

impl<D> Slot<D> {
    fn leave(&mut self) {
        self.phase = Phase::Leaving;
        self.restart();
    }

    /// Blocked, invalidated and fenced anew; what comes then is up to the phase.
    fn restart(&mut self) {
        if self.phase == Phase::Live {
            self.phase = Phase::Entering;
        }
        self.step = Step::None;
        self.stale = false;
        self.named = false;
        self.halfway = false;
        self.refused = false;
        self.not_valid = false;
        self.dtf = false;
        self.wanted = Context::Blocked;
        // Ordered again even if it is blocked: the orders before may have been lost.
        self.live = None;
        self.owed = true;
    }
}
