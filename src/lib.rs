//! A virtual RISC-V IOMMU for hypervisors: gives a guest its own IOMMU while the host keeps the physical one.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "mock", test))]
extern crate std;

pub mod addr;
pub mod backend;
pub mod cmdq;
mod config;
pub mod ddt;
pub mod error;
pub mod fault;
pub mod faultq;
pub mod id;
mod interrupt;
mod mem;
#[cfg(feature = "mock")]
pub mod mock;
mod nest;
mod progress;
pub mod regs;
mod ring;
mod viommu;

pub use addr::{Gpa, Iova, Ppn};
pub use backend::{
    Applied, Backend, Completion, Context, FenceOutcome, FenceScope, FirstStage, GuestMemory, HostCapabilities,
    InterruptKinds, Interrupts, Invalidation, NoPhysical, Pages, Parts, PhysicalIommu, Post, Ticket,
};
pub use config::Config;
pub use error::{AttachError, ConfigError, DetachError, IdError, MemoryFault, OrderError};
pub use fault::{Cause, Fault, TransactionType};
pub use faultq::{FaultRecord, HostFault, Quirks};
pub use id::{DeviceId, FirstStageMode, Gscid, ProcessId, Pscid, SecondStageMode};
pub use nest::{Attachment, Health};
pub use progress::Progress;
pub use regs::{Capabilities, Igs, Width};
pub use viommu::{Attached, DevicePolicy, Stats, VIommu};
