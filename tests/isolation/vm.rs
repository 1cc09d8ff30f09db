//! One VM: its vIOMMU, its guest, and what can be seen of it.

use std::hash::{DefaultHasher, Hash, Hasher};

use riscv_viommu::mock::{Event, Hardware, Memory, Order, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    Attachment, Completion, Config, DeviceMessage, Gpa, Gscid, Health, InterruptKinds, InvalidationCompletion, Parts,
    Progress, Ticket, VIommu, Width,
};

use crate::guest::{Act, Guest};
use crate::host::{HostMemory, Ram, Who};
use crate::random::Random;

pub(crate) type Iommu = VIommu<Parts<Ram, Wires, Physical>, 3, 3, 8, 2, 3>;

/// Devices that go from one VM to the other, and models of devices that the host emulates.
pub(crate) const DEVICES: usize = 3;
pub(crate) const MODELS: usize = 2;

/// The host's handle of a device.
pub(crate) fn physical(device: usize) -> PhysicalDevice {
    PhysicalDevice(0x101 + u32::try_from(device).unwrap())
}

/// All of a VM that a change would show in, of what its guest can see or the host ordered for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    registers: Vec<u64>,
    wires: u16,
}

/// What happened to a VM since it was last looked at.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) orders: Vec<Order>,
    pub(crate) events: Vec<Event>,
    pub(crate) loads: Vec<(Gpa, usize)>,
    pub(crate) has_changed: bool,
}

impl Seen {
    pub(crate) fn is_nothing(&self) -> bool {
        self.orders.is_empty() && self.events.is_empty() && self.loads.is_empty() && !self.has_changed
    }
}

pub(crate) struct Vm {
    pub(crate) iommu: Iommu,
    pub(crate) memory: Memory,
    pub(crate) physical: Physical,
    wires: Wires,
    pub(crate) guest: Guest,
    pub(crate) gscid: Gscid,
    pub(crate) ats: bool,
    /// The handles that are valid, of devices and of models.
    pub(crate) devices: [Option<Attachment>; DEVICES],
    pub(crate) models: [Option<Attachment>; MODELS],
    /// The host refused something in this life.
    pub(crate) refused: bool,
    /// The last fence that was issued, and the last that is complete.
    issued: Option<Ticket>,
    completed: Option<Ticket>,
    look: Look,
    /// Sums up all that was ever seen.
    pub(crate) trace: u64,
}

impl Vm {
    pub(crate) fn new(hardware: &Hardware, host: &HostMemory, own: Who, gscid: Gscid, random: &mut Random) -> Self {
        let memory = host.renew(own);
        let physical = hardware.vm(gscid, &memory);
        let wires = Wires::new(InterruptKinds::Both).logging_to(&memory);
        let ram = Ram { own, host: host.clone() };
        let mut iommu = Iommu::new(Parts { memory: ram, interrupts: wires.clone(), physical: physical.clone() });
        let ats = random.percent(75);
        let budget = u32::try_from(1 + random.below(8)).unwrap();
        let config = Config::nested().with_ats(ats).with_mirror(random.percent(50)).with_budget(budget);
        iommu.start(&config.with_synchronous_dma(true).with_reset_to_bare(random.percent(20))).unwrap();
        let mut vm = Self {
            iommu,
            memory,
            physical,
            wires,
            guest: Guest::new(own, random.bits(), ats),
            gscid,
            ats,
            devices: [None; DEVICES],
            models: [None; MODELS],
            refused: false,
            issued: None,
            completed: None,
            look: Look::default(),
            trace: 0,
        };
        for act in vm.guest.memory() {
            vm.act(act);
        }
        for act in vm.guest.boot() {
            vm.act(act);
        }
        vm.settle();
        vm
    }

    pub(crate) fn act(&mut self, act: Act) {
        match act {
            Act::Store(at, word) => self.memory.write(Gpa::new(at), word),
            Act::Write(offset, width, value) => drop(self.iommu.write(offset, width, value)),
        }
        for at in self.memory.take_watched_writes() {
            let _ = self.iommu.guest_wrote(at);
        }
    }

    /// The guest does something.
    pub(crate) fn live(&mut self) {
        for act in self.guest.next(&self.iommu) {
            self.act(act);
        }
    }

    /// Ends the fences that hardware is done with.
    pub(crate) fn complete(&mut self, upto: Ticket) {
        for ticket in self.physical.complete(upto) {
            let outcome = self.physical.outcome(ticket);
            self.completed = self.completed.max(Some(ticket));
            let _ = self.iommu.fence_done(ticket, outcome);
        }
    }

    /// Models of devices answer what they are asked.
    pub(crate) fn answer(&mut self, mut answers: impl FnMut() -> bool) {
        while let Some((to, message)) = self.iommu.next_message() {
            assert!(self.models.contains(&Some(to)), "{message:?} to {to:?}, which the guest does not have");
            if let DeviceMessage::Invalidation(request) = message {
                let _ = if answers() {
                    self.iommu.ats_completion(to, InvalidationCompletion::of(request.itag))
                } else {
                    self.iommu.ats_timeout(to, request.itag)
                };
            }
        }
    }

    /// The host does what it has to until nothing is left. One that failed is reset.
    pub(crate) fn settle(&mut self) {
        self.physical.set_pending(false);
        for round in 0..2000 {
            if self.iommu.health() == Health::Failed {
                let _ = self.iommu.reset();
            }
            self.complete(Ticket::new(u64::MAX));
            self.answer(|| true);
            if self.iommu.run() == Progress::Idle {
                return;
            }
            if round % 10 == 9 {
                // What models had taken before a restore.
                for model in self.models.into_iter().flatten() {
                    let all = InvalidationCompletion::new().with_itags(u32::MAX).with_cc(1);
                    let _ = self.iommu.ats_completion(model, all);
                }
            }
        }
        assert_eq!(self.iommu.progress(), Progress::Idle, "it goes on without an end");
    }

    /// Whether a handle is one of this VM's that are valid now. One of another VM's, or of an earlier life, may be the
    /// same number: it can not be told apart.
    pub(crate) fn knows(&self, handle: Attachment) -> bool {
        self.devices.contains(&Some(handle)) || self.models.contains(&Some(handle))
    }

    /// Whether a ticket is one of a fence that is under way.
    pub(crate) fn awaits(&self, ticket: Ticket) -> bool {
        Some(ticket) <= self.issued && Some(ticket) > self.completed
    }

    /// What happened since this was last asked.
    pub(crate) fn take_seen(&mut self, traced: bool) -> Seen {
        let orders = self.physical.take_orders();
        for order in &orders {
            if let Order::Fence(ticket, _, Ok(completion)) = order {
                self.issued = Some(*ticket);
                if *completion != Completion::Pending {
                    self.completed = Some(*ticket);
                }
            }
        }
        let registers = (0..1024).step_by(4).map(|offset| self.iommu.read(offset, Width::U32)).collect();
        let look = Look { registers, wires: self.wires.levels() };
        let has_changed = look != self.look;
        let seen = Seen { orders, events: self.memory.take_events(), loads: self.memory.take_loads(), has_changed };
        if traced && !seen.is_nothing() {
            let mut hasher = DefaultHasher::new();
            (self.trace, format!("{:?} {:?}", seen.orders, seen.events), &look.registers, look.wires).hash(&mut hasher);
            self.trace = hasher.finish();
        }
        self.look = look;
        let _ = (self.memory.take_unmapped(), self.memory.take_drains(), self.memory.take_watches());
        seen
    }
}
