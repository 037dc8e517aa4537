//! One bug at a time, planted in a kernel that is right: each is found, and called what it is.

use qat_metal_host::{Buffer, Constant, Error, Kind, Launch, Library, Mode, available, verify};

const SOURCE: &str = include_str!("kernels/stages.metal");

/// Two threadgroups, the second half full.
const COUNT: usize = 64 + 40;

fn words(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn inputs() -> (Vec<f32>, Vec<u8>) {
    let x = (0..COUNT).map(|i| (i * 7 % 101) as f32).collect();
    (x, (0..128).map(|i| (i * 37 % 256) as u8).collect())
}

fn args() -> Vec<Buffer> {
    let (x, bytes) = inputs();
    let count = (COUNT as u32).to_le_bytes().to_vec();
    vec![
        Buffer::In(words(&x)),
        Buffer::In(count),
        Buffer::Out(4 * COUNT),
        Buffer::InOut(vec![0; 4]),
        Buffer::In(bytes),
    ]
}

const LAUNCH: Launch = Launch {
    kernel: "turned",
    constants: &[(0, Constant::Bool(false))],
    groups: [2, 1, 1],
    threads: [64, 1, 1],
    threadgroup_bytes: &[256],
};

/// What the kernel computes.
fn wanted() -> Vec<f32> {
    let (x, bytes) = inputs();
    let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
    let turned = |group: usize, i: usize| at(group * 64 + 63 - i);
    let value = |place: usize| {
        let (group, i) = (place / 64, place % 64);
        let top = (0..64).map(|j| turned(group, j)).fold(f32::MIN, f32::max);
        let nibbles: u32 =
            bytes[2 * i..2 * i + 2].iter().map(|b| u32::from(b & 15) + u32::from(b >> 4)).sum();
        turned(group, i) + turned(group, i ^ 1) + top + nibbles as f32
    };
    (0..COUNT).map(value).collect()
}

fn library(find: &str, replace: &str) -> Library {
    assert_eq!(SOURCE.matches(find).count(), 1, "{find:?}");
    Library::new("stages", &SOURCE.replace(find, replace)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn without_a_bug_nothing_is_found() {
    if !available() {
        return;
    }
    let library = Library::new("stages", SOURCE).unwrap_or_else(|e| panic!("{e}"));
    let report = verify(&library, &LAUNCH, &args(), &mut |mode, out| {
        assert_eq!(out[2], words(&wanted()), "{mode:?}");
        assert_eq!(out[3], 2u32.to_le_bytes(), "{mode:?}");
    });
    let report = report.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((report.threads, report.barriers), (128, 4));
    assert_eq!(report.threadgroup_bytes, 256 + 16 + 256);
    assert_eq!((report.buffers[2].unwritten, report.buffers[4].read), (0, 2 * 128));
}

/// Bug, what it becomes, of what kind it is, and what its message says.
const PLANTED: [(&str, &str, Kind, &str); 17] = [
    // The first barrier, which the tile's readers need.
    (
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n  float value",
        "float value",
        Kind::Race,
        "threadgroup memory 0 (256 bytes) and write by thread",
    ),
    (
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n  float value",
        "threadgroup_barrier(mem_flags::mem_device);\n  float value",
        Kind::Race,
        "without a barrier for this memory",
    ),
    (
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n  top =",
        "simdgroup_barrier(mem_flags::mem_threadgroup);\n  top =",
        Kind::Race,
        "of another simdgroup",
    ),
    ("simdgroup_barrier(mem_flags::mem_threadgroup);", "", Kind::Race, "of the same simdgroup"),
    (
        "tile[63 - index]",
        "tile[64 - index]",
        Kind::OutOfBounds,
        "read of 4 bytes at offset 256 of threadgroup memory 0",
    ),
    (
        "place < shape.count",
        "place <= shape.count",
        Kind::OutOfBounds,
        "read of 4 bytes at offset 416 of buffer 0 (416 bytes)",
    ),
    (
        "tops[simdgroup] = top",
        "tops[0] = top",
        Kind::Uninitialised,
        "threadgroup variable tops (8 bytes): byte 0",
    ),
    (
        "value + neighbour",
        "out[place] + neighbour",
        Kind::Uninitialised,
        "of buffer 2 (416 bytes): byte 0 was never written",
    ),
    ("out[place] =", "out[index] =", Kind::Race, "of another threadgroup"),
    (
        "float top = simd_max(value);",
        "float top = value;\n  if (lane < 20) top = simd_max(value);",
        Kind::Divergence,
        "lanes",
    ),
    ("bytes + 2 * index", "bytes + 2 * index - 1", Kind::Undefined, "alignment"),
    (
        "  float value = ",
        "  if (!inside) return;\n  float value = ",
        Kind::Divergence,
        "have left the kernel",
    ),
    (
        "  float top = simd_max(value);",
        "  if (index == 70) threadgroup_barrier(mem_flags::mem_none);\n  if (index > 3) threadgroup_barrier(mem_flags::mem_none);\n  float top = value;",
        Kind::Divergence,
        "threadgroup_barrier",
    ),
    (
        "out[place] = value",
        "((device float*)x)[place] = 0; out[place] = value",
        Kind::ReadOnly,
        "of buffer 0 (416 bytes)",
    ),
    (
        "threadgroup float tops[2];",
        "threadgroup float tops[9000];",
        Kind::ThreadgroupMemory,
        "there are 32768",
    ),
    ("i < 4; i++", "i < 5; i++", Kind::Undefined, "past the end of an array"),
    (
        "atomic_fetch_add_explicit(finished, 1u, memory_order_relaxed);",
        "*(device uint*)finished += 1;",
        Kind::Race,
        "of buffer 3",
    ),
];

#[test]
fn each_planted_bug_is_found_and_called_what_it_is() {
    if !available() {
        return;
    }
    for (find, replace, kind, message) in PLANTED {
        let error = verify(&library(find, replace), &LAUNCH, &args(), &mut |_, _| {}).expect_err(replace);
        let Error::Violations { violations, .. } = &error else { panic!("{replace}: {error}") };
        let told = violations.iter().find(|v| v.kind == kind && v.message.contains(message));
        let told = told.unwrap_or_else(|| panic!("{replace}: {kind} … {message}:\n{error}"));
        let by_name = kind == Kind::ThreadgroupMemory;
        assert!(by_name || told.place.starts_with("stages.metal:"), "{replace}: {error}");
    }
}

#[test]
fn violations_say_where_they_happened() {
    if !available() {
        return;
    }
    let library = library("place < shape.count", "place <= shape.count");
    let error = verify(&library, &LAUNCH, &args(), &mut |_, _| {}).expect_err("out of bounds");
    assert_eq!(
        error.to_string(),
        "kernel turned: 2 violations found\n  \
         out of bounds: read of 4 bytes at offset 416 of buffer 0 (416 bytes) · threadgroup (1, 0, 0) thread 40 · stages.metal:28\n  \
         out of bounds: write of 4 bytes at offset 416 of buffer 2 (416 bytes) · threadgroup (1, 0, 0) thread 40 · stages.metal:53"
    );
}

#[test]
fn far_out_of_bounds_is_found_without_checks() {
    if !available() {
        return;
    }
    let far = library("x[place] :", "x[place + 4096] :");
    let error = run(&far, Mode::VALUE).expect_err("out of bounds").to_string();
    assert!(
        error.contains("access at offset 16384 of buffer 0 (416 bytes)") && error.contains("stages.metal:28"),
        "{error}"
    );
    let wrapped = library("x[place] :", "x[place - 1u] :");
    let error = run(&wrapped, Mode::VALUE).expect_err("out of bounds").to_string();
    assert!(error.contains("out of bounds"), "{error}");
    // The process is whole.
    without_a_bug_nothing_is_found();
}

fn run(library: &Library, mode: Mode) -> Result<qat_metal_host::Report, Error> {
    use qat_metal_host::Arg;
    let (x, bytes) = inputs();
    let (x, count) = (words(&x), (COUNT as u32).to_le_bytes());
    let (mut out, mut finished) = (vec![0; 4 * COUNT], vec![0; 4]);
    let mut args =
        [Arg::In(&x), Arg::In(&count), Arg::Out(&mut out), Arg::InOut(&mut finished), Arg::In(&bytes)];
    library.run(mode, &LAUNCH, &mut args)
}

#[test]
fn pointers_do_not_change_their_address_space() {
    if !available() {
        return;
    }
    for (find, replace) in [
        ("float value = tile[63 - index];", "device float* turned = tile; float value = turned[63 - index];"),
        ("(device const ushort*)(bytes", "(threadgroup const ushort*)(bytes"),
        (
            "constant Shape& shape [[buffer(1)]]",
            "device Shape& shape [[buffer(1)]], constant Shape& other [[buffer(6)]]) { device Shape& same = other; }\nkernel void second(constant Shape& shape [[buffer(1)]]",
        ),
        (
            "device atomic_uint* finished",
            "threadgroup atomic_uint* wrong [[threadgroup(1)]], device atomic_uint* finished_",
        ),
        (
            "constant bool BIASED",
            "inline float shared() { threadgroup float x; return x; }\nconstant bool BIASED",
        ),
    ] {
        let linted = Library::new("stages", &SOURCE.replace(find, replace)).and_then(|l| l.lint());
        assert!(linted.is_err(), "{replace}");
    }
    let clean = Library::new("stages", SOURCE).and_then(|l| l.lint());
    clean.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_launch_that_does_not_fit_is_refused() {
    if !available() {
        return;
    }
    let library = Library::new("stages", SOURCE).unwrap_or_else(|e| panic!("{e}"));
    let no_args: [Buffer; 0] = [];
    let refusals: [(Launch, &[Buffer], &str); 8] = [
        (Launch { kernel: "missing", ..LAUNCH }, &args(), "not in library stages, which has: turned"),
        (
            Launch { constants: &[], ..LAUNCH },
            &args(),
            "function constant 0 (BIASED) is used, and the launch doesn't give it",
        ),
        (
            Launch { constants: &[(0, Constant::U32(1))], ..LAUNCH },
            &args(),
            "BIASED is bool of 1 bytes, the launch gives U32(1)",
        ),
        (
            Launch { constants: &[(0, Constant::Bool(false)), (3, Constant::Bool(true))], ..LAUNCH },
            &args(),
            "function constant 3, which the library doesn't declare",
        ),
        (Launch { threads: [64, 32, 1], ..LAUNCH }, &args(), "want 1 to 1024 threads"),
        (
            Launch { threadgroup_bytes: &[], ..LAUNCH },
            &args(),
            "threadgroup memory 0: the launch gives it no bytes",
        ),
        (LAUNCH, &no_args, "buffer 1: want 4 bytes, nothing is bound"),
        (
            Launch { constants: &[(0, Constant::Bool(true))], ..LAUNCH },
            &args(),
            "buffer 5, which is not bound",
        ),
    ];
    for (launch, args, message) in refusals {
        let error = verify(&library, &launch, args, &mut |_, _| {}).expect_err(message).to_string();
        assert!(error.contains(message), "want {message}, found {error}");
    }
}
