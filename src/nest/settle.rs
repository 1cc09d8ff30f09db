//! Settling: reads what is stale, gives hardware the contexts that are wanted, and takes devices in and out.

use crate::backend::{Applied, Backend, Context, FenceScope, Invalidation, PhysicalIommu};
use crate::error::OrderError;
use crate::progress::{Budget, Progress};
use crate::regs::file::Registers;

use super::context::Reading;
use super::slot::{Phase, Step};
use super::{Health, Nest, Residue, Stalled};

/// Most blocked states a host may go through on the way to one context. Two do for any (UPD-07); the bound keeps a host
/// that never arrives from keeping the guest's fence for ever.
const MAX_STEPS: u8 = 4;

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize> Nest<D, DEVICES, BATCH> {
    /// Does what can be done now. `Idle`: every context read is in force, or blocked, and its invalidation is in the
    /// batch.
    pub(crate) fn settle<B: Backend<Device = D>>(
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
        if slot.stale && slot.phase == Phase::Live && !self.locked {
            if !budget.take() {
                return Ok(Progress::Runnable);
            }
            let reading = Reading::take(registers, backend, slot.id);
            slot.stale = false;
            slot.not_valid = reading.is_not_valid();
            slot.dtf = reading.dtf();
            slot.owed |= core::mem::take(&mut slot.named);
            let wanted = if slot.refused { Context::Blocked } else { reading.context() };
            if slot.wanted != wanted {
                slot.wanted = wanted;
                slot.steps = 0;
            }
        }
        let progress = self.apply(index, backend)?;
        self.order_owed(index, backend)?;
        Ok(progress)
    }

    /// Gives hardware the context it is wanted to have.
    fn apply<P: PhysicalIommu<Device = D>>(&mut self, index: usize, physical: &mut P) -> Result<Progress, Stalled> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        if slot.step != Step::None || slot.live == Some(slot.wanted) {
            return Ok(Progress::Idle);
        }
        if slot.wanted != Context::Blocked {
            self.residue = Residue::Some;
        }
        match physical.set_context(slot.device, &slot.wanted) {
            // To be called again after an invalidation and a fence.
            Ok(Applied::Blocked) if slot.wanted != Context::Blocked && slot.steps < MAX_STEPS => {
                slot.live = Some(Context::Blocked);
                slot.steps = slot.steps.saturating_add(1);
                slot.owed = true;
            }
            Ok(Applied::Blocked) if slot.wanted != Context::Blocked => {
                log::debug!("the physical IOMMU does not get to a context");
                slot.live = Some(Context::Blocked);
                slot.refuse();
                self.health = self.health.max(Health::Degraded);
            }
            Ok(_) => {
                slot.live = Some(slot.wanted);
                slot.steps = 0;
                slot.owed = true;
            }
            Err(OrderError::Busy) => return Ok(Progress::Waiting),
            Err(OrderError::Refused { .. }) => {
                log::debug!("the physical IOMMU refused a context");
                slot.live = None;
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

    /// Blocks every device of which it is not known what context it has: before any other order (rule T39).
    pub(super) fn block_unknown<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        if self.health == Health::Failed {
            return Err(Stalled);
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.live.is_none()) {
            match physical.set_context(slot.device, &Context::Blocked) {
                Ok(_) => {
                    slot.live = Some(Context::Blocked);
                    slot.owed = true;
                }
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

    /// Puts the invalidation a slot owes into the batch; then a slot on its way in, out or through needs a fence.
    fn order_owed<P: PhysicalIommu<Device = D>>(&mut self, index: usize, physical: &mut P) -> Result<(), Stalled> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        // Locked, an invalidation would be refused again: devices stay blocked where they are.
        if self.locked {
            slot.owed = false;
            return Ok(());
        }
        if slot.owed {
            let order = Invalidation::Device(slot.device);
            if !self.batch.push(order) {
                self.flush(physical)?;
                self.batch.push(order);
            }
        }
        if let Some(slot) = self.slots.get_mut(index) {
            slot.owed = false;
            if slot.step == Step::None && (slot.phase != Phase::Live || slot.steps != 0) {
                slot.step = Step::Unfenced;
            }
        }
        Ok(())
    }

    /// Fences the slots that need it and lets those go on whose fence is complete; whether any did.
    fn step_on<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<bool, Stalled> {
        if self.slots.iter().any(|slot| slot.step == Step::Unfenced) {
            self.flush(physical)?;
            let ticket = self.issue_fence(FenceScope::ALL, physical)?;
            for slot in self.slots.iter_mut().filter(|slot| slot.step == Step::Unfenced) {
                slot.step = Step::Fenced(ticket);
            }
        }
        let mut went_on = false;
        let mut index = 0_usize;
        while let Some(slot) = self.slots.get_mut(index) {
            if matches!(slot.step, Step::Fenced(ticket) if ticket <= self.completed) {
                went_on = true;
                slot.step = Step::None;
                match slot.phase {
                    Phase::Entering => {
                        slot.phase = Phase::Live;
                        slot.stale = true;
                    }
                    Phase::Live => {}
                    Phase::Leaving => {
                        physical.release(slot.device);
                        self.slots.swap_remove(index);
                        continue;
                    }
                }
            }
            index = index.saturating_add(1);
        }
        let waits = self.slots.iter().any(|slot| matches!(slot.step, Step::Fenced(_)));
        if went_on || !waits { Ok(went_on) } else { Err(Stalled) }
    }
}
