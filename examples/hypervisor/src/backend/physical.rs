//! What the physical IOMMU does for one VM: the crate's [`PhysicalIommu`] over the shared driver.

use heapless::Vec;
use riscv_viommu::cmdq::{Command, IofenceC};
use riscv_viommu::{
    Applied, Completion, Context, FenceScope, Gscid, HostCapabilities, Invalidation, OrderError, PhysicalIommu, Ticket,
};
use spin::Mutex;

use super::context::{self, Host, Words};
use super::expand;
use super::sabotage::Sabotage;
use crate::frames::Frames;
use crate::iommu::{Bus, Iommu, IommuError, Issuer, PhysicalId, VmId};
use crate::second_stage;

/// Orders of the crate, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders {
    /// Devices adopted.
    pub adopted: u64,
    /// Contexts set, blocked ones.
    pub blocked: u64,
    /// Contexts set, with the second stage alone.
    pub second_stage_only: u64,
    /// Contexts set, with a first stage of the guest's.
    pub first_stage: u64,
    /// Contexts set, with a process directory of the guest's.
    pub processes: u64,
    /// Steps on the way to a context, each behind a fence of its own.
    pub steps: u64,
    /// Batches of invalidations.
    pub batches: u64,
    /// Invalidations in them.
    pub invalidations: u64,
    /// Fences.
    pub fences: u64,
}

/// Speaks for one VM to the driver that all share. The VM's GSCID comes in here and nowhere else.
#[derive(Debug)]
pub struct VmIommu<B: 'static> {
    driver: &'static Mutex<Iommu<B>>,
    frames: &'static Mutex<Frames>,
    vm: VmId,
    host: Host,
    /// Contexts of the devices it has adopted.
    contexts: Vec<(PhysicalId, &'static Words), 4>,
    sabotage: Sabotage,
    /// No fence is done at once.
    slow: bool,
    /// The fence that ends when the faults of what it ended have been told.
    pending: Option<Ticket>,
    /// What it was told.
    pub orders: Orders,
}

impl<B: Bus> VmIommu<B> {
    /// The part of `vm`, whose contexts get what `host` says.
    pub const fn new(
        driver: &'static Mutex<Iommu<B>>,
        frames: &'static Mutex<Frames>,
        vm: VmId,
        host: Host,
        sabotage: Sabotage,
    ) -> Self {
        let orders = Orders {
            adopted: 0,
            blocked: 0,
            second_stage_only: 0,
            first_stage: 0,
            processes: 0,
            steps: 0,
            batches: 0,
            invalidations: 0,
            fences: 0,
        };
        Self { driver, frames, vm, host, contexts: Vec::new(), sabotage, slow: false, pending: None, orders }
    }

    /// As an IOMMU that takes its time does: no fence is done at once.
    #[must_use]
    pub fn with_slow_fences(self, slow: bool) -> Self {
        Self { slow, ..self }
    }

    /// Drops everything cached for this VM, and waits until it is dropped: after a change of its second stage.
    ///
    /// # Errors
    /// [`OrderError::Fatal`] if the hardware does not.
    pub fn flush(&mut self) -> Result<(), OrderError> {
        self.invalidate(&[Invalidation::Everything])?;
        self.driver.lock().fence(self.issuer(), IofenceC::READS_AND_WRITES).map_err(fatal)
    }

    /// The fence that was answered with `Pending`, if the vIOMMU has not been told that it is done.
    pub const fn take_pending(&mut self) -> Option<Ticket> {
        self.pending.take()
    }

    /// Whether there is such a fence.
    #[must_use]
    pub const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// The contexts of this VM's devices, for the scenarios that damage them.
    pub fn contexts(&self) -> impl Iterator<Item = &'static Words> + '_ {
        self.contexts.iter().map(|&(_, words)| words)
    }

    fn issuer(&self) -> Issuer {
        Issuer::Vm(self.vm)
    }

    fn gscid(&self) -> Gscid {
        self.host.open.gscid()
    }

    fn words_of(&self, device: PhysicalId) -> Result<&'static Words, OrderError> {
        let found = self.contexts.iter().find(|(known, _)| *known == device);
        found.map(|&(_, words)| words).ok_or(OrderError::Fatal)
    }
}

impl<B: Bus> PhysicalIommu for VmIommu<B> {
    type Device = PhysicalId;

    fn capabilities(&self) -> HostCapabilities {
        // The facts no register shows. QEMU 10 mistranslates 64-KiB NAPOT leaves, 11 does not; every access of this
        // machine is coherent; `SecondStage` sets A and D in its leaves.
        HostCapabilities::new(self.driver.lock().capabilities(), second_stage::MODE)
            .with_svnapot(true)
            .with_coherent(true)
            .with_leaves_dirty(true)
    }

    fn adopt(&mut self, device: PhysicalId) -> Result<HostCapabilities, OrderError> {
        self.orders.adopted += 1;
        let mut driver = self.driver.lock();
        let words = driver.context(&mut self.frames.lock(), device).ok_or(OrderError::Refused { done: 0 })?;
        if !driver.owners_mut().grant_device(device, self.vm) {
            return Err(OrderError::Refused { done: 0 });
        }
        if self.contexts.push((device, words)).is_err() {
            driver.owners_mut().revoke_device(device);
            return Err(OrderError::Refused { done: 0 });
        }
        driver.check_context(self.issuer(), device, self.host.blocked.gscid()).map_err(fatal)?;
        context::block_new(words, &self.host);
        drop(driver);
        Ok(self.capabilities())
    }

    fn set_context(&mut self, device: PhysicalId, new: &Context) -> Result<Applied, OrderError> {
        let words = self.words_of(device)?;
        self.driver.lock().check_context(self.issuer(), device, self.gscid()).map_err(fatal)?;
        let Some(applied) = context::step(words, &self.host, new) else {
            return Err(OrderError::Refused { done: 0 });
        };
        *match (applied, new) {
            (Applied::Blocked, _) => &mut self.orders.steps,
            (_, Context::Blocked) => &mut self.orders.blocked,
            (_, Context::SecondStageOnly { .. }) => &mut self.orders.second_stage_only,
            (_, Context::Processes(_)) => &mut self.orders.processes,
            _ => &mut self.orders.first_stage,
        } += 1;
        Ok(applied)
    }

    fn invalidate(&mut self, orders: &[Invalidation<PhysicalId>]) -> Result<(), OrderError> {
        self.orders.batches += 1;
        self.orders.invalidations += orders.len() as u64;
        let mut driver = self.driver.lock();
        let devices = self.contexts.iter().map(|&(device, _)| device);
        let gscids = [self.gscid(), self.host.blocked.gscid()];
        let commands =
            expand::commands(orders, gscids, devices, driver.capabilities()).ok_or(OrderError::Refused { done: 0 })?;
        if !driver.has_room_for(commands.len()) {
            return Err(OrderError::Busy);
        }
        let commands = commands.into_iter().filter(|command| self.sabotage.lets_pass(command));
        driver.submit(self.issuer(), commands).map_err(fatal)
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        self.orders.fences += 1;
        let mut fence = IofenceC::READS_AND_WRITES;
        (fence.pr, fence.pw) = (scope.reads, scope.writes);
        let issuer = self.issuer();
        let mut driver = self.driver.lock();
        // An IOMMU that takes its time would have an interrupt at the end of the queue, and always say `Pending` here.
        driver.fence(issuer, fence).map_err(fatal)?;
        for (device, words) in &self.contexts {
            if context::tidy(words, &self.host) {
                let stale = Command::IodirInvalDdt(Some(device.0));
                driver.submit(issuer, core::iter::once(stale)).map_err(fatal)?;
            }
        }
        if self.slow || driver.has_faults(self.vm) {
            // They are of what the fence has ended: the vIOMMU hears of them first.
            self.pending = Some(upto);
            return Ok(Completion::Pending);
        }
        Ok(Completion::Done)
    }

    fn release(&mut self, device: PhysicalId) {
        self.contexts.retain(|(known, _)| *known != device);
        self.driver.lock().owners_mut().revoke_device(device);
    }
}

/// The driver keeps what went wrong, for the report.
const fn fatal(_: IommuError) -> OrderError {
    OrderError::Fatal
}
