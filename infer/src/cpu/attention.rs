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

use qat_quant::vectorized;

use super::kv::{Cache, Code, LayerCache, TILE, with_code};
use super::lanes::{LANES, Lanes, exp, fold, greater, lanes};
use super::pool::{Chunks, Pool, Tile, Tiles};
use crate::model::AttentionShape;

/// Tiles of a span.
const SPAN: usize = 4;
/// Positions of a span.
const SPAN_POSITIONS: usize = SPAN * TILE;
/// Tokens of a block in prefill.
const TOKENS: usize = 16;
/// Registers of scores of a row and a tile.
const PARTS: usize = TILE / LANES;
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
pub(super) struct Attention {
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
    /// Of the first token.
    position: usize,
    queries: &'a [f32],
}

impl Attention {
    /// Memory for contexts of up to `capacity` positions and `threads`.
    pub(super) fn new(shape: AttentionShape, capacity: usize, threads: usize) -> Self {
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

    /// Attention of the queries `[tokens, heads · head_dim]` at the positions from `position` on, whose keys and values
    /// have been written to `layer`: `out`, of the same shape.
    pub(super) fn attend(
        &mut self,
        pool: &Pool,
        cache: &Cache,
        layer: usize,
        position: usize,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let shape = self.shape;
        with_code!(cache.kv(), code => {
            let call = Call { code, cache: cache.layer(layer), shape, position, queries };
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
        let spans = (call.position + 1).div_ceil(SPAN_POSITIONS);
        let all = &mut self.spans[..heads * spans * width];
        let parts = Chunks::new(all, group * width);
        pool.each_with(&mut self.scratch, parts, |scratch, index, part| {
            vectorized(
                #[inline(always)]
                || {
                    let (head, span) = (index / spans, index % spans);
                    call.load_queries(head, 0..1, &mut scratch.queries);
                    let Scratch { queries, weights, tile, .. } = scratch;
                    call.span(head, span, 0..1, queries, weights, tile, part);
                },
            );
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
            vectorized(
                #[inline(always)]
                || call.block(scratch, &mut tile),
            );
        });
    }
}

impl<C: Code> Call<'_, C> {
    /// All spans of a block of tokens, for the heads of one group.
    #[inline(always)]
    fn block(&self, scratch: &mut Scratch, out: &mut Tile<'_>) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let (group, width) = (heads / kv_heads, head_dim + SUMS);
        let [token, column] = out.first();
        let tokens = token..token + out.shape()[0];
        let head = column / (group * head_dim);
        let rows = tokens.len() * group;
        let Scratch { queries, weights, tile, span, all } = scratch;
        let (span, all) = (&mut span[..rows * width], &mut all[..rows * width]);
        self.load_queries(head, tokens.clone(), queries);
        let spans = (self.position + tokens.end).div_ceil(SPAN_POSITIONS);
        self.span(head, 0, tokens.clone(), queries, weights, tile, all);
        for index in 1..spans {
            self.span(head, index, tokens.clone(), queries, weights, tile, span);
            join(all, span, head_dim);
        }
        for (row, sums) in all.chunks_exact(width).enumerate() {
            finish(sums, &mut out.row(row / group)[row % group * head_dim..][..head_dim]);
        }
    }

    /// The queries of a group for some tokens, divided by the root of the head's width: `out` `[tokens · group, head_dim]`.
    #[inline(always)]
    fn load_queries(&self, head: usize, tokens: std::ops::Range<usize>, out: &mut [f32]) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let part = heads / kv_heads * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (token, out) in tokens.zip(out.chunks_exact_mut(part)) {
            let queries = &self.queries[token * heads * head_dim + head * part..][..part];
            for (out, query) in out.iter_mut().zip(queries) {
                *out = query * scale;
            }
        }
    }

    /// What some tokens see in one span: for each of the rows, the weighted sum of values, the greatest score, and the
    /// sum of weights. A row that sees nothing of the span gets zeros and a greatest score of −∞.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the parts of a scratch, some of which the caller keeps")]
    fn span(
        &self,
        head: usize,
        span: usize,
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
        for index in span * SPAN..((span + 1) * SPAN).min(end.div_ceil(TILE)) {
            let (keys, values) = self.cache.tile(index, head);
            self.code.keys(keys, tile);
            weights.fill(0.0);
            products(queries, head_dim, tile, TILE, weights, TILE);
            for (row, (weights, out)) in weights
                .as_chunks_mut::<TILE>()
                .0
                .iter_mut()
                .zip(out.chunks_exact_mut(head_dim + SUMS))
                .enumerate()
            {
                let seen = first + row / group + 1;
                softmax(weights, seen.saturating_sub(index * TILE).min(TILE), out);
            }
            let visible = (end - index * TILE).min(TILE);
            let values_of = &mut tile[..visible * head_dim];
            self.code.values(values, head_dim, values_of);
            products(weights, TILE, values_of, head_dim, out, head_dim + SUMS);
        }
    }
}

/// Scores become weights `e^(score − greatest)`; the row's sums so far are rescaled to its new greatest score. What is not
/// visible has no weight at all.
#[inline(always)]
fn softmax(scores: &mut [f32; TILE], visible: usize, row: &mut [f32]) {
    let (values, sums) = row.split_at_mut(row.len() - SUMS);
    let mut parts = [[0.0; LANES]; PARTS];
    for (part, scores) in parts.iter_mut().zip(scores.as_chunks::<LANES>().0) {
        *part = *scores;
    }
    if visible < TILE {
        for (index, part) in parts.iter_mut().enumerate() {
            let scores = *part;
            let is_visible = |lane| index * LANES + lane < visible;
            *part = lanes(|lane| if is_visible(lane) { scores[lane] } else { f32::NEG_INFINITY });
        }
    }
    let before = sums[0];
    let greatest = greater(before, fold(across(&parts, greater), greater));
    let shrink = if greatest > before { exp(before - greatest) } else { 1.0 };
    for (index, part) in parts.iter_mut().enumerate() {
        let scores = *part;
        let powers = lanes(|lane| exp(scores[lane] - greatest));
        *part = lanes(|lane| if index * LANES + lane < visible { powers[lane] } else { 0.0 });
    }
    sums[0] = greatest;
    sums[1] = sums[1] * shrink + fold(across(&parts, |a, b| a + b), |a, b| a + b);
    for (scores, part) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(&parts) {
        *scores = *part;
    }
    if shrink != 1.0 {
        values.iter_mut().for_each(|value| *value *= shrink);
    }
}

/// Merges the registers of a tile in halves.
#[inline(always)]
fn across(tile: &[Lanes; PARTS], merge: impl Fn(f32, f32) -> f32) -> Lanes {
    let [a, b, c, d] = *tile;
    lanes(|lane| merge(merge(a[lane], c[lane]), merge(b[lane], d[lane])))
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

/// `c += a · b` for rows of `a` (`depth` apart, of which as many columns count as `b` has rows), `b` `[_, width]`, rows of
/// `c` `stride` apart. Every element of `c` takes its products in order, each fused into its sum.
#[inline(always)]
fn products(a: &[f32], depth: usize, b: &[f32], width: usize, c: &mut [f32], stride: usize) {
    let mut rows = a.chunks_exact(depth).len();
    let (mut a, mut c) = (a, c);
    while rows > 0 {
        // As many sums side by side as hide the latency of an addition, and as AVX2 has registers for.
        let taken = match rows {
            1 => strip::<1, 4>(a, depth, b, width, c, stride),
            2 => strip::<2, 2>(a, depth, b, width, c, stride),
            3 => strip::<3, 2>(a, depth, b, width, c, stride),
            4 | 5 => strip::<4, 1>(a, depth, b, width, c, stride),
            _ => strip::<6, 1>(a, depth, b, width, c, stride),
        };
        a = &a[taken * depth..];
        c = &mut c[taken * stride..];
        rows -= taken;
    }
}

/// [`products`] of `R` rows, `C` registers of columns at a time.
#[inline(always)]
fn strip<const R: usize, const C: usize>(
    a: &[f32],
    depth: usize,
    b: &[f32],
    width: usize,
    c: &mut [f32],
    stride: usize,
) -> usize {
    let mut column = 0;
    while column + C * LANES <= width {
        block::<R, C>(a, depth, b, width, c, stride, column);
        column += C * LANES;
    }
    while column + LANES <= width {
        block::<R, 1>(a, depth, b, width, c, stride, column);
        column += LANES;
    }
    for column in column..width {
        for row in 0..R {
            let c = &mut c[row * stride + column];
            for (a, b) in a[row * depth..][..depth].iter().zip(b.chunks_exact(width)) {
                *c = a.mul_add(b[column], *c);
            }
        }
    }
    R
}

/// `R` rows and `C` registers of columns from `column` on.
#[inline(always)]
fn block<const R: usize, const C: usize>(
    a: &[f32],
    depth: usize,
    b: &[f32],
    width: usize,
    c: &mut [f32],
    stride: usize,
    column: usize,
) {
    let mut sums = [[[0.0; LANES]; C]; R];
    for (row, sums) in sums.iter_mut().enumerate() {
        let c = &c[row * stride + column..][..C * LANES];
        for (sum, c) in sums.iter_mut().zip(c.as_chunks::<LANES>().0) {
            *sum = *c;
        }
    }
    let a: [&[f32]; R] = std::array::from_fn(
        #[inline(always)]
        |row| &a[row * depth..][..depth],
    );
    for (at, b) in b.chunks_exact(width).enumerate().take(depth) {
        let b = &b[column..column + C * LANES];
        for part in 0..C {
            let b: Lanes = lanes(
                #[inline(always)]
                |lane| b[part * LANES + lane],
            );
            for row in 0..R {
                let (factor, sum) = (a[row][at], sums[row][part]);
                sums[row][part] = lanes(
                    #[inline(always)]
                    |lane| factor.mul_add(b[lane], sum[lane]),
                );
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let c = &mut c[row * stride + column..][..C * LANES];
        for (sum, c) in sums.iter().zip(c.as_chunks_mut::<LANES>().0) {
            *c = *sum;
        }
    }
}
