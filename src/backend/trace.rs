//! A wrapper that shows every call.

use core::fmt::{self, Debug, Display};

use crate::addr::Gpa;
use crate::error::{MemoryFault, OrderError};
use crate::id::DeviceId;
use crate::regs::Width;

use super::{
    Applied, AtsInvalidation, Completion, Context, Epoch, FenceScope, GuestMemory, HostCapabilities, InterruptKinds,
    Interrupts, Invalidation, PageResponse, PhysicalIommu, Post, Ticket,
};

/// Shows every call to what it wraps, with its arguments and its answer, to a function.
///
/// It wraps whatever implements one of the three traits, and implements those: a whole [`Backend`](super::Backend), or
/// one part of [`Parts`](super::Parts). The function is called after the call has returned. It is a `Fn`, because
/// [`load`](GuestMemory::load) has no exclusive access either; what it counts it keeps in a `Cell` or an atomic. As a
/// backend it may not call back into the vIOMMU.
///
/// ```
/// # use riscv_viommu::mock::{Memory, Wires};
/// # use riscv_viommu::{Config, InterruptKinds, NoPhysical, VIommu};
/// use riscv_viommu::Parts;
/// use riscv_viommu::backend::{Call, Trace};
///
/// # let memory = Memory::new();
/// # let interrupts = Wires::new(InterruptKinds::Msi);
/// let memory = Trace::new(memory, |call: &Call<'_>| println!("{call}"));
/// let mut iommu: VIommu<_> = VIommu::new(Parts { memory, interrupts, physical: NoPhysical });
/// # iommu.start(&Config::emulated())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "hosts build it by naming the two")]
pub struct Trace<T, F> {
    /// What is called.
    pub inner: T,
    /// What is shown each call.
    pub observer: F,
}

impl<T, F: Fn(&Call<'_>)> Trace<T, F> {
    /// `inner`, each call to which `observer` is shown.
    #[must_use]
    pub const fn new(inner: T, observer: F) -> Self {
        Self { inner, observer }
    }

    fn show(&self, call: &Call<'_>) {
        (self.observer)(call);
    }
}

impl<T: Debug, F> Debug for Trace<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// A call to a backend: the arguments of the method of that name, and its answer. It shows as one line.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the arguments of the methods")]
pub enum Call<'a> {
    /// [`GuestMemory::load`] of so many words; they are the answer.
    Load { at: Gpa, words: usize, answer: Result<&'a [u64], MemoryFault> },
    /// [`GuestMemory::store`].
    Store { at: Gpa, words: &'a [u64], answer: Result<(), MemoryFault> },
    /// [`GuestMemory::post`].
    Post { at: Gpa, data: u32, why: Post, answer: Result<(), MemoryFault> },
    /// [`GuestMemory::has_compare_exchange`].
    HasCompareExchange { answer: bool },
    /// [`GuestMemory::compare_exchange`].
    CompareExchange { at: Gpa, width: Width, old: u64, new: u64, answer: Result<bool, MemoryFault> },
    /// [`GuestMemory::counts_dma`].
    CountsDma { answer: bool },
    /// [`GuestMemory::drain`].
    Drain { upto: Epoch, answer: Completion },
    /// [`GuestMemory::unmapped`].
    Unmapped { what: &'a Invalidation<DeviceId> },
    /// [`GuestMemory::watch`].
    Watch { page: Gpa, on: bool },
    /// [`GuestMemory::publish`].
    Publish { offset: u16, value: u32 },
    /// [`Interrupts::kinds`].
    Kinds { answer: InterruptKinds },
    /// [`Interrupts::set_wire`].
    SetWire { vector: u8, level: bool },
    /// [`PhysicalIommu::capabilities`].
    Capabilities { answer: &'a HostCapabilities },
    /// [`PhysicalIommu::adopt`]. Of a device only its text is known here, because one function can be shown the calls
    /// of all three traits.
    Adopt { device: &'a dyn Debug, answer: &'a Result<HostCapabilities, OrderError> },
    /// [`PhysicalIommu::set_context`].
    SetContext { device: &'a dyn Debug, new: &'a Context, answer: Result<Applied, OrderError> },
    /// [`PhysicalIommu::invalidate`] of so many orders.
    Invalidate { orders: &'a dyn Debug, count: usize, answer: Result<(), OrderError> },
    /// [`PhysicalIommu::fence`].
    Fence { upto: Ticket, scope: FenceScope, answer: Result<Completion, OrderError> },
    /// [`PhysicalIommu::ats_invalidate`].
    AtsInvalidate { device: &'a dyn Debug, what: &'a AtsInvalidation, answer: Result<(), OrderError> },
    /// [`PhysicalIommu::page_response`].
    PageResponse { device: &'a dyn Debug, response: &'a PageResponse, answer: Result<(), OrderError> },
    /// [`PhysicalIommu::release`].
    Release { device: &'a dyn Debug },
}

impl Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { at, words, answer } => {
                write!(f, "load {at}, {words} words")?;
                ended(f, answer)
            }
            Self::Store { at, words, answer } => {
                write!(f, "store {at} {words:x?}")?;
                ended(f, answer)
            }
            Self::Post { at, data, why, answer } => {
                write!(f, "post {at} {data:#x} ({why:?})")?;
                ended(f, answer)
            }
            Self::HasCompareExchange { answer } => write!(f, "has_compare_exchange = {answer}"),
            Self::CompareExchange { at, width, old, new, answer } => {
                write!(f, "compare_exchange {at} ({width:?}) {old:#x} to {new:#x}")?;
                answered(f, answer)
            }
            Self::CountsDma { answer } => write!(f, "counts_dma = {answer}"),
            Self::Drain { upto, answer } => write!(f, "drain {} = {answer:?}", upto.get()),
            Self::Unmapped { what } => write!(f, "unmapped {what:?}"),
            Self::Watch { page, on } => write!(f, "watch {page} {on}"),
            Self::Publish { offset, value } => write!(f, "publish {offset:#x} {value:#x}"),
            Self::Kinds { answer } => write!(f, "kinds = {answer:?}"),
            Self::SetWire { vector, level } => write!(f, "set_wire {vector} {level}"),
            Self::Capabilities { answer: HostCapabilities { capabilities, .. } } => {
                write!(f, "capabilities = {:#x}", capabilities.into_bits())
            }
            Self::Adopt { device, answer } => {
                write!(f, "adopt {device:?}")?;
                ended(f, answer)
            }
            Self::SetContext { device, new, answer } => {
                write!(f, "set_context {device:?} {new:?}")?;
                answered(f, answer)
            }
            Self::Invalidate { orders, count: _, answer } => {
                write!(f, "invalidate {orders:?}")?;
                ended(f, answer)
            }
            Self::Fence { upto, scope, answer } => {
                write!(f, "fence {}, {}", upto.get(), text(*scope))?;
                answered(f, answer)
            }
            Self::AtsInvalidate { device, what, answer } => {
                write!(f, "ats_invalidate {device:?} {what:?}")?;
                ended(f, answer)
            }
            Self::PageResponse { device, response, answer } => {
                write!(f, "page_response {device:?} {response:?}")?;
                ended(f, answer)
            }
            Self::Release { device } => write!(f, "release {device:?}"),
        }
    }
}

const fn text(scope: FenceScope) -> &'static str {
    match (scope.reads, scope.writes) {
        (true, true) => "reads and writes",
        (true, false) => "reads",
        (false, true) => "writes",
        (false, false) => "no accesses",
    }
}

/// The end of a line whose answer is worth showing.
fn answered<T: Debug, E: Display>(f: &mut fmt::Formatter<'_>, answer: &Result<T, E>) -> fmt::Result {
    match answer {
        Ok(answer) => write!(f, " = {answer:?}"),
        Err(error) => write!(f, ": {error}"),
    }
}

/// The end of a line of which only an error is worth showing.
fn ended<T, E: Display>(f: &mut fmt::Formatter<'_>, answer: &Result<T, E>) -> fmt::Result {
    match answer {
        Ok(_) => Ok(()),
        Err(error) => write!(f, ": {error}"),
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not reach what is wrapped")]
impl<T: GuestMemory, F: Fn(&Call<'_>)> GuestMemory for Trace<T, F> {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        let answer = self.inner.load(at, out);
        self.show(&Call::Load { at, words: out.len(), answer: answer.map(|()| &*out) });
        answer
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        let answer = self.inner.store(at, words);
        self.show(&Call::Store { at, words, answer });
        answer
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        let answer = self.inner.post(at, data, why);
        self.show(&Call::Post { at, data, why, answer });
        answer
    }

    fn has_compare_exchange(&self) -> bool {
        let answer = self.inner.has_compare_exchange();
        self.show(&Call::HasCompareExchange { answer });
        answer
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        let answer = self.inner.compare_exchange(at, width, old, new);
        self.show(&Call::CompareExchange { at, width, old, new, answer });
        answer
    }

    fn counts_dma(&self) -> bool {
        let answer = self.inner.counts_dma();
        self.show(&Call::CountsDma { answer });
        answer
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        let answer = self.inner.drain(upto);
        self.show(&Call::Drain { upto, answer });
        answer
    }

    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        self.inner.unmapped(what);
        self.show(&Call::Unmapped { what });
    }

    fn watch(&mut self, page: Gpa, on: bool) {
        self.inner.watch(page, on);
        self.show(&Call::Watch { page, on });
    }

    fn publish(&mut self, offset: u16, value: u32) {
        self.inner.publish(offset, value);
        self.show(&Call::Publish { offset, value });
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not reach what is wrapped")]
impl<T: Interrupts, F: Fn(&Call<'_>)> Interrupts for Trace<T, F> {
    fn kinds(&self) -> InterruptKinds {
        let answer = self.inner.kinds();
        self.show(&Call::Kinds { answer });
        answer
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        self.inner.set_wire(vector, level);
        self.show(&Call::SetWire { vector, level });
    }
}

#[deny(clippy::missing_trait_methods, reason = "a default would not reach what is wrapped")]
impl<T: PhysicalIommu, F: Fn(&Call<'_>)> PhysicalIommu for Trace<T, F> {
    type Device = T::Device;

    fn capabilities(&self) -> HostCapabilities {
        let answer = self.inner.capabilities();
        self.show(&Call::Capabilities { answer: &answer });
        answer
    }

    fn adopt(&mut self, device: T::Device) -> Result<HostCapabilities, OrderError> {
        let answer = self.inner.adopt(device);
        self.show(&Call::Adopt { device: &device, answer: &answer });
        answer
    }

    fn set_context(&mut self, device: T::Device, new: &Context) -> Result<Applied, OrderError> {
        let answer = self.inner.set_context(device, new);
        self.show(&Call::SetContext { device: &device, new, answer });
        answer
    }

    fn invalidate(&mut self, orders: &[Invalidation<T::Device>]) -> Result<(), OrderError> {
        let answer = self.inner.invalidate(orders);
        self.show(&Call::Invalidate { orders: &orders, count: orders.len(), answer });
        answer
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        let answer = self.inner.fence(upto, scope);
        self.show(&Call::Fence { upto, scope, answer });
        answer
    }

    fn ats_invalidate(&mut self, device: T::Device, what: &AtsInvalidation) -> Result<(), OrderError> {
        let answer = self.inner.ats_invalidate(device, what);
        self.show(&Call::AtsInvalidate { device: &device, what, answer });
        answer
    }

    fn page_response(&mut self, device: T::Device, response: &PageResponse) -> Result<(), OrderError> {
        let answer = self.inner.page_response(device, response);
        self.show(&Call::PageResponse { device: &device, response, answer });
        answer
    }

    fn release(&mut self, device: T::Device) {
        self.inner.release(device);
        self.show(&Call::Release { device: &device });
    }
}

#[cfg(test)]
mod tests;
