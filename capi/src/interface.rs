//! What C sees. The only file of this crate that follows pointers.
//!
//! Knows no tokens. Invariant: a pointer is checked for NULL before it is followed; what else can be wrong about one (freed, of another
//! type) is the caller's, and said in the comments that become `qat.h`.
#![expect(unsafe_code, reason = "C gives and takes pointers")]
#![expect(clippy::missing_safety_doc, reason = "the head of qat.h says it for all functions")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

use qat_infer::chat::Message as ChatMessage;
use qat_infer::cpu::KvType;
use qat_infer::generate::{Repetition, Sampling};

pub use crate::conversation::{End, Usage};
use crate::conversation::{Prompt, Wish};
use crate::memory::resident_bytes;
use crate::model::Loaded;
use crate::status::{Failure, Status, caught};
use crate::worker::Worker;

/// Context of a session for which none is given, unless the model's is shorter.
const DEFAULT_CONTEXT: usize = 4096;

/// A model that is open.
pub struct Model(Arc<Loaded>);

/// A text that is read and written.
pub struct Session {
    model: Arc<Loaded>,
    worker: Worker,
}

/// What a model is.
#[repr(C)]
pub struct Info {
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Longest context, in tokens.
    pub context: u64,
    /// Layers of the model.
    pub layers: u64,
    /// Bytes of the files that hold the weights.
    pub file_bytes: u64,
    /// Stored bits of all tensors per weight, with scales, embeddings and norms.
    pub bits_per_weight: f64,
    /// Whether it has a chat template.
    pub has_chat: bool,
}

/// What somebody said.
#[repr(C)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: *const c_char,
    /// What.
    pub content: *const c_char,
}

/// How an answer is written. qat_options_default() gives values to start from.
#[repr(C)]
pub struct Options {
    /// Most tokens to write.
    pub most: u64,
    /// Logits are divided by this; 0 takes the likeliest token always.
    pub temperature: f32,
    /// So many of the likeliest tokens are considered; 0 for all.
    pub top_k: u64,
    /// Of those, the fewest whose probabilities sum to at least this.
    pub top_p: f32,
    /// And of those, the ones at least this times as likely as the likeliest.
    pub min_p: f32,
    /// Logits of the last `repetition_last` tokens are lowered by this factor; 1 does nothing.
    pub repetition_penalty: f32,
    /// Tokens that the penalty looks back.
    pub repetition_last: u64,
    /// Of the random numbers.
    pub seed: u64,
    /// Texts that end the answer, which they don't belong to.
    pub stops: *const *const c_char,
    /// How many `stops` there are.
    pub stop_count: usize,
}

/// What is held in memory; 0 where the system doesn't tell.
#[repr(C)]
pub struct Memory {
    /// Resident bytes of this process now, mapped files included.
    pub resident_bytes: u64,
    /// The most they ever were.
    pub peak_bytes: u64,
}

/// Hears a piece of the answer: `length` bytes of whole UTF-8 characters, and a zero behind them. Called on the thread that waits for the
/// answer. Gives 0 to go on, anything else to end the answer. It may cancel its session, but not close it.
pub type OnText =
    Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char, length: usize) -> c_int>;

/// The version of this library; never freed.
#[unsafe(no_mangle)]
pub extern "C" fn qat_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Frees a text that this library gave; NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: it came from CString::into_raw in `given`, once.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// Opens the model in the directory or file `path` on `device`: "auto" (as NULL), "cpu" or "metal".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_model_open(
    path: *const c_char,
    device: *const c_char,
    model: *mut *mut Model,
    error: *mut *mut c_char,
) -> Status {
    let open = || {
        // SAFETY: pointers of the caller, as qat.h asks for.
        let (path, device) = unsafe { (text("path", path)?, text_or("device", device, "auto")?) };
        let (model, loaded) = (place("model", model)?, Loaded::open(Path::new(path), device)?);
        // SAFETY: as above.
        unsafe { model.write(Box::into_raw(Box::new(Model(loaded)))) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { told(error, open) }
}

/// Closes a model; NULL does nothing. Sessions that are open keep what they need of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_model_close(model: *mut Model) {
    if !model.is_null() {
        // SAFETY: it came from Box::into_raw in qat_model_open, once.
        drop(unsafe { Box::from_raw(model) });
    }
}

/// Says what the model is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_model_info(
    model: *const Model,
    info: *mut Info,
    error: *mut *mut c_char,
) -> Status {
    let tell = || {
        // SAFETY: pointers of the caller, as qat.h asks for.
        let loaded = unsafe { &borrowed("model", model)?.0 };
        let (config, size) = (loaded.weights().config(), loaded.weights().size());
        let told = Info {
            vocab: config.vocab_size as u64,
            context: config.max_position_embeddings as u64,
            layers: config.layers as u64,
            file_bytes: size.file_bytes,
            bits_per_weight: size.bits_per_weight,
            has_chat: loaded.chat.is_some(),
        };
        // SAFETY: as above.
        unsafe { place("info", info)?.write(told) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { told(error, tell) }
}

/// What the model runs on, as "cpu (avx512vnni)" or "metal (Apple M2, Apple 8)", to be freed by qat_string_free; NULL if model is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_model_device(model: *const Model) -> *mut c_char {
    // SAFETY: a pointer of the caller, as qat.h asks for.
    match unsafe { borrowed("model", model) } {
        Ok(model) => given(&model.0.weights().device()),
        Err(_) => null_mut(),
    }
}

/// Begins a text of up to `context` tokens (0: 4096, or the model's longest if that is less), keys and values kept as `kv`: "f16" (as
/// NULL), "int8", "int4" or "f32".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_session_open(
    model: *const Model,
    context: u64,
    kv: *const c_char,
    session: *mut *mut Session,
    error: *mut *mut c_char,
) -> Status {
    let open = || {
        // SAFETY: pointers of the caller, as qat.h asks for.
        let (model, kv) = unsafe { (Arc::clone(&borrowed("model", model)?.0), text_or("kv", kv, "f16")?) };
        let session = place("session", session)?;
        let longest = model.weights().config().max_position_embeddings;
        let context = match count("context", context)? {
            0 => longest.min(DEFAULT_CONTEXT),
            context => context,
        };
        let worker = Worker::start(Arc::clone(&model), context, kv.parse::<KvType>()?)?;
        // SAFETY: as above.
        unsafe { session.write(Box::into_raw(Box::new(Session { model, worker }))) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { told(error, open) }
}

/// Closes a session, after the end of what works on it; NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_session_close(session: *mut Session) {
    if !session.is_null() {
        // SAFETY: it came from Box::into_raw in qat_session_open, once.
        drop(unsafe { Box::from_raw(session) });
    }
}

/// How an answer is written unless something else is wanted: up to 512 tokens, each the likeliest one.
#[unsafe(no_mangle)]
pub extern "C" fn qat_options_default() -> Options {
    let Sampling { temperature, top_p, min_p, seed, .. } = Sampling::greedy();
    Options {
        most: 512,
        temperature,
        top_k: 0,
        top_p,
        min_p,
        repetition_penalty: 1.0,
        repetition_last: 64,
        seed,
        stops: std::ptr::null(),
        stop_count: 0,
    }
}

/// Reads `prompt` after all that the session has read and written, and writes on; on_text hears it (NULL: nobody). `options` and `usage`
/// may be NULL. An answer that is cancelled is QAT_STATUS_OK too; usage->end says so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_session_write(
    session: *mut Session,
    prompt: *const c_char,
    options: *const Options,
    on_text: OnText,
    user: *mut c_void,
    usage: *mut Usage,
    error: *mut *mut c_char,
) -> Status {
    let write = || {
        // SAFETY: pointers of the caller, as qat.h asks for.
        let (session, prompt) = unsafe { (borrowed("session", session)?, text("prompt", prompt)?) };
        // SAFETY: as above.
        unsafe { answer(session, Prompt::More(prompt.to_owned()), options, on_text, user, usage) }
    };
    // SAFETY: as above.
    unsafe { told(error, write) }
}

/// Answers a whole conversation of `count` messages, written as the model's chat template has it. What the session has read of it already
/// is not read again, so that each turn costs its own tokens. Otherwise as qat_session_write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_session_chat(
    session: *mut Session,
    messages: *const Message,
    count: usize,
    options: *const Options,
    on_text: OnText,
    user: *mut c_void,
    usage: *mut Usage,
    error: *mut *mut c_char,
) -> Status {
    let write = || {
        // SAFETY: pointers of the caller, as qat.h asks for.
        let (session, messages) =
            unsafe { (borrowed("session", session)?, list("messages", messages, count)?) };
        let said = |message: &Message| {
            // SAFETY: as above.
            unsafe { Ok(ChatMessage::new(text("role", message.role)?, text("content", message.content)?)) }
        };
        let messages: Vec<ChatMessage> = messages.iter().map(said).collect::<Result<_, Failure>>()?;
        let chat = session.model.chat.as_ref().ok_or_else(|| {
            Failure::invalid("the model has no chat template (chat_template.jinja, or in tokenizer_config.json); use qat_session_write")
        })?;
        let prompt = Prompt::Whole(chat.template.render(&messages, true)?);
        // SAFETY: as above.
        unsafe { answer(session, prompt, options, on_text, user, usage) }
    };
    // SAFETY: as above.
    unsafe { told(error, write) }
}

/// Ends the answer that is being written on another thread, if one is: within a token, or within 256 tokens of a prompt. NULL does
/// nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_session_cancel(session: *const Session) {
    // SAFETY: a pointer of the caller, as qat.h asks for.
    if let Ok(session) = unsafe { borrowed("session", session) } {
        session.worker.cancel();
    }
}

/// Forgets all that the session has read and written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qat_session_reset(session: *mut Session, error: *mut *mut c_char) -> Status {
    // SAFETY: pointers of the caller, as qat.h asks for.
    unsafe { told(error, || borrowed("session", session)?.worker.reset()) }
}

/// What this process holds in memory.
#[unsafe(no_mangle)]
pub extern "C" fn qat_memory_in_use() -> Memory {
    let resident_bytes = resident_bytes().unwrap_or(0);
    // The kernel's peak may lag behind by a few pages.
    let peak_bytes = qat_infer::eval::peak_rss_bytes().unwrap_or(0).max(resident_bytes);
    Memory { resident_bytes, peak_bytes }
}

/// SAFETY: what is not NULL must be what `qat.h` says.
unsafe fn answer(
    session: &Session,
    prompt: Prompt,
    options: *const Options,
    on_text: OnText,
    user: *mut c_void,
    usage: *mut Usage,
) -> Result<(), Failure> {
    let default = qat_options_default();
    // SAFETY: the caller's.
    let options = if options.is_null() { &default } else { unsafe { &*options } };
    // SAFETY: the caller's.
    let stops = unsafe { list("stops", options.stops, options.stop_count)? };
    let wish = Wish {
        prompt,
        most: count("most", options.most)?,
        sampling: Sampling {
            temperature: options.temperature,
            top_k: count("top_k", options.top_k)?,
            top_p: options.top_p,
            min_p: options.min_p,
            seed: options.seed,
        },
        repetition: Repetition {
            penalty: options.repetition_penalty,
            last: count("repetition_last", options.repetition_last)?,
        },
        // SAFETY: the caller's.
        stops: stops
            .iter()
            .map(|stop| Ok(unsafe { text("stops", *stop)? }.to_owned()))
            .collect::<Result<_, Failure>>()?,
    };
    let used = session.worker.answer(wish, &mut |piece| {
        let Some(on_text) = on_text else { return ControlFlow::Continue(()) };
        let with_zero = [piece.as_bytes(), &[0]].concat();
        // SAFETY: the caller's function, with a text that lives as long as the call.
        match unsafe { on_text(user, with_zero.as_ptr().cast(), piece.len()) } {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    })?;
    if !usage.is_null() {
        // SAFETY: the caller's.
        unsafe { usage.write(used) };
    }
    Ok(())
}

/// Does `work`, and tells C how it ended.
///
/// SAFETY: `error` is NULL or may be written to.
unsafe fn told(error: *mut *mut c_char, work: impl FnOnce() -> Result<(), Failure>) -> Status {
    match caught(work) {
        Ok(()) => Status::Ok,
        Err(failure) => {
            if !error.is_null() {
                // SAFETY: the caller's.
                unsafe { error.write(given(&failure.message)) };
            }
            failure.status
        }
    }
}

/// A text for C to free.
fn given(text: &str) -> *mut c_char {
    // A zero in the middle, say in the name of a tensor, would end it early.
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default().into_raw()
}

/// SAFETY: `pointer` is NULL or a text that ends with a zero and outlives the call.
unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Failure> {
    // SAFETY: as said above.
    let bytes = unsafe { CStr::from_ptr(borrowed(name, pointer)?) };
    bytes.to_str().map_err(|e| Failure::invalid(format!("{name} is no UTF-8: {e}")))
}

/// SAFETY: as [`text`].
unsafe fn text_or<'a>(name: &str, pointer: *const c_char, default: &'a str) -> Result<&'a str, Failure> {
    // SAFETY: as said above.
    if pointer.is_null() { Ok(default) } else { unsafe { text(name, pointer) } }
}

/// SAFETY: `pointer` is NULL or points to `count` values that outlive the call.
unsafe fn list<'a, T>(name: &str, pointer: *const T, count: usize) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: as said above.
    Ok(unsafe { std::slice::from_raw_parts(borrowed(name, pointer)?, count) })
}

/// SAFETY: `pointer` is NULL or points to a value that outlives the call.
unsafe fn borrowed<'a, T>(name: &str, pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: as said above.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::invalid(format!("{name} is NULL")))
}

/// Where a result goes; what is there now may be anything.
fn place<T>(name: &str, pointer: *mut T) -> Result<*mut T, Failure> {
    if pointer.is_null() { Err(Failure::invalid(format!("{name} is NULL"))) } else { Ok(pointer) }
}

/// A number of C as one of ours.
fn count(name: &str, value: u64) -> Result<usize, Failure> {
    usize::try_from(value)
        .map_err(|_| Failure::invalid(format!("{name} {value} is more than this machine can count")))
}
