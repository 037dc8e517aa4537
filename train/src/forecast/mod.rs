//! What a recipe will take before any of it is taken: memory by what it is for, bytes on the disk, arithmetic.
//!
//! Nothing is read but shapes. The decoder is carried out on sizes (`exec.rs`), with a tape (`tape.rs`) like the trainer's, on a heap
//! (`heap.rs`) with the habits of the allocator that the run will meet; `run.rs` goes through a run from its first file to its
//! checkpoint. Knows no clock. Invariant: a number here is a function of shapes, recipe and device alone; a test holds it to the
//! memory of a real run.

mod exec;
mod heap;
mod run;
mod shape;
mod step;
mod student;
mod tape;

use qat_infer::model::{Config, Role, params};

pub use heap::{Part, Peak};
pub use shape::{Shapes, pruned};

use self::{
    heap::Policy,
    run::Setting,
    step::Stepper,
    student::{SizedStudent, elements},
    tape::Tape,
};
use crate::{
    ops::gpu::Path,
    precision::Precision,
    recipe::{Plan, TeacherPlan},
    teacher_cache::Layout,
};

/// What the process holds beside all tensors, without what its threads have: the program, its tables, holes too small to be
/// used again. Measured on Linux: from 23 to 30 MiB in runs of 0.25 to 1.6 GiB.
const PROCESS: u64 = 26 << 20;
/// What each thread holds: a packed block of a matrix product, which is a part of the processor's second cache, and its stack.
/// Measured on Linux: from 0.2 to 1 MiB, with 1 to 32 threads.
const THREAD: u64 = 512 << 10;

/// Where a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A Mac's GPU, which shares the memory of the process.
    Metal,
    /// An NVIDIA GPU, with memory of its own.
    Cuda,
}

/// What a run will take. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Numbers that are trained, learned scales among them.
    pub trained: u64,
    /// Tokens of an optimizer step.
    pub step_tokens: u64,
    /// What the process holds beside tensors; none of it is the GPU's.
    pub beside: u64,
    /// The greatest moment where the tensors of training are: of the process, on an NVIDIA GPU of the GPU.
    pub peak: Peak,
    /// On an NVIDIA GPU, that of the process beside it.
    pub process: Option<Peak>,
    /// A checkpoint on the disk.
    pub checkpoint: u64,
    /// What the teacher's cache has of each token, and for all tokens of the run.
    pub cache: Option<[u64; 2]>,
    /// Floating-point operations of matrix products in a step, the teacher's among them.
    pub step_flop: f64,
    /// What was not counted.
    pub notes: Vec<&'static str>,
}

impl Forecast {
    /// What `plan` will take of models of these shapes, on `device`, of a processor with so many threads.
    pub fn new(plan: &Plan, shapes: &Shapes, device: Device, threads: usize) -> Self {
        let host =
            if cfg!(all(target_os = "linux", target_env = "gnu")) { Policy::BestFit } else { Policy::Exact };
        let (path, policies) = match device {
            Device::Cpu => (Path::Cpu, [host, Policy::Exact]),
            Device::Metal => (Path::Kernels, [Policy::Exact, Policy::PowersOfTwo]),
            Device::Cuda => (Path::Kernels, [host, Policy::Exact]),
        };
        let setting = Setting {
            plan,
            source: &shapes.source,
            student: &shapes.student,
            teacher: shapes.teacher.as_ref(),
            file_bytes: shapes.file_bytes,
            path,
            policies,
            threads: threads as u64,
        };
        let peaks = setting.peaks();
        let (peak, process) = match device {
            Device::Cpu => (peaks.host, None),
            Device::Metal => (peaks.both, None),
            Device::Cuda => (peaks.device, Some(peaks.host)),
        };
        let heap = heap::Heap::new(Policy::Exact, Policy::Exact);
        let student = SizedStudent::new(plan, &shapes.student, (&heap, &Tape::default(), Path::Cpu));
        let step_tokens =
            (plan.recipe.train.batch * plan.recipe.train.accumulate * plan.recipe.data.ctx) as u64;
        Self {
            trained: student.trained,
            step_tokens,
            beside: if device == Device::Cuda { 0 } else { PROCESS + threads as u64 * THREAD },
            peak,
            process,
            checkpoint: student.kept().sum(),
            cache: cache(plan, shapes.student.vocab_size, step_tokens),
            step_flop: step_flop(plan, shapes) * step_tokens as f64,
            notes: notes(plan, device),
        }
    }
}

/// Bytes of a token in the teacher's cache, and of all that the run sees (an upper bound: windows that it sees again are there once).
fn cache(plan: &Plan, vocab: usize, step_tokens: u64) -> Option<[u64; 2]> {
    let of_token =
        Layout { vocab, top_k: plan.cache.as_ref()?.top_k, temperature: 1.0 }.record_bytes() as u64;
    Some([of_token, of_token * step_tokens * plan.recipe.train.steps as u64])
}

/// Operations of the products for one token: two for each weight it meets forward and four backward; attention meets half of its
/// window on average.
fn step_flop(plan: &Plan, shapes: &Shapes) -> f64 {
    let ctx = plan.recipe.data.ctx;
    let student = &shapes.student;
    let again = if plan.recipe.train.checkpoint_layers { layers_flop(student, ctx) } else { 0.0 };
    let asked = Stepper::teaches(plan) && plan.cache.is_none();
    let teacher = match &plan.teacher {
        TeacherPlan::Latent => student,
        _ => shapes.teacher.as_ref().unwrap_or(&shapes.source),
    };
    let of_teacher = if asked { layers_flop(teacher, ctx) + head_flop(teacher) } else { 0.0 };
    3.0 * (layers_flop(student, ctx) + head_flop(student)) + again + of_teacher
}

fn layers_flop(config: &Config, ctx: usize) -> f64 {
    let projections: u64 = params(config).iter().filter(|p| p.role == Role::Projection).map(elements).sum();
    let attention = 2 * config.attention_layers() * config.q_size() * ctx;
    2.0 * projections as f64 + attention as f64
}

fn head_flop(config: &Config) -> f64 {
    2.0 * (config.vocab_size * config.hidden_size) as f64
}

fn notes(plan: &Plan, device: Device) -> Vec<&'static str> {
    let mut notes = Vec::new();
    if plan.precision == Precision::Bf16 && device == Device::Cpu {
        notes.push("train.precision = \"bf16\" is for GPUs, and refused on the CPU: counted in f32");
    }
    if plan.loss.features.is_some() {
        notes.push("loss.hidden and loss.relations: what they hold of one layer is not counted");
    }
    if plan.on_policy.is_some() {
        notes.push("loss.on_policy: the packed copy of the student that writes is not counted, nor is the time it takes");
    }
    if plan.quantization.start == crate::recipe::Rounding::Gptq {
        notes.push("quant.scales = \"gptq\": the activations of the calibration windows are not counted");
    }
    if plan.blocks.is_some() {
        notes.push("train.mode = \"blocks\": counted as if all layers were trained at once, but for the optimizer; it takes less");
    }
    notes
}
