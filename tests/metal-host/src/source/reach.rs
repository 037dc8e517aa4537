//! What a kernel is made of: everything that is mentioned by what it mentions.
//!
//! Names stand for what they name, without regard to types or overloads, so that rather too much is reached than too little.
//! Two things follow: what is not reached need not be compiled, and function constants that are reached need a value. Metal
//! refuses to make a pipeline when a constant that its function uses has none; one that is only asked for
//! (`is_function_constant_defined`) may be left out.

use std::collections::BTreeSet;

use super::{
    Instance, Item, What, opening,
    tokens::{Kind, Token},
};

/// The items that `instance` is made of.
pub fn reached(tokens: &[Token], items: &[Item], instance: &Instance) -> BTreeSet<usize> {
    let mut starts = vec![instance.item];
    starts.extend(named(&names(tokens, items), &instance.arguments.iter().map(String::as_str).collect()));
    closure(tokens, items, starts)
}

/// The items that have to be compiled where `reached` are: also what stands in all of them, with what that is made of.
pub fn compiled(tokens: &[Token], items: &[Item], reached: &BTreeSet<usize>) -> BTreeSet<usize> {
    let stays = |index: &usize| match items[*index].what {
        What::Other | What::Function { .. } => name(tokens, &items[*index]).is_none(),
        What::Bracket | What::FunctionConstant(_) | What::Derived(_) => true,
        What::Kernel(_) | What::Instantiation => false,
    };
    closure(tokens, items, (0..items.len()).filter(stays).chain(reached.iter().copied()).collect())
}

fn closure(tokens: &[Token], items: &[Item], mut waiting: Vec<usize>) -> BTreeSet<usize> {
    let names = names(tokens, items);
    let mut reached = BTreeSet::new();
    while let Some(index) = waiting.pop() {
        if reached.insert(index) {
            waiting.extend(named(&names, &mentioned(&tokens[items[index].span.clone()])));
        }
    }
    reached
}

fn names<'a>(tokens: &[Token<'a>], items: &'a [Item]) -> Vec<Option<&'a str>> {
    items.iter().map(|item| name(tokens, item)).collect()
}

/// Names of the function constants among the reached.
pub fn constants(items: &[Item], reached: &BTreeSet<usize>) -> Vec<String> {
    let constant = |index: &usize| match &items[*index].what {
        What::FunctionConstant(c) => Some(c.name.clone()),
        _ => None,
    };
    reached.iter().filter_map(constant).collect()
}

/// The items called one of `wanted`.
fn named(names: &[Option<&str>], wanted: &BTreeSet<&str>) -> Vec<usize> {
    let is_wanted = |index: &usize| names[*index].is_some_and(|name| wanted.contains(name));
    (0..names.len()).filter(is_wanted).collect()
}

/// The words in `tokens`, but for constants that are only asked whether they are there.
fn mentioned<'a>(tokens: &[Token<'a>]) -> BTreeSet<&'a str> {
    let asked = |index: usize| index >= 2 && tokens[index - 2].is("is_function_constant_defined");
    let spared: BTreeSet<&str> = (0..tokens.len()).filter(|i| asked(*i)).map(|i| tokens[i].text).collect();
    tokens.iter().filter(|t| t.kind == Kind::Word && !spared.contains(t.text)).map(|t| t.text).collect()
}

/// What an item declares, as far as that has one name.
fn name<'a>(tokens: &[Token<'a>], item: &'a Item) -> Option<&'a str> {
    match &item.what {
        What::FunctionConstant(c) => Some(&c.name),
        What::Derived(d) => Some(&d.name),
        What::Function { body } => {
            // The word before the parameters.
            let head = &tokens[item.span.start..body.start];
            let close = head.iter().rposition(|t| t.is(")"))?;
            let open = opening(&head[..=close], "(", ")")?;
            let name = &head[open.checked_sub(1)?];
            (name.kind == Kind::Word && name.text != "operator").then_some(name.text)
        }
        What::Other => {
            let item = &tokens[item.span.clone()];
            // A template's own parameters may be declared with `class`.
            let start = if item[0].is("template") { super::after_bracket(item, 1).ok()? } else { 0 };
            let is_definition = item.iter().rev().nth(1).is_some_and(|t| t.is("}"));
            let defines = is_definition && (item[start].is("struct") || item[start].is("class"));
            let aligned = item.get(start + 1).is_some_and(|t| t.is("alignas"));
            let at = if aligned { super::after_bracket(item, start + 2).ok()? } else { start + 1 };
            let name = item.get(at).filter(|t| defines && t.kind == Kind::Word)?;
            Some(name.text)
        }
        _ => None,
    }
}
