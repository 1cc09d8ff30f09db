//! What the guest's registers and directory say of the device: a walk written from the figures of the specification.

use std::fmt;

use riscv_viommu::{Context, FirstStageMode};

use super::host::Memory;

/// The guest's id of the device the traces were recorded with.
pub(crate) const DEVICE: u32 = 8;

/// How the device's requests are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    Blocked,
    SecondStageOnly {
        process_ids: bool,
    },
    FirstStage {
        mode: u64,
        root: u64,
        pscid: u64,
        sade: bool,
        sbe: bool,
    },
    /// An order that is not known here.
    Unknown,
}

impl Mapping {
    /// What the crate told the host.
    pub(crate) fn of(context: &Context) -> Self {
        match context {
            Context::Blocked => Self::Blocked,
            Context::SecondStageOnly { process_ids, .. } => Self::SecondStageOnly { process_ids: *process_ids },
            Context::FirstStage(stage) => Self::FirstStage {
                mode: match stage.mode {
                    FirstStageMode::Sv39 => 8,
                    FirstStageMode::Sv48 => 9,
                    FirstStageMode::Sv57 => 10,
                    _ => return Self::Unknown,
                },
                root: stage.root.base().get(),
                pscid: stage.pscid.get().into(),
                sade: stage.sade,
                sbe: stage.sbe,
            },
            _ => Self::Unknown,
        }
    }

    /// What the guest says by `ddtp` and, if that names a directory, its entries. Little-endian.
    pub(crate) fn walk(capabilities: u64, ddtp: u64, memory: &Memory) -> Self {
        let offers = |bit: u32| capabilities >> bit & 1;
        // MSI_FLAT (22): 64 contexts of 64 bytes on a page instead of 128 of 32.
        let extended = offers(22) == 1;
        let leaf_bits = if extended { 6 } else { 7 };
        let above: &[u32] = match ddtp & 0xf {
            1 => return Self::SecondStageOnly { process_ids: true },
            2 => &[],
            3 => &[leaf_bits],
            4 => &[leaf_bits.wrapping_add(9), leaf_bits],
            _ => return Self::Blocked,
        };
        let id = u64::from(DEVICE);
        let mut table = page(ddtp);
        for &shift in above {
            let entry = memory.word(table | (id >> shift & 0x1ff) << 3);
            // V alone of bits 63:54 and 9:0.
            if entry & 0xffc0_0000_0000_03ff != 1 {
                return Self::Blocked;
            }
            table = page(entry);
        }
        let at = table | if extended { id << 6 } else { id << 5 };
        let [tc, iohgatp, ta, fsc] = memory.words(at);
        // V, DTF, PDTV and custom bits; SADE with AMO_HWAD (24), SBE with END (27).
        let legal = 0xff00_0031 | offers(24) << 8 | offers(27) << 10;
        let [msiptp, mask, pattern, reserved] = if extended { memory.words(at | 32) } else { [0; 4] };
        // mask and pattern are page numbers of PAS (37:32) bits of address.
        let page_bits = u32::try_from(capabilities >> 32 & 0x3f).map_or(0, |pas| pas.saturating_sub(12));
        if tc & 1 == 0
            || tc & !legal != 0
            || iohgatp >> 60 != 0
            || ta & 0xffff_ffff_0000_0fff != 0
            || fsc & 0x0fff_f000_0000_0000 != 0
            || msiptp >> 44 != 0
            || (mask | pattern).wrapping_shr(page_bits) != 0
            || reserved != 0
        {
            return Self::Blocked;
        }
        let process_ids = tc >> 5 & 1 == 1;
        match fsc >> 60 {
            0 => Self::SecondStageOnly { process_ids },
            // Sv39 (9), Sv48 (10), Sv57 (11).
            mode @ 8..=10 if !process_ids && capabilities >> 1 >> mode & 1 == 1 => Self::FirstStage {
                mode,
                root: fsc << 20 >> 8,
                pscid: ta >> 12,
                sade: tc >> 8 & 1 == 1,
                sbe: tc >> 10 & 1 == 1,
            },
            _ => Self::Blocked,
        }
    }
}

/// PPN 53:10 of `ddtp` and of directory entries.
const fn page(entry: u64) -> u64 {
    entry << 10 >> 20 << 12
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Blocked => f.write_str("Blocked"),
            Self::SecondStageOnly { process_ids: false } => f.write_str("SecondStageOnly"),
            Self::SecondStageOnly { process_ids: true } => f.write_str("SecondStageOnly (process_ids too)"),
            Self::FirstStage { mode, root, pscid, sade, sbe } => {
                let scheme = ["Sv39", "Sv48", "Sv57"].into_iter().zip(8..).find(|&(_, code)| code == mode);
                write!(f, "{} root {root:#x} PSCID {pscid}", scheme.map_or("?", |(name, _)| name))?;
                f.write_str(if sade { " SADE" } else { "" })?;
                f.write_str(if sbe { " SBE" } else { "" })
            }
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
