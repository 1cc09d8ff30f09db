//! Register accesses and guest memory: see `riscv_viommu_fuzz::mmio`.
#![cfg_attr(fuzzing, no_main)]

riscv_viommu_fuzz::target!(mmio);
