//! Reading a trace: one line for each access, and before it the guest memory it depends on.

use std::fmt;
use std::str::FromStr;

use riscv_viommu::Width;

/// What a guest's driver did, in order.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// What the first read, that of `capabilities`, was answered with.
    pub(crate) capabilities: u64,
    pub(crate) steps: Vec<Step>,
}

/// One access, and what is in guest memory when it is made.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) line: usize,
    /// Addresses and words that changed, or are shown for the first time.
    pub(crate) memory: Vec<(u64, u64)>,
    pub(crate) access: Access,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) is_write: bool,
    pub(crate) offset: u64,
    pub(crate) width: Width,
    /// What is written, or what the recording vIOMMU answered.
    pub(crate) value: u64,
}

/// A line that is not understood, and what would be.
#[derive(Debug)]
pub(crate) struct ParseError {
    pub(crate) line: usize,
    what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl FromStr for Trace {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut steps = Vec::new();
        let mut memory = Vec::new();
        let mut last = 0;
        for (line, text) in (1..).zip(text.lines()) {
            last = line;
            let fail = |what| ParseError { line, what };
            let fields: Vec<&str> = text.split_whitespace().collect();
            match *fields.as_slice() {
                [] => {}
                [word, ..] if word.starts_with('#') => {}
                ["mem", at, ref words @ ..] => memory.extend(memory_line(at, words).map_err(fail)?),
                [kind @ ("read" | "write"), offset, size, value] => {
                    let access = access(kind == "write", offset, size, value).map_err(fail)?;
                    steps.push(Step { line, memory: std::mem::take(&mut memory), access });
                }
                ["read" | "write", ..] => {
                    return Err(fail(format!(
                        "{text:?} should be an offset, a size and a value, as in `read 010 8 0`"
                    )));
                }
                [word, ..] => return Err(fail(format!("{word:?} should be `read`, `write`, `mem` or `#`"))),
            }
        }
        // The vIOMMU is set up by this answer, so nothing can be replayed without it.
        match steps.iter().find(|step| !step.access.is_write) {
            Some(Step { access: Access { offset: 0, width: Width::U64, value, .. }, .. }) => {
                Ok(Self { capabilities: *value, steps })
            }
            first => Err(ParseError {
                line: first.map_or(last, |step| step.line),
                what: "the first read should be that of capabilities, as in `read 000 8 3800000e10`; record from the \
                       driver's first access on"
                    .to_owned(),
            }),
        }
    }
}

fn access(is_write: bool, offset: &str, size: &str, value: &str) -> Result<Access, String> {
    let (width, largest) = match size {
        "4" => (Width::U32, u64::from(u32::MAX)),
        "8" => (Width::U64, u64::MAX),
        _ => return Err(format!("the size {size:?} should be 4 or 8")),
    };
    let access = Access { is_write, offset: hexadecimal(offset)?, width, value: hexadecimal(value)? };
    if access.offset >= 0x1000 {
        return Err(format!("the offset {offset:?} should be below 1000, the size of the register page"));
    }
    if access.value > largest {
        return Err(format!("the value {value:?} should fit the size of {size} bytes"));
    }
    Ok(access)
}

fn memory_line(at: &str, words: &[&str]) -> Result<Vec<(u64, u64)>, String> {
    let first = hexadecimal(at)?;
    if words.is_empty() || !first.is_multiple_of(8) {
        return Err(format!(
            "`mem {at}` should be a multiple of 8 and the words from there on, as in `mem 831e3000 0`"
        ));
    }
    let addresses = std::iter::successors(Some(first), |at| at.checked_add(8));
    addresses.zip(words).map(|(at, word)| Ok((at, hexadecimal(word)?))).collect()
}

fn hexadecimal(digits: &str) -> Result<u64, String> {
    // `from_str_radix` would take a sign.
    let all_digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = all_digits.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    number.ok_or_else(|| format!("{digits:?} should be a hexadecimal number of at most 16 digits, without 0x"))
}
