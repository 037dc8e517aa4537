//! The runtime for Apple's GPUs: a model written down once as lists of dispatches, and sessions that have a device carry
//! them out.
//!
//! A directory becomes matrices that stay the blocks of their file (`matrix.rs`). The model's plan (`../plan/`) is lowered
//! (`record.rs`, `lower/`) to calls of kernels over buffers (`list.rs`, `buffers.rs`): plain data, made and checked on every
//! machine. A [`Device`] runs them: a Mac's GPU, or in tests an emulator. `session.rs` is what callers hold. The kernels of
//! products are `qat_quant::kernels::metal`, the others `kernels/`.

mod buffers;
#[cfg(any(target_os = "macos", target_os = "ios"))]
mod chip;
mod device;
pub mod kernels;
mod list;
mod lower;
mod matrix;
mod memory;
mod options;
mod record;
mod runtime;
mod session;
#[cfg(test)]
mod tests;

use qat_quant::kernels::metal::Library;
pub use qat_quant::kernels::metal::{Constant, Launch};

pub use buffers::{Buffer, Content};
#[cfg(any(target_os = "macos", target_os = "ios"))]
pub use chip::{Chip, Description};
pub use device::Device;
pub use list::{Access, Argument, Binding, BufferId, Call, List, Span};
pub use matrix::Matrix;
pub use memory::{check_working_set, longest_context, working_set};
pub use options::{Options, PASS};
pub use record::{Pass, Script, Tail};
pub use runtime::Metal;
pub use session::Session;

/// A model whose matrices are the blocks of its file.
pub type Model = crate::Opened<Matrix>;
/// Its tensors.
pub type Decoder = crate::model::Decoder<Matrix, Vec<f32>>;

/// The source of the library that a [`Launch`] names.
pub fn library(name: &str) -> Option<&'static Library> {
    const { &[&qat_quant::kernels::metal::LIBRARIES as &[Library], &kernels::LIBRARIES] }
        .iter()
        .flat_map(|libraries| libraries.iter())
        .find(|library| library.name == name)
}
