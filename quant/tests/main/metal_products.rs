//! Products on the GPU against the portable reference: every kernel, every storage, over ragged shapes.
//!
//! A reference multiplies the decoded matrix in f64. What is allowed beside it is the sum of magnitudes times what the
//! roundings of the kernel's order of additions can do; where activations are normed or rounded on the way, also what
//! that may differ by.

use qat_metal_host as host;
use qat_quant::kernels::metal::{Epilogue, Matrix, Product, Storage};
use qat_quant::{Format, int8_tokens};

use crate::matrices::normal;
use crate::metal::{self, Stored, UNIT, after, columns, storages};

/// Tokens, and what each is for: the one of `matvec`; the least, an odd number and the most of `matfew`; the least of
/// `matmul`, one more than its tile, and two tiles and a part.
const TOKENS: [usize; 7] = [1, 2, 3, 8, 9, 33, 70];

/// A product to run.
pub struct Case<'a> {
    pub matrices: &'a [Stored],
    /// `[tokens, cols]`
    pub x: Vec<f32>,
    /// The weight of the norm.
    pub norm: Option<Vec<f32>>,
    pub int8: bool,
    pub has_bias: bool,
    pub epilogue: Epilogue,
}

/// Added to the mean square: large enough to be seen.
const EPS: f32 = 0.01;

/// An activation as the kernel should multiply it, and how far it may be from that.
#[derive(Clone, Copy)]
struct Input {
    value: f64,
    doubt: f64,
}

/// An output, and how far it may be from that.
#[derive(Clone, Copy)]
struct Output {
    value: f64,
    bound: f64,
}

impl Case<'_> {
    fn cols(&self) -> usize {
        self.matrices[0].cols
    }

    fn tokens(&self) -> usize {
        self.x.len() / self.cols()
    }

    fn bias(&self, matrix: usize) -> Vec<f32> {
        normal(31 + matrix as u64, self.matrices[matrix].rows)
    }

    /// What an output is added to.
    fn before(&self, matrix: usize) -> Vec<f32> {
        normal(41 + matrix as u64, self.tokens() * self.matrices[matrix].rows)
    }

    /// The activations of one token. `is_fast` allows what a compiler makes of divisions with fast math.
    fn inputs(&self, x: &[f32], is_fast: bool) -> Vec<Input> {
        if self.norm.is_none() && self.int8 && !is_fast {
            // To the bit: no doubt.
            let mut rounded = x.to_vec();
            int8_tokens(&mut rounded, x.len());
            return rounded.iter().map(|&x| Input { value: x.into(), doubt: 0.0 }).collect();
        }
        let (normed, relative) = self.normed(x);
        if !self.int8 {
            return normed.iter().map(|&v| Input { value: v, doubt: v.abs() * relative }).collect();
        }
        // The scale and each quotient inherit the doubt, and have a rounding or two of their own.
        let relative = 2.0 * relative + 6.0 * UNIT;
        let scale = normed.iter().fold(0f64, |peak, v| peak.max(v.abs())) / 127.0;
        if scale == 0.0 {
            return vec![Input { value: 0.0, doubt: 0.0 }; x.len()];
        }
        let code = |quotient: f64| quotient.round_ties_even().clamp(-128.0, 127.0);
        let input = |v: &f64| {
            let quotient = v / scale;
            let value = code(quotient) * scale;
            // Only a quotient next to a tie may be rounded either way.
            let ends = [1.0 - relative, 1.0 + relative].map(|factor| code(quotient * factor));
            let step = if ends[0] == ends[1] { 0.0 } else { scale };
            Input { value, doubt: step + value.abs() * relative }
        };
        normed.iter().map(input).collect()
    }

    /// x after its norm, and the relative error that the kernel's may have: half of that of the mean, whose terms pass
    /// at most 4 additions in four columns, one for each 256 columns, 31 of lanes and 1 of simdgroups, beside their
    /// square and the division; then eps, root, reciprocal and two products.
    fn normed(&self, x: &[f32]) -> (Vec<f64>, f64) {
        let Some(weight) = &self.norm else {
            return (x.iter().map(|&x| x.into()).collect(), 0.0);
        };
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let inverse = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
        let values = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * inverse * f64::from(w)).collect();
        (values, after(4 + x.len().div_ceil(256) + 31 + 1 + 2) / 2.0 + after(5))
    }

    /// Roundings that a term passes on its way into an output, in the order of each kernel. Lanes of a simdgroup may be
    /// added in any order: 31 additions at most. Two more are those of the bias and of what was there before.
    fn roundings(&self) -> usize {
        let cols = self.cols();
        let piece = if matches!(self.matrices[0].storage, Storage::Packed(_)) { 16 } else { 8 };
        let turns = cols.div_ceil(piece).div_ceil(32);
        let sum = match self.tokens() {
            // The product, the piece's additions, scale, two additions for each piece of a lane, lanes, scale of x.
            1 => 1 + piece + 1 + 2 * turns + 31 + 1,
            // The product, the additions of a lane's pieces, lanes.
            2..=8 => 1 + piece * turns + 31,
            // The product and an addition for each column of whole steps.
            _ => 1 + cols.next_multiple_of(32),
        };
        sum + 2
    }

    /// Output `row` of a matrix before its epilogue.
    fn output(&self, matrix: usize, row: usize, inputs: &[Input], bias: &[f32]) -> Output {
        let stored = &self.matrices[matrix];
        // One token's zero points are multiplied apart from its codes; others meet decoded weights.
        let of_zero = if self.tokens() == 1 { 2.0 } else { 0.0 };
        let zeros = &stored.zeros[row * stored.cols..];
        let (mut value, mut magnitude, mut doubt) = (0.0, 0.0, 0.0);
        for ((input, &w), &zero) in inputs.iter().zip(stored.row(row)).zip(zeros) {
            let w = f64::from(w);
            value += w * input.value;
            magnitude += (w.abs() + of_zero * f64::from(zero)) * (input.value.abs() + input.doubt);
            doubt += w.abs() * input.doubt;
        }
        if self.has_bias {
            value += f64::from(bias[row]);
            magnitude += f64::from(bias[row]).abs();
        }
        Output { value, bound: magnitude * after(self.roundings()) + doubt }
    }

    /// All outputs `[tokens, rows]` of each matrix that has some.
    fn expected(&self, is_fast: bool) -> Vec<Vec<Output>> {
        let biases: Vec<Vec<f32>> = (0..self.matrices.len()).map(|m| self.bias(m)).collect();
        let inputs: Vec<_> = self.x.chunks_exact(self.cols()).map(|x| self.inputs(x, is_fast)).collect();
        let of = |m: usize, row: usize, inputs: &[Input]| self.output(m, row, inputs, &biases[m]);
        let outputs = if self.epilogue == Epilogue::Gate { 1 } else { self.matrices.len() };
        let of_matrix = |m: usize| {
            let rows = self.matrices[m].rows;
            let before = self.before(m);
            let each = inputs.iter().enumerate().flat_map(|(token, inputs)| {
                let before = &before[token * rows..];
                (0..rows).map(move |row| match self.epilogue {
                    Epilogue::Store => of(m, row, inputs),
                    Epilogue::Add => add(of(m, row, inputs), before[row].into()),
                    Epilogue::Gate => gate(of(0, row, inputs), of(1, row, inputs)),
                })
            });
            each.collect()
        };
        (0..outputs).map(of_matrix).collect()
    }

    /// Runs the kernel by the emulator's whole protocol.
    pub fn check(&self) {
        let matrices: Vec<Matrix> = self
            .matrices
            .iter()
            .map(|m| Matrix { rows: m.rows as u32, tensor_scale: m.tensor_scale })
            .collect();
        let storage = self.matrices[0].storage;
        let product = Product {
            storage,
            cols: self.cols() as u32,
            matrices: &matrices,
            tokens: self.tokens() as u32,
            norm: self.norm.as_ref().map(|_| EPS),
            int8: self.int8,
            has_bias: self.has_bias,
            epilogue: self.epilogue,
        };
        let dispatch = product.dispatch();
        let mut buffers = metal::no_buffers(12);
        buffers[0] = metal::input(&self.x);
        buffers[1] = metal::read_only(&dispatch.shape);
        if let Some(weight) = &self.norm {
            buffers[2] = metal::input(weight);
        }
        let exact = self.expected(false);
        // Only what is rounded on the way may be rounded otherwise.
        let fast = if self.int8 { self.expected(true) } else { exact.clone() };
        let expected = [exact, fast];
        for (m, stored) in self.matrices.iter().enumerate() {
            if m < expected[0].len() {
                buffers[3 + m] = match self.epilogue {
                    Epilogue::Add => host::Buffer::InOut(metal::bytes(&self.before(m))),
                    _ => host::Buffer::Out(4 * self.tokens() * stored.rows),
                };
            }
            buffers[6 + m] = metal::read_only(&stored.bytes);
            if self.has_bias {
                buffers[9 + m] = metal::input(&self.bias(m));
            }
        }
        let what = format!(
            "{} {storage:?}, rows {:?}, {} columns, {} tokens, norm {}, int8 {}, bias {}, {:?}",
            dispatch.launch.kernel,
            matrices.iter().map(|m| m.rows).collect::<Vec<_>>(),
            self.cols(),
            self.tokens(),
            self.norm.is_some(),
            self.int8,
            self.has_bias,
            self.epilogue
        );
        metal::verify(&what, &dispatch, &buffers, &mut |mode, found| {
            let is_fast = mode.build == host::Build::FastMath;
            for (m, expected) in expected[usize::from(is_fast)].iter().enumerate() {
                let found = metal::floats(&found[3 + m]);
                assert_eq!(found.len(), expected.len(), "{what}");
                for (at, (&found, expected)) in found.iter().zip(expected).enumerate() {
                    let error = (f64::from(found) - expected.value).abs();
                    let Output { value, bound } = *expected;
                    assert!(
                        error <= bound,
                        "{what}, {mode:?}: output {m} at {at} is {found}, want {value} ± {bound}"
                    );
                }
            }
        });
    }
}

/// An output added to what was there: one more rounding, which is counted, of one more magnitude.
fn add(output: Output, before: f64) -> Output {
    let bound = output.bound + (before.abs() + output.value.abs()) * after(2);
    Output { value: output.value + before, bound }
}

/// The gated output. The slope of silu is at most 1.1; exponential (4 ulp in Metal, 8 roundings), sum, quotient and
/// product are 16 roundings at most.
fn gate(gate: Output, up: Output) -> Output {
    let silu = gate.value / (1.0 + (-gate.value).exp());
    let bound = silu.abs() * up.bound + 1.1 * gate.bound * (up.value.abs() + up.bound);
    let value = silu * up.value;
    Output { value, bound: bound + (value.abs() + bound) * after(16) }
}

/// A weight of a norm: around 1, of either sign.
pub fn norm_weight(cols: usize) -> Vec<f32> {
    normal(5, cols).iter().map(|v| 1.0 + 0.5 * v).collect()
}

/// Small values and an outlier among them, as activations have.
pub fn activations(tokens: usize, cols: usize) -> Vec<f32> {
    let mut x = normal(6, tokens * cols);
    x.iter_mut().skip(cols / 2).step_by(cols + 1).for_each(|x| *x *= 20.0);
    x
}

/// Rows and epilogues, and what each is for.
///
/// Rows: 1, the least; 5, 13 and 37, which end within the rows of a simdgroup, of a threadgroup and of a tile; 64, whole
/// tiles of every kernel; 70, more than a tile. Three matrices have different rows, the least last, so that a threadgroup
/// which takes itself for one of the wrong matrix leaves its output.
const ROWS: [(&[usize], bool, Epilogue); 7] = [
    (&[37], true, Epilogue::Store),
    (&[70, 13, 1], false, Epilogue::Store),
    (&[5, 5], false, Epilogue::Gate),
    (&[64, 70, 5], true, Epilogue::Add),
    (&[37, 37], true, Epilogue::Gate),
    (&[1], false, Epilogue::Add),
    (&[5, 37], true, Epilogue::Store),
];

/// Runs `storage` for every length of row and each of `tokens`, each with the next of `ROWS`.
fn check_all(next: &mut usize, storage: Storage, tokens: &[usize]) {
    for cols in columns(storage) {
        for &tokens in tokens {
            let (rows, has_bias, epilogue) = ROWS[*next % ROWS.len()];
            *next += 1;
            let nth = |(nth, &rows): (usize, &usize)| Stored::nth(nth, storage, rows, cols);
            let matrices: Vec<_> = rows.iter().enumerate().map(nth).collect();
            let x = activations(tokens, cols);
            Case { matrices: &matrices, x, norm: None, int8: false, has_bias, epilogue }.check();
        }
        // So that tokens and rows don't meet in the same pairs again.
        *next += 1;
    }
}

fn is_affine(storage: &Storage) -> bool {
    matches!(storage, Storage::Packed(Format::Affine(_)))
}

#[test]
fn metal_products_are_within_the_bound() {
    if !host::available() {
        return;
    }
    let mut next = 0;
    for storage in storages().into_iter().filter(|s| !is_affine(s)) {
        check_all(&mut next, storage, &TOKENS);
    }
}

#[test]
fn metal_products_of_affine_matrices_are_within_the_bound() {
    if !host::available() {
        return;
    }
    let mut next = 0;
    for (i, storage) in storages().into_iter().filter(is_affine).enumerate() {
        // Codes of as many bits come in six storages, which differ in constants only: each runs every kernel, and
        // together they see every number of tokens twice.
        check_all(&mut next, storage, &[TOKENS[0], TOKENS[1 + i % 3], TOKENS[4 + i % 3]]);
    }
}

#[test]
fn metal_products_bear_codes_and_activations_at_their_ends() {
    if !host::available() {
        return;
    }
    for format in Format::all() {
        let (lo, hi) = format.levels();
        let cols = 2 * format.block_len().max(32);
        for tokens in [1, 3, 9] {
            for code in [|_: usize| 0, |_| 1, |index| index % 2] {
                let stored = [Stored::packed(format, 9, cols, |index| [lo, hi][code(index)])];
                let x = (0..tokens * cols).map(|i| if i % 2 == 0 { 127.0 } else { -127.0 }).collect();
                Case {
                    matrices: &stored,
                    x,
                    norm: None,
                    int8: tokens == 1,
                    has_bias: false,
                    epilogue: Epilogue::Store,
                }
                .check();
            }
        }
    }
}
