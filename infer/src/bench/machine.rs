//! What the system tells about its processor, on Linux from `/proc` and `/sys`; elsewhere the least that is always known.
//!
//! Knows no model. Nothing here fails: what can't be read is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Name of the processor as it calls itself, or that of its architecture.
pub fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Bytes of all last-level caches together, if the system tells.
pub(super) fn last_level_cache() -> Option<usize> {
    caches(Path::new("/sys/devices/system/cpu"))
}

/// `cpuN/cache/indexM/` has a file for each property of a cache; processors that share one list the same processors.
fn caches(cpus: &Path) -> Option<usize> {
    let mut found: BTreeMap<(u32, String), usize> = BTreeMap::new();
    for cpu in fs::read_dir(cpus).ok()?.flatten() {
        for cache in fs::read_dir(cpu.path().join("cache")).into_iter().flatten().flatten() {
            let property = |name| fs::read_to_string(cache.path().join(name)).ok();
            let level = property("level").and_then(|level| level.trim().parse().ok());
            let size = property("size").and_then(|size| size.trim().strip_suffix('K')?.parse().ok());
            if let (Some(level), Some(kib), Some(sharers)) = (level, size, property("shared_cpu_list")) {
                let _: Option<usize> = found.insert((level, sharers), kib);
            }
        }
    }
    let last = found.keys().map(|(level, _)| *level).max()?;
    Some(found.iter().filter(|((level, _), _)| *level == last).map(|(_, kib)| kib * 1024).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_two_processors_share_counts_once() {
        let dir = tempfile::tempdir().expect("a folder");
        for (cpu, index, level, sharers, size) in
            [(0, 0, 1, "0", 32), (0, 3, 3, "0-1", 512), (1, 3, 3, "0-1", 512), (2, 3, 3, "2-3", 512)]
        {
            let cache = dir.path().join(format!("cpu{cpu}/cache/index{index}"));
            fs::create_dir_all(&cache).expect("made");
            let files = [
                ("level", level.to_string()),
                ("shared_cpu_list", sharers.to_owned()),
                ("size", format!("{size}K")),
            ];
            for (name, content) in files {
                fs::write(cache.join(name), content + "\n").expect("written");
            }
        }
        assert_eq!(caches(dir.path()), Some(2 * 512 * 1024));
        assert_eq!(caches(&dir.path().join("cpu1")), None);
    }
}
