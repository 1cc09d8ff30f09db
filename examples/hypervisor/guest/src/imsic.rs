//! The hart's interrupt file: where messages end, polled.

use crate::csr;

/// The page of the file: a 4-byte store of an identity to its first word makes that identity pending.
pub(crate) const IMSIC: u64 = 0x2800_0000;

/// Identities in use.
pub(crate) const COMMANDS: u16 = 17;
pub(crate) const FAULTS: u16 = 18;
pub(crate) const FENCE: u16 = 19;
pub(crate) const NVME: u16 = 21;

const EIDELIVERY: u64 = 0x70;
const EITHRESHOLD: u64 = 0x72;
const EIE0: u64 = 0xc0;

/// Lets the identities below 64 become visible to [`claim`](csr::claim).
pub(crate) fn enable() {
    csr::write_indirect(EIDELIVERY, 1);
    csr::write_indirect(EITHRESHOLD, 0);
    csr::write_indirect(EIE0, !1);
    drain();
}

/// Forgets what is pending.
pub(crate) fn drain() {
    while csr::claim() != 0 {}
}

/// Waits for an identity; others that come are dropped.
pub(crate) fn comes(identity: u16) -> bool {
    csr::within(1000, || csr::claim() == identity)
}

/// Whether no message comes in a few milliseconds.
pub(crate) fn silent() -> bool {
    !csr::within(3, || csr::claim() != 0)
}
