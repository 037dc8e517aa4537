//! The tiers of x86-64. Sixteen rows are two registers of AVX2 or one of AVX-512.

mod avx2;
mod avx512;
mod vnni256;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
pub(super) use vnni256::{Avx512Vl, AvxVnni, Vnni256};

use super::lanes::proven;
