//! What makes a page-table entry good, and what makes it enough for an access.

use crate::addr::{Ppn, low_bits};
use crate::ioatc::Leaf;
use crate::regs::Capabilities;

use super::pte::Pte;
use super::scheme::Scheme;

/// Which bits of an entry mean something (rules PTE-04, PTE-05); Svnapot always is there (rule PTE-06).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extensions {
    /// Bits that have to be 0.
    reserved: u64,
}

impl Extensions {
    pub(crate) const fn of(capabilities: Capabilities) -> Self {
        let svpbmt = if capabilities.svpbmt() { 0 } else { PBMT };
        let svrsw60t59b = if capabilities.svrsw60t59b() { 0 } else { RSW60T59 };
        Self { reserved: RESERVED | svpbmt | svrsw60t59b }
    }
}

const RESERVED: u64 = 0x1f << 54;
const RSW60T59: u64 = Pte::new().with_rsw60t59(3).into_bits();
const PBMT: u64 = Pte::new().with_pbmt(3).into_bits();
/// What an entry that is no leaf has to leave 0 (rule PTE-07).
const LEAFS_ALONE: u64 = PBMT | Pte::new().with_a(true).with_d(true).with_u(true).with_n(true).into_bits();

/// A good entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Leads to the table of the next level.
    Table {
        /// Its page.
        ppn: Ppn,
        /// Level of the entries in it.
        level: u8,
    },
    /// Maps 2^`shift` bytes.
    Leaf { shift: u8 },
}

/// What makes an access of a table or of the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Implicit {
    /// The device's own access.
    No,
    /// The read of a directory entry or first-stage entry.
    Read,
    /// The update of A or D in a first-stage entry.
    Write,
}

impl Implicit {
    /// Bits 1:0 of `iotval2` (rule FR-08).
    pub(super) const fn iotval2(self) -> u64 {
        match self {
            Self::No => 0,
            Self::Read => 1,
            Self::Write => 3,
        }
    }
}

/// What an access needs of the leaf entries.
///
/// An ATS translation request needs no permission: it is told which ones there are (rule ATS-10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties of an access")]
pub(crate) struct Need {
    /// R, W and X, as far as it needs them.
    pub(crate) bits: Pte,
    /// D is to be set where W is (rule AD-01).
    pub(crate) dirties: bool,
    pub(crate) supervisor: bool,
    /// The access is an instruction fetch: never of a supervisor in a user's page (rule S1-11).
    pub(crate) fetches: bool,
    /// Supervisor accesses may touch user pages, fetches excepted (`SUM`).
    pub(crate) sum: bool,
    pub(crate) implicit: Implicit,
}

impl Need {
    const NOTHING: Self = Self {
        bits: Pte::new(),
        dirties: false,
        supervisor: false,
        fetches: false,
        sum: false,
        implicit: Implicit::No,
    };

    /// What reading a table entry needs of the second stage (rules S2-08, PDT-09).
    pub(crate) const IMPLICIT_READ: Self =
        Self { bits: Pte::new().with_r(true), implicit: Implicit::Read, ..Self::NOTHING };

    /// What updating a first-stage entry needs of the second stage (rules S2-09, AD-07).
    pub(super) const IMPLICIT_WRITE: Self =
        Self { bits: Pte::new().with_w(true), dirties: true, implicit: Implicit::Write, ..Self::NOTHING };

    /// Whether a first-stage leaf allows it (rules S1-11, S1-12).
    #[inline]
    pub(super) const fn allowed_by_first(self, pte: Pte) -> bool {
        let privilege = match (self.supervisor, pte.u()) {
            (false, user_page) => user_page,
            (true, false) => true,
            (true, true) => self.sum && !self.fetches,
        };
        privilege && self.granted_by(pte)
    }

    /// Whether a second-stage leaf allows it: always as a user (rules S2-05, S2-06).
    #[inline]
    pub(super) const fn allowed_by_second(self, pte: Pte) -> bool {
        pte.u() && self.granted_by(pte)
    }

    const fn granted_by(self, pte: Pte) -> bool {
        self.bits.into_bits() & !pte.into_bits() == 0
    }

    /// The leaf with A and D as this access leaves them (rules AD-01, AD-04).
    #[inline]
    pub(super) const fn marks(self, pte: Pte) -> Pte {
        pte.with_a(true).with_d(pte.d() || (self.dirties && pte.w()))
    }
}

/// Judges an entry at `level` (rules PTE-02 to PTE-08). `None`: page fault, or guest-page fault.
#[inline]
pub(super) fn judge(pte: Pte, level: u8, scheme: Scheme, extensions: Extensions) -> Option<Entry> {
    let reserved = pte.into_bits() & extensions.reserved != 0 || pte.pbmt() == 3;
    if !pte.v() || (!pte.r() && pte.w()) || reserved {
        return None;
    }
    if !pte.r() && !pte.x() {
        let level = level.checked_sub(1)?;
        return (pte.into_bits() & LEAFS_ALONE == 0).then(|| Entry::Table { ppn: pte.ppn(), level });
    }
    let shift = match (pte.n(), level) {
        (false, _) => scheme.shift(level),
        // 64 KiB is the one size of a NAPOT leaf.
        (true, 0) if pte.ppn().get() & 0xf == 8 => NAPOT_SHIFT,
        (true, _) => return None,
    };
    let aligned = pte.n() || pte.ppn().base().get() & low_bits(shift) == 0;
    aligned.then_some(Entry::Leaf { shift })
}

/// A NAPOT leaf maps 64 KiB.
const NAPOT_SHIFT: u8 = 16;

impl Leaf {
    /// Where it maps `address` to.
    #[inline]
    pub(super) fn output(&self, address: u64) -> u64 {
        let offset = low_bits(self.shift);
        self.pte.ppn().base().get() & !offset | address & offset
    }
}
