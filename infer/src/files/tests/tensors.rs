//! Safetensors files and shards: what is read, and each way in which a file may lie.

use super::super::header::Header;
use super::*;

const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

/// The message for a file with this header and so many bytes after it.
fn refused(header: &str, data: usize) -> String {
    let dir = TempDir::new().unwrap();
    write_raw(&dir.path().join(MODEL_FILE), header.len() as u64, header, data);
    message(&dir, TensorFiles::open(dir.path()))
}

#[test]
fn values_come_back_as_f32_from_the_three_float_types() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL_FILE);
    // 1.5 and -2 are exact in all three types.
    let f32s: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> = [0x3e00_u16, 0xc000].iter().flat_map(|v| v.to_le_bytes()).collect();
    let bf16s: Vec<u8> = [0x3fc0_u16, 0xc000].iter().flat_map(|v| v.to_le_bytes()).collect();
    let views = [(Dtype::F32, &f32s), (Dtype::F16, &f16s), (Dtype::BF16, &bf16s)]
        .map(|(dtype, bytes)| (dtype.to_string(), TensorView::new(dtype, vec![1, 2], bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let files = TensorFiles::open(dir.path()).unwrap();
    assert_eq!(files.names().collect::<Vec<_>>(), ["BF16", "F16", "F32"]);
    for name in ["F32", "F16", "BF16"] {
        assert_eq!(files.f32(name, &[1, 2]).unwrap(), [1.5, -2.0], "{name}");
    }
    assert_eq!(&*files.bytes("F16").unwrap(), f16s);
    assert_eq!(*files.info("F16").unwrap(), TensorInfo { dtype: Dtype::F16, shape: vec![1, 2] });
}

#[test]
fn bytes_outlive_the_files_they_came_from() {
    let dir = TempDir::new().unwrap();
    write_f32(&dir.path().join(MODEL_FILE), &[("a", &[2], &[1.0, 2.0])]);
    let bytes = TensorFiles::open(dir.path()).unwrap().bytes("a").unwrap();
    dir.close().unwrap();
    assert_eq!(*bytes, [0, 0, 128, 63, 0, 0, 0, 64]);
    assert_eq!(*Bytes::from(vec![1, 2]), [1, 2]);
}

#[test]
fn a_missing_tensor_is_named_with_its_file() {
    let dir = TempDir::new().unwrap();
    write_f32(&dir.path().join(MODEL_FILE), &[("a", &[1], &[0.0])]);
    let files = TensorFiles::open(dir.path()).unwrap();
    assert!(files.contains("a") && !files.contains("b"));
    assert_eq!(
        message(&dir, files.bytes("b")),
        "b: missing from model.safetensors, which holds 1 tensors; is it complete, and does config.json belong to it?"
    );
}

#[test]
fn a_wrong_shape_is_refused_with_both_shapes() {
    let dir = TempDir::new().unwrap();
    write_f32(&dir.path().join(MODEL_FILE), &[("a", &[2, 1], &[0.0, 0.0])]);
    let files = TensorFiles::open(dir.path()).unwrap();
    assert_eq!(
        message(&dir, files.f32("a", &[1, 2])),
        "a: want [1, 2], found [2, 1]; does config.json belong to it? (in model.safetensors)"
    );
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_index() {
    let dir = TempDir::new().unwrap();
    let values = [("nan", &[2][..], &[0.0, f32::NAN][..]), ("inf", &[1], &[f32::NEG_INFINITY])];
    write_f32(&dir.path().join(MODEL_FILE), &values);
    let files = TensorFiles::open(dir.path()).unwrap();
    assert_eq!(
        message(&dir, files.f32("nan", &[2])),
        "nan: element 1 is NaN; every weight must be finite (in model.safetensors)"
    );
    assert_eq!(
        message(&dir, files.f32("inf", &[1])),
        "inf: element 0 is -inf; every weight must be finite (in model.safetensors)"
    );
}

#[test]
fn of_several_bad_values_in_a_large_tensor_the_first_is_named() {
    let dir = TempDir::new().unwrap();
    let mut values = vec![0.5_f32; 100_000];
    (values[70_000], values[99_999]) = (f32::INFINITY, f32::NAN);
    write_f32(&dir.path().join(MODEL_FILE), &[("a", &[1000, 100], &values)]);
    let files = TensorFiles::open(dir.path()).unwrap();
    assert_eq!(
        message(&dir, files.f32("a", &[1000, 100])),
        "a: element 70000 is inf; every weight must be finite (in model.safetensors)"
    );
}

#[test]
fn integers_are_not_weights() {
    let dir = TempDir::new().unwrap();
    let header = r#"{"a":{"dtype":"U32","shape":[2],"data_offsets":[0,8]}}"#;
    write_raw(&dir.path().join(MODEL_FILE), header.len() as u64, header, 8);
    let files = TensorFiles::open(dir.path()).unwrap();
    assert_eq!(
        message(&dir, files.f32("a", &[2])),
        "a: want F32, F16 or BF16, found U32; convert the model to float weights, \
         or choose its unquantized version (in model.safetensors)"
    );
}

#[test]
fn a_truncated_file_is_refused() {
    assert_eq!(
        refused(ONE, 7),
        "model.safetensors: truncated: wants 70 bytes, found 69; copy or download it again"
    );
    let dir = TempDir::new().unwrap();
    for (len, want) in [
        (0, "model.safetensors: is 0 bytes long, too short for a safetensors file; copy it again"),
        (7, "model.safetensors: is 7 bytes long, too short for a safetensors file; copy it again"),
        (8, "model.safetensors: truncated: wants a header of 1 bytes, found 0; copy it again"),
    ] {
        std::fs::write(dir.path().join(MODEL_FILE), &[1, 0, 0, 0, 0, 0, 0, 0][..len]).unwrap();
        assert_eq!(message(&dir, TensorFiles::open(dir.path())), want);
    }
}

#[test]
fn every_cut_of_a_good_file_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL_FILE);
    write_f32(&path, &[("a", &[2], &[1.0, 2.0]), ("b", &[3], &[1.0, 2.0, 3.0])]);
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(TensorFiles::open(dir.path()).is_err(), "{len} of {} bytes", whole.len());
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert_eq!(
        message(&dir, TensorFiles::open(dir.path())),
        "model.safetensors: has 1 bytes after its last tensor; copy or download it again"
    );
}

#[test]
fn a_header_length_that_lies_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL_FILE);
    for (length, want) in [
        (55, "truncated: wants a header of 55 bytes, found 54; copy it again"),
        (
            u64::MAX,
            "claims a header of 18446744073709551615 bytes (at most 100000000); is this a safetensors file?",
        ),
        (
            3,
            "the safetensors header can't be read: EOF while parsing a string at line 1 column 3; \
             write the file again",
        ),
    ] {
        write_raw(&path, length, ONE, 0);
        assert_eq!(message(&dir, TensorFiles::open(dir.path())), format!("model.safetensors: {want}"));
    }
}

#[test]
fn offsets_that_lie_are_refused() {
    let two = |b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    let header = two("[4,8]");
    let start = 8 + header.len();
    assert_eq!(
        refused(&header, 8),
        format!(
            "model.safetensors: b: begins at byte {}, want {}: it overlaps the tensor before it; write the file again",
            start + 4,
            start + 8
        )
    );
    let header = two("[9,13]");
    let start = 8 + header.len();
    assert_eq!(
        refused(&header, 13),
        format!(
            "model.safetensors: b: begins at byte {}, want {}: it leaves a gap; write the file again",
            start + 9,
            start + 8
        )
    );
    for lie in ["[12,8]", "[8,13]"] {
        let (start, end) = lie[1..lie.len() - 1].split_once(',').unwrap();
        assert_eq!(
            refused(&two(lie), 13),
            format!(
                "model.safetensors: b: shape [4] of U8 wants 4 bytes, found offsets {start}..{end}; \
                 write the file again"
            )
        );
    }
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    assert_eq!(
        refused(header, 0),
        "model.safetensors: a: shape [4294967296, 4294967296] of F32 overflows; write the file again"
    );
    let header = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
    assert_eq!(
        refused(header, 1),
        "model.safetensors: a: shape [3] of F4 does not fill whole bytes; write the file again"
    );
}

#[test]
fn offsets_whose_sum_overflows_are_refused() {
    // The most that eight tensors of countable bits can promise: 2^64 - 8 bytes behind the header.
    let piece = (1_u64 << 61) - 1;
    let entry = |i: u64| {
        format!(
            r#""t{i}":{{"dtype":"U8","shape":[{piece}],"data_offsets":[{},{}]}}"#,
            i * piece,
            (i + 1) * piece
        )
    };
    let header = format!("{{{}}}", (0..8).map(entry).collect::<Vec<_>>().join(","));
    assert_eq!(
        refused(&header, 0),
        "model.safetensors: t7: offsets 16140901064495857657..18446744073709551608 overflow; write the file again"
    );
}

#[test]
fn no_change_of_a_byte_leads_outside_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL_FILE);
    write_f32(&path, &[("a", &[2], &[1.0, 2.0]), ("b", &[1, 3], &[1.0, 2.0, 3.0])]);
    let good = std::fs::read(&path).unwrap();
    let header = good.len() - 5 * 4;
    let mut accepted = 0;
    for at in 0..header {
        for byte in 0..=u8::MAX {
            let mut bytes = good.clone();
            bytes[at] = byte;
            let Ok(Header(entries)) = Header::parse(&path, &bytes) else { continue };
            accepted += 1;
            for entry in entries.values() {
                assert!(entry.range.start >= header && entry.range.end <= good.len(), "byte {at} = {byte}");
            }
        }
    }
    // The byte that was there, at least; other names, too.
    assert!(accepted > header && accepted < 256 * header, "{accepted} of {}", 256 * header);
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let one = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    assert_eq!(
        refused(&format!("{{{one},{one}}}"), 1),
        "model.safetensors: the safetensors header can't be read: a is listed twice at line 1 column 105; \
         write the file again"
    );
}

#[test]
fn an_unknown_type_is_refused() {
    let header = r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,1]}}"#;
    let text = refused(header, 1);
    assert!(
        text.starts_with("model.safetensors: the safetensors header can't be read: unknown variant `Q4`"),
        "{text}"
    );
}

/// Two shards and an index that says `weight_map`.
fn shards(weight_map: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    write_f32(&dir.path().join("one.safetensors"), &[("a", &[1], &[1.0])]);
    write_f32(&dir.path().join("two.safetensors"), &[("b", &[1], &[2.0])]);
    std::fs::write(dir.path().join(INDEX_FILE), format!(r#"{{"metadata":{{}},"weight_map":{weight_map}}}"#))
        .unwrap();
    dir
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = shards(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let files = TensorFiles::open(dir.path()).unwrap();
    assert_eq!(files.f32("a", &[1]).unwrap(), [1.0]);
    assert_eq!(files.f32("b", &[1]).unwrap(), [2.0]);
    assert_eq!(files.file_of("b").unwrap(), dir.path().join("two.safetensors"));
    assert_eq!(files.origin(), dir.path());
    write_f32(&dir.path().join(MODEL_FILE), &[("c", &[1], &[3.0])]);
    let names: Vec<_> = TensorFiles::open(dir.path()).unwrap().names().map(str::to_owned).collect();
    assert_eq!(names, ["c"], "the single file counts when both are there");
}

#[test]
fn an_index_that_lies_is_refused() {
    for (weight_map, want) in [
        (
            r#"{"a":"one.safetensors","b":"three.safetensors"}"#,
            "lists three.safetensors, which is missing; copy or download that file",
        ),
        (
            r#"{"a":"two.safetensors","b":"one.safetensors"}"#,
            "a: listed in two.safetensors, is in one.safetensors instead; copy index and shards from one source",
        ),
        (
            r#"{"a":"one.safetensors","c":"two.safetensors"}"#,
            "c: listed in two.safetensors, is in none of the shards; copy index and shards from one source",
        ),
        (
            r#"{"a":"../one.safetensors"}"#,
            "names the shard \"../one.safetensors\"; want a plain file name in the same directory",
        ),
        ("[]", "not the JSON that is wanted: invalid type: sequence, expected a map at line 1 column 28"),
    ] {
        let dir = shards(weight_map);
        assert_eq!(message(&dir, TensorFiles::open(dir.path())), format!("{INDEX_FILE}: {want}"));
    }
}

#[test]
fn a_name_in_two_shards_is_refused() {
    let dir = shards(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    write_f32(&dir.path().join("two.safetensors"), &[("a", &[1], &[9.0]), ("b", &[1], &[2.0])]);
    assert_eq!(
        message(&dir, TensorFiles::open(dir.path())),
        "two.safetensors: a: is also in one.safetensors; remove one of the two"
    );
}

#[test]
fn a_directory_is_not_a_tensor_file() {
    let dir = TempDir::new().unwrap();
    assert_eq!(message(&dir, TensorFiles::open_file(dir.path())), "DIR: is not a regular file");
    assert_eq!(
        message(&dir, TensorFiles::open(dir.path())),
        "model.safetensors: cannot open: No such file or directory (os error 2)"
    );
}
