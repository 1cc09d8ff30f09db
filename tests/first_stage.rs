//! First-stage walks: the schemes, canonical addresses, privilege and permissions, entries that can not be read, byte
//! order, global pages.
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
use riscv_viommu::mock::guest::{Iotinval, register as reg};
use riscv_viommu::mock::tables::tc::{EN_ATS, SADE, SBE, SXL};
use riscv_viommu::mock::tables::{PageTable, pte};
use riscv_viommu::{AtsCompletion, AtsRequest, FirstStageMode, Gpa, Iova, MemoryFault, Pscid, Request, Target};
use walk_rig::{
    FIRST, First, PROCESS, config, context, entries, fault, go, go_as, process_context, rig, runner, sxl, translation,
    walk_loads,
};

/// V, R, W, X, U, A and D.
const LEAF: u64 = 0xdf;

/// A guest with an empty table of this scheme.
fn with(scheme: &First) -> (DmaRig<0>, PageTable) {
    let rig = rig();
    let table = PageTable::first_stage(&rig.memory, scheme.mode);
    context(&rig, sxl(scheme.mode), 0, table.iosatp());
    rig.forget_accesses();
    (rig, table)
}

#[test]
fn every_scheme_walks_its_tables_down_to_a_leaf_at_any_level() {
    for scheme in &FIRST {
        for level in 0..scheme.levels() {
            let (mut rig, table) = with(scheme);
            let (address, target) = (scheme.sample(), scheme.target(level));
            table.map(address, target, level, LEAF);
            rig.forget_accesses();
            let within = (1 << scheme.shift(level)) - 1;
            for access in ACCESSES {
                let to = target | address & within;
                assert_eq!(go(&mut rig, access, address), Ok(to), "S1-01, S1-13: {:?} level {level}", scheme.mode);
                // MODE 8 to 10 of iosatp, and the index of each level where the figure has it.
                let places = entries(scheme, &table, address, level);
                let loads = walk_loads(&rig);
                assert_eq!(loads, places.iter().map(|at| at.get() & !7).collect::<Vec<_>>(), "S1-03, S1-06, PTE-10");
                for (at, level) in places.iter().zip((level..scheme.levels()).rev()) {
                    assert_eq!(at.get() & 0xfff, scheme.offset(address, level), "S1-02, S1-03: {:?}", scheme.mode);
                }
            }
        }
    }
}

#[test]
fn indices_of_a_scheme_are_those_of_the_figure() {
    // Literals of the address and of where its entries are: VPN 31:22 and 21:12; 38:30, 29:21 and 20:12; then 47:39
    // and 56:48.
    let cases: [(FirstStageMode, u64, &[u64]); 4] = [
        (FirstStageMode::Sv32, 0x8040_3000, &[0x804, 0x00c]),
        (FirstStageMode::Sv39, 0xffff_ffff_c060_5000, &[0xff8, 0x018, 0x028]),
        (FirstStageMode::Sv48, 0x0000_0080_4060_4000, &[0x008, 0x008, 0x018, 0x020]),
        (FirstStageMode::Sv57, 0x0002_0080_8060_1000, &[0x010, 0x008, 0x010, 0x018, 0x008]),
    ];
    for (mode, address, offsets) in cases {
        let scheme = FIRST.iter().find(|scheme| scheme.mode == mode).expect("one of four");
        let (mut rig, table) = with(scheme);
        table.map(address, 0x8765_4000, 0, LEAF);
        rig.forget_accesses();
        assert_eq!(go(&mut rig, READ, address | 0x7ff), Ok(0x8765_47ff), "S1-02, S1-03: {mode:?}");
        let loads: Vec<u64> = walk_loads(&rig).iter().map(|at| at & 0xfff).collect();
        // Of 4-byte entries the word they are in.
        assert_eq!(loads, offsets.iter().map(|at| at & !7).collect::<Vec<_>>(), "S1-02, S1-03: {mode:?}");
    }
}

#[test]
fn an_address_that_is_not_sign_extended_faults_before_any_entry_is_read() {
    for scheme in &FIRST[1..] {
        let top = scheme.bits - 1;
        let (mut rig, table) = with(scheme);
        let good = [0, (1 << top) - 1, u64::MAX << top, u64::MAX];
        for address in good {
            table.map(address, 0x8000_0000, 0, LEAF);
            let to = Ok(0x8000_0000 | address & 0xfff);
            assert_eq!(go(&mut rig, READ, address), to, "S1-04: {address:#x} in {:?}", scheme.mode);
        }
        let bad = [1 << top, u64::MAX >> 1, 1 << 63, u64::MAX << (top + 1), (u64::MAX << top) - 1, 1 << (top + 1)];
        for address in bad {
            for access in ACCESSES {
                rig.forget_accesses();
                let request = access.of(&rig, address);
                assert_eq!(fault(&mut rig, request), (access.page_fault, 0), "S1-04: {address:#x}");
                assert_eq!(walk_loads(&rig), [0; 0], "S1-04: {address:#x} in {:?}", scheme.mode);
            }
        }
        // Each bit above the highest, with the sign of the rest.
        for bit in scheme.bits..64 {
            for address in [1 << bit, u64::MAX ^ 1 << bit] {
                assert_eq!(go(&mut rig, READ, address), Err(13), "S1-04: bit {bit} in {:?}", scheme.mode);
            }
        }
    }
}

#[test]
fn an_address_of_sv32_is_zero_extended() {
    let (mut rig, table) = with(&FIRST[0]);
    for address in [0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        table.map(address, 0x3_8000_0000, 0, LEAF);
        assert_eq!(go(&mut rig, READ, address), Ok(0x3_8000_0000 | address & 0xfff), "S1-04, DC-13: {address:#x}");
    }
    for bit in 32..64 {
        rig.forget_accesses();
        let request = WRITE.of(&rig, 1 << bit | 0x8000_0000);
        assert_eq!(fault(&mut rig, request), (15, 0), "S1-04, DC-13: bit {bit}");
        assert_eq!(walk_loads(&rig), [0; 0], "S1-04");
    }
    // Sign-extended it is wrong.
    assert_eq!(go(&mut rig, READ, 0xffff_ffff_8000_0000), Err(13), "S1-04");
    // Without a first stage there is no limit of 32 bits.
    context(&rig, SXL, 0, 0);
    assert_eq!(go(&mut rig, READ, 0xffff_ffff_8000_0000), Ok(0xffff_ffff_8000_0000), "DC-13");
}

#[test]
fn a_bare_first_stage_is_the_identity_and_looks_at_nothing() {
    let mut rig = rig();
    for address in [0, 0x1234, 1 << 38, 1 << 63, u64::MAX] {
        context(&rig, 0, 0, 0);
        for access in ACCESSES {
            assert_eq!(go(&mut rig, access, address), Ok(address), "S1-01, S1-05: {address:#x}");
            let found = translation(&mut rig, access, address);
            let permissions = found.permissions;
            assert!(permissions.read && permissions.write && permissions.execute, "S1-01");
            assert!(found.size.is_power_of_two() && found.size >= 0x1000, "SZ-01: {:#x}", found.size);
        }
        // Of a process, privileged or not, with SUM or without.
        for (privileged, sum) in [(false, false), (false, true), (true, false), (true, true)] {
            process_context(&rig, 0, 0, 0, sum);
            for access in ACCESSES {
                assert_eq!(go_as(&mut rig, access, address, privileged), Ok(address), "S1-01: U and SUM");
            }
        }
    }
}

/// Whether a leaf with these bits allows the access, as the privileged architecture's table has it.
fn allows(leaf: u64, needs: u64, supervisor: bool, sum: bool) -> bool {
    let (r, w, user) = (leaf & pte::R != 0, leaf & pte::W != 0, leaf & pte::U != 0);
    let is_leaf = leaf & (pte::R | pte::X) != 0 && (r || !w);
    let mode = match (supervisor, user, needs) {
        (false, user, _) => user,
        (true, false, _) => true,
        (true, true, pte::X) => false,
        (true, true, _) => sum,
    };
    is_leaf && mode && leaf & needs != 0
}

#[test]
fn privilege_u_sum_and_permissions_are_judged_together() {
    for scheme in &FIRST {
        for sum in [false, true] {
            let mut rig = rig();
            let table = PageTable::first_stage(&rig.memory, scheme.mode);
            process_context(&rig, sxl(scheme.mode), 0, table.iosatp(), sum);
            for bits in 0..16 {
                let leaf = bits << 1 | pte::V | pte::A | pte::D;
                table.map(0x4000, 0x8_5000, 0, leaf);
                for (access, supervisor) in ACCESSES.iter().flat_map(|access| [(access, false), (access, true)]) {
                    let allowed = allows(leaf, access.needs, supervisor, sum);
                    let expected = if allowed { Ok(0x8_5123) } else { Err(access.page_fault) };
                    let name = format!("{leaf:#x}, {:#x} by supervisor: {supervisor}, SUM: {sum}", access.needs);
                    let found = go_as(&mut rig, *access, 0x4123, supervisor);
                    assert_eq!(found, expected, "S1-11, S1-12, ACC-05, ACC-06: {name} in {:?}", scheme.mode);
                }
            }
        }
    }
}

#[test]
fn a_request_without_a_process_is_a_user_s() {
    for (flags, expected) in [(pte::RW, Ok(0x8_5000)), (pte::RW & !pte::U, Err(13))] {
        let (mut rig, table) = with(&FIRST[1]);
        table.map(0x4000, 0x8_5000, 0, flags);
        assert_eq!(go(&mut rig, READ, 0x4000), expected, "ACC-02, S1-11");
        let mut request = Request::read(rig.device, Iova::new(0x4000));
        request.privileged = true;
        assert_eq!(rig.address(request), expected, "ACC-02, S1-11");
        // PRIV is bit 33.
        assert!(rig.take_faults().iter().all(|record| record[0] & 3 << 32 == 0), "ACC-02, FR-05");
    }
}

#[test]
fn what_a_translation_allows_is_what_its_leaf_says() {
    let (mut rig, table) = with(&FIRST[2]);
    for (flags, expected) in [
        (pte::R, (true, false, false)),
        (pte::R | pte::W | pte::D, (true, true, false)),
        // A store has to come by, for its D.
        (pte::R | pte::W, (true, false, false)),
        (pte::R | pte::X, (true, false, true)),
        (pte::R | pte::W | pte::X | pte::D, (true, true, true)),
    ] {
        table.map(0x4000, 0x8_5000, 0, pte::V | pte::U | pte::A | flags);
        let found = translation(&mut rig, READ, 0x4000).permissions;
        assert_eq!((found.read, found.write, found.execute), expected, "S1-12, CA-08: {flags:#x}");
    }
}

#[test]
fn an_entry_that_can_not_be_read_is_an_access_fault_of_the_access() {
    for scheme in &FIRST {
        let (mut rig, table) = with(scheme);
        let address = scheme.sample();
        table.map(address, 0x8_5000, 0, LEAF);
        for (at, way) in entries(scheme, &table, address, 0).into_iter().zip(1..) {
            for access in ACCESSES {
                for (failure, code) in [(MemoryFault::Access, access.abort), (MemoryFault::Corruption, 274)] {
                    rig.memory.fail(at, scheme.entry, failure);
                    rig.forget_accesses();
                    let request = access.of(&rig, address);
                    let name = format!("{:?} entry {way}", scheme.mode);
                    assert_eq!(fault(&mut rig, request), (code, 0), "S1-08, FLT-04: {name}");
                    assert_eq!(walk_loads(&rig).len(), way, "S1-08: nothing is read after it, {name}");
                    rig.memory.clear_failures();
                }
            }
        }
    }
}

#[test]
fn a_table_past_the_physical_address_size_is_an_access_fault() {
    // Sv32 pointers have 34 bits, others 56; here 33 are offered.
    let offer = riscv_viommu::Capabilities::from_bits(u64::MAX).with_pas(33);
    for scheme in &FIRST {
        let mut rig = DmaRig::<0>::new(config().with_capabilities(offer));
        let table = PageTable::first_stage(&rig.memory, scheme.mode);
        let beyond = Gpa::new(1 << 33);
        rig.memory.map(beyond, 0x1000);
        let address = scheme.sample();
        context(&rig, sxl(scheme.mode), 0, table.iosatp());
        let pointer = beyond.get() >> 2 | pte::V;
        table.set(address, scheme.root_level(), pointer);
        rig.forget_accesses();
        for access in ACCESSES {
            assert_eq!(go(&mut rig, access, address), Err(access.abort), "S1-08: {:?}", scheme.mode);
            assert_eq!(walk_loads(&rig).len(), 1, "S1-08: it is not even tried");
        }
        // The root itself.
        let mode = table.iosatp() >> 60 << 60;
        context(&rig, sxl(scheme.mode), 0, mode | beyond.get() >> 12);
        rig.forget_accesses();
        for access in ACCESSES {
            assert_eq!(go(&mut rig, access, address), Err(access.abort), "S1-08: {:?}", scheme.mode);
            assert_eq!(walk_loads(&rig), [0; 0], "S1-08: it is not even tried");
        }
    }
}

#[test]
fn a_page_may_be_anywhere_also_past_the_physical_address_size() {
    let offer = riscv_viommu::Capabilities::from_bits(u64::MAX).with_pas(33);
    let mut rig = DmaRig::<0>::new(config().with_capabilities(offer));
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(0x4000, 0xff_ffff_ffff_f000, 0, LEAF);
    context(&rig, 0, 0, table.iosatp());
    assert_eq!(go(&mut rig, READ, 0x4fff), Ok(0xff_ffff_ffff_ffff), "TR-21");
}

#[test]
fn tables_are_big_endian_as_sbe_says_whatever_the_directory_is() {
    for (scheme, fctl) in FIRST.iter().flat_map(|scheme| [(scheme, 0), (scheme, walk_rig::BE)]) {
        for (big_endian, sbe) in [(false, 0), (true, SBE)] {
            let memory = Memory::new();
            let handle = |big_endian| if big_endian { memory.big_endian() } else { memory.clone() };
            let mut rig = DmaRig::<0>::in_memory(config(), handle(fctl != 0));
            rig.set_fctl(fctl);
            let tables = handle(big_endian);
            let table = PageTable::first_stage(&tables, scheme.mode);
            let address = scheme.sample();
            table.map(address, 0x8_5000, 0, LEAF & !pte::D);
            context(&rig, sxl(scheme.mode) | sbe | SADE, 0, table.iosatp());
            let name = format!("{:?}, SBE: {big_endian}, BE: {fctl}", scheme.mode);
            let request = WRITE.of(&rig, address);
            assert_eq!(rig.address(request), Ok(0x8_5abc), "S1-14, EDN-02, END-05: {name}");
            // D was set in the table's own order.
            assert_eq!(table.get(address, 0), 0x8_5000 >> 2 | LEAF, "EDN-07: {name}");
            // The other order reads nonsense.
            context(&rig, sxl(scheme.mode) | (sbe ^ SBE), 0, table.iosatp());
            let request = READ.of(&rig, address);
            assert_eq!(rig.address(request), Err(13), "S1-14: {name}");
        }
    }
}

#[test]
fn a_translation_is_global_if_any_entry_on_its_way_is() {
    for scheme in &FIRST {
        for global in (0..scheme.levels()).map(Some).chain([None]) {
            let mut rig = rig();
            let table = PageTable::first_stage(&rig.memory, scheme.mode);
            process_context(&rig, sxl(scheme.mode) | EN_ATS, 0, table.iosatp(), false);
            let address = scheme.sample();
            table.map(address, 0x8_5000, 0, LEAF);
            if let Some(level) = global {
                table.set(address, level, table.get(address, level) | pte::G);
            }
            let request = AtsRequest::new(rig.device, Iova::new(address)).with_process(PROCESS, false);
            let Ok(AtsCompletion::Success(found)) = rig.iommu.ats_translate(&request) else { panic!("it is mapped") };
            assert_eq!(found.global, global.is_some(), "S1-10: {:?}, G at {global:?}", scheme.mode);
            // A read of the device does not care.
            assert_eq!(go_as(&mut rig, READ, address, false), Ok(0x8_5abc), "S1-10");
        }
    }
}

#[test]
fn a_global_page_survives_an_invalidation_of_its_address_space_wherever_its_g_is() {
    for global in [Some(0), Some(1), Some(2), None] {
        let mut rig = DmaRig::<16>::new(config());
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        rig.set_context(&[1, 0, 5 << 12, table.iosatp()]);
        table.map(0x4000, 0x8_5000, 0, LEAF);
        if let Some(level) = global {
            table.set(0x4000, level, table.get(0x4000, level) | pte::G);
        }
        let request = Request::read(rig.device, Iova::new(0x4000));
        assert_eq!(rig.address(request), Ok(0x8_5000));
        table.map(0x4000, 0x9_5000, 0, LEAF | if global == Some(0) { pte::G } else { 0 });
        let _ = rig.run([Iotinval::ALL.pscid(Pscid::truncate(5)).vma()]);
        // Whether it is still used is the cache's choice; that one which is not global is not, is not.
        let found = rig.address(request).expect("mapped");
        assert!(found == 0x9_5000 || (global.is_some() && found == 0x8_5000), "S1-10, CA-05: {global:?}, {found:#x}");
        let _ = rig.run([Iotinval::ALL.vma()]);
        assert_eq!(rig.address(request), Ok(0x9_5000), "S1-10, CA-05");
        assert_eq!(rig.read(reg::CQH), rig.read(reg::CQT));
    }
}

#[test]
fn an_ats_request_is_told_what_is_missing_and_refused_only_what_u_and_sum_refuse() {
    // Leaf, privileged, SUM, and R, W and X of the answer.
    let cases = [
        (LEAF, false, false, "rwx"),
        (LEAF & !pte::W, false, false, "r-x"),
        (LEAF & !pte::X, false, false, "rw-"),
        (LEAF & !(pte::R | pte::W), false, false, "---"),
        (LEAF & !pte::U, false, false, "---"),
        (LEAF & !pte::U, true, false, "rwx"),
        (LEAF, true, false, "---"),
        (LEAF & !pte::X, true, true, "rw-"),
    ];
    for (leaf, privileged, sum, expected) in cases {
        let mut rig = rig();
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv48);
        process_context(&rig, EN_ATS, 0, table.iosatp(), sum);
        table.map(0x4000, 0x8_5000, 0, leaf);
        let request = AtsRequest::new(rig.device, Iova::new(0x4000)).with_process(PROCESS, privileged);
        let answer = rig.iommu.ats_translate(&request.with_execute(true));
        let Ok(AtsCompletion::Success(found)) = answer else { panic!("a success, perhaps without permissions") };
        let flag = |is_set: bool, name: char| if is_set { name } else { '-' };
        let answer: String = [flag(found.read, 'r'), flag(found.write, 'w'), flag(found.execute, 'x')].iter().collect();
        assert_eq!(answer, expected, "S1-12, ATS-07, ATS-10, ATS-11: {leaf:#x}, {privileged}, {sum}");
        assert_eq!(rig.take_faults(), [[0; 4]; 0], "ATS-04");
    }
}

#[test]
fn a_walk_is_what_the_plain_model_makes_of_it() {
    let run = runner(4000).run(&walk_rig::random::cases(true, false), |case| walk_rig::random::compare(&case));
    if let Err(error) = run {
        panic!("S1-01 to S1-14, PTE-01 to PTE-10, AD-01: {error}");
    }
}

#[test]
fn an_execute_only_page_is_not_readable() {
    let (mut rig, table) = with(&FIRST[1]);
    table.map(0x4000, 0x8_5000, 0, pte::V | pte::X | pte::U | pte::A | pte::D);
    assert_eq!(go(&mut rig, EXECUTE, 0x4000), Ok(0x8_5000), "ACC-06");
    assert_eq!(go(&mut rig, READ, 0x4000), Err(13), "ACC-05");
    let request = Request::read(rig.device, Iova::new(0x4000));
    assert!(!matches!(rig.translate(request).map(|found| found.target), Ok(Target::Memory(_))), "ACC-05");
}
