//! The modelled physical IOMMU as a test sees it.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::addr::{Gpa, Iova};
use crate::backend::{Context, HostCapabilities, ResponseCode};
use crate::fault::Cause;
use crate::faultq::HostFault;
use crate::id::{Gscid, ProcessId, SecondStageMode};
use crate::mock::memory::Memory;
use crate::regs::Capabilities;

use super::driver::Strategy;
use super::machine::Machine;
use super::{Physical, PhysicalDevice};

/// A physical IOMMU that several VMs share, every device of it blocked at first. A clone is another handle on it.
///
/// It caches as much and as long as the specification allows: a context until an `INVAL_DDT` of its device has been
/// executed, translations until a covering `IOTINVAL` has; and it executes an invalidation only when a fence after it
/// completes. What the vIOMMU forgot shows as [`Dma::stale`]. One fault queue of 16 records serves all devices.
///
/// Process directories, MSI tables, ATS, Svnapot and Svpbmt are not modelled.
#[derive(Clone, Debug)]
pub struct Hardware(Arc<Mutex<Machine>>);

/// What became of a device's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dma {
    /// What the device got.
    pub access: Access,
    /// The context that served it; `None` where there was no valid one.
    pub context: Option<Context>,
    /// A walk of the present tables under the present context, without any cache, ends otherwise.
    pub stale: bool,
}

/// What a device gets from the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// The access goes here in the VM's physical space; its second stage is the identity.
    Translated(Gpa),
    /// The context is blocked: a guest-page fault on the empty second stage.
    Blocked,
    /// The access is aborted.
    Faulted(Cause),
}

/// What devices do while the host rewrites a context: see [`Hardware::set_traffic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Where the device whose context is rewritten reads.
    pub iova: Iova,
    /// Another device, which reads here.
    pub bystander: Option<(PhysicalDevice, Iova)>,
}

impl Traffic {
    /// Of the device alone.
    #[must_use]
    pub const fn new(iova: Iova) -> Self {
        Self { iova, bystander: None }
    }

    /// Of another VM's device too; choose an address that faults, to see whether the fault is lost.
    #[must_use]
    pub const fn with_bystander(self, device: PhysicalDevice, iova: Iova) -> Self {
        Self { bystander: Some((device, iova)), ..self }
    }
}

impl Default for Hardware {
    /// One that can do all that nesting asks for.
    fn default() -> Self {
        let register = Capabilities::new()
            .with_version(0x10)
            .with_sv39(true)
            .with_sv48(true)
            .with_sv57(true)
            .with_sv39x4(true)
            .with_sv48x4(true)
            .with_sv57x4(true)
            .with_amo_hwad(true)
            .with_msi_flat(true)
            .with_end(true)
            .with_pas(56)
            .with_nl(true)
            .with_s(true);
        let stated = HostCapabilities::new(register, SecondStageMode::Sv48x4);
        Self::new(stated.with_svnapot(true).with_leaves_dirty(true).with_coherent(true))
    }
}

impl Hardware {
    /// One with these capabilities, driven by [`Strategy::Switch`].
    #[must_use]
    pub fn new(capabilities: HostCapabilities) -> Self {
        Self(Arc::new(Mutex::new(Machine::new(capabilities))))
    }

    /// The handle of one VM, whose guest's tables are in `memory`.
    ///
    /// # Panics
    /// If `gscid` is 0, which the host keeps for its empty second stage, or another VM's.
    #[must_use]
    pub fn vm(&self, gscid: Gscid, memory: &Memory) -> Physical {
        let before = self.machine().memories.insert(gscid.get(), memory.clone());
        assert!(gscid.get() != 0 && before.is_none(), "GSCID {} is taken", gscid.get());
        Physical::new(self.clone(), gscid)
    }

    /// What [`adopt`](crate::PhysicalIommu::adopt) answers for this device.
    pub fn set_capabilities_of(&self, device: PhysicalDevice, capabilities: HostCapabilities) {
        self.machine().overrides.insert(device, capabilities);
    }

    /// How contexts are rewritten from now on.
    pub fn set_strategy(&self, strategy: Strategy) {
        self.machine().strategy = strategy;
    }

    /// From now on, after every single store to a device's context, the device makes a burst of reads and a Page
    /// Request, the bystander makes a read, and then the host empties the fault queue.
    pub fn set_traffic(&self, traffic: Option<Traffic>) {
        self.machine().traffic = traffic;
    }

    /// A device's access.
    #[must_use]
    pub fn dma(&self, device: PhysicalDevice, process: Option<ProcessId>, iova: Iova, write: bool) -> Dma {
        self.machine().dma(device, process, iova, write)
    }

    /// What the IOMMU itself answers to a device's Page Request. No context here has `EN_PRI`, so none gets through.
    #[must_use]
    pub fn page_request(&self, device: PhysicalDevice) -> ResponseCode {
        self.machine().page_request(device)
    }

    /// The context in memory now; `None` where it is not valid.
    #[must_use]
    pub fn context(&self, device: PhysicalDevice) -> Option<Context> {
        self.machine().slot(device).present().ok().map(|meaning| meaning.context)
    }

    /// Empties the fault queue.
    #[must_use]
    pub fn take_faults(&self) -> Vec<(PhysicalDevice, HostFault)> {
        mem::take(&mut self.machine().faults)
    }

    /// Stores to contexts after which hardware could put together a context that nobody asked for.
    #[must_use]
    pub fn mixtures(&self) -> u64 {
        self.machine().mixtures
    }

    /// Page Requests answered with Response Failure.
    #[must_use]
    pub fn response_failures(&self) -> u64 {
        self.machine().response_failures
    }

    /// Faults of this device for which the fault queue had no room.
    #[must_use]
    pub fn lost_faults(&self, device: PhysicalDevice) -> u64 {
        self.machine().lost.get(&device).copied().unwrap_or_default()
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        crate::mock::lock(&self.0)
    }
}
