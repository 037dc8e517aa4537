//! The runtimes of this machine by the names that users have for them.
//!
//! Knows no model. The only place of this crate that asks which system it is on, beside Metal's encoder.

use std::str::FromStr;

use crate::cpu::Cpu;
#[cfg(any(target_os = "macos", target_os = "ios"))]
use crate::metal::{Chip, Metal};
use crate::{Error, Result};

/// A runtime as users ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Apple's GPU where there is one that will do, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// Apple's GPU.
    Metal,
}

/// A runtime that is there; [`with_runtime!`](crate::with_runtime) calls it by its type.
#[derive(Debug)]
pub enum Chosen {
    /// The processor.
    Cpu(Cpu),
    /// Apple's GPU.
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    Metal(Metal<fn() -> Result<Chip>>),
}

/// Runs code that any [`Runtime`](crate::Runtime) will do for, with `$runtime` bound to the one that was chosen.
#[macro_export]
macro_rules! with_runtime {
    ($chosen:expr, $runtime:ident => $body:expr) => {
        match $chosen {
            $crate::Chosen::Cpu($runtime) => $body,
            #[cfg(any(target_os = "macos", target_os = "ios"))]
            $crate::Chosen::Metal($runtime) => $body,
        }
    };
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Err(Error::Invalid(
                "--device cuda: models run on the CPU and on Metal; use --device cpu".into(),
            )),
            _ => Err(Error::Invalid(format!("--device {name}: want auto, cpu or metal"))),
        }
    }
}

impl Choice {
    /// The runtime that is meant on this machine.
    ///
    /// # Errors
    /// When Metal is asked for and can't be had, with the reason.
    pub fn open(self) -> Result<Chosen> {
        match self {
            Self::Cpu => Ok(Chosen::Cpu(Cpu)),
            Self::Metal => metal(),
            Self::Auto => Ok(metal().unwrap_or(Chosen::Cpu(Cpu))),
        }
    }
}

#[cfg(any(target_os = "macos", target_os = "ios"))]
fn metal() -> Result<Chosen> {
    // Says what is wrong before a model is read for nothing.
    Chip::open()?;
    let chip = Chip::describe()?;
    let family = chip.family.map_or(String::new(), |n| format!(", Apple {n}"));
    Ok(Chosen::Metal(Metal {
        description: ["metal".into(), format!("{}{family}", chip.name)],
        open: Chip::open,
    }))
}

#[cfg(not(any(target_os = "macos", target_os = "ios")))]
fn metal() -> Result<Chosen> {
    Err(Error::Invalid(format!(
        "--device metal: Metal is Apple's, and this is {}; use --device cpu",
        std::env::consts::OS
    )))
}
