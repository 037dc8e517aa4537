//! A chat template: what it renders has an end, in time and in length. Of what is read a part is rendered: loops take a thousand times as long.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qat_fuzz::is_run;
use qat_infer::chat::{ChatTemplate, Message};
use serde_json::json;

fuzz_target!(|source: &str| {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let Ok(template) = ChatTemplate::new(Path::new("chat_template.jinja"), source.to_owned(), &config) else {
        return;
    };
    if !is_run(source.as_bytes()) {
        return;
    }
    let messages = [Message::new("system", "Be brief."), Message::new("user", "Why {{ 7 * 7 }}?")];
    let _ = template.render(&messages, true);
});
