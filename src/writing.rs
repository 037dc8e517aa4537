//! What `qat generate` and `qat chat` have in common: the flags checked, an answer written to standard output while it comes, Ctrl-C.

use std::io::{Write as _, stdout};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use qat_infer::eval::Deferral;
use qat_infer::files::{Tokenizer, read_json};
use qat_infer::generate::{
    Certainty, End, Generated, Repetition, Sampler, Sampling, TextStream, Writing, load_past, model_identity,
    save_past,
};
use qat_infer::{Opened, RuntimeMatrix, Sequence};

use crate::cli;

/// Ids that are read before anybody asks again whether to go on.
const PART: usize = 256;

/// Ctrl-C, while an answer is written.
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether one is.
static ANSWERING: AtomicBool = AtomicBool::new(false);

/// The flags, checked before a model is opened for nothing.
pub struct Setup {
    /// How tokens are chosen.
    pub sampling: Sampling,
    repetition: Repetition,
    stop_words: Vec<String>,
    deferral: Option<Deferral>,
}

/// An answer as it was written.
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, and why there are no more.
    pub generated: Generated,
    /// From the first token of the prompt to the first of the answer.
    pub first: Duration,
    /// Whether Ctrl-C ended it.
    pub interrupted: bool,
    certainty: Certainty,
}

/// What an answer is written with.
pub struct Pen<'a> {
    /// The flags.
    pub setup: &'a Setup,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end an answer.
    pub stops: &'a [u32],
    /// Text that does, beside that of the flags.
    pub stop_words: &'a [String],
    /// Most tokens.
    pub most: usize,
}

impl Setup {
    /// Checks the flags; `temperature` unless one is given.
    pub fn new(args: &cli::Writing, temperature: f32) -> anyhow::Result<Self> {
        let sampling = Sampling {
            temperature: args.temperature.unwrap_or(temperature),
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
        };
        Sampler::new(&sampling)?;
        let repetition = Repetition { penalty: args.repetition_penalty, last: args.repetition_last };
        repetition.check()?;
        if args.stop.iter().any(String::is_empty) {
            bail!("--stop: is empty; want some text");
        }
        let deferral = args.confidence.as_deref().map(read_deferral).transpose()?;
        Ok(Self { sampling, repetition, stop_words: args.stop.clone(), deferral })
    }

    /// What tells the model from others, with how it runs, where a flag asks; refuses it where the file of --confidence is about another.
    pub fn identity<M: RuntimeMatrix>(
        &self,
        model: &Opened<M>,
        args: &cli::Writing,
    ) -> anyhow::Result<Option<String>> {
        if args.prompt_cache.is_none() && args.confidence.is_none() {
            return Ok(None);
        }
        let identity = model_identity(model)?;
        if let (Some(deferral), Some(path)) = (&self.deferral, &args.confidence)
            && deferral.model != identity
        {
            bail!(
                "--confidence {}: is about another model than {}; make one with qat eval {1} --against LARGER --deferral FILE",
                path.display(),
                model.origin.display()
            );
        }
        Ok(Some(match args.activations.chosen() {
            Some(activations) => format!("{identity} {activations:?}"),
            None => identity,
        }))
    }

    /// How sure the model was, by the measure that tells most.
    pub fn verdict(&self, answer: &Answer) -> Option<String> {
        let deferral = self.deferral.as_ref()?;
        let sure = answer.certainty.of(deferral.measure)?;
        let name = deferral.measure.name();
        Some(match deferral.threshold {
            Some(f64::MAX) => format!(
                "confidence {sure:.3} ({name}): ask a larger model, no answer of this one is sure enough"
            ),
            Some(threshold) if sure < threshold => {
                format!("confidence {sure:.3} ({name}), below {threshold:.3}: ask a larger model")
            }
            Some(threshold) => format!("confidence {sure:.3} ({name}), at least {threshold:.3}"),
            None => format!("confidence {sure:.3} ({name}); this model need never ask"),
        })
    }
}

fn read_deferral(path: &Path) -> anyhow::Result<Deferral> {
    let value = read_json(path)?;
    serde_json::from_value(value)
        .with_context(|| format!("--confidence {}: is no file of qat eval --deferral", path.display()))
}

impl Pen<'_> {
    /// Lets `sequence`, which has read `before`, read `prompt` and go on; writes what comes.
    pub fn answer(
        &self,
        sequence: &mut dyn Sequence,
        before: &[u32],
        prompt: &[u32],
    ) -> anyhow::Result<Answer> {
        let began = Instant::now();
        STOP.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        let answer = self.write(sequence, before, prompt, began);
        ANSWERING.store(false, Ordering::SeqCst);
        answer
    }

    fn write(
        &self,
        sequence: &mut dyn Sequence,
        before: &[u32],
        prompt: &[u32],
        began: Instant,
    ) -> anyhow::Result<Answer> {
        let mut certainty = Certainty::default();
        let mut last = prompt;
        let mut read = before.to_vec();
        // Of a long prompt all but the last part, so that Ctrl-C is heard between.
        while last.len() > PART && !STOP.load(Ordering::SeqCst) {
            let (part, rest) = last.split_at(PART.min(last.len() - 1));
            sequence.prefill(part)?;
            read.extend_from_slice(part);
            last = rest;
        }
        let stop_words = [&self.setup.stop_words[..], self.stop_words].concat();
        let mut stream = TextStream::new(self.tokenizer, &stop_words)?;
        let (mut text, mut trouble) = (String::new(), None);
        let reading = began.elapsed();
        let mut generated =
            Generated { tokens: vec![], end: End::Told, first: Duration::ZERO, rest: Duration::ZERO };
        if !STOP.load(Ordering::SeqCst) {
            let writing = Writing {
                most: self.most,
                stops: self.stops,
                sampling: self.setup.sampling,
                repetition: Some(self.setup.repetition),
                before: &read,
            };
            let mut each = |id| match stream.push(id).map_err(Into::into).and_then(|piece| {
                print(&piece)?;
                text.push_str(&piece);
                anyhow::Ok(())
            }) {
                Ok(()) if stream.is_stopped() || STOP.load(Ordering::SeqCst) => ControlFlow::Break(()),
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    trouble = Some(e);
                    ControlFlow::Break(())
                }
            };
            let mut see = |logits: &[f32]| certainty.see(logits);
            let watch = self.setup.deferral.is_some().then_some(&mut see as &mut dyn FnMut(&[f32]));
            generated = writing.write(sequence, last, watch, &mut each)?;
        }
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let stopped = stream.is_stopped();
        let rest = stream.finish();
        print(&rest)?;
        text.push_str(&rest);
        let interrupted = STOP.load(Ordering::SeqCst) && !stopped && generated.end == End::Told;
        let first = reading + generated.first;
        Ok(Answer { text, generated, first, interrupted, certainty })
    }
}

impl Answer {
    /// How much was written, and how fast; `prompt` tokens were read for it, `known` more were known.
    pub fn summary(&self, prompt: usize, known: usize) -> String {
        let generated = &self.generated;
        let speed = generated
            .tokens_per_second()
            .map_or(String::new(), |speed| format!(", then {speed:.1} tokens/s"));
        let end = match generated.end {
            End::Stop => ", ended by a stop token",
            End::Told if self.interrupted => ", interrupted",
            End::Told => ", ended by a stop word",
            End::Length => "",
        };
        let known = if known > 0 { format!(" ({known} more known)") } else { String::new() };
        format!(
            "{} tokens{end}; prompt of {prompt}{known} read in {:.0} ms{speed}",
            generated.tokens.len(),
            self.first.as_secs_f64() * 1e3
        )
    }
}

/// Reads `ids` of `prompt`, its beginning, or takes them from the file of `--prompt-cache`, which is made if it isn't there. Gives how many
/// tokens need not be read any more.
pub fn known(
    path: &Path,
    model: &str,
    prompt: &[u32],
    ids: usize,
    sequence: &mut dyn Sequence,
) -> anyhow::Result<usize> {
    if path.exists() {
        return Ok(load_past(path, model, prompt, sequence)?.len());
    }
    if ids > 0 {
        sequence.prefill(&prompt[..ids])?;
        save_past(path, model, &prompt[..ids], sequence)?;
    }
    Ok(ids)
}

/// From now on Ctrl-C ends an answer; where none is written, or a second time, the program.
pub fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// Writes to standard output at once.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
