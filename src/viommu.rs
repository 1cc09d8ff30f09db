//! [`VIommu`]: owns everything, and is the only place that sees everything.

mod dma;
mod drive;
mod emulated;
mod memory;
mod migration;
mod monitor;
mod passthrough;
mod policy;

pub use dma::Pieces;
pub use passthrough::{Attached, PageRequestOutcome};
pub use policy::DevicePolicy;

use crate::ats::Itags;
use crate::attachment::Generations;
use crate::backend::{Backend, FenceScope, Invalidation};
use crate::cmdq::CommandQueue;
use crate::config::Config;
use crate::drain::Drains;
use crate::emulated::Emulated;
use crate::error::{ConfigError, DetachError};
use crate::faultq::FaultQueue;
use crate::id::DeviceId;
use crate::interrupt::Signals;
use crate::last_error::LastError;
use crate::nest::{Barrier, Health, Nest};
use crate::progress::Progress;
use crate::regs::file::{Effect, Registers};
use crate::regs::{Capabilities, Width, low_half};
use crate::stats::Stats;
use crate::translate::Caches;

/// A virtual RISC-V IOMMU for one guest.
///
/// | parameter | what it is | default |
/// |---|---|---|
/// | `B` | the host: [`Backend`] | |
/// | `DEVICES` | passthrough devices that can be attached at a time, and as many emulated ones | 16 |
/// | `BATCH` | invalidations for the physical side that are held back to go out together | 16 |
/// | `CACHE` | contexts and translations, of each kind, remembered for emulated devices, and their last answers; 0: none. About 360 bytes each. An answer is found at once; what it is made of is searched one after the other: 16 to 256 are useful, more can be slower than none | 0 |
/// | `ITAGS` | ATS invalidations that are not complete, 1 to 32: so many of emulated devices, and of passthrough ones | 2 |
/// | `GROUPS` | page-request groups of passthrough devices that the guest has not answered | 8 |
///
/// Calls that can leave work behind return a [`Progress`]: [`Runnable`](Progress::Runnable) asks for [`run`](Self::run)
/// before the vCPU goes on or blocks, [`Waiting`](Progress::Waiting) for [`fence_done`](Self::fence_done) when the
/// hardware is done, for [`drained`](Self::drained) when DMA of emulated devices is and, in case the host was
/// [`Busy`](crate::OrderError::Busy), for `run` at every exit or from a timer. The vCPU goes on meanwhile, with two
/// exceptions: after [`reset`](Self::reset) the guest does not run before the progress is [`Idle`](Progress::Idle), and
/// after [`shutdown`](Self::shutdown) the vIOMMU is not dropped before. Whichever thread made the call goes on with
/// `run`, and bounds how often in a row: a guest can keep its queue full. With ATS it takes
/// [messages](Self::next_message), too.
///
/// DMA of a device the host emulates goes through [`translate`](Self::translate) and [`pieces`](Self::pieces), which
/// need no [`run`](Self::run): they answer at once.
///
/// ```
/// # use riscv_viommu::mock::{Hardware, Memory, Physical, Wires};
/// # use riscv_viommu::{Parts, VIommu};
/// # use std::sync::Mutex;
/// # type Host = Parts<Memory, Wires, Physical>;
/// /// One lock for each vIOMMU.
/// static IOMMU: Mutex<Option<VIommu<Host, 4>>> = Mutex::new(None);
/// ```
#[derive(Debug)]
pub struct VIommu<
    B: Backend,
    const DEVICES: usize = 16,
    const BATCH: usize = 16,
    const CACHE: usize = 0,
    const ITAGS: usize = 2,
    const GROUPS: usize = 8,
> {
    backend: B,
    /// `None` until [`start`](Self::start).
    config: Option<Config>,
    /// What was offered at the start; a guest that was restored may see less.
    offered: Capabilities,
    registers: Registers,
    signals: Signals,
    faults: FaultQueue,
    commands: CommandQueue,
    nest: Nest<B::Device, DEVICES, BATCH, ITAGS, GROUPS>,
    emulated: Emulated<DEVICES>,
    ats: Itags<ITAGS>,
    caches: Caches<CACHE>,
    drains: Drains,
    generations: Generations,
    /// What the last `ddtp` write waits for.
    directory: Option<Barrier>,
    /// What memory taken from the guest waits for.
    memory_taken: Option<Barrier>,
    /// How many `ddtp` writes are done.
    directories: u64,
    /// What the last call left.
    progress: Progress,
    stats: Stats,
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// A vIOMMU that does nothing until [`start`](Self::start): registers read 0.
    #[must_use]
    pub const fn new(backend: B) -> Self {
        Self {
            backend,
            config: None,
            offered: Capabilities::new(),
            registers: Registers::new(),
            signals: Signals::new(),
            faults: FaultQueue::new(),
            commands: CommandQueue::new(),
            nest: Nest::new(),
            emulated: Emulated::new(),
            ats: Itags::new(),
            caches: Caches::new(),
            drains: Drains::new(),
            generations: Generations::new(),
            directory: None,
            memory_taken: None,
            directories: 0,
            progress: Progress::Idle,
            stats: Stats::NONE,
        }
    }

    /// Fixes what the guest is offered, and resets the registers.
    ///
    /// # Errors
    /// [`ConfigError`] names what does not fit the crate or the host; the vIOMMU is then as before.
    pub fn start(&mut self, config: &Config) -> Result<(), ConfigError> {
        if self.config.is_some() {
            return Err(ConfigError::AlreadyStarted);
        }
        let setup =
            config.setup(self.backend.kinds(), self.backend.has_compare_exchange(), &self.backend.capabilities())?;
        self.offered = setup.capabilities;
        self.registers = Registers::of(setup);
        self.config = Some(*config);
        self.finish();
        Ok(())
    }

    /// What a load of the guest reads at `offset` of the register page. Has no side effect; offsets without a
    /// register, misaligned ones and accesses that cover two registers read 0.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        match self.config {
            Some(_) => self.registers.read(offset, width),
            None => 0,
        }
    }

    /// A store of the guest to `offset` of the register page. Where there is no register it has no effect; of a 4-byte
    /// store the low half of `value` counts.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Progress {
        if self.config.is_none() {
            return Progress::Idle;
        }
        match self.registers.write(offset, width, value) {
            Effect::None => {}
            Effect::Doorbell => {
                self.nest.reread_one_not_valid();
                self.advance();
            }
            Effect::Commands => self.advance(),
            Effect::Directory => {
                self.nest.release_batch(&mut self.backend);
                self.nest.reread_all();
                self.forget_translations();
                self.directory = Some(Barrier::new(FenceScope::ALL));
                self.advance();
            }
            Effect::Debug => self.translate_for_debug(),
        }
        self.finish();
        self.progress
    }

    /// A load of any size and alignment: little-endian bytes of the register page. What is not a legal access
    /// (4 or 8 bytes, aligned, within one register) reads 0.
    pub fn mmio_read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *bytes) {
            *word = low_half(self.read(offset, Width::U32)).to_le_bytes();
        } else if let Ok(word) = <&mut [u8; 8]>::try_from(bytes) {
            *word = self.read(offset, Width::U64).to_le_bytes();
        }
    }

    /// A store of any size and alignment: little-endian bytes. What is not a legal access has no effect.
    pub fn mmio_write(&mut self, offset: u64, bytes: &[u8]) -> Progress {
        if let Ok(word) = <[u8; 4]>::try_from(bytes) {
            self.write(offset, Width::U32, u32::from_le_bytes(word).into())
        } else if let Ok(word) = <[u8; 8]>::try_from(bytes) {
            self.write(offset, Width::U64, u64::from_le_bytes(word))
        } else {
            self.progress
        }
    }

    /// Goes on with work that was left.
    pub fn run(&mut self) -> Progress {
        self.advance();
        self.finish();
        self.progress
    }

    /// Takes a device from the guest. A passthrough device is blocked, invalidated, fenced and released: done when the
    /// progress is [`Idle`](Progress::Idle); until then the id stays in use. One that had ATS is told before to forget
    /// what it keeps itself; if it does not answer, it is released all the same. What it asked the guest for is
    /// forgotten. Of an emulated device the messages under way are forgotten at once, and
    /// [`unmapped`](crate::GuestMemory::unmapped) is told. Nothing waits for its DMA: stop its model and drain that
    /// yourself first.
    ///
    /// # Errors
    /// [`DetachError`] if there is no such device.
    pub fn detach(&mut self, id: DeviceId) -> Result<Progress, DetachError> {
        match self.emulated.detach(id) {
            Some(device) => {
                self.ats.forget(device.attachment);
                self.caches.recent.clear();
                self.backend.unmapped(&Invalidation::Device(id));
            }
            None => self.nest.detach(id)?,
        }
        Ok(self.run())
    }

    /// Resets the IOMMU as its guest sees it: registers at once, waiters forgotten. Every device is blocked,
    /// invalidated and fenced, and stays attached; the guest must not run before the progress is
    /// [`Idle`](Progress::Idle).
    pub fn reset(&mut self) -> Progress {
        self.clear();
        self.run()
    }

    /// As after a reset; devices are yet to be blocked.
    fn clear(&mut self) {
        let Self {
            backend: _,
            config: _,
            offered: _,
            registers,
            signals,
            faults,
            commands,
            nest,
            emulated: _,
            ats,
            caches: _,
            drains: _,
            generations: _,
            directory,
            memory_taken,
            directories: _,
            progress: _,
            stats: _,
        } = self;
        registers.reset();
        signals.reset();
        *faults = FaultQueue::new();
        *commands = CommandQueue::new();
        nest.reset();
        ats.reset();
        *directory = None;
        // Every device is driven anew: what was under way is covered by that.
        *memory_taken = memory_taken.take().map(|_| Barrier::new(FenceScope::ALL));
        self.forget_translations();
    }

    /// Takes every device from the guest: to be called before the vIOMMU is dropped, which by itself does nothing. Done
    /// when the progress is [`Idle`](Progress::Idle): DMA of emulated devices is waited for, too.
    pub fn shutdown(&mut self) -> Progress {
        self.nest.detach_all();
        self.forget_translations();
        self.emulated.detach_all();
        self.ats.reset();
        self.run()
    }

    /// Whether the physical side still does what it is told.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.nest.health()
    }

    /// What the last call left to do.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// Counts since [`new`](Self::new), also across resets.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        Stats { orders: self.nest.orders, ..self.stats }
    }

    /// What was refused last since the [`reset`](Self::reset), of what the guest said or of what the host was ordered:
    /// which field of which command or context, and by which rule. For who debugs a guest driver; what a guest does
    /// is logged at `debug` at most, and this is the line.
    ///
    /// A context counts when a passthrough device is to get it, and when a request of any device comes to grief by it,
    /// recorded or not. Page faults do not count, nor does a device that has no context and asks for nothing.
    #[must_use]
    pub const fn last_error(&self) -> Option<LastError> {
        self.nest.noted.last()
    }

    /// The host.
    #[must_use]
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// The host. Its side of the contract goes on while it is borrowed: nothing of what the vIOMMU has ordered may be
    /// undone.
    #[must_use]
    pub const fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}
