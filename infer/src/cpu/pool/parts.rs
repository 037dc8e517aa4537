//! What tasks write to, cut so that each has its own: slices in chunks, matrices in tiles, several of them together.
//!
//! Knows no threads. Invariant: parts of different indices don't overlap, and an index is checked; that nobody has the same
//! one twice is what [`Pool::each`](super::Pool::each) sees to.

use std::marker::PhantomData;

/// Something that is cut into parts, one for each task of a job.
///
/// # Safety
/// Parts of different indices below [`count`](Self::count) must not overlap.
#[expect(unsafe_code, reason = "whoever cuts must cut cleanly")]
pub unsafe trait Parts: Sync {
    /// What a task owns.
    type Part;

    /// How many parts there are.
    fn count(&self) -> usize;

    /// Part `index`.
    ///
    /// # Safety
    /// `index` is below the count, and no part of this index is in use.
    unsafe fn part(&self, index: usize) -> Self::Part;
}

/// A slice in chunks of equal length, the last possibly shorter.
#[derive(Debug)]
pub struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    whole: PhantomData<&'a mut [T]>,
}

impl<'a, T> Chunks<'a, T> {
    /// `slice` in chunks of `chunk` elements.
    ///
    /// # Panics
    /// When `chunk` is 0.
    pub fn new(slice: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "chunks of nothing");
        Self { start: slice.as_mut_ptr(), len: slice.len(), chunk, whole: PhantomData }
    }
}

// SAFETY: it only hands out what is `&mut [T]` of different elements, to one thread each.
#[expect(unsafe_code, reason = "a `&mut [T]` in parts")]
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

// SAFETY: chunk i is [i·chunk, (i + 1)·chunk) within the slice.
#[expect(unsafe_code, reason = "chunks don't overlap")]
unsafe impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    // SAFETY: the caller keeps the trait's promise; out of bounds is caught.
    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        assert!(index < self.count(), "chunk {index} of {}", self.count());
        let first = index * self.chunk;
        // SAFETY: in bounds by the assertion; the caller promises that nobody else has this chunk.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.chunk.min(self.len - first)) }
    }
}

/// A row-major matrix in tiles of equal size, those at the right and lower edge possibly smaller; numbered row by row of
/// tiles.
#[derive(Debug)]
pub struct Tiles<'a> {
    start: *mut f32,
    shape: [usize; 2],
    tile: [usize; 2],
    /// Tiles in a row of tiles.
    across: usize,
    count: usize,
    whole: PhantomData<&'a mut [f32]>,
}

impl<'a> Tiles<'a> {
    /// The matrix `[rows, cols]` in tiles `[rows, cols]`.
    ///
    /// # Panics
    /// When `matrix` has another length, or a size of a tile is 0.
    pub fn new(matrix: &'a mut [f32], shape: [usize; 2], tile: [usize; 2]) -> Self {
        assert!(matrix.len() == shape[0] * shape[1] && tile[0] > 0 && tile[1] > 0, "{shape:?} in {tile:?}");
        let across = shape[1].div_ceil(tile[1]);
        let count = shape[0].div_ceil(tile[0]) * across;
        Self { start: matrix.as_mut_ptr(), shape, tile, across, count, whole: PhantomData }
    }
}

// SAFETY: it only hands out what is `&mut [f32]` of different elements, to one thread each.
#[expect(unsafe_code, reason = "a `&mut [f32]` in parts")]
unsafe impl Sync for Tiles<'_> {}

// SAFETY: tiles are the products of disjoint ranges of rows and of columns.
#[expect(unsafe_code, reason = "tiles don't overlap")]
unsafe impl<'a> Parts for Tiles<'a> {
    type Part = Tile<'a>;

    fn count(&self) -> usize {
        self.count
    }

    // SAFETY: the caller keeps the trait's promise; out of bounds is caught.
    unsafe fn part(&self, index: usize) -> Tile<'a> {
        assert!(index < self.count(), "tile {index} of {}", self.count());
        // Most matrices are cut into columns only: no division.
        let (down, right) =
            if index < self.across { (0, index) } else { (index / self.across, index % self.across) };
        let first = [down * self.tile[0], right * self.tile[1]];
        Tile {
            // SAFETY: the first element of a tile is inside the matrix.
            start: unsafe { self.start.add(first[0] * self.shape[1] + first[1]) },
            stride: self.shape[1],
            first,
            shape: [self.tile[0].min(self.shape[0] - first[0]), self.tile[1].min(self.shape[1] - first[1])],
            whole: PhantomData,
        }
    }
}

/// A task's part of a matrix.
#[derive(Debug)]
pub struct Tile<'a> {
    start: *mut f32,
    stride: usize,
    first: [usize; 2],
    shape: [usize; 2],
    whole: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// Row and column of the matrix at which it begins.
    pub fn first(&self) -> [usize; 2] {
        self.first
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Row `row` of the tile.
    ///
    /// # Panics
    /// When there is no such row.
    #[inline]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.shape[0], "row {row} of {}", self.shape[0]);
        // SAFETY: the row lies inside the matrix, and the tile, borrowed mutably, is its only user.
        #[expect(unsafe_code, reason = "rows of a tile are not one slice")]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.shape[1])
        }
    }
}

/// The parts of several matrices, one matrix after the other: a part comes with the number of its matrix.
#[derive(Debug)]
pub struct Joined<'a, const N: usize>(pub [Tiles<'a>; N]);

// SAFETY: an index is one tile of one matrix, and the matrices are different borrows.
#[expect(unsafe_code, reason = "tiles don't overlap")]
unsafe impl<'a, const N: usize> Parts for Joined<'a, N> {
    type Part = (usize, Tile<'a>);

    fn count(&self) -> usize {
        self.0.iter().map(Parts::count).sum()
    }

    /// The number of the matrix, and the part.
    // SAFETY: the caller keeps the trait's promise; out of bounds is caught.
    unsafe fn part(&self, mut index: usize) -> Self::Part {
        let mut which = 0;
        while index >= self.0[which].count() {
            index -= self.0[which].count();
            which += 1;
        }
        // SAFETY: what the caller promises of the index holds for the one tile that it stands for.
        (which, unsafe { self.0[which].part(index) })
    }
}

macro_rules! parts_of_tuple {
    ($($name:ident $at:tt),+) => {
        // SAFETY: each member's parts don't overlap, and the members are different borrows.
        #[expect(unsafe_code, reason = "part by part, each member's own")]
        unsafe impl<$($name: Parts),+> Parts for ($($name,)+) {
            type Part = ($($name::Part,)+);

            fn count(&self) -> usize {
                [$(self.$at.count()),+].into_iter().fold(usize::MAX, usize::min)
            }

            // SAFETY: the caller keeps the trait's promise.
            unsafe fn part(&self, index: usize) -> Self::Part {
                // SAFETY: below every member's count, and what the caller promises holds for each.
                unsafe { ($(self.$at.part(index),)+) }
            }
        }
    };
}

parts_of_tuple!(A 0, B 1);
parts_of_tuple!(A 0, B 1, C 2);
parts_of_tuple!(A 0, B 1, C 2, D 3);
