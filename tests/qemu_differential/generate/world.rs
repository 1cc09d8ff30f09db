//! The guest's memory while it is filled.

use std::collections::BTreeMap;

use crate::case::Entry;
use crate::machine::RAM;
use crate::random::Random;
use crate::scheme::Scheme;
use crate::walk::Use;

const PAGE: u64 = 0x1000;

/// Pages of an arena, the first few of them for the roots of second stages.
const PAGES: u64 = 96;
const ROOTS: u64 = 8;

/// Memory of one case, and what was put where.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) arena: (u64, u64),
    pub(crate) image: BTreeMap<u64, u64>,
    pub(crate) mailboxes: Vec<u64>,
    /// The fault queue and its number of entries, as far as they are looked at.
    pub(crate) faults: Option<(u64, u32)>,
    pub(crate) context: u64,
    pub(crate) process: u64,
    pub(crate) sites: Vec<Site>,
    pub(crate) second: Option<Table>,
    /// Bits of the guest-physical addresses it makes up.
    pub(crate) guest_bits: u32,
    free: Vec<u64>,
    roots: Vec<u64>,
}

/// An entry of a structure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) role: Role,
    pub(crate) level: u8,
    pub(crate) entry: Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    DeviceDirectory,
    DeviceContext,
    ProcessContext,
    FirstPointer,
    FirstLeaf,
    SecondPointer(Use),
    SecondLeaf(Use),
}

/// A page: where it is, and how pointers name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) at: u64,
    pub(crate) address: u64,
}

/// A page table of either stage.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) scheme: Scheme,
    pub(crate) root: Spot,
    /// By their level and the address bits that lead to them.
    tables: BTreeMap<(u8, u64), Spot>,
}

impl World {
    pub(crate) fn new(mut random: Random) -> Self {
        // A few places only, so that QEMU does not touch all of its memory in a long run.
        let start = RAM.start + random.within(1..=16) * 0x0201_0000;
        let pages = |range: std::ops::Range<u64>| range.map(|page| start + page * PAGE);
        let mut free: Vec<u64> = pages(ROOTS..PAGES).collect();
        random.shuffle(&mut free);
        let roots = pages(0..ROOTS).step_by(4).collect();
        Self {
            random,
            arena: (start, PAGES * PAGE),
            image: BTreeMap::new(),
            mailboxes: Vec::new(),
            faults: None,
            context: 0,
            process: 0,
            sites: Vec::new(),
            second: None,
            guest_bits: 56,
            free,
            roots,
        }
    }

    /// A page nothing else is on.
    pub(crate) fn page(&mut self) -> u64 {
        self.free.pop().expect("a case takes fewer pages than an arena has")
    }

    /// The same for the root of a second stage.
    pub(crate) fn root(&mut self) -> Spot {
        let at = self.roots.pop().expect("a case has few second stages");
        Spot { at, address: at }
    }

    /// An address where there is no memory. The bits that QEMU's other devices answer to are not set.
    pub(crate) fn hole(&mut self, bits: u32) -> u64 {
        let low = self.random.bits(19) << 12;
        if bits <= 34 { 0x1_8000_0000 | low } else { 1 << self.random.within(36..=u64::from(bits) - 1) | low }
    }

    /// A page that the guest names in a process directory or a first-stage table: through the second stage, if there
    /// is one.
    pub(crate) fn spot(&mut self, what: Use) -> Spot {
        let at = self.page();
        if self.second.is_none() {
            return Spot { at, address: at };
        }
        loop {
            let address = self.guest_page() << 12;
            if self.map_second(address, 0, at, what) {
                return Spot { at, address };
            }
        }
    }

    /// A guest page number: often near others.
    pub(crate) fn guest_page(&mut self) -> u64 {
        if self.random.percent(50) { self.random.bits(9) } else { self.random.bits(self.guest_bits - 12) }
    }

    /// Maps a guest-physical address in the second stage; false where something else is mapped.
    pub(crate) fn map_second(&mut self, address: u64, level: u8, to: u64, what: Use) -> bool {
        let flags = self.random.bits(2) << 8 | u64::from(self.random.percent(10)) << 5 | 0xdf;
        let mut table = self.second.take().expect("a second stage");
        let spot = |world: &mut Self| {
            let at = world.page();
            Spot { at, address: at }
        };
        let roles = (Role::SecondPointer(what), Role::SecondLeaf(what));
        let mapped = table.map(self, address, level, to >> 12 << 10 | flags, roles, spot);
        self.second = Some(table);
        mapped
    }

    pub(crate) fn put(&mut self, entry: Entry, value: u64) {
        entry.set(&mut self.image, value);
    }

    pub(crate) fn get(&self, entry: Entry) -> u64 {
        entry.get(&self.image)
    }

    pub(crate) fn site(&mut self, role: Role, level: u8, entry: Entry) {
        self.sites.push(Site { role, level, entry });
    }
}

impl Table {
    pub(crate) fn new(scheme: Scheme, root: Spot) -> Self {
        Self { scheme, root, tables: BTreeMap::from([((scheme.levels - 1, 0), root)]) }
    }

    /// Puts `leaf` where `address` leads at `level`; false, and nothing done, where that is taken.
    pub(crate) fn map(
        &mut self,
        world: &mut World,
        address: u64,
        level: u8,
        leaf: u64,
        (pointer, leaf_role): (Role, Role),
        mut new_page: impl FnMut(&mut World) -> Spot,
    ) -> bool {
        let scheme = self.scheme;
        let bytes = scheme.entry_bytes;
        let address = address & (u64::MAX >> (64 - scheme.width()));
        let mut table = self.root;
        for above in (level + 1..scheme.levels).rev() {
            let entry = Entry { at: table.at + scheme.index(address, above) * bytes, bytes };
            let key = (above - 1, address >> scheme.offset_bits(above));
            table = match self.tables.get(&key) {
                Some(&known) => known,
                None if world.get(entry) != 0 => return false,
                None => {
                    let spot = new_page(world);
                    world.put(entry, spot.address >> 12 << 10 | 1);
                    world.site(pointer, above, entry);
                    self.tables.insert(key, spot);
                    spot
                }
            };
        }
        let entry = Entry { at: table.at + scheme.index(address, level) * bytes, bytes };
        if world.get(entry) != 0 {
            return false;
        }
        world.put(entry, leaf);
        world.site(leaf_role, level, entry);
        true
    }
}
