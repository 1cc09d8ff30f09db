//! MSI page tables. [`pte`] is the format of their entries.

pub mod pte;

pub use pte::MsiPte;
