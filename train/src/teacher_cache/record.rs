//! What is kept of a teacher's prediction for one token: the most probable tokens, and what all others have together.
//!
//! A record, little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | k · 2 (k · 4 above 65,536 ids) | ids of the k most probable tokens, ascending |
//! | k · 2 | (logit − largest logit)/τ of each, f16 |
//! | 4 | ln of the share of all other tokens in softmax(logits/τ), f32, at least −80 |
//!
//! The share of the others is exact to f32, and so is what it leaves for the k; among them f16 decides. Differences from the largest
//! are most exact where most of the probability is. Knows no file.

use half::f16;

use crate::ops::lanes;

/// Where logarithms end: e^−80 of a probability no longer matters, and is still a normal f32.
const LEAST: f32 = -80.0;

/// How records lie, and what they hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// Ids of the vocabulary.
    pub vocab: usize,
    /// k, from 1 to below `vocab`.
    pub top_k: usize,
    /// τ.
    pub temperature: f32,
}

impl Layout {
    fn id_bytes(&self) -> usize {
        if self.vocab <= 1 << 16 { 2 } else { 4 }
    }

    /// Bytes of a record.
    pub fn record_bytes(&self) -> usize {
        self.top_k * (self.id_bytes() + 2) + 4
    }

    /// Writes the record of a row of `vocab` logits; of equal ones the lower ids count as more probable.
    ///
    /// # Errors
    /// A logit that is not finite.
    pub fn encode(&self, logits: &[f32], record: &mut [u8]) -> Result<(), String> {
        if let Some(id) = logits.iter().position(|x| !x.is_finite()) {
            return Err(format!("the teacher's logit of token {id} is {}", logits[id]));
        }
        let sharpness = 1.0 / self.temperature;
        let top = lanes::max(logits);
        let ids = self.most_probable(logits);
        let mut powers = vec![0f32; self.vocab];
        let all = lanes::map_sum(logits, &mut powers, |x| lanes::exp((x - top) * sharpness));
        ids.iter().for_each(|&id| powers[id as usize] = 0.0);
        let others = lanes::sum_map(&powers, |v| v);
        let (of_ids, rest) = record.split_at_mut(self.top_k * self.id_bytes());
        let (of_logits, of_others) = rest.split_at_mut(self.top_k * 2);
        for (slot, id) in of_ids.chunks_exact_mut(self.id_bytes()).zip(&ids) {
            slot.copy_from_slice(&id.to_le_bytes()[..self.id_bytes()]);
        }
        for (slot, id) in of_logits.chunks_exact_mut(2).zip(&ids) {
            let below = ((logits[*id as usize] - top) * sharpness).max(LEAST);
            slot.copy_from_slice(&f16::from_f32(below).to_le_bytes());
        }
        of_others.copy_from_slice(&(others / all).ln().max(LEAST).to_le_bytes());
        Ok(())
    }

    fn most_probable(&self, logits: &[f32]) -> Vec<u32> {
        let mut sorted = logits.to_vec();
        let last = *sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a)).1;
        let mut equals = self.top_k - logits.iter().filter(|x| **x > last).count();
        let chosen = |(_, x): &(u32, &f32)| {
            let is_equal = **x == last && equals > 0;
            equals -= usize::from(is_equal);
            is_equal || **x > last
        };
        (0..).zip(logits).filter(chosen).map(|(id, _)| id).collect()
    }

    /// The ids of a record that was checked, and the logarithms of their probabilities with that of all others behind.
    pub fn decode(&self, record: &[u8], ids: &mut Vec<u32>, logs: &mut Vec<f32>) {
        let (_, below, others) = self.parts(record);
        ids.extend(self.ids(record));
        let others = f64::from(others);
        let sum: f64 = below.iter().map(|x| f64::from(*x).exp()).sum();
        // ln(1 − e^others), and what the rounded differences add up to.
        let shift = (-others.exp()).ln_1p().max(f64::from(LEAST)) - sum.ln();
        logs.extend(below.iter().map(|x| (f64::from(*x) + shift) as f32));
        logs.push(others as f32);
    }

    /// What is wrong with a record.
    ///
    /// # Errors
    /// Ids that don't ascend or are not of the vocabulary, numbers that are no such logarithms.
    pub fn check(&self, record: &[u8]) -> Result<(), String> {
        let (ids, below, others) = self.parts(record);
        let ids: Vec<u32> = ids.chunks_exact(self.id_bytes()).map(id_of).collect();
        if !ids.is_sorted_by(|a, b| a < b) || ids.last().is_some_and(|id| *id as usize >= self.vocab) {
            return Err(format!("ids that don't ascend below {}", self.vocab));
        }
        let log = |x: f32| (LEAST..=0.0).contains(&x);
        if !below.iter().all(|x| log(*x)) || !below.contains(&0.0) || !log(others) {
            return Err("logarithms of probabilities that are none".to_owned());
        }
        Ok(())
    }

    fn ids(&self, record: &[u8]) -> impl Iterator<Item = u32> {
        record[..self.top_k * self.id_bytes()].chunks_exact(self.id_bytes()).map(id_of)
    }

    /// Bytes of the ids, differences from the largest logit, logarithm of the others' share.
    fn parts<'a>(&self, record: &'a [u8]) -> (&'a [u8], Vec<f32>, f32) {
        let (ids, rest) = record.split_at(self.top_k * self.id_bytes());
        let (below, others) = rest.split_at(self.top_k * 2);
        let below = below.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        (ids, below, f32::from_le_bytes([others[0], others[1], others[2], others[3]]))
    }
}

/// An id of two or four bytes.
fn id_of(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(layout: &Layout, logits: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let mut record = vec![0; layout.record_bytes()];
        layout.encode(logits, &mut record).expect("finite");
        layout.check(&record).expect("a good record");
        let (mut ids, mut logs) = (Vec::new(), Vec::new());
        layout.decode(&record, &mut ids, &mut logs);
        (ids, logs)
    }

    #[test]
    fn a_record_keeps_the_most_probable_and_exactly_what_the_others_have() {
        for (vocab, temperature) in [(200, 1.0), (70_000, 2.0)] {
            let layout = Layout { vocab, top_k: 16, temperature };
            let logits: Vec<f32> =
                (0..vocab as u64).map(|i| ((i * i * 31 + i * 7) % 193) as f32 / 20.0).collect();
            let (ids, logs) = round_trip(&layout, &logits);
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let power = |x: f32| f64::from((x - largest) / temperature).exp();
            let all: f64 = logits.iter().map(|x| power(*x)).sum();
            let known: f64 = ids.iter().map(|id| power(logits[*id as usize])).sum();
            // exp and sums in f32: some 1e-6. f16 of differences below 1: 2^-11 of them.
            assert!((f64::from(logs[16]) - (1.0 - known / all).ln()).abs() < 1e-5);
            for (id, log) in ids.iter().zip(&logs) {
                let want = (power(logits[*id as usize]) / all).ln();
                assert!((f64::from(*log) - want).abs() < 5e-4, "token {id}: {log} for {want}");
            }
            let sum: f64 = logs.iter().map(|log| f64::from(*log).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            let least = ids.iter().map(|id| logits[*id as usize]).fold(f32::MAX, f32::min);
            assert!(logits.iter().enumerate().all(|(id, x)| ids.contains(&(id as u32)) || *x <= least));
        }
    }

    #[test]
    fn of_equal_logits_the_lowest_ids_are_kept_and_certainty_stays_finite() {
        let layout = Layout { vocab: 8, top_k: 3, temperature: 1.0 };
        assert_eq!(round_trip(&layout, &[0.0, -0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0]).0, [0, 1, 2]);
        let (ids, logs) =
            round_trip(&layout, &[-500.0, 900.0, -500.0, -500.0, -500.0, -500.0, -500.0, -500.0]);
        assert_eq!(ids, [0, 1, 2]);
        assert!((logs[1]).abs() < 1e-6 && logs[3] == LEAST && logs.iter().all(|l| l.is_finite()), "{logs:?}");
        let mut record = vec![0; layout.record_bytes()];
        let spoilt = layout.encode(&[0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &mut record);
        assert_eq!(spoilt, Err("the teacher's logit of token 1 is NaN".to_owned()));
    }

    #[test]
    fn records_that_lie_are_found_out() {
        let layout = Layout { vocab: 8, top_k: 2, temperature: 1.0 };
        let mut good = vec![0; layout.record_bytes()];
        layout.encode(&[0.0, 3.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0], &mut good).expect("finite");
        let nan = f16::NAN.to_le_bytes();
        for (at, bytes, want) in [
            (0, &[3, 0][..], "ids that don't ascend below 8"),
            (2, &[8, 0], "ids that don't ascend below 8"),
            (4, &nan, "logarithms of probabilities that are none"),
            (4, &f16::from_f32(1.0).to_le_bytes(), "logarithms of probabilities that are none"),
            (8, &f32::INFINITY.to_le_bytes(), "logarithms of probabilities that are none"),
            (8, &(-81f32).to_le_bytes(), "logarithms of probabilities that are none"),
        ] {
            let mut record = good.clone();
            record[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(layout.check(&record), Err(want.to_owned()), "{bytes:?} at {at}");
        }
    }
}
