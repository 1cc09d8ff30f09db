//! A fault as the host's physical IOMMU reported it.

use crate::addr::Iova;
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
}

/// Fields a physical IOMMU is known to report wrongly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quirks {
    /// `PV` is set also for transactions without a `process_id`.
    pub process_valid: bool,
    /// `TTYP` does not tell reads from writes; the cause does, where it can.
    pub transaction_type: bool,
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
}

impl HostFault {
    /// A fault of a transaction without a `process_id`.
    #[must_use]
    pub const fn new(cause: Cause, access: TransactionType, iova: Iova) -> Self {
        Self { cause, access, process: None, privileged: false, iova }
    }

    /// The same of a transaction with a `process_id`.
    #[must_use]
    pub const fn with_process(self, process: ProcessId, privileged: bool) -> Self {
        Self { process: Some(process), privileged, ..self }
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
        Some(Self {
            cause,
            access,
            process,
            privileged: process.is_some() && head.is_priv(),
            iova: Iova::new(record.iotval),
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
