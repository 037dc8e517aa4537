//! A kernel source as data: which kernels it has, what they take, which constants are given at launch; and the C++ that holds
//! one of its kernels.
//!
//! Knows C++ only as far as declarations at namespace scope and `threadgroup` variables; everything else passes through as it
//! was written, at its line.

mod declarations;
mod emit;
mod kernels;
mod reach;
mod threadgroup;
mod tokens;

use std::ops::Range;

use tokens::Token;

/// What the source transformation could not follow.
#[derive(Clone, Debug)]
pub struct SourceError {
    pub line: u32,
    pub message: String,
}

/// A preprocessed library, understood.
#[derive(Debug)]
pub struct Source<'a> {
    tokens: Vec<Token<'a>>,
    items: Vec<Item>,
    /// Kernels that can be run, by the name that a launch has for them.
    instances: Vec<Instance>,
}

/// A declaration at namespace scope, with its tokens.
#[derive(Debug)]
struct Item {
    span: Range<usize>,
    /// The namespaces around it, each followed by `::`.
    scope: String,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Passes through.
    Other,
    /// The end of a namespace or its beginning.
    Bracket,
    Function {
        body: Range<usize>,
    },
    Kernel(kernels::Definition),
    /// `template [[host_name("…")]] [[kernel]] decltype(f<float>) f<float>;`
    Instantiation,
    /// `constant bool X [[function_constant(0)]];`
    FunctionConstant(declarations::FunctionConstant),
    /// A constant whose value depends on function constants, and so is computed when they are known.
    Derived(declarations::Derived),
}

/// A kernel with its name.
#[derive(Debug)]
struct Instance {
    name: String,
    /// What its address is taken of: `f` or `f<float, 4>`.
    expression: String,
    /// The words of the template's arguments.
    arguments: Vec<String>,
    /// The item that defines it.
    item: usize,
}

/// The C++ of one kernel.
#[derive(Debug)]
pub struct Translation {
    pub text: String,
    /// Function constants that the kernel uses (directly or through what it calls) without asking whether they are defined.
    pub needs: Vec<String>,
}

impl<'a> Source<'a> {
    /// Understands what the preprocessor made of a source.
    pub fn new(text: &'a str) -> Result<Self, SourceError> {
        let tokens = tokens::tokens(text)?;
        let items = declarations::items(&tokens)?;
        let instances = kernels::instances(&tokens, &items)?;
        Ok(Source { tokens, items, instances })
    }

    pub fn kernel_names(&self) -> Vec<String> {
        self.instances.iter().map(|i| i.name.clone()).collect()
    }
}

/// The error of a token.
fn at(token: &Token, message: impl Into<String>) -> SourceError {
    SourceError { line: token.line, message: message.into() }
}

/// The index after the bracket that closes the one at `open`.
fn after_bracket(tokens: &[Token], open: usize) -> Result<usize, SourceError> {
    let (opening, closing) = match tokens[open].text {
        "(" => ("(", ")"),
        "[" => ("[", "]"),
        "{" => ("{", "}"),
        _ => ("<", ">"),
    };
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        if token.is(opening) {
            depth += 1;
        } else if token.is(closing) {
            depth -= 1;
            if depth == 0 {
                return Ok(index + 1);
            }
        }
    }
    Err(at(&tokens[open], format!("'{opening}' is never closed")))
}

/// The index of the bracket that the last token closes.
fn opening(tokens: &[Token], open: &str, close: &str) -> Option<usize> {
    let mut depth = 0i32;
    for (index, token) in tokens.iter().enumerate().rev() {
        if token.is(close) {
            depth += 1;
        } else if token.is(open) {
            depth -= 1;
            if depth == 0 {
                return Some(index);
            }
        }
    }
    None
}

/// `tokens` cut at the commas outside of all brackets.
fn at_commas<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0i32, 0);
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | "}" | ">" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&tokens[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    if start < tokens.len() {
        parts.push(&tokens[start..]);
    }
    parts
}

/// The tokens' text with one space between, without attributes.
fn joined(tokens: &[Token]) -> String {
    let words: Vec<&str> = tokens.iter().filter(|t| t.attribute().is_none()).map(|t| t.text).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;
