//! The hardware performance monitor: which events count, and in which counters. Source: "Performance-monitoring event
//! selectors".
//!
//! Without counters, which is the default, an event costs one comparison.

use crate::id::{DeviceId, Gscid, ProcessId, Pscid};
use crate::interrupt::Signals;
use crate::regs::Iohpmevt;
use crate::regs::file::Registers;

/// What can be counted. A walk is one access to memory that loads one entry, leaf or not (rule HPM-31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request, a debug request among them (rule HPM-42).
    UntranslatedRequest,
    TranslatedRequest,
    AtsTranslationRequest,
    TlbMiss,
    DdtWalk,
    PdtWalk,
    FirstStageWalk,
    SecondStageWalk,
}

impl Event {
    /// `eventID`. Source: "Standard Events list" (rules HPM-23 to HPM-30).
    const fn id(self) -> u16 {
        match self {
            Self::UntranslatedRequest => 1,
            Self::TranslatedRequest => 2,
            Self::AtsTranslationRequest => 3,
            Self::TlbMiss => 4,
            Self::DdtWalk => 5,
            Self::PdtWalk => 6,
            Self::FirstStageWalk => 7,
            Self::SecondStageWalk => 8,
        }
    }

    /// Whether it can be told apart by `GSCID` and `PSCID`, too.
    const fn has_address_space(self) -> bool {
        matches!(self, Self::TlbMiss | Self::FirstStageWalk | Self::SecondStageWalk)
    }
}

/// Whose event it is: what the filters of a counter compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags {
    pub(crate) device: DeviceId,
    pub(crate) process: Option<ProcessId>,
    /// Without a second stage there is none.
    pub(crate) gscid: Option<Gscid>,
    /// Without a first stage there is none.
    pub(crate) pscid: Option<Pscid>,
}

/// The event happened `times` times.
pub(crate) fn count(registers: &mut Registers, signals: &mut Signals, event: Event, times: u32, tags: &Tags) {
    for n in 1..=registers.counters() {
        let counts = !registers.is_inhibited(n) && counts(registers.event(n), event, tags);
        if counts && registers.count_events(n, times) {
            signals.counter_overflowed(registers);
        }
    }
}

/// Cycles went by.
pub(crate) fn add_cycles(registers: &mut Registers, signals: &mut Signals, cycles: u64) {
    let counts = registers.counters() != 0 && !registers.is_inhibited(0);
    if counts && registers.count_cycles(cycles) {
        signals.counter_overflowed(registers);
    }
}

/// Cycles until the cycles counter signals an overflow; `None` if it will not.
pub(crate) fn cycles_until_overflow(registers: &Registers) -> Option<u64> {
    let cycles = registers.cycles();
    let signals = registers.counters() != 0 && !registers.is_inhibited(0) && !cycles.of();
    // The counter has 63 bits.
    signals.then(|| (1_u64 << 63).wrapping_sub(cycles.counter()))
}

/// The filters of a counter (rules HPM-16 to HPM-22).
fn counts(selector: Iohpmevt, event: Event, tags: &Tags) -> bool {
    if selector.event_id() != event.id() {
        return false;
    }
    let (space, process) = if selector.idt() {
        // A selector that asks for what the event does not have never counts, filters or not (HPM-32).
        if !event.has_address_space() {
            return false;
        }
        (tags.gscid.map(Gscid::get), tags.pscid.map(Pscid::get))
    } else {
        (Some(tags.device.get()), tags.process.map(ProcessId::get))
    };
    (!selector.dv_gscv() || space.is_some_and(|id| selector.selects(id)))
        && (!selector.pv_pscv() || process == Some(selector.pid_pscid()))
}

#[cfg(test)]
mod tests;
