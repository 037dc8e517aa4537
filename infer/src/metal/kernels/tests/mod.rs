//! Every kernel on the host emulator, in three orders of threads, checked, with fast math and with shuffled sums, against
//! references in f64 that are written here, and against the CPU runtime.
//!
//! Where a tolerance is asked for, it is derived beside the reference: `U` stands for the unit roundoff of f32, and a bound
//! holds for every order of summation, with and without fused products.

mod attention;
mod choice;
mod heads;
mod machine;
mod rows;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1 << 24) as f64;

/// `len` numbers in ±`range`.
fn uniform(seed: u64, len: usize, range: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-range..range)).collect()
}
