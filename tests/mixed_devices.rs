//! Passthrough and emulated devices behind one vIOMMU.

#![expect(clippy::unwrap_used, reason = "a script that can not be set up fails")]

mod nesting_rig;

use nesting_rig::{FENCE, IOVA, PAGE_A, PAGE_B, Rig, id, pscid};
use riscv_viommu::mock::guest::{Iotinval, inval_ddt};
use riscv_viommu::mock::{Hardware, Order};
use riscv_viommu::{
    AttachError, Attachment, Capabilities, Cause, Completion, Config, DeviceId, DevicePolicy, HostCapabilities,
    HostFault, Invalidation, Progress, Request, SecondStageMode, Target, TransactionType, TranslateError,
};

/// A VM whose device 0 is the host's and translates through table A, and whose device 1 is emulated, its context the
/// same.
fn mixed(counts_dma: bool) -> (Rig, Attachment) {
    let mut rig = Rig::with(&Hardware::default(), 1, &Config::nested().with_synchronous_dma(true)).translating();
    rig.memory.answer_drain(counts_dma.then_some(Completion::Pending));
    rig.directory.set(id(1), &rig.a.context(pscid(1)));
    let device = rig.iommu.attach_emulated(id(1), DevicePolicy::default()).unwrap();
    (rig, device)
}

#[test]
fn both_see_the_guest_s_tables_and_each_change_of_them() {
    let (mut rig, device) = mixed(false);
    let request = Request::write(device, IOVA);
    assert_eq!(rig.iommu.translate(&request).map(|piece| piece.target), Ok(Target::Memory(PAGE_A)), "VT-01");
    rig.directory.set(id(1), &rig.b.context(pscid(2)));
    assert!(rig.ring([inval_ddt(Some(id(1))), FENCE.encode()]) == Progress::Idle && rig.passed());
    assert_eq!(rig.iommu.translate(&request).map(|piece| piece.target), Ok(Target::Memory(PAGE_B)), "VC-53");
    let orders = rig.physical.take_orders();
    let is_fence = |order: &Order| matches!(order, Order::Fence(..));
    assert!(orders.iter().all(is_fence), "T02, T03: hardware is told nothing of an emulated device: {orders:?}");
}

#[test]
fn t38_a_fence_waits_for_hardware_and_for_emulated_dma() {
    for hardware_last in [false, true] {
        let (mut rig, device) = mixed(true);
        let epoch = rig.iommu.translate(&Request::write(device, IOVA)).unwrap().epoch;
        rig.physical.set_pending(true);
        assert_eq!(rig.ring([Iotinval::ALL.vma(), FENCE.encode()]), Progress::Waiting);
        if hardware_last {
            assert_eq!(rig.iommu.drained(epoch), Progress::Waiting, "T15");
            assert!(!rig.passed(), "T15");
            let _ = rig.complete();
        } else {
            let _ = rig.complete();
            assert!(!rig.passed(), "T38");
            let _ = rig.iommu.drained(epoch);
        }
        assert!(rig.passed(), "T15, T38");
    }
}

#[test]
fn an_attachment_of_one_kind_is_worth_nothing_to_the_other() {
    let (mut rig, device) = mixed(false);
    let (passthrough, _) = rig.attach(2);
    assert_eq!(rig.iommu.translate(&Request::read(passthrough, IOVA)), Err(TranslateError::NotAttached), "T34");
    let before = rig.iommu.stats();
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, IOVA);
    let _ = rig.iommu.report_fault(device, &fault);
    let after = rig.iommu.stats();
    assert_eq!((after.stale_events, after.faults_recorded), (before.stale_events + 1, before.faults_recorded), "T34");
    assert_eq!(rig.iommu.attach_emulated(id(2), DevicePolicy::default()), Err(AttachError::IdInUse), "T40");
    assert_eq!(rig.try_attach(1).map(|_| ()), Err(AttachError::IdInUse), "T40");
}

#[test]
fn a_host_that_can_not_update_a_and_d_bits_has_no_emulated_devices_beside_hardware_that_can() {
    let register = Capabilities::new().with_sv39(true).with_sv39x4(true).with_amo_hwad(true).with_pas(56);
    let host = HostCapabilities::new(register, SecondStageMode::Sv39x4).with_svnapot(true).with_coherent(true);
    let mut rig = Rig::<16, 16>::on(host.with_leaves_dirty(true), &Config::nested().with_synchronous_dma(true));
    rig.memory.without_compare_exchange();
    let attach = |rig: &mut Rig| rig.iommu.attach_emulated(id(1), DevicePolicy::default());
    assert_eq!(attach(&mut rig), Err(AttachError::NoCompareExchange), "REG-CAP-17");
    let mut rig = Rig::<16, 16>::on(host, &Config::nested().with_synchronous_dma(true));
    rig.memory.without_compare_exchange();
    assert!(attach(&mut rig).is_ok(), "REG-CAP-17: not offered, not needed");
}

#[test]
fn what_a_guest_invalidates_of_hardware_s_devices_is_not_told_to_those_who_remember() {
    let (mut rig, _) = mixed(false);
    let _ = rig.memory.take_unmapped();
    let _ = rig.ring([inval_ddt(Some(id(0))), inval_ddt(Some(DeviceId::truncate(0x77)))]);
    assert_eq!(rig.memory.take_unmapped(), [], "T03");
    let _ = rig.ring([inval_ddt(Some(id(1)))]);
    assert_eq!(rig.memory.take_unmapped(), [Invalidation::Device(id(1))]);
}
