//! The most memory this process has held.
//!
//! Knows nothing of what it was held for: the number never falls, so whoever wants the memory of one model asks before
//! loading another.

/// Peak resident set of this process in bytes, if the system tells. Pages of mapped weights count once touched.
pub fn peak_rss_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let peak = u64::try_from(usage.max_rss()).ok()?;
        // `ru_maxrss` is in bytes on macOS and iOS, in KiB on Linux and the BSDs.
        Some(if cfg!(target_vendor = "apple") { peak } else { peak * 1024 })
    }
    #[cfg(not(unix))]
    {
        None
    }
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn what_has_been_touched_is_counted_in_bytes() {
        let before = super::peak_rss_bytes().expect("unix tells");
        let touched = vec![1u8; 64 << 20];
        let after = super::peak_rss_bytes().expect("unix tells");
        assert!(touched.iter().map(|b| u64::from(*b)).sum::<u64>() == 64 << 20);
        assert!(after >= 64 << 20 && after >= before, "{before} → {after}");
        assert!(after < 1 << 40, "{after} bytes can't be: units?");
    }
}
