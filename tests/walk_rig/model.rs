//! A walk of both stages on plain numbers, written from the rules and not from the crate: slow and obvious.

use std::collections::BTreeMap;

/// One stage, as numbers.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// An entry of level `i` maps 2^`shifts[i]` bytes.
    pub(crate) shifts: &'static [u32],
    /// Bits of an address.
    pub(crate) bits: u32,
    /// Bytes of an entry.
    pub(crate) entry: u64,
    pub(crate) root: u64,
    /// `SADE` or `GADE`.
    pub(crate) updates: bool,
}

/// Memory, and what says how it is walked.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent choices of the guest")]
pub(crate) struct World {
    /// Words by address; others are 0.
    pub(crate) words: BTreeMap<u64, u64>,
    /// Bytes of memory there are, from 0 on.
    pub(crate) size: u64,
    pub(crate) first: Option<Stage>,
    pub(crate) second: Option<Stage>,
    pub(crate) svpbmt: bool,
    pub(crate) svrsw60t59b: bool,
    /// `SXL`.
    pub(crate) rv32: bool,
    pub(crate) supervisor: bool,
    pub(crate) sum: bool,
}

/// What is needed of a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Want {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

/// A page: where the address goes, how large, and its `PBMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) to: u64,
    pub(crate) shift: u32,
    pub(crate) pbmt: u64,
}

/// How a walk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Page,
    /// With `iotval2`.
    GuestPage(u64),
    Access,
}

const V: u64 = 1;
const R: u64 = 2;
const W: u64 = 4;
const X: u64 = 8;
const U: u64 = 16;
const A: u64 = 64;
const D: u64 = 128;

enum Entry {
    Pointer(u64),
    Leaf(u32),
}

impl World {
    /// Both stages; the smaller of the two pages.
    pub(crate) fn translate(&mut self, iova: u64, want: Want) -> Result<Page, Failure> {
        let first = self.first_stage(iova, want)?;
        let second = self.second_stage(first.to, want, 0)?;
        let pbmt = if first.pbmt == 0 { second.pbmt } else { first.pbmt };
        Ok(Page { to: second.to, shift: first.shift.min(second.shift), pbmt })
    }

    fn first_stage(&mut self, iova: u64, want: Want) -> Result<Page, Failure> {
        let Some(stage) = self.first.clone() else {
            return Ok(Page { to: iova, shift: 30, pbmt: 0 });
        };
        // Sign-extended, with 4-byte entries zero-extended.
        let sign = iova >> (stage.bits - 1) & 1 == 1 && stage.entry == 8;
        let upper = if sign { u64::MAX << stage.bits } else { 0 };
        if iova & (u64::MAX << stage.bits) != upper {
            return Err(Failure::Page);
        }
        let mut table = stage.root;
        for level in (0..stage.shifts.len()).rev() {
            let at = table + index(&stage, iova, level) * stage.entry;
            let place = self.second_stage(at, Want { read: true, ..Want::default() }, 1)?.to;
            let pte = self.read(place, stage.entry)?;
            let shift = match self.judge(pte, level, &stage).ok_or(Failure::Page)? {
                Entry::Pointer(to) => {
                    table = to;
                    continue;
                }
                Entry::Leaf(shift) => shift,
            };
            let user = pte & U != 0;
            let privileged = match (self.supervisor, user) {
                (false, user) => user,
                (true, true) => self.sum && !want.execute,
                (true, false) => true,
            };
            if !privileged || !grants(pte, want) {
                return Err(Failure::Page);
            }
            let marked = pte | A | if want.write { D } else { 0 };
            if marked != pte {
                if !stage.updates {
                    return Err(Failure::Page);
                }
                let place = self.second_stage(at, Want { write: true, ..Want::default() }, 3)?.to;
                self.write(place, stage.entry, marked)?;
            }
            return Ok(page(marked, shift, iova));
        }
        Err(Failure::Page)
    }

    /// `implicit`: bits 1:0 of `iotval2`.
    fn second_stage(&mut self, gpa: u64, want: Want, implicit: u64) -> Result<Page, Failure> {
        let Some(stage) = self.second.clone() else {
            return Ok(Page { to: gpa, shift: 30, pbmt: 0 });
        };
        let refused = Failure::GuestPage(gpa & !3 | implicit);
        let bits = if self.rv32 { stage.bits.min(34) } else { stage.bits };
        if gpa >> bits != 0 {
            return Err(refused);
        }
        let mut table = stage.root;
        for level in (0..stage.shifts.len()).rev() {
            let at = table + index(&stage, gpa, level) * stage.entry;
            let pte = self.read(at, stage.entry)?;
            let shift = match self.judge(pte, level, &stage).ok_or(refused)? {
                Entry::Pointer(to) => {
                    table = to;
                    continue;
                }
                Entry::Leaf(shift) => shift,
            };
            if pte & U == 0 || !grants(pte, want) {
                return Err(refused);
            }
            let marked = pte | A | if want.write { D } else { 0 };
            if marked != pte {
                if !stage.updates {
                    return Err(refused);
                }
                self.write(at, stage.entry, marked)?;
            }
            return Ok(page(marked, shift, gpa));
        }
        Err(refused)
    }

    /// Rules PTE-02 to PTE-08.
    fn judge(&self, pte: u64, level: usize, stage: &Stage) -> Option<Entry> {
        let pbmt = pte >> 61 & 3;
        let napot = pte >> 63 == 1;
        if pte & V == 0 || pte & (R | W) == W {
            return None;
        }
        if pte >> 54 & 0x1f != 0 || (pte >> 59 & 3 != 0 && !self.svrsw60t59b) {
            return None;
        }
        if pbmt == 3 || (pbmt != 0 && !self.svpbmt) {
            return None;
        }
        let ppn = ppn(pte);
        if pte & (R | X) == 0 {
            let plain = pte & (D | A | U) == 0 && pbmt == 0 && !napot;
            return if plain && level > 0 { Some(Entry::Pointer(ppn << 12)) } else { None };
        }
        if napot {
            return if level == 0 && ppn % 16 == 8 { Some(Entry::Leaf(16)) } else { None };
        }
        let shift = stage.shifts[level];
        if (ppn << 12).is_multiple_of(1 << shift) { Some(Entry::Leaf(shift)) } else { None }
    }

    fn read(&self, at: u64, bytes: u64) -> Result<u64, Failure> {
        if at >= self.size {
            return Err(Failure::Access);
        }
        let word = self.words.get(&(at & !7)).copied().unwrap_or(0);
        Ok(match (bytes, at % 8) {
            (8, _) => word,
            (_, 0) => word & 0xffff_ffff,
            _ => word >> 32,
        })
    }

    fn write(&mut self, at: u64, bytes: u64, value: u64) -> Result<(), Failure> {
        if at >= self.size {
            return Err(Failure::Access);
        }
        let word = self.words.entry(at & !7).or_default();
        *word = match (bytes, at % 8) {
            (8, _) => value,
            (_, 0) => *word & 0xffff_ffff_0000_0000 | value,
            _ => *word & 0xffff_ffff | value << 32,
        };
        Ok(())
    }
}

fn index(stage: &Stage, address: u64, level: usize) -> u64 {
    let shift = stage.shifts[level];
    let above = stage.shifts.get(level + 1).copied().unwrap_or(stage.bits);
    (address >> shift) % (1 << (above - shift))
}

fn grants(pte: u64, want: Want) -> bool {
    (!want.read || pte & R != 0) && (!want.write || pte & W != 0) && (!want.execute || pte & X != 0)
}

fn ppn(pte: u64) -> u64 {
    pte >> 10 & 0xfff_ffff_ffff
}

fn page(pte: u64, shift: u32, address: u64) -> Page {
    let size = 1 << shift;
    Page { to: (ppn(pte) << 12) / size * size + address % size, shift, pbmt: pte >> 61 & 3 }
}
