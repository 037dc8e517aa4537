//! What the executor gives does not depend on how it is asked, and what it can't do it says.

use super::*;
use crate::cpu::cache::LayerCache;
use crate::model::AttentionShape;

#[test]
fn any_cut_of_a_text_gives_the_same_bits() {
    // No tolerance: a token's arithmetic never sees how many tokens came along, since products are summed in an order
    // of their own and attention goes over tiles of absolute positions.
    for fixture in Fixture::all() {
        let decoder = &fixture.model.decoder;
        let (ids, _) = fixture.prompts().pop().expect("prompts");
        let whole = all_logits(decoder, &ids);
        for step in [1, 7, 33] {
            let mut session = Session::new(decoder, ids.len()).expect("fits");
            let mut parts = Vec::new();
            for ids in ids.chunks(step) {
                let hidden = session.hidden(ids).expect("ids");
                parts.extend_from_slice(&session.logits(&hidden, 0, ids.len()).expect("logits"));
            }
            assert!(whole == parts, "{}: in steps of {step}", fixture.name);
        }
        let mut session = Session::new(decoder, ids.len()).expect("fits");
        let vocab = decoder.config.vocab_size;
        let last = session.prefill(&ids).expect("prompt");
        assert!(*last == whole[whole.len() - vocab..], "{}: prefill", fixture.name);
        session.reset();
        let first = session.step(ids[0]).expect("step");
        assert!(*first == whole[..vocab], "{}: after a reset", fixture.name);
    }
}

#[test]
fn passes_longer_than_one_agree_with_shorter_ones() {
    for fixture in Fixture::all().iter().take(1) {
        // More than two passes of 256 tokens, and not a whole number of them.
        let ids: Vec<u32> = (0..600).map(|i| (i * 37 + 11) % 500).collect();
        let whole = all_logits(&fixture.model.decoder, &ids);
        let begin = all_logits(&fixture.model.decoder, &ids[..300]);
        assert!(whole[..begin.len()] == begin, "what comes later changes nothing");
    }
}

#[test]
fn decoding_allocates_nothing_once_warm() {
    for fixture in Fixture::all() {
        let mut exec = CpuExec::new(&fixture.model.decoder.config, 64);
        let mut counts = Vec::new();
        for id in 0..32 {
            let hidden = fixture.model.decoder.forward(&mut exec, &[id]).expect("step");
            fixture.model.decoder.logits(&mut exec, &hidden).expect("logits");
            exec.advance(1);
            counts.push(exec.pool().allocations());
        }
        assert!(counts[0] > 0);
        assert_eq!(counts[1], counts[31], "{}: {counts:?}", fixture.name);
    }
}

#[test]
fn attention_is_the_softmax_of_its_definition() {
    // A head of 6 leaves a rest beside whole registers; 75 positions end inside the third tile.
    for head_dim in [6, 8, 20] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim };
        let (positions, first) = (75, 70);
        let mut seed = 1u32;
        let mut noise = |len: usize| -> Vec<f32> {
            let next = |_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 22) as f32 - 2.0
            };
            (0..len).map(next).collect()
        };
        let keys = noise(positions * 2 * head_dim);
        let values = noise(positions * 2 * head_dim);
        let queries = noise((positions - first) * 4 * head_dim);
        let mut cache = LayerCache::new(shape, positions);
        cache.write(0, &keys, &values);
        let mut out = vec![f32::NAN; queries.len()];
        cache.attend(first, &queries, &mut out);
        for (row, (query, out)) in queries.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
            let (seen, kv) = (first + row / 4 + 1, row % 4 / 2);
            let at = |all: &[f32], position: usize| -> Vec<f64> {
                let start = (position * 2 + kv) * head_dim;
                all[start..start + head_dim].iter().map(|v| f64::from(*v)).collect()
            };
            let weight = |position| {
                let dot: f64 = at(&keys, position).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum();
                (dot / (head_dim as f64).sqrt()).exp()
            };
            let total: f64 = (0..seen).map(weight).sum();
            for (lane, out) in out.iter().enumerate() {
                let want: f64 = (0..seen).map(|p| weight(p) / total * at(&values, p)[lane]).sum();
                // Scores of at most 4·√20 < 18 carry 20 roundings of ε/2 each in their exponent (1.1e-5 relative), the
                // mean of values below 2 doubles that between weights and their sum: below 5e-5.
                assert!(
                    (f64::from(*out) - want).abs() < 5e-5,
                    "head {head_dim}, row {row}: {out}, want {want}"
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    for fixture in Fixture::all().iter().take(1) {
        let decoder = &fixture.model.decoder;
        let message = |result: crate::Result<_>| result.map(|_: ()| ()).expect_err("refused").to_string();
        let too_long = message(Session::new(decoder, 4096).map(|_| ()));
        assert!(too_long.contains("4096") && too_long.contains("2048"), "{too_long}");
        assert!(message(Session::new(decoder, 0).map(|_| ())).contains('0'));
        let mut session = Session::new(decoder, 4).expect("fits");
        let no_such_id = message(session.prefill(&[1, 512]).map(|_| ()));
        assert!(
            no_such_id.contains("token id 512") && no_such_id.contains("vocabulary of 512"),
            "{no_such_id}"
        );
        assert!(message(session.prefill(&[]).map(|_| ())).contains("at least one token"));
        session.prefill(&[1, 2, 3]).expect("three of four");
        let full = message(session.prefill(&[4, 5]).map(|_| ()));
        assert!(full.contains("2 tokens after 3") && full.contains("context of 4"), "{full}");
        assert_eq!(session.position(), 3, "a refused call leaves the past as it was");
    }
}
