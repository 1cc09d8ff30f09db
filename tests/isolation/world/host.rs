//! What the host does to a VM: it fails it, resets it, moves it, ends it.

use riscv_viommu::{Applied, Gpa, Gscid, Health, OrderError};

use super::World;
use crate::host::{Who, page};
use crate::random::Random;
use crate::vm::{DEVICES, Iommu, MODELS, Vm};

/// Where an image has how many groups of page requests the guest has not answered.
const OPEN_GROUPS: std::ops::Range<usize> = 30..32;

impl World {
    pub(super) fn reset(&mut self, who: Who) -> &'static str {
        let _ = self.vms[who].iommu.reset();
        self.settle(who);
        "reset"
    }

    pub(super) fn lose(&mut self, who: Who) -> &'static str {
        self.vms[who].physical.lose_state();
        let _ = self.vms[who].iommu.host_lost_state();
        self.settle(who);
        "lost state"
    }

    pub(super) fn memory_taken(&mut self, who: Who) -> &'static str {
        let _ = self.vms[who].iommu.invalidate_gpa(Gpa::new(page(who, 6))..=Gpa::new(page(who, 12)));
        self.check(Some(who));
        "memory taken"
    }

    /// The host is busy, refuses, or fails.
    pub(super) fn refuse(&mut self, who: Who, random: &mut Random) -> &'static str {
        let vm = &mut self.vms[who];
        let error = match random.below(10) {
            0..6 => OrderError::Busy,
            6..9 => OrderError::Refused { done: 0 },
            _ => OrderError::Fatal,
        };
        let order = random.below(5);
        // A context is not refused but reached through a blocked state, and a fence that could be refused is not asked.
        vm.refused |= !matches!((order, error), (_, OrderError::Busy) | (0 | 2, OrderError::Refused { .. }));
        let physical = &vm.physical;
        match (order, error) {
            (0, OrderError::Refused { .. }) => physical.answer_next_set_context(Ok(Applied::Blocked)),
            (0, _) => physical.answer_next_set_context(Err(error)),
            (1, OrderError::Refused { .. }) => {
                // It is tried once more as a whole.
                physical.answer_next_invalidate(Err(error));
                physical.answer_next_invalidate(Err(error));
            }
            (1, _) => physical.answer_next_invalidate(Err(error)),
            (2, OrderError::Refused { .. }) => {}
            (2, _) => physical.answer_next_fence(Err(error)),
            (3, _) => physical.answer_next_ats_invalidate(Err(error)),
            _ => physical.answer_next_page_response(Err(error)),
        }
        "refuse"
    }

    pub(super) fn save(&mut self, who: Who) -> &'static str {
        let image = self.image(who);
        self.images[who].push(image);
        "save"
    }

    pub(super) fn image(&mut self, who: Who) -> Vec<u8> {
        let mut image = vec![0; Iommu::SNAPSHOT_BYTES];
        let length = self.vms[who].iommu.snapshot(&mut image).unwrap();
        image.truncate(length);
        self.check(Some(who));
        image
    }

    /// A VM is restored: from what it is, from what it was, from what the other was, or from what nobody was.
    pub(super) fn restore(&mut self, who: Who, random: &mut Random) -> &'static str {
        let (kind, choice, place) = (random.below(4), random.bits(), random.bits());
        let mut image = self.image(who);
        // What another wrote would be seen: that is what a channel is for.
        let from = if self.traced || kind != 2 { who } else { 1 - who };
        if kind != 0 && !self.images[from].is_empty() {
            let count = u64::try_from(self.images[from].len()).unwrap();
            image.clone_from(&self.images[from][usize::try_from(choice % count).unwrap()]);
            if kind == 3 {
                let bit = place % (8 * u64::try_from(image.len()).unwrap());
                image[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
            }
            // An answer to what no device asked the host takes for its own mistake.
            if image[OPEN_GROUPS] != [0, 0] {
                return "groups";
            }
        }
        self.figures.images += 1;
        let _ = self.vms[who].iommu.restore(&image);
        self.settle(who);
        "restore"
    }

    /// The VM ends, and another one gets its pages, and a GSCID that somebody had.
    pub(super) fn reborn(&mut self, who: Who, random: &mut Random) -> &'static str {
        if self.vms[who].iommu.health() != Health::Good {
            self.reset(who);
        }
        self.vms[who].devices = [None; DEVICES];
        self.vms[who].models = [None; MODELS];
        let _ = self.vms[who].iommu.shutdown();
        self.settle(who);
        assert!(!self.hands.contains(&Some(who)), "{}: VM {who} does not let go", self.at());
        self.hardware.retire(self.vms[who].gscid);
        let other = self.vms[1 - who].gscid;
        let free: Vec<_> = (1..4).map(Gscid::truncate).filter(|gscid| *gscid != other).collect();
        let (trace, gscid) = (self.vms[who].trace, random.pick(&free));
        let seed = random.bits() ^ if who == 1 { self.rival } else { 0 };
        self.vms[who] = Vm::new(&self.hardware, &self.host, who, gscid, &mut Random::new(seed));
        self.vms[who].trace = trace;
        self.lives[who] += 1;
        self.figures.rebirths += 1;
        // Numbers begin anew: what was for the old vIOMMU goes with it.
        self.late[who].clear();
        self.check(Some(who));
        let device = random.index(DEVICES);
        self.make_free(device, random);
        self.attach(device, who, random);
        self.settle(who);
        self.probe(device, who, random);
        "reborn"
    }
}
