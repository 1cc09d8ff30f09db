//! A driver of the IOMMU that stays close to its registers.

use riscv_viommu::cmdq::{Command, IofenceC, Iotinval, RawCommand};
use riscv_viommu::faultq::FaultRecord;
use riscv_viommu::regs::{
    Capabilities, Cqcsr, Ddtp, Fctl, Fqcsr, Icvec, Ipsr, MsiAddr, MsiVecCtl, QueueBase, Register,
};

use crate::csr;
use crate::imsic;
use crate::memory::Pages;
use crate::mmio;
use crate::verdict::{Why, ensure};

pub(crate) const OFF: Ddtp = Ddtp::new();

/// Milliseconds after which something that should happen is taken not to.
const PATIENCE: u64 = 2000;

/// Vectors of the IOMMU's own interrupts.
const COMMANDS: u8 = 0;
const FAULTS: u8 = 1;

pub(crate) struct Iommu {
    pub(crate) capabilities: Capabilities,
    commands: Ring,
    faults: Ring,
}

/// A queue in memory, and software's index in it.
#[derive(Clone, Copy)]
struct Ring {
    pages: Pages,
    log2: u8,
    index: u32,
}

impl Ring {
    fn new(pages: Pages, log2: u8) -> Self {
        Self { pages, log2, index: 0 }
    }

    fn base(&self) -> QueueBase {
        QueueBase::new().with_log2sz_minus_1(self.log2 - 1).with_ppn(self.pages.ppn())
    }

    fn step(&mut self) -> usize {
        let index = self.index;
        self.index = (index + 1) % (1 << self.log2);
        index as usize
    }
}

/// Reads a register.
pub(crate) fn read(register: Register) -> u64 {
    let offset = register.offset().into();
    if register.width().bytes() == 8 { mmio::IOMMU.read64(offset) } else { mmio::IOMMU.read32(offset).into() }
}

/// Writes a register.
pub(crate) fn write(register: Register, value: impl Into<u64>) {
    let (offset, value) = (register.offset().into(), value.into());
    if register.width().bytes() == 8 {
        mmio::IOMMU.write64(offset, value);
    } else {
        mmio::IOMMU.write32(offset, value as u32);
    }
}

pub(crate) fn cqcsr() -> Cqcsr {
    Cqcsr::from_bits(read(Register::Cqcsr) as u32)
}

pub(crate) fn fqcsr() -> Fqcsr {
    Fqcsr::from_bits(read(Register::Fqcsr) as u32)
}

pub(crate) fn ipsr() -> Ipsr {
    Ipsr::from_bits(read(Register::Ipsr) as u32)
}

pub(crate) fn ddtp() -> Ddtp {
    Ddtp::from_bits(read(Register::Ddtp))
}

/// The command queue has stopped at its head.
pub(crate) fn is_stopped(csr: Cqcsr) -> bool {
    csr.cqmf() || csr.cmd_to() || csr.cmd_ill()
}

/// Writes `ddtp` and waits until that is in force.
pub(crate) fn set_ddtp(ddtp: Ddtp) -> Result<(), Why> {
    write(Register::Ddtp, ddtp.into_bits());
    let done = csr::within(PATIENCE, || !self::ddtp().busy());
    ensure!(done, "ddtp stays busy");
    let now = self::ddtp();
    ensure!(now.iommu_mode() == ddtp.iommu_mode(), "ddtp is {now:x?} after a write of {ddtp:x?}");
    Ok(())
}

/// Turns both queues off.
pub(crate) fn stop() -> Result<(), Why> {
    write(Register::Cqcsr, Cqcsr::new().into_bits());
    write(Register::Fqcsr, Fqcsr::new().into_bits());
    let off = csr::within(PATIENCE, || {
        let (cq, fq) = (cqcsr(), fqcsr());
        !cq.cqon() && !cq.busy() && !fq.fqon() && !fq.busy()
    });
    ensure!(off, "the queues stay on: {:x?} {:x?}", cqcsr(), fqcsr());
    Ok(())
}

/// Off, queues off, nothing pending, no feature chosen.
pub(crate) fn quiesce() -> Result<(), Why> {
    set_ddtp(OFF)?;
    stop()?;
    write(Register::Fctl, Fctl::new().into_bits());
    // Errors go with the next enable; what they raised stays until it is cleared.
    write(Register::Ipsr, Ipsr::new().with_cip(true).with_fip(true).with_pmip(true).with_pip(true).into_bits());
    Ok(())
}

/// Points the interrupts at their identities, each vector masked or not.
pub(crate) fn route_interrupts(at: u64, masked: bool) {
    write(Register::Icvec, Icvec::new().with_civ(COMMANDS).with_fiv(FAULTS).into_bits());
    for (vector, identity) in [(COMMANDS, imsic::COMMANDS), (FAULTS, imsic::FAULTS)] {
        write(Register::MsiAddr(vector), MsiAddr::new().with_addr(at >> 2).into_bits());
        write(Register::MsiData(vector), identity);
        write(Register::MsiVecCtl(vector), MsiVecCtl::new().with_m(masked).into_bits());
    }
}

/// Masks the message of the command queue, or lets it go.
pub(crate) fn mask_commands(masked: bool) {
    write(Register::MsiVecCtl(COMMANDS), MsiVecCtl::new().with_m(masked).into_bits());
}

impl Iommu {
    /// Takes the IOMMU as it is; the queues get their pages when they are turned on.
    pub(crate) fn new(nowhere: Pages) -> Self {
        let ring = Ring::new(nowhere, 1);
        Self { capabilities: Capabilities::from_bits(read(Register::Capabilities)), commands: ring, faults: ring }
    }

    /// Turns the command queue on, empty, with 2^`log2` entries.
    pub(crate) fn start_commands(&mut self, pages: Pages, log2: u8, cie: bool) -> Result<(), Why> {
        self.commands = Ring::new(pages, log2);
        write(Register::Cqb, self.commands.base().into_bits());
        write(Register::Cqt, 0_u32);
        write(Register::Cqcsr, Cqcsr::new().with_cqen(true).with_cie(cie).into_bits());
        let on = csr::within(PATIENCE, || cqcsr().cqon() && !cqcsr().busy());
        ensure!(on && cqcsr().cqen(), "the command queue stays off: {:x?}", cqcsr());
        Ok(())
    }

    /// Turns the command queue off, and on again with 16 entries of a page.
    pub(crate) fn start_commands_anew(&mut self, page: Pages) -> Result<(), Why> {
        write(Register::Cqcsr, Cqcsr::new().into_bits());
        let off = csr::within(PATIENCE, || !cqcsr().cqon() && !cqcsr().busy());
        ensure!(off, "the command queue stays on: {:x?}", cqcsr());
        self.start_commands(page, 4, false)
    }

    /// Turns the fault queue on, empty, with 2^`log2` entries.
    pub(crate) fn start_faults(&mut self, pages: Pages, log2: u8, fie: bool) -> Result<(), Why> {
        self.faults = Ring::new(pages, log2);
        write(Register::Fqb, self.faults.base().into_bits());
        write(Register::Fqh, 0_u32);
        write(Register::Fqcsr, Fqcsr::new().with_fqen(true).with_fie(fie).into_bits());
        let on = csr::within(PATIENCE, || fqcsr().fqon() && !fqcsr().busy());
        ensure!(on && fqcsr().fqen(), "the fault queue stays off: {:x?}", fqcsr());
        Ok(())
    }

    /// Puts a command into the queue's memory.
    pub(crate) fn push(&mut self, command: RawCommand) {
        let index = self.commands.step();
        self.commands.pages.put(index * size_of::<RawCommand>(), &command);
    }

    /// Overwrites a command that is in the queue's memory.
    pub(crate) fn patch(&self, index: usize, command: RawCommand) {
        self.commands.pages.put(index * size_of::<RawCommand>(), &command);
    }

    /// Tells the IOMMU of the commands pushed.
    pub(crate) fn doorbell(&self) {
        write(Register::Cqt, self.commands.index);
    }

    /// Waits until the queue is empty or has stopped: its head and status.
    pub(crate) fn settle(&self) -> (u32, Cqcsr) {
        let state = || (read(Register::Cqh) as u32, cqcsr());
        csr::within(PATIENCE, || {
            let (head, csr) = state();
            head == self.commands.index || is_stopped(csr)
        });
        state()
    }

    /// Waits until every command pushed is done.
    pub(crate) fn drain(&self) -> Result<(), Why> {
        let (head, csr) = self.settle();
        ensure!(head == self.commands.index && !is_stopped(csr), "cqh {head} of {}: {csr:x?}", self.commands.index);
        Ok(())
    }

    /// Carries out commands and a fence behind them.
    pub(crate) fn run(&mut self, commands: &[Command]) -> Result<(), Why> {
        for command in commands {
            self.push(command.encode());
        }
        self.push(Command::IofenceC(IofenceC::READS_AND_WRITES).encode());
        self.doorbell();
        self.drain()
    }

    /// Forgets everything the IOMMU may hold.
    pub(crate) fn flush(&mut self) -> Result<(), Why> {
        self.run(&[
            Command::IodirInvalDdt(None),
            Command::IotinvalVma(Iotinval::ALL),
            Command::IotinvalGvma(Iotinval::ALL),
        ])
    }

    /// Whether there is a fault record to be taken.
    pub(crate) fn has_fault(&self) -> bool {
        read(Register::Fqt) as u32 != self.faults.index
    }

    /// Takes the next fault record, if there is one.
    pub(crate) fn fault(&mut self) -> Option<FaultRecord> {
        if !self.has_fault() {
            return None;
        }
        let index = self.faults.step();
        let record = self.faults.pages.get(index * size_of::<FaultRecord>());
        write(Register::Fqh, self.faults.index);
        Some(record)
    }
}
