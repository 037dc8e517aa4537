//! The closed set of number formats: how each is spelled, how long its blocks are, and which rows it can hold.
//!
//! Knows no values: grids are in `grid`, bytes in `layout`. Every format has exactly one spelling, and
//! `parse(to_string(f)) == f` for all of [`Format::all`].

use std::{fmt, str::FromStr};

use half::{bf16, f16};

use crate::Error;

/// How a scale (and a bias) is stored: two bytes, little-endian, of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleType {
    /// IEEE half precision. Magnitudes saturate at 65504.
    F16,
    /// The upper half of an f32. Magnitudes saturate at 2^118, so that `255·scale + bias` stays finite in f32.
    BF16,
}

impl ScaleType {
    /// The largest magnitude that [`ScaleType::round`] returns.
    pub fn limit(self) -> f32 {
        match self {
            Self::F16 => 65504.0,
            Self::BF16 => 2f32.powi(118),
        }
    }

    /// `value` rounded to the nearest stored number (ties to even), saturating; NaN stays NaN.
    pub fn round(self, value: f32) -> f32 {
        self.read(self.write(value))
    }

    /// The two stored bytes of [`ScaleType::round`]`(value)`.
    pub(crate) fn write(self, value: f32) -> [u8; 2] {
        let value = value.clamp(-self.limit(), self.limit());
        match self {
            Self::F16 => f16::from_f32(value).to_le_bytes(),
            Self::BF16 => bf16::from_f32(value).to_le_bytes(),
        }
    }

    /// The number that two stored bytes are.
    #[inline(always)]
    pub(crate) fn read(self, bytes: [u8; 2]) -> f32 {
        match self {
            Self::F16 => f16_to_f32(u16::from_le_bytes(bytes)),
            Self::BF16 => f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16),
        }
    }
}

/// Exact, like `half`'s own, but inlined into vectorized loops, where that one is a call.
///
/// Exponent and mantissa are moved to their places in an f32; multiplying by 2^112 then corrects the exponent's bias,
/// and normalizes subnormals on the way. Infinity and NaN keep an exponent of all ones.
#[inline(always)]
fn f16_to_f32(half: u16) -> f32 {
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(half & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let bits = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// An affine grid: `bits` per code, one scale and one bias per `group` consecutive input channels (the MLX grid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Affine {
    bits: u8,
    group: u8,
    scale: ScaleType,
}

impl Affine {
    const BITS: [u8; 4] = [2, 3, 4, 8];
    const GROUPS: [u8; 3] = [32, 64, 128];

    /// The grid of `bits` (2, 3, 4 or 8) and `group` (32, 64 or 128).
    ///
    /// # Errors
    /// Any other `bits` or `group`.
    pub fn new(bits: usize, group: usize, scale: ScaleType) -> Result<Self, Error> {
        let pick = |what: &str, of: &[u8], n: usize| {
            of.iter()
                .copied()
                .find(|&v| usize::from(v) == n)
                .ok_or_else(|| Error::Format(format!("an affine format has {what} of {of:?}, found {n}")))
        };
        Ok(Self {
            bits: pick("bits", &Self::BITS, bits)?,
            group: pick("a group", &Self::GROUPS, group)?,
            scale,
        })
    }

    /// Bits of a code.
    pub fn bits(self) -> usize {
        self.bits.into()
    }

    /// Weights that share a scale and a bias.
    pub fn group(self) -> usize {
        self.group.into()
    }

    /// How scale and bias are stored.
    pub fn scale_type(self) -> ScaleType {
        self.scale
    }
}

/// A number format of a weight matrix, row-major `[rows, cols]` with `cols` the input channels.
///
/// | spelling | codes | group | block | bits per weight | elsewhere |
/// |---|---|---|---|---|---|
/// | `int4-g32` | −8..7 | 32 | 18 B | 4.5 | GGUF Q4_0 |
/// | `int8-g32` | −127..127 | 32 | 34 B | 8.5 | GGUF Q8_0 |
/// | `int{2,3,4,8}-affine-g{32,64,128}` | 0..2^b−1 | 32, 64, 128 | 4 + group·b/8 B | b + 32/group | MLX, f16 scale and bias |
/// | the same + `-bf16` | | | | | MLX, bf16 scale and bias |
/// | `ternary-g64` | −1..1 | 64 | 18 B | 2.25 | GGUF Q2_0 |
/// | `ternary-g256` | −1..1 | 256 | 66 B | 2.0625 | GGUF TQ2_0 (TQ1_0 after [`crate::tq1_0`]) |
/// | `ternary-tensor` | −1..1 | the tensor | 1 B for 4 | 2 + 16/(rows·cols) | BitNet b1.58 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// `int4-g32`: signed 4-bit codes, one signed f16 scale per 32 weights (GGUF Q4_0).
    Int4G32,
    /// `int8-g32`: signed 8-bit codes, one f16 scale per 32 weights (GGUF Q8_0).
    Int8G32,
    /// `intB-affine-gN[-bf16]`: unsigned codes, one scale and one bias per group (MLX).
    Affine(Affine),
    /// `ternary-g64`: −1, 0, 1 and one f16 scale per 64 weights (GGUF Q2_0).
    TernaryG64,
    /// `ternary-g256`: −1, 0, 1 and one f16 scale per 256 weights (GGUF TQ2_0).
    TernaryG256,
    /// `ternary-tensor`: −1, 0, 1 and one bf16 scale for the whole matrix (BitNet b1.58).
    TernaryTensor,
}

impl Format {
    /// Every format, in a fixed order.
    pub fn all() -> Vec<Self> {
        let affine = [ScaleType::F16, ScaleType::BF16].into_iter().flat_map(|scale| {
            Affine::BITS.into_iter().flat_map(move |bits| {
                Affine::GROUPS.into_iter().map(move |group| Self::Affine(Affine { bits, group, scale }))
            })
        });
        let ternary = [Self::TernaryG64, Self::TernaryG256, Self::TernaryTensor];
        [Self::Int4G32, Self::Int8G32].into_iter().chain(affine).chain(ternary).collect()
    }

    /// The lowest and the highest code.
    pub fn levels(self) -> (i32, i32) {
        match self {
            Self::Int4G32 => (-8, 7),
            Self::Int8G32 => (-127, 127),
            Self::Affine(a) => (0, (1 << a.bits) - 1),
            Self::TernaryG64 | Self::TernaryG256 | Self::TernaryTensor => (-1, 1),
        }
    }

    /// Halfway between the lowest and the highest code.
    pub fn middle(self) -> f32 {
        let (lo, hi) = self.levels();
        (lo + hi) as f32 / 2.0
    }

    /// Whether the only codes are −1, 0 and 1.
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::TernaryG64 | Self::TernaryG256 | Self::TernaryTensor)
    }

    /// Whether a group has a bias beside its scale.
    pub fn has_bias(self) -> bool {
        matches!(self, Self::Affine(_))
    }

    /// How scales and biases are stored.
    pub fn scale_type(self) -> ScaleType {
        match self {
            Self::Affine(a) => a.scale,
            Self::TernaryTensor => ScaleType::BF16,
            Self::Int4G32 | Self::Int8G32 | Self::TernaryG64 | Self::TernaryG256 => ScaleType::F16,
        }
    }

    /// Consecutive weights of a row that share a scale; `None` when the whole tensor shares one.
    pub fn group_len(self) -> Option<usize> {
        match self {
            Self::Int4G32 | Self::Int8G32 => Some(32),
            Self::Affine(a) => Some(a.group()),
            Self::TernaryG64 => Some(64),
            Self::TernaryG256 => Some(256),
            Self::TernaryTensor => None,
        }
    }

    /// How many scales a `[rows, cols]` matrix has.
    pub fn groups(self, rows: usize, cols: usize) -> usize {
        self.group_len().map_or(1, |len| rows * cols / len)
    }

    /// Weights of a block; a row must be a multiple of it.
    pub fn block_len(self) -> usize {
        self.group_len().unwrap_or(4)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Int4G32 | Self::TernaryG64 => 18,
            Self::Int8G32 => 34,
            Self::Affine(a) => 4 + a.group() * a.bits() / 8,
            Self::TernaryG256 => 66,
            Self::TernaryTensor => 1,
        }
    }

    /// Bytes of a row of `cols` weights (which the format must fit).
    pub fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_len() * self.block_bytes()
    }

    /// Exact bits per weight of a `[rows, cols]` matrix, scales and biases included.
    pub fn bits_per_weight(self, rows: usize, cols: usize) -> f64 {
        let beside = if self.group_len().is_none() { 2 } else { 0 };
        8.0 * (rows * self.row_bytes(cols) + beside) as f64 / (rows * cols) as f64
    }

    /// Whether a row of `cols` weights is a whole number of blocks.
    pub fn fits(self, cols: usize) -> bool {
        cols > 0 && cols.is_multiple_of(self.block_len())
    }

    /// Refuses a row length that the format can't hold.
    ///
    /// # Errors
    /// Names the tensor, its row length, the multiple that is wanted and the formats that would fit.
    pub fn check_row_len(self, name: &str, cols: usize) -> Result<(), Error> {
        if self.fits(cols) {
            return Ok(());
        }
        let f16_only = |f: &Self| !matches!(f, Self::Affine(Affine { scale: ScaleType::BF16, .. }));
        let fitting: Vec<_> = Self::all()
            .into_iter()
            .filter(f16_only)
            .filter(|f| f.fits(cols))
            .map(|f| f.to_string())
            .collect();
        let advice = if fitting.is_empty() {
            "no format fits: keep the tensor in float".to_owned()
        } else {
            format!("formats that fit: {}", fitting.join(", "))
        };
        let want = self.block_len();
        Err(Error::matrix(
            name,
            format!("{self} wants rows of a multiple of {want} weights, found {cols}; {advice}"),
        ))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int4G32 => f.write_str("int4-g32"),
            Self::Int8G32 => f.write_str("int8-g32"),
            Self::Affine(Affine { bits, group, scale }) => {
                let suffix = match scale {
                    ScaleType::F16 => "",
                    ScaleType::BF16 => "-bf16",
                };
                write!(f, "int{bits}-affine-g{group}{suffix}")
            }
            Self::TernaryG64 => f.write_str("ternary-g64"),
            Self::TernaryG256 => f.write_str("ternary-g256"),
            Self::TernaryTensor => f.write_str("ternary-tensor"),
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let all = Self::all();
        if let Some(&format) = all.iter().find(|f| f.to_string() == s) {
            return Ok(format);
        }
        let nearest = all.iter().map(Self::to_string).min_by_key(|spelling| edits(s, spelling));
        Err(Error::Format(format!("{s:?} is no format; the nearest is {:?}", nearest.unwrap_or_default())))
    }
}

/// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_one_spelling_and_reads_it_back() {
        let all = Format::all();
        assert_eq!(all.len(), 2 + 4 * 3 * 2 + 3);
        for &format in &all {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let spellings: std::collections::BTreeSet<_> = all.iter().map(Format::to_string).collect();
        assert_eq!(spellings.len(), all.len());
    }

    #[test]
    fn a_misspelt_format_is_answered_with_the_nearest_one() {
        for (wrong, nearest) in [
            ("int4g32", "int4-g32"),
            ("ternary", "ternary-g64"),
            ("int4-afine-g64", "int4-affine-g64"),
            ("INT8-G32", "int8-g32"),
            ("int3-affine-g64-bf", "int3-affine-g64-bf16"),
        ] {
            let message = wrong.parse::<Format>().unwrap_err().to_string();
            assert_eq!(message, format!("{wrong:?} is no format; the nearest is {nearest:?}"));
        }
    }

    #[test]
    fn a_row_that_does_not_fit_names_the_tensor_the_multiple_and_what_fits() {
        let error =
            Format::TernaryG256.check_row_len("model.layers.0.mlp.down_proj.weight", 576).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.layers.0.mlp.down_proj.weight: ternary-g256 wants rows of a multiple of 256 weights, found 576; \
             formats that fit: int4-g32, int8-g32, int2-affine-g32, int2-affine-g64, int3-affine-g32, int3-affine-g64, \
             int4-affine-g32, int4-affine-g64, int8-affine-g32, int8-affine-g64, ternary-g64, ternary-tensor"
        );
        let error = Format::Int4G32.check_row_len("w", 30).unwrap_err();
        assert!(error.to_string().ends_with("found 30; no format fits: keep the tensor in float"), "{error}");
        assert!(!Format::TernaryTensor.fits(0));
    }

    #[test]
    fn bits_per_weight_are_exact() {
        for (spelling, bits) in [
            ("int4-g32", 4.5),
            ("int8-g32", 8.5),
            ("int3-affine-g64", 3.5),
            ("int4-affine-g128-bf16", 4.25),
            ("ternary-g64", 2.25),
            ("ternary-g256", 2.0625),
            ("ternary-tensor", 2.0 + 16.0 / (4.0 * 256.0)),
        ] {
            let format: Format = spelling.parse().unwrap();
            assert_eq!(format.bits_per_weight(4, 256), bits, "{spelling}");
        }
    }

    #[test]
    fn an_affine_format_of_other_bits_or_groups_is_refused() {
        assert!(Affine::new(5, 64, ScaleType::F16).unwrap_err().to_string().contains("found 5"));
        assert!(Affine::new(4, 48, ScaleType::F16).unwrap_err().to_string().contains("found 48"));
    }

    #[test]
    fn every_stored_scale_reads_as_half_reads_it() {
        for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 257 } else { 1 }) {
            let read = |kind: ScaleType| kind.read(bits.to_le_bytes());
            let (want16, want_b16) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            assert!(read(ScaleType::F16).to_bits() == want16.to_bits() || want16.is_nan(), "{bits:#x}");
            assert_eq!(read(ScaleType::F16).is_nan(), want16.is_nan(), "{bits:#x}");
            assert!(read(ScaleType::BF16).to_bits() == want_b16.to_bits() || want_b16.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn scales_round_to_their_storage_type_and_never_to_infinity() {
        assert_eq!(ScaleType::F16.round(1e9), 65504.0);
        assert_eq!(ScaleType::F16.round(-65519.0), -65504.0);
        assert_eq!(ScaleType::F16.round(1e-9), 0.0);
        assert_eq!(ScaleType::BF16.round(f32::MAX), 2f32.powi(118));
        assert_eq!(ScaleType::BF16.round(1.0 + 2f32.powi(-9)), 1.0);
        assert!(ScaleType::F16.round(f32::NAN).is_nan());
    }
}
