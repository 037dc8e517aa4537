//! One setting of the C library's allocator. Knows nothing else.
//!
//! A training step allocates and frees the same few hundred tensors again and again. glibc maps blocks above 128 KiB afresh
//! each time and gives them back, and the kernel has to zero every page anew; measured, that took over a third of the CPU time
//! of a step. Freed memory is kept for the next tensor instead. Apple's allocator caches large blocks by itself.

/// Keeps freed memory in the process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn keep_freed_memory() {
    // SAFETY: mallopt takes two integers, touches no memory of ours, and is called before any other thread is started.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Nothing to do here.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() {}
