//! Losses behind a large vocabulary never hold tokens × vocabulary. Alone in its process, because it counts all there is.

use candle_core::{DType, Device, Tensor, Var};
use qat_train::{
    loss::{Answers, Divergence, Head, Reference, Term},
    ops::tape::Tape,
};

#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

const TOKENS: usize = 4096;
const VOCAB: usize = 65_536;
const HIDDEN: usize = 8;
const MIB: usize = 1 << 20;

fn matrix(rows: usize) -> Tensor {
    let values = (0..rows * HIDDEN).map(|i| ((i * i * 31 + i * 7) % 97) as f32 / 97.0 - 0.5);
    Tensor::from_iter(values, &Device::Cpu).and_then(|t| t.reshape((rows, HIDDEN))).expect("a matrix")
}

#[test]
fn losses_and_their_gradients_take_a_few_chunks_of_logits_and_never_all() {
    let (input, weight) = (matrix(TOKENS), matrix(VOCAB));
    let teacher = Head { input: (&input * 2.0).expect("values"), weight: weight.clone() };
    let [input, weight] = [input, weight].map(|t| Var::from_tensor(&t).expect("a variable"));
    let head = Head { input: input.as_tensor().clone(), weight: weight.as_tensor().clone() };
    let text = vec![7; TOKENS];
    let answers = Answers { text: &text, teacher: Reference::Head(&teacher), temperature: 1.0 };
    let terms = [(Term::CrossEntropy, 0.5), (Term::Divergence(Divergence::ForwardKl), 1.0)];

    let profiler = dhat::Profiler::builder().testing().build();
    let (losses, tape) = Tape::of(|| head.losses(&terms, &answers));
    let mut gradients = tape.gradients(&[(&losses.expect("losses").total, 1.0)]).expect("gradients");
    let peak = dhat::HeapStats::get().max_bytes;
    let all = TOKENS * VOCAB * DType::F32.size_in_bytes();
    let seen = std::hint::black_box(vec![1u8; peak + 1]);
    assert!(dhat::HeapStats::get().max_bytes > peak, "{} bytes are counted", seen.len());
    drop(profiler);

    assert!(gradients.take(&input).is_some() && gradients.take(&weight).is_some());
    // Of a chunk of 32 MiB: the student's logits, the teacher's, the gradient; what the products pack, and matrices of 2 MiB.
    assert_eq!(all, 1024 * MIB);
    assert!(peak > 64 * MIB && peak < 160 * MIB, "{} MiB at most, of which all logits are 1024", peak / MIB);
}
