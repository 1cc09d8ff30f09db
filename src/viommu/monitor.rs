//! The clock of the performance monitor.

use super::VIommu;
use crate::backend::Backend;
use crate::hpm;
use crate::progress::Progress;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Lets the guest's cycles counter (`iohpmcycles`) count `cycles` of a clock that the host chooses and describes to
    /// its guest. Without [counters](crate::Config::with_counters) it does nothing.
    ///
    /// The vIOMMU has no clock. The counter is as late as the last call: a host calls before it passes on an access of
    /// the guest to the register page, with what went by since the last call, so that the guest reads the counter of
    /// now, and what it writes counts from now. For the overflow interrupt to be in time it calls from a timer after
    /// [`cycles_until_overflow`](Self::cycles_until_overflow), asked again after each of those accesses. Cycles while
    /// the vCPUs are stopped are the host's to count or not.
    pub fn add_cycles(&mut self, cycles: u64) -> Progress {
        hpm::add_cycles(&mut self.registers, &mut self.signals, cycles);
        self.finish();
        self.progress
    }

    /// After how many cycles the cycles counter interrupts: `None` if it will not, because it is not there, is stopped,
    /// or has overflowed before.
    #[must_use]
    pub fn cycles_until_overflow(&self) -> Option<u64> {
        hpm::cycles_until_overflow(&self.registers)
    }
}
