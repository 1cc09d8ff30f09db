//! A test for each threat that the crate must close, named after it. `docs/mutations.md` lists for each the change of
//! the crate that its test catches; `.ci/mutations` tries them.
//!
//! All of T01 to T45 are here. `translation` is about emulated devices; T07, T08 and T16 of their walks are also in
//! `hostile_tables.rs`, T34 and T38 of the devices in `dma_api.rs`, T29 by random histories in `snapshot_twin`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a helper that can not set its test up fails it"
)]

mod commands;
mod contexts;
mod devices;
mod faults;
mod host_memory;
mod hostile;
mod migration;
mod offers;
mod orders;
mod stores;
mod translation;

#[path = "../dma_rig/mod.rs"]
mod dma_rig;

use proptest::test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner};
use riscv_viommu::mock::guest::{CommandRing, FaultRing, Iofence, PageRequestRing, register as reg};
use riscv_viommu::mock::tables::{Directory, FirstStageTable, PageSize, ProcessDirectory, pte};
use riscv_viommu::mock::{Dma, Hardware, Memory, Order, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    Ats, Attachment, Config, Context, DeviceId, DevicePolicy, FirstStage, FirstStageMode, Gpa, Gscid, InterruptKinds,
    Invalidation, Iova, Parts, ProcessId, Progress, Pscid, VIommu, Width,
};

/// The guest's ids of its devices.
const DEVICE: DeviceId = DeviceId::truncate(0x8);
const OTHER: DeviceId = DeviceId::truncate(0x9);

/// The host's ids of the same.
const NVME: PhysicalDevice = PhysicalDevice(0x41);
const NIC: PhysicalDevice = PhysicalDevice(0x42);

/// A page that the guest's table maps to [`BUFFER`], for [`PSCID`].
const IOVA: Iova = Iova::new(0x4020_1000);
const BUFFER: Gpa = Gpa::new(0x9000_0000);
const PSCID: Pscid = Pscid::truncate(5);

/// A process of [`Vm::with_processes`] whose table is the same.
const PROCESS: ProcessId = ProcessId::truncate(3);

type Host = Parts<Memory, Wires, Physical>;

/// A guest and its host.
struct Vm {
    memory: Memory,
    wires: Wires,
    hardware: Hardware,
    physical: Physical,
    iommu: VIommu<Host>,
    commands: CommandRing,
    faults: FaultRing,
    requests: PageRequestRing,
    directory: Directory,
    table: FirstStageTable,
}

impl Vm {
    /// Both queues are on, there is no device, and the IOMMU is Off.
    fn new() -> Self {
        Self::of(&Hardware::default(), 1, InterruptKinds::Both, &Config::nested())
    }

    fn of(hardware: &Hardware, gscid: u32, kinds: InterruptKinds, config: &Config) -> Self {
        let memory = Memory::new();
        let extended = *config == config.with_extended_contexts(true);
        let directory = Directory::new(&memory, 3, extended);
        let table = FirstStageTable::new(&memory, FirstStageMode::Sv48);
        table.map(IOVA, BUFFER, PageSize::K4, pte::RW);
        let commands = CommandRing::new(&memory, 8, memory.allocate(1));
        let faults = FaultRing::new(&memory, 3, memory.allocate(1));
        let requests = PageRequestRing::new(&memory, 3, memory.allocate(1));
        let wires = Wires::new(kinds).logging_to(&memory);
        let physical = hardware.vm(Gscid::new(gscid).unwrap(), &memory);
        let host = Parts { memory: memory.clone(), interrupts: wires.clone(), physical: physical.clone() };
        let mut iommu = VIommu::new(host);
        iommu.start(config).unwrap();
        let hardware = hardware.clone();
        let mut vm = Self { memory, wires, hardware, physical, iommu, commands, faults, requests, directory, table };
        vm.turn_queues_on();
        vm
    }

    /// The same guest on another host, where [`DEVICE`] is another host device with all of ATS: its memory is there,
    /// its vIOMMU is new.
    fn elsewhere(&self, hardware: &Hardware, config: &Config) -> Self {
        let Self { memory, wires: _, hardware: _, physical: _, iommu: _, commands, faults, requests, directory, table } =
            self;
        let wires = Wires::new(InterruptKinds::Both).logging_to(memory);
        let physical = hardware.vm(Gscid::new(7).unwrap(), memory);
        let host = Parts { memory: memory.clone(), interrupts: wires.clone(), physical: physical.clone() };
        let mut iommu = VIommu::new(host);
        iommu.start(config).unwrap();
        let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
        let _ = iommu.attach(DEVICE, NIC, policy).unwrap();
        let (commands, faults, requests) = (commands.clone(), faults.clone(), requests.clone());
        let (memory, directory, table) = (memory.clone(), directory.clone(), table.clone());
        let hardware = hardware.clone();
        let vm = Self { memory, wires, hardware, physical, iommu, commands, faults, requests, directory, table };
        vm.forget();
        vm
    }

    /// The vIOMMU as bytes.
    fn image(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; <VIommu<Host>>::SNAPSHOT_BYTES];
        let length = self.iommu.snapshot(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    /// [`DEVICE`] is attached and translates; what that took is forgotten.
    fn translating() -> Self {
        Self::new().translate()
    }

    fn translate(self) -> Self {
        let vm = self.translate_as(NVME);
        assert_eq!(vm.stage(), Some(allowed(&vm.table.context(PSCID))));
        vm
    }

    /// [`DEVICE`] translates through a process directory, with these bits of `tc`, and may do all of ATS.
    fn with_processes(hardware: &Hardware, gscid: u32, device: PhysicalDevice, bits: u64) -> (Self, ProcessDirectory) {
        let config = Config::nested().with_ats(true);
        let mut vm = Self::of(hardware, gscid, InterruptKinds::Both, &config);
        let processes = ProcessDirectory::new(&vm.memory, 2);
        let [_, _, _, fsc] = vm.table.context(PSCID);
        processes.set(PROCESS, [1 | u64::from(PSCID.get()) << 12, fsc]);
        vm.directory.set(DEVICE, &processes.context(bits));
        vm.write(reg::DDTP, vm.directory.ddtp());
        vm.attach_with(DEVICE, device, Ats::PageRequests);
        vm.ring(&[Iofence::PLAIN.encode()]);
        vm.forget();
        (vm, processes)
    }

    /// The same with this host device.
    fn translate_as(mut self, device: PhysicalDevice) -> Self {
        self.directory.set(DEVICE, &self.table.context(PSCID));
        self.write(reg::DDTP, self.directory.ddtp());
        self.attach(DEVICE, device);
        self.ring(&[Iofence::PLAIN.encode()]);
        self.write(reg::CQCSR, 0);
        self.turn_queues_on();
        self.forget();
        self
    }

    fn turn_queues_on(&mut self) {
        let (cqb, fqb) = (self.commands.cqb(), self.faults.fqb());
        self.write(reg::CQB, cqb);
        self.write(reg::FQB, fqb);
        self.write(reg::CQCSR, reg::ENABLE);
        self.write(reg::FQCSR, reg::ENABLE);
        let pqb = self.requests.pqb();
        self.write(reg::PQB, pqb);
        self.write(reg::PQCSR, reg::ENABLE);
    }

    fn attach(&mut self, id: DeviceId, device: PhysicalDevice) -> Attachment {
        self.attach_with(id, device, Ats::Off)
    }

    fn attach_with(&mut self, id: DeviceId, device: PhysicalDevice, ats: Ats) -> Attachment {
        self.iommu.attach(id, device, DevicePolicy::default().with_ats(ats)).unwrap().attachment
    }

    /// A store of the guest, as wide as the register.
    fn write(&mut self, offset: u64, value: u64) {
        let _ = self.iommu.write(offset, width(offset), value);
    }

    /// A load of the guest, as wide as the register.
    fn read(&self, offset: u64) -> u64 {
        self.iommu.read(offset, width(offset))
    }

    /// Commands and one doorbell.
    fn ring(&mut self, commands: &[[u64; 2]]) {
        let tail = self.commands.push_all(commands.iter().copied());
        self.write(reg::CQT, tail);
    }

    fn progress(&self) -> Progress {
        self.iommu.progress()
    }

    /// Lets the host finish what it has begun, until nothing is left.
    fn settle(&mut self) {
        for _ in 0..100 {
            for ticket in self.physical.complete_all() {
                let _ = self.iommu.fence_done(ticket, self.physical.outcome(ticket));
            }
            if self.iommu.run() == Progress::Idle {
                return;
            }
        }
        panic!("work is left: {:?}", self.physical.take_orders());
    }

    /// The records the guest finds in its fault queue, which it takes out.
    fn records(&mut self) -> Vec<[u64; 4]> {
        let records = self.faults.take(self.read(reg::FQT));
        self.write(reg::FQH, self.faults.head().into());
        records
    }

    /// The page requests the guest finds in its queue, which it takes out.
    fn requests(&mut self) -> Vec<[u64; 2]> {
        let records = self.requests.take(self.read(reg::PQT));
        self.write(reg::PQH, self.requests.head().into());
        records
    }

    /// Takes the causes of the records.
    fn causes(&mut self) -> Vec<u64> {
        self.records().iter().map(|[head, ..]| head & 0xfff).collect()
    }

    /// The context that hardware has for [`DEVICE`].
    fn context(&self) -> Option<Context> {
        self.physical.context(NVME)
    }

    /// The first stage that hardware has for [`DEVICE`].
    fn stage(&self) -> Option<Stage> {
        match self.context()? {
            Context::FirstStage(FirstStage { mode, root, pscid, sade, sbe, .. }) => {
                Some((mode.encoding(), root.get(), pscid.get(), sade, sbe))
            }
            _ => None,
        }
    }

    /// [`DEVICE`] reads at [`IOVA`].
    fn dma(&self) -> Dma {
        self.hardware.dma(NVME, None, IOVA, false)
    }

    fn orders(&self) -> Vec<Order> {
        self.physical.take_orders()
    }

    /// Takes orders, loads and events.
    fn forget(&self) {
        drop((self.orders(), self.memory.take_loads(), self.memory.take_events(), self.wires.take_changes()));
    }
}

/// Width of the register at `offset`.
fn width(offset: u64) -> Width {
    match offset {
        reg::CAPABILITIES | reg::DDTP | reg::CQB | reg::FQB | reg::PQB | reg::ICVEC => Width::U64,
        768..1024 if offset.is_multiple_of(16) => Width::U64,
        _ => Width::U32,
    }
}

/// MODE, root, PSCID, SADE and SBE.
type Stage = (u8, u64, u32, bool, bool);

/// What may reach hardware of the words of a device context with a first stage (rules MRG-06, DC-09, DC-11, DC-21,
/// DC-24).
fn allowed(words: &[u64]) -> Stage {
    let [tc, _, ta, fsc, ..] = *words else { panic!("a context has at least four words") };
    let field = |word: u64, shift: u32, bits: u32| word >> shift & !(u64::MAX << bits);
    let (mode, pscid) = (field(fsc, 60, 4), field(ta, 12, 20));
    (mode.try_into().unwrap(), field(fsc, 0, 44), pscid.try_into().unwrap(), tc & 0x100 != 0, tc & 0x400 != 0)
}

/// The invalidations among the orders that were carried out.
fn invalidations(orders: &[Order]) -> Vec<Invalidation<PhysicalDevice>> {
    let carried_out = |order: &Order| match order {
        Order::Invalidate(batch, Ok(())) => batch.clone(),
        _ => Vec::new(),
    };
    orders.iter().flat_map(carried_out).collect()
}

/// The same random cases in every run, so that a test that turned red stays so.
fn runner(cases: u32) -> TestRunner {
    let config = Runs { cases, failure_persistence: None, ..Runs::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}
