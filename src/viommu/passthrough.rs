//! Devices of the host that are given to the guest: attaching them, and what the physical side tells of them.

use super::{Attached, DevicePolicy, VIommu};
use crate::attachment::Attachment;
use crate::backend::{Backend, FenceOutcome, Ticket};
use crate::error::AttachError;
use crate::faultq::HostFault;
use crate::id::DeviceId;
use crate::nest::Verdict;
use crate::progress::Progress;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS>
{
    /// Gives the guest the host device `device` as `id`. It is blocked until a fence is complete, then gets the
    /// context of the guest's directory.
    ///
    /// # Errors
    /// [`AttachError`]; the device is then not attached. With [`AttachError::Capability`] it was adopted and is
    /// blocked, invalidated, fenced and released like a device that is detached: [`run`](Self::run) finishes that.
    pub fn attach(&mut self, id: DeviceId, device: B::Device, policy: DevicePolicy) -> Result<Attached, AttachError> {
        let DevicePolicy { ats: _, trusted_translations: _, response_failure: _ } = policy;
        match self.config {
            None => return Err(AttachError::NotStarted),
            Some(config) if !config.is_nested() => return Err(AttachError::NotNested),
            Some(_) => {}
        }
        if self.emulated.named(id).is_some() {
            return Err(AttachError::IdInUse);
        }
        let promised = self.registers.capabilities();
        let attached = self.nest.attach(id, device, promised, &mut self.generations, &mut self.backend);
        let progress = self.run();
        attached.map(|attachment| Attached { attachment, progress })
    }

    /// Reads the guest's context of a device again: for a host that learned that it changed.
    pub fn resync(&mut self, id: DeviceId) -> Progress {
        self.nest.reread(id);
        self.run()
    }

    /// A fence the physical side called pending has ended, and with it all before it: tell them in the order of their
    /// tickets. Unknown and old tickets are ignored.
    pub fn fence_done(&mut self, ticket: Ticket, outcome: FenceOutcome) -> Progress {
        self.nest.fence_done(ticket, outcome, &mut self.backend);
        self.run()
    }

    /// A fault of an attached device, drained from the physical fault queue; one that arrives while
    /// [`attach`](Self::attach) has not returned yet waits in a queue of the host's. The guest is shown what its own
    /// IOMMU would have reported, which may be nothing.
    ///
    /// Drain the queue and report what was in it before saying that a fence is done: a fault of a blocked state that is
    /// told later is taken for one of the context that followed.
    pub fn report_fault(&mut self, attachment: Attachment, fault: &HostFault) -> Progress {
        match self.nest.judge(attachment, fault, &self.registers, &self.backend) {
            Verdict::Report { fault, origin, dtf } => {
                self.record(fault, &origin, dtf);
                self.finish();
                self.progress
            }
            Verdict::Reread => {
                self.stats.faults_withheld = self.stats.faults_withheld.wrapping_add(1);
                self.run()
            }
            Verdict::NotOurs => {
                self.stats.count_stale();
                self.progress
            }
        }
    }

    /// The host lost `count` faults of this guest's devices, which it is told by `fqof`.
    // UNSPECIFIED: the specification knows no record lost before the queue; to the guest it overflowed.
    pub fn report_lost(&mut self, count: u64) -> Progress {
        self.stats.faults_lost = self.stats.faults_lost.wrapping_add(count);
        let csr = self.registers.fqcsr();
        if count != 0 && csr.fqon() && !csr.fqmf() {
            self.registers.set_fqcsr(csr.with_fqof(true));
            self.finish();
        }
        self.progress
    }
}
