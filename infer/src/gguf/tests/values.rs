//! What the metadata says of a value that is missing or of another type.

use std::path::Path;

use crate::gguf::{Metadata, Value};

#[test]
fn a_value_of_another_type_is_refused_with_its_name() {
    let mut metadata = Metadata::new(Path::new("model.gguf"));
    metadata.set("text", Value::from("x"));
    metadata.set("negative", Value::I32(-1));
    metadata.set("size", Value::U16(7));
    metadata.set("eps", Value::F32(1e-5));
    assert_eq!(metadata.size("size").unwrap(), Some(7));
    assert_eq!(metadata.size("absent").unwrap(), None);
    assert_eq!(metadata.number("eps").unwrap(), Some(1e-5));
    let messages = [
        metadata.size("text").unwrap_err(),
        metadata.size("negative").unwrap_err(),
        metadata.text("size").unwrap_err(),
        metadata.flag("size").unwrap_err(),
        metadata.texts("text").unwrap_err(),
        metadata.number("size").unwrap_err(),
    ]
    .map(|error| error.to_string());
    assert_eq!(messages[0], "model.gguf: text: found String(\"x\"); want a whole number");
    assert_eq!(messages[1], "model.gguf: negative: found I32(-1); want a whole number");
    assert_eq!(messages[2], "model.gguf: size: found U16(7); want a string");
    assert_eq!(messages[3], "model.gguf: size: found U16(7); want a boolean");
    assert_eq!(messages[4], "model.gguf: text: found String(\"x\"); want an array of strings");
    assert_eq!(messages[5], "model.gguf: size: found U16(7); want a number");
}
