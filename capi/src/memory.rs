//! What this process holds now.
//!
//! Knows no model.

/// Resident bytes of this process, mapped files included; none where the system doesn't tell.
#[cfg(target_os = "linux")]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kib)
}

/// Resident bytes of this process, mapped files included; none where the system doesn't tell.
#[cfg(target_vendor = "apple")]
#[expect(unsafe_code, reason = "task_info has no safe wrapper")]
pub fn resident_bytes() -> Option<u64> {
    let mut info = std::mem::MaybeUninit::<libc::mach_task_basic_info>::zeroed();
    let mut words = (size_of::<libc::mach_task_basic_info>() / size_of::<libc::natural_t>()) as u32;
    // SAFETY: the structure is what this flavor fills, with its length in words; zeros are a valid value of it in any case.
    let info = unsafe {
        #[expect(
            deprecated,
            reason = "the crate that libc points to would be another dependency for one constant"
        )]
        let task = libc::mach_task_self();
        let code = libc::task_info(task, libc::MACH_TASK_BASIC_INFO, info.as_mut_ptr().cast(), &mut words);
        (code == libc::KERN_SUCCESS).then(|| info.assume_init())
    }?;
    Some(info.resident_size)
}

/// Nobody to ask.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
pub fn resident_bytes() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn what_is_touched_counts_and_what_is_freed_does_not() {
        let before = super::resident_bytes().expect("Linux tells");
        let touched = vec![1u8; 256 << 20];
        let with = super::resident_bytes().expect("Linux tells");
        assert!(touched.iter().all(|byte| *byte == 1));
        drop(touched);
        let after = super::resident_bytes().expect("Linux tells");
        // Other tests take and free a little meanwhile.
        assert!(with >= before + (192 << 20), "{before} → {with}");
        assert!(after <= with - (192 << 20), "{with} → {after}");
    }
}
