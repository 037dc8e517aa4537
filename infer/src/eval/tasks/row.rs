//! Rows of a task's file as items: contexts, continuations, and which of them is right.
//!
//! Rows may be laid out as the datasets on Hugging Face have them, or as llm-foundry and OLMo do, who wrote prompts into them;
//! both become lm-eval's prompt. Knows no tokens. Invariant: an item has at least one continuation, none is empty, and the right one
//! is among them.

use std::path::Path;

use serde_json::Value;

use super::Task;
use super::prompt::{capitalized, cleaned};
use crate::{Error, Result};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Context and continuation of each choice; a single one where the words that follow are asked for.
    pub choices: Vec<[String; 2]>,
    /// Characters of each choice without the space in front: what lm-eval divides log-likelihoods by for `acc_norm`.
    pub lengths: Vec<usize>,
    /// The right choice.
    pub gold: usize,
}

/// The first `limit` items of the file of `task` in `dir`, or all.
///
/// # Errors
/// When there is no such file or no row in it, or a row is not one of the task's; names file, line and what is wanted.
pub fn read_items(task: Task, dir: &Path, limit: Option<usize>) -> Result<Vec<Item>> {
    let path = task.file(dir)?;
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("cannot read", &path, e))?;
    let mut items = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if limit.is_some_and(|limit| items.len() >= limit) {
            break;
        }
        let wrong = |problem: String| Error::file(&path, format!("line {}: {problem}", number + 1));
        let row: Value = serde_json::from_str(line).map_err(|e| wrong(format!("is no JSON: {e}")))?;
        items.push(Item::of(task, &row).map_err(wrong)?);
    }
    if items.is_empty() {
        return Err(Error::file(&path, "has no rows; there is nothing to score"));
    }
    Ok(items)
}

impl Item {
    /// What lm-eval asks about `row`.
    ///
    /// # Errors
    /// Names the key that is missing, or what is wrong with it.
    pub fn of(task: Task, row: &Value) -> Result<Self, String> {
        let row = Row { task, row };
        match task {
            Task::LambadaOpenai => row.last_word(),
            Task::Winogrande => row.pronoun(),
            _ if row.has("choices") && row.has("query") => row.prompted(),
            Task::Hellaswag => row.endings(),
            Task::ArcEasy | Task::ArcChallenge => row.lettered(&question(row.text("question")?)),
            Task::Openbookqa => row.lettered(row.text("question_stem")?),
            Task::Piqa => {
                let choices = [row.text("sol1")?, row.text("sol2")?].map(str::to_owned);
                item(&question(row.text("goal")?), choices.into(), row.index("label")?)
            }
            Task::Boolq => {
                let asked = format!("{}?", row.text("question")?);
                let key = if row.has("label") { "label" } else { "answer" };
                item(&passage(row.text("passage")?, &asked), no_yes(), row.index(key)?)
            }
        }
    }
}

/// An item whose choices follow one context.
fn item(context: &str, choices: Vec<String>, gold: usize) -> Result<Item, String> {
    let lengths = choices.iter().map(|choice| choice.chars().count()).collect();
    let choices = choices.into_iter().map(|choice| [context.to_owned(), format!(" {choice}")]).collect();
    Item { choices, lengths, gold }.checked()
}

fn question(text: &str) -> String {
    format!("Question: {text}\nAnswer:")
}

fn passage(passage: &str, question: &str) -> String {
    format!("{passage}\nQuestion: {question}\nAnswer:")
}

fn no_yes() -> Vec<String> {
    ["no", "yes"].map(str::to_owned).into()
}

impl Item {
    fn checked(self) -> Result<Self, String> {
        if let Some(empty) = self.choices.iter().position(|[_, continuation]| continuation.trim().is_empty())
        {
            return Err(format!("choice {empty} is empty"));
        }
        if self.gold >= self.choices.len() {
            let problem = format!("the right choice is {}, of {} choices", self.gold, self.choices.len());
            return Err(problem);
        }
        Ok(self)
    }
}

/// A row of a file, which need not be one.
struct Row<'a> {
    task: Task,
    row: &'a Value,
}

impl<'a> Row<'a> {
    fn has(&self, key: &str) -> bool {
        self.row.get(key).is_some()
    }

    fn get(&self, key: &str) -> Result<&'a Value, String> {
        self.row
            .get(key)
            .ok_or_else(|| format!("has no {key:?}; a row of {} has {}", self.task, wanted(self.task)))
    }

    fn text(&self, key: &str) -> Result<&'a str, String> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| format!("{key:?} is {value}, no text"))
    }

    /// A number, one in quotes, or false and true for 0 and 1.
    fn index(&self, key: &str) -> Result<usize, String> {
        let value = self.get(key)?;
        let number = match value {
            Value::Bool(yes) => Some(usize::from(*yes)),
            Value::String(text) => text.trim().parse().ok(),
            _ => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        number.ok_or_else(|| format!("{key:?} is {value}, no place in a list"))
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, String> {
        texts(self.get(key)?).ok_or_else(|| format!("{key:?} is no list of texts"))
    }

    /// LAMBADA: the last word follows the others.
    fn last_word(&self) -> Result<Item, String> {
        let whole = match self.has("text") {
            true => self.text("text")?.to_owned(),
            false => format!("{} {}", self.text("context")?, self.text("continuation")?),
        };
        let (context, word) = whole.rsplit_once(' ').unwrap_or(("", &whole));
        item(context, vec![word.to_owned()], 0)
    }

    /// WinoGrande: each choice in its place, and what follows is the same.
    fn pronoun(&self) -> Result<Item, String> {
        let (contexts, rest, gold) = if self.has("sentence") {
            let sentence = self.text("sentence")?;
            let blank = sentence.split_once('_').ok_or("its sentence has no _ to fill")?;
            let fill = |key| Ok::<_, String>(format!("{}{}", blank.0, self.text(key)?));
            let answer = self.index("answer")?.checked_sub(1).ok_or("its answer is neither 1 nor 2")?;
            (vec![fill("option1")?, fill("option2")?], blank.1.trim(), answer)
        } else {
            (self.texts("context_options")?, self.text("continuation")?, self.index("gold")?)
        };
        let lengths = contexts.iter().map(|context| context.chars().count()).collect();
        let choices = contexts.into_iter().map(|context| [context, format!(" {rest}")]).collect();
        Item { choices, lengths, gold }.checked()
    }

    /// HellaSwag as it was published.
    fn endings(&self) -> Result<Item, String> {
        let context = format!("{} {}", self.text("ctx_a")?, capitalized(self.text("ctx_b")?));
        let query = cleaned(&format!("{}: {context}", self.text("activity_label")?));
        let endings = self.texts("endings")?.iter().map(|ending| cleaned(ending)).collect();
        item(&query, endings, self.index("label")?)
    }

    /// Choices with letters, of which one is the answer.
    fn lettered(&self, context: &str) -> Result<Item, String> {
        let choices = self.get("choices")?;
        let list = |key: &str| {
            texts(&choices[key]).ok_or_else(|| format!("its \"choices\" have no list of texts {key:?}"))
        };
        let answer = self.text("answerKey")?.trim_start();
        let gold = list("label")?.iter().position(|label| label == answer);
        item(context, list("text")?, gold.ok_or_else(|| format!("no choice is called {answer:?}"))?)
    }

    /// Prompts of llm-foundry and OLMo: lm-eval's, but for what leads to the answer.
    fn prompted(&self) -> Result<Item, String> {
        let query = self.text("query")?;
        let asked = query.strip_suffix('\n').unwrap_or(query);
        let context = match self.task {
            Task::ArcEasy | Task::ArcChallenge | Task::Piqa => format!("{asked}\nAnswer:"),
            Task::Boolq => format!("{}\nAnswer:", asked.strip_prefix("Passage: ").unwrap_or(asked)),
            _ => query.to_owned(),
        };
        item(&context, self.texts("choices")?, self.index("gold")?)
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| Some(text.as_str()?.to_owned())).collect()
}

/// The keys of the two layouts, for people.
fn wanted(task: Task) -> &'static str {
    match task {
        Task::LambadaOpenai => "text; or context and continuation",
        Task::Hellaswag => "activity_label, ctx_a, ctx_b, endings and label; or query, choices and gold",
        Task::ArcEasy | Task::ArcChallenge => "question, choices and answerKey; or query, choices and gold",
        Task::Piqa => "goal, sol1, sol2 and label; or query, choices and gold",
        Task::Winogrande => {
            "sentence, option1, option2 and answer; or context_options, continuation and gold"
        }
        Task::Boolq => "passage, question and label; or query, choices and gold",
        Task::Openbookqa => "question_stem, choices and answerKey; or query, choices and gold",
    }
}
