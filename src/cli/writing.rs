//! Flags of what writes text, and of what `qat eval` asks beside predicting one.

use std::{num::NonZero, path::PathBuf};

use clap::Args;
use qat_infer::cpu::KvType;

use super::Inputs;

/// `qat generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// A packed or a Hugging Face model directory, or a GGUF file.
    #[arg(value_name = "MODEL")]
    pub dir: PathBuf,
    /// The text to go on with [default: standard input].
    #[arg(long)]
    pub prompt: Option<String>,
    /// Take the prompt for a question, and write it as the model's chat template wants it.
    #[arg(long)]
    pub chat: bool,
    /// What the system says before the question.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Most tokens to write.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub tokens: usize,
    /// Keep keys and values of so many tokens only, and go on for ever: when they are full, the first four and the newest half are read
    /// again as a text of their own.
    #[arg(long, value_name = "N", conflicts_with = "context")]
    pub kv_window: Option<usize>,
    /// Write the prompt too.
    #[arg(long)]
    pub echo: bool,
    /// How it is written.
    #[command(flatten)]
    pub writing: Writing,
}

/// `qat chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// A packed or a Hugging Face model directory, or a GGUF file.
    #[arg(value_name = "MODEL")]
    pub dir: PathBuf,
    /// What the system says before all else.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub tokens: usize,
    /// How answers are written.
    #[command(flatten)]
    pub writing: Writing,
}

/// What `qat generate` and `qat chat` have in common.
#[derive(Debug, Args)]
pub struct Writing {
    /// Logits are divided by this; 0 always takes the likeliest token [default: 0, of chat 0.7].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw from so many of the likeliest tokens; 0 for all. On Metal at most 64, or all.
    #[arg(long, default_value_t = 40, value_name = "K")]
    pub top_k: usize,
    /// Of those, from the fewest whose probabilities sum to this.
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    pub top_p: f32,
    /// And only from those at least this times as likely as the likeliest.
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    pub min_p: f32,
    /// Divide logits above zero of tokens that were read or written last by this, and multiply the others; 1 is none.
    #[arg(long, default_value_t = 1.0, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: f32,
    /// So many of the last tokens count.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub repetition_last: usize,
    /// End before this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens of prompt and answer that there is room for [default: the model's context, at most 4096].
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// How keys and values are kept: f32, f16, int8 or int4; on Metal f16 or int8.
    #[arg(long, default_value_t = KvType::F16, value_name = "TYPE")]
    pub kv: KvType,
    /// Keep what was read of the prompt (of chat: what the system says) in this file, or go on from what it holds.
    #[arg(long, value_name = "FILE")]
    pub prompt_cache: Option<PathBuf>,
    /// Say how sure the model was of its answer, and whether a larger one should be asked, by this file of qat eval --deferral.
    #[arg(long, value_name = "FILE")]
    pub confidence: Option<PathBuf>,
    /// What the inputs of packed matrices are rounded to, head and all; or model: as the model says.
    #[arg(long, default_value = "model")]
    pub activations: Inputs,
    /// auto, cpu or metal.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Of `qat eval`, what is about tasks.
#[derive(Debug, Args)]
pub struct Tasks {
    /// Tasks of lm-evaluation-harness, with commas between them: lambada_openai, hellaswag, arc_easy, arc_challenge, piqa, winogrande,
    /// boolq, openbookqa.
    #[arg(long, value_delimiter = ',', value_name = "TASK", requires = "task_data")]
    pub tasks: Vec<String>,
    /// Folder with their rows, TASK.jsonl each.
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub task_data: Option<PathBuf>,
    /// Only the first items of each.
    #[arg(long, value_name = "N", requires = "tasks")]
    pub limit: Option<NonZero<usize>>,
    /// Where to write what was found item by item, as JSON lines.
    #[arg(long, value_name = "FILE", requires = "tasks")]
    pub items: Option<PathBuf>,
}

/// Of `qat eval`, what is about asking a larger model.
#[derive(Debug, Args)]
pub struct Deferral {
    /// Instead of scoring the text: let the model go on with parts of it, and find out from which measure of its certainty one can tell
    /// where the model of --against would have written the same. What is found is written to this file, for --confidence of generate
    /// and chat.
    #[arg(long, value_name = "FILE", requires_all = ["against", "data"], conflicts_with_all = ["tasks", "require", "json", "bos"])]
    pub deferral: Option<PathBuf>,
    /// Quality that is to be kept: the share of tokens that the larger model would have written too, those that it is asked for among them.
    #[arg(long, default_value_t = 0.9, value_name = "Q", requires = "deferral")]
    pub keep: f64,
    /// Parts of the text to go on with.
    #[arg(long, default_value = "200", value_name = "N", requires = "deferral")]
    pub prompts: NonZero<usize>,
}
