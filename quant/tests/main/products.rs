//! Products of matrices of floats: the specified order of additions to the bit, and the error it may have.

use qat_quant::kernels::{FloatRef, FloatType, PANEL, float_panel};

use crate::matrices::normal;

const LANES: usize = 16;

/// The specification, written out one addition at a time.
fn specified(row: &[f32], x: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (i, (w, x)) in row.iter().zip(x).enumerate() {
        sums[i % LANES] += w * x;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

/// Checks `out` `[n, rows]` against the specification, and against f64 within the bound of its order of additions: a
/// product is rounded once, added at most ⌈cols/16⌉ times in its lane and 4 times with other lanes, and each rounding
/// changes it by a factor within 1 ± 2^-24.
fn check(what: &str, w: &[f32], cols: usize, x: &[f32], out: &[f32]) {
    let mut outputs = out.iter();
    for x in x.chunks_exact(cols) {
        for row in w.chunks_exact(cols) {
            let found = *outputs.next().unwrap();
            assert_eq!(found.to_bits(), specified(row, x).to_bits(), "{what}");
            let terms = || row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let roundings = (1 + cols.div_ceil(LANES) + 4) as f64;
            let bound = ((1.0 + 2f64.powi(-24)).powf(roundings) - 1.0) * terms().map(f64::abs).sum::<f64>();
            let exact: f64 = terms().sum();
            assert!((f64::from(found) - exact).abs() <= bound, "{what}: {found} {exact} ± {bound}");
        }
    }
    assert!(outputs.next().is_none());
}

#[test]
fn float_products_follow_the_specification_for_every_dtype_and_shape() {
    for (rows, cols, n) in [(1, 1, 1), (5, 17, 3), (33, 48, 6), (16, 15, 4)] {
        let x = normal(8, n * cols);
        for dtype in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            // Numbers with 5 significant bits are exact in each.
            let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 37) % 31) as f32 / 16.0 - 1.0).collect();
            let store = |w: &f32| match dtype {
                FloatType::F32 => w.to_le_bytes().to_vec(),
                FloatType::F16 => f16_bits(*w).to_le_bytes().to_vec(),
                FloatType::BF16 => ((w.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
            };
            // One byte off any alignment.
            let bytes: Vec<u8> = std::iter::once(0).chain(w.iter().flat_map(store)).collect();
            let view = FloatRef::new("w", dtype, rows, cols, &bytes[1..]).unwrap();
            let mut row = vec![0.0; cols];
            view.decode_row(rows - 1, &mut row);
            assert_eq!(row, w[(rows - 1) * cols..]);
            let mut out = vec![f32::NAN; n * rows];
            for index in 0..rows.div_ceil(PANEL) {
                float_panel(view, index, &x, 0..n, &mut |token, outputs| {
                    let place = &mut out[token * rows..][index * PANEL..rows.min((index + 1) * PANEL)];
                    place.copy_from_slice(&outputs[..place.len()]);
                });
            }
            check(&format!("{dtype:?} [{rows}, {cols}] · {n}"), &w, cols, &x, &out);
        }
    }
}

/// f16 bits of a number that f16 holds as a normal one or zero.
fn f16_bits(v: f32) -> u16 {
    let (sign, magnitude) = ((v.to_bits() >> 16) as u16 & 0x8000, v.abs().to_bits());
    if magnitude == 0 { sign } else { sign | ((magnitude >> 13) - (112 << 10)) as u16 }
}

#[test]
fn a_float_matrix_of_another_length_is_refused() {
    let error = FloatRef::new("lm_head.weight", FloatType::BF16, 3, 5, &[0; 29]).unwrap_err();
    assert_eq!(error.to_string(), "lm_head.weight: a float [3, 5] wants 2 bytes each, found 29 bytes");
    assert!(FloatRef::new("w", FloatType::F32, usize::MAX, 5, &[]).is_err());
}
