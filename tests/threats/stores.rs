//! Where memory of the guest is read and written, and what follows when that fails.

use riscv_viommu::mock::Event;
use riscv_viommu::mock::guest::{Iotinval, inval_ddt, register as reg};
use riscv_viommu::{Cause, HostFault, MemoryFault, Post, TransactionType};

use super::*;

/// The vIOMMU's own register page: no memory to [`Memory`], as any MMIO.
const MMIO: Gpa = Gpa::new(0x1001_0000);

/// A page fault at a new address.
fn page_fault(address: u64) -> HostFault {
    HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(address))
}

/// Interrupts of the fault queue go to `at`.
fn interrupts_to(vm: &mut Vm, at: Gpa) {
    vm.write(reg::MSI_CFG_TBL, at.get());
    vm.write(reg::FQCSR, reg::ENABLE | reg::INTERRUPT_ENABLE);
}

#[test]
fn t07_a_command_that_can_not_be_read_is_a_memory_fault() {
    for fault in [MemoryFault::Access, MemoryFault::Corruption] {
        let mut vm = Vm::translating();
        vm.memory.fail(vm.commands.entry(1), 1, fault);
        vm.ring(&[Iotinval::ALL.vma(), Iotinval::ALL.vma(), Iotinval::ALL.vma()]);
        assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (1, reg::ON | reg::ENABLE | reg::MEMORY_FAULT));
        assert_eq!(vm.causes(), [], "FLT-09: no record");
    }
}

#[test]
fn t07_a_directory_that_can_not_be_read_is_a_fault_of_the_device() {
    for (fault, cause) in [(MemoryFault::Access, 257), (MemoryFault::Corruption, 268)] {
        for level in [0, 1, 2] {
            let mut vm = Vm::new();
            let attachment = vm.attach(DEVICE, NVME);
            vm.directory.set(DEVICE, &vm.table.context(PSCID));
            let at = match level {
                0 => vm.directory.entry_address(DEVICE),
                level => vm.directory.non_leaf_address(DEVICE, level),
            };
            vm.memory.fail(at, 8, fault);
            vm.write(reg::DDTP, vm.directory.ddtp());
            assert_eq!(vm.context(), Some(Context::Blocked), "level {level}");
            let _ = vm.iommu.report_fault(attachment, &page_fault(0));
            assert_eq!(vm.causes(), [cause], "level {level}");
        }
    }
}

#[test]
fn t07_no_address_beyond_the_physical_address_size_is_used() {
    let mut vm = Vm::translating();
    // There is memory, but the guest was shown fewer bits.
    let at = Gpa::new(1 << 56);
    vm.memory.map(at, 8);
    vm.ring(&[Iofence::PLAIN.store(at, 1).encode()]);
    assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (0, reg::ON | reg::ENABLE | reg::MEMORY_FAULT));
    assert_eq!(vm.memory.take_events(), []);
}

#[test]
fn t09_guest_memory_changes_only_where_the_guest_asked_for_it() {
    let mut vm = Vm::translating();
    let at = vm.memory.allocate(1);
    let files = Gpa::new(0x2800_0000);
    vm.memory.interrupt_page(files);
    interrupts_to(&mut vm, files);
    let attachment = vm.attach(OTHER, NIC);
    vm.forget();
    vm.directory.set(DEVICE, &vm.table.context(Pscid::truncate(6)));
    vm.ring(&[inval_ddt(None), Iotinval::ALL.vma(), Iofence::PLAIN.store(at, 7).encode()]);
    let _ = vm.iommu.report_fault(attachment, &page_fault(0x1000));
    vm.write(reg::DDTP, 0);
    let _ = vm.iommu.reset();
    let events = vm.memory.take_events();
    assert!(
        matches!(events[..], [
            Event::Post(fence, 7, Post::FenceData),
            Event::Store(record, _),
            Event::Post(file, 0, Post::Interrupt),
        ] if fence == at && record == vm.faults.entry(0) && file == files),
        "{events:x?}"
    );
    // And read where a directory of this shape has entries of the attached devices, not beside them.
    let entries = [DEVICE, OTHER].map(|id| vm.directory.entry_address(id));
    let ways = [DEVICE, OTHER].map(|id| [1, 2].map(|level| vm.directory.non_leaf_address(id, level)));
    let known = |load: &Gpa| {
        entries.contains(load)
            || ways.as_flattened().contains(load)
            || load.get() & !0xfff == vm.commands.entry(0).get()
    };
    let loads = vm.memory.take_loads();
    assert!(loads.iter().all(|(load, _)| known(load)), "{loads:x?}");
}

#[test]
fn t24_a_store_aimed_at_mmio_is_an_access_fault() {
    let mut vm = Vm::translating();
    vm.ring(&[Iofence::PLAIN.store(MMIO, 1).encode()]);
    assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (0, reg::ON | reg::ENABLE | reg::MEMORY_FAULT));
    assert_eq!(vm.memory.take_events(), [], "FLT-09: no record");
}

#[test]
fn t24_a_message_aimed_at_mmio_is_reported_once() {
    let mut vm = Vm::new();
    let attachment = vm.attach(DEVICE, NVME);
    interrupts_to(&mut vm, MMIO);
    let _ = vm.iommu.report_fault(attachment, &page_fault(0));
    // The fault, and one record that its message was lost; none that that record's message was lost.
    let records = vm.records();
    assert_eq!(records.iter().map(|[head, ..]| head & 0xfff).collect::<Vec<_>>(), [256, 273]);
    assert_eq!(records[1], [273, 0, MMIO.get(), 0]);
    assert_eq!(vm.memory.take_posts(), []);
}

#[test]
fn t25_a_message_goes_to_the_guests_address_when_its_mask_lets_it() {
    let mut vm = Vm::new();
    let attachment = vm.attach(DEVICE, NVME);
    let (old, new) = (vm.memory.allocate(1), vm.memory.allocate(1));
    interrupts_to(&mut vm, old);
    let [data, control] = [reg::MSI_CFG_TBL + 8, reg::MSI_CFG_TBL + 12];
    vm.write(data, 1);
    let _ = vm.iommu.report_fault(attachment, &page_fault(0));
    assert_eq!(vm.memory.take_posts(), [(old, 1, Post::Interrupt)]);
    // Masked it waits, and goes out as the entry then says.
    vm.write(control, 1);
    vm.write(reg::IPSR, reg::FIP);
    let _ = vm.iommu.report_fault(attachment, &page_fault(0x1000));
    assert_eq!(vm.memory.take_posts(), []);
    vm.write(reg::MSI_CFG_TBL, new.get());
    vm.write(data, 2);
    vm.write(control, 0);
    assert_eq!(vm.memory.take_posts(), [(new, 2, Post::Interrupt)]);
    // It is a store to memory of the guest, and no order.
    assert_eq!((vm.memory.read(old), vm.memory.read(new)), (1, 2));
    vm.write(control, 1);
    vm.write(control, 0);
    assert_eq!(vm.memory.take_posts(), [], "once");
}

#[test]
fn t42_the_mirror_shows_what_a_read_shows() {
    let config = Config::nested().with_mirror(true);
    let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config);
    let at = vm.memory.allocate(1);
    let files = Gpa::new(0x2800_0000);
    vm.memory.interrupt_page(files);
    let show = |vm: &Vm, step: &str| {
        let mirror = vm.memory.mirror();
        for offset in (0..4096).step_by(4) {
            let shown = u64::from(mirror.get(&offset).copied().unwrap_or_default());
            assert_eq!(shown, vm.iommu.read(offset.into(), Width::U32), "{offset:#x} after {step}");
        }
    };
    show(&vm, "start");
    let attachment = vm.attach(DEVICE, NVME);
    vm.directory.set(DEVICE, &vm.table.context(PSCID));
    vm.physical.set_pending(true);
    vm.write(reg::DDTP, vm.directory.ddtp());
    show(&vm, "ddtp");
    vm.settle();
    show(&vm, "the directory is in force");
    interrupts_to(&mut vm, files);
    vm.write(reg::CQCSR, reg::ENABLE | reg::INTERRUPT_ENABLE);
    vm.write(reg::ICVEC, u64::MAX);
    show(&vm, "setting interrupts up");
    vm.write(reg::ICVEC, 0);
    vm.ring(&[inval_ddt(None), Iofence::PLAIN.store(at, 1).encode(), [0, 0]]);
    show(&vm, "a fence that waits");
    vm.settle();
    show(&vm, "an illegal command");
    vm.forget();
    let _ = vm.iommu.report_fault(attachment, &page_fault(0));
    show(&vm, "a fault");
    // The record, then the register that shows it, then the message.
    let events = vm.memory.take_events();
    let place = |sought: &dyn Fn(&Event) -> bool| events.iter().position(sought).unwrap();
    let record = place(&|event| matches!(event, Event::Store(..)));
    let tail = place(&|event| *event == Event::Publish(reg::FQT.try_into().unwrap(), 1));
    let message = place(&|event| matches!(event, Event::Post(..)));
    assert!(record < tail && tail < message, "{events:x?}");
    let _ = vm.iommu.reset();
    show(&vm, "reset");
    vm.settle();
    show(&vm, "the end");
}

#[test]
fn t42_nothing_is_mirrored_unasked() {
    let mut vm = Vm::translating();
    vm.ring(&[inval_ddt(None), Iofence::PLAIN.encode()]);
    let _ = vm.iommu.reset();
    assert!(vm.memory.mirror().is_empty());
}

#[test]
fn t43_memory_that_can_not_be_written_is_a_memory_fault() {
    let mut vm = Vm::translating();
    let attachment = vm.attach(OTHER, NIC);
    vm.forget();
    let rom = vm.memory.allocate(1);
    vm.memory.write(rom, 0x1234);
    vm.memory.read_only(rom, 4096);
    vm.ring(&[Iofence::PLAIN.store(rom, 1).encode()]);
    assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (0, reg::ON | reg::ENABLE | reg::MEMORY_FAULT));
    assert_eq!(vm.memory.read(rom), 0x1234);
    vm.write(reg::FQCSR, 0);
    vm.write(reg::FQB, rom.get() >> 2 | 2);
    vm.write(reg::FQCSR, reg::ENABLE);
    let _ = vm.iommu.report_fault(attachment, &page_fault(0));
    assert_eq!((vm.read(reg::FQT), vm.read(reg::FQCSR)), (0, reg::ON | reg::ENABLE | reg::MEMORY_FAULT));
    assert_eq!(vm.memory.read(rom), 0x1234);
    assert_eq!(vm.memory.take_events(), []);
}
