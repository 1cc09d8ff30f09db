//! The host takes memory from the guest, or loses what its IOMMU had; and what the crate asks it to watch.

use riscv_viommu::mock::guest::{inval_ddt, register as reg};
use riscv_viommu::mock::tables::{bare, tc};
use riscv_viommu::mock::{Access, Event, Order};
use riscv_viommu::{AtsInvalidation, Completion, FenceOutcome, FenceScope, Health, OrderError, Request};

use super::dma_rig::{DmaRig, everything};
use super::*;

/// The page the guest loses.
const GONE: Gpa = BUFFER;

fn take(vm: &mut Vm) -> Progress {
    vm.iommu.invalidate_gpa(GONE..=Gpa::new(GONE.get() | 0xfff))
}

/// Whether hardware or the device still knows what was before.
fn is_known(vm: &Vm) -> bool {
    vm.hardware.dma(NVME, Some(PROCESS), IOVA, true).stale || !vm.hardware.kept(NVME).is_empty()
}

#[test]
fn t31_memory_is_used_again_only_when_nothing_knows_it_any_more() {
    let (mut vm, processes) = Vm::with_processes(&Hardware::default(), 1, NVME, tc::EN_ATS);
    assert_eq!(vm.hardware.dma(NVME, Some(PROCESS), IOVA, true).access, Access::Translated(BUFFER));
    assert_eq!(vm.hardware.dma_through_atc(NVME, Some(PROCESS), IOVA, true).access, Access::Translated(BUFFER));
    // Of the tables too: the guest said nothing, and none of its commands would be about them.
    processes.invalidate(PROCESS);
    vm.physical.set_pending(true);
    assert_eq!(take(&mut vm), Progress::Waiting);
    let mut orders = Vec::new();
    while !vm.iommu.is_gpa_invalidated() {
        assert_eq!(vm.iommu.run(), Progress::Waiting, "the fence before has to complete");
        orders.extend(vm.orders());
        for ticket in vm.physical.complete_all() {
            assert!(!vm.iommu.is_gpa_invalidated(), "T31: before the last fence is complete");
            let _ = vm.iommu.fence_done(ticket, vm.physical.outcome(ticket));
        }
    }
    orders.extend(vm.orders());
    let [
        Order::Invalidate(everything, Ok(())),
        Order::Fence(..),
        Order::AtsInvalidate(NVME, AtsInvalidation::ALL, Ok(())),
        Order::AtsInvalidate(NVME, AtsInvalidation::ALL_PROCESSES, Ok(())),
        rest @ ..,
    ] = &orders[..]
    else {
        panic!("VC-32, VC-75, ATC-05: {orders:?}")
    };
    assert!(everything.contains(&Invalidation::Everything), "GVM-07: roots and directories are in no range");
    assert!(matches!(rest.last(), Some(Order::Fence(_, FenceScope::ALL, _))), "SWG-18: {rest:?}");
    assert!(!is_known(&vm), "T31");
    // And the guest sees none of it.
    assert_eq!((vm.read(reg::CQCSR), vm.causes(), vm.iommu.health()), (reg::ON | reg::ENABLE, vec![], Health::Good));
    assert!(vm.context().is_some_and(|context| context.ats() == Ats::Translations), "the device goes on");
}

#[test]
fn t31_what_is_taken_meanwhile_waits_for_a_fence_of_its_own() {
    let mut vm = Vm::translating();
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    vm.physical.set_pending(true);
    let _ = take(&mut vm);
    // The first fence was ordered before the second page was taken.
    vm.table.unmap(IOVA, PageSize::K4);
    let first = vm.physical.complete_all();
    vm.dma();
    let _ = take(&mut vm);
    for ticket in first {
        let _ = vm.iommu.fence_done(ticket, FenceOutcome::Complete);
    }
    assert!(!vm.iommu.is_gpa_invalidated(), "T31");
    vm.settle();
    assert_eq!((vm.iommu.is_gpa_invalidated(), vm.dma().stale), (true, false));
    // Nor does a reset make it so before its own fence is complete.
    let _ = take(&mut vm);
    let _ = vm.iommu.reset();
    assert!(!vm.iommu.is_gpa_invalidated(), "T31, T19");
    vm.settle();
    assert!(vm.iommu.is_gpa_invalidated());
}

#[test]
fn t31_memory_that_could_not_be_invalidated_is_not_used_again_before_a_reset() {
    let spoil: [fn(&Physical); 3] = [
        |physical| (0..2).for_each(|_| physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }))),
        |physical| physical.answer_next_invalidate(Err(OrderError::Fatal)),
        |physical| physical.answer_next_fence(Err(OrderError::Fatal)),
    ];
    for (index, spoil) in spoil.into_iter().enumerate() {
        let mut vm = Vm::translating();
        assert_eq!(vm.dma().access, Access::Translated(BUFFER));
        vm.table.unmap(IOVA, PageSize::K4);
        spoil(&vm.physical);
        let _ = take(&mut vm);
        for _ in 0..5 {
            let _ = vm.iommu.run();
            for ticket in vm.physical.complete_all() {
                let _ = vm.iommu.fence_done(ticket, vm.physical.outcome(ticket));
            }
            assert!(!vm.iommu.is_gpa_invalidated(), "T31, T39: way {index}");
        }
        let _ = vm.iommu.reset();
        assert_eq!((vm.iommu.is_gpa_invalidated(), vm.dma().stale), (true, false), "way {index}");
    }
}

#[test]
fn t31_dma_of_emulated_devices_with_old_translations_is_waited_for() {
    let memory = Memory::new();
    memory.answer_drain(Some(Completion::Pending));
    let mut rig = DmaRig::<8>::in_memory(everything().with_synchronous_dma(false), memory);
    let table = riscv_viommu::mock::tables::PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    rig.set_context(&[1, 0, 0, table.iosatp()]);
    table.map(IOVA.get(), GONE.get(), 0, pte::RW);
    let request = Request::write(rig.device, IOVA);
    let epoch = rig.translate(request).unwrap().epoch;
    // The guest's tables are where they were, and say the same: only the crate's own memory of them may be wrong.
    table.map(IOVA.get(), GONE.get() + 0x1000, 0, pte::RW);
    assert_eq!(rig.iommu.invalidate_gpa(GONE..=Gpa::new(GONE.get() | 0xfff)), Progress::Waiting);
    assert!(!rig.iommu.is_gpa_invalidated(), "T31, T38");
    assert_eq!(rig.address(request), Ok(GONE.get() + 0x1000), "T31: nothing old is used any more");
    let _ = rig.iommu.drained(epoch);
    assert!(rig.iommu.is_gpa_invalidated(), "T31");
}

#[test]
fn t35_a_host_that_lost_its_state_starts_from_nothing() {
    let (mut vm, processes) = Vm::with_processes(&Hardware::default(), 1, NVME, tc::EN_ATS);
    assert_eq!(vm.hardware.dma_through_atc(NVME, Some(PROCESS), IOVA, true).access, Access::Translated(BUFFER));
    assert_eq!(vm.hardware.dma(NVME, Some(PROCESS), IOVA, true).access, Access::Translated(BUFFER));
    vm.physical.set_pending(true);
    processes.invalidate(PROCESS);
    vm.ring(&[Iofence::PLAIN.encode()]);
    vm.physical.lose_state();
    vm.forget();
    let _ = vm.iommu.host_lost_state();
    // The fence the guest waits for was lost, and it is not told of one that was not issued anew.
    assert_eq!(vm.read(reg::CQH) + 1, u64::from(vm.commands.tail()), "T15");
    let orders = vm.orders();
    assert!(
        matches!(&orders[..], [Order::SetContext(NVME, Context::Blocked | Context::Quiesced, _), ..]),
        "T35, T36: {orders:?}"
    );
    assert!(invalidations(&orders).contains(&Invalidation::Everything), "T35: {orders:?}");
    vm.settle();
    assert_eq!(vm.read(reg::CQH), u64::from(vm.commands.tail()), "T15");
    assert!(!is_known(&vm), "T35, T36");
    assert!(vm.context().is_some_and(|context| context.is_open()));
}

/// The host tells where the guest has stored.
fn tell(vm: &mut Vm) {
    for at in vm.memory.take_watched_writes() {
        let _ = vm.iommu.guest_wrote(at);
    }
}

#[test]
fn t09_only_pages_of_the_directory_are_watched_each_once_and_no_longer_than_needed() {
    let mut vm = Vm::new();
    vm.write(reg::DDTP, vm.directory.ddtp());
    // The model of memory refuses a watch that is there already, or one that ends twice.
    vm.attach(DEVICE, NVME);
    vm.attach(OTHER, NIC);
    let root = Gpa::new(vm.directory.root().get());
    assert_eq!(vm.memory.watched(), [root], "T09: both wait for the same entry");
    vm.forget();
    let events = vm.memory.take_events();
    assert!(!events.iter().any(|event| matches!(event, Event::Store(..))), "T09");
    // The way to their contexts is made, entry by entry.
    let leaf = Gpa::new(vm.directory.entry_address(DEVICE).get() & !0xfff);
    tell(&mut vm);
    let _ = vm.iommu.run();
    assert_eq!(vm.memory.watched(), [leaf], "T09");
    vm.directory.set(DEVICE, &vm.table.context(PSCID));
    tell(&mut vm);
    vm.settle();
    assert_eq!(vm.stage(), Some(allowed(&vm.table.context(PSCID))), "UPD-04");
    assert_eq!(vm.memory.watched(), [leaf], "the other one waits still");
    vm.directory.set(OTHER, &bare());
    assert_eq!(vm.iommu.resync(OTHER), Progress::Idle);
    assert_eq!(vm.memory.watched(), [], "T09");
    // Nor is a page watched for a device that is gone, or for a guest that has no directory.
    let ways: [fn(&mut Vm); 4] = [
        |vm| assert_eq!(vm.iommu.detach(DEVICE), Ok(Progress::Idle)),
        |vm| vm.write(reg::DDTP, 0),
        |vm| assert_eq!(vm.iommu.reset(), Progress::Idle),
        |vm| assert_eq!(vm.iommu.shutdown(), Progress::Idle),
    ];
    for leave in ways {
        let mut vm = Vm::translating();
        vm.directory.invalidate(DEVICE);
        vm.ring(&[inval_ddt(Some(DEVICE)), Iofence::PLAIN.encode()]);
        assert_eq!(vm.memory.watched().len(), 1);
        leave(&mut vm);
        assert_eq!(vm.memory.watched(), [], "T09");
    }
}

#[test]
fn t09_a_host_that_watches_nothing_loses_nothing() {
    let mut vm = Vm::new();
    vm.write(reg::DDTP, vm.directory.ddtp());
    vm.attach(DEVICE, NVME);
    vm.directory.set(DEVICE, &vm.table.context(PSCID));
    // Nobody says that it was written: the next doorbell looks.
    let tail = u64::from(vm.commands.tail());
    vm.write(reg::CQT, tail);
    assert_eq!(vm.stage(), Some(allowed(&vm.table.context(PSCID))), "UPD-04, T09, T13");
    // A store that was told of one that changed nothing, or of one anywhere, changes nothing.
    let mut vm = Vm::translating();
    for at in [vm.directory.entry_address(DEVICE), Gpa::new(u64::MAX), Gpa::new(0)] {
        assert_eq!(vm.iommu.guest_wrote(at), Progress::Idle);
    }
    assert_eq!((vm.orders(), vm.memory.take_loads()), (vec![], vec![]));
}
