//! Every call a vIOMMU makes to its host, printed as it happens, and what it says of a guest that makes mistakes.
//!
//! `cargo run --example trace`
//!
//! A guest's driver turns its IOMMU on with a device context that is wrong, mends it, and then queues a command that is
//! wrong. The whole host is wrapped in [`Trace`](riscv_viommu::backend::Trace), which shows each call; `last_error`
//! names the mistake, and `stats` counts.

#[path = "trace/story.rs"]
mod story;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    story::tell(|line| println!("{line}"))
}
