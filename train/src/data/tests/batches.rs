//! Batches: every window once, the same from any step, another order for every seed and epoch.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::super::{Batch, Batches, Cursor, Tokenization, Tokens};
use super::Folder;

/// A run of tokens 0, 1, 2, … so that an id is its place.
fn counting(tokens: usize) -> (Folder, Tokens) {
    let folder = Folder::new();
    let words: Vec<_> = (0..tokens).map(|i| format!("w{i}")).collect();
    let vocab: Vec<_> = words.iter().enumerate().map(|(i, word)| format!("\"{word}\": {i}")).collect();
    let tokenizer = folder.file(
        "tokenizer.json",
        format!(
            r#"{{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {{"type": "Whitespace"}},
                "post_processor": null, "decoder": null,
                "model": {{"type": "WordLevel", "unk_token": "w0", "vocab": {{{}}}}}}}"#,
            vocab.join(", ")
        ),
    );
    folder.file("a.txt", words.join(" "));
    let corpus = folder.corpus(&["a.txt"], None);
    let request =
        Tokenization { corpus: &corpus, tokenizer: &tokenizer, vocab_size: tokens, bos: None, eos: None };
    let (tokens, _) = request.tokens(folder.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    (folder, tokens)
}

/// First tokens of the rows of a batch, after a check of their content.
fn starts(batch: &Batch) -> Vec<u32> {
    assert_eq!(batch.inputs.len(), batch.rows * batch.context);
    let rows = batch.inputs.chunks(batch.context).zip(batch.targets.chunks(batch.context));
    rows.map(|(inputs, targets)| {
        let first = inputs[0];
        assert!(inputs.iter().copied().eq(first..first + batch.context as u32), "{inputs:?}");
        assert!(targets.iter().copied().eq(first + 1..first + 1 + batch.context as u32), "{targets:?}");
        first
    })
    .collect()
}

/// Starts of the windows of an epoch, in their order. Steps must divide the epoch.
fn epoch(batches: &Batches, number: u64) -> Vec<u32> {
    let steps = batches.steps_per_epoch();
    (number * steps..(number + 1) * steps).flat_map(|step| starts(&batches.at(step))).collect()
}

#[test]
fn an_epoch_visits_each_of_its_windows_once() {
    let (_folder, tokens) = counting(1013);
    let batches = Batches::new(tokens, 10, 4, 7).unwrap();
    assert_eq!((batches.windows_per_epoch(), batches.steps_per_epoch()), (100, 25));
    let mut offsets = BTreeSet::new();
    for number in 0..20 {
        let order = epoch(&batches, number);
        let sorted: BTreeSet<_> = order.iter().copied().collect();
        let offset = *sorted.first().unwrap();
        assert!(offset < 13, "1013 tokens leave 13 offsets for 100 windows of 10");
        assert!(sorted.into_iter().eq((0..100).map(|window| offset + 10 * window)), "epoch {number}");
        assert!(!order.is_sorted(), "epoch {number} is shuffled");
        offsets.insert(offset);
    }
    // 20 draws of 13 offsets leave fewer than 6 different ones once in 100,000; the seed is fixed.
    assert!(offsets.len() >= 6, "epochs begin their windows at {offsets:?}");
    assert_ne!(epoch(&batches, 0), epoch(&batches, 1));
}

#[test]
fn every_short_run_of_tokens_is_served() {
    for len in 5..40 {
        let (_folder, tokens) = counting(len);
        let batches = Batches::new(tokens, 4, 1, 3).unwrap();
        let windows = batches.windows_per_epoch();
        assert!(windows >= 1 && windows as usize * 4 < len);
        let mut unseen: BTreeSet<u32> = (1..len as u32).collect();
        for step in 0..windows * 200 {
            let batch = batches.at(step);
            starts(&batch);
            batch.targets.iter().for_each(|target| _ = unseen.remove(target));
        }
        // Over the epochs the offsets reach every token.
        assert!(unseen.is_empty(), "{unseen:?} of {len} tokens are never a target");
    }
}

#[test]
fn a_run_resumed_at_any_step_goes_on_with_the_same_batches() {
    let (_folder, tokens) = counting(500);
    let whole = Batches::new(tokens.clone(), 7, 3, 11).unwrap();
    let uninterrupted: Vec<_> = (0..80).map(|step| whole.at(step)).collect();
    for stop in [0, 1, 22, 23, 79] {
        let saved = serde_json::to_string(&whole.cursor(stop)).unwrap();
        let resumed = Batches::new(tokens.clone(), 7, 3, 11).unwrap();
        let step = resumed.resume(&serde_json::from_str::<Cursor>(&saved).unwrap()).unwrap();
        assert_eq!(step, stop);
        assert!((step..80).map(|step| resumed.at(step)).eq(uninterrupted[stop as usize..].iter().cloned()));
    }
}

#[test]
fn a_cursor_of_other_data_or_another_seed_is_refused() {
    let (_folder, tokens) = counting(100);
    let (_other_folder, other) = counting(101);
    let cursor = Batches::new(tokens.clone(), 7, 3, 11).unwrap().cursor(5);
    let message = Batches::new(other, 7, 3, 11).unwrap().resume(&cursor).unwrap_err().to_string();
    assert!(message.starts_with(&format!("the checkpoint was made with the tokens {}", &cursor.data[..12])));
    let message = Batches::new(tokens, 7, 3, 12).unwrap().resume(&cursor).unwrap_err().to_string();
    assert_eq!(message, "seed: the checkpoint was made with 11, found 12; restore it, or begin a new run");
}

#[test]
fn parts_of_a_batch_are_its_rows() {
    let (_folder, tokens) = counting(300);
    let batches = Batches::new(tokens, 8, 6, 1).unwrap();
    // Step 5 of 36 windows in batches of 6 is the last of its epoch, step 6 the first of the next.
    for step in [0, 5, 6, 1000] {
        let whole = starts(&batches.at(step));
        let parts = [0..1, 1..4, 4..4, 4..6].map(|rows| starts(&batches.rows(step, rows)));
        assert_eq!(parts.concat(), whole);
    }
}

#[test]
fn a_batch_may_reach_into_the_next_epoch() {
    let (_folder, tokens) = counting(81);
    let ones = Batches::new(tokens.clone(), 10, 1, 5).unwrap();
    let fives = Batches::new(tokens, 10, 5, 5).unwrap();
    assert_eq!(ones.windows_per_epoch(), 7);
    let one_by_one: Vec<_> = (0..35).flat_map(|step| starts(&ones.at(step))).collect();
    let five_by_five: Vec<_> = (0..7).flat_map(|step| starts(&fives.at(step))).collect();
    assert_eq!(one_by_one, five_by_five, "the order does not depend on the batch");
}

#[test]
fn seeds_differ() {
    let (_folder, tokens) = counting(2000);
    let first = |seed| epoch(&Batches::new(tokens.clone(), 10, 1, seed).unwrap(), 0);
    let orders: BTreeSet<_> = (0..50).map(first).collect();
    assert_eq!(orders.len(), 50);
    assert_eq!(first(3), first(3));
}

#[test]
fn a_window_is_equally_likely_at_every_time() {
    // 2,000 seeds, 7 windows, 7 times: a cell expects 285.7 with a standard deviation of 15.6; the largest of 49
    // normal deviates passes 80 (5.1 sigma) once in 60,000 such tables. The seeds are fixed.
    let (_folder, tokens) = counting(89);
    let mut counts = [[0_i32; 7]; 7];
    for seed in 0..2000 {
        let batches = Batches::new(tokens.clone(), 10, 7, seed).unwrap();
        assert_eq!(batches.windows_per_epoch(), 7);
        let order = starts(&batches.at(0));
        let offset = order.iter().min().copied().unwrap();
        for (time, start) in order.into_iter().enumerate() {
            counts[time][(start - offset) as usize / 10] += 1;
        }
    }
    for (time, row) in counts.iter().enumerate() {
        for (window, count) in row.iter().enumerate() {
            assert!((count - 2000 / 7).abs() < 80, "window {window} at time {time}: {count} of 2000");
        }
    }
}

#[test]
fn too_few_tokens_and_empty_batches_are_refused_with_numbers() {
    let (_folder, tokens) = counting(10);
    let refusal = |context, batch| Batches::new(tokens.clone(), context, batch, 0).unwrap_err().to_string();
    assert_eq!(
        refusal(10, 1),
        "10 tokens to train on, but one window takes 11 (a context of 10 and the token after it); add data or \
         lower the context"
    );
    assert!(Batches::new(tokens.clone(), 9, 1, 0).is_ok());
    assert_eq!(refusal(0, 1), "context and batch: want at least 1 each, found 0 and 1");
    assert_eq!(refusal(3, 0), "context and batch: want at least 1 each, found 3 and 0");
}

#[test]
fn fixed_windows_are_cut_alike_in_every_epoch_and_have_their_numbers_whatever_the_seed() {
    let (_folder, tokens) = counting(1003);
    let of = |seed, samples| Batches::new(tokens.clone(), 10, 7, seed).unwrap().fixed(samples);
    let (mut seen, mut orders) = (BTreeSet::new(), Vec::new());
    for (seed, samples) in [(1, 1_000_000), (1, 40), (2, 40)] {
        let batches = of(seed, samples);
        let windows = batches.windows_per_epoch();
        assert_eq!(windows, samples.min(99));
        let mut order = Vec::new();
        for step in 0..2 * windows.div_ceil(7) {
            let batch = batches.at(step);
            for ((start, number), inputs) in
                starts(&batch).iter().zip(&batch.windows).zip(batch.inputs.chunks(10))
            {
                assert!(start % 10 == 0 && *number < windows);
                assert_eq!(batches.numbered(&[*number]).inputs, inputs);
                seen.insert((*number, *start));
                order.push(*number);
            }
        }
        let epoch: BTreeSet<u64> = order[..windows as usize].iter().copied().collect();
        assert_eq!(epoch.len() as u64, windows, "an epoch visits each window once");
        orders.push(order);
    }
    assert_eq!(seen.len(), 99, "a number is one window");
    assert!(orders[1] != orders[2], "the seed has no effect");
    let loose = Batches::new(tokens.clone(), 10, 7, 1).unwrap();
    assert!(loose.at(0).windows.is_empty() && loose.numbered(&[0]).rows == 0);
}
