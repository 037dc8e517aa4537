//! RAPL's counters as Linux shows them: a folder a zone, with its name and microjoules that begin again at zero when their range is full.
//!
//! A package holds its cores and its graphics; memory is counted beside it. A platform (`psys`) holds all of that, and counts only where there
//! is no package. Knows no model. Invariant: a zone is read every second, so that no turn of its counter is missed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// At 400 W the smallest range in use, 65 kJ, is full after 160 s.
const WATCH: Duration = Duration::from_secs(1);

/// The interfaces that one and the same counter may show up under; the first that there is.
const INTERFACES: [&str; 2] = ["intel-rapl", "intel-rapl-mmio"];

/// Counts while it lives.
#[derive(Debug)]
pub(super) struct Rapl {
    zones: Arc<Mutex<Vec<Zone>>>,
    /// Ends the watch when it goes.
    _watch: mpsc::Sender<()>,
}

#[derive(Debug)]
struct Zone {
    name: String,
    energy: PathBuf,
    /// Largest microjoules that are shown.
    range: u64,
    last: u64,
    /// Microjoules since the beginning; none once the counter could not be read.
    total: Option<u64>,
}

impl Rapl {
    /// The zones in `dir` that add up to the machine.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let zones = Zone::all(dir)?.into_iter().map(Zone::begin).collect::<Result<Vec<_>, _>>()?;
        let zones = Arc::new(Mutex::new(zones));
        let (_watch, ends) = mpsc::channel();
        let watched = zones.clone();
        thread::spawn(move || {
            while ends.recv_timeout(WATCH) == Err(RecvTimeoutError::Timeout) {
                lock(&watched).iter_mut().for_each(Zone::read);
            }
        });
        Ok(Self { zones, _watch })
    }

    pub fn joules(&self) -> Option<f64> {
        let mut zones = lock(&self.zones);
        zones.iter_mut().for_each(Zone::read);
        let total: u64 = zones.iter().map(|zone| zone.total).sum::<Option<u64>>()?;
        Some(total as f64 / 1e6)
    }

    pub fn names(&self) -> Vec<String> {
        lock(&self.zones).iter().map(|zone| zone.name.clone()).collect()
    }
}

fn lock(zones: &Mutex<Vec<Zone>>) -> MutexGuard<'_, Vec<Zone>> {
    zones.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Zone {
    /// Packages and their memory, or the platform: by name and folder, in the order of the folders.
    fn all(dir: &Path) -> Result<Vec<(String, PathBuf)>, String> {
        let entries = fs::read_dir(dir).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                format!("{}: no such folder: Linux has no energy counters of this machine to show, as in most virtual machines", dir.display())
            }
            _ => format!("{}: {e}", dir.display()),
        })?;
        let mut by_interface: BTreeMap<String, BTreeMap<PathBuf, String>> = BTreeMap::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = fs::read_to_string(path.join("name")).map(|name| name.trim().to_owned());
            if let (Some((interface, _)), Ok(name)) = (folder.split_once(':'), name) {
                by_interface.entry(interface.to_owned()).or_default().insert(path, name);
            }
        }
        for interface in INTERFACES {
            let named = |wanted: fn(&str) -> bool| -> Vec<(String, PathBuf)> {
                let zones = by_interface.get(interface).into_iter().flatten();
                zones
                    .filter(|(_, name)| wanted(name))
                    .map(|(path, name)| (name.clone(), path.clone()))
                    .collect()
            };
            let packages = named(|name| name.starts_with("package") || name == "dram");
            if packages.iter().any(|(name, _)| name != "dram") {
                return Ok(packages);
            }
            let platform = named(|name| name == "psys");
            if !platform.is_empty() {
                return Ok(platform);
            }
        }
        let found: Vec<&str> = by_interface.values().flat_map(BTreeMap::values).map(String::as_str).collect();
        let found =
            if found.is_empty() { "no zones".to_owned() } else { format!("only {}", found.join(", ")) };
        Err(format!("{}: want a zone of RAPL called package-… or psys, found {found}", dir.display()))
    }

    fn begin((name, folder): (String, PathBuf)) -> Result<Self, String> {
        let energy = folder.join("energy_uj");
        let last = number(&energy).map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied => format!(
                "{}: only root may read it, as Linux has it since 2020; until the next start, sudo chmod a+r {} gives it to everybody",
                energy.display(),
                folder.parent().unwrap_or(&folder).join("intel-rapl*/energy_uj").display()
            ),
            _ => format!("{}: {e}", energy.display()),
        })?;
        let file = folder.join("max_energy_range_uj");
        let range = number(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        if last > range {
            return Err(format!("{}: {last} is beyond the {range} of max_energy_range_uj", energy.display()));
        }
        Ok(Self { name, energy, range, last, total: Some(0) })
    }

    fn read(&mut self) {
        let now = number(&self.energy).ok().filter(|now| *now <= self.range);
        self.total = self.total.zip(now).map(|(total, now)| {
            // Behind the largest comes zero.
            let used = if now >= self.last { now - self.last } else { self.range - self.last + now };
            self.last = now;
            total + used
        });
    }
}

fn number(file: &Path) -> std::io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim()
        .parse()
        .map_err(|_| std::io::Error::new(ErrorKind::InvalidData, format!("want a number, found {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: u64 = 262_143_328_850;

    fn zone(dir: &Path, folder: &str, name: &str, microjoules: u64) -> PathBuf {
        let zone = dir.join(folder);
        fs::create_dir_all(&zone).expect("made");
        fs::write(zone.join("name"), format!("{name}\n")).expect("written");
        fs::write(zone.join("max_energy_range_uj"), format!("{RANGE}\n")).expect("written");
        fs::write(zone.join("energy_uj"), format!("{microjoules}\n")).expect("written");
        zone.join("energy_uj")
    }

    #[test]
    fn packages_and_their_memory_add_up_and_what_they_hold_is_not_counted_twice() {
        let dir = tempfile::tempdir().expect("a folder");
        let counted = [
            zone(dir.path(), "intel-rapl:0", "package-0", 5_000_000),
            zone(dir.path(), "intel-rapl:0:2", "dram", 7),
            zone(dir.path(), "intel-rapl:1", "package-1", 0),
        ];
        let others = [
            zone(dir.path(), "intel-rapl:0:0", "core", 0),
            zone(dir.path(), "intel-rapl:0:1", "uncore", 0),
            zone(dir.path(), "intel-rapl:2", "psys", 0),
            zone(dir.path(), "intel-rapl-mmio:0", "package-0", 0),
        ];
        fs::create_dir(dir.path().join("intel-rapl")).expect("the interface itself, without a name");
        let rapl = Rapl::open(dir.path()).expect("opens");
        assert_eq!(rapl.names(), ["package-0", "dram", "package-1"]);
        assert_eq!(rapl.joules(), Some(0.0));
        others.iter().for_each(|file| fs::write(file, "99000000\n").expect("written"));
        for (file, now) in counted.iter().zip(["6500000", "1000007", "250000"]) {
            fs::write(file, now).expect("written");
        }
        assert_eq!(rapl.joules(), Some(1.5 + 1.0 + 0.25));
        assert_eq!(rapl.joules(), Some(2.75));
    }

    #[test]
    fn a_counter_that_begins_again_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = zone(dir.path(), "intel-rapl:0", "package-0", RANGE - 1_000_000);
        let rapl = Rapl::open(dir.path()).expect("opens");
        for (now, want) in
            [(RANGE - 500_000, 0.5), (2_000_000, 3.0), (2_000_001, 3.000001), (0, 262_144.328_85)]
        {
            fs::write(&file, now.to_string()).expect("written");
            let found = rapl.joules().expect("readable");
            assert!((found - want).abs() < 1e-6, "{now}: {found}");
        }
    }

    #[test]
    fn a_counter_that_goes_away_or_lies_is_no_longer_a_number() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = zone(dir.path(), "intel-rapl:0", "package-0", 0);
        let rapl = Rapl::open(dir.path()).expect("opens");
        fs::write(&file, (RANGE + 1).to_string()).expect("written");
        assert_eq!(rapl.joules(), None);
        // What was missed can't be known later either.
        fs::write(&file, "5").expect("written");
        assert_eq!(rapl.joules(), None);
    }

    #[test]
    fn where_no_counter_is_the_reason_is_said() {
        let dir = tempfile::tempdir().expect("a folder");
        let refused = |dir: &Path| Rapl::open(dir).expect_err("none").to_string();
        let m = refused(&dir.path().join("nowhere"));
        assert!(m.contains("nowhere: no such folder") && m.contains("virtual machines"), "{m}");
        assert!(refused(dir.path()).ends_with("found no zones"), "{}", refused(dir.path()));
        zone(dir.path(), "intel-rapl:0:0", "core", 0);
        assert!(refused(dir.path()).ends_with("found only core"), "{}", refused(dir.path()));
        let file = zone(dir.path(), "intel-rapl:1", "psys", 0);
        assert_eq!(Rapl::open(dir.path()).expect("opens").names(), ["psys"]);
        fs::write(&file, "many").expect("written");
        assert!(refused(dir.path()).contains("energy_uj: want a number, found \"many\""));
        fs::write(&file, u64::MAX.to_string()).expect("written");
        assert!(refused(dir.path()).contains("beyond the 262143328850 of max_energy_range_uj"));
    }

    #[cfg(unix)]
    #[test]
    fn a_counter_that_only_root_may_read_is_named_with_the_way_out() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a folder");
        let file = zone(dir.path(), "intel-rapl:0", "package-0", 0);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("ours");
        if fs::read(&file).is_ok() {
            println!("SKIPPED: a test of permissions: this user may read everything");
            return;
        }
        let m = Rapl::open(dir.path()).expect_err("not readable").to_string();
        assert!(m.contains("only root may read it") && m.contains("sudo chmod a+r"), "{m}");
    }
}
