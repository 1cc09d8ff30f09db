//! Pages whose stores by the guest the host is to tell of.

use std::mem;
use std::vec::Vec;

use super::{Memory, State, page_of};
use crate::addr::Gpa;

impl Memory {
    /// The pages that are watched.
    #[must_use]
    pub fn watched(&self) -> Vec<Gpa> {
        self.state().watched.iter().copied().map(Gpa::new).collect()
    }

    /// What [`GuestMemory::watch`](crate::GuestMemory::watch) was told since it was last taken.
    #[must_use]
    pub fn take_watches(&self) -> Vec<(Gpa, bool)> {
        mem::take(&mut self.state().watches)
    }

    /// Where the guest wrote in watched pages since they were last taken, for
    /// [`guest_wrote`](crate::VIommu::guest_wrote).
    #[must_use]
    pub fn take_watched_writes(&self) -> Vec<Gpa> {
        mem::take(&mut self.state().watched_writes)
    }

    /// The guest wrote the word at `at`.
    pub(super) fn note_write(&self, at: Gpa) {
        let mut state = self.state();
        if state.watched.contains(&page_of(at.get())) {
            state.watched_writes.push(at);
        }
    }
}

impl State {
    pub(super) fn watch(&mut self, page: Gpa, on: bool) {
        let at = page.get();
        assert!(at == page_of(at), "contract: watch of {page}, which is no page");
        let paired = if on { self.watched.insert(at) } else { self.watched.remove(&at) };
        assert!(paired, "contract: watch({page}, {on}), which is so already");
        self.watches.push((page, on));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::GuestMemory;

    const PAGE: Gpa = Gpa::new(0x1000);

    fn memory() -> Memory {
        let memory = Memory::new();
        memory.map(PAGE, 0x2000);
        memory
    }

    #[test]
    fn stores_to_watched_pages_are_noted() {
        let mut memory = memory();
        memory.watch(PAGE, true);
        assert_eq!(memory.watched(), [PAGE]);
        memory.write(Gpa::new(0x1ff8), 1);
        memory.write(Gpa::new(0x2000), 1);
        memory.store(PAGE, &[1]).unwrap();
        assert_eq!(memory.take_watched_writes(), [Gpa::new(0x1ff8)], "the guest's own, in this page");
        memory.watch(PAGE, false);
        memory.write(PAGE, 1);
        assert_eq!((memory.watched(), memory.take_watched_writes()), (std::vec![], std::vec![]));
        assert_eq!(memory.take_watches(), [(PAGE, true), (PAGE, false)]);
    }

    #[test]
    #[should_panic(expected = "true), which is so already")]
    fn watching_twice_is_a_breach() {
        let mut memory = memory();
        memory.watch(PAGE, true);
        memory.watch(PAGE, true);
    }

    #[test]
    #[should_panic(expected = "false), which is so already")]
    fn letting_go_of_what_is_not_watched_is_a_breach() {
        memory().watch(PAGE, false);
    }

    #[test]
    #[should_panic(expected = "which is no page")]
    fn watching_an_address_within_a_page_is_a_breach() {
        memory().watch(Gpa::new(0x1008), true);
    }
}
