//! `qat generate`: a model goes on with a text, or answers one question.
//!
//! The text goes to standard output as it is written, everything else to standard error.

use std::io::{Read as _, stdin};

use anyhow::{Context as _, anyhow, bail};
use qat_infer::chat::Message;
use qat_infer::generate::{SINKS, Windowed};
use qat_infer::{Choice, Opened, Runtime, Sequence, with_runtime};

use crate::chat::Turns;
use crate::writing::{Pen, Setup, known, listen, print};
use crate::{Ending, cli};

/// Longest context unless one is asked for.
pub const LONGEST_DEFAULT: usize = 4096;

/// Runs the command.
pub fn run(args: &cli::Generate) -> anyhow::Result<Ending> {
    let chosen = args.writing.device.parse::<Choice>()?.open()?;
    crate::no_run(&args.dir)?;
    with_runtime!(&chosen, runtime => run_on(runtime, args))
}

fn run_on<R: Runtime>(runtime: &R, args: &cli::Generate) -> anyhow::Result<Ending> {
    let flags = &args.writing;
    let setup = Setup::new(flags, 0.0)?;
    let mut model = Opened::<R::Matrix>::open(&args.dir)?;
    if let Some(activations) = flags.activations.chosen() {
        model.set_activations(activations);
    }
    let tokenizer = model.tokenizer()?;
    let prompt = prompt(args)?;
    let turns = if args.chat { Some(Turns::of(&model, &tokenizer)?) } else { None };
    let ids = match &turns {
        Some(turns) => turns.ids(&tokenizer, &question(args, &prompt))?,
        None => {
            let encoded = tokenizer.encode(prompt.as_str(), true).map_err(|e| anyhow!("the prompt: {e}"))?;
            encoded.get_ids().to_vec()
        }
    };
    let mut sequence = open(runtime, &model, args, ids.len())?;
    let sequence = sequence.as_mut();
    let known = match (&flags.prompt_cache, setup.identity(&model, flags)?) {
        (Some(path), Some(model)) => known(path, &model, &ids, ids.len() - 1, sequence)?,
        _ => 0,
    };
    listen()?;
    if args.echo {
        print(&prompt)?;
    }
    let stops = turns.as_ref().map_or(&model.decoder.config.eos_token_ids, |turns| &turns.endings.tokens);
    let stop_words = turns.as_ref().map_or(&[][..], |turns| &turns.endings.words);
    let pen = Pen { setup: &setup, tokenizer: &tokenizer, stops, stop_words, most: args.tokens };
    let answer = pen.answer(sequence, &ids[..known], &ids[known..])?;
    print("\n")?;
    let [device, isa] = runtime.describe()?;
    eprintln!("{}; {device} ({isa})", answer.summary(ids.len() - known, known));
    if let Some(verdict) = setup.verdict(&answer) {
        eprintln!("{verdict}");
    }
    Ok(if answer.interrupted { Ending::Stopped } else { Ending::Done })
}

/// What goes on with a prompt of `prompt` tokens: over all of it, or in a window.
fn open<'m, R: Runtime>(
    runtime: &R,
    model: &'m Opened<R::Matrix>,
    args: &cli::Generate,
    prompt: usize,
) -> anyhow::Result<Box<dyn Sequence + 'm>> {
    if prompt == 0 {
        bail!("the prompt is empty and the tokenizer puts nothing in front of it: give some text");
    }
    let (flags, longest) = (&args.writing, model.decoder.config.max_position_embeddings);
    if let Some(window) = args.kv_window {
        if flags.prompt_cache.is_some() && prompt > window {
            bail!(
                "--prompt-cache: the prompt of {prompt} tokens doesn't fit --kv-window {window}, and can't be kept"
            );
        }
        let inner = runtime.sequence(&model.decoder, window, flags.kv).context("--kv-window")?;
        let windowed = Windowed::new(inner, window, SINKS.min(window / 2)).context("--kv-window")?;
        return Ok(Box::new(windowed));
    }
    let context = flags.context.unwrap_or(longest.min(LONGEST_DEFAULT));
    if prompt + args.tokens > context {
        bail!(
            "a prompt of {prompt} tokens and {} to write don't fit a context of {context}; lower --tokens, raise \
             --context (the model's longest is {longest}), or go on for ever with --kv-window N",
            args.tokens
        );
    }
    Ok(runtime.sequence(&model.decoder, context, flags.kv)?)
}

/// The conversation that is one question.
fn question(args: &cli::Generate, prompt: &str) -> Vec<Message> {
    let system = args.system.as_deref().map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", prompt)]).collect()
}

/// The prompt of the command line, or standard input.
fn prompt(args: &cli::Generate) -> anyhow::Result<String> {
    match &args.prompt {
        Some(prompt) => Ok(prompt.clone()),
        None => {
            let mut prompt = String::new();
            stdin().read_to_string(&mut prompt).context("the prompt on standard input")?;
            Ok(prompt)
        }
    }
}
