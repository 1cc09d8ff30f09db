//! ATS towards emulated devices: invalidation requests that are not complete, and messages on their way.
//!
//! The crate calls no device model, which would turn the order of locks round: the host takes messages with
//! [`next_message`](crate::VIommu::next_message) and says what came of them.

pub mod message;

pub use message::{DeviceMessage, InvalidationCompletion, InvalidationRequest};

use heapless::Vec;

use crate::attachment::Attachment;
use crate::backend::{PageResponse, ResponseCode};
use crate::cmdq::command::{AtsInval, AtsPrgr};
use crate::id::Itag;
use crate::list;

/// An invalidation request that is not complete.
#[derive(Clone, Debug)]
pub(crate) struct Outstanding {
    pub(crate) itag: Itag,
    pub(crate) to: Attachment,
    /// The host has taken the message.
    pub(crate) sent: bool,
    /// Completions seen.
    pub(crate) seen: u8,
}

/// The requests that can be outstanding at a time, and as many places for messages the host has not taken yet.
#[derive(Clone, Debug)]
pub(crate) struct Itags<const ITAGS: usize> {
    pub(crate) outstanding: Vec<Outstanding, ITAGS>,
    /// Oldest first.
    pub(crate) outbox: Vec<(Attachment, DeviceMessage), ITAGS>,
    /// The number the next request gets if it is free. Numbers go round all 32, also across resets, so that a
    /// completion that comes too late hardly finds another request in the place of its own.
    pub(crate) next: Itag,
    /// A request timed out and no fence has said so yet (rule FEN-07).
    // UNSPECIFIED: also while the queue is off (rule CQ-25).
    pub(crate) timed_out: bool,
}

/// There is no `ITag` or no place for the message: the command waits (rule ATC-03).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<const ITAGS: usize> Itags<ITAGS> {
    pub(crate) const fn new() -> Self {
        const { assert!(ITAGS > 0 && ITAGS <= 32, "there are 1 to 32 ITags") };
        Self { outstanding: Vec::new(), outbox: Vec::new(), next: Itag::truncate(0), timed_out: false }
    }

    /// Whether this can be: a number for each request, and a message under way for each that was not taken.
    pub(crate) fn is_consistent(&self) -> bool {
        let under_way = |request: &Outstanding| {
            let is_its = |(to, message): &&(Attachment, DeviceMessage)| matches!(message, DeviceMessage::Invalidation(of) if *to == request.to && of.itag == request.itag);
            self.outbox.iter().filter(is_its).count()
        };
        let requests = |(_, message): &&(Attachment, DeviceMessage)| matches!(message, DeviceMessage::Invalidation(_));
        let waiting = self.outstanding.iter().filter(|request| !request.sent).count();
        self.outstanding.iter().all(|request| {
            let alike = self.outstanding.iter().filter(|other| other.itag == request.itag).count();
            let (messages, most_seen) = if request.sent { (0, 7) } else { (1, 0) };
            alike == 1 && under_way(request) == messages && request.seen <= most_seen
        }) && self.outbox.iter().filter(requests).count() == waiting
    }

    /// Forgets every request and message.
    pub(crate) fn reset(&mut self) {
        let Self { outstanding, outbox, next: _, timed_out } = self;
        outstanding.clear();
        outbox.clear();
        *timed_out = false;
    }

    /// Sends an invalidation request, from the fields of the command alone (rule VC-72).
    pub(crate) fn invalidate(&mut self, to: Attachment, command: &AtsInval) -> Result<(), Full> {
        let itag = self.free_itag();
        if self.outstanding.is_full() {
            return Err(Full);
        }
        let AtsInval { destination, payload } = *command;
        let request = InvalidationRequest { itag, process: destination.process, payload };
        self.send(to, DeviceMessage::Invalidation(request))?;
        self.next = Itag::truncate(itag.get().wrapping_add(1));
        self.outstanding.push(Outstanding { itag, to, sent: false, seen: 0 }).map_err(|_| Full)
    }

    /// Sends the guest's response to page requests; it has no completion (rule PRG-01).
    pub(crate) fn respond(&mut self, to: Attachment, command: &AtsPrgr) -> Result<(), Full> {
        let AtsPrgr { destination, payload } = *command;
        let code = ResponseCode::decode(payload.code());
        self.send(
            to,
            DeviceMessage::PageResponse(PageResponse { process: destination.process, group: payload.prgi(), code }),
        )
    }

    fn send(&mut self, to: Attachment, message: DeviceMessage) -> Result<(), Full> {
        self.outbox.push((to, message)).map_err(|_| Full)
    }

    /// The next number that no request has. There are fewer requests than numbers, or none is asked for.
    fn free_itag(&self) -> Itag {
        let is_free = |itag: &Itag| !self.outstanding.iter().any(|request| request.itag == *itag);
        (0..32).map(|n| Itag::truncate(self.next.get().wrapping_add(n))).find(is_free).unwrap_or(self.next)
    }

    /// Takes the oldest message for the host to deliver.
    pub(crate) fn take_message(&mut self) -> Option<(Attachment, DeviceMessage)> {
        let (to, message) = list::take(&mut self.outbox, 0)?;
        if let DeviceMessage::Invalidation(request) = message {
            for sent in self.outstanding.iter_mut().filter(|outstanding| outstanding.itag == request.itag) {
                sent.sent = true;
            }
        }
        Some((to, message))
    }

    /// A device completed requests; whether each it names was one it has (rules ATS-20, ATC-04).
    // DEVIATES: also with EN_ATS = 0, as in the reference model: the guest that turned it off after it had asked would
    // wait for a timeout (rules DC-02, ATS-21).
    pub(crate) fn complete(&mut self, from: Attachment, completion: InvalidationCompletion) -> bool {
        let mut expected = 0_u32;
        self.outstanding.retain_mut(|request| {
            if !request.awaits(from) || !completion.completes(request.itag) {
                return true;
            }
            expected |= InvalidationCompletion::of(request.itag).itags();
            request.seen = request.seen.saturating_add(1);
            request.seen < completion.count()
        });
        expected == completion.itags()
    }

    /// A device did not complete a request in time; whether it has that request.
    pub(crate) fn time_out(&mut self, from: Attachment, itag: Itag) -> bool {
        let before = self.outstanding.len();
        self.outstanding.retain(|request| !(request.awaits(from) && request.itag == itag));
        let found = self.outstanding.len() != before;
        self.timed_out |= found;
        found
    }

    /// A device is gone, and with it what is under way between it and the guest.
    pub(crate) fn forget(&mut self, device: Attachment) {
        self.outstanding.retain(|request| request.to != device);
        self.outbox.retain(|(to, _)| *to != device);
    }

    /// Whether every request is complete or timed out, and every message taken.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && self.outbox.is_empty()
    }

    /// Whether a request timed out since this was last asked.
    pub(crate) fn take_timeout(&mut self) -> bool {
        core::mem::take(&mut self.timed_out)
    }
}

impl Outstanding {
    /// Whether a completion of this device can be meant.
    fn awaits(&self, from: Attachment) -> bool {
        self.sent && self.to == from
    }
}
