//! kill -9: nothing can be done about it while it happens.

use std::{process::Child, time::Duration};

use crate::{
    Case, Extent, Held,
    draw::Draw,
    scene::{RESUME, STEPS, TRAIN, Whole, checkpoint, entries, half_made, logged, reached, scene, start},
    workshop::Workshop,
};

/// What a run is doing.
#[derive(Debug, Clone, Copy)]
pub enum Doing {
    Tokenizing,
    Teaching,
    /// With so many lines logged.
    Training(usize),
    /// Writing the checkpoint of a step.
    Saving(usize),
    Exporting,
    Scoring,
}

impl Doing {
    /// One of each, where there are several a drawn one.
    pub fn each(draw: &mut Draw) -> [Self; 6] {
        [
            Self::Tokenizing,
            Self::Teaching,
            Self::Training(1 + draw.below(STEPS - 1)),
            Self::Saving(2 + 2 * draw.below(STEPS / 2)),
            Self::Exporting,
            Self::Scoring,
        ]
    }

    /// Whether the run in `shop` has begun with it.
    pub fn has_begun(self, shop: &Workshop) -> bool {
        match self {
            Self::Tokenizing => !entries(shop, "cache").is_empty(),
            Self::Teaching => shop.path("taught/teacher.json").exists(),
            Self::Training(lines) => logged(shop) >= lines,
            Self::Saving(step) => {
                let made = checkpoint(step);
                shop.path(made.replace("step-", ".step-") + ".partial").exists() || shop.path(made).exists()
            }
            Self::Exporting => shop.path(checkpoint(STEPS)).exists(),
            Self::Scoring => shop.path("run/qat/manifest.json").exists(),
        }
    }

    /// How long it takes, about.
    pub fn takes(self, whole: &Whole) -> Duration {
        match self {
            Self::Tokenizing => whole.stretch(0),
            Self::Teaching => whole.stretch(1),
            // A step and its checkpoint.
            Self::Training(_) | Self::Saving(_) => whole.stretch(2) * 2 / STEPS as u32,
            Self::Exporting => whole.stretch(3),
            Self::Scoring => whole.stretch(4),
        }
    }
}

/// A run that was hit `delay` after it had begun with `doing`, and how long that delay became: where the run was over before, it is
/// begun anew and hit earlier.
pub fn hit(doing: Doing, mut delay: Duration, by: impl Fn(Child) -> bool) -> (Workshop, Duration) {
    for _ in 0..20 {
        let shop = scene();
        let mut child = start(&shop, TRAIN);
        if reached(&mut child, || doing.has_begun(&shop)) {
            std::thread::sleep(delay);
            if by(child) {
                return (shop, delay);
            }
        }
        delay /= 2;
    }
    panic!("twenty times the run was over before it could be hit");
}

/// Ends `child` as nothing else ends it; whether it still ran.
fn kill(mut child: Child) -> bool {
    child.kill().expect("killed");
    child.wait().expect("ended").code().is_none()
}

/// What a run that was hit left behind, in a few words.
fn found(shop: &Workshop) -> String {
    let mut words = Vec::new();
    let shards = entries(shop, "taught").iter().filter(|name| name.starts_with("shard-")).count();
    let steps = entries(shop, "run/checkpoints").into_iter().filter(|name| name.starts_with("step-"));
    words.extend((shards > 0).then(|| format!("{shards} shards")));
    words.extend(steps.max());
    words.extend(shop.path("run/qat").exists().then(|| "qat".to_owned()));
    words.extend(half_made(shop).iter().map(|path| format!("{} half made", path.display())));
    if words.is_empty() { "nothing yet".to_owned() } else { words.join(", ") }
}

/// Runs that are killed once.
pub fn once(draw: &mut Draw, extent: Extent, whole: &Whole) -> Vec<Case> {
    let mut cases = Vec::new();
    while cases.len() < extent.kills {
        for doing in Doing::each(draw) {
            // A little over, so that the borders are hit from both sides.
            let delay = draw.time(doing.takes(whole).mul_f64(1.1));
            cases.push(Case::new(
                format!("kill {:3}, {doing:?} + {delay:.1?}", cases.len() + 1),
                move |whole| {
                    let (shop, delay) = hit(doing, delay, kill);
                    let left = found(&shop);
                    shop.done(RESUME);
                    whole.is_matched_by(&shop);
                    Held::Yes(format!("killed after {delay:.1?}, left {left}; the same bits"))
                },
            ));
        }
    }
    cases.truncate(extent.kills);
    cases
}

/// Runs that are killed again when they go on.
pub fn often(draw: &mut Draw, extent: Extent, whole: &Whole) -> Vec<Case> {
    const TIMES: usize = 5;
    let case = |number: usize| {
        let delays: Vec<Duration> = (0..TIMES).map(|_| draw.time(whole.took())).collect();
        Case::new(format!("killed five times, {number}"), move |whole: &Whole| {
            let shop = scene();
            let mut hits = 0;
            for delay in &delays {
                let child = start(&shop, RESUME);
                std::thread::sleep(*delay);
                hits += usize::from(kill(child));
            }
            shop.done(RESUME);
            whole.is_matched_by(&shop);
            Held::Yes(format!("{hits} of {TIMES} kills came before the end; the same bits"))
        })
    };
    (1..=(extent.kills / 10).max(1)).map(case).collect()
}
