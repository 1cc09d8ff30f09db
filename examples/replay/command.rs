//! The commands of the queue, decoded from the figures of the specification and not with the crate's formats.

/// What one command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `IOTINVAL.VMA` with GV = 0.
    Vma(Scope),
    /// `IODIR.INVAL_DDT`; `None`: of every device.
    InvalDdt(Option<u64>),
    /// `IOFENCE.C`, with PR, PW, and address and data of AV.
    Fence { reads: bool, writes: bool, store: Option<(u64, u32)> },
    /// Legal, and about what this vIOMMU does not have: VMs of the guest's own, process directories.
    Void(&'static str),
    /// Nothing is done, and the queue stops.
    Illegal,
}

/// Which first-stage translations: those of one address space except global ones, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) pscid: Option<u32>,
    /// `None`: of every address, at every level.
    pub(crate) pages: Option<Pages>,
}

/// Page numbers, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) non_leaf: bool,
}

impl Scope {
    /// Whether `others` together name everything that this names.
    pub(crate) fn is_covered(&self, others: impl Iterator<Item = Self>) -> bool {
        let fitting = others.filter(|other| other.pscid.is_none() || other.pscid == self.pscid);
        let Some(others) = fitting.map(|other| other.pages).collect::<Option<Vec<Pages>>>() else {
            return true;
        };
        let Some(pages) = self.pages else {
            return false;
        };
        let mut others: Vec<_> = others.into_iter().filter(|other| other.non_leaf || !pages.non_leaf).collect();
        others.sort_unstable_by_key(|other| other.first);
        let mut next = pages.first;
        for other in others.iter().take_while(|other| other.first <= pages.last) {
            if other.first > next {
                return false;
            }
            next = next.max(other.last.saturating_add(1));
        }
        next > pages.last
    }
}

impl Command {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Vma(_) => "IOTINVAL.VMA",
            Self::InvalDdt(_) => "IODIR.INVAL_DDT",
            Self::Fence { .. } => "IOFENCE.C",
            Self::Void(name) => name,
            Self::Illegal => "illegal",
        }
    }

    /// Decodes a queue entry for a vIOMMU with these values of `capabilities`, `fctl` and `ddtp`.
    pub(crate) fn decode([low, high]: [u64; 2], capabilities: u64, fctl: u64, ddtp: u64) -> Self {
        let low_bit = |bit: u32| low >> bit & 1 == 1;
        let without = |capability: u32, bit: u64| if capabilities >> capability & 1 == 1 { 0 } else { bit };
        // opcode 6:0, func3 9:7.
        let function = low & 0x3ff;
        let (reserved_low, reserved_high) = match function {
            // NL (34) and S (73) need capabilities.NL (42) and capabilities.S (43).
            0x001 | 0x081 => {
                (0xf000_0ff8_0000_0800 | without(42, 1 << 34), 0xc000_0000_0000_01ff | without(43, 1 << 9))
            }
            // WSI (11) needs fctl.WSI (1).
            0x002 => (0xffff_c000 | if fctl & 2 == 0 { 1 << 11 } else { 0 }, 0xc000_0000_0000_0000),
            0x003 | 0x083 => (0x00fd_0000_0c00, u64::MAX),
            _ => return Self::Illegal,
        };
        if low & reserved_low != 0 || high & reserved_high != 0 {
            return Self::Illegal;
        }
        // DID 63:40 with DV (33), PID 31:12.
        let device = low_bit(33).then_some(low >> 40);
        let process = low >> 12 & 0xf_ffff;
        match function {
            0x001 if low_bit(33) => Self::Void("IOTINVAL.VMA of a guest's VM"),
            // PSCV 32 and PSCID 31:12, AV 10.
            0x001 => Self::Vma(Scope {
                pscid: low_bit(32).then_some(low << 32 >> 44).and_then(|pscid| pscid.try_into().ok()),
                pages: low_bit(10).then(|| Pages::operand(high, low_bit(34))),
            }),
            0x081 if low_bit(32) => Self::Illegal,
            0x081 => Self::Void("IOTINVAL.GVMA"),
            // AV 10, PR 12, PW 13, DATA 63:32, ADDR[63:2] 125:64.
            0x002 => Self::Fence {
                reads: low_bit(12),
                writes: low_bit(13),
                store: low_bit(10).then_some(()).and_then(|()| Some((high << 2, (low >> 32).try_into().ok()?))),
            },
            _ if device.is_some_and(|device| device.checked_shr(device_width(capabilities, ddtp)) != Some(0)) => {
                Self::Illegal
            }
            0x003 if process != 0 => Self::Illegal,
            0x003 => Self::InvalDdt(device),
            _ if device.is_none() || process >> process_width(capabilities) != 0 => Self::Illegal,
            _ => Self::Void("IODIR.INVAL_PDT"),
        }
    }
}

impl Pages {
    /// ADDR[63:12] 125:74; with S (73) its lowest 0 bit tells the size.
    fn operand(high: u64, non_leaf: bool) -> Self {
        let page = high << 2 >> 12;
        let range = if high >> 9 & 1 == 1 { page ^ page.wrapping_add(1) } else { 0 };
        Self { first: page & !range, last: (page | range) & 0xf_ffff_ffff_ffff, non_leaf }
    }
}

/// Bits of a `device_id`: 7 (with `MSI_FLAT` 6), 16 (15) or 24 for 1 to 3 levels; Off and Bare set no limit.
const fn device_width(capabilities: u64, ddtp: u64) -> u32 {
    match (ddtp & 0xf, capabilities >> 22 & 1) {
        (2, 0) => 7,
        (2, _) => 6,
        (3, 0) => 16,
        (3, _) => 15,
        _ => 24,
    }
}

/// Bits of a `process_id` with PD20 (40), PD17 (39), else.
const fn process_width(capabilities: u64) -> u32 {
    match capabilities >> 39 & 3 {
        0 => 8,
        1 => 17,
        _ => 20,
    }
}
