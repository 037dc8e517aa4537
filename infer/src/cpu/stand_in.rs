//! Private stand-in for the panel kernels of `qat_quant::kernels`, with their signatures.
#![allow(missing_docs, dead_code)]
use std::ops::Range;

use qat_quant::kernels::FloatRef;
use qat_quant::{Error, Format, Packed, PackedRef};

pub const PANEL: usize = 16;
pub const CHUNK: usize = 32;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(());
impl Isa {
    pub fn active() -> Result<Isa, Error> {
        Ok(Isa(()))
    }
}
#[derive(Debug)]
pub struct Panels(Packed);
impl Panels {
    pub fn new(w: PackedRef<'_>) -> Self {
        Self(Packed {
            format: w.format(),
            rows: w.rows(),
            cols: w.cols(),
            blocks: w.blocks().to_vec(),
            tensor_scale: w.tensor_scale(),
        })
    }
    pub fn rows(&self) -> usize {
        self.0.rows
    }
    pub fn cols(&self) -> usize {
        self.0.cols
    }
    pub fn panels(&self) -> usize {
        self.0.rows.div_ceil(PANEL)
    }
    pub fn bytes(&self) -> usize {
        self.0.blocks.len()
    }
    pub fn format(&self) -> Format {
        self.0.format
    }
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.0.as_ref().decode_row(row, out);
    }
}
#[derive(Clone, Copy, Debug)]
pub struct Int8Tokens<'a> {
    pub codes: &'a [i8],
    pub sums: &'a [i32],
    pub scales: &'a [f32],
}
#[derive(Clone, Copy, Debug)]
pub struct FloatTokens<'a> {
    pub values: &'a [f32],
    pub sums: &'a [f32],
}
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    Int8(Int8Tokens<'a>),
    Float(FloatTokens<'a>),
}
pub fn round_int8(x: &[f32], codes: &mut [i8], sums: &mut [i32]) -> f32 {
    let peak = x.iter().fold(0f32, |a, b| a.max(b.abs()));
    let scale = peak / 127.0;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = if scale == 0.0 { 0 } else { (x / scale).round_ties_even().clamp(-128.0, 127.0) as i8 };
    }
    for (sum, codes) in sums.iter_mut().zip(codes.chunks(CHUNK)) {
        *sum = codes.iter().map(|c| i32::from(*c)).sum();
    }
    scale
}
pub fn float_sums(x: &[f32], sums: &mut [f32]) {
    for (sum, x) in sums.iter_mut().zip(x.chunks(CHUNK)) {
        *sum = x.iter().sum();
    }
}
pub fn panel(
    _: Isa,
    w: &Panels,
    index: usize,
    x: Tokens<'_>,
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    rows(w.rows(), w.cols(), |row, out| w.decode_row(row, out), index, x, tokens, sink);
}
fn rows(
    rows: usize,
    cols: usize,
    decode: impl Fn(usize, &mut [f32]),
    index: usize,
    x: Tokens<'_>,
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let mut w = vec![0.0; PANEL * cols];
    for (row, w) in (index * PANEL..rows).zip(w.chunks_exact_mut(cols)) {
        decode(row, w);
    }
    let mut values = vec![0.0; cols];
    for token in tokens {
        match x {
            Tokens::Float(x) => values.copy_from_slice(&x.values[token * cols..][..cols]),
            Tokens::Int8(x) => {
                for (v, c) in values.iter_mut().zip(&x.codes[token * cols..]) {
                    *v = f32::from(*c) * x.scales[token];
                }
            }
        }
        let mut out = [0.0; PANEL];
        qat_quant::vectorized(
            #[inline(always)]
            || {
                for (out, w) in out.iter_mut().zip(w.chunks_exact(cols)) {
                    let mut sums = [0f32; 16];
                    let (a, ra) = w.as_chunks::<16>();
                    let (b, rb) = values.as_chunks::<16>();
                    for (a, b) in a.iter().zip(b) {
                        sums = std::array::from_fn(|l| sums[l] + a[l] * b[l]);
                    }
                    *out = sums.iter().sum::<f32>() + ra.iter().zip(rb).map(|(a, b)| a * b).sum::<f32>();
                }
            },
        );
        sink(token, &out);
    }
}
pub fn float_panel(
    w: FloatRef<'_>,
    index: usize,
    x: &[f32],
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let x = Tokens::Float(FloatTokens { values: x, sums: &[] });
    rows(w.rows(), w.cols(), |row, out| w.decode_row(row, out), index, x, tokens, sink);
}
