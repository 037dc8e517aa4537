//! Shipping to MLX, to transformers' BitNet layers, to ONNX Runtime and to Ollama, as users type it.

use crate::workshop::Workshop;

/// The teacher with a chat template of its own.
fn with_chat(shop: &Workshop, template: &str) {
    let config = serde_json::json!({"eos_token": "<|end|>", "chat_template": template});
    shop.write("teacher/tokenizer_config.json", config.to_string());
}

const CHAT: &str = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '<|end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";

#[test]
fn an_mlx_directory_scores_like_the_packed_model_it_was_made_of() {
    let shop = Workshop::furnished();
    shop.done("export teacher --format qat --weights int4-g32 --out packed");
    shop.done("export packed --format mlx --dtype f32 --out mlx");
    let quantization = &shop.json("mlx/config.json")["quantization"];
    assert_eq!(
        *quantization,
        serde_json::json!({
            "group_size": 32, "bits": 4, "mode": "affine",
            "model.embed_tokens": {"group_size": 32, "bits": 8},
        })
    );
    let perplexity = |model: &str| {
        shop.done(&format!("eval {model} --data valid.txt --json {model}.json"));
        shop.json(format!("{model}.json"))["perplexity"].as_f64().expect("a number")
    };
    // The same grid, its products summed in another order.
    let (packed, mlx) = (perplexity("packed"), perplexity("mlx"));
    assert!((packed / mlx - 1.0).abs() < 1e-5, "{packed} {mlx}");
    shop.done("generate mlx --prompt The --tokens 4");
    let again = "export mlx --format qat --weights int4-g32 --out again";
    shop.refused(again, &["quantization_config"]);
}

#[test]
fn ternary_layers_ship_to_transformers_if_their_inputs_were_rounded_in_training() {
    let shop = Workshop::furnished();
    let ternary = "--set quant.weights=ternary-tensor";
    shop.done(&format!("train tiny.toml --out run {ternary} --set quant.activations=int8-token"));
    shop.done("export run --format bitnet --out bitnet");
    let quantization = &shop.json("bitnet/config.json")["quantization_config"];
    assert_eq!(quantization["quant_method"], "bitnet");
    assert_eq!(quantization["linear_class"], "autobitlinear");
    shop.done(&format!("train tiny.toml --out float {ternary} --set quant.activations=float"));
    shop.refused(
        "export float --format bitnet --out x",
        &["model.layers.0.self_attn.q_proj.weight", "float inputs", "int8-token"],
    );
    shop.refused(
        "export teacher --format bitnet --weights ternary-g64 --out x",
        &["bitnet can't hold the grid of ternary-g64", "ternary-tensor"],
    );
}

#[test]
fn onnx_runtime_gets_a_graph_its_data_and_what_it_wants_to_know() {
    let shop = Workshop::furnished();
    shop.done("export teacher --format qat --weights int4-g32 --out packed");
    let said = shop.done("export packed --format onnx --context 96 --out onnx");
    assert!(said.out.contains("read back and equal to the bit"), "{said:?}");
    let genai = shop.json("onnx/genai_config.json");
    assert_eq!(genai["model"]["type"], "llama");
    assert_eq!(genai["model"]["context_length"], 96);
    let graph = shop.read("onnx/model.onnx");
    let mentions = |word: &str| graph.windows(word.len()).any(|window| window == word.as_bytes());
    assert!(mentions("MatMulNBits") && mentions("model.onnx.data") && mentions("GroupQueryAttention"));
    assert!(shop.read("onnx/tokenizer.json") == shop.read("packed/tokenizer.json"));
    shop.refused(
        "export teacher --format onnx --weights int4-affine-g64 --out x",
        &["onnx can't hold", "int4-affine-g64", "formats that fit", "int4-g32", "--requantize"],
    );
    // The refused formats ship once they are rounded again, and the loss is told.
    let said = shop.done("export teacher --format onnx --weights int4-affine-g64 --requantize --out again");
    assert!(said.out.contains("rounded again: int4-affine-g64 → int4-g32"), "{said:?}");
}

#[test]
fn a_chat_model_ships_to_ollama_with_its_template() {
    let shop = Workshop::furnished();
    with_chat(&shop, CHAT);
    shop.done("export teacher --format ollama --weights int8-g32 --out ollama --context 64");
    let modelfile = String::from_utf8(shop.read("ollama/Modelfile")).expect("UTF-8");
    assert!(modelfile.starts_with("FROM ./model.gguf\nTEMPLATE \"\"\"{{ $first := true }}"), "{modelfile}");
    assert!(
        modelfile.contains("{{ .Content }}{{ end }}{{ end }}<|end|>\nassistant: \"\"\"\n"),
        "{modelfile}"
    );
    assert!(modelfile.ends_with("PARAMETER stop \"<|end|>\"\nPARAMETER num_ctx 64\n"), "{modelfile}");
    with_chat(&shop, "{% if x %}");
    shop.done("export teacher --format ollama --weights int8-g32 --out without");
    let modelfile = String::from_utf8(shop.read("without/Modelfile")).expect("UTF-8");
    assert!(
        modelfile.contains("# No TEMPLATE was made of the model's chat template: line 1: syntax error"),
        "{modelfile}"
    );
}
