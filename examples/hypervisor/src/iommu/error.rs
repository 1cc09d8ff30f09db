//! What can go wrong with the physical IOMMU.

use riscv_viommu::Register;
use riscv_viommu::regs::Cqcsr;

/// Why the IOMMU can not be used, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IommuError {
    /// It lacks something this hypervisor needs.
    Lacks(&'static str),
    /// No memory for tables.
    OutOfFrames,
    /// A register did not come to say what it has to.
    Stuck(Register),
    /// The command queue stopped.
    Stopped(Cqcsr),
    /// A command or context named what is not its issuer's.
    Foreign,
}
