//! A guest that means harm: for ever, from a seed, whatever a driver should not do to its IOMMU and its device.
//!
//! It goes in episodes. Each is a storm of attacks on registers, queues, contexts, tables and the controller, after
//! which the IOMMU must still be one that a driver can set up, the guest's memory must be what it was, and of DMA
//! exactly that must work which stays in the guest's own memory.

mod attacks;
mod commands;
mod trial;

use core::fmt;
use core::ops::Range;

use heapless::Vec;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use riscv_viommu::{FirstStageMode, Ppn};

use crate::bench::{Bench, MODES, World};
use crate::console::say;
use crate::imsic::IMSIC;
use crate::memory::{PAGE, Pages, RAM, pattern};
use crate::start;
use crate::tables::Space;
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
}
