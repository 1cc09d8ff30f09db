//! What the host tells and answers, in any order its contract allows, around everything that guests do.

use arbitrary::Arbitrary;
use riscv_viommu::{
    Applied, Cause, Completion, Epoch, FenceOutcome, Gpa, HostFault, Itag, OrderError, PageRequest, PageRequestOutcome,
    Prgi, ResponseCode, SecondStageFault, Ticket, TransactionType,
};

use crate::commands::{self, Process};
use crate::guest::Value;
use crate::machine::{EMULATED, Iommu, Machine, PASSTHROUGH};

/// The most blocked states that the crate lets a host go through on the way to one context.
const DETOURS: u8 = 4;

/// What an order comes to where it fails.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Failure {
    Busy,
    Refused,
    Fatal,
}

impl Failure {
    const fn error(self) -> OrderError {
        match self {
            Self::Busy => OrderError::Busy,
            Self::Refused => OrderError::Refused { done: 0 },
            Self::Fatal => OrderError::Fatal,
        }
    }
}

/// A page request of a device.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Asked {
    iova: Value,
    process: Process,
    group: u8,
    read: bool,
    write: bool,
    last: bool,
}

impl Asked {
    fn request(self) -> PageRequest {
        let group = Prgi::truncate(u32::from(self.group % 4));
        let payload = PageRequest::read(self.iova.iova(), group).payload;
        let request = PageRequest::new(payload.with_r(self.read).with_w(self.write).with_l(self.last));
        self.process.id().map_or(request, |process| request.with_process(process, false))
    }
}

/// What the host does, and what happens around it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Action {
    Guest(commands::Action),
    /// The answers to the next orders of their kinds.
    Adopt(bool),
    SetContext(bool),
    Detour,
    Invalidate(Failure),
    Fence(Failure),
    FencePending,
    AtsInvalidate(Failure),
    PageResponse(Failure),
    /// Fences end: one that may never have been, and all.
    FenceDone(u8),
    FencesFail,
    Fault {
        device: u8,
        cause: u16,
        kind: u8,
        iova: Value,
        process: Process,
        second: Option<Value>,
    },
    Lost(u64),
    PageRequest(bool, Asked),
    PageRequestOfEmulated(u8, Asked),
    GroupTimeout(u8, u8, Process),
    AtsTimeout(u8, u8),
    /// A device with a cache of its own accesses memory, or makes an address up.
    Translated {
        second: bool,
        process: Process,
        iova: Value,
        forged: bool,
    },
    Unresponsive(bool, bool),
    Attach(u8),
    AttachEmulated(u8),
    Detach(bool),
    DetachEmulated(bool),
    Resync(bool),
    DeviceReset(bool),
    ResetOfEmulated(bool),
    TakeMemory(Value),
    Wrote(Option<Value>),
    LostState,
    Reset,
    Shutdown,
    /// DMA of emulated devices is under way, or done.
    DmaRuns(bool),
    Drained(u8),
}

impl Action {
    pub(crate) fn act(self, machine: &mut Machine) {
        let physical = machine.physical.clone();
        let passthrough = |second: bool| PASSTHROUGH[usize::from(second)];
        let emulated = |second: bool| EMULATED[usize::from(second)].0;
        match self {
            Self::Guest(action) => action.act(machine),
            Self::FenceDone(ticket) => {
                let ticket = Ticket::new(ticket.into());
                let late = |ticket: &Ticket| physical.outcome(*ticket) == FenceOutcome::AtsTimeout;
                let timed_out = physical.complete(ticket).iter().any(late);
                let outcome = if timed_out { FenceOutcome::AtsTimeout } else { FenceOutcome::Complete };
                let _ = machine.call(|iommu| iommu.fence_done(ticket, outcome));
            }
            Self::FencesFail => {
                for ticket in physical.fail_all() {
                    let _ = machine.call(|iommu| iommu.fence_done(ticket, FenceOutcome::Failed));
                }
            }
            Self::Fault { device, cause, kind, iova, process, second } => {
                let (Some(cause), Some(kind)) = (Cause::decode(cause), TransactionType::decode(kind)) else { return };
                let fault = HostFault::new(cause, kind, iova.iova());
                let fault = process.id().map_or(fault, |process| fault.with_process(process, false));
                let second = second.map(|at| SecondStageFault::new(Gpa::new(at.get())));
                let fault = second.map_or(fault, |second| fault.with_second_stage(second));
                if let Some(from) = attachment(machine, device) {
                    let _ = machine.call(|iommu| iommu.report_fault(from, &fault));
                }
            }
            Self::Lost(count) => drop(machine.call(|iommu| iommu.report_lost(count))),
            Self::PageRequest(second, asked) => {
                let _ = machine.hardware.page_request(passthrough(second).1, &asked.request());
                page_requests(machine);
            }
            Self::PageRequestOfEmulated(device, asked) => {
                let from = machine.emulated(device);
                let _ = machine.call(|iommu| iommu.page_request(from, &asked.request()));
            }
            Self::GroupTimeout(device, group, process) => group_timeout(machine, device, group, process),
            Self::AtsTimeout(device, itag) => {
                let from = machine.emulated(device);
                let _ = machine.call(|iommu| iommu.ats_timeout(from, Itag::truncate(itag.into())));
            }
            Self::Translated { second, process, iova, forged } => {
                let device = passthrough(second).1;
                if forged {
                    let _ = machine.hardware.translated(device, process.id(), Gpa::new(iova.get()), true);
                } else {
                    let _ = machine.hardware.dma_through_atc(device, process.id(), iova.iova(), true);
                }
            }
            Self::Unresponsive(second, silent) => machine.hardware.set_unresponsive(passthrough(second).1, silent),
            Self::Attach(device) => machine.attach(device),
            Self::AttachEmulated(device) => machine.attach_emulated(device),
            Self::Detach(second) => drop(machine.call(|iommu| iommu.detach(passthrough(second).0))),
            Self::DetachEmulated(second) => drop(machine.call(|iommu| iommu.detach(emulated(second)))),
            Self::Resync(second) => drop(machine.call(|iommu| iommu.resync(passthrough(second).0))),
            Self::DeviceReset(second) => {
                let (id, device) = passthrough(second);
                machine.hardware.reset_function(device);
                let _ = machine.call(|iommu| iommu.device_reset(id));
            }
            Self::ResetOfEmulated(second) => drop(machine.call(|iommu| iommu.device_reset(emulated(second)))),
            Self::TakeMemory(at) => {
                let range = Gpa::new(at.get() & !0xfff)..=Gpa::new(at.get() | 0xfff);
                let _ = machine.call(|iommu| iommu.invalidate_gpa(range));
            }
            Self::Wrote(at) => {
                let noted = machine.memory.take_watched_writes();
                for at in noted.into_iter().chain(at.map(|at| Gpa::new(at.get()))) {
                    let _ = machine.call(|iommu| iommu.guest_wrote(at));
                }
            }
            Self::LostState => {
                physical.lose_state();
                let _ = machine.call(Iommu::host_lost_state);
            }
            // The guest does not run before it is done.
            Self::Reset => {
                let _ = machine.call(Iommu::reset);
                machine.settle();
            }
            Self::Shutdown => drop(machine.call(Iommu::shutdown)),
            Self::Drained(epoch) => {
                let asked = machine.memory.take_drains().last().copied();
                let upto = asked.filter(|_| epoch == 0).unwrap_or(Epoch::new(epoch.into()));
                let _ = machine.call(|iommu| iommu.drained(upto));
            }
            answer => answer.script(machine),
        }
    }

    /// What the next order of a kind is answered.
    fn script(self, machine: &mut Machine) {
        let physical = &machine.physical;
        match self {
            Self::Adopt(busy) => physical.answer_next_adopt(Err(either(busy, Failure::Refused))),
            // Not Refused, which blocking must not be.
            Self::SetContext(busy) => physical.answer_next_set_context(Err(either(busy, Failure::Fatal))),
            // One that never lets a device be quiesced is no host: it takes care of what the device keeps.
            Self::Detour if machine.setup.ats && machine.detours == DETOURS => {}
            Self::Detour => {
                machine.detours += 1;
                physical.answer_next_set_context(Ok(Applied::Blocked));
            }
            Self::Invalidate(failure) => physical.answer_next_invalidate(Err(failure.error())),
            Self::Fence(failure) => physical.answer_next_fence(Err(failure.error())),
            Self::FencePending => physical.answer_next_fence(Ok(Completion::Pending)),
            Self::AtsInvalidate(failure) => physical.answer_next_ats_invalidate(Err(failure.error())),
            Self::PageResponse(failure) => physical.answer_next_page_response(Err(failure.error())),
            Self::DmaRuns(runs) if machine.setup.counted => {
                machine.memory.answer_drain(Some(if runs { Completion::Pending } else { Completion::Done }));
            }
            _ => {}
        }
    }
}

const fn either(busy: bool, other: Failure) -> OrderError {
    if busy { OrderError::Busy } else { other.error() }
}

/// An attachment of a passthrough device, perhaps one of long ago.
fn attachment(machine: &Machine, device: u8) -> Option<riscv_viommu::Attachment> {
    let index = usize::from(device).checked_rem(machine.passthrough.len())?;
    machine.passthrough.get(index).copied()
}

/// The host drains the physical page-request queue.
fn page_requests(machine: &mut Machine) {
    for (device, request) in machine.hardware.take_page_requests() {
        let id = PASSTHROUGH.iter().find(|(_, handle)| *handle == device).map(|(id, _)| *id);
        let newest = machine.passthrough.iter().rev().find(|attachment| Some(attachment.device()) == id).copied();
        let Some(newest) = newest else { continue };
        let code = match machine.call(|iommu| iommu.report_page_request(newest, &request)) {
            PageRequestOutcome::HostPage => Some(ResponseCode::Success),
            PageRequestOutcome::Discarded(response) => response.map(|response| response.code),
            _ => None,
        };
        if let Some(code) = code.filter(|_| request.payload.wants_response()) {
            machine.hardware.answer_page_request(device, &request, code);
        }
    }
}

/// The guest was too slow: the host answers what the device still waits for.
fn group_timeout(machine: &mut Machine, device: u8, group: u8, process: Process) {
    let Some(from) = attachment(machine, device) else { return };
    let group = Prgi::truncate(u32::from(group % 4));
    let _ = machine.call(|iommu| iommu.page_request_timeout(from, group, process.id()));
}

/// The target.
pub fn run(input: &[u8]) {
    crate::fuzz(input, |machine, action: Action| action.act(machine));
}
