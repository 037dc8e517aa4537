// Scalar types, traits and limits. No vector, no function of the standard library.
#pragma once
#include "traits.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
#ifdef METAL_HOST_LINT
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#pragma OPENCL EXTENSION __cl_clang_variadic_functions : enable
#else
typedef _Float16 half;
#endif

// Only what memory is made of: Metal converts it by itself and has arithmetic on it, here each conversion has to be spelled, so that a
// kernel says where it rounds. Rounds to the nearest, ties to even; a NaN stays one.
struct bfloat {
  ushort bits;
  bfloat() = default;
  explicit bfloat(float value) {
    uint wide = __builtin_bit_cast(uint, value);
    uint rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    // By its bits: fast math takes every number to equal itself.
    bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = ushort(is_nan ? (wide >> 16) | 0x40u : rounded);
  }
  explicit operator float() const { return __builtin_bit_cast(float, uint(bits) << 16); }
};

// Every scalar type that has vectors, and those on which arithmetic is done.
#define METAL_HOST_INTEGERS(X) X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong)
#define METAL_HOST_FLOATS(X) X(half) X(float)
#define METAL_HOST_SCALARS(X) METAL_HOST_INTEGERS(X) METAL_HOST_FLOATS(X)

namespace metal {
template <class T> struct is_floating_point : integral_constant<bool, is_same_v<remove_cv_t<T>, float> || is_same_v<remove_cv_t<T>, half>> {};
template <class A> constexpr bool is_floating_point_v = is_floating_point<A>::value;
template <class T>
struct is_arithmetic : integral_constant<bool, is_integral_v<T> || is_floating_point_v<T> || __is_enum(T)> {};

template <class T> struct numeric_limits;
#define METAL_HOST_LIMITS(T, LOW, HIGH)              \
  template <> struct numeric_limits<T> {             \
    static constexpr T lowest() { return T(LOW); }   \
    static constexpr T min() { return T(LOW); }      \
    static constexpr T max() { return T(HIGH); }     \
  };
METAL_HOST_LIMITS(char, -128, 127)
METAL_HOST_LIMITS(uchar, 0, 255)
METAL_HOST_LIMITS(short, -32768, 32767)
METAL_HOST_LIMITS(ushort, 0, 65535)
METAL_HOST_LIMITS(int, -2147483647 - 1, 2147483647)
METAL_HOST_LIMITS(uint, 0, 4294967295u)
METAL_HOST_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
METAL_HOST_LIMITS(ulong, 0, 18446744073709551615ul)
#undef METAL_HOST_LIMITS
#define METAL_HOST_FLOAT_LIMITS(T, SMALLEST, HIGH, EPSILON)        \
  template <> struct numeric_limits<T> {                           \
    static constexpr T lowest() { return T(-(HIGH)); }             \
    static constexpr T min() { return T(SMALLEST); }               \
    static constexpr T max() { return T(HIGH); }                   \
    static constexpr T epsilon() { return T(EPSILON); }            \
    static constexpr T infinity() { return T(__builtin_inff()); }  \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); } \
  };
METAL_HOST_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.f, 0.0009765625f)
METAL_HOST_FLOAT_LIMITS(float, __FLT_MIN__, __FLT_MAX__, __FLT_EPSILON__)
#undef METAL_HOST_FLOAT_LIMITS
}  // namespace metal

inline constexpr half operator""h(long double x) { return half(x); }

#define M_E_F 2.71828182845904523536f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_LN2_F 0.69314718055994530942f
#define M_LOG2E_F 1.44269504088896340736f
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HALF_MAX (half(65504.f))
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define MAXFLOAT __FLT_MAX__
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define UCHAR_MAX 255
#define USHRT_MAX 65535
