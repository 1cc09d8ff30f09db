//! Tables a hostile guest builds: loops, tables that are other tables, addresses at the ends of every space, memory
//! that changes while it is read, and memory that is not there. Nothing panics, nothing is read more often than the
//! modes have levels, and nothing is touched that is not the guest's.
//!
//! Tests of a threat begin with its id, as in `threats`; rule IDs are those of the rules of translation.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod walk_rig;

use dma_rig::{ACCESSES, Access, DEVICE, DmaRig, READ, WRITE};
use proptest::prelude::*;
use riscv_viommu::mock::guest::register as reg;
use riscv_viommu::mock::tables::tc::{EN_ATS, GADE, PDTV, SADE, SBE, SXL};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::mock::{Event, Memory};
use riscv_viommu::{
    AtsRequest, DeviceId, FirstStageMode, Gpa, Iova, MemoryFault, ProcessId, Request, SecondStageMode, TranslateError,
};
use walk_rig::{
    FIRST, GSCID, OFFSET, SECOND, Single, config, context, entries, go, rig, runner, second_stage, walk_loads,
};

/// V, R, W, X, U, A and D.
const LEAF: u64 = 0xdf;
const SPA: u64 = 0x3_89ab_c000;

/// Another index at every level of the process directory.
const DEEP: ProcessId = ProcessId::truncate(0xb_3456);

/// The longest way there is: three levels of each directory, five of each stage, every page of 4 KiB.
struct Longest {
    rig: DmaRig<0>,
    first: PageTable,
    second: PageTable,
    processes: ProcessDirectory,
    iova: u64,
    gpa: u64,
}

impl Longest {
    fn new(tc: u64) -> Self {
        let rig = rig();
        let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv57x4);
        let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv57).below(OFFSET);
        let processes = ProcessDirectory::new(&rig.memory, 3).below(OFFSET);
        let (iova, gpa) = (FIRST[3].sample() & !0xfff, SECOND[3].sample() >> 4 & !0xfff);
        first.map(iova, gpa, 0, LEAF);
        second.map(gpa, SPA, 0, LEAF);
        processes.set(DEEP, [1, first.iosatp()]);
        for page in 0..0x100 {
            second.map(page << 12, OFFSET | page << 12, 0, LEAF);
        }
        rig.set_context(&[1 | PDTV | tc, second.iohgatp(GSCID), 0, processes.pdtp()]);
        rig.forget_accesses();
        Self { rig, first, second, processes, iova, gpa }
    }

    fn request(&self, access: Access) -> Request {
        access.of(&self.rig, self.iova).with_process(DEEP, false)
    }

    /// The places read so far, in their order.
    fn loads(&self) -> Vec<Gpa> {
        self.rig.memory.take_loads().iter().map(|load| load.0).collect()
    }

    /// A and D of every entry on the way are as they are here.
    fn clean(&self) {
        self.first.set(self.iova, 0, self.gpa >> 2 | LEAF & !pte::A & !pte::D);
        self.second.set(self.gpa, 0, SPA >> 2 | LEAF & !pte::A & !pte::D);
        for page in 0..0x100 {
            self.second.map(page << 12, OFFSET | page << 12, 0, LEAF & !pte::A & !pte::D);
        }
    }
}

#[test]
fn the_longest_way_is_56_loads() {
    let mut longest = Longest::new(0);
    for access in ACCESSES {
        let request = longest.request(access);
        assert_eq!(longest.rig.address(request), Ok(SPA), "VT-01");
        // 3 of the DDT; 3 of the PDT, 5 of the first stage, each behind 5 of the second; 5 of the second.
        assert_eq!(longest.loads().len(), 3 + 3 * (1 + 5) + 5 * (1 + 5) + 5, "VT-13");
    }
    // With an interrupt file in place of the last five.
    let msi = longest.rig.memory.allocate(1);
    longest.rig.memory.write(msi, 0x100 << 10 | 0b111);
    let (iohgatp, pdtp) = (longest.second.iohgatp(GSCID), longest.processes.pdtp());
    let context = [1 | PDTV, iohgatp, 0, pdtp, 1 << 60 | msi.get() >> 12, 0, longest.gpa >> 12];
    longest.rig.set_context(&context);
    longest.rig.forget_accesses();
    let request = longest.request(WRITE);
    assert_eq!(longest.rig.address(request), Ok(0x10_0000), "MSI-04");
    assert_eq!(longest.loads().len(), 51 + 1, "VT-13");
}

#[test]
fn updates_add_one_exchange_for_each_entry_that_changes() {
    for access in ACCESSES {
        let mut longest = Longest::new(SADE | GADE);
        longest.clean();
        longest.rig.forget_accesses();
        let request = longest.request(access);
        assert_eq!(longest.rig.address(request), Ok(SPA), "AD-01, AD-02");
        // The way to the first-stage leaf's page is walked a second time, for its update.
        let loads = longest.loads().len();
        assert!(loads <= 56 + 5, "VT-13: {loads}");
        // 3 pages of the PDT, 5 of the first stage and one update of the leaf's for D, the leaf, the page itself.
        let exchanges = longest.rig.memory.take_events().len();
        assert_eq!(exchanges, 3 + 5 + 1 + 1 + 1, "VT-13, AD-03");
    }
}

#[test]
fn t07_memory_that_is_not_there_anywhere_on_the_way_is_the_fault_of_its_structure() {
    let mut longest = Longest::new(0);
    for access in ACCESSES {
        let request = longest.request(access);
        assert_eq!(longest.rig.address(request), Ok(SPA));
        let way = longest.loads();
        assert_eq!(way.len(), 56);
        for at in &way {
            // The first read of this place fails.
            let first = way.iter().position(|place| place == at).expect("it is on the way");
            let (abort, corrupt) = match first {
                0..3 => (257, 268),
                // Behind the second stage or not.
                3..21 => (265, 269),
                _ => (access.abort, 274),
            };
            for (failure, code) in [(MemoryFault::Access, abort), (MemoryFault::Corruption, corrupt)] {
                longest.rig.memory.fail(*at, 8, failure);
                longest.rig.forget_accesses();
                assert_eq!(longest.rig.address(request), Err(code), "VT-01, S2-04, PDT-11, S1-08: load {first}");
                assert_eq!(longest.loads(), way[..=first], "VT-13: nothing is read after it");
                assert_eq!(longest.rig.take_faults().len(), 1, "VT-01");
                longest.rig.memory.clear_failures();
            }
        }
    }
}

#[test]
fn t07_an_update_that_can_not_be_stored_is_the_fault_of_its_access() {
    let mut longest = Longest::new(SADE | GADE);
    longest.clean();
    let request = longest.request(WRITE);
    assert_eq!(longest.rig.address(request), Ok(SPA));
    let exchange = |event| if let Event::Exchange(at, ..) = event { Some(at) } else { None };
    let places: Vec<Gpa> = longest.rig.memory.take_events().into_iter().filter_map(exchange).collect();
    for (index, at) in places.iter().enumerate() {
        longest.clean();
        longest.rig.memory.read_only(*at, 8);
        // Of the pages of the process directory it is that one's.
        let code = longest.rig.address(request).expect_err("it can not be stored");
        let expected = if index < 3 { 265 } else { 7 };
        let is_shared = places[..index].contains(at);
        assert!(code == expected || is_shared, "AD-05, T43: exchange {index}, {code}");
        longest.rig.memory.clear_failures();
    }
}

#[test]
fn t08_every_record_of_a_walk_is_read_once_and_decided_on_as_a_copy() {
    // Each place turns into nonsense right after it was read: the one walk does not notice, the next does.
    let reference = {
        let mut longest = Longest::new(0);
        let request = longest.request(WRITE);
        assert_eq!(longest.rig.address(request), Ok(SPA));
        longest.loads()
    };
    for index in 0..reference.len() {
        let mut longest = Longest::new(0);
        let request = longest.request(WRITE);
        let at = reference[index];
        // How often the walk itself reads it.
        let reads = reference.iter().filter(|place| **place == at).count();
        let good = longest.rig.memory.read(at);
        let values = std::iter::repeat_n(good, reads).chain([0]);
        longest.rig.memory.on_load(at, values);
        assert_eq!(longest.rig.address(request), Ok(SPA), "T08, VT-14, PTE-10: load {index}");
        assert!(longest.rig.address(request).is_err(), "T08: load {index}");
    }
}

#[test]
fn a_table_that_leads_to_itself_is_walked_down_as_often_as_there_are_levels() {
    for mut single in Single::every(config(), SADE | GADE) {
        let root = single.table.root();
        // The first entry points to the table it is in, so that address 0 leads nowhere else.
        single.table.set(0, single.levels() - 1, root.get() >> 2 | pte::V);
        single.address = 0;
        for access in ACCESSES {
            single.rig.forget_accesses();
            assert_eq!(single.go(access), Err(single.refusal(access)), "PTE-07, VT-13: {}", single.name);
            let loads = walk_loads(&single.rig);
            assert_eq!(loads, vec![root.get(); single.shifts.len()], "VT-13: {}", single.name);
        }
        // A leaf among its own entries: the table as a page.
        let next = single.entry;
        single.table.set(1 << 12, 0, 0);
        let leaf = root.get() >> 2 | LEAF;
        if single.entry == 8 {
            single.rig.memory.write(Gpa::new(root.get() | next), leaf);
        } else {
            single.rig.memory.write_half(Gpa::new(root.get() | next), u32::try_from(leaf).expect("32 bits"));
        }
        single.address = 1 << 12 | 0x18;
        assert_eq!(single.go(WRITE), Ok(root.get() | 0x18), "VT-13: {}", single.name);
    }
}

#[test]
fn one_page_may_be_every_table_there_is() {
    // The same page is directory, process directory, and the tables of both stages; each word points to it.
    let mut rig = DmaRig::<0>::new(config());
    let page = rig.memory.allocate(4);
    for word in 0..2048 {
        rig.memory.write(Gpa::new(page.get() + word * 8), page.get() >> 2 | pte::V);
    }
    rig.write8(reg::DDTP, 0);
    rig.write8(reg::DDTP, page.get() >> 2 | 4);
    for access in ACCESSES {
        rig.forget_accesses();
        let request = access.of(&rig, 0);
        // A context of pointers has reserved bits.
        assert_eq!(rig.address(request), Err(259), "DCK-01, VT-13");
        assert_eq!(rig.memory.take_loads().len(), 3, "VT-13");
    }
    // A good context, whose other structures are this page.
    rig.write8(reg::DDTP, 0);
    rig.write8(reg::DDTP, rig.directory.ddtp());
    let root = page.get() >> 12;
    for (pdtv, fsc) in [(0, 10 << 60 | root), (PDTV, 3 << 60 | root)] {
        for tc in [0, SADE, GADE, SADE | GADE] {
            for iohgatp in [0, 10 << 60 | 7 << 44 | root] {
                rig.set_context(&[1 | pdtv | tc, iohgatp, 0, fsc]);
                for process in [None, Some(DEEP)] {
                    rig.forget_accesses();
                    let plain = Request::write(rig.device, Iova::new(0x1000));
                    let request = process.map_or(plain, |process| plain.with_process(process, false));
                    let result = rig.iommu.translate(&request);
                    assert!(matches!(result, Err(TranslateError::Fault(_)) | Ok(_)), "VT-13");
                    assert!(rig.memory.take_loads().len() <= 61, "VT-13");
                    let _ = rig.take_faults();
                }
            }
        }
    }
}

#[test]
fn a_first_stage_may_be_the_second_stage_s_own_table() {
    // The walks of both stages read the same entries, and set A and D in them.
    for tc in [0, SADE, GADE, SADE | GADE] {
        let mut rig = rig();
        let table = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
        // 1 GiB where the tables are, to itself; as a first stage it maps the same.
        let flags = if tc == SADE | GADE { LEAF & !pte::A & !pte::D } else { LEAF };
        table.map(OFFSET, OFFSET, 2, flags);
        let iosatp = 8 << 60 | table.root().get() >> 12;
        context(&rig, tc, table.iohgatp(GSCID), iosatp);
        for access in ACCESSES {
            rig.forget_accesses();
            assert_eq!(go(&mut rig, access, OFFSET | 0x1234), Ok(OFFSET | 0x1234), "AD-03, VT-13: {tc:#x}");
            let loads = walk_loads(&rig).len();
            assert!(loads <= 8, "VT-13: {loads} loads for {tc:#x}");
        }
        let left = if tc == SADE | GADE { table.get(OFFSET, 2) } else { OFFSET >> 2 | LEAF };
        assert_eq!(left, OFFSET >> 2 | LEAF, "AD-03, AD-07: its own D is set by its own update");
    }
}

#[test]
fn roots_and_pointers_at_the_ends_of_the_address_space_lead_nowhere() {
    let last = (1_u64 << 44) - 1;
    for ppn in [0, 1, last, last - 3, 1 << 43, 1 << 22] {
        for (mode, gxl) in [(8_u64, 0), (9, 0), (10, 0), (8, 4)] {
            let mut rig = rig();
            rig.set_fctl(gxl);
            let tc = if gxl == 0 { 0 } else { SXL };
            for (iohgatp, fsc) in
                [(0, mode << 60 | ppn), (mode << 60 | ppn & !3, 0), (mode << 60 | ppn & !3, mode << 60 | ppn)]
            {
                context(&rig, tc, iohgatp, fsc);
                for address in
                    [0, 0x1000, 1 << 31, 1 << 38, (1 << 38) - 1, 1 << 39, 1 << 47, 1 << 56, 1 << 63, u64::MAX]
                {
                    for access in ACCESSES {
                        rig.forget_accesses();
                        let request = access.of(&rig, address).with_length(u64::MAX);
                        let result = rig.address(request);
                        let causes = [access.abort, access.page_fault, access.guest_page_fault];
                        assert!(result.is_err_and(|code| causes.contains(&code)), "S1-08, S2-04: {address:#x}");
                        assert!(walk_loads(&rig).len() <= 1, "VT-13");
                        assert_eq!(rig.take_faults().len(), 1);
                    }
                }
            }
        }
    }
}

#[test]
fn addresses_at_the_ends_of_every_space_are_translated_to_their_last_byte() {
    for mut single in Single::every(config(), 0) {
        let bits = match (single.is_second, single.shifts.len(), single.entry) {
            (false, _, 4) => 32,
            (true, _, 4) => 34,
            (false, levels, _) => levels * 9 + 12,
            (true, levels, _) => levels * 9 + 14,
        };
        let last = u64::MAX >> (64 - bits);
        let mut ends = vec![0, last];
        if !single.is_second && single.entry == 8 {
            // The highest address of the lower half, the lowest of the upper one, and the very last.
            ends = vec![0, last >> 1, u64::MAX ^ last >> 1, u64::MAX];
        }
        for address in ends {
            single.table.map(address, 0x3_ffff_f000, 0, LEAF);
            single.address = address;
            assert_eq!(single.go(READ), Ok(0x3_ffff_f000 | address & 0xfff), "S1-04, S2-03: {}", single.name);
            let request = READ.of(&single.rig, address).with_length(u64::MAX);
            let found = single.rig.translate(request).expect("mapped");
            assert_eq!(found.length, 0x1000 - (address & 0xfff), "SZ-01: {address:#x}");
        }
    }
}

/// Something the guest has in a word of its tables.
fn words() -> impl Strategy<Value = u64> {
    let page = 0_u64..16;
    prop_oneof![
        // A pointer, a leaf, either with other flags, to one of the pages, or to a gigapage that holds them.
        8 => page.clone().prop_map(|page| (0x8_0100 + page) << 10 | pte::V),
        4 => page.clone().prop_map(|page| (0x8_0100 + page) << 10 | LEAF),
        4 => (page, 0_u64..0x400).prop_map(|(page, flags)| (0x8_0100 + page) << 10 | flags),
        2 => (0_u64..0x400).prop_map(|flags| 0x8_0000 << 10 | flags | 0xf),
        1 => any::<u64>(),
        1 => (0_u32..64).prop_map(|bit| u64::MAX << bit),
    ]
}

/// A kind of request, an address, and a process with its privilege.
type Asked = (u8, u64, Option<(u32, bool)>);

/// Pages of words, what happens while they are read, and what the device asks.
#[derive(Clone, Debug)]
struct Hostile {
    /// Page, word of it among the first and the last few, value.
    words: Vec<(u64, u64, u64)>,
    races: Vec<(u64, u64, Vec<u64>)>,
    exchange_races: Vec<(u64, u64, Vec<u64>)>,
    failures: Vec<(u64, bool, bool)>,
    tc: u64,
    modes: (u64, u64),
    roots: (u64, u64),
    requests: Vec<Asked>,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let place = || (0_u64..16, prop_oneof![Just(0_u64), 0_u64..8, 504_u64..512]);
    let word = (place(), words()).prop_map(|((page, word), value)| (page, word, value));
    let race =
        || (place(), prop::collection::vec(words(), 1..20)).prop_map(|((page, word), values)| (page, word, values));
    let address = prop_oneof![
        4 => (0_u64..0x10).prop_map(|page| page << 12),
        2 => (0_u64..16).prop_map(|page| 0x8010_0000 + (page << 12)),
        1 => (0_u32..64).prop_map(|bit| u64::MAX << bit),
        1 => any::<u64>(),
    ];
    let process = prop::option::of((0_u32..0x10_0000, any::<bool>()));
    let tc = prop::sample::subsequence(vec![EN_ATS, PDTV, SADE, GADE, SXL, SBE], 0..6)
        .prop_map(|bits| bits.iter().fold(0, |tc, bit| tc | bit));
    (
        prop::collection::vec(word, 20..120),
        prop::collection::vec(race(), 0..4),
        prop::collection::vec(race(), 0..3),
        prop::collection::vec((0_u64..16, any::<bool>(), any::<bool>()), 0..2),
        tc,
        (0_u64..11, prop::sample::select(vec![0_u64, 8, 9, 10])),
        (0_u64..16, prop::sample::select(vec![0_u64, 4, 8, 12])),
        prop::collection::vec((0_u8..5, address, process), 1..8),
    )
        .prop_map(|(words, races, exchange_races, failures, tc, modes, roots, requests)| Hostile {
            words,
            races,
            exchange_races,
            failures,
            tc,
            modes,
            roots,
            requests,
        })
}

/// Does what the case says with a vIOMMU that remembers `CACHE` entries; the most loads of a request.
fn attack<const CACHE: usize>(case: &Hostile) -> usize {
    let memory = Memory::new();
    let mut rig = DmaRig::<CACHE>::in_memory(config(), memory);
    let pages = 0x8010_0000;
    rig.memory.map(Gpa::new(pages), 16 << 12);
    let at = |page: u64, word: u64| Gpa::new(pages + (page << 12) + word * 8);
    for (page, word, value) in &case.words {
        rig.memory.write(at(*page, *word), *value);
    }
    for (page, word, values) in &case.races {
        rig.memory.on_load(at(*page, *word), values.iter().copied());
    }
    for (page, word, values) in &case.exchange_races {
        rig.memory.on_exchange(at(*page, *word), values.iter().copied());
    }
    for (page, corrupt, stores) in &case.failures {
        let fault = if *corrupt { MemoryFault::Corruption } else { MemoryFault::Access };
        if *stores {
            rig.memory.fail_stores(at(*page, 0), 0x1000, fault);
        } else {
            rig.memory.fail(at(*page, 0), 0x1000, fault);
        }
    }
    let root = |page: u64| (pages >> 12) + page;
    let fsc = case.modes.0 << 60 | root(case.roots.0);
    let iohgatp = if case.modes.1 == 0 { 0 } else { case.modes.1 << 60 | root(case.roots.1) };
    let dc = rig.directory.entry_address(DeviceId::truncate(DEVICE));
    rig.set_context(&[1 | case.tc, iohgatp, 0, fsc, 0, 0, 0]);
    let context = rig.memory.read_words(dc, 8);
    let mut most = 0;
    for (kind, address, process) in &case.requests {
        rig.forget_accesses();
        let iova = Iova::new(*address);
        let process = process.map(|(id, privileged)| (ProcessId::truncate(id), privileged));
        let request = match kind {
            0 => Request::read(rig.device, iova),
            1 => Request::execute(rig.device, iova),
            _ => Request::write(rig.device, iova),
        };
        let request = process.map_or(request, |(id, privileged)| request.with_process(id, privileged));
        if *kind == 4 {
            let ats = AtsRequest::new(rig.device, iova);
            let ats = process.map_or(ats, |(id, privileged)| ats.with_process(id, privileged));
            assert!(rig.iommu.ats_translate(&ats).is_ok(), "T16");
        } else if let Ok(found) = rig.iommu.translate(&request.with_length(u64::MAX)) {
            assert!(found.size.is_power_of_two() && found.size >= 0x1000, "SZ-01");
            assert!((1..=found.size).contains(&found.length), "SZ-01");
        }
        most = most.max(rig.memory.take_loads().len());
        // A and D of entries, and records of faults: nothing else is written.
        let records = rig.faults.entry(0).get()..rig.faults.entry(256).get();
        for event in rig.memory.take_events() {
            match event {
                Event::Exchange(at, old, new) => {
                    assert!((pages..pages + 0x1_0000).contains(&at.get()), "T07: exchange at {at}");
                    // With SBE it is the last byte that has the flags.
                    let set = old ^ new;
                    let is_mark = |set: u64| set & !(pte::A | pte::D) == 0;
                    let is_one = is_mark(set) || is_mark(set.swap_bytes()) || is_mark(set.swap_bytes() >> 32);
                    assert!(is_one && old & new == old, "AD-04, T26: {old:#x} to {new:#x}");
                }
                Event::Store(at, _) => assert!(records.contains(&at.get()), "T07: store at {at}"),
                other => panic!("T07: {other:?}"),
            }
        }
        let _ = rig.take_faults();
        assert_eq!(rig.memory.read_words(dc, 8), context, "T07");
    }
    most
}

#[test]
fn t16_no_tables_make_a_walk_panic_or_read_more_than_the_levels_allow() {
    let run = runner(1200).run(&hostile(), |case| {
        let raced = case.exchange_races.is_empty();
        let most = attack::<0>(&case).max(attack::<4>(&case));
        // A vCPU that changes entries under their update has each looked at 8 times, on ways that are that much longer.
        let walk = 5 * 8;
        let bound = if raced { 56 + 5 + 11 } else { 3 + 3 * (walk + 1) + 5 * 8 * (2 * walk + 1) + walk };
        prop_assert!(most <= bound, "VT-13: {} loads", most);
        Ok(())
    });
    if let Err(error) = run {
        panic!("T16, VT-13: {error}");
    }
}

#[test]
fn a_vcpu_that_changes_every_entry_under_its_update_ends_in_a_fault() {
    // The worst of it: the leaf, the pages of all tables, and the page, changed without end.
    let mut longest = Longest::new(SADE | GADE);
    longest.clean();
    let mut places = entries(&FIRST[3], &longest.first, longest.iova, 0);
    places.push(longest.second.entry_address(longest.gpa, 0));
    for page in 0..0x100 {
        places.push(longest.second.entry_address(page << 12, 0));
    }
    for at in places {
        let entry = longest.rig.memory.read(at);
        longest.rig.memory.on_exchange(at, (0..200_u64).map(|turn| entry ^ (turn & 1) << 8 ^ 1 << 8));
    }
    for access in ACCESSES {
        longest.rig.forget_accesses();
        let request = longest.request(access);
        assert!(longest.rig.address(request).is_err(), "VT-13");
        assert!(longest.loads().len() <= 3500, "VT-13");
        let _ = longest.rig.take_faults();
    }
}

#[test]
fn tables_beside_the_memory_are_access_faults_and_nothing_is_stored() {
    // The register page, a page of an interrupt file, and an address without anything: none is memory.
    let interrupts = Gpa::new(0x2800_0000);
    for at in [0x1001_0000, interrupts.get(), 0x7fff_f000] {
        let mut rig = rig();
        rig.memory.interrupt_page(interrupts);
        let second = second_stage(&rig, SecondStageMode::Sv39x4);
        let third = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        third.set(0x4000, 2, at >> 2 | pte::V);
        let root = at >> 12;
        for (context, process, code) in [
            ([1 | SADE, 0, 0, 8 << 60 | root], None, 7),
            ([1 | SADE, 0, 0, third.iosatp()], None, 7),
            ([1 | GADE, 8 << 60 | root & !3, 0, 0], None, 7),
            ([1 | PDTV, 0, 0, 1 << 60 | root], Some(DEEP), 260),
            ([1 | PDTV, 0, 0, 3 << 60 | root], Some(DEEP), 265),
        ] {
            rig.set_context(&context);
            rig.forget_accesses();
            let plain = Request::write(rig.device, Iova::new(0x4000));
            let request = process.map_or(plain, |process: ProcessId| plain.with_process(process, false));
            assert_eq!(rig.address(request), Err(code), "VT-15, T37: {at:#x}");
            assert!(matches!(rig.memory.take_events()[..], [Event::Store(..)]), "VT-15, T37: the record of the fault");
            assert_eq!(rig.take_faults().len(), 1, "VT-15");
        }
        // MSI page tables, and the directory.
        rig.set_context(&[1, second.iohgatp(GSCID), 0, 0, 1 << 60 | root, 0, 0x2_8000]);
        assert_eq!(go(&mut rig, WRITE, 0x2800_0000), Err(261), "VT-15");
        rig.write8(reg::DDTP, 0);
        rig.write8(reg::DDTP, at >> 2 | 4);
        assert_eq!(go(&mut rig, WRITE, 0x4000), Err(257), "VT-15, VT-01");
    }
}
