//! Products of one or more tokens with up to three matrices that share their input: which kernel, which grid, which
//! shape.
//!
//! Knows no buffers and no layers. The constants and the shape are those that `product.metal` declares.

use super::storage::{Storage, names};
use super::{Constant, Dispatch, Launch, Library};

/// One token: each simdgroup has its own rows, lanes run along the columns.
pub(super) const MATVEC: Library = Library {
    name: "matvec",
    source: concat!(
        include_str!("blocks.metal"),
        include_str!("product.metal"),
        include_str!("matvec.metal")
    ),
};
/// A few tokens: as one, but a weight is decoded once for all of them.
pub(super) const MATFEW: Library = Library {
    name: "matfew",
    source: concat!(
        include_str!("blocks.metal"),
        include_str!("product.metal"),
        include_str!("matfew.metal")
    ),
};
/// Many tokens: tiles on simdgroup matrices.
pub(super) const MATMUL: Library = Library {
    name: "matmul",
    source: concat!(
        include_str!("blocks.metal"),
        include_str!("product.metal"),
        include_str!("matmul.metal")
    ),
};

/// Most tokens of `matfew`.
const FEW: u32 = 8;
/// Tokens of a tile of `matmul`.
const TILE_TOKENS: u32 = 32;

const NORM: u16 = 0;
const INT8: u16 = 1;
const BIAS: u16 = 2;
const EPILOGUE: u16 = 3;
const MATRICES: u16 = 4;

/// What happens to an output `v`, its bias added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `out = v`
    Store,
    /// `out += v`
    Add,
    /// Of two matrices of equal rows: the first `out = silu(v₀)·v₁`, where `silu(v) = v / (1 + e⁻ᵛ)`. The second has
    /// no output.
    Gate,
}

/// One matrix of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// Output channels.
    pub rows: u32,
    /// The scale beside the blocks, read for `ternary-tensor` only.
    pub tensor_scale: f32,
}

/// Outputs of up to three matrices that read the same tokens and are stored alike.
///
/// | buffer | what | where |
/// |---|---|---|
/// | 0 | x, f32 `[tokens, cols]` | always |
/// | 1 | [`Dispatch::shape`] | always |
/// | 2 | weight of the norm, f32 `[cols]` | with a norm |
/// | 3, 4, 5 | output, f32 `[tokens, rows]`, of each matrix | the first only, with [`Epilogue::Gate`] |
/// | 6, 7, 8 | rows of each matrix, as stored | |
/// | 9, 10, 11 | bias of each matrix, f32 `[rows]` | with biases |
///
/// Floats begin at multiples of 4 bytes, matrices as [`Storage`] says. Buffers of a place that isn't listed stay
/// unbound. No output may overlap an input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product<'a> {
    /// How all the matrices are stored.
    pub storage: Storage,
    /// Input channels.
    pub cols: u32,
    /// One to three; exactly two, of equal rows, for [`Epilogue::Gate`].
    pub matrices: &'a [Matrix],
    /// Rows of x, at least 1.
    pub tokens: u32,
    /// RMS norm of x before anything else, with this number added to the mean square: one token only.
    pub norm: Option<f32>,
    /// x (normed, where it is) is rounded as [`crate::int8_tokens`] rounds it: one token only.
    pub int8: bool,
    /// Whether every matrix has a bias; else none has.
    pub has_bias: bool,
    /// What happens to the outputs.
    pub epilogue: Epilogue,
}

impl Product<'_> {
    /// The kernel for this many tokens, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When rows of `cols` don't fit the storage, or the number of matrices or tokens is not one of those listed.
    pub fn dispatch(&self) -> Dispatch {
        let Self { storage, cols, matrices, tokens, .. } = *self;
        let is_gate = self.epilogue == Epilogue::Gate;
        let row_bytes = storage.checked_row_bytes(cols);
        assert!(matches!(matrices.len(), 1..=3), "a launch of {} matrices", matrices.len());
        assert!(tokens > 0 && matrices.iter().all(|m| m.rows > 0), "a product of nothing");
        assert!(
            !is_gate || matches!(matrices, [gate, up] if gate.rows == up.rows),
            "a gate has two matrices of equal rows"
        );
        let is_one = tokens == 1;
        assert!(
            is_one || (self.norm.is_none() && !self.int8),
            "only one token is normed and rounded on the way"
        );

        let (library, names, threads, tile, tile_tokens) = match tokens {
            1 => (MATVEC, names!("matvec"), 64, 8, 1),
            ..=FEW => (MATFEW, names!("matfew"), 64, 4, FEW),
            _ => (MATMUL, names!("matmul"), 128, 64, TILE_TOKENS),
        };
        let tiles: u32 = if is_gate {
            // A tile holds the same rows of both.
            matrices[0].rows.div_ceil(tile / 2)
        } else {
            matrices.iter().map(|m| m.rows.div_ceil(tile)).sum()
        };
        let mut constants = Vec::new();
        if is_one {
            constants.push((NORM, Constant::Bool(self.norm.is_some())));
            constants.push((INT8, Constant::Bool(self.int8)));
        }
        let epilogue = match self.epilogue {
            Epilogue::Store => 0,
            Epilogue::Add => 1,
            Epilogue::Gate => 2,
        };
        constants.push((BIAS, Constant::Bool(self.has_bias)));
        constants.push((EPILOGUE, Constant::U32(epilogue)));
        constants.push((MATRICES, Constant::U32(matrices.len() as u32)));
        constants.extend(storage.constants());
        let launch = Launch {
            library: library.name,
            kernel: names[storage.kernel()],
            constants,
            groups: [tiles, tokens.div_ceil(tile_tokens), 1],
            threads: [threads, 1, 1],
            threadgroup_bytes: 0,
        };
        let (bytes_read, bytes_written) = self.traffic(row_bytes);
        Dispatch { launch, shape: self.shape(row_bytes), bytes_read, bytes_written }
    }

    /// `struct Shape` of `product.metal`.
    fn shape(&self, row_bytes: u32) -> Vec<u8> {
        let of = |i: usize| self.matrices.get(i).copied().unwrap_or(Matrix { rows: 0, tensor_scale: 0.0 });
        let each = [of(0), of(1), of(2)];

        let words = [self.cols, self.tokens, row_bytes]
            .into_iter()
            .chain(each.map(|m| m.rows))
            .chain(each.map(|m| m.tensor_scale.to_bits()))
            .chain([self.norm.unwrap_or(0.0).to_bits()]);
        words.flat_map(u32::to_le_bytes).collect()
    }

    /// Bytes read and written, each counted once.
    fn traffic(&self, row_bytes: u32) -> (u64, u64) {
        let rows: u64 = self.matrices.iter().map(|m| u64::from(m.rows)).sum();
        let (cols, tokens) = (u64::from(self.cols), u64::from(self.tokens));
        let stored = if self.epilogue == Epilogue::Gate { rows / 2 } else { rows };
        let written = 4 * tokens * stored;
        let weights = rows * u64::from(row_bytes);
        let norm = if self.norm.is_some() { 4 * cols } else { 0 };
        let bias = if self.has_bias { 4 * rows } else { 0 };
        let added = if self.epilogue == Epilogue::Add { written } else { 0 };
        (weights + 4 * tokens * cols + norm + bias + added, written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::FloatType;
    use crate::{Affine, Format, ScaleType};

    const MATRICES_3: [Matrix; 3] = [
        Matrix { rows: 70, tensor_scale: 0.5 },
        Matrix { rows: 13, tensor_scale: -2.0 },
        Matrix { rows: 8, tensor_scale: 0.0 },
    ];

    fn product(matrices: &[Matrix], tokens: u32) -> Product<'_> {
        Product {
            storage: Storage::Packed(Format::Int4G32),
            cols: 64,
            matrices,
            tokens,
            norm: None,
            int8: false,
            has_bias: false,
            epilogue: Epilogue::Store,
        }
    }

    #[test]
    fn the_number_of_tokens_chooses_the_kernel_and_the_grid() {
        for (tokens, kernel, groups, threads) in [
            (1, "matvec_int4_g32", [9 + 2 + 1, 1, 1], 64),
            (2, "matfew_int4_g32", [18 + 4 + 2, 1, 1], 64),
            (8, "matfew_int4_g32", [18 + 4 + 2, 1, 1], 64),
            (9, "matmul_int4_g32", [2 + 1 + 1, 1, 1], 128),
            (33, "matmul_int4_g32", [2 + 1 + 1, 2, 1], 128),
        ] {
            let launch = product(&MATRICES_3, tokens).dispatch().launch;
            assert_eq!((launch.kernel, launch.groups), (kernel, groups), "{tokens} tokens");
            assert_eq!(launch.threads, [threads, 1, 1], "{tokens} tokens");
            assert!(kernel.starts_with(launch.library), "{kernel} is in {}", launch.library);
        }
    }

    #[test]
    fn a_gate_has_the_rows_of_one_matrix() {
        let pair = [MATRICES_3[0]; 2];
        for (tokens, groups) in [(1, 18), (2, 35), (9, 3)] {
            let gate = Product { epilogue: Epilogue::Gate, ..product(&pair, tokens) };
            let dispatch = gate.dispatch();
            assert_eq!(dispatch.launch.groups[0], groups, "{tokens} tokens");
            assert_eq!(dispatch.bytes_written, 4 * 70 * u64::from(tokens));
        }
    }

    #[test]
    fn the_shape_is_ten_words_in_the_order_of_the_kernels() {
        let normed = Product { norm: Some(1e-5), ..product(&MATRICES_3, 1) };
        let words = [64, 1, 36, 70, 13, 8, 0.5f32.to_bits(), (-2.0f32).to_bits(), 0, 1e-5f32.to_bits()];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(normed.dispatch().shape, bytes);
    }

    #[test]
    fn constants_are_those_that_the_kernel_reads() {
        let indices = |product: Product<'_>| -> Vec<u16> {
            product.dispatch().launch.constants.iter().map(|(index, _)| *index).collect()
        };
        assert_eq!(indices(product(&MATRICES_3, 1)), [0, 1, 2, 3, 4]);
        assert_eq!(indices(product(&MATRICES_3, 2)), [2, 3, 4]);
        let affine = Storage::Packed(Format::Affine(Affine::new(3, 64, ScaleType::BF16).unwrap()));
        let three = Product { storage: affine, ..product(&MATRICES_3, 9) };
        assert_eq!(indices(three), [2, 3, 4, 5, 6]);
        let constants = three.dispatch().launch.constants;
        assert_eq!(constants[3..], [(5, Constant::U32(64)), (6, Constant::Bool(true))]);
    }

    #[test]
    fn traffic_counts_every_byte_once() {
        let rows = 70 + 13 + 8;
        let plain = product(&MATRICES_3, 9).dispatch();
        assert_eq!((plain.bytes_read, plain.bytes_written), (36 * rows + 4 * 9 * 64, 4 * 9 * rows));
        let all = Product {
            norm: Some(1e-5),
            has_bias: true,
            epilogue: Epilogue::Add,
            storage: Storage::Float(FloatType::BF16),
            ..product(&MATRICES_3, 1)
        };
        let all = all.dispatch();
        // Weights, x and the weight of its norm, biases and what is added to.
        assert_eq!(all.bytes_read, 2 * 64 * rows + 2 * 4 * 64 + 2 * 4 * rows);
        assert_eq!(all.bytes_written, 4 * rows);
    }

    #[test]
    #[should_panic(expected = "a gate has two matrices of equal rows")]
    fn a_gate_of_unequal_matrices_is_refused() {
        Product { epilogue: Epilogue::Gate, ..product(&MATRICES_3[..2], 1) }.dispatch();
    }

    #[test]
    #[should_panic(expected = "only one token is normed")]
    fn a_norm_before_several_tokens_is_refused() {
        Product { norm: Some(1e-5), ..product(&MATRICES_3, 2) }.dispatch();
    }

    #[test]
    #[should_panic(expected = "has no rows of 48")]
    fn rows_that_do_not_fit_are_refused() {
        Product { cols: 48, ..product(&MATRICES_3, 2) }.dispatch();
    }
}
