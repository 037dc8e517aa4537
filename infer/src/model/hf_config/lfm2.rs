//! The keys that LFM2 has beside or instead of those of other families.

use serde_json::{Value, json};

use super::keys::Keys;
use super::{CONV, FULL_ATTENTION, shortest};
use crate::Result;
use crate::model::{Config, Family, ShortConvs};

/// Tokens that a short convolution sees when the config doesn't say (transformers' `Lfm2Config`).
const TAPS: usize = 3;
/// The width inside the MLPs is a multiple of this when the config doesn't say (transformers' `Lfm2Config`).
const MULTIPLE: usize = 256;

impl Config {
    /// LFM2's own keys: those that transformers reads, and those that mlx-lm wants to see.
    pub(super) fn add_lfm2(&self, json: &mut Value) {
        let attends = |index: usize| self.taps(index).is_none();
        let kinds = (0..self.layers).map(|index| if attends(index) { FULL_ATTENTION } else { CONV });
        json["layer_types"] = kinds.collect();
        json["full_attn_idxs"] = (0..self.layers).filter(|index| attends(*index)).collect();
        json["conv_L_cache"] = json!(self.short_convs.as_ref().map_or(TAPS, |convs| convs.taps));
        json["conv_bias"] = json!(false);
        json["norm_eps"] = json!(shortest(self.rms_norm_eps));
        json["tie_embedding"] = json!(self.tie_word_embeddings);
        json["block_dim"] = json!(self.hidden_size);
        json["block_ff_dim"] = json!(self.intermediate_size);
        json["block_auto_adjust_ff_dim"] = json!(false);
        json["block_ffn_dim_multiplier"] = json!(1.0);
        json["block_multiple_of"] = json!(MULTIPLE);
    }
}

impl Keys<'_> {
    /// Width inside the MLP. LFM2's configs give the width that two matrices would have had, of which three get two thirds,
    /// rounded up.
    pub fn intermediate_size(&self, family: Family) -> Result<usize> {
        if family != Family::Lfm2 {
            return self.size("intermediate_size");
        }
        let key = if self.get("block_ff_dim").is_some() { "block_ff_dim" } else { "intermediate_size" };
        let width = self.size(key)?;
        if !self.flag("block_auto_adjust_ff_dim", true)? {
            return Ok(width);
        }
        let multiple = self.size_or("block_multiple_of", MULTIPLE)?;
        let factor = match self.get("block_ffn_dim_multiplier") {
            Some(_) => self.number("block_ffn_dim_multiplier")?,
            None => 1.0,
        };
        let two_thirds = (width / 3).saturating_mul(2).saturating_add(width % 3 * 2 / 3);
        // A size beyond f64's whole numbers is refused by its cap.
        let scaled = (factor * two_thirds as f64) as usize;
        scaled.checked_next_multiple_of(multiple.max(1)).ok_or_else(|| {
            self.wrong(key, &json!(width), "a width that can be adjusted (block_auto_adjust_ff_dim)")
        })
    }

    /// Which of the `count` layers convolve, by either key.
    pub fn short_convs(&self, count: usize) -> Result<ShortConvs> {
        let layers = match (self.get("layer_types"), self.get("full_attn_idxs")) {
            (Some(types), _) => types.as_array().into_iter().flatten().map(|kind| kind == CONV).collect(),
            (None, Some(indices)) => {
                let list = indices.as_array().map(Vec::as_slice).unwrap_or_default();
                let attending: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                let attending = attending.filter(|all| all.iter().all(|at| *at < count as u64));
                let attending = attending
                    .ok_or_else(|| self.wrong("full_attn_idxs", indices, "a list of numbers of layers"))?;
                // A corrupt count is refused by its cap before anything is made of it.
                (0..count.min(1 << 12)).map(|index| !attending.contains(&(index as u64))).collect()
            }
            (None, None) => return Err(self.missing("layer_types", "a list with one entry for each layer")),
        };
        Ok(ShortConvs { taps: self.size_or("conv_L_cache", TAPS)?, layers })
    }
}
