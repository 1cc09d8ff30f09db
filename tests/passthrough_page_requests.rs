//! Page requests of passthrough devices: whose page is missing, who answers, and that each is answered once.

mod nesting_rig;

use nesting_rig::{FENCE, IOVA, Rig, id, pscid};
use riscv_viommu::PageRequestOutcome::{Discarded, HostPage, NotAttached, Queued};
use riscv_viommu::mock::guest::{AtsCommand, PageRequestRing, inval_ddt, register};
use riscv_viommu::mock::tables::tc::{DPE, EN_ATS, EN_PRI, PDTV, SADE};
use riscv_viommu::mock::tables::{ProcessDirectory, pte};
use riscv_viommu::mock::{Hardware, Memory};
use riscv_viommu::{
    Ats, Attachment, Cause, Config, DevicePolicy, Gpa, Gscid, Health, HostCapabilities, HostFault, Iova, OrderError,
    PageRequest, PageRequestOutcome, PageRequestPayload, PhysicalIommu, Prgi, ProcessId, ResponseCode, TransactionType,
    Width,
};

/// A page that no table maps.
const ABSENT: Iova = Iova::new(0x7000_0000);

fn group(number: u32) -> Prgi {
    Prgi::truncate(number)
}

fn process(number: u32) -> ProcessId {
    ProcessId::truncate(number)
}

fn policy() -> DevicePolicy {
    DevicePolicy::default().with_ats(Ats::PageRequests)
}

fn host() -> HostCapabilities {
    let mut host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
    host.capabilities = host.capabilities.with_ats(true).with_t2gpa(true).with_pd8(true);
    host
}

/// A guest with devices that may make page requests, and its queue for them.
struct Guest {
    rig: Rig,
    pages: PageRequestRing,
    device: Attachment,
}

impl Guest {
    fn new() -> Self {
        Self::with(policy(), EN_ATS | EN_PRI)
    }

    /// Device 0 with this policy, and these bits in its context.
    fn with(policy: DevicePolicy, bits: u64) -> Self {
        let mut rig: Rig = Rig::on(host(), &Config::nested().with_ats(true));
        let [tc, iohgatp, ta, fsc] = rig.a.context(pscid(1));
        rig.directory.set(id(0), &[tc | bits, iohgatp, ta, fsc]);
        let _ = rig.enter();
        let (device, _) = rig.attach_with(0, policy);
        assert!(rig.fence());
        let mut pages = PageRequestRing::new(&rig.memory, 4, Gpa::new(0x7300_0000));
        let _ = rig.iommu.write(register::PQB, Width::U64, pages.pqb());
        let _ = rig.iommu.write(register::PQCSR, Width::U32, register::ENABLE);
        let _ = (rig.orders(), rig.memory.take_loads(), rig.memory.take_events());
        Self { rig, pages, device }
    }

    /// The device asks, and the host passes it on, and answers what it is to answer.
    fn ask(&mut self, request: &PageRequest) -> PageRequestOutcome {
        let (hardware, device) = (self.rig.physical.hardware().clone(), self.rig.device(0));
        let _ = hardware.page_request(device, request);
        let waits = !hardware.take_page_requests().is_empty() && request.payload.wants_response();
        let outcome = self.rig.iommu.report_page_request(self.device, request);
        let code = if outcome == HostPage { Some(ResponseCode::Success) } else { code(outcome) };
        if let Some(code) = code.filter(|_| waits) {
            hardware.answer_page_request(device, request, code);
        }
        outcome
    }

    /// The records since they were last taken.
    fn requests(&mut self) -> Vec<[u64; 2]> {
        let records = self.pages.take(self.rig.read(register::PQT));
        let _ = self.rig.iommu.write(register::PQH, Width::U32, self.pages.head().into());
        records
    }

    /// Answers as the guest, and what goes out for it.
    fn answer(&mut self, command: AtsCommand, group: u16, code: u8) -> Vec<String> {
        let _ = self.rig.ring([command.prgr(group, code)]);
        self.rig.orders()
    }
}

/// Names device `n` of the rig.
fn function(n: u16) -> AtsCommand {
    AtsCommand::to(8_u16.saturating_add(n))
}

fn code(outcome: PageRequestOutcome) -> Option<ResponseCode> {
    match outcome {
        Discarded(response) => response.map(|response| response.code),
        _ => None,
    }
}

mod whose_page {
    use super::*;

    #[test]
    fn what_the_guests_tables_allow_is_the_hosts() {
        let mut guest = Guest::new();
        for request in [PageRequest::read(IOVA, group(1)), PageRequest::write(IOVA, group(2))] {
            assert_eq!(guest.ask(&request), HostPage, "VT-10, VT-08");
            assert_eq!(guest.ask(&request.with_last(false)), HostPage, "VT-10");
        }
        assert!(guest.requests().is_empty() && guest.rig.orders().is_empty(), "VT-10");
        assert!(guest.answer(function(0), 1, 0).is_empty(), "VT-10, PRG-04: the host answers this one");
    }

    #[test]
    fn what_they_do_not_is_the_guests() {
        let mut guest = Guest::new();
        let entry = guest.rig.a.entry_address(IOVA, 0);
        let leaf = guest.rig.memory.read(entry);
        for (flags, read, write) in [
            (leaf & !pte::V, false, false),
            (leaf & !pte::W, true, false),
            (leaf & !pte::U, false, false),
            (leaf & !pte::A, false, false),
            (leaf & !pte::D, true, false),
        ] {
            guest.rig.memory.write(entry, flags);
            for (request, allowed) in
                [(PageRequest::read(IOVA, group(1)), read), (PageRequest::write(IOVA, group(1)), write)]
            {
                let expected = if allowed { HostPage } else { Queued };
                assert_eq!(guest.ask(&request.with_last(false)), expected, "VT-10: {flags:x}");
                let _ = guest.rig.iommu.device_reset(id(0));
            }
        }
        let records = guest.requests();
        // DID 63:40; R, W, L, PRGI 11:3, the page.
        assert_eq!(records.first(), Some(&[0x08 << 40, IOVA.get() | 1 << 3 | 1]), "VT-10, PQ-07, PQ-08");
        assert!(guest.rig.records().is_empty(), "VT-10: no fault");
    }

    #[test]
    fn finding_out_changes_nothing() {
        let mut guest = Guest::with(policy(), EN_ATS | EN_PRI | SADE);
        let entry = guest.rig.a.entry_address(IOVA, 0);
        let old = guest.rig.memory.read(entry) & !(pte::A | pte::D);
        guest.rig.memory.write(entry, old);
        let _ = guest.rig.memory.take_events();
        assert_eq!(guest.ask(&PageRequest::write(IOVA, group(1))), HostPage, "VT-10: hardware would set A and D");
        assert_eq!(guest.rig.memory.read(entry), old, "VT-10");
        assert!(guest.rig.memory.take_events().is_empty() && guest.rig.records().is_empty(), "VT-10");
    }

    #[test]
    fn is_found_out_by_one_walk() {
        let mut guest = Guest::new();
        let _ = guest.rig.memory.take_loads();
        let _ = guest.ask(&PageRequest::write(IOVA, group(1)));
        // Three directory entries and three levels.
        assert_eq!(guest.rig.memory.take_loads().len(), 6, "VT-13");
        let _ = guest.ask(&PageRequest::write(ABSENT, group(1)));
        // And the directory again for the queue.
        assert!(guest.rig.memory.take_loads().len() <= 6 + 3, "VT-13");
    }

    #[test]
    fn of_a_process_is_looked_for_in_its_tables() {
        let mut guest = Guest::new();
        let directory = ProcessDirectory::new(&guest.rig.memory, 1);
        let [_, _, ta, fsc] = guest.rig.a.context(pscid(1));
        directory.set(process(5), [ta | 1, fsc]);
        directory.set(process(0), [ta | 1, fsc]);
        let of = |bits| [1 | EN_ATS | EN_PRI | PDTV | bits, 0, 0, directory.pdtp()];
        let read = PageRequest::read(IOVA, group(1)).with_last(false);
        for (bits, request, expected) in [
            (0, read.with_process(process(5), false), HostPage),
            (0, read.with_process(process(6), false), Queued),
            // ENS is 0.
            (0, read.with_process(process(5), true), Queued),
            // The page can not be executed.
            (0, read.with_process(process(5), false).with_execute(true), Queued),
            (DPE, read, HostPage),
        ] {
            guest.rig.directory.set(id(0), &of(bits));
            assert_eq!(guest.ask(&request), expected, "VT-10: {bits:x} {request:?}");
        }
    }
}

mod answers {
    use super::*;

    fn asked(policy: DevicePolicy) -> Guest {
        let mut guest = Guest::with(policy, EN_ATS | EN_PRI);
        assert_eq!(guest.ask(&PageRequest::read(ABSENT, group(0x155))), Queued);
        guest
    }

    #[test]
    fn go_out_once_for_a_group_that_waits() {
        let mut guest = asked(policy());
        assert_eq!(guest.answer(function(0), 0x155, 0), ["prgr 0 341 Success"], "PRG-01, PRG-05");
        assert!(guest.answer(function(0), 0x155, 0).is_empty(), "PRG-04: once");
    }

    #[test]
    fn to_anything_else_are_dropped() {
        let mut guest = asked(policy());
        let (other, _) = guest.rig.attach_with(1, policy());
        assert_eq!(other.device(), id(1));
        let _ = guest.rig.orders();
        let wrong = [
            (function(1), 0x155, "PRG-03"),
            (function(2), 0x155, "PRG-03"),
            (function(0).segment(1), 0x155, "PRG-03"),
            (function(0), 0x154, "PRG-04"),
            (function(0).process(process(5)), 0x155, "PRG-04"),
        ];
        for (command, group, rule) in wrong {
            assert!(guest.answer(command, group, 0).is_empty(), "{rule}");
        }
        assert!(guest.rig.passed());
        assert_eq!(guest.answer(function(0).segment(0), 0x155, 0), ["prgr 0 341 Success"], "PRG-03");
    }

    #[test]
    fn have_the_pasid_of_the_request() {
        for command in [function(0), function(0).process(process(5))] {
            let mut guest = Guest::new();
            let request = PageRequest::read(ABSENT, group(1)).with_process(process(5), false);
            // The context has no processes: that is for the guest to say.
            assert_eq!(guest.ask(&request), Queued);
            assert_eq!(guest.answer(command, 1, 1), ["prgr 0 1@5 InvalidRequest"], "PRG-05");
        }
    }

    #[test]
    fn that_fail_are_softened_unless_the_host_grants_them() {
        for (granted, failure) in [(false, "InvalidRequest"), (true, "ResponseFailure")] {
            let all = [(0, "Success"), (1, "InvalidRequest")].into_iter().chain((2..16).map(|code| (code, failure)));
            for (code, name) in all {
                let mut guest = asked(policy().with_response_failure(granted));
                let sent = guest.answer(function(0), 0x155, code);
                assert_eq!(sent, [format!("prgr 0 341 {name}")], "PRG-06, PRI-16: {code:x}");
            }
        }
    }

    #[test]
    fn are_out_before_the_next_fence_is_complete() {
        let mut guest = asked(policy());
        guest.rig.physical.answer_next_page_response(Err(OrderError::Busy));
        let _ = guest.rig.ring([function(0).prgr(0x155, 0), FENCE.encode()]);
        assert!(!guest.rig.passed(), "PRG-07");
        let _ = guest.rig.drain();
        let sent = ["prgr 0 341 Success Busy", "prgr 0 341 Success", "fence"];
        assert_eq!((guest.rig.passed(), guest.rig.orders()), (true, sent.map(String::from).to_vec()), "PRG-07");
    }

    #[test]
    fn that_the_host_refuses_are_dropped() {
        let mut guest = asked(policy());
        guest.rig.physical.answer_next_page_response(Err(OrderError::Refused { done: 0 }));
        assert_eq!(guest.answer(function(0), 0x155, 0), ["prgr 0 341 Success Refused(0)"]);
        assert!(guest.rig.passed() && guest.rig.iommu.health() == Health::Good, "PRG-07");
        let mut guest = asked(policy());
        guest.rig.physical.answer_next_page_response(Err(OrderError::Fatal));
        let _ = guest.answer(function(0), 0x155, 0);
        assert_eq!(guest.rig.iommu.health(), Health::Failed);
    }

    #[test]
    fn that_do_not_come_are_given_up_and_then_are_too_late() {
        let mut guest = asked(policy());
        for (group, process) in [(group(1), None), (group(0x155), Some(process(1)))] {
            assert_eq!(guest.rig.iommu.page_request_timeout(guest.device, group, process), None);
        }
        let response = guest.rig.iommu.page_request_timeout(guest.device, group(0x155), None).unwrap();
        assert_eq!((response.code, response.group), (ResponseCode::InvalidRequest, group(0x155)), "PRG-07");
        assert_eq!(guest.rig.iommu.page_request_timeout(guest.device, group(0x155), None), None, "VT-10: once");
        assert!(guest.answer(function(0), 0x155, 0).is_empty(), "PRG-07, PRG-04");
    }

    #[test]
    fn are_wanted_only_where_the_last_request_of_a_group_has_come() {
        let mut guest = Guest::new();
        let first = PageRequest::read(ABSENT, group(1)).with_last(false);
        assert_eq!(guest.ask(&first), Queued);
        assert!(guest.answer(function(0), 1, 0).is_empty(), "PRG-04");
        // The guest has seen how it begins, and so sees how it ends.
        assert_eq!(guest.ask(&PageRequest::read(IOVA, group(1))), Queued, "VT-10");
        assert_eq!(guest.requests().len(), 2, "VT-10");
        assert_eq!(guest.answer(function(0), 1, 0), ["prgr 0 1 Success"], "VT-10: exactly one");
        // A stop marker is queued, and not answered.
        let stop = PageRequest::new(PageRequestPayload::new().with_l(true).with_prgi(group(3)));
        assert_eq!(guest.ask(&stop), Queued, "PRI-13");
        assert!(guest.answer(function(0), 3, 0).is_empty(), "PRI-05");
    }
}

mod discarded {
    use super::*;

    #[test]
    fn requests_get_the_virtual_iommus_own_answer() {
        let read = PageRequest::read(ABSENT, group(1)).with_process(process(5), false);
        // Off, and in error: a Response Failure, softened.
        for (granted, failure) in [(false, ResponseCode::InvalidRequest), (true, ResponseCode::ResponseFailure)] {
            let mut guest = Guest::with(policy().with_response_failure(granted), EN_ATS | EN_PRI);
            let _ = guest.rig.iommu.write(register::PQCSR, Width::U32, 0);
            let outcome = guest.ask(&read);
            assert_eq!(code(outcome), Some(failure), "VT-11, PRG-06, PQ-15");
            let Discarded(Some(response)) = outcome else { unreachable!() };
            assert_eq!((response.process, response.group), (read.process, group(1)), "VT-11");
            assert_eq!(guest.ask(&read.with_last(false)), Discarded(None), "VT-11, PRI-05");
            assert!(guest.answer(function(0), 1, 0).is_empty(), "VT-10: exactly one");
        }
        // Full: the device asks again.
        let mut guest = Guest::new();
        let last = PageRequest::read(ABSENT, group(1)).with_last(false);
        assert!((0..15).all(|_| guest.ask(&last) == Queued));
        assert_eq!(code(guest.ask(&read)), Some(ResponseCode::Success), "VT-11, PQ-18");
        assert_ne!(guest.rig.read(register::PQCSR) & register::PQOF, 0, "VT-11, PQ-18");
        // Not in the guest's directory any more.
        let mut guest = Guest::new();
        guest.rig.directory.invalidate(id(0));
        assert_eq!(code(guest.ask(&read)), Some(ResponseCode::InvalidRequest), "VT-11, PQ-13, PRG-06");
        let [head, _, iotval, _] = *guest.rig.records().first().unwrap();
        assert_eq!((head & 0xfff, head >> 34 & 0x3f, head >> 40, iotval), (258, 9, 0x08, 4), "VT-11, PRI-03");
    }

    #[test]
    fn a_request_with_the_virtual_iommus_own_answer_ends_its_group() {
        let first = PageRequest::read(ABSENT, group(1)).with_last(false);
        let full = || {
            let mut guest = Guest::new();
            assert!((0..15).all(|_| guest.ask(&first) == Queued));
            assert_eq!(code(guest.ask(&PageRequest::read(ABSENT, group(1)))), Some(ResponseCode::Success), "PQ-18");
            let _ = guest.requests();
            let _ = guest.rig.iommu.write(register::PQCSR, Width::U32, register::ENABLE | register::PQOF);
            guest
        };
        assert!(full().answer(function(0), 1, 0).is_empty(), "PRG-04, VT-10: exactly one");
        // The number is another group's now.
        assert_eq!(full().ask(&PageRequest::read(IOVA, group(1))), HostPage, "VT-10");
    }

    #[test]
    fn a_group_that_no_count_can_be_kept_of_is_asked_for_again() {
        let mut guest = Guest::new();
        let read = |number| PageRequest::read(ABSENT, group(number));
        assert!((0..8).all(|number| guest.ask(&read(number)) == Queued));
        assert_eq!(code(guest.ask(&read(8))), Some(ResponseCode::Success), "VT-10, T41");
        assert_eq!((guest.requests().len(), guest.rig.read(register::PQCSR) & register::PQOF), (8, 0), "VT-10");
        assert_eq!(guest.ask(&read(3)), Queued, "VT-10: that one is kept");
        let _ = guest.answer(function(0), 3, 0);
        assert_eq!(guest.ask(&read(8)), Queued, "VT-10");
    }

    #[test]
    fn a_device_that_was_not_granted_page_requests_is_refused() {
        let mut guest = Guest::with(DevicePolicy::default().with_ats(Ats::Translations), EN_ATS | EN_PRI);
        let read = PageRequest::read(ABSENT, group(1));
        assert_eq!(code(guest.ask(&read)), Some(ResponseCode::InvalidRequest), "MRG-04, PRI-07");
        assert_eq!(guest.ask(&read.with_last(false)), Discarded(None));
        assert!(guest.requests().is_empty() && guest.answer(function(0), 1, 0).is_empty(), "MRG-04");
        let record = [0x104 | 9 << 34 | 0x08 << 40, 0, 4, 0];
        assert_eq!(guest.rig.records(), [record], "MRG-04, PQ-14: as if its context had not enabled them");
        // What the guest itself refuses it for comes first.
        guest.rig.directory.invalidate(id(0));
        assert_eq!(code(guest.ask(&read)), Some(ResponseCode::InvalidRequest), "PQ-13, PRG-06");
        assert_eq!(guest.rig.records().first().map(|record| record[0] & 0xfff), Some(258), "PQ-13, PRI-02");
    }

    #[test]
    fn a_device_whose_context_does_not_enable_them_any_more_is_refused_though_the_page_is_there() {
        let mut guest = Guest::new();
        let read = PageRequest::read(IOVA, group(1));
        assert_eq!(guest.ask(&read), HostPage);
        let [tc, iohgatp, ta, fsc] = guest.rig.a.context(pscid(1));
        guest.rig.directory.set(id(0), &[tc | EN_ATS, iohgatp, ta, fsc]);
        let _ = guest.rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        assert_eq!(code(guest.ask(&read)), Some(ResponseCode::InvalidRequest), "PQ-14, PRI-07");
        assert_eq!(guest.rig.records(), [[0x104 | 9 << 34 | 0x08 << 40, 0, 4, 0]], "PQ-14");
    }
}

/// Faults of the messages themselves, which the physical IOMMU refused.
mod faults {
    use super::*;

    #[test]
    fn of_a_message_that_the_guests_own_iommu_would_take_are_not_shown() {
        for process in [None, Some(process(5))] {
            for cause in [Cause::DdtNotValid, Cause::TransactionTypeDisallowed, Cause::ReadPageFault] {
                let mut guest = Guest::new();
                let fault = HostFault::new(cause, TransactionType::MessageRequest, Iova::new(4));
                let fault = process.map_or(fault, |process| fault.with_process(process, false));
                let _ = guest.rig.iommu.report_fault(guest.device, &fault);
                assert!(guest.rig.records().is_empty(), "PRI-02, PRI-03, VT-04: {cause:?}, {process:?}");
                let read = PageRequest::read(ABSENT, group(1));
                let read = process.map_or(read, |process| read.with_process(process, false));
                assert_eq!(guest.ask(&read), Queued, "PRI-02: PDTV is nothing to a message");
            }
        }
    }
}

mod owners {
    use super::*;

    type Event = fn(&mut Guest);

    #[test]
    fn what_an_earlier_one_asked_is_not_answered_for_the_next() {
        let events: [(&str, Event); 3] = [
            ("detach", |guest| {
                let _ = guest.rig.iommu.detach(id(0));
                let _ = guest.rig.attach_with(0, policy());
            }),
            ("reset", |guest| {
                let _ = guest.rig.iommu.reset();
                let _ = guest.rig.drain();
                guest.rig.commands =
                    riscv_viommu::mock::guest::CommandRing::new(&guest.rig.memory, 8, Gpa::new(0x7000_0000));
                guest.rig.turn_on();
            }),
            ("device_reset", |guest| {
                let _ = guest.rig.iommu.device_reset(id(0));
            }),
        ];
        for (name, event) in events {
            let mut guest = Guest::new();
            assert_eq!(guest.ask(&PageRequest::read(ABSENT, group(1))), Queued);
            event(&mut guest);
            let _ = guest.rig.orders();
            assert!(guest.answer(function(0), 1, 0).is_empty(), "T34, PRG-04: {name}");
            assert!(guest.rig.passed(), "{name}");
        }
    }

    #[test]
    fn a_request_of_an_earlier_one_goes_nowhere() {
        let mut guest = Guest::new();
        let read = PageRequest::read(ABSENT, group(1));
        guest.rig.physical.set_pending(true);
        let _ = guest.rig.iommu.detach(id(0));
        assert_eq!(guest.ask(&read), NotAttached, "T34: it has begun to leave");
        for _ in 0..4 {
            let _ = guest.rig.complete_these();
        }
        let _ = guest.rig.complete();
        let (now, _) = guest.rig.attach_with(0, policy());
        assert_eq!(guest.ask(&read), NotAttached, "T34");
        assert_eq!(guest.rig.iommu.stats().stale_events, 2, "T34");
        assert_eq!(guest.rig.iommu.report_page_request(now, &read), Queued);
    }
}

mod a_device_that_never_ends_its_groups {
    use super::*;

    #[test]
    fn does_not_keep_others_from_asking() {
        let mut guest = Guest::new();
        for number in 0..20 {
            let request = PageRequest::read(ABSENT, group(number)).with_last(false);
            assert_eq!(guest.ask(&request), Queued, "T41: nothing waits for an answer of these");
            let _ = guest.requests();
        }
        let last = PageRequest::read(ABSENT, group(0x99));
        assert_eq!(guest.ask(&last), Queued, "T41: there is room for what has to be answered");
        assert_eq!(guest.answer(function(0), 0x99, 0), ["prgr 0 153 Success"], "PRG-05");
    }
}
