//! Writes `swizzles.h`: `.xy`, `.wzyx` and all others, as properties of the vector classes of `shim/vector.h`.

use std::fmt::Write;

/// The header's text: one macro for each length of vector.
pub fn header() -> String {
    let mut text = String::from("#pragma once\n");
    for length in 2..=4 {
        let _ = write!(text, "#define METAL_HOST_SWIZZLES_{length}");
        for picked in 2..=4u32 {
            for index in 0..length_power(length, picked) {
                property(&mut text, &letters(length, picked, index));
            }
        }
        text.push('\n');
    }
    text
}

fn length_power(length: usize, picked: u32) -> usize {
    length.pow(picked)
}

/// The `index`-th word of `picked` letters out of the first `length` of xyzw.
fn letters(length: usize, picked: u32, mut index: usize) -> Vec<char> {
    let mut word = Vec::new();
    for _ in 0..picked {
        word.push(['x', 'y', 'z', 'w'][index % length]);
        index /= length;
    }
    word
}

/// A property that can be read, and written if no letter comes twice.
fn property(text: &mut String, letters: &[char]) {
    let (word, count): (String, _) = (letters.iter().collect(), letters.len());
    let list: Vec<String> = letters.iter().map(char::to_string).collect();
    let _ = write!(
        text,
        " \\\n  vec<T, {count}> get_{word}() const {{ return vec<T, {count}>({}); }}",
        list.join(", ")
    );
    let distinct = (1..count).all(|i| !letters[..i].contains(&letters[i]));
    if distinct {
        let stores: Vec<String> =
            letters.iter().zip(['x', 'y', 'z', 'w']).map(|(to, from)| format!("{to} = o.{from};")).collect();
        let _ = write!(text, " void put_{word}(vec<T, {count}> o) {{ {} }}", stores.join(" "));
        let _ =
            write!(text, " __declspec(property(get = get_{word}, put = put_{word})) vec<T, {count}> {word};");
    } else {
        let _ = write!(text, " __declspec(property(get = get_{word})) vec<T, {count}> {word};");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_word_of_two_to_four_letters_is_there_once() {
        let header = super::header();
        for (length, words) in [(2, 4 + 8 + 16), (3, 9 + 27 + 81), (4, 16 + 64 + 256)] {
            let start = header.find(&format!("SWIZZLES_{length}")).expect("there");
            let macro_text = header[start..].split("#define").next().expect("there");
            assert_eq!(macro_text.matches("__declspec").count(), words);
        }
        assert!(
            header.contains("void put_wx(vec<T, 2> o) { w = o.x; x = o.y; }") && !header.contains("put_xx(")
        );
    }
}
