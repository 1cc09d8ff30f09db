//! The modelled physical IOMMU: device contexts in memory, caches that only commands empty, one fault queue for all.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::addr::{Gpa, Iova};
use crate::backend::{Context, HostCapabilities, Invalidation};
use crate::fault::Cause;
use crate::id::{Gscid, ProcessId, Pscid, SecondStageMode};
use crate::mock::memory::Memory;
use crate::regs::Capabilities;

use super::context::{self, Dwords, Meaning};
use super::driver::Strategy;
use super::ioatc::{Ioatc, Scope};
use super::walk::{Request, Walk};
use super::{Physical, PhysicalDevice};

/// Records the physical fault queue holds.
const FAULT_QUEUE: usize = 16;

/// Records of one device in the queue from which on the host masks its maskable faults with `tc.DTF` (rule UPD-07).
const STORM: usize = 4;

/// A physical IOMMU that several VMs share. A clone is another handle on the same one.
///
/// It caches as much and as long as the specification allows: a context until an `INVAL_DDT` of its device has been
/// executed, translations until a covering `IOTINVAL` has; and it executes an invalidation only when a fence after it
/// completes. What the host or the vIOMMU forgot shows as [`Dma::stale`].
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

impl Access {
    /// Where it goes, if it does.
    #[must_use]
    pub const fn translated(self) -> Option<Gpa> {
        match self {
            Self::Translated(to) => Some(to),
            Self::Blocked | Self::Faulted(_) => None,
        }
    }
}

/// The answer to a Page Request (rules PRI-06, PRI-07). No context here has `EN_PRI`, so none gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageResponse {
    /// 0x1: this device may not ask.
    InvalidRequest,
    /// 0xF: turns the page request interface of the function and all its siblings off.
    ResponseFailure,
}

/// A record of the physical fault queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PhysicalFault {
    /// Whose access it was.
    pub device: PhysicalDevice,
    /// Why it failed.
    pub cause: Cause,
    /// The address.
    pub iova: Iova,
    /// The `process_id` of the access.
    pub process: Option<ProcessId>,
    /// A write, else a read.
    pub write: bool,
}

/// What devices do while the host rewrites a context: see [`Hardware::set_traffic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Where the device whose context is rewritten reads.
    pub iova: Iova,
    /// A device whose read of this address should fault, and whose fault its own VM should hear of.
    pub bystander: Option<(PhysicalDevice, Iova)>,
}

impl Traffic {
    /// Accesses and a Page Request by the device alone.
    #[must_use]
    pub const fn new(iova: Iova) -> Self {
        Self { iova, bystander: None }
    }

    /// A faulting access by another device too.
    #[must_use]
    pub const fn with_bystander(self, device: PhysicalDevice, iova: Iova) -> Self {
        Self { bystander: Some((device, iova)), ..self }
    }
}

/// Everything the handles share.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) capabilities: HostCapabilities,
    pub(super) overrides: BTreeMap<PhysicalDevice, HostCapabilities>,
    pub(super) strategy: Strategy,
    pub(super) owners: BTreeMap<PhysicalDevice, Gscid>,
    memories: BTreeMap<u32, Memory>,
    slots: BTreeMap<PhysicalDevice, Slot>,
    ioatc: Ioatc,
    traffic: Option<Traffic>,
    faults: Vec<PhysicalFault>,
    lost: BTreeMap<PhysicalDevice, u64>,
    mixtures: u64,
    response_failures: u64,
}

/// The directory entry of one device, and the copy hardware has of it.
#[derive(Debug)]
struct Slot {
    dwords: Dwords,
    cached: Option<Meaning>,
    /// What each store left since the last executed `INVAL_DDT`: hardware may have read each dword at any time since.
    versions: Vec<Dwords>,
    /// The contexts that were asked for since, which are the ones a device may be served by.
    intended: Vec<Meaning>,
}

impl Default for Slot {
    fn default() -> Self {
        let mut slot = Self { dwords: context::BLOCKED, cached: None, versions: Vec::new(), intended: Vec::new() };
        slot.settle();
        slot
    }
}

impl Slot {
    /// An `INVAL_DDT` and a fence: nothing read before is in use or on its way.
    fn settle(&mut self) {
        self.cached = None;
        self.versions = std::vec![self.dwords];
        let asked_for_last = self.intended.pop();
        self.intended = context::decode(&self.dwords).into_iter().chain(asked_for_last).collect();
    }

    /// Whether hardware may put together a context that nobody asked for. The dwords are read in any order, at any
    /// time (rules UPD-01, DDT-17).
    fn mixed(&self) -> bool {
        let mut torn = std::vec![self.dwords];
        for place in [context::TC, context::IOHGATP, context::TA, context::FSC] {
            let mut values: Vec<u64> = self.versions.iter().filter_map(|dwords| dwords.get(place).copied()).collect();
            values.sort_unstable();
            values.dedup();
            let with = |dwords: &Dwords, value: u64| {
                let mut dwords = *dwords;
                dwords.iter_mut().skip(place).take(1).for_each(|dword| *dword = value);
                dwords
            };
            torn = torn.iter().flat_map(|dwords| values.iter().map(move |&value| with(dwords, value))).collect();
        }
        let asked_for = |meaning: &Meaning| meaning.context == Context::Blocked || self.intended.contains(meaning);
        torn.iter().filter_map(|dwords| context::decode(dwords).ok()).any(|meaning| !asked_for(&meaning))
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
    /// An IOMMU whose every device is blocked, driven by [`Strategy::Switch`].
    #[must_use]
    pub fn new(capabilities: HostCapabilities) -> Self {
        Self(Arc::new(Mutex::new(Machine {
            capabilities,
            overrides: BTreeMap::new(),
            strategy: Strategy::Switch,
            owners: BTreeMap::new(),
            memories: BTreeMap::new(),
            slots: BTreeMap::new(),
            ioatc: Ioatc::default(),
            traffic: None,
            faults: Vec::new(),
            lost: BTreeMap::new(),
            mixtures: 0,
            response_failures: 0,
        })))
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
    /// Request, the bystander makes its access, and then the host empties the fault queue.
    pub fn set_traffic(&self, traffic: Option<Traffic>) {
        self.machine().traffic = traffic;
    }

    /// A device's access.
    #[must_use]
    pub fn dma(&self, device: PhysicalDevice, process: Option<ProcessId>, iova: Iova, write: bool) -> Dma {
        self.machine().dma(device, process, iova, write)
    }

    /// A device's Page Request.
    #[must_use]
    pub fn page_request(&self, device: PhysicalDevice) -> PageResponse {
        self.machine().page_request(device)
    }

    /// The context in memory now; `None` where it is not valid.
    #[must_use]
    pub fn context(&self, device: PhysicalDevice) -> Option<Context> {
        context::decode(&self.machine().dwords(device)).ok().map(|meaning| meaning.context)
    }

    /// Empties the fault queue.
    #[must_use]
    pub fn take_faults(&self) -> Vec<PhysicalFault> {
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

impl Machine {
    pub(super) fn dwords(&self, device: PhysicalDevice) -> Dwords {
        self.slots.get(&device).map_or(context::BLOCKED, |slot| slot.dwords)
    }

    /// Whether everything stored to the context has been seen to be in use since.
    pub(super) fn settled(&self, device: PhysicalDevice) -> bool {
        self.slots.get(&device).is_none_or(|slot| slot.versions.len() == 1)
    }

    /// A context is asked for: from now on the device may be served by it.
    pub(super) fn intend(&mut self, device: PhysicalDevice, dwords: &Dwords) {
        let slot = self.slots.entry(device).or_default();
        slot.intended.extend(context::decode(dwords));
    }

    /// One store of the host driver.
    pub(super) fn store(&mut self, device: PhysicalDevice, place: usize, value: u64) {
        let slot = self.slots.entry(device).or_default();
        slot.dwords.iter_mut().skip(place).take(1).for_each(|dword| *dword = value);
        slot.versions.push(slot.dwords);
        self.mixtures = self.mixtures.saturating_add(u64::from(slot.mixed()));
        if let Some(traffic) = self.traffic {
            self.drive(device, &traffic);
        }
    }

    /// `IODIR.INVAL_DDT` with DV = 1, executed.
    pub(super) fn settle(&mut self, device: PhysicalDevice) {
        self.slots.entry(device).or_default().settle();
    }

    /// Executes what the host makes of an order of the VM (design: `Device` is `INVAL_DDT`, VMA and GVMA).
    pub(super) fn execute(&mut self, gscid: Gscid, order: &Invalidation<PhysicalDevice>) {
        let scope = match *order {
            Invalidation::Device(device) => {
                self.settle(device);
                Scope::default()
            }
            Invalidation::Everything => {
                let own = self.owners.iter().filter(|&(_, owner)| *owner == gscid).map(|(&device, _)| device);
                own.collect::<Vec<_>>().into_iter().for_each(|device| self.settle(device));
                Scope::default()
            }
            Invalidation::FirstStage => Scope::default(),
            Invalidation::AddressSpace(pscid) => Scope { pscid: Some(pscid.get()), ..Scope::default() },
            Invalidation::Pages(pages) => Scope {
                pscid: pages.pscid.map(Pscid::get),
                range: Some((pages.first.get(), pages.last.get() | 0xfff)),
                non_leaf: pages.non_leaf,
            },
        };
        self.ioatc.invalidate(gscid.get(), scope);
    }

    fn dma(&mut self, device: PhysicalDevice, process: Option<ProcessId>, iova: Iova, write: bool) -> Dma {
        let request = Request { iova: iova.get(), write };
        let present = context::decode(&self.dwords(device));
        let slot = self.slots.entry(device).or_default();
        // What is not valid is never cached (rule CA-02).
        slot.cached = slot.cached.or(present.ok());
        let used = slot.cached.ok_or(Cause::DdtNotValid).or(present);
        let access = self.access(used, process, request, true);
        let fresh = self.access(present, process, request, false);
        let cause = match access {
            Access::Translated(_) => None,
            Access::Blocked if write => Some(Cause::WriteGuestPageFault),
            Access::Blocked => Some(Cause::ReadGuestPageFault),
            Access::Faulted(cause) => Some(cause),
        };
        if let Some(cause) = cause {
            self.report(PhysicalFault { device, cause, iova, process, write });
        }
        let meant = |meaning: Meaning| meaning.context;
        Dma { access, context: used.ok().map(meant), stale: access != fresh || used.map(meant) != present.map(meant) }
    }

    fn access(
        &mut self,
        meaning: Result<Meaning, Cause>,
        process: Option<ProcessId>,
        request: Request,
        cached: bool,
    ) -> Access {
        let Meaning { gscid, context } = match meaning {
            Ok(meaning) => meaning,
            Err(cause) => return Access::Faulted(cause),
        };
        match context {
            // PDTV = 0 (rule TR-09).
            Context::Blocked | Context::FirstStage(_) | Context::SecondStageOnly { process_ids: false }
                if process.is_some() =>
            {
                Access::Faulted(Cause::TransactionTypeDisallowed)
            }
            Context::Blocked => Access::Blocked,
            Context::SecondStageOnly { .. } => Access::Translated(Gpa::new(request.iova)),
            Context::FirstStage(stage) => {
                let Some(memory) = self.memories.get(&gscid) else {
                    return Access::Faulted(request.kind().access_fault());
                };
                let walk = Walk { memory, stage: &stage, gscid, request };
                let walked = if cached { walk.cached(&mut self.ioatc) } else { walk.fresh() };
                walked.map_or_else(Access::Faulted, Access::Translated)
            }
        }
    }

    fn page_request(&mut self, device: PhysicalDevice) -> PageResponse {
        let present = context::decode(&self.dwords(device));
        let slot = self.slots.entry(device).or_default();
        slot.cached = slot.cached.or(present.ok());
        if slot.cached.is_some() {
            return PageResponse::InvalidRequest;
        }
        self.response_failures = self.response_failures.saturating_add(1);
        PageResponse::ResponseFailure
    }

    fn report(&mut self, fault: PhysicalFault) {
        let own = self.faults.iter().filter(|record| record.device == fault.device).count();
        if own >= STORM && !fault.cause.ignores_dtf() {
            return;
        }
        if self.faults.len() < FAULT_QUEUE {
            self.faults.push(fault);
        } else {
            let lost = self.lost.entry(fault.device).or_default();
            *lost = lost.saturating_add(1);
        }
    }

    fn drive(&mut self, device: PhysicalDevice, traffic: &Traffic) {
        for _ in 0..FAULT_QUEUE {
            self.dma(device, None, traffic.iova, false);
        }
        self.page_request(device);
        if let Some((bystander, iova)) = traffic.bystander {
            self.dma(bystander, None, iova, false);
        }
        self.faults.clear();
    }
}
