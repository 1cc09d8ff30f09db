//! Faults: what went wrong ([`Cause`]), for which kind of transaction ([`TransactionType`]).

pub(crate) mod cause;

pub use cause::Cause;

use crate::error::{MemoryFault, Violation};

/// What kind of transaction faulted: the 6-bit `TTYP` of a fault record. Source: "Fault record TTYP field".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransactionType {
    /// Untranslated read for execute.
    UntranslatedExecute,
    /// Untranslated read.
    UntranslatedRead,
    /// Untranslated write or AMO.
    UntranslatedWrite,
    /// Translated read for execute.
    TranslatedExecute,
    /// Translated read.
    TranslatedRead,
    /// Translated write or AMO.
    TranslatedWrite,
    /// PCIe ATS translation request.
    AtsTranslationRequest,
    /// PCIe message request, for example a Page Request.
    MessageRequest,
}

impl TransactionType {
    /// The 6-bit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::UntranslatedExecute => 1,
            Self::UntranslatedRead => 2,
            Self::UntranslatedWrite => 3,
            Self::TranslatedExecute => 5,
            Self::TranslatedRead => 6,
            Self::TranslatedWrite => 7,
            Self::AtsTranslationRequest => 8,
            Self::MessageRequest => 9,
        }
    }

    /// The type of a code, `None` for 0 (no inbound transaction), reserved and custom codes.
    #[must_use]
    pub const fn decode(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::UntranslatedExecute,
            2 => Self::UntranslatedRead,
            3 => Self::UntranslatedWrite,
            5 => Self::TranslatedExecute,
            6 => Self::TranslatedRead,
            7 => Self::TranslatedWrite,
            8 => Self::AtsTranslationRequest,
            9 => Self::MessageRequest,
            _ => return None,
        })
    }

    /// Whether the address is one as the device knows it.
    #[must_use]
    pub const fn is_untranslated(self) -> bool {
        matches!(self, Self::UntranslatedExecute | Self::UntranslatedRead | Self::UntranslatedWrite)
    }

    /// Whether the address is one the device got from an ATS translation.
    #[must_use]
    pub const fn is_translated(self) -> bool {
        matches!(self, Self::TranslatedExecute | Self::TranslatedRead | Self::TranslatedWrite)
    }

    /// The access fault cause of this access: 1, 5 or 7.
    #[must_use]
    pub const fn access_fault(self) -> Cause {
        self.access().access_fault()
    }

    /// The page fault cause of this access: 12, 13 or 15.
    #[must_use]
    pub const fn page_fault(self) -> Cause {
        self.access().page_fault()
    }

    pub(crate) const fn access(self) -> Access {
        match self {
            Self::UntranslatedExecute | Self::TranslatedExecute => Access::Execute,
            Self::UntranslatedWrite | Self::TranslatedWrite => Access::Write,
            _ => Access::Read,
        }
    }
}

/// What a device wants of a page: selects the cause (rule ACC-04).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Execute,
    Read,
    Write,
}

impl Access {
    pub(crate) const fn access_fault(self) -> Cause {
        match self {
            Self::Execute => Cause::InstructionAccessFault,
            Self::Read => Cause::ReadAccessFault,
            Self::Write => Cause::WriteAccessFault,
        }
    }

    pub(crate) const fn page_fault(self) -> Cause {
        match self {
            Self::Execute => Cause::InstructionPageFault,
            Self::Read => Cause::ReadPageFault,
            Self::Write => Cause::WritePageFault,
        }
    }

    pub(crate) const fn guest_page_fault(self) -> Cause {
        match self {
            Self::Execute => Cause::InstructionGuestPageFault,
            Self::Read => Cause::ReadGuestPageFault,
            Self::Write => Cause::WriteGuestPageFault,
        }
    }
}

/// What a walk failed with. Who caused it and how it is recorded is added where it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fault {
    /// Why.
    pub(crate) cause: Cause,
    /// More about a guest-page fault, else 0 (rule FR-08).
    pub(crate) iotval2: u64,
    /// What of the guest's context is wrong, where that is why. No register and no record shows it.
    pub(crate) reason: Option<&'static Violation>,
}

impl Fault {
    /// A fault that has nothing in `iotval2`.
    pub(crate) const fn new(cause: Cause) -> Self {
        Self { cause, iotval2: 0, reason: None }
    }

    /// The fault of a context that is not as it has to be.
    pub(crate) const fn because(cause: Cause, reason: &'static Violation) -> Self {
        Self { cause, iotval2: 0, reason: Some(reason) }
    }

    /// The fault of a failed read of a directory entry (rule FLT-01).
    pub(crate) const fn of_ddt_load(fault: MemoryFault) -> Self {
        match fault {
            MemoryFault::Access => Self::because(
                Cause::DdtLoadAccessFault,
                &Violation("the device directory", "leads to where the guest has no memory", "FLT-01"),
            ),
            MemoryFault::Corruption => Self::because(
                Cause::DdtDataCorruption,
                &Violation("the device directory", "leads to memory whose content is lost", "FLT-01"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transaction_code_decodes_to_the_type_that_has_it() {
        let defined: heapless::Vec<u8, 64> =
            (0..64).filter_map(TransactionType::decode).map(TransactionType::code).collect();
        assert_eq!(defined, [1, 2, 3, 5, 6, 7, 8, 9], "FQ-33, FQ-37, FQ-43, FQ-44, DISC-Q02, DX-20");
    }
}
