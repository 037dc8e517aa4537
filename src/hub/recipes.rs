//! What a recipe names of the hub.
//!
//! Invariant: the recipe that is kept with a run names commits and no places of this machine; a run that goes on uses the commits that it
//! began with, wherever the branches have moved.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use qat_hub::{Part, Reference};
use qat_train::recipe::{Origin, Plan, Recipe, TeacherPlan};

use super::{fetched, places};

/// Where the references of a recipe lead on this machine.
#[derive(Debug, Default)]
pub struct Brought(BTreeMap<String, Vec<String>>);

/// Fetches what `recipe` names, or what says the shape of it, and makes it name commits: those of `before`, the recipe of the run that
/// goes on, where there are such.
pub fn fetch(
    recipe: &mut Recipe,
    before: impl FnOnce() -> anyhow::Result<Option<Recipe>>,
    part: Part,
) -> anyhow::Result<Brought> {
    if !recipe.places().iter().any(|(_, text)| Reference::is(text)) {
        return Ok(Brought::default());
    }
    let known: Vec<Reference> = before()?
        .map(|mut before| before.places().into_iter().filter_map(|(_, text)| text.parse().ok()).collect())
        .unwrap_or_default();
    let mut brought = Brought::default();
    for (key, text) in recipe.places() {
        if !Reference::is(text) {
            continue;
        }
        let mut reference: Reference = text.parse().context(key)?;
        // Whoever names a branch or a commit means it; the rest stays what it was.
        let same = |old: &&Reference| reference.is_default() && old.at(&reference.revision) == reference;
        if let Some(old) = known.iter().find(same) {
            reference = old.clone();
        }
        let is_data = key.starts_with("data.") || key == "eval.data";
        // Tokens are counted by training, not by planning.
        if is_data && part == Part::Shape {
            continue;
        }
        let found = fetched(&reference, part).context(key)?;
        *text = reference.at(&found.commit).to_string();
        brought.0.insert(text.clone(), places(&found)?);
    }
    Ok(brought)
}

impl Brought {
    /// Puts places of this machine into `plan`, where it names what was fetched.
    pub fn put_into(&self, plan: &mut Plan) {
        match &mut plan.origin {
            Origin::Pretrained(path) => self.put(path),
            Origin::Scratch { config, tokenizer } => {
                [config, tokenizer].into_iter().for_each(|path| self.put(path))
            }
        }
        if let TeacherPlan::Model(path) = &mut plan.teacher {
            self.put(path);
        }
        self.put_all(&mut plan.data.train);
        self.put_all(&mut plan.data.valid);
        if let Some(eval) = &mut plan.eval {
            self.put_all(&mut eval.data);
            eval.against.iter_mut().for_each(|path| self.put(path));
        }
    }

    fn put(&self, path: &mut PathBuf) {
        let found = path.to_str().and_then(|text| self.0.get(text)?.first());
        if let Some(found) = found {
            *path = found.into();
        }
    }

    fn put_all(&self, list: &mut Vec<String>) {
        *list = list
            .drain(..)
            .flat_map(|text| self.0.get(&text).cloned().unwrap_or_else(|| vec![text]))
            .collect();
    }
}
