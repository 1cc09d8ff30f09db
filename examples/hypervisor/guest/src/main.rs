//! A guest that drives its RISC-V IOMMU as no operating system does, and checks real DMA of an NVMe controller.
//!
//! It runs in VS-mode under the hypervisor of this folder, and as well in S-mode on the machine itself, where the IOMMU
//! is QEMU's. Its command line says what it does:
//!
//! * `mode=conformance`: the checks of `checks/`, each with its own line; `only=TEXT` picks those whose name has TEXT.
//! * `mode=conformance scenario=NAME`: one of the experiments of `scenario.rs`.
//! * `native=yes`: it runs on the machine itself, and excuses what QEMU's IOMMU is known to get wrong.
//! * `mode=hostile seed=N`: for ever, whatever might hurt; see `hostile/`.
//!
//! Lines that begin with `@hv` are for the hypervisor: verdicts, and what it is to do to this guest.
#![no_std]
#![no_main]

mod bench;
mod checks;
mod console;
mod csr;
mod hostile;
mod imsic;
mod iommu;
mod memory;
mod mmio;
mod nvme;
mod pci;
mod scenario;
mod start;
mod tables;
mod verdict;

use bench::Bench;
use start::Orders;

/// What `start` comes to.
fn run(orders: &Orders) -> ! {
    let mut bench = Bench::new(orders);
    match (orders.get("mode").unwrap_or("conformance"), orders.get("scenario")) {
        ("conformance", None) => checks::run(&mut bench, orders.get("only").unwrap_or_default()),
        ("conformance", Some(name)) => scenario::run(&mut bench, name),
        ("hostile", None) => {
            let seed = orders.get("seed").map_or(Ok(1), str::parse).expect("a number after seed=");
            hostile::run(&mut bench, seed)
        }
        (mode, scenario) => panic!("no mode {mode} with scenario {scenario:?}"),
    }
    start::shut_down()
}
