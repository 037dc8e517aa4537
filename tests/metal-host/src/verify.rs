//! A kernel seen in every mode.

use crate::{Arg, Error, Launch, Library, Mode, Report};

/// A buffer of [`verify`], which runs the kernel several times on fresh copies.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// Not bound.
    None,
    /// To be read.
    In(Vec<u8>),
    /// To be read, at an address that is a multiple of this power of two and of none larger.
    InAt(Vec<u8>, usize),
    /// So many bytes to be written.
    Out(usize),
    /// To be read and written.
    InOut(Vec<u8>),
}

/// Looks at the library's address spaces, then runs a kernel in all modes ([`Mode::ALL`]) and hands `judge` what is in its buffers
/// afterwards: by index, empty for those that are not written. The report is that of the checking run.
///
/// # Errors
/// The first mode's that found something wrong.
pub fn verify(
    library: &Library,
    launch: &Launch,
    args: &[Buffer],
    judge: &mut dyn FnMut(Mode, &[Vec<u8>]),
) -> Result<Report, Error> {
    library.lint()?;
    let mut checked = Report::default();
    for mode in Mode::ALL {
        let mut outputs: Vec<Vec<u8>> = args.iter().map(output).collect();
        let mut bound: Vec<Arg> = args.iter().zip(&mut outputs).map(|(arg, out)| bind(arg, out)).collect();
        let report = library.run(mode, launch, &mut bound)?;
        if mode == Mode::CHECKED {
            checked = report;
        }
        judge(mode, &outputs);
    }
    Ok(checked)
}

fn output(buffer: &Buffer) -> Vec<u8> {
    match buffer {
        Buffer::None | Buffer::In(_) | Buffer::InAt(..) => Vec::new(),
        Buffer::Out(len) => vec![0; *len],
        Buffer::InOut(bytes) => bytes.clone(),
    }
}

fn bind<'a>(buffer: &'a Buffer, output: &'a mut [u8]) -> Arg<'a> {
    match buffer {
        Buffer::None => Arg::None,
        Buffer::In(bytes) => Arg::In(bytes),
        Buffer::InAt(bytes, align) => Arg::InAt(bytes, *align),
        Buffer::Out(_) => Arg::Out(output),
        Buffer::InOut(_) => Arg::InOut(output),
    }
}
