//! Kernels on the Mac's own GPU: the same calls as the emulator has, so that the tests that use it are checks of the chip there.
//!
//! Each run has its own buffers and command buffer. What only the emulator can do is not done: the order of threads is the
//! chip's, the checking build is the value build and counts nothing, the lint is the compiler. Knows no test.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use objc2::{
    rc::{Retained, autoreleasepool},
    runtime::ProtocolObject,
};
use objc2_foundation::NSString;
use objc2_metal::{
    MTLBuffer, MTLCommandBuffer as _, MTLCommandBufferStatus, MTLCommandEncoder as _, MTLCommandQueue as _,
    MTLCompileOptions, MTLComputeCommandEncoder as _, MTLComputePipelineState, MTLCreateSystemDefaultDevice,
    MTLDataType, MTLDevice, MTLFunctionConstantValues, MTLGPUFamily, MTLLibrary, MTLResourceOptions, MTLSize,
};

use crate::{Arg, Build, Constant, Error, Launch, Mode, Report, mutation};

/// A device, or a library: Metal's own objects, which any thread may use.
struct Shared<T: ?Sized>(Retained<ProtocolObject<T>>);

#[expect(unsafe_code, reason = "Metal's documentation says so, its types don't")]
// SAFETY: devices and libraries are safe to use from several threads (Metal Programming Guide, "Metal objects and threads").
unsafe impl<T: ?Sized> Send for Shared<T> {}
#[expect(unsafe_code, reason = "Metal's documentation says so, its types don't")]
// SAFETY: as above.
unsafe impl<T: ?Sized> Sync for Shared<T> {}

/// The source of some kernels, compiled exactly, and with fast math once that is asked for.
#[derive(Clone)]
pub struct Library {
    name: String,
    source: Arc<str>,
    compiled: Arc<Mutex<BTreeMap<bool, Shared<dyn MTLLibrary>>>>,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Library").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether this machine has a GPU that kernels run on, or why not.
///
/// # Errors
/// When it has none, or one of a family without simdgroup sums and matrices.
pub(crate) fn usable() -> Result<(), Error> {
    let device = device()?;
    if device.0.supportsFamily(MTLGPUFamily::Apple7) {
        return Ok(());
    }
    Err(Error::Missing(format!("{} is of a family before Apple 7 (M1, A14)", device.0.name())))
}

fn device() -> Result<Shared<dyn MTLDevice>, Error> {
    let found = MTLCreateSystemDefaultDevice();
    found.map(Shared).ok_or_else(|| Error::Missing("this machine has no GPU that Metal can use".into()))
}

impl Library {
    /// Compiles `source` (Metal Shading Language).
    ///
    /// # Errors
    /// When there is no GPU, or its compiler refuses the source.
    pub fn new(name: &str, source: &str) -> Result<Self, Error> {
        let source = mutation::planted(name, source)?.into_owned();
        let library = Self { name: name.to_owned(), source: source.into(), compiled: Arc::default() };
        library.with(false, |_| Ok(()))?;
        Ok(library)
    }

    /// Names of the kernels.
    ///
    /// # Errors
    /// None that [`Library::new`] didn't have.
    pub fn kernel_names(&self) -> Result<Vec<String>, Error> {
        self.with(false, |library| Ok(library.functionNames().iter().map(|name| name.to_string()).collect()))
    }

    /// Compiles a kernel's library in a build, which [`Library::run`] would do by itself.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn compile(&self, _: &str, build: Build) -> Result<(), Error> {
        self.with(build == Build::FastMath, |_| Ok(()))
    }

    /// Nothing that compiling hasn't done.
    ///
    /// # Errors
    /// None.
    pub fn lint(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Runs a kernel. What it wrote is in `args` afterwards.
    ///
    /// # Errors
    /// When the launch doesn't fit the kernel, or the GPU stops.
    pub fn run(&self, mode: Mode, launch: &Launch, args: &mut [Arg]) -> Result<Report, Error> {
        let threads = std::array::from_fn(|i| launch.groups[i].saturating_mul(launch.threads[i]));
        self.run_threads(mode, launch, threads, args)
    }

    /// Runs a kernel over so many threads (`dispatchThreads`). `launch.groups` is not looked at.
    ///
    /// # Errors
    /// As [`Library::run`].
    pub fn run_threads(
        &self,
        mode: Mode,
        launch: &Launch,
        threads: [u32; 3],
        args: &mut [Arg],
    ) -> Result<Report, Error> {
        let refused = |message: String| Error::Launch { kernel: launch.kernel.to_owned(), message };
        autoreleasepool(|_| {
            let device = device()?;
            let pipeline = self.pipeline(&device, mode, launch)?;
            let buffers: Vec<_> = args.iter().map(|arg| placed(&device, arg)).collect();
            let queue = device.0.newCommandQueue().ok_or_else(|| refused("no command queue".into()))?;
            let commands = queue.commandBuffer().ok_or_else(|| refused("no command buffer".into()))?;
            let encoder = commands.computeCommandEncoder().ok_or_else(|| refused("no encoder".into()))?;
            encoder.setComputePipelineState(&pipeline);
            for (place, placed) in buffers.iter().enumerate() {
                let Some(Placed { buffer, offset }) = placed else { continue };
                #[expect(unsafe_code, reason = "Metal doesn't know how much a kernel reads")]
                // SAFETY: the offset is inside the buffer, and the place is one that tests bind on the emulator, which checks it.
                unsafe {
                    encoder.setBuffer_offset_atIndex(Some(buffer), *offset, place);
                }
            }
            for (index, bytes) in launch.threadgroup_bytes.iter().enumerate() {
                #[expect(unsafe_code, reason = "Metal doesn't know how much a kernel uses")]
                // SAFETY: an index and a length that the emulator accepts.
                unsafe {
                    encoder.setThreadgroupMemoryLength_atIndex(*bytes as usize, index);
                }
            }
            encoder.dispatchThreads_threadsPerThreadgroup(size(threads), size(launch.threads));
            encoder.endEncoding();
            commands.commit();
            commands.waitUntilCompleted();
            if commands.status() == MTLCommandBufferStatus::Error {
                let why = commands.error().map_or_else(String::new, |e| e.localizedDescription().to_string());
                return Err(refused(format!("the GPU stopped: {why}")));
            }
            args.iter_mut().zip(&buffers).for_each(|(arg, placed)| take_back(arg, placed.as_ref()));
            Ok(Report::default())
        })
    }

    /// Calls `f` with the library in one of its two builds.
    fn with<T>(
        &self,
        fast: bool,
        f: impl FnOnce(&ProtocolObject<dyn MTLLibrary>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(place) = compiled.entry(fast) {
            let options = MTLCompileOptions::new();
            #[expect(deprecated, reason = "its successor asks for macOS 15")]
            options.setFastMathEnabled(fast);
            let source = NSString::from_str(&self.source);
            let made = device()?.0.newLibraryWithSource_options_error(&source, Some(&options));
            let made = made.map_err(|e| Error::Compile {
                library: self.name.clone(),
                what: "the source".into(),
                log: e.localizedDescription().to_string(),
            })?;
            place.insert(Shared(made));
        }
        f(&compiled[&fast].0)
    }

    fn pipeline(
        &self,
        device: &Shared<dyn MTLDevice>,
        mode: Mode,
        launch: &Launch,
    ) -> Result<Retained<ProtocolObject<dyn MTLComputePipelineState>>, Error> {
        let refused = |e: &dyn std::fmt::Display| Error::Launch {
            kernel: launch.kernel.to_owned(),
            message: e.to_string(),
        };
        let name = NSString::from_str(launch.kernel);
        let function = self.with(mode.build == Build::FastMath, |library| {
            library.newFunctionWithName_constantValues_error(&name, &values(launch)).map_err(|e| refused(&e))
        })?;
        device.0.newComputePipelineStateWithFunction_error(&function).map_err(|e| refused(&e))
    }
}

/// An argument in the GPU's memory.
struct Placed {
    buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
    offset: usize,
}

fn placed(device: &Shared<dyn MTLDevice>, arg: &Arg) -> Option<Placed> {
    let (bytes, offset): (&[u8], usize) = match arg {
        Arg::None => return None,
        Arg::In(bytes) => (bytes, 0),
        // A buffer begins at a page: so far behind, the address is a multiple of the alignment and of nothing larger.
        Arg::InAt(bytes, align) => (bytes, *align),
        Arg::Out(bytes) | Arg::InOut(bytes) => (bytes, 0),
    };
    let buffer = device
        .0
        .newBufferWithLength_options((offset + bytes.len()).max(1), MTLResourceOptions::StorageModeShared)?;
    #[expect(unsafe_code, reason = "the memory of a buffer is told as an address")]
    // SAFETY: the buffer was made that long, and nobody else has it yet.
    unsafe {
        buffer
            .contents()
            .cast::<u8>()
            .add(offset)
            .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
    }
    Some(Placed { buffer, offset })
}

fn take_back(arg: &mut Arg, placed: Option<&Placed>) {
    if let (Arg::Out(bytes) | Arg::InOut(bytes), Some(Placed { buffer, .. })) = (arg, placed) {
        #[expect(unsafe_code, reason = "the memory of a buffer is told as an address")]
        // SAFETY: the buffer was made that long, and the GPU is done with it.
        unsafe {
            buffer
                .contents()
                .cast::<u8>()
                .copy_to_nonoverlapping(NonNull::from(&mut **bytes).cast(), bytes.len());
        }
    }
}

fn size([width, height, depth]: [u32; 3]) -> MTLSize {
    MTLSize { width: width as usize, height: height as usize, depth: depth as usize }
}

fn values(launch: &Launch) -> Retained<MTLFunctionConstantValues> {
    let values = MTLFunctionConstantValues::new();
    for (place, constant) in launch.constants {
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
