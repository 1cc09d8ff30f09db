//! What goes out when: `ddtp` writes, fences, held invalidations, invalidations that can find nothing, and entries that
//! become valid without a word (design, "The backend" and "Semantics that must not be left to chance").

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, OFF, PAGE_A, Rig, id, pscid};
use riscv_viommu::mock::guest::{Iofence, Iotinval, inval_ddt, register};
use riscv_viommu::mock::{Access, Hardware};
use riscv_viommu::{Cause, Config, Gpa, Health, HostFault, Iova, Progress, TransactionType, Width};

mod ddtp {
    use super::*;

    #[test]
    fn is_readable_at_once_and_busy_until_contexts_invalidations_and_fence_are_done() {
        for (value, context) in [(OFF, "Blocked"), (BARE, "Bare+pid")] {
            let mut rig = Rig::new().translating();
            let _ = rig.ring([Iotinval::ALL.pscid(pscid(9)).vma()]);
            rig.physical.set_pending(true);
            assert_eq!(rig.ddtp(value), Progress::Waiting);
            assert_eq!(rig.read(register::DDTP), value | register::DDTP_BUSY);
            let set = format!("0={context}");
            assert_eq!(rig.orders(), ["inv S9", &set, "inv D0", "fence.."], "SYNC-01, SYNC-02, VT-16");
            // Dropped, whole.
            let _ = rig.enter();
            let _ = rig.ddtp(value ^ 1);
            assert_eq!(rig.read(register::DDTP), value | register::DDTP_BUSY, "REG-DDTP-11");
            assert_eq!((rig.iommu.run(), rig.orders().len()), (Progress::Waiting, 0));
            assert_eq!(rig.complete(), Progress::Idle);
            assert_eq!((rig.read(register::DDTP), rig.context(0)), (value, context.into()));
            assert!(!rig.dma(0).stale);
        }
    }

    #[test]
    fn busy_stays_until_the_invalidation_is_done_where_the_host_is_busy() {
        let mut rig = Rig::new().translating();
        (0..4).for_each(|_| rig.physical.answer_next_invalidate(Err(riscv_viommu::OrderError::Busy)));
        assert_eq!(rig.ddtp(OFF), Progress::Waiting);
        assert!(rig.ddtp_busy(), "T11");
        assert!(rig.drain() > 0);
        assert!(!rig.ddtp_busy());
    }

    #[test]
    fn from_one_directory_to_another_is_ignored() {
        let mut rig = Rig::new().translating();
        let before = rig.read(register::DDTP);
        for mode in 2..=4 {
            assert_eq!(rig.ddtp(before & !0xf | mode), Progress::Idle);
            assert_eq!(rig.ddtp(0x1234 << 10 | mode), Progress::Idle);
        }
        assert_eq!((rig.read(register::DDTP), rig.orders().len()), (before, 0), "REG-DDTP-10");
    }

    #[test]
    fn of_a_vm_without_devices_is_done_at_once() {
        let mut rig = Rig::new();
        assert_eq!(rig.enter(), Progress::Idle);
        assert!(!rig.ddtp_busy() && rig.orders().is_empty());
        assert!(rig.fence());
        assert!(rig.orders().is_empty(), "VC-40: hardware has nothing to finish");
    }

    #[test]
    fn written_while_a_fence_waits_both_complete() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        let _ = rig.ring([FENCE.encode()]);
        let _ = rig.ddtp(OFF);
        assert_eq!(rig.orders(), ["fence..", "0=Blocked", "inv D0", "fence.."]);
        let _ = rig.complete();
        assert!(rig.passed() && !rig.ddtp_busy());
    }

    #[test]
    fn with_more_devices_than_a_call_may_walk_goes_on_in_run() {
        let mut rig: Rig = Rig::with(&Hardware::default(), 1, &Config::nested().with_budget(4));
        for n in 0..16 {
            rig.directory.set(id(n), &rig.a.context(pscid(1)));
            let _ = rig.attach(n);
        }
        let _ = rig.drain();
        let _ = (rig.orders(), rig.memory.take_loads());
        assert_eq!(rig.enter(), Progress::Runnable, "T14");
        let mut calls = 1;
        while rig.ddtp_busy() {
            let loads = rig.memory.take_loads().len();
            assert!(loads <= 4 * 3, "at most four walks a call, not {loads} loads");
            assert!(!rig.orders().iter().any(|order| order.starts_with("fence")), "no fence before the last one");
            let _ = rig.iommu.run();
            calls += 1;
        }
        assert_eq!(calls, 4, "16 devices, 4 at a time");
        assert_eq!(rig.orders().last().map(String::as_str), Some("fence"));
        assert!((0..16).all(|n| rig.context(n) == "A/1"));
    }
}

mod fences {
    use super::*;

    #[test]
    fn carry_the_guests_scope_and_nothing_else_of_its_words() {
        let at = Gpa::new(0x7200_0000);
        for (pr, pw, text) in
            [(false, false, "fence none"), (true, false, "fence PR"), (false, true, "fence PW"), (true, true, "fence")]
        {
            let mut rig = Rig::new().translating();
            rig.memory.map(at, 8);
            rig.physical.set_pending(true);
            let _ = rig.ring([Iofence::PLAIN.accesses(pr, pw).store(at, 7).encode()]);
            assert_eq!(rig.orders(), [format!("{text}..")], "T01, VC-41");
            assert_eq!((rig.passed(), rig.memory.read(at)), (false, 0), "T15");
            let _ = rig.complete();
            assert_eq!((rig.passed(), rig.memory.read(at)), (true, 7));
        }
    }

    #[test]
    fn what_is_behind_a_waiting_fence_is_fetched_again() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        let [first, second] = [3, 4].map(|number| Iotinval::ALL.pscid(pscid(number)).vma());
        let behind = rig.commands.entry(rig.commands.tail() + 1);
        let _ = rig.ring([FENCE.encode(), first]);
        // A guest that rewrites a command it has rung for gets either; prefetched it is not.
        rig.memory.write_words(behind, &second);
        let _ = rig.complete();
        assert!(rig.fence());
        assert_eq!(rig.orders(), ["fence..", "inv S4", "fence"], "design: In flight");
    }

    #[test]
    fn cqen_to_0_waits_for_the_fence_and_fetches_nothing_more() {
        let mut rig = Rig::new().translating();
        rig.physical.set_pending(true);
        let _ = rig.ring([FENCE.encode(), Iotinval::ALL.vma()]);
        let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
        assert_eq!(rig.read(register::CQCSR), register::ON | register::BUSY, "REG-CQCSR-22");
        let _ = rig.complete();
        assert_eq!(rig.read(register::CQCSR), 0);
        assert_eq!(rig.read(register::CQH) + 1, u64::from(rig.commands.tail()), "the fence, and nothing behind it");
        assert_eq!(rig.orders(), ["fence.."]);
    }

    #[test]
    fn wait_for_a_device_that_is_being_attached() {
        let mut rig = Rig::new();
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        let _ = rig.enter();
        rig.physical.set_pending(true);
        let _ = rig.attach(0);
        rig.directory.invalidate(id(0));
        assert!(!{
            let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
            rig.passed()
        });
        let _ = rig.complete_these();
        assert!(!rig.passed(), "T11: its context was read, and is not fenced");
        let _ = rig.complete();
        assert!(rig.passed());
        assert_eq!(rig.context(0), "Blocked");
    }
}

mod elision {
    use super::*;

    /// What goes out for an invalidation and a fence.
    fn goes_out(rig: &mut Rig) -> bool {
        let _ = rig.orders();
        assert!({
            let _ = rig.ring([Iotinval::ALL.vma()]);
            rig.fence()
        });
        rig.orders().iter().any(|order| order == "inv FS")
    }

    #[test]
    fn only_while_nothing_translates_or_has_translated_since_the_caches_were_emptied() {
        let mut rig = Rig::new();
        assert!(!goes_out(&mut rig), "never attached");
        let _ = rig.attach(0);
        assert!(!goes_out(&mut rig), "T35: attached and never translating");
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        let _ = rig.enter();
        assert!(goes_out(&mut rig));
        let _ = rig.ddtp(BARE);
        assert!(goes_out(&mut rig), "T35: Bare keeps what the GSCID tags");
    }

    #[test]
    fn not_after_off_or_an_invalid_context_before_their_fence_is_complete() {
        type Leave = fn(&mut Rig);
        let leaves: [(&str, Leave); 3] = [
            ("Off", |rig| assert_eq!(rig.ddtp(OFF), Progress::Waiting)),
            ("invalid", |rig| {
                rig.directory.invalidate(id(0));
                let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
            }),
            ("detach", |rig| assert!(rig.iommu.detach(id(0)).is_ok())),
        ];
        for (name, leave) in leaves {
            let mut rig = Rig::new().translating();
            rig.physical.set_pending(true);
            leave(&mut rig);
            let _ = rig.orders();
            // Not clean: the order is taken in, and goes out with the next batch.
            let _ = rig.iommu.write(register::CQCSR, Width::U32, register::ENABLE);
            let fence_waits = !rig.passed();
            let _ = rig.ring([Iotinval::ALL.pscid(pscid(5)).vma()]);
            let _ = rig.complete();
            let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
            let held = rig.orders().iter().any(|order| order.contains("S5"));
            // Behind a fence that waits it is executed after that, when all is clean.
            assert_eq!(held, !fence_waits, "T35: {name}");
            let _ = rig.iommu.write(register::CQCSR, Width::U32, register::ENABLE);
            assert!(!goes_out(&mut rig), "T35: {name}, blocked, invalidated and fenced");
        }
    }

    #[test]
    fn not_after_a_fence_that_orders_less_than_reads_and_writes() {
        for (fence, dropped) in [
            (Iofence::PLAIN, false),
            (Iofence::PLAIN.accesses(true, false), false),
            (Iofence::PLAIN.accesses(false, true), false),
            (FENCE, true),
        ] {
            let mut rig = Rig::new().translating();
            rig.directory.invalidate(id(0));
            let _ = rig.ring([inval_ddt(None), fence.encode()]);
            let _ = rig.ring([Iotinval::ALL.vma()]);
            let _ = rig.iommu.write(register::CQCSR, Width::U32, 0);
            assert_eq!(!rig.orders().iter().any(|order| order == "inv FS"), dropped, "T35: {fence:?}");
        }
    }

    #[test]
    fn not_while_another_device_translates_nor_after_it_begins_again() {
        let mut rig = Rig::new().translating();
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let _ = rig.attach(1);
        let _ = rig.iommu.detach(id(0));
        assert!(goes_out(&mut rig), "T35");
        rig.directory.invalidate(id(1));
        rig.physical.set_pending(true);
        let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
        // It translates again before the fence that would have made all clean is complete.
        rig.directory.set(id(1), &rig.a.context(pscid(1)));
        let _ = rig.iommu.resync(id(1));
        let _ = rig.complete();
        assert!(rig.fence(), "so that no device order is held, which would cover it");
        assert!(goes_out(&mut rig), "T35");
    }

    #[test]
    fn never_of_what_a_device_could_have_cached() {
        let mut rig = Rig::new().translating();
        assert_eq!(rig.dma(0).access, Access::Translated(PAGE_A));
        // Detached and attached again: the space is the same, its entries are not.
        let _ = rig.iommu.detach(id(0));
        rig.memory.write(rig.a.entry_address(IOVA, 0), 0);
        let _ = rig.ring([Iotinval::ALL.vma(), FENCE.encode()]);
        let _ = rig.attach(0);
        assert!(rig.fence());
        assert!(!rig.dma(0).stale, "T35");
    }
}

mod flush {
    use super::*;

    fn space(number: u32) -> [u64; 2] {
        Iotinval::ALL.pscid(pscid(number)).vma()
    }

    #[test]
    fn a_partial_batch_survives_doorbells_and_goes_out_with_what_asks_for_it() {
        type Ask = fn(&mut Rig);
        let asks: [(&str, Ask); 6] = [
            ("fence", |rig| assert!(rig.fence())),
            ("ddtp", |rig| assert_eq!(rig.ddtp(BARE), Progress::Idle)),
            ("cqen", |rig| assert_eq!(rig.iommu.write(register::CQCSR, Width::U32, 0), Progress::Idle)),
            ("attach", |rig| assert!(rig.try_attach(1).is_ok())),
            ("detach", |rig| assert!(rig.iommu.detach(id(1)).is_err() && rig.iommu.detach(id(0)).is_ok())),
            ("reset", |rig| assert_eq!(rig.iommu.reset(), Progress::Idle)),
        ];
        for (name, ask) in asks {
            let mut rig = Rig::new().translating();
            let [first, second] = [2, 3].map(|page| Iotinval::ALL.address(Iova::new(page << 16)).vma());
            for command in [first, second, inval_ddt(Some(id(5)))] {
                assert_eq!(rig.ring([command]), Progress::Idle);
            }
            assert_eq!((rig.iommu.run(), rig.iommu.resync(id(0))), (Progress::Idle, Progress::Idle));
            assert!(rig.orders().is_empty(), "doorbells keep it");
            ask(&mut rig);
            let orders = rig.orders();
            let sent = orders.iter().find(|order| order.starts_with("inv")).map(String::as_str);
            let both = ["inv 20-20 30-30", "inv 20-20 30-30 D1"];
            // A device order covers every first-stage one.
            let covered = matches!(name, "detach" | "reset" | "attach") && sent.is_some_and(|sent| sent.contains('D'));
            assert!(covered || sent.is_some_and(|sent| both.contains(&sent)), "{name}: {orders:?}");
        }
    }

    #[test]
    fn what_names_another_space_is_not_taken_for_the_same() {
        let mut rig = Rig::new().translating();
        let page = Iotinval::ALL.address(Iova::new(0x1_0000));
        let [one, two] = [1, 2].map(|number| page.pscid(pscid(number)).vma());
        let next = Iotinval::ALL.address(Iova::new(0x1_1000)).pscid(pscid(1)).vma();
        let _ = rig.ring([one, two, one, next, FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv 10-10@2 10-11@1", "fence"], "VC-25");
        // Without PSCID global entries are meant too (VC-26); the rest goes with them.
        let _ = rig.ring([one, page.vma(), page.non_leaf().vma(), two, FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv 10-10+nl", "fence"], "VC-25, VC-26");
    }

    #[test]
    fn a_full_buffer_goes_out_and_the_union_covers_every_command() {
        let mut rig = Rig::<16, 4>::sized().translating();
        let _ = rig.ring((2..12).map(space));
        assert_eq!(rig.orders(), ["inv S2 S3 S4 S5", "inv S6 S7 S8 S9"]);
        assert!(rig.fence());
        assert_eq!(rig.orders(), ["inv S10 S11", "fence"]);
    }

    #[test]
    fn a_doorbell_of_64_invalidations_and_a_fence_costs_what_it_should() {
        let mut rig = Rig::<16, 64>::sized().translating();
        let _ = rig.memory.take_loads();
        let pages = (0..64).map(|page| Iotinval::ALL.address(Iova::new(page << 13)).pscid(pscid(1)).vma());
        let commands: Vec<_> = pages.chain([FENCE.encode()]).collect();
        let _ = rig.ring(commands);
        assert!(rig.memory.take_loads().len() <= 5 + 1, "one ring load for 16 commands");
        let orders = rig.orders();
        assert_eq!((orders.len(), orders.last().map(String::as_str)), (2, Some("fence")));
        let all: Vec<String> = (0..64).map(|page| format!("{:x}-{:x}@1", page << 1, page << 1)).collect();
        assert_eq!(orders.first(), Some(&format!("inv {}", all.join(" "))), "nothing wider than asked");
    }
}

/// Entries that become valid without a word (UPD-04, SYNC-08, SYNC-09).
mod valid_without_invalidation {
    use super::*;

    /// Device 0 is attached, its context is not valid; hardware has read that it is blocked.
    fn not_valid() -> Rig {
        let mut rig = Rig::new();
        let _ = rig.enter();
        let _ = rig.attach(0);
        assert!(rig.fence());
        assert_eq!(rig.dma(0).access, Access::Blocked);
        let _ = (rig.orders(), rig.physical.hardware().take_faults());
        rig
    }

    #[test]
    fn is_seen_at_a_later_doorbell_one_device_each_in_turn() {
        let mut rig = not_valid();
        let _ = (rig.attach(1), rig.attach(2));
        for n in 0..3 {
            rig.directory.set(id(n), &rig.a.context(pscid(1)));
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            let blocked: Vec<u32> = (0..3).filter(|&n| rig.context(n) == "Blocked").collect();
            assert_eq!(rig.ring([]), Progress::Idle);
            seen.push(blocked.into_iter().filter(|&n| rig.context(n) != "Blocked").collect::<Vec<_>>());
        }
        seen.sort();
        assert_eq!(seen, [[0], [1], [2]], "UPD-04, SYNC-08");
        let _ = rig.memory.take_loads();
        assert_eq!(rig.ring([]), Progress::Idle);
        assert!(rig.memory.take_loads().is_empty(), "there is none left to look at");
    }

    #[test]
    fn is_looked_for_in_turn_also_where_it_does_not_come() {
        let mut rig = not_valid();
        let _ = (rig.attach(1), rig.attach(2));
        rig.directory.set(id(2), &rig.a.context(pscid(1)));
        for _ in 0..3 {
            let _ = rig.ring([]);
        }
        assert_eq!(rig.context(2), "A/1", "two that stay invalid do not starve it");
    }

    #[test]
    fn is_not_looked_for_where_the_context_is_wrong_in_another_way() {
        for dwords in [[1 | 1 << 12], [3]] {
            let mut rig = not_valid();
            rig.directory.set(id(0), &dwords);
            let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
            let _ = rig.memory.take_loads();
            let _ = rig.ring([]);
            assert!(rig.memory.take_loads().is_empty());
        }
    }

    // "The entry takes effect: next DMA" (SYNC-09). A context may stay out of use until the next completed fence, and
    // nothing obliges the guest to issue one.
    #[test]
    fn is_in_force_when_the_call_that_saw_it_says_idle() {
        type See = fn(&mut Rig, riscv_viommu::Attachment) -> Progress;
        let sees: [(&str, See); 3] = [
            ("doorbell", |rig, _| rig.ring([])),
            ("resync", |rig, _| rig.iommu.resync(id(0))),
            ("host fault", |rig, attachment| {
                let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, IOVA);
                rig.iommu.report_fault(attachment, &fault)
            }),
        ];
        for (name, see) in sees {
            let mut rig = not_valid();
            let _ = rig.iommu.detach(id(0));
            let (attachment, _) = rig.attach(0);
            assert_eq!(rig.dma(0).access, Access::Blocked);
            rig.directory.set(id(0), &[1]);
            let _ = rig.orders();
            assert_eq!(see(&mut rig, attachment), Progress::Idle, "{name}");
            assert!(rig.records().is_empty(), "{name}: nothing is reported");
            assert_eq!(rig.dma(0).access, Access::Translated(Gpa::new(IOVA.get())), "SYNC-09: {name}");
            assert_eq!(rig.orders(), ["0=Bare", "inv D0", "fence"], "SYNC-09: {name}");
        }
    }

    #[test]
    fn needs_nothing_where_the_guest_does_invalidate() {
        let mut rig = not_valid();
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        assert_eq!(rig.dma(0).access, Access::Translated(PAGE_A), "DIR-04, SYNC-03");
        assert_eq!(rig.iommu.health(), Health::Good);
    }
}
