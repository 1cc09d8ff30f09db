//! Links the binary to where the firmware enters it; on other machines there is nothing to link.

fn main() {
    println!("cargo::rerun-if-changed=hypervisor.ld");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("riscv64") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-T{folder}/hypervisor.ld");
    }
}
