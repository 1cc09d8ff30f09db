//! A and D bits of both stages: when they are set, when that is a fault, what a vCPU changes meanwhile, and stores that
//! fail.
//!
//! Rule IDs are those of the rules of translation.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod walk_rig;

use dma_rig::{ACCESSES, Access, DmaRig, READ, WRITE};
use riscv_viommu::mock::guest::{Iofence, Iotinval, register as reg};
use riscv_viommu::mock::tables::tc::{EN_ATS, GADE, PDTV, SADE};
use riscv_viommu::mock::tables::{PageTable, pte};
use riscv_viommu::mock::{Event, Memory};
use riscv_viommu::{
    AtsCompletion, AtsRequest, FirstStageMode, Gpa, Gscid, Iova, MemoryFault, Request, SecondStageMode, Target,
};
use walk_rig::{
    FIRST, GSCID, OFFSET, PROCESS, SECOND, Single, config, context, fault, go, go_as, nested_first_stage,
    process_context, rig, runner, second_stage, walk_loads,
};

/// V, R, W, X, U; A and D are bits 6 and 7.
const CLEAN: u64 = 0x1f;
const A: u64 = pte::A;
const D: u64 = pte::D;

const IOVA: u64 = 0x0123_4000;
const GPA: u64 = 0x0567_8000;
const SPA: u64 = 0x3_89ab_c000;

/// Sv39 under Sv39x4, all A and D set, the tables' pages mapped one by one with flags that a test may change.
struct Both {
    rig: DmaRig<0>,
    first: PageTable,
    second: PageTable,
}

impl Both {
    fn new(tc: u64) -> Self {
        Self::in_rig(rig(), tc)
    }

    fn in_rig(rig: DmaRig<0>, tc: u64) -> Self {
        let second = second_stage(&rig, SecondStageMode::Sv39x4);
        let first = nested_first_stage(&rig, FirstStageMode::Sv39);
        second.unmap(0, 1);
        for page in 0..0x100 {
            second.map(page << 12, OFFSET | page << 12, 0, CLEAN | A | D);
        }
        first.map(IOVA, GPA, 0, CLEAN | A | D);
        second.map(GPA, SPA, 0, CLEAN | A | D);
        context(&rig, tc, second.iohgatp(GSCID), first.iosatp());
        rig.forget_accesses();
        Self { rig, first, second }
    }

    /// The GPA of the first-stage leaf.
    fn leaf_gpa(&self) -> u64 {
        self.first.entry_address(IOVA, 0).get() - OFFSET
    }

    /// Flags of the second-stage leaf of the page that the first-stage leaf is in.
    fn set_table_page(&self, flags: u64) {
        let gpa = self.leaf_gpa();
        self.second.map(gpa, gpa + OFFSET, 0, flags);
    }

    fn table_page(&self) -> u64 {
        self.second.get(self.leaf_gpa(), 0) & 0x3ff
    }
}

/// The A and D that an access with updates leaves in a leaf that grants it all; `None`: there was nothing to do.
fn after(flags: u64, access: Access) -> Option<u64> {
    let wanted = flags | A | if access.needs == pte::W { D } else { 0 };
    (wanted != flags).then_some(wanted)
}

#[test]
fn a_and_d_are_demanded_or_set_as_the_context_says_in_every_scheme_at_every_level() {
    for updates in [false, true] {
        let all = if updates { SADE | GADE } else { 0 };
        for mut single in Single::every(config(), all) {
            // The other stage's bit alone does nothing for this one.
            let own = if single.is_second { "S2" } else { "S1" };
            for level in 0..single.levels() {
                let target = single.targets[usize::from(level)];
                for (access, flags) in ACCESSES.iter().flat_map(|access| [0, A, D, A | D].map(|flags| (*access, flags)))
                {
                    single.table.map(single.address, target, level, CLEAN | flags);
                    single.rig.forget_accesses();
                    let name = format!("{own} {} level {level}, A/D {flags:#x}, SADE/GADE {updates}", single.name);
                    let to = target | single.address & ((1 << single.shifts[usize::from(level)]) - 1);
                    let needed = after(flags, access);
                    let refused = needed.is_some() && !updates;
                    let expected = if refused { Err(single.refusal(access)) } else { Ok(to) };
                    assert_eq!(single.go(access), expected, "AD-01, AD-02: {name}");
                    let left = if updates { needed.unwrap_or(flags) } else { flags };
                    let entry = target >> 2 | CLEAN | left;
                    assert_eq!(single.table.get(single.address, level), entry, "AD-01, AD-04: {name}");
                    let exchanges = exchanges(&single.rig.memory.take_events());
                    assert_eq!(exchanges.len(), usize::from(needed.is_some() && updates), "AD-03, T26: {name}");
                }
                single.table.unmap(single.address, level);
            }
        }
    }
}

fn exchanges(events: &[Event]) -> Vec<(Gpa, u64, u64)> {
    let exchange = |event: &Event| match event {
        Event::Exchange(at, old, new) => Some((*at, *old, *new)),
        _ => None,
    };
    events.iter().filter_map(exchange).collect()
}

#[test]
fn each_stage_is_updated_by_its_own_bit() {
    for (tc, first, second) in [(0, false, false), (SADE, true, false), (GADE, false, true), (SADE | GADE, true, true)]
    {
        let mut both = Both::new(tc);
        both.first.map(IOVA, GPA, 0, CLEAN);
        assert_eq!(go(&mut both.rig, READ, IOVA), if first { Ok(SPA) } else { Err(13) }, "AD-01, DC-09");
        both.first.map(IOVA, GPA, 0, CLEAN | A | D);
        both.second.map(GPA, SPA, 0, CLEAN);
        let request = READ.of(&both.rig, IOVA | 0x124);
        if second {
            assert_eq!(both.rig.address(request), Ok(SPA | 0x124), "AD-02, DC-08");
        } else {
            assert_eq!(fault(&mut both.rig, request), (21, GPA | 0x124), "AD-02, DC-08");
        }
    }
}

#[test]
fn nothing_is_updated_for_an_access_that_is_refused() {
    for mut single in Single::every(config(), SADE | GADE) {
        for flags in [CLEAN & !pte::W, CLEAN & !pte::U] {
            single.table.map(single.address, 0x8_5000, 0, flags);
            single.rig.forget_accesses();
            assert_eq!(single.go(WRITE), Err(single.refusal(WRITE)), "AD-01: {}", single.name);
            assert_eq!(single.table.get(single.address, 0), 0x8_5000 >> 2 | flags, "AD-04: {}", single.name);
            assert_eq!(single.rig.memory.take_events().len(), 1, "AD-04: the record of the fault");
        }
        // Of a page that is not writable a read sets A, and leaves D.
        single.table.map(single.address, 0x8_5000, 0, CLEAN & !pte::W);
        assert_eq!(single.go(READ), Ok(0x8_5abc), "AD-01");
        assert_eq!(single.table.get(single.address, 0), 0x8_5000 >> 2 | CLEAN & !pte::W | A, "AD-04");
    }
}

#[test]
fn an_update_keeps_every_other_bit() {
    for mut single in Single::every(config(), SADE | GADE) {
        // RSW, G, and with 8 bytes software's 60:59 and a type.
        let extra = pte::G | 3 << 8 | if single.entry == 8 { 3 << 59 | 1 << 61 } else { 0 };
        single.table.set(single.address, 0, 0x8_5000 >> 2 | CLEAN | extra);
        let neighbour = single.address ^ 0x1000;
        single.table.set(neighbour, 0, 0x9_5000 >> 2 | CLEAN);
        single.rig.forget_accesses();
        assert_eq!(single.go(WRITE), Ok(0x8_5abc), "AD-03");
        let expected = 0x8_5000 >> 2 | CLEAN | A | D | extra;
        assert_eq!(single.table.get(single.address, 0), expected, "AD-03, AD-04: {}", single.name);
        // Of 4-byte entries the other half of the word.
        assert_eq!(single.table.get(neighbour, 0), 0x9_5000 >> 2 | CLEAN, "AD-03, T26: {}", single.name);
        let at = single.table.entry_address(single.address, 0);
        let (old, new) = (0x8_5000 >> 2 | CLEAN | extra, expected);
        assert_eq!(exchanges(&single.rig.memory.take_events()), [(at, old, new)], "AD-03: the whole entry, at once");
    }
}

#[test]
fn an_entry_that_a_vcpu_changed_is_looked_at_anew() {
    // What the vCPU makes of it between look and exchange: where the access then ends, and what is left.
    let other = 0xabc_d000_u64 >> 2;
    let page = 0x8_5000_u64 >> 2;
    let cases = [
        // Other bits are set: kept.
        (page | CLEAN | A, Ok(0x8_5abc), page | CLEAN | A | D),
        (page | CLEAN | 3 << 8, Ok(0x8_5abc), page | CLEAN | A | D | 3 << 8),
        // All is done already.
        (page | CLEAN | A | D, Ok(0x8_5abc), page | CLEAN | A | D),
        // It leads elsewhere.
        (other | CLEAN, Ok(0xabc_dabc), other | CLEAN | A | D),
        // It is gone, or allows less.
        (0, Err(()), 0),
        (page | CLEAN & !pte::W, Err(()), page | CLEAN & !pte::W),
        (page | CLEAN & !pte::U, Err(()), page | CLEAN & !pte::U),
        (page | CLEAN | 1 << 54, Err(()), page | CLEAN | 1 << 54),
        // A pointer at the last level.
        (page | 1, Err(()), page | 1),
    ];
    for (is_second, (raced, result, left)) in
        [false, true].into_iter().flat_map(|stage| cases.map(|case| (stage, case)))
    {
        let mut single = if is_second {
            Single::second(&SECOND[1], config(), GADE)
        } else {
            Single::first(&FIRST[1], config(), SADE)
        };
        single.table.set(single.address, 0, page | CLEAN);
        let at = single.table.entry_address(single.address, 0);
        single.rig.memory.on_exchange(at, [raced]);
        single.rig.forget_accesses();
        let expected = result.map_err(|()| single.refusal(WRITE));
        assert_eq!(single.go(WRITE), expected, "AD-03: {raced:#x}, second stage: {is_second}");
        assert_eq!(single.table.get(single.address, 0), left, "AD-03, AD-04, T26: {raced:#x}");
        // Only the entry itself is read again, once.
        assert_eq!(walk_loads(&single.rig).len(), 4, "AD-03, VT-13: {raced:#x}");
    }
}

#[test]
fn an_entry_of_4_bytes_is_raced_by_its_own_half_alone() {
    for first in [true, false] {
        let mut single =
            if first { Single::first(&FIRST[0], config(), SADE) } else { Single::second(&SECOND[0], config(), GADE) };
        let page = 0x8_5000_u64 >> 2;
        single.table.set(single.address & !0x1000, 0, page | CLEAN);
        single.table.set(single.address | 0x1000, 0, page | CLEAN);
        let word = Gpa::new(single.table.entry_address(single.address, 0).get() & !7);
        // The neighbour changes: no race.
        let is_high = single.address & 0x1000 != 0;
        let entry = page | CLEAN;
        let raced = if is_high { entry << 32 | 0x1234_5678 } else { 0x1234_5678 << 32 | entry };
        single.rig.memory.on_exchange(word, [raced]);
        single.rig.forget_accesses();
        assert_eq!(single.go(WRITE), Ok(0x8_5abc), "AD-03, EDN-07");
        assert_eq!(walk_loads(&single.rig).len(), 2, "AD-03: not looked at again");
        let expected = if is_high { (entry | A | D) << 32 | 0x1234_5678 } else { 0x1234_5678 << 32 | entry | A | D };
        assert_eq!(single.rig.memory.read(word), expected, "AD-03, T26");
    }
}

#[test]
fn a_vcpu_that_never_stops_changing_an_entry_makes_it_an_access_fault() {
    for mut single in Single::every(config(), SADE | GADE).into_iter().filter(|single| single.entry == 8) {
        for access in ACCESSES {
            let entry = 0x8_5000 >> 2 | CLEAN;
            single.table.set(single.address, 0, entry);
            let at = single.table.entry_address(single.address, 0);
            single.rig.memory.on_exchange(at, (0..1000).map(|turn| entry | (turn & 3) << 8 ^ 1 << 8));
            single.rig.forget_accesses();
            assert_eq!(single.go(access), Err(access.abort), "VT-13, AD-03: {}", single.name);
            let loads = walk_loads(&single.rig).len();
            assert!(loads <= single.shifts.len() + 16, "VT-13: {loads} loads for {}", single.name);
            assert_eq!(exchanges(&single.rig.memory.take_events()), [], "AD-03");
            single.rig.memory.on_exchange(at, []);
        }
    }
}

#[test]
fn the_address_of_an_entry_is_translated_again_when_it_is_looked_at_again() {
    let mut both = Both::new(SADE);
    both.first.map(IOVA, GPA, 0, CLEAN);
    let at = both.first.entry_address(IOVA, 0);
    // The second stage moves the page while the vCPU changes the entry: the new page is looked at.
    let moved = both.rig.memory.allocate(1);
    let offset = at.get() & 0xfff;
    both.rig.memory.write(Gpa::new(moved.get() | offset), (GPA + 0x1000) >> 2 | CLEAN);
    both.second.map(GPA + 0x1000, SPA + 0x1000, 0, CLEAN | A | D);
    both.rig.memory.on_exchange(at, [GPA >> 2 | CLEAN | 1 << 8]);
    // The read, the update, and then the read again.
    let second = both.second.entry_address(both.leaf_gpa(), 0);
    let stays = both.rig.memory.read(second);
    // Loads of that entry before: one, for the root is in another page; then one for the update.
    both.rig.memory.on_load(second, [stays, stays, moved.get() >> 2 | CLEAN | A | D]);
    assert_eq!(go(&mut both.rig, READ, IOVA), Ok(SPA + 0x1000), "AD-03, S1-06");
    assert_eq!(both.rig.memory.read(at), GPA >> 2 | CLEAN | 1 << 8, "AD-03: the old one is left");
}

#[test]
fn an_entry_that_can_not_be_stored_to_is_an_access_fault() {
    for mut single in Single::every(config(), SADE | GADE) {
        for access in ACCESSES {
            for (failure, code) in [(MemoryFault::Access, access.abort), (MemoryFault::Corruption, 274)] {
                single.table.set(single.address, 0, 0x8_5000 >> 2 | CLEAN);
                let at = single.table.entry_address(single.address, 0);
                single.rig.memory.fail_stores(at, single.entry, failure);
                let request = access.of(&single.rig, single.address);
                assert_eq!(fault(&mut single.rig, request), (code, 0), "AD-05, FLT-04, T43: {}", single.name);
                assert_eq!(single.table.get(single.address, 0), 0x8_5000 >> 2 | CLEAN, "AD-05");
                single.rig.memory.clear_failures();
                // With nothing to store it is not asked for.
                single.rig.memory.read_only(at, single.entry);
                single.table.set(single.address, 0, 0x8_5000 >> 2 | CLEAN | A | D);
                assert_eq!(single.go(access), Ok(0x8_5abc), "AD-05");
                single.rig.memory.clear_failures();
            }
        }
    }
}

#[test]
fn without_compare_exchange_updates_are_not_offered() {
    let memory = Memory::new();
    memory.without_compare_exchange();
    let mut rig = DmaRig::<0>::in_memory(config(), memory);
    // AMO_HWAD is bit 24.
    assert_eq!(rig.read8(reg::CAPABILITIES) >> 24 & 1, 0, "AD-05");
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    for tc in [SADE, GADE] {
        context(&rig, tc, 0, table.iosatp());
        assert_eq!(go(&mut rig, READ, IOVA), Err(259), "DCK-18");
    }
    context(&rig, 0, 0, table.iosatp());
    table.map(IOVA, SPA, 0, CLEAN);
    assert_eq!(go(&mut rig, READ, IOVA), Err(13), "AD-01");
}

#[test]
fn an_update_is_in_memory_before_the_answer_is() {
    let mut both = Both::new(SADE | GADE | EN_ATS);
    for is_ats in [false, true] {
        both.first.map(IOVA, GPA, 0, CLEAN);
        both.second.map(GPA, SPA, 0, CLEAN);
        both.rig.forget_accesses();
        if is_ats {
            let request = AtsRequest::new(both.rig.device, Iova::new(IOVA));
            let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("mapped") };
            assert!(found.read && (found.write || both.first.get(IOVA, 0) & D != 0), "AD-06, ATS-17");
        } else {
            assert_eq!(go(&mut both.rig, WRITE, IOVA), Ok(SPA), "AD-06");
        }
        let (first, second) = (both.first.entry_address(IOVA, 0), both.second.entry_address(GPA, 0));
        let stored: Vec<Gpa> = exchanges(&both.rig.memory.take_events()).iter().map(|exchange| exchange.0).collect();
        assert_eq!(stored, [first, second], "AD-06, AD-10: the first stage's comes first");
        assert_eq!(both.first.get(IOVA, 0), GPA >> 2 | CLEAN | A | D, "AD-06");
        assert_eq!(both.second.get(GPA, 0), SPA >> 2 | CLEAN | A | D, "AD-06");
    }
}

#[test]
fn an_update_of_a_first_stage_entry_is_a_store_to_the_page_it_is_in() {
    // D of that page: demanded without GADE, set with it; W is needed in any case.
    for (tc, flags, result, left) in [
        (SADE, CLEAN | A | D, Ok(SPA), CLEAN | A | D),
        (SADE, CLEAN | A, Err(3), CLEAN | A),
        (SADE | GADE, CLEAN | A, Ok(SPA), CLEAN | A | D),
        (SADE | GADE, CLEAN, Ok(SPA), CLEAN | A | D),
        (SADE | GADE, CLEAN & !pte::W, Err(3), CLEAN & !pte::W | A),
        // Not even the read of the entry.
        (SADE, CLEAN | D, Err(1), CLEAN | D),
    ] {
        for access in ACCESSES {
            let mut both = Both::new(tc);
            both.first.map(IOVA, GPA, 0, CLEAN);
            both.set_table_page(flags);
            let request = access.of(&both.rig, IOVA);
            match result {
                Ok(to) => {
                    assert_eq!(both.rig.address(request), Ok(to), "AD-07: {tc:#x} {flags:#x}");
                    let set = A | if access.needs == pte::W { D } else { 0 };
                    assert_eq!(both.first.get(IOVA, 0), GPA >> 2 | CLEAN | set, "AD-07");
                }
                Err(implicit) => {
                    let expected = (access.guest_page_fault, both.leaf_gpa() & !3 | implicit);
                    assert_eq!(fault(&mut both.rig, request), expected, "AD-07, S2-09, FR-08: {tc:#x} {flags:#x}");
                    assert_eq!(both.first.get(IOVA, 0), GPA >> 2 | CLEAN, "AD-07");
                }
            }
            assert_eq!(both.table_page(), left, "AD-07, AD-04: {tc:#x} {flags:#x}");
        }
    }
}

#[test]
fn d_of_the_page_of_a_table_is_not_demanded_where_nothing_is_updated() {
    for tc in [0, SADE, GADE, SADE | GADE] {
        let mut both = Both::new(tc);
        both.set_table_page(CLEAN | A);
        assert_eq!(go(&mut both.rig, WRITE, IOVA), Ok(SPA), "AD-08, DX-29: {tc:#x}");
        assert_eq!(both.table_page(), CLEAN | A, "AD-08, AD-02: a read sets no D");
        // And A of it by a read.
        both.set_table_page(CLEAN);
        let expected = if tc & GADE == 0 { Err(23) } else { Ok(SPA) };
        assert_eq!(go(&mut both.rig, WRITE, IOVA), expected, "AD-02, S2-08: {tc:#x}");
        assert_eq!(both.table_page(), if tc & GADE == 0 { CLEAN } else { CLEAN | A }, "AD-02");
    }
}

#[test]
fn a_read_of_a_process_directory_sets_a_of_its_page_with_gade_only() {
    for (tc, expected) in [(GADE, Ok(SPA)), (0, Err(23)), (SADE, Err(23))] {
        let mut rig = rig();
        let second = second_stage(&rig, SecondStageMode::Sv39x4);
        let first = nested_first_stage(&rig, FirstStageMode::Sv39);
        first.map(IOVA, GPA, 0, CLEAN | A | D);
        second.map(GPA, SPA, 0, CLEAN | A | D);
        let processes = riscv_viommu::mock::tables::ProcessDirectory::new(&rig.memory, 1).below(OFFSET);
        processes.set(PROCESS, [1, first.iosatp()]);
        second.unmap(0, 1);
        for page in 0..0x100 {
            second.map(page << 12, OFFSET | page << 12, 0, CLEAN | A | D);
        }
        let page = processes.root().get() - OFFSET;
        second.map(page, processes.root().get(), 0, CLEAN);
        rig.set_context(&[1 | PDTV | tc, second.iohgatp(GSCID), 0, processes.pdtp()]);
        assert_eq!(go_as(&mut rig, WRITE, IOVA, false), expected, "AD-02, PDT-12: {tc:#x}");
        let left = if tc == GADE { CLEAN | A } else { CLEAN };
        assert_eq!(second.get(page, 0) & 0x3ff, left, "AD-02, PDT-12: no D");
    }
}

#[test]
fn an_ats_request_sets_d_only_where_it_may_write() {
    // NW; SADE and GADE; first-stage flags; the flags left there, and R and W of the answer. GADE's D is set below.
    let cases = [
        (true, SADE | GADE, CLEAN, CLEAN | A, (true, false)),
        (true, SADE | GADE, CLEAN | A | D, CLEAN | A | D, (true, true)),
        (false, SADE | GADE, CLEAN & !pte::W, CLEAN & !pte::W | A, (true, false)),
        // No update is allowed, and none is made up for.
        (false, GADE, CLEAN | A, CLEAN | A, (false, false)),
        (true, GADE, CLEAN | A, CLEAN | A, (true, false)),
        (true, GADE, CLEAN, CLEAN, (false, false)),
    ];
    for (no_write, tc, flags, left, expected) in cases {
        let mut both = Both::new(tc | EN_ATS);
        both.first.map(IOVA, GPA, 0, flags);
        let request = AtsRequest::new(both.rig.device, Iova::new(IOVA)).with_no_write(no_write);
        let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("ATS-04") };
        assert_eq!((found.read, found.write), expected, "AD-09, ATS-07, ATS-08: {no_write} {tc:#x} {flags:#x}");
        assert_eq!(both.first.get(IOVA, 0) & 0x3ff, left, "AD-09: {no_write} {tc:#x} {flags:#x}");
        assert_eq!(both.rig.take_faults(), [[0; 4]; 0], "ATS-04");
    }
    // With NW = 0, D is set in both, and the next request may write.
    let mut both = Both::new(SADE | GADE | EN_ATS);
    both.first.map(IOVA, GPA, 0, CLEAN);
    both.second.map(GPA, SPA, 0, CLEAN);
    let request = AtsRequest::new(both.rig.device, Iova::new(IOVA));
    for turn in 0..2 {
        let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("mapped") };
        assert!(found.read && (found.write || turn == 0), "AD-09, ATS-08");
        assert_eq!(both.first.get(IOVA, 0) & both.second.get(GPA, 0) & (A | D), A | D, "AD-09");
    }
    // Where the first stage denies the write, D of the second is left alone, too.
    let mut both = Both::new(SADE | GADE | EN_ATS);
    both.first.map(IOVA, GPA, 0, CLEAN & !pte::W);
    both.second.map(GPA, SPA, 0, CLEAN);
    let request = AtsRequest::new(both.rig.device, Iova::new(IOVA));
    let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("mapped") };
    assert_eq!((found.read, found.write), (true, false), "AD-09");
    assert_eq!((both.first.get(IOVA, 0) | both.second.get(GPA, 0)) & D, 0, "AD-09");
    // The second stage without GADE, D = 0: R = W = 0.
    let mut both = Both::new(SADE | EN_ATS);
    both.second.map(GPA, SPA, 0, CLEAN | A);
    let request = AtsRequest::new(both.rig.device, Iova::new(IOVA));
    let Ok(AtsCompletion::Success(found)) = both.rig.iommu.ats_translate(&request) else { panic!("ATS-04") };
    assert_eq!((found.read, found.write), (false, false), "AD-09");
}

#[test]
fn the_first_stage_is_updated_before_the_second_stage_is_asked() {
    let mut both = Both::new(SADE | GADE);
    both.first.map(IOVA, GPA, 0, CLEAN);
    both.second.map(GPA, SPA, 0, CLEAN & !pte::W);
    let request = WRITE.of(&both.rig, IOVA);
    assert_eq!(fault(&mut both.rig, request), (23, GPA), "AD-10");
    let left = both.first.get(IOVA, 0);
    assert!([CLEAN, CLEAN | A, CLEAN | A | D].contains(&(left & 0x3ff)), "AD-10: {left:#x}");
    assert_eq!(both.second.get(GPA, 0), SPA >> 2 | CLEAN & !pte::W, "AD-04: nothing is set in what refused");
    // And before a message is sent through an entry that is not there.
    both.first.map(IOVA, 0x2800_0000, 0, CLEAN);
    let msi = both.rig.memory.allocate(1);
    let iohgatp = both.second.iohgatp(GSCID);
    both.rig.set_context(&[1 | SADE, iohgatp, 0, both.first.iosatp(), 1 << 60 | msi.get() >> 12, 0, 0x2_8000]);
    assert_eq!(go(&mut both.rig, WRITE, IOVA), Err(262), "AD-10, MSI-07");
    assert_eq!(both.first.get(IOVA, 0) & (A | D), A | D, "AD-10");
}

#[test]
fn an_interrupt_file_s_entry_has_no_a_or_d() {
    let mut both = Both::new(0);
    both.first.map(IOVA, 0x2800_0000, 0, CLEAN | A | D);
    let msi = both.rig.memory.allocate(1);
    both.rig.memory.write(msi, 0x100 << 10 | 0b111);
    let iohgatp = both.second.iohgatp(GSCID);
    for tc in [0, SADE, GADE, SADE | GADE] {
        both.rig.set_context(&[1 | tc, iohgatp, 0, both.first.iosatp(), 1 << 60 | msi.get() >> 12, 0, 0x2_8000]);
        both.rig.forget_accesses();
        let found = both.rig.translate(WRITE.of(&both.rig, IOVA)).expect("AD-11");
        assert_eq!(found.target, Target::InterruptFile(Gpa::new(0x10_0000)), "AD-11");
        assert!(found.permissions.write, "AD-11: as if D were 1");
        assert_eq!(both.rig.memory.take_events(), [], "AD-11");
        assert_eq!(both.rig.memory.read(msi), 0x100 << 10 | 0b111, "AD-11");
    }
}

#[test]
fn an_atomic_operation_of_a_device_needs_no_capability() {
    // A write stands for it: nothing of AMO_HWAD is asked.
    let memory = Memory::new();
    memory.without_compare_exchange();
    let mut rig = DmaRig::<0>::in_memory(config(), memory);
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, SPA, 0, CLEAN | A | D);
    context(&rig, 0, 0, table.iosatp());
    assert_eq!(go(&mut rig, WRITE, IOVA), Ok(SPA));
}

#[test]
fn a_translation_request_of_the_guest_sets_a_and_d_too() {
    // tr_req_iova, tr_req_ctl: Go, NW 3, DID 63:40; tr_response: fault 0.
    for (no_write, left) in [(1 << 3, A), (0, A | D)] {
        let mut both = Both::new(SADE | GADE);
        both.first.map(IOVA, GPA, 0, CLEAN);
        both.second.map(GPA, SPA, 0, CLEAN);
        both.rig.write8(reg::TR_REQ_IOVA, IOVA);
        both.rig.write8(reg::TR_REQ_CTL, u64::from(dma_rig::DEVICE) << 40 | no_write | 1);
        assert_eq!(both.rig.read8(reg::TR_RESPONSE) & 1, 0, "DBG-27");
        assert_eq!(both.first.get(IOVA, 0) & (A | D), left, "AD-13, DBG-27");
        assert_eq!(both.second.get(GPA, 0) & (A | D), left, "AD-13, DBG-27");
    }
}

#[test]
fn a_page_remembered_without_d_is_walked_for_again_by_a_store() {
    let mut rig = DmaRig::<16>::new(config());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let outer = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    outer.map(OFFSET, OFFSET, 1, CLEAN | A | D);
    outer.map(GPA, SPA, 0, CLEAN);
    table.map(IOVA, GPA, 0, CLEAN);
    rig.set_context(&[1 | SADE | GADE, outer.iohgatp(Gscid::truncate(1)), 0, table.iosatp()]);
    let (read, write) = (Request::read(rig.device, Iova::new(IOVA)), Request::write(rig.device, Iova::new(IOVA)));
    assert_eq!(rig.address(read), Ok(SPA));
    assert_eq!((table.get(IOVA, 0) & (A | D), outer.get(GPA, 0) & (A | D)), (A, A), "AD-04");
    assert_eq!(rig.address(write), Ok(SPA));
    assert_eq!((table.get(IOVA, 0) & (A | D), outer.get(GPA, 0) & (A | D)), (A | D, A | D), "CA-08, AD-04");
    // Software clears D, invalidates, and finds it again after the next store.
    table.map(IOVA, GPA, 0, CLEAN | A);
    outer.map(GPA, SPA, 0, CLEAN | A);
    let all = Iotinval::ALL.gscid(Gscid::truncate(1));
    let _ = rig.run([all.vma(), all.gvma(), Iofence::PLAIN.encode()]);
    assert_eq!(rig.address(write), Ok(SPA));
    assert_eq!((table.get(IOVA, 0) & (A | D), outer.get(GPA, 0) & (A | D)), (A | D, A | D), "CA-09, AD-04");
}

#[test]
fn a_and_d_are_never_cleared_and_nothing_else_changes() {
    // The model compares every word of the tables after each access.
    let run = runner(3000).run(&walk_rig::random::cases(true, true), |case| walk_rig::random::compare(&case));
    if let Err(error) = run {
        panic!("AD-01 to AD-04, AD-07, AD-10: {error}");
    }
}

#[test]
fn a_privileged_access_that_u_refuses_updates_nothing() {
    for sum in [false, true] {
        let mut rig = rig();
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        process_context(&rig, SADE, 0, table.iosatp(), sum);
        table.map(IOVA, SPA, 0, CLEAN);
        assert_eq!(go_as(&mut rig, WRITE, IOVA, true), if sum { Ok(SPA) } else { Err(15) }, "S1-11");
        let left = if sum { A | D } else { 0 };
        assert_eq!(table.get(IOVA, 0) & (A | D), left, "AD-01: after all permission checks");
    }
}
