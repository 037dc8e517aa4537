//! Real directories, when they are there: the fixtures of every architecture and the small trained models.

use super::*;

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
    for dir in model_dirs() {
        let hf = HfDir::open(&dir).unwrap();
        let bytes = std::fs::read(dir.join(MODEL_FILE)).unwrap();
        let library = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let names: Vec<_> = hf.tensors.names().collect();
        assert_eq!(names.len(), library.len(), "{}", dir.display());
        for name in names {
            let tensor = library.tensor(name).unwrap();
            let info = hf.tensors.info(name).unwrap();
            assert_eq!((info.dtype, &*info.shape), (tensor.dtype(), tensor.shape()), "{name}");
            assert_eq!(&*hf.tensors.bytes(name).unwrap(), tensor.data(), "{name}");
        }
    }
}

#[test]
fn every_float_tensor_of_the_real_models_is_finite() {
    let mut read = 0;
    for dir in model_dirs() {
        let hf = HfDir::open(&dir).unwrap();
        for name in hf.tensors.names() {
            let info = hf.tensors.info(name).unwrap();
            if matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let values = hf.tensors.f32(name, &info.shape).unwrap();
                assert_eq!(values.len(), info.shape.iter().product::<usize>());
                read += 1;
            }
        }
    }
    eprintln!("{read} tensors read");
}

#[test]
fn the_tokenizers_of_the_real_models_fit_them() {
    for dir in model_dirs() {
        let hf = HfDir::open(&dir).unwrap();
        let vocab_size = hf.config["vocab_size"].as_u64().unwrap() as usize;
        let tokenizer = load_tokenizer(&hf.tokenizer(), vocab_size).unwrap();
        let ids = tokenizer.encode("Once upon a time", false).unwrap();
        assert!(!ids.is_empty(), "{}", dir.display());
        assert!(hf.companions().unwrap().contains(&hf.tokenizer()));
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
