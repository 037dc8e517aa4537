//! The command line as types. Few flags: a knob is a key of the recipe, and `--set` reaches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Quantization-aware training and distillation of small language models; the grid that is trained is the grid that ships.
#[derive(Debug, Parser)]
#[command(name = "qat", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train by a recipe; with `[export]` and `[eval]` in it, through to the verified packed model.
    Train(Train),
    /// Write a trained run, or a float model rounded without training, as a directory that ships.
    Export(Export),
    /// Score a packed or a float model: perplexity, KL to a reference, speed, memory, size.
    Eval(Eval),
}

/// `qat train`.
#[derive(Debug, Args)]
pub struct Train {
    /// The recipe.
    pub config: PathBuf,
    /// Change a key of the recipe, such as train.steps=100.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Run only this variant of the recipe; may be repeated.
    #[arg(long = "variant", value_name = "NAME")]
    pub variants: Vec<String>,
    /// Folder of the run [default: runs/NAME-OF-THE-RECIPE].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Continue the run in OUT, to the same weights as if it had never stopped.
    #[arg(long, conflicts_with = "restart")]
    pub resume: bool,
    /// Delete the checkpoints in OUT and begin anew.
    #[arg(long)]
    pub restart: bool,
    /// auto, cpu, metal or cuda.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `qat export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A run of qat train, or a Hugging Face model directory.
    #[arg(value_name = "RUN_OR_HF_DIR")]
    pub from: PathBuf,
    /// qat (packed) or hf (float values of the grid).
    #[arg(long)]
    pub format: String,
    /// Round a float model's layers to this format, such as int4-g32.
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// Round its embeddings and head to this format, or float [default: int8-g32].
    #[arg(long, value_name = "FORMAT", requires = "weights")]
    pub embeddings: Option<String>,
    /// How scales are chosen: absmax (the runtimes' own rule) or mse [default: mse].
    #[arg(long, value_name = "RULE", requires = "weights")]
    pub scales: Option<String>,
    /// Widen the MLPs by neurons that compute nothing until a format fits.
    #[arg(long, value_name = "MULTIPLE", requires = "weights")]
    pub pad_intermediate: Option<usize>,
    /// The directory to write.
    #[arg(long)]
    pub out: PathBuf,
}

/// `qat eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// A packed or a Hugging Face model directory.
    pub dir: PathBuf,
    /// Text to score: .txt, .raw, .md, .jsonl, .parquet, or stories:seed=…,bytes=….
    #[arg(long, required = true, num_args = 1..)]
    pub data: Vec<String>,
    /// Model whose predictions are the reference of KL and same-top-1.
    #[arg(long, value_name = "DIR")]
    pub against: Option<PathBuf>,
    /// Tokens of a window [default: the model's context, at most 2048].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Put the model's beginning-of-sequence token in front of each window.
    #[arg(long)]
    pub bos: bool,
    /// A gate such as 'kl<0.05'; exit code 1 when one fails.
    #[arg(long, value_name = "EXPR")]
    pub require: Vec<String>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// auto or cpu.
    #[arg(long, default_value = "auto")]
    pub device: String,
}
