//! Translation schemes of both stages, as numbers (rules S1-02, S1-03, S2-02).

/// How a walk splits an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// In `iosatp` or `iohgatp`.
    pub(crate) mode: u64,
    pub(crate) levels: u8,
    /// Of an index below the root.
    index_bits: u32,
    root_bits: u32,
    pub(crate) entry_bytes: u64,
}

/// First stage.
pub(crate) const SV32: Scheme = Scheme { mode: 8, levels: 2, index_bits: 10, root_bits: 10, entry_bytes: 4 };
pub(crate) const SV39: Scheme = Scheme { mode: 8, levels: 3, index_bits: 9, root_bits: 9, entry_bytes: 8 };
pub(crate) const SV48: Scheme = Scheme { mode: 9, levels: 4, ..SV39 };
pub(crate) const SV57: Scheme = Scheme { mode: 10, levels: 5, ..SV39 };

/// Second stage.
pub(crate) const SV32X4: Scheme = Scheme { root_bits: 12, ..SV32 };
pub(crate) const SV39X4: Scheme = Scheme { root_bits: 11, ..SV39 };
pub(crate) const SV48X4: Scheme = Scheme { root_bits: 11, ..SV48 };
pub(crate) const SV57X4: Scheme = Scheme { root_bits: 11, ..SV57 };

impl Scheme {
    /// What a MODE of `iosatp` selects.
    pub(crate) fn first(mode: u64, sxl: bool) -> Option<Self> {
        let known: &[Self] = if sxl { &[SV32] } else { &[SV39, SV48, SV57] };
        known.iter().find(|scheme| scheme.mode == mode).copied()
    }

    /// What a MODE of `iohgatp` selects.
    pub(crate) fn second(mode: u64, gxl: bool) -> Option<Self> {
        let known: &[Self] = if gxl { &[SV32X4] } else { &[SV39X4, SV48X4, SV57X4] };
        known.iter().find(|scheme| scheme.mode == mode).copied()
    }

    /// The address with the bits above those that are translated as they have to be (rule S1-04).
    pub(crate) fn canonical(self, address: u64) -> u64 {
        let above = u64::MAX << self.width();
        let is_high = self.is_wide() && address >> (self.width() - 1) & 1 == 1;
        if is_high { address | above } else { address & !above }
    }

    /// The page number of an entry.
    pub(crate) fn page(self, entry: u64) -> u64 {
        entry >> 10 & ((1 << self.page_bits()) - 1)
    }

    /// The table that a pointer points to.
    pub(crate) fn next(self, entry: u64) -> u64 {
        self.page(entry) << 12
    }

    /// Address bits within what a leaf maps.
    pub(crate) fn leaf_bits(self, leaf: u64, level: u8) -> u32 {
        let is_napot = self.is_wide() && level == 0 && leaf >> 63 == 1;
        if is_napot { 16 } else { self.offset_bits(level) }
    }

    /// Where a leaf leads an address to (rules S1-13, PTE-06).
    pub(crate) fn leads_to(self, leaf: u64, level: u8, address: u64) -> u64 {
        let within = (1 << self.leaf_bits(leaf, level)) - 1;
        self.next(leaf) & !within | address & within
    }

    pub(crate) fn is_wide(self) -> bool {
        self.entry_bytes == 8
    }

    /// Address bits within a leaf at this level.
    pub(crate) fn offset_bits(self, level: u8) -> u32 {
        12 + u32::from(level) * self.index_bits
    }

    /// Address bits that are translated.
    pub(crate) fn width(self) -> u32 {
        self.offset_bits(self.levels - 1) + self.root_bits
    }

    /// Bits of the page numbers in its entries.
    pub(crate) fn page_bits(self) -> u32 {
        if self.is_wide() { 44 } else { 22 }
    }

    /// Where in its table the entry for an address is.
    pub(crate) fn index(self, address: u64, level: u8) -> u64 {
        let bits = if level + 1 == self.levels { self.root_bits } else { self.index_bits };
        address >> self.offset_bits(level) & ((1 << bits) - 1)
    }
}
