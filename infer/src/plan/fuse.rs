//! Operations that follow each other become one where that saves a round of the threads or a pass over memory.
//!
//! - A norm before products is done with the rounding of their inputs.
//! - The gate of an MLP and the residual sum are done where the products are stored.
//! - Norm and rotation of query and key heads are done as the keys are taken into the cache.
//!
//! Invariant: the fused list computes the same bits as the recorded one; only neighbours are merged, and only when
//! nobody else reads what lies between them.

use super::program::{Epilogue, Op, Product, Turn, Value, Weight};

/// Merges neighbours.
pub(super) fn fuse<W: Weight>(mut ops: Vec<Op<'_, W>>) -> Vec<Op<'_, W>> {
    let mut uses = Vec::new();
    for op in &mut ops {
        op.visit(&mut |value| {
            uses.resize(uses.len().max(value.0 + 1), 0);
            uses[value.0] += 1;
        });
    }
    // What is written by one operation and read by the next has no other use.
    let between = |value: Value| uses[value.0] == 2;
    let mut fused: Vec<Op<'_, W>> = Vec::with_capacity(ops.len());
    for mut op in ops {
        while let Some(merged) = fused.last().and_then(|before| merge(before, &op, &between)) {
            fused.pop();
            op = merged;
        }
        fused.push(op);
    }
    fused
}

/// Two neighbours as one, if they can be.
fn merge<'m, W: Weight>(
    first: &Op<'m, W>,
    second: &Op<'m, W>,
    between: &impl Fn(Value) -> bool,
) -> Option<Op<'m, W>> {
    let mut merged = match (first, second) {
        (_, Op::Products { .. } | Op::Attention { .. }) => second.clone(),
        _ => first.clone(),
    };
    match (first, second, &mut merged) {
        (
            Op::Norm { x, norm: before, out },
            Op::Products { x: read, norm: None, .. },
            Op::Products { x: input, norm, .. },
        ) if out == read && between(*out) => {
            (*input, *norm) = (*x, Some(*before));
        }
        (
            Op::Products { outs, products, epilogue: Epilogue::Store, .. },
            Op::Gate { by, gate, up, .. },
            Op::Products { epilogue, .. },
        ) if *outs == [*gate, *up] && between(*up) && alike(products) => *epilogue = Epilogue::Gate(*by),
        (
            Op::Products { x, outs, epilogue: Epilogue::Store, .. },
            Op::Add { to, from, .. },
            Op::Products { outs: sum, epilogue, .. },
        ) if *outs == [*from] && between(*from) && to != x => {
            (*sum, *epilogue) = (vec![*to], Epilogue::Add);
        }
        (Op::Turn { x, turn, .. }, Op::Attention { q, k, .. }, Op::Attention { turns, .. })
            if x == q || x == k =>
        {
            let into = &mut turns[usize::from(x == k)];
            // A norm comes before a rotation, and each only once.
            if into.norm.is_some() || turn.rotation.is_some() && into.rotation.is_some() {
                return None;
            }
            *into = Turn { norm: turn.norm, rotation: into.rotation.or(turn.rotation) };
        }
        _ => return None,
    }
    Some(merged)
}

/// Whether the panels of two matrices are outputs of the same places.
fn alike<W: Weight>(products: &[Product<'_, W>]) -> bool {
    matches!(products, [gate, up] if gate.matrix.rows() == up.matrix.rows())
}
