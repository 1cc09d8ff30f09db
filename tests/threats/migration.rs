//! An image of the vIOMMU, which anybody may have written, and what becomes of devices where it is taken.

use riscv_viommu::mock::guest::{AtsCommand, inval_ddt, register as reg};
use riscv_viommu::mock::tables::tc;
use riscv_viommu::mock::{Access, Order};
use riscv_viommu::{
    Applied, AttachError, Capabilities, FenceScope, Health, HostCapabilities, PageRequest, PageRequestOutcome,
    PhysicalIommu, Prgi, RestoreError, SecondStageMode,
};

use super::*;

/// Offsets in an image.
const FLAGS: usize = 21;
const CAPABILITIES: usize = 80;
const LISTS: usize = 1112;

fn config() -> Config {
    Config::nested().with_ats(true)
}

/// A guest in the middle of everything: a fence waits, an ATS invalidation has no answer, a page request none, and a
/// message waits for its mask.
fn busy() -> (Vm, Vec<u8>) {
    let (mut vm, _) = Vm::with_processes(&Hardware::default(), 1, NVME, tc::EN_ATS | tc::EN_PRI);
    let attachment = {
        let _ = vm.iommu.detach(DEVICE);
        vm.attach_with(DEVICE, NVME, Ats::PageRequests)
    };
    let request = PageRequest::read(Iova::new(0x5000_0000), Prgi::truncate(7)).with_process(PROCESS, false);
    assert_eq!(vm.hardware.page_request(NVME, &request), None);
    assert_eq!(vm.iommu.report_page_request(attachment, &request), PageRequestOutcome::Queued);
    vm.write(reg::MSI_CFG_TBL + 12, 1);
    vm.write(reg::PQCSR, reg::ENABLE | reg::INTERRUPT_ENABLE);
    vm.physical.set_pending(true);
    let id = u16::try_from(DEVICE.get()).unwrap();
    vm.ring(&[Iofence::PLAIN.encode(), AtsCommand::to(id).inval(0x1000)]);
    let image = vm.image();
    assert_eq!((image[FLAGS] & 1, image.len()), (1, LISTS + 8 + 16), "a fence waits, a device and a group");
    vm.physical.set_pending(false);
    vm.settle();
    (vm, image)
}

/// What a vIOMMU that was not given an image, and may have no device at work, is like.
fn assert_shut(vm: &mut Vm, why: &str) {
    for (offset, value) in [(reg::DDTP, 0), (reg::CQCSR, 0), (reg::FQCSR, 0), (reg::PQCSR, 0), (reg::CQB, 0)] {
        assert_eq!(vm.read(offset), value, "{why}: register {offset}");
    }
    assert_eq!(vm.iommu.health(), Health::Degraded, "{why}");
    assert_eq!(vm.physical.context(NIC), Some(Context::Blocked), "{why}");
}

#[test]
fn t29_devices_start_blocked_and_are_driven_anew_from_guest_memory() {
    let (vm, image) = busy();
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    // In the image the device had a process directory; the guest's memory has this for it now.
    let [bits, second, ta, fsc] = vm.table.context(Pscid::truncate(6));
    vm.directory.set(DEVICE, &[bits, second, ta, fsc]);
    vm.physical.set_pending(true);
    assert_eq!(vm.iommu.restore(&image), Ok(Progress::Waiting));
    let orders = vm.orders();
    let [Order::SetContext(NIC, Context::Blocked, Ok(_)), Order::Invalidate(batch, Ok(())), Order::Fence(_, scope, _)] =
        &orders[..]
    else {
        panic!("{orders:?}")
    };
    assert_eq!((&batch[..], *scope), (&[Invalidation::Everything][..], FenceScope::ALL));
    assert!(vm.memory.take_loads().is_empty(), "nothing is decided on before");
    assert_eq!(vm.hardware.dma(NIC, None, IOVA, false).access, Access::Blocked);
    assert_eq!(vm.iommu.run(), Progress::Waiting);
    assert_eq!(vm.orders(), []);
    vm.settle();
    let stage = match vm.physical.context(NIC) {
        Some(Context::FirstStage(stage)) => Some(stage.pscid.get()),
        context => panic!("{context:?}"),
    };
    let dma = vm.hardware.dma(NIC, None, IOVA, false);
    assert_eq!((stage, dma.access, dma.stale), (Some(6), Access::Translated(BUFFER), false));
}

#[test]
fn t29_an_image_gives_a_device_nothing_that_its_host_did_not() {
    let (vm, image) = busy();
    let hardware = Hardware::default();
    // Attached without ATS, under no id of the image, or under another one.
    let mut vm = vm.elsewhere(&hardware, &config());
    let _ = vm.iommu.detach(DEVICE);
    for (id, ats) in [(DEVICE, Ats::Off), (DEVICE, Ats::Translations), (OTHER, Ats::PageRequests)] {
        vm.attach_with(id, NIC, ats);
        let refused = vm.iommu.restore(&image);
        assert_eq!(refused, Err(RestoreError::NotAttached { device_id: DEVICE.get() }), "T23: {id:?} {ats:?}");
        assert_shut(&mut vm, "not granted");
        let _ = vm.iommu.reset();
        let _ = vm.iommu.detach(id);
    }
    // With ATS, but the guest was promised none: what its contexts say of it is misconfigured.
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    let quiet = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &Config::nested()).image();
    let ddtp = vm.directory.ddtp();
    assert!(matches!(vm.iommu.restore(&quiet), Ok(Progress::Idle)));
    vm.write(reg::DDTP, ddtp);
    assert_eq!(vm.physical.context(NIC), Some(Context::Blocked), "DCK-02, T23");
}

#[test]
fn t29_every_bit_of_an_image_is_checked_or_is_the_guests_own() {
    let (vm, image) = busy();
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    let (mut taken, mut refused) = (0, 0);
    for place in 0..image.len() {
        for bit in 0..8 {
            let mut bad = image.clone();
            bad[place] ^= 1 << bit;
            let why = format!("byte {place}, bit {bit}");
            // The contract of the physical side is checked by its model all the while.
            let is_taken = vm.iommu.restore(&bad).is_ok();
            vm.settle();
            if is_taken {
                taken += 1;
                // What the image is of is what it was, and what means nothing is 0.
                let fixed = matches!(place, 0..FLAGS | 25..32 | 1106..LISTS) || (place, bit) == (FLAGS, 7);
                assert!(!fixed, "{why}");
                // What hardware has is what memory says, or nothing.
                let context = vm.physical.context(NIC);
                let known =
                    matches!(context, Some(Context::Blocked | Context::Processes(_) | Context::SecondStageOnly { .. }));
                assert!(known, "{why}: {context:?}");
            } else {
                refused += 1;
                assert_shut(&mut vm, &why);
            }
            let capabilities = vm.read(reg::CAPABILITIES);
            let own = u64::from_le_bytes(image[CAPABILITIES..CAPABILITIES + 8].try_into().unwrap());
            assert_eq!(capabilities & !own, 0, "T18: {why}");
            let orders = vm.orders();
            assert!(!orders.iter().any(|order| matches!(order, Order::Release(_) | Order::Adopt(..))), "{why}");
        }
    }
    // Of the head and the lists hardly anything is free; of the page what a guest may write.
    assert!(taken > 500 && refused > taken, "{taken} taken, {refused} refused");
    for length in 0..image.len() {
        assert!(vm.iommu.restore(&image[..length]).is_err(), "{length} bytes");
    }
    assert!(vm.iommu.restore(&[&image[..], &[0; 8]].concat()).is_err());
    assert!(vm.iommu.restore(&image).is_ok());
}

#[test]
fn t29_an_image_holds_no_more_than_there_is_room_for() {
    let (vm, image) = busy();
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    let group = |index: u16| {
        let mut group = image[image.len() - 16..].to_vec();
        group[8..10].copy_from_slice(&index.to_le_bytes());
        group
    };
    let with_groups = |groups: Vec<Vec<u8>>| {
        let mut bytes = image[..image.len() - 16].to_vec();
        bytes[30..32].copy_from_slice(&u16::try_from(groups.len()).unwrap().to_le_bytes());
        bytes.extend(groups.concat());
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    assert!(vm.iommu.restore(&with_groups((0..8).map(group).collect())).is_ok(), "GROUPS is 8");
    let many = vm.iommu.restore(&with_groups((0..9).map(group).collect()));
    assert_eq!(many, Err(RestoreError::Capacity("GROUPS")));
    let twice = vm.iommu.restore(&with_groups(vec![group(1), group(1)]));
    assert!(matches!(twice, Err(RestoreError::State(_))), "PRG-05: {twice:?}");
    // A byte that says how many requests are under way.
    let mut requests = image.clone();
    requests[LISTS + 5] = 3;
    assert_eq!(vm.iommu.restore(&requests), Err(RestoreError::Capacity("ITAGS")));
    assert_shut(&mut vm, "no room");
}

#[test]
fn t29_a_guest_without_ats_has_asked_devices_for_nothing() {
    let (vm, image) = busy();
    let mut quiet = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &Config::nested()).image();
    assert_eq!(quiet.len(), LISTS);
    // The group of a guest with ATS, in the image of one without.
    quiet.extend(&image[image.len() - 16..]);
    quiet[30] = 1;
    let length = u32::try_from(quiet.len()).unwrap();
    quiet[12..16].copy_from_slice(&length.to_le_bytes());
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    let refused = vm.iommu.restore(&quiet);
    let why = RestoreError::State("an ATS request or page request that can not be");
    assert_eq!(refused, Err(why), "REG-CAP-47");
    assert_shut(&mut vm, "no ATS");
}

#[test]
fn t18_an_image_that_promises_more_or_hides_what_hardware_does_is_refused() {
    let (vm, image) = busy();
    let promised = u64::from_le_bytes(image[CAPABILITIES..CAPABILITIES + 8].try_into().unwrap());
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    // PAS is a number, and the image's own is the most there is.
    for bit in (0..64).filter(|bit| promised >> bit & 1 == 0 && !(32..38).contains(bit)) {
        let mut more = image.clone();
        more[CAPABILITIES..CAPABILITIES + 8].copy_from_slice(&(promised | 1 << bit).to_le_bytes());
        let refused = vm.iommu.restore(&more);
        assert!(
            matches!(refused, Err(RestoreError::Capabilities(_) | RestoreError::Promise(_))),
            "MIG, MRG-12: bit {bit}, {refused:?}"
        );
        assert_shut(&mut vm, "more was promised");
    }
    // A guest that was told of no Svpbmt, on hardware that honours it; and of less than all schemes.
    let able = vm.physical.capabilities();
    let mut svpbmt = able;
    svpbmt.capabilities = svpbmt.capabilities.with_svpbmt(true);
    let offer = Capabilities::from_bits(u64::MAX).with_pas(56).with_sv57(true);
    let offering = config().with_capabilities(offer);
    let takes = |host: HostCapabilities, config: &Config| {
        let mut vm = vm.elsewhere(&Hardware::new(host), config);
        let result = vm.iommu.restore(&image);
        if result.is_err() {
            assert_shut(&mut vm, "hidden");
        }
        result.map(|_| ())
    };
    assert_eq!(takes(able, &config()), Ok(()));
    assert_eq!(takes(svpbmt, &offering), Err(RestoreError::Promise("Svpbmt")), "MRG-12, T44");
}

/// Blocked, invalidated, fenced, of one device: where in the orders each is.
fn way_out(orders: &[Order], device: PhysicalDevice) -> [usize; 3] {
    let last =
        |wanted: &dyn Fn(&Order) -> bool| orders.iter().rposition(wanted).unwrap_or_else(|| panic!("{orders:?}"));
    let blocked = last(&|order| *order == Order::SetContext(device, Context::Blocked, Ok(Applied::Switched)));
    let meant = |batch: &[Invalidation<PhysicalDevice>]| {
        batch.contains(&Invalidation::Device(device)) || batch.contains(&Invalidation::Everything)
    };
    let invalidated = last(&|order| matches!(order, Order::Invalidate(batch, Ok(())) if meant(batch)));
    [blocked, invalidated, last(&|order| matches!(order, Order::Fence(_, FenceScope::ALL, Ok(_))))]
}

#[test]
fn t19_whatever_takes_devices_from_a_guest_blocks_invalidates_fences_and_only_then_releases() {
    type Way = fn(&mut Vm) -> Progress;
    let ways: [(Way, bool, &str); 5] = [
        (|vm| vm.iommu.detach(DEVICE).unwrap(), true, "detach"),
        (|vm| vm.iommu.shutdown(), true, "shutdown"),
        (|vm| vm.iommu.reset(), false, "reset"),
        (
            |vm| {
                assert_eq!(vm.iommu.restore(&[]), Err(RestoreError::NotAnImage));
                vm.progress()
            },
            false,
            "a failed restore",
        ),
        (
            |vm| {
                vm.hardware
                    .set_capabilities_of(NIC, HostCapabilities::new(Capabilities::new(), SecondStageMode::Sv48x4));
                let refused = vm.iommu.attach(OTHER, NIC, DevicePolicy::default());
                assert!(matches!(refused, Err(AttachError::Capability(_))), "{refused:?}");
                vm.progress()
            },
            true,
            "a refused attach",
        ),
    ];
    for (way, releases, name) in ways {
        for ats in [false, true] {
            let mut vm =
                if ats { Vm::with_processes(&Hardware::default(), 1, NVME, tc::EN_ATS).0 } else { Vm::translating() };
            let device = if name == "a refused attach" { NIC } else { NVME };
            assert!(!vm.dma().stale);
            vm.physical.set_pending(true);
            assert_eq!(way(&mut vm), Progress::Waiting, "{name}");
            assert!(!vm.orders().contains(&Order::Release(device)), "{name}: nothing has been fenced");
            // Step by step, so that no step comes before its fence is complete.
            let mut orders = Vec::new();
            while vm.progress() != Progress::Idle {
                assert_eq!(vm.iommu.run(), Progress::Waiting, "{name}");
                for ticket in vm.physical.complete_all() {
                    let _ = vm.iommu.fence_done(ticket, vm.physical.outcome(ticket));
                }
                orders.extend(vm.orders());
            }
            assert_eq!(orders.contains(&Order::Release(device)), releases, "{name}");
            assert_eq!(vm.hardware.context(device), Some(Context::Blocked), "{name}");
            assert!(vm.hardware.kept(device).is_empty(), "{name}");
            let dma = vm.hardware.dma(device, None, IOVA, true);
            assert_eq!((dma.access, dma.stale), (Access::Blocked, false), "{name}");
        }
        // And in one go the calls are in this order.
        let mut vm = Vm::translating();
        let device = if name == "a refused attach" { NIC } else { NVME };
        assert_eq!(way(&mut vm), Progress::Idle, "{name}");
        let orders = vm.orders();
        let [blocked, invalidated, fenced] = way_out(&orders, device);
        assert!(blocked < invalidated && invalidated < fenced, "{name}: {orders:?}");
        let released = orders.iter().position(|order| *order == Order::Release(device));
        assert_eq!(released.map(|at| at > fenced), releases.then_some(true), "{name}: {orders:?}");
    }
}

#[test]
fn t19_a_failed_restore_stays_until_the_reset() {
    let (vm, image) = busy();
    let mut vm = vm.elsewhere(&Hardware::default(), &config());
    let ddtp = vm.directory.ddtp();
    assert!(vm.iommu.restore(&image).is_ok());
    assert!(vm.physical.context(NIC).is_some_and(|context| context.is_open()));
    assert!(vm.iommu.restore(&image[1..]).is_err());
    assert_shut(&mut vm, "at first");
    // Whatever the guest and the host do, but for a reset.
    vm.turn_queues_on();
    vm.write(reg::DDTP, ddtp);
    vm.ring(&[inval_ddt(None), Iofence::PLAIN.encode()]);
    let _ = vm.iommu.resync(DEVICE);
    let _ = vm.iommu.device_reset(DEVICE);
    let _ = vm.iommu.host_lost_state();
    let _ = vm.iommu.invalidate_gpa(Gpa::new(0)..=Gpa::new(u64::MAX));
    vm.settle();
    assert_eq!((vm.physical.context(NIC), vm.iommu.health()), (Some(Context::Blocked), Health::Degraded));
    let refused = vm.iommu.attach(OTHER, NVME, DevicePolicy::default());
    assert_eq!(refused.map(|_| ()), Err(AttachError::NeedsReset));
    let _ = vm.iommu.reset();
    vm.write(reg::DDTP, ddtp);
    assert!(vm.physical.context(NIC).is_some_and(|context| context.is_open()));
    assert_eq!(vm.iommu.health(), Health::Good);
}
