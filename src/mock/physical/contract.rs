//! The contract of [`PhysicalIommu`](crate::PhysicalIommu), one method for each order.
//!
//! Every method is called with the answer the order gets; the books then say what the next orders may be.

use std::collections::BTreeMap;

use crate::backend::{Applied, Ats, AtsInvalidation, Completion, Context, HostCapabilities, Invalidation, Ticket};
use crate::error::OrderError;
use crate::id::ProcessDirectoryMode;

use super::PhysicalDevice;

/// What one VM's vIOMMU has ordered, as far as it binds the orders to come.
#[derive(Debug, Default)]
pub(super) struct Contract {
    devices: BTreeMap<PhysicalDevice, Books>,
    /// Whose ATS invalidations no fence follows yet.
    unfenced: Option<PhysicalDevice>,
    flush: Flush,
    /// An order was answered with Fatal, and no fence has completed since.
    failed: bool,
    last_ticket: Option<Ticket>,
    /// Counts orders.
    now: u64,
    /// The orders a fence covers, until it is complete.
    fences: BTreeMap<Ticket, u64>,
    /// The orders that are complete.
    fenced: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Books {
    state: State,
    host: Option<HostCapabilities>,
    /// What the last context allows.
    ats: Ats,
    /// The device may keep translations of its own.
    keeps: bool,
    /// The orders that made it forget those with and without a PASID for good.
    forgotten: [Option<u64>; 2],
    /// The last order for it to forget something, until a fence shows whether it answered.
    asked: Option<u64>,
    /// It did not answer: nothing more can be had of it.
    silent: bool,
    /// The order that last changed the context or dropped it from the caches.
    touched: u64,
    /// The context changed and has not been dropped from the caches since.
    cached: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Adopted,
    /// A change of context failed.
    Failed,
    Blocked,
    Quiesced,
    /// The host blocked it on the way to another context.
    OnTheWay,
    Open,
}

/// What became of the last batch of invalidations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flush {
    #[default]
    Fine,
    Refused,
    /// `Everything` was refused too.
    Degraded,
}

impl Contract {
    pub(super) fn adopted(&self, device: PhysicalDevice) -> bool {
        self.devices.contains_key(&device)
    }

    /// `taken`: some VM, perhaps this one, has the device.
    pub(super) fn adopt(&mut self, device: PhysicalDevice, taken: bool, answer: Result<HostCapabilities, OrderError>) {
        self.now = self.now.wrapping_add(1);
        assert!(!taken, "contract: adopt of {device:?}, which a vIOMMU has already");
        // Where no device is left, there is nothing that a reset would have to block or fence.
        self.failed &= !self.devices.is_empty();
        assert!(!self.failed, "contract: adopt of {device:?} after Fatal and before a reset");
        match answer {
            Ok(host) => drop(self.devices.insert(device, Books { host: Some(host), ..Books::default() })),
            Err(error) => self.answered(error),
        }
    }

    pub(super) fn set_context(&mut self, device: PhysicalDevice, new: &Context, answer: Result<Applied, OrderError>) {
        self.now = self.now.wrapping_add(1);
        let (now, fenced, failed) = (self.now, self.fenced, self.failed);
        let books = self.books(device, "set_context");
        let blocked = *new == Context::Blocked;
        books.can(new);
        assert!(
            blocked || *new == Context::Quiesced || books.state != State::Quiesced,
            "contract: {device:?} gets {new:?}, but Quiesced is followed by Blocked"
        );
        assert!(!new.is_open() || !failed, "contract: {device:?} gets {new:?} after Fatal and before a reset");
        assert!(
            !new.is_open() || !matches!(books.state, State::Adopted | State::Failed),
            "contract: {device:?} gets {new:?}, but Blocked comes first after adopt and after a failed set_context"
        );
        assert!(
            blocked || books.state != State::OnTheWay || (!books.cached && books.touched <= fenced),
            "contract: {device:?} gets {new:?} before the invalidation and fence that Applied::Blocked asks for"
        );
        books.state = match answer {
            Err(OrderError::Busy) => return,
            Err(_) => State::Failed,
            Ok(_) if blocked => State::Blocked,
            Ok(Applied::Switched) if *new == Context::Quiesced => State::Quiesced,
            Ok(Applied::Switched) => State::Open,
            Ok(Applied::Blocked) => State::OnTheWay,
        };
        books.ats = if answer.is_ok() { new.ats() } else { Ats::Off };
        if new.is_open() && new.ats() != Ats::Off && answer == Ok(Applied::Switched) {
            books.keeps = true;
            books.forgotten = [None; 2];
        }
        // A host that can not quiesce it takes care of what it keeps.
        books.keeps &= *new != Context::Quiesced || answer.is_ok();
        books.touched = now;
        books.cached = true;
        if let Err(error) = answer {
            self.answered(error);
        }
    }

    pub(super) fn invalidate(&mut self, orders: &[Invalidation<PhysicalDevice>], answer: Result<(), OrderError>) {
        self.now = self.now.wrapping_add(1);
        let everything = matches!(orders, [Invalidation::Everything]);
        assert!(!orders.is_empty(), "contract: an empty batch of invalidations");
        assert!(
            everything || self.flush != Flush::Refused || self.failed,
            "contract: {orders:?} after a refused batch, which is issued once more as Everything"
        );
        for order in orders {
            self.well_formed(order);
        }
        let done = match answer {
            Ok(()) => orders.len(),
            Err(OrderError::Refused { done }) => done,
            Err(_) => 0,
        };
        for order in orders.iter().take(done) {
            self.dropped(order);
        }
        match answer {
            // Degraded ends with a flush of everything, or of every device.
            Ok(()) if everything || self.devices.values().all(|books| !books.cached) => self.flush = Flush::Fine,
            Err(OrderError::Refused { .. }) if everything => {
                self.flush = Flush::Degraded;
                // What is still cached is the host's to deal with, in the devices too.
                self.devices.values_mut().for_each(|books| books.keeps = false);
            }
            Err(OrderError::Refused { .. }) if self.flush == Flush::Degraded => {}
            Err(OrderError::Refused { .. }) => self.flush = Flush::Refused,
            Err(error) => self.answered(error),
            Ok(()) => {}
        }
    }

    pub(super) fn fence(&mut self, upto: Ticket, answer: Result<Completion, OrderError>) {
        self.now = self.now.wrapping_add(1);
        let excused = self.failed || self.flush == Flush::Degraded;
        assert!(self.last_ticket.is_none_or(|last| last < upto), "contract: fence({upto:?}): tickets only grow");
        assert!(
            excused || self.flush != Flush::Refused,
            "contract: fence({upto:?}) after a refused batch, which is issued once more as Everything"
        );
        for (device, Books { state, cached, .. }) in &self.devices {
            assert!(
                *state != State::Open || !excused,
                "contract: fence({upto:?}) with {device:?} not blocked after the host failed"
            );
            assert!(
                *state != State::Failed || excused,
                "contract: fence({upto:?}) with {device:?} not blocked after a failed set_context"
            );
            assert!(
                !cached || excused,
                "contract: fence({upto:?}) without the invalidation of {device:?}, whose context changed"
            );
        }
        if answer == Err(OrderError::Busy) {
            return;
        }
        self.last_ticket = Some(upto);
        self.unfenced = None;
        if let Err(error) = answer {
            self.answered(error);
        }
        if answer.is_ok() {
            self.fences.insert(upto, self.now);
        }
    }

    /// A fence is complete, and with it all before it; these devices did not answer.
    pub(super) fn complete(&mut self, ticket: Ticket, silent: &[PhysicalDevice]) {
        if let Some((_, &covered)) = self.fences.range(..=ticket).next_back() {
            self.fences.retain(|&later, _| later > ticket);
            self.fenced = covered;
            // The first fence to complete after Fatal is that of a reset.
            self.failed = false;
        }
        let fenced = self.fenced;
        for (device, books) in &mut self.devices {
            let forgotten = books.forgotten.iter().all(|order| order.is_some_and(|order| order <= fenced));
            books.keeps &= !forgotten;
            if books.asked.is_some_and(|order| order <= fenced) {
                (books.asked, books.silent) = (None, silent.contains(device));
            }
        }
    }

    pub(super) fn ats_invalidate(
        &mut self,
        device: PhysicalDevice,
        what: &AtsInvalidation,
        answer: Result<(), OrderError>,
    ) {
        self.now = self.now.wrapping_add(1);
        let (now, fenced, failed, unfenced) = (self.now, self.fenced, self.failed, self.unfenced);
        let books = self.books(device, "ats_invalidate");
        assert!(!failed, "contract: ats_invalidate of {device:?} after Fatal and before a reset");
        assert!(books.state != State::Failed, "contract: ats_invalidate of {device:?} after a failed set_context");
        assert!(books.ats != Ats::Off, "contract: ats_invalidate of {device:?}, whose context has no ATS");
        assert!(
            unfenced.is_none_or(|other| other == device),
            "contract: ats_invalidate of {device:?} and {unfenced:?} under one fence, which could not say who was late"
        );
        let pages = what.last.get().wrapping_sub(what.first.get()) >> 12;
        let power = what.first <= what.last && pages & pages.wrapping_add(1) == 0;
        assert!(
            power && what.first.get() & (pages << 12 | 0xfff) == 0 && what.last == what.last.page(),
            "contract: {what:?} is no aligned power of two pages"
        );
        assert!(what.process.is_some() || !what.global, "contract: {what:?} is global without a PASID");
        match answer {
            Ok(()) => {
                // Where the second stage is still there, the device may ask again at once.
                let quiet = books.state == State::Quiesced && !books.cached && books.touched <= fenced;
                let which = [AtsInvalidation::ALL, AtsInvalidation::ALL_PROCESSES];
                for (forgotten, _) in books.forgotten.iter_mut().zip(which).filter(|(_, all)| quiet && all == what) {
                    *forgotten = Some(now);
                }
                books.asked = Some(now);
                self.unfenced = Some(device);
            }
            // It is as if the device had not answered.
            Err(OrderError::Refused { .. }) => books.keeps = false,
            Err(error) => self.answered(error),
        }
    }

    pub(super) fn page_response(&mut self, device: PhysicalDevice, answer: Result<(), OrderError>) {
        self.now = self.now.wrapping_add(1);
        self.books(device, "page_response");
        if let Err(error) = answer {
            self.answered(error);
        }
    }

    /// The host lost contexts, caches and orders: as if every context had failed.
    pub(super) fn lost(&mut self) {
        self.now = self.now.wrapping_add(1);
        self.fences.clear();
        self.unfenced = None;
        for books in self.devices.values_mut() {
            let asked = None;
            *books = Books { state: State::Failed, ats: Ats::Off, touched: self.now, cached: true, asked, ..*books };
        }
    }

    /// `empty`: the host has reset the function, and it has had no ATS since.
    pub(super) fn release(&mut self, device: PhysicalDevice, empty: bool) {
        let (failed, fenced) = (self.failed, self.fenced);
        let books = self.books(device, "release");
        assert!(books.state == State::Blocked, "contract: release of {device:?}, which is not Blocked");
        assert!(!books.cached || failed, "contract: release of {device:?} without its invalidation");
        assert!(books.touched <= fenced || failed, "contract: release of {device:?} before a completed fence");
        // Without T2GPA it is the host that resets the function, or turns ATS off in it.
        let t2gpa = books.host.is_some_and(|host| host.capabilities.t2gpa());
        assert!(
            !books.keeps || books.silent || !t2gpa || empty || failed,
            "contract: release of {device:?}, which may keep translations: Quiesced, a fence, invalidations of all and \
             a fence make it forget"
        );
        self.devices.remove(&device);
    }

    /// After Fatal no batch is issued again: every device is blocked until all is flushed.
    fn answered(&mut self, error: OrderError) {
        if error == OrderError::Fatal {
            self.fail();
        }
    }

    /// An order was answered with Fatal, or a fence ended so.
    pub(super) fn fail(&mut self) {
        self.failed = true;
        self.flush = Flush::Degraded;
    }

    fn books(&mut self, device: PhysicalDevice, order: &str) -> &mut Books {
        assert!(self.adopted(device), "contract: {order} of {device:?}, which this vIOMMU has not adopted");
        self.devices.entry(device).or_default()
    }

    fn well_formed(&mut self, order: &Invalidation<PhysicalDevice>) {
        match order {
            Invalidation::Device(device) | Invalidation::Process(device, _) => {
                let state = self.books(*device, "invalidation").state;
                assert!(
                    !matches!(state, State::Adopted | State::Failed) || self.failed,
                    "contract: invalidation of {device:?}, but Blocked comes first"
                );
            }
            Invalidation::Pages(pages) => {
                let aligned = pages.first == pages.first.page() && pages.last == pages.last.page();
                assert!(aligned && pages.first <= pages.last, "contract: {pages:?} is no range of pages");
            }
            Invalidation::AddressSpace(_) | Invalidation::FirstStage | Invalidation::Everything => {}
        }
        assert!(
            !self.failed || matches!(order, Invalidation::Device(_) | Invalidation::Everything),
            "contract: {order:?} after Fatal and before a reset"
        );
    }

    fn dropped(&mut self, order: &Invalidation<PhysicalDevice>) {
        let now = self.now;
        for (device, books) in &mut self.devices {
            let meant = matches!(order, Invalidation::Everything) || *order == Invalidation::Device(*device);
            // Once dropped since the last change, it is dropped: a further order needs no further fence.
            if meant && core::mem::take(&mut books.cached) {
                books.touched = now;
            }
        }
    }
}

impl Books {
    /// Panics if the IOMMU of the device can not do what a context asks for.
    fn can(&self, new: &Context) {
        let Some(HostCapabilities { capabilities, .. }) = self.host else { return };
        let ats = new.ats() == Ats::Off || capabilities.ats();
        let directory = match new {
            Context::Processes(processes) => match processes.mode {
                ProcessDirectoryMode::Pd8 => capabilities.pd8(),
                ProcessDirectoryMode::Pd17 => capabilities.pd17(),
                ProcessDirectoryMode::Pd20 => capabilities.pd20(),
            },
            Context::Quiesced => capabilities.t2gpa(),
            _ => true,
        };
        assert!(ats && directory, "contract: {new:?} is more than the IOMMU can do");
    }
}
