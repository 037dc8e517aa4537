//! The walls of the house, read off the tree: who may name whom, where what is dangerous or printed may stand.
//!
//! Knows nothing of what the code does. Comments and strings are text like all else: what is looked for is spelled so that
//! only code has it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use qat_train::recipe::{self, Plan};

/// Longest source file, in lines.
const LONGEST: usize = 600;

/// Where a cargo feature may be asked for: where devices and engines are chosen, and what carries work out on them.
const FEATURES: [&str; 4] = [
    "train/src/device.rs",
    "train/src/ops/gpu/mod.rs",
    // Where engines between processes are chosen, and what carries things.
    "train/src/ranks/mod.rs",
    "train/src/ranks/launch.rs",
];

/// A file of the tree.
struct Source {
    /// Path from the root, with `/`.
    path: String,
    text: String,
    /// Whether it is compiled for tests or examples only.
    is_test: bool,
}

impl Source {
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    /// Paths of the modules that it declares for tests alone, without extension.
    fn test_modules(&self) -> Vec<String> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
        let below = if ["mod", "lib", "main"].contains(&name) { folder } else { stem };
        let declared = self.text.split("#[cfg(test)]").skip(1).filter_map(|rest| {
            let line = rest.trim_start().lines().next()?;
            let name = line.strip_suffix(';')?.split("mod ").nth(1)?;
            Some(format!("{below}/{name}"))
        });
        declared.collect()
    }

    /// Numbered lines of what ships: up to the module of tests, without comment lines.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let inline_tests =
            |line: &str| line.trim_start().trim_start_matches("pub(crate) ").starts_with("mod tests {");
        let lines = self.text.lines().take_while(move |line| !inline_tests(line)).enumerate();
        lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(at, line)| (at + 1, line))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below the root with one of `extensions`, but for what is built, run or hidden.
fn files(extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("listed") {
            let path: PathBuf = entry.expect("listed").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("a name in UTF-8");
            if name.starts_with('.') || ["target", "runs"].contains(&name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
                let relative = path.strip_prefix(root()).expect("below the root");
                let path_name =
                    relative.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>();
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push(Source { path: path_name.join("/"), text, is_test: false });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn sources() -> Vec<Source> {
    let mut found = files(&["rs"]);
    assert!(found.len() > 50, "the tree has more than {} sources", found.len());
    let modules: Vec<String> = found.iter().flat_map(Source::test_modules).collect();
    for source in &mut found {
        let by_place =
            source.path.split('/').any(|part| ["tests", "examples", "benches", "fuzz"].contains(&part));
        let declared = |module: &String| {
            source
                .path
                .strip_prefix(module.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        source.is_test = by_place || modules.iter().any(declared);
    }
    found
}

/// Every line of `sources` that has one of `words`, as `path:line: text`.
fn lines_with<'a>(sources: impl IntoIterator<Item = &'a Source>, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (at, line) in source.shipped().filter(|(_, line)| words.iter().any(|word| line.contains(word))) {
            found.push(format!("{}:{at}: {}", source.path, line.trim()));
        }
    }
    found
}

fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}, but:\n{}", found.join("\n"));
}

#[test]
fn dependencies_run_one_way() {
    let all = files(&["rs", "toml"]);
    let below = |place: &'static str| all.iter().filter(move |s| s.path.starts_with(place));
    let names = |list: &[&str]| -> Vec<String> {
        list.iter().flat_map(|n| [n.to_string(), n.replace('_', "-")]).collect()
    };
    for (place, strangers) in [
        ("quant/", &["qat_infer", "qat_train", "candle"][..]),
        // candle-metal-kernels, which the encoder is written over, is not among them.
        ("infer/", &["qat_train", "candle_core", "candle_nn"]),
        // Whoever runs models needs no network, and the network no models.
        ("infer/", &["qat_hub"]),
        ("train/", &["qat_hub"]),
        ("capi/", &["qat_train", "qat_hub", "candle"]),
        ("hub/", &["qat_quant", "qat_infer", "qat_train", "candle"]),
        ("src/", &["candle"]),
    ] {
        let strangers = names(strangers);
        let strangers: Vec<&str> = strangers.iter().map(String::as_str).collect();
        none(&lines_with(below(place), &strangers), &format!("{place} names none of {strangers:?}"));
    }
    assert!(!lines_with(below("train/"), &["candle_core"]).is_empty(), "the search finds what is there");
}

/// The table of ARCHITECTURE.md on what is unsafe: lines of each file.
fn unsafe_as_listed() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("read");
    let below = text.split_once(concat!("\n## Un", "safe\n")).expect("it has the table").1;
    let section = below.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `") || line.starts_with("| together"));
    let counted = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), cells[2].parse().expect("a number of lines"))
    };
    rows.map(counted).collect()
}

#[test]
fn what_is_unsafe_is_listed_counted_and_reasoned() {
    let sources = sources();
    // Put together here, so that this file doesn't find itself.
    let words = [
        concat!("un", "safe {"),
        concat!("un", "safe fn"),
        concat!("un", "safe impl"),
        concat!("un", "safe extern"),
        concat!("un", "safe trait"),
    ];
    none(
        &lines_with(&sources, &[concat!("allow(un", "safe_code")]),
        "an exception is expected, with its reason",
    );
    let mut found = BTreeMap::new();
    for source in &sources {
        let lines = lines_with([source], &words);
        if lines.is_empty() {
            continue;
        }
        // What C calls has one contract, which the head of qat.h says.
        let is_for_c = |line: &&String| line.contains("extern \"C\" fn");
        let blocks = lines.iter().filter(|line| !is_for_c(line)).count();
        let reasons = source.text.matches("// SAFETY:").count() + source.text.matches("# Safety").count();
        assert!(reasons >= blocks, "{}: {blocks} lines are unsafe, {reasons} say why", source.path);
        found.insert(source.path.clone(), lines.len());
    }
    found.insert("together".to_owned(), found.values().sum());
    assert_eq!(unsafe_as_listed(), found, "the table of ARCHITECTURE.md (left) and the tree (right)");
}

#[test]
fn features_are_asked_for_where_devices_are_chosen() {
    let sources = sources();
    let outside = sources.iter().filter(|s| !s.is_in(&FEATURES));
    let words = [concat!("(feature", " = "), concat!(" feature", " = ")];
    none(&lines_with(outside, &words), "cfg(feature) stands in the list only");
}

#[test]
fn only_the_front_door_prints() {
    let sources = sources();
    let quiet = sources.iter().filter(|s| !s.path.starts_with("src/") && !s.is_test);
    let words = [concat!("print", "ln!("), concat!("print", "!("), concat!("db", "g!(")];
    none(&lines_with(quiet, &words), "libraries print nothing");
}

#[test]
fn what_ships_does_not_unwrap() {
    let sources = sources();
    let shipped = sources.iter().filter(|s| !s.is_test);
    let words = [
        concat!(".unw", "rap()"),
        concat!(".exp", "ect("),
        concat!("pan", "ic!("),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ];
    none(&lines_with(shipped, &words), "errors are values");
}

#[test]
fn every_source_says_what_it_is_and_stays_short() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} has no header", source.path);
        let lines = source.text.lines().count();
        assert!(
            lines <= LONGEST,
            "{} has {lines} lines, at most {LONGEST} are read at a sitting",
            source.path
        );
    }
}

#[test]
fn every_recipe_parses_and_plans() {
    let mut recipes = 0;
    for entry in fs::read_dir(root().join("configs")).expect("listed") {
        let path = entry.expect("listed").path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        recipes += 1;
        for named in recipe::load(&path, &[]).unwrap_or_else(|e| panic!("{e}")) {
            Plan::new(&named.recipe).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
    assert!(recipes > 0, "configs/ holds recipes");
}

#[test]
fn every_bug_that_is_planted_in_a_kernel_has_one_place_to_go() {
    let list = root().join("scripts/metal-mutations.toml");
    let list: toml::Table = fs::read_to_string(list).expect("read").parse().expect("TOML");
    let bugs = list["bug"].as_array().expect("bugs");
    let lost = |bug: &&toml::Value| {
        let [file, find] = ["file", "find"].map(|key| bug[key].as_str().expect("a text"));
        fs::read_to_string(root().join(file)).expect("read").matches(find).count() != 1
    };
    let lost: Vec<String> = bugs.iter().filter(lost).map(|bug| bug["what"].to_string()).collect();
    none(&lost, "the text that a bug of scripts/metal-mutations.toml replaces stands once in its file");
    assert!(bugs.len() > 100, "{} bugs", bugs.len());
}

#[test]
fn nothing_names_a_place_of_one_machine() {
    let texts = files(&["rs", "toml", "md", "json", "py", "sh", "yml", "lock", "grammar"]);
    let places = ["/work/", "/root/", "/home/", "/Users/"].map(|place| place.to_owned());
    for source in texts.iter().filter(|s| s.path != "tests/tidy.rs") {
        for place in &places {
            // In code a path begins behind a quote; in prose behind a space or bracket. A word before it makes it relative.
            let absolute = source.text.match_indices(place.as_str()).find(|(at, _)| {
                !source.text[..*at].ends_with(|c: char| c.is_alphanumeric() || "._-~}*".contains(c))
            });
            let context = absolute.map(|(at, _)| source.text[at..].chars().take(40).collect::<String>());
            assert!(context.is_none(), "{}: {context:?}", source.path);
        }
    }
}
