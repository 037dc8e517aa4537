//! A step and a validation on sizes.
//!
//! Stands for `crate::trainer`'s objective and teacher, and for `crate::loss`. Knows no file.

use qat_infer::model::{Decoder, Exec as _};

use super::{
    exec::{FLOAT, Matrix, SizeExec, Value, place},
    heap::{Block, Heap, Part, Place},
    student::SizedStudent,
    tape::{Gradient, Gradients, Id, Node, Tape, walk_back},
};
use crate::{
    ops::gpu::Path,
    recipe::{Plan, TeacherPlan},
};

/// Rows of the vocabulary that a thread works with on the CPU: one more gradient, and two distributions with their quotient.
const ROW_SCRATCH: u64 = 4;

/// Whose predictions are the target.
pub(super) enum SizedTeacher {
    Nobody,
    Latent,
    Frozen(Box<Decoder<Matrix, Value>>),
    /// So many tokens of each prediction are known.
    Cached(u64),
}

impl SizedTeacher {
    pub fn is_somebody(&self) -> bool {
        !matches!(self, Self::Nobody)
    }
}

/// What a teacher says of a micro-batch.
struct Said {
    what: What,
    /// As long as it is needed.
    _held: Vec<Block>,
}

#[derive(PartialEq)]
enum What {
    Nothing,
    /// Hidden states, and the matrix that makes logits of them.
    Hidden,
    /// The most probable tokens.
    Top,
}

impl Said {
    fn nothing() -> Self {
        Self { what: What::Nothing, _held: Vec::new() }
    }
}

/// A run between two steps.
pub(super) struct Stepper<'a> {
    pub plan: &'a Plan,
    pub heap: &'a Heap,
    pub tape: &'a Tape,
    pub path: Path,
    pub threads: u64,
    pub student: SizedStudent,
    pub teacher: SizedTeacher,
}

impl Stepper<'_> {
    fn exec(&self) -> SizeExec<'_> {
        SizeExec {
            heap: self.heap,
            tape: self.tape,
            path: self.path,
            windows: self.plan.recipe.train.batch as u64,
            ctx: self.plan.recipe.data.ctx as u64,
            element: match self.path {
                Path::Cpu => FLOAT,
                Path::Kernels => self.plan.precision.dtype().size_in_bytes() as u64,
            },
            cached: false,
        }
    }

    fn tokens(&self) -> u64 {
        (self.plan.recipe.train.batch * self.plan.recipe.data.ctx) as u64
    }

    /// The gradients of all micro-batches, then the optimizer.
    pub fn step(&self, rounded: bool) {
        let mut sums: Vec<Block> = Vec::new();
        for micro_batch in 0..self.plan.recipe.train.accumulate {
            let mut found = self.gradients(rounded);
            for variable in self.student.variables() {
                // Without rounding, grids have gradients of zeros.
                let gradient = found.remove(&variable.id).unwrap_or_else(|| {
                    self.heap.take(place(self.path), Part::Gradients, variable.block.bytes())
                });
                if micro_batch == 0 {
                    sums.push(gradient);
                }
            }
            drop(found);
            self.heap.wait();
        }
        self.heap.untouched(0);
        self.update(&sums);
        self.heap.wait();
    }

    /// Muon's products; AdamW works in place.
    fn update(&self, gradients: &[Block]) {
        if self.plan.optim.muon.is_none() {
            return;
        }
        let largest = gradients.iter().map(Block::bytes).max().unwrap_or(0);
        // Gradient, momentum, the look ahead, the iterate and its next, value and their difference.
        let _scratch = [(); 6].map(|()| self.heap.take(place(self.path), Part::Optimizer, largest));
    }

    fn gradients(&self, rounded: bool) -> Gradients {
        let said = self.tape.silent(|| self.predictions());
        let ((total, decoder), nodes) = self.tape.of(|| {
            let mut exec = self.exec();
            let decoder = self.student.decoder(&exec, rounded);
            let hidden = self.forward(&decoder, &mut exec);
            let total = self.losses(&exec, &hidden, head(&decoder), &said, true);
            // The backward pass makes layers again with the same matrices.
            (total, self.plan.recipe.train.checkpoint_layers.then_some(decoder))
        });
        drop(said);
        let mut gradients = Gradients::new();
        gradients.insert(total.id, self.heap.take(place(self.path), Part::Activations, FLOAT));
        drop(total);
        let again = |layer: usize, id: Id, block: Block| -> (Id, Vec<Node>) {
            let (value, part) = self.tape.of(|| {
                let mut exec = self.exec();
                decoder.as_ref().map_or(id, |decoder| {
                    let elements = block.bytes() / exec.element;
                    let Ok(value) = decoder.layer(&mut exec, layer, Value { id, block, elements });
                    value.id
                })
            });
            (value, part)
        };
        walk_back(nodes, &mut gradients, (self.heap, place(self.path)), &again);
        gradients
    }

    fn forward(&self, decoder: &Decoder<Matrix, Value>, exec: &mut SizeExec) -> Value {
        if !self.plan.recipe.train.checkpoint_layers {
            let Ok(hidden) = decoder.forward(exec, &[]);
            return hidden;
        }
        let Ok(mut x) = exec.embed(&decoder.embed, &[], decoder.config.embedding_scale());
        for layer in 0..decoder.layers.len() {
            let y = self.tape.silent(|| {
                let Ok(y) = decoder.layer(exec, layer, x.clone());
                y
            });
            let again = Some(layer);
            self.heap.wait();
            let inputs = vec![(x.id, Gradient::Same)];
            self.tape.write(Node { value: y.id, inputs, kept: vec![x.block], scratch: 0, again });
            x = y;
        }
        let Ok(hidden) = exec.rms_norm(&x, &decoder.norm, 0.0);
        hidden
    }

    fn predictions(&self) -> Said {
        if self.plan.loss.divergences.is_empty() && self.plan.loss.features.is_none() {
            return Said::nothing();
        }
        self.asked()
    }

    fn asked(&self) -> Said {
        let mut exec = self.exec();
        let of = |decoder: &Decoder<Matrix, Value>, exec: &mut SizeExec| {
            let Ok(hidden) = decoder.forward(exec, &[]);
            Said { what: What::Hidden, _held: vec![hidden.block, head(decoder).value.block.clone()] }
        };
        match &self.teacher {
            SizedTeacher::Nobody => Said::nothing(),
            SizedTeacher::Latent => of(&self.student.decoder(&exec, false), &mut exec),
            SizedTeacher::Frozen(decoder) => of(decoder, &mut exec),
            SizedTeacher::Cached(top_k) => {
                // Ids, and logarithms of one more.
                let bytes = self.tokens() * (2 * top_k + 1) * FLOAT;
                let held = vec![self.heap.take(place(self.path), Part::Teacher, bytes)];
                Said { what: What::Top, _held: held }
            }
        }
    }

    /// The losses behind the head, in chunks of rows; with their gradients, made at once.
    fn losses(&self, exec: &SizeExec, input: &Value, matrix: &Matrix, said: &Said, learn: bool) -> Value {
        let (n, vocab, hidden) = (self.tokens(), matrix.rows, matrix.cols);
        let (elements, least) = if exec.on_cpu() { (1 << 23, 128) } else { (1 << 26, 1024) };
        let rows = n.div_ceil(n.div_ceil((elements / vocab).max(least)));
        let operand = exec.operand(&matrix.value);
        let (mut of_input, mut of_matrix) = (Vec::new(), None);
        for start in (0..n).step_by(rows as usize) {
            let rows = rows.min(n - start);
            let logits = exec.make(Part::Logits, rows * vocab);
            let theirs = (said.what == What::Hidden).then(|| exec.make(Part::Logits, rows * vocab));
            let gradient = learn.then(|| exec.make(Part::Logits, rows * vocab));
            let scratch = if exec.on_cpu() { self.threads * ROW_SCRATCH * vocab } else { 0 };
            drop((theirs, self.heap.take(Place::Host, Part::Logits, scratch * FLOAT)));
            let of_text = learn && said.what == What::Top && self.plan.loss.cross_entropy > 0.0;
            let spread = of_text.then(|| exec.make(Part::Logits, rows * vocab));
            if learn {
                of_input.push(exec.make(Part::Activations, rows * hidden));
                let found = exec.make(Part::Gradients, vocab * hidden);
                // Summed in f32, whatever the product gives.
                let sum = || self.heap.take(place(self.path), Part::Gradients, vocab * hidden * FLOAT);
                let exact = exec.element == FLOAT;
                of_matrix.get_or_insert_with(|| if exact { found.block.clone() } else { sum() });
            }
            drop((logits, gradient, spread));
            self.heap.wait();
        }
        let total = exec.make(Part::Activations, 1);
        if let Some(of_matrix) = of_matrix {
            let of_input = match of_input.len() {
                1 => of_input.swap_remove(0),
                _ => exec.make(Part::Activations, n * hidden),
            };
            let inputs = [
                (input, Gradient::New(Part::Activations, input.block.bytes())),
                (&operand, Gradient::of_variable(vocab * hidden)),
            ];
            exec.write(&total, &inputs, [of_input.block, of_matrix], 0);
        }
        total
    }

    /// A batch of held-out windows.
    pub fn validate(&self) {
        self.tape.silent(|| {
            // Whatever is trained in, what ships is scored in f32.
            let mut exec = SizeExec { element: FLOAT, ..self.exec() };
            let decoder = self.student.decoder(&exec, true);
            let said = if self.teacher.is_somebody() { self.asked() } else { Said::nothing() };
            let Ok(hidden) = decoder.forward(&mut exec, &[]);
            self.losses(&exec, &hidden, head(&decoder), &said, false);
        });
        self.heap.wait();
    }

    /// Whether anybody is asked at each step.
    pub fn teaches(plan: &Plan) -> bool {
        plan.teacher != TeacherPlan::None
    }
}

/// What makes logits of hidden states.
fn head(decoder: &Decoder<Matrix, Value>) -> &Matrix {
    decoder.head.as_ref().map_or(&decoder.embed, |head| &head.weight)
}
