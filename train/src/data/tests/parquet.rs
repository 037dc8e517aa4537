//! Parquet: string columns as its own writer makes them, and what is refused.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::{Corpus, Source};
use super::{Folder, failure, texts};
use crate::Result;

/// Writes row groups of the one string column that `schema` has, nulls included.
fn write(path: &Path, schema: &str, properties: WriterProperties, groups: &[Vec<Option<&str>>]) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let optional = schema.get_fields()[0].is_optional();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let values: Vec<_> = rows.iter().flatten().map(|&text| ByteArray::from(text)).collect();
        let levels: Vec<_> = rows.iter().map(|text| i16::from(text.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, optional.then_some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

const REQUIRED: &str = "message m { required binary text (STRING); }";
const OPTIONAL: &str = "message m { optional binary text (STRING); }";

/// Row groups of texts and nulls, in the column `text`.
pub(super) fn write_optional(path: &Path, groups: &[Vec<Option<&str>>]) {
    write(path, OPTIONAL, WriterProperties::builder().build(), groups);
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("Row {i} über {}", i % 7)).collect()
}

fn rows(texts: &[String]) -> Vec<Option<&str>> {
    texts.iter().map(|text| Some(text.as_str())).collect()
}

#[test]
fn a_string_column_is_read_in_every_encoding_and_compression() {
    let (first, second) = (numbered(1000), numbered(150));
    let expected = [first.clone(), second.clone()].concat();
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
    ];
    for codec in codecs {
        for dictionary in [false, true] {
            let folder = Folder::new();
            let path = folder.path().join("a.parquet");
            let properties =
                WriterProperties::builder().set_compression(codec).set_dictionary_enabled(dictionary).build();
            write(&path, REQUIRED, properties, &[rows(&first), rows(&second)]);
            let corpus = folder.corpus(&["a.parquet"], None);
            assert_eq!(texts(&corpus), expected, "{codec:?}, dictionary {dictionary}");
            let mut documents = corpus.documents();
            assert_eq!(documents.by_ref().count(), 1150);
            assert_eq!(documents.bytes_read(), corpus.bytes().unwrap());
        }
    }
}

#[test]
fn nulls_are_skipped_and_counted() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    let group: Vec<_> = (0..300).map(|i| (i % 3 != 0).then_some("text")).collect();
    write(&path, OPTIONAL, WriterProperties::default(), &[group, vec![None, Some("last"), None]]);
    let corpus = folder.corpus(&["a.parquet"], None);
    let mut documents = corpus.documents();
    let last = documents.by_ref().last().unwrap().unwrap();
    assert_eq!(last.text, "last");
    assert_eq!(documents.skipped(), 102);
    assert_eq!(texts(&corpus).len(), 201);
}

#[test]
fn bytes_without_an_annotation_are_text_if_they_are_utf8() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    let plain = "message m { required binary text; }";
    write(&path, plain, WriterProperties::default(), &[vec![Some("old writers")]]);
    assert_eq!(texts(&folder.corpus(&["a.parquet"], None)), ["old writers"]);

    let schema = Arc::new(parse_message_type(plain).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values = [ByteArray::from("fine"), ByteArray::from(vec![b'a', 0xff])];
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let message = failure(&folder.corpus(&["a.parquet"], None));
    assert!(message.ends_with("a.parquet: row 2: not UTF-8 at byte 1 of its text"), "{message}");
}

#[test]
fn columns_that_are_not_strings_are_refused_with_those_that_are() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    let schema = "message m { required int64 id; required group tags (LIST) { repeated group list { \
                  required binary element (STRING); } } required binary body (STRING); \
                  required binary blob (BSON); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1], None, None).unwrap();
    column.close().unwrap();
    for levels in [Some([0_i16].as_slice()), None, None] {
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&[ByteArray::from("x")], levels.map(|_| [1_i16].as_slice()), levels).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();

    let cases = [
        ("text", "no column \"text\"; string columns are \"body\""),
        ("id", "column \"id\" is of type INT64, want a string; string columns are \"body\""),
        ("tags", "column \"tags\" is nested (a list, map or struct), want a string at the top level; string"),
        ("blob", "column \"blob\" is of type Bson, want a string; string columns are \"body\""),
    ];
    for (field, expected) in cases {
        let corpus = Corpus::new(vec![Source::Parquet(path.clone())], Some(field), None).unwrap();
        let message = failure(&corpus);
        assert!(message.contains(&format!("a.parquet: {expected}")), "{message}");
    }
    let corpus = Corpus::new(vec![Source::Parquet(path)], Some("body"), None).unwrap();
    assert_eq!(texts(&corpus), ["x"]);
}

#[test]
fn zstd_is_refused_with_the_way_around_it() {
    // The crate can't write zstd here, so the codec in the footer of a snappy file is changed: the only place where
    // the footer has the field header 0x15 (a 32-bit field after the one before it) and snappy (1, zigzag 2).
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    write(&path, REQUIRED, properties, &[rows(&numbered(10))]);
    let mut bytes = std::fs::read(&path).unwrap();
    // path_in_schema: list of one string "text", then codec.
    let before = b"\x19\x18\x04text\x15";
    let at = bytes.windows(before.len()).rposition(|window| window == before).unwrap() + before.len();
    assert_eq!(bytes[at], 2, "snappy");
    bytes[at] = 12;
    std::fs::write(&path, bytes).unwrap();
    let message = failure(&folder.corpus(&["a.parquet"], None));
    assert!(message.contains("a.parquet: compressed with zstd, which can't be read; rewrite it with snappy"));
    assert!(message.contains("compression=\"snappy\""), "{message}");
}

#[test]
fn a_file_that_is_cut_short_or_no_parquet_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    write(&path, REQUIRED, WriterProperties::default(), &[rows(&numbered(1000))]);
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let message = failure(&folder.corpus(&["a.parquet"], None));
        assert!(message.contains("a.parquet: not a Parquet file that can be read: "), "{message}");
    }
}

#[test]
fn damage_anywhere_is_an_error_or_other_text_but_never_a_panic() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (codec, schema) in [(Compression::UNCOMPRESSED, REQUIRED), (Compression::SNAPPY, OPTIONAL)] {
        let properties = WriterProperties::builder().set_compression(codec).build();
        write(&path, schema, properties, &[rows(&numbered(100)), rows(&numbered(30))]);
        let good = std::fs::read(&path).unwrap();
        let corpus = folder.corpus(&["a.parquet"], None);
        for _ in 0..1500 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                let at = rng.next_u64() as usize % bytes.len();
                bytes[at] = rng.next_u32() as u8;
            }
            std::fs::write(&path, bytes).unwrap();
            // The library panics on about 4 of these files.
            let rows = corpus.documents().filter(Result::is_ok).count();
            assert!(rows <= 130, "{rows} rows of 130");
        }
    }
}

#[test]
fn a_dictionary_that_claims_more_values_than_it_has_bytes_is_refused() {
    let folder = Folder::new();
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/parquet");
    let mut bytes = std::fs::read(seeds.join("none")).unwrap();
    // The header of a dictionary of two values: 63 instead.
    let at = bytes.windows(3).position(|header| header == [0x4c, 0x15, 0x04]).unwrap();
    bytes[at + 2] = 0x7e;
    std::fs::write(folder.path().join("a.parquet"), bytes).unwrap();
    let corpus = folder.corpus(&["a.parquet"], None);
    let problem = corpus.documents().find_map(Result::err).unwrap().to_string();
    assert!(problem.contains("a dictionary of 63 values in 19 bytes"), "{problem}");
}

#[test]
fn a_header_that_no_writer_makes_is_refused_before_the_library_reads_it() {
    // One with a number of 17 bytes, for which the library makes room for 29 GB, and one with lists of billions of booleans,
    // through which it counts for seconds.
    for (seed, part) in [
        ("found-dictionary", "footer"),
        ("found-list", "header of a page"),
        ("found-footer", "footer"),
        ("found-children", "footer"),
    ] {
        let folder = Folder::new();
        let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/parquet").join(seed);
        std::fs::copy(seed, folder.path().join("a.parquet")).unwrap();
        let corpus = folder.corpus(&["a.parquet"], None);
        let problem = corpus.documents().find_map(Result::err).unwrap().to_string();
        assert!(problem.contains(&format!("the {part} is damaged")), "{problem}");
    }
}
