//! Attacks by way of the command queue.

use heapless::Vec;
use rand::Rng;
use riscv_viommu::cmdq::{Command, IofenceC, Iotinval, Legality, PageRange, RawCommand};
use riscv_viommu::regs::{DdtpMode, Fctl, Register};
use riscv_viommu::{DeviceId, Gpa, Gscid, Iova, ProcessId, Pscid};

use super::{HOME, Hostile, IOVAS, MARK};
use crate::bench::DEVICE;
use crate::iommu::{self, is_stopped, read, write};
use crate::memory::PAGE;
use crate::verdict::{Why, ensure};

impl Hostile<'_> {
    /// A batch of commands, good and bad, through a queue of its own; again after each that stops it.
    pub(super) fn command(&mut self) -> Result<(), Why> {
        self.bench.iommu.start_commands_anew(self.commands)?;
        let count = self.rng.random_range(1..16);
        let batch: Vec<RawCommand, 16> = (0..count).map(|_| self.any_command()).collect();
        for &command in &batch {
            self.bench.iommu.push(command);
        }
        self.bench.iommu.doorbell();
        self.counts.actions += count;
        let mut counted = 0;
        loop {
            let (head, csr) = self.bench.iommu.settle();
            let fctl = Fctl::from_bits(read(Register::Fctl) as u32);
            let mode = DdtpMode::decode(iommu::ddtp().iommu_mode()).unwrap_or(DdtpMode::Off);
            let legality = Legality::new(self.bench.iommu.capabilities, fctl.wsi(), mode);
            for &command in &batch[counted..head as usize] {
                match Command::decode(command, &legality) {
                    Ok(command) => self.counts.accepted[kind(command)] += 1,
                    Err(_) => ensure!(self.bench.native, "{command:x?} was carried out"),
                }
            }
            if !is_stopped(csr) {
                ensure!(head as usize == batch.len(), "cqh stays at {head} of {}: {csr:x?}", batch.len());
                return Ok(());
            }
            let stopper = Command::decode(batch[head as usize], &legality);
            ensure!(stopper.is_err() == csr.cmd_ill() || self.bench.native, "{stopper:x?}: {csr:x?}");
            self.counts.illegal += u64::from(csr.cmd_ill());
            self.counts.memory_faults += u64::from(csr.cqmf());
            if self.rng.random_range(0..4) == 0 {
                // Left as it is.
                return Ok(());
            }
            self.bench.iommu.patch(head as usize, Command::IofenceC(IofenceC::READS_AND_WRITES).encode());
            counted = head as usize + 1;
            write(Register::Cqcsr, csr.into_bits());
        }
    }

    fn any_command(&mut self) -> RawCommand {
        let good = self.good_command().encode();
        let RawCommand { low, high } = good;
        let bad = match self.rng.random_range(0..32) {
            0 => RawCommand { low: low ^ 1 << self.rng.random_range(0..64), high },
            1 => RawCommand { low, high: high ^ 1 << self.rng.random_range(0..64) },
            2 => RawCommand { low: self.rng.random(), high: self.rng.random() },
            3 => RawCommand { low: self.rng.random::<u64>() & !0x7f | self.rng.random_range(0..5), high },
            _ => good,
        };
        // What a fence stores, it does not store here.
        let legality = Legality::new(self.bench.iommu.capabilities, true, DdtpMode::Off);
        match Command::decode(bad, &legality) {
            Ok(Command::IofenceC(IofenceC { store: Some((at, _)), .. })) if HOME.contains(&at.get()) => good,
            _ => bad,
        }
    }

    fn good_command(&mut self) -> Command {
        let pointer = self.pointer();
        let rng = &mut self.rng;
        match rng.random_range(0..5) {
            number @ 0..2 => {
                let caps = self.bench.iommu.capabilities;
                let iova = if rng.random() { IOVAS } else { rng.random() };
                let range = match rng.random_range(0..64) {
                    bits @ 12.. if caps.s() => {
                        PageRange::covering(Iova::new(iova), Iova::new(iova | !0 >> (64 - bits)))
                    }
                    _ => PageRange::page(Iova::new(iova)),
                };
                let mut scope = Iotinval::ALL;
                if rng.random() {
                    scope = scope.with_range(range.with_non_leaf(caps.nl() && rng.random()));
                }
                if rng.random() {
                    scope = scope.with_gscid(Gscid::truncate(rng.random_range(0..8)));
                }
                if number == 1 {
                    return Command::IotinvalGvma(scope);
                }
                if rng.random() {
                    scope = scope.with_pscid(Pscid::truncate(rng.random_range(0..8)));
                }
                Command::IotinvalVma(scope)
            }
            2 => {
                let mut fence = IofenceC::READS_AND_WRITES;
                (fence.pr, fence.pw, fence.wsi) = (rng.random(), rng.random(), rng.random_range(0..16) == 0);
                let offset = rng.random_range(0..PAGE as u64 / 4) * 4;
                // Mostly none: one outside stops the queue.
                let stores = rng.random_range(0..4) == 0;
                Command::IofenceC(if stores {
                    fence.with_store(Gpa::new(pointer + offset), MARK as u32)
                } else {
                    fence
                })
            }
            number => {
                // Mostly ids that any directory has.
                let id = if rng.random_range(0..8) == 0 { rng.random() } else { rng.random_range(0..64) };
                let device = if rng.random() { DEVICE } else { DeviceId::truncate(id) };
                match number {
                    3 => Command::IodirInvalDdt(rng.random::<bool>().then_some(device)),
                    _ => Command::IodirInvalPdt(device, ProcessId::truncate(rng.random_range(0..256))),
                }
            }
        }
    }
}

/// Place of a command in [`Counts::accepted`].
fn kind(command: Command) -> usize {
    match command {
        Command::IotinvalVma(_) => 0,
        Command::IotinvalGvma(_) => 1,
        Command::IofenceC(_) => 2,
        Command::IodirInvalDdt(_) => 3,
        _ => 4,
    }
}
