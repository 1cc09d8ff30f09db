//! The state of the modelled IOMMU, and what requests and commands do to it.

use std::collections::BTreeMap;
use std::vec::Vec;

use crate::addr::{Gpa, Iova};
use crate::backend::{Context, HostCapabilities, Invalidation, ResponseCode};
use crate::fault::{Cause, TransactionType};
use crate::faultq::HostFault;
use crate::id::{Gscid, ProcessId, Pscid};
use crate::mock::memory::Memory;

use super::PhysicalDevice;
use super::context::Meaning;
use super::driver::Strategy;
use super::hardware::{Access, Dma, Traffic};
use super::ioatc::{Ioatc, Scope};
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
            slots: BTreeMap::new(),
            ioatc: Ioatc::default(),
        }
    }

    pub(super) fn slot(&mut self, device: PhysicalDevice) -> &mut Slot {
        self.slots.entry(device).or_default()
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

    pub(super) fn dma(&mut self, device: PhysicalDevice, process: Option<ProcessId>, iova: Iova, write: bool) -> Dma {
        let request = Request { iova: iova.get(), write };
        let (used, present) = (self.slot(device).fetch(), self.slot(device).present());
        let access = self.access(used, process, request, true);
        let fresh = self.access(present, process, request, false);
        let cause = match access {
            Access::Translated(_) => None,
            Access::Blocked if write => Some(Cause::WriteGuestPageFault),
            Access::Blocked => Some(Cause::ReadGuestPageFault),
            Access::Faulted(cause) => Some(cause),
        };
        if let Some(cause) = cause {
            let fault = HostFault::new(cause, request.kind(), iova);
            self.report(device, process.map_or(fault, |process| fault.with_process(process, false)));
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
        let Some(memory) = self.memories.get(&gscid).filter(|_| context != Context::Blocked) else {
            return Access::Blocked;
        };
        match context {
            Context::SecondStageOnly { process_ids, .. } if process_ids || process.is_none() => {
                Access::Translated(Gpa::new(request.iova))
            }
            Context::FirstStage(stage) if process.is_none() => {
                let walk = Walk { memory, stage: &stage, gscid, request };
                let walked = if cached { walk.cached(&mut self.ioatc) } else { walk.fresh() };
                walked.map_or_else(Access::Faulted, Access::Translated)
            }
            // A process_id where PDTV is 0 (rule TR-09).
            _ => Access::Faulted(Cause::TransactionTypeDisallowed),
        }
    }

    pub(super) fn page_request(&mut self, device: PhysicalDevice) -> ResponseCode {
        let (found, iova) = (self.slot(device).fetch(), Iova::new(4));
        let cause = found.err().unwrap_or(Cause::TransactionTypeDisallowed);
        // iotval is the message code (rule PRI-03).
        self.report(device, HostFault::new(cause, TransactionType::MessageRequest, iova));
        if found.is_ok() {
            return ResponseCode::InvalidRequest;
        }
        self.response_failures = self.response_failures.saturating_add(1);
        ResponseCode::ResponseFailure
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
