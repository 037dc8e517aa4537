//! The kernels' sources, written for Metal, as CUDA C++ for NVRTC: one source for both kinds of GPU.
//!
//! The two languages differ in how a kernel is told where it stands, and in where constants lie. Bodies are left as they are:
//! a kernel becomes a function of the device with the same parameters, and an entry `extern "C"` is put behind it that
//! takes the buffers, the constants by value, and fills in the places. `prelude.cuh` gives the names that bodies use.
//!
//! Knows no kernel and no device. What it can't translate is an error that names it, never a wrong program.

use candle_core::{Result, bail};

const PRELUDE: &str = include_str!("prelude.cuh");

/// What an entry is called: a kernel itself may have the name of a function of CUDA.
pub(super) fn entry_name(kernel: &str) -> String {
    format!("entry_{kernel}")
}

/// The CUDA source of the library `source`, with an entry for each of its kernels.
///
/// # Errors
/// A kernel that is written in another way than those of this crate are.
pub(super) fn translate(source: &str) -> Result<String> {
    let mut body = String::new();
    let mut kernels = Vec::new();
    let mut entries = Vec::new();
    let mut rest = source;
    while let Some((before, found, after)) = next_mark(rest) {
        body.push_str(before);
        rest = match found {
            Mark::Kernel => {
                let (kernel, after) = Kernel::parse(after)?;
                if !body.trim_end().ends_with('>') {
                    entries.push((kernel.name.to_owned(), kernel.name.to_owned()));
                }
                body.push_str(&kernel.function());
                kernels.push(kernel);
                after
            }
            Mark::Instance => {
                let (host_name, function, after) = parse_instance(after)?;
                entries.push((host_name.to_owned(), function.to_owned()));
                after
            }
        };
    }
    body.push_str(rest);
    let body: String = body.lines().filter_map(line).collect();
    let entries = entries.iter().map(|(host_name, function)| {
        let name = function.split('<').next().unwrap_or(function);
        match kernels.iter().find(|kernel| kernel.name == name) {
            Some(kernel) => kernel.entry(host_name, function),
            None => bail!("kernel {host_name:?}: is an instance of {name:?}, which is no kernel"),
        }
    });
    let entries = entries.collect::<Result<String>>()?;
    Ok(format!("{PRELUDE}\n{body}\n{entries}"))
}

/// How the kernel that the host asks for as `host_name` declares its buffers, in their order, its `Shape` last.
///
/// # Errors
/// As [`translate`]; a library without that kernel.
#[cfg(test)]
pub(super) fn buffers(source: &str, host_name: &str) -> Result<Vec<String>> {
    let (mut kernels, mut name, mut rest) = (Vec::new(), host_name, source);
    while let Some((_, found, after)) = next_mark(rest) {
        rest = match found {
            Mark::Kernel => {
                let (kernel, after) = Kernel::parse(after)?;
                kernels.push(kernel);
                after
            }
            Mark::Instance => {
                let (found, function, after) = parse_instance(after)?;
                if found == host_name {
                    name = function.split('<').next().unwrap_or(function);
                }
                after
            }
        };
    }
    let Some(kernel) = kernels.iter().find(|kernel| kernel.name == name) else {
        bail!("kernel {host_name:?}: is not in its library");
    };
    let buffers = kernel.parameters.iter().filter(|p| p.attribute.starts_with("buffer("));
    Ok(buffers.map(|p| p.kind.to_owned()).collect())
}

enum Mark {
    /// Behind it stands the name of a kernel.
    Kernel,
    /// Behind it stands the name by which an instance of a template is asked for.
    Instance,
}

/// The text up to the next mark, the mark, and the text behind it.
fn next_mark(text: &str) -> Option<(&str, Mark, &str)> {
    let kernels = ["\nkernel void ", "\n[[kernel]] void "].map(|mark| (mark, Mark::Kernel));
    let marks = kernels.into_iter().chain([("\ntemplate [[host_name(\"", Mark::Instance)]);
    let found = marks.filter_map(|(spelling, mark)| Some((text.find(spelling)?, spelling, mark)));
    let (at, spelling, mark) = found.min_by_key(|(at, ..)| *at)?;
    let (before, after) = (&text[..=at], &text[at + spelling.len()..]);
    Some((before, mark, after))
}

/// `name")]] [[kernel]] decltype(f<A>) f<A>;`: the name, `f<A>`, and what comes behind.
fn parse_instance(text: &str) -> Result<(&str, &str, &str)> {
    let parsed = || {
        let (name, text) = text.split_once("\")]] [[kernel]] decltype(")?;
        let (function, text) = text.split_once(')')?;
        let (_, text) = text.split_once(';')?;
        Some((name, function, text))
    };
    parsed().map_or_else(|| bail!("an instance of a kernel: {:?}", first_line(text)), Ok)
}

/// A line as CUDA has it; none: it goes.
fn line(line: &str) -> Option<String> {
    let spaces = line.len() - line.trim_start().len();
    match line.trim_start() {
        text if text.starts_with("#include") || text.starts_with("#pragma METAL") => None,
        "using namespace metal;" => None,
        // Memory of a threadgroup is declared; a pointer to such memory is a pointer like any other.
        text if text.starts_with("threadgroup ") && text.contains('[') && text.ends_with(';') => {
            Some(format!("{}__shared__ {}\n", &line[..spaces], &text["threadgroup ".len()..]))
        }
        _ => Some(format!("{line}\n")),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

struct Kernel<'a> {
    name: &'a str,
    parameters: Vec<Parameter<'a>>,
}

struct Parameter<'a> {
    /// `device const float*`
    kind: &'a str,
    name: &'a str,
    /// `buffer(0)`
    attribute: &'a str,
}

impl<'a> Kernel<'a> {
    /// `name(parameters)`, and the text behind it.
    fn parse(text: &'a str) -> Result<(Self, &'a str)> {
        let parsed = || {
            let (name, text) = text.split_once('(')?;
            let end = text.find(") {")?;
            let parameters = text[..end].split("]],").map(Parameter::parse).collect::<Option<Vec<_>>>()?;
            Some((Self { name, parameters }, &text[end + 1..]))
        };
        parsed().map_or_else(|| bail!("kernel {:?}: its parameters", first_line(text)), Ok)
    }

    /// The head of the function, which the body follows.
    fn function(&self) -> String {
        let parameters: Vec<String> =
            self.parameters.iter().map(|p| format!("{} {}", p.kind, p.name)).collect();
        format!("void {}({})", self.name, parameters.join(", "))
    }

    /// What the host asks for as `host_name`: calls `function`, the kernel or an instance of it.
    fn entry(&self, host_name: &str, function: &str) -> Result<String> {
        let buffers: Vec<String> = self.parameters.iter().filter_map(Parameter::passed).collect();
        let arguments = self.parameters.iter().map(Parameter::argument).collect::<Result<Vec<_>>>()?;
        let (name, buffers, arguments) = (entry_name(host_name), buffers.join(", "), arguments.join(", "));
        Ok(format!("extern \"C\" __global__ void {name}({buffers}) {{ {function}({arguments}); }}\n"))
    }
}

impl<'a> Parameter<'a> {
    /// `device const float* x [[buffer(0)]]`, perhaps without the closing brackets.
    fn parse(text: &'a str) -> Option<Self> {
        let (declaration, attribute) = text.split_once("[[")?;
        let (kind, name) = declaration.trim().rsplit_once(' ')?;
        Some(Self { kind, name, attribute: attribute.trim_end().trim_end_matches("]]") })
    }

    /// How it is passed to an entry; none: it is not passed but known.
    fn passed(&self) -> Option<String> {
        // Constants are passed by value.
        self.attribute
            .starts_with("buffer(")
            .then(|| format!("{} {}", self.kind.trim_end_matches('&'), self.name))
    }

    /// What an entry passes on. Threadgroups have one dimension.
    fn argument(&self) -> Result<String> {
        const X: &str = "blockIdx.x * blockDim.x + threadIdx.x";
        let place = match (self.attribute, self.kind) {
            ("thread_position_in_grid", "uint") => X,
            ("thread_position_in_grid", "uint2") => return Ok(format!("uint2{{{X}, blockIdx.y}}")),
            ("threadgroup_position_in_grid", "uint") => "blockIdx.x",
            ("thread_index_in_threadgroup", "uint") => "threadIdx.x",
            ("threads_per_threadgroup", "uint") => "blockDim.x",
            ("thread_index_in_simdgroup", "uint") => "threadIdx.x % 32",
            ("simdgroup_index_in_threadgroup", "uint") => "threadIdx.x / 32",
            ("simdgroups_per_threadgroup", "uint") => "blockDim.x / 32",
            (buffer, _) if buffer.starts_with("buffer(") => self.name,
            (other, kind) => bail!("a parameter that CUDA has no value for: {kind} [[{other}]]"),
        };
        Ok(place.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
#include <metal_stdlib>
using namespace metal;
#pragma METAL fp contract(off)

struct Shape {
  uint n;
};

inline float total(threadgroup float* shared) { return shared[0]; }

kernel void plain(device const float* in [[buffer(0)]],
                  device float* out [[buffer(1)]],
                  constant Shape& shape [[buffer(2)]],
                  uint2 at [[thread_position_in_grid]]) {
  threadgroup float shared[32];
  out[at.x] = in[at.y] + total(shared);
}

template <bool BIAS>
[[kernel]] void chosen(device float* out [[buffer(0)]],
                       uint i [[thread_position_in_grid]]) {
  out[i] = BIAS;
}

template [[host_name("with")]] [[kernel]] decltype(chosen<true>) chosen<true>;
template [[host_name("without")]] [[kernel]] decltype(chosen<false>)
    chosen<false>;
"#;

    #[test]
    fn kernels_become_functions_with_entries_and_bodies_stay() -> Result<()> {
        let found = translate(SOURCE)?;
        for part in [
            "void plain(device const float* in, device float* out, constant Shape& shape, uint2 at) {\n",
            "  __shared__ float shared[32];\n  out[at.x] = in[at.y] + total(shared);\n}",
            "inline float total(threadgroup float* shared) { return shared[0]; }",
            "template <bool BIAS>\nvoid chosen(device float* out, uint i) {",
            "extern \"C\" __global__ void entry_plain(device const float* in, device float* out, constant Shape shape) \
             { plain(in, out, shape, uint2{blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y}); }",
            "void entry_with(device float* out) { chosen<true>(out, blockIdx.x * blockDim.x + threadIdx.x); }",
            "void entry_without(device float* out) { chosen<false>(out, ",
        ] {
            assert!(found.contains(part), "{part}\nis not in\n{found}");
        }
        for gone in ["#include", "using namespace", "#pragma", "[[", "entry_chosen"] {
            assert!(!found.contains(gone), "{gone} is in\n{found}");
        }
        Ok(())
    }

    #[test]
    fn what_has_no_translation_is_an_error_that_names_it() {
        let source = SOURCE
            .replace("uint2 at [[thread_position_in_grid]]", "uint z [[thread_position_in_threadgroup]]");
        let message = translate(&source).unwrap_err().to_string();
        assert!(message.contains("uint [[thread_position_in_threadgroup]]"), "{message}");
        let source = SOURCE.replace("decltype(chosen<true>)", "decltype(missing<true>)");
        let message = translate(&source).unwrap_err().to_string();
        assert!(
            message.contains("kernel \"with\": is an instance of \"missing\", which is no kernel"),
            "{message}"
        );
    }

    #[test]
    fn the_bfloat_of_the_translation_has_the_bits_of_ours() {
        if !super::super::host::available() {
            return;
        }
        // Every exponent, both signs, ties and their neighbours, infinities, and NaN whose payload lies low or would carry.
        let low =
            [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x7f_7fff, 0x7f_8000, 0x7f_ffff];
        let values: Vec<u32> = (0..512u32).flat_map(|top| low.map(|low| top << 23 | low)).collect();
        let list: Vec<String> = values.iter().map(|v| format!("{v}u")).collect();
        let found = super::super::host::run_as_cuda(&format!(
            "int main() {{ uint values[] = {{{}}}; for (uint v : values) {{ bfloat b(as_type<float>(v)); \
             printf(\"%u %u\\n\", uint(b.bits), as_type<uint>(float(b))); }} }}",
            list.join(",")
        ));
        for (v, line) in values.iter().zip(found.lines()) {
            let want = half::bf16::from_f32(f32::from_bits(*v));
            assert_eq!(line, format!("{} {}", want.to_bits(), want.to_f32().to_bits()), "{v:x}");
        }
        assert_eq!(found.lines().count(), values.len());
    }
}
