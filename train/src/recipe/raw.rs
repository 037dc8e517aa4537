//! What the user wrote: the TOML schema, key for key, with its defaults.
//!
//! Knows no files and no models; checks nothing but spelling and types. [`super::Plan`] is the checked form, in which nothing is
//! optional any more. Every table refuses unknown keys, so that a misspelt one is an error and not a silent default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A whole recipe, as read from TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of everything random: batch order, initial weights of a student from scratch.
    #[serde(default)]
    pub seed: u64,
    /// What is trained.
    pub student: Student,
    /// Whom it learns from; without this table only `loss.cross_entropy` can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Teacher>,
    /// Number formats of the student's matrices.
    pub quant: Quant,
    /// Text to learn from.
    pub data: Data,
    /// Weights of the loss terms.
    #[serde(default)]
    pub loss: Loss,
    /// The optimizer and its schedule.
    #[serde(default)]
    pub optim: Optim,
    /// How long, how often.
    pub train: Train,
    /// Export after training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Export>,
    /// Evaluation of the exported model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<Eval>,
    /// Named changes to the recipe (dotted key → value); each is a run of its own under `OUT/NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<String, toml::Table>,
}

/// `[student]`: where the trained weights come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// Hugging Face directory whose weights the student starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Start from random weights of this shape instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Scratch>,
    /// Depth pruning: number of layers kept, spread evenly, first and last always among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Width pruning: channels of the residual stream kept, the most active ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Width pruning: neurons kept in each MLP, the most active ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Add neurons that compute nothing to each MLP until its width is a multiple of this, so that a format's blocks fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_intermediate: Option<usize>,
}

/// `[student.scratch]`: a student without a past.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scratch {
    /// Hugging Face `config.json` that gives the shape.
    pub config: String,
    /// `tokenizer.json` it is trained with.
    pub tokenizer: String,
}

/// `[teacher]`: the model whose predictions are the target.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// A Hugging Face directory, or `latent`: the student's own float weights of the moment, without quantization.
    pub model: String,
    /// Folder in which its predictions are kept: made before the first step, read in all later ones and by all later runs with the
    /// same teacher, text and window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Tokens of which the probability is kept, the most probable ones; the share of all others is kept as one number.
    #[serde(default = "top_k")]
    pub top_k: usize,
}

/// `[quant]`: which matrix is held in which format, and how gradients pass the rounding.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quant {
    /// Format of the projections inside the layers, or `float`.
    pub weights: String,
    /// Format of the embedding table (and so of a tied head), `float`, or `candidates`: one of these.
    #[serde(default = "int8")]
    pub embeddings: String,
    /// Format of an untied output head, `float`, or `candidates`.
    #[serde(default = "int8")]
    pub head: String,
    /// Tensor-name glob → format or `float`; the longest glob that matches wins over the three keys above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<String, String>,
    /// How scales are chosen: `absmax` (each runtime's own rule), `mse`, or `seq` (`mse` with the levels of affine grids evenly around
    /// zero). With scales that are learned: how they start; then also `gptq`, which the weights start from as well.
    #[serde(default = "mse")]
    pub scales: String,
    /// `ste` (straight-through), `clipped-ste`, `lsq` (scales are learned too), or `seq`: as `lsq` with the levels of affine grids held
    /// evenly around zero, for 2 bits.
    #[serde(default = "lsq")]
    pub gradient: String,
    /// `all`, or `scales`: the codes stay as they start, and only the scales and biases of the grids are trained.
    #[serde(default = "all")]
    pub learn: String,
    /// Windows of the training text on which GPTQ measures the inputs of each matrix.
    #[serde(default = "calibration_windows")]
    pub calibration_windows: usize,
    /// Input of the quantized projections: `float` or `int8-token`.
    #[serde(default = "float")]
    pub activations: String,
    /// How the cache will keep keys and values, rounded so in training too: `float` (not rounded), `f16`, `int8` or `int4`.
    #[serde(default = "float")]
    pub kv: String,
    /// When rounding begins: at the `start`, or with the `decay` of the learning rate (`optim.schedule = "wsd"`): until then the student
    /// is float, and its grids are chosen when their time has come.
    #[serde(default = "start")]
    pub begin: String,
    /// Steps over which rounding is then blended in (λ from 1/n to 1); 0 rounds fully at once.
    #[serde(default)]
    pub warmup_steps: usize,
    /// How λ grows: `linear` or `cosine`.
    #[serde(default = "linear")]
    pub warmup: String,
    /// Share of the weights that is rounded in a step of training, drawn anew in each (quantization noise). What is validated and shipped
    /// is rounded throughout.
    #[serde(default = "one_share")]
    pub noise: f64,
    /// Write into `log.jsonl` which share of the codes has changed since the line before.
    #[serde(default)]
    pub log_flips: bool,
    /// Hold a weight at its code when that has turned back so many times: changed in the direction opposite to its last change. For learned
    /// scales and formats of up to 4 bits; without this key none is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_after: Option<u32>,
    /// Formats to choose from for each projection that no override names, and where `embeddings` or `head` say so for these, by what they
    /// cost it; with `target_bpw`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// Bits per weight of the whole model, embeddings and scales included, that the choice stays within.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bpw: Option<f64>,
}

/// `[data]`: text in, windows of tokens out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Files, globs or `stories:seed=…,bytes=…` to train on.
    pub train: Vec<String>,
    /// The same for validation during training; without it, the tail of the training tokens is held out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub valid: Vec<String>,
    /// Share of the training tokens held out when `valid` is not given.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// What the files hold: `text`, which is the default, or `chat`: conversations, one a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// `chat`: how a conversation is written, by the template of the `model`, which is the default, `plain` (a question and its answer,
    /// one after the other), or by the template in this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// `chat`: what is learned, the `answers`, which is the default, or `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn: Option<String>,
    /// Tokens in a training window.
    pub ctx: usize,
    /// JSONL field or Parquet column with the text.
    #[serde(default = "text")]
    pub field: String,
    /// Text that separates documents in plain text files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Put the model's beginning-of-sequence token before each document.
    #[serde(default)]
    pub bos: bool,
    /// Put the model's end-of-sequence token after each document; without this key, where the model names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos: Option<bool>,
}

/// `[loss]`: weights of the terms, and what they need.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Weight of the cross entropy with the text.
    pub cross_entropy: f64,
    /// Weight of KL(teacher ‖ student).
    pub forward_kl: f64,
    /// Weight of KL(student ‖ teacher).
    pub reverse_kl: f64,
    /// Weight of the generalized Jensen–Shannon divergence.
    pub jsd: f64,
    /// Its β: towards 0 it acts like forward, towards 1 like reverse KL.
    pub jsd_beta: f64,
    /// Weight of KL(teacher ‖ mixture), with `skew_alpha` of the teacher and the rest of the student in the mixture.
    pub skew_kl: f64,
    /// Weight of KL(student ‖ mixture), with the same mixture.
    pub skew_reverse_kl: f64,
    /// Share of the teacher in the mixture.
    pub skew_alpha: f64,
    /// Temperature of the divergences.
    pub temperature: f64,
    /// Weight of the distance between the hidden states of student and teacher behind one layer.
    pub hidden: f64,
    /// Weight of the divergence between the relations that queries, keys and values of that layer draw between tokens.
    pub relations: f64,
    /// The student's layer, counted from 0 as in tensor names, whose counterpart in the teacher stands at the same share of the depth;
    /// without it the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Share of the windows of a batch that the student writes itself, from their first tokens on.
    pub on_policy: f64,
    /// Steps that use what the student wrote at the first of them.
    pub on_policy_every: usize,
    /// First tokens of a window that stay the text's; without it a quarter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_policy_prompt: Option<usize>,
    /// Whether `hidden` and `relations` are shares of the gradient rather than factors: with 1 the term's gradient is as long, at the
    /// start, as that of the terms on predictions.
    pub balance: bool,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            cross_entropy: 0.0,
            forward_kl: 0.0,
            reverse_kl: 0.0,
            jsd: 0.0,
            jsd_beta: 0.5,
            skew_kl: 0.0,
            skew_reverse_kl: 0.0,
            skew_alpha: 0.1,
            temperature: 1.0,
            hidden: 0.0,
            relations: 0.0,
            layer: None,
            on_policy: 0.0,
            on_policy_every: 20,
            on_policy_prompt: None,
            balance: true,
        }
    }
}

/// `[optim]`: the optimizer and the learning-rate schedule.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optim {
    /// `adamw`, or `muon`: Muon for the matrices inside the layers, AdamW for the rest.
    pub kind: String,
    /// Peak learning rate of the matrices that AdamW moves.
    pub lr: f64,
    /// Peak learning rate of the matrices that Muon moves.
    pub muon_lr: f64,
    /// Muon: share of the momentum that a step keeps.
    pub momentum: f64,
    /// Peak learning rate of learned scales and biases, relative to each scale's size.
    pub scale_lr: f64,
    /// Peak learning rate of norms and bias vectors; without it, `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_lr: Option<f64>,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the matrices; scales, norms and biases have none.
    pub weight_decay: f64,
    /// Largest global gradient norm (matrices and norms together, scales by themselves); 0 never clips.
    pub clip: f64,
    /// `cosine`, `wsd` (warm-up, stable, linear decay) or `constant`.
    pub schedule: String,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// `wsd`: share of the steps spent decaying.
    pub decay_share: f64,
    /// Learning rate at the end, as a share of the peak.
    pub final_lr: f64,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            kind: "adamw".into(),
            lr: 1e-4,
            muon_lr: 0.02,
            momentum: 0.95,
            scale_lr: 1e-3,
            norm_lr: None,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            schedule: "cosine".into(),
            warmup_steps: 20,
            decay_share: 0.33,
            final_lr: 0.05,
        }
    }
}

/// `[train]`: how long, how often.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps.
    pub steps: usize,
    /// Windows in a micro-batch.
    pub batch: usize,
    /// Micro-batches added up to one step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// `whole`: all at once, by `[loss]`; `blocks`: one layer after the other, by its distance from the float model.
    #[serde(default = "whole")]
    pub mode: String,
    /// `blocks`: steps at the end that train the scales of all layers, by `[loss]`.
    #[serde(default)]
    pub scale_steps: usize,
    /// Keep only what stands between layers until the backward pass, which computes each layer again: the same gradients with
    /// far less memory, for about a third more time.
    #[serde(default)]
    pub checkpoint_layers: bool,
    /// Steps between lines of `log.jsonl`.
    #[serde(default = "ten")]
    pub log_every: usize,
    /// Steps between validations; 0 validates at the end only.
    #[serde(default)]
    pub valid_every: usize,
    /// Windows scored in a validation.
    #[serde(default = "valid_windows")]
    pub valid_windows: usize,
    /// Steps between checkpoints; 0 saves at the end only.
    #[serde(default = "hundred")]
    pub checkpoint_every: usize,
    /// Checkpoints kept; the newest ones.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
    /// On an NVIDIA GPU, round the inputs of matrix products to TF32 (10 bits of mantissa instead of 23), which its matrix units
    /// multiply several times as fast.
    #[serde(default)]
    pub tf32: bool,
    /// What activations and their gradients are held and multiplied in: `f32`, or on a GPU `bf16`. Weights, optimizer, scales, sums, and
    /// whatever is validated or shipped are f32 with both.
    #[serde(default = "f32")]
    pub precision: String,
    /// Stop when the loss has been this many nats above its start for ten steps in a row.
    #[serde(default = "divergence")]
    pub divergence: f64,
}

/// `[export]`: the packed model written when training is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// `qat` (packed), or the files of a runtime: `mlx`, `gguf`, `ollama`, `bitnet`, `onnx`, `hf`; or a list of such.
    pub format: OneOrMore,
    /// How floats that stay float are stored, `f32`, `f16` or `bf16`; without it as the format has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Directory; without it `OUT/FORMAT`. With several formats, the directory of their directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
}

/// A string, or a list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl OneOrMore {
    /// The strings.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(several) => several,
        }
    }
}

/// `[eval]`: what the exported model is scored on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Text to score: files or `stories:…`.
    pub data: Vec<String>,
    /// Window; without it `data.ctx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctx: Option<usize>,
    /// Put the model's beginning-of-sequence token in front of each window.
    #[serde(default)]
    pub bos: bool,
    /// Model whose predictions are the reference of KL and same-top-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Untrained roundings of the student's start that are scored beside it: `absmax`, `mse`, `seq`, `gptq`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<String>,
    /// Gates such as `kl<0.05` that set the exit code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<String>,
}

fn int8() -> String {
    "int8-g32".into()
}
fn mse() -> String {
    "mse".into()
}
fn start() -> String {
    "start".into()
}
fn f32() -> String {
    "f32".into()
}
fn linear() -> String {
    "linear".into()
}
fn one_share() -> f64 {
    1.0
}
fn all() -> String {
    "all".into()
}
fn calibration_windows() -> usize {
    128
}
fn lsq() -> String {
    "lsq".into()
}
fn float() -> String {
    "float".into()
}
fn text() -> String {
    "text".into()
}
fn top_k() -> usize {
    64
}
fn held_out() -> f64 {
    0.01
}
fn whole() -> String {
    "whole".into()
}
fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn ten() -> usize {
    10
}
fn hundred() -> usize {
    100
}
fn valid_windows() -> usize {
    32
}
fn divergence() -> f64 {
    5.0
}
