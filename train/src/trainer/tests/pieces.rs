//! Teachers, losses and pruned students, each through a whole run and out into a packed directory.

use qat_infer::{cpu::Model, files::PackedDir};

use super::*;
use crate::{
    export::Shipment,
    tiny::{ids, runtime_logits},
};

fn validations(run: &Run) -> Vec<ValidLog> {
    run.events
        .iter()
        .filter_map(|e| if let Event::Valid(line) = e { Some(line.clone()) } else { None })
        .collect()
}

/// The packed directory of a finished run.
fn packed(run: &Run) -> PathBuf {
    let (shipment, damaged) = Shipment::of_run(&run.out).expect("a finished run");
    assert!(damaged.is_empty());
    let target = run.out.join("packed");
    shipment.write(&target).expect("written");
    target
}

#[test]
fn distilling_brings_the_rounded_student_nearer_to_its_teacher() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let model = format!("teacher.model={teacher}");
    for (kind, weights) in [
        ("forward_kl", "ternary-g64"),
        ("reverse_kl", "int2-affine-g32"),
        ("jsd", "int2-affine-g64"),
        ("skew_kl", "ternary-g64"),
        ("skew_reverse_kl", "ternary-g64"),
    ] {
        let term = format!("loss.{kind}=1.0");
        let sets = [
            &model,
            &term,
            "loss.cross_entropy=0.0",
            "optim.lr=5e-4",
            "train.batch=8",
            "train.steps=12",
            "train.valid_every=1",
            &format!("quant.weights={weights}"),
        ];
        let run = place.finish(&place.plan_from(&teacher, &sets), kind);
        let kl: Vec<f64> = validations(&run).iter().map(|v| v.valid_kl.expect("a teacher")).collect();
        assert!(kl[11] < 0.97 * kl[0], "{kind}: KL went from {} to {}", kl[0], kl[11]);
        let terms =
            run.events.iter().find_map(|e| if let Event::Step(l) = e { Some(&l.terms) } else { None });
        assert_eq!(terms.expect("a step").keys().collect::<Vec<_>>(), [kind]);
    }
}

#[test]
fn terms_on_the_inside_bring_the_student_nearer_there_too_in_proportion_to_the_others() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let model = format!("teacher.model={teacher}");
    let sets = |kind: &'static str| {
        let both = ["optim.lr=5e-4", "train.batch=8", "train.steps=12", "quant.weights=ternary-g64"];
        [&[&*model, "loss.cross_entropy=0.0", "loss.forward_kl=1.0", kind][..], &both].concat()
    };
    for (name, kind) in [("hidden", "loss.hidden=1.0"), ("relations", "loss.relations=1.0")] {
        let plan = place.plan_from(&teacher, &sets(kind));
        let run = place.finish(&plan, name);
        let terms = |step: usize| {
            let line = |e: &Event| if let Event::Step(l) = e { Some(l.terms.clone()) } else { None };
            run.events.iter().filter_map(line).nth(step).expect("a step")
        };
        assert!(terms(11)[name] < 0.97 * terms(0)[name], "{name}: {} to {}", terms(0)[name], terms(11)[name]);
        assert!(terms(11)["forward_kl"] < terms(0)["forward_kl"]);
        let notes = run.notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with(&format!("loss.{name} = 1 is a factor of ")),
            "{notes:?}"
        );
        // The factor is of the start, also for a run that goes on.
        place.train(&plan, &format!("{name}-again"), Start::Fresh, Some(5));
        let resumed = place.train(&plan, &format!("{name}-again"), Start::Resume, None);
        assert!(resumed.checkpoint(12) == run.checkpoint(12));
    }
    // A teacher of another width and depth.
    let small = [
        "student.hidden_size=32",
        "student.intermediate_size=96",
        "student.layers=1",
        "loss.relations=0.5",
        "quant.weights=int2-affine-g32",
    ];
    let run =
        place.finish(&place.plan_from(&teacher, &[&sets("loss.hidden=0.5")[..], &small].concat()), "small");
    assert!(run.losses().iter().all(|l| l.is_finite()));
    let beyond = place.plan_from(&teacher, &[&sets("loss.hidden=0.5")[..], &["loss.layer=2"]].concat());
    let m = place.train(&beyond, "beyond", Start::Fresh, None).refusal();
    assert_eq!(m, "loss.layer = 2: want less than the student's 2 layers");
}

#[test]
fn the_latent_weights_can_be_the_teacher() {
    let place = Place::new();
    let start = place.model("start", 8);
    let sets = [
        "teacher.model=latent",
        "loss.forward_kl=1.0",
        "loss.cross_entropy=0.0",
        "quant.weights=ternary-g64",
        "quant.embeddings=float",
    ];
    let losses = place.finish(&place.plan_from(&start, &sets), "run").losses();
    assert!(losses[0] > 0.0 && losses.iter().all(|l| l.is_finite()), "{losses:?}");
    let float = [
        "teacher.model=latent",
        "loss.forward_kl=1.0",
        "loss.cross_entropy=0.0",
        "quant.weights=float",
        "quant.embeddings=float",
    ];
    let m = place.train(&place.plan_from(&start, &float), "float", Start::Fresh, None).refusal();
    assert!(m.contains("student and teacher agree already"), "{m}");
}

#[test]
fn terms_add_up_to_the_loss_with_their_weights() {
    let place = Place::new();
    let start = place.model("start", 8);
    let teacher = format!("teacher.model={}", place.model("teacher", 9));
    let sets = [
        &teacher,
        "loss.cross_entropy=0.25",
        "loss.forward_kl=1.5",
        "loss.reverse_kl=0.5",
        "loss.jsd=2.0",
        "loss.temperature=2.0",
        "train.steps=2",
    ];
    let run = place.finish(&place.plan_from(&start, &sets), "run");
    for line in run.events.iter().filter_map(|e| if let Event::Step(line) = e { Some(line) } else { None }) {
        let weights = [("cross_entropy", 0.25), ("forward_kl", 1.5), ("reverse_kl", 0.5), ("jsd", 2.0)];
        let sum: f64 = weights.iter().map(|(name, weight)| weight * line.terms[*name]).sum();
        assert_eq!(line.terms.len(), 4);
        // The same f64 numbers, divided before or after they are added.
        assert!((line.loss - sum).abs() < 1e-12 * line.loss, "{} and {sum}", line.loss);
    }
}

#[test]
fn pruned_and_padded_students_train_and_ship() {
    let place = Place::new();
    let start = place.model("start", 8);
    let teacher = format!("teacher.model={start}");
    let shapes = [
        ("depth", &["student.layers=1"][..], (64, 128, 1)),
        ("width", &["student.hidden_size=32", "student.intermediate_size=96"][..], (32, 96, 2)),
        ("padded", &["student.pad_intermediate=96"][..], (64, 192, 2)),
    ];
    for (name, cut, shape) in shapes {
        let sets = [&[&teacher, "loss.forward_kl=1.0", "train.steps=4"], cut].concat();
        let run = place.finish(&place.plan_from(&start, &sets), name);
        let target = packed(&run);
        let model = Model::open(&target).expect("opens");
        let config = &model.decoder.config;
        assert_eq!((config.hidden_size, config.intermediate_size, config.layers), shape, "{name}");
        let logits = runtime_logits(&model.decoder, &ids(16, 1536));
        assert!(logits.iter().all(|l| l.is_finite()), "{name}");
        let source = PackedDir::open(&target).expect("opens").manifest.source;
        assert_eq!((&source["method"], &source["step"]), (&json!("trained"), &json!(4)));
    }
}

#[test]
fn the_packed_model_scores_what_the_last_validation_said() {
    let place = Place::new();
    let plan = place.plan(&["data.valid=[\"stories:seed=4,bytes=4000\"]", "train.valid_windows=8"]);
    let run = place.finish(&plan, "run");
    let said = validations(&run).pop().expect("a validation at the end").valid_cross_entropy;
    let model = Model::open(&packed(&run)).expect("opens");
    let job = Job {
        plan: &plan,
        out: &run.out,
        cache: &place.path("cache"),
        device: Device::Cpu,
        start: Start::Resume,
        ranks: Ranks::alone(),
    };
    let prepared = Prepared::new(&job, &mut |_| {}, &AtomicBool::new(false)).expect("the finished run");
    let (mut nats, mut tokens) = (0.0, 0);
    for batch in &prepared.valid {
        for (inputs, targets) in batch.inputs.chunks(batch.context).zip(batch.targets.chunks(batch.context)) {
            for (row, target) in runtime_logits(&model.decoder, inputs).chunks(1536).zip(targets) {
                let largest = row.iter().fold(f32::MIN, |m, v| m.max(*v));
                let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
                nats += sum.ln() - f64::from(row[*target as usize] - largest);
                tokens += 1;
            }
        }
    }
    assert_eq!(tokens, 8 * 32);
    let scored = nats / f64::from(tokens);
    // Logits agree to some 1e-5 (see export), and a mean over tokens can't differ by more than they do.
    assert!((scored - said).abs() < 1e-5, "{scored} scored, {said} at the end of training");
}
