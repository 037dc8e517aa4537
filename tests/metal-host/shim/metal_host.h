// The Metal standard library as far as it is emulated, and how a kernel is handed to the engine. What the generated source of a
// kernel includes; the keywords come last because the headers before are plain C++.
#pragma once
#pragma clang system_header
#include "atomic.h"
#include "simdgroup_matrix.h"

#ifndef METAL_HOST_LINT
namespace metal_host {

// A kernel's parameter, made from what it was declared as.
template <class T> struct Given {
  static constexpr uint64_t size = 0;
  static T from(const Arguments& a, const Parameter& p) { return convert(a.builtins[p.source], (T*)nullptr); }
  template <class S> static S convert(const uint32_t* v, S*) { return S(v[0]); }
  template <class S> static metal::vec<S, 2> convert(const uint32_t* v, metal::vec<S, 2>*) { return metal::vec<S, 2>(S(v[0]), S(v[1])); }
  template <class S> static metal::vec<S, 3> convert(const uint32_t* v, metal::vec<S, 3>*) { return metal::vec<S, 3>(S(v[0]), S(v[1]), S(v[2])); }
};
template <class T> struct Given<T*> {
  static constexpr uint64_t size = 0;
  static T* from(const Arguments& a, const Parameter& p) { return (T*)(p.source == BUFFER ? a.buffers : a.threadgroup)[p.index]; }
};
template <class T> struct Given<T&> {
  static constexpr uint64_t size = sizeof(T);
  static T& from(const Arguments& a, const Parameter& p) { return *(T*)(p.source == BUFFER ? a.buffers : a.threadgroup)[p.index]; }
};

template <size_t... I> struct Places {};
template <class T, T... I> struct PlacesOf { typedef Places<I...> type; };

template <class Function> struct Invoke;
template <class... P> struct Invoke<void (*)(P...)> {
  static constexpr uint64_t count = sizeof...(P);
  template <size_t... I> static void call(void (*kernel)(P...), const Arguments& a, const Parameter* p, Places<I...>) {
    kernel(Given<P>::from(a, p[I])...);
  }
  template <size_t... I> static constexpr uint64_t size_of(uint64_t which, Places<I...>) {
    const uint64_t sizes[] = {Given<P>::size..., 0};
    return sizes[which];
  }
};

template <class T> constexpr uint32_t constant_kind() {
  return metal::is_same<T, bool>::value ? 0 : metal::is_floating_point_v<T> ? 3 : metal::is_signed<T>::value ? 2 : 1;
}
}  // namespace metal_host

// What the generated source ends with: the one kernel that this library holds.
#define METAL_HOST_KERNEL(function, ...)                                                                            \
  typedef decltype(&METAL_HOST_STRIP function) metal_host_function;                                                 \
  typedef ::metal_host::Invoke<metal_host_function> metal_host_invoke;                                              \
  typedef typename __make_integer_seq<::metal_host::PlacesOf, size_t, metal_host_invoke::count>::type metal_host_places;                          \
  static const ::metal_host::Parameter metal_host_parameters[] = {__VA_ARGS__};                                     \
  static void metal_host_call(const ::metal_host::Arguments* given) {                                               \
    metal_host_invoke::call(&METAL_HOST_STRIP function, *given, metal_host_parameters, metal_host_places{});        \
  }
#define METAL_HOST_STRIP(...) __VA_ARGS__
#define METAL_HOST_PARAMETER(place, source, index, present) \
  {::metal_host::source, index, present, metal_host_invoke::size_of(place, metal_host_places{})}
#define METAL_HOST_CONSTANT(name, index) \
  {index, #name, (void*)&name, sizeof(name), ::metal_host::constant_kind<decltype(name)>(), &name##_is_defined}
#endif
#define is_function_constant_defined(name) (name##_is_defined)

#ifdef METAL_HOST_CHECKED
#include "checks.h"
#endif

#define METAL_FUNC inline __attribute__((always_inline))
#ifdef METAL_HOST_LINT
// In the terms of C++ for OpenCL, which has address spaces too.
#define kernel
// Names like any other in Metal.
#define local metal_host_local
#define global metal_host_global
#define generic metal_host_generic
#define thread __private
#define thread_reference
#define device __global
#define constant const __constant
#define threadgroup __local
#else
#define kernel
#define thread
#define thread_reference
#define device
#define constant const
#define threadgroup
#endif
