//! Access to the registers.

use riscv_viommu::{Register, Width};

/// The register page of an IOMMU. Every access is as wide as the register.
pub trait Bus {
    /// Reads a register, before everything that follows.
    fn load(&self, register: Register) -> u64;

    /// Writes a register, after everything before it is visible to the IOMMU.
    fn store(&self, register: Register, value: u64);
}

/// Registers at a physical address.
#[derive(Debug)]
pub struct Mmio(usize);

impl Mmio {
    /// The register page at `base`.
    ///
    /// # Safety
    /// An IOMMU is there, and nobody else drives it.
    #[must_use]
    pub const unsafe fn new(base: usize) -> Self {
        Self(base)
    }

    fn address(&self, register: Register) -> usize {
        self.0 + usize::from(register.offset())
    }
}

impl Bus for Mmio {
    fn load(&self, register: Register) -> u64 {
        let at = self.address(register);
        // SAFETY: `new` was promised the page; the offset is within it and aligned to the register's width.
        let value = unsafe {
            match register.width() {
                Width::U32 => (at as *const u32).read_volatile().into(),
                _ => (at as *const u64).read_volatile(),
            }
        };
        order_device_and_memory();
        value
    }

    fn store(&self, register: Register, value: u64) {
        order_device_and_memory();
        let at = self.address(register);
        // SAFETY: as for `load`.
        unsafe {
            match register.width() {
                Width::U32 => (at as *mut u32).write_volatile(value as u32),
                _ => (at as *mut u64).write_volatile(value),
            }
        }
    }
}

/// Orders accesses to devices with those to memory, which an atomic fence does not.
pub(crate) fn order_device_and_memory() {
    #[cfg(target_arch = "riscv64")]
    // SAFETY: a fence only orders.
    unsafe {
        core::arch::asm!("fence iorw, iorw", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "riscv64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}
