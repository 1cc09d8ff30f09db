//! The example `trace` says what `examples/trace/output.txt` has; a change of it is made with
//! `cargo run --example trace > examples/trace/output.txt`, and read.

#[path = "../examples/trace/story.rs"]
mod story;

use std::cell::RefCell;
use std::fmt::Write;

#[test]
fn every_call_is_printed_as_it_happens() {
    let told = RefCell::new(String::new());
    let end = story::tell(|line| {
        let _ = writeln!(told.borrow_mut(), "{line}");
    });
    assert!(end.is_ok(), "{end:?}");
    let expected = include_str!("../examples/trace/output.txt");
    for (number, (told, expected)) in told.borrow().lines().zip(expected.lines()).enumerate() {
        assert_eq!(told, expected, "line {number}");
    }
    assert_eq!(told.borrow().lines().count(), expected.lines().count());
}
