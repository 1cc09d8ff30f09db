//! A guest that means harm: for ever, from a seed, whatever a driver should not do to its IOMMU and its device.
//!
//! It goes in episodes. Each is a storm of attacks on registers, queues, contexts, tables and the controller, after
//! which the IOMMU must still be one that a driver can set up, the guest's memory must be what it was, and of DMA
//! exactly that must work which stays in the guest's own memory.

use core::fmt;
use core::ops::Range;

use heapless::Vec;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use riscv_viommu::cmdq::{Command, IofenceC, Iotinval, Legality, PageRange, RawCommand};
use riscv_viommu::ddt::{BaseContext, ExtendedContext, Fsc, Ta, Tc};
use riscv_viommu::pt::Pte;
use riscv_viommu::regs::{Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Icvec, MsiAddr, MsiVecCtl, QueueBase, Register};
use riscv_viommu::{Cause, DeviceId, FirstStageMode, Gpa, Gscid, Iova, Ppn, ProcessId, Pscid};
use zerocopy::IntoBytes;

use crate::bench::{Bench, DEVICE, MODES, PASSING, QUEUES, READ, WRITE, World};
use crate::console::say;
use crate::csr;
use crate::imsic::IMSIC;
use crate::iommu::{self, is_stopped, read, write};
use crate::memory::{PAGE, Pages, RAM, pattern};
use crate::mmio;
use crate::nvme::{BLOCK, Outcome, Way};
use crate::start;
use crate::tables::{Space, read_only, read_write};
use crate::verdict::{Why, ensure, why};

/// What is put where it should not get to: easily found.
const MARK: u64 = u64::from_le_bytes(*b"HOSTILE!");
/// Where the program and what it relies on are; nothing is made to point here.
const HOME: Range<u64> = RAM..0x8080_0000;
/// Where drivers of other systems, too, put their addresses: the top of the first 4 GiB.
const IOVAS: u64 = 0xffff_0000;
/// Pages of them that are mapped, and changed under the device.
const LIVE: u64 = 8;
/// Of these each there must be so many.
const ENOUGH: u64 = 1000;
const ACTIONS: u64 = 100_000;
const REPORT: u64 = 20_000;

#[derive(Default)]
struct Counts {
    episodes: u64,
    actions: u64,
    /// Commands that `cqh` passed: VMA, GVMA, fence, DDT, PDT.
    accepted: [u64; 5],
    illegal: u64,
    memory_faults: u64,
    contexts: u64,
    outside: u64,
    inside: u64,
    /// Faults that were told only by `fqof`.
    lost: u64,
}

impl Counts {
    fn are_enough(&self) -> bool {
        let fewest = self.accepted.iter().chain([&self.contexts, &self.outside]).min();
        self.actions >= ACTIONS && fewest >= Some(&ENOUGH)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { episodes, actions, accepted: [vma, gvma, fence, ddt, pdt], illegal, .. } = self;
        write!(f, "actions={actions} episodes={episodes} vma={vma} gvma={gvma} fence={fence} ddt={ddt} pdt={pdt} ")?;
        let Self { memory_faults, contexts, outside, inside, lost, .. } = self;
        write!(
            f,
            "illegal={illegal} cqmf={memory_faults} contexts={contexts} outside={outside} inside={inside} lost={lost}"
        )
    }
}

struct Hostile<'a> {
    bench: &'a mut Bench,
    rng: SmallRng,
    counts: Counts,
    /// Memory that anything may be done to.
    yard: Pages,
    /// Memory nothing is to happen to.
    guard: Pages,
    /// The directory and tables under attack.
    world: World,
    commands: Pages,
}

/// Never ends.
pub(crate) fn run(bench: &mut Bench, seed: u64) -> ! {
    say!("hostile, seed {seed}");
    let why = match Hostile::new(bench) {
        Ok(mut hostile) => hostile.go_on(seed),
        Err(why) => why,
    };
    say!("@hv fail {why}");
    start::shut_down()
}

impl<'a> Hostile<'a> {
    fn new(bench: &'a mut Bench) -> Result<Self, Why> {
        let yard = bench.pool.keep_from(HOME.end);
        bench.begin()?;
        let world = World { directory: bench.directory(1), space: bench.space(MODES[0], 1) };
        let commands = bench.pool.pages(1);
        let guard = commands;
        Ok(Self { bench, rng: SmallRng::seed_from_u64(0), counts: Counts::default(), yard, guard, world, commands })
    }

    /// Episode after episode; what it returns with is a failure.
    fn go_on(&mut self, seed: u64) -> Why {
        let (mut reported, mut passed) = (0, false);
        loop {
            let number = self.counts.episodes;
            // Of its own for each, so that one can be looked at alone.
            self.rng = SmallRng::seed_from_u64(seed << 32 | number);
            if let Err(why) = self.episode() {
                return why!("{why} (seed {seed}, episode {number})");
            }
            self.counts.episodes += 1;
            if self.counts.actions >= reported + REPORT {
                reported = self.counts.actions;
                say!("{}", self.counts);
            }
            if !passed && self.counts.are_enough() {
                passed = true;
                say!("@hv pass hostile {}", self.counts);
            }
        }
    }

    fn episode(&mut self) -> Result<(), Why> {
        self.bench.begin()?;
        let levels = self.rng.random_range(1..=3);
        let mode = MODES[self.rng.random_range(0..3)];
        self.world = World { directory: self.bench.directory(levels), space: self.space(mode) };
        self.commands = self.bench.pool.pages(1);
        self.guard = self.bench.pool.pages(4);
        self.guard.fill(pattern(self.counts.episodes));
        for _ in 0..self.rng.random_range(20..60) {
            match self.rng.random_range(0..20) {
                0..8 => self.store(),
                8..13 => self.command()?,
                13..17 => self.context()?,
                17..19 => self.tables(),
                _ => self.device()?,
            }
        }
        ensure!(self.guard.holds(self.guard.len(), pattern(self.counts.episodes)), "memory of the guest's was changed");
        self.trial()
    }

    /// A first stage with some pages of the yard.
    fn space(&mut self, mode: FirstStageMode) -> Space {
        let pscid = self.rng.random_range(0..8);
        let space = self.bench.space(mode, pscid);
        for index in 0..LIVE {
            let page = self.page();
            space.map(&mut self.bench.pool, IOVAS + index * PAGE as u64, page.gpa());
        }
        space
    }

    /// A page of the yard.
    fn page(&mut self) -> Pages {
        self.yard.page(self.rng.random_range(0..self.yard.len() / PAGE))
    }

    /// A page that is not the guest's.
    fn outside(&mut self) -> u64 {
        if self.bench.native {
            // Nothing keeps these in: where no harm is done.
            return self.bench.ram_end + self.rng.random_range(0..1 << 17) * PAGE as u64;
        }
        let known: Vec<u64, 16> = self.bench.outside().collect();
        let gpa = match self.rng.random_range(0..4) {
            0 => self.bench.ram_end + self.rng.random_range(0..1 << 18) * PAGE as u64,
            1 => self.rng.random::<u64>() >> self.rng.random_range(8..32),
            _ => *known.choose(&mut self.rng).expect("some"),
        };
        let gpa = gpa / PAGE as u64 * PAGE as u64;
        if (RAM..self.bench.ram_end).contains(&gpa) || gpa == IMSIC { 0 } else { gpa }
    }

    /// A page somewhere: the yard's, or outside.
    fn pointer(&mut self) -> u64 {
        if self.rng.random() { self.page().gpa() } else { self.outside() }
    }

    fn ppn(&mut self) -> Ppn {
        Ppn::truncate(self.pointer() / PAGE as u64)
    }

    /// A store to the register page, of any width to anywhere, or of something sensible to a register.
    fn store(&mut self) {
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

    /// A batch of commands, good and bad, through a queue of its own; again after each that stops it.
    fn command(&mut self) -> Result<(), Why> {
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

    /// A context for the device, good or bad, in force.
    fn context(&mut self) -> Result<(), Why> {
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
    fn tables(&mut self) {
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
    fn device(&mut self) -> Result<(), Why> {
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

    /// After all that: memory of the guest's own is reached, to the byte, and no other.
    fn trial(&mut self) -> Result<(), Why> {
        self.bench.begin()?;
        let levels = self.rng.random_range(1..=3);
        let space = match self.rng.random_range(0..5) {
            0 => self.bench.bare().map(|()| None)?,
            1 => self.bench.identity(levels).map(|_| None)?,
            scheme => {
                let (directory, space) = (self.bench.directory(levels), self.space(MODES[scheme - 2]));
                directory.set_base(space.context());
                self.bench.enter(directory.ddtp())?;
                self.bench.start(QUEUES, None)?;
                Some(space)
            }
        };
        for index in 0..3 {
            let gpa = self.outside();
            let iova = self.map(space, index, gpa)?;
            self.reach_out(iova, gpa)?;
        }
        let page = self.page();
        let iova = self.map(space, 3, page.gpa())?;
        let seed = self.rng.random_range(0..1 << 40);
        self.bench.transfers([iova, 0], page, PAGE, seed)?;
        self.counts.inside += 1;
        if space.is_some() {
            // The page the device has just used is another.
            let gpa = self.outside();
            let iova = self.map(space, 3, gpa)?;
            self.reach_out(iova, gpa)?;
        }
        self.close()
    }

    /// An address that leads there now: without a first stage the same.
    fn map(&mut self, space: Option<Space>, index: u64, gpa: u64) -> Result<u64, Why> {
        let Some(space) = space else {
            return Ok(gpa);
        };
        let iova = IOVAS + (LIVE + index) * PAGE as u64;
        space.map(&mut self.bench.pool, iova, gpa);
        let page = PageRange::page(Iova::new(iova));
        self.bench.iommu.run(&[Command::IotinvalVma(Iotinval::ALL.with_range(page))])?;
        Ok(iova)
    }

    /// A transfer from or to what is not the guest's: a fault, and no data.
    fn reach_out(&mut self, iova: u64, gpa: u64) -> Result<(), Why> {
        let way = if self.rng.random() { Way::FromMemory } else { Way::ToMemory };
        // Records can get lost where another guest has many.
        for _ in 0..20 {
            if self.is_told(way, iova).map_err(|why| why!("leak {way:?} {gpa:#x}: {why}"))? {
                return Ok(());
            }
            self.counts.lost += 1;
        }
        Err(why!("{way:?} {gpa:#x}: records are lost again and again"))
    }

    /// Shut out, the device gets at nothing.
    fn close(&mut self) -> Result<(), Why> {
        iommu::set_ddtp(iommu::OFF)?;
        let (buffer, iova) = self.bench.buffer();
        buffer.fill(pattern(1));
        let outcome = self.bench.nvme.transfer(Way::ToMemory, PASSING, BLOCK, iova);
        ensure!(outcome == Outcome::Fatal, "shut out, the device answers {outcome:?}");
        ensure!(buffer.holds(BLOCK, pattern(1)), "shut out, the device wrote");
        Ok(())
    }

    /// Once; whether there is a record and not only word of lost ones.
    fn is_told(&mut self, way: Way, iova: u64) -> Result<bool, Why> {
        let (buffer, marked) = self.bench.buffer();
        buffer.fill(|_| MARK);
        let outcome = self.bench.nvme.transfer(Way::FromMemory, PASSING, BLOCK, marked);
        ensure!(outcome == Outcome::Done(0), "to the disk: {outcome:?}, {}", self.bench.next_fault());
        let outcome = self.bench.nvme.transfer(way, PASSING, BLOCK, [iova, 0]);
        let quiet = matches!(outcome, Outcome::Done(1..)) && !csr::within(20, || self.bench.iommu.has_fault());
        // A quiet refusal is the controller's own, which does not like the address of its registers.
        self.counts.outside += u64::from(!quiet);
        if self.bench.native || quiet {
            return Ok(true);
        }
        let told = match way {
            Way::ToMemory => self.bench.finds(Cause::WriteAccessFault, WRITE, iova)?,
            Way::FromMemory => self.bench.finds(Cause::ReadAccessFault, READ, iova)?,
        };
        self.bench.revive()?;
        let read = self.bench.collect(BLOCK)?;
        let leaked = (0..BLOCK / 8).find(|&index| ![0, MARK].contains(&read.word(index)));
        ensure!(leaked.is_none(), "data {:#x}", read.word(leaked.unwrap_or(0)));
        Ok(told)
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
