//! How many bytes this machine moves between memory and a number of threads in a second.
//!
//! Knows no model. Two loops: STREAM's triad `a[i] = b[i] + s·c[i]` over f64, which counts 3 × 8 bytes per element (two
//! read, one written; the read of a line that is about to be overwritten is not counted, as STREAM does not), and the sum
//! of all three arrays, which counts the same 3 × 8 bytes. The best of several passes counts: whatever else runs on the machine can only
//! slow a pass down.
//!
//! Invariant: each array is at least four times as large as all last-level caches together (up to 1 GiB), each thread
//! works on memory that it touched first, and a pass lasts from the moment that all threads are ready to the moment that
//! all are done.

use std::hint::black_box;
use std::num::NonZero;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use qat_quant::vectorized;

use super::machine::last_level_cache;

/// Arrays are larger than the caches by this factor (the rule of STREAM).
const BEYOND: usize = 4;
/// Least and greatest bytes of an array.
const ARRAY: (usize, usize) = (64 << 20, 1 << 30);
/// Caches of a machine that doesn't tell.
const UNTOLD_CACHE: usize = 32 << 20;
/// The best of so many passes counts.
const PASSES: usize = 30;
/// Sums side by side: enough registers to hide the latency of an addition.
const LANES: usize = 32;
/// Places from which the sum reads at once: a prefetcher follows each only to the end of its page, and one thread with one
/// stream got two thirds of this on the machine where it was tried.
const STREAMS: usize = 8;

/// Bytes per second between memory and the threads that measured it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// Threads that worked at once.
    pub threads: usize,
    /// Bytes of each array, all threads' parts together.
    pub array_bytes: usize,
    /// STREAM triad, 3 × 8 bytes per element.
    pub triad: f64,
    /// Reading alone, 3 × 8 bytes per element.
    pub read: f64,
}

impl Bandwidth {
    /// The better of two measurements, loop by loop.
    pub fn or_better(self, other: Self) -> Self {
        Self { triad: self.triad.max(other.triad), read: self.read.max(other.read), ..self }
    }
}

/// Measures both loops with `threads` threads at once.
pub fn measure_bandwidth(threads: NonZero<usize>) -> Bandwidth {
    let caches = last_level_cache().unwrap_or(UNTOLD_CACHE);
    measure_over((BEYOND * caches).clamp(ARRAY.0, ARRAY.1), threads.get())
}

fn measure_over(array_bytes: usize, threads: usize) -> Bandwidth {
    let elements = (array_bytes / 8 / threads).next_multiple_of(STREAMS * LANES);
    let array_bytes = 8 * elements * threads;
    let barrier = Barrier::new(threads);
    let [triad, read] = std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| best_passes(elements, &barrier));
        }
        best_passes(elements, &barrier)
    });
    let rate = |pass: Duration| (3 * array_bytes) as f64 / pass.as_secs_f64();
    Bandwidth { threads, array_bytes, triad: rate(triad), read: rate(read) }
}

/// The shortest pass of the triad and of the sum over arrays of this thread's own.
fn best_passes(elements: usize, barrier: &Barrier) -> [Duration; 2] {
    let (mut a, b, c) = (vec![1.0; elements], vec![2.0; elements], vec![3.0; elements]);
    let triad = best_of(barrier, || triad(&mut a, &b, black_box(0.5), &c));
    let read = best_of(barrier, || {
        black_box(sum(&a) + sum(&b) + sum(&c));
    });
    [triad, read]
}

fn best_of(barrier: &Barrier, mut pass: impl FnMut()) -> Duration {
    let timed = |_| {
        barrier.wait();
        let began = Instant::now();
        pass();
        barrier.wait();
        began.elapsed()
    };
    (0..PASSES).map(timed).min().unwrap_or_default()
}

fn triad(a: &mut [f64], b: &[f64], s: f64, c: &[f64]) {
    vectorized(
        #[inline(always)]
        || {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = b + s * c;
            }
        },
    );
    black_box(a);
}

/// The sum of `a`, a multiple of `STREAMS · LANES` long, read from several places at once.
fn sum(a: &[f64]) -> f64 {
    let part = a.len() / STREAMS / LANES * LANES;
    vectorized(
        #[inline(always)]
        || {
            let mut sums = [0.0; LANES];
            for at in (0..part).step_by(LANES) {
                for stream in 0..STREAMS {
                    for (sum, a) in sums.iter_mut().zip(&a[stream * part + at..][..LANES]) {
                        *sum += a;
                    }
                }
            }
            sums.iter().sum()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_compute_what_they_say() {
        let (b, c): (Vec<f64>, Vec<f64>) = (0..512).map(|i| (f64::from(i), f64::from(i % 7))).unzip();
        let mut a = vec![0.0; 512];
        triad(&mut a, &b, 0.5, &c);
        assert!(a.iter().zip(b.iter().zip(&c)).all(|(a, (b, c))| *a == b + 0.5 * c));
        assert_eq!(sum(&b), 511.0 * 512.0 / 2.0);
    }

    #[test]
    fn every_thread_takes_part_and_rates_are_those_of_memory_or_caches() {
        for threads in [1, 3] {
            let found = measure_over(3 << 20, threads);
            assert_eq!(found.threads, threads);
            assert!(
                found.array_bytes >= 3 << 20 && found.array_bytes < (3 << 20) + threads * 8 * STREAMS * LANES
            );
            // From a slow memory card to ten times today's fastest cache: a wrong unit is off by 1000 or 8.
            for rate in [found.triad, found.read] {
                assert!((1e7..1e14).contains(&rate), "{found:?}");
            }
        }
    }
}
