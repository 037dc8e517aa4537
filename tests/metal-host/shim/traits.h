// The type traits that the headers and kernels want, so that nothing of a C++ library is needed (the lint has none).
#pragma once

typedef decltype(sizeof(0)) size_t;
typedef decltype((char*)0 - (char*)0) ptrdiff_t;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;

namespace metal {
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::ptrdiff_t;
using ::size_t;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;

template <class T, T V> struct integral_constant {
  static constexpr T value = V;
  typedef T value_type;
  constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;

template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;

template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;

template <class T> struct remove_const { typedef T type; };
template <class T> struct remove_const<const T> { typedef T type; };
template <class T> struct remove_volatile { typedef T type; };
template <class T> struct remove_volatile<volatile T> { typedef T type; };
template <class T> struct remove_cv : remove_volatile<typename remove_const<T>::type> {};
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> struct remove_reference { typedef T type; };
template <class T> struct remove_reference<T&> { typedef T type; };
template <class T> struct remove_reference<T&&> { typedef T type; };
template <class T> using remove_reference_t = typename remove_reference<T>::type;

// Of integers: which they are, and their twin of the other sign.
template <class T> struct integer : false_type {};
template <class S, class U> struct integer_pair : true_type { typedef S make_signed; typedef U make_unsigned; };
template <> struct integer<bool> : true_type {};
template <> struct integer<char> : integer_pair<char, unsigned char> {};
template <> struct integer<signed char> : integer_pair<signed char, unsigned char> {};
template <> struct integer<unsigned char> : integer_pair<char, unsigned char> {};
template <> struct integer<short> : integer_pair<short, unsigned short> {};
template <> struct integer<unsigned short> : integer_pair<short, unsigned short> {};
template <> struct integer<int> : integer_pair<int, unsigned int> {};
template <> struct integer<unsigned int> : integer_pair<int, unsigned int> {};
template <> struct integer<long> : integer_pair<long, unsigned long> {};
template <> struct integer<unsigned long> : integer_pair<long, unsigned long> {};
template <class T> struct is_integral : bool_constant<integer<remove_cv_t<T>>::value> {};
template <class T> constexpr bool is_integral_v = is_integral<T>::value;
template <class T> using make_signed_t = typename integer<T>::make_signed;
template <class T> using make_unsigned_t = typename integer<T>::make_unsigned;
template <class T> struct is_signed : bool_constant<(T(-1) < T(0))> {};
template <class T> constexpr bool is_signed_v = is_signed<T>::value;
template <class T> struct is_unsigned : bool_constant<!(T(-1) < T(0))> {};
}  // namespace metal
