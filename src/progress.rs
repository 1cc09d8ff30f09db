//! How much work one call may do, and what it left behind.

/// What a call left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[must_use = "a host calls `run` while there is work left"]
#[non_exhaustive]
pub enum Progress {
    /// Nothing is left.
    Idle,
    /// The physical side has to finish first, or an emulated device. Call [`run`](crate::VIommu::run) at the next exit,
    /// [`fence_done`](crate::VIommu::fence_done) when a pending fence is done, [`drained`](crate::VIommu::drained) when
    /// DMA is, and deliver every [`next_message`](crate::VIommu::next_message).
    Waiting,
    /// There is work that can go on: the budget of the call is used up, or a message was taken that a command waits
    /// behind. Call [`run`](crate::VIommu::run) before the vCPU blocks. A guest can keep its queue full: bound how
    /// often in a row, and let a timer bring the host back.
    Runnable,
}

/// What is left of a call's budget. The unit is one command, one re-walk of a device; a unit is never split. A
/// translation takes none: it is bounded by its tables.
#[derive(Debug)]
pub(crate) struct Budget(u32);

impl Budget {
    pub(crate) const fn new(units: u32) -> Self {
        Self(units)
    }

    /// Takes one unit, if there is one left.
    #[inline]
    pub(crate) fn take(&mut self) -> bool {
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }

    /// Units left.
    pub(crate) fn left(&self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// So many units of those left were used.
    pub(crate) fn spend(&mut self, units: usize) {
        self.0 = self.0.saturating_sub(u32::try_from(units).unwrap_or(u32::MAX));
    }

    /// The unit taken last was not used.
    pub(crate) const fn give_back(&mut self) {
        self.0 = self.0.saturating_add(1);
    }
}
