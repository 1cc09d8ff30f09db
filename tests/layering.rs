//! The walls between modules: imports go down, or to the left within a row.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that can not read the sources fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Every module, lowest first: a module may import only those before it. Submodules share the place of the module
/// they are in, unless they are named here.
const ORDER: &[&str] = &[
    "error",
    "id",
    "addr",
    "progress", // 0
    "regs",
    "fault",
    "backend", // 1
    "config",
    "mem",
    "ring",
    "ddt::entry",
    "cmdq::command",
    "faultq::record", // 2
    "ddt",            // 4
    "interrupt",
    "faultq",
    "nest",
    "cmdq",   // 6
    "viommu", // 8
    "mock",   // 9
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The place of the module a path of names leads to: the longest prefix that has one.
fn place(names: &[&str]) -> Option<usize> {
    (1..=names.len().min(2)).rev().find_map(|length| {
        let module = names[..length].join("::");
        ORDER.iter().position(|known| **known == *module)
    })
}

/// Every `crate::…` path of the code outside comments and test modules, with groups taken apart at the first level.
fn imports(source: &str) -> Vec<Vec<String>> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join(" ");
    code.split("crate::")
        .skip(1)
        .map(|rest| {
            let path: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
            path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn imports_go_down_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut seen = 0;
    for file in files {
        let relative = file.strip_prefix(&root).unwrap().with_extension("");
        let names: Vec<&str> =
            relative.iter().map(|name| name.to_str().unwrap()).filter(|name| *name != "mod").collect();
        if names == ["lib"] || names.ends_with(&["tests"]) {
            continue;
        }
        let own = place(&names).unwrap_or_else(|| panic!("src/{} has no place in ORDER", relative.display()));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            let import: Vec<&str> = import.iter().map(String::as_str).collect();
            let imported = place(&import).unwrap_or_else(|| {
                panic!(
                    "src/{}: crate::{} is not a module of ORDER: import from the module that \
                    defines it, not from the root",
                    relative.display(),
                    import.join("::")
                )
            });
            assert!(imported <= own, "src/{}: {} may not import {}", relative.display(), ORDER[own], ORDER[imported]);
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} imports were found: the search does not work");
}
