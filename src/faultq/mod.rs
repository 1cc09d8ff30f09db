//! The fault queue: how a fault becomes a record, and when it does not.

mod host;
pub mod record;

pub use host::{HostFault, Quirks, SecondStageFault};
pub use record::{FaultHead, FaultRecord};

use crate::addr::{Gpa, Iova};
use crate::backend::{GuestMemory, Ticket};
use crate::error::MemoryFault;
use crate::fault::{Cause, Fault, TransactionType};
use crate::id::{DeviceId, ProcessId};
use crate::interrupt::Signals;
use crate::mem::View;
use crate::regs::file::Registers;
use crate::ring::Ring;

/// The transaction a fault is about, as it came from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) device: DeviceId,
    pub(crate) access: TransactionType,
    pub(crate) process: Option<ProcessId>,
    pub(crate) privileged: bool,
    /// The IOVA; for a message request its message code (rule FQ-54).
    pub(crate) iova: Iova,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// A record was written.
    Yes,
    /// The last record, which the guest has not read yet, says the same (rule FQ-07).
    Coalesced,
    /// The queue is off, in error or full, or the context says not to record it.
    No,
}

/// The last fence of the host's that is complete, and how many fences and directories of the guest's are.
pub(crate) type Fenced = (Ticket, u64);

/// What the queue works on.
pub(crate) struct Env<'a, M> {
    pub(crate) registers: &'a mut Registers,
    pub(crate) signals: &'a mut Signals,
    pub(crate) memory: &'a mut M,
    /// Changes with every fence that is complete: the host's and the guest's.
    pub(crate) fenced: Fenced,
}

#[derive(Debug)]
pub(crate) struct FaultQueue {
    /// The last record written since the queue was turned on, and the last fence complete by then.
    last: Option<(FaultRecord, Fenced)>,
}

impl FaultQueue {
    pub(crate) const fn new() -> Self {
        Self { last: None }
    }

    /// Forgets the last record once the queue is off: its memory belongs to the guest again.
    #[inline]
    pub(crate) fn forget_if_off(&mut self, registers: &Registers) {
        if !registers.fqcsr().fqon() {
            self.last = None;
        }
    }

    /// The last record, if it stands for others that say the same.
    pub(crate) fn standing(&self, fenced: Fenced) -> Option<FaultRecord> {
        self.last.filter(|(_, then)| *then == fenced).map(|(record, _)| record)
    }

    /// The last record stands for others from now on, too.
    pub(crate) fn renew(&mut self, fenced: Fenced) {
        if let Some((_, then)) = &mut self.last {
            *then = fenced;
        }
    }

    /// A queue whose last record is this one; [`renew`](Self::renew) lets it stand for others.
    pub(crate) fn restored(last: Option<FaultRecord>, fenced: Fenced) -> Self {
        Self { last: last.map(|record| (record, fenced)) }
    }

    /// Reports the fault of a transaction. `dtf` is that of the device's context, `false` if none was found.
    pub(crate) fn report(
        &mut self,
        fault: Fault,
        origin: &Origin,
        dtf: bool,
        env: &mut Env<'_, impl GuestMemory>,
    ) -> Recorded {
        if dtf && !fault.cause.ignores_dtf() {
            return Recorded::No;
        }
        self.queue(record(fault, origin), env)
    }

    /// Reports that an interrupt message could not be stored (rule REG-MSI-15): caused by no transaction.
    pub(crate) fn report_msi_fault(&mut self, at: Gpa, env: &mut Env<'_, impl GuestMemory>) -> Recorded {
        let record =
            FaultRecord { head: FaultHead::of(Cause::MsiWriteAccessFault), custom: 0, iotval: at.get(), iotval2: 0 };
        self.queue(record, env)
    }

    /// Writes a record, in the order of rule FQ-02; that `DTF` was looked at before can not be observed.
    ///
    /// A record that says what the last one says, while that one is unread, stands for it (rule FQ-07): unless the
    /// guest has to be interrupted for it, or has completed a fence since, which may have mended what the last one
    /// was about.
    // UNSPECIFIED: how long one record stands for others (rules FQ-07, FR-12).
    fn queue(&mut self, record: FaultRecord, env: &mut Env<'_, impl GuestMemory>) -> Recorded {
        let Env { registers, signals, memory, fenced } = env;
        let csr = registers.fqcsr();
        if !csr.fqon() || csr.fqmf() || csr.fqof() {
            return Recorded::No;
        }
        let ring = Ring::<32>::new(registers.fqb());
        let (head, tail) = (registers.fqh(), registers.fqt());
        let told = ring.len(head, tail) != 0 && (!csr.fie() || registers.ipsr().fip());
        if told && self.last.is_some_and(|(last, then)| then == *fenced && last.says_the_same_as(&record)) {
            return Recorded::Coalesced;
        }
        if ring.is_full(head, tail) {
            registers.set_fqcsr(csr.with_fqof(true));
            return Recorded::No;
        }
        match View::of(registers).store(*memory, ring.address(tail), record) {
            Ok(()) => {
                self.last = Some((record, *fenced));
                registers.set_fqt(ring.next(tail));
                signals.fault_recorded(registers);
                Recorded::Yes
            }
            // UNSPECIFIED: corrupted memory is a memory fault too (rule FLT-10).
            Err(MemoryFault::Access | MemoryFault::Corruption) => {
                registers.set_fqcsr(csr.with_fqmf(true));
                Recorded::No
            }
        }
    }
}

/// The one place where a fault and its transaction become a record (rules FQ-20 to FQ-32).
fn record(fault: Fault, origin: &Origin) -> FaultRecord {
    let Origin { device, access, process, privileged, iova } = *origin;
    let mut head = FaultHead::of(fault.cause)
        .with_did(device)
        .with_pv(process.is_some())
        .with_pid(process.unwrap_or(ProcessId::truncate(0)))
        .with_is_priv(process.is_some() && privileged);
    // It fits, as above.
    let _ = head.set_ttyp_checked(access.code());
    FaultRecord { head, custom: 0, iotval: iova.get(), iotval2: fault.iotval2 }
}
