//! `IODIR`, and the changes of directories it is for.

use riscv_viommu::mock::guest::{inval_ddt, inval_pdt};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{FirstStageMode, Gpa, Gscid, Iova, ProcessId, Request};

use super::{READ_PAGE_FAULT, Vm, device_id, each, operands};

const PAGE: u64 = 0x1000;
const OLD: u64 = 0x9800_0000;
const NEW: u64 = 0xa800_0000;

/// 258: the device context is not valid; 259: it is misconfigured.
const NOT_VALID: Result<u64, u16> = Err(258);
const MISCONFIGURED: Result<u64, u16> = Err(259);

fn process(id: u32) -> ProcessId {
    ProcessId::truncate(id)
}

/// Two first-stage tables.
fn tables(vm: &Vm) -> [PageTable; 2] {
    [OLD, NEW].map(|to| {
        let table = PageTable::first_stage(&vm.memory, FirstStageMode::Sv39);
        table.map(PAGE, to, 0, pte::RW);
        table
    })
}

fn of_process(vm: &Vm, device: u32, id: u32) -> Request {
    Request::read(vm.device(device), Iova::new(PAGE)).with_process(process(id), false)
}

#[test]
fn inval_ddt_is_about_the_devices_and_all_processes_of_them() {
    for (rule, named) in [("DIR-01", None), ("DIR-02", Some(0)), ("DIR-02", Some(6)), ("DIR-02: no device", Some(7))] {
        for mut vm in each() {
            let [old, new] = tables(&vm);
            let processes = ProcessDirectory::new(&vm.memory, 3);
            // Devices 0 and 1 are in one page of the directory, 6 is in another; 2 has processes.
            for device in [0, 1, 6] {
                vm.set(device, &[1, 0, 1 << 12, old.iosatp()]);
                assert_eq!(vm.read(device, PAGE), Ok(OLD), "{rule}");
                vm.set(device, &[1, 0, 2 << 12, new.iosatp()]);
            }
            vm.set(2, &[1 | 1 << 5, 0, 0, processes.pdtp()]);
            for id in [1, 0x1_0101] {
                processes.set(process(id), [1 | 1 << 12, old.iosatp()]);
                assert_eq!(vm.ask(of_process(&vm, 2, id)), Ok(OLD), "{rule}");
                processes.set(process(id), [1 | 2 << 12, new.iosatp()]);
            }
            vm.run(&[operands(None, None, None).vma(), operands(None, None, None).gvma()]);
            vm.run(&[inval_ddt(named.map(device_id))]);
            for device in [0, 1, 6] {
                let is_named = named.is_none_or(|named| named == device);
                let to = if is_named { NEW } else { vm.unless_forgotten(OLD, NEW) };
                assert_eq!(vm.read(device, PAGE), Ok(to), "{rule}, CA-03, CA-11: device {device}");
            }
            let to = if named.is_none() { NEW } else { vm.unless_forgotten(OLD, NEW) };
            for id in [1, 0x1_0101] {
                assert_eq!(vm.ask(of_process(&vm, 2, id)), Ok(to), "{rule}, CA-03: process {id}");
            }
            vm.run(&[inval_ddt(Some(device_id(2)))]);
            for id in [1, 0x1_0101] {
                assert_eq!(vm.ask(of_process(&vm, 2, id)), Ok(NEW), "DIR-02, DIR-04: process {id}");
            }
        }
    }
}

#[test]
fn inval_pdt_is_about_one_process_of_one_device() {
    for mut vm in each() {
        let [old, new] = tables(&vm);
        let processes = ProcessDirectory::new(&vm.memory, 2);
        let all = [(0, 1), (0, 0x101), (1, 1)];
        for device in [0, 1] {
            vm.set(device, &[1 | 1 << 5, 0, 0, processes.pdtp()]);
        }
        for id in [1, 0x101] {
            processes.set(process(id), [1 | 1 << 12, old.iosatp()]);
        }
        for (device, id) in all {
            assert_eq!(vm.ask(of_process(&vm, device, id)), Ok(OLD), "TR-17");
        }
        for id in [1, 0x101] {
            processes.set(process(id), [1 | 2 << 12, new.iosatp()]);
        }
        // SWG-06, but for one device only.
        vm.run(&[inval_pdt(device_id(0), process(1)), operands(None, Some(1), None).vma()]);
        for (device, id) in all {
            let to = if (device, id) == (0, 1) { NEW } else { vm.unless_forgotten(OLD, NEW) };
            assert_eq!(vm.ask(of_process(&vm, device, id)), Ok(to), "DIR-03, DIR-04, SWG-06: {device}, {id:#x}");
        }
    }
}

#[test]
fn a_device_context_that_changed_needs_its_own_command_and_those_of_its_stages() {
    // Old second stage, PDTV and first stage: what has to be forgotten beside the context.
    for (rule, gscid, processes, commands) in [
        ("SWG-01", Some(5), false, vec![operands(Some(5), None, None).vma(), operands(Some(5), None, None).gvma()]),
        ("SWG-02", None, true, vec![operands(None, None, None).vma()]),
        ("SWG-03", None, false, vec![operands(None, Some(1), None).vma()]),
    ] {
        for mut vm in each() {
            let [old, new] = tables(&vm);
            let iohgatp = gscid.map_or(0, |gscid| {
                let second = vm.second();
                second.map(0x8000_0000, 0x8000_0000, 2, pte::RW);
                second.iohgatp(Gscid::truncate(gscid))
            });
            let directory = ProcessDirectory::new(&vm.memory, 1);
            // The same tags, another table: all that is known of it has to go.
            let set = |vm: &Vm, table: &PageTable| {
                directory.set(process(0), [1 | 1 << 12, table.iosatp()]);
                if processes {
                    vm.set(0, &[1 | 1 << 5 | 1 << 9, iohgatp, 0, directory.pdtp()]);
                } else {
                    vm.set(0, &[1, iohgatp, 1 << 12, table.iosatp()]);
                }
            };
            set(&vm, &old);
            assert_eq!(vm.read(0, PAGE), Ok(OLD), "{rule}");
            set(&vm, &new);
            vm.run(&commands);
            assert_eq!(vm.read(0, PAGE), Ok(vm.unless_forgotten(OLD, NEW)), "{rule}, CA-11: the context is known");
            vm.run(&[inval_ddt(Some(device_id(0)))]);
            assert_eq!(
                vm.read(0, PAGE),
                Ok(vm.unless_forgotten(OLD, NEW)),
                "{rule}, DIR-05: what was known of it since"
            );
            vm.run(&commands);
            assert_eq!(vm.read(0, PAGE), Ok(NEW), "{rule}");
        }
    }
}

#[test]
fn of_a_context_without_stages_nothing_else_is_known() {
    for mut vm in each() {
        let [_, table] = tables(&vm);
        vm.set(0, &[1]);
        assert_eq!(vm.read(0, PAGE), Ok(PAGE), "S1-01, S2-01");
        vm.set(0, &[1, 0, 0, table.iosatp()]);
        assert_eq!(vm.read(0, PAGE), Ok(vm.unless_forgotten(PAGE, NEW)), "CA-06");
        vm.run(&[inval_ddt(Some(device_id(0)))]);
        assert_eq!(vm.read(0, PAGE), Ok(NEW), "SWG-04, CA-13, CA-04: PSCID 0 is not that of a Bare stage");
        vm.set(0, &[1]);
        vm.run(&[inval_ddt(Some(device_id(0)))]);
        assert_eq!(vm.read(0, PAGE), Ok(PAGE), "CA-13, CA-04");
    }
}

#[test]
fn an_entry_above_device_contexts_goes_with_all_of_them() {
    for level in [1, 2] {
        for mut vm in each() {
            let [old, new] = tables(&vm);
            for device in [0, 1, 6] {
                vm.set(device, &[1, 0, 1 << 12, old.iosatp()]);
                assert_eq!(vm.read(device, PAGE), Ok(OLD), "TR-07");
            }
            // Another table there, which has other contexts.
            let at = vm.directory.non_leaf_address(device_id(0), level);
            let before = vm.memory.read(at);
            vm.memory.write(at, 0);
            for device in [0, 1, 6] {
                vm.set(device, &[1, 0, 2 << 12, new.iosatp()]);
            }
            assert_ne!(vm.memory.read(at), before);
            vm.run(&[inval_ddt(None)]);
            for device in [0, 1] {
                assert_eq!(vm.read(device, PAGE), Ok(NEW), "SWG-05, DIR-01: level {level}");
            }
        }
    }
}

#[test]
fn an_entry_above_process_contexts_goes_with_the_device() {
    for level in [1, 2] {
        for mut vm in each() {
            let [old, new] = tables(&vm);
            let processes = ProcessDirectory::new(&vm.memory, 3);
            vm.set(0, &[1 | 1 << 5, 0, 0, processes.pdtp()]);
            for id in [1, 2] {
                processes.set(process(id), [1 | 1 << 12, old.iosatp()]);
                assert_eq!(vm.ask(of_process(&vm, 0, id)), Ok(OLD), "TR-15");
            }
            vm.memory.write(processes.non_leaf_address(process(1), level), 0);
            for id in [1, 2] {
                processes.set(process(id), [1 | 2 << 12, new.iosatp()]);
            }
            vm.run(&[inval_ddt(Some(device_id(0)))]);
            for id in [1, 2] {
                assert_eq!(vm.ask(of_process(&vm, 0, id)), Ok(NEW), "SWG-07, DIR-02: level {level}");
            }
        }
    }
}

#[test]
fn ats_of_a_device_ends_and_begins_with_its_context() {
    for mut vm in each() {
        let [table, _] = tables(&vm);
        let translated = Request::read(vm.device(0), Iova::new(PAGE)).translated();
        vm.set(0, &[1, 0, 1 << 12, table.iosatp()]);
        assert_eq!(vm.ask(translated), Err(260), "TR-08");
        let commands = [inval_ddt(Some(device_id(0))), operands(None, Some(1), None).vma()];
        for (tc, answer) in [(3, Ok(PAGE)), (1, Err(260)), (3, Ok(PAGE))] {
            vm.set(0, &[0]);
            vm.run(&commands);
            vm.set(0, &[tc, 0, 1 << 12, table.iosatp()]);
            assert_eq!(vm.ask(translated), answer, "SWG-19, TR-08, TR-11");
        }
    }
}

#[test]
fn what_is_not_valid_is_never_remembered() {
    for mut vm in each() {
        // From the top down, each entry becomes valid without a word to the IOMMU.
        let id = device_id(0);
        let request = of_process(&vm, 0, 0x1_0101);
        let processes = ProcessDirectory::new(&vm.memory, 3);
        let second = PageTable::second_stage(&vm.memory, riscv_viommu::SecondStageMode::Sv48x4);
        let first = PageTable::first_stage(&vm.memory, FirstStageMode::Sv39);
        let iohgatp = second.iohgatp(Gscid::truncate(5));
        vm.set(0, &[1 | 1 << 5, iohgatp, 0, processes.pdtp()]);
        first.map(PAGE, OLD, 0, pte::RW);
        processes.set(process(0x1_0101), [1 | 1 << 12, first.iosatp()]);
        second.map(0x8000_0000, 0x8000_0000, 2, pte::RW);
        let entries = [
            (vm.directory.non_leaf_address(id, 2), 258),
            (vm.directory.non_leaf_address(id, 1), 258),
            (vm.directory.entry_address(id), 258),
            (second.entry_address(0x8000_0000, 3), 21),
            (second.entry_address(0x8000_0000, 2), 21),
            (processes.non_leaf_address(process(0x1_0101), 2), 266),
            (processes.non_leaf_address(process(0x1_0101), 1), 266),
            (processes.entry_address(process(0x1_0101)), 266),
            (first.entry_address(PAGE, 2), 13),
            (first.entry_address(PAGE, 1), 13),
            (first.entry_address(PAGE, 0), 13),
        ];
        let toggle = |vm: &Vm, at: Gpa| vm.memory.write(at, vm.memory.read(at) ^ 1);
        for (at, _) in entries {
            toggle(&vm, at);
        }
        for (at, cause) in entries {
            for _ in 0..2 {
                assert_eq!(vm.ask(request), Err(cause), "CA-02");
            }
            toggle(&vm, at);
        }
        assert_eq!(vm.ask(request), Ok(OLD), "CA-02, SWG-17");
    }
}

#[test]
fn a_context_that_is_misconfigured_is_never_remembered() {
    for mut vm in each() {
        let [table, _] = tables(&vm);
        // T2GPA without EN_ATS.
        vm.set(0, &[1 | 1 << 3, 0, 1 << 12, table.iosatp()]);
        assert_eq!(vm.read(0, PAGE), MISCONFIGURED, "DCK-03");
        vm.set(0, &[1, 0, 1 << 12, table.iosatp()]);
        assert_eq!(vm.read(0, PAGE), Ok(OLD), "CA-14");
        let processes = ProcessDirectory::new(&vm.memory, 1);
        vm.set(1, &[1 | 1 << 5, 0, 0, processes.pdtp()]);
        // A reserved mode of the first stage.
        processes.set(process(1), [1 | 1 << 12, 1 << 60]);
        assert_eq!(vm.ask(of_process(&vm, 1, 1)), Err(267), "PCK-01, PCK-02");
        processes.set(process(1), [1 | 1 << 12, table.iosatp()]);
        assert_eq!(vm.ask(of_process(&vm, 1, 1)), Ok(OLD), "CA-14");
    }
}

#[test]
fn a_device_is_blocked_when_its_context_is_gone() {
    for mut vm in each() {
        let [table, _] = tables(&vm);
        vm.set(0, &[1, 0, 1 << 12, table.iosatp()]);
        assert_eq!(vm.read(0, PAGE), Ok(OLD), "TR-18");
        vm.directory.invalidate(device_id(0));
        assert_eq!(vm.read(0, PAGE), vm.unless_forgotten(Ok(OLD), NOT_VALID), "CA-06");
        vm.run(&[inval_ddt(Some(device_id(0)))]);
        assert_eq!(vm.read(0, PAGE), NOT_VALID, "DIR-02, DIR-04");
        vm.set(0, &[1, 0, 1 << 12, table.iosatp()]);
        table.unmap(PAGE, 0);
        assert_eq!(vm.read(0, PAGE), vm.unless_forgotten(Ok(OLD), READ_PAGE_FAULT), "DIR-05, CA-11");
    }
}
