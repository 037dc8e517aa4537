//! What one token's product does to its activations first: the norm, and rounding to int8.

use qat_metal_host as host;
use qat_quant::int8_tokens;
use qat_quant::kernels::FloatType;
use qat_quant::kernels::metal::{Epilogue, Matrix, Product, Storage};

use crate::matrices::{bits, normal};
use crate::metal::{self, Stored, columns, storages};
use crate::metal_products::{Case, activations, norm_weight};

#[test]
fn metal_products_norm_and_round_one_token_on_the_way() {
    if !host::available() {
        return;
    }
    for storage in storages() {
        for (i, cols) in columns(storage).into_iter().enumerate() {
            for (norm, int8) in [(true, false), (false, true), (true, true)] {
                // More rows than a threadgroup has: all of them must find the same norm.
                let rows = [[9, 17, 5], [13, 1, 9]][i % 2];
                let matrices: Vec<_> = rows.iter().map(|&rows| Stored::new(storage, rows, cols)).collect();
                Case {
                    matrices: &matrices,
                    x: activations(1, cols),
                    norm: norm.then(|| norm_weight(cols)),
                    int8,
                    has_bias: i % 2 == 0,
                    epilogue: Epilogue::Store,
                }
                .check();
            }
        }
    }
}

/// Activations that rounding to int8 can get wrong, each with a name.
fn adversarial(cols: usize) -> Vec<(&'static str, Vec<f32>)> {
    let noise = normal(9, cols);
    let of = |f: &dyn Fn(usize) -> f32| (0..cols).map(f).collect::<Vec<f32>>();
    let scale = noise.iter().fold(0f32, |peak, x| peak.max(x.abs())) / 127.0;
    let tie = |i: usize| scale * ((i % 254) as f32 - 126.5);
    vec![
        ("normal", noise.clone()),
        ("zeros", of(&|_| 0.0)),
        ("zeros of both signs", of(&|i| if i % 3 == 0 { -0.0 } else { 0.0 })),
        // With a scale of exactly 1, every value between two codes is a tie.
        ("ties", of(&|i| if i == 0 { -127.0 } else { (i % 254) as f32 - 126.5 })),
        // The peak of `noise` stays, so that these are as near to ties as floats are.
        ("at ties", of(&|i| if noise[i].abs() == 127.0 * scale { noise[i] } else { tie(i) })),
        ("just below ties", of(&|i| if i == 0 { 127.0 * scale } else { tie(i).next_down() })),
        ("just above ties", of(&|i| if i == 0 { -127.0 * scale } else { tie(i).next_up() })),
        ("one among zeros", of(&|i| if i == cols - 1 { -0.7 } else { 0.0 })),
        ("equal peaks of both signs", of(&|i| if i % 2 == 0 { -2.5 } else { 2.5 })),
        ("tiny", of(&|i| noise[i] * 1e-34)),
        ("a scale that would be subnormal", of(&|i| noise[i] * 1e-37)),
        // Of numbers that the GPU has: below 2⁻¹²⁶ it takes them for zero.
        ("the least scale", of(&|i| 2f32.powi(-119) * [1.0, -0.4, 0.25, 0.01][i % 4])),
        ("just less", of(&|i| 2f32.powi(-119).next_down() * [1.0, -0.4, 0.25, 0.01][i % 4])),
        ("huge", of(&|i| noise[i] * 1e37)),
    ]
}

/// The identity gives back each activation: one product of a weight of 1, and zeros, which are added without rounding.
fn identity(cols: usize) -> Stored {
    let values: Vec<f32> = (0..cols * cols).map(|i| if i % (cols + 1) == 0 { 1.0 } else { 0.0 }).collect();
    Stored::float(FloatType::F32, cols, cols, &values)
}

#[test]
fn metal_int8_activations_have_the_bits_of_the_trainer() {
    if !host::available() {
        return;
    }
    // Less than the simdgroups hold, and more than they take in one turn.
    for cols in [40, 300] {
        let stored = identity(cols);
        let matrices = [Matrix { rows: cols as u32, tensor_scale: 0.0 }];
        let product = Product {
            storage: Storage::Float(FloatType::F32),
            cols: cols as u32,
            matrices: &matrices,
            tokens: 1,
            norm: None,
            int8: true,
            has_bias: false,
            epilogue: Epilogue::Store,
        };
        let dispatch = product.dispatch();
        for (name, x) in adversarial(cols) {
            let mut trained = x.clone();
            int8_tokens(&mut trained, cols);
            let scale = x.iter().fold(0f32, |peak, x| peak.max(x.abs())) / 127.0;
            // A sum of products knows no -0.
            trained.iter_mut().for_each(|x| *x += 0.0);
            let mut buffers = metal::no_buffers(12);
            buffers[0] = metal::input(&x);
            buffers[1] = metal::read_only(&dispatch.shape);
            buffers[3] = host::Buffer::Out(4 * cols);
            buffers[6] = metal::read_only(&stored.bytes);
            metal::verify(name, &dispatch, &buffers, &mut |mode, found| {
                let found: Vec<f32> = metal::floats(&found[3]).iter().map(|x| x + 0.0).collect();
                if mode.build == host::Build::FastMath {
                    // The scale may be rounded once more: see `Case::inputs`. A code differs by one at most.
                    let far = found.iter().zip(&trained).any(|(a, b)| (a - b).abs() > 1.001 * scale);
                    assert!(!far, "{name} with fast math: {found:?} {trained:?}");
                } else {
                    assert_eq!(bits(&found), bits(&trained), "{name}, {mode:?}");
                }
            });
        }
    }
}
