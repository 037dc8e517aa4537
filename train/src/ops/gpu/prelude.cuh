// What the kernels' language calls things, for NVRTC. Compiled in front of every translated source (see translate.rs).
//
// NVRTC compiles every function for the device (--device-as-default-execution-space) and without contracting a·b + c
// (--fmad=false), so that values on a grid are the same bits as on the CPU. A simdgroup is a warp: both have 32 threads.

typedef unsigned int uint;
typedef unsigned long long ulong;
typedef unsigned short ushort;

#define kernel
#define device
#define constant const
#define threadgroup

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

namespace precise {
inline float exp(float x) { return ::expf(x); }
inline float log(float x) { return ::logf(x); }
inline float sqrt(float x) { return __fsqrt_rn(x); }
inline float divide(float a, float b) { return __fdiv_rn(a, b); }
}  // namespace precise

template <typename To, typename From>
inline To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type changes no bits");
  union {
    From from;
    To to;
  } bits = {value};
  return bits.to;
}

// NVRTC has the header with CUDA's own type only where a toolkit is installed. This one has the same bits, and rounds as it does: to the
// nearest, ties to even; a NaN stays one.
struct bfloat {
  ushort bits;
  bfloat() = default;
  explicit bfloat(float value) {
    uint wide = as_type<uint>(value);
    uint rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    bits = ushort(value == value ? rounded : (wide >> 16) | 0x40u);
  }
  explicit operator float() const { return as_type<float>(uint(bits) << 16); }
};

inline uint clz(ulong value) { return uint(__clzll((long long)value)); }

enum class mem_flags { mem_threadgroup, mem_device };

inline void threadgroup_barrier(mem_flags) { __syncthreads(); }

// Every lane of the simdgroup calls these, as on Metal.
constexpr uint ALL_LANES = 0xffffffffu;

template <typename T>
inline T simd_shuffle_xor(T value, ushort mask) {
  return __shfl_xor_sync(ALL_LANES, value, mask);
}

inline float simd_sum(float value) {
  for (uint step = 16; step > 0; step /= 2) value += simd_shuffle_xor(value, step);
  return value;
}

template <typename T>
inline T simd_max(T value) {
  for (uint step = 16; step > 0; step /= 2) {
    T other = simd_shuffle_xor(value, step);
    value = other > value ? other : value;
  }
  return value;
}

template <typename T>
inline T simd_min(T value) {
  for (uint step = 16; step > 0; step /= 2) {
    T other = simd_shuffle_xor(value, step);
    value = other < value ? other : value;
  }
  return value;
}

inline bool simd_any(bool value) { return __any_sync(ALL_LANES, value); }
