//! Conversations: what of them is learned, how they lie in windows, and what is refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::{Batches, Census, ChatTokenization, Corpus, Frame, Lost, Marked, Origin, Tokens};
use super::Folder;
use crate::{
    Error, Result,
    ranks::{Ranks, threads::together},
};

/// One id for each of a few words, and two marks of a chat template.
const WORDS: &str = r#"{"version": "1.0", "normalizer": null,
    "added_tokens": [{"id": 6, "content": "<ask>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
                     {"id": 7, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "unk_token": "[UNK]",
              "vocab": {"[UNK]": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}}}"#;

const TEMPLATE: &str = "{% for m in messages %}{{ '<ask> ' if m.role == 'user' else ' ' }}{{ m.content }}\
                        {{ ' <end>' if m.role == 'assistant' else '' }}{% endfor %}";

/// A folder with a tokenizer, a template and the rows `lines` in a.jsonl.
struct Place {
    folder: Folder,
    tokenizer: PathBuf,
}

impl Place {
    fn new(lines: &str) -> Self {
        let folder = Folder::new();
        folder.file("a.jsonl", lines);
        folder.file("chat_template.jinja", TEMPLATE);
        let tokenizer = folder.file("tokenizer.json", WORDS);
        Self { folder, tokenizer }
    }

    fn how<'a>(&'a self, corpus: &'a Corpus, frame: &'a Frame, window: usize) -> ChatTokenization<'a> {
        let (tokenizer, eos) = (&self.tokenizer, Some(9));
        ChatTokenization {
            corpus,
            tokenizer,
            vocab_size: 10,
            frame,
            learn_all: false,
            bos: None,
            eos,
            window,
        }
    }

    fn tokens(
        &self,
        frame: &str,
        window: usize,
        change: impl Fn(&mut ChatTokenization),
    ) -> Result<(Tokens, Origin, Option<Lost>)> {
        let corpus = self.folder.corpus(&["a.jsonl"], None);
        let frame = Frame::of(frame, self.folder.path())?;
        let mut how = self.how(&corpus, &frame, window);
        change(&mut how);
        how.tokens_on(&Ranks::alone(), &self.folder.path().join("cache"), &mut |_| ControlFlow::Continue(()))
    }

    /// The bytes of the file that `size` ranks make, and what the first knows was lost; or why each has none.
    fn made_by(&self, size: usize) -> Vec<Result<(Vec<u8>, Option<Lost>)>> {
        let corpus = self.folder.corpus(&["a.jsonl"], None);
        let frame = Frame::of("model", self.folder.path()).unwrap();
        let how = self.how(&corpus, &frame, 9);
        let cache = self.folder.path().join(size.to_string());
        together(size, |ranks| {
            let (tokens, origin, lost) = how.tokens_on(&ranks, &cache, &mut |_| ControlFlow::Continue(()))?;
            assert!(ranks.rank() > 0 || origin == Origin::Made, "{origin:?}");
            Ok((std::fs::read(tokens.path()).unwrap(), lost.filter(|_| ranks.is_first())))
        })
    }

    fn refused(&self, frame: &str, window: usize) -> String {
        self.tokens(frame, window, |_| ()).unwrap_err().to_string()
    }
}

/// Each token with `!` where it is learned, `|` where a document begins, `.` where it fills a window.
fn told(tokens: &Tokens) -> String {
    let token = |token: Marked| {
        let mark = |is: bool, mark: &str| if is { mark.to_owned() } else { String::new() };
        format!(
            "{}{}{}{}",
            mark(token.begins, "|"),
            mark(token.fills, "."),
            token.id,
            mark(token.learned, "!")
        )
    };
    tokens.marked(0..tokens.len()).into_iter().map(token).collect::<Vec<_>>().join(" ")
}

const TWO_TURNS: &str = r#"{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}, {"role": "user", "content": "four"}, {"role": "assistant", "content": "five"}]}"#;

#[test]
fn answers_are_learned_with_the_mark_that_ends_them_and_questions_are_not() {
    let place = Place::new(TWO_TURNS);
    let (tokens, origin, lost) = place.tokens("model", 10, |_| ()).unwrap();
    assert_eq!(told(&tokens), "|6 1 2! 3! 7! 6 4 5! 7! .9");
    assert_eq!((origin, lost), (Origin::Made, Some(Lost::default())));
    let census = Census { documents: 1, tokens: 9, learned: 5, fill: 1, cut: 0 };
    assert_eq!(tokens.census(), census);
    let (_, origin, lost) = place.tokens("model", 10, |_| ()).unwrap();
    assert_eq!((origin, lost), (Origin::Reused, None));
    let (tokens, ..) = place.tokens("model", 10, |how| how.learn_all = true).unwrap();
    assert_eq!(told(&tokens), "|6 1! 2! 3! 7! 6! 4! 5! 7! .9");
}

#[test]
fn without_a_template_an_answer_follows_its_question_and_a_mark_follows_it() {
    let place = Place::new("{\"prompt\": \"one two\", \"response\": \"three\"}\n{\"text\": \"four five\"}\n");
    let (tokens, ..) = place.tokens("plain", 8, |how| how.bos = Some(8)).unwrap();
    assert_eq!(told(&tokens), "|8 1 2 3! 9! .9 .9 .9 |8 4! 5! 9! .9 .9 .9 .9");
    let place = Place::new(TWO_TURNS);
    assert!(place.refused("plain", 8).contains(
        "a.jsonl: line 1: data.template = \"plain\" writes a question and its answer, and here are 4"
    ));
}

#[test]
fn batches_learn_answers_and_keep_documents_apart() {
    let rows = "{\"prompt\": \"one\", \"response\": \"two\"}\n{\"prompt\": \"three four\", \"response\": \"five\"}\n";
    let place = Place::new(rows);
    let (tokens, ..) = place.tokens("model", 10, |_| ()).unwrap();
    assert_eq!(told(&tokens), "|6 1 2! 7! |6 3 4 5! 7! .9");
    let batch = Batches::new(tokens, 9, 1, 0).unwrap().at(0);
    assert_eq!(batch.inputs, [6, 1, 2, 7, 6, 3, 4, 5, 7]);
    assert_eq!(batch.targets, [1, 2, 7, 6, 3, 4, 5, 7, 9]);
    let packed = batch.packed.as_ref().unwrap();
    assert_eq!(packed.borders.firsts(), [0, 0, 0, 0, 4, 4, 4, 4, 4]);
    assert_eq!(packed.learned, [1, 2, 6, 7], "rows whose targets are learned");
    assert_eq!(batch.learned(), 4);
}

#[test]
fn several_ranks_make_the_windows_that_one_makes_and_say_together_what_is_wrong() {
    let answers = ["two", "three four", "five", "one two three four five one two three"];
    let row = |i: usize| format!("{{\"prompt\": \"one\", \"response\": \"{}\"}}\n", answers[i % 4]);
    // More than are read at a time.
    let rows: Vec<String> = (0..5000).map(row).collect();
    let place = Place::new(&rows.concat());
    let alone = place.made_by(1).remove(0).unwrap();
    assert!(alone.1.is_some_and(|lost| lost.cut > 0), "{:?}", alone.1);
    let three: Vec<_> = place.made_by(3).into_iter().map(Result::unwrap).collect();
    assert!(three.iter().all(|(bytes, _)| *bytes == alone.0));
    assert_eq!(three.iter().map(|(_, lost)| *lost).collect::<Vec<_>>(), [alone.1, None, None]);

    let bad = [&rows[..4000], &["{\"prompt\": 1}\n".to_owned()], &rows[4000..]].concat();
    let ends = Place::new(&bad.concat()).made_by(3);
    let messages: Vec<String> = ends.iter().map(|end| end.as_ref().unwrap_err().to_string()).collect();
    assert!(messages.iter().all(|message| message.contains("a.jsonl: line 4001: ")), "{messages:?}");
    let elsewhere = ends.iter().filter(|end| matches!(end, Err(Error::Elsewhere { .. }))).count();
    assert_eq!(elsewhere, 2, "one rank has the row");
}

#[test]
fn an_epoch_visits_every_window_once_and_they_are_never_cut_elsewhere() {
    let rows: String = (0..40)
        .map(|i| {
            format!("{{\"prompt\": \"one\", \"response\": \"{}\"}}\n", ["two", "three four", "five"][i % 3])
        })
        .collect();
    let place = Place::new(&rows);
    let (tokens, ..) = place.tokens("model", 9, |_| ()).unwrap();
    let windows: Vec<Vec<u32>> = tokens
        .marked(0..tokens.len())
        .chunks(9)
        .map(|w| w[..8].iter().map(|token| token.id).collect())
        .collect();
    let batches = Batches::new(tokens, 8, 1, 3).unwrap();
    let epoch = batches.windows_per_epoch();
    assert_eq!(epoch as usize, windows.len());
    for begin in [0, epoch] {
        let mut seen: Vec<Vec<u32>> = (begin..begin + epoch).map(|step| batches.at(step).inputs).collect();
        let mut all = windows.clone();
        seen.sort();
        all.sort();
        assert_eq!(seen, all);
    }
}

#[test]
fn what_is_too_long_is_cut_and_counted_and_what_has_no_answer_left_is_left_out() {
    let place = Place::new(&format!(
        "{TWO_TURNS}\n{{\"prompt\": \"one one one one one one\", \"response\": \"two\"}}\n{{\"prompt\": \"one\", \"response\": \"two\"}}\n"
    ));
    let (tokens, _, lost) = place.tokens("model", 5, |_| ()).unwrap();
    assert_eq!(told(&tokens), "|6 1 2! 3! 7! |6 1 2! 7! .9");
    assert_eq!(lost, Some(Lost { cut: 1, tokens: 4, left_out: 1 }));
    assert_eq!(tokens.census().cut, 1);
    let place = Place::new("{\"prompt\": \"one one one one\", \"response\": \"two\"}\n");
    assert!(
        place
            .refused("model", 4)
            .contains("no conversation with something to learn in a window of 4 tokens (1 left out)")
    );
}

#[test]
fn rows_that_are_no_conversations_are_refused_by_line() {
    let refused = |lines: &str| Place::new(lines).refused("model", 8);
    let good = "{\"prompt\": \"one\", \"response\": \"two\"}\n";
    let message = refused(&format!("{good}\n{{\"title\": 3}}\n"));
    assert!(
        message.contains(
            "a.jsonl: line 3: no layout of chat data has these fields: \"title\"; read are messages"
        ),
        "{message}"
    );
    assert!(
        refused(&format!("{good}[1]\n")).contains("a.jsonl: line 2: want an object such as {\"messages\"")
    );
    assert!(refused(&format!("{good}{{]\n")).contains("a.jsonl: line 2: not JSON"));
}

#[test]
fn a_template_that_hides_answers_or_is_not_there_is_refused() {
    let place = Place::new("{\"prompt\": \"one\", \"response\": \"two\"}\n");
    place.folder.file("upper.jinja", "{% for m in messages %}{{ m.content | upper }}{% endfor %}");
    let upper = place.folder.path().join("upper.jinja");
    let message = place.refused(upper.to_str().unwrap(), 8);
    assert!(
        message.contains("a.jsonl: line 1: the chat template rewrites this conversation")
            && message.contains("data.learn = \"all\""),
        "{message}"
    );
    std::fs::remove_file(place.folder.path().join("chat_template.jinja")).unwrap();
    assert!(place.refused("model", 8).contains("the model has no chat template; name a file with one"));
    assert!(
        place
            .refused("nowhere.jinja", 8)
            .contains("data.template = \"nowhere.jinja\": want model, plain or the file of a template")
    );
    assert!(Frame::of("plain", Path::new("nowhere")).is_ok());
}

#[test]
fn other_windows_templates_and_marks_are_other_files() {
    let place = Place::new(TWO_TURNS);
    let path = |frame: &str, window: usize, change: &dyn Fn(&mut ChatTokenization)| {
        place.tokens(frame, window, |how| change(how)).unwrap().0.path().to_owned()
    };
    let first = path("model", 10, &|_| ());
    assert_ne!(first, path("model", 11, &|_| ()));
    assert_ne!(first, path("model", 10, &|how| how.learn_all = true));
    assert_ne!(first, path("model", 10, &|how| how.eos = None));
    place.folder.file("chat_template.jinja", format!("{TEMPLATE}{{# another #}}"));
    assert_ne!(first, path("model", 10, &|_| ()));
}

/// Writes conversations as Parquet has them: a list of structures in each row.
fn write_nested(path: &Path, rows: &[&[(&str, &str)]]) {
    let schema = "message m { optional group messages (LIST) { repeated group list { optional group element { \
                  optional binary role (STRING); optional binary content (STRING); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    // Everything is there: a definition of 4; a message that doesn't begin a row repeats.
    let repetitions: Vec<i16> =
        rows.iter().flat_map(|row| (0..row.len()).map(|at| i16::from(at > 0))).collect();
    let definitions = vec![4; repetitions.len()];
    for part in [|said: &(&str, &str)| said.0.to_owned(), |said: &(&str, &str)| said.1.to_owned()] {
        let values: Vec<ByteArray> =
            rows.iter().flat_map(|row| row.iter().map(|said| ByteArray::from(&*part(said)))).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&values, Some(&definitions), Some(&repetitions)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_holds_the_same_conversations_and_names_its_rows() {
    let place = Place::new(TWO_TURNS);
    let turns = [("user", "one"), ("assistant", "two three"), ("user", "four"), ("assistant", "five")];
    let path = place.folder.path().join("a.parquet");
    let tokens = || {
        let corpus = place.folder.corpus(&["a.parquet"], None);
        let frame = Frame::of("model", place.folder.path()).unwrap();
        let how = place.how(&corpus, &frame, 10);
        how.tokens_on(&Ranks::alone(), &place.folder.path().join("cache"), &mut |_| ControlFlow::Continue(()))
    };
    write_nested(&path, &[&turns]);
    assert_eq!(told(&tokens().unwrap().0), "|6 1 2! 3! 7! 6 4 5! 7! .9");
    write_nested(&path, &[&turns, &turns[..1]]);
    let message = tokens().unwrap_err().to_string();
    assert!(message.contains("a.parquet: row 2: no message of the assistant"), "{message}");
}
