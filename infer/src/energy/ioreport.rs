//! Energy on a Mac with Apple's own chip: the power that IOReport shows to everybody, sampled four times a second and added up.
//!
//! The crate macmon knows the channels of every generation of chips. Knows no model. Invariant: between two samples the power of the last
//! one is taken to go on, so that a time of any length has its energy; a quarter of a second is what it is known to.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use macmon::{Metrics, Sampler};

/// Reading all sensors takes a core some milliseconds.
const INTERVAL_MS: u32 = 250;

/// Without a sample for so long, the sampler has ended.
const LATE: Duration = Duration::from_secs(5);

/// How long the first samples may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Samples without any power, after which there is none to be seen.
const EMPTY: usize = 5;

/// Counts while it lives.
#[derive(Debug)]
pub(super) struct IoReport {
    latest: Arc<Mutex<Latest>>,
}

#[derive(Debug)]
struct Latest {
    at: Instant,
    joules: f64,
    watts: f64,
    celsius: Option<f64>,
}

impl IoReport {
    pub fn open() -> Result<Self, String> {
        let now = Latest { at: Instant::now(), joules: 0.0, watts: 0.0, celsius: None };
        let latest = Arc::new(Mutex::new(now));
        let (tells, ready) = mpsc::channel();
        let weak = Arc::downgrade(&latest);
        // What it reads with may not leave its thread.
        thread::spawn(move || {
            let mut sampler = match Sampler::new() {
                Ok(sampler) => sampler,
                Err(e) => return drop(tells.send(Err(e.to_string()))),
            };
            let mut silent = 0;
            while let Some(latest) = weak.upgrade() {
                match sampler.get_metrics(INTERVAL_MS) {
                    Ok(metrics) => lock(&latest).add(&metrics),
                    Err(e) => return drop(tells.send(Err(e.to_string()))),
                }
                silent = if lock(&latest).watts > 0.0 { 0 } else { silent + 1 };
                if silent == 0 {
                    drop(tells.send(Ok(())));
                } else if silent == EMPTY {
                    drop(tells.send(Err("it shows no power, as in a virtual machine".to_owned())));
                }
            }
        });
        let told = match ready.recv_timeout(PATIENCE) {
            Ok(told) => told,
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Err("its reader does not know this chip".to_owned()),
        };
        told.map(|()| Self { latest }).map_err(|reason| format!("IOReport, macOS' energy counters: {reason}"))
    }

    pub fn joules(&self) -> Option<f64> {
        let latest = lock(&self.latest);
        let since = latest.at.elapsed();
        (since < LATE).then(|| latest.joules + latest.watts * since.as_secs_f64())
    }

    pub fn celsius(&self) -> Option<f64> {
        lock(&self.latest).celsius
    }
}

fn lock(latest: &Mutex<Latest>) -> MutexGuard<'_, Latest> {
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Latest {
    /// The power of the time since the sample before.
    fn add(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        self.watts = f64::from(metrics.all_power + metrics.ram_power).max(0.0);
        self.joules += self.watts * now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.celsius = metrics.temp.cpu_temp_avg.map(f64::from);
    }
}
