//! Causal attention with grouped query heads (GQA, arXiv 2305.13245), from matrix products and [`causal_softmax`].

use candle_core::{Result, Tensor};

use super::causal_softmax;

const NAME: &str = "causal_attention";

/// Attention of `q` `[b, t, heads, d]` over `k`, `v` `[b, t, kv_heads, d]`, scaled by 1/√d; position p sees 0..=p.
/// Query head h reads key head h·kv_heads/heads. Gives `[b, t, heads·d]`.
///
/// # Errors
/// Shapes other than these, `heads` that is no multiple of `kv_heads`.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (b, t, heads, d) = q.dims4()?;
    let (_, _, kv_heads, _) = k.dims4()?;
    if k.dims() != [b, t, kv_heads, d] || v.dims() != k.dims() || kv_heads == 0 || heads % kv_heads != 0 {
        candle_core::bail!(
            "{NAME}: q {:?}: want k and v [{b}, {t}, divisor of {heads}, {d}], found {:?} and {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    composed(q, k, v)
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (b, t, heads, d) = q.dims4()?;
    let kv_heads = k.dim(2)?;
    // The heads of a group are stacked as rows over their common keys: nothing is repeated in memory.
    let q = q.transpose(1, 2)?.contiguous()?.reshape((b * kv_heads, heads / kv_heads * t, d))?;
    let k = k.transpose(1, 2)?.contiguous()?.reshape((b * kv_heads, t, d))?;
    let v = v.transpose(1, 2)?.contiguous()?.reshape((b * kv_heads, t, d))?;
    let weights = causal_softmax(&q.matmul(&k.t()?)?, (d as f32).powf(-0.5), t)?;
    weights.matmul(&v)?.reshape((b, heads, t, d))?.transpose(1, 2)?.reshape((b, t, heads * d))
}
