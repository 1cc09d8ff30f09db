//! Hostile tables under translate: see `riscv_viommu_fuzz::tables`.
#![cfg_attr(fuzzing, no_main)]

riscv_viommu_fuzz::target!(tables);
