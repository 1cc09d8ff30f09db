//! What a flaw does to a case.

use crate::random::Random;
use crate::scheme::Scheme;
use crate::walk::Use;

use super::flaw::{Flaw, Spoilt};
use super::shape::{Access, Processes};
use super::world::{Role, Site, World};
use super::{Abilities, Plan};

/// Reserved bits of the dwords of a device context (rules DC-15, DC-23, DC-24, DC-27 to DC-31).
const RESERVED: [(u64, u64); 8] = [
    (0, 0xffff_ffff_00ff_f000),
    (2, 0xffff_ffff_0000_0fff & !(0xfff << 40)),
    (2, 0xffff_ff00_0000_0000),
    (3, 0x0fff_f000_0000_0000),
    (4, 0x0fff_f000_0000_0000),
    (5, 0xffff_8000_0000_0000),
    (6, 0xffff_8000_0000_0000),
    (7, u64::MAX),
];

/// A page number of no memory.
const NOWHERE: u64 = 0x1_8000_0000 >> 12;

impl Flaw {
    pub(crate) fn apply(self, plan: &mut Plan, abilities: Abilities) {
        match self {
            Self::Nothing => {}
            Self::Bits => plan.flip_bits(),
            Self::Off => plan.ddtp &= !0xf,
            Self::Bare => plan.ddtp = plan.ddtp & !0xf | 1,
            Self::WideDevice => {
                let width = 9 * u64::from(plan.shape.levels) - 3;
                plan.request.device |= 1 << plan.world.random.within(width..=23);
            }
            Self::WideProcess => plan.request.process.1 |= 1 << plan.world.random.within(8..=19),
            Self::StrayProcess => plan.request.process.1 = u32::try_from(plan.world.random.within(1..=255)).unwrap(),
            Self::ContextMistaken => plan.mistake(),
            Self::DirectoryMistaken => {
                let mode = plan.world.random.within(4..=15) << 60;
                plan.context(3, |_, fsc| fsc & !(0xf << 60) | mode);
            }
            Self::ProcessMistaken => {
                let mode = plan.world.random.within(9..=10) << 60;
                plan.process(|fsc| fsc & !(0xf << 60) | mode);
            }
            Self::ProcessWithoutDirectory => {
                plan.request.process = (true, u32::try_from(plan.world.random.within(1..=0xf_ffff)).unwrap());
            }
            Self::NotSupervisor => plan.change(Role::ProcessContext, |_, word| word & !2),
            Self::DirectoryHole => plan.directory_hole(),
            Self::DirectoryInvalid => plan.change(Role::DeviceDirectory, |_, word| word & !1),
            Self::DirectoryReserved => plan.change(Role::DeviceDirectory, |random, word| {
                word | 1 << random.pick(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63])
            }),
            Self::ContextInvalid => plan.change(Role::DeviceContext, |_, word| word & !1),
            Self::ContextReserved => {
                let (dword, bits) = plan.world.random.pick(&RESERVED);
                plan.context(dword, |random, word| word | one_of(random, bits));
            }
            Self::ContextMisconfigured => plan.misconfigure(),
            Self::ProcessHole => {
                let hole = plan.world.hole(56) >> 12;
                plan.context(3, |_, word| word & !0xfff_ffff_ffff | hole);
            }
            Self::ProcessInvalid => plan.change(Role::ProcessContext, |_, word| word & !1),
            Self::ProcessReserved => {
                plan.change(Role::ProcessContext, |random, word| word | 1 << random.within(32..=63));
            }
            Self::ProcessMode => plan.process_mode(),
            Self::NotCanonical => plan.not_canonical(),
            Self::NotCanonicalAtAll => {
                plan.not_canonical();
                // The root was mapped first.
                let is_root = |site: &&Site| site.role == Role::SecondLeaf(Use::Table);
                let root = plan.world.sites.iter().find(is_root).expect("the root is mapped").entry;
                plan.world.put(root, 0);
            }
            Self::WideForSxl => {
                plan.request.iova |= 1 << plan.world.random.within(34..=40);
                let second = plan.shape.second.expect("it fits such shapes only");
                plan.map_final(second, plan.request.iova, 0);
            }
            Self::TooWide => {
                let width = plan.shape.second.map_or(56, Scheme::width);
                plan.request.iova |= 1 << plan.world.random.within(width.into()..=63);
            }
            Self::First(flaw) => plan.entry(flaw, [Role::FirstPointer, Role::FirstLeaf], abilities),
            Self::Second(what, flaw) => {
                plan.entry(flaw, [Role::SecondPointer(what), Role::SecondLeaf(what)], abilities);
            }
        }
    }
}

/// One of these bits.
fn one_of(random: &mut Random, bits: u64) -> u64 {
    loop {
        let bit = 1 << random.within(0..=63);
        if bits & bit != 0 {
            return bit;
        }
    }
}

impl Plan {
    /// Changes one entry of a kind, if there is one.
    fn change(&mut self, role: Role, change: impl FnOnce(&mut Random, u64) -> u64) {
        let sites: Vec<Site> = self.world.sites.iter().filter(|site| site.role == role).copied().collect();
        if !sites.is_empty() {
            let entry = self.world.random.pick(&sites).entry;
            let old = self.world.get(entry);
            let new = change(&mut self.world.random, old);
            self.world.put(entry, new);
        }
    }

    /// Changes a dword of the device context.
    fn context(&mut self, dword: u64, change: impl FnOnce(&mut Random, u64) -> u64) {
        let World { image, random, context, .. } = &mut self.world;
        let word = image.entry(*context + dword * 8).or_default();
        *word = change(random, *word);
    }

    fn directory_hole(&mut self) {
        let hole = self.world.hole(56) >> 12 << 10;
        if self.shape.levels == 1 || self.world.random.percent(30) {
            self.ddtp = self.ddtp & 0x3ff | hole;
        } else {
            self.change(Role::DeviceDirectory, |_, word| word & 0x3ff | hole);
        }
    }

    /// Breaks one of rules DCK-02 to DCK-19.
    fn misconfigure(&mut self) {
        let random = &mut self.world.random;
        let has_directory = self.shape.directory != Processes::None;
        match random.within(1..=11) {
            1 => self.context(0, |_, tc| tc & !(1 << 1) | 1 << 2),
            2 => self.context(0, |_, tc| tc & !(1 << 2) | 1 << 6),
            3 => self.context(0, |_, tc| tc | 1 << 1 | 1 << 3),
            4 => self.context(0, |_, tc| tc | 1 << 10),
            5 if !has_directory => self.context(0, |_, tc| tc | 1 << 9),
            5 => self.context(3, |random, fsc| fsc & !(0xf << 60) | random.within(2..=3) << 60),
            6 => self.context(4, |random, msiptp| msiptp & !(0xf << 60) | random.within(2..=15) << 60),
            7 if self.shape.first.is_some() => self.context(0, |_, tc| tc | 1 << 8),
            8 if self.shape.second.is_some() => self.context(0, |_, tc| tc | 1 << 7),
            9 if !has_directory => self.context(3, |random, fsc| fsc & !(0xf << 60) | random.within(1..=7) << 60),
            10 if self.shape.second.is_some() => self.context(1, |random, iohgatp| iohgatp | random.within(1..=3)),
            _ => self.context(1, |random, iohgatp| {
                iohgatp & !(0xf << 60) & !3 | random.pick(&[1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15]) << 60
            }),
        }
    }

    fn not_canonical(&mut self) {
        let width = self.shape.first.map_or(32, Scheme::width);
        self.request.iova ^= 1 << self.world.random.within(width.into()..=63);
    }

    /// Breaks the same rules in a way that QEMU does not see, or sees elsewhere.
    fn mistake(&mut self) {
        let shape = self.shape;
        let has_directory = shape.directory != Processes::None;
        let mode = self.world.random.within(4..=15) << 60;
        match self.world.random.within(1..=3) {
            // MSI tables without a second stage, updates of a stage that is Bare.
            1 if shape.second.is_none() => self.context(4, |_, _| 1 << 60 | NOWHERE),
            2 if shape.second.is_none() => self.context(0, |_, tc| tc | 1 << 7),
            2 if shape.first.is_none() => self.context(0, |_, tc| tc | 1 << 8),
            // Unknown modes.
            _ if has_directory => self.context(3, |_, fsc| fsc & !(0xf << 60) | mode),
            _ => self.context(3, |random, fsc| fsc & !(0xf << 60) | random.within(11..=15) << 60),
        }
    }

    fn process_mode(&mut self) {
        let mode = self.world.random.pick(&[1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15]) << 60;
        self.process(|fsc| fsc & !(0xf << 60) | mode);
    }

    /// Changes `fsc` of the process context.
    fn process(&mut self, change: impl FnOnce(u64) -> u64) {
        let fsc = self.world.image.entry(self.world.process + 8).or_default();
        *fsc = change(*fsc);
    }

    /// Spoils an entry of a page table.
    fn entry(&mut self, flaw: Spoilt, [pointer, leaf]: [Role; 2], abilities: Abilities) {
        let any = if self.world.random.percent(50) { pointer } else { leaf };
        let hole = self.world.hole(if self.shape.gxl || self.shape.sxl { 34 } else { 56 }) >> 12 << 10;
        let permission = if self.shape.access == Access::Write { 1 << 2 } else { 0xe };
        match flaw {
            Spoilt::Hole => self.change(pointer, |_, entry| entry & 0x3ff | hole),
            Spoilt::Invalid => self.change(any, |_, entry| entry & !1),
            Spoilt::WriteOnly => self.change(any, |_, entry| entry & !0xe | 1 << 2),
            Spoilt::Reserved => {
                let high = if abilities.svrsw60t59b { 58 } else { 60 };
                self.change(any, |random, entry| entry | 1 << random.within(54..=high));
            }
            Spoilt::Napot => self.change(leaf, |_, entry| entry & !(0xf << 10) | 1 << 63),
            Spoilt::Misaligned => self.misalign(leaf),
            Spoilt::Permission => self.change(leaf, |_, entry| {
                let left = entry & !permission;
                // What is left has to be a leaf.
                if left & 0xe == 0 { left | 1 << 3 } else { left }
            }),
            Spoilt::ReadOnly => self.change(leaf, |_, entry| entry & !(1 << 7 | 1 << 2)),
            Spoilt::User => self.change(leaf, |_, entry| entry & !(1 << 4)),
            Spoilt::Accessed => self.change(leaf, |_, entry| entry & !(1 << 6)),
            Spoilt::Dirty => self.change(leaf, |_, entry| entry & !(1 << 7)),
            // Above the lowest level it is a pointer to nowhere.
            Spoilt::TooDeep => self.change(leaf, |_, entry| entry & 0x301 | hole),
            Spoilt::PointerFlags => {
                self.change(pointer, |random, entry| entry | random.pick(&[1 << 4, 1 << 6, 1 << 7]));
            }
        }
    }

    /// Gives a leaf above the lowest level a page number that is not aligned.
    fn misalign(&mut self, leaf: Role) {
        self.change(leaf, |random, entry| entry | 1 << random.within(10..=18));
    }
}
