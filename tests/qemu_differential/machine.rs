//! Which QEMU there is, and the machine it is started as.

use std::env;
use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::qtest::Qtest;

/// Where the machine has its IOMMU.
pub(crate) const IOMMU: u64 = 0x0301_0000;

/// Memory of the machine, and of the crate's guest.
pub(crate) const RAM: std::ops::Range<u64> = 0x8000_0000..0xc000_0000;

const ARGUMENTS: [&str; 12] = [
    "-machine",
    "virt,aia=aplic-imsic,aia-guests=1,iommu-sys=on",
    "-cpu",
    "rva23s64",
    "-m",
    "1G",
    "-bios",
    "none",
    "-display",
    "none",
    "-nodefaults",
    "-no-user-config",
];

const HOW: &str = "examples/hypervisor/run --setup gets one, or set QEMU to a qemu-system-riscv64 of 10.0 or later";

/// A version of QEMU that a list of deviations is known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V10_0,
    /// And later.
    V11_1,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V10_0 => "10.0",
            Self::V11_1 => "11.1",
        })
    }
}

/// QEMU as the environment variable QEMU names it: a path, or a command with its first arguments; without one as
/// the example hypervisor got it, or as the system has it.
fn qemu() -> Command {
    let given = env::var("QEMU").unwrap_or_default();
    let set_up = concat!(env!("CARGO_MANIFEST_DIR"), "/target/hypervisor/qemu/qemu-system-riscv64");
    if Path::new(&given).is_file() {
        return Command::new(given);
    }
    let mut words = given.split_whitespace();
    let program = words.next().unwrap_or(if Path::new(set_up).is_file() { set_up } else { "qemu-system-riscv64" });
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// Starts it, halted.
pub(crate) fn start() -> Result<(Qtest, Version), String> {
    let mut asked = qemu();
    let name = asked.get_program().display().to_string();
    let said = asked.arg("--version").output().map_err(|why| format!("no {name} that starts ({why}): {HOW}"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = version(&said).ok_or_else(|| format!("{name} is no QEMU that knows its version: {HOW}"))?;
    let version = match version {
        (0..10, _) => return Err(format!("{name} has no RISC-V IOMMU, 10.0 is the first with one: {HOW}")),
        (10, 0) => Version::V10_0,
        (10, _) | (11, 0) => return Err(format!("how {name} deviates is not listed, of 10.0 and 11.1 it is: {HOW}")),
        _ => Version::V11_1,
    };
    println!("{}", said.lines().next().unwrap_or_default());
    Ok((Qtest::start(qemu(), &ARGUMENTS)?, version))
}

/// Major and minor number in "QEMU emulator version 11.1.3 (…)".
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("QEMU emulator version ")?.split(['.', ' ', '\n']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[test]
fn the_version_is_what_qemu_says() {
    assert_eq!(version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright"), Some((11, 1)));
    assert_eq!(version("QEMU emulator version 10.0\n"), Some((10, 0)));
    assert_eq!(version("qemu-img version 1"), None);
}
