//! Guest memory: the VM's RAM, its interrupt file and the page that mirrors the registers.

use core::cell::Cell;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use riscv_viommu::{Gpa, GuestMemory, MemoryFault, Post};

use crate::frames::Table;
use crate::iommu::order_device_and_memory;

/// What the crate asked of guest memory, for the report.
#[derive(Clone, Debug, Default)]
pub struct MemoryCalls {
    /// Calls of `load`.
    pub loads: Cell<u64>,
    /// Calls of `store`.
    pub stores: u64,
    /// Calls of `post`.
    pub posts: u64,
    /// Calls of `publish`.
    pub publishes: u64,
}

/// The page of an interrupt file.
#[derive(Clone, Copy, Debug)]
pub struct InterruptFile {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Where it is.
    pub hpa: u64,
}

/// The page that shows the guest the registers of its IOMMU.
pub type Mirror = Table;

/// One VM's RAM, with what else the vIOMMU may write to.
#[derive(Debug)]
pub struct GuestRam {
    gpa: u64,
    hpa: u64,
    size: u64,
    file: InterruptFile,
    mirror: Option<Mirror>,
    /// What was asked of it.
    pub calls: MemoryCalls,
}

impl GuestRam {
    /// RAM of `size` bytes that the guest sees at `gpa`.
    ///
    /// # Safety
    /// `size` bytes at `hpa` are this guest's memory, and an interrupt file, or memory that may be written instead, is
    /// at `file.hpa`. The guest writes its memory at any time: it is only ever accessed by atomics.
    #[must_use]
    pub unsafe fn new(gpa: Gpa, hpa: u64, size: u64, file: InterruptFile, mirror: Option<Mirror>) -> Self {
        Self { gpa: gpa.get(), hpa, size, file, mirror, calls: MemoryCalls::default() }
    }

    /// Where `bytes` bytes at `at` really are, if all of them are RAM.
    #[must_use]
    pub fn hpa(&self, at: Gpa, bytes: u64) -> Option<u64> {
        let offset = at.get().checked_sub(self.gpa)?;
        let end = offset.checked_add(bytes)?;
        (end <= self.size).then(|| self.hpa + offset)
    }

    /// A byte of RAM.
    #[must_use]
    pub fn byte(&self, at: Gpa) -> Option<u8> {
        let hpa = self.hpa(at, 1)?;
        // SAFETY: inside the memory that `new` was promised.
        Some(unsafe { &*(hpa as *const AtomicU8) }.load(Ordering::Relaxed))
    }

    /// 64-bit words of RAM.
    fn words(&self, at: Gpa, count: usize) -> Result<&[AtomicU64], MemoryFault> {
        let hpa = self.hpa(at, count as u64 * 8).filter(|hpa| hpa % 8 == 0).ok_or(MemoryFault::Access)?;
        // SAFETY: inside the memory that `new` was promised, aligned, and only ever accessed by atomics.
        Ok(unsafe { core::slice::from_raw_parts(hpa as *const AtomicU64, count) })
    }
}

impl GuestMemory for GuestRam {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.calls.loads.set(self.calls.loads.get() + 1);
        for (word, out) in self.words(at, out.len())?.iter().zip(out) {
            *out = word.load(Ordering::Acquire);
        }
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.calls.stores += 1;
        for (word, value) in self.words(at, words.len())?.iter().zip(words) {
            word.store(*value, Ordering::Release);
        }
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, _why: Post) -> Result<(), MemoryFault> {
        self.calls.posts += 1;
        // A file takes a message at its first word. The rest of its page is nobody's.
        if at == self.file.gpa {
            order_device_and_memory();
            // SAFETY: the interrupt file that `new` was promised.
            unsafe { (self.file.hpa as *mut u32).write_volatile(data) };
            return Ok(());
        }
        let hpa = self.hpa(at, 4).filter(|hpa| hpa % 4 == 0).ok_or(MemoryFault::Access)?;
        // SAFETY: RAM that `new` was promised.
        unsafe { &*(hpa as *const AtomicU32) }.store(data, Ordering::Release);
        Ok(())
    }

    fn publish(&mut self, offset: u16, value: u32) {
        self.calls.publishes += 1;
        let Some(mirror) = self.mirror else { return };
        let Some(word) = mirror.words().get(usize::from(offset) / 8) else { return };
        let half = usize::from(offset) / 4 % 2;
        // SAFETY: half a word of the table; nobody reads it but the guest, and it does not write.
        unsafe { &*core::ptr::from_ref(word).cast::<AtomicU32>().add(half) }.store(value, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::test_frames;

    const BASE: Gpa = Gpa::new(0x8000_0000);
    const FILE: Gpa = Gpa::new(0x2800_0000);

    fn ram() -> (GuestRam, Table, Table) {
        let mut frames = test_frames(4);
        let (ram, file) = (frames.take(2).expect("RAM"), frames.take(1).expect("a file"));
        let file_at = InterruptFile { gpa: FILE, hpa: file.address() };
        // SAFETY: both tables are this test's own.
        (unsafe { GuestRam::new(BASE, ram.address(), 0x2000, file_at, None) }, ram, file)
    }

    #[test]
    fn accesses_that_leave_ram_by_one_byte_fail_and_change_nothing() {
        let (mut guest, table, _) = ram();
        for at in [BASE.get() - 8, BASE.get() + 0x1ff8, u64::MAX - 7, BASE.get() + 4] {
            assert_eq!(guest.load(Gpa::new(at), &mut [0; 2]), Err(MemoryFault::Access), "{at:#x}");
            assert_eq!(guest.store(Gpa::new(at), &[1; 2]), Err(MemoryFault::Access), "{at:#x}");
        }
        assert!(table.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert_eq!(guest.store(Gpa::new(BASE.get() + 0x1ff0), &[1, 2]), Ok(()));
        assert_eq!(table.words()[0x3ff].load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_message_reaches_ram_or_the_first_word_of_the_own_interrupt_file() {
        let (mut guest, table, file) = ram();
        assert_eq!(guest.post(FILE, 7, Post::Interrupt), Ok(()));
        assert_eq!(file.words()[0].load(Ordering::Relaxed), 7);
        assert_eq!(guest.post(Gpa::new(BASE.get() + 4), 9, Post::FenceData), Ok(()));
        assert_eq!(table.words()[0].load(Ordering::Relaxed), 9 << 32);
        for at in [FILE.get() + 4, FILE.get() + 0x1000, BASE.get() + 0x2000, BASE.get() + 2, 0] {
            assert_eq!(guest.post(Gpa::new(at), 7, Post::Interrupt), Err(MemoryFault::Access), "{at:#x}");
        }
    }
}
