//! Fake quantization against the codec, to the bit, and against the definition of each gradient.

use super::*;
use crate::ops::check::{assert_close, backward, bits, flat, uniform};
use candle_core::{DType, Var};

const ROWS: usize = 3;
const COLS: usize = 256;
const RULES: [ScaleRule; 2] = [ScaleRule::Absmax, ScaleRule::Mse];

fn spec(format: Format, gradient: Gradient, lambda: f32) -> FakeQuant {
    FakeQuant { format, gradient, rule: ScaleRule::Absmax, lambda, noise: None, dtype: DType::F32 }
}

/// A matrix, and scales and biases for it that leave some weights outside the grid and are not yet rounded.
fn learned(format: Format) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let w = uniform(20, 1.0, &[ROWS, COLS])?;
    let chosen = Scales::choose(format, ScaleRule::Absmax, &Floats::of("test", &w)?, ROWS, COLS);
    let scale: Vec<f32> = chosen.scale.iter().map(|s| s * 0.777).collect();
    let bias: Vec<f32> = chosen.bias.iter().map(|b| b * 0.777).collect();
    let groups = scale.len();
    let bias = if bias.is_empty() { None } else { Some(Tensor::from_vec(bias, groups, &Device::Cpu)?) };
    Ok((w, Tensor::from_vec(scale, groups, &Device::Cpu)?, bias))
}

/// The bits of `w` after it was packed on this grid and read back: what the runtime will see.
fn packed_bits(format: Format, w: &Tensor, scales: &Scales) -> Result<Vec<u32>> {
    let packed = qat_quant::pack("w", format, &Floats::of("test", w)?, ROWS, COLS, scales)
        .map_err(candle_core::Error::wrap)?;
    Ok(packed.as_ref().decode().into_iter().map(f32::to_bits).collect())
}

#[test]
fn the_value_is_what_packing_and_reading_back_gives_to_the_bit_in_every_format() -> Result<()> {
    let w = uniform(20, 1.0, &[ROWS, COLS])?;
    for format in Format::all() {
        for (gradient, rule) in [(Gradient::Ste, RULES[0]), (Gradient::ClippedSte, RULES[1])] {
            let scales = Scales::choose(format, rule, &Floats::of("test", &w)?, ROWS, COLS);
            let want = packed_bits(format, &w, &scales)?;
            let found = fake_quant(&w, &FakeQuant { rule, ..spec(format, gradient, 1.0) })?;
            assert_eq!(bits(&found)?, want, "{format} {rule}");
            let strided =
                fake_quant(&w.t()?.contiguous()?.t()?, &FakeQuant { rule, ..spec(format, gradient, 1.0) })?;
            assert_eq!(bits(&strided)?, want, "{format} {rule}, transposed in memory");
        }
    }
    Ok(())
}

#[test]
fn the_learned_value_is_what_packing_and_reading_back_gives_to_the_bit_in_every_format() -> Result<()> {
    for format in Format::all() {
        let (w, scale, bias) = learned(format)?;
        let biases = bias.as_ref().map(|b| b.to_vec1::<f32>()).transpose()?.unwrap_or_default();
        let stored = Scales::rounded(format, &scale.to_vec1::<f32>()?, &biases);
        assert_ne!(stored.scale, scale.to_vec1::<f32>()?, "the test needs scales that rounding changes");
        let want = packed_bits(format, &w, &stored)?;
        let found = fake_quant_learned(&w, &scale, bias.as_ref(), &spec(format, Gradient::Lsq, 1.0))?;
        assert_eq!(bits(&found)?, want, "{format}");
    }
    Ok(())
}

#[test]
fn warm_up_goes_from_the_weight_to_the_quantized_value_in_a_straight_line() -> Result<()> {
    let w = uniform(20, 1.0, &[ROWS, COLS])?;
    let at = |lambda| fake_quant(&w, &spec(Format::TernaryG64, Gradient::Ste, lambda));
    assert_eq!(bits(&at(0.0)?)?, bits(&w)?);
    let middle = ((&w + at(1.0)?)? / 2.0)?;
    // Three roundings of 6e-8.
    assert_close("half way", &at(0.5)?, &flat(&middle)?, 2e-7)
}

#[test]
fn straight_through_returns_the_gradient_to_the_bit_at_any_lambda() -> Result<()> {
    let w = Var::from_tensor(&uniform(20, 1.0, &[ROWS, COLS])?)?;
    let g = uniform(21, 1.0, &[ROWS, COLS])?;
    for format in Format::all() {
        for lambda in [0.25, 1.0] {
            let (_, grads) = backward(|| fake_quant(&w, &spec(format, Gradient::Ste, lambda)), &g)?;
            let Some(dw) = grads.get(&w) else { panic!("no gradient") };
            assert_eq!(bits(dw)?, bits(&g)?, "{format}");
        }
    }
    Ok(())
}

#[test]
fn clipping_blocks_exactly_the_gradients_of_weights_outside_the_grid() -> Result<()> {
    let w = Var::from_tensor(&uniform(20, 1.0, &[ROWS, COLS])?)?;
    let g = uniform(21, 1.0, &[ROWS, COLS])?;
    let values = w.flatten_all()?.to_vec1::<f32>()?;
    for format in Format::all() {
        let scales = Scales::choose(format, ScaleRule::Absmax, &values, ROWS, COLS);
        let (lo, hi) = format.levels();
        let margin = if format.is_ternary() { 0.5 } else { 0.0 };
        let group = format.group_len().unwrap_or(ROWS * COLS);
        let want: Vec<u32> = values
            .iter()
            .zip(g.flatten_all()?.to_vec1::<f32>()?)
            .enumerate()
            .map(|(i, (w, g))| {
                let bias = scales.bias.get(i / group).copied().unwrap_or(0.0);
                let u = (w - bias) / scales.scale[i / group];
                let inside = u >= lo as f32 - margin && u <= hi as f32 + margin;
                if inside { g.to_bits() } else { 0f32.to_bits() }
            })
            .collect();
        let (_, grads) = backward(|| fake_quant(&w, &spec(format, Gradient::ClippedSte, 1.0)), &g)?;
        let Some(dw) = grads.get(&w) else { panic!("no gradient") };
        assert_eq!(bits(dw)?, want, "{format}");
        if format.is_ternary() {
            assert!(want.contains(&0), "{format}: the test needs weights outside the grid");
        }
    }
    Ok(())
}

#[test]
fn learned_gradients_are_those_of_the_definition_in_every_format() -> Result<()> {
    let g = uniform(21, 1.0, &[ROWS, COLS])?;
    for format in Format::all() {
        let (w, scale, bias) = learned(format)?;
        let (w, scale) = (Var::from_tensor(&w)?, Var::from_tensor(&scale)?);
        let bias = bias.map(|b| Var::from_tensor(&b)).transpose()?;
        let (of_bias, lsq) = (bias.as_ref().map(|b| b.as_tensor()), spec(format, Gradient::Lsq, 1.0));
        let (_, grads) = backward(|| fake_quant_learned(&w, &scale, of_bias, &lsq), &g)?;
        let want = defined_gradients(format, &w, &scale, bias.as_ref(), &g)?;
        // Sums of up to 768 terms in lanes: 50 sequential roundings of 6e-8 bound 3e-6, of (w−b)/s another 1e-6.
        for (what, var, want) in
            [("dw", Some(&w), &want.0), ("ds", Some(&scale), &want.1), ("db", bias.as_ref(), &want.2)]
        {
            let Some(var) = var else { continue };
            let Some(found) = grads.get(var) else { panic!("{format}: no {what}") };
            assert_close(&format!("{format} {what}"), found, want, 4e-6)?;
        }
    }
    Ok(())
}

/// dw, ds and db as finite differences of a piecewise linear function in f64: the quantizer with its codes frozen
/// outside the grid and its rounding error frozen inside, which is what "straight through" means.
fn defined_gradients(
    format: Format,
    w: &Tensor,
    scale: &Tensor,
    bias: Option<&Var>,
    g: &Tensor,
) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let biases = bias.map(|b| b.to_vec1::<f32>()).transpose()?.unwrap_or_default();
    let stored = Scales::rounded(format, &scale.to_vec1::<f32>()?, &biases);
    let (lo, hi) = (f64::from(format.levels().0), f64::from(format.levels().1));
    let group = format.group_len().unwrap_or(ROWS * COLS);
    let gamma = 1.0 / (group as f64 * hi).sqrt();
    let (mut dw, mut ds, mut db) = (Vec::new(), vec![0.0; stored.scale.len()], vec![0.0; stored.bias.len()]);
    for (i, (w, g)) in flat(w)?.into_iter().zip(flat(g)?).enumerate() {
        let (s, b) =
            (f64::from(stored.scale[i / group]), stored.bias.get(i / group).map_or(0.0, |&b| f64::from(b)));
        let u = (w - b) / s;
        let error = u.round_ties_even() - u;
        // Straight through, ŵ moves like this when w, s and b move:
        let value = |w: f64, s: f64, b: f64| {
            if u < lo {
                s * lo + b
            } else if u > hi {
                s * hi + b
            } else {
                s * ((w - b) / s + error) + b
            }
        };
        // ŵ is linear in s and b, and a step of 2⁻²⁰ is exact: the differences have only f64's rounding.
        let h = 2f64.powi(-20);
        let difference = |up: f64, down: f64| g * (up - down) / (2.0 * h);
        let passes = format.is_ternary() && u.abs() <= 1.5;
        dw.push(if passes { g } else { difference(value(w + h, s, b), value(w - h, s, b)) });
        ds[i / group] += gamma * difference(value(w, s + h, b), value(w, s - h, b));
        if let Some(db) = db.get_mut(i / group) {
            *db += gamma * difference(value(w, s, b + h), value(w, s, b - h));
        }
    }
    Ok((dw, ds, db))
}

#[test]
fn frozen_codes_stand_for_what_was_rounded_and_teach_the_scales_alone() -> Result<()> {
    let g = uniform(21, 1.0, &[ROWS, COLS])?;
    for format in Format::all() {
        let (w, scale, bias) = learned(format)?;
        let biases = bias.as_ref().map(|b| b.to_vec1::<f32>()).transpose()?.unwrap_or_default();
        let stored = Scales::rounded(format, &scale.to_vec1::<f32>()?, &biases);
        let mut codes = vec![0f32; ROWS * COLS];
        qat_quant::codes(format, &Floats::of("test", &w)?, ROWS, COLS, &stored, &mut codes);
        let codes = Var::from_tensor(&Tensor::from_vec(codes, (ROWS, COLS), &Device::Cpu)?)?;
        let scale = Var::from_tensor(&scale)?;
        let bias = bias.map(|b| Var::from_tensor(&b)).transpose()?;
        let bias_tensor = bias.as_ref().map(|b| b.as_tensor());
        let lsq = fake_quant_learned(&w, &scale, bias_tensor, &spec(format, Gradient::Lsq, 1.0))?;
        // λ has no part in it.
        let frozen = spec(format, Gradient::Codes, 0.5);
        let (found, grads) = backward(|| fake_quant_learned(&codes, &scale, bias_tensor, &frozen), &g)?;
        assert_eq!(bits(&found)?, bits(&lsq)?, "{format}");
        assert!(grads.get(&codes).is_none(), "{format}: codes receive a gradient");
        let group = format.group_len().unwrap_or(ROWS * COLS);
        let gamma = (group as f64 * f64::from(format.levels().1)).powf(-0.5);
        let (mut ds, mut db) = (vec![0f64; stored.scale.len()], vec![0f64; stored.bias.len()]);
        for (i, (q, g)) in flat(&codes)?.into_iter().zip(flat(&g)?).enumerate() {
            ds[i / group] += gamma * q * g;
            db.get_mut(i / group).into_iter().for_each(|db| *db += gamma * g);
        }
        for (what, var, want) in [("ds", Some(&scale), ds), ("db", bias.as_ref(), db)] {
            let Some(var) = var else { continue };
            let Some(found) = grads.get(var) else { panic!("{format}: no {what}") };
            assert_close(&format!("{format} {what}"), found, &want, 4e-6)?;
        }
    }
    Ok(())
}

#[test]
fn held_weights_get_no_gradient_and_teach_scales_as_codes_do() -> Result<()> {
    let g = uniform(21, 1.0, &[ROWS, COLS])?;
    for format in Format::all().into_iter().filter(|format| Turns::counts(*format)) {
        let (w, scale, bias) = learned(format)?;
        let state = Tensor::zeros((ROWS, COLS), DType::F32, &Device::Cpu)?;
        let turns = Turns::new(&state, 1);
        let middle = w.copy()?;
        // There and back: half of the weights turn, and are held.
        for sign in [1.0, -1.0, 1.0] {
            let moved: Vec<f32> = flat(&w)?
                .iter()
                .enumerate()
                .map(|(i, w)| (*w * if i % 2 == 0 { sign } else { 1.0 }) as f32)
                .collect();
            super::super::in_place("test", [&middle], |[middle]| middle.copy_from_slice(&moved))?;
            turns.follow(format, &middle, &scale, bias.as_ref())?;
        }
        let mut codes = vec![f32::NAN; ROWS * COLS];
        turns.put_codes(format, &mut codes)?;
        let held: Vec<bool> = codes.iter().map(|code| !code.is_nan()).collect();
        assert!(held.contains(&true) && held.contains(&false), "{format}");
        let (w, scale) = (Var::from_tensor(&middle)?, Var::from_tensor(&scale)?);
        let bias = bias.map(|b| Var::from_tensor(&b)).transpose()?;
        let bias_tensor = bias.as_ref().map(|b| b.as_tensor());
        let spec = spec(format, Gradient::Lsq, 1.0);
        let (value, found) = backward(|| fake_quant_held(&w, &scale, bias_tensor, Some(&turns), &spec), &g)?;
        // What the free ones teach is what they would teach with the gradients of the others at zero.
        let keep = |wanted: bool| -> Result<Tensor> {
            let kept = flat(&g)?
                .into_iter()
                .zip(&held)
                .map(|(g, held)| if *held == wanted { g as f32 } else { 0.0 });
            Tensor::from_vec(kept.collect::<Vec<f32>>(), (ROWS, COLS), &Device::Cpu)
        };
        let (free, want) = backward(|| fake_quant_learned(&w, &scale, bias_tensor, &spec), &keep(false)?)?;
        assert_eq!(bits(&value)?, bits(&free)?, "{format}: the value");
        let zero = |code: &f32| if code.is_nan() { 0.0 } else { *code };
        let codes: Vec<f32> = codes.iter().map(zero).collect();
        let codes = Var::from_tensor(&Tensor::from_vec(codes, (ROWS, COLS), &Device::Cpu)?)?;
        let of_codes = FakeQuant { gradient: Gradient::Codes, ..spec };
        let (_, more) =
            backward(|| fake_quant_learned(&codes, &scale, bias_tensor, &of_codes), &keep(true)?)?;
        let [Some(dw), Some(wanted)] = [found.get(&w), want.get(&w)] else { panic!("{format}: no dw") };
        assert_eq!(bits(dw)?, bits(wanted)?, "{format}: dw");
        for (what, var) in [("ds", Some(&scale)), ("db", bias.as_ref())] {
            let Some(var) = var else { continue };
            let grads = [&found, &want, &more].map(|grads| grads.get(var));
            let [Some(found), Some(free), Some(held)] = grads else { panic!("{format}: no {what}") };
            // One rounding of the sum, one of its product with γ.
            assert_close(&format!("{format} {what}"), found, &flat(&(free + held)?)?, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn with_noise_each_weight_is_rounded_or_not_there_at_all_for_the_quantizer() -> Result<()> {
    let g = uniform(21, 1.0, &[ROWS, COLS])?;
    for format in [Format::Int4G32, Format::TernaryTensor, "int2-affine-g64".parse().unwrap()] {
        let noise = Noise::of(3, 5, 2, 0.4);
        let (w, scale, bias) = learned(format)?;
        let (w, scale) = (Var::from_tensor(&w)?, Var::from_tensor(&scale)?);
        let bias = bias.map(|b| Var::from_tensor(&b)).transpose()?;
        let bias_tensor = bias.as_ref().map(|b| b.as_tensor());
        let full = spec(format, Gradient::Lsq, 0.75);
        let part = FakeQuant { noise: Some(noise), ..full };
        // The same by a mask: where it is 0, the weight stands for itself.
        let drawn: Vec<f32> =
            (0..(ROWS * COLS) as u32).map(|i| f32::from(u8::from(noise.rounds(i)))).collect();
        assert!(drawn.contains(&0.0) && drawn.contains(&1.0));
        let mask = Tensor::from_vec(drawn, (ROWS, COLS), &Device::Cpu)?.to_dtype(candle_core::DType::U8)?;
        let quantized =
            |spec: &FakeQuant, g: &Tensor| backward(|| fake_quant_learned(&w, &scale, bias_tensor, spec), g);
        let seen = mask.where_cond(&g, &g.zeros_like()?)?;
        let ((found, grads), (all, want)) = (quantized(&part, &g)?, quantized(&full, &seen)?);
        assert_eq!(bits(&found)?, bits(&mask.where_cond(&all, &w)?)?, "{format}");
        for (what, var) in [("dw", Some(&w)), ("ds", Some(&scale)), ("db", bias.as_ref())] {
            let Some(var) = var else { continue };
            let (Some(found), Some(want)) = (grads.get(var), want.get(var)) else {
                panic!("{format}: no {what}")
            };
            let want = if what == "dw" { mask.where_cond(want, &g)? } else { want.clone() };
            assert_eq!(bits(found)?, bits(&want)?, "{format} {what}");
        }
        let clipped = FakeQuant { gradient: Gradient::ClippedSte, ..part };
        let (_, found) = backward(|| fake_quant(&w, &clipped), &g)?;
        let (_, all) = backward(|| fake_quant(&w, &FakeQuant { noise: None, ..clipped }), &g)?;
        let (Some(found), Some(all)) = (found.get(&w), all.get(&w)) else { panic!("{format}: no dw") };
        assert_eq!(bits(found)?, bits(&mask.where_cond(all, &g)?)?, "{format}: clipped");
    }
    Ok(())
}

#[test]
fn nan_weights_are_seen_in_the_value_unless_their_scale_is_zero_and_never_panic() -> Result<()> {
    let mut values = uniform(20, 1.0, &[ROWS * COLS])?.to_vec1::<f32>()?;
    values[5] = f32::NAN;
    values[300] = f32::INFINITY;
    let w = Tensor::from_vec(values, (ROWS, COLS), &Device::Cpu)?;
    for format in Format::all() {
        for rule in RULES {
            let value = fake_quant(&w, &FakeQuant { rule, ..spec(format, Gradient::Ste, 1.0) })?;
            let scales = Scales::choose(format, rule, &Floats::of("test", &w)?, ROWS, COLS);
            let seen = scales.scale[0] != 0.0;
            assert!(seen || rule == ScaleRule::Mse, "{format}: absmax hides a NaN weight");
            assert_eq!(value.sum_all()?.to_scalar::<f32>()?.is_nan(), seen, "{format} {rule}");
        }
    }
    Ok(())
}

#[test]
fn a_row_that_the_format_cannot_hold_is_refused_with_formats_that_can() -> Result<()> {
    let w = uniform(20, 1.0, &[4, 96])?;
    let message = fake_quant(&w, &spec(Format::TernaryG64, Gradient::Ste, 1.0)).unwrap_err().to_string();
    assert!(message.contains("96") && message.contains("int4-g32"), "{message}");
    Ok(())
}

#[test]
fn learned_scales_of_the_wrong_length_or_kind_are_refused() -> Result<()> {
    let (w, scale, _) = learned(Format::Int4G32)?;
    let lsq = spec(Format::Int4G32, Gradient::Lsq, 1.0);
    let short = scale.narrow(0, 0, 5)?;
    let message = fake_quant_learned(&w, &short, None, &lsq).unwrap_err().to_string();
    assert!(message.contains("want scale [24] and bias None, found [5] and None"), "{message}");
    let message = fake_quant_learned(&w, &scale, Some(&scale), &lsq).unwrap_err().to_string();
    assert!(message.contains("bias None"), "{message}");
    let message = fake_quant(&w, &lsq).unwrap_err().to_string();
    assert!(message.contains("fake_quant_learned"), "{message}");
    Ok(())
}
