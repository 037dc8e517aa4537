//! What a student has in common with its teacher inside: the hidden state behind a layer, and the relations between tokens that its
//! queries, keys and values draw.
//!
//! Relations are those of MiniLMv2 (arXiv 2012.15828), with rows normalised as BitDistill (arXiv 2510.13998) has them: with R the
//! softmax over the tokens of a window of √d·cos(xᵢ, xⱼ), the loss is KL(R of the teacher ‖ R of the student). They compare models of
//! different widths without a projection between them. Knows no model. Like behind a head, gradients are made in the forward pass and
//! a few windows at a time, so that nothing of the size tokens × tokens stays.

use candle_core::{D, Result, Tensor};

use super::{Divergence, NAME, Rows, Term, evaluate};
use crate::ops::gpu::{Backward, attach};

/// Added to the square of a row's length.
const EPSILON: f64 = 1e-12;

/// What a forward pass left behind a layer, of all windows: each `[n, width]`.
#[derive(Debug, Clone)]
pub struct Features {
    /// The residual stream.
    pub hidden: Tensor,
    /// Queries, keys and values as attention read them.
    pub attention: [Tensor; 3],
}

impl Features {
    /// The same outside any graph.
    pub fn detach(&self) -> Self {
        Self { hidden: self.hidden.detach(), attention: self.attention.each_ref().map(Tensor::detach) }
    }
}

/// Σ over the tokens of |s − t|²/mean |t|² between hidden states of one width, `[n, width]`; between those of different widths the sum
/// of their [`relations`]. The teacher gets no gradient.
///
/// # Errors
/// Different numbers of tokens; a device out of memory.
pub fn hidden(student: &Tensor, teacher: &Tensor, windows: usize) -> Result<Tensor> {
    if student.dims() != teacher.dims() {
        return relations(student, teacher, windows, 1);
    }
    let square = |x: &Tensor| x.sqr()?.sum(D::Minus1)?.sum_all();
    let (ours, theirs) = (student.detach(), teacher.detach());
    let size = (square(&theirs)?.affine(1.0, EPSILON)? / ours.dim(0)? as f64)?;
    let apart = (ours - theirs)?;
    let gradient = (apart.broadcast_div(&size)? * 2.0)?;
    attach((square(&apart)? / size)?, &[student], Gradient(gradient))
}

/// Σ over the tokens of the mean over `heads` and the other tokens' distributions KL(teacher's relations ‖ student's): rows
/// `[n, width]` of `windows` windows of equal length, the widths multiples of `heads`. The teacher gets no gradient.
///
/// # Errors
/// Shapes that don't fit each other; a device out of memory.
pub fn relations(student: &Tensor, teacher: &Tensor, windows: usize, heads: usize) -> Result<Tensor> {
    // Elements of a chunk's relations, as of a chunk's logits.
    relations_by(if student.device().is_cpu() { 1 << 22 } else { 1 << 26 }, student, teacher, windows, heads)
}

fn relations_by(
    elements: usize,
    student: &Tensor,
    teacher: &Tensor,
    windows: usize,
    heads: usize,
) -> Result<Tensor> {
    let (ours, length) = parts(&student.detach(), windows, heads)?;
    let (theirs, _) = parts(&teacher.detach(), windows, heads)?;
    let (count, tokens, width) = ours.dims3()?;
    if theirs.dims()[..2] != [count, tokens] {
        candle_core::bail!("relations: want as many tokens of student and teacher");
    }
    let at_once = (elements / (tokens * tokens)).max(1);
    let (mut total, mut gradients) = (None, Vec::new());
    for start in (0..count).step_by(at_once) {
        let len = at_once.min(count - start);
        let ours = ours.narrow(0, start, len)?;
        let theirs = products(&theirs.narrow(0, start, len)?)?;
        let against = Rows { text: &[], teacher: Some(&theirs), temperature: 1.0 };
        let terms = [(Term::Divergence(Divergence::ForwardKl), 1.0 / heads as f64)];
        let (sum, slope) = evaluate(&products(&ours)?, &terms, &against, true)?;
        let Some(slope) = slope else { candle_core::bail!("{NAME}: no gradient was made") };
        let slope = slope.reshape((len, tokens, tokens))?;
        // A product of x with itself: x comes in from both sides.
        let slope = (&slope + slope.t()?.contiguous()?)?;
        gradients.push((slope.matmul(&ours)? * (width as f64).sqrt())?);
        let sum = (sum.squeeze(0)? / heads as f64)?;
        total = Some(match total {
            Some(total) => (total + sum)?,
            None => sum,
        });
    }
    let Some(total) = total else { candle_core::bail!("relations: want at least one window") };
    // Through the rows' lengths: of y = x/|x|, dx = (dy − y·⟨y, dy⟩)/|x|.
    let by_part = Tensor::cat(&gradients, 0)?;
    let along = (&by_part * &ours)?.sum_keepdim(D::Minus1)?;
    let across = (by_part - ours.broadcast_mul(&along)?)?.broadcast_div(&length)?;
    let gradient = across.reshape((windows, heads, tokens, width))?.transpose(1, 2)?.contiguous()?;
    attach(total, &[student], Gradient(gradient.reshape(student.shape())?))
}

/// Rows `[n, width]` by window and head, each of length 1, `[windows · heads, n / windows, width / heads]`; and their lengths before.
fn parts(x: &Tensor, windows: usize, heads: usize) -> Result<(Tensor, Tensor)> {
    let (n, width) = x.dims2()?;
    if windows == 0 || heads == 0 || n % windows != 0 || width % heads != 0 || n == 0 {
        candle_core::bail!("relations: {n} tokens of {width} in {windows} windows and {heads} heads");
    }
    let (tokens, of_head) = (n / windows, width / heads);
    let x = x.reshape((windows, tokens, heads, of_head))?.transpose(1, 2)?.contiguous()?;
    let x = x.reshape((windows * heads, tokens, of_head))?;
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0, EPSILON)?.sqrt()?;
    Ok((x.broadcast_div(&length)?, length))
}

/// √d·x·xᵀ, as rows of logits.
fn products(x: &Tensor) -> Result<Tensor> {
    let (count, tokens, width) = x.dims3()?;
    let products = (x.matmul(&x.t()?)? * (width as f64).sqrt())?;
    products.reshape((count * tokens, tokens))
}

/// The gradient of the sum, made in advance.
struct Gradient(Tensor);

impl Backward for Gradient {
    const NAME: &'static str = "features";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.0.broadcast_mul(grad)?)])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::ops::check::{assert_close, assert_matches, backward, flat, uniform};
    use crate::ops::gpu::host::{self, Care};

    /// The definition, window by window and head by head.
    fn reference(student: &Tensor, teacher: &Tensor, windows: usize, heads: usize) -> Result<Tensor> {
        let relation = |x: &Tensor, window: usize, head: usize| -> Result<Tensor> {
            let (tokens, width) = (x.dim(0)? / windows, x.dim(1)? / heads);
            let x = x.narrow(0, window * tokens, tokens)?.narrow(1, head * width, width)?.contiguous()?;
            let x = x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)?;
            candle_nn::ops::log_softmax(&(x.matmul(&x.t()?.contiguous()?)? * (width as f64).sqrt())?, 1)
        };
        let mut total = Tensor::zeros((), DType::F64, student.device())?;
        for (window, head) in (0..windows).flat_map(|w| (0..heads).map(move |h| (w, h))) {
            let (of_student, of_teacher) =
                (relation(student, window, head)?, relation(teacher, window, head)?);
            let kl = of_teacher.exp()?.mul(&(of_teacher - of_student)?)?.sum_all()?;
            total = (total + (kl / heads as f64)?)?;
        }
        Ok(total)
    }

    fn assert_agrees(elements: usize) -> Result<()> {
        // Two windows of three tokens, two heads, widths that differ.
        let (student, teacher) = (uniform(1, 1.0, &[6, 8])?, uniform(2, 1.0, &[6, 4])?);
        let wide = teacher.to_dtype(DType::F64)?;
        // Sums of some 0.3, of logarithms of up to 3 that are good to 2e-7 each.
        assert_matches(
            |t| relations_by(elements, &t[0], &teacher, 2, 2),
            |t| reference(&t[0], &wide, 2, 2),
            &[student],
            1e-5,
        )
    }

    #[test]
    fn relations_and_their_gradient_agree_with_finite_differences_however_they_are_cut() -> Result<()> {
        for elements in [1, 20, 1 << 20] {
            assert_agrees(elements)?;
        }
        if host::available() {
            host::emulating(Care::EveryMode, || assert_agrees(20))?;
        }
        Ok(())
    }

    #[test]
    fn the_distance_of_hidden_states_agrees_with_finite_differences() -> Result<()> {
        let (student, teacher) = (uniform(3, 1.0, &[6, 5])?, uniform(4, 1.0, &[6, 5])?);
        let wide = teacher.to_dtype(DType::F64)?;
        let reference = |t: &[Tensor]| {
            let difference = (&t[0] - &wide)?.sqr()?.sum_all()?;
            difference / (wide.sqr()?.sum_all()? / 6.0)?
        };
        assert_matches(|t| hidden(&t[0], &teacher, 2), reference, std::slice::from_ref(&student), 2e-6)?;
        assert_close("no distance", &hidden(&teacher, &teacher, 2)?, &[0.0], 1e-6)?;
        let other = uniform(5, 1.0, &[6, 7])?;
        let found = hidden(&student, &other, 2)?;
        assert_close("another width", &found, &flat(&relations(&student, &other, 2, 1)?)?, 1e-7)
    }

    #[test]
    fn equal_relations_cost_nothing_and_a_silent_row_stays_finite() -> Result<()> {
        let teacher = uniform(6, 1.0, &[4, 6])?;
        // Lengths don't count.
        assert_close("scaled", &relations(&(&teacher * 3.0)?, &teacher, 1, 2)?, &[0.0], 3e-3)?;
        let silent = Var::from_tensor(&Tensor::zeros((4, 6), DType::F32, teacher.device())?)?;
        let one = Tensor::new(1f32, teacher.device())?;
        let (_, grads) = backward(|| relations(&silent, &teacher, 1, 2), &one)?;
        assert!(flat(grads.get(&silent).unwrap())?.iter().all(|g| g.is_finite()));
        let message = relations(&teacher, &teacher, 3, 2).unwrap_err().to_string();
        assert!(message.contains("4 tokens of 6 in 3 windows and 2 heads"), "{message}");
        Ok(())
    }
}
