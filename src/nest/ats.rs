//! Invalidation requests to the devices' own caches: which are under way, and what becomes of a device that does not
//! answer.

use heapless::Vec;

use crate::attachment::Attachment;
use crate::backend::{Ats, AtsInvalidation, Backend, FenceScope, HostCapabilities, PhysicalIommu, Ticket};
use crate::cmdq::command::AtsInval;
use crate::error::OrderError;
use crate::id::DeviceId;
use crate::last_error::LastError;
use crate::progress::{Budget, Progress};
use crate::regs::Capabilities;
use crate::regs::file::Registers;

use super::slot::{Phase, Purge, Step};
use super::{Gate, Health, Nest, Stalled};

/// What empties a device's own cache: with and without a PASID.
pub(super) const PURGES: [AtsInvalidation; 2] = [AtsInvalidation::ALL, AtsInvalidation::ALL_PROCESSES];

/// What the host grants a passthrough device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) ats: Ats,
    pub(crate) trusted_translations: bool,
    pub(crate) response_failure: bool,
}

impl Grant {
    /// As far as the guest was offered ATS at all.
    pub(super) const fn offered(self, promised: Capabilities) -> Self {
        if promised.ats() { self } else { Self { ats: Ats::Off, ..self } }
    }

    /// What the device's IOMMU lacks for it. Without `T2GPA` translated requests would pass every check (rule MRG-03).
    pub(super) const fn lacks(self, host: &HostCapabilities) -> Option<&'static str> {
        match self.ats {
            Ats::Off => None,
            _ if !host.capabilities.ats() => Some("ATS"),
            _ if !host.capabilities.t2gpa() && !self.trusted_translations => Some("T2GPA"),
            _ => None,
        }
    }
}

/// A request that no complete fence covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    to: Attachment,
    /// The first fence after it.
    before: Option<Ticket>,
    /// The guest asked for it, and is told if it is not answered.
    guests: bool,
    /// The function was reset since: that it does not answer says nothing of it.
    void: bool,
}

impl Request {
    /// One that was sent at the guest's wish, and no fence followed yet.
    pub(super) const fn of_guest(to: Attachment) -> Self {
        Self { to, before: None, guests: true, void: false }
    }

    pub(super) fn is_of(&self, to: Attachment) -> bool {
        self.to == to
    }

    pub(super) fn is_fenced_of(&self, to: Attachment) -> bool {
        self.to == to && self.before.is_some()
    }

    pub(super) fn is_unfenced_of(&self, to: Attachment) -> bool {
        self.to == to && self.before.is_none() && self.guests
    }
}

/// The requests that are under way, of all passthrough devices together.
#[derive(Debug)]
pub(super) struct Requests<const ITAGS: usize>(Vec<Request, ITAGS>);

impl<const ITAGS: usize> Requests<ITAGS> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn iter(&self) -> core::slice::Iter<'_, Request> {
        self.0.iter()
    }

    /// These count as under way, too, as far as there is room.
    pub(super) fn resume(&mut self, requests: &[Request]) {
        for request in requests {
            let _ = self.0.push(*request);
        }
    }

    /// Whether a fence has to come before a request to this device: there is no room, or it would share its fence with
    /// another device, and a timeout would not say whose it is (rule VC-45).
    fn wants_fence(&self, to: Attachment) -> bool {
        self.0.is_full() || self.0.iter().any(|request| request.before.is_none() && request.to != to)
    }

    /// A fence was issued.
    pub(super) fn fenced(&mut self, ticket: Ticket) {
        for request in &mut self.0 {
            request.before.get_or_insert(ticket);
        }
    }

    /// The guest is not told of those that are under way.
    pub(super) fn disown(&mut self) {
        for request in &mut self.0 {
            request.guests = false;
        }
    }

    /// Nobody is told of those to this device, nor are they counted.
    fn void(&mut self, to: Attachment) {
        for request in self.0.iter_mut().filter(|request| request.to == to) {
            request.guests = false;
            request.void = true;
        }
    }
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// `ATS.INVAL`. A device that is not the guest's, or that has no ATS, is complete at once (rules VC-70, VC-71).
    pub(crate) fn ats_invalidate<B: Backend<Device = D>>(
        &mut self,
        command: &AtsInval,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Result<(), Progress> {
        let Some(index) = self.slot_with_ats(command.destination.device()) else {
            return Ok(());
        };
        // On the way from one context to another nothing can be sent, and what the device keeps comes along.
        if self.slots.get(index).is_some_and(|slot| !slot.is_settled()) {
            match self.settle(registers, backend, budget) {
                Progress::Idle => {}
                progress => return Err(progress),
            }
        }
        let AtsInval { destination, payload } = *command;
        let range = payload.range();
        let what = AtsInvalidation {
            process: destination.process,
            global: payload.g() && destination.process.is_some(),
            first: range.first(),
            last: range.last(),
        };
        // Settling may have moved the slot.
        match self.slot_with_ats(command.destination.device()) {
            Some(index) => self.send(index, &what, true, backend).map_err(|Stalled| Progress::Waiting),
            None => Ok(()),
        }
    }

    /// The slot of a device of the guest's that has ATS, or may yet get it.
    fn slot_with_ats(&self, id: DeviceId) -> Option<usize> {
        self.slots.iter().position(|slot| {
            let off = slot.is_settled() && slot.wanted.ats() == Ats::Off;
            let closed = self.gate != Gate::Open;
            // One that is driven anew may have kept what it had, and gets ATS again.
            let lives = slot.phase == Phase::Live || (slot.phase == Phase::Entering && slot.had_ats);
            slot.id() == id && lives && slot.granted() != Ats::Off && !off && !closed
        })
    }

    /// Sends a request, behind everything ordered before it (rules VC-73, ATC-05).
    fn send<P: PhysicalIommu<Device = D>>(
        &mut self,
        index: usize,
        what: &AtsInvalidation,
        guests: bool,
        physical: &mut P,
    ) -> Result<(), Stalled> {
        let Some((to, device)) = self.slots.get(index).map(|slot| (slot.attachment, slot.device)) else {
            return Ok(());
        };
        self.block_unknown(physical)?;
        if self.requests.wants_fence(to) {
            self.close(physical)?;
        } else {
            self.flush(physical)?;
        }
        if self.requests.0.is_full() {
            return Err(Stalled);
        }
        match self.orders.ats_invalidate.count(physical.ats_invalidate(device, what)) {
            Ok(()) => {
                // There is room.
                let _ = self.requests.0.push(Request { to, before: None, guests, void: false });
            }
            Err(OrderError::Busy) => return Err(Stalled),
            Err(OrderError::Refused { .. }) => {
                log::debug!("the physical IOMMU refused an ATS invalidation");
                self.health = self.health.max(Health::Degraded);
                self.timed_out |= guests;
                self.count_timeout(to);
            }
            Err(OrderError::Fatal) => {
                self.fail(physical);
                return Err(Stalled);
            }
        }
        Ok(())
    }

    /// Lets a fence of the crate's own follow the requests that have none yet.
    fn close<P: PhysicalIommu<Device = D>>(&mut self, physical: &mut P) -> Result<(), Stalled> {
        // Whatever it covers is ordered whole.
        for index in 0..self.slots.len() {
            self.order_owed(index, physical)?;
        }
        self.flush(physical)?;
        if self.requests.0.iter().any(|request| request.before.is_none()) {
            self.issue_fence(FenceScope::new(false, false), physical)?;
        }
        Ok(())
    }

    /// Empties a device's own cache, as far as that goes without a fence.
    pub(super) fn purge<P: PhysicalIommu<Device = D>>(
        &mut self,
        index: usize,
        physical: &mut P,
    ) -> Result<Progress, Stalled> {
        while let Some(Purge::Forgetting(sent)) = self.slots.get(index).map(|slot| slot.purge) {
            let Some(what) = PURGES.get(usize::from(sent)) else {
                if let Some(slot) = self.slots.get_mut(index) {
                    slot.purge = Purge::Fencing;
                    slot.step = Step::UNFENCED;
                    slot.hold = true;
                }
                break;
            };
            match self.send(index, what, false, physical) {
                Ok(()) => {}
                // Other devices go on meanwhile.
                Err(Stalled) if self.health != Health::Failed => return Ok(Progress::Waiting),
                Err(Stalled) => return Err(Stalled),
            }
            if let Some(slot) = self.slots.get_mut(index) {
                slot.purge = Purge::Forgetting(sent.saturating_add(1));
            }
        }
        Ok(Progress::Idle)
    }

    /// A fence is complete, and with it the requests before it; `timed_out` says that not all of them were answered.
    /// Whether the guest is to be told, `None` if there were none.
    #[inline]
    pub(super) fn end_requests(&mut self, upto: Ticket, timed_out: bool) -> Option<bool> {
        if self.requests.0.is_empty() { None } else { self.end_some_requests(upto, timed_out) }
    }

    #[inline(never)]
    fn end_some_requests(&mut self, upto: Ticket, timed_out: bool) -> Option<bool> {
        let mut guests = None;
        for index in 0..self.slots.len() {
            let Some(to) = self.slots.get(index).map(|slot| slot.attachment) else {
                continue;
            };
            let ended = |request: &Request| request.to == to && request.before.is_some_and(|before| before <= upto);
            if !self.requests.0.iter().any(ended) {
                continue;
            }
            let asked = self.requests.0.iter().any(|request| ended(request) && request.guests);
            let counts = self.requests.0.iter().any(|request| ended(request) && !request.void);
            guests = Some(guests.unwrap_or(false) || asked);
            self.requests.0.retain(|request| !ended(request));
            if !counts {
                continue;
            }
            if timed_out {
                self.count_timeout(to);
            } else if let Some(slot) = self.slots.get_mut(index).filter(|slot| !slot.is_quarantined()) {
                slot.timeouts = 0;
            }
        }
        guests
    }

    /// A device did not answer. One that does not answer again and again takes up what others wait for: its ATS is
    /// turned off (rule VC-74, T41).
    fn count_timeout(&mut self, to: Attachment) {
        self.orders.ats_timeouts = self.orders.ats_timeouts.wrapping_add(1);
        for slot in self.slots.iter_mut().filter(|slot| slot.attachment == to && !slot.is_quarantined()) {
            slot.timeouts = slot.timeouts.saturating_add(1);
            // Of what it is to forget one part may be answered, and with it the count begin anew.
            if slot.purge != Purge::No {
                slot.distrust_what_it_keeps();
            }
            if slot.is_quarantined() {
                self.noted.note(LastError::Quarantine { device: slot.id() });
                self.health = self.health.max(Health::Degraded);
                if slot.phase == Phase::Live {
                    slot.want(slot.wanted.without_ats());
                    slot.unasked = true;
                }
            }
        }
    }

    /// The host has reset the function: it keeps no translations, waits for no answers, and is trusted again.
    pub(crate) fn device_reset(&mut self, id: DeviceId) {
        let Some(index) = self.slots.iter().position(|slot| slot.id() == id) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(index) {
            let attachment = slot.attachment;
            // Where its context is not known, it may be filling its cache again.
            slot.had_ats &= slot.live.is_none_or(|live| live.ats() != Ats::Off);
            if slot.is_quarantined() && slot.phase == Phase::Live {
                slot.stale = slot.stale.max(Some(super::Reread::Unasked));
            }
            slot.timeouts = 0;
            self.requests.void(attachment);
            self.groups.forget(attachment);
        }
    }
}
