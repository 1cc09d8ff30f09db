//! Two VMs on one host, and what is true after every step.

mod devices;
mod host;
mod owners;
mod stale;

use riscv_viommu::mock::{Hardware, Order, PhysicalDevice, Strategy};
use riscv_viommu::{Attachment, Gscid, Health, HostFault, Invalidation, Prgi, ProcessId, Ticket};

use crate::figures::Figures;
use crate::host::{HostMemory, Who, owner};
use crate::random::Random;
use crate::vm::{DEVICES, Vm, physical};

pub(crate) struct World {
    seed: u64,
    action: &'static str,
    traced: bool,
    rival: u64,
    hardware: Hardware,
    host: HostMemory,
    pub(crate) vms: [Vm; 2],
    /// Who has each device, from when the host gives it to its release.
    hands: [Option<Who>; DEVICES],
    /// Who had it last, and in which life.
    last: [Option<(Who, u64)>; DEVICES],
    /// It may hold translations that it was not made to forget: the host resets it before somebody else gets it.
    dirty: [bool; DEVICES],
    lives: [u64; 2],
    /// Every handle there ever was, and every ticket, by VM.
    handles: [Vec<Attachment>; 2],
    tickets: [Vec<Ticket>; 2],
    /// Groups of page requests that the guest is to answer.
    groups: [Vec<(Option<ProcessId>, Prgi)>; DEVICES],
    /// What the host has drained and not told yet.
    late: [Vec<(Attachment, HostFault)>; 2],
    images: [Vec<Vec<u8>>; 2],
    pub(crate) figures: Figures,
}

impl World {
    /// `rival` changes nothing but what the second guest does.
    pub(crate) fn new(seed: u64, rival: u64, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let (hardware, host) = (Hardware::default(), HostMemory::default());
        // How many steps a context takes may depend on the last one, which was the other's.
        let strategy = random.pick(&[Strategy::Switch, Strategy::ThroughBlocked, Strategy::Stepwise]);
        hardware.set_strategy(if traced { Strategy::Switch } else { strategy });
        let mut vm = |who: Who, rival: u64| {
            let mut random = Random::new(random.bits() ^ rival);
            Vm::new(&hardware, &host, who, Gscid::truncate(1 + u32::try_from(who).unwrap()), &mut random)
        };
        let vms = [vm(0, 0), vm(1, rival)];
        let mut world = Self {
            seed,
            action: "boot",
            traced,
            rival,
            hardware,
            host,
            vms,
            hands: [None; DEVICES],
            last: [None; DEVICES],
            dirty: [false; DEVICES],
            lives: [0; 2],
            handles: [Vec::new(), Vec::new()],
            tickets: [Vec::new(), Vec::new()],
            groups: Default::default(),
            late: [Vec::new(), Vec::new()],
            images: [Vec::new(), Vec::new()],
            figures: Figures { histories: 1, ..Figures::default() },
        };
        for who in 0..2 {
            let _ = world.vms[who].take_seen(traced);
        }
        world
    }

    /// What there was, at the end.
    pub(crate) fn into_figures(self) -> Figures {
        Figures { kept_out: self.figures.kept_out + self.host.kept_out(), ..self.figures }
    }

    /// Something happens.
    pub(crate) fn step(&mut self, mut random: Random) {
        let random = &mut random;
        self.figures.operations += 1;
        let (who, device) = (random.index(2), random.index(DEVICES));
        self.action = match random.below(100) {
            0..36 => self.guest(who),
            36..58 => self.device(device, random),
            58..64 => self.model(who, random),
            64..67 => self.run(who),
            67..71 => self.complete(who, random),
            71..74 => self.pending(who, random),
            74..79 => self.give(device, who, random),
            79..81 => self.take(device, who),
            81..83 => self.swap_model(who, random),
            83..89 => self.stale(who, random),
            89..91 => self.tell_late(who, random),
            91 => self.reset(who),
            92 => self.restore(who, random),
            93 => self.lose(who),
            94 | 95 => self.refuse(who, random),
            96 => self.memory_taken(who),
            97 => self.device_quirk(device, random),
            98 => self.give_up(who, random),
            _ if random.percent(60) => self.reborn(who, random),
            _ => self.save(who),
        };
        for who in 0..2 {
            let timely = random.percent(90);
            self.vms[who].answer(|| timely);
            self.check(Some(who));
            if self.vms[who].iommu.health() == Health::Failed {
                self.reset(who);
            }
        }
    }

    // What the host sees to.

    fn at(&self) -> String {
        format!("seed {}, operation {}, after {}", self.seed, self.figures.operations, self.action)
    }

    /// What is true whenever the host looks: `acting` is the VM on whose behalf something was done, if any.
    fn check(&mut self, acting: Option<Who>) {
        for who in 0..2 {
            let seen = self.vms[who].take_seen(self.traced);
            if acting != Some(who) {
                assert!(seen.is_nothing(), "{}: VM {who} is shown what is not its own: {seen:?}", self.at());
            }
            for order in &seen.orders {
                self.check_order(who, order);
            }
            for (at, _) in &seen.loads {
                assert_eq!(owner(at.get()), Some(who), "{}: a load of VM {who} at {at}", self.at());
            }
        }
        for (who, whose, at) in self.host.take_reached() {
            self.figures.accesses += 1;
            assert_eq!(who, whose, "{}: VM {who} reaches {at} of VM {whose}", self.at());
        }
        for device in 0..DEVICES {
            let met = self.hardware.meets(physical(device));
            let own = self.hands[device].map(|who| self.vms[who].gscid);
            assert!(met.is_none() || met == own, "{}: device {device} of {own:?} is translated by {met:?}", self.at());
        }
    }

    /// No order names what the VM does not have.
    fn check_order(&mut self, who: Who, order: &Order) {
        let named: Vec<_> = match order {
            Order::Adopt(device, _)
            | Order::SetContext(device, ..)
            | Order::AtsInvalidate(device, ..)
            | Order::PageResponse(device, ..)
            | Order::Release(device) => vec![*device],
            Order::Invalidate(orders, _) => orders.iter().filter_map(named).collect(),
            Order::Fence(ticket, ..) => {
                self.tickets[who].push(*ticket);
                Vec::new()
            }
            _ => panic!("{order:?} is not known here"),
        };
        self.figures.orders += 1;
        for device in named {
            let index = (0..DEVICES).find(|&index| physical(index) == device);
            let holder = index.and_then(|index| self.hands[index]);
            assert_eq!(holder, Some(who), "{}: VM {who} orders {order:?}", self.at());
        }
        if let Order::Release(device) = order {
            let device = (0..DEVICES).find(|&index| physical(index) == *device).unwrap();
            self.hands[device] = None;
            self.dirty[device] |= self.vms[who].refused;
        }
    }

    fn settle(&mut self, who: Who) {
        self.vms[who].settle();
        self.check(Some(who));
    }

    // What happens.

    fn guest(&mut self, who: Who) -> &'static str {
        self.vms[who].live();
        self.check(Some(who));
        "guest"
    }

    fn run(&mut self, who: Who) -> &'static str {
        let _ = self.vms[who].iommu.run();
        self.check(Some(who));
        "run"
    }

    fn complete(&mut self, who: Who, random: &mut Random) -> &'static str {
        let spared = random.index(2);
        let tickets = &self.tickets[who];
        let upto = tickets.get(tickets.len().saturating_sub(1 + spared)).copied();
        self.vms[who].complete(upto.unwrap_or(Ticket::new(u64::MAX)));
        self.check(Some(who));
        "complete"
    }

    fn pending(&self, who: Who, random: &mut Random) -> &'static str {
        self.vms[who].physical.set_pending(random.percent(60));
        "pending"
    }
}

fn named(order: &Invalidation<PhysicalDevice>) -> Option<PhysicalDevice> {
    match order {
        Invalidation::Device(device) | Invalidation::Process(device, _) => Some(*device),
        _ => None,
    }
}
