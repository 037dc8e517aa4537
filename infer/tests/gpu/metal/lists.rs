//! The lists as plain data: who waits for whom, how many calls there are, and what they ask of the memory.

use std::path::Path;

use qat_infer::cpu::KvType;
use qat_infer::files::Activations;
use qat_infer::metal::{
    Access, Argument, Call, Content, List, Model, Options, Pass, Script, Tail, check_working_set, library,
    longest_context, working_set,
};

use super::models::{fixtures, format, mixed, tiny};
use crate::random_model::{RandomModel, llama};

const KINDS: [KvType; 2] = [KvType::F16, KvType::Int8];

/// Every kind of pass that a session asks for.
fn passes(options: &Options) -> Vec<Pass> {
    let tails = [Tail::Nothing, Tail::Logits, Tail::Argmax, Tail::Top(8)];
    let tokens = [1, 2, 5, 9, 40, 256].into_iter().filter(|tokens| *tokens <= options.context);
    let bodies = tokens.flat_map(|tokens| {
        let pasts = [0, 200, 900, 3000].into_iter().filter(move |past| past + tokens <= options.context);
        pasts.flat_map(move |past| tails.map(|tail| Pass::Body { tokens, past, tail }))
    });
    bodies.chain((1..=options.logit_rows).map(|rows| Pass::Head { rows })).collect()
}

/// Calls `see` with every list of every model that tests have.
fn each_list(see: &mut dyn FnMut(&str, &Script<'_>, &List)) {
    let mut models: Vec<(String, Model)> = Vec::new();
    let mut add = |name: String, path: &Path| models.push((name, Model::open(path).expect("a model")));
    fixtures().iter().for_each(|(name, path)| add((*name).into(), path));
    add("mixed".into(), &mixed().path);
    for activations in [Activations::Float, Activations::Int8Token] {
        let random = RandomModel::new(&tiny(), format("int4-affine-g64"), activations);
        add(format!("affine, {activations:?}"), &random.path);
    }
    add(
        "three to a key".into(),
        &RandomModel::new(&llama(300, 2, 2), format("int8-g32"), Activations::Float).path,
    );
    for (name, model) in &models {
        for kv in KINDS {
            let context = model.decoder.config.max_position_embeddings;
            let options = Options::new(context).with_kv(kv).with_logit_rows(3);
            let script = Script::new(&model.decoder, options).expect("a script");
            for pass in passes(&options) {
                let list = script.list(pass).expect("a list");
                see(&format!("{name}, {kv}, {pass:?}"), &script, &list);
            }
        }
    }
}

/// Calls from each barrier to the next.
fn groups(list: &List) -> Vec<&[Call]> {
    let calls = list.calls();
    let mut starts: Vec<usize> = (0..calls.len()).filter(|at| *at == 0 || calls[*at].barrier).collect();
    starts.push(calls.len());
    starts.windows(2).map(|ends| &calls[ends[0]..ends[1]]).collect()
}

#[test]
fn calls_between_two_barriers_touch_nothing_in_common_and_no_barrier_can_be_left_out() {
    each_list(&mut |name, _, list| {
        let groups = groups(list);
        for group in &groups {
            for (at, call) in group.iter().enumerate() {
                let earlier = group[..at].iter().find(|earlier| call.conflicts(earlier));
                assert!(
                    earlier.is_none(),
                    "{name}: {} runs beside {:?}",
                    call.label,
                    earlier.map(|c| &c.label)
                );
            }
        }
        for pair in groups.windows(2) {
            let is_needed = pair[0].iter().any(|earlier| pair[1][0].conflicts(earlier));
            assert!(is_needed, "{name}: {} waits for nothing", pair[1][0].label);
        }
        assert!(!list.calls()[0].barrier, "{name}: nothing comes before the first call");
    });
}

#[test]
fn every_argument_lies_in_its_buffer_and_weights_are_never_written() {
    each_list(&mut |name, script, list| {
        for call in list.calls() {
            let places: Vec<u16> = call.bindings.iter().map(|binding| binding.place).collect();
            assert!(places.windows(2).all(|p| p[0] < p[1]), "{name}, {}: {places:?}", call.label);
            assert!(library(call.launch.library).is_some(), "{name}: {}", call.launch.library);
            for (span, access) in call.spans() {
                let buffer = &script.buffers()[span.buffer.0];
                assert!(span.bytes > 0 && span.offset % 4 == 0, "{name}, {}: {span:?}", call.label);
                assert!(span.offset + span.bytes <= buffer.bytes, "{name}, {}: {span:?}", call.label);
                let is_blank = matches!(buffer.content, Content::Blank);
                assert!(is_blank || access == Access::Read, "{name}: {} writes {}", call.label, buffer.name);
            }
            assert!(call.bytes_read > 0 && call.bytes_written > 0, "{name}: {}", call.label);
        }
    });
}

/// Calls of one layer of a token after `past` others.
fn calls_of_a_layer(script: &Script<'_>, past: usize) -> usize {
    let list = script.list(Pass::Body { tokens: 1, past, tail: Tail::Argmax }).expect("a list");
    let counts = [0, 1].map(|layer| list.calls().iter().filter(|call| call.layer == Some(layer)).count());
    assert_eq!(counts[0], counts[1]);
    // Embedding, last norm, head, argmax.
    assert_eq!(list.calls().len(), 2 * counts[0] + 4);
    counts[0]
}

#[test]
fn a_layer_of_a_token_is_five_calls_and_one_more_when_its_past_is_cut() {
    for (name, path) in fixtures() {
        let model = Model::open(&path).expect("a fixture");
        let script = Script::new(&model.decoder, Options::new(2048)).expect("a script");
        assert_eq!([0, 2000].map(|past| calls_of_a_layer(&script, past)), [5, 6], "{name}");
    }
}

#[test]
fn matrices_that_are_stored_differently_take_calls_of_their_own() {
    let mixed = mixed();
    let model = Model::open(&mixed.path).expect("a model");
    let script = Script::new(&model.decoder, Options::new(256)).expect("a script");
    // q and k, v, attention, o, gate, up, their product, down.
    assert_eq!(calls_of_a_layer(&script, 0), 8);
    let list = script.list(Pass::Body { tokens: 1, past: 0, tail: Tail::Nothing }).expect("a list");
    let labels: Vec<&str> = list.calls().iter().map(|call| call.label.as_str()).collect();
    assert_eq!(
        labels[..9],
        [
            "embed",
            "norm + q_proj + k_proj",
            "norm + v_proj",
            "attention",
            "o_proj, added",
            "norm + gate_proj",
            "norm + up_proj",
            "swiglu",
            "down_proj, added"
        ]
    );
}

#[test]
fn a_model_is_read_where_its_file_lies() {
    let random = RandomModel::new(&tiny(), format("int4-g32"), Activations::Float);
    let model = Model::open(&random.path).expect("a model");
    let script = Script::new(&model.decoder, Options::new(256)).expect("a script");
    let weights: Vec<_> =
        script.buffers().iter().filter(|b| matches!(b.content, Content::Weights(_))).collect();
    let file = std::fs::metadata(random.path.join("model.safetensors")).expect("the file").len();
    assert_eq!(weights.iter().map(|b| b.bytes).collect::<Vec<_>>(), [file]);
    assert!(matches!(&weights[0].content, Content::Weights(bytes) if bytes.is_mapped()));
}

#[test]
fn a_matrix_that_begins_between_two_words_is_copied() {
    let mut config = tiny();
    // 301 rows of 65 bytes: whatever follows the embedding begins at an odd place.
    config["hidden_size"] = 260.into();
    let random = RandomModel::new(&config, format("ternary-tensor"), Activations::Float);
    let model = Model::open(&random.path).expect("a model");
    let script = Script::new(&model.decoder, Options::new(256)).expect("a script");
    let copied = script.buffers().iter().filter_map(|buffer| match &buffer.content {
        Content::Weights(bytes) if !bytes.is_mapped() => Some(&buffer.name),
        _ => None,
    });
    assert!(copied.count() > 0);
    let list = script.list(Pass::Body { tokens: 1, past: 0, tail: Tail::Logits }).expect("a list");
    assert!(list.calls().iter().flat_map(Call::spans).all(|(span, _)| span.offset % 4 == 0));
}

#[test]
fn the_working_set_is_the_sum_of_the_buffers_and_says_which_context_fits() {
    let random = RandomModel::new(&tiny(), format("int4-g32"), Activations::Float);
    let decoder = Model::open(&random.path).expect("a model").decoder;
    for kv in KINDS {
        let options = |context| Options::new(context).with_kv(kv);
        let bytes = |context| working_set(&decoder, &options(context)).expect("options");
        let script = Script::new(&decoder, options(1000)).expect("a script");
        assert_eq!(script.buffers().iter().map(|buffer| buffer.bytes).sum::<u64>(), bytes(1000));
        // Of a position: keys and values of two heads in two layers with their scales, angles, and its id.
        let head = if kv == KvType::Int8 { 64 + 2 } else { 64 * 2 };
        assert_eq!(bytes(1001) - bytes(1000), 2 * 2 * 2 * head + 64 * 4 + 4);

        let limit = bytes(777);
        assert_eq!(longest_context(&decoder, &options(4096), limit).expect("options"), Some(777));
        assert_eq!(longest_context(&decoder, &options(4096), limit - 1).expect("options"), Some(776));
        assert_eq!(longest_context(&decoder, &options(1), u64::MAX).expect("options"), Some(4096));
        assert_eq!(longest_context(&decoder, &options(1), 1000).expect("options"), None);
        assert!(check_working_set(&decoder, &options(777), limit).is_ok());
        let refused = check_working_set(&decoder, &options(4096), limit).expect_err("too much").to_string();
        let wanted = format!("{:.2} GB", bytes(4096) as f64 / 1e9);
        for part in ["4096", &wanted, &format!("{:.2} GB", limit as f64 / 1e9), "context of 777 tokens fits"]
        {
            assert!(refused.contains(part), "{part:?} is not in {refused}");
        }
        let refused = check_working_set(&decoder, &options(1), 1000).expect_err("too much").to_string();
        assert!(refused.contains("no context fits"), "{refused}");
    }
}

#[test]
fn what_has_no_kernel_is_refused() {
    let refusal = |config: &serde_json::Value, options: Options| {
        let random = RandomModel::new(config, format("int4-g32"), Activations::Float);
        let decoder = Model::open(&random.path).expect("a model").decoder;
        Script::new(&decoder, options).map(|_| ()).expect_err("refused").to_string()
    };
    let message = refusal(&tiny(), Options::new(64).with_kv(KvType::F32));
    assert!(message.contains("f32") && message.contains("f16 or int8"), "{message}");
    let message = refusal(&tiny(), Options::new(5000));
    assert!(message.contains("5000") && message.contains("4096"), "{message}");
    let message = refusal(&tiny(), Options::new(64).with_logit_rows(65));
    assert!(message.contains("65") && message.contains("1 to 64"), "{message}");
    for head_dim in [12, 70, 288] {
        let mut config = tiny();
        config["head_dim"] = head_dim.into();
        config["num_attention_heads"] = 16.into();
        config["num_key_value_heads"] = 16.into();
        let message = refusal(&config, Options::new(64));
        assert!(message.contains(&head_dim.to_string()) && message.contains("16 to 256"), "{message}");
    }
}

#[test]
fn inline_bytes_are_few() {
    each_list(&mut |name, _, list| {
        for binding in list.calls().iter().flat_map(|call| &call.bindings) {
            if let Argument::Bytes(bytes) = &binding.argument {
                // Metal's own limit for bytes that go along with a call is 4096.
                assert!(!bytes.is_empty() && bytes.len() <= 4096 && bytes.len() % 4 == 0, "{name}");
            }
        }
    });
}
