//! Wall time of each operation: a second view, of this machine and this moment. Reading the clock is in it, which
//! `nothing` shows.

use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion};
use riscv_viommu_benches::{NAMES, Operation, named, warm};

fn time(operation: &mut dyn Operation, repetitions: u64) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..repetitions {
        operation.prepare();
        let start = Instant::now();
        operation.run();
        time += start.elapsed();
    }
    operation.check();
    time
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for name in NAMES {
        criterion.bench_function(name, |bencher: &mut Bencher<'_>| {
            let mut operation = warm(named(name));
            bencher.iter_custom(|repetitions| time(operation.as_mut(), repetitions));
        });
    }
    criterion.final_summary();
}
