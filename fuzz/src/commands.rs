//! A command queue: commands that could be, and garbage, for devices of both kinds.

use arbitrary::Arbitrary;
use riscv_viommu::mock::guest::{AtsCommand, Iofence, Iotinval, inval_ddt, inval_pdt, register as reg};
use riscv_viommu::{
    AtsRequest, DeviceId, DeviceMessage, Gpa, Gscid, Health, InvalidationCompletion, ProcessId, Progress, Pscid,
    Request, Width,
};

use crate::guest::{COMMANDS_LOG2, Meaning, PROCESS, PSCID, Place, Value};
use crate::invariants::Seldom;
use crate::machine::{EMULATED, Iommu, Machine, PASSTHROUGH};
use crate::mmio;

/// A device of the guest's, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Device {
    Passthrough(bool),
    Emulated(bool),
    Any(u32),
}

impl Device {
    fn id(self) -> DeviceId {
        match self {
            Self::Passthrough(second) => PASSTHROUGH[usize::from(second)].0,
            Self::Emulated(second) => EMULATED[usize::from(second)].0,
            Self::Any(id) => DeviceId::truncate(id),
        }
    }
}

/// A process: none, that of the tables, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Process {
    None,
    Own,
    Any(u32),
}

impl Process {
    pub(crate) fn id(self) -> Option<ProcessId> {
        match self {
            Self::None => None,
            Self::Own => Some(PROCESS),
            Self::Any(id) => Some(ProcessId::truncate(id)),
        }
    }
}

/// What an IOTINVAL names.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Scope {
    address: Option<Value>,
    log2_pages: u8,
    pscid: Option<u32>,
    gscid: Option<u16>,
    non_leaf: bool,
}

impl Scope {
    fn operands(self) -> Iotinval {
        let Self { address, log2_pages, pscid, gscid, non_leaf } = self;
        let operands = match (address, log2_pages % 64) {
            (None, _) => Iotinval::ALL,
            (Some(at), size @ 1..=51) => Iotinval::ALL.range(at.iova(), size.into()),
            (Some(at), _) => Iotinval::ALL.address(at.iova()),
        };
        let pscid = pscid.map(|pscid| if pscid == 0 { PSCID } else { Pscid::truncate(pscid) });
        let operands = pscid.map_or(operands, |pscid| operands.pscid(pscid));
        let operands = gscid.map_or(operands, |gscid| operands.gscid(Gscid::truncate(gscid.into())));
        if non_leaf { operands.non_leaf() } else { operands }
    }
}

/// One command.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Command {
    Vma(Scope),
    Gvma(Scope),
    Fence {
        reads: bool,
        writes: bool,
        wsi: bool,
        store: Option<(Value, u32)>,
    },
    InvalDdt(Option<Device>),
    InvalPdt(Device, u32),
    AtsInval(Device, Process, Value),
    AtsPrgr(Device, Process, u16, u8),
    /// Opcode and function that may be, with anything in the rest.
    Coded {
        op: u8,
        function: u8,
        low: Value,
        high: Value,
    },
    Raw([u64; 2]),
}

impl Command {
    fn encode(self) -> [u64; 2] {
        let to = |device: Device, process: Process| {
            let to = AtsCommand::to((device.id().get() & 0xffff) as u16);
            process.id().map_or(to, |process| to.process(process))
        };
        match self {
            Self::Vma(scope) => scope.operands().vma(),
            Self::Gvma(scope) => scope.operands().gvma(),
            Self::Fence { reads, writes, wsi, store } => {
                let fence = Iofence::PLAIN.accesses(reads, writes);
                let fence = store.map_or(fence, |(at, data)| fence.store(Gpa::new(at.get() & !3), data));
                if wsi { fence.wsi().encode() } else { fence.encode() }
            }
            Self::InvalDdt(device) => inval_ddt(device.map(Device::id)),
            Self::InvalPdt(device, process) => inval_pdt(device.id(), ProcessId::truncate(process)),
            Self::AtsInval(device, process, payload) => to(device, process).inval(payload.get()),
            Self::AtsPrgr(device, process, group, code) => to(device, process).prgr(group & 0x1ff, code & 0xf),
            Self::Coded { op, function, low, high } => {
                [low.get() << 10 | u64::from(function & 7) << 7 | u64::from(op & 7), high.get()]
            }
            Self::Raw(words) => words,
        }
    }
}

/// What the guest does, and its devices.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Action {
    Guest(mmio::Action),
    Push(Command),
    Ring(Command),
    Doorbell,
    /// The same one many times, and one doorbell.
    Repeat(Command, u8),
    Context(u8, Meaning, u16),
    /// Takes the context of a device away, tells of it, and waits.
    TakeAway(u8),
    Pending(bool),
    Complete,
    /// An emulated device takes a message and completes it, or not.
    Message(bool),
    Completion(u8, u32, u8),
    /// A passthrough device accesses memory.
    Dma(bool, Process, Value, bool),
    /// An emulated one does.
    Access {
        device: u8,
        process: Process,
        iova: Value,
        write: bool,
        length: u16,
    },
    Ask(u8, Process, Value),
    Word(Place, Value),
}

impl Action {
    pub(crate) fn act(self, machine: &mut Machine) {
        match self {
            Self::Guest(action) => action.act(machine),
            Self::Push(command) => drop(machine.guest.commands.push(command.encode())),
            Self::Ring(command) => {
                machine.guest.commands.push(command.encode());
                doorbell(machine);
            }
            Self::Doorbell => doorbell(machine),
            Self::Repeat(command, times) => {
                let commands = std::iter::repeat_n(command.encode(), times.into());
                machine.guest.commands.push_all(commands);
                doorbell(machine);
            }
            Self::Context(device, meaning, bits) => machine.guest.set_context(device, meaning, u64::from(bits) & 0x7fe),
            Self::TakeAway(device) => take_away(machine, device),
            Self::Pending(pending) => machine.physical.set_pending(pending),
            Self::Complete => machine.complete(),
            Self::Message(answers) => message(machine, answers),
            Self::Completion(device, itags, count) => {
                let (from, completion) = (machine.emulated(device), InvalidationCompletion::new().with_itags(itags));
                let _ = machine.call(|iommu| iommu.ats_completion(from, completion.with_cc(count & 7)));
            }
            Self::Dma(second, process, iova, write) => {
                let device = PASSTHROUGH[usize::from(second)].1;
                let _ = machine.hardware.dma(device, process.id(), iova.iova(), write);
            }
            Self::Access { device, process, iova, write, length } => {
                let device = machine.emulated(device);
                let ask = if write { Request::write } else { Request::read };
                let request = ask(device, iova.iova()).with_length(length.into());
                let request = process.id().map_or(request, |process| request.with_process(process, false));
                let _ = machine.call(|iommu| iommu.translate(&request));
            }
            Self::Ask(device, process, iova) => {
                let mut request = AtsRequest::new(machine.emulated(device), iova.iova());
                request.process = process.id();
                let _ = machine.call(|iommu| iommu.ats_translate(&request));
            }
            Self::Word(at, value) => machine.memory.write(at.get(&machine.memory), value.get()),
        }
    }
}

fn doorbell(machine: &mut Machine) {
    let tail = machine.guest.commands.tail();
    machine.write(reg::CQT, tail.into());
}

fn message(machine: &mut Machine, answers: bool) {
    if let Some((from, DeviceMessage::Invalidation(request))) = machine.call(Iommu::next_message).filter(|_| answers) {
        let completion = InvalidationCompletion::of(request.itag);
        let _ = machine.call(|iommu| iommu.ats_completion(from, completion));
    }
}

/// Once a fence behind `IODIR.INVAL_DDT` is passed, a device whose context is not valid can do nothing.
fn take_away(machine: &mut Machine, device: u8) {
    let context = machine.guest.context(device);
    machine.memory.write(context, 0);
    let Some(id) = machine.guest.found(device) else { return };
    let tail = machine.guest.commands.push_all([inval_ddt(Some(id)), Iofence::PLAIN.accesses(true, true).encode()]);
    let runs = |machine: &Machine| {
        let stops = reg::MEMORY_FAULT | reg::CMD_TO | reg::CMD_ILL | reg::BUSY;
        machine.read(reg::CQCSR) & (stops | reg::ON) == reg::ON
    };
    // The queue and the directory are those the guest began with; nobody else writes.
    let own = (machine.guest.cqb, machine.guest.directory.ddtp());
    let is = |machine: &Machine, offset: u64| machine.iommu.read(offset, Width::U64);
    if machine.raced || !runs(machine) || own != (is(machine, reg::CQB), is(machine, reg::DDTP)) {
        return;
    }
    // Nor were the two written over commands that may have been fetched, or past the head, where they are in no queue.
    let behind_head = |index: u64| index.wrapping_sub(machine.read(reg::CQH)) % (1 << COMMANDS_LOG2);
    // With the tail moved back to the head, a fence that was fetched may still wait there.
    let waits = u64::from(machine.iommu.progress() != Progress::Idle);
    let first = behind_head(tail.wrapping_sub(2));
    if first < behind_head(machine.read(reg::CQT)).max(waits) || first + 2 >= 1 << COMMANDS_LOG2 {
        return;
    }
    let _ = machine.call(|iommu| iommu.write(reg::CQT, Width::U32, tail));
    for _ in 0..64 {
        if runs(machine) && machine.read(reg::CQH) == tail && machine.memory.read(context) == 0 {
            blocked(machine, id);
            return;
        }
        machine.complete();
        message(machine, true);
        let _ = machine.call(Iommu::run);
    }
}

fn blocked(machine: &mut Machine, id: DeviceId) {
    Seldom::BlockedBehindFence.note();
    if machine.iommu.health() == Health::Good {
        for (_, device) in PASSTHROUGH.into_iter().filter(|(other, _)| *other == id) {
            assert!(!machine.is_open(device), "blocked: {id:?} translates behind the fence");
        }
    }
    for attachment in machine.emulated.clone().into_iter().filter(|attachment| attachment.device() == id) {
        let to = machine.call(|iommu| iommu.translate(&Request::read(attachment, Value::Iova(0, 0).iova())));
        assert!(to.is_err(), "blocked: {id:?} gets {to:?} behind the fence");
    }
}

/// The target.
pub fn run(input: &[u8]) {
    crate::fuzz(input, |machine, action: Action| action.act(machine));
}
