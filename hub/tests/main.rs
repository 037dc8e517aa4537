//! Repositories are brought from a hub on this machine, whatever happens on the way.

mod downloads;
mod refusals;
mod server;

use std::time::Duration;

use qat_hub::{Found, Hub, Part, Result, Settings, Token};
use server::Server;
use tempfile::TempDir;

/// A cache, and the hub that fills it.
struct Bench {
    server: Server,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { server: Server::start(), folder: TempDir::new().expect("a folder") }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: self.server.endpoint.clone(),
            cache: self.folder.path().to_owned(),
            token: None,
            offline: false,
            proxies: false,
            patience: Duration::from_millis(1),
        }
    }

    fn with_token(&self, value: &str) -> Settings {
        let token = Token { value: value.to_owned(), from: "HF_TOKEN".to_owned() };
        Settings { token: Some(token), ..self.settings() }
    }

    fn model(&self, reference: &str) -> Result<Found> {
        model(self.settings(), reference)
    }

    fn data(&self, reference: &str) -> Result<Found> {
        Hub::new(self.settings())?.data(&reference.parse()?, &mut |_| {})
    }

    /// Adds a model with weights of some length.
    fn add_model(&self, place: &str) {
        let files = [
            ("README.md", b"---\nlicense: mit\n---\n".to_vec()),
            ("config.json", b"{}".to_vec()),
            ("model.safetensors", weights(1, 300_000)),
            ("pytorch_model.bin", weights(2, 1000)),
            ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
        ];
        self.server.add(place, files);
    }
}

fn model(settings: Settings, reference: &str) -> Result<Found> {
    Hub::new(settings)?.model(&reference.parse()?, Part::Whole, &mut |_| {})
}

/// Bytes that are no two the same.
fn weights(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| ((i * 2_654_435_761 + seed * 97) >> 7) as u8).collect()
}
