//! What one call may cost the host, whatever guest and host do: each call of hostile histories is held against its bound
//! in `docs/assurance.md`, histories that cost more are kept and changed further, and worst cases are built by hand.

#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use riscv_viommu::cmdq::{Command, IofenceC, Iotinval};
use riscv_viommu::mock::guest::register;
use riscv_viommu::{
    Applied, Attachment, Capabilities, Cause, Completion, Config, Context, DeviceId, DevicePolicy, FenceOutcome,
    FenceScope, Gpa, GuestMemory, HostCapabilities, HostFault, InterruptKinds, Interrupts, Invalidation, Iova,
    MemoryFault, OrderError, PhysicalIommu, Post, ProcessId, Progress, Pscid, Request, SecondStageMode, Ticket,
    TransactionType, VIommu, Width,
};

const DEVICES: usize = 4;
type Iommu = VIommu<Host, DEVICES>;

/// Calls to the host within one call to the vIOMMU, and the bytes it reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    loads: u64,
    bytes: u64,
    stores: u64,
    exchanges: u64,
    posts: u64,
    contexts: u64,
    invalidates: u64,
    fences: u64,
}

impl Cost {
    fn counts(self) -> [(&'static str, u64); 8] {
        let Self { loads, bytes, stores, exchanges, posts, contexts, invalidates, fences } = self;
        [
            ("loads", loads),
            ("bytes", bytes),
            ("stores", stores),
            ("exchanges", exchanges),
            ("posts", posts),
            ("contexts", contexts),
            ("invalidates", invalidates),
            ("fences", fences),
        ]
    }

    /// The greater of each.
    fn max(self, other: Self) -> Self {
        Self {
            loads: self.loads.max(other.loads),
            bytes: self.bytes.max(other.bytes),
            stores: self.stores.max(other.stores),
            exchanges: self.exchanges.max(other.exchanges),
            posts: self.posts.max(other.posts),
            contexts: self.contexts.max(other.contexts),
            invalidates: self.invalidates.max(other.invalidates),
            fences: self.fences.max(other.fences),
        }
    }

    fn total(self) -> u64 {
        self.counts().iter().filter(|(name, _)| *name != "bytes").map(|(_, count)| count).sum()
    }
}

/// What a call that goes on with waiting work costs at most, with so many units of budget.
fn bound(units: u64, devices: u64) -> Cost {
    // By device, to come in or to leave with a cache of its own: quiesced, told, blocked, and four detours after that.
    let fences = 2 * units + 9 * devices + 2;
    Cost {
        // A command is read twice if its neighbours can not be; a device takes three entries of the directory.
        loads: 3 * units + 2,
        bytes: 272 * (units + 1),
        // Each vector has a message to lose, and each cause one more.
        stores: 4 + 16 + 1,
        exchanges: 0,
        posts: units + 4 + 16 + 1,
        contexts: 3 * units + 11 * devices,
        invalidates: 2 * (fences + units + devices),
        fences,
    }
}

/// How the host answers.
#[derive(Clone, Copy, Debug, Default)]
struct Manner {
    /// Loads of more than one command fail.
    narrow: bool,
    /// Fence data and messages can not be stored.
    mute: bool,
    /// Of so many contexts, all but one are set by way of a blocked state; 0: none.
    detours: u8,
    /// Of so many invalidations, one is refused; 0: none.
    refuses: u8,
    /// Of so many fences, one is pending; 0: none.
    pends: u8,
    /// Of so many orders, one is busy; 0: none.
    busy: u8,
}

/// Memory in regions of 16 MiB, each the same eight words again and again.
#[derive(Debug, Default)]
struct Host {
    regions: HashMap<u64, [u64; 8]>,
    /// A region whose words are leaf entries, each of the region of its index.
    leaves: Option<u64>,
    manner: Manner,
    cost: Cell<Cost>,
    asked: Cell<u64>,
    exchanged: RefCell<HashMap<u64, u8>>,
    issued: Option<Ticket>,
}

const fn region(number: u64) -> u64 {
    0x8000_0000 + (number << 24)
}

impl Host {
    fn spend(&self, what: impl FnOnce(&mut Cost)) {
        let mut cost = self.cost.get();
        what(&mut cost);
        self.cost.set(cost);
    }

    /// Whether it is the turn of an answer given once in `every` times.
    fn turn(&self, every: u8) -> bool {
        self.asked.set(self.asked.get() + 1);
        every != 0 && self.asked.get().is_multiple_of(u64::from(every))
    }

    fn ordered(&self) -> Result<(), OrderError> {
        if self.turn(self.manner.busy) { Err(OrderError::Busy) } else { Ok(()) }
    }
}

impl GuestMemory for Host {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.spend(|cost| {
            cost.loads += 1;
            cost.bytes += 8 * out.len() as u64;
        });
        if self.manner.narrow && out.len() > 2 && at.get() >> 24 == region(COMMANDS) >> 24 {
            return Err(MemoryFault::Access);
        }
        let number = at.get().checked_sub(region(0)).ok_or(MemoryFault::Access)? >> 24;
        for (word, at) in out.iter_mut().zip((at.get()..).step_by(8)) {
            let index = at >> 3;
            *word = match self.regions.get(&number) {
                _ if self.leaves == Some(number) => region(index & 0x1ff) >> 2 | 0x1f,
                Some(words) => words[(index & 7) as usize],
                None => return Err(MemoryFault::Access),
            };
        }
        Ok(())
    }

    fn store(&mut self, _at: Gpa, _words: &[u64]) -> Result<(), MemoryFault> {
        self.spend(|cost| cost.stores += 1);
        Ok(())
    }

    fn post(&mut self, _at: Gpa, _data: u32, _why: Post) -> Result<(), MemoryFault> {
        self.spend(|cost| cost.posts += 1);
        if self.manner.mute { Err(MemoryFault::Access) } else { Ok(()) }
    }

    fn has_compare_exchange(&self) -> bool {
        true
    }

    /// A vCPU is faster seven times, and undoes what was done.
    fn compare_exchange(&mut self, at: Gpa, _width: Width, _old: u64, _new: u64) -> Result<bool, MemoryFault> {
        self.spend(|cost| cost.exchanges += 1);
        let mut exchanged = self.exchanged.borrow_mut();
        let times = exchanged.entry(at.get()).or_default();
        *times += 1;
        Ok(times.is_multiple_of(8))
    }
}

impl Interrupts for Host {
    fn kinds(&self) -> InterruptKinds {
        InterruptKinds::Msi
    }

    fn set_wire(&mut self, _vector: u8, _level: bool) {}
}

impl PhysicalIommu for Host {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        let register =
            Capabilities::new().with_sv39(true).with_sv48(true).with_sv57(true).with_sv57x4(true).with_pas(56);
        HostCapabilities::new(register, SecondStageMode::Sv57x4).with_svnapot(true).with_coherent(true)
    }

    fn adopt(&mut self, _device: u32) -> Result<HostCapabilities, OrderError> {
        Ok(self.capabilities())
    }

    fn set_context(&mut self, _device: u32, new: &Context) -> Result<Applied, OrderError> {
        self.spend(|cost| cost.contexts += 1);
        self.ordered()?;
        let detour = self.manner.detours != 0 && !self.turn(self.manner.detours);
        Ok(if detour && *new != Context::Blocked { Applied::Blocked } else { Applied::Switched })
    }

    fn invalidate(&mut self, _orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        self.spend(|cost| cost.invalidates += 1);
        self.ordered()?;
        if self.turn(self.manner.refuses) { Err(OrderError::Refused { done: 0 }) } else { Ok(()) }
    }

    fn fence(&mut self, upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
        self.spend(|cost| cost.fences += 1);
        self.ordered()?;
        self.issued = Some(upto);
        Ok(if self.turn(self.manner.pends) { Completion::Pending } else { Completion::Done })
    }

    fn release(&mut self, _device: u32) {}
}

const ROOT: u64 = 0;
const CONTEXTS: u64 = 2;
const COMMANDS: u64 = 3;
const FAULTS: u64 = 4;

/// A non-leaf entry of the device directory, everywhere.
fn table(number: u64) -> [u64; 8] {
    [region(number) >> 2 | 1; 8]
}

/// A context: V, Bare or Sv39, with a PSCID.
fn context(kind: u8) -> [u64; 8] {
    let fsc = if kind.is_multiple_of(2) { 0 } else { 8 << 60 | region(9) >> 12 };
    let one = [u64::from(kind != 7), 0, u64::from(kind) << 12, fsc];
    [one[0], one[1], one[2], one[3], one[0], one[1], one[2], one[3]]
}

fn command(number: u8) -> [u64; 2] {
    let command = match number % 8 {
        0 => Command::IofenceC(IofenceC::READS_AND_WRITES.with_store(Gpa::new(region(FAULTS)), 1)),
        1 => Command::IofenceC(IofenceC::READS_AND_WRITES),
        2 => Command::IodirInvalDdt(None),
        3 | 4 => Command::IodirInvalDdt(Some(id(number >> 3))),
        5 => Command::IodirInvalPdt(id(number >> 3), ProcessId::truncate(1)),
        6 => Command::IotinvalVma(Iotinval::ALL),
        _ => Command::IotinvalVma(Iotinval::ALL.with_pscid(Pscid::truncate(u32::from(number)))),
    };
    let raw = command.encode();
    [raw.low, raw.high]
}

fn id(number: u8) -> DeviceId {
    DeviceId::truncate(u32::from(number) % DEVICES as u32)
}

/// What is done to the vIOMMU.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// Not counted: the guest's memory becomes this, and what stopped its queue is cleared.
    Commands([u8; 4]),
    Context(u8),
    /// Counted.
    Doorbell,
    Directory,
    Run,
    Attach(u8),
    Detach(u8),
    Resync(u8),
    FenceDone,
    MemoryTaken,
    LostState,
    Fault(u8),
    Reset,
    Snapshot,
    Restore,
}

/// A generator good enough for tests (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides) as u8
    }

    fn action(&mut self) -> Action {
        let number = self.roll(64);
        match self.roll(22) {
            0..3 => Action::Commands(std::array::from_fn(|_| self.roll(64))),
            3 | 4 => Action::Context(self.roll(8)),
            5..9 => Action::Doorbell,
            9 => Action::Directory,
            10 => Action::Run,
            11..14 => Action::Attach(number),
            14 => Action::Detach(number),
            15 => Action::Resync(number),
            16 => Action::FenceDone,
            17 => Action::MemoryTaken,
            18 => Action::LostState,
            19 => Action::Fault(number),
            20 => Action::Snapshot,
            _ if number < 32 => Action::Restore,
            _ => Action::Reset,
        }
    }

    fn manner(&mut self) -> Manner {
        let [detours, refuses, pends, busy] = [8, 12, 16, 24].map(|sides| self.roll(sides) * (self.roll(3) / 2));
        Manner { narrow: self.roll(2) == 0, mute: self.roll(4) == 0, detours, refuses, pends, busy }
    }
}

/// A guest whose queues and directory are on.
struct Guest {
    iommu: Iommu,
    attached: Option<Attachment>,
    image: Vec<u8>,
    units: u32,
    /// A restore is not done.
    restoring: bool,
}

impl Guest {
    fn new(manner: Manner, units: u32) -> Self {
        let mut host = Host { manner, ..Host::default() };
        host.regions.extend([(ROOT, table(1)), (1, table(CONTEXTS)), (CONTEXTS, context(1)), (COMMANDS, [0; 8])]);
        let mut iommu = Iommu::new(host);
        iommu.start(&Config::nested().with_budget(units)).unwrap();
        let mut guest = Self { iommu, attached: None, image: Vec::new(), units, restoring: false };
        guest.turn_on();
        guest
    }

    fn turn_on(&mut self) {
        // Rings of 512 commands and records.
        for (register, value) in [
            (register::CQB, region(COMMANDS) >> 2 | 8),
            (register::FQB, region(FAULTS) >> 2 | 8),
            (register::DDTP, region(ROOT) >> 2 | 4),
        ] {
            let _ = self.iommu.write(register, Width::U64, value);
        }
        // Enabled, and every error bit cleared.
        let _ = self.iommu.write(register::FQCSR, Width::U32, 0x303);
        let _ = self.iommu.write(register::CQCSR, Width::U32, 0xf03);
    }

    fn fill(&mut self, commands: [u8; 4]) {
        let [a, b, c, d] = commands.map(command);
        let words = [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]];
        self.iommu.backend_mut().regions.insert(COMMANDS, words);
    }

    /// Does it: the name of what was counted, and what it cost.
    fn perform(&mut self, action: Action) -> Option<(&'static str, Cost)> {
        self.iommu.backend().cost.set(Cost::default());
        let iommu = &mut self.iommu;
        let name = match action {
            Action::Commands(commands) => {
                self.fill(commands);
                self.turn_on();
                return None;
            }
            Action::Context(kind) => {
                iommu.backend_mut().regions.insert(CONTEXTS, context(kind));
                return None;
            }
            Action::Doorbell => {
                let behind = iommu.read(register::CQH, Width::U32).wrapping_sub(1) & 511;
                let _ = iommu.write(register::CQT, Width::U32, behind);
                "write cqt"
            }
            Action::Directory => {
                let _ = iommu.write(register::DDTP, Width::U64, region(ROOT) >> 2 | 4);
                "write ddtp"
            }
            Action::Run => {
                let _ = iommu.run();
                "run"
            }
            Action::Attach(number) => {
                let attached = iommu.attach(id(number), u32::from(number), DevicePolicy::default());
                self.attached = attached.ok().map(|attached| attached.attachment).or(self.attached);
                "attach"
            }
            Action::Detach(number) => {
                let _ = iommu.detach(id(number));
                "detach"
            }
            Action::Resync(number) => {
                let _ = iommu.resync(id(number));
                "resync"
            }
            Action::FenceDone => {
                if let Some(ticket) = iommu.backend().issued {
                    let _ = iommu.fence_done(ticket, FenceOutcome::Complete);
                }
                "fence_done"
            }
            Action::MemoryTaken => {
                let _ = iommu.invalidate_gpa(Gpa::new(0)..=Gpa::new(0xfff));
                "invalidate_gpa"
            }
            Action::LostState => {
                let _ = iommu.host_lost_state();
                "host_lost_state"
            }
            Action::Fault(number) => {
                let causes = [Cause::DdtNotValid, Cause::WritePageFault, Cause::DdtLoadAccessFault];
                let cause = causes[usize::from(number) % causes.len()];
                let fault =
                    HostFault::new(cause, TransactionType::UntranslatedWrite, Iova::new(u64::from(number) << 12));
                if let Some(attached) = self.attached {
                    let _ = iommu.report_fault(attached, &fault);
                }
                "report_fault"
            }
            Action::Reset => {
                let _ = iommu.reset();
                "reset"
            }
            Action::Snapshot => {
                self.image = vec![0; Iommu::SNAPSHOT_BYTES];
                let bytes = iommu.snapshot(&mut self.image).unwrap();
                self.image.truncate(bytes);
                "snapshot"
            }
            Action::Restore => {
                self.restoring = iommu.restore(&self.image).is_ok();
                "restore"
            }
        };
        Some((name, self.iommu.backend().cost.get()))
    }

    /// The bound of what was counted. After a restore a call may have a second budget: that of the devices.
    fn bound(&self, name: &str) -> Cost {
        let (units, devices) = (u64::from(self.units), DEVICES as u64);
        let units = match name {
            "snapshot" => 4 * devices,
            // The fault itself is judged by the directory, and by one way to a process.
            "report_fault" => units + 2,
            _ if self.restoring || name == "restore" => 2 * units,
            _ => units,
        };
        bound(units, devices)
    }
}

type Worst = BTreeMap<&'static str, Cost>;

/// Plays a history: the greatest cost of each call in it, all within their bounds.
fn play(manner: Manner, history: &[Action], worst: &mut Worst) -> u64 {
    let mut guest = Guest::new(manner, 32);
    let mut greatest = 0;
    for action in history {
        let Some((name, cost)) = guest.perform(*action) else {
            continue;
        };
        let bound = guest.bound(name);
        guest.restoring &= guest.iommu.progress() != Progress::Idle;
        for ((what, spent), (_, allowed)) in cost.counts().into_iter().zip(bound.counts()) {
            assert!(spent <= allowed, "T14: {name} cost {spent} {what}, not {allowed}: {manner:?} {history:?}");
        }
        let entry = worst.entry(name).or_default();
        *entry = entry.max(cost);
        greatest = greatest.max(cost.total());
    }
    greatest
}

#[test]
fn no_call_of_a_hostile_history_costs_more_than_its_bound() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut worst = Worst::new();
    for _ in 0..40 {
        let mut manner = dice.manner();
        let mut history: Vec<Action> = (0..24).map(|_| dice.action()).collect();
        let mut best = play(manner, &history, &mut worst);
        // Uphill: what costs no less is kept.
        for _ in 0..40 {
            let (mut other, mut changed) = (manner, history.clone());
            if dice.roll(4) == 0 {
                other = dice.manner();
            }
            for _ in 0..=dice.roll(3) {
                let at = usize::from(dice.roll(24));
                changed[at] = dice.action();
            }
            let cost = play(other, &changed, &mut worst);
            if cost >= best {
                (manner, history, best) = (other, changed, cost);
            }
        }
    }
    println!("budget 32, {DEVICES} devices; bound: {:?}", bound(32, DEVICES as u64));
    for (name, cost) in &worst {
        println!("{name}: {cost:?}");
    }
    assert_eq!(worst.len(), 13, "each call was made");
    let (found, allowed) = (worst["write cqt"], bound(32, DEVICES as u64));
    assert_eq!(found.bytes, allowed.bytes, "the bound is reached");
    assert!(4 * found.loads >= 3 * allowed.loads, "the bounds say something");
    assert!(found.fences > 32 && found.contexts > 32, "a host that goes by way of blocked states pays more");
}

/// Fences, each with a store, and nothing else; devices: one. What is left for `run` is the rest of the ring.
#[test]
fn a_doorbell_orders_a_fence_for_each_unit_of_the_budget_and_no_more() {
    for units in [1, 32, 240, 256] {
        let mut guest = Guest::new(Manner { narrow: true, ..Manner::default() }, units);
        let _ = guest.perform(Action::Attach(0));
        while guest.iommu.run() == Progress::Runnable {}
        guest.fill([0; 4]);
        let (_, cost) = guest.perform(Action::Doorbell).unwrap();
        let units = u64::from(units);
        println!("{units} units: {cost:?}");
        assert_eq!((cost.fences, cost.posts), (units, units), "T14");
        // Each was read with its neighbours, which failed, and alone; and one more, for which no unit was left. At the
        // end of a page there are fewer neighbours.
        let (loads, bytes) = (2 * (units + 1), 272 * (units + 1));
        assert!(cost.loads <= loads && cost.bytes <= bytes, "T14");
        assert!(units == 256 || (cost.loads, cost.bytes) == (loads, bytes), "the bound is reached");
    }
}

/// Everything at its longest: three levels of contexts, of process contexts, five of either stage, every entry of the
/// second under the first, and a vCPU that is faster seven times at each update.
#[test]
fn a_translation_costs_what_its_tables_have_levels_and_no_more() {
    // The second stage: regions 16 to 19, then a leaf for the region that an address names in bits 20:12.
    let mut host = Host { leaves: Some(20), ..Host::default() };
    let table_of = |number| [region(number) >> 2 | 1; 8];
    host.regions.extend((16..20).map(|number| (number, table_of(number + 1))));
    // Process directory and first stage, at addresses of the guest's own VM.
    let nested = |number: u64| number << 12 >> 2 | 1;
    host.regions.extend([(5, [nested(6); 8]), (6, [nested(7); 8])]);
    let satp = 10 << 60 | 8;
    host.regions.insert(7, [1, satp, 1, satp, 1, satp, 1, satp]);
    host.regions.extend((8..12).map(|number| (number, [nested(number + 1); 8])));
    host.regions.insert(12, [13 << 12 >> 2 | 0x1f; 8]);
    // tc: V, GADE, SADE, PDTV; iohgatp Sv57x4; pdtp PD20; no MSI page table.
    let tc = 1 | 1 << 5 | 1 << 7 | 1 << 8;
    let dc = [tc, 10 << 60 | region(16) >> 12, 0, 3 << 60 | 5, 0, 0, 0, 0];
    host.regions.extend([(ROOT, table(1)), (1, table(CONTEXTS)), (CONTEXTS, dc)]);
    let mut iommu = Iommu::new(host);
    let offered = Capabilities::from_bits(u64::MAX).with_pas(56);
    iommu.start(&Config::emulated().with_capabilities(offered).with_synchronous_dma(true)).unwrap();
    let device = iommu.attach_emulated(DeviceId::truncate(1), DevicePolicy::default()).unwrap();
    let _ = iommu.write(register::DDTP, Width::U64, region(ROOT) >> 2 | 4);
    iommu.backend().cost.set(Cost::default());
    let request = Request::write(device, Iova::new(0)).with_process(ProcessId::truncate(1), false);
    let translation = iommu.translate(&request);
    let cost = iommu.backend().cost.get();
    println!("{translation:?} {cost:?}");
    assert!(translation.is_ok());
    // One walk of the second stage: four tables, then the leaf eight times.
    let second = 5 - 1 + 8;
    let loads = 3 + 3 * (second + 1) + 4 * (second + 1) + 8 * (second + 1 + second) + second;
    let exchanges = 3 * 8 + 4 * 8 + 8 * (8 + 1 + 8) + 8;
    assert_eq!((cost.loads, cost.exchanges), (loads, exchanges), "T14");
    assert_eq!(cost.bytes, 8 + 8 + 64 + 8 + 8 + 16 + 8 * (loads - 6), "T14");
}
