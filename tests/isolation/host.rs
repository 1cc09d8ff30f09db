//! The host's memory, which holds both guests', and what of it a vIOMMU reaches.

use std::sync::{Arc, Mutex, MutexGuard};

use riscv_viommu::mock::Memory;
use riscv_viommu::{Completion, DeviceId, Epoch, Gpa, GuestMemory, Invalidation, MemoryFault, Post, Width};

/// Number of a VM, 0 or 1.
pub(crate) type Who = usize;

/// Where the pages of each VM are. The second stage of both is the identity, so that a guest names what is its
/// neighbour's by its very host address.
const FIRST: [u64; 2] = [0x8000_0000, 0x9000_0000];
pub(crate) const PAGES: u64 = 20;
/// Behind them: the VM's interrupt file.
pub(crate) const FILE: u64 = PAGES;

/// The address of a page of a VM.
pub(crate) const fn page(who: Who, number: u64) -> u64 {
    FIRST[who] + number * 0x1000
}

/// Whose page is at this host address.
pub(crate) fn owner(at: u64) -> Option<Who> {
    (0..2).find(|&who| (page(who, 0)..page(who, PAGES + 1)).contains(&at))
}

/// All memory there is, and who reached what of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostMemory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    frames: [Memory; 2],
    reached: Vec<(Who, Who, Gpa)>,
    kept_out: u64,
}

impl HostMemory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A new VM gets its pages, which hold nothing.
    pub(crate) fn renew(&self, who: Who) -> Memory {
        let memory = Memory::new();
        memory.map(Gpa::new(page(who, 0)), PAGES * 0x1000);
        memory.interrupt_page(Gpa::new(page(who, FILE)));
        self.state().frames[who] = memory.clone();
        memory
    }

    /// What was reached since this was last asked: by whom, whose it is, where.
    pub(crate) fn take_reached(&self) -> Vec<(Who, Who, Gpa)> {
        std::mem::take(&mut self.state().reached)
    }

    /// How often a guest named what is the other's.
    pub(crate) fn kept_out(&self) -> u64 {
        self.state().kept_out
    }
}

/// What a vIOMMU sees of it: the pages of its own VM.
#[derive(Clone, Debug)]
pub(crate) struct Ram {
    pub(crate) own: Who,
    pub(crate) host: HostMemory,
}

impl Ram {
    /// The memory at a host address, if the VM may have it.
    pub(crate) fn at(&self, at: Gpa) -> Result<Memory, MemoryFault> {
        let whose = owner(at.get()).ok_or(MemoryFault::Access)?;
        let mut state = self.host.state();
        if whose != self.own {
            state.kept_out += 1;
            return Err(MemoryFault::Access);
        }
        state.reached.push((self.own, whose, at));
        Ok(state.frames[whose].clone())
    }

    fn own(&self) -> Memory {
        self.host.state().frames[self.own].clone()
    }
}

impl GuestMemory for Ram {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.at(at)?.load(at, out)
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.at(at)?.store(at, words)
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        self.at(at)?.post(at, data, why)
    }

    fn has_compare_exchange(&self) -> bool {
        true
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        self.at(at)?.compare_exchange(at, width, old, new)
    }

    fn counts_dma(&self) -> bool {
        self.own().counts_dma()
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        self.own().drain(upto)
    }

    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        self.own().unmapped(what);
    }

    fn watch(&mut self, page: Gpa, on: bool) {
        self.own().watch(page, on);
    }

    fn publish(&mut self, offset: u16, value: u32) {
        self.own().publish(offset, value);
    }
}
