//! `qat data` as types.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `qat data`.
#[derive(Debug, Args)]
pub struct Data {
    /// What to do.
    #[command(subcommand)]
    pub command: DataCommand,
}

/// What there is to do with data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Print the first windows as the model sees them, with what of them is learned, and count what there is.
    Show(DataShow),
    /// Make the token files of a recipe's text before they are needed, and say how fast.
    Tokenize(DataTokenize),
    /// Print the text of files or generated stories, a blank line between two documents.
    Text(DataPlain),
}

/// `qat data show`.
#[derive(Debug, Args)]
pub struct DataShow {
    /// What is looked at.
    #[command(flatten)]
    pub text: DataText,
    /// Windows to print.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub windows: usize,
}

/// `qat data tokenize`.
#[derive(Debug, Args)]
pub struct DataTokenize {
    /// What becomes tokens.
    #[command(flatten)]
    pub text: DataText,
    /// Also measure the tokenizer library by itself, on one thread, on the first 64 MiB of the text.
    #[arg(long)]
    pub bench: bool,
    /// Progress in plain lines, without a bar.
    #[arg(long)]
    pub plain: bool,
}

/// `qat data text`.
#[derive(Debug, Args)]
pub struct DataPlain {
    /// Files, globs, or stories:seed=1,bytes=4000000.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// The field of .jsonl and column of .parquet that holds the text [default: text].
    #[arg(long, value_name = "NAME")]
    pub field: Option<String>,
}

/// Text as commands name it.
#[derive(Debug, Args)]
pub struct DataText {
    /// A recipe, or files of data.
    #[arg(required = true, value_name = "RECIPE|FILE")]
    pub targets: Vec<String>,
    /// Files: the model whose tokenizer and chat template they are for.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Files: what they hold [default: chat for .jsonl and .parquet, else text].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<DataFormat>,
    /// Files of conversations: model, plain, or the file of a template [default: model].
    #[arg(long, value_name = "TEMPLATE")]
    pub template: Option<String>,
    /// Files of conversations: answers or all [default: answers].
    #[arg(long, value_name = "WHAT")]
    pub learn: Option<String>,
    /// Files: tokens of a window [default: the model's context, at most 512].
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,
    /// Change a key of the recipe, such as data.ctx=256.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// The variant of the recipe to look at.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

/// What files of data hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataFormat {
    /// Texts.
    Text,
    /// Conversations, one a row.
    Chat,
}
