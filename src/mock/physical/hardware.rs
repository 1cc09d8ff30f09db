//! The modelled physical IOMMU as a test sees it.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::addr::{Gpa, Iova};
use crate::backend::{Context, HostCapabilities, PageResponse, ResponseCode};
use crate::fault::Cause;
use crate::faultq::HostFault;
use crate::id::{Gscid, ProcessId, SecondStageMode};
use crate::mock::memory::Memory;
use crate::pageq::PageRequest;
use crate::regs::Capabilities;

use super::driver::Strategy;
use super::function::Kept;
use super::machine::Machine;
use super::walk::Request;
use super::{Physical, PhysicalDevice};

/// A physical IOMMU that several VMs share, every device of it blocked at first. A clone is another handle on it.
///
/// It caches as much and as long as the specification allows: a context, and what was read of the process directory,
/// until an `INVAL_DDT` of its device has been executed, the context of a process until an `INVAL_PDT` or that,
/// translations until a covering `IOTINVAL` has; and it executes an invalidation only when a fence after it completes.
/// A device with ATS keeps what it is granted until an Invalidation Request for it is executed. What the vIOMMU forgot
/// shows as [`Dma::stale`]. One fault queue of 16 records serves all devices.
///
/// MSI tables, Svnapot, Svpbmt, RV32 and `PRPR` are not modelled. The second stage is the identity, and all of it is
/// there.
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
    /// A Translated Request without `T2GPA`: the access goes to this physical address, whosever it is.
    Unchecked(u64),
    /// The context is blocked: a guest-page fault on the empty second stage.
    Blocked,
    /// The access is aborted.
    Faulted(Cause),
}

impl Access {
    /// The cause of the fault that is recorded for an untranslated or translated access.
    pub(super) const fn cause(self, write: bool) -> Option<Cause> {
        match self {
            Self::Translated(_) | Self::Unchecked(_) => None,
            Self::Blocked if write => Some(Cause::WriteGuestPageFault),
            Self::Blocked => Some(Cause::ReadGuestPageFault),
            Self::Faulted(cause) => Some(cause),
        }
    }
}

/// What the IOMMU answers to a Translation Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AtsAnswer {
    /// The device may use this page, and write there if it asked to and may.
    Granted {
        /// A page of the VM's physical space.
        page: Gpa,
        /// Write permission.
        write: bool,
    },
    /// Success without any permission (rule ATS-04).
    Nothing,
    /// The request is aborted, and a fault recorded.
    Refused(Cause),
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
            .with_s(true)
            .with_ats(true)
            .with_t2gpa(true)
            .with_pd8(true)
            .with_pd17(true)
            .with_pd20(true);
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

    /// A VM is gone, and its GSCID may be another's from now on. Caches stay as they are.
    ///
    /// # Panics
    /// If the VM still has a device.
    pub fn retire(&self, gscid: Gscid) {
        let mut machine = self.machine();
        let owned = machine.owners.values().any(|owner| *owner == gscid);
        assert!(!owned, "GSCID {} still has a device", gscid.get());
        machine.memories.remove(&gscid.get());
    }

    /// The GSCID whose second stage an access of this device meets now, whatever its context in memory is; `None` where
    /// it meets none, or the empty one. It is as if the device had made the access: hardware keeps what it reads.
    #[must_use]
    pub fn meets(&self, device: PhysicalDevice) -> Option<Gscid> {
        let met = self.machine().slot(device).fetch().ok()?;
        met.context.is_open().then(|| Gscid::truncate(met.gscid))
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
        self.machine().dma(device, process, Request { iova: iova.get(), write, privileged: false })
    }

    /// A device's access for supervisor privilege.
    #[must_use]
    pub fn supervisor_dma(&self, device: PhysicalDevice, process: ProcessId, iova: Iova, write: bool) -> Dma {
        self.machine().dma(device, Some(process), Request { iova: iova.get(), write, privileged: true })
    }

    /// A device's ATS Translation Request, for writing too if `write`. What is granted the device [keeps](Self::kept).
    #[must_use]
    pub fn ats_request(
        &self,
        device: PhysicalDevice,
        process: Option<ProcessId>,
        iova: Iova,
        write: bool,
    ) -> AtsAnswer {
        self.machine().ats_request(device, process, iova, write)
    }

    /// An access of a device with a cache of its own: it asks for a translation where it keeps none that will do, and
    /// then makes a Translated Request. Where it is granted nothing, that is a page fault which nobody records.
    #[must_use]
    pub fn dma_through_atc(&self, device: PhysicalDevice, process: Option<ProcessId>, iova: Iova, write: bool) -> Dma {
        self.machine().dma_through_atc(device, process, iova, write)
    }

    /// A Translated Request to an address of the device's own making.
    #[must_use]
    pub fn translated(&self, device: PhysicalDevice, process: Option<ProcessId>, to: Gpa, write: bool) -> Access {
        self.machine().translated(device, process, to, write)
    }

    /// The translations a device keeps.
    #[must_use]
    pub fn kept(&self, device: PhysicalDevice) -> Vec<Kept> {
        self.machine().function(device).kept()
    }

    /// Whether a device leaves Invalidation Requests unanswered from now on: what it keeps it keeps, and the fence
    /// after them finds a [timeout](crate::Completion::AtsTimeout).
    pub fn set_unresponsive(&self, device: PhysicalDevice, unresponsive: bool) {
        self.machine().function(device).unresponsive = unresponsive;
    }

    /// A device's Page Request, and what the IOMMU itself answers to it; `None` where it does not. With `EN_PRI` the
    /// request goes to [`take_page_requests`](Self::take_page_requests). A function whose requests are
    /// [off](Self::page_requests_off) makes none.
    #[must_use]
    pub fn page_request(&self, device: PhysicalDevice, request: &PageRequest) -> Option<ResponseCode> {
        self.machine().page_request(device, request)
    }

    /// Empties the page-request queue, for [`report_page_request`](crate::VIommu::report_page_request).
    #[must_use]
    pub fn take_page_requests(&self) -> Vec<(PhysicalDevice, PageRequest)> {
        mem::take(&mut self.machine().page_requests)
    }

    /// The host answers a request by itself, because it was the second stage that had no page.
    ///
    /// # Panics
    /// If the group is not open.
    pub fn answer_page_request(&self, device: PhysicalDevice, request: &PageRequest, code: ResponseCode) {
        let open = self.machine().respond(device, &request.response(code), true);
        assert!(open, "{request:?} of {device:?} is answered, or was not made");
    }

    /// The responses a device got since they were last taken, those of the IOMMU itself included.
    #[must_use]
    pub fn take_page_responses(&self, device: PhysicalDevice) -> Vec<PageResponse> {
        mem::take(&mut self.machine().function(device).responses)
    }

    /// Whether a Response Failure has turned the page requests of a device off.
    #[must_use]
    pub fn page_requests_off(&self, device: PhysicalDevice) -> bool {
        self.machine().function(device).requests_off
    }

    /// The host resets the function: it keeps nothing, answers again, and its page requests are void. For
    /// [`device_reset`](crate::VIommu::device_reset).
    pub fn reset_function(&self, device: PhysicalDevice) {
        self.machine().reset_function(device);
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
