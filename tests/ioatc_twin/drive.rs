//! A vIOMMU, what its devices ask, and how the answers are compared.

use riscv_viommu::mock::Wires;
use riscv_viommu::mock::guest::register;
use riscv_viommu::mock::tables::pte;
use riscv_viommu::{
    Ats, AtsCompletion, AtsRequest, Attachment, Capabilities, Cause, Config, DeviceId, DevicePolicy, GuestMemory,
    InterruptKinds, Iova, NoPhysical, Parts, Pbmt, Permissions, ProcessId, QosIds, Request, Target, TranslateError,
    VIommu, Width,
};

use crate::guest::{COMMANDS, Context, DATA, FAULTS, FILES, First, Guest};
use crate::random::Random;

/// A vIOMMU that remembers so many entries of each kind.
pub(crate) struct Iommu<M: GuestMemory, const CACHE: usize> {
    inner: VIommu<Parts<M, Wires, NoPhysical>, 8, 4, CACHE>,
    devices: Vec<Attachment>,
    tail: u64,
}

/// What a device asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    device: usize,
    iova: u64,
    length: u64,
    process: Option<(u32, bool)>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Execute,
    Message,
    TranslatedRead,
    TranslatedWrite,
    Ats { no_write: bool, execute: bool },
}

/// What it is told: a translation but for its epoch, or a fault. The record is compared beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    To(Target, u64, u64, Permissions, Pbmt, QosIds),
    Fault(Cause),
    Ats(AtsCompletion),
    Error(TranslateError),
}

impl Ask {
    /// Whether it is for the same page of the same device.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.device, self.process, self.iova >> 12) == (other.device, other.process, other.iova >> 12)
    }
}

impl Answer {
    pub(crate) const fn is_good(&self) -> bool {
        match self {
            Self::To(..) => true,
            Self::Ats(AtsCompletion::Success(to)) => to.read,
            _ => false,
        }
    }
}

impl<M: GuestMemory, const CACHE: usize> Iommu<M, CACHE> {
    pub(crate) fn new(memory: M, guest: &Guest) -> Self {
        let parts = Parts { memory, interrupts: Wires::new(InterruptKinds::Wired), physical: NoPhysical };
        let mut inner = VIommu::new(parts);
        let offer = Capabilities::from_bits(u64::MAX).with_pas(56).with_end(false);
        let config = Config::emulated().with_capabilities(offer).with_ats(true).with_synchronous_dma(true);
        assert_eq!(inner.start(&config.with_budget(1000)), Ok(()));
        let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
        let attach = |&(id, _): &(u32, Context)| inner.attach_emulated(DeviceId::truncate(id), policy).unwrap();
        let devices = guest.devices.iter().map(attach).collect();
        let mut all = Self { inner, devices, tail: 0 };
        // 256 commands, 128 records.
        all.write(register::CQB, Width::U64, COMMANDS >> 2 | 7);
        all.write(register::CQCSR, Width::U32, register::ENABLE);
        all.write(register::FQB, Width::U64, FAULTS >> 2 | 6);
        all.write(register::FQCSR, Width::U32, register::ENABLE);
        all.turn(guest, true);
        all
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        let _ = self.inner.write(offset, width, value);
    }

    /// 3LVL, or Bare.
    pub(crate) fn turn(&mut self, guest: &Guest, on: bool) {
        let ddtp = if on { guest.directory >> 2 | 4 } else { 1 };
        self.write(register::DDTP, Width::U64, ddtp);
    }

    /// Has the commands carried out that the guest wrote into the queue.
    pub(crate) fn ring(&mut self, commands: usize) {
        self.tail = (self.tail + u64::try_from(commands).unwrap()) % 256;
        self.write(register::CQT, Width::U32, self.tail);
        assert_eq!(self.inner.read(register::CQH, Width::U32), self.tail, "the commands are carried out");
    }

    pub(crate) fn perform(&mut self, ask: &Ask) -> Answer {
        let (device, iova) = (self.devices[ask.device], Iova::new(ask.iova));
        let process = ask.process.map(|(process, privileged)| (ProcessId::truncate(process), privileged));
        let request = match ask.kind {
            Kind::Read => Request::read(device, iova),
            Kind::Write => Request::write(device, iova),
            Kind::Execute => Request::execute(device, iova),
            Kind::Message => Request::msi(device, iova, 5),
            Kind::TranslatedRead => Request::read(device, iova).translated(),
            Kind::TranslatedWrite => Request::write(device, iova).translated(),
            Kind::Ats { no_write, execute } => {
                let request = AtsRequest::new(device, iova).with_no_write(no_write).with_execute(execute);
                let request = process.map_or(request, |(id, privileged)| request.with_process(id, privileged));
                let answer = self.inner.ats_translate(&request).map_or_else(Answer::Error, Answer::Ats);
                self.take_faults();
                return answer;
            }
        };
        let request = if ask.kind == Kind::Message { request } else { request.with_length(ask.length) };
        let request = process.map_or(request, |(id, privileged)| request.with_process(id, privileged));
        match self.inner.translate(&request) {
            Ok(to) => Answer::To(to.target, to.length, to.size, to.permissions, to.memory_type, to.qos),
            Err(TranslateError::Fault(cause)) => {
                self.take_faults();
                Answer::Fault(cause)
            }
            Err(error) => Answer::Error(error),
        }
    }

    fn take_faults(&mut self) {
        let tail = self.inner.read(register::FQT, Width::U32);
        self.write(register::FQH, Width::U32, tail);
    }
}

impl Guest {
    /// Writes the invalidations owed into the queue of every twin; how many these are.
    pub(crate) fn pay(&mut self, tail: &mut u64) -> usize {
        if !self.owed.is_empty() {
            // IOFENCE.C.
            self.owed.push([2, 0]);
        }
        let commands = std::mem::take(&mut self.owed);
        for command in &commands {
            self.write(COMMANDS + *tail * 16, command);
            *tail = (*tail + 1) % 256;
        }
        self.paid();
        commands.len()
    }

    /// What the next change is likely to be about.
    pub(crate) fn look_at(&mut self, ask: &Ask) {
        let context = self.devices[ask.device].1;
        let space = match (context.first, ask.process) {
            (First::Space(space), _) => Some(space),
            (First::Processes, process) => {
                let id = process.map_or(0, |process| process.0);
                self.realms[context.realm]
                    .processes
                    .iter()
                    .find(|process| process.id == id)
                    .and_then(|found| found.space)
            }
            _ => None,
        };
        let space = space.filter(|_| !matches!(ask.kind, Kind::TranslatedRead | Kind::TranslatedWrite));
        self.focus = Some((context.realm, space, ask.iova & !0xfff));
    }

    /// What a device asks next: for the most part, about what others did before.
    pub(crate) fn ask(&mut self, before: &[Ask]) -> Ask {
        if self.random.below(8) < u64::try_from(before.len()).unwrap() && self.random.percent(92) {
            let mut ask = self.random.pick(before);
            if self.random.percent(30) {
                ask.iova ^= self.random.below(0x1000);
            }
            if self.random.percent(15) {
                ask.kind = kind(&mut self.random);
            }
            return ask;
        }
        let mut device = self.random.index(self.devices.len());
        while !self.devices[device].1.valid && self.random.percent(90) {
            device = self.random.index(self.devices.len());
        }
        let context = self.devices[device].1;
        let (is_vm, kind) = (context.realm != 0, kind(&mut self.random));
        let is_gpa =
            is_vm && (context.first == First::Bare || matches!(kind, Kind::TranslatedRead | Kind::TranslatedWrite));
        let page = match self.random.below(8) {
            0 if is_gpa => FILES + (self.random.below(5) << 12),
            1 if is_gpa => DATA + (self.random.below(0x400) << 12),
            _ if is_gpa => self.data_address(),
            _ => self.address(),
        };
        let processes = &self.realms[context.realm].processes;
        let has_process = matches!(context.first, First::Processes | First::BareProcesses) && self.random.percent(85);
        let process = processes[self.random.index(processes.len())].id;
        let mut ask = Ask {
            device,
            iova: page | self.random.below(4) << 10,
            length: self.random.pick(&[1, 4, 64, 0x2000]),
            process: (has_process || self.random.percent(2)).then(|| (process, self.random.percent(30))),
            kind,
        };
        // What is not mapped is not asked for as often.
        for _ in 0..6 {
            if self.is_mapped(&ask) {
                break;
            }
            ask.iova = self.address() | ask.iova & 0xfff;
        }
        ask
    }

    fn is_mapped(&mut self, ask: &Ask) -> bool {
        self.look_at(ask);
        let Some((realm, Some(space), address)) = self.focus else {
            return true;
        };
        let tree = self.realms[realm].spaces[space].tree;
        let leaf = |level| self.slot(tree, address, level).ok().map(|(at, _)| self.read(at));
        (0..3).find_map(leaf).is_some_and(|entry| entry & (pte::V | pte::R | pte::U) == pte::V | pte::R | pte::U)
    }
}

fn kind(random: &mut Random) -> Kind {
    match random.below(20) {
        0..8 => Kind::Read,
        8..14 => Kind::Write,
        14 => Kind::Execute,
        15 => Kind::Message,
        16 => Kind::TranslatedRead,
        17 => Kind::TranslatedWrite,
        _ => Kind::Ats { no_write: random.percent(50), execute: random.percent(30) },
    }
}
