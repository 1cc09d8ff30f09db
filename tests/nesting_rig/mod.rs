//! A VM under test: a vIOMMU over the modelled hardware, its guest's tables and queues, and orders as short text.

#![allow(dead_code, reason = "each test file uses its part of it")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a script that can not be set up fails"
)]

use riscv_viommu::mock::guest::{CommandRing, FaultRing, Iofence, register};
use riscv_viommu::mock::tables::{Directory, FirstStageTable, pte};
use riscv_viommu::mock::{Dma, Hardware, Memory, Order, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    Applied, Ats, AttachError, Attachment, Completion, Config, Context, DeviceId, DevicePolicy, FenceOutcome,
    FenceScope, FirstStageMode, Gpa, Gscid, HostCapabilities, InterruptKinds, Invalidation, Iova, Parts, Progress,
    Pscid, Ticket, VIommu, Width,
};

/// Where both first stages map a page, and what to.
pub(crate) const IOVA: Iova = Iova::new(0x4020_1000);
pub(crate) const PAGE_A: Gpa = Gpa::new(0x9000_a000);
pub(crate) const PAGE_B: Gpa = Gpa::new(0x9000_b000);

/// The guest's fence for reads and writes.
pub(crate) const FENCE: Iofence = Iofence::PLAIN.accesses(true, true);

/// `ddtp` values of the modes without a directory.
pub(crate) const OFF: u64 = 0;
pub(crate) const BARE: u64 = 1;

/// The guest's id of device `n`.
pub(crate) fn id(n: u32) -> DeviceId {
    DeviceId::new(0x08 + n).unwrap()
}

/// The host's handle of device `n` of the VM with this GSCID.
pub(crate) fn device(gscid: u32, n: u32) -> PhysicalDevice {
    PhysicalDevice(gscid << 8 | n)
}

pub(crate) fn pscid(number: u32) -> Pscid {
    Pscid::new(number).unwrap()
}

pub(crate) struct Rig<const DEVICES: usize = 16, const BATCH: usize = 16> {
    pub(crate) iommu: VIommu<Parts<Memory, Wires, Physical>, DEVICES, BATCH>,
    pub(crate) memory: Memory,
    pub(crate) physical: Physical,
    /// Three levels of base-format contexts, unless made with others.
    pub(crate) directory: Directory,
    pub(crate) commands: CommandRing,
    pub(crate) faults: FaultRing,
    /// Maps [`IOVA`] to [`PAGE_A`].
    pub(crate) a: FirstStageTable,
    /// Maps [`IOVA`] to [`PAGE_B`].
    pub(crate) b: FirstStageTable,
    gscid: u32,
}

impl Rig {
    /// On hardware of its own, started for nesting, queues on, `ddtp` Off.
    pub(crate) fn new() -> Self {
        Self::sized()
    }
}

impl<const DEVICES: usize, const BATCH: usize> Rig<DEVICES, BATCH> {
    /// The same with other capacities.
    pub(crate) fn sized() -> Self {
        Self::with(&Hardware::default(), 1, &Config::nested())
    }

    pub(crate) fn on(host: HostCapabilities, config: &Config) -> Self {
        Self::with(&Hardware::new(host), 1, config)
    }

    /// The VM with this GSCID on some hardware.
    pub(crate) fn with(hardware: &Hardware, gscid: u32, config: &Config) -> Self {
        let memory = Memory::new();
        let physical = hardware.vm(Gscid::new(gscid).unwrap(), &memory);
        let parts =
            Parts { memory: memory.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical: physical.clone() };
        let table = |page: Gpa| {
            let table = FirstStageTable::new(&memory, FirstStageMode::Sv39);
            memory.write(table.entry_address(IOVA, 0), page.get() >> 2 | pte::RW);
            table
        };
        let mut rig = Self {
            iommu: VIommu::new(parts),
            directory: Directory::new(&memory, 3, false),
            commands: CommandRing::new(&memory, 8, Gpa::new(0x7000_0000)),
            faults: FaultRing::new(&memory, 6, Gpa::new(0x7100_0000)),
            a: table(PAGE_A),
            b: table(PAGE_B),
            memory,
            physical,
            gscid,
        };
        rig.iommu.start(config).unwrap();
        rig.turn_on();
        rig
    }

    /// With a directory of so many levels, extended contexts or not; `config` says the same.
    pub(crate) fn levels(mut self, levels: u8, extended: bool) -> Self {
        self.directory = Directory::new(&self.memory, levels, extended);
        self
    }

    /// With device 0 attached and translating through table A with PSCID 1, all orders taken.
    pub(crate) fn translating(mut self) -> Self {
        self.directory.set(id(0), &self.a.context(pscid(1)));
        let _ = self.enter();
        let _ = self.attach(0);
        assert!(self.fence(), "the fence is complete");
        let _ = self.orders();
        self
    }

    /// Turns both queues on, from a reset state.
    pub(crate) fn turn_on(&mut self) {
        for (base, csr, value) in
            [(register::CQB, register::CQCSR, self.commands.cqb()), (register::FQB, register::FQCSR, self.faults.fqb())]
        {
            let _ = self.iommu.write(base, Width::U64, value);
            let _ = self.iommu.write(csr, Width::U32, register::ENABLE);
        }
    }

    pub(crate) fn try_attach(&mut self, n: u32) -> Result<(Attachment, Progress), AttachError> {
        self.try_attach_with(n, DevicePolicy::default())
    }

    pub(crate) fn attach_with(&mut self, n: u32, policy: DevicePolicy) -> (Attachment, Progress) {
        self.try_attach_with(n, policy).unwrap()
    }

    pub(crate) fn try_attach_with(
        &mut self,
        n: u32,
        policy: DevicePolicy,
    ) -> Result<(Attachment, Progress), AttachError> {
        let attached = self.iommu.attach(id(n), self.device(n), policy)?;
        Ok((attached.attachment, attached.progress))
    }

    pub(crate) fn attach(&mut self, n: u32) -> (Attachment, Progress) {
        self.try_attach(n).unwrap()
    }

    pub(crate) fn device(&self, n: u32) -> PhysicalDevice {
        device(self.gscid, n)
    }

    /// Pushes commands and rings.
    pub(crate) fn ring(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> Progress {
        let tail = self.commands.push_all(commands);
        self.iommu.write(register::CQT, Width::U32, tail)
    }

    /// Rings with a fence; whether it is complete.
    pub(crate) fn fence(&mut self) -> bool {
        let _ = self.ring([FENCE.encode()]);
        self.passed()
    }

    /// Whether every command is behind `cqh`.
    pub(crate) fn passed(&self) -> bool {
        self.read(register::CQH) == u64::from(self.commands.tail())
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U32)
    }

    pub(crate) fn ddtp(&mut self, value: u64) -> Progress {
        self.iommu.write(register::DDTP, Width::U64, value)
    }

    /// Writes the directory to `ddtp`.
    pub(crate) fn enter(&mut self) -> Progress {
        self.ddtp(self.directory.ddtp())
    }

    pub(crate) fn ddtp_busy(&self) -> bool {
        self.read(register::DDTP) & register::DDTP_BUSY != 0
    }

    /// Completes every fence that is pending, one after the other, and those that follow.
    pub(crate) fn complete(&mut self) -> Progress {
        self.physical.set_pending(false);
        for ticket in self.physical.complete_all() {
            let _ = self.iommu.fence_done(ticket, FenceOutcome::Complete);
        }
        self.iommu.progress()
    }

    /// Completes the fences that are pending; later ones stay so.
    pub(crate) fn complete_these(&mut self) -> Progress {
        for ticket in self.physical.complete_all() {
            let _ = self.iommu.fence_done(ticket, FenceOutcome::Complete);
        }
        self.iommu.progress()
    }

    /// Runs until nothing is left; how many calls that took.
    pub(crate) fn drain(&mut self) -> u32 {
        (0..1000).find(|_| self.iommu.run() == Progress::Idle).unwrap()
    }

    pub(crate) fn dma(&self, n: u32) -> Dma {
        self.physical.hardware().dma(self.device(n), None, IOVA, false)
    }

    /// The context hardware has in memory for a device.
    pub(crate) fn context(&self, n: u32) -> String {
        self.physical.context(self.device(n)).map_or("none".into(), |context| self.context_text(&context))
    }

    /// The fault records since they were last taken.
    pub(crate) fn records(&mut self) -> Vec<[u64; 4]> {
        let records = self.faults.take(self.read(register::FQT));
        let _ = self.iommu.write(register::FQH, Width::U32, self.faults.head().into());
        records
    }

    /// The orders since they were last taken, one line each: `adopt 0`, `0=Blocked`, `inv D0 FS`, `fence`,
    /// `release 0`. A fence that is pending ends in `..`, one with a scope other than PR and PW names it. An answer
    /// other than the usual one follows.
    pub(crate) fn orders(&self) -> Vec<String> {
        self.physical.take_orders().iter().map(|order| self.order_text(order)).collect()
    }

    /// The same, where asking again and again counts as once.
    pub(crate) fn orders_once(&self) -> Vec<String> {
        let mut orders = self.orders();
        orders.dedup();
        orders
    }

    fn order_text(&self, order: &Order) -> String {
        match order {
            Order::Adopt(device, answer) => format!("adopt {}{}", n_of(*device), answer_text(answer.map(|_| ""))),
            Order::SetContext(device, context, answer) => {
                let answer = answer.map(|applied| if applied == Applied::Blocked { " Blocked" } else { "" });
                format!("{}={}{}", n_of(*device), self.context_text(context), answer_text(answer))
            }
            Order::Invalidate(orders, answer) => {
                let orders: Vec<String> = orders.iter().map(invalidation_text).collect();
                format!("inv {}{}", orders.join(" "), answer_text(answer.map(|()| "")))
            }
            Order::Fence(_, FenceScope { reads, writes, .. }, answer) => {
                let scope = ["", " PW", " PR", " none"].into_iter().zip([(true, true), (false, true), (true, false)]);
                let scope =
                    scope.clone().find(|(_, scope)| *scope == (*reads, *writes)).map_or(" none", |(text, _)| text);
                let answer = answer.map(|done| if done == Completion::Pending { ".." } else { "" });
                format!("fence{scope}{}", answer_text(answer))
            }
            Order::AtsInvalidate(device, what, answer) => {
                let process = what.process.map_or(String::new(), |process| format!("@{}", process.get()));
                let global = if what.global { "+g" } else { "" };
                let (first, last) = (what.first.get() >> 12, what.last.get() >> 12);
                let (n, answer) = (n_of(*device), answer_text(answer.map(|()| "")));
                format!("ats {n} {first:x}-{last:x}{process}{global}{answer}")
            }
            Order::PageResponse(device, response, answer) => {
                let process = response.process.map_or(String::new(), |process| format!("@{}", process.get()));
                let (n, answer) = (n_of(*device), answer_text(answer.map(|()| "")));
                format!("prgr {n} {}{process} {:?}{answer}", response.group.get(), response.code)
            }
            Order::Release(device) => format!("release {}", n_of(*device)),
            other => panic!("an order without a text: {other:?}"),
        }
    }

    fn context_text(&self, context: &Context) -> String {
        let ats = match context.ats() {
            _ if *context == Context::Quiesced => "",
            Ats::Off => "",
            Ats::Translations => "+ats",
            Ats::PageRequests => "+pri",
        };
        let flag = |set, name| if set { name } else { "" };
        let text: String = match context {
            Context::Blocked => "Blocked".into(),
            Context::Quiesced => "Quiesced".into(),
            Context::SecondStageOnly { process_ids: true, .. } => "Bare+pid".into(),
            Context::SecondStageOnly { process_ids: false, .. } => "Bare".into(),
            Context::FirstStage(stage) => {
                let root = stage.root.base();
                let table = [("A", &self.a), ("B", &self.b)].into_iter().find(|(_, table)| table.root() == root);
                let name = table.map_or(format!("{root}"), |(name, _)| name.into());
                format!("{name}/{}{}{}", stage.pscid.get(), flag(stage.sade, "+sade"), flag(stage.sbe, "+sbe"))
            }
            Context::Processes(processes) => {
                let (mode, dpe) = (processes.mode, flag(processes.dpe, "+dpe"));
                format!("{mode:?}{dpe}{}{}", flag(processes.sade, "+sade"), flag(processes.sbe, "+sbe"))
            }
            other => panic!("a context without a text: {other:?}"),
        };
        text + ats
    }

    /// The tickets of the fences since orders were last taken.
    pub(crate) fn tickets(&self) -> Vec<Ticket> {
        let ticket = |order: &Order| match order {
            Order::Fence(ticket, ..) => Some(*ticket),
            _ => None,
        };
        self.physical.take_orders().iter().filter_map(ticket).collect()
    }
}

fn n_of(device: PhysicalDevice) -> u32 {
    device.0 & 0xff
}

fn answer_text(answer: Result<&str, riscv_viommu::OrderError>) -> String {
    match answer {
        Ok(text) => text.into(),
        Err(error) => format!(" {error:?}").replace(" { done: ", "(").replace(" }", ")"),
    }
}

fn invalidation_text(order: &Invalidation<PhysicalDevice>) -> String {
    match order {
        Invalidation::Device(device) => format!("D{}", n_of(*device)),
        Invalidation::Process(device, process) => format!("P{}:{}", n_of(*device), process.get()),
        Invalidation::Pages(pages) => {
            let pscid = pages.pscid.map_or(String::new(), |pscid| format!("@{}", pscid.get()));
            let non_leaf = if pages.non_leaf { "+nl" } else { "" };
            format!("{:x}-{:x}{pscid}{non_leaf}", pages.first.get() >> 12, pages.last.get() >> 12)
        }
        Invalidation::AddressSpace(pscid) => format!("S{}", pscid.get()),
        Invalidation::FirstStage => "FS".into(),
        Invalidation::Everything => "All".into(),
        other => panic!("an invalidation without a text: {other:?}"),
    }
}
