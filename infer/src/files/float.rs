//! Float values between the bytes of a file and f32, in both directions.
//!
//! Knows no files and no names. Invariant: only finite values pass; F16 and BF16 are rounded to nearest even.

use half::{bf16, f16};
use qat_quant::kernels::{FloatRef, FloatType};
use rayon::prelude::*;
use safetensors::Dtype;

/// Values that are converted at a time: a task long enough to be worth a thread, in a buffer that stays in cache.
const CHUNK: usize = 1 << 14;

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
pub(crate) fn dtype(float: FloatType) -> Dtype {
    match float {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::BF16 => Dtype::BF16,
    }
}

/// The values of `bytes`, elements of `float` in little-endian order; or what is wrong with the first bad one.
pub(crate) fn load(float: FloatType, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let mut values = vec![0.0; bytes.len() / float.bytes()];
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * float.bytes())).enumerate();
    let problem = chunks.find_map_first(|(i, (out, bytes))| load_chunk(float, i, bytes, out).err());
    problem.map_or(Ok(values), Err)
}

/// Refuses bytes that [`load`] would refuse, without a copy of all values.
pub(super) fn check_finite(float: FloatType, bytes: &[u8]) -> Result<(), String> {
    let chunks = bytes.par_chunks(CHUNK * float.bytes()).enumerate();
    let problem = chunks
        .map_init(
            || vec![0.0; CHUNK],
            |out, (i, bytes)| load_chunk(float, i, bytes, &mut out[..bytes.len() / float.bytes()]).err(),
        )
        .find_map_first(|problem| problem);
    problem.map_or(Ok(()), Err)
}

/// The bytes of `values` as elements of `float`, little-endian; or what is wrong with the first bad one.
pub(crate) fn store(float: FloatType, values: &[f32]) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; values.len() * float.bytes()];
    let chunks = bytes.par_chunks_mut(CHUNK * float.bytes()).zip(values.par_chunks(CHUNK));
    chunks.for_each(|(out, values)| match float {
        FloatType::F32 => store_chunk(values, out, f32::to_le_bytes),
        FloatType::F16 => store_chunk(values, out, |v| f16::from_f32(v).to_le_bytes()),
        FloatType::BF16 => store_chunk(values, out, |v| bf16::from_f32(v).to_le_bytes()),
    });
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(not_finite(at, values[at]));
    }
    check_finite(float, &bytes).map(|()| bytes).map_err(|_| {
        // All values were finite, so that what is not finite now was too large.
        let largest = values.iter().fold(0.0_f32, |a, v| if v.abs() > a.abs() { *v } else { a });
        format!("holds {largest}, beyond the range of {}; store it as F32", dtype(float))
    })
}

/// Chunk number `index` of a tensor as f32.
fn load_chunk(float: FloatType, index: usize, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    FloatRef::new("chunk", float, 1, out.len(), bytes).map_err(|e| e.to_string())?.decode_row(0, out);
    match out.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(not_finite(index * CHUNK + at, out[at])),
        None => Ok(()),
    }
}

fn store_chunk<const N: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *out = bytes(*value);
    }
}

fn not_finite(at: usize, value: f32) -> String {
    format!("element {at} is {value}; every weight must be finite")
}
