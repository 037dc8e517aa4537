//! A template with simdgroups, threadgroup memory, and every kind of function constant.

use qat_metal_host::{Buffer, Constant, Launch, Library, Mode, available, verify};

fn library() -> Library {
    Library::new("sums", include_str!("kernels/sums.metal")).unwrap_or_else(|e| panic!("{e}"))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn row_sums_are_right_in_every_mode() {
    if !available() {
        return;
    }
    let (rows, cols) = (3, 101);
    let x: Vec<f32> = (0..rows * cols).map(|i| (i % 17) as f32 - 8.0).collect();
    let wanted: Vec<f32> = x.chunks(cols).map(|row| row.iter().map(|v| v * v).sum::<f32>() * 0.5).collect();
    let launch = Launch {
        kernel: "row_sum_float",
        constants: &[(0, Constant::Bool(true)), (1, Constant::Bool(false)), (2, Constant::F32(0.5))],
        groups: [rows as u32, 1, 1],
        threads: [64, 1, 1],
        threadgroup_bytes: &[],
    };
    let shape = [rows as u32, cols as u32].iter().flat_map(|v| v.to_le_bytes()).collect();
    let args = [Buffer::In(bytes(&x)), Buffer::In(shape), Buffer::Out(4 * rows)];
    let mut modes = Vec::new();
    let report = verify(&library(), &launch, &args, &mut |mode, out| {
        // Small integers: every order of sums is exact.
        assert_eq!(out[2], bytes(&wanted), "{mode:?}");
        modes.push(mode);
    });
    let report = report.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(modes, Mode::ALL);
    assert_eq!((report.threads, report.barriers, report.simd_operations), (3 * 64, 3, 6));
    assert_eq!(report.buffers[0].read, 4 * (rows * cols) as u64, "each value once");
    assert_eq!((report.buffers[2].written, report.buffers[2].unwritten), (12, 0));
}
