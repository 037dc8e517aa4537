//! `qat init`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::Activations;

/// `qat init`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["recipe", "shape"])))]
pub struct Init {
    /// The recipe to write. What isn't given by flags is asked for.
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: Option<PathBuf>,
    /// Of a recipe: the model, as a folder, a GGUF file or hf://owner/name.
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<String>,
    /// Of a recipe: text to train on, as files, globs or hf://datasets/owner/name/file.
    #[arg(long, num_args = 1.., value_name = "TEXT", conflicts_with = "shape")]
    pub data: Vec<String>,
    /// Of a recipe: other text of that kind, to score with.
    #[arg(long, num_args = 1.., value_name = "TEXT", conflicts_with = "shape")]
    pub valid: Vec<String>,
    /// Of a recipe: what is written in the end, such as qat,mlx,gguf.
    #[arg(long, value_delimiter = ',', conflicts_with = "shape")]
    pub target: Vec<String>,
    /// Of a recipe: the text is conversations, of which the answers are learned; seen by itself in .jsonl files.
    #[arg(long, conflicts_with = "shape")]
    pub chat: bool,
    /// Random weights: smollm2-135m, smollm2-360m, qwen3-0.6b, lfm2.5-350m, gemma-3-270m, gemma-3-1b, phi-4-mini, bitnet-24x1024, or the path of a
    /// config.json.
    #[arg(long)]
    pub shape: Option<String>,
    /// Format of the layers, such as int4-g32 (of a recipe, several with commas between); or, for random weights, float: a Hugging Face
    /// directory in f16.
    #[arg(long, required_unless_present = "recipe")]
    pub format: Option<String>,
    /// Random weights: format of embeddings and head, or float [default: int8-g32].
    #[arg(long, value_name = "FORMAT", requires = "shape")]
    pub embeddings: Option<String>,
    /// Random weights: what the inputs of the packed layers are rounded to [default: float].
    #[arg(long, requires = "shape")]
    pub activations: Option<Activations>,
    /// Of random weights; they are the same in every format.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Random weights: the directory to write. It has no tokenizer.
    #[arg(long, required_unless_present = "recipe", conflicts_with = "recipe")]
    pub out: Option<PathBuf>,
}
