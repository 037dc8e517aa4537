#!/usr/bin/env python3
"""Whose code is in what is built here, and under which licences.

    scripts/third-party.py                    writes THIRD-PARTY.md, from Cargo.lock and the manifests of the crates
    scripts/third-party.py --texts FILE       writes the licence texts of the crates that a shipped binary holds into FILE

Needs cargo, and the network once for crates of other systems. tests/supply.rs holds the list to Cargo.lock.
"""

import argparse
import hashlib
import json
import subprocess
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "THIRD-PARTY.md"
SYSTEMS = {"linux": "x86_64-unknown-linux-gnu", "macos": "aarch64-apple-darwin"}
# What users ship: the program, and the library for apps.
SHIPPED = ["qat", "qat-capi"]
TEXTS = ("licen", "copying", "notice", "copyright", "unlicense")

HEAD = """# Third-party code

Every crate of `Cargo.lock`, written by `scripts/third-party.py`; `cargo test` fails where a crate or its licence is not in this list, or
its licence not among those that `tests/supply.rs` allows.

**in** says where it ends up: in the program `qat` or the library for apps on `linux` or `macos` (with all cargo features); in neither, but
run by the compiler (`build`); in `tests` only; or `elsewhere`, on systems that nothing is shipped for, or behind features of others that
are never on.
A program that is passed on has to come with the licences of what is in it: `scripts/third-party.py --texts licences.txt` gathers them.

"""


def metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def tree(packages, edges, system="all"):
    """The crates, as (name, version), that `packages` come to over such edges."""
    command = ["cargo", "tree", "--locked", "--all-features", "--target", SYSTEMS.get(system, system), "-e", edges]
    command += ["--prefix", "none", "-f", "{p}", *packages]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {(words[0], words[1].removeprefix("v")) for words in (line.split() for line in lines) if len(words) > 1}


def places():
    """Where each crate ends up."""
    shipped = [word for name in SHIPPED for word in ("-p", name)]
    found = defaultdict(set)
    for system in SYSTEMS:
        for crate in tree(shipped, "normal,no-proc-macro", system):
            found[crate].add(system)
    for where, packages, edges in [("build", shipped, "normal,build"), ("tests", ["--workspace"], "all")]:
        for system in SYSTEMS:
            for crate in tree(packages, edges, system) - found.keys():
                found[crate].add(where)
    return found


def locked():
    """Name and version of every crate in Cargo.lock that is not ours."""
    found, package = [], {}
    for line in (ROOT / "Cargo.lock").read_text().splitlines():
        key, _, value = line.partition(" = ")
        if key == "name":
            package = {}
            found.append(package)
        if key in ("name", "version", "source") and found:
            package[key] = value.strip('"')
    return [p for p in found if "source" in p]


def write_list(whole):
    known = {(p["name"], p["version"]): p for p in whole["packages"]}
    where = places()
    rows, versions = [], defaultdict(list)
    for entry in locked():
        key = (entry["name"], entry["version"])
        if key not in known:
            raise SystemExit(f"{key[0]} {key[1]} stands in Cargo.lock, and nothing asks for it: cargo update --workspace")
        package = known[key]
        licence = package["license"] or f"file {package['license_file']}"
        rows.append(f"| {key[0]} | {key[1]} | {licence} | {', '.join(sorted(where.get(key, ['elsewhere'])))} |")
        versions[key[0]].append(key[1])
    several = [f"| {name} | {', '.join(found)} |" for name, found in sorted(versions.items()) if len(found) > 1]
    table = "| crate | version | licence | in |\n|---|---|---|---|\n" + "\n".join(rows)
    twice = "\n\n## In several versions\n\nBecause crates that we need ask for them.\n\n| crate | versions |\n|---|---|\n"
    LIST.write_text(HEAD + table + twice + "\n".join(several) + "\n")
    print(f"{LIST.name}: {len(rows)} crates, {len(several)} in several versions")


def write_texts(whole, path):
    where = places()
    texts, files = defaultdict(list), {}
    for package in whole["packages"]:
        shipped = where.get((package["name"], package["version"]), set()) & SYSTEMS.keys()
        if package["source"] is None or not shipped:
            continue
        folder = Path(package["manifest_path"]).parent
        names = sorted(p for p in folder.iterdir() if p.is_file() and any(word in p.name.lower() for word in TEXTS))
        if package["license_file"]:
            names.append(folder / package["license_file"])
        label = f"{package['name']} {package['version']} ({package['license']})"
        if not names:
            texts[""].append(f"{label}, {package['repository'] or 'by ' + ', '.join(package['authors'])}")
        for name in dict.fromkeys(name.resolve() for name in names):
            text = "\n".join(line.rstrip() for line in name.read_text(errors="replace").strip().splitlines())
            digest = hashlib.sha256(text.encode()).hexdigest()
            files[digest] = text
            if label not in texts[digest]:
                texts[digest].append(label)
    rule = "=" * 80
    without = texts.pop("", [])
    parts = [f"{rule}\n{chr(10).join(labels)}\n{rule}\n\n{files[digest]}\n" for digest, labels in texts.items()]
    if without:
        parts.append(f"{rule}\nWithout a text in their packages:\n{chr(10).join(without)}\n{rule}\n")
    path.write_text("\n".join(parts))
    print(f"{path}: {len(files)} texts, {len(without)} crates without one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    everything = metadata()
    if chosen.texts:
        write_texts(everything, chosen.texts)
    else:
        write_list(everything)
