//! What the host is ordered, and what follows from its answers.

use riscv_viommu::mock::guest::{Iotinval, inval_ddt, register as reg};
use riscv_viommu::mock::{Access, Order};
use riscv_viommu::{AttachError, Completion, FenceScope, Health, OrderError};

use super::*;

const REFUSED: OrderError = OrderError::Refused { done: 1 };

/// Invalidations that can not be merged: every other page, for one address space.
fn flood(count: u64) -> Vec<[u64; 2]> {
    let page = |index| Iotinval::ALL.address(Iova::new(IOVA.get() + index * 0x2000)).pscid(PSCID).vma();
    (0..count).map(page).collect()
}

#[test]
fn t19_a_device_that_leaves_is_blocked_invalidated_fenced_and_released() {
    let mut vm = Vm::translating();
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    vm.physical.set_pending(true);
    assert_eq!(vm.iommu.detach(DEVICE), Ok(Progress::Waiting));
    let orders = vm.orders();
    let [Order::SetContext(NVME, Context::Blocked, _), Order::Invalidate(batch, _), Order::Fence(..)] = &orders[..]
    else {
        panic!("{orders:?}")
    };
    assert!(batch.contains(&Invalidation::Device(NVME)));
    assert_eq!(vm.iommu.run(), Progress::Waiting);
    assert_eq!(vm.orders(), [], "it is not given back while it may still reach memory");
    vm.settle();
    assert_eq!(vm.orders(), [Order::Release(NVME)]);
    let dma = vm.dma();
    assert_eq!((dma.access, dma.stale), (Access::Blocked, false));
}

#[test]
fn t19_a_reset_blocks_every_device_and_so_does_a_shutdown() {
    let mut vm = Vm::translating();
    vm.attach(OTHER, NIC);
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    let _ = vm.iommu.reset();
    let dma = vm.dma();
    assert_eq!((vm.iommu.progress(), dma.access, dma.stale), (Progress::Idle, Access::Blocked, false));
    vm.turn_queues_on();
    vm.write(reg::DDTP, vm.directory.ddtp());
    assert_eq!(vm.dma().access, Access::Translated(BUFFER), "it is still attached");
    vm.forget();
    assert_eq!(vm.iommu.shutdown(), Progress::Idle);
    assert_eq!(vm.dma().access, Access::Blocked);
    let orders = vm.orders();
    assert!([NVME, NIC].iter().all(|&device| orders.contains(&Order::Release(device))), "{orders:?}");
}

#[test]
fn t19_a_failure_stays_until_the_reset() {
    let mut vm = Vm::translating();
    vm.physical.answer_next_fence(Err(OrderError::Fatal));
    let _ = vm.iommu.detach(DEVICE);
    for _ in 0..3 {
        let _ = vm.iommu.run();
        vm.write(reg::DDTP, 0);
        assert_eq!(vm.iommu.health(), Health::Failed);
    }
    assert_eq!(vm.context(), Some(Context::Blocked));
    assert!(!vm.orders().contains(&Order::Release(NVME)));
    assert_eq!(vm.iommu.attach(OTHER, NIC, DevicePolicy::default()), Err(AttachError::NeedsReset));
    let _ = vm.iommu.reset();
    assert_eq!((vm.iommu.health(), vm.orders().last()), (Health::Good, Some(&Order::Release(NVME))));
}

#[test]
fn t19_a_host_that_fails_while_it_adopts_has_failed() {
    let mut vm = Vm::translating();
    vm.physical.answer_next_adopt(Err(OrderError::Fatal));
    let refused = vm.iommu.attach(OTHER, NIC, DevicePolicy::default());
    assert_eq!(refused, Err(AttachError::Host(OrderError::Fatal)));
    assert_eq!((vm.iommu.health(), vm.context()), (Health::Failed, Some(Context::Blocked)));
}

#[test]
fn t19_a_device_whose_invalidation_was_refused_is_not_given_back() {
    let mut vm = Vm::translating();
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
    vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
    let _ = vm.iommu.detach(DEVICE);
    let _ = vm.iommu.run();
    assert_eq!(vm.iommu.health(), Health::Degraded);
    let released = vm.orders().contains(&Order::Release(NVME));
    assert!(!released || !vm.dma().stale, "its next owner gets it while hardware has a context of this one cached");
    let _ = vm.iommu.reset();
    assert!(released || vm.orders().contains(&Order::Release(NVME)));
    assert!(!vm.dma().stale);
}

#[test]
fn t20_a_busy_host_is_asked_once_for_each_call() {
    let busy: [fn(&Physical); 3] = [
        |physical| physical.answer_next_set_context(Err(OrderError::Busy)),
        |physical| physical.answer_next_invalidate(Err(OrderError::Busy)),
        |physical| physical.answer_next_fence(Err(OrderError::Busy)),
    ];
    for (kind, say_busy) in busy.into_iter().enumerate() {
        let mut vm = Vm::translating();
        vm.directory.set(DEVICE, &vm.table.context(Pscid::truncate(6)));
        (0..50).for_each(|_| say_busy(&vm.physical));
        vm.ring(&[inval_ddt(Some(DEVICE)), Iofence::PLAIN.encode()]);
        let mut progress = vm.progress();
        let (mut calls, mut asked) = (0, 0);
        while progress == Progress::Waiting && calls < 100 {
            let orders = vm.orders();
            assert!(orders.len() <= 3, "kind {kind}: {orders:?}");
            asked += orders.iter().filter(|order| is_busy(order)).count();
            calls += 1;
            progress = vm.iommu.run();
        }
        assert_eq!((progress, asked), (Progress::Idle, 50), "kind {kind}");
        assert!(calls >= 25, "kind {kind}: {calls} calls");
        assert_eq!((vm.read(reg::CQH), vm.stage().map(|stage| stage.2)), (2, Some(6)), "kind {kind}");
    }
}

fn is_busy(order: &Order) -> bool {
    matches!(
        order,
        Order::SetContext(_, _, Err(OrderError::Busy))
            | Order::Invalidate(_, Err(OrderError::Busy))
            | Order::Fence(_, _, Err(OrderError::Busy))
    )
}

#[test]
fn t20_a_pending_fence_is_not_asked_for_again() {
    let mut vm = Vm::translating();
    vm.physical.set_pending(true);
    vm.ring(&[Iofence::PLAIN.encode()]);
    assert!(matches!(vm.orders()[..], [Order::Fence(_, _, Ok(Completion::Pending))]));
    for _ in 0..100 {
        assert_eq!(vm.iommu.run(), Progress::Waiting);
        assert_eq!(vm.orders(), []);
    }
}

#[test]
fn t21_a_refused_batch_is_issued_again_as_one_that_covers_everything() {
    let mut vm = Vm::translating();
    assert!(!vm.dma().stale);
    vm.table.unmap(IOVA, PageSize::K4);
    vm.physical.answer_next_invalidate(Err(REFUSED));
    let two = [Iotinval::ALL.pscid(Pscid::truncate(6)).vma(), Iotinval::ALL.pscid(PSCID).vma()];
    vm.ring(&[two[0], two[1], Iofence::PLAIN.encode()]);
    let orders = vm.orders();
    let [Order::Invalidate(first, Err(REFUSED)), Order::Invalidate(second, Ok(())), Order::Fence(..)] = &orders[..]
    else {
        panic!("{orders:?}")
    };
    assert_eq!((first.len(), &second[..]), (2, &[Invalidation::Everything][..]));
    assert_eq!((vm.read(reg::CQH), vm.dma().stale), (3, false));
}

#[test]
fn t21_a_batch_that_is_refused_twice_blocks_every_device() {
    let mut vm = Vm::translating();
    vm.attach(OTHER, NIC);
    vm.forget();
    vm.physical.answer_next_invalidate(Err(REFUSED));
    vm.physical.answer_next_invalidate(Err(REFUSED));
    vm.ring(&[Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
    vm.settle();
    assert_eq!([NVME, NIC].map(|device| vm.physical.context(device)), [Some(Context::Blocked); 2]);
    assert_eq!((vm.read(reg::CQH), vm.iommu.health()), (2, Health::Degraded));
    // Nothing the guest does unblocks them.
    vm.ring(&[inval_ddt(None), Iofence::PLAIN.encode()]);
    vm.settle();
    assert_eq!(vm.context(), Some(Context::Blocked));
}

#[test]
fn t35_an_invalidation_is_elided_only_when_nothing_can_be_left() {
    let mut vm = Vm::translating();
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    let all = [Iotinval::ALL.vma()];
    vm.physical.set_pending(true);
    // Off, blocked, and the fence that proves it under way: entries of the old context may be there.
    vm.write(reg::DDTP, 0);
    assert_eq!(vm.context(), Some(Context::Blocked));
    vm.forget();
    vm.ring(&all);
    vm.ring(&[Iofence::PLAIN.encode()]);
    vm.settle();
    assert_eq!(invalidations(&vm.orders()), [Invalidation::FirstStage]);
    // Clean now: nothing to be found, nothing to be ordered.
    vm.ring(&all);
    vm.ring(&[Iofence::PLAIN.encode()]);
    vm.settle();
    assert_eq!(invalidations(&vm.orders()), []);
    // From the first translating context on it is not.
    vm.physical.set_pending(false);
    vm.write(reg::DDTP, vm.directory.ddtp());
    assert!(!vm.dma().stale);
    vm.table.unmap(IOVA, PageSize::K4);
    vm.forget();
    vm.ring(&[all[0], Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [Invalidation::FirstStage]);
    assert!(!vm.dma().stale);
}

#[test]
fn t35_a_device_that_comes_back_hits_nothing_old() {
    let mut vm = Vm::translating();
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    assert_eq!(vm.iommu.detach(DEVICE), Ok(Progress::Idle));
    // Its GSCID and PSCID are used again, for tables that changed while nobody listened.
    vm.table.unmap(IOVA, PageSize::K4);
    vm.attach(DEVICE, NVME);
    assert_eq!(vm.stage(), Some(allowed(&vm.table.context(PSCID))));
    assert!(!vm.dma().stale);
}

#[test]
fn t36_nothing_of_a_device_is_under_way_when_it_is_given_back_or_taken_in() {
    let mut vm = Vm::translating();
    let _ = vm.iommu.detach(DEVICE);
    vm.attach(DEVICE, NVME);
    let orders = vm.orders();
    let before = |place: &dyn Fn(&Order) -> bool| {
        let place = orders.iter().position(place).unwrap();
        orders[..place].iter().rev().take(3).rev().cloned().collect::<Vec<_>>()
    };
    let released = before(&|order| matches!(order, Order::Release(_)));
    let context = before(&|order| matches!(order, Order::SetContext(_, Context::FirstStage(_), _)));
    for orders in [released, context] {
        let [
            Order::SetContext(NVME, Context::Blocked, Ok(_)),
            Order::Invalidate(batch, Ok(())),
            Order::Fence(_, scope, _),
        ] = &orders[..]
        else {
            panic!("{orders:?}")
        };
        assert_eq!((&batch[..], *scope), (&[Invalidation::Device(NVME)][..], FenceScope::ALL));
    }
}

#[test]
fn t41_a_flood_of_commands_waits_for_a_busy_host_and_harms_no_other() {
    let mut vm = Vm::translating();
    let mut neighbour = Vm::of(&vm.hardware, 2, InterruptKinds::Both, &Config::nested()).translate_as(NIC);
    assert!(!vm.dma().stale);
    vm.table.unmap(IOVA, PageSize::K4);
    (0..100).for_each(|_| vm.physical.answer_next_invalidate(Err(OrderError::Busy)));
    vm.ring(&flood(200));
    let mut progress = vm.progress();
    let mut busy = 0;
    while progress == Progress::Waiting {
        let orders = vm.orders();
        assert_eq!(orders.len(), 1, "one batch of bounded size is offered: {orders:?}");
        busy += 1;
        assert_eq!(vm.read(reg::CQH), 16, "what there is no room for stays in the guest's queue");
        neighbour.ring(&[Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
        assert_eq!(neighbour.read(reg::CQH), u64::from(neighbour.commands.tail()));
        progress = vm.iommu.run();
    }
    assert_eq!(busy, 100);
    vm.ring(&[Iofence::PLAIN.encode()]);
    let orders = vm.orders();
    assert_eq!((vm.read(reg::CQH), invalidations(&orders).len()), (201, 200), "nothing is lost");
    assert!(orders.len() <= 100 + 200 / 16 + 2, "{}", orders.len());
    assert!(!vm.dma().stale);
}
