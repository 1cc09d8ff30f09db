//! How every call ends: what waits goes on, and what the guest may read is published before it is signalled.

use super::VIommu;
use crate::backend::{Backend, Invalidation};
use crate::cmdq::Env;
use crate::fault::Fault;
use crate::faultq::{self, FaultQueue, Fenced, Origin};
use crate::progress::{Budget, Progress};
use crate::regs::{Width, low_half};
use crate::stats::Stats;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Goes on with whatever waits: the directory, then the queue.
    pub(super) fn advance(&mut self) {
        let Some(config) = self.config else {
            return;
        };
        let mut budget = Budget::new(config.budget);
        if self.nest.is_restoring() {
            self.progress = self.nest.redrive(&self.registers, &mut self.backend, &mut budget);
            if self.progress != Progress::Idle {
                return;
            }
            // What comes now is the guest's.
            self.faults.renew(self.fenced());
            budget = Budget::new(config.budget);
        }
        let is_drained = self.drains.is_done(&mut self.backend);
        let mut waits = if is_drained { Progress::Idle } else { Progress::Waiting };
        if let Some(barrier) = &mut self.directory {
            match self.nest.pass(barrier, &self.registers, &mut self.backend, &mut budget) {
                Ok(()) if !is_drained => {}
                Ok(()) => {
                    self.directory = None;
                    self.directories = self.directories.wrapping_add(1);
                    self.registers.clear_ddtp_busy();
                }
                Err(progress) => waits = waits.max(progress),
            }
        }
        if let Some(barrier) = &mut self.memory_taken {
            match self.nest.pass(barrier, &self.registers, &mut self.backend, &mut budget) {
                Ok(()) if is_drained && !self.nest.is_locked() => self.memory_taken = None,
                Ok(()) => {}
                Err(progress) => waits = waits.max(progress),
            }
        }
        let queue = &mut self.commands;
        let mut env = Env {
            queue,
            registers: &mut self.registers,
            nest: &mut self.nest,
            emulated: &self.emulated,
            ats: &mut self.ats,
            caches: &mut self.caches,
            drains: &mut self.drains,
            backend: &mut self.backend,
            budget: &mut budget,
            counts: &mut self.stats.commands,
        };
        self.progress = waits.max(env.advance());
        if self.progress == Progress::Runnable {
            self.stats.budget_used_up = self.stats.budget_used_up.wrapping_add(1);
        }
    }

    /// The directory is another one: nothing of the old one is used for an access that begins now.
    // UNSPECIFIED: what is remembered may be kept (rules REG-DDTP-13, CA-12); forgetting is always allowed.
    pub(super) fn forget_translations(&mut self) {
        self.caches.clear();
        self.drains.invalidate();
        self.drains.fence(true);
        if !self.emulated.is_empty() {
            self.backend.unmapped(&Invalidation::Everything);
        }
    }

    /// Ends every call that can change a register: what the guest may read is published before it is signalled.
    pub(super) fn finish(&mut self) {
        let mirror = self.config.is_some_and(|config| config.mirror);
        self.faults.forget_if_off(&self.registers);
        loop {
            self.signals.evaluate(&mut self.registers);
            if mirror {
                self.publish();
            }
            match self.signals.deliver(&self.registers, &mut self.backend, &mut self.stats.messages) {
                Ok(()) => return,
                // The record may ask for one more message; that its cause is then pending already ends it (IRQ-14).
                Err(at) => {
                    let (faults, mut env, stats) = self.fault_queue();
                    stats.count(faults.report_msi_fault(at, &mut env));
                }
            }
        }
    }

    fn publish(&mut self) {
        while let Some(register) = self.registers.pop_changed() {
            let value = self.registers.value(register);
            self.backend.publish(register.offset(), low_half(value));
            if register.width() == Width::U64 {
                self.backend.publish(register.offset().saturating_add(4), low_half(value >> 32));
            }
        }
    }

    pub(super) fn record(&mut self, fault: Fault, origin: &Origin, dtf: bool) {
        self.nest.noted.note_context(origin.device, origin.process, &fault);
        let (faults, mut env, stats) = self.fault_queue();
        stats.count(faults.report(fault, origin, dtf, &mut env));
    }

    pub(super) fn fenced(&self) -> Fenced {
        (self.nest.completed(), self.stats.commands.iofence_c.wrapping_add(self.directories))
    }

    /// The fault queue, what it works on, and what counts its outcomes.
    pub(super) fn fault_queue(&mut self) -> (&mut FaultQueue, faultq::Env<'_, B>, &mut Stats) {
        let fenced = self.fenced();
        let Self { backend, registers, signals, faults, stats, .. } = self;
        (faults, faultq::Env { registers, signals, memory: backend, fenced }, stats)
    }
}
