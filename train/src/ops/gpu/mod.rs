//! Work for a GPU as plain data: which kernels run, over how many threads, on which tensors.
//!
//! This side is compiled everywhere and knows no device; [`Work::run`] hands the work to Metal on a Mac, to CUDA where that is
//! built in, and in tests to an emulator on the host. The kernels are written once, in Metal's language, of which CUDA's
//! is made (`translate.rs`). Tensors are f32 or u32 and contiguous. Invariant: a source needs no file beside it; the
//! string that is compiled for the chip is the one that tests run.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod host;
mod later;
#[cfg(target_os = "macos")]
mod metal;
#[cfg(any(feature = "cuda", test))]
mod translate;

use std::rc::Rc;

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
pub(crate) use qat_quant::kernels::metal::Library;

pub(crate) use self::later::{Later, Reader};
pub(crate) use super::tape::{Backward, attach};

/// The library of the `.metal` file at `path`, relative to the file that says so; `common` is the way to `ops/gpu/common.metal`.
macro_rules! library {
    ($name:literal, $common:literal, $path:literal) => {
        $crate::ops::gpu::Library {
            name: concat!("train_", $name),
            source: concat!(include_str!($common), "\n", include_str!($path)),
        }
    };
}
pub(crate) use library;

/// The same source once for each type that its `Element` can be.
macro_rules! typed {
    ($name:literal, $common:literal, $path:literal) => {
        $crate::ops::gpu::Typed {
            f32: $crate::ops::gpu::Library {
                name: concat!("train_", $name),
                source: concat!(include_str!($common), "\ntypedef float Element;\n", include_str!($path)),
            },
            bf16: $crate::ops::gpu::Library {
                name: concat!("train_", $name, "_bf16"),
                source: concat!(include_str!($common), "\ntypedef bfloat Element;\n", include_str!($path)),
            },
        }
    };
}
pub(crate) use typed;

/// Sums of partial results.
pub(crate) const SUM: Typed = typed!("sum", "common.metal", "sum.metal");

/// A library whose kernels read and write activations of one type, chosen when they are compiled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Typed {
    pub f32: Library,
    pub bf16: Library,
}

impl Typed {
    /// The library whose `Element` is a `dtype`.
    ///
    /// # Errors
    /// Neither f32 nor bf16.
    pub fn of(self, dtype: DType) -> Result<Library> {
        match dtype {
            DType::F32 => Ok(self.f32),
            DType::BF16 => Ok(self.bf16),
            other => Err(Error::UnsupportedDTypeForOp(other, self.f32.name).bt()),
        }
    }
}

/// Threads of a threadgroup: within what every pipeline allows on every GPU.
const THREADS: usize = 256;

/// Threads of a simdgroup.
const SIMDGROUP: usize = 32;

/// Which implementation of an operation a device calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// A fused pass on the CPU.
    Cpu,
    /// Kernels of our own.
    Kernels,
}

/// Between layers that are made again, and chunks of logits: Metal is waited for, because candle gives the buffers that were let go of back only then. Until
/// then whoever wants a small one takes a large one that is free, and keeps it.
///
/// # Errors
/// The device failed.
pub(crate) fn settle(device: &Device) -> Result<()> {
    if device.is_metal() { device.synchronize() } else { Ok(()) }
}

/// The implementation for tensors on `device`.
pub(crate) fn path(device: &Device) -> Path {
    match device {
        #[cfg(test)]
        Device::Cpu if host::is_emulating() => Path::Kernels,
        Device::Cpu => Path::Cpu,
        Device::Metal(_) | Device::Cuda(_) => Path::Kernels,
    }
}

/// What is bound at one place of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bind {
    /// Nothing: a place that this kernel doesn't read.
    Nothing,
    /// An operand, read.
    Input(usize),
    /// An operand, read and written.
    InOut(usize),
    /// A result, written; uninitialised before.
    Output(usize),
    /// A result that an earlier task has written, read.
    Made(usize),
}

/// The threads of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    /// One thread an element.
    Each(usize),
    /// One thread an element of `rows` rows of `width`: x runs along a row.
    Plane { rows: usize, width: usize },
    /// One threadgroup for each of `rows` rows of `width`.
    Rows { rows: usize, width: usize },
    /// One simdgroup an item.
    Simdgroups(usize),
    /// One threadgroup for 32 columns.
    Columns(usize),
}

impl Grid {
    /// Threadgroups, and threads of each.
    fn size(self) -> Result<([u32; 3], u32)> {
        let (groups, threads) = match self {
            Self::Each(n) => ([n.div_ceil(THREADS), 1, 1], THREADS),
            Self::Plane { rows, width } => {
                let threads = width.next_multiple_of(SIMDGROUP).min(THREADS);
                ([width.div_ceil(threads), rows, 1], threads)
            }
            // Four elements a thread, where a row is short.
            Self::Rows { rows, width } => {
                ([rows, 1, 1], width.div_ceil(4).next_multiple_of(SIMDGROUP).min(THREADS))
            }
            Self::Simdgroups(n) => ([n.div_ceil(THREADS / SIMDGROUP), 1, 1], THREADS),
            Self::Columns(n) => ([n.div_ceil(SIMDGROUP), 1, 1], THREADS),
        };
        Ok(([word(groups[0])?, word(groups[1])?, word(groups[2])?], word(threads)?))
    }
}

/// One kernel to run.
#[cfg_attr(
    not(any(test, target_os = "macos", feature = "cuda")),
    expect(dead_code, reason = "read by a GPU's side")
)]
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Where its source is.
    pub library: Library,
    /// Its `host_name`.
    pub kernel: &'static str,
    /// Threadgroups.
    pub groups: [u32; 3],
    /// Threads of a threadgroup.
    pub threads: u32,
    /// What is bound at places 0, 1, …; the shape follows at the next one.
    pub binds: Vec<Bind>,
    /// The kernel's `Shape`, whose fields have four bytes each.
    pub shape: Vec<u32>,
}

/// Kernels that run one after the other, and the tensors that they make.
#[derive(Debug, Default)]
pub(crate) struct Work {
    outputs: Vec<(Shape, DType)>,
    tasks: Vec<Task>,
}

impl Work {
    /// Room for a result of `shape` in f32, or other numbers as wide, for [`Bind::Output`].
    pub fn output(&mut self, shape: impl Into<Shape>) -> usize {
        self.output_in(DType::F32, shape)
    }

    /// Room for a result of `shape` that is f32 or bf16.
    pub fn output_in(&mut self, dtype: DType, shape: impl Into<Shape>) -> usize {
        self.outputs.push((shape.into(), dtype));
        self.outputs.len() - 1
    }

    /// Room for a result like `x`.
    pub fn output_like(&mut self, x: &Tensor) -> usize {
        self.output_in(x.dtype(), x.shape())
    }

    /// Adds a task; `shape` are the fields of the kernel's `Shape`.
    ///
    /// # Errors
    /// More threads than a 32-bit index can tell apart.
    pub fn add<const N: usize>(
        &mut self,
        library: Library,
        kernel: &'static str,
        grid: Grid,
        binds: [Bind; N],
        shape: &[u32],
    ) -> Result<()> {
        let (groups, threads) = grid.size()?;
        if groups.contains(&0) {
            // Nothing to do, which Metal refuses to be told.
            return Ok(());
        }
        self.tasks.push(Task {
            library,
            kernel,
            groups,
            threads,
            binds: binds.to_vec(),
            shape: shape.to_vec(),
        });
        Ok(())
    }

    /// Carries the work out on the device of `inputs` and returns all results, as many as there are.
    ///
    /// # Errors
    /// An operand that is not f32, bf16 or u32 or not contiguous, a device out of memory, a kernel that doesn't compile.
    pub fn run<const OUT: usize>(self, name: &'static str, inputs: &[&Tensor]) -> Result<[Tensor; OUT]> {
        <[Tensor; OUT]>::try_from(self.run_all(name, inputs)?)
            .map_err(|made| Error::Msg(format!("{name}: want {OUT} results, found {}", made.len())).bt())
    }

    /// As [`Self::run`], where their number depends on the operands.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_all(self, name: &'static str, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        for input in inputs {
            if !matches!(input.dtype(), DType::F32 | DType::BF16 | DType::U32) {
                return Err(Error::UnsupportedDTypeForOp(input.dtype(), name).bt());
            }
            if !input.is_contiguous() {
                return Err(Error::RequiresContiguous { op: name }.bt());
            }
        }
        match inputs.first().map_or(&Device::Cpu, |input| input.device()) {
            #[cfg(target_os = "macos")]
            Device::Metal(device) => metal::run(device, &self, inputs),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::run(device, &self, inputs),
            #[cfg(test)]
            Device::Cpu => host::run(&self, inputs),
            other => candle_core::bail!("{name}: want tensors on a GPU, found {:?}", other.location()),
        }
    }
}

/// Who reads from `device` while it goes on, where that can be had.
fn aside(device: &Device) -> Result<Option<Rc<dyn later::Aside>>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Some(Rc::new(cuda::Aside::new(device)?))),
        _ => Ok(None),
    }
}

/// `n` as a kernel's index.
///
/// # Errors
/// A number of 2³² or more.
pub(crate) fn word(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| {
        Error::Msg(format!("{n} elements are more than a kernel can count (2³²): use a smaller micro-batch"))
            .bt()
    })
}
