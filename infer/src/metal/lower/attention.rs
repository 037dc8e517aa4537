//! Attention of a layer, with the turning of heads and the writing of the cache.
//!
//! Knows no matrices. Invariant: queries and keys are turned alike, which is how the kernels turn them.

use super::Lowering;
use crate::metal::kernels::Attention;
use crate::metal::list::{Access, Span};
use crate::metal::options::Options;
use crate::model::{AttentionShape, Config, Sight};
use crate::plan::{Turn, Value};
use crate::{Error, Result};

/// What every kernel of attention reads and writes.
struct Spans {
    q: Span,
    k: Span,
    v: Span,
    out: Span,
    /// Norms and angles, with their places.
    turning: Vec<(u16, Span, Access)>,
    /// Keys, values and their scales.
    cache: Vec<(u16, Span)>,
    step: (u16, Span, Access),
}

/// Attention of the heads of a model to what `sight` says, turned as `turn` says, over the cache that `options` ask for.
pub(in crate::metal) fn attention_kernel(
    config: &Config,
    options: &Options,
    turn: &Turn<'_>,
    sight: Sight,
) -> Attention {
    let Config { heads, kv_heads, head_dim, .. } = *config;
    Attention {
        shape: AttentionShape { heads, kv_heads, head_dim },
        kv: options.kv,
        capacity: options.cached(config, sight.window.is_some()) as u32,
        norm: turn.norm.map(|norm| norm.eps),
        rotary: turn.rotation.map(|_| config.rotary_dim),
        sight,
    }
}

impl Lowering<'_, '_> {
    pub(super) fn attention(
        &mut self,
        (layer, sight): (usize, Sight),
        qkv: [Value; 3],
        turns: &[Turn<'_>; 2],
        out: Value,
    ) -> Result<()> {
        let is_alike = turns[0].rotation == turns[1].rotation
            && turns[0].norm.map(|norm| norm.eps) == turns[1].norm.map(|norm| norm.eps);
        if !is_alike {
            let problem = "queries and keys that are normed or rotated differently";
            return Err(Error::Invalid(format!("{problem}: Metal has no kernel for that; use --device cpu")));
        }
        let attention = attention_kernel(&self.script.decoder.config, &self.script.options, &turns[0], sight);
        let spans = self.spans(layer, qkv, turns, out)?;
        match self.tokens {
            1 => self.decode(&attention, &spans),
            _ => self.prefill(&attention, &spans),
        }
        Ok(())
    }

    /// One token, whose past is cut into parts when it is long.
    fn decode(&mut self, attention: &Attention, spans: &Spans) {
        let past = self.past as u32;
        let parts = attention.parts(past);
        let Spans { q, k, v, out, turning, cache, step } = spans;
        let partials = {
            let (config, buffers) = (&self.script.decoder.config, &self.script.buffers);
            buffers.words(buffers.partials, config.heads * parts as usize * (config.head_dim + 2))
        };
        let inputs = [(0, *q, Access::Read), (1, *k, Access::Read), (2, *v, Access::Read), *step];
        let cache = cache.iter().map(|(place, span)| (*place, *span, Access::ReadWrite));
        let result = if parts > 1 { (13, partials, Access::Write) } else { (12, *out, Access::Write) };
        let all = inputs.into_iter().chain(turning.iter().copied()).chain(cache).chain([result]);
        self.call("attention", attention.decode(parts, past), 11, all);
        if parts > 1 {
            let spans = [(12, *out, Access::Write), (13, partials, Access::Read)];
            self.call("attention, joined", attention.join(parts), 11, spans);
        }
    }

    /// Many tokens.
    fn prefill(&mut self, attention: &Attention, spans: &Spans) {
        let tokens = self.tokens as u32;
        let Spans { q, k, v, out, turning, cache, step } = spans;
        let inputs = [(0, *q, Access::ReadWrite), (1, *k, Access::Read), (2, *v, Access::Read), *step];
        let kept = |access| cache.iter().map(move |(place, span)| (*place, *span, access));
        let all = inputs.into_iter().chain(turning.iter().copied()).chain(kept(Access::ReadWrite));
        self.call("turn", attention.turn(tokens), 11, all);
        let ends = [(0, *q, Access::Read), (12, *out, Access::Write), *step];
        let all = ends.into_iter().chain(kept(Access::Read));
        self.call("attention", attention.prefill(tokens, self.past as u32), 11, all);
    }

    fn spans(&self, layer: usize, [q, k, v]: [Value; 3], turns: &[Turn<'_>; 2], out: Value) -> Result<Spans> {
        let (config, buffers) = (&self.script.decoder.config, &self.script.buffers);
        let mut turning = Vec::new();
        for (place, norm) in (3..).zip(turns.iter().map(|turn| turn.norm)) {
            if let Some(norm) = norm {
                turning.push((place, self.vector(norm.weight)?, Access::Read));
            }
        }
        if let Some(rotation) = turns[0].rotation {
            turning.push((5, buffers.whole(buffers.angles[rotation]), Access::Read));
        }
        let Some(kept) = buffers.caches.get(&layer) else {
            return Err(Error::Invalid(format!("layer {layer} attends, and has no keys and values")));
        };
        let mut cache = vec![(6, buffers.whole(kept.keys)), (7, buffers.whole(kept.values))];
        if let Some([keys, values]) = kept.scales {
            cache.extend([(8, buffers.whole(keys)), (9, buffers.whole(values))]);
        }
        Ok(Spans {
            q: self.value(q, config.q_size()),
            k: self.value(k, config.kv_size()),
            v: self.value(v, config.kv_size()),
            out: self.value(out, config.q_size()),
            turning,
            cache,
            step: (10, buffers.whole(buffers.step), Access::Read),
        })
    }
}
