//! Attention of one token and of many, and what goes into the cache.

use super::heads::{Near, Side, attended, turned};
use super::machine::{After, Build, Machine, Mode, f32s, u32s};
use super::uniform;
use crate::cpu::{self, KvCache, KvType, Pool};
use crate::metal::kernels::Attention;
use crate::model::{AttentionShape, Config, Family, Gate, RopeScaling, Sight};

const KVS: [KvType; 2] = [KvType::F16, KvType::Int8];

/// Heads and key/value heads: one, a group, an odd group, more heads of a group than simdgroups.
const HEADS: [[usize; 2]; 6] = [[1, 1], [4, 2], [3, 1], [6, 3], [7, 1], [10, 1]];

/// A layer before a pass of `tokens` tokens at `position`.
struct Layer {
    op: Attention,
    position: usize,
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    norms: [Vec<f32>; 2],
    angles: Vec<f32>,
    keys: Side,
    values: Side,
}

impl Layer {
    fn new(heads: [usize; 2], head_dim: usize, kv: KvType, position: usize, tokens: usize) -> Self {
        Self::around(heads, head_dim, kv, [position, tokens], position + tokens + 3)
    }

    /// With a cache of so many positions, around which later ones go.
    fn around(
        [heads, kv_heads]: [usize; 2],
        head_dim: usize,
        kv: KvType,
        [position, tokens]: [usize; 2],
        capacity: usize,
    ) -> Self {
        let seed = (head_dim * 1000 + position * 10 + tokens + heads + kv.bytes(head_dim)) as u64;
        let rows = kv_heads * capacity;
        let mut layer = Self {
            op: Attention {
                shape: AttentionShape { heads, kv_heads, head_dim },
                kv,
                capacity: capacity as u32,
                norm: None,
                rotary: None,
                sight: Sight::all(head_dim),
            },
            position,
            tokens,
            // Scores of about ±1: every key has a weight that shows.
            q: uniform(seed, tokens * heads * head_dim, 1.0),
            k: uniform(seed + 1, tokens * kv_heads * head_dim, 3.0),
            v: uniform(seed + 2, tokens * kv_heads * head_dim, 2.0),
            norms: [seed + 3, seed + 4].map(|seed| uniform(seed, head_dim, 2.0)),
            angles: uniform(seed + 5, (position + tokens + 3) * head_dim / 2, 7.0),
            keys: Side::poisoned(kv, rows, head_dim),
            values: Side::poisoned(kv, rows, head_dim),
        };
        let per_position = layer.angles.chunks(head_dim / 2);
        layer.angles = per_position
            .flat_map(|angles| angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())))
            .collect();
        let past = uniform(seed + 6, 2 * kv_heads * position * head_dim, 3.0);
        for (row, pair) in past.chunks(2 * head_dim).enumerate() {
            let at = row / position * capacity + row % position % capacity;
            layer.keys.keep(at, &pair[..head_dim]);
            layer.values.keep(at, &pair[head_dim..]);
        }
        layer
    }

    /// With norms or rotation.
    fn with(mut self, norm: bool, rope: bool) -> Self {
        self.op.norm = norm.then_some(0.3);
        self.op.rotary = rope.then_some(self.op.shape.head_dim);
        self
    }

    /// With a rotation of so many elements, seeing a window, scores scaled otherwise.
    fn with_part(mut self, rotary: usize, window: usize) -> Self {
        let per_position = self.angles.chunks(self.op.shape.head_dim);
        self.angles = per_position.flat_map(|angles| angles[..rotary].iter().copied()).collect();
        self.op.rotary = Some(rotary);
        self.op.sight = Sight { window: Some(window), scale: 1.5 * self.op.sight.scale };
        self
    }

    fn row(&self, kv_head: usize, position: usize) -> usize {
        kv_head * self.op.capacity as usize + position % self.op.capacity as usize
    }

    /// Head `head` of token `token`, which has `heads` of them in `x`.
    fn head<'a>(&self, x: &'a [f32], heads: usize, token: usize, head: usize) -> &'a [f32] {
        let n = self.op.shape.head_dim;
        &x[(token * heads + head) * n..][..n]
    }

    fn turned(&self, head: &[f32], norm: &[f32], token: usize) -> Vec<Near> {
        let angles = self.op.rotary.map(|wide| &self.angles[(self.position + token) * wide..][..wide]);
        turned(head, self.op.norm.map(|eps| (norm, eps)), angles)
    }

    fn turned_query(&self, token: usize, head: usize) -> Vec<Near> {
        self.turned(self.head(&self.q, self.op.shape.heads, token, head), &self.norms[0], token)
    }

    /// What every attention kernel but the join reads: queries, caches, the step.
    fn bind(&self, machine: Machine, in_out: bool) -> Machine {
        let step = u32s(&[self.position as u32, self.tokens as u32]);
        let scaled =
            (self.op.kv == KvType::Int8).then_some([(8, &self.keys.scales), (9, &self.values.scales)]);
        let caches =
            [(6, &self.keys.codes), (7, &self.values.codes)].into_iter().chain(scaled.into_iter().flatten());
        caches.fold(machine.input(10, step), |machine, (place, bytes)| match in_out {
            true => machine.in_out(place, bytes.clone()),
            false => machine.input(place, bytes.clone()),
        })
    }

    /// What kernels read that turn heads.
    fn bind_turn(&self, mut machine: Machine) -> Machine {
        machine = machine.input(1, f32s(&self.k)).input(2, f32s(&self.v));
        if self.op.norm.is_some() {
            machine = machine.input(3, f32s(&self.norms[0])).input(4, f32s(&self.norms[1]));
        }
        if self.op.rotary.is_some() {
            machine = machine.input(5, f32s(&self.angles));
        }
        self.bind(machine, true)
    }

    /// The caches after a run: what was to be kept is, and nothing else has changed.
    fn assert_kept(&self, mode: Mode, after: &After<'_>) -> [Side; 2] {
        let side = |codes, scales, before: &Side| Side {
            codes: after.bytes(codes).to_vec(),
            scales: if before.scales.is_empty() { Vec::new() } else { after.bytes(scales).to_vec() },
        };
        let sides = [side(6, 8, &self.keys), side(7, 9, &self.values)];
        let (n, kv_heads) = (self.op.shape.head_dim, self.op.shape.kv_heads);
        let mut expected = [self.keys.clone(), self.values.clone()];
        for (token, kv_head) in (0..self.tokens).flat_map(|t| (0..kv_heads).map(move |h| (t, h))) {
            let row = self.row(kv_head, self.position + token);
            let key = self.turned(self.head(&self.k, kv_heads, token, kv_head), &self.norms[1], token);
            sides[0].assert_kept(row, &key);
            let value = self.head(&self.v, kv_heads, token, kv_head);
            sides[1].assert_kept(row, &turned(value, None, None));
            expected[0].copy(row, n, &sides[0]);
            match mode.build {
                Build::FastMath => expected[1].copy(row, n, &sides[1]),
                // Nothing happens to a value on its way: it is kept as the CPU keeps it.
                _ => expected[1].keep(row, value),
            }
        }
        assert!(sides == expected, "what was there before stays, and values are kept as the CPU keeps them");
        sides
    }

    /// What a query sees of some caches.
    fn attended(&self, [keys, values]: &[Side; 2], query: &[Near], head: usize, token: usize) -> Vec<Near> {
        let AttentionShape { heads, kv_heads, head_dim } = self.op.shape;
        let rows = |side: &Side| -> Vec<Vec<f64>> {
            let last = self.position + token;
            let seen = self.op.sight.first(last)..=last;
            seen.map(|at| side.row(self.row(head / (heads / kv_heads), at), head_dim)).collect()
        };
        attended(query, f64::from(self.op.sight.scale), &rows(keys), &rows(values))
    }
}

fn assert_near(found: &[f32], want: &[Near], what: &str) {
    for (d, (found, want)) in found.iter().zip(want).enumerate() {
        let off = (f64::from(*found) - want.value).abs();
        assert!(off <= want.slack, "{what}: element {d} is {found} for {want:?}");
    }
}

fn check_turn(layer: &Layer) {
    let AttentionShape { heads, head_dim, .. } = layer.op.shape;
    // A launch for more tokens than there are leaves the others alone.
    let mut q = layer.q.clone();
    q.extend(vec![7.5; heads * head_dim]);
    let machine = Machine::new(layer.op.turn(layer.tokens as u32 + 1), 11).in_out(0, f32s(&q));
    layer.bind_turn(machine).with_less_to_do().verify(|mode, after| {
        layer.assert_kept(mode, &after);
        let found = after.f32s(0);
        for (token, head) in (0..layer.tokens).flat_map(|t| (0..heads).map(move |h| (t, h))) {
            let what = format!("{:?}, token {token}, head {head}", layer.op);
            assert_near(layer.head(&found, heads, token, head), &layer.turned_query(token, head), &what);
        }
        assert_eq!(found[layer.q.len()..], q[layer.q.len()..]);
    });
}

fn check_decode(layer: &Layer, parts: u32) {
    let AttentionShape { heads, head_dim, .. } = layer.op.shape;
    let width = head_dim + 2;
    let mut machine =
        Machine::new(layer.op.decode(parts, layer.position as u32), 11).input(0, f32s(&layer.q));
    machine = match parts {
        1 => machine.output(12, 4 * heads * head_dim),
        _ => machine.output(13, 4 * heads * parts as usize * width),
    };
    layer.bind_turn(machine).verify(|mode, after| {
        let sides = layer.assert_kept(mode, &after);
        let want: Vec<Vec<Near>> =
            (0..heads).map(|head| layer.attended(&sides, &layer.turned_query(0, head), head, 0)).collect();
        let assert_all = |found: &[f32]| {
            for (head, (found, want)) in found.chunks(head_dim).zip(&want).enumerate() {
                assert_near(
                    found,
                    want,
                    &format!("{:?} at {}, {parts} parts, head {head}", layer.op, layer.position),
                );
            }
        };
        if parts == 1 {
            assert_all(&after.f32s(12));
            return;
        }
        let machine = Machine::new(layer.op.join(parts), 11).output(12, 4 * heads * head_dim);
        machine.input(13, after.bytes(13).to_vec()).verify(|_, after| assert_all(&after.f32s(12)));
    });
}

fn check_prefill(layer: &mut Layer) {
    let AttentionShape { heads, kv_heads, head_dim } = layer.op.shape;
    for (token, kv_head) in (0..layer.tokens).flat_map(|t| (0..kv_heads).map(move |h| (t, h))) {
        let row = layer.row(kv_head, layer.position + token);
        let at = (token * kv_heads + kv_head) * head_dim;
        layer.keys.keep(row, &layer.k[at..][..head_dim]);
        layer.values.keep(row, &layer.v[at..][..head_dim]);
    }
    let layer = &*layer;
    let sides = [layer.keys.clone(), layer.values.clone()];
    let want: Vec<Vec<Near>> = (0..layer.tokens * heads)
        .map(|at| layer.attended(&sides, &layer.turned_query(at / heads, at % heads), at % heads, at / heads))
        .collect();
    // Every other launch is for more tokens than there are.
    let more = layer.tokens as u32 % 2 * 33;
    let dispatch = layer.op.prefill(layer.tokens as u32 + more, layer.position as u32);
    let mut machine = Machine::new(dispatch, 11).input(0, f32s(&layer.q)).output(12, 4 * layer.q.len());
    if more > 0 {
        machine = machine.with_less_to_do();
    }
    layer.bind(machine, false).verify(|_, after| {
        for (at, (found, want)) in after.f32s(12).chunks(head_dim).zip(&want).enumerate() {
            let what = format!("{:?} at {}, token {}", layer.op, layer.position, at / heads);
            assert_near(found, want, &what);
        }
    });
}

/// All widths that kernels are made for, the ends of their ranges, and one whose halves are odd.
const HEAD_DIMS: [usize; 8] = [16, 32, 36, 64, 80, 96, 128, 256];

#[test]
fn heads_are_turned_and_kept() {
    for (at, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (n, kv) in KVS.into_iter().enumerate() {
            for (m, (norm, rope)) in
                [(false, false), (true, false), (false, true), (true, true)].into_iter().enumerate()
            {
                let heads = HEADS[(at + n + m) % 4];
                check_turn(&Layer::new(heads, head_dim, kv, [0, 5, 31][m % 3], 1 + at % 3).with(norm, rope));
            }
        }
    }
}

#[test]
fn what_is_too_great_for_the_cache_saturates() {
    for kv in KVS {
        let mut layer = Layer::new([1, 1], 32, kv, 1, 1);
        (layer.v[0], layer.v[1], layer.v[2]) = (1e9, -70_000.0, 65_519.9);
        (layer.k[0], layer.k[1]) = (65_504.0, -1e9);
        check_turn(&layer);
        let zeros = Layer { v: vec![0.0; 32], k: vec![0.0; 32], ..Layer::new([1, 1], 32, kv, 1, 1) };
        check_turn(&zeros);
        check_decode(&zeros, 1);
    }
}

#[test]
fn one_token_attends_to_all_before_it() {
    for (at, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (n, position) in [0, 1, 31, 32, 33, 200].into_iter().enumerate() {
            let heads = HEADS[(at + n) % HEADS.len()];
            let kv = KVS[(at + n) % 2];
            check_decode(&Layer::new(heads, head_dim, kv, position, 1).with(n % 2 == 0, n % 3 != 1), 1);
        }
    }
}

#[test]
fn a_long_past_is_attended_in_parts() {
    for (n, position) in [0, 1, 2, 31, 33, 150, 200].into_iter().enumerate() {
        let (heads, head_dim) = (HEADS[n % HEADS.len()], HEAD_DIMS[(n + 3) % HEAD_DIMS.len()]);
        for parts in [2, 5, 32] {
            check_decode(&Layer::new(heads, head_dim, KVS[n % 2], position, 1).with(n % 2 == 1, true), parts);
        }
    }
}

#[test]
fn part_of_a_head_is_turned_and_a_window_is_seen() {
    for (n, kv) in KVS.into_iter().enumerate() {
        for (m, (rotary, window)) in [(96, 1), (48, 7), (2, 33), (128, 150)].into_iter().enumerate() {
            let layer = |heads, position, tokens| {
                Layer::new(heads, 128, kv, position, tokens).with(m % 2 == 0, false).with_part(rotary, window)
            };
            check_turn(&layer(HEADS[m], 5, 2));
            check_decode(&layer(HEADS[m + n], [0, 40, 150, 9][m], 1), 1);
            check_decode(&layer([2, 1], 170, 1), [2, 5][n]);
            // Its queries come turned.
            let mut turned = layer([2, 1], [0, 50, 9][m % 3], [1, 9, 40][(m + n) % 3]);
            (turned.op.norm, turned.op.rotary) = (None, None);
            check_prefill(&mut turned);
        }
    }
}

#[test]
fn positions_go_around_a_cache_that_is_longer_than_the_window() {
    for (n, kv) in KVS.into_iter().enumerate() {
        // Just long enough for the window, the pass and the beginning of a tile; the border falls before, into and behind the window.
        for (m, position) in [100, 128, 130, 150, 170, 270].into_iter().enumerate() {
            for (tokens, window) in [(1, 33), (9, 40), (40, 7)] {
                let capacity = window + tokens + 16;
                let heads = HEADS[(m + n) % 2];
                let mut layer =
                    Layer::around(heads, 64, kv, [position, tokens], capacity).with_part(32, window);
                check_turn(&layer);
                if tokens == 1 {
                    check_decode(&layer, [1, 3][m % 2]);
                } else {
                    layer.op.rotary = None;
                    check_prefill(&mut layer);
                }
            }
        }
    }
}

#[test]
fn scores_far_from_zero_neither_overflow_nor_vanish() {
    for kv in KVS {
        let mut layer = Layer::new([2, 1], 64, kv, 40, 1);
        layer.q.iter_mut().for_each(|q| *q *= 100.0);
        check_decode(&layer, 1);
        check_decode(&layer, 3);
        let mut layer = Layer::new([2, 1], 64, kv, 5, 20);
        layer.q.iter_mut().for_each(|q| *q *= 100.0);
        check_prefill(&mut layer);
        // All of them some −600.
        let mut layer = Layer::new([2, 1], 64, kv, 21, 1);
        layer.q.iter_mut().for_each(|q| *q = -100.0 * q.abs());
        layer.k.iter_mut().for_each(|k| *k = k.abs());
        for at in 0..layer.position {
            let key: Vec<f32> = layer.keys.row(at, 64).iter().map(|k| k.abs() as f32).collect();
            layer.keys.keep(at, &key);
        }
        check_decode(&layer, 1);
        check_decode(&layer, 2);
    }
}

#[test]
fn many_tokens_attend_to_what_each_of_them_may_see() {
    let small = [[1, 1], [2, 1], [4, 2], [3, 3], [3, 1]];
    for (n, tokens) in [1, 2, 7, 8, 9, 33, 65].into_iter().enumerate() {
        for (m, position) in [0, 1, 31, 33].into_iter().enumerate() {
            let head_dim =
                if tokens > 9 { [16, 36, 64][(n + m) % 3] } else { HEAD_DIMS[(2 * n + m) % HEAD_DIMS.len()] };
            let heads = if tokens > 9 { small[m % 2] } else { small[(n + m) % small.len()] };
            check_prefill(&mut Layer::new(heads, head_dim, KVS[(n + m) % 2], position, tokens));
        }
    }
    for kv in KVS {
        // The last row of a simdgroup, and of the threadgroup, is the first to see a tile.
        check_prefill(&mut Layer::new([1, 1], 64, kv, 9, 8));
        check_prefill(&mut Layer::new([1, 1], 64, kv, 1, 32));
        check_prefill(&mut Layer::new([2, 1], 256, kv, 32, 9));
        check_prefill(&mut Layer::new([1, 1], 128, kv, 200, 2));
        check_prefill(&mut Layer::new([1, 1], 80, kv, 3, 33));
    }
}

/// A model of one layer, as far as the CPU's cache asks.
fn config(shape: AttentionShape) -> Config {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    Config {
        family: Family::Llama,
        vocab_size: 1,
        hidden_size: heads * head_dim,
        intermediate_size: 1,
        layers: 1,
        heads,
        kv_heads,
        head_dim,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rotary_dim: head_dim,
        query_scalar: head_dim,
        rope_scaling: RopeScaling::None,
        local_rope_theta: None,
        sliding: None,
        tie_word_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        gate: Gate::Silu,
        sub_norms: false,
        post_norms: false,
        short_convs: None,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

/// Both are within the bound of the truth, so within twice the bound of each other.
#[test]
fn attention_is_that_of_the_cpu() {
    for (kv, tokens) in KVS.into_iter().flat_map(|kv| [(kv, 1), (kv, 6)]) {
        let mut layer = Layer::new([6, 2], 64, kv, 70, tokens);
        let (shape, position) = (layer.op.shape, layer.position);
        let AttentionShape { heads, kv_heads, head_dim } = shape;
        let past = uniform(9, 2 * kv_heads * position * head_dim, 3.0);
        let (past_keys, past_values) = past.split_at(past.len() / 2);
        let (keys, values) = ([past_keys, &layer.k].concat(), [past_values, &layer.v].concat());
        for (at, (key, value)) in keys.chunks(head_dim).zip(values.chunks(head_dim)).enumerate() {
            let row = layer.row(at % kv_heads, at / kv_heads);
            layer.keys.keep(row, key);
            layer.values.keep(row, value);
        }
        let pool = Pool::new(1).expect("a thread");
        let mut cache = KvCache::new(&config(shape), kv, position + tokens).expect("memory");
        cache.extend_to(position + tokens);
        cache.write(&pool, 0, 0, &keys, &values);
        let mut want = vec![0.0; tokens * heads * head_dim];
        cpu::Attention::new(shape, position + tokens, 1).attend(
            &pool,
            &cache,
            (0, layer.op.sight),
            position,
            &layer.q,
            &mut want,
        );

        let sides = [layer.keys.clone(), layer.values.clone()];
        let dispatch = if tokens == 1 {
            layer.op.decode(1, position as u32)
        } else {
            layer.op.prefill(tokens as u32, 0)
        };
        let machine = Machine::new(dispatch, 11).input(0, f32s(&layer.q)).output(12, 4 * layer.q.len());
        let machine = if tokens == 1 { layer.bind_turn(machine) } else { layer.bind(machine, false) };
        machine.verify(|_, after| {
            let found = after.f32s(12);
            for (at, (found, want)) in found.chunks(head_dim).zip(want.chunks(head_dim)).enumerate() {
                let (token, head) = (at / heads, at % heads);
                let near = layer.attended(&sides, &layer.turned_query(token, head), head, token);
                let near: Vec<Near> = near
                    .iter()
                    .zip(want)
                    .map(|(near, want)| Near { value: f64::from(*want), slack: 2.0 * near.slack })
                    .collect();
                assert_near(found, &near, "as on the CPU");
            }
        });
    }
}
