//! What compiled kernels and the engine say to each other, as `shim/runtime.h` has it. The two files are kept in step by hand.

use std::ffi::{CStr, c_char, c_void};

/// Where in the source something was asked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Site {
    pub operation: *const c_char,
    pub file: *const c_char,
    pub line: u32,
    pub column: u32,
}

/// What the lanes of a simdgroup brought to an operation.
#[repr(C)]
pub struct Exchange {
    pub slots: *const Slot,
    pub order: *const u8,
    pub active: u32,
    pub lane: u32,
}

/// What one lane brought.
pub type Slot = [u8; 64];

/// The functions that kernels call.
#[repr(C)]
pub struct Functions {
    pub threadgroup_barrier: extern "C" fn(flags: u32, site: &Site),
    pub simdgroup_barrier: extern "C" fn(flags: u32, site: &Site),
    pub exchange: extern "C" fn(value: *const u8, size: u64, site: &Site, met: &mut Exchange),
    pub lane: extern "C" fn() -> u32,
    pub threadgroup_variable:
        extern "C" fn(key: *const u8, size: u64, align: u64, name: *const c_char) -> *mut u8,
    pub access: extern "C" fn(address: *const u8, size: u64, kind: u32, pc: *const u8),
    pub undefined: extern "C" fn(what: *const c_char, file: *const c_char, line: u32, pc: *const u8),
}

/// Bits of `mem_flags`.
pub const MEM_DEVICE: u32 = 1;
pub const MEM_THREADGROUP: u32 = 2;

/// Kinds of `access`.
pub const WRITE: u32 = 1;
pub const ATOMIC: u32 = 2;
pub const ATOMIC_STORE: u32 = 3;

/// Values of `Source`: buffers, threadgroup memory, and then the built-in inputs.
pub const BUFFER: u32 = 0;
pub const THREADGROUP: u32 = 1;
pub const SOURCES: usize = 17;

/// Values of the built-in inputs, by source.
pub type BuiltIns = [[u32; 4]; SOURCES];

#[repr(C)]
pub struct Parameter {
    pub source: u32,
    pub index: u32,
    pub present: Option<extern "C" fn() -> bool>,
    pub size: u64,
}

#[repr(C)]
pub struct Arguments {
    pub buffers: *const *mut u8,
    pub threadgroup: *const *mut u8,
    pub built_ins: *const [u32; 4],
}

#[repr(C)]
pub struct FunctionConstant {
    pub index: u32,
    pub name: *const c_char,
    pub value: *mut c_void,
    pub size: u32,
    pub kind: u32,
    pub defined: *mut bool,
}

/// The symbol `metal_host_module` of a compiled kernel.
#[repr(C)]
pub struct Module {
    pub call: extern "C" fn(&Arguments),
    pub parameters: *const Parameter,
    pub parameter_count: u64,
    pub constants: *const FunctionConstant,
    pub constant_count: u64,
    pub derive: extern "C" fn(),
    pub engine: *mut *const Functions,
}

/// A string of the kernel's library; empty for null.
pub fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the shim hands over string literals of a library that stays loaded.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

impl Site {
    /// `file:line` of the source.
    pub fn place(&self) -> String {
        format!("{}:{}", text(self.file), self.line)
    }

    pub fn name(&self) -> String {
        text(self.operation)
    }
}

impl PartialEq for Site {
    fn eq(&self, other: &Self) -> bool {
        // Not the file: one source, and its lines and columns, is all there is.
        (self.line, self.column) == (other.line, other.column)
    }
}
