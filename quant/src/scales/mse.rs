//! Scale search: shrink the runtime's own range step by step, then refine the best by least squares.
//!
//! Every candidate is judged on the stored grid with f64 sums, and the first is the runtime's own rule: the result is
//! never worse than [`super::absmax`]. About 35 candidates, so some 20 ns per weight and core.

use super::absmax;
use crate::{Format, format::ScaleType, grid::Grid};

/// The ranges tried, as fractions of the full range. The narrowest that normal weights want is about 0.53: four levels
/// reach to ±1.5σ (J. Max 1960), while 128 weights reach to 2.8σ. More codes or shorter groups want more.
const FRACTIONS: [f32; 15] =
    [0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8, 0.775, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// Least-squares rounds; codes stop changing after two or three.
const ROUNDS: usize = 4;

/// A scale per group for a grid without bias. An uneven grid (−8..7) is tried with either sign.
#[inline(always)]
pub(super) fn symmetric(format: Format, w: &[f32]) -> (f32, f32) {
    let (lo, hi) = format.levels();
    let own = if lo == -hi { absmax::q8_0(w) } else { absmax::q4_0(w) };
    let mut search = Search::new(format, w, (own, 0.0));
    let signs: &[f32] = if lo == -hi { &[1.0] } else { &[1.0, -1.0] };
    for &sign in signs {
        // With the other sign, the widest candidate puts the peak on the 7 instead of the −8.
        let widest = if sign > 0.0 { own } else { own * (lo as f32 / hi as f32) };
        search.offer((widest, 0.0));
        for fraction in FRACTIONS {
            search.offer((widest * fraction, 0.0));
        }
    }
    search.refine(|sums| (sums.line_through_zero(), 0.0))
}

/// A scale and a bias per group.
#[inline(always)]
pub(super) fn affine(format: Format, w: &[f32]) -> (f32, f32) {
    let steps = format.levels().1 as f32;
    let mut search = Search::new(format, w, absmax::mlx(w, steps));
    let (low, high) = absmax::extremes(w);
    // Halved before they are added: the range of finite weights may overflow, half of it can't.
    let (middle, reach) = (low / 2.0 + high / 2.0, high / 2.0 - low / 2.0);
    for fraction in [1.0].into_iter().chain(FRACTIONS) {
        let half = fraction * reach;
        search.offer((half / steps * 2.0, middle - half));
    }
    search.refine(Sums::line)
}

/// A scale per group, with a bias that puts the levels evenly around zero (SEQ).
#[inline(always)]
pub(super) fn even(format: Format, w: &[f32]) -> (f32, f32) {
    let middle = format.middle();
    let kind = format.scale_type();
    // The bias is that of the scale as it is stored, so that learning, which keeps it so, starts where this ends.
    let grid = |scale: f32| (scale, -middle * kind.round(scale));
    // The outermost levels on the peak, as the widest.
    let (low, high) = absmax::extremes(w);
    let widest = high.max(-low) / middle;
    let mut search = Search::new(format, w, grid(widest));
    for fraction in FRACTIONS {
        search.offer(grid(widest * fraction));
    }
    search.refine(|sums| grid(sums.line_through(middle)))
}

/// The best grid found so far for one group.
struct Search<'a> {
    w: &'a [f32],
    levels: (i32, i32),
    kind: ScaleType,
    best: Grid,
    error: f64,
}

impl<'a> Search<'a> {
    #[inline(always)]
    fn new(format: Format, w: &'a [f32], start: (f32, f32)) -> Self {
        let levels = format.levels();
        let kind = format.scale_type();
        let best = Grid::new(levels, kind.round(start.0), kind.round(start.1));
        Self { w, levels, kind, best, error: squared_error(best, w) }
    }

    /// Takes the candidate if its stored grid has less error, and says whether it did.
    #[inline(always)]
    fn offer(&mut self, (scale, bias): (f32, f32)) -> bool {
        let grid = Grid::new(self.levels, self.kind.round(scale), self.kind.round(bias));
        let error = squared_error(grid, self.w);
        let better = error < self.error;
        if better {
            (self.best, self.error) = (grid, error);
        }
        better
    }

    /// Alternates between nearest codes and the best `fit` for these codes.
    #[inline(always)]
    fn refine(mut self, fit: impl Fn(Sums) -> (f32, f32)) -> (f32, f32) {
        for _ in 0..ROUNDS {
            let sums = Sums::of(self.best, self.w);
            if !self.offer(fit(sums)) {
                break;
            }
        }
        (self.best.scale, self.best.bias)
    }
}

const LANES: usize = 8;

#[inline(always)]
fn squared_error(grid: Grid, w: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    for w in w.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let off = f64::from(w[lane]) - f64::from(grid.value(grid.code(w[lane])));
            sums[lane] += off * off;
        }
    }
    sums.into_iter().sum()
}

/// Sums over a group that least squares needs, with q the nearest codes.
struct Sums {
    n: f64,
    q: f64,
    qq: f64,
    w: f64,
    qw: f64,
}

impl Sums {
    #[inline(always)]
    fn of(grid: Grid, w: &[f32]) -> Self {
        let mut lanes = [[0f64; LANES]; 4];
        for w in w.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                let (q, w) = (f64::from(grid.code(w[lane])), f64::from(w[lane]));
                lanes[0][lane] += q;
                lanes[1][lane] += q * q;
                lanes[2][lane] += w;
                lanes[3][lane] += q * w;
            }
        }
        let [q, qq, w_sum, qw] = lanes.map(|lane| lane.into_iter().sum());
        Self { n: w.len() as f64, q, qq, w: w_sum, qw }
    }

    /// The s of least Σ(w − s·q)²; 0 when every code is 0.
    #[inline(always)]
    fn line_through_zero(self) -> f32 {
        if self.qq == 0.0 { 0.0 } else { (self.qw / self.qq) as f32 }
    }

    /// The s of least Σ(w − s·(q − middle))².
    #[inline(always)]
    fn line_through(self, middle: f32) -> f32 {
        let m = f64::from(middle);
        let squares = self.qq - 2.0 * m * self.q + m * m * self.n;
        if squares == 0.0 { 0.0 } else { ((self.qw - m * self.w) / squares) as f32 }
    }

    /// The s and b of least Σ(w − s·q − b)²; s is 0 when all codes are the same.
    #[inline(always)]
    fn line(self) -> (f32, f32) {
        let spread = self.n * self.qq - self.q * self.q;
        let scale = if spread == 0.0 { 0.0 } else { (self.n * self.qw - self.q * self.w) / spread };
        (scale as f32, ((self.w - scale * self.q) / self.n) as f32)
    }
}
