//! Settling: reads what is stale, gives hardware the contexts that are wanted, and takes devices in and out.

use crate::backend::{Applied, Backend, Context, FenceScope, Invalidation, PhysicalIommu};
use crate::error::OrderError;
use crate::last_error::LastError;
use crate::list;
use crate::progress::{Budget, Progress};
use crate::regs::file::Registers;

use super::slot::{Page, Phase, Purge, Reread, Slot, Step};
use super::{Gate, Health, Nest, Stalled};
use crate::ddt::{Reading, Trail};

/// Most blocked states a host may go through on the way to one context: as many as there are stores that have to settle
/// before the next by rule UPD-07 (second stage, `fsc`, `tc` and `ta`, `fsc`). The bound keeps a host that never
/// arrives from keeping the guest's fence for ever.
const MAX_DETOURS: u8 = 4;

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Does what can be done now. `Idle`: every context read is in force, or blocked, and its invalidation is in the
    /// batch; where the guest did not ask for it, it is fenced too.
    #[inline]
    pub(crate) fn settle<B: Backend<Device = D>>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Progress {
        if self.slots.is_at_rest() { Progress::Idle } else { self.settle_slots(registers, backend, budget) }
    }

    #[inline(never)]
    fn settle_slots<B: Backend<Device = D>>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Progress {
        loop {
            // Those that leave are watched no more, nor are those read anew.
            self.watch(backend);
            let progress = self.settle_contexts(registers, backend, budget);
            if !self.watch(backend) || progress != Progress::Idle {
                if progress == Progress::Idle {
                    self.slots.come_to_rest();
                }
                return progress;
            }
        }
    }

    fn settle_contexts<B: Backend<Device = D>>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Progress {
        loop {
            let mut progress = Progress::Idle;
            if self.block_unknown(backend).is_err() {
                return Progress::Waiting;
            }
            for index in 0..self.slots.len() {
                match self.drive(index, registers, backend, budget) {
                    Ok(done) => progress = progress.max(done),
                    Err(Stalled) => return Progress::Waiting,
                }
            }
            match self.step_on(backend) {
                // Slots went on: there may be more for them to do.
                Ok(true) => {}
                Ok(false) => return progress,
                Err(Stalled) => return progress.max(Progress::Waiting),
            }
        }
    }

    /// One slot, as far as it can go without a fence.
    fn drive<B: Backend<Device = D>>(
        &mut self,
        index: usize,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Result<Progress, Stalled> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        if let (Some(why), Phase::Live, false) = (slot.stale, slot.phase, self.gate != Gate::Open) {
            if !budget.take() {
                return Ok(Progress::Runnable);
            }
            let mut trail = Trail::default();
            let reading = Reading::follow(registers, backend, slot.id(), &mut trail);
            slot.stale = None;
            // What the guest did not ask for, and is not done yet, is not what it will fence.
            slot.unasked = why == Reread::Unasked || (slot.unasked && slot.live != Some(slot.wanted));
            slot.owed |= why == Reread::Named;
            slot.not_valid = trail.last.filter(|_| reading.is_not_valid()).map(Page::of);
            if let (Reading::None(fault), None) = (reading, slot.not_valid) {
                // A device that has no context yet is how every guest begins.
                self.noted.note_context(slot.id(), None, &fault);
            }
            slot.dtf = reading.dtf().unwrap_or(slot.dtf);
            let wanted = if slot.refused { Context::Blocked } else { reading.context(slot.granted()) };
            if slot.wanted != wanted {
                slot.want(wanted);
            }
        }
        let progress = self.apply(index, backend)?;
        self.order_owed(index, backend)?;
        Ok(progress.max(self.purge(index, backend)?))
    }

    /// Gives hardware the context it is wanted to have.
    fn apply<P: PhysicalIommu<Device = D>>(&mut self, index: usize, physical: &mut P) -> Result<Progress, Stalled> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        if slot.live.is_none() {
            return self.block_unknown(physical).map(|()| Progress::Idle);
        }
        if slot.hold || slot.live == Some(slot.wanted) {
            return Ok(Progress::Idle);
        }
        if slot.phase == Phase::Live && slot.purge != Purge::No {
            // Until the device has been told to forget it can complete that.
            return Ok(Progress::Waiting);
        }
        let opens = slot.wanted.is_open();
        if opens {
            self.residue = Step::UNFENCED;
        }
        match self.orders.set_context.count(physical.set_context(slot.device, &slot.wanted)) {
            Ok(Applied::Blocked) if slot.wanted != Context::Blocked => {
                // To be called again after an invalidation and a fence.
                slot.changed(Context::Blocked, true);
                slot.detours = slot.detours.saturating_add(1);
                if slot.detours > MAX_DETOURS {
                    self.noted.note(LastError::HostContext { device: slot.id(), context: slot.wanted });
                    slot.refuse();
                    self.health = self.health.max(Health::Degraded);
                    self.block_unknown(physical)?;
                }
            }
            Ok(_) => {
                slot.changed(slot.wanted, slot.unasked);
                slot.detours = 0;
            }
            Err(OrderError::Busy) => return Ok(Progress::Waiting),
            Err(OrderError::Refused { .. }) => {
                self.noted.note(LastError::HostContext { device: slot.id(), context: slot.wanted });
                slot.refuse();
                self.health = self.health.max(Health::Degraded);
                self.block_unknown(physical)?;
            }
            Err(OrderError::Fatal) => {
                self.fail(physical);
                return Err(Stalled);
            }
        }
        Ok(Progress::Idle)
    }

    /// Blocks every device of which it is not known what context it has: before any other order.
    pub(super) fn block_unknown<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        if self.health == Health::Failed {
            return Err(Stalled);
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.live.is_none()) {
            match self.orders.set_context.count(physical.set_context(slot.device, &Context::Blocked)) {
                Ok(_) => slot.changed(Context::Blocked, false),
                Err(OrderError::Busy) => return Err(Stalled),
                // Blocking must always work.
                Err(OrderError::Refused { .. } | OrderError::Fatal) => {
                    self.fail(physical);
                    return Err(Stalled);
                }
            }
        }
        Ok(())
    }

    /// Puts the invalidation a slot owes into the batch.
    pub(super) fn order_owed<P: PhysicalIommu<Device = D>>(
        &mut self,
        index: usize,
        physical: &mut P,
    ) -> Result<(), Stalled> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        // Locked, the device stays blocked: nothing is promised of its entries until it leaves or the reset.
        if slot.owed && (self.gate != Gate::Locked || slot.phase == Phase::Leaving) {
            let order = Invalidation::Device(slot.device);
            if !self.batch.push(order) {
                self.flush(physical)?;
                self.batch.push(order);
            }
            if let Some(slot) = self.slots.get_mut(index) {
                slot.owed = false;
            }
        }
        Ok(())
    }

    /// Fences the slots that hold for one, and lets those go on whose fence is complete; whether any did.
    fn step_on<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<bool, Stalled> {
        let locked = self.is_locked();
        let holds = |slot: &Slot<D>| slot.hold && (!locked || slot.phase == Phase::Leaving);
        if self.slots.iter().any(|slot| holds(slot) && slot.step == Step::UNFENCED) {
            self.flush(physical)?;
            self.issue_fence(FenceScope::ALL, physical)?;
        }
        let mut went_on = false;
        let mut index = 0_usize;
        while let Some(slot) = self.slots.get_mut(index) {
            if slot.step != Step::FINAL && slot.step.is_final(self.completed) {
                slot.step = Step::FINAL;
                slot.was_blocked = false;
                if core::mem::take(&mut slot.hold) {
                    went_on = true;
                    match slot.phase {
                        _ if slot.purge != Purge::No => slot.purge_on(),
                        Phase::Entering => {
                            slot.phase = Phase::Live;
                            slot.reread(Reread::Unasked);
                        }
                        Phase::Live => {}
                        Phase::Leaving => {
                            if let Some(gone) = list::swap_take(&mut self.slots, index) {
                                physical.release(gone.device);
                                self.orders.release = self.orders.release.wrapping_add(1);
                                continue;
                            }
                        }
                    }
                }
            }
            index = index.saturating_add(1);
        }
        let waits = self.slots.iter().any(holds);
        if went_on || !waits { Ok(went_on) } else { Err(Stalled) }
    }
}
