//! A packed matrix as the products read it: panels of sixteen rows, whose codes lie in the lanes of a register.
//!
//! | part | what |
//! |---|---|
//! | panel | rows `16·p..16·p + 16`; rows past the last are code 0, under scale 0 or that of the tensor |
//! | chunk of a panel | 32 columns, in `bits` lines of 64 bytes; a row that ends within a chunk goes on with the code of 0 |
//! | 8-bit chunk | line i: byte `4·r + j` is the code of row r, column `4·i + j` |
//! | 4-bit chunk | line i: those of lines 2i (low nibble) and 2i + 1 of the 8-bit chunk |
//! | 2-bit chunk | line i: those of lines 4i (lowest bits) to 4i + 3 |
//! | 3-bit chunk | two lines of the low two bits as above, then a line whose bit i is the third of line i |
//! | scales | for each panel and group 16 scales, then (affine) for each 16 biases, two bytes as stored; not read where the tensor has one |
//!
//! A code is stored less the lowest of its format, so that it is never negative. The bits are those of the blocks, and
//! so are the bytes but for padding. Knows no files; invariant: [`Panels::decode_row`] gives what
//! [`PackedRef::decode_row`] gave, to the bit.

use rayon::prelude::*;

use super::PANEL;
use super::lanes::{Line, low_bits, place};
use super::tokens::CHUNK;
use crate::grid::Grid;
use crate::layout::{Block, with_block};
use crate::simd::vectorized;
use crate::{Format, PackedRef, ScaleType};

/// Stored scales (or biases) of a group of a panel.
pub(super) type ScaleRow = [[u8; 2]; PANEL];

/// A packed matrix `[rows, cols]`, repacked once; owns its memory.
#[derive(Debug, Clone)]
pub struct Panels {
    format: Format,
    rows: usize,
    cols: usize,
    /// `[panels, chunks, bits]`
    lines: Vec<Line>,
    /// `[panels, groups, 1 or 2]`
    scales: Vec<ScaleRow>,
    /// The scale of all weights, in f32: a file of another tool may have one that is no bf16.
    tensor_scale: Option<f32>,
}

/// One panel, as a product walks through it.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// `[chunks, bits]`
    pub lines: &'a [Line],
    /// `[groups, 1 or 2]`
    pub scales: &'a [ScaleRow],
    pub scale_type: ScaleType,
    /// In place of `scales`, where the tensor has one; rows past the last have it too, over codes of 0.
    pub tensor_scale: Option<f32>,
    /// Chunks that share a scale.
    pub group_chunks: usize,
    /// The stored code of 0; of no meaning in affine formats, whose bias takes its place.
    pub zero: i32,
}

impl Panels {
    /// Repacks `w`, whose blocks have been validated.
    pub fn new(w: PackedRef<'_>) -> Self {
        let (format, rows, cols) = (w.format(), w.rows(), w.cols());
        let (panels, chunks) = (rows.div_ceil(PANEL), cols.div_ceil(CHUNK));
        let mut lines = vec![Line([0; 64]); panels * chunks * bits(format)];
        let mut scales = vec![[[0; 2]; PANEL]; panels * scale_rows(format, cols)];
        let by_panel =
            lines.par_chunks_mut(chunks * bits(format)).zip(scales.par_chunks_mut(scale_rows(format, cols)));
        by_panel.enumerate().for_each_init(
            || Scratch::new(chunks * CHUNK),
            |scratch, (panel, (lines, scales))| {
                let rows = panel * PANEL..rows.min((panel + 1) * PANEL);
                vectorized(
                    #[inline(always)]
                    || {
                        scratch.begin(format);
                        for (lane, row) in rows.enumerate() {
                            scratch.read_row(&w, row, lane, scales);
                        }
                        scratch.write_lines(bits(format), lines);
                    },
                );
            },
        );
        Self { format, rows, cols, lines, scales, tensor_scale: w.tensor_scale() }
    }

    /// How its blocks were laid out.
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

    /// Panels of sixteen rows, the last perhaps of fewer.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Bytes that a product reads: codes and scales, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice()) + size_of_val(self.scales.as_slice())
    }

    /// Writes row `row` as floats into `out`, `cols` long.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "row {row} of {} as {} floats",
            self.rows,
            out.len()
        );
        let (panel, lane) = (self.panel(row / PANEL), row % PANEL);
        let (lo, hi) = self.format.levels();
        let bits = bits(self.format);
        let group_len = panel.group_chunks * CHUNK;
        let stored = |index: usize| {
            panel.tensor_scale.unwrap_or_else(|| panel.scale_type.read(panel.scales[index][lane]))
        };
        for (group, out) in out.chunks_mut(group_len).enumerate() {
            let (scale, bias) = match self.format.has_bias() {
                true => (stored(2 * group), stored(2 * group + 1)),
                false => (stored(group), 0.0),
            };
            let grid = Grid::new((lo, hi), scale, bias);
            for (col, out) in (group * group_len..).zip(out) {
                let chunk = &panel.lines[col / CHUNK * bits..][..bits];
                *out = grid.value((code(chunk, lane, col % CHUNK) + lo) as f32);
            }
        }
    }

    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        let chunks = self.cols.div_ceil(CHUNK);
        let (lines, scales) = (chunks * bits(self.format), scale_rows(self.format, self.cols));
        Panel {
            lines: &self.lines[index * lines..][..lines],
            scales: &self.scales[index * scales..][..scales],
            scale_type: self.format.scale_type(),
            tensor_scale: self.tensor_scale,
            group_chunks: self.format.group_len().map_or(chunks, |len| len / CHUNK),
            zero: -self.format.levels().0,
        }
    }
}

/// Bits of a code in a panel.
pub(super) fn bits(format: Format) -> usize {
    match format {
        Format::Int4G32 => 4,
        Format::Int8G32 => 8,
        Format::Affine(affine) => affine.bits(),
        Format::TernaryG64 | Format::TernaryG256 | Format::TernaryTensor => 2,
    }
}

/// Rows of scales and biases of a panel.
fn scale_rows(format: Format, cols: usize) -> usize {
    let groups = format.group_len().map_or(1, |len| cols / len);
    if format.has_bias() { 2 * groups } else { groups }
}

/// The code of column `col` of a chunk in row `lane`, in the plainest way.
fn code(chunk: &[Line], lane: usize, col: usize) -> i32 {
    let (i, byte) = (col / 4, 4 * lane + col % 4);
    let bits = chunk.len();
    let (line, shift) = place(bits, i);
    let low = i32::from(chunk[line].0[byte] >> shift) & ((1 << low_bits(bits)) - 1);
    if bits == 3 { low | (i32::from(chunk[2].0[byte] >> i) & 1) << 2 } else { low }
}

/// Codes of a panel, row by row.
struct Scratch {
    /// `[16, padded cols]`
    codes: Vec<u8>,
    row: Vec<f32>,
}

impl Scratch {
    fn new(padded: usize) -> Self {
        Self { codes: vec![0; PANEL * padded], row: vec![0.0; padded] }
    }

    /// Fills all rows with the code of 0.
    #[inline(always)]
    fn begin(&mut self, format: Format) {
        self.codes.fill((-format.levels().0) as u8);
    }

    /// Reads row `row` of `w` into lane `lane`, and its scales.
    #[inline(always)]
    fn read_row(&mut self, w: &PackedRef<'_>, row: usize, lane: usize, scales: &mut [ScaleRow]) {
        let lo = w.format().levels().0 as f32;
        let scale_type = w.format().scale_type();
        let has_bias = w.format().has_bias();
        let padded = self.row.len();
        let codes = &mut self.codes[lane * padded..][..w.cols()];
        let bytes = w.row_blocks(row);
        with_block!(w.format(), w.cols(), w.tensor_scale().unwrap_or(0.0), layout => {
            let values = &mut self.row[..layout.len()];
            let blocks = bytes.chunks_exact(layout.bytes()).zip(codes.chunks_exact_mut(layout.len()));
            for (group, (block, codes)) in blocks.enumerate() {
                layout.codes(block, values);
                for (code, value) in codes.iter_mut().zip(values.iter()) {
                    *code = (*value - lo) as i32 as u8;
                }
                let (scale, bias) = layout.scale_bias(block);
                if has_bias {
                    scales[2 * group][lane] = scale_type.write(scale);
                    scales[2 * group + 1][lane] = scale_type.write(bias);
                } else {
                    scales[group][lane] = scale_type.write(scale);
                }
            }
        });
    }

    /// Puts the codes of all rows side by side. Four codes of a row are one word: what is done to each stays in its byte.
    #[inline(always)]
    fn write_lines(&self, bits: usize, lines: &mut [Line]) {
        let padded = self.row.len();
        let mask = ((1u32 << low_bits(bits)) - 1) * 0x0101_0101;
        for (index, chunk) in lines.chunks_exact_mut(bits).enumerate() {
            let mut words = [[0u32; PANEL]; CHUNK / 4];
            for (lane, row) in self.codes.chunks_exact(padded).enumerate() {
                let fours = row[index * CHUNK..][..CHUNK].as_chunks::<4>().0;
                for (words, four) in words.iter_mut().zip(fours) {
                    words[lane] = u32::from_le_bytes(*four);
                }
            }
            let mut merged = [[0u32; PANEL]; 8];
            for (i, words) in words.iter().enumerate() {
                let (line, shift) = place(bits, i);
                for lane in 0..PANEL {
                    merged[line][lane] |= (words[lane] & mask) << shift;
                    if bits == 3 {
                        merged[2][lane] |= (words[lane] >> 2 & 0x0101_0101) << i;
                    }
                }
            }
            for (line, merged) in chunk.iter_mut().zip(merged) {
                line.0.as_chunks_mut::<4>().0.copy_from_slice(&merged.map(u32::to_le_bytes));
            }
        }
    }
}
