//! Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum whose matrix is brought near an orthogonal one.
//!
//! All singular directions of an update count about the same, so that those with small gradients are learned too. Knows no schedule
//! and no clipping. Composed of candle's operations on every device: the products are all that takes time.

use candle_core::{Tensor, Var};

use crate::Result;

/// Coefficients of the Newton–Schulz iteration X ← aX + (bA + cA²)X with A = XXᵀ: chosen to bring singular values near 1 fast,
/// not to converge; five steps leave them within about 0.7 … 1.2.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;

/// Moves `var` `[rows, cols]` by one step with Nesterov's momentum; returns the new momentum. `decay` is the share of the value that
/// weight decay leaves.
///
/// An update has entries of RMS about √(max(1, rows/cols)/max(rows, cols)), so that one learning rate fits matrices of every shape.
///
/// # Errors
/// The device is out of memory; a variable that is no matrix.
pub(super) fn step(
    var: &Var,
    momentum: &Tensor,
    gradient: &Tensor,
    beta: f64,
    lr: f64,
    decay: f64,
) -> Result<Tensor> {
    let (rows, cols) = var.dims2()?;
    let momentum = ((momentum * beta)? + (gradient * (1.0 - beta))?)?;
    let ahead = ((&momentum * beta)? + (gradient * (1.0 - beta))?)?;
    let rate = lr * (rows as f64 / cols as f64).max(1.0).sqrt();
    let value = var.as_tensor().detach();
    var.set(&((value * decay)? - (orthogonalized(&ahead)? * rate)?)?)?;
    Ok(momentum)
}

/// A matrix with the singular vectors of `x` and singular values near 1; zero where `x` is.
fn orthogonalized(x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    // The product A is as small as the shorter side allows.
    let tall = rows > cols;
    let x = if tall { x.t()?.contiguous()? } else { x.clone() };
    let norm = (x.sqr()?.sum_all()?.sqrt()? + 1e-7)?;
    let mut x = x.broadcast_div(&norm)?;
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let square = x.matmul(&x.t()?)?;
        let factor = ((&square * b)? + (square.matmul(&square)? * c)?)?;
        x = ((&x * a)? + factor.matmul(&x)?)?;
    }
    if tall { Ok(x.t()?.contiguous()?) } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::check::{assert_close, flat, uniform};

    /// Row-major product in f64 of `a` `[n, k]` and `b` `[k, m]`.
    fn product(a: &[f64], b: &[f64], (n, k, m): (usize, usize, usize)) -> Vec<f64> {
        (0..n * m).map(|i| (0..k).map(|p| a[i / m * k + p] * b[p * m + i % m]).sum()).collect()
    }

    /// X·(aI + bXᵀX + c(XᵀX)²) in f64: the other side of the iteration.
    fn reference(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
        let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-7;
        let mut x: Vec<f64> = x.iter().map(|v| v / norm).collect();
        for _ in 0..5 {
            let xt: Vec<f64> = (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect();
            let a = product(&xt, &x, (cols, rows, cols));
            let aa = product(&a, &a, (cols, cols, cols));
            let factor: Vec<f64> = (0..cols * cols)
                .map(|i| f64::from(i % cols == i / cols) * 3.4445 - 4.7750 * a[i] + 2.0315 * aa[i])
                .collect();
            x = product(&x, &factor, (rows, cols, cols));
        }
        x
    }

    #[test]
    fn wide_and_tall_matrices_become_what_the_iteration_in_f64_says() -> Result<()> {
        for (rows, cols) in [(4, 9), (9, 4), (6, 6), (1, 5)] {
            let x = uniform(3, 2.0, &[rows, cols])?;
            // Fifteen products of at most nine terms, whose errors the iteration multiplies by up to 3.4 a step: 3.4⁵ · 10 · 6e-8.
            assert_close(
                &format!("{rows}x{cols}"),
                &orthogonalized(&x)?,
                &reference(&flat(&x)?, rows, cols),
                3e-4,
            )?;
        }
        Ok(())
    }

    #[test]
    fn rows_of_a_wide_result_are_nearly_orthogonal_and_of_nearly_equal_length() -> Result<()> {
        let y = orthogonalized(&uniform(5, 1.0, &[16, 64])?)?;
        let gram = flat(&y.matmul(&y.t()?)?)?;
        for (i, v) in gram.iter().enumerate() {
            let on_diagonal = i / 16 == i % 16;
            assert!(if on_diagonal { (0.5..1.5).contains(v) } else { v.abs() < 0.3 }, "[{i}] = {v}");
        }
        Ok(())
    }

    #[test]
    fn two_steps_agree_with_the_equations_worked_in_f64() -> Result<()> {
        let (rows, cols) = (6, 3);
        let var = Var::from_tensor(&uniform(1, 1.0, &[rows, cols])?)?;
        let mut momentum = Tensor::zeros((rows, cols), candle_core::DType::F32, &Device::Cpu)?;
        let (mut p, mut m) = (flat(var.as_tensor())?, vec![0f64; rows * cols]);
        for seed in [7, 8] {
            let gradient = uniform(seed, 1.0, &[rows, cols])?;
            momentum = step(&var, &momentum, &gradient, 0.95, 0.02, 0.9)?;
            let g = flat(&gradient)?;
            m = m.iter().zip(&g).map(|(m, g)| 0.95 * m + 0.05 * g).collect();
            let ahead: Vec<f64> = m.iter().zip(&g).map(|(m, g)| 0.95 * m + 0.05 * g).collect();
            let update = reference(&ahead, rows, cols);
            p = p.iter().zip(update).map(|(p, u)| 0.9 * p - 0.02 * 2f64.sqrt() * u).collect();
        }
        assert_close("momentum", &momentum, &m, 1e-6)?;
        // The update is 0.03 of the value at most, and known to 3e-4.
        assert_close("value", var.as_tensor(), &p, 2e-5).map_err(Into::into)
    }

    #[test]
    fn a_gradient_of_zero_moves_nothing() -> Result<()> {
        let var = Var::from_tensor(&uniform(1, 1.0, &[2, 3])?)?;
        let before = flat(var.as_tensor())?;
        let zero = var.zeros_like()?;
        step(&var, &zero, &zero, 0.95, 0.02, 1.0)?;
        assert_eq!(flat(var.as_tensor())?, before);
        Ok(())
    }
}
