// Vectors of the instruction set that this file is compiled for. Everything that rounds is spelled
// out (no contraction), so that every path that computes a number computes the same bits.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace chumoku::CHUMOKU_ISA {

// Bytes of a vector: what the instruction set has, unless the build asks for another width. Wide
// vectors without instructions of their own are worked on in halves, and give the same bits.
#if !defined(CHUMOKU_BYTES)
#if defined(__AVX512F__)
#define CHUMOKU_BYTES 64
#elif defined(__AVX2__)
#define CHUMOKU_BYTES 32
#else
#define CHUMOKU_BYTES 16
#endif
#endif
constexpr int kBytes = CHUMOKU_BYTES;

typedef float F32 __attribute__((vector_size(kBytes)));
typedef double F64 __attribute__((vector_size(kBytes)));
typedef int32_t I32 __attribute__((vector_size(kBytes)));
typedef int64_t I64 __attribute__((vector_size(kBytes)));
typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef uint64_t U64 __attribute__((vector_size(kBytes)));

// Eight numbers, in as many instructions as that takes.
typedef float F32x8 __attribute__((vector_size(32)));
typedef double F64x8 __attribute__((vector_size(64)));
typedef int32_t I32x8 __attribute__((vector_size(32)));
typedef int64_t I64x8 __attribute__((vector_size(64)));

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  using V = F32;
  using M = I32;
  using U = U32;
  using Word = int32_t;
  using Eight = F32x8;
  using EightWords = I32x8;
  static constexpr int n = kBytes / 4;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -127.0f;     // 2^x is 0 from here down
  static constexpr int kMantissa = 23;
  static constexpr uint32_t kOne = 0x3f800000;
};

template <>
struct Lanes<double> {
  using V = F64;
  using M = I64;
  using U = U64;
  using Word = int64_t;
  using Eight = F64x8;
  using EightWords = I64x8;
  static constexpr int n = kBytes / 8;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -1023.0;
  static constexpr int kMantissa = 52;
  static constexpr uint64_t kOne = 0x3ff0000000000000;
};

template <class T>
using Vec = typename Lanes<T>::V;

inline F32 spread(float x) { return x - F32{}; }
inline F64 spread(double x) { return x - F64{}; }

template <class T>
inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const Vec<T>*>(from);  // aligned scratch memory only
}

template <class T>
inline void store(T* to, Vec<T> x) {
  *reinterpret_cast<Vec<T>*>(to) = x;
}

#if defined(__AVX2__) && CHUMOKU_BYTES == 64 && !defined(__AVX512F__)
// The lower or the upper half of a vector's lanes.
inline __m256& side(F32& x, int i) { return reinterpret_cast<__m256*>(&x)[i]; }
inline __m256d& side(F64& x, int i) { return reinterpret_cast<__m256d*>(&x)[i]; }
inline __m256& side(I32& x, int i) { return reinterpret_cast<__m256*>(&x)[i]; }
#endif

// a * b + c with one rounding where the machine has it.
inline F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__) && CHUMOKU_BYTES == 64
  for (int i = 0; i < 2; ++i) side(c, i) = _mm256_fmadd_ps(side(a, i), side(b, i), side(c, i));
  return c;
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline F64 fma(F64 a, F64 b, F64 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__) && CHUMOKU_BYTES == 64
  for (int i = 0; i < 2; ++i) side(c, i) = _mm256_fmadd_pd(side(a, i), side(b, i), side(c, i));
  return c;
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

// The larger one; y when either is NaN.
inline F32 larger(F32 x, F32 y) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, x, y);  // gcc 12 warns of the plain form
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return _mm256_max_ps(x, y);
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return _mm_max_ps(x, y);
#else
  return x > y ? x : y;
#endif
}

inline F64 larger(F64 x, F64 y) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_pd(0xff, x, y);
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return _mm256_max_pd(x, y);
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return _mm_max_pd(x, y);
#else
  return x > y ? x : y;
#endif
}

// The lesser one; y when either is NaN.
inline F32 lesser(F32 x, F32 y) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xffff, x, y);
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return _mm256_min_ps(x, y);
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return _mm_min_ps(x, y);
#else
  return x < y ? x : y;
#endif
}

inline F64 lesser(F64 x, F64 y) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_pd(0xff, x, y);
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return _mm256_min_pd(x, y);
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return _mm_min_pd(x, y);
#else
  return x < y ? x : y;
#endif
}

inline bool any(I32 m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(m)) != 0;
#elif defined(__AVX2__) && CHUMOKU_BYTES == 64
  return _mm256_movemask_ps(_mm256_or_ps(side(m, 0), side(m, 1))) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps(reinterpret_cast<__m128>(m)) != 0;
#else
  return vmaxvq_u32(reinterpret_cast<uint32x4_t>(m)) != 0;
#endif
}

inline bool any(I64 m) {
  I64 odd = m;
  return any(reinterpret_cast<I32>(odd));
}

// The lanes in which x is above y, or one of them is NaN, as bits.
inline uint32_t lanes_above(F32 x, F32 y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, y, _CMP_NLE_UQ);
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_NLE_UQ)));
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpnle_ps(x, y)));
#else
  I32 m = ~(x <= y);
  uint32_t bits = 0;
  for (int i = 0; any(m) && i < kBytes / 4; ++i) bits |= static_cast<uint32_t>(m[i] & 1) << i;
  return bits;
#endif
}

inline uint32_t lanes_above(F64 x, F64 y) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(x, y, _CMP_NLE_UQ);
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(x, y, _CMP_NLE_UQ)));
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return static_cast<uint32_t>(_mm_movemask_pd(_mm_cmpnle_pd(x, y)));
#else
  I64 m = ~(x <= y);
  uint32_t bits = 0;
  for (int i = 0; any(m) && i < kBytes / 8; ++i) bits |= static_cast<uint32_t>(m[i] & 1) << i;
  return bits;
#endif
}

// The numbers of the lanes whose bits are set one after another, which lanes they are, and `key`
// beside each. Up to a vector is written to each array.
inline void string_lanes(F32 x, uint32_t bits, int32_t key, float* numbers, int32_t* lanes,
                         int32_t* keys) {
#if defined(__AVX512F__)
  I32 order = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, all = I32{} + key;
  auto mask = static_cast<__mmask16>(bits);
  _mm512_storeu_ps(numbers, _mm512_maskz_compress_ps(mask, x));
  _mm512_storeu_si512(lanes, _mm512_maskz_compress_epi32(mask, reinterpret_cast<__m512i>(order)));
  _mm512_storeu_si512(keys, reinterpret_cast<__m512i>(all));
#else
  for (; bits; bits &= bits - 1) {
    *lanes = __builtin_ctz(bits);
    *numbers++ = x[*lanes++];
    *keys++ = key;
  }
#endif
}

inline void string_lanes(F64 x, uint32_t bits, int32_t key, double* numbers, int32_t* lanes,
                         int32_t* keys) {
  for (; bits; bits &= bits - 1) {
    *lanes = __builtin_ctz(bits);
    *numbers++ = x[*lanes++];
    *keys++ = key;
  }
}

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// What one score counts in powers of two: high + low, to more bits than T has; `nats` is the same
// in powers of e. Differences below `lowest` are taken for it: 2^x is 0 there.
template <class T>
struct Unit {
  T high, low, nats, lowest;
};

// factor[i] * f^i, i from `first` on, without f^first. 2^f on [-1/2, 1/2] by Remez: relative error
// 1.9e-9 (degree 6, float) and 3.1e-18 (degree 11, double).
template <class T, int first>
inline Vec<T> exp2_series(Vec<T> f) {
  constexpr T factor[] = {T(1.0),
                          T(sizeof(T) == 4 ? 0.69314720573725268 : 0.69314718055994533046),
                          T(sizeof(T) == 4 ? 0.24022646890639572 : 0.24022650695910156205),
                          T(sizeof(T) == 4 ? 0.055503287769976638 : 0.055504108664819921483),
                          T(sizeof(T) == 4 ? 0.0096184889565227916 : 0.0096181291075883350833),
                          T(sizeof(T) == 4 ? 0.001339993120947414 : 0.0013333558146789950323),
                          T(sizeof(T) == 4 ? 0.00015345812158740182 : 0.00015403530462514613026),
                          T(0.0000152527334899608046),
                          T(1.3215433089594629037e-6),
                          T(1.0178198033328527662e-7),
                          T(7.0741056262456593708e-9),
                          T(4.4352809446103361611e-10)};
  constexpr int degree = sizeof(T) == 4 ? 6 : 11;
  Vec<T> p = spread(factor[degree]);
#pragma GCC unroll 12
  for (int i = degree - 1; i >= first; --i) p = fma(p, f, spread(factor[i]));
  return p;
}

// 2^n for the whole number n that was rounded by adding kRound; 0 for kLowest.
template <class T>
inline Vec<T> exp2_whole(Vec<T> shifted) {
  using U = typename Lanes<T>::U;  // unsigned: scores that will be taken again may overflow
  U bits = (reinterpret_cast<U>(shifted) << Lanes<T>::kMantissa) + Lanes<T>::kOne;
  return reinterpret_cast<Vec<T>>(bits);
}

// 2^(d * unit) for products below about 120: 0 from kLowest down, NaN for NaN. The product is
// split into a whole number and a rest before it is rounded: within 2 units in the last place.
template <class T>
inline Vec<T> exp2_lanes(Vec<T> d, const Unit<T>& unit) {
  constexpr T kLog2e = T(1.4426950408889634074L);
  // ln 2 in two parts: whole numbers up to 1023 times the first are exact.
  constexpr T kHigh = T(sizeof(T) == 4 ? 0.693359375 : 0.693147180369123816490);
  constexpr T kLow = T(sizeof(T) == 4 ? -2.12194440054690583e-4 : 1.90821492927058770002e-10);
  d = larger(spread(unit.lowest), d);
  Vec<T> f, shifted;
  if constexpr (kFused) {
    shifted = fma(d, spread(unit.high), spread(Lanes<T>::kRound));
    Vec<T> whole = shifted - Lanes<T>::kRound;
    f = fma(d, spread(unit.low), fma(d, spread(unit.high), -whole));
  } else {
    Vec<T> y = d * unit.nats;
    shifted = y * kLog2e + Lanes<T>::kRound;
    Vec<T> whole = shifted - Lanes<T>::kRound;
    f = (y - whole * kHigh - whole * kLow) * kLog2e;
  }
  return exp2_series<T, 0>(f) * exp2_whole<T>(shifted);
}

// tanh by e^2x - 1, which 2^f - 1 = f * (series from the first power on) gives without loss near 0.
template <class T>
inline Vec<T> tanh_lanes(Vec<T> x) {
  constexpr T kMost = sizeof(T) == 4 ? 30 : 60;
  constexpr T kTwice = T(2 * 1.4426950408889634074L);
  Vec<T> y = larger(spread(-kMost), x * kTwice);  // NaN stays
  y = -larger(spread(-kMost), -y);
  Vec<T> shifted = y + Lanes<T>::kRound;
  Vec<T> f = y - (shifted - Lanes<T>::kRound);
  Vec<T> power = exp2_whole<T>(shifted);
  Vec<T> less_one = fma(power, f * exp2_series<T, 1>(f), power - T(1));
  return less_one / (less_one + T(2));
}

// to[i] += x[i], to aligned doubles.
inline void add_wide(double* to, F64 x) { store(to, load(to) + x); }

inline void add_wide(double* to, F32 x) {
  typedef float Half __attribute__((vector_size(kBytes / 2)));
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  for (int i = 0; i < 2; ++i)
    add_wide(to + i * kBytes / 8, __builtin_convertvector(halves[i], F64));
}

// The natural logarithm of a normal positive number, or NaN, within 2 units in the last place:
// ln x = e ln 2 + 2 atanh s with s = (m - 1) / (m + 1), m from 1/sqrt 2 to sqrt 2, atanh by Taylor.
inline F64 log_lanes(F64 x) {
  constexpr int64_t kRootHalf = 0x3fe6a09e667f3bcd;
  constexpr double kHigh = 0.693147180369123816490, kLow = 1.90821492927058770002e-10;  // ln 2
  I64 bits = reinterpret_cast<I64>(x), whole = (bits - kRootHalf) >> 52;
  bits -= whole << 52;
  F64 m = reinterpret_cast<F64>(bits), e = __builtin_convertvector(whole, F64);
  F64 s = (m - 1) / (m + 1), z = s * s, sum{};
#pragma GCC unroll 10
  for (int i = 10; i >= 1; --i) sum = fma(sum, z, spread(1.0 / (2 * i + 1)));
  F64 twice = s + s;
  F64 log = fma(e, spread(kHigh), fma(twice, sum * z, e * kLow) + twice);
  return x == x ? log : x;
}

// The low halves of 64-bit lanes multiplied into whole ones.
inline U64 multiply_low(U64 a, U64 b) {
#if defined(__AVX512F__)
  return reinterpret_cast<U64>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__) && CHUMOKU_BYTES == 32
  return reinterpret_cast<U64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__x86_64__) && CHUMOKU_BYTES == 16
  return reinterpret_cast<U64>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(__aarch64__) && CHUMOKU_BYTES == 16
  return reinterpret_cast<U64>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)),
                                         vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
#else
  constexpr uint64_t kLow = 0xffffffff;
  return (a & kLow) * (b & kLow);
#endif
}

// Philox4x32-10 (Salmon et al. 2011): four random words of 32 bits for each lane, in place of the
// counter.
inline void philox(U64 (&c)[4], uint64_t seed) {
  constexpr uint64_t kLow = 0xffffffff;
  U64 first = U64{} + 0xD2511F53u, second = U64{} + 0xCD9E8D57u;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    U64 p0 = multiply_low(c[0], first), p1 = multiply_low(c[2], second);
    c[0] = (p1 >> 32) ^ c[1] ^ uint64_t { k0 };
    c[1] = p1 & kLow;
    c[2] = (p0 >> 32) ^ c[3] ^ uint64_t { k1 };
    c[3] = p0 & kLow;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// float16 and bfloat16, `count` numbers side by side (not necessarily aligned), to float and back,
// rounded to the nearest, ties to even.
inline float from_half(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  // The exponent is moved by a product, which makes subnormal halves normal on the way.
  uint32_t bits = uint32_t{half} << 13 & 0x0fffe000u, sign = uint32_t{half} << 16 & 0x80000000u;
  float x;
  if (bits >= 0x0f800000u) bits |= 0x7f800000u;  // infinity and NaN
  std::memcpy(&x, &bits, 4);
  if (bits < 0x7f800000u) x *= 5.192296858534828e33f;  // 2^112
  std::memcpy(&bits, &x, 4);
  bits |= sign;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

inline uint16_t to_half(float x) {
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (size >> 13 & 0x3ffu));
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (size < 0x38800000u) {  // subnormal: adding 0.5 leaves the bits of the rounded number
    float y;
    std::memcpy(&y, &size, 4);
    y += 0.5f;
    std::memcpy(&size, &y, 4);
    return static_cast<uint16_t>(sign | (size - 0x3f000000u));
  }
  size += 0xc8000fffu + (size >> 13 & 1);
  return static_cast<uint16_t>(sign | size >> 13);
#endif
}

inline float from_brain(uint16_t brain) {
  uint32_t bits = uint32_t{brain} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline void widen_halves(const char* from, int64_t count, float* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    __m128i eight;
    std::memcpy(&eight, from + 2 * i, 16);
    __m256 wide = _mm256_cvtph_ps(eight);
    std::memcpy(to + i, &wide, 32);
  }
#endif
  for (; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, 2);
    to[i] = from_half(half);
  }
}

inline void widen_brains(const char* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t brain;
    std::memcpy(&brain, from + 2 * i, 2);
    to[i] = from_brain(brain);
  }
}

// A vector of numbers that lie anywhere, as type S has them.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

inline F32 read_lanes(const char* from, float) {
  F32 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline F64 read_lanes(const char* from, double) {
  F64 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline F32 read_lanes(const char* from, Half) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__aarch64__)
  float16x4_t four;
  std::memcpy(&four, from, sizeof four);
  return vcvt_f32_f16(four);
#else
  F32 x;
  widen_halves(from, kBytes / 4, reinterpret_cast<float*>(&x));
  return x;
#endif
}

inline F32 read_lanes(const char* from, Brain) {
  uint16_t brains __attribute__((vector_size(kBytes / 2)));
  std::memcpy(&brains, from, sizeof brains);
  U32 bits = __builtin_convertvector(brains, U32) << 16;
  return reinterpret_cast<F32>(bits);
}

// The same way back, rounded to the nearest, ties to even.
inline void write_lanes(char* to, F32 x, float) { std::memcpy(to, &x, sizeof x); }
inline void write_lanes(char* to, F64 x, double) { std::memcpy(to, &x, sizeof x); }

inline void write_lanes(char* to, F32 x, Half) {
#if defined(__AVX512F__)
  __m256i halves = _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && CHUMOKU_BYTES == 32
  __m128i halves = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  float16x4_t halves = vcvt_f16_f32(x);
#else
  uint16_t halves[kBytes / 4];
  for (int i = 0; i < kBytes / 4; ++i) halves[i] = to_half(x[i]);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

inline void write_lanes(char* to, F32 x, Brain) {
  typedef uint16_t U16 __attribute__((vector_size(kBytes / 2)));
  U32 bits = reinterpret_cast<U32>(x);
  U32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  U16 brains = __builtin_convertvector(x == x ? rounded : bits >> 16 | 0x40u, U16);
  std::memcpy(to, &brains, sizeof brains);
}

// 128-bit blocks of a vector, and numbers in a block.
constexpr int kBlocks = kBytes / 16;
template <class T>
constexpr int kInBlock = 16 / sizeof(T);

// Every second block of two vectors: those with an even number, or with an odd one.
template <class T, int odd, size_t... i>
inline Vec<T> every_second(Vec<T> a, Vec<T> b, std::index_sequence<i...>) {
  constexpr int in = kInBlock<T>;
  return __builtin_shufflevector(a, b, ((2 * (i / in) + odd) * in + i % in)...);
}

// Numbers of two vectors by turns, block by block: from the lower halves of blocks, or the upper.
template <class T, int upper, int size, size_t... i>
inline Vec<T> by_turns(Vec<T> a, Vec<T> b, std::index_sequence<i...>) {
  constexpr int in = kInBlock<T>, n = Lanes<T>::n;
  return __builtin_shufflevector(a, b,
                                 (i / in * in + upper * in / 2 + i % in / (2 * size) * size +
                                  i % size + (i % in / size % 2) * n)...);
}

// Within each block of vectors, as many as a block has numbers: x[i][j] <-> x[j][i].
template <class T>
inline void turn_blocks(Vec<T>* x) {
  constexpr auto lanes = std::make_index_sequence<Lanes<T>::n>{};
  if constexpr (kInBlock<T> == 2) {
    Vec<T> a = x[0];
    x[0] = by_turns<T, 0, 1>(a, x[1], lanes);
    x[1] = by_turns<T, 1, 1>(a, x[1], lanes);
  } else {
    Vec<T> a = by_turns<T, 0, 1>(x[0], x[1], lanes), b = by_turns<T, 1, 1>(x[0], x[1], lanes);
    Vec<T> c = by_turns<T, 0, 1>(x[2], x[3], lanes), d = by_turns<T, 1, 1>(x[2], x[3], lanes);
    x[0] = by_turns<T, 0, 2>(a, c, lanes);
    x[1] = by_turns<T, 1, 2>(a, c, lanes);
    x[2] = by_turns<T, 0, 2>(b, d, lanes);
    x[3] = by_turns<T, 1, 2>(b, d, lanes);
  }
}

// x[i][j] <-> x[j][i]
template <class T>
inline void turn_square(Vec<T> (&x)[Lanes<T>::n]) {
  constexpr int in = kInBlock<T>;
  constexpr auto lanes = std::make_index_sequence<Lanes<T>::n>{};
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) turn_blocks<T>(x + b * in);
#pragma GCC unroll 4
  for (int i = 0; i < in; ++i) {
    if constexpr (kBlocks == 2) {
      Vec<T> a = x[i], b = x[i + in];
      x[i] = every_second<T, 0>(a, b, lanes);
      x[i + in] = every_second<T, 1>(a, b, lanes);
    }
    if constexpr (kBlocks == 4) {
      Vec<T> a = every_second<T, 0>(x[i], x[i + in], lanes);
      Vec<T> b = every_second<T, 1>(x[i], x[i + in], lanes);
      Vec<T> c = every_second<T, 0>(x[i + 2 * in], x[i + 3 * in], lanes);
      Vec<T> d = every_second<T, 1>(x[i + 2 * in], x[i + 3 * in], lanes);
      x[i] = every_second<T, 0>(a, c, lanes);
      x[i + in] = every_second<T, 0>(b, d, lanes);
      x[i + 2 * in] = every_second<T, 1>(a, c, lanes);
      x[i + 3 * in] = every_second<T, 1>(b, d, lanes);
    }
  }
}

}  // namespace chumoku::CHUMOKU_ISA
