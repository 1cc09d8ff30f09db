//! `IOTINVAL.VMA`, and the changes of first-stage tables it is for.

use riscv_viommu::mock::guest::{Iotinval, inval_ddt};
use riscv_viommu::mock::tables::{PageTable, pte};
use riscv_viommu::{Gpa, Iova, Request};

use super::{READ_PAGE_FAULT, Vm, each, operands};

/// Two pages in one table, one in all spaces, and one of 2 MiB.
const PAGE: u64 = 0x4000_1000;
const OTHER: u64 = 0x4000_3000;
const GLOBAL: u64 = 0x4000_5000;
const LARGE: u64 = 0x4020_0000;

fn fill_all(tables: &[PageTable], to: u64) {
    for table in tables {
        fill(table, to);
    }
}

/// What is mapped where in a space: first all to the one side of memory, then to the other.
fn fill(table: &PageTable, to: u64) {
    table.map(PAGE, to + 0x1000, 0, pte::RW);
    table.map(OTHER, to + 0x3000, 0, pte::RW);
    table.map(GLOBAL, to + 0x5000, 0, pte::RW | pte::G);
    table.map(LARGE, to + 0x20_0000, 1, pte::RW);
}

const OLD: u64 = 0x9800_0000;
const NEW: u64 = 0xa800_0000;

/// GSCID and PSCID of each device's space: of the guest's own, and of two VMs.
const SPACES: [(Option<u32>, u32); 6] = [(None, 1), (None, 2), (Some(5), 1), (Some(5), 2), (Some(6), 1), (Some(0), 1)];

fn spaces(vm: &Vm) -> Vec<PageTable> {
    let seconds = [5, 6, 0].map(|gscid| (gscid, vm.second()));
    let space = |(device, (gscid, pscid)): (u32, (Option<u32>, u32))| match gscid {
        None => vm.space(device, pscid),
        Some(gscid) => {
            let second = &seconds.iter().find(|second| second.0 == gscid).unwrap().1;
            vm.space_in(device, pscid, second, gscid)
        }
    };
    (0..).zip(SPACES).map(space).collect()
}

#[test]
fn an_invalidation_is_about_the_spaces_and_addresses_it_names() {
    let rules = [
        ("VMA-01, VMA-10", None, None, None),
        ("VMA-02, VMA-10, CA-05", None, Some(1), None),
        ("VMA-03, VMA-10", None, None, Some(PAGE)),
        ("VMA-04, VMA-10, CA-05", None, Some(1), Some(PAGE)),
        ("VMA-05, VMA-10, CA-04", Some(5), None, None),
        ("VMA-06, CA-03, CA-05", Some(5), Some(1), None),
        ("VMA-07, VMA-10", Some(5), None, Some(LARGE)),
        ("VMA-08, VMA-10", Some(5), Some(1), Some(PAGE)),
        ("VMA-02", None, Some(1), Some(GLOBAL)),
        ("VMA-03, SWG-13", None, None, Some(GLOBAL)),
        ("VMA-08, CA-05", Some(5), Some(2), Some(GLOBAL)),
        ("VMA-07, SWG-13", Some(5), None, Some(GLOBAL)),
        ("VMA-05, CA-04: GSCID 0 is not the guest itself", Some(0), None, None),
        ("VMA-05: of no VM", Some(9), None, None),
    ];
    for (rule, gscid, pscid, address) in rules {
        for mut vm in each() {
            let tables = spaces(&vm);
            fill_all(&tables, OLD);
            for (device, iova) in (0..6).flat_map(|device| [PAGE, OTHER, GLOBAL, LARGE].map(|iova| (device, iova))) {
                assert_eq!(vm.read(device, iova), Ok(OLD + (iova & 0xff_ffff)), "{rule}");
            }
            fill_all(&tables, NEW);
            vm.run(&[operands(gscid, pscid, address).vma()]);
            for (device, space) in (0..).zip(SPACES) {
                for iova in [PAGE, OTHER, GLOBAL, LARGE] {
                    let named = space.0 == gscid
                        && pscid.is_none_or(|pscid| space.1 == pscid && iova != GLOBAL)
                        && address.is_none_or(|address| iova == address);
                    let to = if named { NEW } else { vm.unless_forgotten(OLD, NEW) };
                    assert_eq!(vm.read(device, iova), Ok(to + (iova & 0xff_ffff)), "{rule}: {space:?}, {iova:#x}");
                }
            }
        }
    }
}

#[test]
fn an_address_anywhere_within_a_leaf_is_enough() {
    // A leaf of 4 KiB, 64 KiB, 2 MiB and 1 GiB each, and addresses at its ends and between.
    for (base, shift, level) in [(0x1000, 12, 0), (0x2_0000, 16, 0), (0x4020_0000, 21, 1), (0x8000_0000, 30, 2)] {
        for at in [0, 0xfff, (1 << shift) - 1, 1 << (shift - 1), (1 << shift) - 0x1000] {
            for mut vm in each() {
                let table = vm.space(0, 1);
                let map = |to: u64| {
                    for page in 0..if shift == 16 { 16 } else { 1 } {
                        let napot = if shift == 16 { 0x8000 >> 2 | pte::N } else { 0 };
                        table.set(base + page * 0x1000, level, to >> 2 | napot | pte::RW);
                    }
                };
                map(0x1_0000_0000);
                assert_eq!(vm.read(0, base + 0x123), Ok(0x1_0000_0123), "PTE-06");
                map(0x2_0000_0000);
                let kept = vm.unless_forgotten(0x1_0000_0123, 0x2_0000_0123);
                // Right before it, and right behind.
                vm.run(&[operands(None, Some(1), Some(base + (1 << shift))).vma()]);
                vm.run(&[operands(None, Some(1), Some(base - 0x1000)).vma()]);
                assert_eq!(vm.read(0, base + 0x123), Ok(kept), "VMA-11");
                vm.run(&[operands(None, Some(1), Some(base + at)).vma()]);
                assert_eq!(vm.read(0, base + 0x123), Ok(0x2_0000_0123), "VMA-11, T28: {at:#x} in 2^{shift}");
            }
        }
    }
}

#[test]
fn an_address_leaves_tables_alone_unless_nl_says_so() {
    for (rule, command, forgotten) in [
        ("VMA-12, SWG-14", operands(None, Some(1), Some(PAGE)), false),
        ("VMA-12: the other page's", operands(None, Some(1), Some(OTHER)), false),
        ("VMA-13, SWG-14", operands(None, Some(1), Some(PAGE)).non_leaf(), true),
        ("VMA-13", operands(None, None, Some(PAGE)).non_leaf(), true),
        ("VMA-13: another space", operands(None, Some(2), Some(PAGE)).non_leaf(), false),
        ("VMA-13: another table", operands(None, Some(1), Some(LARGE)).non_leaf(), false),
        ("VMA-12, SWG-14", operands(None, Some(1), None), true),
        ("VMA-05: a VM's", operands(Some(0), None, None).non_leaf(), false),
        ("DIR-05, CA-11", Iotinval::ALL.gscid(riscv_viommu::Gscid::truncate(9)), false),
    ] {
        for mut vm in each() {
            let table = vm.space(0, 1);
            fill(&table, OLD);
            assert_eq!(vm.read(0, PAGE), Ok(OLD + 0x1000), "{rule}");
            // The same entries with another target, in another table of the last level.
            let entries = vm.memory.read_words(Gpa::new(table.entry_address(PAGE, 0).get() & !0xfff), 512);
            let other = vm.memory.allocate(1);
            vm.memory.write_words(other, &entries);
            vm.memory.write(Gpa::new(other.get() + 8), (NEW + 0x1000) >> 2 | pte::RW);
            table.set(PAGE, 1, other.get() >> 2 | pte::V);
            vm.run(&[command.vma()]);
            let kept = vm.unless_forgotten(OLD, NEW);
            assert_eq!(vm.read(0, PAGE), Ok(if forgotten { NEW } else { kept } + 0x1000), "{rule}");
        }
    }
}

#[test]
fn a_table_with_g_stays_as_a_leaf_with_g_does() {
    for (rule, command, forgotten) in [
        ("VMA-04, S1-10, CA-05", operands(None, Some(1), Some(PAGE)).non_leaf(), false),
        ("VMA-02, S1-10, CA-05", operands(None, Some(1), None), false),
        ("VMA-01, SWG-13", operands(None, None, None), true),
        ("VMA-03, VMA-13, SWG-13, SWG-14", operands(None, None, Some(PAGE)).non_leaf(), true),
    ] {
        for mut vm in each() {
            let table = vm.space(0, 1);
            fill(&table, OLD);
            table.set(PAGE, 1, table.get(PAGE, 1) | pte::G);
            assert_eq!(vm.read(0, PAGE), Ok(OLD + 0x1000), "{rule}");
            table.map(PAGE, NEW + 0x1000, 0, pte::RW);
            vm.run(&[command.vma()]);
            let kept = vm.unless_forgotten(OLD, NEW);
            assert_eq!(vm.read(0, PAGE), Ok(if forgotten { NEW } else { kept } + 0x1000), "{rule}");
        }
    }
}

#[test]
fn a_range_is_the_power_of_two_of_pages_its_address_tells() {
    // ADDR[63:12] with its lowest 0 at bit X names 2^(X+1) pages.
    let range = |page: u64| [1 << 10 | 1, page << 10 | 1 << 9];
    for (rule, page, first, last) in [
        ("VMA-14: 8 KiB", 0x4_0002, 0x4_0002, 0x4_0003),
        ("VMA-14: 16 KiB", 0x4_0001, 0x4_0000, 0x4_0003),
        ("VMA-14: 64 KiB", 0x4_0017, 0x4_0010, 0x4_001f),
        ("VMA-14: 2 MiB", 0x4_00ff, 0x4_0000, 0x4_01ff),
        ("VMA-14: 1 GiB", 0x5_ffff, 0x4_0000, 0x7_ffff),
        ("VMA-14: all but the top bit", u64::MAX >> 13, 0, u64::MAX >> 12),
        ("VMA-14: all ones", u64::MAX >> 12, 0, u64::MAX >> 12),
    ] {
        for mut vm in each() {
            let table = vm.space(0, 1);
            let pages = [0x3_ffff, 0x4_0000, 0x4_0001, 0x4_0002, 0x4_0003, 0x4_0004, 0x4_000f, 0x4_0010, 0x4_001f]
                .into_iter()
                .chain([0x4_0020, 0x4_01ff, 0x7_fe00]);
            for page in pages.clone() {
                table.map(page << 12, OLD, 0, pte::RW);
                assert_eq!(vm.read(0, page << 12), Ok(OLD), "{rule}");
                table.map(page << 12, NEW, 0, pte::RW);
            }
            vm.run(&[range(page)]);
            for page in pages {
                let kept = vm.unless_forgotten(OLD, NEW);
                let to = if (first..=last).contains(&page) { NEW } else { kept };
                assert_eq!(vm.read(0, page << 12), Ok(to), "{rule}: {page:#x}");
            }
        }
    }
}

#[test]
fn a_range_smaller_than_a_leaf_is_about_the_leaf() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        table.map(LARGE, OLD, 1, pte::RW);
        assert_eq!(vm.read(0, LARGE), Ok(OLD), "S1-13");
        table.unmap(LARGE, 1);
        vm.run(&[Iotinval::ALL.range(Iova::new(LARGE + 0x10_0000), 4).vma()]);
        assert_eq!(vm.read(0, LARGE), READ_PAGE_FAULT, "VMA-14, VMA-11, T28");
    }
}

#[test]
fn an_address_that_can_not_be_mapped_is_no_error() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        fill(&table, OLD);
        assert_eq!(vm.read(0, PAGE), Ok(OLD + 0x1000), "TR-18");
        for address in [1 << 39, 1 << 63, u64::MAX >> 1] {
            vm.run(&[
                operands(None, None, Some(address)).vma(),
                operands(None, Some(1), Some(address)).non_leaf().vma(),
            ]);
        }
        assert_eq!(vm.read(0, PAGE), Ok(OLD + 0x1000), "VMA-15");
    }
}

#[test]
fn after_the_command_the_tables_are_read_as_they_are() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        for to in [OLD, NEW, OLD] {
            table.map(PAGE, to, 0, pte::RW);
            vm.run(&[operands(None, Some(1), Some(PAGE)).vma()]);
            assert_eq!(vm.read(0, PAGE), Ok(to), "VMA-16");
        }
        table.unmap(PAGE, 0);
        vm.run(&[operands(None, Some(1), Some(PAGE)).vma(), [0x3002, 0]]);
        assert_eq!(vm.read(0, PAGE), READ_PAGE_FAULT, "VMA-16");
    }
}

#[test]
fn contexts_and_second_stage_entries_are_not_touched() {
    for mut vm in each() {
        let second = vm.second();
        let table = vm.space_in(0, 1, &second, 5);
        table.map(PAGE, 0x8900_0000, 0, pte::RW);
        let request = Request::read(vm.device(0), Iova::new(PAGE));
        // Directory 3; first stage 3, second stage 1: tables and data are in one leaf.
        assert_eq!(vm.loads(request), if vm.remembers { 7 } else { 3 + 3 * 2 + 1 }, "S1-06");
        vm.run(&[operands(Some(5), None, None).vma()]);
        assert_eq!(vm.loads(request), if vm.remembers { 3 } else { 10 }, "VMA-17, CA-11");
        vm.run(&[inval_ddt(None)]);
        assert_eq!(vm.loads(request), if vm.remembers { 3 } else { 10 }, "CA-11, DIR-05: the directory is read");
    }
}

#[test]
fn software_that_clears_a_or_d_invalidates_for_it_to_be_set_again() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        // SADE.
        vm.set(0, &[1 | 1 << 8, 0, 1 << 12, table.iosatp()]);
        table.map(PAGE, OLD, 0, pte::V | pte::R | pte::W | pte::U);
        assert_eq!(vm.write(0, PAGE), Ok(OLD), "AD-01");
        assert_eq!(table.get(PAGE, 0) & (pte::A | pte::D), pte::A | pte::D, "CA-09, AD-04");
        for bit in [pte::A, pte::D] {
            table.set(PAGE, 0, table.get(PAGE, 0) & !bit);
            assert_eq!(vm.write(0, PAGE), Ok(OLD), "CA-06");
            assert_eq!(table.get(PAGE, 0) & bit, vm.unless_forgotten(0, bit), "SWG-15: not set as long as it is kept");
            table.set(PAGE, 0, table.get(PAGE, 0) & !bit);
            vm.run(&[operands(None, Some(1), Some(PAGE)).vma()]);
            assert_eq!(vm.write(0, PAGE), Ok(OLD), "SWG-15");
            assert_eq!(table.get(PAGE, 0) & bit, bit, "SWG-15, CA-09");
        }
    }
}

#[test]
fn pages_become_one_and_one_becomes_pages_while_they_are_used() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        let page = |index: u64| LARGE + index * 0x1000;
        for index in 0..512 {
            table.map(page(index), OLD + index * 0x1000, 0, pte::RW);
        }
        let pages = table.get(LARGE, 1);
        assert_eq!(vm.read(0, page(3)), Ok(OLD + 0x3000), "S1-03");
        table.map(LARGE, OLD, 1, pte::RW);
        for index in [3, 4, 511] {
            assert_eq!(vm.read(0, page(index)), Ok(OLD + index * 0x1000), "SWG-16: one page");
        }
        table.set(LARGE, 1, pages);
        for index in [3, 4, 5, 511] {
            assert_eq!(vm.read(0, page(index)), Ok(OLD + index * 0x1000), "SWG-16: pages");
        }
    }
}
