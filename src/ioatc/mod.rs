//! What translation remembers: bounded sets of entries, matched exactly as the invalidation commands name them.
//!
//! First and second stage are remembered apart, each with its leaf and its non-leaf entries: an `IOTINVAL.VMA` touches
//! the first kind only, an `IOTINVAL.GVMA` the second, and neither has to know what the other stage made of an address.
//! An entry is what a walk found to be good; nothing with V = 0 gets in (rule CA-02). Source: "Caching in-memory data
//! structures".

use heapless::Vec;

use crate::addr::{Gpa, NestedGpa, PAGE_SHIFT, low_bits};
use crate::cmdq::command::PageRange;
use crate::id::{FirstStageMode, Gscid, Pscid, SecondStageMode};
use crate::msi::pte::MsiPte;
use crate::pt::pte::Pte;

/// At most `N` entries; a new one takes the place of each in turn.
#[derive(Debug)]
pub(crate) struct Set<T, const N: usize> {
    entries: Vec<T, N>,
    victim: usize,
}

impl<T, const N: usize> Set<T, N> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), victim: 0 }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter()
    }

    /// Puts an entry in, in the place of one that is the `same`, if there is one.
    pub(crate) fn insert(&mut self, entry: T, same: impl Fn(&T) -> bool) {
        if let Some(old) = self.entries.iter_mut().find(|old| same(old)) {
            *old = entry;
        } else if let Err(entry) = self.entries.push(entry) {
            self.victim = self.victim.wrapping_add(1).checked_rem(N).unwrap_or(0);
            if let Some(victim) = self.entries.get_mut(self.victim) {
                *victim = entry;
            }
        }
    }

    /// Forgets the entries that are meant.
    pub(crate) fn forget(&mut self, meant: impl Fn(&T) -> bool) {
        self.entries.retain(|entry| !meant(entry));
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Which addresses an invalidation is about: the pages of a range, or all.
pub(crate) type Range = Option<PageRange>;

/// A leaf entry, and how far above it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) pte: Pte,
    /// The leaf maps 2^`shift` bytes.
    pub(crate) shift: u8,
    /// First stage: it, or an entry above it, has G.
    pub(crate) global: bool,
}

/// A non-leaf entry: where the table of the next level is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table<A> {
    pub(crate) at: A,
    /// Level of the entries in it, 0 being the last.
    pub(crate) level: u8,
    /// First stage: it, or an entry above it, has G.
    pub(crate) global: bool,
}

/// A first-stage address space: those without a second stage are apart from those of each VM (rule CA-04).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) gscid: Option<Gscid>,
    pub(crate) pscid: Pscid,
    /// Where two tables of different schemes have one tag, an entry of one is none of the other.
    pub(crate) mode: FirstStageMode,
}

/// A second-stage address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecondSpace {
    pub(crate) gscid: Gscid,
    /// As above.
    pub(crate) mode: SecondStageMode,
}

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content<A> {
    Leaf(Leaf),
    Table(Table<A>),
}

/// An entry of the stage whose spaces are `S` and whose tables are at `A`.
#[derive(Clone, Copy, Debug)]
struct Entry<S, A> {
    space: S,
    /// First address it is about.
    base: u64,
    /// It is about 2^`shift` addresses.
    shift: u8,
    content: Content<A>,
}

impl<S: PartialEq, A> Entry<S, A> {
    fn holds(&self, space: &S, address: u64) -> bool {
        self.space == *space && aligned(address, self.shift) == self.base
    }

    /// Whether an invalidation of `range` is about it: a leaf entry if they overlap, a non-leaf entry if the
    /// invalidation is about those too (rules VMA-11 to VMA-14).
    fn is_meant(&self, range: Range) -> bool {
        range.is_none_or(|range| {
            (matches!(self.content, Content::Leaf(_)) || range.non_leaf())
                && self.base <= range.last().get()
                && range.first().get() <= self.base | low_bits(self.shift)
        })
    }

    fn is_global(&self) -> bool {
        match &self.content {
            Content::Leaf(leaf) => leaf.global,
            Content::Table(table) => table.global,
        }
    }
}

/// The entries of one stage.
#[derive(Debug)]
pub(crate) struct Stage<S, A, const N: usize>(Set<Entry<S, A>, N>);

impl<S: Copy + PartialEq, A: Copy, const N: usize> Stage<S, A, N> {
    const fn new() -> Self {
        Self(Set::new())
    }

    pub(crate) fn leaf(&self, space: &S, address: u64) -> Option<Leaf> {
        self.0.iter().filter(|entry| entry.holds(space, address)).find_map(|entry| match entry.content {
            Content::Leaf(leaf) => Some(leaf),
            Content::Table(_) => None,
        })
    }

    /// The lowest table on the way to an address.
    pub(crate) fn table(&self, space: &S, address: u64) -> Option<Table<A>> {
        let tables =
            self.0.iter().filter(|entry| entry.holds(space, address)).filter_map(|entry| match entry.content {
                Content::Table(table) => Some(table),
                Content::Leaf(_) => None,
            });
        tables.min_by_key(|table| table.level)
    }

    pub(crate) fn insert_leaf(&mut self, space: &S, address: u64, leaf: Leaf) {
        self.insert(space, address, leaf.shift, Content::Leaf(leaf));
    }

    /// `shift`: the table is about 2^`shift` addresses.
    pub(crate) fn insert_table(&mut self, space: &S, address: u64, shift: u8, table: Table<A>) {
        self.insert(space, address, shift, Content::Table(table));
    }

    fn insert(&mut self, space: &S, address: u64, shift: u8, content: Content<A>) {
        let entry = Entry { space: *space, base: aligned(address, shift), shift, content };
        let is_leaf = |entry: &Entry<S, A>| matches!(entry.content, Content::Leaf(_));
        self.0.insert(entry, |old| {
            old.space == *space && old.base == entry.base && old.shift == shift && is_leaf(old) == is_leaf(&entry)
        });
    }
}

/// An MSI page-table entry in basic translate mode, of a page of a VM.
#[derive(Clone, Copy, Debug)]
struct MsiEntry {
    gscid: Gscid,
    page: u64,
    pte: MsiPte,
}

/// The entries of both stages, and of MSI page tables, which go with the second (rule MSI-13).
#[derive(Debug)]
pub(crate) struct Ioatc<const N: usize> {
    pub(crate) first: Stage<Space, NestedGpa, N>,
    pub(crate) second: Stage<SecondSpace, Gpa, N>,
    msi: Set<MsiEntry, N>,
}

impl<const N: usize> Ioatc<N> {
    pub(crate) const fn new() -> Self {
        Self { first: Stage::new(), second: Stage::new(), msi: Set::new() }
    }

    pub(crate) fn msi(&self, gscid: Gscid, gpa: NestedGpa) -> Option<MsiPte> {
        let page = aligned(gpa.get(), PAGE_SHIFT);
        self.msi.iter().find(|entry| entry.gscid == gscid && entry.page == page).map(|entry| entry.pte)
    }

    pub(crate) fn insert_msi(&mut self, gscid: Gscid, gpa: NestedGpa, pte: MsiPte) {
        let page = aligned(gpa.get(), PAGE_SHIFT);
        self.msi.insert(MsiEntry { gscid, page, pte }, |old| old.gscid == gscid && old.page == page);
    }

    /// `IOTINVAL.VMA`: first-stage entries, of the spaces without a second stage or of those of one VM (rules VMA-01
    /// to VMA-08).
    pub(crate) fn forget_first(&mut self, gscid: Option<Gscid>, pscid: Option<Pscid>, range: Range) {
        self.first.0.forget(|entry| {
            entry.space.gscid == gscid
                && pscid.is_none_or(|pscid| entry.space.pscid == pscid && !entry.is_global())
                && entry.is_meant(range)
        });
    }

    /// `IOTINVAL.GVMA`: second-stage entries of one VM, or of all (rules GVM-01 to GVM-03).
    pub(crate) fn forget_second(&mut self, gscid: Option<Gscid>, range: Range) {
        self.second.0.forget(|entry| gscid.is_none_or(|gscid| entry.space.gscid == gscid && entry.is_meant(range)));
        let is_within = |page| range.is_none_or(|range| (range.first().get()..=range.last().get()).contains(&page));
        self.msi.forget(|entry| gscid.is_none_or(|gscid| entry.gscid == gscid && is_within(entry.page)));
    }

    pub(crate) fn clear(&mut self) {
        let Self { first, second, msi } = self;
        first.0.clear();
        second.0.clear();
        msi.clear();
    }
}

/// `address` with its low `shift` bits cleared.
#[inline]
fn aligned(address: u64, shift: u8) -> u64 {
    address & !low_bits(shift)
}
