//! A guest that goes on elsewhere: what its devices' hardware is driven anew from.

use crate::backend::Backend;
use crate::progress::{Budget, Progress};
use crate::regs::file::Registers;

use super::{Health, Nest, Residue};

/// What later orders and answers depend on beside the guest's memory and registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Invalidations of first-stage translations are not left out.
    pub(crate) residue: bool,
    /// An ATS invalidation timed out and no guest fence has said so yet.
    pub(crate) timed_out: bool,
    pub(crate) degraded: bool,
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Reads what the guest named and lets all that is held go out, as far as the physical side goes along: no order
    /// of what the guest has said so far is left for later.
    pub(crate) fn save<B: Backend<Device = D>>(&mut self, registers: &Registers, backend: &mut B) -> Saved {
        // Each device is read at most twice: when it has come in, and because it was named.
        let units = u32::try_from(self.slots.len()).unwrap_or(u32::MAX).saturating_mul(2);
        let _ = self.settle(registers, backend, &mut Budget::new(units));
        self.release_batch(backend);
        Saved {
            residue: self.residue == Residue::Some || self.restoring == Some(true),
            timed_out: self.timed_out,
            degraded: self.health != Health::Good,
        }
    }

    /// Whether no fence is under way, or about to be, that was not the guest's wish.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.restoring.is_some() || (self.issued == self.completed && !self.slots.iter().any(|slot| slot.hold))
    }

    /// After a reset: every device is driven anew, and nothing of the guest goes on before.
    pub(crate) fn restore(&mut self, saved: Saved) {
        let Saved { residue, timed_out, degraded } = saved;
        self.restoring = Some(residue);
        self.timed_out = timed_out;
        if degraded {
            self.health = Health::Degraded;
        }
        if !self.slots.is_empty() {
            self.batch.widen();
        }
    }

    pub(crate) const fn is_restoring(&self) -> bool {
        self.restoring.is_some()
    }

    /// Goes on with driving every device anew.
    pub(crate) fn redrive<B: Backend<Device = D>>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Progress {
        let progress = self.settle(registers, backend, budget);
        if progress == Progress::Idle && self.restoring.take() == Some(true) && !self.slots.is_empty() {
            // Hardware is clean, perhaps; the guest's next orders are what they would have been.
            self.residue = Residue::Some;
        }
        progress
    }

    /// After a reset: every device stays blocked until the next one.
    pub(crate) fn shut(&mut self) {
        self.shut = true;
        self.health = Health::Degraded;
    }
}
