//! Walks that end early: every entry of every structure on the way of a request is made to fail in turn, and the cause
//! is that of the structure, in a record that says whose request it was.
//!
//! Rule IDs are those of the rules of translation and directories; which entries a walk reads, and where they are, is
//! worked out with the mock's tables, which know nothing of the crate's formats.

#![expect(clippy::expect_used, clippy::panic, reason = "a failure is a finding")]
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;

use dma_rig::{Access, DEVICE, DmaRig, EXECUTE, READ, WRITE, everything, head};
use riscv_viommu::mock::guest::register::{
    CIP, CQB, CQCSR, CQT, DDTP, FIP, FQB, FQCSR, FQT, IPSR, MEMORY_FAULT, MSI_CFG_TBL,
};
use riscv_viommu::mock::guest::{FaultRing, Iofence};
use riscv_viommu::mock::tables::tc::{DTF, GADE, PDTV, SADE, SBE, SXL};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::mock::{Memory, Wires};
use riscv_viommu::{
    Capabilities, Config, DeviceId, FirstStageMode, Gpa, Gscid, Gxl, InterruptKinds, Iova, MemoryFault, NoPhysical,
    Parts, ProcessId, Request, SecondStageMode, Target, TranslateError, VIommu, Width,
};

const V: u64 = 1;
/// `fctl.BE`.
const BE: u64 = 1;

const PROCESS: u32 = 0xb_3456;
const GSCID: u32 = 0x1234;
/// Where the device's page is in memory.
const TO: u64 = 0x3_7654_3000;

/// What an entry belongs to; of a second-stage entry also what its walk is for, with the address that is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Structure {
    Ddt,
    Pdt,
    SecondForPdt(u64),
    First,
    SecondForFirst(u64),
    Second(u64),
}

/// How an entry fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// An access violation.
    Violation,
    /// Poison.
    Corruption,
    /// V = 0, with every other bit of the word set.
    Invalid,
    /// A reserved bit or encoding.
    Reserved(u64),
}

/// The failures of memory, and how it tells them.
const OF_MEMORY: [(Failure, MemoryFault); 2] =
    [(Failure::Violation, MemoryFault::Access), (Failure::Corruption, MemoryFault::Corruption)];

impl Structure {
    /// CAUSE and iotval2, as table FLT and its companions say.
    fn fault(self, failure: Failure, access: Access) -> (u16, u64) {
        use Failure::{Corruption, Invalid, Reserved, Violation};
        let Access { abort: access_fault, page_fault, guest_page_fault, .. } = access;
        match (self, failure) {
            (Self::Ddt, Violation) => (257, 0),
            (Self::Ddt, Corruption) => (268, 0),
            (Self::Ddt, Invalid) => (258, 0),
            (Self::Ddt, Reserved(_)) => (259, 0),
            (Self::Pdt | Self::SecondForPdt(_), Violation) => (265, 0),
            (Self::Pdt | Self::SecondForPdt(_), Corruption) => (269, 0),
            (Self::Pdt, Invalid) => (266, 0),
            (Self::Pdt, Reserved(_)) => (267, 0),
            (_, Violation) => (access_fault, 0),
            (_, Corruption) => (274, 0),
            (Self::First, _) => (page_fault, 0),
            // Bit 0: an access of the walk itself.
            (Self::SecondForPdt(gpa) | Self::SecondForFirst(gpa), _) => (guest_page_fault, gpa & !3 | 1),
            (Self::Second(gpa), _) => (guest_page_fault, gpa & !3),
        }
    }

    const fn rules(self) -> &'static str {
        match self {
            Self::Ddt => "TR-07, DDT-11, DDT-12, DDT-13, FLT-01, FR-13",
            Self::Pdt => "TR-15, PDT-07, PDT-08, PC-01, FLT-02, PCK-01",
            Self::SecondForPdt(_) => "PDT-06, PDT-10, PDT-11, FLT-03, FR-08",
            Self::First => "TR-18, S1-08, S1-09, FLT-04",
            Self::SecondForFirst(_) => "S1-07, FLT-05, FR-08",
            Self::Second(_) => "TR-20, S2-04, S2-07, FLT-06",
        }
    }
}

/// An entry the walk reads.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: Gpa,
    bytes: u64,
    structure: Structure,
    /// What breaks it but for V and memory.
    reserved: u64,
}

impl Step {
    /// The load that reads it: whole words.
    const fn load(&self) -> (Gpa, usize) {
        let words = match self.bytes {
            64 => 8,
            32 => 4,
            16 => 2,
            _ => 1,
        };
        (Gpa::new(self.at.get() & !7), words)
    }
}

/// A shape of tables.
#[derive(Clone, Copy, Debug)]
struct Shape {
    extended: bool,
    /// Levels of the process directory, 0 for none.
    processes: u8,
    first: Option<FirstStageMode>,
    second: Option<SecondStageMode>,
    tc: u64,
    /// `fctl.BE`; SBE is in `tc`.
    be: bool,
}

/// A device behind these tables, with one page mapped.
struct World {
    rig: DmaRig,
    /// Guest memory in the byte order of process directories and first stages.
    of_process: Memory,
    shape: Shape,
    processes: Option<ProcessDirectory>,
    first: Option<PageTable>,
    second: Option<PageTable>,
    iova: u64,
    /// What the second stage adds to the addresses of the process directory, and of the first stage's tables.
    offsets: [u64; 2],
    /// Where the first stage leads to.
    gpa: u64,
}

impl World {
    fn new(shape: Shape) -> Self {
        let rv32 = shape.first == Some(FirstStageMode::Sv32) || shape.second == Some(SecondStageMode::Sv32x4);
        let config = everything()
            .with_capabilities(Capabilities::from_bits(u64::MAX).with_pas(56).with_msi_flat(shape.extended))
            .with_gxl(if rv32 { Gxl::One } else { Gxl::Zero });
        Self::with_config(shape, config)
    }

    fn with_config(shape: Shape, config: Config) -> Self {
        let plain = Memory::new();
        let in_order = |big_endian| if big_endian { plain.big_endian() } else { plain.clone() };
        let (of_iommu, of_process) = (in_order(shape.be), in_order(shape.tc & SBE != 0));
        let mut rig = DmaRig::in_memory(config, of_iommu.clone());
        if shape.be {
            // GXL may be fixed to 1.
            rig.write_fctl(BE);
        }
        // Three parts of guest-physical space that have no second-stage entry in common.
        let (low, top) = (0x4000_0000, |bit: u32| 1_u64 << bit);
        let (offsets, gpa) = match shape.second {
            None => ([0, 0], TO),
            Some(SecondStageMode::Sv32x4) => ([low, 0_u64.wrapping_sub(top(33))], 0x1_2345_6000),
            Some(SecondStageMode::Sv39x4) => ([low, 0_u64.wrapping_sub(top(40))], top(39) | 0x1234_5000),
            Some(SecondStageMode::Sv48x4) => ([low, 0_u64.wrapping_sub(top(49))], top(48) | 0x1234_5000),
            Some(_) => ([low, 0_u64.wrapping_sub(top(55))], top(54) | 0x1234_5000),
        };
        // A different index at each level.
        let iova = match shape.first {
            None => gpa | 0xabc,
            Some(FirstStageMode::Sv32) => 0x8765_4abc,
            Some(FirstStageMode::Sv39) => 0x3f_8060_5abc,
            Some(FirstStageMode::Sv48) => 0x7abc_8060_5abc,
            Some(_) => 0x00ab_cdef_8060_5abc,
        };
        let processes =
            (shape.processes > 0).then(|| ProcessDirectory::new(&of_process, shape.processes).below(offsets[0]));
        let first = shape.first.map(|mode| PageTable::first_stage(&of_process, mode).below(offsets[1]));
        let second = shape.second.map(|mode| PageTable::second_stage(&rig.memory, mode));
        let world = Self { rig, of_process, shape, processes, first, second, iova, offsets, gpa };
        world.build();
        world
    }

    fn process(&self) -> ProcessId {
        let width = [0, 8, 17, 20][usize::from(self.shape.processes)];
        ProcessId::truncate(PROCESS & ((1 << width) - 1))
    }

    fn build(&self) {
        let iosatp = self.first.as_ref().map_or(0, PageTable::iosatp);
        let (pdtv, fsc) = match &self.processes {
            Some(processes) => {
                processes.set(self.process(), [V, iosatp]);
                (PDTV, processes.pdtp())
            }
            None => (0, iosatp),
        };
        let iohgatp = self.second.as_ref().map_or(0, |second| second.iohgatp(Gscid::truncate(GSCID)));
        let rv32 = self.shape.first == Some(FirstStageMode::Sv32) || self.shape.second == Some(SecondStageMode::Sv32x4);
        let sxl = if rv32 { SXL } else { 0 };
        self.rig.set_context(&[V | pdtv | sxl | self.shape.tc, iohgatp, 0, fsc]);
        if let Some(first) = &self.first {
            first.map(self.iova, self.gpa, 0, pte::RW | pte::X);
        }
        if let Some(second) = &self.second {
            second.map(self.gpa, TO, 0, pte::RW | pte::X);
            for step in self.steps() {
                if let Structure::Pdt | Structure::First = step.structure {
                    second.map(self.gpa_of(&step), step.at.get(), 0, pte::RW);
                }
            }
        }
        self.rig.forget_accesses();
    }

    fn gpa_of(&self, step: &Step) -> u64 {
        let offset = if step.structure == Structure::Pdt { self.offsets[0] } else { self.offsets[1] };
        step.at.get().wrapping_sub(offset)
    }

    /// The entries a request reads, in their order: the steps of "Process to translate an IOVA".
    fn steps(&self) -> Vec<Step> {
        let device = DeviceId::truncate(DEVICE);
        let directory = &self.rig.directory;
        let mut steps = Vec::new();
        for level in [2, 1] {
            let at = directory.non_leaf_address(device, level);
            steps.push(Step { at, bytes: 8, structure: Structure::Ddt, reserved: 1 << 63 });
        }
        let bytes = if self.shape.extended { 64 } else { 32 };
        steps.push(Step { at: directory.entry_address(device), bytes, structure: Structure::Ddt, reserved: 1 << 12 });
        if let Some(processes) = &self.processes {
            for level in (1..self.shape.processes).rev() {
                let at = processes.non_leaf_address(self.process(), level);
                self.reach(&mut steps, Step { at, bytes: 8, structure: Structure::Pdt, reserved: 1 << 54 });
            }
            let at = processes.entry_address(self.process());
            self.reach(&mut steps, Step { at, bytes: 16, structure: Structure::Pdt, reserved: 1 << 3 });
        }
        if let (Some(first), Some(mode)) = (&self.first, self.shape.first) {
            for level in (0..mode.levels()).rev() {
                let at = first.entry_address(self.iova, level);
                let bytes = if mode == FirstStageMode::Sv32 { 4 } else { 8 };
                self.reach(
                    &mut steps,
                    Step { at, bytes, structure: Structure::First, reserved: reserved_of(bytes, level) },
                );
            }
        }
        self.walk(&mut steps, self.gpa | self.iova & 0xfff, Structure::Second);
        steps
    }

    /// An entry that is itself behind the second stage.
    fn reach(&self, steps: &mut Vec<Step>, step: Step) {
        let purpose =
            if step.structure == Structure::Pdt { Structure::SecondForPdt } else { Structure::SecondForFirst };
        self.walk(steps, self.gpa_of(&step), purpose);
        steps.push(step);
    }

    fn walk(&self, steps: &mut Vec<Step>, gpa: u64, purpose: fn(u64) -> Structure) {
        let (Some(second), Some(mode)) = (&self.second, self.shape.second) else { return };
        let (levels, bytes) = match mode {
            SecondStageMode::Sv32x4 => (2, 4),
            SecondStageMode::Sv39x4 => (3, 8),
            SecondStageMode::Sv48x4 => (4, 8),
            SecondStageMode::Sv57x4 => (5, 8),
            other => panic!("{other:?}"),
        };
        for level in (0..levels).rev() {
            let at = second.entry_address(gpa, level);
            steps.push(Step { at, bytes, structure: purpose(gpa), reserved: reserved_of(bytes, level) });
        }
    }

    /// Guest memory in the byte order of this structure (table EDN).
    const fn memory(&self, structure: Structure) -> &Memory {
        match structure {
            Structure::Pdt | Structure::First => &self.of_process,
            _ => &self.rig.memory,
        }
    }

    fn read(&self, step: &Step) -> u64 {
        let memory = self.memory(step.structure);
        if step.bytes == 4 { memory.read_half(step.at).into() } else { memory.read(step.at) }
    }

    fn write(&self, step: &Step, entry: u64) {
        let memory = self.memory(step.structure);
        match step.bytes {
            4 => memory.write_half(step.at, u32::try_from(entry).expect("4 bytes")),
            _ => memory.write(step.at, entry),
        }
    }

    /// Breaks an entry; what it was.
    fn spoil(&self, step: &Step, failure: Failure) -> u64 {
        let good = self.read(step);
        let bad = match (failure, step.bytes) {
            (Failure::Invalid, 4) => 0xffff_fffe,
            (Failure::Invalid, _) => !V,
            (Failure::Reserved(bit), _) => good ^ bit,
            (Failure::Violation | Failure::Corruption, _) => good,
        };
        self.write(step, bad);
        good
    }

    fn request(&self, access: Access) -> Request {
        let request = (access.request)(self.rig.device, Iova::new(self.iova));
        match &self.processes {
            Some(_) => request.with_process(self.process(), false),
            None => request,
        }
    }

    /// The record of this fault (FR-01, FR-05, FR-07).
    fn record(&self, access: Access, (cause, iotval2): (u16, u64)) -> [u64; 4] {
        let process = self.processes.as_ref().map(|_| (self.process().get(), false));
        [head(cause, access.ttyp, process), 0, self.iova, iotval2]
    }

    /// The request comes to nothing for this reason, and the guest is told, unless DTF says not to.
    #[track_caller]
    fn fails(&mut self, access: Access, fault: (u16, u64), what: &str) {
        let request = self.request(access);
        assert_eq!(self.rig.address(request), Err(fault.0), "{what}");
        // FR-03.
        let told = self.shape.tc & DTF == 0 || matches!(fault.0, 256..=259 | 268 | 272 | 273);
        let records = if told { vec![self.record(access, fault)] } else { vec![] };
        assert_eq!(self.rig.take_faults(), records, "FR-01, FR-03, FR-05, FR-07: {what}");
    }

    #[track_caller]
    fn succeeds(&mut self, access: Access, what: &str) {
        let request = self.request(access);
        assert_eq!(self.rig.address(request), Ok(TO | self.iova & 0xfff), "{what}");
    }
}

/// What makes a page-table entry at `level` wrong: a reserved bit, of a 4-byte one, which has none, U of a non-leaf or
/// W without R.
const fn reserved_of(bytes: u64, level: u8) -> u64 {
    match (bytes, level) {
        (4, 0) => pte::R,
        (4, _) => pte::U,
        _ => 1 << 54,
    }
}

fn shapes() -> Vec<Shape> {
    use FirstStageMode::{Sv32, Sv39, Sv48, Sv57};
    use SecondStageMode::{Sv32x4, Sv39x4, Sv48x4, Sv57x4};
    let shape = |extended, processes, first, second| Shape { extended, processes, first, second, tc: 0, be: false };
    let big = |be, sbe, shape: Shape| Shape { be, tc: shape.tc | if sbe { SBE } else { 0 }, ..shape };
    vec![
        shape(false, 0, Some(Sv39), None),
        shape(true, 0, Some(Sv48), None),
        shape(false, 1, Some(Sv57), None),
        shape(true, 2, Some(Sv39), None),
        shape(false, 3, Some(Sv39), None),
        shape(true, 0, None, Some(Sv39x4)),
        shape(false, 0, None, Some(Sv48x4)),
        shape(true, 0, Some(Sv39), Some(Sv39x4)),
        shape(false, 1, Some(Sv48), Some(Sv39x4)),
        shape(true, 2, Some(Sv39), Some(Sv48x4)),
        shape(true, 3, Some(Sv57), Some(Sv57x4)),
        shape(true, 3, None, Some(Sv57x4)),
        // Entries of 4 bytes.
        shape(true, 0, Some(Sv32), None),
        shape(false, 0, None, Some(Sv32x4)),
        shape(true, 2, Some(Sv32), Some(Sv32x4)),
        // Big-endian: all, or what one of the two bits is about.
        big(true, true, shape(true, 3, Some(Sv48), Some(Sv39x4))),
        big(true, false, shape(false, 3, Some(Sv48), Some(Sv39x4))),
        big(false, true, shape(true, 3, Some(Sv48), Some(Sv39x4))),
        big(false, true, shape(false, 1, Some(Sv39), None)),
        big(true, false, shape(false, 1, Some(Sv32), Some(Sv32x4))),
        big(false, true, shape(true, 1, Some(Sv32), Some(Sv32x4))),
    ]
}

/// Steps, each entry once: where several steps read it, the first does.
fn entries(steps: &[Step]) -> impl Iterator<Item = Step> {
    let first = |index: usize, step: &Step| steps[..index].iter().all(|earlier| earlier.at != step.at);
    steps.iter().enumerate().filter(move |(index, step)| first(*index, step)).map(|(_, step)| *step)
}

#[test]
fn a_walk_reads_each_entry_once_and_in_the_order_of_the_process() {
    for shape in shapes() {
        let mut world = World::new(shape);
        let expected: Vec<_> = world.steps().iter().map(Step::load).collect();
        world.rig.forget_accesses();
        for access in [READ, WRITE, EXECUTE] {
            world.succeeds(access, "TR-17, TR-20, TR-21");
            assert_eq!(
                world.rig.memory.take_loads(),
                expected,
                "TR-05 to TR-20, DDT-17, VT-14, UPD-01, PTE-10: {shape:?}"
            );
            assert_eq!(world.rig.memory.take_events(), [], "AD-01: nothing to update");
        }
    }
}

#[test]
fn no_page_takes_more_than_56_loads() {
    let shape = Shape {
        extended: true,
        processes: 3,
        first: Some(FirstStageMode::Sv57),
        second: Some(SecondStageMode::Sv57x4),
        tc: 0,
        be: false,
    };
    let mut world = World::new(shape);
    world.succeeds(READ, "TR-20");
    assert_eq!(world.rig.memory.take_loads().len(), 56, "VT-13");
}

#[test]
fn an_entry_that_can_not_be_read_gives_the_cause_of_its_structure() {
    for shape in shapes() {
        for tc in [0, DTF] {
            let mut world = World::new(Shape { tc: shape.tc | tc, ..shape });
            let steps = world.steps();
            for access in [READ, WRITE, EXECUTE] {
                for step in &steps {
                    for (failure, fault) in OF_MEMORY {
                        world.rig.memory.fail(step.at, step.bytes, fault);
                        // What shares the word fails too, and what the walk comes to first counts.
                        let first = steps.iter().find(|other| other.load().0 == step.load().0).expect("it is there");
                        let expected = first.structure.fault(failure, access);
                        world.fails(access, expected, first.structure.rules());
                        world.rig.memory.clear_failures();
                    }
                }
                world.succeeds(access, "VT-01: nothing is left of a failure");
            }
        }
    }
}

#[test]
fn a_load_that_fails_ends_the_walk() {
    for shape in shapes() {
        let mut world = World::new(shape);
        let loads: Vec<_> = world.steps().iter().map(Step::load).collect();
        for (index, load) in loads.iter().enumerate() {
            if loads[..index].contains(load) {
                continue;
            }
            world.rig.memory.fail(load.0, 8, MemoryFault::Access);
            world.rig.forget_accesses();
            let request = world.request(WRITE);
            assert!(world.rig.address(request).is_err());
            assert_eq!(world.rig.memory.take_loads(), loads[..=index], "PDT-07, DDT-11, DDT-12: {shape:?}");
            world.rig.memory.clear_failures();
            let _ = world.rig.take_faults();
        }
    }
}

#[test]
fn a_broken_entry_gives_the_cause_of_its_structure() {
    for shape in shapes() {
        for tc in [0, DTF] {
            let mut world = World::new(Shape { tc: shape.tc | tc, ..shape });
            let steps = world.steps();
            for access in [READ, WRITE, EXECUTE] {
                for step in entries(&steps) {
                    for failure in [Failure::Invalid, Failure::Reserved(step.reserved)] {
                        let restore = world.spoil(&step, failure);
                        let expected = step.structure.fault(failure, access);
                        // A context that was not found good has no DTF (FR-04).
                        world.fails(access, expected, step.structure.rules());
                        world.write(&step, restore);
                    }
                }
                world.succeeds(access, "VT-01: nothing is left of a failure");
            }
        }
    }
}

#[test]
fn every_reserved_bit_of_a_directory_entry_counts() {
    let reserved = |mask: u64| (0..64).map(|bit| 1_u64 << bit).filter(move |bit| mask & bit != 0);
    for second in [None, Some(SecondStageMode::Sv39x4)] {
        let shape = Shape { extended: true, processes: 3, first: Some(FirstStageMode::Sv39), second, tc: 0, be: false };
        let mut world = World::new(shape);
        for step in world.steps() {
            // DDT-10, PDT-04; PC-05 with fsc 59:44.
            let masks = match (step.structure, step.bytes) {
                (Structure::Ddt | Structure::Pdt, 8) => vec![(0, 0xffc0_0000_0000_03fe)],
                (Structure::Pdt, _) => vec![(0, 0xffff_ffff_0000_0ff8), (8, 0x0fff_f000_0000_0000)],
                _ => continue,
            };
            for (offset, mask) in masks {
                let at = Gpa::new(step.at.get() + offset);
                let good = world.rig.memory.read(at);
                for bit in reserved(mask) {
                    world.rig.memory.write(at, good | bit);
                    let expected = step.structure.fault(Failure::Reserved(bit), READ);
                    world.fails(READ, expected, "DDT-10, PDT-04, PC-05, PC-06, PCK-01");
                }
                world.rig.memory.write(at, good);
            }
        }
        world.succeeds(READ, "PCK-01");
    }
}

#[test]
fn an_update_that_fails_gives_the_cause_of_its_structure() {
    for shape in shapes() {
        let mut world = World::new(Shape { tc: shape.tc | SADE | GADE, ..shape });
        let steps = world.steps();
        for access in [READ, WRITE, EXECUTE] {
            for step in entries(&steps) {
                let leaf = world.read(&step);
                if matches!(step.structure, Structure::Ddt | Structure::Pdt) || leaf & pte::R == 0 {
                    continue;
                }
                for (failure, fault) in OF_MEMORY {
                    world.write(&step, leaf & !pte::A);
                    world.rig.memory.fail_stores(step.at, step.bytes, fault);
                    let expected = step.structure.fault(failure, access);
                    world.fails(access, expected, "AD-05, PC-07, FLT-03 to FLT-06");
                    assert_eq!(world.read(&step), leaf & !pte::A, "AD-05");
                    world.rig.memory.clear_failures();
                    world.succeeds(access, "PDT-12, AD-01, AD-02, PC-07");
                    assert_eq!(world.read(&step), leaf, "PDT-12, AD-01, AD-02, EDN-07");
                }
            }
        }
    }
}

#[test]
fn without_updates_a_leaf_that_was_not_accessed_is_a_fault_of_its_stage() {
    for second in [None, Some(SecondStageMode::Sv39x4)] {
        let shape = Shape { extended: true, processes: 2, first: Some(FirstStageMode::Sv39), second, tc: 0, be: false };
        let mut world = World::new(shape);
        let steps = world.steps();
        for access in [READ, WRITE, EXECUTE] {
            for step in entries(&steps) {
                let leaf = world.read(&step);
                if matches!(step.structure, Structure::Ddt | Structure::Pdt) || leaf & pte::R == 0 {
                    continue;
                }
                world.write(&step, leaf & !pte::A);
                let expected = step.structure.fault(Failure::Invalid, access);
                world.fails(access, expected, "PDT-12, DC-08, DC-09, AD-01, AD-02");
                world.write(&step, leaf);
            }
        }
    }
}

/// The pointers on the way, and the step that reads what they point to: where, which bits, and how far the page number
/// is shifted in them. Pointers into guest-physical space are not among them.
fn pointers(world: &World, steps: &[Step]) -> Vec<(Step, u64, u32, Option<Step>)> {
    const IN_ENTRY: (u64, u32) = (0x003f_ffff_ffff_fc00, 10);
    const IN_CONTEXT: (u64, u32) = (0x0fff_ffff_ffff, 0);
    let mut pointers = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let next = steps.get(index + 1).copied();
        let guest_physical = world.second.is_some() && matches!(step.structure, Structure::Pdt | Structure::First);
        let (offset, (mask, shift)) = match (step.structure, step.bytes) {
            _ if guest_physical => continue,
            (Structure::Ddt, 32 | 64) if world.second.is_some() => (8, IN_CONTEXT),
            (Structure::Ddt, 32 | 64) => (24, IN_CONTEXT),
            // Of a Bare first stage.
            (Structure::Pdt, 16) if world.first.is_none() => continue,
            (Structure::Pdt, 16) => (8, IN_CONTEXT),
            _ => (0, IN_ENTRY),
        };
        if steps[..index].iter().all(|earlier| earlier.at != step.at) {
            pointers.push((Step { at: Gpa::new(step.at.get() + offset), bytes: 8, ..*step }, mask, shift, next));
        }
    }
    pointers
}

#[test]
fn a_pointer_to_where_nothing_can_be_read_gives_the_cause_of_what_was_to_be_read() {
    const PAS: u32 = 36;
    // Past PAS, though there is memory; the last page of all, at a multiple of 16 KiB; and where there is no memory.
    let pages = [1 << (PAS - 12), 0x0fff_ffff_fffc, 0x7_0000];
    for second in [None, Some(SecondStageMode::Sv39x4)] {
        for first in [None, Some(FirstStageMode::Sv39)] {
            let shape = Shape { extended: false, processes: 3, first, second, tc: 0, be: false };
            let mut world = World::with_config(shape, everything().with_pas(36).with_extended_contexts(false));
            world.rig.memory.map(Gpa::new(1 << PAS), 0x4000);
            let steps = world.steps();
            for (pointer, mask, shift, next) in pointers(&world, &steps) {
                let good = world.read(&pointer);
                for page in pages {
                    world.write(&pointer, good & !mask | page << shift);
                    world.rig.forget_accesses();
                    if let Some(next) = next {
                        for access in [READ, WRITE, EXECUTE] {
                            let expected = next.structure.fault(Failure::Violation, access);
                            world.fails(access, expected, "DDT-14, PDT-15, PCK-05, S1-08, S2-04, VT-15");
                        }
                    } else {
                        // What is at the final address is not the IOMMU's to know.
                        let request = world.request(READ);
                        let expected = page << 12 | world.iova & 0xfff;
                        assert_eq!(world.rig.address(request), Ok(expected), "TR-21");
                    }
                    let beyond = world.rig.memory.take_loads().iter().any(|(at, _)| at.get() >= 1 << PAS);
                    assert!(!beyond, "DDT-14, PDT-15: nothing past PAS is read");
                }
                world.write(&pointer, good);
            }
            world.succeeds(READ, "VT-01");
        }
    }
}

#[test]
fn a_directory_root_where_nothing_can_be_read_is_an_access_fault() {
    let shape =
        Shape { extended: true, processes: 0, first: Some(FirstStageMode::Sv39), second: None, tc: DTF, be: false };
    let mut world = World::with_config(shape, everything().with_pas(36));
    world.rig.memory.map(Gpa::new(1 << 36), 0x1000);
    for page in [1 << 24, 0x7_0000] {
        // From one directory to another by way of Off (REG-DDTP-10).
        world.rig.write8(DDTP, 0);
        world.rig.write8(DDTP, page << 10 | 4);
        world.fails(WRITE, (257, 0), "DDT-14, VT-15, FR-03, FR-04");
    }
}

// What is beyond the tables.

/// A device whose page at 0x28000000 is one of an interrupt file, with the entry for it, and its message.
fn with_message(dwords: [u64; 2]) -> (DmaRig, Gpa, Request) {
    let rig = DmaRig::new(everything());
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let table = rig.memory.allocate(1);
    rig.memory.write_words(table, &dwords);
    // msiptp Flat, no bit masked, and the page 0x28000 (DC-27 to DC-29).
    let iohgatp = second.iohgatp(Gscid::truncate(GSCID));
    rig.set_context(&[V, iohgatp, 0, 0, 1 << 60 | table.get() >> 12, 0, 0x2_8000]);
    let request = Request::msi(rig.device, Iova::new(0x2800_0000), 0x42);
    (rig, table, request)
}

/// The record of a write to 0x28000000.
fn of_message(cause: u16) -> [u64; 4] {
    [head(cause, 3, None), 0, 0x2800_0000, 0]
}

#[test]
fn an_msi_entry_that_can_not_be_read_has_causes_of_its_own() {
    // V, basic mode.
    let (mut rig, entry, request) = with_message([0x3_2123 << 10 | 7, 0]);
    for (cause, fault) in [(261, MemoryFault::Access), (270, MemoryFault::Corruption)] {
        for dword in [0, 8] {
            rig.memory.fail(Gpa::new(entry.get() + dword), 8, fault);
            assert_eq!(rig.address(request), Err(cause), "FLT-07, MSI-07");
            assert_eq!(rig.take_fault(), of_message(cause), "FLT-07, FR-01");
            rig.memory.clear_failures();
        }
    }
    assert_eq!(rig.address(request), Ok(0x3212_3000), "FLT-07");
}

#[test]
fn an_interrupt_file_in_memory_that_can_not_be_written_has_causes_of_its_own() {
    let (file, notice) = (Gpa::new(0x9800_0000), Gpa::new(0x9900_0000));
    // V, MRIF mode, address bits 55:9 in 53:7; NID 5, NPPN in 53:10 (MSI-09).
    let entry = [3 | file.get() >> 9 << 7, 5 | notice.get() >> 12 << 10];
    let (mut rig, _, request) = with_message([entry[0], entry[1]]);
    rig.memory.map(file, 4096);
    rig.memory.map(notice, 4096);
    // Identity 0x42: bit 2 of the pending word of the second pair (MRIF-05).
    let word = Gpa::new(file.get() + 16);
    for (cause, fault) in [(264, MemoryFault::Access), (271, MemoryFault::Corruption)] {
        rig.memory.fail_stores(word, 8, fault);
        rig.memory.fail(word, 8, fault);
        let found = rig.translate(request).expect_err("it can not be stored");
        assert!(matches!(found, TranslateError::Fault(found) if found.code() == cause), "FLT-08, MRIF-09: {found}");
        assert_eq!(rig.take_fault(), of_message(cause), "FLT-08, FR-01");
        rig.memory.clear_failures();
    }
    assert_eq!(rig.translate(request).map(|found| found.target), Ok(Target::Mrif), "FLT-08");
    assert_eq!(rig.memory.read(word), 1 << 2, "VT-12: in the memory of the guest, and nowhere else");
    assert_eq!(rig.memory.read(notice), 5, "VT-12");
}

#[test]
fn a_queue_that_fails_says_so_itself() {
    let mut rig = DmaRig::<0>::new(everything());
    for fault in [MemoryFault::Access, MemoryFault::Corruption] {
        let at = Gpa::new((rig.read8(FQB) & !0x3ff) << 2);
        rig.memory.fail_stores(at, 0x2000, fault);
        assert_eq!(rig.address(Request::read(rig.device, Iova::new(0x1000))), Err(258), "FLT-10");
        assert_eq!(rig.read(FQCSR) & MEMORY_FAULT, MEMORY_FAULT, "FLT-10, FR-10");
        assert_eq!(rig.take_faults(), [[0; 4]; 0], "FLT-10, FR-09, FR-10: fqt stays");
        rig.memory.clear_failures();
        rig.write(FQCSR, MEMORY_FAULT | 1);
        // The fault interrupt, where it is enabled.
        rig.write(FQCSR, 3);
        assert_eq!(rig.address(Request::read(rig.device, Iova::new(0x1000))), Err(258), "FR-09");
        assert_eq!(rig.take_faults().len(), 1, "FR-09");
        assert_eq!(rig.read(IPSR) & FIP, FIP, "FR-11");
        rig.write(FQCSR, 1);
        rig.write(IPSR, FIP);
        assert_eq!(rig.address(Request::read(rig.device, Iova::new(0x2000))), Err(258), "FR-11");
        assert_eq!(rig.read(IPSR) & FIP, 0, "FR-11: fie = 0");
        let _ = rig.take_faults();
    }
    for fault in [MemoryFault::Access, MemoryFault::Corruption] {
        let mut rig = DmaRig::<0>::new(everything());
        let at = Gpa::new((rig.read8(CQB) & !0x3ff) << 2);
        rig.memory.fail(at, 16, fault);
        let _ = rig.run([Iofence::PLAIN.encode()]);
        assert_eq!(rig.read(CQCSR) & MEMORY_FAULT, MEMORY_FAULT, "FLT-09");
        assert_eq!(rig.take_faults(), [[0; 4]; 0], "FLT-09: it is no transaction's fault");
    }
}

#[test]
fn an_interrupt_that_can_not_be_sent_is_no_devices_fault() {
    let memory = Memory::new();
    let parts = Parts { memory: memory.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical: NoPhysical };
    let mut iommu: VIommu<_, 1, 1> = VIommu::new(parts);
    assert_eq!(iommu.start(&Config::emulated()), Ok(()));
    let mut faults = FaultRing::new(&memory, 4, Gpa::new(0x9100_0000));
    memory.map(Gpa::new(0x9000_0000), 4096);
    // Vector 0 goes to where there is no memory, for every cause of an interrupt.
    let at = 0x7000_0000;
    for (offset, width, value) in [
        (MSI_CFG_TBL, Width::U64, at),
        (MSI_CFG_TBL + 8, Width::U32, 1),
        (MSI_CFG_TBL + 12, Width::U32, 0),
        (FQB, Width::U64, faults.fqb()),
        (FQCSR, Width::U32, 1),
        (CQB, Width::U64, 0x9000_0000 >> 2),
        // cqen and cie.
        (CQCSR, Width::U32, 3),
        // A command of zeros but for a reserved opcode.
        (CQT, Width::U32, 1),
    ] {
        if offset == CQT {
            memory.write(Gpa::new(0x9000_0000), 0x7f);
        }
        let _ = iommu.write(offset, width, value);
    }
    assert_eq!(iommu.read(IPSR, Width::U32) & CIP, CIP);
    // TTYP, DID, PV, PID and PRIV are 0.
    assert_eq!(faults.take(iommu.read(FQT, Width::U32)), [[273, 0, at, 0]], "FLT-11, FR-06, FR-14");
}
