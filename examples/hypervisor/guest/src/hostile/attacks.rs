//! Attacks on registers, contexts and tables, and those of the controller itself.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use riscv_viommu::cmdq::Command;
use riscv_viommu::ddt::{BaseContext, ExtendedContext, Fsc, Ta, Tc};
use riscv_viommu::pt::Pte;
use riscv_viommu::regs::{Cqcsr, Ddtp, Fctl, Fqcsr, Icvec, MsiAddr, MsiVecCtl, QueueBase, Register};
use riscv_viommu::{Ppn, Pscid};
use zerocopy::IntoBytes;

use super::{HOME, Hostile, IOVAS, LIVE};
use crate::bench::{DEVICE, MODES};
use crate::imsic::IMSIC;
use crate::iommu::{self, read, write};
use crate::memory::PAGE;
use crate::mmio;
use crate::tables::{read_only, read_write};
use crate::verdict::Why;

impl Hostile<'_> {
    /// A store to the register page, of any width to anywhere, or of something sensible to a register.
    pub(super) fn store(&mut self) {
        self.counts.actions += 1;
        if self.rng.random() {
            return self.sensible_store();
        }
        let width = 1 << self.rng.random_range(if self.bench.native { 2..4 } else { 0..4 });
        // Behind its registers QEMU's IOMMU has nothing.
        let end = if self.bench.native { 0x300 } else { 0x1000 };
        let offset = self.rng.random_range(0..end / width) * width;
        let value = match self.rng.random_range(0..4) {
            0 => self.rng.random(),
            1 => 1 << self.rng.random_range(0..64),
            2 => u64::MAX,
            _ => self.rng.random::<u64>() & self.rng.random::<u64>() & self.rng.random::<u64>(),
        };
        if !Self::points_home(offset, width, value) {
            match width {
                1 => mmio::IOMMU.write8(offset, value as u8),
                2 => mmio::IOMMU.write16(offset, value as u16),
                4 => mmio::IOMMU.write32(offset, value as u32),
                _ => mmio::IOMMU.write64(offset, value),
            }
        }
    }

    /// Whether a store would let the IOMMU write to what this program relies on.
    fn points_home(offset: usize, width: usize, value: u64) -> bool {
        let register = Register::at(offset as u64 & !7);
        let (Some(register @ (Register::Fqb | Register::MsiAddr(_))), 4..) = (register, width) else {
            return false;
        };
        let mut bytes = read(register).to_le_bytes();
        let at = offset % 8;
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let merged = u64::from_le_bytes(bytes);
        let address = match register {
            Register::Fqb => QueueBase::from_bits(merged).ppn().base().get(),
            _ => MsiAddr::from_bits(merged).addr() << 2,
        };
        HOME.contains(&address)
    }

    fn sensible_store(&mut self) {
        let bit = |rng: &mut SmallRng| rng.random::<bool>();
        let rng = &mut self.rng;
        match rng.random_range(0..10) {
            0 => {
                let ddtp = Ddtp::new().with_iommu_mode(rng.random_range(0..6));
                write(Register::Ddtp, ddtp.with_ppn(self.ppn()).into_bits());
            }
            1 => write(Register::Ddtp, self.world.directory.ddtp().into_bits()),
            2 | 3 => {
                let log2 = rng.random_range(0..32);
                let base = QueueBase::new().with_log2sz_minus_1(log2).with_ppn(self.ppn());
                write(if bit(&mut self.rng) { Register::Cqb } else { Register::Fqb }, base.into_bits());
            }
            4 => {
                let csr = Cqcsr::new().with_cqen(bit(rng)).with_cie(bit(rng)).with_cqmf(true).with_cmd_ill(bit(rng));
                write(Register::Cqcsr, csr.into_bits());
            }
            5 => {
                let csr = Fqcsr::new().with_fqen(bit(rng)).with_fie(bit(rng)).with_fqmf(true).with_fqof(bit(rng));
                write(Register::Fqcsr, csr.into_bits());
            }
            6 => write(Register::Fctl, Fctl::new().with_wsi(bit(rng)).with_be(bit(rng)).with_gxl(bit(rng)).into_bits()),
            7 => {
                let icvec = Icvec::new().with_civ(rng.random_range(0..16)).with_fiv(rng.random_range(0..16));
                write(Register::Icvec, icvec.into_bits());
            }
            8 => {
                let vector = rng.random_range(0..4);
                let masked = MsiVecCtl::new().with_m(bit(rng));
                let address = if bit(rng) { IMSIC } else { self.pointer() };
                write(Register::MsiAddr(vector), MsiAddr::new().with_addr(address >> 2).into_bits());
                write(Register::MsiData(vector), self.rng.random::<u32>());
                write(Register::MsiVecCtl(vector), masked.into_bits());
            }
            _ => write(
                if bit(rng) { Register::Cqt } else { Register::Fqh },
                rng.random::<u32>() >> rng.random_range(0..32),
            ),
        }
    }

    /// A context for the device, good or bad, in force.
    pub(super) fn context(&mut self) -> Result<(), Why> {
        self.counts.actions += 1;
        let directory = self.world.directory;
        if iommu::ddtp() != directory.ddtp() {
            iommu::set_ddtp(iommu::OFF)?;
            iommu::set_ddtp(directory.ddtp())?;
        }
        let mode = MODES[self.rng.random_range(0..3)].encoding();
        let base = match self.rng.random_range(0..4) {
            0 => self.world.space.context(),
            1 => BaseContext { fsc: Fsc::new(), ..self.world.space.context() },
            _ => BaseContext {
                tc: Tc::new().with_v(true).with_dtf(self.rng.random()),
                ta: Ta::new().with_pscid(Pscid::truncate(self.rng.random_range(0..8))),
                fsc: Fsc::new().with_mode(mode).with_ppn(self.ppn()),
                ..BaseContext::default()
            },
        };
        let mut context = ExtendedContext { base, ..ExtendedContext::default() };
        let good = self.rng.random_range(0..3) != 0;
        if !good {
            let bytes = context.as_mut_bytes();
            if self.rng.random() {
                (0..3).for_each(|_| bytes[self.rng.random_range(0..32)] ^= 1 << self.rng.random_range(0..8));
            } else {
                self.rng.fill(bytes);
            }
        }
        // As it comes, live or by way of an invalid one; what counts is what the invalidation finds.
        if self.rng.random() {
            directory.set_word(0, 0);
        }
        directory.set(context);
        self.bench.iommu.start_commands_anew(self.commands)?;
        let device = self.rng.random::<bool>().then_some(DEVICE);
        self.bench.iommu.run(&[Command::IodirInvalDdt(device)])?;
        self.counts.accepted[3] += 1;
        self.counts.accepted[2] += 1;
        self.counts.contexts += u64::from(good);
        Ok(())
    }

    /// An entry of live tables is another, with or without a word to the IOMMU.
    pub(super) fn tables(&mut self) {
        self.counts.actions += 1;
        let iova = IOVAS + self.rng.random_range(0..LIVE) * PAGE as u64;
        let pointer = self.pointer();
        let random = Pte::from_bits(self.rng.random());
        let pte = match self.rng.random_range(0..5) {
            0 => Pte::new(),
            1 => read_only(pointer),
            2 => Pte::new().with_v(true).with_ppn(Ppn::truncate(pointer / PAGE as u64)),
            3 if !HOME.contains(&random.ppn().base().get()) => random,
            _ => read_write(pointer),
        };
        self.world.space.entry(&mut self.bench.pool, iova, 0).set(pte);
    }

    /// The controller is sent somewhere for its queues, in whatever context there is.
    pub(super) fn device(&mut self) -> Result<(), Why> {
        self.counts.actions += 1;
        if self.rng.random_range(0..4) == 0 {
            let windows = [0x4000_0000, 0x4_0000_0000, 0x7_fff0_0000, 0x4_1230_0000];
            self.bench.nvme.place(*windows.choose(&mut self.rng).expect("some"));
        }
        let [asq, acq] = [(); 2].map(|()| match self.rng.random_range(0..3) {
            0 => IOVAS + self.rng.random_range(0..LIVE) * PAGE as u64,
            1 => self.outside(),
            _ => self.page().gpa(),
        });
        let page = self.bench.pool.pages(4);
        self.bench.nvme.enable(page, asq, acq, None)?;
        self.bench.nvme.poke();
        Ok(())
    }
}
