//! Operations on two rows of equal length, for those that no product could do on the way.

use qat_quant::kernels::metal::{Dispatch, Launch, Library};

use super::{WORD, library, words};

pub(super) const SWIGLU: Library = library!(; "swiglu");
pub(super) const RELU2: Library = library!(; "relu2");
pub(super) const GEGLU: Library = library!(; "geglu");
pub(super) const ADD: Library = library!(; "add");

const THREADS: u32 = 256;

/// `a = combine(a, b)` for `len` elements.
///
/// | buffer | what |
/// |---|---|
/// | 0 | a, f32 `[len]`, in and out |
/// | 1 | b, f32 `[len]` |
/// | 2 | [`Dispatch::shape`] |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elementwise {
    /// `silu(a) · b`, where `silu(a) = a / (1 + e⁻ᵃ)`.
    Swiglu,
    /// `max(a, 0)² · b`
    Relu2,
    /// `gelu(a) · b`, the GELU as [`Gate::GeluTanh`](crate::model::Gate) has it.
    Gelu,
    /// `a + b`
    Add,
}

impl Elementwise {
    /// The kernel, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When there are no elements.
    pub fn dispatch(self, len: u32) -> Dispatch {
        assert!(len > 0, "an operation on nothing");
        let (library, kernel) = match self {
            Self::Swiglu => (SWIGLU.name, "swiglu"),
            Self::Relu2 => (RELU2.name, "relu2"),
            Self::Gelu => (GEGLU.name, "geglu"),
            Self::Add => (ADD.name, "add"),
        };
        let launch = Launch {
            library,
            kernel,
            constants: Vec::new(),
            groups: [len.div_ceil(THREADS), 1, 1],
            threads: [THREADS, 1, 1],
            threadgroup_bytes: 0,
        };
        let bytes = WORD * u64::from(len);
        Dispatch { launch, shape: words([len]), bytes_read: 2 * bytes, bytes_written: bytes }
    }
}
