//! A case: a memory image and what the guest then does, the same for both sides.

use std::collections::BTreeMap;
use std::fmt;

use riscv_viommu::Width;

use crate::walk::{Visit, Walk};

/// One run of both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Case {
    /// What is wrong with it.
    pub(crate) flaw: String,
    /// Memory that is cleared afterwards: first address and bytes.
    pub(crate) arena: (u64, u64),
    /// Words that are not 0.
    pub(crate) image: BTreeMap<u64, u64>,
    pub(crate) steps: Vec<Step>,
    /// What `ddtp` is for the requests.
    pub(crate) ddtp: u64,
    /// `fctl.GXL`.
    pub(crate) gxl: bool,
    /// What is translated.
    pub(crate) request: Request,
    /// Words where a fence or an interrupt may store.
    pub(crate) mailboxes: Vec<u64>,
    /// The fault queue and its number of entries, where it is on.
    pub(crate) faults: Option<(u64, u32)>,
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Writes a register.
    Write { offset: u64, width: Width, value: u64 },
    /// Reads one.
    Read { offset: u64, width: Width },
    /// Writes a word of memory.
    Store { at: u64, value: u64 },
    /// Has the request's address translated and reads the answer.
    Translate,
}

/// A request of the debug interface (rules DBG-02 to DBG-12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) device: u32,
    /// The fields PV and PID.
    pub(crate) process: (bool, u32),
    pub(crate) iova: u64,
    pub(crate) privileged: bool,
    pub(crate) execute: bool,
    /// NW is 0.
    pub(crate) write: bool,
}

/// Where a page-table entry is, and that it has 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl Entry {
    pub(crate) fn get(self, image: &BTreeMap<u64, u64>) -> u64 {
        let word = image.get(&(self.at & !7)).copied().unwrap_or(0);
        if self.bytes == 8 { word } else { word >> self.shift() & 0xffff_ffff }
    }

    pub(crate) fn set(self, image: &mut BTreeMap<u64, u64>, value: u64) {
        let word = image.entry(self.at & !7).or_default();
        if self.bytes == 8 {
            *word = value;
        } else {
            *word = *word & !(0xffff_ffff << self.shift()) | (value & 0xffff_ffff) << self.shift();
        }
    }

    fn shift(self) -> u64 {
        (self.at & 4) * 8
    }
}

impl Request {
    /// What is written to `tr_req_ctl`: Go 0, Priv 1, Exe 2, NW 3, PID 31:12, PV 32, DID 63:40.
    pub(crate) fn control(&self) -> u64 {
        let (valid, process) = self.process;
        1 | u64::from(self.privileged) << 1
            | u64::from(self.execute) << 2
            | u64::from(!self.write) << 3
            | u64::from(process) << 12
            | u64::from(valid) << 32
            | u64::from(self.device) << 40
    }
}

impl Case {
    /// What the specification's process reads.
    pub(crate) fn walk(&self) -> Walk {
        Walk::of(self, &self.request)
    }

    /// A dword of the device's context, 0 where there is none.
    pub(crate) fn dword(&self, number: u64) -> u64 {
        let context = self.walk().context;
        context.and_then(|at| self.image.get(&(at + number * 8))).copied().unwrap_or(0)
    }

    /// `tc` of the device's context.
    pub(crate) fn tc(&self) -> u64 {
        self.dword(0)
    }

    /// Changes a dword of the device's context, if there is one.
    pub(crate) fn change_context(&mut self, dword: u64, change: impl FnOnce(u64) -> u64) {
        if let Some(context) = self.walk().context {
            self.image.entry(context + dword * 8).and_modify(|value| *value = change(*value));
        }
    }

    /// Changes the entries of page tables on the way of the request.
    pub(crate) fn change_entries(&mut self, change: impl Fn(&Visit, u64) -> u64) {
        for visit in self.walk().visits {
            let value = visit.entry.get(&self.image);
            visit.entry.set(&mut self.image, change(&visit, value));
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "flaw: {}", self.flaw)?;
        let mut last = 0;
        for (&at, &word) in &self.image {
            if last >> 12 != at >> 12 {
                writeln!(f, "page {:#x}", at & !0xfff)?;
            }
            last = at;
            writeln!(f, "  {:03x}: {word:#018x}", at & 0xfff)?;
        }
        for step in &self.steps {
            match step {
                Step::Write { offset, width, value } => writeln!(f, "write {offset} {width:?} {value:#x}")?,
                Step::Read { offset, width } => writeln!(f, "read {offset} {width:?}")?,
                Step::Store { at, value } => writeln!(f, "store {at:#x} {value:#x}")?,
                Step::Translate => writeln!(f, "{:x?}", self.request)?,
            }
        }
        Ok(())
    }
}
