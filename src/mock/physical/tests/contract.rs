//! That a breach of the contract panics.

use super::*;

fn vm() -> Vm {
    Vm::translating(&Hardware::default(), 1, DEVICE)
}

/// With ATS on, and nothing under way.
fn ats() -> Vm {
    let mut vm = vm();
    vm.switch(DEVICE, vm.with_ats(Ats::PageRequests));
    vm
}

/// Sends both invalidations that make a device forget everything, and fences them.
fn empty(vm: &mut Vm) {
    for all in [AtsInvalidation::ALL, AtsInvalidation::ALL_PROCESSES] {
        vm.physical.ats_invalidate(DEVICE, &all).unwrap();
    }
    let _ = vm.fence();
}

#[test]
fn a_device_with_ats_is_released_when_it_has_forgotten_all() {
    let mut vm = ats();
    vm.switch(DEVICE, Context::Quiesced);
    empty(&mut vm);
    vm.switch(DEVICE, Context::Blocked);
    vm.physical.release(DEVICE);
    // Or when it did not answer, or could not be asked, or the host has reset it.
    let mut vm = ats();
    vm.physical.hardware().set_unresponsive(DEVICE, true);
    vm.switch(DEVICE, Context::Quiesced);
    empty(&mut vm);
    vm.switch(DEVICE, Context::Blocked);
    vm.physical.release(DEVICE);
    let mut vm = ats();
    vm.physical.hardware().set_unresponsive(DEVICE, true);
    empty(&mut vm);
    vm.switch(DEVICE, vm.with_ats(Ats::Off));
    vm.switch(DEVICE, Context::Blocked);
    vm.physical.release(DEVICE);
    let mut vm = ats();
    vm.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
    let _ = vm.physical.set_context(DEVICE, &Context::Quiesced);
    vm.switch(DEVICE, Context::Blocked);
    vm.physical.release(DEVICE);
    let mut vm = ats();
    vm.switch(DEVICE, Context::Blocked);
    vm.physical.hardware().reset_function(DEVICE);
    vm.physical.release(DEVICE);
}

#[test]
fn orders_and_answers_are_recorded() {
    let mut vm = Vm::new(&Hardware::default(), 1);
    let weak = HostCapabilities::new(Capabilities::new(), SecondStageMode::Sv39x4);
    vm.physical.hardware().set_capabilities_of(DEVICE, weak);
    vm.adopt(DEVICE);
    vm.physical.answer_next_set_context(Ok(Applied::Blocked));
    let bare = Context::SecondStageOnly { process_ids: false, ats: Ats::Off };
    assert_eq!(vm.switch(DEVICE, bare), 2);
    assert_eq!(vm.physical.context(DEVICE), Some(bare));
    assert_eq!(vm.physical.context(OTHER), None);
    vm.switch(DEVICE, Context::Blocked);
    vm.physical.release(DEVICE);
    let orders = vm.physical.take_orders();
    assert_eq!(orders[0], Order::Adopt(DEVICE, Ok(weak)));
    assert_eq!(orders[1], Order::SetContext(DEVICE, Context::Blocked, Ok(Applied::Switched)));
    assert_eq!(orders[2], Order::Invalidate(std::vec![Invalidation::Device(DEVICE)], Ok(())));
    assert_eq!(orders[3], Order::Fence(Ticket::new(1), FenceScope::ALL, Ok(Completion::Done)));
    assert_eq!(orders[4], Order::SetContext(DEVICE, bare, Ok(Applied::Blocked)));
    assert_eq!(orders.last(), Some(&Order::Release(DEVICE)));
    // The device may go to another VM now.
    assert!(vm.physical.adopt(DEVICE).is_ok());
}

#[test]
fn what_was_not_done_may_be_asked_for_again() {
    let mut vm = vm();
    vm.physical.answer_next_set_context(Err(OrderError::Busy));
    let context = vm.context(2);
    assert_eq!(vm.physical.set_context(DEVICE, &context), Err(OrderError::Busy));
    vm.physical.answer_next_fence(Err(OrderError::Busy));
    assert_eq!(vm.fence(), Err(OrderError::Busy));
    assert_eq!(vm.physical.fence(Ticket::new(vm.ticket), FenceScope::ALL), Ok(Completion::Done));
    vm.switch(DEVICE, context);
}

#[test]
fn a_refused_batch_is_done_in_part() {
    let mut vm = vm();
    assert!(!vm.read().stale);
    vm.table.unmap(IOVA, PageSize::K4);
    vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 1 }));
    let orders = [Invalidation::AddressSpace(Pscid::new(2).unwrap()), Invalidation::FirstStage];
    assert_eq!(vm.physical.invalidate(&orders), Err(OrderError::Refused { done: 1 }));
    vm.flush(Invalidation::Everything);
    assert!(!vm.read().stale);
}

#[test]
fn a_degraded_vm_goes_on_with_its_devices_blocked_until_all_is_flushed() {
    let mut vm = vm();
    for _ in 0..2 {
        vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
        let _ = vm.physical.invalidate(&[Invalidation::Everything]);
    }
    vm.physical.set_context(DEVICE, &Context::Blocked).unwrap();
    assert_eq!(vm.fence(), Ok(Completion::Done));
    vm.flush(Invalidation::Device(DEVICE));
    let context = vm.context(1);
    vm.switch(DEVICE, context);
}

#[test]
fn a_reset_follows_a_fatal_failure() {
    let mut vm = vm();
    vm.physical.answer_next_fence(Err(OrderError::Fatal));
    assert_eq!(vm.fence(), Err(OrderError::Fatal));
    vm.switch(DEVICE, Context::Blocked);
    let context = vm.context(1);
    vm.switch(DEVICE, context);
}

#[test]
#[should_panic(expected = "contract: adopt of PhysicalDevice(16), which a vIOMMU has")]
fn adopting_anothers_device() {
    let _ = Vm::new(vm().physical.hardware(), 2).physical.adopt(DEVICE);
}

macro_rules! breaches {
    ($($name:ident: $message:literal, |$vm:ident| $orders:block)+) => {$(
        #[test]
        #[should_panic(expected = $message)]
        fn $name() {
            let mut $vm = vm();
            $orders
        }
    )+};
}

breaches! {
    adopting_twice: "contract: adopt of PhysicalDevice(16), which a vIOMMU has", |vm| {
        let _ = vm.physical.adopt(DEVICE);
    }
    a_device_of_nobody: "contract: set_context of PhysicalDevice(32), which", |vm| {
        let _ = vm.physical.set_context(OTHER, &Context::Blocked);
    }
    an_invalidation_for_a_device_of_nobody: "contract: invalidation of PhysicalDevice(32), which", |vm| {
        let _ = vm.physical.invalidate(&[Invalidation::Device(OTHER)]);
    }
    translating_right_after_adopt: "but Blocked comes first", |vm| {
        vm.physical.adopt(OTHER).unwrap();
        let _ = vm.physical.set_context(OTHER, &vm.context(1));
    }
    trying_again_after_a_refused_context: "but Blocked comes first", |vm| {
        vm.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
        let _ = vm.physical.set_context(DEVICE, &vm.context(2));
        let _ = vm.physical.set_context(DEVICE, &vm.context(1));
    }
    a_fence_after_a_refused_context: "not blocked after a failed set_context", |vm| {
        vm.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
        let _ = vm.physical.set_context(DEVICE, &vm.context(2));
        let _ = vm.fence();
    }
    a_second_call_without_a_fence: "that Applied::Blocked asks for", |vm| {
        vm.physical.hardware().set_strategy(Strategy::ThroughBlocked);
        let new = vm.context(2);
        assert_eq!(vm.physical.set_context(DEVICE, &new), Ok(Applied::Blocked));
        let _ = vm.physical.invalidate(&[Invalidation::Device(DEVICE)]);
        let _ = vm.physical.set_context(DEVICE, &new);
    }
    a_context_without_its_invalidation: "without the invalidation of PhysicalDevice(16)", |vm| {
        let _ = vm.physical.set_context(DEVICE, &Context::Blocked);
        let _ = vm.physical.invalidate(&[Invalidation::FirstStage]);
        let _ = vm.fence();
    }
    an_old_ticket: "tickets only grow", |vm| {
        let _ = vm.physical.fence(Ticket::new(vm.ticket), FenceScope::ALL);
    }
    an_empty_batch: "contract: an empty batch", |vm| {
        let _ = vm.physical.invalidate(&[]);
    }
    a_range_that_ends_before_it_begins: "is no range of pages", |vm| {
        let _ = vm.physical.invalidate(&[Invalidation::Pages(Pages::new(IOVA, Iova::new(0), None))]);
    }
    an_address_within_a_page: "is no range of pages", |vm| {
        let pages = Pages { first: Iova::new(1), ..Pages::new(IOVA, IOVA, None) };
        let _ = vm.physical.invalidate(&[Invalidation::Pages(pages)]);
    }
    a_refused_batch_that_is_forgotten: "issued once more as Everything", |vm| {
        vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
        let _ = vm.physical.invalidate(&[Invalidation::FirstStage]);
        let _ = vm.fence();
    }
    a_translating_device_on_a_degraded_host: "not blocked after the host failed", |vm| {
        for _ in 0..2 {
            vm.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
            let _ = vm.physical.invalidate(&[Invalidation::Everything]);
        }
        let _ = vm.fence();
    }
    an_invalidation_after_fatal: "after Fatal and before a reset", |vm| {
        vm.physical.answer_next_fence(Err(OrderError::Fatal));
        let _ = vm.fence();
        let _ = vm.physical.invalidate(&[Invalidation::FirstStage]);
    }
    releasing_what_translates: "contract: release of PhysicalDevice(16), which is not Blocked", |vm| {
        vm.physical.release(DEVICE);
    }
    releasing_before_the_fence_is_complete: "before a completed fence", |vm| {
        vm.physical.set_pending(true);
        let _ = vm.physical.set_context(DEVICE, &Context::Blocked);
        let _ = vm.physical.invalidate(&[Invalidation::Device(DEVICE)]);
        let _ = vm.fence();
        vm.physical.release(DEVICE);
    }
    more_than_the_iommu_can_do: "is more than the IOMMU can do", |vm| {
        let weak = HostCapabilities::new(Capabilities::new().with_ats(true), SecondStageMode::Sv39x4);
        vm.physical.hardware().set_capabilities_of(OTHER, weak);
        vm.adopt(OTHER);
        let _ = vm.physical.set_context(OTHER, &Context::Quiesced);
    }
    a_directory_wider_than_the_iommu_has: "is more than the IOMMU can do", |vm| {
        let narrow = HostCapabilities::new(Capabilities::new().with_pd8(true), SecondStageMode::Sv39x4);
        vm.physical.hardware().set_capabilities_of(OTHER, narrow);
        vm.adopt(OTHER);
        let processes = Processes::new(ProcessDirectoryMode::Pd17, Ppn::truncate(1));
        let _ = vm.physical.set_context(OTHER, &Context::Processes(processes));
    }
    opening_what_is_quiesced: "but Quiesced is followed by Blocked", |vm| {
        vm.switch(DEVICE, Context::Quiesced);
        let _ = vm.physical.set_context(DEVICE, &vm.context(1));
    }
    invalidating_the_cache_of_a_device_of_nobody: "contract: ats_invalidate of PhysicalDevice(32), which", |vm| {
        let _ = vm.physical.ats_invalidate(OTHER, &AtsInvalidation::ALL);
    }
    invalidating_the_cache_of_a_device_without_ats: "whose context has no ATS", |vm| {
        let _ = vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL);
    }
    invalidating_a_cache_after_a_refused_context: "ats_invalidate of PhysicalDevice(16) after a failed", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        vm.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
        let _ = vm.physical.set_context(DEVICE, &vm.context(2));
        let _ = vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL);
    }
    invalidating_a_cache_after_fatal: "contract: ats_invalidate of PhysicalDevice(16) after Fatal", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        vm.physical.answer_next_ats_invalidate(Err(OrderError::Fatal));
        let _ = vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL);
        let _ = vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL);
    }
    two_devices_under_one_fence: "which could not say who was late", |vm| {
        vm.adopt(OTHER);
        for device in [DEVICE, OTHER] {
            vm.switch(device, vm.with_ats(Ats::Translations));
        }
        let _ = vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL);
        let _ = vm.physical.ats_invalidate(OTHER, &AtsInvalidation::ALL);
    }
    a_range_of_three_pages: "is no aligned power of two pages", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        let pages = AtsInvalidation { last: Iova::new(0x2000), ..AtsInvalidation::ALL };
        let _ = vm.physical.ats_invalidate(DEVICE, &pages);
    }
    a_range_that_is_not_aligned: "is no aligned power of two pages", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        let pages = AtsInvalidation { first: Iova::new(0x1000), last: Iova::new(0x2000), ..AtsInvalidation::ALL };
        let _ = vm.physical.ats_invalidate(DEVICE, &pages);
    }
    every_process_of_none: "is global without a PASID", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        let _ = vm.physical.ats_invalidate(DEVICE, &AtsInvalidation { global: true, ..AtsInvalidation::ALL });
    }
    answering_a_device_of_nobody: "contract: page_response of PhysicalDevice(32), which", |vm| {
        let _ = vm.physical.page_response(OTHER, &success());
    }
    answering_what_nobody_asked: "which waits for no such response", |vm| {
        let _ = vm.physical.page_response(DEVICE, &success());
    }
    answering_twice: "which waits for no such response", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::PageRequests));
        let _ = vm.physical.hardware().page_request(DEVICE, &request());
        vm.physical.page_response(DEVICE, &success()).unwrap();
        let _ = vm.physical.page_response(DEVICE, &success());
    }
    answering_with_another_process: "which waits for no such response", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::PageRequests));
        let _ = vm.physical.hardware().page_request(DEVICE, &request());
        let process = ProcessId::new(0).ok();
        let _ = vm.physical.page_response(DEVICE, &PageResponse { process, ..success() });
    }
    answering_a_request_the_host_voided: "which waits for no such response", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::PageRequests));
        let _ = vm.physical.hardware().page_request(DEVICE, &request());
        vm.physical.hardware().reset_function(DEVICE);
        let _ = vm.physical.page_response(DEVICE, &success());
    }
    releasing_what_was_never_emptied: "which may keep translations", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        vm.switch(DEVICE, Context::Blocked);
        vm.physical.release(DEVICE);
    }
    emptying_what_can_ask_again: "which may keep translations", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        empty(&mut vm);
        vm.switch(DEVICE, Context::Blocked);
        vm.physical.release(DEVICE);
    }
    a_device_that_answers_again: "which may keep translations", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        for unresponsive in [true, false] {
            vm.physical.hardware().set_unresponsive(DEVICE, unresponsive);
            empty(&mut vm);
        }
        vm.switch(DEVICE, Context::Blocked);
        vm.physical.release(DEVICE);
    }
    answering_for_an_earlier_owner: "which waits for no such response", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::PageRequests));
        let _ = vm.physical.hardware().page_request(DEVICE, &request());
        vm.switch(DEVICE, Context::Quiesced);
        empty(&mut vm);
        vm.switch(DEVICE, Context::Blocked);
        vm.physical.release(DEVICE);
        vm.adopt(DEVICE);
        let _ = vm.physical.page_response(DEVICE, &success());
    }
    emptying_before_it_is_quiet: "which may keep translations", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        vm.physical.set_context(DEVICE, &Context::Quiesced).unwrap();
        vm.physical.invalidate(&[Invalidation::Device(DEVICE)]).unwrap();
        empty(&mut vm);
        vm.switch(DEVICE, Context::Blocked);
        vm.physical.release(DEVICE);
    }
    emptying_half: "which may keep translations", |vm| {
        vm.switch(DEVICE, vm.with_ats(Ats::Translations));
        vm.switch(DEVICE, Context::Quiesced);
        vm.physical.ats_invalidate(DEVICE, &AtsInvalidation::ALL).unwrap();
        let _ = vm.fence();
        vm.switch(DEVICE, Context::Blocked);
        vm.physical.release(DEVICE);
    }
    going_on_after_state_was_lost: "but Blocked comes first", |vm| {
        vm.physical.lose_state();
        let _ = vm.physical.set_context(DEVICE, &vm.context(1));
    }
    a_process_of_a_device_of_nobody: "contract: invalidation of PhysicalDevice(32), which", |vm| {
        let _ = vm.physical.invalidate(&[Invalidation::Process(OTHER, ProcessId::truncate(0))]);
    }
}
