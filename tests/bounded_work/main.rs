//! What one call may cost the host, whatever guest and host do: each call of hostile histories is held against its
//! bound in `docs/assurance.md`, histories that cost more are kept and changed further, and worst cases are built by
//! hand.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod calls;
mod cost;
mod fan_out;
mod guest;
mod host;
#[path = "../random/mod.rs"]
mod random;
mod search;
mod translation;
mod worst;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names of the public functions of `VIommu` and of what is defined with it.
fn entry_points() -> BTreeSet<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folder = fs::read_dir(src.join("viommu")).unwrap().map(|file| file.unwrap().path());
    let sources = folder.chain([src.join("viommu.rs")]).map(|file| fs::read_to_string(file).unwrap());
    let name = |line: &str| {
        let rest = line.trim_start().strip_prefix("pub ")?;
        let rest = rest.strip_prefix("const ").unwrap_or(rest).strip_prefix("fn ")?;
        rest.split(['(', '<']).next().map(str::to_owned)
    };
    sources.flat_map(|source| source.lines().filter_map(name).collect::<Vec<_>>()).collect()
}

#[test]
fn every_entry_point_has_a_bound_a_row_and_a_call_in_the_search() {
    let limits = guest::limits(1);
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/assurance.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Bounded work")).unwrap();
    let rows: String = section.lines().filter(|line| line.starts_with('|')).collect();
    let names = entry_points();
    assert!(names.contains("run") && names.contains("translate") && names.contains("snapshot"));
    for name in &names {
        assert!(limits.of(name).is_some(), "`{name}` has no bound");
        assert!(rows.contains(&format!("`{name}`")), "`{name}` has no row in docs/assurance.md");
        // What begins every history is `worst`'s.
        assert!(name == "start" || search::CALLS.contains(&name.as_str()), "the search does not call `{name}`");
    }
}
