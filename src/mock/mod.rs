//! Host-side doubles for tests (feature `mock`, uses std): what a hypervisor and a guest driver do, made observable.
//!
//! | part | what it is | what it catches |
//! |---|---|---|
//! | [`Memory`] | guest memory that records, fails and changes when told to | double fetches, wrong order of visibility, unpaired watches |
//! | [`Wires`] | interrupt wires | levels that are set without a change |
//! | [`Physical`], [`Hardware`] | a host driver and a physical IOMMU with caches, and its devices with theirs, shared by several VMs | stale translations and process contexts, mixed contexts, page requests answered twice or not asked, breaches of the [`PhysicalIommu`](crate::PhysicalIommu) contract |
//! | [`tables`] | directories and first-stage tables in guest memory | |
//! | [`guest`] | the guest driver's half of the queues, as literals from the specification | an encoding that only agrees with itself |
//!
//! Handles are clones of one shared state: a test keeps one while a vIOMMU owns another.
//!
//! # Panics
//! A breach of a backend's contract panics with a message that begins `contract:`; so does a test that uses the mock
//! wrongly, with a message that does not. Nothing here is for use outside of tests.

pub mod guest;
mod interrupts;
mod memory;
mod physical;
pub mod tables;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use interrupts::Wires;
pub use memory::{Event, Memory};
pub use physical::{Access, AtsAnswer, Dma, Hardware, Kept, Order, Physical, PhysicalDevice, Strategy, Traffic};

/// A panic in one test step must not hide what the next one looks at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
