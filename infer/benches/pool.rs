//! What it costs to begin and end a job of the executor: its own pool against rayon's, with tasks that do nothing and
//! with tasks of about a microsecond.
//!
//! `cargo bench -p qat-infer --bench pool`

use divan::{Bencher, black_box};
use qat_infer::cpu::Pool;
use rayon::prelude::*;

fn main() {
    divan::main();
}

/// Tasks of a job: the panels of a matrix of 576 rows are 36.
const TASKS: usize = 32;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Additions that depend on each other: 4 cycles each.
fn work(additions: usize) -> f32 {
    (0..additions).fold(black_box(1.0), |sum, _| sum + 1.0)
}

#[divan::bench(args = [0, 1000])]
fn pool(bencher: Bencher<'_, '_>, additions: usize) {
    let pool = Pool::new(threads()).expect("threads");
    bencher.bench_local(|| {
        pool.run(TASKS, |_, _| {
            black_box(work(additions));
        });
    });
}

#[divan::bench(args = [0, 1000])]
fn rayon(bencher: Bencher<'_, '_>, additions: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads()).build().expect("threads");
    bencher.bench_local(|| {
        pool.install(|| {
            (0..TASKS).into_par_iter().for_each(|_| {
                black_box(work(additions));
            });
        });
    });
}

/// rayon as a pass could use it: entered once, with 100 jobs inside (so, divide by 100).
#[divan::bench(args = [0, 1000])]
fn rayon_100_from_inside(bencher: Bencher<'_, '_>, additions: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads()).build().expect("threads");
    bencher.bench_local(|| {
        pool.install(|| {
            for _ in 0..100 {
                (0..TASKS).into_par_iter().for_each(|_| {
                    black_box(work(additions));
                });
            }
        });
    });
}
