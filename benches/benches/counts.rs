//! Instructions of each operation, counted by callgrind. `.ci/cost` runs it, and compares.
#![expect(missing_docs, reason = "macros of gungraun's write items that can be seen")]

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use riscv_viommu_benches::{Operation, named, operations, warm};

fn ready(name: &str) -> Box<dyn Operation> {
    warm(named(name))
}

fn done(mut operation: Box<dyn Operation>) {
    operation.check();
}

macro_rules! count {
    ($($name:ident: $make:expr;)*) => {
        #[library_benchmark]
        $(#[bench::$name(args = (ready(stringify!($name))), teardown = done)])*
        fn count(mut operation: Box<dyn Operation>) -> Box<dyn Operation> {
            operation.run();
            operation
        }
    };
}
operations!(count);

library_benchmark_group!(name = operations, benchmarks = count);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = operations
);
