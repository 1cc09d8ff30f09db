//! What the host does to the guest's memory, and what happens to its IOMMU.

use core::ops::RangeInclusive;

use super::VIommu;
use crate::addr::Gpa;
use crate::backend::{Backend, FenceScope};
use crate::nest::Barrier;
use crate::progress::Progress;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// The host takes these guest-physical addresses from the guest, or has put other memory there (ballooning, unplug,
    /// migration). It has removed them from the second stage of devices and from what [`GuestMemory`](crate::GuestMemory)
    /// reaches; before [`is_gpa_invalidated`](Self::is_gpa_invalidated) it does not use the memory for anything else.
    ///
    /// Hardware forgets everything of this VM, whatever the range: it may have cached the root of a table or an entry of
    /// a directory with the address they had. Then devices forget what they keep themselves (ATS), DMA of emulated
    /// devices is waited for, and a fence for reads and writes ends it. The guest does not see any of it.
    pub fn invalidate_gpa(&mut self, range: RangeInclusive<Gpa>) -> Progress {
        if range.is_empty() || self.config.is_none() {
            return self.progress;
        }
        self.nest.memory_taken();
        self.forget_translations();
        // One that was under way covers less.
        self.memory_taken = Some(Barrier::new(FenceScope::ALL));
        self.run()
    }

    /// Whether memory that was [taken](Self::invalidate_gpa) from the guest may be used for something else: no device
    /// reaches it any more. To be asked when the progress is not `Runnable`, and again after each call. Where the host
    /// refused to invalidate, or failed, that is so only after a [`reset`](Self::reset).
    #[must_use]
    pub const fn is_gpa_invalidated(&self) -> bool {
        self.memory_taken.is_none()
    }

    /// The guest stored to its memory at `at`: to be called for pages that
    /// [`watch`](crate::GuestMemory::watch) named, after the store. It costs next to nothing; the work is left for
    /// [`run`](Self::run).
    pub fn guest_wrote(&mut self, at: Gpa) -> Progress {
        if self.nest.guest_wrote(at.page()) {
            self.progress = Progress::Runnable;
        }
        self.progress
    }

    /// The physical IOMMU has lost what it was given: contexts, what it cached, fences under way (a suspend, a reset by
    /// the host). Every device is blocked, invalidated and fenced, and gets the context of the guest's directory again,
    /// as after it was attached; the guest's own registers stay, and a fence it waits for completes with that. No device
    /// access may be under way before the progress is [`Idle`](Progress::Idle) but what the IOMMU blocks in the state it
    /// is in.
    pub fn host_lost_state(&mut self) -> Progress {
        self.nest.host_lost_state();
        self.run()
    }
}
