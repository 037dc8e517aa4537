//! `qat generate`: a model goes on with a text.
//!
//! The text goes to standard output as it is written, everything else to standard error.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::ops::ControlFlow;

use anyhow::{Context as _, anyhow, bail};
use qat_infer::generate::{End, Generated, Sampler, Sampling, generate};
use qat_infer::{Choice, Opened, Runtime, with_runtime};

use crate::{Ending, cli};

/// Longest context unless one is asked for.
const LONGEST_DEFAULT: usize = 4096;

/// Runs the command.
pub fn run(args: &cli::Generate) -> anyhow::Result<Ending> {
    let chosen = args.device.parse::<Choice>()?.open()?;
    crate::no_run(&args.dir)?;
    with_runtime!(&chosen, runtime => run_on(runtime, args))
}

fn run_on<R: Runtime>(runtime: &R, args: &cli::Generate) -> anyhow::Result<Ending> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    };
    // Before a model is opened for nothing.
    Sampler::new(&sampling)?;
    let mut model = Opened::<R::Matrix>::open(&args.dir)?;
    if let Some(activations) = args.activations.chosen() {
        model.set_activations(activations);
    }
    let tokenizer = model.tokenizer()?;
    let prompt = prompt(args)?;
    let encoded = tokenizer.encode(prompt.as_str(), true).map_err(|e| anyhow!("the prompt: {e}"))?;
    let ids = encoded.get_ids();
    let context = context(args, ids.len(), model.decoder.config.max_position_embeddings)?;
    let mut sequence = runtime.sequence(&model.decoder, context, args.kv)?;
    let stops = &model.decoder.config.eos_token_ids;
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
    let [device, isa] = runtime.describe()?;
    eprintln!("{}; {device} ({isa})", summary(&generated, ids.len()));
    Ok(Ending::Done)
}

/// Room for the prompt and what is to be written.
fn context(args: &cli::Generate, prompt: usize, longest: usize) -> anyhow::Result<usize> {
    if prompt == 0 {
        bail!("the prompt is empty and the tokenizer puts nothing in front of it: give some text");
    }
    let context = args.context.unwrap_or(longest.min(LONGEST_DEFAULT));
    if prompt + args.tokens > context {
        bail!(
            "a prompt of {prompt} tokens and {} to write don't fit a context of {context}; lower --tokens, or raise \
             --context (the model's longest is {longest})",
            args.tokens
        );
    }
    Ok(context)
}

/// How much was written, and how fast.
fn summary(generated: &Generated, prompt: usize) -> String {
    let speed =
        generated.tokens_per_second().map_or(String::new(), |speed| format!(", then {speed:.1} tokens/s"));
    let end = if generated.end == End::Stop { ", ended by a stop token" } else { "" };
    format!(
        "{} tokens{end}; prompt of {prompt} read in {:.0} ms{speed}",
        generated.tokens.len(),
        generated.first.as_secs_f64() * 1e3
    )
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
