//! Device registers: windows of the address space that hold devices and no memory of the program's.
#![expect(unsafe_code, reason = "volatile accesses to devices")]

use core::ptr;

use crate::csr;

/// Registers of one device.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    base: usize,
    bytes: usize,
}

/// The IOMMU's register page.
pub(crate) const IOMMU: Window = Window { base: 0x0301_0000, bytes: 0x1000 };
/// Configuration space of PCI bus 0.
pub(crate) const ECAM: Window = Window { base: 0x3000_0000, bytes: 0x10_0000 };

macro_rules! access {
    ($read:ident $write:ident $word:ty) => {
        /// One load.
        pub(crate) fn $read(self, offset: usize) -> $word {
            csr::barrier();
            // SAFETY: see `at`; a load of a device register touches no memory of the program's.
            let value = unsafe { ptr::read_volatile(self.at::<$word>(offset)) };
            csr::barrier();
            value
        }

        /// One store.
        pub(crate) fn $write(self, offset: usize, value: $word) {
            csr::barrier();
            // SAFETY: see `at`; what the device does to memory in answer it does to pages of memory.rs, through which
            // alone they are accessed, or to what the test program is made to defend.
            unsafe { ptr::write_volatile(self.at::<$word>(offset), value) };
            csr::barrier();
        }
    };
}

impl Window {
    /// A BAR, within the PCI windows.
    pub(crate) fn bar(base: u64, bytes: usize) -> Self {
        let end = base + bytes as u64;
        assert!(
            (0x4000_0000..=0x8000_0000).contains(&base) && end <= 0x8000_0000 || (base >> 34 == 1 && end >> 34 == 1),
            "{base:#x} is not in a PCI window"
        );
        Self { base: base as usize, bytes }
    }

    access!(read8 write8 u8);
    access!(read16 write16 u16);
    access!(read32 write32 u32);
    access!(read64 write64 u64);

    /// The address of a register, inside the window and aligned: the constants above and `bar` are all the windows
    /// there are, and the machine has no memory there.
    fn at<T>(self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.bytes && offset.is_multiple_of(size_of::<T>()));
        ptr::with_exposed_provenance_mut(self.base + offset)
    }
}
