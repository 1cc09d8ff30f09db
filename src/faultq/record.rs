//! Format of the fault record.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Iova;
use crate::fault::{Cause, TransactionType};
use crate::id::{DeviceId, ProcessId};

/// A fault record: 32 bytes, four 64-bit words. Source: "Fault/Event-Queue (FQ)".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct FaultRecord {
    /// Who and why.
    pub head: FaultHead,
    /// Bits 127:64: custom in the low, reserved in the high half; 0.
    pub custom: u64,
    /// What the cause says: mostly the IOVA.
    pub iotval: u64,
    /// More about a guest-page fault, else 0.
    pub iotval2: u64,
}

const _: () = assert!(size_of::<FaultRecord>() == 32);

impl FaultRecord {
    /// Whether both records say the same of one page; where `iotval` is no IOVA, of exactly the same.
    #[must_use]
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        let place = |record: &Self| match TransactionType::decode(record.head.ttyp()) {
            None | Some(TransactionType::MessageRequest) => record.iotval,
            Some(_) => Iova::new(record.iotval).page().get(),
        };
        self.head == other.head && place(self) == place(other) && self.iotval2 == other.iotval2
    }
}

/// Bits 63:0 of a fault record. `cause` and `ttyp` are the codes of [`Cause`] and
/// [`TransactionType`].
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FaultHead {
    /// Cause code.
    #[bits(12)]
    pub cause: u16,
    /// `process_id` of the transaction, if it had one.
    #[bits(20, default = ProcessId::truncate(0))]
    pub pid: ProcessId,
    /// The transaction had a `process_id`.
    pub pv: bool,
    /// Supervisor privilege was requested.
    pub is_priv: bool,
    /// Transaction type code.
    #[bits(6)]
    pub ttyp: u8,
    /// `device_id` of the transaction.
    #[bits(24, default = DeviceId::truncate(0))]
    pub did: DeviceId,
}

impl FaultHead {
    pub(super) fn of(cause: Cause) -> Self {
        let mut head = Self::new();
        // Every code fits. The compiler, which keeps them in a table, does not see that, and would keep a panic for
        // those that do not.
        let _ = head.set_cause_checked(cause.code());
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let bits = |head: FaultHead| head.into_bits();
        assert_eq!(bits(FaultHead::new().with_cause(0xfff)), 0xfff, "FQ-20");
        assert_eq!(bits(FaultHead::new().with_pid(ProcessId::truncate(0xf_ffff))), 0xffff_f000, "FQ-21");
        assert_eq!(bits(FaultHead::new().with_pv(true)), 1 << 32, "FQ-22");
        assert_eq!(bits(FaultHead::new().with_is_priv(true)), 1 << 33, "FQ-23");
        assert_eq!(bits(FaultHead::new().with_ttyp(0x3f)), 0x3f << 34, "FQ-24");
        assert_eq!(bits(FaultHead::new().with_did(DeviceId::truncate(0xff_ffff))), 0xff_ffff << 40, "FQ-25");
    }

    #[test]
    fn the_words_are_in_the_order_of_the_record() {
        let record = FaultRecord { head: FaultHead::from_bits(1), custom: 2, iotval: 3, iotval2: 4 };
        let words: [u64; 4] = zerocopy::transmute!(record);
        assert_eq!(words, [1, 2, 3, 4], "FQ-28, FQ-29");
    }
}
