//! Sources as they are written, and what is read off them.

use super::*;

const SOURCE: &str = r#"using namespace metal;
constant bool NORM [[function_constant(0)]];
constant uint GROUP [[function_constant(5)]];
constant uint BLOCK = is_function_constant_defined(GROUP) ? GROUP : 32;
constant bool UNUSED [[function_constant(9)]];
namespace block { inline float scale(float x) { return NORM ? x : 1.0f; } }
template <typename T, ushort N>
[[kernel]] void scaled(device const T *x [[buffer(0)]], device T* y [[buffer(1), function_constant(NORM)]],
                       threadgroup float* shared [[threadgroup(0)]],
                       uint3 at [[threadgroup_position_in_grid]]) {
  threadgroup float part[N][4], total;
  threadgroup float* first = &part[0][0];
  y[at.x] = block::scale(x[at.x]) * BLOCK;
}
template [[host_name("scaled_float")]] [[kernel]] decltype(scaled<float, 4>) scaled<float, 4>;
kernel void plain(device uint* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = 1; }
"#;

#[test]
fn kernels_and_their_parameters_are_found() {
    let source = Source::new(SOURCE).expect("understood");
    assert_eq!(source.kernel_names(), ["scaled_float", "plain"]);
    let text = source.kernel("scaled_float").expect("written").expect("there").text;
    for piece in [
        "METAL_HOST_KERNEL((scaled < float , 4 >)",
        "METAL_HOST_PARAMETER(1, BUFFER, 1, [] { return bool(NORM); })",
        "METAL_HOST_PARAMETER(2, THREADGROUP, 0, nullptr)",
        "METAL_HOST_CONSTANT(GROUP, 5)",
        "static uint BLOCK; static void BLOCK_derive() { BLOCK = is_function_constant_defined ( GROUP ) ? GROUP : 32; }",
        "typedef float metal_host_part_",
        "threadgroup float* first = &part[0][0];",
    ] {
        assert!(text.contains(piece), "{piece} in\n{text}");
    }
    assert!(!text.contains("plain") && !text.contains("host_name"), "{text}");
    assert!(source.kernel("missing").expect("written").is_none());
}

#[test]
fn a_kernel_needs_the_constants_that_it_mentions() {
    let source = Source::new(SOURCE).expect("understood");
    let needs = |name: &str| source.kernel(name).expect("written").expect("there").needs;
    assert_eq!(needs("scaled_float"), ["NORM"], "GROUP is asked for first, UNUSED is not mentioned");
    assert_eq!(needs("plain"), [""; 0]);
}

#[test]
fn what_a_kernel_does_not_use_is_left_out() {
    let text = "struct alignas(8) A { static int f() { return g(); } };\ninline int g() { return 1; }\ninline int h() {\n#pragma unroll\n for (;;) {} return 2; }\n\
                struct B { int x; };\ntemplate <typename T> kernel void k(device int* y [[buffer(0)]]) { *y = T::f(); }\n\
                template [[host_name(\"k\")]] kernel void k<A>(device int* y);";
    let source = Source::new(text).expect("understood");
    let text = source.kernel("k").expect("written").expect("there").text;
    assert!(text.contains("struct alignas(8) A") && text.contains("int g()"), "{text}");
    assert!(!text.contains("struct B") && !text.contains("#pragma") && !text.contains("int h()"), "{text}");
}

#[test]
fn lines_stay_where_they_were() {
    let source = Source::new(SOURCE).expect("understood");
    let text = source.kernel("scaled_float").expect("written").expect("there").text;
    let line = |of: &str, what: &str| of.lines().position(|l| l.contains(what)).expect("there");
    // One line more for the header.
    assert_eq!(line(&text, "y[at.x]"), line(SOURCE, "y[at.x]") + 1);
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    for (text, line, message) in [
        ("int a;\nkernel void f(uint x [[colour]]) {}", 2, "[[colour]]"),
        ("kernel void f(device uint* x) {}", 1, "no attribute"),
        ("kernel void f() {\n threadgroup float x = 3; }", 2, "can't be initialized"),
        ("\nkernel void f() {", 2, "never closed"),
    ] {
        let source = Source::new(text).and_then(|s| s.all_kernels().map(|_| ()));
        let error = source.expect_err("refused");
        assert!(error.line == line && error.message.contains(message), "{text}: {error:?}");
    }
}
