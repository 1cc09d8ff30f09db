//! Interrupt wires.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::backend::{InterruptKinds, Interrupts};

use super::memory::{Event, Memory};

/// Sixteen interrupt wires. A clone is another handle on the same wires.
#[derive(Clone, Debug)]
pub struct Wires {
    kinds: InterruptKinds,
    log: Option<Memory>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    levels: u16,
    changes: Vec<(u8, bool)>,
}

impl Wires {
    /// Wires of a platform that has these kinds of interrupt.
    #[must_use]
    pub fn new(kinds: InterruptKinds) -> Self {
        Self { kinds, log: None, state: Arc::default() }
    }

    /// Adds every change to the events of `memory` too, so that its order against stores and posts can be seen.
    #[must_use]
    pub fn logging_to(self, memory: &Memory) -> Self {
        Self { log: Some(memory.clone()), ..self }
    }

    /// The level of every wire: bit n is wire n.
    #[must_use]
    pub fn levels(&self) -> u16 {
        self.state().levels
    }

    /// Every change since they were last taken.
    #[must_use]
    pub fn take_changes(&self) -> Vec<(u8, bool)> {
        mem::take(&mut self.state().changes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        super::lock(&self.state)
    }
}

impl Interrupts for Wires {
    fn kinds(&self) -> InterruptKinds {
        self.kinds
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        assert!(self.kinds != InterruptKinds::Msi, "contract: set_wire where there are no wires");
        assert!(vector < 16, "contract: set_wire({vector}): there are wires 0 to 15");
        let mut state = self.state();
        let wire = 1_u16.wrapping_shl(vector.into());
        assert!((state.levels & wire != 0) != level, "contract: set_wire({vector}, {level}) changes nothing");
        state.levels ^= wire;
        state.changes.push((vector, level));
        if let Some(log) = &self.log {
            log.log(Event::Wire(vector, level));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_kept_in_order() {
        let mut wires = Wires::new(InterruptKinds::Both);
        wires.set_wire(15, true);
        wires.set_wire(0, true);
        wires.set_wire(15, false);
        assert_eq!(wires.levels(), 1);
        assert_eq!(wires.take_changes(), [(15, true), (0, true), (15, false)]);
    }

    #[test]
    #[should_panic(expected = "contract: set_wire(3, false) changes nothing")]
    fn setting_the_level_a_wire_has_is_a_breach() {
        Wires::new(InterruptKinds::Wired).set_wire(3, false);
    }

    #[test]
    #[should_panic(expected = "contract: set_wire where there are no wires")]
    fn a_wire_of_a_platform_without_wires_is_a_breach() {
        Wires::new(InterruptKinds::Msi).set_wire(0, true);
    }
}
