//! Real directories, when they are there: the fixtures of every architecture and the small trained models.

use qat_quant::kernels::FloatType;
use qat_quant::{Format, ScaleRule, Scales, pack};
use serde_json::json;

use super::*;
use crate::shared::shared;

/// Every model directory under the shared folders.
fn model_dirs() -> Vec<PathBuf> {
    let roots = ["fixtures", "data/weights", "reference-exports"];
    let mut dirs: Vec<PathBuf> = roots
        .iter()
        .filter_map(|root| shared(root))
        .flat_map(|root| std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()))
        .filter(|dir| dir.join(CONFIG_FILE).is_file())
        .collect();
    dirs.sort();
    dirs
}

#[test]
fn our_reading_of_a_header_is_that_of_the_safetensors_library() {
    let files = model_dirs().into_iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    for path in files.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
    {
        let ours = TensorFiles::open_file(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let library = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let names: Vec<_> = ours.names().collect();
        assert_eq!(names.len(), library.len(), "{}", path.display());
        for name in names {
            let tensor = library.tensor(name).unwrap();
            let info = ours.info(name).unwrap();
            assert_eq!((info.dtype, &*info.shape), (tensor.dtype(), tensor.shape()), "{name}");
            assert_eq!(&*ours.bytes(name).unwrap(), tensor.data(), "{name}");
        }
    }
}

#[test]
fn every_float_tensor_of_the_real_models_is_finite() {
    for dir in model_dirs() {
        let hf = HfDir::open(&dir).unwrap();
        for name in hf.tensors.names() {
            let info = hf.tensors.info(name).unwrap();
            if matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let values = hf.tensors.f32(name, &info.shape).unwrap();
                assert_eq!(values.len(), info.shape.iter().product::<usize>());
            }
        }
    }
}

#[test]
fn the_tokenizers_of_the_real_models_fit_them() {
    for dir in model_dirs() {
        let hf = HfDir::open(&dir).unwrap();
        let vocab_size = hf.config["vocab_size"].as_u64().unwrap() as usize;
        let tokenizer = load_tokenizer(&hf.tokenizer(), vocab_size).unwrap();
        let ids = tokenizer.encode("Once upon a time", false).unwrap();
        assert!(!ids.is_empty(), "{}", dir.display());
        assert!(companions(&hf.path).unwrap().contains(&hf.tokenizer()));
    }
}

#[test]
fn a_tied_model_may_store_only_its_head() {
    let Some(weights) = shared("data/weights") else { return };
    let tensors = HfDir::open(&weights.join("tinystories-656k")).unwrap().tensors;
    assert!(tensors.contains("lm_head.weight") && !tensors.contains("model.embed_tokens.weight"));
    let head = tensors.f32("lm_head.weight", &[2048, 128]).unwrap();
    // The file is F32, the values came from BF16.
    assert!(head.iter().all(|v| v.to_bits() & 0xffff == 0));
}

#[test]
fn float16_weights_are_read() {
    let Some(weights) = shared("data/weights") else { return };
    let tensors = TensorFiles::open_file(&weights.join("gpt2-attn/gpt2_attn_f16.safetensors")).unwrap();
    for name in tensors.names() {
        let info = tensors.info(name).unwrap();
        assert_eq!(info.dtype, Dtype::F16);
        assert!(tensors.f32(name, &info.shape).unwrap().iter().any(|v| *v != 0.0));
    }
}

#[test]
fn a_real_model_is_packed_and_read_back() {
    let Some(weights) = shared("data/weights") else { return };
    let hf = HfDir::open(&weights.join("tinystories-656k")).unwrap();
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("packed");
    let format = Format::Int4G32;
    let mut writer =
        PackedWriter::create(&target, &hf.config, &companions(&hf.path).unwrap(), json!("tinystories-656k"))
            .unwrap();
    for name in hf.tensors.names() {
        let shape = &hf.tensors.info(name).unwrap().shape;
        let values = hf.tensors.f32(name, shape).unwrap();
        if let &[rows, cols] = &**shape {
            let scales = Scales::choose(format, ScaleRule::Absmax, &values, rows, cols);
            let packed = pack(name, format, &values, rows, cols, &scales).unwrap();
            writer.packed(name, packed.as_ref(), Activations::Float).unwrap();
        } else {
            writer.float(name, FloatType::F32, shape, &values).unwrap();
        }
    }
    writer.finish().unwrap();
    let read = PackedDir::open(&target).unwrap();
    // 655,360 weights of 4.5 bits and 5 norms of 128 numbers of 32 bits.
    let want = (655_360.0 * 4.5 + 640.0 * 32.0) / 656_000.0;
    assert_eq!(read.manifest.bits_per_weight, want);
    assert_eq!(read.config, hf.config);
    let names =
        |paths: Vec<PathBuf>| -> Vec<_> { paths.iter().map(|p| p.file_name().unwrap().to_owned()).collect() };
    assert_eq!(names(companions(&read.path).unwrap()), names(companions(&hf.path).unwrap()));
}
