//! The rings of the command queue and of the fault queue.

use core::sync::atomic::Ordering;

use riscv_viommu::Register;
use riscv_viommu::cmdq::RawCommand;
use riscv_viommu::faultq::FaultRecord;
use riscv_viommu::regs::Cqcsr;

use super::{Bus, IommuError};
use crate::frames::Table;

/// Commands the queue has places for: one page. One place stays empty.
pub(crate) const COMMANDS: u32 = 256;
/// Pages of the fault queue: many, for all VMs share it, and QEMU writes a record for every few bytes of a transfer.
pub(super) const FAULT_PAGES: usize = 32;
/// Records in them.
pub(super) const FAULTS: u32 = 4096;

/// The command queue, from the side of software.
#[derive(Debug)]
pub(super) struct CommandQueue {
    table: Table,
    /// Index behind the last command written.
    tail: u32,
    /// What `cqt` says.
    rung: u32,
}

impl CommandQueue {
    pub(super) const fn new(table: Table) -> Self {
        Self { table, tail: 0, rung: 0 }
    }

    pub(super) const fn table(&self) -> Table {
        self.table
    }

    /// How many commands fit now: one place stays empty, or full would look like empty.
    pub(super) fn room(&self, bus: &impl Bus) -> usize {
        let head = bus.load(Register::Cqh) as u32;
        (head.wrapping_sub(self.tail).wrapping_sub(1) % COMMANDS) as usize
    }

    /// Writes a command; [`room`](Self::room) was asked before.
    pub(super) fn push(&mut self, command: RawCommand) {
        let at = self.tail as usize * 2;
        self.table.words()[at].store(command.low, Ordering::Relaxed);
        self.table.words()[at + 1].store(command.high, Ordering::Relaxed);
        self.tail = (self.tail + 1) % COMMANDS;
    }

    /// Tells the IOMMU of the commands written since it was told last; whether there were any.
    pub(super) fn ring(&mut self, bus: &impl Bus) -> bool {
        let new = self.rung != self.tail;
        if new {
            bus.store(Register::Cqt, self.tail.into());
            self.rung = self.tail;
        }
        new
    }

    /// Whether every command was carried out.
    pub(super) fn is_empty(&self, bus: &impl Bus) -> bool {
        bus.load(Register::Cqh) as u32 == self.tail
    }

    /// Whether the queue still runs. All commands are the driver's own, so that it does not stop for a guest's mistake.
    pub(super) fn check(bus: &impl Bus) -> Result<(), IommuError> {
        let status = Cqcsr::from_bits(bus.load(Register::Cqcsr) as u32);
        if status.cqmf() || status.cmd_ill() || status.cmd_to() || !status.cqon() {
            return Err(IommuError::Stopped(status));
        }
        Ok(())
    }
}

/// The fault queue, from the side of software.
#[derive(Debug)]
pub(super) struct FaultQueue {
    table: Table,
    head: u32,
}

impl FaultQueue {
    pub(super) const fn new(table: Table) -> Self {
        Self { table, head: 0 }
    }

    pub(super) const fn table(&self) -> Table {
        self.table
    }

    /// The oldest record, taken out of the queue.
    pub(super) fn next(&mut self, bus: &impl Bus) -> Option<FaultRecord> {
        if bus.load(Register::Fqt) as u32 == self.head {
            return None;
        }
        let at = self.head as usize * 4;
        let words: [u64; 4] = core::array::from_fn(|word| self.table.words()[at + word].load(Ordering::Relaxed));
        self.head = (self.head + 1) % FAULTS;
        bus.store(Register::Fqh, self.head.into());
        Some(zerocopy::transmute!(words))
    }
}
