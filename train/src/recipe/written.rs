//! A recipe as text again, and as a list of its keys.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Recipe;
use crate::{Error, Result};

impl Recipe {
    /// The recipe as TOML, every key with a value in it.
    ///
    /// # Errors
    /// A value that TOML can't hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Config(e.to_string()))
    }

    /// Every dotted key with its value.
    ///
    /// # Errors
    /// A value that JSON can't hold.
    pub fn keys(&self) -> Result<BTreeMap<String, Value>> {
        let value = serde_json::to_value(self).map_err(|e| Error::Config(e.to_string()))?;
        let mut keys = BTreeMap::new();
        flatten("", &value, &mut keys);
        Ok(keys)
    }
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), leaf.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::recipe;

    #[test]
    fn a_recipe_is_the_same_after_it_was_written() {
        let text = "seed = 3\n[student]\nfrom = \"a\"\n[teacher]\nmodel = \"a\"\n[quant]\nweights = \"int4-g32\"\n\
                    [quant.overrides]\n\"model.layers.0.*\" = \"int8-g32\"\n[data]\ntrain = [\"b.txt\"]\nctx = 64\n\
                    [loss]\nforward_kl = 1.0\n[train]\nsteps = 5\nbatch = 2\n[eval]\ndata = [\"c.txt\"]\n";
        let first = recipe::parse(text, Path::new("recipe"), &[]).expect("parses").remove(0).recipe;
        let written = first.to_toml().expect("written");
        let second =
            recipe::parse(&written, Path::new("written"), &[]).expect("parses again").remove(0).recipe;
        let keys = first.keys().expect("keys");
        assert_eq!(keys, second.keys().expect("keys"), "{written}");
        assert_eq!(
            (&keys["train.steps"], &keys["quant.overrides.model.layers.0.*"]),
            (&5.into(), &"int8-g32".into())
        );
    }
}
