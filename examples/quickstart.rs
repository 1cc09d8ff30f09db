//! Ten lines of integration, and the story of one device behind them.
//!
//! `cargo run --example quickstart`
//!
//! A guest is given an NVMe controller. Its driver probes the IOMMU, builds a device directory and a first-stage table
//! in its own memory, and orders the IOMMU to look. What reaches the host is printed as it happens: never a word the
//! guest wrote, always a typed, checked order. RAM and interrupt wires come from the crate's mock; the part a real
//! hypervisor replaces is `MyIommu`.

use riscv_viommu::mock::guest::{CommandRing, FaultRing, Iofence, Iotinval, inval_ddt, register};
use riscv_viommu::mock::tables::{Directory, FirstStageTable, PageSize, pte};
use riscv_viommu::mock::{Memory, Wires};
use riscv_viommu::{
    Applied, Capabilities, Cause, Completion, Config, Context, DeviceId, DevicePolicy, FenceScope, FirstStageMode, Gpa,
    HostCapabilities, HostFault, InterruptKinds, Invalidation, Iova, OrderError, Parts, PhysicalIommu, Pscid,
    SecondStageMode, Ticket, TransactionType, VIommu, Width,
};

/// The host's physical IOMMU, as far as this VM is concerned. A real one programs hardware where this one prints.
struct MyIommu;

impl PhysicalIommu for MyIommu {
    /// How the host names its devices.
    type Device = &'static str;

    fn capabilities(&self) -> HostCapabilities {
        let register = Capabilities::new().with_sv39(true).with_sv48(true).with_sv48x4(true).with_pas(56);
        HostCapabilities::new(register, SecondStageMode::Sv48x4).with_svnapot(true).with_coherent(true)
    }

    fn adopt(&mut self, device: &'static str) -> Result<HostCapabilities, OrderError> {
        println!("  host: adopt {device}");
        Ok(self.capabilities())
    }

    fn set_context(&mut self, device: &'static str, new: &Context) -> Result<Applied, OrderError> {
        println!("  host: {device} := {new:x?}");
        Ok(Applied::Switched)
    }

    fn invalidate(&mut self, orders: &[Invalidation<&'static str>]) -> Result<(), OrderError> {
        println!("  host: invalidate {orders:x?}");
        Ok(())
    }

    fn fence(&mut self, upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
        println!("  host: fence {}", upto.get());
        Ok(Completion::Done)
    }

    fn release(&mut self, device: &'static str) {
        println!("  host: release {device}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The host: guest RAM from 0x8000_0000 on, message-signalled interrupts, the physical IOMMU.
    let ram = Memory::new();
    ram.map(Gpa::new(0x8000_0000), 16 << 20);
    ram.interrupt_page(Gpa::new(0x2800_0000));
    let host = Parts { memory: ram.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical: MyIommu };

    println!("The host gives the guest a vIOMMU and an NVMe controller as device_id 0x8:");
    let mut iommu: VIommu<_> = VIommu::new(host);
    iommu.start(&Config::nested())?;
    let nvme = iommu.attach(DeviceId::new(0x08)?, "nvme0", DevicePolicy::default())?.attachment;

    println!("The guest reads what its IOMMU can do, as a trapped load:");
    let offered = Capabilities::from_bits(iommu.read(register::CAPABILITIES, Width::U64));
    println!(
        "  guest: version {:x}.{:x}, Sv48 {}, {}-bit physical addresses",
        offered.version() >> 4,
        offered.version() & 0xf,
        if offered.sv48() { "yes" } else { "no" },
        offered.pas(),
    );

    println!("It turns on its queues and its interrupt, as trapped stores:");
    let mut commands = CommandRing::new(&ram, 8, ram.allocate(1));
    let mut faults = FaultRing::new(&ram, 7, ram.allocate(1));
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

    println!("It points the IOMMU to an empty device directory; the device stays blocked:");
    let directory = Directory::new(&ram, 3, false);
    let _idle = iommu.write(register::DDTP, Width::U64, directory.ddtp());

    println!("It maps one page, gives the device a context, and says so with three commands and one doorbell:");
    let table = FirstStageTable::new(&ram, FirstStageMode::Sv48);
    let buffer = ram.allocate(1);
    table.map(Iova::new(0x1000), buffer, PageSize::K4, pte::RW);
    let pscid = Pscid::new(1)?;
    directory.set(DeviceId::new(0x08)?, &table.context(pscid));
    let tail = commands.push_all([
        inval_ddt(Some(DeviceId::new(0x08)?)),
        Iotinval::ALL.pscid(pscid).vma(),
        Iofence::PLAIN.accesses(true, true).encode(),
    ]);
    let _idle = iommu.write(register::CQT, Width::U32, tail);
    println!("  guest: cqh is {}, so the fence is complete", iommu.read(register::CQH, Width::U32));

    println!("The device reads a page that is not mapped; the host drains its fault queue and passes it on:");
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(0x5000));
    let _idle = iommu.report_fault(nvme, &fault);
    for record in faults.take(iommu.read(register::FQT, Width::U32)) {
        println!("  guest: interrupted by {:?}", ram.take_posts());
        println!("  guest: cause {}, device_id {:#x}, IOVA {:#x}", record[0] & 0xfff, record[0] >> 40, record[2]);
    }

    println!("The VM is torn down:");
    let progress = iommu.shutdown();
    println!("  host: {progress:?}, health {:?}", iommu.health());
    Ok(())
}
