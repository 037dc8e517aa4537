//! What the executor gives does not depend on how it is asked, and what it can't do it says.

use super::*;
use crate::cpu::attention::Attention;
use crate::cpu::kv::KvCache;
use crate::model::{AttentionShape, Config, Sight};

/// A model of two layers with these heads, as far as a cache wants to know.
pub(super) fn config_of(AttentionShape { heads, kv_heads, head_dim }: AttentionShape) -> Config {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    Config::from_json(&json, std::path::Path::new("config.json")).expect("a config")
}

#[test]
fn any_cut_of_a_text_gives_the_same_bits() {
    // No tolerance: a token's arithmetic never sees how many tokens came along, since products are summed in an order
    // of their own and attention goes over tiles and spans of absolute positions.
    for fixture in Fixture::every() {
        let decoder = &fixture.model.decoder;
        let (ids, _) = fixture.prompts().pop().expect("prompts");
        for kv in KvType::ALL {
            let options = exact(ids.len()).with_kv(kv);
            let mut session = Session::new(decoder, &options).expect("fits");
            let hidden = session.hidden(&ids).expect("ids");
            let whole = session.logits(&hidden, 0, ids.len()).expect("logits").to_vec();
            for (step, threads) in [(1, 1), (7, 2), (33, 3)] {
                let options = RunOptions { threads: Some(threads), ..options };
                let mut session = Session::new(decoder, &options).expect("fits");
                let mut parts = Vec::new();
                for ids in ids.chunks(step) {
                    let hidden = session.hidden(ids).expect("ids");
                    parts.extend_from_slice(session.logits(&hidden, 0, ids.len()).expect("logits"));
                }
                assert!(whole == parts, "{}, {kv}: in steps of {step}", fixture.name);
            }
            let vocab = decoder.config.vocab_size;
            session.reset();
            let last = session.prefill(&ids).expect("prompt");
            assert!(*last == whole[whole.len() - vocab..], "{}, {kv}: prefill", fixture.name);
            session.reset();
            let first = session.step(ids[0]).expect("step");
            assert!(*first == whole[..vocab], "{}, {kv}: after a reset", fixture.name);
        }
    }
}

#[test]
fn a_long_text_read_at_once_or_token_by_token_gives_the_same_bits() {
    // Three passes and three spans of attention, of which blocks of tokens lie across the borders.
    for fixture in Fixture::all().iter().take(1) {
        let ids: Vec<u32> = (0..600).map(|i| (i * 37 + 11) % 500).collect();
        for kv in KvType::ALL {
            let options = exact(ids.len()).with_kv(kv);
            let mut session = Session::new(&fixture.model.decoder, &options).expect("fits");
            let whole = session.prefill(&ids).expect("prompt").to_vec();
            session.reset();
            for id in &ids[..599] {
                session.step(*id).expect("a token");
            }
            assert!(*session.step(ids[599]).expect("a token") == whole, "{kv}: one by one");
            session.reset();
            session.prefill(&ids[..250]).expect("a part");
            assert!(*session.prefill(&ids[250..]).expect("the rest") == whole, "{kv}: in two parts");
        }
    }
}

#[test]
fn fused_operations_compute_the_bits_of_those_they_are_made_of() {
    for fixture in Fixture::every() {
        let decoder = &fixture.model.decoder;
        let (ids, _) = fixture.prompts().pop().expect("prompts");
        let logits = |mut session: Session<'_>| {
            let hidden = session.hidden(&ids).expect("ids");
            session.logits(&hidden, 0, ids.len()).expect("logits").to_vec()
        };
        let fused = logits(Session::new(decoder, &exact(ids.len())).expect("fits"));
        let unfused = logits(Session::unfused(decoder, &exact(ids.len())).expect("fits"));
        assert!(fused == unfused, "{}", fixture.name);
    }
}

#[test]
fn a_layer_is_five_operations_over_four_buffers() {
    for fixture in Fixture::all() {
        let layers = fixture.model.decoder.config.layers;
        let plan = Plan::new(&fixture.model.decoder).expect("a plan");
        // Embedding and last norm; products for attention, attention, products with the sum, twice for the MLP.
        assert_eq!(plan.body.ops.len(), 2 + 5 * layers, "{}", fixture.name);
        assert_eq!(plan.head.ops.len(), 1);
        // The residual stream, and q, k, v with what attention gives, or gate and up.
        assert_eq!(plan.body.widths.len(), 5, "{}: {:?}", fixture.name, plan.body.widths);
        let unfused = Plan::unfused(&fixture.model.decoder).expect("a plan");
        let head_norms = 2 * usize::from(fixture.model.decoder.config.qk_norm);
        assert_eq!(unfused.body.ops.len(), 2 + (12 + head_norms) * layers, "{}", fixture.name);
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
fn attention_is_the_softmax_of_its_definition() {
    // A head of 6 is less than a register, one of 20 leaves a rest; 300 positions end inside the first tile of the second
    // span. Groups of 1, 2, 3 and 7 heads take all paths of the products.
    let windows = [None, Some(299), Some(250), Some(70), Some(3), Some(1)];
    let heads = [(6, 2, 2), (8, 1, 7), (20, 3, 1), (64, 2, 3)];
    for ((head_dim, kv_heads, group), window) in heads.into_iter().flat_map(|h| windows.map(|w| (h, w))) {
        let sight = Sight { window, ..Sight::all(head_dim) };
        let heads = kv_heads * group;
        let shape = AttentionShape { heads, kv_heads, head_dim };
        let (positions, first) = (300, 295);
        let mut seed = 1u32;
        let mut noise = |len: usize| -> Vec<f32> {
            let next = |_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 22) as f32 - 2.0
            };
            (0..len).map(next).collect()
        };
        let keys = noise(positions * kv_heads * head_dim);
        let values = noise(positions * kv_heads * head_dim);
        let queries = noise((positions - first) * heads * head_dim);
        let pool = Pool::new(2).expect("threads");
        let mut cache = KvCache::new(&config_of(shape), KvType::F32, positions).expect("memory");
        cache.extend_to(positions);
        cache.write(&pool, 1, 0, &keys, &values);
        let mut out = vec![f32::NAN; queries.len()];
        Attention::new(shape, positions, 2).attend(&pool, &cache, (1, sight), first, &queries, &mut out);
        for (row, (query, out)) in queries.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
            let (seen, kv) = (first + row / heads + 1, row % heads / group);
            let seen = sight.first(seen - 1)..seen;
            let at = |all: &[f32], position: usize| -> Vec<f64> {
                let start = (position * kv_heads + kv) * head_dim;
                all[start..start + head_dim].iter().map(|v| f64::from(*v)).collect()
            };
            let weight = |position| {
                let dot: f64 = at(&keys, position).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum();
                (dot / (head_dim as f64).sqrt()).exp()
            };
            let total: f64 = seen.clone().map(weight).sum();
            for (lane, out) in out.iter().enumerate() {
                let want: f64 = seen.clone().map(|p| weight(p) / total * at(&values, p)[lane]).sum();
                // Scores of at most 4·√64 = 32 carry 64 roundings of ε/2 each in their exponent (1.2e-4 relative, were
                // they all to one side), the mean of values below 2 doubles that between weights and their sum; roundings to
                // both sides leave a tenth: below 5e-5.
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
        let open = |context| Session::new(decoder, &RunOptions::new(context));
        let too_long = message(open(4096).map(|_| ()));
        assert!(too_long.contains("4096") && too_long.contains("2048"), "{too_long}");
        assert!(message(open(0).map(|_| ())).contains('0'));
        let mut session = open(4).expect("fits");
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

#[test]
fn a_cache_that_no_memory_holds_is_refused_with_its_size() {
    for fixture in Fixture::all().iter().take(1) {
        let mut decoder = fixture.model.decoder.clone();
        decoder.config.max_position_embeddings = 1 << 40;
        let refused = Session::new(&decoder, &exact(1 << 40)).map(|_| ()).expect_err("petabytes").to_string();
        assert!(refused.contains("1099511627776 tokens in f32") && refused.contains("GB"), "{refused}");
        assert!(refused.contains("shorter context") && refused.contains("int8"), "{refused}");
    }
}

#[test]
fn smaller_keys_and_values_move_the_logits_a_little_and_take_the_bytes_they_say() {
    for fixture in Fixture::all() {
        let decoder = &fixture.model.decoder;
        let (ids, want) = fixture.prompts().pop().expect("prompts");
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let size = norm(&mut want.iter().copied());
        let mut before = 0.0;
        for kv in KvType::ALL {
            let mut session = Session::new(decoder, &exact(ids.len()).with_kv(kv)).expect("fits");
            let hidden = session.hidden(&ids).expect("ids");
            let found = session.logits(&hidden, 0, ids.len()).expect("logits");
            let error = norm(&mut found.iter().zip(&want).map(|(a, b)| a - b)) / size;
            // Half a step of what is kept, relative to it, and a few times that through the layers.
            let bound = match kv {
                KvType::F32 => 1e-5,
                KvType::F16 => 2e-3,
                KvType::Int8 => 3e-2,
                KvType::Int4 => 4e-1,
            };
            println!("{} {kv}: {error:.2e}", fixture.name);
            assert!(error <= bound && error >= before, "{}: {kv} {error:e}", fixture.name);
            before = error;
            let Config { layers, kv_heads, head_dim, .. } = decoder.config;
            let per_token = 2 * layers * kv_heads * kv.bytes(head_dim);
            assert_eq!(session.kv_bytes(10), 10 * per_token as u64);
        }
    }
}
