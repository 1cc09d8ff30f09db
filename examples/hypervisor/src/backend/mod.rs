//! The crate's `Backend` for one VM of this hypervisor: guest RAM and interrupt file, wires, and the VM's part in the
//! physical IOMMU.

pub mod context;
mod expand;
mod memory;
mod physical;
mod sabotage;

pub use memory::{GuestRam, InterruptFile, Mirror};
pub use physical::{Orders, VmIommu};
pub use sabotage::{Sabotage, Sabotaged};

use riscv_viommu::{InterruptKinds, Interrupts, Parts};

/// The backend of one VM.
pub type VmBackend<B> = Parts<GuestRam, Wires, Sabotaged<VmIommu<B>>>;

/// The wires of a vIOMMU. This board has no interrupt controller for them but the hart's own: any wire raises the
/// guest's supervisor external interrupt, beside those of its interrupt file.
#[derive(Debug, Default)]
pub struct Wires(u16);

impl Wires {
    /// Whether any wire is up.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.0 != 0
    }
}

impl Interrupts for Wires {
    fn kinds(&self) -> InterruptKinds {
        InterruptKinds::Both
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        let wire = 1 << (vector % 16);
        self.0 = if level { self.0 | wire } else { self.0 & !wire };
    }
}
