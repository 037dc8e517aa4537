//! Carries work out on an NVIDIA GPU: the sources of the kernels are translated, compiled once in a process by NVRTC, and
//! launched on candle's stream. The only place that touches them.
//!
//! What it keeps to: one stream, on which everything happens in the order in which it was asked for. So nothing needs an event,
//! and memory that a tensor gives back is not used by others before the kernels that read it are through. [`Aside`] reads on another, of tensors
//! that it holds until it has.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Error, Result, Shape, Storage, Tensor,
    backend::BackendStorage as _,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::{
            driver::{
                CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, DevicePtr,
                DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
                result::{device::get_default_mem_pool, mem_pool},
                sys::CUmemPool_attribute as Attribute,
            },
            nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts},
        },
    },
    op::BackpropOp,
};
use half::bf16;

use super::{Bind, Task, Work, translate};

/// Opens the NVIDIA GPU number `nth`, counted from 0 over those that this process sees: where it sees one, that.
///
/// # Errors
/// No driver, or no device.
pub(crate) fn open(nth: usize) -> Result<Device> {
    let seen = CudaContext::device_count().w()?.max(1) as usize;
    // Without a stream of its own a device reads wrong values from another host thread.
    let device = Device::new_cuda_with_stream(nth % seen)?;
    #[expect(unsafe_code, reason = "events between streams are switched off")]
    // SAFETY: tensors are made, used and freed on one stream, the device's own; others wait for it, or it for them, where they read or write one.
    unsafe {
        device.as_cuda_device()?.disable_event_tracking();
    }
    // Otherwise all free memory goes back to the system whenever the host waits for the device, and is asked for anew.
    pool_attribute(device.as_cuda_device()?, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, Some(u64::MAX))?;
    Ok(device)
}

/// The most bytes that tensors have taken at a time.
///
/// # Errors
/// The driver failed.
pub(crate) fn peak_memory(device: &CudaDevice) -> Result<u64> {
    pool_attribute(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, None)
}

/// A number that the device's memory pool has; `set` first, where one is given.
fn pool_attribute(device: &CudaDevice, attribute: Attribute, set: Option<u64>) -> Result<u64> {
    let mut value = set.unwrap_or_default();
    let place = std::ptr::from_mut(&mut value).cast();
    #[expect(unsafe_code, reason = "the driver's own functions")]
    // SAFETY: the device's pool lives as long as its context; both attributes are numbers of 64 bits, and `place` has room for one.
    unsafe {
        let pool = get_default_mem_pool(device.cuda_stream().context().cu_device()).w()?;
        if set.is_some() {
            mem_pool::set_attribute(pool, attribute, place).w()?;
        } else {
            mem_pool::get_attribute(pool, attribute, place).w()?;
        }
    }
    Ok(value)
}

/// A stream beside the device's, for what the host wants to know while that one goes on.
#[derive(Debug)]
pub(super) struct Aside {
    stream: Arc<CudaStream>,
    main: Arc<CudaStream>,
}

impl Aside {
    /// Beside the stream of `device`.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let main = device.cuda_stream();
        Ok(Self { stream: main.context().new_stream().w()?, main })
    }
}

impl super::later::Aside for Aside {
    fn turn(&self) -> Result<()> {
        self.stream.join(&self.main).w()
    }

    fn read(&self, numbers: &Tensor) -> Result<Vec<f32>> {
        let found = flat(numbers, |numbers| self.stream.clone_dtoh(numbers).w())?;
        self.stream.synchronize().w()?;
        Ok(found)
    }
}

/// What `f` makes of the elements of `tensor`, contiguous f32.
///
/// # Errors
/// A tensor of another kind or elsewhere; that of `f`.
pub(crate) fn flat<R>(tensor: &Tensor, f: impl FnOnce(&CudaView<'_, f32>) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!(
            "want a contiguous tensor on CUDA, found {layout:?} at {:?}",
            tensor.device().location()
        )
    };
    f(&storage.as_cuda_slice::<f32>()?.slice(start..end))
}

/// Runs the tasks of `work` in their order.
pub(super) fn run(device: &CudaDevice, work: &Work, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let outputs = work.outputs.iter().map(|(shape, dtype)| Made::room(device, *dtype, shape.elem_count()));
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    {
        let held: Vec<_> = inputs.iter().map(|input| input.storage_and_layout()).collect();
        let stream = device.cuda_stream();
        let mut addresses = Addresses { operands: Vec::new(), results: Vec::new(), _held: Vec::new() };
        for (storage, layout) in &held {
            let Storage::Cuda(storage) = &**storage else {
                candle_core::bail!("want an operand on CUDA, found {:?}", storage.device().location())
            };
            let (start, sync) = match &storage.slice {
                CudaStorageSlice::F32(slice) => slice.device_ptr(&stream),
                CudaStorageSlice::U32(slice) => slice.device_ptr(&stream),
                CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream),
                _ => candle_core::bail!("want an operand in f32, bf16 or u32, found {:?}", storage.dtype()),
            };
            let offset = storage.dtype().size_in_bytes() * layout.start_offset();
            addresses.operands.push(start + offset as u64);
            addresses._held.push(sync);
        }
        for output in &outputs {
            let (start, sync) = match output {
                Made::F32(slice) => slice.device_ptr(&stream),
                Made::BF16(slice) => slice.device_ptr(&stream),
            };
            addresses.results.push(start);
            addresses._held.push(sync);
        }
        for task in &work.tasks {
            launch(device, task, &addresses)?;
        }
    }
    let tensor = |(made, (shape, _)): (Made, &(Shape, DType))| {
        let storage = match made {
            Made::F32(slice) => CudaStorage::wrap_cuda_slice(slice, device.clone()),
            Made::BF16(slice) => CudaStorage::wrap_cuda_slice(slice, device.clone()),
        };
        Tensor::from_storage(Storage::Cuda(storage), shape.clone(), BackpropOp::none(), false)
    };
    Ok(outputs.into_iter().zip(&work.outputs).map(tensor).collect())
}

/// Memory of a result.
enum Made {
    F32(CudaSlice<f32>),
    BF16(CudaSlice<bf16>),
}

impl Made {
    fn room(device: &CudaDevice, dtype: DType, elements: usize) -> Result<Self> {
        let elements = elements.max(1);
        #[expect(unsafe_code, reason = "memory that holds leftovers")]
        // SAFETY: any bits are an f32 or a bf16, and nothing but the kernels reads them before they have written them.
        unsafe {
            match dtype {
                DType::F32 => device.alloc(elements).map(Self::F32),
                DType::BF16 => device.alloc(elements).map(Self::BF16),
                other => candle_core::bail!("want a result in f32 or bf16, found {other:?}"),
            }
        }
    }
}

/// Where operands and results begin on the device.
struct Addresses<'a> {
    operands: Vec<u64>,
    results: Vec<u64>,
    _held: Vec<SyncOnDrop<'a>>,
}

impl Addresses<'_> {
    fn of(&self, bind: Bind) -> u64 {
        match bind {
            Bind::Nothing => 0,
            Bind::Input(i) | Bind::InOut(i) => self.operands[i],
            Bind::Output(o) | Bind::Made(o) => self.results[o],
        }
    }
}

/// A kernel's `Shape`, passed by value: the driver reads as many words of it as the kernel declares.
#[repr(transparent)]
struct Words([u32; Self::MOST]);

impl Words {
    const MOST: usize = 16;
}

#[expect(unsafe_code, reason = "what may be passed to a kernel")]
// SAFETY: plain numbers without padding.
unsafe impl DeviceRepr for Words {}

fn launch(device: &CudaDevice, task: &Task, addresses: &Addresses) -> Result<()> {
    let function = function(device, task)?;
    let mut words = Words([0; Words::MOST]);
    let Some(used) = words.0.get_mut(..task.shape.len()) else {
        candle_core::bail!("{}: a shape of {} words", task.kernel, task.shape.len())
    };
    used.copy_from_slice(&task.shape);
    let binds: Vec<u64> = task.binds.iter().map(|bind| addresses.of(*bind)).collect();
    let stream = device.cuda_stream();
    let mut arguments = stream.launch_builder(&function);
    for bind in &binds {
        arguments.arg(bind);
    }
    arguments.arg(&words);
    let [width, height, depth] = task.groups;
    let grid = LaunchConfig {
        grid_dim: (width, height, depth),
        block_dim: (task.threads, 1, 1),
        shared_mem_bytes: 0,
    };
    #[expect(unsafe_code, reason = "a kernel is launched")]
    // SAFETY: the entry takes the buffers in the order of `binds`, then its shape of at most `Words::MOST` words; the buffers are
    // alive and as large as the operation says, which the emulator holds every kernel to, byte by byte.
    unsafe { arguments.launch(grid) }.w()?;
    Ok(())
}

/// Everything compiled so far in this process.
static COMPILED: Mutex<Compiled> =
    Mutex::new(Compiled { modules: BTreeMap::new(), functions: BTreeMap::new() });

struct Compiled {
    /// By device and library.
    modules: BTreeMap<(usize, &'static str), Arc<CudaModule>>,
    /// By device, library and kernel.
    functions: BTreeMap<(usize, &'static str, &'static str), CudaFunction>,
}

fn function(device: &CudaDevice, task: &Task) -> Result<CudaFunction> {
    let stream = device.cuda_stream();
    let (id, library) = (stream.context().ordinal(), task.library.name);
    // What is behind the lock is whole at any time: entries are added when they are finished.
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = compiled.functions.get(&(id, library, task.kernel)) {
        return Ok(function.clone());
    }
    let module = match compiled.modules.get(&(id, library)) {
        Some(module) => module.clone(),
        None => {
            let ptx = compile_ptx_with_opts(translate::translate(task.library.source)?, options(library));
            let ptx = ptx.map_err(|e| refused(library, e))?;
            let module = stream.context().load_module(ptx).w()?;
            compiled.modules.insert((id, library), module.clone());
            module
        }
    };
    let function = module.load_function(&translate::entry_name(task.kernel)).w()?;
    compiled.functions.insert((id, library, task.kernel), function.clone());
    Ok(function)
}

/// Exact arithmetic: a weight must come out on the grid that ships, and NaN must stay NaN.
fn options(library: &'static str) -> CompileOptions {
    CompileOptions {
        ftz: Some(false),
        prec_sqrt: Some(true),
        prec_div: Some(true),
        fmad: Some(false),
        // The oldest processor with the products that training uses; the driver translates for the one that is there.
        arch: Some("compute_80"),
        name: Some(library.to_owned()),
        options: vec!["--device-as-default-execution-space".to_owned(), "--std=c++17".to_owned()],
        ..CompileOptions::default()
    }
}

fn refused(library: &str, error: CompileError) -> Error {
    let log = match &error {
        CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
        other => format!("{other:?}"),
    };
    Error::Msg(format!("CUDA: library {library:?} can't be compiled: {log}")).bt()
}
