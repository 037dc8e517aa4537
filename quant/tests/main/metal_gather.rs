//! Lookups on the GPU: rows have the very bits that the portable decoder gives.

use qat_metal_host as host;
use qat_quant::kernels::metal::Gather;

use crate::matrices::bits;
use crate::metal::{self, Stored, columns, storages};

#[test]
fn metal_lookups_decode_to_the_bits_of_the_portable_code() {
    if !host::available() {
        return;
    }
    const ROWS: usize = 11;
    for storage in storages() {
        for cols in columns(storage) {
            let stored = Stored::new(storage, ROWS, cols);
            // First, last, one twice, and one past the end, which is clamped.
            for ids in [&[0, 10, 3, 3, 7][..], &[11], &[u32::MAX, 4]] {
                let gather = Gather {
                    storage,
                    rows: ROWS as u32,
                    cols: cols as u32,
                    tensor_scale: stored.tensor_scale,
                    // A power of two changes no digit.
                    factor: if ids.len() == 1 { 4.0 } else { 1.0 },
                    tokens: ids.len() as u32,
                };
                let dispatch = gather.dispatch();
                let buffers = [
                    host::Buffer::In(ids.iter().flat_map(|id| id.to_le_bytes()).collect()),
                    metal::read_only(&dispatch.shape),
                    host::Buffer::Out(4 * ids.len() * cols),
                    metal::read_only(&stored.bytes),
                ];
                let rows = ids.iter().map(|&id| stored.row((id as usize).min(ROWS - 1)));
                let want: Vec<f32> = rows.flatten().map(|w| gather.factor * w + 0.0).collect();
                let what = format!("{storage:?}, {cols} columns, rows {ids:?}");
                metal::verify(&what, &dispatch, &buffers, &mut |mode, found| {
                    // A ternary 0 under a negative scale has the sign of neither: fast math doesn't keep it.
                    let found: Vec<f32> = metal::floats(&found[2]).iter().map(|w| w + 0.0).collect();
                    assert!(bits(&found) == bits(&want), "{what}, {mode:?}");
                });
            }
        }
    }
}
