// Few queries in a group: one query in lanes that hold sixteen would waste fifteen. Here the scores
// have keys in the lanes, whose rows are turned in registers, and the mix has columns of the values
// in them. Every sum is taken in the order that step.h takes it in, so the bits are the same. Rows
// are read as they lie, 16-bit numbers widened on the way. Included by tile.cc alone, once for each
// instruction set.
#pragma once

#include <algorithm>
#include <utility>

#include "attention.h"
#include "lanes.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// A dot product is summed span by span: one chain over 64 products loses twice as much to rounding,
// one over 1024 four times. Up to 16 places are two spans.
constexpr int64_t kSpan = 16;

// Rows of numbers that lie side by side, `step` bytes apart, not necessarily aligned.
struct Rows {
  const char* at = nullptr;
  int64_t step = 0;
  Dtype dtype = Dtype::f32;
  bool more = false;  // the rows of the next tile follow, and will be needed
};

constexpr int64_t kLine = 64;  // bytes of the cache

// Rows of the next tile are asked for while those of this one are worked on. Into the second cache:
// the first can wait for too few lines at a time to read memory at its speed. Inlined by force, or
// gcc drops it as a function without effect.
[[gnu::always_inline]] inline void ask_ahead(const Rows& rows, const char* row, int64_t bytes) {
  if (!rows.more) return;
  for (int64_t at = 0; at < bytes; at += kLine)
    __builtin_prefetch(row + kTile * rows.step + at, 0, 2);
}

// Queries of a group up to which this pays: turning keys costs as much as some eight of them.
template <class T>
constexpr int kFew = Lanes<T>::n / 2;

constexpr int64_t kFewest = 9;  // places of a dot product: fewer are one chain

// Where 16 bytes of each row lie: rows come in sets, one for each block of a vector.
struct Sets {
  const char* first[kBlocks];
  int64_t step;
};

// The bytes of row `i` of each set.
template <class V>
inline V gather_blocks(const Sets& sets, int i) {
  auto bytes = [&](int set) { return sets.first[set] + i * sets.step; };
  V x;
#if CHUMOKU_BYTES == 64 && defined(__AVX512F__)
  auto block = [&](int b) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes(b))); };
  __m512i four = _mm512_zextsi128_si512(block(0));
  four = _mm512_inserti32x4(four, block(1), 1);
  four = _mm512_inserti32x4(four, block(2), 2);
  four = _mm512_inserti32x4(four, block(3), 3);
  std::memcpy(&x, &four, sizeof x);
#elif CHUMOKU_BYTES == 32 && defined(__AVX2__)
  auto block = [&](int b) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes(b))); };
  __m256i two = _mm256_inserti128_si256(_mm256_castsi128_si256(block(0)), block(1), 1);
  std::memcpy(&x, &two, sizeof x);
#else
  for (int b = 0; b < kBlocks; ++b) std::memcpy(reinterpret_cast<char*>(&x) + 16 * b, bytes(b), 16);
#endif
  return x;
}

// x[c] becomes column c of as many rows as a vector has lanes; 16 bytes of a row are so many
// columns.
template <class T>
inline void read_columns(const Sets& sets, Vec<T>* x, T) {
#pragma GCC unroll 4
  for (int i = 0; i < kInBlock<T>; ++i) x[i] = gather_blocks<Vec<T>>(sets, i);
  turn_blocks<T>(x);
}

inline void read_columns(const Sets& sets, F32* x, Brain) {
  F32 even[4], odd[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    U32 pairs = gather_blocks<U32>(sets, i);
    even[i] = reinterpret_cast<F32>(pairs << 16);
    pairs &= 0xffff0000u;
    odd[i] = reinterpret_cast<F32>(pairs);
  }
  turn_blocks<float>(even);
  turn_blocks<float>(odd);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = even[i];
    x[2 * i + 1] = odd[i];
  }
}

inline void read_columns(const Sets& sets, F32* x, Half) {
  constexpr auto lanes = std::make_index_sequence<kBytes / 4>{};
  auto bytes = [&](int set, int i) { return sets.first[set] + i * sets.step; };
  F32 a[4], b[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#if CHUMOKU_BYTES == 64 && defined(__AVX512F__)
    auto two = [&](int set) {
      auto eight = [&](const char* from) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      };
      __m256i pair = _mm256_inserti128_si256(_mm256_castsi128_si256(eight(bytes(set, i))),
                                             eight(bytes(set + 1, i)), 1);
      return _mm512_maskz_cvtph_ps(0xffff, pair);
    };
    a[i] = two(0);
    b[i] = two(2);
#elif CHUMOKU_BYTES == 64
    char pairs[2][32];
    for (int set = 0; set < 4; ++set) std::memcpy(pairs[set / 2] + set % 2 * 16, bytes(set, i), 16);
    a[i] = read_lanes(pairs[0], Half{});
    b[i] = read_lanes(pairs[1], Half{});
#elif CHUMOKU_BYTES == 32
    a[i] = read_lanes(bytes(0, i), Half{});
    b[i] = read_lanes(bytes(1, i), Half{});
#else
    a[i] = read_lanes(bytes(0, i), Half{});
    b[i] = read_lanes(bytes(0, i) + 8, Half{});
#endif
  }
  turn_blocks<float>(a);
  turn_blocks<float>(b);
  // Blocks hold the first four columns and the last four of a set by turns.
  constexpr bool kSplit = kBytes > 16;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = kSplit ? every_second<float, 0>(a[i], b[i], lanes) : a[i];
    x[4 + i] = kSplit ? every_second<float, 1>(a[i], b[i], lanes) : b[i];
  }
}

// Dot products of keys `low` to `high` of the rows with `count` queries, packed as [width][n]:
// scores[key][lane], with a query in each lane. `spare` has room for n rows.
template <class T, class S, int count>
void score_few(const Rows& rows, const T* q, int64_t width, int low, int high, T* scores,
               char* spare) {
  using V = Vec<T>;
  constexpr int n = Lanes<T>::n, in = kInBlock<T>;
  constexpr int64_t kSize = sizeof(S), kColumns = 16 / kSize;
  int64_t span = width <= kSpan ? kSpan / 2 : kSpan;  // a power of two
  int stop = (high + 7) / 8 * 8;                      // so many are looked at
  for (int key = low / n * n; key < stop; key += n) {
    const char* first = rows.at + key * rows.step;
    int64_t step = rows.step;
    if (key + n > high) {  // no row is read that may not be there
      for (int i = 0; i < n; ++i)
        std::memcpy(spare + i * width * kSize, rows.at + std::min(key + i, high - 1) * rows.step,
                    static_cast<size_t>(width * kSize));
      first = spare;
      step = width * kSize;
    }
    int64_t asked = 0;
    V sum[count]{}, part[count]{};
    auto fold = [&](int64_t place) {
      if ((place & (span - 1)) != 0 && place != width) return;
#pragma GCC unroll 8
      for (int r = 0; r < count; ++r) {
        sum[r] += part[r];
        part[r] = V{};
      }
    };
    auto columns = [&](int64_t at, V* x) {
      Sets sets;
      for (int b = 0; b < kBlocks; ++b) sets.first[b] = first + b * in * step + at * kSize;
      sets.step = step;
      read_columns(sets, x, S{});
    };
    int64_t d = 0;
    for (; d + kColumns <= width; d += kColumns) {
      V x[kColumns];
      columns(d, x);
      // Row by row, a part of them with each piece of the columns.
      for (int64_t end = (d + kColumns) * n; asked * width < end && asked < n; ++asked)
        ask_ahead(rows, first + asked * step, width * kSize);
      const T* here = q + d * n;
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j)
#pragma GCC unroll 8
        for (int r = 0; r < count; ++r) part[r] = fma(x[j], spread(here[j * n + r]), part[r]);
      fold(d + kColumns);
    }
    if (d < width) {
      V x[kColumns];
      columns(width - kColumns, x);
      for (; d < width; ++d)
        for (int r = 0; r < count; ++r)
          part[r] = fma(x[d - width + kColumns], spread(q[d * n + r]), part[r]);
      fold(width);
    }
    // Block b of some[i] holds key b * in + i of as many queries as a block has lanes.
    for (int r = 0; r < count; r += in) {
      V some[in];
      for (int i = 0; i < in; ++i) some[i] = sum[std::min(r + i, count - 1)];
      turn_blocks<T>(some);
      for (int i = 0; i < n; ++i)
        for (int b = r / in; b < kBlocks; b += (count + in - 1) / in)
          std::memcpy(scores + (key + i) * n + b * in,
                      reinterpret_cast<const T*>(&some[i % in]) + i / in * in, 16);
    }
  }
}

// What mix_few takes: weights [key][n], how much of the output so far stays, the output itself
// [count][width]; `seen` are the bits of keys that each query sees, or null when it does not
// matter.
template <class T>
struct FewMix {
  Rows rows;
  int low, high;
  const T* weights;
  const T* alpha;
  const uint64_t* seen;
  T* output;
  int64_t width;
};

template <class T, class S, int count, int columns>
inline void mix_few_columns(const FewMix<T>& mix, int64_t column, int64_t fresh) {
  using V = Vec<T>;
  constexpr int n = Lanes<T>::n;
  constexpr int64_t kSize = sizeof(S);
  V acc[count][columns]{};
  const char* row = mix.rows.at + mix.low * mix.rows.step + column * kSize;
  for (int key = mix.low; key < mix.high; ++key, row += mix.rows.step) {
    V x[columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) x[c] = read_lanes(row + c * n * kSize, S{});
    ask_ahead(mix.rows, row, columns * n * kSize);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
      // What is hidden is not even multiplied by zero: 0 * NaN would be felt.
      if (mix.seen && !(mix.seen[r] >> key & 1)) continue;
      V weight = spread(mix.weights[key * n + r]);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) acc[r][c] = fma(x[c], weight, acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      T* o = mix.output + r * mix.width + column + c * n;
      V old;
      __builtin_memcpy(&old, o, sizeof old);
      V mixed = fma(old, spread(mix.alpha[r]), acc[r][c]);
      // Columns that were mixed already stay as they are.
      std::memcpy(o + fresh, reinterpret_cast<T*>(&mixed) + fresh,
                  static_cast<size_t>(n - fresh) * sizeof(T));
    }
}

template <class T, class S, int count>
void mix_few(const FewMix<T>& mix) {
  constexpr int n = Lanes<T>::n, kMost = std::clamp((kBytes == 64 ? 16 : 8) / count, 1, 8);
  int64_t column = 0;
  for (; column + kMost * n <= mix.width; column += kMost * n)
    mix_few_columns<T, S, count, kMost>(mix, column, 0);
  if constexpr (kMost > 4)
    for (; column + 4 * n <= mix.width; column += 4 * n)
      mix_few_columns<T, S, count, 4>(mix, column, 0);
  for (; column + n <= mix.width; column += n) mix_few_columns<T, S, count, 1>(mix, column, 0);
  if (column < mix.width)
    mix_few_columns<T, S, count, 1>(mix, mix.width - n, column - (mix.width - n));
}

// Calls `work` with a number of the rows' type, and with the number of queries rounded up to one
// that is compiled, as types.
template <class T, class Work>
void with_few(Dtype dtype, int count, const Work& work) {
  auto sized = [&](auto number) {
    if (count == 1) return work(number, std::integral_constant<int, 1>{});
    if constexpr (kFew<T> >= 2)
      if (count == 2) return work(number, std::integral_constant<int, 2>{});
    if constexpr (kFew<T> >= 4)
      if (count <= 4) return work(number, std::integral_constant<int, 4>{});
    if constexpr (kFew<T> >= 8) return work(number, std::integral_constant<int, 8>{});
  };
  if constexpr (sizeof(T) == 8) {
    sized(double{});
  } else {
    if (dtype == Dtype::f16) return sized(Half{});
    if (dtype == Dtype::bf16) return sized(Brain{});
    sized(float{});
  }
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
