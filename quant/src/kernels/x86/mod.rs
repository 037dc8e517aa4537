//! The tiers of x86-64. Sixteen rows are two registers of AVX2 or one of AVX-512.

mod avx2;
mod avx512;
mod vnni256;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
pub(super) use vnni256::{Avx512Vl, AvxVnni, Vnni256};

/// An expression of a tier's intrinsics, for which a value of the tier is shown.
macro_rules! proven {
    ($tier:expr, $intrinsics:expr) => {{
        let _: Self = $tier;
        // SAFETY: the value shows that the processor has the instructions. Loads and stores go through references to
        // arrays of the size that they touch, and are of the kinds that need no alignment.
        #[expect(unsafe_code, reason = "intrinsics are unsafe to call from code compiled without their features")]
        #[allow(clippy::macro_metavars_in_unsafe, reason = "that is what the macro is for")]
        unsafe {
            $intrinsics
        }
    }};
}
use proven;
