//! What is counted and timed.

use std::fmt;

/// Something a guest or a device does.
pub trait Operation {
    /// Makes ready for [`run`](Self::run): not counted.
    fn prepare(&mut self);

    /// The operation: what is counted.
    fn run(&mut self);

    /// That it was done: not counted.
    fn check(&mut self);
}

impl fmt::Debug for dyn Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Operation")
    }
}

/// An operation on a state, of three functions.
struct Steps<S, P, R, C> {
    state: S,
    prepare: P,
    run: R,
    check: C,
}

impl<S, P: FnMut(&mut S), R: FnMut(&mut S), C: FnMut(&mut S)> Operation for Steps<S, P, R, C> {
    fn prepare(&mut self) {
        (self.prepare)(&mut self.state);
    }

    fn run(&mut self) {
        (self.run)(&mut self.state);
    }

    fn check(&mut self) {
        (self.check)(&mut self.state);
    }
}

/// An operation on `state`: what comes before it, itself, and what must be so after it.
pub fn operation<S: 'static>(
    state: S,
    prepare: impl FnMut(&mut S) + 'static,
    run: impl FnMut(&mut S) + 'static,
    check: impl FnMut(&mut S) + 'static,
) -> Box<dyn Operation> {
    Box::new(Steps { state, prepare, run, check })
}

/// An operation that was done a few times, and is ready to be done again.
pub fn warm(mut operation: Box<dyn Operation>) -> Box<dyn Operation> {
    for _ in 0..2 {
        operation.prepare();
        operation.run();
        operation.check();
    }
    operation.prepare();
    operation
}
