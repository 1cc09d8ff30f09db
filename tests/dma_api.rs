//! What a device model uses: requests, translations and their pieces, epochs and drains, attachments of emulated
//! devices.
//!
//! Rule IDs are those of the rules of translation, commands and registers; tests of a threat begin with its id.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a failure is a finding")]

mod dma_rig;

use dma_rig::{DEVICE, DmaRig, everything};
use riscv_viommu::mock::guest::{Iofence, Iotinval, inval_ddt, inval_pdt, register as reg};
use riscv_viommu::mock::tables::{PageTable, bare, pte};
use riscv_viommu::mock::{Event, Hardware, Memory, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    AtsRequest, AttachError, Attachment, Completion, Config, DetachError, DeviceId, DevicePolicy, Epoch,
    FirstStageMode, Gpa, Gscid, InterruptKinds, Invalidation, Iova, NoPhysical, Parts, Post, ProcessId, Progress,
    Pscid, Request, SecondStageMode, Target, TransactionType, TranslateError, Translation, VIommu, Width,
};

const IOVA: u64 = 0x20_0040_3000;
const PAGE: u64 = 0x8765_4000;
/// V, R, W, X, U, A and D.
const LEAF: u64 = 0xdf;
const PSCID: Pscid = Pscid::truncate(5);

/// A rig whose device has a first stage.
fn with_table<const CACHE: usize>(config: Config) -> (DmaRig<CACHE>, PageTable) {
    in_memory(config, Memory::new())
}

fn in_memory<const CACHE: usize>(config: Config, memory: Memory) -> (DmaRig<CACHE>, PageTable) {
    let rig = DmaRig::<CACHE>::in_memory(config, memory);
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    rig.set_context(&[1, 0, u64::from(PSCID.get()) << 12, table.iosatp()]);
    table.map(IOVA, PAGE, 0, LEAF);
    rig.forget_accesses();
    (rig, table)
}

/// A host whose DMA goes on after the vIOMMU has been called, and which keeps count of it: [`VIommu::drained`].
fn counting() -> (DmaRig<8>, PageTable) {
    let memory = Memory::new();
    memory.answer_drain(Some(Completion::Pending));
    let (rig, table) = in_memory(everything().with_synchronous_dma(false), memory);
    let _ = rig.memory.take_drains();
    (rig, table)
}

fn read<const CACHE: usize>(rig: &DmaRig<CACHE>) -> Request {
    Request::read(rig.device, Iova::new(IOVA))
}

fn memory_at(translation: &Translation) -> u64 {
    match translation.target {
        Target::Memory(at) => at.get(),
        other => panic!("{other:?} is no memory"),
    }
}

#[test]
fn a_request_says_what_it_was_made_with() {
    let (rig, _) = with_table::<0>(everything());
    let (device, iova) = (rig.device, Iova::new(IOVA));
    for (request, access, translated) in [
        (Request::read(device, iova), TransactionType::UntranslatedRead, TransactionType::TranslatedRead),
        (Request::write(device, iova), TransactionType::UntranslatedWrite, TransactionType::TranslatedWrite),
        (Request::execute(device, iova), TransactionType::UntranslatedExecute, TransactionType::TranslatedExecute),
    ] {
        assert_eq!((request.access, request.translated().access), (access, translated), "ACC-01, ACC-03");
        assert_eq!(request.translated().translated(), request.translated());
        assert_eq!((request.device, request.iova, request.length, request.data), (device, iova, 1, None));
        assert_eq!((request.process, request.privileged), (None, false), "ACC-01: user, unless said");
        let process = ProcessId::truncate(7);
        let of = request.with_process(process, true);
        assert_eq!((of.process, of.privileged, of.access), (Some(process), true, access));
        assert_eq!([0, 1, 64, u64::MAX].map(|length| request.with_length(length).length), [0, 1, 64, u64::MAX]);
    }
    let message = Request::msi(device, iova, 0x1234_5678);
    let expected = (TransactionType::UntranslatedWrite, 4, Some(0x1234_5678));
    assert_eq!((message.access, message.length, message.data), expected, "MRIF-01");
}

#[test]
fn a_length_ends_with_the_mapping_or_the_request() {
    let (mut rig, table) = with_table::<0>(everything());
    table.map(0x4000_0000, 0x8000_0000, 1, LEAF);
    for (iova, asked, length) in [
        (IOVA, 1, 1),
        (IOVA, 0x1000, 0x1000),
        (IOVA, 0x1001, 0x1000),
        (IOVA + 0xfff, 1, 1),
        (IOVA + 0xfff, 2, 1),
        (IOVA + 0x123, u64::MAX, 0xedd),
        (0x4000_0000, u64::MAX, 0x20_0000),
        (0x4012_3456, u64::MAX, 0xd_cbaa),
        (0x401f_ffff, 0x1_0000, 1),
        (0x4000_0000, 0x1f_ffff, 0x1f_ffff),
    ] {
        let found = rig.translate(Request::read(rig.device, Iova::new(iova)).with_length(asked)).expect("mapped");
        assert_eq!(found.length, length, "ACC-08: {iova:#x}, {asked:#x}");
        assert!(found.size.is_power_of_two() && found.length <= found.size, "SZ-01");
    }
}

#[test]
fn pieces_split_at_the_ends_of_pages_and_stop_at_the_first_fault() {
    let (mut rig, table) = with_table::<0>(everything());
    // Two pages that lie apart, a page of 2 MiB behind them, and nothing behind that.
    let start = 0x3fff_e000;
    table.map(start, 0x9000_1000, 0, LEAF);
    table.map(start + 0x1000, 0x9000_7000, 0, LEAF);
    table.map(0x4000_0000, 0xa000_0000, 1, LEAF);
    let request = Request::read(rig.device, Iova::new(start + 0x800)).with_length(0x20_2000);
    let mut pieces = rig.iommu.pieces(request);
    assert_eq!(pieces.left(), Some(&request));
    let mut found = Vec::new();
    for piece in pieces.by_ref() {
        found.push(piece.map(|piece| (memory_at(&piece), piece.length)));
    }
    let fault = Err(TranslateError::Fault(riscv_viommu::Cause::ReadPageFault));
    let expected = [Ok((0x9000_1800, 0x800)), Ok((0x9000_7000, 0x1000)), Ok((0xa000_0000, 0x20_0000)), fault];
    assert_eq!(found, expected, "ACC-08");
    assert_eq!(pieces.left(), None);
    assert!(pieces.next().is_none(), "it is over");
    // The record has the address of the page that is missing.
    assert_eq!(rig.take_fault()[2], 0x4020_0000, "ACC-08, FR-07");
}

#[test]
fn pieces_are_translated_when_they_are_asked_for_and_their_accesses_made_between() {
    let (mut rig, table) = with_table::<0>(everything());
    table.map(IOVA + 0x1000, PAGE + 0x5000, 0, LEAF);
    let memory = rig.memory.clone();
    let request = Request::write(rig.device, Iova::new(IOVA + 0xff0)).with_length(0x20);
    let mut pieces = rig.iommu.pieces(request);
    assert_eq!(memory.take_loads(), [], "nothing yet");
    let first = pieces.next().expect("two pieces").expect("mapped");
    assert_eq!((memory_at(&first), first.length), (PAGE + 0xff0, 0x10), "ACC-08");
    let left = *pieces.left().expect("one more");
    assert_eq!((left.iova, left.length), (Iova::new(IOVA + 0x1000), 0x10), "ACC-08");
    assert_eq!(left.access, request.access);
    // The host is there, for the access.
    let _: &mut Parts<Memory, Wires, NoPhysical> = pieces.backend_mut();
    // The guest takes the page back meanwhile: the next piece finds it gone.
    table.unmap(IOVA + 0x1000, 0);
    assert!(pieces.next().expect("a second").is_err(), "ACC-08");
    assert!(pieces.next().is_none() && pieces.next().is_none(), "ACC-08: fused");
}

#[test]
fn pieces_of_a_whole_request_are_one_if_it_fits() {
    let (mut rig, _) = with_table::<0>(everything());
    for length in [1, 0x800, 0x1000] {
        let request = read(&rig).with_length(length);
        let found: Vec<_> = rig.iommu.pieces(request).map(|piece| piece.map(|piece| piece.length)).collect();
        assert_eq!(found, [Ok(length)], "ACC-08");
    }
    // Of no bytes there is none; whether they could be accessed is asked as for one.
    let request = read(&rig).with_length(0);
    assert_eq!(rig.iommu.pieces(request).count(), 0);
    assert_eq!(rig.translate(request).map(|translation| translation.length), Ok(0));
    assert!(rig.translate(Request::read(rig.device, Iova::new(0x1000)).with_length(0)).is_err());
}

#[test]
fn pieces_go_on_at_the_other_end_of_the_address_space() {
    let (mut rig, table) = with_table::<0>(everything());
    table.map(u64::MAX, PAGE, 0, LEAF);
    table.map(0, PAGE + 0x3000, 0, LEAF);
    let request = Request::write(rig.device, Iova::new(u64::MAX - 0xf)).with_length(0x20);
    let found: Vec<_> =
        rig.iommu.pieces(request).map(|piece| piece.map(|piece| (memory_at(&piece), piece.length))).collect();
    assert_eq!(found, [Ok((PAGE + 0xff0, 0x10)), Ok((PAGE + 0x3000, 0x10))], "ACC-08");
    // As much as can be asked for, where nothing is translated: it ends.
    rig.set_context(&bare());
    let request = Request::write(rig.device, Iova::new(u64::MAX)).with_length(u64::MAX);
    let mut pieces = rig.iommu.pieces(request);
    let first = pieces.next().expect("one byte").expect("Bare");
    assert_eq!((memory_at(&first), first.length), (u64::MAX, 1), "SZ-01");
    let mut left = u64::MAX - 1;
    for piece in pieces.take(1000).map(|piece| piece.expect("Bare")) {
        assert_eq!(memory_at(&piece), u64::MAX - 1 - left, "SZ-01");
        left -= piece.length;
    }
    assert!(left < u64::MAX - 1);
}

#[test]
fn pieces_of_an_attachment_that_is_none_fail_once() {
    let (mut rig, _) = with_table::<0>(everything());
    let request = read(&rig).with_length(0x10_0000);
    assert_eq!(rig.iommu.detach(DeviceId::truncate(DEVICE)), Ok(Progress::Idle));
    let found: Vec<_> = rig.iommu.pieces(request).collect();
    assert_eq!(found, [Err(TranslateError::NotAttached)], "T34");
    assert_eq!(rig.take_faults(), [[0; 4]; 0], "T34: the guest is shown nothing of it");
}

#[test]
fn a_request_that_does_not_start_is_told_so() {
    let parts = Parts { memory: Memory::new(), interrupts: Wires::new(InterruptKinds::Wired), physical: NoPhysical };
    let mut iommu = VIommu::<_, 2>::new(parts);
    let id = DeviceId::truncate(DEVICE);
    assert_eq!(iommu.attach_emulated(id, DevicePolicy::default()), Err(AttachError::NotStarted));
    // An attachment of another vIOMMU.
    let device = DmaRig::<0>::new(everything()).device;
    let request = Request::read(device, Iova::new(IOVA));
    assert_eq!(iommu.translate(&request), Err(TranslateError::NotStarted));
    assert_eq!(iommu.ats_translate(&AtsRequest::new(device, Iova::new(IOVA))), Err(TranslateError::NotStarted));
    assert_eq!(iommu.start(&everything()), Ok(()));
    assert_eq!(iommu.translate(&request), Err(TranslateError::NotAttached), "T03");
    assert_eq!(iommu.ats_translate(&AtsRequest::new(device, Iova::new(IOVA))), Err(TranslateError::NotAttached));
    assert_eq!(iommu.stats().stale_events, 2, "T34");
}

#[test]
fn a_host_that_can_not_wait_for_dma_has_no_emulated_devices() {
    let started = |config: Config, memory: &Memory| {
        let interrupts = Wires::new(InterruptKinds::Wired);
        let mut iommu = VIommu::<_, 2>::new(Parts { memory: memory.clone(), interrupts, physical: NoPhysical });
        assert_eq!(iommu.start(&config), Ok(()));
        iommu.attach_emulated(DeviceId::truncate(1), DevicePolicy::default()).map(Attachment::device)
    };
    let memory = Memory::new();
    let id = Ok(DeviceId::truncate(1));
    // It neither keeps count nor says that it need not.
    assert_eq!(started(Config::emulated(), &memory), Err(AttachError::NoDrain), "T38");
    assert_eq!(started(Config::emulated().with_synchronous_dma(true), &memory), id, "T38");
    for answer in [Completion::Done, Completion::Pending] {
        memory.answer_drain(Some(answer));
        assert_eq!(started(Config::emulated(), &memory), id, "T38");
    }
}

#[test]
fn an_id_is_one_device_s() {
    let (mut rig, _) = with_table::<0>(everything());
    let policy = DevicePolicy::default();
    assert_eq!(rig.iommu.attach_emulated(DeviceId::truncate(DEVICE), policy), Err(AttachError::IdInUse), "T40");
    // Sixteen there are; the rig's device is one.
    for id in 1..16 {
        assert!(rig.iommu.attach_emulated(DeviceId::truncate(id), policy).is_ok());
    }
    assert_eq!(rig.iommu.attach_emulated(DeviceId::truncate(16), policy), Err(AttachError::Full));
    assert_eq!(rig.iommu.attach_emulated(DeviceId::truncate(7), policy), Err(AttachError::IdInUse));
    assert_eq!(rig.iommu.detach(DeviceId::truncate(7)), Ok(Progress::Idle));
    assert!(rig.iommu.attach_emulated(DeviceId::truncate(16), policy).is_ok());
    assert_eq!(rig.iommu.detach(DeviceId::truncate(7)), Err(DetachError::NotAttached));
}

#[test]
fn an_id_is_a_passthrough_device_s_or_an_emulated_one_s() {
    let memory = Memory::new();
    memory.answer_drain(Some(Completion::Done));
    let hardware = Hardware::default();
    let physical: Physical = hardware.vm(Gscid::truncate(1), &memory);
    let interrupts = Wires::new(InterruptKinds::Wired);
    let mut iommu = VIommu::<_, 2>::new(Parts { memory, interrupts, physical: physical.clone() });
    assert_eq!(iommu.start(&Config::nested()), Ok(()));
    let [one, two] = [1, 2].map(DeviceId::truncate);
    let policy = DevicePolicy::default();
    assert!(iommu.attach(one, PhysicalDevice(0x41), policy).is_ok());
    assert_eq!(iommu.attach_emulated(one, policy), Err(AttachError::IdInUse), "T40");
    assert!(iommu.attach_emulated(two, policy).is_ok());
    let refused = iommu.attach(two, PhysicalDevice(0x42), policy).map(|attached| attached.attachment);
    assert_eq!(refused, Err(AttachError::IdInUse), "T40");
    // A passthrough device is not translated for here.
    assert_eq!(iommu.detach(two), Ok(iommu.progress()));
    let attached = iommu.attach(two, PhysicalDevice(0x42), policy).expect("it is free again").attachment;
    let request = Request::read(attached, Iova::new(IOVA));
    assert_eq!(iommu.translate(&request), Err(TranslateError::NotAttached));
}

#[test]
fn t34_an_attachment_of_an_earlier_owner_is_worth_nothing() {
    let (mut rig, _) = with_table::<8>(everything());
    let old = read(&rig);
    assert!(rig.translate(old).is_ok());
    let id = DeviceId::truncate(DEVICE);
    assert_eq!(rig.iommu.detach(id), Ok(Progress::Idle));
    let stale = rig.iommu.stats().stale_events;
    assert_eq!(rig.translate(old), Err(TranslateError::NotAttached), "T34");
    let new = rig.iommu.attach_emulated(id, DevicePolicy::default()).expect("the id is free");
    assert_ne!(new, rig.device, "T34");
    assert_eq!(rig.translate(old), Err(TranslateError::NotAttached), "T34");
    let ats = AtsRequest::new(rig.device, Iova::new(IOVA));
    assert_eq!(rig.iommu.ats_translate(&ats), Err(TranslateError::NotAttached), "T34");
    assert_eq!(rig.iommu.stats().stale_events, stale + 3, "T34");
    assert_eq!(rig.translate(Request::read(new, Iova::new(IOVA))).map(|found| memory_at(&found)), Ok(PAGE));
    // Attachments are told apart after a reset, too.
    let _ = rig.iommu.reset();
    let _ = rig.iommu.detach(id);
    let third = rig.iommu.attach_emulated(id, DevicePolicy::default()).expect("the id is free");
    assert!(third != new && third != rig.device, "T34");
    assert_eq!(rig.take_faults(), [[0; 4]; 0], "T34: the guest is shown nothing of it");
}

#[test]
fn after_a_reset_nothing_is_remembered_and_devices_are_attached_still() {
    let (mut rig, table) = with_table::<8>(everything());
    let request = read(&rig);
    assert_eq!(rig.translate(request).map(|found| memory_at(&found)), Ok(PAGE));
    table.map(IOVA, PAGE + 0x1000, 0, LEAF);
    assert_eq!(rig.iommu.reset(), Progress::Idle);
    // Off.
    assert_eq!(rig.address(request), Err(256), "TR-02, REG-RST-03");
    let ddtp = rig.directory.ddtp();
    rig.write8(reg::DDTP, ddtp);
    assert_eq!(rig.translate(request).map(|found| memory_at(&found)), Ok(PAGE + 0x1000), "REG-RST-02, CA-12");
}

#[test]
fn after_a_shutdown_no_device_is_left() {
    let (mut rig, _) = with_table::<0>(everything());
    let request = read(&rig);
    assert_eq!(rig.iommu.shutdown(), Progress::Idle);
    assert_eq!(rig.translate(request), Err(TranslateError::NotAttached), "T19, T34");
}

#[test]
fn an_aborted_request_tells_the_device_nothing_and_the_guest_what_it_asks_for() {
    let (mut rig, _) = with_table::<0>(everything());
    // DTF is bit 4 of tc: the record is left out, the error is not.
    for (dtf, records) in [(0, 1), (1 << 4, 0)] {
        rig.set_context(&[1 | dtf, 0, 0, 8 << 60 | rig.memory.allocate(1).get() >> 12]);
        assert_eq!(rig.address(read(&rig)), Err(13), "ACC-10");
        assert_eq!(rig.take_faults().len(), records, "FR-03");
    }
}

/// The progress of a fence whose DMA is under way, and what the guest sees of it.
fn fence_waits(rig: &DmaRig<8>, at: u64) {
    assert_eq!(rig.iommu.progress(), Progress::Waiting, "T38");
    assert_eq!(rig.read(reg::CQH), at, "T38, T15: the head stays on the fence");
    assert!(rig.memory.take_posts().is_empty(), "T38: nothing is stored");
}

#[test]
fn t38_a_fence_waits_until_dma_with_old_translations_is_done() {
    let (mut rig, table) = counting();
    let data = rig.memory.allocate(1);
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    table.unmap(IOVA, 0);
    let fence = Iofence::PLAIN.store(data, 7).encode();
    assert_eq!(rig.run([Iotinval::ALL.vma(), fence]), Progress::Waiting, "T38");
    fence_waits(&rig, 1);
    assert_eq!(rig.memory.take_drains(), [epoch], "T38: asked for what was handed out");
    // Whatever is called meanwhile.
    assert_eq!(rig.iommu.run(), Progress::Waiting, "T38");
    let _ = rig.iommu.write(reg::CQT, Width::U32, 2);
    fence_waits(&rig, 1);
    assert_eq!(rig.memory.take_drains(), [], "T38, T20: asked once");
    // An older epoch is not it.
    assert_eq!(rig.iommu.drained(Epoch::new(0)), Progress::Waiting, "T38");
    fence_waits(&rig, 1);
    // New translations go on, and are not waited for.
    assert_eq!(rig.address(read(&rig)), Err(13), "T38: the old one is not used for what begins now");
    let other = IOVA + 0x1000;
    table.map(other, PAGE, 0, LEAF);
    let later = rig.translate(Request::read(rig.device, Iova::new(other))).expect("mapped").epoch;
    assert!(later > epoch, "T38");
    let _ = rig.take_faults();
    rig.forget_accesses();
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
    assert_eq!(rig.read(reg::CQH), 2, "T38");
    assert_eq!(rig.memory.take_posts(), [(data, 7, Post::FenceData)], "T38, FEN-02");
}

#[test]
fn t38_what_a_fence_waits_for_is_what_was_handed_out_before_it() {
    // Commands before the fence, and whether it waits for a translation that was handed out.
    let fence = Iofence::PLAIN;
    let device = DeviceId::truncate(DEVICE);
    let cases = [
        (vec![], fence, false),
        (vec![], fence.accesses(true, false), true),
        (vec![], fence.accesses(false, true), true),
        (vec![Iotinval::ALL.vma()], fence, true),
        (vec![Iotinval::ALL.gvma()], fence, true),
        (vec![Iotinval::ALL.address(Iova::new(IOVA)).vma()], fence, true),
        (vec![inval_ddt(None)], fence, true),
        (vec![inval_ddt(Some(device))], fence, true),
        (vec![inval_pdt(device, ProcessId::truncate(0))], fence, true),
        // One fence waits, the next has nothing to wait for.
        (vec![fence.encode()], fence, false),
    ];
    for (commands, last, waits) in cases {
        let (mut rig, _) = counting();
        let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
        let count = commands.len();
        let progress = rig.run(commands.into_iter().chain([last.encode()]));
        let expected = if waits { Progress::Waiting } else { Progress::Idle };
        assert_eq!(progress, expected, "T38, VC-41, FEN-03, SWG-20: {count} commands, {last:?}");
        if waits {
            assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
        }
        assert_eq!(rig.read(reg::CQH), rig.read(reg::CQT), "T38");
    }
    // With nothing handed out there is nothing to wait for, and the host is not asked.
    let (mut rig, _) = counting();
    assert_eq!(rig.run([Iotinval::ALL.vma(), fence.accesses(true, true).encode()]), Progress::Idle, "T38");
    assert_eq!(rig.memory.take_drains(), [], "T38");
}

#[test]
fn t38_two_fences_wait_each_for_its_own() {
    let (mut rig, table) = counting();
    let first = rig.translate(read(&rig)).expect("mapped").epoch;
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting);
    table.map(IOVA, PAGE, 0, LEAF);
    let second = rig.translate(read(&rig)).expect("mapped").epoch;
    // The guest rings again with a second pair; it comes when the first is done.
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting);
    assert_eq!(rig.read(reg::CQH), 1, "T38");
    assert_eq!(rig.iommu.drained(first), Progress::Waiting, "T38");
    assert_eq!(rig.read(reg::CQH), 3, "T38: the second waits on its own");
    assert_eq!(rig.memory.take_drains(), [first, second], "T38");
    // What is not over is not believed to be done: the next fence asks for it.
    let third = rig.translate(read(&rig)).expect("mapped").epoch;
    assert!(third > second, "T38");
    assert_eq!(rig.iommu.drained(Epoch::new(u64::MAX)), Progress::Idle, "T38");
    assert_eq!(rig.read(reg::CQH), 4, "T38");
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting, "T38");
    assert_eq!(rig.memory.take_drains(), [third], "T38");
}

#[test]
fn t38_a_host_that_is_done_at_once_is_not_waited_for() {
    let memory = Memory::new();
    memory.answer_drain(Some(Completion::Done));
    let (mut rig, _) = in_memory::<8>(everything().with_synchronous_dma(false), memory);
    let _ = rig.memory.take_drains();
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    rig.forget_accesses();
    let data = rig.memory.allocate(1);
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.store(data, 1).encode()]), Progress::Idle, "T38");
    assert_eq!(rig.memory.take_drains(), [epoch], "T38: asked, before the store");
    assert_eq!(rig.memory.take_events(), [Event::Post(data, 1, Post::FenceData)], "T38");
}

#[test]
fn t38_synchronous_dma_is_done_when_the_vcpu_goes_on() {
    let (mut rig, _) = with_table::<8>(everything());
    let _ = rig.translate(read(&rig)).expect("mapped");
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.accesses(true, true).encode()]), Progress::Idle, "T38");
    assert_eq!(rig.read(reg::CQH), 2, "T38");
}

#[test]
fn t38_the_directory_is_busy_until_dma_with_the_old_one_is_done() {
    for mode in [0, 1] {
        let (mut rig, _) = counting();
        let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
        let ddtp = rig.directory.ddtp() & !0xf | mode;
        rig.write8(reg::DDTP, ddtp);
        assert_eq!(rig.iommu.progress(), Progress::Waiting, "T38, REG-DDTP-12: mode {mode}");
        assert_eq!(rig.read8(reg::DDTP) & reg::DDTP_BUSY, reg::DDTP_BUSY, "T38, REG-DDTP-12: mode {mode}");
        // A request that begins now is judged by the new one.
        let expected = if mode == 0 { Err(256) } else { Ok(IOVA) };
        assert_eq!(rig.address(read(&rig)), expected, "REG-DDTP-12, REG-DDTP-16, TR-02");
        assert_eq!(rig.memory.take_drains(), [epoch], "T38");
        assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
        assert_eq!(rig.read8(reg::DDTP) & reg::DDTP_BUSY, 0, "T38");
    }
}

#[test]
fn t38_a_reset_waits_for_dma() {
    let (mut rig, _) = counting();
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    assert_eq!(rig.iommu.reset(), Progress::Waiting, "T38: the guest does not run before it is Idle");
    assert_eq!(rig.iommu.run(), Progress::Waiting, "T38");
    assert_eq!(rig.memory.take_drains(), [epoch], "T38");
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
    // A fence that waited is forgotten with the reset: nothing is stored for it.
    let (mut rig, _) = counting();
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    let data = rig.memory.allocate(1);
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.store(data, 1).encode()]), Progress::Waiting);
    assert_eq!(rig.iommu.reset(), Progress::Waiting, "T38, VC-46");
    // What the fence waited for is not all that the reset waits for.
    assert_eq!(rig.iommu.drained(epoch), Progress::Waiting, "T38");
    assert_eq!(rig.iommu.drained(epoch.next()), Progress::Idle, "T38");
    assert_eq!(rig.memory.take_posts(), [], "VC-46");
    assert_eq!((rig.read(reg::CQH), rig.read(reg::CQCSR)), (0, 0), "REG-RST-07");
}

#[test]
fn t38_a_queue_that_is_turned_off_finishes_its_fence_first() {
    let (mut rig, _) = counting();
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting);
    rig.write(reg::CQCSR, 0);
    assert_eq!(rig.read(reg::CQCSR) & (reg::ON | reg::BUSY), reg::ON | reg::BUSY, "VC-46");
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
    assert_eq!((rig.read(reg::CQH), rig.read(reg::CQCSR) & (reg::ON | reg::BUSY)), (2, 0), "VC-46");
}

#[test]
fn t38_a_device_that_left_is_waited_for_still() {
    let (mut rig, _) = counting();
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    assert_eq!(rig.iommu.detach(DeviceId::truncate(DEVICE)), Ok(Progress::Idle));
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting, "T38");
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
}

#[test]
fn a_host_that_remembers_translations_is_told_what_to_forget() {
    let (mut rig, _) = with_table::<0>(everything());
    let _ = rig.memory.take_unmapped();
    let device = DeviceId::truncate(DEVICE);
    let page = Iotinval::ALL.address(Iova::new(IOVA)).pscid(PSCID);
    for (command, covers) in [
        (Iotinval::ALL.vma(), Covers::Everyone),
        (page.vma(), Covers::Page),
        (Iotinval::ALL.pscid(PSCID).vma(), Covers::Space),
        (Iotinval::ALL.gvma(), Covers::Everyone),
        (inval_ddt(Some(device)), Covers::Device),
        (inval_ddt(None), Covers::Everyone),
        (inval_pdt(device, ProcessId::truncate(3)), Covers::Device),
    ] {
        let _ = rig.run([command]);
        let told = rig.memory.take_unmapped();
        assert_eq!(told.len(), 1, "T38: {command:x?}");
        assert!(covers.is_in(&told[0]), "T38: {command:x?} is told as {:?}", told[0]);
    }
    // A fence tells nothing.
    let _ = rig.run([Iofence::PLAIN.encode()]);
    assert_eq!(rig.memory.take_unmapped(), []);
    // Another directory, or none: everything.
    rig.write8(reg::DDTP, 0);
    assert_eq!(rig.memory.take_unmapped(), [Invalidation::Everything], "T38");
    let _ = rig.iommu.reset();
    assert_eq!(rig.memory.take_unmapped(), [Invalidation::Everything], "T38");
    // A device that leaves, and one that is none of the emulated ones.
    let _ = rig
        .run([inval_ddt(Some(DeviceId::truncate(0x77))), inval_pdt(DeviceId::truncate(0x77), ProcessId::truncate(1))]);
    assert_eq!(rig.memory.take_unmapped(), [], "T03");
    let _ = rig.iommu.detach(device);
    assert_eq!(rig.memory.take_unmapped(), [Invalidation::Device(DeviceId::truncate(DEVICE))], "T38");
    // Without an emulated device there is no one to tell.
    let _ = rig.run([Iotinval::ALL.vma()]);
    assert_eq!(rig.memory.take_unmapped(), []);
}

/// What has to be forgotten at least.
#[derive(Clone, Copy, Debug)]
enum Covers {
    Everyone,
    Page,
    Space,
    Device,
}

impl Covers {
    /// More may be told (rule CA-15).
    fn is_in(self, told: &Invalidation<DeviceId>) -> bool {
        let page = Iova::new(IOVA);
        match (self, told) {
            (_, Invalidation::Everything | Invalidation::FirstStage) => true,
            (Self::Page, Invalidation::Pages(pages)) => {
                pages.first <= page && page <= pages.last && pages.pscid.is_none_or(|pscid| pscid == PSCID)
            }
            (Self::Page | Self::Space, Invalidation::AddressSpace(pscid)) => *pscid == PSCID,
            (Self::Device, Invalidation::Device(device)) => device.get() == DEVICE,
            _ => false,
        }
    }
}

#[test]
fn epochs_grow_and_all_of_one_are_drained_at_once() {
    let (mut rig, table) = counting();
    table.map(IOVA + 0x1000, PAGE + 0x1000, 0, pte::RW);
    let one = rig.translate(read(&rig)).expect("mapped").epoch;
    let two = rig.translate(Request::write(rig.device, Iova::new(IOVA + 0x1000))).expect("mapped").epoch;
    assert!(two >= one);
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting);
    let upto = rig.memory.take_drains();
    assert!(upto.len() == 1 && upto[0] >= two, "T38: all that were handed out");
    assert_eq!(Epoch::new(upto[0].get()), upto[0]);
    assert_eq!(rig.iommu.drained(upto[0]), Progress::Idle, "T38");
    // Nothing was handed out since, but the host may have used what it remembered.
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Waiting, "T38");
    assert_eq!(rig.memory.take_drains(), [upto[0].next()], "T38");
    assert_eq!(rig.iommu.drained(upto[0].next()), Progress::Idle, "T38");
    // A translation that failed is no DMA.
    let (mut rig, _) = counting();
    assert_eq!(rig.address(Request::read(rig.device, Iova::new(0x1000))), Err(13));
    assert_eq!(rig.run([Iotinval::ALL.vma(), Iofence::PLAIN.encode()]), Progress::Idle, "T38");
    assert_eq!(rig.memory.take_drains(), [], "T38");
}

#[test]
fn a_mapping_of_the_guest_s_own_is_where_it_says_whatever_is_there() {
    // The host is told an address: what is there is its own to know.
    let (mut rig, table) = with_table::<0>(everything());
    for at in [0, 0x1001_0000, 0xff_ffff_ffff_f000] {
        table.map(IOVA, at, 0, LEAF);
        let found = rig.translate(read(&rig)).expect("mapped");
        assert_eq!(found.target, Target::Memory(Gpa::new(at)), "TR-21, T07");
    }
}

#[test]
fn a_fault_after_a_completed_fence_is_recorded_again() {
    let (mut rig, table) = with_table::<0>(everything());
    let fence = Iofence::PLAIN.accesses(true, true).encode();
    for turn in 1..4 {
        table.unmap(IOVA, 0);
        assert_eq!(rig.run([Iotinval::ALL.vma(), fence]), Progress::Idle);
        // Twice: the second says what the first says, which is unread.
        assert_eq!([rig.address(read(&rig)), rig.address(read(&rig))], [Err(13); 2]);
        assert_eq!(rig.read(reg::FQT), turn, "FQ-07, FR-12");
        table.map(IOVA, PAGE, 0, LEAF);
        assert_eq!(rig.run([Iotinval::ALL.vma(), fence]), Progress::Idle);
        assert!(rig.address(read(&rig)).is_ok());
    }
    // So is one in a new directory.
    table.unmap(IOVA, 0);
    assert_eq!(rig.address(read(&rig)), Err(13));
    let ddtp = rig.directory.ddtp();
    rig.write8(reg::DDTP, 0);
    rig.write8(reg::DDTP, ddtp);
    assert_eq!(rig.address(read(&rig)), Err(13));
    assert_eq!(rig.read(reg::FQT), 5, "FQ-07");
}

#[test]
fn t38_a_shutdown_waits_for_dma() {
    let (mut rig, _) = counting();
    let epoch = rig.translate(read(&rig)).expect("mapped").epoch;
    let _ = rig.memory.take_unmapped();
    assert_eq!(rig.iommu.shutdown(), Progress::Waiting, "T38, T19");
    assert_eq!(rig.memory.take_unmapped(), [Invalidation::Everything], "T38");
    assert_eq!(rig.iommu.drained(epoch), Progress::Idle, "T38");
}

#[test]
fn t23_addresses_from_ats_are_taken_from_devices_that_were_granted_it() {
    let (mut rig, _) = with_table::<0>(everything());
    let id = DeviceId::truncate(0x99);
    let device = rig.iommu.attach_emulated(id, DevicePolicy::default()).expect("there is room");
    // V and EN_ATS.
    rig.directory.set(id, &[3]);
    for request in [Request::read(device, Iova::new(IOVA)), Request::write(device, Iova::new(IOVA))] {
        assert_eq!(rig.translate(request.translated()), Err(TranslateError::Unsupported), "T23");
        assert!(rig.translate(request).is_ok(), "T23: what it knows itself is its own");
    }
    assert_eq!(rig.take_faults(), [[0; 4]; 0]);
}

#[test]
fn tables_of_two_schemes_with_one_tag_are_each_used_as_what_they_are() {
    let mut rig = DmaRig::<16>::new(everything());
    let tables =
        [SecondStageMode::Sv48x4, SecondStageMode::Sv39x4].map(|mode| PageTable::second_stage(&rig.memory, mode));
    let ids = [DEVICE, 0x99].map(DeviceId::truncate);
    let other = rig.iommu.attach_emulated(ids[1], DevicePolicy::default()).expect("there is room");
    for (id, table) in ids.into_iter().zip(&tables) {
        rig.directory.set(id, &[1, table.iohgatp(Gscid::truncate(1))]);
        table.map(0x80_4000_4000, PAGE, 0, LEAF);
        table.map(0x80_0000_4000, PAGE, 0, LEAF);
    }
    for (device, address) in [(rig.device, 0x80_0000_4000), (other, 0x80_4000_4000)] {
        assert_eq!(rig.address(Request::read(device, Iova::new(address))), Ok(PAGE), "DC-18: either, and nothing else");
    }
}
