// One tile of keys and one group of queries: scores, weights, what is watched, mix. Queries lie in
// the lanes of vectors and keys are walked one by one, so that every sum of a row is taken in the
// same order whatever the other lanes hold: S^T = K Q^T and O^T = V^T P^T with K and V broadcast
// from where they are. Included by tile.cc alone, once for each instruction set.
#pragma once

#include <algorithm>
#include <limits>

#include "attention.h"
#include "few.h"
#include "lanes.h"
#include "lists.h"
#include "mask.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// A row's reference maximum moves when a score passes it by this much (in powers of two): exp
// can then be taken while the scores are in registers, and stays below 2^8.
constexpr double kSlack = 8;

// Keys (or value columns) held in registers at once beside `vectors` of queries: 24 or 12
// accumulators, as many as the machine has registers for.
template <int vectors>
constexpr int kAtOnce = kBytes == 64 || vectors == 1 ? 8 : 4;

// What is kept of each lane.
enum Field { kRef, kSum, kMax, kShifted, kLead, kRest, kSquares, kDistance, kLeast, kFields };

// A group of queries, as wide as one to three vectors, and its state. Nothing is set beforehand:
// clearing room for the most groups would take longer than some calls.
template <class T>
struct Queries {
  int vectors, lanes, used;
  int64_t first;      // row within the group of heads
  T* q;               // [width][lanes]
  T* o;               // [value_width][lanes]
  T* state;           // [kFields][lanes]
  List<T> lists;      // of raw scores; from one lane to the next it is list_step()
  T* masses;          // [groups of keys][lanes]
  Range seen, solid;  // keys that some lane sees; keys that every lane sees
  Range* ranges;      // keys that each lane sees, or null when they are no intervals
  // Of few queries: how many, where their raw scores go, and their output [queries][value_width]
  // while a chunk is walked. 0 and null when they are handled lane by lane.
  int few;
  T* few_scores;
  T* few_output;
  char* few_spare;
};

template <class T>
struct Tile {
  const T* k;
  int64_t k_stride;
  const T* v;
  int64_t v_stride;
  Rows key_rows, value_rows;             // in place of them for few queries
  int64_t first;                         // key of bit 0
  int low, high;                         // keys that some lane sees
  Range of_vector[3];                    // the same for each vector of lanes
  Range ranges[5];                       // in which the vectors that see keys do not change
  int range_count;                       // of masked tiles
  bool masked, spoilt;                   // spoilt: hidden values may be NaN or infinite
  const typename Lanes<T>::Word* words;  // bit j: the lane sees key j; float: [2][lanes] halves
  const T* bias;                         // [kTile][lanes], or null
  T* slope;                              // where the slope of the cap is wanted, or null
};

// How raw scores become weights. Scores that are adjusted one by one (cap, bias, a scale out of the
// common) count in nats from there on.
template <class T>
struct Plan {
  Unit<T> unit;
  double scale;  // nats of one score
  T sign;        // of the packed queries
  bool adjusts;
  T factor, cap, per_cap;  // of adjusted scores; no cap: 0
  bool facts, distance;
  int64_t top;
};

template <class T>
Unit<T> unit_of(double nats) {
  long double twos = nats * 1.4426950408889634074L;
  T high = static_cast<T>(twos);
  return {high, static_cast<T>(twos - static_cast<long double>(high)), static_cast<T>(nats),
          Lanes<T>::kLowest / high};
}

template <class T>
Plan<T> plan_of(const Problem& problem) {
  constexpr double kMost = double{std::numeric_limits<T>::max()} / 4;
  double size = std::min(std::abs(problem.scale), kMost);
  // A scale so small leaves no room for the lowest difference that exp knows.
  bool adjusts = problem.biased || problem.softcap != 0 || size < 1e-30;
  double cap = problem.softcap ? std::clamp(problem.softcap, 1e-30, kMost) : 0;
  const Facts& f = problem.facts;
  return {unit_of<T>(adjusts ? 1 : size),
          adjusts ? 1 : std::abs(problem.scale),
          problem.scale < 0 ? T(-1) : T(1),
          adjusts,
          static_cast<T>(size),
          static_cast<T>(cap),
          static_cast<T>(cap ? 1 / cap : 0),
          f.entropy || f.saturation || f.flow,
          f.distance != nullptr,
          problem.listed()};
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

template <class T>
inline void put_word(typename Lanes<T>::Word* words, int lanes, int lane, uint64_t bits) {
  words[lane] = static_cast<typename Lanes<T>::Word>(bits);
  if (sizeof(T) == 4) words[lanes + lane] = static_cast<typename Lanes<T>::Word>(bits >> 32);
}

template <class T>
inline uint64_t word_of(const typename Lanes<T>::Word* words, int lanes, int lane) {
  uint64_t bits = static_cast<std::make_unsigned_t<typename Lanes<T>::Word>>(words[lane]);
  if (sizeof(T) == 4) bits |= uint64_t{static_cast<uint32_t>(words[lanes + lane])} << 32;
  return bits;
}

// Running facts of a tile: weights from scores, and everything that is summed along the way.
template <class T, int NV, bool kFacts>
struct Sums {
  using V = Vec<T>;
  Unit<T> unit;
  V ref[NV], sum[NV], shifted[NV], lead[NV], best[NV], rest[NV], squares[NV];

  // `references` holds that of each lane, with 0 for lanes that have none.
  inline void begin(const Queries<T>& g, const Plan<T>& plan, const T* references) {
    unit = plan.unit;
    for (int v = 0; v < NV; ++v) {
      int at = v * Lanes<T>::n;
      ref[v] = load(references + at);
      sum[v] = V{};
      best[v] = load(g.state + kMax * g.lanes + at);
      if constexpr (kFacts) {
        shifted[v] = V{};
        lead[v] = load(g.state + kLead * g.lanes + at);
        rest[v] = V{};
        squares[v] = V{};
      }
    }
  }

  inline V weigh(V score, int v) {
    V d = score - ref[v];  // before anything is multiplied: large scores would drown it
    V p = exp2_lanes<T>(d, unit);
    sum[v] += p;
    best[v] = larger(score, best[v]);
    if constexpr (kFacts) {
      shifted[v] = fma(p, larger(spread(unit.lowest), d), shifted[v]);
      // The largest weight is kept aside; of each pair the smaller goes to the rest.
      V smaller = lesser(lead[v], p);
      lead[v] = larger(p, lead[v]);
      rest[v] += smaller;
      squares[v] = fma(smaller, smaller, squares[v]);
    }
    return p;
  }

  // state <- alpha * state + this tile. `moved` is the way of the reference.
  inline void end(Queries<T>& g, const T* alpha, const T* moved) const {
    for (int v = 0; v < NV; ++v) {
      int at = v * Lanes<T>::n;
      auto field = [&](int f) { return g.state + f * g.lanes + at; };
      V a = load(alpha + at), old = load(field(kSum));
      store(field(kSum), fma(old, a, sum[v]));
      store(field(kMax), best[v]);
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

// Which vectors of a group take part, from `first` up to `last`: under a mask, keys of a tile may
// be hidden from whole vectors of queries.
template <int first_vector, int last_vector>
struct Vectors {
  static constexpr int first = first_vector, last = last_vector;
};

// Calls with the vectors that see any of the keys in `range`, or with some more.
template <class T, int NV, class Call>
inline void with_vectors(const Tile<T>& tile, const Range& range, const Call& call) {
  auto apart = [&](int v) {
    const Range& seen = tile.of_vector[v];
    return seen.stop <= range.start || range.stop <= seen.start;
  };
  if (NV == 1 || (!apart(0) && !apart(NV - 1))) return call(Vectors<0, NV>{});
  bool middle = NV == 3 && !apart(1);
  if (apart(0)) {
    if (NV == 2 || middle) return call(Vectors<1, NV>{});
    return call(Vectors<NV - 1, NV>{});
  }
  if (NV == 2 || middle) return call(Vectors<0, NV - 1>{});
  return call(Vectors<0, 1>{});
}

template <class T, int NV, class Some = Vectors<0, NV>>
inline void add_products(const T* q, const T* const (&row)[kAtOnce<NV>], int64_t begin, int64_t end,
                         Vec<T> (&acc)[kAtOnce<NV>][NV]) {
  using V = Vec<T>;
  constexpr int kStep = NV * Lanes<T>::n;
  q += begin * kStep;
  for (int64_t d = begin; d < end; ++d, q += kStep) {
    V lanes[NV];
    for (int v = Some::first; v < Some::last; ++v) lanes[v] = load(q + v * Lanes<T>::n);
#pragma GCC unroll 8
    for (int r = 0; r < kAtOnce<NV>; ++r) {
      V k = spread(row[r][d]);
#pragma GCC unroll 3
      for (int v = Some::first; v < Some::last; ++v) acc[r][v] = fma(k, lanes[v], acc[r][v]);
    }
  }
}

// Apart from the loop above, whose accumulators must stay in registers.
template <class T, int NV, class Some = Vectors<0, NV>>
[[gnu::noinline]] void add_long_products(const T* q, const T* const (&row)[kAtOnce<NV>],
                                         int64_t width, Vec<T> (&sum)[kAtOnce<NV>][NV]) {
  int64_t span = width <= kSpan ? kSpan / 2 : kSpan;
  for (int64_t d = 0; d < width; d += span) {
    Vec<T> part[kAtOnce<NV>][NV]{};
    add_products<T, NV, Some>(q, row, d, std::min(width, d + span), part);
    for (int r = 0; r < kAtOnce<NV>; ++r)
      for (int v = Some::first; v < Some::last; ++v) sum[r][v] += part[r][v];
  }
}

// Scale, cap and bias, when they are not left to exp.
template <class T, int NV>
[[gnu::noinline]] void adjust(const Plan<T>& plan, const Tile<T>& tile, int key,
                              Vec<T> (&score)[kAtOnce<NV>][NV]) {
  constexpr int n = Lanes<T>::n;
  for (int r = 0; r < kAtOnce<NV>; ++r)
    for (int v = 0; v < NV; ++v) {
      Vec<T> s = score[r][v] * plan.factor;
      int at = ((key + r) * NV + v) * n;
      if (plan.cap != 0) {
        Vec<T> share = tanh_lanes<T>(s * plan.per_cap);
        if (tile.slope) store(tile.slope + at, spread(T(1)) - share * share);
        s = share * plan.cap;
      }
      if (tile.bias) s += load(tile.bias + at);
      score[r][v] = s;
    }
}

// Dot products of kAtOnce keys with the group's queries, in registers, then handed to `take`.
template <class T, int NV, bool kMasked, class Take>
inline void score_keys(const Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, int64_t width,
                       int key, const Take& take) {
  using V = Vec<T>;
  constexpr int kKeys = kAtOnce<NV>, kStep = NV * Lanes<T>::n;
  V acc[kKeys][NV];
  if (NV == 1 && g.few) {
    for (int r = 0; r < kKeys; ++r) acc[r][0] = load(g.few_scores + (key + r) * kStep);
  } else {
    const T* row[kKeys];
#pragma GCC unroll 8
    for (int r = 0; r < kKeys; ++r)
      row[r] = tile.k + (kMasked ? std::min(key + r, tile.high - 1) : key + r) * tile.k_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kKeys; ++r)
      for (int v = 0; v < NV; ++v) acc[r][v] = V{};
    if (width <= kSpan / 2)
      add_products<T, NV>(g.q, row, 0, width, acc);
    else if (kMasked)
      with_vectors<T, NV>(tile, {key, key + kKeys}, [&](auto some) {
        add_long_products<T, NV, decltype(some)>(g.q, row, width, acc);
      });
    else
      add_long_products<T, NV>(g.q, row, width, acc);
  }
  if (plan.adjusts) adjust<T, NV>(plan, tile, key, acc);
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
inline void score_tile(const Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, int64_t width,
                       const Take& take) {
  constexpr int kKeys = kAtOnce<NV>;
  int key = tile.low / kKeys * kKeys;
  if (NV == 1 && g.few)
    with_few<T>(tile.key_rows.dtype, g.few, [&](auto number, auto count) {
      score_few<T, decltype(number), count>(tile.key_rows, g.q, width, key, tile.high, g.few_scores,
                                            g.few_spare);
    });
  if (!tile.masked)
    for (; key + kKeys <= tile.high; key += kKeys)
      score_keys<T, NV, false>(g, tile, plan, width, key, take);
  for (; key < tile.high; key += kKeys) score_keys<T, NV, true>(g, tile, plan, width, key, take);
}

// acc += V^T P^T for kColumns columns of the values, keys in `range` and vectors in Some.
template <class T, int NV, int kColumns, bool kSpoilt, class Some = Vectors<0, NV>>
inline void mix_keys(const Tile<T>& tile, const Range& range, const T* p, int64_t column,
                     Vec<T> (&acc)[kColumns][NV]) {
  using V = Vec<T>;
  constexpr int kStep = NV * Lanes<T>::n;
  const T* value = tile.v + range.start * tile.v_stride + column;
  for (int64_t key = range.start; key < range.stop; ++key, value += tile.v_stride) {
    V weight[NV];
    for (int v = Some::first; v < Some::last; ++v)
      weight[v] = load(p + key * kStep + v * Lanes<T>::n);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      V x = spread(value[c]);
#pragma GCC unroll 3
      for (int v = Some::first; v < Some::last; ++v) {
        V next = fma(x, weight[v], acc[c][v]);
        // What is hidden is not even multiplied by zero: 0 * NaN would be felt.
        if constexpr (kSpoilt)
          acc[c][v] = sees(tile, kStep, v, static_cast<int>(key)) ? next : acc[c][v];
        else
          acc[c][v] = next;
      }
    }
  }
}

// Which values of a tile are mixed by which vectors: all; of masked tiles only what some lane of a
// vector sees; of spoilt ones only what a lane itself sees.
enum class Mix { all, seen, spoilt };

// O^T <- alpha O^T + V^T P^T for kColumns columns of the values.
template <class T, int NV, int kColumns, Mix kMix>
inline void mix_columns(Queries<T>& g, const Tile<T>& tile, const T* p, const T* alpha,
                        int64_t column) {
  using V = Vec<T>;
  constexpr int kStep = NV * Lanes<T>::n;
  V acc[kColumns][NV];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < NV; ++v) acc[c][v] = V{};
  if constexpr (kMix == Mix::seen)
    for (int i = 0; i < tile.range_count; ++i)
      with_vectors<T, NV>(tile, tile.ranges[i], [&](auto some) {
        mix_keys<T, NV, kColumns, false, decltype(some)>(tile, tile.ranges[i], p, column, acc);
      });
  else
    mix_keys<T, NV, kColumns, kMix == Mix::spoilt>(tile, {tile.low, tile.high}, p, column, acc);
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < NV; ++v) {
      T* o = g.o + (column + c) * kStep + v * Lanes<T>::n;
      store(o, fma(load(o), load(alpha + v * Lanes<T>::n), acc[c][v]));
    }
}

template <class T, int NV, Mix kMix>
void mix_tile(Queries<T>& g, const Tile<T>& tile, const T* p, const T* alpha, int64_t width) {
  constexpr int kMost = kAtOnce<NV>;
  int64_t c = 0;
  for (; c + kMost <= width; c += kMost) mix_columns<T, NV, kMost, kMix>(g, tile, p, alpha, c);
  if (kMost > 4 && c + 4 <= width) {
    mix_columns<T, NV, 4, kMix>(g, tile, p, alpha, c);
    c += 4;
  }
  for (; c < width; ++c) mix_columns<T, NV, 1, kMix>(g, tile, p, alpha, c);
}

template <class T>
[[gnu::noinline]] void mix_few_tile(const Queries<T>& g, const Tile<T>& tile, const T* p,
                                    const T* alpha, int64_t width) {
  uint64_t seen[kFew<T>];
  bool asks = tile.masked && tile.spoilt;
  for (int r = 0; asks && r < kFew<T>; ++r) seen[r] = word_of<T>(tile.words, g.lanes, r);
  FewMix<T> mix{tile.value_rows,       tile.low,     tile.high, p, alpha,
                asks ? seen : nullptr, g.few_output, width};
  with_few<T>(tile.value_rows.dtype, g.few,
              [&](auto number, auto count) { mix_few<T, decltype(number), count>(mix); });
}

template <class T, int NV>
void watch_distance(Queries<T>& g, const Tile<T>& tile, const T* p, const T* alpha,
                    const T* position) {
  using V = Vec<T>;
  for (int v = 0; v < NV; ++v) {
    int at = v * Lanes<T>::n;
    V here = load(position + at), sum{};
    for (int key = tile.low; key < tile.high; ++key) {
      V way = here - spread(static_cast<T>(key));
      sum = fma(load(p + (key * NV) * Lanes<T>::n + at), larger(way, -way), sum);
    }
    T* d = g.state + kDistance * g.lanes + at;
    store(d, fma(load(d), load(alpha + at), sum));
  }
}

template <class T, int NV>
void watch_groups(Queries<T>& g, const Tile<T>& tile, const Facts& facts, const T* p,
                  const T* alpha) {
  constexpr int n = Lanes<T>::n, kStep = NV * n;
  for (int v = 0; v < NV; ++v) {
    Vec<T> a = load(alpha + v * n);
    T* masses = g.masses + v * n;
    if (any(a != spread(T(1))))
      for (int64_t i = 0; i < facts.group_count; ++i)
        store(masses + i * kStep, load(masses + i * kStep) * a);
    for (int key = tile.low; key < tile.high; ++key) {
      T* mass = masses + facts.groups[tile.first + key] * kStep;
      store(mass, load(mass) + load(p + key * kStep + v * n));
    }
  }
}

// Lanes whose random word is at least the threshold, from two halves of them for float.
inline I64 kept(const U64* words, uint64_t threshold, double) {
  return reinterpret_cast<I64>(words[0] >= threshold);
}

inline I32 kept(const U64* words, uint64_t threshold, float) {
  I32 evens;
  for (int i = 0; i < kBytes / 4; ++i) evens[i] = 2 * i;
  return __builtin_shuffle(reinterpret_cast<I32>(words[0] >= threshold),
                           reinterpret_cast<I32>(words[1] >= threshold), evens);
}

// Weights to mix with, those that are dropped set to 0. Four keys share one counter; each lane has
// its query and head.
template <class T, int NV>
[[gnu::noinline]] void drop(const Tile<T>& tile, const Problem& problem, const uint64_t* counters,
                            int64_t batch, const T* weights, T* mixed) {
  constexpr int n = Lanes<T>::n, kHalves = 8 / sizeof(T), kWords = n / kHalves;
  for (int v = 0; v < NV; ++v)
    for (int key = tile.low / 4 * 4; key < tile.high; key += 4) {
      U64 words[4][kHalves];
      for (int half = 0; half < kHalves; ++half) {
        const uint64_t* lane = counters + v * n + half * kWords;
        U64 c[4];
        c[0] = U64{} + static_cast<uint32_t>((tile.first + key) / 4);
        __builtin_memcpy(&c[1], lane, kBytes);
        __builtin_memcpy(&c[2], lane + NV * n, kBytes);
        c[3] = U64{} + static_cast<uint32_t>(batch);
        philox(c, problem.seed);
        for (int i = 0; i < 4; ++i) words[i][half] = c[i];
      }
      for (int i = 0; i < 4; ++i) {
        int64_t at = ((key + i) * NV + v) * n;
        store(mixed + at, kept(words[i], problem.threshold, T{}) ? load(weights + at) : Vec<T>{});
      }
    }
}

// Buffers of one worker for one tile: scores or weights, and numbers of each lane.
template <class T>
struct Buffers {
  T *scores, *weights, *bias, *candidates;
  const T* ahead;  // what will be read next, as large as the weights
  T *alpha, *moved, *ref, *position;
  uint64_t* counters;  // query of each lane, then its head
  int32_t* candidate_keys;
};

// Scores, weights and mix of one tile. Exp is taken in registers as long as no lane's reference
// has to move; then the tile is done again in two passes. What a lane gets does not depend on it.
template <class T, int NV, bool kFacts>
void step(Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, const Problem& problem,
          int64_t batch, const Buffers<T>& b) {
  using L = Lanes<T>;
  using V = Vec<T>;
  constexpr int kStep = NV * L::n;
  T* state = g.state;
  V factor = spread(plan.unit.high), nothing = spread(kNothing<T>), one = spread(T(1));
  bool fresh = false;  // a lane that has seen nothing yet has no reference to take exp against
  for (int v = 0; v < NV; ++v) {
    V ref = load(state + kRef * kStep + v * L::n);
    fresh = fresh || any(ref == nothing);
    store(b.ref + v * L::n, ref);
    store(b.alpha + v * L::n, one);
    store(b.moved + v * L::n, V{});
  }
  Sums<T, NV, kFacts> sums;
  Candidates<T, NV> candidates{b.candidates, b.candidate_keys, {}, {}};
  bool done = false;
  if (!fresh) {
    sums.begin(g, plan, b.ref);
    if (plan.top) candidates.begin(state + kLeast * kStep);
    score_tile<T, NV>(g, tile, plan, problem.width, [&](int key, int v, V s) {
      if (plan.top) candidates.offer(s, v, key);
      store(b.weights + key * kStep + v * L::n, sums.weigh(s, v));
      __builtin_prefetch(b.ahead + key * kStep + v * L::n, 1, 2);
    });
    done = true;
    for (int v = 0; v < NV; ++v)
      done = done && !any((sums.best[v] - sums.ref[v]) * factor > spread(T(kSlack)));
  }
  if (!done) {
    V best[NV];
    for (int v = 0; v < NV; ++v) best[v] = load(state + kMax * kStep + v * L::n);
    score_tile<T, NV>(g, tile, plan, problem.width, [&](int key, int v, V s) {
      best[v] = larger(s, best[v]);
      store(b.scores + key * kStep + v * L::n, s);
    });
    for (int v = 0; v < NV; ++v) {
      T* reference = state + kRef * kStep + v * L::n;
      V old = load(reference);
      auto none = old == nothing;
      auto grows = none ? best[v] > nothing : (best[v] - old) * factor > spread(T(kSlack));
      V ref = grows ? best[v] : old;
      V way = larger(spread(plan.unit.lowest), old - ref);  // what moves farther counts 0
      store(reference, ref);
      store(b.ref + v * L::n, ref == nothing ? V{} : ref);
      store(b.alpha + v * L::n, grows ? exp2_lanes<T>(way, plan.unit) : one);
      store(b.moved + v * L::n, grows && !none ? way : V{});
    }
    sums.begin(g, plan, b.ref);
    int from = tile.low / kAtOnce<NV> * kAtOnce<NV>;
    if (plan.top) candidates.begin(state + kLeast * kStep);
    if (plan.top && fresh)
      candidates.raise(b.scores, from, tile.high,
                       static_cast<int>(std::min<int64_t>(plan.top, kTile)));
    if constexpr (kFacts)
      for (int v = 0; v < NV; ++v) {
        V a = load(b.alpha + v * L::n);
        sums.lead[v] = sums.lead[v] * a;
      }
    for (int key = from; key < tile.high; ++key)
      for (int v = 0; v < NV; ++v) {
        V s = load(b.scores + key * kStep + v * L::n);
        if (plan.top) candidates.offer(s, v, key);
        store(b.weights + key * kStep + v * L::n, sums.weigh(s, v));
      }
  }
  if (plan.top)
    fill_lists<T, NV>(candidates, g.lists, plan.top, tile.first, state + kLeast * kStep);
  sums.end(g, b.alpha, b.moved);
  if (plan.distance) watch_distance<T, NV>(g, tile, b.weights, b.alpha, b.position);
  if (g.masses) watch_groups<T, NV>(g, tile, problem.facts, b.weights, b.alpha);
  const T* mixed = problem.dropped ? b.scores : b.weights;
  if (problem.dropped) drop<T, NV>(tile, problem, b.counters, batch, b.weights, b.scores);
  if (g.few_output)
    mix_few_tile(g, tile, mixed, b.alpha, problem.value_width);
  else if (!tile.masked)
    mix_tile<T, NV, Mix::all>(g, tile, mixed, b.alpha, problem.value_width);
  else if (tile.spoilt)
    mix_tile<T, NV, Mix::spoilt>(g, tile, mixed, b.alpha, problem.value_width);
  else
    mix_tile<T, NV, Mix::seen>(g, tile, mixed, b.alpha, problem.value_width);
}

template <class T>
void step(Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, const Problem& problem,
          int64_t batch, const Buffers<T>& b) {
  switch (g.vectors * 2 + plan.facts) {
    case 2:
      return step<T, 1, false>(g, tile, plan, problem, batch, b);
    case 3:
      return step<T, 1, true>(g, tile, plan, problem, batch, b);
    case 4:
      return step<T, 2, false>(g, tile, plan, problem, batch, b);
    case 5:
      return step<T, 2, true>(g, tile, plan, problem, batch, b);
    case 6:
      return step<T, 3, false>(g, tile, plan, problem, batch, b);
    default:
      return step<T, 3, true>(g, tile, plan, problem, batch, b);
  }
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
