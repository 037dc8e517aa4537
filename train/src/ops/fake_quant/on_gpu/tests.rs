//! The kernels against `qat_quant`, on the emulator: scales and values to the bit, gradients too but for the order of sums.

use candle_core::{DType, Device, Result, Tensor, Var};
use qat_quant::{Affine, Format, ScaleRule, ScaleType, Scales};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::ops::check::{assert_close, backward, bits, flat, uniform, value_and_gradients};
use crate::ops::{Noise, fake_quant, fake_quant_held, fake_quant_learned, gpu::host, in_place};

const COLS: usize = 256;

fn spec(format: Format, gradient: Gradient, lambda: f32) -> FakeQuant {
    FakeQuant { format, gradient, rule: ScaleRule::Absmax, lambda, noise: None, dtype: DType::F32 }
}

/// A matrix whose rows are: random, of magnitudes from 1e-9 to 1e9, one value throughout, zeros, all negative, with two
/// largest elements of opposite sign in every group, half way between the codes of int4, int8, affine and ternary grids, and with means that are ties.
fn weights() -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut w: Vec<f32> = (0..COLS).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    w.extend((0..COLS).map(|_| rng.random_range(-1.0f32..1.0) * 10f32.powi(rng.random_range(-9..10))));
    w.extend([0.37; COLS]);
    w.extend([0.0; COLS]);
    w.extend((0..COLS).map(|_| rng.random_range(-2.0f32..-1.0)));
    w.extend((0..COLS).map(|i| match i % 32 {
        5 => 2.5,
        17 => -2.5,
        _ => rng.random_range(-1.0f32..1.0),
    }));
    let half = |i: usize, of: usize| (i % of) as f32 + 0.5;
    w.extend((0..COLS).map(|i| if i % 32 == 0 { -8.0 } else { half(i, 15) - 7.0 }));
    w.extend((0..COLS).map(|i| if i % 32 == 0 { 127.0 } else { half(i, 31) - 16.0 }));
    w.extend((0..COLS).map(|i| if i % 32 < 2 { 15.0 * (i % 2) as f32 } else { half(i, 15) }));
    w.extend((0..COLS).map(|i| half(i, 2)));
    // Half way between two f16 whose upper one is even, less a quarter and half a unit in the last place of f32 on average: the
    // mean is that tie once it has been rounded to f32.
    let tie = 1.0 + 1.5 * 2f32.powi(-10);
    w.extend((0..COLS).map(|i| if i % 64 == 0 { tie - 2f32.powi(-19) } else { tie }));
    w.extend((0..COLS).map(|i| if i % 64 == 0 { tie - 2f32.powi(-18) } else { tie }));
    let rows = w.len() / COLS;
    Tensor::from_vec(w, (rows, COLS), &Device::Cpu)
}

#[test]
fn the_kernels_choose_the_scales_of_the_runtimes_to_the_bit_in_every_format() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let (rows, w) = (weights()?.dim(0)?, weights()?);
    let values = w.flatten_all()?.to_vec1::<f32>()?;
    for format in Format::all() {
        for rule in [ScaleRule::Absmax, ScaleRule::Mse] {
            let found = Stored::choose(&w, &FakeQuant { rule, ..spec(format, Gradient::Ste, 1.0) })?;
            let want = Scales::choose(format, rule, &values, rows, COLS);
            let as_bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found.scale)?, as_bits(&want.scale), "{format} {rule}");
            let bias = found.bias.as_ref().map(bits).transpose()?.unwrap_or_default();
            assert_eq!(bias, as_bits(&want.bias), "{format} {rule}");
        }
    }
    Ok(())
}

#[test]
fn the_kernels_find_the_mean_magnitude_of_a_tensor_of_several_ragged_chunks_to_the_bit() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let format = Format::TernaryTensor;
    for (rows, cols) in [(1, 4), (3, 5000), (5, 4096)] {
        let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
        // Chunks of very different magnitude: their totals have different exponents.
        let w: Vec<f32> =
            (0..rows * cols).map(|i| rng.random_range(-1.0f32..1.0) * 2f32.powi((i / 3000) as i32)).collect();
        let want = Scales::choose(format, ScaleRule::Absmax, &w, rows, cols).scale[0];
        let w = Tensor::from_vec(w, (rows, cols), &Device::Cpu)?;
        let found = Stored::choose(&w, &spec(format, Gradient::Ste, 1.0))?.scale;
        assert_eq!(found.to_vec1::<f32>()?, [want], "[{rows}, {cols}]");
    }
    Ok(())
}

#[test]
fn the_kernels_round_learned_scales_as_they_will_be_stored() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    // Every exponent with random significands, the neighbourhoods of ties and of the ends of both types, and NaN.
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut values: Vec<f32> = (1u32..255)
        .flat_map(|e| (0..8).map(move |i| (e, i)))
        .map(|(e, i)| f32::from_bits((i % 2) << 31 | e << 23 | rng.random_range(0u32..1 << 23)))
        .collect();
    for tie in [
        0x3f80_1000u32,
        0x3f80_3000,
        0x3f80_8000,
        0x3f81_8000,
        0x477f_e000,
        0x477f_f000,
        0x3880_0000,
        0x7a80_0000,
    ] {
        values.extend([tie - 1, tie, tie + 1, tie | 1 << 31].map(f32::from_bits));
    }
    values.extend((0..2000).map(|i| i as f32 * 2f32.powi(-26)));
    values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]);
    let n = values.len();
    for kind in [ScaleType::F16, ScaleType::BF16] {
        let format = Format::Affine(Affine::new(4, 32, kind).map_err(candle_core::Error::wrap)?);
        let w = uniform(3, 1.0, &[n, 32])?;
        let scale = Tensor::from_vec(values.clone(), n, &Device::Cpu)?;
        let found = bits(&rounded(format, &scale)?)?;
        for (i, (&v, found)) in values.iter().zip(found).enumerate() {
            assert_eq!(found, kind.round(v).to_bits(), "{kind:?} {i}: {v:e}");
        }
        assert_eq!(w.dim(0)?, n);
        let nan = Tensor::new(&[f32::NAN], &Device::Cpu)?;
        assert!(rounded(format, &nan)?.to_vec1::<f32>()?[0].is_nan());
    }
    Ok(())
}

#[test]
fn the_kernels_value_is_the_codecs_to_the_bit_in_every_format() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let w = weights()?;
    for format in Format::all() {
        for lambda in [1.0, 0.3] {
            let spec = spec(format, Gradient::Ste, lambda);
            assert_eq!(bits(&chosen(&w, &spec)?)?, bits(&fake_quant(&w, &spec)?)?, "{format} λ = {lambda}");
        }
    }
    Ok(())
}

#[test]
fn the_kernels_pass_and_block_gradients_as_the_codec_does_in_every_format() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let w = Var::from_tensor(&weights()?)?;
    let g = uniform(21, 1.0, w.dims())?;
    for format in Format::all() {
        let noise = Some(Noise::of(1, 2, 3, 0.5));
        let kinds = [(Gradient::Ste, None), (Gradient::ClippedSte, None), (Gradient::ClippedSte, noise)];
        for (rule, noise) in kinds {
            let spec = FakeQuant { noise, ..spec(format, rule, 1.0) };
            let (_, ours) = backward(|| chosen(&w, &spec), &g)?;
            let (_, codecs) = backward(|| fake_quant(&w, &spec), &g)?;
            let [ours, codecs] = [ours, codecs].map(|grads| bits(grads.get(&w).expect("a gradient")));
            assert_eq!(ours?, codecs?, "{format} {rule:?}");
        }
    }
    Ok(())
}

#[test]
fn the_kernels_learn_scales_and_biases_as_the_codec_does_in_every_format() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let w = weights()?.narrow(0, 0, 1)?;
    let w = Tensor::cat(&[&w, &uniform(22, 3.0, &[1, COLS])?], 0)?;
    check_learned(&w, &Format::all())?;
    // The tensor's only scale, from a run of 256 weights and one of 44.
    check_learned(&uniform(23, 3.0, &[3, 100])?, &[Format::TernaryTensor])
}

fn check_learned(w: &Tensor, formats: &[Format]) -> Result<()> {
    let (rows, cols) = w.dims2()?;
    let w = Var::from_tensor(w)?;
    let values = w.flatten_all()?.to_vec1::<f32>()?;
    let g = uniform(21, 1.0, w.dims())?;
    let noise = Some(Noise::of(1, 2, 3, 0.5));
    let kinds = [(Gradient::Lsq, None), (Gradient::Lsq, noise), (Gradient::Codes, None)];
    for (format, (gradient, noise)) in formats.iter().flat_map(|f| kinds.map(|kind| (*f, kind))) {
        let spec = FakeQuant { noise, ..spec(format, gradient, 1.0) };
        // Not yet rounded, and too narrow for some weights.
        let start = Scales::choose(format, ScaleRule::Absmax, &values, rows, cols);
        let learned_from = |v: Vec<f32>| -> Result<Option<Var>> {
            let v: Vec<f32> = v.iter().map(|v| v * 0.777).collect();
            if v.is_empty() { Ok(None) } else { Var::new(v, &Device::Cpu).map(Some) }
        };
        let (scale, bias) = (learned_from(start.scale)?.expect("scales"), learned_from(start.bias)?);
        let bias = bias.as_ref().map(|b| b.as_tensor());
        let (value, ours) = backward(|| learned(&w, &scale, bias, None, &spec), &g)?;
        let (want, codecs) = backward(|| fake_quant_learned(&w, &scale, bias, &spec), &g)?;
        assert_eq!(bits(&value)?, bits(&want)?, "{format}");
        let both = |t: &Tensor| (ours.get(t).expect("ours"), codecs.get(t).expect("the codec's"));
        if gradient == Gradient::Codes {
            // Any numbers will do: what is multiplied and summed needn't be whole.
            assert!(ours.get(&w).is_none() && codecs.get(&w).is_none(), "{format}: codes receive a gradient");
        } else {
            let (found, want) = both(&w);
            assert_eq!(bits(found)?, bits(want)?, "{format}: dw");
        }
        for (what, operand) in
            [Some(("ds", scale.as_tensor())), bias.map(|b| ("db", b))].into_iter().flatten()
        {
            let (found, want) = both(operand);
            // The same terms in another order: 8 in a lane and 5 steps of a tree, against 32 in a lane: 45 roundings of 6e-8.
            // The one sum of a tensor may cancel to a hundredth of its terms.
            let tolerance = if format.group_len().is_none() { 3e-5 } else { 3e-6 };
            assert_close(&format!("{format}: {what}"), found, &flat(want)?, tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn the_kernels_count_turns_and_hold_weights_as_the_cpu_does_to_the_bit() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for format in Format::all().into_iter().filter(|format| Turns::counts(*format)) {
        let (rows, groups) = (2, format.groups(2, COLS));
        let fresh = || Tensor::zeros((rows, COLS), DType::F32, &Device::Cpu);
        let [ours, codecs] = [fresh()?, fresh()?];
        let [w, same] = [fresh()?, fresh()?];
        for _ in 0..12 {
            let mut moved: Vec<f32> = (0..rows * COLS).map(|_| rng.random_range(-2.0f32..2.0)).collect();
            moved[7] = f32::NAN;
            // Held ones have been moved, too.
            [&w, &same]
                .into_iter()
                .try_for_each(|w| in_place("test", [w], |[w]| w.copy_from_slice(&moved)))?;
            let mut numbers = |from: f32| -> Result<Tensor> {
                let numbers: Vec<f32> = (0..groups).map(|_| rng.random_range(from..from + 0.4)).collect();
                Tensor::new(numbers, &Device::Cpu)
            };
            let scale = numbers(0.3)?;
            let bias = if format.has_bias() { Some(numbers(-0.9)?) } else { None };
            follow(format, &w, &scale, bias.as_ref(), &Turns::new(&ours, 3))?;
            Turns::new(&codecs, 3).follow(format, &same, &scale, bias.as_ref())?;
            assert_eq!(bits(&ours)?, bits(&codecs)?, "{format}");
            assert_eq!(bits(&w)?, bits(&same)?, "{format}");
        }
        let held = Turns::new(&ours, 3).held()?;
        assert!(held > 50.0 && held < 512.0, "{format}: {held}");
        let scale = Var::from_tensor(&Tensor::full(0.5f32, groups, &Device::Cpu)?)?;
        let bias = format.has_bias().then(|| Tensor::full(-0.7f32, groups, &Device::Cpu)).transpose()?;
        let bias = bias.map(|bias| Var::from_tensor(&bias)).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.as_tensor());
        let (w, g) = (Var::from_tensor(&uniform(3, 2.0, &[rows, COLS])?)?, uniform(4, 1.0, &[rows, COLS])?);
        for noise in [None, Some(Noise::of(1, 2, 3, 0.5))] {
            let (spec, turns) =
                (FakeQuant { noise, ..spec(format, Gradient::Lsq, 1.0) }, Turns::new(&ours, 3));
            let (_, kernels) = backward(|| learned(&w, &scale, bias, Some(&turns), &spec), &g)?;
            let (_, cpu) = backward(|| fake_quant_held(&w, &scale, bias, Some(&turns), &spec), &g)?;
            let both = |t: &Tensor| [&kernels, &cpu].map(|grads| grads.get(t).expect("a gradient"));
            let [found, want] = both(&w);
            assert_eq!(bits(found)?, bits(want)?, "{format}: dw");
            for (what, operand) in
                [Some(("ds", scale.as_tensor())), bias.map(|b| ("db", b))].into_iter().flatten()
            {
                let [found, want] = both(operand);
                // As in `check_learned`.
                let tolerance = if format.group_len().is_none() { 3e-5 } else { 3e-6 };
                assert_close(&format!("{format}: {what}"), found, &flat(want)?, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_kernels_show_a_weight_that_is_no_number() -> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let mut values = uniform(20, 1.0, &[2 * COLS])?.to_vec1::<f32>()?;
    values[5] = f32::NAN;
    values[COLS..].fill(f32::NAN);
    let w = Tensor::from_vec(values, (2, COLS), &Device::Cpu)?;
    for format in Format::all() {
        let value = chosen(&w, &spec(format, Gradient::Ste, 1.0))?;
        let sums = value.sum(1)?.to_vec1::<f32>()?;
        assert!(sums.iter().all(|v| v.is_nan()), "{format}: {sums:?}");
    }
    Ok(())
}

#[test]
fn in_bf16_the_kernels_round_the_codecs_value_once_and_gradients_of_weights_and_grids_not_at_all()
-> Result<()> {
    if !host::available() {
        return Ok(());
    }
    let w = Tensor::cat(&[&weights()?.narrow(0, 0, 1)?, &uniform(22, 3.0, &[1, COLS])?], 0)?;
    let values = w.flatten_all()?.to_vec1::<f32>()?;
    let noise = Some(Noise::of(1, 2, 3, 0.5));
    let kinds = [
        (Gradient::Ste, None),
        (Gradient::ClippedSte, noise),
        (Gradient::Lsq, None),
        (Gradient::Lsq, noise),
        (Gradient::Codes, None),
    ];
    for (format, (gradient, noise)) in Format::all().into_iter().flat_map(|f| kinds.map(|kind| (f, kind))) {
        let in_type = |dtype| FakeQuant { noise, dtype, ..spec(format, gradient, 0.7) };
        let mut inputs = vec![w.clone()];
        if gradient.learns_scales() {
            let start = Scales::choose(format, ScaleRule::Absmax, &values, w.dim(0)?, COLS);
            let vectors = [start.scale, start.bias].into_iter().filter(|v| !v.is_empty());
            inputs.extend(vectors.map(|v| Tensor::new(v, &Device::Cpu)).collect::<Result<Vec<_>>>()?);
        }
        let found = |dtype| {
            let op = |t: &[Tensor]| match gradient.learns_scales() {
                true => fake_quant_learned(&t[0], &t[1], t.get(2), &in_type(dtype)),
                false => fake_quant(&t[0], &in_type(dtype)),
            };
            value_and_gradients(op, &inputs)
        };
        let [narrow, wide] = [found(DType::BF16)?, found(DType::F32)?];
        for (at, (narrow, wide)) in narrow.iter().zip(&wide).enumerate() {
            let (Some(narrow), Some(wide)) = (narrow, wide) else {
                assert!(narrow.is_none() && wide.is_none(), "{format} {gradient:?} {at}");
                continue;
            };
            assert_eq!(narrow.dtype(), if at == 0 { DType::BF16 } else { DType::F32 });
            let wide = wide.to_dtype(narrow.dtype())?.to_dtype(DType::F32)?;
            assert!(bits(&narrow.to_dtype(DType::F32)?)? == bits(&wide)?, "{format} {gradient:?} {at}");
        }
    }
    Ok(())
}
