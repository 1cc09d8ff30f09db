//! Several physical IOMMUs under one vIOMMU.

use heapless::Vec;

use crate::error::OrderError;

use super::{
    Applied, AtsInvalidation, Completion, Context, FenceOutcome, FenceScope, HostCapabilities, Invalidation,
    PageResponse, PhysicalIommu, Ticket,
};

/// A device behind one of the IOMMUs of a [`FanOut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "hosts build it by naming the two")]
pub struct Behind<D> {
    /// Which IOMMU: its index in what [`FanOut::new`] was given.
    pub iommu: usize,
    /// The device, as that IOMMU's driver knows it.
    pub device: D,
}

/// `N` physical IOMMUs, each with at most `DEVICES` devices of this VM, as one [`PhysicalIommu`].
///
/// What concerns a device goes to its IOMMU, and an invalidation of translations to those IOMMUs where this VM's GSCID
/// may have left some: from the first context that lets a device translate until all devices there are blocked and
/// invalidated, and a fence for reads and writes that follows is complete. A fence waits for every IOMMU that has a
/// device of this VM, or may have a translation.
///
/// A pending fence ends when it has ended on each of them: the host says what a driver tells with
/// [`fence_done`](Self::fence_done) and takes what is for the vIOMMU with [`next_done`](Self::next_done).
///
/// Where one of them has lost its state, [`host_lost_state`](crate::VIommu::host_lost_state) drives all of them anew.
///
/// Where one of them is busy, the order is given again to all, also to those that have carried it out: a driver takes
/// the same invalidation or fence twice.
///
/// ```
/// # use riscv_viommu::{Backend, FenceOutcome, PhysicalIommu, Ticket, VIommu};
/// # use riscv_viommu::{FanOut, GuestMemory, Interrupts, Parts, Progress};
/// /// The driver of IOMMU `index` says that its fence is done.
/// fn completed<M: GuestMemory, I: Interrupts, P: PhysicalIommu>(
///     iommu: &mut VIommu<Parts<M, I, FanOut<P, 2>>>,
///     index: usize,
///     ticket: Ticket,
/// ) {
///     iommu.backend_mut().physical.fence_done(index, ticket, FenceOutcome::Complete);
///     while let Some((ticket, outcome)) = iommu.backend_mut().physical.next_done() {
///         let _progress: Progress = iommu.fence_done(ticket, outcome);
///     }
/// }
/// ```
#[derive(Debug)]
pub struct FanOut<P: PhysicalIommu, const N: usize, const DEVICES: usize = 16> {
    children: [Child<P, DEVICES>; N],
    /// The newest fence.
    issued: Ticket,
    /// Up to here the vIOMMU has been told.
    told: Ticket,
    failed: bool,
}

/// Orders that go to one IOMMU at a time.
const SPAN: usize = 16;

/// Most requests to devices that are under way.
const REQUESTS: usize = 32;

/// How far translations of this VM may be left in an IOMMU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Residue {
    None,
    Some,
    /// No device translates, and everything was invalidated after the last one that did.
    Flushed,
    /// The same, and the fence after it has been issued.
    GoneAfter(Ticket),
}

#[derive(Debug)]
struct Child<P: PhysicalIommu, const DEVICES: usize> {
    iommu: P,
    /// The devices, and whether they may translate.
    adopted: Vec<(P::Device, bool), DEVICES>,
    residue: Residue,
    /// The newest fence this IOMMU has to complete.
    issued: Ticket,
    completed: Ticket,
    /// The fences that ended with a timeout the vIOMMU was not told of, oldest first. Each follows a request of its own.
    timed_out: Vec<Ticket, REQUESTS>,
}

impl<P: PhysicalIommu, const N: usize, const DEVICES: usize> FanOut<P, N, DEVICES> {
    /// These IOMMUs, none of which has a device or a translation of this VM.
    #[must_use]
    pub fn new(iommus: [P; N]) -> Self {
        const { assert!(N > 0, "there has to be an IOMMU") };
        Self { children: iommus.map(Child::new), issued: Ticket::FIRST, told: Ticket::FIRST, failed: false }
    }

    /// One of the IOMMUs.
    #[must_use]
    pub fn iommu(&self, index: usize) -> Option<&P> {
        self.children.get(index).map(|child| &child.iommu)
    }

    /// One of the IOMMUs. Nothing of what it was ordered may be undone.
    #[must_use]
    pub fn iommu_mut(&mut self, index: usize) -> Option<&mut P> {
        self.children.get_mut(index).map(|child| &mut child.iommu)
    }

    /// A fence that IOMMU `index` called pending has ended there. Unknown and old tickets are ignored.
    pub fn fence_done(&mut self, index: usize, ticket: Ticket, outcome: FenceOutcome) {
        let Some(child) = self.children.get_mut(index).filter(|child| child.is_awaited(ticket)) else {
            return;
        };
        match outcome {
            FenceOutcome::Complete => child.complete(ticket, false),
            FenceOutcome::AtsTimeout => child.complete(ticket, true),
            FenceOutcome::Failed => self.failed = true,
        }
    }

    /// What the vIOMMU is to be told next, with [`VIommu::fence_done`](crate::VIommu::fence_done).
    #[must_use = "the guest's fence waits until the vIOMMU is told"]
    pub fn next_done(&mut self) -> Option<(Ticket, FenceOutcome)> {
        if core::mem::take(&mut self.failed) {
            // Also of a fence that not all have taken.
            let newest = self.children.iter().map(|child| child.issued).max().unwrap_or(self.issued);
            return Some((newest.max(self.issued), FenceOutcome::Failed));
        }
        let done = self.children.iter().filter_map(Child::waits_after).min().unwrap_or(self.issued);
        if done <= self.told {
            return None;
        }
        // A timeout is told with its own ticket, and after the fences before it, so that it is taken for one of no other.
        let of_timeout = |child: &Child<P, DEVICES>| child.timed_out.first().copied();
        let timed_out = self.children.iter().filter_map(of_timeout).min().filter(|ticket| *ticket <= done);
        let (told, outcome) = match timed_out {
            Some(ticket) if ticket == self.told.next() => (ticket, FenceOutcome::AtsTimeout),
            Some(ticket) => (ticket.previous(), FenceOutcome::Complete),
            None => (done, FenceOutcome::Complete),
        };
        self.told = told;
        for child in &mut self.children {
            child.timed_out.retain(|ticket| *ticket > told);
        }
        Some((told, outcome))
    }

    fn child(&mut self, index: usize) -> Result<&mut Child<P, DEVICES>, OrderError> {
        self.children.get_mut(index).ok_or(OrderError::Refused { done: 0 })
    }
}

impl<P: PhysicalIommu, const DEVICES: usize> Child<P, DEVICES> {
    const fn new(iommu: P) -> Self {
        Self {
            iommu,
            adopted: Vec::new(),
            residue: Residue::None,
            issued: Ticket::FIRST,
            completed: Ticket::FIRST,
            timed_out: Vec::new(),
        }
    }

    /// Whether it has anything of this VM.
    fn is_concerned(&self) -> bool {
        !self.adopted.is_empty() || self.residue != Residue::None
    }

    fn is_awaited(&self, ticket: Ticket) -> bool {
        self.completed < ticket && ticket <= self.issued
    }

    /// The last fence it has completed, if another one is under way.
    fn waits_after(&self) -> Option<Ticket> {
        (self.completed < self.issued).then_some(self.completed)
    }

    fn complete(&mut self, ticket: Ticket, timed_out: bool) {
        self.completed = ticket;
        if timed_out {
            // There is room, unless the driver says so of fences that no request is before.
            let _ = self.timed_out.push(ticket);
        }
        if matches!(self.residue, Residue::GoneAfter(last) if last <= ticket) {
            self.residue = Residue::None;
        }
    }

    fn set_open(&mut self, device: P::Device, open: bool) {
        for adopted in self.adopted.iter_mut().filter(|adopted| adopted.0 == device) {
            adopted.1 = open;
        }
    }

    /// What an order is to this IOMMU, the one of index `own`.
    fn part(&self, own: usize, order: &Invalidation<Behind<P::Device>>) -> Option<Invalidation<P::Device>> {
        let is_clean = self.residue == Residue::None;
        match order {
            Invalidation::Device(at) if at.iommu == own => Some(Invalidation::Device(at.device)),
            Invalidation::Process(at, process) if at.iommu == own => Some(Invalidation::Process(at.device, *process)),
            Invalidation::Process(..) => None,
            Invalidation::Everything => self.is_concerned().then_some(Invalidation::Everything),
            _ if is_clean => None,
            // It stands for invalidations of translations that are in no IOMMU alone.
            Invalidation::Device(_) | Invalidation::FirstStage => Some(Invalidation::FirstStage),
            Invalidation::Pages(pages) => Some(Invalidation::Pages(*pages)),
            Invalidation::AddressSpace(pscid) => Some(Invalidation::AddressSpace(*pscid)),
        }
    }

    fn invalidate(&mut self, own: usize, orders: &[Invalidation<Behind<P::Device>>]) -> Result<(), OrderError> {
        let mut parts: Vec<Invalidation<P::Device>, SPAN> = Vec::new();
        for order in orders {
            let Some(part) = self.part(own, order).filter(|part| parts.last() != Some(part)) else {
                continue;
            };
            if let Err(part) = parts.push(part) {
                self.give(&parts)?;
                parts.clear();
                // There is room.
                let _ = parts.push(part);
            }
        }
        self.give(&parts)
    }

    fn give(&mut self, orders: &[Invalidation<P::Device>]) -> Result<(), OrderError> {
        if orders.is_empty() {
            return Ok(());
        }
        self.iommu.invalidate(orders)?;
        // Either ends with all translations of the GSCID; what is blocked is invalidated before the next fence.
        let flushes = |order: &_| matches!(order, Invalidation::Device(_) | Invalidation::Everything);
        if self.residue == Residue::Some && orders.iter().any(flushes) && self.adopted.iter().all(|(_, open)| !open) {
            self.residue = Residue::Flushed;
        }
        Ok(())
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<(), OrderError> {
        let completion = self.iommu.fence(upto, scope)?;
        self.issued = upto;
        if scope == FenceScope::ALL && self.residue == Residue::Flushed {
            self.residue = Residue::GoneAfter(upto);
        }
        match completion {
            Completion::Pending => {}
            Completion::Done => self.complete(upto, false),
            Completion::AtsTimeout => self.complete(upto, true),
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
impl<P: PhysicalIommu, const N: usize, const DEVICES: usize> PhysicalIommu for FanOut<P, N, DEVICES> {
    type Device = Behind<P::Device>;

    /// What all of them can do.
    fn capabilities(&self) -> HostCapabilities {
        let mut all = self.children.iter().map(|child| child.iommu.capabilities());
        let first = all.next().unwrap_or(super::NoPhysical.capabilities());
        all.fold(first, |common, other| common.intersection(&other))
    }

    /// Of an IOMMU whose `DEVICES` places are taken it is refused.
    fn adopt(&mut self, device: Self::Device) -> Result<HostCapabilities, OrderError> {
        let child = self.child(device.iommu)?;
        if child.adopted.is_full() {
            return Err(OrderError::Refused { done: 0 });
        }
        let capabilities = child.iommu.adopt(device.device)?;
        // There is room.
        let _ = child.adopted.push((device.device, false));
        Ok(capabilities)
    }

    fn set_context(&mut self, device: Self::Device, new: &Context) -> Result<Applied, OrderError> {
        let child = self.child(device.iommu)?;
        if new.is_open() {
            // Before it is known whether it works.
            child.set_open(device.device, true);
            child.residue = Residue::Some;
        }
        let applied = child.iommu.set_context(device.device, new)?;
        if !new.is_open() {
            child.set_open(device.device, false);
        }
        Ok(applied)
    }

    fn invalidate(&mut self, orders: &[Invalidation<Self::Device>]) -> Result<(), OrderError> {
        for (index, child) in self.children.iter_mut().enumerate() {
            // Of a part that was refused it is not known how much of the whole that is: nothing is taken for done.
            child.invalidate(index, orders).map_err(|error| match error {
                OrderError::Refused { .. } => OrderError::Refused { done: 0 },
                error => error,
            })?;
        }
        Ok(())
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        for child in &mut self.children {
            if child.is_concerned() {
                child.fence(upto, scope)?;
            } else {
                // Nothing of this VM is left there, and what is still under way may be lost with the state of the IOMMU.
                child.issued = child.completed;
            }
        }
        // All have taken it.
        self.issued = upto;
        if self.children.iter().any(|child| child.waits_after().is_some()) {
            return Ok(Completion::Pending);
        }
        // The answer tells all there is, also of a fence before that was pending till now.
        self.told = upto;
        let timed_out = self.children.iter().any(|child| !child.timed_out.is_empty());
        for child in &mut self.children {
            child.timed_out.clear();
        }
        Ok(if timed_out { Completion::AtsTimeout } else { Completion::Done })
    }

    fn ats_invalidate(&mut self, device: Self::Device, what: &AtsInvalidation) -> Result<(), OrderError> {
        self.child(device.iommu)?.iommu.ats_invalidate(device.device, what)
    }

    fn page_response(&mut self, device: Self::Device, response: &PageResponse) -> Result<(), OrderError> {
        self.child(device.iommu)?.iommu.page_response(device.device, response)
    }

    fn release(&mut self, device: Self::Device) {
        if let Ok(child) = self.child(device.iommu) {
            child.iommu.release(device.device);
            child.adopted.retain(|(adopted, _)| *adopted != device.device);
        }
    }
}
