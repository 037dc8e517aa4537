//! Where tensors live: chosen once, by name or by what the machine has. The only place that asks about devices.

use candle_core::{
    Device,
    utils::{cuda_is_available, metal_is_available},
};

use crate::{Error, Result};

/// A device as the user spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Metal on a Mac, CUDA where it was built in, else the CPU.
    Auto,
    /// The processor.
    Cpu,
    /// Apple's GPU.
    Metal,
    /// NVIDIA's GPU, the first one.
    Cuda,
}

impl std::str::FromStr for Choice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda),
            _ => Err(Error::Config(format!("device {s:?}: want auto, cpu, metal or cuda"))),
        }
    }
}

impl Choice {
    /// Opens the device.
    ///
    /// # Errors
    /// This build, or this machine, has no such device.
    pub fn open(self) -> Result<Device> {
        let failed = |name: &str, e: candle_core::Error| {
            Error::Config(format!("--device {name}: the device can't be opened: {e}"))
        };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if metal_is_available() => Self::Metal.open(),
            Self::Auto if cuda_is_available() => Self::Cuda.open(),
            Self::Auto => Ok(Device::Cpu),
            Self::Metal if metal_is_available() => Device::new_metal(0).map_err(|e| failed("metal", e)),
            Self::Metal => Err(Error::Config(
                "--device metal: this build has no Metal; it needs macOS (use --device cpu)".into(),
            )),
            // Without a stream of its own a device reads wrong values from another host thread.
            Self::Cuda if cuda_is_available() => {
                Device::new_cuda_with_stream(0).map_err(|e| failed("cuda", e))
            }
            Self::Cuda => Err(Error::Config(
                "--device cuda: this build has no CUDA; build with --features cuda (or use --device cpu)"
                    .into(),
            )),
        }
    }
}

/// What `device` is, in one word.
pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}
