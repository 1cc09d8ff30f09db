//! Second-stage walks, alone and under a first stage: the schemes and all their combinations, widths, implicit
//! accesses, `iotval2`, memory types and sizes of both stages together, sizes near interrupt files.
//!
//! Rule IDs are those of the rules of translation. What makes an entry good is in `page_table_entries.rs`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod walk_rig;

use dma_rig::{ACCESSES, DmaRig, EXECUTE, READ, WRITE};
use riscv_viommu::mock::Memory;
use riscv_viommu::mock::guest::register;
use riscv_viommu::mock::tables::tc::{EN_ATS, PDTV, SADE, SBE, SXL, T2GPA};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{
    AtsCompletion, AtsRequest, Capabilities, FirstStageMode, Gpa, Iova, MemoryFault, Pbmt, Request, SecondStageMode,
    Target,
};
use walk_rig::{
    BE, FIRST, First, GSCID, GXL, IO, NC, OFFSET, PROCESS, SECOND, Second, config, context, entries, fault, go, gxl,
    nested_first_stage, process_context_below, rig, runner, second_stage, sxl, translation, walk_loads,
};

/// V, R, W, X, U, A and D.
const LEAF: u64 = 0xdf;

/// Where devices read and write, what their first stage makes of it, and the second of that.
const IOVA: u64 = 0x0123_4000;
const GPA: u64 = 0x0567_8000;
const SPA: u64 = 0x3_89ab_c000;

/// A guest with an empty second stage of this scheme and nothing before it.
fn alone(scheme: &Second) -> (DmaRig<0>, PageTable) {
    let mut rig = rig();
    let table = PageTable::second_stage(&rig.memory, scheme.mode);
    let gxl = gxl(scheme.mode);
    rig.set_fctl(gxl);
    context(&rig, if gxl == 0 { 0 } else { SXL }, table.iohgatp(GSCID), 0);
    rig.forget_accesses();
    (rig, table)
}

/// A guest with both stages: [`IOVA`] goes to [`SPA`] by [`GPA`].
struct Both {
    rig: DmaRig<0>,
    first: PageTable,
    second: PageTable,
    tc: u64,
}

impl Both {
    fn new(first: FirstStageMode, second: SecondStageMode, tc: u64) -> Self {
        let mut rig = rig();
        rig.set_fctl(gxl(second));
        let tc = tc | sxl(first) | if gxl(second) == 0 { 0 } else { SXL };
        let both = Self { first: nested_first_stage(&rig, first), second: second_stage(&rig, second), tc, rig };
        both.first.map(IOVA, GPA, 0, LEAF);
        both.second.map(GPA, SPA, 0, LEAF);
        both.set();
        both.rig.forget_accesses();
        both
    }

    /// Sv39 under Sv39x4.
    fn plain(tc: u64) -> Self {
        Self::new(FirstStageMode::Sv39, SecondStageMode::Sv39x4, tc)
    }

    fn set(&self) {
        context(&self.rig, self.tc, self.second.iohgatp(GSCID), self.first.iosatp());
    }

    /// The second stage maps the first 2 MiB, where the tables are, page by page.
    fn split(&self, flags: u64) {
        if self.second.get(0, 1) & pte::R != 0 {
            self.second.unmap(0, 1);
        }
        for page in 0..0x200 {
            self.second.map(page << 12, OFFSET | page << 12, 0, LEAF | flags);
        }
    }

    /// The same, and this one with flags of its own.
    fn map_table_page(&self, table: Gpa, flags: u64) {
        self.split(0);
        self.second.map(table.get() - OFFSET, table.get(), 0, flags);
    }
}

#[test]
fn every_scheme_walks_its_tables_down_to_a_leaf_at_any_level() {
    for scheme in &SECOND {
        for level in 0..scheme.levels() {
            let (mut rig, table) = alone(scheme);
            // The root's index has two bits more: they are used.
            let address = scheme.sample() | 3 << (scheme.bits - 2);
            let target = scheme.target(level);
            table.map(address, target, level, LEAF);
            rig.forget_accesses();
            let within = (1 << scheme.shift(level)) - 1;
            for access in ACCESSES {
                let to = target | address & within;
                assert_eq!(go(&mut rig, access, address), Ok(to), "S2-01, S2-02: {:?} level {level}", scheme.mode);
                let places = entries(scheme, &table, address, level);
                let loads = walk_loads(&rig);
                assert_eq!(loads, places.iter().map(|at| at.get() & !7).collect::<Vec<_>>(), "S2-02, PTE-10");
                for (at, level) in places.iter().zip((level..scheme.levels()).rev()) {
                    let table = if level == scheme.root_level() { 0x3fff } else { 0xfff };
                    assert_eq!(at.get() & table, scheme.offset(address, level), "S2-02: {:?}", scheme.mode);
                }
            }
        }
    }
}

#[test]
fn indices_of_a_scheme_are_those_of_the_figure() {
    // Literals: 33:22 and 21:12; 40:30, 29:21 and 20:12; 49:39; 58:48. The root is of 16 KiB.
    let cases: [(SecondStageMode, u64, &[u64]); 4] = [
        (SecondStageMode::Sv32x4, 0x3_ffc0_3000, &[0x3ffc, 0x00c]),
        (SecondStageMode::Sv39x4, 0x1ff_c060_5000, &[0x3ff8, 0x018, 0x028]),
        (SecondStageMode::Sv48x4, 0x2_0080_4060_4000, &[0x2008, 0x008, 0x018, 0x020]),
        (SecondStageMode::Sv57x4, 0x402_0080_8060_1000, &[0x2010, 0x008, 0x010, 0x018, 0x008]),
    ];
    for (mode, address, offsets) in cases {
        let scheme = SECOND.iter().find(|scheme| scheme.mode == mode).expect("one of four");
        let (mut rig, table) = alone(scheme);
        table.map(address, 0x8765_4000, 0, LEAF);
        assert_eq!(table.root().get() & 0x3fff, 0, "S2-11");
        rig.forget_accesses();
        assert_eq!(go(&mut rig, READ, address | 0x7ff), Ok(0x8765_47ff), "S2-02: {mode:?}");
        let loads = walk_loads(&rig);
        let within = loads.iter().zip([0x3fff, 0xfff, 0xfff, 0xfff, 0xfff]).map(|(at, mask)| at & mask);
        assert_eq!(within.collect::<Vec<_>>(), offsets.iter().map(|at| at & !7).collect::<Vec<_>>(), "S2-02: {mode:?}");
    }
}

#[test]
fn an_address_too_wide_faults_before_any_entry_is_read() {
    for (scheme, bits) in SECOND.iter().zip([34, 41, 50, 59]) {
        let (mut rig, table) = alone(scheme);
        for address in [0, (1 << bits) - 1, 1 << (bits - 1)] {
            table.map(address, 0x8_5000, 0, LEAF);
            assert_eq!(go(&mut rig, READ, address), Ok(0x8_5000 | address & 0xfff), "S2-03: {address:#x}");
        }
        let wide = (bits..64).map(|bit| 1 << bit | 0x123_4567_u64 & 0xfff).chain([u64::MAX, u64::MAX << (bits - 1)]);
        for address in wide {
            for access in ACCESSES {
                rig.forget_accesses();
                let request = access.of(&rig, address);
                // The GPA but for its lowest bits, which say that the access is the device's own.
                let expected = (access.guest_page_fault, address & !3);
                assert_eq!(fault(&mut rig, request), expected, "S2-03, S1-05, FR-08: {address:#x}");
                assert_eq!(walk_loads(&rig), [0; 0], "S2-03: {:?}", scheme.mode);
            }
        }
    }
}

#[test]
fn with_sxl_addresses_have_34_bits_in_every_scheme() {
    for scheme in &SECOND[1..] {
        let (mut rig, table) = alone(scheme);
        for (address, sxl, expected) in [
            (0x3_ffff_f000, SXL, Ok(0x8_5000)),
            (0x4_0000_0000, SXL, Err(21)),
            (0x4_0000_0000, 0, Ok(0x8_5000)),
            (1 << 40, SXL, Err(21)),
            (1 << 40, 0, Ok(0x8_5000)),
        ] {
            table.map(address, 0x8_5000, 0, LEAF);
            context(&rig, sxl, table.iohgatp(GSCID), 0);
            assert_eq!(go(&mut rig, READ, address), expected, "S2-03, DC-14: {address:#x} in {:?}", scheme.mode);
        }
        context(&rig, SXL, table.iohgatp(GSCID), 0);
        rig.forget_accesses();
        let request = WRITE.of(&rig, 0x4_0000_0abf);
        assert_eq!(fault(&mut rig, request), (23, 0x4_0000_0abc), "S2-03, DC-14");
        assert_eq!(walk_loads(&rig), [0; 0], "S2-03");
        // Implicit accesses have no more: a root of 44 bits, and of a process directory.
        table.map(0x4_0000_0000, 0x8_0000_0000, 0, LEAF);
        let root = 0x4_0000_0000 >> 12;
        context(&rig, SXL, table.iohgatp(GSCID), 8 << 60 | root);
        let request = READ.of(&rig, 0x40_0000);
        assert_eq!(fault(&mut rig, request), (21, 0x4_0000_0004 & !3 | 1 | 4), "DC-14, S1-06");
        rig.set_context(&[1 | PDTV | SXL, table.iohgatp(GSCID), 0, 1 << 60 | root]);
        let request = READ.of(&rig, 0x40_0000).with_process(PROCESS, false);
        assert_eq!(fault(&mut rig, request), (21, 0x4_0000_0210 | 1), "DC-14, PDT-10");
    }
}

#[test]
fn every_first_stage_works_under_every_second_stage_but_rv64_under_gxl() {
    for (first, second) in FIRST.iter().flat_map(|first| SECOND.iter().map(move |second| (first, second))) {
        let name = format!("{:?} under {:?}", first.mode, second.mode);
        if second.mode == SecondStageMode::Sv32x4 && first.mode != FirstStageMode::Sv32 {
            let mut rig = rig();
            rig.set_fctl(GXL);
            let table = second_stage(&rig, second.mode);
            let mode = PageTable::first_stage(&rig.memory, first.mode).iosatp();
            context(&rig, 0, table.iohgatp(GSCID), mode);
            assert_eq!(go(&mut rig, READ, IOVA), Err(259), "DCK-20: {name}");
            continue;
        }
        for (level, second_level) in (0..first.levels()).flat_map(|one| (0..second.levels()).map(move |two| (one, two)))
        {
            check_combination(first, second, level, second_level, &name);
        }
    }
}

/// A leaf of this level under one of that level: the address, the loads in their order and the size.
fn check_combination(first: &First, second: &Second, level: u8, second_level: u8, name: &str) {
    let mut both = Both::new(first.mode, second.mode, 0);
    let address = first.sample();
    // As high as both stages can go, away from the tables: bit 32 is above all of Sv32x4's and more.
    let widest = second.bits.min(if first.entry == 4 || second.entry == 4 { 34 } else { 56 });
    let gpa = 1 << (widest - 1) | second.sample() & ((1 << (widest - 1)) - 1);
    let gpa = gpa >> first.shift(level) << first.shift(level);
    if gpa == 0 || gpa >> second.shift(second_level) == 0 {
        // A first page of that size covers the tables' addresses.
        return;
    }
    both.first.map(address, gpa, level, LEAF);
    let middle = gpa | address & ((1 << first.shift(level)) - 1);
    let target = second.target(second_level);
    both.second.map(middle, target, second_level, LEAF);
    both.rig.forget_accesses();
    let to = target | middle & ((1 << second.shift(second_level)) - 1);
    let access = ACCESSES[usize::from(level) % 3];
    let name = format!("{name}, levels {level} and {second_level}");
    assert_eq!(go(&mut both.rig, access, address), Ok(to), "S1-13, S2-02: {name}");
    // Before each first-stage entry, the root's too, the second stage is walked for its address: to a leaf at level 1.
    let mut expected = Vec::new();
    for at in entries(first, &both.first, address, level) {
        expected.extend(entries(second, &both.second, at.get() - OFFSET, 1));
        expected.push(at);
    }
    expected.extend(entries(second, &both.second, middle, second_level));
    let expected: Vec<u64> = expected.iter().map(|at| at.get() & !7).collect();
    assert_eq!(walk_loads(&both.rig), expected, "S1-06, VT-13: {name}");
    let size = translation(&mut both.rig, access, address).size;
    assert_eq!(size, 1 << first.shift(level).min(second.shift(second_level)), "SZ-01: {name}");
}

#[test]
fn an_implicit_access_that_the_second_stage_refuses_names_the_entry_s_address() {
    for (first, second) in FIRST.iter().flat_map(|first| SECOND.iter().map(move |second| (first, second))) {
        if second.mode == SecondStageMode::Sv32x4 && first.mode != FirstStageMode::Sv32 {
            continue;
        }
        let mut both = Both::new(first.mode, second.mode, 0);
        for at in entries(first, &both.first, IOVA, 0) {
            for flags in [0, LEAF & !pte::V, LEAF & !pte::R & !pte::W, LEAF & !pte::U, LEAF & !pte::A] {
                both.map_table_page(at, flags);
                for access in ACCESSES {
                    let request = access.of(&both.rig, IOVA);
                    let expected = (access.guest_page_fault, (at.get() - OFFSET) & !3 | 1);
                    let name = format!("{:?} under {:?}, {flags:#x}", first.mode, second.mode);
                    assert_eq!(fault(&mut both.rig, request), expected, "S1-07, S2-08, FR-08, AD-02: {name}");
                }
            }
            // R is all that it takes, of whatever access.
            both.map_table_page(at, pte::V | pte::R | pte::U | pte::A);
            for access in ACCESSES {
                assert_eq!(go(&mut both.rig, access, IOVA), Ok(SPA), "S2-08");
            }
            both.map_table_page(at, LEAF);
        }
    }
}

#[test]
fn an_implicit_access_of_an_ats_request_needs_r_too() {
    let mut both = Both::plain(EN_ATS);
    let root = both.first.root();
    for (flags, readable) in [(pte::V | pte::R | pte::U | pte::A, true), (LEAF & !pte::R & !pte::W, false)] {
        both.map_table_page(root, flags);
        let request = AtsRequest::new(both.rig.device, Iova::new(IOVA));
        let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("ATS-04") };
        assert_eq!((found.read, found.write), (readable, readable), "S2-08, ATS-04");
        assert_eq!(both.rig.take_faults(), [[0; 4]; 0], "ATS-04");
    }
}

#[test]
fn an_entry_of_the_second_stage_that_can_not_be_read_is_an_access_fault() {
    for (first, second) in FIRST.iter().zip(&SECOND) {
        // Behind every way: the final one, and the implicit ones of each first-stage entry.
        let mut both = Both::new(first.mode, second.mode, 0);
        let mut ways = vec![GPA];
        ways.extend(entries(first, &both.first, IOVA, 0).iter().map(|at| at.get() - OFFSET));
        both.map_table_page(both.first.root(), LEAF);
        for gpa in ways {
            for at in entries(second, &both.second, gpa, 0) {
                for access in ACCESSES {
                    for (failure, code) in [(MemoryFault::Access, access.abort), (MemoryFault::Corruption, 274)] {
                        both.rig.memory.fail(at, second.entry, failure);
                        let request = access.of(&both.rig, IOVA);
                        assert_eq!(fault(&mut both.rig, request), (code, 0), "S2-04, S1-07, FLT-06: {gpa:#x}");
                        both.rig.memory.clear_failures();
                    }
                }
            }
        }
        // The first-stage entries themselves.
        for at in entries(first, &both.first, IOVA, 0) {
            for access in ACCESSES {
                both.rig.memory.fail(at, first.entry, MemoryFault::Access);
                assert_eq!(go(&mut both.rig, access, IOVA), Err(access.abort), "S1-08");
                both.rig.memory.clear_failures();
            }
        }
    }
}

#[test]
fn an_entry_on_the_way_to_a_process_directory_has_the_causes_of_the_directory() {
    let mut rig = rig();
    let second = second_stage(&rig, SecondStageMode::Sv39x4);
    let processes = ProcessDirectory::new(&rig.memory, 1).below(OFFSET);
    processes.set(PROCESS, [0b1, 0]);
    rig.set_context(&[1 | PDTV, second.iohgatp(GSCID), 0, processes.pdtp()]);
    second.map(IOVA, SPA, 0, LEAF);
    let way = entries(&SECOND[1], &second, processes.root().get() - OFFSET, 1);
    for access in ACCESSES {
        for at in &way {
            for (failure, code) in [(MemoryFault::Access, 265), (MemoryFault::Corruption, 269)] {
                rig.memory.fail(*at, 8, failure);
                let request = access.of(&rig, IOVA).with_process(PROCESS, false);
                assert_eq!(fault(&mut rig, request), (code, 0), "S2-04, PDT-11");
                rig.memory.clear_failures();
            }
        }
        let request = access.of(&rig, IOVA).with_process(PROCESS, false);
        assert_eq!(rig.address(request), Ok(SPA), "TR-15");
    }
    // The final access of the same request has its own.
    for at in entries(&SECOND[1], &second, IOVA, 0).iter().skip(1) {
        rig.memory.fail(*at, 8, MemoryFault::Access);
        let request = WRITE.of(&rig, IOVA).with_process(PROCESS, false);
        assert_eq!(fault(&mut rig, request), (7, 0), "S2-04");
        rig.memory.clear_failures();
    }
}

#[test]
fn a_table_of_the_second_stage_past_the_physical_address_size_is_an_access_fault() {
    let offer = Capabilities::from_bits(u64::MAX).with_pas(33);
    for scheme in &SECOND[1..] {
        let mut rig = DmaRig::<0>::new(config().with_capabilities(offer));
        let table = PageTable::second_stage(&rig.memory, scheme.mode);
        let beyond = 1 << 33;
        rig.memory.map(Gpa::new(beyond), 0x4000);
        let address = scheme.sample();
        table.set(address, scheme.root_level(), beyond >> 2 | pte::V);
        for iohgatp in [table.iohgatp(GSCID), table.iohgatp(GSCID) >> 44 << 44 | beyond >> 12] {
            context(&rig, 0, iohgatp, 0);
            for access in ACCESSES {
                assert_eq!(go(&mut rig, access, address), Err(access.abort), "S2-04: {:?}", scheme.mode);
            }
        }
    }
}

#[test]
fn permissions_are_judged_by_the_access_and_u_is_always_needed() {
    for (first, second) in FIRST.iter().zip(&SECOND) {
        for (privileged, sum) in [(false, false), (true, true), (true, false)] {
            let mut both = Both::new(first.mode, second.mode, 0);
            let (iohgatp, fsc) = (both.second.iohgatp(GSCID), both.first.iosatp());
            process_context_below(&both.rig, both.tc, iohgatp, fsc, sum, OFFSET);
            // A page of the supervisor, or of users.
            both.first.map(IOVA, GPA, 0, if privileged { LEAF & !pte::U } else { LEAF });
            for bits in 0..16 {
                let leaf = bits << 1 | pte::V | pte::A | pte::D;
                both.second.map(GPA, SPA, 0, leaf);
                let good = leaf & pte::U != 0 && leaf & (pte::R | pte::W) != pte::W;
                for access in ACCESSES {
                    let request = access.of(&both.rig, IOVA | 0x126).with_process(PROCESS, privileged);
                    let name = format!("{leaf:#x}, {:#x}, privileged: {privileged}", access.needs);
                    if good && leaf & access.needs != 0 {
                        assert_eq!(both.rig.address(request), Ok(SPA | 0x126), "S2-05, S2-06: {name}");
                    } else {
                        // The GPA, not the IOVA; bits 1:0 are 0.
                        let expected = (access.guest_page_fault, GPA | 0x124);
                        assert_eq!(fault(&mut both.rig, request), expected, "S2-05, S2-06, S2-07, FR-08: {name}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_ats_request_is_told_what_the_second_stage_lacks() {
    let cases = [
        (LEAF, (true, true, true)),
        (LEAF & !pte::W, (true, false, true)),
        (LEAF & !pte::X, (true, true, false)),
        (LEAF & !pte::R & !pte::W, (false, false, false)),
        (LEAF & !pte::U, (false, false, false)),
    ];
    for (leaf, expected) in cases {
        let mut both = Both::plain(EN_ATS);
        let (iohgatp, fsc) = (both.second.iohgatp(GSCID), both.first.iosatp());
        process_context_below(&both.rig, EN_ATS, iohgatp, fsc, false, OFFSET);
        both.second.map(GPA, SPA, 0, leaf);
        let request = AtsRequest::new(both.rig.device, Iova::new(IOVA)).with_process(PROCESS, false).with_execute(true);
        let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("S2-06") };
        assert_eq!((found.read, found.write, found.execute), expected, "S2-06, ATS-07: {leaf:#x}");
        assert_eq!(both.rig.take_faults(), [[0; 4]; 0], "ATS-04");
    }
}

#[test]
fn an_update_of_a_first_stage_entry_needs_w_of_the_page_it_is_in() {
    for (first, second) in FIRST.iter().zip(&SECOND) {
        let mut both = Both::new(first.mode, second.mode, SADE);
        let at = both.first.entry_address(IOVA, 0);
        let leaf = GPA >> 2 | LEAF & !pte::A;
        both.map_table_page(at, LEAF & !pte::W);
        for access in ACCESSES {
            both.first.set(IOVA, 0, leaf);
            let request = access.of(&both.rig, IOVA);
            let expected = (access.guest_page_fault, (at.get() - OFFSET) & !3 | 3);
            assert_eq!(fault(&mut both.rig, request), expected, "S2-09, FR-08: {:?}", first.mode);
            assert_eq!(both.first.get(IOVA, 0), leaf, "S2-09: it is as it was");
        }
        // With nothing to update W is not looked at.
        both.first.set(IOVA, 0, GPA >> 2 | LEAF);
        assert_eq!(go(&mut both.rig, WRITE, IOVA), Ok(SPA), "S2-08");
    }
}

#[test]
fn each_stage_has_its_own_byte_order() {
    for (first, second) in FIRST.iter().zip(&SECOND) {
        for (be, sbe) in [(false, false), (false, true), (true, false), (true, true)] {
            let memory = Memory::new();
            let handle = |big_endian| if big_endian { memory.big_endian() } else { memory.clone() };
            let mut rig = DmaRig::<0>::in_memory(config(), handle(be));
            rig.set_fctl(gxl(second.mode) | if be { BE } else { 0 });
            let table = PageTable::first_stage(&handle(sbe), first.mode).below(OFFSET);
            let outer = second_stage(&rig, second.mode);
            table.map(IOVA, GPA, 0, LEAF);
            outer.map(GPA, SPA, 0, LEAF);
            let tc = sxl(first.mode) | if sbe { SBE } else { 0 };
            context(&rig, tc, outer.iohgatp(GSCID), table.iosatp());
            let request = READ.of(&rig, IOVA);
            assert_eq!(rig.address(request), Ok(SPA), "S2-10, S1-14, END-02, EDN-01: BE {be}, SBE {sbe}");
        }
    }
}

#[test]
fn a_root_that_is_not_aligned_to_16_kib_is_a_bad_context() {
    for scheme in &SECOND {
        let (mut rig, table) = alone(scheme);
        let address = scheme.sample();
        table.map(address, 0x8_5000, 0, LEAF);
        let tc = if gxl(scheme.mode) == 0 { 0 } else { SXL };
        for low in 1..4 {
            context(&rig, tc, table.iohgatp(GSCID) | low, 0);
            assert_eq!(go(&mut rig, READ, address), Err(259), "S2-11, DCK-17");
        }
        context(&rig, tc, table.iohgatp(GSCID), 0);
        assert_eq!(go(&mut rig, READ, address), Ok(0x8_5abc), "S2-11");
    }
}

#[test]
fn the_first_stage_s_memory_type_wins_if_it_has_one() {
    let types = [(0, Pbmt::Pma), (NC, Pbmt::Nc), (IO, Pbmt::Io)];
    // As the privileged architecture's table has it.
    let expected = [[Pbmt::Pma, Pbmt::Nc, Pbmt::Io], [Pbmt::Nc, Pbmt::Nc, Pbmt::Nc], [Pbmt::Io, Pbmt::Io, Pbmt::Io]];
    let mut both = Both::plain(0);
    for ((first, _), row) in types.iter().zip(expected) {
        for ((second, _), expected) in types.iter().zip(row) {
            both.first.map(IOVA, GPA, 0, LEAF | first);
            both.second.map(GPA, SPA, 0, LEAF | second);
            let found = translation(&mut both.rig, READ, IOVA).memory_type;
            assert_eq!(found, expected, "PB-02: {first:#x} under {second:#x}");
        }
    }
    // The type of the pages that tables are in is no one else's.
    both.first.map(IOVA, GPA, 0, LEAF);
    both.second.map(GPA, SPA, 0, LEAF);
    both.split(IO);
    assert_eq!(
        translation(&mut both.rig, READ, IOVA).memory_type,
        Pbmt::Pma,
        "PB-02: the type of a table's page is not that of the access"
    );
    for (flags, name) in types {
        // Each stage alone.
        both.second.map(IOVA, SPA, 0, LEAF | flags);
        context(&both.rig, 0, both.second.iohgatp(GSCID), 0);
        assert_eq!(translation(&mut both.rig, READ, IOVA).memory_type, name, "PB-01, PB-02");
    }
}

#[test]
fn a_request_that_is_not_walked_for_has_no_memory_type() {
    let mut both = Both::plain(EN_ATS);
    both.second.map(GPA, SPA, 0, LEAF | IO);
    both.first.map(IOVA, GPA, 0, LEAF | NC);
    let request = READ.of(&both.rig, IOVA).translated();
    let found = both.rig.translate(request).expect("EN_ATS is set");
    assert_eq!((found.target, found.memory_type), (Target::Memory(Gpa::new(IOVA)), Pbmt::Pma), "PB-05");
    // With T2GPA the second stage's counts.
    both.tc |= T2GPA;
    both.set();
    let request = READ.of(&both.rig, GPA).translated();
    let found = both.rig.translate(request).expect("mapped");
    assert_eq!((found.target, found.memory_type), (Target::Memory(Gpa::new(SPA)), Pbmt::Io), "PB-02, TR-12");
    // ddtp Bare.
    both.rig.write8(register::DDTP, 0);
    both.rig.write8(register::DDTP, 1);
    assert_eq!(translation(&mut both.rig, WRITE, IOVA).memory_type, Pbmt::Pma, "PB-05");
}

/// Interrupt files at `0x2800_0000`: four pages, by the two low bits of the page number. The entry of each is of basic
/// mode and leads to page 0x100 and so on.
fn with_messages(both: &Both, fsc: u64, mask: u64, pattern: u64) -> Gpa {
    let msi = both.rig.memory.allocate(1);
    for index in 0..4 {
        both.rig.memory.write(Gpa::new(msi.get() + index * 16), (0x100 + index) << 10 | 0b111);
    }
    let iohgatp = both.second.iohgatp(GSCID);
    both.rig.set_context(&[1 | both.tc, iohgatp, 0, fsc, 1 << 60 | msi.get() >> 12, mask, pattern]);
    msi
}

#[test]
fn an_interrupt_file_is_4_kib_and_has_the_first_stage_s_memory_type() {
    let mut both = Both::plain(0);
    for (flags, expected) in [(0, Pbmt::Pma), (NC, Pbmt::Nc), (IO, Pbmt::Io)] {
        // A first-stage page of 1 GiB, and a second stage that would make it IO.
        both.first.map(0x4000_0000, 0, 2, LEAF | flags);
        both.second.map(0x2800_0000, SPA, 1, LEAF | IO);
        with_messages(&both, both.first.iosatp(), 3, 0x2_8000);
        let found = translation(&mut both.rig, WRITE, 0x6800_2004);
        assert_eq!(found.target, Target::InterruptFile(Gpa::new(0x10_2004)), "MSI-08, AD-11");
        assert_eq!((found.size, found.memory_type), (0x1000, expected), "SZ-05, PB-04");
    }
    // Without a first stage: what a Bare one has.
    with_messages(&both, 0, 3, 0x2_8000);
    let found = translation(&mut both.rig, WRITE, 0x2800_1000);
    assert_eq!((found.size, found.memory_type), (0x1000, Pbmt::Pma), "SZ-05, PB-04");
}

#[test]
fn a_range_never_holds_a_page_of_an_interrupt_file() {
    // Mask, pattern: four pages at 0x2800_0000; sparse ones, in every second MiB; one page at the start of 1 GiB.
    for (mask, pattern) in [(3, 0x2_8000), (0x100 | 1, 0x2_8000), (0, 0x4_0000), (0x3_0000, 0x1_0000)] {
        for level in 0..3 {
            let mut both = Both::plain(0);
            both.first.map(0x4000_0000, 0, 2, LEAF);
            let pages = [0x2_8000, 0x2_8004, 0x2_80ff, 0x2_8200, 0x2_8100, 0x1_0000, 0x1_0001, 0x3_ffff, 0x2_7fff];
            // Only then the tables' own pages: they are below.
            for page in pages {
                let target = if level == 2 { 0 } else { page << 12 };
                both.second.map(page << 12, target, level, LEAF);
            }
            // A gigapage covers the tables' addresses, so it leads to them; others are where the tables are not.
            let fsc = if level == 2 { 0 } else { both.first.iosatp() };
            with_messages(&both, fsc, mask, pattern);
            for page in pages {
                let iova = if level == 2 { page << 12 } else { 0x4000_0000 | page << 12 };
                let request = Request::read(both.rig.device, Iova::new(iova));
                let Ok(found) = both.rig.translate(request) else { continue };
                let matches = |page: u64| page & !mask == pattern & !mask;
                let first = ((page << 12) / found.size * found.size) >> 12;
                let pages = first..first + (found.size >> 12);
                assert!(found.size.is_power_of_two() && found.size >= 0x1000, "SZ-01");
                if matches(page) {
                    assert_eq!(found.size, 0x1000, "SZ-05: {page:#x}");
                    assert!(matches!(found.target, Target::InterruptFile(_)), "MSI-03");
                    continue;
                }
                assert!(!pages.clone().any(matches), "SZ-04, DX-28: {page:#x}, {:#x}, {mask:#x}", found.size);
                // Nor is it smaller than it has to be: twice as large it would hold one, or be more than the leaf.
                let twice = ((page << 12) / (found.size * 2) * (found.size * 2)) >> 12;
                let leaf = 1 << [12, 21, 30][usize::from(level)];
                let holds = (twice..twice + (found.size >> 11)).any(matches);
                assert!(found.size == leaf || holds, "SZ-01, SZ-04: {page:#x}, {:#x}, {mask:#x}", found.size);
                assert!(found.size <= leaf, "SZ-01");
            }
        }
    }
}

#[test]
fn a_range_without_interrupt_files_is_as_large_as_both_pages_are() {
    for (mask, pattern) in [(3, 0x7_8000), (0x3, 0xf_ffff_fff0 >> 8 << 8)] {
        let mut both = Both::plain(0);
        both.first.map(0x8000_0000, 0x1_4000_0000, 2, LEAF);
        both.second.map(0x1_4000_0000, 0x2_4000_0000, 2, LEAF);
        with_messages(&both, both.first.iosatp(), mask, pattern);
        let found = translation(&mut both.rig, READ, 0x8012_3456);
        assert_eq!((found.target, found.size), (Target::Memory(Gpa::new(0x2_4012_3456)), 1 << 30), "SZ-01, SZ-04");
    }
}

#[test]
fn sizes_are_told_by_ones_below_a_zero() {
    // Leaf level, and of NAPOT 64 KiB; size; the low bits of the address field or page number.
    let cases =
        [(0, 0, 0x1000_u64, 0), (0, pte::N, 0x1_0000, 0x7), (1, 0, 0x20_0000, 0xff), (2, 0, 0x4000_0000, 0x1_ffff)];
    for (level, napot, size, ones) in cases {
        let mut both = Both::plain(EN_ATS);
        let ppn = if napot == 0 { 0x2_4000_0000 >> 12 } else { 0x2_4000_0000 >> 12 | 8 };
        both.second.set(0x1_4000_0000, level, ppn << 10 | LEAF | napot);
        both.first.map(0x8000_0000, 0x1_4000_0000, 2, LEAF);
        let request = AtsRequest::new(both.rig.device, Iova::new(0x8000_0000));
        let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("mapped") };
        // A range of 64 KiB may be told as 4 KiB (SZ-03).
        let (size, ones) = if napot != 0 && found.size == 0x1000 { (0x1000, 0) } else { (size, ones) };
        assert_eq!(found.size, size, "SZ-01, SZ-03");
        assert_eq!(found.napot(), (0x2_4000_0000 | ones << 12, size > 0x1000), "SZ-02, ATS-15");
        // tr_req_iova, tr_req_ctl with DID, NW and Go; tr_response: S 9, PPN 53:10.
        both.rig.write8(register::TR_REQ_IOVA, 0x8000_0000);
        both.rig.write8(register::TR_REQ_CTL, u64::from(dma_rig::DEVICE) << 40 | 0b1001);
        let response = both.rig.read8(register::TR_RESPONSE);
        let expected = (0x2_4000_0000 >> 12 | ones) << 10 | u64::from(size > 0x1000) << 9;
        assert_eq!(response, expected, "SZ-02, DBG-19: {response:#x}");
    }
}

#[test]
fn a_walk_is_what_the_plain_model_makes_of_it() {
    for (first, cases) in [(false, 3000), (true, 6000)] {
        let run = runner(cases).run(&walk_rig::random::cases(first, true), |case| walk_rig::random::compare(&case));
        if let Err(error) = run {
            panic!("S1-06, S1-07, S2-01 to S2-09, PTE-01 to PTE-09, AD-02, AD-07, PB-02, SZ-01: {error}");
        }
    }
}

#[test]
fn a_bare_second_stage_is_the_identity() {
    let mut rig = rig();
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, SPA, 0, LEAF);
    context(&rig, 0, 0, table.iosatp());
    for access in [READ, WRITE, EXECUTE] {
        assert_eq!(go(&mut rig, access, IOVA), Ok(SPA), "S2-01");
    }
    assert!(translation(&mut rig, READ, IOVA).permissions.execute, "S2-01");
}
