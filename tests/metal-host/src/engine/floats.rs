//! The floating point mode of a GPU: denormals are zero, coming in and going out.

/// The mode of this thread is Apple's until this is dropped.
pub struct Flushing {
    before: u64,
}

impl Flushing {
    pub fn new() -> Self {
        let before = get();
        set(before | FLUSH);
        Self { before }
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        set(self.before);
    }
}

/// Flush to zero, and denormals are zero.
#[cfg(target_arch = "x86_64")]
const FLUSH: u64 = 0x8040;
/// Flush to zero, both ways.
#[cfg(target_arch = "aarch64")]
const FLUSH: u64 = 1 << 24;

#[cfg(target_arch = "x86_64")]
fn get() -> u64 {
    let mut mode = 0u32;
    // SAFETY: stores the register in a variable.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack)) };
    mode.into()
}

#[cfg(target_arch = "x86_64")]
fn set(mode: u64) {
    let mode = mode as u32;
    // SAFETY: a mode that differs from the one before in how denormals are treated only.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack)) };
}

#[cfg(target_arch = "aarch64")]
fn get() -> u64 {
    let mode;
    // SAFETY: reads the register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) mode, options(nomem, nostack)) };
    mode
}

#[cfg(target_arch = "aarch64")]
fn set(mode: u64) {
    // SAFETY: a mode that differs from the one before in how denormals are treated only.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) mode, options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denormals_are_zero_for_as_long_as_asked() {
        let tiny = std::hint::black_box(f32::MIN_POSITIVE);
        {
            let _flushing = Flushing::new();
            assert_eq!(std::hint::black_box(tiny) * std::hint::black_box(0.5), 0.0);
        }
        assert!(std::hint::black_box(tiny) * std::hint::black_box(0.5) > 0.0);
    }
}
