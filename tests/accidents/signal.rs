//! Ctrl-C, SIGTERM and a terminal that is closed: the run ends by itself, and says how it goes on.

use std::process::Child;

use crate::{
    Case, Extent, Held,
    draw::Draw,
    kill::{Doing, hit},
    scene::{RESUME, Whole, half_made},
    workshop::{Said, send},
};

/// Every signal in every stretch of a run.
pub fn cases(draw: &mut Draw, extent: Extent, whole: &Whole) -> Vec<Case> {
    let mut cases = Vec::new();
    for signals in [&["INT"][..], &["TERM"], &["HUP"], &["INT", "INT"]] {
        for doing in Doing::each(draw) {
            let delay = draw.time(doing.takes(whole) / 2);
            let name = format!("{} while {doing:?}", signals.join(" and "));
            cases.push(Case::new(name, move |whole| {
                let (shop, delay) = hit(doing, delay, |child| ended_by(child, signals));
                // A second signal ends the process where it is.
                let mut half = half_made(&shop);
                // Tokens that were made are kept, with a note of how far they go.
                half.retain(|path| !shop.path(path).with_extension("part.json").exists());
                assert!(half.is_empty() || signals.len() > 1, "left {half:?}");
                shop.done(RESUME);
                whole.is_matched_by(&shop);
                Held::Yes(format!("ended with 130 after {delay:.1?}; the same bits"))
            }));
        }
    }
    extent.of(draw, 5, cases)
}

/// Whether `signals` were what ended `child`.
fn ended_by(child: Child, signals: &[&str]) -> bool {
    signals.iter().for_each(|signal| send(signal, &child));
    let said = Said::from(child.wait_with_output().expect("ended"));
    assert!([Some(0), Some(130)].contains(&said.code), "{said:?}");
    let told = said.err.contains("--resume") || said.err.contains("nothing to save") || signals.len() > 1;
    assert!(said.code == Some(0) || told, "{said:?}");
    said.code == Some(130)
}
