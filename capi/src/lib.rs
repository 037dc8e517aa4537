//! The packed runtime for programs in C, Swift and whatever else calls C: models are opened, texts written token by token.
//!
//! `interface.rs` is all that C sees, and the only file with `unsafe`: it checks what comes in and turns it into the safe types of the
//! others. `include/qat.h` is made of it. A session works on a thread of its own (`worker.rs`), which borrows the model for as long as
//! it runs; `conversation.rs` is the text on it. Knows no format and no device: that is `qat-infer`'s.
//!
//! Invariants: nothing unwinds into C; a model lives until its last session is closed; an answer that is stopped leaves a session that
//! goes on.

mod conversation;
mod interface;
mod memory;
mod model;
mod status;
mod worker;

pub use interface::*;
pub use status::Status;
