//! ATS of passthrough devices: who may have it, where invalidation requests go, and what becomes of a device that keeps
//! translations when it does not answer, leaves or is reset.

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, PAGE_A, PAGE_B, Rig, id, pscid};
use riscv_viommu::mock::guest::{AtsCommand, Iotinval, inval_ddt, register};
use riscv_viommu::mock::tables::pte;
use riscv_viommu::mock::tables::tc::{EN_ATS, EN_PRI, PDTV, PRPR, T2GPA};
use riscv_viommu::mock::{Access, Hardware, Memory};
use riscv_viommu::{
    Ats, AttachError, Attachment, Capabilities, Cause, Completion, Config, DevicePolicy, FenceOutcome, Gpa, Gscid,
    Health, HostCapabilities, HostFault, OrderError, PhysicalIommu, ProcessId, Progress, TransactionType, Width,
};

/// Names device `n` of the rig.
fn function(n: u16) -> AtsCommand {
    AtsCommand::to(8_u16.saturating_add(n))
}

/// A payload of one page.
fn page(number: u64) -> u64 {
    number << 12
}

fn policy() -> DevicePolicy {
    DevicePolicy::default().with_ats(Ats::PageRequests)
}

/// Hardware with ATS, and `T2GPA` or not.
fn host(ats: bool, t2gpa: bool) -> HostCapabilities {
    let mut host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
    host.capabilities = host.capabilities.with_ats(ats).with_t2gpa(t2gpa);
    host
}

fn config() -> Config {
    Config::nested().with_ats(true)
}

/// Table A for a device with these bits in `tc`.
fn context(rig: &Rig, bits: u64) -> [u64; 4] {
    let [tc, iohgatp, ta, fsc] = rig.a.context(pscid(1));
    [tc | bits, iohgatp, ta, fsc]
}

/// So many devices that translate, with ATS; orders taken.
fn rig(devices: u32) -> Rig {
    on(&Hardware::new(host(true, true)), 1, devices)
}

fn on(hardware: &Hardware, gscid: u32, devices: u32) -> Rig {
    let mut rig: Rig = Rig::with(hardware, gscid, &config());
    for n in 0..devices {
        rig.directory.set(id(n), &context(&rig, EN_ATS));
    }
    let _ = rig.enter();
    for n in 0..devices {
        let _ = rig.attach_with(n, policy());
    }
    assert!(rig.fence());
    let _ = rig.orders();
    rig
}

/// The attachment of device 0, which is the first of the rig's.
fn again(rig: &mut Rig) -> Attachment {
    let _ = rig.iommu.detach(id(0));
    rig.attach_with(0, policy()).0
}

/// Clears `cmd_to`, so that the queue goes on.
fn clear_timeout(rig: &mut Rig) -> Progress {
    rig.iommu.write(register::CQCSR, Width::U32, register::CMD_TO | register::ENABLE)
}

fn told(rig: &Rig) -> bool {
    rig.read(register::CQCSR) & register::CMD_TO != 0
}

/// A fence of the guest's that ends in a timeout.
fn unanswered(rig: &mut Rig, n: u16) {
    rig.physical.set_pending(true);
    let _ = rig.ring([function(n).inval(page(1)), FENCE.encode()]);
    time_out(rig);
}

/// Ends what is pending as a timeout.
fn time_out(rig: &mut Rig) {
    rig.physical.set_pending(false);
    for ticket in rig.physical.complete_all() {
        let _ = rig.iommu.fence_done(ticket, FenceOutcome::AtsTimeout);
    }
}

mod grants {
    use super::*;

    #[test]
    fn the_guest_is_offered_ats_where_the_configuration_and_the_host_have_it() {
        for (configured, has, shown) in
            [(false, true, false), (true, false, false), (true, true, true), (false, false, false)]
        {
            let rig: Rig = Rig::on(host(has, true), &Config::nested().with_ats(configured));
            let capabilities = Capabilities::from_bits(rig.iommu.read(register::CAPABILITIES, Width::U64));
            assert_eq!((capabilities.ats(), capabilities.t2gpa()), (shown, false), "MRG-12, MRG-03, REG-CAP-18");
        }
    }

    #[test]
    fn a_device_gets_what_guest_policy_and_offer_have_in_common() {
        let guests = [(0, Ats::Off), (EN_ATS, Ats::Translations), (EN_ATS | EN_PRI, Ats::PageRequests)];
        let prpr = [(EN_ATS | EN_PRI | PRPR, Ats::PageRequests)];
        for (bits, asked) in guests.into_iter().chain(prpr) {
            for granted in [Ats::Off, Ats::Translations, Ats::PageRequests] {
                for (pdtv, plain) in [(0, "A/1"), (PDTV, "Bare+pid")] {
                    let mut rig: Rig = Rig::on(host(true, true), &config());
                    let [tc, iohgatp, ta, fsc] = context(&rig, bits | pdtv);
                    rig.directory.set(id(0), &[tc, iohgatp, ta, if pdtv == 0 { fsc } else { 0 }]);
                    let _ = rig.enter();
                    let _ = rig.attach_with(0, DevicePolicy::default().with_ats(granted));
                    let ats = match asked.min(granted) {
                        Ats::Off => "",
                        Ats::Translations => "+ats",
                        Ats::PageRequests => "+pri",
                    };
                    let wanted = format!("0={plain}{ats}");
                    assert!(rig.orders().contains(&wanted), "MRG-02, MRG-04, T23: {bits:x} of {granted:?}");
                }
            }
        }
    }

    #[test]
    fn without_a_word_of_the_host_there_is_none() {
        let mut rig: Rig = Rig::on(host(true, true), &config());
        rig.directory.set(id(0), &context(&rig, EN_ATS | EN_PRI));
        let _ = rig.enter();
        let _ = rig.attach(0);
        assert!(rig.orders().contains(&"0=A/1".into()), "T23, MRG-02");
        // Nor in Bare, with one.
        let mut rig = self::rig(1);
        let _ = rig.ddtp(BARE);
        assert_eq!(rig.orders(), ["0=Bare+pid", "inv D0", "fence"], "MRG-01");
    }

    #[test]
    fn translated_requests_have_to_be_checked_or_trusted() {
        let trusted = policy().with_trusted_translations(true);
        let cases = [
            (true, true, policy(), None),
            (true, false, policy(), Some("T2GPA")),
            (true, false, trusted, None),
            (false, true, trusted, Some("ATS")),
            (false, false, DevicePolicy::default(), None),
            (true, false, DevicePolicy::default(), None),
        ];
        for (ats, t2gpa, policy, lacks) in cases {
            let mut rig: Rig = Rig::on(host(true, true), &config());
            rig.physical.hardware().set_capabilities_of(rig.device(0), host(ats, t2gpa));
            let refused = rig.try_attach_with(0, policy).err();
            assert_eq!(refused, lacks.map(AttachError::Capability), "MRG-03, T23: {ats} {t2gpa} {policy:?}");
            if refused.is_some() {
                let _ = rig.drain();
                assert!(rig.orders().contains(&"release 0".into()), "T23");
            }
        }
        // What the guest was not offered it can not turn on.
        let mut rig: Rig = Rig::on(host(true, false), &Config::nested());
        assert!(rig.try_attach_with(0, policy()).is_ok());
    }

    #[test]
    fn t2gpa_is_not_the_guests() {
        let mut rig: Rig = Rig::on(host(true, true), &config());
        rig.directory.set(id(0), &context(&rig, EN_ATS | T2GPA));
        let _ = rig.enter();
        let _ = rig.attach_with(0, policy());
        assert!(!rig.orders().iter().any(|order| order.contains("A/1")), "MRG-03, DCK-06");
    }

    #[test]
    fn what_was_not_granted_is_refused_as_if_the_context_had_it_not() {
        use TransactionType::{AtsTranslationRequest, MessageRequest, TranslatedRead, UntranslatedRead};
        for (granted, access, code) in [
            (Ats::Off, AtsTranslationRequest, 260),
            (Ats::Off, TranslatedRead, 260),
            (Ats::Off, MessageRequest, 260),
            (Ats::Translations, MessageRequest, 260),
            (Ats::Off, UntranslatedRead, 5),
            (Ats::PageRequests, AtsTranslationRequest, 5),
        ] {
            for dtf in [false, true] {
                let mut rig: Rig = Rig::on(host(true, true), &config());
                let bits = EN_ATS | EN_PRI | if dtf { 1 << 4 } else { 0 };
                rig.directory.set(id(0), &context(&rig, bits));
                let _ = rig.enter();
                let (attachment, _) = rig.attach_with(0, DevicePolicy::default().with_ats(granted));
                let fault = HostFault::new(Cause::TransactionTypeDisallowed, access, IOVA);
                let _ = rig.iommu.report_fault(attachment, &fault);
                let records = rig.records();
                let shown = records.first().map(|[head, ..]| head & 0xfff);
                assert_eq!(shown, (!dtf).then_some(code), "MRG-02, VT-04: {granted:?} {access:?}");
            }
        }
    }
}

mod invalidations {
    use super::*;

    #[test]
    fn go_to_the_device_they_name_with_what_they_say_and_no_more() {
        let process = ProcessId::truncate(0xa_bcde);
        let cases = [
            (function(0).inval(page(5)), "ats 0 5-5"),
            (function(1).inval(page(5)), "ats 1 5-5"),
            (function(0).segment(0).inval(page(5)), "ats 0 5-5"),
            // G says nothing without a PASID.
            (function(0).inval(page(5) | 1), "ats 0 5-5"),
            (function(0).process(process).inval(page(5) | 1), "ats 0 5-5@703710+g"),
            (function(0).process(process).inval(page(5)), "ats 0 5-5@703710"),
            // S: the lowest 0 of the page number ends the size.
            (function(0).inval(page(0b1_0011) | 1 << 11), "ats 0 10-17"),
            (function(0).inval(u64::MAX >> 1 & !0xfff | 1 << 11), "ats 0 0-fffffffffffff"),
            // Bits 10:1 mean nothing.
            (function(0).inval(page(5) | 0x7fe), "ats 0 5-5"),
        ];
        for (command, order) in cases {
            let mut rig = rig(2);
            let _ = rig.ring([command]);
            assert_eq!(rig.orders(), [order], "VC-70, VC-72");
            assert!(rig.passed() && rig.fence());
        }
    }

    #[test]
    fn reach_what_the_device_keeps_before_the_fence_is_complete() {
        let mut rig = rig(1);
        let hardware = rig.physical.hardware().clone();
        assert!(!hardware.dma_through_atc(rig.device(0), None, IOVA, true).stale);
        rig.memory.write(rig.a.entry_address(IOVA, 0), 0);
        let iova = Iotinval::ALL.address(IOVA).vma();
        let _ = rig.ring([iova, FENCE.encode(), function(0).inval(IOVA.get()), FENCE.encode()]);
        assert!(rig.passed());
        let dma = hardware.dma_through_atc(rig.device(0), None, IOVA, true);
        assert!(!dma.stale && !matches!(dma.access, riscv_viommu::mock::Access::Translated(_)), "VC-72, SWG-18");
    }

    #[test]
    fn for_what_is_not_there_or_has_no_ats_are_complete_at_once() {
        let mut rig = rig(1);
        rig.directory.set(id(1), &context(&rig, EN_ATS));
        rig.directory.set(id(2), &context(&rig, 0));
        let _ = rig.attach(1);
        let _ = rig.attach_with(2, policy());
        assert!(rig.fence());
        let _ = rig.orders();
        let others = [1, 2, 3].map(|n| function(n).inval(page(1)));
        let segment = function(0).segment(1).inval(page(1));
        let _ = rig.ring(others.into_iter().chain([segment, FENCE.encode()]));
        assert!(rig.passed(), "VC-11, VC-71");
        assert_eq!(rig.orders(), ["fence"], "VC-70, VC-71");
        // Blocked by the guest, it has none either.
        rig.directory.invalidate(id(0));
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode(), function(0).inval(page(1)), FENCE.encode()]);
        assert!(rig.passed() && !rig.orders().iter().any(|order| order.starts_with("ats")), "VC-71");
    }

    #[test]
    fn to_a_device_that_leaves_are_complete_at_once() {
        let mut rig = rig(1);
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        let _ = rig.orders();
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(rig.read(register::CQH), u64::from(rig.commands.tail()) - 1, "VC-71: only the fence waits");
        assert!(
            rig.orders().iter().all(|order| !order.starts_with("ats 0 1-1")),
            "VC-70: it is not the guest's any more"
        );
    }

    #[test]
    fn follow_every_order_before_them() {
        let mut rig = rig(1);
        let _ = rig.ring([Iotinval::ALL.pscid(pscid(1)).vma(), function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv S1", "ats 0 1-1", "fence"], "VC-73, ATC-05");
        let _ =
            rig.ring([Iotinval::ALL.pscid(pscid(1)).vma(), FENCE.encode(), function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv S1", "fence", "ats 0 1-1", "fence"], "VC-07");
        // A context on its way goes before, too.
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        let _ = rig.ring([inval_ddt(Some(id(0))), function(0).inval(page(1))]);
        assert_eq!(rig.orders(), ["0=B/2"], "VC-71, VC-73: without ATS from now on");
        rig.directory.set(id(0), &context(&rig, EN_ATS));
        let _ = rig.ring([inval_ddt(Some(id(0))), function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["0=A/1+ats", "inv D0", "ats 0 1-1", "fence"], "VC-73");
    }

    #[test]
    fn wait_while_the_host_is_on_the_way_to_the_context() {
        let mut rig = rig(1);
        rig.physical.answer_next_set_context(Ok(riscv_viommu::Applied::Blocked));
        rig.physical.set_pending(true);
        rig.directory.set(id(0), &{
            let [tc, iohgatp, ta, fsc] = rig.b.context(pscid(2));
            [tc | EN_ATS, iohgatp, ta, fsc]
        });
        let _ = rig.ring([inval_ddt(Some(id(0))), function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["0=B/2+ats Blocked", "inv D0", "fence.."], "VC-73: what it keeps comes along");
        let _ = rig.complete();
        assert!(rig.passed());
        assert_eq!(rig.orders(), ["0=B/2+ats", "inv D0", "ats 0 1-1", "fence"], "VC-73");
    }

    #[test]
    fn are_bounded_and_the_next_one_waits_behind_a_fence_of_the_crates_own() {
        let mut rig = rig(1);
        rig.physical.set_pending(true);
        let pages = (1..=5).map(|n| function(0).inval(page(n)));
        assert_eq!(rig.ring(pages.chain([FENCE.encode()])), Progress::Waiting, "VC-46");
        assert_eq!(rig.orders(), ["ats 0 1-1", "ats 0 2-2", "fence none.."], "VC-74, T23");
        assert_eq!((rig.read(register::CQH), rig.iommu.run()), (u64::from(rig.commands.tail()) - 4, Progress::Waiting));
        assert!(rig.orders().is_empty(), "VC-74");
        let _ = rig.complete_these();
        assert_eq!(rig.orders(), ["ats 0 3-3", "ats 0 4-4", "fence none.."], "VC-74");
        let _ = rig.complete();
        assert_eq!(rig.orders(), ["ats 0 5-5", "fence"], "VC-74");
        assert!(rig.passed() && !told(&rig));
    }

    #[test]
    fn a_host_that_is_busy_is_asked_again() {
        let mut rig = rig(1);
        rig.physical.answer_next_ats_invalidate(Err(OrderError::Busy));
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert!(!rig.passed(), "VC-74");
        let _ = rig.drain();
        assert!(rig.passed() && !told(&rig));
        assert_eq!(rig.orders(), ["ats 0 1-1 Busy", "ats 0 1-1", "fence"], "T41");
    }

    #[test]
    fn a_host_that_refuses_is_degraded_and_the_guest_is_told_of_a_timeout() {
        let mut rig = rig(1);
        rig.physical.answer_next_ats_invalidate(Err(OrderError::Refused { done: 0 }));
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert!(told(&rig) && rig.iommu.health() == Health::Degraded, "FEN-07");
        let mut rig = self::rig(1);
        rig.physical.answer_next_ats_invalidate(Err(OrderError::Fatal));
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!((rig.passed(), rig.iommu.health()), (false, Health::Failed), "T15");
    }
}

mod timeouts {
    use super::*;

    #[test]
    fn are_told_at_the_next_fence_which_stores_nothing_and_goes_on_when_cleared() {
        let at = Gpa::new(0x7200_0000);
        let mut rig = rig(1);
        rig.memory.map(at, 8);
        rig.physical.set_pending(true);
        assert_eq!(rig.ring([function(0).inval(page(1)), FENCE.store(at, 7).encode()]), Progress::Waiting, "VC-46");
        time_out(&mut rig);
        assert_eq!((told(&rig), rig.memory.read(at), rig.passed()), (true, 0, false), "VC-45, FEN-07");
        let _ = clear_timeout(&mut rig);
        assert_eq!((told(&rig), rig.memory.read(at), rig.passed()), (false, 7, true), "VC-45, FEN-05");
    }

    #[test]
    fn of_a_fence_of_the_crates_own_reach_the_guests_fence_after_it() {
        let mut rig = rig(1);
        for answer in [Completion::AtsTimeout, Completion::Done] {
            rig.physical.answer_next_fence(Ok(answer));
        }
        let pages = (1..=3).map(|n| function(0).inval(page(n)));
        let _ = rig.ring(pages.chain([FENCE.encode()]));
        assert!(told(&rig), "VC-45: {:?}", rig.orders());
    }

    #[test]
    fn name_the_device_because_a_fence_is_between_two() {
        let mut rig = rig(2);
        let _ = rig.ring([0, 0, 1, 0].map(|n| function(n).inval(page(1))).into_iter().chain([FENCE.encode()]));
        let closed = ["ats 0 1-1", "ats 0 1-1", "fence none", "ats 1 1-1", "fence none", "ats 0 1-1", "fence"];
        assert_eq!(rig.orders(), closed, "VC-45");
        // Device 1 does not answer, again and again; device 0 keeps its ATS.
        for _ in 0..3 {
            for answer in [Completion::Done, Completion::AtsTimeout] {
                rig.physical.answer_next_fence(Ok(answer));
            }
            let _ = rig.ring([function(0).inval(page(1)), function(1).inval(page(1)), FENCE.encode()]);
            assert!(told(&rig));
            let _ = clear_timeout(&mut rig);
            assert!(rig.passed());
        }
        let orders = rig.orders();
        assert!(orders.contains(&"1=A/1".into()) && !orders.contains(&"0=A/1".into()), "VC-45, VC-74: {orders:?}");
    }

    #[test]
    fn of_one_guest_are_nothing_to_another() {
        let hardware = Hardware::new(host(true, true));
        let (mut one, mut other) = (on(&hardware, 1, 1), on(&hardware, 2, 1));
        unanswered(&mut one, 0);
        let _ = other.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!((told(&one), told(&other), other.passed()), (true, false, true), "VC-45, T41");
    }

    #[test]
    fn in_a_row_are_in_an_image_unless_the_device_is_taken_to_answer_now() {
        // The bytes of device 0: ATS invalidations it did not answer, those no fence has followed, what it may keep.
        let saved = |rig: &mut Rig| {
            let mut image = [0; 4096];
            let length = rig.iommu.snapshot(&mut image).unwrap();
            image[1112..length].chunks(8).find(|device| device[0] == 8).map(|device| (device[4], device[5], device[6]))
        };
        let mut rig = rig(2);
        for _ in 0..2 {
            unanswered(&mut rig, 0);
            let _ = clear_timeout(&mut rig);
        }
        let _ = rig.ring([function(0).inval(page(1))]);
        assert_eq!(saved(&mut rig), Some((2, 1, 1)), "VC-74: no fence, no answer");
        rig.physical.set_pending(true);
        let _ = rig.ring([function(1).inval(page(1)), FENCE.encode()]);
        let _ = rig.complete_these();
        assert_eq!(saved(&mut rig), Some((0, 0, 1)), "VC-74: it answered");
        let mut rig = self::rig(2);
        unanswered(&mut rig, 0);
        let _ = clear_timeout(&mut rig);
        rig.physical.set_pending(true);
        let _ = rig.ring([function(1).inval(page(1)), FENCE.encode()]);
        assert_eq!(saved(&mut rig), Some((1, 0, 1)), "VC-74: another device's");
        let _ = rig.complete();
        rig.physical.set_pending(true);
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(saved(&mut rig), Some((0, 0, 1)), "VC-74: its own");
    }

    #[test]
    fn while_cqen_is_0_leave_the_queue_busy_until_they_come() {
        let mut rig = rig(1);
        rig.physical.set_pending(true);
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
        assert_eq!(rig.read(register::CQCSR), register::ON | register::BUSY, "VC-46");
        time_out(&mut rig);
        assert_eq!(rig.read(register::CQCSR), register::CMD_TO, "VC-46");
    }

    #[test]
    fn that_come_after_a_reset_are_not_told() {
        let mut rig = rig(1);
        rig.physical.set_pending(true);
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        let _ = rig.iommu.reset();
        // Nor those of the requests that the reset makes.
        for _ in 0..2 {
            for ticket in rig.physical.complete_all() {
                let _ = rig.iommu.fence_done(ticket, FenceOutcome::AtsTimeout);
            }
        }
        let _ = rig.complete();
        rig.turn_on();
        assert!(rig.fence() && !told(&rig), "VC-46");
    }

    #[test]
    fn three_in_a_row_end_the_devices_ats_until_the_host_has_reset_it() {
        let mut rig = rig(1);
        for n in 1..=3 {
            assert_eq!(rig.iommu.health(), Health::Good, "VC-74");
            unanswered(&mut rig, 0);
            assert!(told(&rig));
            let _ = clear_timeout(&mut rig);
            let off = rig.orders().contains(&"0=A/1".into());
            assert_eq!(off, n == 3, "VC-74, T41");
        }
        assert_eq!(rig.iommu.health(), Health::Degraded, "VC-74");
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert!(rig.passed() && rig.orders() == ["fence"], "VC-71, T41: nothing is sent any more");
        // Whatever the guest does, and across its reset.
        let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv D0", "fence"], "T41");
        assert_eq!(rig.iommu.device_reset(id(0)), Progress::Idle);
        assert_eq!(rig.orders(), ["0=A/1+ats", "inv D0", "fence"], "VC-74");
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["ats 0 1-1", "fence"]);
        let _ = rig.memory.take_loads();
        assert_eq!(rig.iommu.device_reset(id(0)), Progress::Idle);
        assert!(rig.memory.take_loads().is_empty() && rig.orders().is_empty(), "VC-74: it has its ATS");
    }

    // No fence of the guest's follows, whoever named the device meanwhile.
    #[test]
    fn the_context_without_ats_is_fenced_also_if_the_guest_named_the_device() {
        for named in [false, true] {
            let mut rig = rig(2);
            for _ in 0..2 {
                unanswered(&mut rig, 0);
                let _ = clear_timeout(&mut rig);
            }
            let _ = rig.orders();
            rig.physical.set_pending(true);
            // The requests to another device are behind a fence of the crate's own.
            let _ = rig.ring([0, 1, 1].map(|n| function(n).inval(page(1))));
            if named {
                let _ = rig.ring([inval_ddt(Some(id(0)))]);
            }
            time_out(&mut rig);
            let orders = rig.orders();
            let at = |what: &str| orders.iter().rposition(|order| order.starts_with(what));
            assert!(at("0=A/1").is_some() && at("0=A/1") < at("inv D0"), "VC-74, T41: {named}: {orders:?}");
            assert!(at("inv D0") < at("fence"), "VC-74, T41: {named}: {orders:?}");
        }
    }

    #[test]
    fn an_answer_between_them_is_forgiven() {
        let mut rig = rig(1);
        for _ in 0..4 {
            for _ in 0..2 {
                unanswered(&mut rig, 0);
                let _ = clear_timeout(&mut rig);
            }
            let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
            assert!(rig.passed());
        }
        assert_eq!(rig.iommu.health(), Health::Good, "VC-74");
    }

    #[test]
    fn of_a_device_that_was_reset_are_not_told() {
        let mut rig = rig(1);
        rig.physical.set_pending(true);
        let _ = rig.ring([function(0).inval(page(1)), FENCE.encode()]);
        let _ = rig.iommu.device_reset(id(0));
        time_out(&mut rig);
        assert!(rig.passed() && !told(&rig), "VC-74");
        for _ in 0..2 {
            unanswered(&mut rig, 0);
            let _ = clear_timeout(&mut rig);
        }
        assert_eq!(rig.iommu.health(), Health::Good, "VC-74: that one does not count");
        assert_eq!(rig.iommu.device_reset(id(7)), Progress::Idle, "no such device");
    }
}

mod leaving {
    use super::*;

    /// What a device with ATS does before it is blocked.
    const EMPTIES: [&str; 6] =
        ["0=Quiesced", "inv D0", "fence", "ats 0 0-fffffffffffff", "ats 0 0-fffffffffffff@0+g", "fence"];
    const LEAVES: [&str; 4] = ["0=Blocked", "inv D0", "fence", "release 0"];

    fn both(first: &[&'static str], then: &[&'static str]) -> Vec<&'static str> {
        [first, then].concat()
    }

    #[test]
    fn its_own_cache_is_emptied_before_it_is_blocked_and_released() {
        let mut rig = rig(1);
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        assert_eq!(rig.orders(), both(&EMPTIES, &LEAVES), "SWG-21, T36");
        let mut rig = self::rig(1);
        assert_eq!(rig.iommu.shutdown(), Progress::Idle);
        assert_eq!(rig.orders(), both(&EMPTIES, &LEAVES), "SWG-21");
    }

    #[test]
    fn nothing_of_one_owner_is_kept_for_the_next() {
        for (answers, kept) in [(true, 0), (false, 1)] {
            let mut rig = rig(1);
            let hardware = rig.physical.hardware().clone();
            let device = rig.device(0);
            assert!(!rig.physical.hardware().dma_through_atc(device, None, IOVA, false).stale);
            assert_eq!(hardware.kept(device).len(), 1, "SWG-21: something to forget");
            hardware.set_unresponsive(device, !answers);
            assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle), "SWG-21");
            assert_eq!(hardware.kept(device).len(), kept, "T36, SWG-21");
            assert_eq!(rig.physical.take_orders().len(), 10, "SWG-21: released, either way");
        }
    }

    #[test]
    fn each_step_waits_for_the_fence_before_it() {
        let mut rig = rig(1);
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        assert_eq!(rig.orders(), ["0=Quiesced", "inv D0", "fence.."], "SWG-21");
        let _ = rig.complete_these();
        assert_eq!(rig.orders(), ["ats 0 0-fffffffffffff", "ats 0 0-fffffffffffff@0+g", "fence.."], "SWG-21");
        assert_eq!(rig.try_attach_with(0, policy()).err(), Some(AttachError::IdInUse), "T36");
        let _ = rig.orders();
        let _ = rig.complete_these();
        assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence.."], "SWG-21");
        assert_eq!(rig.complete(), Progress::Idle);
        assert_eq!(rig.orders(), ["release 0"], "T36");
    }

    #[test]
    fn a_reset_empties_it_too_and_the_device_stays() {
        let mut rig = rig(1);
        assert_eq!(rig.iommu.reset(), Progress::Idle);
        assert_eq!(rig.orders(), both(&EMPTIES, &["0=Blocked", "inv D0", "fence"]), "SWG-21");
        // Its cache is empty now.
        assert_eq!(rig.iommu.reset(), Progress::Idle);
        assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence"], "SWG-21");
    }

    #[test]
    fn a_device_whose_ats_the_guest_turned_off_may_still_keep_something() {
        let mut rig = rig(1);
        rig.directory.set(id(0), &context(&rig, 0));
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        let _ = rig.orders();
        let _ = rig.iommu.detach(id(0));
        assert_eq!(rig.orders(), both(&EMPTIES, &LEAVES), "SWG-21, T36");
    }

    #[test]
    fn a_device_that_never_had_ats_or_was_reset_is_blocked_at_once() {
        let mut rig: Rig = Rig::on(host(true, true), &config());
        rig.directory.set(id(0), &context(&rig, 0));
        let _ = rig.enter();
        let _ = rig.attach_with(0, policy());
        let _ = rig.orders();
        let _ = rig.iommu.detach(id(0));
        assert_eq!(rig.orders(), LEAVES, "SWG-21");
        let mut rig = self::rig(1);
        rig.directory.set(id(0), &context(&rig, 0));
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        rig.physical.hardware().reset_function(rig.device(0));
        let _ = rig.iommu.device_reset(id(0));
        let _ = rig.orders();
        let _ = rig.iommu.detach(id(0));
        assert_eq!(rig.orders(), LEAVES, "SWG-21: the host emptied it");
    }

    #[test]
    fn an_image_says_whether_it_may_keep_something() {
        for (bits, first) in [(0, &[][..]), (EN_ATS, &EMPTIES)] {
            let mut rig = rig(1);
            rig.directory.set(id(0), &context(&rig, bits));
            let _ = rig.iommu.reset();
            let _ = rig.enter();
            let mut image = [0; 4096];
            let length = rig.iommu.snapshot(&mut image).unwrap();
            let mut other: Rig = Rig::on(host(true, true), &config());
            let _ = other.attach_with(0, policy());
            assert_eq!(other.iommu.restore(&image[..length]), Ok(Progress::Idle));
            let _ = other.orders();
            let _ = other.iommu.detach(id(0));
            assert_eq!(other.orders(), both(first, &LEAVES), "SWG-21: the device came along");
        }
    }

    #[test]
    fn while_all_are_blocked_until_the_reset_it_is_not_opened_for_the_sake_of_its_cache() {
        let mut rig = rig(2);
        for _ in 0..2 {
            rig.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
        }
        let _ = rig.ring([Iotinval::ALL.vma(), FENCE.encode()]);
        let _ = rig.orders();
        let _ = rig.iommu.detach(id(0));
        assert_eq!(rig.orders(), LEAVES, "SWG-21, T21");
        assert_eq!(rig.context(1), "Blocked", "T21");
    }

    #[test]
    fn without_t2gpa_it_is_blocked_at_once() {
        let mut rig: Rig = Rig::on(host(true, false), &config());
        rig.directory.set(id(0), &context(&rig, EN_ATS));
        let _ = rig.enter();
        let _ = rig.attach_with(0, policy().with_trusted_translations(true));
        assert!(rig.orders().contains(&"0=A/1+ats".into()));
        let _ = rig.iommu.detach(id(0));
        assert_eq!(rig.orders(), LEAVES, "SWG-21: the host resets the function first");
    }

    // What a device keeps is host addresses there, and nothing translates them again (VC-75, SWG-18).
    #[test]
    fn without_t2gpa_it_has_ats_again_only_after_its_reset_where_it_may_have_kept_memory_that_was_taken() {
        let trusted = policy().with_trusted_translations(true);
        let taken = |rig: &mut Rig| rig.iommu.invalidate_gpa(Gpa::new(0x9000_0000)..=Gpa::new(0x9000_0fff));
        let says = |rig: &mut Rig, bits| {
            rig.directory.set(id(0), &context(rig, bits));
            let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
            rig.context(0)
        };
        let start = || {
            let mut rig: Rig = Rig::on(host(true, false), &config());
            rig.directory.set(id(0), &context(&rig, EN_ATS));
            let _ = rig.enter();
            let _ = rig.attach_with(0, trusted);
            assert_eq!(rig.context(0), "A/1+ats");
            rig
        };
        // It was off when memory was taken, and could not be told.
        let mut rig = start();
        assert_eq!(says(&mut rig, 0), "A/1");
        assert_eq!(taken(&mut rig), Progress::Idle);
        assert_eq!(says(&mut rig, EN_ATS), "A/1", "VC-75, T31");
        rig.physical.hardware().reset_function(rig.device(0));
        let _ = rig.iommu.device_reset(id(0));
        assert_eq!(rig.context(0), "A/1+ats", "VC-74");
        // It was told, and did not answer.
        let mut rig = start();
        rig.physical.hardware().set_unresponsive(rig.device(0), true);
        assert_eq!(taken(&mut rig), Progress::Idle);
        assert_eq!(rig.context(0), "A/1", "VC-75, T31");
        // It was told, and did.
        let mut rig = start();
        assert_eq!(taken(&mut rig), Progress::Idle);
        assert_eq!(rig.context(0), "A/1+ats", "VC-75");
    }

    #[test]
    fn a_device_that_does_not_answer_goes_on_and_the_guest_hears_nothing() {
        let mut rig = rig(2);
        rig.physical.answer_next_fence(Ok(Completion::Done));
        rig.physical.answer_next_fence(Ok(Completion::AtsTimeout));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        assert_eq!(rig.orders(), both(&EMPTIES, &LEAVES), "SWG-21");
        assert!(rig.fence() && !told(&rig), "VC-45");
    }

    #[test]
    fn a_host_that_will_not_quiesce_or_send_has_it_blocked() {
        let mut rig = rig(1);
        rig.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        let refused = ["0=Quiesced Refused(0)", "0=Blocked", "inv D0", "fence", "release 0"];
        assert_eq!(rig.orders(), refused, "SWG-21, T19");
        let mut rig = self::rig(1);
        (0..2).for_each(|_| rig.physical.answer_next_ats_invalidate(Err(OrderError::Refused { done: 0 })));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        assert_eq!(rig.orders().last().map(String::as_str), Some("release 0"), "SWG-21");
    }

    #[test]
    fn one_whose_context_with_ats_was_refused_may_have_had_it() {
        let mut rig: Rig = Rig::on(host(true, true), &config());
        rig.directory.set(id(0), &context(&rig, 0));
        let _ = rig.enter();
        let _ = rig.attach_with(0, policy());
        rig.directory.set(id(0), &context(&rig, EN_ATS));
        rig.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
        let _ = rig.ring([inval_ddt(Some(id(0)))]);
        assert!(rig.fence());
        let _ = rig.orders();
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        assert_eq!(rig.orders(), both(&EMPTIES, &LEAVES), "SWG-21: part of it may have been done");
    }

    #[test]
    fn a_host_that_is_busy_or_on_the_way_is_asked_again() {
        let mut rig = rig(1);
        rig.physical.answer_next_set_context(Err(OrderError::Busy));
        rig.physical.answer_next_set_context(Ok(riscv_viommu::Applied::Blocked));
        rig.physical.answer_next_ats_invalidate(Err(OrderError::Busy));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        let _ = rig.drain();
        let orders = rig.orders();
        assert_eq!(orders[..3], ["0=Quiesced Busy", "0=Quiesced Blocked", "inv D0"], "SWG-21");
        let sent: Vec<&String> = orders.iter().filter(|order| order.starts_with("ats")).collect();
        assert_eq!((sent.len(), orders.last().unwrap().as_str()), (3, "release 0"), "SWG-21: {orders:?}");
    }

    #[test]
    fn many_at_once_share_what_may_be_under_way() {
        let mut rig = rig(4);
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.shutdown(), Progress::Waiting);
        let mut orders = Vec::new();
        while rig.iommu.progress() != Progress::Idle {
            let _ = rig.complete_these();
            orders.extend(rig.orders());
        }
        let count = |kind: &str| orders.iter().filter(|order| order.starts_with(kind)).count();
        assert_eq!((count("ats"), count("release")), (8, 4), "SWG-21: {orders:?}");
        let most = orders.split(|order| order.starts_with("fence")).map(<[String]>::len).max();
        assert!(most <= Some(2 + 4 + 1), "VC-74: {orders:?}");
    }

    #[test]
    fn one_that_waits_for_the_host_keeps_no_other_waiting() {
        let mut rig = rig(2);
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.shutdown(), Progress::Waiting);
        let _ = rig.orders();
        rig.physical.answer_next_ats_invalidate(Err(OrderError::Busy));
        let _ = rig.complete_these();
        let orders = rig.orders();
        assert!(orders.contains(&"ats 0 0-fffffffffffff Busy".into()), "VC-74: {orders:?}");
        assert!(orders.iter().any(|order| order.starts_with("ats 1 ")), "VC-74: {orders:?}");
    }

    #[test]
    fn a_reset_or_a_detach_on_the_way_begins_anew() {
        for step in 0..3 {
            let mut rig = rig(1);
            rig.physical.set_pending(true);
            let _ = rig.iommu.reset();
            for _ in 0..step {
                let _ = rig.complete_these();
            }
            let _ = rig.iommu.detach(id(0));
            for _ in 0..8 {
                let _ = rig.complete_these();
            }
            let orders = rig.orders();
            assert_eq!(orders.last().map(String::as_str), Some("release 0"), "SWG-21, T19: {step} {orders:?}");
        }
        let mut rig = rig(1);
        let attachment = again(&mut rig);
        assert_eq!(attachment.device(), id(0), "T36: it may come again");
    }
}

mod while_the_host_drives_devices_anew {
    use super::*;

    #[test]
    fn an_invalidation_is_not_taken_for_one_of_a_device_without_ats() {
        let mut rig: Rig = Rig::on(host(true, false), &config());
        rig.directory.set(id(0), &context(&rig, EN_ATS));
        let _ = rig.enter();
        let _ = rig.attach_with(0, policy().with_trusted_translations(true));
        assert!(rig.fence());
        let through = |rig: &Rig| rig.physical.hardware().dma_through_atc(rig.device(0), None, IOVA, false).access;
        assert_eq!(through(&rig), Access::Unchecked(PAGE_A.get()));
        rig.memory.write(rig.a.entry_address(IOVA, 0), PAGE_B.get() >> 2 | pte::RW);
        let _ = rig.ring([Iotinval::ALL.vma(), FENCE.encode()]);
        rig.physical.set_pending(true);
        rig.physical.lose_state();
        let _ = rig.iommu.host_lost_state();
        let _ = rig.ring([function(0).inval(IOVA.get()), FENCE.encode()]);
        let _ = rig.complete();
        let _ = rig.drain();
        assert!(rig.passed());
        assert_eq!(through(&rig), Access::Unchecked(PAGE_B.get()), "VC-70: the device kept what it had all the while");
    }

    #[test]
    fn one_that_no_cache_can_be_told_of_stays_blocked() {
        let mut rig = rig(1);
        for _ in 0..2 {
            rig.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
        }
        let _ = rig.ring([Iotinval::ALL.vma(), FENCE.encode()]);
        assert_eq!((rig.passed(), rig.iommu.health()), (true, Health::Degraded));
        rig.physical.set_pending(true);
        assert!(!rig.fence());
        rig.physical.set_pending(false);
        rig.physical.lose_state();
        let _ = rig.iommu.host_lost_state();
        assert!(rig.passed(), "T21: the fence that was lost is issued anew");
        assert!(rig.fence(), "T21: all are blocked until the reset, and the guest's fences complete");
        assert_eq!(rig.context(0), "Blocked", "T21");
    }
}
