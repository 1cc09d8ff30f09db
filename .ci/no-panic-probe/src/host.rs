//! A host of which the compiler knows nothing: each answer may be any.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use riscv_viommu::{
    Applied, AtsInvalidation, Capabilities, Completion, Context, Epoch, FenceScope, Gpa, GuestMemory, HostCapabilities,
    InterruptKinds, Interrupts, Invalidation, MemoryFault, OrderError, PageResponse, PhysicalIommu, Post,
    SecondStageMode, Ticket, Width,
};

static ORACLE: AtomicU64 = AtomicU64::new(0);

/// Any number.
pub fn any() -> u64 {
    ORACLE.load(Ordering::Relaxed)
}

pub fn any_u32() -> u32 {
    any() as u32
}

pub fn maybe() -> bool {
    any() & 1 != 0
}

/// The value, or not.
pub fn some<T>(value: T) -> Option<T> {
    maybe().then_some(value)
}

/// Keeps what the crate hands out.
pub fn keep<T>(value: T) {
    let _ = core::hint::black_box(value);
}

#[derive(Clone, Copy)]
pub struct Host;

/// Not what is looked at: `derive` would print whatever a backend has.
impl fmt::Debug for Host {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn fault() -> Result<(), MemoryFault> {
    match any() & 3 {
        0 => Err(MemoryFault::Access),
        1 => Err(MemoryFault::Corruption),
        _ => Ok(()),
    }
}

fn ordered() -> Result<(), OrderError> {
    match any() & 3 {
        0 => Err(OrderError::Busy),
        1 => Err(OrderError::Refused { done: any() as usize }),
        2 => Err(OrderError::Fatal),
        _ => Ok(()),
    }
}

impl GuestMemory for Host {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        keep(at);
        out.fill_with(any);
        fault()
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        keep((at, words));
        fault()
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        keep((at, data, why));
        fault()
    }

    fn has_compare_exchange(&self) -> bool {
        maybe()
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        keep((at, width, old, new));
        fault().map(|()| maybe())
    }

    fn counts_dma(&self) -> bool {
        maybe()
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        keep(upto);
        if maybe() { Completion::Done } else { Completion::Pending }
    }

    fn unmapped(&mut self, what: &Invalidation<riscv_viommu::DeviceId>) {
        keep(what);
    }

    fn watch(&mut self, page: Gpa, on: bool) {
        keep((page, on));
    }

    fn publish(&mut self, offset: u16, value: u32) {
        keep((offset, value));
    }
}

impl Interrupts for Host {
    fn kinds(&self) -> InterruptKinds {
        match any() & 3 {
            0 => InterruptKinds::Msi,
            1 => InterruptKinds::Wired,
            _ => InterruptKinds::Both,
        }
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        keep((vector, level));
    }
}

impl PhysicalIommu for Host {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        let second_stage = match any() & 3 {
            0 => SecondStageMode::Sv39x4,
            1 => SecondStageMode::Sv48x4,
            _ => SecondStageMode::Sv57x4,
        };
        HostCapabilities::new(Capabilities::from_bits(any()), second_stage).with_svnapot(maybe()).with_coherent(maybe())
    }

    fn adopt(&mut self, device: u32) -> Result<HostCapabilities, OrderError> {
        keep(device);
        ordered().map(|()| self.capabilities())
    }

    fn set_context(&mut self, device: u32, new: &Context) -> Result<Applied, OrderError> {
        keep((device, new));
        ordered().map(|()| if maybe() { Applied::Switched } else { Applied::Blocked })
    }

    fn invalidate(&mut self, orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        keep(orders);
        ordered()
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        keep((upto, scope));
        ordered().map(|()| match any() & 3 {
            0 => Completion::Done,
            1 => Completion::AtsTimeout,
            _ => Completion::Pending,
        })
    }

    fn ats_invalidate(&mut self, device: u32, what: &AtsInvalidation) -> Result<(), OrderError> {
        keep((device, what));
        ordered()
    }

    fn page_response(&mut self, device: u32, response: &PageResponse) -> Result<(), OrderError> {
        keep((device, response));
        ordered()
    }

    fn release(&mut self, device: u32) {
        keep(device);
    }
}
