//! Page tables of either stage and of every scheme.

use super::pte;
use crate::addr::{Gpa, Iova};
use crate::id::{FirstStageMode, Gscid, Pscid, SecondStageMode};
use crate::mock::Memory;

/// A page table in guest memory.
#[derive(Clone, Debug)]
pub struct PageTable {
    memory: Memory,
    root: Gpa,
    mode: u8,
    levels: u8,
    index_bits: u32,
    /// Bits the index of the root has more.
    root_bits: u32,
    entry_log2: u32,
    /// What an address of the table is less than the one it has in `memory`.
    offset: u64,
}

impl PageTable {
    /// An empty first-stage table.
    #[must_use]
    pub fn first_stage(memory: &Memory, mode: FirstStageMode) -> Self {
        let rv32 = mode == FirstStageMode::Sv32;
        Self::new(memory, mode.encoding(), mode.levels(), rv32, 0)
    }

    /// An empty second-stage table.
    #[must_use]
    pub fn second_stage(memory: &Memory, mode: SecondStageMode) -> Self {
        let (levels, rv32) = match mode {
            SecondStageMode::Sv32x4 => (2, true),
            SecondStageMode::Sv39x4 => (3, false),
            SecondStageMode::Sv48x4 => (4, false),
            SecondStageMode::Sv57x4 => (5, false),
        };
        Self::new(memory, mode.encoding(), levels, rv32, 2)
    }

    fn new(memory: &Memory, mode: u8, levels: u8, rv32: bool, root_bits: u32) -> Self {
        let (index_bits, entry_log2) = if rv32 { (10, 2) } else { (9, 3) };
        let root = memory.allocate(1_u64.wrapping_shl(root_bits));
        Self { memory: memory.clone(), root, mode, levels, index_bits, root_bits, entry_log2, offset: 0 }
    }

    /// The same, empty, whose pointers are `offset` less than where memory has its tables: what a second stage that
    /// adds `offset` makes right again.
    #[must_use]
    pub fn below(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// Where the root is in memory.
    #[must_use]
    pub const fn root(&self) -> Gpa {
        self.root
    }

    /// `iosatp`, or the `fsc` of a process context: MODE in 63:60, PPN in 43:0.
    #[must_use]
    pub fn iosatp(&self) -> u64 {
        u64::from(self.mode) << 60 | self.root.get().wrapping_sub(self.offset) >> 12
    }

    /// `iohgatp`: GSCID in 59:44 beside these.
    #[must_use]
    pub fn iohgatp(&self, gscid: Gscid) -> u64 {
        self.iosatp() | u64::from(gscid.get()) << 44
    }

    /// Maps the page of `level` (0: 4 KiB) that holds `address` to the one that holds `to`; `flags` are bits of
    /// [`pte`].
    pub fn map(&self, address: u64, to: u64, level: u8, flags: u64) {
        let within = 1_u64.wrapping_shl(self.shift(level)).wrapping_sub(1);
        self.set(address, level, (to & !within) >> 2 | flags);
    }

    /// Clears the entry of `level` for `address`.
    pub fn unmap(&self, address: u64, level: u8) {
        self.set(address, level, 0);
    }

    /// Writes the entry of `level` for `address`; makes the way to it.
    pub fn set(&self, address: u64, level: u8, entry: u64) {
        self.write(self.entry_address(address, level), entry);
    }

    /// The entry of `level` for `address`; makes the way to it.
    #[must_use]
    pub fn get(&self, address: u64, level: u8) -> u64 {
        self.read(self.entry_address(address, level))
    }

    /// Where in memory the entry of `level` for `address` is, 0 being that of 4-KiB leaves; makes the way to it.
    #[must_use]
    pub fn entry_address(&self, address: u64, level: u8) -> Gpa {
        let is_root = level.wrapping_add(1) >= self.levels;
        let bits = self.index_bits.wrapping_add(if is_root { self.root_bits } else { 0 });
        let index = address.wrapping_shr(self.shift(level)) & 1_u64.wrapping_shl(bits).wrapping_sub(1);
        self.table(address, level).or(index.wrapping_shl(self.entry_log2))
    }

    fn table(&self, address: u64, level: u8) -> Gpa {
        let above = level.wrapping_add(1);
        if above >= self.levels {
            return self.root;
        }
        let at = self.entry_address(address, above);
        if self.read(at) & pte::V == 0 {
            self.write(at, self.memory.allocate(1).get().wrapping_sub(self.offset) >> 2 | pte::V);
        }
        Gpa::new(((self.read(at) & 0x003f_ffff_ffff_fc00) << 2).wrapping_add(self.offset))
    }

    fn shift(&self, level: u8) -> u32 {
        u32::from(level).wrapping_mul(self.index_bits).wrapping_add(12)
    }

    fn read(&self, at: Gpa) -> u64 {
        if self.entry_log2 == 2 { self.memory.read_half(at).into() } else { self.memory.read(at) }
    }

    fn write(&self, at: Gpa, entry: u64) {
        match (self.entry_log2, u32::try_from(entry)) {
            (2, Ok(half)) => self.memory.write_half(at, half),
            (2, Err(_)) => assert!(self.entry_log2 != 2, "an entry of 4 bytes can not be {entry:#x}"),
            _ => self.memory.write(at, entry),
        }
    }
}

/// Sizes of a first-stage leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageSize {
    /// 4 KiB.
    K4,
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl PageSize {
    const fn level(self) -> u8 {
        match self {
            Self::K4 => 0,
            Self::M2 => 1,
            Self::G1 => 2,
        }
    }
}

/// A first-stage table whose pages are in guest memory itself, as a driver without a second stage builds it.
#[derive(Clone, Debug)]
pub struct FirstStageTable {
    mode: FirstStageMode,
    table: PageTable,
}

impl FirstStageTable {
    /// An empty table.
    #[must_use]
    pub fn new(memory: &Memory, mode: FirstStageMode) -> Self {
        Self { mode, table: PageTable::first_stage(memory, mode) }
    }

    /// The root page.
    #[must_use]
    pub const fn root(&self) -> Gpa {
        self.table.root()
    }

    /// The device context that uses this table.
    #[must_use]
    pub fn context(&self, pscid: Pscid) -> [u64; 4] {
        super::first_stage(self.mode, self.root(), pscid)
    }

    /// The process context that uses this table: `ta` with PSCID in 31:12, and these bits of
    /// [`process_ta`](super::process_ta) besides V.
    #[must_use]
    pub fn process_context(&self, pscid: Pscid, bits: u64) -> [u64; 2] {
        [super::process_ta::V | bits | u64::from(pscid.get()) << 12, self.table.iosatp()]
    }

    /// Maps the page of this size that holds `iova` to the one that holds `gpa`; `flags` are bits of [`pte`].
    pub fn map(&self, iova: Iova, gpa: Gpa, size: PageSize, flags: u64) {
        self.table.map(iova.get(), gpa.get(), size.level(), flags);
    }

    /// Clears the leaf of this size that maps `iova`.
    pub fn unmap(&self, iova: Iova, size: PageSize) {
        self.table.unmap(iova.get(), size.level());
    }

    /// Where the entry for `iova` at `level` is, 0 being 4-KiB leaves; makes the way to it.
    #[must_use]
    pub fn entry_address(&self, iova: Iova, level: u8) -> Gpa {
        self.table.entry_address(iova.get(), level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_where_the_indices_say() {
        let memory = Memory::new();
        let table = FirstStageTable::new(&memory, FirstStageMode::Sv39);
        table.map(Iova::new(0x7f_c060_5123), Gpa::new(0x1234_5678), PageSize::K4, pte::RO);
        // VPN[2] = 0x1ff, VPN[1] = 3, VPN[0] = 5 (S1-03).
        let first = memory.read(Gpa::new(table.root().get() + 0x1ff * 8));
        let second = memory.read(Gpa::new((first >> 10 << 12) + 3 * 8));
        assert_eq!(memory.read(Gpa::new((second >> 10 << 12) + 5 * 8)), 0x1_2345 << 10 | 0x53);
        table.map(Iova::new(0x4000_0000), Gpa::new(0xc000_1000), PageSize::G1, pte::RW);
        assert_eq!(memory.read(Gpa::new(table.root().get() + 8)), 0xc_0000 << 10 | 0xd7);
        assert_eq!(
            table.process_context(Pscid::truncate(5), super::super::process_ta::ENS),
            [0x5003, 8 << 60 | table.root().get() >> 12]
        );
        table.unmap(Iova::new(0x4000_0000), PageSize::G1);
        assert_eq!(memory.read(Gpa::new(table.root().get() + 8)), 0);
    }

    #[test]
    fn entries_of_rv32_have_4_bytes_and_roots_of_the_second_stage_16_kib() {
        let memory = Memory::new();
        let table = PageTable::second_stage(&memory, SecondStageMode::Sv32x4);
        assert_eq!(table.root().get() % 0x4000, 0, "S2-11");
        // GPA 33:22 = 0xffd, 21:12 = 5.
        table.map(0x3_ff40_5000, 0x1234_5678, 0, pte::RW);
        let root = memory.read(Gpa::new(table.root().get() + ((0xffd * 4) & !7)));
        let below = (root >> 32 >> 10) << 12;
        assert_eq!(memory.read(Gpa::new(below + 16)) >> 32, 0x1_2345 << 10 | 0xd7, "S1-02, S2-02");
        // Big-endian entries are swapped by themselves.
        let big = PageTable::first_stage(&memory.big_endian(), FirstStageMode::Sv32);
        big.map(0, 0x1000, 1, pte::V);
        assert_eq!(memory.read(big.root()), u64::from(1_u32.swap_bytes()), "EDN-06");
    }

    #[test]
    fn pointers_of_a_table_seen_elsewhere_are_less_by_that_offset() {
        let memory = Memory::new();
        let table = PageTable::first_stage(&memory, FirstStageMode::Sv39).below(0x4000_0000);
        table.map(0x1000, 0, 0, pte::RW);
        assert_eq!(table.iosatp(), 8 << 60 | (table.root().get() - 0x4000_0000) >> 12);
        let below = memory.read(table.root()) >> 10 << 12;
        assert_eq!(table.entry_address(0x1000, 1).get() & !0xfff, below + 0x4000_0000);
    }
}
