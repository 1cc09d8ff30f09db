//! What a host is told of a guest that does not get what it wants: the last error, and counts.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a failure is a finding")]

mod dma_rig;
mod nesting_rig;

use dma_rig::{DmaRig, READ, everything};
use nesting_rig::{FENCE, IOVA, Rig, id, pscid};
use riscv_viommu::mock::guest::{AtsCommand, Iofence, Iotinval, PageRequestRing, inval_ddt, register};
use riscv_viommu::mock::tables::{ProcessDirectory, bare, tc};
use riscv_viommu::mock::{Hardware, Memory};
use riscv_viommu::{
    Ats, Cause, Completion, Config, DevicePolicy, Gpa, Gscid, HostFault, Iova, LastError, MemoryFault, OrderError,
    PageRequest, PhysicalIommu, Prgi, ProcessId, Progress, Stats, TransactionType, Width,
};

/// `IOTINVAL.VMA` with a reserved bit, which stops the queue (rule CMD-04).
const ILLEGAL: [u64; 2] = [0x801, 0];

fn said(error: Option<LastError>) -> String {
    error.map_or("nothing".into(), |error| error.to_string())
}

impl Rig {
    fn said(&self) -> String {
        said(self.iommu.last_error())
    }

    /// The guest clears what stopped its queue, and goes on behind it.
    fn go_on(&mut self) {
        let _ = self.iommu.write(register::CQCSR, Width::U32, 0);
        let cqb = self.commands.cqb();
        let _ = self.iommu.write(register::CQB, Width::U64, cqb);
        let _ = self.iommu.write(register::CQCSR, Width::U32, register::ENABLE | 0xf00);
    }
}

#[test]
fn a_guest_without_a_mistake_has_no_last_error() {
    let mut rig: Rig = Rig::new();
    let (device, _) = rig.attach(0);
    let _ = rig.enter();
    assert_eq!(rig.said(), "nothing", "a device without a context is how every guest begins");
    rig.directory.set(id(0), &rig.a.context(pscid(1)));
    let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, IOVA);
    let _ = rig.iommu.report_fault(device, &fault);
    assert_eq!((rig.said().as_str(), rig.records().len()), ("nothing", 1), "a page fault is no mistake in a context");
}

#[test]
fn an_illegal_command_is_named_with_its_place_its_words_and_the_rule() {
    let mut rig: Rig = Rig::new();
    let _ = rig.ring([FENCE.encode(), ILLEGAL, [0x7f, 0]]);
    let expected =
        "command 1 (0x0000000000000801 0x0000000000000000) is illegal: IOTINVAL has a reserved bit that is 1 (CMD-04)";
    assert_eq!(rig.said(), expected);
    let Some(LastError::IllegalCommand { index: 1, command, reason, .. }) = rig.iommu.last_error() else {
        panic!("{}", rig.said());
    };
    assert_eq!((command.low, reason.field(), reason.rule()), (0x801, "IOTINVAL", "CMD-04"));
    let _ = rig.iommu.run();
    assert_eq!(rig.said(), expected, "the queue has stopped: the next one was not looked at");
    let _ = rig.iommu.reset();
    assert_eq!(rig.said(), "nothing", "forgotten with the reset");
}

#[test]
fn memory_that_stops_the_queue_is_named() {
    let mut rig: Rig = Rig::new();
    let nowhere = Gpa::new(0x0004_0000_0000);
    let _ = rig.ring([Iofence::PLAIN.store(nowhere, 1).encode()]);
    assert_eq!(rig.said(), "command 0: guest memory access fault at 0x400000000", "CQ-15, FEN-05");
    rig.go_on();
    rig.memory.fail(rig.commands.entry(1), 16, MemoryFault::Corruption);
    let _ = rig.ring([FENCE.encode(), FENCE.encode()]);
    assert_eq!(rig.said(), "command 1: guest memory data corruption at 0x70000010", "CQ-15");
}

#[test]
fn a_context_that_is_refused_is_named_with_the_field_and_the_rule() {
    let mut rig: Rig = Rig::new();
    let (device, _) = rig.attach(0);
    let _ = rig.enter();
    rig.directory.set(id(0), &[tc::V | tc::EN_PRI, 0, 0, 0]);
    let _ = rig.ring([inval_ddt(Some(id(0)))]);
    assert_eq!(rig.said(), "device_id 0x8, cause 259: DC.tc.EN_PRI needs capabilities.ATS (DCK-02)");
    // What nobody is attached for is not looked at.
    rig.directory.set(id(1), &[tc::V | tc::DPE, 0, 0, 0]);
    let _ = rig.ring([inval_ddt(Some(id(1)))]);
    assert!(rig.said().contains("DCK-02"), "{}", rig.said());
    // A device that has none is named once it wants something.
    rig.directory.invalidate(id(0));
    let _ = rig.ring([inval_ddt(None)]);
    assert!(rig.said().contains("DCK-02"), "{}", rig.said());
    let fault = HostFault::new(Cause::ReadGuestPageFault, TransactionType::UntranslatedRead, IOVA);
    let _ = rig.iommu.report_fault(device, &fault);
    assert_eq!(rig.said(), "device_id 0x8, cause 258: DC.tc.V is 0 (DDT-12)");
    // On the way to it, too.
    let entry = rig.directory.non_leaf_address(id(0), 1);
    rig.memory.write(entry, rig.memory.read(entry) | 2);
    let _ = rig.ring([inval_ddt(None)]);
    assert_eq!(rig.said(), "device_id 0x8, cause 259: ddte has a reserved bit that is 1 (DDT-11)");
    rig.memory.write(entry, 0x3f_ffff << 10 | 1);
    let _ = rig.ring([inval_ddt(None)]);
    assert_eq!(
        rig.said(),
        "device_id 0x8, cause 257: the device directory leads to where the guest has no memory (FLT-01)"
    );
}

#[test]
fn the_last_one_is_kept_whichever_kind_it_is() {
    let mut rig: Rig = Rig::new();
    let _ = rig.attach(0);
    let _ = rig.enter();
    rig.directory.set(id(0), &[tc::V | tc::DPE, 0, 0, 0]);
    // The fence has the context read, before the next command is.
    let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode(), ILLEGAL]);
    assert!(rig.said().contains("CMD-04"), "{}", rig.said());
    rig.go_on();
    let _ = rig.ring([inval_ddt(Some(id(0)))]);
    assert!(rig.said().contains("DCK-12"), "{}", rig.said());
}

#[test]
fn what_a_request_of_an_emulated_device_comes_to_grief_by_is_named() {
    let mut rig: DmaRig = DmaRig::new(everything());
    let said = |rig: &DmaRig| said(rig.iommu.last_error());
    let refused = |rig: &mut DmaRig, process: Option<u32>, privileged| {
        let request = READ.of(rig, 0x1000);
        let process = process.map(ProcessId::truncate);
        let request = process.map_or(request, |process| request.with_process(process, privileged));
        assert!(rig.translate(request).is_err());
        said(rig)
    };
    assert_eq!(refused(&mut rig, None, false), "device_id 0x123456, cause 258: ddte.V is 0 (DDT-11)");
    rig.set_context(&bare());
    let expected =
        "device_id 0x123456, process_id 0x1, cause 260: DC.tc.PDTV is 0, and the request has a process_id (TR-09)";
    assert_eq!(refused(&mut rig, Some(1), false), expected);
    let processes = ProcessDirectory::new(&rig.memory, 1);
    rig.set_context(&[tc::V | tc::PDTV, 0, 0, processes.pdtp()]);
    let expected = "device_id 0x123456, process_id 0x100, cause 260: process_id is wider than pdtp.MODE takes (TR-10)";
    assert_eq!(refused(&mut rig, Some(0x100), false), expected);
    assert_eq!(
        refused(&mut rig, Some(1), false),
        "device_id 0x123456, process_id 0x1, cause 266: PC.ta.V is 0 (PDT-08)"
    );
    processes.set(ProcessId::truncate(1), [1, 3 << 60]);
    let expected =
        "device_id 0x123456, process_id 0x1, cause 267: PC.fsc.MODE is not one that capabilities has (PCK-02 to -04)";
    assert_eq!(refused(&mut rig, Some(1), false), expected);
    processes.set(ProcessId::truncate(1), [1, 0]);
    let expected =
        "device_id 0x123456, process_id 0x1, cause 260: PC.ta.ENS is 0, and the request is privileged (TR-16)";
    assert_eq!(refused(&mut rig, Some(1), true), expected);
    // A fault of the page tables leaves it.
    processes.set(ProcessId::truncate(1), [1, 8 << 60]);
    assert_eq!(refused(&mut rig, Some(1), false), expected);
    let _ = rig.iommu.reset();
    assert_eq!(said(&rig), "nothing");
}

#[test]
fn what_the_host_refuses_is_named_too() {
    let mut rig = Rig::new().translating();
    rig.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
    rig.directory.set(id(0), &bare());
    let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
    let expected = "device_id 0x8: the host refused the context SecondStageOnly { process_ids: false, ats: Off }";
    assert_eq!(rig.said(), expected);
    for _ in 0..2 {
        rig.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
    }
    let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
    assert_eq!(rig.said(), "the host refused an invalidation: every device is blocked");
    let _ = rig.iommu.reset();
    rig.turn_on();
    rig.physical.answer_next_fence(Err(OrderError::Fatal));
    let _ = rig.ring([FENCE.encode()]);
    assert_eq!(rig.said(), "the physical IOMMU failed: every device is blocked");
}

/// The counts that are not 0.
fn counts(stats: &Stats) -> Vec<(&'static str, u64)> {
    stats.rows().filter(|(_, count)| *count != 0).collect()
}

#[test]
fn orders_are_counted_by_kind_and_answer() {
    let mut rig: Rig = Rig::new();
    let orders = |rig: &Rig| {
        let counted = rig.iommu.stats().orders;
        let taken = rig.physical.take_orders();
        (counted, taken.len())
    };
    let _ = rig.attach(0);
    let (attached, taken) = orders(&rig);
    assert_eq!(
        (attached.adopt.done, attached.set_context.done, attached.invalidate.done),
        (1, 1, 1),
        "adopted, blocked"
    );
    assert_eq!((attached.invalidations, attached.fence.done, taken), (1, 1, 4));

    // Three pages that do not touch and one device are four orders of one call.
    rig.directory.set(id(0), &rig.a.context(pscid(1)));
    let _ = rig.enter();
    let (before, _) = orders(&rig);
    let pages = [1, 3, 5].map(|page| Iotinval::ALL.address(Iova::new(page << 12)).vma());
    let _ = rig.ring(pages.into_iter().chain([FENCE.encode()]));
    let (after, taken) = orders(&rig);
    assert_eq!(after.invalidate.done - before.invalidate.done, 1);
    assert_eq!((after.invalidations - before.invalidations, taken), (3, 2));

    rig.physical.answer_next_invalidate(Err(OrderError::Busy));
    rig.physical.answer_next_set_context(Err(OrderError::Refused { done: 0 }));
    rig.directory.set(id(0), &bare());
    let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
    let _ = (rig.iommu.run(), rig.iommu.run());
    let (last, _) = orders(&rig);
    assert_eq!((last.invalidate.busy, last.set_context.refused), (1, 1));
    assert_eq!(last.set_context.done, after.set_context.done + 1, "and it was blocked");
    let _ = rig.iommu.shutdown();
    assert_eq!(rig.iommu.stats().orders.release, 1);
    let _ = rig.iommu.reset();
    assert_eq!(rig.iommu.stats().orders.adopt.done, 1, "counts go on across a reset");
}

#[test]
fn every_call_that_ends_for_its_budget_is_counted() {
    let mut rig: Rig = Rig::with(&Hardware::default(), 1, &Config::nested().with_budget(4));
    let mut calls = 0;
    let mut progress = rig.ring([FENCE.encode(); 10]);
    while progress == Progress::Runnable {
        calls += 1;
        assert!(calls < 10, "it comes to an end");
        progress = rig.iommu.run();
    }
    assert_eq!((rig.iommu.stats().budget_used_up, calls), (2, 2), "10 fences are 4, 4 and 2");
    let _ = rig.attach(0);
    rig.physical.set_pending(true);
    assert_eq!((rig.ring([FENCE.encode()]), rig.iommu.run()), (Progress::Waiting, Progress::Waiting));
    assert_eq!(rig.iommu.stats().budget_used_up, 2, "hardware is waited for");
}

#[test]
fn what_the_guest_is_told_is_counted() {
    let mut rig: Rig = Rig::new();
    let (device, _) = rig.attach(0);
    rig.memory.interrupt_page(Gpa::new(0x2800_0000));
    let _ = rig.iommu.write(register::MSI_CFG_TBL, Width::U64, 0x2800_0000);
    let _ = rig.iommu.write(register::FQCSR, Width::U32, register::ENABLE | register::INTERRUPT_ENABLE);
    let _ = rig.enter();
    rig.directory.set(id(0), &rig.a.context(pscid(1)));
    let data = rig.memory.allocate(1);
    let _ = rig.ring([inval_ddt(Some(id(0))), Iofence::PLAIN.store(data, 7).encode(), FENCE.encode(), ILLEGAL]);
    let fault = |iova| HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(iova));
    for iova in [0x1000, 0x1000, 0x2000] {
        let _ = rig.iommu.report_fault(device, &fault(iova));
    }
    let _ = rig.iommu.report_lost(5);
    let told: Vec<_> = counts(&rig.iommu.stats())
        .into_iter()
        .filter(|(name, _)| {
            !["adopt", "set_context", "invalidate", "fence"].iter().any(|order| name.starts_with(order))
        })
        .collect();
    let expected = [
        ("IOFENCE.C", 2),
        ("IOFENCE.C stores", 1),
        ("IODIR.INVAL_DDT", 1),
        ("illegal commands", 1),
        ("faults recorded", 2),
        ("faults coalesced", 1),
        ("faults lost", 5),
        ("interrupt messages", 1),
    ];
    assert_eq!(told, expected);
    assert!(rig.iommu.stats().to_string().contains("\nfaults lost                            5\n"));
}

#[test]
fn page_requests_are_counted_by_what_became_of_them() {
    let mut rig: DmaRig = DmaRig::new(everything());
    let request = PageRequest::read(Iova::new(0x1000), Prgi::truncate(1));
    let ask = |rig: &mut DmaRig| rig.iommu.page_request(rig.device, &request);
    rig.set_context(&[tc::V | tc::EN_ATS, 0, 0, 0]);
    assert!(ask(&mut rig).is_ok_and(|response| response.is_some()), "the guest did not ask for them");
    let said = rig.iommu.last_error().map(|error| error.to_string());
    assert_eq!(said.as_deref(), Some("device_id 0x123456, cause 260: DC.tc.EN_PRI is 0 (PRI-02)"));
    rig.set_context(&[tc::V | tc::EN_ATS | tc::EN_PRI, 0, 0, 0]);
    let mut requests = PageRequestRing::new(&rig.memory, 4, Gpa::new(0x9200_0000));
    rig.write8(register::PQB, requests.pqb());
    rig.write(register::PQCSR, register::ENABLE);
    assert_eq!(ask(&mut rig), Ok(None));
    assert_eq!(ask(&mut rig), Ok(None));
    let stats = rig.iommu.stats();
    assert_eq!((stats.page_requests_queued, stats.page_requests_discarded, stats.page_requests_for_host), (2, 1, 0));
}

#[test]
fn what_passes_between_the_guest_and_a_device_with_ats_is_counted() {
    let mut host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
    host.capabilities = host.capabilities.with_ats(true).with_t2gpa(true);
    let mut rig: Rig = Rig::on(host, &Config::nested().with_ats(true));
    let [bits, iohgatp, ta, fsc] = rig.a.context(pscid(1));
    rig.directory.set(id(0), &[bits | tc::EN_ATS | tc::EN_PRI, iohgatp, ta, fsc]);
    let _ = rig.enter();
    let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
    let (device, _) = rig.attach_with(0, policy);
    let mut requests = PageRequestRing::new(&rig.memory, 4, Gpa::new(0x9200_0000));
    let _ = rig.iommu.write(register::PQB, Width::U64, requests.pqb());
    let _ = rig.iommu.write(register::PQCSR, Width::U32, register::ENABLE);

    for (iova, group) in [(IOVA, 1), (IOVA, 2), (Iova::new(0x1000), 3)] {
        let request = PageRequest::read(iova, Prgi::truncate(group));
        let _ = rig.physical.hardware().page_request(rig.device(0), &request);
        let _ = rig.iommu.report_page_request(device, &request);
    }
    let stats = rig.iommu.stats();
    assert_eq!((stats.page_requests_queued, stats.page_requests_for_host), (1, 2), "VT-10: only one is for the guest");

    let function = AtsCommand::to(8);
    let _ = rig.ring([function.prgr(3, 0)]);
    let _ = rig.ring([function.prgr(3, 0)]);
    let orders = rig.iommu.stats().orders;
    assert_eq!((orders.page_response.done, rig.iommu.stats().commands.ats_prgr), (1, 2), "PRG-04: once");
    for timeouts in 1..=3 {
        assert_eq!(rig.said(), "nothing");
        rig.physical.answer_next_fence(Ok(Completion::AtsTimeout));
        let _ = rig.ring([function.inval(0x1000), FENCE.encode()]);
        let orders = rig.iommu.stats().orders;
        assert_eq!((orders.ats_invalidate.done, orders.ats_timeouts), (timeouts, timeouts));
        let _ = rig.iommu.write(register::CQCSR, Width::U32, register::CMD_TO | register::ENABLE);
    }
    assert_eq!(
        rig.said(),
        "device_id 0x8 does not answer invalidations: it is without ATS until it is reset",
        "VC-74, T41"
    );
}

#[test]
fn each_count_has_a_name_of_its_own() {
    let mut names: Vec<_> = Stats::default().rows().map(|(name, _)| name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), Stats::default().to_string().as_str()), (count, ""));
}
