//! How a check ends.

use heapless::String;

/// What went wrong, in a line.
pub(crate) type Why = String<440>;

/// Why a check did not get to its end.
pub(crate) enum Stop {
    /// What was found is not what the rules say.
    Fail(Why),
    /// The IOMMU does not have what is checked.
    Skip(Why),
}

pub(crate) type Verdict = Result<(), Stop>;

impl From<Why> for Stop {
    fn from(why: Why) -> Self {
        Self::Fail(why)
    }
}

/// A [`Why`] from a format string.
macro_rules! why {
    ($($text:tt)*) => {{
        let mut why = $crate::verdict::Why::new();
        // What does not fit is cut.
        let _ = core::fmt::Write::write_fmt(&mut why, format_args!($($text)*));
        why
    }};
}

/// Returns the error of a [`Why`] unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err($crate::verdict::why!($($text)*).into());
        }
    };
}

/// Returns that a check does not apply.
macro_rules! skip {
    ($($text:tt)*) => { return Err($crate::verdict::Stop::Skip($crate::verdict::why!($($text)*))) };
}

pub(crate) use {ensure, skip, why};
