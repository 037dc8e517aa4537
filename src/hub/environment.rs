//! What the environment says about the hub, by the variables that Python's `huggingface_hub` reads.
//!
//! Fetches nothing.

use std::{env, ffi::OsString, fs, path::PathBuf, time::Duration};

use qat_hub::{DEFAULT_ENDPOINT, Settings, Token};

/// The wait before the first repetition of a request.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the hub is, where its cache is, and who asks.
pub fn settings() -> Settings {
    let home = home();
    Settings {
        endpoint: text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
        cache: folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub")),
        token: token(&home),
        offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        proxies: true,
        patience: PATIENCE,
    }
}

/// `HF_HOME`, or where it is by default: on every system below `.cache` of the user.
fn home() -> PathBuf {
    let of_user = || folder("HOME").or_else(|| folder("USERPROFILE")).map(|home| home.join(".cache"));
    folder("HF_HOME").unwrap_or_else(|| {
        let caches = folder("XDG_CACHE_HOME").or_else(of_user).unwrap_or_else(env::temp_dir);
        caches.join("huggingface")
    })
}

/// The token of the environment, or the one that a login has left.
fn token(home: &std::path::Path) -> Option<Token> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(value) = text(name) {
            return Some(Token { value, from: name.to_owned() });
        }
    }
    let path = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    let value = fs::read_to_string(&path).ok()?.trim().to_owned();
    (!value.is_empty()).then(|| Token { value, from: path.display().to_string() })
}

fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn folder(name: &str) -> Option<PathBuf> {
    set(name).map(PathBuf::from)
}

fn text(name: &str) -> Option<String> {
    set(name)?.into_string().ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn is_on(name: &str) -> bool {
    text(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&&*value.to_ascii_lowercase()))
}
