//! Page tables of both stages. [`pte`] is the format of their entries, `scheme` how an address is taken apart, `check`
//! what makes an entry good and sufficient, `walk` the way down the tables.

mod check;
pub mod pte;
mod scheme;
mod walk;

pub(crate) use check::{Extensions, Implicit, Need};
pub use pte::Pte;
pub(crate) use walk::{FirstStage, Loads, Mapping, SecondStage, Stop, Walker};
