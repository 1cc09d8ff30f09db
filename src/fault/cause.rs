//! The causes of faults and their codes.

/// Why a transaction was not carried out: the 12-bit `CAUSE` of a fault record. Source: "Fault record CAUSE field".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Instruction access fault.
    InstructionAccessFault,
    /// Read address misaligned.
    ReadMisaligned,
    /// Read access fault.
    ReadAccessFault,
    /// Write/AMO address misaligned.
    WriteMisaligned,
    /// Write/AMO access fault.
    WriteAccessFault,
    /// Instruction page fault.
    InstructionPageFault,
    /// Read page fault.
    ReadPageFault,
    /// Write/AMO page fault.
    WritePageFault,
    /// Instruction guest page fault.
    InstructionGuestPageFault,
    /// Read guest-page fault.
    ReadGuestPageFault,
    /// Write/AMO guest-page fault.
    WriteGuestPageFault,
    /// All inbound transactions disallowed.
    AllInboundDisallowed,
    /// DDT entry load access fault.
    DdtLoadAccessFault,
    /// DDT entry not valid.
    DdtNotValid,
    /// DDT entry misconfigured.
    DdtMisconfigured,
    /// Transaction type disallowed.
    TransactionTypeDisallowed,
    /// MSI PTE load access fault.
    MsiPteLoadAccessFault,
    /// MSI PTE not valid.
    MsiPteNotValid,
    /// MSI PTE misconfigured.
    MsiPteMisconfigured,
    /// MRIF access fault.
    MrifAccessFault,
    /// PDT entry load access fault.
    PdtLoadAccessFault,
    /// PDT entry not valid.
    PdtNotValid,
    /// PDT entry misconfigured.
    PdtMisconfigured,
    /// DDT data corruption.
    DdtDataCorruption,
    /// PDT data corruption.
    PdtDataCorruption,
    /// MSI PT data corruption.
    MsiPtDataCorruption,
    /// MSI MRIF data corruption.
    MrifDataCorruption,
    /// Internal data path error.
    InternalDataPathError,
    /// IOMMU MSI write access fault.
    MsiWriteAccessFault,
    /// First/second-stage PT data corruption.
    PtDataCorruption,
}

impl Cause {
    /// The 12-bit code.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::InstructionAccessFault => 1,
            Self::ReadMisaligned => 4,
            Self::ReadAccessFault => 5,
            Self::WriteMisaligned => 6,
            Self::WriteAccessFault => 7,
            Self::InstructionPageFault => 12,
            Self::ReadPageFault => 13,
            Self::WritePageFault => 15,
            Self::InstructionGuestPageFault => 20,
            Self::ReadGuestPageFault => 21,
            Self::WriteGuestPageFault => 23,
            Self::AllInboundDisallowed => 256,
            Self::DdtLoadAccessFault => 257,
            Self::DdtNotValid => 258,
            Self::DdtMisconfigured => 259,
            Self::TransactionTypeDisallowed => 260,
            Self::MsiPteLoadAccessFault => 261,
            Self::MsiPteNotValid => 262,
            Self::MsiPteMisconfigured => 263,
            Self::MrifAccessFault => 264,
            Self::PdtLoadAccessFault => 265,
            Self::PdtNotValid => 266,
            Self::PdtMisconfigured => 267,
            Self::DdtDataCorruption => 268,
            Self::PdtDataCorruption => 269,
            Self::MsiPtDataCorruption => 270,
            Self::MrifDataCorruption => 271,
            Self::InternalDataPathError => 272,
            Self::MsiWriteAccessFault => 273,
            Self::PtDataCorruption => 274,
        }
    }

    /// The cause of a code, `None` for reserved and custom codes.
    #[must_use]
    pub const fn decode(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::InstructionAccessFault,
            4 => Self::ReadMisaligned,
            5 => Self::ReadAccessFault,
            6 => Self::WriteMisaligned,
            7 => Self::WriteAccessFault,
            12 => Self::InstructionPageFault,
            13 => Self::ReadPageFault,
            15 => Self::WritePageFault,
            20 => Self::InstructionGuestPageFault,
            21 => Self::ReadGuestPageFault,
            23 => Self::WriteGuestPageFault,
            256 => Self::AllInboundDisallowed,
            257 => Self::DdtLoadAccessFault,
            258 => Self::DdtNotValid,
            259 => Self::DdtMisconfigured,
            260 => Self::TransactionTypeDisallowed,
            261 => Self::MsiPteLoadAccessFault,
            262 => Self::MsiPteNotValid,
            263 => Self::MsiPteMisconfigured,
            264 => Self::MrifAccessFault,
            265 => Self::PdtLoadAccessFault,
            266 => Self::PdtNotValid,
            267 => Self::PdtMisconfigured,
            268 => Self::DdtDataCorruption,
            269 => Self::PdtDataCorruption,
            270 => Self::MsiPtDataCorruption,
            271 => Self::MrifDataCorruption,
            272 => Self::InternalDataPathError,
            273 => Self::MsiWriteAccessFault,
            274 => Self::PtDataCorruption,
            _ => return None,
        })
    }

    /// Whether a record is written although the device context says `DTF`.
    #[must_use]
    pub const fn ignores_dtf(self) -> bool {
        matches!(
            self,
            Self::AllInboundDisallowed
                | Self::DdtLoadAccessFault
                | Self::DdtNotValid
                | Self::DdtMisconfigured
                | Self::DdtDataCorruption
                | Self::InternalDataPathError
                | Self::MsiWriteAccessFault
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_code_decodes_to_the_cause_that_has_it() {
        let defined = (0..4096).filter_map(Cause::decode).inspect(|cause| {
            assert_eq!(Cause::decode(cause.code()), Some(*cause));
        });
        // 1, 4-7, 12, 13, 15, 20, 21, 23 and 256 to 274.
        assert_eq!(defined.count(), 11 + 19, "FR-02");
    }

    #[test]
    fn dtf_leaves_exactly_the_seven_causes_of_the_specification() {
        let left: heapless::Vec<u16, 32> =
            (0..4096).filter(|&code| Cause::decode(code).is_some_and(Cause::ignores_dtf)).collect();
        assert_eq!(left, [256, 257, 258, 259, 268, 272, 273], "FQ-46");
    }
}
