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
    /// A fence that has to wait does so at the head of the queue.
    pub(super) fn go_on_with_fence(&mut self, mut fence: Fence) -> Flow {
        match self.pass(&mut fence) {
            Ok(flow) => flow,
            Err(progress) => {
                self.queue.fence = Some(fence);
                Flow::Wait(progress)
            }
        }
    }

    /// In the order of rules FEN-02 and VC-47: everything before it, the timeout, the store, the head, the wire.
    fn pass(&mut self, fence: &mut Fence) -> Result<Flow, Progress> {
        // Nothing behind the fence has been fetched: what is under way to devices was ordered before it.
        if !self.ats.is_idle() {
            return Err(Progress::Waiting);
        }
        let Fence { command: fence, barrier, drains } = fence;
        // Accesses are ordered after that wait (rule FEN-02): what was translated during it counts too.
        if !core::mem::replace(drains, true) {
            self.drains.fence(fence.pr || fence.pw);
        }
        let is_drained = self.drains.is_done(self.backend);
        self.nest.pass(barrier, self.registers, self.backend, self.budget)?;
        if !is_drained {
            return Err(Progress::Waiting);
        }
        // Done, or stopped and then fetched and carried out again as a whole (rules FEN-05, FEN-07).
        if self.nest.take_timeout() | self.ats.take_timeout() {
            self.set_status(|csr| csr.with_cmd_to(true));
            return Ok(Flow::Stop);
        }
        if let Some((at, data)) = fence.store {
            if let Err(fault) = View::of(self.registers).post(self.backend, at, data, Post::FenceData) {
                self.stop_at_memory(at, fault);
                return Ok(Flow::Stop);
            }
            self.counts.count_store();
        }
        self.step_over(&Command::IofenceC(*fence), 0);
        if fence.wsi {
            self.set_status(|csr| csr.with_fence_w_ip(true));
        }
        Ok(Flow::Next)
    }
}
