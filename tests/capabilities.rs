//! What capabilities mean for the contexts and tables a guest may use: the least that is always there, and what goes
//! with a bit that is 0.
//!
//! Rule IDs are those of the register rules.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a failure is a finding")]

mod common;
mod dma_rig;

use common::Rig;
use dma_rig::{DEVICE, DmaRig, everything};
use riscv_viommu::mock::guest::register::{
    CAPABILITIES, CQCSR, CQH, DDTP, ENABLE, FQCSR, INTERRUPT_ENABLE, IOMMU_QOSID, IPSR, ON,
};
use riscv_viommu::mock::guest::{Iofence, Iotinval};
use riscv_viommu::mock::tables::tc::PDTV;
use riscv_viommu::mock::tables::{Directory, PageTable, ProcessDirectory, pte};
use riscv_viommu::{
    AttachError, Attachment, Capabilities, Config, ConfigError, DeviceId, DevicePolicy, FirstStageMode, Gpa, Gscid,
    Gxl, InterruptKinds, Iova, Pbmt, ProcessId, QosIds, Request, SecondStageMode, Target,
};

const V: u64 = 1;

fn offering(capabilities: Capabilities) -> Config {
    Config::emulated().with_capabilities(capabilities).with_synchronous_dma(true)
}

fn read(device: Attachment, iova: u64) -> Request {
    Request::read(device, Iova::new(iova))
}

#[test]
fn napot_leaves_are_understood_without_any_capability() {
    // N, and PPN[3:0] = 1000b: 64 KiB.
    let napot = |to: u64, flags: u64| to >> 2 | 1 << 63 | 8 << 10 | flags;
    let config = offering(Capabilities::new().with_pas(56).with_sv39(true).with_sv39x4(true));
    let iova = 0x1234_0000;
    // The first stage alone.
    let mut rig = DmaRig::<0>::new(config);
    let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let device = rig.device;
    for page in 0..16 {
        first.set(iova + page * 0x1000, 0, napot(0x5_6780_0000, pte::RW));
    }
    rig.set_context(&[V, 0, 0, first.iosatp()]);
    for page in 0..16 {
        let offset = page * 0x1000 + 0x123;
        assert_eq!(rig.address(read(device, iova + offset)), Ok(0x5_6780_0000 + offset), "REG-CAP-44, PTE-06");
    }
    // Not good in another shape.
    first.set(iova, 0, 0x5_6780_0000 >> 2 | 1 << 63 | 4 << 10 | pte::RW);
    assert_eq!(rig.address(read(device, iova)), Err(13), "REG-CAP-44, PTE-06");
    // The second stage alone.
    let mut rig = DmaRig::<0>::new(config);
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let device = rig.device;
    for page in 0..16 {
        second.set(iova + page * 0x1000, 0, napot(0x5_6780_0000, pte::RW));
    }
    rig.set_context(&[V, second.iohgatp(Gscid::truncate(1)), 0, 0]);
    for page in 0..16 {
        let offset = page * 0x1000 + 0x123;
        assert_eq!(rig.address(read(device, iova + offset)), Ok(0x5_6780_0000 + offset), "REG-CAP-44, PTE-06");
    }
    second.set(iova, 0, 0x5_6780_0000 >> 2 | 1 << 63 | 4 << 10 | pte::RW);
    assert_eq!(rig.address(read(device, iova)), Err(21), "REG-CAP-44, PTE-06");
}

#[test]
fn each_kind_of_process_directory_has_a_bit_of_its_own() {
    // PD8 in bit 38, PD17 in 39, PD20 in 40: MODE 1, 2, 3.
    for bits in 0..8_u64 {
        let capabilities = Capabilities::from_bits(Capabilities::new().with_pas(56).into_bits() | bits << 38);
        let mut rig = DmaRig::<0>::new(offering(capabilities));
        assert_eq!(rig.read8(CAPABILITIES) >> 38 & 7, bits);
        let device = rig.device;
        let process = ProcessId::truncate(1);
        for mode in 0..16_u8 {
            let fsc = match mode {
                1..=3 => {
                    let directory = ProcessDirectory::new(&rig.memory, mode);
                    directory.set(process, [1, 0]);
                    directory.pdtp()
                }
                _ => u64::from(mode) << 60,
            };
            rig.set_context(&[V | PDTV, 0, 0, fsc]);
            let legal = mode == 0 || (mode <= 3 && bits >> (mode - 1) & 1 == 1);
            let expected = if legal { Ok(0x1000) } else { Err(259) };
            let request = read(device, 0x1000).with_process(process, false);
            assert_eq!(rig.address(request), expected, "REG-CAP-53, DCK-08: MODE {mode} with bits {bits:#b}");
        }
    }
}

#[test]
fn sv32_is_offered_where_it_can_be_reached() {
    let everything = everything();
    for (gxl, offered) in [(Gxl::Zero, false), (Gxl::One, true), (Gxl::Writable, true)] {
        let mut rig = DmaRig::<0>::new(everything.with_gxl(gxl));
        // Sv32 is bit 8, Sv32x4 bit 16.
        assert_eq!(rig.read8(CAPABILITIES) & 0x1_0100, if offered { 0x1_0100 } else { 0 }, "REG-CAP-54");
        // SXL in bit 11, Sv32 as MODE 8; fctl.GXL is 0 where it is not fixed.
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv32);
        table.map(0x1234_5000, 0x2_3456_7000, 0, pte::RW);
        rig.set_context(&[V | 1 << 11, 0, 0, table.iosatp()]);
        let request = read(rig.device, 0x1234_5678);
        let expected = if offered { Ok(0x2_3456_7678) } else { Err(259) };
        assert_eq!(rig.address(request), expected, "REG-CAP-54, DCK-11, DCK-20: {gxl:?}");
        // Sv32x4 as MODE 8, of GXL = 1; with GXL = 0 that is Sv39x4.
        let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv32x4);
        second.map(0x1234_5000, 0x2_3456_7000, 0, pte::RW);
        rig.set_context(&[V | if offered { 1 << 11 } else { 0 }, second.iohgatp(Gscid::truncate(1)), 0, 0]);
        let expected = if gxl == Gxl::One { Ok(0x2_3456_7678) } else { Err(21) };
        assert_eq!(rig.address(request), expected, "REG-CAP-54, DCK-13: {gxl:?}");
    }
}

#[test]
fn the_least_there_is_has_every_mandatory_part() {
    let mut rig = DmaRig::<0>::new(offering(Capabilities::new().with_pas(32)));
    let device = rig.device;
    // PAS, and IGS of wires; a version.
    assert_eq!(rig.read8(CAPABILITIES), 32 << 32 | 1 << 28 | 0x10, "REG-CAP-56");
    // Off and Bare.
    rig.write8(DDTP, 0);
    assert_eq!(rig.address(read(device, 0x1234)), Err(256), "REG-CAP-56: Off");
    rig.write8(DDTP, 1);
    assert_eq!(rig.address(read(device, 0x1234)), Ok(0x1234), "REG-CAP-56: Bare");
    // Directories of each size.
    for levels in 1..=3 {
        let id = DeviceId::truncate(0x05 + u32::from(levels));
        let directory = Directory::new(&rig.memory, levels, false);
        directory.set(id, &[V]);
        let attached = rig.iommu.attach_emulated(id, DevicePolicy::default()).expect("there is room");
        rig.write8(DDTP, 0);
        rig.write8(DDTP, directory.ddtp());
        assert_eq!(rig.read8(DDTP), directory.ddtp(), "REG-CAP-56: {levels} levels");
        assert_eq!(rig.address(read(attached, 0x1234)), Ok(0x1234), "REG-CAP-56: {levels} levels");
    }
    // Both queues, and an interrupt.
    let _ = rig.take_faults();
    rig.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
    let _ = rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
    assert_eq!((rig.read(CQH), rig.read(CQCSR)), (2, ON | ENABLE), "REG-CAP-56: command queue");
    rig.write8(DDTP, 0);
    assert_eq!(rig.address(read(device, 0x5678)), Err(256));
    assert_eq!(rig.take_fault()[2], 0x5678, "REG-CAP-56: fault queue");
    assert_eq!(rig.read(IPSR), 2, "REG-CAP-56: an interrupt");
}

#[test]
fn in_bare_mode_requests_carry_the_ids_of_the_iommu() {
    let mut rig = DmaRig::<8>::new(everything().with_qos_bits(12));
    // RCID in 11:0, MCID in 27:16.
    rig.write(IOMMU_QOSID, 0x0abc_0123);
    rig.set_context(&[V, 0, 0x321 << 52 | 0xcba << 40, 0]);
    let request = read(rig.device, 0x5000);
    let qos = |rig: &mut DmaRig<8>| rig.translate(request).expect("both stages are Bare").qos;
    assert_eq!(ids(qos(&mut rig)), (0xcba, 0x321), "QOS-02: those of the context");
    rig.write8(DDTP, 1);
    let translation = rig.translate(request).expect("the mode is Bare");
    assert_eq!(ids(translation.qos), (0x123, 0xabc), "REG-DDTP-17, QOS-01");
    assert_eq!((translation.target, translation.memory_type), (Target::Memory(Gpa::new(0x5000)), Pbmt::Pma));
    rig.write(IOMMU_QOSID, 0x0001_0002);
    assert_eq!(ids(qos(&mut rig)), (2, 1), "REG-DDTP-17: those it has now");
}

fn ids(qos: QosIds) -> (u16, u16) {
    (qos.rcid, qos.mcid)
}

#[test]
fn a_guest_with_a_second_stage_of_its_own_has_no_passthrough_devices() {
    // Sv32x4 is bit 16, Sv39x4 17, Sv48x4 18, Sv57x4 19.
    for config in [Config::nested().with_second_stage(true), Config::nested().with_capabilities(ALL)] {
        let mut rig = Rig::new(InterruptKinds::Wired);
        match rig.iommu.start(&config) {
            Ok(()) => assert_eq!(rig.read8(CAPABILITIES) >> 16 & 0xf, 0, "MRG-14"),
            Err(error) => assert!(matches!(error, ConfigError::EmulatedOnly(_)), "MRG-14: {error}"),
        }
    }
    let mut rig = Rig::start(Config::emulated().with_second_stage(true), InterruptKinds::Wired);
    assert_eq!(rig.read8(CAPABILITIES) >> 17 & 7, 7);
    let attached = rig.iommu.attach(DeviceId::truncate(DEVICE), 7, DevicePolicy::default());
    assert_eq!(attached.err(), Some(AttachError::NotNested), "MRG-14");
}

const ALL: Capabilities = Capabilities::from_bits(u64::MAX).with_pas(56);
