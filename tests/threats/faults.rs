//! What the host reports of a device, and what the guest is shown of it.

use riscv_viommu::mock::guest::register as reg;
use riscv_viommu::{Cause, FaultRecord, HostFault, ProcessId, Quirks, TransactionType};
use zerocopy::transmute;

use super::*;

/// Faults of the guest's own making, shown as they are (rule VT-03).
const GUESTS: [u16; 13] = [1, 4, 5, 6, 7, 12, 13, 15, 265, 266, 267, 269, 274];

/// Faults of the host's second stage and MSI tables (rules VT-05, VT-06).
const HOSTS: [u16; 9] = [20, 21, 23, 261, 262, 263, 264, 270, 271];

/// A record of the physical fault queue, with everything set that the guest must not see.
fn physical(cause: u16, ttyp: u8) -> FaultRecord {
    let physical_id = u64::from(NVME.0) << 40;
    transmute!([physical_id | u64::from(ttyp) << 34 | u64::from(cause), u64::MAX, 0x1000_u64, 0x8765_4321_u64])
}

#[test]
fn t22_faults_are_translated_back_or_rewritten() {
    for cause in (0..4096).filter(|&code| Cause::decode(code).is_some()) {
        for (ttyp, access_fault) in [(1, 1), (2, 5), (3, 7), (8, 5)] {
            let mut vm = Vm::new();
            vm.directory.set(DEVICE, &vm.table.context(PSCID));
            vm.write(reg::DDTP, vm.directory.ddtp());
            let attachment = vm.attach(DEVICE, NVME);
            if let Some(fault) = HostFault::from_record(&physical(cause, ttyp), Quirks::default()) {
                let _ = vm.iommu.report_fault(attachment, &fault);
            }
            let shown = match cause {
                _ if GUESTS.contains(&cause) => Some(cause),
                _ if HOSTS.contains(&cause) => Some(access_fault),
                // The host's alone (rule VT-02).
                256 | 272 | 273 => None,
                // Refused by the host's context: what the guest's own context makes of it, which has no ATS (VT-04).
                _ if ttyp == 8 => Some(260),
                _ => Some(access_fault),
            };
            let head = |shown| u64::from(DEVICE.get()) << 40 | u64::from(ttyp) << 34 | u64::from(shown);
            let expected: Vec<_> = shown.into_iter().map(|shown: u16| [head(shown), 0, 0x1000, 0]).collect();
            assert_eq!(vm.records(), expected, "cause {cause}, TTYP {ttyp}");
        }
    }
}

#[test]
fn t22_a_storm_of_faults_is_coalesced_or_ends_at_the_end_of_the_queue() {
    let mut vm = Vm::translating();
    let attachment = vm.attach(OTHER, NIC);
    let (files, posts) = (Gpa::new(0x2800_0000), reg::ENABLE | reg::INTERRUPT_ENABLE);
    vm.memory.interrupt_page(files);
    vm.write(reg::MSI_CFG_TBL, files.get());
    vm.write(reg::FQCSR, posts);
    let fault = |address| HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(address));
    for offset in 0..1000 {
        let _ = vm.iommu.report_fault(attachment, &fault(offset));
    }
    assert_eq!((vm.read(reg::FQT), vm.iommu.stats().faults_coalesced), (1, 999), "one page, one record");
    for page in 1..1000 {
        let _ = vm.iommu.report_fault(attachment, &fault(page << 12));
    }
    assert_eq!((vm.read(reg::FQT), vm.read(reg::FQCSR)), (7, reg::ON | reg::FQOF | posts));
    assert_eq!(vm.memory.take_posts().len(), 1, "the interrupt is pending from the first on");
    // Once the guest has made room and says so, they go on.
    vm.records();
    vm.write(reg::FQCSR, reg::FQOF | posts);
    let _ = vm.iommu.report_fault(attachment, &fault(0));
    assert_eq!(vm.causes().len(), 1);
}

#[test]
fn t34_an_event_of_an_earlier_attachment_is_dropped() {
    let mut vm = Vm::translating();
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, IOVA)
        .with_process(ProcessId::truncate(1), true);
    let first = vm.attach(OTHER, NIC);
    vm.physical.set_pending(true);
    let _ = vm.iommu.detach(OTHER);
    let _ = vm.iommu.report_fault(first, &fault);
    assert_eq!((vm.causes(), vm.iommu.stats().stale_events), (vec![], 1), "it is on its way out");
    vm.physical.set_pending(false);
    vm.settle();
    let second = vm.attach(OTHER, PhysicalDevice(0x43));
    let _ = vm.iommu.report_fault(first, &fault);
    assert_eq!((vm.causes(), vm.iommu.stats().stale_events), (vec![], 2), "it is another device's now");
    let _ = vm.iommu.report_fault(second, &fault);
    assert_eq!(vm.causes().len(), 1);
}
