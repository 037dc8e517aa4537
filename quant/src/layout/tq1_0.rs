//! The TQ1_0 block of GGUF: the 256 weights of a TQ2_0 block in 54 bytes instead of 66, for storage and download.
//!
//! | bytes | what |
//! |---|---|
//! | 0..32 | byte m: elements m, m + 32, …, m + 128, five trits |
//! | 32..48 | byte m: elements 160 + m, + 16, …, + 64, five trits |
//! | 48..52 | byte m: elements 240 + m, + 4, + 8, + 12, four trits |
//! | 52..54 | scale, f16 |
//!
//! Trits t = code + 1, the first most significant, make a number below 3^5 = 243 (four trits are followed by a zero).
//! It is stored as a fraction of 256 rounded up, ⌈n·256/243⌉, so that a reader gets trit i from the upper bits of
//! three times the low byte of stored·3^i, without a division.

/// Bytes of a TQ1_0 block.
pub const BYTES: usize = 54;
/// Bytes of a TQ2_0 block, the block of `ternary-g256`.
pub const TQ2_0_BYTES: usize = 66;

const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// The stripes of the block: where their bytes start, where their elements start, their width and their trits a byte.
const STRIPES: [(usize, usize, usize, usize); 3] = [(0, 0, 32, 5), (32, 160, 16, 5), (48, 240, 4, 4)];

/// The TQ1_0 block of the same weights, or `None` when a code of `block` is not −1, 0 or 1.
pub fn from_tq2_0(block: &[u8; TQ2_0_BYTES]) -> Option<[u8; BYTES]> {
    if !super::trits::legal(&block[..64]) {
        return None;
    }
    let mut out = [0; BYTES];
    for (byte, element, width, count) in STRIPES {
        for m in 0..width {
            out[byte + m] = store((0..5).fold(0, |number, i| {
                let trit = if i < count { tq2_0_trit(block, element + m + i * width) } else { 0 };
                3 * number + u16::from(trit)
            }));
        }
    }
    out[52..].copy_from_slice(&block[64..]);
    Some(out)
}

/// The TQ2_0 block of the same weights. Bytes that no writer makes read as some ternary weights too.
pub fn to_tq2_0(block: &[u8; BYTES]) -> [u8; TQ2_0_BYTES] {
    let mut out = [0; TQ2_0_BYTES];
    for (byte, element, width, count) in STRIPES {
        for m in 0..width {
            for i in 0..count {
                let (at, shift) = tq2_0_place(element + m + i * width);
                out[at] |= trit(block[byte + m], i) << shift;
            }
        }
    }
    out[64..].copy_from_slice(&block[52..]);
    out
}

/// The stored byte of a number below 243.
fn store(number: u16) -> u8 {
    (number * 256).div_ceil(243) as u8
}

/// Trit `i` of a stored byte.
fn trit(stored: u8, i: usize) -> u8 {
    ((u16::from(stored.wrapping_mul(POWERS[i])) * 3) >> 8) as u8
}

/// Byte and shift of element `n` in a TQ2_0 block.
fn tq2_0_place(n: usize) -> (usize, usize) {
    (32 * (n / 128) + n % 32, 2 * ((n % 128) / 32))
}

fn tq2_0_trit(block: &[u8; TQ2_0_BYTES], n: usize) -> u8 {
    let (at, shift) = tq2_0_place(n);
    block[at] >> shift & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_five_trits_read_back() {
        for number in 0..243u16 {
            let trits: Vec<u16> = (0..5).map(|i| number / 3u16.pow(4 - i) % 3).collect();
            let read: Vec<u16> = (0..5).map(|i| trit(store(number), i).into()).collect();
            assert_eq!(read, trits);
        }
    }

    #[test]
    fn every_byte_of_every_stripe_survives_the_way_through_tq2_0() {
        for number in (0..243u16).step_by(if cfg!(miri) { 34 } else { 1 }) {
            let mut block = [store(number); BYTES];
            // The last four bytes hold four trits, so the fifth is zero.
            block[48..52].fill(store(number / 3 * 3));
            block[52..].copy_from_slice(&[0x12, 0x34]);
            let wide = to_tq2_0(&block);
            assert_eq!(wide[64..], [0x12, 0x34]);
            assert_eq!(from_tq2_0(&wide), Some(block), "{number}");
        }
    }

    #[test]
    fn every_element_has_its_place() {
        for n in (0..256).step_by(if cfg!(miri) { 23 } else { 1 }) {
            for code in 0..3 {
                let mut wide = [0b01_01_01_01; TQ2_0_BYTES];
                let (at, shift) = tq2_0_place(n);
                wide[at] = wide[at] & !(3 << shift) | code << shift;
                let narrow = from_tq2_0(&wide).unwrap();
                assert_eq!(to_tq2_0(&narrow), wide, "element {n} = {code}");
            }
        }
    }

    #[test]
    fn code_3_has_no_tq1_0_block() {
        assert_eq!(from_tq2_0(&[0b11; TQ2_0_BYTES]), None);
    }
}
