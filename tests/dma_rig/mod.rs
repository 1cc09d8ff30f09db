//! A guest whose devices are all emulated: its memory, its directory, its queues, and one device.

#![allow(dead_code, reason = "each test uses its part of it")]

use riscv_viommu::mock::guest::{CommandRing, FaultRing, register};
use riscv_viommu::mock::tables::Directory;
use riscv_viommu::mock::{Memory, Wires};
use riscv_viommu::{
    Ats, Attachment, Capabilities, Config, DeviceId, DevicePolicy, Gpa, InterruptKinds, Iova, NoPhysical, Parts,
    Progress, Request, Target, TranslateError, Translation, VIommu, Width,
};

/// The guest's id of the device.
pub(crate) const DEVICE: u32 = 0x12_3456;

/// Where the queues are.
const COMMANDS: Gpa = Gpa::new(0x9000_0000);
const FAULTS: Gpa = Gpa::new(0x9100_0000);

/// The vIOMMU; `CACHE` is the number of entries it remembers.
pub(crate) type Emulated<const CACHE: usize> = VIommu<Parts<Memory, Wires, NoPhysical>, 16, 16, CACHE>;

/// Everything that can be offered, with contexts of the extended format.
pub(crate) fn everything() -> Config {
    Config::emulated()
        .with_capabilities(Capabilities::from_bits(u64::MAX).with_pas(56))
        .with_ats(true)
        .with_debug(true)
        .with_synchronous_dma(true)
}

/// What a device can do with an address: its TTYP (rule ACC-03), the bit of a PTE that it needs, and the causes of its
/// access fault, page fault and guest-page fault (rule ACC-04).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) request: fn(Attachment, Iova) -> Request,
    pub(crate) ttyp: u64,
    /// R, W or X.
    pub(crate) needs: u64,
    pub(crate) abort: u16,
    pub(crate) page_fault: u16,
    pub(crate) guest_page_fault: u16,
}

pub(crate) const ACCESSES: [Access; 3] = [READ, WRITE, EXECUTE];
pub(crate) const READ: Access =
    Access { request: Request::read, ttyp: 2, needs: 1 << 1, abort: 5, page_fault: 13, guest_page_fault: 21 };
pub(crate) const WRITE: Access =
    Access { request: Request::write, ttyp: 3, needs: 1 << 2, abort: 7, page_fault: 15, guest_page_fault: 23 };
pub(crate) const EXECUTE: Access =
    Access { request: Request::execute, ttyp: 1, needs: 1 << 3, abort: 1, page_fault: 12, guest_page_fault: 20 };

impl Access {
    pub(crate) fn of<const CACHE: usize>(self, rig: &DmaRig<CACHE>, address: u64) -> Request {
        (self.request)(rig.device, Iova::new(address))
    }
}

/// The first word of a record of the device: CAUSE 11:0, PID 31:12, PV 32, PRIV 33, TTYP 39:34, DID 63:40 (rule FR-01).
/// A process is its number, and whether the request is privileged.
pub(crate) fn head(cause: u16, ttyp: u64, process: Option<(u32, bool)>) -> u64 {
    let process = process.map_or(0, |(pid, privileged)| u64::from(pid) << 12 | 1 << 32 | u64::from(privileged) << 33);
    u64::from(cause) | process | recorded(ttyp, process != 0) << 34 | u64::from(DEVICE) << 40
}

/// The TTYP of a record: a translated read for execution is told apart with a PASID only (rule FQ-38).
pub(crate) fn recorded(ttyp: u64, has_process: bool) -> u64 {
    if ttyp == 5 && !has_process { 6 } else { ttyp }
}

/// The vIOMMU, and handles on what it works with.
#[derive(Debug)]
pub(crate) struct DmaRig<const CACHE: usize = 0> {
    pub(crate) iommu: Emulated<CACHE>,
    pub(crate) memory: Memory,
    pub(crate) directory: Directory,
    pub(crate) commands: CommandRing,
    pub(crate) faults: FaultRing,
    pub(crate) device: Attachment,
}

impl<const CACHE: usize> DmaRig<CACHE> {
    /// A guest that was offered `config` and has a directory of 3 levels, empty but for what the test puts in.
    pub(crate) fn new(config: Config) -> Self {
        Self::in_memory(config, Memory::new())
    }

    pub(crate) fn in_memory(config: Config, memory: Memory) -> Self {
        let parts =
            Parts { memory: memory.clone(), interrupts: Wires::new(InterruptKinds::Wired), physical: NoPhysical };
        let mut iommu = VIommu::new(parts);
        assert_eq!(iommu.start(&config), Ok(()));
        let capabilities = Capabilities::from_bits(iommu.read(0, Width::U64));
        let directory = Directory::new(&memory, 3, capabilities.msi_flat());
        let commands = CommandRing::new(&memory, 8, COMMANDS);
        let faults = FaultRing::new(&memory, 8, FAULTS);
        let policy = DevicePolicy::default().with_ats(if capabilities.ats() { Ats::PageRequests } else { Ats::Off });
        let device = iommu.attach_emulated(DeviceId::truncate(DEVICE), policy).expect("there is room");
        let mut rig = Self { iommu, memory, directory, commands, faults, device };
        rig.switch_on();
        rig.forget_accesses();
        rig
    }

    /// Turns on the queues, which are empty then, and the directory.
    fn switch_on(&mut self) {
        let (cqb, fqb) = (self.commands.cqb(), self.faults.fqb());
        self.write8(register::CQB, cqb);
        self.write(register::CQCSR, register::ENABLE);
        self.write8(register::FQB, fqb);
        self.write(register::FQCSR, register::ENABLE);
        self.write8(register::DDTP, self.directory.ddtp());
    }

    /// Writes `fctl` as a driver does, everything being off meanwhile (rule REG-FCTL-07); some of it may not be offered.
    pub(crate) fn write_fctl(&mut self, fctl: u64) {
        for offset in [register::CQCSR, register::FQCSR, register::DDTP] {
            self.write(offset, 0);
        }
        self.write(register::FCTL, fctl);
        self.switch_on();
        self.forget_accesses();
    }

    /// The same with bits that are offered: BE in 0, GXL in 2 (rules REG-FCTL-01, REG-FCTL-03).
    pub(crate) fn set_fctl(&mut self, fctl: u64) {
        self.write_fctl(fctl);
        assert_eq!(self.read(register::FCTL) & 0b101, fctl, "it is offered, and everything was off");
    }

    pub(crate) fn write(&mut self, offset: u64, value: u64) {
        let _ = self.iommu.write(offset, Width::U32, value);
    }

    pub(crate) fn write8(&mut self, offset: u64, value: u64) {
        let _ = self.iommu.write(offset, Width::U64, value);
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U32)
    }

    pub(crate) fn read8(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U64)
    }

    /// What happened to guest memory so far is not what the test is about.
    pub(crate) fn forget_accesses(&self) {
        let _ = (self.memory.take_events(), self.memory.take_loads());
    }

    /// Gives the device this context; what is not given is 0.
    pub(crate) fn set_context(&self, context: &[u64]) {
        self.directory.set(DeviceId::truncate(DEVICE), context);
    }

    /// The guest queues commands and rings.
    pub(crate) fn run(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> Progress {
        let cqt = self.commands.push_all(commands);
        self.iommu.write(register::CQT, Width::U32, cqt)
    }

    /// Where a request goes.
    pub(crate) fn translate(&mut self, request: Request) -> Result<Translation, TranslateError> {
        self.iommu.translate(&request)
    }

    /// The address in memory a request goes to, or the code of its cause.
    pub(crate) fn address(&mut self, request: Request) -> Result<u64, u16> {
        match self.iommu.translate(&request) {
            Ok(translation) => match translation.target {
                Target::Memory(at) | Target::InterruptFile(at) => Ok(at.get()),
                other => panic!("{other:?} has no address"),
            },
            Err(TranslateError::Fault(cause)) => Err(cause.code()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The records written since they were last taken, four words each.
    pub(crate) fn take_faults(&mut self) -> Vec<[u64; 4]> {
        let fqt = self.iommu.read(register::FQT, Width::U32);
        let records = self.faults.take(fqt);
        self.write(register::FQH, fqt);
        records
    }

    /// The one record written since they were last taken.
    pub(crate) fn take_fault(&mut self) -> [u64; 4] {
        let records = self.take_faults();
        assert_eq!(records.len(), 1, "one record is expected: {records:x?}");
        records[0]
    }
}
