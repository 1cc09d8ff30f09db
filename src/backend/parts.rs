//! A backend put together from parts.

use core::convert::Infallible;

use crate::addr::Gpa;
use crate::error::{MemoryFault, OrderError};
use crate::id::{DeviceId, SecondStageMode};
use crate::regs::{Capabilities, Width};

use super::{
    Applied, AtsInvalidation, Completion, Context, Epoch, FenceScope, GuestMemory, HostCapabilities, InterruptKinds,
    Interrupts, Invalidation, PageResponse, PhysicalIommu, Post, Ticket,
};

/// A [`Backend`](super::Backend) made of three values.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "hosts build it by naming the three")]
pub struct Parts<M, I, P> {
    /// Guest memory.
    pub memory: M,
    /// Interrupt wires.
    pub interrupts: I,
    /// The physical IOMMU, or [`NoPhysical`].
    pub physical: P,
}

#[deny(clippy::missing_trait_methods, reason = "a default would not reach the part")]
impl<M: GuestMemory, I, P> GuestMemory for Parts<M, I, P> {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.memory.load(at, out)
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.memory.store(at, words)
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        self.memory.post(at, data, why)
    }

    fn has_compare_exchange(&self) -> bool {
        self.memory.has_compare_exchange()
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        self.memory.compare_exchange(at, width, old, new)
    }

    fn counts_dma(&self) -> bool {
        self.memory.counts_dma()
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        self.memory.drain(upto)
    }

    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        self.memory.unmapped(what);
    }

    fn watch(&mut self, page: Gpa, on: bool) {
        self.memory.watch(page, on);
    }

    fn publish(&mut self, offset: u16, value: u32) {
        self.memory.publish(offset, value);
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not reach the part")]
impl<M, I: Interrupts, P> Interrupts for Parts<M, I, P> {
    fn kinds(&self) -> InterruptKinds {
        self.interrupts.kinds()
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        self.interrupts.set_wire(vector, level);
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not reach the part")]
impl<M, I, P: PhysicalIommu> PhysicalIommu for Parts<M, I, P> {
    type Device = P::Device;

    fn capabilities(&self) -> HostCapabilities {
        self.physical.capabilities()
    }

    fn adopt(&mut self, device: Self::Device) -> Result<HostCapabilities, OrderError> {
        self.physical.adopt(device)
    }

    fn set_context(&mut self, device: Self::Device, new: &Context) -> Result<Applied, OrderError> {
        self.physical.set_context(device, new)
    }

    fn invalidate(&mut self, orders: &[Invalidation<Self::Device>]) -> Result<(), OrderError> {
        self.physical.invalidate(orders)
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        self.physical.fence(upto, scope)
    }

    fn ats_invalidate(&mut self, device: Self::Device, what: &AtsInvalidation) -> Result<(), OrderError> {
        self.physical.ats_invalidate(device, what)
    }

    fn page_response(&mut self, device: Self::Device, response: &PageResponse) -> Result<(), OrderError> {
        self.physical.page_response(device, response)
    }

    fn release(&mut self, device: Self::Device) {
        self.physical.release(device);
    }
}

/// The physical side of a host that has none: no device can be named, so none can be attached.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a unit")]
pub struct NoPhysical;

impl PhysicalIommu for NoPhysical {
    type Device = Infallible;

    fn capabilities(&self) -> HostCapabilities {
        HostCapabilities::new(Capabilities::new(), SecondStageMode::Sv39x4)
    }

    fn adopt(&mut self, device: Infallible) -> Result<HostCapabilities, OrderError> {
        match device {}
    }

    fn set_context(&mut self, device: Infallible, _new: &Context) -> Result<Applied, OrderError> {
        match device {}
    }

    fn invalidate(&mut self, _orders: &[Invalidation<Infallible>]) -> Result<(), OrderError> {
        Ok(())
    }

    fn fence(&mut self, _upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
        Ok(Completion::Done)
    }

    fn release(&mut self, device: Infallible) {
        match device {}
    }
}
