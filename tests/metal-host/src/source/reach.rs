//! Which function constants a kernel can't do without.
//!
//! Metal refuses to make a pipeline when a constant that its function mentions has no value. Here names stand for what they
//! name: whatever is mentioned by what is mentioned counts, one that is only asked for (`is_function_constant_defined`) doesn't.

use std::collections::BTreeSet;

use super::{
    Instance, Item, What,
    tokens::{Kind, Token},
};

/// Names of the function constants that `instance` mentions, in the order of their declaration.
pub fn constants(tokens: &[Token], items: &[Item], instance: &Instance) -> Vec<String> {
    let mut reached = BTreeSet::from([instance.item]);
    let mut waiting = vec![instance.item];
    // Template arguments may name constants, but these can't be function constants.
    while let Some(index) = waiting.pop() {
        let names = mentioned(&tokens[items[index].span.clone()]);
        for (other, item) in items.iter().enumerate() {
            if !reached.contains(&other) && name(tokens, item).is_some_and(|n| names.contains(n)) {
                reached.insert(other);
                waiting.push(other);
            }
        }
    }
    let constant = |index: &usize| match &items[*index].what {
        What::FunctionConstant(c) => Some(c.name.clone()),
        _ => None,
    };
    reached.iter().filter_map(constant).collect()
}

/// The words in `tokens`, but for constants that are only asked whether they are there: those of `is_function_constant_defined`,
/// of parameters' attributes, and of a derived constant that asks.
fn mentioned<'a>(tokens: &[Token<'a>]) -> BTreeSet<&'a str> {
    let asked = |index: usize| index >= 2 && tokens[index - 2].is("is_function_constant_defined");
    let spared: BTreeSet<&str> = (0..tokens.len()).filter(|i| asked(*i)).map(|i| tokens[i].text).collect();
    tokens.iter().filter(|t| t.kind == Kind::Word && !spared.contains(t.text)).map(|t| t.text).collect()
}

/// What an item declares.
fn name<'a>(tokens: &[Token<'a>], item: &'a Item) -> Option<&'a str> {
    match &item.what {
        What::FunctionConstant(c) => Some(&c.name),
        What::Derived(d) => Some(&d.name),
        What::Function { body } => {
            // The word before the parameters.
            let head = &tokens[item.span.start..body.start];
            let open = head.iter().rposition(|t| t.is(")")).and_then(|close| {
                let mut depth = 0;
                (0..=close).rev().find(|i| {
                    depth += i32::from(head[*i].is(")")) - i32::from(head[*i].is("("));
                    depth == 0
                })
            })?;
            Some(head[open.checked_sub(1)?].text)
        }
        _ => None,
    }
}
