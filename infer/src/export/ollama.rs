//! Ollama: the GGUF file, and a Modelfile that says how to talk with it.
//!
//! Ollama doesn't run Jinja. Its template is derived from the model's own and checked against it ([`derive`]); where that can't be,
//! there is no TEMPLATE, and Ollama picks the nearest of those that it knows.
//!
//! Knows no tensors. Invariant: what the Modelfile says of tokens is read back from the GGUF beside it.

use std::path::Path;

use super::gguf::LlamaCpp;
use super::{Exporter, Options, ReadBack, Source};
use crate::chat::ChatTemplate;
use crate::chat::go::{GoTemplate, derive};
use crate::files::{StagedDir, Storage};
use crate::gguf::GGUF_FILE;
use crate::gguf::Gguf;
use crate::model::{Config, Param};
use crate::{Error, Result};

/// Name of the file that `ollama create` reads.
pub(crate) const MODELFILE: &str = "Modelfile";
/// Longest context that is announced unless another is asked for: its KV cache is allocated whole when the model is loaded.
const CONTEXT: usize = 8192;

pub(super) struct Ollama;

impl Exporter for Ollama {
    fn runtime(&self) -> &'static str {
        "Ollama: GGUF and Modelfile"
    }

    fn library(&self) -> &'static str {
        "gguf"
    }

    fn usage(&self, name: &str) -> String {
        format!(
            "```sh\ncd {name}\nollama create {} -f {MODELFILE}\nollama run {0}\n```\n\nTEMPLATE in the {MODELFILE} was derived from the \
             model's chat template and writes the same text; where the {MODELFILE} has none, Ollama picks one by itself.\n",
            name.to_lowercase()
        )
    }

    fn knows(&self, config: &Config) -> Result<()> {
        LlamaCpp.knows(config)
    }

    fn check(&self, source: &Source, options: &Options) -> Result<()> {
        LlamaCpp.check(source, options)
    }

    fn holds(&self, param: &Param, storage: Storage) -> bool {
        LlamaCpp.holds(param, storage)
    }

    fn bytes(&self, config: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64> {
        LlamaCpp.bytes(config, tensors, options)
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let context = options.context.unwrap_or_else(|| source.config.max_position_embeddings.min(CONTEXT));
        LlamaCpp.write(source, options, into)?;
        let tokens = Tokens::of(&Gguf::open(&into.path().join(GGUF_FILE))?, &source.config)?;
        let (go, without) = match ChatTemplate::of(&source.dir.path) {
            Ok(None) => (None, None),
            Ok(Some(template)) => {
                let more = "it does more than Ollama's templates can".to_owned();
                (derive(&template, tokens.bos.as_deref()), Some(more))
            }
            // What is wrong with a template keeps nobody from the weights.
            Err(Error::File { problem, .. }) => (None, Some(problem)),
            Err(other) => return Err(other),
        };
        let text = modelfile(go.as_ref(), without.as_deref(), &tokens, context);
        into.write(MODELFILE, text.as_bytes())
    }

    fn read_back<'a>(&self, source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        LlamaCpp.read_back(source, dir)
    }
}

/// What the tokenizer in the GGUF does on its own, in texts.
#[derive(Debug, Default)]
struct Tokens {
    /// What is put in front of every text.
    bos: Option<String>,
    /// What ends a text.
    ends: Vec<String>,
    /// Tokens that are no text.
    control: Vec<String>,
}

impl Tokens {
    fn of(file: &Gguf, config: &Config) -> Result<Self> {
        let metadata = &file.metadata;
        let texts = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let text = |id: usize| texts.get(id).cloned();
        let named = |name: &str| -> Result<Option<String>> {
            Ok(metadata.size(&format!("tokenizer.ggml.{name}_token_id"))?.and_then(text))
        };
        let adds_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
        let mut ends = Vec::new();
        for end in [named("eos")?, named("eot")?, named("eom")?].into_iter().flatten() {
            ends.push(end);
        }
        ends.extend(config.eos_token_ids.iter().filter_map(|&id| text(id as usize)));
        // A token in such brackets is no text, whatever its type says.
        let control =
            texts.iter().filter(|text| text.starts_with('<') && text.ends_with('>') && text.len() > 2);
        Ok(Self {
            bos: if adds_bos { named("bos")? } else { None },
            ends,
            control: control.cloned().collect(),
        })
    }

    /// What Ollama stops at: the ends of texts, and the token that ends a turn.
    fn stops(&self, go: Option<&GoTemplate>) -> Vec<&str> {
        let after = go.map_or("", |go| go.after_answer.trim_start());
        let turn_end = self
            .control
            .iter()
            .filter(|token| after.starts_with(token.as_str()))
            .max_by_key(|token| token.len());
        let mut stops: Vec<&str> = Vec::new();
        for stop in self.ends.iter().chain(turn_end).map(String::as_str) {
            let can_be_written = !stop.contains(['"', '\n', '\r']);
            if can_be_written && !stops.contains(&stop) {
                stops.push(stop);
            }
        }
        stops
    }
}

/// The Modelfile's text; `without` says why a model with a chat template has none of Go's.
fn modelfile(go: Option<&GoTemplate>, without: Option<&str>, tokens: &Tokens, context: usize) -> String {
    let mut text = format!("FROM ./{GGUF_FILE}\n");
    text += &match (go, without) {
        (Some(go), _) => format!("TEMPLATE \"\"\"{}\"\"\"\n", go.text),
        (None, Some(why)) => format!(
            "# No TEMPLATE was made of the model's chat template: {}.\n\
             # Ollama picks the nearest of its own; the original is in the GGUF, for other programs.\n",
            why.replace(['\n', '\r'], " ")
        ),
        (None, None) => {
            "# The model has no chat template: it goes on with a text.\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n"
                .to_owned()
        }
    };
    for stop in tokens.stops(go) {
        text += &format!("PARAMETER stop \"{stop}\"\n");
    }
    text + &format!("PARAMETER num_ctx {context}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        Tokens {
            bos: None,
            ends: texts(&["<|endoftext|>"]),
            control: texts(&["<|im_start|>", "<|im_end|>", "<|im", "<|endoftext|>"]),
        }
    }

    #[test]
    fn a_modelfile_says_template_stops_and_context() {
        let go = GoTemplate {
            text: "{{ range .Messages }}{{ end }}".into(),
            after_answer: "<|im_end|>\n<|im_start|>user\n".into(),
        };
        assert_eq!(
            modelfile(Some(&go), None, &tokens(), 2048),
            "FROM ./model.gguf\nTEMPLATE \"\"\"{{ range .Messages }}{{ end }}\"\"\"\nPARAMETER stop \"<|endoftext|>\"\n\
             PARAMETER stop \"<|im_end|>\"\nPARAMETER num_ctx 2048\n"
        );
    }

    #[test]
    fn without_a_go_template_there_is_none_and_it_says_why() {
        let text = modelfile(None, Some("line 1: no\nsense"), &tokens(), 512);
        assert!(
            !text.contains("TEMPLATE \"\"\"") && text.contains("chat template: line 1: no sense.\n# Ollama"),
            "{text}"
        );
        assert!(text.ends_with("PARAMETER stop \"<|endoftext|>\"\nPARAMETER num_ctx 512\n"), "{text}");
        assert!(modelfile(None, None, &tokens(), 512).contains("TEMPLATE \"\"\"{{ .Prompt }}\"\"\""));
    }

    #[test]
    fn a_token_that_a_modelfile_can_t_quote_is_no_stop_word() {
        let tokens = Tokens { ends: vec!["a\"b".into(), "</s>".into(), "</s>".into()], ..Tokens::default() };
        assert_eq!(tokens.stops(None), ["</s>"]);
    }
}
