//! The command queue: fetching, carrying out, stopping and going on. [`command`] is the format.

pub mod command;
mod counts;

pub use command::{
    AtsInval, AtsPrgr, Command, Destination, InvalidationPayload, IofenceC, Iotinval, Legality, PageRange, RawCommand,
    ResponsePayload,
};
pub use counts::CommandCounts;

use zerocopy::FromZeros;

use crate::addr::Gpa;
use crate::ats::{Full, Itags};
use crate::backend::{Ats, Backend, FenceScope, Invalidation, Pages, Post};
use crate::drain::Drains;
use crate::emulated::Emulated;
use crate::error::{IllegalCommand, MemoryFault};
use crate::id::DeviceId;
use crate::last_error::LastError;
use crate::mem::View;
use crate::nest::{Barrier, Nest};
use crate::progress::{Budget, Progress};
use crate::regs::Cqcsr;
use crate::regs::file::Registers;
use crate::ring::Ring;
use crate::translate::Caches;

/// Commands read at once: bytes of one load.
const SPAN: usize = 16;

/// What the queue works on.
pub(crate) struct Env<
    'a,
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
> {
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

/// A fence that waits.
#[derive(Debug)]
struct Fence {
    command: IofenceC,
    barrier: Barrier,
    /// Which DMA of emulated devices it waits for is settled.
    drains: bool,
}

impl Fence {
    const fn new(command: IofenceC) -> Self {
        Self { command, barrier: Barrier::new(FenceScope::new(command.pr, command.pw)), drains: false }
    }
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

    /// Goes on with the queue as far as it can, and settles what its commands named.
    pub(crate) fn advance<
        B: Backend,
        const DEVICES: usize,
        const BATCH: usize,
        const CACHE: usize,
        const ITAGS: usize,
        const GROUPS: usize,
    >(
        &mut self,
        env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    ) -> Progress {
        let progress = self.execute(env);
        let csr = env.registers.cqcsr();
        if csr.busy() && self.fence.is_none() {
            // Turned off, and nothing it began is left.
            env.nest.release_batch(env.backend);
            env.registers.set_cqcsr(csr.with_cqon(false).with_busy(false));
        }
        progress.max(env.nest.settle(env.registers, env.backend, env.budget))
    }

    fn execute<
        B: Backend,
        const DEVICES: usize,
        const BATCH: usize,
        const CACHE: usize,
        const ITAGS: usize,
        const GROUPS: usize,
    >(
        &mut self,
        env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    ) -> Progress {
        if self.fence.is_some() {
            match self.go_on_with_fence(env) {
                Flow::Next => {}
                Flow::Wait(progress) => return progress,
                Flow::Stop => return Progress::Idle,
            }
        }
        while runs(env.registers.cqcsr()) && env.registers.cqh() != env.registers.cqt() {
            let mut buffer = [RawCommand::new_zeroed(); SPAN];
            let commands = match fetch(env, &mut buffer) {
                Ok(commands) => commands,
                // UNSPECIFIED: corrupted memory is a memory fault too (rule CQ-15).
                Err(fault) => {
                    let at = Ring::<16>::new(env.registers.cqb()).address(env.registers.cqh());
                    stop_at_memory(env, at, fault);
                    break;
                }
            };
            // What is behind a command that waits or stops is dropped here, and fetched again when its turn comes.
            for &command in commands {
                if !env.budget.take() {
                    return Progress::Runnable;
                }
                match self.carry_out(command, env) {
                    Flow::Next => {}
                    Flow::Wait(progress) => {
                        if self.fence.is_none() {
                            // Taken again when it is fetched again. What it waits for may need it meanwhile.
                            env.budget.give_back();
                        }
                        return progress;
                    }
                    Flow::Stop => return Progress::Idle,
                }
            }
        }
        Progress::Idle
    }

    /// Decides on the one copy of the command.
    fn carry_out<
        B: Backend,
        const DEVICES: usize,
        const BATCH: usize,
        const CACHE: usize,
        const ITAGS: usize,
        const GROUPS: usize,
    >(
        &mut self,
        raw: RawCommand,
        env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    ) -> Flow {
        let registers = &*env.registers;
        let legality = Legality::new(registers.capabilities(), registers.fctl().wsi(), registers.mode());
        let command = match Command::decode(raw, &legality) {
            Ok(command) => command,
            Err(IllegalCommand(reason)) => {
                let index = env.registers.cqh();
                env.nest.noted.note(LastError::IllegalCommand { index, command: raw, reason });
                env.counts.count_illegal();
                set_status(env.registers, |csr| csr.with_cmd_ill(true));
                return Flow::Stop;
            }
        };
        log::trace!("{command:x?}");
        match command {
            Command::IotinvalVma(operands) => {
                // For passthrough devices there is no second stage of the guest's own, and so one set of spaces, which
                // the host's GSCID tags; those of other VMs of the guest's do not exist (rule VC-22).
                if operands.gscid.is_none() {
                    if let Err(progress) = env.nest.invalidate(first_stage(&operands), env.backend) {
                        return Flow::Wait(progress);
                    }
                }
                env.caches.forget_first_stage(&operands);
                env.forget_dma(&first_stage(&operands));
            }
            // For passthrough devices there is no second stage to forget (rule VC-30).
            Command::IotinvalGvma(operands) => {
                env.caches.forget_second_stage(&operands);
                env.forget_dma(&Invalidation::Everything);
            }
            Command::IodirInvalPdt(device, process) => {
                if let Err(progress) = env.nest.inval_pdt(device, process, env.backend) {
                    return Flow::Wait(progress);
                }
                env.caches.forget_process(device, process);
                env.forget_dma(&Invalidation::Device(device));
            }
            Command::IodirInvalDdt(device) => {
                env.nest.inval_ddt(device);
                env.caches.forget_device(device);
                env.forget_dma(&device.map_or(Invalidation::Everything, Invalidation::Device));
            }
            Command::AtsInval(operands) => {
                if let Err(progress) = invalidate_at_device(&operands, env) {
                    return Flow::Wait(progress);
                }
            }
            Command::AtsPrgr(operands) => {
                if let Err(progress) = respond_to_device(&operands, env) {
                    return Flow::Wait(progress);
                }
            }
            Command::IofenceC(fence) => {
                self.fence = Some(Fence::new(fence));
                return self.go_on_with_fence(env);
            }
        }
        step_over(&command, env);
        Flow::Next
    }

    /// In the order of rules FEN-02 and VC-47: everything before it, the timeout, the store, the head, the wire.
    fn go_on_with_fence<
        B: Backend,
        const DEVICES: usize,
        const BATCH: usize,
        const CACHE: usize,
        const ITAGS: usize,
        const GROUPS: usize,
    >(
        &mut self,
        env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    ) -> Flow {
        let Some(Fence { command: fence, barrier, drains }) = &mut self.fence else {
            return Flow::Next;
        };
        // Nothing behind the fence has been fetched: what is under way to devices was ordered before it.
        if !env.ats.is_idle() {
            return Flow::Wait(Progress::Waiting);
        }
        // Accesses are ordered after that wait (rule FEN-02): what was translated during it counts too.
        if !core::mem::replace(drains, true) {
            env.drains.fence(fence.pr || fence.pw);
        }
        let is_drained = env.drains.is_done(env.backend);
        if let Err(progress) = env.nest.pass(barrier, env.registers, env.backend, env.budget) {
            return Flow::Wait(progress);
        }
        if !is_drained {
            return Flow::Wait(Progress::Waiting);
        }
        let fence = *fence;
        // Done, or stopped and then fetched and carried out again as a whole (rules FEN-05, FEN-07).
        self.fence = None;
        let timed_out = [env.nest.take_timeout(), env.ats.take_timeout()];
        if timed_out.contains(&true) {
            set_status(env.registers, |csr| csr.with_cmd_to(true));
            return Flow::Stop;
        }
        if let Some((at, data)) = fence.store {
            if let Err(fault) = View::of(env.registers).post(env.backend, at, data, Post::FenceData) {
                stop_at_memory(env, at, fault);
                return Flow::Stop;
            }
            env.counts.count_store();
        }
        step_over(&Command::IofenceC(fence), env);
        if fence.wsi {
            set_status(env.registers, |csr| csr.with_fence_w_ip(true));
        }
        Flow::Next
    }
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Emulated devices are to forget translations, too: those in use are waited for by the next fence. Of a device
    /// that is none of them nothing is told.
    fn forget_dma(&mut self, what: &Invalidation<DeviceId>) {
        self.drains.invalidate();
        let concerns_one = match what {
            Invalidation::Device(id) => self.emulated.named(*id).is_some(),
            _ => !self.emulated.is_empty(),
        };
        if concerns_one {
            self.backend.unmapped(what);
        }
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

/// `ATS.INVAL`, to a device that takes part in ATS. Other functions have none: no timeout is made up for them (rules
/// VC-11, VC-71).
fn invalidate_at_device<
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
>(
    operands: &AtsInval,
    env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
) -> Result<(), Progress> {
    match env.emulated.named(operands.destination.device()) {
        None => env.nest.ats_invalidate(operands, env.registers, env.backend, env.budget),
        Some(device) if device.ats == Ats::Off => Ok(()),
        Some(device) => env.ats.invalidate(device.attachment, operands).map_err(|Full| Progress::Waiting),
    }
}

/// `ATS.PRGR`, to a device that makes page requests; others are none the wiser.
fn respond_to_device<
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
>(
    operands: &AtsPrgr,
    env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
) -> Result<(), Progress> {
    match env.emulated.named(operands.destination.device()) {
        None => env.nest.respond(operands, env.backend),
        Some(device) if device.ats == Ats::Off => Ok(()),
        Some(device) => env.ats.respond(device.attachment, operands).map_err(|Full| Progress::Waiting),
    }
}

/// Whether a command may be fetched (rule CQ-02).
const fn runs(csr: Cqcsr) -> bool {
    csr.cqen() && csr.cqon() && !csr.cqmf() && !csr.cmd_to() && !csr.cmd_ill()
}

/// Reads the commands at the head, one load where they are contiguous. A load that fails is tried again for the first
/// of them alone, so that those before the unreadable one are carried out.
fn fetch<
    'b,
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
>(
    env: &Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    buffer: &'b mut [RawCommand; SPAN],
) -> Result<&'b [RawCommand], MemoryFault> {
    let registers = &*env.registers;
    let ring = Ring::<16>::new(registers.cqb());
    let view = View::of(registers);
    let at = ring.address(registers.cqh());
    let span = ring.span(registers.cqh(), registers.cqt());
    let commands = buffer.get_mut(..usize::try_from(span).unwrap_or(SPAN).min(SPAN)).unwrap_or_default();
    match (view.load(env.backend, at, &mut *commands), commands) {
        (Ok(()), commands) => Ok(commands),
        (Err(_), [first, _, ..]) => {
            view.load(env.backend, at, first)?;
            Ok(core::slice::from_ref(first))
        }
        (Err(fault), _) => Err(fault),
    }
}

/// The head moves past the command at it.
fn step_over<
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
>(
    command: &Command,
    env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
) {
    let ring = Ring::<16>::new(env.registers.cqb());
    let next = ring.next(env.registers.cqh());
    env.registers.set_cqh(next);
    env.counts.count(command);
}

/// The command at the head stops the queue, because of what it found `at` an address.
fn stop_at_memory<
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
>(
    env: &mut Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    at: Gpa,
    fault: MemoryFault,
) {
    let index = env.registers.cqh();
    env.nest.noted.note(LastError::CommandMemory { index, at, fault });
    set_status(env.registers, |csr| csr.with_cqmf(true));
}

/// Sets a status bit; all but `fence_w_ip` stop the queue.
fn set_status(registers: &mut Registers, set: impl FnOnce(Cqcsr) -> Cqcsr) {
    let csr = set(registers.cqcsr());
    registers.set_cqcsr(csr);
}
