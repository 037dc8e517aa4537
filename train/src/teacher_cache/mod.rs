//! A teacher's predictions on disk: asked once, then read in every epoch of every run with the same teacher and text.
//!
//! A folder holds `teacher.json`, which says what the cache was made of, and shards of 64 windows each. Windows are numbered in
//! an order of their own ([`crate::data::Batches::fixed`]), of which a run needs the first ones, whatever its seed: a longer run adds
//! shards. What is missing is made before the first step, one shard at a time, so that an interrupted run goes on with the shard it
//! stopped at; a damaged shard is made again. Knows no loop.

mod identity;
mod record;
mod shard;

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

pub use identity::{Identity, of_model};
pub use record::Layout;

use self::shard::{Place, Shard};
use crate::{
    Error, Result,
    loss::{Head, TopRows},
    ranks::Ranks,
};

/// Version of the files and of the order of the windows.
pub const VERSION: u32 = 1;

/// Windows of a shard; the last one of a text may have fewer.
const SHARD: u64 = 64;

/// Predictions of a teacher for the first windows of a text.
#[derive(Debug)]
pub struct Cache {
    identity: Identity,
    shards: Vec<Shard>,
}

impl Cache {
    /// The cache of the first `windows` windows in the folder `dir`, which `ranks` see alike. `make` gives the records of windows that are
    /// missing, of which each rank makes a share, and `note` is told why one that was there is made again.
    ///
    /// # Errors
    /// A folder that is a cache of something else, a full disk, and what `make` gives; another rank has failed.
    pub fn open(
        dir: &Path,
        identity: Identity,
        windows: u64,
        make: &mut dyn FnMut(std::ops::Range<u64>) -> Result<Vec<u8>>,
        (ranks, note): (&Ranks, &mut dyn FnMut(String)),
    ) -> Result<Self> {
        ranks.first_then_others(|| {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("cannot make the folder", dir, e))?;
            identity.claim(dir)
        })?;
        let digest = identity.digest()?;
        let file = |number: u64| {
            let windows = number * SHARD..((number + 1) * SHARD).min(identity.windows);
            let place = Place { windows, ctx: identity.ctx, layout: identity.layout(), identity: digest };
            (dir.join(format!("shard-{number:06}")), place)
        };
        let mut found_or_made = |number: u64| {
            let (path, place) = file(number);
            let found = match path.try_exists() {
                Ok(true) => {
                    Shard::open(&path, &place).map_err(|e| note(format!("{e}; it is made again"))).ok()
                }
                Ok(false) => None,
                Err(e) => return Err(Error::io("cannot read", &path, e)),
            };
            if let Some(shard) = found {
                return Ok(shard);
            }
            place.write(&path, &make(place.windows.clone())?)?;
            Shard::open(&path, &place)
        };
        let is_own = |number: &u64| number % ranks.size() as u64 == ranks.rank() as u64;
        let numbers = 0..windows.div_ceil(SHARD);
        let own = numbers.clone().filter(is_own).map(&mut found_or_made).collect::<Result<Vec<_>>>();
        let mut own = ranks.agree(own)?.into_iter();
        let all = numbers.map(|number| match is_own(&number).then(|| own.next()).flatten() {
            Some(shard) => Ok(shard),
            None => {
                let (path, place) = file(number);
                Shard::open(&path, &place)
            }
        });
        let shards = all.collect::<Result<_>>()?;
        Ok(Self { shards, identity })
    }

    /// What is known of `windows`, one after the other.
    ///
    /// # Errors
    /// A window that the cache was not opened for; a device out of memory.
    pub fn rows(&self, windows: &[u64], device: &Device) -> Result<TopRows> {
        let mut records = Vec::new();
        for window in windows {
            let shard =
                self.shards.get((window / SHARD) as usize).filter(|_| *window < self.identity.windows);
            let shard =
                shard.ok_or_else(|| Error::Data(format!("teacher.cache: window {window} is not in it")))?;
            records.extend_from_slice(shard.window((window % SHARD) as usize));
        }
        rows_of(self.identity.layout(), &records, device)
    }
}

/// What `records` say.
///
/// # Errors
/// The device is out of memory.
pub fn rows_of(layout: Layout, records: &[u8], device: &Device) -> Result<TopRows> {
    let (mut ids, mut logs) = (Vec::new(), Vec::new());
    for record in records.chunks_exact(layout.record_bytes()) {
        layout.decode(record, &mut ids, &mut logs);
    }
    let (n, k) = (records.len() / layout.record_bytes(), layout.top_k);
    Ok(TopRows {
        ids: Tensor::from_vec(ids, (n, k), device)?,
        logs: Tensor::from_vec(logs, (n, k + 1), device)?,
    })
}

/// The records of a teacher's logits, those of `head`.
///
/// # Errors
/// A logit that is not finite; a device out of memory.
pub fn records_of(layout: Layout, head: &Head) -> Result<Vec<u8>> {
    let mut records = Vec::new();
    head.for_logits(&mut |logits| {
        let rows: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let start = records.len();
        records.resize(start + logits.dim(0)? * layout.record_bytes(), 0);
        let pairs = records[start..].par_chunks_exact_mut(layout.record_bytes());
        pairs
            .zip(rows.par_chunks_exact(layout.vocab))
            .try_for_each(|(record, logits)| layout.encode(logits, record))
            .map_err(Error::Data)
    })?;
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads::together;

    fn identity() -> Identity {
        Identity {
            version: VERSION,
            teacher: "t".into(),
            tokens: "k".into(),
            windows: 150,
            ctx: 2,
            vocab: 8,
            top_k: 2,
            temperature: 1.0,
        }
    }

    /// Records of which each window has its own.
    fn records(windows: std::ops::Range<u64>) -> Vec<u8> {
        let layout = identity().layout();
        let mut records = vec![0; (windows.end - windows.start) as usize * 2 * layout.record_bytes()];
        for (i, record) in records.chunks_exact_mut(layout.record_bytes()).enumerate() {
            let logits: Vec<f32> =
                (0..8).map(|id| ((windows.start as usize * 2 + i + id * 3) % 7) as f32).collect();
            layout.encode(&logits, record).expect("finite");
        }
        records
    }

    /// The cache in `dir`, which windows were made for it, and notes.
    fn open(dir: &Path, windows: u64) -> (Cache, Vec<u64>, Vec<String>) {
        let (mut made, mut notes) = (Vec::new(), Vec::new());
        let mut make = |windows: std::ops::Range<u64>| {
            made.push(windows.start);
            Ok(records(windows))
        };
        let cache =
            Cache::open(dir, identity(), windows, &mut make, (&Ranks::alone(), &mut |note| notes.push(note)))
                .expect("opens");
        (cache, made, notes)
    }

    #[test]
    fn only_what_is_missing_or_damaged_is_made() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let dir = dir.path().join("cache");
        assert_eq!(open(&dir, 60).1, [0]);
        let (cache, made, _) = open(&dir, 140);
        assert_eq!(made, [64, 128]);
        let rows = cache.rows(&[149, 3], &Device::Cpu).expect("rows");
        let want = rows_of(identity().layout(), &[records(149..150), records(3..4)].concat(), &Device::Cpu);
        let want = want.expect("rows");
        let ids = |rows: &TopRows| rows.ids.to_vec2::<u32>().expect("ids");
        let logs = |rows: &TopRows| rows.logs.to_vec2::<f32>().expect("logarithms");
        assert_eq!((ids(&rows), logs(&rows)), (ids(&want), logs(&want)));
        assert!(cache.rows(&[150], &Device::Cpu).is_err());
        assert!(open(&dir, 150).1.is_empty());
        let shard = dir.join("shard-000001");
        let bytes = std::fs::read(&shard).expect("a shard");
        std::fs::write(&shard, &bytes[..bytes.len() - 9]).expect("a free disk");
        let (_, made, notes) = open(&dir, 150);
        assert_eq!(made, [64]);
        assert!(
            notes.len() == 1 && notes[0].contains("shard-000001") && notes[0].ends_with("it is made again")
        );
        assert!(std::fs::read(&shard).expect("a shard") == bytes);
    }

    #[test]
    fn several_ranks_make_a_share_each_and_read_them_all() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [alone, shared] = ["alone", "shared"].map(|name| dir.path().join(name));
        open(&alone, 150);
        let made = together(2, |ranks| {
            let mut made = Vec::new();
            let mut make = |windows: std::ops::Range<u64>| {
                made.push(windows.start);
                Ok(records(windows))
            };
            let cache = Cache::open(&shared, identity(), 150, &mut make, (&ranks, &mut |_| {}));
            let rows = cache.and_then(|cache| cache.rows(&[149, 70, 3], &Device::Cpu)).expect("rows");
            (made, rows.ids.to_vec2::<u32>().expect("ids"))
        });
        assert_eq!((&made[0].0, &made[1].0), (&vec![0, 128], &vec![64]));
        assert_eq!(made[0].1, made[1].1);
        for file in ["teacher.json", "shard-000000", "shard-000001", "shard-000002"] {
            let [one, two] = [&alone, &shared].map(|dir| std::fs::read(dir.join(file)).expect(file));
            assert!(one == two, "{file} differs");
        }
        // One that fails ends both.
        let failed = together(2, |ranks| {
            let mut make = |windows: std::ops::Range<u64>| match ranks.rank() {
                1 => Err(Error::Data("no room".into())),
                _ => Ok(records(windows)),
            };
            let opened =
                Cache::open(&dir.path().join("other"), identity(), 150, &mut make, (&ranks, &mut |_| {}));
            opened.expect_err("refused").to_string()
        });
        assert_eq!(failed, ["rank 1: no room", "no room"]);
    }

    #[test]
    fn an_interruption_keeps_the_shards_that_were_made() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut make = |windows: std::ops::Range<u64>| match windows.start {
            64 => Err(Error::Interrupted),
            _ => Ok(records(windows)),
        };
        let stopped = Cache::open(dir.path(), identity(), 150, &mut make, (&Ranks::alone(), &mut |_| {}));
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(open(dir.path(), 150).1, [64, 128]);
    }

    #[test]
    fn the_cache_of_something_else_is_refused_by_what_differs() {
        let dir = tempfile::tempdir().expect("temporary folder");
        open(dir.path(), 10);
        let other = Identity { top_k: 3, temperature: 2.0, ..identity() };
        let refused = |identity: Identity| {
            Cache::open(dir.path(), identity, 10, &mut |w| Ok(records(w)), (&Ranks::alone(), &mut |_| {}))
                .expect_err("refused")
                .to_string()
        };
        let m = refused(other);
        assert!(
            m.contains(
                "teacher.json: the cache was made with top_k = 2, this run has 3; name another folder"
            ),
            "{m}"
        );
        std::fs::write(dir.path().join("teacher.json"), "{}").expect("a free disk");
        let m = refused(identity());
        assert!(m.contains("says not what a teacher's cache is made of (missing field"), "{m}");
    }
}
