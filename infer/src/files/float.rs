//! Float values between the bytes of a file and f32, in both directions.
//!
//! Knows no files and no names. Invariant: only finite values pass; F16 and BF16 are rounded to nearest even.

use half::{bf16, f16};
use qat_quant::kernels::FloatType;
use safetensors::Dtype;

/// A value that no weight can have: its index, what it was, and why it is refused.
#[derive(Debug)]
pub(super) struct Unfit {
    at: usize,
    value: f32,
    float: FloatType,
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { at, value, float } = self;
        if value.is_finite() {
            return write!(
                f,
                "element {at} is {value}, beyond what {} holds; store it as F32",
                dtype(*float)
            );
        }
        write!(f, "element {at} is {value}; every weight must be finite")
    }
}

/// The float type that a file spells `dtype`, if it is one that weights are read from.
pub(super) fn float_type(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::BF16),
        _ => None,
    }
}

/// How a file spells `float`.
pub(super) fn dtype(float: FloatType) -> Dtype {
    match float {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::BF16 => Dtype::BF16,
    }
}

/// The values of `bytes`, elements of `float` in little-endian order.
pub(super) fn load(float: FloatType, bytes: &[u8]) -> Result<Vec<f32>, Unfit> {
    check_finite(float, bytes)?;
    Ok(values(float, bytes).collect())
}

/// Refuses bytes that [`load`] would refuse, without a copy of the values.
pub(super) fn check_finite(float: FloatType, bytes: &[u8]) -> Result<(), Unfit> {
    let unfit = values(float, bytes).enumerate().find(|(_, v)| !v.is_finite());
    unfit.map_or(Ok(()), |(at, value)| Err(Unfit { at, value, float }))
}

/// The bytes of `values` as elements of `float`, little-endian.
pub(super) fn store(float: FloatType, values: &[f32]) -> Result<Vec<u8>, Unfit> {
    let bytes: Vec<u8> = match float {
        FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        FloatType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    };
    match check_finite(float, &bytes) {
        Ok(()) => Ok(bytes),
        // The value as given: an infinity here may be a large number that did not fit.
        Err(unfit) => Err(Unfit { value: values[unfit.at], ..unfit }),
    }
}

fn values(float: FloatType, bytes: &[u8]) -> impl Iterator<Item = f32> {
    let width = dtype(float).bitsize() / 8;
    bytes.chunks_exact(width).map(move |b| match float {
        FloatType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        FloatType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        FloatType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
    })
}
