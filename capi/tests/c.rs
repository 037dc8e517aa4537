//! The C interface used from C: compiled by the system's compiler with its sanitizers, linked to the static library.
//!
//! Needs a C compiler (`cc`, or what `CC` names), which Rust's linker is on most systems; without one the test is skipped, and says so.
//! `QAT_C_SANITIZERS` names other sanitizers than `address,undefined`: `scripts/check-sanitizers.sh` does, which builds the library with
//! the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use qat_infer::files::{Activations, HfDir, PackedWriter, companions};
use qat_infer::model::{Config, Role, params};
use qat_quant::kernels::FloatType;
use qat_quant::{Format, ScaleRule, Scales, pack};

/// What a chat with the teacher of the quickstart looks like; it was never taught to answer.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The quickstart's teacher with 4-bit matrices and a chat template.
fn packed(out: &Path) {
    let dir = root().join("data/teacher");
    let hf = HfDir::open(&dir).expect("the teacher");
    let config = Config::from_json(&hf.config, &hf.config_path()).expect("its config");
    let format: Format = "int4-g32".parse().expect("a format");
    let mut writer =
        PackedWriter::create(out, &hf.config, &companions(&dir).expect("companions"), serde_json::json!({}))
            .expect("a writer");
    for param in params(&config) {
        let values = hf.tensors.f32(&param.name, &param.shape).expect("a tensor");
        match (param.role, param.shape.as_slice()) {
            (Role::Projection | Role::Embedding | Role::Head, &[rows, cols]) => {
                let scales = Scales::choose(format, ScaleRule::Mse, &values, rows, cols);
                let matrix = pack(&param.name, format, &values, rows, cols, &scales).expect("packed");
                writer.packed(&param.name, matrix.as_ref(), Activations::Float).expect("written");
            }
            _ => writer.float(&param.name, FloatType::F32, &param.shape, &values).expect("written"),
        }
    }
    writer.finish().expect("finished");
    std::fs::write(out.join("chat_template.jinja"), TEMPLATE).expect("a template");
}

/// The static library that was built with this test: cargo leaves it beside the test, with a hash in its name for each set of options.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let beside = std::fs::read_dir(test.parent().expect("a folder")).expect("readable");
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("libqatc") && name.ends_with(".a")
    };
    let found = beside.map(|entry| entry.expect("readable").path()).filter(is_library);
    let built = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).expect("a time");
    found.max_by_key(built).expect("libqatc.a beside the test")
}

#[test]
fn a_program_in_c_reads_writes_chats_cancels_and_is_refused() {
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if Command::new(&cc).arg("--version").output().is_err() {
        eprintln!("SKIPPED: no C compiler called {cc} (CC names another)");
        return;
    }
    let sanitizers = std::env::var("QAT_C_SANITIZERS").unwrap_or_else(|_| "address,undefined".into());
    let folder = tempfile::tempdir().expect("a folder");
    let (model, program) = (folder.path().join("packed"), folder.path().join("journey"));
    packed(&model);
    let here = root().join("capi");
    let libraries: &[&str] = match cfg!(target_vendor = "apple") {
        true => &["-framework", "Metal", "-framework", "Foundation", "-lobjc", "-lc++"],
        false => &["-lpthread", "-ldl", "-lm"],
    };
    let built = Command::new(&cc)
        .args([
            "-std=gnu11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fno-omit-frame-pointer",
        ])
        .arg(format!("-fsanitize={sanitizers}"))
        .arg("-fno-sanitize-recover=all")
        .arg("-I")
        .arg(here.join("include"))
        .arg(here.join("tests/c/journey.c"))
        .arg(library())
        .args(libraries)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a compiler");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran =
        Command::new(&program).args([&model, &root().join("data/teacher")]).output().expect("a program");
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && told.contains("all of it holds"), "{told}");
}
