// The checking build: clang calls these before each access to memory and at each step that C++ leaves undefined.
//
// Names and arguments are those of clang's kernel address sanitizer (outline calls) and undefined-behaviour sanitizer.
#pragma once
#include "runtime.h"

#define METAL_HOST_CALLBACK extern "C" __attribute__((no_sanitize("kernel-address", "undefined"), used)) void

#define METAL_HOST_SIZED(size)                                                                                      \
  METAL_HOST_CALLBACK __asan_load##size##_noabort(const void* p) { ::metal_host::engine->access(p, size, ::metal_host::READ, __builtin_return_address(0)); } \
  METAL_HOST_CALLBACK __asan_store##size##_noabort(const void* p) { ::metal_host::engine->access(p, size, ::metal_host::WRITE, __builtin_return_address(0)); }
METAL_HOST_SIZED(1)
METAL_HOST_SIZED(2)
METAL_HOST_SIZED(4)
METAL_HOST_SIZED(8)
METAL_HOST_SIZED(16)
METAL_HOST_CALLBACK __asan_loadN_noabort(const void* p, size_t n) { ::metal_host::engine->access(p, n, ::metal_host::READ, __builtin_return_address(0)); }
METAL_HOST_CALLBACK __asan_storeN_noabort(const void* p, size_t n) { ::metal_host::engine->access(p, n, ::metal_host::WRITE, __builtin_return_address(0)); }
METAL_HOST_CALLBACK __asan_handle_no_return() {}

#define METAL_HOST_BLOCK extern "C" __attribute__((no_sanitize("kernel-address", "undefined"), used)) void*
METAL_HOST_BLOCK __asan_memcpy(void* to, const void* from, size_t n) {
  if (n) {
    ::metal_host::engine->access(from, n, ::metal_host::READ, __builtin_return_address(0));
    ::metal_host::engine->access(to, n, ::metal_host::WRITE, __builtin_return_address(0));
  }
  return __builtin_memcpy(to, from, n);
}
METAL_HOST_BLOCK __asan_memmove(void* to, const void* from, size_t n) {
  if (n) {
    ::metal_host::engine->access(from, n, ::metal_host::READ, __builtin_return_address(0));
    ::metal_host::engine->access(to, n, ::metal_host::WRITE, __builtin_return_address(0));
  }
  return __builtin_memmove(to, from, n);
}
METAL_HOST_BLOCK __asan_memset(void* to, int value, size_t n) {
  if (n) ::metal_host::engine->access(to, n, ::metal_host::WRITE, __builtin_return_address(0));
  return __builtin_memset(to, value, n);
}

// Every report of the undefined-behaviour sanitizer begins with where it happened.
struct MetalHostPlace { const char* file; uint32_t line; uint32_t column; };
#define METAL_HOST_UNDEFINED(handler, what)                                                                         \
  METAL_HOST_CALLBACK __ubsan_handle_##handler(const MetalHostPlace* place, ...) {                                  \
    ::metal_host::engine->undefined(what, place->file, place->line, __builtin_return_address(0));                   \
  }
METAL_HOST_UNDEFINED(type_mismatch_v1, "a load or store at an address that its type's alignment forbids")
METAL_HOST_UNDEFINED(alignment_assumption, "an address that is not aligned as promised")
METAL_HOST_UNDEFINED(shift_out_of_bounds, "a shift by the width of the type, by more, or by less than nothing")
METAL_HOST_UNDEFINED(out_of_bounds, "an index past the end of an array")
METAL_HOST_UNDEFINED(divrem_overflow, "a division by zero")
METAL_HOST_UNDEFINED(add_overflow, "a signed addition that overflows")
METAL_HOST_UNDEFINED(sub_overflow, "a signed subtraction that overflows")
METAL_HOST_UNDEFINED(mul_overflow, "a signed product that overflows")
METAL_HOST_UNDEFINED(negate_overflow, "a signed negation that overflows")
METAL_HOST_UNDEFINED(load_invalid_value, "a bool that is neither true nor false")
METAL_HOST_UNDEFINED(float_cast_overflow, "a float that its integer type can't hold")
METAL_HOST_UNDEFINED(missing_return, "a function that ends without its return value")
METAL_HOST_UNDEFINED(builtin_unreachable, "a place that can't be reached")
