//! Counts.

use crate::cmdq::CommandCounts;
use crate::faultq::Recorded;

/// Counts of what no register shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commands the guest had carried out, and those that stopped its queue.
    pub commands: CommandCounts,
    /// Fault records written.
    pub faults_recorded: u64,
    /// Faults that the last record, still unread, stands for.
    pub faults_coalesced: u64,
    /// Faults the guest is not shown: its queue is off or in error, `DTF`, or the host's own.
    pub faults_withheld: u64,
    /// Faults the host said it lost.
    pub faults_lost: u64,
    /// Events that presented an old [`Attachment`](crate::Attachment).
    pub stale_events: u64,
    /// What devices said of invalidation requests they do not have, or not any more.
    pub unexpected_completions: u64,
}

impl Stats {
    pub(crate) const NONE: Self = Self {
        commands: CommandCounts::NONE,
        faults_recorded: 0,
        faults_coalesced: 0,
        faults_withheld: 0,
        faults_lost: 0,
        stale_events: 0,
        unexpected_completions: 0,
    };

    /// Counts an event that presented an old attachment.
    pub(crate) const fn count_stale(&mut self) {
        self.stale_events = self.stale_events.wrapping_add(1);
    }

    /// Counts what became of a fault.
    pub(crate) fn count(&mut self, recorded: Recorded) {
        let counter = match recorded {
            Recorded::Yes => &mut self.faults_recorded,
            Recorded::Coalesced => &mut self.faults_coalesced,
            Recorded::No => &mut self.faults_withheld,
        };
        *counter = counter.wrapping_add(1);
    }
}
