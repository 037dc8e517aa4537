//! The functions of the shim, against what they are by definition.

use qat_metal_host::{Arg, Buffer, Launch, Library, Mode, available, verify};

fn library() -> Library {
    Library::new("functions", include_str!("kernels/functions.metal")).unwrap_or_else(|e| panic!("{e}"))
}

fn launch(kernel: &str, groups: u32, threads: u32) -> Launch<'_> {
    Launch {
        kernel,
        constants: &[],
        groups: [groups, 1, 1],
        threads: [threads, 1, 1],
        threadgroup_bytes: &[],
    }
}

fn bytes<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn scalars_and_vectors_are_metals() {
    if !available() {
        return;
    }
    let input: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 1.0 + f32::EPSILON, f32::MIN_POSITIVE];
    let bits = f32::to_bits;
    let wanted = [
        bits(7.0),
        bits(30.0),
        bits(321.0),
        bits(5065.0),
        // Bytes 10 20 40 80 with their low halves cleared, less one, in eight bits.
        0x7f3f_1f0f,
        2,
        8 + 31 * 100 + 3 * 10000,
        0xbc,
        2 + 70 + 900,
        bits(1.0 / 3.0),
        bits(2.0 + 40.0 - 300.0),
        bits(input[4].mul_add(input[4], -1.0)),
        0,
        // Infinity.
        0x7c00,
        0x2e66,
        16 * 10000 + 12 * 100 + 8,
        11,
        bits(1024.0 + 1.0 + 0.25),
    ];
    let args = [Buffer::Out(4 * wanted.len()), Buffer::In(bytes(input.map(f32::to_le_bytes)))];
    let ran = verify(&library(), &launch("scalars", 1, 1), &args, &mut |mode, out| {
        assert_eq!(words(&out[0]), wanted, "{mode:?}");
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn lanes_hear_each_other() {
    if !available() {
        return;
    }
    let of = |l: u32| {
        [
            496,
            31,
            -7i32 as u32,
            l * l.wrapping_sub(1) / 2,
            l + 1,
            31 - l,
            l ^ 8,
            9,
            3,
            l / 16,
            (0..32).step_by(3).fold(0, |mask, i| mask | 1 << i),
            4 * (l & !3) + 6,
            l ^ 1,
            (l & !3) + 2,
            if l < 28 { l + 4 } else { 100 + l - 28 },
            2,
            u32::MAX,
            l % 4,
            if l < 30 { l + 2 } else { 0 },
            l.saturating_sub(1),
        ]
    };
    let wanted: Vec<u32> = (0..64).flat_map(|i| of(i % 32)).collect();
    let ran = verify(&library(), &launch("lanes", 1, 64), &[Buffer::Out(4 * 20 * 64)], &mut |mode, out| {
        assert_eq!(words(&out[0]), wanted, "{mode:?}");
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn simdgroup_matrices_multiply() {
    if !available() {
        return;
    }
    let value = |i: usize| (i * 5 % 7) as f32 - 3.0;
    // The right one is read transposed, from its second column on, out of rows of 10.
    let product =
        |r: usize, c: usize| (0..8).map(|k| value(8 * r + k) * value(10 * c + k + 1)).sum::<f32>() + 1.0;
    let wanted: Vec<f32> = (0..64).map(|i| product(i / 8, i % 8)).collect();
    let halves = |n: usize| bytes((0..n).map(|i| half_bits(value(i)).to_le_bytes()));
    let floats = |n: usize| bytes((0..n).map(|i| value(i).to_le_bytes()));
    let c = Buffer::InOut(bytes([1f32; 64].map(f32::to_le_bytes)));
    for (kernel, a, b) in
        [("product_float", floats(64), floats(80)), ("product_half", halves(64), halves(80))]
    {
        let args = [Buffer::In(a), Buffer::In(b), c.clone()];
        let ran = verify(&library(), &launch(kernel, 1, 32), &args, &mut |mode, out| {
            // Small integers: any order is exact.
            assert_eq!(out[2], bytes(wanted.iter().map(|v| v.to_le_bytes())), "{kernel} {mode:?}");
        });
        ran.unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A small integer in half precision.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    match value {
        0.0 => 0,
        _ => ((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) + 15 - 127) << 10) | (bits >> 13 & 0x3ff)) as u16,
    }
}

#[test]
fn atomics_count_every_thread() {
    if !available() {
        return;
    }
    let args = [
        Buffer::InOut(bytes([0u32, 0, u32::MAX, 1].map(u32::to_le_bytes))),
        Buffer::InOut(bytes([1f32.to_le_bytes()])),
    ];
    let ran = verify(&library(), &launch("counters", 3, 48), &args, &mut |mode, out| {
        assert_eq!(words(&out[0]), [3 * (47 * 48 / 2), 143, 0, 1 + 2 * 144], "{mode:?}");
        assert_eq!(words(&out[1]), [(1.0f32 + 72.0).to_bits()], "{mode:?}");
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn threadgroups_at_the_edge_are_smaller() {
    if !available() {
        return;
    }
    let (columns, rows, library) = (21u32, 7u32, library());
    let launch = Launch { threads: [8, 5, 1], ..launch("places", 0, 1) };
    for mode in Mode::ALL {
        let mut out = vec![0; (4 * 6 * columns * rows) as usize];
        let ran = library.run_threads(mode, &launch, [columns, rows, 1], &mut [Arg::Out(&mut out)]);
        let report = ran.unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        assert_eq!((report.threads, report.barriers), (u64::from(columns * rows), 6));
        for (place, found) in words(&out).chunks(6).enumerate() {
            let (x, y) = (place as u32 % columns, place as u32 / columns);
            let (width, height) = (8.min(columns - x / 8 * 8), 5.min(rows - y / 5 * 5));
            let size = width * height;
            let index = y % 5 * width + x % 8;
            let lanes = (size - index / 32 * 32).min(32);
            assert_eq!(found, [1, size, 40, size.div_ceil(32), lanes, index % 32], "{mode:?} ({x}, {y})");
        }
    }
}
