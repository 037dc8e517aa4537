//! Documents side by side in a window teach what they teach alone, and nothing else of the window does.

use std::collections::BTreeMap;

use candle_core::Tensor;
use qat_infer::files::Activations;
use qat_quant::ScaleRule;

use super::*;
use crate::{
    data::{Batch, Packed},
    exec::RopeTable,
    loss::Divergence,
    ops::{
        Borders, Gradient,
        check::{assert_close, flat},
        gpu::{
            Reader,
            host::{self, Care},
        },
    },
    precision::Precision,
    recipe::{LossPlan, Quantization, Rounding, Rules},
    student::{Moment, Student},
    trainer::{gradients::StepGradients, objective::Objective, teacher::Teacher},
};

/// Ids of a document, the first of which are a question.
type Document = (Vec<u32>, usize);

fn documents() -> [Document; 3] {
    let ids = tiny::ids(22, 96);
    [(ids[..6].to_vec(), 2), (ids[6..15].to_vec(), 5), (ids[15..].to_vec(), 1)]
}

/// One window with all `documents`, of which what follows the questions is learned.
fn batch(documents: &[Document], fill: usize) -> Batch {
    let (mut ids, mut firsts, mut learned) = (Vec::new(), Vec::new(), Vec::new());
    for (document, question) in documents {
        let first = ids.len();
        firsts.extend(vec![first as u32; document.len()]);
        learned.extend((first + question.max(&1)..first + document.len()).map(|at| at as u32 - 1));
        ids.extend(document);
    }
    firsts.extend(vec![ids.len() as u32; fill]);
    ids.extend(vec![3; fill]);
    let context = ids.len() - 1;
    firsts.truncate(context);
    let borders = Borders::new(firsts, context).expect("borders");
    Batch {
        inputs: ids[..context].to_vec(),
        targets: ids[1..].to_vec(),
        rows: 1,
        context,
        windows: Vec::new(),
        packed: Some(Packed { borders, learned }),
    }
}

/// The loss summed over what is learned, and its gradient by variable.
fn learned(student: &Student, batch: &Batch, recompute: bool, device: &Device) -> (f64, Vec<Tensor>) {
    let divergences = vec![(Divergence::ForwardKl, 0.5), (Divergence::Jsd { beta: 0.3 }, 2.0)];
    let plan = LossPlan { cross_entropy: 1.0, divergences, temperature: 2.0, features: None };
    let config = &student.config;
    let teacher = Teacher::frozen(&tiny::floats(config.clone(), 77), batch.context, device).expect("teacher");
    let rope = RopeTable::new(&qat_infer::model::Ropes::new(config), batch.context, device).expect("rope");
    let (teacher, rope) = (&teacher, &rope);
    let (reader, precision) = (&Reader::new(device).expect("a reader"), Precision::F32);
    let objective = Objective { plan: &plan, teacher, rope, inside: None, recompute, precision, reader };
    let mut gradients = StepGradients::of(student.variables());
    let moment = Some(Moment::full());
    let sums = objective.accumulate(student, batch, moment, 1, &mut gradients).expect("gradients");
    (sums.read().expect("sums").loss, gradients.finish().expect("gradients"))
}

fn student(config: qat_infer::model::Config, device: &Device) -> Student {
    let rules = Rules::new("int4-g32", "int8-g32", "int8-g32", &BTreeMap::new()).expect("rules");
    let untrained = Quantization::untrained(rules, Rounding::Rule(ScaleRule::Mse), Activations::Float);
    let quantization = Quantization { gradient: Gradient::Lsq, ..untrained };
    Student::new(&tiny::floats(config, 5), quantization, device).expect("student")
}

#[test]
fn a_window_of_documents_teaches_what_each_of_them_teaches_alone() {
    teaches_the_same(tiny::config(json!({"model_type": "qwen3"})));
    // Layers that convolve and layers that attend.
    teaches_the_same(tiny::family("lfm2", json!({"num_hidden_layers": 2})));
}

fn teaches_the_same(config: qat_infer::model::Config) {
    let (student, documents) = (student(config, &Device::Cpu), documents());
    let mut want: Option<(f64, Vec<Tensor>)> = None;
    for document in &documents {
        let (loss, gradients) =
            learned(&student, &batch(std::slice::from_ref(document), 0), false, &Device::Cpu);
        want = Some(match want {
            None => (loss, gradients),
            Some((sum, sums)) => {
                let added = sums.iter().zip(&gradients).map(|(a, b)| (a + b).expect("a sum"));
                (sum + loss, added.collect())
            }
        });
    }
    let (want, sums) = want.expect("documents");
    let together = batch(&documents, 4);
    let mut ways = vec![("cpu", learned(&student, &together, false, &Device::Cpu))];
    ways.push(("cpu, layers again", learned(&student, &together, true, &Device::Cpu)));
    if host::available() {
        ways.push((
            "kernels",
            host::emulating(Care::EveryMode, || learned(&student, &together, false, &Device::Cpu)),
        ));
    }
    for (way, (found, gradients)) in ways {
        assert!((found - want).abs() < 1e-5 * want.abs(), "{way}: {found}, want {want}");
        let names = student.variables().iter().map(|variable| &variable.name);
        for ((gradient, want), name) in gradients.iter().zip(&sums).zip(names) {
            // Angles of other positions turn queries and keys by the same differences, rounded elsewhere: some 1e-6 of a score, and
            // sums of three parts.
            assert_close(&format!("{way}: {name}"), gradient, &flat(want).expect("numbers"), 2e-3)
                .expect("close");
        }
    }
}

#[test]
fn what_fills_a_window_and_what_other_documents_ask_teaches_nothing() {
    let student = student(tiny::config(json!({"model_type": "qwen3"})), &Device::Cpu);
    let documents = documents();
    let (loss, gradients) = learned(&student, &batch(&documents[..1], 0), false, &Device::Cpu);
    // The second document is there, and nothing of it is learned.
    let mut both = batch(&documents[..2], 3);
    if let Some(packed) = &mut both.packed {
        packed.learned.retain(|row| (*row as usize) < documents[0].0.len() - 1);
    }
    let (found, others) = learned(&student, &both, false, &Device::Cpu);
    assert!((found - loss).abs() < 1e-5 * loss.abs(), "{found}, want {loss}");
    for (found, want) in others.iter().zip(&gradients) {
        assert_close("a gradient", found, &flat(want).expect("numbers"), 1e-4).expect("close");
    }
}
