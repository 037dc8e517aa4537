//! The output matrix and the losses behind it as one operation that never holds tokens × vocabulary.
//!
//! The rows are taken in chunks. Of a chunk the logits are made, the student's and the teacher's, from them the losses and the
//! gradient of the logits, and from that the gradients of the input and of the matrix, all in the forward pass; then the chunk is
//! let go of. What stays until the backward pass is as large as input and matrix. (The same idea as Liger's fused linear losses.)
//! Knows no model. Invariant: how rows are cut depends on their number, the vocabulary and the kind of device alone.

use candle_core::{DType, Result, Tensor};

use super::{NAME, Rows, Term, TopRows, buckets::evaluate_top, evaluate};
use crate::ops::{
    accumulate, cast,
    gpu::{Backward, attach, settle},
    linear, linear_gradients, pick_rows, scale,
};

/// What logits are a product of, in the type of the input.
#[derive(Debug, Clone)]
pub struct Head {
    /// `[n, hidden]`.
    pub input: Tensor,
    /// `[vocab, hidden]`; rounded to the type of the input where it is of another.
    pub weight: Tensor,
}

/// What the logits of a student's head are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Answers<'a> {
    /// The next token, one a row; read by [`Term::CrossEntropy`].
    pub text: &'a [u32],
    /// Whose predictions are the target of [`Term::Divergence`]; gets no gradient.
    pub teacher: Reference<'a>,
    /// Temperature τ of the divergences.
    pub temperature: f32,
}

/// A teacher's predictions.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'a> {
    /// There are none.
    None,
    /// All of them.
    Head(&'a Head),
    /// Those of its most probable tokens.
    Top(&'a TopRows),
}

/// Losses of a head.
#[derive(Debug)]
pub struct Losses {
    /// Σ factor·sum over the terms, as a scalar in the graph of the head's input and weight.
    pub total: Tensor,
    /// The sum of each term over the rows, in nats, outside the graph; `[terms]`.
    pub sums: Tensor,
}

impl Answers<'_> {
    /// The losses of `logits`, those of the rows from `start` on.
    fn evaluate(
        &self,
        logits: &Tensor,
        start: usize,
        terms: &[(Term, f64)],
        with_gradient: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (len, temperature) = (logits.dim(0)?, self.temperature);
        let text = self.text.get(start..start + len).unwrap_or_default();
        let teacher = match self.teacher {
            Reference::None => None,
            Reference::Head(teacher) => Some(cast(&teacher.logits(start, len)?, logits.dtype())?),
            Reference::Top(top) => {
                return evaluate_top(
                    logits,
                    terms,
                    (text, &top.narrow(start, len)?, temperature),
                    with_gradient,
                );
            }
        };
        evaluate(logits, terms, &Rows { text, teacher: teacher.as_ref(), temperature }, with_gradient)
    }
}

impl Head {
    /// The weighted `terms` over all rows, with their gradient.
    ///
    /// # Errors
    /// No terms, `answers` that lack what a term reads or don't fit, a device out of memory.
    pub fn losses(&self, terms: &[(Term, f64)], answers: &Answers) -> Result<Losses> {
        self.losses_by(self.rows_at_once()?, terms, answers)
    }

    /// The same for `rows` alone.
    ///
    /// # Errors
    /// A row that isn't there; a device out of memory.
    pub fn only(&self, rows: &[u32]) -> Result<Self> {
        Ok(Self { input: pick_rows(&self.input, rows)?, weight: self.weight.clone() })
    }

    /// The sums of `terms` over all rows, `[terms]`, without a gradient.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub fn scores(&self, terms: &[Term], answers: &Answers) -> Result<Tensor> {
        let terms: Vec<(Term, f64)> = terms.iter().map(|term| (*term, 1.0)).collect();
        Ok(self.walk(self.rows_at_once()?, &terms, answers, false)?.sums)
    }

    /// Gives `f` the logits of all rows, outside any graph, some rows at a time.
    ///
    /// # Errors
    /// The first that `f` gives; a device out of memory.
    pub fn for_logits(&self, f: &mut dyn FnMut(&Tensor) -> crate::Result<()>) -> crate::Result<()> {
        let (rows, n, head) = (self.rows_at_once()?, self.input.dim(0)?, self.outside()?);
        (0..n).step_by(rows).try_for_each(|start| f(&head.logits(start, rows.min(n - start))?))
    }

    fn losses_by(&self, rows: usize, terms: &[(Term, f64)], answers: &Answers) -> Result<Losses> {
        let Walk { sums, input, weight } = self.walk(rows, terms, answers, true)?;
        let Some(weight) = weight else { candle_core::bail!("{NAME}: no rows") };
        let factors: Vec<f32> = terms.iter().map(|(_, factor)| *factor as f32).collect();
        let total = (&sums * Tensor::from_vec(factors, terms.len(), sums.device())?)?.sum_all()?;
        let gradients = Gradients { input: Tensor::cat(&input, 0)?, weight };
        Ok(Losses { total: attach(total, &[&self.input, &self.weight], gradients)?, sums })
    }

    fn walk(
        &self,
        rows: usize,
        terms: &[(Term, f64)],
        answers: &Answers,
        with_gradient: bool,
    ) -> Result<Walk> {
        let n = self.input.dim(0)?;
        if terms.iter().any(|(term, _)| *term == Term::CrossEntropy) && answers.text.len() != n {
            candle_core::bail!("{NAME}: text: want {n} ids, one a row, found {}", answers.text.len());
        }
        let student = self.outside()?;
        let theirs = match answers.teacher {
            Reference::Head(teacher) => Some(teacher.outside()?),
            Reference::None | Reference::Top(_) => None,
        };
        let teacher = theirs.as_ref().map_or(answers.teacher, Reference::Head);
        let answers = Answers { teacher, ..*answers };
        let sums = Tensor::zeros(terms.len(), DType::F32, self.input.device())?;
        let mut walk = Walk { sums, input: Vec::new(), weight: None };
        for start in (0..n).step_by(rows) {
            let len = rows.min(n - start);
            let input = student.input.narrow(0, start, len)?;
            let logits = linear(&input, &student.weight)?;
            let (sums, gradient) = answers.evaluate(&logits, start, terms, with_gradient)?;
            walk.sums = (walk.sums + sums)?;
            if let Some(gradient) = gradient {
                walk.add(linear_gradients(&input, &student.weight, &gradient)?)?;
            }
            drop(logits);
            settle(self.input.device())?;
        }
        Ok(walk)
    }

    /// The same outside any graph, in one type.
    fn outside(&self) -> Result<Self> {
        let weight = cast(&self.weight.detach(), self.input.dtype())?;
        Ok(Self { input: self.input.detach(), weight })
    }

    fn logits(&self, start: usize, len: usize) -> Result<Tensor> {
        linear(&self.input.narrow(0, start, len)?, &self.weight)
    }

    /// Rows of a chunk: as many as make 32 MiB of logits on the CPU, where a chunk should stay near, and 256 MiB (in bf16 128) on a
    /// GPU, which has to be filled; but enough that reading the matrix once more for each chunk doesn't count. All but the last are equal.
    fn rows_at_once(&self) -> Result<usize> {
        let (elements, least) = if self.input.device().is_cpu() { (1 << 23, 128) } else { (1 << 26, 1024) };
        let (n, vocab) = (self.input.dim(0)?.max(1), self.weight.dim(0)?.max(1));
        let most = (elements / vocab).max(least);
        Ok(n.div_ceil(n.div_ceil(most)))
    }
}

/// What came of the rows so far.
struct Walk {
    sums: Tensor,
    /// Gradients of the input, chunk by chunk.
    input: Vec<Tensor>,
    /// Gradient of the matrix, f32 whatever its products are.
    weight: Option<Tensor>,
}

impl Walk {
    fn add(&mut self, (input, weight): (Tensor, Tensor)) -> Result<()> {
        self.input.push(input);
        match &self.weight {
            Some(sum) => accumulate(sum, &weight),
            None => {
                self.weight = Some(weight.to_dtype(DType::F32)?);
                Ok(())
            }
        }
    }
}

/// The gradients of the total, made in advance.
struct Gradients {
    input: Tensor,
    weight: Tensor,
}

impl Backward for Gradients {
    const NAME: &'static str = NAME;
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(scale(&self.input, grad)?), Some(scale(&self.weight, grad)?)])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::{
        loss::{Divergence, tests::sum_of},
        ops::{
            check::{assert_close, flat, uniform},
            gpu::host::{self, Care},
            tape::Tape,
        },
    };

    const TEXT: [u32; 5] = [3, 0, 8, 3, 1];
    const TERMS: [(Term, f64); 3] = [
        (Term::Divergence(Divergence::ForwardKl), 0.5),
        (Term::CrossEntropy, 1.0),
        (Term::Divergence(Divergence::Jsd { beta: 0.3 }), 2.0),
    ];

    struct Bench {
        input: Var,
        weight: Var,
        teacher: Head,
    }

    impl Bench {
        fn new() -> Result<Self> {
            Ok(Self {
                input: Var::from_tensor(&uniform(1, 2.0, &[5, 5])?)?,
                weight: Var::from_tensor(&uniform(2, 1.0, &[9, 5])?)?,
                // Of another width.
                teacher: Head { input: uniform(3, 2.0, &[5, 7])?, weight: uniform(4, 1.0, &[9, 7])? },
            })
        }

        fn head(&self) -> Head {
            Head { input: self.input.as_tensor().clone(), weight: self.weight.as_tensor().clone() }
        }

        fn answers(&self) -> Answers<'_> {
            Answers { text: &TEXT, teacher: Reference::Head(&self.teacher), temperature: 2.0 }
        }

        /// A quarter of the loss and its gradients, with `rows` at a time.
        fn in_chunks(&self, rows: usize) -> Result<[Tensor; 3]> {
            self.found(|| Ok(vec![(self.head().losses_by(rows, &TERMS, &self.answers())?.total, 1.0)]))
        }

        /// The same with all logits at once, and the terms one after the other.
        fn apart(&self) -> Result<[Tensor; 3]> {
            self.found(|| {
                let logits = linear(&self.input, &self.weight)?;
                let theirs = linear(&self.teacher.input, &self.teacher.weight)?;
                let against = Rows { text: &TEXT, teacher: Some(&theirs), temperature: 2.0 };
                let sum = |(term, factor)| Ok((sum_of(&logits, term, &against)?, factor));
                TERMS.into_iter().map(sum).collect()
            })
        }

        /// A quarter of the weighted sum of what `sums` makes.
        fn found(&self, sums: impl FnOnce() -> Result<Vec<(Tensor, f64)>>) -> Result<[Tensor; 3]> {
            let (sums, tape) = Tape::of(sums);
            let sums = sums?;
            let quarters: Vec<_> = sums.iter().map(|(sum, factor)| (sum, factor / 4.0)).collect();
            let mut total = Tensor::zeros((), DType::F32, &candle_core::Device::Cpu)?;
            for (sum, factor) in &quarters {
                total = (total + (*sum * *factor)?)?;
            }
            let mut grads = tape.gradients(&quarters)?;
            let [input, weight] = [&self.input, &self.weight].map(|var| grads.take(var).expect("a gradient"));
            Ok([total, input, weight])
        }
    }

    #[test]
    fn losses_in_chunks_are_those_of_all_rows_at_once_on_the_cpu_and_in_the_kernels() -> Result<()> {
        let bench = Bench::new()?;
        let want = bench.apart()?;
        for rows in [1, 2, 5] {
            let mut ways = vec![("cpu", bench.in_chunks(rows)?)];
            if host::available() {
                ways.push(("kernels", host::emulating(Care::EveryMode, || bench.in_chunks(rows))?));
            }
            for (way, found) in ways {
                // The same roundings but for the order of three sums and, in the kernels, the last place of exp and ln.
                for (want, found) in want.iter().zip(&found) {
                    assert_close(&format!("{way}, {rows} at once"), found, &flat(want)?, 4e-6)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn scores_are_the_sums_of_the_losses_to_the_bit() -> Result<()> {
        let bench = Bench::new()?;
        let losses = bench.head().losses(&TERMS, &bench.answers())?;
        let scores = bench.head().scores(&TERMS.map(|(term, _)| term), &bench.answers())?;
        assert_eq!(losses.sums.to_vec1::<f32>()?, scores.to_vec1::<f32>()?);
        let total: f64 = flat(&scores)?.iter().zip(TERMS).map(|(sum, (_, factor))| sum * factor).sum();
        assert_close("total", &losses.total, &[total], 1e-6)
    }

    #[test]
    fn a_chunk_has_a_bounded_number_of_logits_and_no_chunk_is_much_smaller_than_the_others() -> Result<()> {
        let rows_of = |n: usize, vocab: usize| {
            let zeros = |rows| Tensor::zeros((rows, 1), DType::F32, &candle_core::Device::Cpu);
            Head { input: zeros(n)?, weight: zeros(vocab)? }.rows_at_once()
        };
        assert_eq!(rows_of(4096, 1536)?, 4096);
        assert_eq!(rows_of(4096, 32_000)?, 256);
        assert_eq!(rows_of(4096, 151_936)?, 128);
        assert_eq!(rows_of(3, 151_936)?, 3);
        Ok(())
    }

    #[test]
    fn text_of_another_length_is_refused() -> Result<()> {
        let bench = Bench::new()?;
        let answers = Answers { text: &TEXT[..4], ..bench.answers() };
        let message = bench.head().losses(&TERMS, &answers).unwrap_err().to_string();
        assert!(message.contains("text: want 5 ids, one a row, found 4"), "{message}");
        Ok(())
    }

    #[test]
    fn behind_a_head_in_bf16_the_matrix_gets_an_f32_gradient_summed_over_chunks() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let bench = Bench::new()?;
        let in_type = |dtype| {
            let answers = bench.answers();
            let head = Head { input: bench.input.to_dtype(dtype)?, ..bench.head() };
            let head = Head { input: Var::from_tensor(&head.input)?.as_tensor().clone(), ..head };
            host::emulating(Care::EveryMode, || {
                let (losses, tape) = Tape::of(|| head.losses_by(2, &TERMS, &answers));
                let total = losses?.total;
                let mut gradients = tape.gradients(&[(&total, 0.25)])?;
                let [input, weight] =
                    [&head.input, &head.weight].map(|of| gradients.take(of).expect("a gradient"));
                Result::Ok([total, input, weight])
            })
        };
        let (narrow, wide) = (in_type(DType::BF16)?, in_type(DType::F32)?);
        assert_eq!(narrow.each_ref().map(Tensor::dtype), [DType::F32, DType::BF16, DType::F32]);
        for (narrow, wide) in narrow.iter().zip(&wide) {
            // Logits below 10 of rounded factors, and rounded themselves: off by 4·10·2⁻⁹ at most, by a third of that typically. Divergences
            // and probabilities follow, relative to their size.
            assert_close("in bf16", narrow, &flat(wide)?, 0.05)?;
        }
        Ok(())
    }
}
