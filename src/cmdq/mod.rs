//! The command queue: fetching, carrying out, stopping and going on. [`command`] is the format.

pub mod command;
mod counts;
mod devices;
mod fence;
mod fetch;

pub use command::{
    AtsInval, AtsPrgr, Command, Destination, InvalidationPayload, IofenceC, Iotinval, Legality, PageRange, RawCommand,
    ResponsePayload,
};
pub use counts::CommandCounts;

use zerocopy::FromZeros;

use crate::addr::Gpa;
use crate::ats::Itags;
use crate::backend::{Backend, Invalidation, Pages};
use crate::drain::Drains;
use crate::emulated::Emulated;
use crate::error::{IllegalCommand, MemoryFault, Violation};
use crate::last_error::LastError;
use crate::nest::Nest;
use crate::progress::{Budget, Progress};
use crate::regs::Cqcsr;
use crate::regs::file::Registers;
use crate::ring::Ring;
use crate::translate::Caches;

use fence::Fence;
use fetch::{SPAN, fetch, runs};

/// The queue, and what it works on.
pub(crate) struct Env<
    'a,
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
> {
    pub(crate) queue: &'a mut CommandQueue,
    pub(crate) registers: &'a mut Registers,
    pub(crate) nest: &'a mut Nest<B::Device, DEVICES, BATCH, ITAGS, GROUPS>,
    pub(crate) emulated: &'a Emulated<DEVICES>,
    pub(crate) ats: &'a mut Itags<ITAGS>,
    pub(crate) caches: &'a mut Caches<CACHE>,
    pub(crate) drains: &'a mut Drains,
    pub(crate) backend: &'a mut B,
    pub(crate) budget: &'a mut Budget,
    pub(crate) counts: &'a mut CommandCounts,
}

/// The queue's own state: the fence at its head, while that waits.
#[derive(Debug)]
pub(crate) struct CommandQueue {
    fence: Option<Fence>,
}

/// What is to happen after a command.
enum Flow {
    /// The next one.
    Next,
    /// Nothing: the head does not move until the physical side, or the next call, goes on.
    Wait(Progress),
    /// Nothing until the guest clears the error bit that was set.
    Stop,
}

impl CommandQueue {
    pub(crate) const fn new() -> Self {
        Self { fence: None }
    }

    /// The fence that waits at the head.
    pub(crate) fn parked(&self) -> Option<IofenceC> {
        self.fence.as_ref().map(|fence| fence.command)
    }

    /// A queue at whose head this fence waits, not ordered yet.
    pub(crate) fn restored(parked: Option<IofenceC>) -> Self {
        Self { fence: parked.map(Fence::new) }
    }
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Goes on with the queue as far as it can, and settles what its commands named.
    pub(crate) fn advance(&mut self) -> Progress {
        let progress = self.execute();
        let csr = self.registers.cqcsr();
        if csr.busy() && self.queue.fence.is_none() {
            // Turned off, and nothing it began is left.
            self.nest.release_batch(self.backend);
            self.registers.set_cqcsr(csr.with_cqon(false).with_busy(false));
        }
        progress.max(self.nest.settle(self.registers, self.backend, self.budget))
    }

    fn execute(&mut self) -> Progress {
        if let Some(fence) = self.queue.fence.take() {
            match self.go_on_with_fence(fence) {
                Flow::Next => {}
                Flow::Wait(progress) => return progress,
                Flow::Stop => return Progress::Idle,
            }
        }
        while runs(self.registers.cqcsr()) && self.registers.cqh() != self.registers.cqt() {
            let mut buffer = [RawCommand::new_zeroed(); SPAN];
            let commands = match fetch(self.registers, self.backend, &mut buffer) {
                Ok(commands) => commands,
                // UNSPECIFIED: corrupted memory is a memory fault too (rule CQ-15).
                Err(fault) => {
                    let at = Ring::<16>::new(self.registers.cqb()).address(self.registers.cqh());
                    self.stop_at_memory(at, fault);
                    break;
                }
            };
            match self.carry_out(commands) {
                Flow::Next => {}
                Flow::Wait(progress) => return progress,
                Flow::Stop => return Progress::Idle,
            }
        }
        Progress::Idle
    }

    /// Decides on the one copy of the commands. What is behind one that waits or stops is dropped here, and fetched
    /// again when its turn comes.
    fn carry_out(&mut self, commands: &[RawCommand]) -> Flow {
        // None of this changes while commands are carried out.
        let registers = &*self.registers;
        let legality = Legality::new(registers.capabilities(), registers.fctl().wsi(), registers.mode());
        let mut rest = commands;
        while let Some((&raw, behind)) = rest.split_first() {
            if !self.budget.take() {
                return Flow::Wait(Progress::Runnable);
            }
            let mut command = match Command::decode(raw, &legality) {
                Ok(command) => command,
                Err(IllegalCommand(reason)) => return self.stop_at_illegal(raw, reason),
            };
            let joined = match &mut command {
                Command::IotinvalVma(operands) | Command::IotinvalGvma(operands) => {
                    let within = behind.len().min(self.budget.left());
                    operands.join(raw, behind.get(..within).unwrap_or_default())
                }
                _ => 0,
            };
            log::trace!("{command:x?}, {joined} more joined");
            match self.obey(&command, joined) {
                Ok(Flow::Next) => self.budget.spend(joined),
                Ok(stays) => return stays,
                Err(progress) => {
                    // Taken again when it is fetched again. What it waits for may need it meanwhile.
                    self.budget.give_back();
                    return Flow::Wait(progress);
                }
            }
            rest = behind.get(joined..).unwrap_or_default();
        }
        Flow::Next
    }

    #[cold]
    fn stop_at_illegal(&mut self, command: RawCommand, reason: &'static Violation) -> Flow {
        let index = self.registers.cqh();
        self.nest.noted.note(LastError::IllegalCommand { index, command, reason });
        self.counts.count_illegal();
        self.set_status(|csr| csr.with_cmd_ill(true));
        Flow::Stop
    }

    /// Carries out a command that others were joined with: for passthrough devices first, since only there it may have
    /// to wait, and is then carried out again as a whole.
    fn obey(&mut self, command: &Command, joined: usize) -> Result<Flow, Progress> {
        match command {
            Command::IotinvalVma(operands) => {
                // For passthrough devices there is no second stage of the guest's own, and so one set of spaces, which
                // the host's GSCID tags; those of other VMs of the guest's do not exist (rule VC-22).
                if operands.gscid.is_none() {
                    self.nest.invalidate(first_stage(operands), self.backend)?;
                }
                self.caches.forget_first_stage(operands);
                self.forget_dma(&first_stage(operands));
            }
            // For passthrough devices there is no second stage to forget (rule VC-30).
            Command::IotinvalGvma(operands) => {
                self.caches.forget_second_stage(operands);
                self.forget_dma(&Invalidation::Everything);
            }
            &Command::IodirInvalPdt(device, process) => {
                self.nest.inval_pdt(device, process, self.backend)?;
                self.caches.forget_process(device, process);
                self.forget_dma(&Invalidation::Device(device));
            }
            &Command::IodirInvalDdt(device) => {
                self.nest.inval_ddt(device);
                self.caches.forget_device(device);
                self.forget_dma(&device.map_or(Invalidation::Everything, Invalidation::Device));
            }
            Command::AtsInval(operands) => self.invalidate_at_device(operands)?,
            Command::AtsPrgr(operands) => self.respond_to_device(operands)?,
            Command::IofenceC(fence) => return Ok(self.go_on_with_fence(Fence::new(*fence))),
        }
        self.step_over(command, joined);
        Ok(Flow::Next)
    }

    /// The head moves past the command at it, and those that were joined with it.
    fn step_over(&mut self, command: &Command, joined: usize) {
        let ring = Ring::<16>::new(self.registers.cqb());
        let passed = u32::try_from(joined).unwrap_or(u32::MAX).saturating_add(1);
        self.registers.set_cqh(ring.after(self.registers.cqh(), passed));
        self.counts.count(command, passed);
    }

    /// The command at the head stops the queue, because of what it found `at` an address.
    fn stop_at_memory(&mut self, at: Gpa, fault: MemoryFault) {
        let index = self.registers.cqh();
        self.nest.noted.note(LastError::CommandMemory { index, at, fault });
        self.set_status(|csr| csr.with_cqmf(true));
    }

    /// Sets a status bit; all but `fence_w_ip` stop the queue.
    fn set_status(&mut self, set: impl FnOnce(Cqcsr) -> Cqcsr) {
        let csr = set(self.registers.cqcsr());
        self.registers.set_cqcsr(csr);
    }
}

/// An `IOTINVAL.VMA` as an order.
fn first_stage<D>(operands: &Iotinval) -> Invalidation<D> {
    match (operands.range, operands.pscid) {
        (Some(range), pscid) => {
            Invalidation::Pages(Pages { first: range.first(), last: range.last(), pscid, non_leaf: range.non_leaf() })
        }
        (None, Some(pscid)) => Invalidation::AddressSpace(pscid),
        (None, None) => Invalidation::FirstStage,
    }
}
