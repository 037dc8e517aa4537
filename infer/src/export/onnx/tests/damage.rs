//! What was written wrongly, or changed since, does not read back: not as what was trained, and never by a panic.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::export::onnx::proto::{GraphProto, ModelProto, TensorProto};
use crate::export::verify;

/// Where the constant `name` lies in the data file.
fn extent(model: &ModelProto, name: &str) -> std::ops::Range<usize> {
    let constants = &model.graph.as_ref().expect("a graph").initializer;
    let tensor = constants.iter().find(|tensor| tensor.name.as_deref() == Some(name)).expect(name);
    let number = |key: &str| -> usize {
        let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        entry.and_then(|entry| entry.value.as_deref()).expect(key).parse().expect("a number")
    };
    number("offset")..number("offset") + number("length")
}

/// What the driver says of a model whose data `change` was made to.
fn after(exported: &Exported, change: impl FnOnce(&ModelProto, &mut Vec<u8>)) -> Result<()> {
    let path = exported.dir().join(data::DATA_FILE);
    let sound = std::fs::read(&path).expect("data");
    let mut changed = sound.clone();
    change(&exported.model(), &mut changed);
    assert_ne!(sound, changed);
    std::fs::write(&path, changed).expect("written");
    let answer = exported.written().and_then(|written| verify(&exported.source, &written));
    std::fs::write(&path, sound).expect("mended");
    answer
}

/// What the driver says of a model whose graph `change` was made to.
fn after_graph(exported: &Exported, change: impl FnOnce(&mut GraphProto)) -> Result<()> {
    let path = exported.dir().join(MODEL_FILE);
    let sound = std::fs::read(&path).expect("model");
    let mut model = exported.model();
    change(model.graph.as_mut().expect("a graph"));
    assert_ne!(sound, model.encode_to_vec());
    std::fs::write(&path, model.encode_to_vec()).expect("written");
    let answer = exported.written().and_then(|written| verify(&exported.source, &written));
    std::fs::write(&path, sound).expect("mended");
    answer
}

fn message(answer: Result<()>) -> String {
    answer.expect_err("damage is found").to_string()
}

#[test]
fn a_changed_nibble_scale_or_order_of_rows_is_found() {
    for (format, codes) in
        [("int4-g32", "Q4"), ("int8-g32", "Q4_high"), ("int8-g32", "Q4_low"), ("ternary-g64", "Q4")]
    {
        let exported = Exported::new(&config("llama", false), all(format));
        let name = "model.layers.1.mlp.up_proj.weight";
        let (codes, scales) = (format!("{name}_{codes}"), format!("{name}_scales"));
        let nibble = after(&exported, |model, bytes| bytes[extent(model, &codes).start + 77] ^= 0x20);
        let scale = after(&exported, |model, bytes| bytes[extent(model, &scales).start + 10] ^= 1);
        let rows = after(&exported, |model, bytes| {
            let at = extent(model, &codes);
            let row = at.len() / 256;
            bytes[at][..2 * row].rotate_left(row);
        });
        for answer in [nibble, scale, rows] {
            let message = message(answer);
            assert!(message.starts_with(&format!("{name}: reads back differently")), "{format}: {message}");
        }
        assert!(exported.written().and_then(|written| verify(&exported.source, &written)).is_ok());
    }
}

#[test]
fn a_changed_norm_or_bias_is_found_and_so_is_a_short_file() {
    let exported = Exported::new(&config("qwen2", true), all("int4-g32"));
    for name in
        ["model.layers.0.input_layernorm.weight", "model.norm.weight", "model.layers.1.self_attn.k_proj.bias"]
    {
        let message = message(after(&exported, |model, bytes| bytes[extent(model, name).start] ^= 1));
        assert!(message.starts_with(&format!("{name}: reads back differently")), "{message}");
    }
    let short = message(after(&exported, |_, bytes| bytes.truncate(bytes.len() / 2)));
    assert!(short.contains("is it cut off?"), "{short}");
}

#[test]
fn a_graph_that_leads_to_another_tensor_is_found() {
    let exported = Exported::new(&config("llama", true), all("int8-g32"));
    let node = |graph: &mut GraphProto, name: &str, change: &mut dyn FnMut(&mut proto::NodeProto)| {
        graph.node.iter_mut().filter(|node| node.name.as_deref() == Some(name)).for_each(change);
    };
    let other = after_graph(&exported, |graph| {
        let swapped = "model.layers.1.self_attn.q_proj.weight_Q4_high";
        node(graph, "model.layers.0.self_attn.q_proj/high", &mut |node| node.input[1] = swapped.to_owned());
    });
    assert!(message(other).starts_with("model.layers.0.self_attn.q_proj.weight: reads back differently"));
    let halves = after_graph(&exported, |graph| {
        node(graph, "model.layers.0.mlp.down_proj", &mut |node| node.input.reverse());
    });
    assert!(message(halves).contains("model.layers.0.mlp.down_proj/low: want a node Mul"));
    let untied = after_graph(&exported, |graph| {
        node(graph, "lm_head/high", &mut |node| {
            node.input[1] = "model.embed_tokens.weight_Q4_low".to_owned()
        });
    });
    assert!(message(untied).contains("lm_head: is not the embedding that it is tied to"));
    let zeros = after_graph(&exported, |graph| {
        node(graph, "lm_head/low", &mut |node| node.input.truncate(3));
    });
    assert!(message(zeros).contains("lm_head: is not the embedding"));
    let block = after_graph(&exported, |graph| {
        node(graph, "model.layers.0.mlp.up_proj/low", &mut |node| {
            node.attribute
                .iter_mut()
                .filter(|a| a.name.as_deref() == Some("block_size"))
                .for_each(|a| a.i = Some(0));
        });
    });
    assert!(message(block).contains("in blocks of 0"));
}

#[test]
fn constants_that_lie_about_themselves_are_refused() {
    let exported = Exported::new(&config("llama", true), all("int4-g32"));
    let lie = |change: &mut dyn FnMut(&mut TensorProto)| {
        message(after_graph(&exported, |graph| {
            let name = Some("model.layers.0.mlp.up_proj.weight_Q4");
            graph.initializer.iter_mut().filter(|t| t.name.as_deref() == name).for_each(change);
        }))
    };
    let entry = |tensor: &mut TensorProto, key: &str, value: &str| {
        let entries = tensor.external_data.iter_mut().filter(|entry| entry.key.as_deref() == Some(key));
        entries.for_each(|entry| entry.value = Some(value.to_owned()));
    };
    for (found, want) in [
        (lie(&mut |tensor| tensor.dims[0] = -1), "want none below 0"),
        (lie(&mut |tensor| tensor.dims[0] = i64::MAX), "bytes of data"),
        (lie(&mut |tensor| tensor.dims.swap(1, 2)), "want bytes [256, 8, 16]"),
        (lie(&mut |tensor| tensor.data_type = Some(7)), "elements of type 7"),
        (lie(&mut |tensor| tensor.data_location = None), "want model.onnx.data"),
        (lie(&mut |tensor| entry(tensor, "location", "/etc/passwd")), "want model.onnx.data"),
        (lie(&mut |tensor| entry(tensor, "offset", "18446744073709551615")), "is it cut off?"),
        (lie(&mut |tensor| entry(tensor, "offset", "99999999999999999999")), "offset"),
        (lie(&mut |tensor| entry(tensor, "length", "-1")), "length"),
        (lie(&mut |tensor| tensor.external_data.clear()), "want model.onnx.data"),
        (lie(&mut |tensor| tensor.name = Some("other".to_owned())), "is no constant"),
    ] {
        assert!(found.contains(want), "{want}: {found}");
    }
    let twice = after_graph(&exported, |graph| graph.initializer.push(graph.initializer[0].clone()));
    assert!(message(twice).contains("is there twice"));
}

#[test]
fn whatever_the_bytes_of_the_graph_reading_ends_with_values_or_a_message() {
    let exported = Exported::new(&config("qwen3", true), all("int8-g32"));
    let path = exported.dir().join(MODEL_FILE);
    let sound = std::fs::read(&path).expect("model");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        let Ok(written) = exported.written() else { return };
        for param in exported.source.params() {
            if let Ok(values) = written.values(&param) {
                assert_eq!(values.len(), param.shape.iter().product::<usize>());
            }
        }
    };
    let change = (any::<Index>(), any::<u8>());
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let cases = (prop::collection::vec(change, 0..6), any::<Index>(), 0..4_usize);
    let outcome = runner.run(&cases, |(changes, cut, kind)| {
        let mut bytes = sound.clone();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        let at = cut.index(bytes.len());
        match kind {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + 9).min(sound.len()))),
            2 => bytes
                .splice(at..at, sound[at / 2..at / 2 + 40.min(sound.len() - at / 2)].to_vec())
                .for_each(drop),
            _ => {}
        }
        read(&bytes);
        Ok(())
    });
    outcome.expect("no panic");
}
