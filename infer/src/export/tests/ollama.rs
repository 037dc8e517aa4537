//! Ollama: what `ollama create` reads beside the GGUF.

use super::*;
use crate::shared::shared;

fn modelfile(out: &Path) -> String {
    std::fs::read_to_string(out.join("Modelfile")).unwrap()
}

#[test]
fn a_chat_model_gets_template_stop_words_and_context() {
    for (fixture, ends) in [("llama_tied", "<|im_end|>"), ("qwen3", "<|im_end|>")] {
        let Some(origin) = shared(&format!("fixtures/{fixture}")) else { return };
        let place = Place::rounded(&origin, |_| Some(format("int4-g32")));
        let out =
            place.export(Target::Ollama, &Options { context: Some(512), ..Options::default() }).unwrap();
        let text = modelfile(&out);
        assert!(
            text.starts_with(
                "FROM ./model.gguf\nTEMPLATE \"\"\"{{ $first := true }}{{ if .System }}<|im_start|>system\n"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "{{ else if eq .Role \"assistant\" }}<|im_end|>\n<|im_start|>assistant\n{{ .Content }}"
            ),
            "{text}"
        );
        assert!(text.ends_with(&format!("PARAMETER stop \"{ends}\"\nPARAMETER num_ctx 512\n")), "{text}");
        assert!(out.join("model.gguf").is_file());
    }
}

#[test]
fn a_model_without_a_chat_template_goes_on_with_its_prompt() {
    let place = Place::random(&tiny("llama", true), |_| Some(format("int8-g32")));
    let out = place.export(Target::Ollama, &Options::default()).unwrap();
    assert_eq!(
        modelfile(&out),
        "FROM ./model.gguf\n# The model has no chat template: it goes on with a text.\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nPARAMETER num_ctx 128\n"
    );
}

#[test]
fn a_hostile_template_costs_the_template_and_not_the_export() {
    let Some(origin) = shared("fixtures/llama_tied") else { return };
    let place = Place::rounded(&origin, |_| Some(format("int8-g32")));
    let template = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
    std::fs::write(place.source.dir.path.join("chat_template.jinja"), template).unwrap();
    let out = place.export(Target::Ollama, &Options::default()).unwrap();
    assert!(modelfile(&out).contains("chat template: it does more than"), "{}", modelfile(&out));
}
