//! The hub's two interfaces: what a repository holds, and a file of it.
//!
//! Knows no disk. Invariants: redirects are followed here and not by the library, so that the token goes to the hub's own host alone and
//! what the hub says of a file (commit, checksum, size) is read where it says it; what a server says is not printed unless it is harmless.

use std::{io::Read as _, thread::sleep, time::Duration};

use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode, Uri},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

use crate::{Error, Reference, Result, Settings, Token, cache::is_commit, reference::is_safe};

/// Requests that fail before one gives up, unless something arrived in between.
pub(crate) const TRIES: u32 = 5;
/// Redirects followed in a row.
const REDIRECTS: usize = 10;
/// Longest list of files that is read.
const LISTING_BYTES: u64 = 256 << 20;
/// Longest message of a server that is shown.
const MESSAGE: usize = 200;

/// How the hub is asked.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    host: String,
    token: Option<Token>,
    pub(crate) patience: Duration,
}

/// What the hub says of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct About {
    /// Name of its content: the SHA-256 of what is kept outside git, else git's own.
    pub(crate) etag: String,
    /// Bytes.
    pub(crate) size: Option<u64>,
}

/// A request that led to no answer.
pub(crate) enum Failure {
    /// It may be repeated.
    Passing(Error),
    /// It would fail again.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
        let refused = |problem: &str| Error::Reference(format!("HF_ENDPOINT = {endpoint}: {problem}"));
        let uri: Uri = endpoint.parse().map_err(|_| refused("is no address"))?;
        let host = match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(_)) => origin(&uri),
            _ => return Err(refused("want an address such as https://huggingface.co")),
        };
        let tls = match cfg!(target_vendor = "apple") {
            true => {
                TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier)
            }
            false => TlsConfig::builder().provider(TlsProvider::Rustls),
        };
        let mut config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("qat/", env!("CARGO_PKG_VERSION")));
        if !settings.proxies {
            config = config.proxy(None);
        }
        let (token, patience) = (settings.token.clone(), settings.patience);
        Ok(Self { agent: config.build().into(), endpoint, host, token, patience })
    }

    /// The commit of `reference`, and the names of the files at it.
    pub(crate) fn listing(&self, reference: &Reference) -> Result<(String, Vec<String>)> {
        let revision = encoded(&reference.revision.replace('/', "%2F"), "%");
        let url = format!("{}/api/{}/revision/{revision}", self.endpoint, reference.api_place());
        let body = self.patiently(|| {
            let response = self.follow(false, &url, 0)?;
            if !response.status().is_success() {
                return Err(self.refusal(reference, None, &response, &url));
            }
            let mut text = String::new();
            let reader = &mut response.into_body().into_reader().take(LISTING_BYTES);
            reader.read_to_string(&mut text).map_err(|e| passing(&url, e))?;
            Ok(text)
        })?;
        let strange = |problem: String| Error::Answer { url: url.clone(), problem };
        let info: Info = serde_json::from_str(&body)
            .map_err(|e| strange(format!("the answer is no description of a repository: {e}")))?;
        if !is_commit(&info.sha) {
            return Err(strange(format!("{:?} is no commit", shown(&info.sha))));
        }
        let mut files: Vec<String> =
            info.siblings.into_iter().map(|file| file.rfilename).filter(|name| is_safe(name)).collect();
        files.sort();
        Ok((info.sha, files))
    }

    /// The address of the file `name` at `commit`.
    pub(crate) fn url(&self, reference: &Reference, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, reference.place(), encoded(name, "/"))
    }

    /// What the hub says of the file at `url`, without its content.
    pub(crate) fn about(&self, reference: &Reference, name: &str, url: &str) -> Result<About> {
        self.patiently(|| {
            let response = self.follow(true, url, 0)?;
            let is_there = response.status().is_success() || response.status().is_redirection();
            if !is_there {
                return Err(self.refusal(reference, Some(name), &response, url));
            }
            let headers = response.headers();
            let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
            let fits = |etag: &String| {
                (8..=128).contains(&etag.len())
                    && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            };
            let Some(etag) = etag.filter(fits) else {
                let problem = "says no checksum (ETag); is this a hub?".to_owned();
                return Err(Error::Answer { url: url.to_owned(), problem }.into());
            };
            let size = text(headers, "x-linked-size").or_else(|| {
                // Of a redirect it is that of the note that says where to go.
                text(headers, "content-length").filter(|_| response.status().is_success())
            });
            Ok(About { etag, size: size.and_then(|size| size.parse().ok()) })
        })
    }

    /// The content of the file at `url` from byte `from` on; the answer may begin at 0 all the same (200 instead of 206).
    pub(crate) fn content(
        &self,
        reference: &Reference,
        name: &str,
        url: &str,
        from: u64,
    ) -> Result<Response<Body>, Failure> {
        let response = self.follow_everywhere(url, from)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(self.refusal(reference, Some(name), &response, url)),
        }
    }

    /// Repeats what fails in passing, with longer and longer waits.
    fn patiently<T>(&self, mut f: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        for tried in 0.. {
            match f() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) if tried + 1 >= TRIES => return Err(error),
                Err(Failure::Passing(_)) => sleep(self.patience * 2u32.pow(tried)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The answer at `url`, or the redirect that leads away from the hub's host.
    fn follow(&self, head: bool, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.send(head, &at, from)?;
            match next(&at, &response) {
                Some(next) if origin_of(&next) == self.host => at = next,
                _ => return Ok(response),
            }
        }
        Err(circles(url).into())
    }

    fn follow_everywhere(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.send(false, &at, from)?;
            match next(&at, &response) {
                Some(next) if at.starts_with("https:") && !next.starts_with("https:") => {
                    let problem = format!("redirects to {}, which is not encrypted", shown(&next));
                    return Err(Error::Answer { url: at, problem }.into());
                }
                Some(next) => at = next,
                None => return Ok(response),
            }
        }
        Err(circles(url).into())
    }

    /// One request; the token is for the hub's host.
    fn send(&self, head: bool, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = if head { self.agent.head(url) } else { self.agent.get(url) };
        request = request.header("accept-encoding", "identity");
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| origin_of(url) == self.host) {
            request = request.header("authorization", format!("Bearer {}", token.value));
        }
        let response = request.call().map_err(|e| passing(url, e))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let problem = match status {
                StatusCode::TOO_MANY_REQUESTS => {
                    "too many requests; wait a while, or use a token (HF_TOKEN)".to_owned()
                }
                _ => format!("the server is in trouble ({status})"),
            };
            return Err(Failure::Passing(Error::Network { url: url.to_owned(), problem }));
        }
        Ok(response)
    }

    /// What an answer other than the one wanted means for the user.
    fn refusal(
        &self,
        reference: &Reference,
        file: Option<&str>,
        response: &Response<Body>,
        url: &str,
    ) -> Failure {
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let said = text(headers, "x-error-message").map(shown).filter(|said| !said.is_empty());
        let said = said.map_or(String::new(), |said| format!(" (the hub says: {said})"));
        let (place, repo) = (reference.place(), &reference.repo);
        let page = format!("{}/{place}", self.endpoint);
        let token = match &self.token {
            Some(token) => format!("the token from {} is not enough", token.from),
            None => "there is no token: set HF_TOKEN, or log in with hf auth login".to_owned(),
        };
        let status = response.status();
        let problem = match (status.as_u16(), &*code) {
            (401 | 403, "GatedRepo") | (403, "") => {
                format!("{repo} is gated: accept its conditions at {page}; {token}{said}")
            }
            (401, _) if self.token.is_some() && code != "RepoNotFound" => {
                format!("{repo}: the hub doesn't accept the token{said}; {token}")
            }
            (401 | 403, _) => {
                format!(
                    "{repo} is private, or there is no such repository: check the spelling at {page}; {token}{said}"
                )
            }
            (404, "RevisionNotFound") => format!("{repo} has no revision {}{said}", reference.revision),
            (404, "EntryNotFound") => format!(
                "{repo} has no file {} at {}{said}",
                file.unwrap_or("of this name"),
                reference.revision
            ),
            (404, _) => match file {
                Some(file) => format!("{repo}: the file {file} is not there (404){said}"),
                None => format!(
                    "there is no repository {place}, or no revision {} of it: check the spelling at {page}{said}",
                    reference.revision
                ),
            },
            _ => {
                let problem = format!("answers {status}{said}");
                return Error::Answer { url: url.to_owned(), problem }.into();
            }
        };
        let about = format!("{reference}: {problem}");
        Failure::Final(if status.as_u16() == 404 { Error::NotFound(about) } else { Error::Refused(about) })
    }
}

/// A failure of the network.
pub(crate) fn passing(url: &str, problem: impl std::fmt::Display) -> Failure {
    Failure::Passing(Error::Network { url: url.to_owned(), problem: problem.to_string() })
}

fn circles(url: &str) -> Error {
    Error::Answer { url: url.to_owned(), problem: format!("redirects more than {REDIRECTS} times") }
}

/// A header as text.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// Where `response`, the answer at `url`, leads.
fn next(url: &str, response: &Response<Body>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = text(response.headers(), "location")?;
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location);
    }
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?;
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let base = format!("{scheme}://{}", uri.authority()?);
    let folder = uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(if location.starts_with('/') { base + &location } else { format!("{base}{folder}/{location}") })
}

/// Scheme, host and port of an address.
fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{}://{}", uri.scheme_str().unwrap_or(""), authority.to_ascii_lowercase())
}

fn origin_of(url: &str) -> String {
    url.parse().map_or(String::new(), |uri| origin(&uri))
}

/// `text` as a part of an address; `kept` beside what always is.
fn encoded(text: &str, kept: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || kept.as_bytes().contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// What a server says, without what would move the cursor of a terminal.
fn shown(text: impl AsRef<str>) -> String {
    text.as_ref().chars().filter(|c| !c.is_control()).take(MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(url: &str, location: &str) -> Option<String> {
        let response =
            Response::builder().status(302).header("location", location).body(Body::builder().data(""));
        next(url, &response.expect("a response"))
    }

    #[test]
    fn a_redirect_is_read_as_it_is_meant() {
        let url = "http://hub:80/a/b/resolve/main/x?y=z";
        for (location, want) in [
            ("https://cdn/x", "https://cdn/x"),
            ("//cdn/x", "http://cdn/x"),
            ("/c/b/resolve/main/x", "http://hub:80/c/b/resolve/main/x"),
            ("y", "http://hub:80/a/b/resolve/main/y"),
        ] {
            assert_eq!(leads(url, location).as_deref(), Some(want));
        }
    }

    #[test]
    fn names_are_encoded_and_messages_are_harmless() {
        assert_eq!(encoded("a b/c#d?.json", "/"), "a%20b/c%23d%3F.json");
        assert_eq!(shown("no\x1b[2J\n".repeat(100)).len(), MESSAGE);
        assert!(!shown("\x1b[2Jx").contains('\x1b'));
        assert_eq!(origin_of("https://Hub.co/x"), "https://hub.co");
        assert_ne!(origin_of("https://hub.co.evil.org/x"), origin_of("https://hub.co/x"));
    }
}
