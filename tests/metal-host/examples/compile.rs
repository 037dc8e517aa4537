//! Compiles every kernel of a source in every build, and looks at its address spaces: `compile FILE…`, the files taken as one source.

use std::{env, fs, process::ExitCode, time::Instant};

use qat_metal_host::{Build, Error, Library};

fn main() -> ExitCode {
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), Error> {
    let mut source = String::new();
    for file in env::args().skip(1) {
        let text = fs::read_to_string(&file);
        let text = text.map_err(|e| Error::File { path: file.clone().into(), message: e.to_string() })?;
        source += &format!("#line 1 \"{file}\"\n{text}\n");
    }
    let library = Library::new("source", &source)?;
    library.lint()?;
    for kernel in library.kernel_names()? {
        let start = Instant::now();
        for build in [Build::Value, Build::Checked, Build::FastMath] {
            library.compile(&kernel, build)?;
        }
        println!("{kernel}: {:.2} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
