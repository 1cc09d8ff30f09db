//! What a run was about, as a table.

use std::collections::BTreeMap;

use crate::deviations::{self, Expected};
use crate::machine::Version;
use crate::observation::{self, Response};

/// Causes that the requests of a whole run have to lead to, each so many times.
const REACHABLE: [u64; 17] = [1, 5, 7, 12, 13, 15, 20, 21, 23, 256, 257, 258, 259, 260, 265, 266, 267];
const OFTEN: u64 = 50;

/// Of 100 cases.
const TRANSLATING: f64 = 30.0;
const DEVIATING: f64 = 10.0;

/// Counts of a run.
#[derive(Debug)]
pub(crate) struct Report {
    version: Version,
    cases: u64,
    translating: u64,
    deviating: u64,
    differing: u64,
    causes: BTreeMap<u64, u64>,
    /// By the name of a deviation.
    fired: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(crate) fn new(version: Version) -> Self {
        let causes = REACHABLE.map(|cause| (cause, 0)).into();
        Self { version, cases: 0, translating: 0, deviating: 0, differing: 0, causes, fired: BTreeMap::new() }
    }

    pub(crate) fn count(&mut self, expected: &Expected, differs: bool) {
        let is_page = |response: &Response| matches!(response, Response::Page { .. });
        self.cases += 1;
        self.translating += u64::from(expected.right.responses.iter().all(is_page));
        self.deviating += u64::from(!expected.fired.is_empty());
        self.differing += u64::from(differs);
        for record in &expected.right.records {
            *self.causes.entry(record.cause()).or_default() += 1;
        }
        for deviation in &expected.fired {
            *self.fired.entry(deviation.name).or_default() += 1;
        }
    }

    pub(crate) fn differing(&self) -> u64 {
        self.differing
    }

    fn percent(&self, count: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "counts of cases are small")]
        let share = count as f64 * 100.0 / self.cases.max(1) as f64;
        share
    }

    pub(crate) fn print(&self) {
        println!("{:8}  cases", self.cases);
        println!("{:7.1} % translate (at least {TRANSLATING})", self.percent(self.translating));
        println!("{:7.1} % meet a listed deviation (at most {DEVIATING})", self.percent(self.deviating));
        println!("{:8}  differ in any other way (none)", self.differing);
        println!("causes that the crate recorded (those reachable at least {OFTEN} times each):");
        for (&cause, count) in &self.causes {
            println!("{count:8}  {cause:3} {}", observation::name(cause));
        }
        println!("deviations of QEMU {}, the rule each breaks, the cases in which it shows:", self.version);
        for deviation in deviations::known(self.version) {
            let count = self.fired.get(deviation.name).unwrap_or(&0);
            println!("{count:8}  {:11} {}", deviation.rule, deviation.name);
        }
    }

    /// Whether nothing differs, and, of a whole run, whether it was about enough.
    pub(crate) fn verdict(&self, whole: bool) -> Result<(), String> {
        let mut wrong = Vec::new();
        if self.differing != 0 {
            wrong.push(format!("{} cases differ in a way that is not listed", self.differing));
        }
        if whole {
            if self.percent(self.translating) < TRANSLATING {
                wrong.push("too few cases translate".to_owned());
            }
            if self.percent(self.deviating) > DEVIATING {
                wrong.push("too many cases meet a deviation".to_owned());
            }
            let rare = REACHABLE.iter().filter(|cause| self.causes[cause] < OFTEN);
            wrong.extend(rare.map(|cause| format!("cause {cause} is too rare")));
            // Else QEMU was mended, or the crate does the same.
            let stale =
                deviations::known(self.version).iter().filter(|deviation| !self.fired.contains_key(deviation.name));
            wrong.extend(stale.map(|deviation| format!("'{}' does not show", deviation.name)));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}
