//! `threadgroup float tile[8][32];` inside a function: a variable that all threads of a threadgroup share.
//!
//! Each declaration becomes a reference to memory that the engine owns. Pointers into threadgroup memory are left alone.

use std::ops::Range;

use super::{
    SourceError, at, at_commas, joined,
    tokens::{Kind, Token},
};

/// What stands in the place of the declaration's tokens.
#[derive(Debug)]
pub struct Variable {
    /// From the word `threadgroup` to the semicolon.
    pub span: Range<usize>,
    pub text: String,
}

/// The shared variables that are declared in a function's body.
pub fn variables(tokens: &[Token], body: Range<usize>) -> Result<Vec<Variable>, SourceError> {
    let mut found = Vec::new();
    for index in body.clone() {
        let begins = ["{", "}", ";", ":"].contains(&tokens[index - 1].text);
        if !(begins && tokens[index].is("threadgroup")) {
            continue;
        }
        let end = (index..body.end).find(|i| tokens[*i].is(";"));
        let end = end.ok_or_else(|| at(&tokens[index], "a declaration without its semicolon"))?;
        let declaration = &tokens[index + 1..end];
        if points(declaration) {
            continue;
        }
        if let Some(equals) = declaration.iter().find(|t| t.is("=")) {
            return Err(at(equals, "a threadgroup variable can't be initialized where it is declared"));
        }
        found.push(Variable { span: index..end + 1, text: references(declaration, index)? });
    }
    Ok(found)
}

/// Whether a pointer or a reference is declared: `*` or `&` outside of brackets and before any `=`.
fn points(declaration: &[Token]) -> bool {
    let mut depth = 0i32;
    for token in declaration {
        match token.text {
            "<" | "(" | "[" => depth += 1,
            ">" | ")" | "]" => depth -= 1,
            "*" | "&" if depth == 0 => return true,
            "=" => return false,
            _ => {}
        }
    }
    false
}

/// `float a[4], b` as references; `unique` tells it from all other declarations.
fn references(declaration: &[Token], unique: usize) -> Result<String, SourceError> {
    let parts = at_commas(declaration);
    let first = parts.first().copied().unwrap_or_default();
    let kind = name_index(first).map(|name| joined(&first[..name]));
    let kind = kind.filter(|k| !k.is_empty());
    let kind = kind.ok_or_else(|| at(&declaration[0], "want `threadgroup TYPE NAME`"))?;
    let mut text = String::new();
    for (nth, part) in parts.iter().enumerate() {
        let name = name_index(part).ok_or_else(|| at(&part[0], "a variable without a name"))?;
        let (extents, name) = (joined(&part[name + 1..]), part[name].text);
        let id = format!("metal_host_{name}_{unique}_{nth}");
        text += &format!(
            "typedef {kind} {id} {extents}; static const char {id}_key = 0; threadgroup {id}& {name} = *(threadgroup {id}*)\
             ::metal_host::engine->threadgroup_variable(&{id}_key, sizeof({id}), alignof({id}), \"{name}\"); "
        );
    }
    Ok(text)
}

/// The declared name: the last word outside of brackets, before the array's extents.
fn name_index(declarator: &[Token]) -> Option<usize> {
    let mut depth = 0i32;
    let mut name = None;
    for (index, token) in declarator.iter().enumerate() {
        match token.text {
            "[" if depth == 0 => break,
            "<" | "(" => depth += 1,
            ">" | ")" => depth -= 1,
            _ if depth == 0 && token.kind == Kind::Word => name = Some(index),
            _ => {}
        }
    }
    name
}
