//! kill -9 while a long text becomes tokens: what was done by then is not done again.

use std::{
    fs,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{
    Case, Extent, Held,
    draw::Draw,
    scene::{Whole, entries, half_made, reached, start},
    workshop::Workshop,
};

const TOKENIZE: &str = "data tokenize --format text --model teacher long.txt --plain";

/// Sentences of the text: so many that what is done is noted while it becomes tokens, on one thread.
const SENTENCES: usize = 700_000;

/// A text that is not tokenized yet.
fn text() -> Workshop {
    let shop = Workshop::new();
    shop.model("teacher");
    shop.text("long.txt", SENTENCES);
    shop
}

/// The token file in `shop`.
fn tokens(shop: &Workshop) -> PathBuf {
    let files = entries(shop, "cache");
    assert!(files.len() == 1 && files[0].ends_with(".tokens"), "{files:?}");
    shop.path("cache").join(&files[0])
}

/// The bytes that a text becomes which nothing happens to, and how long that takes.
fn whole() -> &'static (Vec<u8>, Duration) {
    static WHOLE: OnceLock<(Vec<u8>, Duration)> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let shop = text();
        let began = Instant::now();
        let ended = start(&shop, TOKENIZE).wait_with_output().expect("ended");
        assert!(ended.status.success());
        (fs::read(tokens(&shop)).expect("tokens"), began.elapsed())
    })
}

/// Kills at random moments behind the first note.
pub fn cases(draw: &mut Draw, extent: Extent, _: &Whole) -> Vec<Case> {
    let case = |number: usize| {
        let share = draw.share();
        Case::new(format!("killed in a long text, {number}"), move |_: &Whole| killed(share))
    };
    (1..=(extent.kills / 10).max(1)).map(case).collect()
}

fn killed(share: f64) -> Held {
    let (wanted, takes) = whole();
    let shop = text();
    let noted = || entries(&shop, "cache").iter().any(|name| name.ends_with(".part.json"));
    let mut child = start(&shop, TOKENIZE);
    if !reached(&mut child, noted) {
        return Held::Skipped("the text became tokens before anything was noted");
    }
    std::thread::sleep(takes.mul_f64(share / 4.0));
    child.kill().expect("killed");
    if child.wait().expect("ended").success() {
        return Held::Skipped("the text became tokens before it could be killed");
    }
    let said = shop.done(TOKENIZE);
    assert!(fs::read(tokens(&shop)).expect("tokens") == *wanted, "other tokens");
    assert!(half_made(&shop).is_empty());
    let told = said.err.lines().find(|line| line.contains("went on tokenizing behind the first "));
    Held::Yes(format!("\"{}\"; the same bits", told.expect("it goes on")))
}
