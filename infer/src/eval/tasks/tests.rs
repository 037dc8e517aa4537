//! Rows become the same items in both layouts, choices are judged as if each stood alone, and scores are those worked out by hand.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::cpu::{KvType, Model, RunOptions, Session};
use crate::shared::shared;

fn item(task: Task, row: &Value) -> Item {
    Item::of(task, row).unwrap_or_else(|e| panic!("{task}: {e}"))
}

#[test]
fn rows_of_both_layouts_become_the_same_prompts() {
    let lettered = json!({"text": ["ice", "iron"], "label": ["1", "2"]});
    let science = json!({"question": "What melts?", "choices": lettered, "answerKey": "2"});
    let prompted = json!({"query": "Question: What melts?", "choices": ["ice", "iron"], "gold": 1});
    let arc = item(Task::ArcEasy, &science);
    assert_eq!(arc.choices[1], ["Question: What melts?\nAnswer:".to_owned(), " iron".to_owned()]);
    assert_eq!((arc.gold, &arc.lengths[..]), (1, &[3, 4][..]), "the space in front doesn't count");
    assert_eq!(arc, item(Task::ArcChallenge, &prompted));
    for (task, published, theirs) in [
        (Task::LambadaOpenai, json!({"text": "a b  c"}), json!({"context": "a b ", "continuation": "c"})),
        (
            Task::Hellaswag,
            json!({"activity_label": "Home", "ctx_a": "How [title] Clean.", "ctx_b": "a MAN", "label": "1",
                   "endings": ["[step] runs.", "é"]}),
            json!({"query": "Home: How. Clean. A man", "choices": [" runs.", "é"], "gold": 1}),
        ),
        (
            Task::Piqa,
            json!({"goal": "open it", "sol1": "push", "sol2": "pull", "label": 0}),
            json!({"query": "Question: open it\n", "choices": ["push", "pull"], "gold": 0}),
        ),
        (
            Task::Winogrande,
            json!({"sentence": "Ann met Eve and _ left.", "option1": "Ann", "option2": "Eve", "answer": "2"}),
            json!({"context_options": ["Ann met Eve and Ann", "Ann met Eve and Eve"], "continuation": "left.", "gold": 1}),
        ),
        (
            Task::Boolq,
            json!({"passage": "Iron rusts.", "question": "does iron rust", "label": 1}),
            json!({"query": "Passage: Iron rusts.\nQuestion: does iron rust?", "choices": ["no", "yes"], "gold": 1}),
        ),
        (
            Task::Boolq,
            json!({"passage": "Iron rusts.", "question": "does iron rust", "answer": true}),
            json!({"query": "Passage: Iron rusts.\nQuestion: does iron rust?", "choices": ["no", "yes"], "gold": 1}),
        ),
        (
            Task::Openbookqa,
            json!({"question_stem": "A fox eats", "choices": {"text": ["mice", "tin"], "label": ["A", "B"]}, "answerKey": "A"}),
            json!({"query": "A fox eats", "choices": ["mice", "tin"], "gold": 0}),
        ),
    ] {
        assert_eq!(item(task, &published), item(task, &theirs), "{task}");
    }
    assert_eq!(item(Task::Hellaswag, &json!({"query": "a", "choices": ["é"], "gold": 0})).lengths, [1]);
    assert_eq!(
        item(Task::LambadaOpenai, &json!({"text": "one"})).choices,
        [["".to_owned(), " one".to_owned()]]
    );
}

#[test]
fn a_row_that_is_not_one_says_what_it_lacks() {
    for (task, row, part) in [
        (Task::Piqa, json!({"goal": "a"}), "\"sol1\"; a row of piqa has goal, sol1, sol2 and label"),
        (Task::Piqa, json!({"query": "a", "choices": ["b"], "gold": 1}), "the right choice is 1, of 1"),
        (Task::Piqa, json!({"query": "a", "choices": ["b", " "], "gold": 0}), "choice 1 is empty"),
        (Task::Piqa, json!({"query": "a", "choices": "b", "gold": 0}), "no list of texts"),
        (Task::Winogrande, json!({"sentence": "a b"}), "no _ to fill"),
        (Task::Boolq, json!({"passage": "a", "question": "b", "label": -1}), "\"label\" is -1"),
        (
            Task::ArcEasy,
            json!({"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "C"}),
            "\"C\"",
        ),
        (Task::LambadaOpenai, json!([1]), "\"context\""),
    ] {
        let refused = Item::of(task, &row).expect_err("refused");
        assert!(refused.contains(part), "{task}: {refused}");
    }
}

/// A fixture with its tokens for `texts`, context and continuation each, as the choices of one item.
fn asked(name: &str, texts: &[[&str; 2]], context: usize) -> Option<(Model, Tokens)> {
    let model = shared("fixtures").map(|root| Model::open(&root.join(name)).expect("a fixture opens"))?;
    let choices = texts.iter().map(|pair| pair.map(str::to_owned)).collect();
    let item = Item { choices, lengths: vec![1; texts.len()], gold: 0 };
    let tokens =
        requests(&[item], &model.tokenizer().expect("a tokenizer"), Some(3), context).expect("tokens");
    Some((model, tokens))
}

#[test]
fn choices_that_share_a_beginning_are_judged_as_if_each_stood_alone() {
    let pairs = [
        ["The small model runs on the", " phone"],
        ["The small model runs on the", " phone and the tablet"],
        ["The small model runs on the", " p"],
        ["The small model walks", " on the phone"],
        ["The small model runs on the", " phone"],
    ];
    // With attention alone the common beginning is kept; what convolutions remember is read anew.
    for name in ["llama_tied", "lfm2"] {
        let Some((model, tokens)) = asked(name, &pairs, 100) else { return };
        let requests = &tokens.items[0];
        let mut session =
            Session::new(&model.decoder, &RunOptions::new(100).with_kv(KvType::F32)).expect("fits");
        let together = judge(&mut session, requests).expect("judged");
        for (request, found) in requests.iter().zip(&together) {
            let alone = judge(&mut session, std::slice::from_ref(request)).expect("judged");
            assert_eq!(alone, [*found], "{name}: the same bits");
            let by_hand = log_likelihood(&mut session, request);
            // Each token's logits are subtracted in f32 here, and not there: half a unit in the 22nd place.
            assert!((by_hand - found.log).abs() < 1e-6, "{name}: {by_hand}, found {}", found.log);
        }
        assert_eq!(together[0], together[4]);
        assert!(together[1].log < together[0].log, "more words are less likely");
    }
}

/// Token by token.
fn log_likelihood(session: &mut Session<'_>, request: &Request) -> f64 {
    session.reset();
    let mut sum = 0.0;
    for (at, pair) in request.ids.windows(2).enumerate() {
        let logits = session.prefill(&pair[..1]).expect("a token");
        if at + 1 >= request.ids.len() - request.continuation {
            let all: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum += f64::from(logits[pair[1] as usize]) - all.ln();
        }
    }
    sum
}

#[test]
fn a_context_is_cut_at_its_beginning_and_white_space_goes_to_what_follows() {
    let texts = [["The small model  ", " runs"], ["", " runs"], ["The small model", "   runs"]];
    let Some((model, whole)) = asked("llama_tied", &texts, 2048) else { return };
    let [spaced, alone, moved] = &whole.items[0][..] else { panic!("three choices") };
    assert_eq!(spaced, moved, "the same text, cut at the same place");
    assert_eq!((alone.ids[0], alone.continuation), (3, alone.ids.len() - 1), "something stands in front");
    let longest = spaced.ids.len();
    let item = Item { choices: vec![texts[0].map(str::to_owned)], lengths: vec![1], gold: 0 };
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let fitted = requests(std::slice::from_ref(&item), &tokenizer, None, longest - 2).expect("fits");
    assert_eq!((fitted.truncated, fitted.longest()), (1, longest - 2), "the last id is not read");
    assert_eq!(fitted.items[0][0].ids, spaced.ids[1..]);
    let refused = requests(&[item], &tokenizer, None, 1).expect_err("refused").to_string();
    assert!(refused.contains("item 1") && refused.contains("the context 1"), "{refused}");
}

fn scored(task: Task, logs: &[f64], lengths: &[usize], gold: usize) -> ItemScore {
    let choices = vec![["".to_owned(), "x".to_owned()]; logs.len()];
    let likelihoods: Vec<Likelihood> =
        logs.iter().map(|log| Likelihood { log: *log, greedy: *log > -1.0 }).collect();
    ItemScore::of(task, &Item { choices, lengths: lengths.to_vec(), gold }, &likelihoods)
}

#[test]
fn scores_are_those_worked_out_by_hand() {
    let task = Task::Piqa;
    // Per character the second choice is the likelier one; of equal ones the first counts.
    let items = [
        scored(task, &[-2.0, -3.0], &[2, 6], 0),
        scored(task, &[-2.0, -3.0], &[2, 6], 1),
        scored(task, &[-4.0, -4.0], &[4, 4], 0),
        scored(task, &[-5.0, -4.0], &[5, 4], 0),
    ];
    assert_eq!(items.each_ref().map(|item| item.acc), [1.0, 0.0, 1.0, 0.0]);
    assert_eq!(items.each_ref().map(|item| item.acc_norm), [Some(0.0), Some(1.0), Some(1.0), Some(1.0)]);
    let reference = [items[0].clone(), items[0].clone(), items[2].clone(), items[3].clone()];
    let score = TaskScore::of(task, &items, 0, Some(&reference));
    // Two of four right: sqrt(4 · ¼ / 3 / 4).
    assert!((score.acc - 0.5).abs() < 1e-12 && (score.acc_se - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
    assert_eq!((score.acc_norm, score.perplexity), (Some(0.75), None));
    let versus = score.versus.expect("a reference");
    // One of four lost: −¼ ± sqrt((3 · (¼)² + (¾)²) / 3 / 4).
    assert!((versus.delta_acc + 0.25).abs() < 1e-12 && (versus.delta_acc_se - 0.25).abs() < 1e-12);
    assert_eq!(versus.same_answer, 1.0, "per character both answer alike");

    let words = [-0.5, -2.0].map(|log| scored(Task::LambadaOpenai, &[log], &[1], 0));
    let score = TaskScore::of(Task::LambadaOpenai, &words, 0, None);
    assert_eq!((score.acc, score.acc_norm), (0.5, None), "the greedy one is right");
    assert!(score.perplexity.is_some_and(|perplexity| (perplexity - 1.25f64.exp()).abs() < 1e-12));
}

#[test]
fn gates_name_a_task_and_a_number_that_it_has() {
    let items = vec![scored(Task::Piqa, &[-2.0, -3.0], &[2, 6], 0)];
    let score = TaskScore::of(Task::Piqa, &items, 0, None);
    let runs = [Run { task: Task::Piqa, score, items, reference: None }];
    let gate = |text: &str| text.parse::<TaskGate>().map_err(|e| e.to_string());
    let check = |text: &str| gate(text)?.check(&runs).map_err(|e| e.to_string());
    assert_eq!(check("piqa.acc>=1"), Ok((1.0, true)));
    assert_eq!(check("piqa.acc_norm>0.5"), Ok((0.0, false)));
    for (text, part) in [
        ("pica.acc>0", "no task \"pica\"; there are lambada_openai"),
        ("piqa.acy>0", "no \"acy\"; there are acc, acc_norm"),
        ("piqa.acc=0", "a single ="),
        ("piqa.delta_acc>0", "--against DIR"),
        ("piqa.perplexity<9", "no such number"),
        ("boolq.acc>0", "not among --tasks"),
    ] {
        let refused = check(text).expect_err("refused");
        assert!(refused.contains(part), "{text}: {refused}");
    }
    assert!(TaskGate::is_meant("piqa.acc>0") && !TaskGate::is_meant("kl<0.05"));
}

/// Rows of the names that are read, with anything in them.
fn any_row() -> impl Strategy<Value = Value> {
    const NAMES: [&str; 24] = [
        "text",
        "context",
        "continuation",
        "activity_label",
        "ctx_a",
        "ctx_b",
        "endings",
        "label",
        "query",
        "choices",
        "gold",
        "question",
        "answerKey",
        "goal",
        "sol1",
        "sol2",
        "sentence",
        "option1",
        "option2",
        "answer",
        "context_options",
        "passage",
        "question_stem",
        "zz",
    ];
    let texts = || prop_oneof![Just("1".to_owned()), Just("a [b] _ ".to_owned()), ".{0,6}"];
    let value = prop_oneof![
        Just(Value::Null),
        (-1i64..4).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        texts().prop_map(Value::from),
        prop::collection::vec(texts(), 0..4).prop_map(Value::from),
        prop::collection::vec(texts(), 0..4).prop_map(|list| json!({ "text": list, "label": list })),
    ];
    let pairs = prop::collection::vec((prop::sample::select(&NAMES[..]), value), 0..20);
    pairs.prop_map(|pairs| {
        Value::Object(pairs.into_iter().map(|(name, v)| (name.to_owned(), v)).collect::<Map<_, _>>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn any_row_is_an_item_or_refused_with_a_reason(row in any_row()) {
        for task in Task::ALL {
            match Item::of(task, &row) {
                Ok(item) => {
                    prop_assert!(item.gold < item.choices.len() && item.choices.len() == item.lengths.len());
                    prop_assert!(item.choices.iter().all(|[_, continuation]| !continuation.trim().is_empty()));
                }
                Err(problem) => prop_assert!(!problem.is_empty()),
            }
        }
    }
}
