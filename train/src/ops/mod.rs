//! The differentiable operations of the trainer, one file each.
//!
//! Every operation takes and gives f32 tensors, contiguous or not; on a GPU activations and their gradients may be bf16 instead, while
//! weights of norms, angles, scales, sums and the gradients of all of these stay f32. On the CPU it is one fused pass with a
//! hand-written backward, on Metal and CUDA kernels of our own (the `.metal` files, run by `gpu/`). All are held to the same f64
//! reference; in bf16 they give what they give in f32, rounded once. Knows no model, no optimizer and no loop.
//!
//! Invariants: results do not depend on the number of threads (work is cut by shape, partial sums are joined in
//! order), and an operation never silently cuts the graph: where an input gets no gradient, its documentation says so.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accumulate;
mod activations;
mod arithmetic;
mod attention;
#[cfg(test)]
pub(crate) mod check;
mod cpu;
mod embedding;
mod fake_quant;
mod gate;
mod geglu;
pub(crate) mod gpu;
mod kv;
pub(crate) mod lanes;
mod linear;
mod norm;
mod relu2;
mod rope;
mod scale;
mod short_conv;
mod softmax;
mod swiglu;
pub mod tape;
mod tile;

pub use activations::quantize_activations;
pub use arithmetic::{add, add_bias, cast, multiply, reshape};
pub use attention::{Borders, attention_apart, causal_attention};
pub use embedding::{embedding, pick_rows};
pub use fake_quant::{
    FakeQuant, Gradient, MOST_TURNS, Noise, Turns, fake_quant, fake_quant_held, fake_quant_learned,
};
pub use geglu::geglu;
pub use kv::quantize_kv;
pub use linear::linear;
pub use norm::rms_norm;
pub use relu2::relu2;
pub use rope::rope;
pub use short_conv::{short_conv, short_conv_apart};
pub use softmax::causal_softmax;
pub use swiglu::swiglu;

pub(crate) use accumulate::accumulate;
pub(crate) use linear::gradients as linear_gradients;
pub(crate) use scale::scale;

pub(crate) use cpu::{Floats, blend, floats, floats_out, for_each_chunk, in_place, rows_per_chunk};

#[cfg(test)]
mod tests {
    use super::check::{bits, uniform};
    use super::tape::Tape;
    use super::*;
    use candle_core::{Result, Tensor, Var};

    /// The bits of an operation's value and of its gradients, computed on `threads` threads.
    fn bits_on(
        threads: usize,
        op: impl Fn(&[Var]) -> Result<Tensor> + Sync,
        shapes: &[&[usize]],
    ) -> Result<Vec<Vec<u32>>> {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(|| {
            let vars: Vec<Var> = shapes
                .iter()
                .enumerate()
                .map(|(i, shape)| Var::from_tensor(&uniform(i as u64, 2.0, shape)?))
                .collect::<Result<_>>()?;
            let (value, tape) = Tape::of(|| op(&vars));
            let value = value?;
            let grads = tape.gradients_from(vec![(value.id(), uniform(99, 1.0, value.dims())?)])?;
            let gradients = vars.iter().filter_map(|v| grads.get(v)).map(bits);
            std::iter::once(bits(&value)).chain(gradients).collect()
        })
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() -> Result<()> {
        let ids: Vec<u32> = (0..900).map(|i| i * i % 37).collect();
        let angle = uniform(50, 3.0, &[300, 16])?;
        let (cos, sin) = (angle.cos()?, angle.sin()?);
        let format = qat_quant::Format::TernaryTensor;
        let quantizer = FakeQuant {
            format,
            gradient: Gradient::Lsq,
            rule: qat_quant::ScaleRule::Absmax,
            lambda: 0.5,
            noise: None,
            dtype: candle_core::DType::F32,
        };
        type Op<'a> = Box<dyn Fn(&[Var]) -> Result<Tensor> + Sync + 'a>;
        let heads: [usize; 4] = [2, 300, 2, 32];
        // Large enough that every operation cuts its work into several chunks.
        let ops: [(Op, &[&[usize]]); 11] = [
            (Box::new(|x| rms_norm(&x[0], &x[1], 1e-5)), &[&[3000, 100], &[100]]),
            (Box::new(|x| rope(&x[0], &cos, &sin)), &[&heads]),
            (Box::new(|x| causal_softmax(&x[0], 0.3, 150)), &[&[4, 300, 150]]),
            (
                Box::new(|x| causal_attention(&x[0], &x[1], &x[2])),
                &[&heads, &[2, 300, 1, 32], &[2, 300, 1, 32]],
            ),
            (Box::new(|x| swiglu(&x[0], &x[1])), &[&[700, 100], &[700, 100]]),
            (Box::new(|x| relu2(&x[0], &x[1])), &[&[700, 100], &[700, 100]]),
            (Box::new(|x| geglu(&x[0], &x[1])), &[&[700, 100], &[700, 100]]),
            (Box::new(|x| short_conv(&x[0], &x[1], 350)), &[&[700, 300], &[100, 1, 3]]),
            (Box::new(|x| embedding(&x[0], &ids, 1.5)), &[&[37, 1000]]),
            (Box::new(|x| quantize_activations(&x[0], 0.5)), &[&[700, 100]]),
            (Box::new(|x| fake_quant_learned(&x[0], &x[1], None, &quantizer)), &[&[700, 100], &[1]]),
        ];
        for (i, (op, shapes)) in ops.iter().enumerate() {
            let (one, five) = (bits_on(1, op, shapes)?, bits_on(5, op, shapes)?);
            assert_eq!(one.len(), 1 + shapes.len(), "operation {i}: a gradient is missing");
            assert!(one == five, "operation {i}");
        }
        Ok(())
    }
}
