use core::cell::RefCell;
use core::sync::atomic::Ordering;
use std::rc::Rc;
use std::vec::Vec;

use riscv_viommu::cmdq::PageRange;
use riscv_viommu::faultq::FaultHead;
use riscv_viommu::{Iova, Width};

use super::*;
use crate::frames::test_frames;

/// Registers of an IOMMU that does what it is told at once.
#[derive(Clone, Debug, Default)]
struct Model(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    capabilities: Capabilities,
    /// Most levels of a directory.
    levels: u8,
    /// Nothing is carried out.
    stuck: bool,
    registers: Vec<u64>,
    doorbells: usize,
}

impl Model {
    fn new() -> Self {
        let model = Self::default();
        let all = Capabilities::new().with_version(0x10).with_sv39x4(true).with_msi_flat(true).with_igs(Igs::Both);
        *model.0.borrow_mut() = State { capabilities: all, levels: 3, registers: vec![0; 128], ..State::default() };
        model
    }

    fn get(&self, register: Register) -> u64 {
        self.0.borrow().registers[usize::from(register.offset()) / 8] >> (8 * (register.offset() % 8))
            & if register.width() == Width::U32 { 0xffff_ffff } else { u64::MAX }
    }

    fn set(&self, register: Register, value: u64) {
        let word = &mut self.0.borrow_mut().registers[usize::from(register.offset()) / 8];
        *word = match (register.width(), register.offset() % 8) {
            (Width::U32, 0) => *word & !0xffff_ffff | value,
            (Width::U32, _) => *word & 0xffff_ffff | value << 32,
            _ => value,
        };
    }

    /// Writes a record as the hardware would, of a page of its own.
    fn fault(&self, device: PhysicalId) {
        let page = self.get(Register::Fqt) << 12;
        self.fault_at(device, page);
    }

    fn fault_at(&self, device: PhysicalId, iova: u64) {
        let base = QueueBase::from_bits(self.get(Register::Fqb));
        let at = self.get(Register::Fqt);
        // SAFETY: the driver's fault queue.
        let table = unsafe { Table::at(base.ppn(), queue::FAULTS as usize * 4) };
        let head = FaultHead::new().with_cause(13).with_ttyp(2).with_did(device.0);
        table.words()[at as usize * 4].store(head.into_bits(), Ordering::Relaxed);
        table.words()[at as usize * 4 + 2].store(iova, Ordering::Relaxed);
        self.set(Register::Fqt, (at + 1) % u64::from(queue::FAULTS));
    }
}

impl Bus for Model {
    fn load(&self, register: Register) -> u64 {
        match register {
            Register::Capabilities => self.0.borrow().capabilities.into_bits(),
            _ => self.get(register),
        }
    }

    fn store(&self, register: Register, value: u64) {
        match register {
            Register::Cqcsr if value & 1 != 0 => self.set(register, value | 1 << 16),
            Register::Fqcsr if value & 1 != 0 => self.set(register, value & 3 | 1 << 16),
            Register::Ddtp if value & 0xf > u64::from(self.0.borrow().levels) + 1 => {}
            Register::Cqt => {
                self.0.borrow_mut().doorbells += 1;
                self.set(register, value);
                if !self.0.borrow().stuck {
                    self.set(Register::Cqh, value);
                }
            }
            _ => self.set(register, value),
        }
    }
}

const ON_FAULT: Message = Message { address: 0x2800_0000, data: 1 };
const DEVICES: [PhysicalId; 2] = [PhysicalId(DeviceId::truncate(8)), PhysicalId(DeviceId::truncate(0x4010))];
const GSCIDS: [Gscid; 2] = [Gscid::truncate(1), Gscid::truncate(3)];

/// A driver with two VMs, each with a device and a GSCID.
fn started(model: &Model) -> Iommu<Model> {
    let mut iommu = Iommu::start(model.clone(), &mut test_frames(128), ON_FAULT).expect("starts");
    for ((vm, device), gscid) in VmId::ALL.into_iter().zip(DEVICES).zip(GSCIDS) {
        assert!(iommu.owners_mut().grant_device(device, vm) && iommu.owners_mut().grant_gscid(gscid, vm));
    }
    iommu
}

fn page(number: u64) -> Command {
    let range = PageRange::page(Iova::new(number << 12));
    Command::IotinvalVma(Iotinval::ALL.with_gscid(GSCIDS[0]).with_range(range))
}

#[test]
fn what_is_missing_is_named() {
    let model = Model::new();
    model.0.borrow_mut().capabilities.set_msi_flat(false);
    let error = Iommu::start(model, &mut test_frames(128), ON_FAULT).expect_err("lacks something");
    assert_eq!(error, IommuError::Lacks("MSI page tables (MSI_FLAT)"));
}

#[test]
fn process_directories_are_offered_unless_the_second_stage_is_not_under_them() {
    let model = Model::new();
    let all = model.0.borrow().capabilities.with_pd8(true).with_pd17(true).with_pd20(true);
    model.0.borrow_mut().capabilities = all;
    let mut iommu = started(&model);
    assert_eq!(iommu.capabilities(), all);
    iommu.without_process_directories();
    assert_eq!(iommu.capabilities(), all.with_pd8(false).with_pd17(false).with_pd20(false));
}

#[test]
fn the_directory_has_as_many_levels_as_the_iommu_takes() {
    for levels in 1..=3 {
        let model = Model::new();
        model.0.borrow_mut().levels = levels;
        let mut iommu = started(&model);
        assert_eq!(Ddtp::from_bits(model.get(Register::Ddtp)).iommu_mode(), levels + 1);
        let mut frames = test_frames(128);
        assert!(iommu.context(&mut frames, DEVICES[0]).is_some());
        assert_eq!(iommu.context(&mut frames, DEVICES[1]).is_some(), levels > 1, "0x4010 has 15 bits");
    }
}

#[test]
fn every_device_has_a_context_of_its_own_and_keeps_it() {
    let mut iommu = started(&Model::new());
    let mut frames = test_frames(128);
    let ids = [8, 9, 0x40, 0x8000, 0xff_ffff].map(|id| PhysicalId(DeviceId::truncate(id)));
    let mut at = |id| iommu.context(&mut frames, id).expect("frames").as_ptr() as usize;
    let contexts = ids.map(&mut at);
    assert_eq!(ids.map(at), contexts);
    for (index, context) in contexts.iter().enumerate() {
        assert!(contexts[..index].iter().all(|other| other.abs_diff(*context) >= 64));
    }
}

#[test]
fn a_batch_rings_once_and_the_ring_goes_round() {
    let model = Model::new();
    let mut iommu = started(&model);
    let before = model.0.borrow().doorbells;
    for _ in 0..100 {
        iommu.submit(Issuer::Vm(VmId::ALL[0]), (0..10).map(page)).expect("runs");
    }
    assert_eq!(model.0.borrow().doorbells - before, 100);
    let base = QueueBase::from_bits(model.get(Register::Cqb));
    // SAFETY: the driver's command queue.
    let table = unsafe { Table::at(base.ppn(), queue::COMMANDS as usize * 2) };
    let last = (model.get(Register::Cqt) as usize + queue::COMMANDS as usize - 1) % queue::COMMANDS as usize;
    let expected = page(9).encode();
    let found = [0, 1].map(|word| table.words()[2 * last + word].load(Ordering::Relaxed));
    assert_eq!(found, [expected.low, expected.high]);
}

#[test]
fn a_batch_that_does_not_fit_is_known_not_to() {
    let model = Model::new();
    let mut iommu = started(&model);
    model.0.borrow_mut().stuck = true;
    assert!(iommu.has_room_for(255) && !iommu.has_room_for(256));
    iommu.submit(Issuer::Host, (0..255).map(page)).expect("fits");
    assert!(!iommu.has_room_for(1));
}

#[test]
fn a_queue_that_stopped_or_stands_still_ends_the_wait() {
    let model = Model::new();
    let mut iommu = started(&model);
    model.0.borrow_mut().stuck = true;
    let fence = IofenceC::READS_AND_WRITES;
    assert_eq!(iommu.fence(Issuer::Host, fence), Err(IommuError::Stuck(Register::Cqh)));
    let stopped = Cqcsr::new().with_cqen(true).with_cqon(true).with_cmd_ill(true);
    model.set(Register::Cqcsr, stopped.into_bits().into());
    assert_eq!(iommu.fence(Issuer::Host, fence), Err(IommuError::Stopped(stopped)));
}

#[test]
fn a_command_that_names_what_is_not_its_issuers_is_seen() {
    let mut iommu = started(&Model::new());
    let [vm, _] = VmId::ALL;
    let space = |gscid| Iotinval::ALL.with_gscid(gscid);
    let own = [
        Command::IotinvalVma(space(GSCIDS[0])),
        Command::IotinvalGvma(space(GSCIDS[0])),
        Command::IodirInvalDdt(Some(DEVICES[0].0)),
        Command::IofenceC(IofenceC::READS_AND_WRITES),
    ];
    iommu.submit(Issuer::Vm(vm), own.into_iter()).expect("runs");
    assert_eq!(iommu.owners().violations, 0);
    let others = [
        Command::IotinvalVma(space(GSCIDS[1])),
        Command::IotinvalVma(Iotinval::ALL),
        Command::IotinvalGvma(space(GSCIDS[1])),
        Command::IodirInvalDdt(Some(DEVICES[1].0)),
        Command::IodirInvalDdt(None),
        Command::IodirInvalPdt(DEVICES[1].0, riscv_viommu::ProcessId::truncate(0)),
        Command::IofenceC(IofenceC::READS_AND_WRITES.with_store(riscv_viommu::Gpa::new(0), 1)),
    ];
    let sent = iommu.counts.commands;
    for (number, command) in (1..).zip(others) {
        let answer = iommu.submit(Issuer::Vm(vm), core::iter::once(command));
        assert_eq!((answer, iommu.owners().violations), (Err(IommuError::Foreign), number), "{command:?}");
    }
    assert_eq!((iommu.counts.commands, iommu.failure), (sent, Some(IommuError::Foreign)), "none was sent");
    for (device, gscid) in [(DEVICES[1], GSCIDS[0]), (DEVICES[0], GSCIDS[1])] {
        assert_eq!(iommu.check_context(Issuer::Vm(vm), device, gscid), Err(IommuError::Foreign));
    }
    assert_eq!(iommu.check_context(Issuer::Vm(vm), DEVICES[0], GSCIDS[0]), Ok(()));
    iommu.owners_mut().lenient = true;
    assert_eq!(iommu.submit(Issuer::Vm(vm), core::iter::once(others[0])), Ok(()), "the negative control");
}

#[test]
fn what_is_taken_is_not_granted_again() {
    let mut iommu = started(&Model::new());
    let [first, second] = VmId::ALL;
    let owners = iommu.owners_mut();
    assert!(!owners.grant_gscid(GSCIDS[0], second) && !owners.grant_device(DEVICES[0], second));
    assert_eq!(owners.owner_of(DEVICES[0]), Some(first));
    owners.revoke_device(DEVICES[0]);
    assert!(owners.grant_device(DEVICES[0], second));
}

#[test]
fn a_fault_goes_to_the_vm_that_has_the_device() {
    let model = Model::new();
    let mut iommu = started(&model);
    for device in [DEVICES[0], DEVICES[1], PhysicalId(DeviceId::truncate(0x77)), DEVICES[1]] {
        model.fault(device);
    }
    assert_eq!(iommu.on_fault_interrupt(), [true, true]);
    let drained = VmId::ALL.map(|vm| core::iter::from_fn(|| iommu.next_fault(vm)).count());
    assert_eq!((drained, iommu.counts.faults_of_nobody), ([1, 2], 1));
    assert_eq!(model.get(Register::Fqh), model.get(Register::Fqt));
}

#[test]
fn faults_of_one_vm_do_not_take_the_place_of_anothers() {
    let model = Model::new();
    let mut iommu = started(&model);
    for _ in 0..3 {
        (0..WAITING_FAULTS).for_each(|_| model.fault(DEVICES[0]));
        model.fault(DEVICES[1]);
        iommu.on_fault_interrupt();
    }
    let [storm, calm] = VmId::ALL;
    assert_eq!(core::iter::from_fn(|| iommu.next_fault(calm)).count(), 3);
    assert_eq!((iommu.take_lost(calm), iommu.take_lost(storm) as usize), (0, 2 * WAITING_FAULTS));
}

#[test]
fn a_transfer_that_faults_word_by_word_waits_as_one_fault_for_each_page() {
    let model = Model::new();
    let mut iommu = started(&model);
    (0..1024).for_each(|word| model.fault_at(DEVICES[0], 0x1000 + 8 * word));
    iommu.on_fault_interrupt();
    let [vm, _] = VmId::ALL;
    let pages: Vec<_> = core::iter::from_fn(|| iommu.next_fault(vm)).map(|record| record.iotval).collect();
    assert_eq!((pages, iommu.counts.faults_repeated, iommu.take_lost(vm)), (vec![0x1000, 0x2000], 1022, 0));
}

#[test]
fn a_vm_that_fills_the_queue_is_silenced_until_it_is_let_speak() {
    let model = Model::new();
    let mut iommu = started(&model);
    let mut frames = test_frames(64);
    let [storm, calm] = DEVICES.map(|device| iommu.context(&mut frames, device).expect("frames"));
    let dtf = |words: &[AtomicU64; 8]| Tc::from_bits(words[0].load(Ordering::Relaxed)).dtf();
    (0..STORM).for_each(|_| model.fault(DEVICES[0]));
    iommu.drain_faults();
    assert!(!dtf(storm) && !iommu.is_silenced(VmId::ALL[0]), "many, and no storm");
    (0..=STORM).for_each(|_| model.fault(DEVICES[0]));
    iommu.drain_faults();
    assert!(dtf(storm) && !dtf(calm) && iommu.is_silenced(VmId::ALL[0]) && !iommu.is_silenced(VmId::ALL[1]));
    assert!(iommu.take_lost(VmId::ALL[0]) > 0);
    iommu.silence(VmId::ALL[0], false);
    assert!(!dtf(storm) && !iommu.is_silenced(VmId::ALL[0]));
}

#[test]
fn an_overflow_of_the_queue_is_told_to_all() {
    let model = Model::new();
    let mut iommu = started(&model);
    model.set(Register::Fqcsr, Fqcsr::new().with_fqen(true).with_fqon(true).with_fqof(true).into_bits().into());
    assert_eq!(iommu.on_fault_interrupt(), [true, true]);
    assert_eq!(VmId::ALL.map(|vm| iommu.take_lost(vm)), [1, 1]);
}
