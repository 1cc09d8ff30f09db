//! DMA of emulated devices that is under way with translations the guest has taken back: what a fence waits for.

use crate::backend::{Completion, Epoch, GuestMemory};

/// Which translations may still be in use.
#[derive(Debug)]
pub(crate) struct Drains {
    /// The epoch of translations handed out now.
    current: Epoch,
    /// One was handed out since the start. A host may use it again until it is told that it is not right any more.
    used: bool,
    /// Something was invalidated since the last fence.
    invalidated: bool,
    /// The last epoch that is over and was used.
    over: Epoch,
    /// The host was asked for it.
    asked: bool,
    /// Every DMA of this epoch, and of those before, is done.
    drained: Epoch,
}

impl Drains {
    pub(crate) const fn new() -> Self {
        let none = Epoch::FIRST;
        Self { current: none.next(), used: false, invalidated: false, over: none, asked: false, drained: none }
    }

    /// A translation is handed out.
    pub(crate) const fn hand_out(&mut self) -> Epoch {
        self.used = true;
        self.current
    }

    /// Translations handed out before may be wrong now.
    pub(crate) const fn invalidate(&mut self) {
        self.invalidated = true;
    }

    /// A fence begins, which orders device accesses (`PR` or `PW`) or not: what began before it is over, if the fence
    /// has to wait for it (rules FEN-03, VC-41).
    pub(crate) const fn fence(&mut self, orders_accesses: bool) {
        if self.used && (self.invalidated || orders_accesses) {
            self.over = self.current;
            self.asked = false;
            self.current = self.current.next();
        }
        self.invalidated = false;
    }

    /// Whether all DMA is done that the fences so far wait for.
    pub(crate) fn is_done(&mut self, host: &mut impl GuestMemory) -> bool {
        if self.drained < self.over && !self.asked {
            self.asked = true;
            if !host.counts_dma() || host.drain(self.over) != Completion::Pending {
                self.drained = self.over;
            }
        }
        self.drained >= self.over
    }

    /// The host says that DMA of this epoch and of those before is done. Where that is not all a fence waits for, the
    /// host is asked again.
    pub(crate) fn drained(&mut self, upto: Epoch) {
        // What has not begun can not be done yet: no later epoch than one that is over.
        self.drained = self.drained.max(upto.min(self.over));
        self.asked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::backend::Post;
    use crate::error::MemoryFault;
    use std::vec::Vec;

    /// A host whose DMA is always under way, and what it was asked.
    struct Host(Vec<Epoch>);

    impl GuestMemory for Host {
        fn load(&self, _at: Gpa, _out: &mut [u64]) -> Result<(), MemoryFault> {
            Err(MemoryFault::Access)
        }

        fn store(&mut self, _at: Gpa, _words: &[u64]) -> Result<(), MemoryFault> {
            Err(MemoryFault::Access)
        }

        fn post(&mut self, _at: Gpa, _data: u32, _why: Post) -> Result<(), MemoryFault> {
            Err(MemoryFault::Access)
        }

        fn counts_dma(&self) -> bool {
            true
        }

        fn drain(&mut self, upto: Epoch) -> Completion {
            self.0.push(upto);
            Completion::Pending
        }
    }

    #[test]
    fn a_fence_waits_for_dma_only_after_an_invalidation_or_where_it_orders_accesses() {
        for (invalidates, orders, asked) in [(false, false, 0), (true, false, 1), (false, true, 1), (true, true, 1)] {
            let (mut drains, mut host) = (Drains::new(), Host(Vec::new()));
            let epoch = drains.hand_out();
            if invalidates {
                drains.invalidate();
            }
            drains.fence(orders);
            assert_eq!(drains.is_done(&mut host), asked == 0, "T38, VC-41");
            assert_eq!(drains.is_done(&mut host), asked == 0, "T38: asked once");
            assert_eq!(host.0.len(), asked);
            drains.drained(epoch);
            assert!(drains.is_done(&mut host), "T38");
        }
    }

    #[test]
    fn a_translation_handed_out_after_the_fence_began_is_not_waited_for() {
        let (mut drains, mut host) = (Drains::new(), Host(Vec::new()));
        let before = drains.hand_out();
        drains.fence(true);
        assert!(!drains.is_done(&mut host));
        let after = drains.hand_out();
        assert!(after > before);
        drains.drained(before);
        assert!(drains.is_done(&mut host), "T38");
        // It is the next fence's.
        drains.fence(true);
        assert!(!drains.is_done(&mut host));
        assert_eq!(host.0, [before, after]);
    }

    #[test]
    fn a_translation_that_the_host_remembered_is_waited_for() {
        let (mut drains, mut host) = (Drains::new(), Host(Vec::new()));
        let remembered = drains.hand_out();
        drains.fence(true);
        assert!(!drains.is_done(&mut host));
        drains.drained(remembered);
        assert!(drains.is_done(&mut host));
        // Nothing was handed out since, but the host may have used it again.
        drains.invalidate();
        drains.fence(false);
        assert!(!drains.is_done(&mut host), "T38");
        assert_eq!(host.0, [remembered, remembered.next()], "T38");
    }

    #[test]
    fn a_host_that_tells_of_too_old_an_epoch_is_asked_again() {
        let (mut drains, mut host) = (Drains::new(), Host(Vec::new()));
        let first = drains.hand_out();
        drains.fence(true);
        drains.fence(true);
        assert!(!drains.is_done(&mut host));
        drains.drained(first);
        assert!(!drains.is_done(&mut host), "T38");
        assert_eq!(host.0, [first.next(); 2]);
        drains.drained(first.next());
        assert!(drains.is_done(&mut host), "T38");
    }

    #[test]
    fn an_epoch_the_host_was_not_asked_for_is_not_taken_as_drained() {
        let (mut drains, mut host) = (Drains::new(), Host(Vec::new()));
        let _ = drains.hand_out();
        drains.drained(Epoch::new(u64::MAX));
        drains.fence(true);
        assert!(!drains.is_done(&mut host), "T38");
    }
}
