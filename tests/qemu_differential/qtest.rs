//! QEMU's qtest protocol: lines of text, one answer for each; many go out together, for a round trip costs more than
//! what is asked.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use riscv_viommu::Width;

/// More than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A halted QEMU.
#[derive(Debug)]
pub(crate) struct Qtest {
    process: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

/// Lines to send together.
#[derive(Debug, Default)]
pub(crate) struct Script {
    text: String,
    lines: usize,
}

/// What QEMU answered to a [`Script`], in its order, as far as there was something to say.
#[derive(Debug)]
pub(crate) struct Answers(VecDeque<String>);

impl Script {
    pub(crate) fn write(&mut self, at: u64, width: Width, value: u64) {
        if width == Width::U32 {
            self.line(format_args!("writel {at:#x} {:#x}", value & 0xffff_ffff));
        } else {
            self.line(format_args!("writeq {at:#x} {value:#x}"));
        }
    }

    /// Answered by a [`number`](Answers::number).
    pub(crate) fn read(&mut self, at: u64, width: Width) {
        self.line(format_args!("read{} {at:#x}", if width == Width::U32 { 'l' } else { 'q' }));
    }

    pub(crate) fn write_words(&mut self, at: u64, words: &[u64]) {
        let mut hex = String::new();
        for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
            let _ = write!(hex, "{byte:02x}");
        }
        self.line(format_args!("write {at:#x} {:#x} 0x{hex}", words.len() * 8));
    }

    /// Answered by [`words`](Answers::words).
    pub(crate) fn read_words(&mut self, at: u64, count: usize) {
        self.line(format_args!("read {at:#x} {:#x}", count * 8));
    }

    pub(crate) fn clear(&mut self, at: u64, bytes: u64) {
        self.line(format_args!("memset {at:#x} {bytes:#x} 0x0"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.text, "{line}");
        self.lines += 1;
    }
}

impl Answers {
    pub(crate) fn number(&mut self) -> Result<u64, String> {
        let text = self.next()?;
        let number = text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        number.ok_or_else(|| format!("QEMU answered '{text}' where a number was expected"))
    }

    pub(crate) fn words(&mut self, count: usize) -> Result<Vec<u64>, String> {
        let text = self.next()?;
        let hex = text.strip_prefix("0x").filter(|hex| hex.len() == count * 16);
        let word = |digits: &[u8]| u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok().map(u64::swap_bytes);
        let words = hex.and_then(|hex| hex.as_bytes().chunks_exact(16).map(word).collect());
        words.ok_or_else(|| format!("QEMU answered '{text}' where {count} words of memory were expected"))
    }

    fn next(&mut self) -> Result<String, String> {
        self.0.pop_front().ok_or_else(|| "QEMU was asked for less than is looked for".to_owned())
    }
}

impl Qtest {
    /// Starts QEMU with these arguments, halted.
    pub(crate) fn start(mut qemu: Command, arguments: &[&str]) -> Result<Self, String> {
        qemu.args(arguments).args(["-S", "-qtest", "stdio", "-qtest-log", "/dev/null"]);
        let mut process = qemu
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|why| format!("{} does not start: {why}", qemu.get_program().display()))?;
        let (Some(requests), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("QEMU has no standard input and output".to_owned());
        };
        let (sender, answers) = channel();
        // A thread, so that a QEMU that hangs does not hang the test.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, requests, answers })
    }

    pub(crate) fn run(&mut self, script: &Script) -> Result<Answers, String> {
        self.requests.write_all(script.text.as_bytes()).map_err(|_| self.ended())?;
        let mut answers = VecDeque::new();
        for line in script.text.lines().take(script.lines) {
            let answer = self.answer()?;
            match answer.strip_prefix("OK") {
                Some("") => {}
                Some(said) => answers.push_back(said.trim_start().to_owned()),
                None => return Err(format!("QEMU refused '{line}': {answer}")),
            }
        }
        Ok(Answers(answers))
    }

    fn answer(&mut self) -> Result<String, String> {
        loop {
            match self.answers.recv_timeout(PATIENCE) {
                // Said unasked.
                Ok(line) if line.starts_with("IRQ ") => {}
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) => return Err(format!("QEMU did not answer for {PATIENCE:?}")),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        }
    }

    fn ended(&mut self) -> String {
        let status = self.process.wait().map_or_else(|why| why.to_string(), |status| status.to_string());
        format!("QEMU has ended ({status}); what it said is above")
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
