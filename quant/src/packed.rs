//! A packed matrix: rows of blocks, as they lie in a file.
//!
//! Knows no files and no kernels. The invariant: decoding what [`pack`] made gives [`crate::fake_quant`]'s values to
//! the bit.

use rayon::prelude::*;

use crate::{
    Error, Format, Scales,
    grid::{Grid, Spans},
    layout::{Block, with_block},
    simd::vectorized,
};

/// A packed `[rows, cols]` matrix that owns its blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// How the blocks are laid out.
    pub format: Format,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// `rows` times [`Format::row_bytes`] bytes.
    pub blocks: Vec<u8>,
    /// The scale of a `ternary-tensor` matrix, rounded to bf16; `None` for every other format.
    pub tensor_scale: Option<f32>,
}

impl Packed {
    /// The matrix as the kernels take it.
    pub fn as_ref(&self) -> PackedRef<'_> {
        PackedRef {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            blocks: &self.blocks,
            tensor_scale: self.tensor_scale.unwrap_or(0.0),
        }
    }
}

/// A packed `[rows, cols]` matrix whose blocks lie elsewhere, say in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct PackedRef<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    blocks: &'a [u8],
    /// Read by `ternary-tensor` only.
    tensor_scale: f32,
}

impl<'a> PackedRef<'a> {
    /// A matrix over `blocks`, with `tensor_scale` exactly when the format is `ternary-tensor`.
    ///
    /// # Errors
    /// When rows don't fit the format, or the blocks have another length than the shape says, or the tensor scale is
    /// missing, superfluous or not finite. The blocks are not read: see [`PackedRef::validate`].
    pub fn new(
        name: &str,
        format: Format,
        rows: usize,
        cols: usize,
        blocks: &'a [u8],
        tensor_scale: Option<f32>,
    ) -> Result<Self, Error> {
        format.check_row_len(name, cols)?;
        if rows.checked_mul(format.row_bytes(cols)) != Some(blocks.len()) {
            let row = format.row_bytes(cols);
            let problem = format!(
                "{format} [{rows}, {cols}] wants {rows} rows of {row} bytes, found {} bytes",
                blocks.len()
            );
            return Err(Error::matrix(name, problem));
        }
        let problem = match (format, tensor_scale) {
            (Format::TernaryTensor, Some(scale)) if scale.is_finite() => None,
            (Format::TernaryTensor, Some(scale)) => {
                Some(format!("the tensor's scale is {scale}, want a finite one"))
            }
            (Format::TernaryTensor, None) => {
                Some("ternary-tensor wants a scale for the tensor, found none".into())
            }
            (_, Some(_)) => Some(format!("{format} has its scales in the blocks, found one for the tensor")),
            (_, None) => None,
        };
        match problem {
            Some(problem) => Err(Error::matrix(name, problem)),
            None => Ok(Self { format, rows, cols, blocks, tensor_scale: tensor_scale.unwrap_or(0.0) }),
        }
    }

    /// Reads every block once: all codes must be on the grid, all scales and biases finite.
    ///
    /// # Errors
    /// Names the tensor and the first bad block by row and block number.
    pub fn validate(&self, name: &str) -> Result<(), Error> {
        let bad = self.blocks.par_chunks(self.row_bytes()).enumerate().find_map_first(|(row, bytes)| {
            with_block!(self.format, self.cols, self.tensor_scale, layout => {
                bytes.chunks_exact(layout.bytes()).enumerate().find_map(|(i, block)| {
                    let (scale, bias) = layout.scale_bias(block);
                    if !(scale.is_finite() && bias.is_finite()) {
                        Some(format!("row {row}, block {i}: want a finite scale and bias, found {scale} and {bias}"))
                    } else if !layout.legal(block) {
                        let (lo, hi) = self.format.levels();
                        Some(format!("row {row}, block {i}: a code is outside {lo}..={hi} of {}", self.format))
                    } else {
                        None
                    }
                })
            })
        });
        bad.map_or(Ok(()), |problem| Err(Error::matrix(name, format!("{problem}; the file is damaged"))))
    }

    /// How the blocks are laid out.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes of all rows, in order.
    pub fn blocks(&self) -> &'a [u8] {
        self.blocks
    }

    /// The scale beside the blocks, of `ternary-tensor` only.
    pub fn tensor_scale(&self) -> Option<f32> {
        (self.format == Format::TernaryTensor).then_some(self.tensor_scale)
    }

    /// Exact bits per weight, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        self.format.bits_per_weight(self.rows, self.cols)
    }

    /// Writes row `row` as floats into `out`, `cols` long.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a decoded row");
        vectorized(
            #[inline(always)]
            || self.decode_row_inline(row, out),
        );
    }

    /// [`PackedRef::decode_row`] for loops that are vectorized as a whole.
    #[inline(always)]
    pub(crate) fn decode_row_inline(&self, row: usize, out: &mut [f32]) {
        let bytes = self.row_blocks(row);
        let levels = self.format.levels();
        with_block!(self.format, self.cols, self.tensor_scale, layout => {
            for (block, out) in bytes.chunks_exact(layout.bytes()).zip(out.chunks_exact_mut(layout.len())) {
                let (scale, bias) = layout.scale_bias(block);
                let grid = Grid::new(levels, scale, bias);
                layout.codes(block, out);
                for value in out {
                    *value = grid.value(*value);
                }
            }
        });
    }

    /// The whole matrix as floats, `[rows, cols]`.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(self.cols).enumerate().for_each(|(row, out)| self.decode_row(row, out));
        out
    }

    /// Writes the codes of row `row`, integers of [`Format::levels`], into `codes`, `cols` long: what another container
    /// of the same grid stores.
    ///
    /// # Panics
    /// When there is no such row or `codes` has another length.
    pub fn codes_row(&self, row: usize, codes: &mut [i16]) {
        assert_eq!(codes.len(), self.cols, "codes of a row");
        let bytes = self.row_blocks(row);
        with_block!(self.format, self.cols, self.tensor_scale, layout => {
            let mut block_codes = vec![0.0; layout.len()];
            for (block, codes) in bytes.chunks_exact(layout.bytes()).zip(codes.chunks_exact_mut(layout.len())) {
                layout.codes(block, &mut block_codes);
                for (code, &read) in codes.iter_mut().zip(&block_codes) {
                    // Integral, and at most 255.
                    *code = read as i16;
                }
            }
        });
    }

    /// The stored scales and biases.
    pub fn scales(&self) -> Scales {
        if let Some(scale) = self.tensor_scale() {
            return Scales { scale: vec![scale], bias: Vec::new() };
        }
        let (scale, bias) = with_block!(self.format, self.cols, self.tensor_scale, layout => {
            self.blocks.chunks_exact(layout.bytes()).map(|block| layout.scale_bias(block)).unzip()
        });
        Scales { scale, bias: if self.format.has_bias() { bias } else { Vec::new() } }
    }

    /// The blocks of row `row`.
    #[inline(always)]
    pub(crate) fn row_blocks(&self, row: usize) -> &'a [u8] {
        &self.blocks[row * self.row_bytes()..][..self.row_bytes()]
    }

    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }
}

/// Packs the `[rows, cols]` matrix `w` of the tensor `name` on the grid of `scales`.
///
/// # Errors
/// When the rows don't fit the format, a weight is NaN or infinite, or a scale or bias is not one that the format
/// stores ([`Scales::rounded`] makes it one).
///
/// # Panics
/// When `w` or `scales` has another length than the shape and the format say.
pub fn pack(
    name: &str,
    format: Format,
    w: &[f32],
    rows: usize,
    cols: usize,
    scales: &Scales,
) -> Result<Packed, Error> {
    format.check_row_len(name, cols)?;
    if let Some((i, j, found)) = first(w, cols, |w| !w.is_finite()) {
        return Err(Error::matrix(name, format!("weight [{i}, {j}] is {found}, want a finite number")));
    }
    write(
        name,
        format,
        w,
        [rows, cols],
        scales,
        #[inline(always)]
        |grid, w| grid.code(w),
    )
}

/// Packs `codes`, integers of [`Format::levels`] as floats, `[rows, cols]`, under the grid of `scales`.
///
/// # Errors
/// As [`pack`], with a number that is no code in the place of a weight that is not finite.
///
/// # Panics
/// When `codes` or `scales` has another length than the shape and the format say.
pub fn pack_codes(
    name: &str,
    format: Format,
    codes: &[f32],
    rows: usize,
    cols: usize,
    scales: &Scales,
) -> Result<Packed, Error> {
    format.check_row_len(name, cols)?;
    let (lo, hi) = format.levels();
    let legal = |code: f32| code.fract() == 0.0 && code >= lo as f32 && code <= hi as f32;
    if let Some((i, j, found)) = first(codes, cols, |code| !legal(code)) {
        let problem = format!("[{i}, {j}] is {found}, want a whole number in {lo}..={hi} of {format}");
        return Err(Error::matrix(name, problem));
    }
    write(
        name,
        format,
        codes,
        [rows, cols],
        scales,
        #[inline(always)]
        |_, code| code,
    )
}

/// Row, column and value of the first element that is `bad`.
fn first(x: &[f32], cols: usize, bad: impl Fn(f32) -> bool + Sync) -> Option<(usize, usize, f32)> {
    let in_row = |row: &[f32]| row.iter().position(|&x| bad(x));
    x.par_chunks(cols).enumerate().find_map_first(|(i, row)| in_row(row).map(|j| (i, j, row[j])))
}

/// Blocks of the codes that `code` makes of a grid and an element of `x`.
fn write(
    name: &str,
    format: Format,
    x: &[f32],
    [rows, cols]: [usize; 2],
    scales: &Scales,
    code: impl Fn(Grid, f32) -> f32 + Sync,
) -> Result<Packed, Error> {
    let spans = Spans::new(format, x.len(), rows, cols, scales);
    for (what, values) in [("scale", &scales.scale), ("bias", &scales.bias)] {
        let stored = |v: f32| v.is_finite() && format.scale_type().round(v) == v;
        if let Some(i) = values.iter().position(|&v| !stored(v)) {
            let problem = format!("{what} {i} is {}, which {format} can't store: round it first", values[i]);
            return Err(Error::matrix(name, problem));
        }
    }
    let tensor_scale = (format == Format::TernaryTensor).then(|| scales.scale[0]);
    let row_bytes = format.row_bytes(cols);
    let mut blocks = vec![0; rows * row_bytes];
    blocks.par_chunks_mut(row_bytes).zip(x.par_chunks(cols)).enumerate().for_each_init(
        || vec![0.0; cols],
        |codes, (row, (bytes, x))| {
            vectorized(
                #[inline(always)]
                || {
                    with_block!(format, cols, tensor_scale.unwrap_or(0.0), layout => {
                        let codes = &mut codes[..layout.len()];
                        let of_row = bytes.chunks_exact_mut(layout.bytes()).zip(x.chunks_exact(layout.len()));
                        for (i, (block, x)) in of_row.enumerate() {
                            let grid = spans.grid(row * (cols / layout.len()) + i);
                            for (found, &x) in codes.iter_mut().zip(x) {
                                *found = code(grid, x);
                            }
                            layout.write(codes, grid.scale, grid.bias, block);
                        }
                    });
                },
            );
        },
    );
    Ok(Packed { format, rows, cols, blocks, tensor_scale })
}
