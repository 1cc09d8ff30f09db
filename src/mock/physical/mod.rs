//! A physical IOMMU and its host driver, one [`Hardware`] for all VMs and one [`Physical`] for each.

mod context;
mod contract;
mod driver;
mod function;
mod hardware;
mod ioatc;
mod machine;
mod processes;
mod slot;
mod walk;

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::backend::{
    Applied, AtsInvalidation, Completion, Context, FenceOutcome, FenceScope, HostCapabilities, Invalidation,
    PageResponse, PhysicalIommu, Ticket,
};
use crate::error::OrderError;
use crate::id::Gscid;

use contract::Contract;
pub use driver::Strategy;
pub use function::Kept;
pub use hardware::{Access, AtsAnswer, Dma, Hardware, Traffic};

/// The physical `device_id` of a device: never the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "tests build it from a number")]
pub struct PhysicalDevice(pub u32);

/// An order the vIOMMU gave, and the answer it got.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// [`PhysicalIommu::adopt`].
    Adopt(PhysicalDevice, Result<HostCapabilities, OrderError>),
    /// [`PhysicalIommu::set_context`].
    SetContext(PhysicalDevice, Context, Result<Applied, OrderError>),
    /// [`PhysicalIommu::invalidate`].
    Invalidate(Vec<Invalidation<PhysicalDevice>>, Result<(), OrderError>),
    /// [`PhysicalIommu::fence`].
    Fence(Ticket, FenceScope, Result<Completion, OrderError>),
    /// [`PhysicalIommu::ats_invalidate`].
    AtsInvalidate(PhysicalDevice, AtsInvalidation, Result<(), OrderError>),
    /// [`PhysicalIommu::page_response`].
    PageResponse(PhysicalDevice, PageResponse, Result<(), OrderError>),
    /// [`PhysicalIommu::release`].
    Release(PhysicalDevice),
}

/// One VM's handle on a [`Hardware`]: a host driver that puts its own GSCID into every order, records the orders and
/// checks them against the contract. A clone is another handle of the same VM.
///
/// Answers can be scripted, one queue for each kind of order; without a script the driver answers what it did.
#[derive(Clone, Debug)]
pub struct Physical {
    hardware: Hardware,
    gscid: Gscid,
    vm: Arc<Mutex<Vm>>,
}

#[derive(Debug, Default)]
struct Vm {
    contract: Contract,
    orders: Vec<Order>,
    /// What was ordered and is not executed before a fence after it completes.
    waiting: VecDeque<Waiting>,
    /// Fences that found an invalidation of a device's own cache unanswered.
    timeouts: BTreeSet<Ticket>,
    pending: bool,
    adopts: VecDeque<Result<HostCapabilities, OrderError>>,
    contexts: VecDeque<Result<Applied, OrderError>>,
    invalidations: VecDeque<Result<(), OrderError>>,
    fences: VecDeque<Result<Completion, OrderError>>,
    ats_invalidations: VecDeque<Result<(), OrderError>>,
    page_responses: VecDeque<Result<(), OrderError>>,
}

#[derive(Debug)]
enum Waiting {
    Invalidation(Invalidation<PhysicalDevice>),
    AtsInvalidation(PhysicalDevice, AtsInvalidation),
    Fence(Ticket),
}

impl Physical {
    fn new(hardware: Hardware, gscid: Gscid) -> Self {
        Self { hardware, gscid, vm: Arc::default() }
    }

    /// The IOMMU it drives.
    #[must_use]
    pub const fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// The orders since they were last taken.
    #[must_use]
    pub fn take_orders(&self) -> Vec<Order> {
        mem::take(&mut self.vm().orders)
    }

    /// The context in force for a device of this VM: what hardware reads in memory now.
    #[must_use]
    pub fn context(&self, device: PhysicalDevice) -> Option<Context> {
        let adopted = self.vm().contract.adopted(device);
        adopted.then(|| self.hardware.context(device)).flatten()
    }

    /// Whether fences stay [`Completion::Pending`] until [`complete`](Self::complete).
    pub fn set_pending(&self, pending: bool) {
        self.vm().pending = pending;
    }

    /// Completes the fence with this ticket and all before it; the tickets that completed. The vIOMMU is not told:
    /// that is the test's [`fence_done`](crate::VIommu::fence_done).
    #[must_use]
    pub fn complete(&self, upto: Ticket) -> Vec<Ticket> {
        self.vm().complete(self, upto)
    }

    /// Completes every fence; the tickets that completed.
    #[must_use]
    pub fn complete_all(&self) -> Vec<Ticket> {
        self.complete(Ticket::new(u64::MAX))
    }

    /// Every fence ends, and none is known to be complete: what to tell
    /// [`fence_done`](crate::VIommu::fence_done) with [`Failed`](FenceOutcome::Failed).
    #[must_use]
    pub fn fail_all(&self) -> Vec<Ticket> {
        let ended = self.complete_all();
        if !ended.is_empty() {
            self.vm().contract.fail();
        }
        ended
    }

    /// How a fence that [completed](Self::complete) ended, for [`fence_done`](crate::VIommu::fence_done).
    #[must_use]
    pub fn outcome(&self, ticket: Ticket) -> FenceOutcome {
        if self.vm().timeouts.contains(&ticket) { FenceOutcome::AtsTimeout } else { FenceOutcome::Complete }
    }

    /// The physical IOMMU loses what it had for this VM: contexts, and the orders and fences that were under way; its
    /// devices are blocked. Translations may stay, and what devices keep by themselves. For
    /// [`host_lost_state`](crate::VIommu::host_lost_state).
    pub fn lose_state(&self) {
        let mut vm = self.vm();
        vm.waiting.clear();
        vm.contract.lost();
        self.hardware.machine().lose(self.gscid);
    }

    /// Scripts the answer to an [`adopt`](PhysicalIommu::adopt).
    pub fn answer_next_adopt(&self, answer: Result<HostCapabilities, OrderError>) {
        self.vm().adopts.push_back(answer);
    }

    /// Scripts the answer to a [`set_context`](PhysicalIommu::set_context): `Ok(Switched)` is what the driver answers
    /// by itself, `Ok(Blocked)` blocks the device instead, an error leaves its context as it is.
    pub fn answer_next_set_context(&self, answer: Result<Applied, OrderError>) {
        self.vm().contexts.push_back(answer);
    }

    /// Scripts the answer to an [`invalidate`](PhysicalIommu::invalidate); what the answer says was done is done.
    pub fn answer_next_invalidate(&self, answer: Result<(), OrderError>) {
        self.vm().invalidations.push_back(answer);
    }

    /// Scripts the answer to a [`fence`](PhysicalIommu::fence). `Ok(Done)` is [`AtsTimeout`](Completion::AtsTimeout)
    /// where a device did not answer.
    pub fn answer_next_fence(&self, answer: Result<Completion, OrderError>) {
        self.vm().fences.push_back(answer);
    }

    /// Scripts the answer to an [`ats_invalidate`](PhysicalIommu::ats_invalidate); an error sends nothing.
    pub fn answer_next_ats_invalidate(&self, answer: Result<(), OrderError>) {
        self.vm().ats_invalidations.push_back(answer);
    }

    /// Scripts the answer to a [`page_response`](PhysicalIommu::page_response); an error sends nothing.
    pub fn answer_next_page_response(&self, answer: Result<(), OrderError>) {
        self.vm().page_responses.push_back(answer);
    }

    fn vm(&self) -> MutexGuard<'_, Vm> {
        super::lock(&self.vm)
    }
}

impl Vm {
    /// Executes what waits for the fences up to `upto`.
    fn complete(&mut self, handle: &Physical, upto: Ticket) -> Vec<Ticket> {
        let reached = |waiting: &Waiting| matches!(waiting, Waiting::Fence(ticket) if *ticket <= upto);
        let count = self.waiting.iter().rposition(reached).map_or(0, |last| last.saturating_add(1));
        let mut machine = handle.hardware.machine();
        let mut done = Vec::new();
        let mut silent = Vec::new();
        for waiting in self.waiting.drain(..count) {
            match waiting {
                Waiting::Invalidation(order) => machine.execute(handle.gscid, &order),
                Waiting::AtsInvalidation(device, what) => {
                    silent.extend((!machine.ats_invalidate(device, &what)).then_some(device));
                }
                Waiting::Fence(ticket) => {
                    if !silent.is_empty() {
                        self.timeouts.insert(ticket);
                    }
                    self.contract.complete(ticket, &mem::take(&mut silent));
                    done.push(ticket);
                }
            }
        }
        done
    }
}

impl PhysicalIommu for Physical {
    type Device = PhysicalDevice;

    fn capabilities(&self) -> HostCapabilities {
        self.hardware.machine().capabilities
    }

    fn adopt(&mut self, device: PhysicalDevice) -> Result<HostCapabilities, OrderError> {
        let mut vm = self.vm();
        let mut machine = self.hardware.machine();
        let own = machine.capabilities_of(device);
        let answer = vm.adopts.pop_front().unwrap_or(Ok(own));
        vm.contract.adopt(device, machine.owners.contains_key(&device), answer);
        if answer.is_ok() {
            machine.owners.insert(device, self.gscid);
        }
        vm.orders.push(Order::Adopt(device, answer));
        answer
    }

    fn set_context(&mut self, device: PhysicalDevice, new: &Context) -> Result<Applied, OrderError> {
        let mut vm = self.vm();
        let rewrite = |new| self.hardware.machine().rewrite(device, self.gscid, new);
        let answer = match vm.contexts.pop_front() {
            None | Some(Ok(Applied::Switched)) => Ok(rewrite(new)),
            Some(Ok(Applied::Blocked)) => {
                rewrite(&Context::Blocked);
                Ok(Applied::Blocked)
            }
            Some(Err(error)) => Err(error),
        };
        vm.contract.set_context(device, new, answer);
        vm.orders.push(Order::SetContext(device, *new, answer));
        answer
    }

    fn invalidate(&mut self, orders: &[Invalidation<PhysicalDevice>]) -> Result<(), OrderError> {
        let mut vm = self.vm();
        let answer = vm.invalidations.pop_front().unwrap_or(Ok(()));
        vm.contract.invalidate(orders, answer);
        let done = match answer {
            Ok(()) => orders.len(),
            Err(OrderError::Refused { done }) => done,
            Err(_) => 0,
        };
        vm.waiting.extend(orders.iter().take(done).copied().map(Waiting::Invalidation));
        vm.orders.push(Order::Invalidate(orders.to_vec(), answer));
        answer
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        let mut vm = self.vm();
        let own = if vm.pending { Completion::Pending } else { Completion::Done };
        let mut answer = vm.fences.pop_front().unwrap_or(Ok(own));
        vm.contract.fence(upto, answer);
        if answer.is_ok() {
            vm.waiting.push_back(Waiting::Fence(upto));
        }
        if matches!(answer, Ok(Completion::Done | Completion::AtsTimeout)) {
            // It tells of the fences it completes, too.
            if vm.complete(self, upto).iter().any(|ticket| vm.timeouts.contains(ticket)) {
                answer = Ok(Completion::AtsTimeout);
            }
        }
        vm.orders.push(Order::Fence(upto, scope, answer));
        answer
    }

    fn ats_invalidate(&mut self, device: PhysicalDevice, what: &AtsInvalidation) -> Result<(), OrderError> {
        let mut vm = self.vm();
        let answer = vm.ats_invalidations.pop_front().unwrap_or(Ok(()));
        vm.contract.ats_invalidate(device, what, answer);
        if answer.is_ok() {
            vm.waiting.push_back(Waiting::AtsInvalidation(device, *what));
        }
        vm.orders.push(Order::AtsInvalidate(device, *what, answer));
        answer
    }

    fn page_response(&mut self, device: PhysicalDevice, response: &PageResponse) -> Result<(), OrderError> {
        let mut vm = self.vm();
        let answer = vm.page_responses.pop_front().unwrap_or(Ok(()));
        vm.contract.page_response(device, answer);
        if answer != Err(OrderError::Busy) {
            let open = self.hardware.machine().respond(device, response, answer.is_ok());
            assert!(open, "contract: {response:?} to {device:?}, which waits for no such response");
        }
        vm.orders.push(Order::PageResponse(device, *response, answer));
        answer
    }

    fn release(&mut self, device: PhysicalDevice) {
        let mut vm = self.vm();
        let mut machine = self.hardware.machine();
        vm.contract.release(device, machine.function(device).empty);
        machine.slot(device).wipe();
        machine.owners.remove(&device);
        // What is left of its page requests the host drains.
        machine.function(device).void_requests();
        machine.page_requests.retain(|(other, _)| *other != device);
        vm.orders.push(Order::Release(device));
    }
}

#[cfg(test)]
mod tests;
