//! Where tensors live: chosen once, by name or by what the machine has. The only place that asks about devices.

use std::fmt;

use candle_core::{Device, utils::cuda_is_available};

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
    /// NVIDIA's GPU, the first one unless several processes share a machine.
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

/// A device that is open, and why it is this one.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Where tensors will live.
    pub device: Device,
    why: String,
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", name(&self.device), self.why)
    }
}

impl Choice {
    /// Opens the device.
    ///
    /// # Errors
    /// This build, or this machine, has no such device.
    pub fn open(self) -> Result<Opened> {
        self.open_nth(0)
    }

    /// Opens the device of the process number `nth` on this machine, counted from 0: of several NVIDIA GPUs each has its own.
    ///
    /// # Errors
    /// This build, or this machine, has no such device.
    pub fn open_nth(self, nth: usize) -> Result<Opened> {
        let asked = |device| Opened { device, why: "as asked for".into() };
        match self {
            Self::Auto => {
                let (choice, why) = preferred(metal(), cuda_is_available());
                Ok(Opened { why, ..choice.open_nth(nth)? })
            }
            Self::Cpu => Ok(asked(Device::Cpu)),
            Self::Metal => match metal() {
                Ok(()) => Device::new_metal(0).map(asked).map_err(|e| failed("metal", &e)),
                Err(why) => Err(Error::Config(format!("--device metal: {why} (use --device cpu)"))),
            },
            Self::Cuda => cuda(nth).map(asked),
        }
    }
}

impl Opened {
    /// The most bytes that tensors have taken on an NVIDIA GPU since it was opened; none on other devices.
    ///
    /// # Errors
    /// The device failed.
    pub fn peak_memory(&self) -> Result<Option<u64>> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Some(crate::ops::gpu::cuda::peak_memory(device)?)),
            _ => Ok(None),
        }
    }
}

/// What `auto` stands for, and why.
fn preferred(metal: std::result::Result<(), &str>, cuda: bool) -> (Choice, String) {
    match metal {
        Ok(()) => (Choice::Metal, "auto: this Mac has an Apple GPU".into()),
        Err(_) if cuda => (Choice::Cuda, "auto: CUDA is built in".into()),
        Err(why) => (Choice::Cpu, format!("auto: {why}, and this build has no CUDA")),
    }
}

/// Whether kernels can run on Metal here, or why not.
#[cfg(target_os = "macos")]
fn metal() -> std::result::Result<(), &'static str> {
    use objc2_metal::{MTLDevice as _, MTLGPUFamily};
    match candle_metal_kernels::metal::Device::all().first() {
        None => Err("this Mac shows no Metal device"),
        // Kernels count on simdgroups of 32 that can sum.
        Some(device) if !device.as_ref().supportsFamily(MTLGPUFamily::Apple7) => {
            Err("this Mac's GPU is not of the family Apple7 (M1) or later")
        }
        Some(_) => Ok(()),
    }
}

/// Whether kernels can run on Metal here, or why not.
#[cfg(not(target_os = "macos"))]
fn metal() -> std::result::Result<(), &'static str> {
    Err("Metal needs macOS")
}

/// Whether matrix products on an NVIDIA GPU round their inputs to TF32, from now on and in the whole process. Elsewhere there is
/// no such type, and nothing happens.
pub(crate) fn set_tf32(on: bool) {
    candle_core::cuda::set_gemm_reduced_precision_f32(on);
}

fn failed(name: &str, problem: &candle_core::Error) -> Error {
    Error::Config(format!("--device {name}: the device can't be opened: {problem}"))
}

/// NVIDIA's GPU number `nth`, counted over those that this process sees.
#[cfg(feature = "cuda")]
fn cuda(nth: usize) -> Result<Device> {
    crate::ops::gpu::cuda::open(nth).map_err(|e| failed("cuda", &e))
}

/// NVIDIA's GPU.
#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device> {
    let problem = "--device cuda: this build has no CUDA; build with --features cuda (or use --device cpu)";
    Err(Error::Config(problem.into()))
}

/// What `device` is, in one word.
fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The GPU that `auto` finds; none: it says so.
    pub(crate) fn gpu() -> Option<Device> {
        let opened = Choice::Auto.open().expect("a device");
        if opened.device.is_cpu() {
            eprintln!("SKIPPED: there is no GPU: {opened}");
            return None;
        }
        Some(opened.device)
    }

    #[test]
    fn auto_prefers_metal_then_cuda_then_the_cpu_and_says_why() {
        let none = Err("Metal needs macOS");
        for cuda in [false, true] {
            assert_eq!(preferred(Ok(()), cuda), (Choice::Metal, "auto: this Mac has an Apple GPU".into()));
        }
        assert_eq!(preferred(none, true), (Choice::Cuda, "auto: CUDA is built in".into()));
        let why = "auto: Metal needs macOS, and this build has no CUDA";
        assert_eq!(preferred(none, false), (Choice::Cpu, why.into()));
    }

    #[test]
    fn what_is_opened_names_the_device_and_the_reason() {
        assert_eq!(Choice::Cpu.open().expect("a CPU").to_string(), "cpu (as asked for)");
        if metal().is_err() && !cuda_is_available() {
            let opened = Choice::Auto.open().expect("a device").to_string();
            assert!(opened.starts_with("cpu (auto: ") && opened.contains("no CUDA"), "{opened}");
        }
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn metal_elsewhere_than_on_a_mac_is_refused_with_a_way_out() {
        let message = Choice::Metal.open().expect_err("refused").to_string();
        assert!(message.contains("Metal needs macOS") && message.contains("--device cpu"), "{message}");
    }
}
