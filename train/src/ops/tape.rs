//! What a forward pass did, written down so that gradients can come back.
//!
//! candle's own record keeps every value until the whole backward pass is over, and begins each sum of gradients with zeros, which
//! it then adds to: four passes over a tensor for each operand of each operation. Here a gradient that comes first is taken
//! as it is, and a value is let go of when its operation is done. Without a tape that is open on this thread, operations are recorded by
//! candle (which the tests of operations use); within [`silent`] by nobody.
//!
//! Knows no operation. Invariants: a gradient reaches exactly the variables and what was made of them; a tensor that was
//! recorded is changed by nobody.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result, Tensor, TensorId};

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
    inputs: Vec<Tensor>,
    value: Tensor,
    way: Way,
}

/// How gradients come back through a node.
enum Way {
    Operation(Back),
    /// The value is made once more, on a tape of its own.
    Again(Box<Forth>),
}

/// From the inputs, the value and its gradient to the gradients of the inputs.
type Back = Box<dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>>;

/// From the input to the value.
type Forth = dyn Fn(&Tensor) -> Result<Tensor>;

/// Gradients by what they are gradients of.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of a variable, which it is then no longer held by.
    pub fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        self.0.remove(&of.id())
    }

    fn add(&mut self, to: &Tensor, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&to.id()) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0.insert(to.id(), sum);
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
        let mut gradients = Gradients::default();
        for (sum, factor) in sums {
            gradients.add(sum, Tensor::full(*factor as f32, sum.shape(), sum.device())?)?;
        }
        silent(|| self.walk_back(&mut gradients))?;
        Ok(gradients)
    }

    fn walk_back(self, gradients: &mut Gradients) -> Result<()> {
        let follows = |tensor: &Tensor| tensor.is_variable() || self.made.contains(&tensor.id());
        for Node { inputs, value, way } in self.nodes.into_iter().rev() {
            let Some(gradient) = gradients.0.remove(&value.id()) else { continue };
            let gradient = gradient.contiguous()?;
            let way = match way {
                Way::Operation(way) => way,
                Way::Again(f) => {
                    drop(value);
                    let (again, part) = Self::within(self.made.clone(), || f(&inputs[0]));
                    gradients.add(&again?, gradient)?;
                    part.walk_back(gradients)?;
                    continue;
                }
            };
            let outside: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
            let found = way(&outside.iter().collect::<Vec<_>>(), &value, &gradient)?;
            drop((outside, value, gradient));
            for (input, found) in inputs.iter().zip(found) {
                if let Some(found) = found.filter(|_| follows(input)) {
                    gradients.add(input, found)?;
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
        if let Mode::Tape(record) = mode
            && inputs.iter().any(|input| record.follows(input))
        {
            record.made.insert(value.id());
            let inputs = inputs.iter().map(|&input| input.clone()).collect();
            record.nodes.push(Node { inputs, value: value.clone(), way: way() });
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
        Way::Operation(Box::new(move |inputs, value, grad| backward.backward(inputs, value, grad)))
    });
    Ok(value)
}

/// `op` of `a`.
pub(crate) fn apply1<C: CustomOp1 + Send + Sync + 'static>(a: &Tensor, op: C) -> Result<Tensor> {
    if on_candles_record() {
        return a.apply_op1(op);
    }
    let value = a.detach().apply_op1_no_bwd(&op)?;
    write(&[a], &value, || {
        Way::Operation(Box::new(move |inputs, value, grad| Ok(vec![op.bwd(inputs[0], value, grad)?])))
    });
    Ok(value)
}

/// `op` of `a` and `b`.
pub(crate) fn apply2<C: CustomOp2 + Send + Sync + 'static>(a: &Tensor, b: &Tensor, op: C) -> Result<Tensor> {
    if on_candles_record() {
        return a.apply_op2(b, op);
    }
    let value = a.detach().apply_op2_no_bwd(&b.detach(), &op)?;
    write(&[a, b], &value, || {
        Way::Operation(Box::new(move |inputs, value, grad| {
            let (a, b) = op.bwd(inputs[0], inputs[1], value, grad)?;
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
    let value = a.detach().apply_op3_no_bwd(&b.detach(), &c.detach(), &op)?;
    write(&[a, b, c], &value, || {
        Way::Operation(Box::new(move |inputs, value, grad| {
            let (a, b, c) = op.bwd(inputs[0], inputs[1], inputs[2], value, grad)?;
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
    write(&[x], &value, || Way::Again(Box::new(f)));
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
        Way::Operation(Box::new(move |_, _, grad| {
            let mut found = made.broadcast_mul(grad)?.sum_all()?.backward()?;
            Ok(vec![found.remove(&inner)])
        }))
    });
    Ok(value)
}
