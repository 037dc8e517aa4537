//! Layers that see a window keep only what is in sight, and nobody notices.

use super::*;
use crate::cpu::attention::Attention;
use crate::cpu::kv::{KvCache, TILE};
use crate::model::{AttentionShape, Config, Sight, Sliding};

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 20 };
const CONTEXT: usize = 2000;

/// Two layers, of which the first sees a window, or neither.
fn config(window: Option<usize>) -> Config {
    let mut config = super::invariance::config_of(SHAPE);
    config.max_position_embeddings = CONTEXT;
    config.sliding = window.map(|window| Sliding { window, layers: vec![true, false] });
    config
}

/// The same numbers for the same position.
fn rows(first: usize, count: usize, heads: usize, salt: usize) -> Vec<f32> {
    let width = heads * SHAPE.head_dim;
    (first * width..(first + count) * width)
        .map(|at| ((at * 7919 + salt * 104_729) % 9973) as f32 / 2500.0 - 2.0)
        .collect()
}

/// Reads `tokens` from `position` on, and gives what layer `layer` shows them.
fn read(cache: &mut KvCache, (layer, sight): (usize, Sight), position: usize, tokens: usize) -> Vec<f32> {
    let pool = Pool::new(2).expect("threads");
    let AttentionShape { heads, kv_heads, .. } = SHAPE;
    cache.extend_to(position + tokens);
    let (keys, values) = (rows(position, tokens, kv_heads, 1), rows(position, tokens, kv_heads, 2));
    cache.write(&pool, layer, position, &keys, &values);
    let queries = rows(position, tokens, heads, 3);
    let mut out = vec![f32::NAN; queries.len()];
    Attention::new(SHAPE, CONTEXT, 2).attend(&pool, cache, (layer, sight), position, &queries, &mut out);
    out
}

#[test]
fn what_slid_out_of_sight_is_written_over_and_nothing_else_changes() {
    for (kv, window) in [(KvType::F32, 1), (KvType::F16, 70), (KvType::Int8, 64), (KvType::Int4, 300)] {
        let mut kept = KvCache::new(&config(Some(window)), kv, CONTEXT).expect("memory");
        let mut all = KvCache::new(&config(None), kv, CONTEXT).expect("memory");
        let sight = Sight { window: Some(window), ..Sight::all(SHAPE.head_dim) };
        // Whole passes, rests, single tokens, and tiles that end in the middle.
        let (mut position, mut cuts) = (0, [256, 256, 1, 63, 256, 200, 1, 1, 17, 256].iter().cycle());
        while position < CONTEXT {
            let tokens = cuts.next().map_or(1, |cut| *cut).min(CONTEXT - position);
            for layer in [(0, sight), (1, Sight::all(SHAPE.head_dim))] {
                let (found, want) =
                    (read(&mut kept, layer, position, tokens), read(&mut all, layer, position, tokens));
                assert!(found == want, "{kv}, window {window}: layer {} at {position}", layer.0);
            }
            position += tokens;
        }
        // A tile more than window, pass, and a pass to go back; a token sees less of them.
        let positions = (window + 512).div_ceil(TILE) + 1 + CONTEXT.div_ceil(TILE);
        let of_layer = 2 * SHAPE.kv_heads * kv.bytes(SHAPE.head_dim);
        assert_eq!(kept.past_bytes(CONTEXT), positions * TILE * of_layer + 8);
        assert_eq!(kept.seen_bytes(1500), ((1500 + window - 1) * of_layer) as u64);

        assert!(kept.reaches(CONTEXT - 256) && !kept.reaches(CONTEXT - 640 - window));
        let mut again = KvCache::new(&config(Some(window)), kv, CONTEXT).expect("memory");
        again.restore(CONTEXT, &kept.past(CONTEXT));
        assert!(again.reaches(CONTEXT - 256) && !again.reaches(CONTEXT - 640 - window));
        for cache in [&mut kept, &mut again] {
            let (found, want) =
                (read(cache, (0, sight), CONTEXT - 256, 100), read(&mut all, (0, sight), CONTEXT - 256, 100));
            assert!(found == want, "{kv}, window {window}: gone back");
            assert!(!cache.reaches(CONTEXT - 640 - window), "what was written over stays so");
            cache.clear();
            assert!(cache.reaches(0));
        }
    }
}

#[test]
fn a_model_with_windows_reads_a_long_text_as_if_it_kept_everything() {
    for fixture in Fixture::open(&["gemma3"]) {
        let decoder = &fixture.model.decoder;
        let ids: Vec<u32> = (0..1300).map(|i| (i * 37 + 11) % 250).collect();
        let options = exact(ids.len());
        // The plan still has the windows, the cache does not.
        let everything = Config { sliding: None, ..decoder.config.clone() };
        let plan = Plan::new(decoder).expect("a plan");
        let want =
            Session::with(plan, &everything, &options).expect("fits").prefill(&ids).expect("read").to_vec();
        let mut session = Session::new(decoder, &options).expect("fits");
        session.prefill(&ids[..1100]).expect("read");
        let past = session.past().expect("a past");
        assert!(*session.prefill(&ids[1100..]).expect("read") == want);
        assert!(!session.rewind(300) && session.position() == 1300, "it no longer sees so far");
        assert!(session.rewind(1100) && *session.prefill(&ids[1100..]).expect("read") == want);
        let mut other = Session::new(decoder, &options).expect("fits");
        other.restore(&ids[..1100], &past).expect("restored");
        assert!(*other.prefill(&ids[1100..]).expect("read") == want);
        assert!(other.rewind(0) && *other.prefill(&ids).expect("read") == want);
    }
}
