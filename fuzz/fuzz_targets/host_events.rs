//! What the host tells and answers, in any order: see `riscv_viommu_fuzz::host_events`.
#![cfg_attr(fuzzing, no_main)]

riscv_viommu_fuzz::target!(host_events);
