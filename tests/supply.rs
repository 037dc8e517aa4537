//! What the build takes from others: every crate pinned, from one registry, with a licence that is allowed and listed; and nothing of
//! ours that runs while it is built.
//!
//! Reads `Cargo.lock`, `THIRD-PARTY.md` and manifests; needs no network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Licences whose terms a shipped binary keeps when it comes with their texts.
const ALLOWED: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Licences of what is run here and never passed on.
const ALLOWED_IN_TESTS: [&str; 1] = ["MPL-2.0"];

/// The only place that crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

const LIST: &str = "THIRD-PARTY.md";
const MEND: &str = "look at what is new, then run scripts/third-party.py";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A crate of a lock file.
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    has_checksum: bool,
}

fn locked(path: &str) -> Vec<Locked> {
    let file: toml::Table = toml::from_str(&read(path)).expect("a lock file");
    let packages = file["package"].as_array().expect("packages");
    let text = |package: &toml::Value, key| package.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let of = |package| Locked {
        name: text(package, "name").expect("a name"),
        version: text(package, "version").expect("a version"),
        source: text(package, "source"),
        has_checksum: text(package, "checksum").is_some(),
    };
    packages.iter().map(of).collect()
}

/// The crates of others, as name and version.
fn foreign() -> BTreeSet<(String, String)> {
    locked("Cargo.lock").into_iter().filter(|p| p.source.is_some()).map(|p| (p.name, p.version)).collect()
}

/// The rows of the table under the heading, without those that name columns.
fn table<const N: usize>(text: &str, heading: &str) -> Vec<[String; N]> {
    let (_, below) = text.split_once(heading).unwrap_or_else(|| panic!("{heading} is not in {LIST}"));
    let rows =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    rows.skip(2)
        .map(|row| cells(row).try_into().unwrap_or_else(|_| panic!("{row} has not {N} cells")))
        .collect()
}

/// Licence and place of every listed crate.
fn listed() -> BTreeMap<(String, String), (String, String)> {
    let rows = table::<4>(&read(LIST), "# Third-party code");
    rows.into_iter().map(|[name, version, licence, place]| ((name, version), (licence, place))).collect()
}

/// Whether one of the choices that `expression` (SPDX, or the older `A/B`) leaves is `allowed`.
fn permits(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let permitted = either(&mut words, allowed);
    permitted && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut permitted = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        permitted |= both(words, allowed);
    }
    permitted
}

fn both(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut permitted = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        permitted &= one(words, allowed);
    }
    permitted
}

fn one(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let inner = either(words, allowed);
        return words.next() == Some(")") && inner;
    }
    let permitted = words.next().is_some_and(allowed);
    // An exception gives more leave, never less.
    if words.next_if_eq(&"WITH").is_some() {
        words.next();
    }
    permitted
}

#[test]
fn licence_expressions_are_read() {
    let permitted = |expression| permits(expression, &|name| ["A", "B"].contains(&name));
    for yes in
        ["A", "A OR X", "X/A", "X / A", "A AND B", "(X OR A) AND B", "A WITH more OR X", "X AND X OR A"]
    {
        assert!(permitted(yes), "{yes}");
    }
    for no in
        ["", "X", "A AND X", "X OR X", "(A OR X) AND X", "A B", "(A", "A) OR X", "X WITH A", "A AND (X OR X)"]
    {
        assert!(!permitted(no), "{no}");
    }
}

#[test]
fn every_crate_is_pinned_and_comes_from_one_registry() {
    let ours =
        ["qat", "qat-capi", "qat-fuzz", "qat-hub", "qat-infer", "qat-metal-host", "qat-quant", "qat-train"];
    for file in ["Cargo.lock", "fuzz/Cargo.lock"] {
        for package in locked(file) {
            match &package.source {
                None => {
                    assert!(ours.contains(&package.name.as_str()), "{file}: where is {} from?", package.name)
                }
                Some(source) => {
                    assert_eq!(source, REGISTRY, "{file}: {}", package.name);
                    assert!(package.has_checksum, "{file}: {} has no checksum", package.name);
                }
            }
        }
    }
    let ignored = read(".gitignore");
    assert!(!ignored.lines().any(|line| line.contains("Cargo.lock")), "what is pinned is kept");
}

#[test]
fn every_crate_is_listed_with_its_licence() {
    let (foreign, listed) = (foreign(), listed());
    let unlisted: Vec<_> = foreign.iter().filter(|package| !listed.contains_key(*package)).collect();
    assert!(unlisted.is_empty(), "in Cargo.lock and not in {LIST}: {unlisted:?}; {MEND}");
    let gone: Vec<_> = listed.keys().filter(|package| !foreign.contains(*package)).collect();
    assert!(gone.is_empty(), "in {LIST} and not in Cargo.lock: {gone:?}; {MEND}");
}

#[test]
fn every_licence_is_one_that_is_allowed() {
    for ((name, version), (licence, place)) in listed() {
        let allowed =
            |word: &str| ALLOWED.contains(&word) || place == "tests" && ALLOWED_IN_TESTS.contains(&word);
        assert!(permits(&licence, &allowed), "{name} {version} ({place}): {licence} is not allowed here");
    }
}

/// Where manifests are at hand, which those of crates for this system are after a build.
#[test]
fn the_list_says_what_the_manifests_say() {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = |arguments: &[&str]| {
        let ran = Command::new(&cargo).args(arguments).current_dir(root()).output().expect("cargo");
        assert!(ran.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("UTF-8")
    };
    let version = run(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    // With a lock file that doesn't fit the manifests this fails.
    let told =
        run(&["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    let metadata: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let listed = listed();
    let mut compared = 0;
    for package in metadata["packages"].as_array().expect("packages") {
        if package["source"].is_null() {
            continue;
        }
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (licence, _) = &listed[&(text("name"), text("version"))];
        assert_eq!(*licence, text("license"), "{} {}; {MEND}", text("name"), text("version"));
        compared += 1;
    }
    assert!(compared > 200, "{compared} crates were compared");
}

#[test]
fn crates_in_several_versions_are_listed() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version) in foreign() {
        versions.entry(name).or_default().insert(version);
    }
    versions.retain(|_, several| several.len() > 1);
    let rows = table::<2>(&read(LIST), "## In several versions");
    let as_set = |list: &str| list.split(", ").map(str::to_owned).collect();
    let listed: BTreeMap<String, BTreeSet<String>> =
        rows.iter().map(|[name, list]| (name.clone(), as_set(list))).collect();
    assert_eq!(listed, versions, "{MEND}");
}

#[test]
fn nothing_of_ours_runs_while_it_is_built() {
    let workspace: toml::Table = toml::from_str(&read("Cargo.toml")).expect("a manifest");
    let members = workspace["workspace"]["members"].as_array().expect("members");
    let members = members.iter().map(|member| member.as_str().expect("a path"));
    for member in members.chain([".", "fuzz"]) {
        assert!(!root().join(member).join("build.rs").exists(), "{member} has a build script");
        let manifest: toml::Table =
            toml::from_str(&read(&format!("{member}/Cargo.toml"))).expect("a manifest");
        let is_macro = manifest.get("lib").is_some_and(|lib| lib.get("proc-macro").is_some());
        let has_script = manifest["package"].get("build").is_some();
        assert!(!is_macro && !has_script, "{member}: the compiler would run it");
        // The one that only chooses features (ARCHITECTURE.md).
        let build = manifest.get("build-dependencies").and_then(|table| table.as_table());
        let allowed: &[&str] = if member == "." { &["syn"] } else { &[] };
        assert!(
            build.is_none_or(|table| table.keys().eq(allowed)),
            "{member}: build dependencies are there for scripts"
        );
    }
}
