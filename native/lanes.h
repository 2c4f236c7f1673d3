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

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  using V = F32;
  using M = I32;
  using Word = int32_t;
  static constexpr int n = kBytes / 4;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -127.0f;     // 2^x is 0 from here down
  static constexpr int kMantissa = 23;
  static constexpr Word kOne = 0x3f800000;
};

template <>
struct Lanes<double> {
  using V = F64;
  using M = I64;
  using Word = int64_t;
  static constexpr int n = kBytes / 8;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -1023.0;
  static constexpr int kMantissa = 52;
  static constexpr Word kOne = 0x3ff0000000000000;
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

// 2^x for x below about 120: 0 from kLowest down, NaN for NaN. Remez polynomials for 2^f on
// [-1/2, 1/2]: relative error 1.9e-9 (degree 6, float) and 3.1e-18 (degree 11, double).
template <class T>
inline Vec<T> exp2_lanes(Vec<T> x) {
  using L = Lanes<T>;
  using M = typename L::M;
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
  x = larger(spread(L::kLowest), x);
  Vec<T> shifted = x + L::kRound;
  Vec<T> f = x - (shifted - L::kRound);
  Vec<T> p = spread(factor[degree]);
#pragma GCC unroll 12
  for (int i = degree - 1; i >= 0; --i) p = fma(p, f, spread(factor[i]));
  M bits = (reinterpret_cast<M>(shifted) << L::kMantissa) + L::kOne;
  return p * reinterpret_cast<Vec<T>>(bits);
}

// 128-bit vectors, which every instruction set here has, for turning rows into columns.
template <class T>
using Short __attribute__((vector_size(16))) = T;

inline void turn(Short<float>* x) {
  using I = int32_t __attribute__((vector_size(16)));
  constexpr I low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  Short<float> a = __builtin_shuffle(x[0], x[1], low), b = __builtin_shuffle(x[0], x[1], high);
  Short<float> c = __builtin_shuffle(x[2], x[3], low), d = __builtin_shuffle(x[2], x[3], high);
  x[0] = __builtin_shuffle(a, c, first);
  x[1] = __builtin_shuffle(a, c, second);
  x[2] = __builtin_shuffle(b, d, first);
  x[3] = __builtin_shuffle(b, d, second);
}

inline void turn(Short<double>* x) {
  using I = int64_t __attribute__((vector_size(16)));
  Short<double> a = __builtin_shuffle(x[0], x[1], I{0, 2});
  x[1] = __builtin_shuffle(x[0], x[1], I{1, 3});
  x[0] = a;
}

}  // namespace chumoku::CHUMOKU_ISA
