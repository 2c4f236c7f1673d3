// The gradient of a block of keys: each group of queries that sees some of them is walked tile by
// tile, weights are taken again from the scores and the rows' lse. What the keys and values get is
// summed here, block by block; what a query gets is summed over the blocks, in their order.
// Included by tile.cc alone, once for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "walk.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// Vectors of columns held in registers beside those of kOuterKeys keys.
constexpr int kOuterKeys = 4;
constexpr int kOuterVectors = kBytes == 64 ? 4 : 2;

template <class T>
constexpr int64_t padded(int64_t width) {
  return (width + Lanes<T>::n - 1) / Lanes<T>::n * Lanes<T>::n;
}

// Rows of a group as numbers of T: padded with zeros to whole vectors.
template <class T>
struct Side {
  const T* at;
  int64_t stride, columns;
};

// Memory for one block of keys and one group of queries.
template <class T>
struct Back {
  T *weights, *pulls, *mixed, *ways, *slopes;    // [kTile + 8][lanes]
  T *query_copy, *upstream_copy, *output_copy;   // [lanes][columns]
  T *upstream, *query_sum;                       // [columns][lanes]
  T *key_sum, *value_sum;                        // [keys + 8][columns]
  T *key_copy, *value_copy;                      // [keys][columns]
  T *ref, *factor, *pull, *twist, *one, *spare;  // of each lane
};

template <class T>
Back<T> back_of(const Problem& p, const Gradients& asked, int64_t keys, Scratch& scratch) {
  constexpr int64_t lanes = 3 * Lanes<T>::n;
  int64_t tile = (kTile + 8) * lanes;
  int64_t sizes[] = {tile,
                     tile,
                     p.dropped ? tile : 0,
                     asked.twist ? tile : 0,
                     p.softcap != 0 ? tile : 0,
                     lanes * padded<T>(p.width),
                     lanes * padded<T>(p.value_width),
                     lanes * padded<T>(p.value_width),
                     lanes * p.value_width,
                     lanes * p.width,
                     (keys + 8) * padded<T>(p.width),
                     (keys + 8) * padded<T>(p.value_width),
                     keys * p.width,
                     keys * p.value_width,
                     lanes,
                     lanes,
                     lanes,
                     lanes,
                     lanes,
                     Lanes<T>::n * std::max(p.width, p.value_width)};
  constexpr int kParts = sizeof sizes / sizeof *sizes;
  constexpr int64_t kUnit = kLine / sizeof(T);
  int64_t total = 0;
  for (int64_t& size : sizes) total += size = (size + kUnit - 1) / kUnit * kUnit;
  T* at = reinterpret_cast<T*>(scratch.get(static_cast<size_t>(total) * sizeof(T)));
  T* parts[kParts];
  for (int i = 0; i < kParts; at += sizes[i++]) parts[i] = at;
  std::fill_n(parts[18], lanes, T(1));
  return {parts[0],  parts[1],  parts[2],  parts[3],  parts[4],  parts[5],  parts[6],
          parts[7],  parts[8],  parts[9],  parts[10], parts[11], parts[12], parts[13],
          parts[14], parts[15], parts[16], parts[17], parts[18], parts[19]};
}

// Rows of the queries, or of what comes from above, where they lie if vectors can be read there.
template <class T>
Side<T> side_of(const Walk<T>& walk, const Queries<T>& g, const View& view, int64_t width,
                T* copy) {
  const Problem& problem = walk.problem;
  int64_t columns = padded<T>(width);
  Row first = row_of(problem, walk.panel, g.first);
  Row last = row_of(problem, walk.panel, g.first + g.used - 1);
  const char* from = view.at(walk.panel.batch, first.head, first.row);
  bool aligned =
      (reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(view.row)) % sizeof(T) == 0;
  if (first.head == last.head && aligned && problem.item() == sizeof(T) && columns == width &&
      view.column == sizeof(T))
    return {reinterpret_cast<const T*>(from), view.row / static_cast<int64_t>(sizeof(T)), columns};
  for (int r = 0; r < g.used; ++r) {
    Row row = row_of(problem, walk.panel, g.first + r);
    T* to = copy + r * columns;
    read_row(problem, view.at(walk.panel.batch, row.head, row.row), view.column, width, to);
    std::fill(to + width, to + columns, T(0));
  }
  return {copy, columns, columns};
}

// sum[key][column] += sum over the rows in `range` of weights[key][row] * rows[row][column].
template <class T, int kKeys, int kVectors>
inline void add_outer(const T* weights, int lanes, const Side<T>& rows, int64_t column,
                      const Range& range, T* sum) {
  using V = Vec<T>;
  constexpr int n = Lanes<T>::n;
  V acc[kKeys][kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kKeys; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[k][v] = load(sum + k * rows.columns + column + v * n);
  const T* from = rows.at + range.start * rows.stride + column;
  for (int64_t row = range.start; row < range.stop; ++row, from += rows.stride) {
    V x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      x[v] = read_lanes(reinterpret_cast<const char*>(from + v * n), T{});
#pragma GCC unroll 4
    for (int k = 0; k < kKeys; ++k) {
      V weight = spread(weights[k * lanes + row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[k][v] = fma(weight, x[v], acc[k][v]);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kKeys; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sum + k * rows.columns + column + v * n, acc[k][v]);
}

// The same for all columns.
template <class T, int kKeys>
void add_outer(const T* weights, int lanes, const Side<T>& rows, const Range& range, T* sum) {
  constexpr int n = Lanes<T>::n;
  int64_t c = 0;
  for (; c + kOuterVectors * n <= rows.columns; c += kOuterVectors * n)
    add_outer<T, kKeys, kOuterVectors>(weights, lanes, rows, c, range, sum);
  switch ((rows.columns - c) / n) {
    case 1:
      return add_outer<T, kKeys, 1>(weights, lanes, rows, c, range, sum);
    case 2:
      if constexpr (kOuterVectors > 2)
        return add_outer<T, kKeys, 2>(weights, lanes, rows, c, range, sum);
      break;
    case 3:
      if constexpr (kOuterVectors > 2)
        return add_outer<T, kKeys, 3>(weights, lanes, rows, c, range, sum);
  }
}

// What the keys of a tile get from a group. `finite`: the rows are, so what is hidden adds nothing.
template <class T>
void add_to_keys(const Queries<T>& g, const Tile<T>& tile, const T* weights, const Side<T>& rows,
                 bool finite, T* sum) {
  constexpr int n = Lanes<T>::n;
  if (tile.masked && !finite) {
    for (int key = tile.low; key < tile.high; ++key)
      for (int row = 0; row < g.used; ++row)
        if (word_of<T>(tile.words, g.lanes, row) >> key & 1)
          add_outer<T, 1>(weights + key * g.lanes, g.lanes, rows, {row, row + 1},
                          sum + key * rows.columns);
    return;
  }
  for (int64_t key = tile.low / kOuterKeys * kOuterKeys; key < tile.high; key += kOuterKeys) {
    Range range{g.used, 0};
    for (int v = 0; v < g.vectors; ++v) {
      const Range& seen = tile.of_vector[v];
      if (seen.stop <= key || key + kOuterKeys <= seen.start) continue;
      range = {std::min<int64_t>(range.start, v * n), std::min<int64_t>(g.used, (v + 1) * n)};
    }
    if (!range.empty())
      add_outer<T, kOuterKeys>(weights + key * g.lanes, g.lanes, rows, range,
                               sum + key * rows.columns);
  }
}

// What a group has for the whole block of keys.
template <class T>
struct Pulled {
  Side<T> queries, upstream;
  bool finite_queries, finite_upstream;
};

// Sum of the products of two rows, padded with zeros.
template <class T>
double dot(const T* a, const T* b, int64_t columns) {
  constexpr int n = Lanes<T>::n;
  Vec<T> sum{};
  for (int64_t c = 0; c < columns; c += n)
    sum = fma(read_lanes(reinterpret_cast<const char*>(a + c), T{}),
              read_lanes(reinterpret_cast<const char*>(b + c), T{}), sum);
  double total = 0;
  for (int i = 0; i < n; ++i) total += double{sum[i]};
  return total;
}

// What the output of a row pulls at its scores. The first block to come by takes it for the others.
template <class T>
void pull_rows(const Walk<T>& walk, const Gradients& asked, const Queries<T>& g,
               const Side<T>& upstream, T* copy) {
  if constexpr (sizeof(T) == 4)
    if (asked.exact_output) {
      int64_t width = walk.problem.value_width;
      for (int r = 0; r < g.used; ++r) {
        int64_t at = index_of(walk, g, r);
        std::fill(std::copy_n(asked.exact_output + at * width, width, copy),
                  copy + upstream.columns, 0.0f);
        asked.pull[at] -= dot(upstream.at + r * upstream.stride, copy, upstream.columns);
      }
      return;
    }
  Side<T> output = side_of(walk, g, asked.output, walk.problem.value_width, copy);
  for (int r = 0; r < g.used; ++r)
    asked.pull[index_of(walk, g, r)] -=
        dot(upstream.at + r * upstream.stride, output.at + r * output.stride, output.columns);
}

// Lane by lane: what weights are taken against, and what pulls at them. The gradient of a score is
// weight * (upstream . value + pull - twist * ln weight).
template <class T>
void set_lanes(const Walk<T>& walk, const Gradients& asked, const Queries<T>& g, T fold,
               const Back<T>& b) {
  double nats = walk.plan.scale;
  for (int lane = 0; lane < g.lanes; ++lane) {
    int64_t at = index_of(walk, g, std::min(lane, g.used - 1));
    double lse = asked.lse[at], pull = asked.pull[at];
    bool none = lse == -INFINITY;
    b.ref[lane] = none ? T(0) : static_cast<T>(lse / nats);
    double rest = none ? 0 : double{b.ref[lane]} * nats - lse;
    double twist = asked.twist ? asked.twist[at] : 0;
    b.factor[lane] = none ? T(0) : static_cast<T>(std::exp(rest));
    b.pull[lane] = static_cast<T>(fold * (none ? 0 : pull - twist * rest));
    b.twist[lane] = static_cast<T>(fold * twist * nats);
  }
}

template <class T, int NV>
void weigh_tile(const Walk<T>& walk, const Queries<T>& g, const Tile<T>& tile, const Back<T>& b,
                bool twisted) {
  constexpr int n = Lanes<T>::n, kStep = NV * n;
  score_tile<T, NV>(g, tile, walk.plan, walk.problem.width, [&](int key, int v, Vec<T> s) {
    Vec<T> d = s - load(b.ref + v * n);
    if (twisted) store(b.ways + key * kStep + v * n, d);
    store(b.weights + key * kStep + v * n,
          exp2_lanes<T>(d, walk.plan.unit) * load(b.factor + v * n));
  });
}

// The gradient of the tile's scores, into b.pulls.
template <class T, int NV>
void pull_tile(const Walk<T>& walk, const Gradients& asked, const Queries<T>& g,
               const Tile<T>& tile, const Back<T>& b, const T* mixed) {
  bool twisted = asked.twist;
  constexpr int n = Lanes<T>::n, kStep = NV * n;
  Queries<T> upstream = g;
  upstream.q = b.upstream;
  Tile<T> values = tile;
  values.k = tile.v;
  values.k_stride = tile.v_stride;
  Plan<T> plan = walk.plan;
  plan.adjusts = false;
  score_tile<T, NV>(upstream, values, plan, walk.problem.value_width,
                    [&](int key, int v, Vec<T> s) {
                      int64_t at = key * kStep + v * n;
                      Vec<T> p = load(b.weights + at), pull = load(b.pull + v * n);
                      if (twisted) pull = pull - load(b.twist + v * n) * load(b.ways + at);
                      Vec<T> x = fma(load(mixed + at), s, p * pull);
                      // What is hidden, or counts nothing, may be NaN.
                      store(b.pulls + at, p == Vec<T>{} ? Vec<T>{} : x);
                    });
  if (asked.bias.data) add_to_bias(walk, asked, g, tile, b.pulls);
  if (!walk.plan.adjusts) return;
  T scale = static_cast<T>(walk.problem.scale);
  for (int64_t i = tile.low / 8 * 8 * kStep; i < (tile.high + 7) / 8 * 8 * kStep; i += n) {
    Vec<T> x = load(b.pulls + i) * scale;
    if (tile.slope) x = load(b.pulls + i) == Vec<T>{} ? Vec<T>{} : x * load(tile.slope + i);
    store(b.pulls + i, x);
  }
}

// The bias gets what its scores get.
template <class T>
void add_to_bias(const Walk<T>& walk, const Gradients& asked, const Queries<T>& g,
                 const Tile<T>& tile, const T* pulls) {
  constexpr int n = Lanes<T>::n;
  int64_t step = asked.bias.column;
  for (int lane = 0; lane < g.used; lane += n) {
    char* rows[n];
    int here = std::min(n, g.used - lane);
    for (int i = 0; i < here; ++i) {
      Place place = place_of(walk, g, lane + i);
      rows[i] = asked.bias.to(place.batch, place.head, place.query) + tile.first * step;
    }
    int key = tile.low;
    for (; step == sizeof(T) && key + n <= tile.high; key += n) {
      Vec<T> x[n];
      for (int i = 0; i < n; ++i) x[i] = load(pulls + (key + i) * g.lanes + lane);
      turn_square<T>(x);
      for (int i = 0; i < here; ++i) {
        char* to = rows[i] + key * step;
        write_lanes(to, read_lanes(to, T{}) + x[i], T{});
      }
    }
    for (; key < tile.high; ++key)
      for (int i = 0; i < here; ++i)
        *reinterpret_cast<T*>(rows[i] + key * step) += pulls[key * g.lanes + lane + i];
  }
}

// All that a group and a tile have to do with one another.
template <class T, int NV>
void back_tile(const Walk<T>& walk, const Gradients& asked, const Queries<T>& g,
               const Tile<T>& tile, const Pulled<T>& from, const Room<T>& room, const Back<T>& b,
               int64_t at, T* query_sum) {
  const Problem& problem = walk.problem;
  weigh_tile<T, NV>(walk, g, tile, b, asked.twist);
  const T* mixed = problem.dropped ? b.mixed : b.weights;
  if (problem.dropped)
    drop<T, NV>(tile, problem, room.buffers.counters, walk.panel.batch, b.weights, b.mixed);
  if (asked.value.data)
    add_to_keys(g, tile, mixed, from.upstream, from.finite_upstream,
                b.value_sum + at * from.upstream.columns);
  if (!asked.key.data && !asked.query.data && !asked.bias.data) return;
  pull_tile<T, NV>(walk, asked, g, tile, b, mixed);
  if (asked.key.data)
    add_to_keys(g, tile, b.pulls, from.queries, from.finite_queries,
                b.key_sum + at * from.queries.columns);
  if (!asked.query.data) return;
  Queries<T> sums = g;
  sums.o = query_sum;
  Tile<T> keys = tile;
  keys.v = tile.k;
  keys.v_stride = tile.k_stride;
  bool spoilt = tile.masked && !all_finite(tile.k, tile.k_stride, tile.high, problem.width);
  if (!tile.masked)
    mix_tile<T, NV, Mix::all>(sums, keys, b.pulls, b.one, problem.width);
  else if (spoilt)
    mix_tile<T, NV, Mix::spoilt>(sums, keys, b.pulls, b.one, problem.width);
  else
    mix_tile<T, NV, Mix::seen>(sums, keys, b.pulls, b.one, problem.width);
}

// Numbers of T as the gradient's dtype, one row.
template <class S, class T>
void write_row(const T* from, T factor, int64_t count, char* to) {
  constexpr int64_t n = Lanes<T>::n, kItem = sizeof(S);
  int64_t c = 0;
  for (; c + n <= count; c += n) write_lanes(to + c * kItem, load(from + c) * factor, S{});
  if (c == count) return;
  char numbers[n * kItem];
  write_lanes(numbers, load(from + c) * factor, S{});
  std::memcpy(to + c * kItem, numbers, static_cast<size_t>((count - c) * kItem));
}

// Calls with a number of the type in which the problem's arrays are.
template <class T, class Call>
void with_stored(const Problem& problem, const Call& call) {
  if constexpr (sizeof(T) == 8)
    call(double{});
  else if (problem.dtype == Dtype::f16)
    call(Half{});
  else if (problem.dtype == Dtype::bf16)
    call(Brain{});
  else
    call(float{});
}

template <class T>
void write_keys(const Problem& problem, const KeyBlock& block, const View& to, int64_t width,
                const T* sum, T factor) {
  if (!to.data) return;
  with_stored<T>(problem, [&](auto stored) {
    for (int64_t j = 0; j < block.count; ++j)
      write_row<decltype(stored)>(sum + j * padded<T>(width), factor, width,
                                  to.to(block.batch, block.kv_head, block.first + j));
  });
}

template <class T>
void write_queries(const Walk<T>& walk, const Queries<T>& g, const View& view, const T* sum) {
  constexpr int n = Lanes<T>::n;
  for (int lane = 0; lane < g.used; lane += n) {
    char* to[n];
    int here = std::min(n, g.used - lane);
    for (int i = 0; i < here; ++i) {
      Row row = row_of(walk.problem, walk.panel, g.first + lane + i);
      to[i] = view.to(walk.panel.batch, row.head, row.row);
    }
    with_stored<T>(walk.problem, [&](auto stored) {
      transpose_out<decltype(stored)>(sum + lane, g.lanes, to, here, walk.problem.width);
    });
  }
}

// One group of queries against a block of keys.
template <class T>
void back_group(Walk<T>& walk, const Gradients& asked, const KeyBlock& block, const Side<T>& keys,
                const Side<T>& values, const Room<T>& room, const Back<T>& b, T* query_sum) {
  const Problem& problem = walk.problem;
  begin(walk, room.states[0], room);
  Queries<T>& g = walk.groups[0];
  g.few = 0;
  Pulled<T> from{side_of(walk, g, problem.query, problem.width, b.query_copy),
                 side_of(walk, g, asked.upstream, problem.value_width, b.upstream_copy), true,
                 true};
  if (block.opens) pull_rows(walk, asked, g, from.upstream, b.output_copy);
  int64_t start = std::max(block.first, g.seen.start / kTile * kTile);
  int64_t stop = std::min(block.first + block.count, g.seen.stop);
  if (start >= stop) return;
  T fold = walk.plan.adjusts ? T(1) : static_cast<T>(problem.scale);
  set_lanes(walk, asked, g, fold, b);
  turn_group(walk, g, asked.upstream, problem.value_width, b.upstream, b.spare);
  T factor = problem.dropped ? fold * static_cast<T>(problem.kept_factor) : fold;
  for (int64_t i = 0; i < problem.value_width * g.lanes; i += Lanes<T>::n)
    store(b.upstream + i, load(b.upstream + i) * factor);
  if (problem.mask || problem.biased) {
    from.finite_queries = all_finite(from.queries.at, from.queries.stride, g.used, problem.width);
    from.finite_upstream =
        all_finite(from.upstream.at, from.upstream.stride, g.used, problem.value_width);
  }
  for (int64_t first = start; first < stop; first += kTile) {
    int count = static_cast<int>(std::min<int64_t>(kTile, problem.keys - first));
    Tile<T> tile{};
    if (!look(walk, g, first, count, nullptr, room, &tile)) continue;
    int64_t at = first - block.first;
    tile.k = keys.at + at * keys.stride;
    tile.k_stride = keys.stride;
    tile.v = values.at + at * values.stride;
    tile.v_stride = values.stride;
    tile.slope = problem.softcap != 0 ? b.slopes : nullptr;
    if (problem.dropped) count_lanes(walk, g, room);
    if (g.vectors == 1) back_tile<T, 1>(walk, asked, g, tile, from, room, b, at, query_sum);
    if (g.vectors == 2) back_tile<T, 2>(walk, asked, g, tile, from, room, b, at, query_sum);
    if (g.vectors == 3) back_tile<T, 3>(walk, asked, g, tile, from, room, b, at, query_sum);
  }
}

template <class T>
void back(const Problem& problem, const Gradients& asked, const KeyBlock& block, Scratch* two) {
  constexpr int64_t unit = 3 * Lanes<T>::n;
  int64_t rows = problem.heads / problem.kv_heads * problem.rows;
  Room<T> room = room_of<T>(problem, unit, two[0]);
  Back<T> b = back_of<T>(problem, asked, block.count, two[1]);
  std::fill_n(b.key_sum, (block.count + 8) * padded<T>(problem.width), T(0));
  std::fill_n(b.value_sum, (block.count + 8) * padded<T>(problem.value_width), T(0));
  Side<T> keys{}, values{};
  Panel all{block.batch, block.kv_head, 0, 0};
  keys.at = rows_from(problem, problem.key, all, nullptr, block.first, block.count, problem.width,
                      b.key_copy, &keys.stride);
  values.at = rows_from(problem, problem.value, all, nullptr, block.first, block.count,
                        problem.value_width, b.value_copy, &values.stride);
  bool alone = block.opens && block.closes;
  int64_t size = problem.width * unit;
  for (int64_t first = 0, i = 0; first < rows; first += unit, ++i) {
    if (stopping() || !block.turn(i)) return;
    Panel panel{block.batch, block.kv_head, first, std::min(unit, rows - first)};
    Walk<T> walk(problem, panel);
    T* query_sum = alone ? b.query_sum : reinterpret_cast<T*>(block.query_sums) + i * size;
    if (block.opens) std::fill_n(query_sum, size, T(0));
    back_group(walk, asked, block, keys, values, room, b, query_sum);
    if (block.closes && asked.query.data)
      write_queries(walk, walk.groups[0], asked.query, query_sum);
    block.done(i);
  }
  T kept = static_cast<T>(problem.dropped ? problem.kept_factor : 1);
  write_keys(problem, block, asked.key, problem.width, b.key_sum, T(1));
  write_keys(problem, block, asked.value, problem.value_width, b.value_sum, kept);
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
