//! Unsigned codes of `BITS` bits as a little-endian bit stream: code i occupies bits `i·BITS..(i+1)·BITS` of the bytes
//! read as one number. Codes of 3 bits cross bytes. This is the order that MLX has inside its u32 words and, for 2
//! bits, four consecutive codes a byte with the first in the low bits.
//!
//! Knows no scales. Eight codes are `BITS` whole bytes; a shorter end is padded with zero bits.

/// Reads `codes.len()` codes.
#[inline(always)]
pub(super) fn unpack<const BITS: usize>(bytes: &[u8], codes: &mut [f32]) {
    let (whole, rest) = codes.as_chunks_mut::<8>();
    let (words, rest_bytes) = bytes.as_chunks::<BITS>();
    for (codes, word) in whole.iter_mut().zip(words) {
        *codes = eight_codes(word);
    }
    if !rest.is_empty() {
        let mut word = [0; BITS];
        word[..rest_bytes.len()].copy_from_slice(rest_bytes);
        rest.copy_from_slice(&eight_codes(&word)[..rest.len()]);
    }
}

/// Writes `codes`, which must be integers of `BITS` bits.
#[inline(always)]
pub(super) fn pack<const BITS: usize>(codes: &[f32], bytes: &mut [u8]) {
    let (whole, rest) = codes.as_chunks::<8>();
    let (words, rest_bytes) = bytes.as_chunks_mut::<BITS>();
    for (codes, word) in whole.iter().zip(words) {
        *word = one_word(codes);
    }
    if !rest.is_empty() {
        let mut codes = [0.0; 8];
        codes[..rest.len()].copy_from_slice(rest);
        rest_bytes.copy_from_slice(&one_word::<BITS>(&codes)[..rest_bytes.len()]);
    }
}

#[inline(always)]
fn eight_codes<const BITS: usize>(word: &[u8; BITS]) -> [f32; 8] {
    if BITS == 8 {
        return std::array::from_fn(|i| f32::from(word[i]));
    }
    let mut bytes = [0; 4];
    bytes[..BITS].copy_from_slice(word);
    let word = u32::from_le_bytes(bytes);
    std::array::from_fn(|i| ((word >> (i * BITS)) & ((1 << BITS) - 1)) as f32)
}

#[inline(always)]
fn one_word<const BITS: usize>(codes: &[f32; 8]) -> [u8; BITS] {
    let word = codes.iter().enumerate().fold(0u64, |word, (i, &code)| word | (code as u64) << (i * BITS));
    std::array::from_fn(|i| word.to_le_bytes()[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All words of two codes at every place of the stream, against the definition, one bit at a time.
    fn the_stream_is_little_endian<const BITS: usize>() {
        let top = 1usize << BITS;
        for place in 0..23 {
            for pair in (0..top * top).step_by(if cfg!(miri) { 37 } else { 1 }) {
                let mut codes = [0.0; 24];
                (codes[place], codes[place + 1]) = ((pair % top) as f32, (pair / top) as f32);
                let mut bytes = vec![0; 3 * BITS];
                pack::<BITS>(&codes, &mut bytes);
                let bit = |n: usize| usize::from(bytes[n / 8] >> (n % 8) & 1);
                for (i, &code) in codes.iter().enumerate() {
                    let want: usize = (0..BITS).map(|b| bit(i * BITS + b) << b).sum();
                    assert_eq!(code, want as f32, "{BITS} bits, code {i}");
                }
                let mut back = [9.0; 24];
                unpack::<BITS>(&bytes, &mut back);
                assert_eq!(back, codes);
            }
        }
    }

    #[test]
    fn code_i_lies_at_bit_i_times_bits() {
        the_stream_is_little_endian::<2>();
        the_stream_is_little_endian::<3>();
        the_stream_is_little_endian::<4>();
    }

    #[test]
    fn eight_bit_codes_are_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut codes = [0.0; 256];
        unpack::<8>(&bytes, &mut codes);
        assert!(codes.iter().zip(0u16..).all(|(&code, i)| code == f32::from(i)));
        let mut back = [0; 256];
        pack::<8>(&codes, &mut back);
        assert_eq!(back.as_slice(), bytes);
    }

    #[test]
    fn a_stream_may_end_in_the_middle_of_eight() {
        let codes = [1.0, 2.0, 3.0, 0.0, 2.0, 1.0, 0.0, 3.0, 3.0, 1.0, 0.0, 2.0];
        let mut bytes = [0; 3];
        pack::<2>(&codes, &mut bytes);
        assert_eq!(bytes, [0b00_11_10_01, 0b11_00_01_10, 0b10_00_01_11]);
        let mut back = [9.0; 12];
        unpack::<2>(&bytes, &mut back);
        assert_eq!(back, codes);
    }
}
