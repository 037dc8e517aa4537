//! A prompt that was read, as a file: keys and values with the tokens they are of, so that the next start needn't read it again.
//!
//! Layout: [`MAGIC`], the length of a header (u32, little endian), the header as JSON, and the bytes that the runtime gave. Knows no
//! layout of those; whoever wrote them names it. Invariant: what is loaded was written whole, by the same runtime, over the same model.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::files::{sha256_hex, write_file_atomic};
use crate::{Error, Opened, Result, Sequence};

const MAGIC: &[u8; 16] = b"qat prompt 1\0\0\0\n";
/// Longest header: ids of a million tokens.
const MOST_HEADER: usize = 1 << 24;

/// What the bytes are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// Identity of the model.
    model: String,
    /// How the runtime laid the bytes out.
    layout: String,
    /// The tokens that were read.
    ids: Vec<u32>,
    bytes: usize,
    sha256: String,
}

/// Writes what `sequence`, over the model `model`, remembers of having read `ids`.
///
/// # Errors
/// When it has read something else, the device fails, or the file can't be written; there is then no new file.
pub fn save_past(path: &Path, model: &str, ids: &[u32], sequence: &mut dyn Sequence) -> Result<()> {
    if sequence.position() != ids.len() {
        let read = sequence.position();
        return Err(Error::Invalid(format!("{read} tokens were read, and {} are to be kept", ids.len())));
    }
    let past = sequence.past()?;
    let header = Header {
        model: model.to_owned(),
        layout: sequence.past_layout(),
        ids: ids.to_vec(),
        bytes: past.len(),
        sha256: sha256_hex(&[&past]),
    };
    let header = serde_json::to_vec(&header).map_err(|e| Error::Invalid(format!("a header: {e}")))?;
    let length = u32::try_from(header.len()).ok().filter(|length| *length as usize <= MOST_HEADER);
    let length = length.ok_or_else(|| Error::Invalid("the prompt has too many tokens to be kept".into()))?;
    write_file_atomic(path, &[&MAGIC[..], &length.to_le_bytes(), &header, &past].concat())
}

/// Makes `sequence`, over the model `model`, remember what the file at `path` holds, and gives the tokens that were read; they are the
/// beginning of `prompt`, with at least one after them.
///
/// # Errors
/// When the file is none of these or damaged, or is of another model, runtime or text; then nothing was changed.
pub fn load_past(path: &Path, model: &str, prompt: &[u32], sequence: &mut dyn Sequence) -> Result<Vec<u32>> {
    let (header, past) = read(path)?;
    let refused = |what: &str| {
        let problem = format!("{what}; delete it to have it made anew, or name another file");
        Err(Error::file(path, problem))
    };
    if header.model != model {
        return refused("holds what another model read");
    }
    if header.layout != sequence.past_layout() {
        return refused(&format!(
            "was made by another runtime: {}, and this is {}",
            header.layout,
            sequence.past_layout()
        ));
    }
    let same = header.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    if same < header.ids.len() || same >= prompt.len() {
        return refused(&format!(
            "holds a text of {} tokens, which the prompt of {} doesn't begin with (they part after {same})",
            header.ids.len(),
            prompt.len()
        ));
    }
    sequence.restore(&header.ids, &past).map_err(|e| Error::file(path, e.to_string()))?;
    Ok(header.ids)
}

/// The file, checked as far as it can be without a model.
fn read(path: &Path) -> Result<(Header, Vec<u8>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    let damaged = |what: &str| Error::file(path, format!("{what}; delete it to have it made anew"));
    let rest = bytes.strip_prefix(&MAGIC[..]).ok_or_else(|| damaged("is no prompt cache of this version"))?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(|| damaged("is cut off"))?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MOST_HEADER {
        return Err(damaged("is damaged"));
    }
    let (header, past) = rest.split_at_checked(length).ok_or_else(|| damaged("is cut off"))?;
    let header: Header = serde_json::from_slice(header).map_err(|_| damaged("is damaged"))?;
    if past.len() < header.bytes {
        return Err(damaged("is cut off"));
    }
    if past.len() > header.bytes || sha256_hex(&[past]) != header.sha256 {
        return Err(damaged("is damaged"));
    }
    Ok((header, past.to_vec()))
}

/// What tells the model from every other: that of its manifest, or the SHA-256 of its files.
///
/// # Errors
/// When a file can't be read.
pub fn model_identity<M>(model: &Opened<M>) -> Result<String> {
    if let Some(manifest) = &model.manifest {
        return Ok(manifest.identity());
    }
    let origin = &model.origin;
    let mut files = vec![origin.clone()];
    if origin.is_dir() {
        let listed = std::fs::read_dir(origin).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let listed = listed.map_err(|e| Error::io("cannot list", origin, e))?;
        let is_part = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".gguf")
        };
        files = listed.into_iter().map(|entry| entry.path()).filter(|path| is_part(path)).collect();
        files.sort();
    }
    let digests: Vec<String> = files.iter().map(|path| sha256_of(path)).collect::<Result<_>>()?;
    Ok(sha256_hex(&[digests.concat().as_bytes()]))
}

/// The digest of a file, read in parts.
fn sha256_of(path: &Path) -> Result<String> {
    let failed = |e| Error::io("cannot read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut part) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part).map_err(failed)? {
            0 => return Ok(sha256_hex(&[&hasher.finalize()])),
            read => hasher.update(&part[..read]),
        }
    }
}
