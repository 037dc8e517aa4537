//! The declarations at namespace scope: where each begins and ends, and which of them the translation has to touch.

use std::ops::Range;

use super::{
    Item, SourceError, What, after_bracket, at, joined, kernels,
    tokens::{Kind, Token},
};

/// A value that a launch gives.
#[derive(Debug)]
pub struct FunctionConstant {
    pub name: String,
    pub index: String,
    pub kind: String,
}

/// `constant bool X = NORM && WIDE;`
#[derive(Debug)]
pub struct Derived {
    pub name: String,
    pub kind: String,
    pub value: String,
}

/// What is at namespace scope, in order.
pub fn items(tokens: &[Token]) -> Result<Vec<Item>, SourceError> {
    let mut found: Vec<Item> = Vec::new();
    // Namespaces that are open.
    let mut scopes: Vec<String> = Vec::new();
    let mut start = 0;
    while tokens[start].kind != Kind::End {
        let scope: String = scopes.iter().filter(|s| !s.is_empty()).map(|s| format!("{s}::")).collect();
        let (end, what) = if tokens[start].is("}") {
            scopes.pop().ok_or_else(|| at(&tokens[start], "'}' closes nothing"))?;
            (start + 1, What::Bracket)
        } else if let Some((name, end)) = namespace(tokens, start) {
            scopes.push(name);
            (end, What::Bracket)
        } else {
            let (end, body) = extent(tokens, start)?;
            (end, classify(tokens, start..end, body, &found)?)
        };
        found.push(Item { span: start..end, scope, what });
        start = end;
    }
    match scopes.is_empty() {
        true => Ok(found),
        false => Err(at(&tokens[start], "a namespace is never closed")),
    }
}

/// Name and end of the head of the namespace that begins at `start`.
fn namespace(tokens: &[Token], start: usize) -> Option<(String, usize)> {
    if !tokens[start].is("namespace") {
        return None;
    }
    let open =
        (start..tokens.len()).find(|i| tokens[*i].is("{") || tokens[*i].is(";") || tokens[*i].is("="))?;
    tokens[open].is("{").then(|| (joined(&tokens[start + 1..open]).replace(' ', ""), open + 1))
}

/// The end of the declaration at `start`, and its body if it is a function's definition.
fn extent(tokens: &[Token], start: usize) -> Result<(usize, Option<Range<usize>>), SourceError> {
    let mut index = start;
    let mut previous = start;
    loop {
        let token = &tokens[index];
        match token.text {
            _ if token.kind == Kind::End => {
                return Err(at(&tokens[start], "a declaration is never closed"));
            }
            ";" => return Ok((index + 1, None)),
            "{" => {
                let end = after_bracket(tokens, index)?;
                if tokens[previous].is(")") || tokens[previous].is("const") {
                    return Ok((end, Some(index..end)));
                }
                (previous, index) = (end - 1, end);
            }
            "(" => {
                let end = after_bracket(tokens, index)?;
                (previous, index) = (end - 1, end);
            }
            _ => {
                if token.kind != Kind::Attribute {
                    previous = index;
                }
                index += 1;
            }
        }
    }
}

fn classify(
    tokens: &[Token],
    span: Range<usize>,
    body: Option<Range<usize>>,
    before: &[Item],
) -> Result<What, SourceError> {
    let item = &tokens[span.clone()];
    if let Some(body) = body {
        return Ok(match kernels::definition(tokens, span, body.clone())? {
            Some(definition) => What::Kernel(definition),
            None => What::Function { body },
        });
    }
    if item[0].is("template") && !item[1].is("<") {
        return Ok(What::Instantiation);
    }
    if let Some(place) =
        item.iter().position(|t| t.attribute().is_some_and(|a| a.starts_with("function_constant")))
    {
        return function_constant(item, place).map(What::FunctionConstant);
    }
    let given = |t: &Token| before.iter().any(|i| i.declares(t.text));
    let value = item.iter().position(|t| t.is("=") || t.is("{")).filter(|p| item[*p].is("="));
    if item[..value.unwrap_or(0)].iter().any(|t| t.is("constant")) && item.iter().any(given) {
        return derived(item).map(What::Derived);
    }
    Ok(What::Other)
}

impl Item {
    /// Whether it is the constant `name`, known at launch only.
    fn declares(&self, name: &str) -> bool {
        match &self.what {
            What::FunctionConstant(c) => c.name == name,
            What::Derived(d) => d.name == name,
            _ => false,
        }
    }
}

fn function_constant(item: &[Token], attribute: usize) -> Result<FunctionConstant, SourceError> {
    let text = item[attribute].attribute().unwrap_or_default();
    let index =
        text.trim_start_matches("function_constant").trim().trim_start_matches('(').trim_end_matches(')');
    let (kind, name) = typed(&item[..attribute])?;
    Ok(FunctionConstant { name, index: index.trim().to_owned(), kind })
}

fn derived(item: &[Token]) -> Result<Derived, SourceError> {
    let equals = item.iter().position(|t| t.is("="));
    let equals =
        equals.ok_or_else(|| at(&item[0], "a constant that depends on function constants needs '='"))?;
    let (kind, name) = typed(&item[..equals])?;
    // Without the semicolon.
    let value = joined(&item[equals + 1..item.len() - 1]);
    Ok(Derived { name, kind, value })
}

/// `constant bool X` as ("bool", "X").
fn typed(declarator: &[Token]) -> Result<(String, String), SourceError> {
    let storage = ["constant", "const", "constexpr", "static"];
    let words: Vec<&str> = declarator
        .iter()
        .filter(|t| t.attribute().is_none())
        .map(|t| t.text)
        .filter(|t| !storage.contains(t))
        .collect();
    match words.split_last() {
        Some((name, kind)) if !kind.is_empty() && *name != "]" => Ok((kind.join(" "), (*name).to_owned())),
        _ => Err(at(&declarator[0], "want `constant TYPE NAME`: arrays can't depend on function constants")),
    }
}
