//! Images of a vIOMMU: see `riscv_viommu_fuzz::snapshot`.
#![cfg_attr(fuzzing, no_main)]

riscv_viommu_fuzz::target!(snapshot);
