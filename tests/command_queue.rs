//! The command queue, from the doorbell to the orders of the host and what the guest sees of them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use riscv_viommu::mock::guest::{CommandRing, Iofence, Iotinval, inval_ddt, inval_pdt, register};
use riscv_viommu::mock::tables::{self, Directory};
use riscv_viommu::mock::{Event, Hardware, Memory, Order, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    Capabilities, Config, DeviceId, DevicePolicy, FenceOutcome, FenceScope, FirstStageMode, Gpa, Gscid, InterruptKinds,
    Invalidation, Iova, MemoryFault, OrderError, Pages, Parts, Post, ProcessId, Progress, Pscid, VIommu, Width,
};

const NVME: PhysicalDevice = PhysicalDevice(0x77);
const DEVICE: u32 = 5;
const RING: Gpa = Gpa::new(0x4000_0000);
/// A page for what fences store.
const DATA: Gpa = Gpa::new(0x4100_0000);

/// `cqcsr` of a queue that is on, with interrupts.
const RUNNING: u64 = register::ENABLE | register::INTERRUPT_ENABLE | register::ON;
/// What a driver writes to clear an error: the queue stays as it is.
const CONTROL: u64 = register::ENABLE | register::INTERRUPT_ENABLE;
/// Bits of `fctl`.
const BE: u64 = 1;
const WSI: u64 = 1 << 1;
/// Opcode 0.
const ILLEGAL: [u64; 2] = [0, 0];

/// A guest whose command queue is on, and whose device is translated, so that invalidations have something to find.
struct Guest<const BATCH: usize = 16> {
    memory: Memory,
    physical: Physical,
    wires: Wires,
    iommu: VIommu<Parts<Memory, Wires, Physical>, 16, BATCH>,
    ring: CommandRing,
}

impl Guest {
    fn new() -> Self {
        Self::with(&Config::nested(), 8)
    }
}

impl<const BATCH: usize> Guest<BATCH> {
    fn with(config: &Config, log2_entries: u8) -> Self {
        Self::start(config, log2_entries, WSI)
    }

    fn start(config: &Config, log2_entries: u8, fctl: u64) -> Self {
        let memory = Memory::new();
        let physical = Hardware::default().vm(Gscid::new(7).unwrap(), &memory);
        let wires = Wires::new(InterruptKinds::Both).logging_to(&memory);
        let parts = Parts { memory: memory.clone(), interrupts: wires.clone(), physical: physical.clone() };
        let mut iommu = VIommu::new(parts);
        iommu.start(config).unwrap();
        let guest_order = if fctl & BE == 0 { memory.clone() } else { memory.big_endian() };
        let mut ring = CommandRing::new(&guest_order, log2_entries, RING);
        memory.map(DATA, 4096);
        let directory = Directory::new(&guest_order, 1, false);
        let device = DeviceId::new(DEVICE).unwrap();
        directory.set(device, &tables::first_stage(FirstStageMode::Sv39, memory.allocate(1), Pscid::new(1).unwrap()));
        let cqb = ring.cqb();
        let mut guest = Self { memory, physical, wires, iommu, ring };
        let _ = guest.write(register::FCTL, fctl);
        let _ = guest.iommu.attach(device, NVME, DevicePolicy::default()).unwrap();
        let _ = guest.iommu.write(register::DDTP, Width::U64, directory.ddtp());
        let _ = guest.iommu.write(register::CQB, Width::U64, cqb);
        let _ = guest.write(register::CQCSR, CONTROL);
        assert_eq!(guest.cqcsr(), RUNNING);
        guest.forget();
        guest
    }

    /// What happened so far is not what the test is about.
    fn forget(&self) {
        let _ = (self.memory.take_loads(), self.memory.take_events(), self.wires.take_changes());
        let _ = self.physical.take_orders();
    }

    fn read(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U32)
    }

    fn write(&mut self, offset: u64, value: u64) -> Progress {
        self.iommu.write(offset, Width::U32, value)
    }

    fn cqcsr(&self) -> u64 {
        self.read(register::CQCSR)
    }

    fn cqh(&self) -> u64 {
        self.read(register::CQH)
    }

    /// Puts commands into the queue and rings for them.
    fn ring(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> Progress {
        let tail = self.ring.push_all(commands);
        self.write(register::CQT, tail)
    }

    /// Writes another command over that at `index`.
    fn patch(&self, index: u32, command: [u64; 2]) {
        self.memory.write_words(self.ring.entry(index), &command);
    }

    /// Clears error bits.
    fn clear(&mut self, errors: u64) -> Progress {
        self.write(register::CQCSR, CONTROL | errors)
    }

    /// The invalidations and fences that were ordered; nothing else was.
    fn ordered(&self) -> (Vec<Vec<Invalidation<PhysicalDevice>>>, Vec<FenceScope>) {
        let (mut batches, mut fences) = (Vec::new(), Vec::new());
        for order in self.physical.take_orders() {
            match order {
                Order::Invalidate(batch, Ok(())) => batches.push(batch),
                Order::Fence(_, scope, Ok(_)) => fences.push(scope),
                other => panic!("{other:?}"),
            }
        }
        (batches, fences)
    }

    /// The orders a fence brings out.
    fn invalidated_by(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> Vec<Invalidation<PhysicalDevice>> {
        assert_eq!(self.ring(commands.into_iter().chain([fence()])), Progress::Idle);
        assert_eq!(self.cqcsr(), RUNNING);
        self.ordered().0.concat()
    }

    /// Ends the fence that is pending.
    fn end_fence(&mut self, outcome: FenceOutcome) -> Progress {
        let done = self.physical.complete_all();
        self.iommu.fence_done(*done.last().unwrap(), outcome)
    }

    /// What fences stored.
    fn posts(&self) -> Vec<(Gpa, u32)> {
        self.memory
            .take_posts()
            .into_iter()
            .map(|(at, data, why)| {
                assert_eq!(why, Post::FenceData);
                (at, data)
            })
            .collect()
    }
}

/// IOTINVAL.VMA of a page that touches no other one.
fn page(number: u64) -> [u64; 2] {
    Iotinval::ALL.address(Iova::new(number << 16)).vma()
}

/// What it becomes.
fn order(number: u64) -> Invalidation<PhysicalDevice> {
    pages(number << 16, number << 16, None, false)
}

fn pages(first: u64, last: u64, pscid: Option<u32>, non_leaf: bool) -> Invalidation<PhysicalDevice> {
    let mut pages = Pages::new(Iova::new(first), Iova::new(last), pscid.map(Pscid::truncate));
    pages.non_leaf = non_leaf;
    Invalidation::Pages(pages)
}

fn fence() -> [u64; 2] {
    Iofence::PLAIN.encode()
}

fn storing(at: Gpa) -> [u64; 2] {
    Iofence::PLAIN.store(at, 0x1122_3344).wsi().encode()
}

// Fetching.

#[test]
fn commands_are_fetched_in_order_around_the_ring() {
    let mut guest: Guest = Guest::with(&Config::nested(), 2);
    assert_eq!(guest.ring([page(1), page(2), page(3)]), Progress::Idle);
    assert_eq!((guest.cqh(), guest.memory.take_loads()), (3, vec![(RING, 6)]), "CQX-01, CQ-01, CQ-03");
    assert_eq!(guest.ring([page(4), fence()]), Progress::Idle);
    let loads = [(guest.ring.entry(3), 2), (guest.ring.entry(0), 2)];
    assert_eq!((guest.cqh(), guest.memory.take_loads()), (1, loads.to_vec()), "CQX-07, Q-04: no load wraps");
    assert_eq!(guest.ordered().0, [[order(1), order(2), order(3), order(4)]], "CQ-03, CQX-06");
}

#[test]
fn one_load_brings_up_to_sixteen_commands_of_one_page() {
    let mut guest: Guest = Guest::with(&Config::nested(), 10);
    let _ = guest.ring((0..250).map(page));
    guest.forget();
    let _ = guest.ring((0..30).map(page));
    let loads = [(guest.ring.entry(250), 12), (guest.ring.entry(256), 32), (guest.ring.entry(272), 16)];
    assert_eq!(guest.memory.take_loads(), loads, "CQX-01: each command once (T08)");
    assert_eq!(guest.cqh(), 280);
}

#[test]
fn a_tail_written_while_the_queue_is_off_is_run_when_it_is_turned_on() {
    let mut guest = Guest::new();
    assert_eq!(guest.write(register::CQCSR, 0), Progress::Idle);
    guest.forget();
    assert_eq!(guest.ring([page(1), page(2)]), Progress::Idle);
    assert_eq!((guest.cqh(), guest.memory.take_loads()), (0, vec![]), "CQX-02, CQ-02, REG-QI-09");
    assert_eq!(guest.write(register::CQCSR, CONTROL), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (2, RUNNING), "CQ-07");
    // Off and on again: the stale tail counts from index 0.
    let _ = guest.write(register::CQCSR, 0);
    let _ = guest.memory.take_loads();
    let _ = guest.write(register::CQCSR, CONTROL);
    assert_eq!((guest.cqh(), guest.memory.take_loads()), (2, vec![(RING, 4)]), "CQX-09, REG-CQCSR-20");
}

#[test]
fn a_queue_works_whatever_the_mode() {
    let mut guest = Guest::new();
    for ddtp in [0, 1] {
        let _ = guest.iommu.write(register::DDTP, Width::U64, ddtp);
        let wide = DeviceId::new(0xff_ffff).unwrap();
        assert_eq!(guest.ring([inval_ddt(Some(wide)), fence()]), Progress::Idle);
        assert_eq!((guest.cqcsr(), guest.cqh()), (RUNNING, guest.ring.tail().into()), "Q-08, CMD-13: mode {ddtp}");
    }
}

#[test]
fn a_big_endian_queue_is_read_and_answered_in_its_order() {
    let config = Config::nested().with_big_endian(true);
    let mut guest: Guest = Guest::start(&config, 8, WSI | BE);
    assert_eq!(guest.ring([page(1), storing(DATA)]), Progress::Idle);
    assert_eq!((guest.cqh(), guest.ordered().0), (2, vec![vec![order(1)]]), "CQ-01, END-06");
    assert_eq!(guest.posts(), [(DATA, 0x4433_2211)], "END-09, FEN-04");
    // The same words the other way round are no command.
    guest.patch(2, page(1));
    let _ = guest.write(register::CQT, 3);
    assert_eq!(guest.cqcsr(), RUNNING | register::CMD_ILL | register::FENCE_W_IP, "CQ-01");
}

#[test]
fn a_command_is_decided_on_one_copy() {
    let mut guest = Guest::new();
    let tail = guest.ring.push_all([page(1), fence()]);
    let [low, high] = page(1);
    guest.memory.on_load(guest.ring.entry(0), [low, 0]);
    guest.memory.on_load(Gpa::new(RING.get() + 8), [high, u64::MAX]);
    assert_eq!(guest.write(register::CQT, tail), Progress::Idle);
    assert_eq!((guest.cqcsr(), guest.ordered().0), (RUNNING, vec![vec![order(1)]]), "Q-11, VC-01, T08");
}

// What each command means to the host.

#[test]
fn every_invalidation_is_ordered_as_it_was_asked_for() {
    let mut guest = Guest::new();
    let all = Iotinval::ALL;
    let (at, space) = (Iova::new(0x1234_5678), Pscid::new(0xa_bcde).unwrap());
    let (first, whole) = (0x1234_5000, u64::MAX << 12);
    // AV = 1 with all ones in ADDR, and S.
    let ones = [0x401, 0x3fff_ffff_ffff_fe00];
    let cases = [
        ("VMA-01", all.vma(), Invalidation::FirstStage),
        ("VMA-02", all.pscid(space).vma(), Invalidation::AddressSpace(space)),
        ("VMA-03", all.address(at).vma(), pages(first, first, None, false)),
        ("VMA-04, VC-20, MRG-10", all.address(at).pscid(space).vma(), pages(first, first, Some(0xa_bcde), false)),
        ("VMA-13", all.address(at).non_leaf().vma(), pages(first, first, None, true)),
        ("VMA-14", all.range(at, 9).pscid(space).vma(), pages(0x1220_0000, 0x123f_f000, Some(0xa_bcde), false)),
        ("VMA-14", all.range(at, 1).non_leaf().vma(), pages(0x1234_4000, 0x1234_5000, None, true)),
        ("VMA-14", all.range(at, 52).vma(), pages(0, whole, None, false)),
        ("VMA-14, QCMD-14", ones, pages(0, whole, None, false)),
        ("DIR-02, VC-50", inval_ddt(Some(DeviceId::new(DEVICE).unwrap())), Invalidation::Device(NVME)),
        ("DIR-01, VC-52", inval_ddt(None), Invalidation::Device(NVME)),
    ];
    for (rule, command, order) in cases {
        assert_eq!(guest.invalidated_by([command]), [order], "{rule}");
    }
}

#[test]
fn what_concerns_nothing_there_is_passes_without_an_order() {
    let mut guest = Guest::new();
    let gscid = Gscid::new(7).unwrap();
    let all = Iotinval::ALL;
    let cases = [
        ("VC-22", all.gscid(gscid).vma()),
        ("VC-22", all.gscid(gscid).address(Iova::new(0x1000)).pscid(Pscid::new(1).unwrap()).vma()),
        ("VC-30, REG-CAP-50", all.gvma()),
        ("VC-30", all.gscid(gscid).address(Iova::new(0x1000)).gvma()),
        ("VC-11", inval_ddt(Some(DeviceId::new(0x7f).unwrap()))),
        ("VC-60", inval_pdt(DeviceId::new(DEVICE).unwrap(), ProcessId::new(0xff).unwrap())),
    ];
    for (rule, command) in cases {
        assert_eq!(guest.invalidated_by([command]), [], "{rule}: {command:x?}");
    }
}

#[test]
fn an_invalidation_of_translations_reads_no_directory_and_touches_no_context() {
    let mut guest = Guest::new();
    let _ = guest.ring([Iotinval::ALL.vma(), page(1), Iotinval::ALL.gvma(), fence()]);
    assert_eq!(guest.memory.take_loads(), [(RING, 8)], "QCMD-15, VMA-17");
    assert_eq!(guest.ordered(), (vec![vec![Invalidation::FirstStage]], vec![FenceScope::new(false, false)]));
}

#[test]
fn a_fence_asks_for_the_accesses_it_names() {
    let mut guest = Guest::new();
    for (reads, writes) in [(false, false), (true, false), (false, true), (true, true)] {
        let _ = guest.ring([Iofence::PLAIN.accesses(reads, writes).encode()]);
        assert_eq!(guest.ordered(), (vec![], vec![FenceScope::new(reads, writes)]), "FEN-03, CQ-10, VC-41");
    }
}

// Batching.

fn a_doorbell_with_64_pages_and_a_fence<const BATCH: usize>() -> usize {
    let mut guest: Guest<BATCH> = Guest::with(&Config::nested(), 8);
    assert_eq!(guest.ring((0..64).map(page).chain([fence()])), Progress::Idle);
    assert!(guest.memory.take_loads().len() <= 5, "ring reads");
    let (batches, fences) = guest.ordered();
    assert_eq!(batches.concat(), (0..64).map(order).collect::<Vec<_>>(), "VC-80, VC-25: exactly what was asked");
    assert_eq!(fences.len(), 1, "VC-40");
    batches.len()
}

#[test]
fn many_invalidations_go_out_together() {
    assert!((1..=4).contains(&a_doorbell_with_64_pages_and_a_fence::<16>()), "VC-06");
    assert_eq!(a_doorbell_with_64_pages_and_a_fence::<64>(), 1, "VC-06");
    assert_eq!(a_doorbell_with_64_pages_and_a_fence::<1>(), 64, "VC-06");
}

#[test]
fn adjacent_pages_become_one_range() {
    let mut guest = Guest::new();
    let adjacent = (0..64).map(|number| Iotinval::ALL.address(Iova::new(0x5000 + (number << 12))).vma());
    assert_eq!(guest.invalidated_by(adjacent), [pages(0x5000, 0x4_4000, None, false)], "VC-25");
}

#[test]
fn a_partial_batch_waits_over_doorbells_for_the_fence() {
    let mut guest = Guest::new();
    for number in 0..4 {
        let _ = guest.ring([page(number)]);
        assert_eq!(guest.cqh(), number + 1, "CQX-06, CQ-04, VC-06");
    }
    assert_eq!(guest.ordered(), (vec![], vec![]), "VC-06");
    guest.physical.set_pending(true);
    assert_eq!((guest.ring([fence()]), guest.cqh()), (Progress::Waiting, 4), "CQ-08: they are not complete");
    assert_eq!(guest.ordered().0, [[order(0), order(1), order(2), order(3)]], "FEN-01");
    assert_eq!((guest.end_fence(FenceOutcome::Complete), guest.cqh()), (Progress::Idle, 5), "CQ-08");
}

#[test]
fn a_partial_batch_goes_out_when_the_queue_is_turned_off() {
    let mut guest = Guest::new();
    let _ = guest.ring([page(1)]);
    let _ = guest.write(register::CQCSR, 0);
    assert_eq!((guest.cqcsr(), guest.ordered().0), (0, vec![vec![order(1)]]), "VC-06, CQ-22");
}

// Errors, and going on from them.

#[test]
fn an_illegal_command_has_no_effect_and_leaves_those_behind_it_alone() {
    let device = DeviceId::new(0x80).unwrap();
    let pid = ProcessId::new(0x100).unwrap();
    let [fence_low, _] = fence();
    let cases = [
        ("CMD-01, QCMD-08", ILLEGAL),
        ("CMD-01, QCMD-08", [0x005, 0]),
        ("CMD-01, QCMD-08", [0x101, 0]),
        ("CMD-01, QCMD-09", [0x040, 0]),
        ("CMD-02, CMD-04", [0x001 | 1 << 11, 0]),
        ("CMD-04", [0x401, 1 << 63]),
        ("CMD-06", [0x081 | 1 << 32, 0]),
        ("CMD-08", [fence_low | 1 << 14, 0]),
        ("CMD-08", [fence_low, 1 << 62]),
        ("CMD-10", [0x003, 1]),
        ("CMD-11", [0x003 | 1 << 12, 0]),
        ("CMD-12", [0x083, 0]),
        ("CMD-13, QCMD-11, DISC-Q04, DX-44", inval_ddt(Some(device))),
        ("CMD-13, QCMD-11", inval_pdt(device, ProcessId::new(0).unwrap())),
        ("CMD-14, QCMD-12", inval_pdt(DeviceId::new(DEVICE).unwrap(), pid)),
        ("CMD-15, QCMD-06", [0x004, 0]),
        ("CMD-15, QCMD-07", [0x084, 0]),
    ];
    // A guest without PD17 and PD20, so that a PASID can be too wide.
    let offer = Capabilities::new().with_sv39(true).with_pd8(true).with_nl(true).with_s(true).with_pas(56);
    for (rule, command) in cases {
        let mut guest: Guest = Guest::with(&Config::nested().with_capabilities(offer), 8);
        assert_eq!(guest.ring([page(1), command, Iotinval::ALL.vma(), storing(DATA)]), Progress::Idle);
        assert_eq!(guest.cqh(), 1, "CQX-04, CQ-11, VC-87, {rule}");
        assert_eq!(guest.cqcsr(), RUNNING | register::CMD_ILL, "{rule}");
        assert_eq!((guest.ordered(), guest.posts()), ((vec![], vec![]), vec![]), "T05, {rule}");
        assert_eq!(guest.wires.levels(), 1, "CQX-08, IRQ-02, {rule}");
        // Nothing makes it go on but the guest.
        guest.forget();
        assert_eq!((guest.iommu.run(), guest.ring([page(2)])), (Progress::Idle, Progress::Idle));
        assert_eq!((guest.cqh(), guest.memory.take_loads()), (1, vec![]), "CQX-02, CQ-02, CQ-16");
    }
}

#[test]
fn a_wire_signal_is_illegal_while_interrupts_are_messages() {
    let mut guest: Guest = Guest::start(&Config::nested(), 8, 0);
    let _ = guest.ring([Iofence::PLAIN.wsi().encode()]);
    assert_eq!((guest.cqh(), guest.cqcsr()), (0, RUNNING | register::CMD_ILL), "CMD-09, QCMD-03, IRQ-16");
}

#[test]
fn after_an_error_the_entry_at_the_head_is_fetched_again() {
    let mut guest = Guest::new();
    let _ = guest.ring([page(1), ILLEGAL, page(3), fence()]);
    // Still illegal: the error comes back, and its interrupt too.
    let _ = guest.clear(register::CMD_ILL);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING | register::CMD_ILL), "CQ-16");
    let _ = guest.write(register::IPSR, register::CIP);
    assert_eq!(guest.read(register::IPSR), register::CIP, "CQX-08, IRQ-05");
    // Patched in place.
    guest.patch(1, page(2));
    assert_eq!(guest.clear(register::CMD_ILL), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (4, RUNNING), "CQX-05, CQ-07, CQ-16, CQ-17");
    assert_eq!(guest.ordered().0, [[order(1), order(2), order(3)]], "CQ-11: each once");
    let _ = guest.write(register::IPSR, register::CIP);
    assert_eq!((guest.read(register::IPSR), guest.wires.levels()), (0, 0), "IRQ-04");
}

#[test]
fn the_tail_may_be_moved_back_to_an_illegal_command() {
    let mut guest = Guest::new();
    let _ = guest.ring([page(1), ILLEGAL, page(3)]);
    let _ = guest.write(register::CQT, 1);
    let _ = guest.clear(register::CMD_ILL);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING), "CQ-17, REG-QI-08");
    guest.patch(1, fence());
    let _ = guest.write(register::CQT, 2);
    assert_eq!((guest.cqh(), guest.ordered().0), (2, vec![vec![order(1)]]), "CQ-17");
}

#[test]
fn turning_the_queue_off_and_on_clears_its_errors() {
    let mut guest = Guest::new();
    let _ = guest.ring([storing(DATA), ILLEGAL]);
    assert_eq!(guest.cqcsr(), RUNNING | register::CMD_ILL | register::FENCE_W_IP);
    let _ = guest.write(register::CQCSR, 0);
    assert_eq!(guest.cqcsr(), register::CMD_ILL | register::FENCE_W_IP, "REG-CQCSR-21");
    let _ = guest.write(register::CQT, 0);
    let _ = guest.write(register::CQCSR, CONTROL);
    assert_eq!((guest.cqh(), guest.cqcsr()), (0, RUNNING), "CQX-09, CQ-17");
    guest.patch(0, page(1));
    let _ = guest.write(register::CQT, 1);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING), "CQ-17");
}

#[test]
fn a_command_that_can_not_be_read_stops_the_queue_right_at_it() {
    for fault in [MemoryFault::Access, MemoryFault::Corruption] {
        for unreadable in 0..16 {
            let mut guest = Guest::new();
            guest.memory.fail(Gpa::new(guest.ring.entry(unreadable).get() + 8), 8, fault);
            let number = u64::from(unreadable);
            assert_eq!(guest.ring((0..16).map(page)), Progress::Idle);
            assert_eq!(
                (guest.cqh(), guest.cqcsr()),
                (number, RUNNING | register::MEMORY_FAULT),
                "CQX-03, CQ-12, CQ-15"
            );
            assert_eq!(guest.wires.levels(), 1, "CQX-08");
            // Those before it are in the batch, and no other.
            guest.memory.clear_failures();
            guest.patch(unreadable, fence());
            assert_eq!(guest.clear(register::MEMORY_FAULT), Progress::Idle);
            let before: Vec<_> = (0..number).map(order).collect();
            assert_eq!((guest.cqh(), guest.ordered().0.concat()), (16, before), "CQ-16, CQ-12: command {number}");
        }
    }
}

#[test]
fn a_queue_where_there_is_no_memory_stops_at_once() {
    let mut guest = Guest::new();
    let _ = guest.write(register::CQCSR, 0);
    // LOG2SZ-1 is 7; the last page of 56 bits.
    let _ = guest.iommu.write(register::CQB, Width::U64, 0x003f_ffff_ffff_fc07);
    let _ = guest.write(register::CQCSR, CONTROL);
    assert_eq!(guest.write(register::CQT, 255), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (0, RUNNING | register::MEMORY_FAULT), "Q-06, CQ-12, T07");
}

#[test]
fn a_fence_that_can_not_store_is_not_complete() {
    let read_only = Gpa::new(DATA.get() + 0x100);
    let no_store = [
        ("T43", read_only),
        ("FEN-05", Gpa::new(0x5000_0000)),
        ("FEN-05: past PAS", Gpa::new(1 << 56)),
        ("DX-42", Gpa::new(1 << 62 | DATA.get())),
        ("DX-42", Gpa::new(1 << 63 | DATA.get())),
        ("FEN-05", Gpa::new(0xffff_ffff_ffff_fffc)),
    ];
    for (rule, at) in no_store {
        let mut guest = Guest::new();
        guest.memory.read_only(read_only, 4);
        assert_eq!(guest.ring([page(1), storing(at), page(2)]), Progress::Idle);
        assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING | register::MEMORY_FAULT), "CQ-13, {rule}");
        assert_eq!(guest.ordered(), (vec![vec![order(1)]], vec![FenceScope::new(false, false)]), "FEN-01, {rule}");
        assert_eq!(guest.memory.take_posts(), [], "{rule}");
        // The entry is patched and carried out as a whole, with a fence of its own.
        guest.patch(1, storing(DATA));
        assert_eq!(guest.clear(register::MEMORY_FAULT), Progress::Idle);
        assert_eq!((guest.cqh(), guest.cqcsr()), (3, RUNNING | register::FENCE_W_IP), "CQ-19, FEN-05, {rule}");
        assert_eq!(guest.posts(), [(DATA, 0x1122_3344)], "CQ-19, {rule}");
        assert_eq!(guest.ordered(), (vec![], vec![FenceScope::new(false, false)]), "CQ-19, {rule}");
    }
}

#[test]
fn a_fence_that_could_not_store_is_carried_out_again_unchanged() {
    let mut guest = Guest::new();
    guest.memory.fail_stores(DATA, 4, MemoryFault::Corruption);
    let _ = guest.ring([storing(DATA)]);
    for _ in 0..2 {
        assert_eq!((guest.cqh(), guest.cqcsr()), (0, RUNNING | register::MEMORY_FAULT), "CQ-15, CQ-16");
        let _ = guest.clear(register::MEMORY_FAULT);
    }
    guest.memory.clear_failures();
    let _ = guest.clear(register::MEMORY_FAULT);
    assert_eq!((guest.cqh(), guest.posts()), (1, vec![(DATA, 0x1122_3344)]), "CQ-19, VC-43");
    assert_eq!(guest.ordered().1.len(), 4, "CQ-19: PR and PW again, too");
}

#[test]
fn a_fence_stores_four_bytes_wherever_the_guest_may() {
    let mut guest = Guest::new();
    guest.memory.write(DATA, u64::MAX);
    guest.memory.interrupt_page(Gpa::new(0x2800_0000));
    // Either half of a word, an interrupt file, and the fence's own entry in its own queue.
    let own = guest.ring.entry(3);
    for at in [DATA, Gpa::new(DATA.get() + 12), Gpa::new(0x2800_0000), own] {
        let _ = guest.ring([storing(at)]);
        assert_eq!(guest.posts(), [(at, 0x1122_3344)], "FEN-04, CQ-26, T24");
    }
    assert_eq!((guest.cqh(), guest.cqcsr()), (4, RUNNING | register::FENCE_W_IP), "it is not fetched again");
    assert_eq!(guest.memory.read_words(DATA, 2), [0xffff_ffff_1122_3344, 0x1122_3344_0000_0000], "CQ-26");
    assert_eq!(guest.memory.read(own) & 0xffff_ffff, 0x1122_3344);
    // Bits 63:62 of the second word are reserved, so no address has bits 1:0 (CMD-08). Without AV none is looked at.
    let _ = guest.ring([[0x002 | 0x1122_3344 << 32, 0x3fff_ffff_ffff_ffff]]);
    assert_eq!((guest.cqh(), guest.posts()), (5, vec![]), "CQ-26");
}

// Fences that wait.

#[test]
fn the_store_the_head_and_the_wire_become_visible_in_this_order() {
    let mut guest: Guest = Guest::with(&Config::nested().with_mirror(true), 8);
    guest.physical.set_pending(true);
    assert_eq!(guest.ring([page(1), storing(DATA)]), Progress::Waiting);
    let cqh = |event: &Event| matches!(event, Event::Publish(32, 1));
    let events = guest.memory.take_events();
    assert!(events.iter().all(|event| matches!(event, Event::Publish(..))), "FEN-01, T01, T15: {events:?}");
    assert!(events.iter().any(cqh), "the head is on the fence");
    assert_eq!(guest.end_fence(FenceOutcome::Complete), Progress::Idle);
    let seen: Vec<Event> = guest.memory.take_events();
    assert_eq!(seen.first(), Some(&Event::Post(DATA, 0x1122_3344, Post::FenceData)), "VC-47, FEN-02");
    assert_eq!(seen.last(), Some(&Event::Wire(0, true)), "VC-47, IRQ-18, CQ-09");
    assert!(seen.contains(&Event::Publish(32, 2)) && seen.contains(&Event::Publish(84, 1)), "IRQ-18: {seen:?}");
}

#[test]
fn nothing_behind_a_waiting_fence_is_fetched_or_done() {
    let mut guest = Guest::new();
    guest.physical.set_pending(true);
    assert_eq!(guest.ring([page(1), storing(DATA), ILLEGAL, page(3), fence()]), Progress::Waiting);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING), "CQX-06, FEN-09");
    assert_eq!(guest.ordered(), (vec![vec![order(1)]], vec![FenceScope::new(false, false)]), "FEN-01");
    let _ = guest.memory.take_loads();
    for _ in 0..3 {
        assert_eq!(guest.iommu.run(), Progress::Waiting, "T20");
    }
    assert_eq!(guest.ring([page(5)]), Progress::Waiting);
    assert_eq!((guest.cqh(), guest.memory.take_loads(), guest.posts()), (1, vec![], vec![]), "FEN-09, T15");
    // Those behind it are read when their turn comes, whatever was read before.
    guest.patch(2, page(2));
    guest.physical.set_pending(false);
    assert_eq!(guest.end_fence(FenceOutcome::Complete), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (6, RUNNING | register::FENCE_W_IP), "FEN-09, CQ-07");
    assert_eq!((guest.posts(), guest.ordered().0), (vec![(DATA, 0x1122_3344)], vec![vec![order(2), order(3)]]));
}

#[test]
fn tickets_that_name_no_waiting_fence_complete_nothing() {
    let mut guest = Guest::new();
    let _ = guest.ring([fence()]);
    let old = guest.physical.take_orders().iter().find_map(ticket).unwrap();
    guest.physical.set_pending(true);
    let _ = guest.ring([storing(DATA)]);
    let waiting = guest.physical.take_orders().iter().find_map(ticket).unwrap();
    let unknown = riscv_viommu::Ticket::new(waiting.get() + 1);
    for wrong in [old, unknown, riscv_viommu::Ticket::new(0), riscv_viommu::Ticket::new(u64::MAX)] {
        assert_eq!(guest.iommu.fence_done(wrong, FenceOutcome::Complete), Progress::Waiting, "T15: {wrong:?}");
        assert_eq!((guest.cqh(), guest.posts()), (1, vec![]), "T15: {wrong:?}");
    }
    assert_eq!(guest.physical.complete_all(), [waiting]);
    assert_eq!(guest.iommu.fence_done(waiting, FenceOutcome::Complete), Progress::Idle);
    assert_eq!((guest.cqh(), guest.posts().len()), (2, 1));
    assert_eq!(guest.iommu.fence_done(waiting, FenceOutcome::AtsTimeout), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (2, RUNNING | register::FENCE_W_IP), "once");
}

fn ticket(order: &Order) -> Option<riscv_viommu::Ticket> {
    match order {
        Order::Fence(ticket, ..) => Some(*ticket),
        _ => None,
    }
}

#[test]
fn a_queue_that_is_turned_off_ends_its_waiting_fence_first() {
    for (outcome, status, cqh, posts) in [
        (FenceOutcome::Complete, register::FENCE_W_IP, 2, vec![(DATA, 0x1122_3344)]),
        (FenceOutcome::AtsTimeout, register::CMD_TO, 1, vec![]),
    ] {
        let mut guest = Guest::new();
        guest.physical.set_pending(true);
        let _ = guest.ring([page(1), storing(DATA), page(2), ILLEGAL]);
        assert_eq!(guest.write(register::CQCSR, register::INTERRUPT_ENABLE), Progress::Waiting);
        let leaving = register::INTERRUPT_ENABLE | register::ON | register::BUSY;
        assert_eq!((guest.cqcsr(), guest.cqh()), (leaving, 1), "CQX-09, FEN-09, REG-CQCSR-22");
        // Nothing written meanwhile counts: neither to cqcsr nor to cqb.
        for csr in [0, CONTROL, CONTROL | register::FENCE_W_IP] {
            let _ = guest.write(register::CQCSR, csr);
            assert_eq!(guest.cqcsr(), leaving, "REG-CQCSR-23");
        }
        let cqb = guest.iommu.read(register::CQB, Width::U64);
        let _ = guest.iommu.write(register::CQB, Width::U64, 0);
        assert_eq!(guest.iommu.read(register::CQB, Width::U64), cqb, "REG-QB-07");
        assert_eq!(guest.end_fence(outcome), Progress::Idle);
        assert_eq!((guest.cqcsr(), guest.cqh()), (register::INTERRUPT_ENABLE | status, cqh), "VC-46, REG-CQCSR-22");
        assert_eq!(guest.posts(), posts, "VC-46");
        // What is behind it is lost, as the head starts over (REG-CQCSR-27).
        assert_eq!(guest.ordered().0, [[order(1)]], "SYNC-05");
    }
}

#[test]
fn a_reset_forgets_the_waiting_fence() {
    let mut guest = Guest::new();
    guest.physical.set_pending(true);
    let _ = guest.ring([storing(DATA)]);
    let waiting = guest.physical.take_orders().iter().find_map(ticket).unwrap();
    guest.physical.set_pending(false);
    assert_eq!(guest.iommu.reset(), Progress::Idle);
    let _ = guest.iommu.fence_done(waiting, FenceOutcome::Complete);
    assert_eq!((guest.cqh(), guest.cqcsr(), guest.posts()), (0, 0, vec![]), "VC-46");
}

#[test]
fn a_timeout_from_before_a_reset_is_not_told_after_it() {
    let mut guest = Guest::new();
    let ddtp = guest.iommu.read(register::DDTP, Width::U64);
    let cqb = guest.iommu.read(register::CQB, Width::U64);
    guest.physical.set_pending(true);
    let _ = guest.ring([storing(DATA)]);
    assert_eq!(guest.iommu.reset(), Progress::Waiting);
    // The physical fence of the reset covers what the guest had ordered before it.
    assert_eq!(guest.end_fence(FenceOutcome::AtsTimeout), Progress::Idle);
    guest.physical.set_pending(false);
    let _ = guest.iommu.write(register::DDTP, Width::U64, ddtp);
    let _ = guest.iommu.write(register::CQB, Width::U64, cqb);
    let _ = guest.write(register::CQCSR, CONTROL);
    guest.patch(0, fence());
    assert_eq!(guest.write(register::CQT, 1), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING), "VC-46, CQ-23");
}

/// A guest whose IOMMU was reset and runs again.
fn reset(guest: &mut Guest) {
    let ddtp = guest.iommu.read(register::DDTP, Width::U64);
    let cqb = guest.iommu.read(register::CQB, Width::U64);
    let _ = guest.iommu.reset();
    let _ = guest.iommu.write(register::DDTP, Width::U64, ddtp);
    let _ = guest.iommu.write(register::CQB, Width::U64, cqb);
    let _ = guest.write(register::CQCSR, CONTROL);
}

#[test]
fn a_timeout_after_a_reset_is_told() {
    let mut guest = Guest::new();
    reset(&mut guest);
    guest.physical.set_pending(true);
    guest.patch(0, fence());
    assert_eq!(guest.write(register::CQT, 1), Progress::Waiting);
    assert_eq!(guest.end_fence(FenceOutcome::AtsTimeout), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (0, RUNNING | register::CMD_TO), "FEN-07");
}

#[test]
fn a_timeout_that_no_fence_has_told_is_forgotten_by_a_reset() {
    let mut guest = Guest::new();
    let ddtp = guest.iommu.read(register::DDTP, Width::U64);
    guest.physical.set_pending(true);
    assert_eq!(guest.iommu.write(register::DDTP, Width::U64, 0), Progress::Waiting);
    assert_eq!(guest.end_fence(FenceOutcome::AtsTimeout), Progress::Idle);
    guest.physical.set_pending(false);
    let _ = guest.iommu.write(register::DDTP, Width::U64, ddtp);
    reset(&mut guest);
    guest.patch(0, fence());
    assert_eq!(guest.write(register::CQT, 1), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING), "REG-RST-07");
}

#[test]
fn a_timeout_is_told_by_the_fence_once() {
    let mut guest = Guest::new();
    guest.physical.set_pending(true);
    let _ = guest.ring([page(1), storing(DATA), page(2)]);
    assert_eq!(guest.end_fence(FenceOutcome::AtsTimeout), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING | register::CMD_TO), "FEN-07, CQ-14, VC-45");
    assert_eq!((guest.posts(), guest.wires.levels()), (vec![], 1), "FEN-07: no store, no WSI");
    assert_eq!(guest.ring([page(3)]), Progress::Idle);
    assert_eq!(guest.cqh(), 1, "CQX-02");
    // The same fence again: it may wait again, and completes.
    guest.forget();
    assert_eq!(guest.clear(register::CMD_TO), Progress::Waiting, "CQ-07, CQ-18");
    guest.physical.set_pending(false);
    assert_eq!(guest.end_fence(FenceOutcome::Complete), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (4, RUNNING | register::FENCE_W_IP), "FEN-07, CQ-18");
    assert_eq!(guest.posts(), [(DATA, 0x1122_3344)], "CQ-18");
}

#[test]
fn a_timeout_found_without_a_guest_fence_waits_for_the_next_one() {
    let mut guest = Guest::new();
    let ddtp = guest.iommu.read(register::DDTP, Width::U64);
    let _ = guest.iommu.write(register::DDTP, Width::U64, 0);
    guest.physical.set_pending(true);
    assert_eq!(guest.iommu.write(register::DDTP, Width::U64, ddtp), Progress::Waiting);
    let _ = guest.end_fence(FenceOutcome::AtsTimeout);
    guest.physical.set_pending(false);
    let _ = guest.iommu.run();
    assert_eq!((guest.iommu.read(register::DDTP, Width::U64), guest.cqcsr()), (ddtp, RUNNING), "FEN-08");
    let _ = guest.ring([page(1)]);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING), "FEN-08, CQ-23");
    let _ = guest.ring([fence()]);
    assert_eq!((guest.cqh(), guest.cqcsr()), (1, RUNNING | register::CMD_TO), "CQ-23, CQ-25");
}

#[test]
fn a_wire_signal_is_sticky_and_stops_nothing() {
    let mut guest = Guest::new();
    let signal = Iofence::PLAIN.wsi().encode();
    let _ = guest.ring([signal, page(1), signal]);
    assert_eq!((guest.cqh(), guest.cqcsr()), (3, RUNNING | register::FENCE_W_IP), "FEN-06, CQ-21, DISC-R18");
    let _ = guest.ring([signal]);
    assert_eq!(guest.wires.take_changes(), [(0, true)], "FEN-06, CQ-21: no second edge");
    let _ = guest.write(register::IPSR, register::CIP);
    assert_eq!((guest.read(register::IPSR), guest.wires.levels()), (register::CIP, 1), "IRQ-17");
    let _ = guest.clear(register::FENCE_W_IP);
    let _ = guest.write(register::IPSR, register::CIP);
    assert_eq!((guest.cqcsr(), guest.wires.levels()), (RUNNING, 0), "IRQ-17, VC-44");
    let _ = guest.ring([fence()]);
    assert_eq!((guest.cqh(), guest.cqcsr()), (5, RUNNING), "FEN-06: without WSI there is no signal");
}

// The physical side is busy.

#[test]
fn a_busy_physical_side_holds_the_fence() {
    let mut guest = Guest::new();
    guest.physical.answer_next_invalidate(Err(OrderError::Busy));
    assert_eq!(guest.ring([page(1), storing(DATA), page(2)]), Progress::Waiting);
    assert_eq!((guest.cqh(), guest.posts()), (1, vec![]), "T41, VC-40");
    guest.physical.answer_next_fence(Err(OrderError::Busy));
    assert_eq!(guest.iommu.run(), Progress::Waiting);
    assert_eq!((guest.cqh(), guest.posts()), (1, vec![]), "T41, VC-40");
    let _ = guest.physical.take_orders();
    assert_eq!(guest.iommu.run(), Progress::Idle);
    assert_eq!((guest.cqh(), guest.posts().len()), (3, 1));
    assert_eq!(guest.ordered(), (vec![], vec![FenceScope::new(false, false)]), "the invalidation went out before");
}

#[test]
fn a_busy_physical_side_holds_what_does_not_fit() {
    let mut guest = Guest::new();
    guest.physical.answer_next_invalidate(Err(OrderError::Busy));
    assert_eq!(guest.ring((0..20).map(page)), Progress::Waiting);
    assert_eq!((guest.cqh(), guest.cqcsr()), (16, RUNNING), "T41: the 17th waits");
    let _ = guest.physical.take_orders();
    assert_eq!(guest.iommu.run(), Progress::Idle);
    assert_eq!(guest.cqh(), 20);
    let _ = guest.ring([fence()]);
    assert_eq!(guest.ordered().0.concat(), (0..20).map(order).collect::<Vec<_>>(), "T21: each once");
}

// Bounded work.

#[test]
fn a_thousand_commands_take_as_many_calls_as_the_budget_says() {
    let mut guest: Guest = Guest::with(&Config::nested().with_budget(10), 10);
    let commands: Vec<_> = (0..1000).map(|number| if number % 100 == 99 { fence() } else { page(number) }).collect();
    let mut progress = guest.ring(commands);
    for slice in 1..100 {
        assert_eq!((progress, guest.cqh()), (Progress::Runnable, slice * 10), "VC-05, T14");
        progress = guest.iommu.run();
    }
    assert_eq!((progress, guest.cqh()), (Progress::Idle, 1000), "VC-05, T14");
    let asked: Vec<_> = (0..1000).filter(|number| number % 100 != 99).map(order).collect();
    assert_eq!(guest.ordered().0.concat(), asked, "each once");
}

#[test]
fn commands_that_are_carried_out_as_one_are_counted_and_bounded_one_by_one() {
    let mut guest: Guest = Guest::with(&Config::nested().with_budget(10), 10);
    let adjacent = |number: u64| Iotinval::ALL.address(Iova::new(number << 12)).vma();
    let mut progress = guest.ring((0..25).map(adjacent));
    for passed in [10, 20] {
        assert_eq!((progress, guest.cqh()), (Progress::Runnable, passed), "VC-05, T14");
        assert_eq!(guest.iommu.stats().commands.iotinval_vma, passed);
        progress = guest.iommu.run();
    }
    assert_eq!((progress, guest.cqh()), (Progress::Idle, 25), "VC-05, T14");
    assert_eq!(guest.iommu.stats().commands.iotinval_vma, 25);
    // One that the host is too busy for is carried out again as a whole, with those it took in.
    let mut guest: Guest<1> = Guest::with(&Config::nested(), 10);
    let _ = guest.ring([page(99)]);
    guest.physical.answer_next_invalidate(Err(OrderError::Busy));
    assert_eq!(guest.ring((0..5).map(adjacent)), Progress::Waiting);
    assert_eq!((guest.cqh(), guest.iommu.stats().commands.iotinval_vma), (1, 1), "T21");
    assert_eq!(guest.iommu.run(), Progress::Idle);
    assert_eq!((guest.cqh(), guest.iommu.stats().commands.iotinval_vma), (6, 6), "T21");
}

#[test]
fn a_queue_of_two_to_the_32_entries_is_bounded_per_call() {
    let mut guest = Guest::new();
    let _ = guest.write(register::CQCSR, 0);
    // LOG2SZ-1 is 31; memory for the first 512 entries only.
    let base = Gpa::new(0x20_0000_0000);
    guest.memory.map(base, 2 * 4096);
    (0..512).for_each(|index| guest.memory.write_words(Gpa::new(base.get() + index * 16), &page(index)));
    let _ = guest.iommu.write(register::CQB, Width::U64, base.get() >> 2 | 31);
    let _ = guest.write(register::CQCSR, CONTROL);
    guest.forget();
    let mut progress = guest.write(register::CQT, 0xffff_ffff);
    assert_eq!((progress, guest.cqh()), (Progress::Runnable, 256), "CQX-01, Q-12, T14");
    assert!(guest.memory.take_loads().len() <= 17, "T14");
    progress = progress.max(guest.iommu.run());
    assert_eq!((progress, guest.cqh()), (Progress::Runnable, 512));
    assert_eq!(guest.iommu.run(), Progress::Idle);
    assert_eq!((guest.cqh(), guest.cqcsr()), (512, RUNNING | register::MEMORY_FAULT), "CQ-12");
}

#[test]
fn a_fence_waits_for_the_contexts_named_before_it() {
    let mut guest: Guest = Guest::with(&Config::nested().with_budget(3), 8);
    for id in 10..14 {
        let device = DeviceId::new(id).unwrap();
        let _ = guest.iommu.attach(device, PhysicalDevice(id), DevicePolicy::default()).unwrap();
        while guest.iommu.run() != Progress::Idle {}
    }
    guest.forget();
    // The command and the fence take two units of three, each of the five devices one.
    assert_eq!(guest.ring([inval_ddt(None), storing(DATA)]), Progress::Runnable);
    assert_eq!((guest.cqh(), guest.posts()), (1, vec![]), "VC-54, VC-82, T14");
    assert_eq!(guest.iommu.run(), Progress::Runnable);
    assert_eq!((guest.cqh(), guest.posts()), (1, vec![]), "VC-54");
    assert_eq!(guest.iommu.run(), Progress::Idle);
    assert_eq!((guest.cqh(), guest.posts().len()), (2, 1), "VC-86");
}

#[test]
fn a_command_counts_when_the_head_passes_it_and_an_illegal_one_when_it_stops_the_queue() {
    let mut guest = Guest::new();
    guest.physical.set_pending(true);
    let device = DeviceId::new(DEVICE).unwrap();
    let kinds =
        [Iotinval::ALL.vma(), Iotinval::ALL.gvma(), inval_ddt(None), inval_pdt(device, ProcessId::new(0).unwrap())];
    let _ = guest.ring(kinds.into_iter().chain([fence(), ILLEGAL]));
    let counts = |guest: &Guest| guest.iommu.stats().commands;
    let vma_gvma_ddt_pdt = |guest: &Guest| {
        let counts = counts(guest);
        [counts.iotinval_vma, counts.iotinval_gvma, counts.iodir_inval_ddt, counts.iodir_inval_pdt]
    };
    assert_eq!((vma_gvma_ddt_pdt(&guest), counts(&guest).iofence_c), ([1; 4], 0), "the fence waits");
    while counts(&guest).iofence_c == 0 {
        let _ = guest.end_fence(FenceOutcome::Complete);
    }
    assert_eq!((vma_gvma_ddt_pdt(&guest), counts(&guest).iofence_c, counts(&guest).illegal), ([1; 4], 1, 1));
    let _ = guest.ring([]);
    assert_eq!(counts(&guest).illegal, 1, "a stopped queue fetches nothing");
}
