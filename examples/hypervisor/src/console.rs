//! The console: the firmware's, shared by the hypervisor and its guests line by line.

use core::fmt::{self, Write};

use sbi_rt::Physical;
use spin::Mutex;

static CONSOLE: Mutex<()> = Mutex::new(());

struct Firmware;

impl Write for Firmware {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let written = sbi_rt::console_write(Physical::new(bytes.len(), bytes.as_ptr() as usize, 0));
            bytes = bytes.get(written.value..).filter(|_| written.is_ok()).ok_or(fmt::Error)?;
        }
        Ok(())
    }
}

/// Prints a line.
pub(crate) fn print(line: fmt::Arguments<'_>) {
    let _guard = CONSOLE.lock();
    // A console that fails has nobody it could tell.
    let _ = writeln!(Firmware, "{line}");
}

/// Prints a line whatever the other harts do: before everything ends.
pub(crate) fn print_last(line: fmt::Arguments<'_>) {
    let _ = writeln!(Firmware, "{line}");
}

/// Prints a line.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::console::print(format_args!($($part)*))
    };
}

pub(crate) use say;

/// A guest's line on its way.
#[derive(Debug, Default)]
pub(crate) struct Line(heapless::Vec<u8, 512>);

impl Line {
    /// Takes a byte. The line is there when it ends, or is as long as lines may be.
    pub(crate) fn push(&mut self, byte: u8) -> Option<heapless::String<512>> {
        // What would do something to a terminal, or to who reads the log, does nothing.
        let shown = if byte.is_ascii_control() && byte != b'\t' { b'?' } else { byte };
        if byte == b'\r' || byte != b'\n' && self.0.push(shown).is_ok() {
            return None;
        }
        let line = heapless::String::try_from(core::str::from_utf8(&self.0).unwrap_or("(not UTF-8)")).ok();
        self.0.clear();
        if byte != b'\n' {
            // The one that did not fit begins the next line.
            let _fits = self.0.push(shown);
        }
        line
    }
}
