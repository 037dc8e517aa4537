//! Kernels: their parameters, read off the attributes, and the names under which they can be launched.

use std::ops::Range;

use super::{
    Instance, Item, SourceError, What, after_bracket, at, at_commas, joined, opening,
    tokens::{Kind, Token},
};

/// A function marked as a kernel.
#[derive(Debug)]
pub struct Definition {
    pub name: String,
    pub is_template: bool,
    pub parameters: Vec<Parameter>,
    pub body: Range<usize>,
}

/// Where a parameter's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// A name of `metal_host::Source`.
    pub source: &'static str,
    /// Of a buffer or of threadgroup memory, as written.
    pub index: String,
    /// The function constant that it depends on.
    pub present: Option<String>,
}

/// Attributes of built-in inputs, and their names in `shim/runtime.h`.
const BUILT_IN: [(&str, &str); 19] = [
    ("thread_position_in_grid", "THREAD_POSITION_IN_GRID"),
    ("threadgroup_position_in_grid", "THREADGROUP_POSITION_IN_GRID"),
    ("thread_position_in_threadgroup", "THREAD_POSITION_IN_THREADGROUP"),
    ("thread_index_in_threadgroup", "THREAD_INDEX_IN_THREADGROUP"),
    ("threads_per_threadgroup", "THREADS_PER_THREADGROUP"),
    ("dispatch_threads_per_threadgroup", "DISPATCH_THREADS_PER_THREADGROUP"),
    ("threadgroups_per_grid", "THREADGROUPS_PER_GRID"),
    ("threads_per_grid", "THREADS_PER_GRID"),
    ("grid_size", "THREADS_PER_GRID"),
    ("thread_index_in_simdgroup", "THREAD_INDEX_IN_SIMDGROUP"),
    ("simdgroup_index_in_threadgroup", "SIMDGROUP_INDEX_IN_THREADGROUP"),
    ("simdgroups_per_threadgroup", "SIMDGROUPS_PER_THREADGROUP"),
    ("dispatch_simdgroups_per_threadgroup", "DISPATCH_SIMDGROUPS_PER_THREADGROUP"),
    ("threads_per_simdgroup", "THREADS_PER_SIMDGROUP"),
    ("thread_execution_width", "THREADS_PER_SIMDGROUP"),
    ("quadgroup_index_in_threadgroup", "QUADGROUP_INDEX_IN_THREADGROUP"),
    ("thread_index_in_quadgroup", "THREAD_INDEX_IN_QUADGROUP"),
    ("buffer", "BUFFER"),
    ("threadgroup", "THREADGROUP"),
];

/// The kernel defined at `span`, or nothing if the function is no kernel.
pub fn definition(
    tokens: &[Token],
    span: Range<usize>,
    body: Range<usize>,
) -> Result<Option<Definition>, SourceError> {
    let mut start = span.start;
    let is_template = tokens[start].is("template");
    if is_template {
        start = after_bracket(tokens, start + 1)?;
    }
    let head = start..body.start;
    let open = head.clone().find(|i| tokens[*i].is("("));
    let open = open.ok_or_else(|| at(&tokens[span.start], "a function without parameters' brackets"))?;
    let marked = |t: &Token| {
        t.is("kernel") || t.attribute().is_some_and(|a| a.split(',').any(|a| a.trim() == "kernel"))
    };
    if !tokens[start..open].iter().any(marked) {
        return Ok(None);
    }
    let name = tokens[open - 1].text.to_owned();
    let close = after_bracket(tokens, open)? - 1;
    let parameters = at_commas(&tokens[open + 1..close]).into_iter().map(|p| parameter(&name, p));
    Ok(Some(Definition { parameters: parameters.collect::<Result<_, _>>()?, name, is_template, body }))
}

fn parameter(kernel: &str, tokens: &[Token]) -> Result<Parameter, SourceError> {
    let refused =
        |what: String| at(&tokens[0], format!("kernel {kernel}: parameter `{}` {what}", joined(tokens)));
    let mut found = None;
    let mut present = None;
    for attribute in tokens.iter().filter_map(Token::attribute).flat_map(|a| a.split(',')) {
        let (key, argument) = match attribute.split_once('(') {
            Some((key, rest)) => (key.trim(), rest.trim().trim_end_matches(')').trim().to_owned()),
            None => (attribute.trim(), "0".to_owned()),
        };
        if key == "function_constant" {
            present = Some(argument);
        } else if let Some((_, source)) = BUILT_IN.iter().find(|(k, _)| *k == key) {
            found = Some((*source, argument));
        } else {
            return Err(refused(format!("has the attribute [[{key}]], which the emulator doesn't know")));
        }
    }
    let (source, index) = found.ok_or_else(|| refused("has no attribute that says what it is".into()))?;
    Ok(Parameter { source, index, present })
}

/// Everything that a launch can name.
pub fn instances(tokens: &[Token], items: &[Item]) -> Result<Vec<Instance>, SourceError> {
    let mut found: Vec<Instance> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let span = &tokens[item.span.clone()];
        let instance = match &item.what {
            What::Kernel(definition) if !definition.is_template => {
                let name = host_name(span).unwrap_or_else(|| definition.name.clone());
                Instance {
                    name,
                    expression: format!("{}{}", item.scope, definition.name),
                    arguments: Vec::new(),
                    item: index,
                }
            }
            What::Instantiation => instantiation(span, item, items)?,
            _ => continue,
        };
        if found.iter().any(|other| other.name == instance.name) {
            return Err(at(&span[0], format!("two kernels are called {}", instance.name)));
        }
        found.push(instance);
    }
    Ok(found)
}

/// The string in `[[host_name("…")]]`; neighbouring strings are one.
fn host_name(item: &[Token]) -> Option<String> {
    let attribute = item.iter().filter_map(Token::attribute).find(|a| a.contains("host_name"))?;
    let pieces: Vec<&str> = attribute.split('"').skip(1).step_by(2).collect();
    Some(pieces.concat())
}

/// `template [[host_name("…")]] … f<float>;` or `… void f<float>(…);`
fn instantiation(span: &[Token], item: &Item, items: &[Item]) -> Result<Instance, SourceError> {
    let refused = |what: &str| at(&span[0], format!("`{}`: {what}", joined(span)));
    let mut end = span.len() - 1;
    if span[end - 1].is(")") {
        end = opening(&span[..end], "(", ")").ok_or_else(|| refused("brackets don't match"))?;
    }
    if !span[end - 1].is(">") {
        return Err(refused("want the template's arguments spelled out, `f<float>`"));
    }
    let angle = opening(&span[..end], "<", ">").ok_or_else(|| refused("brackets don't match"))?;
    let base = &span[angle - 1];
    if base.kind != Kind::Word {
        return Err(refused("want the name of a kernel before '<'"));
    }
    let defines = |i: &Item| matches!(&i.what, What::Kernel(d) if d.name == base.text && d.is_template);
    let defined = items.iter().position(defines).ok_or_else(|| refused("no such template of a kernel"))?;
    let name = host_name(span).ok_or_else(|| refused("without [[host_name(…)]] it can't be launched"))?;
    let expression = format!("{}{}", item.scope, joined(&span[angle - 1..end]));
    let arguments =
        span[angle..end].iter().filter(|t| t.kind == Kind::Word).map(|t| t.text.to_owned()).collect();
    Ok(Instance { name, expression, arguments, item: defined })
}
