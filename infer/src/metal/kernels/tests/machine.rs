//! A dispatch with its arguments on the emulator.
//!
//! Knows no kernel. Invariant: a library is compiled once for all tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use qat_metal_host as host;
use qat_quant::kernels::metal::{Constant, Dispatch};

use super::super::LIBRARIES;

pub use host::{Build, Mode};

/// Compiled sources by name.
static COMPILED: Mutex<BTreeMap<&str, Arc<host::Library>>> = Mutex::new(BTreeMap::new());

/// The library of a launch.
fn library(name: &'static str) -> Arc<host::Library> {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || {
        let library = LIBRARIES.iter().find(|library| library.name == name).expect("listed");
        Arc::new(host::Library::new(name, library.source).unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    Arc::clone(compiled.entry(name).or_insert_with(compile))
}

/// A dispatch and what is bound to its places.
pub struct Machine {
    dispatch: Dispatch,
    args: Vec<host::Buffer>,
    is_full: bool,
}

/// Threadgroup memory of every Apple GPU.
const THREADGROUP_BYTES: usize = 32 << 10;

/// What the buffers hold after a run, by place.
pub struct After<'a>(&'a [Vec<u8>]);

impl Machine {
    /// The dispatch, its shape bound to `place`.
    pub fn new(dispatch: Dispatch, place: usize) -> Self {
        let shape = dispatch.shape.clone();
        Self { dispatch, args: Vec::new(), is_full: true }.bind(place, host::Buffer::In(shape))
    }

    fn bind(mut self, place: usize, buffer: host::Buffer) -> Self {
        while self.args.len() <= place {
            self.args.push(host::Buffer::None);
        }
        self.args[place] = buffer;
        self
    }

    /// There is less to do than the launch is made for.
    pub fn with_less_to_do(self) -> Self {
        Self { is_full: false, ..self }
    }

    /// What is read only.
    pub fn input(self, place: usize, bytes: Vec<u8>) -> Self {
        self.bind(place, host::Buffer::In(bytes))
    }

    /// What is read and written.
    pub fn in_out(self, place: usize, bytes: Vec<u8>) -> Self {
        self.bind(place, host::Buffer::InOut(bytes))
    }

    /// What is written before it is read.
    pub fn output(self, place: usize, bytes: usize) -> Self {
        self.bind(place, host::Buffer::Out(bytes))
    }

    /// Runs it in every way; `judge` sees each result. Nothing is judged where there is no emulator.
    ///
    /// What is asked of every kernel: outputs are written to the last byte, threadgroup memory is what every GPU has, and
    /// no fewer bytes move than the dispatch says.
    pub fn verify(self, mut judge: impl FnMut(Mode, After<'_>)) {
        if !host::available() {
            return;
        }
        let Dispatch { launch, shape, bytes_read, bytes_written } = &self.dispatch;
        let constants: Vec<(u16, host::Constant)> = launch
            .constants
            .iter()
            .map(|(index, constant)| match *constant {
                Constant::Bool(value) => (*index, host::Constant::Bool(value)),
                Constant::U32(value) => (*index, host::Constant::U32(value)),
                Constant::F32(value) => (*index, host::Constant::F32(value)),
            })
            .collect();
        let request = host::Launch {
            kernel: launch.kernel,
            constants: &constants,
            groups: launch.groups,
            threads: launch.threads,
            threadgroup_bytes: &[],
        };
        let mut judge = |mode: Mode, after: &[Vec<u8>]| judge(mode, After(after));
        let report = host::verify(&library(launch.library), &request, &self.args, &mut judge)
            .unwrap_or_else(|error| panic!("{}: {error}", launch.kernel));
        assert!(report.threadgroup_bytes <= THREADGROUP_BYTES, "{}: {report:?}", launch.kernel);
        assert!(report.buffers.iter().all(|buffer| buffer.unwritten == 0), "{}: {report:?}", launch.kernel);
        if self.is_full {
            let sum = |of: fn(&host::Traffic) -> u64| report.buffers.iter().map(of).sum::<u64>();
            let (read, written) = (sum(|buffer| buffer.read), sum(|buffer| buffer.written));
            assert!(
                read >= bytes_read + shape.len() as u64,
                "{}: {read} of {bytes_read} bytes",
                launch.kernel
            );
            assert!(written >= *bytes_written, "{}: {written} of {bytes_written} bytes", launch.kernel);
        }
    }
}

impl After<'_> {
    /// The bytes at `place`.
    pub fn bytes(&self, place: usize) -> &[u8] {
        &self.0[place]
    }

    /// The floats at `place`.
    pub fn f32s(&self, place: usize) -> Vec<f32> {
        self.bytes(place).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// The whole numbers at `place`.
    pub fn u32s(&self, place: usize) -> Vec<u32> {
        self.bytes(place).as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }
}

/// Floats as the GPU reads them.
pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Whole numbers as the GPU reads them.
pub fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Each source as Apple's compiler would look at its address spaces.
#[test]
fn no_pointer_leaves_its_address_space() {
    if !host::available() {
        return;
    }
    for name in LIBRARIES.map(|library| library.name) {
        library(name).lint().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
