//! The way down the tables of the first and the second stage. Sources: "Process to translate an IOVA", steps 17 and 19;
//! the privileged architecture's "Virtual Address Translation Process" and "Two-Stage Address Translation".
//!
//! Each entry is read once for each look at it, and judged as a copy. Where A or D is to be set, the entry as it was
//! judged is exchanged for the marked one in one atomic operation; if it changed meanwhile, it is looked at again, a
//! bounded number of times.

use crate::addr::{Gpa, Iova, NestedGpa, Ppn};
use crate::backend::GuestMemory;
use crate::error::MemoryFault;
use crate::id::{FirstStageMode, Gscid, Pscid, SecondStageMode};
use crate::ioatc::{Ioatc, Leaf, SecondSpace, Space, Table};
use crate::mem::{ATTEMPTS, View};

use super::check::{Entry, Extensions, Implicit, Need, judge};
use super::pte::Pte;
use super::scheme::Scheme;

/// A first stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstStage {
    pub(crate) mode: FirstStageMode,
    /// Root page, which the second stage translates.
    pub(crate) root: Ppn,
    pub(crate) pscid: Pscid,
    /// `SADE`: A and D bits are updated.
    pub(crate) sade: bool,
    /// Byte order of its tables (`SBE`).
    pub(crate) view: View,
}

/// A second stage of the guest's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SecondStage {
    pub(crate) mode: SecondStageMode,
    /// Root page, of a table of 16 KiB.
    pub(crate) root: Ppn,
    pub(crate) gscid: Gscid,
    /// `GADE`: A and D bits are updated.
    pub(crate) gade: bool,
    /// `SXL`: addresses have 34 bits, whatever the scheme (rule DC-14).
    pub(crate) sxl: bool,
    /// Byte order of its tables (`fctl.BE`).
    pub(crate) view: View,
}

/// What one stage makes of an address: `to`, and what holds for the 2^`shift` bytes around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping<A> {
    pub(crate) to: A,
    pub(crate) shift: u8,
    /// The leaf, for what it allows.
    pub(crate) pte: Pte,
    pub(crate) global: bool,
}

impl FirstStage {
    const fn scheme(&self) -> Scheme {
        Scheme::first_stage(self.mode)
    }
}

impl SecondStage {
    const fn scheme(&self) -> Scheme {
        Scheme::second_stage(self.mode)
    }

    const fn space(&self) -> SecondSpace {
        SecondSpace { gscid: self.gscid, mode: self.mode }
    }
}

impl<A> Mapping<A> {
    /// What a Bare stage makes of an address: itself, with every permission (rules S1-01, S2-01).
    // UNSPECIFIED: the size of such a range; 1 GiB is one of the two that are recommended (rule SZ-01).
    pub(crate) const fn identity(to: A) -> Self {
        let pte = Pte::new().with_r(true).with_w(true).with_x(true).with_d(true);
        Self { to, shift: 30, pte, global: false }
    }

    fn of(leaf: &Leaf, to: A) -> Self {
        let &Leaf { pte, shift, global } = leaf;
        Self { to, shift, pte, global }
    }
}

/// Why a walk ended early. Which cause that is depends on the access, and on what the walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The first stage has no good, sufficient entry.
    PageFault,
    /// Nor has the second; with `iotval2` (rule FR-08).
    GuestPageFault(u64),
    /// An entry could not be read or updated.
    Memory(MemoryFault),
}

impl From<MemoryFault> for Stop {
    fn from(fault: MemoryFault) -> Self {
        Self::Memory(fault)
    }
}

/// Entries read or updated, for the performance monitor (rule HPT-01).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    pub(crate) first: u32,
    pub(crate) second: u32,
    /// A translation was not found among the remembered ones.
    pub(crate) missed: bool,
    /// D was set in an entry: what was answered before for reads of it is not all there is to say now.
    pub(crate) dirtied: bool,
}

/// Walks for one request.
#[derive(Debug)]
pub(crate) struct Walker<'a, M, const CACHE: usize> {
    pub(crate) memory: &'a mut M,
    pub(crate) ioatc: &'a mut Ioatc<CACHE>,
    pub(crate) extensions: Extensions,
    /// `None`: Bare.
    pub(crate) second: Option<SecondStage>,
    pub(crate) loads: &'a mut Loads,
}

impl<M: GuestMemory, const CACHE: usize> Walker<'_, M, CACHE> {
    /// The guest-physical address of an IOVA, `None`: of a Bare first stage.
    pub(crate) fn first_stage(
        &mut self,
        stage: Option<&FirstStage>,
        iova: Iova,
        need: Need,
    ) -> Result<Mapping<NestedGpa>, Stop> {
        let Some(stage) = stage else {
            return Ok(Mapping::identity(NestedGpa::new(iova.get())));
        };
        if !stage.scheme().is_canonical(iova.get()) {
            return Err(Stop::PageFault);
        }
        let space = Space { gscid: self.second.map(|second| second.gscid), pscid: stage.pscid, mode: stage.mode };
        let remembered = self.ioatc.first.leaf(&space, iova.get());
        let enough = |leaf: &Leaf| need.allowed_by_first(leaf.pte) && need.marks(leaf.pte) == leaf.pte;
        let leaf = if let Some(leaf) = remembered.filter(enough) {
            leaf
        } else {
            // Not there, or not enough: the tables may say more by now (rules CA-08, T28).
            self.loads.missed = true;
            self.walk_first(stage, &space, iova, need)?
        };
        Ok(Mapping::of(&leaf, NestedGpa::new(leaf.output(iova.get()))))
    }

    fn walk_first(&mut self, stage: &FirstStage, space: &Space, iova: Iova, need: Need) -> Result<Leaf, Stop> {
        let scheme = stage.scheme();
        let root = Table { at: NestedGpa::new(stage.root.base().get()), level: scheme.root_level(), global: false };
        let mut table = self.ioatc.first.table(space, iova.get()).unwrap_or(root);
        let known = table.level;
        loop {
            let level = table.level;
            let at = NestedGpa::new(table.at.get() | scheme.offset(iova.get(), level));
            let (pte, entry) = self.look_first(stage, at, level, need)?;
            let global = table.global || pte.g();
            match entry {
                Entry::Table { ppn, level: below } => {
                    table = Table { at: NestedGpa::new(ppn.base().get()), level: below, global };
                }
                Entry::Leaf { shift } => {
                    // The lowest table is all that the next page needs.
                    if level != known {
                        self.ioatc.first.insert_table(space, iova.get(), scheme.shift(level.saturating_add(1)), table);
                    }
                    let leaf = Leaf { pte, shift, global };
                    self.ioatc.first.insert_leaf(space, iova.get(), leaf);
                    return Ok(leaf);
                }
            }
        }
    }

    /// Looks at one entry, and marks it where it is a leaf: as it is in memory then.
    fn look_first(&mut self, stage: &FirstStage, at: NestedGpa, level: u8, need: Need) -> Result<(Pte, Entry), Stop> {
        let width = stage.scheme().width;
        for _ in 0..ATTEMPTS {
            // The entry's own address is translated each time (rules S1-06, AD-03).
            let place = self.place(at, Need::IMPLICIT_READ)?;
            self.loads.first = self.loads.first.saturating_add(1);
            let pte = Pte::from_bits(stage.view.load_pte(self.memory, place, width)?);
            let entry = judge(pte, level, stage.scheme(), self.extensions).ok_or(Stop::PageFault)?;
            if let Entry::Table { .. } = entry {
                return Ok((pte, entry));
            }
            if !need.allowed_by_first(pte) {
                return Err(Stop::PageFault);
            }
            let marked = need.marks(pte);
            if marked == pte {
                return Ok((pte, entry));
            }
            if !stage.sade {
                return Err(Stop::PageFault);
            }
            let place = self.place(at, Need::IMPLICIT_WRITE)?;
            self.loads.first = self.loads.first.saturating_add(1);
            if stage.view.exchange(self.memory, place, width, pte.into_bits(), marked.into_bits())? {
                self.loads.dirtied |= marked.d() && !pte.d();
                return Ok((marked, entry));
            }
        }
        Err(Stop::Memory(MemoryFault::Access))
    }

    /// The address in the VM's memory of an entry.
    #[inline]
    fn place(&mut self, at: NestedGpa, need: Need) -> Result<Gpa, Stop> {
        match self.second {
            None => Ok(at.untranslated()),
            Some(stage) => self.translated(&stage, at, need).map(|mapping| mapping.to),
        }
    }

    /// The address in the VM's memory of a guest-physical address.
    #[inline]
    pub(crate) fn second_stage(&mut self, gpa: NestedGpa, need: Need) -> Result<Mapping<Gpa>, Stop> {
        match self.second {
            None => Ok(Mapping::identity(gpa.untranslated())),
            Some(stage) => self.translated(&stage, gpa, need),
        }
    }

    fn translated(&mut self, stage: &SecondStage, gpa: NestedGpa, need: Need) -> Result<Mapping<Gpa>, Stop> {
        let refused = Stop::GuestPageFault(gpa.get() & !3 | need.implicit.iotval2());
        if !stage.scheme().is_within(gpa.get()) || (stage.sxl && gpa.get() >> 34 != 0) {
            return Err(refused);
        }
        let remembered = self.ioatc.second.leaf(&stage.space(), gpa.get());
        let enough = |leaf: &Leaf| need.allowed_by_second(leaf.pte) && need.marks(leaf.pte) == leaf.pte;
        let leaf = if let Some(leaf) = remembered.filter(enough) {
            leaf
        } else {
            // Addresses of tables are not what a request asked for (rule HPM-26).
            self.loads.missed |= need.implicit == Implicit::No;
            self.walk_second(stage, gpa, need, refused)?
        };
        Ok(Mapping::of(&leaf, Gpa::new(leaf.output(gpa.get()))))
    }

    fn walk_second(&mut self, stage: &SecondStage, gpa: NestedGpa, need: Need, refused: Stop) -> Result<Leaf, Stop> {
        let scheme = stage.scheme();
        let root = Table { at: stage.root.base(), level: scheme.root_level(), global: false };
        let mut table = self.ioatc.second.table(&stage.space(), gpa.get()).unwrap_or(root);
        let known = table.level;
        loop {
            let level = table.level;
            let at = table.at.or(scheme.offset(gpa.get(), level));
            let (pte, entry) = self.look_second(stage, at, level, need, refused)?;
            match entry {
                Entry::Table { ppn, level: below } => {
                    table = Table { at: ppn.base(), level: below, global: false };
                }
                Entry::Leaf { shift } => {
                    if level != known {
                        let above = scheme.shift(level.saturating_add(1));
                        self.ioatc.second.insert_table(&stage.space(), gpa.get(), above, table);
                    }
                    let leaf = Leaf { pte, shift, global: false };
                    self.ioatc.second.insert_leaf(&stage.space(), gpa.get(), leaf);
                    return Ok(leaf);
                }
            }
        }
    }

    fn look_second(
        &mut self,
        stage: &SecondStage,
        at: Gpa,
        level: u8,
        need: Need,
        refused: Stop,
    ) -> Result<(Pte, Entry), Stop> {
        let width = stage.scheme().width;
        for _ in 0..ATTEMPTS {
            self.loads.second = self.loads.second.saturating_add(1);
            let pte = Pte::from_bits(stage.view.load_pte(self.memory, at, width)?);
            let entry = judge(pte, level, stage.scheme(), self.extensions).ok_or(refused)?;
            if let Entry::Table { .. } = entry {
                return Ok((pte, entry));
            }
            let marked = need.marks(pte);
            if !need.allowed_by_second(pte) || (marked != pte && !stage.gade) {
                return Err(refused);
            }
            if marked == pte {
                return Ok((pte, entry));
            }
            self.loads.second = self.loads.second.saturating_add(1);
            if stage.view.exchange(self.memory, at, width, pte.into_bits(), marked.into_bits())? {
                self.loads.dirtied |= marked.d() && !pte.d();
                return Ok((marked, entry));
            }
        }
        Err(Stop::Memory(MemoryFault::Access))
    }
}
