//! The guest: its address spaces, its VMs, its directories, all of them in memory as literals of the specification.

use std::collections::BTreeMap;

use riscv_viommu::Gscid;
use riscv_viommu::mock::tables::pte;

use crate::ram::{BASE, Ram};
use crate::random::Random;

/// Queues, one page each.
pub(crate) const COMMANDS: u64 = BASE;
pub(crate) const FAULTS: u64 = BASE + 0x1000;

/// Guest-physical addresses of a VM: of its tables, its interrupt files, its data.
pub(crate) const TABLES: u64 = 0x1000_0000;
pub(crate) const FILES: u64 = 0x2800_0000;
pub(crate) const DATA: u64 = 0x4000_0000;

/// In every address space: what all spaces of a realm have in common.
pub(crate) const SHARED: u64 = 2 << 30;

/// First words of pages whose entries have so many words.
pub(crate) type Words = usize;

/// Either the guest itself, whose second stage is Bare, or a VM of its own.
#[derive(Debug)]
pub(crate) struct Realm {
    pub(crate) gscid: Option<Gscid>,
    pub(crate) second: Option<Tree>,
    pub(crate) spaces: Vec<Space>,
    /// The table of level 1 that all spaces share, and whether the entries that lead to it have G; else its leaves may.
    pub(crate) shared: u64,
    pub(crate) global_above: bool,
    /// Root and levels of the process directory.
    pub(crate) directory: (u64, u8),
    pub(crate) processes: Vec<Process>,
    pub(crate) files: u64,
    /// Where the pages of tables are in memory.
    pub(crate) pages: BTreeMap<u64, (u64, Words)>,
    free: Vec<(u64, Words)>,
    next: u64,
}

/// A first-stage address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) pscid: u32,
    pub(crate) tree: Tree,
}

/// A page table. The root of a first stage is an address of its realm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree {
    pub(crate) realm: usize,
    pub(crate) is_second: bool,
    pub(crate) root: u64,
    pub(crate) levels: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) valid: bool,
    pub(crate) ens: bool,
    pub(crate) sum: bool,
    pub(crate) space: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    Bare,
    Space(usize),
    Processes,
    BareProcesses,
}

/// A device context.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are bits")]
pub(crate) struct Context {
    pub(crate) valid: bool,
    pub(crate) realm: usize,
    pub(crate) first: First,
    pub(crate) sade: bool,
    pub(crate) gade: bool,
    pub(crate) dtf: bool,
    pub(crate) dpe: bool,
    pub(crate) ats: bool,
    pub(crate) t2gpa: bool,
    pub(crate) files: bool,
    pub(crate) reserved: bool,
}

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) random: Random,
    /// One memory for each twin, all written alike.
    pub(crate) rams: Vec<Ram>,
    pub(crate) realms: Vec<Realm>,
    pub(crate) devices: Vec<(u32, Context)>,
    pub(crate) directory: u64,
    /// Invalidations owed, in the order of the changes.
    pub(crate) owed: Vec<[u64; 2]>,
    /// What is in use and likely to change: a realm, a space of it if there is a first stage, an address.
    pub(crate) focus: Option<(usize, Option<usize>, u64)>,
    /// Changes are used before they are invalidated.
    pub(crate) is_late: bool,
    /// Entries above contexts whose V was cleared: of processes of a realm, or of devices.
    pub(crate) taken: Vec<(Option<usize>, u32, u8)>,
    /// A page of tables that can not be read as it should.
    pub(crate) broken: Option<(usize, u64)>,
    next: u64,
    free: Vec<(u64, Words)>,
    /// Not used any more, but until the invalidation somebody may look at it. With a realm: an address of that.
    retired: Vec<(Option<usize>, u64, Words)>,
}

pub(crate) const fn shift(level: u8) -> u8 {
    12 + 9 * level
}

pub(crate) const fn table_of(entry: u64) -> u64 {
    (entry & 0x003f_ffff_ffff_fc00) << 2
}

/// Whether an entry leads to a table.
pub(crate) const fn is_table(entry: u64, level: u8) -> bool {
    level > 0 && entry & (pte::V | pte::R | pte::W | pte::X) == pte::V
}

impl Guest {
    pub(crate) fn new(random: Random, rams: Vec<Ram>, is_late: bool) -> Self {
        let next = BASE + 0x4000;
        let (realms, devices, owed, focus, taken, broken, free, retired) = Default::default();
        let mut guest = Self {
            random,
            rams,
            realms,
            devices,
            directory: 0,
            owed,
            focus,
            is_late,
            taken,
            broken,
            next,
            free,
            retired,
        };
        guest.directory = guest.page(1);
        for gscid in [None, Some(0), Some(3)] {
            guest.add_realm(gscid.map(Gscid::truncate));
        }
        for id in [0x01, 0x02, 0x41, 0x8041, 0x12_3456, 0x12_3457] {
            let context = guest.random_context();
            guest.devices.push((id, context));
            let at = guest.context_address(id, 0);
            guest.write(at, &guest.context_words(&context));
        }
        guest
    }

    fn add_realm(&mut self, gscid: Option<Gscid>) {
        let realm = self.realms.len();
        let (second, pages, free, processes) = Default::default();
        self.realms.push(Realm {
            gscid,
            second,
            spaces: Vec::new(),
            shared: 0,
            global_above: self.random.percent(50),
            directory: (0, 0),
            processes,
            files: 0,
            pages,
            free,
            next: TABLES,
        });
        if gscid.is_some() {
            let levels = self.random.pick(&[3, 4, 5]);
            let root = self.aligned_root();
            self.realms[realm].second = Some(Tree { realm, is_second: true, root, levels });
            self.realms[realm].files = self.page(2);
        }
        let shared = self.table(realm, 1);
        self.realms[realm].shared = shared;
        for pscid in [0, 1, 5] {
            let levels = self.random.pick(&[3, 4, 5]);
            let tree = Tree { realm, is_second: false, root: self.table(realm, 1), levels };
            self.realms[realm].spaces.push(Space { pscid, tree });
            self.set_shared(realm, tree, shared);
        }
        let levels = self.random.pick(&[1, 2, 3]);
        self.realms[realm].directory = (self.table(realm, 2 - usize::from(levels > 1)), levels);
        for id in [0, 1, 7, 0x105, 0x2_0001].into_iter().filter(|id| id >> [8, 17, 20][usize::from(levels) - 1] == 0) {
            let process = self.random_process(realm, id);
            self.realms[realm].processes.push(process);
            let at = self.process_address(realm, id, 0);
            self.write(at, &self.process_words(realm, &process));
        }
    }

    /// Has the space lead to the table that all share.
    pub(crate) fn set_shared(&mut self, realm: usize, tree: Tree, shared: u64) {
        let global = if self.realms[realm].global_above { pte::G } else { 0 };
        let at = self.make_slot(tree, SHARED, 2);
        self.write(at, &[shared >> 2 | pte::V | global]);
    }

    pub(crate) fn read(&self, at: u64) -> u64 {
        self.rams[0].read(at)
    }

    /// Writes an entry whole.
    pub(crate) fn write(&mut self, at: u64, entry: &[u64]) {
        for ram in &self.rams {
            ram.write(at, entry);
        }
    }

    /// A page in memory that is all 0, for entries of so many words.
    pub(crate) fn page(&mut self, words: Words) -> u64 {
        let Some(index) = self.free.iter().position(|page| page.1 == words) else {
            self.next += 0x1000;
            return self.next - 0x1000;
        };
        let (page, _) = self.free.swap_remove(index);
        for at in (page..page + 0x1000).step_by(8) {
            self.write(at, &[0]);
        }
        self.fresh(page);
        page
    }

    /// Nobody has looked at the page as it was.
    pub(crate) fn fresh(&self, page: u64) {
        for ram in &self.rams {
            ram.forget_page(page);
        }
    }

    fn aligned_root(&mut self) -> u64 {
        self.next = self.next.next_multiple_of(0x4000) + 0x4000;
        self.next - 0x4000
    }

    /// A page for a table of the realm: an address of it.
    pub(crate) fn table(&mut self, realm: usize, words: Words) -> u64 {
        if self.realms[realm].second.is_none() {
            return self.page(words);
        }
        let free = &mut self.realms[realm].free;
        if let Some(index) = free.iter().position(|page| page.1 == words) {
            let (page, _) = free.swap_remove(index);
            let at = self.place(realm, page);
            for word in (at..at + 0x1000).step_by(8) {
                self.write(word, &[0]);
            }
            self.fresh(at);
            return page;
        }
        let at = self.page(words);
        let page = self.realms[realm].next;
        self.realms[realm].next += 0x1000;
        assert!(page < TABLES + 0x20_0000, "tables have 2 MiB");
        self.realms[realm].pages.insert(page, (at, words));
        // V 0 to 1: nothing to invalidate (rule SWG-17).
        let slot = self.make_slot(self.realms[realm].second.unwrap(), page, 0);
        self.write(slot, &[at >> 2 | pte::RW]);
        page
    }

    /// Where an address of a realm's tables is in memory.
    pub(crate) fn place(&self, realm: usize, address: u64) -> u64 {
        match self.realms[realm].second {
            None => address,
            Some(_) => self.realms[realm].pages[&(address & !0xfff)].0 | address & 0xfff,
        }
    }

    pub(crate) fn retire(&mut self, realm: Option<usize>, page: u64, words: Words) {
        let realm = realm.filter(|&realm| self.realms[realm].second.is_some());
        self.retired.push((realm, page, words));
    }

    /// Everything owed was paid: what is retired may be used again.
    pub(crate) fn paid(&mut self) {
        for (realm, page, words) in std::mem::take(&mut self.retired) {
            match realm {
                Some(realm) => self.realms[realm].free.push((page, words)),
                None => self.free.push((page, words)),
            }
        }
        for ram in &self.rams {
            ram.forget_past();
        }
    }

    fn entry_in(&self, tree: Tree, table: u64, address: u64, level: u8) -> u64 {
        let is_root = level + 1 == tree.levels;
        let index = address >> shift(level) & if is_root && tree.is_second { 0x7ff } else { 0x1ff };
        let at = table + index * 8;
        if tree.is_second { at } else { self.place(tree.realm, at) }
    }

    /// Where the entry of `level` for an address is in memory, and whether an entry above it has G; or the level of the
    /// entry on the way that leads to no table.
    pub(crate) fn slot(&self, tree: Tree, address: u64, level: u8) -> Result<(u64, bool), u8> {
        let (mut table, mut global) = (tree.root, false);
        for above in (level + 1..tree.levels).rev() {
            let entry = self.read(self.entry_in(tree, table, address, above));
            if !is_table(entry, above) {
                return Err(above);
            }
            global |= entry & pte::G != 0 && !tree.is_second;
            table = table_of(entry);
        }
        Ok((self.entry_in(tree, table, address, level), global))
    }

    /// The same, with tables where there was nothing.
    pub(crate) fn make_slot(&mut self, tree: Tree, address: u64, level: u8) -> u64 {
        loop {
            match self.slot(tree, address, level) {
                Ok((at, _)) => return at,
                Err(above) => {
                    let at = self.slot(tree, address, above).unwrap().0;
                    let page = if tree.is_second { self.page(1) } else { self.table(tree.realm, 1) };
                    self.write(at, &[page >> 2 | pte::V]);
                }
            }
        }
    }
}
