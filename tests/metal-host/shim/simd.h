// Barriers, and what the lanes of a simdgroup do together: all of them meet at an exchange, then each computes its own answer.
#pragma once
#include "math.h"

namespace metal_host {

// Filled in where it is a default argument: at the caller's line.
inline Site here(Text operation, Text file, int line, int column) {
  return Site{operation, file, uint32_t(line), uint32_t(column)};
}
#define METAL_HOST_SITE(operation) \
  ::metal_host::Site site = ::metal_host::here(operation, __builtin_FILE(), __builtin_LINE(), __builtin_COLUMN())

template <class T> struct Lanes {
  Exchange met;
  T operator[](unsigned lane) const { T value; __builtin_memcpy((void*)&value, met.slots + 64 * lane, sizeof value); return value; }
  bool active(unsigned lane) const { return lane < 32 && ((met.active >> lane) & 1); }
  unsigned me() const { return met.lane; }
  // The value of another lane; one that isn't there is undefined.
  T of(unsigned lane, const Site& site) const {
    if (active(lane)) return (*this)[lane];
    engine->undefined(site.operation, site.file, site.line, nullptr);
    T nothing;
    __builtin_memset((void*)&nothing, 0xff, sizeof nothing);
    return nothing;
  }
};
template <class T> inline Lanes<T> exchange(T value, const Site& site) {
  static_assert(sizeof(T) <= 64, "a lane brings at most 64 bytes");
  Lanes<T> lanes;
  engine->exchange(&value, sizeof value, &site, &lanes.met);
  return lanes;
}

// A tree over the active lanes, taken in the order that the engine gives.
template <class T, class F> inline T reduce(T value, const Site& site, F combine) {
  const Lanes<T> lanes = exchange(value, site);
  T tree[32];
  bool filled[32];
  for (int i = 0; i < 32; i++) {
    const unsigned lane = lanes.met.order[i];
    filled[i] = lanes.active(lane);
    if (filled[i]) tree[i] = lanes[lane];
  }
  for (int stride = 16; stride; stride /= 2)
    for (int i = 0; i < stride; i++) {
      if (!filled[i + stride]) continue;
      tree[i] = filled[i] ? combine(tree[i], tree[i + stride]) : tree[i + stride];
      filled[i] = true;
    }
  return tree[0];
}
template <class T, class F> inline T scan(T value, T start, bool inclusive, const Site& site, F combine) {
  const Lanes<T> lanes = exchange(value, site);
  T result = start;
  for (unsigned i = 0; i < lanes.me() + inclusive; i++)
    if (lanes.active(i)) result = combine(result, lanes[i]);
  return result;
}

// What may be moved between lanes: scalars of at most 32 bits (and bool), and their vectors.
template <class T> struct movable : metal::integral_constant<bool, metal::is_arithmetic<typename metal::vec_traits<T>::element>::value && sizeof(typename metal::vec_traits<T>::element) <= 4> {};
}  // namespace metal_host

namespace metal {

enum class mem_flags : unsigned { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(unsigned(a) | unsigned(b)); }
inline void threadgroup_barrier(mem_flags flags, METAL_HOST_SITE("threadgroup_barrier")) { ::metal_host::engine->threadgroup_barrier(unsigned(flags), &site); }
inline void simdgroup_barrier(mem_flags flags, METAL_HOST_SITE("simdgroup_barrier")) { ::metal_host::engine->simdgroup_barrier(unsigned(flags), &site); }

#define METAL_HOST_MOVABLE class T, enable_if_t<::metal_host::movable<T>::value, int> = 0

#define METAL_HOST_REDUCTION(name, expression) \
  template <METAL_HOST_MOVABLE> inline T name(T x, METAL_HOST_SITE(#name)) { return ::metal_host::reduce(x, site, [](T a, T b) -> T { return T(expression); }); }
METAL_HOST_REDUCTION(simd_sum, a + b)
METAL_HOST_REDUCTION(simd_product, a * b)
METAL_HOST_REDUCTION(simd_min, min(a, b))
METAL_HOST_REDUCTION(simd_max, max(a, b))
METAL_HOST_REDUCTION(simd_or, a | b)
METAL_HOST_REDUCTION(simd_and, a & b)
METAL_HOST_REDUCTION(simd_xor, a ^ b)
#undef METAL_HOST_REDUCTION

#define METAL_HOST_SCAN(name, start, inclusive, expression) \
  template <METAL_HOST_MOVABLE> inline T name(T x, METAL_HOST_SITE(#name)) { return ::metal_host::scan(x, T(start), inclusive, site, [](T a, T b) -> T { return T(expression); }); }
METAL_HOST_SCAN(simd_prefix_inclusive_sum, 0, true, a + b)
METAL_HOST_SCAN(simd_prefix_exclusive_sum, 0, false, a + b)
METAL_HOST_SCAN(simd_prefix_inclusive_product, 1, true, a * b)
METAL_HOST_SCAN(simd_prefix_exclusive_product, 1, false, a * b)
#undef METAL_HOST_SCAN

// A value of the lane that `source` names; `me` is the caller's lane, `by` the argument.
#define METAL_HOST_MOVE(name, source)                                        \
  template <METAL_HOST_MOVABLE> inline T name(T x, ushort by, METAL_HOST_SITE(#name)) { \
    const auto lanes = ::metal_host::exchange(x, site);                      \
    const unsigned me = lanes.me();                                          \
    (void)me;                                                                \
    return lanes.of(source, site);                                           \
  }
METAL_HOST_MOVE(simd_shuffle, by)
METAL_HOST_MOVE(simd_broadcast, by)
METAL_HOST_MOVE(simd_shuffle_xor, me ^ by)
METAL_HOST_MOVE(simd_shuffle_rotate_down, (me + by) & 31)
METAL_HOST_MOVE(simd_shuffle_rotate_up, (me - by) & 31)
METAL_HOST_MOVE(quad_shuffle, (me & ~3u) | (by & 3u))
METAL_HOST_MOVE(quad_broadcast, (me & ~3u) | (by & 3u))
METAL_HOST_MOVE(quad_shuffle_xor, (me & ~3u) | ((me ^ by) & 3u))
#undef METAL_HOST_MOVE

// Shifted past the edge, a lane gets what Metal leaves undefined; a reduction never uses it, so it is not reported: the lane
// gets its own value back, negated bit by bit.
#define METAL_HOST_SHIFT(name, source, inside)                               \
  template <METAL_HOST_MOVABLE> inline T name(T x, ushort by, METAL_HOST_SITE(#name)) { \
    const auto lanes = ::metal_host::exchange(x, site);                      \
    const int me = int(lanes.me()), from = source;                           \
    if (inside) return lanes.of(unsigned(from), site);                       \
    unsigned char bytes[sizeof(T)];                                          \
    __builtin_memcpy(bytes, &x, sizeof x);                                   \
    for (unsigned char& byte : bytes) byte = (unsigned char)~byte;           \
    __builtin_memcpy((void*)&x, bytes, sizeof x);                            \
    return x;                                                                \
  }
METAL_HOST_SHIFT(simd_shuffle_down, me + by, from < 32)
METAL_HOST_SHIFT(simd_shuffle_up, me - by, from >= 0)
METAL_HOST_SHIFT(quad_shuffle_down, me + by, (from & ~3) == (me & ~3))
METAL_HOST_SHIFT(quad_shuffle_up, me - by, (from & ~3) == (me & ~3))
#undef METAL_HOST_SHIFT

template <METAL_HOST_MOVABLE> inline T simd_broadcast_first(T x, METAL_HOST_SITE("simd_broadcast_first")) {
  const auto lanes = ::metal_host::exchange(x, site);
  return lanes[unsigned(__builtin_ctz(lanes.met.active))];
}
template <METAL_HOST_MOVABLE> inline T simd_shuffle_and_fill_down(T x, T filling, ushort by, METAL_HOST_SITE("simd_shuffle_and_fill_down")) {
  struct Both { T x, filling; };
  const auto lanes = ::metal_host::exchange(Both{x, filling}, site);
  const unsigned from = lanes.me() + by;
  return from < 32 ? lanes.of(from, site).x : lanes.of(from - 32, site).filling;
}
template <METAL_HOST_MOVABLE> inline T simd_shuffle_and_fill_up(T x, T filling, ushort by, METAL_HOST_SITE("simd_shuffle_and_fill_up")) {
  struct Both { T x, filling; };
  const auto lanes = ::metal_host::exchange(Both{x, filling}, site);
  const int from = int(lanes.me()) - by;
  return from >= 0 ? lanes.of(unsigned(from), site).x : lanes.of(unsigned(from + 32), site).filling;
}

struct simd_vote {
  uint64_t bits;
  explicit operator uint64_t() const { return bits; }
};
inline simd_vote simd_ballot(bool b, METAL_HOST_SITE("simd_ballot")) {
  const auto lanes = ::metal_host::exchange(b, site);
  simd_vote vote{0};
  for (unsigned i = 0; i < 32; i++) if (lanes.active(i) && lanes[i]) vote.bits |= 1ul << i;
  return vote;
}
inline bool simd_all(bool b, METAL_HOST_SITE("simd_all")) {
  const auto lanes = ::metal_host::exchange(b, site);
  for (unsigned i = 0; i < 32; i++) if (lanes.active(i) && !lanes[i]) return false;
  return true;
}
inline bool simd_any(bool b, METAL_HOST_SITE("simd_any")) {
  const auto lanes = ::metal_host::exchange(b, site);
  for (unsigned i = 0; i < 32; i++) if (lanes.active(i) && lanes[i]) return true;
  return false;
}
inline bool simd_is_first(METAL_HOST_SITE("simd_is_first")) {
  const auto lanes = ::metal_host::exchange(true, site);
  return lanes.me() == unsigned(__builtin_ctz(lanes.met.active));
}

#define METAL_HOST_QUAD(name, expression)                                    \
  template <METAL_HOST_MOVABLE> inline T name(T x, METAL_HOST_SITE(#name)) { \
    const auto lanes = ::metal_host::exchange(x, site);                      \
    const unsigned first = lanes.me() & ~3u;                                 \
    const auto combine = [](T a, T b) -> T { return T(expression); };        \
    return combine(combine(lanes.of(first, site), lanes.of(first + 1, site)), combine(lanes.of(first + 2, site), lanes.of(first + 3, site))); \
  }
METAL_HOST_QUAD(quad_sum, a + b)
METAL_HOST_QUAD(quad_min, min(a, b))
METAL_HOST_QUAD(quad_max, max(a, b))
#undef METAL_HOST_QUAD

}  // namespace metal
