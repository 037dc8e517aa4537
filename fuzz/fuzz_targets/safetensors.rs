//! A safetensors file: its header, and every tensor that it says it has.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_infer::files::TensorFiles;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = TensorFiles::open_file(&qat_fuzz::file("model.safetensors", bytes)) else { return };
    for name in file.names() {
        let Ok(info) = file.info(name) else { panic!("{name} is listed and has no shape") };
        let Ok(stored) = file.bytes(name) else { panic!("{name} is listed and has no bytes") };
        let bits = info.shape.iter().product::<usize>() * info.dtype.bitsize();
        assert_eq!(stored.len() * 8, bits, "{name}");
        let _ = file.f32(name, &info.shape);
    }
});
