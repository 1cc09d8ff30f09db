//! Cases at random: a legal configuration, a request that translates, and in half of the cases one flaw.

mod commands;
mod flaw;
mod registers;
mod shape;
mod spoil;
mod world;

use riscv_viommu::Width;

use crate::case::{Case, Entry, Request, Step};
use crate::machine::Version;
use crate::random::Random;
use crate::scheme::Scheme;
use crate::walk::Use;

use flaw::Flaw;
use shape::{Access, Messages, Processes, Shape};
use world::{Role, Table, World};

/// What of the generator depends on QEMU's version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// `fctl.GXL` is writable.
    pub(crate) gxl: bool,
    /// Process directories go through the second stage.
    pub(crate) nested_directories: bool,
    /// PTE bits 60:59 are ignored.
    pub(crate) svrsw60t59b: bool,
}

impl Abilities {
    pub(crate) fn of(version: Version, capabilities: u64) -> Self {
        let is_new = version == Version::V11_1;
        Self { gxl: is_new, nested_directories: is_new, svrsw60t59b: capabilities >> 14 & 1 == 1 }
    }

    fn allow(self, shape: &Shape) -> bool {
        self.nested_directories || shape.second.is_none() || !shape.has_directory()
    }
}

/// Case `number` of the run with this seed.
pub(crate) fn case(seed: u64, number: u64, abilities: Abilities) -> Case {
    let mut random = Random::of(seed, number);
    let (flaw, shape) = loop {
        let flaw = Flaw::of(&mut random);
        // A flaw needs something it can be a flaw of, which there is not on every QEMU.
        let mut shapes = (0..100).map(|_| Shape::of(&mut random, abilities.gxl));
        if let Some(shape) = shapes.find(|shape| flaw.fits(shape) && abilities.allow(shape)) {
            break (flaw, shape);
        }
    };
    let mut plan = Plan::of(shape, World::new(random));
    flaw.apply(&mut plan, abilities);
    plan.into_case(format!("{flaw:?}"))
}

/// A case on its way.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) world: World,
    pub(crate) request: Request,
    pub(crate) ddtp: u64,
}

impl Plan {
    fn of(shape: Shape, mut world: World) -> Self {
        world.guest_bits = shape.guest_bits();
        world.second = shape.second.map(|scheme| {
            let root = world.root();
            Table::new(scheme, root)
        });
        let request = Request {
            device: shape.device,
            process: shape.process(),
            iova: 0,
            privileged: shape.privileged,
            execute: shape.access == Access::Execute,
            write: shape.access == Access::Write,
        };
        let mut plan = Self { shape, world, request, ddtp: 0 };
        let first = plan.first_stage();
        let pointer = plan.process_directory(first);
        let context = plan.device_context(pointer);
        plan.device_directory(&context);
        plan
    }

    /// Chooses the IOVA, maps it, and gives what `iosatp` says.
    fn first_stage(&mut self) -> u64 {
        let Some(scheme) = self.shape.first else {
            self.request.iova = self.final_address(0);
            return 0;
        };
        let random = &mut self.world.random;
        let level = random.weighted(&[(70, 0), (20, 1), (6, 2), (3, 3), (1, 4)]).min(scheme.levels - 1);
        let napot = level == 0 && scheme.is_wide() && random.percent(10);
        let iova = random.bits(scheme.width()) & !0xfff;
        // QEMU answers with the first page of what is larger than a page.
        let within = if napot { 0xffff } else { (1 << scheme.offset_bits(level)) - 1 };
        let iova = if random.percent(90) { iova & !within } else { iova };
        self.request.iova = scheme.canonical(iova);
        let address = self.final_address(scheme.offset_bits(level));
        let address = if napot { address & !0xf000 | 0x8000 } else { address };
        let leaf = address >> 12 << 10 | self.first_flags() | u64::from(napot) << 63;
        let root = self.world.spot(Use::Table);
        let mut table = Table::new(scheme, root);
        let roles = (Role::FirstPointer, Role::FirstLeaf);
        let mapped = table.map(&mut self.world, iova, level, leaf, roles, |world| world.spot(Use::Table));
        assert!(mapped, "there is nothing else in the table");
        if let Some(second) = self.shape.second {
            // What the leaf maps is mapped on: this page of it, or more.
            let target = if napot { address & !0xf000 | iova & 0xf000 } else { address | iova & within };
            let level = self.second_level(second);
            self.map_final(second, target, level);
        }
        scheme.mode << 60 | root.address >> 12
    }

    /// Where the first stage leads, aligned; without one the IOVA, mapped by the second.
    fn final_address(&mut self, aligned: u32) -> u64 {
        let bits = self.shape.first.map_or(56, |scheme| scheme.page_bits() + 12).min(self.shape.guest_bits());
        let mut address = self.world.random.bits(bits) >> aligned.max(12) << aligned.max(12);
        if let (None, Some(second)) = (self.shape.first, self.shape.second) {
            let level = self.second_level(second);
            if self.world.random.percent(90) {
                address = address >> second.offset_bits(level) << second.offset_bits(level);
            }
            self.map_final(second, address, level);
        }
        address
    }

    fn second_level(&mut self, scheme: Scheme) -> u8 {
        let level = self.world.random.weighted(&[(75, 0), (18, 1), (4, 2), (2, 3), (1, 4)]).min(scheme.levels - 1);
        // Tables need addresses too.
        (0..=level).rev().find(|&level| scheme.offset_bits(level) + 2 < self.shape.guest_bits()).unwrap_or(0)
    }

    fn map_final(&mut self, scheme: Scheme, address: u64, level: u8) {
        let random = &mut self.world.random;
        let to = random.bits(scheme.page_bits()) << 12;
        for level in (0..=level).rev() {
            let bits = scheme.offset_bits(level);
            if self.world.map_second(address, level, to >> bits << bits, Use::Final) {
                break;
            }
        }
    }

    /// Bits of the first-stage leaf: enough for the request.
    fn first_flags(&mut self) -> u64 {
        let random = &mut self.world.random;
        let (read, write) = (true, self.shape.access == Access::Write || random.percent(60));
        let execute = self.shape.access == Access::Execute || random.percent(50);
        let dirty = self.shape.access == Access::Write || random.percent(50);
        let ignored = random.bits(2) << 8 | u64::from(random.percent(10)) << 5;
        let user = !self.shape.privileged;
        1 | u64::from(read) << 1
            | u64::from(write) << 2
            | u64::from(execute) << 3
            | u64::from(user) << 4
            | 1 << 6
            | u64::from(dirty) << 7
            | ignored
    }

    /// Builds the process directory there may be, and gives what `fsc` says.
    fn process_directory(&mut self, first: u64) -> u64 {
        let process = match self.shape.directory {
            Processes::None => return first,
            Processes::Bare(_) => return 0,
            Processes::NoProcess => self.world.random.within(1..=255),
            Processes::Process(_) | Processes::Default => self.shape.through_directory().unwrap_or(0).into(),
        };
        let world = &mut self.world;
        let spot = world.spot(Use::Directory);
        let at = spot.at + process * 16;
        let supervisor = self.shape.privileged || world.random.percent(30);
        let attributes = world.random.bits(20) << 12 | u64::from(supervisor) << 1 | 1;
        world.image.extend([(at, attributes), (at + 8, first)]);
        world.site(Role::ProcessContext, 0, Entry { at, bytes: 8 });
        world.process = at;
        1 << 60 | spot.address >> 12
    }

    fn device_context(&mut self, fsc: u64) -> [u64; 8] {
        let shape = self.shape;
        let random = &mut self.world.random;
        let has_directory = !matches!(shape.directory, Processes::None);
        let ats = random.percent(20);
        let pages = ats && random.percent(50);
        let mut tc = 1 | u64::from(ats) << 1 | u64::from(pages) << 2 | u64::from(shape.quiet) << 4;
        tc |= u64::from(has_directory) << 5 | u64::from(pages && random.percent(50)) << 6;
        tc |= u64::from(matches!(shape.directory, Processes::Default)) << 9 | u64::from(shape.sxl) << 11;
        // For custom use.
        tc |= if random.percent(10) { random.bits(8) << 24 } else { 0 };
        let ta = random.bits(20) << 12;
        let tag = random.bits(16) << 44;
        let iohgatp = match &self.world.second {
            Some(table) => table.scheme.mode << 60 | tag | table.root.at >> 12,
            // Nothing of it counts (rule DC-20).
            None if random.percent(10) => tag | random.bits(44),
            None => 0,
        };
        let [msiptp, mask, pattern] = self.messages();
        [tc, iohgatp, ta, fsc, msiptp, mask, pattern, 0]
    }

    /// `msiptp`, `msi_addr_mask` and `msi_addr_pattern`.
    fn messages(&mut self) -> [u64; 3] {
        if self.shape.messages == Messages::Off {
            return [0; 3];
        }
        let page = self.final_page();
        let world = &mut self.world;
        let width = world.guest_bits.min(47 + 12) - 12;
        let mask = 1 << world.random.within(0..=3) | 1 << world.random.within(0..=7) | 1 << world.random.within(0..=7);
        let pattern = loop {
            let pattern = match self.shape.messages {
                Messages::Here => page,
                _ => world.random.bits(width),
            };
            if self.shape.messages == Messages::Here || (pattern ^ page) & !mask != 0 {
                break pattern;
            }
        };
        let table = world.page();
        if self.shape.messages == Messages::Here {
            let at = table + extract(page, mask) * 16;
            let to = world.random.bits(44);
            world.image.insert(at, to << 10 | 7);
        }
        [1 << 60 | table >> 12, mask, pattern]
    }

    /// The guest page the request is for once the first stage is done.
    fn final_page(&self) -> u64 {
        let site = |role| self.world.sites.iter().rev().find(move |site| site.role == role);
        match (self.shape.first, site(Role::FirstLeaf)) {
            (Some(scheme), Some(leaf)) => {
                scheme.leads_to(self.world.get(leaf.entry), leaf.level, self.request.iova) >> 12
            }
            _ => self.request.iova >> 12,
        }
    }

    /// Puts the context where the device's id leads.
    fn device_directory(&mut self, context: &[u64; 8]) {
        let device = u64::from(self.shape.device);
        let world = &mut self.world;
        let mut page = world.page();
        self.ddtp = page >> 12 << 10 | u64::from(self.shape.levels + 1);
        for level in (1..self.shape.levels).rev() {
            let index = device >> (6 + 9 * (level - 1)) & 0x1ff;
            let next = world.page();
            let entry = Entry { at: page + index * 8, bytes: 8 };
            world.put(entry, next >> 12 << 10 | 1);
            world.site(Role::DeviceDirectory, level, entry);
            page = next;
        }
        let at = page + (device & 0x3f) * 64;
        world.image.extend((0..).zip(context).map(|(dword, &value)| (at + dword * 8, value)));
        world.site(Role::DeviceContext, 0, Entry { at, bytes: 8 });
        world.context = at;
    }

    /// Flips one or two bits somewhere. Those that would lead into QEMU's other devices stay, and those of PBMT.
    fn flip_bits(&mut self) {
        let world = &mut self.world;
        for _ in 0..world.random.within(1..=2) {
            let words = world.image.iter().filter(|&(_, &word)| word != 0);
            let words: Vec<u64> = words.map(|(&at, _)| at).collect();
            let mut at = world.random.pick(&words);
            // QEMU leaves much of a context unchecked.
            while (world.context..world.context + 64).contains(&at) && world.random.percent(70) {
                at = world.random.pick(&words);
            }
            let bit = world.random.within(0..=63);
            // With another SXL other tables would be read; QEMU looks at SADE once the first table is found.
            let is_subtle = at == world.context && (bit == 11 || bit == 8);
            if !is_subtle && ![19, 22, 29, 32, 51, 54, 61, 62].contains(&bit) {
                *world.image.entry(at).or_default() ^= 1 << bit;
            }
        }
    }

    fn into_case(mut self, flaw: String) -> Case {
        let mut steps = registers::before(&mut self);
        let mut ring = commands::queue(&mut self, &mut steps);
        steps.push(Step::Write { offset: 16, width: Width::U64, value: self.ddtp });
        steps.push(Step::Translate);
        commands::some(&mut self, &mut ring, &mut steps);
        registers::after(&mut self, &mut steps);
        let Self { shape: Shape { gxl, .. }, ddtp, request, world } = self;
        let World { arena, image, mailboxes, faults, .. } = world;
        Case { flaw, arena, image, steps, ddtp, gxl, request, mailboxes, faults }
    }
}

/// The bits of `value` that `mask` selects, packed (rule MSI-05).
fn extract(value: u64, mask: u64) -> u64 {
    let selected = (0..64).filter(|bit| mask >> bit & 1 == 1);
    selected.zip(0..).fold(0, |packed, (bit, to)| packed | (value >> bit & 1) << to)
}

#[test]
fn bits_are_extracted_as_the_specification_shows() {
    // a b c d e f g h under 10100110 is a c f g (rule MSI-05).
    assert_eq!(extract(0b1000_0100, 0b1010_0110), 0b1010);
    assert_eq!(extract(0b0101_1001, 0b1010_0110), 0);
}
