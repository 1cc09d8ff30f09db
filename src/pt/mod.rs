//! Page tables of both stages. [`pte`] is the format of their entries.

pub mod pte;

pub use pte::Pte;
