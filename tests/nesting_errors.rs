//! What a host that is busy, refuses, goes through blocked states or fails makes of contexts, invalidations and fences
//! (design, "The backend": Errors; threats T11, T12, T19 to T21, T39).

mod nesting_rig;

use nesting_rig::{BARE, FENCE, Rig, id, pscid};
use riscv_viommu::mock::guest::{Iotinval, inval_ddt, register};
use riscv_viommu::mock::{Access, Strategy};
use riscv_viommu::{
    Applied, AttachError, Completion, FenceOutcome, Health, OrderError, Progress, Ticket, TransactionType, Width,
};
use riscv_viommu::{Cause, HostFault};

const BUSY: OrderError = OrderError::Busy;
const REFUSED: OrderError = OrderError::Refused { done: 0 };
const FATAL: OrderError = OrderError::Fatal;

/// `cqcsr.cqmf`, `cmd_to` and `cmd_ill`.
const ERRORS: u64 = register::MEMORY_FAULT | register::CMD_TO | register::CMD_ILL;

/// The guest puts the device on table B, and fences.
fn to_b<const D: usize, const B: usize>(rig: &mut Rig<D, B>) -> Progress {
    rig.directory.set(id(0), &rig.b.context(pscid(2)));
    rig.ring([inval_ddt(Some(id(0))), FENCE.encode()])
}

mod through_blocked {
    use super::*;

    #[test]
    fn a_host_that_goes_through_blocked_is_called_again_after_an_invalidation_and_a_fence() {
        let mut rig = Rig::new().translating();
        rig.physical.answer_next_set_context(Ok(Applied::Blocked));
        assert_eq!(to_b(&mut rig), Progress::Idle);
        assert_eq!(rig.orders(), ["0=B/2 Blocked", "inv D0", "fence", "0=B/2", "inv D0", "fence"], "T12");
        assert!(rig.passed());
        assert_eq!(rig.iommu.health(), Health::Good);
    }

    #[test]
    fn up_to_four_blocked_states_are_gone_through_and_a_fifth_is_a_refusal() {
        for (blocked, live, health) in
            [(2, "B/2", Health::Good), (4, "B/2", Health::Good), (5, "Blocked", Health::Degraded)]
        {
            let mut rig = Rig::new().translating();
            (0..blocked).for_each(|_| rig.physical.answer_next_set_context(Ok(Applied::Blocked)));
            assert_eq!(to_b(&mut rig), Progress::Idle);
            assert!(rig.passed(), "the guest's fence completes");
            assert_eq!((rig.context(0).as_str(), rig.iommu.health()), (live, health), "{blocked} times");
            // Named again, it gets another try; the health stays until the reset.
            let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
            assert_eq!((rig.context(0).as_str(), rig.iommu.health()), ("B/2", health), "{blocked} times");
        }
    }

    #[test]
    fn blocked_is_no_state_on_the_way_where_it_is_what_was_asked_for() {
        let mut rig = Rig::new().translating();
        rig.physical.answer_next_set_context(Ok(Applied::Blocked));
        rig.directory.set(id(0), &[0; 4]);
        assert_eq!(rig.ring([inval_ddt(Some(id(0)))]), Progress::Idle);
        assert_eq!(rig.orders(), ["0=Blocked Blocked"], "T12: the guest's fence is all it takes");
    }

    // The last answer asked for an invalidation and a fence too, whoever calls next.
    #[test]
    fn a_host_that_was_given_up_on_is_not_called_again_before_a_fence() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        (0..5).for_each(|_| rig.physical.answer_next_set_context(Ok(Applied::Blocked)));
        let _ = rig.ring([inval_ddt(Some(id(0)))]);
        assert_eq!(rig.iommu.health(), Health::Degraded);
        let _ = rig.ring([inval_ddt(Some(id(0)))]);
        assert!(rig.fence());
        assert_eq!(rig.context(0), "B/2");
    }

    #[test]
    fn the_fence_is_withheld_all_the_while_and_fences_in_between_may_be_pending() {
        let mut rig = Rig::new().translating();
        rig.physical.hardware().set_strategy(Strategy::ThroughBlocked);
        rig.physical.set_pending(true);
        assert_eq!(to_b(&mut rig), Progress::Waiting);
        assert_eq!(rig.orders(), ["0=B/2 Blocked", "inv D0", "fence.."]);
        for _ in 0..3 {
            assert_eq!(rig.iommu.run(), Progress::Waiting);
        }
        assert_eq!((rig.orders().len(), rig.passed()), (0, false), "T12, T39");
        assert_eq!(rig.complete_these(), Progress::Waiting);
        assert_eq!(rig.orders(), ["0=B/2", "inv D0", "fence.."]);
        assert!(!rig.passed());
        assert_eq!(rig.complete_these(), Progress::Idle);
        assert!(rig.passed() && rig.orders().is_empty());
    }

    #[test]
    fn the_guest_may_change_the_context_again_in_between() {
        for (then, at_once, after) in [
            (3, &[][..], &["0=A/3", "inv D0", "fence.."][..]),
            // Invalid now: the device is blocked already, but the host has to know that it stays so.
            (0, &["0=Blocked", "inv D0", "fence.."], &["fence.."]),
        ] {
            let mut rig = Rig::new().translating();
            rig.physical.hardware().set_strategy(Strategy::ThroughBlocked);
            rig.physical.set_pending(true);
            assert_eq!(to_b(&mut rig), Progress::Waiting);
            let _ = rig.orders();
            match then {
                0 => rig.directory.invalidate(id(0)),
                number => rig.directory.set(id(0), &rig.a.context(pscid(number))),
            }
            assert_eq!(rig.iommu.resync(id(0)), Progress::Waiting);
            assert_eq!(rig.orders(), at_once, "nothing else before the fence");
            assert_eq!(rig.complete_these(), Progress::Waiting);
            assert_eq!(rig.orders(), after);
            assert!(!rig.passed());
            let _ = rig.complete();
            assert!(rig.passed());
            assert_eq!(rig.iommu.health(), Health::Good);
        }
    }

    // Design: Busy is "nothing done, Waiting, retried by `run`"; no spin in the crate (T20).
    #[test]
    fn a_host_that_is_busy_at_the_second_call_is_asked_again_from_run_only() {
        let mut rig = Rig::new().translating();
        rig.physical.answer_next_set_context(Ok(Applied::Blocked));
        (0..20).for_each(|_| rig.physical.answer_next_set_context(Err(BUSY)));
        assert_eq!(to_b(&mut rig), Progress::Waiting, "T20");
        assert_eq!(rig.orders_once(), ["0=B/2 Blocked", "inv D0", "fence", "0=B/2 Busy"], "T20");
        assert!(rig.drain() > 5, "T20");
        assert_eq!(rig.orders_once(), ["0=B/2 Busy", "0=B/2", "inv D0", "fence"]);
        assert!(rig.passed());
    }

    // Contract of set_context: called again after an invalidation and a fence, never before.
    #[test]
    fn the_second_call_waits_for_the_invalidation_also_where_the_batch_was_full_and_the_host_busy() {
        let mut rig = Rig::<16, 1>::sized().translating();
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let _ = rig.attach(1);
        assert!(rig.fence());
        let _ = rig.orders();
        // There is room for the order of one of the two: that of the first has to go out first.
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        rig.directory.set(id(1), &rig.b.context(pscid(2)));
        (0..2).for_each(|_| rig.physical.answer_next_set_context(Ok(Applied::Blocked)));
        (0..4).for_each(|_| rig.physical.answer_next_invalidate(Err(BUSY)));
        assert_eq!(rig.ring([inval_ddt(None), FENCE.encode()]), Progress::Waiting);
        assert_eq!(rig.orders_once(), ["0=B/2 Blocked", "1=B/2 Blocked", "inv D0 Busy"]);
        let _ = rig.drain();
        let orders = ["inv D0 Busy", "inv D0", "inv D1", "fence", "0=B/2", "1=B/2", "inv D0", "inv D1", "fence"];
        assert_eq!(rig.orders_once(), orders, "no set_context before the fence");
        assert_eq!((rig.context(0), rig.context(1)), ("B/2".into(), "B/2".into()));
        assert_eq!(rig.iommu.health(), Health::Good);
    }

    #[test]
    fn reset_and_detach_in_the_middle_start_over_from_blocked() {
        let middle = || {
            let mut rig = Rig::new().translating();
            rig.physical.hardware().set_strategy(Strategy::ThroughBlocked);
            rig.physical.set_pending(true);
            let _ = to_b(&mut rig);
            let _ = rig.orders();
            rig
        };
        let mut rig = middle();
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        let _ = rig.complete();
        assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence..", "release 0"]);
        assert!(rig.passed(), "the fence waits for nothing any more");
        let mut rig = middle();
        assert_eq!(rig.iommu.reset(), Progress::Waiting);
        let _ = rig.complete();
        assert_eq!(rig.orders(), ["0=Blocked", "inv D0", "fence.."]);
        assert_eq!(rig.iommu.progress(), Progress::Idle);
    }
}

mod contexts {
    use super::*;

    #[test]
    fn a_busy_host_keeps_the_old_context_and_the_fence_waits() {
        let mut rig = Rig::new().translating();
        (0..10).for_each(|_| rig.physical.answer_next_set_context(Err(BUSY)));
        assert_eq!(to_b(&mut rig), Progress::Waiting);
        assert_eq!((rig.passed(), rig.context(0)), (false, "A/1".into()), "T39");
        assert!(rig.drain() > 2, "T20");
        assert_eq!(rig.orders_once(), ["0=B/2 Busy", "0=B/2", "inv D0", "fence"]);
        assert!(rig.passed());
    }

    #[test]
    fn a_refused_context_is_followed_by_blocked_before_any_other_order() {
        let mut rig = Rig::new().translating();
        rig.physical.answer_next_set_context(Err(REFUSED));
        assert_eq!(to_b(&mut rig), Progress::Idle);
        assert_eq!(rig.orders(), ["0=B/2 Refused(0)", "0=Blocked", "inv D0", "fence"], "T11, T39");
        assert!(rig.passed(), "the guest's fence completes");
        assert_eq!(rig.iommu.health(), Health::Degraded);
        // It is not tried again by itself, and nothing is shown to the guest.
        assert!(rig.fence());
        let _ = rig.iommu.run();
        assert_eq!(rig.orders(), ["fence"]);
        assert!(rig.records().is_empty());
        // Whoever names it has it tried again; Degraded stays until the reset.
        assert_eq!(rig.iommu.resync(id(0)), Progress::Idle);
        assert_eq!((rig.context(0).as_str(), rig.iommu.health()), ("B/2", Health::Degraded));
        let _ = rig.iommu.reset();
        assert_eq!(rig.iommu.health(), Health::Good);
    }

    #[test]
    fn blocked_is_asked_for_until_the_host_is_not_busy_and_nothing_else_is_ordered_before() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let _ = rig.attach(1);
        assert!(rig.fence());
        let _ = rig.orders();
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        rig.physical.answer_next_set_context(Err(REFUSED));
        (0..10).for_each(|_| rig.physical.answer_next_set_context(Err(BUSY)));
        let page = Iotinval::ALL.address(nesting_rig::IOVA).vma();
        assert_eq!(rig.ring([page, inval_ddt(None), FENCE.encode()]), Progress::Waiting);
        assert_eq!(rig.orders_once(), ["0=B/2 Refused(0)", "0=Blocked Busy"], "T39");
        // Not even what cqen = 0 lets go out.
        let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
        assert_eq!(rig.orders_once(), ["0=Blocked Busy"], "T39");
        assert!(!rig.passed());
        assert!(rig.drain() > 1, "T20");
        assert_eq!(rig.orders_once(), ["0=Blocked Busy", "0=Blocked", "inv D0 D1", "fence"], "T39");
    }

    #[test]
    fn what_is_held_does_not_go_out_before_blocked() {
        let mut rig = Rig::new().translating();
        let _ = rig.ring([Iotinval::ALL.pscid(pscid(9)).vma()]);
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        rig.physical.answer_next_set_context(Err(REFUSED));
        (0..4).for_each(|_| rig.physical.answer_next_set_context(Err(BUSY)));
        assert_eq!(rig.ring([inval_ddt(None)]), Progress::Waiting);
        let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
        assert_eq!(rig.orders_once(), ["0=B/2 Refused(0)", "0=Blocked Busy"], "T39");
    }

    // SYNC-09: the guest did not ask, so it will not fence.
    #[test]
    fn a_context_refused_that_the_guest_did_not_ask_for_is_fenced() {
        let mut rig = Rig::new().translating();
        assert!(matches!(rig.dma(0).access, Access::Translated(_)));
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        rig.physical.answer_next_set_context(Err(REFUSED));
        let _ = rig.orders();
        assert_eq!(rig.iommu.resync(id(0)), Progress::Idle);
        assert_eq!(rig.orders(), ["0=B/2 Refused(0)", "0=Blocked", "inv D0", "fence"], "T39");
        assert_eq!(rig.dma(0).access, Access::Blocked);
    }

    #[test]
    fn a_refused_context_is_not_tried_again_for_a_fault() {
        let mut rig = Rig::new();
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        let _ = rig.enter();
        rig.physical.answer_next_set_context(Ok(Applied::Switched));
        rig.physical.answer_next_set_context(Err(REFUSED));
        let (attachment, _) = rig.attach(0);
        assert!(rig.fence());
        let _ = rig.orders();
        let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, nesting_rig::IOVA);
        assert_eq!(rig.iommu.report_fault(attachment, &fault), Progress::Idle);
        assert!(rig.orders().is_empty(), "T22");
        // Nor is the guest left to guess: its own context is good.
        assert_eq!(rig.records().iter().map(|record| record[0] & 0xfff).collect::<Vec<_>>(), [5], "VT-04");
        assert_eq!(rig.context(0), "Blocked");
    }

    #[test]
    fn a_fence_that_completes_after_the_failure_does_not_let_the_guest_go_on() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        assert!(!rig.fence());
        rig.directory.set(id(0), &rig.b.context(pscid(2)));
        rig.physical.answer_next_set_context(Err(FATAL));
        assert_eq!(rig.iommu.resync(id(0)), Progress::Waiting);
        let _ = rig.complete();
        assert_eq!((rig.passed(), rig.iommu.health()), (false, Health::Failed));
    }

    #[test]
    fn fatal_blocks_every_device_and_ends_all_orders_until_the_reset() {
        for (answers, orders) in [
            (vec![Err(FATAL)], &["0=B/2 Fatal", "0=Blocked", "1=Blocked"][..]),
            // Blocked always works or is Fatal: a host that refuses it has failed.
            (vec![Err(REFUSED), Err(REFUSED)], &["0=B/2 Refused(0)", "0=Blocked Refused(0)", "0=Blocked", "1=Blocked"]),
            (vec![Err(REFUSED), Err(FATAL)], &["0=B/2 Refused(0)", "0=Blocked Fatal", "0=Blocked", "1=Blocked"]),
        ] {
            let mut rig = Rig::new().translating();
            rig.directory.set(id(1), &rig.a.context(pscid(1)));
            let _ = rig.attach(1);
            assert!(rig.fence());
            let _ = rig.orders();
            for answer in answers {
                rig.physical.answer_next_set_context(answer);
            }
            assert_eq!(to_b(&mut rig), Progress::Waiting);
            assert_eq!(rig.orders(), orders);
            failed_until_reset(&mut rig);
        }
    }

    /// `cqh` stays on the fence, no virtual error, no order, sticky; reset recovers.
    fn failed_until_reset(rig: &mut Rig) {
        assert_eq!(rig.iommu.health(), Health::Failed);
        for _ in 0..3 {
            assert_eq!(rig.iommu.run(), Progress::Waiting);
            let _ = rig.ring([Iotinval::ALL.vma(), inval_ddt(None), FENCE.encode()]);
            let _ = rig.iommu.resync(id(0));
        }
        let _ = rig.ddtp(BARE);
        assert!(rig.ddtp_busy());
        assert_eq!(rig.try_attach(2).err(), Some(AttachError::NeedsReset));
        assert!(rig.orders().is_empty(), "no further order");
        assert!(!rig.passed() && rig.read(register::CQCSR) & ERRORS == 0);
        assert_eq!(rig.iommu.health(), Health::Failed);
        assert_eq!(rig.iommu.reset(), Progress::Idle);
        assert_eq!(rig.iommu.health(), Health::Good);
        assert_eq!(rig.orders(), ["0=Blocked", "1=Blocked", "inv D0 D1", "fence"], "T19");
        rig.turn_on();
        assert_eq!(rig.enter(), Progress::Idle);
        assert!(rig.fence());
        assert_eq!(rig.context(0), "B/2");
    }

    #[test]
    fn a_fence_that_fails_fails_the_vm() {
        type Answer = Result<Completion, OrderError>;
        let answers: [(Answer, &str); 3] =
            [(Err(REFUSED), "fence Refused(0)"), (Err(FATAL), "fence Fatal"), (Ok(Completion::Pending), "fence..")];
        for (answer, text) in answers {
            let mut rig = Rig::new().translating();
            rig.directory.set(id(1), &rig.a.context(pscid(1)));
            let _ = rig.attach(1);
            assert!(rig.fence());
            let before = rig.tickets().last().map_or(0, |ticket| ticket.get());
            rig.physical.answer_next_fence(answer);
            assert_eq!(to_b(&mut rig), Progress::Waiting);
            let mut orders = vec!["0=B/2", "inv D0", text];
            if answer.is_ok() {
                assert_eq!(rig.iommu.fence_done(Ticket::new(before + 1), FenceOutcome::Failed), Progress::Waiting);
                // The modelled host does not know that it failed; its books need a Fatal.
                rig.physical.answer_next_fence(Ok(Completion::Done));
            }
            orders.extend(["0=Blocked", "1=Blocked"]);
            assert_eq!(rig.orders(), orders);
            failed_until_reset(&mut rig);
        }
    }

    // Design: "Fatal: Blocked attempted for all"; the books of the mock hold every Fatal answer to that.
    #[test]
    fn an_adopt_that_is_fatal_fails_the_vm_too() {
        let mut rig = Rig::new().translating();
        rig.physical.answer_next_adopt(Err(FATAL));
        assert_eq!(rig.try_attach(1).err(), Some(AttachError::Host(FATAL)));
        assert_eq!(rig.iommu.health(), Health::Failed);
        assert_eq!(rig.orders(), ["adopt 1 Fatal", "0=Blocked"]);
    }

    #[test]
    fn an_adopt_that_is_not_done_leaves_the_device_what_it_was() {
        for error in [BUSY, REFUSED] {
            let mut rig = Rig::new().translating();
            rig.physical.answer_next_adopt(Err(error));
            assert_eq!(rig.try_attach(1).err(), Some(AttachError::Host(error)));
            assert_eq!((rig.orders().len(), rig.iommu.health()), (1, Health::Good));
            assert!(rig.try_attach(1).is_ok());
        }
    }
}

mod invalidations {
    use super::*;

    #[test]
    fn a_busy_host_is_asked_again_and_the_fence_waits() {
        let mut rig = Rig::new().translating();
        (0..2).for_each(|_| rig.physical.answer_next_invalidate(Err(BUSY)));
        assert_eq!(rig.ring([Iotinval::ALL.vma(), FENCE.encode()]), Progress::Waiting);
        assert!(!rig.passed());
        assert_eq!((rig.iommu.run(), rig.iommu.run()), (Progress::Waiting, Progress::Idle));
        assert_eq!(rig.orders(), ["inv FS Busy", "inv FS Busy", "inv FS", "fence"]);
        assert!(rig.passed());
    }

    #[test]
    fn a_queue_whose_batch_is_full_waits_for_a_busy_host_and_loses_nothing() {
        let mut rig = Rig::<16, 1>::sized().translating();
        let spaces = [3, 4, 5].map(|number| Iotinval::ALL.pscid(pscid(number)).vma());
        rig.physical.answer_next_invalidate(Err(BUSY));
        assert_eq!(rig.ring(spaces), Progress::Waiting);
        assert_eq!(rig.read(register::CQH) + 2, u64::from(rig.commands.tail()), "the second is at the head");
        assert!(rig.fence());
        assert_eq!(rig.orders(), ["inv S3 Busy", "inv S3", "inv S4", "inv S5", "fence"]);
    }

    #[test]
    fn a_refused_batch_is_issued_once_more_as_one_that_covers_everything() {
        for done in [0, 1] {
            let mut rig = Rig::new().translating();
            assert_eq!(rig.dma(0).access, Access::Translated(nesting_rig::PAGE_A));
            rig.physical.answer_next_invalidate(Err(OrderError::Refused { done }));
            let spaces = [3, 1].map(|number| Iotinval::ALL.pscid(pscid(number)).vma());
            let _ = rig.ring(spaces);
            rig.memory.write(rig.a.entry_address(nesting_rig::IOVA, 0), 0);
            assert!(rig.fence());
            assert_eq!(rig.orders(), [&format!("inv S3 S1 Refused({done})"), "inv All", "fence"], "T21");
            assert_eq!(rig.iommu.health(), Health::Good);
            assert!(!rig.dma(0).stale);
        }
    }

    #[test]
    fn refused_twice_every_device_is_blocked_until_the_reset_and_the_guest_goes_on() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let (attachment, _) = rig.attach(1);
        assert!(rig.fence());
        let _ = rig.orders();
        (0..2).for_each(|_| rig.physical.answer_next_invalidate(Err(REFUSED)));
        assert_eq!(rig.ring([Iotinval::ALL.vma(), FENCE.encode()]), Progress::Idle);
        assert_eq!(rig.orders(), ["inv FS Refused(0)", "inv All Refused(0)", "0=Blocked", "1=Blocked", "fence"], "T21");
        assert!(rig.passed(), "the guest's fence completes");
        assert_eq!((rig.iommu.health(), rig.read(register::CQCSR) & ERRORS), (Health::Degraded, 0));
        // Nothing the guest or the host says unblocks a device before the reset.
        assert_eq!(rig.ring([inval_ddt(None), FENCE.encode()]), Progress::Idle);
        let _ = rig.iommu.resync(id(0));
        let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, nesting_rig::IOVA);
        let _ = rig.iommu.report_fault(attachment, &fault);
        assert_eq!(rig.records().first().map(|record| record[0] & 0xfff), Some(5), "the host is to blame");
        let _ = rig.ddtp(BARE);
        assert!(!rig.ddtp_busy() && rig.passed());
        assert_eq!((rig.context(0), rig.context(1)), ("Blocked".into(), "Blocked".into()));
        assert_eq!(rig.try_attach(2).err(), Some(AttachError::NeedsReset));
        let _ = rig.orders();
        assert_eq!(rig.iommu.reset(), Progress::Idle);
        assert_eq!(rig.orders(), ["0=Blocked", "1=Blocked", "inv D0 D1", "fence"]);
        rig.turn_on();
        let _ = rig.enter();
        assert_eq!((rig.context(0).as_str(), rig.iommu.health()), ("A/1", Health::Good));
    }

    // What comes after a refusal for good has no device to reach, and waits for nothing (VC-40).
    #[test]
    fn a_command_whose_room_in_the_batch_was_refused_does_not_wait() {
        let mut rig = Rig::<16, 3>::sized().translating();
        (0..2).for_each(|_| rig.physical.answer_next_invalidate(Err(REFUSED)));
        let spaces = (1..5).map(|number| Iotinval::ALL.pscid(pscid(number)).vma());
        assert_eq!(rig.ring(spaces), Progress::Idle, "VC-40");
        assert_eq!(rig.iommu.health(), Health::Degraded);
        assert!(rig.fence());
    }

    // "Done when the progress is Idle" (VIommu::detach); teardown skips no invalidation (T19).
    #[test]
    fn a_device_can_be_detached_after_the_host_refused_to_invalidate() {
        let mut rig = Rig::new().translating();
        (0..2).for_each(|_| rig.physical.answer_next_invalidate(Err(REFUSED)));
        assert_eq!(rig.ring([Iotinval::ALL.vma(), FENCE.encode()]), Progress::Idle);
        let _ = rig.orders();
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle));
        assert_eq!(rig.orders().last().map(String::as_str), Some("release 0"), "Idle says it is done");
        assert_eq!(rig.physical.context(rig.device(0)), None);
    }

    // Contract of release: blocked, invalidated, fenced (T36).
    #[test]
    fn a_device_is_not_released_while_the_host_refuses_to_invalidate() {
        let mut rig = Rig::new().translating();
        (0..6).for_each(|_| rig.physical.answer_next_invalidate(Err(REFUSED)));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting), "nothing released, so not done");
        assert_eq!(rig.physical.context(rig.device(0)), Some(riscv_viommu::Context::Blocked));
        assert!(!rig.orders().iter().any(|order| order.starts_with("release")), "T36");
        // The guest is not held up: every device is blocked.
        assert!(rig.fence());
        assert!(!rig.orders().iter().any(|order| order.starts_with("release")), "T36");
        let _ = rig.drain();
        assert_eq!(rig.orders().last().map(String::as_str), Some("release 0"));
    }

    fn refuse_a_flush(rig: &mut Rig) {
        (0..2).for_each(|_| rig.physical.answer_next_invalidate(Err(REFUSED)));
        let _ = rig.ring([Iotinval::ALL.vma(), FENCE.encode()]);
        assert_eq!(rig.iommu.health(), Health::Degraded);
        let _ = rig.orders();
    }

    // T36: a host that is busy may yet carry out what is held, and a fence is to cover it.
    #[test]
    fn a_fence_waits_for_an_invalidation_that_is_held_although_every_device_is_blocked_for_good() {
        let mut rig = Rig::new().translating();
        assert!(matches!(rig.dma(0).access, Access::Translated(_)));
        refuse_a_flush(&mut rig);
        (0..4).for_each(|_| rig.physical.answer_next_invalidate(Err(BUSY)));
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        assert!(!rig.fence(), "VC-40, VC-54");
        assert!(!rig.orders().contains(&"release 0".to_owned()), "T36");
        let _ = rig.drain();
        assert!(rig.passed());
        assert_eq!(rig.orders().last().map(String::as_str), Some("release 0"));
        assert_eq!(rig.dma(0).access, Access::Blocked, "T36");
    }

    // T40: what is held names nobody who has left.
    #[test]
    fn a_device_that_leaves_while_a_flush_is_refused_is_fenced_anew() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(1), &rig.b.context(pscid(2)));
        let _ = rig.attach(1);
        assert!(rig.fence());
        rig.physical.set_pending(true);
        assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
        (0..2).for_each(|_| rig.physical.answer_next_invalidate(Err(REFUSED)));
        let _ = rig.ring([Iotinval::ALL.vma()]);
        let _ = rig.ddtp(0);
        assert_eq!(rig.iommu.health(), Health::Degraded);
        let _ = rig.orders();
        let _ = rig.complete();
        let orders = rig.orders();
        let at = |order: &str| orders.iter().rposition(|held| held == order);
        assert!(at("release 0") > at("inv D0"), "{orders:?}");
        let _ = rig.ring([FENCE.encode()]);
        let _ = (rig.iommu.reset(), rig.complete());
        assert!(!rig.orders().iter().any(|order| order.contains("D0")), "T40");
    }

    #[test]
    fn a_fatal_invalidation_fails_the_vm() {
        for first in [FATAL, REFUSED] {
            let mut rig = Rig::new().translating();
            rig.physical.answer_next_invalidate(Err(first));
            rig.physical.answer_next_invalidate(Err(FATAL));
            assert_eq!(rig.ring([Iotinval::ALL.vma(), FENCE.encode()]), Progress::Waiting);
            assert_eq!(rig.orders().last().map(String::as_str), Some("0=Blocked"));
            assert_eq!((rig.iommu.health(), rig.passed()), (Health::Failed, false));
            assert_eq!(rig.read(register::CQCSR) & ERRORS, 0, "VC-03: no virtual error bit");
        }
    }
}

mod fences {
    use super::*;

    #[test]
    fn a_busy_host_is_asked_again_and_nothing_is_executed_behind_the_fence() {
        let mut rig = Rig::new().translating();
        (0..2).for_each(|_| rig.physical.answer_next_fence(Err(BUSY)));
        assert_eq!(rig.ring([FENCE.encode(), Iotinval::ALL.vma(), FENCE.encode()]), Progress::Waiting);
        assert_eq!(rig.read(register::CQH) + 3, u64::from(rig.commands.tail()), "T15");
        assert_eq!((rig.iommu.run(), rig.iommu.run()), (Progress::Waiting, Progress::Idle));
        assert_eq!(rig.orders(), ["fence Busy", "fence Busy", "fence", "inv FS", "fence"]);
    }

    #[test]
    fn only_the_ticket_that_is_waited_for_or_a_later_one_completes_a_fence() {
        let mut rig = Rig::new().translating();
        let _ = rig.fence();
        let old = rig.tickets().last().copied().unwrap();
        rig.physical.set_pending(true);
        assert!(!rig.fence());
        let now = rig.tickets().last().copied().unwrap();
        let unknown = Ticket::new(now.get() + 1);
        for outcome in [FenceOutcome::Complete, FenceOutcome::Failed, FenceOutcome::AtsTimeout] {
            for ticket in [Ticket::new(0), old, unknown, Ticket::new(u64::MAX)] {
                assert_eq!(rig.iommu.fence_done(ticket, outcome), Progress::Waiting, "{ticket:?} {outcome:?}");
            }
        }
        assert_eq!((rig.passed(), rig.iommu.health()), (false, Health::Good), "T15");
        let _ = rig.physical.complete(now);
        assert_eq!(rig.iommu.fence_done(now, FenceOutcome::Complete), Progress::Idle);
        assert!(rig.passed());
        assert_eq!(rig.iommu.fence_done(now, FenceOutcome::Failed), Progress::Idle, "it is old now");
        assert_eq!(rig.iommu.health(), Health::Good);
    }

    #[test]
    fn an_ats_timeout_stops_the_queue_on_the_fence_which_is_then_carried_out_again() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        assert!(!rig.fence());
        let ticket = rig.tickets().last().copied().unwrap();
        let _ = rig.physical.complete(ticket);
        let _ = rig.iommu.fence_done(ticket, FenceOutcome::AtsTimeout);
        assert_eq!(rig.read(register::CQCSR) & ERRORS, register::CMD_TO, "FEN-07, VC-45");
        assert!(!rig.passed());
        rig.physical.set_pending(false);
        let _ = rig.iommu.write(register::CQCSR, Width::U32, register::CMD_TO | register::ENABLE);
        assert!(rig.passed());
        assert_eq!(rig.orders(), ["fence"]);
    }

    // Reset forgets the wait (VC-46): what an old fence comes to is no event of the new guest's.
    #[test]
    fn a_timeout_of_a_fence_from_before_the_reset_is_not_shown_after_it() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        assert!(!rig.fence());
        let old = rig.tickets().last().copied().unwrap();
        let _ = rig.iommu.reset();
        let _ = rig.iommu.fence_done(old, FenceOutcome::AtsTimeout);
        let _ = rig.complete();
        rig.turn_on();
        assert!(rig.fence());
        assert_eq!(rig.read(register::CQCSR) & ERRORS, 0);
    }
}
