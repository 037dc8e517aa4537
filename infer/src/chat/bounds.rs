//! Jinja within bounds: what a template may spend, in steps and in bytes.
//!
//! minijinja counts instructions, but one instruction can do any amount of work: double a text, compare two lists of lists,
//! repeat a list a billion times. So after a template is compiled, every instruction that makes or walks a value is replaced
//! by a call to a function of ours, which weighs what goes in and what comes out against one budget. What a value weighs is
//! counted with all that is in it, as often as it is in it.
//!
//! Knows no chat. Invariant: no value is made that weighs more than what is left of the budget.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Vm, WhitespaceConfig, make_string_output, parse,
};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python::{strftime, tojson};
use super::shape;

/// Name of a template in its own messages.
const NAME: &str = "chat template";
/// As transformers has it.
const WHITESPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
/// Instructions of one rendering.
const STEPS: u64 = 1 << 20;
/// What one rendering may make and walk: bytes of text, and [`NODE`] for everything else.
const BUDGET: u64 = 1 << 26;
/// Longest text that is rendered.
const MAX_OUTPUT: usize = 1 << 24;
/// What an item of a list or map weighs.
const NODE: u64 = 32;
/// What is said where the budget is spent.
const TOO_MUCH: &str = "makes more text and lists than a chat template may";
/// Deepest nesting of lists and maps.
const DEPTH: usize = 32;

/// Operators whose work depends on what they are given, as functions of two values.
const OPERATORS: [&str; 10] = ["+", "*", "~", "==", "!=", "<", "<=", ">", ">=", "in"];
/// Filters that walk what they are given.
const FILTERS: [&str; 31] = [
    "|capitalize",
    "|chain",
    "|dictsort",
    "|escape",
    "|groupby",
    "|indent",
    "|items",
    "|join",
    "|lines",
    "|list",
    "|lower",
    "|map",
    "|max",
    "|min",
    "|reject",
    "|rejectattr",
    "|replace",
    "|reverse",
    "|select",
    "|selectattr",
    "|sort",
    "|split",
    "|string",
    "|sum",
    "|title",
    "|tojson",
    "|trim",
    "|unique",
    "|upper",
    "|zip",
    "|e",
];
/// Tests that compare.
const TESTS: [&str; 20] = [
    "is ==",
    "is eq",
    "is equalto",
    "is !=",
    "is ne",
    "is <",
    "is lt",
    "is lessthan",
    "is <=",
    "is le",
    "is >",
    "is gt",
    "is greaterthan",
    "is >=",
    "is ge",
    "is in",
    "is sameas",
    "is startingwith",
    "is endingwith",
    "is iterable",
];
/// The tag of transformers around what a model has written.
const GENERATION: &str = "generation";
/// Filters that no published template uses, and that make much out of little.
const REFUSED: [&str; 4] = ["batch", "slice", "format", "pprint"];

/// Whether `source` is a template.
pub(super) fn check(source: &str) -> Result<(), String> {
    let source = without_generation_marks(source);
    let looked = shape::check_source(&source, WHITESPACE)
        .and_then(|()| shape::check_constants(&parse(&source, NAME, Default::default(), WHITESPACE)?));
    looked.and_then(|()| compile(&source)).map(|_| ()).map_err(|e| told(&e))
}

/// The text that `source` makes of `context`.
pub(super) fn render(source: &str, context: &serde_json::Value, now: u64) -> Result<String, String> {
    write(&without_generation_marks(source), context, now)
}

/// The same with `marks` where answers begin and end, if the template says where that is.
pub(super) fn render_marked(
    source: &str,
    context: &serde_json::Value,
    now: u64,
    marks: [char; 2],
) -> Option<Result<String, String>> {
    let marked = generation_marks(source, |name, left, right| {
        // A block on both sides, so that white space is trimmed as around the tag itself.
        let (keyword, mark) = if name == GENERATION { ("if true", marks[0]) } else { ("endif", marks[1]) };
        format!("{{%{left} {keyword} %}}{{{{ \"{mark}\" }}}}{{% {keyword} {right}%}}")
    })?;
    Some(write(&marked, context, now))
}

fn write(source: &str, context: &serde_json::Value, now: u64) -> Result<String, String> {
    let (instructions, blocks, longest) = compile(source).map_err(|e| told(&e))?;
    let meter = Arc::new(Meter(AtomicU64::new(0)));
    let mut environment = environment(&meter, now);
    // Text of the template itself is written without a call: as many steps as it may be long.
    environment.set_fuel(Some(STEPS.min(BUDGET / longest.max(1) as u64)));
    let context = Value::from_serialize(context);
    meter.weigh(&context).map_err(|e| told(&e))?;
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    let rendered = Vm::new(&environment).eval(&instructions, context, &blocks, &mut output, AutoEscape::None);
    rendered.map_err(|e| told(&e))?;
    match text.len() {
        0..=MAX_OUTPUT => Ok(text),
        long => Err(format!("the chat template wrote {long} bytes, at most {MAX_OUTPUT} are allowed")),
    }
}

type Compiled<'s> = (Instructions<'s>, BTreeMap<&'s str, Instructions<'s>>, usize);

/// The program, metered, and the length of the longest text in it. Of a source that [`check`] has passed: what it looked at stays as it is when tags
/// of generation are replaced.
fn compile(source: &str) -> Result<Compiled<'_>, Error> {
    let template = parse(source, NAME, Default::default(), WHITESPACE)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&template);
    let (mut instructions, mut blocks) = generator.finish();
    let mut longest = 0;
    for program in std::iter::once(&mut instructions).chain(blocks.values_mut()) {
        for at in 0..program.len() as u32 {
            let line = program.get_line(at).unwrap_or(0);
            let Some(instruction) = program.get_mut(at) else { continue };
            if let Instruction::EmitRaw(text) = instruction {
                longest = longest.max(text.len());
            }
            if let Instruction::CompareAndPreserve(_) = instruction {
                let problem = format!(
                    "line {line}: comparisons in a row (a < b < c) are not supported; write a < b and b < c"
                );
                return Err(Error::new(ErrorKind::SyntaxError, problem));
            }
            if let Some(metered) = metered(instruction) {
                *instruction = metered;
            }
        }
    }
    Ok((instructions, blocks, longest))
}

/// The call that takes the place of an instruction.
fn metered<'s>(instruction: &Instruction<'s>) -> Option<Instruction<'s>> {
    let two = |name| Some(Instruction::CallFunction(name, Some(2)));
    let count = |n: usize| u16::try_from(n).ok();
    match instruction {
        Instruction::Add => two("+"),
        Instruction::Mul => two("*"),
        Instruction::StringConcat => two("~"),
        Instruction::Eq => two("=="),
        Instruction::Ne => two("!="),
        Instruction::Lt => two("<"),
        Instruction::Lte => two("<="),
        Instruction::Gt => two(">"),
        Instruction::Gte => two(">="),
        Instruction::In => two("in"),
        Instruction::Slice => Some(Instruction::CallFunction("[:]", Some(4))),
        Instruction::BuildList(None) => Some(Instruction::CallFunction("[]", None)),
        Instruction::BuildList(Some(n)) => Some(Instruction::CallFunction("[]", Some(count(*n)?))),
        Instruction::BuildMap(pairs) => Some(Instruction::CallFunction("{}", Some(count(2 * pairs)?))),
        Instruction::ApplyFilter(name, count, _) => {
            let ours = FILTERS.into_iter().find(|filter| &filter[1..] == *name)?;
            Some(Instruction::CallFunction(ours, *count))
        }
        Instruction::PerformTest(name, count, _) => {
            let ours = TESTS.into_iter().find(|test| &test[3..] == *name)?;
            Some(Instruction::CallFunction(ours, *count))
        }
        _ => None,
    }
}

/// Functions, filters and methods of a rendering.
fn environment(meter: &Arc<Meter>, now: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    // A macro costs several levels; published templates nest a handful.
    environment.set_recursion_limit(100);
    for name in REFUSED {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    // For minijinja, nothing is a list of nothing.
    let is_iterable = |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
    };
    environment.add_test("iterable", is_iterable);
    environment.add_filter("tojson", |value: &Value, kwargs: Kwargs| tojson(value, kwargs));
    environment.add_filter("replace", |text: Cow<'_, str>, old: Cow<'_, str>, new: Cow<'_, str>| {
        replace(&text, &old, &new, None)
    });
    environment
        .add_filter("join", |items: &Value, by: Option<Cow<'_, str>>| join(items, &by.unwrap_or_default()));
    environment.add_filter("indent", indent);
    environment.add_function("raise_exception", |message: Cow<'_, str>| -> Result<Value, Error> {
        Err(refused(message.into_owned()))
    });
    environment.add_function("strftime_now", move |format: Cow<'_, str>| strftime(&format, now));
    for name in OPERATORS {
        let meter = Arc::clone(meter);
        let operator =
            move |a: &Value, b: &Value| meter.around(&[a.clone(), b.clone()], || operate(name, a, b));
        environment.add_function(name, operator);
    }
    for name in FILTERS {
        let meter = Arc::clone(meter);
        let filter = move |state: &State, args: Rest<Value>| {
            meter.around(&args, || state.apply_filter(&name[1..], &args))
        };
        environment.add_function(name, filter);
    }
    for name in TESTS {
        let meter = Arc::clone(meter);
        let test = move |state: &State, args: Rest<Value>| {
            meter.around(&args, || state.perform_test(&name[3..], &args).map(Value::from))
        };
        environment.add_function(name, test);
    }
    let of = Arc::clone(meter);
    environment.add_function("[:]", move |args: Rest<Value>| of.around(&args[..1], || slice(&args)));
    let of = Arc::clone(meter);
    environment
        .add_function("[]", move |args: Rest<Value>| of.around(&args, || Ok(Value::from(args.0.clone()))));
    let of = Arc::clone(meter);
    let pairs = |args: &[Value]| {
        args.as_chunks::<2>().0.iter().map(|[k, v]| (k.clone(), v.clone())).collect::<Value>()
    };
    environment.add_function("{}", move |args: Rest<Value>| of.around(&args, || Ok(pairs(&args))));
    let of = Arc::clone(meter);
    environment.set_unknown_method_callback(move |state, value, name, args| {
        of.weigh(value)?;
        of.around(args, || method(state, value, name, args))
    });
    let of = Arc::clone(meter);
    environment.set_formatter(move |out, _, value| {
        of.weigh(value)?;
        // As Python writes them.
        let written = match (value.kind(), value.is_true()) {
            (ValueKind::Undefined, _) => Ok(()),
            (ValueKind::None, _) => out.write_str("None"),
            (ValueKind::Bool, true) => out.write_str("True"),
            (ValueKind::Bool, false) => out.write_str("False"),
            _ => write!(out, "{value}"),
        };
        written.map_err(Error::from)
    });
    environment
}

/// What was spent of [`BUDGET`].
struct Meter(AtomicU64);

impl Meter {
    /// `make()`, with its inputs and what it gives weighed.
    fn around(&self, inputs: &[Value], make: impl FnOnce() -> Result<Value, Error>) -> Result<Value, Error> {
        inputs.iter().try_for_each(|input| self.weigh(input))?;
        let made = make()?;
        self.weigh(&made)?;
        Ok(made)
    }

    /// Takes the weight of `value` from the budget.
    fn weigh(&self, value: &Value) -> Result<(), Error> {
        let mut left = BUDGET.saturating_sub(self.0.load(Ordering::Relaxed));
        let before = left;
        let weighed = weight(value, DEPTH, &mut left);
        self.0.fetch_add(before - left, Ordering::Relaxed);
        weighed
    }
}

/// Takes the weight of `value` from `left`.
fn weight(value: &Value, depth: usize, left: &mut u64) -> Result<(), Error> {
    let own = value.as_str().map_or(0, str::len) as u64 + NODE;
    *left = left.checked_sub(own).ok_or_else(|| {
        *left = 0;
        refused(TOO_MUCH.into())
    })?;
    let is_map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        _ => return Ok(()),
    };
    let deeper =
        depth.checked_sub(1).ok_or_else(|| refused(format!("nests lists and maps deeper than {DEPTH}")))?;
    for item in value.try_iter()? {
        weight(&item, deeper, left)?;
        if is_map {
            weight(&value.get_item(&item)?, deeper, left)?;
        }
    }
    Ok(())
}

/// `a operator b`, by minijinja's own rules.
fn operate(name: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    if name == "*" {
        let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
        let is_first = a.as_str().is_some() || (is_list(a) && b.as_str().is_none());
        let (many, times) = if is_first { (a, b) } else { (b, a) };
        let times_many = |len: usize| times.as_usize().map_or(Some(0), |times| len.checked_mul(times));
        if let Some(text) = many.as_str() {
            fits(times_many(text.len()))?;
        } else if is_list(many) {
            match many.len() {
                // minijinja repeats nothing as often as it is told.
                Some(0) if times.as_usize().is_some() => return Ok(many.clone()),
                len => items_fit(times_many(len.unwrap_or(0)))?,
            }
        }
    }
    let plain = Environment::new();
    plain.compile_expression(&format!("a {name} b"))?.eval(context!(a, b))
}

fn slice(args: &[Value]) -> Result<Value, Error> {
    let [value, start, stop, step] = args else { return Err(refused("a slice of nothing".into())) };
    let plain = Environment::new();
    plain.compile_expression("value[start:stop:step]")?.eval(context!(value, start, stop, step))
}

/// A method that strings, lists and maps have in Python.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = |at: usize| args.get(at).and_then(Value::as_str);
    match (value.as_str(), name) {
        (Some(own), "replace") => match (text(0), text(1)) {
            (Some(old), Some(new)) => replace(own, old, new, args.get(2).and_then(Value::as_usize)),
            _ => unknown_method_callback(state, value, name, args),
        },
        (Some(by), "join") => join(args.first().unwrap_or(&Value::UNDEFINED), by),
        // Python counts the places between characters.
        (Some(own), "count") if text(0) == Some("") => Ok(Value::from(own.chars().count() + 1)),
        (Some(own), "format") if has_long_number(own) => {
            Err(refused("str.format: widths have at most three digits here".into()))
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// Whether more than three digits follow each other, as in the width of a field that would fill the memory.
fn has_long_number(format: &str) -> bool {
    format.as_bytes().windows(4).any(|four| four.iter().all(u8::is_ascii_digit))
}

fn replace(text: &str, old: &str, new: &str, count: Option<usize>) -> Result<Value, Error> {
    let found = text.matches(old).count().min(count.unwrap_or(usize::MAX));
    fits(found.checked_mul(new.len()).and_then(|more| more.checked_add(text.len())))?;
    Ok(Value::from(match count {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }))
}

fn join(items: &Value, by: &str) -> Result<Value, Error> {
    let mut text = String::new();
    for (index, item) in items.try_iter()?.enumerate() {
        if index > 0 {
            text.push_str(by);
        }
        let _ = write!(text, "{item}");
        fits(Some(text.len()))?;
    }
    Ok(Value::from(text))
}

/// Jinja's `indent`: every line but the first, and no empty one, is moved right by `width`.
fn indent(
    text: Cow<'_, str>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let width = kwargs.get::<Option<usize>>("width")?.or(width).unwrap_or(4);
    let first = kwargs.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
    let blank = kwargs.get::<Option<bool>>("blank")?.or(blank).unwrap_or(false);
    kwargs.assert_all_used()?;
    fits(text.lines().count().checked_mul(width))?;
    let mut moved = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            moved.push('\n');
        }
        let stays = (index == 0 && !first) || (line.is_empty() && !blank);
        moved.extend(std::iter::repeat_n(' ', if stays { 0 } else { width }));
        moved.push_str(line);
    }
    Ok(Value::from(moved))
}

fn fits(length: Option<usize>) -> Result<(), Error> {
    match length {
        Some(length) if length <= MAX_OUTPUT => Ok(()),
        _ => Err(refused(format!("makes a text of more than {MAX_OUTPUT} bytes"))),
    }
}

fn items_fit(items: Option<usize>) -> Result<(), Error> {
    match items {
        Some(items) if items as u64 <= BUDGET / NODE => Ok(()),
        _ => Err(refused(TOO_MUCH.into())),
    }
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// What went wrong, with the line.
fn told(error: &Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "takes more steps than a chat template may".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<Error>()).map(told);
    let what = cause.map_or(what.clone(), |cause| format!("{what} ({cause})"));
    error.line().map_or(what.clone(), |line| format!("line {line}: {what}"))
}

/// `{% generation %}` marks what training counts as the assistant's; for rendering it means nothing.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    let plain = |name: &str, left: &str, right: &str| {
        let keyword = if name == GENERATION { "if true" } else { "endif" };
        format!("{{%{left} {keyword} {right}%}}")
    };
    generation_marks(source, plain).map_or(Cow::Borrowed(source), Cow::Owned)
}

/// `source` with what `by` makes of each such tag, of its name and of the signs that trim on either side; none where there is no tag.
fn generation_marks(source: &str, by: impl Fn(&str, &str, &str) -> String) -> Option<String> {
    let mut found = false;
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        // Behind the opening signs: in `{%}` they share one.
        let Some(len) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(len + 4);
        let inside = &tag[2..tag.len() - 2];
        let name = inside.trim_matches(['-', '+', ' ', '\n', '\t']);
        if [GENERATION, "endgeneration"].contains(&name) {
            found = true;
            let sign =
                |c: Option<char>| c.filter(|c| ['-', '+'].contains(c)).map_or(String::new(), String::from);
            text.push_str(&by(name, &sign(inside.chars().next()), &sign(inside.chars().next_back())));
        } else {
            text.push_str(tag);
        }
        rest = after;
    }
    text.push_str(rest);
    found.then_some(text)
}
