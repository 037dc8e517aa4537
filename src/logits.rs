//! `qat logits`: what a model predicts after each of some tokens, as numbers, for comparing with another runtime.
//!
//! Knows no tokenizer and no sampling. Invariant: the row at a token is what `qat eval` scores the next token with.

use std::path::Path;

use anyhow::{Context as _, bail};
use qat_infer::files::write_file_atomic;
use qat_infer::{Choice, Opened, Runtime, Sequence, with_runtime};
use safetensors::{Dtype, serialize, tensor::TensorView};

use crate::{Ending, cli, table};

/// Runs the command.
pub fn run(args: &cli::Logits) -> anyhow::Result<Ending> {
    let chosen = args.device.parse::<Choice>()?.open()?;
    crate::no_run(&args.dir)?;
    with_runtime!(&chosen, runtime => run_on(runtime, args))
}

fn run_on<R: Runtime>(runtime: &R, args: &cli::Logits) -> anyhow::Result<Ending> {
    let mut model = Opened::<R::Matrix>::open(&args.dir)?;
    if let Some(activations) = args.activations.chosen() {
        model.set_activations(activations);
    }
    let longest = model.decoder.config.max_position_embeddings;
    let Some(context) = args.ids.len().checked_add(args.tokens).filter(|context| *context <= longest) else {
        bail!(
            "{} ids and {} to write don't fit the model's context of {longest}; give fewer, or lower --tokens",
            args.ids.len(),
            args.tokens
        );
    };
    let kv = args.kv.unwrap_or(runtime.exact_kv());
    let mut sequence = runtime.sequence(&model.decoder, context, kv)?;
    let mut ids = args.ids.clone();
    let mut logits = read(&mut *sequence, &ids)?;
    let vocab = sequence.vocab();
    for _ in 0..args.tokens {
        let next = likeliest(&logits[logits.len() - vocab..]);
        ids.push(next);
        logits.extend(read(&mut *sequence, &[next])?);
    }
    write(&args.out, &ids, vocab, &logits)?;
    println!(
        "wrote {}: ids [{}], logits [{}, {vocab}] ({})",
        args.out.display(),
        ids.len(),
        ids.len(),
        table::bytes(size_of_val(&logits[..]) as u64)
    );
    Ok(Ending::Done)
}

/// The logits `[ids, vocab]` of what follows each of `ids`.
fn read(sequence: &mut dyn Sequence, ids: &[u32]) -> qat_infer::Result<Vec<f32>> {
    let hidden = sequence.hidden(ids)?;
    let rows = sequence.logit_rows();
    let mut logits = Vec::with_capacity(ids.len() * sequence.vocab());
    for first in (0..ids.len()).step_by(rows) {
        logits.extend_from_slice(sequence.logits(&hidden, first, rows.min(ids.len() - first))?);
    }
    Ok(logits)
}

/// The id with the highest logit, the first of several.
fn likeliest(logits: &[f32]) -> u32 {
    let ids = 0_u32..;
    let best = ids.zip(logits).reduce(|best, other| if other.1 > best.1 { other } else { best });
    best.map_or(0, |(id, _)| id)
}

fn write(path: &Path, ids: &[u32], vocab: usize, logits: &[f32]) -> anyhow::Result<()> {
    let id_bytes: Vec<u8> = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
    let logit_bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let tensors = [
        ("ids", TensorView::new(Dtype::I64, vec![ids.len()], &id_bytes)?),
        ("logits", TensorView::new(Dtype::F32, vec![ids.len(), vocab], &logit_bytes)?),
    ];
    let bytes = serialize(tensors, None).context("the logits")?;
    Ok(write_file_atomic(path, &bytes)?)
}
