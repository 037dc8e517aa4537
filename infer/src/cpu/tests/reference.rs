//! The executor against what transformers computed in f32 on the same weights.

use super::*;

#[test]
fn logits_agree_with_transformers() {
    for fixture in Fixture::every() {
        let mut prompts = Vec::new();
        for (ids, want) in fixture.prompts() {
            let found = all_logits(&fixture.model.decoder, &ids);
            assert_eq!(found.len(), want.len());
            prompts.push(found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max));
        }
        println!("{}: {prompts:?}", fixture.name);
        // The bound of the task: logits of a few units, f32 sums of at most 512 products on both sides.
        let others: Vec<f32> = prompts.iter().copied().filter(|worst| *worst > 1e-4).collect();
        // The last place of a sum decides over an input of the next layer that lies between two codes of 8 bits, and later tokens attend to
        // the one that it happens to: of 10⁵ inputs some are that near. A code is a hundredth of a token's peak.
        let allowed = usize::from(fixture.name.starts_with("bitnet"));
        assert!(
            others.len() <= allowed && others.iter().all(|worst| *worst < 0.3),
            "{}: {prompts:?}",
            fixture.name
        );
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for fixture in Fixture::every() {
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(fixture.texts[key].clone()).expect(key) };
        let (prompt, want) = (ids("greedy_prompt"), ids("greedy"));
        let mut session =
            Session::new(&fixture.model.decoder, &exact(prompt.len() + want.len())).expect("fits");
        let mut found = vec![argmax(session.prefill(&prompt).expect("prompt"))];
        while found.len() < want.len() {
            let last = *found.last().expect("one");
            found.push(argmax(session.step(last).expect("step")));
        }
        assert_eq!(found, want, "{}", fixture.name);
    }
}

#[test]
fn texts_become_the_ids_of_the_reference_tokenizer() {
    for fixture in Fixture::every() {
        let texts: Vec<String> = serde_json::from_value(fixture.texts["texts"].clone()).expect("texts");
        let want: Vec<Vec<u32>> = serde_json::from_value(fixture.texts["ids"].clone()).expect("ids");
        let tokenizer = fixture.model.tokenizer().expect("tokenizer");
        for (text, want) in texts.iter().zip(want) {
            let found = tokenizer.encode(text.as_str(), false).expect("a text");
            assert_eq!(found.get_ids(), want, "{}: {text:?}", fixture.name);
        }
    }
}

#[test]
fn a_file_that_has_only_the_head_of_a_tied_model_opens() {
    let Some(weights) = shared("data/weights") else { return };
    let model = Model::open(&weights.join("tinystories-656k")).expect("model");
    assert!(model.decoder.head.is_none());
    assert_eq!(model.size.bits_per_weight, 32.0);
    assert_eq!(model.size.file_bytes, 2_626_168);
}
