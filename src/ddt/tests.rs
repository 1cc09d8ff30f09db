//! Tables are built by hand, from the figures of the directory.

#![expect(clippy::arithmetic_side_effects, reason = "helpers of tests fail by panicking")]

use std::vec::Vec;

use super::*;
use crate::error::MemoryFault;
use crate::mock::Memory;
use crate::regs::file::Setup;
use crate::regs::{Capabilities, Width};

/// Tables of the levels from the leaf up.
const TABLES: [Gpa; 3] = [Gpa::new(0x8000_1000), Gpa::new(0x8000_2000), Gpa::new(0x8000_3000)];

/// V of an entry and of `tc`.
const V: u64 = 1;

fn with_format(extended: bool) -> Capabilities {
    Capabilities::new().with_msi_flat(extended).with_end(true).with_pas(40).with_sv39(true)
}

/// The directory that the guest's registers name: root in `ddtp` 53:10, mode in 3:0.
fn directory(levels: u8, capabilities: Capabilities, big_endian: bool) -> Directory {
    let mut registers = Registers::of(Setup { capabilities, ..Setup::NONE });
    let _ = registers.write(8, Width::U32, u64::from(big_endian));
    let root = TABLES[usize::from(levels) - 1].get();
    let _ = registers.write(16, Width::U64, root >> 2 | u64::from(levels + 1));
    Directory::of(&registers).unwrap()
}

/// One way down a directory: what is loaded on it.
struct Way {
    id: DeviceId,
    /// From the root down; the last is the context.
    entries: Vec<Gpa>,
    words: usize,
}

impl Way {
    /// The way of the indices `ddi`, DDI[0] first and as many as there are levels: DDI[0] is 7 or 6 bits wide, DDI[1]
    /// follows (DDT-02).
    fn new(levels: u8, extended: bool, ddi: [u32; 3]) -> Self {
        let ddi = [0, 1, 2].map(|level| if level < usize::from(levels) { ddi[level] } else { 0 });
        let (first, second, bytes) = if extended { (6, 15, 64) } else { (7, 16, 32) };
        let at = |table: Gpa, offset: u32| Gpa::new(table.get() + u64::from(offset));
        let entries = [at(TABLES[2], ddi[2] * 8), at(TABLES[1], ddi[1] * 8), at(TABLES[0], ddi[0] * bytes)];
        Self {
            id: DeviceId::new(ddi[0] | ddi[1] << first | ddi[2] << second).unwrap(),
            entries: entries[3 - usize::from(levels)..].to_vec(),
            words: usize::try_from(bytes / 8).unwrap(),
        }
    }

    /// Memory with this way and nothing else in it.
    fn memory(&self, big_endian: bool) -> Memory {
        let memory = Memory::new();
        memory.map(TABLES[0], 3 * 4096);
        let order = |word: u64| if big_endian { word.swap_bytes() } else { word };
        let (context, non_leaf) = self.entries.split_last().unwrap();
        for (level, at) in non_leaf.iter().enumerate() {
            memory.write(*at, order(TABLES[non_leaf.len() - 1 - level].get() >> 2 | V));
        }
        memory.write(*context, order(V));
        memory
    }

    fn loads(&self) -> Vec<(Gpa, usize)> {
        let last = self.entries.len() - 1;
        self.entries.iter().enumerate().map(|(i, at)| (*at, if i == last { self.words } else { 1 })).collect()
    }
}

/// Every number of levels in both formats.
fn shapes() -> impl Iterator<Item = (u8, bool)> {
    (1..=3).flat_map(|levels| [(levels, false), (levels, true)])
}

/// The last index of each level: 7 + 9 + 8 or 6 + 9 + 9 bits.
fn last(extended: bool) -> [u32; 3] {
    if extended { [0x3f, 0x1ff, 0x1ff] } else { [0x7f, 0x1ff, 0xff] }
}

fn cause(directory: &Directory, memory: &Memory, id: DeviceId) -> Option<u16> {
    directory.locate(memory, id, &mut Trail::default()).err().map(|fault| fault.cause.code())
}

#[test]
fn a_context_is_found_at_the_first_and_last_index_of_every_level() {
    for (levels, extended) in shapes() {
        let directory = directory(levels, with_format(extended), false);
        for ends in 0..1_u32 << levels {
            let ddi = [0, 1, 2].map(|level| if ends >> level & 1 == 1 { last(extended)[level] } else { 0 });
            let way = Way::new(levels, extended, ddi);
            let memory = way.memory(false);
            assert_eq!(cause(&directory, &memory, way.id), None, "T27, DDT-01, DDT-02: {levels} levels, {ddi:x?}");
            assert_eq!(memory.take_loads(), way.loads(), "DDT-05, DDT-06, DDT-17: {levels} levels, {ddi:x?}");
            // Any other index of any level leads elsewhere.
            for bit in 0..if extended { 6 + 9 * (u32::from(levels) - 1) } else { [7, 16, 24][usize::from(levels) - 1] }
            {
                let other = DeviceId::new(way.id.get() ^ 1 << bit).unwrap();
                assert_eq!(cause(&directory, &memory, other), Some(258), "T27: {levels} levels, {other:?}");
            }
        }
    }
}

#[test]
fn an_id_too_wide_for_the_directory_is_refused_before_anything_is_read() {
    let cases = [(1, false, 7), (2, false, 16), (3, false, 24), (1, true, 6), (2, true, 15), (3, true, 24)];
    for (levels, extended, width) in cases {
        let directory = directory(levels, with_format(extended), false);
        // No memory at all: whatever is read is an access fault.
        let memory = Memory::new();
        for bit in 0..24 {
            let expected = if bit < width { 257 } else { 260 };
            let id = DeviceId::new(1 << bit).unwrap();
            assert_eq!(cause(&directory, &memory, id), Some(expected), "TR-06, DDT-04, DX-01: {levels} levels, {id:?}");
            assert_eq!(memory.take_loads().len(), usize::from(bit < width), "DDT-16");
        }
    }
}

#[test]
fn at_every_level_the_first_failing_check_decides() {
    for (levels, extended) in shapes() {
        let way = Way::new(levels, extended, last(extended));
        let directory = directory(levels, with_format(extended), false);
        for (depth, at) in way.entries.iter().enumerate() {
            let memory = way.memory(false);
            let good = memory.read(*at);
            // Bit 9 of an entry is reserved (DDT-10); bit 12 of `tc` is (DC-15).
            let reserved = if depth + 1 == way.entries.len() { 1 << 12 } else { 1 << 9 };
            let rule = std::format!("DDT-11, DDT-12: {levels} levels, extended {extended}, depth {depth}");
            let steps: [(u16, &dyn Fn()); 4] = [
                (259, &|| memory.write(*at, good | reserved)),
                (258, &|| memory.write(*at, reserved)),
                (268, &|| memory.fail(*at, 8, MemoryFault::Corruption)),
                (257, &|| {
                    memory.clear_failures();
                    memory.fail(*at, 8, MemoryFault::Access);
                }),
            ];
            for (expected, step) in steps {
                step();
                let _ = memory.take_loads();
                assert_eq!(cause(&directory, &memory, way.id), Some(expected), "{rule}");
                assert_eq!(memory.take_loads(), way.loads()[..=depth], "nothing behind it is read; {rule}");
            }
        }
    }
}

#[test]
fn a_failure_further_up_hides_those_below() {
    let way = Way::new(3, false, [1, 2, 3]);
    let directory = directory(3, with_format(false), false);
    let memory = way.memory(false);
    memory.fail(way.entries[2], 8, MemoryFault::Access);
    assert_eq!(cause(&directory, &memory, way.id), Some(257), "FLT-01");
    memory.write(way.entries[1], memory.read(way.entries[1]) | 1 << 63);
    assert_eq!(cause(&directory, &memory, way.id), Some(259), "DDT-11");
    memory.write(way.entries[0], 0);
    assert_eq!(cause(&directory, &memory, way.id), Some(258), "DDT-11");
}

#[test]
fn every_reserved_bit_of_an_entry_is_misconfigured() {
    for (levels, extended) in shapes().filter(|&(levels, _)| levels > 1) {
        let way = Way::new(levels, extended, [0; 3]);
        let directory = directory(levels, with_format(extended), false);
        for depth in 0..way.entries.len() - 1 {
            let memory = way.memory(false);
            let good = memory.read(way.entries[depth]);
            let bits = (0..64).map(|bit| 1_u64 << bit);
            for bit in bits.filter(|bit| bit & 0xffc0_0000_0000_03fe != 0) {
                memory.write(way.entries[depth], good | bit);
                assert_eq!(cause(&directory, &memory, way.id), Some(259), "DDT-10, DDT-11: {bit:#x}");
                memory.write(way.entries[depth], good & !V | bit);
                assert_eq!(cause(&directory, &memory, way.id), Some(258), "DDT-13: {bit:#x}");
            }
        }
    }
}

#[test]
fn a_context_is_poisoned_by_each_of_its_words_and_by_no_other() {
    for (levels, extended) in shapes() {
        let way = Way::new(levels, extended, [0; 3]);
        let directory = directory(levels, with_format(extended), false);
        let context = way.entries[usize::from(levels) - 1];
        for word in 0..9 {
            let memory = way.memory(false);
            memory.fail(Gpa::new(context.get() + word * 8), 8, MemoryFault::Corruption);
            let expected = if word < if extended { 8 } else { 4 } { Some(268) } else { None };
            assert_eq!(cause(&directory, &memory, way.id), expected, "DDT-12, DDT-18, REG-DDTP-20: word {word}");
        }
    }
}

#[test]
fn a_page_past_the_physical_address_size_is_an_access_fault_of_the_load_from_it() {
    // PAS is 40: pages of 28 bits. Bits 39 and 40 of the address are PPN bits 27 and 28, entry bits 37 and 38.
    let way = Way::new(3, false, [0; 3]);
    let directory = directory(3, with_format(false), false);
    for depth in 0..2 {
        for (bit, loads) in [(37, depth + 2), (38, depth + 1), (53, depth + 1)] {
            let memory = way.memory(false);
            memory.write(way.entries[depth], 1 << bit | V);
            assert_eq!(cause(&directory, &memory, way.id), Some(257), "DDT-14: bit {bit}");
            assert_eq!(memory.take_loads().len(), loads, "Q-10: memory past PAS is not asked for");
        }
    }
    // The root of the first stage is hardware's to look at.
    let memory = way.memory(false);
    memory.write(Gpa::new(way.entries[2].get() + 24), 8 << 60 | 0x0fff_ffff_ffff);
    assert_eq!(cause(&directory, &memory, way.id), None, "DDT-14, DCK-24");
}

#[test]
fn a_big_endian_directory_is_read_as_one() {
    for (levels, extended) in shapes() {
        let way = Way::new(levels, extended, last(extended));
        let big = directory(levels, with_format(extended), true);
        let little = directory(levels, with_format(extended), false);
        let read = |directory: &Directory, in_memory| cause(directory, &way.memory(in_memory), way.id);
        assert_eq!(read(&big, true), None, "DDT-07, EDN-01, END-01");
        assert_eq!(read(&little, false), None, "EDN-01");
        assert_eq!([read(&big, false), read(&little, true)], [Some(258); 2], "EDN-01");
    }
    // Words keep their order and SBE its own meaning.
    let way = Way::new(1, false, [0; 3]);
    let memory = way.memory(true);
    memory.write(Gpa::new(way.entries[0].get() + 24), (8_u64 << 60 | 0x8_0001).swap_bytes());
    memory.write(Gpa::new(way.entries[0].get() + 16), 0x1000_u64.swap_bytes());
    let found = directory(1, with_format(false), true).locate(&memory, way.id, &mut Trail::default()).unwrap();
    let iosatp = FirstStageContext::Iosatp(Some(Iosatp {
        mode: crate::id::FirstStageMode::Sv39,
        root: Ppn::truncate(0x8_0001),
        pscid: crate::id::Pscid::truncate(1),
    }));
    assert_eq!((found.first_stage, found.tc.sbe()), (iosatp, false), "EDN-06, EDN-02");
}

#[test]
fn a_context_that_changes_under_its_reader_is_judged_by_one_copy() {
    for extended in [false, true] {
        let way = Way::new(1, extended, [0; 3]);
        let directory = directory(1, with_format(extended), false);
        let memory = way.memory(false);
        let fsc = Gpa::new(way.entries[0].get() + 24);
        // First a good table, then a reserved mode, then V = 0.
        memory.on_load(fsc, [8 << 60 | 0x8_0000, 15 << 60]);
        memory.on_load(way.entries[0], [V, V, 0]);
        let found = directory.locate(&memory, way.id, &mut Trail::default()).unwrap();
        let root = Ppn::truncate(0x8_0000);
        assert!(
            matches!(found.first_stage, FirstStageContext::Iosatp(Some(Iosatp { root: r, .. })) if r == root),
            "T08, MRG-16"
        );
        assert_eq!(cause(&directory, &memory, way.id), Some(259), "DDT-17");
        assert_eq!(cause(&directory, &memory, way.id), Some(258), "DDT-17");
        assert_eq!(memory.take_loads(), [way.loads(), way.loads(), way.loads()].concat(), "T08: one load each");
    }
}

#[test]
fn an_entry_that_changes_under_its_reader_is_judged_by_one_copy() {
    let way = Way::new(2, false, [0; 3]);
    let directory = directory(2, with_format(false), false);
    let memory = way.memory(false);
    let good = memory.read(way.entries[0]);
    memory.on_load(way.entries[0], [good, good | 2, 0]);
    let causes = [(); 3].map(|()| cause(&directory, &memory, way.id));
    assert_eq!(causes, [None, Some(259), Some(258)], "DDT-17, T08");
}

#[test]
fn off_and_bare_have_no_directory() {
    for mode in [0, 1] {
        let setup = Setup { capabilities: with_format(false), ..Setup::NONE };
        let mut registers = Registers::of(setup);
        let _ = registers.write(16, Width::U64, TABLES[0].get() >> 2 | mode);
        assert!(Directory::of(&registers).is_none(), "DDT-03");
    }
}
