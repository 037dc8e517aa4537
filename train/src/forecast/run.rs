//! A whole run on sizes: weights are read, copied to where they are trained, trained for a few steps, validated and saved.
//!
//! Stands for `crate::trainer::train`. Knows no data. Invariant: what is held together in a run is held together here.

use qat_infer::model::{Config, Decoder, params};

use super::{
    exec::{FLOAT, place},
    heap::{Block, Heap, Part, Peaks, Place, Policy},
    step::{SizedTeacher, Stepper},
    student::{Frozen, SizedStudent, elements},
    tape::Tape,
};
use crate::{
    ops::gpu::Path,
    recipe::{Plan, TeacherPlan},
};

/// Steps after which every step is like the one before.
const STEPS: usize = 3;

/// What a run reads, and where it trains.
#[derive(Debug, Clone)]
pub(super) struct Setting<'a> {
    pub plan: &'a Plan,
    /// Shapes of the model that is read, of the student that is made of it, and of a teacher of its own.
    pub source: &'a Config,
    pub student: &'a Config,
    pub teacher: Option<&'a Config>,
    /// Bytes of the model's files, which are mapped.
    pub file_bytes: u64,
    /// Where it trains, and how memory is used again there.
    pub path: Path,
    pub policies: [Policy; 2],
    pub threads: u64,
}

impl Setting<'_> {
    /// The greatest moments of the run.
    pub fn peaks(&self) -> Peaks {
        let heap = Heap::new(self.policies[0], self.policies[1]);
        let tape = Tape::default();
        let stepper = self.begin(&heap, &tape);
        let begin = self.plan.warmup.begin > 0;
        // A run that begins float and is rounded later has both kinds of steps.
        if begin {
            stepper.step(false);
        }
        for _ in 0..STEPS {
            stepper.step(true);
        }
        stepper.validate();
        self.save(&heap, &stepper);
        heap.peaks()
    }

    /// All that stands before the first step; what was read is let go of at the end.
    fn begin<'h>(&'h self, heap: &'h Heap, tape: &'h Tape) -> Stepper<'h> {
        let read = |config: &Config| -> Vec<Block> {
            let bytes = params(config).iter().map(|param| elements(param) * FLOAT).collect::<Vec<_>>();
            bytes.into_iter().map(|bytes| heap.take(Place::Host, Part::Loading, bytes)).collect()
        };
        heap.map(self.file_bytes);
        let _source = read(self.source);
        let _of_teacher = self.teacher.map(&read);
        let floats = read(self.student);
        let teacher = self.teacher_on(heap, tape);
        let student = SizedStudent::new(self.plan, self.student, (heap, tape, self.path));
        if self.path == Path::Cpu {
            heap.untouched(student.moments());
        }
        let _start = self.plan.blocks.map(|_| read(self.student));
        // The start is written down, and read back through pages of its file.
        let written: u64 = floats.iter().map(Block::bytes).sum();
        for block in &floats {
            drop(heap.take(Place::Host, Part::Loading, block.bytes()));
        }
        heap.map(self.file_bytes + written);
        heap.map(0);
        Stepper { plan: self.plan, heap, tape, path: self.path, threads: self.threads, student, teacher }
    }

    fn teacher_on(&self, heap: &Heap, tape: &Tape) -> SizedTeacher {
        let frozen = || {
            let config = self.teacher.unwrap_or(self.source);
            let mut weights = Frozen { heap, tape, place: place(self.path) };
            let Ok(decoder) = Decoder::build(config.clone(), &mut weights);
            Box::new(decoder)
        };
        match (&self.plan.teacher, &self.plan.cache) {
            (TeacherPlan::None, _) => SizedTeacher::Nobody,
            (TeacherPlan::Latent, _) => SizedTeacher::Latent,
            (TeacherPlan::Model(_), None) => SizedTeacher::Frozen(frozen()),
            (TeacherPlan::Model(_), Some(cache)) => {
                // It is there while the cache is made.
                drop(frozen());
                SizedTeacher::Cached(cache.top_k as u64)
            }
        }
    }

    /// A checkpoint: each tensor is copied on its way to the disk.
    fn save(&self, heap: &Heap, stepper: &Stepper) {
        for bytes in stepper.student.kept() {
            drop(heap.take(Place::Host, Part::Loading, bytes));
        }
    }
}
