//! A virtual RISC-V IOMMU for hypervisors: gives a guest its own IOMMU, for passthrough devices while the host keeps
//! the physical one, and for devices the host emulates.
//!
//! # The job
//!
//! A guest writes the registers of an IOMMU, builds a device directory and page tables in its own memory, queues
//! invalidation commands and reads faults. The host owns the real IOMMU, the second stage and the devices. [`VIommu`]
//! stands between: it does to the guest's structures what hardware would do. For passthrough devices it gives the
//! host's driver orders that name only what the host itself handed in; for emulated ones it says where each access
//! goes, or records a fault.
//!
//! ```text
//! guest driver ──MMIO──► read / write ─► regs ─► cmdq ─► ddt ─► nest ─► orders ──► physical IOMMU (host driver)
//! guest memory ◄── GuestMemory::load / store / compare_exchange ◄─┤       first stage: guest's, nested
//! guest's fault queue, MSI or wire ◄──┬── report_fault ◄── physical FQ    second stage: host's
//!                                     └── fault ◄────────────────┤
//! emulated device ──► translate / pieces ─► ddt ─► pdt ─► pt ─► msi ──► address: the device model makes the access
//! ```
//!
//! # First contact
//!
//! Implement the three traits of [`backend`], where a complete small host is, then follow `examples/quickstart.rs` for
//! passthrough or `examples/dma_engine.rs` for emulated devices. A host with registers, page tables and guests that run
//! is `examples/hypervisor`.
//!
//! # Layers
//!
//! Imports go down only; a test holds this table and the sources together.
//!
//! | layer | modules | what |
//! |---|---|---|
//! | 0 | `fault::cause` [`error`] [`id`] [`addr`] `progress` `attachment` `list` | newtypes, host errors, what a call left to do, vectors |
//! | 1 | [`regs::layout`] [`regs::capabilities`] [`regs`] [`fault`] [`backend`] | register formats and where each register is; causes; the host's traits and orders |
//! | 2 | formats [`ddt::entry`] [`pdt::entry`] [`cmdq::command`] [`ats::message`] [`faultq::record`] [`pageq::record`] [`pt::pte`] [`msi::pte`], `regs::file` `config` `mem` `ring` `last_error` | records in memory; the register file; what is offered; the one place that reads and writes records; queue indices; what was refused |
//! | 3 | `ioatc` [`pt`] | what translation remembers; the way down the page tables of both stages |
//! | 4 | [`ddt`] [`msi`] | locating and checking a device context; MSI page tables |
//! | 5 | [`pdt`] | locating and checking a process context |
//! | 6 | `interrupt` `hpm` [`faultq`] `emulated` `drain` [`pageq`] [`ats`] `nest` `translate` [`cmdq`] | what the IOMMU does |
//! | 7 | [`snapshot`] | a vIOMMU as bytes, and what of them can be believed |
//! | 8 | `stats` `viommu` | counts; `viommu` owns everything; the only module that sees everything |
//! | 9 | `mock` | doubles for tests, feature `mock` |
//!
//! Formats have no behaviour and are public, to encode as well as to decode: a host's driver of the physical IOMMU uses
//! the same ones. Records of several words implement the traits of `zerocopy` 0.8, whose `transmute!` makes them of
//! words and words of them. Behaviour has no bit arithmetic.
//!
//! # Address spaces
//!
//! [`Iova`] is an address a device uses. [`Gpa`] is an address in the physical address space of the VM that drives the
//! vIOMMU, what the specification calls an SPA; to the host it is not a physical address. [`NestedGpa`] is what the
//! specification calls a GPA: the physical address space of a VM of the guest's own, which only a guest with a second
//! stage has. Host-physical addresses do not occur.
//!
//! # Promises
//!
//! * No word a guest wrote, no GSCID and no guest `device_id` reaches [`PhysicalIommu`]: orders are typed, over
//!   handles the host attached.
//! * `cqh` passes an IOFENCE.C, and `ddtp.busy` clears, only after every order before it is complete on hardware and
//!   DMA of emulated devices that uses older translations [is done](backend#dma-of-emulated-devices). A device whose
//!   context the guest made invalid is blocked by then. (A host that refuses to invalidate is the exception: see
//!   [`Health::Degraded`].)
//! * No guest input panics, spins or allocates; work for each call is bounded by [`Config::with_budget`], and what is
//!   left goes on in [`VIommu::run`]. A translation is bounded by the levels of the guest's tables.
//! * Each record is read once and decided on as a copy.
//! * Nothing a guest can trigger is logged louder than `debug`.
//!
//! Where the specification leaves a choice open, the code says `UNSPECIFIED` and which choice it makes; where it does
//! otherwise than the specification says, `DEVIATES` and why. `docs/conformance.md` lists both.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "mock", test))]
extern crate std;

pub mod addr;
pub mod ats;
mod attachment;
pub mod backend;
pub mod cmdq;
mod config;
pub mod ddt;
mod drain;
mod emulated;
pub mod error;
pub mod fault;
pub mod faultq;
mod hpm;
pub mod id;
mod interrupt;
mod ioatc;
mod last_error;
mod list;
mod mem;
#[cfg(feature = "mock")]
pub mod mock;
pub mod msi;
mod nest;
pub mod pageq;
pub mod pdt;
mod progress;
pub mod pt;
pub mod regs;
mod ring;
pub mod snapshot;
mod stats;
mod translate;
mod viommu;

/// The snippets of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub use addr::{Gpa, Iova, NestedGpa, Ppn};
pub use ats::{DeviceMessage, InvalidationCompletion, InvalidationRequest};
pub use attachment::Attachment;
pub use backend::{
    Applied, Ats, AtsInvalidation, Backend, Behind, Completion, Context, Epoch, FanOut, FenceOutcome, FenceScope,
    FirstStage, GuestMemory, HostCapabilities, InterruptKinds, Interrupts, Invalidation, NoPhysical, PageResponse,
    Pages, Parts, PhysicalIommu, Post, Processes, ResponseCode, Ticket,
};
pub use cmdq::CommandCounts;
pub use config::Config;
pub use error::{
    AttachError, ConfigError, DetachError, IdError, IllegalCommand, MemoryFault, OrderError, RestoreError,
    SnapshotError, TranslateError, Violation,
};
pub use fault::{Cause, TransactionType};
pub use faultq::{FaultHead, FaultRecord, HostFault, Quirks, SecondStageFault};
pub use id::{DeviceId, FirstStageMode, Gscid, Itag, Prgi, ProcessDirectoryMode, ProcessId, Pscid, SecondStageMode};
pub use last_error::LastError;
pub use nest::{Answers, Health, OrderCounts};
pub use pageq::{PageRequest, PageRequestPayload};
pub use progress::Progress;
pub use regs::{Capabilities, Gxl, Igs, Register, Width};
pub use stats::Stats;
pub use translate::{
    AtsCompletion, AtsRequest, AtsTranslation, Pbmt, Permissions, QosIds, Request, Target, Translation,
};
pub use viommu::{Attached, DevicePolicy, PageRequestOutcome, Pieces, VIommu};
