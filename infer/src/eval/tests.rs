//! Scores against numbers that were measured elsewhere or can be worked out by hand.

use super::*;
use crate::Sequence;
use crate::cpu::{Cpu, KvType, Model, RunOptions, Session};
use crate::shared::shared;

fn fixture(name: &str) -> Option<Model> {
    shared("fixtures").map(|root| Model::open(&root.join(name)).expect("a fixture opens"))
}

fn text_of(model: &Model, text: &str) -> Text {
    Text::encode(&model.tokenizer().expect("tokenizer"), text).expect("text")
}

fn score_of(model: &Model, reference: Option<&Model>, text: &Text, protocol: Protocol) -> Score {
    let windows = Windows::new(text, protocol).expect("windows");
    let open =
        |model| Session::new(model, &RunOptions::new(windows.tokens()).with_kv(KvType::F32)).expect("fits");
    let mut compared = reference.map(|reference| open(&reference.decoder));
    let compared = compared.as_mut().map(|session| session as &mut dyn Sequence);
    score(&mut open(&model.decoder), compared, &windows, &mut |_, _| ()).expect("score")
}

const SENTENCES: &str = "The small model runs on the phone. Count: 1, 23, 456 and 7890! It's  spaced\n\n\tand naïve \
    café ☕ 日本. Sensors don't lie, we'll see 3.14; the teacher can't find a ternary weight at night.";

#[test]
fn the_perplexities_of_transformers_are_reproduced() {
    let Some(data) = shared("data") else { return };
    let text = std::fs::read_to_string(data.join("text/tinystories_valid.txt")).expect("text");
    // f32, transformers, the same protocol (shared/data/README.md).
    for (name, want) in [("stories260K", 5.0962), ("tinystories-656k", 39.2590)] {
        let model = Model::open(&data.join("weights").join(name)).expect("model");
        let text = text_of(&model, &text);
        let score = score_of(&model, None, &text, Protocol { ctx: 512, bos: None });
        let found = score.perplexity();
        println!(
            "{name}: {found:.6} ± {:.4}, {:.4} bits per byte",
            score.perplexity_se(),
            score.bits_per_byte()
        );
        // Four decimals were printed; f32 sums in another order move the mean of 10⁵ tokens by far less than that.
        assert!((found - want).abs() < 1e-4, "{name}: {found}, want {want}");
        assert_eq!(score.tokens, score.windows * 511);
        assert_eq!(score.per_window.len(), score.windows);
        let of_windows = score.per_window.iter().map(|w| w.nll).sum::<f64>() / score.windows as f64;
        assert!((of_windows - score.nll.mean).abs() < 1e-12, "windows of equal length average to the whole");
        assert!(score.nll_clustered_se.is_some_and(|se| se > score.nll.se), "stories differ in difficulty");
    }
}

#[test]
fn windows_don_t_overlap_and_the_tail_is_dropped() {
    let Some(model) = fixture("llama_tied") else { return };
    let text = text_of(&model, SENTENCES);
    let ids = text.ids();
    let mut window = Vec::new();

    let plain = Windows::new(&text, Protocol { ctx: 20, bos: None }).expect("windows");
    assert_eq!((plain.count(), plain.tokens(), plain.scored()), (ids.len() / 20, 20, 19));
    assert!(!ids.len().is_multiple_of(20), "there is a tail");
    plain.fill(1, &mut window);
    assert_eq!(window, ids[20..40]);

    let begun = Windows::new(&text, Protocol { ctx: 20, bos: Some(508) }).expect("windows");
    assert_eq!((begun.count(), begun.tokens(), begun.scored()), (ids.len() / 19, 20, 19));
    begun.fill(1, &mut window);
    assert_eq!((window[0], &window[1..]), (508, &ids[19..38]));

    let short = Windows::new(&text, Protocol { ctx: 2048, bos: None }).expect("windows");
    assert_eq!((short.count(), short.tokens()), (1, ids.len()));
}

#[test]
fn scored_bytes_are_those_behind_the_first_token_of_each_window() {
    let Some(model) = fixture("llama_tied") else { return };
    let text = text_of(&model, "The small model");
    let tokenizer = model.tokenizer().expect("tokenizer");
    let first = tokenizer.decode(&text.ids()[..1], false).expect("a token").len();
    let whole = |bos| Windows::new(&text, Protocol { ctx: 512, bos }).expect("windows").scored_bytes();
    assert_eq!(whole(None), "The small model".len() - first);
    assert_eq!(whole(Some(508)), "The small model".len());
    // The parts of a character of three bytes together count three.
    let sun = text_of(&model, "日本");
    assert_eq!(sun.bytes(0..sun.ids().len()), 6);
}

#[test]
fn text_that_scores_nothing_is_refused() {
    let Some(model) = fixture("llama_tied") else { return };
    let tokenizer = model.tokenizer().expect("tokenizer");
    let empty = Text::encode(&tokenizer, "").expect_err("empty").to_string();
    assert!(empty.contains("the data is empty"), "{empty}");
    let one = text_of(&model, "T");
    assert_eq!(one.ids().len(), 1);
    let alone = Windows::new(&one, Protocol { ctx: 512, bos: None }).expect_err("one token").to_string();
    assert!(alone.contains("1 token(s)") && alone.contains("more text"), "{alone}");
    assert!(Windows::new(&one, Protocol { ctx: 512, bos: Some(508) }).is_ok());
    let narrow = Windows::new(&one, Protocol { ctx: 1, bos: None }).expect_err("ctx 1").to_string();
    assert!(narrow.contains("at least 2"), "{narrow}");
}

#[test]
fn a_model_is_no_distance_from_itself_and_some_from_another() {
    let (Some(model), Some(other)) = (fixture("qwen2"), fixture("qwen3")) else { return };
    let text = text_of(&model, SENTENCES);
    let protocol = Protocol { ctx: 32, bos: None };
    let itself = score_of(&model, Some(&model), &text, protocol);
    let versus = itself.versus.expect("a reference");
    assert_eq!((versus.kl.mean, versus.kl.se, versus.same_top1), (0.0, 0.0, 1.0));
    assert_eq!((versus.delta_ln_ppl.mean, versus.rms_delta_p), (0.0, 0.0));

    let other = score_of(&model, Some(&other), &text, protocol);
    let versus = other.versus.expect("a reference");
    assert!(versus.kl.mean > 0.1 && versus.same_top1 < 0.9 && versus.kl.se > 0.0, "{versus:?}");
    let difference = other.nll.mean - versus.reference_nll.mean;
    assert!((versus.delta_ln_ppl.mean - difference).abs() < 1e-12);
    assert_eq!(
        (other.nll, other.tokens),
        (itself.nll, itself.tokens),
        "a reference changes nothing of the model"
    );
}

#[test]
fn a_whole_evaluation_reports_progress_and_every_key() {
    let Some(root) = shared("fixtures") else { return };
    let (dir, reference) = (root.join("qwen2"), root.join("qwen3"));
    let options = Options { ctx: Some(16), bos: true, source_nats: Some(150.0), ..Options::default() };
    let mut heard = Vec::new();
    let report =
        evaluate(&Cpu, &dir, SENTENCES, Some(&reference), &options, &mut |done, all| heard.push((done, all)))
            .expect("a report");
    assert_eq!(heard.len(), report.windows + 1);
    assert!(heard.iter().enumerate().all(|(at, (done, all))| *done == at && *all == report.windows));
    assert_eq!((report.bos, report.ctx), (Some(508), 16));
    let tokens = text_of(&Model::open(&dir).expect("a fixture opens"), SENTENCES).ids().len();
    assert_eq!(report.entropy_floor_nats, Some(150.0 / tokens as f64));
    assert_eq!(report.tokens, report.windows * 15);
    assert!(report.prefill_tps > 0.0 && report.decode_tps > 0.0 && report.ttft_ms > 0.0);
    assert_eq!((report.bits_per_weight, report.device.as_str()), (16.0, "cpu"));
    assert!((report.nll_mean.exp() - report.perplexity).abs() < 1e-9 * report.perplexity);
    assert!(
        report.protocol.contains("BOS (508)") && report.protocol.contains("16 tokens"),
        "{}",
        report.protocol
    );

    let alone = evaluate(&Cpu, &dir, SENTENCES, None, &Options::default(), &mut |_, _| ()).expect("a report");
    assert_eq!((alone.kl_mean, alone.bos, alone.ctx, alone.windows), (None, None, 2048, 1));
}

#[test]
fn an_evaluation_that_can_t_be_honest_is_refused() {
    let Some(root) = shared("fixtures") else { return };
    let message = |against: Option<&str>, ctx| {
        let against = against.map(|name| root.join(name));
        let options = Options { ctx: Some(ctx), ..Options::default() };
        let result =
            evaluate(&Cpu, &root.join("llama_tied"), SENTENCES, against.as_deref(), &options, &mut |_, _| ());
        result.expect_err("refused").to_string()
    };
    let long = message(None, 4096);
    assert!(long.contains("4096") && long.contains("2048"), "{long}");
    let other_tokens = message(Some("llama_untied"), 64);
    assert!(other_tokens.contains("different tokenizers"), "{other_tokens}");
}
