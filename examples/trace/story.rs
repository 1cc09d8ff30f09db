//! The story, told line by line.

use std::error::Error;
use std::fmt::Arguments;

use riscv_viommu::backend::{Call, Trace};
use riscv_viommu::mock::guest::{CommandRing, FaultRing, Iofence, Iotinval, inval_ddt, register};
use riscv_viommu::mock::tables::{Directory, FirstStageTable, tc};
use riscv_viommu::mock::{Hardware, Memory, PhysicalDevice, Wires};
use riscv_viommu::{
    Backend, Capabilities, Cause, Config, DeviceId, DevicePolicy, FirstStageMode, Gpa, Gscid, HostCapabilities,
    HostFault, InterruptKinds, Iova, Parts, Pscid, SecondStageMode, TransactionType, VIommu, Width,
};

/// Tells `say` what the guest does and, set off, each call to the host.
pub(crate) fn tell(say: impl Fn(Arguments<'_>)) -> Result<(), Box<dyn Error>> {
    let ram = Memory::new();
    ram.interrupt_page(Gpa::new(0x2800_0000));
    let register = Capabilities::new().with_sv39(true).with_sv39x4(true).with_pas(56);
    let hardware = HostCapabilities::new(register, SecondStageMode::Sv39x4).with_svnapot(true).with_coherent(true);
    let physical = Hardware::new(hardware).vm(Gscid::new(1)?, &ram);
    let host = Parts { memory: ram.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical };

    // This is all there is to it: the host, wrapped.
    let mut iommu: VIommu<_> = VIommu::new(Trace::new(host, |call: &Call<'_>| say(format_args!("    {call}"))));

    say(format_args!("The host starts a vIOMMU:"));
    iommu.start(&Config::nested())?;
    say(format_args!("It gives the guest a device as device_id 0x8, blocked until it has a context:"));
    let id = DeviceId::new(0x8)?;
    let device = iommu.attach(id, PhysicalDevice(0x100), DevicePolicy::default())?.attachment;

    say(format_args!("The guest turns its queues and an interrupt on, which is between it and the vIOMMU."));
    let mut commands = CommandRing::new(&ram, 4, ram.allocate(1));
    let mut faults = FaultRing::new(&ram, 4, ram.allocate(1));
    for (offset, width, value) in [
        (register::CQB, Width::U64, commands.cqb()),
        (register::FQB, Width::U64, faults.fqb()),
        (register::MSI_CFG_TBL, Width::U64, 0x2800_0000),
        (register::MSI_CFG_TBL + 8, Width::U32, 7),
        (register::CQCSR, Width::U32, register::ENABLE),
        (register::FQCSR, Width::U32, register::ENABLE | register::INTERRUPT_ENABLE),
    ] {
        let _idle = iommu.write(offset, width, value);
    }

    say(format_args!("It writes ddtp. The context of its device asks for page requests without ATS:"));
    let directory = Directory::new(&ram, 1, false);
    directory.set(id, &[tc::V | tc::EN_PRI, 0, 0, 0]);
    let _idle = iommu.write(register::DDTP, Width::U64, directory.ddtp());
    say(format_args!("{}", mistake(&iommu)));

    say(format_args!("It gives the device an address space instead, invalidates, and waits for a fence:"));
    let table = FirstStageTable::new(&ram, FirstStageMode::Sv39);
    let pscid = Pscid::new(1)?;
    directory.set(id, &table.context(pscid));
    let tail = commands.push_all([
        inval_ddt(Some(id)),
        Iotinval::ALL.pscid(pscid).vma(),
        Iofence::PLAIN.accesses(true, true).store(ram.allocate(1), 1).encode(),
    ]);
    let _idle = iommu.write(register::CQT, Width::U32, tail);

    say(format_args!("The device reads what is not mapped. The host drains its fault queue and reports that:"));
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(0x5000));
    let _idle = iommu.report_fault(device, &fault);

    say(format_args!("The guest queues a command with a reserved bit:"));
    let [low, high] = Iotinval::ALL.vma();
    let tail = commands.push([low | 1 << 11, high]);
    let _idle = iommu.write(register::CQT, Width::U32, tail);
    say(format_args!("{}", mistake(&iommu)));

    say(format_args!("The VM is torn down:"));
    let _idle = iommu.shutdown();
    say(format_args!("In figures:"));
    for (name, count) in iommu.stats().rows().filter(|(_, count)| *count != 0) {
        say(format_args!("    {name:<20}{count:>4}"));
    }
    Ok(())
}

/// What a host shows who debugs the guest's driver.
fn mistake<B: Backend>(iommu: &VIommu<B>) -> String {
    iommu.last_error().map_or_else(|| "Nothing was refused.".into(), |error| format!("Its mistake: {error}"))
}
