//! What a device does with ATS: the translations it keeps itself, and its page requests.

use std::vec::Vec;

use crate::addr::{Gpa, Iova};
use crate::backend::{Ats, AtsInvalidation, Context, PageResponse, ResponseCode};
use crate::fault::{Cause, TransactionType};
use crate::faultq::HostFault;
use crate::id::{Prgi, ProcessId};
use crate::pageq::PageRequest;

use super::PhysicalDevice;
use super::context::Meaning;
use super::hardware::{Access, AtsAnswer, Dma};
use super::machine::Machine;
use super::walk::Request;

/// What a function keeps by itself, whatever becomes of its context.
#[derive(Debug, Default)]
pub(super) struct Function {
    kept: Vec<Kept>,
    /// The host has reset it, and it has had no ATS since.
    pub(super) empty: bool,
    /// It does not answer invalidations.
    pub(super) unresponsive: bool,
    /// A Response Failure has turned its page requests off.
    pub(super) requests_off: bool,
    /// The groups of requests that reached the host and are unanswered.
    groups: Vec<(Option<ProcessId>, Prgi)>,
    pub(super) responses: Vec<PageResponse>,
}

/// A translation of one page in a device's own cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// PASID of the request.
    pub process: Option<ProcessId>,
    /// The page as the device knows it.
    pub iova: Iova,
    /// What the IOMMU answered.
    pub page: Gpa,
    /// The device may write.
    pub write: bool,
}

impl Function {
    pub(super) fn kept(&self) -> Vec<Kept> {
        self.kept.clone()
    }

    fn find(&self, process: Option<ProcessId>, iova: Iova, write: bool) -> Option<Kept> {
        let mut usable = self.kept.iter().filter(|kept| kept.write || !write);
        usable.find(|kept| kept.process == process && kept.iova == iova.page()).copied()
    }

    fn forget(&mut self, what: &AtsInvalidation) {
        let meant = |kept: &Kept| {
            let of = if what.global { kept.process.is_some() } else { kept.process == what.process };
            of && (what.first..=what.last).contains(&kept.iova)
        };
        self.kept.retain(|kept| !meant(kept));
    }

    fn receive(&mut self, response: PageResponse) {
        self.requests_off |= response.code == ResponseCode::ResponseFailure;
        self.responses.push(response);
    }

    /// Nobody will answer what is unanswered.
    pub(super) fn void_requests(&mut self) {
        self.groups.clear();
    }
}

impl Machine {
    /// A Translation Request; what is granted the device keeps.
    pub(super) fn ats_request(
        &mut self,
        device: PhysicalDevice,
        process: Option<ProcessId>,
        iova: Iova,
        write: bool,
    ) -> AtsAnswer {
        let found = self.slot(device).fetch();
        let answer = self.ats_answer(device, found, process, iova, write, true);
        match answer {
            AtsAnswer::Granted { page, write } => {
                let kept = Kept { process, iova: iova.page(), page, write };
                self.function(device).kept.push(kept);
            }
            AtsAnswer::Refused(cause) => {
                self.report_of(device, process, HostFault::new(cause, TransactionType::AtsTranslationRequest, iova));
            }
            AtsAnswer::Nothing => {}
        }
        answer
    }

    fn ats_answer(
        &mut self,
        device: PhysicalDevice,
        meaning: Result<Meaning, Cause>,
        process: Option<ProcessId>,
        iova: Iova,
        write: bool,
        cached: bool,
    ) -> AtsAnswer {
        if let Err(cause) = meaning.and_then(permit) {
            return AtsAnswer::Refused(cause);
        }
        let request = Request { iova: iova.page().get(), write: false, privileged: false };
        match self.access(device, meaning, process, request, cached) {
            Access::Translated(page) => {
                let to_write = Request { write: true, ..request };
                let writes = |machine: &mut Self| machine.access(device, meaning, process, to_write, cached);
                AtsAnswer::Granted { page, write: write && matches!(writes(self), Access::Translated(_)) }
            }
            // What a walk does not find is a success without permissions (rule ATS-04).
            Access::Blocked | Access::Unchecked(_) | Access::Faulted(Cause::ReadPageFault | Cause::PdtNotValid) => {
                AtsAnswer::Nothing
            }
            Access::Faulted(cause) => AtsAnswer::Refused(cause),
        }
    }

    /// A Translated Request.
    pub(super) fn translated(
        &mut self,
        device: PhysicalDevice,
        process: Option<ProcessId>,
        to: Gpa,
        write: bool,
    ) -> Access {
        let found = self.slot(device).fetch();
        let access = match found.and_then(permit) {
            Err(cause) => Access::Faulted(cause),
            Ok(meaning) if process.is_some_and(|process| !takes(&meaning.context, process)) => {
                Access::Faulted(Cause::TransactionTypeDisallowed)
            }
            Ok(meaning) if meaning.t2gpa && !meaning.context.is_open() => Access::Blocked,
            Ok(meaning) if meaning.t2gpa => Access::Translated(to),
            Ok(_) => Access::Unchecked(to.get()),
        };
        let kind = if write { TransactionType::TranslatedWrite } else { TransactionType::TranslatedRead };
        if let Some(cause) = access.cause(write) {
            self.report_of(device, process, HostFault::new(cause, kind, Iova::new(to.get())));
        }
        access
    }

    /// What a device with a cache of its own does: it asks once, and then uses what it keeps.
    pub(super) fn dma_through_atc(
        &mut self,
        device: PhysicalDevice,
        process: Option<ProcessId>,
        iova: Iova,
        write: bool,
    ) -> Dma {
        let (used, present) = (self.slot(device).fetch(), self.slot(device).present());
        let answer = match self.function(device).find(process, iova, write) {
            Some(Kept { page, write, .. }) => AtsAnswer::Granted { page, write },
            None => self.ats_request(device, process, iova, write),
        };
        let access = match reaches(answer, iova, write) {
            Access::Translated(to) => self.translated(device, process, to, write),
            access => access,
        };
        let fresh = match present {
            Ok(meaning) if meaning.ats != Ats::Off && !meaning.context.is_open() => Access::Blocked,
            _ => reaches(self.ats_answer(device, present, process, iova, write, false), iova, write),
        };
        let went = match access {
            Access::Unchecked(to) => Access::Translated(Gpa::new(to)),
            access => access,
        };
        Dma { access, context: used.ok().map(|meaning| meaning.context), stale: went != fresh }
    }

    /// An Invalidation Request; whether its completion came. With `EN_ATS` = 0 it is not looked at (rule ATS-21).
    pub(super) fn ats_invalidate(&mut self, device: PhysicalDevice, what: &AtsInvalidation) -> bool {
        let has_ats = self.slot(device).has_ats();
        let function = self.function(device);
        if function.unresponsive {
            return false;
        }
        function.forget(what);
        has_ats
    }

    /// A Page Request message; what the IOMMU itself answers.
    pub(super) fn page_request(&mut self, device: PhysicalDevice, request: &PageRequest) -> Option<ResponseCode> {
        let answered = request.payload.wants_response();
        if self.function(device).requests_off {
            return None;
        }
        let found = self.slot(device).fetch();
        if found.is_ok_and(|meaning| meaning.ats == Ats::PageRequests) {
            let group = (request.process, request.payload.prgi());
            self.function(device).groups.extend(answered.then_some(group));
            self.page_requests.push((device, *request));
            return None;
        }
        let cause = found.err().unwrap_or(Cause::TransactionTypeDisallowed);
        // iotval is the message code (rule PRI-03).
        let fault = HostFault::new(cause, TransactionType::MessageRequest, Iova::new(4));
        self.report_of(device, request.process, fault);
        let code = if found.is_ok() { ResponseCode::InvalidRequest } else { ResponseCode::ResponseFailure };
        answered.then(|| self.send(device, request, code))
    }

    /// The host resets the function.
    pub(super) fn reset_function(&mut self, device: PhysicalDevice) {
        let empty =
            self.slot(device).present().is_ok_and(|meaning| meaning.ats == Ats::Off || !meaning.context.is_open());
        *self.function(device) = Function { empty, ..Function::default() };
        self.page_requests.retain(|(other, _)| *other != device);
    }

    /// The host answers a group that reached it; whether there is one.
    pub(super) fn respond(&mut self, device: PhysicalDevice, response: &PageResponse, sent: bool) -> bool {
        let function = self.function(device);
        let group = function.groups.iter().position(|group| *group == (response.process, response.group));
        if let Some(group) = group {
            function.groups.remove(group);
            if sent {
                self.deliver(device, *response);
            }
        }
        group.is_some()
    }

    fn send(&mut self, device: PhysicalDevice, request: &PageRequest, code: ResponseCode) -> ResponseCode {
        // A Response Failure echoes the PASID; the others have it with PRPR, which is not modelled (rule PRI-09).
        let process = request.process.filter(|_| code == ResponseCode::ResponseFailure);
        self.deliver(device, PageResponse { process, group: request.payload.prgi(), code });
        code
    }

    fn deliver(&mut self, device: PhysicalDevice, response: PageResponse) {
        let failure = response.code == ResponseCode::ResponseFailure;
        self.response_failures = self.response_failures.saturating_add(failure.into());
        self.function(device).receive(response);
    }
}

/// Whether ATS is allowed (rule TR-08).
fn permit(meaning: Meaning) -> Result<Meaning, Cause> {
    if meaning.ats == Ats::Off { Err(Cause::TransactionTypeDisallowed) } else { Ok(meaning) }
}

/// Whether requests may have this process id (rules TR-09, TR-10).
fn takes(context: &Context, process: ProcessId) -> bool {
    match context {
        Context::Processes(processes) => super::processes::holds(processes.mode, process),
        Context::SecondStageOnly { process_ids, .. } => *process_ids,
        Context::FirstStage(_) => false,
        Context::Blocked | Context::Quiesced => true,
    }
}

/// Where an access goes for which the device got this answer.
fn reaches(answer: AtsAnswer, iova: Iova, write: bool) -> Access {
    let fault = if write { Cause::WritePageFault } else { Cause::ReadPageFault };
    match answer {
        AtsAnswer::Granted { page, write: granted } if granted || !write => {
            Access::Translated(page.or(iova.get() & 0xfff))
        }
        AtsAnswer::Granted { .. } | AtsAnswer::Nothing => Access::Faulted(fault),
        AtsAnswer::Refused(cause) => Access::Faulted(cause),
    }
}
