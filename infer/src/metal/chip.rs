//! An Apple GPU that carries lists out: one command buffer and one concurrent encoder a list, barriers where the list has
//! them.
//!
//! Thin: what to run, on what and in which order is the list's; here it is only said to Metal. Knows no model. Invariants:
//! the host touches a buffer only when nothing that was asked for is under way; the memory behind a buffer that was not
//! copied lives as long as the buffer.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use candle_metal_kernels::metal::{
    Buffer as MetalBuffer, CommandBuffer, CommandQueue, ComputeCommandEncoder, ComputePipeline,
    Device as MetalDevice, Fence,
};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLCommandBufferStatus, MTLCommandQueue as _, MTLCompileOptions, MTLDataType, MTLDevice as _,
    MTLFunctionConstantValues, MTLGPUFamily, MTLLibrary, MTLResourceOptions, MTLSize,
};

use super::buffers::{Buffer, Content};
use super::device::Device;
use super::list::{Argument, BufferId, Call, List};
use super::{Constant, Launch, library};
use crate::files::Bytes;
use crate::{Error, Result};

/// Threadgroup memory of every GPU of the family that is asked for, in bytes.
const THREADGROUP_BYTES: u32 = 32 << 10;
/// Pages of memory on Apple Silicon.
const PAGE: usize = 16 << 10;

/// The GPU and what was made for it.
pub struct Chip {
    device: MetalDevice,
    queue: CommandQueue,
    fence: Arc<Fence>,
    buffers: Vec<MetalBuffer>,
    /// What buffers that were not copied lie on.
    weights: Vec<Bytes>,
    libraries: BTreeMap<&'static str, Retained<ProtocolObject<dyn MTLLibrary>>>,
    pipelines: BTreeMap<Specialized, ComputePipeline>,
    /// The work that was asked for last.
    under_way: Option<CommandBuffer>,
}

/// Library, kernel and the values of its constants.
type Specialized = (&'static str, &'static str, Vec<(u16, u64)>);

/// A call with its kernel compiled and its buffers found.
pub struct Ready {
    pipeline: ComputePipeline,
    bindings: Vec<(usize, Bound)>,
    groups: MTLSize,
    threads: MTLSize,
    threadgroup_bytes: usize,
    barrier: bool,
}

enum Bound {
    Buffer(MetalBuffer, usize),
    Bytes(Vec<u8>),
}

/// What a GPU is, for people.
#[derive(Debug, Clone)]
pub struct Description {
    /// As the system calls it.
    pub name: String,
    /// Its architecture, such as `applegpu_g13g`.
    pub architecture: String,
    /// The newest of the families that kernels may ask for (`apple7` is M1 and A14).
    pub family: Option<u32>,
    /// Bytes that it works on best at a time.
    pub working_set: u64,
    /// Most bytes of one buffer.
    pub longest_buffer: u64,
}

impl Chip {
    /// This machine's GPU.
    ///
    /// # Errors
    /// When there is none, or it is of a family without the simdgroup operations that the kernels are made of.
    pub fn open() -> Result<Self> {
        let device = default_device()?;
        let description = describe(&device);
        if description.family.is_none() {
            return Err(Error::Invalid(format!(
                "Metal: {} is of a family before Apple 7 (M1, A14), which lacks the simdgroup operations that the \
                 kernels use; use --device cpu",
                description.name
            )));
        }
        let queue = device.new_command_queue().map_err(|e| failed("a command queue", &e))?;
        let fence = Arc::new(Fence::new(&device));
        Ok(Self {
            device,
            queue,
            fence,
            buffers: Vec::new(),
            weights: Vec::new(),
            libraries: BTreeMap::new(),
            pipelines: BTreeMap::new(),
            under_way: None,
        })
    }

    /// What this machine's GPU is, usable or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn describe() -> Result<Description> {
        default_device().map(|device| describe(&device))
    }

    /// Waits until all that was asked for is done.
    fn wait(&mut self) -> Result<()> {
        let Some(work) = self.under_way.take() else { return Ok(()) };
        work.wait_until_completed();
        if work.status() == MTLCommandBufferStatus::Error {
            let cause = work.error().map_or("no reason was given".to_owned(), |e| e.into_owned());
            return Err(Error::Invalid(format!(
                "the GPU stopped: {cause}; if it ran out of memory, choose a shorter context or --device cpu"
            )));
        }
        Ok(())
    }

    /// `len` bytes of a buffer from `offset` on.
    fn place(&self, buffer: BufferId, offset: u64, len: usize) -> Result<NonNull<u8>> {
        let found = self
            .buffers
            .get(buffer.0)
            .filter(|found| usize::try_from(offset).is_ok_and(|at| at.saturating_add(len) <= found.length()));
        let found = found.ok_or_else(|| {
            Error::Invalid(format!(
                "{len} bytes at {offset} of buffer {} of the GPU, which ends before",
                buffer.0
            ))
        })?;
        let start = NonNull::new(found.contents()).ok_or_else(|| {
            Error::Invalid(format!("buffer {} of the GPU is not the host's to see", buffer.0))
        })?;
        #[expect(unsafe_code, reason = "the memory of a buffer is told as an address")]
        // SAFETY: inside the buffer by the check above.
        Ok(unsafe { start.add(offset as usize) })
    }

    /// A buffer over mapped pages, which are not copied.
    fn over(&mut self, bytes: &Bytes) -> Result<MetalBuffer> {
        let start = NonNull::new(bytes.as_ptr().cast_mut().cast::<c_void>());
        let start = start.filter(|start| start.addr().get().is_multiple_of(PAGE) && !bytes.is_empty());
        let Some(start) = start else { return self.copy_of(bytes) };
        #[expect(unsafe_code, reason = "a buffer over memory that exists already")]
        // SAFETY: a map covers its last page whole, and is kept in `weights` for as long as the buffers live. No kernel
        // is bound to write there.
        let buffer = unsafe {
            self.device.as_ref().newBufferWithBytesNoCopy_length_options_deallocator(
                start,
                bytes.len().next_multiple_of(PAGE),
                MTLResourceOptions::StorageModeShared,
                None,
            )
        };
        match buffer {
            Some(buffer) => {
                self.weights.push(bytes.clone());
                Ok(MetalBuffer::new(buffer))
            }
            None => self.copy_of(bytes),
        }
    }

    fn copy_of(&self, bytes: &Bytes) -> Result<MetalBuffer> {
        let (start, options) = (bytes.as_ptr().cast(), MTLResourceOptions::StorageModeShared);
        self.device
            .new_buffer_with_data(start, bytes.len(), options)
            .map_err(|e| failed("a buffer of weights", &e))
    }

    fn pipeline(&mut self, launch: &Launch) -> Result<ComputePipeline> {
        let constants: Vec<(u16, u64)> =
            launch.constants.iter().map(|(place, value)| (*place, key(*value))).collect();
        let key = (launch.library, launch.kernel, constants);
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let function = self
            .compiled(launch.library)?
            .newFunctionWithName_constantValues_error(&NSString::from_str(launch.kernel), &values(launch))
            .map_err(|e| failed(&format!("the kernel {}", launch.kernel), &e))?;
        let pipeline = self.device.as_ref().newComputePipelineStateWithFunction_error(&function);
        let pipeline =
            ComputePipeline::new(pipeline.map_err(|e| failed(&format!("the kernel {}", launch.kernel), &e))?);
        let threads: u32 = launch.threads.iter().product();
        let most = pipeline.max_total_threads_per_threadgroup();
        if threads as usize > most || launch.threadgroup_bytes > THREADGROUP_BYTES {
            return Err(Error::Invalid(format!(
                "Metal: {} wants {threads} threads and {} bytes of threadgroup memory; this GPU gives it {most} and \
                 {THREADGROUP_BYTES}; use --device cpu",
                launch.kernel, launch.threadgroup_bytes
            )));
        }
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn compiled(&mut self, name: &'static str) -> Result<&Retained<ProtocolObject<dyn MTLLibrary>>> {
        if !self.libraries.contains_key(name) {
            let source = library(name)
                .ok_or_else(|| Error::Invalid(format!("Metal: there is no library {name}")))?
                .source;
            let compiled = self
                .device
                .as_ref()
                .newLibraryWithSource_options_error(&NSString::from_str(source), Some(&exact()))
                .map_err(|e| failed(&format!("the library {name}"), &e))?;
            self.libraries.insert(name, compiled);
        }
        Ok(&self.libraries[name])
    }

    fn ready(&mut self, call: &Call) -> Result<Ready> {
        let pipeline = self.pipeline(&call.launch)?;
        let bound = |argument: &Argument| match argument {
            Argument::Bytes(bytes) => Bound::Bytes(bytes.clone()),
            Argument::Buffer { span, .. } => {
                Bound::Buffer(self.buffers[span.buffer.0].clone(), span.offset as usize)
            }
        };
        let bindings = call.bindings.iter().map(|b| (usize::from(b.place), bound(&b.argument))).collect();
        let size = |[width, height, depth]: [u32; 3]| MTLSize {
            width: width as usize,
            height: height as usize,
            depth: depth as usize,
        };
        Ok(Ready {
            pipeline,
            bindings,
            groups: size(call.launch.groups),
            threads: size(call.launch.threads),
            threadgroup_bytes: call.launch.threadgroup_bytes as usize,
            barrier: call.barrier,
        })
    }
}

impl Device for Chip {
    type List = Vec<Ready>;

    fn allocate(&mut self, buffers: &[Buffer]) -> Result<()> {
        self.wait()?;
        let longest = self.device.as_ref().maxBufferLength() as u64;
        for buffer in buffers {
            if buffer.bytes > longest {
                return Err(Error::Invalid(format!(
                    "{}: {} bytes; a buffer of this GPU has at most {longest}; choose a shorter context or a smaller \
                     format, or --device cpu",
                    buffer.name, buffer.bytes
                )));
            }
            let made = match &buffer.content {
                Content::Weights(bytes) if bytes.is_mapped() => self.over(bytes)?,
                Content::Weights(bytes) => self.copy_of(bytes)?,
                // Metal has no buffer of nothing.
                Content::Constants | Content::Blank => self
                    .device
                    .new_buffer(buffer.bytes.max(1) as usize, MTLResourceOptions::StorageModeShared)
                    .map_err(|e| failed(&format!("{} of {} bytes", buffer.name, buffer.bytes), &e))?,
            };
            made.set_label(&buffer.name);
            self.buffers.push(made);
        }
        Ok(())
    }

    fn prepare(&mut self, list: &List) -> Result<Vec<Ready>> {
        autoreleasepool(|_| list.calls().iter().map(|call| self.ready(call)).collect())
    }

    fn write(&mut self, buffer: BufferId, offset: u64, bytes: &[u8]) -> Result<()> {
        self.wait()?;
        let place = self.place(buffer, offset, bytes.len())?;
        #[expect(unsafe_code, reason = "the memory of a buffer is told as an address")]
        // SAFETY: `place` has that many bytes; the GPU is at rest, and `self` is borrowed by this call alone.
        unsafe {
            place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        Ok(())
    }

    fn run(&mut self, list: &Vec<Ready>) -> Result<()> {
        autoreleasepool(|_| {
            let commands = self.queue.commandBuffer();
            let commands =
                CommandBuffer::new(commands.ok_or_else(|| failed("a command buffer", &"none is left"))?);
            let encoder = commands.compute_command_encoder(&self.fence);
            for call in list {
                encode(&encoder, call);
            }
            encoder.end_encoding();
            commands.commit();
            // Buffers of one queue are carried out in their order: waiting for the last is waiting for all.
            self.under_way = Some(commands);
            Ok(())
        })
    }

    fn read(&mut self, buffer: BufferId, offset: u64, out: &mut [u8]) -> Result<()> {
        self.wait()?;
        let place = self.place(buffer, offset, out.len())?;
        #[expect(unsafe_code, reason = "the memory of a buffer is told as an address")]
        // SAFETY: `place` has that many bytes, which nobody writes while the GPU is at rest.
        unsafe {
            place.copy_to_nonoverlapping(NonNull::from(&mut *out).cast(), out.len());
        }
        Ok(())
    }

    fn working_set_limit(&self) -> Option<u64> {
        Some(self.device.recommended_max_working_set_size() as u64)
    }
}

fn encode(encoder: &ComputeCommandEncoder, call: &Ready) {
    if call.barrier {
        encoder.insert_memory_barrier();
    }
    encoder.set_compute_pipeline_state(&call.pipeline);
    for (place, bound) in &call.bindings {
        match bound {
            // As inputs all: the encoder puts barriers of its own after outputs that it hears of, and the list has them.
            Bound::Buffer(buffer, offset) => encoder.set_input_buffer(*place, Some(buffer), *offset),
            Bound::Bytes(bytes) => encoder.set_bytes_directly(*place, bytes.len(), bytes.as_ptr().cast()),
        }
    }
    if call.threadgroup_bytes > 0 {
        encoder.set_threadgroup_memory_length(0, call.threadgroup_bytes);
    }
    encoder.dispatch_thread_groups(call.groups, call.threads);
}

fn default_device() -> Result<MetalDevice> {
    MetalDevice::system_default().ok_or_else(|| {
        Error::Invalid(
            "Metal: this machine has no GPU that Metal can use (a virtual machine has none); use --device cpu".into(),
        )
    })
}

fn describe(device: &MetalDevice) -> Description {
    let raw = device.as_ref();
    // Apple 7, the least that will do, and those after it, by the number of the family.
    let newest = (7..=12).filter(|n| raw.supportsFamily(MTLGPUFamily(1000 + n))).max();
    Description {
        name: raw.name().to_string(),
        architecture: device.architecture_name(),
        family: newest.map(|n| n as u32),
        working_set: device.recommended_max_working_set_size() as u64,
        longest_buffer: raw.maxBufferLength() as u64,
    }
}

fn failed(what: &str, cause: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("Metal: {what} can't be had: {cause}"))
}

/// Two constants have the same key exactly when they are the same.
fn key(constant: Constant) -> u64 {
    match constant {
        Constant::Bool(value) => u64::from(value),
        Constant::U32(value) => 1 << 32 | u64::from(value),
        Constant::F32(value) => 2 << 32 | u64::from(value.to_bits()),
    }
}

fn values(launch: &Launch) -> Retained<MTLFunctionConstantValues> {
    let values = MTLFunctionConstantValues::new();
    for (place, constant) in &launch.constants {
        let (value, kind): (NonNull<c_void>, _) = match constant {
            Constant::Bool(value) => (NonNull::from(value).cast(), MTLDataType::Bool),
            Constant::U32(value) => (NonNull::from(value).cast(), MTLDataType::UInt),
            Constant::F32(value) => (NonNull::from(value).cast(), MTLDataType::Float),
        };
        #[expect(unsafe_code, reason = "a constant is handed over by its address")]
        // SAFETY: the address is that of a value of the type that is named, which Metal copies.
        unsafe {
            values.setConstantValue_type_atIndex(value, kind, usize::from(*place));
        }
    }
    values
}

/// What the kernels' bounds are derived for: no reordering of sums, no approximate functions.
fn exact() -> Retained<MTLCompileOptions> {
    let options = MTLCompileOptions::new();
    #[expect(deprecated, reason = "its successor asks for macOS 15")]
    options.setFastMathEnabled(false);
    options
}
