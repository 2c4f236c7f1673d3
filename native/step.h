// One tile of keys and one group of queries: scores, weights, what is watched, mix. Queries lie in
// the lanes of vectors and keys are walked one by one, so that every sum of a row is taken in the
// same order whatever the other lanes hold: S^T = K Q^T and O^T = V^T P^T with K and V broadcast
// from where they are. Included by tile.cc alone, once for each instruction set.
#pragma once

#include <algorithm>
#include <limits>

#include "attention.h"
#include "lanes.h"
#include "mask.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// A row's reference maximum moves when a score passes it by this much (in powers of two): exp
// can then be taken while the scores are in registers, and stays below 2^8.
constexpr double kSlack = 8;

constexpr double kLog2e = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// Keys (or value columns) held in registers at once beside `vectors` of queries: 24 or 12
// accumulators, as many as the machine has registers for.
template <int vectors>
constexpr int kAtOnce = kBytes == 64 || vectors == 1 ? 8 : 4;

// What is kept of each lane.
enum Field { kRef, kSum, kMax, kShifted, kLead, kRest, kSquares, kDistance, kFields };

// A group of queries, as wide as one to three vectors, and its state.
template <class T>
struct Queries {
  int vectors = 0, lanes = 0, used = 0;
  int64_t first = 0;   // row within the group of heads
  T* q = nullptr;      // [width][lanes]
  T* o = nullptr;      // [value_width][lanes]
  T* state = nullptr;  // [kFields][lanes]
  T* top = nullptr;    // [top][lanes] raw scores, largest first
  typename Lanes<T>::Word* top_keys = nullptr;
  Range seen, solid;  // keys that some lane sees; keys that every lane sees
};

template <class T>
struct Tile {
  const T* k;
  int64_t k_stride;
  const T* v;
  int64_t v_stride;
  int64_t first;                         // key of bit 0
  int low, high;                         // keys that some lane sees
  bool masked, spoilt;                   // spoilt: hidden values may be NaN or infinite
  const typename Lanes<T>::Word* words;  // bit j: the lane sees key j; float: [2][lanes] halves
};

template <class T>
struct Plan {
  T factor;  // of the raw scores, in powers of two
  T sign;    // of the packed queries
  double scale;
  bool facts, distance;
  int64_t top;
};

template <class T>
Plan<T> plan_of(const Problem& problem) {
  // A scale that T cannot tell from 0 makes all scores 0; one beyond T's range is T's largest.
  double size = std::min(std::abs(problem.scale), double{std::numeric_limits<T>::max()} / 2);
  bool none = size * kLog2e < double{std::numeric_limits<T>::min()};
  const Facts& f = problem.facts;
  return {static_cast<T>((none ? 1 : size) * kLog2e),
          static_cast<T>(none                ? 0
                         : problem.scale < 0 ? -1
                                             : 1),
          none ? 1 : size,
          f.entropy || f.saturation || f.flow,
          f.distance != nullptr,
          f.top};
}

// What a raw score counts in nats. Everything that compares scores with an lse multiplies by this.
template <class T>
double plan_unit(const Plan<T>& plan) {
  return plan.factor * kLn2;
}

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

// Lanes of vector v that see key `bit` of the tile, as a vector of masks.
template <class T>
inline typename Lanes<T>::M sees(const Tile<T>& tile, int lanes, int v, int bit) {
  using L = Lanes<T>;
  constexpr int kBits = 8 * sizeof(T);
  typename L::M m;
  __builtin_memcpy(&m, tile.words + bit / kBits * lanes + v * L::n, sizeof m);
  return (m << (kBits - 1 - bit % kBits)) >> (kBits - 1);
}

// Running facts of a tile: weights from scores, and everything that is summed along the way.
template <class T, int NV, bool kFacts>
struct Sums {
  using V = Vec<T>;
  V factor, ref[NV], sum[NV], shifted[NV], lead[NV], best[NV], rest[NV], squares[NV];

  // `references` holds that of each lane, with 0 for lanes that have none.
  inline void begin(const Queries<T>& g, const Plan<T>& plan, const T* references) {
    factor = spread(plan.factor);
    for (int v = 0; v < NV; ++v) {
      int at = v * Lanes<T>::n;
      ref[v] = load(references + at);
      sum[v] = V{};
      if constexpr (kFacts) {
        shifted[v] = V{};
        lead[v] = load(g.state + kLead * g.lanes + at);
        best[v] = load(g.state + kMax * g.lanes + at);
        rest[v] = V{};
        squares[v] = V{};
      }
    }
  }

  inline V weigh(V score, int v) {
    // Not fma(score, factor, -ref * factor): its rounding would drown large scores.
    V x = (score - ref[v]) * factor;
    V p = exp2_lanes<T>(x);
    sum[v] += p;
    if constexpr (kFacts) {
      shifted[v] = fma(p, larger(spread(Lanes<T>::kLowest), x), shifted[v]);
      // The largest weight is kept aside; of each pair the smaller goes to the rest.
      auto leads = score > best[v];
      V smaller = leads ? lead[v] : p;
      lead[v] = leads ? p : lead[v];
      best[v] = larger(score, best[v]);
      rest[v] += smaller;
      squares[v] = fma(smaller, smaller, squares[v]);
    }
    return p;
  }

  // state <- alpha * state + this tile. `moved` is the way of the reference, in powers of two.
  inline void end(Queries<T>& g, const T* alpha, const T* moved) const {
    for (int v = 0; v < NV; ++v) {
      int at = v * Lanes<T>::n;
      auto field = [&](int f) { return g.state + f * g.lanes + at; };
      V a = load(alpha + at), old = load(field(kSum));
      store(field(kSum), fma(old, a, sum[v]));
      if constexpr (kFacts) {
        V t = fma(load(moved + at), old, load(field(kShifted)));
        store(field(kShifted), fma(t, a, shifted[v]));
        store(field(kLead), lead[v]);
        store(field(kRest), fma(load(field(kRest)), a, rest[v]));
        store(field(kSquares), fma(load(field(kSquares)), a * a, squares[v]));
      }
    }
  }
};

// A dot product over a long width is summed span by span: one chain over 1024 products would lose
// three times as much to rounding.
constexpr int64_t kSpan = 128;

template <class T, int NV>
inline void add_products(const T* q, const T* const (&row)[kAtOnce<NV>], int64_t begin, int64_t end,
                         Vec<T> (&acc)[kAtOnce<NV>][NV]) {
  using V = Vec<T>;
  constexpr int kStep = NV * Lanes<T>::n;
  q += begin * kStep;
  for (int64_t d = begin; d < end; ++d, q += kStep) {
    V lanes[NV];
    for (int v = 0; v < NV; ++v) lanes[v] = load(q + v * Lanes<T>::n);
#pragma GCC unroll 8
    for (int r = 0; r < kAtOnce<NV>; ++r) {
      V k = spread(row[r][d]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(k, lanes[v], acc[r][v]);
    }
  }
}

// Apart from the loop above, whose accumulators must stay in registers.
template <class T, int NV>
[[gnu::noinline]] void add_long_products(const T* q, const T* const (&row)[kAtOnce<NV>],
                                         int64_t width, Vec<T> (&sum)[kAtOnce<NV>][NV]) {
  for (int64_t d = 0; d < width; d += kSpan) {
    Vec<T> part[kAtOnce<NV>][NV]{};
    add_products<T, NV>(q, row, d, std::min(width, d + kSpan), part);
    for (int r = 0; r < kAtOnce<NV>; ++r)
      for (int v = 0; v < NV; ++v) sum[r][v] += part[r][v];
  }
}

// Dot products of kAtOnce keys with the group's queries, in registers, then handed to `take`.
template <class T, int NV, bool kMasked, class Take>
inline void score_keys(const Queries<T>& g, const Tile<T>& tile, int64_t width, int key,
                       const Take& take) {
  using V = Vec<T>;
  constexpr int kKeys = kAtOnce<NV>, kStep = NV * Lanes<T>::n;
  const T* row[kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kKeys; ++r)
    row[r] = tile.k + (kMasked ? std::min(key + r, tile.high - 1) : key + r) * tile.k_stride;
  V acc[kKeys][NV];
#pragma GCC unroll 8
  for (int r = 0; r < kKeys; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = V{};
  if (width <= kSpan)
    add_products<T, NV>(g.q, row, 0, width, acc);
  else
    add_long_products<T, NV>(g.q, row, width, acc);
#pragma GCC unroll 8
  for (int r = 0; r < kKeys; ++r)
    for (int v = 0; v < NV; ++v) {
      V s = acc[r][v];
      if constexpr (kMasked) s = sees(tile, kStep, v, key + r) ? s : spread(kNothing<T>);
      take(key + r, v, s);
    }
}

// Every key of the tile that some lane sees.
template <class T, int NV, class Take>
inline void score_tile(const Queries<T>& g, const Tile<T>& tile, int64_t width, const Take& take) {
  constexpr int kKeys = kAtOnce<NV>;
  int key = tile.low / kKeys * kKeys;
  if (!tile.masked)
    for (; key + kKeys <= tile.high; key += kKeys)
      score_keys<T, NV, false>(g, tile, width, key, take);
  for (; key < tile.high; key += kKeys) score_keys<T, NV, true>(g, tile, width, key, take);
}

// O^T <- alpha O^T + V^T P^T for kColumns columns of the values.
template <class T, int NV, int kColumns, bool kSpoilt>
inline void mix_columns(Queries<T>& g, const Tile<T>& tile, const T* p, const T* alpha,
                        int64_t column) {
  using V = Vec<T>;
  constexpr int kStep = NV * Lanes<T>::n;
  V acc[kColumns][NV];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < NV; ++v) acc[c][v] = V{};
  const T* value = tile.v + tile.low * tile.v_stride + column;
  for (int key = tile.low; key < tile.high; ++key, value += tile.v_stride) {
    V weight[NV];
    for (int v = 0; v < NV; ++v) weight[v] = load(p + key * kStep + v * Lanes<T>::n);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      V x = spread(value[c]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) {
        V next = fma(x, weight[v], acc[c][v]);
        // What is hidden is not even multiplied by zero: 0 * NaN would be felt.
        if constexpr (kSpoilt)
          acc[c][v] = sees(tile, kStep, v, key) ? next : acc[c][v];
        else
          acc[c][v] = next;
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < NV; ++v) {
      T* o = g.o + (column + c) * kStep + v * Lanes<T>::n;
      store(o, fma(load(o), load(alpha + v * Lanes<T>::n), acc[c][v]));
    }
}

template <class T, int NV, bool kSpoilt>
void mix_tile(Queries<T>& g, const Tile<T>& tile, const T* p, const T* alpha, int64_t width) {
  constexpr int kMost = kAtOnce<NV>;
  int64_t c = 0;
  for (; c + kMost <= width; c += kMost) mix_columns<T, NV, kMost, kSpoilt>(g, tile, p, alpha, c);
  if (kMost > 4 && c + 4 <= width) {
    mix_columns<T, NV, 4, kSpoilt>(g, tile, p, alpha, c);
    c += 4;
  }
  for (; c < width; ++c) mix_columns<T, NV, 1, kSpoilt>(g, tile, p, alpha, c);
}

// Lists of the largest scores, one in each lane: `score` goes in where it is larger than an entry,
// which moves down with all below it. Equal scores stay behind those that came first.
template <class T>
struct Ranked {
  Vec<T> score;
  typename Lanes<T>::M key;

  // Takes `other` in where `next` is larger than what is here; what was here goes on downwards.
  inline void push(Vec<T> next, Ranked& other) {
    auto goes = next > score;
    Ranked old = *this;
    score = goes ? other.score : old.score;
    key = goes ? other.key : old.key;
    other.score = goes ? old.score : other.score;
    other.key = goes ? old.key : other.key;
  }
};

template <class T>
inline Ranked<T> load_ranked(const Queries<T>& g, int64_t i, int at) {
  Ranked<T> x;
  x.score = load(g.top + i * g.lanes + at);
  __builtin_memcpy(&x.key, g.top_keys + i * g.lanes + at, sizeof x.key);
  return x;
}

template <class T>
inline void store_ranked(const Queries<T>& g, int64_t i, int at, const Ranked<T>& x) {
  store(g.top + i * g.lanes + at, x.score);
  __builtin_memcpy(g.top_keys + i * g.lanes + at, &x.key, sizeof x.key);
}

template <class T>
inline void insert_top(const Queries<T>& g, int64_t top, int at, Ranked<T> x) {
  Vec<T> score = x.score;
  for (int64_t i = 0; i < top; ++i) {
    Ranked<T> here = load_ranked(g, i, at);
    here.push(score, x);
    store_ranked(g, i, at, here);
  }
}

// kTop: so long a list stays in registers while the tile is gone through; 0: it does not.
template <class T, int kTop>
void watch_top(const Queries<T>& g, const Tile<T>& tile, int64_t top, const T* scores, int at) {
  using L = Lanes<T>;
  Ranked<T> list[kTop + 1];
  for (int i = 0; i < kTop; ++i) list[i] = load_ranked(g, i, at);
  const T* last = g.top + (top - 1) * g.lanes + at;
  for (int key = tile.low; key < tile.high; ++key) {
    Ranked<T> x;
    Vec<T> score_here = load(scores + key * g.lanes + at);
    x.score = score_here == score_here ? score_here : spread(-kNothing<T>);  // NaN comes first
    if (!any(x.score > (kTop ? list[std::max(0, kTop - 1)].score : load(last)))) continue;
    x.key = static_cast<typename L::Word>(tile.first + key) - typename L::M{};
    if constexpr (kTop == 0) {
      insert_top(g, top, at, x);
    } else {
      Vec<T> score = x.score;
#pragma GCC unroll 8
      for (int i = 0; i < kTop; ++i) list[i].push(score, x);
    }
  }
  for (int i = 0; i < kTop; ++i) store_ranked(g, i, at, list[i]);
}

template <class T, int NV>
void watch_top(const Queries<T>& g, const Tile<T>& tile, int64_t top, const T* scores,
               const Vec<T>* best, const Vec<T>* sum) {
  for (int v = 0; v < NV; ++v) {
    int at = v * Lanes<T>::n;
    if (!any((best[v] > load(g.top + (top - 1) * g.lanes + at)) | (sum[v] != sum[v]))) continue;
    switch (top) {
      case 1:
        watch_top<T, 1>(g, tile, top, scores, at);
        break;
      case 2:
        watch_top<T, 2>(g, tile, top, scores, at);
        break;
      case 4:
        watch_top<T, 4>(g, tile, top, scores, at);
        break;
      case 8:
        watch_top<T, 8>(g, tile, top, scores, at);
        break;
      default:
        watch_top<T, 0>(g, tile, top, scores, at);
    }
  }
}

template <class T, int NV>
void watch_distance(Queries<T>& g, const Tile<T>& tile, const T* p, const T* alpha,
                    const T* position) {
  using V = Vec<T>;
  for (int v = 0; v < NV; ++v) {
    int at = v * Lanes<T>::n;
    V here = load(position + at), sum{};
    for (int key = tile.low; key < tile.high; ++key) {
      V way = here - spread(static_cast<T>(tile.first + key));
      sum = fma(load(p + (key * NV) * Lanes<T>::n + at), larger(way, -way), sum);
    }
    T* d = g.state + kDistance * g.lanes + at;
    store(d, fma(load(d), load(alpha + at), sum));
  }
}

// Buffers of one worker for one tile: scores or weights, and numbers of each lane.
template <class T>
struct Buffers {
  T *scores, *weights, *alpha, *moved, *ref, *position;
};

// Scores, weights and mix of one tile. Exp is taken in registers as long as no lane's reference
// has to move; then the tile is done again in two passes. What a lane gets does not depend on it.
template <class T, int NV, bool kFacts>
void step(Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, const Problem& problem,
          const Buffers<T>& b) {
  using L = Lanes<T>;
  using V = Vec<T>;
  constexpr int kStep = NV * L::n;
  T* state = g.state;
  V factor = spread(plan.factor), nothing = spread(kNothing<T>), one = spread(T(1));
  V best[NV];
  bool fresh = false;  // a lane that has seen nothing yet has no reference to take exp against
  for (int v = 0; v < NV; ++v) {
    best[v] = nothing;
    V ref = load(state + kRef * kStep + v * L::n);
    fresh = fresh || any(ref == nothing);
    store(b.ref + v * L::n, ref);
    store(b.alpha + v * L::n, one);
    store(b.moved + v * L::n, V{});
  }
  Sums<T, NV, kFacts> sums;
  bool done = false;
  if (!fresh) {
    sums.begin(g, plan, b.ref);
    score_tile<T, NV>(g, tile, problem.width, [&](int key, int v, V s) {
      best[v] = larger(s, best[v]);
      if (plan.top) store(b.scores + key * kStep + v * L::n, s);
      store(b.weights + key * kStep + v * L::n, sums.weigh(s, v));
    });
    done = true;
    for (int v = 0; v < NV; ++v)
      done = done && !any((best[v] - sums.ref[v]) * factor > spread(T(kSlack)));
  }
  if (!done) {
    for (int v = 0; v < NV; ++v) best[v] = nothing;
    score_tile<T, NV>(g, tile, problem.width, [&](int key, int v, V s) {
      best[v] = larger(s, best[v]);
      store(b.scores + key * kStep + v * L::n, s);
    });
    for (int v = 0; v < NV; ++v) {
      T* kept = state + kRef * kStep + v * L::n;
      V old = load(kept);
      auto none = old == nothing;
      auto grows = none ? best[v] > nothing : (best[v] - old) * factor > spread(T(kSlack));
      V ref = grows ? best[v] : old;
      V way = (old - ref) * factor;
      store(kept, ref);
      store(b.ref + v * L::n, ref == nothing ? V{} : ref);
      store(b.alpha + v * L::n, grows ? exp2_lanes<T>(way) : one);
      store(b.moved + v * L::n, grows && !none ? way : V{});
    }
    sums.begin(g, plan, b.ref);
    int from = tile.low / kAtOnce<NV> * kAtOnce<NV>;
    if constexpr (kFacts)
      for (int v = 0; v < NV; ++v) {
        V a = load(b.alpha + v * L::n);
        sums.lead[v] = sums.lead[v] * a;
      }
    for (int key = from; key < tile.high; ++key)
      for (int v = 0; v < NV; ++v) {
        V s = load(b.scores + key * kStep + v * L::n);
        store(b.weights + key * kStep + v * L::n, sums.weigh(s, v));
      }
  }
  if (plan.top) watch_top<T, NV>(g, tile, plan.top, b.scores, best, sums.sum);
  sums.end(g, b.alpha, b.moved);
  for (int v = 0; v < NV; ++v) {
    T* most = state + kMax * kStep + v * L::n;
    store(most, larger(best[v], load(most)));
  }
  if (plan.distance) watch_distance<T, NV>(g, tile, b.weights, b.alpha, b.position);
  if (tile.masked && tile.spoilt)
    mix_tile<T, NV, true>(g, tile, b.weights, b.alpha, problem.value_width);
  else
    mix_tile<T, NV, false>(g, tile, b.weights, b.alpha, problem.value_width);
}

template <class T>
void step(Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, const Problem& problem,
          const Buffers<T>& b) {
  switch (g.vectors * 2 + plan.facts) {
    case 2:
      return step<T, 1, false>(g, tile, plan, problem, b);
    case 3:
      return step<T, 1, true>(g, tile, plan, problem, b);
    case 4:
      return step<T, 2, false>(g, tile, plan, problem, b);
    case 5:
      return step<T, 2, true>(g, tile, plan, problem, b);
    case 6:
      return step<T, 3, false>(g, tile, plan, problem, b);
    default:
      return step<T, 3, true>(g, tile, plan, problem, b);
  }
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
