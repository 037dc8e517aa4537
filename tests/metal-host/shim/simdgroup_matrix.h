// 8×8 matrices spread over a simdgroup, two neighbours of a row in each lane. Products accumulate in float.
#pragma once
#include "simd.h"

namespace metal_host {
// The place of a lane's first element, as seen on Apple GPUs (and relied on by MLX).
inline unsigned fragment_row(unsigned lane) { return ((lane >> 2) & 4) + ((lane >> 1) & 3); }
inline unsigned fragment_column(unsigned lane) { return ((lane >> 2) & 2) * 2 + (lane & 1) * 2; }
// The lane that holds an element.
inline unsigned fragment_lane(unsigned row, unsigned column) { return ((row & 4) << 2) | ((column & 4) << 1) | ((row & 3) << 1) | ((column >> 1) & 1); }

template <class P, class F> inline void each_element(P* start, ulong stride, metal::ulong2 origin, bool transpose, F visit, const Site& site) {
#ifdef METAL_HOST_CHECKED
  // All lanes have to come, with the same place.
  struct Place { const void* start; ulong stride, x, y; bool transpose; };
  const Lanes<Place> lanes = exchange(Place{(const void*)start, stride, origin.x, origin.y, transpose}, site);
  const Place first = lanes.of(0, site);
  if (first.start != (const void*)start || first.stride != stride || first.x != origin.x || first.y != origin.y || first.transpose != transpose)
    engine->undefined("a simdgroup matrix whose lanes name different places", site.file, site.line, nullptr);
#endif
  const unsigned lane = engine->lane();
  for (unsigned k = 0; k < 2; k++) {
    const ulong row = fragment_row(lane), column = fragment_column(lane) + k;
    visit(start[(origin.y + (transpose ? column : row)) * stride + origin.x + (transpose ? row : column)], k);
  }
}
}  // namespace metal_host

namespace metal {

template <class T, int Columns = 8, int Rows = 8> struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "simdgroup matrices are 8 by 8");
  typedef vec<T, 2> storage_type;
  storage_type elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const unsigned lane = ::metal_host::engine->lane();
    const unsigned row = ::metal_host::fragment_row(lane), column = ::metal_host::fragment_column(lane);
    elements = storage_type(row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0));
  }
  storage_type& thread_elements() { return elements; }
  const storage_type& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;

template <class T, int Columns = 8, int Rows = 8> inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> m;
  m.elements = vec<T, 2>(value, value);
  return m;
}
template <class T, int Columns = 8, int Rows = 8> inline simdgroup_matrix<T, Columns, Rows> make_diagonal_simdgroup_matrix(T value) { return simdgroup_matrix<T, Columns, Rows>(value); }

// `stride` and `origin` count elements; `origin` is (column, row).
template <class T, class P>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, P* start, ulong stride = 8, ulong2 origin = ulong2(0), bool transpose = false, METAL_HOST_SITE("simdgroup_load")) {
  static_assert(sizeof(P) == sizeof(T), "a simdgroup matrix is loaded from its own type");
  ::metal_host::each_element(start, stride, origin, transpose, [&](const auto& from, unsigned k) { m.elements.data[k] = from; }, site);
}
template <class T, class P>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, P* start, ulong stride = 8, ulong2 origin = ulong2(0), bool transpose = false, METAL_HOST_SITE("simdgroup_store")) {
  static_assert(sizeof(P) == sizeof(T), "a simdgroup matrix is stored as its own type");
  ::metal_host::each_element(start, stride, origin, transpose, [&](auto& to, unsigned k) { to = m.elements.data[k]; }, site);
}

// d = a·b + c
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c,
                                          METAL_HOST_SITE("simdgroup_multiply_accumulate")) {
  struct Factors { vec<A, 2> a; vec<B, 2> b; };
  const auto lanes = ::metal_host::exchange(Factors{a.elements, b.elements}, site);
  const unsigned row = ::metal_host::fragment_row(lanes.me()), column = ::metal_host::fragment_column(lanes.me());
  float sums[2] = {float(c.elements.x), float(c.elements.y)};
  for (unsigned i = 0, taken = 0; taken < 8; i++) {
    const unsigned k = lanes.met.order[i];
    if (k >= 8) continue;
    taken++;
    const float left = float(lanes.of(::metal_host::fragment_lane(row, k), site).a.data[k & 1]);
    const Factors right = lanes.of(::metal_host::fragment_lane(k, column), site);
    for (int j = 0; j < 2; j++) sums[j] += left * float(right.b.data[j]);
  }
  d.elements = vec<D, 2>(D(sums[0]), D(sums[1]));
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b, METAL_HOST_SITE("simdgroup_multiply")) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}

}  // namespace metal
