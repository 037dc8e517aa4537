//! The command line as types. Few flags: a knob is a key of the recipe, and `--set` reaches it.

mod data;
mod init;
mod writing;

use std::{num::NonZero, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use qat_infer::{cpu::KvType, files};

pub use data::{Data, DataCommand, DataFormat, DataPlain, DataShow, DataText, DataTokenize};
pub use init::Init;
pub use writing::{Chat, Deferral, Generate, Tasks, Writing};

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
    /// Go on with a text.
    Generate(Generate),
    /// Talk with a model that has a chat template, in a terminal or through a pipe.
    Chat(Chat),
    /// Write down what a model predicts after each of some token ids, for comparing with another runtime.
    Logits(Logits),
    /// Write a recipe for a model and a text, or a model of random weights in a given shape to measure speed and size with.
    Init(Init),
    /// Say what a recipe or a model will take, before any of it is taken: memory, disk, time, and which devices it fits.
    Plan(Plan),
    /// Measure tokens per second, in the terms of llama-bench, beside what the memory of this machine allows.
    Bench(Bench),
    /// Look at text and conversations as a model learns from them.
    Data(Data),
    /// Say what this machine has to run models with, and test it.
    Doctor,
    /// Say what a model directory is, or what a Mac's GPU would do to run it.
    Inspect(Inspect),
    /// Write the page of a run anew: report.html in its folder, from its log and its files.
    Report(Report),
    /// Put runs side by side: how they went, what they scored, where their recipes differ.
    Compare(Compare),
    /// Write what a shell needs to complete commands, to standard output.
    Completions(Completions),
    /// Write pages for man.
    Man(Man),
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
    /// Show the run on the whole terminal, with its curves.
    #[arg(long)]
    pub dashboard: bool,
    /// Show it in lines, as in a log, also on a terminal.
    #[arg(long, conflicts_with = "dashboard")]
    pub plain: bool,
    /// auto, cpu, metal or cuda.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `qat export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A run of qat train, a packed model, a Hugging Face model directory or a GGUF file.
    #[arg(value_name = "MODEL")]
    pub from: PathBuf,
    /// qat (packed), or the files of another runtime: mlx, gguf, ollama, bitnet, onnx, or hf (the values of the grid as floats).
    #[arg(long)]
    pub format: String,
    /// Round a float model's layers to this format, such as int4-g32.
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// Round its embeddings and head to this format, or float [default: int8-g32].
    #[arg(long, value_name = "FORMAT", requires = "weights")]
    pub embeddings: Option<String>,
    /// How scales are chosen: absmax (the runtimes' own rule), mse, seq (levels evenly around zero), or gptq, which rounds each weight
    /// for what the ones before it got wrong [default: mse].
    #[arg(long, value_name = "RULE", requires = "weights")]
    pub scales: Option<String>,
    /// Text on which gptq measures the inputs of each matrix, as in --data of eval.
    #[arg(long, value_name = "TEXT", requires = "scales", num_args = 1..)]
    pub calibration: Vec<String>,
    /// Windows of 512 tokens drawn from it [default: 128].
    #[arg(long, value_name = "N", requires = "calibration")]
    pub calibration_windows: Option<usize>,
    /// Widen the MLPs by neurons that compute nothing until a format fits.
    #[arg(long, value_name = "MULTIPLE", requires = "weights")]
    pub pad_intermediate: Option<usize>,
    /// Round matrices again whose grid the target lacks, and say what that cost; without it the export refuses.
    #[arg(long)]
    pub requantize: bool,
    /// How floats that stay float are stored: f32, f16 or bf16 [default: as the target has them].
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    /// GGUF: ternary-g256 as TQ1_0 (1.69 bits per weight) instead of TQ2_0 (2.06, faster).
    #[arg(long)]
    pub tq1: bool,
    /// Longest context that the files announce [default: the model's own].
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// What qat eval --json wrote about the packed model, for the model card [default: the run's report.json].
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The directory to write.
    #[arg(long)]
    pub out: PathBuf,
}

/// `qat eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// A packed or a Hugging Face model directory, or a GGUF file.
    pub dir: PathBuf,
    /// Text to score: .txt, .raw, .md, .jsonl, .parquet, or stories:seed=…,bytes=….
    #[arg(long, required_unless_present = "tasks", num_args = 1..)]
    pub data: Vec<String>,
    /// Questions to ask.
    #[command(flatten)]
    pub tasks: Tasks,
    /// When to ask a larger model.
    #[command(flatten)]
    pub deferral: Deferral,
    /// Model whose predictions are the reference of KL and same-top-1, and whose answers are that of tasks.
    #[arg(long, value_name = "DIR")]
    pub against: Option<PathBuf>,
    /// Tokens of a window [default: the model's context, at most 2048], and of a task's longest request [default: the model's context].
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Put the model's beginning-of-sequence token in front of each window.
    #[arg(long)]
    pub bos: bool,
    /// How keys and values are kept: f32, f16, int8 or int4 [default: f32].
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
    /// What the inputs of packed matrices are rounded to, head and all; or model: as the model says.
    #[arg(long, default_value = "model")]
    pub activations: Inputs,
    /// A gate such as 'kl<0.05' or 'hellaswag.acc_norm>0.4'; exit code 1 when one fails.
    #[arg(long, value_name = "EXPR")]
    pub require: Vec<String>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// auto, cpu or metal.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `qat logits`.
#[derive(Debug, Args)]
pub struct Logits {
    /// A packed or a Hugging Face model directory, or a GGUF file.
    #[arg(value_name = "MODEL")]
    pub dir: PathBuf,
    /// Token ids with commas between them, read from the beginning of a text.
    #[arg(long, required = true, value_delimiter = ',', value_name = "ID")]
    pub ids: Vec<u32>,
    /// Go on for so many tokens, always the likeliest; they and what follows them are written too.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub tokens: usize,
    /// How keys and values are kept: f32, f16, int8 or int4 [default: as exactly as the device can].
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
    /// What the inputs of packed matrices are rounded to, head and all; or model: as the model says.
    #[arg(long, default_value = "model")]
    pub activations: Inputs,
    /// The safetensors file to write: ids (I64 `[tokens]`) and logits (F32 `[tokens, vocabulary]`).
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// auto, cpu or metal.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// What the inputs of a matrix are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Activations {
    /// 8-bit integers with one scale per token.
    Int8,
    /// Nothing.
    Float,
}

impl From<Activations> for files::Activations {
    fn from(chosen: Activations) -> Self {
        match chosen {
            Activations::Int8 => Self::Int8Token,
            Activations::Float => Self::Float,
        }
    }
}

/// What the inputs of a model's packed matrices are rounded to when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Inputs {
    /// 8-bit integers with one scale per token.
    Int8,
    /// Nothing.
    Float,
    /// What the model was trained with.
    Model,
}

impl Inputs {
    /// What replaces the model's own choice.
    pub fn chosen(self) -> Option<files::Activations> {
        match self {
            Self::Int8 => Some(files::Activations::Int8Token),
            Self::Float => Some(files::Activations::Float),
            Self::Model => None,
        }
    }
}

/// `qat plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// A recipe, a packed or a Hugging Face model directory, a GGUF file, a config.json, or the name of a shape of qat init.
    pub target: PathBuf,
    /// Change a key of the recipe, such as train.batch=8.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Plan only this variant of the recipe; may be repeated.
    #[arg(long = "variant", value_name = "NAME")]
    pub variants: Vec<String>,
    /// A shape in the place of the models of the recipe, when they are not here.
    #[arg(long)]
    pub shape: Option<String>,
    /// Where a recipe would train: auto, cpu, metal or cuda. It need not be here.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Train a smaller student for some steps on this machine, and say how long the recipe will take here.
    #[arg(long, conflicts_with = "rate")]
    pub probe: bool,
    /// How many tokens are trained on in a second, to say how long the recipe will take.
    #[arg(long = "tokens-per-second", value_name = "N")]
    pub rate: Option<f64>,
    /// Format of the layers of a shape without a recipe, or float [default: int4-g32].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Format of its embeddings and head, or float [default: int8-g32].
    #[arg(long, value_name = "FORMAT")]
    pub embeddings: Option<String>,
    /// Contexts to say the size of keys and values for, in tokens; several with commas.
    #[arg(long, default_value = "2048,8192,32768", value_delimiter = ',', value_name = "N")]
    pub context: Vec<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `qat bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Packed or Hugging Face model directories, or GGUF files.
    #[arg(required_unless_present = "train", value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// How fast steps are taken, instead.
    #[command(flatten)]
    pub training: TrainBench,
    /// Tokens of a prompt read at once; several with commas; 0 for none.
    #[arg(long, default_value = "512", value_delimiter = ',', value_name = "N")]
    pub pp: Vec<usize>,
    /// Tokens generated one by one; several with commas; 0 for none.
    #[arg(long, default_value = "128", value_delimiter = ',', value_name = "N")]
    pub tg: Vec<usize>,
    /// Tokens in the KV cache before the clock starts; several with commas.
    #[arg(long, default_value = "0", value_delimiter = ',', value_name = "N")]
    pub depth: Vec<usize>,
    /// Threads; several with commas [default: the processors of this machine].
    #[arg(long, value_delimiter = ',', value_name = "N")]
    pub threads: Vec<NonZero<usize>>,
    /// Timed repetitions of each test, after a warm-up.
    #[arg(long, default_value = "5", value_name = "N")]
    pub reps: NonZero<usize>,
    /// How keys and values are kept: f32, f16, int8 or int4.
    #[arg(long, default_value_t = KvType::F16, value_name = "TYPE")]
    pub kv: KvType,
    /// What the inputs of packed matrices are rounded to, head and all; or model: as the model says.
    #[arg(long, default_value = "model")]
    pub activations: Inputs,
    /// Write tokens without a pause for so long instead, such as 90s, 10m or 1h, and draw how fast; Ctrl-C ends it with what it has.
    #[arg(long, value_name = "DURATION", value_parser = crate::bench::length)]
    pub sustain: Option<Duration>,
    /// Where Linux shows the counters of energy [default: /sys/class/powercap].
    #[arg(long, value_name = "DIR")]
    pub powercap: Option<PathBuf>,
    /// Seed of the token ids.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// What is printed.
    #[arg(long, default_value = "md")]
    pub format: BenchFormat,
    /// Where to write the results as JSON too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `qat bench --train`.
#[derive(Debug, Args)]
pub struct TrainBench {
    /// Measure training instead: the steps of this recipe, on random tokens; its data is not read, nothing is written.
    #[arg(
        long = "train",
        value_name = "RECIPE",
        conflicts_with_all = ["dirs", "pp", "tg", "depth", "threads", "reps", "kv", "activations", "seed", "sustain", "powercap"]
    )]
    pub train: Option<PathBuf>,
    /// Change a key of the recipe, such as train.batch=8.
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "dirs")]
    pub sets: Vec<String>,
    /// The variant of the recipe to measure.
    #[arg(long, value_name = "NAME", conflicts_with = "dirs")]
    pub variant: Option<String>,
    /// Timed steps, after three to warm up.
    #[arg(long, default_value = "10", value_name = "N", conflicts_with = "dirs")]
    pub steps: NonZero<usize>,
    /// auto, cpu, metal or cuda.
    #[arg(long, default_value = "auto", conflicts_with = "dirs")]
    pub device: String,
}

/// `qat inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A packed or a Hugging Face model directory, or a GGUF file.
    #[arg(value_name = "MODEL")]
    pub dir: PathBuf,
    /// List what Metal is told to run for a pass, the bytes that it moves, and the time predicted from them.
    #[arg(long)]
    pub dispatches: bool,
    /// Tokens of the context that the pass fills [default: the model's context, at most 2048].
    #[arg(long, value_name = "N", requires = "dispatches")]
    pub context: Option<usize>,
    /// How keys and values are kept: f16 or int8.
    #[arg(long, default_value_t = KvType::F16, value_name = "TYPE", requires = "dispatches")]
    pub kv: KvType,
    /// Tokens of the pass: 1 to generate, up to 256 of a prompt.
    #[arg(long, default_value_t = 1, value_name = "N", requires = "dispatches")]
    pub tokens: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `qat report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Folders that qat train has written, or folders of such.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Write each picture of the page as an SVG file of its own too, into this folder.
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
}

/// `qat compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Folders that qat train has written, or folders of such.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Write the comparison as a page too, with the curves of all runs.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `qat completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    pub shell: Shell,
}

/// `qat man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The folder to write them to.
    #[arg(long, default_value = "man/man1")]
    pub out: PathBuf,
}

/// Notation of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// A table in Markdown.
    Md,
    /// A line per test, with the names of llama-bench; not of training.
    Csv,
    /// An object per test, with the names of llama-bench and every repetition.
    Json,
}
