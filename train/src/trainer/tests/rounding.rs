//! What is rounded without training, and what is trained without rounding anew.

use qat_infer::{
    cpu::Model,
    files::{PackedDir, Storage},
};
use qat_quant::PackedRef;

use super::*;
use crate::{
    export::Shipment,
    recipe::Rounding,
    tiny::{root_mean_square, runtime_logits},
};

/// Codes and scales of every matrix in a packed directory, by name.
fn grids(dir: &Path) -> Vec<(String, Vec<i16>, Vec<f32>)> {
    let mut grids = Vec::new();
    let config = Model::open(dir).expect("opens").decoder.config;
    let dir = PackedDir::open(dir).expect("opens");
    for param in params(&config).iter().filter(|p| p.shape.len() == 2) {
        let shape = [param.shape[0], param.shape[1]];
        let stored = dir.matrix(&param.name, shape).expect("listed");
        let Storage::Packed(format) = stored.storage else { panic!("{} is float", param.name) };
        let packed =
            PackedRef::new(&param.name, format, shape[0], shape[1], &stored.bytes, stored.tensor_scale);
        let packed = packed.expect("whole");
        let mut codes = vec![0; shape[0] * shape[1]];
        codes.chunks_mut(shape[1]).enumerate().for_each(|(row, codes)| packed.codes_row(row, codes));
        let scales = packed.scales();
        grids.push((param.name.clone(), codes, [scales.scale, scales.bias].concat()));
    }
    grids
}

/// The packed directory of the finished run.
fn trained(run: &Run) -> PathBuf {
    let target = run.out.join("packed");
    Shipment::of_run(&run.out).expect("a finished run").0.write(&target).expect("written");
    target
}

/// The start of the run, rounded without training.
fn rounded(place: &Place, plan: &Plan, run: &Run, rounding: Rounding) -> PathBuf {
    let cache = place.path("cache");
    let job = Job {
        plan,
        out: &run.out,
        cache: &cache,
        device: Device::Cpu,
        start: Start::Resume,
        ranks: Ranks::alone(),
    };
    let target = run.out.join(format!("rounded-{rounding}"));
    Shipment::of_start(&job, rounding).expect("a start").write(&target).expect("written");
    target
}

fn logits(dir: &Path, ids: &[u32]) -> Vec<f32> {
    runtime_logits(&Model::open(dir).expect("opens").decoder, ids)
}

#[test]
fn gptq_is_nearer_to_the_float_model_than_rounding_is_and_the_same_each_time() {
    let place = Place::new();
    // A model that has learned: inputs of random matrices hardly correlate, and there is nothing to make good.
    let start = tokenizer_folder().display().to_string();
    for weights in ["int3-affine-g64", "ternary-g64"] {
        let weights_key = format!("quant.weights={weights}");
        let sets = ["train.steps=1", "data.ctx=128", &weights_key, "quant.calibration_windows=24"];
        let plan = place.plan_from(&start, &sets);
        let run = place.finish(&plan, weights);
        // Text that none of the windows has: what is right for them alone would not help here.
        let text: Vec<u32> = {
            let held_out = Prepared::new(
                &Job {
                    plan: &plan,
                    out: &run.out,
                    cache: &place.path("cache"),
                    device: Device::Cpu,
                    start: Start::Resume,
                    ranks: Ranks::alone(),
                },
                &mut |_| {},
                &AtomicBool::new(false),
            );
            held_out.expect("the finished run").valid[0].inputs[..128].to_vec()
        };
        let float = logits(Path::new(&start), &text);
        let off = |dir: &Path| root_mean_square(&float, &logits(dir, &text));
        let mse = off(&rounded(&place, &plan, &run, Rounding::Rule(qat_quant::ScaleRule::Mse)));
        let dir = rounded(&place, &plan, &run, Rounding::Gptq);
        let gptq = off(&dir);
        assert!(gptq < 0.95 * mse, "{weights}: {gptq} against {mse}");
        let first = grids(&dir);
        assert!(first == grids(&rounded(&place, &plan, &run, Rounding::Gptq)), "{weights}: another time");
    }
}

#[test]
fn training_that_starts_from_gptq_starts_where_gptq_ends() {
    let place = Place::new();
    let start = place.model("start", 8);
    for learn in ["all", "scales"] {
        // Steps that move no scale by as much as its storage type can tell, and no weight over an edge.
        let learn_key = format!("quant.learn={learn}");
        let sets = [
            "train.steps=1",
            "quant.scales=gptq",
            "quant.weights=int3-affine-g64",
            "optim.lr=1e-9",
            "optim.scale_lr=1e-9",
            "quant.calibration_windows=24",
            &learn_key,
        ];
        let plan = place.plan_from(&start, &sets);
        let run = place.finish(&plan, learn);
        assert!(run.notes().contains(&"GPTQ on 24 windows of the training text"), "{:?}", run.notes());
        let gptq = grids(&rounded(&place, &plan, &run, Rounding::Gptq));
        for (ours, theirs) in grids(&trained(&run)).into_iter().zip(gptq) {
            assert!(ours.1 == theirs.1 && ours.2 == theirs.2, "learn = {learn}: {}", ours.0);
        }
    }
}

#[test]
fn with_scales_alone_the_codes_that_ship_are_those_of_the_start() {
    let place = Place::new();
    let start = place.model("start", 8);
    let teacher = format!("teacher.model={start}");
    for weights in ["int4-g32", "int2-affine-g64", "ternary-tensor"] {
        let weights_key = format!("quant.weights={weights}");
        let sets = [
            "quant.learn=scales",
            &teacher,
            "loss.cross_entropy=0.0",
            "loss.forward_kl=1.0",
            "optim.scale_lr=1e-2",
            "train.steps=12",
            "train.valid_every=1",
            &weights_key,
        ];
        let plan = place.plan_from(&start, &sets);
        let run = place.finish(&plan, weights);
        let mse = grids(&rounded(&place, &plan, &run, Rounding::Rule(qat_quant::ScaleRule::Mse)));
        let mut moved = Vec::new();
        for (ours, theirs) in grids(&trained(&run)).into_iter().zip(mse) {
            assert!(ours.1 == theirs.1, "{weights}: codes of {}", ours.0);
            moved.push(ours.2 != theirs.2);
        }
        // One scale for a tensor, in bf16, may come back to where it was.
        let count = moved.iter().filter(|&&moved| moved).count();
        assert!(2 * count > moved.len(), "{weights}: scales of {count} matrices have moved");
        let kl = |event: &Event| if let Event::Valid(line) = event { line.valid_kl } else { None };
        let kl: Vec<f64> = run.events.iter().filter_map(kl).collect();
        assert!(kl[11] < 0.97 * kl[0], "{weights}: KL went from {} to {}", kl[0], kl[11]);
        // Norms and tables ship as they were; and a run that was cut in two ends alike.
        let stopped = place.train(&plan, &format!("{weights}-cut"), Start::Fresh, Some(5));
        assert_eq!(stopped.outcome.as_ref().expect("stopped"), &Outcome::Stopped { step: 5 });
        let resumed = place.train(&plan, &format!("{weights}-cut"), Start::Resume, None);
        assert!(resumed.checkpoint(12) == run.checkpoint(12), "{weights}: resumed");
    }
}

#[test]
fn seq_keeps_the_levels_even_while_it_learns_their_distance() {
    let place = Place::new();
    let start = place.model("start", 8);
    let teacher = format!("teacher.model={start}");
    let sets = [
        "quant.gradient=seq",
        "quant.weights=int2-affine-g32",
        &teacher,
        "loss.cross_entropy=0.0",
        "loss.forward_kl=1.0",
        "optim.scale_lr=1e-2",
        "optim.lr=5e-4",
        "train.steps=12",
        "train.valid_every=1",
    ];
    let plan = place.plan_from(&start, &sets);
    let run = place.finish(&plan, "run");
    let seq = grids(&rounded(&place, &plan, &run, Rounding::Rule(qat_quant::ScaleRule::Seq)));
    for (ours, theirs) in grids(&trained(&run)).iter().zip(&seq).filter(|(ours, _)| ours.0.contains("layers"))
    {
        let (scale, bias) = ours.2.split_at(ours.2.len() / 2);
        assert!(ours.2 != theirs.2, "scales of {} have not moved", ours.0);
        for (s, b) in scale.iter().zip(bias) {
            // Both were rounded to f16: 11 bits each.
            assert!((b + 1.5 * s).abs() <= 1e-3 * b.abs(), "{}: scale {s}, bias {b}", ours.0);
        }
    }
    let kl = |event: &Event| if let Event::Valid(line) = event { line.valid_kl } else { None };
    let kl: Vec<f64> = run.events.iter().filter_map(kl).collect();
    assert!(kl[11] < 0.97 * kl[0], "KL went from {} to {}", kl[0], kl[11]);
}
