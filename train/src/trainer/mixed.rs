//! Mixed formats: what each candidate costs each matrix, measured, and the choice that loses least within a budget of bits.
//!
//! A cost is the KL divergence from the float model when this matrix alone is rounded. That costs add up is what makes the choice
//! possible, and holds well down to 3 bits (the linearity theorem of HIGGS, arXiv 2411.17525). Knows no files but the one that it keeps.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use qat_infer::{
    files::{read_json, write_file_atomic},
    model::{Decoder, Param, params},
};
use qat_quant::{Format, Scales};
use serde::{Deserialize, Serialize};

use super::{
    allocate::{Offer, allocate},
    teacher::{Pass, forward},
};
use crate::{
    Error, Result,
    exec::{Matrix, RopeTable},
    loss::{Answers, Divergence, Reference, Term},
    recipe::{Mix, Plan, Quantization},
    student::{Floats, gptq::Calibration},
};

/// What was chosen, in the folder of the run.
const FILE: &str = "formats.json";

/// Formats that were chosen for a run, with what they were chosen by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Bits per weight of the whole model that was asked for at most.
    pub target_bpw: f64,
    /// Bits per weight that it has.
    pub bits_per_weight: f64,
    /// Format of each matrix that was free to choose.
    pub formats: BTreeMap<String, String>,
    /// Nats per token that each candidate costs each of them.
    pub losses: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Chosen {
    /// The choice kept in the folder `out`.
    ///
    /// # Errors
    /// The file is missing or no choice.
    pub fn read(out: &Path) -> Result<Self> {
        Ok(read_json(&out.join(FILE))?)
    }

    /// Keeps the choice in the folder `out`.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, out: &Path) -> Result<()> {
        let mut json = serde_json::to_string_pretty(self).map_err(|e| Error::Config(e.to_string()))?;
        json.push('\n');
        Ok(write_file_atomic(&out.join(FILE), json.as_bytes())?)
    }

    /// `quantization` with these formats.
    ///
    /// # Errors
    /// A spelling that is no format.
    pub fn applied(&self, quantization: &Quantization) -> Result<Quantization> {
        let format = |(name, spelling): (&String, &String)| Ok((name.clone(), spelling.parse()?));
        let formats = self.formats.iter().map(format).collect::<Result<BTreeMap<String, Format>>>()?;
        Ok(Quantization { rules: quantization.rules.clone().with(formats), ..quantization.clone() })
    }

    /// How often each format was chosen, in a sentence.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.formats.values().for_each(|format| *counts.entry(format).or_default() += 1);
        let counts: Vec<String> = counts.iter().map(|(format, n)| format!("{format} × {n}")).collect();
        format!(
            "mixed formats: {}; {:.4} bits per weight of at most {}",
            counts.join(", "),
            self.bits_per_weight,
            self.target_bpw
        )
    }
}

/// How the student of the run in `out` is quantized: as `plan` says, with the formats that were chosen when it began.
///
/// # Errors
/// The choice is missing or none.
pub fn settled(plan: &Plan, out: &Path) -> Result<Quantization> {
    match plan.mix {
        Some(_) => Chosen::read(out)?.applied(&plan.quantization),
        None => Ok(plan.quantization.clone()),
    }
}

/// Chooses a format for each matrix of `floats` that the candidates are for.
///
/// # Errors
/// A target below what the candidates with fewest bits need; the device is out of memory.
pub fn choose(
    floats: &Floats,
    quantization: &Quantization,
    mix: &Mix,
    text: &Calibration,
    device: &Device,
) -> Result<Chosen> {
    let list = params(&floats.config);
    let free: Vec<&Param> = list.iter().filter(|param| mix.is_for(param, &quantization.rules)).collect();
    let offered = |param: &Param| mix.candidates.iter().copied().filter(|f| f.fits(param.shape[1])).collect();
    let candidates: Vec<Vec<Format>> = free.iter().map(|param| offered(param)).collect();
    for (param, formats) in free.iter().zip(&candidates) {
        if formats.is_empty() {
            mix.candidates[0].check_row_len(&param.name, param.shape[1])?;
        }
    }
    let losses = measure(floats, quantization, &free, &candidates, text, device)?;
    let offers: Vec<Vec<Offer>> = free
        .iter()
        .zip(candidates.iter().zip(&losses))
        .map(|(param, (formats, losses))| {
            let offer = |(&format, &loss)| Offer { bits: bits(param, Some(format)), loss };
            formats.iter().zip(losses).map(offer).collect()
        })
        .collect();
    let settled = list.iter().filter(|param| !mix.is_for(param, &quantization.rules));
    let settled: u64 = settled.map(|param| bits(param, quantization.rules.choose(param))).sum();
    let weights: usize = list.iter().map(|param| param.shape.iter().product::<usize>()).sum();
    let budget = (mix.target_bpw * weights as f64).floor() as u64;
    let chosen = budget.checked_sub(settled).and_then(|budget| allocate(&offers, budget));
    let least: u64 = offers.iter().map(|o| o.iter().map(|o| o.bits).min().unwrap_or(0)).sum();
    let Some(chosen) = chosen else {
        return Err(Error::Config(format!(
            "quant.target_bpw = {}: with embeddings, scales and norms this model has at least {:.4} bits per weight in its candidates \
             with fewest bits; raise the target, add a smaller candidate, or {}",
            mix.target_bpw,
            (settled + least) as f64 / weights as f64,
            if mix.embeddings { "override fewer matrices" } else { "set quant.embeddings = \"candidates\"" }
        )));
    };
    let used: u64 = offers.iter().zip(&chosen).map(|(offers, &at)| offers[at].bits).sum();
    let formats = free.iter().zip(candidates.iter().zip(&chosen));
    Ok(Chosen {
        target_bpw: mix.target_bpw,
        bits_per_weight: (settled + used) as f64 / weights as f64,
        formats: formats.map(|(param, (c, &at))| (param.name.clone(), c[at].to_string())).collect(),
        losses: free
            .iter()
            .zip(candidates.iter().zip(losses))
            .map(|(param, (formats, losses))| {
                let spelled = formats.iter().map(Format::to_string);
                (param.name.clone(), spelled.zip(losses).collect())
            })
            .collect(),
    })
}

/// Every stored bit of `param`, scales included, as a manifest counts them.
fn bits(param: &Param, format: Option<Format>) -> u64 {
    let weights: usize = param.shape.iter().product();
    match format {
        // A whole number, below 2⁵³.
        Some(format) => {
            (format.bits_per_weight(param.shape[0], param.shape[1]) * weights as f64).round() as u64
        }
        None => 32 * weights as u64,
    }
}

/// KL(float ‖ float with one matrix rounded), nats per token: for each of `free`, each of its candidates.
fn measure(
    floats: &Floats,
    quantization: &Quantization,
    free: &[&Param],
    candidates: &[Vec<Format>],
    text: &Calibration,
    device: &Device,
) -> Result<Vec<Vec<f64>>> {
    let ctx = text.windows.first().map_or(0, Vec::len);
    let decoder = floats.decoder(device)?;
    let rope = RopeTable::new(&decoder.ropes, ctx, device)?;
    let kl = [Term::Divergence(Divergence::ForwardKl)];
    let mut sums: Vec<Vec<f64>> = candidates.iter().map(|formats| vec![0.0; formats.len()]).collect();
    for windows in text.windows.chunks(text.batch) {
        let ids = windows.concat();
        let (wanted, _) = forward(&decoder, &rope, (&ids, ctx), Pass::default())?;
        let answers = Answers { text: &[], teacher: Reference::Head(&wanted), temperature: 1.0 };
        for ((param, formats), sums) in free.iter().zip(candidates).zip(&mut sums) {
            for (&format, sum) in formats.iter().zip(sums) {
                let mut one = decoder.clone();
                put(&mut one, param, rounded(floats, quantization, param, format, device)?)?;
                let (found, _) = forward(&one, &rope, (&ids, ctx), Pass::default())?;
                let nats = found.scores(&kl, &answers)?.to_vec1::<f32>()?;
                *sum += f64::from(nats[0]);
            }
        }
    }
    let tokens = (text.windows.len() * ctx).max(1) as f64;
    Ok(sums.into_iter().map(|sums| sums.into_iter().map(|sum| sum / tokens).collect()).collect())
}

/// The values of `param` in `format`.
fn rounded(
    floats: &Floats,
    quantization: &Quantization,
    param: &Param,
    format: Format,
    device: &Device,
) -> Result<Tensor> {
    let w = floats.values(&param.name)?;
    let (rows, cols) = (param.shape[0], param.shape[1]);
    let scales = Scales::choose(format, quantization.rule(), w, rows, cols);
    let mut values = vec![0.0; w.len()];
    qat_quant::fake_quant(format, w, rows, cols, &scales, &mut values);
    Ok(Tensor::from_vec(values, (rows, cols), device)?)
}

/// Replaces the matrix `param` of `decoder`.
fn put(decoder: &mut Decoder<Matrix, Tensor>, param: &Param, weight: Tensor) -> Result<()> {
    let names = params(&decoder.config);
    let mut matrices = names.iter().filter(|p| p.shape.len() == 2).zip(decoder.matrices_mut());
    let found = matrices.find(|(p, _)| p.name == param.name);
    let (_, matrix) = found.ok_or_else(|| Error::Config(format!("{}: no such matrix", param.name)))?;
    matrix.weight = weight;
    Ok(())
}
