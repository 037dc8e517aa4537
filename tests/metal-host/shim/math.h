// Functions of numbers: as many overloads as Metal has, so that what is ambiguous there is ambiguous here.
//
// Half precision is computed in float and rounded once. Accuracy is the C library's, not a GPU's.
#pragma once
#include "vector.h"

namespace metal {

// A function of floats, of halves, and of their vectors, component by component.
#define METAL_HOST_UNARY(name, expression)                                            \
  inline float name(float x) { METAL_HOST_PRAGMA return expression; }                 \
  inline half name(half h) { METAL_HOST_PRAGMA float x = h; return half(expression); } \
  template <class T, int N> inline vec<T, N> name(vec<T, N> a) { for (int i = 0; i < N; i++) a.data[i] = name(a.data[i]); return a; }
#define METAL_HOST_BINARY(name, expression)                                                             \
  inline float name(float x, float y) { METAL_HOST_PRAGMA return expression; }                          \
  inline half name(half a, half b) { METAL_HOST_PRAGMA float x = a, y = b; return half(expression); }   \
  template <class T, int N> inline vec<T, N> name(vec<T, N> a, vec<T, N> b) { for (int i = 0; i < N; i++) a.data[i] = name(a.data[i], b.data[i]); return a; }

#define METAL_HOST_FUNCTIONS                                                                                           \
  METAL_HOST_UNARY(exp, __builtin_expf(x)) METAL_HOST_UNARY(exp2, __builtin_exp2f(x))                                  \
  METAL_HOST_UNARY(exp10, __builtin_powf(10.f, x))                                                                     \
  METAL_HOST_UNARY(log, __builtin_logf(x)) METAL_HOST_UNARY(log2, __builtin_log2f(x))                                  \
  METAL_HOST_UNARY(log10, __builtin_log10f(x))                                                                         \
  METAL_HOST_UNARY(sqrt, __builtin_sqrtf(x)) METAL_HOST_UNARY(rsqrt, 1.f / __builtin_sqrtf(x))                         \
  METAL_HOST_UNARY(sin, __builtin_sinf(x)) METAL_HOST_UNARY(cos, __builtin_cosf(x))                                    \
  METAL_HOST_UNARY(tan, __builtin_tanf(x)) METAL_HOST_UNARY(tanh, __builtin_tanhf(x))                                  \
  METAL_HOST_UNARY(sinh, __builtin_sinhf(x)) METAL_HOST_UNARY(cosh, __builtin_coshf(x))                                \
  METAL_HOST_UNARY(asin, __builtin_asinf(x)) METAL_HOST_UNARY(acos, __builtin_acosf(x))                                \
  METAL_HOST_UNARY(atan, __builtin_atanf(x))                                                                           \
  METAL_HOST_UNARY(floor, __builtin_floorf(x)) METAL_HOST_UNARY(ceil, __builtin_ceilf(x))                              \
  METAL_HOST_UNARY(trunc, __builtin_truncf(x)) METAL_HOST_UNARY(rint, __builtin_rintf(x))                              \
  METAL_HOST_UNARY(round, __builtin_roundf(x))                                                                         \
  METAL_HOST_UNARY(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))                                    \
  METAL_HOST_UNARY(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.f), 1.f))                                            \
  METAL_HOST_UNARY(fabs, __builtin_fabsf(x)) METAL_HOST_UNARY(abs, __builtin_fabsf(x))                                 \
  METAL_HOST_UNARY(sign, x > 0 ? 1.f : (x < 0 ? -1.f : (x == 0 ? x : 0.f)))                                            \
  METAL_HOST_BINARY(pow, __builtin_powf(x, y)) METAL_HOST_BINARY(powr, __builtin_powf(x, y))                           \
  METAL_HOST_BINARY(fmod, __builtin_fmodf(x, y)) METAL_HOST_BINARY(atan2, __builtin_atan2f(x, y))                      \
  METAL_HOST_BINARY(copysign, __builtin_copysignf(x, y)) METAL_HOST_BINARY(divide, x / y)                              \
  METAL_HOST_BINARY(fdim, __builtin_fdimf(x, y)) METAL_HOST_BINARY(step, y < x ? 0.f : 1.f)                            \
  METAL_HOST_BINARY(fmin, __builtin_fminf(x, y)) METAL_HOST_BINARY(fmax, __builtin_fmaxf(x, y))                        \
  METAL_HOST_BINARY(min, __builtin_fminf(x, y)) METAL_HOST_BINARY(max, __builtin_fmaxf(x, y))

#define METAL_HOST_PRAGMA
METAL_HOST_FUNCTIONS
namespace fast { METAL_HOST_FUNCTIONS }
#undef METAL_HOST_PRAGMA

// What is asked for precisely stays so in the build with fast math.
#ifdef METAL_HOST_FAST
#define METAL_HOST_PRAGMA _Pragma("clang fp contract(off) reassociate(off) reciprocal(off)")
#else
#define METAL_HOST_PRAGMA
#endif
namespace precise { METAL_HOST_FUNCTIONS }
#undef METAL_HOST_PRAGMA

inline float sincos(float x, float& cosine) { cosine = __builtin_cosf(x); return __builtin_sinf(x); }
inline float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
inline half ldexp(half x, int k) { return half(__builtin_ldexpf(x, k)); }
inline float frexp(float x, int& exponent) { return __builtin_frexpf(x, &exponent); }

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(double(a) * double(b) + double(c)); }
template <class T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; i++) a.data[i] = fma(a.data[i], b.data[i], c.data[i]);
  return a;
}

#define METAL_HOST_CLASSIFY(name, builtin)                                  \
  inline bool name(float x) { return builtin(x); }                          \
  inline bool name(half x) { return builtin(float(x)); }                    \
  template <class T, int N> inline vec<bool, N> name(vec<T, N> a) {         \
    vec<bool, N> r; for (int i = 0; i < N; i++) r.data[i] = name(a.data[i]); return r; }
METAL_HOST_CLASSIFY(isnan, __builtin_isnan)
METAL_HOST_CLASSIFY(isinf, __builtin_isinf)
METAL_HOST_CLASSIFY(isfinite, __builtin_isfinite)
METAL_HOST_CLASSIFY(signbit, __builtin_signbit)
#undef METAL_HOST_CLASSIFY

// Integers.
#define METAL_HOST_INTEGER(T)                                                                                   \
  inline constexpr T min(T a, T b) { return b < a ? b : a; }                                                    \
  inline constexpr T max(T a, T b) { return a < b ? b : a; }                                                    \
  inline constexpr make_unsigned_t<T> abs(T a) { return a < T(0) ? make_unsigned_t<T>(0) - make_unsigned_t<T>(a) : make_unsigned_t<T>(a); } \
  inline constexpr make_unsigned_t<T> absdiff(T a, T b) { return a > b ? make_unsigned_t<T>(a) - make_unsigned_t<T>(b) : make_unsigned_t<T>(b) - make_unsigned_t<T>(a); } \
  inline T popcount(T a) { return T(__builtin_popcountl((unsigned long)make_unsigned_t<T>(a))); }               \
  inline T ctz(T a) { return a == T(0) ? T(8 * sizeof(T)) : T(__builtin_ctzl((unsigned long)make_unsigned_t<T>(a))); } \
  inline T clz(T a) { return a == T(0) ? T(8 * sizeof(T)) : T(__builtin_clzl((unsigned long)make_unsigned_t<T>(a)) - (64 - 8 * int(sizeof(T)))); } \
  inline T reverse_bits(T a) { make_unsigned_t<T> r = 0; for (unsigned i = 0; i < 8 * sizeof(T); i++) if ((a >> i) & 1) r |= make_unsigned_t<T>(1) << (8 * sizeof(T) - 1 - i); return T(r); } \
  inline T rotate(T a, T by) { typedef make_unsigned_t<T> U; const unsigned bits = 8 * sizeof(T), s = unsigned(U(by) % bits); return s ? T(U(U(a) << s) | U(U(a) >> (bits - s))) : a; } \
  inline T extract_bits(T a, uint offset, uint bits) { typedef make_unsigned_t<T> U; if (!bits) return 0; const unsigned left = 8 * sizeof(T) - bits; const U high = U(U(U(a) >> offset) << left); return T(T(high) >> left); } \
  inline T insert_bits(T base, T insert, uint offset, uint bits) { typedef make_unsigned_t<T> U; const U mask = U((bits >= 8 * sizeof(T) ? ~U(0) : U((U(1) << bits) - 1)) << offset); return T((U(base) & U(~mask)) | (U(U(insert) << offset) & mask)); }
METAL_HOST_INTEGERS(METAL_HOST_INTEGER)
#undef METAL_HOST_INTEGER
inline int mulhi(int a, int b) { return int((long(a) * b) >> 32); }
inline uint mulhi(uint a, uint b) { return uint((ulong(a) * b) >> 32); }
inline int mul24(int a, int b) { return a * b; }
inline uint mul24(uint a, uint b) { return a * b; }
inline int mad24(int a, int b, int c) { return a * b + c; }
inline uint mad24(uint a, uint b, uint c) { return a * b + c; }
template <class T, int N> inline vec<T, N> popcount(vec<T, N> a) { for (int i = 0; i < N; i++) a.data[i] = popcount(a.data[i]); return a; }

// Every scalar type.
#define METAL_HOST_SCALAR(T)                                                                  \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }                       \
  inline T select(T a, T b, bool second) { return second ? b : a; }
METAL_HOST_SCALARS(METAL_HOST_SCALAR)
#undef METAL_HOST_SCALAR
template <class T, int N, class S, if_arithmetic<S> = 0> inline vec<T, N> min(vec<T, N> a, S s) { return min(a, vec<T, N>(s)); }
template <class T, int N, class S, if_arithmetic<S> = 0> inline vec<T, N> max(vec<T, N> a, S s) { return max(a, vec<T, N>(s)); }
template <class T, int N> inline vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) { return min(max(x, low), high); }
template <class T, int N, class S, if_arithmetic<S> = 0> inline vec<T, N> clamp(vec<T, N> x, S low, S high) { return min(max(x, vec<T, N>(low)), vec<T, N>(high)); }
template <class T, int N> inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> second) { for (int i = 0; i < N; i++) if (second.data[i]) a.data[i] = b.data[i]; return a; }
inline float mix(float a, float b, float t) { return a + (b - a) * t; }
inline half mix(half a, half b, half t) { return half(a + (b - a) * t); }
template <class T, int N> inline vec<T, N> mix(vec<T, N> a, vec<T, N> b, vec<T, N> t) { return a + (b - a) * t; }
template <class T, int N> inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a.data[0] * b.data[0];
  for (int i = 1; i < N; i++) sum = T(sum + a.data[i] * b.data[i]);
  return sum;
}
template <class T, int N> inline T length(vec<T, N> a) { return sqrt(dot(a, a)); }
inline bool any(bool b) { return b; }
inline bool all(bool b) { return b; }
template <int N> inline bool any(vec<bool, N> a) { for (int i = 0; i < N; i++) if (a.data[i]) return true; return false; }
template <int N> inline bool all(vec<bool, N> a) { for (int i = 0; i < N; i++) if (!a.data[i]) return false; return true; }

}  // namespace metal
