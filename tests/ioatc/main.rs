//! What translation remembers, and what each command has it forget: no less than the command names, and no more.
//!
//! Every test runs with a memory and without. What was not named may be old or new (rule CA-06): with a memory it is old
//! here, which shows that the entry was kept; without one it is new.
//!
//! Rule IDs are those of the rules of translation and of commands.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a failure is a finding"
)]

mod contexts;
#[path = "../dma_rig/mod.rs"]
mod dma_rig;
mod first;
mod requests;
mod second;

use dma_rig::{DmaRig, everything};
use riscv_viommu::mock::Memory;
use riscv_viommu::mock::guest::{Iotinval, register};
use riscv_viommu::mock::tables::{Directory, PageTable, pte};
use riscv_viommu::{
    Ats, AtsCompletion, AtsRequest, Attachment, Cause, Config, DeviceId, DevicePolicy, FirstStageMode, Gscid, Iova,
    Pscid, Request, SecondStageMode, Target, TranslateError, Translation,
};

/// Entries of each kind, where there is a memory; enough for every test but those that want it to be small.
const MANY: usize = 64;

/// A vIOMMU with a memory or without.
trait Side {
    fn attach(&mut self, device: u32) -> Attachment;
    fn run(&mut self, commands: &[[u64; 2]]);
    fn translate(&mut self, request: Request) -> Result<Translation, TranslateError>;
    fn ats(&mut self, request: AtsRequest) -> AtsCompletion;
    fn write8(&mut self, offset: u64, value: u64);
    fn reset(&mut self);
    fn take_fault(&mut self) -> [u64; 4];
}

impl<const CACHE: usize> Side for DmaRig<CACHE> {
    fn attach(&mut self, device: u32) -> Attachment {
        self.iommu
            .attach_emulated(DeviceId::truncate(device), DevicePolicy::default().with_ats(Ats::PageRequests))
            .unwrap()
    }

    fn run(&mut self, commands: &[[u64; 2]]) {
        let _ = DmaRig::run(self, commands.iter().copied());
        assert_eq!(
            DmaRig::read(self, register::CQH),
            DmaRig::read(self, register::CQT),
            "every command is legal, and carried out"
        );
    }

    fn translate(&mut self, request: Request) -> Result<Translation, TranslateError> {
        self.iommu.translate(&request)
    }

    fn ats(&mut self, request: AtsRequest) -> AtsCompletion {
        self.iommu.ats_translate(&request).unwrap()
    }

    fn write8(&mut self, offset: u64, value: u64) {
        DmaRig::write8(self, offset, value);
    }

    fn reset(&mut self) {
        let _ = self.iommu.reset();
        DmaRig::write8(self, register::DDTP, self.directory.ddtp());
    }

    fn take_fault(&mut self) -> [u64; 4] {
        DmaRig::take_fault(self)
    }
}

/// A guest, and devices of its that it numbers from 0 on.
struct Vm {
    side: Box<dyn Side>,
    /// Whether there is a memory.
    remembers: bool,
    memory: Memory,
    directory: Directory,
    devices: Vec<Attachment>,
}

/// The same guest twice: with a memory, and without.
fn each() -> [Vm; 2] {
    each_with(everything())
}

fn each_with(config: Config) -> [Vm; 2] {
    [Vm::new(DmaRig::<MANY>::new(config), true), Vm::new(DmaRig::<0>::new(config), false)]
}

/// A device's number as the guest's id: several are in one table of the directory, some in another.
const fn device_id(device: u32) -> DeviceId {
    DeviceId::truncate(if device < 6 { device } else { device << 6 })
}

impl Vm {
    fn new<const CACHE: usize>(rig: DmaRig<CACHE>, remembers: bool) -> Self {
        let (memory, directory) = (rig.memory.clone(), rig.directory.clone());
        let mut side: Box<dyn Side> = Box::new(rig);
        let devices = (0..8).map(|device| side.attach(device_id(device).get())).collect();
        Self { side, remembers, memory, directory, devices }
    }

    /// Gives a device its context.
    fn set(&self, device: u32, context: &[u64]) {
        self.directory.set(device_id(device), context);
    }

    /// A table of the guest's own, and a device that uses it: without a second stage.
    fn space(&self, device: u32, pscid: u32) -> PageTable {
        let table = PageTable::first_stage(&self.memory, FirstStageMode::Sv39);
        self.set(device, &[1, 0, u64::from(pscid) << 12, table.iosatp()]);
        table
    }

    /// The same under a second stage.
    fn space_in(&self, device: u32, pscid: u32, second: &PageTable, gscid: u32) -> PageTable {
        let table = PageTable::first_stage(&self.memory, FirstStageMode::Sv39);
        let iohgatp = second.iohgatp(Gscid::truncate(gscid));
        self.set(device, &[1, iohgatp, u64::from(pscid) << 12, table.iosatp()]);
        table
    }

    /// A second stage in which memory is where it is.
    fn second(&self) -> PageTable {
        let table = PageTable::second_stage(&self.memory, SecondStageMode::Sv39x4);
        table.map(0x8000_0000, 0x8000_0000, 2, pte::RW | pte::X);
        table
    }

    fn run(&mut self, commands: &[[u64; 2]]) {
        self.side.run(commands);
    }

    fn device(&self, device: u32) -> Attachment {
        self.devices[usize::try_from(device).unwrap()]
    }

    /// Where a read of a device without a process goes, or the code of its cause.
    fn read(&mut self, device: u32, iova: u64) -> Result<u64, u16> {
        self.ask(Request::read(self.device(device), Iova::new(iova)))
    }

    fn write(&mut self, device: u32, iova: u64) -> Result<u64, u16> {
        self.ask(Request::write(self.device(device), Iova::new(iova)))
    }

    fn ask(&mut self, request: Request) -> Result<u64, u16> {
        match self.side.translate(request) {
            Ok(Translation { target: Target::Memory(at) | Target::InterruptFile(at), .. }) => Ok(at.get()),
            Err(TranslateError::Fault(cause)) => {
                self.side.take_fault();
                Err(cause.code())
            }
            other => panic!("{other:?}"),
        }
    }

    /// How often memory is read to answer.
    fn loads(&mut self, request: Request) -> usize {
        let _ = self.memory.take_loads();
        self.ask(request).unwrap();
        self.memory.take_loads().len()
    }

    /// What is told of an entry that changed from `old` to `new` and was not named since.
    fn unless_forgotten<T>(&self, old: T, new: T) -> T {
        if self.remembers { old } else { new }
    }
}

/// `IOTINVAL` of these operands.
fn operands(gscid: Option<u32>, pscid: Option<u32>, address: Option<u64>) -> Iotinval {
    let all = Iotinval::ALL;
    let all = gscid.map_or(all, |gscid| all.gscid(Gscid::truncate(gscid)));
    let all = pscid.map_or(all, |pscid| all.pscid(Pscid::truncate(pscid)));
    address.map_or(all, |address| all.address(Iova::new(address)))
}

const READ_PAGE_FAULT: Result<u64, u16> = Err(Cause::ReadPageFault.code());

#[test]
fn a_memory_spares_the_tables_and_nothing_else() {
    for mut vm in each() {
        let table = vm.space(0, 7);
        table.map(0x1000, 0x5000, 0, pte::RW);
        let request = Request::read(vm.device(0), Iova::new(0x1000));
        // Three entries of the directory, three of the table.
        assert_eq!(vm.loads(request), 6, "CA-01, S1-03");
        let again = vm.unless_forgotten(0, 6);
        assert_eq!(vm.loads(request), again, "CA-01, CA-03");
        // The next page: its entry, in the table that is known.
        table.map(0x2000, 0x6000, 0, pte::RW);
        let next = vm.unless_forgotten(1, 6);
        assert_eq!(vm.loads(Request::read(vm.device(0), Iova::new(0x2000))), next, "CA-01, CA-03");
    }
}

#[test]
fn a_small_memory_forgets_and_is_right_nevertheless() {
    let mut vm = Vm::new(DmaRig::<2>::new(everything()), true);
    for device in 0..3 {
        let table = vm.space(device, device);
        for page in 0..8_u64 {
            table.map(page << 21, (page + 1) << 24 | u64::from(device) << 12, 0, pte::RW);
        }
    }
    for round in 0..3 {
        for page in 0..8_u64 {
            for device in 0..3 {
                let at = (page + 1) << 24 | u64::from(device) << 12;
                assert_eq!(vm.read(device, page << 21), Ok(at), "CA-15: round {round}");
            }
        }
    }
}
