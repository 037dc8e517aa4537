//! Which instructions a product runs on: found out once, and carried as a value that proves it.
//!
//! Knows no products.

use std::fmt;
use std::sync::LazyLock;

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Avx512Vl, AvxVnni, Vnni256};
use crate::Error;

/// The variable that forces a tier.
const VARIABLE: &str = "QAT_ISA";

/// Whether `QAT_ISA` asks for the portable tier.
pub(crate) fn portable_is_forced() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|name| name == "portable")
}

/// A tier of instructions that the running processor has been seen to have.
///
/// The environment variable `QAT_ISA` forces a lower one than the best.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(pub(super) Tier);

/// The tiers, each with its proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-VNNI on a processor that has it, else the same code in the other encoding.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Vnni256<AvxVnni>),
    #[cfg(target_arch = "x86_64")]
    AvxVnniVl(Vnni256<Avx512Vl>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Dotprod(Neon<false>),
    #[cfg(target_arch = "aarch64")]
    I8mm(Neon<true>),
}

/// Runs `$body` with `$lanes` bound to the lanes of the tier of `$isa`.
macro_rules! with_lanes {
    ($isa:expr, $lanes:ident => $body:expr) => {
        match $isa.0 {
            $crate::kernels::isa::Tier::Portable($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::isa::Tier::Avx2($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::isa::Tier::AvxVnni($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::isa::Tier::AvxVnniVl($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::isa::Tier::Avx512($lanes) => $body,
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::isa::Tier::Dotprod($lanes) => $body,
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::isa::Tier::I8mm($lanes) => $body,
        }
    };
}
pub(super) use with_lanes;

impl Isa {
    /// The tier that runs here: the best, or the one that `QAT_ISA` names. Read once.
    ///
    /// # Errors
    /// When `QAT_ISA` names a tier that doesn't exist or that this processor lacks.
    pub fn active() -> Result<Self, Error> {
        static ACTIVE: LazyLock<Result<Isa, String>> = LazyLock::new(|| {
            let available = Isa::available();
            let best = available.last().copied().unwrap_or(Isa(Tier::Portable(Portable)));
            match std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
                None => Ok(best),
                Some(name) => available.iter().copied().find(|isa| name == isa.name()).ok_or_else(|| {
                    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
                    format!(
                        "{VARIABLE} is {}, want one that this processor has: {}",
                        name.to_string_lossy(),
                        names.join(", ")
                    )
                }),
            }
        });
        ACTIVE.clone().map_err(Error::Isa)
    }

    /// All tiers that this processor has, lowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other processors have no other tier")]
        let mut tiers = vec![Tier::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(Avx2::detect().map(Tier::Avx2));
            match Vnni256::<AvxVnni>::detect() {
                Some(tier) => tiers.push(Tier::AvxVnni(tier)),
                None => tiers.extend(Vnni256::<Avx512Vl>::detect().map(Tier::AvxVnniVl)),
            }
            tiers.extend(Avx512::detect().map(Tier::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        {
            tiers.extend(Neon::<false>::detect().map(Tier::Dotprod));
            tiers.extend(Neon::<true>::detect().map(Tier::I8mm));
        }
        tiers.into_iter().map(Self).collect()
    }

    /// Its name, as `QAT_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Tier::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Tier::AvxVnni(_) | Tier::AvxVnniVl(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Tier::Dotprod(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Tier::I8mm(_) => "neon-i8mm",
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}
