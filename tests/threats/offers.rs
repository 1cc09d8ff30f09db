//! What the guest is offered, and which hosts may serve it.

use proptest::prelude::*;
use riscv_viommu::mock::Order;
use riscv_viommu::mock::guest::{inval_ddt, register as reg};
use riscv_viommu::{AttachError, Capabilities, ConfigError, HostCapabilities, OrderError, SecondStageMode};

use super::*;

const SVRSW60T59B: u64 = 1 << 14;
const SVPBMT: u64 = 1 << 15;
const ATS: u64 = 1 << 25;
const T2GPA: u64 = 1 << 26;

/// What [`Hardware`] can do by default.
fn able() -> HostCapabilities {
    let hardware = Hardware::default();
    riscv_viommu::PhysicalIommu::capabilities(&hardware.vm(Gscid::truncate(1), &Memory::new()))
}

/// A host whose physical register has these bits too.
fn with_bits(bits: u64) -> HostCapabilities {
    let mut host = able();
    host.capabilities = Capabilities::from_bits(host.capabilities.into_bits() | bits);
    host
}

/// The answer to a start on this host.
fn start(host: HostCapabilities, config: &Config) -> Result<u64, ConfigError> {
    let memory = Memory::new();
    let physical = Hardware::new(host).vm(Gscid::truncate(1), &memory);
    let mut iommu: VIommu<Host> = VIommu::new(Parts { memory, interrupts: Wires::new(InterruptKinds::Msi), physical });
    iommu.start(config)?;
    Ok(iommu.read(reg::CAPABILITIES, Width::U64))
}

#[test]
fn t06_a_guest_reads_and_writes_emulated_registers_only() {
    // A host register with everything in it, of which nothing may shine through.
    let hardware = Hardware::new(with_bits(u64::MAX << 56 | 0xf << 44 | 1 << 30 | 1 << 31 | ATS));
    let mut vm = Vm::of(&hardware, 1, InterruptKinds::Both, &Config::nested());
    let mut neighbour = Vm::of(&hardware, 2, InterruptKinds::Both, &Config::nested());
    vm.attach(DEVICE, NVME);
    neighbour.attach(DEVICE, NIC);
    let all = |vm: &Vm| (0..1024).map(|index| vm.iommu.read(index * 4, Width::U32)).collect::<Vec<_>>();
    let before = all(&vm);
    // Registers that are not there read 0: process queue, performance monitor, debug, QoS, reserved, custom.
    for absent in (56..72).chain(80..84).chain(88..760).chain(1024..4096).step_by(4) {
        assert_eq!(vm.iommu.read(absent, Width::U32), 0, "{absent}");
    }
    // What happens on the physical side shows in no register.
    neighbour.write(reg::DDTP, neighbour.directory.ddtp());
    neighbour.ring(&[inval_ddt(None), Iofence::PLAIN.encode()]);
    assert!(hardware.dma(NIC, None, IOVA, true).context.is_some());
    assert_eq!(all(&vm), before);
    // And what is written to registers other than ddtp, queues and doorbells orders nothing.
    vm.forget();
    for offset in (0..4096).step_by(4).filter(|offset| !(16..84).contains(offset)) {
        let _ = vm.iommu.write(offset, Width::U32, u64::MAX);
    }
    assert_eq!(vm.orders(), []);
}

#[test]
fn t18_capabilities_are_what_config_and_crate_and_host_have_in_common() {
    let modes = prop_oneof![
        Just((SecondStageMode::Sv39x4, 1 << 17, 41)),
        Just((SecondStageMode::Sv48x4, 1 << 18, 50)),
        Just((SecondStageMode::Sv57x4, 1 << 19, 59)),
    ];
    let random = (any::<u64>(), any::<u64>(), modes, any::<(bool, bool)>(), 0_usize..3, 32_u64..=56);
    let outcome = runner(1000).run(&random, |(offer, host, (mode, bit, width), (dirty, ats), kinds, pas)| {
        // Schemes in their order, and what a host has to be equal in.
        let offer = offer & !(0x3f << 32) | pas << 32 | 0x7 << 9;
        let offer = offer & !(SVPBMT | SVRSW60T59B) | host & (SVPBMT | SVRSW60T59B);
        let host = host | bit;
        let stated = HostCapabilities::new(Capabilities::from_bits(host), mode)
            .with_svnapot(true)
            .with_coherent(true)
            .with_leaves_dirty(dirty);
        let (kinds, igs) = [(InterruptKinds::Msi, 0), (InterruptKinds::Wired, 1), (InterruptKinds::Both, 2)][kinds];
        let physical = Hardware::new(stated).vm(Gscid::truncate(1), &Memory::new());
        let parts = Parts { memory: Memory::new(), interrupts: Wires::new(kinds), physical };
        let mut iommu: VIommu<Host> = VIommu::new(parts);
        let config = Config::nested().with_capabilities(Capabilities::from_bits(offer)).with_ats(ats);
        prop_assert_eq!(iommu.start(&config), Ok(()));

        let both = offer & host;
        let schemes = (both >> 9 & 7).trailing_ones();
        // Process contexts are hardware's to read, and it honours every scheme it has.
        let processes = host >> 9 & 7 == !(u64::MAX << schemes);
        let expected = 0x10
            | !(u64::MAX << schemes) << 9
            | both & (SVPBMT | SVRSW60T59B)
            // The crate's own doing, whatever the host can: MSI_FLAT (format of contexts), NL, S.
            | offer & (1 << 22 | 1 << 42 | 1 << 43)
            // AMO_HWAD where leaves of the second stage let hardware.
            | both & u64::from(dirty) << 24
            | both & 1 << 27
            | both & u64::from(ats) << 25
            | both & if processes { 7 << 38 } else { 0 }
            | igs << 28
            | pas.min(width) << 32;
        let shown = iommu.read(reg::CAPABILITIES, Width::U64);
        prop_assert_eq!(shown, expected, "MRG-11, MRG-13: {:#x} is not {:#x}", shown, expected);
        // And they stay.
        for value in [0, u64::MAX] {
            let _ = iommu.write(reg::CAPABILITIES, Width::U64, value);
        }
        prop_assert_eq!(iommu.start(&Config::nested()), Err(ConfigError::AlreadyStarted));
        prop_assert_eq!(iommu.read(reg::CAPABILITIES, Width::U64), expected);
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
}

#[test]
fn t23_ats_is_what_config_and_host_and_policy_and_guest_have_in_common() {
    let without = |bits: u64| {
        let mut host = able();
        host.capabilities = Capabilities::from_bits(host.capabilities.into_bits() & !bits);
        host
    };
    for configured in [false, true] {
        for (host, has) in [(without(ATS), false), (able(), true)] {
            let config = Config::nested().with_ats(configured);
            let offered = configured && has;
            assert_eq!(start(host, &config).map(|shown| shown & (ATS | T2GPA)), Ok(if offered { ATS } else { 0 }));
            // EN_ATS, EN_PRI, T2GPA, PRPR; what the guest's context has no bit for, or must not have, is nothing.
            let guests = [
                (0, Some(Ats::Off)),
                (0b10, offered.then_some(Ats::Translations)),
                (0b100, None),
                (0b110, offered.then_some(Ats::PageRequests)),
                (0b1010, None),
                (0b100_0110, offered.then_some(Ats::PageRequests)),
            ];
            for (bits, asked) in guests {
                for granted in [Ats::Off, Ats::Translations, Ats::PageRequests] {
                    let mut vm = Vm::of(&Hardware::new(host), 1, InterruptKinds::Both, &config);
                    let [tc, second, ta, fsc] = vm.table.context(PSCID);
                    vm.directory.set(DEVICE, &[tc | bits, second, ta, fsc]);
                    vm.write(reg::DDTP, vm.directory.ddtp());
                    vm.attach_with(DEVICE, NVME, granted);
                    let ats = match vm.context() {
                        Some(Context::FirstStage(stage)) => Some(stage.ats),
                        context => {
                            assert_eq!(context, Some(Context::Blocked));
                            None
                        }
                    };
                    let expected = asked.map(|asked| asked.min(granted));
                    assert_eq!(ats, expected, "MRG-02 to MRG-04: {configured} {has} {bits:#b} {granted:?}");
                }
            }
        }
    }
}

#[test]
fn t23_without_t2gpa_a_device_has_ats_only_where_the_host_trusts_it() {
    let mut host = able();
    host.capabilities = Capabilities::from_bits(host.capabilities.into_bits() & !T2GPA);
    let ats = DevicePolicy::default().with_ats(Ats::Translations);
    for (policy, refused) in [
        (ats, Some(AttachError::Capability("T2GPA"))),
        (ats.with_trusted_translations(true), None),
        (DevicePolicy::default(), None),
    ] {
        let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &Config::nested().with_ats(true));
        vm.hardware.set_capabilities_of(NVME, host);
        assert_eq!(vm.iommu.attach(DEVICE, NVME, policy).err(), refused, "MRG-03: {policy:?}");
        assert_eq!(vm.orders().contains(&Order::Release(NVME)), refused.is_some());
    }
}

#[test]
fn t30_a_viommu_can_be_sent_to_another_thread_and_has_one_user_at_a_time() {
    const fn sendable<T: Send>() {}
    const { sendable::<VIommu<Host>>() };
    // Every call that changes something takes `&mut`: one lock is all that two vCPUs need.
    let vm = std::sync::Mutex::new(Vm::translating().iommu);
    std::thread::scope(|vcpus| {
        for _ in 0..2 {
            vcpus.spawn(|| {
                for _ in 0..100 {
                    let mut iommu = vm.lock().unwrap();
                    let cqt = iommu.read(reg::CQT, Width::U32);
                    let _ = iommu.write(reg::CQT, Width::U32, cqt);
                }
            });
        }
    });
}

#[test]
fn t32_a_host_that_is_not_coherent_is_refused() {
    let incoherent = able().with_coherent(false);
    assert!(matches!(start(incoherent, &Config::nested()), Err(ConfigError::Host(_))));
    // One device may sit behind an IOMMU that is worse than the rest.
    let mut vm = Vm::translating();
    vm.hardware.set_capabilities_of(NIC, incoherent);
    let refused = vm.iommu.attach(OTHER, NIC, DevicePolicy::default());
    assert!(matches!(refused, Err(AttachError::Capability(_))), "{refused:?}");
    vm.settle();
    assert_eq!(vm.orders().last(), Some(&Order::Release(NIC)));
}

#[test]
fn t40_one_device_has_one_guest_id() {
    let mut vm = Vm::translating();
    let policy = DevicePolicy::default();
    assert_eq!(vm.iommu.attach(OTHER, NVME, policy), Err(AttachError::DeviceInUse));
    assert_eq!(vm.iommu.attach(DEVICE, NIC, policy), Err(AttachError::IdInUse));
    assert_eq!(vm.orders(), [], "the host is not asked");
    // Until it is gone for good.
    vm.physical.set_pending(true);
    let _ = vm.iommu.detach(DEVICE);
    assert_eq!(vm.iommu.attach(OTHER, NVME, policy), Err(AttachError::DeviceInUse));
    vm.settle();
    vm.attach(OTHER, NVME);
}

#[test]
fn t40_a_device_of_another_vm_is_refused_by_the_host() {
    let mut vm = Vm::new();
    vm.physical.answer_next_adopt(Err(OrderError::Refused { done: 0 }));
    let refused = vm.iommu.attach(DEVICE, NVME, DevicePolicy::default());
    assert_eq!(refused, Err(AttachError::Host(OrderError::Refused { done: 0 })));
    let _ = vm.iommu.run();
    assert!(matches!(vm.orders()[..], [Order::Adopt(..)]), "nothing else is done to it");
}

#[test]
fn t44_what_hardware_honours_unasked_is_not_hidden() {
    for (bit, name) in [(SVPBMT, "Svpbmt"), (SVRSW60T59B, "Svrsw60t59b")] {
        let offer = able().capabilities.into_bits();
        let [hidden, shown] = [offer, offer | bit].map(Capabilities::from_bits);
        let hidden = Config::nested().with_capabilities(hidden);
        assert_eq!(start(with_bits(bit), &hidden), Err(ConfigError::MustMatchHost(name)));
        let shown = Config::nested().with_capabilities(shown);
        assert_eq!(start(with_bits(bit), &shown).map(|shown| shown & bit), Ok(bit));
        assert_eq!(start(able(), &shown).map(|shown| shown & bit), Ok(0), "what is not there is not promised");
        // A device behind an IOMMU that differs, either way.
        for (vm_has, device_has) in [(0, bit), (bit, 0)] {
            let mut vm = Vm::of(&Hardware::new(with_bits(vm_has)), 1, InterruptKinds::Both, &shown);
            vm.hardware.set_capabilities_of(NVME, with_bits(device_has));
            let refused = vm.iommu.attach(DEVICE, NVME, DevicePolicy::default());
            assert_eq!(refused, Err(AttachError::Capability(name)));
        }
    }
}

#[test]
fn t44_a_host_without_what_is_mandatory_is_refused() {
    let refused = |host| start(host, &Config::nested()).map_err(|error| matches!(error, ConfigError::Host(_)));
    assert_eq!(refused(able().with_svnapot(false)), Err(true));
    assert_eq!(refused(able().with_rv64(false)), Err(true));
    let mut vm = Vm::new();
    let mut narrow = able();
    narrow.capabilities = narrow.capabilities.with_sv57(false);
    vm.hardware.set_capabilities_of(NVME, narrow);
    let refused = vm.iommu.attach(DEVICE, NVME, DevicePolicy::default());
    assert_eq!(refused, Err(AttachError::Capability("Sv57")));
}
