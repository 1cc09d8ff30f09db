//! The process to translate an IOVA: which requests get how far, and with which cause they end.
//!
//! Process directories are in `processes`, walks that fail in `translate_faults`. Rule IDs are those of the rules of
//! translation and directories.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a failure is a finding")]

mod dma_rig;

use dma_rig::{DEVICE, DmaRig, EXECUTE, READ, WRITE, everything, head, recorded};
use riscv_viommu::mock::guest::register::{DDTP, FQCSR, FQOF, IOMMU_QOSID};
use riscv_viommu::mock::guest::{Iofence, inval_ddt};
use riscv_viommu::mock::tables::tc::{DTF, EN_ATS, PDTV, SADE, SXL, T2GPA};
use riscv_viommu::mock::tables::{Directory, PageTable, ProcessDirectory, bare, pte};
use riscv_viommu::{
    Ats, AtsCompletion, AtsRequest, Attachment, Capabilities, DeviceId, DevicePolicy, FirstStageMode, Gpa, Gscid, Gxl,
    Iova, Pbmt, ProcessId, Request, SecondStageMode, Target, TransactionType, TranslateError, Width,
};

const IOVA: u64 = 0x20_0040_3000;

const V: u64 = 1;
/// `fctl.GXL`.
const GXL: u64 = 1 << 2;

fn process(pid: u32) -> ProcessId {
    ProcessId::new(pid).expect("20 bits")
}

fn all() -> Capabilities {
    Capabilities::from_bits(u64::MAX).with_pas(56)
}

/// Every request a device can make of this address, with its TTYP.
fn requests(device: Attachment, iova: u64) -> Vec<(Request, u64)> {
    let untranslated = [EXECUTE, READ, WRITE].map(|access| ((access.request)(device, Iova::new(iova)), access.ttyp));
    let translated = untranslated.map(|(request, ttyp)| (request.translated(), ttyp | 4));
    [untranslated, translated].concat()
}

fn ats<const CACHE: usize>(rig: &mut DmaRig<CACHE>, iova: u64) -> AtsCompletion {
    rig.iommu.ats_translate(&AtsRequest::new(rig.device, Iova::new(iova))).expect("there is an answer")
}

/// Changes the way to the directory, by way of Off (REG-DDTP-10).
fn set_ddtp<const CACHE: usize>(rig: &mut DmaRig<CACHE>, ddtp: u64) {
    rig.write8(DDTP, 0);
    rig.write8(DDTP, ddtp);
}

#[test]
fn a_mapped_page_is_translated_and_one_that_is_not_faults() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, 0x8765_4000, 0, pte::RW);
    rig.set_context(&[1, 0, 0, table.iosatp()]);
    let device = rig.device;
    assert_eq!(rig.address(Request::write(device, Iova::new(IOVA + 0x123))), Ok(0x8765_4123), "TR-13, TR-17, TR-18");
    assert_eq!(rig.take_faults(), [[0; 4]; 0]);
    assert_eq!(rig.address(Request::read(device, Iova::new(0x1234))), Err(13), "S1-09");
    // CAUSE 13, TTYP 2 in 39:34, DID in 63:40 (FR-01).
    assert_eq!(rig.take_fault(), [0x1234_5600_0000_000d | 2 << 34, 0, 0x1234, 0], "FR-07");
}

// Off and Bare.

#[test]
fn off_refuses_everything() {
    let mut rig = DmaRig::<0>::new(everything());
    // A context that would suppress it, which is not looked for.
    rig.set_context(&[V | EN_ATS | DTF]);
    rig.write8(DDTP, rig.directory.ddtp() & !0xf);
    rig.forget_accesses();
    for (request, ttyp) in requests(rig.device, IOVA) {
        for (request, who) in [(request, None), (request.with_process(process(0xabcde), true), Some((0xa_bcde, true)))]
        {
            assert_eq!(rig.address(request), Err(256), "TR-02");
            assert_eq!(rig.take_fault(), [head(256, ttyp, who), 0, IOVA, 0], "TR-02, FR-04, FR-05");
        }
    }
    assert_eq!(ats(&mut rig, IOVA), AtsCompletion::UnsupportedRequest, "TR-02, TR-24, ATS-19");
    assert_eq!(rig.take_fault(), [head(256, 8, None), 0, IOVA, 0], "TR-02, ACC-03");
    assert_eq!(rig.memory.take_loads(), [], "TR-02");
}

#[test]
fn bare_lets_untranslated_requests_pass_as_they_are() {
    let mut rig = DmaRig::<0>::new(everything().with_pas(36).with_qos_bits(12));
    rig.write8(DDTP, 1);
    rig.write(IOMMU_QOSID, 0xabc << 16 | 0x123);
    rig.forget_accesses();
    for iova in [0, IOVA, 1 << 36, 0x8000_0000_0000_0000, u64::MAX] {
        for access in [EXECUTE, READ, WRITE] {
            let request = (access.request)(rig.device, Iova::new(iova));
            for request in [request, request.with_process(process(0xf_ffff), true)] {
                let found = rig.translate(request).expect("there is nothing to refuse");
                assert_eq!(found.target, Target::Memory(Gpa::new(iova)), "TR-04, TR-21");
                let allowed = [found.permissions.read, found.permissions.write, found.permissions.execute];
                assert_eq!(allowed, [true; 3], "TR-04");
                assert_eq!(found.memory_type, Pbmt::Pma, "TR-04, PB-05");
                assert!(found.size >= 4096 && found.size.is_power_of_two(), "TR-04, SZ-01");
                assert_eq!((found.qos.rcid, found.qos.mcid), (0x123, 0xabc), "TR-04, QOS-01");
            }
        }
    }
    assert_eq!(rig.memory.take_loads(), [], "TR-04");
    assert_eq!(rig.take_faults(), [[0; 4]; 0], "TR-04");
}

#[test]
fn bare_takes_no_translated_requests() {
    let mut rig = DmaRig::<0>::new(everything());
    rig.set_context(&[V | EN_ATS | DTF]);
    rig.write8(DDTP, 1);
    rig.forget_accesses();
    for (request, ttyp) in requests(rig.device, IOVA).into_iter().filter(|(_, ttyp)| *ttyp > 4) {
        assert_eq!(rig.address(request.with_process(process(1), false)), Err(260), "TR-03");
        assert_eq!(rig.take_fault(), [head(260, ttyp, Some((1, false))), 0, IOVA, 0], "TR-03, FR-04");
    }
    assert_eq!(ats(&mut rig, IOVA), AtsCompletion::UnsupportedRequest, "TR-03, TR-24, ATS-19");
    assert_eq!(rig.take_fault(), [head(260, 8, None), 0, IOVA, 0], "TR-03");
    assert_eq!(rig.memory.take_loads(), [], "TR-03");
}

// The device context.

#[test]
fn a_device_id_wider_than_the_directory_is_refused_unread() {
    // Levels, format, the widest id, and ids that are too wide.
    let cases: [(u8, bool, u32, &[u32]); 6] = [
        (1, false, 0x7f, &[0x80, 0x1_0000, 0x80_0000]),
        (2, false, 0xffff, &[0x1_0000, 0x80_0000]),
        (3, false, 0xff_ffff, &[]),
        (1, true, 0x3f, &[0x40, 0x4000, 0x8000, 0x80_0000]),
        (2, true, 0x7fff, &[0x8000, 0x80_0000]),
        (3, true, 0xff_ffff, &[]),
    ];
    for (levels, extended, widest, too_wide) in cases {
        let mut rig = DmaRig::<0>::new(everything().with_capabilities(all().with_msi_flat(extended)));
        let directory = Directory::new(&rig.memory, levels, extended);
        directory.set(DeviceId::truncate(widest), &bare());
        directory.set(DeviceId::truncate(0), &[V | DTF]);
        set_ddtp(&mut rig, directory.ddtp());
        let attach = |rig: &mut DmaRig, id| {
            rig.iommu
                .attach_emulated(DeviceId::truncate(id), DevicePolicy::default().with_ats(Ats::PageRequests))
                .expect("it fits")
        };
        let device = attach(&mut rig, widest);
        let found = rig.address(Request::read(device, Iova::new(IOVA)));
        assert_eq!(found, Ok(IOVA), "TR-05, TR-06, DDT-04: {widest:#x} in {levels} levels");
        for &id in too_wide {
            let device = attach(&mut rig, id);
            rig.forget_accesses();
            for (request, ttyp) in requests(device, IOVA) {
                assert_eq!(rig.address(request), Err(260), "TR-06, DX-01: {id:#x} in {levels} levels");
                let record = [0x104 | recorded(ttyp, false) << 34 | u64::from(id) << 40, 0, IOVA, 0];
                assert_eq!(rig.take_fault(), record, "TR-06, FR-04: not located, so DTF = 0");
            }
            let answer = rig.iommu.ats_translate(&AtsRequest::new(device, Iova::new(IOVA)));
            assert_eq!(answer, Ok(AtsCompletion::UnsupportedRequest), "TR-06, TR-24");
            let _ = rig.take_fault();
            assert_eq!(rig.memory.take_loads(), [], "DDT-16");
        }
    }
}

#[test]
fn translated_and_ats_requests_have_to_be_enabled() {
    let mut rig = DmaRig::<0>::new(everything());
    for tc in [V, V | PDTV] {
        rig.set_context(&[tc]);
        for (request, ttyp) in requests(rig.device, IOVA) {
            let is_translated = ttyp > 4;
            let expected = if is_translated { Err(260) } else { Ok(IOVA) };
            assert_eq!(rig.address(request), expected, "TR-08, DC-02");
            let records = if is_translated { vec![[head(260, ttyp, None), 0, IOVA, 0]] } else { vec![] };
            assert_eq!(rig.take_faults(), records, "TR-08");
        }
        assert_eq!(ats(&mut rig, IOVA), AtsCompletion::UnsupportedRequest, "TR-08, TR-24, DC-02");
        assert_eq!(rig.take_fault(), [head(260, 8, None), 0, IOVA, 0], "TR-08");
    }
}

#[test]
fn a_translated_request_goes_where_it_says() {
    let mut rig = DmaRig::<0>::new(everything().with_qos_bits(12));
    let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let msi = rig.memory.allocate(1).get() >> 12;
    let qos = 0x456_u64 << 52 | 0x123 << 40;
    // Both stages are empty, and every address is one of an interrupt file.
    let iohgatp = second.iohgatp(Gscid::truncate(3));
    rig.set_context(&[V | EN_ATS, iohgatp, qos, first.iosatp(), 1 << 60 | msi, (1 << 47) - 1, 0, 0]);
    rig.forget_accesses();
    for (request, _) in requests(rig.device, IOVA).into_iter().filter(|(_, ttyp)| *ttyp > 4) {
        for iova in [IOVA, 0x123, u64::MAX] {
            let mut request = request;
            request.iova = Iova::new(iova);
            let found = rig.translate(request).expect("nothing is checked");
            assert_eq!(found.target, Target::Memory(Gpa::new(iova)), "TR-11");
            assert_eq!(found.memory_type, Pbmt::Pma, "TR-11, PB-05");
            assert_eq!((found.qos.rcid, found.qos.mcid), (0x123, 0x456), "QOS-02");
            assert_eq!(rig.memory.take_loads().len(), 3, "TR-11: the directory, and no table");
        }
        // But the checks of step 7 come first.
        assert_eq!(rig.address(request.with_process(process(1), false)), Err(260), "TR-09");
        rig.forget_accesses();
    }
}

#[test]
fn with_t2gpa_a_translated_request_goes_through_the_second_stage() {
    let mut rig = DmaRig::<0>::new(everything());
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv48x4);
    second.map(0x5000, 0x8765_4000, 0, pte::RW | pte::X | 1 << 61);
    let msi = rig.memory.allocate(1);
    // Entry 2 of the MSI page table: V, basic mode, to 0x28001000.
    rig.memory.write_words(Gpa::new(msi.get() | 0x20), &[0x2_8001 << 10 | 7, 0]);
    let iohgatp = second.iohgatp(Gscid::truncate(3));
    // An empty process directory, which is not consulted.
    let processes = ProcessDirectory::new(&rig.memory, 3);
    let msiptp = 1 << 60 | msi.get() >> 12;
    let tc = V | EN_ATS | T2GPA | PDTV;
    rig.set_context(&[tc, iohgatp, 0, processes.pdtp(), msiptp, 3, 0x1_2344]);
    for (request, _) in requests(rig.device, 0x5678).into_iter().filter(|(_, ttyp)| *ttyp > 4) {
        for request in [request, request.with_process(process(7), true)] {
            let found = rig.translate(request).expect("it is mapped");
            assert_eq!(found.target, Target::Memory(Gpa::new(0x8765_4678)), "TR-12");
            assert_eq!(found.memory_type, Pbmt::Nc, "TR-12, TR-20, PB-02");
        }
    }
    let message = Request::write(rig.device, Iova::new(0x1234_6008)).translated();
    let found = rig.translate(message).expect("it is valid");
    assert_eq!(found.target, Target::InterruptFile(Gpa::new(0x2800_1008)), "TR-12, TR-19");
    for (access, who) in [(EXECUTE, None), (READ, Some((7, true))), (WRITE, None)] {
        let request = (access.request)(rig.device, Iova::new(0x9abc)).translated();
        let request = who.map_or(request, |(pid, privileged)| request.with_process(process(pid), privileged));
        // Without a process_id a read to execute is a read (ACC-06).
        let cause = if access.ttyp == 1 { 21 } else { access.guest_page_fault };
        assert_eq!(rig.address(request), Err(cause), "TR-12, TR-20");
        let record = [head(cause, access.ttyp | 4, who), 0, 0x9abc, 0x9abc];
        assert_eq!(rig.take_fault(), record, "FR-05, FR-07, FR-08, S2-07");
    }
}

// What leaf entries have to allow.

/// R, W and X in any combination.
fn permissions() -> impl Iterator<Item = u64> {
    (0..8).map(|bits| bits << 1)
}

#[test]
fn an_access_needs_its_own_permission_of_each_stage() {
    for flags in permissions() {
        // W without R is reserved, XWR = 010 with it; no bit at all is no leaf.
        let good = flags & (pte::R | pte::W) != pte::W && flags != 0;
        for (access, needed) in [(EXECUTE, pte::X), (READ, pte::R), (WRITE, pte::W)] {
            for stage in [1, 2] {
                let mut rig = DmaRig::<0>::new(everything());
                let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
                let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
                let rest = pte::V | pte::U | pte::A | pte::D;
                let leaf = rest | flags;
                let (context, cause, iotval2) = if stage == 1 {
                    first.map(IOVA, 0x8765_4000, 0, leaf);
                    ([V, 0, 0, first.iosatp()], access.page_fault, 0)
                } else {
                    second.map(IOVA, 0x8765_4000, 0, leaf);
                    ([V, second.iohgatp(Gscid::truncate(1)), 0, 0], access.guest_page_fault, IOVA)
                };
                rig.set_context(&context);
                let what = format!("ACC-04, ACC-05, TR-23, stage {stage}: {flags:#x}");
                let allowed = good && flags & needed != 0;
                let expected = if allowed { Ok(0x8765_4000) } else { Err(cause) };
                assert_eq!(rig.address((access.request)(rig.device, Iova::new(IOVA))), expected, "{what}");
                let record = [head(cause, access.ttyp, None), 0, IOVA, iotval2];
                assert_eq!(rig.take_faults(), if allowed { vec![] } else { vec![record] }, "{what}");
            }
        }
    }
}

#[test]
fn a_translated_read_to_execute_needs_r_as_well() {
    for flags in permissions().filter(|flags| flags & (pte::R | pte::W) != pte::W && *flags != 0) {
        let mut rig = DmaRig::<0>::new(everything());
        let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
        second.map(0x5000, 0x8765_4000, 0, pte::V | pte::U | pte::A | pte::D | flags);
        rig.set_context(&[V | EN_ATS | T2GPA | PDTV, second.iohgatp(Gscid::truncate(1)), 0, 0]);
        let request = Request::execute(rig.device, Iova::new(0x5000)).translated();
        for (request, needed, cause) in
            [(request, pte::R, 21), (request.with_process(process(1), false), pte::R | pte::X, 20)]
        {
            let expected = if flags & needed == needed { Ok(0x8765_4000) } else { Err(cause) };
            assert_eq!(rig.address(request), expected, "ACC-06: {flags:#x}");
            if let Err(cause) = expected {
                let who = request.process.map(|pid| (pid.get(), false));
                assert_eq!(rig.take_fault(), [head(cause, 5, who), 0, 0x5000, 0x5000], "ACC-03, ACC-06");
            }
        }
    }
}

#[test]
fn without_a_process_id_a_request_is_one_of_a_user() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, 0x8765_4000, 0, pte::RW & !pte::U);
    rig.set_context(&[V, 0, 0, table.iosatp()]);
    let mut request = Request::read(rig.device, Iova::new(IOVA));
    for privileged in [false, true] {
        request.privileged = privileged;
        assert_eq!(rig.address(request), Err(13), "ACC-01, ACC-02, TR-13");
        assert_eq!(rig.take_fault(), [head(13, 2, None), 0, IOVA, 0], "ACC-02, FR-05: PRIV = 0");
    }
    table.map(IOVA, 0x8765_4000, 0, pte::RW);
    assert_eq!(rig.address(request), Ok(0x8765_4000), "ACC-02");
}

#[test]
fn an_access_is_split_at_the_ends_of_pages() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, 0x8765_4000, 0, pte::RW);
    table.map(IOVA + 0x1000, 0x8111_1000, 0, pte::RO);
    table.map(IOVA + 0x3000, 0x8222_2000, 0, pte::RW);
    rig.set_context(&[V, 0, 0, table.iosatp()]);
    let device = rig.device;
    let mut pieces = |request: Request| {
        let piece = |piece: Result<riscv_viommu::Translation, TranslateError>| match piece {
            Ok(found) => match found.target {
                Target::Memory(at) => Ok((at.get(), found.length)),
                other => panic!("{other:?}"),
            },
            Err(TranslateError::Fault(cause)) => Err(cause.code()),
            Err(error) => panic!("{error}"),
        };
        let found: Vec<_> = rig.iommu.pieces(request).map(piece).collect();
        let faults = rig.take_faults();
        (found, faults)
    };
    // Any address and length: the IOMMU asks for no alignment (ACC-09).
    let request = Request::read(device, Iova::new(IOVA + 0xffd)).with_length(7);
    let found = vec![Ok((0x8765_4ffd, 3)), Ok((0x8111_1000, 4))];
    assert_eq!(pieces(request), (found, vec![]), "ACC-08, ACC-09");
    // The first page that faults ends it, with its own address.
    let request = Request::write(device, Iova::new(IOVA + 0xffd)).with_length(0x3000);
    let record = [head(15, 3, None), 0, IOVA + 0x1000, 0];
    assert_eq!(pieces(request), (vec![Ok((0x8765_4ffd, 3)), Err(15)], vec![record]), "ACC-08");
    let request = Request::read(device, Iova::new(IOVA + 0xffd)).with_length(0x3000);
    let found = vec![Ok((0x8765_4ffd, 3)), Ok((0x8111_1000, 0x1000)), Err(13)];
    let record = [head(13, 2, None), 0, IOVA + 0x2000, 0];
    assert_eq!(pieces(request), (found, vec![record]), "ACC-08");
}

// The order of the checks.

#[test]
fn the_first_rule_that_fails_decides() {
    let mut rig = DmaRig::<0>::new(everything());
    let processes = ProcessDirectory::new(&rig.memory, 1);
    let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let (pages, table) = (processes.root(), first.root());
    let below = rig.memory.allocate(2);
    let iohgatp = second.iohgatp(Gscid::truncate(1));
    let request = Request::write(rig.device, Iova::new(IOVA)).with_process(process(0x42), true);
    let request_of_user = Request::write(rig.device, Iova::new(IOVA)).with_process(process(0x42), false);
    let translated = request.translated();
    let context = |tc| [V | tc, iohgatp, 0, processes.pdtp()];
    let step = |rig: &mut DmaRig, request: Request, expected: Result<u64, u16>, loads: usize, what: &str| {
        rig.forget_accesses();
        assert_eq!(rig.address(request), expected, "{what}");
        assert_eq!(rig.memory.take_loads().len(), loads, "{what}");
        let _ = rig.take_faults();
    };
    let rig = &mut rig;
    let ddtp = rig.directory.ddtp();
    // Everything is wrong; one thing after the other is mended.
    rig.write8(DDTP, 0);
    step(rig, translated, Err(256), 0, "TR-02");
    rig.write8(DDTP, 1);
    step(rig, translated, Err(260), 0, "TR-03");
    rig.write8(DDTP, ddtp);
    step(rig, translated, Err(258), 1, "TR-07, DDT-11");
    rig.set_context(&[0, 0, 0, 15 << 60]);
    step(rig, translated, Err(258), 3, "TR-07, DDT-12");
    rig.set_context(&[V, iohgatp | 1, 0, 15 << 60]);
    step(rig, translated, Err(259), 3, "TR-07, DDT-12");
    rig.set_context(&[V, iohgatp, 0, 0]);
    step(rig, translated, Err(260), 3, "TR-08, TR-09");
    rig.set_context(&[V | EN_ATS, iohgatp, 0, 0]);
    step(rig, translated, Err(260), 3, "TR-09");
    rig.set_context(&context(EN_ATS | PDTV));
    step(rig, translated, Ok(IOVA), 3, "TR-11");
    step(rig, request.with_process(process(0x142), true), Err(260), 3, "TR-10");
    // The second stage, of the process directory: three levels, of which the first is not valid.
    step(rig, request, Err(23), 4, "TR-15, PDT-07");
    second.map(pages.get(), pages.get(), 0, pte::RW);
    step(rig, request, Err(266), 7, "TR-15, PDT-08");
    processes.set(process(0x42), [V | 1 << 3, first.iosatp()]);
    step(rig, request, Err(267), 7, "TR-15, PDT-08");
    processes.set(process(0x42), [V, first.iosatp()]);
    step(rig, request, Err(260), 7, "TR-16");
    processes.set(process(0x42), [V | 2, first.iosatp()]);
    // The root of the first stage is in the same 2 MiB, but its page is not mapped.
    step(rig, request, Err(23), 10, "TR-18, S1-07");
    second.map(table.get(), table.get(), 0, pte::RW);
    step(rig, request, Err(15), 11, "TR-18, S1-09");
    for page in [below.get(), below.get() + 0x1000] {
        second.map(page, page, 0, pte::RW);
    }
    // A way down by hand, to a leaf of a user's page.
    rig.memory.write(first.entry_address(IOVA, 2), below.get() >> 2 | V);
    rig.memory.write(first.entry_address(IOVA, 1), (below.get() + 0x1000) >> 2 | V);
    first.map(IOVA, 0x12_3456_7000, 0, pte::RW);
    step(rig, request, Err(15), 19, "TR-18, S1-11: SUM = 0");
    step(rig, request_of_user, Err(23), 20, "TR-20, S2-07");
    second.map(0x12_3456_7000, 0x8765_4000, 0, pte::RO);
    step(rig, request_of_user, Err(23), 22, "TR-20, S2-06");
    second.map(0x12_3456_7000, 0x8765_4000, 0, pte::RW);
    step(rig, request_of_user, Ok(0x8765_4000), 22, "TR-20, TR-21");
}

#[test]
fn an_interrupt_file_takes_the_place_of_the_second_stage() {
    let mut rig = DmaRig::<0>::new(everything().with_qos_bits(12));
    let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let root = first.root().get();
    let first = first.below(root - 0x10_0000);
    first.map(IOVA, 0x2800_0000, 0, pte::RW | 2 << 61);
    // The tables of the first stage are at 0x100000 and up.
    for page in 0..16 {
        second.map(0x10_0000 + page * 0x1000, root + page * 0x1000, 0, pte::RW);
    }
    let msi = rig.memory.allocate(1);
    let context = |msiptp_mode: u64| {
        let iohgatp = second.iohgatp(Gscid::truncate(1));
        [V, iohgatp, 7 << 40, first.iosatp(), msiptp_mode << 60 | msi.get() >> 12, 0, 0x2_8000]
    };
    let request = Request::write(rig.device, Iova::new(IOVA + 4)).with_length(4);
    rig.set_context(&context(0));
    assert_eq!(rig.address(request), Err(23), "TR-19, DC-27: Off, so that mask and pattern mean nothing");
    rig.set_context(&context(1));
    assert_eq!(rig.address(request), Err(262), "TR-19");
    rig.memory.write_words(msi, &[0x3_2123 << 10 | 7, 0]);
    let found = rig.translate(request).expect("it is valid");
    assert_eq!(found.target, Target::InterruptFile(Gpa::new(0x3212_3004)), "TR-19");
    assert_eq!((found.memory_type, found.size), (Pbmt::Io, 4096), "PB-04, SZ-05");
    assert_eq!((found.qos.rcid, found.qos.mcid), (7, 0), "QOS-02");
}

// What a translation is told with.

#[test]
fn quality_of_service_ids_are_those_of_the_context() {
    for bits in [1, 4, 12] {
        let mut rig = DmaRig::<0>::new(everything().with_qos_bits(bits));
        let most = (1 << bits) - 1;
        for (rcid, mcid) in [(0, 0), (most, 0), (0, most), (1, most)] {
            rig.set_context(&[V, 0, rcid << 40 | mcid << 52, 0]);
            let found = rig.translate(Request::read(rig.device, Iova::new(IOVA))).expect("Bare");
            assert_eq!((found.qos.rcid.into(), found.qos.mcid.into()), (rcid, mcid), "QOS-02, TR-21, DC-22");
        }
        for bit in bits..12 {
            for ta in [1 << (40 + bit), 1 << (52 + bit)] {
                rig.set_context(&[V, 0, ta, 0]);
                let found = rig.address(Request::read(rig.device, Iova::new(IOVA)));
                assert_eq!(found, Err(259), "DCK-22: bit {bit} of {bits}");
            }
        }
    }
}

#[test]
fn without_qosid_there_are_no_ids() {
    let mut rig = DmaRig::<0>::new(everything());
    rig.write(IOMMU_QOSID, u64::from(u32::MAX));
    assert_eq!(rig.read(IOMMU_QOSID), 0, "QOS-03");
    for ta in (40..64).map(|bit| 1_u64 << bit) {
        rig.set_context(&[V, 0, ta, 0]);
        assert_eq!(rig.address(Request::read(rig.device, Iova::new(IOVA))), Err(259), "QOS-03, DCK-01, DC-22");
    }
    rig.write8(DDTP, 1);
    let found = rig.translate(Request::read(rig.device, Iova::new(IOVA))).expect("Bare");
    assert_eq!((found.qos.rcid, found.qos.mcid), (0, 0), "QOS-03");
    let mut rig = DmaRig::<0>::new(everything().with_qos_bits(12).with_reset_to_bare(true));
    assert_eq!(rig.read(IOMMU_QOSID) & 0xfff, 0, "QOS-03");
    let _ = rig.iommu.reset();
    assert_eq!(rig.read(IOMMU_QOSID) & 0xfff, 0, "QOS-03");
}

// RV32.

#[test]
fn sxl_follows_gxl_where_the_guest_can_not_choose() {
    let cases = [
        (Gxl::Zero, 0, [true, false]),
        (Gxl::One, 0, [false, true]),
        (Gxl::One, GXL, [false, true]),
        (Gxl::Writable, 0, [true, true]),
        (Gxl::Writable, GXL, [false, true]),
        // Not writable.
        (Gxl::Zero, GXL, [true, false]),
    ];
    for (policy, fctl, good) in cases {
        let mut rig = DmaRig::<0>::new(everything().with_gxl(policy));
        rig.write_fctl(fctl);
        for (sxl, good) in [0, SXL].into_iter().zip(good) {
            for pdtv in [0, PDTV] {
                rig.set_context(&[V | sxl | pdtv]);
                let expected = if good { Ok(IOVA) } else { Err(259) };
                let found = rig.address(Request::read(rig.device, Iova::new(IOVA)));
                assert_eq!(found, expected, "DCK-20, DC-12, REG-FCTL-09: {policy:?}, GXL {fctl}, SXL {sxl}");
            }
        }
    }
}

#[test]
fn modes_are_those_of_gxl_and_sxl() {
    let without: [Capabilities; 6] = [
        all(),
        all().with_sv57x4(false).with_sv57(false),
        all().with_sv57x4(false).with_sv48x4(false).with_sv57(false).with_sv48(false),
        all().with_sv57x4(false).with_sv48x4(false).with_sv39x4(false),
        all().with_sv32x4(false),
        all().with_sv32(false),
    ];
    for capabilities in without {
        for (fctl, sxl) in [(0, 0), (0, SXL), (GXL, SXL)] {
            let config = everything().with_capabilities(capabilities).with_gxl(Gxl::Writable);
            let mut rig = DmaRig::<0>::new(config);
            rig.set_fctl(fctl);
            // An empty table of 16 KiB: a fault of its stage says that it was walked.
            let root = rig.memory.allocate(4).get() >> 12;
            for mode in 0..16_u64 {
                let second = match (fctl, mode) {
                    (_, 0) => Ok(0x5000),
                    (0, 8) if capabilities.sv39x4() => Err(21),
                    (0, 9) if capabilities.sv48x4() => Err(21),
                    (0, 10) if capabilities.sv57x4() => Err(21),
                    (GXL, 8) if capabilities.sv32x4() => Err(21),
                    _ => Err(259),
                };
                rig.set_context(&[V | sxl, mode << 60 | root, 0, 0]);
                let found = rig.address(Request::read(rig.device, Iova::new(0x5000)));
                assert_eq!(found, second, "DCK-13, DCK-14, DCK-15, DC-19: mode {mode}, GXL {fctl}");
                let first = match (sxl, mode) {
                    (_, 0) => Ok(0x5000),
                    (0, 8) if capabilities.sv39() => Err(13),
                    (0, 9) if capabilities.sv48() => Err(13),
                    (0, 10) if capabilities.sv57() => Err(13),
                    (SXL, 8) if capabilities.sv32() => Err(13),
                    _ => Err(259),
                };
                rig.set_context(&[V | sxl, 0, 0, mode << 60 | root]);
                let found = rig.address(Request::read(rig.device, Iova::new(0x5000)));
                assert_eq!(found, first, "DCK-09, DCK-10, DCK-11, DC-24: mode {mode}, SXL {sxl}");
            }
        }
    }
}

#[test]
fn rv32_contexts_limit_their_addresses() {
    // GXL = 0, so that the second stage is Sv39x4, of 41 bits.
    let mut rig = DmaRig::<0>::new(everything().with_gxl(Gxl::Writable));
    let first = PageTable::first_stage(&rig.memory, FirstStageMode::Sv32);
    first.map(0xffff_f000, 0x3_0000_1000, 0, pte::RW);
    first.map(0x1000, 0x3_0000_2000, 0, pte::RW);
    rig.set_context(&[V | SXL, 0, 0, first.iosatp()]);
    let read = |rig: &mut DmaRig, iova| rig.address(Request::read(rig.device, Iova::new(iova)));
    assert_eq!(read(&mut rig, 0xffff_f123), Ok(0x3_0000_1123), "DC-13, S1-02");
    for iova in [0x1_0000_1000, 0xffff_ffff_ffff_f000, 0x8000_0000_0000_1000] {
        assert_eq!(read(&mut rig, iova), Err(13), "DC-13, S1-04: {iova:#x}");
    }
    // Bare: no limit but that of the second stage, if there is one.
    rig.set_context(&[V | SXL, 0, 0, 0]);
    assert_eq!(read(&mut rig, IOVA), Ok(IOVA), "DC-13, DC-14");
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    let iohgatp = second.iohgatp(Gscid::truncate(1));
    for page in [0x3_ffff_f000, 0x4_0000_0000, IOVA] {
        second.map(page, 0x8765_4000, 0, pte::RW);
        rig.set_context(&[V, iohgatp, 0, 0]);
        assert_eq!(read(&mut rig, page | 0x123), Ok(0x8765_4123), "DC-14: SXL = 0");
        rig.set_context(&[V | SXL, iohgatp, 0, 0]);
        let _ = rig.take_faults();
        if page >> 34 == 0 {
            assert_eq!(read(&mut rig, page | 0x123), Ok(0x8765_4123), "DC-14");
        } else {
            rig.forget_accesses();
            assert_eq!(read(&mut rig, page | 0x123), Err(21), "DC-14");
            assert_eq!(rig.memory.take_loads().len(), 3, "DC-14, S2-03: no entry is read");
            let iova = page | 0x123;
            assert_eq!(rig.take_fault(), [head(21, 2, None), 0, iova, iova & !3], "DC-14, FR-08");
        }
    }
    // The root of a first stage past the limit: an access of the walk itself.
    let root = 0x4_0000_0000 | first.root().get();
    second.map(root, first.root().get(), 0, pte::RW);
    rig.set_context(&[V | SXL, iohgatp, 0, 8 << 60 | root >> 12]);
    assert_eq!(read(&mut rig, 0x1000), Err(21), "DC-14, S1-07");
    assert_eq!(rig.take_fault()[3] & !0xffc, root | 1, "DC-14, FR-08");
}

// Told, and not told.

#[test]
fn dtf_suppresses_what_a_context_could_ask_to_suppress() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    rig.set_context(&[V | DTF, 0, 0, table.iosatp()]);
    for (request, ttyp) in requests(rig.device, IOVA) {
        let cause = if ttyp > 4 { 260 } else { [12, 13, 15][usize::try_from(ttyp).expect("small") - 1] };
        assert_eq!(rig.address(request), Err(cause), "DC-05: the device is told");
        assert_eq!(rig.take_faults(), [[0; 4]; 0], "DC-05, FR-03");
    }
    assert_eq!(ats(&mut rig, IOVA), AtsCompletion::UnsupportedRequest, "ATS-05");
    assert_eq!(rig.take_faults(), [[0; 4]; 0], "FR-03, ATS-05");
    for (context, cause) in [([V | DTF | 1 << 63], 259), ([DTF], 258)] {
        rig.set_context(&context);
        assert_eq!(rig.address(Request::read(rig.device, Iova::new(IOVA))), Err(cause), "FR-04");
        assert_eq!(rig.take_fault(), [head(cause, 2, None), 0, IOVA, 0], "FR-03, FR-04, FR-13");
    }
}

#[test]
fn a_suppressed_fault_does_not_fill_the_queue() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let fault = |rig: &mut DmaRig, page: u64| rig.address(Request::read(rig.device, Iova::new(page << 12)));
    rig.set_context(&[V, 0, 0, table.iosatp()]);
    // One entry of 256 stays free.
    for page in 0..255 {
        assert_eq!(fault(&mut rig, page), Err(13));
    }
    assert_eq!(rig.read(FQCSR) & FQOF, 0, "FR-10");
    rig.set_context(&[V | DTF, 0, 0, table.iosatp()]);
    assert_eq!(fault(&mut rig, 1000), Err(13));
    assert_eq!(rig.read(FQCSR) & FQOF, 0, "FR-09");
    rig.set_context(&[V, 0, 0, table.iosatp()]);
    assert_eq!(fault(&mut rig, 1001), Err(13), "FR-10: the device is told nevertheless");
    assert_eq!(rig.read(FQCSR) & FQOF, FQOF, "FR-10");
    let records = rig.take_faults();
    assert!(records.iter().map(|record| record[2]).eq((0..255).map(|page| page << 12)), "FR-10");
    // Until the guest has seen fqof, which it clears by writing 1, nothing is recorded.
    assert_eq!(fault(&mut rig, 1002), Err(13));
    assert_eq!(rig.take_faults(), [[0; 4]; 0], "FR-09");
    rig.write(FQCSR, FQOF | 1);
    assert_eq!(fault(&mut rig, 1003), Err(13));
    assert_eq!(rig.take_fault()[2], 1003 << 12, "FR-09");
    // A queue that is off.
    rig.write(FQCSR, 0);
    assert_eq!(fault(&mut rig, 1004), Err(13), "FR-09");
    assert_eq!(rig.read(FQCSR) & FQOF, 0, "FR-09");
}

#[test]
fn records_are_of_the_transaction() {
    let mut rig = DmaRig::<0>::new(everything());
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    // pdtp Bare: every request has the second stage only, which is empty.
    rig.set_context(&[V | EN_ATS | T2GPA | PDTV, second.iohgatp(Gscid::truncate(1)), 0, 0]);
    for (request, ttyp) in requests(rig.device, 0x1f_ffff_fffe) {
        for who in [None, Some((0, false)), Some((0xf_ffff, false)), Some((0x8_0001, true))] {
            let request = who.map_or(request, |(pid, privileged)| request.with_process(process(pid), privileged));
            let cause = match (ttyp, who) {
                (1, _) | (5, Some(_)) => 20,
                (3 | 7, _) => 23,
                _ => 21,
            };
            assert_eq!(rig.address(request), Err(cause), "ACC-04, ACC-06");
            let record = [head(cause, ttyp, who), 0, 0x1f_ffff_fffe, 0x1f_ffff_fffc];
            assert_eq!(rig.take_fault(), record, "ACC-03, FR-01, FR-02, FR-05, FR-07, FR-08");
        }
    }
}

#[test]
fn the_same_fault_is_told_at_least_once() {
    let mut rig = DmaRig::<0>::new(everything());
    rig.set_context(&[V, 0, 0, 8 << 60 | rig.memory.allocate(1).get() >> 12]);
    for _ in 0..3 {
        assert_eq!(rig.address(Request::read(rig.device, Iova::new(IOVA))), Err(13));
    }
    let records = rig.take_faults();
    assert!((1..=3).contains(&records.len()), "FR-12");
    assert!(records.iter().all(|record| *record == [head(13, 2, None), 0, IOVA, 0]), "FR-12");
}

// What changes meanwhile.

#[test]
fn entries_that_were_not_valid_are_not_remembered() {
    let mut rig = DmaRig::<8>::new(everything());
    let read = |rig: &mut DmaRig<8>| rig.address(Request::read(rig.device, Iova::new(IOVA)));
    assert_eq!(read(&mut rig), Err(258), "UPD-04");
    rig.set_context(&[0]);
    assert_eq!(read(&mut rig), Err(258), "UPD-04");
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    rig.set_context(&[V, 0, 0, table.iosatp()]);
    assert_eq!(read(&mut rig), Err(13), "UPD-04");
    table.map(IOVA, 0x8765_4000, 0, pte::RW);
    assert_eq!(read(&mut rig), Ok(0x8765_4000), "UPD-04: no command is needed");
}

#[test]
fn a_context_is_the_old_or_the_new_one_until_it_is_invalidated() {
    let mut rig = DmaRig::<8>::new(everything());
    let tables = [0x8111_1000, 0x8222_2000].map(|page| {
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        table.map(IOVA, page, 0, pte::RW);
        table
    });
    let read = |rig: &mut DmaRig<8>| rig.address(Request::read(rig.device, Iova::new(IOVA)));
    rig.set_context(&[V, 0, 1 << 12, tables[0].iosatp()]);
    assert_eq!(read(&mut rig), Ok(0x8111_1000));
    // Another address space, then.
    rig.set_context(&[V, 0, 2 << 12, tables[1].iosatp()]);
    let found = read(&mut rig);
    assert!(matches!(found, Ok(0x8111_1000 | 0x8222_2000)), "UPD-03: {found:x?}");
    let _ = rig.run([inval_ddt(Some(DeviceId::truncate(DEVICE))), Iofence::PLAIN.encode()]);
    assert_eq!(read(&mut rig), Ok(0x8222_2000), "UPD-02, UPD-03");
}

#[test]
fn what_is_read_once_is_judged_and_used() {
    let mut rig = DmaRig::<0>::new(everything());
    let tables = [0x8111_1000, 0x8222_2000].map(|page| {
        let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
        table.map(IOVA, page, 0, pte::RW);
        table
    });
    rig.set_context(&[V, 0, 0, tables[0].iosatp()]);
    let read = |rig: &mut DmaRig| rig.address(Request::read(rig.device, Iova::new(IOVA)));
    let fsc = Gpa::new(rig.directory.entry_address(DeviceId::truncate(DEVICE)).get() + 24);
    // Good, reserved, good: as many requests, as many verdicts.
    rig.memory.on_load(fsc, [tables[1].iosatp(), 15 << 60, tables[0].iosatp()]);
    let found = [read(&mut rig), read(&mut rig), read(&mut rig)];
    assert_eq!(found, [Ok(0x8222_2000), Err(259), Ok(0x8111_1000)], "DDT-17, VT-14");
    let leaf = tables[0].entry_address(IOVA, 0);
    rig.memory
        .on_load(leaf, [0x8_3333 << 10 | pte::RW, 0, 0x8_4444 << 10 | pte::RW | 1 << 54, 0x8_5555 << 10 | pte::RW]);
    let found = [read(&mut rig), read(&mut rig), read(&mut rig), read(&mut rig)];
    assert_eq!(found, [Ok(0x8333_3000), Err(13), Err(13), Ok(0x8555_5000)], "VT-14");
}

#[test]
fn an_entry_that_changes_again_and_again_ends_in_a_fault() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    let (leaf, flags) = (table.entry_address(IOVA, 0), pte::V | pte::R | pte::W | pte::U);
    rig.set_context(&[V | SADE, 0, 0, table.iosatp()]);
    // A bit of RSW, which means nothing, goes up and down under each update.
    let race = |times: u64| (0..times).map(|time| 0x8_7654 << 10 | flags | (time & 1) << 8).collect::<Vec<_>>();
    for (times, expected) in [(2, Ok(0x8765_4000)), (1000, Err(7))] {
        table.set(IOVA, 0, 0x8_7654 << 10 | flags | 1 << 8);
        rig.memory.on_exchange(leaf, race(times));
        rig.forget_accesses();
        assert_eq!(rig.address(Request::write(rig.device, Iova::new(IOVA))), expected, "VT-13, AD-03");
        assert!(rig.memory.take_loads().len() <= 56, "VT-13");
        let _ = rig.take_faults();
    }
}

// Containment.

#[test]
fn what_an_ats_answer_says_is_of_the_guests_own_space() {
    let mut rig = DmaRig::<0>::new(everything());
    let second = PageTable::second_stage(&rig.memory, SecondStageMode::Sv39x4);
    second.map(0x5000, 0x8765_4000, 0, pte::RW);
    for (tc, address) in [(V | EN_ATS, 0x8765_4000), (V | EN_ATS | T2GPA, 0x5000)] {
        rig.set_context(&[tc, second.iohgatp(Gscid::truncate(1)), 0, 0]);
        let AtsCompletion::Success(found) = ats(&mut rig, 0x5000) else { panic!("it is mapped") };
        assert_eq!((found.address, found.read, found.write), (address, true, true), "VT-09, DC-04");
        let AtsCompletion::Success(found) = ats(&mut rig, 0x6000) else { panic!("it is told by no permission") };
        assert_eq!((found.address, found.read, found.write), (0, false, false), "VT-09, ATS-04");
    }
    assert_eq!(rig.take_faults(), [[0; 4]; 0], "ATS-04");
}

#[test]
fn the_registers_are_little_endian_whatever_the_tables_are() {
    let mut rig = DmaRig::<0>::new(everything());
    let before = rig.read8(0);
    let ddtp = rig.read8(DDTP);
    rig.set_fctl(1);
    assert_eq!((rig.read8(0), rig.read8(DDTP)), (before, ddtp), "EDN-04");
    assert_eq!(rig.iommu.read(8, Width::U32) & 1, 1, "EDN-04");
}

#[test]
fn a_table_that_two_devices_read_in_different_orders_is_read_in_either() {
    let mut rig = DmaRig::<8>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, 0x8765_4000, 0, pte::RW);
    let other = rig.iommu.attach_emulated(DeviceId::truncate(1), DevicePolicy::default()).expect("there is room");
    rig.set_context(&[V, 0, 7 << 12, table.iosatp()]);
    // SBE; EDN-08 leaves it open which order counts.
    rig.directory.set(DeviceId::truncate(1), &[V | 1 << 10, 0, 7 << 12, table.iosatp()]);
    for device in [rig.device, other, rig.device] {
        let found = rig.address(Request::read(device, Iova::new(IOVA)));
        assert!(matches!(found, Ok(0x8765_4000) | Err(5 | 13)), "{found:x?}");
    }
}

// Transactions that are none.

#[test]
fn a_message_or_ats_request_is_not_translated_as_a_read_where_it_is_not_enabled() {
    let mut rig = DmaRig::<0>::new(everything());
    rig.set_context(&[V]);
    for ddtp in [0, 1, rig.directory.ddtp()] {
        set_ddtp(&mut rig, ddtp);
        for access in [TransactionType::AtsTranslationRequest, TransactionType::MessageRequest] {
            let mut request = Request::read(rig.device, Iova::new(IOVA));
            request.access = access;
            let found = rig.translate(request);
            assert!(found.is_err(), "TR-02, TR-03, TR-08, TR-22: {access:?} is {found:?}");
        }
    }
}

#[test]
fn only_reads_and_writes_are_translated_as_such() {
    let mut rig = DmaRig::<0>::new(everything());
    // EN_ATS, EN_PRI.
    rig.set_context(&[V | EN_ATS | 1 << 2]);
    for access in [TransactionType::AtsTranslationRequest, TransactionType::MessageRequest] {
        let mut request = Request::read(rig.device, Iova::new(IOVA));
        request.access = access;
        let found = rig.translate(request);
        assert!(found.is_err(), "TR-22: {access:?} is {found:?}");
    }
}
