//! A whole evaluation: a directory and a text go in, a report comes out.
//!
//! Knows no formatting and prints nothing. Invariant: speed and memory are those of the model alone; the reference is
//! loaded after them.

use std::path::Path;

use super::{Protocol, Report, Text, Windows, measure_speed, peak_rss_bytes, score};
use crate::cpu::KvType;
use crate::energy::Meter;
use crate::files::{Activations, Manifest, same_tokens};
use crate::{Error, Opened, Result, Runtime, RuntimeMatrix, Sequence};

/// Longest window unless one is asked for: that of the published numbers.
const LONGEST_DEFAULT: usize = 2048;

/// What can be chosen about an evaluation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Options {
    /// Tokens of a window; the model's context, at most 2048, if none.
    pub ctx: Option<usize>,
    /// Put the model's BOS in front of every window.
    pub bos: bool,
    /// Entropy of the whole text in nats under the process that made it, if it is known.
    pub source_nats: Option<f64>,
    /// How the model keeps keys and values; as exactly as the runtime can, if none.
    pub kv: Option<KvType>,
    /// What the inputs of packed matrices are rounded to; what the model was trained with, if none.
    pub activations: Option<Activations>,
}

/// Evaluates the model in `dir`, run by `runtime`, on `text`, against the model in `against` if given. `progress` hears of windows done and
/// windows in all.
///
/// # Errors
/// When a model can't be opened, the text has nothing to score, the window is longer than a model's context, the two
/// models don't share a tokenizer, or BOS is asked for and the model has none.
pub fn evaluate<R: Runtime>(
    runtime: &R,
    dir: &Path,
    text: &str,
    against: Option<&Path>,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let [device, isa] = runtime.describe()?;
    let mut model = Opened::<R::Matrix>::open(dir)?;
    if let Some(activations) = options.activations {
        model.set_activations(activations);
    }
    let kv = options.kv.unwrap_or(runtime.exact_kv());
    let config = &model.decoder.config;
    let protocol = Protocol {
        ctx: options.ctx.unwrap_or(config.max_position_embeddings.min(LONGEST_DEFAULT)),
        bos: options.bos.then(|| bos(&model)).transpose()?,
    };
    crate::cpu::check_context(config, protocol.ctx)?;
    let tokenizer = model.tokenizer()?;
    let text = Text::encode(&tokenizer, text)?;
    let windows = Windows::new(&text, protocol)?;

    let sequence = |context| runtime.sequence(&model.decoder, context, kv);
    let meter = Meter::open();
    let energy = meter.as_ref().map_or_else(|why| format!("not measured: {why}"), Meter::covers);
    let speed = measure_speed(text.ids(), config.max_position_embeddings, meter.as_ref().ok(), sequence)?;
    let peak_rss_bytes = peak_rss_bytes();

    let reference = against.map(Opened::<R::Matrix>::open).transpose()?;
    if let Some(reference) = &reference
        && !same_tokens(&tokenizer, &reference.tokenizer()?)?
    {
        return Err(Error::Invalid(format!(
            "{} and {} have different tokenizers; predictions can only be compared over the same tokens",
            dir.display(),
            reference.origin.display()
        )));
    }
    let mut compared = match &reference {
        Some(reference) => {
            let exact = runtime.sequence(&reference.decoder, windows.tokens(), runtime.exact_kv());
            Some(exact.map_err(|e| Error::Invalid(format!("the reference: {e}")))?)
        }
        None => None,
    };
    let compared = compared.as_mut().map(|sequence| &mut **sequence as &mut dyn Sequence);
    let score = score(&mut *sequence(windows.tokens())?, compared, &windows, progress)?;
    let versus = score.versus;
    Ok(Report {
        perplexity: score.perplexity(),
        perplexity_se: score.perplexity_se(),
        bits_per_byte: score.bits_per_byte(),
        tokens: score.tokens,
        kl_mean: versus.map(|v| v.kl.mean),
        same_top1: versus.map(|v| v.same_top1),
        prefill_tps: speed.prefill_tps,
        decode_tps: speed.decode_tps,
        ttft_ms: speed.ttft_ms,
        prefill_joules_per_token: speed.prefill_joules_per_token,
        decode_joules_per_token: speed.decode_joules_per_token,
        energy,
        peak_rss_bytes,
        bits_per_weight: model.size.bits_per_weight,
        file_bytes: model.size.file_bytes,
        model_sha256: model.manifest.as_ref().map(Manifest::identity),
        device,
        isa,
        nll_mean: score.nll.mean,
        nll_se: score.nll.se,
        nll_clustered_se: score.nll_clustered_se,
        kl_se: versus.map(|v| v.kl.se),
        delta_ln_ppl: versus.map(|v| v.delta_ln_ppl.mean),
        delta_ln_ppl_se: versus.map(|v| v.delta_ln_ppl.se),
        rms_delta_p: versus.map(|v| v.rms_delta_p),
        reference_perplexity: versus.map(|v| v.reference_nll.mean.exp()),
        entropy_floor_nats: options.source_nats.map(|nats| nats / text.ids().len() as f64),
        ctx: protocol.ctx,
        windows: score.windows,
        bos: protocol.bos,
        bytes: score.bytes,
        prompt_tokens: speed.prompt_tokens,
        decoded_tokens: speed.decoded_tokens,
        protocol: protocol.describe(),
        per_window: score.per_window,
    })
}

fn bos<M: RuntimeMatrix>(model: &Opened<M>) -> Result<u32> {
    model.decoder.config.bos_token_id.ok_or_else(|| {
        Error::Invalid(format!(
            "{}: BOS is asked for, but config.json has no bos_token_id",
            model.origin.display()
        ))
    })
}
