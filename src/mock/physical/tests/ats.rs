//! Devices with caches of their own, and their page requests.

use super::*;

/// Device [`DEVICE`] translates through the table, with ATS.
fn ats(hardware: &Hardware) -> Vm {
    let mut vm = Vm::translating(hardware, 1, DEVICE);
    vm.switch(DEVICE, vm.with_ats(Ats::PageRequests));
    vm
}

fn ask(vm: &Vm, write: bool) -> AtsAnswer {
    vm.physical.hardware().ats_request(DEVICE, None, IOVA, write)
}

fn through_atc(vm: &Vm) -> Dma {
    vm.physical.hardware().dma_through_atc(DEVICE, None, IOVA, false)
}

/// The causes that were recorded, and of what.
fn records(vm: &Vm) -> Vec<(Cause, TransactionType)> {
    vm.physical.hardware().take_faults().iter().map(|(_, fault)| (fault.cause, fault.access)).collect()
}

const ONE_PAGE: AtsInvalidation = AtsInvalidation { first: IOVA, last: IOVA, ..AtsInvalidation::ALL };

#[test]
fn a_translation_is_granted_as_far_as_the_tables_allow() {
    let vm = ats(&Hardware::default());
    assert_eq!(ask(&vm, true), AtsAnswer::Granted { page: PAGE, write: true });
    assert_eq!(ask(&vm, false), AtsAnswer::Granted { page: PAGE, write: false }, "it did not ask");
    vm.table.map(Iova::new(0x5000_0000), PAGE, PageSize::K4, pte::RO);
    let read_only = vm.physical.hardware().ats_request(DEVICE, None, Iova::new(0x5000_0000), true);
    assert_eq!(read_only, AtsAnswer::Granted { page: PAGE, write: false }, "ATS-07");
    let nothing = vm.physical.hardware().ats_request(DEVICE, None, Iova::new(0x6000_0000), false);
    assert_eq!((nothing, records(&vm)), (AtsAnswer::Nothing, std::vec![]), "ATS-04");
}

#[test]
fn without_en_ats_nothing_of_it_is_allowed() {
    let vm = Vm::translating(&Hardware::default(), 1, DEVICE);
    let cause = Cause::TransactionTypeDisallowed;
    assert_eq!(ask(&vm, false), AtsAnswer::Refused(cause), "TR-08");
    let translated = vm.physical.hardware().translated(DEVICE, None, PAGE, true);
    assert_eq!(translated, Access::Faulted(cause), "TR-08");
    let requests = [TransactionType::AtsTranslationRequest, TransactionType::TranslatedWrite];
    assert_eq!(records(&vm), requests.map(|request| (cause, request)), "ACC-03");
    let answer = vm.physical.hardware().page_request(DEVICE, &request());
    assert_eq!(answer, Some(ResponseCode::InvalidRequest), "PRI-07");
    assert_eq!(records(&vm), [(cause, TransactionType::MessageRequest)], "PRI-03");
    assert!(vm.physical.hardware().take_page_requests().is_empty());
}

#[test]
fn a_device_keeps_what_it_got_until_it_is_told() {
    for (order, helps) in [
        (AtsInvalidation::ALL, true),
        (ONE_PAGE, true),
        (AtsInvalidation::ALL_PROCESSES, false),
        (AtsInvalidation { first: Iova::new(0), last: Iova::new(0), ..AtsInvalidation::ALL }, false),
        (AtsInvalidation { process: ProcessId::new(1).ok(), ..AtsInvalidation::ALL }, false),
    ] {
        let mut vm = ats(&Hardware::default());
        assert_eq!((through_atc(&vm).access, through_atc(&vm).stale), (Access::Translated(PAGE), false));
        vm.table.unmap(IOVA, PageSize::K4);
        vm.flush(one_page(None, false));
        assert!(through_atc(&vm).stale, "SWG-18: only the IOMMU was told");
        vm.physical.ats_invalidate(DEVICE, &order).unwrap();
        assert!(through_atc(&vm).stale, "no fence was ordered");
        vm.physical.set_pending(true);
        assert_eq!(vm.fence(), Ok(Completion::Pending));
        assert!(through_atc(&vm).stale, "the fence is not complete");
        let ticket = Ticket::new(vm.ticket);
        assert_eq!(vm.physical.complete_all(), [ticket]);
        assert_eq!(
            (through_atc(&vm).stale, vm.physical.outcome(ticket)),
            (!helps, FenceOutcome::Complete),
            "{order:?}"
        );
    }
}

#[test]
fn one_with_the_old_translation_of_the_iommu_fills_itself_again() {
    let mut vm = ats(&Hardware::default());
    let _ = through_atc(&vm);
    vm.table.unmap(IOVA, PageSize::K4);
    vm.physical.ats_invalidate(DEVICE, &ONE_PAGE).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::Done));
    assert_eq!(vm.physical.hardware().kept(DEVICE), []);
    assert!(through_atc(&vm).stale, "ATC-05");
}

#[test]
fn processes_are_told_apart() {
    let mut vm = Vm::new(&Hardware::default(), 1);
    vm.adopt(DEVICE);
    vm.switch(DEVICE, Context::SecondStageOnly { process_ids: true, ats: Ats::Translations });
    let hardware = vm.physical.hardware().clone();
    let kept = || hardware.kept(DEVICE).iter().map(|kept| kept.process).collect::<Vec<_>>();
    let [zero, one] = [0, 1].map(|process| ProcessId::new(process).ok());
    for process in [None, zero, one] {
        let _ = hardware.ats_request(DEVICE, process, IOVA, false);
    }
    vm.physical.ats_invalidate(DEVICE, &AtsInvalidation { process: zero, ..ONE_PAGE }).unwrap();
    let _ = vm.fence();
    assert_eq!(kept(), [None, one], "VC-72");
    vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL_PROCESSES).unwrap();
    let _ = vm.fence();
    assert_eq!(kept(), [None], "VC-72");
    assert_eq!(hardware.translated(DEVICE, one, PAGE, false), Access::Translated(PAGE));
    vm.switch(DEVICE, Context::SecondStageOnly { process_ids: false, ats: Ats::Translations });
    let disallowed = Access::Faulted(Cause::TransactionTypeDisallowed);
    assert_eq!(hardware.translated(DEVICE, one, PAGE, false), disallowed, "TR-09");
}

#[test]
fn with_t2gpa_a_kept_translation_leads_nowhere_once_the_device_is_quiesced() {
    let mut vm = ats(&Hardware::default());
    let _ = through_atc(&vm);
    vm.switch(DEVICE, Context::Quiesced);
    let _ = vm.physical.hardware().take_faults();
    let quiesced = vm.physical.hardware().dma_through_atc(DEVICE, None, IOVA, true);
    assert_eq!(
        (quiesced.access, quiesced.context, quiesced.stale),
        (Access::Faulted(Cause::WritePageFault), Some(Context::Quiesced), true),
        "it kept no leave to write"
    );
    assert_eq!(vm.physical.hardware().translated(DEVICE, None, PAGE, true), Access::Blocked, "DC-04, TR-12");
    assert_eq!(ask(&vm, false), AtsAnswer::Nothing);
    assert_eq!(records(&vm), [(Cause::WriteGuestPageFault, TransactionType::TranslatedWrite)]);
    let answer = vm.physical.hardware().page_request(DEVICE, &request());
    assert_eq!(answer, Some(ResponseCode::InvalidRequest), "as Blocked");
    // Its completions count still.
    vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::Done), "SWG-21");
    vm.switch(DEVICE, Context::Blocked);
    let disallowed = Access::Faulted(Cause::TransactionTypeDisallowed);
    assert_eq!(vm.physical.hardware().translated(DEVICE, None, PAGE, true), disallowed, "TR-08");
}

#[test]
fn without_t2gpa_a_translated_request_goes_anywhere_until_en_ats_is_0() {
    let hardware = Hardware::default();
    let host = hardware.vm(Gscid::new(9).unwrap(), &Memory::new()).capabilities();
    hardware
        .set_capabilities_of(DEVICE, HostCapabilities { capabilities: host.capabilities.with_t2gpa(false), ..host });
    let mut vm = ats(&hardware);
    let anywhere = Gpa::new(0x6666_6000);
    let unchecked = Access::Unchecked(anywhere.get());
    assert_eq!(hardware.translated(DEVICE, None, anywhere, true), unchecked, "TR-11");
    assert_eq!((through_atc(&vm).access, through_atc(&vm).stale), (Access::Unchecked(PAGE.get()), false), "TR-11");
    let disallowed = Access::Faulted(Cause::TransactionTypeDisallowed);
    // On the way to another context too.
    hardware.set_strategy(Strategy::ThroughBlocked);
    assert_eq!(vm.physical.set_context(DEVICE, &vm.with_ats(Ats::Translations)), Ok(Applied::Blocked));
    vm.flush(Invalidation::Device(DEVICE));
    assert_eq!(hardware.translated(DEVICE, None, anywhere, true), disallowed, "TR-08");
    vm.switch(DEVICE, vm.with_ats(Ats::Translations));
    assert_eq!(hardware.translated(DEVICE, None, anywhere, true), unchecked, "TR-11");
    vm.switch(DEVICE, Context::Blocked);
    assert_eq!(hardware.translated(DEVICE, None, anywhere, true), disallowed, "TR-08");
    assert_eq!(hardware.mixtures(), 0);
}

#[test]
fn a_completion_does_not_count_without_en_ats() {
    let mut vm = ats(&Hardware::default());
    let _ = through_atc(&vm);
    vm.physical.ats_invalidate(DEVICE, &ONE_PAGE).unwrap();
    vm.physical.set_context(DEVICE, &Context::Blocked).unwrap();
    vm.physical.invalidate(&[Invalidation::Device(DEVICE)]).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::AtsTimeout), "DC-02, ATS-21");
    assert_eq!(vm.fence(), Ok(Completion::Done), "FEN-07");
}

#[test]
fn a_device_that_does_not_answer_keeps_what_it_has_and_times_out() {
    let mut vm = ats(&Hardware::default());
    let _ = through_atc(&vm);
    let hardware = vm.physical.hardware().clone();
    hardware.set_unresponsive(DEVICE, true);
    vm.physical.ats_invalidate(DEVICE, &ONE_PAGE).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::AtsTimeout), "FEN-07");
    assert_eq!(hardware.kept(DEVICE).len(), 1);
    // A pending fence says so when it is complete.
    vm.physical.set_pending(true);
    vm.physical.ats_invalidate(DEVICE, &ONE_PAGE).unwrap();
    assert_eq!((vm.fence(), vm.fence()), (Ok(Completion::Pending), Ok(Completion::Pending)));
    let outcomes: Vec<_> = vm.physical.complete_all().iter().map(|ticket| vm.physical.outcome(*ticket)).collect();
    assert_eq!(outcomes, [FenceOutcome::AtsTimeout, FenceOutcome::Complete], "FEN-10");
    // One that is not pending tells of those it completes.
    vm.physical.ats_invalidate(DEVICE, &ONE_PAGE).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::Pending));
    vm.physical.set_pending(false);
    assert_eq!(vm.fence(), Ok(Completion::AtsTimeout), "FEN-07");
    hardware.reset_function(DEVICE);
    assert_eq!(hardware.kept(DEVICE), []);
    vm.physical.ats_invalidate(DEVICE, &ONE_PAGE).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::Done));
}

#[test]
fn a_refused_invalidation_is_not_sent() {
    let mut vm = ats(&Hardware::default());
    let _ = through_atc(&vm);
    vm.physical.answer_next_ats_invalidate(Err(OrderError::Busy));
    assert_eq!(vm.physical.ats_invalidate(DEVICE, &ONE_PAGE), Err(OrderError::Busy));
    assert_eq!((vm.fence(), vm.physical.hardware().kept(DEVICE).len()), (Ok(Completion::Done), 1));
    let sent = Order::AtsInvalidate(DEVICE, ONE_PAGE, Err(OrderError::Busy));
    assert!(vm.physical.take_orders().contains(&sent));
}

#[test]
fn a_page_request_goes_to_the_host_and_its_answer_to_the_device() {
    let mut vm = ats(&Hardware::default());
    let hardware = vm.physical.hardware().clone();
    assert_eq!(hardware.page_request(DEVICE, &request()), None);
    assert_eq!(hardware.take_page_requests(), [(DEVICE, request())]);
    assert_eq!(vm.physical.page_response(DEVICE, &success()), Ok(()));
    assert_eq!(hardware.take_page_responses(DEVICE), [success()]);
    assert!(vm.physical.take_orders().contains(&Order::PageResponse(DEVICE, success(), Ok(()))));
    // The host may answer by itself; a request that is not the last of its group waits for nothing.
    assert_eq!(hardware.page_request(DEVICE, &request()), None);
    hardware.answer_page_request(DEVICE, &request(), ResponseCode::Success);
    assert_eq!(hardware.page_request(DEVICE, &request().with_last(false)), None);
    assert_eq!(hardware.take_page_responses(DEVICE), [success()]);
    // A response that is refused does not arrive.
    assert_eq!(hardware.page_request(DEVICE, &request()), None);
    for error in [OrderError::Busy, OrderError::Refused { done: 0 }] {
        vm.physical.answer_next_page_response(Err(error));
        assert_eq!(vm.physical.page_response(DEVICE, &success()), Err(error));
    }
    assert_eq!(hardware.take_page_responses(DEVICE), []);
    assert!(!hardware.page_requests_off(DEVICE));
}

#[test]
fn a_response_failure_turns_page_requests_off() {
    let mut vm = ats(&Hardware::default());
    let hardware = vm.physical.hardware().clone();
    let _ = hardware.page_request(DEVICE, &request());
    let failure = PageResponse { code: ResponseCode::ResponseFailure, ..success() };
    assert_eq!(vm.physical.page_response(DEVICE, &failure), Ok(()));
    assert!(hardware.page_requests_off(DEVICE), "PRG-02");
    let _ = hardware.take_page_requests();
    assert_eq!((hardware.page_request(DEVICE, &request()), hardware.take_page_requests()), (None, std::vec![]));
    assert_eq!(hardware.response_failures(), 1);
    hardware.reset_function(DEVICE);
    assert!(!hardware.page_requests_off(DEVICE));
}

#[test]
fn of_a_lost_iommu_nothing_is_left_but_what_devices_keep() {
    let mut vm = ats(&Hardware::default());
    let context = vm.with_ats(Ats::PageRequests);
    let _ = (through_atc(&vm), vm.read());
    vm.physical.set_pending(true);
    let _ = vm.fence();
    vm.physical.lose_state();
    assert_eq!(vm.physical.complete_all(), [], "its fences are gone");
    assert_eq!(vm.physical.hardware().context(DEVICE), Some(Context::Blocked));
    assert_eq!(vm.physical.hardware().kept(DEVICE).len(), 1);
    vm.physical.set_pending(false);
    vm.switch(DEVICE, Context::Blocked);
    vm.switch(DEVICE, context);
    assert!(!vm.read().stale);
}

#[test]
fn no_strategy_gives_more_of_ats_than_was_asked_for() {
    for (strategy, harmless) in [
        (Strategy::Switch, true),
        (Strategy::ThroughBlocked, true),
        (Strategy::Stepwise, true),
        (Strategy::Mixed, false),
    ] {
        let hardware = Hardware::default();
        let mut vm = Vm::translating(&hardware, 1, DEVICE);
        let directory = ProcessDirectory::new(&vm.memory, 3);
        let processes = Processes::new(ProcessDirectoryMode::Pd20, Ppn::truncate(directory.root().get() >> 12));
        hardware.set_strategy(strategy);
        hardware.set_traffic(Some(Traffic::new(IOVA)));
        let ats = Ats::PageRequests;
        let all = [
            vm.with_ats(ats),
            Context::Processes(Processes { ats, dpe: true, ..processes }),
            Context::SecondStageOnly { process_ids: true, ats: Ats::Translations },
            Context::Processes(processes),
            vm.with_ats(Ats::Translations),
        ];
        let closed = [Context::Quiesced, Context::Blocked];
        for context in all.into_iter().chain(closed).chain([all[3]]).chain(closed).chain([all[0], Context::Blocked]) {
            vm.switch(DEVICE, context);
            assert_eq!(hardware.context(DEVICE), Some(context), "{strategy:?}");
        }
        let harm = hardware.mixtures() + hardware.response_failures();
        assert_eq!(harm == 0, harmless, "UPD-02, UPD-07: {strategy:?}");
    }
}
