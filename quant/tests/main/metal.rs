//! What the tests of Metal kernels share: stored matrices of known weights, and the emulator that runs the very sources
//! on the host.
//!
//! Knows no operation: `metal_products`, `metal_inputs` and `metal_gather` do. An expectation is a number in f64 and how
//! far the GPU may be from it, which is derived, never tried out.

use qat_metal_host as host;
use qat_quant::Format;
use qat_quant::kernels::metal::{Constant, Dispatch, LIBRARIES, Storage};
use qat_quant::kernels::{FloatRef, FloatType};

use crate::matrices::normal;
use crate::tiers::{Codes, pick};

/// Half the distance of two floats next to 1: what a rounding may change a number by, relatively.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// How far a sum may be from the exact one, relative to the sum of magnitudes, when each of its terms passes at most
/// `roundings` roundings.
pub fn after(roundings: usize) -> f64 {
    (1.0 + UNIT).powi(roundings as i32) - 1.0
}

/// Every storage that kernels exist for.
pub fn storages() -> Vec<Storage> {
    let floats = [FloatType::F32, FloatType::F16, FloatType::BF16].map(Storage::Float);
    Format::all().into_iter().map(Storage::Packed).chain(floats).collect()
}

/// Row lengths to try, and what each is for.
///
/// - One block and three: the least, and blocks that don't share a lane's pieces evenly.
/// - More than the 512 columns that the 32 lanes take in one turn (256 of floats), by a block: a second turn that most
///   lanes sit out.
/// - `ternary-tensor`, whose rows need only be multiples of 4: less than a piece (4), a piece and a bit, so that rows
///   begin at odd bytes (36, 100), rows at multiples of 4 bytes (64), and both kinds of the second turn (516, 528).
/// - Floats of any number: 1, within and beyond a piece of 8 (7, 8, 65), and a second turn (259).
pub fn columns(storage: Storage) -> Vec<usize> {
    match storage {
        Storage::Packed(Format::TernaryTensor) => vec![4, 36, 64, 100, 516, 528],
        Storage::Packed(format) => {
            let block = format.block_len();
            vec![block, 3 * block, 512usize.next_multiple_of(block) + block]
        }
        Storage::Float(_) => vec![1, 7, 8, 65, 259],
    }
}

/// A matrix as it lies in memory, and what it says.
pub struct Stored {
    pub storage: Storage,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Vec<u8>,
    /// 0 for all but `ternary-tensor`.
    pub tensor_scale: f32,
    /// `[rows, cols]`, as the portable code decodes it.
    pub weights: Vec<f32>,
    /// `[rows, cols]`, the magnitude of the zero point that a kernel leaves in the codes and takes off again.
    pub zeros: Vec<f32>,
}

impl Stored {
    /// Codes without a pattern, under scales of either sign.
    pub fn new(storage: Storage, rows: usize, cols: usize) -> Self {
        match storage {
            Storage::Packed(format) => Self::packed(format, rows, cols, |index| pick(format, index)),
            Storage::Float(dtype) => Self::float(dtype, rows, cols, &normal(21, rows * cols)),
        }
    }

    /// The `nth` of several matrices that are multiplied together: rows of its own, and a tensor's scale of its own.
    pub fn nth(nth: usize, storage: Storage, rows: usize, cols: usize) -> Self {
        let mut stored = Self::new(storage, rows + nth, cols);
        stored.bytes.drain(..stored.bytes.len() / (rows + nth) * nth);
        stored.weights.drain(..nth * cols);
        stored.zeros.drain(..nth * cols);
        stored.rows = rows;
        if stored.tensor_scale != 0.0 {
            let factor = (1 << nth) as f32;
            stored.tensor_scale *= factor;
            stored.weights.iter_mut().chain(&mut stored.zeros).for_each(|v| *v *= factor);
        }
        stored
    }

    /// Codes that `code(index)` picks among the levels.
    pub fn packed(format: Format, rows: usize, cols: usize, code: impl Fn(usize) -> i32) -> Self {
        let mut packed = Codes::new(format, rows, cols, code).packed();
        // `Codes` has ternary scales positive; every other one becomes negative here.
        let scale_at = match format {
            Format::TernaryG64 => Some(1),
            Format::TernaryG256 => Some(65),
            _ => None,
        };
        if let Some(at) = scale_at {
            let blocks = packed.blocks.chunks_exact_mut(format.block_bytes());
            blocks.step_by(2).for_each(|block| block[at] ^= 0x80);
        }
        packed.tensor_scale = packed.tensor_scale.map(|scale| -scale);

        let view = packed.as_ref();
        view.validate("w").unwrap();
        let scales = view.scales();
        let group = format.group_len().unwrap_or(rows * cols);
        let zero = |index: usize| match format {
            Format::Int4G32 => 8.0 * scales.scale[index / group].abs(),
            Format::Int8G32 => 0.0,
            Format::Affine(_) => scales.bias[index / group].abs(),
            Format::TernaryG64 | Format::TernaryG256 | Format::TernaryTensor => {
                scales.scale[index / group].abs()
            }
        };
        Self {
            storage: Storage::Packed(format),
            rows,
            cols,
            weights: view.decode(),
            zeros: (0..rows * cols).map(zero).collect(),
            tensor_scale: packed.tensor_scale.unwrap_or(0.0),
            bytes: packed.blocks,
        }
    }

    /// Floats, rounded to their type.
    pub fn float(dtype: FloatType, rows: usize, cols: usize, values: &[f32]) -> Self {
        let bytes: Vec<u8> = match dtype {
            FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            FloatType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            FloatType::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        let view = FloatRef::new("w", dtype, rows, cols, &bytes).unwrap();
        let mut weights = vec![0.0; rows * cols];
        weights.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| view.decode_row(row, out));
        Self {
            storage: Storage::Float(dtype),
            rows,
            cols,
            bytes,
            tensor_scale: 0.0,
            weights,
            zeros: vec![0.0; rows * cols],
        }
    }

    /// Row `row`, decoded by the portable code.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.weights[row * self.cols..][..self.cols]
    }
}

/// Floats as they lie in memory.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Floats that lie in memory.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

/// A buffer of floats to read.
pub fn input(values: &[f32]) -> host::Buffer {
    read_only(&bytes(values))
}

/// A buffer to read, at a multiple of 4 bytes and of no more, as any may begin.
pub fn read_only(bytes: &[u8]) -> host::Buffer {
    host::Buffer::InAt(bytes.to_vec(), 4)
}

/// `n` places, all of them unbound.
pub fn no_buffers(n: usize) -> Vec<host::Buffer> {
    (0..n).map(|_| host::Buffer::None).collect()
}

/// Runs `dispatch` in every mode of the emulator, with buffers for all of its places; `judge` sees what is in them after
/// each. All that is to be written must have been.
pub fn verify(
    what: &str,
    dispatch: &Dispatch,
    buffers: &[host::Buffer],
    judge: &mut dyn FnMut(host::Mode, &[Vec<u8>]),
) {
    let Dispatch { launch, .. } = dispatch;
    let source = LIBRARIES.iter().find(|library| library.name == launch.library).unwrap().source;
    let library = host::Library::new(launch.library, source).unwrap_or_else(|e| panic!("{what}: {e}"));
    let constant = |constant| match constant {
        Constant::Bool(value) => host::Constant::Bool(value),
        Constant::U32(value) => host::Constant::U32(value),
        Constant::F32(value) => host::Constant::F32(value),
    };
    let constants: Vec<_> = launch.constants.iter().map(|&(index, value)| (index, constant(value))).collect();
    let launch = host::Launch {
        kernel: launch.kernel,
        constants: &constants,
        groups: launch.groups,
        threads: launch.threads,
        threadgroup_bytes: &[],
    };
    let report = host::verify(&library, &launch, buffers, judge).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (place, traffic) in report.buffers.iter().enumerate() {
        assert_eq!(traffic.unwritten, 0, "{what}: bytes of buffer {place} that nobody wrote");
    }
}
