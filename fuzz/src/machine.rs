//! A vIOMMU, its guest's memory and the modelled host, with the invariants around every call.

use std::rc::Rc;

use arbitrary::Arbitrary;
use riscv_viommu::backend::Trace;
use riscv_viommu::mock::guest::register as reg;
use riscv_viommu::mock::tables::tc;
use riscv_viommu::mock::{Hardware, Memory, Physical, PhysicalDevice, Strategy, Wires};
use riscv_viommu::{
    Ats, Attachment, Capabilities, Completion, Config, Context, DeviceId, DevicePolicy, Gscid, Gxl, Health,
    InterruptKinds, Parts, Progress, Ticket, VIommu, Width,
};

use crate::guest::{Guest, Meaning};
use crate::invariants::{self, Owned};
use crate::meter::{Bound, Meter, Observer};

/// The guest's ids of its devices; the host's handles of those it passes through, and what it grants the others.
pub(crate) const PASSTHROUGH: [(DeviceId, PhysicalDevice); 2] =
    [(DeviceId::truncate(8), PhysicalDevice(0x41)), (DeviceId::truncate(9), PhysicalDevice(0x42))];
pub(crate) const EMULATED: [(DeviceId, Ats); 2] =
    [(DeviceId::truncate(0x10), Ats::PageRequests), (DeviceId::truncate(0x11), Ats::Off)];

/// Small, so that tables and batches are full now and then.
pub(crate) const DEVICES: usize = 3;
pub(crate) const BATCH: usize = 4;
const CACHE: usize = 3;
pub(crate) const ITAGS: usize = 2;
const GROUPS: usize = 2;

pub(crate) type Host = Parts<Trace<Memory, Observer>, Trace<Wires, Observer>, Trace<Physical, Observer>>;
pub(crate) type Iommu = VIommu<Host, DEVICES, BATCH, CACHE, ITAGS, GROUPS>;

/// What the guest is offered, and how far it has come.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent choices")]
pub(crate) struct Setup {
    /// Devices of both kinds; or emulated ones only, with all that can be offered then.
    pub(crate) nested: bool,
    pub(crate) extended: bool,
    pub(crate) ats: bool,
    pub(crate) big_endian: bool,
    /// Wires besides messages.
    pub(crate) wires: bool,
    /// DMA of emulated devices outlives the lock.
    pub(crate) counted: bool,
    /// A performance monitor in place of the mirror page.
    pub(crate) counters: bool,
    pub(crate) bare: bool,
    pub(crate) budget: u8,
    /// The guest has turned queues and directory on.
    pub(crate) on: bool,
}

impl Setup {
    /// A guest in the middle of its life.
    pub(crate) const fn usual(nested: bool) -> Self {
        Self {
            nested,
            extended: true,
            ats: true,
            big_endian: false,
            wires: true,
            counted: false,
            counters: false,
            bare: false,
            budget: 7,
            on: true,
        }
    }

    pub(crate) fn budget(&self) -> u32 {
        u32::from(self.budget % 16) + 1
    }

    const fn mirrored(&self) -> bool {
        self.nested || !self.counters
    }

    pub(crate) fn config(&self) -> Config {
        let config = if self.nested {
            Config::nested().with_extended_contexts(self.extended).with_big_endian(self.big_endian)
        } else {
            let all = Capabilities::from_bits(u64::MAX).with_pas(56);
            let all = all.with_msi_flat(self.extended).with_end(self.big_endian);
            let counters = if self.counters { 3 } else { 0 };
            let config = Config::emulated().with_capabilities(all).with_gxl(Gxl::Writable);
            config.with_debug(true).with_qos_bits(4).with_counters(counters)
        };
        let config = config.with_ats(self.ats).with_synchronous_dma(!self.counted).with_reset_to_bare(self.bare);
        config.with_mirror(self.mirrored()).with_budget(self.budget())
    }
}

/// Everything there is.
pub(crate) struct Machine {
    pub(crate) setup: Setup,
    pub(crate) guest: Guest,
    pub(crate) memory: Memory,
    pub(crate) hardware: Hardware,
    pub(crate) physical: Physical,
    pub(crate) iommu: Iommu,
    /// Of all devices, in the order they were attached; some are no more.
    pub(crate) passthrough: Vec<Attachment>,
    pub(crate) emulated: Vec<Attachment>,
    /// Words change while they are read.
    pub(crate) raced: bool,
    /// Contexts that the host was told to reach through a blocked state.
    pub(crate) detours: u8,
    /// The host failed at some time.
    failed: bool,
    wires: Wires,
    meter: Rc<Meter>,
    owned: Owned,
    bound: Bound,
}

impl Machine {
    /// A guest with two devices of each kind.
    pub(crate) fn new(setup: Setup) -> Self {
        let mut machine = Self::started(setup);
        for device in 0..4 {
            let whole = !setup.nested && device == 3;
            let meaning =
                if whole { Meaning::Everything } else { [Meaning::FirstStage, Meaning::Processes][device % 2] };
            let bits = if device % 2 == 0 && !whole { tc::EN_ATS | tc::EN_PRI } else { 0 };
            machine.guest.set_context(device as u8, meaning, if setup.ats { bits } else { 0 });
        }
        if setup.on {
            machine.turn_on();
            machine.settle();
        }
        machine
    }

    /// A vIOMMU that was just started, on a host of its own.
    pub(crate) fn started(setup: Setup) -> Self {
        let (memory, meter) = (Memory::new(), Meter::new());
        memory.answer_drain(setup.counted.then_some(Completion::Done));
        let guest = Guest::new(&memory, setup.extended);
        let hardware = Hardware::default();
        hardware.set_strategy(Strategy::Stepwise);
        let physical = hardware.vm(Gscid::truncate(1), &memory);
        let wires = Wires::new(if setup.wires { InterruptKinds::Both } else { InterruptKinds::Msi });
        let host = Parts {
            memory: Trace::new(memory.clone(), meter.observer()),
            interrupts: Trace::new(wires.clone(), meter.observer()),
            physical: Trace::new(physical.clone(), meter.observer()),
        };
        let mut iommu = Iommu::new(host);
        assert_eq!(iommu.start(&setup.config()), Ok(()), "{setup:?}");
        let (owned, bound) = (Owned::default(), Bound::of(setup.budget()));
        let (passthrough, emulated) = (Vec::new(), Vec::new());
        let mut machine = Self {
            setup,
            guest,
            memory,
            hardware,
            physical,
            iommu,
            passthrough,
            emulated,
            raced: false,
            detours: 0,
            failed: false,
            wires,
            meter,
            owned,
            bound,
        };
        for device in 0..2 {
            machine.attach(device);
            machine.attach_emulated(device);
        }
        machine
    }

    /// Whatever is done to the vIOMMU is done here: what one call may do and order is looked at after each.
    pub(crate) fn call<R>(&mut self, act: impl FnOnce(&mut Iommu) -> R) -> R {
        self.meter.restart();
        let answer = act(&mut self.iommu);
        self.failed |= self.iommu.health() == Health::Failed;
        self.meter.check(&self.bound);
        self.owned.follow(&self.physical.take_orders());
        drop((self.memory.take_events(), self.memory.take_loads(), self.memory.take_watches()));
        drop((self.memory.take_unmapped(), self.wires.take_changes()));
        answer
    }

    /// What the guest can see between two actions, and of the whole register page at the end.
    pub(crate) fn look(&self, whole: bool) {
        invariants::registers(&self.iommu, &self.meter, whole, self.setup.mirrored());
        self.check_off();
    }

    /// With the directory off and nothing under way, no device translates.
    fn check_off(&self) {
        let off = self.read(reg::DDTP).trailing_zeros() > 4;
        if off && self.iommu.progress() == Progress::Idle && self.iommu.health() == Health::Good {
            for (id, device) in PASSTHROUGH {
                assert!(!self.is_open(device), "blocked: {id:?} translates, and ddtp is Off and not busy");
            }
        }
    }

    /// Whether hardware translates for a device of this VM.
    pub(crate) fn is_open(&self, device: PhysicalDevice) -> bool {
        self.owned.has(device) && self.physical.context(device).as_ref().is_some_and(Context::is_open)
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U32)
    }

    /// A store of the guest of 8 bytes where the register has them.
    pub(crate) fn write(&mut self, offset: u64, value: u64) {
        let wide = matches!(offset, reg::DDTP | reg::CQB | reg::FQB | reg::PQB | reg::ICVEC);
        let width = if wide { Width::U64 } else { Width::U32 };
        let _ = self.call(|iommu| iommu.write(offset, width, value));
    }

    /// The guest turns its queues off and on, with interrupts, and its directory.
    pub(crate) fn turn_on(&mut self) {
        for csr in [reg::CQCSR, reg::FQCSR, reg::PQCSR] {
            self.write(csr, 0);
        }
        let bases = [self.guest.commands.cqb(), self.guest.faults.fqb(), self.guest.requests.pqb()];
        for (offset, base) in [reg::CQB, reg::FQB, reg::PQB].into_iter().zip(bases) {
            self.write(offset, base);
        }
        for csr in [reg::CQCSR, reg::FQCSR, reg::PQCSR] {
            self.write(csr, reg::ENABLE | reg::INTERRUPT_ENABLE);
        }
        self.write(reg::DDTP, self.guest.directory.ddtp());
    }

    pub(crate) fn attach(&mut self, device: u8) {
        let (id, handle) = PASSTHROUGH[usize::from(device) % PASSTHROUGH.len()];
        // The model of the host takes the first fence after a failure for the end of the reset.
        let recovers = self.failed && self.iommu.progress() != Progress::Idle;
        if !self.setup.nested || recovers {
            return;
        }
        let policy = DevicePolicy::default().with_ats(Ats::PageRequests).with_response_failure(true);
        if let Ok(attached) = self.call(|iommu| iommu.attach(id, handle, policy)) {
            self.passthrough.push(attached.attachment);
        }
    }

    pub(crate) fn attach_emulated(&mut self, device: u8) {
        let (id, ats) = EMULATED[usize::from(device) % EMULATED.len()];
        let policy = DevicePolicy::default().with_ats(ats);
        if let Ok(attachment) = self.call(|iommu| iommu.attach_emulated(id, policy)) {
            self.emulated.push(attachment);
        }
    }

    /// An attachment of a device the host emulates, perhaps one of long ago.
    pub(crate) fn emulated(&self, device: u8) -> Attachment {
        self.emulated[usize::from(device) % self.emulated.len()]
    }

    /// The host tells of all fences that are done.
    pub(crate) fn complete(&mut self) {
        let completed = self.physical.complete_all();
        self.tell(completed);
    }

    fn tell(&mut self, completed: Vec<Ticket>) {
        for ticket in completed {
            let outcome = self.physical.outcome(ticket);
            let _ = self.call(|iommu| iommu.fence_done(ticket, outcome));
        }
    }

    /// Goes on until nothing is left, or nothing comes of it: what a device or DMA has to do is not done here.
    pub(crate) fn settle(&mut self) {
        let mut idle = 0;
        while idle < 16 {
            let before = self.physical.complete_all();
            idle = if before.is_empty() && self.iommu.progress() == Progress::Waiting { idle + 1 } else { 0 };
            self.tell(before);
            if self.call(Iommu::run) == Progress::Idle {
                return;
            }
        }
    }

    /// A host that has no bad answer left serves again after a reset.
    pub(crate) fn end(mut self) {
        self.physical.set_pending(false);
        self.memory.clear_failures();
        self.memory.answer_drain(self.setup.counted.then_some(Completion::Done));
        for _ in 0..100 {
            let _ = self.call(Iommu::reset);
            self.settle();
            if self.iommu.progress() == Progress::Idle && self.iommu.health() == Health::Good {
                self.look(true);
                return;
            }
        }
        panic!("recovery: {:?}, {:?} after a reset", self.iommu.progress(), self.iommu.health());
    }
}
