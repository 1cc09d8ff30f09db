//! What is remembered answers each request by what that request may do; where it is not enough the tables are asked.

use riscv_viommu::mock::guest::{Iofence, inval_ddt, inval_pdt, register};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{
    AtsCompletion, AtsRequest, AtsTranslation, Attachment, FirstStageMode, Gscid, Iova, ProcessId, Request,
};

use super::{READ_PAGE_FAULT, Vm, device_id, each, operands};

const PAGE: u64 = 0x1000;
const AT: u64 = 0x9800_0000;
const ELSEWHERE: u64 = 0xa800_0000;

const PROCESS: ProcessId = ProcessId::truncate(1);

const SADE: u64 = 1 << 8;
const GADE: u64 = 1 << 7;

const WRITE_PAGE_FAULT: Result<u64, u16> = Err(15);

/// A device with a process: ENS and SUM are bits 1 and 2 of its `ta`.
fn process(vm: &Vm, table: &PageTable, ens_and_sum: u64) -> ProcessDirectory {
    let processes = ProcessDirectory::new(&vm.memory, 1);
    processes.set(PROCESS, [1 | ens_and_sum | 1 << 12, table.iosatp()]);
    vm.set(0, &[1 | 1 << 5, 0, 0, processes.pdtp()]);
    processes
}

#[test]
fn privilege_is_that_of_the_request_and_sum_that_of_the_context() {
    for mut vm in each() {
        let table = PageTable::first_stage(&vm.memory, FirstStageMode::Sv39);
        table.map(PAGE, AT, 0, pte::RW | pte::X);
        table.map(PAGE + 0x1000, AT, 0, (pte::RW | pte::X) & !pte::U);
        let processes = process(&vm, &table, 1 << 1 | 1 << 2);
        let device = vm.device(0);
        let (user, supervisor) = (Iova::new(PAGE), Iova::new(PAGE + 0x1000));
        for _ in 0..2 {
            for (request, answer) in [
                (Request::read(device, user).with_process(PROCESS, false), Ok(AT)),
                (Request::read(device, user).with_process(PROCESS, true), Ok(AT)),
                (Request::execute(device, user).with_process(PROCESS, true), Err(12)),
                (Request::read(device, supervisor).with_process(PROCESS, true), Ok(AT)),
                (Request::execute(device, supervisor).with_process(PROCESS, true), Ok(AT)),
                (Request::read(device, supervisor).with_process(PROCESS, false), READ_PAGE_FAULT),
            ] {
                assert_eq!(vm.ask(request), answer, "CA-07, S1-11: {request:?}");
            }
        }
        // Without SUM: nothing of the tables is forgotten.
        processes.set(PROCESS, [1 | 1 << 1 | 1 << 12, table.iosatp()]);
        vm.run(&[inval_pdt(device_id(0), PROCESS)]);
        assert_eq!(vm.ask(Request::read(device, user).with_process(PROCESS, true)), READ_PAGE_FAULT, "CA-07");
        assert_eq!(vm.ask(Request::read(device, user).with_process(PROCESS, false)), Ok(AT), "CA-07");
        // Without ENS.
        processes.set(PROCESS, [1 | 1 << 12, table.iosatp()]);
        vm.run(&[inval_pdt(device_id(0), PROCESS)]);
        assert_eq!(vm.ask(Request::read(device, supervisor).with_process(PROCESS, true)), Err(260), "CA-07, TR-16");
    }
}

#[test]
fn permissions_are_checked_on_what_is_remembered() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        table.map(PAGE, AT, 0, pte::RO);
        assert_eq!(vm.read(0, PAGE), Ok(AT), "S1-12");
        assert_eq!(vm.write(0, PAGE), WRITE_PAGE_FAULT, "CA-07, ACC-05");
        let fetch = Request::execute(vm.device(0), Iova::new(PAGE));
        assert_eq!(vm.ask(fetch), Err(12), "CA-07, ACC-05");
        assert_eq!(vm.read(0, PAGE), Ok(AT), "S1-12");
    }
}

#[test]
fn permission_that_was_given_since_is_found() {
    for mut vm in each() {
        let second = vm.second();
        second.map(PAGE << 20, AT, 1, pte::V | pte::R | pte::U | pte::A | pte::D);
        let table = vm.space_in(0, 1, &second, 5);
        table.map(PAGE, PAGE << 20, 0, pte::RO);
        assert_eq!(vm.read(0, PAGE), Ok(AT), "TR-20");
        table.map(PAGE, PAGE << 20, 0, pte::RW);
        assert_eq!(vm.write(0, PAGE), Err(23), "CA-08, T28: the first stage gives it, the second does not");
        second.map(PAGE << 20, AT, 1, pte::RW);
        assert_eq!(vm.write(0, PAGE), Ok(AT), "CA-08, T28: both do");
        // It is what was found then that is remembered.
        let store = Request::write(vm.device(0), Iova::new(PAGE));
        assert_eq!(vm.loads(store), vm.unless_forgotten(0, 3 + 3 * 2 + 2), "CA-01, T28");
    }
}

#[test]
fn a_store_to_a_page_that_is_not_dirty_marks_it_in_memory() {
    for mut vm in each() {
        let second = vm.second();
        let table = PageTable::first_stage(&vm.memory, FirstStageMode::Sv39);
        vm.set(0, &[1 | SADE | GADE, second.iohgatp(Gscid::truncate(5)), 1 << 12, table.iosatp()]);
        let clean = pte::V | pte::R | pte::W | pte::U;
        table.map(PAGE, PAGE << 20, 0, clean);
        second.map(PAGE << 20, AT, 0, clean);
        let marks = |entry: u64| entry & (pte::A | pte::D);
        assert_eq!(vm.read(0, PAGE), Ok(AT), "AD-01");
        assert_eq!([marks(table.get(PAGE, 0)), marks(second.get(PAGE << 20, 0))], [pte::A; 2], "AD-04, CA-09");
        assert_eq!(vm.read(0, PAGE), Ok(AT), "AD-01");
        assert_eq!(vm.write(0, PAGE), Ok(AT), "AD-01");
        let both = [marks(table.get(PAGE, 0)), marks(second.get(PAGE << 20, 0))];
        assert_eq!(both, [pte::A | pte::D; 2], "CA-08, CA-09, AD-04");
    }
}

#[test]
fn without_updates_a_store_to_a_page_that_is_not_dirty_faults_until_it_is() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        table.map(PAGE, AT, 0, pte::RW & !pte::D);
        assert_eq!(vm.read(0, PAGE), Ok(AT), "AD-01");
        assert_eq!(vm.write(0, PAGE), WRITE_PAGE_FAULT, "CA-08, AD-01");
        // Software sets D, and needs no command for it.
        table.map(PAGE, AT, 0, pte::RW);
        assert_eq!(vm.write(0, PAGE), Ok(AT), "CA-08, AD-01");
    }
}

#[test]
fn the_second_stage_that_refuses_says_the_address_although_the_first_is_remembered() {
    for mut vm in each() {
        let second = vm.second();
        second.map(0x7_0000, AT, 0, pte::RO);
        let table = vm.space_in(0, 1, &second, 5);
        table.map(PAGE, 0x7_0000, 0, pte::RW);
        assert_eq!(vm.read(0, PAGE + 0x124), Ok(AT + 0x124), "TR-20");
        let store = Request::write(vm.device(0), Iova::new(PAGE + 0x124));
        assert!(vm.side.translate(store).is_err(), "S2-06");
        // CAUSE 23, TTYP 3 in 39:34; iotval; iotval2 with 0 in bits 1:0.
        assert_eq!(vm.side.take_fault(), [0x17 | 3 << 34, 0, PAGE + 0x124, 0x7_0124], "CA-08, FR-08");
    }
}

fn ats(vm: &mut Vm, device: Attachment) -> AtsTranslation {
    match vm.side.ats(AtsRequest::new(device, Iova::new(PAGE))) {
        AtsCompletion::Success(translation) => translation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn with_t2gpa_an_ats_request_is_told_a_guest_physical_address_whatever_is_remembered() {
    for mut vm in each() {
        let second = vm.second();
        second.map(0x7_0000, AT, 0, pte::RW);
        let table = PageTable::first_stage(&vm.memory, FirstStageMode::Sv39);
        // EN_ATS, T2GPA.
        vm.set(0, &[1 | 1 << 1 | 1 << 3, second.iohgatp(Gscid::truncate(5)), 1 << 12, table.iosatp()]);
        table.map(PAGE, 0x7_0000, 0, pte::RW);
        let device = vm.device(0);
        for _ in 0..2 {
            assert_eq!(vm.read(0, PAGE), Ok(AT), "TR-20");
            assert_eq!(ats(&mut vm, device).address, 0x7_0000, "CA-10");
            let translated = Request::read(device, Iova::new(0x7_0000)).translated();
            assert_eq!(vm.ask(translated), Ok(AT), "CA-10, TR-12");
        }
    }
}

#[test]
fn a_device_with_a_cache_of_its_own_asks_after_the_iommu_has_forgotten() {
    for mut vm in each() {
        let table = PageTable::first_stage(&vm.memory, FirstStageMode::Sv39);
        // EN_ATS.
        vm.set(0, &[1 | 1 << 1, 0, 1 << 12, table.iosatp()]);
        table.map(PAGE, AT, 0, pte::RW);
        let device = vm.device(0);
        assert_eq!(ats(&mut vm, device).address, AT, "ATS-06");
        table.map(PAGE, ELSEWHERE, 0, pte::RW);
        let kept = vm.unless_forgotten(AT, ELSEWHERE);
        assert_eq!(ats(&mut vm, device).address, kept, "SWG-18: asking before the IOMMU forgets brings it back");
        vm.run(&[operands(None, Some(1), Some(PAGE)).vma(), Iofence::PLAIN.encode()]);
        assert_eq!(ats(&mut vm, device).address, ELSEWHERE, "SWG-18");
    }
}

#[test]
fn what_is_remembered_does_not_count_in_off_and_bare_nor_after_a_reset() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        table.map(PAGE, AT, 0, pte::RW);
        assert_eq!(vm.read(0, PAGE), Ok(AT), "TR-18");
        table.map(PAGE, ELSEWHERE, 0, pte::RW);
        let ddtp = vm.directory.ddtp();
        vm.side.write8(register::DDTP, 1);
        assert_eq!(vm.read(0, PAGE), Ok(PAGE), "TR-04, CA-12: what is remembered does not count in Bare");
        vm.side.write8(register::DDTP, 0);
        assert_eq!(vm.read(0, PAGE), Err(256), "TR-02, CA-12: nor in Off");
        vm.side.write8(register::DDTP, ddtp);
        // It need not be forgotten when the directory comes back, but may.
        assert_eq!(vm.read(0, PAGE), Ok(ELSEWHERE), "CA-12, CA-15");
        table.map(PAGE, AT, 0, pte::RW);
        vm.side.reset();
        assert_eq!(vm.read(0, PAGE), Ok(AT), "CA-12, REG-RST-02");
    }
}

#[test]
fn a_device_without_a_first_stage_shares_nothing_with_pscid_0_of_its_vm() {
    for mut vm in each() {
        let second = vm.second();
        second.map(0, 0, 2, pte::RW);
        let table = vm.space_in(0, 0, &second, 0);
        vm.set(1, &[1, second.iohgatp(Gscid::truncate(0))]);
        vm.set(2, &[1]);
        let own = vm.space(3, 0);
        table.map(PAGE, AT & 0x3fff_ffff, 0, pte::RW);
        own.map(PAGE, ELSEWHERE, 0, pte::RW);
        for _ in 0..2 {
            assert_eq!(vm.read(0, PAGE), Ok(AT & 0x3fff_ffff), "CA-04");
            assert_eq!(vm.read(1, PAGE), Ok(PAGE), "CA-04: a guest-physical address");
            assert_eq!(vm.read(2, PAGE), Ok(PAGE), "CA-04, CA-13: both stages Bare");
            assert_eq!(vm.read(3, PAGE), Ok(ELSEWHERE), "CA-04: no VM is not VM 0");
        }
    }
}

#[test]
fn of_addresses_that_a_bare_stage_gave_nothing_is_left() {
    for mut vm in each() {
        vm.set(0, &[1]);
        assert_eq!(vm.read(0, AT), Ok(AT), "S2-01");
        let second = vm.second();
        second.unmap(AT, 2);
        second.map(AT, ELSEWHERE, 1, pte::RW);
        vm.set(0, &[1, second.iohgatp(Gscid::truncate(5))]);
        vm.run(&[inval_ddt(Some(device_id(0)))]);
        assert_eq!(vm.read(0, AT), Ok(ELSEWHERE), "CA-13, SWG-04");
    }
}

#[test]
fn an_entry_in_the_middle_of_a_change_is_used_as_it_was_judged() {
    for mut vm in each() {
        let table = vm.space(0, 1);
        table.map(PAGE, AT, 0, pte::RW);
        let at = table.entry_address(PAGE, 0);
        // Whatever the guest makes of it while it is read: one or the other, and then that one is remembered.
        vm.memory.on_load(at, [ELSEWHERE >> 2 | pte::RW]);
        assert_eq!(vm.read(0, PAGE), Ok(ELSEWHERE), "CA-06");
        table.map(PAGE, AT, 0, pte::RW);
        assert_eq!(vm.read(0, PAGE), Ok(vm.unless_forgotten(ELSEWHERE, AT)), "CA-06");
        vm.run(&[operands(None, Some(1), Some(PAGE)).vma()]);
        assert_eq!(vm.read(0, PAGE), Ok(AT), "CA-06, VMA-16");
    }
}
