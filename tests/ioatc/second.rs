//! `IOTINVAL.GVMA`, and the changes of second-stage and MSI page tables it is for.

use riscv_viommu::mock::guest::{Iotinval, inval_ddt, inval_pdt};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{Gpa, Gscid, Iova, ProcessId, Request};

use super::{Vm, device_id, each, operands};

/// Guest-physical addresses: two pages in one table, and one of 2 MiB.
const PAGE: u64 = 0x4000_1000;
const OTHER: u64 = 0x4000_3000;
const LARGE: u64 = 0x4020_0000;

const OLD: u64 = 0x9800_0000;
const NEW: u64 = 0xa800_0000;

const READ_GUEST_PAGE_FAULT: Result<u64, u16> = Err(21);

fn fill(second: &PageTable, to: u64) {
    second.map(PAGE, to + 0x1000, 0, pte::RW);
    second.map(OTHER, to + 0x3000, 0, pte::RW);
    second.map(LARGE, to + 0x20_0000, 1, pte::RW);
}

/// A device of a VM whose addresses are guest-physical ones.
fn bare(vm: &Vm, device: u32, second: &PageTable, gscid: u32) {
    vm.set(device, &[1, second.iohgatp(Gscid::truncate(gscid)), 0, 0]);
}

#[test]
fn an_invalidation_is_about_the_vms_and_addresses_it_names() {
    let page = |gscid, address| operands(Some(gscid), None, Some(address));
    let anywhere = |operands: Iotinval| (operands, None, None);
    let commands = [
        ("GVM-01", anywhere(operands(None, None, None))),
        ("GVM-01: without GV nothing else counts", anywhere(operands(None, None, Some(PAGE)).non_leaf())),
        ("GVM-02", (operands(Some(5), None, None), Some(5), None)),
        ("GVM-02: NL and S without AV", (operands(Some(5), None, None).non_leaf(), Some(5), None)),
        ("GVM-02", (operands(Some(0), None, None), Some(0), None)),
        ("GVM-02: of no VM", (operands(Some(9), None, None), Some(9), None)),
        ("GVM-03, SWG-10", (page(5, PAGE), Some(5), Some((PAGE, PAGE)))),
        ("GVM-03, SWG-10, T28", (page(5, LARGE + 0x1f_f000), Some(5), Some((LARGE, LARGE)))),
        ("GVM-03, SWG-10", (page(0, OTHER), Some(0), Some((OTHER, OTHER)))),
        ("GVM-03, VMA-14", (operands(Some(5), None, None).range(Iova::new(PAGE), 1), Some(5), Some((PAGE, PAGE)))),
        ("GVM-03, VMA-14", (operands(Some(5), None, None).range(Iova::new(PAGE), 2), Some(5), Some((PAGE, OTHER)))),
        ("GVM-03, VMA-14", (operands(Some(5), None, None).range(Iova::new(PAGE), 10), Some(5), Some((PAGE, LARGE)))),
    ];
    for (rule, (command, gscid, range)) in commands {
        for mut vm in each() {
            let seconds = [5, 6, 0].map(|gscid| (gscid, vm.second()));
            for (device, (gscid, second)) in (0..).zip(&seconds) {
                fill(second, OLD);
                bare(&vm, device, second, *gscid);
            }
            // The guest's own: in none of them.
            let own = vm.space(3, 0);
            own.map(PAGE, OLD, 0, pte::RW);
            for (device, gpa) in (0..3).flat_map(|device| [PAGE, OTHER, LARGE].map(|gpa| (device, gpa))) {
                assert_eq!(vm.read(device, gpa), Ok(OLD + (gpa & 0xff_ffff)), "{rule}");
            }
            assert_eq!(vm.read(3, PAGE), Ok(OLD), "{rule}");
            for (_, second) in &seconds {
                fill(second, NEW);
            }
            own.map(PAGE, NEW, 0, pte::RW);
            vm.run(&[command.gvma()]);
            for (device, (of, _)) in (0..).zip(&seconds) {
                for gpa in [PAGE, OTHER, LARGE] {
                    let named = gscid.is_none_or(|gscid| gscid == *of)
                        && range.is_none_or(|(first, last)| (first..=last).contains(&gpa));
                    let to = if named { NEW } else { vm.unless_forgotten(OLD, NEW) };
                    assert_eq!(vm.read(device, gpa), Ok(to + (gpa & 0xff_ffff)), "{rule}: GSCID {of}, {gpa:#x}");
                }
            }
            assert_eq!(vm.read(3, PAGE), Ok(vm.unless_forgotten(OLD, NEW)), "{rule}, GVM-05");
        }
    }
}

#[test]
fn an_address_leaves_tables_alone_unless_nl_says_so() {
    for (rule, command, forgotten) in [
        ("GVM-03, SWG-11", operands(Some(5), None, Some(PAGE)), false),
        ("GVM-03, SWG-11", operands(Some(5), None, Some(PAGE)).non_leaf(), true),
        ("GVM-03: another table", operands(Some(5), None, Some(LARGE)).non_leaf(), false),
        ("GVM-02, SWG-11", operands(Some(5), None, None), true),
        ("GVM-01, SWG-11", operands(None, None, None), true),
    ] {
        for mut vm in each() {
            let second = vm.second();
            bare(&vm, 0, &second, 5);
            fill(&second, OLD);
            assert_eq!(vm.read(0, PAGE), Ok(OLD + 0x1000), "{rule}");
            let other = vm.memory.allocate(1);
            vm.memory.write(Gpa::new(other.get() + 8), (NEW + 0x1000) >> 2 | pte::RW);
            second.set(PAGE, 1, other.get() >> 2 | pte::V);
            vm.run(&[command.gvma()]);
            let kept = vm.unless_forgotten(OLD, NEW);
            assert_eq!(vm.read(0, PAGE), Ok(if forgotten { NEW } else { kept } + 0x1000), "{rule}");
        }
    }
}

#[test]
fn a_page_of_a_vm_is_found_by_its_guest_physical_address() {
    for mut vm in each() {
        let second = vm.second();
        fill(&second, OLD);
        let table = vm.space_in(0, 1, &second, 5);
        // What both stages make of an IOVA far from the address between them.
        table.map(0x7000, PAGE, 0, pte::RW);
        assert_eq!(vm.read(0, 0x7123), Ok(OLD + 0x1123), "TR-20");
        fill(&second, NEW);
        vm.run(&[operands(Some(5), None, Some(0x7000)).gvma(), operands(Some(5), None, None).vma()]);
        let kept = vm.unless_forgotten(OLD, NEW);
        assert_eq!(vm.read(0, 0x7123), Ok(kept + 0x1123), "GVM-04, VMA-17: the IOVA is no guest-physical address");
        vm.run(&[operands(Some(5), None, Some(PAGE)).gvma()]);
        assert_eq!(vm.read(0, 0x7123), Ok(NEW + 0x1123), "GVM-04, SWG-10");
        second.unmap(PAGE, 0);
        vm.run(&[operands(Some(5), None, Some(PAGE)).gvma()]);
        assert_eq!(vm.read(0, 0x7123), READ_GUEST_PAGE_FAULT, "GVM-04");
    }
}

#[test]
fn first_stage_tables_that_are_elsewhere_need_both_commands() {
    for mut vm in each() {
        let second = vm.second();
        // The table is read at an address 1 GiB lower than it has.
        second.map(0x4000_0000, 0x8000_0000, 2, pte::RW);
        let table = PageTable::first_stage(&vm.memory, riscv_viommu::FirstStageMode::Sv39).below(0x4000_0000);
        vm.set(0, &[1, second.iohgatp(Gscid::truncate(5)), 1 << 12, table.iosatp()]);
        table.map(0x1000, 0x8800_0000, 0, pte::RW);
        assert_eq!(vm.read(0, 0x1000), Ok(0x8800_0000), "S1-06");
        // Elsewhere now, and empty there: 1 GiB more of memory has to be there for it.
        let root = table.root().get() + 0x4000_0000;
        vm.memory.map(Gpa::new(root), 0x1000);
        second.map(0x4000_0000, 0xc000_0000, 2, pte::RW);
        vm.run(&[
            operands(Some(5), None, Some(table.root().get() - 0x4000_0000)).gvma(),
            inval_ddt(Some(device_id(0))),
        ]);
        let kept = vm.unless_forgotten(Ok(0x8800_0000), Err(13));
        assert_eq!(vm.read(0, 0x1000), kept, "SWG-12, GVM-07: what was read of it is first-stage information");
        vm.run(&[operands(Some(5), Some(1), None).vma()]);
        assert_eq!(vm.read(0, 0x1000), Err(13), "SWG-12, SWG-13");
    }
}

#[test]
fn a_process_directory_that_is_elsewhere_needs_commands_for_contexts() {
    for (rule, command) in [
        ("SWG-12, DIR-03", inval_pdt(device_id(0), ProcessId::truncate(1))),
        ("SWG-12, DIR-02", inval_ddt(Some(device_id(0)))),
        ("SWG-12, DIR-01", inval_ddt(None)),
    ] {
        for mut vm in each() {
            let second = vm.second();
            second.map(0x4000_0000, 0x8000_0000, 2, pte::RW);
            let processes = ProcessDirectory::new(&vm.memory, 1).below(0x4000_0000);
            vm.set(0, &[1 | 1 << 5, second.iohgatp(Gscid::truncate(5)), 0, processes.pdtp()]);
            let process = ProcessId::truncate(1);
            processes.set(process, [1, 0]);
            let request = Request::read(vm.device(0), Iova::new(0x8800_0000)).with_process(process, false);
            assert_eq!(vm.ask(request), Ok(0x8800_0000), "{rule}, TR-17");
            vm.memory.map(Gpa::new(processes.root().get() + 0x4000_0000), 0x1000);
            second.map(0x4000_0000, 0xc000_0000, 2, pte::RW);
            vm.run(&[operands(Some(5), None, None).gvma(), operands(Some(5), None, None).vma()]);
            assert_eq!(vm.ask(request), vm.unless_forgotten(Ok(0x8800_0000), Err(266)), "{rule}, GVM-07, CA-11");
            vm.run(&[command]);
            assert_eq!(vm.ask(request), Err(266), "{rule}");
        }
    }
}

/// Four pages of interrupt files, and the table that leads on from them.
const FILES: u64 = 0x2800_0000;

fn with_files(vm: &Vm, device: u32, gscid: u32, files: Gpa) -> PageTable {
    let second = vm.second();
    let iohgatp = second.iohgatp(Gscid::truncate(gscid));
    vm.set(device, &[1, iohgatp, 0, 0, 1 << 60 | files.get() >> 12, 3, FILES >> 12]);
    second
}

fn file(vm: &Vm, files: Gpa, index: u64, to: u64) {
    vm.memory.write(Gpa::new(files.get() + index * 16), to >> 2 | 3 << 1 | 1);
}

#[test]
fn an_msi_page_table_entry_is_found_by_its_guest_physical_address() {
    let page = |gscid, address| operands(Some(gscid), None, Some(address));
    for (rule, command, forgotten) in [
        ("GVM-06, SWG-08, MSI-13", page(5, FILES + 0x1000), [true, false]),
        ("GVM-06, SWG-08", page(5, FILES + 0x2000), [false, false]),
        ("GVM-06, SWG-08", page(6, FILES + 0x1000), [false, true]),
        ("GVM-06, VMA-14", operands(Some(5), None, None).range(Iova::new(FILES), 1), [true, false]),
        ("GVM-06, VMA-14", operands(Some(5), None, None).range(Iova::new(FILES + 0x2000), 1), [false, false]),
        ("SWG-09", operands(Some(5), None, None), [true, false]),
        ("GVM-01", operands(None, None, None), [true, true]),
    ] {
        for mut vm in each() {
            let files = [vm.memory.allocate(1), vm.memory.allocate(1)];
            for (device, (gscid, files)) in (0..).zip([5, 6].into_iter().zip(files)) {
                let _ = with_files(&vm, device, gscid, files);
                file(&vm, files, 1, OLD);
                assert_eq!(vm.write(device, FILES + 0x1004), Ok(OLD + 4), "{rule}, MSI-08");
                file(&vm, files, 1, NEW);
            }
            // None of first-stage entries is one of these.
            vm.run(&[operands(None, None, None).vma(), operands(Some(5), None, None).vma(), command.gvma()]);
            for (device, forgotten) in (0..).zip(forgotten) {
                let to = if forgotten { NEW } else { vm.unless_forgotten(OLD, NEW) };
                assert_eq!(vm.write(device, FILES + 0x1004), Ok(to + 4), "{rule}: device {device}");
            }
        }
    }
}

#[test]
fn an_msi_page_table_entry_that_is_not_valid_is_never_remembered() {
    for mut vm in each() {
        let files = vm.memory.allocate(1);
        let _ = with_files(&vm, 0, 5, files);
        assert_eq!(vm.write(0, FILES), Err(262), "CA-02, MSI-07");
        file(&vm, files, 0, OLD);
        assert_eq!(vm.write(0, FILES), Ok(OLD), "CA-02, MSI-13, SWG-17");
    }
}

#[test]
fn a_whole_msi_page_table_goes_with_its_vm() {
    for mut vm in each() {
        let files = vm.memory.allocate(1);
        let _ = with_files(&vm, 0, 5, files);
        let at = |index| FILES + index * 0x1000;
        (0..4).for_each(|index| file(&vm, files, index, OLD + at(index)));
        assert!((0..4).all(|index| vm.write(0, at(index)) == Ok(OLD + at(index))), "MSI-05, MSI-06");
        (0..4).for_each(|index| file(&vm, files, index, NEW + at(index)));
        // IOFENCE.C with PW orders the messages before.
        vm.run(&[operands(Some(5), None, None).gvma(), [0x2002, 0]]);
        assert!((0..4).all(|index| vm.write(0, at(index)) == Ok(NEW + at(index))), "SWG-09");
    }
}
