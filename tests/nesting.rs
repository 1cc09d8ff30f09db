//! Devices, contexts, `ddtp` and fences on a host that does what it is told (design, "The backend" and "Semantics that
//! must not be left to chance").

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, OFF, PAGE_A, PAGE_B, Rig, id, pscid};
use proptest::prelude::*;
use riscv_viommu::mock::guest::{Iofence, Iotinval, inval_ddt, register};
use riscv_viommu::mock::{Access, Hardware};
use riscv_viommu::{
    AttachError, Capabilities, Cause, Config, DetachError, DeviceId, DevicePolicy, Gpa, HostCapabilities, HostFault,
    MemoryFault, Progress, SecondStageMode, TransactionType,
};

/// A host that can do all that the crate offers.
fn strongest() -> HostCapabilities {
    let register = Capabilities::new()
        .with_sv39(true)
        .with_sv48(true)
        .with_sv57(true)
        .with_sv39x4(true)
        .with_sv48x4(true)
        .with_svpbmt(true)
        .with_svrsw60t59b(true)
        .with_amo_hwad(true)
        .with_end(true)
        .with_pas(56);
    HostCapabilities::new(register, SecondStageMode::Sv48x4)
        .with_svnapot(true)
        .with_leaves_dirty(true)
        .with_coherent(true)
}

mod attach {
    use super::*;

    #[test]
    fn adopts_blocks_invalidates_fences_and_then_gives_the_context_of_the_mode() {
        type Enter = fn(&mut Rig) -> Progress;
        let levels: Enter = |rig| rig.enter();
        let cases: [(u8, Enter, Option<&str>); 5] = [
            (3, |rig| rig.ddtp(OFF), None),
            (3, |rig| rig.ddtp(BARE), Some("0=Bare+pid")),
            (1, levels, Some("0=A/1")),
            (2, levels, Some("0=A/1")),
            (3, levels, Some("0=A/1")),
        ];
        for (directory, enter, context) in cases {
            for (pending, extended) in [(false, false), (true, false), (true, true)] {
                let config = Config::nested().with_extended_contexts(extended);
                let mut rig: Rig = Rig::with(&Hardware::default(), 1, &config).levels(directory, extended);
                rig.directory.set(id(0), &rig.a.context(pscid(1)));
                let _ = enter(&mut rig);
                rig.physical.set_pending(pending);
                let (_, progress) = rig.attach(0);
                if pending {
                    assert_eq!(progress, Progress::Waiting);
                    assert_eq!(rig.orders(), ["adopt 0", "0=Blocked", "inv D0", "fence.."], "T13");
                    assert_eq!(rig.complete(), Progress::Idle);
                } else {
                    let first: Vec<String> = rig.orders();
                    assert_eq!(progress, Progress::Idle);
                    assert_eq!(first[..4], ["adopt 0", "0=Blocked", "inv D0", "fence"]);
                    assert_eq!(first.get(4).map(String::as_str), context);
                    continue;
                }
                assert_eq!(rig.orders().first().map(String::as_str), context);
            }
        }
    }

    // `Attached::progress`: "what is left until the device's context is in force". A context may stay out of use until
    // the next completed fence, and a guest need never issue one: least of all in Bare.
    #[test]
    fn is_done_only_when_the_context_is_in_force() {
        for (bare, context) in [(true, "0=Bare+pid"), (false, "0=Bare")] {
            let mut rig: Rig = Rig::with(&Hardware::default(), 1, &Config::nested().with_reset_to_bare(bare));
            if !bare {
                rig.directory.set(id(0), &[1]);
                let _ = rig.enter();
            }
            rig.physical.set_pending(true);
            let _ = rig.attach(0);
            let _ = rig.orders();
            let attached = rig.physical.complete_all();
            assert_eq!(rig.dma(0).access, Access::Blocked, "hardware reads the blocked context, and keeps it");
            rig.physical.set_pending(false);
            let last = attached.last().copied().unwrap();
            assert_eq!(rig.iommu.fence_done(last, riscv_viommu::FenceOutcome::Complete), Progress::Idle);
            assert_eq!(rig.orders(), [context, "inv D0", "fence"], "SYNC-09");
            assert_eq!(rig.dma(0).access, Access::Translated(Gpa::new(IOVA.get())), "SYNC-09");
        }
    }

    #[test]
    fn refuses_an_id_in_use_a_device_in_use_and_more_than_there_is_room_for() {
        let mut rig = Rig::<2, 16>::sized();
        let _ = rig.attach(0);
        let _ = rig.orders();
        let policy = DevicePolicy::default();
        assert_eq!(rig.iommu.attach(id(0), rig.device(1), policy).err(), Some(AttachError::IdInUse));
        assert_eq!(rig.iommu.attach(id(1), rig.device(0), policy).err(), Some(AttachError::DeviceInUse), "T40");
        let _ = rig.attach(1);
        let _ = rig.orders();
        assert_eq!(rig.try_attach(2).err(), Some(AttachError::Full));
        assert!(rig.orders().is_empty(), "the host is not asked");
    }

    #[test]
    fn refuses_where_the_vm_was_not_started_or_not_for_nesting() {
        let mut rig: Rig = Rig::with(&Hardware::default(), 1, &Config::emulated());
        assert_eq!(rig.try_attach(0).err(), Some(AttachError::NotNested));
        let mut fresh: riscv_viommu::VIommu<_> = riscv_viommu::VIommu::new(riscv_viommu::Parts {
            memory: rig.memory.clone(),
            interrupts: riscv_viommu::mock::Wires::new(riscv_viommu::InterruptKinds::Msi),
            physical: rig.physical.clone(),
        });
        let attached = fresh.attach(id(0), rig.device(0), DevicePolicy::default());
        assert_eq!(attached.err(), Some(AttachError::NotStarted));
        assert!(rig.orders().is_empty());
    }

    /// A way in which an IOMMU differs from the one the guest was shown, and what it is called.
    type Difference = (&'static str, fn(&mut HostCapabilities));

    fn refused_for(shown: HostCapabilities, (name, change): Difference) {
        let config = Config::nested().with_big_endian(true);
        let mut rig: Rig = Rig::on(shown, &config);
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        let _ = rig.enter();
        let mut differs = shown;
        change(&mut differs);
        rig.physical.hardware().set_capabilities_of(rig.device(0), differs);
        rig.physical.set_pending(true);
        assert_eq!(rig.try_attach(0).err(), Some(AttachError::Capability(name)), "T44, MRG-12");
        assert_eq!(rig.orders(), ["adopt 0", "0=Blocked", "inv D0", "fence.."], "{name}");
        assert_eq!(rig.try_attach(0).err(), Some(AttachError::IdInUse), "{name}: it is on its way out");
        assert_eq!(rig.complete(), Progress::Idle);
        assert_eq!(rig.orders(), ["release 0"], "{name}");
        rig.physical.hardware().set_capabilities_of(rig.device(0), shown);
        assert!(rig.try_attach(0).is_ok(), "{name}: the same device, behind another IOMMU");
    }

    #[test]
    fn refuses_every_iommu_that_can_do_less_than_the_guest_was_promised() {
        let lacks: [Difference; 14] = [
            ("contexts with SXL = 0", |host| host.rv64 = false),
            ("the second-stage scheme it states", |host| host.capabilities.set_sv48x4(false)),
            ("the guest's physical address size", |host| host.second_stage = SecondStageMode::Sv39x4),
            ("Svnapot", |host| host.svnapot = false),
            // T32.
            ("coherence of non-cacheable device accesses", |host| host.coherent = false),
            ("Sv39", |host| host.capabilities.set_sv39(false)),
            ("Sv48", |host| host.capabilities.set_sv48(false)),
            ("Sv57", |host| host.capabilities.set_sv57(false)),
            ("AMO_HWAD", |host| host.capabilities.set_amo_hwad(false)),
            ("AMO_HWAD", |host| host.leaves_dirty = false),
            ("END", |host| host.capabilities.set_end(false)),
            ("Svpbmt", |host| host.capabilities.set_svpbmt(false)),
            ("Svrsw60t59b", |host| host.capabilities.set_svrsw60t59b(false)),
            ("the second-stage scheme it states", |host| host.second_stage = SecondStageMode::Sv57x4),
        ];
        for difference in lacks {
            refused_for(strongest(), difference);
        }
    }

    #[test]
    fn refuses_an_iommu_that_honours_what_the_guest_was_not_told_of() {
        let mut without = strongest();
        without.capabilities.set_svpbmt(false);
        without.capabilities.set_svrsw60t59b(false);
        refused_for(without, ("Svpbmt", |host| host.capabilities.set_svpbmt(true)));
        refused_for(without, ("Svrsw60t59b", |host| host.capabilities.set_svrsw60t59b(true)));
    }

    #[test]
    fn takes_an_iommu_that_can_do_more() {
        let mut less = strongest();
        less.capabilities.set_sv57(false);
        less.capabilities.set_amo_hwad(false);
        less.second_stage = SecondStageMode::Sv39x4;
        let mut rig: Rig = Rig::on(less, &Config::nested());
        rig.physical.hardware().set_capabilities_of(rig.device(0), strongest());
        assert!(rig.try_attach(0).is_ok());
    }
}

mod detach {
    use super::*;

    #[test]
    fn blocks_invalidates_fences_and_only_then_releases() {
        let mut rig = Rig::new().translating();
        // What is held goes out with it.
        let _ = rig.ring([Iotinval::ALL.pscid(pscid(7)).vma()]);
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence.."], "T19, SWG-21");
        assert_eq!(rig.iommu.detach(id(0)), Err(DetachError::NotAttached), "it is under way");
        assert_eq!(rig.try_attach(0).err(), Some(AttachError::IdInUse));
        assert_eq!(
            rig.iommu.attach(id(1), rig.device(0), DevicePolicy::default()).err(),
            Some(AttachError::DeviceInUse),
            "T36: not before its caches are known to be empty"
        );
        assert_eq!((rig.iommu.run(), rig.orders().len()), (Progress::Waiting, 0));
        assert_eq!(rig.complete(), Progress::Idle);
        assert_eq!(rig.orders(), ["release 0"]);
        assert_eq!(rig.iommu.detach(id(0)), Err(DetachError::NotAttached));
        // The same device under another id.
        let attached = rig.iommu.attach(id(1), rig.device(0), DevicePolicy::default());
        assert!(attached.is_ok_and(|attached| attached.attachment.device() == id(1)));
    }

    #[test]
    fn waits_for_a_busy_host_at_every_step() {
        let mut rig = Rig::new().translating();
        let busy = riscv_viommu::OrderError::Busy;
        rig.physical.answer_next_set_context(Err(busy));
        rig.physical.answer_next_invalidate(Err(busy));
        rig.physical.answer_next_fence(Err(busy));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        assert!(rig.drain() > 0);
        let orders = ["0=Blocked Busy", "0=Blocked", "inv D0 Busy", "inv D0", "fence Busy", "fence", "release 0"];
        assert_eq!(rig.orders_once(), orders);
    }

    #[test]
    fn leaves_no_translation_behind_for_the_next_owner() {
        let mut rig = Rig::new().translating();
        assert_eq!(rig.dma(0).access, Access::Translated(PAGE_A));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        let after = rig.dma(0);
        assert_eq!((after.access, after.stale), (Access::Blocked, false), "T36");
    }

    #[test]
    fn what_an_old_attachment_delivers_is_dropped_and_counted() {
        let mut rig = Rig::new();
        let (old, _) = rig.attach(0);
        let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, IOVA);
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        let _ = rig.iommu.report_fault(old, &fault);
        let _ = rig.complete();
        let _ = rig.iommu.report_fault(old, &fault);
        let (new, _) = rig.attach(0);
        let _ = rig.iommu.report_fault(old, &fault);
        assert_eq!((rig.iommu.stats().stale_events, rig.records().len()), (3, 0), "T34");
        let _ = rig.iommu.report_fault(new, &fault);
        assert_eq!((rig.iommu.stats().stale_events, rig.records().len()), (3, 1));
        assert_ne!(old, new);
    }

    #[test]
    fn shutdown_takes_every_device_and_may_be_called_twice() {
        let mut rig = Rig::new().translating();
        let _ = (rig.attach(1), rig.attach(2));
        assert!(rig.fence());
        let _ = rig.orders();
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.shutdown(), Progress::Waiting);
        assert_eq!(rig.orders(), ["0=Blocked", "1=Blocked", "2=Blocked", "inv D0 D1 D2", "fence.."]);
        assert_eq!(rig.iommu.shutdown(), Progress::Waiting);
        assert!(rig.orders().is_empty(), "a host that asks again does not begin again");
        assert_eq!(rig.complete_these(), Progress::Idle);
        let mut released = rig.orders();
        released.sort();
        assert_eq!(released, ["release 0", "release 1", "release 2"]);
    }
}

mod reset {
    use super::*;

    #[test]
    fn blocks_before_anything_else_and_keeps_the_attachments() {
        let mut rig = Rig::new().translating();
        let (attachment, _) = rig.attach(1);
        let _ = rig.ring([Iotinval::ALL.vma()]);
        let _ = rig.orders();
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.reset(), Progress::Waiting);
        assert_eq!(rig.orders(), ["0=Blocked", "1=Blocked", "inv D0 D1", "fence.."], "T19");
        for offset in [register::DDTP, register::CQB, register::CQH, register::CQT, register::CQCSR, register::FQCSR] {
            assert_eq!(rig.read(offset), 0, "at once: {offset}");
        }
        assert_eq!(rig.complete(), Progress::Idle);
        assert!(rig.orders().is_empty(), "Off: they stay blocked");
        let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, IOVA);
        let _ = rig.iommu.report_fault(attachment, &fault);
        assert_eq!(rig.iommu.stats().stale_events, 0);
        rig.turn_on();
        rig.directory.set(id(1), &rig.b.context(pscid(2)));
        let _ = rig.enter();
        assert_eq!((rig.context(0), rig.context(1)), ("A/1".into(), "B/2".into()));
    }

    #[test]
    fn forgets_who_waits_and_its_tickets_go_on_growing() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        let at = rig.memory.allocate(1);
        let _ = rig.ring([FENCE.store(at, 7).encode()]);
        let _ = rig.ddtp(BARE);
        assert!(rig.ddtp_busy() && !rig.passed());
        let old = rig.tickets();
        assert_eq!(rig.iommu.reset(), Progress::Waiting);
        assert!(!rig.ddtp_busy(), "VC-46: reset values, not what was waited for");
        let new = rig.tickets();
        assert!(old.iter().max() < new.iter().min());
        assert_eq!(rig.complete(), Progress::Idle);
        assert_eq!(rig.memory.read(at), 0, "VC-46");
    }

    #[test]
    fn to_bare_gives_the_second_stage_alone_once_the_fence_is_complete() {
        let mut rig: Rig = Rig::with(&Hardware::default(), 1, &Config::nested().with_reset_to_bare(true));
        let _ = rig.attach(0);
        let _ = rig.orders();
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.reset(), Progress::Waiting);
        assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence.."]);
        assert_eq!(rig.read(register::DDTP), BARE);
        let _ = rig.complete();
        assert_eq!(rig.orders().first().map(String::as_str), Some("0=Bare+pid"));
        assert_eq!(rig.context(0), "Bare+pid");
    }

    #[test]
    fn a_device_on_its_way_out_goes_on_leaving() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        let _ = rig.iommu.detach(id(0));
        let _ = rig.iommu.reset();
        assert_eq!(rig.complete(), Progress::Idle);
        assert_eq!(rig.orders().last().map(String::as_str), Some("release 0"));
    }
}

mod contexts {
    use super::*;

    /// What the directory says of device 0, and what hardware gets once a fence is complete.
    fn given(rig: &mut Rig, context: &[u64]) -> String {
        rig.directory.set(id(0), context);
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        assert!(rig.passed());
        rig.context(0)
    }

    fn in_directory(config: Config, extended: bool) -> Rig {
        let mut rig: Rig = Rig::on(strongest(), &config.with_extended_contexts(extended)).levels(3, extended);
        let _ = rig.enter();
        let _ = rig.attach(0);
        rig
    }

    #[test]
    fn pass_process_ids_only_with_pdtv_or_in_bare() {
        let mut rig = in_directory(Config::nested(), false);
        // V, PDTV and DPE are bits 0, 5 and 9 of tc.
        assert_eq!(given(&mut rig, &[1]), "Bare");
        assert_eq!(given(&mut rig, &[1 | 1 << 5]), "Bare+pid", "PDTV = 1, pdtp Bare");
        assert_eq!(given(&mut rig, &[1 | 1 << 5 | 1 << 9]), "Bare+pid");
        assert_eq!(given(&mut rig, &[1 | 1 << 5, 0, 0, 1 << 60]), "Blocked", "PD8 is not offered");
        let _ = rig.ddtp(BARE);
        assert_eq!(rig.context(0), "Bare+pid", "REG-DDTP-16");
    }

    #[test]
    fn carry_sade_and_sbe_only_where_they_are_offered() {
        for (bit, name, config) in [
            (8, "sade", Config::nested().with_capabilities(Capabilities::new().with_sv39(true).with_pas(56))),
            (10, "sbe", Config::nested()),
        ] {
            for (offered, context) in [(true, format!("A/1+{name}")), (false, "Blocked".into())] {
                let full = Config::nested().with_big_endian(true);
                let mut rig: Rig = match (offered, bit) {
                    (false, 8) => Rig::with(&Hardware::default(), 1, &config),
                    (false, _) => Rig::on(strongest(), &config),
                    (true, _) => Rig::on(strongest(), &full),
                };
                let _ = rig.enter();
                let _ = rig.attach(0);
                let mut dwords = rig.a.context(pscid(1));
                dwords[0] |= 1 << bit;
                assert_eq!(given(&mut rig, &dwords), context, "MRG-06, DCK-18, DCK-19");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        // Every field that a valid context may hold and that is the host's, or nobody's, is left behind.
        #[test]
        fn t10_hold_nothing_that_is_not_on_the_allow_list(
            (dtf, gade, sade, sbe) in any::<(bool, bool, bool, bool)>(),
            mode in prop::sample::select(vec![0_u64, 8, 9, 10]),
            (root, number, custom) in (0..1_u64 << 44, 0..1_u32 << 20, any::<u8>()),
            (unused, msi) in (0..1_u64 << 60, (0..1_u64 << 44, 0..1_u64 << 38, 0..1_u64 << 38)),
            extended in any::<bool>(),
        ) {
            let mut rig = in_directory(Config::nested().with_big_endian(true), extended);
            let flag = |set: bool, bit: u32| u64::from(set) << bit;
            let tc = 1 | flag(dtf, 4) | flag(gade, 7) | flag(sade, 8) | flag(sbe, 10) | u64::from(custom) << 24;
            let dwords = [tc, unused, u64::from(number) << 12, mode << 60 | root, msi.0, msi.1, msi.2, 0];
            let got = given(&mut rig, &dwords);
            let flags = format!("{}{}", if sade { "+sade" } else { "" }, if sbe { "+sbe" } else { "" });
            let expected = match mode {
                0 => "Bare".to_owned(),
                _ => format!("{:#x}/{number}{flags}", root << 12),
            };
            prop_assert_eq!(got, expected, "MRG-05, MRG-08");
        }
    }

    #[test]
    fn t11_that_are_not_good_are_blocked_before_the_fence_completes() {
        type Spoil = fn(&Rig);
        let spoils: [(&str, Spoil); 7] = [
            ("not valid", |rig| rig.directory.invalidate(id(0))),
            ("reserved", |rig| rig.directory.set(id(0), &[1 | 1 << 12])),
            ("EN_ATS", |rig| rig.directory.set(id(0), &[3])),
            ("a second stage", |rig| rig.directory.set(id(0), &[1, 8 << 60])),
            ("unreadable", |rig| rig.memory.fail(rig.directory.entry_address(id(0)), 1, MemoryFault::Access)),
            ("lost", |rig| rig.memory.fail(rig.directory.non_leaf_address(id(0), 2), 1, MemoryFault::Corruption)),
            ("no way", |rig| rig.memory.write(rig.directory.non_leaf_address(id(0), 1), 0)),
        ];
        for (name, spoil) in spoils {
            for dv in [Some(id(0)), None] {
                let mut rig = Rig::new().translating();
                spoil(&rig);
                rig.physical.set_pending(true);
                let _ = rig.ring([inval_ddt(dv), Iofence::PLAIN.encode()]);
                assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence none.."], "{name}");
                assert!(!rig.passed(), "{name}");
                let _ = rig.complete();
                assert!(rig.passed(), "{name}");
                assert_eq!(rig.dma(0).access, Access::Blocked, "{name}");
            }
        }
    }

    #[test]
    fn that_do_not_change_are_not_set_but_their_device_is_invalidated() {
        let mut rig = Rig::new().translating();
        assert_eq!(rig.ring([inval_ddt(Some(id(0)))]), Progress::Idle);
        assert!(rig.orders().is_empty(), "it may wait");
        assert!(rig.fence());
        assert_eq!(rig.orders(), ["inv D0", "fence"], "VC-51");
        // Read again by the host, there is nothing to tell.
        let _ = rig.iommu.resync(id(0));
        assert!(rig.fence());
        assert_eq!(rig.orders(), ["fence"]);
    }

    #[test]
    fn an_invalidation_of_a_device_that_is_not_attached_reaches_nobody() {
        let mut rig = Rig::new().translating();
        let _ = rig.memory.take_loads();
        for device in [id(1), DeviceId::new(0xff_ffff).unwrap()] {
            assert_eq!(rig.ring([inval_ddt(Some(device))]), Progress::Idle);
        }
        assert_eq!(rig.read(register::CQCSR) & register::CMD_ILL, 0, "VC-11");
        assert_eq!(rig.memory.take_loads().len(), 2, "the commands, no directory");
        assert!(rig.fence());
        assert_eq!(rig.orders(), ["fence"], "T03");
    }

    #[test]
    fn an_invalidation_of_all_walks_the_attached_devices_only() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(2), &rig.b.context(pscid(2)));
        let _ = (rig.attach(1), rig.attach(2));
        assert!(rig.fence());
        let _ = (rig.memory.take_loads(), rig.orders());
        assert_eq!(rig.ring([inval_ddt(None), FENCE.encode()]), Progress::Idle);
        // One of the ring, then three levels for each device.
        assert_eq!(rig.memory.take_loads().len(), 1 + 3 * 3, "T14, VC-52");
        assert_eq!(rig.orders(), ["inv D0 D1 D2", "fence"]);
    }

    #[test]
    fn one_device_changes_without_the_others() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let _ = rig.attach(1);
        assert!(rig.fence());
        let _ = rig.orders();
        rig.directory.set(id(1), &rig.b.context(pscid(2)));
        let _ = rig.ring([inval_ddt(Some(id(1))), FENCE.encode()]);
        assert_eq!(rig.orders(), ["1=B/2", "inv D1", "fence"]);
        assert_eq!((rig.dma(0).access, rig.dma(1).access), (Access::Translated(PAGE_A), Access::Translated(PAGE_B)));
    }
}
