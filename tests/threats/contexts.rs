//! What the guest puts into its device directory.

use riscv_viommu::mock::guest::{Iotinval, inval_ddt, register as reg};
use riscv_viommu::mock::tables::{bare, tc};
use riscv_viommu::mock::{Access, Order, Strategy, Traffic};
use riscv_viommu::{
    Applied, Cause, FenceOutcome, Health, HostFault, MemoryFault, OrderError, PageRequest, Prgi, ProcessDirectoryMode,
    ResponseCode, TransactionType,
};

use super::*;

/// The guest changed the context of [`DEVICE`] and says so.
fn say_so(vm: &mut Vm) {
    vm.ring(&[inval_ddt(Some(DEVICE)), Iofence::PLAIN.accesses(true, true).encode()]);
}

/// What a guest does.
type Deed = fn(&Vm);

/// Ways to leave a device without a context, and the cause of the fault the guest should see.
const SPOILED: [(Deed, u64); 6] = [
    (|vm| vm.directory.invalidate(DEVICE), 258),
    (|vm| vm.memory.write(vm.directory.non_leaf_address(DEVICE, 2), 0), 258),
    (|vm| vm.memory.write(vm.directory.entry_address(DEVICE), 1 << 12 | 1), 259),
    (|vm| vm.memory.fail(vm.directory.entry_address(DEVICE), 8, MemoryFault::Access), 257),
    (|vm| vm.memory.fail(vm.directory.entry_address(DEVICE), 8, MemoryFault::Corruption), 268),
    (|vm| vm.memory.unmap(vm.directory.root(), 8), 257),
];

#[test]
fn t08_a_context_is_read_once_and_decided_on_as_a_copy() {
    for extended in [false, true] {
        let config = Config::nested().with_extended_contexts(extended);
        let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config).translate();
        let at = vm.directory.entry_address(DEVICE);
        let good = vm.table.context(Pscid::truncate(7));
        // Whoever reads a word again finds another context there, a good one and then one that is not.
        for (word, &value) in (0..4).zip(&good) {
            vm.memory.on_load(Gpa::new(at.get() + 8 * word), [value, bare()[0], u64::MAX]);
        }
        say_so(&mut vm);
        assert_eq!(vm.stage(), Some(allowed(&good)));
        let loads = vm.memory.take_loads();
        let of_page = loads.iter().filter(|(load, _)| load.get() & !0xfff == at.get() & !0xfff);
        assert_eq!(of_page.copied().collect::<Vec<_>>(), [(at, if extended { 8 } else { 4 })]);
    }
}

#[test]
fn t08_a_command_is_read_once_and_decided_on_as_a_copy() {
    let mut vm = Vm::translating();
    let at = vm.memory.allocate(1);
    let [low, high] = Iofence::PLAIN.store(at, 1).encode();
    let entry = vm.commands.entry(0);
    vm.memory.on_load(entry, [Iotinval::ALL.pscid(PSCID).vma()[0], low, 0]);
    vm.memory.on_load(Gpa::new(entry.get() + 8), [0, high, 0]);
    vm.ring(&[Iotinval::ALL.vma(), Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [Invalidation::AddressSpace(PSCID)]);
    assert_eq!(vm.memory.take_loads(), [(entry, 4)]);
    assert_eq!(vm.memory.take_posts(), []);
}

#[test]
fn t10_a_context_is_built_from_an_allow_list() {
    for words in [4_u64, 8] {
        let config = Config::nested().with_extended_contexts(words == 8);
        for bit in 0..words * 64 {
            let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config).translate();
            let at = Gpa::new(vm.directory.entry_address(DEVICE).get() + bit / 64 * 8);
            vm.memory.write(at, vm.memory.read(at) ^ 1 << (bit % 64));
            say_so(&mut vm);
            let place = (bit / 64, bit % 64);
            // SADE is offered, DTF is for the crate to apply; PSCID; PPN; Sv48 becomes Sv39.
            let taken = matches!(place, (0, 4 | 8) | (2, 12..32) | (3, 0..44 | 60));
            // GADE and custom bits, the second stage and the MSI table that are not in use.
            let ignored = matches!(place, (0, 7 | 24..32) | (1, 0..60) | (4, 0..44) | (5 | 6, 0..38));
            let now = vm.memory.read_words(vm.directory.entry_address(DEVICE), 4);
            let stage = (taken || ignored).then(|| allowed(&now));
            assert_eq!(vm.stage(), stage, "bit {bit}");
            assert_eq!(vm.context() == Some(Context::Blocked), stage.is_none(), "bit {bit}");
        }
    }
}

/// MODE, root, DPE, SADE and ATS of what hardware has for [`DEVICE`].
fn directory(vm: &Vm) -> Option<(u8, u64, bool, bool, Ats)> {
    match vm.context()? {
        Context::Processes(processes) => {
            let mode = match processes.mode {
                ProcessDirectoryMode::Pd8 => 1,
                ProcessDirectoryMode::Pd17 => 2,
                _ => 3,
            };
            assert!(!processes.sbe, "MRG-06: not offered");
            Some((mode, processes.root.get(), processes.dpe, processes.sade, processes.ats))
        }
        _ => None,
    }
}

#[test]
fn t08_a_context_with_a_process_directory_is_read_once_and_decided_on_as_a_copy() {
    let (mut vm, processes) = Vm::with_processes(&Hardware::default(), 1, NVME, tc::EN_ATS);
    let at = vm.directory.entry_address(DEVICE);
    let (other, good) = (ProcessDirectory::new(&vm.memory, 1), ProcessDirectory::new(&vm.memory, 3));
    assert_eq!(directory(&vm).map(|found| found.1), Some(processes.root().get() >> 12));
    // PDTV and what fsc means because of it, EN_ATS and what it needs: none comes from another reading.
    let words = good.context(tc::DPE | tc::EN_ATS);
    for (word, (first, second)) in (0..4).zip(words.into_iter().zip(other.context(tc::EN_PRI))) {
        vm.memory.on_load(Gpa::new(at.get() + 8 * word), [first, second, u64::MAX]);
    }
    say_so(&mut vm);
    assert_eq!(directory(&vm), Some((3, good.root().get() >> 12, true, false, Ats::Translations)), "MRG-16");
    let loads = vm.memory.take_loads();
    assert_eq!(loads.iter().filter(|(load, _)| load.get() & !0xfff == at.get() & !0xfff).count(), 1, "{loads:x?}");
}

#[test]
fn t08_a_page_request_is_decided_on_what_was_read_once() {
    let (mut vm, _) = Vm::with_processes(&Hardware::default(), 1, NVME, tc::EN_ATS | tc::EN_PRI);
    let _ = vm.iommu.detach(DEVICE);
    let attachment = vm.attach_with(DEVICE, NVME, Ats::PageRequests);
    vm.forget();
    // The guest's tables allow it, which is the host's to resolve; no entry is looked at twice on the way.
    let request = PageRequest::read(IOVA, Prgi::truncate(1)).with_process(PROCESS, false);
    assert_eq!(vm.iommu.report_page_request(attachment, &request), riscv_viommu::PageRequestOutcome::HostPage);
    let loads = vm.memory.take_loads();
    let mut places: Vec<_> = loads.iter().map(|(at, _)| *at).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), loads.len(), "VT-10: {loads:x?}");
    // 3 of the directory, 2 of the process directory, 4 of the table.
    assert_eq!(loads.len(), 9, "VT-10: {loads:x?}");
}

#[test]
fn t10_a_context_with_a_process_directory_is_built_from_an_allow_list() {
    for words in [4_u64, 8] {
        let config = Config::nested().with_extended_contexts(words == 8).with_ats(true);
        for bits in [0, tc::EN_ATS, tc::EN_ATS | tc::EN_PRI] {
            for bit in 0..words * 64 {
                let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config);
                vm.directory.set(DEVICE, &ProcessDirectory::new(&vm.memory, 1).context(bits));
                vm.write(reg::DDTP, vm.directory.ddtp());
                vm.attach_with(DEVICE, NVME, Ats::PageRequests);
                let at = Gpa::new(vm.directory.entry_address(DEVICE).get() + bit / 64 * 8);
                vm.memory.write(at, vm.memory.read(at) ^ 1 << (bit % 64));
                say_so(&mut vm);
                let place = (bit / 64, bit % 64);
                let [now, _, _, fsc] = vm.memory.read_words(vm.directory.entry_address(DEVICE), 4)[..] else {
                    panic!()
                };
                // EN_ATS and EN_PRI where one does not need the other, SADE, DPE; PPN, and PD8 becomes PD20.
                let needs = now & (tc::EN_ATS | tc::EN_PRI) != tc::EN_PRI;
                let taken = matches!(place, (0, 1 | 2) if needs) || matches!(place, (0, 8 | 9) | (3, 0..44 | 61));
                // PRPR is the host's; DTF is for the crate to apply; GADE and custom bits; what is not in use.
                let ignored = place == (0, 6) && now & tc::EN_PRI != 0
                    || matches!(place, (0, 4 | 7 | 24..32) | (1, 0..60) | (2, 12..32) | (4, 0..44) | (5 | 6, 0..38));
                let ats =
                    [Ats::Off, Ats::Translations, Ats::Off, Ats::PageRequests][usize::try_from(now >> 1 & 3).unwrap()];
                let mode = (fsc >> 60).try_into().unwrap();
                let found = (mode, fsc & !(u64::MAX << 44), now & tc::DPE != 0, now & tc::SADE != 0, ats);
                let expected = (taken || ignored).then_some(found);
                assert_eq!(directory(&vm), expected, "MRG-01 to MRG-06: {bits:#x}, bit {bit}");
                let bare = place == (3, 60);
                let blocked = vm.context() == Some(Context::Blocked);
                assert_eq!(blocked, expected.is_none() && !bare, "{bits:#x}, bit {bit}");
            }
        }
    }
}

#[test]
fn t11_a_device_without_a_good_context_is_blocked_before_the_guest_sees_completion() {
    for (index, (spoil, _)) in SPOILED.into_iter().enumerate() {
        let mut vm = Vm::translating();
        assert_eq!(vm.dma().access, Access::Translated(BUFFER));
        vm.physical.set_pending(true);
        spoil(&vm);
        say_so(&mut vm);
        assert_eq!((vm.read(reg::CQH), vm.context()), (1, Some(Context::Blocked)), "way {index}");
        vm.settle();
        let dma = vm.dma();
        assert_eq!((vm.read(reg::CQH), dma.access, dma.stale), (2, Access::Blocked, false), "way {index}");
    }
}

#[test]
fn t11_every_device_is_blocked_before_the_guest_sees_off() {
    let mut vm = Vm::translating();
    assert_eq!(vm.dma().access, Access::Translated(BUFFER));
    vm.physical.set_pending(true);
    vm.write(reg::DDTP, 0);
    assert_eq!((vm.read(reg::DDTP), vm.context()), (reg::DDTP_BUSY, Some(Context::Blocked)));
    vm.settle();
    assert_eq!((vm.read(reg::DDTP), vm.dma().access), (0, Access::Blocked));
}

#[test]
fn t12_hardware_never_uses_half_a_context() {
    for strategy in [Strategy::Switch, Strategy::ThroughBlocked, Strategy::Stepwise] {
        let hardware = Hardware::default();
        hardware.set_strategy(strategy);
        let mut vm = Vm::of(&hardware, 1, InterruptKinds::Both, &Config::nested().with_ats(true));
        vm.directory.set(DEVICE, &vm.table.context(PSCID));
        vm.write(reg::DDTP, vm.directory.ddtp());
        vm.attach_with(DEVICE, NVME, Ats::PageRequests);
        hardware.set_traffic(Some(Traffic::new(IOVA)));
        vm.physical.set_pending(true);
        vm.settle();
        let other = FirstStageTable::new(&vm.memory, FirstStageMode::Sv57);
        let processes = ProcessDirectory::new(&vm.memory, 1);
        for context in [
            other.context(Pscid::truncate(6)),
            processes.context(tc::DPE),
            bare(),
            vm.table.context(PSCID),
            processes.context(tc::EN_ATS | tc::EN_PRI),
            other.context(PSCID),
        ] {
            vm.directory.set(DEVICE, &context);
            say_so(&mut vm);
            vm.settle();
            let stage = (context != bare() && context[0] & tc::PDTV == 0).then(|| allowed(&context));
            assert_eq!((vm.stage(), vm.dma().stale), (stage, false), "{strategy:?}");
            let root = (context[0] & tc::PDTV != 0).then(|| processes.root().get() >> 12);
            assert_eq!(directory(&vm).map(|found| found.1), root, "{strategy:?}");
            assert_ne!(vm.context(), Some(Context::Blocked), "{strategy:?}");
        }
        assert_eq!((hardware.mixtures(), hardware.response_failures()), (0, 0), "{strategy:?}");
    }
}

#[test]
fn t12_a_host_that_does_not_arrive_is_asked_again_after_a_fence() {
    let mut vm = Vm::translating();
    vm.directory.set(DEVICE, &vm.table.context(Pscid::truncate(6)));
    (0..5).for_each(|_| vm.physical.answer_next_set_context(Ok(Applied::Blocked)));
    vm.ring(&[inval_ddt(Some(DEVICE))]);
    assert_eq!(vm.context(), Some(Context::Blocked), "the crate gave up");
    // The guest names the device again, and the model of the host sees that what it blocked last has drained.
    say_so(&mut vm);
    assert_eq!(vm.stage().map(|stage| stage.2), Some(6));
}

#[test]
fn t13_contexts_written_before_ddtp_are_found() {
    let mut vm = Vm::new();
    // The device is there, then its context, then the directory; no command says so.
    vm.attach(DEVICE, NVME);
    vm.directory.set(DEVICE, &vm.table.context(PSCID));
    vm.write(reg::DDTP, vm.directory.ddtp());
    assert_eq!(vm.stage(), Some(allowed(&vm.table.context(PSCID))));
    // The directory, then the device.
    vm.directory.set(OTHER, &bare());
    vm.attach(OTHER, NIC);
    assert_eq!(vm.physical.context(NIC), Some(Context::SecondStageOnly { process_ids: false, ats: Ats::Off }));
}

#[test]
fn t13_a_context_found_by_attach_is_in_force_when_attach_is_done() {
    for strategy in [Strategy::Switch, Strategy::ThroughBlocked, Strategy::Stepwise] {
        let mut vm = Vm::new();
        vm.hardware.set_strategy(strategy);
        vm.directory.set(DEVICE, &vm.table.context(PSCID));
        vm.write(reg::DDTP, vm.directory.ddtp());
        vm.physical.set_pending(true);
        vm.attach(DEVICE, NVME);
        // The device is at work all the time, so that hardware caches what it has.
        while vm.progress() != Progress::Idle {
            let tickets = vm.physical.complete_all();
            vm.dma();
            for ticket in tickets {
                let _ = vm.iommu.fence_done(ticket, FenceOutcome::Complete);
            }
        }
        // The guest need not say anything: to it, the device is new.
        let dma = vm.dma();
        assert_eq!((dma.access, dma.stale), (Access::Translated(BUFFER), false), "{strategy:?}");
    }
}

#[test]
fn t27_a_context_is_where_the_format_and_the_levels_say() {
    for extended in [false, true] {
        for (levels, ids) in [
            (1, &[0, 0x1f, 0x20, 0x3f][..]),
            (2, &[0x40, 0x7f, 0x80, 0x7fff][..]),
            (3, &[0x8, 0x41, 0x8000, 0xa5_a5a5, 0xff_ffff][..]),
        ] {
            for id in ids.iter().copied().map(DeviceId::truncate) {
                let config = Config::nested().with_extended_contexts(extended);
                let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &config);
                vm.directory = Directory::new(&vm.memory, levels, extended);
                vm.directory.set(id, &vm.table.context(PSCID));
                vm.write(reg::DDTP, vm.directory.ddtp());
                vm.attach(id, NVME);
                let found = vm.stage();
                assert_eq!(found, Some(allowed(&vm.table.context(PSCID))), "{id:?}, {levels} levels, {extended}");
            }
        }
    }
}

#[test]
fn t33_a_context_that_is_not_valid_harms_no_other_device() {
    for (index, (spoil, cause)) in SPOILED.into_iter().enumerate() {
        let hardware = Hardware::default();
        let mut neighbour = Vm::of(&hardware, 2, InterruptKinds::Both, &Config::nested());
        neighbour.attach(OTHER, NIC);
        let mut vm = Vm::of(&hardware, 1, InterruptKinds::Both, &Config::nested());
        vm.directory.set(DEVICE, &vm.table.context(PSCID));
        vm.write(reg::DDTP, vm.directory.ddtp());
        let attachment = vm.attach(DEVICE, NVME);
        hardware.set_traffic(Some(Traffic::new(IOVA).with_bystander(NIC, IOVA)));
        spoil(&vm);
        say_so(&mut vm);
        // Hardware has a valid context that blocks: what it reports can be masked, and a Page Request is turned down
        // without harm to the function's siblings.
        assert_eq!(hardware.context(NVME), Some(Context::Blocked), "way {index}");
        let answer = hardware.page_request(NVME, &PageRequest::read(IOVA, Prgi::truncate(0)));
        assert_eq!(answer, Some(ResponseCode::InvalidRequest), "way {index}");
        vm.dma();
        let reported = hardware.take_faults();
        assert!(reported.iter().all(|(_, fault)| !fault.cause.ignores_dtf()), "way {index}: {reported:?}");
        assert_eq!((hardware.response_failures(), hardware.lost_faults(NIC)), (0, 0), "way {index}");
        // The guest sees what its own directory says.
        let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, IOVA);
        let _ = vm.iommu.report_fault(attachment, &fault);
        assert_eq!(vm.causes(), [cause], "way {index}");
    }
}

#[test]
fn t39_a_refused_context_is_blocked_before_anything_else() {
    let mut vm = Vm::translating();
    vm.directory.set(DEVICE, &vm.table.context(Pscid::truncate(6)));
    vm.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
    vm.physical.answer_next_set_context(Err(OrderError::Busy));
    say_so(&mut vm);
    assert_eq!(vm.progress(), Progress::Waiting);
    assert_eq!(vm.read(reg::CQH), 1, "the fence is withheld while the old context may be in use");
    vm.settle();
    let orders = vm.orders();
    let [
        Order::SetContext(NVME, Context::FirstStage(_), Err(OrderError::Refused { .. })),
        Order::SetContext(NVME, Context::Blocked, Err(OrderError::Busy)),
        rest @ ..,
    ] = &orders[..]
    else {
        panic!("{orders:?}")
    };
    let asked_again = rest.iter().filter(|order| matches!(order, Order::SetContext(..)));
    assert!(asked_again.eq([&Order::SetContext(NVME, Context::Blocked, Ok(Applied::Switched))]), "{orders:?}");
    assert_eq!((vm.read(reg::CQH), vm.context()), (2, Some(Context::Blocked)));
    assert_eq!(vm.iommu.health(), Health::Degraded);
    // The guest names the device again: the host may think otherwise now.
    say_so(&mut vm);
    assert_eq!(vm.stage().map(|stage| stage.2), Some(6));
}

#[test]
fn t39_a_device_that_can_not_be_blocked_keeps_the_fence() {
    let mut vm = Vm::translating();
    vm.directory.invalidate(DEVICE);
    vm.physical.answer_next_set_context(Err(OrderError::Fatal));
    say_so(&mut vm);
    for _ in 0..3 {
        let _ = vm.iommu.run();
        assert_eq!((vm.read(reg::CQH), vm.iommu.health()), (1, Health::Failed));
        assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE, "no error of the guest's");
    }
    let orders = vm.orders();
    assert!(orders.iter().all(|order| matches!(order, Order::SetContext(_, Context::Blocked, _))), "{orders:?}");
}
