//! `qat generate`: a model goes on with a text.
//!
//! The text goes to standard output as it is written, everything else to standard error.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::ops::ControlFlow;

use anyhow::{Context as _, anyhow, bail};
use qat_infer::Loaded;
use qat_infer::generate::{End, Sampling, generate};

use crate::{Ending, cli};

/// Longest context unless one is asked for.
const LONGEST_DEFAULT: usize = 4096;

/// Runs the command.
pub fn run(args: &cli::Generate) -> anyhow::Result<Ending> {
    let runtime = args.device.parse::<qat_infer::Choice>()?.runtime()?;
    crate::no_run(&args.dir)?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    };
    // Before a model is opened for nothing.
    qat_infer::generate::Sampler::new(&sampling)?;
    let mut model = Loaded::open(&args.dir, runtime)?;
    if let Some(activations) = args.activations.chosen() {
        model.set_activations(activations);
    }
    let tokenizer = model.tokenizer()?;
    let prompt = prompt(args)?;
    let encoded = tokenizer.encode(prompt.as_str(), true).map_err(|e| anyhow!("the prompt: {e}"))?;
    let ids = encoded.get_ids();
    if ids.is_empty() {
        bail!("the prompt is empty and the tokenizer puts nothing in front of it: give some text");
    }
    let longest = model.config().max_position_embeddings;
    let context = args.context.unwrap_or(longest.min(LONGEST_DEFAULT));
    if ids.len() + args.tokens > context {
        bail!(
            "a prompt of {} tokens and {} to write don't fit a context of {context}; lower --tokens, or raise --context \
             (the model's longest is {longest})",
            ids.len(),
            args.tokens
        );
    }
    let mut sequence = model.sequence(context, args.kv, 1)?;
    let stops = &model.config().eos_token_ids;
    let mut stream = tokenizer.decode_stream(true);
    let mut trouble = None;
    if args.echo {
        write(&prompt)?;
    }
    let generated = generate(&mut *sequence, ids, args.tokens, stops, &sampling, &mut |id| {
        let piece = stream.step(id).map_err(|e| anyhow!("token {id}: {e}"));
        match piece.and_then(|piece| write(&piece.unwrap_or_default())) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                trouble = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    write("\n")?;
    let speed =
        generated.tokens_per_second().map_or(String::new(), |speed| format!(", then {speed:.1} tokens/s"));
    let end = if generated.end == End::Stop { ", ended by a stop token" } else { "" };
    eprintln!(
        "{} tokens{end}; prompt of {} read in {:.0} ms{speed}; {runtime} ({})",
        generated.tokens.len(),
        ids.len(),
        generated.first.as_secs_f64() * 1e3,
        model.isa()?
    );
    Ok(Ending::Done)
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

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
