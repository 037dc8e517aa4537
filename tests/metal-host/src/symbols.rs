//! From the address of an instruction to its line in the kernel's source, by llvm-symbolizer where it is installed.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    mem,
    process::Command,
    sync::{LazyLock, Mutex},
};

/// Lines that were asked for before: starting the symbolizer takes longer than a run.
static KNOWN: LazyLock<Mutex<BTreeMap<(String, usize), String>>> = LazyLock::new(Mutex::default);

/// `file:line` of the call that returns to `pc`; library and offset where the line can't be found.
pub fn line(pc: usize) -> String {
    let Some((library, offset)) = library(pc) else { return format!("{pc:#x}") };
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = (library, offset);
    if let Some(line) = known.get(&key) {
        return line.clone();
    }
    let line = ask(&key.0, offset).unwrap_or_else(|| format!("{}+{offset:#x}", key.0));
    known.insert(key, line.clone());
    line
}

/// The file that holds an instruction, and the offset of the instruction before in it.
fn library(pc: usize) -> Option<(String, usize)> {
    // SAFETY: `dladdr` fills in what it knows of any address; its strings live as long as the library.
    unsafe {
        let mut info: libc::Dl_info = mem::zeroed();
        if libc::dladdr(pc as *const _, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        let file = CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned();
        Some((file, pc - info.dli_fbase as usize - 1))
    }
}

/// The innermost of the inlined places that is not the emulator's own.
fn ask(library: &str, offset: usize) -> Option<String> {
    let run = |tool: &str| {
        let object = format!("--obj={library}");
        Command::new(tool)
            .args([&*object, "--inlining", "--output-style=GNU", &format!("{offset:#x}")])
            .output()
            .ok()
    };
    let output = run("llvm-symbolizer-19").or_else(|| run("llvm-symbolizer"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let places: Vec<&str> = text.lines().filter(|l| l.contains(".metal:")).collect();
    let place = places.first()?.split_whitespace().next()?;
    Some(place.rsplit('/').next().unwrap_or(place).to_owned())
}
