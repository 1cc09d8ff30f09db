//! One entry of the physical device directory, and what hardware may make of it while it is being rewritten.

use std::mem;
use std::vec;
use std::vec::Vec;

use crate::backend::Ats;
use crate::fault::Cause;

use super::context::{self, Dwords, Meaning};
use super::processes::PdtCache;

#[derive(Debug)]
pub(super) struct Slot {
    dwords: Dwords,
    /// Hardware's copy.
    cached: Option<Meaning>,
    /// And what it has read of the process directory.
    pub(super) processes: PdtCache,
    /// What each store left, since the last executed `INVAL_DDT`.
    versions: Vec<Dwords>,
    /// What was asked for since then, and what was in force.
    asked_for: Vec<Meaning>,
}

impl Default for Slot {
    fn default() -> Self {
        let mut slot = Self {
            dwords: context::BLOCKED,
            cached: None,
            processes: PdtCache::default(),
            versions: Vec::new(),
            asked_for: Vec::new(),
        };
        slot.settle();
        slot
    }
}

impl Slot {
    pub(super) const fn dwords(&self) -> Dwords {
        self.dwords
    }

    /// What a request finds that looks into memory.
    pub(super) fn present(&self) -> Result<Meaning, Cause> {
        context::decode(&self.dwords)
    }

    /// What a request finds. What is not valid is never cached (rule CA-02).
    pub(super) fn fetch(&mut self) -> Result<Meaning, Cause> {
        let present = self.present();
        self.cached = self.cached.or(present.ok());
        self.cached.map_or(present, Ok)
    }

    /// Whether every request finds ATS allowed, whether it looks into memory or not.
    pub(super) fn has_ats(&self) -> bool {
        let allows = |meaning: Meaning| meaning.ats != Ats::Off;
        self.cached.is_none_or(allows) && self.present().is_ok_and(allows)
    }

    /// The host means the context to become this.
    pub(super) fn ask_for(&mut self, dwords: &Dwords) {
        self.asked_for.extend(context::decode(dwords));
    }

    /// One store of the host; whether hardware may now put together a context that nobody asked for.
    pub(super) fn store(&mut self, place: usize, value: u64) -> bool {
        self.dwords = with(&self.dwords, place, value);
        self.versions.push(self.dwords);
        let strange = |meaning: Meaning| {
            let harmless = if meaning.context.is_open() {
                self.asked_for.iter().any(|asked| meaning.is_within(asked))
            } else {
                !meaning.is_bypass() || self.asked_for.iter().any(|asked| asked.is_bypass())
            };
            !harmless
        };
        self.torn().iter().filter_map(|dwords| context::decode(dwords).ok()).any(strange)
    }

    /// An `INVAL_DDT` was executed: nothing read before is in use or on its way.
    pub(super) fn settle(&mut self) {
        let last = self.asked_for.pop();
        self.asked_for = self.present().into_iter().chain(last).collect();
        self.cached = None;
        self.processes = PdtCache::default();
        self.versions = vec![self.dwords];
    }

    /// The device is blocked, and the host leaves nothing of what the VM's context had in its other fields.
    pub(super) fn wipe(&mut self) {
        self.dwords = context::BLOCKED;
        self.versions = if self.settled() { Vec::new() } else { mem::take(&mut self.versions) };
        self.versions.push(self.dwords);
    }

    /// Whether nothing was stored since.
    pub(super) fn settled(&self) -> bool {
        self.versions.len() == 1
    }

    /// Every context hardware may have read: dwords are read in any order and at any time (rules UPD-01, DDT-17).
    fn torn(&self) -> Vec<Dwords> {
        let mut torn = vec![self.dwords];
        for place in [context::TC, context::IOHGATP, context::TA, context::FSC] {
            let mut values: Vec<u64> = self.versions.iter().filter_map(|dwords| dwords.get(place).copied()).collect();
            values.sort_unstable();
            values.dedup();
            torn = torn.iter().flat_map(|dwords| values.iter().map(|&value| with(dwords, place, value))).collect();
        }
        torn
    }
}

fn with(dwords: &Dwords, place: usize, value: u64) -> Dwords {
    let mut dwords = *dwords;
    if let Some(dword) = dwords.get_mut(place) {
        *dword = value;
    }
    dwords
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: u64 = 0x8000_7000_0010_001c;
    const EN_ATS: u64 = 0x3;
    const EN_ATS_T2GPA: u64 = 0xb;

    #[test]
    fn requests_that_bypass_the_second_stage_are_allowed_by_who_asked_for_them() {
        let mut slot = Slot::default();
        assert!(!slot.store(context::TC, EN_ATS_T2GPA), "what comes back is translated again");
        assert!(slot.store(context::TC, EN_ATS), "TR-11");
        let mut slot = Slot::default();
        slot.ask_for(&[EN_ATS, STAGE, 0, 0, 0, 0, 0, 0]);
        assert!(!slot.store(context::TC, EN_ATS));
    }

    #[test]
    fn less_of_ats_than_was_asked_for_is_no_mixture() {
        let mut slot = Slot::default();
        slot.ask_for(&[EN_ATS_T2GPA, STAGE, 0, 0, 0, 0, 0, 0]);
        assert!(!slot.store(context::IOHGATP, STAGE), "without ATS so far");
        assert!(!slot.store(context::TC, EN_ATS_T2GPA));
        assert!(slot.store(context::TC, EN_ATS_T2GPA | 4), "page requests were not asked for");
        slot.settle();
        assert!(slot.store(context::TC, EN_ATS), "nor was a bypass");
    }
}
