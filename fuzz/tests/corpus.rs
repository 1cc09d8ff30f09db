//! The seeds, and what was found once, through every target: without libFuzzer, on any toolchain.

use std::fs;
use std::path::{Path, PathBuf};

use riscv_viommu_fuzz::{TARGETS, looked, seeds::seeds};

/// What is in a folder of inputs that failed once.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("a file or folder").path()).collect()
}

/// An input that failed once: hexadecimal digits in a text file, so that what it is can be said beside it.
fn regression(file: &Path) -> Vec<u8> {
    let text = fs::read_to_string(file).expect("a text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: Vec<u8> = lines.flat_map(str::bytes).filter(|byte| !byte.is_ascii_whitespace()).collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    assert!(rest.is_empty() && !pairs.is_empty(), "{} has {} digits", file.display(), digits.len());
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("two digits");
    pairs.iter().map(byte).collect()
}

#[test]
fn every_seed_and_all_that_was_found_once_passes() {
    for (target, run) in TARGETS {
        let seeds = seeds(target);
        assert!(seeds.len() >= 6, "{target} has {} seeds", seeds.len());
        for seed in &seeds {
            run(seed);
        }
    }
    for folder in entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")) {
        let is_its = |(target, _): &&(&str, fn(&[u8]))| folder.ends_with(target);
        let (_, run) = TARGETS.iter().find(is_its).unwrap_or_else(|| panic!("{} is no target", folder.display()));
        for file in entries(&folder) {
            println!("{}", file.display());
            run(&regression(&file));
        }
    }
    for (what, times) in looked() {
        assert!(times != 0, "no seed leads to {what}");
    }
}
