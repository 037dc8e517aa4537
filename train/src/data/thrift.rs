//! Lengths in Thrift's compact protocol, which Parquet's headers are written in, before a library believes them.
//!
//! Knows no field but by number and kind. Invariant: what it passes costs a reader at most a step a byte, because every element of
//! every list takes a byte at least. (A reader that passes over a list of booleans takes none: such lists are refused.)

use std::{collections::BTreeMap, result::Result};

/// How deep structs and lists may lie in each other: what the library follows.
const DEEPEST: usize = 64;

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It goes on behind the bytes that are there.
    CutShort,
    /// No writer makes it.
    Malformed,
}

/// What a field holds. A reader takes a known field for what it should be, whatever it says that it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Byte,
    Integer,
    /// A number of things that a header describes, and so of no more than it has bytes.
    Count,
    Double,
    Bytes,
    Struct(&'static [Kind]),
    List(&'static Kind),
}

impl Kind {
    fn is(self, code: u8) -> bool {
        match self {
            Self::Bool => matches!(code, 1 | 2),
            Self::Byte => code == 3,
            Self::Integer | Self::Count => matches!(code, 4..=6),
            Self::Double => code == 7,
            Self::Bytes => code == 8,
            Self::Struct(_) => code == 12,
            Self::List(_) => matches!(code, 9 | 10),
        }
    }
}

/// A struct of the compact protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Its length in bytes.
    pub len: usize,
    /// Its integers, by number of the field.
    pub integers: BTreeMap<i16, i64>,
}

/// The struct at the beginning of `bytes`, whose first fields are known to hold `fields`.
pub(super) fn header(bytes: &[u8], fields: &'static [Kind]) -> Result<Header, Flaw> {
    let mut walk = Walk { rest: bytes, len: bytes.len() as i64 };
    let integers = walk.fields(DEEPEST, fields)?;
    Ok(Header { len: bytes.len() - walk.rest.len(), integers })
}

struct Walk<'a> {
    rest: &'a [u8],
    /// Of all bytes.
    len: i64,
}

impl Walk<'_> {
    fn byte(&mut self) -> Result<u8, Flaw> {
        let (&byte, rest) = self.rest.split_first().ok_or(Flaw::CutShort)?;
        self.rest = rest;
        Ok(byte)
    }

    fn pass(&mut self, n: u64) -> Result<(), Flaw> {
        let n = usize::try_from(n).map_err(|_| Flaw::Malformed)?;
        self.rest = self.rest.get(n..).ok_or(Flaw::CutShort)?;
        Ok(())
    }

    /// An unsigned number in groups of seven bits, low ones first.
    fn number(&mut self) -> Result<u64, Flaw> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Flaw::Malformed)
    }

    /// The fields of a struct up to its end; its integers.
    fn fields(&mut self, depth: usize, known: &'static [Kind]) -> Result<BTreeMap<i16, i64>, Flaw> {
        let (mut id, mut integers) = (0i16, BTreeMap::new());
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(integers);
            }
            let next = match head >> 4 {
                0 => zigzag(self.number()?),
                step => i64::from(id) + i64::from(step),
            };
            id = i16::try_from(next).map_err(|_| Flaw::Malformed)?;
            let code = head & 0x0f;
            let kind = usize::try_from(id).ok().and_then(|id| known.get(id.checked_sub(1)?));
            if kind.is_some_and(|kind| !kind.is(code)) {
                return Err(Flaw::Malformed);
            }
            match code {
                // Truth is in the head.
                1 | 2 => {}
                4..=6 => {
                    let integer = zigzag(self.number()?);
                    if matches!(kind, Some(Kind::Count)) && !(0..=self.len).contains(&integer) {
                        return Err(Flaw::Malformed);
                    }
                    integers.insert(id, integer);
                }
                _ => self.value(code, kind, depth)?,
            }
        }
    }

    fn value(&mut self, code: u8, kind: Option<&'static Kind>, depth: usize) -> Result<(), Flaw> {
        let deeper = depth.checked_sub(1).ok_or(Flaw::Malformed)?;
        match code {
            3 => self.byte().map(|_| ()),
            4..=6 => self.number().map(|_| ()),
            7 => self.pass(8),
            8 => {
                let len = self.number()?;
                self.pass(len)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                let of = if let Some(Kind::List(of)) = kind { Some(*of) } else { None };
                let other = of.is_some_and(|of| !of.is(head & 0x0f));
                if count > 0 && (other || matches!(head & 0x0f, 1 | 2)) {
                    return Err(Flaw::Malformed);
                }
                (0..count).try_for_each(|_| self.value(head & 0x0f, of, deeper))
            }
            12 => {
                let known = if let Some(Kind::Struct(known)) = kind { known } else { &[][..] };
                self.fields(deeper, known).map(|_| ())
            }
            _ => Err(Flaw::Malformed),
        }
    }
}

/// Signed numbers lie as 0, −1, 1, −2, …
fn zigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Kind; 5] = [
        Kind::Integer,
        Kind::Integer,
        Kind::Integer,
        Kind::Integer,
        Kind::Struct(&[Kind::Bytes, Kind::Bool]),
    ];

    /// Field 1: 0; field 2: 100; field 3: −3; field 5, a struct: field 1, the bytes "ab".
    const PAGE: [u8; 12] = [0x15, 0x00, 0x15, 0xc8, 0x01, 0x15, 0x05, 0x2c, 0x18, 0x02, b'a', b'b'];

    /// That, and how it goes on within the struct.
    fn page(rest: &[u8]) -> Vec<u8> {
        [&PAGE, rest].concat()
    }

    #[test]
    fn a_header_has_a_length_and_its_integers_and_what_follows_is_not_read() {
        let found = header(&page(&[0x00, 0x00, 0xff, 0xff]), &KNOWN).unwrap();
        assert_eq!(found, Header { len: 14, integers: BTreeMap::from([(1, 0), (2, 100), (3, -3)]) });
    }

    #[test]
    fn every_cut_is_noticed() {
        // After the struct a field 6, a list of the integers 1 and 2.
        let bytes = page(&[0x00, 0x19, 0x25, 0x02, 0x04, 0x00]);
        assert_eq!(header(&bytes, &KNOWN).map(|h| h.len), Ok(bytes.len()));
        for cut in 0..bytes.len() {
            assert_eq!(header(&bytes[..cut], &KNOWN), Err(Flaw::CutShort), "{cut}");
        }
    }

    #[test]
    fn a_list_of_more_elements_than_bytes_and_lists_that_take_no_bytes_are_refused() {
        // Field 6, a list of 2³¹ − 1 integers, of structs, and of booleans.
        for (code, flaw) in
            [(5, Flaw::CutShort), (12, Flaw::CutShort), (1, Flaw::Malformed), (2, Flaw::Malformed)]
        {
            let bytes = page(&[0x00, 0x19, 0xf0 | code, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00, 0x00]);
            assert_eq!(header(&bytes, &KNOWN), Err(flaw), "{code}");
        }
        // Maps, which no header of Parquet has, and codes that there are not.
        for code in [11, 13, 14, 15] {
            assert_eq!(
                header(&page(&[0x00, 0x10 | code, 0x00, 0x00]), &KNOWN),
                Err(Flaw::Malformed),
                "{code}"
            );
        }
    }

    #[test]
    fn a_known_field_of_another_kind_is_refused() {
        // Bytes instead of field 4; a struct instead of the boolean in field 5; a field beyond all numbers.
        for bytes in
            [&[0x48, 0x00, 0x00][..], &[0x5c, 0x2c, 0x00, 0x00, 0x00], &[0x05, 0x80, 0x80, 0x08, 0x00]]
        {
            assert_eq!(header(bytes, &KNOWN), Err(Flaw::Malformed), "{bytes:x?}");
        }
        assert_eq!(header(&[0x48, 0x00, 0x00], &[]).map(|h| h.len), Ok(3));
        // A count of 100, in so many bytes and in fewer.
        let count = |len: usize| [&[0x15, 0xc8, 0x01, 0x00][..], &vec![0; len - 4]].concat();
        assert_eq!(header(&count(100), &[Kind::Count]).map(|h| h.len), Ok(4));
        assert_eq!(header(&count(99), &[Kind::Count]), Err(Flaw::Malformed));
        // A list of two integers, where integers and where structs are known to be.
        let list = [0x19, 0x25, 0x02, 0x04, 0x00];
        assert_eq!(header(&list, &[Kind::List(&Kind::Integer)]).map(|h| h.len), Ok(5));
        assert_eq!(header(&list, &[Kind::List(&Kind::Struct(&[]))]), Err(Flaw::Malformed));
    }

    #[test]
    fn what_lies_deeper_than_the_library_follows_is_refused() {
        let nested = |depth: usize| [vec![0x1c; depth], vec![0x00; depth + 1]].concat();
        assert_eq!(header(&nested(DEEPEST), &[]).map(|h| h.len), Ok(2 * DEEPEST + 1));
        assert_eq!(header(&nested(DEEPEST + 1), &[]), Err(Flaw::Malformed));
        assert_eq!(header(&[[0x15].as_slice(), &[0x80; 40]].concat(), &[]), Err(Flaw::Malformed));
    }
}
