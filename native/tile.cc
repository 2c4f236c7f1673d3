// The tile kernel, compiled once for each instruction set. Queries lie in the lanes of vectors and
// keys are walked one by one, so that every sum of a row is taken in the same order whatever the
// other lanes hold: S^T = K Q^T and O^T = V^T P^T with K and V broadcast from where they are.
#include "tile.h"

#include <algorithm>
#include <limits>

#include "lanes.h"
#include "mask.h"
#include "pool.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// Rows of a panel: enough to use keys and values many times while they are in the cache.
constexpr int64_t kMostRows = 144;
constexpr int kMostGroups = 24;  // 144 rows of double in 128-bit vectors

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
  int64_t first = 0;  // row within the group of heads
  T* q = nullptr;     // [width][lanes]
  T* o = nullptr;     // [value_width][lanes]
  T* state = nullptr; // [kFields][lanes]
  T* top = nullptr;   // [lanes][top] raw scores, largest first
  int64_t* top_keys = nullptr;
  Range seen, solid;  // keys that some lane sees; keys that every lane sees
};

template <class T>
struct Tile {
  const T* k;
  int64_t k_stride;
  const T* v;
  int64_t v_stride;
  int64_t first;             // key of bit 0
  int low, high;             // keys that some lane sees
  bool masked, spoilt;       // spoilt: hidden values may be NaN or infinite
  const typename Lanes<T>::Word* words;  // bit j: the lane sees key j; float: [2][lanes] halves
};

template <class T>
struct Plan {
  T factor;   // of the raw scores, in powers of two
  T sign;     // of the packed queries
  double scale;
  bool facts, distance;
  int64_t top;
};

template <class T>
Plan<T> plan_of(const Problem& problem) {
  double size = problem.scale < 0 ? -problem.scale : problem.scale;
  const Facts& f = problem.facts;
  return {static_cast<T>((size == 0 ? 1 : size) * kLog2e),
          static_cast<T>(problem.scale < 0 ? -1 : problem.scale > 0 ? 1 : 0),
          size == 0 ? 1 : size,
          f.entropy || f.saturation || f.flow,
          f.distance != nullptr,
          f.top};
}

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

// ---- one tile of one group ----

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
  V factor, shift[NV], sum[NV], shifted[NV], lead[NV], best[NV], rest[NV], squares[NV];

  // `ref` holds the reference of each lane, with 0 for lanes that have none.
  inline void begin(const Queries<T>& g, const Plan<T>& plan, const T* ref) {
    factor = spread(plan.factor);
    for (int v = 0; v < NV; ++v) {
      int at = v * Lanes<T>::n;
      shift[v] = -(load(ref + at) * factor);
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
    V x = fma(score, factor, shift[v]);
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
  const T* q = g.q;
  for (int64_t d = 0; d < width; ++d, q += kStep) {
    V lanes[NV];
    for (int v = 0; v < NV; ++v) lanes[v] = load(q + v * Lanes<T>::n);
#pragma GCC unroll 8
    for (int r = 0; r < kKeys; ++r) {
      V k = spread(row[r][d]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(k, lanes[v], acc[r][v]);
    }
  }
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

template <class T>
void keep_top(Queries<T>& g, const Plan<T>& plan, int lane, T score, int64_t key) {
  T* top = g.top + lane * plan.top;
  int64_t* keys = g.top_keys + lane * plan.top;
  int64_t at = plan.top - 1;
  if (!(score > top[at])) return;  // NaN too stays outside
  // Equal scores stay behind those that came first: the lower key wins.
  for (; at > 0 && score > top[at - 1]; --at) {
    top[at] = top[at - 1];
    keys[at] = keys[at - 1];
  }
  top[at] = score;
  keys[at] = key;
}

template <class T, int NV>
void watch_top(Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, const T* scores,
               const Vec<T>* best) {
  using L = Lanes<T>;
  for (int v = 0; v < NV; ++v)
    for (int i = 0; i < L::n; ++i) {
      int lane = v * L::n + i;
      const T* least = g.top + (lane + 1) * plan.top - 1;
      if (!(best[v][i] > *least)) continue;
      const T* s = scores + tile.low * NV * L::n + lane;
      for (int key = tile.low; key < tile.high; ++key, s += NV * L::n)
        if (*s > *least) keep_top(g, plan, lane, *s, tile.first + key);
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
      done = done && !any(fma(best[v], factor, sums.shift[v]) > spread(T(kSlack)));
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
      auto grows =
          none ? best[v] > nothing : fma(best[v], factor, -(old * factor)) > spread(T(kSlack));
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
  if (plan.top) watch_top<T, NV>(g, tile, plan, b.scores, best);
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
    case 2: return step<T, 1, false>(g, tile, plan, problem, b);
    case 3: return step<T, 1, true>(g, tile, plan, problem, b);
    case 4: return step<T, 2, false>(g, tile, plan, problem, b);
    case 5: return step<T, 2, true>(g, tile, plan, problem, b);
    case 6: return step<T, 3, false>(g, tile, plan, problem, b);
    default: return step<T, 3, true>(g, tile, plan, problem, b);
  }
}

// ---- a panel: groups of queries that walk the keys together ----

template <class T>
struct Walk {
  const Problem& problem;
  const Panel& panel;
  Plan<T> plan;
  Queries<T> groups[kMostGroups];
  int count = 0;
  Range seen;
};

template <class T>
constexpr int64_t group_lanes(int64_t rows) {
  return std::min<int64_t>(3, (rows + Lanes<T>::n - 1) / Lanes<T>::n) * Lanes<T>::n;
}

// State of `lanes` queries, in numbers of T.
template <class T>
int64_t state_size(const Problem& problem, int64_t lanes) {
  int64_t per_key = sizeof(int64_t) / sizeof(T) + 1;
  return lanes * (problem.value_width + kFields + problem.facts.top * per_key);
}

template <class T>
int64_t rows_state(const Problem& problem, int64_t rows) {
  int64_t size = 0;
  for (int64_t r = 0; r < rows; r += 3 * Lanes<T>::n)
    size += state_size<T>(problem, group_lanes<T>(rows - r));
  return size;
}

template <class T>
size_t part_bytes(const Problem& problem, int64_t rows) {
  return static_cast<size_t>(rows_state<T>(problem, rows)) * sizeof(T);
}

// Lays the groups' states over memory of part_bytes(); empty says whether to clear it.
template <class T>
int lay_out(const Problem& problem, int64_t rows, char* memory, Queries<T>* groups) {
  T* at = reinterpret_cast<T*>(memory);
  int count = 0;
  for (int64_t r = 0; r < rows; r += 3 * Lanes<T>::n) {
    Queries<T>& g = groups[count++];
    g.lanes = static_cast<int>(group_lanes<T>(rows - r));
    g.vectors = g.lanes / Lanes<T>::n;
    g.used = static_cast<int>(std::min<int64_t>(g.lanes, rows - r));
    g.o = at;
    g.state = g.o + problem.value_width * g.lanes;
    g.top = g.state + kFields * g.lanes;
    g.top_keys = reinterpret_cast<int64_t*>(g.top + problem.facts.top * g.lanes);
    at += state_size<T>(problem, g.lanes);
  }
  return count;
}

template <class T>
void clear_group(const Problem& problem, Queries<T>& g) {
  std::fill_n(g.o, problem.value_width * g.lanes, T(0));
  std::fill_n(g.state, kFields * g.lanes, T(0));
  std::fill_n(g.state + kRef * g.lanes, g.lanes, kNothing<T>);
  std::fill_n(g.state + kMax * g.lanes, g.lanes, kNothing<T>);
  std::fill_n(g.top, problem.facts.top * g.lanes, kNothing<T>);
  std::fill_n(g.top_keys, problem.facts.top * g.lanes, int64_t{-1});
}

template <class T>
void clear(const Problem& problem, int64_t rows, char* total) {
  Queries<T> groups[kMostGroups];
  int count = lay_out<T>(problem, rows, total, groups);
  for (int i = 0; i < count; ++i) clear_group(problem, groups[i]);
}

struct Row {
  int64_t head, row;
};

inline Row row_of(const Problem& problem, const Panel& panel, int64_t r) {
  int64_t group = problem.heads / problem.kv_heads, at = panel.first + r;
  return {panel.kv_head * group + at / problem.rows, at % problem.rows};
}

template <class T>
inline T read(const char* from) {
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// to[c * stride + r] = rows[r][c] for as many rows as a 128-bit vector has numbers, and back.
template <class T>
void transpose_in(const T* const* rows, int64_t columns, T* to, int64_t stride) {
  constexpr int n = 16 / sizeof(T);
  int64_t c = 0;
  for (; c + n <= columns; c += n) {
    Short<T> x[n];
    for (int r = 0; r < n; ++r) std::memcpy(&x[r], rows[r] + c, 16);
    turn(x);
    for (int r = 0; r < n; ++r) std::memcpy(to + (c + r) * stride, &x[r], 16);
  }
  for (; c < columns; ++c)
    for (int r = 0; r < n; ++r) to[c * stride + r] = rows[r][c];
}

template <class T>
void transpose_out(const T* from, int64_t stride, T* const* rows, int64_t columns) {
  constexpr int n = 16 / sizeof(T);
  int64_t c = 0;
  for (; c + n <= columns; c += n) {
    Short<T> x[n];
    for (int r = 0; r < n; ++r) std::memcpy(&x[r], from + (c + r) * stride, 16);
    turn(x);
    for (int r = 0; r < n; ++r) std::memcpy(rows[r] + c, &x[r], 16);
  }
  for (; c < columns; ++c)
    for (int r = 0; r < n; ++r) rows[r][c] = from[c * stride + r];
}

template <class T>
void pack_queries(const Problem& problem, const Panel& panel, const Plan<T>& plan, int64_t first,
                  Queries<T>& g) {
  constexpr int n = 16 / sizeof(T);
  const View& query = problem.query;
  bool plain = query.column == sizeof(T) && plan.sign == 1;
  for (int lane = 0; lane < g.lanes; lane += n) {
    const T* rows[n];
    bool aligned = plain && lane + n <= g.used;
    for (int i = 0; i < n; ++i) {
      Row row = row_of(problem, panel, first + std::min(lane + i, g.used - 1));
      const char* from = query.at(panel.batch, row.head, row.row);
      rows[i] = reinterpret_cast<const T*>(from);
      aligned = aligned && reinterpret_cast<uintptr_t>(from) % sizeof(T) == 0;
    }
    T* to = g.q + lane;
    if (aligned) {
      transpose_in(rows, problem.width, to, g.lanes);
      continue;
    }
    for (int i = 0; i < n; ++i)
      for (int64_t d = 0; d < problem.width; ++d) {
        const char* from = reinterpret_cast<const char*>(rows[i]) + d * query.column;
        to[d * g.lanes + i] = lane + i < g.used ? read<T>(from) * plan.sign : T(0);
      }
  }
}

template <class T>
Place place_of(const Walk<T>& walk, const Queries<T>& g, int lane) {
  Row row = row_of(walk.problem, walk.panel, g.first + std::min(lane, g.used - 1));
  return {walk.panel.batch, row.head, walk.problem.query_of(row.row)};
}

// Lays out the groups, packs their queries and finds the keys they may see.
template <class T>
void begin(Walk<T>& walk, char* states, T* packed) {
  const Problem& problem = walk.problem;
  walk.count = lay_out<T>(problem, walk.panel.rows, states, walk.groups);
  walk.seen = {problem.keys, 0};
  int64_t first = 0;
  for (int i = 0; i < walk.count; ++i) {
    Queries<T>& g = walk.groups[i];
    g.first = first;
    g.q = packed;
    pack_queries(problem, walk.panel, walk.plan, first, g);
    packed += problem.width * g.lanes;
    first += g.used;
    g.seen = {0, problem.keys};
    g.solid = g.seen;
    if (problem.mask) {
      g.seen = {problem.keys, 0};
      for (int lane = 0; lane < g.used; ++lane) {
        Place place = place_of(walk, g, lane);
        Range some = hull(*problem.mask, place), all = solid(*problem.mask, place);
        g.solid = {std::max(g.solid.start, all.start), std::min(g.solid.stop, all.stop)};
        if (!some.empty())
          g.seen = {std::min(g.seen.start, some.start), std::max(g.seen.stop, some.stop)};
      }
    }
    if (!g.seen.empty())
      walk.seen = {std::min(walk.seen.start, g.seen.start),
                   std::max(walk.seen.stop, g.seen.stop)};
  }
}

// Rows of keys or values that vectors can be broadcast from: where they are when the columns lie
// side by side, else copied here.
template <class T>
const T* rows_from(const View& view, const Panel& panel, const int64_t* index, int64_t first,
                   int64_t count, int64_t width, T* copy, int64_t* stride) {
  const char* from = view.at(panel.batch, panel.kv_head, 0);
  bool aligned = (reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(view.row)) % sizeof(T) == 0;
  if (!index && aligned && (view.column == sizeof(T) || width == 1)) {
    *stride = view.row / static_cast<int64_t>(sizeof(T));
    return reinterpret_cast<const T*>(from + first * view.row);
  }
  *stride = width;
  for (int64_t j = 0; j < count; ++j) {
    const char* row = from + (index ? index[first + j] : first + j) * view.row;
    for (int64_t d = 0; d < width; ++d) copy[j * width + d] = read<T>(row + d * view.column);
  }
  return copy;
}

template <class T>
bool all_finite(const T* rows, int64_t stride, int64_t count, int64_t width) {
  T sum = 0;
  for (int64_t j = 0; j < count; ++j)
    for (int64_t d = 0; d < width; ++d) sum += rows[j * stride + d] * T(0);
  return sum == 0;
}

// Which keys of the tile the group's lanes see. False when none does.
template <class T>
bool look(const Walk<T>& walk, const Queries<T>& g, int64_t first, int count,
          const int64_t* index, typename Lanes<T>::Word* words, Tile<T>* tile) {
  uint64_t whole = low_bits(count), some = 0, every = whole;
  bool inside = !index && g.solid.start <= first && first + count <= g.solid.stop;
  auto put = [&](int lane, uint64_t bits) {
    words[lane] = static_cast<typename Lanes<T>::Word>(bits);
    if (sizeof(T) == 4) words[g.lanes + lane] = static_cast<typename Lanes<T>::Word>(bits >> 32);
  };
  if (inside || !walk.problem.mask) {
    if (count < kTile)
      for (int lane = 0; lane < g.lanes; ++lane) put(lane, whole);
    some = whole;
  } else {
    const Mask& mask = *walk.problem.mask;
    for (int lane = 0; lane < g.lanes; ++lane) {
      Place place = place_of(walk, g, lane);
      uint64_t bits = 0;
      if (index)
        for (int j = 0; j < count; ++j) bits |= word(mask, place, index[first + j], 1) << j;
      else
        bits = word(mask, place, first, count);
      put(lane, bits);
      some |= bits;
      every &= bits;
    }
  }
  tile->words = words;
  tile->first = first;
  tile->masked = every != whole;
  tile->low = some ? __builtin_ctzll(some) : 0;
  tile->high = some ? 64 - __builtin_clzll(some) : 0;
  return some != 0;
}

template <class T>
struct Room {
  T *packed, *k, *v;
  Buffers<T> buffers;
  typename Lanes<T>::Word* words;
  char* states[2];
};

// Cuts one worker's memory into its parts.
template <class T>
Room<T> room_of(const Problem& problem, int64_t rows, Scratch& scratch) {
  constexpr int64_t kLine = 64;
  int64_t lanes = 3 * Lanes<T>::n, padded = (rows + lanes - 1) / lanes * lanes;
  int64_t sizes[] = {padded * problem.width * int64_t{sizeof(T)},
                     kTile * problem.width * int64_t{sizeof(T)},
                     kTile * problem.value_width * int64_t{sizeof(T)},
                     (kTile + 8) * lanes * int64_t{sizeof(T)},
                     (kTile + 8) * lanes * int64_t{sizeof(T)},
                     4 * lanes * int64_t{sizeof(T)},
                     lanes * 8,
                     static_cast<int64_t>(part_bytes<T>(problem, rows)),
                     static_cast<int64_t>(part_bytes<T>(problem, rows))};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + kLine - 1) / kLine * kLine;
  char* at = scratch.get(static_cast<size_t>(total));
  char* parts[9];
  for (int i = 0; i < 9; ++i) {
    parts[i] = at;
    at += (sizes[i] + kLine - 1) / kLine * kLine;
  }
  auto numbers = [&](int i) { return reinterpret_cast<T*>(parts[i]); };
  T* per_lane = numbers(5);
  return {numbers(0),
          numbers(1),
          numbers(2),
          {numbers(3), numbers(4), per_lane, per_lane + lanes, per_lane + 2 * lanes,
           per_lane + 3 * lanes},
          reinterpret_cast<typename Lanes<T>::Word*>(parts[6]),
          {parts[7], parts[8]}};
}

// Adds one chunk of keys to the groups' states.
template <class T>
void walk_chunk(Walk<T>& walk, Queries<T>* groups, int64_t chunk, const Room<T>& room) {
  const Problem& problem = walk.problem;
  Range keys{std::max(walk.seen.start / kTile * kTile, chunk * kChunk),
             std::min(walk.seen.stop, (chunk + 1) * kChunk)};
  for (int64_t first = keys.start; first < keys.stop; first += kTile) {
    int count = static_cast<int>(std::min<int64_t>(kTile, problem.keys - first));
    Tile<T> tile{};
    int checked = -1;
    for (int i = 0; i < walk.count; ++i) {
      Queries<T>& g = groups[i];
      if (first >= g.seen.stop || first + count <= g.seen.start) continue;
      if (!look<T>(walk, g, first, count, nullptr, room.words, &tile)) continue;
      if (!tile.k) {
        tile.k = rows_from(problem.key, walk.panel, nullptr, first, count, problem.width, room.k,
                           &tile.k_stride);
        tile.v = rows_from(problem.value, walk.panel, nullptr, first, count, problem.value_width,
                           room.v, &tile.v_stride);
      }
      if (tile.masked && checked < 0)
        checked = all_finite(tile.v, tile.v_stride, count, problem.value_width);
      tile.spoilt = checked == 0;
      if (walk.plan.distance)
        for (int lane = 0; lane < g.lanes; ++lane)
          room.buffers.position[lane] = static_cast<T>(
              place_of(walk, g, lane).query + problem.position[walk.panel.batch]);
      step(g, tile, walk.plan, problem, room.buffers);
    }
  }
}

// ---- joining chunks, and the end ----

template <class T>
void merge_group(const Problem& problem, const Plan<T>& plan, Queries<T>& a, const Queries<T>& b) {
  using L = Lanes<T>;
  using V = Vec<T>;
  V nothing = spread(kNothing<T>), factor = spread(plan.factor);
  for (int at = 0; at < a.lanes; at += L::n) {
    auto mine = [&](int f) { return load(a.state + f * a.lanes + at); };
    auto theirs = [&](int f) { return load(b.state + f * a.lanes + at); };
    auto keep = theirs(kRef) == nothing, take = mine(kRef) == nothing;
    V ref = larger(theirs(kRef), mine(kRef));
    V way_a = (mine(kRef) - ref) * factor, way_b = (theirs(kRef) - ref) * factor;
    V wa = exp2_lanes<T>(way_a), wb = exp2_lanes<T>(way_b);
    // A side that has seen nothing leaves the other as it is, bit for bit.
    auto join = [&](V x, V y, V both) { return keep ? x : take ? y : both; };
    auto put = [&](int f, V x) { store(a.state + f * a.lanes + at, x); };
    for (int64_t c = 0; c < problem.value_width; ++c) {
      T* o = a.o + c * a.lanes + at;
      V x = load(o), y = load(b.o + c * a.lanes + at);
      store(o, join(x, y, fma(x, wa, y * wb)));
    }
    V sum_a = mine(kSum), sum_b = theirs(kSum);
    V shifted = fma(fma(way_a, sum_a, mine(kShifted)), wa,
                    fma(way_b, sum_b, theirs(kShifted)) * wb);
    V lead_a = mine(kLead) * wa, lead_b = theirs(kLead) * wb;
    auto second = theirs(kMax) > mine(kMax);
    V smaller = second ? lead_a : lead_b;
    V rest = fma(mine(kRest), wa, theirs(kRest) * wb) + smaller;
    V squares = fma(mine(kSquares), wa * wa, theirs(kSquares) * (wb * wb));
    V distance = fma(mine(kDistance), wa, theirs(kDistance) * wb);
    put(kSum, join(sum_a, sum_b, fma(sum_a, wa, sum_b * wb)));
    put(kShifted, join(mine(kShifted), theirs(kShifted), shifted));
    put(kSquares, join(mine(kSquares), theirs(kSquares), fma(smaller, smaller, squares)));
    put(kRest, join(mine(kRest), theirs(kRest), rest));
    put(kDistance, join(mine(kDistance), theirs(kDistance), distance));
    put(kLead, join(mine(kLead), theirs(kLead), second ? lead_b : lead_a));
    put(kMax, larger(theirs(kMax), mine(kMax)));
    put(kRef, ref);
  }
  for (int lane = 0; lane < a.lanes; ++lane)
    for (int64_t i = 0; i < plan.top; ++i)
      keep_top(a, plan, lane, b.top[lane * plan.top + i], b.top_keys[lane * plan.top + i]);
}

template <class T>
void merge(const Problem& problem, int64_t rows, char* total, const char* part) {
  Queries<T> a[kMostGroups], b[kMostGroups];
  int count = lay_out<T>(problem, rows, total, a);
  lay_out<T>(problem, rows, const_cast<char*>(part), b);
  for (int i = 0; i < count; ++i) merge_group(problem, plan_of<T>(problem), a[i], b[i]);
}

// Facts of one row, from what was kept of its lane.
template <class T>
void write_facts(const Problem& problem, const Plan<T>& plan, const Queries<T>& g, int lane,
                 int64_t at) {
  const Facts& f = problem.facts;
  auto field = [&](int name) { return static_cast<double>(g.state[name * g.lanes + lane]); };
  auto put = [&](char* array, int64_t i, double x) {
    if (array) reinterpret_cast<T*>(array)[i] = static_cast<T>(x);
  };
  double sum = field(kSum), ref = field(kRef);
  bool none = ref == kNothing<T>;
  double unit = plan.factor * kLn2;  // a raw score in nats
  double lse = none ? double{kNothing<T>} : ref * unit + std::log(sum);
  put(f.lse, at, lse);
  put(f.max_logit, at, none || sum == sum ? field(kMax) * problem.scale * plan.sign : sum);
  double lead = none ? 0 : field(kLead) / sum, rest = none ? 0 : field(kRest) / sum;
  double squares = none ? 0 : field(kSquares) / (sum * sum);
  put(f.entropy, at, none ? 0 : std::log(sum) - kLn2 * field(kShifted) / sum);
  put(f.saturation, at, lead * lead + squares);
  put(f.flow, at, 2 * rest - rest * rest - squares);
  put(f.distance, at, none ? 0 : field(kDistance) / sum);
  for (int64_t i = 0; i < plan.top; ++i) {
    T score = g.top[lane * plan.top + i];
    int64_t key = g.top_keys[lane * plan.top + i];
    f.top_keys[at * plan.top + i] = key;
    double weight = key < 0 ? 0 : std::exp2((double{score} - ref) * plan.factor) / sum;
    put(f.top_weights, at * plan.top + i, weight);
  }
}

template <class T>
void finish_group(const Problem& problem, const Panel& panel, const Plan<T>& plan,
                  const Queries<T>& g) {
  T* sums = g.state + kSum * g.lanes;
  for (int at = 0; at < g.lanes; at += Lanes<T>::n) {
    auto none = load(g.state + kRef * g.lanes + at) == spread(kNothing<T>);
    Vec<T> share = spread(T(1)) / load(sums + at);
    for (int64_t c = 0; c < problem.value_width; ++c) {
      T* o = g.o + c * g.lanes + at;
      store(o, none ? Vec<T>{} : load(o) * share);
    }
  }
  constexpr int n = 16 / sizeof(T);
  int64_t width = problem.value_width;
  for (int lane = 0; lane < g.used; lane += n) {
    T* to[n];
    for (int i = 0; i < n; ++i) {
      Row row = row_of(problem, panel, g.first + std::min(lane + i, g.used - 1));
      int64_t at = (panel.batch * problem.heads + row.head) * problem.rows + row.row;
      to[i] = reinterpret_cast<T*>(problem.output) + at * width;
      if (problem.facts.lse && lane + i < g.used) write_facts(problem, plan, g, lane + i, at);
    }
    if (lane + n <= g.used) {
      transpose_out(g.o + lane, g.lanes, to, width);
      continue;
    }
    for (int i = 0; lane + i < g.used; ++i)
      for (int64_t c = 0; c < width; ++c) to[i][c] = g.o[c * g.lanes + lane + i];
  }
}

template <class T>
void finish(const Problem& problem, const Panel& panel, char* total) {
  Queries<T> groups[kMostGroups];
  int count = lay_out<T>(problem, panel.rows, total, groups);
  int64_t first = 0;
  for (int i = 0; i < count; ++i) {
    groups[i].first = first;
    first += groups[i].used;
    finish_group(problem, panel, plan_of<T>(problem), groups[i]);
  }
}

template <class T>
void whole(const Problem& problem, const Panel& panel, Scratch& scratch) {
  Room<T> room = room_of<T>(problem, panel.rows, scratch);
  Walk<T> walk{problem, panel, plan_of<T>(problem), {}, 0, {}};
  begin(walk, room.states[0], room.packed);
  for (int i = 0; i < walk.count; ++i) clear_group(problem, walk.groups[i]);
  Queries<T> later[kMostGroups];
  std::copy_n(walk.groups, walk.count, later);
  lay_out<T>(problem, panel.rows, room.states[1], later);
  bool begun = false;
  for (int64_t c = walk.seen.start / kChunk; c * kChunk < walk.seen.stop; ++c) {
    if (stopping()) return;
    if (begun)
      for (int i = 0; i < walk.count; ++i) clear_group(problem, later[i]);
    walk_chunk(walk, begun ? later : walk.groups, c, room);
    if (begun)
      for (int i = 0; i < walk.count; ++i)
        merge_group(problem, walk.plan, walk.groups[i], later[i]);
    begun = true;
  }
  finish<T>(problem, panel, room.states[0]);
}

template <class T>
void chunk(const Problem& problem, const Panel& panel, int64_t which, char* part,
           Scratch& scratch) {
  Room<T> room = room_of<T>(problem, panel.rows, scratch);
  Walk<T> walk{problem, panel, plan_of<T>(problem), {}, 0, {}};
  begin(walk, part, room.packed);
  for (int i = 0; i < walk.count; ++i) clear_group(problem, walk.groups[i]);
  walk_chunk(walk, walk.groups, which, room);
}

template <class T, int NV>
void weigh_block(const Walk<T>& walk, const Queries<T>& g, const Tile<T>& tile, const Block& block,
                 T* scores) {
  using L = Lanes<T>;
  constexpr int kStep = NV * L::n;
  const Problem& problem = walk.problem;
  score_tile<T, NV>(g, tile, problem.width,
                    [&](int key, int v, Vec<T> s) { store(scores + key * kStep + v * L::n, s); });
  for (int lane = 0; lane < g.used; ++lane) {
    Row row = row_of(problem, walk.panel, g.first + lane);
    int64_t at = (walk.panel.batch * problem.heads + row.head) * problem.rows + row.row;
    double lse = static_cast<double>(reinterpret_cast<const T*>(block.lse)[at]) * kLog2e;
    T* to = reinterpret_cast<T*>(block.output) + at * block.keys + tile.first;
    for (int key = tile.low; key < tile.high; ++key) {
      T s = scores[key * kStep + lane];
      to[key] = s == kNothing<T> ? 0 : static_cast<T>(std::exp2(double{s} * walk.plan.factor - lse));
    }
  }
}

template <class T>
void weights(const Problem& problem, const Block& block, const Panel& panel, Scratch& scratch) {
  Room<T> room = room_of<T>(problem, panel.rows, scratch);
  Walk<T> walk{problem, panel, plan_of<T>(problem), {}, 0, {}};
  begin(walk, room.states[0], room.packed);
  for (int64_t first = 0; first < block.keys; first += kTile) {
    if (stopping()) return;
    int count = static_cast<int>(std::min<int64_t>(kTile, block.keys - first));
    Tile<T> tile{};
    tile.k = rows_from(problem.key, panel, block.key_index, first, count, problem.width, room.k,
                       &tile.k_stride);
    for (int i = 0; i < walk.count; ++i) {
      const Queries<T>& g = walk.groups[i];
      for (int lane = 0; lane < g.used; ++lane) {
        Row row = row_of(problem, panel, g.first + lane);
        int64_t at = (panel.batch * problem.heads + row.head) * problem.rows + row.row;
        std::fill_n(reinterpret_cast<T*>(block.output) + at * block.keys + first, count, T(0));
      }
      if (!look<T>(walk, g, first, count, block.key_index, room.words, &tile)) continue;
      if (g.vectors == 1) weigh_block<T, 1>(walk, g, tile, block, room.buffers.scores);
      if (g.vectors == 2) weigh_block<T, 2>(walk, g, tile, block, room.buffers.scores);
      if (g.vectors == 3) weigh_block<T, 3>(walk, g, tile, block, room.buffers.scores);
    }
  }
}

}  // namespace

#define CHUMOKU_TEXT_OF(x) #x
#define CHUMOKU_TEXT(x) CHUMOKU_TEXT_OF(x)

const Table table_f32 = {CHUMOKU_TEXT(CHUMOKU_ISA), kMostRows, 3 * Lanes<float>::n, whole<float>,
                         chunk<float>, part_bytes<float>, clear<float>, merge<float>,
                         finish<float>, weights<float>};
const Table table_f64 = {CHUMOKU_TEXT(CHUMOKU_ISA), kMostRows, 3 * Lanes<double>::n,
                         whole<double>, chunk<double>, part_bytes<double>, clear<double>,
                         merge<double>, finish<double>, weights<double>};

}  // namespace chumoku::CHUMOKU_ISA
