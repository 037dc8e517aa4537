//! How much energy the machine uses, by the counters of its processor: on Linux those that RAPL shows, on macOS those of IOReport.
//!
//! What is counted is the chip and its memory, whatever runs on them: nobody's share is told apart. Knows no model and asks for no
//! rights. Invariant: what was used since an earlier moment is never less than nothing, also where the hardware's counter has begun again.

#[cfg(target_os = "macos")]
mod ioreport;
mod rapl;

use std::fs;
use std::path::Path;

use crate::{Error, Result};

use rapl::Rapl;

/// Where Linux shows the counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// Where Linux shows temperatures.
const THERMAL: &str = "/sys/class/thermal";

/// What Linux calls the sensor of a processor, by preference.
const SENSORS: [&str; 4] = ["x86_pkg_temp", "cpu-thermal", "cpu_thermal", "soc-thermal"];

/// Counts energy while it lives.
#[derive(Debug)]
pub struct Meter {
    counter: Counter,
}

#[derive(Debug)]
enum Counter {
    Rapl(Rapl),
    #[cfg(target_os = "macos")]
    IoReport(ioreport::IoReport),
}

impl Meter {
    /// The counters of this machine.
    ///
    /// # Errors
    /// Says why there are none, or why they can't be read.
    pub fn open() -> Result<Self> {
        #[cfg(target_os = "macos")]
        let counter = ioreport::IoReport::open().map(Counter::IoReport);
        #[cfg(not(target_os = "macos"))]
        let counter = Rapl::open(Path::new(POWERCAP)).map(Counter::Rapl);
        Ok(Self { counter: counter.map_err(Error::Invalid)? })
    }

    /// RAPL's counters as they lie in `dir`.
    ///
    /// # Errors
    /// Says why there are none, or why they can't be read.
    pub fn of_powercap(dir: &Path) -> Result<Self> {
        Ok(Self { counter: Counter::Rapl(Rapl::open(dir).map_err(Error::Invalid)?) })
    }

    /// Joules since it was opened; none once a counter can no longer be read.
    pub fn joules(&self) -> Option<f64> {
        match &self.counter {
            Counter::Rapl(rapl) => rapl.joules(),
            #[cfg(target_os = "macos")]
            Counter::IoReport(report) => report.joules(),
        }
    }

    /// Joules since `before`, a number that it gave.
    pub fn since(&self, before: Option<f64>) -> Option<f64> {
        Some((self.joules()? - before?).max(0.0))
    }

    /// What is counted, such as `RAPL: package-0, dram`.
    pub fn covers(&self) -> String {
        match &self.counter {
            Counter::Rapl(rapl) => format!("RAPL: {}", rapl.names().join(", ")),
            #[cfg(target_os = "macos")]
            Counter::IoReport(_) => "IOReport: CPU, GPU, neural engine and memory".to_owned(),
        }
    }

    fn celsius(&self) -> Option<f64> {
        match &self.counter {
            Counter::Rapl(_) => None,
            #[cfg(target_os = "macos")]
            Counter::IoReport(report) => report.celsius(),
        }
    }
}

/// Temperature of the processor in °C, where the system tells it: Linux by itself, macOS through its `meter`.
pub fn celsius(meter: Option<&Meter>) -> Option<f64> {
    meter.and_then(Meter::celsius).or_else(|| sensor(Path::new(THERMAL)))
}

/// `thermal_zoneN/` has a sensor's type and its temperature in thousandths of a degree.
fn sensor(dir: &Path) -> Option<f64> {
    let mut found = Vec::new();
    for zone in fs::read_dir(dir).ok()?.flatten() {
        let read = |name| fs::read_to_string(zone.path().join(name)).ok();
        let kind = read("type").and_then(|kind| SENSORS.iter().position(|known| *known == kind.trim()));
        let thousandths = read("temp").and_then(|text| text.trim().parse::<f64>().ok());
        found.extend(kind.zip(thousandths));
    }
    // The hottest of the best kind.
    let best = found.iter().map(|(kind, _)| *kind).min()?;
    let of_best = found.into_iter().filter(|(kind, _)| *kind == best);
    of_best.map(|(_, thousandths)| thousandths / 1000.0).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_sensor_of_the_processor_counts_and_no_other() {
        let dir = tempfile::tempdir().expect("a folder");
        for (at, kind, temp) in
            [(0, "acpitz", 99_000), (1, "x86_pkg_temp", 51_500), (2, "x86_pkg_temp", 62_000)]
        {
            let zone = dir.path().join(format!("thermal_zone{at}"));
            fs::create_dir(&zone).expect("made");
            fs::write(zone.join("type"), format!("{kind}\n")).expect("written");
            fs::write(zone.join("temp"), format!("{temp}\n")).expect("written");
        }
        fs::create_dir(dir.path().join("cooling_device0")).expect("made");
        assert_eq!(sensor(dir.path()), Some(62.0));
        assert_eq!(sensor(&dir.path().join("cooling_device0")), None);
    }
}
