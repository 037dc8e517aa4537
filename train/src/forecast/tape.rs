//! What a forward pass would leave on `crate::ops::tape`, and what walking back over it would take.
//!
//! Knows no operation. Invariant: gradients are made, added and let go of in the order of the tape that it stands for.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use super::heap::{Block, Heap, Part, Place};

/// A tensor's number.
pub(super) type Id = usize;

/// What comes back to an input.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gradient {
    /// Nothing.
    None,
    /// The very gradient of the value.
    Same,
    /// A new tensor of so many floats.
    New(Part, u64),
}

/// An operation that was done.
#[derive(Debug)]
pub(super) struct Node {
    pub value: Id,
    pub inputs: Vec<(Id, Gradient)>,
    /// Held until the gradient has come back through it.
    pub kept: Vec<Block>,
    /// Floats that the backward pass takes and gives back.
    pub scratch: u64,
    /// The layer that is made once more, from the tensor that is kept, instead.
    pub again: Option<usize>,
}

/// Operations in their order; silent, none are written.
#[derive(Debug, Default)]
pub(super) struct Tape {
    nodes: RefCell<Option<Vec<Node>>>,
    ids: Cell<Id>,
}

/// Gradients by what they are gradients of.
pub(super) type Gradients = HashMap<Id, Block>;

impl Tape {
    /// The next number.
    pub fn id(&self) -> Id {
        self.ids.replace(self.ids.get() + 1)
    }

    /// Writes `node` down, if anybody does.
    pub fn write(&self, node: Node) {
        if let Some(nodes) = self.nodes.borrow_mut().as_mut() {
            nodes.push(node);
        }
    }

    /// Runs `f` with an open tape, and gives what was written.
    pub fn of<R>(&self, f: impl FnOnce() -> R) -> (R, Vec<Node>) {
        let around = self.nodes.replace(Some(Vec::new()));
        let result = f();
        (result, self.nodes.replace(around).unwrap_or_default())
    }

    /// Runs `f` without one.
    pub fn silent<R>(&self, f: impl FnOnce() -> R) -> R {
        let around = self.nodes.replace(None);
        let result = f();
        self.nodes.replace(around);
        result
    }
}

/// Walks back over `nodes` on `heap`. `again` makes a layer once more of its input, on a tape of its own, and gives the number of its value.
pub(super) fn walk_back(
    nodes: Vec<Node>,
    gradients: &mut Gradients,
    (heap, place): (&Heap, Place),
    again: &dyn Fn(usize, Id, Block) -> (Id, Vec<Node>),
) {
    const FLOAT: u64 = super::exec::FLOAT;
    for Node { value, inputs, kept, scratch, again: layer } in nodes.into_iter().rev() {
        let Some(gradient) = gradients.remove(&value) else { continue };
        if let (Some(layer), [(input, _)], [x]) = (layer, &inputs[..], &kept[..]) {
            let (value, part) = again(layer, *input, x.clone());
            gradients.insert(value, gradient);
            walk_back(part, gradients, (heap, place), again);
            continue;
        }
        let scratch = (scratch > 0).then(|| heap.take(place, Part::Activations, scratch * FLOAT));
        let found: Vec<(Id, Block)> = inputs
            .into_iter()
            .filter_map(|(input, back)| match back {
                Gradient::None => None,
                Gradient::Same => Some((input, gradient.clone())),
                Gradient::New(part, floats) => Some((input, heap.take(place, part, floats * FLOAT))),
            })
            .collect();
        drop((scratch, kept, gradient));
        for (input, found) in found {
            let sum = match gradients.remove(&input) {
                Some(before) => heap.take(place, found.part(), before.bytes()),
                None => found,
            };
            gradients.insert(input, sum);
        }
    }
}
