//! Rows of a stored matrix as floats: the embeddings of tokens.
//!
//! Knows no vocabulary: ids are the host's to check. The shape is that which `gather.metal` declares.

use super::storage::{Storage, names};
use super::{Dispatch, Launch, Library};

/// A thread for each sixteen (of floats, eight) columns of each token.
pub(super) const GATHER: Library =
    Library { name: "gather", source: concat!(include_str!("blocks.metal"), include_str!("gather.metal")) };

const THREADS: u32 = 64;

/// Decodes one row for each token, to the bits of [`crate::PackedRef::decode_row`], and multiplies it.
///
/// | buffer | what |
/// |---|---|
/// | 0 | ids, u32 `[tokens]`; one past the last row reads the last row |
/// | 1 | [`Dispatch::shape`] |
/// | 2 | out, f32 `[tokens, cols]` |
/// | 3 | rows, as stored |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gather {
    /// How the matrix is stored.
    pub storage: Storage,
    /// Rows of the matrix, at least 1.
    pub rows: u32,
    /// Columns of the matrix.
    pub cols: u32,
    /// The scale beside the blocks, read for `ternary-tensor` only.
    pub tensor_scale: f32,
    /// What rows are multiplied by.
    pub factor: f32,
    /// Rows to decode, at least 1.
    pub tokens: u32,
}

impl Gather {
    /// The kernel, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When rows of `cols` don't fit the storage, or there is no row or no token.
    pub fn dispatch(&self) -> Dispatch {
        let Self { storage, rows, cols, tensor_scale, factor, tokens } = *self;
        assert!(rows > 0 && tokens > 0, "a lookup of nothing");
        let row_bytes = storage.checked_row_bytes(cols);
        let launch = Launch {
            library: GATHER.name,
            kernel: names!("gather")[storage.kernel()],
            constants: storage.constants(),
            groups: [cols.div_ceil(storage.piece() * THREADS), tokens, 1],
            threads: [THREADS, 1, 1],
            threadgroup_bytes: 0,
        };
        let words = [cols, rows, row_bytes, tensor_scale.to_bits(), factor.to_bits()];
        let tokens = u64::from(tokens);
        Dispatch {
            launch,
            shape: words.into_iter().flat_map(u32::to_le_bytes).collect(),
            bytes_read: tokens * (4 + u64::from(row_bytes)),
            bytes_written: tokens * 4 * u64::from(cols),
        }
    }
}
