//! A checksum at the end of a JSON object, of everything before it: the file says of itself whether it is what was written.
//!
//! Invariant: what [`sealed`] gives is JSON, and [`opened`] gives back what it was made of. Objects without a seal are as they are.

use sha2::{Digest as _, Sha256};

/// What comes between the object and the digits of its checksum, and behind these.
const BEFORE: &str = ",\n  \"sum\": \"";
const BEHIND: &str = "\"\n}";
/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;

/// `object`, written over several lines, with its seal.
pub fn sealed(object: &str) -> String {
    let inside = object.trim_end().strip_suffix('}').unwrap_or(object).trim_end();
    format!("{inside}{BEFORE}{}{BEHIND}\n", digits(inside))
}

/// The object in `text`, and whether it is the one that was sealed.
pub fn opened(text: &str) -> (String, bool) {
    // The end of the last line is no part of the JSON, but of the file.
    let (lines, is_ended) = text.strip_suffix('\n').map_or((text, false), |lines| (lines, true));
    let seal = lines.strip_suffix(BEHIND).and_then(|text| {
        let (inside, sum) = text.split_at_checked(text.len().checked_sub(DIGITS)?)?;
        Some((inside.strip_suffix(BEFORE)?, sum))
    });
    match seal {
        Some((inside, sum)) => (format!("{inside}\n}}"), is_ended && digits(inside) == sum),
        None => (text.to_owned(), true),
    }
}

fn digits(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_sealed_object_is_json_and_every_changed_bit_is_noticed_or_no_json() {
        let object = serde_json::to_string_pretty(&json!({"step": 12, "seed": [1.5, null]})).expect("JSON");
        let text = sealed(&object);
        assert_eq!(opened(&text), (object.clone(), true));
        let all: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(all.as_object().map(|all| all.len()), Some(3), "the seal is a key like others");
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(damaged) = String::from_utf8(bytes) else { continue };
            let (found, is_whole) = opened(&damaged);
            // A seal that is none any more is a key that nobody knows.
            let has_more = || {
                serde_json::from_str::<Value>(&found).is_ok_and(|all| {
                    all.get("step").is_some() && all.as_object().is_some_and(|all| all.len() == 2)
                })
            };
            assert!(found == object || !is_whole || !has_more(), "bit {bit}: {damaged}");
        }
        assert_eq!(opened(text.trim_end()), (object, false));
    }

    #[test]
    fn an_object_without_a_seal_is_as_it_is() {
        assert_eq!(opened("{}"), ("{}".to_owned(), true));
        assert_eq!(opened(""), (String::new(), true));
        assert_eq!(opened("\"\n}"), ("\"\n}".to_owned(), true));
    }
}
