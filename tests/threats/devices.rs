//! Devices with ATS, page requests and processes of the guest's: what goes to them, and what comes from them.

use riscv_viommu::mock::guest::{AtsCommand, Iotinval, inval_ddt, inval_pdt, register as reg};
use riscv_viommu::mock::tables::tc;
use riscv_viommu::mock::{Access, AtsAnswer, Order};
use riscv_viommu::{
    AtsInvalidation, AttachError, Cause, FenceOutcome, FenceScope, Health, PageRequest, PageRequestOutcome,
    PageResponse, Prgi, ResponseCode,
};

use super::*;

const ALL: u64 = tc::EN_ATS | tc::EN_PRI;

/// An address that no table of the guest's maps.
const HOLE: Iova = Iova::new(0x5000_0000);

/// [`DEVICE`] as ATS commands name it.
fn device() -> AtsCommand {
    named(DEVICE.get())
}

fn named(id: u32) -> AtsCommand {
    AtsCommand::to((id & 0xffff).try_into().unwrap()).segment((id >> 16).try_into().unwrap())
}

/// A page, and all pages.
const PAGE: u64 = IOVA.get();
const PAGES: u64 = u64::MAX >> 1 & !0xfff | 1 << 11;

/// [`DEVICE`] has a process directory and all of ATS.
fn vm() -> (Vm, ProcessDirectory) {
    Vm::with_processes(&Hardware::default(), 1, NVME, ALL)
}

/// The same, and the attachment.
fn attached() -> (Vm, Attachment) {
    let (mut vm, _) = vm();
    let _ = vm.iommu.detach(DEVICE);
    let attachment = vm.attach_with(DEVICE, NVME, Ats::PageRequests);
    vm.forget();
    (vm, attachment)
}

/// A page request for [`HOLE`], which the physical queue had and the guest has now.
fn request(vm: &mut Vm, attachment: Attachment, group: u32) -> PageRequestOutcome {
    let request = PageRequest::read(HOLE, Prgi::truncate(group)).with_process(PROCESS, false);
    assert_eq!(vm.hardware.page_request(NVME, &request), None);
    assert_eq!(vm.hardware.take_page_requests(), [(NVME, request)]);
    vm.iommu.report_page_request(attachment, &request)
}

/// A response to the group of such a request.
fn response(group: u32, code: ResponseCode) -> PageResponse {
    let mut response = asked(group);
    response.code = code;
    response
}

/// What the IOMMU of a guest without a page-request queue answers to such a request.
fn asked(group: u32) -> PageResponse {
    let (mut vm, attachment) = attached();
    vm.write(reg::PQCSR, 0);
    match request(&mut vm, attachment, group) {
        PageRequestOutcome::Discarded(Some(response)) => response,
        outcome => panic!("{outcome:?}"),
    }
}

/// The invalidation requests among the orders.
fn requests(orders: &[Order]) -> Vec<(PhysicalDevice, AtsInvalidation)> {
    let sent = |order: &Order| match order {
        Order::AtsInvalidate(device, what, Ok(())) => Some((*device, *what)),
        _ => None,
    };
    orders.iter().filter_map(sent).collect()
}

/// The responses among the orders.
fn responses(orders: &[Order]) -> Vec<PageResponse> {
    let sent = |order: &Order| match order {
        Order::PageResponse(_, response, _) => Some(*response),
        _ => None,
    };
    orders.iter().filter_map(sent).collect()
}

/// An invalidation request that the device does not answer; the guest is told, and goes on.
fn unanswered(vm: &mut Vm) {
    vm.hardware.set_unresponsive(NVME, true);
    vm.ring(&[device().inval(PAGE), Iofence::PLAIN.encode()]);
    assert_ne!(vm.read(reg::CQCSR) & reg::CMD_TO, 0);
    vm.write(reg::CQCSR, reg::CMD_TO | reg::ENABLE);
    assert_eq!(vm.read(reg::CQH), u64::from(vm.commands.tail()));
    vm.hardware.set_unresponsive(NVME, false);
}

#[test]
fn t02_a_process_id_names_a_process_of_its_own_device_and_nothing_else() {
    let (mut vm, _) = vm();
    vm.directory.set(OTHER, &vm.table.context(PSCID));
    vm.attach(OTHER, NIC);
    vm.forget();
    let process = ProcessId::truncate(0x1_2345);
    vm.ring(&[inval_pdt(DEVICE, process), Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [Invalidation::Process(NVME, process)], "VC-60");
    // Wider than the directory takes, and of a device that has none.
    let wide = ProcessId::truncate(0x8_0000);
    vm.ring(&[inval_pdt(DEVICE, wide), inval_pdt(OTHER, process), Iofence::PLAIN.encode()]);
    assert_eq!(invalidations(&vm.orders()), [], "VC-60, VC-61");
    assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (u64::from(vm.commands.tail()), reg::ON | reg::ENABLE));
}

#[test]
fn t03_no_ats_command_or_process_of_an_id_that_is_not_attached_reaches_a_device() {
    let (mut vm, attachment) = attached();
    assert_eq!(request(&mut vm, attachment, 7), PageRequestOutcome::Queued);
    // Under the number of the guest's device the host has another VM's, which makes the same request.
    let namesake = PhysicalDevice(DEVICE.get());
    let (mut neighbour, _) = Vm::with_processes(&vm.hardware, 2, namesake, ALL);
    for stranger in [NVME.0, OTHER.get(), 0, 0xff_ffff, 0x1_0000 | DEVICE.get()] {
        let to = named(stranger);
        let id = DeviceId::truncate(stranger);
        vm.ring(&[to.inval(PAGE), to.process(PROCESS).inval(PAGES | 1), inval_pdt(id, PROCESS)]);
        vm.ring(&[to.process(PROCESS).prgr(7, 0), to.prgr(7, 1), Iofence::PLAIN.encode()]);
        let orders = vm.orders();
        assert!(matches!(orders[..], [Order::Fence(..)]), "VC-70, VC-71, PRG-03: {stranger:#x}, {orders:?}");
    }
    assert_eq!((vm.read(reg::CQH), vm.read(reg::CQCSR)), (u64::from(vm.commands.tail()), reg::ON | reg::ENABLE));
    vm.ring(&[device().inval(PAGE), device().prgr(7, 0), Iofence::PLAIN.encode()]);
    let orders = vm.orders();
    assert_eq!(requests(&orders).len(), 1);
    assert_eq!(responses(&orders), [response(7, ResponseCode::Success)]);
    assert_eq!(neighbour.orders(), []);
    let _ = neighbour.iommu.run();
}

#[test]
fn t04_what_a_neighbours_device_keeps_is_the_neighbours_to_drop() {
    let (mut vm, processes) = vm();
    let (mut neighbour, others) = Vm::with_processes(&vm.hardware, 2, NIC, ALL);
    // Both have the same device_id, process_id, PSCID and address.
    for device in [NVME, NIC] {
        assert_eq!(vm.hardware.dma(device, Some(PROCESS), IOVA, false).access, Access::Translated(BUFFER));
        assert_eq!(vm.hardware.dma_through_atc(device, Some(PROCESS), IOVA, true).access, Access::Translated(BUFFER));
    }
    processes.invalidate(PROCESS);
    others.invalidate(PROCESS);
    let all = [
        inval_pdt(DEVICE, PROCESS),
        Iotinval::ALL.pscid(PSCID).vma(),
        device().process(PROCESS).inval(PAGES),
        Iofence::PLAIN.encode(),
    ];
    vm.ring(&all);
    let stale = |device| {
        let read = vm.hardware.dma(device, Some(PROCESS), IOVA, false);
        (read.stale, vm.hardware.kept(device).len())
    };
    assert_eq!((stale(NVME), stale(NIC)), ((false, 0), (true, 1)), "VC-10, VC-60, VC-70");
    neighbour.ring(&all);
    assert_eq!(stale(NIC), (false, 0));
}

#[test]
fn t05_a_reserved_bit_of_an_ats_command_stops_the_queue_and_forwards_nothing() {
    let commands = [device().inval(PAGE), device().process(PROCESS).inval(PAGES), device().prgr(7, 0)];
    for command in commands {
        for reserved in (10..12).chain(34..40).map(|bit| 1 << bit).chain((2..8).map(|function| function << 7)) {
            let (mut vm, attachment) = attached();
            assert_eq!(request(&mut vm, attachment, 7), PageRequestOutcome::Queued);
            vm.forget();
            vm.ring(&[[command[0] | reserved, command[1]], device().inval(PAGE), Iofence::PLAIN.encode()]);
            assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE | reg::CMD_ILL, "VC-01: {reserved:#x}");
            let head = u64::from(vm.commands.tail()) - 3;
            assert_eq!((vm.read(reg::CQH), vm.orders()), (head, vec![]), "{reserved:#x}");
        }
    }
}

#[test]
fn t23_a_device_that_was_not_granted_ats_translates_and_forges_nothing() {
    for (bits, granted, has) in [(ALL, Ats::Off, false), (0, Ats::PageRequests, false), (ALL, Ats::Translations, true)]
    {
        let mut vm = Vm::of(&Hardware::default(), 1, InterruptKinds::Both, &Config::nested().with_ats(true));
        let [tc, second, ta, fsc] = vm.table.context(PSCID);
        vm.directory.set(DEVICE, &[tc | bits, second, ta, fsc]);
        vm.write(reg::DDTP, vm.directory.ddtp());
        let attachment = vm.attach_with(DEVICE, NVME, granted);
        vm.forget();
        let disallowed = Cause::TransactionTypeDisallowed;
        let answer = vm.hardware.ats_request(NVME, None, IOVA, false);
        assert_eq!(answer == AtsAnswer::Refused(disallowed), !has, "MRG-02: {answer:?}");
        let forged = vm.hardware.translated(NVME, None, BUFFER, true);
        assert_eq!(forged == Access::Faulted(disallowed), !has, "MRG-02: {forged:?}");
        // A page request is not even looked at.
        let asks = PageRequest::read(HOLE, Prgi::truncate(1));
        assert_eq!(vm.hardware.page_request(NVME, &asks), Some(ResponseCode::InvalidRequest), "MRG-04, PQ-13");
        let outcome = vm.iommu.report_page_request(attachment, &asks);
        let PageRequestOutcome::Discarded(Some(PageResponse { code: ResponseCode::InvalidRequest, .. })) = outcome
        else {
            panic!("{outcome:?}")
        };
        // And nothing is sent to it.
        vm.ring(&[device().inval(PAGE), device().prgr(1, 0), Iofence::PLAIN.encode()]);
        assert_eq!((requests(&vm.orders()).len(), vm.requests()), (usize::from(has), vec![]), "VC-71, PRG-03");
        assert_eq!(vm.read(reg::CQCSR), reg::ON | reg::ENABLE);
    }
}

#[test]
fn t23_a_blocked_device_reaches_nothing_with_what_it_keeps() {
    let (mut vm, _) = vm();
    assert_eq!(vm.hardware.dma_through_atc(NVME, Some(PROCESS), IOVA, true).access, Access::Translated(BUFFER));
    vm.directory.invalidate(DEVICE);
    vm.ring(&[inval_ddt(Some(DEVICE)), Iofence::PLAIN.encode()]);
    // It has not forgotten: nobody asked it to.
    assert_eq!(vm.hardware.kept(NVME).len(), 1);
    let through = vm.hardware.dma_through_atc(NVME, Some(PROCESS), IOVA, true);
    assert_eq!(through.access, Access::Faulted(Cause::TransactionTypeDisallowed), "MRG-01");
    let forged = vm.hardware.translated(NVME, None, BUFFER, true);
    assert_eq!(forged, Access::Faulted(Cause::TransactionTypeDisallowed), "MRG-01");
    // Nor while it is made to forget, on its way out.
    vm.directory.set(DEVICE, &ProcessDirectory::new(&vm.memory, 1).context(ALL));
    vm.ring(&[inval_ddt(Some(DEVICE)), Iofence::PLAIN.encode()]);
    vm.physical.set_pending(true);
    let _ = vm.iommu.detach(DEVICE);
    let quiesced = vm.physical.complete_all();
    assert_eq!(vm.context(), Some(Context::Quiesced));
    assert_eq!(vm.hardware.translated(NVME, None, BUFFER, true), Access::Blocked, "SWG-21");
    for ticket in quiesced {
        let _ = vm.iommu.fence_done(ticket, FenceOutcome::Complete);
    }
    vm.settle();
}

#[test]
fn t23_invalidation_requests_under_way_are_bounded() {
    let (mut vm, _) = vm();
    vm.physical.set_pending(true);
    let pages: Vec<_> = (0..20).map(|page| device().inval(page << 12)).collect();
    vm.ring(&pages);
    vm.ring(&[Iofence::PLAIN.encode()]);
    let mut sent = Vec::new();
    while vm.progress() != Progress::Idle {
        let orders = vm.orders();
        assert!((1..=2).contains(&requests(&orders).len()) || sent.len() == 20, "ITAGS is 2: {orders:?}");
        sent.extend(requests(&orders));
        assert_eq!(vm.iommu.run(), Progress::Waiting);
        assert_eq!(vm.orders(), [], "VC-74: the rest waits for a fence");
        for ticket in vm.physical.complete_all() {
            let _ = vm.iommu.fence_done(ticket, FenceOutcome::Complete);
        }
    }
    sent.extend(requests(&vm.orders()));
    assert!(sent.iter().zip(0..20).all(|((to, what), page)| *to == NVME && what.first.get() == page << 12), "{sent:?}");
    assert_eq!((sent.len(), vm.read(reg::CQH)), (20, u64::from(vm.commands.tail())), "nothing is lost");
}

#[test]
fn t23_a_response_failure_does_not_reach_the_functions_that_share_the_interface() {
    for code in 0..16 {
        for granted in [false, true] {
            let (mut vm, _) = vm();
            let _ = vm.iommu.detach(DEVICE);
            let policy = DevicePolicy::default().with_ats(Ats::PageRequests).with_response_failure(granted);
            let attachment = vm.iommu.attach(DEVICE, NVME, policy).unwrap().attachment;
            assert_eq!(request(&mut vm, attachment, 7), PageRequestOutcome::Queued);
            vm.forget();
            vm.ring(&[device().process(PROCESS).prgr(7, code)]);
            let expected = match code {
                0 => ResponseCode::Success,
                1 => ResponseCode::InvalidRequest,
                _ if granted => ResponseCode::ResponseFailure,
                _ => ResponseCode::InvalidRequest,
            };
            assert_eq!(responses(&vm.orders()), [response(7, expected)], "PRG-06: {code}, {granted}");
            assert_eq!(vm.hardware.page_requests_off(NVME), granted && code > 1);
        }
    }
    // Nor does the one a queue that is off stands for.
    let (mut vm, attachment) = attached();
    vm.write(reg::PQCSR, 0);
    let outcome = request(&mut vm, attachment, 7);
    assert_eq!(outcome, PageRequestOutcome::Discarded(Some(response(7, ResponseCode::InvalidRequest))), "VT-11");
}

#[test]
fn t23_a_group_is_answered_once_and_only_if_it_was_asked_for() {
    let (mut vm, attachment) = attached();
    let to = device().process(PROCESS);
    vm.ring(&[to.prgr(7, 0), device().prgr(7, 0)]);
    assert_eq!(vm.orders(), [], "PRG-04: there is no such request");
    assert_eq!(request(&mut vm, attachment, 7), PageRequestOutcome::Queued);
    vm.ring(&[to.prgr(8, 0), device().process(ProcessId::truncate(4)).prgr(7, 0)]);
    assert_eq!(vm.orders(), [], "PRG-04: another group, another process");
    vm.ring(&[to.prgr(7, 0), to.prgr(7, 0), to.prgr(7, 1)]);
    assert_eq!(responses(&vm.orders()), [response(7, ResponseCode::Success)], "PRG-05");
    // A group the guest is late for is the host's.
    assert_eq!(request(&mut vm, attachment, 9), PageRequestOutcome::Queued);
    let given_up = vm.iommu.page_request_timeout(attachment, Prgi::truncate(9), Some(PROCESS));
    assert_eq!(given_up, Some(response(9, ResponseCode::InvalidRequest)));
    vm.forget();
    vm.ring(&[to.prgr(9, 0)]);
    assert_eq!(vm.orders(), [], "PRG-05");
}

#[test]
fn t34_a_page_request_or_answer_of_an_earlier_attachment_goes_nowhere() {
    let (mut vm, first) = attached();
    assert_eq!(request(&mut vm, first, 7), PageRequestOutcome::Queued);
    let late = PageRequest::read(HOLE, Prgi::truncate(8)).with_process(PROCESS, false);
    vm.physical.set_pending(true);
    let _ = vm.iommu.detach(DEVICE);
    assert_eq!(vm.iommu.report_page_request(first, &late), PageRequestOutcome::NotAttached, "it is on its way out");
    vm.settle();
    vm.physical.set_pending(false);
    let second = vm.attach_with(DEVICE, NIC, Ats::PageRequests);
    assert_eq!(vm.iommu.report_page_request(first, &late), PageRequestOutcome::NotAttached);
    assert_eq!(vm.requests().len(), 1, "the first device's, from before");
    assert_eq!(vm.iommu.page_request_timeout(first, Prgi::truncate(7), Some(PROCESS)), None);
    vm.forget();
    // What the first one asked for is not answered to the second.
    vm.ring(&[device().process(PROCESS).prgr(7, 0), device().prgr(7, 0)]);
    assert_eq!(vm.orders(), [], "PRG-04");
    assert_eq!(vm.hardware.page_request(NIC, &late), None);
    assert_eq!(vm.iommu.report_page_request(second, &late), PageRequestOutcome::Queued);
    vm.ring(&[device().process(PROCESS).prgr(8, 0)]);
    assert!(matches!(vm.orders()[..], [Order::PageResponse(NIC, ..)]));
}

#[test]
fn t34_a_timeout_of_an_earlier_attachment_is_not_the_new_ones() {
    let (mut vm, processes) = vm();
    vm.directory.set(OTHER, &processes.context(ALL));
    vm.attach_with(OTHER, NIC, Ats::PageRequests);
    vm.physical.set_pending(true);
    for _ in 0..3 {
        vm.ring(&[device().inval(PAGE)]);
        let _ = vm.iommu.detach(DEVICE);
        for _ in 0..4 {
            for ticket in vm.physical.complete_all() {
                let _ = vm.iommu.fence_done(ticket, FenceOutcome::AtsTimeout);
            }
        }
        vm.settle();
        vm.attach_with(DEVICE, NVME, Ats::PageRequests);
        vm.settle();
    }
    for device in [NVME, NIC] {
        let ats = vm.physical.context(device).map(|context| context.ats());
        assert_eq!(ats, Some(Ats::PageRequests), "VC-45, VC-74: {device:?}");
    }
    vm.forget();
    vm.ring(&[device().inval(PAGE)]);
    assert_eq!(requests(&vm.orders()).len(), 1, "VC-70");
}

#[test]
fn t35_a_process_that_changed_is_never_found_as_it_was() {
    let (mut vm, processes) = vm();
    let read = |vm: &Vm| vm.hardware.dma(NVME, Some(PROCESS), IOVA, false);
    assert_eq!(read(&vm).access, Access::Translated(BUFFER));
    let other = FirstStageTable::new(&vm.memory, FirstStageMode::Sv48);
    let [_, _, _, fsc] = other.context(PSCID);
    let says_so = [inval_pdt(DEVICE, PROCESS), Iotinval::ALL.pscid(PSCID).vma(), Iofence::PLAIN.encode()];
    processes.set(PROCESS, [1 | u64::from(PSCID.get()) << 12, fsc]);
    vm.ring(&says_so);
    assert!(!read(&vm).stale, "VC-60");
    // Off: what was said of it meanwhile is not needed, since it went with the device.
    vm.write(reg::DDTP, 0);
    vm.forget();
    processes.invalidate(PROCESS);
    vm.ring(&says_so);
    assert_eq!(invalidations(&vm.orders()), []);
    vm.write(reg::DDTP, vm.directory.ddtp());
    assert!(!read(&vm).stale);
    // And so it does with a directory that is replaced by one for the same processes.
    let again = ProcessDirectory::new(&vm.memory, 2);
    let [_, _, _, fsc] = vm.table.context(PSCID);
    again.set(PROCESS, [1 | u64::from(PSCID.get()) << 12, fsc]);
    vm.directory.set(DEVICE, &again.context(ALL));
    vm.ring(&[inval_ddt(Some(DEVICE)), Iotinval::ALL.pscid(PSCID).vma(), Iofence::PLAIN.encode()]);
    let dma = read(&vm);
    assert_eq!((dma.access, dma.stale), (Access::Translated(BUFFER), false), "VC-50");
    // Detached, changed while nobody listened, and attached again.
    let _ = vm.iommu.detach(DEVICE);
    again.invalidate(PROCESS);
    vm.attach_with(DEVICE, NVME, Ats::PageRequests);
    assert!(!read(&vm).stale);
}

/// What a device with ATS is ordered on its way out.
fn assert_leaves(orders: &[Order]) {
    let [
        Order::SetContext(NVME, Context::Quiesced, Ok(_)),
        Order::Invalidate(quiesced, Ok(())),
        Order::Fence(_, FenceScope::ALL, _),
        Order::AtsInvalidate(NVME, AtsInvalidation::ALL, Ok(())),
        Order::AtsInvalidate(NVME, AtsInvalidation::ALL_PROCESSES, Ok(())),
        Order::Fence(_, FenceScope::ALL, _),
        Order::SetContext(NVME, Context::Blocked, Ok(_)),
        Order::Invalidate(blocked, Ok(())),
        Order::Fence(_, FenceScope::ALL, _),
        rest @ ..,
    ] = orders
    else {
        panic!("SWG-21: {orders:?}")
    };
    let device = [Invalidation::Device(NVME)];
    assert_eq!((&quiesced[..], &blocked[..]), (&device[..], &device[..]), "SWG-21");
    assert!(matches!(rest, [] | [Order::Release(NVME)]), "SWG-21: {rest:?}");
}

#[test]
fn t36_a_device_keeps_nothing_when_it_is_given_back() {
    let ways: [fn(&mut Vm) -> Progress; 2] = [|vm| vm.iommu.detach(DEVICE).unwrap(), |vm| vm.iommu.shutdown()];
    for leave in ways {
        let (mut vm, _) = vm();
        for process in [None, Some(PROCESS)] {
            assert!(matches!(vm.hardware.ats_request(NVME, process, IOVA, true), AtsAnswer::Granted { .. }));
        }
        vm.physical.set_pending(true);
        assert_eq!(leave(&mut vm), Progress::Waiting);
        // It may fill its cache for as long as hardware has the old context.
        let _ = vm.hardware.ats_request(NVME, None, IOVA, true);
        let refused = vm.iommu.attach(DEVICE, NVME, DevicePolicy::default());
        assert!(matches!(refused, Err(AttachError::IdInUse)), "{refused:?}");
        vm.settle();
        let orders = vm.orders();
        assert_eq!((orders.last(), vm.hardware.kept(NVME)), (Some(&Order::Release(NVME)), vec![]), "SWG-21");
        assert_leaves(&orders);
        // Its next owner's addresses mean something else.
        let next = Vm::of(&vm.hardware, 2, InterruptKinds::Both, &Config::nested()).translate_as(NVME);
        assert_eq!(next.dma().access, Access::Translated(BUFFER));
    }
}

#[test]
fn t36_a_device_keeps_nothing_across_a_reset() {
    let (mut vm, _) = vm();
    assert!(matches!(vm.hardware.ats_request(NVME, Some(PROCESS), IOVA, true), AtsAnswer::Granted { .. }));
    let _ = vm.iommu.reset();
    assert_leaves(&vm.orders());
    assert_eq!(vm.hardware.kept(NVME), []);
}

#[test]
fn t41_a_flood_of_invalidation_requests_waits_for_the_host_and_harms_no_other() {
    let (mut vm, _) = vm();
    let (mut neighbour, _) = Vm::with_processes(&vm.hardware, 2, NIC, ALL);
    (0..50).for_each(|_| vm.physical.answer_next_ats_invalidate(Err(riscv_viommu::OrderError::Busy)));
    let pages: Vec<_> = (0..100).map(|page| device().inval(page << 12)).collect();
    vm.ring(&pages);
    let mut busy = 0;
    while vm.progress() == Progress::Waiting {
        let orders = vm.orders();
        assert!(matches!(orders[..], [Order::AtsInvalidate(..)]), "asked once for each call: {orders:?}");
        busy += 1;
        neighbour.ring(&[device().inval(PAGE), Iofence::PLAIN.encode()]);
        assert_eq!(neighbour.read(reg::CQH), u64::from(neighbour.commands.tail()));
        let _ = vm.iommu.run();
    }
    vm.ring(&[Iofence::PLAIN.encode()]);
    assert_eq!((busy, requests(&vm.orders()).len()), (50, 100), "VC-74: nothing is lost");
    assert_eq!(vm.read(reg::CQH), u64::from(vm.commands.tail()));
}

#[test]
fn t41_a_flood_of_page_requests_ends_at_the_end_of_the_queue() {
    let (mut vm, attachment) = attached();
    for group in 0..7 {
        assert_eq!(request(&mut vm, attachment, group), PageRequestOutcome::Queued);
    }
    let full = response(0, ResponseCode::Success);
    for group in 0..100 {
        let group = 7 + group % 400;
        let PageRequestOutcome::Discarded(Some(answer)) = request(&mut vm, attachment, group) else {
            panic!("{group}")
        };
        assert_eq!((answer.code, answer.group), (full.code, Prgi::truncate(group)), "PQ-19, PQ-21");
        let request = PageRequest::read(HOLE, Prgi::truncate(group)).with_process(PROCESS, false);
        vm.hardware.answer_page_request(NVME, &request, answer.code);
    }
    assert_eq!((vm.read(reg::PQT), vm.read(reg::PQCSR)), (7, reg::ON | reg::PQOF | reg::ENABLE), "PQ-19");
    // A guest that makes room and answers nothing gets as many groups as there is a count of, and no more.
    let mut queued = vm.requests().len();
    vm.write(reg::PQCSR, reg::PQOF | reg::ENABLE);
    for group in 200..300 {
        if request(&mut vm, attachment, group) == PageRequestOutcome::Queued {
            queued += vm.requests().len();
        }
    }
    assert_eq!(queued, 8, "GROUPS is 8");
    assert_eq!(vm.hardware.response_failures(), 0);
}

#[test]
fn t41_a_device_that_does_not_answer_is_given_no_more_of_the_shared_queue() {
    let (mut vm, _) = vm();
    for _ in 0..2 {
        unanswered(&mut vm);
    }
    // One answer, and it is trusted as before.
    vm.ring(&[device().inval(PAGE), Iofence::PLAIN.encode()]);
    for count in 1..=3 {
        assert_eq!(vm.iommu.health(), Health::Good, "VC-74: {count}");
        unanswered(&mut vm);
    }
    assert_eq!((vm.iommu.health(), vm.context().map(|context| context.ats())), (Health::Degraded, Some(Ats::Off)));
    vm.forget();
    // Whatever the guest does, and across its reset.
    vm.ring(&[inval_ddt(None), device().inval(PAGE), Iofence::PLAIN.encode()]);
    let _ = vm.iommu.reset();
    vm.turn_queues_on();
    vm.write(reg::DDTP, vm.directory.ddtp());
    vm.ring(&[device().inval(PAGE), Iofence::PLAIN.encode()]);
    assert_eq!(requests(&vm.orders()), [], "VC-71, VC-74");
    assert_eq!(vm.context().map(|context| context.ats()), Some(Ats::Off), "VC-74");
    let disallowed = Cause::TransactionTypeDisallowed;
    assert_eq!(vm.hardware.ats_request(NVME, None, IOVA, false), AtsAnswer::Refused(disallowed));
    // Until the host has reset it.
    vm.hardware.reset_function(NVME);
    let _ = vm.iommu.device_reset(DEVICE);
    assert_eq!(vm.context().map(|context| context.ats()), Some(Ats::PageRequests));
}
