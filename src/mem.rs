//! The one place that reads and writes records in guest memory: each is copied once, whole, in the guest's byte order,
//! and nowhere outside the physical address size the guest was shown.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::Gpa;
use crate::backend::{GuestMemory, Post};
use crate::error::MemoryFault;
use crate::regs::file::{Registers, address_mask};

/// How the guest's structures are to be read: what `fctl.BE` and `capabilities.PAS` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    big_endian: bool,
    address_mask: u64,
}

impl View {
    /// The view of the structures `fctl.BE` governs (rules EDN-01, EDN-03).
    pub(crate) fn of(registers: &Registers) -> Self {
        Self { big_endian: registers.fctl().be(), address_mask: address_mask(registers.capabilities().pas()) }
    }

    /// Reads one record, or a slice of them: a single load, nothing is read twice (rule DDT-17).
    pub(crate) fn load<T>(self, memory: &impl GuestMemory, at: Gpa, record: &mut T) -> Result<(), MemoryFault>
    where
        T: FromBytes + IntoBytes + ?Sized,
    {
        self.check(at, size_of_val(record))?;
        let words = words_mut(record);
        memory.load(at, words)?;
        self.swap(words);
        Ok(())
    }

    /// Reads one record into a fresh copy.
    pub(crate) fn load_new<T>(self, memory: &impl GuestMemory, at: Gpa) -> Result<T, MemoryFault>
    where
        T: FromBytes + IntoBytes,
    {
        let mut record = T::new_zeroed();
        self.load(memory, at, &mut record)?;
        Ok(record)
    }

    /// Writes one record.
    pub(crate) fn store<T>(self, memory: &mut impl GuestMemory, at: Gpa, mut record: T) -> Result<(), MemoryFault>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.check(at, size_of::<T>())?;
        let words = words_mut(&mut record);
        self.swap(words);
        memory.store(at, words)
    }

    /// Writes 4 bytes of fence data or of an MSI (rules END-09, END-10).
    pub(crate) fn post(self, memory: &mut impl GuestMemory, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        self.check(at, size_of::<u32>())?;
        memory.post(at, if self.big_endian { data.swap_bytes() } else { data }, why)
    }

    /// An address past `PAS` is an access fault (rule REG-CAP-46).
    fn check(self, at: Gpa, bytes: usize) -> Result<(), MemoryFault> {
        let beyond_first = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_sub(1);
        match at.checked_add(beyond_first) {
            Some(last) if last.get() & !self.address_mask == 0 => Ok(()),
            _ => Err(MemoryFault::Access),
        }
    }

    fn swap(self, words: &mut [u64]) {
        if self.big_endian {
            for word in words {
                *word = word.swap_bytes();
            }
        }
    }
}

/// A record as the 64-bit words it is made of.
fn words_mut<T: FromBytes + IntoBytes + ?Sized>(record: &mut T) -> &mut [u64] {
    // Every record is `repr(C)` of 64-bit fields, so this is always the whole of it.
    <[u64]>::mut_from_bytes(record.as_mut_bytes()).unwrap_or_default()
}
