//! Everything one evaluation found, under names that scripts may rely on.
//!
//! Knows no formatting. Invariant: every key is always present; what was not measured is null.

use serde::{Deserialize, Serialize};

use super::WindowScore;

/// An evaluation. Field names are the keys of `report.json` and of gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Token-level perplexity by `protocol`.
    pub perplexity: f64,
    /// Its standard error, tokens counting as independent.
    pub perplexity_se: f64,
    /// Bits per byte of the scored text (UTF-8): comparable between tokenizers.
    pub bits_per_byte: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Mean KL(reference ‖ model) per token, in nats.
    pub kl_mean: Option<f64>,
    /// Share of tokens with the same most probable id as the reference.
    pub same_top1: Option<f64>,
    /// Prompt tokens read per second.
    pub prefill_tps: f64,
    /// Tokens written per second.
    pub decode_tps: f64,
    /// Milliseconds from a prompt of `prompt_tokens` to the first token.
    pub ttft_ms: f64,
    /// Joules that a token of the prompt took: of the whole chip and its memory, whatever else ran on it.
    #[serde(default)]
    pub prefill_joules_per_token: Option<f64>,
    /// Joules that a token took to be written.
    #[serde(default)]
    pub decode_joules_per_token: Option<f64>,
    /// What was counted for these, or why nothing was.
    #[serde(default)]
    pub energy: String,
    /// Peak resident memory of the process after the speed measurement, before scoring and before a reference is loaded.
    pub peak_rss_bytes: Option<u64>,
    /// Stored bits of all tensors, with scales, embeddings and norms, per weight.
    pub bits_per_weight: f64,
    /// Bytes of the files that hold the tensors.
    pub file_bytes: u64,
    /// Identity of the packed model: SHA-256 over the names and checksums of its tensors; none for a float one.
    pub model_sha256: Option<String>,
    /// What executed the model.
    pub device: String,
    /// Its instruction set.
    pub isa: String,

    /// Mean negative log likelihood per token, in nats.
    pub nll_mean: f64,
    /// Its standard error, tokens counting as independent.
    pub nll_se: f64,
    /// Its standard error, only windows counting as independent.
    pub nll_clustered_se: Option<f64>,
    /// Standard error of `kl_mean`.
    pub kl_se: Option<f64>,
    /// ln perplexity − ln perplexity of the reference.
    pub delta_ln_ppl: Option<f64>,
    /// Its standard error, from paired differences.
    pub delta_ln_ppl_se: Option<f64>,
    /// Root mean square difference of the probabilities given to the true token.
    pub rms_delta_p: Option<f64>,
    /// Perplexity of the reference.
    pub reference_perplexity: Option<f64>,
    /// Entropy of the text's source per token in nats, where it is known: no model's `nll_mean` can stay below it.
    pub entropy_floor_nats: Option<f64>,
    /// Tokens of a window.
    pub ctx: usize,
    /// Scored windows.
    pub windows: usize,
    /// Id of the BOS in front of every window.
    pub bos: Option<u32>,
    /// Bytes that the scored tokens cover.
    pub bytes: usize,
    /// Tokens of the prompt of `prefill_tps` and `ttft_ms`.
    pub prompt_tokens: usize,
    /// Tokens written for `decode_tps`.
    pub decoded_tokens: usize,
    /// The scoring protocol in words.
    pub protocol: String,
    /// Scores window by window, in the order of the text.
    #[serde(default)]
    pub per_window: Vec<WindowScore>,
}
