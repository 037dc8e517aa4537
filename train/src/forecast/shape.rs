//! The shapes that a recipe works with, from the files it names or from one that is given instead.
//!
//! Reads no weights. Knows no memory.

use std::path::Path;

use qat_infer::{
    FloatModel,
    files::CONFIG_FILE,
    model::{Config, params},
};

use crate::{
    Error, Result,
    recipe::{Origin, Plan, Recipe, TeacherPlan},
    student::{
        prune::{keep_kinds, kept_layer},
        read_config,
    },
};

/// Bytes of a weight in published models, where there are no files to look at.
const PUBLISHED: u64 = 2;

/// Models of a recipe.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// What the student is made of.
    pub source: Config,
    /// The student.
    pub student: Config,
    /// A teacher that is another model.
    pub teacher: Option<Config>,
    /// Bytes of the files that the student is read from; none are read for one of random weights.
    pub file_bytes: u64,
}

impl Shapes {
    /// Those of `plan`; `instead` stands for the model that the student starts from, and for a teacher that isn't there.
    ///
    /// # Errors
    /// A model that isn't there or can't be read; pruning that keeps more than there is.
    pub fn of(plan: &Plan, instead: Option<&Config>) -> Result<Self> {
        let (source, file_bytes) = match (instead, &plan.origin) {
            (Some(config), Origin::Pretrained(_)) => (config.clone(), PUBLISHED * elements(config)),
            (Some(config), Origin::Scratch { .. }) => (config.clone(), 0),
            (None, Origin::Pretrained(path)) => of_model(path)?,
            (None, Origin::Scratch { config, .. }) => (read_config(config)?, 0),
        };
        let teacher = match (&plan.teacher, &plan.origin) {
            (TeacherPlan::Model(teacher), Origin::Pretrained(own)) if teacher == own => None,
            (TeacherPlan::Model(teacher), _) => match instead.filter(|_| !teacher.exists()) {
                Some(config) => Some(config.clone()),
                None => Some(of_model(teacher)?.0),
            },
            _ => None,
        };
        Ok(Self { student: pruned(&source, &plan.recipe)?, source, teacher, file_bytes })
    }
}

/// Weights of a model of this shape.
fn elements(config: &Config) -> u64 {
    params(config).iter().map(|p| p.shape.iter().product::<usize>() as u64).sum()
}

/// Shape and bytes of the model at `path`.
fn of_model(path: &Path) -> Result<(Config, u64)> {
    let config = path.join(CONFIG_FILE);
    if !path.exists() {
        return Err(Error::file(
            path,
            "is not there; put the model there, or plan by a shape alone with --shape NAME",
        ));
    }
    if !config.is_file() {
        let len = std::fs::metadata(path).map_err(|e| Error::io("cannot read", path, e))?.len();
        return Ok((FloatModel::open(path)?.config, len));
    }
    let listed = |e| Error::io("cannot list", path, e);
    let mut bytes = 0;
    for entry in std::fs::read_dir(path).map_err(listed)? {
        let entry = entry.map_err(listed)?;
        if entry.path().extension().is_some_and(|ending| ending == "safetensors") {
            bytes += entry.metadata().map_err(listed)?.len();
        }
    }
    let config = read_config(&config)?;
    // A config alone, as it is before anything is fetched.
    let bytes = if bytes > 0 { bytes } else { PUBLISHED * elements(&config) };
    Ok((config, bytes))
}

/// The shape that `[student]` makes of `source`: fewer layers, channels or neurons, or neurons of zeros.
///
/// # Errors
/// More is kept than there is.
pub fn pruned(source: &Config, recipe: &Recipe) -> Result<Config> {
    let mut config = source.clone();
    let wanted = &recipe.student;
    let kept = [
        ("layers", wanted.layers, &mut config.layers),
        ("hidden_size", wanted.hidden_size, &mut config.hidden_size),
        ("intermediate_size", wanted.intermediate_size, &mut config.intermediate_size),
    ];
    for (key, kept, have) in kept {
        let Some(kept) = kept else { continue };
        if kept > *have {
            return Err(Error::Config(format!("student.{key} = {kept}: the model has {have}")));
        }
        *have = kept;
    }
    let (have, kept) = (source.layers, config.layers);
    keep_kinds(&mut config, |layer| kept_layer(layer, kept, have));
    if let Some(multiple) = wanted.pad_intermediate {
        config.intermediate_size = config.intermediate_size.next_multiple_of(multiple);
    }
    Ok(config)
}
