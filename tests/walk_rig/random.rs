//! Random tables, and a walk of them by the vIOMMU and by the [`model`](super::model): tables of both stages at low
//! addresses, which the second stage maps to themselves, with changes of single entries.

use super::model::{Failure, Page, Stage, Want, World};
use super::{FIRST, PROCESS, SECOND, context, gxl, process_context};
use crate::dma_rig::{ACCESSES, DmaRig, everything};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use riscv_viommu::mock::tables::tc::{GADE, SADE, SXL};
use riscv_viommu::mock::{Event, Memory};
use riscv_viommu::{Capabilities, Gpa, Gxl, Target};
use std::collections::BTreeMap;

/// Where the tables of the stages begin: the root of the second is of 16 KiB.
const SECOND_ROOT: u64 = 0x1_0000;
const FIRST_ROOT: u64 = 0x2_0000;
/// What the first stage maps addresses from 0 on to.
const DATA: u64 = 0x3_0000;
/// Pages there are.
const PAGES: u64 = 0x40;

/// How the guest has set things up.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    first: Option<usize>,
    second: Option<usize>,
    /// Which entry: of the first or the second stage, level, index.
    edits: Vec<(bool, u8, u64, Edit)>,
    address: u64,
    access: usize,
    tc: u64,
    svpbmt: bool,
    svrsw60t59b: bool,
    /// The access is a process's, and privileged or not; `SUM`.
    process: Option<(bool, bool)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Flip(u32),
    Set(u64),
    /// Another page, with the flags there are.
    Page(u64),
}

fn edits() -> impl Strategy<Value = Edit> {
    let flags = prop_oneof![3 => Just(0xdf_u64), 2 => 0_u64..0x400, 1 => Just(1)];
    let high = prop_oneof![6 => Just(0_u64), 1 => (54_u32..64).prop_map(|bit| 1 << bit), 1 => 0_u64..0x400];
    let leaf = (flags, 0..PAGES, high).prop_map(|(flags, page, high)| flags | page << 10 | high << 54);
    prop_oneof![
        6 => (0_u32..10).prop_map(Edit::Flip),
        3 => (0_u32..64).prop_map(Edit::Flip),
        3 => (0..PAGES).prop_map(Edit::Page),
        3 => leaf.prop_map(Edit::Set),
        1 => Just(Edit::Set(0xdf)),
        1 => any::<u64>().prop_map(Edit::Set),
    ]
}

pub(crate) fn cases(first: bool, second: bool) -> impl Strategy<Value = Case> {
    let stage = |is_there: bool| if is_there { (0_usize..4).prop_map(Some).boxed() } else { Just(None).boxed() };
    let edit = (any::<bool>(), 0_u8..5, 0_u64..8, edits());
    let address = prop_oneof![
        8 => 0_u64..0x8000,
        1 => any::<u64>(),
        1 => (0_u32..64).prop_map(|bit| 1 << bit),
        1 => (0_u32..64).prop_map(|bit| u64::MAX << bit),
    ];
    let tc = prop::sample::select(vec![0, SADE, GADE, SADE | GADE]);
    let process = prop::option::of((any::<bool>(), any::<bool>()));
    let setup = (stage(first), stage(second), prop::collection::vec(edit, 0..4), address);
    (setup, 0_usize..3, tc, any::<bool>(), any::<bool>(), process).prop_map(
        |((first, second, edits, address), access, tc, svpbmt, svrsw60t59b, process)| Case {
            // With GXL = 1 only Sv32 goes (DCK-20).
            first: first.map(|first| if second == Some(0) { 0 } else { first }),
            second,
            edits,
            address,
            access,
            tc,
            svpbmt,
            svrsw60t59b,
            process,
        },
    )
}

/// The table of a stage at `root`: one entry for each level, and the pages from 0 on in the last.
fn build(memory: &Memory, stage: &Stage, root: u64, pages: &[(u64, u64)]) -> Vec<u64> {
    let mut places = Vec::new();
    let mut table = root;
    let step = if root == SECOND_ROOT { 0x4000 } else { 0x1000 };
    let mut below = root + step;
    for _ in 1..stage.shifts.len() {
        write(memory, table, stage.entry, below >> 2 | 1);
        places.push(table);
        table = below;
        below += 0x1000;
    }
    for (index, to) in pages {
        let at = table + index * stage.entry;
        write(memory, at, stage.entry, to >> 2 | 0xdf);
        places.push(at);
    }
    places
}

fn place(stage: &Stage, root: u64, level: u8, index: u64) -> u64 {
    let step = if root == SECOND_ROOT { 0x4000 } else { 0x1000 };
    let levels = u64::try_from(stage.shifts.len()).expect("5");
    let down = levels - 1 - u64::from(level);
    let table = if down == 0 { root } else { root + step + (down - 1) * 0x1000 };
    table + index * stage.entry
}

fn write(memory: &Memory, at: u64, bytes: u64, entry: u64) {
    if bytes == 8 {
        memory.write(Gpa::new(at), entry);
    } else {
        memory.write_half(Gpa::new(at), u32::try_from(entry & 0xffff_ffff).expect("half"));
    }
}

fn read(memory: &Memory, at: u64, bytes: u64) -> u64 {
    if bytes == 8 { memory.read(Gpa::new(at)) } else { memory.read_half(Gpa::new(at)).into() }
}

/// The words of memory at these places: all that are not 0.
fn words(memory: &Memory, places: impl IntoIterator<Item = u64>) -> BTreeMap<u64, u64> {
    places.into_iter().map(|at| at & !7).map(|at| (at, memory.read(Gpa::new(at)))).collect()
}

/// What both make of the case.
pub(crate) fn compare(case: &Case) -> Result<(), TestCaseError> {
    let offer = Capabilities::from_bits(u64::MAX).with_pas(56);
    let offer = offer.with_svpbmt(case.svpbmt).with_svrsw60t59b(case.svrsw60t59b);
    let mut rig = DmaRig::<0>::new(everything().with_gxl(Gxl::Writable).with_capabilities(offer));
    rig.memory.map(Gpa::new(0), PAGES << 12);
    let mut places = Vec::new();
    let first = case.first.map(|index| {
        let scheme = FIRST[index];
        let updates = case.tc & SADE != 0;
        let stage = Stage { shifts: scheme.shifts, bits: scheme.bits, entry: scheme.entry, root: FIRST_ROOT, updates };
        let pages: Vec<_> = (0..8).map(|page| (page, DATA + (page << 12))).collect();
        places.extend(build(&rig.memory, &stage, FIRST_ROOT, &pages));
        stage
    });
    let second = case.second.map(|index| {
        let scheme = SECOND[index];
        let updates = case.tc & GADE != 0;
        let stage = Stage { shifts: scheme.shifts, bits: scheme.bits, entry: scheme.entry, root: SECOND_ROOT, updates };
        let pages: Vec<_> = (0..PAGES).map(|page| (page, page << 12)).collect();
        places.extend(build(&rig.memory, &stage, SECOND_ROOT, &pages));
        stage
    });
    for (is_second, level, index, edit) in &case.edits {
        let (stage, root) = if *is_second { (&second, SECOND_ROOT) } else { (&first, FIRST_ROOT) };
        let Some(stage) = stage else { continue };
        let level = level % u8::try_from(stage.shifts.len()).expect("5");
        // What the walk meets: one entry at upper levels, tables and data in the last of the second stage.
        let index = match (level, *is_second) {
            (0, true) => [0x20, 0x21, 0x22, 0x23, 0x24, 0x30, 0x31, 0][usize::try_from(*index).expect("less than 8")],
            (0, false) => *index,
            _ => 0,
        };
        let at = place(stage, root, level, index);
        let old = read(&rig.memory, at, stage.entry);
        let new = match edit {
            Edit::Flip(bit) => old ^ 1 << bit,
            Edit::Set(value) => *value,
            Edit::Page(page) => old & !0x003f_ffff_ffff_fc00 | page << 10,
        };
        write(&rig.memory, at, stage.entry, new);
        places.push(at);
    }
    set_up(&mut rig, case);
    let (supervisor, sum) = case.process.unwrap_or_default();
    let rv32 = is_rv32(case);
    let mut world = World {
        words: words(&rig.memory, places),
        size: PAGES << 12,
        first,
        second,
        svpbmt: case.svpbmt,
        svrsw60t59b: case.svrsw60t59b,
        rv32,
        supervisor: supervisor && case.first.is_some(),
        sum,
    };
    check(&mut rig, &mut world, case)
}

fn is_rv32(case: &Case) -> bool {
    case.first == Some(0) || case.second == Some(0)
}

fn set_up(rig: &mut DmaRig<0>, case: &Case) {
    let second = case.second.map(|index| SECOND[index].mode);
    rig.set_fctl(second.map_or(0, gxl));
    let mode = |index: usize| [8_u64, 8, 9, 10][index];
    let iohgatp = case.second.map_or(0, |index| mode(index) << 60 | SECOND_ROOT >> 12);
    let fsc = case.first.map_or(0, |index| mode(index) << 60 | FIRST_ROOT >> 12);
    let tc = case.tc | if is_rv32(case) { SXL } else { 0 };
    match case.process {
        // The process directory is found through the second stage, if there is one: at its own address.
        Some((_, sum)) if case.first.is_some() && case.second.is_none() => {
            process_context(rig, tc, iohgatp, fsc, sum);
        }
        _ => context(rig, tc, iohgatp, fsc),
    }
    rig.forget_accesses();
}

fn check(rig: &mut DmaRig<0>, world: &mut World, case: &Case) -> Result<(), TestCaseError> {
    let access = ACCESSES[case.access];
    let has_process = case.process.is_some() && case.first.is_some() && case.second.is_none();
    let mut request = access.of(rig, case.address);
    if has_process {
        request = request.with_process(PROCESS, world.supervisor);
    } else {
        world.supervisor = false;
    }
    let want = Want { read: case.access == 0, write: case.access == 1, execute: case.access == 2 };
    let both = case.first.is_some() && case.second.is_some();
    // Every page of the case is below the physical address size, or has no memory.
    match world.translate(case.address, want) {
        Ok(Page { to, shift, pbmt }) => {
            let found = rig.translate(request);
            let found = found.map_err(|error| TestCaseError::fail(format!("{error}: {to:#x} is expected")))?;
            prop_assert_eq!(found.target, Target::Memory(Gpa::new(to)), "S1-13, S2-02");
            let shift = if both { shift } else { shift.min(30) };
            prop_assert_eq!(found.size, 1_u64 << shift, "SZ-01");
            prop_assert_eq!(u64::from(found.memory_type.encoding()), pbmt, "PB-02");
        }
        Err(failure) => {
            prop_assert!(rig.iommu.translate(&request).is_err(), "{failure:?} is expected");
            let fqt = rig.read(riscv_viommu::mock::guest::register::FQT);
            let [head, _, _, iotval2] = rig.faults.take(fqt)[0];
            let expected = match failure {
                Failure::Page => (access.page_fault, 0),
                Failure::GuestPage(iotval2) => (access.guest_page_fault, iotval2),
                Failure::Access => (access.abort, 0),
            };
            prop_assert_eq!((head & 0xfff, iotval2), (expected.0.into(), expected.1), "ACC-04, FR-08");
        }
    }
    let exchanged = |event| if let Event::Exchange(at, ..) = event { Some(at.get()) } else { None };
    let places: Vec<u64> = rig.memory.take_events().into_iter().filter_map(exchanged).collect();
    let after = words(&rig.memory, places.into_iter().chain(world.words.keys().copied()));
    prop_assert_eq!(&after, &world.words, "AD-03, AD-04");
    Ok(())
}
