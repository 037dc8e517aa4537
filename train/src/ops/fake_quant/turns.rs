//! Weights that oscillate, counted one by one, and held when they have turned back often enough (Nagel et al., arXiv 2203.11086).
//!
//! A weight turns back when its code changes in the direction opposite to its last change. What is remembered of it is one whole number, exact
//! in f32 so that it lies in memory, on disk and on a device like any other tensor: ((turns · 4) + direction) · 32 + (code + 1), 0 before
//! it was first seen. Knows no step and no model. Invariant: a held weight's value is that of its code on the grid of the moment.

use candle_core::{D, DType, Result, Tensor};
use qat_quant::{Format, Scales};

use super::{
    super::{
        for_each_chunk,
        gpu::{Path, path},
        in_place,
    },
    Floats, NAME, on_gpu,
};

/// Places of the parts of the number.
const DIRECTION: u32 = 5;
const COUNT: u32 = 7;

/// The most turns that can be waited for: the number stays exact.
pub const MOST_TURNS: u32 = (1 << (24 - COUNT)) - 1;

/// Codes of a grid whose weights are counted: on finer ones a step of learning crosses cells as a matter of course.
const MOST_CODES: i32 = 16;

/// What is remembered of the weights of one matrix, and when they are held.
#[derive(Debug, Clone)]
pub struct Turns {
    /// A number for each weight, in the shape of the matrix.
    pub(super) state: Tensor,
    /// Turns after which a weight is held.
    pub(super) after: u32,
}

impl Turns {
    /// Those that `state` holds, where a weight is held after `after` turns.
    pub fn new(state: &Tensor, after: u32) -> Self {
        Self { state: state.detach(), after }
    }

    /// Whether weights of a matrix in `format` are counted.
    pub fn counts(format: Format) -> bool {
        let (lo, hi) = format.levels();
        hi - lo < MOST_CODES
    }

    /// After the weights `w` `[rows, cols]`, or their learned `scale` and `bias`, have moved: counts who turned back, and puts those that
    /// are held, or are to be from now on, in the middle of their cells.
    ///
    /// # Errors
    /// Operands that are not f32 and contiguous; the device is out of memory.
    pub fn follow(&self, format: Format, w: &Tensor, scale: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        if path(w.device()) == Path::Kernels {
            return on_gpu::follow(format, w, scale, bias, self);
        }
        let (rows, cols) = w.dims2()?;
        let bias = bias.map(|bias| Floats::of(NAME, bias)).transpose()?;
        let scales = Scales::rounded(format, &Floats::of(NAME, scale)?, bias.as_deref().unwrap_or_default());
        let mut codes = vec![0f32; rows * cols];
        qat_quant::codes(format, &Floats::of(NAME, w)?, rows, cols, &scales, &mut codes);
        let (lowest, after) = (format.levels().0 as f32, self.after);
        in_place(NAME, [&self.state], |[state]| {
            for_each_chunk(1, [state, &mut codes], [], |_, [state, codes], []| {
                for (state, code) in state.iter_mut().zip(codes) {
                    // NaN has no code, and counts as the lowest.
                    *state = next(*state, (*code - lowest) as u32, after);
                    *code = code_in(*state) as f32 + lowest;
                }
            });
        })?;
        let state = Floats::of(NAME, &self.state)?;
        let mut values = vec![0f32; rows * cols];
        qat_quant::values(format, &codes, rows, cols, &scales, &mut values);
        in_place(NAME, [w], |[w]| {
            for_each_chunk(1, [w], [&state, &values], |_, [w], [state, values]| {
                for ((w, state), value) in w.iter_mut().zip(state).zip(values) {
                    if turns_in(*state) >= after {
                        *w = *value;
                    }
                }
            });
        })
    }

    /// How many weights are held.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn held(&self) -> Result<f64> {
        // Rows are counted where they lie, exactly: none has 2²⁴ weights.
        let held = self.state.ge(f64::from(self.after << COUNT))?.to_dtype(DType::F32)?;
        let rows = held.sum(D::Minus1)?.to_vec1::<f32>()?;
        Ok(rows.into_iter().map(f64::from).sum())
    }

    /// Puts the codes of the weights that are held into `codes`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn put_codes(&self, format: Format, codes: &mut [f32]) -> Result<()> {
        let state = self.state.flatten_all()?.to_vec1::<f32>()?;
        let lowest = format.levels().0 as f32;
        for (code, state) in codes.iter_mut().zip(state) {
            if turns_in(state) >= self.after {
                *code = code_in(state) as f32 + lowest;
            }
        }
        Ok(())
    }

    /// `codes` where they are held and 0 elsewhere, and the same of `grad`; from `free`, a copy of `grad`, those are taken. None where nobody
    /// is held.
    pub(super) fn parted(&self, format: Format, free: &mut [f32], grad: &[f32]) -> Result<Option<Held>> {
        let state = Floats::of(NAME, &self.state)?;
        let is_held = |state: &&f32| turns_in(**state) >= self.after;
        if !state.iter().any(|state| is_held(&state)) {
            return Ok(None);
        }
        let lowest = format.levels().0 as f32;
        let (mut codes, mut slopes) = (vec![0f32; grad.len()], vec![0f32; grad.len()]);
        for_each_chunk(1, [free, &mut codes, &mut slopes], [&state, grad], |_, outputs, [state, grad]| {
            let [free, codes, slopes] = outputs;
            for (i, state) in state.iter().enumerate().filter(|(_, state)| is_held(state)) {
                (free[i], codes[i], slopes[i]) = (0.0, code_in(*state) as f32 + lowest, grad[i]);
            }
        });
        Ok(Some(Held { codes, slopes }))
    }

    /// Sets each of `dw` whose weight is held to 0.
    pub(super) fn still(&self, dw: &mut [f32]) -> Result<()> {
        let state = Floats::of(NAME, &self.state)?;
        for_each_chunk(1, [dw], [&state], |_, [dw], [state]| {
            for (dw, _) in dw.iter_mut().zip(state).filter(|(_, state)| turns_in(**state) >= self.after) {
                *dw = 0.0;
            }
        });
        Ok(())
    }
}

/// What held weights add to the gradients of scales and biases.
pub(super) struct Held {
    pub codes: Vec<f32>,
    pub slopes: Vec<f32>,
}

fn turns_in(state: f32) -> u32 {
    state as u32 >> COUNT
}

/// The code, counted from the lowest.
fn code_in(state: f32) -> u32 {
    (state as u32 % (1 << DIRECTION)).saturating_sub(1)
}

/// What is remembered of a weight whose code, counted from the lowest, is `code` now.
fn next(state: f32, code: u32, after: u32) -> f32 {
    let (now, was) = (code + 1, state as u32 % (1 << DIRECTION));
    let (turns, last) = (turns_in(state), state as u32 >> DIRECTION & 3);
    if turns >= after {
        return state;
    }
    let direction = match was {
        0 => 0,
        _ if now > was => 1,
        _ if now < was => 2,
        _ => last,
    };
    let turned = last != 0 && direction != last;
    (((turns + u32::from(turned)) << COUNT) | (direction << DIRECTION) | now) as f32
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// The turns after each of these codes.
    fn turns(codes: &[u32], after: u32) -> Vec<u32> {
        let mut state = 0.0;
        let mut step = |code: &u32| {
            state = next(state, *code, after);
            turns_in(state)
        };
        codes.iter().map(&mut step).collect()
    }

    #[test]
    fn a_turn_is_a_change_against_the_last_one_and_rests_between_do_not_matter() {
        assert_eq!(turns(&[3, 4, 5, 6, 6], 9), [0, 0, 0, 0, 0]);
        assert_eq!(turns(&[3, 4, 3, 4, 4, 4, 3], 9), [0, 0, 1, 2, 2, 2, 3]);
        assert_eq!(turns(&[7, 3, 4, 4, 2], 9), [0, 0, 1, 1, 2]);
    }

    #[test]
    fn the_number_is_exact_up_to_the_most_turns_and_a_held_code_stays() {
        let mut state = 0.0;
        for step in 0..MOST_TURNS + 10 {
            state = next(state, 14 + step % 2, MOST_TURNS);
        }
        assert_eq!((turns_in(state), state.fract()), (MOST_TURNS, 0.0));
        let (code, held) = (code_in(state), state);
        assert_eq!((next(state, 0, MOST_TURNS), code_in(held)), (held, code));
    }

    #[test]
    fn a_held_weight_follows_its_code_whatever_the_scale_does() -> Result<()> {
        for format in Format::all().into_iter().filter(|format| Turns::counts(*format)) {
            let (rows, cols) = (2, 256);
            let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu);
            let groups = format.groups(rows, cols);
            let state = tensor(vec![0.0; rows * cols], &[rows, cols])?;
            let turns = Turns::new(&state, 1);
            let bias = |scale: f32| -> Result<Option<Tensor>> {
                if format.has_bias() { tensor(vec![-scale; groups], &[groups]).map(Some) } else { Ok(None) }
            };
            let at = |scale: f32| tensor(vec![scale; groups], &[groups]);
            let w = tensor(vec![0.0; rows * cols], &[rows, cols])?;
            // Up, and back down: held in the lower of two cells.
            for value in [0.1, 0.9, 0.1] {
                in_place("test", [&w], |[w]| w[..100].fill(value))?;
                turns.follow(format, &w, &at(1.0)?, bias(1.0)?.as_ref())?;
            }
            assert_eq!(turns.held()?, 100.0, "{format}");
            let mut codes = vec![7.5; rows * cols];
            turns.put_codes(format, &mut codes)?;
            for scale in [1.0, 0.3, 17.0, 1e-3] {
                in_place("test", [&w], |[w]| w[..100].fill(1.0))?;
                turns.follow(format, &w, &at(scale)?, bias(scale)?.as_ref())?;
                let stored = format.scale_type().round(scale);
                let bias = if format.has_bias() { -stored } else { 0.0 };
                for (w, code) in w.flatten_all()?.to_vec1::<f32>()?.into_iter().zip(&codes).take(100) {
                    assert_eq!(w, stored * code + bias, "{format} at {scale}");
                }
                assert_eq!(w.flatten_all()?.to_vec1::<f32>()?[100..], [0.0; 412], "{format}: others moved");
            }
        }
        Ok(())
    }
}
