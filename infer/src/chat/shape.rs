//! What a template may look like: minijinja's compiler goes as deep as an expression is nested, on the stack, and works out constants, both
//! without a bound of its own and before anything is metered.
//!
//! Knows no chat, and no values but those that are written out. Invariant: what passes here compiles in bounded time, memory and stack.

use minijinja::machinery::{Token, WhitespaceConfig, ast, tokenize};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

/// Most signs and names between `{{` and `}}`, or `{%` and `%}`: each can nest an expression by one level. Published templates have at most some
/// hundred.
const MOST_TOKENS: usize = 1000;
/// Most `elif`, of which each is nested in the one before.
const MOST_ELIFS: usize = 256;
/// Longest text or list that a constant times a constant may be, such as a line of dashes.
const MOST_TIMES: u64 = 1024;

/// Looks at `source` before it is parsed.
///
/// # Errors
/// More than a template may have of what is nested.
pub(super) fn check_source(source: &str, whitespace: WhitespaceConfig) -> Result<(), Error> {
    let (mut tokens, mut elifs) = (0, 0);
    // What can't be cut into tokens is refused by the parser, in its own words.
    for (token, span) in tokenize(source, false, Default::default(), whitespace).map_while(Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => tokens = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        tokens += 1;
        if tokens > MOST_TOKENS {
            return Err(wrong(
                span.start_line.into(),
                format!("one tag has more than {MOST_TOKENS} signs and names"),
            ));
        }
        if elifs > MOST_ELIFS {
            return Err(wrong(span.start_line.into(), format!("more than {MOST_ELIFS} elif")));
        }
    }
    Ok(())
}

/// Looks at the constants of a parsed `template`, which the compiler works out.
///
/// # Errors
/// A constant that makes much out of little.
pub(super) fn check_constants(template: &ast::Stmt) -> Result<(), Error> {
    let too_long = |_| Error::new(ErrorKind::SyntaxError, "a number that takes more than 64 bits");
    let tree = serde_json::to_value(template).map_err(too_long)?;
    check_products(&tree)
}

fn check_products(node: &Json) -> Result<(), Error> {
    if node["expr"] == "BinOp"
        && node["inner"][0]["op"] == "Mul"
        && length(node).is_some_and(|len| len > MOST_TIMES)
    {
        let line = node["inner"][1]["start_line"].as_u64().unwrap_or(0);
        let problem = format!("a constant is repeated to more than {MOST_TIMES} characters or items");
        return Err(wrong(line, problem));
    }
    match node {
        Json::Array(nodes) => nodes.iter().try_for_each(check_products),
        Json::Object(nodes) => nodes.values().try_for_each(check_products),
        _ => Ok(()),
    }
}

/// At least how long the text or list is that the expression stands for, 0 where it is neither; none where it is no constant.
fn length(expression: &Json) -> Option<u64> {
    let of = &expression["inner"][0];
    let all = |list: &Json| {
        list.as_array()?
            .iter()
            .try_fold(0u64, |sum, item| Some(sum.saturating_add(length(item)?).saturating_add(1)))
    };
    match expression["expr"].as_str()? {
        // Nothing, many times, takes its time too.
        "Const" => Some(of["value"].as_str().map_or(0, |text| text.len().max(1) as u64)),
        "List" => Some(all(&of["items"])?.max(1)),
        "Map" => Some(all(&of["keys"])?.saturating_add(all(&of["values"])?).max(1)),
        "UnaryOp" | "Compare" => length(&of["expr"]).map(|_| 0),
        "BinOp" => {
            let (left, right) = (length(&of["left"])?, length(&of["right"])?);
            let times = |number: &Json| number["inner"][0]["value"].as_u64().unwrap_or(u64::MAX);
            Some(match of["op"].as_str()? {
                "Mul" if left > 0 => left.saturating_mul(times(&of["right"])),
                "Mul" if right > 0 => right.saturating_mul(times(&of["left"])),
                "Add" | "Concat" | "ScAnd" | "ScOr" => left.saturating_add(right),
                _ => 0,
            })
        }
        _ => None,
    }
}

fn wrong(line: u64, problem: String) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("line {line}: {problem}"))
}
