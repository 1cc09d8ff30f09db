//! `snapshot` and `restore`: what is in an image, what of it is believed, and in which order devices are driven anew.

#![expect(clippy::unwrap_used, reason = "a script that can not be set up fails")]

mod nesting_rig;

use nesting_rig::{FENCE, IOVA, Rig, id, pscid};
use riscv_viommu::mock::guest::{AtsCommand, Iofence, Iotinval, inval_ddt, register};
use riscv_viommu::mock::tables::tc::EN_ATS;
use riscv_viommu::mock::{Hardware, Memory, Wires};
use riscv_viommu::{
    Ats, AttachError, Capabilities, Cause, Config, DevicePolicy, Gscid, Gxl, Health, HostCapabilities, HostFault,
    InterruptKinds, NoPhysical, OrderError, Parts, PhysicalIommu, Progress, RestoreError, SecondStageMode,
    SnapshotError, TransactionType, VIommu, Width,
};

type Emulated = VIommu<Parts<Memory, Wires, NoPhysical>>;

fn emulated(kinds: InterruptKinds, config: &Config) -> Emulated {
    let parts = Parts { memory: Memory::new(), interrupts: Wires::new(kinds), physical: NoPhysical };
    let mut iommu = VIommu::new(parts);
    iommu.start(config).unwrap();
    iommu
}

fn image_of<const DEVICES: usize, const BATCH: usize>(rig: &mut Rig<DEVICES, BATCH>) -> Vec<u8> {
    let mut image = vec![0; Emulated::SNAPSHOT_BYTES];
    let length = rig.iommu.snapshot(&mut image).unwrap();
    image.truncate(length);
    image
}

fn image(iommu: &mut Emulated) -> Vec<u8> {
    let mut image = vec![0; Emulated::SNAPSHOT_BYTES];
    let length = iommu.snapshot(&mut image).unwrap();
    image.truncate(length);
    image
}

/// What a vIOMMU with `here` says to an image of one with `there`.
fn move_between(there: &Config, here: &Config) -> Result<u64, RestoreError> {
    let image = image(&mut emulated(InterruptKinds::Both, there));
    let mut iommu = emulated(InterruptKinds::Both, here);
    iommu.restore(&image).map(|_| iommu.read(register::CAPABILITIES, Width::U64))
}

#[test]
fn before_the_start_there_is_nothing_to_save() {
    let parts = Parts { memory: Memory::new(), interrupts: Wires::new(InterruptKinds::Msi), physical: NoPhysical };
    let mut iommu: Emulated = VIommu::new(parts);
    assert_eq!(iommu.snapshot(&mut [0; 4096]), Err(SnapshotError::NotStarted));
    assert_eq!(iommu.restore(&[]), Err(RestoreError::NotStarted));
}

#[test]
fn an_image_that_does_not_fit_is_not_written() {
    let mut iommu = emulated(InterruptKinds::Msi, &Config::emulated());
    let mut out = [0xa5; 64];
    assert_eq!(iommu.snapshot(&mut out), Err(SnapshotError::TooSmall { needed: 1112 }));
    assert_eq!(out, [0xa5; 64]);
    assert_eq!(image(&mut iommu).len(), 1112, "the largest possible buffer is large enough");
}

// Literals are those of the table in the documentation of the format.
#[test]
fn an_image_is_laid_out_as_documented() {
    let config = Config::emulated().with_vectors(8).with_reset_to_bare(true).with_counters(5).with_qos_bits(7);
    let mut iommu = emulated(InterruptKinds::Both, &config.with_gxl(Gxl::Writable));
    let _ = iommu.write(register::FQB, Width::U64, 0x2000_0005);
    let image = image(&mut iommu);
    assert_eq!(image[..8], *b"VIOMMU\0\0");
    assert_eq!(image[8..16], [1, 0, 0, 0, 0x58, 4, 0, 0]);
    assert_eq!(image[16..21], [8, 1, 2, 5, 7]);
    assert_eq!(image[21..80], [0; 59]);
    let capabilities = iommu.read(register::CAPABILITIES, Width::U64).to_le_bytes();
    assert_eq!(image[80..88], capabilities);
    assert_eq!(image[80 + 40..80 + 48], 0x2000_0005_u64.to_le_bytes(), "fqb");
}

#[test]
fn what_is_no_image_is_refused() {
    let mut iommu = emulated(InterruptKinds::Msi, &Config::emulated());
    let good = image(&mut iommu);
    let mut changed = |at: usize, value: u8| {
        let mut image = good.clone();
        image[at] = value;
        iommu.restore(&image).unwrap_err()
    };
    assert_eq!(changed(0, b'W'), RestoreError::NotAnImage, "T29");
    assert_eq!(changed(8, 2), RestoreError::Version(2), "T29");
    assert_eq!(changed(12, 0), RestoreError::Length { stated: 1112, found: 1112 }, "T29");
    assert_eq!(changed(25, 1), RestoreError::Length { stated: 1120, found: 1112 }, "T29");
    assert_eq!(changed(27, 1), RestoreError::State("reserved bits are not 0"), "T29");
    // cqt of a queue of two entries; a reserved bit of cqcsr; what lies between registers.
    assert_eq!(changed(80 + 36, 2), RestoreError::Register { offset: 36, value: 2 }, "T29");
    assert_eq!(changed(80 + 72, 4), RestoreError::Register { offset: 72, value: 4 }, "T29");
    assert_eq!(changed(80 + 700, 1), RestoreError::Register { offset: 700, value: 1 }, "T29");
    assert_eq!(iommu.restore(&good), Ok(Progress::Idle));
}

#[test]
fn a_guest_is_promised_what_it_was_promised() {
    let more = Config::emulated().with_second_stage(true).with_debug(true);
    let less = Config::emulated().with_pas(40);
    assert_eq!(move_between(&more, &Config::emulated()), Err(RestoreError::Capabilities(0x800e_0000)), "T18, T29");
    assert_eq!(move_between(&less, &less.with_pas(39)), Err(RestoreError::Promise("capabilities.PAS")), "T18");
    let sees = move_between(&less, &more).unwrap();
    let promised = emulated(InterruptKinds::Both, &less).read(register::CAPABILITIES, Width::U64);
    assert_eq!(sees, promised, "T18: it sees what it saw");
    let base = Config::emulated();
    for (there, name) in [
        (base.with_vectors(8), "the number of interrupt vectors"),
        (base.with_reset_to_bare(true), "the mode after a reset"),
        (base.with_gxl(Gxl::Writable), "fctl.GXL"),
        (base.with_counters(1), "the number of performance counters"),
        (base.with_qos_bits(1), "the width of QoS ids"),
    ] {
        assert_eq!(move_between(&there, &base), Err(RestoreError::Promise(name)), "T29");
    }
    let messages = image(&mut emulated(InterruptKinds::Msi, &base));
    let refused = emulated(InterruptKinds::Wired, &base).restore(&messages);
    assert_eq!(refused, Err(RestoreError::Promise("capabilities.IGS or version")), "T29");
}

#[test]
fn capabilities_that_no_configuration_has_together_are_refused() {
    let config = Config::emulated().with_second_stage(true).with_ats(true).with_synchronous_dma(true);
    let mut iommu = emulated(InterruptKinds::Both, &config);
    let good = image(&mut iommu);
    let promised = Capabilities::from_bits(u64::from_le_bytes(good[80..88].try_into().unwrap()));
    assert!(promised.sv57());
    let mut restore = |promised: Capabilities| {
        let mut image = good.clone();
        image[80..88].copy_from_slice(&promised.into_bits().to_le_bytes());
        iommu.restore(&image).map(|_| ())
    };
    let refused = Err(RestoreError::Promise("capabilities that can not go together"));
    assert_eq!(restore(promised.with_sv48(false)), refused, "REG-CAP-40, T29: Sv57 without Sv48");
    assert_eq!(restore(promised.with_sv57(false).with_sv39(false)), refused, "REG-CAP-40, T29: Sv48 without Sv39");
    let none = promised.with_sv57(false).with_sv48(false).with_sv39(false);
    assert_eq!(restore(none), Ok(()), "REG-CAP-40: less, in order");
}

#[test]
fn what_hardware_does_anyway_can_not_be_hidden_by_an_image() {
    let register = Capabilities::new().with_sv39(true).with_sv39x4(true).with_pas(56);
    let host = |svpbmt| {
        let register = register.with_svpbmt(svpbmt);
        HostCapabilities::new(register, SecondStageMode::Sv39x4).with_svnapot(true).with_coherent(true)
    };
    let plain = image_of(&mut Rig::<16, 16>::with(&Hardware::new(host(false)), 1, &Config::nested()));
    let mut here = Rig::<16, 16>::with(&Hardware::new(host(true)), 1, &Config::nested());
    assert_eq!(here.iommu.restore(&plain), Err(RestoreError::Promise("Svpbmt")), "MRG-12, T18");
}

#[test]
fn devices_are_blocked_invalidated_and_fenced_before_they_are_driven_anew() {
    let mut rig = Rig::new().translating();
    let _ = rig.attach(1);
    let _ = rig.orders();
    let image = image_of(&mut rig);
    // Back to that from something else.
    rig.directory.set(id(0), &rig.b.context(pscid(2)));
    let _ = rig.ddtp(0);
    let _ = rig.orders();
    rig.directory.set(id(0), &rig.a.context(pscid(1)));
    assert_eq!(rig.iommu.restore(&image), Ok(Progress::Idle));
    let orders = ["0=Blocked", "1=Blocked", "inv All", "fence", "0=A/1", "inv D0", "fence"];
    assert_eq!(rig.orders(), orders, "T29");
    assert_eq!(rig.iommu.read(register::DDTP, Width::U64), rig.directory.ddtp(), "the guest's directory");
}

#[test]
fn a_restore_that_fails_leaves_every_device_blocked() {
    let mut rig = Rig::new().translating();
    let mut image = image_of(&mut rig);
    image[0] = 0;
    assert_eq!(rig.iommu.restore(&image), Err(RestoreError::NotAnImage));
    assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence"], "T19");
    assert_eq!(rig.iommu.health(), Health::Degraded, "T19: the failure is sticky");
    // Whatever the guest does: nothing is opened.
    rig.turn_on();
    let _ = rig.enter();
    assert!(rig.fence());
    assert_eq!(rig.context(0), "Blocked", "T19");
    let refused = rig.iommu.attach(id(1), rig.device(1), DevicePolicy::default());
    assert_eq!(refused.map(|_| ()), Err(AttachError::NeedsReset), "T19");
    let _ = rig.iommu.reset();
    assert_eq!(rig.iommu.health(), Health::Good);
    rig.turn_on();
    let _ = rig.enter();
    assert!(rig.fence());
    assert_eq!(rig.context(0), "A/1");
}

#[test]
fn a_guest_whose_hardware_failed_goes_on_where_it_works() {
    let mut rig = Rig::new().translating();
    rig.physical.answer_next_fence(Err(OrderError::Fatal));
    assert!(!rig.fence(), "FEN-01, VC-40: it stays incomplete");
    assert_eq!(rig.iommu.health(), Health::Failed);
    let image = image_of(&mut rig);
    assert_eq!(rig.iommu.restore(&image), Ok(Progress::Idle));
    assert_eq!(rig.iommu.health(), Health::Degraded);
    assert!(rig.passed(), "the fence was carried out");
    assert_eq!(rig.context(0), "A/1");
}

#[test]
fn a_fence_that_waits_is_ordered_again_also_in_a_queue_that_is_going_off() {
    for off in [false, true] {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        let data = rig.memory.allocate(1);
        let _ = rig.ring([FENCE.store(data, 7).encode()]);
        if off {
            let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
        }
        let csr = rig.read(register::CQCSR);
        let head = rig.read(register::CQH);
        let image = image_of(&mut rig);
        assert_eq!(rig.iommu.restore(&image), Ok(Progress::Waiting));
        assert_eq!((rig.read(register::CQCSR), rig.read(register::CQH)), (csr, head), "T15");
        assert_eq!(rig.memory.read_half(data), 0, "T15");
        assert_eq!(rig.complete(), Progress::Idle);
        assert_eq!(rig.memory.read_half(data), 7);
        assert!(rig.passed());
        assert_eq!(rig.read(register::CQCSR) & register::ON == 0, off);
    }
}

#[test]
fn the_guest_goes_on_only_when_every_device_was_driven_anew() {
    let mut rig = Rig::new().translating();
    let image = image_of(&mut rig);
    rig.physical.set_pending(true);
    assert_eq!(rig.iommu.restore(&image), Ok(Progress::Waiting));
    let tail = rig.commands.push(FENCE.encode());
    assert_eq!(rig.iommu.write(register::CQT, Width::U32, tail), Progress::Waiting);
    assert_eq!(rig.orders(), ["0=Blocked", "inv All", "fence.."], "T29: the guest's fence is not among them");
    let _ = rig.complete();
    assert!(rig.passed());
}

#[test]
fn the_last_record_stands_for_others_as_long_as_it_would_have() {
    let mut rig = Rig::new().translating();
    rig.directory.set(id(1), &rig.a.context(pscid(1)));
    let (device, _) = rig.attach(1);
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, IOVA);
    let report = |rig: &mut Rig| {
        let _ = rig.iommu.report_fault(device, &fault);
        rig.read(register::FQT)
    };
    assert_eq!([report(&mut rig), report(&mut rig)], [1, 1], "FQ-07");
    let image = image_of(&mut rig);
    assert_eq!(rig.iommu.restore(&image), Ok(Progress::Idle));
    assert_eq!(report(&mut rig), 1, "FQ-07: the fences of the restore are none of the guest's");
    // A fence after a change that the guest did not ask for ends it; it is under way.
    rig.physical.set_pending(true);
    rig.directory.set(id(0), &rig.b.context(pscid(2)));
    assert_eq!(rig.iommu.resync(id(0)), Progress::Waiting);
    let image = image_of(&mut rig);
    let _ = rig.iommu.restore(&image);
    assert_eq!(rig.complete(), Progress::Idle);
    assert_eq!(report(&mut rig), 2, "FQ-07");
}

#[test]
fn a_record_does_not_stand_for_others_behind_a_fence_that_is_under_way_or_yet_to_come() {
    // Bit 1 of byte 21: the record of bytes 48 to 79 stands for others.
    let standing = |rig: &mut Rig| image_of(rig)[21] & 2 != 0;
    let rig = || {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let (device, _) = rig.attach(1);
        let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, IOVA);
        let _ = rig.iommu.report_fault(device, &fault);
        assert!(standing(&mut rig), "FQ-07");
        rig
    };
    let mut waits = rig();
    waits.physical.set_pending(true);
    let _ = waits.ring([FENCE.encode()]);
    assert!(!standing(&mut waits), "FQ-07: the guest's fence has been ordered");
    let mut busy = rig();
    busy.physical.answer_next_invalidate(Err(OrderError::Busy));
    busy.physical.answer_next_invalidate(Err(OrderError::Busy));
    busy.directory.set(id(0), &busy.b.context(pscid(2)));
    assert_eq!(busy.iommu.resync(id(0)), Progress::Waiting);
    assert!(!standing(&mut busy), "FQ-07: the fence of the change has not been ordered, and will be");
}

#[test]
fn an_image_says_whether_the_fence_of_a_directory_was_ordered() {
    // Bit 6 of byte 21.
    let ordered = |rig: &mut Rig| image_of(rig)[21] & 1 << 6 != 0;
    let mut rig = Rig::new().translating();
    assert!(!ordered(&mut rig));
    rig.physical.set_pending(true);
    assert_eq!(rig.ddtp(nesting_rig::OFF), Progress::Waiting);
    assert!(ordered(&mut rig), "REG-DDTP-12");
    let mut rig = Rig::new().translating();
    for _ in 0..4 {
        rig.physical.answer_next_set_context(Err(OrderError::Busy));
    }
    assert_eq!(rig.ddtp(nesting_rig::OFF), Progress::Waiting);
    assert!(!ordered(&mut rig), "REG-DDTP-12: the device is not blocked yet");
}

#[test]
fn the_guests_invalidations_go_out_as_they_would_have() {
    for clean in [false, true] {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(0), &[0; 4]);
        let _ = rig.ring([inval_ddt(Some(id(0)))]);
        assert!(!clean || rig.fence(), "after a fence hardware that translates for no device is clean");
        let image = image_of(&mut rig);
        assert_eq!(rig.iommu.restore(&image), Ok(Progress::Idle));
        let _ = rig.orders();
        let _ = rig.ring([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
        let orders: &[&str] = if clean { &["fence none"] } else { &["inv FS", "fence none"] };
        assert_eq!(rig.orders(), orders, "T35");
    }
}

#[test]
fn a_timeout_that_no_fence_has_told_of_is_told_after_a_restore() {
    let mut rig = Rig::new().translating();
    let mut image = image_of(&mut rig);
    image[21] |= 1 << 3;
    assert_eq!(rig.iommu.restore(&image), Ok(Progress::Idle));
    assert!(!rig.fence());
    assert!(rig.read(register::CQCSR) & register::CMD_TO != 0, "FEN-07");
}

#[test]
fn a_device_that_leaves_while_it_is_driven_anew_takes_its_requests_along() {
    let mut host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
    host.capabilities = host.capabilities.with_ats(true).with_t2gpa(true);
    let mut rig: Rig = Rig::on(host, &Config::nested().with_ats(true));
    let [tc, iohgatp, ta, fsc] = rig.a.context(pscid(1));
    for n in 0..2 {
        rig.directory.set(id(n), &[tc | EN_ATS, iohgatp, ta, fsc]);
    }
    let _ = rig.enter();
    for n in 0..2 {
        let _ = rig.attach_with(n, DevicePolicy::default().with_ats(Ats::Translations));
    }
    assert!(rig.fence());
    let _ = rig.ring([AtsCommand::to(8).inval(0x1000), AtsCommand::to(8).inval(0x2000)]);
    let image = image_of(&mut rig);
    rig.physical.set_pending(true);
    assert_eq!(rig.iommu.restore(&image), Ok(Progress::Waiting));
    let _ = rig.iommu.detach(id(0));
    rig.physical.set_pending(false);
    for _ in 0..6 {
        let _ = rig.complete();
    }
    let _ = rig.ring([AtsCommand::to(9).inval(0x1000), FENCE.encode()]);
    assert!(rig.passed(), "T29, T41: there is room for requests to others");
}

#[test]
fn requests_to_devices_are_those_of_devices_that_are_there() {
    let config = Config::emulated().with_ats(true).with_synchronous_dma(true);
    let mut iommu = emulated(InterruptKinds::Msi, &config);
    let requests = |iommu: &mut Emulated, requests: &[[u8; 8]]| {
        let mut image = image(iommu);
        image[25] = u8::try_from(requests.len()).unwrap();
        image.extend(requests.as_flattened());
        let length = u32::try_from(image.len()).unwrap();
        image[12..16].copy_from_slice(&length.to_le_bytes());
        iommu.restore(&image)
    };
    // Device 8, ITag, taken, completions seen.
    let [taken, waiting] = [[8, 0, 0, 0, 3, 1, 0, 0], [8, 0, 0, 0, 3, 0, 0, 0]];
    assert_eq!(requests(&mut iommu, &[taken]), Err(RestoreError::NotAttached { device_id: 8 }), "T29");
    let _ = iommu.attach_emulated(id(0), DevicePolicy::default().with_ats(Ats::Translations)).unwrap();
    let wrong = RestoreError::State("an ATS message or request that can not be");
    assert_eq!(requests(&mut iommu, &[waiting]), Err(wrong), "T29: its message is not there");
    assert_eq!(requests(&mut iommu, &[taken, taken]), Err(wrong), "T29: two of one number");
    let [mut second, mut third] = [taken; 2];
    (second[4], third[4]) = (4, 5);
    assert_eq!(requests(&mut iommu, &[taken, second, third]), Err(RestoreError::Capacity("ITAGS")), "T29");
    assert_eq!(requests(&mut iommu, &[taken, second]), Ok(Progress::Idle));
}
