//! What a row of chat data is: one of the layouts that such data comes in.
//!
//! Knows no file, no template and no tokens. Invariant: a row is understood as a whole or refused with what it has and what is read.

use qat_infer::chat::Message;
use serde_json::{Map, Value};

/// The layouts, for messages.
const READ: &str = "messages (a list of {role, content}), conversations (a list of {from, value}), instruction with output or response \
                    (and input or context), prompt with response, completion or output, question with answer, or text";

/// What a row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    /// Somebody asks, somebody answers.
    Talk(Vec<Message>),
    /// A text of its own.
    Text(String),
}

/// Names under which an answer stands.
const ANSWERS: [&str; 4] = ["response", "output", "completion", "answer"];

/// What `object` says; several conversations where it lists instances of one task.
pub(super) fn read(object: &Map<String, Value>) -> Result<Vec<Row>, String> {
    // A key that is there with nothing in it is how tables say that a row doesn't have it.
    let has = |name: &str| object.get(name).is_some_and(|value| !value.is_null());
    if has("messages") {
        return Ok(vec![talk(messages("messages", &object["messages"])?)?]);
    }
    if has("conversations") {
        return Ok(vec![talk(messages("conversations", &object["conversations"])?)?]);
    }
    let answer = ANSWERS.into_iter().find(|name| has(name));
    if let (true, Some(Value::Array(instances))) = (has("instruction"), object.get("instances")) {
        return instances
            .iter()
            .enumerate()
            .map(|(at, instance)| of_instance(object, at, instance))
            .collect();
    }
    for (question, more) in [("instruction", &["input", "context"][..]), ("prompt", &[]), ("question", &[])] {
        let (true, Some(answer)) = (has(question), answer) else { continue };
        return Ok(vec![talk(asked(object, (question, more), answer)?)?]);
    }
    if has("text") {
        return Ok(vec![Row::Text(text(object, "text")?.to_owned())]);
    }
    let present: Vec<_> = object.keys().map(|key| format!("\"{key}\"")).collect();
    Err(format!("no layout of chat data has these fields: {}; read are {READ}", present.join(", ")))
}

/// A conversation that has something to learn.
fn talk(messages: Vec<Message>) -> Result<Row, String> {
    match messages.iter().any(|message| message.role == "assistant") {
        true => Ok(Row::Talk(messages)),
        false => Err("no message of the assistant, so that there is nothing to learn".to_owned()),
    }
}

/// A question, with what belongs to it, and its answer.
fn asked(
    object: &Map<String, Value>,
    (question, more): (&str, &[&str]),
    answer: &str,
) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    if let Some(Value::String(system)) = object.get("system").filter(|system| **system != "") {
        messages.push(Message::new("system", system));
    }
    // Prompts and completions may be conversations themselves.
    match &object[question] {
        list @ Value::Array(_) => messages.extend(self::messages(question, list)?),
        _ => {
            let mut asked = text(object, question)?.to_owned();
            for name in more.iter().filter(|name| object.get(**name).is_some_and(|value| !value.is_null())) {
                let more = text(object, name)?;
                if !more.is_empty() {
                    asked = format!("{asked}\n\n{more}");
                }
            }
            messages.push(Message::new("user", &asked));
        }
    }
    match &object[answer] {
        list @ Value::Array(_) => messages.extend(self::messages(answer, list)?),
        _ => messages.push(Message::new("assistant", text(object, answer)?)),
    }
    Ok(messages)
}

/// Instance `at` of a task that `object` describes.
fn of_instance(object: &Map<String, Value>, at: usize, instance: &Value) -> Result<Row, String> {
    let wrong = |problem: &str| format!("instances[{at}]: {problem}");
    let instance = instance.as_object().ok_or_else(|| wrong("want an object"))?;
    let mut whole = instance.clone();
    whole.insert("instruction".to_owned(), object["instruction"].clone());
    let answer =
        ANSWERS.into_iter().find(|name| whole.contains_key(*name)).ok_or_else(|| wrong("no output"))?;
    talk(asked(&whole, ("instruction", &["input", "context"]), answer).map_err(|e| wrong(&e))?)
}

/// The messages of a list, in either spelling.
fn messages(name: &str, list: &Value) -> Result<Vec<Message>, String> {
    let list = list.as_array().ok_or_else(|| format!("\"{name}\" is not a list of messages"))?;
    if list.is_empty() {
        return Err(format!("\"{name}\" is empty"));
    }
    let message = |(at, message): (usize, &Value)| {
        let wrong = |problem: String| format!("{name}[{at}]: {problem}");
        let object =
            message.as_object().ok_or_else(|| wrong("want an object with role and content".to_owned()))?;
        let key = |names: [&'static str; 2]| {
            let found =
                names.into_iter().find(|name| object.get(*name).is_some_and(|value| !value.is_null()));
            found.ok_or_else(|| wrong(format!("no {}", names[0])))
        };
        let who = text(object, key(["role", "from"])?).map_err(wrong)?;
        let said = content(object, key(["content", "value"])?).map_err(wrong)?;
        Ok(Message::new(role(who), &said))
    };
    list.iter().enumerate().map(message).collect()
}

/// Who speaks, as templates call them.
fn role(name: &str) -> &str {
    match name {
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        other => other,
    }
}

/// What is said: a text, or a list of parts that are texts.
fn content(object: &Map<String, Value>, name: &str) -> Result<String, String> {
    let Value::Array(parts) = &object[name] else { return text(object, name).map(str::to_owned) };
    let part = |part: &Value| part["text"].as_str().map(str::to_owned);
    let whole: Option<Vec<String>> = parts.iter().map(part).collect();
    whole
        .map(|parts| parts.concat())
        .ok_or_else(|| format!("\"{name}\" has parts that are no text; only text is read"))
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    object[name].as_str().ok_or_else(|| format!("field \"{name}\" is not a string"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Result<Vec<Row>, String> {
        read(value.as_object().unwrap())
    }

    /// Who says what, as one line.
    fn said(value: Value) -> String {
        let row = |row: Row| match row {
            Row::Talk(messages) => {
                messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join(" | ")
            }
            Row::Text(text) => text,
        };
        of(value).unwrap().into_iter().map(row).collect::<Vec<_>>().join(" & ")
    }

    #[test]
    fn every_usual_layout_is_understood() {
        let want = "user: Q | assistant: A";
        let messages = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
        assert_eq!(said(json!({"messages": messages, "id": 3})), want);
        assert_eq!(
            said(json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})),
            want
        );
        assert_eq!(said(json!({"instruction": "Q", "input": "", "output": "A"})), want);
        assert_eq!(
            said(json!({"instruction": "Q", "input": "I", "output": "A"})),
            "user: Q\n\nI | assistant: A"
        );
        assert_eq!(
            said(json!({"instruction": "Q", "context": null, "response": "A", "category": "x"})),
            want
        );
        assert_eq!(said(json!({"prompt": "Q", "completion": "A"})), want);
        assert_eq!(said(json!({"prompt": [messages[0]], "completion": [messages[1]]})), want);
        assert_eq!(said(json!({"question": "Q", "answer": "A"})), want);
        assert_eq!(
            said(json!({"system": "S", "prompt": "Q", "response": "A"})),
            format!("system: S | {want}")
        );
        assert_eq!(said(json!({"text": "T"})), "T");
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "Q"}]}, messages[1]]);
        assert_eq!(said(json!({ "messages": parts })), want);
        let instances = json!([{"input": "", "output": "A"}, {"input": "I", "output": "B"}]);
        assert_eq!(
            said(json!({"instruction": "Q", "instances": instances})),
            "user: Q | assistant: A & user: Q\n\nI | assistant: B"
        );
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_what_it_has() {
        let refused = |value: Value| of(value).unwrap_err();
        let message = refused(json!({"title": "x", "body": "y"}));
        assert!(message.contains("\"title\", \"body\"; read are messages (a list"), "{message}");
        assert!(refused(json!({"messages": "x"})).contains("\"messages\" is not a list"));
        assert!(refused(json!({"messages": [{"role": "user"}]})).contains("messages[0]: no content"));
        assert!(
            refused(json!({"messages": [{"role": "user", "content": "Q"}]})).contains("nothing to learn")
        );
        assert!(refused(json!({"prompt": 1, "response": "A"})).contains("field \"prompt\" is not a string"));
        let image = json!([{"role": "user", "content": [{"type": "image"}]}]);
        assert!(
            refused(json!({ "messages": image }))
                .contains("messages[0]: \"content\" has parts that are no text")
        );
    }

    /// Rows of the names that are read, with anything in them.
    fn any_row() -> impl Strategy<Value = Map<String, Value>> {
        const NAMES: [&str; 18] = [
            "messages",
            "conversations",
            "instruction",
            "instances",
            "input",
            "context",
            "prompt",
            "question",
            "response",
            "output",
            "completion",
            "answer",
            "text",
            "system",
            "role",
            "from",
            "content",
            "value",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            Just(json!("assistant")),
            Just(json!("gpt")),
            ".{0,4}".prop_map(Value::from),
        ];
        let row = |value: BoxedStrategy<Value>| {
            let pairs = prop::collection::vec((prop::sample::select(&NAMES[..]), value), 0..6);
            pairs.prop_map(|pairs| -> Map<String, Value> {
                pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            })
        };
        let value = leaf.prop_recursive(3, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                row(inner).prop_map(Value::Object),
            ]
        });
        row(value.boxed())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

        #[test]
        fn any_row_is_understood_or_refused_with_a_reason(row in any_row()) {
            match read(&row) {
                Ok(rows) => {
                    let has_answer = |row: &Row| match row {
                        Row::Talk(messages) => messages.iter().any(|message| message.role == "assistant"),
                        Row::Text(_) => true,
                    };
                    prop_assert!(rows.iter().all(has_answer));
                }
                Err(problem) => prop_assert!(!problem.is_empty()),
            }
        }
    }
}
