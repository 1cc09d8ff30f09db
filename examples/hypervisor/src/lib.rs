//! A small hypervisor that gives each guest its own RISC-V IOMMU: the parts that need no RISC-V hart.
//!
//! | module | what |
//! |---|---|
//! | [`backend`] | the crate's `Backend` for one VM: guest memory, wires, its part in the physical IOMMU |
//! | [`iommu`] | driver of the physical IOMMU: queues, directory, who owns what |
//! | [`second_stage`] | page tables of a VM's hart and of its devices |
//! | [`frames`] | page frames for all tables |
//! | [`machine`] | what the host's device tree says, and where guests are put |
//! | [`mmio`] | which register a trapped load or store meant |
//! | [`pci`] | a guest's view of PCI: its own function, and nothing else |
//!
//! The binary adds what runs on the hart: start, traps, SBI, VMs and the report. Read [`backend`] first if you want to
//! write your own.
#![cfg_attr(not(test), no_std)]

pub mod backend;
pub mod frames;
pub mod iommu;
pub mod machine;
pub mod mmio;
pub mod pci;
pub mod second_stage;
