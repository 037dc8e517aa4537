//! Which tensor is held in which format: three defaults by role and globs by name.

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};
use qat_infer::model::{Param, Part, Role};
use qat_quant::Format;

use crate::{Error, Result};

/// How a matrix is held: in a packed format, or as float.
pub type Choice = Option<Format>;

/// The `[quant]` rules, ready to be asked.
#[derive(Debug, Clone)]
pub struct Rules {
    weights: Choice,
    embeddings: Choice,
    head: Choice,
    /// Longest pattern first: it is the most particular one.
    overrides: Vec<(GlobMatcher, Choice)>,
    /// Formats that were chosen by tensor, by name: they come first.
    chosen: BTreeMap<String, Format>,
}

impl Rules {
    /// Rules from the spellings in a recipe or on the command line.
    ///
    /// # Errors
    /// A format or a glob that doesn't parse, named with its key.
    pub fn new(
        weights: &str,
        embeddings: &str,
        head: &str,
        overrides: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut globs = Vec::new();
        for (pattern, format) in overrides {
            let key = format!("quant.overrides.{pattern:?}");
            let glob = Glob::new(pattern).map_err(|e| Error::Config(format!("{key}: {e}")))?;
            globs.push((glob.compile_matcher(), choice(&key, format)?));
        }
        globs.sort_by_key(|(glob, _)| std::cmp::Reverse(glob.glob().glob().len()));
        Ok(Self {
            weights: choice("quant.weights", weights)?,
            embeddings: choice("quant.embeddings", embeddings)?,
            head: choice("quant.head", head)?,
            overrides: globs,
            chosen: BTreeMap::new(),
        })
    }

    /// The same for every matrix: nothing is quantized.
    pub fn float() -> Self {
        Self { weights: None, embeddings: None, head: None, overrides: Vec::new(), chosen: BTreeMap::new() }
    }

    /// The same with `chosen` formats for the tensors of these names.
    pub fn with(self, chosen: BTreeMap<String, Format>) -> Self {
        Self { chosen, ..self }
    }

    /// The same with `format` as that of the projections.
    pub fn with_weights(self, format: Format) -> Self {
        Self { weights: Some(format), ..self }
    }

    /// The same with `format` as that of the embeddings.
    pub fn with_embeddings(self, format: Format) -> Self {
        Self { embeddings: Some(format), ..self }
    }

    /// The same with `format` as that of an untied head.
    pub fn with_head(self, format: Format) -> Self {
        Self { head: Some(format), ..self }
    }

    /// Whether an override names `param`.
    pub fn is_overridden(&self, param: &Param) -> bool {
        self.overridden(param).is_some()
    }

    fn overridden(&self, param: &Param) -> Option<Choice> {
        self.overrides.iter().find(|(glob, _)| glob.is_match(&param.name)).map(|(_, choice)| *choice)
    }

    /// How `param` is held; norms, bias vectors and the taps of convolutions always stay float.
    pub fn choose(&self, param: &Param) -> Choice {
        let by_role = match param.role {
            Role::Norm | Role::Bias | Role::Conv => return None,
            Role::Projection => self.weights,
            Role::Embedding => self.embeddings,
            Role::Head => self.head,
        };
        if let Some(format) = self.chosen.get(&param.name) {
            return Some(*format);
        }
        self.overridden(param).unwrap_or(by_role)
    }

    /// Checks that every matrix fits its format and that every override names a tensor.
    ///
    /// # Errors
    /// The first tensor whose row length its format can't hold, or the pattern that matches nothing.
    pub fn check(&self, params: &[Param]) -> Result<()> {
        for param in params {
            if let Some(format) = self.choose(param) {
                let cols = param.shape[1];
                format.check_row_len(&param.name, cols).map_err(|e| hint(e, param))?;
            }
        }
        for (glob, _) in &self.overrides {
            if !params.iter().any(|p| p.shape.len() == 2 && glob.is_match(&p.name)) {
                let pattern = glob.glob().glob();
                return Err(Error::Config(format!(
                    "quant.overrides.{pattern:?}: no matrix of this model has such a name; the first are {}",
                    params
                        .iter()
                        .filter(|p| p.shape.len() == 2)
                        .take(3)
                        .map(|p| p.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// A row of the MLP's last matrix is as long as the MLP is wide, and that can be padded without changing what the model computes.
fn hint(error: qat_quant::Error, param: &Param) -> Error {
    let fix = if matches!(param.part(), Some((_, Part::Down))) {
        "; or widen the MLP by neurons that compute nothing: student.pad_intermediate = 64 in a recipe, --pad-intermediate 64 on \
         qat export"
    } else {
        "; or give this tensor another format with quant.overrides"
    };
    Error::Config(format!("{error}{fix}"))
}

fn choice(key: &str, spelling: &str) -> Result<Choice> {
    if spelling == "float" {
        return Ok(None);
    }
    spelling
        .parse()
        .map(Some)
        .map_err(|e: qat_quant::Error| Error::Config(format!("{key} = {spelling:?}: {e} (or float)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(name: &str, role: Role, shape: &[usize]) -> Param {
        Param { name: name.into(), role, shape: shape.into() }
    }

    #[test]
    fn the_longest_pattern_wins_and_norms_stay_float() {
        let overrides = BTreeMap::from([
            ("*".to_owned(), "int8-g32".to_owned()),
            ("*.layers.0.*".to_owned(), "float".to_owned()),
        ]);
        let rules = Rules::new("int4-g32", "int8-g32", "int8-g32", &overrides).expect("valid");
        let spelled = |p: &Param| rules.choose(p).map(|f| f.to_string());
        assert_eq!(spelled(&param("model.layers.0.mlp.up_proj.weight", Role::Projection, &[64, 64])), None);
        assert_eq!(
            spelled(&param("model.layers.1.mlp.up_proj.weight", Role::Projection, &[64, 64])).as_deref(),
            Some("int8-g32")
        );
        assert_eq!(spelled(&param("model.norm.weight", Role::Norm, &[64])), None);
    }

    #[test]
    fn a_row_that_does_not_fit_names_tensor_formats_and_the_padding() {
        let rules = Rules::new("int4-g32", "float", "float", &BTreeMap::new()).expect("valid");
        let p = param("model.layers.0.mlp.down_proj.weight", Role::Projection, &[64, 172]);
        let m = rules.check(&[p]).expect_err("172 is no multiple of 32").to_string();
        for part in ["model.layers.0.mlp.down_proj.weight", "172", "32", "ternary-tensor", "pad_intermediate"]
        {
            assert!(m.contains(part), "{part} is not in: {m}");
        }
    }

    #[test]
    fn an_override_that_matches_nothing_is_refused() {
        let overrides = BTreeMap::from([("model.layer.0.*".to_owned(), "int8-g32".to_owned())]);
        let rules = Rules::new("int4-g32", "float", "float", &overrides).expect("valid");
        let p = param("model.layers.0.mlp.up_proj.weight", Role::Projection, &[64, 64]);
        let m = rules.check(&[p]).expect_err("no such tensor").to_string();
        assert!(m.contains("model.layer.0.*") && m.contains("model.layers.0.mlp.up_proj.weight"), "{m}");
    }
}
