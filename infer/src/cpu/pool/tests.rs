//! Every task once, every part its own, panics handed on, sleep survived.

use std::sync::atomic::AtomicU32;

use super::*;

#[test]
fn every_task_runs_once_however_many_threads_there_are() {
    for threads in [1, 2, 3, 8].into_iter().take(if cfg!(miri) { 3 } else { 4 }) {
        let pool = Pool::new(threads).expect("threads");
        for tasks in [0, 1, 2, 3, 7, 64, 1000].into_iter().take(if cfg!(miri) { 6 } else { 7 }) {
            let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            pool.run(tasks, |thread, index| {
                assert!(thread < threads);
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks}");
        }
    }
}

#[test]
fn many_short_jobs_and_sleep_between_them_lose_nothing() {
    // Miri, which looks for races in it, takes milliseconds for a job.
    let rounds = if cfg!(miri) { 200 } else { 20_000 };
    let pool = Pool::new(3).expect("threads");
    let sum = AtomicUsize::new(0);
    for round in 0..rounds {
        pool.run(5, |_, index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        if round % (rounds / 5) == 0 {
            std::thread::sleep(SPIN * 5);
        }
    }
    assert_eq!(sum.into_inner(), rounds * 10);
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(2).expect("threads");
    for bad in 0..20 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, |_, index| assert!(index != bad, "task {bad} fails"));
        }));
        let panic = outcome.expect_err("it failed");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert_eq!(message, &format!("task {bad} fails"));
    }
    let sum = AtomicUsize::new(0);
    pool.run(100, |_, index| {
        sum.fetch_add(index, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), 4950);
}

#[test]
fn parts_cover_a_matrix_without_overlap() {
    let pool = Pool::new(2).expect("threads");
    let (mut a, mut b, mut c) = (vec![0.0; 7 * 37], vec![0.0; 7 * 16], vec![0.0; 8]);
    let joined = Joined([Tiles::new(&mut a, [7, 37], [3, 16]), Tiles::new(&mut b, [7, 16], [7, 5])]);
    assert_eq!(joined.count(), 9 + 4);
    pool.each(joined, |index, (which, mut tile)| {
        for row in 0..tile.shape()[0] {
            tile.row(row).iter_mut().for_each(|v| *v += (1 + which * 100 + index) as f32);
        }
    });
    assert_eq!((a[0], a[16], a[36], a[3 * 37], a[6 * 37 + 36]), (1.0, 2.0, 3.0, 4.0, 9.0));
    assert_eq!((b[0], b[15], b[6 * 16 + 5]), (110.0, 113.0, 111.0));
    pool.each((Chunks::new(&mut c, 3), Chunks::new(&mut b[..3], 1)), |index, (c, b)| {
        c.fill(index as f32);
        b[0] = -1.0;
    });
    assert_eq!(c, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0]);
    assert_eq!(b[..4], [-1.0, -1.0, -1.0, 110.0]);
}

#[test]
fn no_threads_and_too_many_are_refused() {
    assert!(Pool::new(0).is_err());
    let message = Pool::new(100_000).map(|_| ()).expect_err("too many").to_string();
    assert!(message.contains("100000") && message.contains("1024"), "{message}");
}
