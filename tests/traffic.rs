//! Devices that do DMA and send Page Requests throughout every change of a context: nobody else is harmed, and no
//! access is served by a mixture of two contexts (rules UPD-02, UPD-06, UPD-07; threats T12, T33, T40).

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, OFF, PAGE_A, PAGE_B, Rig, device, id, pscid};
use riscv_viommu::mock::guest::{Iotinval, inval_ddt};
use riscv_viommu::mock::{Access, Hardware, Strategy, Traffic};
use riscv_viommu::{Config, Context, DevicePolicy, Gpa, Iova, PageRequest, Prgi, Progress, ResponseCode};

/// Where a device can stand. Each is reached by what a guest or a host does, and fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Off,
    Bare,
    NotValid,
    Misconfigured,
    /// A context without a first stage.
    SecondStage,
    Processes,
    A1,
    B1,
    B2,
    Detached,
    Reset,
}

const PLACES: [Place; 11] = [
    Place::Off,
    Place::Bare,
    Place::NotValid,
    Place::Misconfigured,
    Place::SecondStage,
    Place::Processes,
    Place::A1,
    Place::B1,
    Place::B2,
    Place::Detached,
    Place::Reset,
];

/// The other VM's device, and an address at which it faults.
const OTHER: Iova = Iova::new(0x6660_0000);

/// Two VMs on one IOMMU: the first one's device moves about, the second one's is blocked, and faults all the while.
fn vms(strategy: Strategy) -> (Hardware, Rig, Rig) {
    let hardware = Hardware::default();
    let mut moving: Rig = Rig::with(&hardware, 1, &Config::nested());
    let mut other: Rig = Rig::with(&hardware, 2, &Config::nested());
    let _ = (moving.attach(0), other.attach(0));
    hardware.set_strategy(strategy);
    hardware.set_traffic(Some(Traffic::new(IOVA).with_bystander(device(2, 0), OTHER)));
    (hardware, moving, other)
}

/// What the device gets there.
fn access(place: Place) -> Access {
    match place {
        Place::Bare | Place::SecondStage | Place::Processes => Access::Translated(Gpa::new(IOVA.get())),
        Place::A1 => Access::Translated(PAGE_A),
        Place::B1 | Place::B2 => Access::Translated(PAGE_B),
        _ => Access::Blocked,
    }
}

/// Takes the device there; the calls are made, and may leave work behind.
fn go(rig: &mut Rig, place: Place) {
    let context = match place {
        Place::NotValid => Some([0; 4]),
        Place::Misconfigured => Some([1 | 1 << 12, 0, 0, 0]),
        Place::SecondStage => Some([1, 0, 0, 0]),
        Place::Processes => Some([1 | 1 << 5, 0, 0, 0]),
        Place::A1 => Some(rig.a.context(pscid(1))),
        Place::B1 => Some(rig.b.context(pscid(1))),
        Place::B2 => Some(rig.b.context(pscid(2))),
        _ => None,
    };
    match (place, context) {
        (Place::Detached, _) => assert!(rig.iommu.detach(id(0)).is_ok()),
        (Place::Reset, _) => {
            let _ = rig.iommu.reset();
        }
        (Place::Off, _) => {
            let _ = rig.ddtp(OFF);
        }
        (Place::Bare, _) => {
            let _ = rig.ddtp(BARE);
        }
        (_, Some(context)) => {
            rig.directory.set(id(0), &context);
            let _ = rig.enter();
            let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        }
        _ => {}
    }
}

/// What has to be done before the device can go elsewhere.
fn come_back(rig: &mut Rig, place: Place) {
    match place {
        Place::Detached => {
            let _ = rig.attach(0);
        }
        Place::Reset => rig.turn_on(),
        _ => {}
    }
}

/// The device goes from every place to every other, accessing memory at every step: how often that harmed somebody.
fn harm(strategy: Strategy, pending: bool) -> [u64; 3] {
    let (hardware, mut rig, other) = vms(strategy);
    for from in PLACES {
        for to in PLACES {
            for place in [from, to] {
                let before = rig.dma(0).access;
                rig.physical.set_pending(pending);
                go(&mut rig, place);
                for _ in 0..20 {
                    if rig.iommu.progress() == Progress::Idle {
                        break;
                    }
                    // Old, new, or blocked on the way; and PRI of the function stays on.
                    let during = rig.dma(0).access;
                    assert!(
                        [before, access(place), Access::Blocked].contains(&during),
                        "{from:?} to {to:?}: {during:?}"
                    );
                    let answer = hardware.page_request(device(1, 0), &PageRequest::read(IOVA, Prgi::truncate(0)));
                    assert_eq!(answer, Some(ResponseCode::InvalidRequest), "UPD-06");
                    let _ = hardware.take_faults();
                    let _ = rig.complete_these();
                }
                assert_eq!(rig.iommu.progress(), Progress::Idle, "{from:?} to {to:?} does not end");
                let after = rig.dma(0);
                assert_eq!((after.access, after.stale), (access(place), false), "{from:?} to {to:?} by {strategy:?}");
                assert!(place == Place::Reset || rig.passed(), "{from:?} to {to:?}");
                rig.physical.set_pending(false);
                come_back(&mut rig, place);
                let _ = hardware.take_faults();
            }
        }
    }
    // The other's device is where it was, and its fault arrives.
    assert_eq!(other.context(0), "Blocked");
    let _ = hardware.dma(device(2, 0), None, OTHER, false);
    assert_eq!(hardware.take_faults().len(), 1);
    [hardware.mixtures(), hardware.response_failures(), hardware.lost_faults(device(2, 0))]
}

#[test]
fn no_change_of_a_context_harms_anybody_whatever_way_the_host_goes() {
    for strategy in [Strategy::Switch, Strategy::ThroughBlocked, Strategy::Stepwise] {
        for pending in [false, true] {
            assert_eq!(harm(strategy, pending), [0; 3], "T12, T33: {strategy:?}, pending {pending}");
        }
    }
}

/// From A to B, by a host that goes wrong.
fn harm_of(strategy: Strategy) -> [u64; 3] {
    let (hardware, mut rig, _other) = vms(Strategy::Switch);
    go(&mut rig, Place::A1);
    hardware.set_strategy(strategy);
    go(&mut rig, Place::B2);
    [hardware.mixtures(), hardware.response_failures(), hardware.lost_faults(device(2, 0))]
}

#[test]
fn the_detectors_see_a_host_that_goes_through_an_invalid_context() {
    let [mixtures, response_failures, lost] = harm_of(Strategy::Careless);
    assert_eq!(mixtures, 0);
    assert!(response_failures > 0 && lost > 0, "UPD-06, T33");
}

#[test]
fn the_detectors_see_a_host_that_mixes_contexts() {
    let [mixtures, response_failures, _] = harm_of(Strategy::Mixed);
    assert!(mixtures > 0, "UPD-02, T12");
    assert_eq!(response_failures, 0);
}

#[test]
#[should_panic(expected = "contract: adopt of PhysicalDevice(256)")]
fn t40_a_device_of_one_vm_can_not_be_attached_by_another() {
    let (_, _rig, mut other) = vms(Strategy::Switch);
    let _ = other.iommu.attach(id(5), device(1, 0), DevicePolicy::default());
}

#[test]
fn t40_a_device_that_was_given_back_can_be() {
    let (_, mut rig, mut other) = vms(Strategy::Switch);
    assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
    assert!(other.iommu.attach(id(5), device(1, 0), DevicePolicy::default()).is_ok());
}

#[test]
fn t04_what_one_vm_invalidates_another_keeps() {
    let (_, mut rig, mut other) = vms(Strategy::Switch);
    for vm in [&mut rig, &mut other] {
        go(vm, Place::A1);
        assert_eq!(vm.dma(0).access, Access::Translated(PAGE_A));
        vm.memory.write(vm.a.entry_address(IOVA, 0), 0);
        assert!(vm.dma(0).stale);
    }
    // The same PSCIDs, ids and addresses: everything the other can say.
    for command in [
        Iotinval::ALL.vma(),
        Iotinval::ALL.gvma(),
        Iotinval::ALL.gscid(riscv_viommu::Gscid::new(1).unwrap()).vma(),
        Iotinval::ALL.gscid(riscv_viommu::Gscid::new(1).unwrap()).gvma(),
        Iotinval::ALL.pscid(pscid(1)).vma(),
        Iotinval::ALL.address(IOVA).non_leaf().vma(),
        inval_ddt(None),
        inval_ddt(Some(id(0))),
    ] {
        let _ = other.ring([command, FENCE.encode()]);
        assert!(other.passed());
    }
    let _ = other.iommu.reset();
    let _ = other.iommu.shutdown();
    assert!(rig.dma(0).stale, "T04");
    let _ = rig.ring([Iotinval::ALL.vma(), FENCE.encode()]);
    assert!(!rig.dma(0).stale);
}

#[test]
fn an_access_is_served_by_one_context_until_the_fence_and_by_the_next_from_then_on() {
    let (hardware, mut rig, _other) = vms(Strategy::Switch);
    hardware.set_traffic(None);
    go(&mut rig, Place::A1);
    assert_eq!(rig.dma(0).access, Access::Translated(PAGE_A));
    rig.physical.set_pending(true);
    go(&mut rig, Place::NotValid);
    // Blocked in memory, but the fence is not complete: the old context may be in use, whole.
    let between = rig.dma(0);
    assert_eq!((between.access, between.stale), (Access::Translated(PAGE_A), true));
    assert!(matches!(between.context, Some(Context::FirstStage(_))));
    assert!(!rig.passed(), "T11");
    let _ = rig.complete();
    assert_eq!((rig.dma(0).access, rig.passed()), (Access::Blocked, true));
}
