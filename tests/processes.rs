//! Process directories: which requests have a process, which entry is theirs, and what its context makes of them.
//!
//! Every entry that fails is in `translate_faults`. Rule IDs are those of the rules of directories and translation.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a failure is a finding")]

mod dma_rig;

use dma_rig::{DEVICE, DmaRig, everything, head};
use riscv_viommu::mock::guest::inval_pdt;
use riscv_viommu::mock::tables::tc::{DPE, DTF, EN_ATS, GADE, PDTV, SADE, SXL};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::{
    Attachment, Capabilities, Config, DeviceId, FirstStageMode, Gpa, Gscid, Gxl, Iova, Pbmt, ProcessId, Request,
    SecondStageMode, TransactionType,
};

const V: u64 = 1;
// Bits of ta of a process context (PC-01 to PC-04).
const ENS: u64 = 1 << 1;
const SUM: u64 = 1 << 2;

const IOVA: u64 = 0x3f_8060_5abc;
/// What the pages of processes are mapped to.
const TO: u64 = 0x3_7654_3000;

/// The accesses of a device, with TTYP and with the causes of page and guest-page faults (ACC-03, ACC-04).
type Access = (fn(Attachment, Iova) -> Request, u64, [u16; 2]);
const ACCESSES: [Access; 3] =
    [(Request::execute, 1, [12, 20]), (Request::read, 2, [13, 21]), (Request::write, 3, [15, 23])];

fn process(pid: u32) -> ProcessId {
    ProcessId::new(pid).expect("20 bits")
}

/// A device with a process directory of so many levels, and no second stage.
struct World<const CACHE: usize = 0> {
    rig: DmaRig<CACHE>,
    processes: ProcessDirectory,
}

impl<const CACHE: usize> World<CACHE> {
    fn new(levels: u8, tc: u64) -> Self {
        Self::with_config(levels, tc, everything())
    }

    fn with_config(levels: u8, tc: u64, config: Config) -> Self {
        let rig = DmaRig::new(config);
        let processes = ProcessDirectory::new(&rig.memory, levels);
        rig.set_context(&[V | PDTV | tc, 0, 0, processes.pdtp()]);
        Self { rig, processes }
    }

    /// A process whose first stage maps `IOVA` to `TO` with these flags.
    fn map(&self, pid: u32, ta: u64, flags: u64) -> PageTable {
        let table = PageTable::first_stage(&self.rig.memory, FirstStageMode::Sv39);
        table.map(IOVA, TO, 0, flags);
        self.processes.set(process(pid), [ta, table.iosatp()]);
        table
    }

    fn read(&self) -> Request {
        Request::read(self.rig.device, Iova::new(IOVA))
    }

    fn read_of(&self, pid: u32) -> Request {
        self.read().with_process(process(pid), false)
    }
}

// Which requests have a process.

#[test]
fn a_process_is_found_where_its_id_says() {
    // Levels, process_id, and the entries on the way: from the root, and from each page an entry leads to.
    let cases: [(u8, u32, &[u64]); 5] = [
        (1, 0xff, &[0xff * 16]),
        (2, 0x1_2345, &[0x123 * 8, 0x45 * 16]),
        (2, 0x1_ffff, &[0x1ff * 8, 0xff * 16]),
        (3, 0xb_3456, &[5 * 8, 0x134 * 8, 0x56 * 16]),
        (3, 0xf_ffff, &[7 * 8, 0x1ff * 8, 0xff * 16]),
    ];
    for (levels, pid, offsets) in cases {
        let mut world = World::<0>::new(levels, 0);
        let table = PageTable::first_stage(&world.rig.memory, FirstStageMode::Sv39);
        table.map(IOVA, TO, 0, pte::RW);
        let (memory, mut at) = (&world.rig.memory, world.processes.root().get());
        let mut way = Vec::new();
        let (last, above) = offsets.split_last().expect("one at least");
        for offset in above {
            let below = memory.allocate(1).get();
            memory.write(Gpa::new(at + offset), below >> 12 << 10 | V);
            way.push((Gpa::new(at + offset), 1));
            at = below;
        }
        memory.write_words(Gpa::new(at + last), &[V, table.iosatp()]);
        way.push((Gpa::new(at + last), 2));
        world.rig.forget_accesses();
        let request = world.read_of(pid);
        assert_eq!(world.rig.address(request), Ok(TO | 0xabc), "PDT-01, PDT-02, PDT-05, DX-08, PC-06: {pid:#x}");
        let loads = world.rig.memory.take_loads();
        // After three entries of the device directory.
        assert_eq!(loads[3..3 + way.len()], way, "PDT-01, PDT-03, PDT-05, DX-08: {pid:#x}");
    }
}

#[test]
fn a_process_id_wider_than_the_directory_is_refused_unread() {
    let cases = [(1, 0xff, Some(0x100)), (2, 0x1_ffff, Some(0x2_0000)), (3, 0xf_ffff, None)];
    for (levels, widest, too_wide) in cases {
        let mut world = World::<0>::new(levels, EN_ATS);
        let _ = world.map(widest, V, pte::RW);
        // The low bits of a process_id that is too wide would find this one.
        let _ = world.map(0, V, pte::RW);
        let request = world.read_of(widest);
        assert_eq!(world.rig.address(request), Ok(TO | 0xabc), "TR-10, PDT-02");
        let Some(first) = too_wide else { continue };
        for pid in [first, 0x8_0000 | first, 0xf_ff00] {
            for (access, ttyp, _) in ACCESSES {
                for (request, ttyp) in [
                    (access(world.rig.device, Iova::new(IOVA)), ttyp),
                    (access(world.rig.device, Iova::new(IOVA)).translated(), ttyp + 4),
                ] {
                    world.rig.forget_accesses();
                    assert_eq!(world.rig.address(request.with_process(process(pid), true)), Err(260), "TR-10");
                    assert_eq!(world.rig.memory.take_loads().len(), 3, "TR-10: only the device directory was read");
                    let record = [head(260, ttyp, Some((pid, true))), 0, IOVA, 0];
                    assert_eq!(world.rig.take_fault(), record, "TR-10, FR-05");
                }
            }
        }
    }
}

#[test]
fn a_bare_directory_takes_every_process_and_gives_none_a_first_stage() {
    let mut world = World::<0>::new(1, 0);
    // MODE Bare; its page number means nothing (DCK-24).
    world.rig.set_context(&[V | PDTV, 0, 0, 0x0fff_ffff_ffff]);
    world.rig.forget_accesses();
    for pid in [0, 0x100, 0x2_0000, 0xf_ffff] {
        for privileged in [false, true] {
            let request =
                Request::write(world.rig.device, Iova::new(0x8765_4321)).with_process(process(pid), privileged);
            assert_eq!(world.rig.address(request), Ok(0x8765_4321), "TR-10, TR-15: no ENS is asked for");
            assert_eq!(world.rig.memory.take_loads().len(), 3, "PDT-16");
        }
    }
}

#[test]
fn without_a_directory_a_request_of_a_process_is_disallowed() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, TO, 0, pte::RW);
    for fsc in [0, table.iosatp()] {
        rig.set_context(&[V | EN_ATS, 0, 0, fsc]);
        for (access, ttyp, _) in ACCESSES {
            let request = access(rig.device, Iova::new(IOVA)).with_process(process(0), false);
            for (request, ttyp) in [(request, ttyp), (request.translated(), ttyp + 4)] {
                assert_eq!(rig.address(request), Err(260), "TR-09: even a translated one");
                assert_eq!(rig.take_fault(), [head(260, ttyp, Some((0, false))), 0, IOVA, 0], "TR-09, FR-05");
            }
        }
    }
}

#[test]
fn a_request_of_no_process_is_one_of_process_0_or_has_no_first_stage() {
    let mut world = World::<0>::new(3, 0);
    let _ = world.map(0, V | ENS | SUM, pte::RW & !pte::U);
    world.rig.forget_accesses();
    let request = world.read();
    assert_eq!(world.rig.address(request), Ok(IOVA), "TR-14: DPE = 0");
    assert_eq!(world.rig.memory.take_loads().len(), 3, "PDT-16, TR-14");
    // DPE = 1.
    world.rig.set_context(&[V | PDTV | DPE, 0, 0, world.processes.pdtp()]);
    let mut supervisors = request;
    supervisors.privileged = true;
    for request in [request, supervisors] {
        assert_eq!(world.rig.address(request), Err(13), "TR-14, ACC-02, DC-10: as a user");
        // PV = 0, for the process_id is not the request's own.
        assert_eq!(world.rig.take_fault(), [head(13, 2, None), 0, IOVA, 0], "TR-01, FR-05");
    }
    let _ = world.map(0, V, pte::RW);
    for request in [request, supervisors] {
        assert_eq!(world.rig.address(request), Ok(TO | 0xabc), "TR-14, ACC-02, DC-10: ENS is not asked for");
    }
    // Its directory is not there.
    world.rig.memory.write(world.processes.entry_address(process(0)), 0);
    assert_eq!(world.rig.address(request), Err(266), "TR-15, DC-10");
    assert_eq!(world.rig.take_fault(), [head(266, 2, None), 0, IOVA, 0], "TR-01, FR-05");
    // A request that names process 0 says so.
    let request = world.read_of(0);
    assert_eq!(world.rig.address(request), Err(266), "TR-15");
    assert_eq!(world.rig.take_fault(), [head(266, 2, Some((0, false))), 0, IOVA, 0], "FR-05");
}

#[test]
fn translated_requests_consult_no_directory() {
    for t2gpa in [false, true] {
        let mut world = World::<0>::new(2, EN_ATS);
        let second = PageTable::second_stage(&world.rig.memory, SecondStageMode::Sv39x4);
        second.map(0x1234_5000, TO, 0, pte::RW);
        let iohgatp = second.iohgatp(Gscid::truncate(1));
        let tc = V | PDTV | EN_ATS | if t2gpa { 1 << 3 } else { 0 };
        // An empty directory at a page that is not even mapped.
        world.rig.set_context(&[tc, iohgatp, 0, world.processes.pdtp()]);
        world.rig.forget_accesses();
        let request = Request::write(world.rig.device, Iova::new(0x1234_5678)).translated();
        let expected = if t2gpa { TO | 0x678 } else { 0x1234_5678 };
        for request in [request, request.with_process(process(0x1_2345), true)] {
            assert_eq!(world.rig.address(request), Ok(expected), "TR-11, TR-12, PDT-16");
            let loads = world.rig.memory.take_loads();
            assert_eq!(loads.len(), if t2gpa { 6 } else { 3 }, "TR-11, TR-12, PDT-16");
        }
    }
}

// What the process context says.

#[test]
fn supervisor_requests_have_to_be_enabled() {
    let mut world = World::<0>::new(2, 0);
    let table = world.map(5, V, pte::RW);
    let (user, supervisor) = (world.read_of(5), world.read().with_process(process(5), true));
    assert_eq!(world.rig.address(user), Ok(TO | 0xabc), "PC-02: of a user");
    assert_eq!(world.rig.address(supervisor), Err(260), "TR-16, PC-02");
    assert_eq!(world.rig.take_fault(), [head(260, 2, Some((5, true))), 0, IOVA, 0], "TR-16, FR-05");
    // Before the walk: its entries are not read, be they what they may.
    world.rig.memory.write(table.entry_address(IOVA, 2), 0);
    world.rig.forget_accesses();
    assert_eq!(world.rig.address(supervisor), Err(260), "TR-16");
    assert_eq!(world.rig.memory.take_loads().len(), 5, "TR-16");
    // After the context is found and checked.
    let at = world.processes.entry_address(process(5));
    for (ta, cause) in [(0, 266), (V | 1 << 3, 267), (V | 1 << 63, 267)] {
        world.rig.memory.write(at, ta);
        assert_eq!(world.rig.address(supervisor), Err(cause), "TR-16, PDT-08");
    }
    world.rig.memory.write(at, V);
    world.rig.memory.write(Gpa::new(at.get() + 8), 15 << 60);
    assert_eq!(world.rig.address(supervisor), Err(267), "TR-16, PCK-02");
    // A process without a first stage has privileges too.
    world.rig.memory.write(Gpa::new(at.get() + 8), 0);
    assert_eq!(world.rig.address(supervisor), Err(260), "TR-16: Bare");
    world.rig.memory.write(at, V | ENS);
    assert_eq!(world.rig.address(supervisor), Ok(IOVA), "TR-16, S1-01: Bare, and no U to look at");
}

#[test]
fn who_may_touch_whose_pages() {
    for user_page in [false, true] {
        for sum in [false, true] {
            for privileged in [false, true] {
                let mut world = World::<0>::new(1, 0);
                let flags = pte::RW & !pte::U | pte::X | if user_page { pte::U } else { 0 };
                let _ = world.map(5, V | ENS | if sum { SUM } else { 0 }, flags);
                for (access, ttyp, [page_fault, _]) in ACCESSES {
                    let request = access(world.rig.device, Iova::new(IOVA)).with_process(process(5), privileged);
                    let allowed = match (privileged, user_page) {
                        (false, _) => user_page,
                        (true, false) => true,
                        // Never an instruction fetch.
                        (true, true) => sum && ttyp != 1,
                    };
                    let expected = if allowed { Ok(TO | 0xabc) } else { Err(page_fault) };
                    let what = format!("PC-03, S1-11, TR-17: U {user_page}, SUM {sum}, PRIV {privileged}, TTYP {ttyp}");
                    assert_eq!(world.rig.address(request), expected, "{what}");
                    let record = [head(page_fault, ttyp, Some((5, privileged))), 0, IOVA, 0];
                    let records = if allowed { vec![] } else { vec![record] };
                    assert_eq!(world.rig.take_faults(), records, "FR-05: {what}");
                }
            }
        }
    }
}

#[test]
fn only_the_offered_modes_of_a_process_are_good() {
    let all = Capabilities::from_bits(u64::MAX).with_pas(56);
    let without: [(Capabilities, Option<(bool, u64)>); 5] = [
        (all, None),
        (all.with_sv57(false), Some((false, 10))),
        (all.with_sv57(false).with_sv48(false), Some((false, 9))),
        (all.with_sv57(false).with_sv48(false).with_sv39(false), Some((false, 8))),
        (all.with_sv32(false), Some((true, 8))),
    ];
    for (capabilities, missing) in without {
        for sxl in [false, true] {
            let config = everything().with_capabilities(capabilities).with_gxl(Gxl::Writable);
            let mut world = World::<0>::with_config(1, if sxl { SXL } else { 0 }, config);
            let mode_offered = |mode: u64| match (sxl, mode) {
                (_, 0) => true,
                (false, 8) => capabilities.sv39(),
                (false, 9) => capabilities.sv48(),
                (false, 10) => capabilities.sv57(),
                (true, 8) => capabilities.sv32(),
                _ => false,
            };
            if let Some((of_sxl, mode)) = missing {
                assert!(of_sxl != sxl || !mode_offered(mode), "this is what is missing");
            }
            for mode in 0..16 {
                // An empty table: a page fault says that it was walked.
                let root = world.rig.memory.allocate(1).get() >> 12;
                world.processes.set(process(7), [V, mode << 60 | root]);
                let request = Request::read(world.rig.device, Iova::new(0x1234_5678)).with_process(process(7), false);
                let expected = match (mode, mode_offered(mode)) {
                    (0, _) => Ok(0x1234_5678),
                    (_, true) => Err(13),
                    (_, false) => Err(267),
                };
                assert_eq!(world.rig.address(request), expected, "PCK-02, PCK-03, PCK-04, PC-06: {mode}, SXL {sxl}");
            }
        }
    }
}

#[test]
fn a_directory_that_is_not_offered_is_misconfigured() {
    let all = Capabilities::from_bits(u64::MAX).with_pas(56);
    for (levels, capabilities) in [(1, all.with_pd8(false)), (2, all.with_pd17(false)), (3, all.with_pd20(false))] {
        for other in 1..=3 {
            let mut world = World::<0>::with_config(other, 0, everything().with_capabilities(capabilities));
            let request = world.read_of(5);
            let cause = if other == levels { 259 } else { 266 };
            assert_eq!(world.rig.address(request), Err(cause), "DCK-08: PD level {other} without {levels}");
        }
    }
}

#[test]
fn what_the_device_context_says_holds_for_every_process() {
    // SADE: A and D are set in the tables of each (PC-07); the page sizes and types of each are its own.
    let mut world = World::<0>::new(2, SADE);
    let tables = [3, 0x1_0003].map(|pid| world.map(pid, V, pte::V | pte::R | pte::W | pte::U));
    for (pid, table) in [3, 0x1_0003].into_iter().zip(&tables) {
        let request = Request::write(world.rig.device, Iova::new(IOVA)).with_process(process(pid), false);
        assert_eq!(world.rig.address(request), Ok(TO | 0xabc), "PC-07");
        let expected = TO >> 12 << 10 | pte::RW;
        assert_eq!(table.get(IOVA, 0), expected, "PC-07, DC-09");
    }
    world.rig.set_context(&[V | PDTV, 0, 0, world.processes.pdtp()]);
    tables[0].map(IOVA, TO, 0, pte::RW & !pte::A);
    let request = world.read_of(3);
    assert_eq!(world.rig.address(request), Err(13), "PC-07, DC-09: SADE = 0");
}

#[test]
fn processes_have_translations_of_their_own() {
    // With and without a memory.
    fn check<const CACHE: usize>() {
        let mut world = World::<CACHE>::new(3, 0);
        for (pid, page) in [(1, 1), (2, 2), (0x2_0001, 3)] {
            let table = world.map(pid, V | u64::from(pid) << 12, pte::RW);
            table.map(IOVA, page << 12, 0, pte::RW | (page % 3) << 61);
        }
        for _ in 0..2 {
            for (pid, page) in [(1, 1), (2, 2), (0x2_0001, 3)] {
                let request = world.read_of(pid);
                let translation = world.rig.translate(request).expect("it is mapped");
                let memory_type = [Pbmt::Pma, Pbmt::Nc, Pbmt::Io][page % 3];
                assert_eq!(translation.memory_type, memory_type, "TR-17, PC-04");
                let address = u64::try_from(page << 12).expect("small") | 0xabc;
                assert_eq!(world.rig.address(request), Ok(address), "TR-17, PC-04");
            }
        }
    }
    check::<0>();
    check::<8>();
}

// Behind a second stage.

/// A device whose process directory is at `gpa`, behind a second stage that maps it, and whose one process has no first
/// stage and one page.
fn nested(gpa: u64, tc: u64) -> (World, PageTable, Gpa) {
    let world = World::<0>::with_config(1, 0, everything().with_gxl(Gxl::Writable));
    let root = world.processes.root();
    let second = PageTable::second_stage(&world.rig.memory, SecondStageMode::Sv39x4);
    // PD8.
    world.rig.set_context(&[V | PDTV | tc, second.iohgatp(Gscid::truncate(9)), 0, 1 << 60 | gpa >> 12]);
    world.processes.set(process(0x42), [V, 0]);
    second.map(gpa, root.get(), 0, pte::RW);
    second.map(0x5000, TO, 0, pte::RW | pte::X);
    (world, second, root)
}

const GPA: u64 = 0x1f_c000_7000;

#[test]
fn a_directory_is_read_as_a_user_whatever_the_device_wants() {
    let (mut world, second, root) = nested(GPA, 0);
    let entry = GPA + 0x42 * 16;
    // What the leaf of the directory's page has, and whether that is enough.
    let leaves = [
        (pte::V | pte::R | pte::U | pte::A, true),
        (pte::V | pte::R | pte::X | pte::U | pte::A, true),
        (pte::V | pte::R | pte::W | pte::U | pte::A, true),
        (pte::RW, true),
        (pte::V | pte::R | pte::A, false),
        (pte::V | pte::X | pte::U | pte::A, false),
        (pte::V | pte::W | pte::U | pte::A, false),
        (pte::V | pte::W | pte::X | pte::U | pte::A, false),
        (pte::V | pte::R | pte::U, false),
        (0, false),
    ];
    for (flags, enough) in leaves {
        second.map(GPA, root.get(), 0, flags);
        for (access, ttyp, [_, guest_page_fault]) in ACCESSES {
            let request = access(world.rig.device, Iova::new(0x5678)).with_process(process(0x42), false);
            let expected = if enough { Ok(TO | 0x678) } else { Err(guest_page_fault) };
            assert_eq!(world.rig.address(request), expected, "PDT-09, PDT-10, PDT-12: {flags:#x}");
            if !enough {
                let head = head(guest_page_fault, ttyp, Some((0x42, false)));
                assert_eq!(world.rig.take_fault(), [head, 0, 0x5678, entry | 1], "PDT-06, PDT-10, FR-08");
            }
        }
    }
}

#[test]
fn reading_a_directory_sets_a_and_leaves_d() {
    let (mut world, second, root) = nested(GPA, GADE);
    for flags in [pte::V | pte::R | pte::W | pte::U, pte::V | pte::R | pte::U] {
        second.map(GPA, root.get(), 0, flags);
        let request = Request::write(world.rig.device, Iova::new(0x5678)).with_process(process(0x42), false);
        assert_eq!(world.rig.address(request), Ok(TO | 0x678), "PDT-12");
        assert_eq!(second.get(GPA, 0), root.get() >> 2 | flags | pte::A, "PDT-09, PDT-12");
    }
}

#[test]
fn a_directory_past_the_guest_physical_width_is_a_guest_page_fault() {
    let cases = [
        // With Sv39x4 41 bits, whatever is mapped at what is left of the address.
        (GPA, 0, true),
        (1 << 41 | GPA, 0, false),
        (1 << 55 | GPA, 0, false),
        // With SXL 34 bits, with every scheme.
        (0x3_ffff_f000, SXL, true),
        (0x4_0000_0000, SXL, false),
        (GPA, SXL, false),
    ];
    for (gpa, sxl, good) in cases {
        let (mut world, ..) = nested(gpa, sxl);
        let request = Request::read(world.rig.device, Iova::new(0x5678)).with_process(process(0x42), false);
        let expected = if good { Ok(TO | 0x678) } else { Err(21) };
        assert_eq!(world.rig.address(request), expected, "S2-03, DC-14, PDT-10: {gpa:#x}");
        let record = [head(21, 2, Some((0x42, false))), 0, 0x5678, (gpa + 0x42 * 16) | 1];
        let records = if good { vec![] } else { vec![record] };
        assert_eq!(world.rig.take_faults(), records, "DC-14, PDT-06, FR-08");
    }
}

#[test]
fn a_directory_is_no_interrupt_file() {
    let (mut world, second, _) = nested(GPA, 0);
    let msi = world.rig.memory.allocate(1);
    // The directory's page matches: msiptp Flat, no bit masked (DC-27 to DC-29).
    let iohgatp = second.iohgatp(Gscid::truncate(9));
    let context = [V | PDTV, iohgatp, 0, 1 << 60 | GPA >> 12, 1 << 60 | msi.get() >> 12, 0, GPA >> 12];
    world.rig.set_context(&context);
    world.rig.forget_accesses();
    let request = Request::read(world.rig.device, Iova::new(0x5678)).with_process(process(0x42), false);
    assert_eq!(world.rig.address(request), Ok(TO | 0x678), "PDT-13, MSI-02");
    assert!(world.rig.memory.take_loads().iter().all(|(at, _)| at.get() & !0xfff != msi.get()), "PDT-13");
    // The device's own access to that page is one.
    let request = Request::read(world.rig.device, Iova::new(GPA)).with_process(process(0x42), false);
    assert_eq!(world.rig.address(request), Err(262), "TR-19: there is no valid entry");
}

// Told, and not told.

#[test]
fn dtf_holds_for_what_a_process_does_wrong() {
    let mut world = World::<0>::new(2, DTF);
    let _ = world.map(5, V, pte::RO);
    let write = Request::write(world.rig.device, Iova::new(IOVA));
    for (request, cause) in [
        (write.with_process(process(5), false), 15),
        (write.with_process(process(5), true), 260),
        (write.with_process(process(6), false), 266),
        (write.with_process(process(0x2_0000), false), 260),
    ] {
        assert_eq!(world.rig.address(request), Err(cause), "DC-05");
        assert_eq!(world.rig.take_faults(), [[0; 4]; 0], "DC-05, FR-03");
    }
}

#[test]
fn the_request_is_what_is_told_and_not_what_became_of_it() {
    let mut world = World::<0>::new(2, EN_ATS);
    let mut request = world.read_of(0x1_2345);
    request.privileged = true;
    assert_eq!(request.access, TransactionType::UntranslatedRead);
    assert_eq!(world.rig.address(request), Err(266), "PC-01");
    assert_eq!(world.rig.take_fault(), [head(266, 2, Some((0x1_2345, true))), 0, IOVA, 0], "TR-01, FR-05, FR-07");
}

// What is remembered.

#[test]
fn a_context_that_was_not_valid_is_not_remembered() {
    let mut world = World::<8>::new(3, 0);
    let request = world.read_of(0xb_3456);
    assert_eq!(world.rig.address(request), Err(266), "UPD-04: a non-leaf entry");
    let table = world.map(0xb_3456, 0, pte::RW);
    assert_eq!(world.rig.address(request), Err(266), "UPD-04: a context");
    world.processes.set(process(0xb_3456), [V, table.iosatp()]);
    assert_eq!(world.rig.address(request), Ok(TO | 0xabc), "UPD-04, CA-02: no command is needed");
}

#[test]
fn a_context_is_the_old_or_the_new_one_until_it_is_invalidated() {
    let mut world = World::<8>::new(2, 0);
    let _ = world.map(5, V, pte::RW);
    let request = world.read_of(5);
    assert_eq!(world.rig.address(request), Ok(TO | 0xabc));
    // The new one has no first stage: a change of one word (UPD-02).
    let at = world.processes.entry_address(process(5));
    world.rig.memory.write(Gpa::new(at.get() + 8), 0);
    let found = world.rig.address(request);
    assert!(found == Ok(TO | 0xabc) || found == Ok(IOVA), "UPD-03: {found:x?}");
    let device = DeviceId::truncate(DEVICE);
    let _ = world.rig.run([inval_pdt(device, process(5))]);
    assert_eq!(world.rig.address(request), Ok(IOVA), "UPD-02, UPD-03, DIR-03");
}

#[test]
fn of_two_tables_with_one_tag_either_may_be_used() {
    // PC-08 leaves it open which.
    let mut world = World::<8>::new(1, 0);
    let other = 0x1_2345_6000;
    let _ = world.map(1, V | 7 << 12, pte::RW);
    world.map(2, V | 7 << 12, pte::RW).map(IOVA, other, 0, pte::RW);
    for pid in [1, 2, 1] {
        let request = world.read_of(pid);
        let found = world.rig.address(request);
        assert!(found == Ok(TO | 0xabc) || found == Ok(other | 0xabc), "{found:x?}");
    }
}
