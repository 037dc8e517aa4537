//! Carries work out on an Apple GPU, over candle's device, buffers and command encoder. The only place that touches them.
//!
//! What it keeps to, because candle's buffers are untracked: whatever a kernel writes is bound as an output, so that the
//! encoder puts a barrier before its next reader; pipelines are compiled and buffers made before the encoder's guard is
//! taken, which holds the device's mutex, and no tensor operation runs under it. Fresh buffers hold leftovers of others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Error, MetalDevice, MetalStorage, Result, Shape, Storage, Tensor, op::BackpropOp};
use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder, ComputePipeline, Library};
use objc2::{available, rc::Retained};
use objc2_metal::{MTLCompileOptions, MTLMathFloatingPointFunctions, MTLMathMode, MTLSize};

use super::{Bind, Task, Work};

/// Runs the tasks of `work` in their order, in one encoder.
pub(super) fn run(device: &MetalDevice, work: &Work, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let inputs = inputs.iter().map(|input| Operand::of(input)).collect::<Result<Vec<_>>>()?;
    let outputs = work.outputs.iter().map(|(shape, dtype)| {
        device.new_buffer_builder().with_size_for(shape.elem_count().max(1), *dtype).build()
    });
    let outputs = outputs.collect::<Result<Vec<Arc<Buffer>>>>()?;
    let pipelines = work.tasks.iter().map(|task| pipeline(device, task)).collect::<Result<Vec<_>>>()?;
    {
        let guard = device.command_encoder()?;
        for (task, pipeline) in work.tasks.iter().zip(&pipelines) {
            encode(guard.as_ref(), task, pipeline, &inputs, &outputs);
        }
    }
    let tensor = |(buffer, (shape, dtype)): (Arc<Buffer>, &(Shape, DType))| {
        let storage = MetalStorage::new(buffer, device.clone(), shape.elem_count(), *dtype);
        Tensor::from_storage(Storage::Metal(storage), shape.clone(), BackpropOp::none(), false)
    };
    Ok(outputs.into_iter().zip(&work.outputs).map(tensor).collect())
}

/// Where an operand begins.
struct Operand {
    buffer: Buffer,
    /// In bytes.
    offset: usize,
}

impl Operand {
    fn of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Metal(storage) = &*storage else {
            candle_core::bail!("want an operand on Metal, found {:?}", tensor.device().location())
        };
        let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
        Ok(Self { buffer: storage.buffer().clone(), offset })
    }
}

fn encode(
    encoder: &ComputeCommandEncoder,
    task: &Task,
    pipeline: &ComputePipeline,
    inputs: &[Operand],
    outputs: &[Arc<Buffer>],
) {
    encoder.set_compute_pipeline_state(pipeline);
    for (place, bind) in task.binds.iter().enumerate() {
        match *bind {
            Bind::Nothing => {}
            Bind::Input(i) => encoder.set_input_buffer(place, Some(&inputs[i].buffer), inputs[i].offset),
            Bind::InOut(i) => encoder.set_output_buffer(place, Some(&inputs[i].buffer), inputs[i].offset),
            Bind::Output(o) => encoder.set_output_buffer(place, Some(&outputs[o]), 0),
            Bind::Made(o) => encoder.set_input_buffer(place, Some(&outputs[o]), 0),
        }
    }
    let shape = task.shape.as_slice();
    encoder.set_bytes_directly(task.binds.len(), size_of_val(shape), shape.as_ptr().cast());
    let [width, height, depth] = task.groups.map(|n| n as usize);
    let threads = MTLSize { width: task.threads as usize, height: 1, depth: 1 };
    encoder.dispatch_thread_groups(MTLSize { width, height, depth }, threads);
}

/// Everything compiled so far in this process, by device. candle's own cache takes only candle's own sources.
static COMPILED: Mutex<Compiled> =
    Mutex::new(Compiled { libraries: BTreeMap::new(), pipelines: BTreeMap::new() });

struct Compiled {
    /// By device and library.
    libraries: BTreeMap<(u64, &'static str), Library>,
    /// By device, library and kernel.
    pipelines: BTreeMap<(u64, &'static str, &'static str), ComputePipeline>,
}

fn pipeline(device: &MetalDevice, task: &Task) -> Result<ComputePipeline> {
    let metal = device.metal_device();
    let (id, name) = (metal.registry_id(), task.library.name);
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        Error::Msg(format!("Metal: {what} {:?} of {name:?} can't be compiled: {e}", task.kernel)).bt()
    };
    // What is behind the lock is whole at any time: entries are added when they are finished.
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipeline) = compiled.pipelines.get(&(id, name, task.kernel)) {
        return Ok(pipeline.clone());
    }
    let library = match compiled.libraries.get(&(id, name)) {
        Some(library) => library.clone(),
        None => {
            let library = metal.new_library_with_source(task.library.source, Some(&options()));
            let library = library.map_err(|e| failed("the library for kernel", &e))?;
            compiled.libraries.insert((id, name), library.clone());
            library
        }
    };
    let function = library.get_function(task.kernel, None).map_err(|e| failed("kernel", &e))?;
    let pipeline = metal.new_compute_pipeline_state_with_function(&function);
    let pipeline = pipeline.map_err(|e| failed("kernel", &e))?;
    compiled.pipelines.insert((id, name, task.kernel), pipeline.clone());
    Ok(pipeline)
}

/// Exact arithmetic: a weight must come out on the grid that ships, and NaN must stay NaN.
fn options() -> Retained<MTLCompileOptions> {
    let options = MTLCompileOptions::new();
    if available!(macos = 15, ios = 18) {
        options.setMathMode(MTLMathMode::Safe);
        options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
    } else {
        #[expect(deprecated, reason = "what there was before macOS 15")]
        options.setFastMathEnabled(false);
    }
    options
}
