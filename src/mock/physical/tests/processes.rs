//! Process directories: what hardware makes of them, and what it keeps.

use super::*;

fn process(number: u32) -> ProcessId {
    ProcessId::new(number).unwrap()
}

/// A VM whose device has a directory in which process [`PID`] has the first stage, with PSCID 1.
struct Guest {
    vm: Vm,
    directory: ProcessDirectory,
    processes: Processes,
}

const PID: ProcessId = ProcessId::truncate(0x1_2345);

impl Guest {
    fn new(mode: ProcessDirectoryMode, pid: ProcessId) -> Self {
        let mut vm = Vm::new(&Hardware::default(), 1);
        let directory = ProcessDirectory::new(&vm.memory, mode.levels());
        directory.set(pid, vm.table.process_context(Pscid::truncate(1), process_ta::ENS));
        vm.adopt(DEVICE);
        let processes = Processes::new(mode, Ppn::truncate(directory.root().get() >> 12));
        let mut guest = Self { vm, directory, processes };
        guest.switch(processes);
        guest
    }

    fn switch(&mut self, processes: Processes) {
        self.processes = processes;
        self.vm.switch(DEVICE, Context::Processes(processes));
    }

    fn read(&self, pid: Option<ProcessId>) -> Dma {
        self.vm.physical.hardware().dma(DEVICE, pid, IOVA, false)
    }

    /// What a read ends with, and whether that is so without a cache too.
    fn access(&self, pid: ProcessId) -> (Access, bool) {
        let dma = self.read(Some(pid));
        (dma.access, dma.stale)
    }
}

#[test]
fn a_process_is_found_where_the_indices_say() {
    for (mode, pid, too_wide) in [
        (ProcessDirectoryMode::Pd8, 0xff, Some(0x100)),
        (ProcessDirectoryMode::Pd17, 0x1_ffff, Some(0x2_0000)),
        (ProcessDirectoryMode::Pd20, 0xf_ffff, None),
        (ProcessDirectoryMode::Pd20, 0x1_2345, None),
    ] {
        let guest = Guest::new(mode, process(pid));
        assert_eq!(guest.access(process(pid)), (Access::Translated(PAGE), false), "PDT-01, PDT-02");
        let disallowed = Access::Faulted(Cause::TransactionTypeDisallowed);
        if let Some(pid) = too_wide {
            assert_eq!(guest.access(process(pid)), (disallowed, false), "TR-10");
        }
        let supervisor = guest.vm.physical.hardware().supervisor_dma(DEVICE, process(pid), IOVA, false);
        assert_eq!(supervisor.access, Access::Faulted(Cause::ReadPageFault), "S1-11");
    }
}

#[test]
fn a_request_without_a_process_is_that_of_process_0_or_of_none() {
    let mut guest = Guest::new(ProcessDirectoryMode::Pd8, process(0));
    assert_eq!(guest.read(None).access, Access::Translated(Gpa::new(IOVA.get())), "TR-14");
    guest.switch(Processes { dpe: true, ..guest.processes });
    assert_eq!(guest.read(None).access, Access::Translated(PAGE), "DC-10, TR-14");
    guest.vm.table.unmap(IOVA, PageSize::K4);
    guest.vm.flush(Invalidation::FirstStage);
    let _ = guest.read(None);
    let faults = guest.vm.physical.hardware().take_faults();
    assert_eq!(faults.iter().map(|(_, fault)| fault.process).collect::<Vec<_>>(), [None], "TR-01, FR-05");
}

#[test]
fn supervisors_need_leave() {
    for (bits, user, access) in [
        (0, pte::U, Access::Faulted(Cause::TransactionTypeDisallowed)),
        (process_ta::ENS, pte::U, Access::Faulted(Cause::ReadPageFault)),
        (process_ta::ENS | process_ta::SUM, pte::U, Access::Translated(PAGE)),
        (process_ta::ENS, 0, Access::Translated(PAGE)),
    ] {
        let guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
        guest.directory.set(PID, guest.vm.table.process_context(Pscid::truncate(1), bits));
        guest.vm.table.map(IOVA, PAGE, PageSize::K4, pte::RW & !pte::U | user);
        let dma = guest.vm.physical.hardware().supervisor_dma(DEVICE, PID, IOVA, false);
        assert_eq!(dma.access, access, "TR-16, S1-11: {bits:#x}, {user:#x}");
    }
}

/// What a guest does to a directory, and what a device then meets.
type Deed = fn(&Guest);

#[test]
fn each_defect_has_its_cause() {
    let deeds: [(&str, Deed, Cause); 9] = [
        ("PDT-08", |guest| guest.directory.invalidate(PID), Cause::PdtNotValid),
        ("PDT-07", |guest| write(guest, 2, 0), Cause::PdtNotValid),
        ("PDT-04", |guest| write(guest, 1, 1 | 1 << 9), Cause::PdtMisconfigured),
        ("PDT-04", |guest| write(guest, 1, 1 | 1 << 54), Cause::PdtMisconfigured),
        ("PCK-01", |guest| guest.directory.set(PID, [1 | 1 << 3, 0]), Cause::PdtMisconfigured),
        ("PCK-01", |guest| guest.directory.set(PID, [1, 1 << 44]), Cause::PdtMisconfigured),
        ("PCK-02", |guest| guest.directory.set(PID, [1, 7 << 60]), Cause::PdtMisconfigured),
        ("FLT-02", |guest| write(guest, 2, 1 | 0x3f << 48), Cause::PdtLoadAccessFault),
        (
            "FLT-02",
            |guest| {
                let at = guest.directory.entry_address(PID);
                guest.vm.memory.fail(at, 16, crate::error::MemoryFault::Corruption);
            },
            Cause::PdtDataCorruption,
        ),
    ];
    for (rule, deed, cause) in deeds {
        let guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
        deed(&guest);
        assert_eq!(guest.access(PID), (Access::Faulted(cause), false), "{rule}");
        let faults = guest.vm.physical.hardware().take_faults();
        assert_eq!(faults[0].1.process, Some(PID), "{rule}");
    }
}

fn write(guest: &Guest, level: u8, entry: u64) {
    guest.vm.memory.write(guest.directory.non_leaf_address(PID, level), entry);
}

#[test]
fn a_mode_the_iommu_lacks_is_misconfigured() {
    let guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
    let hardware = guest.vm.physical.hardware();
    let host = guest.vm.physical.capabilities();
    let weak = HostCapabilities { capabilities: host.capabilities.with_sv39(false), ..host };
    hardware.set_capabilities_of(DEVICE, weak);
    assert_eq!(guest.access(PID).0, Access::Faulted(Cause::PdtMisconfigured), "PCK-03");
}

#[test]
fn what_was_not_valid_is_not_kept() {
    let guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
    guest.directory.invalidate(PID);
    assert_eq!(guest.access(PID).0, Access::Faulted(Cause::PdtNotValid));
    guest.directory.set(PID, guest.vm.table.process_context(Pscid::truncate(1), 0));
    assert_eq!(guest.access(PID), (Access::Translated(PAGE), false), "CA-02");
}

#[test]
fn a_process_context_stays_until_its_invalidation() {
    for (order, helps) in [
        (Invalidation::Process(DEVICE, PID), true),
        (Invalidation::Device(DEVICE), true),
        (Invalidation::Everything, true),
        (Invalidation::Process(DEVICE, process(0x2345)), false),
        (Invalidation::FirstStage, false),
        (one_page(None, true), false),
    ] {
        let mut guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
        assert_eq!(guest.access(PID), (Access::Translated(PAGE), false));
        guest.directory.invalidate(PID);
        assert!(guest.access(PID).1, "nothing was ordered");
        guest.vm.physical.invalidate(&[order]).unwrap();
        assert!(guest.access(PID).1, "no fence was ordered");
        assert_eq!(guest.vm.fence(), Ok(Completion::Done));
        assert_eq!(guest.access(PID).1, !helps, "DIR-02, DIR-03: {order:?}");
    }
}

#[test]
fn the_way_to_a_process_context_stays_until_the_device_is_named() {
    let mut guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
    assert_eq!(guest.access(PID), (Access::Translated(PAGE), false));
    write(&guest, 2, 0);
    guest.vm.flush(Invalidation::Process(DEVICE, PID));
    assert_eq!(guest.access(PID), (Access::Translated(PAGE), true), "DIR-03, SWG-07");
    guest.vm.flush(Invalidation::Device(DEVICE));
    assert_eq!(guest.access(PID), (Access::Faulted(Cause::PdtNotValid), false), "DIR-02");
}

#[test]
fn processes_have_first_stages_of_their_own() {
    let mut guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
    let other = FirstStageTable::new(&guest.vm.memory, FirstStageMode::Sv48);
    let page = Gpa::new(0x9100_0000);
    other.map(IOVA, page, PageSize::K4, pte::RW);
    guest.directory.set(process(1), other.process_context(Pscid::truncate(2), 0));
    assert_eq!(guest.access(process(1)), (Access::Translated(page), false), "TR-17");
    assert_eq!(guest.access(PID), (Access::Translated(PAGE), false), "CA-03");
    // Under one PSCID, either table may be used.
    guest.directory.set(process(1), other.process_context(Pscid::truncate(1), 0));
    guest.vm.flush(Invalidation::Process(DEVICE, process(1)));
    assert!(guest.access(process(1)).1, "PC-08");
}

#[test]
fn a_directory_may_be_big_endian() {
    let mut guest = Guest::new(ProcessDirectoryMode::Pd20, PID);
    let memory = guest.vm.memory.big_endian();
    let (directory, table) = (ProcessDirectory::new(&memory, 3), FirstStageTable::new(&memory, FirstStageMode::Sv39));
    table.map(IOVA, PAGE, PageSize::K4, pte::RW);
    directory.set(PID, table.process_context(Pscid::truncate(3), 0));
    let root = Ppn::truncate(directory.root().get() >> 12);
    guest.switch(Processes { sbe: true, root, ..guest.processes });
    assert_eq!(guest.access(PID), (Access::Translated(PAGE), false), "EDN-02");
}
