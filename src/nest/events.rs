//! What happens to the host: it takes memory from the guest, its IOMMU loses state, it sees the guest store to memory
//! that was watched.

use crate::addr::Gpa;
use crate::backend::{Ats, GuestMemory};

use super::slot::{Page, Phase, Reread, Step};
use super::{Gate, Nest};

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// The host took memory from the guest. Hardware is to forget all it has translated: roots and directory entries
    /// may be cached with the address they had (rules VC-32, GVM-07), and then devices what they keep (VC-75, SWG-18).
    pub(crate) fn memory_taken(&mut self) {
        // After a refused invalidation nothing counts before the reset, which drives every device anew.
        if !self.slots.is_empty() && !self.is_locked() {
            self.batch.widen();
        }
        for slot in self.slots.iter_mut() {
            let has_ats = slot.live.is_some_and(|live| live.ats() != Ats::Off);
            match slot.phase {
                Phase::Live if has_ats => slot.purge_in_use(),
                // Whatever it keeps is translated again, or it is made to forget before it has ATS again.
                phase => {
                    slot.distrust_what_it_keeps();
                    // Nor does it get ATS while the IOMMU may still answer with that memory.
                    if phase != Phase::Leaving && !slot.quiesces && slot.granted() != Ats::Off {
                        slot.hold_for_fence();
                    }
                }
            }
        }
    }

    /// Whether nothing can be known of what hardware has cached.
    pub(crate) const fn is_locked(&self) -> bool {
        matches!(self.gate, Gate::Locked)
    }

    /// The physical IOMMU has lost contexts and caches, and what it was doing: every device is driven anew.
    pub(crate) fn host_lost_state(&mut self) {
        if self.slots.is_empty() {
            // What was under way has no device that it could matter to.
            self.completed = self.issued;
            self.residue = Step::FINAL;
            return;
        }
        self.lost = self.issued;
        self.residue = Step::UNFENCED;
        self.batch.widen();
        for slot in self.slots.iter_mut() {
            slot.live = None;
            slot.restart();
            if self.gate != Gate::Open {
                // Nothing but the reset opens it, not even for its own cache's sake.
                slot.end_purge();
            }
        }
    }

    /// The guest stored to this page; whether that may have made an entry valid.
    pub(crate) fn guest_wrote(&mut self, page: Gpa) -> bool {
        let mut any = false;
        for slot in self.slots.iter_mut().filter(|slot| slot.watched == Some(Page::of(page))) {
            slot.reread(Reread::Unasked);
            any = true;
        }
        any
    }

    /// Has the host watch the pages where an entry with V = 0 keeps a device from its context, each once. Whether one is
    /// watched that was not: its entries are to be read again, since the guest may have stored there in between.
    pub(super) fn watch(&mut self, memory: &mut impl GuestMemory) -> bool {
        let mut any = false;
        for index in 0..self.slots.len() {
            let Some((old, new)) = self.slots.get(index).map(|slot| (slot.watched, slot.not_valid)) else {
                continue;
            };
            if old == new {
                continue;
            }
            if let Some(slot) = self.slots.get_mut(index) {
                slot.watched = None;
            }
            let is_watched = |page| self.slots.iter().any(|slot| slot.watched == Some(page));
            if let Some(page) = old.filter(|page| !is_watched(*page)) {
                memory.watch(page.base(), false);
            }
            if let Some(page) = new.filter(|page| !is_watched(*page)) {
                memory.watch(page.base(), true);
                any = true;
                for slot in self.slots.iter_mut().filter(|slot| slot.not_valid == new) {
                    slot.reread(Reread::Unasked);
                }
            }
            if let Some(slot) = self.slots.get_mut(index) {
                slot.watched = new;
            }
        }
        any
    }
}
