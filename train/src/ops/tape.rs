//! What a forward pass did, written down so that gradients can come back.
//!
//! candle's own record keeps every value until the whole backward pass is over, and begins each sum of gradients with zeros, which
//! it then adds to: four passes over a tensor for each operand of each operation. Here a gradient that comes first is taken
//! as it is, and a value is let go of when its operation is done. Without a tape that is open on this thread nothing is recorded.
//!
//! Knows no operation but the sum. Invariants: a gradient reaches exactly the variables and what operations of this crate made of them (candle's own
//! leave no trace); a tensor that was recorded is changed by nobody.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use candle_core::{CustomOp1, CustomOp2, CustomOp3, DType, Result, Tensor, TensorId};

use super::{arithmetic, gpu::settle};

thread_local! {
    /// The tape that is open on this thread.
    static OPEN: RefCell<Option<Record>> = const { RefCell::new(None) };
}

/// How a gradient comes back through a value.
pub(crate) trait Backward: 'static {
    /// The operation, as error messages call it.
    const NAME: &'static str;

    /// Whether [`Self::backward`] reads the inputs; if not, they are let go of, and it gets none.
    const READS_INPUTS: bool = true;

    /// Whether it reads the value; if not, that is let go of, and it gets the gradient in its place.
    const READS_VALUE: bool = false;

    /// The gradients of `inputs`, one for each that has one; `grad`, contiguous, is that of `value`.
    fn backward(&self, inputs: &[&Tensor], value: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// A tape that is being written.
#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    /// What was made of variables.
    made: HashSet<TensorId>,
    /// The same of the tape that this one is a part of.
    around: Rc<HashSet<TensorId>>,
    /// While operations are carried out that will be made again: what they read of all that.
    reads: Option<HashSet<TensorId>>,
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
    /// The value is made once more of the input, on a tape of its own; what is read on the way.
    Again(Tensor, HashSet<TensorId>, Forth),
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

    /// The same, which stays.
    #[cfg(test)]
    pub(crate) fn get(&self, of: &Tensor) -> Option<&Tensor> {
        self.0.get(&of.id())
    }

    fn add(&mut self, to: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&to) {
            Some(sum) if sum.dtype() == gradient.dtype() => arithmetic::sum(&sum, &gradient)?,
            // What was made in several ways: the wider type holds both.
            Some(sum) => arithmetic::sum(&sum.to_dtype(DType::F32)?, &gradient.to_dtype(DType::F32)?)?,
            None => gradient,
        };
        self.0.insert(to, sum);
        Ok(())
    }
}

/// Runs `f` with `record` open on this thread, if there is one, and gives what became of it.
fn within<R>(record: Option<Record>, f: impl FnOnce() -> R) -> (R, Option<Record>) {
    /// Puts what was open before back, also after a panic.
    struct Before(Option<Record>);
    impl Drop for Before {
        fn drop(&mut self) {
            OPEN.replace(self.0.take());
        }
    }
    let before = Before(OPEN.replace(record));
    let result = f();
    let then = OPEN.take();
    drop(before);
    (result, then)
}

/// Runs `f` without a record of it: no gradient comes back.
pub fn silent<R>(f: impl FnOnce() -> R) -> R {
    within(None, f).0
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
        let (result, record) = within(Some(Record { around, ..Record::default() }), f);
        let Record { nodes, made, around, .. } = record.unwrap_or_default();
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
    pub(crate) fn gradients_from(self, begin: Vec<(TensorId, Tensor)>) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        for (of, gradient) in begin {
            gradients.add(of, gradient)?;
        }
        silent(|| self.walk_back(&mut gradients))?;
        Ok(gradients)
    }

    /// The same, where `tell` gets the gradient of each of the variables `wanted` as soon as nothing more will be added to it; the others are
    /// given at the end.
    ///
    /// What was made of variables alone, as rounded weights are, comes back when its own gradient is whole instead of at the end, if
    /// it is all that was made of them: sums have the same order as without.
    ///
    /// # Errors
    /// The device is out of memory; what `tell` gives.
    pub(crate) fn gradients_told(
        self,
        sums: &[(&Tensor, f64)],
        wanted: &HashSet<TensorId>,
        tell: &mut dyn FnMut(TensorId, Tensor) -> Result<()>,
    ) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        for (sum, factor) in sums {
            gradients.add(sum.id(), Tensor::full(*factor as f32, sum.shape(), sum.device())?)?;
        }
        let Self { nodes, made } = self;
        let mut uses: HashMap<TensorId, usize> = HashMap::new();
        nodes.iter().flat_map(Node::reads).for_each(|read| *uses.entry(read).or_default() += 1);
        let of_variables = |node: &Node| {
            let own = |input: &TensorId| wanted.contains(input) && uses.get(input) == Some(&1);
            matches!(node.way, Way::Operation(_)) && node.inputs.iter().flatten().all(own)
        };
        let early: HashMap<TensorId, usize> = nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| of_variables(node))
            .map(|(at, node)| (node.value, at))
            .collect();
        let mut nodes: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        for at in (0..nodes.len()).rev() {
            let mut due = vec![at];
            while let Some(at) = due.pop() {
                let Some(node) = nodes[at].take() else { continue };
                let reads = node.reads();
                silent(|| node.walk_back(&made, &mut gradients))?;
                for read in reads {
                    let Some(left) = uses.get_mut(&read) else { continue };
                    *left -= 1;
                    if *left > 0 {
                        continue;
                    }
                    due.extend(early.get(&read));
                    let gradient = wanted.get(&read).and_then(|of| gradients.0.remove(of));
                    gradient.map(|gradient| tell(read, gradient)).transpose()?;
                }
            }
        }
        Ok(gradients)
    }

    fn walk_back(self, gradients: &mut Gradients) -> Result<()> {
        self.nodes.into_iter().rev().try_for_each(|node| node.walk_back(&self.made, gradients))
    }
}

impl Node {
    /// What its gradient will be added to, once for each time.
    fn reads(&self) -> Vec<TensorId> {
        let inputs = self.inputs.iter().flatten().copied();
        match &self.way {
            Way::Operation(_) => inputs.collect(),
            Way::Again(_, within, _) => inputs.chain(within.iter().copied()).collect(),
        }
    }

    fn walk_back(self, made: &Rc<HashSet<TensorId>>, gradients: &mut Gradients) -> Result<()> {
        let Self { inputs, value, way } = self;
        let Some(gradient) = gradients.0.remove(&value) else { return Ok(()) };
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
            Way::Again(input, _, f) => {
                let (again, part) = Tape::within(made.clone(), || f(&input));
                gradients.add(again?.id(), gradient)?;
                part.walk_back(gradients)?;
                settle(input.device())?;
            }
        }
        Ok(())
    }
}

/// Writes down that `value` was made of `inputs`, if somebody is to know.
fn write(inputs: &[&Tensor], value: &Tensor, way: impl FnOnce() -> Way) {
    OPEN.with_borrow_mut(|open| {
        let Some(record) = open else { return };
        let followed = |input: &&Tensor| record.follows(input).then(|| input.id());
        let inputs: Vec<_> = inputs.iter().map(followed).collect();
        if let Some(reads) = &mut record.reads {
            reads.extend(inputs.into_iter().flatten());
            return;
        }
        if inputs.iter().any(Option::is_some) {
            record.made.insert(value.id());
            record.nodes.push(Node { inputs, value: value.id(), way: way() });
        }
    });
}

/// `value`, which was made outside any record and is nobody else's, with `backward` as its gradient by `inputs`. Never an error: it is
/// what an operation ends with.
pub(crate) fn attach<B: Backward>(value: Tensor, inputs: &[&Tensor], backward: B) -> Result<Tensor> {
    let value = value.detach();
    write(inputs, &value, || {
        let read: Vec<Tensor> = match B::READS_INPUTS {
            true => inputs.iter().map(|input| input.detach()).collect(),
            false => Vec::new(),
        };
        let made = B::READS_VALUE.then(|| value.clone());
        Way::Operation(Box::new(move |grad| {
            let found =
                backward.backward(&read.iter().collect::<Vec<_>>(), made.as_ref().unwrap_or(grad), grad);
            found.map_err(|e| e.context(format!("the gradient of {}", B::NAME)))
        }))
    });
    Ok(value)
}

/// `op` of `a`.
pub(crate) fn apply1<C: CustomOp1 + Send + Sync + 'static>(a: &Tensor, op: C) -> Result<Tensor> {
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
    // Inside of what will be made again as a whole there is nothing to add.
    let begun = OPEN.with_borrow_mut(|open| {
        let record = open.as_mut().filter(|record| record.reads.is_none());
        record.map(|record| record.reads = Some(HashSet::new())).is_some()
    });
    let value = f(x);
    let reads =
        begun.then(|| OPEN.with_borrow_mut(|open| open.as_mut().and_then(|record| record.reads.take())));
    let (value, reads) = (value?, reads.flatten().unwrap_or_default());
    write(&[x], &value, || Way::Again(x.clone(), reads, Box::new(f)));
    Ok(value)
}
