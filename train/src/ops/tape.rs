//! What a forward pass did, written down so that gradients can come back.
//!
//! candle's own record keeps every value until the whole backward pass is over, and begins each sum of gradients with zeros, which
//! it then adds to: four passes over a tensor for each operand of each operation. Here a gradient that comes first is taken
//! as it is, and a value is let go of when its operation is done. Without a tape that is open on this thread, operations are recorded by
//! candle (which training by blocks and the tests of operations use); within [`silent`] by nobody.
//!
//! Knows no operation. Invariants: a gradient reaches exactly the variables and what was made of them; a tensor that was
//! recorded is changed by nobody.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use candle_core::{CustomOp1, CustomOp2, CustomOp3, DType, Result, Tensor, TensorId};

use super::gpu::{Backward, on_candle};

/// Who writes down what happens on this thread.
enum Mode {
    Candle,
    Nobody,
    Tape(Record),
}

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Candle) };
}

/// A tape that is being written.
#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    /// What was made of variables.
    made: HashSet<TensorId>,
    /// The same of the tape that this one is a part of.
    around: Rc<HashSet<TensorId>>,
}

impl Record {
    fn follows(&self, tensor: &Tensor) -> bool {
        tensor.is_variable() || self.made.contains(&tensor.id()) || self.around.contains(&tensor.id())
    }
}

struct Node {
    /// Those of the inputs that a gradient is for.
    inputs: Vec<Option<TensorId>>,
    value: TensorId,
    way: Way,
}

/// How gradients come back through a node.
enum Way {
    Operation(Back),
    /// The value is made once more of the input, on a tape of its own.
    Again(Tensor, Forth),
}

/// From the gradient of the value to those of the inputs.
type Back = Box<dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>>>;

/// From the input to the value.
type Forth = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// Gradients by what they are gradients of.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of a variable, which it is then no longer held by.
    pub fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        self.0.remove(&of.id())
    }

    fn add(&mut self, to: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&to) {
            Some(sum) if sum.dtype() == gradient.dtype() => (sum + gradient)?,
            // What was made in several ways: the wider type holds both.
            Some(sum) => (sum.to_dtype(DType::F32)? + gradient.to_dtype(DType::F32)?)?,
            None => gradient,
        };
        self.0.insert(to, sum);
        Ok(())
    }
}

/// Runs `f` with `mode` on this thread, and gives what became of the mode.
fn within<R>(mode: Mode, f: impl FnOnce() -> R) -> (R, Mode) {
    /// Puts the mode before back, also after a panic.
    struct Before(Option<Mode>);
    impl Drop for Before {
        fn drop(&mut self) {
            if let Some(before) = self.0.take() {
                MODE.replace(before);
            }
        }
    }
    let mut before = Before(Some(MODE.replace(mode)));
    let result = f();
    let then = before.0.take().map_or(Mode::Candle, |before| MODE.replace(before));
    (result, then)
}

/// Runs `f` without a record of it: no gradient comes back.
pub fn silent<R>(f: impl FnOnce() -> R) -> R {
    within(Mode::Nobody, f).0
}

/// What happened to variables.
pub struct Tape {
    nodes: Vec<Node>,
    made: Rc<HashSet<TensorId>>,
}

impl Tape {
    /// Runs `f` with a tape open on this thread.
    pub fn of<R>(f: impl FnOnce() -> R) -> (R, Self) {
        Self::within(Rc::default(), f)
    }

    fn within<R>(around: Rc<HashSet<TensorId>>, f: impl FnOnce() -> R) -> (R, Self) {
        let (result, mode) = within(Mode::Tape(Record { around, ..Record::default() }), f);
        let Record { nodes, made, around } = match mode {
            Mode::Tape(record) => record,
            Mode::Candle | Mode::Nobody => Record::default(),
        };
        let made = if around.is_empty() { made } else { made.union(&around).copied().collect() };
        (result, Self { nodes, made: Rc::new(made) })
    }

    /// The gradients of Σ factor·scalar over `sums`, scalars that were made on this tape, by all variables.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn gradients(self, sums: &[(&Tensor, f64)]) -> Result<Gradients> {
        let begin = |(sum, factor): &(&Tensor, f64)| {
            Ok((sum.id(), Tensor::full(*factor as f32, sum.shape(), sum.device())?))
        };
        self.gradients_from(sums.iter().map(begin).collect::<Result<_>>()?)
    }

    /// The gradients by all variables, from those of tensors that were made on this tape.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(super) fn gradients_from(self, begin: Vec<(TensorId, Tensor)>) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        for (of, gradient) in begin {
            gradients.add(of, gradient)?;
        }
        silent(|| self.walk_back(&mut gradients))?;
        Ok(gradients)
    }

    fn walk_back(self, gradients: &mut Gradients) -> Result<()> {
        for Node { inputs, value, way } in self.nodes.into_iter().rev() {
            let Some(gradient) = gradients.0.remove(&value) else { continue };
            let gradient = gradient.contiguous()?;
            match way {
                Way::Operation(way) => {
                    let found = way(&gradient)?;
                    drop(gradient);
                    for (input, found) in inputs.into_iter().zip(found) {
                        if let (Some(input), Some(found)) = (input, found) {
                            gradients.add(input, found)?;
                        }
                    }
                }
                Way::Again(input, f) => {
                    let (again, part) = Self::within(self.made.clone(), || f(&input));
                    gradients.add(again?.id(), gradient)?;
                    part.walk_back(gradients)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether candle is to record.
fn on_candles_record() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Candle))
}

/// Writes down that `value` was made of `inputs`, if somebody is to know.
fn write(inputs: &[&Tensor], value: &Tensor, way: impl FnOnce() -> Way) {
    MODE.with_borrow_mut(|mode| {
        let Mode::Tape(record) = mode else { return };
        let followed = |input: &&Tensor| record.follows(input).then(|| input.id());
        let inputs: Vec<_> = inputs.iter().map(followed).collect();
        if inputs.iter().any(Option::is_some) {
            record.made.insert(value.id());
            record.nodes.push(Node { inputs, value: value.id(), way: way() });
        }
    });
}

/// `value`, which was made outside any record and is nobody else's, with `backward` as its gradient by `inputs`.
///
/// # Errors
/// On candle's record: more than three inputs.
pub(crate) fn attach<B: Backward>(value: Tensor, inputs: &[&Tensor], backward: B) -> Result<Tensor> {
    if on_candles_record() {
        return on_candle(value, inputs, backward);
    }
    let value = value.detach();
    write(inputs, &value, || {
        let read: Vec<Tensor> = match B::READS_INPUTS {
            true => inputs.iter().map(|input| input.detach()).collect(),
            false => Vec::new(),
        };
        let made = B::READS_VALUE.then(|| value.clone());
        Way::Operation(Box::new(move |grad| {
            backward.backward(&read.iter().collect::<Vec<_>>(), made.as_ref().unwrap_or(grad), grad)
        }))
    });
    Ok(value)
}

/// `op` of `a`.
pub(crate) fn apply1<C: CustomOp1 + Send + Sync + 'static>(a: &Tensor, op: C) -> Result<Tensor> {
    if on_candles_record() {
        return a.apply_op1(op);
    }
    let outside = a.detach();
    let value = outside.apply_op1_no_bwd(&op)?;
    write(&[a], &value, || {
        let value = value.clone();
        Way::Operation(Box::new(move |grad| Ok(vec![op.bwd(&outside, &value, grad)?])))
    });
    Ok(value)
}

/// `op` of `a` and `b`.
pub(crate) fn apply2<C: CustomOp2 + Send + Sync + 'static>(a: &Tensor, b: &Tensor, op: C) -> Result<Tensor> {
    if on_candles_record() {
        return a.apply_op2(b, op);
    }
    let outside = [a.detach(), b.detach()];
    let value = outside[0].apply_op2_no_bwd(&outside[1], &op)?;
    write(&[a, b], &value, || {
        let value = value.clone();
        Way::Operation(Box::new(move |grad| {
            let (a, b) = op.bwd(&outside[0], &outside[1], &value, grad)?;
            Ok(vec![a, b])
        }))
    });
    Ok(value)
}

/// `op` of `a`, `b` and `c`.
pub(crate) fn apply3<C: CustomOp3 + Send + Sync + 'static>(
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    op: C,
) -> Result<Tensor> {
    if on_candles_record() {
        return a.apply_op3(b, c, op);
    }
    let outside = [a.detach(), b.detach(), c.detach()];
    let value = outside[0].apply_op3_no_bwd(&outside[1], &outside[2], &op)?;
    write(&[a, b, c], &value, || {
        let value = value.clone();
        Way::Operation(Box::new(move |grad| {
            let (a, b, c) = op.bwd(&outside[0], &outside[1], &outside[2], &value, grad)?;
            Ok(vec![a, b, c])
        }))
    });
    Ok(value)
}

/// `f` of `x`, of which nothing is kept but `x`: the backward pass runs `f` once more.
pub(crate) fn again(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Result<Tensor> {
    if on_candles_record() {
        return f(x);
    }
    let value = silent(|| f(x))?;
    write(&[x], &value, || Way::Again(x.clone(), Box::new(f)));
    Ok(value)
}

/// `f` of `x`, composed of candle's own operations, with the gradient that those have.
pub(crate) fn composed(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if on_candles_record() {
        return f(x);
    }
    let inner = candle_core::Var::from_tensor(&x.detach())?;
    let (made, _) = within(Mode::Candle, || f(inner.as_tensor()));
    let made = made?;
    let value = made.detach();
    write(&[x], &value, || {
        Way::Operation(Box::new(move |grad| {
            let found = within(Mode::Candle, || made.broadcast_mul(grad)?.sum_all()?.backward()).0;
            Ok(vec![found?.remove(&inner)])
        }))
    });
    Ok(value)
}
