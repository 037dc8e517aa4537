//! Attention against its composition in f64, by finite differences where those are affordable.

use candle_core::DType;

use super::*;
use crate::ops::check::{assert_close, assert_matches, backward, bits, flat, uniform, value_and_gradients};
use crate::ops::gpu::host;

fn inputs(b: usize, t: usize, heads: usize, kv_heads: usize, d: usize) -> Result<[Tensor; 3]> {
    let kv = [b, t, kv_heads, d];
    Ok([uniform(31, 2.0, &[b, t, heads, d])?, uniform(32, 2.0, &kv)?, uniform(33, 2.0, &kv)?])
}

#[test]
fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
    for (b, t, heads, kv_heads, d) in [(1, 1, 1, 1, 1), (2, 5, 4, 2, 3), (1, 18, 3, 1, 4)] {
        let inputs = inputs(b, t, heads, kv_heads, d)?;
        let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2]);
        // Scores of magnitude ≤ 16 carry 1e-6 into exp, the sums of ≤ 18 terms in order another 1e-6.
        assert_matches(|x| causal_attention(&x[0], &x[1], &x[2]), reference, &inputs, 4e-6)?;
    }
    Ok(())
}

#[test]
fn attention_around_the_kernels_softmax_agrees_with_finite_differences() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let inputs = inputs(2, 5, 4, 2, 3)?;
    let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2]);
    // A key head at a time, three of the four, all: 50 scores each.
    for scores in [1, 150, 1000] {
        let ours = |x: &[Tensor]| on_gpu::attention_within(scores, [&x[0], &x[1], &x[2]], scale(3), None);
        assert_matches(ours, reference, &inputs, 4e-6)?;
    }
    Ok(())
}

fn scale(d: usize) -> f32 {
    (d as f32).powf(-0.5)
}

/// Attention to the last `window` tokens with scores times `scale`, in operations of candle: of each position by itself.
fn banded(x: &[Tensor], window: usize, scale: f32) -> Result<Tensor> {
    let (_, t, _, d) = x[0].dims4()?;
    // What `composed` divides scores by, undone.
    let q = (&x[0] * (f64::from(scale) * (d as f64).sqrt()))?;
    let at = |position: usize| -> Result<Tensor> {
        let (first, len) = (position.saturating_sub(window - 1), window.min(position + 1));
        let of = |x: &Tensor| x.narrow(1, first, len)?.contiguous();
        composed(&of(&q)?, &of(&x[1])?, &of(&x[2])?)?.narrow(1, len - 1, 1)
    };
    Tensor::cat(&(0..t).map(at).collect::<Result<Vec<_>>>()?, 1)
}

#[test]
fn a_window_and_another_scale_agree_with_finite_differences_on_the_cpu_and_in_the_kernels() -> Result<()> {
    for ((b, t, heads, kv_heads, d), window) in
        [((2, 5, 4, 2, 3), 1), ((1, 18, 3, 1, 4), 5), ((1, 7, 2, 2, 2), 40)]
    {
        let inputs = inputs(b, t, heads, kv_heads, d)?;
        let borders = Borders::seen(window, (b, t), None);
        let reference = |x: &[Tensor]| banded(x, window, 0.3);
        // As for attention to everything.
        let ours = |x: &[Tensor]| attention_apart(&x[0], &x[1], &x[2], 0.3, Some(&borders));
        assert_matches(ours, reference, &inputs, 4e-6)?;
        if host::available() {
            let ours =
                |x: &[Tensor]| on_gpu::attention_within(150, [&x[0], &x[1], &x[2]], 0.3, Some(&borders));
            assert_matches(ours, reference, &inputs, 4e-6)?;
        }
    }
    Ok(())
}

#[test]
fn a_window_within_documents_sees_neither_beyond_itself_nor_another_document() {
    let apart = Borders::new(vec![0, 0, 2, 2, 2, 0, 0, 0, 0, 0], 5).unwrap();
    assert_eq!(Borders::seen(2, (2, 5), Some(&apart)).firsts(), [0, 0, 2, 2, 3, 0, 0, 1, 2, 3]);
    assert_eq!(Borders::seen(9, (2, 5), Some(&apart)), apart);
}

/// Two windows of 70 positions: documents of 1, 40 and 29 positions, and one document.
fn borders() -> Borders {
    let documents = [(0, 1), (1, 40), (41, 29), (0, 70)];
    Borders::new(documents.into_iter().flat_map(|(first, len)| vec![first; len]).collect(), 70).unwrap()
}

#[test]
fn a_document_in_a_window_is_attended_to_as_if_it_stood_alone_on_the_cpu_and_in_the_kernels() -> Result<()> {
    let [q, k, v] = inputs(2, 70, 4, 2, 8)?;
    let borders = borders();
    let alone = |x: &[Tensor]| {
        let part = |window: usize, from: usize, len: usize| {
            let of = |x: &Tensor| x.narrow(0, window, 1)?.narrow(1, from, len)?.contiguous();
            composed(&of(&x[0])?, &of(&x[1])?, &of(&x[2])?)
        };
        let first = Tensor::cat(&[part(0, 0, 1)?, part(0, 1, 40)?, part(0, 41, 29)?], 1)?;
        Tensor::cat(&[first, part(1, 0, 70)?], 0)
    };
    // candle's own gradient of the composition, of the sum of the outputs times weights.
    let weights = uniform(35, 1.0, &[2, 70, 32])?;
    let vars = [&q, &k, &v].map(|x| candle_core::Var::from_tensor(x).unwrap());
    let reference: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = alone(&reference)?;
    let grads = out.mul(&weights)?.sum_all()?.backward()?;
    let of =
        |grads: &candle_core::backprop::GradStore| vars.each_ref().map(|var| grads.get(var).unwrap().clone());
    let want = [&[out][..], &of(&grads)].concat();
    type Run<'a> = Box<dyn Fn() -> Result<Tensor> + 'a>;
    let mut ways: Vec<(&str, Run)> =
        vec![("cpu", Box::new(|| attention_apart(&vars[0], &vars[1], &vars[2], scale(8), Some(&borders))))];
    if host::available() {
        for scores in [1, 20_000, 1 << 20] {
            let (vars, borders) = (&vars, &borders);
            let run = move || {
                on_gpu::attention_within(scores, [&vars[0], &vars[1], &vars[2]], scale(8), Some(borders))
            };
            ways.push(("kernels", Box::new(run)));
        }
    }
    for (way, run) in ways {
        let (out, grads) = backward(run, &weights)?;
        let gradients = vars.each_ref().map(|var| grads.get(var).unwrap().clone());
        let found = [&[out][..], &gradients].concat();
        for (found, want) in found.iter().zip(&want) {
            // As for several blocks of queries; the reference is in f32 too.
            assert_close(way, found, &flat(want)?, 1e-5)?;
        }
    }
    Ok(())
}

#[test]
fn what_another_document_says_is_never_read() -> Result<()> {
    let [q, k, v] = inputs(2, 70, 4, 2, 8)?;
    let poisoned = |x: &Tensor| -> Result<Tensor> {
        let mut values = x.flatten_all()?.to_vec1::<f32>()?;
        // The second document of the first window.
        let row = x.dim(2)? * x.dim(3)?;
        values[row..41 * row].fill(1e30);
        Tensor::from_vec(values, x.shape(), x.device())
    };
    let run = |k: &Tensor, v: &Tensor| {
        attention_apart(&q, k, v, scale(8), Some(&borders()))?.narrow(1, 41, 29)?.contiguous()
    };
    assert_eq!(bits(&run(&k, &v)?)?, bits(&run(&poisoned(&k)?, &poisoned(&v)?)?)?);
    Ok(())
}

#[test]
fn borders_of_other_windows_and_positions_without_a_document_are_refused() -> Result<()> {
    let [q, k, v] = inputs(1, 4, 2, 1, 8)?;
    let message = attention_apart(&q, &k, &v, scale(8), Some(&borders())).unwrap_err().to_string();
    assert!(message.contains("want borders of 1 windows of 4, found 2 of 70"), "{message}");
    for firsts in [vec![1, 1], vec![0, 2], vec![0, 1, 0], vec![]] {
        assert!(Borders::new(firsts, 2).is_err());
    }
    Ok(())
}

#[test]
fn several_blocks_of_queries_agree_with_the_composition_in_f64() -> Result<()> {
    // 77 positions: two whole blocks, one ragged; finite differences of as many elements would take minutes.
    let inputs = inputs(2, 77, 4, 2, 24)?;
    let weights = uniform(34, 1.0, &[2, 77, 96])?;
    let run = |wide: bool| -> Result<Vec<Vec<f64>>> {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        let vars: Vec<_> = inputs
            .iter()
            .map(|x| candle_core::Var::from_tensor(&x.to_dtype(dtype)?))
            .collect::<Result<_>>()?;
        if wide {
            let out = composed(&vars[0], &vars[1], &vars[2])?;
            let grads = out.mul(&weights.to_dtype(dtype)?)?.sum_all()?.backward()?;
            let gradients = vars.iter().map(|v| grads.get(v).map_or(Ok(Vec::new()), flat));
            return std::iter::once(flat(&out)).chain(gradients).collect();
        }
        let (out, grads) = backward(|| causal_attention(&vars[0], &vars[1], &vars[2]), &weights)?;
        let gradients = vars.iter().map(|v| grads.get(v).map_or(Ok(Vec::new()), flat));
        std::iter::once(flat(&out)).chain(gradients).collect()
    };
    for (what, (found, want)) in
        ["value", "dq", "dk", "dv"].into_iter().zip(run(false)?.into_iter().zip(run(true)?))
    {
        let n = found.len();
        // As above, with sums of ≤ 154 terms.
        assert_close(what, &Tensor::from_vec(found, n, &candle_core::Device::Cpu)?, &want, 1e-5)?;
    }
    Ok(())
}

#[test]
fn a_position_does_not_depend_on_what_comes_after_it() -> Result<()> {
    let [q, k, v] = inputs(1, 40, 2, 1, 8)?;
    let whole = causal_attention(&q, &k, &v)?;
    for t in [1, 16, 33] {
        let cut = |x: &Tensor| x.narrow(1, 0, t);
        let part = causal_attention(&cut(&q)?, &cut(&k)?, &cut(&v)?)?;
        // Sums are joined lane by lane over a padded row, so a longer row only adds zeros.
        assert_eq!(bits(&part)?, bits(&whole.narrow(1, 0, t)?)?, "{t}");
    }
    Ok(())
}

#[test]
fn query_heads_that_no_key_head_divides_are_refused() -> Result<()> {
    let [q, _, _] = inputs(1, 4, 3, 1, 8)?;
    let [_, k, v] = inputs(1, 4, 4, 2, 8)?;
    let message = causal_attention(&q, &k, &v).unwrap_err().to_string();
    assert!(message.contains("a divisor of 3"), "{message}");
    Ok(())
}

#[test]
fn in_bf16_attention_is_that_of_f32_but_for_the_roundings_of_what_lies_in_memory() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let narrow = |x: Tensor| x.to_dtype(DType::BF16);
    let [q, k, v] = inputs(2, 18, 4, 2, 8)?;
    let narrow = [narrow((q / 2.0)?)?, narrow((k / 2.0)?)?, narrow(v)?];
    let wide = narrow.each_ref().map(|x| x.to_dtype(DType::F32));
    let wide = wide.into_iter().collect::<Result<Vec<_>>>()?;
    let run = |x: &[Tensor]| value_and_gradients(|x| causal_attention(&x[0], &x[1], &x[2]), x);
    for (at, (found, want)) in run(&narrow)?.into_iter().zip(run(&wide)?).enumerate() {
        let (found, want) = (found.expect("in bf16"), want.expect("in f32"));
        assert_eq!(found.dtype(), DType::BF16);
        // A product of 8 terms below 1, and its gradient, of terms below 2, are rounded by 2⁻⁹ of themselves: 0.016 and 0.03. A weight is off
        // by the difference of two scores, scaled by 8^-½, and its own rounding, at most 0.013; so is the output, relative to the largest
        // value. A score's gradient is off by that in its weight, by 0.03 of at most 16 twice, and rounded: 0.02. Sums don't add to it.
        let bound = if at == 0 { 0.013 } else { 0.04 };
        assert_close(&format!("{at} (0: the value)"), &found, &flat(&want)?, bound)?;
    }
    Ok(())
}

#[test]
fn the_kernels_bring_heads_into_another_order_whatever_their_width() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    for (d, dtype) in [(8, DType::F32), (8, DType::BF16), (6, DType::F32), (6, DType::BF16)] {
        let x = uniform(1, 1.0, &[2, 5, 3, d])?.to_dtype(dtype)?;
        let found = on_gpu::swap_middle(&x, (2, 5, 3, d))?.to_dtype(DType::F32)?;
        assert_eq!(bits(&found)?, bits(&x.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32)?)?, "{d}");
    }
    Ok(())
}
