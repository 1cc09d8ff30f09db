//! `IOFENCE.C`: the one command that waits.

use super::{Command, Env, Flow, IofenceC};
use crate::backend::{Backend, FenceScope, Post};
use crate::mem::View;
use crate::nest::Barrier;
use crate::progress::Progress;

/// A fence that waits.
#[derive(Debug)]
pub(super) struct Fence {
    pub(super) command: IofenceC,
    barrier: Barrier,
    /// Which DMA of emulated devices it waits for is settled.
    drains: bool,
}

impl Fence {
    pub(super) const fn new(command: IofenceC) -> Self {
        Self { command, barrier: Barrier::new(FenceScope::new(command.pr, command.pw)), drains: false }
    }
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// In the order of rules FEN-02 and VC-47: everything before it, the timeout, the store, the head, the wire.
    pub(super) fn go_on_with_fence(&mut self) -> Flow {
        let Some(Fence { command: fence, barrier, drains }) = &mut self.queue.fence else {
            return Flow::Next;
        };
        // Nothing behind the fence has been fetched: what is under way to devices was ordered before it.
        if !self.ats.is_idle() {
            return Flow::Wait(Progress::Waiting);
        }
        // Accesses are ordered after that wait (rule FEN-02): what was translated during it counts too.
        if !core::mem::replace(drains, true) {
            self.drains.fence(fence.pr || fence.pw);
        }
        let is_drained = self.drains.is_done(self.backend);
        if let Err(progress) = self.nest.pass(barrier, self.registers, self.backend, self.budget) {
            return Flow::Wait(progress);
        }
        if !is_drained {
            return Flow::Wait(Progress::Waiting);
        }
        let fence = *fence;
        // Done, or stopped and then fetched and carried out again as a whole (rules FEN-05, FEN-07).
        self.queue.fence = None;
        let timed_out = [self.nest.take_timeout(), self.ats.take_timeout()];
        if timed_out.contains(&true) {
            self.set_status(|csr| csr.with_cmd_to(true));
            return Flow::Stop;
        }
        if let Some((at, data)) = fence.store {
            if let Err(fault) = View::of(self.registers).post(self.backend, at, data, Post::FenceData) {
                self.stop_at_memory(at, fault);
                return Flow::Stop;
            }
            self.counts.count_store();
        }
        self.step_over(&Command::IofenceC(fence));
        if fence.wsi {
            self.set_status(|csr| csr.with_fence_w_ip(true));
        }
        Flow::Next
    }
}
