//! Smaller and padded students: layers dropped, channels and neurons chosen, all on the host.
//!
//! Knows no training. Width is chosen by activation magnitude over a few batches (Minitron, arXiv 2407.14679, section 2.2);
//! depth is spread evenly. Padding changes no output: the neurons added have zero weights, and silu(0)·0 = 0.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use qat_infer::model::{AttentionShape, Config, Exec, Gate, Linear, Part, Role, Rope, Sight, names, params};

use super::Floats;
use crate::{
    Error, Result,
    exec::{Matrix, RopeTable, TrainExec},
};

/// Mean absolute activations of a model over some text.
#[derive(Debug, Clone)]
pub struct Importance {
    /// By channel of the residual stream, after the norms, `[hidden]`.
    pub channels: Vec<f32>,
    /// By layer and neuron of the MLP, after the gate, `[layers][intermediate]`.
    pub neurons: Vec<Vec<f32>>,
}

impl Importance {
    /// Measures `floats` on windows of token ids, all of one length.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn measure(floats: &Floats, windows: &[Vec<u32>], device: &Device) -> Result<Self> {
        let ctx = windows.first().map_or(0, Vec::len);
        let decoder = floats.decoder(device)?;
        let rope = RopeTable::new(&decoder.ropes, ctx, device)?;
        let hidden = floats.config.hidden_size;
        let mut channels = vec![0.0; hidden];
        let mut neurons = vec![vec![0.0; floats.config.intermediate_size]; floats.config.layers];
        for window in windows {
            let mut probe =
                Probe { exec: TrainExec::new(1, ctx, &rope), normed: Vec::new(), gated: Vec::new() };
            decoder.forward(&mut probe, window)?;
            probe.normed.iter().try_for_each(|x| add_magnitudes(&mut channels, x))?;
            neurons.iter_mut().zip(&probe.gated).try_for_each(|(sum, x)| add_magnitudes(sum, x))?;
        }
        Ok(Self { channels, neurons })
    }
}

fn add_magnitudes(sums: &mut [f32], x: &Tensor) -> Result<()> {
    let magnitudes: Vec<f32> = x.abs()?.mean(0)?.to_vec1()?;
    sums.iter_mut().zip(magnitudes).for_each(|(sum, m)| *sum += m);
    Ok(())
}

/// Which of `have` layers becomes layer `index` of `kept`.
pub(crate) fn kept_layer(index: usize, kept: usize, have: usize) -> usize {
    if kept == 1 { 0 } else { (index * (have - 1) + (kept - 1) / 2) / (kept - 1) }
}

/// Layers keep what kind they are; layer `index` is the one that was `source(index)`.
pub(crate) fn keep_kinds(config: &mut Config, source: impl Fn(usize) -> usize) {
    let convolve = config.short_convs.as_mut().map(|convs| &mut convs.layers);
    let slide = config.sliding.as_mut().map(|sliding| &mut sliding.layers);
    for kinds in convolve.into_iter().chain(slide) {
        *kinds = (0..config.layers).map(|index| kinds[source(index)]).collect();
    }
}

/// Keeps `kept` layers: the first, the last and those spread evenly between them.
///
/// # Errors
/// More layers than there are.
pub fn layers(floats: &Floats, kept: usize) -> Result<Floats> {
    let have = floats.config.layers;
    if kept > have {
        return Err(Error::Config(format!("student.layers = {kept}: the model has {have}")));
    }
    let source = |index| kept_layer(index, kept, have);
    let mut config = floats.config.clone();
    config.layers = kept;
    keep_kinds(&mut config, source);
    let mut tensors = BTreeMap::new();
    for param in params(&config) {
        let from = match (param.part(), param.name.rsplit_once('.')) {
            (Some((index, part)), Some((_, kind))) => {
                names::in_layer(source(index), part.module(config.family), kind)
            }
            _ => param.name.clone(),
        };
        tensors.insert(param.name, floats.values(&from)?.to_vec());
    }
    Ok(Floats::plain(config, tensors))
}

/// Keeps the `kept` most active channels of the residual stream.
///
/// # Errors
/// More channels than there are.
pub fn channels(floats: &Floats, kept: usize, importance: &Importance) -> Result<Floats> {
    let have = floats.config.hidden_size;
    if kept > have {
        return Err(Error::Config(format!("student.hidden_size = {kept}: the model has {have}")));
    }
    let why = match &floats.config {
        config if config.embedding_scale() != 1.0 => {
            "its embeddings are multiplied by the root of their number"
        }
        config if config.short_convs.is_some() || config.sub_norms => {
            "its convolutions and the norms behind its heads are as wide as its residual stream"
        }
        _ => "",
    };
    if !why.is_empty() {
        return Err(Error::Config(format!(
            "student.hidden_size = {kept}: channels of a {:?} can't be pruned, {why}; prune student.layers or \
             student.intermediate_size",
            floats.config.family.model_type()
        )));
    }
    let chosen = strongest(&importance.channels, kept);
    let mut config = floats.config.clone();
    config.hidden_size = kept;
    let mut tensors = BTreeMap::new();
    for param in params(&floats.config) {
        let values = floats.values(&param.name)?;
        let part = param.part().map(|(_, part)| part);
        let writes_residual = part.is_some_and(Part::writes_residual);
        let head_norm = matches!(part, Some(Part::QNorm | Part::KNorm));
        let pruned = match param.role {
            Role::Norm if head_norm => values.to_vec(),
            Role::Bias if !writes_residual => values.to_vec(),
            Role::Norm | Role::Bias | Role::Conv => chosen.iter().map(|&c| values[c]).collect(),
            Role::Projection if writes_residual => rows(values, param.shape[1], &chosen),
            _ => columns(values, param.shape[1], &chosen),
        };
        tensors.insert(param.name, pruned);
    }
    Ok(Floats::plain(config, tensors))
}

/// Keeps the `kept` most active neurons of each MLP.
///
/// # Errors
/// More neurons than there are.
pub fn neurons(floats: &Floats, kept: usize, importance: &Importance) -> Result<Floats> {
    let have = floats.config.intermediate_size;
    if kept > have {
        return Err(Error::Config(format!("student.intermediate_size = {kept}: the model has {have}")));
    }
    let chosen: Vec<Vec<usize>> = importance.neurons.iter().map(|layer| strongest(layer, kept)).collect();
    resize_mlp(floats, kept, |layer| chosen[layer].iter().map(|&n| Some(n)).collect())
}

/// Widens each MLP by neurons that compute nothing, up to the next multiple of `multiple`.
///
/// # Errors
/// A model that norms what its gates give.
pub fn pad_intermediate(floats: &Floats, multiple: usize) -> Result<Floats> {
    let have = floats.config.intermediate_size;
    if floats.config.sub_norms {
        return Err(Error::Config(format!(
            "pad_intermediate = {multiple}: the norm behind the gate of a {:?} averages over all neurons, so that more of them would \
             change what it computes; choose a format that {have} fits",
            floats.config.family.model_type()
        )));
    }
    let padded = have.next_multiple_of(multiple);
    resize_mlp(floats, padded, |_| (0..padded).map(|n| (n < have).then_some(n)).collect())
}

/// MLPs of `width` neurons: neuron `i` of a layer is the old one that `source(layer)[i]` names, or one of zeros.
fn resize_mlp(floats: &Floats, width: usize, source: impl Fn(usize) -> Vec<Option<usize>>) -> Result<Floats> {
    let mut config = floats.config.clone();
    config.intermediate_size = width;
    let mut tensors = BTreeMap::new();
    for param in params(&floats.config) {
        let values = floats.values(&param.name)?;
        let cols = param.shape.last().copied().unwrap_or(1);
        let resized = match param.part() {
            Some((layer, Part::Down)) if param.role == Role::Projection => {
                let neurons = source(layer);
                let old_row =
                    |row: &[f32]| neurons.iter().map(|n| n.map_or(0.0, |n| row[n])).collect::<Vec<_>>();
                values.chunks(cols).flat_map(old_row).collect()
            }
            Some((layer, Part::Gate | Part::Up | Part::MlpSubNorm)) => {
                let len = if param.shape.len() == 2 { cols } else { 1 };
                let old = |n: Option<usize>| n.map_or(vec![0.0; len], |n| values[n * len..][..len].to_vec());
                source(layer).into_iter().flat_map(old).collect()
            }
            _ => values.to_vec(),
        };
        tensors.insert(param.name, resized);
    }
    Ok(Floats::plain(config, tensors))
}

/// Indices of the `kept` largest values, in ascending order; the earlier one where two are equal.
fn strongest(values: &[f32], kept: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(kept);
    order.sort_unstable();
    order
}

fn rows(values: &[f32], cols: usize, chosen: &[usize]) -> Vec<f32> {
    chosen.iter().flat_map(|&row| &values[row * cols..][..cols]).copied().collect()
}

fn columns(values: &[f32], cols: usize, chosen: &[usize]) -> Vec<f32> {
    values.chunks(cols).flat_map(|row| chosen.iter().map(|&c| row[c])).collect()
}

/// An executor that also keeps what comes out of the layers' norms and gates.
struct Probe<'a> {
    exec: TrainExec<'a>,
    normed: Vec<Tensor>,
    gated: Vec<Tensor>,
}

impl Exec for Probe<'_> {
    type T = Tensor;
    type M = Matrix;
    type V = Tensor;
    type Error = Error;

    fn embed(&mut self, table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
        self.exec.embed(table, ids, scale)
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        let y = self.exec.rms_norm(x, weight, eps)?;
        self.normed.push(y.clone());
        Ok(y)
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Tensor,
        linears: [&Linear<Matrix, Tensor>; N],
    ) -> Result<[Tensor; N]> {
        self.exec.linears(x, linears)
    }

    fn unembed(&mut self, x: &Tensor, table: &Matrix) -> Result<Tensor> {
        self.exec.unembed(x, table)
    }

    fn head_norm(&mut self, x: Tensor, weight: &Tensor, heads: usize, eps: f32) -> Result<Tensor> {
        self.exec.head_norm(x, weight, heads, eps)
    }

    fn rope(&mut self, x: Tensor, heads: usize, rope: &Rope) -> Result<Tensor> {
        self.exec.rope(x, heads, rope)
    }

    fn attention(
        &mut self,
        layer: usize,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shape: &AttentionShape,
        sight: Sight,
    ) -> Result<Tensor> {
        self.exec.attention(layer, q, k, v, shape, sight)
    }

    fn short_conv(&mut self, layer: usize, x: Tensor, kernel: &Tensor) -> Result<Tensor> {
        self.exec.short_conv(layer, x, kernel)
    }

    fn gate(&mut self, by: Gate, gate: Tensor, up: Tensor) -> Result<Tensor> {
        let y = self.exec.gate(by, gate, up)?;
        self.gated.push(y.clone());
        Ok(y)
    }

    fn add(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.exec.add(a, b)
    }
}

#[cfg(test)]
mod tests {
    use qat_infer::model::Config;

    use super::*;
    use crate::tiny::{largest_difference, trained_logits};

    fn small() -> Floats {
        let json = serde_json::json!({
            "model_type": "qwen2", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "tie_word_embeddings": false,
        });
        let config = Config::from_json(&json, std::path::Path::new("config.json")).expect("valid config");
        let mut floats = Floats::random(config, 3);
        // Larger than the initial weights, so that no difference drowns in rounding.
        let matrices = floats.tensors.iter_mut().filter(|(name, _)| !name.ends_with("norm.weight"));
        matrices.flat_map(|(_, values)| values).for_each(|v| *v *= 10.0);
        floats
    }

    fn logits(floats: &Floats) -> Vec<f32> {
        let ids: Vec<u32> = (0..12).map(|i| (i * 7) % 40).collect();
        trained_logits(&floats.decoder(&Device::Cpu).expect("decoder"), &ids)
    }

    #[test]
    fn padding_changes_no_logit() {
        let model = small();
        let padded = pad_intermediate(&model, 32).expect("pads");
        assert_eq!(padded.config.intermediate_size, 32);
        // Zeros are added to the sums; only the order of summation may differ.
        assert!(largest_difference(&logits(&model), &logits(&padded)) < 1e-4);
    }

    #[test]
    fn neurons_that_are_never_active_can_be_pruned_without_a_change() {
        let padded = pad_intermediate(&small(), 32).expect("pads");
        let windows = [vec![1, 2, 3, 4, 5, 6, 7, 8]];
        let importance = Importance::measure(&padded, &windows, &Device::Cpu).expect("measures");
        let pruned = neurons(&padded, 20, &importance).expect("prunes");
        assert_eq!(pruned.tensors, small().tensors);
    }

    #[test]
    fn channels_that_carry_nothing_can_be_pruned_without_a_change_in_their_absence() {
        let mut model = small();
        let cols = model.config.hidden_size;
        // Channel 5 is never written: zero in the embedding and in what writes into the residual stream.
        for (name, values) in &mut model.tensors {
            if name.contains("embed_tokens") {
                values.chunks_mut(cols).for_each(|row| row[5] = 0.0);
            } else if name.contains("o_proj") || name.contains("down_proj") {
                let width = values.len() / cols;
                values[5 * width..6 * width].fill(0.0);
            }
        }
        let importance = Importance::measure(&model, &[vec![1, 2, 3, 4]], &Device::Cpu).expect("measures");
        assert_eq!(importance.channels[5], 0.0);
        let pruned = channels(&model, 15, &importance).expect("prunes");
        let kept: Vec<usize> = (0..16).filter(|&c| c != 5).collect();
        let embed = &model.tensors["model.embed_tokens.weight"];
        assert_eq!(pruned.tensors["model.embed_tokens.weight"], columns(embed, 16, &kept));
        // The norm's mean is over 15 channels instead of 16; larger weights undo that, up to eps.
        let mut rescaled = pruned;
        let factor = (16.0f32 / 15.0).sqrt();
        for (name, values) in &mut rescaled.tensors {
            if name.ends_with("norm.weight") {
                values.iter_mut().for_each(|v| *v *= factor);
            }
        }
        // Same sums in another order, and eps beside a mean 16/15 as large.
        assert!(largest_difference(&logits(&model), &logits(&rescaled)) < 1e-4);
    }

    #[test]
    fn depth_pruning_keeps_first_and_last() {
        let model = small();
        let two = layers(&model, 2).expect("prunes");
        assert_eq!(
            two.tensors["model.layers.1.mlp.up_proj.weight"],
            model.tensors["model.layers.3.mlp.up_proj.weight"]
        );
        let same = layers(&model, 4).expect("prunes");
        assert_eq!(same.tensors, model.tensors);
        let m = layers(&model, 5).expect_err("has four").to_string();
        assert_eq!(m, "student.layers = 5: the model has 4");
    }
}
