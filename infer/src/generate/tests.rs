//! Windows, penalties and kept prompts over small models with attention alone, and with convolutions.

use std::ops::ControlFlow;

use super::*;
use crate::cpu::{Cpu, KvType, Model};
use crate::shared::shared;
use crate::{Opened, Runtime};

type Opening<'m> = Box<dyn Fn(usize) -> Box<dyn Sequence + 'm> + 'm>;

/// Opens sequences of the fixture `name`.
fn models() -> Vec<(&'static str, Model)> {
    let open = |root: &std::path::Path, name: &'static str| {
        (name, Opened::open(&root.join(name)).expect("a fixture opens"))
    };
    shared("fixtures").map_or(vec![], |root| ["llama_tied", "lfm2"].map(|name| open(&root, name)).into())
}

fn opening<'m>(model: &'m Model, kv: KvType) -> Opening<'m> {
    Box::new(move |context| Cpu.sequence(&model.decoder, context, kv).expect("a sequence"))
}

fn text(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % 300).collect()
}

fn greedy_text(sequence: &mut dyn Sequence, prompt: &[u32], most: usize) -> Vec<u32> {
    generate(sequence, prompt, most, &[], &Sampling::greedy(), &mut |_| ControlFlow::Continue(()))
        .expect("written")
        .tokens
}

#[test]
fn a_window_predicts_what_follows_the_tokens_that_it_kept() {
    for (name, model) in models() {
        let open = opening(&model, KvType::Int8);
        let mut windowed = Windowed::new(open(40), 40, 4).expect("a window");
        for (at, id) in text(150).iter().enumerate() {
            let logits = windowed.prefill(&[*id]).expect("a token").to_vec();
            if at % 13 == 0 || windowed.kept().len() < 25 {
                let mut fresh = open(40);
                let same = *fresh.prefill(windowed.kept()).expect("kept") == logits;
                assert!(same, "{name}, token {at}: not to the bit");
            }
        }
        assert!(windowed.slides() > 3, "{name}");
        assert_eq!(windowed.kept()[..4], text(4), "the first ones stay");
        assert_eq!(*windowed.kept().last().expect("kept"), text(150)[149]);
        // In one call, and in several: the same.
        let mut at_once = Windowed::new(open(40), 40, 4).expect("a window");
        at_once.prefill(&text(150)).expect("a long text");
        assert_eq!(at_once.kept(), windowed.kept(), "{name}");
    }
}

#[test]
fn a_greedy_text_goes_on_past_the_window_as_token_by_token() {
    for (name, model) in models() {
        let open = opening(&model, KvType::F16);
        let mut windowed = Windowed::new(open(32), 32, 4).expect("a window");
        let written = greedy_text(&mut windowed, &text(10), 100);
        assert_eq!(written.len(), 100, "{name}");
        let mut other = Windowed::new(open(32), 32, 4).expect("a window");
        let (mut next, mut by_hand) = (text(10), Vec::new());
        for _ in 0..100 {
            let id = top1(other.prefill(&next).expect("read")) as u32;
            by_hand.push(id);
            next = vec![id];
        }
        assert_eq!(written, by_hand, "{name}");
        let mut whole = open(200);
        let unbounded = greedy_text(&mut *whole, &text(10), 20);
        assert_eq!(written[..20], unbounded, "{name}: before the window is full nothing differs");
    }
}

#[test]
fn a_window_returns_to_what_two_texts_share() {
    for (name, model) in models() {
        let open = opening(&model, KvType::F32);
        let mut windowed = Windowed::new(open(64), 64, 4).expect("a window");
        windowed.prefill(&text(20)).expect("a text");
        let mut other = text(12);
        other.extend([7, 8, 9]);
        let rest = windowed.return_to(&other).to_vec();
        let shared = if name == "lfm2" { 0 } else { 12 };
        assert_eq!((rest.len(), windowed.kept().len()), (15 - shared, shared), "{name}");
        let logits = windowed.prefill(&rest).expect("the rest").to_vec();
        assert!(*open(64).prefill(&other).expect("all of it") == logits, "{name}");
        assert_eq!(
            windowed.return_to(&other).len(),
            if name == "lfm2" { 15 } else { 1 },
            "the last is read again"
        );
        assert!(Windowed::new(open(64), 64, 33).is_err() && Windowed::new(open(64), 7, 1).is_err());
    }
}

#[test]
fn a_penalty_ends_repetition_and_none_changes_nothing() {
    for (name, model) in models() {
        let open = opening(&model, KvType::F32);
        let write = |penalty: f32, sampling: Sampling| {
            let repetition = Some(Repetition { penalty, last: 64 });
            let writing = Writing { most: 40, stops: &[], sampling, repetition, before: &[] };
            let mut each = |_| ControlFlow::Continue(());
            writing.write(&mut *open(80), &text(6), None, &mut each).expect("written").tokens
        };
        let distinct = |tokens: &[u32]| tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
        let plain = greedy_text(&mut *open(80), &text(6), 40);
        assert_eq!(write(1.0, Sampling::greedy()), plain, "{name}");
        let penalized = write(1e6, Sampling::greedy());
        assert_eq!(distinct(&penalized), 40, "{name}: nothing is said twice");
        assert!(name == "lfm2" || distinct(&plain) < 40, "{name}: without it something is");
        let drawn = Sampling { temperature: 1.0, top_k: 5, top_p: 1.0, min_p: 0.0, seed: 3 };
        assert_eq!(distinct(&write(1e6, drawn)), 40, "{name}: also where one of five is drawn");
    }
}

#[test]
fn watching_changes_nothing_and_sees_what_is_chosen_from() {
    for (name, model) in models() {
        let open = opening(&model, KvType::F32);
        let (mut seen, mut each) = (Vec::new(), |_| ControlFlow::Continue(()));
        let writing =
            Writing { most: 12, stops: &[], sampling: Sampling::greedy(), repetition: None, before: &[] };
        let mut watch = |logits: &[f32]| seen.push(top1(logits) as u32);
        let watched = writing.write(&mut *open(40), &text(6), Some(&mut watch), &mut each).expect("written");
        assert_eq!(watched.tokens, greedy_text(&mut *open(40), &text(6), 12), "{name}");
        assert_eq!(watched.tokens, seen, "{name}");
    }
}

#[test]
fn a_kept_prompt_goes_on_to_the_bit_and_only_where_it_belongs() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, model) in models() {
        let identity = model_identity(&model).expect("an identity");
        for kv in KvType::ALL {
            let open = opening(&model, kv);
            let (path, read, whole) = (folder.path().join(format!("{name}-{kv}")), text(70), text(90));
            let mut first = open(100);
            first.hidden(&read).expect("read");
            save_past(&path, &identity, &read, &mut *first).expect("kept");
            let want = first.prefill(&whole[70..]).expect("the rest").to_vec();
            // A longer context lays out the same.
            let mut second = open(128);
            second.prefill(&[5]).expect("something else");
            let ids = load_past(&path, &identity, &whole, &mut *second).expect("loaded");
            assert_eq!((ids.len(), second.position()), (70, 70));
            assert!(*second.prefill(&whole[70..]).expect("the rest") == want, "{name}, {kv}: to the bit");

            let refuse = |model: &str, prompt: &[u32], context: usize, part: &str| {
                let refused =
                    load_past(&path, model, prompt, &mut *open(context)).expect_err(part).to_string();
                assert!(refused.contains(part), "{part:?} is not in {refused}");
            };
            refuse("another", &whole, 100, "another model");
            refuse(&identity, &text(70), 100, "doesn't begin with");
            refuse(&identity, &whole[1..], 100, "part after 0");
            refuse(&identity, &whole, 60, "room for 60");
            let other = if kv == KvType::F16 { KvType::F32 } else { KvType::F16 };
            let mut sequence = opening(&model, other)(100);
            let refused = load_past(&path, &identity, &whole, &mut *sequence).expect_err("another type");
            assert!(refused.to_string().contains("another runtime"), "{refused}");
        }
        let whole = std::fs::read(folder.path().join(format!("{name}-int4"))).expect("a file");
        let damaged = folder.path().join("damaged");
        let refuse = |bytes: &[u8], part: &str| {
            std::fs::write(&damaged, bytes).expect("written");
            let open = opening(&model, KvType::Int4);
            let refused =
                load_past(&damaged, &identity, &text(90), &mut *open(100)).expect_err(part).to_string();
            assert!(refused.contains(part), "{part:?} is not in {refused}");
        };
        for cut in [0, 3, 15, 18, 40, whole.len() / 2, whole.len() - 1] {
            refuse(&whole[..cut], if cut < 16 { "no prompt cache" } else { "cut off" });
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().expect("a byte") ^= 1;
        refuse(&flipped, "damaged");
        refuse(&[&whole[..], &[0]].concat(), "damaged");
        refuse(&[&whole[..16], &[0xff; 4], &whole[20..]].concat(), "damaged");
    }
}
