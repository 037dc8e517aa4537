//! `include/qat.h` says what the Rust source says.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut made = cbindgen::Builder::new()
        .with_config(cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml"))
        .with_src(root.join("src/status.rs"))
        .with_src(root.join("src/conversation.rs"))
        .with_src(root.join("src/interface.rs"));
    made = made.include_item("Status");
    let mut text = Vec::new();
    made.generate().expect("a header").write(&mut text);
    let text = String::from_utf8(text).expect("UTF-8");
    let path = root.join("include/qat.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "include/qat.h is out of date: UPDATE_HEADER=1 cargo test --release -p qat-capi header"
    );
}
