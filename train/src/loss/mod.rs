//! Losses as sums over rows of logits `[n, vocab]`: the caller divides once, where it knows the number of tokens.
//!
//! A loss is a pure function of one row that gives its value and, on demand, its gradient. `evaluate` does that for many rows and
//! several losses at once; [`Head`] does it behind the output matrix, some rows at a time, so that nothing of the size tokens ×
//! vocabulary ever exists. Knows no model.
//!
//! A NaN or +∞ among the logits makes the sum NaN (and never panics): that is how a diverged run is noticed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buckets;
mod cross_entropy;
mod divergence;
mod features;
mod head;
mod kernels;
mod rows;

pub use buckets::TopRows;
pub use divergence::Divergence;
pub use features::{Features, hidden, relations};
pub use head::{Answers, Head, Losses, Reference};

use candle_core::{Result, Tensor};

use crate::ops::gpu::{Path, path};

const NAME: &str = "loss";

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Term {
    /// −ln softmax(logits)\[the text's next token\], in nats.
    CrossEntropy,
    /// τ²·D between softmax(teacher's logits/τ) and softmax(logits/τ), in nats. The factor τ² keeps the size of the gradient
    /// independent of τ (arXiv 1503.02531, section 2); it multiplies every kind. The teacher gets no gradient.
    Divergence(Divergence),
}

/// What rows of logits are compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The next token, one a row; read by [`Term::CrossEntropy`].
    pub text: &'a [u32],
    /// Logits like the student's, contiguous; read by [`Term::Divergence`].
    pub teacher: Option<&'a Tensor>,
    /// τ.
    pub temperature: f32,
}

/// The sums of `terms` over the rows of `logits` `[n, vocab]`, `[terms]`, and if asked for Σ factor·gradient, like `logits`.
///
/// # Errors
/// Rows that lack what a term reads or don't fit it; logits that are not contiguous f32.
pub(crate) fn evaluate(
    logits: &Tensor,
    terms: &[(Term, f64)],
    against: &Rows,
    with_gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    check(logits, terms, against)?;
    match path(logits.device()) {
        Path::Cpu => rows::evaluate(logits, terms, against, with_gradient),
        Path::Kernels => kernels::evaluate(logits, terms, against, with_gradient),
    }
}

fn check(logits: &Tensor, terms: &[(Term, f64)], against: &Rows) -> Result<()> {
    let (n, vocab) = match *logits.dims() {
        [n, vocab] if n * vocab > 0 => (n, vocab),
        _ => candle_core::bail!("{NAME}: logits: want [n, vocab], not empty, found {:?}", logits.dims()),
    };
    if terms.is_empty() {
        candle_core::bail!("{NAME}: want at least one term");
    }
    for (term, _) in terms {
        match term {
            Term::CrossEntropy => check_text(against.text, n, vocab)?,
            Term::Divergence(kind) => {
                kind.check()?;
                check_teacher(logits, against)?;
            }
        }
    }
    Ok(())
}

fn check_text(text: &[u32], n: usize, vocab: usize) -> Result<()> {
    if text.len() != n {
        candle_core::bail!("{NAME}: text: want {n} ids, one a row, found {}", text.len());
    }
    if let Some(row) = text.iter().position(|&id| id as usize >= vocab) {
        candle_core::bail!("{NAME}: text[{row}]: want an id below {vocab}, found {}", text[row]);
    }
    Ok(())
}

fn check_teacher(logits: &Tensor, against: &Rows) -> Result<()> {
    let temperature = against.temperature;
    if !(temperature > 0.0 && temperature.is_finite()) {
        candle_core::bail!("{NAME}: temperature: want a positive number, found {temperature}");
    }
    match against.teacher {
        Some(teacher) if teacher.dims() == logits.dims() && teacher.dtype() == logits.dtype() => Ok(()),
        Some(teacher) => candle_core::bail!(
            "{NAME}: want student and teacher [n, vocab] in one type, found {:?} in {:?} and {:?} in {:?}",
            logits.dims(),
            logits.dtype(),
            teacher.dims(),
            teacher.dtype()
        ),
        None => candle_core::bail!("{NAME}: a divergence: want a teacher"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        check::{assert_close, bits, flat, uniform},
        gpu::host::{self, Care},
    };
    use candle_core::{DType, Device};

    /// What [`evaluate`] found for `terms`, as a scalar in the graph of `logits`.
    pub(super) fn attached(
        logits: &Tensor,
        (sums, gradient): (Tensor, Option<Tensor>),
        terms: &[(Term, f64)],
    ) -> Result<Tensor> {
        struct Gradient(Tensor);
        impl crate::ops::gpu::Backward for Gradient {
            const NAME: &'static str = NAME;

            fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
                Ok(vec![Some(self.0.broadcast_mul(grad)?)])
            }
        }
        let factors: Vec<f32> = terms.iter().map(|(_, factor)| *factor as f32).collect();
        let total = (sums * Tensor::new(factors, logits.device())?)?.sum_all()?;
        crate::ops::gpu::attach(total, &[logits], Gradient(gradient.expect("was asked for")))
    }

    /// The sum of `term` over the rows of `logits`, in the graph of `logits`.
    pub(super) fn sum_of(logits: &Tensor, term: Term, against: &Rows) -> Result<Tensor> {
        let terms = [(term, 1.0)];
        attached(logits, evaluate(&logits.detach(), &terms, against, true)?, &terms)
    }

    #[test]
    fn several_terms_are_their_weighted_sum_and_do_not_depend_on_the_number_of_threads() -> Result<()> {
        let (student, teacher) = (uniform(1, 4.0, &[700, 90])?, uniform(2, 4.0, &[700, 90])?);
        let text: Vec<u32> = (0..700).map(|i| i % 90).collect();
        let against = Rows { text: &text, teacher: Some(&teacher), temperature: 2.0 };
        let terms = [(Term::CrossEntropy, 0.5), (Term::Divergence(Divergence::Jsd { beta: 0.3 }), 2.0)];
        let on = |threads: usize, terms: &[(Term, f64)]| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(candle_core::Error::wrap)?;
            pool.install(|| evaluate(&student, terms, &against, true))
        };
        let both = |(sums, gradient): &(Tensor, Option<Tensor>)| -> Result<_> {
            Ok((bits(sums)?, bits(gradient.as_ref().unwrap())?))
        };
        let one = on(1, &terms)?;
        assert!(both(&one)? == both(&on(5, &terms)?)?);
        let [first, second] = [on(2, &terms[..1])?, on(2, &terms[1..])?];
        assert_eq!(bits(&one.0)?, [bits(&first.0)?, bits(&second.0)?].concat());
        // 0.5·a + 2·b with the factors' products exact: one rounding, as candle's sum has.
        assert!(bits(one.1.as_ref().unwrap())? == bits(&(first.1.unwrap() + second.1.unwrap())?)?);
        let (sums, gradient) = evaluate(&student, &terms, &against, false)?;
        assert!(gradient.is_none() && bits(&sums)? == bits(&one.0)?);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() -> Result<()> {
        let x = uniform(1, 1.0, &[2, 3])?;
        let none = Tensor::zeros((0, 5), DType::F32, &Device::Cpu)?;
        let kl = Term::Divergence(Divergence::ForwardKl);
        let alone = Rows { text: &[0, 3], teacher: None, temperature: 1.0 };
        let with = |teacher| Rows { teacher: Some(teacher), ..alone };
        for (logits, term, against, want) in [
            (&none, kl, alone, "want [n, vocab], not empty, found [0, 5]"),
            (&x, Term::CrossEntropy, alone, "text[1]: want an id below 3, found 3"),
            (&x, Term::CrossEntropy, Rows { text: &[0], ..alone }, "text: want 2 ids, one a row, found 1"),
            (&x, kl, alone, "want a teacher"),
            (&x, kl, with(&none), "found [2, 3] in F32 and [0, 5] in F32"),
            (&x, kl, Rows { temperature: 0.0, ..with(&x) }, "temperature: want a positive number, found 0"),
            (
                &x,
                Term::Divergence(Divergence::Jsd { beta: 0.0 }),
                with(&x),
                "Jsd { beta: 0.0 }: want a number strictly between 0 and 1",
            ),
        ] {
            let message = evaluate(logits, &[(term, 1.0)], &against, true).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
        let message = evaluate(&x, &[], &alone, true).unwrap_err().to_string();
        assert!(message.contains("at least one term"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_give_the_sums_of_f32_and_round_the_gradient_once_a_term() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let narrow = |t: Tensor| t.to_dtype(DType::BF16);
        let (student, teacher) = (narrow(uniform(1, 4.0, &[3, 300])?)?, narrow(uniform(2, 4.0, &[3, 300])?)?);
        let text = [0u32, 7, 299];
        let kinds = [
            Divergence::ForwardKl,
            Divergence::ReverseKl,
            Divergence::Jsd { beta: 0.3 },
            Divergence::SkewKl { alpha: 0.1 },
            Divergence::SkewReverseKl { alpha: 0.1 },
        ];
        let terms: Vec<(Term, f64)> = std::iter::once(Term::CrossEntropy)
            .chain(kinds.into_iter().map(Term::Divergence))
            .map(|term| (term, 0.75))
            .collect();
        let found = |terms: &[(Term, f64)], dtype| {
            let (student, teacher) = (student.to_dtype(dtype)?, teacher.to_dtype(dtype)?);
            let against = Rows { text: &text, teacher: Some(&teacher), temperature: 2.0 };
            let (sums, gradient) =
                host::emulating(Care::EveryMode, || evaluate(&student, terms, &against, true))?;
            let gradient = gradient.unwrap();
            assert_eq!(gradient.dtype(), dtype);
            Result::Ok((bits(&sums)?, gradient))
        };
        for term in terms.chunks(1) {
            let ((sums, narrow), (want, wide)) = (found(term, DType::BF16)?, found(term, DType::F32)?);
            assert_eq!(sums, want, "{term:?}");
            let [narrow, wide] =
                [&narrow, &wide.to_dtype(DType::BF16)?].map(|g| bits(&g.to_dtype(DType::F32)?));
            assert!(narrow? == wide?, "{term:?}");
        }
        let ((sums, narrow), (want, wide)) = (found(&terms, DType::BF16)?, found(&terms, DType::F32)?);
        assert_eq!(sums, want);
        // Six roundings of partial sums, each of at most 2⁻⁹ of its own size, which is about that of the whole.
        assert_close("gradient", &narrow, &flat(&wide)?, 6.0 * 2f64.powi(-9))
    }
}
