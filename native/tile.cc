// Panels of queries and their walk over the keys, compiled once for each instruction set.
#include "tile.h"

#include <algorithm>
#include <limits>

#include "mask.h"
#include "pool.h"
#include "step.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// Rows of a panel: enough to use keys and values many times while they are in the cache.
constexpr int64_t kMostRows = 144;
constexpr int kMostGroups = 24;  // 144 rows of double in 128-bit vectors

// Groups of queries that walk the keys together.
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
  return lanes * (problem.value_width + kFields + 2 * problem.facts.top);
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
    g.top_keys = reinterpret_cast<typename Lanes<T>::Word*>(g.top + problem.facts.top * g.lanes);
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
  std::fill_n(g.top_keys, problem.facts.top * g.lanes, typename Lanes<T>::Word{-1});
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
      walk.seen = {std::min(walk.seen.start, g.seen.start), std::max(walk.seen.stop, g.seen.stop)};
  }
}

// Rows of keys or values that vectors can be broadcast from: where they are when the columns lie
// side by side, else copied here.
template <class T>
const T* rows_from(const View& view, const Panel& panel, const int64_t* index, int64_t first,
                   int64_t count, int64_t width, T* copy, int64_t* stride) {
  const char* from = view.at(panel.batch, panel.kv_head, 0);
  bool aligned =
      (reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(view.row)) % sizeof(T) == 0;
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
bool look(const Walk<T>& walk, const Queries<T>& g, int64_t first, int count, const int64_t* index,
          typename Lanes<T>::Word* words, Tile<T>* tile) {
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
    if (walk.plan.top > kTile && stopping()) return;  // long lists make long tiles
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
          room.buffers.position[lane] =
              static_cast<T>(place_of(walk, g, lane).query + problem.position[walk.panel.batch]);
      step(g, tile, walk.plan, problem, room.buffers);
    }
  }
}

template <class T>
void merge_group(const Problem& problem, const Plan<T>& plan, Queries<T>& a, const Queries<T>& b) {
  using L = Lanes<T>;
  using V = Vec<T>;
  V factor = spread(plan.factor);
  for (int at = 0; at < a.lanes; at += L::n) {
    auto mine = [&](int f) { return load(a.state + f * a.lanes + at); };
    auto theirs = [&](int f) { return load(b.state + f * a.lanes + at); };
    V nil{};
    auto keep = theirs(kSum) == nil, take = mine(kSum) == nil;
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
    V shifted =
        fma(fma(way_a, sum_a, mine(kShifted)), wa, fma(way_b, sum_b, theirs(kShifted)) * wb);
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
  for (int at = 0; at < a.lanes; at += L::n)
    for (int64_t i = 0; i < plan.top; ++i) insert_top(a, plan.top, at, load_ranked(b, i, at));
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
  bool none = sum == 0;  // NaN is something
  double unit = plan_unit(plan);
  // With the largest weight aside, what is left of a saturated row is not rounded away.
  double lead = field(kLead), rest = field(kRest);
  double mass = plan.facts ? lead + rest : sum;
  double lse = none ? double{kNothing<T>} : ref * unit + std::log(mass);
  put(f.lse, at, lse);
  if (f.exact_lse) f.exact_lse[at] = lse;
  put(f.max_logit, at, sum == sum ? field(kMax) * plan.scale : sum);
  put(f.distance, at, none ? 0 : field(kDistance) / sum);
  if (plan.facts) {
    lead = none ? 0 : lead / mass;
    rest = none ? 0 : rest / mass;
    double squares = none ? 0 : field(kSquares) / (mass * mass);
    put(f.entropy, at, none ? 0 : std::log(mass) - kLn2 * field(kShifted) / mass);
    put(f.saturation, at, lead * lead + squares);
    put(f.flow, at, 2 * rest - rest * rest - squares);
  }
  for (int64_t i = 0; i < plan.top; ++i) {
    int64_t key = g.top_keys[i * g.lanes + lane];
    f.top_keys[at * plan.top + i] = key;
    put(f.top_weights, at * plan.top + i, key < 0 ? 0 : g.top[i * g.lanes + lane]);
  }
}

template <class T>
void finish_group(const Problem& problem, const Panel& panel, const Plan<T>& plan,
                  const Queries<T>& g) {
  T* sums = g.state + kSum * g.lanes;
  for (int at = 0; at < g.lanes; at += Lanes<T>::n) {
    auto none = load(sums + at) == Vec<T>{};
    Vec<T> share = spread(T(1)) / load(sums + at);
    for (int64_t c = 0; c < problem.value_width; ++c) {
      T* o = g.o + c * g.lanes + at;
      store(o, none ? Vec<T>{} : load(o) * share);
    }
    Vec<T> ref = load(g.state + kRef * g.lanes + at);
    for (int64_t i = 0; i < plan.top; ++i) {
      T* top = g.top + i * g.lanes + at;  // from here on weights
      store(top, exp2_lanes<T>((load(top) - ref) * plan.factor) * share);
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
      if ((problem.facts.lse || problem.facts.exact_lse) && lane + i < g.used)
        write_facts(problem, plan, g, lane + i, at);
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
    double lse = block.lse[at], unit = plan_unit(walk.plan);
    T* to = reinterpret_cast<T*>(block.output) + at * block.keys + tile.first;
    for (int key = tile.low; key < tile.high; ++key) {
      T s = scores[key * kStep + lane];
      to[key] = s == kNothing<T> ? 0 : static_cast<T>(std::exp(double{s} * unit - lse));
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

const Table table_f32 = {
    CHUMOKU_TEXT(CHUMOKU_ISA), kMostRows,    3 * Lanes<float>::n, whole<float>,  chunk<float>,
    part_bytes<float>,         clear<float>, merge<float>,        finish<float>, weights<float>};
const Table table_f64 = {CHUMOKU_TEXT(CHUMOKU_ISA),
                         kMostRows,
                         3 * Lanes<double>::n,
                         whole<double>,
                         chunk<double>,
                         part_bytes<double>,
                         clear<double>,
                         merge<double>,
                         finish<double>,
                         weights<double>};

}  // namespace chumoku::CHUMOKU_ISA
