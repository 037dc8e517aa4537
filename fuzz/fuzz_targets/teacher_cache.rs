//! A teacher's cache: what it says it was made of, and a shard, whose header and checksum are mended.

#![no_main]

use candle_core::Device;
use libfuzzer_sys::fuzz_target;
use qat_fuzz::{dir, split};
use qat_train::{Error, ranks::Ranks};
use qat_train::teacher_cache::{Cache, Identity, VERSION};
use sha2::{Digest, Sha256};

const WINDOWS: u64 = 2;

fn identity() -> Identity {
    let (teacher, tokens) = ("t".to_owned(), "k".to_owned());
    Identity {
        version: VERSION,
        teacher,
        tokens,
        windows: WINDOWS,
        ctx: 2,
        vocab: 8,
        top_k: 2,
        temperature: 1.0,
    }
}

/// The shard with these records.
fn shard(records: &[u8]) -> Option<Vec<u8>> {
    let identity = identity();
    let mut bytes = b"QATTEACH".to_vec();
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(u32::try_from(identity.layout().record_bytes()).ok()?.to_le_bytes());
    bytes.extend([0, WINDOWS, 2].iter().flat_map(|number: &u64| number.to_le_bytes()));
    bytes.extend(identity.digest().ok()?);
    let sum = Sha256::new().chain_update(&bytes).chain_update(records).finalize();
    bytes.extend(sum);
    bytes.extend(records);
    Some(bytes)
}

fuzz_target!(|bytes: &[u8]| {
    let [told, records] = split(bytes);
    let folder = dir().join("cache");
    let _ = std::fs::remove_dir_all(&folder);
    let Some(shard) = shard(records) else { return };
    let written = std::fs::create_dir(&folder)
        .and_then(|()| std::fs::write(folder.join("shard-000000"), shard))
        // Without a word on it the folder is claimed by whoever comes first.
        .and_then(
            |()| if told.is_empty() { Ok(()) } else { std::fs::write(folder.join("teacher.json"), told) },
        );
    assert!(written.is_ok(), "{written:?}");
    let mut make = |_| Err(Error::Interrupted);
    let opened = Cache::open(&folder, identity(), WINDOWS, &mut make, (&Ranks::alone(), &mut |_| ()));
    let Ok(cache) = opened else { return };
    let rows = cache.rows(&[1, 0], &Device::Cpu).expect("it was checked");
    for ids in rows.ids.to_vec2::<u32>().expect("ids") {
        assert!(ids[0] < ids[1] && ids[1] < 8, "{ids:?}");
    }
    for logs in rows.logs.to_vec2::<f32>().expect("logarithms") {
        let sum: f64 = logs.iter().map(|log| f64::from(*log).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-3, "{logs:?} are probabilities of {sum}");
    }
});
