//! Links to a flat binary that is entered at its first byte.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=guest.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo:rustc-link-arg-bins=-T{here}/guest.ld");
        println!("cargo:rustc-link-arg-bins=--oformat=binary");
    }
}
