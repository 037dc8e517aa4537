//! Files that attack their reader: every shape of a published hole in a GGUF parser is refused with a sentence, before anything of
//! the size that it claims is allocated.

use super::bytes::Raw;

/// A file of one tensor with `bytes` bytes behind the header.
fn one(dims: &[u64], kind: u32, offset: u64, bytes: usize) -> Raw {
    Raw::header(1, 0).tensor("w", dims, kind, offset).data(bytes)
}

#[test]
fn a_sound_file_opens() {
    let file = one(&[64, 2], 0, 0, 512).open().unwrap();
    let (info, bytes) = file.tensor("w").unwrap();
    assert_eq!((info.shape.as_slice(), bytes.len()), ([2, 64].as_slice(), 512));
}

#[test]
fn what_is_no_gguf_file_is_refused() {
    Raw::default().refused("truncated");
    Raw::default().raw(b"GGU").refused("truncated");
    Raw::default().raw(b"PK\x03\x04rest of an archive").refused("is it a GGUF file?");
    Raw::default().raw(b"GGUF").u32(1).u64(0).u64(0).refused("version 1");
    Raw::default().raw(b"GGUF").u32(4).u64(0).u64(0).refused("version 4");
    Raw::default().raw(b"GGUF").raw(&3u32.to_be_bytes()).u64(0).u64(0).refused("big-endian");
}

/// CVE-2024-21802 and its series: counts and lengths from the file sized the heap.
#[test]
fn counts_of_the_header_allocate_nothing() {
    for count in [(1 << 16) + 1, u64::from(u32::MAX), 1 << 61, u64::MAX] {
        Raw::header(count, 0).refused("at most 65536");
        Raw::header(0, count).refused("at most 65536");
    }
    Raw::header(1 << 16, 0).refused("truncated");
    Raw::header(0, 1 << 16).refused("truncated");
}

/// CVE-2025-66960 and candle#3533: a file of less than 64 bytes asks for gigabytes.
#[test]
fn a_short_file_that_claims_a_long_string_is_refused() {
    for len in [(16 << 20) + 1, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7] {
        Raw::header(0, 1).u64(len).refused("a string claims");
        Raw::header(0, 1).string("key").u32(8).u64(len).refused("key: a string claims");
        Raw::header(1, 0).u64(len).refused("a string claims");
    }
    Raw::header(0, 1).u64(16 << 20).refused("truncated");
}

#[test]
fn an_array_longer_than_the_file_is_refused_before_it_is_allocated() {
    for len in [5, 1 << 20, 1 << 61, u64::MAX] {
        Raw::header(0, 1).string("a").u32(9).u32(4).u64(len).raw(&[0; 16]).refused("an array claims");
        Raw::header(0, 1).string("a").u32(9).u32(8).u64(len).raw(&[0; 16]).refused("an array claims");
        Raw::header(0, 1).string("a").u32(9).u32(12).u64(len).raw(&[0; 16]).refused("an array claims");
        Raw::header(0, 1).string("a").u32(9).u32(9).u64(len).raw(&[0; 16]).refused("an array claims");
    }
    // Elements of one byte fit as many times as there are bytes.
    let bytes = Raw::header(0, 1).string("a").u32(9).u32(0).u64(16).raw(&[7; 16]);
    assert!(bytes.open().is_ok());
}

#[test]
fn arrays_nested_without_end_do_not_exhaust_the_stack() {
    let deep = (0..100_000).fold(Raw::header(0, 1).string("a").u32(9), |raw, _| raw.u32(9).u64(1));
    deep.refused("nested more than 4 deep");
}

#[test]
fn types_that_gguf_does_not_have_are_refused() {
    for id in [13, 255, u32::MAX] {
        Raw::header(0, 1).string("k").u32(id).u64(0).refused("which GGUF doesn't have");
        Raw::header(0, 1).string("k").u32(9).u32(id).u64(0).refused("which GGUF doesn't have");
    }
    Raw::header(0, 1).string("k").u32(7).raw(&[2]).refused("a boolean is 2");
    Raw::header(0, 1).u64(2).raw(&[0xff, 0xfe]).u32(4).u32(0).refused("not UTF-8");
}

/// CVE-2026-33298 (`ggml_nbytes`): the product of the sizes wraps to something small.
#[test]
fn sizes_whose_product_overflows_are_refused() {
    one(&[1 << 32, 1 << 32], 0, 0, 64).refused("overflow");
    one(&[1 << 32, 1 << 31, 4], 0, 0, 64).refused("overflow");
    one(&[1 << 62, 1], 0, 0, 64).refused("overflow");
    one(&[32, 1 << 59], 2, 0, 64).refused("overflow");
    one(&[u64::MAX, 1], 0, 0, 64).refused("overflow");
    one(&[1 << 31, 1 << 31, 1 << 31, 1], 8, 0, 64).refused("overflow");
}

/// CVE-2025-53630 and CVE-2026-27940: offsets and sizes that are added past the end of the numbers.
#[test]
fn offsets_that_overflow_are_refused() {
    for offset in [u64::MAX, u64::MAX - 31, 1 << 63] {
        one(&[8], 0, offset, 64).refused("w: ");
    }
    one(&[8], 0, u64::MAX - 63, 64).refused("overflow");
}

/// `GGML_PAD` (llama.cpp #24759): a size whose padding wraps to zero.
#[test]
fn a_size_whose_padding_overflows_is_refused() {
    one(&[u64::MAX / 4], 0, 0, 64).refused("w: ");
    let two = Raw::header(2, 0).tensor("a", &[(1 << 62) - 1], 0, 0).tensor("b", &[8], 0, 0);
    two.data(64).refused("a: ");
}

/// CVE-2026-7482 ("Bleeding Llama"): sizes larger than the data, so that the reader's own memory is read.
#[test]
fn sizes_that_lie_about_the_data_are_refused() {
    one(&[64, 3], 0, 0, 512).refused("w: truncated");
    one(&[256, 2], 14, 0, 210).refused("w: truncated");
    one(&[1 << 20, 1 << 20], 0, 0, 512).refused("w: truncated");
    one(&[64], 0, 512, 512).refused("w: truncated");
}

#[test]
fn dimensions_out_of_range_are_refused() {
    Raw::header(1, 0).tensor("w", &[], 0, 0).data(64).refused("0 dimensions");
    one(&[1, 1, 1, 1, 1], 0, 0, 64).refused("5 dimensions");
    Raw::header(1, 0).string("w").u32(u32::MAX).refused("4294967295 dimensions");
    one(&[0, 4], 0, 0, 64).refused("a size of 0");
    one(&[4, 0], 0, 0, 64).refused("a size of 0");
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    for (kind, block) in [(2, 32), (8, 32), (10, 256), (12, 256), (14, 256), (34, 256), (35, 256), (42, 64)] {
        one(&[block / 2, 2], kind, 0, 512).refused(&format!("wants a multiple of {block}"));
    }
}

#[test]
fn a_type_that_is_not_read_is_named_with_its_writer() {
    for (id, name) in [
        (16, "IQ2_XXS, written by llama.cpp"),
        (36, "I2_S, written by bitnet.cpp"),
        (39, "MXFP4, written by llama.cpp"),
        (142, "PQ2_0, written by PrismML's llama.cpp"),
        (4, "a newer or another tool"),
        (43, "a newer or another tool"),
        (u32::MAX, "a newer or another tool"),
    ] {
        one(&[256], id, 0, 512).refused(&format!("w: type {id} ("));
        one(&[256], id, 0, 512).refused(name);
    }
}

/// llama.cpp #19856: names that are there twice.
#[test]
fn names_that_are_there_twice_are_refused() {
    Raw::header(0, 2).number("k", 1).number("k", 1).refused("k: is there twice");
    let twice = Raw::header(2, 0).tensor("w", &[8], 0, 0).tensor("w", &[8], 0, 32);
    twice.data(64).refused("w: is there twice");
}

#[test]
fn an_alignment_that_is_no_power_of_two_is_refused() {
    for alignment in [0, 3, 24, 33, (1 << 20) + 1, 1 << 21, 1 << 31, u32::MAX] {
        let file = Raw::header(1, 1).number("general.alignment", alignment).tensor("w", &[8], 0, 0);
        file.data(32).refused("general.alignment");
    }
    let text = Raw::header(1, 1).string("general.alignment").u32(8).string("32").tensor("w", &[8], 0, 0);
    text.data(32).refused("general.alignment");
}

/// candle#2040: a tensor that begins where its elements can't. Gaps and overlaps are refused, so that every tensor is aligned.
#[test]
fn tensors_that_overlap_leave_gaps_or_are_not_aligned_are_refused() {
    let two = |second| Raw::header(2, 0).tensor("a", &[8], 0, 0).tensor("b", &[8], 0, second).data(256);
    two(0).refused("b: begins at byte");
    two(16).refused("it overlaps");
    two(31).refused("it overlaps");
    two(33).refused("it leaves a gap");
    two(64).refused("it leaves a gap");
    one(&[8], 0, 1, 64).refused("it leaves a gap");
    two(32).refused("bytes after its last tensor");
}

#[test]
fn every_byte_of_a_header_may_be_any_other() {
    // What a damaged file says is an error or a file, never a panic or an allocation out of proportion.
    let sound = Raw::header(2, 2)
        .number("general.alignment", 32)
        .string("a")
        .u32(9)
        .u32(8)
        .u64(2)
        .string("x")
        .string("yz")
        .tensor("a", &[32, 2], 2, 0)
        .tensor("b", &[8], 0, 64)
        .data(96);
    assert!(sound.open().is_ok());
    for at in 0..sound.0.len() - 96 {
        for change in [1, 16, 128, 255] {
            let mut damaged = sound.clone();
            damaged.0[at] ^= change;
            let _ = damaged.open();
        }
        let mut short = sound.clone();
        short.0.truncate(at);
        assert!(short.open().is_err(), "cut at {at}");
    }
}
