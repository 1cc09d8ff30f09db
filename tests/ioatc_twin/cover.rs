//! The smallest invalidation that covers a change, in one of the forms there are: the old values decide (rules SWG-01
//! to SWG-16).

use riscv_viommu::mock::guest::{Iotinval, inval_ddt, inval_pdt};
use riscv_viommu::mock::tables::pte;
use riscv_viommu::{DeviceId, Iova, ProcessId, Pscid};

use crate::guest::{Context, First, Guest, Process, TABLES, Tree, is_table, shift, table_of};

/// What an entry, or a few of them, gave before they changed.
#[derive(Debug, Default)]
pub(crate) struct Old {
    /// Leaves, with what each maps: first address and 2^x bytes.
    leaves: Vec<(u64, u8)>,
    /// A table, and whether there may be tables below it.
    table: bool,
    deep: bool,
    /// A leaf or table of those has G, or something above it.
    global: bool,
    /// All of it lies within 2^x bytes from here.
    base: u64,
    shift: u8,
}

impl Guest {
    /// What the entry of `level` for an address gives now.
    pub(crate) fn old(&self, tree: Tree, address: u64, level: u8) -> Old {
        let mut old = Old { base: address >> shift(level) << shift(level), shift: shift(level), ..Old::default() };
        if let Ok((at, global)) = self.slot(tree, address, level) {
            self.collect(tree, old.base, level, self.read(at), global, &mut old);
        }
        old
    }

    /// What all 16 entries of a range of 64 KiB give now.
    pub(crate) fn old_range(&self, tree: Tree, address: u64) -> Old {
        let base = address & !0xffff;
        let mut old = Old { base, shift: 16, ..Old::default() };
        for page in 0..16 {
            if let Ok((at, global)) = self.slot(tree, base + page * 0x1000, 0) {
                self.collect(tree, base + page * 0x1000, 0, self.read(at), global, &mut old);
            }
        }
        old
    }

    fn collect(&self, tree: Tree, base: u64, level: u8, entry: u64, global: bool, old: &mut Old) {
        // Of an entry with V = 0 nothing can have been cached (rules CA-02, SWG-17).
        if entry & pte::V == 0 {
            return;
        }
        let global = global || (entry & pte::G != 0 && !tree.is_second);
        old.global |= global;
        if !is_table(entry, level) {
            let leaf = if entry & pte::N != 0 && level == 0 { (base & !0xffff, 16) } else { (base, shift(level)) };
            if old.leaves.last() != Some(&leaf) {
                old.leaves.push(leaf);
            }
            return;
        }
        old.table = true;
        old.deep |= level > 1;
        let below = level - 1;
        let table = if tree.is_second { table_of(entry) } else { self.place(tree.realm, table_of(entry)) };
        for index in 0..512 {
            let entry = self.read(table + index * 8);
            self.collect(tree, base + (index << shift(below)), below, entry, global, old);
        }
    }

    /// Operands that cover the addresses: in no more commands and no wider than that form needs.
    fn addresses(&mut self, old: &Old) -> Vec<Iotinval> {
        if old.leaves.is_empty() && !old.table {
            return Vec::new();
        }
        let form = self.random.below(10);
        if form == 0 {
            return vec![Iotinval::ALL];
        }
        if form < 4 || old.deep || old.leaves.len() > 8 {
            // One range.
            let wider = self.random.pick(&[0, 0, 0, 1, 4]);
            let hull = match u32::from(old.shift) - 12 + wider {
                0 => Iotinval::ALL.address(Iova::new(old.base)),
                pages => Iotinval::ALL.range(Iova::new(old.base), pages),
            };
            return vec![if old.table || self.random.percent(20) { hull.non_leaf() } else { hull }];
        }
        // One address within each leaf, or some of its pages; with NL those of a table.
        let leaves = if old.leaves.is_empty() { vec![(old.base, old.shift)] } else { old.leaves.clone() };
        let mut all = Vec::new();
        for (index, (base, shift)) in leaves.into_iter().enumerate() {
            let at = Iova::new(base + self.random.below(1 << shift));
            let pages = u32::try_from(self.random.below(u64::from(shift) - 10)).unwrap();
            let some = if pages > 0 && form < 7 { Iotinval::ALL.range(at, pages) } else { Iotinval::ALL.address(at) };
            let non_leaf = (old.table && index == 0) || self.random.percent(20);
            all.push(if non_leaf { some.non_leaf() } else { some });
        }
        all
    }

    /// A first-stage entry changed that is in the tables of these spaces of a realm (rules SWG-13 to SWG-16).
    pub(crate) fn owe_first(&mut self, realm: usize, spaces: &[usize], old: &Old) {
        let every = old.global || self.random.percent(20);
        for operands in self.addresses(old) {
            let of_realm = self.realms[realm].gscid.map_or(operands, |gscid| operands.gscid(gscid));
            if every {
                self.owed.push(of_realm.vma());
                continue;
            }
            for &space in spaces {
                let pscid = self.realms[realm].spaces[space].pscid;
                self.owed.push(of_realm.pscid(Pscid::truncate(pscid)).vma());
            }
        }
    }

    /// A second-stage entry changed, and what is behind it (rules SWG-10 to SWG-12).
    pub(crate) fn owe_second(&mut self, realm: usize, old: &Old) {
        let gscid = self.realms[realm].gscid.unwrap();
        for operands in self.addresses(old) {
            // Without GV nothing else is looked at.
            let valid = operands.address.is_some() || self.random.percent(70);
            self.owed.push(if valid { operands.gscid(gscid).gvma() } else { operands.gvma() });
        }
        if old.base < TABLES + 0x20_0000 && old.base + ((1 << old.shift) - 1) >= TABLES && !old.leaves.is_empty() {
            self.owe_tables(realm);
        }
    }

    /// A page of a VM's tables was moved, with all that is in it: what was read of it still holds, but for who has looked
    /// up where a pointer leads.
    pub(crate) fn owe_moved(&mut self, realm: usize, page: u64, old: &Old) {
        if self.is_late {
            // An entry may be marked in the old page until the invalidation.
            return self.owe_second(realm, old);
        }
        let gscid = self.realms[realm].gscid.unwrap();
        for operands in self.addresses(old) {
            self.owed.push(operands.gscid(gscid).gvma());
        }
        let (directory, levels) = self.realms[realm].directory;
        let is_pointed_at = self.realms[realm].spaces.iter().any(|space| space.tree.root == page)
            || page == directory
            || self.realms[realm].pages[&page].1 == 2
            || levels == 3
                && (0..512).any(|index| table_of(self.read(self.place(realm, directory) + index * 8)) == page);
        if is_pointed_at {
            self.owe_pointers(realm);
        }
    }

    /// The tables of a VM read otherwise now: what was read of them is of no use.
    fn owe_tables(&mut self, realm: usize) {
        let gscid = self.realms[realm].gscid.unwrap();
        self.owed.push(Iotinval::ALL.gscid(gscid).vma());
        self.owe_pointers(realm);
    }

    /// Pages of a VM that contexts point to, or that contexts are in, are elsewhere (rule SWG-12).
    pub(crate) fn owe_pointers(&mut self, realm: usize) {
        let devices: Vec<_> =
            self.devices.iter().filter(|device| device.1.realm == realm).map(|device| device.0).collect();
        for device in devices {
            self.owed.push(inval_ddt(Some(DeviceId::truncate(device))));
        }
    }

    /// An entry of a VM's MSI page table changed (rules SWG-08, SWG-09).
    pub(crate) fn owe_file(&mut self, realm: usize, at: u64) {
        let gscid = self.realms[realm].gscid.unwrap();
        let all = Iotinval::ALL.gscid(gscid);
        let operands = match self.random.below(6) {
            0 => all,
            1 => all.range(Iova::new(at), self.random.pick(&[1, 2, 9])),
            2 => all.address(Iova::new(at)).non_leaf(),
            _ => all.address(Iova::new(at | self.random.below(0x1000))),
        };
        self.owed.push(operands.gvma());
    }

    /// A device context changed that was this one (rules SWG-01 to SWG-04).
    pub(crate) fn owe_context(&mut self, device: u32, old: &Context) {
        if old.valid {
            let all = self.random.percent(10);
            self.owed.push(inval_ddt((!all).then(|| DeviceId::truncate(device))));
            self.owe_stages(old);
        }
    }

    /// The translations through a device context that was this one.
    pub(crate) fn owe_stages(&mut self, old: &Context) {
        match (self.realms[old.realm].gscid, old.first) {
            (Some(gscid), _) => {
                self.owed.extend([Iotinval::ALL.gscid(gscid).vma(), Iotinval::ALL.gscid(gscid).gvma()]);
            }
            (None, First::Processes | First::BareProcesses) => self.owed.push(Iotinval::ALL.vma()),
            (None, First::Space(space)) => {
                let pscid = self.realms[old.realm].spaces[space].pscid;
                self.owed.push(Iotinval::ALL.pscid(Pscid::truncate(pscid)).vma());
            }
            (None, First::Bare) => {}
        }
    }

    /// The devices that use the process directory of a realm.
    pub(crate) fn with_processes(&self, realm: usize) -> Vec<DeviceId> {
        let uses = |context: &Context| context.valid && context.realm == realm && context.first == First::Processes;
        let devices = self.devices.iter().filter(|(_, context)| uses(context));
        devices.map(|&(device, _)| DeviceId::truncate(device)).collect()
    }

    /// The context of a process changed that was this one (rule SWG-06).
    pub(crate) fn owe_process(&mut self, realm: usize, old: &Process) {
        if !old.valid {
            return;
        }
        for device in self.with_processes(realm) {
            let whole = self.random.percent(10);
            let process = ProcessId::truncate(old.id);
            self.owed.push(if whole { inval_ddt(Some(device)) } else { inval_pdt(device, process) });
        }
        self.owe_space(realm, old.space);
    }

    /// The first stage of processes in this space.
    pub(crate) fn owe_space(&mut self, realm: usize, space: Option<usize>) {
        let pscid = Pscid::truncate(space.map_or(9, |space| self.realms[realm].spaces[space].pscid));
        let operands = Iotinval::ALL.pscid(pscid);
        self.owed.push(self.realms[realm].gscid.map_or(operands, |gscid| operands.gscid(gscid)).vma());
    }
}
