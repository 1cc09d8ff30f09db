//! A guest that goes on elsewhere: what its devices' hardware is driven anew from.

use heapless::Vec;

use crate::attachment::Attachment;
use crate::backend::{Ats, Backend};
use crate::id::{DeviceId, Prgi, ProcessId};
use crate::progress::{Budget, Progress};
use crate::regs::file::Registers;

use super::ats::Request;
use super::pages::Group;
use super::slot::{MAX_TIMEOUTS, Phase, Purge, Step};
use super::{Gate, Health, Nest};

/// What later orders and answers depend on beside the guest's memory and registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved<const DEVICES: usize, const GROUPS: usize> {
    /// Invalidations of first-stage translations are not left out.
    pub(crate) residue: bool,
    /// An ATS invalidation timed out and no guest fence has said so yet.
    pub(crate) timed_out: bool,
    pub(crate) degraded: bool,
    /// Where the search for a context that became valid goes on, in the order of attaching.
    pub(crate) probed: usize,
    /// Devices of which there is something to tell.
    pub(crate) devices: Vec<SavedDevice, DEVICES>,
    pub(crate) groups: Vec<SavedGroup, GROUPS>,
}

/// What is known of a device's own cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedDevice {
    pub(crate) id: DeviceId,
    /// ATS invalidations in a row that it left unanswered.
    pub(crate) timeouts: u8,
    /// Those that no fence has followed yet.
    pub(crate) requests: u8,
    /// It may keep translations.
    pub(crate) had_ats: bool,
}

impl SavedDevice {
    pub(crate) const MAX_TIMEOUTS: u8 = MAX_TIMEOUTS;

    /// Whether there is something to tell.
    pub(crate) const fn is_told(self) -> bool {
        self.timeouts != 0 || self.requests != 0 || self.had_ats
    }
}

/// A group of page requests that the guest has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedGroup {
    pub(crate) device: DeviceId,
    pub(crate) index: Prgi,
    pub(crate) process: Option<ProcessId>,
    /// Its last request has come.
    pub(crate) whole: bool,
}

/// What is put in once every device is driven anew: until then, fences are not the guest's.
#[derive(Debug)]
pub(super) struct Restoring<const ITAGS: usize> {
    residue: bool,
    pub(super) requests: Vec<Request, ITAGS>,
}

/// There is room for all. `collect` keeps a panic for those there is none for.
fn all<T, const N: usize>(items: impl Iterator<Item = T>) -> Vec<T, N> {
    let mut all = Vec::new();
    for item in items {
        let _ = all.push(item);
    }
    all
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Reads what the guest named and lets all that is held go out, as far as the physical side goes along: no order
    /// of what the guest has said so far is left for later.
    pub(crate) fn save<B: Backend<Device = D>>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
    ) -> Saved<DEVICES, GROUPS> {
        // Each device is read at most twice: when it has come in, and because it was named. Either way once more, if a
        // page is to be watched then.
        let units = u32::try_from(self.slots.len()).unwrap_or(u32::MAX).saturating_mul(4);
        let _ = self.settle(registers, backend, &mut Budget::new(units));
        self.release_batch(backend);
        let requests = |of: Attachment| {
            let later = self.restoring.iter().flat_map(|restoring| &restoring.requests);
            let unfenced = self.requests.iter().chain(later).filter(|request| request.is_unfenced_of(of));
            u8::try_from(unfenced.count()).unwrap_or(u8::MAX)
        };
        let devices = self.slots.iter().filter(|slot| slot.phase != Phase::Leaving).map(|slot| {
            // What is under way here is taken as answered, and what is being emptied is empty there.
            let answers = self.requests.iter().any(|request| request.is_fenced_of(slot.attachment));
            SavedDevice {
                id: slot.id(),
                timeouts: if answers && !slot.is_quarantined() { 0 } else { slot.timeouts },
                requests: requests(slot.attachment),
                had_ats: slot.had_ats && slot.purge == Purge::No,
            }
        });
        let groups = self.groups.iter().map(|group| SavedGroup {
            device: group.of.device(),
            index: group.index,
            process: group.process,
            whole: group.whole,
        });
        let residue = self.restoring.as_ref().is_some_and(|restoring| restoring.residue);
        Saved {
            residue: residue || self.residue == Step::UNFENCED,
            timed_out: self.timed_out,
            degraded: self.health != Health::Good,
            probed: self.probed,
            devices: all(devices.filter(|device| device.is_told())),
            groups: all(groups),
        }
    }

    /// Whether no fence is under way, or about to be, that was not the guest's wish.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.restoring.is_some()
            || (self.issued == self.completed && !self.slots.iter().any(|slot| slot.hold || slot.purge != Purge::No))
    }

    /// What a passthrough device was granted; `None` if there is none of this id.
    pub(crate) fn granted(&self, id: DeviceId) -> Option<Ats> {
        let slot = self.slots.iter().find(|slot| slot.id() == id && slot.phase != Phase::Leaving);
        slot.map(|slot| slot.grant.ats)
    }

    /// After a reset: every device is driven anew, and nothing of the guest goes on before.
    pub(crate) fn restore(&mut self, saved: Saved<DEVICES, GROUPS>) {
        let Saved { residue, timed_out, degraded, probed, devices, groups } = saved;
        self.timed_out = timed_out;
        self.probed = probed;
        if degraded {
            self.health = Health::Degraded;
        }
        let mut requests = Vec::new();
        for slot in self.slots.iter_mut() {
            let (to, id) = (slot.attachment, slot.id());
            for device in devices.iter().filter(|device| device.id == id) {
                slot.timeouts = slot.timeouts.max(device.timeouts);
                slot.had_ats |= device.had_ats;
                for _ in 0..device.requests {
                    // There is room, as was checked.
                    let _ = requests.push(Request::of_guest(to));
                }
            }
            for group in groups.iter().filter(|group| group.device == id) {
                let SavedGroup { device: _, index, process, whole } = *group;
                self.groups.open(Group { of: to, index, process, whole });
            }
        }
        self.restoring = Some(Restoring { residue, requests });
        if !self.slots.is_empty() {
            self.batch.widen();
        }
    }

    pub(crate) const fn is_restoring(&self) -> bool {
        self.restoring.is_some()
    }

    /// Goes on with driving every device anew.
    pub(crate) fn redrive<B: Backend<Device = D>>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
        budget: &mut Budget,
    ) -> Progress {
        let progress = self.settle(registers, backend, budget);
        if progress != Progress::Idle {
            return progress;
        }
        if let Some(Restoring { residue, requests }) = self.restoring.take() {
            // Hardware is clean, perhaps; the guest's next orders are what they would have been.
            if residue && !self.slots.is_empty() {
                self.residue = Step::UNFENCED;
            }
            self.requests.resume(&requests);
        }
        Progress::Idle
    }

    /// After a reset: every device stays blocked until the next one.
    pub(crate) fn shut(&mut self) {
        self.gate = self.gate.max(Gate::Shut);
        self.health = Health::Degraded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_three_facts_is_worth_telling() {
        let nothing = SavedDevice { id: DeviceId::truncate(1), timeouts: 0, requests: 0, had_ats: false };
        assert!(!nothing.is_told());
        assert!(SavedDevice { timeouts: 1, ..nothing }.is_told());
        assert!(SavedDevice { requests: 1, ..nothing }.is_told());
        assert!(SavedDevice { had_ats: true, ..nothing }.is_told());
    }
}
