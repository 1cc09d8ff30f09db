//! The device directory, as the guest sees it in its fault queue and the host in its orders.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use riscv_viommu::mock::guest::{CommandRing, FaultRing, Iofence, inval_ddt, register};
use riscv_viommu::mock::tables::tc::{DTF, PDTV, SADE, SBE};
use riscv_viommu::mock::tables::{self, Directory};
use riscv_viommu::mock::{Hardware, Memory, Order, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    Ats, Attachment, Cause, Config, Context, DeviceId, DevicePolicy, FirstStageMode, Gpa, Gscid, HostFault,
    InterruptKinds, Invalidation, Iova, MemoryFault, Parts, Ppn, ProcessDirectoryMode, ProcessId, Processes, Progress,
    Pscid, TransactionType, VIommu, Width,
};

const NVME: PhysicalDevice = PhysicalDevice(0x77);
const NIC: PhysicalDevice = PhysicalDevice(0x88);
const IOVA: Iova = Iova::new(0x1234_5678);
const CQ: Gpa = Gpa::new(0x4000_0000);
const FQ: Gpa = Gpa::new(0x4001_0000);

/// V of a directory entry and of `tc`.
const V: u64 = 1;

/// A guest with its queues on, and a device that is attached while `ddtp` is Off.
struct Guest {
    memory: Memory,
    physical: Physical,
    iommu: VIommu<Parts<Memory, Wires, Physical>>,
    commands: CommandRing,
    faults: FaultRing,
    device: DeviceId,
    attachment: Attachment,
}

impl Guest {
    fn new(config: &Config, device: u32) -> Self {
        Self::in_order(config, device, false)
    }

    fn in_order(config: &Config, device: u32, big_endian: bool) -> Self {
        let memory = Memory::new();
        let physical = Hardware::default().vm(Gscid::new(7).unwrap(), &memory);
        let interrupts = Wires::new(InterruptKinds::Msi);
        let mut iommu = VIommu::new(Parts { memory: memory.clone(), interrupts, physical: physical.clone() });
        iommu.start(config).unwrap();
        let device = DeviceId::new(device).unwrap();
        let attachment = iommu.attach(device, NVME, DevicePolicy::default()).unwrap().attachment;
        let ordered = if big_endian { memory.big_endian() } else { memory.clone() };
        let (commands, faults) = (CommandRing::new(&ordered, 8, CQ), FaultRing::new(&ordered, 7, FQ));
        let mut guest = Self { memory, physical, iommu, commands, faults, device, attachment };
        guest.write(register::FCTL, u64::from(big_endian));
        let (cqb, fqb) = (guest.commands.cqb(), guest.faults.fqb());
        guest.write(register::CQB, cqb);
        guest.write(register::FQB, fqb);
        guest.write(register::CQCSR, register::ENABLE);
        guest.write(register::FQCSR, register::ENABLE);
        guest
    }

    /// A guest with a directory of this shape in force, in which its device has this context.
    fn with_context(shape: (u8, bool), device: u32, context: &[u64]) -> (Self, Directory) {
        let (levels, extended) = shape;
        let mut guest = Self::new(&Config::nested().with_extended_contexts(extended), device);
        let directory = Directory::new(&guest.memory, levels, extended);
        directory.set(guest.device, context);
        guest.set_ddtp(directory.ddtp());
        (guest, directory)
    }

    fn write(&mut self, offset: u64, value: u64) {
        let wide = matches!(offset, register::DDTP | register::CQB | register::FQB);
        let progress = self.iommu.write(offset, if wide { Width::U64 } else { Width::U32 }, value);
        assert_eq!(progress, Progress::Idle);
    }

    fn set_ddtp(&mut self, ddtp: u64) {
        self.write(register::DDTP, ddtp);
        assert_eq!(self.iommu.read(register::DDTP, Width::U64), ddtp);
    }

    /// Commands, rung for and carried out.
    fn ring(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) {
        let tail = self.commands.push_all(commands);
        self.write(register::CQT, tail);
        assert_eq!(self.iommu.read(register::CQH, Width::U32), tail);
    }

    fn context(&self) -> Context {
        self.physical.context(NVME).unwrap()
    }

    /// What the guest is told when hardware refuses an access by the device's context.
    fn told(&mut self, fault: HostFault) -> Vec<[u64; 4]> {
        let _ = self.iommu.report_fault(self.attachment, &fault);
        let records = self.faults.take(self.iommu.read(register::FQT, Width::U32));
        self.write(register::FQH, self.faults.head().into());
        records
    }

    /// The cause it is told for a plain read.
    fn cause(&mut self) -> Option<u64> {
        let records = self.told(refused(TransactionType::UntranslatedRead));
        // CAUSE 11:0, TTYP 39:34, DID 63:40; iotval.
        records.first().map(|&[head, custom, iotval, iotval2]| {
            assert_eq!(head & !0xfff, 2 << 34 | u64::from(self.device.get()) << 40, "FQ-21 to FQ-25, FQ-35");
            assert_eq!([custom, iotval, iotval2], [0, IOVA.get(), 0], "FQ-26 to FQ-29, FQ-53");
            head & 0xfff
        })
    }

    /// Loads of directory entries since they were last taken.
    fn directory_loads(&self) -> Vec<(Gpa, usize)> {
        let loads = self.memory.take_loads();
        loads.into_iter().filter(|(at, _)| at.get() >= 0x8000_0000).collect()
    }
}

fn refused(access: TransactionType) -> HostFault {
    HostFault::new(Cause::TransactionTypeDisallowed, access, IOVA)
}

/// Every number of levels in both formats, with a device that fits.
fn shapes() -> impl Iterator<Item = ((u8, bool), u32)> {
    [(1, 0x2a), (2, 0x1234), (3, 0x12_3456)]
        .into_iter()
        .flat_map(|(levels, device)| [((levels, false), device), ((levels, true), device)])
}

#[test]
fn a_refused_access_is_reported_as_the_guests_own_iommu_would_have() {
    for (shape, device) in shapes() {
        let (levels, extended) = shape;
        let (mut guest, directory) = Guest::with_context(shape, device, &[]);
        let leaf = directory.entry_address(guest.device);
        let above = (1..levels).map(|level| (directory.non_leaf_address(guest.device, level), 1 << 54));
        let entries: Vec<(Gpa, u64)> = above.chain([(leaf, 1 << 12)]).collect();
        for (at, reserved) in entries {
            let good = guest.memory.read(at) | V;
            let broken = |guest: &mut Guest, word: u64, failure: Option<MemoryFault>| {
                guest.memory.write(at, word);
                if let Some(fault) = failure {
                    guest.memory.fail(at, 8, fault);
                }
                let cause = guest.cause();
                assert_eq!(guest.context(), Context::Blocked, "T11");
                guest.memory.clear_failures();
                guest.memory.write(at, good & !u64::from(at == leaf));
                cause
            };
            let rule = format!("DDT-11, DDT-12, FLT-01: {levels} levels, extended {extended}, entry at {at}");
            assert_eq!(broken(&mut guest, good & !V, None), Some(258), "{rule}");
            assert_eq!(broken(&mut guest, good & !V | reserved, None), Some(258), "DDT-13, {rule}");
            assert_eq!(broken(&mut guest, good | reserved, None), Some(259), "{rule}");
            assert_eq!(broken(&mut guest, good, Some(MemoryFault::Access)), Some(257), "{rule}");
            assert_eq!(broken(&mut guest, good, Some(MemoryFault::Corruption)), Some(268), "{rule}");
        }
        // Good now, though no command said so: nothing to tell, and the context is put in force (VC-55).
        guest.memory.write(leaf, V);
        assert_eq!(guest.cause(), None, "VC-55");
        assert_eq!(guest.context(), Context::SecondStageOnly { process_ids: false, ats: Ats::Off });
    }
}

#[test]
fn an_entry_past_the_physical_address_size_is_an_access_fault() {
    let mut guest = Guest::new(&Config::nested().with_pas(36), 0x12_3456);
    let directory = Directory::new(&guest.memory, 3, false);
    directory.set(guest.device, &tables::bare());
    // PPN bit 24 is address bit 36; memory is there, but not for this IOMMU.
    guest.memory.map(Gpa::new(1 << 36), 4096);
    let entry = directory.non_leaf_address(guest.device, 2);
    let good = guest.memory.read(entry);
    guest.memory.write(entry, 1 << 34 | V);
    guest.set_ddtp(directory.ddtp());
    assert_eq!(guest.context(), Context::Blocked);
    assert_eq!(guest.cause(), Some(257), "DDT-14");
    guest.memory.write(entry, good);
    assert_eq!(guest.cause(), None);
}

#[test]
fn a_device_the_directory_has_no_room_for_is_disallowed_unread() {
    let cases = [(1, false, 0x80), (2, false, 0x1_0000), (1, true, 0x40), (2, true, 0x8000), (2, true, 0x80_0000)];
    for (levels, extended, device) in cases {
        let (mut guest, directory) = {
            let mut guest = Guest::new(&Config::nested().with_extended_contexts(extended), device);
            let directory = Directory::new(&guest.memory, levels, extended);
            guest.set_ddtp(directory.ddtp());
            (guest, directory)
        };
        // The low bits of the id would find a good context.
        directory.set(DeviceId::new(0).unwrap(), &tables::bare());
        assert_eq!(guest.cause(), Some(260), "TR-06, DDT-04, DX-01: {levels} levels, {device:#x}");
        assert_eq!(guest.directory_loads(), [], "DDT-16");
        assert_eq!(guest.context(), Context::Blocked);
    }
}

#[test]
fn the_type_of_the_access_is_judged_by_the_context() {
    let (mut guest, directory) = Guest::with_context((1, false), 5, &tables::bare());
    let head = |cause: u64, ttyp: u64| cause | ttyp << 34 | 5 << 40;
    let with_process = refused(TransactionType::UntranslatedWrite).with_process(ProcessId::new(9).unwrap(), true);
    // PID 31:12, PV 32, PRIV 33.
    assert_eq!(guest.told(with_process), [[head(260, 3) | 9 << 12 | 3 << 32, 0, IOVA.get(), 0]], "TR-09, FQ-C260");
    let told = guest.told(refused(TransactionType::TranslatedRead));
    assert_eq!(told, [[head(260, 6), 0, IOVA.get(), 0]], "TR-08, DC-02");
    let told = guest.told(refused(TransactionType::AtsTranslationRequest));
    assert_eq!(told, [[head(260, 8), 0, IOVA.get(), 0]], "TR-08, DC-02");
    directory.set(guest.device, &[V | PDTV]);
    guest.ring([inval_ddt(None)]);
    let lost = [[head(7, 3) | 9 << 12 | 3 << 32, 0, IOVA.get(), 0]];
    assert_eq!(
        guest.told(with_process),
        lost,
        "DC-06, VT-04: PDTV = 1 lets a process_id pass, so the host is to blame"
    );
    guest.write(register::DDTP, 0);
    assert_eq!(guest.cause(), Some(256), "DDT-03: Off");
    guest.write(register::DDTP, 1);
    assert_eq!(guest.told(with_process), lost, "VT-04: Bare looks at no process_id");
    let told = guest.told(refused(TransactionType::TranslatedWrite));
    assert_eq!(told, [[head(260, 7), 0, IOVA.get(), 0]], "TR-03: Bare");
}

#[test]
fn dtf_counts_only_in_a_good_context() {
    let (mut guest, directory) = Guest::with_context((1, false), 5, &[V | DTF]);
    assert_eq!(guest.told(refused(TransactionType::TranslatedRead)), [[0_u64; 4]; 0], "DC-05, FQ-46");
    for (context, cause) in [([V | DTF | 1 << 12], 259), ([DTF], 258)] {
        directory.set(guest.device, &context);
        assert_eq!(guest.cause(), Some(cause), "FQ-47");
    }
}

#[test]
fn hardware_gets_what_the_context_says_and_nothing_else() {
    let root = 0x8_0123;
    let stage = |mode, sade, sbe| Some((mode, root, 0xa_bcde, sade, sbe));
    let cases: [(&str, [u64; 4], Option<Context>, Option<_>); 11] = [
        ("DC-24", [V, 0, 0xabcd_e000, 8 << 60 | root], None, stage(FirstStageMode::Sv39, false, false)),
        ("DC-09", [V | SADE, 0, 0xabcd_e000, 9 << 60 | root], None, stage(FirstStageMode::Sv48, true, false)),
        ("DC-11", [V | SBE, 0, 0xabcd_e000, 10 << 60 | root], None, stage(FirstStageMode::Sv57, false, true)),
        (
            "DC-24",
            [V, 0, 0xabcd_e000, root],
            Some(Context::SecondStageOnly { process_ids: false, ats: Ats::Off }),
            None,
        ),
        ("DC-25", [V | PDTV, 0, 0, root], Some(Context::SecondStageOnly { process_ids: true, ats: Ats::Off }), None),
        // Custom bits and a Bare iohgatp's fields are the guest's own business (DC-16, DC-20, T10).
        (
            "T10",
            [V | 0xff00_0000, 0x0fff_ffff_ffff_ffff, 0xabcd_e000, 8 << 60 | root],
            None,
            stage(FirstStageMode::Sv39, false, false),
        ),
        ("DCK-14", [V, 8 << 60, 0, 8 << 60 | root], Some(Context::Blocked), None),
        (
            "DC-25",
            [V | PDTV, 0, 0, 1 << 60 | root],
            Some(Context::Processes(Processes::new(ProcessDirectoryMode::Pd8, Ppn::truncate(root)))),
            None,
        ),
        ("DCK-08", [V | PDTV, 0, 0, 4 << 60 | root], Some(Context::Blocked), None),
        ("DCK-01", [V, 0, 1 << 40, 8 << 60 | root], Some(Context::Blocked), None),
        ("DCK-02", [V | 2, 0, 0, 8 << 60 | root], Some(Context::Blocked), None),
    ];
    for (rule, context, plain, first_stage) in cases {
        for extended in [false, true] {
            let config = Config::nested().with_big_endian(true).with_extended_contexts(extended);
            let mut guest = Guest::new(&config, 5);
            let directory = Directory::new(&guest.memory, 1, extended);
            directory.set(guest.device, &context);
            guest.set_ddtp(directory.ddtp());
            let found = guest.context();
            if let Some(plain) = plain {
                assert_eq!(found, plain, "{rule}: {context:x?}");
            }
            if let Context::FirstStage(found) = found {
                let found = (found.mode, found.root.get(), found.pscid.get(), found.sade, found.sbe);
                assert_eq!(Some(found), first_stage, "MRG-06, {rule}: {context:x?}");
            } else {
                assert!(first_stage.is_none(), "{rule}: {context:x?} is {found:?}");
            }
        }
    }
}

#[test]
fn a_big_endian_guest_is_read_and_answered_in_its_order() {
    for (levels, extended) in [(1, false), (3, true)] {
        let config = Config::nested().with_big_endian(true).with_extended_contexts(extended);
        let mut guest = Guest::in_order(&config, 0x2a, true);
        let directory = Directory::new(&guest.memory.big_endian(), levels, extended);
        guest.set_ddtp(directory.ddtp());
        assert_eq!(guest.cause(), Some(258), "EDN-01, END-07");
        directory.set(
            guest.device,
            &tables::first_stage(FirstStageMode::Sv39, Gpa::new(0x8765_4000), Pscid::new(3).unwrap()),
        );
        guest.ring([inval_ddt(Some(guest.device)), Iofence::PLAIN.encode()]);
        let Context::FirstStage(found) = guest.context() else { panic!("{:?}", guest.context()) };
        assert_eq!((found.root.get(), found.pscid.get(), found.sbe), (0x8_7654, 3, false), "EDN-01, END-01, END-06");
    }
}

/// The loads that find the context of a device.
fn way(directory: &Directory, (levels, extended): (u8, bool), id: DeviceId) -> Vec<(Gpa, usize)> {
    let above = (1..levels).rev().map(|level| (directory.non_leaf_address(id, level), 1));
    above.chain([(directory.entry_address(id), if extended { 8 } else { 4 })]).collect()
}

#[test]
fn naming_a_device_reads_one_entry_of_each_level_once() {
    for (shape, device) in shapes() {
        let (levels, _) = shape;
        let (mut guest, directory) = Guest::with_context(shape, device, &tables::bare());
        let other = DeviceId::new(1).unwrap();
        directory.set(other, &tables::bare());
        let _ = guest.iommu.attach(other, NIC, DevicePolicy::default()).unwrap();
        guest.ring([Iofence::PLAIN.encode()]);
        let whole = |id| way(&directory, shape, id);
        let _ = guest.memory.take_loads();
        let _ = guest.physical.take_orders();
        guest.ring([inval_ddt(Some(guest.device))]);
        assert_eq!(guest.directory_loads(), whole(guest.device), "DIR-02, VC-50: {levels} levels");
        guest.ring([inval_ddt(None)]);
        assert_eq!(guest.directory_loads(), [whole(guest.device), whole(other)].concat(), "DIR-01, VC-52");
        // An id that no device has: a legal no-op (VC-11, T03).
        guest.ring([inval_ddt(Some(DeviceId::new(2).unwrap()))]);
        assert_eq!(guest.directory_loads(), [], "VC-11");
        assert_eq!(guest.physical.take_orders(), [], "VC-11: nothing changed, and the batch is held back");
        guest.ring([Iofence::PLAIN.encode()]);
        let orders = guest.physical.take_orders();
        let invalidated = orders.into_iter().find_map(|order| match order {
            Order::Invalidate(batch, _) => Some(batch),
            _ => None,
        });
        let devices = [Invalidation::Device(NVME), Invalidation::Device(NIC)];
        assert_eq!(invalidated, Some(devices.to_vec()), "VC-51: named, though not changed");
    }
}

#[test]
fn memory_that_changes_during_the_walk_can_not_split_the_decision() {
    let context = |page: u64| tables::first_stage(FirstStageMode::Sv39, Gpa::new(page << 12), Pscid::new(1).unwrap());
    let (mut guest, directory) = Guest::with_context((2, false), 0x1234, &context(0x8_0000));
    let leaf = directory.entry_address(guest.device);
    let fsc = Gpa::new(leaf.get() + 24);
    // One good version, then one with a reserved mode and one that another tenant's page would be the root of.
    guest.memory.on_load(fsc, [8 << 60 | 0x8_1111, 15 << 60, 8 << 60 | 0x8_2222]);
    let _ = guest.memory.take_loads();
    let mut roots = Vec::new();
    for _ in 0..3 {
        guest.ring([inval_ddt(Some(guest.device)), Iofence::PLAIN.encode()]);
        roots.push(match guest.context() {
            Context::FirstStage(stage) => stage.root.get(),
            _ => 0,
        });
        let whole = guest.directory_loads().into_iter().filter(|&load| load == (leaf, 4)).count();
        assert_eq!(whole, 1, "T08: a context is loaded once");
    }
    assert_eq!(roots, [0x8_1111, 0, 0x8_2222], "T08, DDT-17, MRG-16");
}

#[test]
fn a_device_whose_context_went_bad_is_blocked_before_the_fence() {
    let (mut guest, directory) = Guest::with_context((1, false), 5, &tables::bare());
    let _ = guest.physical.take_orders();
    directory.invalidate(guest.device);
    guest.ring([inval_ddt(Some(guest.device)), Iofence::PLAIN.encode()]);
    let kinds: Vec<&str> = guest.physical.take_orders().iter().map(kind).collect();
    assert_eq!(kinds, ["block", "invalidate", "fence"], "VC-50, T11, MRG-01");
}

fn kind(order: &Order) -> &'static str {
    match order {
        Order::SetContext(NVME, Context::Blocked, _) => "block",
        Order::Invalidate(..) => "invalidate",
        Order::Fence(..) => "fence",
        _ => "other",
    }
}

#[test]
fn a_context_that_became_valid_without_a_command_is_found_at_the_next_doorbell() {
    for (shape, device) in shapes() {
        let (mut guest, directory) = Guest::with_context(shape, device, &[]);
        assert_eq!(guest.context(), Context::Blocked);
        directory.set(guest.device, &tables::bare());
        guest.ring([Iofence::PLAIN.encode()]);
        assert_eq!(guest.context(), Context::SecondStageOnly { process_ids: false, ats: Ats::Off }, "UPD-04, SYNC-09");
    }
}
