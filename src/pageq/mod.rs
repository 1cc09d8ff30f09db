//! The page-request queue: how a page request of a device becomes a record, and how it is answered when it does not.

pub mod record;

pub use record::{PageRequest, PageRequestHead, PageRequestPayload, PageRequestRecord};

use crate::backend::{GuestMemory, PageResponse, ResponseCode};
use crate::ddt::{Reading, Trail};
use crate::error::MemoryFault;
use crate::fault::{Cause, Fault, TransactionType};
use crate::id::DeviceId;
use crate::interrupt::Signals;
use crate::mem::View;
use crate::regs::file::Registers;
use crate::ring::Ring;

/// The code of a Page Request message, which a fault record has for an IOVA (rules FQ-54, PRI-03).
pub(crate) const MESSAGE_CODE: u64 = 0x04;

/// What the host has to say of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The device may ask.
    Granted,
    /// It may, but one more group can not be counted.
    NoRoom,
    /// It was not granted page requests: as if its context had not enabled them (rule MRG-04).
    Denied,
}

/// What became of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// The fault to be recorded, and `DTF` of the device's context.
    pub(crate) fault: Option<(Fault, bool)>,
    /// What the IOMMU itself answers.
    pub(crate) response: Option<PageResponse>,
    /// The message is in the queue.
    pub(crate) queued: bool,
    /// Directory entries that were read (rule HPM-27).
    pub(crate) loads: u32,
}

/// Why a message is not in the queue.
struct Discarded {
    code: ResponseCode,
    fault: Option<(Fault, bool)>,
    /// `tc.PRPR` (rule PRI-09).
    prpr: bool,
}

/// Takes a page request of a device in: into the queue, or answered.
// DEVIATES: with no room to count another group the request is answered as if the queue were full, and `pqof` is not set
// (rules VT-10, PRI-08).
pub(crate) fn receive(
    device: DeviceId,
    request: &PageRequest,
    admission: Admission,
    registers: &mut Registers,
    signals: &mut Signals,
    memory: &mut impl GuestMemory,
) -> Received {
    let mut loads = 0;
    let room = admission == Admission::Granted;
    let queued = permit(device, request, admission, registers, memory, &mut loads).and_then(|prpr| {
        queue(device, request, room, registers, signals, memory).map_err(|code| Discarded { code, fault: None, prpr })
    });
    match queued {
        Ok(()) => Received { fault: None, response: None, queued: true, loads },
        Err(discarded) => {
            let response = response(request, &discarded);
            Received { fault: discarded.fault, response, queued: false, loads }
        }
    }
}

/// Whether guest and host let the device make page requests, and then `tc.PRPR` (rules PQ-10 to PQ-14).
fn permit(
    device: DeviceId,
    request: &PageRequest,
    admission: Admission,
    registers: &Registers,
    memory: &impl GuestMemory,
    loads: &mut u32,
) -> Result<bool, Discarded> {
    let mut trail = Trail::default();
    let reading = Reading::follow(registers, memory, device, &mut trail);
    *loads = trail.loads;
    let prpr = matches!(reading, Reading::Context(context) if context.tc.prpr());
    let denied = (admission == Admission::Denied).then(|| Fault::new(Cause::TransactionTypeDisallowed));
    let Some(fault) = reading.refuses(TransactionType::MessageRequest, request.process).or(denied) else {
        return Ok(prpr);
    };
    let code = match fault.cause {
        Cause::TransactionTypeDisallowed => ResponseCode::InvalidRequest,
        _ => ResponseCode::ResponseFailure,
    };
    Err(Discarded { code, fault: Some((fault, reading.dtf().unwrap_or(false))), prpr })
}

/// Writes the record, in the order of rules PQ-15 to PQ-20.
fn queue(
    device: DeviceId,
    request: &PageRequest,
    room: bool,
    registers: &mut Registers,
    signals: &mut Signals,
    memory: &mut impl GuestMemory,
) -> Result<(), ResponseCode> {
    let csr = registers.pqcsr();
    if !csr.pqon() || !csr.pqen() || csr.pqmf() {
        return Err(ResponseCode::ResponseFailure);
    }
    if csr.pqof() {
        return Err(ResponseCode::Success);
    }
    let ring = Ring::<16>::new(registers.pqb());
    let tail = registers.pqt();
    if ring.is_full(registers.pqh(), tail) {
        registers.set_pqcsr(csr.with_pqof(true));
        return Err(ResponseCode::Success);
    }
    if !room {
        return Err(ResponseCode::Success);
    }
    match View::of(registers).store(memory, ring.address(tail), request.record(device)) {
        Ok(()) => {
            registers.set_pqt(ring.next(tail));
            signals.page_requested(registers);
            Ok(())
        }
        // UNSPECIFIED: corrupted memory is a memory fault too (rule PRI-14).
        Err(MemoryFault::Access | MemoryFault::Corruption) => {
            registers.set_pqcsr(csr.with_pqmf(true));
            Err(ResponseCode::ResponseFailure)
        }
    }
}

/// The response of the IOMMU itself, which every message that wants one gets (rules PQ-21, PQ-23).
fn response(request: &PageRequest, discarded: &Discarded) -> Option<PageResponse> {
    let with_process = discarded.code == ResponseCode::ResponseFailure || discarded.prpr;
    request.payload.wants_response().then(|| PageResponse {
        process: request.process.filter(|_| with_process),
        group: request.payload.prgi(),
        code: discarded.code,
    })
}
