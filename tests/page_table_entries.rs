//! Which entries of page tables are good, in every scheme of both stages: reserved bits, leaves and pointers, sizes and
//! alignment, the extensions.
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

use dma_rig::{ACCESSES, READ, WRITE};
use riscv_viommu::mock::tables::pte;
use riscv_viommu::mock::tables::tc::{GADE, SADE};
use riscv_viommu::{Capabilities, Config, Pbmt};
use walk_rig::{Single, config, go, translation, walk_loads};

/// V, R, W, X, U, A and D.
const LEAF: u64 = 0xdf;

fn offering(capabilities: Capabilities) -> Config {
    config().with_capabilities(capabilities)
}

fn all() -> Capabilities {
    Capabilities::from_bits(u64::MAX).with_pas(56)
}

/// A pointer at `level` on the way to a good leaf; the entry is left in place.
fn pointer(single: &Single, level: u8) -> u64 {
    single.table.map(single.address, single.targets[0], 0, LEAF);
    single.table.get(single.address, level)
}

#[test]
fn the_fields_of_an_entry_are_where_the_figure_has_them() {
    for mut single in Single::every(config(), 0) {
        // PPN in 53:10; of the 4-byte entries in 31:10.
        let (leaf, to) = match single.entry {
            4 => (0xffff_fc00 | LEAF, 0x3_ffff_f000),
            _ => (0x003f_ffff_ffff_fc00 | LEAF, 0x00ff_ffff_ffff_f000),
        };
        single.table.set(single.address, 0, leaf);
        let expected = Ok(to | single.address & 0xfff);
        assert_eq!(single.go(READ), expected, "PTE-01, S1-02: {}", single.name);
        // Each bit of the PPN is a bit of the address.
        for bit in 10..if single.entry == 4 { 32 } else { 54 } {
            single.table.set(single.address, 0, 1 << bit | LEAF);
            let expected = 1 << (bit + 2) | single.address & 0xfff;
            assert_eq!(single.go(READ), Ok(expected), "PTE-01: {} bit {bit}", single.name);
        }
    }
}

#[test]
fn every_combination_of_the_low_bits_is_judged_as_the_figure_says() {
    // V, R, W, X at every level: what it is.
    for mut single in Single::every(config(), 0) {
        for level in 0..single.levels() {
            let good = if level == 0 { single.targets[0] >> 2 | LEAF } else { pointer(&single, level) };
            let ppn = if level == 0 { good & !0x3ff } else { good & !1 };
            for low in 0..16_u64 {
                let (v, r, w, x) = (low & 1, low >> 1 & 1, low >> 2 & 1, low >> 3 & 1);
                let is_leaf = r == 1 || x == 1;
                let entry = match (is_leaf, level) {
                    // Of a leaf the page is aligned.
                    (true, _) => single.targets[usize::from(level)] >> 2 | 0xd0 | low,
                    (false, _) => ppn | low,
                };
                let shadow_stack = (r, w) == (0, 1);
                let name = format!("{} level {level}, XWRV = {low:04b}", single.name);
                let taken = single.takes(level, entry);
                let expected = v == 1 && !shadow_stack && if is_leaf { r == 1 } else { level > 0 };
                assert_eq!(taken, expected, "PTE-02, PTE-07, TR-23, ACC-05: {name}");
            }
            single.table.set(single.address, level, good);
        }
    }
}

#[test]
fn bits_58_to_54_of_a_leaf_and_of_a_pointer_are_0() {
    for mut single in Single::every(config(), 0).into_iter().filter(|single| single.entry == 8) {
        for level in 0..single.levels() {
            let target = single.targets[usize::from(level)];
            let good = if level == 0 { 0 } else { pointer(&single, level) };
            for bit in 54..59 {
                let name = format!("{} level {level} bit {bit}", single.name);
                assert!(!single.takes(level, target >> 2 | LEAF | 1 << bit), "PTE-03: leaf, {name}");
                if level > 0 {
                    assert!(!single.takes(level, good | 1 << bit), "PTE-03: pointer, {name}");
                }
            }
            assert!(single.takes(level, target >> 2 | LEAF), "PTE-03: {}", single.name);
            if level > 0 {
                assert!(single.takes(level, good), "PTE-03: {}", single.name);
            }
        }
    }
}

#[test]
fn bits_60_and_59_are_software_s_with_svrsw60t59b_and_reserved_without() {
    for offered in [true, false] {
        let config = offering(all().with_svrsw60t59b(offered));
        for mut single in Single::every(config, 0).into_iter().filter(|single| single.entry == 8) {
            for level in 0..single.levels() {
                let target = single.targets[usize::from(level)];
                let good = if level == 0 { 0 } else { pointer(&single, level) };
                for bits in 1..4_u64 {
                    let name = format!("{} level {level} bits {bits:#b}, offered: {offered}", single.name);
                    let taken = single.takes(level, target >> 2 | LEAF | bits << 59);
                    assert_eq!(taken, offered, "PTE-04: leaf, {name}");
                    if level > 0 {
                        assert_eq!(single.takes(level, good | bits << 59), offered, "PTE-04: pointer, {name}");
                    }
                }
                if level > 0 {
                    single.table.set(single.address, level, good);
                }
            }
        }
    }
}

#[test]
fn a_memory_type_is_a_leaf_s_and_only_with_svpbmt() {
    for offered in [true, false] {
        let config = offering(all().with_svpbmt(offered));
        for mut single in Single::every(config, 0).into_iter().filter(|single| single.entry == 8) {
            for level in 0..single.levels() {
                let target = single.targets[usize::from(level)];
                let good = if level == 0 { 0 } else { pointer(&single, level) };
                for (pbmt, name) in [(0_u64, Pbmt::Pma), (1, Pbmt::Nc), (2, Pbmt::Io), (3, Pbmt::Pma)] {
                    let taken = single.takes(level, target >> 2 | LEAF | pbmt << 61);
                    let expected = pbmt == 0 || (offered && pbmt < 3);
                    assert_eq!(taken, expected, "PTE-05: {} level {level}, {pbmt}, {offered}", single.name);
                    if taken {
                        let address = single.address;
                        let found = translation(&mut single.rig, READ, address).memory_type;
                        assert_eq!((found, u64::from(found.encoding())), (name, pbmt), "PB-01");
                    }
                    if level > 0 {
                        assert_eq!(single.takes(level, good | pbmt << 61), pbmt == 0, "PTE-05: pointer");
                    }
                }
                if level > 0 {
                    single.table.set(single.address, level, good);
                }
            }
        }
    }
}

#[test]
fn a_napot_leaf_is_64_kib_at_the_last_level_and_nothing_else() {
    // Svnapot has no bit in capabilities: it is there with the least that can be offered, too (REG-CAP-44).
    let least = Capabilities::new().with_sv39(true).with_sv39x4(true).with_msi_flat(true).with_pas(56);
    let wide = Single::every(config(), 0).into_iter().filter(|single| single.entry == 8);
    let least_offered = Single::every(offering(least), 0).into_iter().filter(|single| single.name.starts_with("Sv39"));
    for mut single in wide.chain(least_offered) {
        let base = 0x1234_5670_0000_u64;
        for low in 0..16 {
            let entry = (base >> 12 | low) << 10 | pte::N | LEAF;
            assert_eq!(single.takes(0, entry), low == 8, "PTE-06: {} PPN[3:0] = {low:#x}", single.name);
        }
        // Each of the 16 pages has the entry; the page number in it is that of the address.
        for page in 0..16 {
            let address = single.address & !0xf_ffff | page << 12 | 0x123;
            single.table.set(address, 0, (base >> 12 | 8) << 10 | pte::N | LEAF);
            assert_eq!(go(&mut single.rig, READ, address), Ok(base | page << 12 | 0x123), "PTE-06, S1-13: {page}");
            let size = translation(&mut single.rig, READ, address).size;
            assert!(size == 0x1_0000 || size == 0x1000, "SZ-03: {size:#x}");
        }
        for level in 1..single.levels() {
            let good = pointer(&single, level);
            assert!(!single.takes(level, good | pte::N), "PTE-06: pointer, {} level {level}", single.name);
            // Aligned for the level, or with the pattern of 64 KiB.
            let target = single.targets[usize::from(level)];
            assert!(!single.takes(level, target >> 2 | pte::N | LEAF), "PTE-06: {} level {level}", single.name);
            assert!(!single.takes(level, target >> 2 | 8 << 10 | pte::N | LEAF), "PTE-06: {} {level}", single.name);
            single.table.set(single.address, level, good);
        }
    }
}

#[test]
fn a_pointer_has_no_d_a_or_u_and_does_not_stand_at_the_last_level() {
    for mut single in Single::every(config(), SADE | GADE) {
        for level in 1..single.levels() {
            let good = pointer(&single, level);
            for flags in [pte::D, pte::A, pte::U, pte::D | pte::A | pte::U] {
                assert!(!single.takes(level, good | flags), "PTE-07: {} level {level}, {flags:#x}", single.name);
                assert_eq!(single.table.get(single.address, level), good | flags, "AD-04: not touched");
            }
            // G and RSW are allowed.
            assert!(single.takes(level, good | pte::G | 3 << 8), "PTE-07, PTE-09: {} level {level}", single.name);
            single.table.set(single.address, level, good);
        }
        let root = single.table.root().get();
        assert!(!single.takes(0, root >> 2 | pte::V), "PTE-07: {}", single.name);
    }
}

#[test]
fn a_superpage_is_aligned_to_its_size() {
    for mut single in Single::every(config(), 0) {
        // Made now, so that the tables are there.
        let _ = pointer(&single, single.levels() - 1);
        for level in (0..single.levels()).rev() {
            let (target, shift) = (single.targets[usize::from(level)], single.shifts[usize::from(level)]);
            let good = single.table.get(single.address, level);
            assert!(single.takes(level, target >> 2 | LEAF), "PTE-08: {} level {level}", single.name);
            for bit in 12..shift {
                let entry = (target | 1 << bit) >> 2 | LEAF;
                assert!(!single.takes(level, entry), "PTE-08: {} level {level} bit {bit}", single.name);
            }
            single.table.set(single.address, level, good);
        }
    }
}

#[test]
fn a_leaf_of_every_size_gives_the_address_below_its_own_bits() {
    for mut single in Single::every(config(), 0) {
        for level in 0..single.levels() {
            // A fresh table each: a leaf further down would stay behind.
            let (target, shift) = (single.targets[usize::from(level)], single.shifts[usize::from(level)]);
            single.table.map(single.address, target, level, LEAF);
            single.rig.forget_accesses();
            let within = (1 << shift) - 1;
            assert_eq!(single.go(READ), Ok(target | single.address & within), "S1-13, PTE-08: {}", single.name);
            let way = usize::from(single.levels() - level);
            assert_eq!(walk_loads(&single.rig).len(), way, "S1-03, S2-02: {} level {level}", single.name);
            for address in [single.address & !within, single.address | within] {
                let found = translation(&mut single.rig, READ, address);
                // Bare stages have 1 GiB.
                assert_eq!(found.size, 1 << shift.min(30), "SZ-01: {} level {level}", single.name);
                let request = READ.of(&single.rig, address).with_length(u64::MAX);
                let found = single.rig.translate(request).expect("mapped");
                assert_eq!(found.length, (address | (found.size - 1)) - address + 1, "SZ-01: {}", single.name);
            }
            single.table.unmap(single.address, level);
        }
    }
}

#[test]
fn bits_that_are_software_s_and_g_of_the_second_stage_change_nothing() {
    for mut single in Single::every(config(), 0) {
        let target = single.targets[0];
        let plain = single.takes(0, target >> 2 | LEAF).then(|| single.go(READ));
        let address = single.address;
        let found = translation(&mut single.rig, READ, address);
        for flags in [1 << 8, 1 << 9, 3 << 8, pte::G, pte::G | 3 << 8] {
            single.table.set(single.address, 0, target >> 2 | LEAF | flags);
            assert_eq!(Some(single.go(READ)), plain, "PTE-09: {} {flags:#x}", single.name);
            let with = translation(&mut single.rig, READ, address);
            assert_eq!((with.permissions, with.size), (found.permissions, found.size), "PTE-09");
        }
    }
}

#[test]
fn an_entry_that_changes_while_it_is_looked_at_is_seen_once() {
    // The read of each entry finds what the guest wrote just before; nothing of what was there is used.
    for mut single in Single::every(config(), 0).into_iter().filter(|single| single.entry == 8) {
        single.table.map(single.address, 0x1000, 0, LEAF);
        let at = single.table.entry_address(single.address, 0);
        single.rig.memory.on_load(at, [0xabc_d000 >> 2 | LEAF, 0]);
        single.rig.forget_accesses();
        assert_eq!(single.go(WRITE), Ok(0xabc_d000 | single.address & 0xfff), "PTE-10, T08: {}", single.name);
        assert_eq!(walk_loads(&single.rig).len(), single.shifts.len(), "PTE-10, VT-14: {}", single.name);
        // And the next walk finds what is there then.
        assert_eq!(single.go(WRITE), Err(single.refusal(WRITE)), "CA-02: {}", single.name);
    }
}

#[test]
fn every_access_has_its_own_cause_for_a_bad_entry() {
    for mut single in Single::every(config(), 0) {
        for level in (0..single.levels()).rev() {
            let _ = pointer(&single, level);
            single.table.set(single.address, level, 0);
            for access in ACCESSES {
                assert_eq!(single.go(access), Err(single.refusal(access)), "ACC-04, S1-09, S2-07: {}", single.name);
            }
        }
    }
}
