//! Decoded blocks are, to the bit, what `gguf-py` 0.19 (llama.cpp's own Python) makes of the same bytes.

use half::f16;

use crate::files::sha256_hex;
use crate::gguf::{Kind, blocks};

/// Blocks of each type that are decoded.
const BLOCKS: usize = 32;

/// Type, where its f16 numbers are, and the SHA-256 of the values that gguf-py's `dequantize` gives (plus 0.0, so that there is one zero),
/// as little-endian f32, for the bytes of [`pseudo_random`].
const GOLDEN: [(Kind, &[usize], &str); 12] = [
    (Kind::Q4_0, &[0], "fc44e6ede9f738fc0a18f9ed00976e96f1e03cc94b399bb2f152172098f1f72a"),
    (Kind::Q4_1, &[0, 2], "b1e16d892e9e6230781870a35f28264488a560249dfd39fb295f8dde91150827"),
    (Kind::Q5_0, &[0], "6f93b994c7fcfe0a18f75f4863826d41b8d47051c4ce5c5d6ad9ecc761a29931"),
    (Kind::Q5_1, &[0, 2], "699721b4292a7b4541a2988307a75c0ae45e1cc05e2be40e276f0e01e265554e"),
    (Kind::Q8_0, &[0], "73c9eb34f7d98db4bc597d37dd19866e8d8e146a32c2e960a0ea07370319ac53"),
    (Kind::Q2_K, &[80, 82], "3ce895cd6463e2b75446eb0b3eca54f48b24aa438ed78159f8980a37d3774941"),
    (Kind::Q3_K, &[108], "ab1b779935cd62b6d7cf32c28e2aed562986f945732e2dd628035c33653639fd"),
    (Kind::Q4_K, &[0, 2], "541489bf58e7a860cb461e3e2213f41a7c3a2d4339981d99ee7a8036bc07842d"),
    (Kind::Q5_K, &[0, 2], "94020ac8b4f4722f479c59463a82a20bcc8c5a1d983fcc77dd7ff35a3ac41bcc"),
    (Kind::Q6_K, &[208], "46853f19d7eaccc789316237b35d944faeaaa19fbaec17d0d593bada55b95e25"),
    (Kind::TQ1_0, &[52], "d6fc24056b9c6363eebd6799c2f3850eea672506cad992a81c7a6e350b7e0ff0"),
    (Kind::TQ2_0, &[64], "68e6205dd7fb178292d0dd6f8ffd56253c215bf40c7be352ddba795fb90faecb"),
];

/// The upper bytes of a linear congruential generator (Knuth's MMIX) that starts at the type's number, with the f16 numbers made smaller
/// than 2 and ternary codes legal.
fn pseudo_random(kind: Kind, halves: &[usize]) -> Vec<u8> {
    let mut state = u64::from(kind.id());
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..BLOCKS * kind.block_bytes()).map(|_| byte()).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        halves.iter().for_each(|at| block[at + 1] &= 0xbf);
        if kind == Kind::TQ2_0 {
            // Code 3 becomes 1.
            block[..64].iter_mut().for_each(|byte| *byte &= !(*byte << 1 & *byte & 0xaa));
        }
    }
    bytes
}

#[test]
fn values_are_those_of_llama_cpp() {
    for (kind, halves, golden) in GOLDEN {
        let bytes = pseudo_random(kind, halves);
        let values = blocks::decode("w", kind, [BLOCKS / 4, 4 * kind.block_len()], &bytes).unwrap();
        let stored: Vec<u8> = values.iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect();
        assert_eq!(sha256_hex(&[&stored]), golden, "{}: {:?}", kind.name(), &values[..4]);
    }
}

#[test]
fn floats_are_read_as_they_are() {
    let values = [0.0_f32, -1.5, 65504.0, 6e-8];
    let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    let brains: Vec<u8> =
        values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
    let singles: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let decode = |kind, bytes: &[u8]| blocks::decode("w", kind, [2, 2], bytes).unwrap();
    assert_eq!(decode(Kind::F32, &singles), values);
    assert_eq!(decode(Kind::F16, &halves), values.map(|value| f16::from_f32(value).to_f32()));
    assert_eq!(decode(Kind::BF16, &brains), values.map(|value| half::bf16::from_f32(value).to_f32()));
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_refused() {
    for (kind, shape) in [(Kind::Q4_K, [2, 256]), (Kind::Q4_0, [4, 1]), (Kind::F32, [1, 3])] {
        let error = blocks::decode("w", kind, shape, &[0; 144]).unwrap_err().to_string();
        assert!(error.contains("doesn't fit 144 bytes"), "{error}");
    }
}
