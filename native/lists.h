// The largest scores of each row: a list for each lane, largest first, eight entries at a time. Of
// a tile only scores above what a list may still drop are looked at again, and those are few.
// Included by tile.cc alone, once for each instruction set.
#pragma once

#include <algorithm>
#include <limits>

#include "lanes.h"
#include "pool.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

constexpr int kEntries = 8;

// Numbers from one list to the next: its entries in whole eights, and before them eight of which
// the last is an infinity, so that nothing goes in above the first entry.
constexpr int64_t list_step(int64_t top) {
  return top ? (top + kEntries - 1) / kEntries * kEntries + kEntries : 0;
}

// A scores' list and that of their keys; -1: none yet.
template <class T>
struct List {
  T* scores;
  typename Lanes<T>::Word* keys;

  void clear(int64_t top) const {
    int64_t step = list_step(top);
    std::fill_n(scores - kEntries, step, -std::numeric_limits<T>::infinity());
    scores[-1] = std::numeric_limits<T>::infinity();
    std::fill_n(keys - kEntries, step, typename Lanes<T>::Word{-1});
  }

  const char* bytes(int64_t at) const { return reinterpret_cast<const char*>(scores + at); }

  // Equal scores stay behind those that came first.
  void insert(int64_t top, T score, typename Lanes<T>::Word key) const {
    for (int64_t at = (top - 1) / kEntries * kEntries; at >= 0; at -= kEntries) {
      // What is below an entry that is passed moves down with it.
      bool goes_on = at && score > scores[at - 1];
      insert_into_eight(at, scores[at - 1], keys[at - 1], score, key);
      if (!goes_on) return;
    }
  }

  // The same within eight entries; what comes down from above is given.
  inline void insert_into_eight(int64_t at, T score_above, typename Lanes<T>::Word key_above,
                                T score, typename Lanes<T>::Word key) const {
    using Eight = typename Lanes<T>::Eight;
    using Words = typename Lanes<T>::EightWords;
    Eight s, x = score - Eight{};
    Words k, y = key - Words{};
    __builtin_memcpy(&s, scores + at, sizeof s);
    __builtin_memcpy(&k, keys + at, sizeof k);
    // Shuffled, for a load across the last store would wait for it.
    Eight s_above = __builtin_shufflevector(score_above - Eight{}, s, 0, 8, 9, 10, 11, 12, 13, 14);
    Words k_above = __builtin_shufflevector(key_above - Words{}, k, 0, 8, 9, 10, 11, 12, 13, 14);
    auto passes = x > s, passes_above = x > s_above;
    s_above = passes_above ? s_above : x;
    k_above = passes_above ? k_above : y;
    s = passes ? s_above : s;
    k = passes ? k_above : k;
    __builtin_memcpy(scores + at, &s, sizeof s);
    __builtin_memcpy(keys + at, &k, sizeof k);
  }
};

// Going through a list of so many takes long enough to ask whether to stop.
constexpr int64_t kLongList = 4096;

constexpr int kMostParts = 32;

// Scores of a tile that may go into the lists: those above `least` of their lane, or NaN.
template <class T, int NV>
struct Candidates {
  static constexpr int kMost = kTile + 8, n = Lanes<T>::n;
  T* scores;    // [NV][kMost][n]
  int32_t* at;  // [NV][kMost] which key of the tile, and from bit 8 on which lanes
  Vec<T> least[NV];
  int count[NV];

  inline void begin(const T* from) {
    for (int v = 0; v < NV; ++v) {
      least[v] = load(from + v * n);
      count[v] = 0;
    }
  }

  // Lists that begin empty would take most of their first tile. Of its `2 * top` parts each has a
  // largest score, and the one of them in place `top` is not above what the list will end with.
  void raise(const T* tile, int low, int high, int top) {
    int parts = 2 * top;
    if (parts > kMostParts || 2 * parts > high - low) return;
    for (int v = 0; v < NV; ++v) {
      Vec<T> most[kMostParts];
      for (int part = 0; part < parts; ++part) {
        most[part] = load(tile + ((low + part) * NV + v) * n);
        for (int key = low + part + parts; key < high; key += parts)
          most[part] = larger(load(tile + (key * NV + v) * n), most[part]);
      }
      sort(most, top);
      sort(most + top, top);
      Vec<T> last = larger(most[0], most[parts - 1]);
      for (int i = 1; i < top; ++i) last = lesser(larger(most[i], most[parts - 1 - i]), last);
      // A little less, for an equal score goes in.
      constexpr T kLess = 4 * std::numeric_limits<T>::epsilon();
      Vec<T> size = larger(last, -last);
      last -= fma(size, spread(kLess), spread(std::numeric_limits<T>::min()));
      least[v] = larger(last, least[v]);
    }
  }

  // Largest first, in every lane, by exchanging neighbours.
  static void sort(Vec<T>* x, int count) {
    for (int round = 0; round < count; ++round)
      for (int i = round % 2; i + 1 < count; i += 2) {
        Vec<T> more = larger(x[i], x[i + 1]);
        x[i + 1] = lesser(x[i], x[i + 1]);
        x[i] = more;
      }
  }

  inline void offer(Vec<T> score, int v, int key) {
    int i = v * kMost + count[v];
    uint32_t lanes = lanes_above(score, least[v]);
    store(scores + i * n, score);
    at[i] = static_cast<int32_t>(lanes << 8) | key;
    count[v] += lanes != 0;
  }
};

// Puts the candidates of a tile that begins with key `first` into the lists of their lanes. They
// are strung together first, so that no branch depends on how many lanes a candidate is for.
// kShort: lists of up to eight.
template <class T, int NV, bool kShort>
void fill_lists(const Candidates<T, NV>& candidates, const List<T>& lists, int64_t top,
                int64_t first, T* least) {
  constexpr int n = Lanes<T>::n;
  const int64_t step = kShort ? 2 * kEntries : list_step(top);
  for (int v = 0; v < NV; ++v) {
    T scores[(kTile + 1) * n];
    int32_t lanes[(kTile + 1) * n], keys[(kTile + 1) * n];
    int count = 0;
    for (int c = 0; c < candidates.count[v]; ++c) {
      int i = v * candidates.kMost + c;
      uint32_t bits = static_cast<uint32_t>(candidates.at[i]) >> 8;
      Vec<T> x = load(candidates.scores + i * n);
      x = x == x ? x : spread(std::numeric_limits<T>::infinity());  // NaN comes first
      string_lanes(x, bits, candidates.at[i] & 0xff, scores + count, lanes + count, keys + count);
      count += __builtin_popcount(bits);
    }
    T* row_scores = lists.scores + v * n * step;
    auto* row_keys = lists.keys + v * n * step;
    for (int i = 0; i < count; ++i) {
      if (!kShort && top > kLongList && stopping()) return;
      List<T> list{row_scores + lanes[i] * step, row_keys + lanes[i] * step};
      auto key = static_cast<typename Lanes<T>::Word>(first + keys[i]);
      if constexpr (kShort)
        list.insert_into_eight(0, std::numeric_limits<T>::infinity(), -1, scores[i], key);
      else
        list.insert(top, scores[i], key);
      T& bound = least[v * n + lanes[i]];
      bound = std::max(bound, list.scores[top - 1]);
    }
  }
}

template <class T, int NV>
void fill_lists(const Candidates<T, NV>& candidates, const List<T>& lists, int64_t top,
                int64_t first, T* least) {
  if (top <= kEntries)
    fill_lists<T, NV, true>(candidates, lists, top, first, least);
  else
    fill_lists<T, NV, false>(candidates, lists, top, first, least);
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
