//! Runs unmodified Metal kernels on the processor, for tests on machines without an Apple GPU.
//!
//! A kernel's source is translated to C++ (`source/`), compiled with clang against headers that stand in for Metal's standard
//! library (`shim/`, `compile.rs`), loaded (`module.rs`) and run with every GPU thread as a coroutine (`engine/`).
//!
//! Not faithful: the order of sums in simd reductions and matrix products, the accuracy of `fast::` functions, which products and
//! sums are fused, and Metal's weak order of memory; textures are missing. What it says about values holds within tolerances;
//! what it says about bounds, races and barriers holds for the threads and inputs of that run.

#![warn(missing_docs)]

mod error;
mod mutation;
mod report;
mod verify;

// On a Mac its own GPU takes the emulator's place.
#[cfg(target_os = "macos")]
mod chip;

#[cfg(not(target_os = "macos"))]
mod compile;
#[cfg(not(target_os = "macos"))]
#[expect(unsafe_code, reason = "kernels work on raw memory, and call back from stacks of their own")]
mod engine;
#[cfg(not(target_os = "macos"))]
mod library;
#[cfg(not(target_os = "macos"))]
#[expect(unsafe_code, reason = "calls functions of compiled libraries")]
mod module;
#[cfg(not(target_os = "macos"))]
mod random;
#[cfg(not(target_os = "macos"))]
mod source;
#[cfg(not(target_os = "macos"))]
mod swizzles;
#[cfg(not(target_os = "macos"))]
#[expect(unsafe_code, reason = "asks the loader where an instruction comes from")]
mod symbols;

#[cfg(target_os = "macos")]
use chip::usable;
#[cfg(not(target_os = "macos"))]
use compile::usable;

#[cfg(target_os = "macos")]
pub use chip::Library;
pub use error::{Error, Kind, Violation};
#[cfg(not(target_os = "macos"))]
pub use library::Library;
pub use report::{Report, Traffic};
pub use verify::{Buffer, verify};

/// A function constant's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Constant {
    /// `bool`.
    Bool(bool),
    /// `uint`, or any other integer that holds it.
    U32(u32),
    /// `float`.
    F32(f32),
}

/// What is asked of the GPU, but for the buffers.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the kernel, as `[[host_name]]` has it.
    pub kernel: &'a str,
    /// Function constants, by index.
    pub constants: &'a [(u16, Constant)],
    /// Threadgroups in each direction.
    pub groups: [u32; 3],
    /// Threads of a threadgroup in each direction, 1 to 1024 together.
    pub threads: [u32; 3],
    /// Bytes for each `[[threadgroup(i)]]`.
    pub threadgroup_bytes: &'a [u32],
}

/// A buffer of a run; its place in the list is its index.
#[derive(Debug)]
pub enum Arg<'a> {
    /// Not bound. A kernel that touches it is out of bounds.
    None,
    /// To be read.
    In(&'a [u8]),
    /// To be read, at an address that is a multiple of this power of two and of none larger (others are at multiples of 16).
    InAt(&'a [u8], usize),
    /// To be written; what is in it beforehand is not seen, and reading it is a violation.
    Out(&'a mut [u8]),
    /// To be read and written.
    InOut(&'a mut [u8]),
}

/// How a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Build {
    /// As C++ has it: no reordering, no fusing.
    Value,
    /// The same arithmetic, each access to memory looked at.
    Checked,
    /// What a compiler may make of floats under Metal's fast math, products and sums fused.
    FastMath,
}

/// In what order threadgroups, and threads in each, get their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By their index.
    Forward,
    /// Last one first.
    Reverse,
    /// Shuffled with a seed.
    Random(u64),
}

/// How a kernel is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// How it is compiled.
    pub build: Build,
    /// Who gets the first turn.
    pub order: Order,
    /// Whether sums over lanes and inside matrix products are taken in another order.
    pub shuffled: bool,
}

impl Mode {
    /// Values in forward order.
    pub const VALUE: Self = Self { build: Build::Value, order: Order::Forward, shuffled: false };
    /// Checks in forward order.
    pub const CHECKED: Self = Self { build: Build::Checked, order: Order::Forward, shuffled: false };

    /// Every mode in which a kernel should be seen: checks (which tell most, and so come first), values in three orders, fast
    /// math, other sums.
    pub const ALL: [Self; 6] = [
        Self::CHECKED,
        Self::VALUE,
        Self { order: Order::Reverse, ..Self::VALUE },
        Self { order: Order::Random(7), ..Self::VALUE },
        Self { build: Build::FastMath, ..Self::VALUE },
        Self { shuffled: true, ..Self::VALUE },
    ];
}

/// Whether kernels can be run here.
///
/// If not, says what to install and that the test was skipped; on Linux, where nothing may be skipped (`CI` or
/// `QAT_REQUIRE_METAL_HOST` is set), it panics instead.
pub fn available() -> bool {
    let Err(error) = usable() else { return true };
    let required = ["CI", "QAT_REQUIRE_METAL_HOST"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    assert!(!(required && cfg!(target_os = "linux")), "{error}");
    eprintln!("SKIPPED: {error}");
    false
}
