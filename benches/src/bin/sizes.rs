//! Bytes of `VIommu` by its capacities, without the host itself; a line for each.

use riscv_viommu::mock::Memory;
use riscv_viommu::{Config, Parts, VIommu};
use riscv_viommu_benches::host::{NoOp, NoWires, Ram};

macro_rules! sizes {
    ($($devices:literal, $batch:literal, $cache:literal, $itags:literal, $groups:literal;)*) => {
        $(
            let mut iommu = VIommu::<_, $devices, $batch, $cache, $itags, $groups>::new(Parts {
                memory: Ram::of(&Memory::new()),
                interrupts: NoWires,
                physical: NoOp,
            });
            iommu.start(&Config::nested()).expect("capacities that work");
            let own = size_of_val(&iommu) - size_of_val(iommu.backend());
            println!("{own} VIommu<_, {}, {}, {}, {}, {}>", $devices, $batch, $cache, $itags, $groups);
        )*
    };
}

fn main() {
    sizes! {
        16, 1, 0, 1, 0;
        16, 16, 0, 2, 8;
        17, 16, 0, 2, 8;
        16, 17, 0, 2, 8;
        16, 16, 1, 2, 8;
        16, 16, 2, 2, 8;
        16, 16, 0, 3, 8;
        16, 16, 0, 2, 9;
        64, 16, 0, 2, 8;
        64, 16, 64, 2, 8;
        256, 64, 256, 32, 64;
    }
}
