//! Files that llama.cpp's own tools made from the fixtures: our codecs read their blocks, and agree on the scales.

use std::collections::BTreeMap;

use qat_quant::{Format, PackedRef, ScaleRule, Scales, pack, tq1_0};

use crate::matrices::{fixture, shared, squared_error};

/// A tensor's ggml type id, shape (rows, cols) and bytes.
type Tensor = (u32, (usize, usize), Vec<u8>);

/// A matrix's name, shape (rows, cols), bytes in the file, and original weights.
type Matrix = (String, (usize, usize), Vec<u8>, Vec<f32>);

/// Walks a GGUF file from the front.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn size(&mut self) -> usize {
        u64::from_le_bytes(self.bytes()).try_into().unwrap()
    }

    fn string(&mut self) -> String {
        let len = self.size();
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(head.to_vec()).unwrap()
    }

    /// Skips a metadata value of type `kind`.
    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => self.0 = &self.0[1..],
            2 | 3 => self.0 = &self.0[2..],
            4..=6 => self.0 = &self.0[4..],
            8 => drop(self.string()),
            9 => {
                let (kind, len) = (self.u32(), self.size());
                (0..len).for_each(|_| self.skip(kind));
            }
            10..=12 => self.0 = &self.0[8..],
            _ => panic!("metadata type {kind}"),
        }
    }
}

/// The two-dimensional tensors of a GGUF v3 file of the reference exports.
fn tensors(file: &str) -> Option<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(shared(&format!("reference-exports/{file}"))?).unwrap();
    let mut at = Cursor(&bytes);
    assert_eq!(at.bytes(), *b"GGUF\x03\0\0\0");
    let (count, metadata) = (at.size(), at.size());
    for _ in 0..metadata {
        at.string();
        let kind = at.u32();
        at.skip(kind);
    }
    let mut infos = Vec::new();
    for _ in 0..count {
        let name = at.string();
        let dims: Vec<usize> = (0..at.u32()).map(|_| at.size()).collect();
        infos.push((name, dims, at.u32(), at.size()));
    }
    let data = &bytes[(bytes.len() - at.0.len()).next_multiple_of(32)..];
    let two = infos.into_iter().filter(|info| info.1.len() == 2);
    Some(two.map(|(name, dims, kind, at)| (name, (kind, (dims[1], dims[0]), data[at..].to_vec()))).collect())
}

/// The matrices of llama.cpp's `block_type` in `file`, with our format over their bytes and the weights of the
/// fixture. Query and key projections are left out: llama.cpp permutes their rows.
fn matrices(file: &str, origin: &str, block_type: u32) -> Option<Vec<Matrix>> {
    const NAMES: [(&str, &str); 5] = [
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let (mut tensors, originals) = (tensors(file)?, fixture(origin)?);
    let mut found = Vec::new();
    for layer in
        (0..).take_while(|layer| originals.contains_key(&format!("model.layers.{layer}.mlp.up_proj.weight")))
    {
        for (theirs, ours) in NAMES {
            let name = format!("model.layers.{layer}.{ours}.weight");
            let (kind, (rows, cols), bytes) =
                tensors.remove(&format!("blk.{layer}.{theirs}.weight")).unwrap();
            let (shape, weights) = originals[&name].clone();
            assert_eq!(shape, [rows, cols], "{name}");
            if kind == block_type {
                found.push((name, (rows, cols), bytes, weights));
            }
        }
    }
    assert!(found.len() >= 5, "{file}: {} matrices of type {block_type}", found.len());
    Some(found)
}

const Q4_0: u32 = 2;
const TQ1_0: u32 = 34;
const TQ2_0: u32 = 35;
const Q2_0: u32 = 42;

#[test]
fn llama_cpp_q4_0_decodes_and_its_rule_draws_our_grid() {
    for (file, origin) in [("llama_untied.q4_0.gguf", "llama_untied"), ("qwen3.q4_0.gguf", "qwen3")] {
        let Some(matrices) = matrices(file, origin, Q4_0) else { return };
        let (mut groups, mut same_scales, mut weights_n, mut same_codes, mut errors) =
            (0, 0, 0, 0, (0.0, 0.0));
        for (name, (rows, cols), bytes, weights) in matrices {
            let bytes = &bytes[..rows * Format::Int4G32.row_bytes(cols)];
            let view = PackedRef::new(&name, Format::Int4G32, rows, cols, bytes, None).unwrap();
            view.validate(&name).unwrap();
            let (theirs, scales) = (view.decode(), view.scales());
            let chosen = Scales::choose(Format::Int4G32, ScaleRule::Absmax, &weights, rows, cols);
            let ours = pack(&name, Format::Int4G32, &weights, rows, cols, &scales).unwrap().as_ref().decode();
            for (i, (&their, &w)) in theirs.iter().zip(&weights).enumerate() {
                let s = scales.scale[i / 32].abs();
                // Half a step by the unrounded scale, a whole one where +8 is clipped to 7, and f16's 2^-11 of 8 steps.
                assert!((their - w).abs() <= s * (1.0 + 8.0 / 2048.0), "{name} {i}: {their} for {w}");
            }
            groups += scales.scale.len();
            same_scales += chosen.scale.iter().zip(&scales.scale).filter(|(a, b)| a == b).count();
            weights_n += weights.len();
            same_codes += ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
            errors.0 += squared_error(&weights, &ours);
            errors.1 += squared_error(&weights, &theirs);
        }
        assert_eq!(same_scales, groups, "{file}");
        // What differs are weights midway between two codes, where llama.cpp rounds up and we to even: no more error.
        assert!(same_codes * 100 >= weights_n * 99, "{file}: {same_codes} of {weights_n} codes");
        assert!(errors.0 <= errors.1, "{file}: our error {} theirs {}", errors.0, errors.1);
    }
}

#[test]
fn llama_cpp_ternary_blocks_decode_to_the_weights_they_were_made_from() {
    for (file, format, kind) in [
        ("llama_ternary.q2_0.gguf", Format::TernaryG64, Q2_0),
        ("llama_ternary.tq2_0.gguf", Format::TernaryG256, TQ2_0),
    ] {
        let Some(matrices) = matrices(file, "llama_ternary", kind) else { return };
        for (name, (rows, cols), bytes, weights) in matrices {
            let bytes = &bytes[..rows * format.row_bytes(cols)];
            let view = PackedRef::new(&name, format, rows, cols, bytes, None).unwrap();
            view.validate(&name).unwrap();
            let theirs = view.decode();
            assert_eq!(theirs, weights, "{name}");
            // On weights that already are ternary, the least-squares optimum is their own scale.
            let chosen = Scales::choose(format, ScaleRule::Mse, &weights, rows, cols);
            let ours = pack(&name, format, &weights, rows, cols, &chosen).unwrap();
            assert!(ours.blocks == bytes, "{name}: other bytes than llama.cpp");
        }
    }
}

#[test]
fn llama_cpp_tq1_0_blocks_are_our_transcoded_tq2_0_blocks() {
    let Some(narrow) = matrices("llama_ternary.tq1_0.gguf", "llama_ternary", TQ1_0) else { return };
    let Some(wide) = matrices("llama_ternary.tq2_0.gguf", "llama_ternary", TQ2_0) else { return };
    assert_eq!(narrow.len(), wide.len());
    for ((name, (rows, cols), narrow, _), (_, _, wide, _)) in narrow.into_iter().zip(wide) {
        let blocks = rows * cols / 256;
        let (narrow, wide) =
            (narrow.as_chunks::<{ tq1_0::BYTES }>().0, wide.as_chunks::<{ tq1_0::TQ2_0_BYTES }>().0);
        for i in 0..blocks {
            assert_eq!(tq1_0::from_tq2_0(&wide[i]), Some(narrow[i]), "{name} block {i}");
            assert_eq!(tq1_0::to_tq2_0(&narrow[i]), wide[i], "{name} block {i}");
        }
    }
}
