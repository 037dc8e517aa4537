//! Safetensors files of our own making, read by the safetensors library.

use qat_quant::kernels::FloatType;

use super::*;

#[test]
fn what_is_written_is_what_the_safetensors_library_reads() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL_FILE);
    let mut writer = TensorWriter::create(&path, "pt").unwrap();
    writer.add("codes", Dtype::U8, &[1, 3], &[1, 2, 3]).unwrap();
    let half = writer.add_values("half", FloatType::BF16, &[2], &[1.5, 1.0 / 3.0]).unwrap();
    writer.add_values("norm", FloatType::F32, &[1, 1], &[0.1]).unwrap();
    let len = writer.finish().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the spool is gone");

    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, len);
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.tensor("codes").unwrap().data(), [1, 2, 3]);
    assert_eq!(read.tensor("codes").unwrap().shape(), [1, 3]);
    assert_eq!(read.tensor("half").unwrap().data(), half);
    assert_eq!(half, [0xc0, 0x3f, 0xab, 0x3e], "1/3 is rounded to 0x3eab, its nearest");
    assert_eq!(read.tensor("norm").unwrap().data(), 0.1_f32.to_le_bytes());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.offset_keys(), ["norm", "half", "codes"], "by falling alignment");
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn the_order_of_adding_does_not_reach_the_file() {
    let dir = TempDir::new().unwrap();
    let write = |file: &str, names: [&str; 3]| {
        let path = dir.path().join(file);
        let mut writer = TensorWriter::create(&path, "pt").unwrap();
        for name in names {
            writer.add(name, Dtype::U8, &[name.len()], name.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(write("1", ["a", "bb", "ccc"]), write("2", ["ccc", "a", "bb"]));
}

#[test]
fn a_tensor_that_does_not_fit_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut writer = TensorWriter::create(&dir.path().join(MODEL_FILE), "pt").unwrap();
    assert_eq!(
        message(&dir, writer.add("a", Dtype::F32, &[2], &[0; 7])),
        "a: F32 of shape [2] does not fit the 7 bytes given"
    );
    assert_eq!(
        message(&dir, writer.add("a", Dtype::U8, &[usize::MAX, 2], &[0; 7])),
        format!("a: U8 of shape [{}, 2] does not fit the 7 bytes given", usize::MAX)
    );
    writer.add("a", Dtype::U8, &[0], &[]).unwrap();
    assert_eq!(message(&dir, writer.add("a", Dtype::U8, &[0], &[])), "a: is already in model.safetensors");
}

#[test]
fn a_value_that_is_not_finite_is_not_written() {
    let dir = TempDir::new().unwrap();
    let mut writer = TensorWriter::create(&dir.path().join(MODEL_FILE), "pt").unwrap();
    for (float, value, want) in [
        (FloatType::F32, f32::NAN, "a: element 1 is NaN; every weight must be finite"),
        (FloatType::F16, 1e5, "a: holds 100000, beyond the range of F16; store it as F32"),
        (FloatType::BF16, f32::INFINITY, "a: element 1 is inf; every weight must be finite"),
    ] {
        assert_eq!(message(&dir, writer.add_values("a", float, &[2], &[0.0, value])), want);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_is_told() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL_FILE);
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let mut writer = TensorWriter::create(&path, "pt").unwrap();
    writer.add("a", Dtype::U8, &[1], &[1]).unwrap();
    assert_eq!(
        message(&dir, writer.finish()),
        "model.safetensors: cannot write (make room, or choose a place on another disk): \
         No space left on device (os error 28)"
    );
}
