//! Devices of the host that are given to the guest: attaching them, and what the physical side tells of them.

use super::{DevicePolicy, VIommu};
use crate::addr::Iova;
use crate::attachment::Attachment;
use crate::backend::{Backend, FenceOutcome, PageResponse, ResponseCode, Ticket};
use crate::ddt::Reading;
use crate::error::AttachError;
use crate::fault::TransactionType;
use crate::faultq::{HostFault, Origin};
use crate::id::{DeviceId, Prgi, ProcessId};
use crate::mem::Glass;
use crate::nest::{Grant, Requester, Verdict};
use crate::pageq::{self, Admission, PageRequest};
use crate::progress::Progress;
use crate::translate::{Ask, Caches, Env, Permissions, Tally};

/// A device was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "its events present the attachment, and its progress tells what is left to do"]
#[non_exhaustive]
pub struct Attached {
    /// What the device's faults present.
    pub attachment: Attachment,
    /// What is left until the device's context is in force.
    pub progress: Progress,
}

/// What becomes of a page request of a passthrough device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it says who answers the device"]
#[non_exhaustive]
pub enum PageRequestOutcome {
    /// The guest's tables allow the access: what is missing is a page of the host's second stage. The host makes it
    /// present and answers by itself, or leaves a request that wants no response to the last one of its group.
    HostPage,
    /// It is in the guest's queue. The guest's answer, if the request wants one, comes by
    /// [`page_response`](crate::PhysicalIommu::page_response); one that does not come in time is given up by
    /// [`page_request_timeout`](VIommu::page_request_timeout). A group is forgotten when its device is detached, and
    /// by [`reset`](VIommu::reset): the host then answers it by itself, or resets the function.
    Queued,
    /// The guest gets no record of it. The host sends this response, if the request wants one.
    Discarded(Option<PageResponse>),
    /// It comes from an earlier owner of the id, or after the device began to leave: whoever has the device answers.
    NotAttached,
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Gives the guest the host device `device` as `id`. It is blocked until a fence is complete, then gets the context
    /// of the guest's directory, with ATS as far as that, `policy` and [`Config::with_ats`](crate::Config::with_ats)
    /// go. A device that leaves three ATS invalidations in a row unanswered has none until it is
    /// [reset](Self::device_reset).
    ///
    /// # Errors
    /// [`AttachError`]; the device is then not attached. With [`AttachError::Capability`] it was adopted and is
    /// blocked, invalidated, fenced and released like a device that is detached: [`run`](Self::run) finishes that.
    pub fn attach(&mut self, id: DeviceId, device: B::Device, policy: DevicePolicy) -> Result<Attached, AttachError> {
        let DevicePolicy { ats, trusted_translations, response_failure } = policy;
        let grant = Grant { ats, trusted_translations, response_failure };
        match self.config {
            None => return Err(AttachError::NotStarted),
            Some(config) if !config.is_nested() => return Err(AttachError::NotNested),
            Some(_) => {}
        }
        if self.emulated.named(id).is_some() {
            return Err(AttachError::IdInUse);
        }
        let promised = self.registers.capabilities();
        let attached = self.nest.attach(id, device, grant, promised, &mut self.generations, &mut self.backend);
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

    /// A Page Request of an attached device, drained from the physical page-request queue: every one, in order. What
    /// the guest's own tables do not allow goes into its queue, without a change to the tables; the work is bounded by
    /// one walk of them, and nothing of it is left for [`run`](Self::run).
    pub fn report_page_request(&mut self, attachment: Attachment, request: &PageRequest) -> PageRequestOutcome {
        let PageRequest { process, privileged, payload, .. } = *request;
        let admission = match self.nest.requester(attachment, request) {
            Requester::Stale => {
                self.stats.count_stale();
                return PageRequestOutcome::NotAttached;
            }
            Requester::Denied => Admission::Denied,
            // What the guest has seen a part of, it is to see the end of.
            Requester::Granted { begun: false, .. } if self.allows(attachment.device(), request) => {
                self.stats.page_requests_for_host = self.stats.page_requests_for_host.wrapping_add(1);
                return PageRequestOutcome::HostPage;
            }
            Requester::Granted { room: true, .. } => Admission::Granted,
            Requester::Granted { room: false, .. } => Admission::NoRoom,
        };
        let id = attachment.device();
        let received =
            pageq::receive(id, request, admission, &mut self.registers, &mut self.signals, &mut self.backend);
        if let Some((fault, dtf)) = received.fault {
            let iova = Iova::new(pageq::MESSAGE_CODE);
            let access = TransactionType::MessageRequest;
            self.record(fault, &Origin { device: id, access, process, privileged, iova }, dtf);
        }
        self.stats.count_page_request(received.queued);
        if received.queued {
            self.nest.page_requested(attachment, request);
        }
        if received.response.is_some() {
            // That ends the group: an answer of the guest's comes too late (rules PRG-04, VT-10).
            let _ = self.nest.give_up(attachment, payload.prgi(), process);
        }
        self.finish();
        match received.response {
            None if received.queued => PageRequestOutcome::Queued,
            response => PageRequestOutcome::Discarded(response.map(|response| PageResponse {
                // Whether the function asks for one is what the host knows.
                process,
                code: self.nest.permitted(attachment, response.code),
                ..response
            })),
        }
    }

    /// The guest did not answer this group in the time the host gives it: the response the host sends then. `None`, if
    /// there is no such group that waits for the guest: it was answered, or [forgotten](PageRequestOutcome::Queued). An
    /// answer that comes later is dropped.
    #[must_use = "the device waits for it"]
    pub fn page_request_timeout(
        &mut self,
        attachment: Attachment,
        group: Prgi,
        process: Option<ProcessId>,
    ) -> Option<PageResponse> {
        let code = ResponseCode::InvalidRequest;
        self.nest.give_up(attachment, group, process).then_some(PageResponse { process, group, code })
    }

    /// The host has reset the function behind `id`, also where the guest asked for that, or for one of its bus: nothing
    /// is left in its own cache, and its page requests and invalidation requests are void. What it asked for is
    /// forgotten, and a device that got no ATS any more because it did not answer gets it again. Of an emulated device
    /// the messages under way are dropped, and no fence waits for its completions.
    pub fn device_reset(&mut self, id: DeviceId) -> Progress {
        match self.emulated.named(id) {
            Some(device) => self.ats.forget(device.attachment),
            None => self.nest.device_reset(id),
        }
        self.run()
    }

    /// Whether the guest lets the device ask, and its tables allow what is requested, as hardware would find that gives
    /// the device its translations (rule VT-10).
    fn allows(&self, device: DeviceId, request: &PageRequest) -> bool {
        let PageRequest { process, privileged, execute, payload } = *request;
        let reading = Reading::take(&self.registers, &self.backend, device);
        let asks = reading.refuses(TransactionType::MessageRequest, process).is_none();
        if !asks || (!payload.r() && !payload.w()) {
            return false;
        }
        let executes = execute && process.is_some();
        let iova = Iova::new(payload.page() << 12);
        let origin = Origin { device, access: TransactionType::AtsTranslationRequest, process, privileged, iova };
        let mut env = Env {
            registers: &self.registers,
            memory: &mut Glass { memory: &self.backend, hole: None },
            caches: &mut Caches::<0>::new(),
            tally: Tally::default(),
        };
        let found = env.translate_from(&reading, &origin, Ask { executes, writes: payload.w(), is_ats: true });
        found.is_ok_and(|outcome| {
            let Permissions { read, write, execute, .. } = outcome.permissions;
            (read || !payload.r()) && (write || !payload.w()) && (execute || !executes)
        })
    }

    /// The host lost `count` faults of this guest's devices, which it is told by `fqof`.
    // DEVIATES: `fqof` although the queue is not full: no bit says that a record was lost before it (rules REG-FQCSR-05,
    // FQ-06).
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
