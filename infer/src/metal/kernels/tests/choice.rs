//! The greatest logit, and the few greatest.

use super::machine::{Machine, f32s, u32s};
use super::uniform;
use crate::metal::kernels::{Argmax, TopK};

/// Ids from the greatest logit down, the first of equal ones first, NaN last.
fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let key = |id: &u32| logits[*id as usize];
    ids.sort_by(|a, b| match (key(a).is_nan(), key(b).is_nan()) {
        (false, false) => key(b).partial_cmp(&key(a)).expect("numbers"),
        (a, b) => a.cmp(&b),
    });
    ids
}

/// Logits of all kinds, with what they are.
fn cases() -> Vec<(String, Vec<f32>)> {
    let mut cases = Vec::new();
    for len in [1, 5, 31, 32, 33, 64, 1000, 1024, 1025, 3000] {
        cases.push((format!("{len} numbers"), uniform(len as u64, len, 20.0)));
        cases.push((format!("{len} equal ones"), vec![-1.5; len]));
        cases.push((format!("{len} NaN"), vec![f32::NAN; len]));
        let few = uniform(len as u64 + 1, len, 2.0).iter().map(|x| x.round()).collect();
        cases.push((format!("{len} with ties"), few));
        let mut broken = uniform(len as u64 + 2, len, 2.0);
        broken.iter_mut().step_by(3).for_each(|x| *x = -f32::NAN);
        cases.push((format!("{len} with NaN"), broken));
    }
    cases.push(("signs of zero".into(), vec![-1.0, -0.0, 0.0, -0.0]));
    cases.push(("infinities".into(), vec![f32::NAN, f32::NEG_INFINITY, 3.0, f32::INFINITY, f32::INFINITY]));
    cases.push(("nothing but −∞".into(), vec![f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY]));
    cases.push(("rising".into(), (0..2500).map(|i| i as f32).collect()));
    // All of the greatest belong to a few threads, and are more than the list of the kernel has places for.
    let crowded = |i: usize| if i % 1024 < 8 { 100.0 + i as f32 / 1e5 } else { -(i as f32) };
    cases.push(("crowded".into(), (0..150_000).map(crowded).collect()));
    cases
}

#[test]
fn the_greatest_logit_wins_and_the_text_goes_on() {
    for (what, logits) in cases() {
        let want = ranked(&logits)[0];
        for (advance, position, tokens, text) in [(true, 0, 3, 8), (false, 5, 1, 7), (true, 6, 1, 7)] {
            let op = Argmax { vocab: logits.len() as u32, text, advance };
            let mut machine = Machine::new(op.dispatch(), 1);
            if position + tokens >= text {
                machine = machine.with_less_to_do();
            }
            machine = machine
                .input(0, f32s(&logits))
                .in_out(2, u32s(&[77, 78]))
                .in_out(3, u32s(&vec![99; text as usize]))
                .in_out(4, u32s(&[position, tokens]));
            machine.verify(|_, after| {
                assert_eq!(after.u32s(2), [want, 78], "{what}");
                let mut written = vec![99; text as usize];
                let next = position + tokens;
                if let Some(place) = written.get_mut(next as usize) {
                    *place = want;
                }
                assert_eq!(after.u32s(3), written, "{what}");
                assert_eq!(after.u32s(4), if advance { [next, 1] } else { [position, tokens] }, "{what}");
            });
            if logits.len() > 2000 {
                break;
            }
        }
    }
}

#[test]
fn the_few_greatest_come_in_order() {
    for (at, (what, logits)) in cases().into_iter().enumerate() {
        let ranked = ranked(&logits);
        let k = [1, 64, 2, 40][at % 4].min(logits.len());
        let op = TopK { vocab: logits.len() as u32, k: k as u32 };
        let machine =
            Machine::new(op.dispatch(), 1).input(0, f32s(&logits)).output(2, 4 * k).output(3, 4 * k);
        machine.verify(|_, after| {
            assert_eq!(after.u32s(3), ranked[..k], "{k} of {what}");
            let bits = |x: &f32| x.to_bits();
            let want: Vec<u32> = ranked[..k].iter().map(|id| bits(&logits[*id as usize])).collect();
            assert_eq!(after.f32s(2).iter().map(bits).collect::<Vec<_>>(), want, "{k} of {what}");
        });
    }
}

#[test]
fn the_widest_vocabulary_is_searched_whole() {
    let mut logits = uniform(3, 262_144, 8.0);
    (logits[262_143], logits[131_071], logits[262_142]) = (9.0, 10.0, 9.0);
    let op = Argmax { vocab: 262_144, text: 2, advance: false };
    let machine = Machine::new(op.dispatch(), 1)
        .input(0, f32s(&logits))
        .in_out(2, u32s(&[0]))
        .in_out(3, u32s(&[0, 0]))
        .in_out(4, u32s(&[0, 1]));
    machine.verify(|_, after| assert_eq!(after.u32s(2), [131_071]));
    let op = TopK { vocab: 262_144, k: 64 };
    let ranked = ranked(&logits);
    Machine::new(op.dispatch(), 1).input(0, f32s(&logits)).output(2, 256).output(3, 256).verify(
        |_, after| {
            assert_eq!(after.u32s(3), ranked[..64]);
        },
    );
}
