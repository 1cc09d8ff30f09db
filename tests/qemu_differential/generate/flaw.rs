//! One thing that is wrong with a case.

use crate::random::Random;
use crate::scheme::Scheme;
use crate::walk::Use;

use super::shape::{Access, Messages, Processes, Shape};

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Nothing,
    /// One or two bits somewhere.
    Bits,
    /// `ddtp` Off.
    Off,
    /// `ddtp` Bare: not wrong, but no table counts.
    Bare,
    WideDevice,
    WideProcess,
    /// PID without PV.
    StrayProcess,
    ProcessWithoutDirectory,
    NotSupervisor,
    /// The device directory.
    DirectoryHole,
    DirectoryInvalid,
    DirectoryReserved,
    /// The device context.
    ContextInvalid,
    ContextReserved,
    /// In a way QEMU knows.
    ContextMisconfigured,
    /// In a way it takes for another.
    ContextMistaken,
    /// A process directory that is not used has an unknown mode.
    DirectoryMistaken,
    /// A process of RV32 has a scheme of RV64.
    ProcessMistaken,
    /// The process directory.
    ProcessHole,
    ProcessInvalid,
    ProcessReserved,
    ProcessMode,
    /// An address of the first stage.
    NotCanonical,
    /// Nor is its root mapped by the second.
    NotCanonicalAtAll,
    /// One of the second.
    TooWide,
    /// The same, wide only for `tc.SXL`.
    WideForSxl,
    /// An entry of these kinds.
    First(Spoilt),
    Second(Use, Spoilt),
}

/// What is wrong with an entry of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoilt {
    /// It points to no memory.
    Hole,
    Invalid,
    /// Write without read.
    WriteOnly,
    Reserved,
    /// N where it is not allowed.
    Napot,
    Misaligned,
    /// Not for what the request wants.
    Permission,
    /// For reads, which is enough for tables.
    ReadOnly,
    User,
    Accessed,
    Dirty,
    /// A pointer at the lowest level.
    TooDeep,
    /// A, D or U in a pointer.
    PointerFlags,
}

const FLAWS: [(u64, Flaw); 55] = [
    (1800, Flaw::Nothing),
    (180, Flaw::Bits),
    (30, Flaw::Off),
    (30, Flaw::Bare),
    (30, Flaw::WideDevice),
    (3, Flaw::WideProcess),
    (3, Flaw::StrayProcess),
    (40, Flaw::ProcessWithoutDirectory),
    (3, Flaw::NotSupervisor),
    (60, Flaw::DirectoryHole),
    (30, Flaw::DirectoryInvalid),
    (30, Flaw::DirectoryReserved),
    (30, Flaw::ContextInvalid),
    (4, Flaw::ContextReserved),
    (60, Flaw::ContextMisconfigured),
    (12, Flaw::ContextMistaken),
    (4, Flaw::DirectoryMistaken),
    (4, Flaw::ProcessMistaken),
    (60, Flaw::ProcessHole),
    (60, Flaw::ProcessInvalid),
    (40, Flaw::ProcessReserved),
    (30, Flaw::ProcessMode),
    (30, Flaw::NotCanonical),
    (2, Flaw::NotCanonicalAtAll),
    (40, Flaw::TooWide),
    (2, Flaw::WideForSxl),
    (115, Flaw::First(Spoilt::Hole)),
    (20, Flaw::First(Spoilt::Invalid)),
    (20, Flaw::First(Spoilt::WriteOnly)),
    (20, Flaw::First(Spoilt::Reserved)),
    (20, Flaw::First(Spoilt::Napot)),
    (20, Flaw::First(Spoilt::Misaligned)),
    (30, Flaw::First(Spoilt::Permission)),
    (20, Flaw::First(Spoilt::User)),
    (20, Flaw::First(Spoilt::Accessed)),
    (20, Flaw::First(Spoilt::Dirty)),
    (20, Flaw::First(Spoilt::TooDeep)),
    (2, Flaw::First(Spoilt::PointerFlags)),
    (45, Flaw::Second(Use::Final, Spoilt::Hole)),
    (20, Flaw::Second(Use::Final, Spoilt::Invalid)),
    (15, Flaw::Second(Use::Final, Spoilt::Reserved)),
    (15, Flaw::Second(Use::Final, Spoilt::Permission)),
    (15, Flaw::Second(Use::Final, Spoilt::User)),
    (15, Flaw::Second(Use::Final, Spoilt::Accessed)),
    (15, Flaw::Second(Use::Final, Spoilt::Dirty)),
    (15, Flaw::Second(Use::Final, Spoilt::Misaligned)),
    (30, Flaw::Second(Use::Table, Spoilt::Invalid)),
    (30, Flaw::Second(Use::Table, Spoilt::Hole)),
    (20, Flaw::Second(Use::Table, Spoilt::ReadOnly)),
    (8, Flaw::Second(Use::Table, Spoilt::Permission)),
    (8, Flaw::Second(Use::Table, Spoilt::User)),
    (8, Flaw::Second(Use::Table, Spoilt::Accessed)),
    (8, Flaw::Second(Use::Table, Spoilt::Reserved)),
    (30, Flaw::Second(Use::Directory, Spoilt::Invalid)),
    (2, Flaw::Second(Use::Directory, Spoilt::Permission)),
];

impl Flaw {
    pub(crate) fn of(random: &mut Random) -> Self {
        random.weighted(&FLAWS)
    }

    /// Whether such a configuration has something that can be wrong like this.
    pub(crate) fn fits(self, shape: &Shape) -> bool {
        let through = shape.through_directory().is_some();
        let rare = shape.access == Access::Read;
        match self {
            Self::Nothing | Self::Bits => true,
            // QEMU takes what fails before there is a context for a read, so writes are for the others.
            Self::Off
            | Self::Bare
            | Self::DirectoryHole
            | Self::DirectoryInvalid
            | Self::DirectoryReserved
            | Self::ContextInvalid
            | Self::ContextReserved
            | Self::ContextMisconfigured => rare,
            Self::WideDevice => rare && shape.levels < 3,
            Self::WideProcess => matches!(shape.directory, Processes::Process(1..)) && rare,
            Self::ContextMistaken => !shape.gxl && rare,
            Self::StrayProcess | Self::DirectoryMistaken => shape.directory == Processes::NoProcess && rare,
            Self::ProcessMistaken => shape.sxl && shape.first.is_some() && through,
            Self::ProcessWithoutDirectory => shape.directory == Processes::None && rare,
            Self::NotSupervisor => shape.privileged && rare,
            Self::ProcessHole => through && rare && shape.second.is_none(),
            Self::ProcessInvalid | Self::ProcessReserved | Self::ProcessMode => through && rare,
            Self::NotCanonicalAtAll => shape.second.is_some() && shape.first.is_some_and(Scheme::is_wide),
            Self::TooWide => shape.first.is_none() && shape.second.is_some() && shape.messages != Messages::Here,
            Self::WideForSxl => shape.sxl && !shape.gxl && Self::TooWide.fits(shape),
            Self::First(Spoilt::User) => shape.first.is_some() && shape.directory == Processes::None,
            Self::First(Spoilt::Dirty) => shape.first.is_some() && shape.access == Access::Write,
            Self::First(Spoilt::Reserved | Spoilt::Napot) => shape.first.is_some_and(Scheme::is_wide),
            Self::NotCanonical | Self::First(_) => shape.first.is_some(),
            Self::Second(Use::Directory, _) => shape.second.is_some() && through && rare,
            Self::Second(Use::Table, flaw) => {
                shape.second.is_some_and(|scheme| flaw != Spoilt::Reserved || scheme.is_wide()) && shape.first.is_some()
            }
            Self::Second(Use::Final, flaw) => {
                shape.second.is_some_and(|scheme| flaw != Spoilt::Reserved || scheme.is_wide())
                    && (flaw != Spoilt::Dirty || shape.access == Access::Write)
                    && shape.messages != Messages::Here
            }
        }
    }
}
