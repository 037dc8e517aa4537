//! Threads that wait for work cost nothing. Alone in its process, because it weighs the time of all of it.
#![cfg(target_os = "linux")]

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use qat_infer::cpu::Pool;

/// Processor time of this process, in milliseconds.
fn processor_ms() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("Linux tells");
    let (user, system) = (usage.user_time(), usage.system_time());
    (user.tv_sec() + system.tv_sec()) * 1000 + (user.tv_usec() + system.tv_usec()) / 1000
}

#[test]
fn a_pool_without_work_uses_no_processor_time() {
    let pool = Pool::new(4).expect("threads");
    pool.run(100, |_, _| ());
    let before = processor_ms();
    std::thread::sleep(Duration::from_secs(1));
    // Each of three workers spins for 0.2 ms before it sleeps; if they went on, this would be a second or more.
    let used = processor_ms() - before;
    assert!(used < 50, "{used} ms of processor time in a second of rest");
    pool.run(100, |_, _| ());
}
