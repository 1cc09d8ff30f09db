//! Driver of the physical RISC-V IOMMU. One for the machine, behind one lock, shared by all VMs.
//!
//! It knows commands, device contexts and fault records in the crate's formats, and who may name which device and which
//! GSCID: every command is checked against its issuer on the last step before it goes into the queue. What a VM's
//! vIOMMU wants comes through [`VmIommu`](crate::backend::VmIommu), which speaks for one VM.

mod bus;
mod directory;
mod error;
mod owners;
mod queue;

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::{Deque, Vec};
use riscv_viommu::cmdq::{Command, IofenceC, Iotinval};
use riscv_viommu::ddt::Tc;
use riscv_viommu::faultq::FaultRecord;
use riscv_viommu::regs::{Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Icvec, Ipsr, MsiAddr, MsiVecCtl, QueueBase};
use riscv_viommu::{Capabilities, DeviceId, Gscid, Igs, Ppn, Register};

pub(crate) use bus::order_device_and_memory;
pub use bus::{Bus, Mmio};
pub use error::IommuError;
pub use owners::{Issuer, Owners, VMS, VmId};
pub(crate) use queue::COMMANDS;

use crate::frames::{Frames, Table};
use directory::Directory;
use queue::{CommandQueue, FaultQueue};

/// Looks at a register while waiting for the hardware before giving it up. It is not a time, but no IOMMU needs as
/// many.
const PATIENCE: u32 = 10_000_000;

/// Records of one VM, taken out at once, that are a storm: more than the largest single transfer of a page or two has
/// on QEMU, which writes one for every few bytes.
const STORM: u32 = queue::FAULTS / 4 * 3;

/// Faults of one VM that wait for its vIOMMU; more are counted as lost.
pub const WAITING_FAULTS: usize = 128;

/// `cqon` and `fqon`, and `busy`, which all control registers have in one place.
const CQ_ON: u64 = Cqcsr::new().with_cqon(true).into_bits() as u64;
const FQ_ON: u64 = Fqcsr::new().with_fqon(true).into_bits() as u64;
const BUSY: u64 = Cqcsr::new().with_busy(true).into_bits() as u64;

/// The vector of the fault queue's interrupt.
const FAULT_VECTOR: u8 = 1;

/// A device as the physical IOMMU knows it. A guest's [`DeviceId`] is a number of another world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalId(pub DeviceId);

/// Where an interrupt of the IOMMU is stored.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Physical address.
    pub address: u64,
    /// The interrupt identity.
    pub data: u32,
}

/// What the driver did, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Commands put into the queue.
    pub commands: u64,
    /// Stores to `cqt`.
    pub doorbells: u64,
    /// Fault records drained.
    pub faults: u64,
    /// Fault records of no VM.
    pub faults_of_nobody: u64,
    /// Fault records that said what the last one of that VM, still waiting, says.
    pub faults_repeated: u64,
}

/// The driver.
#[derive(Debug)]
pub struct Iommu<B> {
    bus: B,
    capabilities: Capabilities,
    commands: CommandQueue,
    faults: FaultQueue,
    directory: Directory,
    owners: Owners,
    waiting: [Deque<FaultRecord, WAITING_FAULTS>; VMS],
    lost: [u32; VMS],
    /// Whose faults are masked at the source.
    silenced: [bool; VMS],
    /// What it did.
    pub counts: Counts,
    /// The first thing that went wrong.
    pub failure: Option<IommuError>,
}

impl<B: Bus> Iommu<B> {
    /// Takes the IOMMU over from whoever had it: queues and an empty directory, in which no device has a context.
    ///
    /// # Errors
    /// [`IommuError`] says what is missing.
    pub fn start(bus: B, frames: &mut Frames, on_fault: Message) -> Result<Self, IommuError> {
        let capabilities = Capabilities::from_bits(bus.load(Register::Capabilities));
        let needs = [
            (capabilities.version() >> 4 == 1, "version 1 of the specification"),
            (capabilities.sv39x4(), "Sv39x4"),
            (capabilities.msi_flat(), "MSI page tables (MSI_FLAT)"),
            (matches!(capabilities.igs(), Igs::Msi | Igs::Both), "interrupts by message"),
        ];
        if let Some((_, missing)) = needs.into_iter().find(|(there, _)| !there) {
            return Err(IommuError::Lacks(missing));
        }
        let mut iommu = Self {
            capabilities,
            commands: CommandQueue::new(frames.take(1).ok_or(IommuError::OutOfFrames)?),
            faults: FaultQueue::new(frames.take(queue::FAULT_PAGES).ok_or(IommuError::OutOfFrames)?),
            directory: Directory::new(frames.take(1).ok_or(IommuError::OutOfFrames)?),
            owners: Owners::default(),
            waiting: [const { Deque::new() }; VMS],
            lost: [0; VMS],
            silenced: [false; VMS],
            counts: Counts::default(),
            failure: None,
            bus,
        };
        iommu.turn_off()?;
        iommu.start_queues(on_fault)?;
        // Nothing an earlier owner left is to be found.
        let all =
            [Command::IodirInvalDdt(None), Command::IotinvalVma(Iotinval::ALL), Command::IotinvalGvma(Iotinval::ALL)];
        iommu.submit(Issuer::Host, all.into_iter())?;
        iommu.fence(Issuer::Host, IofenceC::READS_AND_WRITES)?;
        iommu.start_directory()?;
        Ok(iommu)
    }

    /// Offers no process directories: for an IOMMU that reads them past the second stage, as QEMU 10.0.2's does.
    pub const fn without_process_directories(&mut self) {
        self.capabilities = self.capabilities.with_pd8(false).with_pd17(false).with_pd20(false);
    }

    /// Its `capabilities`, as far as they can be trusted.
    #[must_use]
    pub const fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Who owns which device and GSCID.
    #[must_use]
    pub const fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The same, to change it.
    pub const fn owners_mut(&mut self) -> &mut Owners {
        &mut self.owners
    }

    /// The eight words of a device's context, with the tables above it made where they are missing. `None` if the id is
    /// too wide for the directory, or frames are used up.
    pub fn context(&mut self, frames: &mut Frames, device: PhysicalId) -> Option<&'static [AtomicU64; 8]> {
        self.directory.context(frames, device.0)
    }

    /// Checks that the context `issuer` is about to give a device names that VM's device and GSCID only.
    ///
    /// # Errors
    /// [`IommuError::Foreign`] if not.
    pub fn check_context(&mut self, issuer: Issuer, device: PhysicalId, gscid: Gscid) -> Result<(), IommuError> {
        let own = self.owners.check_device(issuer, device) & self.owners.check_gscid(issuer, Some(gscid));
        own.then_some(()).ok_or(IommuError::Foreign).map_err(|error| self.failed(error))
    }

    /// Whether a batch of `commands` commands goes into the queue as a whole, now.
    pub fn has_room_for(&mut self, commands: usize) -> bool {
        self.commands.room(&self.bus) >= commands
    }

    /// Puts commands into the queue and rings once. They are checked against `issuer`.
    ///
    /// # Errors
    /// [`IommuError`] if the queue does not take them: then the hardware no longer works.
    pub fn submit(&mut self, issuer: Issuer, commands: impl Iterator<Item = Command>) -> Result<(), IommuError> {
        self.try_submit(issuer, commands).map_err(|error| self.failed(error))
    }

    fn try_submit(&mut self, issuer: Issuer, commands: impl Iterator<Item = Command>) -> Result<(), IommuError> {
        for command in commands {
            if !self.owners.check(issuer, &command) {
                return Err(IommuError::Foreign);
            }
            let mut patience = PATIENCE;
            while self.commands.room(&self.bus) == 0 {
                self.commands.ring(&self.bus);
                CommandQueue::check(&self.bus)?;
                patience = patience.checked_sub(1).ok_or(IommuError::Stuck(Register::Cqh))?;
            }
            self.commands.push(command.encode());
            self.counts.commands += 1;
        }
        self.counts.doorbells += u64::from(self.commands.ring(&self.bus));
        Ok(())
    }

    /// Waits until every command before it is complete. The faults of what it ended are drained then, so that they are
    /// not taken for faults of what comes next.
    ///
    /// # Errors
    /// [`IommuError`] if that does not happen.
    pub fn fence(&mut self, issuer: Issuer, fence: IofenceC) -> Result<(), IommuError> {
        self.submit(issuer, core::iter::once(Command::IofenceC(fence)))?;
        self.wait_for_commands().map_err(|error| self.failed(error))?;
        self.drain_faults();
        Ok(())
    }

    fn wait_for_commands(&self) -> Result<(), IommuError> {
        let mut patience = PATIENCE;
        while !self.commands.is_empty(&self.bus) {
            CommandQueue::check(&self.bus)?;
            patience = patience.checked_sub(1).ok_or(IommuError::Stuck(Register::Cqh))?;
        }
        Ok(())
    }

    /// The crate learns of errors by one word; what they were is for the report.
    fn failed(&mut self, error: IommuError) -> IommuError {
        self.failure.get_or_insert(error);
        error
    }

    /// The fault queue's interrupt. Faults go to the queues of the VMs that own the devices; who has some now is
    /// answered, so that their harts can be told.
    pub fn on_fault_interrupt(&mut self) -> [bool; VMS] {
        // Cleared before the queue is read: what comes later pends it again.
        self.bus.store(Register::Ipsr, Ipsr::new().with_fip(true).into_bits().into());
        self.drain_faults();
        core::array::from_fn(|vm| !self.waiting[vm].is_empty() || self.lost[vm] != 0)
    }

    /// Whether faults of a VM's devices, drained from the queue, wait for its vIOMMU.
    #[must_use]
    pub fn has_faults(&self, vm: VmId) -> bool {
        !self.waiting[vm.index()].is_empty()
    }

    /// The next fault of a VM's devices.
    pub fn next_fault(&mut self, vm: VmId) -> Option<FaultRecord> {
        self.waiting[vm.index()].pop_front()
    }

    /// How many faults of this VM's devices may have been lost since it was asked last.
    pub fn take_lost(&mut self, vm: VmId) -> u32 {
        core::mem::take(&mut self.lost[vm.index()])
    }

    /// Takes what there is out of the fault queue, once round at most, into the queues of the VMs. A VM that fills the
    /// queue, which is every VM's, is silenced.
    pub fn drain_faults(&mut self) {
        let mut of_vm = [0; VMS];
        for _ in 0..queue::FAULTS {
            let Some(record) = self.faults.next(&self.bus) else { break };
            self.counts.faults += 1;
            let Some(vm) = self.owners.owner_of(PhysicalId(record.head.did())) else {
                self.counts.faults_of_nobody += 1;
                continue;
            };
            of_vm[vm.index()] += 1;
            let waiting = &mut self.waiting[vm.index()];
            if waiting.back().is_some_and(|last| last.says_the_same_as(&record)) {
                self.counts.faults_repeated += 1;
            } else if waiting.push_back(record).is_err() {
                self.lost[vm.index()] += 1;
            }
        }
        let status = Fqcsr::from_bits(self.bus.load(Register::Fqcsr) as u32);
        if status.fqof() || status.fqmf() {
            // Whose faults they were is not known.
            for lost in &mut self.lost {
                *lost += 1;
            }
            self.bus.store(Register::Fqcsr, status.into_bits().into());
        }
        for vm in VmId::ALL.into_iter().filter(|vm| of_vm[vm.index()] > STORM) {
            self.lost[vm.index()] += 1;
            self.silence(vm, true);
        }
    }

    /// Whether a VM's faults are masked, since it had too many at a time.
    #[must_use]
    pub const fn is_silenced(&self, vm: VmId) -> bool {
        self.silenced[vm.index()]
    }

    /// Masks a VM's faults at the source, or no longer. They are lost to it, and cost the others nothing.
    pub fn silence(&mut self, vm: VmId, silent: bool) {
        self.silenced[vm.index()] = silent;
        let dtf = Tc::new().with_dtf(true).into_bits();
        let devices: Vec<PhysicalId, 16> = self.owners.devices_of(vm).collect();
        for device in devices {
            let Some([tc, ..]) = self.directory.existing(device.0) else { continue };
            if silent {
                tc.fetch_or(dtf, Ordering::Release);
            } else {
                tc.fetch_and(!dtf, Ordering::Release);
            }
            // An error is kept, and met again by whoever fences next.
            let _ = self.submit(Issuer::Host, core::iter::once(Command::IodirInvalDdt(Some(device.0))));
        }
    }

    /// From whatever an earlier owner left to an IOMMU that lets nothing through and whose queues are off.
    fn turn_off(&mut self) -> Result<(), IommuError> {
        self.wait(Register::Ddtp, |bits| !Ddtp::from_bits(bits).busy())?;
        // The root stays on the way to Off (rule REG-DDTP-12).
        let root = Ddtp::from_bits(self.bus.load(Register::Ddtp)).ppn();
        self.set_ddtp(DdtpMode::Off, root)?;
        self.wait(Register::Cqcsr, |bits| !Cqcsr::from_bits(bits as u32).busy())?;
        self.wait(Register::Fqcsr, |bits| !Fqcsr::from_bits(bits as u32).busy())?;
        self.bus.store(Register::Cqcsr, 0);
        self.bus.store(Register::Fqcsr, 0);
        self.wait(Register::Cqcsr, |bits| bits & (CQ_ON | BUSY) == 0)?;
        self.wait(Register::Fqcsr, |bits| bits & (FQ_ON | BUSY) == 0)?;
        // Nothing stays pending, or its next rise would be none and send no message.
        self.bus.store(Register::Ipsr, u64::from(u32::MAX));
        // Little-endian tables, interrupts by message, RV64 second stages.
        self.bus.store(Register::Fctl, Fctl::new().into_bits().into());
        let fctl = Fctl::from_bits(self.bus.load(Register::Fctl) as u32);
        let usable = !fctl.be() && !fctl.wsi() && !fctl.gxl();
        usable.then_some(()).ok_or(IommuError::Lacks("little-endian tables, RV64 and messages (fctl = 0)"))
    }

    fn start_queues(&mut self, on_fault: Message) -> Result<(), IommuError> {
        self.bus.store(Register::Cqb, queue_base(self.commands.table(), queue::COMMANDS));
        self.bus.store(Register::Cqt, 0);
        self.bus.store(Register::Cqcsr, Cqcsr::new().with_cqen(true).into_bits().into());
        self.wait(Register::Cqcsr, |bits| Cqcsr::from_bits(bits as u32).cqon())?;

        let vector = FAULT_VECTOR;
        let icvec = Icvec::new().with_civ(0).with_fiv(vector).with_piv(0).with_pmiv(0);
        self.bus.store(Register::Icvec, icvec.into_bits());
        let vector = Icvec::from_bits(self.bus.load(Register::Icvec)).fiv();
        let address = MsiAddr::new().with_addr(on_fault.address >> 2);
        self.bus.store(Register::MsiAddr(vector), address.into_bits());
        self.bus.store(Register::MsiData(vector), on_fault.data.into());
        self.bus.store(Register::MsiVecCtl(vector), MsiVecCtl::new().with_m(false).into_bits().into());

        self.bus.store(Register::Fqb, queue_base(self.faults.table(), queue::FAULTS));
        self.bus.store(Register::Fqh, 0);
        self.bus.store(Register::Fqcsr, Fqcsr::new().with_fqen(true).with_fie(true).into_bits().into());
        self.wait(Register::Fqcsr, |bits| Fqcsr::from_bits(bits as u32).fqon())
    }

    /// Turns the directory on, with as many levels as the IOMMU takes.
    fn start_directory(&mut self) -> Result<(), IommuError> {
        for levels in (1..=3).rev() {
            // What is not there leaves the mode as it was, or becomes what is.
            let mode = self.set_ddtp(DdtpMode::Levels(levels), self.directory.root())?;
            if let Some(DdtpMode::Levels(levels)) = DdtpMode::decode(mode) {
                self.directory.set_levels(levels);
                return Ok(());
            }
        }
        Err(IommuError::Lacks("a device directory"))
    }

    /// Writes `ddtp` and answers the mode it has then.
    fn set_ddtp(&mut self, mode: DdtpMode, root: Ppn) -> Result<u8, IommuError> {
        let ddtp = Ddtp::new().with_iommu_mode(mode.encoding()).with_ppn(root);
        self.bus.store(Register::Ddtp, ddtp.into_bits());
        self.wait(Register::Ddtp, |bits| !Ddtp::from_bits(bits).busy())?;
        Ok(Ddtp::from_bits(self.bus.load(Register::Ddtp)).iommu_mode())
    }

    fn wait(&self, register: Register, is_so: impl Fn(u64) -> bool) -> Result<(), IommuError> {
        let so = (0..PATIENCE).any(|_| is_so(self.bus.load(register)));
        so.then_some(()).ok_or(IommuError::Stuck(register))
    }
}

fn queue_base(table: Table, entries: u32) -> u64 {
    let log2sz_minus_1 = (entries.ilog2() - 1) as u8;
    QueueBase::new().with_ppn(table.ppn()).with_log2sz_minus_1(log2sz_minus_1).into_bits()
}

#[cfg(test)]
mod tests;
