//! Replays what a real guest's driver did against [`riscv_viommu::VIommu`], and says whether it went as recorded.
//!
//! ```text
//! cargo run --example replay              # a trace that is built in
//! cargo run --example replay -- FILE...
//! ```
//!
//! A trace (`tests/traces`) holds the register accesses of a driver and the guest memory they depend on. Each is
//! replayed twice, against a physical IOMMU whose fences are complete at once and one whose fences are complete late.
//! The answers are compared with the recorded ones; an independent checker compares the orders the physical IOMMU was
//! given with the commands the guest gave.

#[path = "replay/mod.rs"]
mod replay;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use replay::host::Fences;
use replay::report::Report;
use replay::trace::Trace;

const USAGE: &str = "\
Usage: replay [FILE...]

Replays traces of register accesses against a vIOMMU and reports what came of it.
Without FILE: linux-dma-api-range.trace, which is built in.

Exit status: 0 if all went as recorded, 1 if not, 2 if a FILE or the command line is no good.
";

fn main() -> ExitCode {
    let (text, status) = match run() {
        Ok(result) => result,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "replay: {error}");
            return ExitCode::from(2);
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => status,
        Err(_) => ExitCode::from(2),
    }
}

fn run() -> Result<(String, ExitCode), Box<dyn Error>> {
    let Some(files) = arguments()? else {
        return Ok((USAGE.to_owned(), ExitCode::SUCCESS));
    };
    let mut traces = Vec::new();
    for file in &files {
        let name = Path::new(file).display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| format!("{name} can not be read: {error}"))?;
        traces.push((name, text));
    }
    if traces.is_empty() {
        // Of the traces the one in which no order hides another: each kind of command counts.
        let text = include_str!("../tests/traces/linux-dma-api-range.trace");
        traces.push(("linux-dma-api-range.trace (built in)".to_owned(), text.to_owned()));
    }
    let mut text = String::new();
    let (mut accesses, mut mismatches, mut violations) = (0_usize, 0_usize, 0_usize);
    for (name, lines) in &traces {
        let trace: Trace = lines.parse().map_err(|error| format!("{name}, {error}"))?;
        let replay = |fences| replay::replay(&trace, fences, &mut |_| {}).map_err(|error| format!("{name}: {error}"));
        let (at_once, late) = (replay(Fences::AtOnce)?, replay(Fences::Late)?);
        text.push_str(&Report { name, at_once: &at_once, late: &late }.to_string());
        accesses = accesses.saturating_add(trace.steps.len());
        // What goes wrong both times is counted once.
        mismatches = mismatches.saturating_add(at_once.mismatches.len().max(late.mismatches.len()));
        violations = violations.saturating_add(at_once.violations.len().max(late.violations.len()));
    }
    Ok(if mismatches == 0 && violations == 0 {
        (format!("{text}ok: {accesses} accesses, 0 mismatches\n"), ExitCode::SUCCESS)
    } else {
        let last = format!("failed: {accesses} accesses, {mismatches} mismatches, {violations} violations\n");
        (text + &last, ExitCode::FAILURE)
    })
}

/// The files to replay; `None` if the usage is asked for.
fn arguments() -> Result<Option<Vec<OsString>>, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(None),
            lexopt::Arg::Value(file) => files.push(file),
            other => return Err(format!("{}; --help says what is", other.unexpected()).into()),
        }
    }
    Ok(Some(files))
}
