//! From the C++ of a kernel to a shared library on disk, compiled once for each content.
//!
//! The name of a compiled file is the hash of everything that went in: source, headers, flags, compiler. Two processes may want
//! the same file at once: one compiles it under a lock, and it appears whole.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use sha2::{Digest, Sha256};

use crate::{Build, Error, swizzles};

/// The headers that a kernel is compiled against.
const HEADERS: [(&str, &str); 10] = [
    ("metal_host.h", include_str!("../shim/metal_host.h")),
    ("runtime.h", include_str!("../shim/runtime.h")),
    ("traits.h", include_str!("../shim/traits.h")),
    ("types.h", include_str!("../shim/types.h")),
    ("vector.h", include_str!("../shim/vector.h")),
    ("math.h", include_str!("../shim/math.h")),
    ("simd.h", include_str!("../shim/simd.h")),
    ("simdgroup_matrix.h", include_str!("../shim/simdgroup_matrix.h")),
    ("atomic.h", include_str!("../shim/atomic.h")),
    ("checks.h", include_str!("../shim/checks.h")),
];

/// What `#include <…>` may name in a kernel; the emulator brings everything by itself.
const EMPTY: [&str; 9] = [
    "metal_stdlib",
    "metal_atomic",
    "metal_compute",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_math",
    "metal_integer",
    "metal_common",
    "metal_limits",
];

/// Metal Shading Language 3.1, the first with `bfloat`.
const METAL_VERSION: &str = "-D__METAL_VERSION__=310";

/// The C++ that Metal is: single precision literals, half that rounds after each operation, `char` with a sign.
const LANGUAGE: [&str; 15] = [
    "-std=c++17",
    "-x",
    "c++",
    "-fdeclspec",
    "-fsigned-char",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Wno-everything",
    "-Werror=uninitialized",
    "-Werror=return-type",
];

/// How the engine wants its libraries.
const LIBRARY: [&str; 5] =
    ["-shared", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-gline-tables-only"];

/// C++ for OpenCL, the dialect of clang's that has address spaces in the language as Metal has.
const LINT: [&str; 11] = [
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-target",
    "spir64",
    "-fdeclspec",
    "-cl-single-precision-constant",
    "-Wno-everything",
    "-fsyntax-only",
    "-DMETAL_HOST_LINT",
];

/// Calls to `shim/checks.h` before every access and at every undefined step; what is left uninitialised on the stack is NaN.
const CHECKED: [&str; 21] = [
    "-O1",
    "-DMETAL_HOST_CHECKED",
    "-ffp-contract=off",
    "-ftrivial-auto-var-init=pattern",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fsanitize=kernel-address",
    "-mllvm",
    "-asan-instrumentation-with-call-threshold=0",
    "-mllvm",
    "-asan-stack=0",
    "-mllvm",
    "-asan-globals=0",
    "-mllvm",
    "-asan-opt-same-temp=0",
    "-mllvm",
    "-asan-kernel-mem-intrinsic-prefix=1",
    "-fsanitize=alignment,shift,integer-divide-by-zero,bounds,signed-integer-overflow,bool,return",
    "-fsanitize-recover=alignment,shift,integer-divide-by-zero,bounds,signed-integer-overflow,bool",
    "-fno-sanitize-trap=all",
    "-fno-sanitize-link-runtime",
];

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Value => &["-O2", "-ffp-contract=off"],
            Self::Checked => &CHECKED,
            Self::FastMath => {
                &["-O2", "-ffast-math", "-ffp-contract=fast-honor-pragmas", "-DMETAL_HOST_FAST"]
            }
        }
    }
}

/// The processor that compiled kernels may count on.
fn processor() -> &'static [&'static str] {
    match cfg!(target_arch = "x86_64") {
        true => &["-march=x86-64-v3"],
        false => &[],
    }
}

/// The compiler.
fn clang() -> String {
    env::var("QAT_METAL_CLANG").unwrap_or_else(|_| "clang++-19".into())
}

/// What the compiler calls itself.
fn version() -> Result<&'static str, Error> {
    static VERSION: OnceLock<Result<String, Error>> = OnceLock::new();
    let asked = VERSION.get_or_init(|| {
        let missing = || {
            let wanted = clang();
            Error::Missing(format!(
                "{wanted} not found: it runs Metal kernels on this machine. On Debian and Ubuntu: apt-get install clang-19 (or \
                 name another clang 19 in QAT_METAL_CLANG)"
            ))
        };
        let output = Command::new(clang()).arg("--version").output().map_err(|_| missing())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(missing()),
        }
    });
    asked.as_deref().map_err(Clone::clone)
}

/// Whether kernels can be compiled and run here, or what is missing.
pub fn usable() -> Result<(), Error> {
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c"))
    {
        return Err(Error::Missing("the Metal emulator wants a processor with AVX2, FMA and F16C".into()));
    }
    if !cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
        return Err(Error::Missing("the Metal emulator runs on Linux, on x86-64 and on 64-bit Arm".into()));
    }
    version().map(|_| ())
}

/// Where compiled kernels are kept: `metal-host` below cargo's target folder.
fn cache() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("metal-host")
}

/// The source with macros expanded.
pub fn preprocessed(library: &str, source: &str) -> Result<String, Error> {
    let headers = headers()?;
    let input = write_temporary(&format!("{library}.metal"), source)?;
    let mut command = Command::new(clang());
    command.args([
        "-E",
        "-x",
        "c++",
        "-std=c++17",
        "-nostdinc",
        "-nostdinc++",
        "-D__METAL__=1",
        "-D__METAL_MACOS__=1",
    ]);
    command.arg(METAL_VERSION).arg("-isystem").arg(headers.join("empty")).arg(&input);
    let output = run(&mut command, library, "the source's macros")?;
    let _ = fs::remove_file(&input);
    let named = input.display().to_string();
    Ok(String::from_utf8_lossy(&output.stdout).replace(&named, &format!("{library}.metal")))
}

/// The shared library with the kernel `what`, whose C++ is `source`.
pub fn compiled(library: &str, what: &str, source: &str, build: Build) -> Result<PathBuf, Error> {
    let headers = headers()?;
    let flags = [&LANGUAGE[..], &LIBRARY, build.flags(), processor()].concat();
    let key = hash([source, &headers.to_string_lossy(), &flags.join(" "), version()?]);
    let target = cache().join(format!("{key}.so"));
    once(&target, || {
        let input = write_temporary(&format!("{key}.cpp"), source)?;
        let output = target.with_extension(format!("{}.tmp", std::process::id()));
        let mut command = Command::new(clang());
        command.args(&flags).arg("-I").arg(&headers).arg(&input).arg("-o").arg(&output).arg("-lm");
        run(&mut command, library, &format!("kernel {what}"))?;
        let _ = fs::remove_file(&input);
        fs::rename(&output, &target).map_err(file_error(&output))
    })?;
    Ok(target)
}

/// Compiles all kernels with their address spaces, to nothing.
pub fn linted(library: &str, source: &str) -> Result<(), Error> {
    let headers = headers()?;
    let flags = LINT;
    let key = hash([source, &headers.to_string_lossy(), &flags.join(" "), version()?]);
    let target = cache().join(format!("{key}.lint"));
    once(&target, || {
        let input = write_temporary(&format!("{key}.cpp"), source)?;
        let mut command = Command::new(clang());
        command.args(flags).arg("-I").arg(&headers).arg(&input);
        run(&mut command, library, "the address spaces")?;
        let _ = fs::remove_file(&input);
        fs::write(&target, "").map_err(file_error(&target))
    })
}

/// Makes `target` with `make` unless it is there; of several processes and threads, one makes it.
fn once(target: &Path, make: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    if target.exists() {
        return Ok(());
    }
    let path = target.with_extension("lock");
    let lock = fs::File::create(&path).map_err(file_error(&path))?;
    lock.lock().map_err(file_error(&path))?;
    if target.exists() {
        return Ok(());
    }
    make()
}

/// The folder of the headers, written once.
fn headers() -> Result<PathBuf, Error> {
    static FOLDER: OnceLock<Result<PathBuf, Error>> = OnceLock::new();
    FOLDER.get_or_init(write_headers).clone()
}

fn write_headers() -> Result<PathBuf, Error> {
    let swizzles = swizzles::header();
    let all: Vec<(&str, &str)> = HEADERS.into_iter().chain([("swizzles.h", &*swizzles)]).collect();
    let key = hash(all.iter().flat_map(|(name, text)| [*name, *text]).chain(EMPTY));
    let folder = cache().join(format!("shim-{key}"));
    let staged = cache().join(format!("shim-{key}.{}.tmp", std::process::id()));
    fs::create_dir_all(cache()).map_err(file_error(&cache()))?;
    once(&folder, || {
        let empty = staged.join("empty");
        fs::create_dir_all(&empty).map_err(file_error(&empty))?;
        for (name, text) in all {
            fs::write(staged.join(name), text).map_err(file_error(&staged.join(name)))?;
        }
        for name in EMPTY {
            fs::write(empty.join(name), "").map_err(file_error(&empty.join(name)))?;
        }
        fs::rename(&staged, &folder).map_err(file_error(&staged))
    })?;
    Ok(folder)
}

/// A file of this process's own.
fn write_temporary(name: &str, text: &str) -> Result<PathBuf, Error> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = cache().join(format!("{}-{number}-{name}", std::process::id()));
    fs::write(&path, text).map_err(file_error(&path))?;
    Ok(path)
}

fn run(command: &mut Command, library: &str, what: &str) -> Result<Output, Error> {
    version()?;
    let output = command.output().map_err(|e| Error::Missing(format!("{}: {e}", clang())))?;
    if output.status.success() {
        return Ok(output);
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Compile { library: library.into(), what: what.into(), log })
}

fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..12].iter().map(|b| format!("{b:02x}")).collect()
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |e| Error::File { path, message: e.to_string() }
}
