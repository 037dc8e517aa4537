// Atomics. Threads of the emulator switch only where they wait, so that a plain access is already atomic; what is left to do
// is to tell the engine.
#pragma once
#include "simd.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T> struct atomic { T value; };
#ifdef METAL_HOST_LINT
// The lint's dialect has types of these names.
#define atomic_int metal_atomic_int
#define atomic_uint metal_atomic_uint
#define atomic_float metal_atomic_float
#define atomic_bool metal_atomic_bool
#endif
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

namespace detail {
template <class T> struct same { typedef T type; };
// Not inlined: it returns to the line that the engine is to tell.
template <class A> __attribute__((noinline)) static void* announce(A* object, ::metal_host::Access access = ::metal_host::ATOMIC) {
  void* address = (void*)object;
  ::metal_host::engine->access(address, sizeof(*object), access, __builtin_return_address(0));
  return address;
}
// Not instrumented: copies through the engine's eyes would count as plain accesses.
__attribute__((no_sanitize("kernel-address"), noinline)) static void peek(void* to, const void* from, size_t bytes) {
  const volatile unsigned char* source = (const volatile unsigned char*)from;
  volatile unsigned char* target = (volatile unsigned char*)to;
  for (size_t i = 0; i < bytes; i++) target[i] = source[i];
}
template <class T, class A, class F> inline T update(A* object, F next) {
  void* address = announce(object);
  T old;
  peek(&old, address, sizeof old);
  T now = next(old);
  peek(address, &now, sizeof now);
  return old;
}
}  // namespace detail

// One overload per address space that holds atomics. Floats are atomic in device memory only.
#define METAL_HOST_ATOMICS(SPACE, FLOATS)                                                                                                   \
  METAL_HOST_FETCH(SPACE, FLOATS, true, add, old + operand) METAL_HOST_FETCH(SPACE, FLOATS, true, sub, old - operand)                       \
  METAL_HOST_FETCH(SPACE, FLOATS, false, max, old < operand ? operand : old) METAL_HOST_FETCH(SPACE, FLOATS, false, min, operand < old ? operand : old) \
  METAL_HOST_FETCH(SPACE, FLOATS, false, or, old | operand) METAL_HOST_FETCH(SPACE, FLOATS, false, and, old & operand)                      \
  METAL_HOST_FETCH(SPACE, FLOATS, false, xor, old ^ operand)                                                                                \
  template <class T> inline T atomic_load_explicit(const volatile SPACE atomic<T>* object, memory_order) {                                  \
    void* address = detail::announce(object);                                                                                               \
    T value;                                                                                                                                \
    detail::peek(&value, address, sizeof value);                                                                                            \
    return value;                                                                                                                           \
  }                                                                                                                                         \
  template <class T> inline T atomic_exchange_explicit(volatile SPACE atomic<T>* object, typename detail::same<T>::type value, memory_order) { \
    return detail::update<T>(object, [=](T) { return value; });                                                                             \
  }                                                                                                                                         \
  template <class T> inline void atomic_store_explicit(volatile SPACE atomic<T>* object, typename detail::same<T>::type value, memory_order) { \
    detail::peek(detail::announce(object, ::metal_host::ATOMIC_STORE), &value, sizeof value);                                                                           \
  }                                                                                                                                         \
  template <class T> inline bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* object, typename detail::same<T>::type* expected, typename detail::same<T>::type desired, memory_order, memory_order) { \
    const T old = detail::update<T>(object, [=](T now) { return __builtin_memcmp(&now, expected, sizeof now) == 0 ? desired : now; });      \
    const bool swapped = __builtin_memcmp(&old, expected, sizeof old) == 0;                                                                 \
    *expected = old;                                                                                                                        \
    return swapped;                                                                                                                         \
  }
#define METAL_HOST_FETCH(SPACE, FLOATS, ON_FLOATS, name, expression)                                                                        \
  template <class T> inline T atomic_fetch_##name##_explicit(volatile SPACE atomic<T>* object, typename detail::same<T>::type operand, memory_order) { \
    static_assert(!is_floating_point_v<T> || (FLOATS && ON_FLOATS), "Metal has no such atomic operation on floats");                        \
    return detail::update<T>(object, [=](T old) { return T(expression); });                                                                 \
  }
#ifdef METAL_HOST_LINT
METAL_HOST_ATOMICS(__global, true)
METAL_HOST_ATOMICS(__local, false)
#else
METAL_HOST_ATOMICS(, true)
#endif

}  // namespace metal
