//! The translation cache of the modelled IOMMU: leaf and non-leaf entries, dropped by nothing but commands.

use std::vec::Vec;

use crate::addr::Gpa;

/// An entry, tagged by GSCID and PSCID (rule CA-03).
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) space: Space,
    /// Hits for every PSCID of its GSCID, and is spared by invalidations that name one (rule CA-05).
    pub(super) global: bool,
    /// First and last byte of the input addresses it is for.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) gscid: u32,
    pub(super) pscid: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// A leaf PTE.
    Leaf(u64),
    /// The table of this level.
    Table(u8, Gpa),
}

/// What an `IOTINVAL.VMA` drops, within one GSCID.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scope {
    /// Only this address space, except global entries (rule VMA-06).
    pub(super) pscid: Option<u32>,
    /// Only these input addresses, and of them only leaf entries unless `non_leaf` (rules VMA-12, VMA-13).
    pub(super) range: Option<(u64, u64)>,
    pub(super) non_leaf: bool,
}

#[derive(Debug, Default)]
pub(super) struct Ioatc(Vec<Entry>);

impl Ioatc {
    /// The leaf for `iova`, and its PTE. Of several the oldest: hardware may use any.
    pub(super) fn leaf(&self, space: Space, iova: u64) -> Option<(Entry, u64)> {
        self.hits(space, iova).find_map(|entry| match entry.what {
            What::Leaf(pte) => Some((*entry, pte)),
            What::Table(..) => None,
        })
    }

    /// The lowest table on the way to `iova`: level, address, whether the way there is global.
    pub(super) fn table(&self, space: Space, iova: u64) -> Option<(u8, Gpa, bool)> {
        let table = |entry: &Entry| match entry.what {
            What::Table(level, at) => Some((level, at, entry.global)),
            What::Leaf(_) => None,
        };
        self.hits(space, iova).filter_map(table).min_by_key(|&(level, ..)| level)
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub(super) fn invalidate(&mut self, gscid: u32, scope: Scope) {
        self.0.retain(|entry| !scope.covers(gscid, entry));
    }

    fn hits(&self, space: Space, iova: u64) -> impl Iterator<Item = &Entry> {
        let of = move |entry: &&Entry| entry.space == space || (entry.global && entry.space.gscid == space.gscid);
        self.0.iter().filter(of).filter(move |entry| (entry.first..=entry.last).contains(&iova))
    }
}

impl Scope {
    fn covers(&self, gscid: u32, entry: &Entry) -> bool {
        let space = self.pscid.is_none_or(|pscid| pscid == entry.space.pscid && !entry.global);
        let place = self.range.is_none_or(|(first, last)| {
            let reached = self.non_leaf || matches!(entry.what, What::Leaf(_));
            reached && entry.first <= last && entry.last >= first
        });
        gscid == entry.space.gscid && space && place
    }
}
