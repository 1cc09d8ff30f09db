//! The state of the modelled IOMMU, and what requests and commands do to it.

use std::collections::BTreeMap;
use std::vec::Vec;

use crate::addr::{Gpa, Iova};
use crate::backend::{Context, HostCapabilities, Invalidation, ResponseCode};
use crate::fault::Cause;
use crate::faultq::HostFault;
use crate::id::{Gscid, Prgi, ProcessId, Pscid};
use crate::mock::memory::Memory;
use crate::pageq::PageRequest;

use super::PhysicalDevice;
use super::context::Meaning;
use super::driver::Strategy;
use super::function::Function;
use super::hardware::{Access, Dma, Traffic};
use super::ioatc::{Ioatc, Scope};
use super::processes::{self, Pdt};
use super::slot::Slot;
use super::walk::{Request, Walk};

/// Records the physical fault queue holds.
const FAULT_QUEUE: usize = 16;

/// Records of one device in the queue from which on the host masks its maskable faults with `tc.DTF` (rule UPD-07).
const STORM: usize = 4;

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) capabilities: HostCapabilities,
    pub(super) overrides: BTreeMap<PhysicalDevice, HostCapabilities>,
    pub(super) strategy: Strategy,
    pub(super) traffic: Option<Traffic>,
    pub(super) memories: BTreeMap<u32, Memory>,
    pub(super) owners: BTreeMap<PhysicalDevice, Gscid>,
    pub(super) faults: Vec<(PhysicalDevice, HostFault)>,
    pub(super) lost: BTreeMap<PhysicalDevice, u64>,
    pub(super) mixtures: u64,
    pub(super) response_failures: u64,
    /// What reached the host, and it has not taken.
    pub(super) page_requests: Vec<(PhysicalDevice, PageRequest)>,
    functions: BTreeMap<PhysicalDevice, Function>,
    slots: BTreeMap<PhysicalDevice, Slot>,
    ioatc: Ioatc,
}

impl Machine {
    pub(super) fn new(capabilities: HostCapabilities) -> Self {
        Self {
            capabilities,
            overrides: BTreeMap::new(),
            strategy: Strategy::default(),
            traffic: None,
            memories: BTreeMap::new(),
            owners: BTreeMap::new(),
            faults: Vec::new(),
            lost: BTreeMap::new(),
            mixtures: 0,
            response_failures: 0,
            page_requests: Vec::new(),
            functions: BTreeMap::new(),
            slots: BTreeMap::new(),
            ioatc: Ioatc::default(),
        }
    }

    pub(super) fn slot(&mut self, device: PhysicalDevice) -> &mut Slot {
        self.slots.entry(device).or_default()
    }

    pub(super) fn function(&mut self, device: PhysicalDevice) -> &mut Function {
        self.functions.entry(device).or_default()
    }

    /// What the IOMMU of this device can do.
    pub(super) fn capabilities_of(&self, device: PhysicalDevice) -> HostCapabilities {
        self.overrides.get(&device).copied().unwrap_or(self.capabilities)
    }

    /// One store of the host driver to a device context.
    pub(super) fn store(&mut self, device: PhysicalDevice, place: usize, value: u64) {
        let mixed = self.slot(device).store(place, value);
        self.mixtures = self.mixtures.saturating_add(mixed.into());
        if let Some(traffic) = self.traffic {
            self.drive(device, &traffic);
        }
    }

    /// Executes what the host makes of an order of this VM.
    pub(super) fn execute(&mut self, gscid: Gscid, order: &Invalidation<PhysicalDevice>) {
        match *order {
            Invalidation::Device(device) => self.slot(device).settle(),
            Invalidation::Process(device, process) => self.slot(device).processes.forget(process),
            Invalidation::Everything => {
                let own = |device: &PhysicalDevice| self.owners.get(device) == Some(&gscid);
                self.slots.iter_mut().filter(|(device, _)| own(device)).for_each(|(_, slot)| slot.settle());
            }
            _ => {}
        }
        let scope = match *order {
            Invalidation::Process(..) => return,
            Invalidation::AddressSpace(pscid) => Scope { pscid: Some(pscid.get()), ..Scope::default() },
            Invalidation::Pages(pages) => Scope {
                pscid: pages.pscid.map(Pscid::get),
                range: Some((pages.first.get(), pages.last.get() | 0xfff)),
                non_leaf: pages.non_leaf,
            },
            Invalidation::Device(_) | Invalidation::FirstStage | Invalidation::Everything => Scope::default(),
        };
        self.ioatc.invalidate(gscid.get(), scope);
    }

    /// The contexts of this VM's devices are gone. Translations stay: it is for the vIOMMU to see that they go.
    pub(super) fn lose(&mut self, gscid: Gscid) {
        let Self { owners, slots, .. } = self;
        slots.retain(|device, _| owners.get(device) != Some(&gscid));
    }

    pub(super) fn dma(&mut self, device: PhysicalDevice, process: Option<ProcessId>, request: Request) -> Dma {
        let (used, present) = (self.slot(device).fetch(), self.slot(device).present());
        let access = self.access(device, used, process, request, true);
        let fresh = self.access(device, present, process, request, false);
        if let Some(cause) = access.cause(request.write) {
            let fault = HostFault::new(cause, request.kind(), Iova::new(request.iova));
            let fault = process.map_or(fault, |process| fault.with_process(process, request.privileged));
            self.report(device, fault);
        }
        let meant = |meaning: Meaning| meaning.context;
        Dma { access, context: used.ok().map(meant), stale: access != fresh || used.map(meant) != present.map(meant) }
    }

    pub(super) fn access(
        &mut self,
        device: PhysicalDevice,
        meaning: Result<Meaning, Cause>,
        process: Option<ProcessId>,
        request: Request,
        cached: bool,
    ) -> Access {
        let Meaning { gscid, context, .. } = match meaning {
            Ok(meaning) => meaning,
            Err(cause) => return Access::Faulted(cause),
        };
        let capabilities = self.capabilities_of(device).capabilities;
        let Some(memory) = self.memories.get(&gscid).filter(|_| context.is_open()) else {
            return Access::Blocked;
        };
        let identity = Access::Translated(Gpa::new(request.iova));
        let disallowed = Access::Faulted(Cause::TransactionTypeDisallowed);
        let (stage, sum) = match context {
            Context::SecondStageOnly { process_ids, .. } if process_ids || process.is_none() => return identity,
            Context::FirstStage(stage) if process.is_none() => (stage, false),
            Context::Processes(directory) => {
                // Rule TR-14.
                let Some(process) = process.or(directory.dpe.then_some(ProcessId::truncate(0))) else {
                    return identity;
                };
                if !processes::holds(directory.mode, process) {
                    return disallowed;
                }
                let pdt = Pdt { memory, processes: &directory, capabilities };
                let slot = self.slots.entry(device).or_default();
                match if cached { pdt.cached(process, &mut slot.processes) } else { pdt.fresh(process) } {
                    Err(cause) => return Access::Faulted(cause),
                    // Rule TR-16.
                    Ok(found) if request.privileged && !found.ens => return disallowed,
                    Ok(found) => match found.stage {
                        Some(stage) => (stage, found.sum),
                        None => return identity,
                    },
                }
            }
            // A process_id where PDTV is 0 (rule TR-09).
            _ => return disallowed,
        };
        let walk = Walk { memory, stage: &stage, sum, gscid, request };
        let walked = if cached { walk.cached(&mut self.ioatc) } else { walk.fresh() };
        walked.map_or_else(Access::Faulted, Access::Translated)
    }

    /// Records a fault of a user request.
    pub(super) fn report_of(&mut self, device: PhysicalDevice, process: Option<ProcessId>, fault: HostFault) {
        self.report(device, process.map_or(fault, |process| fault.with_process(process, false)));
    }

    fn report(&mut self, device: PhysicalDevice, fault: HostFault) {
        let own = self.faults.iter().filter(|(other, _)| *other == device).count();
        if own >= STORM && !fault.cause.ignores_dtf() {
            return;
        }
        if self.faults.len() < FAULT_QUEUE {
            self.faults.push((device, fault));
        } else {
            let lost = self.lost.entry(device).or_default();
            *lost = lost.saturating_add(1);
        }
    }

    /// What happens between two stores.
    fn drive(&mut self, device: PhysicalDevice, traffic: &Traffic) {
        let read = |iova: Iova| Request { iova: iova.get(), write: false, privileged: false };
        for _ in 0..FAULT_QUEUE {
            self.dma(device, None, read(traffic.iova));
        }
        let before = self.page_requests.len();
        self.page_request(device, &PageRequest::read(traffic.iova, Prgi::truncate(0)));
        if let Some((bystander, iova)) = traffic.bystander {
            self.dma(bystander, None, read(iova));
        }
        // The host resolves the request by itself.
        for (device, request) in self.page_requests.split_off(before) {
            self.respond(device, &request.response(ResponseCode::Success), true);
        }
        self.faults.clear();
    }
}
