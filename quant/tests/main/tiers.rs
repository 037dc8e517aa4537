//! The one check that every tier passes: packed products against the specification written out code by code.
//!
//! Lengths, and what each is for:
//! - columns: one, two and three blocks of each format, which are 32 to 768; for `ternary-tensor`, whose rows need only
//!   be multiples of 4, those that end within a chunk of 32 (4, 28, 36), on it (32, 64), and one more four (100);
//! - rows: 1, 15, 16, 17, 37: less than a panel, all but one lane, a panel, one more, and two panels and a part;
//! - tokens: 1 to 17, so that blocks of 8, 4, 2 and 1 occur each alone and all after one another.

use qat_quant::kernels::{
    self, CHUNK, FloatTokens, Int8Tokens, Isa, PANEL, Panels, Tokens, float_sums, round_int8,
};
use qat_quant::{Format, Packed, ScaleType, Scales, pack};

use crate::matrices::{bits, few, formats, normal};

const ROWS: [usize; 5] = [1, 15, 16, 17, 37];
const TOKENS: [usize; 6] = [1, 2, 3, 5, 8, 17];

fn columns(format: Format) -> Vec<usize> {
    match format {
        Format::TernaryTensor => vec![4, 28, 32, 36, 64, 100],
        _ => (1..=3).map(|blocks| blocks * format.block_len()).collect(),
    }
}

/// Rows and tokens that go with so many columns. Miri needs milliseconds for a product: a lone one there, and where columns are few two panels and
/// tokens for more than a block of either kind.
fn shapes(cols: usize) -> Vec<(usize, usize)> {
    if cfg!(miri) {
        return vec![if cols <= CHUNK { (17, 9) } else { (1, 1) }];
    }
    ROWS.into_iter().zip(TOKENS.into_iter().cycle().skip(cols / 32)).collect()
}

/// A matrix of known codes.
pub struct Codes {
    format: Format,
    rows: usize,
    cols: usize,
    /// `[rows, cols]`
    codes: Vec<i32>,
    scales: Scales,
}

impl Codes {
    /// Codes that `code(index)` picks among the levels, under scales (and biases) of either sign and many sizes.
    pub fn new(format: Format, rows: usize, cols: usize, code: impl Fn(usize) -> i32) -> Self {
        let groups = format.groups(rows, cols);
        let draw = |seed| -> Vec<f32> {
            normal(seed, groups).iter().map(|v| format.scale_type().round(v * 0.1)).collect()
        };
        let bias = if format.has_bias() { draw(12) } else { Vec::new() };
        // A ternary code of 0 under a negative scale is a -0 weight; scales of those formats are positive.
        let scale = draw(11).into_iter().map(|s| if format.is_ternary() { s.abs() } else { s }).collect();
        Self {
            format,
            rows,
            cols,
            codes: (0..rows * cols).map(code).collect(),
            scales: Scales { scale, bias },
        }
    }

    fn group_len(&self) -> usize {
        self.format.group_len().unwrap_or(self.rows * self.cols)
    }

    fn scale_bias(&self, index: usize) -> (f32, f32) {
        let group = index / self.group_len();
        (self.scales.scale[group], self.scales.bias.get(group).copied().unwrap_or(0.0))
    }

    /// The weights that have these codes, packed; the codes are checked to have survived.
    pub fn packed(&self) -> Packed {
        let weight = |(index, &code): (usize, &i32)| {
            let (scale, bias) = self.scale_bias(index);
            scale * code as f32 + bias
        };
        let w: Vec<f32> = self.codes.iter().enumerate().map(weight).collect();
        let packed = pack("w", self.format, &w, self.rows, self.cols, &self.scales).unwrap();
        assert!(bits(&packed.as_ref().decode()) == bits(&w), "{} packs its own grid", self.format);
        packed
    }

    /// The groups of a row: first column, codes, scale, bias.
    fn groups(&self, row: usize) -> impl Iterator<Item = (usize, &[i32], f32, f32)> {
        let len = self.group_len().min(self.cols);
        let codes = &self.codes[row * self.cols..][..self.cols];
        codes.chunks(len).enumerate().map(move |(group, codes)| {
            let (scale, bias) = self.scale_bias(row * self.cols + group * len);
            (group * len, codes, scale, bias)
        })
    }

    /// The specified int8 output.
    fn int8(&self, row: usize, x: &[i8], scale_of_token: f32) -> f32 {
        let mut acc = 0f32;
        for (first, codes, scale, bias) in self.groups(row) {
            let x = &x[first..][..codes.len()];
            let dot: i64 = codes.iter().zip(x).map(|(&code, &x)| i64::from(code) * i64::from(x)).sum();
            acc = (dot as f32).mul_add(scale, acc);
            if self.format.has_bias() {
                let sum: i64 = x.iter().map(|&x| i64::from(x)).sum();
                acc = (sum as f32).mul_add(bias, acc);
            }
        }
        acc * scale_of_token
    }

    /// The float output in f64, and how far an f32 one may be from it.
    ///
    /// A product passes at most these roundings, each within a factor of 1 ± 2^-24: its own and 16 additions in its
    /// chain, one where the chains meet, one for each chunk of its group and one for what begins that sum, one times
    /// the scale, and one for each group after it (two with a bias). The sums of activations have 6 in a chunk and one
    /// for each chunk. A tier that leaves the zero point in its codes adds `zero·|x|` to what is rounded.
    fn float(&self, row: usize, x: &[f32]) -> (f64, f64) {
        let zero = -self.format.levels().0;
        let (mut exact, mut magnitude) = (0.0, 0.0);
        for (first, codes, scale, bias) in self.groups(row) {
            for (&code, &x) in codes.iter().zip(&x[first..]) {
                let (x, scale, bias) = (f64::from(x), f64::from(scale), f64::from(bias));
                exact += (scale * f64::from(code) + bias) * x;
                magnitude += (scale.abs() * f64::from(code + 2 * zero) + bias.abs()) * x.abs();
            }
        }
        let len = self.group_len().min(self.cols);
        let roundings =
            17 + 1 + (len.div_ceil(CHUNK) + 1) + 1 + 2 * self.cols.div_ceil(len) + (6 + len.div_ceil(CHUNK));
        (exact, ((1.0 + 2f64.powi(-24)).powi(roundings as i32) - 1.0) * magnitude)
    }
}

/// All outputs `[n, rows]` of a tier.
fn product(isa: Isa, panels: &Panels, x: Tokens<'_>, n: usize) -> Vec<f32> {
    let rows = panels.rows();
    let mut out = vec![f32::NAN; n * rows];
    for index in 0..panels.panels() {
        let mut next = 0;
        kernels::panel(isa, panels, index, x, 0..n, &mut |token, outputs| {
            assert_eq!(token, next, "tokens come in order");
            next += 1;
            let first = index * PANEL;
            let lanes = PANEL.min(rows - first);
            out[token * rows + first..][..lanes].copy_from_slice(&outputs[..lanes]);
        });
        assert_eq!(next, n, "every token comes");
    }
    out
}

/// All outputs of one token, from calls for `at_once` panels.
fn token_product(isa: Isa, panels: &Panels, x: Tokens<'_>, at_once: usize) -> Vec<f32> {
    let mut out = vec![[f32::NAN; PANEL]; panels.panels()];
    for (call, out) in out.chunks_mut(at_once).enumerate() {
        kernels::panels_of_token(isa, panels, call * at_once, x, out);
    }
    out.as_flattened()[..panels.rows()].to_vec()
}

/// Runs every tier on int8 activations that begin one byte off any alignment.
fn check_int8(matrix: &Codes, panels: &Panels, n: usize, x: impl Fn(usize) -> i8) {
    let Codes { format, rows, cols, .. } = *matrix;
    let shifted: Vec<i8> = std::iter::once(0).chain((0..n * cols).map(x)).collect();
    let codes = &shifted[1..];
    let sum = |x: &[i8]| x.iter().map(|&x| i32::from(x)).sum();
    let sums: Vec<i32> = codes.chunks(cols).flat_map(|x| x.chunks(CHUNK).map(sum)).collect();
    let scales: Vec<f32> = (0..n).map(|token| 0.01 + token as f32 * 0.003).collect();
    let specified: Vec<f32> = (0..n)
        .flat_map(|token| (0..rows).map(move |row| (token, row)))
        .map(|(token, row)| matrix.int8(row, &codes[token * cols..][..cols], scales[token]))
        .collect();
    for isa in Isa::available() {
        let tokens = Tokens::Int8(Int8Tokens { codes, sums: &sums, scales: &scales });
        let found = product(isa, panels, tokens, n);
        assert!(bits(&found) == bits(&specified), "{isa:?} {format} [{rows}, {cols}] of {n} tokens");
        let per_token = cols.div_ceil(CHUNK);
        for (of_token, codes) in codes.chunks(cols).enumerate() {
            let (sums, scales) = (&sums[of_token * per_token..][..per_token], &scales[of_token..][..1]);
            let found = token_product(isa, panels, Tokens::Int8(Int8Tokens { codes, sums, scales }), 2);
            let specified = &specified[of_token * rows..][..rows];
            assert_eq!(bits(&found), bits(specified), "{isa:?} {format} [{rows}, {cols}], token {of_token}");
        }
    }
}

/// Runs every tier on float activations, all tokens together and each alone.
fn check_float(matrix: &Codes, panels: &Panels, x: &[f32]) {
    let Codes { format, rows, cols, .. } = *matrix;
    let n = x.len() / cols;
    let per_token = cols.div_ceil(CHUNK);
    let mut sums = vec![0.0; n * per_token];
    for (x, sums) in x.chunks(cols).zip(sums.chunks_mut(per_token)) {
        float_sums(x, sums);
    }
    for isa in Isa::available() {
        let found = product(isa, panels, Tokens::Float(FloatTokens { values: x, sums: &sums }), n);
        for (token, x) in x.chunks(cols).enumerate() {
            let alone = FloatTokens { values: x, sums: &sums[token * per_token..][..per_token] };
            let together = token_product(isa, panels, Tokens::Float(alone), 3);
            let alone = product(isa, panels, Tokens::Float(alone), 1);
            assert_eq!(bits(&alone), bits(&together), "{isa:?} {format}: panels alone or together");
            assert_eq!(bits(&alone), bits(&found[token * rows..][..rows]), "{isa:?} {format}: alone or not");
            for (row, &found) in alone.iter().enumerate() {
                let (exact, bound) = matrix.float(row, x);
                let error = (f64::from(found) - exact).abs();
                assert!(error <= bound, "{isa:?} {format} [{rows}, {cols}]: {found} {exact} ± {bound}");
            }
        }
    }
}

/// A code for each weight, without a pattern that a block could repeat.
pub fn pick(format: Format, index: usize) -> i32 {
    let (lo, hi) = format.levels();
    lo + ((index.wrapping_mul(2_654_435_761) >> 7) % (hi - lo + 1) as usize) as i32
}

#[test]
fn every_tier_gives_the_specified_bits_for_every_format_and_shape() {
    for format in formats() {
        for cols in few(columns(format), 4) {
            for (rows, n) in shapes(cols) {
                let matrix = Codes::new(format, rows, cols, |index| pick(format, index));
                let panels = Panels::new(matrix.packed().as_ref());
                check_int8(&matrix, &panels, n, |index| (((index * 89 + 13) % 255) as i32 - 127) as i8);
            }
        }
    }
}

#[test]
fn no_tier_overflows_when_all_codes_and_activations_are_at_their_ends() {
    let (rows, n, blocks) = if cfg!(miri) { (2, 2, 1) } else { (17, 5, 8) };
    for format in few(formats(), 3) {
        let (lo, hi) = format.levels();
        // Eight blocks: an accumulator that only just holds a group, or doesn't survive the next, would show.
        let cols = blocks * format.block_len().max(CHUNK);
        for code in [lo, hi] {
            let matrix = Codes::new(format, rows, cols, |_| code);
            let panels = Panels::new(matrix.packed().as_ref());
            for x in [127, -127] {
                check_int8(&matrix, &panels, n, |_| x);
            }
            check_int8(&matrix, &panels, n, |index| if index % 2 == 0 { 127 } else { -127 });
        }
        let ends = Codes::new(format, rows, cols, |index| if index % 2 == 0 { lo } else { hi });
        let panels = Panels::new(ends.packed().as_ref());
        check_int8(&ends, &panels, n, |index| if index % 2 == 0 { -127 } else { 127 });
    }
}

#[test]
fn every_tier_is_within_the_bound_on_float_activations() {
    for format in formats() {
        for cols in few(columns(format), 4) {
            for (rows, n) in shapes(cols) {
                let matrix = Codes::new(format, rows, cols, |index| pick(format, index));
                let panels = Panels::new(matrix.packed().as_ref());
                let mut x = normal(6, n * cols);
                // An outlier among small values, as activations have them.
                x[cols / 2] = 300.0;
                check_float(&matrix, &panels, &x);
            }
        }
    }
}

#[test]
fn panels_decode_to_the_bits_of_their_blocks() {
    for format in formats() {
        for cols in few(columns(format), 4) {
            for rows in few(ROWS, 3) {
                let packed = Codes::new(format, rows, cols, |index| pick(format, index)).packed();
                let panels = Panels::new(packed.as_ref());
                let mut decoded = vec![f32::NAN; rows * cols];
                for (row, out) in decoded.chunks_mut(cols).enumerate() {
                    panels.decode_row(row, out);
                }
                assert!(bits(&decoded) == bits(&packed.as_ref().decode()), "{format} [{rows}, {cols}]");
            }
        }
    }
}

#[test]
fn a_token_is_rounded_as_the_trainer_rounds_it() {
    for cols in [4, 32, 100, 576] {
        let x = normal(3, cols);
        let (mut codes, mut sums) = (vec![0; cols], vec![0; cols.div_ceil(CHUNK)]);
        let scale = round_int8(&x, &mut codes, &mut sums);
        let mut trained = x.clone();
        qat_quant::int8_tokens(&mut trained, cols);
        let rounded: Vec<f32> = codes.iter().map(|&code| scale * f32::from(code)).collect();
        // A code of 0 has no sign, the trainer's 0 may be negative.
        assert_eq!(rounded, trained);
        let of_chunks: Vec<i32> =
            codes.chunks(CHUNK).map(|codes| codes.iter().map(|&code| i32::from(code)).sum()).collect();
        assert_eq!(sums, of_chunks);
    }
    let (mut codes, mut sums) = ([7; 32], [7; 1]);
    assert_eq!(round_int8(&[0.0; 32], &mut codes, &mut sums), 0.0);
    assert_eq!((codes, sums), ([0; 32], [0]));
}

#[test]
fn scales_of_both_types_are_read_as_stored() {
    for name in ["int4-affine-g32", "int4-affine-g32-bf16"] {
        let format: Format = name.parse().unwrap();
        // The ends of either type, subnormals and both zeros, in the lanes of a panel.
        let ends = [0.0, -0.0, 6e-8, 6.1e-5, -6.1e-5, 65504.0, -65504.0, 1.0];
        let stored = |value: f32| format.scale_type().round(value);
        let mut matrix = Codes::new(format, 16, 32, |index| pick(format, index));
        matrix.scales.scale = (0..16).map(|row| stored(ends[row % 8])).collect();
        matrix.scales.bias =
            (0..16).map(|row| stored(if ends[row % 8] == 0.0 { 0.0 } else { 3.0 })).collect();
        if format.scale_type() == ScaleType::BF16 {
            matrix.scales.scale[5] = stored(1e30);
        }
        for (index, code) in matrix.codes.iter_mut().enumerate() {
            // A grid without a step has only code 0; one far finer than its bias can't tell codes apart.
            if matrix.scales.scale[index / 32].abs() < 1e-4 {
                *code = 0;
            }
        }
        let panels = Panels::new(matrix.packed().as_ref());
        check_int8(&matrix, &panels, 3, |index| ((index % 255) as i32 - 127) as i8);
    }
}
