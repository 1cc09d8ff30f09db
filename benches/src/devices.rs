//! The device directory, and what concerns all devices.

use std::hint::black_box;

use riscv_viommu::mock::guest::{inval_ddt, register};
use riscv_viommu::{Cause, HostFault, Iova, Progress, TransactionType, VIommu, Width};

use crate::commands::{self, doorbell};
use crate::guest::{FAULTS, Guest, device};
use crate::host::{Host, NoOp};
use crate::operation::{Operation, operation};

/// One doorbell for invalidations of one device's context, which has not changed.
pub fn invalidate_context(levels: u8, count: usize) -> Box<dyn Operation> {
    let command = inval_ddt(Some(device(levels, 0)));
    doorbell(Guest::<NoOp, 16, 0>::nested(levels, 1), vec![command; count])
}

/// One invalidation of all contexts, of which none has changed: of `devices`, with room for `ROOM`.
pub fn invalidate_all<const ROOM: usize>(devices: u32) -> Box<dyn Operation> {
    doorbell(Guest::<NoOp, ROOM, 0>::nested(3, devices), vec![inval_ddt(None)])
}

/// A store to `ddtp` that puts a directory in force after Bare: each of `devices` gets its context.
pub fn change_directory<const ROOM: usize>(devices: u32) -> Box<dyn Operation> {
    type Rig<const ROOM: usize> = (Guest<NoOp, ROOM, 0>, u64, u64);
    let guest = Guest::nested(3, devices);
    let ddtp = guest.iommu.read(register::DDTP, Width::U64);
    let prepare = |(guest, _, before): &mut Rig<ROOM>| {
        // Bare.
        guest.set(register::DDTP, Width::U64, 1);
        *before = guest.iommu.stats().orders.set_context.done;
    };
    let run = |(guest, ddtp, _): &mut Rig<ROOM>| guest.set(register::DDTP, Width::U64, *ddtp);
    let check = move |(guest, ddtp, before): &mut Rig<ROOM>| {
        assert_eq!(guest.iommu.read(register::DDTP, Width::U64), *ddtp, "not busy");
        assert_eq!(guest.iommu.stats().orders.set_context.done, *before + u64::from(devices));
    };
    operation((guest, ddtp, 0), prepare, run, check)
}

/// A page fault of a passthrough device, of which the guest is told.
pub fn report_fault() -> Box<dyn Operation> {
    type Rig = Guest<NoOp, 16, 0>;
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(0x12_3456_7abc));
    let prepare = |guest: &mut Rig| {
        // The guest has taken all records.
        let tail = guest.get(register::FQT);
        guest.set(register::FQH, Width::U32, tail);
    };
    let run = move |guest: &mut Rig| {
        let _ = guest.iommu.report_fault(guest.devices[0], black_box(&fault));
    };
    let check = |guest: &mut Rig| {
        let head = guest.get(register::FQH);
        assert_eq!(guest.get(register::FQT), (head + 1) % FAULTS);
        // CAUSE in 11:0, TTYP in 39:34, DID in 63:40; iotval.
        let head_word = 0xd | 2 << 34 | u64::from(device(3, 0).get()) << 40;
        assert_eq!(guest.fault(head), [head_word, 0, 0x12_3456_7abc, 0]);
    };
    operation(commands::nested(), prepare, run, check)
}

/// What a guest's IOMMU is, as bytes.
pub fn snapshot() -> Box<dyn Operation> {
    type Rig = (Guest<NoOp, 16, 0>, Vec<u8>, usize);
    let image = vec![0; VIommu::<Host<NoOp>, 16>::SNAPSHOT_BYTES];
    let run = |(guest, image, bytes): &mut Rig| *bytes = guest.iommu.snapshot(image).expect("room for it");
    let check = |(guest, image, bytes): &mut Rig| {
        let restored = guest.iommu.restore(&image[..*bytes]);
        assert_eq!(restored, Ok(Progress::Idle));
        guest.order(&[commands::fence()]);
    };
    operation((commands::nested(), image, 0), |_| {}, run, check)
}
