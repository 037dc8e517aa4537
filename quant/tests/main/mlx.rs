//! Directories that MLX's own converter made from the fixtures: our codec reads its bytes and draws its grid.

use qat_quant::{Affine, Format, PackedRef, ScaleRule, ScaleType, Scales, pack};
use safetensors::{Dtype, SafeTensors};

use crate::matrices::{fixture, shared, squared_error};

/// One quantized matrix as MLX stores it, and the weights it was made from.
struct Reference {
    name: String,
    format: Format,
    bits: usize,
    rows: usize,
    cols: usize,
    /// u32 words, as bytes.
    codes: Vec<u8>,
    scales: Scales,
    weights: Vec<f32>,
}

impl Reference {
    /// All quantized matrices of `export` whose float originals are in `origin`.
    fn read(export: &str, origin: &str, bits: usize, group: usize) -> Option<Vec<Self>> {
        let bytes = std::fs::read(shared(&format!("reference-exports/{export}/model.safetensors"))?).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let originals = fixture(origin)?;
        let format = Format::Affine(Affine::new(bits, group, ScaleType::BF16).unwrap());
        let bf16 = |name: String| -> Vec<f32> {
            let view = file.tensor(&name).unwrap();
            assert_eq!(view.dtype(), Dtype::BF16);
            let value = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            view.data().as_chunks::<2>().0.iter().map(value).collect()
        };
        let names = file.names().into_iter().filter_map(|name| name.strip_suffix(".scales"));
        let read = |module: &str| {
            let name = format!("{module}.weight");
            let (shape, weights) = originals.get(&name)?.clone();
            let scales =
                Scales { scale: bf16(format!("{module}.scales")), bias: bf16(format!("{module}.biases")) };
            let codes = file.tensor(&name).unwrap().data().to_vec();
            Some(Self { name, format, bits, rows: shape[0], cols: shape[1], codes, scales, weights })
        };
        Some(names.filter_map(read).collect())
    }

    /// Our blocks over their three tensors: no bit of the codes moves.
    fn blocks(&self) -> Vec<u8> {
        let code_bytes = self.format.block_bytes() - 4;
        let header = |v: f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
        let groups = self.codes.chunks_exact(code_bytes).zip(&self.scales.scale).zip(&self.scales.bias);
        groups.flat_map(|((codes, &s), &b)| [&header(s), &header(b), codes].concat()).collect()
    }

    /// Their codes, taken from the words one bit at a time.
    fn their_codes(&self) -> Vec<f32> {
        let row_bytes = self.cols * self.bits / 8;
        let of_row = |row: &[u8]| -> Vec<f32> {
            let bit = |n: usize| u32::from_le_bytes(row.as_chunks::<4>().0[n / 32]) >> (n % 32) & 1;
            let code = |i: usize| (0..self.bits).map(|b| bit(i * self.bits + b) << b).sum::<u32>() as f32;
            (0..self.cols).map(code).collect()
        };
        self.codes.chunks_exact(row_bytes).flat_map(of_row).collect()
    }
}

/// Agreement with MLX, counted.
#[derive(Debug, Default)]
struct Agreement {
    groups: usize,
    same_grids: usize,
    weights: usize,
    same_codes: usize,
    their_error: f64,
    our_error: f64,
}

fn compare(export: &str, origin: &str, bits: usize, group: usize) -> Option<Agreement> {
    let mut sum = Agreement::default();
    for reference in Reference::read(export, origin, bits, group)? {
        let Reference { name, format, rows, cols, weights, scales, .. } = &reference;
        let (format, rows, cols) = (*format, *rows, *cols);
        let blocks = reference.blocks();
        let theirs = PackedRef::new(name, format, rows, cols, &blocks, None).unwrap();
        theirs.validate(name).unwrap();
        let decoded = theirs.decode();
        let codes = reference.their_codes();
        for (i, (&value, &code)) in decoded.iter().zip(&codes).enumerate() {
            let (s, b) = (scales.scale[i / group], scales.bias[i / group]);
            assert_eq!(value.to_bits(), (s * code + b).to_bits(), "{name} weight {i}");
            // They chose the code with the unrounded scale: half a step away, or at the end of the grid that the weight
            // lies beyond, give or take what rounding the scale and the bias to bf16 (2^-9 each) moves the grid by.
            let slack = (s.abs() * code + b.abs()) * 2f32.powi(-8);
            let u = (weights[i] - b) / s;
            let top = format.levels().1 as f32;
            let is_clipped = (u < 0.0 && code == 0.0) || (u > top && code == top);
            let near = (value - weights[i]).abs() <= s.abs() / 2.0 + slack;
            assert!(near || is_clipped, "{name} weight {i}: {value} for {}", weights[i]);
        }
        // Their grid, our codes: never more error in any group.
        let ours = pack(name, format, weights, rows, cols, scales).unwrap().as_ref().decode();
        for (i, w) in weights.chunks_exact(group).enumerate() {
            let span = i * group..(i + 1) * group;
            let (our_error, their_error) =
                (squared_error(w, &ours[span.clone()]), squared_error(w, &decoded[span.clone()]));
            // A weight midway between two codes may fall either way, differing by the rounding of the value alone.
            assert!(our_error <= their_error * (1.0 + 1e-6), "{name} group {i}: {our_error} {their_error}");
        }
        // Our grid by their rule.
        let chosen = Scales::choose(format, ScaleRule::Absmax, weights, rows, cols);
        let same = |i: &usize| chosen.scale[*i] == scales.scale[*i] && chosen.bias[*i] == scales.bias[*i];
        sum.groups += chosen.scale.len();
        sum.same_grids += (0..chosen.scale.len()).filter(same).count();
        sum.weights += weights.len();
        sum.same_codes += ours.iter().zip(&decoded).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        sum.our_error += squared_error(weights, &ours);
        sum.their_error += squared_error(weights, &decoded);
    }
    assert!(sum.groups > 1000, "{export}: only {} groups were found", sum.groups);
    Some(sum)
}

#[test]
fn mlx_files_decode_and_its_rule_draws_our_grid() {
    for (export, origin, bits, group) in [
        ("mlx-llama_tied-q2g64", "llama_tied", 2, 64),
        ("mlx-llama_tied-q3g64", "llama_tied", 3, 64),
        ("mlx-llama_tied-q4g32", "llama_tied", 4, 32),
        ("mlx-llama_tied-q4g64", "llama_tied", 4, 64),
        ("mlx-qwen3-q4g64", "qwen3", 4, 64),
    ] {
        let Some(found) = compare(export, origin, bits, group) else { return };
        assert_eq!(found.same_grids, found.groups, "{export}");
        // Codes next to a boundary fall to the other side for MLX, which compares with the unrounded scale.
        assert!(found.same_codes * 100 >= found.weights * 99, "{export}: {found:?}");
        assert!(found.our_error <= found.their_error, "{export}: {found:?}");
    }
}
