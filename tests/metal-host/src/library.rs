//! A Metal library: kernels that can be run.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use crate::{
    Arg, Build, Error, Launch, Mode, Report, Traffic, compile,
    engine::{
        self, Counts, Grid, Kernel, Settings,
        floats::Flushing,
        memory::{BUFFERS, Contents, Memory, THREADGROUP_ARGUMENTS},
    },
    module::{Module, Wants},
    mutation,
    source::{Source, SourceError, Translation},
};

/// The source of some kernels, with those compiled that were run.
#[derive(Clone, Debug)]
pub struct Library {
    name: String,
    /// With macros expanded.
    text: Arc<str>,
    kernels: Kernels,
}

/// Kernels by build and name, for all clones of a library.
type Kernels = Arc<Mutex<BTreeMap<(Build, String), Arc<Compiled>>>>;

/// A kernel in one build.
struct Compiled {
    module: Arc<Module>,
    /// Function constants that it can't do without.
    needs: Vec<String>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Compiled").field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// Sources that were preprocessed before, by name and text.
type Preprocessed = BTreeMap<(String, String), Library>;
static KNOWN: LazyLock<Mutex<Preprocessed>> = LazyLock::new(Mutex::default);

impl Library {
    /// Understands `source` (Metal Shading Language). Kernels are compiled when they are first run, and kept in
    /// `target/metal-host` for later processes.
    ///
    /// # Errors
    /// When the compiler is missing, when it refuses the source's macros, or when the emulator can't follow a declaration.
    pub fn new(name: &str, source: &str) -> Result<Self, Error> {
        let source = mutation::planted(name, source)?;
        let key = (name.to_owned(), source.into_owned());
        if let Some(known) = lock(&KNOWN).get(&key) {
            return Ok(known.clone());
        }
        let text = compile::preprocessed(name, &key.1)?;
        Source::new(&text).map_err(|e| misunderstood(name, e))?;
        let library = Self { name: name.to_owned(), text: text.into(), kernels: Arc::default() };
        lock(&KNOWN).insert(key, library.clone());
        Ok(library)
    }

    /// Names of the kernels, in the order of the source.
    ///
    /// # Errors
    /// None that [`Library::new`] didn't have.
    pub fn kernel_names(&self) -> Result<Vec<String>, Error> {
        Ok(self.source()?.kernel_names())
    }

    /// Compiles a kernel in a build, which [`Library::run`] would do by itself.
    ///
    /// # Errors
    /// When there is no such kernel, or the compiler refuses it.
    pub fn compile(&self, kernel: &str, build: Build) -> Result<(), Error> {
        self.compiled(kernel, build).map(|_| ())
    }

    /// Runs a kernel. What it wrote is in `args` afterwards, even if it did something wrong.
    ///
    /// # Errors
    /// When the launch doesn't fit the kernel, or the kernel did what it must not; all that was seen is told.
    pub fn run(&self, mode: Mode, launch: &Launch, args: &mut [Arg]) -> Result<Report, Error> {
        let threads = std::array::from_fn(|i| launch.groups[i].saturating_mul(launch.threads[i]));
        self.run_threads(mode, launch, threads, args)
    }

    /// Runs a kernel over so many threads (`dispatchThreads`): the last threadgroups in each direction are smaller where the
    /// number isn't a multiple of `launch.threads`. `launch.groups` is not looked at.
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
        let compiled = self.compiled(launch.kernel, mode.build)?;
        let refused = |message: String| Error::Launch { kernel: launch.kernel.to_owned(), message };
        let grid = grid(launch, threads).map_err(refused)?;
        let alone = compiled.module.alone();
        compiled.module.set_constants(launch.constants, &compiled.needs).map_err(refused)?;
        let mut memory = take_memory().ok_or_else(|| refused("no address space for its buffers".into()))?;
        let kernel = bind(&compiled.module, launch, args, &mut memory).map_err(refused)?;
        let settings =
            Settings { order: mode.order, checked: mode.build == Build::Checked, shuffled: mode.shuffled };
        let ran = {
            let _flushing = Flushing::new();
            engine::run(&kernel, &grid, settings, &mut memory)
        };
        let (counts, violations) = ran.map_err(|e| refused(format!("no memory for its threads: {e}")))?;
        let buffers = unbind(args, &mut memory, mode.build);
        memory.clear();
        MEMORY.set(Some(memory));
        drop(alone);
        match violations.is_empty() {
            true => Ok(report(counts, buffers)),
            false => Err(Error::Violations { kernel: launch.kernel.to_owned(), violations }),
        }
    }

    /// Looks at all kernels with Metal's address spaces, as Apple's compiler would: a pointer into one of them doesn't become a
    /// pointer into another.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn lint(&self) -> Result<(), Error> {
        let text = self.source()?.all_kernels().map_err(|e| misunderstood(&self.name, e))?;
        compile::linted(&self.name, &text)
    }

    fn source(&self) -> Result<Source<'_>, Error> {
        Source::new(&self.text).map_err(|e| misunderstood(&self.name, e))
    }

    fn compiled(&self, kernel: &str, build: Build) -> Result<Arc<Compiled>, Error> {
        let key = (build, kernel.to_owned());
        if let Some(known) = lock(&self.kernels).get(&key) {
            return Ok(known.clone());
        }
        let source = self.source()?;
        let Some(Translation { text, needs }) =
            source.kernel(kernel).map_err(|e| misunderstood(&self.name, e))?
        else {
            let (library, names) = (&self.name, source.kernel_names().join(", "));
            let message = format!("not in library {library}, which has: {names}");
            return Err(Error::Launch { kernel: kernel.to_owned(), message });
        };
        let path = compile::compiled(&self.name, kernel, &text, build)?;
        let compiled = Arc::new(Compiled { module: Module::load(&path)?, needs });
        lock(&self.kernels).insert(key, compiled.clone());
        Ok(compiled)
    }
}

thread_local! {
    /// Address space for the next run of this thread.
    static MEMORY: std::cell::Cell<Option<Memory>> = const { std::cell::Cell::new(None) };
}

fn take_memory() -> Option<Memory> {
    let mut memory = MEMORY.take().or_else(Memory::new)?;
    memory.clear();
    Some(memory)
}

fn grid(launch: &Launch, extent: [u32; 3]) -> Result<Grid, String> {
    let threads: u64 = launch.threads.iter().map(|n| u64::from(*n)).product();
    if !(1..=1024).contains(&threads) {
        return Err(format!("want 1 to 1024 threads a threadgroup, found {:?}", launch.threads));
    }
    let groups: [u32; 3] = std::array::from_fn(|i| extent[i].div_ceil(launch.threads[i]));
    let count: u64 = groups.iter().map(|n| u64::from(*n)).product();
    if count * threads >= 1 << 31 {
        return Err(format!("{count} threadgroups of {threads} threads are too many to emulate"));
    }
    Ok(Grid { groups, threads: launch.threads, extent })
}

/// Puts arguments into memory.
fn bind(module: &Module, launch: &Launch, args: &[Arg], memory: &mut Memory) -> Result<Kernel, String> {
    if args.len() > BUFFERS {
        return Err(format!("want at most {BUFFERS} buffers, found {}", args.len()));
    }
    for (index, arg) in args.iter().enumerate() {
        let (contents, align) = match arg {
            Arg::None => continue,
            Arg::In(bytes) => (Contents::ReadOnly(bytes), 16),
            Arg::InAt(bytes, align) if align.is_power_of_two() => (Contents::ReadOnly(bytes), *align),
            Arg::InAt(_, align) => {
                return Err(format!("buffer {index}: want a power of two, found an alignment of {align}"));
            }
            Arg::Out(bytes) => (Contents::Uninitialised(bytes.len()), 16),
            Arg::InOut(bytes) => (Contents::Given(bytes), 16),
        };
        memory.bind(index, &contents, align);
    }
    let Wants { buffers, threadgroup } = module.wants();
    for (index, bytes) in buffers {
        match memory.buffer(index) {
            Some(region) if region.len < bytes => {
                return Err(format!("buffer {index}: want at least {bytes} bytes, found {}", region.len));
            }
            Some(_) => {}
            None if bytes > 0 => return Err(format!("buffer {index}: want {bytes} bytes, nothing is bound")),
            None => {}
        }
    }
    for index in 0..BUFFERS {
        if memory.buffer(index).is_none() {
            memory.leave_unbound(index);
        }
    }
    for index in threadgroup {
        match launch.threadgroup_bytes.get(index) {
            Some(bytes) if *bytes > 0 && index < THREADGROUP_ARGUMENTS => {
                memory.bind_threadgroup(index, *bytes as usize)
            }
            _ => return Err(format!("threadgroup memory {index}: the launch gives it no bytes")),
        }
    }
    let address =
        |region: Option<&engine::memory::Region>| region.map_or(std::ptr::null_mut(), |r| r.base as *mut u8);
    Ok(Kernel {
        call: module.call(),
        buffers: (0..BUFFERS).map(|i| address(memory.buffer(i))).collect(),
        threadgroup: (0..THREADGROUP_ARGUMENTS).map(|i| address(memory.threadgroup_argument(i))).collect(),
    })
}

/// Copies what was written back, and counts.
fn unbind(args: &mut [Arg], memory: &mut Memory, build: Build) -> Vec<Traffic> {
    let mut traffic = vec![Traffic::default(); args.len()];
    for (index, arg) in args.iter_mut().enumerate() {
        let Some(region) = memory.buffer_mut(index) else { continue };
        traffic[index] = Traffic { read: region.read, written: region.written, unwritten: 0 };
        if let (Arg::Out(_), Build::Checked) = (&arg, build) {
            traffic[index].unwritten = region.shadow().iter().filter(|b| !b.is_written(1)).count() as u64;
        }
        if let Arg::Out(bytes) | Arg::InOut(bytes) = arg {
            bytes.copy_from_slice(region.bytes());
        }
    }
    traffic
}

fn report(counts: Counts, buffers: Vec<Traffic>) -> Report {
    let Counts { threads, barriers, simd_operations, threadgroup_bytes } = counts;
    Report { threads, barriers, simd_operations, threadgroup_bytes, buffers }
}

fn misunderstood(library: &str, error: SourceError) -> Error {
    Error::Source { library: library.to_owned(), line: error.line, message: error.message }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
