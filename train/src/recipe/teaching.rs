//! What a student is taught, and by whom: the tables `[teacher]` and `[loss]`, checked.

use std::path::PathBuf;

use super::{
    Recipe,
    plan::{at_least, fail, not_negative, positive},
    raw,
};
use crate::{Error, Result, loss::Divergence};

/// Whom the student learns from.
#[derive(Debug, Clone, PartialEq)]
pub enum TeacherPlan {
    /// Nobody: the text alone.
    None,
    /// The student's own float weights.
    Latent,
    /// A Hugging Face directory.
    Model(PathBuf),
}

/// Where a teacher's predictions are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePlan {
    /// The folder.
    pub dir: PathBuf,
    /// Tokens kept of each prediction.
    pub top_k: usize,
}

/// Windows that the student writes itself.
#[derive(Debug, Clone, PartialEq)]
pub struct OnPolicyPlan {
    /// Windows of a micro-batch, at least one.
    pub rows: usize,
    /// Steps between two times.
    pub every: usize,
    /// Tokens that stay the text's.
    pub prompt: usize,
}

/// Weights of the loss terms.
#[derive(Debug, Clone)]
pub struct LossPlan {
    /// Weight of the cross entropy.
    pub cross_entropy: f64,
    /// Divergences from the teacher with their weights, in the order in which they are added.
    pub divergences: Vec<(Divergence, f64)>,
    /// Temperature of the divergences.
    pub temperature: f64,
    /// Terms on what happens inside, if there are any.
    pub features: Option<FeaturePlan>,
}

/// Terms that compare a layer of the student with one of the teacher.
#[derive(Debug, Clone, PartialEq)]
pub struct FeaturePlan {
    /// Weight of the distance of hidden states.
    pub hidden: f64,
    /// Weight of the divergence of attention relations.
    pub relations: f64,
    /// The student's layer; without it the last.
    pub layer: Option<usize>,
    /// Whether the weights are lengths of the gradient relative to that of the other terms at the start.
    pub balance: bool,
}

/// `[teacher]`.
pub(super) fn teacher(r: &Recipe) -> Result<TeacherPlan> {
    Ok(match &r.teacher {
        None => TeacherPlan::None,
        Some(t) if t.model == "latent" => TeacherPlan::Latent,
        Some(t) if t.model.is_empty() => {
            return fail("teacher.model", &t.model, "a model directory or latent");
        }
        Some(t) => TeacherPlan::Model((&t.model).into()),
    })
}

/// `teacher.cache`, if it is there.
pub(super) fn cache(r: &Recipe, teacher: &TeacherPlan, loss: &LossPlan) -> Result<Option<CachePlan>> {
    let Some((dir, top_k)) = r.teacher.as_ref().and_then(|t| t.cache.as_ref().map(|dir| (dir, t.top_k)))
    else {
        return Ok(None);
    };
    at_least("teacher.top_k", top_k, 1)?;
    if dir.is_empty() {
        return fail("teacher.cache", dir, "a folder");
    }
    if *teacher == TeacherPlan::Latent {
        return Err(Error::Config(format!(
            "teacher.cache = {dir:?}: the latent weights say something else after every step; name a model in teacher.model"
        )));
    }
    if loss.divergences.is_empty() {
        return Err(Error::Config(format!(
            "teacher.cache = {dir:?}: no term of [loss] reads it; set loss.forward_kl"
        )));
    }
    if loss.features.is_some() {
        return Err(Error::Config(format!(
            "teacher.cache = {dir:?}: it keeps predictions and no hidden states, which loss.hidden and loss.relations read; leave one out"
        )));
    }
    Ok(Some(CachePlan { dir: dir.into(), top_k }))
}

/// `loss.on_policy`, if it is above 0.
pub(super) fn on_policy(r: &Recipe, loss: &LossPlan) -> Result<Option<OnPolicyPlan>> {
    let (share, batch, ctx) = (r.loss.on_policy, r.train.batch, r.data.ctx);
    if !(0.0..=1.0).contains(&share) {
        return fail("loss.on_policy", share, "a share from 0 to 1");
    }
    if share == 0.0 {
        return Ok(None);
    }
    let refused = |why: &str| Err(Error::Config(format!("loss.on_policy = {share}: {why}")));
    if loss.cross_entropy > 0.0 || loss.divergences.is_empty() {
        return refused(
            "what the student writes has no right answers; set loss.forward_kl and loss.cross_entropy = 0",
        );
    }
    if r.teacher.as_ref().is_some_and(|t| t.cache.is_some()) {
        return refused("a cache knows nothing of what the student writes; leave teacher.cache out");
    }
    let rows = (share * batch as f64).round() as usize;
    if rows == 0 {
        return refused(&format!("less than half a window of a batch of {batch}; raise it or train.batch"));
    }
    at_least("loss.on_policy_every", r.loss.on_policy_every, 1)?;
    let prompt = r.loss.on_policy_prompt.unwrap_or(ctx.div_ceil(4));
    if prompt == 0 || prompt >= ctx {
        return fail("loss.on_policy_prompt", prompt, &format!("at least 1 and less than data.ctx = {ctx}"));
    }
    Ok(Some(OnPolicyPlan { rows, every: r.loss.on_policy_every, prompt }))
}

/// `[loss]` as a whole.
pub(super) fn loss(l: &raw::Loss, teacher: &TeacherPlan) -> Result<LossPlan> {
    positive("loss.temperature", l.temperature)?;
    not_negative("loss.cross_entropy", l.cross_entropy)?;
    for (key, share) in [("loss.jsd_beta", l.jsd_beta), ("loss.skew_alpha", l.skew_alpha)] {
        if !(share > 0.0 && share < 1.0) {
            return fail(key, share, "a number between 0 and 1");
        }
    }
    let alpha = l.skew_alpha as f32;
    let terms = [
        ("loss.forward_kl", l.forward_kl, Divergence::ForwardKl),
        ("loss.reverse_kl", l.reverse_kl, Divergence::ReverseKl),
        ("loss.jsd", l.jsd, Divergence::Jsd { beta: l.jsd_beta as f32 }),
        ("loss.skew_kl", l.skew_kl, Divergence::SkewKl { alpha }),
        ("loss.skew_reverse_kl", l.skew_reverse_kl, Divergence::SkewReverseKl { alpha }),
    ];
    let mut divergences = Vec::new();
    for (key, weight, kind) in terms {
        not_negative(key, weight)?;
        if weight > 0.0 {
            if *teacher == TeacherPlan::None {
                return Err(Error::Config(format!("{key} = {weight}: needs a [teacher]")));
            }
            divergences.push((kind, weight));
        }
    }
    if l.cross_entropy == 0.0 && divergences.is_empty() {
        return Err(Error::Config(
            "[loss]: every weight is 0; set cross_entropy, forward_kl, reverse_kl, jsd, skew_kl or skew_reverse_kl".into(),
        ));
    }
    let features = features(l, teacher)?;
    Ok(LossPlan { cross_entropy: l.cross_entropy, divergences, temperature: l.temperature, features })
}

fn features(l: &raw::Loss, teacher: &TeacherPlan) -> Result<Option<FeaturePlan>> {
    for (key, weight) in [("loss.hidden", l.hidden), ("loss.relations", l.relations)] {
        not_negative(key, weight)?;
        if weight > 0.0 && *teacher == TeacherPlan::None {
            return Err(Error::Config(format!("{key} = {weight}: needs a [teacher]")));
        }
    }
    let plan = FeaturePlan { hidden: l.hidden, relations: l.relations, layer: l.layer, balance: l.balance };
    Ok((l.hidden > 0.0 || l.relations > 0.0).then_some(plan))
}
