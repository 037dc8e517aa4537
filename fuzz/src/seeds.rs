//! The model that a part of an input replaces: the seed of the target `packed`.
//!
//! Invariant: it opens and runs as it is.

/// The files of a packed model, by name.
pub fn packed() -> [(&'static str, &'static [u8]); 3] {
    [
        ("config.json", include_bytes!("../seeds/model/config.json")),
        ("manifest.json", include_bytes!("../seeds/model/manifest.json")),
        ("model.safetensors", include_bytes!("../seeds/model/model.safetensors")),
    ]
}
