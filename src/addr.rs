//! Addresses: one type for each address space.

use core::fmt;

/// Bytes in a page, the unit of every table of the IOMMU.
pub const PAGE_SIZE: u64 = 4096;

/// The bits of an address within a page.
pub(crate) const PAGE_SHIFT: u8 = 12;

/// The low `bits` bits of an address.
#[inline]
pub(crate) fn low_bits(bits: u8) -> u64 {
    u64::MAX.checked_shl(bits.into()).map_or(u64::MAX, |above| !above)
}

/// The first and the last page of one range for two that overlap or follow each other without a gap.
#[inline]
pub(crate) fn join_pages(a: (Iova, Iova), b: (Iova, Iova)) -> Option<(Iova, Iova)> {
    // A range that ends with the address space is followed by nothing.
    let reaches = |last: Iova, first: Iova| first <= Iova::new(last.get().saturating_add(PAGE_SIZE));
    (reaches(a.1, b.0) && reaches(b.1, a.0)).then(|| (a.0.min(b.0), a.1.max(b.1)))
}

/// An address a device uses, before any translation: 64 bits, whole space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(u64);

/// An address in the physical address space **of the VM that drives this vIOMMU**.
///
/// It is what the guest's registers, directory entries and queues hold, what the specification calls an SPA when it
/// speaks of these structures, and what [`GuestMemory`](crate::GuestMemory) reads. To the host it is *not* a
/// physical address: it goes through the VM's second stage first. (In the public formats, where a host's own driver
/// builds entries for its hardware, it is an address of whoever owns the structure.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(u64);

/// An address in the guest-physical space **of a VM of the guest's own**: what the first stage gives and the second
/// takes, what the specification calls a GPA.
///
/// Only a guest that is offered a second stage has such a space. Without one it is the same as [`Gpa`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NestedGpa(u64);

/// The page number of a [`Gpa`]: 44 bits, as every `PPN` field of the guest's registers and tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppn(u64);

impl Iova {
    /// The address itself; any 64-bit number is one.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first byte of the page it lies in.
    #[must_use]
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }
}

impl Gpa {
    /// The address itself; whether the guest has memory there is the backend's to say.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first byte of the page it lies in.
    #[must_use]
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }

    /// The address `bytes` further on, or `None` past the end of the 64-bit space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// The address with the bits of `offset` set: how the specification forms the address of an entry of an aligned
    /// table (rule Q-03).
    #[must_use]
    pub(crate) const fn or(self, offset: u64) -> Self {
        Self(self.0 | offset)
    }
}

impl NestedGpa {
    /// The address itself; 64 bits.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The same address where there is no second stage (`iohgatp.MODE` Bare).
    #[must_use]
    pub(crate) const fn untranslated(self) -> Gpa {
        Gpa(self.0)
    }
}

impl Ppn {
    /// Width in bits.
    pub const BITS: u32 = 44;

    /// Takes the low 44 bits and drops the rest.
    #[must_use]
    pub const fn truncate(number: u64) -> Self {
        Self(number & (u64::MAX >> (64 - Self::BITS)))
    }

    /// The page number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first byte of the page.
    #[must_use]
    pub const fn base(self) -> Gpa {
        Gpa(self.0 << 12)
    }

    pub(crate) const fn from_bits(number: u64) -> Self {
        Self::truncate(number)
    }

    pub(crate) const fn into_bits(self) -> u64 {
        self.0
    }
}

macro_rules! in_hex {
    ($($name:ident)+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )+};
}

in_hex!(Iova Gpa NestedGpa Ppn);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_past_the_end_of_the_space_is_none() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa::new(u64::MAX - 1).checked_add(1), Some(Gpa::new(u64::MAX)));
    }

    #[test]
    fn a_ppn_keeps_44_bits_and_its_base_56() {
        assert_eq!(Ppn::truncate(u64::MAX).get(), 0xfff_ffff_ffff);
        assert_eq!(Ppn::truncate(u64::MAX).base().get(), 0xff_ffff_ffff_f000);
        assert_eq!(Iova::new(u64::MAX).page().get(), 0xffff_ffff_ffff_f000);
    }
}
