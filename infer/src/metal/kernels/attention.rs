//! Attention of one layer, from the products' queries, keys and values to what the next product reads.
//!
//! Knows no layers and no position. The constants and shapes are those that `head.metal`, `attention_decode.metal` and
//! `attention_join.metal` declare.

use qat_quant::kernels::metal::{Constant, Dispatch, Launch, Library};

use super::{STEP, WORD, library, words};
use crate::cpu::KvType;
use crate::model::{AttentionShape, Sight};

pub(super) const TURN: Library = library!("head", "kv"; "turn");
pub(super) const DECODE: Library = library!("head", "kv"; "attention_decode");
pub(super) const JOIN: Library = library!(; "attention_join");
pub(super) const PREFILL: Library = library!("head", "kv"; "attention_prefill");

const HEAD_DIM: u16 = 0;
const NORM: u16 = 1;
const ROPE: u16 = 2;
const SPLIT: u16 = 3;
const ROTARY: u16 = 4;

/// Threads of a simdgroup.
const SIMDGROUP: u32 = 32;
/// `MOST` of `attention_decode.metal`.
const MOST_SIMDGROUPS: u32 = 8;
/// `ROWS` of `attention_prefill.metal`, and its threads.
const ROWS: u32 = 32;
const PREFILL_THREADS: u32 = 128;

/// Parts into which a past can be split.
pub const MOST_PARTS: usize = 32;
/// Positions that are worth a part.
const PART_POSITIONS: u32 = 128;
/// Threadgroups that keep the largest of these GPUs at work.
const ENOUGH_GROUPS: u32 = 128;

/// Attention of one layer.
///
/// For one token [`decode`](Self::decode), followed by [`join`](Self::join) where the past is split; for more tokens
/// [`turn`](Self::turn), then [`prefill`](Self::prefill).
///
/// | buffer | what | turn | decode | join | prefill |
/// |---|---|---|---|---|---|
/// | 0 | queries, f32 `[tokens, heads, head_dim]` | in, out | in | | in |
/// | 1, 2 | keys and values, f32 `[tokens, kv_heads, head_dim]` | in | in | | |
/// | 3, 4 | norm weights of query and key heads, f32 `[head_dim]`, with a norm | in | in | | |
/// | 5 | angles, f32 `[positions, cosines then sines, rotary / 2]`, with a rotation | in | in | | |
/// | 6, 7 | caches of keys and values, f16 or i8 `[kv_heads, capacity, head_dim]` | out | in, out | | in |
/// | 8, 9 | their scales, f16 `[kv_heads, capacity]`, of int8 | out | in, out | | in |
/// | 10 | [step](#the-step), u32 `[position, tokens]` | in | in | | in |
/// | 11 | [`Dispatch::shape`] | in | in | in | in |
/// | 12 | f32 `[tokens, heads, head_dim]` | | out, if not split | out | out |
/// | 13 | what the parts gave, f32 `[heads, parts, head_dim + 2]` | | out, if split | in | |
///
/// Caches and queries begin at multiples of 16 bytes.
///
/// # The step
///
/// `position` is that of the pass's first token; caches have been written below it. `tokens` may be fewer than a launch
/// was made for: the others are left alone. Position p is cached in row p modulo the capacity: the host sees to it that this is either as long
/// as the text, or longer by 16 (a tile of keys) than the window and the tokens of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Heads; `head_dim` is a multiple of 4, at most 256.
    pub shape: AttentionShape,
    /// How keys and values are kept: f16 or int8.
    pub kv: KvType,
    /// Positions of the cache.
    pub capacity: u32,
    /// RMS norm of query and key heads, with this number added to the mean square.
    pub norm: Option<f32>,
    /// Elements of query and key heads that are rotated, their first: an even number. None where they are not.
    pub rotary: Option<usize>,
    /// What a token sees, and how scores are scaled.
    pub sight: Sight,
}

/// The widths of heads that kernels are made for; a narrower head takes the next.
const WIDTHS: [usize; 4] = [64, 96, 128, 256];

/// The kernels of an operation by type of cache and by [`WIDTHS`].
macro_rules! names {
    ($operation:literal) => {
        [
            [
                concat!($operation, "_f16_64"),
                concat!($operation, "_f16_96"),
                concat!($operation, "_f16_128"),
                concat!($operation, "_f16_256"),
            ],
            [
                concat!($operation, "_int8_64"),
                concat!($operation, "_int8_96"),
                concat!($operation, "_int8_128"),
                concat!($operation, "_int8_256"),
            ],
        ]
    };
}

impl Attention {
    /// Norm and rotation of queries in place, and of keys on their way into the cache with the values.
    ///
    /// # Panics
    /// Like all methods here: when there is no kernel for the heads or the type of cache, or there are no tokens.
    pub fn turn(&self, tokens: u32) -> Dispatch {
        assert!(tokens > 0, "heads of no tokens");
        let launch = Launch {
            library: TURN.name,
            kernel: ["turn_f16", "turn_int8"][self.kind()],
            constants: self.constants(None),
            groups: [self.heads() + 2 * self.kv_heads(), tokens, 1],
            threads: [SIMDGROUP, 1, 1],
            threadgroup_bytes: 0,
        };
        let [queries, sides] = self.floats(tokens);
        Dispatch {
            launch,
            shape: self.words(),
            bytes_read: queries + sides + self.turning(tokens),
            bytes_written: queries + self.kept(tokens),
        }
    }

    /// One token: turns its heads, takes its key and value into the cache and attends. `past` is the number of earlier
    /// positions that the bytes are counted for; the launch is the same for all.
    pub fn decode(&self, parts: u32, past: u32) -> Dispatch {
        assert!((1..=MOST_PARTS as u32).contains(&parts), "{parts} parts");
        let group = self.heads() / self.kv_heads();
        let simdgroups =
            if group >= MOST_SIMDGROUPS { MOST_SIMDGROUPS } else { MOST_SIMDGROUPS / group * group };
        let launch = Launch {
            library: DECODE.name,
            kernel: names!("attention_decode")[self.kind()][self.width()],
            constants: self.constants(Some(parts > 1)),
            groups: [self.kv_heads(), parts, 1],
            threads: [SIMDGROUP * simdgroups, 1, 1],
            threadgroup_bytes: 0,
        };
        let [queries, sides] = self.floats(1);
        let written = if parts > 1 { self.partials(parts) } else { queries };
        Dispatch {
            launch,
            shape: self.words(),
            bytes_read: queries + sides + self.turning(1) + self.kept(self.seen(past)),
            bytes_written: self.kept(1) + written,
        }
    }

    /// Joins the parts of [`decode`](Self::decode), of which there are at least two.
    pub fn join(&self, parts: u32) -> Dispatch {
        assert!((2..=MOST_PARTS as u32).contains(&parts), "{parts} parts to join");
        let launch = Launch {
            library: JOIN.name,
            kernel: "attention_join",
            constants: Vec::new(),
            groups: [self.heads(), 1, 1],
            threads: [SIMDGROUP, 1, 1],
            threadgroup_bytes: 0,
        };
        Dispatch {
            launch,
            shape: words([self.shape.head_dim as u32, parts]),
            bytes_read: self.partials(parts),
            bytes_written: self.floats(1)[0],
        }
    }

    /// Many tokens, turned. `past` as in [`decode`](Self::decode).
    pub fn prefill(&self, tokens: u32, past: u32) -> Dispatch {
        assert!(tokens > 0, "attention of no tokens");
        let rows = tokens * (self.heads() / self.kv_heads());
        let launch = Launch {
            library: PREFILL.name,
            kernel: names!("attention_prefill")[self.kind()][self.width()],
            constants: vec![(HEAD_DIM, Constant::U32(self.shape.head_dim as u32)), self.rotary()],
            groups: [rows.div_ceil(ROWS), self.kv_heads(), 1],
            threads: [PREFILL_THREADS, 1, 1],
            threadgroup_bytes: 0,
        };
        let [queries, _] = self.floats(tokens);
        Dispatch {
            launch,
            shape: self.words(),
            bytes_read: queries + STEP + self.kept(self.seen(past) + tokens),
            bytes_written: queries,
        }
    }

    /// Into how many parts a past of up to `positions` is best split: as many as keep a GPU at work, none of them too
    /// short to be worth it.
    pub fn parts(&self, positions: u32) -> u32 {
        let enough = ENOUGH_GROUPS.div_ceil(self.kv_heads());
        enough.min(self.seen(positions) / PART_POSITIONS).clamp(1, MOST_PARTS as u32)
    }

    /// Of so many earlier positions, those that the first token of a pass sees.
    fn seen(&self, past: u32) -> u32 {
        past.min(self.window() - 1)
    }

    /// Positions that a token sees, its own included.
    fn window(&self) -> u32 {
        self.sight.window.map_or(u32::MAX, |window| window.clamp(1, u32::MAX as usize) as u32)
    }

    fn heads(&self) -> u32 {
        self.shape.heads as u32
    }

    fn kv_heads(&self) -> u32 {
        self.shape.kv_heads as u32
    }

    /// Place of the type of cache in [`names!`].
    fn kind(&self) -> usize {
        assert!(matches!(self.kv, KvType::F16 | KvType::Int8), "no kernels for a KV cache in {}", self.kv);
        usize::from(self.kv == KvType::Int8)
    }

    /// Place of the width of the heads in [`WIDTHS`].
    fn width(&self) -> usize {
        let head_dim = self.shape.head_dim;
        let narrower = WIDTHS.iter().filter(|width| **width < head_dim).count();
        let fits = narrower < WIDTHS.len() && head_dim > 0 && head_dim.is_multiple_of(4);
        assert!(fits, "no kernels for heads of {head_dim}");
        narrower
    }

    /// Without a rotation any order of the elements will do.
    fn rotary(&self) -> (u16, Constant) {
        (ROTARY, Constant::U32(self.rotary.unwrap_or(self.shape.head_dim) as u32))
    }

    fn constants(&self, split: Option<bool>) -> Vec<(u16, Constant)> {
        let mut constants = vec![
            (HEAD_DIM, Constant::U32(self.shape.head_dim as u32)),
            (NORM, Constant::Bool(self.norm.is_some())),
            (ROPE, Constant::Bool(self.rotary.is_some())),
            self.rotary(),
        ];
        constants.extend(split.map(|split| (SPLIT, Constant::Bool(split))));
        constants
    }

    /// `struct Shape` of `head.metal`.
    fn words(&self) -> Vec<u8> {
        let eps = self.norm.unwrap_or(0.0);
        let (scale, window) = (self.sight.scale.to_bits(), self.window());
        words([self.heads(), self.kv_heads(), self.capacity, eps.to_bits(), scale, window])
    }

    /// Bytes of the queries of `tokens`, and of their keys and values, as floats.
    fn floats(&self, tokens: u32) -> [u64; 2] {
        let of = |heads: u32| WORD * u64::from(tokens) * u64::from(heads) * self.shape.head_dim as u64;
        [of(self.heads()), 2 * of(self.kv_heads())]
    }

    /// Bytes of the keys and values of `positions` in the cache.
    fn kept(&self, positions: u32) -> u64 {
        let row = self.kv.bytes(self.shape.head_dim) as u64;
        2 * u64::from(positions) * u64::from(self.kv_heads()) * row
    }

    /// Bytes of weights, angles and step that turning `tokens` reads.
    fn turning(&self, tokens: u32) -> u64 {
        let head = WORD * self.shape.head_dim as u64;
        let norms = if self.norm.is_some() { 2 * head } else { 0 };
        let angles = self.rotary.map_or(0, |rotary| u64::from(tokens) * WORD * rotary as u64);
        norms + angles + STEP
    }

    /// Bytes of what the parts give.
    fn partials(&self, parts: u32) -> u64 {
        WORD * u64::from(self.heads()) * u64::from(parts) * (self.shape.head_dim as u64 + 2)
    }
}
