//! Interrupt files in memory: what an MSI to one does. Source: the advanced interrupt architecture's "Memory-resident
//! interrupt files".

use crate::addr::{Gpa, NestedGpa, Ppn};
use crate::backend::{GuestMemory, Post};
use crate::error::MemoryFault;
use crate::fault::{Cause, Fault};
use crate::mem::{ATTEMPTS, View};
use crate::regs::Width;

use super::pte::{MrifMsiPte, MrifNotice};

/// An interrupt file in memory, and an address in the page that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mrif {
    /// 512 bytes, aligned to its size: 32 pairs of pending and enable bits, 64 of each.
    file: Gpa,
    notice: Ppn,
    nid: u32,
    /// Place in the page that was accessed.
    offset: u64,
}

impl Mrif {
    pub(super) fn new(file: MrifMsiPte, notice: MrifNotice, gpa: NestedGpa) -> Self {
        let file = Gpa::new(file.address().wrapping_shl(9));
        Self { file, notice: notice.nppn(), nid: notice.nid(), offset: gpa.get() & 0xfff }
    }

    /// Whether an access of this many bytes is one an interrupt file takes (rule MRIF-01).
    pub(crate) const fn takes(&self, bytes: u64) -> bool {
        bytes == 4 && self.offset.trailing_zeros() >= 2
    }

    /// Makes an interrupt pending, as the 4 bytes `data` (a little-endian number) ask for, and sends the notice. The
    /// words of the file are little-endian always (rules MRIF-03 to MRIF-07, EDN-05).
    ///
    /// # Errors
    /// 264 and 271 if the file can not be read or updated.
    pub(crate) fn store(&self, memory: &mut impl GuestMemory, view: View, data: u32) -> Result<(), Fault> {
        let view = view.with_big_endian(false);
        let identity = match self.offset {
            0 => data,
            // UNSPECIFIED: big-endian MSIs are supported (rules MRIF-03, MRIF-04).
            4 => data.swap_bytes(),
            // Accepted, and nothing comes of it.
            _ => return Ok(()),
        };
        if identity >= 2048 {
            return Ok(());
        }
        let at = self.file.or(u64::from(identity / 64).wrapping_mul(16));
        set(memory, view, at, 1_u64.wrapping_shl(identity)).map_err(|fault| {
            Fault::new(match fault {
                MemoryFault::Access => Cause::MrifAccessFault,
                MemoryFault::Corruption => Cause::MrifDataCorruption,
            })
        })?;
        // UNSPECIFIED: a notice that can not be stored is lost; no cause stands for it (rule MRIF-09).
        if view.post(memory, self.notice.base(), self.nid, Post::Notice).is_err() {
            log::debug!("the notice of an interrupt file in memory could not be stored");
        }
        Ok(())
    }
}

/// Sets a bit of a word in one atomic operation (rule MRIF-06).
fn set(memory: &mut impl GuestMemory, view: View, at: Gpa, bit: u64) -> Result<(), MemoryFault> {
    for _ in 0..ATTEMPTS {
        let old: u64 = view.load_new(memory, at)?;
        if view.exchange(memory, at, Width::U64, old, old | bit)? {
            return Ok(());
        }
    }
    // DEVIATES: an update that a vCPU is always faster than ends, as that of a page-table entry does (rule VT-13).
    Err(MemoryFault::Access)
}
