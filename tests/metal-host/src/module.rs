//! A compiled kernel in memory, and how a launch is fitted to it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
};

use crate::{
    Constant,
    engine::{
        FUNCTIONS,
        abi::{self, BUFFER, THREADGROUP},
    },
    error::Error,
};

/// A loaded library with one kernel.
///
/// Its function constants are variables of the library, so one run at a time uses it.
pub struct Module {
    table: &'static abi::Module,
    running: Mutex<()>,
}

// SAFETY: the table is read only, and what its pointers lead to is touched under `running`.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

type Slot = Arc<OnceLock<Result<Arc<Module>, Error>>>;
static LOADED: LazyLock<Mutex<BTreeMap<PathBuf, Slot>>> = LazyLock::new(Mutex::default);

/// What a kernel wants bound, with its function constants set.
pub struct Wants {
    /// Indices of buffers, with the bytes that a reference needs (0 for a pointer).
    pub buffers: Vec<(usize, usize)>,
    /// Indices of threadgroup memory.
    pub threadgroup: Vec<usize>,
}

impl Module {
    /// The library at `path`, loaded once for the process.
    pub fn load(path: &Path) -> Result<Arc<Self>, Error> {
        let slot = lock(&LOADED).entry(path.to_owned()).or_default().clone();
        slot.get_or_init(|| Self::open(path).map(Arc::new)).clone()
    }

    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |e: libloading::Error| Error::File { path: path.to_owned(), message: e.to_string() };
        // SAFETY: a library that this crate compiled; it runs nothing when it is loaded. It is never unloaded.
        let table: &'static abi::Module = unsafe {
            let library: &'static libloading::Library =
                Box::leak(Box::new(libloading::Library::new(path).map_err(failed)?));
            let symbol = library.get::<*const abi::Module>(b"metal_host_module\0").map_err(failed)?;
            &**symbol
        };
        // SAFETY: a variable of the library, before anything of it is called.
        unsafe { *table.engine = &FUNCTIONS };
        Ok(Self { table, running: Mutex::new(()) })
    }

    /// Keeps other runs out.
    pub fn alone(&self) -> MutexGuard<'_, ()> {
        lock(&self.running)
    }

    pub fn call(&self) -> extern "C" fn(&abi::Arguments) {
        self.table.call
    }

    /// Gives function constants their values; those in `needs` must have one. Tells what doesn't fit.
    pub fn set_constants(&self, given: &[(u16, Constant)], needs: &[String]) -> Result<(), String> {
        let declared = self.constants();
        for (index, _) in given {
            if !declared.iter().any(|c| c.index == u32::from(*index)) {
                return Err(format!(
                    "the launch gives function constant {index}, which the library doesn't declare"
                ));
            }
        }
        for constant in declared {
            let name = abi::text(constant.name);
            let value =
                given.iter().find(|(index, _)| u32::from(*index) == constant.index).map(|(_, value)| *value);
            if value.is_none() && needs.contains(&name) {
                return Err(format!(
                    "function constant {} ({name}) is used, and the launch doesn't give it",
                    constant.index
                ));
            }
            let bytes = value.map(|v| bytes_of(v, constant, &name)).transpose()?;
            // SAFETY: variables of the library, of these sizes, while no kernel of it runs.
            unsafe {
                *constant.defined = bytes.is_some();
                let bytes = bytes.unwrap_or_default();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), constant.value.cast(), constant.size as usize);
            }
        }
        (self.table.derive)();
        Ok(())
    }

    /// What is to be bound.
    pub fn wants(&self) -> Wants {
        let mut wants = Wants { buffers: Vec::new(), threadgroup: Vec::new() };
        for parameter in self.parameters() {
            if parameter.present.is_some_and(|present| !present()) {
                continue;
            }
            match parameter.source {
                BUFFER => wants.buffers.push((parameter.index as usize, parameter.size as usize)),
                THREADGROUP => wants.threadgroup.push(parameter.index as usize),
                _ => {}
            }
        }
        wants
    }

    /// Every parameter, whether it is there or not.
    fn parameters(&self) -> &[abi::Parameter] {
        // SAFETY: an array of the library, of this length.
        unsafe { slice(self.table.parameters, self.table.parameter_count) }
    }

    fn constants(&self) -> &[abi::FunctionConstant] {
        // SAFETY: an array of the library, of this length.
        unsafe { slice(self.table.constants, self.table.constant_count) }
    }
}

/// # Safety
/// `count` values lie at `start`, or none.
unsafe fn slice<'a, T>(start: *const T, count: u64) -> &'a [T] {
    match count {
        0 => &[],
        // SAFETY: as the caller promises.
        _ => unsafe { std::slice::from_raw_parts(start, count as usize) },
    }
}

/// A value as the variable holds it, in the first bytes of eight.
fn bytes_of(value: Constant, constant: &abi::FunctionConstant, name: &str) -> Result<[u8; 8], String> {
    let mut bytes = [0; 8];
    match (value, constant.kind, constant.size) {
        (Constant::Bool(v), 0, _) => bytes[0] = v.into(),
        (Constant::U32(v), 1 | 2, 1 | 2 | 4 | 8) => bytes[..4].copy_from_slice(&v.to_le_bytes()),
        (Constant::F32(v), 3, 4) => bytes[..4].copy_from_slice(&v.to_le_bytes()),
        _ => {
            let kind = ["bool", "unsigned", "signed", "float"][constant.kind as usize & 3];
            return Err(format!(
                "function constant {name} is {kind} of {} bytes, the launch gives {value:?}",
                constant.size
            ));
        }
    }
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
