//! A vIOMMU with its guest memory and wires, and the few steps every script takes.

#![allow(dead_code, reason = "each test uses its part of it")]

use riscv_viommu::mock::guest::{CommandRing, FaultRing, register};
use riscv_viommu::mock::{Memory, Wires};
use riscv_viommu::{
    Applied, Attachment, Capabilities, Completion, Config, Context, DeviceId, DevicePolicy, FenceOutcome, FenceScope,
    Gpa, HostCapabilities, InterruptKinds, Invalidation, OrderError, Parts, PhysicalIommu, SecondStageMode, Ticket,
    VIommu, Width,
};

/// The guest's id of the device that [`Rig::attach`] attaches.
pub(crate) const DEVICE: u32 = 0x12_3456;

/// Where the queues of [`Rig::command_queue`] and [`Rig::fault_queue`] are.
pub(crate) const COMMANDS: Gpa = Gpa::new(0x8100_0000);
pub(crate) const FAULTS: Gpa = Gpa::new(0x8200_0000);

/// A command of which every bit is 0: opcode 0 is reserved (rule QCMD-08).
pub(crate) const ILLEGAL: [u64; 2] = [0, 0];

/// A physical IOMMU that says yes to everything; its fences are pending when a test wants them to be.
#[derive(Debug, Default)]
pub(crate) struct Willing {
    pub(crate) pending: bool,
    issued: Option<Ticket>,
}

impl PhysicalIommu for Willing {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        let register =
            Capabilities::new().with_sv39(true).with_sv48(true).with_sv57(true).with_sv57x4(true).with_end(true);
        HostCapabilities::new(register.with_pas(56), SecondStageMode::Sv57x4).with_svnapot(true).with_coherent(true)
    }

    fn adopt(&mut self, _device: u32) -> Result<HostCapabilities, OrderError> {
        Ok(self.capabilities())
    }

    fn set_context(&mut self, _device: u32, _new: &Context) -> Result<Applied, OrderError> {
        Ok(Applied::Switched)
    }

    fn invalidate(&mut self, _orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        Ok(())
    }

    fn fence(&mut self, upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
        self.issued = Some(upto);
        Ok(if self.pending { Completion::Pending } else { Completion::Done })
    }

    fn release(&mut self, _device: u32) {}
}

/// The vIOMMU, and handles on the memory and wires it owns.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) iommu: VIommu<Parts<Memory, Wires, Willing>>,
    pub(crate) memory: Memory,
    pub(crate) wires: Wires,
}

impl Rig {
    /// One that was not started.
    pub(crate) fn new(kinds: InterruptKinds) -> Self {
        let memory = Memory::new();
        let wires = Wires::new(kinds).logging_to(&memory);
        let parts = Parts { memory: memory.clone(), interrupts: wires.clone(), physical: Willing::default() };
        Self { iommu: VIommu::new(parts), memory, wires }
    }

    pub(crate) fn start(config: Config, kinds: InterruptKinds) -> Self {
        let mut rig = Self::new(kinds);
        assert_eq!(rig.iommu.start(&config), Ok(()));
        rig
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U32)
    }

    pub(crate) fn read8(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U64)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u64) {
        let _ = self.iommu.write(offset, Width::U32, value);
    }

    pub(crate) fn write8(&mut self, offset: u64, value: u64) {
        let _ = self.iommu.write(offset, Width::U64, value);
    }

    /// What happened to guest memory so far is not what the test is about.
    pub(crate) fn forget_accesses(&self) {
        let _ = (self.memory.take_events(), self.memory.take_loads());
    }

    /// A command queue of 2^`log2` entries, with `csr` written to `cqcsr`.
    pub(crate) fn command_queue(&mut self, log2: u8, csr: u64) -> CommandRing {
        let mut ring = CommandRing::new(&self.memory, log2, COMMANDS);
        self.write8(register::CQB, ring.cqb());
        self.write(register::CQCSR, csr);
        ring
    }

    /// A fault queue of 2^`log2` entries, with `csr` written to `fqcsr`.
    pub(crate) fn fault_queue(&mut self, log2: u8, csr: u64) -> FaultRing {
        let mut ring = FaultRing::new(&self.memory, log2, FAULTS);
        self.write8(register::FQB, ring.fqb());
        self.write(register::FQCSR, csr);
        ring
    }

    pub(crate) fn attach(&mut self) -> Attachment {
        let attached = self.iommu.attach(DeviceId::truncate(DEVICE), 7, DevicePolicy::default());
        attached.expect("there is room, and the host says yes").attachment
    }

    /// From now on fences stay pending.
    pub(crate) fn hold_fences(&mut self) {
        self.iommu.backend_mut().physical.pending = true;
    }

    /// The pending fences end, and no others will be pending.
    pub(crate) fn end_fences(&mut self, outcome: FenceOutcome) {
        let physical = &mut self.iommu.backend_mut().physical;
        physical.pending = false;
        if let Some(ticket) = physical.issued {
            let _ = self.iommu.fence_done(ticket, outcome);
        }
    }
}
