//! How much one call of the vIOMMU asks of its host.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use riscv_viommu::backend::Call;

use crate::machine::{BATCH, DEVICES, ITAGS};

/// Words of the register page.
pub(crate) const WORDS: usize = 1024;

/// Counts calls to the backend and what they read, and keeps what was published.
#[derive(Debug)]
pub(crate) struct Meter {
    calls: Cell<u64>,
    bytes: Cell<u64>,
    page: RefCell<Vec<u32>>,
}

/// What [`Trace`](riscv_viommu::backend::Trace) shows each call.
pub(crate) type Observer = Box<dyn Fn(&Call<'_>)>;

impl Meter {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { calls: Cell::new(0), bytes: Cell::new(0), page: RefCell::new(vec![0; WORDS]) })
    }

    pub(crate) fn observer(self: &Rc<Self>) -> Observer {
        let meter = Rc::clone(self);
        Box::new(move |call| meter.count(call))
    }

    fn count(&self, call: &Call<'_>) {
        self.calls.set(self.calls.get() + 1);
        match call {
            Call::Load { words, .. } => self.bytes.set(self.bytes.get() + 8 * *words as u64),
            Call::CompareExchange { width, .. } => self.bytes.set(self.bytes.get() + u64::from(width.bytes())),
            Call::Publish { offset, value } => self.page.borrow_mut()[usize::from(*offset) / 4] = *value,
            _ => {}
        }
    }

    pub(crate) fn restart(&self) {
        self.calls.set(0);
        self.bytes.set(0);
    }

    /// What the guest reads without a trap at word `index` of the register page.
    pub(crate) fn published(&self, index: usize) -> u32 {
        self.page.borrow()[index]
    }

    /// That the call which ends here did no more than it may.
    pub(crate) fn check(&self, bound: &Bound) {
        let Bound { calls, bytes } = *bound;
        assert!(self.calls.get() <= calls, "budget: {} backend calls, where {calls} are the most", self.calls.get());
        assert!(self.bytes.get() <= bytes, "budget: {} bytes read, where {bytes} are the most", self.bytes.get());
    }
}

/// The most one call may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    calls: u64,
    bytes: u64,
}

/// A directory walk: three pointers and an extended context.
const DIRECTORY_WALK: u64 = 3 * 8 + 64;
/// Commands fetched at a time.
const SPAN: u64 = 16 * 16;
/// A translation: 61 entries on the longest way with their updates, 11 exchanges, an interrupt file in memory, and the
/// contexts, which are larger than entries.
const TRANSLATION: u64 = 8 * (61 + 11 + 4) + 64 + 16;

/// For each unit of the budget: a command that finds the batch full, has it refused, issued as a whole and refused
/// again, so that every device is blocked; its fence, its store and what emulated devices are told.
const CALLS_OF_A_UNIT: u64 = 6 + DEVICES as u64;
/// For each device on its way between attached, translating and released: every context once, each with detours, an
/// invalidation and a fence; and what its own cache and its page requests ask for.
const CALLS_OF_A_DEVICE: u64 = 6 * (1 + 4 * 3) + 2 * ITAGS as u64;
/// Every register published once (four vectors: 60 words and a few), every vector signalled, a translation.
const CALLS_OF_ANY: u64 = 2 * 100 + 2 * 16 + 76 + BATCH as u64;

impl Bound {
    /// What follows from `Config::with_budget`: a restored vIOMMU has it twice in one call, once for the devices and
    /// once for the guest.
    pub(crate) const fn of(budget: u32) -> Self {
        let units = 2 * budget as u64;
        Self {
            calls: units * CALLS_OF_A_UNIT + DEVICES as u64 * CALLS_OF_A_DEVICE + CALLS_OF_ANY,
            // A command is less than a walk of the directory; the last fetch may be for nothing.
            bytes: units * DIRECTORY_WALK + 2 * SPAN + TRANSLATION,
        }
    }
}
