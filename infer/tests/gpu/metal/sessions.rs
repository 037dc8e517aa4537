//! What callers hold: its calls agree with each other and with the CPU's, and refuse what they can't do.

use std::ops::ControlFlow;

use qat_infer::Sequence as _;
use qat_infer::cpu::{self, KvType, RunOptions};
use qat_infer::files::Activations;
use qat_infer::generate::Windowed;
use qat_infer::metal::{self, Options, Session, working_set};
use qat_metal_host::{Mode, available};

use super::emulator::Emulator;
use super::models::{format, tiny};
use crate::random_model::RandomModel;

const VOCAB: usize = 301;

fn random() -> RandomModel {
    RandomModel::new(&tiny(), format("int8-g32"), Activations::Float)
}

fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % VOCAB as u32).collect()
}

fn session(model: &metal::Model, options: Options) -> Session<'_, Emulator> {
    Session::new(&model.decoder, options, Emulator::new(Mode::VALUE)).expect("a session")
}

#[test]
fn logits_of_a_whole_text_are_those_of_the_cpu_a_few_rows_at_a_time() {
    if !available() {
        return;
    }
    let random = random();
    let (on_cpu, on_metal) = (cpu::Model::open(&random.path), metal::Model::open(&random.path));
    let (on_cpu, on_metal) = (on_cpu.expect("a model"), on_metal.expect("a model"));
    let text = ids(14);
    let mut want =
        cpu::Session::new(&on_cpu.decoder, &RunOptions::new(14).with_kv(KvType::Int8)).expect("fits");
    let mut found = session(&on_metal, Options::new(14).with_kv(KvType::Int8).with_logit_rows(4));
    let hidden = want.hidden(&text).expect("a text");
    for (first, rows) in [(0, 4), (4, 1), (5, 4), (9, 3), (12, 2)] {
        let want = want.logits(&hidden, first, rows).expect("rows").to_vec();
        let found = found.logits(&hidden, first, rows).expect("rows");
        let apart = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Sums of 256 products in another order, of logits of a few units.
        assert!(found.len() == rows * VOCAB && apart < 1e-5, "rows {first} to {}: {apart:e}", first + rows);
    }
    let hidden = found.hidden(&text).expect("a text");
    assert_eq!((hidden.len(), found.position()), (14 * 256, 14));
    let last = found.logits(&hidden, 13, 1).expect("a row").to_vec();
    found.reset();
    assert!(*found.prefill(&text).expect("a text") == last, "the same hidden states, the same kernel");
}

#[test]
fn a_new_text_begins_as_the_first_did_and_the_likeliest_are_those_of_the_logits() {
    if !available() {
        return;
    }
    let random = random();
    let model = metal::Model::open(&random.path).expect("a model");
    let mut session = session(&model, Options::new(32));
    let logits = session.prefill(&ids(5)).expect("a prompt").to_vec();
    let after = session.step(3).expect("a token").to_vec();
    session.reset();
    assert_eq!(session.position(), 0);
    let top = session.top(&ids(5), 8).expect("the likeliest");
    let mut order: Vec<u32> = (0..VOCAB as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let want: Vec<(u32, f32)> = order[..8].iter().map(|id| (*id, logits[*id as usize])).collect();
    assert_eq!(top, want);
    assert!(*session.step(3).expect("a token") == after, "the same text gives the same bits");
}

#[test]
fn a_past_is_cut_kept_and_gone_on_with_to_the_bit() {
    if !available() {
        return;
    }
    let random = random();
    let model = metal::Model::open(&random.path).expect("a model");
    for kv in [KvType::F16, KvType::Int8] {
        let mut first = session(&model, Options::new(24).with_kv(kv));
        first.prefill(&ids(9)).expect("a beginning");
        let past = first.past().expect("a past");
        let want = first.prefill(&ids(14)[9..]).expect("the rest").to_vec();
        assert!(first.rewind(9) && first.position() == 9, "{kv}");
        assert!(
            *first.prefill(&ids(14)[9..]).expect("again") == want,
            "{kv}: what was cut off leaves nothing"
        );
        assert!(!first.rewind(20), "it hasn't read so much");
        // A longer context has other strides.
        let mut second = session(&model, Options::new(64).with_kv(kv));
        second.restore(&ids(9), &past).expect("restored");
        assert!(*second.prefill(&ids(14)[9..]).expect("the rest") == want, "{kv}: to the bit");
        let refused = second.restore(&ids(8), &past).expect_err("of nine").to_string();
        assert!(refused.contains("8 tokens take"), "{refused}");
        assert_eq!(second.position(), 14, "nothing was changed");
        let mut short = session(&model, Options::new(8).with_kv(kv));
        assert!(short.restore(&ids(9), &past).is_err_and(|e| e.to_string().contains("room for 8")));
    }
}

#[test]
fn a_window_goes_on_beyond_its_length_as_after_reading_what_it_kept() {
    if !available() {
        return;
    }
    let random = random();
    let model = metal::Model::open(&random.path).expect("a model");
    let open = || Box::new(session(&model, Options::new(16)));
    let mut windowed = Windowed::new(open(), 16, 4).expect("a window");
    let (mut greedy, most) = (Vec::new(), 16);
    let mut each = |id| {
        greedy.push(id);
        ControlFlow::Continue(())
    };
    windowed.greedy(&ids(10), most, &mut each).expect("written");
    assert!(greedy.len() == most && windowed.slides() > 0);
    let last = *greedy.last().expect("a token");
    let logits = windowed.prefill(&[last]).expect("read").to_vec();
    let mut fresh = open();
    let want = fresh.prefill(windowed.kept()).expect("kept");
    let apart = logits.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Other kernels read one token than many: keys and values may be a neighbouring f16, 2⁻¹¹ of values of the size of one.
    assert!(apart < 2e-2, "{apart:e}");
}

#[test]
fn a_greedy_text_ends_when_it_is_told_to_and_where_the_context_does() {
    if !available() {
        return;
    }
    let random = random();
    let model = metal::Model::open(&random.path).expect("a model");
    let mut session = session(&model, Options::new(10));
    let mut written = Vec::new();
    session
        .greedy(&ids(5), 6, &mut |id| {
            written.push(id);
            ControlFlow::Continue(())
        })
        .expect("a full context, and a token after it");
    assert_eq!((written.len(), session.position()), (6, 10));
    session.reset();
    let mut heard = 0;
    session
        .greedy(&ids(5), 6, &mut |id| {
            heard += 1;
            assert_eq!(id, written[heard - 1]);
            if heard == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("two tokens");
    assert_eq!((heard, session.position()), (2, 6));
    session.reset();
    let refused = session.greedy(&ids(5), 7, &mut |_| ControlFlow::Continue(())).expect_err("too long");
    assert!(refused.to_string().contains("11 tokens after 0 don't fit a context of 10"), "{refused}");
    assert_eq!(session.position(), 0);
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers_and_leaves_the_past_as_it_was() {
    let random = random();
    let model = metal::Model::open(&random.path).expect("a model");
    let mut session = session(&model, Options::new(8));
    let mut refusals = vec![
        (session.prefill(&[]).map(|_| ()), vec!["at least one token"]),
        (session.prefill(&[1, 301]).map(|_| ()), vec!["token id 301", "vocabulary of 301"]),
        (session.prefill(&ids(9)).map(|_| ()), vec!["9 tokens after 0", "context of 8"]),
        (session.top(&[1], 0).map(|_| ()), vec!["the 0 likeliest", "1 to 64"]),
        (session.top(&[1], 65).map(|_| ()), vec!["the 65 likeliest", "1 to 64"]),
        (session.logits(&[0.0; 512], 1, 2).map(|_| ()), vec!["rows 1..3", "of 2 hidden states"]),
        (session.logits(&[0.0; 512], 0, 2).map(|_| ()), vec!["rows 0..2", "at most 1"]),
    ];
    assert_eq!((session.position(), session.device().runs), (0, 0));
    let bytes = working_set(&model.decoder, &Options::new(64)).expect("options");
    let limited =
        |limit| Session::new(&model.decoder, Options::new(4096), Emulator::with_limit(limit)).map(|_| ());
    refusals.push((limited(bytes), vec!["4096 tokens", "context of 64 tokens fits", "limit"]));
    for (refused, parts) in refusals {
        let message = refused.expect_err("refused").to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }
}
