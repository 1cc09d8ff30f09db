//! What the guest changes: anything in its tables, at any level, one thing at a time, and what it owes for it.

use riscv_viommu::mock::tables::pte;

use crate::guest::{DATA, FILES, Guest, SHARED, Tree, is_table, shift, table_of};

/// Places of the entries that have something in them, at any level.
const PLACES: [u64; 6] = [0, 1, 2, 3, 16, 17];

/// Places of the highest level: the lowest, one that may be a leaf, what spaces share, the highest.
const TOP: [u64; 4] = [0, 1, SHARED >> 30, 0x1ff];

impl Guest {
    /// An address that may be mapped in a first stage.
    pub(crate) fn address(&mut self) -> u64 {
        let address =
            self.random.pick(&TOP) << 30 | self.random.pick(&PLACES[..3]) << 21 | self.random.pick(&PLACES) << 12;
        // Canonical in every mode.
        (address << 25).cast_signed().wrapping_shr(25).cast_unsigned()
    }

    /// An address that may be mapped in a second stage.
    pub(crate) fn data_address(&mut self) -> u64 {
        if self.random.percent(25) {
            return FILES + (self.random.below(5) << 12);
        }
        DATA | self.random.pick(&PLACES[..3]) << 21 | self.random.pick(&PLACES) << 12
    }

    fn target(&mut self, tree: Tree) -> u64 {
        if tree.is_second || self.realms[tree.realm].second.is_none() {
            0x1_0000_0000 + (self.random.below(0x1000) << 12)
        } else {
            self.data_address()
        }
    }

    /// A leaf of `level`; `shared`: of tables that several spaces have, where the IOMMU has nothing to mark for one of
    /// them alone.
    fn leaf(&mut self, tree: Tree, level: u8, shared: bool) -> u64 {
        let permissions = self.random.pick(&[
            pte::R | pte::W,
            pte::R | pte::W,
            pte::R | pte::W,
            pte::R | pte::W | pte::X,
            pte::R,
            pte::R | pte::X,
            pte::X,
            pte::W,
        ]);
        let mut flags = pte::V | permissions;
        for (bit, chance) in [(pte::U, if tree.is_second { 97 } else { 85 }), (pte::A, 85), (pte::D, 60)] {
            if self.random.percent(chance) || (shared && bit != pte::U) {
                flags |= bit;
            }
        }
        if shared && self.random.percent(50) && !self.realms[tree.realm].global_above {
            flags |= pte::G;
        }
        if self.random.percent(10) {
            flags |= self.random.below(4) << 61;
        }
        if self.random.percent(1) {
            flags |= 1 << 54;
        }
        let to = self.target(tree);
        flags | (to >> shift(level) << shift(level)) >> 2
    }

    /// Writes another entry of a first or second stage, and owes what it covered. Tables that are left are retired.
    fn change_entry(&mut self, tree: Tree, address: u64, level: u8, shared: bool) {
        // A leaf on the way is what is changed.
        let mut level = level;
        let at = loop {
            match self.slot(tree, address, level) {
                Ok((at, _)) => break at,
                Err(above) if self.read(self.slot(tree, address, above).unwrap().0) & pte::V != 0 => level = above,
                Err(_) => break self.make_slot(tree, address, level),
            }
        };
        if level == 0 && (PLACES[4] == address >> 16 << 4 & 0x1f0 || self.read(at) & pte::N != 0) {
            return self.change_range(tree, address, shared);
        }
        let old = self.old(tree, address, level);
        let entry = self.read(at);
        let new = match (level, self.random.below(10)) {
            (_, 0 | 1) => 0,
            // Software takes A or D away (rule SWG-15).
            (_, 2) if !is_table(entry, level) && !shared => entry & !self.random.pick(&[pte::A, pte::D]),
            // A page is split, or a table put where nothing was.
            (1.., 3..6) if !is_table(entry, level) => self.split(tree, entry, level),
            // Another table, with what the other had but for some entries.
            (1, 3..8) if is_table(entry, level) => self.other_table(tree, entry, shared),
            _ => self.leaf(tree, level, shared),
        };
        self.retire_tables(tree, entry, level);
        self.write(at, &[new]);
        self.owe(tree, shared, &old);
    }

    fn owe(&mut self, tree: Tree, shared: bool, old: &crate::cover::Old) {
        if tree.is_second {
            return self.owe_second(tree.realm, old);
        }
        let is_of = |space: usize| shared || self.realms[tree.realm].spaces[space].tree.root == tree.root;
        let spaces: Vec<_> = (0..self.realms[tree.realm].spaces.len()).filter(|&space| is_of(space)).collect();
        self.owe_first(tree.realm, &spaces, old);
    }

    /// Changes all of a range that may be one leaf of 64 KiB (rule PTE-06); A and D are set, so that no entry of it says
    /// more than another.
    fn change_range(&mut self, tree: Tree, address: u64, shared: bool) {
        let base = address & !0xffff;
        let old = self.old_range(tree, address);
        let leaf = self.leaf(tree, 0, true);
        let leaf = if shared { leaf } else { leaf & !pte::G };
        let kind = self.random.below(4);
        for page in 0..16 {
            let at = self.make_slot(tree, base + page * 0x1000, 0);
            let new = match kind {
                1 if page < 3 => leaf ^ page << 10,
                0 | 1 => 0,
                _ => leaf & !(0xf << 10) | 8 << 10 | pte::N,
            };
            self.write(at, &[new]);
        }
        self.owe(tree, shared, &old);
    }

    fn new_table(&mut self, tree: Tree) -> (u64, u64) {
        if tree.is_second {
            let page = self.page(1);
            return (page, page);
        }
        let page = self.table(tree.realm, 1);
        (page, self.place(tree.realm, page))
    }

    fn split(&mut self, tree: Tree, entry: u64, level: u8) -> u64 {
        let (page, at) = self.new_table(tree);
        if entry & pte::V != 0 && self.random.percent(70) {
            for index in 0..512 {
                self.write(at + index * 8, &[entry + (index << (shift(level - 1) - 2))]);
            }
        }
        self.fresh(at & !0xfff);
        page >> 2 | pte::V
    }

    fn other_table(&mut self, tree: Tree, entry: u64, shared: bool) -> u64 {
        let (page, to) = self.new_table(tree);
        let from = if tree.is_second { table_of(entry) } else { self.place(tree.realm, table_of(entry)) };
        for offset in (0..0x1000).step_by(8) {
            let leaf = self.read(from + offset);
            // In a range of 64 KiB all are alike.
            let new = if self.random.percent(30) && leaf & pte::N == 0 && offset < 0x80 && leaf != 0 {
                self.leaf(tree, 0, shared)
            } else {
                leaf
            };
            self.write(to + offset, &[new]);
        }
        self.fresh(to);
        page >> 2 | entry & 0x3ff
    }

    pub(crate) fn retire_tables(&mut self, tree: Tree, entry: u64, level: u8) {
        if !is_table(entry, level) {
            return;
        }
        let table = table_of(entry);
        if level > 1 {
            let at = if tree.is_second { table } else { self.place(tree.realm, table) };
            for offset in (0..0x1000).step_by(8) {
                let below = self.read(at + offset);
                self.retire_tables(tree, below, level - 1);
            }
        }
        self.retire((!tree.is_second).then_some(tree.realm), table, 1);
    }

    /// Changes something.
    pub(crate) fn change(&mut self) {
        if self.random.percent(10) {
            if let Some((realm, page)) = self.broken.take() {
                return self.move_table_page(realm, page);
            }
            if let Some((realm, id, level)) = self.taken.pop() {
                return self.toggle_directory_entry(realm, id, level);
            }
        }
        match self.random.below(100) {
            0..55 => self.change_first(),
            55..73 => self.change_second(),
            73..78 => self.change_table_page(),
            78..84 => self.change_file(),
            84..91 => self.change_process(),
            91..96 => self.change_context(),
            96 => self.change_process_directory(),
            97 => self.change_directory(),
            _ => self.change_root(),
        }
    }

    fn change_first(&mut self) {
        let realm = self.random.index(self.realms.len());
        let space = self.random.index(self.realms[realm].spaces.len());
        let (realm, space, address) = match self.focus.filter(|_| self.random.percent(60)) {
            Some((realm, Some(space), address)) => (realm, space, address),
            _ => (realm, space, self.address()),
        };
        let tree = self.realms[realm].spaces[space].tree;
        let shared = address >> 30 == SHARED >> 30;
        let level = match self.random.below(20) {
            0 => 2,
            1..7 => 1,
            _ => 0,
        };
        if shared && level == 2 {
            return self.change_shared(realm);
        }
        self.change_entry(tree, address, level, shared);
    }

    /// Another table of what all spaces share.
    fn change_shared(&mut self, realm: usize) {
        let tree = self.realms[realm].spaces[0].tree;
        let old = self.old(tree, SHARED, 2);
        let from = self.place(realm, self.realms[realm].shared);
        let page = self.table(realm, 1);
        let to = self.place(realm, page);
        for offset in (0..0x1000).step_by(8) {
            let entry = self.read(from + offset);
            let kept = offset >= 0x10 || is_table(entry, 1) || self.random.percent(50);
            let new = if kept { entry } else { self.leaf(tree, 1, true) };
            self.write(to + offset, &[new]);
        }
        self.fresh(to);
        self.retire(Some(realm), self.realms[realm].shared, 1);
        self.realms[realm].shared = page;
        for space in 0..self.realms[realm].spaces.len() {
            let tree = self.realms[realm].spaces[space].tree;
            self.set_shared(realm, tree, page);
        }
        self.owe(tree, true, &old);
    }

    /// The guest-physical address behind one in use, if there is one.
    pub(crate) fn behind(&mut self, (realm, space, address): (usize, Option<usize>, u64)) -> u64 {
        let found = space.map_or(Some(address), |space| {
            let tree = self.realms[realm].spaces[space].tree;
            let leaf = |level| self.slot(tree, address, level).ok().map(|(at, _)| (self.read(at), level));
            let (entry, level) = (0..3).find_map(leaf)?;
            let within = (1 << shift(level)) - 1;
            Some(table_of(entry) & !within | address & within & !0xfff)
        });
        found.filter(|&at| at & !0x3fff == FILES || at >> 30 == DATA >> 30).unwrap_or_else(|| self.data_address())
    }

    fn change_second(&mut self) {
        let (realm, address) = match self.focus.filter(|_| self.random.percent(60)) {
            Some(focus @ (1.., ..)) => (focus.0, self.behind(focus)),
            _ => (self.random.pick(&[1, 2]), self.data_address()),
        };
        let tree = self.realms[realm].second.unwrap();
        let is_data = address >= DATA;
        let level = match self.random.below(20) {
            0 if is_data => 2,
            1..6 if is_data => 1,
            _ => 0,
        };
        self.change_entry(tree, address, level, false);
    }

    /// A page of a VM's tables is moved, or can not be read for a while.
    fn change_table_page(&mut self) {
        let realm = self.random.pick(&[1, 2]);
        let pages: Vec<_> = self.realms[realm].pages.keys().copied().collect();
        let page = self.random.pick(&pages);
        if self.random.percent(70) || self.broken.is_some() {
            return self.move_table_page(realm, page);
        }
        let tree = self.realms[realm].second.unwrap();
        let old = self.old(tree, page, 0);
        let at = self.slot(tree, page, 0).unwrap().0;
        let entry = self.read(at) ^ self.random.pick(&[pte::V, pte::R | pte::W, pte::A, pte::D, pte::U]);
        self.write(at, &[entry]);
        self.broken = Some((realm, page));
        self.owe_second(realm, &old);
    }

    fn move_table_page(&mut self, realm: usize, page: u64) {
        let tree = self.realms[realm].second.unwrap();
        let (from, words) = self.realms[realm].pages[&page];
        let old = self.old(tree, page, 0);
        let at = self.slot(tree, page, 0).unwrap().0;
        let to = self.page(words);
        for offset in (0..0x1000_u64).step_by(8 * words) {
            let dwords = (0..0x1000).step_by(8).take(words);
            let entry: Vec<_> = dwords.map(|dword| self.read(from + offset + dword)).collect();
            self.write(to + offset, &entry);
        }
        self.fresh(to);
        self.realms[realm].pages.insert(page, (to, words));
        self.retire(None, from, words);
        // What was read through the old entry still is what the page says, if all of it could be read.
        let readable = self.read(at) & pte::RW == pte::RW;
        self.write(at, &[to >> 2 | pte::RW]);
        if readable {
            self.owe_moved(realm, page, &old);
        } else {
            self.owe_second(realm, &old);
        }
    }
}
