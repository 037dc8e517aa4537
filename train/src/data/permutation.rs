//! A shuffle without a list: a keyed bijection of 0..n that is computed one index at a time.
//!
//! Knows no data. A balanced Feistel network permutes the smallest domain of an even number of bits that holds n
//! (at least 256); an index that leaves 0..n is sent through again until it is back, which keeps the map a
//! bijection of 0..n ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).

/// Rounds of the network. Four make a good shuffle with a good round function (Luby and Rackoff, 1988); the others
/// pay for the halves of small domains, which have few bits to mix.
const ROUNDS: usize = 8;

/// Smallest half of a domain, in bits: with less, a network of few bits reaches only few permutations.
const SMALLEST_HALF: u32 = 4;

/// A bijection of 0..n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permutation {
    len: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The bijection of `0..len` that `keys` choose; `len` is at least 1.
    pub(super) fn new(len: u64, keys: [u64; ROUNDS]) -> Self {
        assert!(len > 0, "a permutation of nothing");
        let bits = u64::BITS - (len - 1).leading_zeros();
        Self { len, half: bits.div_ceil(2).max(SMALLEST_HALF), keys }
    }

    /// Where `index` goes.
    pub(super) fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "index {index} of {}", self.len);
        let mut image = self.network(index);
        while image >= self.len {
            image = self.network(image);
        }
        image
    }

    fn network(&self, index: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (index >> self.half, index & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half | right
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): each bit of the result depends on all bits.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(seed: u64) -> [u64; ROUNDS] {
        std::array::from_fn(|round| mix(seed * ROUNDS as u64 + round as u64 + 1))
    }

    #[test]
    fn every_length_is_permuted() {
        for len in (1..300).chain([1000, 4095, 4096, 4097, 65_537]) {
            let permutation = Permutation::new(len, keys(len));
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let image = permutation.at(index) as usize;
                assert!(!std::mem::replace(&mut seen[image], true), "{image} twice in 0..{len}");
            }
        }
    }

    #[test]
    fn a_length_near_the_limit_stays_inside() {
        let permutation = Permutation::new(u64::MAX, keys(1));
        for index in [0, 1, u64::MAX / 2, u64::MAX - 1] {
            assert!(permutation.at(index) < u64::MAX);
        }
    }

    #[test]
    fn every_place_is_equally_likely() {
        // 20,000 keys, 10 indices, 10 places: a cell expects 2,000 with a standard deviation of 42.4. The largest
        // of 100 normal deviates is beyond 5 sigma once in 17,000 such tables; the keys are fixed, so it never is.
        const LEN: usize = 10;
        let mut counts = [[0_i32; LEN]; LEN];
        for seed in 0..20_000 {
            let permutation = Permutation::new(LEN as u64, keys(seed));
            for (index, row) in counts.iter_mut().enumerate() {
                row[permutation.at(index as u64) as usize] += 1;
            }
        }
        for (index, row) in counts.iter().enumerate() {
            for (place, count) in row.iter().enumerate() {
                assert!(
                    (count - 2000).abs() < 212,
                    "index {index} came to {place} {count} times, want 2000 ± 212"
                );
            }
        }
    }

    #[test]
    fn neighbours_do_not_stay_neighbours() {
        // In a random permutation of n the next index lands one higher with probability (n − 1)/n², so about once
        // in all; ten times is beyond 1 in 10 million (Poisson with mean 1).
        let permutation = Permutation::new(10_000, keys(7));
        let kept = (1..10_000).filter(|&i| permutation.at(i) == permutation.at(i - 1) + 1).count();
        assert!(kept < 10, "{kept} of 10,000 neighbours are still neighbours");
    }
}
