//! Orders on their way out: held invalidations, fences, and what follows when the physical side does not obey.

use crate::backend::{Backend, Completion, Context, FenceOutcome, FenceScope, Invalidation, PhysicalIommu, Ticket};
use crate::error::OrderError;
use crate::progress::{Budget, Progress};
use crate::regs::file::Registers;

use super::{Health, Nest, Residue, Stalled};

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

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize> Nest<D, DEVICES, BATCH> {
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

    pub(super) fn complete(&mut self, ticket: Ticket) {
        self.completed = self.completed.max(ticket);
        if let Residue::GoneAfter(last) = self.residue {
            if self.completed >= last {
                self.residue = Residue::None;
            }
        }
    }

    /// Gives the held orders out.
    pub(super) fn flush<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
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

    pub(super) fn issue_fence<P: PhysicalIommu<Device = D>>(
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
    pub(super) fn fail<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) {
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
