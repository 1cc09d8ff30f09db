//! Configuration space of the one PCI device, 00:01.0.

use crate::mmio::{self, Window};

const FUNCTION: usize = 1 << 15;
const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// Memory accesses, bus master, no wired interrupts.
const ENABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const MSI_X: u8 = 0x11;
const MSI_X_ENABLE: u16 = 1 << 15;

/// What kind of device answers: its class code, `None` if none does.
pub(crate) fn class() -> Option<u32> {
    let word = |offset| mmio::ECAM.read32(FUNCTION + offset);
    (word(0) != u32::MAX).then(|| word(8) >> 8)
}

/// Places BAR 0, 64 bits wide, at an address in a PCI window and lets the device go.
pub(crate) fn place(base: u64) -> Window {
    let ecam = mmio::ECAM;
    ecam.write16(FUNCTION + COMMAND, 0);
    let write = |value: u64| {
        ecam.write32(FUNCTION + BAR0, value as u32);
        ecam.write32(FUNCTION + BAR0 + 4, (value >> 32) as u32);
    };
    // The bits that stay 0 tell the size.
    write(u64::MAX);
    let [low, high] = [0, 4].map(|part| ecam.read32(FUNCTION + BAR0 + part));
    let bytes = 1 << (u64::from(high) << 32 | u64::from(low) & !0xf).trailing_zeros();
    write(base);
    ecam.write16(FUNCTION + COMMAND, ENABLE);
    Window::bar(base, bytes)
}

/// Turns MSI-X on, and says where in BAR 0 its table is.
pub(crate) fn enable_msi_x() -> usize {
    let ecam = mmio::ECAM;
    let mut at = usize::from(ecam.read8(FUNCTION + CAPABILITIES));
    while at != 0 {
        if ecam.read8(FUNCTION + at) == MSI_X {
            let control = ecam.read16(FUNCTION + at + 2);
            ecam.write16(FUNCTION + at + 2, control | MSI_X_ENABLE);
            let table = ecam.read32(FUNCTION + at + 4);
            assert!(table.is_multiple_of(8), "the MSI-X table is in BAR 0");
            return table as usize;
        }
        at = usize::from(ecam.read8(FUNCTION + at + 1));
    }
    panic!("the device has no MSI-X");
}
