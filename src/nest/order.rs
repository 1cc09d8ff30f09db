//! Orders on their way out: held invalidations, fences, and what follows when the physical side does not obey.

use crate::backend::{Backend, Completion, Context, FenceOutcome, FenceScope, Invalidation, PhysicalIommu, Ticket};
use crate::error::OrderError;
use crate::id::{DeviceId, ProcessId};
use crate::last_error::LastError;
use crate::progress::{Budget, Progress};
use crate::regs::file::Registers;

use super::slot::{Slot, Step};
use super::{Gate, Health, Nest, Stalled};

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

    /// One whose fence is complete: that of a restore, which covers everything before it.
    pub(crate) const fn complete() -> Self {
        Self { scope: FenceScope::ALL, ticket: Some(Ticket::FIRST) }
    }

    /// Whether its fence has been issued.
    pub(crate) const fn is_issued(&self) -> bool {
        self.ticket.is_some()
    }
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Takes an invalidation of first-stage translations in, unless there is nothing it could find, or every device is
    /// blocked until the reset.
    pub(crate) fn invalidate<P: PhysicalIommu<Device = D>>(
        &mut self,
        order: Invalidation<D>,
        physical: &mut P,
    ) -> Result<(), Progress> {
        if self.residue.is_final(self.completed) || self.is_locked() || self.batch.push(order) {
            return Ok(());
        }
        match self.flush(physical) {
            Ok(()) => {
                self.batch.push(order);
                Ok(())
            }
            Err(Stalled) if self.is_locked() => Ok(()),
            Err(Stalled) => Err(Progress::Waiting),
        }
    }

    /// `IODIR.INVAL_PDT`: hardware forgets the context of a process. Where the device has no process directory, or one
    /// that does not take so wide an id, there is none to forget (rules VC-60, VC-61).
    pub(crate) fn inval_pdt<P: PhysicalIommu<Device = D>>(
        &mut self,
        id: DeviceId,
        process: ProcessId,
        physical: &mut P,
    ) -> Result<(), Progress> {
        // Of a directory that was there before, the order for the device that followed the change forgets all.
        let device = self.slots.iter().find_map(|slot| match slot.live {
            Some(Context::Processes(live)) if slot.id() == id && process.fits(live.mode.width()) => Some(slot.device),
            _ => None,
        });
        device.map_or(Ok(()), |device| self.invalidate(Invalidation::Process(device, process), physical))
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
        // Where every device stays blocked until the reset, no fence of the crate's own follows.
        barrier.ticket = barrier.ticket.filter(|ticket| *ticket <= self.completed || *ticket > self.lost);
        if barrier.ticket.is_none() {
            let ready = match self.settle(registers, backend, budget) {
                Progress::Idle => self.flush(backend).map_err(|Stalled| Progress::Waiting),
                progress => Err(progress),
            };
            if let (Err(progress), false) = (ready, self.is_locked_up()) {
                return Err(progress);
            }
            if self.slots.is_empty() {
                // No device: hardware has nothing to finish for this VM.
                return Ok(());
            }
            barrier.ticket = self.issue_fence(barrier.scope, backend).ok();
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
            FenceOutcome::Complete => self.complete(ticket, false),
            FenceOutcome::AtsTimeout => self.complete(ticket, true),
            FenceOutcome::Failed => self.fail(physical),
        }
    }

    /// The last fence that is complete.
    pub(crate) const fn completed(&self) -> Ticket {
        self.completed
    }

    /// Whether an ATS invalidation timed out since this was last asked (rule FEN-07).
    pub(crate) fn take_timeout(&mut self) -> bool {
        core::mem::take(&mut self.timed_out)
    }

    #[inline]
    fn complete(&mut self, ticket: Ticket, timed_out: bool) {
        self.completed = ticket;
        let guests = self.end_requests(ticket, timed_out);
        // Where the host's word is all there is, it counts.
        let told = guests.unwrap_or(ticket > self.told_after);
        self.timed_out |= timed_out && told;
    }

    /// Gives the held orders out.
    #[inline]
    pub(super) fn flush<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        if self.batch.orders().is_empty() { Ok(()) } else { self.flush_held(physical) }
    }

    #[inline(never)]
    fn flush_held<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        self.may_order()?;
        loop {
            match self.orders.invalidate.count(physical.invalidate(self.batch.orders())) {
                Ok(()) => break,
                Err(OrderError::Busy) => return Err(Stalled),
                // Part of it may be done: all of it again, once, as one that covers everything.
                Err(OrderError::Refused { .. }) if !self.batch.is_widest() => self.batch.widen(),
                Err(OrderError::Refused { .. }) => {
                    self.lock(physical);
                    return Err(Stalled);
                }
                Err(OrderError::Fatal) => {
                    self.fail(physical);
                    return Err(Stalled);
                }
            }
        }
        let count = u64::try_from(self.batch.orders().len()).unwrap_or_default();
        self.orders.invalidations = self.orders.invalidations.wrapping_add(count);
        self.batch.clear();
        Ok(())
    }

    /// A device whose context is not known is blocked before any other order.
    #[inline]
    fn may_order(&self) -> Result<(), Stalled> {
        let unknown = !self.slots.is_at_rest() && self.slots.iter().any(|slot| slot.live.is_none());
        if unknown || self.health == Health::Failed { Err(Stalled) } else { Ok(()) }
    }

    #[inline]
    pub(super) fn issue_fence<P: PhysicalIommu<Device = D>>(
        &mut self,
        scope: FenceScope,
        physical: &mut P,
    ) -> Result<Ticket, Stalled> {
        self.may_order()?;
        let ticket = self.issued.next();
        self.issued = ticket;
        match self.orders.fence.count(physical.fence(ticket, scope)) {
            Ok(completion) => {
                self.told_after = self.told_after.min(ticket);
                self.requests.fenced(ticket);
                let all = scope == FenceScope::ALL;
                if all
                    && self.residue == Step::UNFENCED
                    && self.slots.iter().all(|slot| slot.is_blocked() && !slot.owed)
                {
                    self.residue = Step::fenced(ticket);
                }
                if !self.slots.is_at_rest() {
                    for slot in self.slots.iter_mut().filter(|slot| slot.step == Step::UNFENCED && !slot.owed) {
                        if all || !slot.hold {
                            slot.step = Step::fenced(ticket);
                        }
                    }
                }
                match completion {
                    Completion::Done => self.complete(ticket, false),
                    Completion::AtsTimeout => self.complete(ticket, true),
                    Completion::Pending => {}
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

    /// Caches can no longer be told to forget: every device is blocked until the reset. Those that leave still need an
    /// invalidation, and keep asking for one.
    fn lock<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) {
        if !self.is_locked() {
            log::warn!("the physical IOMMU refused to invalidate; every device of this VM is blocked");
            self.noted.note(LastError::HostInvalidation);
            self.health = Health::Degraded;
            self.gate = Gate::Locked;
            for slot in self.slots.iter_mut() {
                slot.end_purge();
                slot.wanted = Context::Blocked;
                if !slot.is_blocked() {
                    slot.live = None;
                }
            }
            // Where that has to wait, it comes before the next order.
            let _ = self.block_unknown(physical);
        }
        self.batch.clear();
        for slot in self.slots.iter_mut() {
            slot.owed = true;
            slot.step = Step::UNFENCED;
        }
    }

    /// Whether the reset is all there is to wait for: nothing the guest ordered can be reached by a device, and no order
    /// is left that a busy host may still carry out.
    fn is_locked_up(&self) -> bool {
        self.is_locked() && self.batch.orders().is_empty() && self.slots.iter().all(Slot::is_blocked)
    }

    /// The physical side failed: one attempt to block every device, and no further order.
    pub(super) fn fail<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) {
        log::warn!("the physical IOMMU failed; this VM must be stopped");
        self.noted.note(LastError::HostFailed);
        self.health = Health::Failed;
        self.batch.clear();
        for slot in self.slots.iter_mut() {
            slot.end_purge();
            slot.wanted = Context::Blocked;
            let blocked = self.orders.set_context.count(physical.set_context(slot.device, &Context::Blocked));
            slot.live = blocked.is_ok().then_some(Context::Blocked);
        }
    }
}
