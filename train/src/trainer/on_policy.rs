//! Windows that the student writes itself: it is corrected where its own words lead it.
//!
//! Every few steps the weights are packed as they would ship, and the runtime goes on with the first tokens of some windows of
//! the text; what it wrote takes the place of these windows until the next time. (GKD, arXiv 2306.13649, with text that is a few steps
//! old.) What is written is kept in the run's folder, because the weights that wrote it are gone when a run is resumed. Invariant: a token
//! depends on the seed, the step at which it was written, its window and the weights of that step.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use qat_infer::{
    RuntimeMatrix as _,
    cpu::{self, CpuDecoder, KvType, RunOptions, Session},
    files::{Activations, Storage, StoredMatrix, write_file_atomic},
    generate::{Sampling, generate},
    model::{Decoder, Param, Weights},
};
use qat_quant::kernels::FloatType;
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    data::{Batch, Batches},
    ranks::Ranks,
    recipe::{OnPolicyPlan, Plan},
    student::{Shipped, Student},
};

/// Tokens are drawn from so many of the likeliest.
const LIKELIEST: usize = 1024;

/// Bytes of the checksum in front of what was written.
const CHECKSUM: usize = 32;

/// Writes windows, and keeps them until they are used.
pub(super) struct Author {
    folder: PathBuf,
    plan: OnPolicyPlan,
    seed: u64,
    ctx: usize,
    accumulate: usize,
    steps: usize,
    ranks: Ranks,
    /// The rows of each batch that are this rank's.
    rows: Range<usize>,
    batch: usize,
    /// What was written last, and at which step.
    written: Option<(usize, Vec<u32>)>,
}

impl Author {
    /// What `plan` asks for, in the run's folder `out`, on a rank that takes `rows` of each batch; none where all windows are the text's.
    pub fn new(plan: &Plan, out: &Path, (ranks, rows): (&Ranks, Range<usize>)) -> Option<Self> {
        let recipe = &plan.recipe;
        Some(Self {
            folder: out.join("on-policy"),
            plan: plan.on_policy.clone()?,
            seed: recipe.seed,
            ctx: recipe.data.ctx,
            accumulate: recipe.train.accumulate,
            steps: recipe.train.steps,
            ranks: ranks.clone(),
            rows,
            batch: recipe.train.batch,
            written: None,
        })
    }

    /// This rank's rows of the micro-batches of `step`, of each of which the last windows are the student's. All ranks write together.
    ///
    /// # Errors
    /// What was written before the run was interrupted is gone or damaged; a full disk.
    pub fn batches(&mut self, student: &Student, batches: &Batches, step: usize) -> Result<Vec<Batch>> {
        let begun = step - step % self.plan.every;
        if self.written.as_ref().is_none_or(|(at, _)| *at != begun) {
            let path = self.folder.join(format!("step-{begun:08}"));
            let ids = if begun == step {
                self.write(student, batches, step, &path)?
            } else {
                self.read(&path, begun)?
            };
            self.written = Some((begun, ids));
        }
        let Some((_, ids)) = &self.written else { return Ok(Vec::new()) };
        let per_batch = self.plan.rows * self.ctx;
        let first = (step - begun) * self.accumulate * per_batch;
        // Of the windows written, those that stand in this rank's rows.
        let before = self.batch - self.plan.rows;
        let [from, to] = [self.rows.start, self.rows.end].map(|row| row.saturating_sub(before) * self.ctx);
        let own = self.numbers(step).map(|at| batches.rows(at, self.rows.clone()));
        let parts = ids[first..].chunks_exact(per_batch).zip(own);
        Ok(parts.map(|(ids, batch)| with_written(batch, &ids[from..to])).collect())
    }

    fn numbers(&self, step: usize) -> impl Iterator<Item = u64> + use<> {
        let first = step * self.accumulate;
        (first..first + self.accumulate).map(|at| at as u64)
    }

    fn of_step<'b>(&self, batches: &'b Batches, step: usize) -> impl Iterator<Item = Batch> + use<'b> {
        self.numbers(step).map(|at| batches.at(at))
    }

    /// Windows for the steps from `step` to the next time.
    fn write(&self, student: &Student, batches: &Batches, step: usize, path: &Path) -> Result<Vec<u32>> {
        let prompts: Vec<Vec<u32>> = (step..self.end(step))
            .flat_map(|step| self.of_step(batches, step))
            .flat_map(|batch| {
                let windows = batch.inputs.chunks(self.ctx).skip(batch.rows - self.plan.rows);
                windows.map(|window| window[..self.plan.prompt].to_vec()).collect::<Vec<_>>()
            })
            .collect();
        let decoder = running(student)?;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(step as u64);
        let seeds: Vec<u64> = prompts.iter().map(|_| random.next_u64()).collect();
        let ctx = self.ctx;
        let window = |(prompt, seed): (&Vec<u32>, &u64)| -> Result<Vec<u32>> {
            // One thread each: a small model keeps no more of them busy.
            let options = RunOptions { context: ctx, kv: KvType::F32, threads: Some(1) };
            let mut session = Session::new(&decoder, &options)?;
            let top_k = LIKELIEST.min(student.config.vocab_size);
            let sampling = Sampling { temperature: 1.0, top_k, top_p: 1.0, min_p: 0.0, seed: *seed };
            let most = ctx - prompt.len();
            let told = &mut |_| std::ops::ControlFlow::Continue(());
            let written = generate(&mut session, prompt, most, &[], &sampling, told)?;
            Ok([prompt.as_slice(), &written.tokens].concat())
        };
        // Each rank writes a share, and tells it to all.
        let place = |rank: usize| prompts.len() * rank / self.ranks.size();
        let share = place(self.ranks.rank())..place(self.ranks.rank() + 1);
        let windows: Vec<Result<Vec<u32>>> =
            prompts[share.clone()].par_iter().zip(&seeds[share]).map(window).collect();
        let ids = windows.into_iter().collect::<Result<Vec<_>>>().map(|windows| windows.concat());
        let ids = self.ranks.concat(ids)?;
        self.ranks.on_first(|| {
            std::fs::create_dir_all(&self.folder)
                .map_err(|e| Error::io("cannot make the folder", &self.folder, e))?;
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            Ok(write_file_atomic(path, &[&self.checksum(step, &bytes)[..], &bytes].concat())?)
        })?;
        Ok(ids)
    }

    /// What was written at step `begun` before the run was interrupted.
    fn read(&self, path: &Path, begun: usize) -> Result<Vec<u32>> {
        let bytes =
            std::fs::read(path).map_err(|e| Error::io("cannot read what the student wrote", path, e))?;
        let len = (self.end(begun) - begun) * self.accumulate * self.plan.rows * self.ctx * 4;
        let (checksum, ids) = bytes.split_at(CHECKSUM.min(bytes.len()));
        if ids.len() != len || checksum != self.checksum(begun, ids) {
            let problem = "what the student wrote is damaged, and the weights that wrote it are gone; --restart begins anew";
            return Err(Error::file(path, problem));
        }
        Ok(ids.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// The step at which is written next.
    fn end(&self, begun: usize) -> usize {
        (begun + self.plan.every).min(self.steps)
    }

    fn checksum(&self, step: usize, ids: &[u8]) -> [u8; CHECKSUM] {
        let numbers = [self.seed, step as u64, self.ctx as u64, self.plan.prompt as u64];
        let mut hash = Sha256::new();
        numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
        hash.chain_update(ids).finalize().into()
    }
}

/// `batch` with the windows `ids` for its last ones. What follows their last tokens is not known, and nothing reads it.
fn with_written(mut batch: Batch, ids: &[u32]) -> Batch {
    let first = batch.inputs.len() - ids.len();
    batch.inputs[first..].copy_from_slice(ids);
    for (row, targets) in ids.chunks(batch.context).zip(batch.targets[first..].chunks_mut(batch.context)) {
        targets[..row.len() - 1].copy_from_slice(&row[1..]);
    }
    batch
}

/// The student in the runtime, with the weights as they would ship.
fn running(student: &Student) -> Result<CpuDecoder> {
    Decoder::build(student.config.clone(), &mut Shipping(student))
}

struct Shipping<'a>(&'a Student);

impl Weights for Shipping<'_> {
    type M = cpu::Matrix;
    type V = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<cpu::Matrix> {
        let stored = match self.0.ship(param)? {
            Shipped::Packed(packed) => StoredMatrix {
                storage: Storage::Packed(packed.format),
                bytes: packed.blocks.into(),
                tensor_scale: packed.tensor_scale,
                activations: self.0.activations(param),
            },
            Shipped::Float(values) => StoredMatrix {
                storage: Storage::Float(FloatType::F32),
                bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
                tensor_scale: None,
                activations: Activations::Float,
            },
        };
        Ok(cpu::Matrix::new(&param.name, [param.shape[0], param.shape[1]], stored)?)
    }

    fn vector(&mut self, param: &Param) -> Result<Vec<f32>> {
        match self.0.ship(param)? {
            Shipped::Float(values) => Ok(values),
            Shipped::Packed(_) => Err(Error::Config(format!("{}: a vector that ships packed", param.name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exec::Matrix,
        recipe::{Quantization, Rounding, Rules},
        tiny::{self, largest_difference, runtime_logits, trained_logits},
    };

    #[test]
    fn the_author_is_the_student_on_its_grid() {
        for (weights, activations) in
            [("ternary-tensor", Activations::Float), ("int4-g32", Activations::Int8Token)]
        {
            let config = tiny::config(serde_json::json!({}));
            let rules = Rules::new(weights, "int8-g32", "int8-g32", &Default::default()).expect("rules");
            let quantization =
                Quantization::untrained(rules, Rounding::Rule(qat_quant::ScaleRule::Mse), activations);
            let floats = tiny::floats(config, 3);
            let student = Student::new(&floats, quantization, &candle_core::Device::Cpu).expect("student");
            let ids = tiny::ids(12, 96);
            let ours = trained_logits(&student.decoder(Some(1.0)).expect("decoder"), &ids);
            let theirs = runtime_logits(&running(&student).expect("packed"), &ids);
            // The bound between trainer and runtime; with int8 inputs a last place may take another code.
            let bound = if activations == Activations::Float { 1e-4 } else { 0.05 };
            assert!(largest_difference(&ours, &theirs) < bound, "{weights}");
            let float: &Decoder<Matrix, _> = &floats.decoder(&candle_core::Device::Cpu).expect("decoder");
            assert!(
                largest_difference(&ours, &trained_logits(float, &ids)) > 2.0 * bound,
                "{weights} rounds nothing"
            );
        }
    }
}
