//! A small hypervisor that gives each guest its own RISC-V IOMMU; see the README beside it.
#![cfg_attr(target_arch = "riscv64", no_std, no_main)]

#[cfg(target_arch = "riscv64")]
mod boot;
#[cfg(target_arch = "riscv64")]
mod canary;
#[cfg(target_arch = "riscv64")]
mod console;
#[cfg(target_arch = "riscv64")]
mod hart;
#[cfg(target_arch = "riscv64")]
mod report;
#[cfg(target_arch = "riscv64")]
mod sbi;
#[cfg(target_arch = "riscv64")]
mod vm;

#[cfg(not(target_arch = "riscv64"))]
fn main() {
    eprintln!("the hypervisor runs on riscv64gc-unknown-none-elf: start it with examples/hypervisor/run");
    std::process::exit(2);
}
