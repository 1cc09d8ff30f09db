//! A fault as the host's physical IOMMU reported it.

use crate::addr::{Gpa, Iova};
use crate::fault::{Cause, TransactionType};
use crate::id::ProcessId;

use super::record::FaultRecord;

/// A fault of an attached device, drained from the physical fault queue. What the guest is shown of it is decided by
/// [`report_fault`](crate::VIommu::report_fault).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct HostFault {
    /// What the physical IOMMU says went wrong.
    pub cause: Cause,
    /// The transaction.
    pub access: TransactionType,
    /// Its `process_id`, if it carried one.
    pub process: Option<ProcessId>,
    /// It asked for supervisor privilege; only with a `process_id`.
    pub privileged: bool,
    /// The address the device used; for a message request the message code.
    pub iova: Iova,
    /// What a guest-page fault (20, 21, 23) was about, where the host knows.
    pub second_stage: Option<SecondStageFault>,
}

/// Where the host's second stage stopped a walk of the physical IOMMU: `iotval2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SecondStageFault {
    /// The address in the VM's physical space that has no good mapping; its lowest two bits are 0.
    pub at: Gpa,
    /// It is that of an entry of the guest's tables, and not what the access goes to.
    pub implicit: bool,
}

impl SecondStageFault {
    /// Of the access itself, at this address.
    #[must_use]
    pub const fn new(at: Gpa) -> Self {
        Self { at: Gpa::new(at.get() & !3), implicit: false }
    }

    /// The same, of an entry of the guest's tables or not.
    #[must_use]
    pub const fn with_implicit(self, implicit: bool) -> Self {
        Self { implicit, ..self }
    }
}

/// Fields a physical IOMMU is known to report wrongly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quirks {
    /// `PV` is set also for transactions without a `process_id`.
    pub process_valid: bool,
    /// `TTYP` does not tell reads from writes; the cause does, where it can.
    pub transaction_type: bool,
    /// `iotval2` does not tell what a guest-page fault was about.
    pub second_stage: bool,
}

impl Quirks {
    /// States [`process_valid`](Self::process_valid).
    #[must_use]
    pub const fn with_process_valid(self, process_valid: bool) -> Self {
        Self { process_valid, ..self }
    }

    /// States [`transaction_type`](Self::transaction_type).
    #[must_use]
    pub const fn with_transaction_type(self, transaction_type: bool) -> Self {
        Self { transaction_type, ..self }
    }

    /// States [`second_stage`](Self::second_stage).
    #[must_use]
    pub const fn with_second_stage(self, second_stage: bool) -> Self {
        Self { second_stage, ..self }
    }
}

impl HostFault {
    /// A fault of a transaction without a `process_id`.
    #[must_use]
    pub const fn new(cause: Cause, access: TransactionType, iova: Iova) -> Self {
        Self { cause, access, process: None, privileged: false, iova, second_stage: None }
    }

    /// The same of a transaction with a `process_id`.
    #[must_use]
    pub const fn with_process(self, process: ProcessId, privileged: bool) -> Self {
        Self { process: Some(process), privileged, ..self }
    }

    /// The same with what a guest-page fault was about.
    #[must_use]
    pub const fn with_second_stage(self, second_stage: SecondStageFault) -> Self {
        Self { second_stage: Some(second_stage), ..self }
    }

    /// Reads a record of a physical fault queue. `None` for what concerns the host alone: records of no transaction,
    /// undefined codes, and the causes 256, 272 and 273. The physical `device_id` is for the host to map.
    #[must_use]
    pub fn from_record(record: &FaultRecord, quirks: Quirks) -> Option<Self> {
        let head = record.head;
        let cause = Cause::decode(head.cause())?;
        let reported = TransactionType::decode(head.ttyp())?;
        if matches!(cause, Cause::AllInboundDisallowed | Cause::InternalDataPathError | Cause::MsiWriteAccessFault) {
            return None;
        }
        let access = if quirks.transaction_type { access_of(cause).unwrap_or(reported) } else { reported };
        let process = (head.pv() && !quirks.process_valid).then(|| head.pid());
        let guest_page =
            matches!(cause, Cause::InstructionGuestPageFault | Cause::ReadGuestPageFault | Cause::WriteGuestPageFault);
        // Bit 0 of iotval2, below the address (rule FR-08).
        let implicit = record.iotval2 & 1 != 0;
        let second_stage = SecondStageFault::new(Gpa::new(record.iotval2)).with_implicit(implicit);
        Some(Self {
            cause,
            access,
            process,
            privileged: process.is_some() && head.is_priv(),
            iova: Iova::new(record.iotval),
            second_stage: (guest_page && !quirks.second_stage).then_some(second_stage),
        })
    }
}

/// The untranslated access whose cause this is, where the cause tells (rule ACC-04).
const fn access_of(cause: Cause) -> Option<TransactionType> {
    Some(match cause {
        Cause::InstructionAccessFault | Cause::InstructionPageFault | Cause::InstructionGuestPageFault => {
            TransactionType::UntranslatedExecute
        }
        Cause::ReadAccessFault | Cause::ReadPageFault | Cause::ReadGuestPageFault | Cause::ReadMisaligned => {
            TransactionType::UntranslatedRead
        }
        Cause::WriteAccessFault | Cause::WritePageFault | Cause::WriteGuestPageFault | Cause::WriteMisaligned => {
            TransactionType::UntranslatedWrite
        }
        _ => return None,
    })
}
