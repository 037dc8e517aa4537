//! Causal softmax attention over the KV cache of a layer.
//!
//! One pass with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2205.14135): for a tile of 64
//! positions, scores, weights, and the weighted sum of the values, which is rescaled whenever a greater score turns up.
//! The rows that look at a tile are the queries of all heads of its group, for one token or for a block of tokens, so
//! that a tile is read and converted to f32 once for all of them.
//!
//! Positions are cut into spans, whose results are joined in order. When one token is decoded, spans are tasks of
//! their own; that keeps threads busy that the few key/value heads of a model would not.
//!
//! Knows no layers and no rotation. Invariant: tiles and spans begin at multiples of the *absolute* position, and every
//! sum runs over positions (or over a head) in order. What a token's attention gives is therefore the same bits however
//! the tokens were cut into calls, and however many threads there are.

use pulp::{Simd, WithSimd};
use qat_quant::{vectorized, with_simd};

use super::kv::{Code, KvCache, LayerCache, TILE, with_code};
use super::lanes::{exp, exp_of_register, greater};
use super::pool::{Chunks, Pool, Tile, Tiles};
use super::products::add_products;
use crate::model::{AttentionShape, Sight};

/// Tiles of a span.
const SPAN: usize = 4;
/// Positions of a span.
const SPAN_POSITIONS: usize = SPAN * TILE;
/// Tokens of a block in prefill.
const TOKENS: usize = 16;
/// Beside the weighted values of a row: the greatest score and the sum of weights.
const SUMS: usize = 2;

/// What a thread needs to work in.
#[derive(Debug, Default)]
struct Scratch {
    /// `[rows, head_dim]`, scaled.
    queries: Vec<f32>,
    /// `[rows, TILE]`: scores, then weights.
    weights: Vec<f32>,
    /// A tile of keys, then one of values.
    tile: Vec<f32>,
    /// `[rows, head_dim + SUMS]` of a span.
    span: Vec<f32>,
    /// The same of all spans so far.
    all: Vec<f32>,
}

/// Attention of one layer at a time, and the memory for it.
#[derive(Debug)]
pub struct Attention {
    shape: AttentionShape,
    scratch: Vec<Scratch>,
    /// `[kv_heads, spans, group, head_dim + SUMS]`
    spans: Vec<f32>,
}

/// What the tasks of one call share.
#[derive(Clone, Copy)]
struct Call<'a, C> {
    code: C,
    cache: LayerCache<'a>,
    shape: AttentionShape,
    sight: Sight,
    /// Of the first token.
    position: usize,
    queries: &'a [f32],
}

impl Attention {
    /// Memory for contexts of up to `capacity` positions and `threads`.
    pub fn new(shape: AttentionShape, capacity: usize, threads: usize) -> Self {
        let group = shape.heads / shape.kv_heads;
        let (rows, width) = (TOKENS * group, shape.head_dim + SUMS);
        let scratch = || Scratch {
            queries: vec![0.0; rows * shape.head_dim],
            weights: vec![0.0; rows * TILE],
            tile: vec![0.0; TILE * shape.head_dim],
            span: vec![0.0; rows * width],
            all: vec![0.0; rows * width],
        };
        let spans = vec![0.0; shape.heads * capacity.div_ceil(SPAN_POSITIONS) * width];
        Self { shape, scratch: (0..threads).map(|_| scratch()).collect(), spans }
    }

    /// Attention, as far as `sight` goes, of the queries `[tokens, heads · head_dim]` at the positions from `position` on, whose keys
    /// and values have been written to `layer`: `out`, of the same shape.
    pub fn attend(
        &mut self,
        pool: &Pool,
        cache: &KvCache,
        (layer, sight): (usize, Sight),
        position: usize,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let shape = self.shape;
        with_code!(cache.kv(), code => {
            let call = Call { code, cache: cache.layer(layer), shape, sight, position, queries };
            if queries.len() == shape.heads * shape.head_dim {
                self.one_token(pool, call, out);
            } else {
                self.many_tokens(pool, call, out);
            }
        });
    }

    /// A task for each key/value head and span.
    fn one_token<C: Code>(&mut self, pool: &Pool, call: Call<'_, C>, out: &mut [f32]) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let (group, width) = (heads / kv_heads, head_dim + SUMS);
        let first_span = call.sight.first(call.position) / SPAN_POSITIONS;
        let spans = (call.position + 1).div_ceil(SPAN_POSITIONS) - first_span;
        let all = &mut self.spans[..heads * spans * width];
        let parts = Chunks::new(all, group * width);
        pool.each_with(&mut self.scratch, parts, |scratch, index, part| {
            with_simd(OneSpan {
                call,
                scratch,
                head: index / spans,
                span: first_span + index % spans,
                out: part,
            });
        });
        vectorized(
            #[inline(always)]
            || {
                let heads = all.chunks_exact_mut(spans * group * width);
                for (of_head, out) in heads.zip(out.chunks_exact_mut(group * head_dim)) {
                    let (first, rest) = of_head.split_at_mut(group * width);
                    rest.chunks_exact(group * width).for_each(|span| join(first, span, head_dim));
                    for (row, out) in first.chunks_exact(width).zip(out.chunks_exact_mut(head_dim)) {
                        finish(row, out);
                    }
                }
            },
        );
    }

    /// A task for each key/value head and block of tokens.
    fn many_tokens<C: Code>(&mut self, pool: &Pool, call: Call<'_, C>, out: &mut [f32]) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let width = heads * head_dim;
        let tokens = out.len() / width;
        let tiles = Tiles::new(out, [tokens, width], [TOKENS, width / kv_heads]);
        pool.each_with(&mut self.scratch, tiles, |scratch, _, mut tile| {
            with_simd(Block { call, scratch, out: &mut tile });
        });
    }
}

/// One token's part of a span.
struct OneSpan<'a, C> {
    call: Call<'a, C>,
    scratch: &'a mut Scratch,
    head: usize,
    span: usize,
    out: &'a mut [f32],
}

impl<C: Code> WithSimd for OneSpan<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { call, scratch: Scratch { queries, weights, tile, .. }, head, span, out } = self;
        call.load_queries(head, 0..1, queries);
        call.span(simd, (head, span), 0..1, queries, weights, tile, out);
    }
}

/// All spans of a block of tokens, for the heads of one group.
struct Block<'a, 'o, C> {
    call: Call<'a, C>,
    scratch: &'a mut Scratch,
    out: &'a mut Tile<'o>,
}

impl<C: Code> WithSimd for Block<'_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { call, scratch, out } = self;
        let AttentionShape { heads, kv_heads, head_dim } = call.shape;
        let (group, width) = (heads / kv_heads, head_dim + SUMS);
        let [token, column] = out.first();
        let tokens = token..token + out.shape()[0];
        let head = column / (group * head_dim);
        let rows = tokens.len() * group;
        let Scratch { queries, weights, tile, span, all } = scratch;
        let (span, all) = (&mut span[..rows * width], &mut all[..rows * width]);
        call.load_queries(head, tokens.clone(), queries);
        let first_span = call.sight.first(call.position + tokens.start) / SPAN_POSITIONS;
        let spans = (call.position + tokens.end).div_ceil(SPAN_POSITIONS);
        call.span(simd, (head, first_span), tokens.clone(), queries, weights, tile, all);
        for index in first_span + 1..spans {
            call.span(simd, (head, index), tokens.clone(), queries, weights, tile, span);
            join(all, span, head_dim);
        }
        for (row, sums) in all.chunks_exact(width).enumerate() {
            finish(sums, &mut out.row(row / group)[row % group * head_dim..][..head_dim]);
        }
    }
}

impl<C: Code> Call<'_, C> {
    /// The queries of a group for some tokens, scaled: `out` `[tokens · group, head_dim]`.
    #[inline(always)]
    fn load_queries(&self, head: usize, tokens: std::ops::Range<usize>, out: &mut [f32]) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let part = heads / kv_heads * head_dim;
        for (token, out) in tokens.zip(out.chunks_exact_mut(part)) {
            let queries = &self.queries[token * heads * head_dim + head * part..][..part];
            for (out, query) in out.iter_mut().zip(queries) {
                *out = query * self.sight.scale;
            }
        }
    }

    /// What some tokens see in one span: for each of the rows, the weighted sum of values, the greatest score, and the
    /// sum of weights. A row that sees nothing of the span gets zeros and a greatest score of −∞.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the parts of a scratch, some of which the caller keeps")]
    fn span<S: Simd>(
        &self,
        simd: S,
        (head, span): (usize, usize),
        tokens: std::ops::Range<usize>,
        queries: &[f32],
        weights: &mut [f32],
        tile: &mut [f32],
        out: &mut [f32],
    ) {
        let head_dim = self.shape.head_dim;
        let group = self.shape.heads / self.shape.kv_heads;
        let rows = tokens.len() * group;
        let (queries, weights) = (&queries[..rows * head_dim], &mut weights[..rows * TILE]);
        for row in out.chunks_exact_mut(head_dim + SUMS) {
            row.fill(0.0);
            row[head_dim] = f32::NEG_INFINITY;
        }
        let end = self.position + tokens.end;
        let first = self.position + tokens.start;
        let first_tile = self.sight.first(first) / TILE;
        for index in (span * SPAN).max(first_tile)..((span + 1) * SPAN).min(end.div_ceil(TILE)) {
            let (keys, values) = self.cache.tile(index, head);
            self.code.keys(keys, tile);
            weights.fill(0.0);
            add_products(simd, (queries, head_dim), (tile, TILE), (&mut *weights, TILE));
            for (row, (weights, out)) in weights
                .as_chunks_mut::<TILE>()
                .0
                .iter_mut()
                .zip(out.chunks_exact_mut(head_dim + SUMS))
                .enumerate()
            {
                let position = first + row / group;
                let in_tile = |position: usize| position.saturating_sub(index * TILE).min(TILE);
                softmax(simd, weights, in_tile(self.sight.first(position))..in_tile(position + 1), out);
            }
            let visible = (end - index * TILE).min(TILE);
            let values_of = &mut tile[..visible * head_dim];
            self.code.values(values, head_dim, values_of);
            add_products(simd, (&*weights, TILE), (values_of, head_dim), (&mut *out, head_dim + SUMS));
        }
    }
}

/// Scores become weights `e^(score − greatest)`; the row's sums so far are rescaled to its new greatest score. What is not
/// visible has no weight at all.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32; TILE], visible: std::ops::Range<usize>, row: &mut [f32]) {
    if visible.is_empty() {
        scores.fill(0.0);
        return;
    }
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    let (values, sums) = row.split_at_mut(row.len() - SUMS);
    let registers = S::as_mut_simd_f32s(scores).0;
    let mut peaks = registers[0];
    for scores in &registers[1..] {
        peaks = simd.max_f32s(peaks, *scores);
    }
    let (before, peak) = (sums[0], simd.reduce_max_f32s(peaks));
    let greatest = greater(before, peak);
    for scores in registers {
        *scores = exp_of_register(simd, simd.sub_f32s(*scores, simd.splat_f32s(greatest)));
    }
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let total = sum_of_tile(scores);
    if greatest > before {
        let shrink = exp(before - greatest);
        values.iter_mut().for_each(|value| *value *= shrink);
        sums[1] *= shrink;
    }
    (sums[0], sums[1]) = (greatest, sums[1] + total);
}

/// The sum of a tile in halves: `l` with `l + 32`, and so on.
#[inline(always)]
fn sum_of_tile(tile: &[f32; TILE]) -> f32 {
    let mut sums = *tile;
    let mut half = TILE / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Takes a later span into `all`.
#[inline(always)]
fn join(all: &mut [f32], span: &[f32], head_dim: usize) {
    let rows = all.chunks_exact_mut(head_dim + SUMS).zip(span.chunks_exact(head_dim + SUMS));
    for (all, span) in rows {
        let greatest = greater(all[head_dim], span[head_dim]);
        // A row that saw nothing of the span joins with weight e^−∞, which is the least that `exp` knows, times zeros.
        let (keep, take) = (exp(all[head_dim] - greatest), exp(span[head_dim] - greatest));
        for (all, span) in all[..head_dim].iter_mut().zip(span) {
            *all = *all * keep + span * take;
        }
        all[head_dim + 1] = all[head_dim + 1] * keep + span[head_dim + 1] * take;
        all[head_dim] = greatest;
    }
}

/// The mean of the values under the weights.
#[inline(always)]
fn finish(row: &[f32], out: &mut [f32]) {
    let inverse = 1.0 / row[row.len() - 1];
    for (out, value) in out.iter_mut().zip(row) {
        *out = value * inverse;
    }
}
