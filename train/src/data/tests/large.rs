//! A token file that is larger than what may be held of it.

use super::super::digest;
use super::super::token_file::Header;
use super::super::{Batches, Tokens};
use super::Folder;

/// Megabytes of the file of [`huge`].
const SIZE: usize = 192;

/// Ids without meaning.
fn huge(folder: &Folder) -> Tokens {
    let ids: Vec<u8> = (0..SIZE << 20).map(|i| (i * 31 % 97) as u8 & 0x0f).collect();
    let header = Header {
        vocab_size: 1 << 16,
        tokens: (ids.len() / 2) as u64,
        documents: 1,
        skipped: 0,
        text_bytes: ids.len() as u64,
        key: [0; 32],
        marked: false,
    };
    let path = folder.file("huge.tokens", [&header.to_bytes(digest::of_bytes(&ids))[..], &ids].concat());
    Tokens::open(&path).unwrap()
}

/// Bytes of the map of `tokens` that are in memory, as the system says.
fn held(tokens: &Tokens) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = tokens.path().display().to_string();
    let of_file =
        maps.lines().skip_while(|line| !line.ends_with(&name)).find(|line| line.starts_with("Rss:"));
    let kib = of_file.and_then(|line| line.split_whitespace().nth(1)).expect("the file is mapped");
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn an_epoch_of_shuffled_windows_is_read_without_holding_the_file() {
    let folder = Folder::new();
    let tokens = huge(&folder);
    // The map's first pages come back with the header's, as many as the system brings at once: with large pages 2 MiB.
    assert!(held(&tokens) < 8 << 20, "looking at all of it holds none of it: {}", held(&tokens));
    let batches = Batches::new(tokens.clone(), 1024, 40, 1).unwrap();
    let mut most = 0;
    for step in 0..batches.steps_per_epoch() {
        batches.at(step);
        most = most.max(held(&tokens));
    }
    // What is let go of is counted with what the system maps around each window, which may lie in two large pages.
    assert!(most < 96 << 20, "{most} bytes of {SIZE} MiB");
    assert!(most > 1 << 20, "it is read at all");
}
