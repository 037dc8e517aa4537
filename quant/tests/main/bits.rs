//! One codec per format: what is packed decodes to what the fake quantizer gave, to the bit.

use proptest::prelude::*;
use qat_quant::{
    Format, Packed, PackedRef, ScaleRule, ScaleType, Scales, codes, fake_quant, int8_tokens, pack, pack_codes,
};

use crate::matrices::{adversarial, bits, few, formats, normal, squared_error};

const RULES: [ScaleRule; 3] = [ScaleRule::Absmax, ScaleRule::Mse, ScaleRule::Seq];

/// Packs, decodes and checks everything that must hold for any finite `w` on the grid of `scales`.
fn check(what: &str, format: Format, w: &[f32], rows: usize, cols: usize, scales: &Scales) -> Packed {
    let mut fake = vec![f32::NAN; w.len()];
    fake_quant(format, w, rows, cols, scales, &mut fake);
    assert!(fake.iter().all(|v| v.is_finite()), "{what}: {format} made something infinite");
    let packed = pack(what, format, w, rows, cols, scales).unwrap();
    assert_eq!(packed.blocks.len(), rows * format.row_bytes(cols));
    let view = PackedRef::new(what, format, rows, cols, &packed.blocks, packed.tensor_scale).unwrap();
    view.validate(what).unwrap();
    assert_eq!(bits(&view.decode()), bits(&fake), "{what}: {format} decode != fake");
    assert_eq!(&view.scales(), scales, "{what}: {format} scales read back");
    let mut codes = vec![i16::MIN; cols];
    for (row, values) in fake.chunks_exact(cols).enumerate() {
        view.codes_row(row, &mut codes);
        for (column, (&code, &value)) in codes.iter().zip(values).enumerate() {
            let group = format.group_len().map_or(0, |len| (row * cols + column) / len);
            let bias = scales.bias.get(group).copied().unwrap_or(0.0);
            let of_code = scales.scale[group] * f32::from(code) + bias;
            assert_eq!(
                of_code.to_bits(),
                value.to_bits(),
                "{what}: {format} code {code} of [{row}, {column}]"
            );
            assert!((format.levels().0..=format.levels().1).contains(&i32::from(code)));
        }
    }
    let again = pack(what, format, &fake, rows, cols, scales).unwrap();
    assert_eq!(bits(&again.as_ref().decode()), bits(&fake), "{what}: {format} is no fixed point");
    packed
}

#[test]
fn decoding_gives_the_fake_weights_for_every_adversarial_matrix() {
    for (what, w) in few(adversarial(), 9) {
        for format in formats() {
            for rule in few(RULES, 3) {
                let scales = Scales::choose(format, rule, &w, 2, 256);
                check(what, format, &w, 2, 256, &scales);
            }
        }
    }
}

#[test]
fn mse_is_never_worse_than_absmax() {
    for (what, w) in few(adversarial(), 20) {
        for format in few(formats(), 4) {
            let error = |rule| {
                let mut fake = vec![0.0; w.len()];
                fake_quant(format, &w, 2, 256, &Scales::choose(format, rule, &w, 2, 256), &mut fake);
                squared_error(&w, &fake)
            };
            let (absmax, mse) = (error(ScaleRule::Absmax), error(ScaleRule::Mse));
            // The ternary optimum is exact before its scale is rounded (relative 2^-9 for bf16): a second-order loss.
            let slack =
                if format.is_ternary() { 2f64.powi(-16) * squared_error(&w, &[0.0; 512]) } else { 0.0 };
            assert!(mse <= absmax + slack, "{what}: {format} mse {mse} absmax {absmax}");
        }
    }
}

/// Every code of every format under scales from one end of the storage type to the other.
#[test]
fn every_code_under_every_scale_is_a_fixed_point() {
    for format in formats() {
        let (kind, (lo, hi)) = (format.scale_type(), format.levels());
        let least = match kind {
            ScaleType::F16 => 2f32.powi(-24),
            ScaleType::BF16 => 2f32.powi(-133),
        };
        let scales =
            [1.0, -1.0, 0.1, -0.003, 2f32.powi(-14), least, -least, kind.limit(), -kind.limit(), 0.0];
        let biases = [0.0, -0.7, 3.0, kind.limit(), -kind.limit()];
        let biases: Vec<_> =
            if format.has_bias() { few(biases, 5).map(|bias| vec![bias]).collect() } else { vec![vec![]] };
        for scale in few(scales, 10) {
            for bias in &biases {
                every_code(format, Scales::rounded(format, &[scale], bias), lo, hi);
            }
        }
    }
}

fn every_code(format: Format, one: Scales, lo: i32, hi: i32) {
    let cols = format.block_len() * (hi - lo + 1) as usize;
    let groups = format.groups(1, cols);
    let scales = Scales {
        scale: vec![one.scale[0]; groups],
        bias: one.bias.first().map(|&b| vec![b; groups]).unwrap_or_default(),
    };
    // Consecutive codes, shifted by one from block to block: every code stands at every place of a block.
    let code = |i: usize| lo + ((i + i / format.block_len()) % (hi - lo + 1) as usize) as i32;
    let bias = one.bias.first().copied().unwrap_or(0.0);
    let w: Vec<f32> = (0..cols).map(|i| one.scale[0] * code(i) as f32 + bias).collect();
    let packed = check("codes", format, &w, 1, cols, &scales);
    assert_eq!(bits(&packed.as_ref().decode()), bits(&w), "{format} {one:?}");
}

#[test]
fn learned_scales_are_stored_as_they_were_trained_and_saturate() {
    for format in formats() {
        let bias: &[f32] = if format.has_bias() { &[f32::MAX, -f32::MAX, 1e-30, 0.1] } else { &[] };
        let groups = format.groups(4, 256);
        let cycle = |v: &[f32]| v.iter().copied().cycle().take(groups).collect::<Vec<_>>();
        let scale = cycle(&[f32::MAX, -f32::MAX, 1e-30, 0.1]);
        let bias = if bias.is_empty() { Vec::new() } else { cycle(bias) };
        let scales = Scales::rounded(format, &scale, &bias);
        assert_eq!(Scales::rounded(format, &scales.scale, &scales.bias), scales, "{format}");
        let w: Vec<f32> = normal(3, 1024).iter().map(|w| w * 1e35).collect();
        check("learned", format, &w, 4, 256, &scales);
    }
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_name_and_index() {
    let mut w = vec![0.5; 512];
    let scales = Scales::choose(Format::Int4G32, ScaleRule::Absmax, &w, 2, 256);
    w[256 + 17] = f32::NAN;
    let error = pack("model.norm", Format::Int4G32, &w, 2, 256, &scales).unwrap_err();
    assert_eq!(error.to_string(), "model.norm: weight [1, 17] is NaN, want a finite number");
    w[3] = f32::NEG_INFINITY;
    let error = pack("model.norm", Format::Int4G32, &w, 2, 256, &scales).unwrap_err();
    assert_eq!(error.to_string(), "model.norm: weight [0, 3] is -inf, want a finite number");
}

#[test]
fn a_scale_that_the_format_does_not_store_is_refused() {
    let w = vec![0.5; 32];
    for (scale, found) in [(0.1, "0.1"), (f32::INFINITY, "inf"), (f32::NAN, "NaN")] {
        let scales = Scales { scale: vec![scale], bias: Vec::new() };
        let error = pack("w", Format::Int4G32, &w, 1, 32, &scales).unwrap_err().to_string();
        assert_eq!(error, format!("w: scale 0 is {found}, which int4-g32 can't store: round it first"));
    }
}

#[test]
fn blocks_of_another_length_and_misplaced_tensor_scales_are_refused() {
    let new = |format: &str, bytes: &[u8], scale| {
        PackedRef::new("w", format.parse().unwrap(), 2, 64, bytes, scale).unwrap_err().to_string()
    };
    assert_eq!(
        new("int4-g32", &[0; 71], None),
        "w: int4-g32 [2, 64] wants 2 rows of 36 bytes, found 71 bytes"
    );
    assert_eq!(
        new("ternary-tensor", &[0; 32], None),
        "w: ternary-tensor wants a scale for the tensor, found none"
    );
    assert!(new("ternary-tensor", &[0; 32], Some(f32::NAN)).contains("scale is NaN"));
    assert!(new("ternary-g64", &[0; 36], Some(1.0)).contains("found one for the tensor"));
    assert!(new("ternary-g256", &[0; 66], None).contains("multiple of 256 weights, found 64"));
    let overflow = PackedRef::new("w", Format::Int4G32, usize::MAX, 64, &[], None).unwrap_err();
    assert!(overflow.to_string().contains("wants"), "{overflow}");
}

#[test]
fn a_damaged_block_is_found_by_row_and_block() {
    for (format, place, byte, says) in [
        ("ternary-g64", 18 + 5, 0b11, "row 0, block 1: a code is outside -1..=1 of ternary-g64"),
        ("int8-g32", 3 * 34 + 9, 0x80, "row 0, block 3: a code is outside -127..=127 of int8-g32"),
        ("int4-g32", 8 * 18 + 1, 0x7c, "row 1, block 0: want a finite scale and bias, found inf and 0"),
        (
            "int4-affine-g64",
            2 * 36 + 3,
            0x7e,
            "row 0, block 2: want a finite scale and bias, found 0 and NaN",
        ),
        ("ternary-g256", 66 + 65, 0xfc, "row 1, block 0: want a finite scale and bias, found -inf and 0"),
        ("ternary-tensor", 64 + 3, 0xc0, "row 1, block 0: a code is outside -1..=1 of ternary-tensor"),
    ] {
        let format: Format = format.parse().unwrap();
        let tensor_scale = (format == Format::TernaryTensor).then_some(1.0);
        let mut blocks = vec![0; 2 * format.row_bytes(256)];
        blocks[place] = byte;
        let view = PackedRef::new("w", format, 2, 256, &blocks, tensor_scale).unwrap();
        assert_eq!(view.validate("w").unwrap_err().to_string(), format!("w: {says}; the file is damaged"));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = if cfg!(miri) { (4, 256) } else { (96, 512) };
    let w = normal(11, rows * cols);
    let with_threads = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| {
            few(formats(), 4)
                .flat_map(|format| RULES.map(|rule| Scales::choose(format, rule, &w, rows, cols)))
                .map(|scales| (bits(&scales.scale), bits(&scales.bias)))
                .collect::<Vec<_>>()
        })
    };
    let one = with_threads(1);
    assert!(one == with_threads(3));
}

#[test]
fn int8_tokens_have_one_scale_a_row_and_keep_zero_rows() {
    let mut x = vec![0.0; 3 * 20];
    x[20] = 127.0;
    x[21] = 0.5;
    x[22] = 1.5;
    x[23] = -126.6;
    x[45] = -254.0;
    x[46] = 1.0;
    int8_tokens(&mut x, 20);
    assert!(x[..20].iter().all(|v| v.to_bits() == 0));
    assert_eq!(x[20..25], [127.0, 0.0, 2.0, -127.0, 0.0]);
    assert_eq!(x[45..48], [-254.0, 0.0, 0.0]);
    let mut tiny = vec![1e-45; 20];
    int8_tokens(&mut tiny, 20);
    assert!(tiny.iter().all(|v| *v == 0.0), "{tiny:?}");
}

fn any_format() -> impl Strategy<Value = Format> {
    proptest::sample::select(Format::all())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 400 }) })]

    #[test]
    fn decoding_gives_the_fake_weights(
        format in any_format(),
        mse in any::<bool>(),
        exponent in -40i32..38,
        offset in -3f32..3.0,
        w in proptest::collection::vec(-1f32..1.0, 512),
    ) {
        let w: Vec<f32> = w.iter().map(|w| (w + offset) * 10f32.powi(exponent)).map(|w| w.clamp(-f32::MAX, f32::MAX)).collect();
        let scales = Scales::choose(format, RULES[usize::from(mse)], &w, 2, 256);
        check("w", format, &w, 2, 256, &scales);
    }

    #[test]
    fn any_scales_decode_as_they_fake(
        format in any_format(),
        scale in proptest::collection::vec(-1f32..1.0, 16),
        bias in proptest::collection::vec(-1f32..1.0, 16),
        exponents in (-8i32..6, -8i32..6),
        w in proptest::collection::vec(-10f32..10.0, 512),
    ) {
        let groups = format.groups(2, 256);
        let scale: Vec<f32> = scale[..groups].iter().map(|s| s * 10f32.powi(exponents.0)).collect();
        let bias: Vec<f32> = bias[..groups].iter().map(|b| b * 10f32.powi(exponents.1)).collect();
        let scales = Scales::rounded(format, &scale, if format.has_bias() { &bias } else { &[] });
        check("w", format, &w, 2, 256, &scales);
    }
}

/// SEQ (ParetoQ): the levels of a group lie evenly around zero, and no even grid that the search sees is better.
#[test]
fn an_even_grid_has_its_bias_at_minus_its_middle() {
    for (name, w) in few(adversarial(), 20) {
        for format in ["int2-affine-g32", "int3-affine-g64-bf16", "int4-affine-g128"] {
            let kind: Format = format.parse().unwrap();
            let even = |scale: &[f32]| {
                let bias: Vec<f32> = scale.iter().map(|s| -kind.middle() * s).collect();
                Scales::rounded(kind, scale, &bias)
            };
            let found = Scales::choose(kind, ScaleRule::Seq, &w, 2, 256);
            assert_eq!(found, even(&found.scale), "{name}, {format}");
            let len = kind.group_len().unwrap();
            let peak = |w: &[f32]| w.iter().fold(0f32, |peak, w| peak.max(w.abs()));
            let widest: Vec<f32> = w.chunks(len).map(|w| peak(w) / kind.middle()).collect();
            let error = |scales: &Scales| {
                let mut values = vec![0.0; w.len()];
                fake_quant(kind, &w, 2, 256, scales, &mut values);
                squared_error(&w, &values)
            };
            let (ours, theirs) = (error(&found), error(&even(&Scales::rounded(kind, &widest, &[]).scale)));
            // Both are sums of squares in f64, one by group and one by matrix.
            assert!(ours <= theirs * (1.0 + 1e-12), "{name}, {format}: {ours} against {theirs}");
        }
    }
}

#[test]
fn codes_are_what_weights_become_and_what_is_packed() {
    for format in formats() {
        for (name, w) in few(adversarial(), 20) {
            let scales = Scales::choose(
                format,
                if cfg!(miri) { ScaleRule::Absmax } else { ScaleRule::Mse },
                &w,
                2,
                256,
            );
            let (mut found, mut values, mut fake) = (vec![0.0; 512], vec![0.0; 512], vec![0.0; 512]);
            codes(format, &w, 2, 256, &scales, &mut found);
            qat_quant::values(format, &found, 2, 256, &scales, &mut values);
            fake_quant(format, &w, 2, 256, &scales, &mut fake);
            assert_eq!(bits(&values), bits(&fake), "{format}, {name}");
            let packed = pack("w", format, &w, 2, 256, &scales).unwrap();
            assert_eq!(pack_codes("w", format, &found, 2, 256, &scales).unwrap(), packed, "{format}, {name}");
        }
    }
}

#[test]
fn what_is_no_code_is_refused_by_place() {
    for (wrong, shown) in [(8.0, "8"), (-9.0, "-9"), (0.5, "0.5"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")]
    {
        let mut codes = vec![0.0; 64];
        codes[33] = wrong;
        let scales = Scales { scale: vec![1.0; 2], bias: Vec::new() };
        let m = pack_codes("w", Format::Int4G32, &codes, 2, 32, &scales).unwrap_err().to_string();
        assert_eq!(m, format!("w: [1, 1] is {shown}, want a whole number in -8..=7 of int4-g32"));
    }
}
