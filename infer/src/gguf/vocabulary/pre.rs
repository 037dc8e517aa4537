//! How byte-level tokenizers cut text before they merge: the ways that llama.cpp has, by its names.
//!
//! Knows no vocabulary. Invariant: a tokenizer that is recognized cuts as llama.cpp does under that name. (One difference stays, which is
//! llama.cpp's: it does not normalize to NFC, whatever the tokenizer asks for.)

use serde_json::{Value, json};

/// Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2, Qwen2.5, Qwen3: one digit at a time.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen3.5: letters with their marks.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o: words by their case.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way of cutting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cuts {
    /// The expression that the ByteLevel pre-tokenizer has built in, GPT-2's.
    Words,
    /// Each digit alone, then as GPT-2.
    DigitsThenWords,
    /// A regular expression.
    Matches(&'static str),
}

/// A way that llama.cpp has.
#[derive(Debug)]
pub(super) struct Pre {
    /// Its name there.
    pub name: &'static str,
    /// Other names under which llama.cpp does the same.
    also: &'static [&'static str],
    cuts: Cuts,
    /// A word that is a token is taken whole, whatever the merges say.
    pub whole_words: bool,
    /// The models whose way it is normalize to NFC first.
    nfc: bool,
}

static KNOWN: [Pre; 6] = [
    Pre {
        name: "gpt-2",
        also: &[
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "mellum",
            "gigachat",
            "modern-bert",
            "a.x-4.0",
            "granite-docling",
        ],
        cuts: Cuts::Words,
        whole_words: false,
        nfc: false,
    },
    Pre {
        name: "smollm",
        also: &["starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        cuts: Cuts::DigitsThenWords,
        whole_words: false,
        nfc: false,
    },
    Pre {
        name: "llama-bpe",
        also: &["llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        cuts: Cuts::Matches(LLAMA3),
        whole_words: true,
        nfc: false,
    },
    Pre {
        name: "qwen2",
        also: &["deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open"],
        cuts: Cuts::Matches(QWEN2),
        whole_words: false,
        nfc: true,
    },
    Pre { name: "qwen35", also: &[], cuts: Cuts::Matches(QWEN35), whole_words: false, nfc: true },
    Pre {
        name: "gpt-4o",
        also: &["llama4", "kanana2", "talkie", "minimax-m2"],
        cuts: Cuts::Matches(GPT4O),
        whole_words: false,
        nfc: false,
    },
];

/// The names, for messages.
fn names() -> String {
    KNOWN.each_ref().map(|pre| pre.name).join(", ")
}

/// The way that llama.cpp calls `name`.
///
/// # Errors
/// It is not known here.
pub(super) fn named(name: &str) -> Result<&'static Pre, String> {
    let found = KNOWN.iter().find(|pre| pre.name == name || pre.also.contains(&name));
    found.ok_or_else(|| format!("the pre-tokenizer {name:?} is not known; known are {}: put the model's tokenizer.json beside the file", names()))
}

/// The way that `tokenizer.json` cuts.
///
/// # Errors
/// It is none that llama.cpp is known to have, or text is changed before in a way that llama.cpp doesn't follow.
pub(super) fn recognize(tokenizer: &Value) -> Result<&'static Pre, String> {
    let normalizer = &tokenizer["normalizer"];
    if !normalizer.is_null() && normalizer["type"] != "NFC" {
        return Err(format!(
            "normalizer {normalizer}: llama.cpp changes no text before a byte-level tokenizer; want null or NFC"
        ));
    }
    let cutting = &tokenizer["pre_tokenizer"];
    let found = cuts(cutting).and_then(|cuts| KNOWN.iter().find(|pre| pre.cuts == cuts));
    found.ok_or_else(|| {
        format!("pre_tokenizer {cutting}: none that llama.cpp is known to have, and under another name it would cut text differently; known are {}", names())
    })
}

/// What the pre-tokenizer `json` does.
fn cuts(json: &Value) -> Option<Cuts> {
    let steps: Vec<&Value> = match json["type"].as_str()? {
        "Sequence" => json["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![json],
    };
    let bytes = |step: &Value, words: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step.get("use_regex").and_then(Value::as_bool).unwrap_or(true) == words
    };
    match *steps.as_slice() {
        [step] if bytes(step, true) => Some(Cuts::Words),
        [first, step]
            if first["type"] == "Digits" && first["individual_digits"] == true && bytes(step, true) =>
        {
            Some(Cuts::DigitsThenWords)
        }
        [first, step] if isolates(first) && bytes(step, false) => {
            let found = first["pattern"]["Regex"].as_str()?;
            [LLAMA3, QWEN2, QWEN35, GPT4O].into_iter().find(|known| *known == found).map(Cuts::Matches)
        }
        _ => None,
    }
}

fn isolates(step: &Value) -> bool {
    step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] != true
}

impl Pre {
    /// The normalizer of `tokenizer.json`.
    pub fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The pre-tokenizer of `tokenizer.json`.
    pub fn pre_tokenizer(&self) -> Value {
        let bytes = |words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words});
        let several = |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
        match self.cuts {
            Cuts::Words => bytes(true),
            Cuts::DigitsThenWords => {
                several(json!({"type": "Digits", "individual_digits": true}), bytes(true))
            }
            Cuts::Matches(pattern) => {
                let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
                several(split, bytes(false))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_recognized_as_it_is_written() {
        for pre in &KNOWN {
            let tokenizer = json!({"normalizer": pre.normalizer(), "pre_tokenizer": pre.pre_tokenizer()});
            assert_eq!(recognize(&tokenizer).unwrap().name, pre.name);
            for name in pre.also {
                assert_eq!(named(name).unwrap().name, pre.name);
            }
        }
    }

    #[test]
    fn a_way_that_is_not_known_is_refused_with_those_that_are() {
        let refused = |tokenizer: Value| recognize(&tokenizer).unwrap_err();
        let almost = QWEN2.replace(r"\p{N}|", r"\p{N}{1,2}|");
        let pattern =
            json!({"type": "Split", "pattern": {"Regex": almost}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let known = "known are gpt-2, smollm, llama-bpe, qwen2, qwen35, gpt-4o";
        assert!(
            refused(json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, bytes]}}))
                .ends_with(known)
        );
        assert!(refused(json!({"pre_tokenizer": null})).ends_with(known));
        assert!(
            refused(json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true}}))
                .ends_with(known)
        );
        let lower =
            refused(json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": KNOWN[0].pre_tokenizer()}));
        assert!(lower.starts_with("normalizer {\"type\":\"Lowercase\"}"), "{lower}");
        assert!(named("default").unwrap_err().contains("put the model's tokenizer.json beside the file"));
    }
}
