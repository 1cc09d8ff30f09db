//! Interrupts: from conditions to `ipsr` bits, from `ipsr` bits to messages or wires.
//!
//! Two invariants hold after every call into the crate: a level condition that holds has its `ipsr` bit set (rule
//! IRQ-05), and every wire has the level its causes give it (rule REG-WSI-01). Messages go out last, after the memory
//! and registers they announce.

use crate::addr::Gpa;
use crate::backend::{GuestMemory, Interrupts, Post};
use crate::mem::View;
use crate::regs::file::Registers;
use crate::regs::{Cqcsr, Fqcsr, Ipsr, Pqcsr};

/// Signalling state that no register shows.
#[derive(Debug)]
pub(crate) struct Signals {
    /// `ipsr` bits that went from 0 to 1 and have not been signalled.
    edges: Ipsr,
    /// Vectors with a message that waits for its mask to go (rule REG-MSI-10).
    masked: u16,
    /// Levels of the wires.
    wires: u16,
}

impl Signals {
    pub(crate) const fn new() -> Self {
        Self { edges: Ipsr::new(), masked: 0, wires: 0 }
    }

    /// Forgets everything but the levels the wires have, which [`deliver`](Self::deliver) then lowers.
    pub(crate) fn reset(&mut self) {
        let Self { edges, masked, wires: _ } = self;
        *edges = Ipsr::new();
        *masked = 0;
    }

    /// Vectors with a message that waits for its mask to go. Between two calls no other signal is under way.
    pub(crate) fn masked(&self) -> u16 {
        let Self { edges: _, masked, wires: _ } = self;
        *masked
    }

    /// Takes in which messages wait for their mask. Wires keep the levels they have, which
    /// [`deliver`](Self::deliver) then makes those of the registers.
    ///
    /// # Errors
    /// What can not be between two calls.
    pub(crate) fn restore(&mut self, masked: u16, registers: &Registers) -> Result<(), &'static str> {
        let waits = |vector: u8| registers.msi(vector).ctl.m() && !registers.fctl().wsi();
        if (0..16).any(|vector| masked & vector_bit(vector) != 0 && !waits(vector)) {
            return Err("a message waits that is not masked");
        }
        if registers.conditions().into_bits() & !registers.ipsr().into_bits() != 0 {
            return Err("an interrupt is not pending whose condition holds");
        }
        *self = Self { edges: Ipsr::new(), masked, wires: self.wires };
        Ok(())
    }

    /// Sets the `ipsr` bits whose level condition holds (rules IRQ-02, IRQ-06).
    #[inline]
    pub(crate) fn evaluate(&mut self, registers: &mut Registers) {
        let conditions = registers.conditions();
        if conditions != Ipsr::new() {
            self.set(registers, conditions);
        }
    }

    /// A fault record was written (rule IRQ-03).
    pub(crate) fn fault_recorded(&mut self, registers: &mut Registers) {
        if registers.fqcsr().fie() {
            self.set(registers, Ipsr::new().with_fip(true));
        }
    }

    /// A counter overflowed (rules HPM-34, HPM-35). There is nothing to enable, and no level to come back to.
    pub(crate) fn counter_overflowed(&mut self, registers: &mut Registers) {
        self.set(registers, Ipsr::new().with_pmip(true));
    }

    /// A page request was written (rule IRQ-03).
    pub(crate) fn page_requested(&mut self, registers: &mut Registers) {
        if registers.pqcsr().pie() {
            self.set(registers, Ipsr::new().with_pip(true));
        }
    }

    fn set(&mut self, registers: &mut Registers, bits: Ipsr) {
        let old = registers.ipsr().into_bits();
        let rising = bits.into_bits() & !old;
        if rising != 0 {
            registers.set_ipsr(Ipsr::from_bits(old | rising));
            self.edges = Ipsr::from_bits(self.edges.into_bits() | rising);
        }
    }

    /// Brings messages and wires up to date; `messages` counts those that were stored.
    ///
    /// # Errors
    /// The address of a message that could not be stored. It is lost; the caller reports the fault and calls again.
    pub(crate) fn deliver<B: GuestMemory + Interrupts>(
        &mut self,
        registers: &Registers,
        backend: &mut B,
        messages: &mut u64,
    ) -> Result<(), Gpa> {
        if registers.fctl().wsi() {
            // UNSPECIFIED: messages that waited for their mask are dropped with the mode they belong to (rule IRQ-20).
            self.edges = Ipsr::new();
            self.masked = 0;
            self.set_wires(registers.levels(), backend);
            return Ok(());
        }
        self.set_wires(0, backend);
        if self.edges == Ipsr::new() && self.masked == 0 {
            return Ok(());
        }
        while let Some(vector) = self.take_edge(registers) {
            if registers.msi(vector).ctl.m() {
                self.masked |= vector_bit(vector);
            } else {
                send(registers, backend, vector, messages)?;
            }
        }
        // UNSPECIFIED: a message unmasked since uses the entry as it stands now, and clearing the `ipsr` bit did not
        // cancel it (rules REG-MSI-11, REG-MSI-12).
        while let Some(vector) = self.take_unmasked(registers) {
            send(registers, backend, vector, messages)?;
        }
        Ok(())
    }

    /// Takes one edge and gives the vector `icvec` has for it.
    fn take_edge(&mut self, registers: &Registers) -> Option<u8> {
        let icvec = registers.icvec();
        if self.edges.cip() {
            self.edges.set_cip(false);
            Some(icvec.civ())
        } else if self.edges.fip() {
            self.edges.set_fip(false);
            Some(icvec.fiv())
        } else if self.edges.pmip() {
            self.edges.set_pmip(false);
            Some(icvec.pmiv())
        } else if self.edges.pip() {
            self.edges.set_pip(false);
            Some(icvec.piv())
        } else {
            None
        }
    }

    fn take_unmasked(&mut self, registers: &Registers) -> Option<u8> {
        if self.masked == 0 {
            return None;
        }
        let waits = |&vector: &u8| self.masked & vector_bit(vector) != 0 && !registers.msi(vector).ctl.m();
        let vector = (0..registers.setup().vectors).find(waits)?;
        self.masked &= !vector_bit(vector);
        Some(vector)
    }

    fn set_wires(&mut self, levels: u16, backend: &mut impl Interrupts) {
        let mut differ = self.wires ^ levels;
        self.wires = levels;
        while let Ok(vector @ 0..16) = u8::try_from(differ.trailing_zeros()) {
            differ &= !vector_bit(vector);
            backend.set_wire(vector, levels & vector_bit(vector) != 0);
        }
    }
}

impl Registers {
    /// The interrupts whose level condition holds.
    #[inline]
    fn conditions(&self) -> Ipsr {
        const COMMANDS: Cqcsr = Cqcsr::new().with_cqmf(true).with_cmd_to(true).with_cmd_ill(true).with_fence_w_ip(true);
        const FAULTS: Fqcsr = Fqcsr::new().with_fqmf(true).with_fqof(true);
        const REQUESTS: Pqcsr = Pqcsr::new().with_pqmf(true).with_pqof(true);
        let (cq, fq, pq) = (self.cqcsr(), self.fqcsr(), self.pqcsr());
        Ipsr::new()
            .with_cip(cq.cie() && cq.into_bits() & COMMANDS.into_bits() != 0)
            .with_fip(fq.fie() && fq.into_bits() & FAULTS.into_bits() != 0)
            .with_pip(pq.pie() && pq.into_bits() & REQUESTS.into_bits() != 0)
    }

    /// The level of each wire: the causes pending on it (rule REG-WSI-01).
    fn levels(&self) -> u16 {
        let (ipsr, icvec) = (self.ipsr(), self.icvec());
        [(ipsr.cip(), icvec.civ()), (ipsr.fip(), icvec.fiv()), (ipsr.pmip(), icvec.pmiv()), (ipsr.pip(), icvec.piv())]
            .into_iter()
            .filter(|&(pending, _)| pending)
            .fold(0, |levels, (_, vector)| levels | vector_bit(vector))
    }
}

/// Stores the message of a vector (rule REG-MSI-14).
fn send(registers: &Registers, memory: &mut impl GuestMemory, vector: u8, messages: &mut u64) -> Result<(), Gpa> {
    let entry = registers.msi(vector);
    let at = Gpa::new(entry.addr.into_bits());
    // UNSPECIFIED: corrupted memory is a failure too (rules FLT-11, DISC-Q12).
    View::of(registers).post(memory, at, entry.data, Post::Interrupt).map_err(|_| at)?;
    *messages = messages.wrapping_add(1);
    Ok(())
}

fn vector_bit(vector: u8) -> u16 {
    1_u16.wrapping_shl(vector.into())
}
