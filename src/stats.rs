//! Counts.

use core::fmt;

use crate::cmdq::CommandCounts;
use crate::faultq::Recorded;
use crate::nest::{Answers, OrderCounts};

/// Counts of what no register shows. It shows as a table of the counts that are not 0.
///
/// Loads from guest memory are not counted, nor are updates of A and D bits and of interrupt files in memory:
/// [`Trace`](crate::backend::Trace) shows each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commands the guest had carried out, and those that stopped its queue.
    pub commands: CommandCounts,
    /// Orders to the physical side.
    pub orders: OrderCounts,
    /// Fault records written.
    pub faults_recorded: u64,
    /// Faults that the last record, still unread, stands for.
    pub faults_coalesced: u64,
    /// Faults the guest is not shown: its queue is off or in error, `DTF`, or the host's own.
    pub faults_withheld: u64,
    /// Faults the host said it lost.
    pub faults_lost: u64,
    /// Page requests written to the guest's queue.
    pub page_requests_queued: u64,
    /// Page requests that did not get there: the guest did not ask for them, or its queue is off, full or in error.
    pub page_requests_discarded: u64,
    /// Page requests that the guest's tables allow, so that they are for the host.
    pub page_requests_for_host: u64,
    /// Messages stored that interrupt the guest.
    pub messages: u64,
    /// Calls that left work behind because their budget was used up.
    pub budget_used_up: u64,
    /// Events that presented an old [`Attachment`](crate::Attachment).
    pub stale_events: u64,
    /// What devices said of invalidation requests they do not have, or not any more.
    pub unexpected_completions: u64,
}

impl Stats {
    pub(crate) const NONE: Self = Self {
        commands: CommandCounts::NONE,
        orders: OrderCounts::NONE,
        faults_recorded: 0,
        faults_coalesced: 0,
        faults_withheld: 0,
        faults_lost: 0,
        page_requests_queued: 0,
        page_requests_discarded: 0,
        page_requests_for_host: 0,
        messages: 0,
        budget_used_up: 0,
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

    /// Counts a page request that is in the guest's queue, or is not.
    pub(crate) const fn count_page_request(&mut self, queued: bool) {
        let counter = if queued { &mut self.page_requests_queued } else { &mut self.page_requests_discarded };
        *counter = counter.wrapping_add(1);
    }

    /// Every count with its name, for a table or for what collects metrics.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            commands,
            orders,
            faults_recorded,
            faults_coalesced,
            faults_withheld,
            faults_lost,
            page_requests_queued,
            page_requests_discarded,
            page_requests_for_host,
            messages,
            budget_used_up,
            stale_events,
            unexpected_completions,
        } = *self;
        let own = [
            ("faults recorded", faults_recorded),
            ("faults coalesced", faults_coalesced),
            ("faults withheld", faults_withheld),
            ("faults lost", faults_lost),
            ("page requests queued", page_requests_queued),
            ("page requests discarded", page_requests_discarded),
            ("page requests for the host", page_requests_for_host),
            ("interrupt messages", messages),
            ("budget used up", budget_used_up),
            ("stale events", stale_events),
            ("unexpected completions", unexpected_completions),
        ];
        command_rows(commands).into_iter().chain(order_rows(orders)).chain(own)
    }
}

fn command_rows(counts: CommandCounts) -> [(&'static str, u64); 9] {
    let CommandCounts {
        iotinval_vma,
        iotinval_gvma,
        iofence_c,
        iodir_inval_ddt,
        iodir_inval_pdt,
        ats_inval,
        ats_prgr,
        illegal,
        fence_stores,
    } = counts;
    [
        ("IOTINVAL.VMA", iotinval_vma),
        ("IOTINVAL.GVMA", iotinval_gvma),
        ("IOFENCE.C", iofence_c),
        ("IOFENCE.C stores", fence_stores),
        ("IODIR.INVAL_DDT", iodir_inval_ddt),
        ("IODIR.INVAL_PDT", iodir_inval_pdt),
        ("ATS.INVAL", ats_inval),
        ("ATS.PRGR", ats_prgr),
        ("illegal commands", illegal),
    ]
}

fn order_rows(counts: OrderCounts) -> [(&'static str, u64); 21] {
    let OrderCounts {
        adopt,
        set_context,
        invalidate,
        invalidations,
        fence,
        ats_invalidate,
        ats_timeouts,
        page_response,
        release,
    } = counts;
    let Answers { done: adopted, busy: adopt_busy, refused: adopt_refused } = adopt;
    let Answers { done: set, busy: set_busy, refused: set_refused } = set_context;
    let Answers { done: invalidated, busy: invalidate_busy, refused: invalidate_refused } = invalidate;
    let Answers { done: fenced, busy: fence_busy, refused: fence_refused } = fence;
    let Answers { done: asked, busy: ats_busy, refused: ats_refused } = ats_invalidate;
    let Answers { done: answered, busy: response_busy, refused: response_refused } = page_response;
    [
        ("adopt", adopted),
        ("adopt, busy", adopt_busy),
        ("adopt, refused", adopt_refused),
        ("set_context", set),
        ("set_context, busy", set_busy),
        ("set_context, refused", set_refused),
        ("invalidate", invalidated),
        ("invalidate, orders", invalidations),
        ("invalidate, busy", invalidate_busy),
        ("invalidate, refused", invalidate_refused),
        ("fence", fenced),
        ("fence, busy", fence_busy),
        ("fence, refused", fence_refused),
        ("ats_invalidate", asked),
        ("ats_invalidate, busy", ats_busy),
        ("ats_invalidate, refused", ats_refused),
        ("ats_invalidate, timeouts", ats_timeouts),
        ("page_response", answered),
        ("page_response, busy", response_busy),
        ("page_response, refused", response_refused),
        ("release", release),
    ]
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().filter(|(_, count)| *count != 0).try_for_each(|(name, count)| writeln!(f, "{name:<28}{count:>12}"))
    }
}
