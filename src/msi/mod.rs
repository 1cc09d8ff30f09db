//! MSI page tables: where a message to a virtual interrupt file goes. [`pte`] is the format of the entries, `mrif` the
//! interrupt file in memory. Source: "Process to translate addresses of MSIs".

mod mrif;
pub mod pte;

pub(crate) use mrif::Mrif;
pub use pte::{FlatMsiPte, MrifMsiPte, MrifNotice, MsiPte};

use crate::addr::{Gpa, NestedGpa, low_bits};
use crate::backend::GuestMemory;
use crate::ddt::MsiContext;
use crate::error::MemoryFault;
use crate::fault::{Cause, Fault};
use crate::mem::View;

/// Where accesses to a virtual interrupt file go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Basic translate mode: this address.
    File(Gpa),
    /// MRIF mode: an interrupt file in memory.
    Mrif(Mrif),
}

impl MsiContext {
    /// Whether an address is in a page of a virtual interrupt file: all 52 bits of its page number are compared, so
    /// that no address above the guest-physical width is one (rule MSI-03, T45).
    pub(crate) const fn matches(&self, gpa: NestedGpa) -> bool {
        (gpa.get() >> 12) & !self.mask == self.pattern & !self.mask
    }

    /// Whether any page of the 2^`shift` bytes around an address is one of a virtual interrupt file (rule SZ-04).
    pub(crate) fn overlaps(&self, gpa: NestedGpa, shift: u8) -> bool {
        let within = self.mask | low_bits(shift) >> 12;
        (gpa.get() >> 12) & !within == self.pattern & !within
    }

    /// The entry for an address that matches.
    ///
    /// # Errors
    /// 261 and 270 if it can not be read.
    pub(crate) fn load(&self, memory: &impl GuestMemory, view: View, gpa: NestedGpa) -> Result<MsiPte, Fault> {
        // UNSPECIFIED: in a misaligned table, base and offset are ORed (rule MSI-06).
        let at = self.root.base().or(extract(gpa.get() >> 12, self.mask).wrapping_mul(16));
        view.load_new(memory, at).map_err(|fault| {
            Fault::new(match fault {
                MemoryFault::Access => Cause::MsiPteLoadAccessFault,
                MemoryFault::Corruption => Cause::MsiPtDataCorruption,
            })
        })
    }
}

impl MsiPte {
    /// Where the entry sends `gpa` (rules MSI-07 to MSI-10).
    ///
    /// # Errors
    /// 262 if it is not valid, 263 if it is misconfigured; `mrif`: MRIF mode is offered.
    pub(crate) fn destination(self, gpa: NestedGpa, mrif: bool) -> Result<Destination, Fault> {
        let misconfigured = Err(Fault::new(Cause::MsiPteMisconfigured));
        let flat = self.flat;
        if !flat.v() {
            return Err(Fault::new(Cause::MsiPteNotValid));
        }
        // UNSPECIFIED: there is no custom use of entries, so they are misconfigured (rule MSI-07).
        match (flat.c(), flat.m()) {
            (false, 3) if flat.rsvd0() == 0 && flat.rsvd1() == 0 => {
                Ok(Destination::File(flat.ppn().base().or(gpa.get() & 0xfff)))
            }
            (false, 1) if mrif => {
                let (file, notice) = (self.mrif(), self.notice);
                let reserved = file.rsvd0() != 0 || file.rsvd1() != 0 || notice.rsvd0() != 0 || notice.rsvd1() != 0;
                let mrif = Mrif::new(file, notice, gpa);
                if reserved { misconfigured } else { Ok(Destination::Mrif(mrif)) }
            }
            _ => misconfigured,
        }
    }
}

/// The bits of `value` that `mask` selects, packed at the low end (rule MSI-05).
fn extract(value: u64, mask: u64) -> u64 {
    let (mut left, mut packed, mut place) = (mask, 0_u64, 1_u64);
    while left != 0 {
        let lowest = left & left.wrapping_neg();
        if value & lowest != 0 {
            packed |= place;
        }
        place = place.wrapping_shl(1);
        left &= !lowest;
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ppn;

    #[test]
    fn the_selected_bits_are_packed_in_their_order() {
        // abcdefgh under 10100110 gives acfg, bit for bit.
        for (bit, packed) in [(7, 3), (5, 2), (2, 1), (1, 0)] {
            assert_eq!(extract(1 << bit, 0b1010_0110), 1 << packed, "MSI-05");
        }
        assert_eq!(extract(0b0101_1001, 0b1010_0110), 0, "MSI-05");
        assert_eq!((extract(u64::MAX, u64::MAX), extract(5, 0)), (u64::MAX, 0), "MSI-05");
    }

    #[test]
    fn a_range_overlaps_where_the_bits_above_it_agree() {
        let msi = MsiContext { root: Ppn::truncate(0), mask: 0x3, pattern: 0x2_8000 };
        let at = |address: u64, shift| msi.overlaps(NestedGpa::new(address), shift);
        assert!(at(0x2800_3000, 12) && !at(0x2800_4000, 12) && !at(0x27ff_f000, 12), "SZ-04");
        assert!(at(0x2800_4000, 21) && at(0x281f_f000, 21) && !at(0x2820_0000, 21), "SZ-04");
        assert!(at(0, 30) && !at(0x4000_0000, 30) && at(u64::MAX, 64), "SZ-04");
        // A sparse mask: pages of the pattern lie in both halves of a range.
        let sparse = MsiContext { mask: 1 << 20, ..msi };
        assert!(sparse.overlaps(NestedGpa::new(0x1_2800_0000), 12), "SZ-04");
        assert!(!sparse.overlaps(NestedGpa::new(0x2_2800_0000), 12), "SZ-04");
    }

    #[test]
    fn an_address_with_bits_above_the_guest_physical_width_matches_nothing() {
        let msi = MsiContext { root: Ppn::truncate(0), mask: 0, pattern: 0x2_8000 };
        assert!(msi.matches(NestedGpa::new(0x2800_0abc)), "MSI-03");
        for bit in 41..64 {
            assert!(!msi.matches(NestedGpa::new(0x2800_0000 | 1 << bit)), "MSI-03, T45: bit {bit}");
        }
    }
}
