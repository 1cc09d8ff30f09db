//! The registers of the performance monitor, and how its counters count. What an event is, and whose, is decided in
//! `hpm.rs`.

use crate::regs::{Iocountinh, Iohpmcycles, Iohpmevt, Register};

use super::Registers;

/// The last event the specification defines (rule HPM-30).
const LAST_EVENT: u16 = 8;

impl Registers {
    /// Number of programmable counters, the first ones of 31; 0 where there is no performance monitor (REG-CAP-43).
    // UNSPECIFIED: counters and events are 0 after reset (rule REG-RST-01). How many there are is the configuration's; each has all its bits (rules REG-CAP-43, HPM-07).
    pub(crate) const fn counters(&self) -> u8 {
        if self.setup.capabilities.hpm() { self.setup.counters } else { 0 }
    }

    pub(crate) fn cycles(&self) -> Iohpmcycles {
        Iohpmcycles::from_bits(self.value(Register::Iohpmcycles))
    }

    /// What counter `n` is programmed to count.
    pub(crate) fn event(&self, n: u8) -> Iohpmevt {
        Iohpmevt::from_bits(self.value(Register::Iohpmevt(n)))
    }

    /// Whether counter `n` stands still; 0 is the cycles counter (rules HPM-03, HPM-04).
    pub(crate) fn is_inhibited(&self, n: u8) -> bool {
        self.word(Register::Iocountinh) & bit(n) != 0
    }

    /// Whether there is a counter `n`, 1 being the first.
    const fn has_counter(&self, n: u8) -> bool {
        n != 0 && n <= self.counters()
    }

    pub(super) fn write_iocountinh(&mut self, new: Iocountinh) {
        let counters = self.counters();
        if counters != 0 {
            // Bits of counters that do not exist stay 0 (rule HPM-04).
            let exist = bit(counters) | bit(counters).wrapping_sub(1);
            self.put(Register::Iocountinh, (new.into_bits() & exist).into());
        }
    }

    pub(super) fn write_iohpmcycles(&mut self, new: Iohpmcycles) {
        if self.counters() != 0 {
            self.put(Register::Iohpmcycles, new.into_bits());
            self.show_overflow(0, new.of());
        }
    }

    pub(super) fn write_iohpmctr(&mut self, n: u8, count: u64) {
        if self.has_counter(n) {
            self.put(Register::Iohpmctr(n), count);
        }
    }

    pub(super) fn write_iohpmevt(&mut self, n: u8, new: Iohpmevt) {
        if self.has_counter(n) {
            // UNSPECIFIED: an event that is not known leaves the old one, and the rest is written (rule HPM-08).
            let known = new.event_id() <= LAST_EVENT;
            let event = if known { new } else { new.with_event_id(self.event(n).event_id()) };
            self.put(Register::Iohpmevt(n), event.into_bits());
            self.show_overflow(n, event.of());
        }
    }

    /// `iocountovf` shows the overflow bits together (rules HPM-01, HPM-02).
    fn show_overflow(&mut self, n: u8, of: bool) {
        let others = self.word(Register::Iocountovf) & !bit(n);
        self.put(Register::Iocountovf, u64::from(if of { others | bit(n) } else { others }));
    }

    /// Adds to `iohpmcycles`. True if an overflow is to be signalled (rule HPM-34).
    pub(crate) fn count_cycles(&mut self, cycles: u64) -> bool {
        let old = self.cycles();
        // UNSPECIFIED: the counter has 63 bits (rule HPM-05).
        let overflows = cycles > MAX_CYCLES.wrapping_sub(old.counter());
        let new = old.with_counter(old.counter().wrapping_add(cycles) & MAX_CYCLES).with_of(old.of() || overflows);
        self.write_iohpmcycles(new);
        overflows && !old.of()
    }

    /// Adds to counter `n`. True if an overflow is to be signalled (rule HPM-34).
    pub(crate) fn count_events(&mut self, n: u8, times: u32) -> bool {
        let event = self.event(n);
        let (count, overflows) = self.value(Register::Iohpmctr(n)).overflowing_add(times.into());
        let signals = overflows && !event.of();
        self.write_iohpmctr(n, count);
        if signals {
            self.write_iohpmevt(n, event.with_of(true));
        }
        signals
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
