//! Whose predictions are the target: nobody's, the student's own float weights, another model's, or those that were written down.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::{Device, Tensor};
use qat_infer::model::{Config, Decoder};

use super::{Event, Job};
use crate::{
    Error, Result,
    data::{Batch, Batches},
    exec::{Matrix, RopeTable, TrainExec, forward_in_layers},
    loss::{Features, Head, Reference, TopRows},
    ops,
    precision::Precision,
    recipe::{CachePlan, Plan, TeacherPlan},
    student::{Floats, Student},
    teacher_cache::{self, Cache, Identity, records_of, rows_of},
};

/// A teacher, ready to be asked.
#[derive(Debug)]
pub enum Teacher {
    /// The text alone.
    None,
    /// The student without its rounding.
    Latent,
    /// A frozen model.
    Frozen {
        /// Its weights.
        decoder: Box<Decoder<Matrix, Tensor>>,
        /// Its angles.
        rope: RopeTable,
    },
    /// What a frozen model said once.
    Cached {
        /// Of the windows that are trained on.
        cache: Cache,
        /// Of the held-out batches.
        valid: Vec<TopRows>,
    },
}

/// What a teacher says of a batch.
#[derive(Debug)]
pub enum Predictions {
    /// Nothing.
    None,
    /// Everything, and what is behind one of its layers where that was asked for.
    Head(Head, Option<Features>),
    /// Its most probable tokens.
    Top(TopRows),
}

impl Predictions {
    /// As losses read it.
    pub fn reference(&self) -> Reference<'_> {
        match self {
            Self::None => Reference::None,
            Self::Head(head, _) => Reference::Head(head),
            Self::Top(top) => Reference::Top(top),
        }
    }

    /// Those of `rows` alone.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn only(self, rows: &[u32]) -> Result<Self> {
        Ok(match self {
            Self::None => Self::None,
            Self::Head(head, features) => Self::Head(head.only(rows)?, features),
            Self::Top(top) => Self::Top(top.only(rows)?),
        })
    }

    /// What is behind a layer.
    pub fn features(&self) -> Option<&Features> {
        match self {
            Self::Head(_, features) => features.as_ref(),
            _ => None,
        }
    }
}

impl Teacher {
    /// The teacher that `plan` asks for, at hand; a frozen one has the weights `floats`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(plan: &Plan, floats: &Floats, device: &Device) -> Result<Self> {
        match plan.teacher {
            TeacherPlan::None => Ok(Self::None),
            TeacherPlan::Latent => Ok(Self::Latent),
            TeacherPlan::Model(_) => Self::frozen(floats, plan.recipe.data.ctx, device),
        }
    }

    /// A frozen teacher for windows of `ctx` tokens.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn frozen(floats: &Floats, ctx: usize, device: &Device) -> Result<Self> {
        let decoder = floats.decoder(device)?;
        let rope = RopeTable::new(&decoder.ropes, ctx, device)?;
        Ok(Self::Frozen { decoder: Box::new(decoder), rope })
    }

    /// What the model `floats` says of all windows that the run will see, from the folder of `plan` or else asked now; of `all` windows
    /// of the text, `batches` visits the first.
    ///
    /// # Errors
    /// A folder that is a cache of something else, a full disk, an interruption, a device out of memory.
    pub fn cached(
        (job, plan): (&Job, &CachePlan),
        floats: &Floats,
        (batches, all): (&Batches, u64),
        valid: &[Batch],
        report: &mut dyn FnMut(Event),
        stop: &AtomicBool,
    ) -> Result<Self> {
        let (ctx, vocab) = (job.plan.recipe.data.ctx, floats.config.vocab_size);
        if plan.top_k >= vocab {
            return Err(Error::Config(format!(
                "teacher.top_k = {}: want less than the vocabulary's {vocab}",
                plan.top_k
            )));
        }
        let identity = Identity {
            version: teacher_cache::VERSION,
            teacher: teacher_cache::of_model(floats),
            tokens: batches.cursor(0).data,
            windows: all,
            ctx,
            vocab,
            top_k: plan.top_k,
            temperature: job.plan.loss.temperature as f32,
        };
        let (decoder, layout) = (floats.decoder(&job.device)?, identity.layout());
        let rope = RopeTable::new(&decoder.ropes, ctx, &job.device)?;
        let ask = |layout, batch: &Batch| {
            records_of(layout, &forward_batch(&decoder, &rope, batch, Pass::default())?.0)
        };
        let (wanted, report) = (batches.windows_per_epoch(), RefCell::new(report));
        let mut make = |windows: std::ops::Range<u64>| {
            let mut records = Vec::new();
            let numbers: Vec<u64> = windows.collect();
            for some in numbers.chunks(job.plan.recipe.train.batch) {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                (*report.borrow_mut())(Event::Teaching { done: some[0].min(wanted), total: wanted });
                records.extend(ask(layout, &batches.numbered(some))?);
            }
            Ok(records)
        };
        let mut note = |text| (*report.borrow_mut())(Event::Note(text));
        let cache = Cache::open(&plan.dir, identity, wanted, &mut make, (&job.ranks, &mut note))?;
        // Scores of held-out text don't depend on the temperature of the training.
        let plain = teacher_cache::Layout { temperature: 1.0, ..layout };
        let valid = valid.iter().map(|batch| rows_of(plain, &ask(plain, batch)?, &job.device));
        Ok(Self::Cached { cache, valid: valid.collect::<Result<_>>()? })
    }

    /// What it says of a training batch, outside any graph, with what is behind the layer that `pass` listens to.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn predictions(
        &self,
        student: &Student,
        student_rope: &RopeTable,
        batch: &Batch,
        pass: Pass,
    ) -> Result<Predictions> {
        let found = match self {
            Self::None => return Ok(Predictions::None),
            Self::Latent => forward_batch(&student.decoder(None)?, student_rope, batch, pass)?,
            Self::Frozen { decoder, rope } => forward_batch(decoder, rope, batch, pass)?,
            Self::Cached { cache, .. } => {
                return cache.rows(&batch.windows, student_rope.device()).map(Predictions::Top);
            }
        };
        let (head, features) = found;
        Ok(Predictions::Head(head, features))
    }

    /// Its shape; the student's where the student is its own teacher, none where nobody is at hand.
    pub fn config<'a>(&'a self, student: &'a Student) -> Option<&'a Config> {
        match self {
            Self::Latent => Some(&student.config),
            Self::Frozen { decoder, .. } => Some(&decoder.config),
            Self::None | Self::Cached { .. } => None,
        }
    }

    /// What it says of the held-out batch number `index`, at a temperature of 1.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn valid_predictions(
        &self,
        student: &Student,
        student_rope: &RopeTable,
        (index, batch): (usize, &Batch),
    ) -> Result<Predictions> {
        match self {
            Self::Cached { valid, .. } => {
                Ok(valid.get(index).cloned().map_or(Predictions::None, Predictions::Top))
            }
            _ => self.predictions(student, student_rope, batch, Pass::default()),
        }
    }
}

/// How a forward pass is carried out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass {
    /// What it computes in.
    pub precision: Precision,
    /// The layer that is listened to.
    pub tap: Option<usize>,
    /// Whether a backward pass is to make the insides of layers once more.
    pub again: bool,
}

/// What the logits of windows of `ctx` tokens, one after the other in `ids`, are a product of; and what is behind the layer that
/// `pass` listens to.
///
/// # Errors
/// The device is out of memory.
pub fn forward(
    decoder: &Decoder<Matrix, Tensor>,
    rope: &RopeTable,
    (ids, ctx): (&[u32], usize),
    pass: Pass,
) -> Result<(Head, Option<Features>)> {
    carry_out(decoder, TrainExec::new(ids.len() / ctx, ctx, rope), ids, pass)
}

/// The same of the windows of `batch`, in which documents may lie apart.
///
/// # Errors
/// The device is out of memory.
pub fn forward_batch(
    decoder: &Decoder<Matrix, Tensor>,
    rope: &RopeTable,
    batch: &Batch,
    pass: Pass,
) -> Result<(Head, Option<Features>)> {
    let borders = batch.packed.as_ref().map(|packed| packed.borders.clone());
    let exec = TrainExec::new(batch.rows, batch.context, rope).with_borders(borders);
    carry_out(decoder, exec, &batch.inputs, pass)
}

fn carry_out(
    decoder: &Decoder<Matrix, Tensor>,
    exec: TrainExec,
    ids: &[u32],
    pass: Pass,
) -> Result<(Head, Option<Features>)> {
    let mut exec = exec.with_precision(pass.precision);
    if let Some(layer) = pass.tap {
        exec = exec.with_tap(layer);
    }
    let hidden = match pass.again {
        true => forward_in_layers(decoder, &mut exec, ids)?,
        false => decoder.forward(&mut exec, ids)?,
    };
    let matrix = decoder.head.as_ref().map_or(&decoder.embed, |head| &head.weight);
    let input = match matrix.int8_inputs {
        Some(lambda) => ops::quantize_activations(&hidden, lambda)?,
        None => hidden,
    };
    Ok((Head { input, weight: matrix.weight.clone() }, exec.features()))
}
