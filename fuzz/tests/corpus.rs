//! The seeds, and what was found once, through every target: without libFuzzer, on any toolchain.

use std::fs;
use std::path::Path;

use riscv_viommu_fuzz::{TARGETS, seeds::seeds};

/// Inputs that failed once: hexadecimal digits in text files, so that what they are can be said beside them.
fn regressions(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target);
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let read = |path: &Path| {
        let text = fs::read_to_string(path).expect("a text");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let digits: Vec<u8> = lines.flat_map(str::bytes).filter(|byte| !byte.is_ascii_whitespace()).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("two digits");
        (path.display().to_string(), digits.chunks(2).map(byte).collect())
    };
    files.map(|file| read(&file.expect("a file").path())).collect()
}

#[test]
fn every_seed_and_all_that_was_found_once_passes() {
    for (target, run) in TARGETS {
        let seeds = seeds(target);
        assert!(seeds.len() >= 6, "{target} has {} seeds", seeds.len());
        for seed in &seeds {
            run(seed);
        }
        for (name, input) in regressions(target) {
            println!("{name}");
            run(&input);
        }
    }
}
