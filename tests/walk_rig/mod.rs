//! What tests of walks share: the schemes as numbers of the privileged architecture's figures, contexts, and a plain
//! [`model`] of a walk.

#![allow(dead_code, reason = "each test uses its part of it")]

pub(crate) mod model;
pub(crate) mod random;

use crate::dma_rig::{Access, DmaRig, READ, everything};
use proptest::test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner};
use riscv_viommu::mock::tables::tc::{PDTV, SXL};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory};
use riscv_viommu::{Config, FirstStageMode, Gpa, Gscid, Gxl, ProcessId, Request, SecondStageMode, Translation};

/// Bits of `fctl` (rules REG-FCTL-01, REG-FCTL-03).
pub(crate) const BE: u64 = 1;
pub(crate) const GXL: u64 = 1 << 2;

/// Bits of an entry that are not in the shared names: `PBMT` is 62:61 (rule PTE-01).
pub(crate) const NC: u64 = 1 << 61;
pub(crate) const IO: u64 = 2 << 61;

/// A scheme.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scheme<M> {
    pub(crate) mode: M,
    /// An entry of level `i` maps 2^`shifts[i]` bytes.
    pub(crate) shifts: &'static [u32],
    /// Bits of an address.
    pub(crate) bits: u32,
    /// Bytes of an entry.
    pub(crate) entry: u64,
}

pub(crate) type First = Scheme<FirstStageMode>;
pub(crate) type Second = Scheme<SecondStageMode>;

const RV32: &[u32] = &[12, 22];
const THREE: &[u32] = &[12, 21, 30];
const FOUR: &[u32] = &[12, 21, 30, 39];
const FIVE: &[u32] = &[12, 21, 30, 39, 48];

/// Rules S1-01 to S1-03.
pub(crate) const FIRST: [First; 4] = [
    Scheme { mode: FirstStageMode::Sv32, shifts: RV32, bits: 32, entry: 4 },
    Scheme { mode: FirstStageMode::Sv39, shifts: THREE, bits: 39, entry: 8 },
    Scheme { mode: FirstStageMode::Sv48, shifts: FOUR, bits: 48, entry: 8 },
    Scheme { mode: FirstStageMode::Sv57, shifts: FIVE, bits: 57, entry: 8 },
];

/// Rules S2-01 to S2-03.
pub(crate) const SECOND: [Second; 4] = [
    Scheme { mode: SecondStageMode::Sv32x4, shifts: RV32, bits: 34, entry: 4 },
    Scheme { mode: SecondStageMode::Sv39x4, shifts: THREE, bits: 41, entry: 8 },
    Scheme { mode: SecondStageMode::Sv48x4, shifts: FOUR, bits: 50, entry: 8 },
    Scheme { mode: SecondStageMode::Sv57x4, shifts: FIVE, bits: 59, entry: 8 },
];

/// Another index at every level, from the last up; the root's has its highest bit clear in a first stage.
const INDICES: [u64; 5] = [0x1a5, 0x0f3, 0x07c, 0x055, 0x033];

impl<M: Copy> Scheme<M> {
    pub(crate) fn levels(&self) -> u8 {
        self.shifts.len().try_into().expect("5 at most")
    }

    pub(crate) fn root_level(&self) -> u8 {
        self.levels() - 1
    }

    pub(crate) fn shift(&self, level: u8) -> u32 {
        self.shifts[usize::from(level)]
    }

    /// An address with another index at every level and an offset in its page.
    pub(crate) fn sample(&self) -> u64 {
        let indices = self.shifts.iter().zip(INDICES);
        indices.fold(0xabc, |address, (shift, index)| address | index << shift)
    }

    /// Bytes from the start of a table to the entry of this level.
    pub(crate) fn offset(&self, address: u64, level: u8) -> u64 {
        let shift = self.shift(level);
        let above = if level == self.root_level() { self.bits } else { self.shift(level + 1) };
        (address >> shift) % (1 << (above - shift)) * self.entry
    }

    /// Where PPN is a multiple of a leaf's size at every level, as far up as addresses go.
    pub(crate) fn target(&self, level: u8) -> u64 {
        // 34 bits of an Sv32 entry, 56 of the others.
        let highest = if self.entry == 4 { 0x3_4567_8000 } else { 0xa5_6789_abcd_e000 };
        highest >> self.shift(level) << self.shift(level)
    }
}

/// What is offered in these tests: everything, and RV32 where the guest asks for it.
pub(crate) fn config() -> Config {
    everything().with_gxl(Gxl::Writable)
}

pub(crate) fn rig() -> DmaRig<0> {
    DmaRig::new(config())
}

/// `SXL`, where the scheme needs it (rule S1-01).
pub(crate) fn sxl(mode: FirstStageMode) -> u64 {
    if mode == FirstStageMode::Sv32 { SXL } else { 0 }
}

/// `GXL`, where the scheme needs it (rule S2-01).
pub(crate) fn gxl(mode: SecondStageMode) -> u64 {
    if mode == SecondStageMode::Sv32x4 { GXL } else { 0 }
}

pub(crate) const GSCID: Gscid = Gscid::truncate(0x77);
const PSCID: u64 = 0x5_4321 << 12;

/// The device's context: `tc` beside V, `iohgatp`, `fsc`.
pub(crate) fn context(rig: &DmaRig<0>, tc: u64, iohgatp: u64, fsc: u64) {
    rig.set_context(&[1 | tc, iohgatp, PSCID, fsc]);
}

/// The same where the first stage is a process's: the device has a directory of 8 bits, and this process a context
/// with `ENS`, and with `SUM` or not (rules PC-01 to PC-06).
pub(crate) fn process_context(rig: &DmaRig<0>, tc: u64, iohgatp: u64, fsc: u64, sum: bool) {
    process_context_below(rig, tc, iohgatp, fsc, sum, 0);
}

/// The same with a process directory that a second stage finds `offset` below its place.
pub(crate) fn process_context_below(rig: &DmaRig<0>, tc: u64, iohgatp: u64, fsc: u64, sum: bool, offset: u64) {
    let processes = ProcessDirectory::new(&rig.memory, 1).below(offset);
    processes.set(PROCESS, [0b11 | u64::from(sum) << 2 | PSCID, fsc]);
    rig.set_context(&[1 | PDTV | tc, iohgatp, 0, processes.pdtp()]);
}

pub(crate) const PROCESS: ProcessId = ProcessId::truncate(0x21);

/// The address of an access, or the code of its cause; which record there is, is looked at by others.
pub(crate) fn go(rig: &mut DmaRig<0>, access: Access, address: u64) -> Result<u64, u16> {
    let request = access.of(rig, address);
    let result = rig.address(request);
    let _ = rig.take_faults();
    result
}

/// The same of a process.
pub(crate) fn go_as(rig: &mut DmaRig<0>, access: Access, address: u64, privileged: bool) -> Result<u64, u16> {
    let request = access.of(rig, address).with_process(PROCESS, privileged);
    let result = rig.address(request);
    let _ = rig.take_faults();
    result
}

/// The cause and the `iotval2` of an access that faults, as they are recorded.
pub(crate) fn fault(rig: &mut DmaRig<0>, request: Request) -> (u16, u64) {
    let code = rig.address(request).expect_err("a fault is expected");
    let [head, _, iotval, iotval2] = rig.take_fault();
    assert_eq!(u64::from(code), head & 0xfff, "the record has the cause that is returned");
    assert_eq!(iotval, request.iova.get(), "FR-07");
    (code, iotval2)
}

pub(crate) fn translation(rig: &mut DmaRig<0>, access: Access, address: u64) -> Translation {
    let request = access.of(rig, address);
    rig.translate(request).expect("it is mapped")
}

/// Loads since they were last taken, without those of the device directory: the addresses of single words.
pub(crate) fn walk_loads(rig: &DmaRig<0>) -> Vec<u64> {
    let loads = rig.memory.take_loads();
    // Three levels; the last is a context of 8 words.
    let directory: Vec<usize> = loads.iter().take(3).map(|load| load.1).collect();
    assert_eq!(directory, [1, 1, 8], "the directory is walked first");
    loads[3..]
        .iter()
        .map(|&(at, words)| {
            assert_eq!(words, 1, "PTE-10: an entry is one load of its word");
            at.get()
        })
        .collect()
}

/// The guest's VM has memory at 0 that is the guest's at 2 GiB: all tables the mock makes are there.
pub(crate) const OFFSET: u64 = 0x8000_0000;

/// A second stage that maps, beside what the test wants, the first 2 or 4 MiB to where the mock has its tables.
pub(crate) fn second_stage(rig: &DmaRig<0>, mode: SecondStageMode) -> PageTable {
    let table = PageTable::second_stage(&rig.memory, mode);
    table.map(0, OFFSET, 1, riscv_viommu::mock::tables::pte::RW);
    table
}

/// A first stage behind [`second_stage`].
pub(crate) fn nested_first_stage(rig: &DmaRig<0>, mode: FirstStageMode) -> PageTable {
    PageTable::first_stage(&rig.memory, mode).below(OFFSET)
}

/// The places of the entries on the way to `address` from the root down to `level`, in memory.
pub(crate) fn entries<M: Copy>(scheme: &Scheme<M>, table: &PageTable, address: u64, level: u8) -> Vec<Gpa> {
    (level..scheme.levels()).rev().map(|level| table.entry_address(address, level)).collect()
}

/// The same random cases in every run, so that a test that turned red stays so.
pub(crate) fn runner(cases: u32) -> TestRunner {
    let config = Runs { cases, failure_persistence: None, ..Runs::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// A guest with one of the two stages, whose table is empty; the other is Bare.
#[derive(Debug)]
pub(crate) struct Single {
    pub(crate) rig: DmaRig<0>,
    pub(crate) table: PageTable,
    pub(crate) shifts: &'static [u32],
    pub(crate) entry: u64,
    pub(crate) is_second: bool,
    /// An address with another index at every level.
    pub(crate) address: u64,
    /// What leaves of each level lead to.
    pub(crate) targets: Vec<u64>,
    pub(crate) name: String,
}

impl Single {
    pub(crate) fn first(scheme: &First, config: Config, tc: u64) -> Self {
        let rig = DmaRig::new(config);
        let table = PageTable::first_stage(&rig.memory, scheme.mode);
        context(&rig, sxl(scheme.mode) | tc, 0, table.iosatp());
        Self::new(rig, table, scheme, false)
    }

    pub(crate) fn second(scheme: &Second, config: Config, tc: u64) -> Self {
        let mut rig = DmaRig::new(config);
        let table = PageTable::second_stage(&rig.memory, scheme.mode);
        let gxl = gxl(scheme.mode);
        if gxl != 0 {
            rig.set_fctl(gxl);
        }
        // With GXL = 1, SXL is 1, too (rule DCK-20).
        context(&rig, if gxl == 0 { tc } else { SXL | tc }, table.iohgatp(GSCID), 0);
        Self::new(rig, table, scheme, true)
    }

    fn new<M: Copy + std::fmt::Debug>(rig: DmaRig<0>, table: PageTable, scheme: &Scheme<M>, is_second: bool) -> Self {
        // Nothing is left of what the directory took.
        rig.forget_accesses();
        Self {
            rig,
            table,
            shifts: scheme.shifts,
            entry: scheme.entry,
            is_second,
            address: scheme.sample(),
            targets: (0..scheme.levels()).map(|level| scheme.target(level)).collect(),
            name: format!("{:?}", scheme.mode),
        }
    }

    /// Every scheme of both stages, with this offer and this `tc`.
    pub(crate) fn every(config: Config, tc: u64) -> Vec<Self> {
        let first = FIRST.iter().map(|scheme| Self::first(scheme, config, tc));
        first.chain(SECOND.iter().map(|scheme| Self::second(scheme, config, tc))).collect()
    }

    pub(crate) fn levels(&self) -> u8 {
        self.shifts.len().try_into().expect("5 at most")
    }

    /// What the access faults with where this stage refuses it.
    pub(crate) fn refusal(&self, access: Access) -> u16 {
        if self.is_second { access.guest_page_fault } else { access.page_fault }
    }

    pub(crate) fn go(&mut self, access: Access) -> Result<u64, u16> {
        go(&mut self.rig, access, self.address)
    }

    /// Whether a read of the address passes this entry; if it does not, it is with the stage's cause.
    pub(crate) fn takes(&mut self, level: u8, entry: u64) -> bool {
        self.table.set(self.address, level, entry);
        match self.go(READ) {
            Ok(_) => true,
            Err(code) => {
                assert_eq!(code, self.refusal(READ), "PTE-02: {} level {level}, {entry:#x}", self.name);
                false
            }
        }
    }
}
