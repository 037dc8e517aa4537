//! The time that processors have spent on this process.
//!
//! Knows nothing of what it was spent on. Unlike the time of the clock it says what a job takes, whatever else the machine does.

use std::time::Duration;

/// Processor time of all threads of this process so far, the system's on its behalf among it, if the system tells.
pub fn processor_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        use nix::sys::{
            resource::{UsageWho, getrusage},
            time::TimeValLike as _,
        };
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        u64::try_from(spent).ok().map(Duration::from_micros)
    }
    #[cfg(not(unix))]
    {
        None
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_rest_is_not() {
        let before = processor_time().expect("unix tells");
        let mut state = 1_u64;
        while processor_time().expect("unix tells") - before < Duration::from_millis(20) {
            (0..10_000).for_each(|_| state = state.wrapping_mul(6364136223846793005).wrapping_add(1));
        }
        assert_ne!(state, 0);
        assert!(processor_time().expect("unix tells") < Duration::from_secs(1 << 20), "units?");
    }
}
