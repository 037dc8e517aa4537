//! A hub on this machine: the paths, headers and redirects of huggingface.co, and the accidents that can happen on the way.
//!
//! Knows no client. Two listeners: the hub, and the host of large files that it redirects to.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sha2::{Digest as _, Sha256};

/// What is wrong on purpose.
#[derive(Debug, Clone, Default)]
pub struct Accidents {
    /// Every answer with more bytes than this breaks off after them.
    pub cut: Option<usize>,
    /// Ranges are not understood: all of the file comes.
    pub no_ranges: bool,
    /// So many requests are answered 503 first.
    pub busy: usize,
    /// The large files arrive with a byte changed.
    pub damaged: bool,
}

/// A repository.
#[derive(Debug, Clone, Default)]
pub struct Repo {
    /// Commit by revision.
    pub revisions: BTreeMap<String, String>,
    /// Content by name, the same at all revisions.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Which token opens it, if one has to.
    pub token: Option<String>,
    /// Whether its conditions have to be accepted.
    pub gated: bool,
}

/// A request that was received.
#[derive(Debug, Clone)]
pub struct Request {
    /// `hub`, or `store` where large files are.
    pub host: &'static str,
    /// Its first line.
    pub line: String,
    /// The header of this name.
    pub authorization: Option<String>,
    /// The first byte that was asked for.
    pub range: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    renamed: BTreeMap<String, String>,
    accidents: Accidents,
    seen: Vec<Request>,
    store: String,
}

/// The hub.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its address.
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

/// A commit made of one hexadecimal digit.
pub fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    /// A hub without repositories.
    pub fn start() -> Self {
        let [hub, store] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let address =
            |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let endpoint = address(&hub);
        let state = Arc::new(Mutex::new(State { store: address(&store), ..State::default() }));
        for (listener, host) in [(hub, "hub"), (store, "store")] {
            let state = state.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    thread::spawn(move || answer(stream, host, &state));
                }
            });
        }
        Self { endpoint, state }
    }

    /// Adds `place` (`owner/name` or `datasets/owner/name`) at `main` with these files.
    pub fn add<'a>(&self, place: &str, files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) {
        let files = files.into_iter().map(|(name, content)| (name.to_owned(), content)).collect();
        let revisions = BTreeMap::from([("main".to_owned(), commit('a')), ("v1".to_owned(), commit('b'))]);
        let repo = Repo { revisions, files, ..Repo::default() };
        self.state.lock().expect("a lock").repos.insert(place.to_owned(), repo);
    }

    /// Changes a repository.
    pub fn change(&self, place: &str, f: impl FnOnce(&mut Repo)) {
        f(self.state.lock().expect("a lock").repos.get_mut(place).expect("a repository"));
    }

    /// Makes the old name of a repository redirect to its new one.
    pub fn rename(&self, old: &str, new: &str) {
        self.state.lock().expect("a lock").renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Sets what goes wrong from now on.
    pub fn accidents(&self, accidents: Accidents) {
        self.state.lock().expect("a lock").accidents = accidents;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().expect("a lock").seen)
    }
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn of(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

fn answer(stream: TcpStream, host: &'static str, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    while let Some((request, is_head, path)) = read(&mut reader, host) {
        let mut state = state.lock().expect("a lock");
        state.seen.push(request.clone());
        let busy = state.accidents.busy > 0;
        if busy {
            state.accidents.busy -= 1;
        }
        let found = match (busy, host) {
            (true, _) => Answer::of("503 Service Unavailable"),
            (_, "store") => of_store(&state, &path, request.range),
            _ => of_hub(&state, &path, &request),
        };
        let cut = state.accidents.cut.filter(|cut| found.body.len() > *cut && !is_head);
        drop(state);
        if write(&stream, &found, is_head, cut).is_err() || cut.is_some() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>, host: &'static str) -> Option<(Request, bool, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request { host, line: line.trim().to_owned(), authorization: None, range: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => {
                request.range =
                    value.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse().ok());
            }
            "content-length" => {
                let mut body = vec![0; value.parse().ok()?];
                reader.read_exact(&mut body).ok()?;
            }
            _ => {}
        }
    }
    Some((request, method == "HEAD", path))
}

fn write(mut stream: &TcpStream, answer: &Answer, is_head: bool, cut: Option<usize>) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {}\r\n", answer.status);
    for (name, value) in &answer.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !answer.headers.iter().any(|(name, _)| *name == "Content-Length") {
        text += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    text += "\r\n";
    stream.write_all(text.as_bytes())?;
    if !is_head {
        stream.write_all(&answer.body[..cut.unwrap_or(answer.body.len())])?;
    }
    stream.flush()
}

fn of_hub(state: &State, path: &str, request: &Request) -> Answer {
    let path = path.trim_start_matches('/');
    let api = path.strip_prefix("api/").map(|rest| rest.strip_prefix("models/").unwrap_or(rest));
    let middle = if api.is_some() { "/revision/" } else { "/resolve/" };
    let Some((place, rest)) = api.unwrap_or(path).split_once(middle) else {
        return Answer::of("404 Not Found");
    };
    if let Some(new) = state.renamed.get(place) {
        return Answer::of("307 Temporary Redirect")
            .with("Location", format!("/{}", path.replacen(place, new, 1)));
    }
    let Some(repo) = state.repos.get(place) else {
        return Answer::of("401 Unauthorized").with("X-Error-Code", "RepoNotFound");
    };
    let shown = request.authorization.as_ref().and_then(|value| value.strip_prefix("Bearer "));
    if repo.token.as_deref().is_some_and(|token| shown != Some(token)) {
        return match shown {
            Some(_) => Answer::of("401 Unauthorized")
                .with("X-Error-Message", "Invalid credentials in Authorization header"),
            None => Answer::of("401 Unauthorized").with("X-Error-Code", "RepoNotFound"),
        };
    }
    let (revision, file) = match api {
        Some(_) => (rest, None),
        None => rest.split_once('/').map_or((rest, None), |(revision, file)| (revision, Some(file))),
    };
    let revision = revision.replace("%2F", "/");
    let known = repo.revisions.values().find(|commit| **commit == revision);
    let Some(commit) = repo.revisions.get(&revision).or(known) else {
        return Answer::of("404 Not Found").with("X-Error-Code", "RevisionNotFound");
    };
    match file {
        None => listing(repo, commit),
        Some(_) if repo.gated => Answer::of("403 Forbidden")
            .with("X-Error-Code", "GatedRepo")
            .with("X-Error-Message", "Access to this model is restricted"),
        Some(file) => of_file(state, repo, commit, &file.replace("%20", " "), request.range),
    }
}

fn listing(repo: &Repo, commit: &str) -> Answer {
    let names: Vec<String> = repo.files.keys().map(|name| format!("{{\"rfilename\": {name:?}}}")).collect();
    let body = format!("{{\"id\": \"x\", \"sha\": \"{commit}\", \"siblings\": [{}]}}", names.join(", "));
    Answer { body: body.into_bytes(), ..Answer::of("200 OK") }
}

/// Weights and Parquet live elsewhere, under their SHA-256; what is small comes from here.
fn of_file(state: &State, repo: &Repo, commit: &str, name: &str, range: Option<u64>) -> Answer {
    let Some(content) = repo.files.get(name) else {
        return Answer::of("404 Not Found").with("X-Error-Code", "EntryNotFound");
    };
    let sha256 = hex(&Sha256::digest(content));
    if name.ends_with(".safetensors") || name.ends_with(".parquet") {
        return Answer::of("302 Found")
            .with("X-Repo-Commit", commit)
            .with("X-Linked-Etag", format!("\"{sha256}\""))
            .with("X-Linked-Size", content.len().to_string())
            .with("ETag", "\"the-redirect-itself\"")
            .with("Location", format!("{}/{sha256}", state.store));
    }
    part(content, range, &state.accidents)
        .with("X-Repo-Commit", commit)
        .with("ETag", format!("\"{}\"", &sha256[..40]))
}

fn of_store(state: &State, path: &str, range: Option<u64>) -> Answer {
    let wanted = path.trim_start_matches('/');
    let mut contents = state.repos.values().flat_map(|repo| repo.files.values());
    let Some(content) = contents.find(|content| hex(&Sha256::digest(content)) == wanted) else {
        return Answer::of("404 Not Found");
    };
    let mut content = content.clone();
    if let (true, Some(last)) = (state.accidents.damaged, content.last_mut()) {
        *last ^= 1;
    }
    part(&content, range, &state.accidents)
}

fn part(content: &[u8], range: Option<u64>, accidents: &Accidents) -> Answer {
    let len = content.len();
    match range.map(|from| from as usize).filter(|_| !accidents.no_ranges) {
        Some(from) if from >= len => {
            Answer::of("416 Range Not Satisfiable").with("Content-Range", format!("bytes */{len}"))
        }
        Some(from) => Answer { body: content[from..].to_vec(), ..Answer::of("206 Partial Content") }
            .with("Content-Range", format!("bytes {from}-{}/{len}", len - 1)),
        None => Answer { body: content.to_vec(), ..Answer::of("200 OK") },
    }
}
