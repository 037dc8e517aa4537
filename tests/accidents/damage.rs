//! Files that are not what was written: cut off, changed, empty, gone.

use std::{fs, path::Path};

use crate::{
    Case, Extent, Held,
    draw::Draw,
    scene::{RESUME, Whole, entries, names},
};

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// One bit is another.
    Bit,
    /// The last byte is missing.
    Short,
    /// The second half is missing.
    Half,
    /// Nothing is left in it.
    Empty,
    /// The file itself is missing.
    Gone,
}

impl Damage {
    const ALL: [Self; 5] = [Self::Bit, Self::Short, Self::Half, Self::Empty, Self::Gone];

    /// Does it; the bit is that at the share `place` of the file.
    fn befall(self, file: &Path, place: f64) {
        let mut bytes = fs::read(file).expect("a file");
        match self {
            Self::Bit => {
                let at = (bytes.len() as f64 * 8.0 * place) as usize;
                bytes[at / 8] ^= 1 << (at % 8);
            }
            Self::Short => bytes.truncate(bytes.len() - 1),
            Self::Half => bytes.truncate(bytes.len() / 2),
            Self::Empty => bytes.clear(),
            Self::Gone => return fs::remove_file(file).expect("removed"),
        }
        fs::write(file, bytes).expect("written");
    }
}

/// The log, which a run is not resumed from.
const LOG: &str = "run/log.jsonl";

/// Every file that a stopped run has written, damaged in every way.
pub fn cases(draw: &mut Draw, extent: Extent, whole: &Whole) -> Vec<Case> {
    let stopped = whole.stopped();
    let mut cases = Vec::new();
    for folder in ["run", "cache", "taught"] {
        for path in names(stopped.path(folder)) {
            let file = Path::new(folder).join(path);
            let meta = fs::metadata(stopped.path(&file)).expect("there");
            if meta.is_dir() || meta.len() == 0 {
                continue;
            }
            for damage in Damage::ALL {
                let (file, place) = (file.clone(), draw.share());
                cases.push(Case::new(format!("{}: {damage:?}", file.display()), move |whole| {
                    damaged(&file, damage, place, whole)
                }));
            }
        }
    }
    extent.of(draw, 8, cases)
}

fn damaged(file: &Path, damage: Damage, place: f64, whole: &Whole) -> Held {
    let shop = whole.stopped();
    let newest = entries(&shop, "run/checkpoints").pop().expect("a checkpoint");
    let newest = format!("run/checkpoints/{newest}");
    damage.befall(&shop.path(file), place);
    let said = shop.run(RESUME);
    let name = file.display().to_string();
    let told = said.err.lines().find(|line| {
        line.contains(&name)
            || (name.starts_with("run/student") && line.contains("what the run started from"))
    });
    if said.code == Some(0) {
        if name == LOG {
            // What is lost of it is lost: nothing is made of it.
            shop.write(LOG, whole.shop().read(LOG));
        }
        whole.is_matched_by(&shop);
        // What the run goes on from, or would have: it says that it can't.
        let is_needed = !name.contains("checkpoints") || name.starts_with(&newest);
        let is_made_anew = matches!(damage, Damage::Gone) && !name.starts_with("run/");
        assert!(told.is_some() || !is_needed || is_made_anew || name == LOG, "{name} is not named: {said:?}");
        return Held::Yes(told.map_or("went unnoticed, the same bits".to_owned(), |told| {
            format!("\"{told}\"; the same bits")
        }));
    }
    assert_eq!(said.code, Some(2), "{said:?}");
    let told = told.unwrap_or_else(|| panic!("{name} is not named: {said:?}")).to_owned();
    // What the message advises: only a teacher's cache is not put right by itself.
    assert!(file.starts_with("taught") && told.contains("delete this one"), "{said:?}");
    fs::remove_dir_all(shop.path("taught")).expect("removed");
    shop.done(RESUME);
    whole.is_matched_by(&shop);
    Held::Yes(format!("\"{told}\"; done so, the same bits"))
}
