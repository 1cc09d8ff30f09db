//! The guest's console, and the words on it that are for the hypervisor: lines that begin with `@hv`.
//!
//! A guest can hurt only itself with them: it says how its own test went, and has its own device's context or its own
//! second stage damaged and mended.

use heapless::String;
use hypervisor::backend::context;
use hypervisor::machine::{GUEST_RAM, guest};
use riscv_viommu::Gpa;

use super::{Verdict, Vm};
use crate::console::say;

/// Bytes printed with one call, at most; the guest calls again for the rest.
const CHUNK: u64 = 512;

impl Vm {
    /// Prints `length` bytes of guest memory, as far as one call goes. How many bytes were printed.
    pub(super) fn print(&mut self, at: Gpa, length: u64) -> u64 {
        let mut printed = 0;
        while printed < length.min(CHUNK) {
            let Some(byte) = at.checked_add(printed).and_then(|at| self.iommu.backend().memory.byte(at)) else { break };
            self.print_byte(byte);
            printed += 1;
        }
        printed
    }

    pub(super) fn print_byte(&mut self, byte: u8) {
        if let Some(line) = self.line.push(byte) {
            say!("{}| {line}", self.name);
            if let Some(words) = line.strip_prefix("@hv ") {
                self.obey(words);
            }
        }
    }

    fn obey(&mut self, words: &str) {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        let text = || String::try_from(rest).unwrap_or_default();
        match (verb, rest) {
            ("pass", _) => self.conclude(Verdict::Pass(text())),
            ("fail", _) => self.conclude(Verdict::Fail(text())),
            ("snapshot", _) if self.blueprint.options.snapshots => self.save_and_restore(),
            // Not asked for.
            ("snapshot", _) => {}
            ("break-context", _) => self.break_contexts(true),
            ("hole", "all") => {
                let (_, size) = GUEST_RAM[self.id.index()];
                let mut at = guest::RAM.get();
                while at < guest::RAM.get() + size {
                    at += self.punch(Gpa::new(at)).unwrap_or(size);
                }
                self.flush();
            }
            ("hole", address) => match u64::from_str_radix(address.trim_start_matches("0x"), 16) {
                Ok(address) => {
                    self.punch(Gpa::new(address));
                    self.flush();
                }
                Err(_) => say!("hypervisor: {}: no address: {words}", self.name),
            },
            ("heal", _) => {
                self.break_contexts(false);
                while let Some(hole) = self.holes.pop() {
                    hole.fill();
                }
                self.flush();
            }
            _ => say!("hypervisor: {}: not understood: {words}", self.name),
        }
    }

    /// The first failure counts, whatever follows.
    pub(super) fn conclude(&mut self, verdict: Verdict) {
        if !matches!(self.verdict, Some(Verdict::Fail(_))) {
            self.verdict = Some(verdict);
        }
    }

    /// What a fault of the host's memory would do to the physical contexts.
    fn break_contexts(&mut self, broken: bool) {
        for words in self.iommu.backend().physical.inner.contexts() {
            context::set_valid(words, !broken);
        }
        self.flush();
    }

    /// Takes the leaf that maps `at` out of the DMA second stage. How far the next one is.
    fn punch(&mut self, at: Gpa) -> Option<u64> {
        let hole = self.dma_stage.unmap(at)?;
        let next = hole.first.get() + hole.size - at.get();
        // One place for each leaf of RAM.
        self.holes.push(hole).ok()?;
        Some(next)
    }

    fn flush(&mut self) {
        if self.iommu.backend_mut().physical.inner.flush().is_err() {
            say!("hypervisor: {}: the IOMMU does not flush", self.name);
        }
    }
}
