//! Carries work out on the emulator instead of a GPU: tests see what the kernels do, in every mode that it has.
//!
//! Whatever the order of the threads, a kernel must give the same bits, break no rule of memory and write the whole of its
//! results. With sums in another order, and as a compiler may make it with fast math, it must give nearly the same.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
    sync::Mutex,
};

use candle_core::{CpuStorage, DType, Error, InplaceOp1, Layout, Result, Shape, Tensor};
use half::bf16;
use qat_metal_host::{Arg, Build, Launch, Library, Mode, Report};

use super::{Bind, Task, Work, translate};

pub(crate) use qat_metal_host::available;

/// Libraries whose results are promised to the bit. They are compiled without fast math on the chip, too; with it they are
/// other programs, which may take the next code.
const EXACT: [&str; 5] = [
    "train_fake_quant",
    "train_fake_quant_bf16",
    "train_scales",
    "train_activations",
    "train_activations_bf16",
];

/// How far results of sums in another order may be off, relative to the largest of the result: 300 roundings of 6e-8. In bf16 the last
/// one may go to the neighbour.
fn tolerance(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 2e-5 + 2f32.powi(-8) } else { 2e-5 }
}

thread_local! {
    /// Whether operations on the CPU take the path of Metal, and if so how.
    static EMULATING: Cell<Option<Care>> = const { Cell::new(None) };
}

/// How closely kernels are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// Each is run once, for its values.
    Values,
    /// Each is run in every mode, as it is outside [`emulating`].
    EveryMode,
}

/// Whether `path` sends what is on the CPU here.
pub(super) fn is_emulating() -> bool {
    EMULATING.get().is_some()
}

/// Runs `f` as on a machine whose tensors are on Metal: every operation on this thread takes its kernels.
pub(crate) fn emulating<R>(care: Care, f: impl FnOnce() -> R) -> R {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            EMULATING.set(None);
        }
    }
    EMULATING.set(Some(care));
    let _reset = Reset;
    f()
}

/// As the encoder's.
pub(super) fn run(work: &Work, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let mut operands = inputs.iter().map(|input| bytes(input)).collect::<Result<Vec<_>>>()?;
    let of_operands: Vec<DType> = inputs.iter().map(|input| input.dtype()).collect();
    let of_results: Vec<DType> = work.outputs.iter().map(|(_, dtype)| *dtype).collect();
    // Leftovers of others.
    let room = |(shape, dtype): &(Shape, DType)| vec![0xff; dtype.size_in_bytes() * shape.elem_count()];
    let mut results: Vec<Vec<u8>> = work.outputs.iter().map(room).collect();
    for task in &work.tasks {
        assert_reads_its_types(task, &of_operands, &of_results);
        let (read, unwritten) = (operands.clone(), results.clone());
        run_in(Mode::VALUE, task, &mut operands, &mut results);
        for mode in Mode::ALL {
            let skipped = EMULATING.get() == Some(Care::Values)
                || mode == Mode::VALUE
                || mode.build == Build::FastMath && !allows_fast_math(task, &read, &of_operands);
            if !skipped {
                let (mut operands_then, mut results_then) = (read.clone(), unwritten.clone());
                run_in(mode, task, &mut operands_then, &mut results_then);
                assert_same(task, mode, &of_operands, &operands, &operands_then);
                assert_same(task, mode, &of_results, &results, &results_then);
            }
        }
    }
    for (i, input) in inputs.iter().enumerate() {
        if work.tasks.iter().any(|task| task.binds.contains(&Bind::InOut(i))) {
            input.inplace_op1(&Overwritten(storage(&operands[i], input.dtype())))?;
        }
    }
    let tensor = |(bytes, (shape, dtype)): (Vec<u8>, &(Shape, DType))| match dtype {
        DType::BF16 => Tensor::from_vec(halves(&bytes), shape.clone(), inputs[0].device()),
        _ => Tensor::from_vec(floats(&bytes), shape.clone(), inputs[0].device()),
    };
    results.into_iter().zip(&work.outputs).map(tensor).collect()
}

fn run_in(mode: Mode, task: &Task, operands: &mut [Vec<u8>], results: &mut [Vec<u8>]) {
    let shape: Vec<u8> = task.shape.iter().flat_map(|word| word.to_le_bytes()).collect();
    // What is only read may be bound at two places.
    let (read, made) = (operands.to_vec(), results.to_vec());
    let mut operands: Vec<Option<&mut Vec<u8>>> = operands.iter_mut().map(Some).collect();
    let mut results: Vec<Option<&mut Vec<u8>>> = results.iter_mut().map(Some).collect();
    let mut args: Vec<Arg> = Vec::new();
    for bind in &task.binds {
        args.push(match *bind {
            Bind::Nothing => Arg::None,
            Bind::Input(i) => Arg::In(&read[i]),
            Bind::InOut(i) => Arg::InOut(operands[i].take().expect("written at one place")),
            Bind::Output(o) => Arg::Out(results[o].take().expect("written at one place")),
            Bind::Made(o) => Arg::In(&made[o]),
        });
    }
    args.push(Arg::In(&shape));
    let launch = Launch {
        kernel: task.kernel,
        constants: &[],
        groups: task.groups,
        threads: [task.threads, 1, 1],
        threadgroup_bytes: &[],
    };
    let library = Library::new(task.library.name, task.library.source).unwrap_or_else(|e| panic!("{e}"));
    library.lint().unwrap_or_else(|e| panic!("{e}"));
    assert_is_cuda(&task.library);
    let report = library.run(mode, &launch, &mut args).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
    assert_written(task, &report);
}

/// What CUDA's compiler knows by itself, as far as the kernels use it, in C++.
const CUDA: &str = r#"
#define __global__
#define __shared__ static
float expf(float x);
float logf(float x);
float fabs(float x);
float rint(float x);
float ldexp(float x, int exponent);
bool isnan(float x);
unsigned int max(unsigned int a, unsigned int b);
unsigned int min(unsigned int a, unsigned int b);
struct uint2 { unsigned int x, y; };
struct Index { unsigned int x, y, z; };
extern Index blockIdx, blockDim, threadIdx;
void __syncthreads();
template <typename T> T __shfl_xor_sync(unsigned int lanes, T value, int mask);
bool __any_sync(unsigned int lanes, bool value);
int __clzll(long long value);
float __fdiv_rn(float a, float b);
float __fsqrt_rn(float a);
float __int_as_float(int bits);
"#;

/// Every library that is run here also says what its translation for NVIDIA's GPUs has to be: C++ with right types.
fn assert_is_cuda(library: &super::Library) {
    static SEEN: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    if !SEEN.lock().expect("a lock").insert(library.name) {
        return;
    }
    let translated = translate::translate(library.source).expect("a translation");
    let mut compiler = Command::new("clang++-19")
        .args(["-std=c++17", "-fsyntax-only", "-Wno-unknown-pragmas", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the compiler that the emulator uses");
    let source = format!("{CUDA}{translated}");
    compiler.stdin.take().expect("a pipe").write_all(source.as_bytes()).expect("written");
    let output = compiler.wait_with_output().expect("a compiler that ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} as CUDA: {said}", library.name);
}

/// What `main`, written behind the prelude that every translated source has, prints on this machine.
pub(super) fn run_as_cuda(main: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    let prelude = translate::translate("").expect("the prelude");
    let source = format!("#include <cstdio>\n{CUDA}{prelude}{main}");
    std::fs::write(folder.path().join("program.cpp"), source).expect("written");
    let mut compiler = Command::new("clang++-19");
    compiler.args(["-std=c++17", "-O1", "-w", "-o"]).arg(&program).arg(folder.path().join("program.cpp"));
    assert!(compiler.status().expect("the compiler that the emulator uses").success());
    let output = Command::new(program).output().expect("a program that runs");
    String::from_utf8(output.stdout).expect("text")
}

/// A buffer comes uninitialised from a pool: what a kernel leaves out is another tensor's leftover.
fn assert_written(task: &Task, report: &Report) {
    for (place, traffic) in report.buffers.iter().enumerate() {
        assert_eq!(traffic.unwritten, 0, "{}: bytes of result {place} that were never written", task.kernel);
    }
}

/// What a buffer holds is what the kernel takes it for, or numbers as wide: a GPU would not notice.
fn assert_reads_its_types(task: &Task, operands: &[DType], results: &[DType]) {
    let element = if task.library.name.ends_with("_bf16") { DType::BF16 } else { DType::F32 };
    let declared = translate::buffers(task.library.source, task.kernel).expect("a kernel of the library");
    for (place, bind) in task.binds.iter().enumerate() {
        let found = match *bind {
            Bind::Nothing => continue,
            Bind::Input(i) | Bind::InOut(i) => operands[i],
            Bind::Output(o) | Bind::Made(o) => results[o],
        };
        let want = match declared[place].trim_start_matches("device ").trim_start_matches("const ") {
            "Element*" | "Four*" => element,
            "float*" => DType::F32,
            "uint*" => DType::U32,
            other => panic!("{}: a buffer of {other}", task.kernel),
        };
        let fits = found == want || found.size_in_bytes() == want.size_in_bytes();
        assert!(fits, "{} of {}: {found:?} at {place}, want {want:?}", task.kernel, task.library.name);
    }
}

fn allows_fast_math(task: &Task, operands: &[Vec<u8>], dtypes: &[DType]) -> bool {
    let read = task.binds.iter().filter_map(|bind| match *bind {
        Bind::Input(i) | Bind::InOut(i) => Some(numbers(&operands[i], dtypes[i])),
        _ => None,
    });
    let finite = |numbers: Vec<f32>| numbers.iter().all(|v| v.is_finite());
    !EXACT.contains(&task.library.name) && read.into_iter().all(finite)
}

fn assert_same(task: &Task, mode: Mode, dtypes: &[DType], want: &[Vec<u8>], found: &[Vec<u8>]) {
    let nearly = mode.build == Build::FastMath || mode.shuffled;
    for (index, (want, found)) in want.iter().zip(found).enumerate() {
        if !nearly {
            assert!(want == found, "{}: buffer {index} is another in {mode:?}", task.kernel);
            continue;
        }
        let tolerance = tolerance(dtypes[index]);
        let (want, found) = (numbers(want, dtypes[index]), numbers(found, dtypes[index]));
        let largest = want.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
        for (at, (want, found)) in want.iter().zip(&found).enumerate() {
            let same = want.to_bits() == found.to_bits() || want.is_nan() && found.is_nan();
            assert!(
                same || (want - found).abs() <= tolerance * largest,
                "{}: buffer {index}[{at}]: {found} in {mode:?}, else {want}; largest {largest}",
                task.kernel
            );
        }
    }
}

/// The elements of `tensor`, as they lie in a buffer.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::U32 => flat.to_vec1::<u32>()?.into_iter().flat_map(u32::to_le_bytes).collect(),
        DType::BF16 => flat.to_vec1::<bf16>()?.into_iter().flat_map(bf16::to_le_bytes).collect(),
        _ => flat.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn halves(bytes: &[u8]) -> Vec<bf16> {
    bytes.as_chunks::<2>().0.iter().map(|word| bf16::from_le_bytes(*word)).collect()
}

/// What a buffer holds, to be compared; u32 as the floats with their bits.
fn numbers(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::BF16 => halves(bytes).into_iter().map(bf16::to_f32).collect(),
        _ => floats(bytes),
    }
}

fn storage(bytes: &[u8], dtype: DType) -> CpuStorage {
    if dtype == DType::BF16 { CpuStorage::BF16(halves(bytes)) } else { CpuStorage::F32(floats(bytes)) }
}

/// New values for a tensor, in place.
struct Overwritten(CpuStorage);

impl InplaceOp1 for Overwritten {
    fn name(&self) -> &'static str {
        "overwritten"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, &self.0, layout.contiguous_offsets()) {
            (CpuStorage::F32(old), CpuStorage::F32(new), Some((start, end))) => {
                old[start..end].copy_from_slice(new);
            }
            (CpuStorage::BF16(old), CpuStorage::BF16(new), Some((start, end))) => {
                old[start..end].copy_from_slice(new);
            }
            _ => return Err(Error::RequiresContiguous { op: "overwritten" }.bt()),
        }
        Ok(())
    }
}
