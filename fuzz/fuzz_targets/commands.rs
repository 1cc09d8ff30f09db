//! What is in the command queue: see `riscv_viommu_fuzz::commands`.
#![cfg_attr(fuzzing, no_main)]

riscv_viommu_fuzz::target!(commands);
