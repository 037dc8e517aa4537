//! A recipe in TOML: what is accepted is planned.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qat_train::recipe::{Plan, parse};

fuzz_target!(|text: &str| {
    let Ok(recipes) = parse(text, Path::new("recipe.toml"), &[]) else { return };
    for named in recipes {
        let _ = Plan::new(&named.recipe);
    }
});
