//! MLX directories: what is read, and each way in which one may lie.

use serde_json::{Value, json};

use super::*;

/// A directory with one quantized matrix `m.weight` of `[2, 64]` in 4 bits and groups of 32, and a float one.
fn mlx_dir(quantization: &Value, change: impl Fn(&str, &mut Dtype, &mut Vec<usize>)) -> TempDir {
    let dir = TempDir::new().unwrap();
    let config =
        json!({"model_type": "llama", "quantization": quantization, "quantization_config": quantization});
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let halves = |values: [f32; 4]| values.map(|v| half::f16::from_f32(v).to_le_bytes()).concat();
    let floats: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let parts = [
        ("m.weight", Dtype::U32, vec![2, 8], (0..64).map(|i| i * 37 % 256).map(|b| b as u8).collect()),
        ("m.scales", Dtype::F16, vec![2, 2], halves([0.5, 1.0, -2.0, 0.25])),
        ("m.biases", Dtype::F16, vec![2, 2], halves([1.0, -3.0, 0.0, 8.0])),
        ("f.weight", Dtype::F32, vec![1, 64], floats),
    ];
    let parts: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = parts
        .into_iter()
        .map(|(name, mut dtype, mut shape, bytes)| {
            change(name, &mut dtype, &mut shape);
            (name, dtype, shape, bytes)
        })
        .filter(|(_, _, shape, _)| !shape.is_empty())
        .collect();
    let views = parts
        .iter()
        .map(|(name, dtype, shape, b)| (*name, TensorView::new(*dtype, shape.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join(MODEL_FILE)).unwrap();
    dir
}

fn four_bits() -> Value {
    json!({"group_size": 32, "bits": 4, "mode": "affine"})
}

#[test]
fn a_matrix_is_scale_times_code_plus_bias() {
    let dir = mlx_dir(&four_bits(), |_, _, _| ());
    assert!(MlxDir::is_at(dir.path()));
    let model = MlxDir::open(dir.path()).unwrap();
    assert_eq!(model.config, json!({"model_type": "llama"}));
    let matrix = model.matrix("m.weight", [2, 64]).unwrap().unwrap();
    let (scales, biases) = ([0.5, 1.0, -2.0, 0.25], [1.0, -3.0, 0.0, 8.0]);
    let want: Vec<f32> = (0..128)
        .map(|i| {
            let byte = (i / 2 * 37 % 256) as u8;
            let code = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
            scales[i / 32] * f32::from(code) + biases[i / 32]
        })
        .collect();
    assert_eq!(matrix.values(), want);
    assert_eq!(matrix.bytes(), 64 + 8 + 8);
    let stored = matrix.stored("m.weight").unwrap();
    assert_eq!(stored.storage.to_string(), "int4-affine-g32");
    assert!(model.matrix("f.weight", [1, 64]).unwrap().is_none(), "has no scales");
}

#[test]
fn a_module_may_have_a_grid_of_its_own_or_none() {
    let with = |own: Value| {
        let mut quantization = json!({"group_size": 64, "bits": 8});
        quantization["m"] = own;
        let dir = mlx_dir(&quantization, |_, _, _| ());
        MlxDir::open(dir.path()).unwrap().matrix("m.weight", [2, 64]).map(|matrix| matrix.map(|m| m.grid))
    };
    assert_eq!(with(json!({"group_size": 32, "bits": 4})).unwrap(), Some(MlxGrid { bits: 4, group: 32 }));
    assert_eq!(with(json!(false)).unwrap(), None);
    // The default asks for other shapes than are there.
    assert!(with(json!(true)).is_err());
}

#[test]
fn a_grid_that_is_not_affine_is_refused() {
    for (quantization, says) in [
        (
            json!({"group_size": 32, "bits": 4, "mode": "mxfp4"}),
            "quantization: mode \"mxfp4\" is not supported",
        ),
        (
            json!({"group_size": 32, "bits": 5}),
            "quantization: an affine format has bits of [2, 3, 4, 8], found 5",
        ),
        (json!({"group_size": 0, "bits": 4}), "a group of [32, 64, 128], found 0"),
        (json!({"bits": 4}), "quantization: group_size is null, want a whole number"),
        (json!({"group_size": 32, "bits": 4, "m": {"bits": -1}}), "quantization: m: bits is -1"),
    ] {
        let dir = mlx_dir(&quantization, |_, _, _| ());
        let found = message(&dir, MlxDir::open(dir.path()));
        assert!(found.starts_with("config.json: ") && found.contains(says), "{found}");
    }
}

#[test]
fn parts_that_do_not_fit_together_are_refused_by_name() {
    type Change = fn(&str, &mut Dtype, &mut Vec<usize>);
    let cases: [(Change, &str); 5] = [
        (
            |name, _, shape| {
                if name == "m.weight" {
                    *shape = vec![4, 4]
                }
            },
            "m.weight: want [2, 8], found [4, 4]",
        ),
        (
            |name, dtype, _| {
                if name == "m.weight" {
                    *dtype = Dtype::I32
                }
            },
            "m.weight: want U32, the codes, found I32",
        ),
        (
            |name, _, shape| {
                if name == "m.scales" {
                    *shape = vec![4, 1]
                }
            },
            "m.scales: want [2, 2], found [4, 1]",
        ),
        (
            |name, _, shape| {
                if name == "m.biases" {
                    shape.clear()
                }
            },
            "m.biases: missing from",
        ),
        (
            |name, dtype, _| {
                if name == "m.scales" {
                    *dtype = Dtype::U16
                }
            },
            "m.scales: want F32, F16 or BF16",
        ),
    ];
    for (change, says) in cases {
        let dir = mlx_dir(&four_bits(), change);
        let found = message(&dir, MlxDir::open(dir.path()).unwrap().matrix("m.weight", [2, 64]));
        assert!(found.starts_with(says), "{found}");
    }
    let dir = mlx_dir(&four_bits(), |_, _, _| ());
    let found = message(&dir, MlxDir::open(dir.path()).unwrap().matrix("m.weight", [2, 48]));
    assert!(found.starts_with("m.weight: rows of 48 weights are no whole groups of 32"), "{found}");
}

#[test]
fn a_scale_that_is_not_finite_is_refused() {
    let dir = mlx_dir(&four_bits(), |_, _, _| ());
    let path = dir.path().join(MODEL_FILE);
    let at = TensorFiles::open(dir.path()).unwrap().bytes("m.biases").unwrap().offset();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at + 2..at + 4].copy_from_slice(&0x7e00_u16.to_le_bytes());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let found = message(&dir, MlxDir::open(dir.path()).unwrap().matrix("m.weight", [2, 64]));
    assert!(found.starts_with("m.biases: element 1 is NaN"), "{found}");
}

#[test]
fn scales_in_f32_run_only_where_two_bytes_hold_them() {
    let dir = mlx_dir(&four_bits(), |name, dtype, shape| {
        if name != "m.weight" && name != "f.weight" {
            // Two halves are one f32: neither f16 nor bf16 holds it.
            (*dtype, *shape) = (Dtype::F32, vec![2, 1]);
        }
    });
    let quantization = json!({"group_size": 64, "bits": 4});
    let config = json!({"model_type": "llama", "quantization": quantization});
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let matrix = MlxDir::open(dir.path()).unwrap().matrix("m.weight", [2, 64]).unwrap().unwrap();
    let found = matrix.stored("m.weight").unwrap_err().to_string();
    assert!(found.starts_with("m.weight: has scales or biases that neither f16 nor bf16 holds"), "{found}");
}
