//! The first-stage walk of the modelled IOMMU: Sv39, Sv48 and Sv57 (rules S1-03 to S1-13, PTE-01 to PTE-08).
//!
//! Bits 63:54 of an entry are reserved here: no Svnapot, no Svpbmt.

use crate::addr::Gpa;
use crate::backend::FirstStage;
use crate::error::MemoryFault;
use crate::fault::{Cause, TransactionType};
use crate::mock::memory::Memory;
use crate::mock::tables::pte;

use super::ioatc::{Entry, Ioatc, Space, What};

/// One access to be translated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) iova: u64,
    pub(super) write: bool,
    /// For supervisor privilege; only with a process id.
    pub(super) privileged: bool,
}

impl Request {
    pub(super) const fn kind(self) -> TransactionType {
        if self.write { TransactionType::UntranslatedWrite } else { TransactionType::UntranslatedRead }
    }
}

/// One walk: whose tables, and for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk<'a> {
    pub(super) memory: &'a Memory,
    pub(super) stage: &'a FirstStage,
    /// Supervisor accesses may touch user pages.
    pub(super) sum: bool,
    pub(super) gscid: u32,
    pub(super) request: Request,
}

impl Walk<'_> {
    /// Translates without a cache: what is right now. Changes nothing.
    pub(super) fn fresh(self) -> Result<Gpa, Cause> {
        let (leaf, pte, _) = self.down(None, &mut |_| ())?;
        self.finish(&leaf, pte).map(|(to, _)| to)
    }

    /// Translates as far as possible from the cache, and fills it.
    pub(super) fn cached(self, ioatc: &mut Ioatc) -> Result<Gpa, Cause> {
        if let Some((leaf, pte)) = ioatc.leaf(self.space(), self.request.iova) {
            // An access that still has A or D to set walks again (rules CA-08, CA-09).
            if self.missing(pte) == 0 {
                return self.finish(&leaf, pte).map(|(to, _)| to);
            }
        }
        let start = ioatc.table(self.space(), self.request.iova);
        let (leaf, pte, at) = self.down(start, &mut |table| ioatc.insert(table))?;
        let (to, updated) = self.finish(&leaf, pte)?;
        if updated != pte {
            self.memory.poke(at, self.in_order(updated));
        }
        ioatc.insert(Entry { what: What::Leaf(updated), ..leaf });
        Ok(to)
    }

    /// Walks from `start`, or from the root, to a valid leaf: the entry, the PTE and where it is. Tables on the way
    /// go to `passed`.
    fn down(self, start: Option<(u8, Gpa, bool)>, passed: &mut dyn FnMut(Entry)) -> Result<(Entry, u64, Gpa), Cause> {
        let Request { iova, .. } = self.request;
        let levels = self.stage.mode.levels();
        // The bits above the index must all equal its highest bit (rule S1-04).
        let high = iova.cast_signed().wrapping_shr(shift(levels).wrapping_sub(1));
        if high != 0 && high != -1 {
            return Err(self.page_fault());
        }
        let root = (levels.wrapping_sub(1), self.stage.root.base(), false);
        let (mut level, mut table, mut global) = start.unwrap_or(root);
        loop {
            let at = table.or((iova.wrapping_shr(shift(level)) & 0x1ff) << 3);
            let word = self.memory.hardware_load(at).map_err(|fault| match fault {
                MemoryFault::Access => self.request.kind().access_fault(),
                MemoryFault::Corruption => Cause::PtDataCorruption,
            })?;
            let pte = self.in_order(word);
            let within = 1_u64.wrapping_shl(shift(level)).wrapping_sub(1);
            if pte & pte::V == 0 || pte & (pte::R | pte::W) == pte::W || pte >> 54 != 0 {
                return Err(self.page_fault());
            }
            global |= pte & pte::G != 0;
            let leaf = pte & (pte::R | pte::X) != 0;
            let what = if leaf { What::Leaf(pte) } else { What::Table(level.wrapping_sub(1), output(pte)) };
            let entry = Entry { space: self.space(), global, first: iova & !within, last: iova | within, what };
            if leaf {
                let aligned = output(pte).get() & within == 0;
                return if aligned { Ok((entry, pte, at)) } else { Err(self.page_fault()) };
            }
            if level == 0 || pte & (pte::D | pte::A | pte::U) != 0 {
                return Err(self.page_fault());
            }
            passed(entry);
            level = level.wrapping_sub(1);
            table = output(pte);
        }
    }

    /// Checks permissions, A and D (rules S1-11, AD-01): where the access goes, and the PTE with A and D set.
    fn finish(self, leaf: &Entry, pte: u64) -> Result<(Gpa, u64), Cause> {
        let needed = if self.request.write { pte::W } else { pte::R };
        let missing = self.missing(pte);
        let user = pte & pte::U != 0;
        let reached = if self.request.privileged { !user || self.sum } else { user };
        if !reached || needed & !pte != 0 || (missing != 0 && !self.stage.sade) {
            return Err(self.page_fault());
        }
        let within = self.request.iova & (leaf.first ^ leaf.last);
        Ok((output(pte).or(within), pte | missing))
    }

    fn missing(self, pte: u64) -> u64 {
        let needed = if self.request.write { pte::A | pte::D } else { pte::A };
        needed & !pte
    }

    fn space(self) -> Space {
        Space { gscid: self.gscid, pscid: self.stage.pscid.get() }
    }

    fn page_fault(self) -> Cause {
        self.request.kind().page_fault()
    }

    fn in_order(self, word: u64) -> u64 {
        if self.stage.sbe { word.swap_bytes() } else { word }
    }
}

/// The page a PTE names: PPN is bits 53:10.
const fn output(pte: u64) -> Gpa {
    Gpa::new((pte << 2) & 0x00ff_ffff_ffff_f000)
}

/// The lowest bit of the index of this level.
fn shift(level: u8) -> u32 {
    u32::from(level).wrapping_mul(9).wrapping_add(12)
}
