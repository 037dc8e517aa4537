// Vectors, packed vectors and small matrices. `swizzles.h` is written by src/swizzles.rs.
//
// A class and not clang's own vectors, because a Metal vector is passed around as a template (`vec<T, 4>`), converts only when
// asked to, and compares to a vector of bool.
#pragma once
#include "runtime.h"
#include "swizzles.h"
#include "types.h"

#ifdef METAL_HOST_LINT
// Everything but constant memory is copied from by itself.
#define METAL_HOST_COPIES(N)            \
  constexpr vec(const vec&) = default;  \
  vec& operator=(const vec&) = default; \
  vec(const __constant vec& o) { for (int i = 0; i < N; i++) data[i] = o.data[i]; }
#elif defined(METAL_HOST_CHECKED)
// Written out, so that the alignment check sees every load and store of a vector.
#define METAL_HOST_COPIES(N)                                                            \
  vec(const vec& o) { for (int i = 0; i < N; i++) data[i] = o.data[i]; }                \
  vec& operator=(const vec& o) { for (int i = 0; i < N; i++) data[i] = o.data[i]; return *this; }
#else
#define METAL_HOST_COPIES(N)
#endif

namespace metal {

template <class T, int N> struct vec;
template <class T, int N> struct packed_vec;

template <class T> struct vec_traits { typedef T element; static constexpr int length = 1; };
template <class T, int N> struct vec_traits<vec<T, N>> { typedef T element; static constexpr int length = N; };

template <class A> using if_arithmetic = enable_if_t<is_arithmetic<A>::value, int>;
template <class A> using if_integral = enable_if_t<is_integral<A>::value, int>;

namespace detail {
inline size_t component(size_t i, size_t length, const void* pc) {
  if (__builtin_expect(i >= length, 0)) {
    ::metal_host::engine->undefined("a component past the end of a vector or matrix", nullptr, 0, pc);
    return 0;
  }
  return i;
}
}  // namespace detail
#define METAL_HOST_COMPONENT(i, N) ::metal::detail::component(i, N, __builtin_return_address(0))

// What a type lacks (the remainder of floats, say) is an error only where it is asked for.
#define METAL_HOST_ARITHMETIC(N, op)                                                                                \
  friend vec operator op(vec a, vec b) { vec r; for (int i = 0; i < N; i++) r.data[i] = T(a.data[i] op b.data[i]); return r; } \
  vec& operator op##=(vec b) { return *this = *this op b; }
#define METAL_HOST_COMPARISON(N, op)                                                                                \
  friend vec<bool, N> operator op(vec a, vec b) { vec<bool, N> r; for (int i = 0; i < N; i++) r.data[i] = a.data[i] op b.data[i]; return r; }

#define METAL_HOST_VECTOR(N)                                                                                        \
  vec() = default;                                                                                                  \
  METAL_HOST_COPIES(N)                                                                                              \
  template <class S, if_arithmetic<S> = 0> constexpr vec(S s) : data{} { for (int i = 0; i < N; i++) data[i] = T(s); } \
  template <class U, enable_if_t<!is_same<U, T>::value, int> = 0>                                         \
  explicit constexpr vec(vec<U, N> o) : data{} { for (int i = 0; i < N; i++) data[i] = T(o.data[i]); }              \
  T& operator[](size_t i) { return data[METAL_HOST_COMPONENT(i, N)]; }                                              \
  const T& operator[](size_t i) const { return data[METAL_HOST_COMPONENT(i, N)]; }                                  \
  METAL_HOST_ARITHMETIC(N, +) METAL_HOST_ARITHMETIC(N, -) METAL_HOST_ARITHMETIC(N, *) METAL_HOST_ARITHMETIC(N, /)    \
  METAL_HOST_ARITHMETIC(N, %) METAL_HOST_ARITHMETIC(N, &) METAL_HOST_ARITHMETIC(N, |) METAL_HOST_ARITHMETIC(N, ^)               \
  METAL_HOST_ARITHMETIC(N, <<) METAL_HOST_ARITHMETIC(N, >>)                                                               \
  METAL_HOST_COMPARISON(N, <) METAL_HOST_COMPARISON(N, >) METAL_HOST_COMPARISON(N, <=) METAL_HOST_COMPARISON(N, >=) \
  METAL_HOST_COMPARISON(N, ==) METAL_HOST_COMPARISON(N, !=) METAL_HOST_COMPARISON(N, &&) METAL_HOST_COMPARISON(N, ||) \
  vec operator-() const { vec r; for (int i = 0; i < N; i++) r.data[i] = T(-data[i]); return r; }                   \
  vec operator+() const { return *this; }                                                                           \
  vec<bool, N> operator!() const { vec<bool, N> r; for (int i = 0; i < N; i++) r.data[i] = !data[i]; return r; }    \
  vec operator~() const { vec r; for (int i = 0; i < N; i++) r.data[i] = T(~data[i]); return r; } \
  vec& operator++() { return *this += vec(T(1)); }                                                                  \
  vec& operator--() { return *this -= vec(T(1)); }

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  union { T data[2]; struct { T x, y; }; struct { T r, g; }; };
  METAL_HOST_VECTOR(2)
  constexpr vec(T a, T b) : data{a, b} {}
  METAL_HOST_SWIZZLES_2
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  union { T data[3]; struct { T x, y, z; }; struct { T r, g, b; }; };
  METAL_HOST_VECTOR(3)
  constexpr vec(T a, T b, T c) : data{a, b, c} {}
  vec(vec<T, 2> a, T c) : data{a.x, a.y, c} {}
  vec(T a, vec<T, 2> c) : data{a, c.x, c.y} {}
  METAL_HOST_SWIZZLES_3
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  union { T data[4]; struct { T x, y, z, w; }; struct { T r, g, b, a; }; };
  METAL_HOST_VECTOR(4)
  constexpr vec(T a, T b, T c, T d) : data{a, b, c, d} {}
  vec(vec<T, 2> a, vec<T, 2> b) : data{a.x, a.y, b.x, b.y} {}
  vec(vec<T, 3> a, T d) : data{a.x, a.y, a.z, d} {}
  vec(T a, vec<T, 3> d) : data{a, d.x, d.y, d.z} {}
  vec(vec<T, 2> a, T c, T d) : data{a.x, a.y, c, d} {}
  vec(T a, T b, vec<T, 2> c) : data{a, b, c.x, c.y} {}
  vec(T a, vec<T, 2> b, T d) : data{a, b.x, b.y, d} {}
  METAL_HOST_SWIZZLES_4
};

// Packed vectors: components without padding, aligned as one of them. They convert to vectors and back, and compute nothing.
template <class T, int N> struct packed_components;
template <class T> struct packed_components<T, 2> { union { T data[2]; struct { T x, y; }; }; };
template <class T> struct packed_components<T, 3> { union { T data[3]; struct { T x, y, z; }; }; };
template <class T> struct packed_components<T, 4> { union { T data[4]; struct { T x, y, z, w; }; }; };
template <class T, int N> struct packed_vec : packed_components<T, N> {
  using packed_components<T, N>::data;
  packed_vec() = default;
  packed_vec(vec<T, N> o) { for (int i = 0; i < N; i++) data[i] = o.data[i]; }
  template <class... A, enable_if_t<sizeof...(A) == N, int> = 0> packed_vec(A... a) {
    const T given[] = {T(a)...};
    for (int i = 0; i < N; i++) data[i] = given[i];
  }
  T& operator[](size_t i) { return data[METAL_HOST_COMPONENT(i, N)]; }
  const T& operator[](size_t i) const { return data[METAL_HOST_COMPONENT(i, N)]; }
  operator vec<T, N>() const { vec<T, N> r; for (int i = 0; i < N; i++) r.data[i] = data[i]; return r; }
};

#define METAL_HOST_NAMES(T) typedef vec<T, 2> T##2; typedef vec<T, 3> T##3; typedef vec<T, 4> T##4;
#define METAL_HOST_PACKED_NAMES(T) typedef packed_vec<T, 2> packed_##T##2; typedef packed_vec<T, 3> packed_##T##3; typedef packed_vec<T, 4> packed_##T##4;
METAL_HOST_NAMES(bool)
METAL_HOST_SCALARS(METAL_HOST_NAMES)
METAL_HOST_SCALARS(METAL_HOST_PACKED_NAMES)

// Matrices, by columns.
template <class T, int Columns, int Rows> struct matrix {
  vec<T, Rows> columns[Columns];
  matrix() = default;
  template <class S, if_arithmetic<S> = 0> explicit matrix(S s) {
    for (int c = 0; c < Columns; c++) for (int r = 0; r < Rows; r++) columns[c].data[r] = c == r ? T(s) : T(0);
  }
  template <class... A, enable_if_t<sizeof...(A) == Columns && Columns != 1, int> = 0> matrix(A... a) : columns{vec<T, Rows>(a)...} {}
  vec<T, Rows>& operator[](size_t i) { return columns[METAL_HOST_COMPONENT(i, Columns)]; }
  const vec<T, Rows>& operator[](size_t i) const { return columns[METAL_HOST_COMPONENT(i, Columns)]; }
  friend vec<T, Rows> operator*(const matrix& m, vec<T, Columns> x) {
    vec<T, Rows> r(T(0));
    for (int c = 0; c < Columns; c++) r += m.columns[c] * x.data[c];
    return r;
  }
  friend matrix operator*(const matrix& m, T s) { matrix r; for (int c = 0; c < Columns; c++) r.columns[c] = m.columns[c] * s; return r; }
  friend matrix operator+(const matrix& a, const matrix& b) { matrix r; for (int c = 0; c < Columns; c++) r.columns[c] = a.columns[c] + b.columns[c]; return r; }
};
#define METAL_HOST_MATRIX_NAMES(T)                                                                        \
  typedef matrix<T, 2, 2> T##2x2; typedef matrix<T, 2, 3> T##2x3; typedef matrix<T, 2, 4> T##2x4;         \
  typedef matrix<T, 3, 2> T##3x2; typedef matrix<T, 3, 3> T##3x3; typedef matrix<T, 3, 4> T##3x4;         \
  typedef matrix<T, 4, 2> T##4x2; typedef matrix<T, 4, 3> T##4x3; typedef matrix<T, 4, 4> T##4x4;
METAL_HOST_FLOATS(METAL_HOST_MATRIX_NAMES)

}  // namespace metal

template <class To, class From> inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the number of bits");
  To to;
  __builtin_memcpy((void*)&to, (const void*)&from, sizeof to);
  return to;
}
