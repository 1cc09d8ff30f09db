//! Directories and MSI page tables: where they are, what is in them, and how the guest changes that.

use riscv_viommu::mock::guest::inval_ddt;

use crate::guest::{Context, FILES, First, Guest, Process, table_of};

impl Guest {
    /// Where the context of a device is, or the entry of a level above it, made if need be (rules DDT-02, DDT-10).
    pub(crate) fn context_address(&mut self, device: u32, level: u8) -> u64 {
        let mut table = self.directory;
        for above in (level + 1..3).rev() {
            let at = table + u64::from(device >> (6 + 9 * (above - 1)) & 0x1ff) * 8;
            if self.read(at) == 0 {
                let page = self.page(if above == 1 { 8 } else { 1 });
                self.write(at, &[page >> 2 | 1]);
            }
            table = table_of(self.read(at));
        }
        match level {
            0 => table + u64::from(device & 0x3f) * 64,
            _ => table + u64::from(device >> (6 + 9 * (level - 1)) & 0x1ff) * 8,
        }
    }

    /// Where the context of a process is in memory, or the entry of a level above it (rules PDT-01, PDT-04).
    pub(crate) fn process_address(&mut self, realm: usize, process: u32, level: u8) -> u64 {
        let (mut table, levels) = self.realms[realm].directory;
        let index = |level| u64::from([process & 0xff, process >> 8 & 0x1ff, process >> 17][usize::from(level)]);
        for above in (level + 1..levels).rev() {
            let at = self.place(realm, table + index(above) * 8);
            if self.read(at) == 0 {
                let page = self.table(realm, if above == 1 { 2 } else { 1 });
                self.write(at, &[page >> 2 | 1]);
            }
            table = table_of(self.read(at));
        }
        self.place(realm, table + index(level) * if level == 0 { 16 } else { 8 })
    }

    /// MODE and PPN of a first stage (rule DC-24).
    fn iosatp(&self, realm: usize, space: usize) -> u64 {
        let tree = self.realms[realm].spaces[space].tree;
        u64::from(tree.levels + 5) << 60 | tree.root >> 12
    }

    /// `ta` and `fsc` (rules PC-01 to PC-06).
    pub(crate) fn process_words(&self, realm: usize, process: &Process) -> [u64; 2] {
        let pscid = process.space.map_or(9, |space| self.realms[realm].spaces[space].pscid);
        let bits = u64::from(process.valid) | u64::from(process.ens) << 1 | u64::from(process.sum) << 2;
        [bits | u64::from(pscid) << 12, process.space.map_or(0, |space| self.iosatp(realm, space))]
    }

    /// A context of the extended format (rules DC-01 to DC-30).
    pub(crate) fn context_words(&self, context: &Context) -> [u64; 8] {
        let realm = &self.realms[context.realm];
        let is_process = matches!(context.first, First::Processes | First::BareProcesses);
        let bits = [
            (context.valid, 0),
            (context.ats, 1),
            (context.t2gpa, 3),
            (context.dtf, 4),
            (is_process, 5),
            (context.gade, 7),
            (context.sade, 8),
            (context.dpe, 9),
            (context.reserved, 12),
        ];
        let tc = bits.iter().fold(0, |tc, &(bit, place)| tc | u64::from(bit) << place);
        let iohgatp = realm.second.zip(realm.gscid).map_or(0, |(tree, gscid)| {
            u64::from(tree.levels + 5) << 60 | u64::from(gscid.get()) << 44 | tree.root >> 12
        });
        let (ta, fsc) = match context.first {
            First::Bare | First::BareProcesses => (0, 0),
            First::Space(space) => (u64::from(realm.spaces[space].pscid) << 12, self.iosatp(context.realm, space)),
            First::Processes => (0, u64::from(realm.directory.1) << 60 | realm.directory.0 >> 12),
        };
        let msi = if context.files { [1 << 60 | realm.files >> 12, 3, FILES >> 12] } else { [0; 3] };
        [tc, iohgatp, ta, fsc, msi[0], msi[1], msi[2], 0]
    }

    /// Another entry of an MSI page table, in basic translate mode for the most part (rules MSI-08, MSI-09).
    pub(crate) fn change_file(&mut self) {
        let (realm, address) = match self.focus {
            Some(focus @ (1.., ..)) => (focus.0, self.behind(focus)),
            _ => (self.random.pick(&[1, 2]), 0),
        };
        let index = if address & !0x3fff == FILES { address >> 12 & 3 } else { self.random.below(4) };
        let at = self.realms[realm].files + index * 16;
        let was_valid = self.read(at) & 1 != 0;
        let new = match self.random.below(8) {
            0 => [0, 0],
            1 => [2 << 1 | 1, 0],
            2 => [(crate::ram::BASE + 0x2000) >> 2 | 1 << 1 | 1, 0x2_8000 << 10 | 5],
            _ => [(0x3_0000 + self.random.below(64)) << 10 | 3 << 1 | 1, 0],
        };
        self.write(at, &new);
        if was_valid {
            self.owe_file(realm, FILES + index * 0x1000);
        }
    }

    pub(crate) fn random_process(&mut self, realm: usize, id: u32) -> Process {
        let spaces = self.realms[realm].spaces.len();
        let space = self.random.percent(90).then(|| self.random.index(spaces));
        let (valid, ens) = (self.random.percent(90), self.random.percent(80));
        Process { id, valid, ens, sum: self.random.percent(50), space }
    }

    pub(crate) fn random_context(&mut self) -> Context {
        let realm = self.random.pick(&[0, 0, 1, 1, 2]);
        let first = match self.random.below(10) {
            0 => First::Bare,
            1 => First::BareProcesses,
            2..6 => First::Processes,
            _ => First::Space(self.random.index(self.realms[realm].spaces.len())),
        };
        let ats = self.random.percent(60);
        Context {
            valid: self.random.percent(93),
            realm,
            first,
            sade: self.random.percent(60),
            gade: self.random.percent(60),
            dtf: self.random.percent(20),
            dpe: self.random.percent(50) && matches!(first, First::Processes | First::BareProcesses),
            ats,
            t2gpa: ats && realm != 0 && self.random.percent(40),
            files: realm != 0 && self.random.percent(70),
            reserved: self.random.percent(2),
        }
    }

    pub(crate) fn change_context(&mut self) {
        let index = self.random.index(self.devices.len());
        let (device, old) = self.devices[index];
        let mut new = self.random_context();
        if self.random.percent(60) {
            // The same stages, otherwise used.
            (new.realm, new.first, new.dpe) = (old.realm, old.first, old.dpe);
            (new.t2gpa, new.files) = (new.t2gpa && new.realm != 0, new.files && new.realm != 0);
        }
        self.devices[index].1 = new;
        let at = self.context_address(device, 0);
        self.write(at, &self.context_words(&new));
        self.owe_context(device, &old);
    }

    /// An entry above device contexts is taken away for a while (rule SWG-05).
    pub(crate) fn change_directory(&mut self) {
        let index = self.random.index(self.devices.len());
        let level = self.random.pick(&[1, 2]);
        self.toggle_directory_entry(None, self.devices[index].0, level);
    }

    /// An entry above process contexts is taken away for a while (rule SWG-07).
    pub(crate) fn change_process_directory(&mut self) {
        let realm = self.random.index(self.realms.len());
        let index = self.random.index(self.realms[realm].processes.len());
        let level = self.random.index(usize::from(self.realms[realm].directory.1));
        if level > 0 {
            let process = self.realms[realm].processes[index].id;
            self.toggle_directory_entry(Some(realm), process, u8::try_from(level).unwrap());
        }
    }

    /// The other V for an entry above contexts: it still says where the table is.
    pub(crate) fn toggle_directory_entry(&mut self, realm: Option<usize>, id: u32, level: u8) {
        let at = match realm {
            Some(realm) => self.process_address(realm, id, level),
            None => self.context_address(id, level),
        };
        let entry = self.read(at);
        self.write(at, &[entry ^ 1]);
        if entry & 1 == 0 {
            return;
        }
        self.taken.push((realm, id, level));
        match realm {
            Some(realm) => {
                let owed = self.with_processes(realm).into_iter().map(|device| inval_ddt(Some(device)));
                self.owed.extend(owed);
            }
            None => self.owed.push(inval_ddt(None)),
        }
    }

    /// A space gets another root, with all but one of the entries, and every context that has it is written anew.
    pub(crate) fn change_root(&mut self) {
        let realm = self.random.index(self.realms.len());
        let space = self.random.index(self.realms[realm].spaces.len());
        let tree = self.realms[realm].spaces[space].tree;
        let from = self.place(realm, tree.root);
        let root = self.table(realm, 1);
        let to = self.place(realm, root);
        let dropped = if tree.levels == 3 { self.random.pick(&[0, 1, 0x1ff]) } else { 0x1ff };
        for index in 0..512 {
            let entry = self.read(from + index * 8);
            if index == dropped {
                self.retire_tables(tree, entry, tree.levels - 1);
            } else {
                self.write(to + index * 8, &[entry]);
            }
        }
        self.fresh(to);
        self.retire(Some(realm), tree.root, 1);
        self.realms[realm].spaces[space].tree.root = root;
        for index in 0..self.devices.len() {
            let (device, context) = self.devices[index];
            if context.realm == realm && context.first == First::Space(space) {
                let at = self.context_address(device, 0);
                self.write(at, &self.context_words(&context));
                self.owe_context(device, &context);
            }
        }
        for process in self.realms[realm].processes.clone() {
            if process.space == Some(space) {
                let at = self.process_address(realm, process.id, 0);
                self.write(at, &self.process_words(realm, &process));
                self.owe_process(realm, &process);
            }
        }
        // What may be left of contexts that were not valid when it changed.
        self.owe_space(realm, Some(space));
    }

    pub(crate) fn change_process(&mut self) {
        let realm = self.random.index(self.realms.len());
        let index = self.random.index(self.realms[realm].processes.len());
        let old = self.realms[realm].processes[index];
        let mut new = self.random_process(realm, old.id);
        if self.random.percent(50) {
            new.space = old.space;
        }
        self.realms[realm].processes[index] = new;
        let at = self.process_address(realm, old.id, 0);
        self.write(at, &self.process_words(realm, &new));
        self.owe_process(realm, &old);
    }
}
