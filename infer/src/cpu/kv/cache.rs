//! Where the tiles of all layers, heads and positions lie.
//!
//! Layers that see the whole text have a tile for every position of it. Those that see a window have a ring of tiles, just long enough for
//! a pass and for going back a little: what slides out of sight is written over. Tiles of layers and heads follow each other,
//! position after position, so that memory is touched as the text grows and a reset forgets it all.

use std::ops::Range;

use super::{Code as _, KvType, TILE, with_code};
use crate::cpu::pool::{Chunks, Pool};
use crate::cpu::session::PASS;
use crate::model::{AttentionShape, Config, Reach};
use crate::{Error, Result};
use qat_quant::vectorized;

/// Keys and values of a model for up to `capacity` positions.
#[derive(Debug)]
pub struct KvCache {
    kv: KvType,
    shape: AttentionShape,
    /// Of each layer that attends, where it is kept; anything for the others.
    places: Vec<Place>,
    /// Of layers that see everything, and of those that see a window.
    stores: [Store; 2],
    reach: Reach,
    capacity: usize,
}

/// A layer's.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Which of the stores.
    store: usize,
    /// The how manieth layer in it.
    layer: usize,
}

/// The tiles of some layers.
#[derive(Debug)]
struct Store {
    /// Tiles of each layer and head at most; the one of position p is p / [`TILE`], counted around them.
    most: usize,
    /// Bytes of a tile of all layers.
    stride: usize,
    /// `[tiles, layers, kv_heads, keys then values]`; as many tiles as have been needed.
    tiles: Vec<u8>,
}

/// The cache of one layer, to read.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct LayerCache<'a> {
    tiles: &'a [u8],
    most: usize,
    /// From a tile of this layer to the next.
    stride: usize,
    /// Bytes of the keys, and of the values, of a tile.
    side: usize,
}

impl Store {
    /// Tiles in which the first `positions` are kept, or what is left of them.
    fn tiles(&self, positions: usize) -> usize {
        positions.div_ceil(TILE).min(self.most)
    }

    fn extend_to(&mut self, positions: usize) {
        let bytes = self.tiles(positions) * self.stride;
        if bytes > self.tiles.len() {
            self.tiles.resize(bytes, 0);
        }
    }
}

/// Where the tiles of `range` lie among `most`, in pieces that don't go around the end: the first tile of each, and its places.
fn pieces(most: usize, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let (first, place) = (next, next % most);
        let count = (range.end - first).min(most - place);
        next += count;
        (count > 0).then_some((first, place..place + count))
    })
}

impl KvCache {
    /// Room for `capacity` positions. The system hands out the memory page by page as it is written.
    ///
    /// # Errors
    /// When there is not that much memory: names bytes, type and positions.
    pub fn new(config: &Config, kv: KvType, capacity: usize) -> Result<Self> {
        let Config { heads, kv_heads, head_dim, .. } = *config;
        let shape = AttentionShape { heads, kv_heads, head_dim };
        let mut layers = [0; 2];
        let mut place = |layer| {
            let store = usize::from(config.window(layer).is_some());
            let place = Place { store, layer: layers[store] };
            layers[store] += usize::from(config.taps(layer).is_none());
            place
        };
        let places = (0..config.layers).map(&mut place).collect();
        let reach = Reach::new(config, capacity, PASS);
        let all = capacity.div_ceil(TILE);
        // A window begins and ends in the middle of a tile.
        let in_sight = reach.kept().map_or(all, |kept| all.min(kept.div_ceil(TILE) + 1));
        let layer_bytes = kv_heads * 2 * TILE * kv.bytes(head_dim);
        let store = |layers: usize, most| Store { most, stride: layers * layer_bytes, tiles: Vec::new() };
        let mut stores = [store(layers[0], all), store(layers[1], in_sight)];
        let bytes: u128 = stores.iter().map(|store| store.stride as u128 * store.most as u128).sum();
        let reserved = stores.iter_mut().all(|store| {
            let bytes = store.stride.checked_mul(store.most);
            bytes.is_some_and(|bytes| store.tiles.try_reserve_exact(bytes).is_ok())
        });
        if !reserved {
            return Err(Error::Invalid(format!(
                "the KV cache of {capacity} tokens in {kv} takes {:.1} GB, more than there is memory; \
                 choose a shorter context or a smaller type (f16, int8, int4)",
                bytes as f64 / 1e9
            )));
        }
        Ok(Self { kv, shape, places, stores, reach, capacity })
    }

    /// How keys and values are kept.
    pub fn kv(&self) -> KvType {
        self.kv
    }

    /// The heads it was made for.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of the keys and values that a token after `depth` others sees of them, in all layers.
    pub fn seen_bytes(&self, depth: usize) -> u64 {
        let [all, in_sight] = &self.stores;
        let seen = depth - self.reach.first(depth);
        ((all.stride * depth + in_sight.stride * seen) / TILE) as u64
    }

    /// Bytes of [`past`](Self::past) of `positions`.
    pub(in crate::cpu) fn past_bytes(&self, positions: usize) -> usize {
        let tiles = self.stores.iter().map(|store| store.tiles(positions) * store.stride).sum::<usize>();
        tiles + self.reach.to_bytes().len()
    }

    /// All that is kept of the first `positions`, which were written.
    pub(in crate::cpu) fn past(&self, positions: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.past_bytes(positions));
        for store in &self.stores {
            bytes.extend_from_slice(&store.tiles[..store.tiles(positions) * store.stride]);
        }
        bytes.extend_from_slice(&self.reach.to_bytes());
        bytes
    }

    /// Takes over what [`past`](Self::past) gave of `positions`, for which there is room.
    pub(in crate::cpu) fn restore(&mut self, positions: usize, past: &[u8]) {
        self.clear();
        self.extend_to(positions);
        let mut rest = past;
        for store in &mut self.stores {
            let (tiles, others) = rest.split_at(store.tiles.len());
            store.tiles.copy_from_slice(tiles);
            rest = others;
        }
        self.reach.restore(rest);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.stores.iter_mut().for_each(|store| store.tiles.clear());
        self.reach.clear();
    }

    /// Whether what a token after `depth` others sees is still there.
    pub(in crate::cpu) fn reaches(&self, depth: usize) -> bool {
        self.reach.reaches(depth)
    }

    /// Makes the tiles of the positions below `positions`, over those that have slid out of sight.
    pub fn extend_to(&mut self, positions: usize) {
        self.stores.iter_mut().for_each(|store| store.extend_to(positions));
        let [_, in_sight] = &self.stores;
        self.reach.leave(positions.div_ceil(TILE).saturating_sub(in_sight.most) * TILE);
    }

    /// Layer `layer`, to read.
    pub(in crate::cpu) fn layer(&self, layer: usize) -> LayerCache<'_> {
        let (side, Place { store, layer }) = (self.side(), self.places[layer]);
        let Store { most, stride, tiles, .. } = &self.stores[store];
        let first = layer * self.shape.kv_heads * 2 * side;
        LayerCache { tiles: tiles.get(first..).unwrap_or_default(), most: *most, stride: *stride, side }
    }

    /// Takes the keys and values `[tokens, kv_heads · head_dim]` of the positions from `position` on into `layer`. Their
    /// tiles are [there](Self::extend_to).
    pub fn write(&mut self, pool: &Pool, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let (width, side, kv) = (kv_heads * head_dim, self.side(), self.kv);
        let Place { store, layer } = self.places[layer];
        let store = &mut self.stores[store];
        let (stride, end) = (store.stride, position + keys.len() / width);
        for (first_tile, places) in pieces(store.most, position / TILE..end.div_ceil(TILE)) {
            let tiles = &mut store.tiles[places.start * stride..places.end * stride];
            pool.each(Chunks::new(tiles, stride), |index, tile| {
                let heads = &mut tile[layer * kv_heads * 2 * side..][..kv_heads * 2 * side];
                let start = (first_tile + index) * TILE;
                let positions = start.max(position)..(start + TILE).min(end);
                with_code!(kv, code => vectorized(
                    #[inline(always)]
                    || for at in positions {
                        let row = (at - position) * width;
                        for (head, sides) in heads.chunks_exact_mut(2 * side).enumerate() {
                            let part = row + head * head_dim..row + (head + 1) * head_dim;
                            let (key_side, value_side) = sides.split_at_mut(side);
                            code.write_key(key_side, at - start, &keys[part.clone()]);
                            code.write_value(value_side, at - start, &values[part]);
                        }
                    },
                ));
            });
        }
    }

    fn side(&self) -> usize {
        TILE * self.kv.bytes(self.shape.head_dim)
    }
}

impl<'a> LayerCache<'a> {
    /// Keys and values of tile `tile` of head `head`.
    #[inline(always)]
    pub(in crate::cpu) fn tile(&self, tile: usize, head: usize) -> (&'a [u8], &'a [u8]) {
        let first = tile % self.most * self.stride + head * 2 * self.side;
        self.tiles[first..first + 2 * self.side].split_at(self.side)
    }
}
