//! The registers of the performance monitor, and how its counters count. What an event is, and whose, is decided in
//! `hpm.rs`.

use crate::regs::{Iocountinh, Iocountovf, Iohpmcycles, Iohpmevt, Register};

use super::Registers;

#[derive(Clone, Debug)]
pub(super) struct Hpm {
    inhibits: Iocountinh,
    cycles: Iohpmcycles,
    /// The first is `iohpmctr1`; those past the number of counters stay 0.
    counters: [Counter; 31],
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    count: u64,
    event: Iohpmevt,
}

/// The last event the specification defines (rule HPM-30).
const LAST_EVENT: u16 = 8;

impl Hpm {
    // UNSPECIFIED: counters and events are 0 after reset (rule REG-RST-01).
    pub(super) const fn new() -> Self {
        let counter = Counter { count: 0, event: Iohpmevt::new() };
        Self { inhibits: Iocountinh::new(), cycles: Iohpmcycles::new(), counters: [counter; 31] }
    }

    fn counter(&self, n: u8) -> Option<&Counter> {
        self.counters.get(usize::from(n).checked_sub(1)?)
    }
}

impl Registers {
    /// Number of programmable counters, the first ones of 31; 0 where there is no performance monitor (REG-CAP-43).
    // UNSPECIFIED: how many there are is the configuration's; each has all its bits (rules REG-CAP-43, HPM-07).
    pub(crate) const fn counters(&self) -> u8 {
        if self.setup.capabilities.hpm() { self.setup.counters } else { 0 }
    }

    /// The overflow bits together (rules HPM-01, HPM-02).
    pub(super) fn overflows(&self) -> Iocountovf {
        let of = |bits, counter: &Counter| bits << 1 | u32::from(counter.event.of());
        Iocountovf::from_bits(self.hpm.counters.iter().rev().fold(0, of) << 1).with_cy(self.hpm.cycles.of())
    }

    pub(super) const fn inhibits(&self) -> Iocountinh {
        self.hpm.inhibits
    }

    pub(crate) const fn cycles(&self) -> Iohpmcycles {
        self.hpm.cycles
    }

    pub(super) fn counter(&self, n: u8) -> u64 {
        self.hpm.counter(n).map_or(0, |counter| counter.count)
    }

    /// What counter `n` is programmed to count.
    pub(crate) fn event(&self, n: u8) -> Iohpmevt {
        self.hpm.counter(n).map_or(Iohpmevt::new(), |counter| counter.event)
    }

    /// Whether counter `n` stands still; 0 is the cycles counter (rules HPM-03, HPM-04).
    pub(crate) const fn is_inhibited(&self, n: u8) -> bool {
        self.hpm.inhibits.into_bits() & bit(n) != 0
    }

    pub(super) fn write_iocountinh(&mut self, new: Iocountinh) {
        let counters = self.counters();
        if counters != 0 {
            // Bits of counters that do not exist stay 0 (rule HPM-04).
            let exist = bit(counters) | bit(counters).wrapping_sub(1);
            self.hpm.inhibits = Iocountinh::from_bits(new.into_bits() & exist);
        }
    }

    pub(super) fn write_iohpmcycles(&mut self, new: Iohpmcycles) {
        if self.counters() != 0 {
            self.hpm.cycles = new;
            self.changed.insert(Register::Iocountovf);
        }
    }

    pub(super) fn write_iohpmctr(&mut self, n: u8, count: u64) {
        if let Some(counter) = self.counter_mut(n) {
            counter.count = count;
        }
    }

    pub(super) fn write_iohpmevt(&mut self, n: u8, new: Iohpmevt) {
        if let Some(counter) = self.counter_mut(n) {
            // UNSPECIFIED: an event that is not known leaves the old one, and the rest is written (rule HPM-08).
            let known = new.event_id() <= LAST_EVENT;
            counter.event = if known { new } else { new.with_event_id(counter.event.event_id()) };
            self.changed.insert(Register::Iocountovf);
        }
    }

    /// Adds to `iohpmcycles`. True if an overflow is to be signalled (rule HPM-34).
    pub(crate) fn count_cycles(&mut self, cycles: u64) -> bool {
        let old = self.hpm.cycles;
        // UNSPECIFIED: the counter has 63 bits (rule HPM-05).
        let overflows = cycles > MAX_CYCLES.wrapping_sub(old.counter());
        self.hpm.cycles =
            old.with_counter(old.counter().wrapping_add(cycles) & MAX_CYCLES).with_of(old.of() || overflows);
        self.changed.insert(Register::Iohpmcycles);
        self.changed.insert(Register::Iocountovf);
        overflows && !old.of()
    }

    /// Adds to counter `n`. True if an overflow is to be signalled (rule HPM-34).
    pub(crate) fn count_events(&mut self, n: u8, times: u32) -> bool {
        let Some(counter) = self.counter_mut(n) else {
            return false;
        };
        let (count, overflows) = counter.count.overflowing_add(times.into());
        let signals = overflows && !counter.event.of();
        counter.count = count;
        if signals {
            counter.event.set_of(true);
            self.changed.insert(Register::Iohpmevt(n));
            self.changed.insert(Register::Iocountovf);
        }
        self.changed.insert(Register::Iohpmctr(n));
        signals
    }

    /// Counter `n`, if it exists.
    fn counter_mut(&mut self, n: u8) -> Option<&mut Counter> {
        if n > self.counters() {
            return None;
        }
        self.hpm.counters.get_mut(usize::from(n).checked_sub(1)?)
    }
}

impl Iohpmevt {
    /// Whether `did_gscid`, as far as it is compared, is `id` (rule HPM-33).
    pub(crate) const fn selects(self, id: u32) -> bool {
        let own = self.did_gscid();
        // The bits up to and including the lowest 0: those that change when 1 is added.
        let ignored = if self.dmask() { own ^ own.wrapping_add(1) } else { 0 };
        (own ^ id) & !ignored == 0
    }
}

const MAX_CYCLES: u64 = u64::MAX >> 1;

/// The bit of counter `n` in `iocountinh`.
#[expect(clippy::as_conversions, reason = "widening, and `From` is not const")]
const fn bit(n: u8) -> u32 {
    1_u32.wrapping_shl(n as u32)
}
