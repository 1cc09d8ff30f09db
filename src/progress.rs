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
    /// The budget of this call is used up. Call [`run`](crate::VIommu::run) before the vCPU blocks.
    Runnable,
}

/// What is left of a call's budget. The unit is one command, one re-walk of a device, one page walk; a unit is never
/// split.
#[derive(Debug)]
pub(crate) struct Budget(u32);

impl Budget {
    pub(crate) const fn new(units: u32) -> Self {
        Self(units)
    }

    /// Takes one unit, if there is one left.
    pub(crate) fn take(&mut self) -> bool {
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}
