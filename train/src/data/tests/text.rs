//! Text files: pieces, separators and bad bytes.

use proptest::prelude::*;

use super::super::text::{LONGEST, SHORTEST};
use super::{Folder, failure, joined, texts};

#[test]
fn without_a_separator_the_pieces_are_the_file_to_the_byte() {
    // Characters of 1, 2, 3 and 4 bytes, so that reads end inside characters.
    let paragraph = "Où est le café ? 雪が降る。 🦀 and so on, line after line,\nuntil it ends.\n\n";
    let text = paragraph.repeat(3 * LONGEST / paragraph.len());
    let folder = Folder::new();
    folder.file("a.txt", &text);
    let pieces: Vec<_> = folder.corpus(&["a.txt"], None).documents().map(Result::unwrap).collect();
    assert!(pieces.len() > 30, "{} pieces feed many cores", pieces.len());
    for piece in &pieces[..pieces.len() - 1] {
        assert!((SHORTEST..SHORTEST + paragraph.len()).contains(&piece.text.len()), "{}", piece.text.len());
        assert!(piece.text.ends_with("\n\n"));
    }
    assert_eq!(joined(pieces), [text]);
}

#[test]
fn text_without_blank_lines_is_cut_at_lines_then_spaces_then_characters() {
    let folder = Folder::new();
    let end_of_first = |text: &str| {
        folder.file("a.txt", text);
        let pieces: Vec<_> = folder.corpus(&["a.txt"], None).documents().map(Result::unwrap).collect();
        let end: String =
            pieces[0].text.chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
        assert!((LONGEST - 20..=LONGEST).contains(&pieces[0].text.len()));
        assert_eq!(joined(pieces), [text]);
        end
    };
    assert_eq!(end_of_first(&"some words\n".repeat(200_000)), "ds\n");
    assert_eq!(end_of_first(&"some words ".repeat(200_000)), "ds ");
    assert_eq!(end_of_first(&"雪".repeat(700_000)), "雪雪雪");
}

#[test]
fn a_separator_and_the_line_ends_around_it_belong_to_no_document() {
    let folder = Folder::new();
    folder.file("a.txt", "One.\n\nStill one.\n<|endoftext|>\n\n Two.\r\n<|endoftext|>\n<|endoftext|>\n  \n<|endoftext|>Three\n");
    let corpus = folder.corpus(&["a.txt"], Some("<|endoftext|>"));
    assert_eq!(texts(&corpus), ["One.\n\nStill one.", " Two.", "Three"]);
    assert_eq!(corpus.read_text().unwrap().text, "One.\n\nStill one.\n\n Two.\n\nThree");
}

#[test]
fn bytes_that_are_not_utf8_are_named_by_their_offset() {
    let folder = Folder::new();
    let mut bytes = "é".repeat(LONGEST).into_bytes();
    bytes[1_500_001] = b'x';
    folder.file("a.txt", &bytes);
    let message = failure(&folder.corpus(&["a.txt"], None));
    assert!(message.ends_with("a.txt: not UTF-8 at byte 1500000; convert it to UTF-8"), "{message}");

    folder.file("b.txt", b"caf\xc3");
    let message = failure(&folder.corpus(&["b.txt"], None));
    assert!(message.contains("not UTF-8 at byte 3;"), "the file ends within a character: {message}");
}

#[test]
fn a_file_that_ends_with_a_longest_piece_ends_its_document() {
    let folder = Folder::new();
    for len in [LONGEST, 2 * LONGEST, 2 * LONGEST + 1, 4 * LONGEST] {
        folder.file("a.txt", "a".repeat(len));
        let pieces: Vec<_> = folder.corpus(&["a.txt"], None).documents().map(Result::unwrap).collect();
        assert!(pieces.last().is_some_and(|piece| piece.ends), "{len} bytes");
        assert_eq!(pieces.iter().filter(|piece| piece.ends).count(), 1, "{len} bytes");
    }
}

#[test]
fn nothing_follows_an_error() {
    let folder = Folder::new();
    folder.file("a.txt", b"\xff");
    folder.file("b.txt", "good");
    let corpus = folder.corpus(&["a.txt", "b.txt"], None);
    assert_eq!(corpus.documents().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Documents of every length around the sizes at which the reader cuts and refills, in the reader's pieces and
    /// by the standard library.
    #[test]
    fn separators_are_found_wherever_reads_end(
        lengths in prop::collection::vec(
            prop_oneof![0..40_usize, SHORTEST - 9..SHORTEST + 9, LONGEST - 9..LONGEST + 9],
            1..8,
        ),
        blank_lines in any::<bool>(),
    ) {
        let separator = "\n==\n";
        let line = if blank_lines { "= é word\n\n" } else { "= é word " };
        let text = lengths
            .iter()
            .map(|&length| line.repeat(length / line.len() + 1)[..].chars().take(length).collect::<String>())
            .collect::<Vec<_>>()
            .join(separator);
        let expected: Vec<_> = text
            .split(separator)
            .map(|document| document.trim_matches(['\n', '\r']))
            .filter(|document| !document.trim().is_empty())
            .collect();
        let folder = Folder::new();
        folder.file("a.txt", &text);
        prop_assert_eq!(texts(&folder.corpus(&["a.txt"], Some(separator))), expected);
    }
}
