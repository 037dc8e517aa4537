//! The output matrix and the losses behind it as one operation.
//!
//! candle's store of gradients holds one that passes through it up to three times: zeros, the gradient, and their sum. For the
//! gradient of the logits, the largest tensor of a step, that is too much: here it is made once, all losses into the same
//! tensor where their kernels can add, turned into the gradients of the input and of the matrix, and let go of. Knows no model.

use candle_core::{Result, Tensor};

use super::{LogitsGradient, Term};
use crate::ops::gpu::{Backward, attach};
use crate::ops::{linear, linear_gradients};

/// What the logits are a product of, both in the graph.
#[derive(Debug, Clone)]
pub struct Head {
    /// `[n, hidden]`.
    pub input: Tensor,
    /// `[vocab, hidden]`.
    pub weight: Tensor,
}

impl Head {
    /// The logits `[n, vocab]`, outside the graph.
    ///
    /// # Errors
    /// Shapes that don't fit each other.
    pub fn logits(&self) -> Result<Tensor> {
        linear(&self.input.detach(), &self.weight.detach())
    }

    /// Σ factor·loss over `terms`, losses of these `logits`, as a scalar in the graph of input and weight; none without terms.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn loss(&self, logits: Tensor, terms: Vec<(f64, Term)>) -> Result<Option<Tensor>> {
        let mut total: Option<Tensor> = None;
        for (factor, term) in &terms {
            let weighted = (&term.sum * *factor)?;
            total = Some(match total {
                Some(total) => (total + weighted)?,
                None => weighted,
            });
        }
        let Some(total) = total else { return Ok(None) };
        let terms = terms.into_iter().map(|(factor, term)| (factor, term.gradient)).collect();
        let (input, weight) = (self.input.contiguous()?, self.weight.contiguous()?);
        attach(total, &[&input, &weight], HeadLoss { logits, terms }).map(Some)
    }
}

struct HeadLoss {
    logits: Tensor,
    terms: Vec<(f64, Box<dyn LogitsGradient>)>,
}

impl Backward for HeadLoss {
    const NAME: &'static str = "losses";

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut gradient = None;
        for (factor, term) in &self.terms {
            gradient = Some(term.gradient(&self.logits, &(grad * *factor)?, gradient)?);
        }
        let Some(gradient) = gradient else { candle_core::bail!("{}: no loss", Self::NAME) };
        let (input, weight) = linear_gradients(inputs[0], inputs[1], &gradient)?;
        Ok(vec![Some(input), Some(weight)])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::{
        loss::{Divergence, cross_entropy, cross_entropy_sum, divergence, divergence_sum},
        ops::{
            check::{assert_close, flat, uniform},
            gpu::host::{self, Care},
        },
    };

    const TARGETS: [u32; 4] = [3, 0, 8, 3];

    /// The loss and both gradients.
    type Found = Result<(Tensor, Tensor, Tensor)>;

    fn found(loss: Tensor, input: &Var, weight: &Var) -> Found {
        let mut grads = loss.backward()?;
        let mut of = |v: &Var| grads.remove(v).expect("a gradient");
        Ok((loss, of(input), of(weight)))
    }

    /// Every loss at once, through the one operation.
    fn fused(input: &Var, weight: &Var, teacher: &Tensor) -> Found {
        let head = Head { input: input.as_tensor().clone(), weight: weight.as_tensor().clone() };
        let logits = head.logits()?;
        let kl = divergence(&logits, teacher, 2.0, Divergence::ForwardKl)?;
        let jsd = divergence(&logits, teacher, 1.0, Divergence::Jsd { beta: 0.3 })?;
        let terms = vec![(0.5, kl), (1.0, cross_entropy(&logits, &TARGETS)?), (2.0, jsd)];
        found((head.loss(logits, terms)?.expect("a loss") / 4.0)?, input, weight)
    }

    /// The same through candle's graph.
    fn apart(input: &Var, weight: &Var, teacher: &Tensor) -> Found {
        let logits = linear(input, weight)?;
        let kl = (divergence_sum(&logits, teacher, 2.0, Divergence::ForwardKl)? * 0.5)?;
        let jsd = (divergence_sum(&logits, teacher, 1.0, Divergence::Jsd { beta: 0.3 })? * 2.0)?;
        let loss = ((cross_entropy_sum(&logits, &TARGETS)? + kl)? + jsd)?;
        found((loss / 4.0)?, input, weight)
    }

    #[test]
    fn losses_behind_a_matrix_are_those_of_the_graph_on_the_cpu_and_in_the_kernels() -> Result<()> {
        let input = Var::from_tensor(&uniform(1, 2.0, &[4, 5])?)?;
        let weight = Var::from_tensor(&uniform(2, 1.0, &[9, 5])?)?;
        let teacher = uniform(3, 4.0, &[4, 9])?;
        let want = apart(&input, &weight, &teacher)?;
        let mut ways = vec![("cpu", fused(&input, &weight, &teacher)?)];
        if host::available() {
            ways.push(("metal", host::emulating(Care::EveryMode, || fused(&input, &weight, &teacher))?));
        }
        for (way, found) in ways {
            // The same roundings but for the order of three sums and, in the kernels, the last place of exp and ln.
            assert_close(way, &found.0, &flat(&want.0)?, 2e-6)?;
            assert_close(way, &found.1, &flat(&want.1)?, 4e-6)?;
            assert_close(way, &found.2, &flat(&want.2)?, 4e-6)?;
        }
        Ok(())
    }
}
