//! The queues of a guest whose devices are emulated: where their entries are, and what a command and a fence do to what
//! the vIOMMU remembers and to DMA that is under way.
//!
//! Rule IDs are those of the rules of queues and commands.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod nested_guest;

use dma_rig::{DEVICE, DmaRig, everything};
use nested_guest::{FILE, FILES, IOVA, MESSAGES, Nested, OUTPUT, PAGE, PROCESS};
use riscv_viommu::mock::guest::register::{
    CMD_TO, CQCSR, CQH, CQT, ENABLE, FQT, MEMORY_FAULT, ON, PQB, PQCSR, PQH, PQOF, PQT,
};
use riscv_viommu::mock::guest::{AtsCommand, Iofence, Iotinval, PageRequestRing, inval_ddt, inval_pdt};
use riscv_viommu::mock::tables::tc::{EN_ATS, EN_PRI, PDTV, V};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::mock::{Event, Memory};
use riscv_viommu::{
    Attachment, Completion, DeviceId, DeviceMessage, DevicePolicy, FirstStageMode, Gpa, Gscid, InvalidationCompletion,
    Iova, MemoryFault, PageRequest, Prgi, ProcessId, Progress, Pscid, Request, ResponseCode, SecondStageMode,
};

const PAGES: Gpa = Gpa::new(0x9200_0000);

fn plain() -> [u64; 2] {
    Iofence::PLAIN.encode()
}

fn page_request(number: u32) -> PageRequest {
    PageRequest::write(Iova::new(IOVA), Prgi::truncate(number))
}

/// A page-request queue of 2^`log2` entries that is on.
fn with_page_requests<const CACHE: usize>(rig: &mut DmaRig<CACHE>, log2: u8) {
    let mut requests = PageRequestRing::new(&rig.memory, log2, PAGES);
    rig.write8(PQB, requests.pqb());
    rig.write(PQCSR, ENABLE);
    assert_eq!(rig.read(PQCSR), ON | ENABLE);
    rig.forget_accesses();
}

// Where entries are.

#[test]
fn entries_of_commands_and_page_requests_have_16_bytes_and_records_32() {
    let mut nested = Nested::<0>::new(V | EN_ATS | EN_PRI);
    with_page_requests(&mut nested.rig, 3);
    // Each by itself, so that each is fetched by itself.
    for _ in 0..3 {
        let _ = nested.rig.run([plain()]);
    }
    let fetched: Vec<_> = nested.rig.memory.take_loads().into_iter().map(|(at, _)| at.get()).collect();
    // The queue is at 0x9000_0000.
    let bytes: Vec<_> = fetched.iter().map(|at| at - 0x9000_0000).collect();
    assert_eq!(bytes, [0, 16, 32], "REG-QB-05, Q-03");
    let mut stores = Vec::new();
    for number in 1..=3 {
        let iova = 0x7000_0000 + u64::from(number) * 0x1000;
        assert!(nested.rig.address(nested.read(iova)).is_err());
        assert_eq!(nested.rig.iommu.page_request(nested.rig.device, &page_request(number)), Ok(None));
    }
    for event in nested.rig.memory.take_events() {
        if let Event::Store(at, words) = event {
            stores.push((at.get(), words.len()));
        }
    }
    let (faults, pages): (Vec<_>, Vec<_>) = stores.into_iter().partition(|(at, _)| *at < PAGES.get());
    assert_eq!(faults, [0, 32, 64].map(|offset| (0x9100_0000 + offset, 4)), "REG-QB-05, Q-03");
    assert_eq!(pages, [0, 16, 32].map(|offset| (0x9200_0000 + offset, 2)), "REG-QB-05, Q-03");
}

#[test]
fn queues_are_not_behind_the_second_stage_of_any_device() {
    let mut nested = Nested::<0>::new(V | EN_ATS | EN_PRI);
    with_page_requests(&mut nested.rig, 3);
    // One that maps nothing, and then one that maps the queues somewhere else.
    let elsewhere = PageTable::second_stage(&nested.rig.memory, SecondStageMode::Sv39x4);
    for round in 0..2 {
        if round == 1 {
            elsewhere.map(0x8000_0000, 0x4_0000_0000, 2, pte::RW);
        }
        let mut context = nested.context(V | EN_ATS | EN_PRI);
        context[1] = elsewhere.iohgatp(Gscid::truncate(7));
        nested.rig.set_context(&context);
        let data = nested.rig.memory.allocate(1);
        let _ = nested.rig.run([inval_ddt(None), Iofence::PLAIN.store(data, 0x1234).encode()]);
        assert_eq!(nested.rig.read(CQH), nested.rig.read(CQT), "Q-07: commands");
        assert_eq!((nested.rig.read(CQCSR), nested.rig.memory.read(data)), (ON | ENABLE, 0x1234), "Q-07: fences");
        let (tail, pages) = (nested.rig.read(FQT), nested.rig.read(PQT));
        assert!(nested.rig.address(nested.read(IOVA)).is_err());
        assert_eq!((nested.rig.read(FQT), nested.rig.take_faults().len()), (tail + 1, 1), "Q-07: records");
        assert_eq!(nested.rig.iommu.page_request(nested.rig.device, &page_request(1)), Ok(None));
        assert_eq!(nested.rig.read(PQT), pages + 1, "Q-07: page requests");
    }
}

#[test]
fn the_errors_of_the_page_request_queue_keep_their_order() {
    // Two entries: full with one.
    let mut nested = Nested::<0>::new(V | EN_ATS | EN_PRI);
    with_page_requests(&mut nested.rig, 1);
    let answer = |nested: &mut Nested, number| {
        let response = nested.rig.iommu.page_request(nested.rig.device, &page_request(number)).expect("it has ATS");
        response.map(|response| response.code)
    };
    // First pqmf, then full.
    nested.rig.memory.fail_stores(PAGES, 32, MemoryFault::Access);
    assert_eq!(answer(&mut nested, 1), Some(ResponseCode::ResponseFailure), "PQ-19");
    nested.rig.write(PQH, 1);
    assert_eq!(answer(&mut nested, 2), Some(ResponseCode::ResponseFailure), "PQ-22, PQ-16");
    assert_eq!(nested.rig.read(PQCSR), ON | ENABLE | MEMORY_FAULT, "PQ-22: nor does it overflow");
    // The other way round: what overflowed is not stored to.
    nested.rig.write(PQCSR, ENABLE | MEMORY_FAULT);
    assert_eq!(answer(&mut nested, 3), Some(ResponseCode::Success), "PQ-18");
    nested.rig.write(PQH, 0);
    assert_eq!(answer(&mut nested, 4), Some(ResponseCode::Success), "PQ-17, PQ-22");
    assert_eq!(nested.rig.read(PQCSR), ON | ENABLE | PQOF, "PQ-22");
}

// What is remembered, and forgotten.

/// Two devices and their processes, all with tables of their own.
struct Processes {
    rig: DmaRig<64>,
    other: Attachment,
    /// By device and process.
    tables: [[PageTable; 2]; 2],
    directories: [ProcessDirectory; 2],
}

const OTHER: u32 = 0x12_0001;

impl Processes {
    /// Everything of theirs is remembered.
    fn new() -> Self {
        let mut rig = DmaRig::<64>::new(everything());
        let other = rig.iommu.attach_emulated(DeviceId::truncate(OTHER), DevicePolicy::default());
        let other = other.expect("there is room");
        let memory = rig.memory.clone();
        let tables = [(); 2].map(|()| [(); 2].map(|()| PageTable::first_stage(&memory, FirstStageMode::Sv39)));
        let directories = [(); 2].map(|()| ProcessDirectory::new(&memory, 1));
        let mut processes = Self { rig, other, tables, directories };
        for (device, id) in [DEVICE, OTHER].into_iter().enumerate() {
            for process in 0..2 {
                let table = &processes.tables[device][process];
                table.map(IOVA, Self::page(device, process), 0, pte::RW);
                // PSCIDs 1 to 4 in 31:12.
                let pscid = u64::try_from(1 + 2 * device + process).expect("small");
                let number = ProcessId::truncate(u32::try_from(process).expect("small"));
                processes.directories[device].set(number, [V | pscid << 12, table.iosatp()]);
            }
            let fsc = processes.directories[device].pdtp();
            processes.rig.directory.set(DeviceId::truncate(id), &[V | PDTV, 0, 0, fsc]);
        }
        let _ = processes.all_loads();
        assert_eq!(processes.all_loads(), [[NOTHING; 2]; 2], "everything is remembered");
        processes
    }

    fn page(device: usize, process: usize) -> u64 {
        let number = u64::try_from(2 * device + process).expect("small");
        OUTPUT + number * 0x1000
    }

    /// Whether a request reads the device's context, that of its process, and the process's tables.
    fn loads(&mut self, device: usize, process: usize) -> [bool; 3] {
        self.rig.forget_accesses();
        let attachment = if device == 0 { self.rig.device } else { self.other };
        let number = ProcessId::truncate(u32::try_from(process).expect("small"));
        let request = Request::read(attachment, Iova::new(IOVA)).with_process(number, false);
        assert_eq!(self.rig.address(request), Ok(Self::page(device, process)));
        let loads = self.rig.memory.take_loads();
        let id = DeviceId::truncate(if device == 0 { DEVICE } else { OTHER });
        let context = self.rig.directory.entry_address(id);
        let process_context = self.directories[device].entry_address(number);
        let leaf = self.tables[device][process].entry_address(IOVA, 0);
        [context, process_context, leaf].map(|at| loads.iter().any(|(load, _)| *load == at))
    }

    /// The same for every device and process.
    fn all_loads(&mut self) -> [[[bool; 3]; 2]; 2] {
        [0, 1].map(|device| [0, 1].map(|process| self.loads(device, process)))
    }

    fn run(&mut self, command: [u64; 2]) -> [[[bool; 3]; 2]; 2] {
        let _ = self.rig.run([command, plain()]);
        assert_eq!((self.rig.read(CQCSR), self.rig.read(CQH)), (ON | ENABLE, self.rig.read(CQT)));
        self.all_loads()
    }
}

const NOTHING: [bool; 3] = [false; 3];

#[test]
fn a_command_forgets_what_it_names_and_nothing_else() {
    let device = DeviceId::truncate(DEVICE);
    // Of the four requests the first reads the context of the device, and each that of its process.
    let found = Processes::new().run(inval_ddt(Some(device)));
    let (first, second) = ([true, true, false], [false, true, false]);
    assert_eq!(found, [[first, second], [NOTHING; 2]], "VC-09, VC-53, DIR-02, CA-11");
    let found = Processes::new().run(inval_ddt(None));
    assert_eq!(found, [[first, second], [first, second]], "VC-09, VC-53, DIR-01");
    let found = Processes::new().run(inval_pdt(device, ProcessId::truncate(1)));
    assert_eq!(found, [[NOTHING, second], [NOTHING; 2]], "VC-09, VC-62, DIR-03, DIR-05");
    let found = Processes::new().run(Iotinval::ALL.pscid(Pscid::truncate(2)).vma());
    let walked = [false, false, true];
    assert_eq!(found, [[NOTHING, walked], [NOTHING; 2]], "VC-09, CA-11");
    let found = Processes::new().run(Iotinval::ALL.vma());
    assert_eq!(found, [[walked; 2]; 2], "VC-09, CA-11");
    let found = Processes::new().run(Iotinval::ALL.gvma());
    assert_eq!(found, [[NOTHING; 2]; 2], "VC-09: none of them has a second stage");
}

#[test]
fn when_the_fence_is_passed_nothing_of_the_vm_is_remembered() {
    for gscid in [None, Some(Gscid::truncate(0x1234))] {
        let mut nested = Nested::<64>::new(V | EN_ATS | PDTV);
        let data = nested.read(IOVA).with_process(PROCESS, false);
        let message = nested.write(MESSAGES).with_process(PROCESS, false);
        assert_eq!([data, message].map(|request| nested.rig.address(request)), [Ok(OUTPUT), Ok(FILE)]);
        nested.second.map(PAGE, OUTPUT + 0x5000, 0, pte::RW);
        nested.rig.memory.write(nested.messages, (FILE + 0x5000) >> 2 | 7);
        let gvma = gscid.map_or(Iotinval::ALL, |gscid| Iotinval::ALL.gscid(gscid)).gvma();
        let _ = nested.rig.run([gvma, plain()]);
        assert_eq!((nested.rig.read(CQCSR), nested.rig.read(CQH)), (ON | ENABLE, 2));
        let found = [data, message].map(|request| nested.rig.address(request));
        assert_eq!(found, [Ok(OUTPUT + 0x5000), Ok(FILE + 0x5000)], "VC-81, VC-09, GVM-06");
    }
    // One page: that of the interrupt file.
    let mut nested = Nested::<64>::new(V | EN_ATS | PDTV);
    let message = nested.write(MESSAGES).with_process(PROCESS, false);
    assert_eq!(nested.rig.address(message), Ok(FILE));
    nested.rig.memory.write(nested.messages, (FILE + 0x5000) >> 2 | 7);
    let gvma = Iotinval::ALL.gscid(Gscid::truncate(0x1234)).address(Iova::new(FILES)).gvma();
    let _ = nested.rig.run([gvma, plain()]);
    assert_eq!(nested.rig.address(message), Ok(FILE + 0x5000), "VC-81, GVM-06");
}

#[test]
fn a_fence_waits_for_an_invalidation_until_it_is_completed_or_timed_out() {
    for times_out in [false, true] {
        let mut nested = Nested::<16>::new(V | EN_ATS);
        let inval = AtsCommand::to(0x3456).segment(0x12).inval(0x1234_5000);
        let _ = nested.rig.run([inval, plain()]);
        assert_eq!(nested.rig.read(CQH), 1, "VC-84: the command itself is passed");
        let (to, message) = nested.rig.iommu.next_message().expect("the device is told");
        let DeviceMessage::Invalidation(request) = message else { panic!("{message:?}") };
        for _ in 0..2 {
            let _ = nested.rig.iommu.run();
            assert_eq!((nested.rig.read(CQH), nested.rig.read(CQCSR)), (1, ON | ENABLE), "VC-84");
        }
        let progress = if times_out {
            nested.rig.iommu.ats_timeout(to, request.itag)
        } else {
            nested.rig.iommu.ats_completion(to, InvalidationCompletion::of(request.itag))
        };
        let expected = if times_out { (1, ON | ENABLE | CMD_TO) } else { (2, ON | ENABLE) };
        assert_eq!((nested.rig.read(CQH), nested.rig.read(CQCSR)), expected, "VC-84, CQ-14");
        assert_eq!(progress, Progress::Idle);
    }
}

// DMA that is under way.

#[test]
fn a_fence_that_orders_accesses_waits_for_dma_that_is_under_way() {
    for (reads, writes) in [(true, false), (false, true), (true, true)] {
        let memory = Memory::new();
        memory.answer_drain(Some(Completion::Pending));
        let mut rig = DmaRig::<16>::in_memory(everything().with_synchronous_dma(false), memory);
        rig.set_context(&[V]);
        let fence = Iofence::PLAIN.accesses(reads, writes).encode();
        // Nothing is under way.
        let _ = rig.run([fence]);
        assert_eq!(rig.read(CQH), 1, "SYNC-04: there is nothing to wait for");
        let _ = rig.memory.take_drains();
        let translation = rig.translate(Request::write(rig.device, Iova::new(0x8000))).expect("both stages are Bare");
        assert_eq!(rig.run([fence]), Progress::Waiting);
        assert_eq!((rig.read(CQH), rig.memory.take_drains()), (1, vec![translation.epoch]), "SYNC-04, CQ-10, SWG-20");
        // What comes later is not waited for, and neither is the wait over for it.
        let _ = rig.translate(Request::write(rig.device, Iova::new(0x9000)));
        let _ = rig.iommu.run();
        assert_eq!(rig.read(CQH), 1, "SYNC-04");
        let _ = rig.iommu.drained(translation.epoch);
        assert_eq!((rig.read(CQH), rig.read(CQCSR)), (2, ON | ENABLE), "SYNC-04, VC-41");
    }
    // A host whose DMA is done has nothing to wait for.
    let memory = Memory::new();
    memory.answer_drain(Some(Completion::Done));
    let mut rig = DmaRig::<0>::in_memory(everything().with_synchronous_dma(false), memory);
    rig.set_context(&[V]);
    let _ = rig.translate(Request::write(rig.device, Iova::new(0x8000)));
    let _ = rig.run([Iofence::PLAIN.accesses(true, true).encode()]);
    assert_eq!(rig.read(CQH), 1, "SYNC-04");
}
