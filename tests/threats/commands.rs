//! What the guest puts into the command queue.

use proptest::prelude::*;
use riscv_viommu::mock::Order;
use riscv_viommu::mock::guest::{AtsCommand, Iotinval, inval_ddt, inval_pdt, register as reg};
use riscv_viommu::mock::tables::tc::{EN_ATS, EN_PRI};
use riscv_viommu::{
    Completion, Config, DeviceId, FenceScope, Gpa, Gscid, InterruptKinds, Invalidation, Iova, Post, ProcessId, Progress,
};

use super::*;

#[test]
fn t01_a_fence_store_goes_to_guest_memory_only() {
    let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Wired, &Config::nested()).translate();
    vm.physical.set_pending(true);
    let at = vm.memory.allocate(1);
    // AV, ADDR, DATA and WSI: of these the host sees nothing.
    vm.ring(&[Iofence::PLAIN.store(at, 0xfeed_beef).wsi().encode()]);
    assert_eq!(vm.progress(), Progress::Waiting);
    let orders = vm.orders();
    let nothing = FenceScope::new(false, false);
    assert!(matches!(orders[..], [Order::Fence(_, scope, _)] if scope == nothing), "{orders:?}");
    assert_eq!(vm.memory.take_posts(), [], "the host has not finished");
    vm.settle();
    assert_eq!(vm.memory.take_posts(), [(at, 0xfeed_beef, Post::FenceData)], "VC-42");
    assert_eq!(vm.memory.read(at), 0xfeed_beef);
    assert_eq!(vm.orders(), []);
}

#[test]
fn t02_no_id_that_the_guest_chooses_changes_an_order() {
    /// Ids that mean something to the guest alone.
    type Ids = (u32, u32, u32, u32);

    /// Runs a guest with these ids, and gives the orders the host gets.
    fn orders(program: &[u8], (device, stranger, gscid, process): Ids) -> Vec<Order> {
        let id = DeviceId::truncate;
        let (gscid, process) = (Gscid::truncate(gscid), ProcessId::truncate(process));
        let function =
            |id: u32| AtsCommand::to((id & 0xffff).try_into().unwrap()).segment((id >> 16).try_into().unwrap());
        let config = Config::nested().with_ats(true);
        let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config);
        vm.attach_with(id(device), NVME, Ats::PageRequests);
        let [tc, _, ta, fsc] = vm.table.context(PSCID);
        vm.directory.set(id(device), &[tc | EN_ATS | EN_PRI, u64::from(gscid.get()) << 44, ta, fsc]);
        vm.write(reg::DDTP, vm.directory.ddtp());
        for step in program {
            let page = Iotinval::ALL.address(Iova::new(0x1000));
            vm.ring(&[match step {
                0 => inval_ddt(Some(id(device))),
                1 => inval_ddt(Some(id(stranger))),
                2 => inval_ddt(None),
                3 => inval_pdt(id(device), process),
                4 => inval_pdt(id(stranger), process),
                5 => page.vma(),
                6 => page.gscid(gscid).vma(),
                7 => page.gscid(gscid).gvma(),
                8 => function(device).inval(0x1000),
                9 => function(stranger).inval(0x1000),
                10 => function(device).prgr(1, 0),
                11 => function(stranger).prgr(1, 0),
                _ => Iofence::PLAIN.accesses(true, true).encode(),
            }]);
        }
        assert_eq!(vm.read(reg::CQH), u64::from(vm.commands.tail()), "VC-02: all of it is legal");
        vm.orders()
    }

    let id = 0_u32..0xff_ffff;
    let ids = (id.clone(), id, 0_u32..0xffff, 0_u32..0xff).prop_filter("a stranger", |ids| ids.0 != ids.1);
    let programs = prop::collection::vec(0_u8..13, 1..40);
    let outcome = runner(200).run(&(programs, ids.clone(), ids), |(program, ids, others)| {
        prop_assert_eq!(orders(&program, ids), orders(&program, others));
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
}

#[test]
fn t03_an_id_that_is_not_attached_is_a_legal_no_op() {
    let mut vm = Vm::translating();
    // The host has another VM's device under the number that the guest gives its own, and knows the guest's device
    // under a number that is nobody's here.
    let mut neighbour = Vm::of(&vm.hardware, 2, InterruptKinds::Both, &Config::nested());
    neighbour.attach(DEVICE, PhysicalDevice(DEVICE.get()));
    for stranger in [NVME.0, OTHER.get(), 0, 0xff_ffff] {
        let id = DeviceId::truncate(stranger);
        vm.ring(&[inval_ddt(Some(id)), inval_pdt(id, ProcessId::truncate(0))]);
        assert_eq!(vm.orders(), [], "{stranger:#x}");
        let queue = vm.commands.entry(0)..vm.commands.entry(255);
        let loads = vm.memory.take_loads();
        assert!(loads.iter().all(|(at, _)| queue.contains(at)), "no directory: {loads:x?}");
    }
    assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (8, reg::ON | reg::ENABLE));
    vm.ring(&[inval_ddt(Some(DEVICE)), Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [Invalidation::Device(NVME)]);
}

#[test]
fn t04_a_gscid_of_the_guest_flushes_nothing() {
    let mut vm = Vm::translating();
    let mut neighbour = Vm::of(&vm.hardware, 2, InterruptKinds::Both, &Config::nested()).translate_as(NIC);
    let read = |vm: &Vm| vm.hardware.dma(NIC, None, IOVA, false);
    assert!(!read(&neighbour).stale);
    neighbour.table.unmap(IOVA, PageSize::K4);
    let two = Gscid::truncate(2);
    let page = Iotinval::ALL.address(IOVA);
    let others = [
        Iotinval::ALL.gscid(two).vma(),
        page.gscid(two).pscid(PSCID).vma(),
        Iotinval::ALL.gvma(),
        Iotinval::ALL.gscid(two).gvma(),
        page.gscid(two).gvma(),
    ];
    vm.ring(&others);
    vm.ring(&[Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [], "VC-21");
    assert_eq!(vm.read(reg::CQH), 6, "all of it is legal");
    // What may be flushed is flushed for this VM alone.
    vm.ring(&[Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [Invalidation::FirstStage]);
    assert!(read(&neighbour).stale, "VC-10: the neighbour's entry is its own to drop");
    neighbour.ring(&[Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
    assert!(!read(&neighbour).stale);
}

#[test]
fn t05_a_reserved_bit_stops_the_queue_and_forwards_nothing() {
    let iotinval = [11..12, 35..44, 60..73, 126..128];
    let iofence = [14..32, 126..128];
    let iodir = [10..12, 32..33, 34..40, 64..128];
    let commands = [
        (Iotinval::ALL.address(IOVA).vma(), &iotinval[..]),
        (Iotinval::ALL.gscid(Gscid::truncate(1)).gvma(), &iotinval[..]),
        (Iofence::PLAIN.accesses(true, true).encode(), &iofence[..]),
        (inval_ddt(Some(DEVICE)), &iodir[..]),
        (inval_pdt(DEVICE, ProcessId::truncate(1)), &iodir[..]),
    ];
    for ([low, high], reserved) in commands {
        for bit in reserved.iter().cloned().flatten() {
            let flipped = (u128::from(high) << 64 | u128::from(low)) ^ 1 << bit;
            let illegal = [flipped, flipped >> 64].map(|half| (half & u128::from(u64::MAX)).try_into().unwrap());
            let mut vm = Vm::translating();
            vm.ring(&[illegal, Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
            let _ = vm.iommu.run();
            assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE | reg::CMD_ILL, "{low:#x}, bit {bit}");
            assert_eq!(vm.read(reg::CQH), 0, "{low:#x}, bit {bit}");
            assert_eq!(vm.orders(), [], "{low:#x}, bit {bit}");
        }
    }
}

#[test]
fn t14_a_queue_of_2_to_the_32_commands_is_worked_off_in_portions() {
    const BUDGET: u32 = 32;
    let config = Config::nested().with_budget(BUDGET);
    let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config).translate();
    let base = vm.memory.allocate(16);
    for index in 0..4096 {
        let page = Iotinval::ALL.address(Iova::new(index << 13)).pscid(PSCID);
        vm.memory.write_words(Gpa::new(base.get() + index * 16), &page.vma());
    }
    vm.write(reg::CQCSR, 0);
    vm.write(reg::CQB, base.get() >> 2 | 31);
    vm.write(reg::CQCSR, reg::ENABLE);
    vm.forget();
    vm.write(reg::CQT, u64::from(u32::MAX));
    let mut progress = vm.progress();
    for call in 1..=100 {
        assert_eq!(progress, Progress::Runnable);
        assert_eq!(vm.read(reg::CQH), call * u64::from(BUDGET));
        assert!(vm.memory.take_loads().len() <= 3, "two spans of 16 commands and the one behind them");
        assert!(vm.orders().len() <= 3, "a full batch goes out for every 16 of these");
        progress = vm.iommu.run();
    }
}

#[test]
fn t14_a_range_of_all_pages_is_one_order() {
    let mut vm = Vm::translating();
    // AV and S; a page number of 51 ones below a zero is 2^52 pages (VMA-14).
    vm.ring(&[[0x401, (u64::MAX >> 13) << 10 | 1 << 9], Iofence::PLAIN.encode()]);
    let orders = vm.orders();
    let [Invalidation::Pages(pages)] = invalidations(&orders)[..] else { panic!("{orders:x?}") };
    assert_eq!((pages.first, pages.last), (Iova::new(0), Iova::new(0xffff_ffff_ffff_f000)));
    assert_eq!(orders.len(), 2, "one batch, one fence");
}

#[test]
fn t14_naming_every_device_walks_for_the_attached_ones() {
    let mut vm = Vm::translating();
    vm.attach(OTHER, NIC);
    vm.forget();
    vm.ring(&[inval_ddt(None), Iofence::PLAIN.encode()]);
    let loads = vm.memory.take_loads();
    let root = vm.directory.root().get();
    assert_eq!(loads.iter().filter(|(at, _)| at.get() & !0xfff == root).count(), 2, "{loads:x?}");
    assert!(loads.len() <= 1 + 2 * 4, "{loads:x?}");
}

#[test]
fn t15_the_head_passes_a_fence_only_after_the_host_finished() {
    let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Wired, &Config::nested()).translate();
    let at = vm.memory.allocate(1);
    vm.physical.set_pending(true);
    vm.ring(&[Iotinval::ALL.vma(), Iofence::PLAIN.store(at, 1).wsi().encode(), Iotinval::ALL.vma()]);
    for _ in 0..3 {
        assert_eq!(vm.iommu.run(), Progress::Waiting);
        assert_eq!(vm.read(reg::CQH), 1, "on the fence");
        assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE, "no fence_w_ip");
        assert_eq!(vm.memory.read(at), 0);
    }
    let fences = vm.orders().iter().filter(|order| matches!(order, Order::Fence(..))).count();
    assert_eq!(fences, 1);
    vm.settle();
    assert_eq!((vm.read(reg::CQH), vm.memory.read(at)), (3, 1));
    assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE | reg::FENCE_W_IP);
}

#[test]
fn t15_the_directory_is_busy_until_the_host_finished() {
    let mut vm = Vm::translating();
    vm.physical.set_pending(true);
    vm.write(reg::DDTP, 0);
    for _ in 0..3 {
        assert_eq!(vm.iommu.run(), Progress::Waiting);
        assert_eq!(vm.read(reg::DDTP), reg::DDTP_BUSY);
    }
    let orders = vm.orders();
    assert!(matches!(orders.last(), Some(Order::Fence(_, FenceScope::ALL, Ok(Completion::Pending)))), "{orders:?}");
    vm.settle();
    assert_eq!(vm.read(reg::DDTP), 0);
}

#[test]
fn t23_ats_commands_are_illegal_where_ats_is_not_offered() {
    for function in 0..8 {
        let mut vm = Vm::translating();
        vm.ring(&[[4 | function << 7 | 1 << 33 | u64::from(DEVICE.get()) << 40, 0], Iotinval::ALL.vma()]);
        assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE | reg::CMD_ILL);
        assert_eq!((vm.read(reg::CQH), vm.orders()), (0, vec![]));
    }
}
