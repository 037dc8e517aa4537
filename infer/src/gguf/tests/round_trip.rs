//! What is written reads back, and has the bytes of llama.cpp's own files.

use std::path::Path;

use crate::gguf::{Announced, Array, Gguf, GgufWriter, Kind, Metadata, Value};
use crate::shared::shared;

fn announced(name: &str, shape: &[usize], kind: Kind) -> Announced {
    Announced { name: name.into(), shape: shape.into(), kind }
}

/// Every type of value.
fn metadata() -> Metadata {
    let mut all = Metadata::new(Path::new("test"));
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("é\n".into()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(1e300),
        Value::Array(Array::I32(vec![1, -2])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::String(vec!["a".into(), String::new()])),
        Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::F32(vec![])])),
    ];
    values.into_iter().enumerate().for_each(|(i, value)| all.set(format!("key.{i}"), value));
    all
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let list = [
        announced("a", &[3, 64], Kind::Q4_0),
        announced("b", &[5], Kind::F32),
        announced("c", &[2, 3, 4], Kind::F16),
    ];
    let contents: Vec<Vec<u8>> = [3 * 36, 20, 48].map(|len| (0..len).map(|i| i as u8).collect()).to_vec();
    let mut writer = GgufWriter::create(&path, &metadata(), &list).unwrap();
    for (tensor, bytes) in list.iter().zip(&contents) {
        writer.write(&tensor.name, bytes).unwrap();
    }
    writer.finish().unwrap();
    let read = Gguf::open(&path).unwrap();
    assert_eq!(read.metadata.entries(), metadata().entries());
    for (tensor, bytes) in list.iter().zip(&contents) {
        let (info, found) = read.tensor(&tensor.name).unwrap();
        assert_eq!((&info.shape, info.kind, &*found), (&tensor.shape, tensor.kind, bytes.as_slice()));
    }
    assert_eq!(read.names().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn the_writer_takes_what_was_announced_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let list = [announced("a", &[8], Kind::F32)];
    let begin = || GgufWriter::create(&path, &metadata(), &list).unwrap();
    assert!(begin().write("b", &[0; 32]).unwrap_err().to_string().contains("the next tensor is a"));
    assert!(begin().write("a", &[0; 31]).unwrap_err().to_string().contains("of 32 bytes, found 31"));
    assert!(begin().finish().unwrap_err().to_string().contains("not written"));
    let mut twice = begin();
    twice.write("a", &[0; 32]).unwrap();
    assert!(twice.write("a", &[0; 32]).unwrap_err().to_string().contains("was not announced"));
    let refused = |list: &[Announced]| GgufWriter::create(&path, &metadata(), list).unwrap_err().to_string();
    assert!(refused(&[announced("a", &[2, 48], Kind::Q4_0)]).contains("multiple of 32, found 48"));
    assert!(refused(&[list[0].clone(), list[0].clone()]).contains("announced twice"));
    assert!(refused(&[announced(&"n".repeat(64), &[8], Kind::F32)]).contains("at most 63 bytes"));
}

/// Files of llama.cpp's own writer, taken apart and put together again, are the same to the byte.
#[test]
fn files_of_llama_cpp_are_written_again_to_the_byte() {
    let files = [
        "llama_tied.q4_0",
        "llama_untied.q4_0",
        "qwen2.q4_0",
        "qwen3.q4_0",
        "lfm2.q4_0",
        "llama_ternary.q2_0",
        "llama_ternary.tq1_0",
        "llama_ternary.tq2_0",
    ];
    for name in files {
        let Some(theirs) = shared(&format!("reference-exports/{name}.gguf")) else { return };
        let read = Gguf::open(&theirs).unwrap();
        let mut names: Vec<&str> = read.names().collect();
        names.sort_by_key(|name| read.get(name).map(|info| info.start()));
        let list: Vec<Announced> = names
            .iter()
            .map(|name| announced(name, &read.get(name).unwrap().shape, read.get(name).unwrap().kind))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("model.gguf");
        let mut writer = GgufWriter::create(&ours, &read.metadata, &list).unwrap();
        for name in names {
            writer.write(name, &read.tensor(name).unwrap().1).unwrap();
        }
        writer.finish().unwrap();
        assert!(std::fs::read(&ours).unwrap() == std::fs::read(&theirs).unwrap(), "{name}");
    }
}

#[test]
fn the_i2_s_file_of_bitnet_cpp_is_refused_by_name() {
    let Some(path) = shared("reference-exports/llama_ternary.i2_s.gguf") else { return };
    let message = Gguf::open(&path).unwrap_err().to_string();
    assert!(message.contains("I2_S, written by bitnet.cpp, in the order of one processor"), "{message}");
}
