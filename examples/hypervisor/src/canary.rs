//! Memory that must not change: the beginning of each guest's RAM, and the hypervisor's own code and constants.

use core::sync::atomic::{AtomicU64, Ordering};

/// Words that hold a pattern made from their address, so that no other memory has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canary(&'static [AtomicU64]);

impl Canary {
    /// Fills memory with the pattern.
    pub(crate) fn fill(words: &'static [AtomicU64]) -> Self {
        for word in words {
            word.store(pattern(word), Ordering::Relaxed);
        }
        Self(words)
    }

    /// Address of the first word that has changed.
    pub(crate) fn changed(self) -> Option<u64> {
        let changed = self.0.iter().find(|word| word.load(Ordering::Relaxed) != pattern(word))?;
        Some(core::ptr::from_ref(changed) as u64)
    }
}

fn pattern(word: &AtomicU64) -> u64 {
    (core::ptr::from_ref(word) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Sum over the hypervisor's code and constants.
pub(crate) fn image_sum() -> u64 {
    unsafe extern "C" {
        static _start: u8;
        static image_end: u8;
    }
    let (start, end) = (&raw const _start as usize, &raw const image_end as usize);
    // SAFETY: the linker script puts code and constants, which nobody writes, between these.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, end - start) };
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
