//! Clocks that jump: files from the past and the future, and processes that are told another time.

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::{
    Case, Extent, Held,
    draw::Draw,
    scene::{RESUME, TRAIN, Whole, names, scene},
    workshop::Said,
};

/// Times of files, and of processes.
pub fn cases(draw: &mut Draw, extent: Extent, _: &Whole) -> Vec<Case> {
    let century = Duration::from_secs(100 * 365 * 86400);
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let at = |name: &str, time: SystemTime| {
        Case::new(format!("all files are from {name}"), move |whole: &Whole| aged(whole, |_| time))
    };
    let mixed: Vec<f64> = (0..512).map(|_| draw.share()).collect();
    let drawn = move |index: usize| epoch + century.mul_f64(mixed[index % mixed.len()]);
    let mut cases = vec![
        at("1970", epoch),
        at("the future", SystemTime::now() + century / 2),
        Case::new("every file is from another time", move |whole: &Whole| aged(whole, &drawn)),
    ];
    for time in ["-30y", "+60y", "+0 x1000", "@1970-01-02 00:00:00"] {
        cases.push(Case::new(format!("the process is told the time {time}"), move |whole| told(time, whole)));
    }
    extent.of(draw, 3, cases)
}

/// A stopped run whose files are as old as `time` says of each goes on.
fn aged(whole: &Whole, time: impl Fn(usize) -> SystemTime) -> Held {
    let shop = whole.stopped();
    for (index, path) in names(shop.path("")).iter().enumerate() {
        let file = File::open(shop.path(path)).expect("opened");
        file.set_modified(time(index)).expect("its time is set");
    }
    shop.done(RESUME);
    whole.is_matched_by(&shop);
    Held::Yes("the same bits".to_owned())
}

/// A run that begins, is stopped by nothing and ends at another time than everybody else's.
fn told(time: &str, whole: &Whole) -> Held {
    let Some(library) = faketime() else {
        return Held::Skipped("no libfaketime here, so that no process can be told another time");
    };
    let shop = scene();
    let mut command = shop.command(TRAIN.split(' '));
    command.env("LD_PRELOAD", library).env("FAKETIME", time).env("RAYON_NUM_THREADS", "1");
    let said = Said::of(command);
    assert_eq!(said.code, Some(0), "{said:?}");
    whole.is_matched_by(&shop);
    Held::Yes("the same bits".to_owned())
}

/// The library that tells other times, where Linux distributions put it.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}
