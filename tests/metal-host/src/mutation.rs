//! A bug planted on purpose: a piece of source replaced before it is compiled, to see whether the tests notice.
//!
//! `QAT_METAL_MUTATION_FIND` and `QAT_METAL_MUTATION_REPLACE` say what; every library that has the text exactly once gets the bug,
//! and says so in the file that `QAT_METAL_MUTATION_LOG` names.

use std::{borrow::Cow, env, fs::OpenOptions, io::Write};

use crate::Error;

/// `source` with the bug that is asked for, if there is one and it is this library's.
pub fn planted<'a>(library: &str, source: &'a str) -> Result<Cow<'a, str>, Error> {
    let (Ok(find), Ok(replace)) =
        (env::var("QAT_METAL_MUTATION_FIND"), env::var("QAT_METAL_MUTATION_REPLACE"))
    else {
        return Ok(Cow::Borrowed(source));
    };
    let refused = |message: String| Error::Mutation { library: library.to_owned(), message };
    match source.matches(&find).count() {
        0 => Ok(Cow::Borrowed(source)),
        1 => {
            if let Ok(log) = env::var("QAT_METAL_MUTATION_LOG") {
                let file = OpenOptions::new().create(true).append(true).open(&log);
                let said = file.and_then(|mut file| writeln!(file, "{library}"));
                said.map_err(|e| refused(format!("{log}: {e}")))?;
            }
            Ok(Cow::Owned(source.replace(&find, &replace)))
        }
        times => Err(refused(format!("{find:?} is there {times} times, want it once"))),
    }
}
