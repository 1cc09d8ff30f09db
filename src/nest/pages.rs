//! Page requests of passthrough devices: which groups the guest has to answer, and its answers.

use heapless::Vec;

use crate::attachment::Attachment;
use crate::backend::{Ats, PageResponse, PhysicalIommu, ResponseCode};
use crate::cmdq::command::AtsPrgr;
use crate::error::OrderError;
use crate::id::{Prgi, ProcessId};
use crate::list;
use crate::pageq::PageRequest;
use crate::progress::Progress;

use super::slot::Phase;
use super::{Nest, Stalled};

/// A group of page requests that are in the guest's queue, or were, and are not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) of: Attachment,
    pub(super) index: Prgi,
    pub(super) process: Option<ProcessId>,
    /// Its last request has come: it can be answered.
    pub(super) whole: bool,
}

impl Group {
    fn has(&self, of: Attachment, request: &PageRequest) -> bool {
        self.of == of && self.index == request.payload.prgi() && self.process == request.process
    }
}

#[derive(Debug)]
pub(super) struct Groups<const GROUPS: usize>(Vec<Group, GROUPS>);

impl<const GROUPS: usize> Groups<GROUPS> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn iter(&self) -> core::slice::Iter<'_, Group> {
        self.0.iter()
    }

    /// Takes a group in, if there is room. One that nobody has to answer yet makes room: a device need not end what it
    /// begins (threat T41).
    pub(super) fn open(&mut self, group: Group) {
        if self.0.is_full() {
            if let Some(unanswerable) = self.0.iter().position(|group| !group.whole) {
                let _ = list::take(&mut self.0, unanswerable);
            }
        }
        let _ = self.0.push(group);
    }

    fn has_room(&self) -> bool {
        !self.0.is_full() || self.0.iter().any(|group| !group.whole)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn forget(&mut self, of: Attachment) {
        self.0.retain(|group| group.of != of);
    }
}

/// How the device of a page request stands to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// It is not the guest's, or not any more.
    Stale,
    /// It was not granted page requests.
    Denied,
    /// It may ask.
    Granted {
        /// The guest has an earlier request of the group.
        begun: bool,
        /// The group can be kept.
        room: bool,
    },
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Who makes this request.
    pub(crate) fn requester(&self, of: Attachment, request: &PageRequest) -> Requester {
        match self.slots.iter().find(|slot| slot.attachment == of && slot.phase != Phase::Leaving) {
            None => Requester::Stale,
            Some(slot) if slot.granted() < Ats::PageRequests => Requester::Denied,
            Some(_) => {
                let begun = self.groups.0.iter().any(|group| group.has(of, request));
                let room = begun || request.payload.is_stop_marker() || self.groups.has_room();
                Requester::Granted { begun, room }
            }
        }
    }

    /// A request went into the guest's queue.
    pub(crate) fn page_requested(&mut self, of: Attachment, request: &PageRequest) {
        if request.payload.is_stop_marker() {
            return;
        }
        let whole = request.payload.wants_response();
        if let Some(group) = self.groups.0.iter_mut().find(|group| group.has(of, request)) {
            group.whole |= whole;
        } else {
            let PageRequest { process, payload, .. } = *request;
            // Room was looked for before.
            self.groups.open(Group { of, index: payload.prgi(), process, whole });
        }
    }

    /// `ATS.PRGR`: sent if it answers a group that is not answered, else dropped (rules PRG-03 to PRG-05).
    pub(crate) fn respond<P: PhysicalIommu<Device = D>>(
        &mut self,
        command: &AtsPrgr,
        physical: &mut P,
    ) -> Result<(), Progress> {
        let AtsPrgr { destination, payload } = *command;
        let answers = |group: &Group| {
            group.of.device() == destination.device()
                && group.index == payload.prgi()
                && group.whole
                // UNSPECIFIED: without a PASID, of groups of several processes the one that was asked for first (rules PRG-04,
                // PRG-05).
                && (destination.process.is_none() || destination.process == group.process)
        };
        let Some(at) = self.groups.0.iter().position(answers) else {
            return Ok(());
        };
        let Some((of, process)) = self.groups.0.get(at).map(|group| (group.of, group.process)) else {
            return Ok(());
        };
        let Some(device) = self.slots.iter().find(|slot| slot.attachment == of).map(|slot| slot.device) else {
            return Ok(());
        };
        let code = self.permitted(of, ResponseCode::decode(payload.code()));
        let response = PageResponse { process, group: payload.prgi(), code };
        self.block_unknown(physical).and_then(|()| self.flush(physical)).map_err(|Stalled| Progress::Waiting)?;
        match self.orders.page_response.count(physical.page_response(device, &response)) {
            Ok(()) => {}
            Err(OrderError::Busy) => return Err(Progress::Waiting),
            Err(OrderError::Refused { .. }) => log::debug!("the physical IOMMU refused a page response"),
            Err(OrderError::Fatal) => {
                self.fail(physical);
                return Err(Progress::Waiting);
            }
        }
        let _ = list::take(&mut self.groups.0, at);
        Ok(())
    }

    /// Closes a group that is not answered; whether there is one.
    pub(crate) fn give_up(&mut self, of: Attachment, index: Prgi, process: Option<ProcessId>) -> bool {
        let before = self.groups.0.len();
        self.groups.0.retain(|group| !(group.of == of && group.index == index && group.process == process));
        self.groups.0.len() != before
    }

    /// What a response is turned into: a Response Failure would turn off the page requests of functions that are not
    /// the guest's (rules PRG-06, VT-11).
    pub(crate) fn permitted(&self, of: Attachment, code: ResponseCode) -> ResponseCode {
        let granted = self.slots.iter().any(|slot| slot.attachment == of && slot.grant.response_failure);
        match code {
            ResponseCode::ResponseFailure if !granted => ResponseCode::InvalidRequest,
            code => code,
        }
    }
}
