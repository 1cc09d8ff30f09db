//! What a guest can see after a case, and where two sides differ in it.

use std::collections::BTreeMap;
use std::fmt;

use riscv_viommu::{Cause, Width};

use crate::case::Request;

/// Registers that are compared at the end of each case.
pub(crate) const REGISTERS: [(u64, Width, &str); 21] = [
    (8, Width::U32, "fctl"),
    (16, Width::U64, "ddtp"),
    (24, Width::U64, "cqb"),
    (32, Width::U32, "cqh"),
    (36, Width::U32, "cqt"),
    (40, Width::U64, "fqb"),
    (48, Width::U32, "fqh"),
    (52, Width::U32, "fqt"),
    (56, Width::U64, "pqb"),
    (64, Width::U32, "pqh"),
    (68, Width::U32, "pqt"),
    (72, Width::U32, "cqcsr"),
    (76, Width::U32, "fqcsr"),
    (80, Width::U32, "pqcsr"),
    (84, Width::U32, "ipsr"),
    (600, Width::U64, "tr_req_iova"),
    (608, Width::U64, "tr_req_ctl"),
    (760, Width::U64, "icvec"),
    (768, Width::U64, "msi_addr_0"),
    (776, Width::U32, "msi_data_0"),
    (780, Width::U32, "msi_vec_ctl_0"),
];

/// What came of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    Fault,
    /// The page the requested one leads to, and how many pages, less one, the mapping has: a mask.
    Page {
        page: u64,
        within: u64,
    },
}

impl Response {
    /// Reads `tr_response` as the answer to this request: fault 0, S 9, PPN 53:10. What follows from a size is where the
    /// requested page leads to; the size itself is not judged (rule DBG-20), and PBMT is not QEMU's to judge.
    pub(crate) fn of(raw: u64, request: &Request) -> Self {
        if raw & 1 != 0 {
            return Self::Fault;
        }
        let page = raw >> 10 & 0xfff_ffff_ffff;
        // Below the lowest 0 bit, and with it, the number says how large the range is (rule SZ-02).
        let within = if raw >> 9 & 1 == 0 { 0 } else { page ^ page.wrapping_add(1) };
        Self::Page { page: page & !within | request.iova >> 12 & within, within }
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault => f.write_str("fault"),
            // The size is not judged.
            Self::Page { page, .. } => write!(f, "page {page:#x}"),
        }
    }
}

/// A record of the fault queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) head: u64,
    pub(crate) reserved: u64,
    pub(crate) iotval: u64,
    /// Not compared, for it is not QEMU's to judge.
    pub(crate) iotval2: u64,
}

impl Record {
    pub(crate) fn of(words: [u64; 4]) -> Self {
        let [head, reserved, iotval, iotval2] = words;
        Self { head, reserved, iotval, iotval2 }
    }

    pub(crate) fn cause(self) -> u64 {
        self.head & 0xfff
    }

    pub(crate) fn set_cause(&mut self, cause: u64) {
        self.set(0, 12, cause);
    }

    pub(crate) fn set_process(&mut self, (valid, process): (bool, u32)) {
        self.set(32, 1, valid.into());
        self.set(12, 20, if valid { process.into() } else { 0 });
    }

    pub(crate) fn set_ttyp(&mut self, ttyp: u64) {
        self.set(34, 6, ttyp);
    }

    fn set(&mut self, low: u32, bits: u32, value: u64) {
        let mask = u64::MAX >> (64 - bits) << low;
        self.head = self.head & !mask | value << low;
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { head, reserved, iotval, .. } = *self;
        let field = |low: u32, bits: u32| head >> low & (u64::MAX >> (64 - bits));
        write!(f, "cause {} PID {:#x} PV {} ", self.cause(), field(12, 20), field(32, 1))?;
        write!(f, "PRIV {} TTYP {} DID {:#x} iotval {iotval:#x}", field(33, 1), field(34, 6), field(40, 24))?;
        if reserved == 0 { Ok(()) } else { write!(f, " reserved {reserved:#x}") }
    }
}

/// What one side shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observation {
    /// One for each request.
    pub(crate) responses: Vec<Response>,
    /// What the guest has read.
    pub(crate) reads: Vec<u64>,
    pub(crate) records: Vec<Record>,
    /// In the order of [`REGISTERS`].
    pub(crate) registers: Vec<u64>,
    pub(crate) mailboxes: BTreeMap<u64, u64>,
}

impl Observation {
    /// A register that is compared.
    pub(crate) fn register(&mut self, offset: u64) -> &mut u64 {
        &mut self.registers[index(offset)]
    }

    /// Has a register of `other`.
    pub(crate) fn copy_register(&mut self, offset: u64, other: &Self) {
        *self.register(offset) = other.registers[index(offset)];
    }

    /// Lines that say where `self`, what was expected, and QEMU differ.
    pub(crate) fn differences(&self, qemu: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |name: String, expected: String, got: String| {
            if expected != got {
                lines.push(format!("{name}: expected {expected}, QEMU {got}"));
            }
        };
        for (number, (expected, got)) in self.responses.iter().zip(&qemu.responses).enumerate() {
            compare(format!("response {number}"), expected.to_string(), got.to_string());
        }
        for (number, (expected, got)) in self.reads.iter().zip(&qemu.reads).enumerate() {
            compare(format!("read {number}"), format!("{expected:#x}"), format!("{got:#x}"));
        }
        for number in 0..self.records.len().max(qemu.records.len()) {
            let [expected, got] = [self, qemu].map(|side| format!("{:?}", side.records.get(number)));
            compare(format!("record {number}"), expected, got);
        }
        for ((&(.., name), expected), got) in REGISTERS.iter().zip(&self.registers).zip(&qemu.registers) {
            compare(name.to_owned(), format!("{expected:#x}"), format!("{got:#x}"));
        }
        for (at, expected) in &self.mailboxes {
            compare(format!("memory at {at:#x}"), format!("{expected:#x}"), format!("{:#x}", qemu.mailboxes[at]));
        }
        lines
    }
}

fn index(offset: u64) -> usize {
    REGISTERS.iter().position(|&(at, ..)| at == offset).expect("only registers that are compared are asked for")
}

/// The specification's name of a cause, as far as the crate knows one.
pub(crate) fn name(cause: u64) -> String {
    let known = u16::try_from(cause).ok().and_then(Cause::decode);
    known.map_or_else(|| "not a cause".to_owned(), |cause| format!("{cause:?}"))
}
