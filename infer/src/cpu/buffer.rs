//! Activations: rows of f32 whose memory comes from a pool and goes back to it.
//!
//! Knows no operation. Invariant: once every size of a forward pass has been seen, another pass allocates nothing,
//! because what a pass drops is what the next one takes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory between two uses. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    free: Vec<Vec<f32>>,
    allocations: usize,
}

impl Pool {
    /// `rows · width` values of unspecified content.
    pub(super) fn take(&self, rows: usize, width: usize) -> Buffer {
        let len = rows * width;
        let mut data = self.with(|shelf| shelf.best_fit(len));
        data.resize(len, 0.0);
        Buffer { data, width, pool: self.clone() }
    }

    /// How often memory had to be asked for since the pool was made.
    #[cfg(test)]
    pub(super) fn allocations(&self) -> usize {
        self.with(|shelf| shelf.allocations)
    }

    fn with<R>(&self, f: impl FnOnce(&mut Shelf) -> R) -> R {
        // A panic elsewhere can't leave a shelf of plain vectors in a bad state.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shelf {
    /// The smallest free vector that holds `len` values, or a new one.
    fn best_fit(&mut self, len: usize) -> Vec<f32> {
        let fits = self.free.iter().enumerate().filter(|(_, data)| data.capacity() >= len);
        match fits.min_by_key(|(_, data)| data.capacity()).map(|(at, _)| at) {
            Some(at) => self.free.swap_remove(at),
            None => {
                self.allocations += 1;
                Vec::with_capacity(len)
            }
        }
    }
}

/// Activations `[rows, width]`, row-major; dereferences to all of them.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<f32>,
    width: usize,
    pool: Pool,
}

impl Buffer {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.width).unwrap_or(0)
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        self.pool.with(|shelf| shelf.free.push(data));
    }
}
