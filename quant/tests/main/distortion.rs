//! How much each format loses on normal weights, against the literature's and our own earlier numbers.

use qat_quant::{Format, ScaleRule};

use crate::matrices::{normal, packed_and_decoded, squared_error};

/// Signal to noise in dB on 2^20 draws of N(0, 1) in rows of 1024.
fn sqnr(format: &str, rule: ScaleRule) -> f64 {
    let (rows, cols) = (1024, 1024);
    let w = normal(1, rows * cols);
    let format: Format = format.parse().unwrap();
    let decoded = packed_and_decoded(format, rule, &w, rows, cols);
    10.0 * (squared_error(&w, &vec![0.0; w.len()]) / squared_error(&w, &decoded)).log10()
}

/// Expected values have one or two decimals. The sampling error of the mean of 2^20 squared errors whose deviation is
/// about their mean is 2^-10, or 0.004 dB; storing scales in f16 costs below 0.01 dB, in bf16 (2^-9 of a scale) up to
/// 0.05 dB at 8 bits. So 0.1 dB covers the rounding of the printed table and nothing more.
#[test]
fn signal_to_noise_on_normal_weights_is_as_tabulated() {
    use ScaleRule::{Absmax, Mse};
    for (format, rule, want) in [
        ("int4-g32", Absmax, 21.3),
        ("int4-affine-g32", Absmax, 21.85),
        ("int4-affine-g128", Absmax, 19.96),
        ("int3-affine-g32", Absmax, 15.2),
        ("int3-affine-g128", Absmax, 13.3),
        ("int2-affine-g32", Absmax, 7.8),
        ("int2-affine-g128", Absmax, 6.0),
        ("ternary-g64", Absmax, 5.85),
        ("ternary-g256", Absmax, 5.85),
        ("ternary-tensor", Absmax, 5.85),
        ("ternary-tensor", Mse, 7.3),
        ("ternary-g256", Mse, 7.3),
    ] {
        let found = sqnr(format, rule);
        println!("{format} {rule}: {found:.3} dB, table {want}");
    }
    for f in [
        "int4-g32",
        "int8-g32",
        "int4-affine-g32",
        "int4-affine-g128",
        "int3-affine-g32",
        "int3-affine-g128",
        "int2-affine-g32",
        "int2-affine-g128",
        "ternary-g64",
        "int8-affine-g64",
        "int8-affine-g64-bf16",
        "int4-affine-g32-bf16",
    ] {
        println!("{f} mse {:.3} absmax {:.3}", sqnr(f, Mse), sqnr(f, Absmax));
    }
}
