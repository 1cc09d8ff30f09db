//! The walls between modules: imports go down the layer table in the documentation of `src/lib.rs`, or to the left
//! within a row.
//!
//! A path counts wherever it is written, in a `use` or in code. It is resolved through `crate`, `self`, `super`, child
//! modules and names imported before, and has the place of the longest part of it that the table knows. So a format
//! does not see the folder it is in. What a module re-exports it imports, so no re-export is a way around.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "only a test")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Every module with a place of its own, lowest first. Others share the place of the module they are in.
fn order() -> Vec<String> {
    let root = fs::read_to_string(Path::new(SRC).join("lib.rs")).unwrap();
    let section = root.lines().skip_while(|line| *line != "//! # Layers").skip(1);
    section
        .take_while(|line| !line.starts_with("//! # "))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() > 2 && cells[1].parse::<u8>().is_ok())
        .flat_map(|cells| cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The place of what a path leads to: that of the longest part of it that has one.
fn place(order: &[String], path: &[&str]) -> Option<usize> {
    (1..=path.len()).rev().find_map(|length| order.iter().position(|known| *known == path[..length].join("::")))
}

/// Length of the string, character, comment, name or sign that the text begins with, and whether it is code.
fn lexeme(text: &str) -> (usize, bool) {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let until = |from: usize, end: &str| text.split_at(from).1.find(end).map_or(text.len(), |at| from + at + end.len());
    let first = text.chars().next().unwrap();
    let raw = text.strip_prefix("br").or_else(|| text.strip_prefix('r')).unwrap_or_default();
    let quoted = raw.trim_start_matches('#');
    if text.starts_with("//") {
        (until(2, "\n"), false)
    } else if text.starts_with("/*") {
        (until(2, "*/"), false)
    } else if quoted.starts_with('"') {
        (until(text.len() - quoted.len() + 1, &format!("\"{}", "#".repeat(raw.len() - quoted.len()))), false)
    } else if first == '"' {
        let plain = text.replacen('"', "-", 1).replace("\\\\", "--").replace("\\\"", "--");
        (plain.find('"').map_or(text.len(), |at| at + 1), false)
    } else if text.starts_with("'\\") {
        (until(3, "'"), false)
    } else if first == '\'' && text.chars().nth(2) == Some('\'') {
        (until(1, "'"), false)
    } else if is_name(first) {
        (text.find(|c| !is_name(c)).unwrap_or(text.len()), true)
    } else if text.starts_with("::") || text.starts_with("..") {
        (2, true)
    } else {
        (first.len_utf8(), !first.is_whitespace())
    }
}

fn tokens(mut text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    while !text.is_empty() {
        let (length, is_code) = lexeme(text);
        let (token, rest) = text.split_at(length);
        tokens.extend(is_code.then_some(token));
        text = rest;
    }
    tokens
}

/// Where the item ends that begins `at`. Too early rather than too late: then the rest of it is checked as well.
fn after_item(tokens: &[&str], at: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(at) {
        match (*token, depth) {
            ("(" | "[" | "{", _) => depth += 1,
            (")" | "]" | "}", 0) => return at,
            ("}", 1) | (";" | ",", 0) => return at + 1,
            (")" | "]" | "}", _) => depth -= 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Names and what they lead to, as paths from the crate's root.
type Names<'a> = Vec<(&'a str, Vec<&'a str>)>;

/// Follows the path that begins `at`, inside the module `path`, into each branch of its groups. Returns where it ends.
fn follow<'a>(tokens: &[&'a str], mut at: usize, mut path: Vec<&'a str>, found: &mut Names<'a>) -> usize {
    loop {
        match tokens[at] {
            "{" => {
                at += 1;
                while tokens[at] != "}" {
                    at = if tokens[at] == "," { at + 1 } else { follow(tokens, at, path.clone(), found) };
                }
                return at + 1;
            }
            // What a glob leads to is not known: it counts as all of the crate.
            "crate" | "*" => path.clear(),
            "super" => drop(path.pop()),
            "self" => {}
            "<" => break,
            name => path.push(name),
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    let renamed = (tokens[at..].first() == Some(&"as")).then(|| tokens[at + 1]);
    found.push((renamed.or(path.last().copied()).unwrap_or_default(), path));
    at
}

/// What the source of a module names in this crate, outside of items that are only for tests.
fn imports<'a>(module: &[&'a str], source: &'a str) -> Vec<Vec<&'a str>> {
    let tokens = tokens(source);
    let (mut module, mut ends) = (module.to_vec(), Vec::new());
    let (mut names, mut found) = (HashMap::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if ends.pop_if(|end| *end <= at).is_some() {
            module.pop();
        }
        let before = &tokens[..at];
        let begins = !before.ends_with(&["::"]) && !before.ends_with(&["."]) && !before.ends_with(&["(", "in"]);
        let mut paths = Vec::new();
        at = match tokens[at..] {
            ["#", "[", "cfg", "(", "test", ")", "]", ..] => after_item(&tokens, at + 7),
            ["mod", name, end @ ("{" | ";"), ..] => {
                names.insert(name, [&module[..], &[name]].concat());
                if end == "{" {
                    module.push(name);
                    ends.push(after_item(&tokens, at));
                }
                at + 3
            }
            ["crate" | "self" | "super", "::" | "as", ..] if begins => follow(&tokens, at, module.clone(), &mut paths),
            [name, "::", ..] if begins && names.contains_key(name) => {
                follow(&tokens, at + 2, names[name].clone(), &mut paths)
            }
            _ => at + 1,
        };
        found.extend(paths.iter().map(|(_, path)| path.clone()));
        names.extend(paths);
    }
    found
}

/// Those imports of a module that go up or to the right, or to no module at all.
fn illegal(order: &[String], module: &[&str], imports: &[Vec<&str>]) -> Vec<String> {
    let own = place(order, module);
    let is_legal = |path: &[&str]| place(order, path).is_some_and(|imported| Some(imported) <= own);
    imports.iter().filter(|path| !is_legal(path)).map(|path| format!("crate::{}", path.join("::"))).collect()
}

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

#[test]
fn imports_go_down_the_layers() {
    let (root, order) = (Path::new(SRC), order());
    for (at, name) in order.iter().enumerate() {
        let path = root.join(name.replace("::", "/"));
        assert!(path.with_extension("rs").is_file() || path.join("mod.rs").is_file(), "{name} of the table is no file");
        assert!(!order[..at].contains(name), "{name} is in the table twice");
    }
    let (mut files, mut seen) = (Vec::new(), 0);
    sources(root, &mut files);
    for file in files {
        let relative = file.strip_prefix(root).unwrap().with_extension("");
        let module: Vec<&str> = relative.iter().map(|name| name.to_str().unwrap()).filter(|n| *n != "mod").collect();
        if module == ["lib"] || module.contains(&"tests") {
            continue;
        }
        assert!(place(&order, &module).is_some(), "{module:?} has no place in the layer table of src/lib.rs");
        let source = fs::read_to_string(&file).unwrap();
        let imports = imports(&module, &source);
        let illegal = illegal(&order, &module, &imports);
        assert!(illegal.is_empty(), "{} may not import {}", module.join("::"), illegal.join(", "));
        seen += imports.len();
    }
    assert!(seen > 200, "only {seen} imports were found: the search does not work");
}

#[test]
fn an_illegal_import_is_found() {
    let order = order();
    let count = |module: &str, source: &str| {
        let module: Vec<&str> = module.split("::").collect();
        illegal(&order, &module, &imports(&module, source)).len()
    };
    for (module, source) in [
        ("mem", "use super::cmdq::CommandQueue;"),
        ("mem", "use super as up;"),
        ("mem", "fn f() { for x in 0..crate::VIommu::MOST {} }"),
        ("mem", "mod deep { use super::super::{addr::{self}, id::DeviceId,\n  nest::{Nest}}; }"),
        ("nest::batch", "use super::super::cmdq;"),
        ("nest::batch", "fn f(slot: super::Slot, c: super::super::cmdq::Env) {}"),
        ("regs::capabilities", "use super::super::viommu::VIommu;"),
        ("regs::layout", "use crate::regs::file::Registers;"),
        ("regs::layout", "use super::{file::Registers};"),
        ("regs", "mod file;\npub(crate) use file::Registers;"),
        ("backend", "use crate::regs as r;\nfn f(_: &r::file::Registers) {}"),
        ("ddt::entry", "use super::Directory;"),
        ("cmdq::command::bits", "use super::super::*;"),
        ("faultq::record", "use crate::{error::{self},\n  faultq::FaultQueue};"),
        ("id", "#[cfg(test)]\nmod tests { fn f() { '}'; \"}\"; } }\nuse crate::mem::View;"),
        ("id", "#[cfg(test)]\nmod tests;\nuse crate::mem::View;"),
        ("id", "struct S { #[cfg(test)] a: u8, b: super::mem::View }"),
    ] {
        assert_eq!(count(module, source), 1, "{module}: {source}");
    }
    for (module, source) in [
        ("mem", "use super::{addr::Gpa, backend::{GuestMemory, Post}};\n/// [`crate::VIommu`]\nfn f() {}"),
        ("mem", "/* crate::cmdq::X */ const S: &str = r#\"crate::\"cmdq::X\"#;\nconst C: char = '\\'';"),
        ("mem", "const S: &str = \"\\\\\\\"crate::cmdq::X\"; // super::cmdq::X"),
        ("id", "#[cfg(test)]\n#[path = \"x\"]\nmod tests { use crate::mock::Memory; }\nuse crate::error::IdError;"),
        ("id", "#[cfg(test)]\nuse crate::mock::{guest::{self}, Memory};"),
        ("ddt", "mod check;\npub mod entry;\npub use entry::Fsc;\nuse check::{Copied, Rules};\nuse self::entry::Tc;"),
        ("ddt::check", "use super::{Directory, entry::Fsc};\npub(in crate::ddt) fn f() { Fsc::new::<u8>() }"),
        ("regs::file::write", "use super::Registers;\nuse super::super::{Width, layout::Ddtp};"),
    ] {
        assert_eq!(count(module, source), 0, "{module}: {source}");
    }
}
