//! Lines of text through the SBI debug console: each line is one call.

use core::fmt::{Arguments, Write};

use heapless::String;
use sbi_rt::Physical;

/// Prints one line. What does not fit is cut.
pub(crate) fn line(text: Arguments) {
    let mut buffer = String::<600>::new();
    let _ = buffer.write_fmt(text);
    while buffer.push('\n').is_err() {
        buffer.pop();
    }
    let mut rest = buffer.as_bytes();
    while !rest.is_empty() {
        let written = sbi_rt::console_write(Physical::new(rest.len(), rest.as_ptr() as usize, 0));
        match written.into_result() {
            Ok(written) => rest = &rest[written..],
            Err(_) => return,
        }
    }
}

/// Prints one line.
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(format_args!($($text)*)) };
}
pub(crate) use say;
