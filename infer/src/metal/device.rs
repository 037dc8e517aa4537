//! Who carries lists out.
//!
//! Knows no model.

use super::buffers::Buffer;
use super::list::{BufferId, List};
use crate::Result;

/// A GPU with its memory, or what stands for one.
///
/// Work is done in the order in which it is asked for, and may be done later: only [`read`](Self::read) waits.
pub trait Device {
    /// A list made ready: its kernels compiled, its buffers looked up.
    type List;

    /// Makes the buffers, once, before anything else. Weights are taken where they are if that can be.
    ///
    /// # Errors
    /// When there is not that much memory.
    fn allocate(&mut self, buffers: &[Buffer]) -> Result<()>;

    /// Makes a list ready to be run any number of times.
    ///
    /// # Errors
    /// When a kernel doesn't compile, or asks for more than the device has.
    fn prepare(&mut self, list: &List) -> Result<Self::List>;

    /// Writes part of a buffer.
    ///
    /// # Errors
    /// When the device is lost.
    fn write(&mut self, buffer: BufferId, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Runs all calls of a list. Those between two barriers may run at the same time; lists don't: the first call of one
    /// has no barrier, and comes after the last of the list before it.
    ///
    /// # Errors
    /// When the device is lost or ran out of memory.
    fn run(&mut self, list: &Self::List) -> Result<()>;

    /// Waits for all that was asked for, and reads part of a buffer.
    ///
    /// # Errors
    /// When the device is lost, or what it ran failed.
    fn read(&mut self, buffer: BufferId, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Most bytes that all buffers may have together, if the device says so.
    fn working_set_limit(&self) -> Option<u64>;
}
