//! Judges what the vIOMMU ordered by what its guest did, with nothing of the crate's own but the backend calls.
//!
//! It follows the guest's register writes and reads its queue and directory in memory. A command becomes visible with
//! the doorbell that uncovers it; when `cqh` has passed a fence, the orders given since every command before it became
//! visible must cover that command, and a fence after them must be complete.
//! It knows one device, and guests that keep their structures little-endian, as Linux does.

use std::collections::{BTreeMap, VecDeque};

use super::command::{Command, Scope};
use super::directory::{DEVICE, Mapping};
use super::host::{Call, Memory, Order};
use super::trace::Access;

/// What the checker looks at after each access.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) fctl: u64,
    pub(crate) ddtp: u64,
    pub(crate) cqh: u64,
    pub(crate) cqcsr: u64,
}

/// A command the guest made visible.
#[derive(Clone, Copy)]
struct Asked {
    /// Number of the last call before.
    at: usize,
    command: Command,
}

struct Fence {
    /// Number of the call.
    at: usize,
    ticket: u64,
    reads: bool,
    writes: bool,
    complete: bool,
}

pub(crate) struct Checker {
    capabilities: u64,
    /// Line of the trace that is being replayed.
    pub(crate) line: usize,
    cqb: u64,
    cqt: u64,
    seen: Registers,
    /// Visible, and not passed by `cqh`.
    ring: VecDeque<Asked>,
    /// Passed by `cqh`, and by no fence since.
    passed: Vec<Asked>,
    /// Number of backend calls so far; each is known by its number.
    calls: usize,
    orders: Vec<(usize, Order)>,
    fences: Vec<Fence>,
    fence_data: Vec<(usize, u64, u32)>,
    /// What the directory said of the device, from which call on.
    directory: Vec<(usize, Mapping)>,
    /// The contexts the device was given, by the call that did, and the last call that dropped what was cached of it.
    contexts: Vec<(usize, Mapping)>,
    dropped: usize,
    /// The mode in a `ddtp` write that must be accepted, and a new mode that is not in force yet.
    ddtp_mode: Option<u64>,
    ddtp_written: Option<usize>,
    /// Caches may hold translations of this VM, and the last call at which they could not.
    cached: bool,
    clean: usize,
    /// Where it was last at rest.
    rest: usize,
    pub(crate) commands: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
}

/// `cqcsr` and `ddtp` bits.
const CQON: u64 = 1 << 16;
const CQ_BUSY: u64 = 1 << 17;
const CQMF: u64 = 1 << 8;
const CMD_ILL: u64 = 1 << 10;
const DDTP_BUSY: u64 = 1 << 4;

impl Checker {
    /// For a vIOMMU after reset, before the device is attached.
    pub(crate) fn new(capabilities: u64) -> Self {
        Self {
            capabilities,
            line: 0,
            cqb: 0,
            cqt: 0,
            seen: Registers::default(),
            ring: VecDeque::new(),
            passed: Vec::new(),
            calls: 0,
            orders: Vec::new(),
            fences: Vec::new(),
            fence_data: Vec::new(),
            directory: vec![(0, Mapping::Blocked)],
            contexts: vec![(0, Mapping::Blocked)],
            dropped: 0,
            ddtp_mode: None,
            ddtp_written: None,
            cached: false,
            clean: 0,
            rest: 0,
            commands: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    pub(crate) fn blame(&mut self, what: impl AsRef<str>) {
        self.violations.push(format!("line {}: {}", self.line, what.as_ref()));
    }

    /// The guest writes a register: the queue's base and tail are the guest's own, so they are not asked for.
    pub(crate) fn written(&mut self, write: &Access) {
        let bytes = u64::from(write.width.bytes());
        match (write.offset, bytes) {
            (0x18..0x20, _) if self.seen.cqcsr & (CQON | CQ_BUSY) == 0 => {
                self.cqb = match (write.offset, bytes) {
                    (0x18, 8) => write.value,
                    (0x18, _) => self.cqb >> 32 << 32 | write.value,
                    (0x1c, 4) => self.cqb << 32 >> 32 | write.value << 32,
                    _ => return,
                };
                self.cqt = 0;
            }
            (0x24, 4) => self.cqt = write.value & self.index_mask(),
            // Off and Bare can be written always; which other modes there are, reads tell.
            (0x10, _) if self.seen.ddtp & DDTP_BUSY == 0 => {
                self.ddtp_mode = Some(write.value & 0xf).filter(|mode| *mode < 2);
            }
            _ => {}
        }
    }

    /// What there is to see after an access, or after the vIOMMU went on by itself, and the calls made until then.
    pub(crate) fn look(&mut self, now: Registers, calls: &[Call], memory: &Memory) {
        if self.ddtp_mode.take().is_some_and(|mode| now.ddtp & 0xf != mode) {
            self.blame("ddtp does not take the mode Off or Bare");
        }
        if (now.ddtp ^ self.seen.ddtp) & 0xf != 0 {
            self.ddtp_written = Some(self.calls);
        }
        let walked = Mapping::walk(self.capabilities, now.ddtp, memory);
        if self.says() != walked {
            self.directory.push((self.calls, walked));
        }
        let head = if now.cqcsr & self.seen.cqcsr & CQON == 0 { 0 } else { self.seen.cqh };
        self.uncover(&now, head, memory);
        for call in calls {
            self.calls = self.calls.wrapping_add(1);
            self.called(call);
        }
        if now.cqcsr & CQON != 0 {
            self.pass(now.cqh.wrapping_sub(head) & self.index_mask());
        }
        self.check_stop(now.cqcsr & !self.seen.cqcsr);
        self.seen = now;
        if now.ddtp & DDTP_BUSY == 0 {
            self.check_ddtp();
        }
    }

    /// Nothing is left to do until the guest does something.
    pub(crate) fn at_rest(&mut self) {
        let (set, context) = self.context(usize::MAX);
        if set > self.rest && context != self.says() {
            self.blame(format!("the device is left {context}, its directory says {}", self.says()));
        }
        if !self.ring.is_empty() && self.seen.cqcsr & (CMD_ILL | CQMF) == 0 {
            self.blame(format!("{} commands are left, cqcsr {:x}", self.ring.len(), self.seen.cqcsr));
        }
        if self.seen.cqcsr & CQ_BUSY != 0 || self.ddtp_written.is_some() {
            self.blame("cqcsr or ddtp stays busy");
        }
        self.rest = self.calls;
        if self.ring.is_empty() && self.passed.is_empty() {
            // Nothing looks further back.
            self.orders.clear();
            self.fence_data.clear();
            self.fences.retain(|fence| !fence.complete);
            self.directory = vec![(self.calls, self.says())];
            self.contexts = vec![(set, context)];
        }
    }

    /// What the guest's directory says of the device now.
    fn says(&self) -> Mapping {
        self.directory.last().map_or(Mapping::Unknown, |&(_, mapping)| mapping)
    }

    /// The context in force before the call `end`, and the call that set it.
    fn context(&self, end: usize) -> (usize, Mapping) {
        self.contexts.iter().rev().find(|&&(at, _)| at < end).copied().unwrap_or((0, Mapping::Blocked))
    }

    /// LOG2SZ-1 is bits 4:0 of `cqb`.
    const fn index_mask(&self) -> u64 {
        u64::MAX >> 31_u64.wrapping_sub(self.cqb & 0x1f).wrapping_add(32)
    }

    /// Reads the queue from its head to its tail, afresh: what is not passed may have been replaced.
    fn uncover(&mut self, now: &Registers, head: u64, memory: &Memory) {
        let mut before = std::mem::take(&mut self.ring).into_iter().map(|asked| asked.at);
        let mut index = head;
        // The base is PPN 53:10; an entry has 16 bytes.
        while now.cqcsr & CQON != 0 && index != self.cqt {
            let words = memory.words(self.cqb << 10 >> 20 << 12 | index << 4);
            let command = Command::decode(words, self.capabilities, now.fctl, now.ddtp);
            self.ring.push_back(Asked { at: before.next().unwrap_or(self.calls), command });
            if command == Command::Illegal {
                return;
            }
            index = index.wrapping_add(1) & self.index_mask();
        }
    }

    fn called(&mut self, call: &Call) {
        let at = self.calls;
        match call {
            Call::SetContext(new) => {
                if *new != Mapping::Blocked && *new != self.says() {
                    self.blame(format!("context {new}, but the directory says {}", self.says()));
                }
                if *new != Mapping::Blocked && !self.cached {
                    self.cached = true;
                    self.clean = at.wrapping_sub(1);
                }
                self.contexts.push((at, *new));
            }
            Call::Invalidate(orders) => {
                for order in orders {
                    self.justify(order);
                    self.orders.push((at, *order));
                    if !matches!(order, Order::Translations(_)) {
                        self.dropped = at;
                    }
                }
            }
            &Call::Fence { ticket, reads, writes } => {
                self.fences.push(Fence { at, ticket, reads, writes, complete: false });
            }
            &Call::Complete { ticket } => {
                for fence in self.fences.iter_mut().filter(|fence| fence.ticket <= ticket) {
                    fence.complete = true;
                }
                let (set, context) = self.context(usize::MAX);
                let left = context == Mapping::Blocked && set < self.dropped;
                self.cached &= !(left && self.dropped < self.fenced(true, true, usize::MAX));
            }
            &Call::FenceData { at: address, data } => self.fence_data.push((at, address, data)),
            Call::Release => self.blame("the device is released"),
            Call::Load { .. } | Call::Store | Call::Interrupt | Call::Wire | Call::Adopt => {}
        }
    }

    /// The last fence of at least this scope and before `end` that is complete.
    fn fenced(&self, reads: bool, writes: bool, end: usize) -> usize {
        let fits = |fence: &&Fence| fence.complete && fence.reads >= reads && fence.writes >= writes && fence.at < end;
        self.fences.iter().filter(fits).map(|fence| fence.at).max().unwrap_or(0)
    }

    /// An order may say no more than the commands since the last fence, and what became of the device's context.
    fn justify(&mut self, order: &Order) {
        let asked = || self.passed.iter().chain(&self.ring).map(|asked| asked.command);
        let justified = match order {
            Order::Translations(scope) => scope.is_covered(asked().filter_map(|command| command.translations())),
            Order::Device => {
                self.context(usize::MAX).0 > self.dropped || asked().any(|command| command.names_the_device())
            }
            Order::Everything => false,
        };
        if !justified {
            self.blame(format!("wider than asked: {order:x?}"));
        }
    }

    /// `cqh` moves past `count` commands.
    fn pass(&mut self, count: u64) {
        for _ in 0..count {
            match self.ring.pop_front() {
                None | Some(Asked { command: Command::Illegal, .. }) => {
                    self.blame("cqh passes what is no command");
                    return;
                }
                Some(asked) => {
                    let commands = self.commands.entry(asked.command.name()).or_default();
                    *commands = commands.wrapping_add(1);
                    if let Command::Fence { reads, writes, store } = asked.command {
                        self.check_fence(&asked, reads, writes, store);
                        self.passed.clear();
                    } else {
                        self.passed.push(asked);
                    }
                }
            }
        }
    }

    /// The queue stops, with these bits of `cqcsr`, for a reason: all of memory can be written, but PAS (37:32) bounds
    /// it.
    fn check_stop(&mut self, bits: u64) {
        let pas = self.capabilities >> 32 & 0x3f;
        let (illegal, unreachable) = match self.ring.front().map(|asked| asked.command) {
            Some(Command::Illegal) => (true, false),
            Some(Command::Fence { store: Some((to, _)), .. }) => (false, to >> pas != 0),
            _ => (false, false),
        };
        if (bits & CMD_ILL != 0 && !illegal) || (bits & CQMF != 0 && !unreachable) {
            self.blame("the queue stops for no reason");
        }
    }

    fn check_fence(&mut self, fence: &Asked, reads: bool, writes: bool, store: Option<(u64, u32)>) {
        // Its data is stored last.
        let stored = |&&(at, to, data): &&(usize, u64, u32)| at > fence.at && Some((to, data)) == store;
        let stored = self.fence_data.iter().filter(stored).map(|&(at, ..)| at).max();
        if store.is_some() && stored.is_none() {
            self.blame("cqh passes an IOFENCE.C whose data is not stored");
        }
        let upto = self.fenced(reads, writes, stored.unwrap_or(usize::MAX));
        if (reads || writes) && upto <= fence.at {
            self.blame("cqh passes an IOFENCE.C, but no fence with its PR and PW was complete");
        }
        let missed: Vec<Command> =
            self.passed.iter().filter(|asked| !self.is_done(asked, upto)).map(|asked| asked.command).collect();
        for command in missed {
            self.blame(format!("cqh passes an IOFENCE.C, but no order that is complete covers {command:x?}"));
        }
    }

    /// Whether orders after `asked` and before the fence `upto` did what it asks for.
    fn is_done(&self, asked: &Asked, upto: usize) -> bool {
        let between = |from: usize| {
            let fits = move |&&(at, _): &&(usize, Order)| from < at && at < upto;
            self.orders.iter().filter(fits).map(|&(_, order)| order)
        };
        let is_device = |order| !matches!(order, Order::Translations(_));
        match asked.command {
            // Caches that were empty after the guest had changed its tables hold nothing of the old ones.
            Command::Vma(_) if !self.cached || self.clean >= asked.at => true,
            Command::Vma(scope) => {
                between(asked.at).any(is_device)
                    || scope.is_covered(between(asked.at).filter_map(|order| match order {
                        Order::Translations(scope) => Some(scope),
                        _ => None,
                    }))
            }
            Command::InvalDdt(_) if asked.command.names_the_device() => {
                let (set, context) = self.context(upto);
                // What the directory said when the command became visible, or since.
                let first = self.directory.iter().rposition(|&(at, _)| at <= asked.at).unwrap_or(0);
                let said = self.directory.iter().skip(first).any(|&(_, mapping)| mapping == context);
                said && between(asked.at.max(set)).any(is_device)
            }
            _ => true,
        }
    }

    /// `ddtp` reads as not busy: a new mode is in force.
    fn check_ddtp(&mut self) {
        let Some(written) = self.ddtp_written.take() else {
            return;
        };
        let (set, context) = self.context(usize::MAX);
        let changed = set > written;
        let fenced = self.fenced(true, true, usize::MAX);
        if context != self.says() || fenced <= written || (changed && !(set < self.dropped && self.dropped < fenced)) {
            self.blame(format!("ddtp is not busy, but the device is not {} and fenced", self.says()));
        }
    }
}

impl Command {
    const fn translations(&self) -> Option<Scope> {
        match self {
            Self::Vma(scope) => Some(*scope),
            _ => None,
        }
    }

    fn names_the_device(&self) -> bool {
        matches!(self, Self::InvalDdt(device) if device.is_none_or(|device| device == DEVICE.into()))
    }
}
