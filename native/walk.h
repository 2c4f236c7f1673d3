// Panels of queries: how their rows lie in the lanes, how keys, values and bias reach them, and
// what they see of a tile. Included by tile.cc alone, once for each instruction set.
#pragma once

#include <algorithm>
#include <type_traits>

#include "mask.h"
#include "step.h"
#include "tile.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// Rows of a panel: enough to use keys and values many times while they are in the cache.
constexpr int64_t kMostRows = 144;
constexpr int kMostGroups = 24;  // 144 rows of double in 128-bit vectors

// Groups of queries that walk the keys together.
template <class T>
struct Walk {
  Walk(const Problem& of, const Panel& rows) : problem(of), panel(rows) {}

  const Problem& problem;
  const Panel& panel;
  Plan<T> plan = plan_of<T>(problem);
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
  return lanes *
         (problem.value_width + kFields + 2 * list_step(problem.listed()) + problem.massed());
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
    T* lists = g.state + kFields * g.lanes;
    int64_t listed = list_step(problem.listed()) * g.lanes;
    g.lists = {lists + kEntries,
               reinterpret_cast<typename Lanes<T>::Word*>(lists + listed + kEntries)};
    g.masses = problem.massed() ? lists + 2 * listed : nullptr;
    at += state_size<T>(problem, g.lanes);
  }
  return count;
}

template <class T>
List<T> list_of(const Problem& problem, const Queries<T>& g, int lane) {
  int64_t at = lane * list_step(problem.listed());
  return {g.lists.scores + at, g.lists.keys + at};
}

template <class T>
void clear_group(const Problem& problem, Queries<T>& g) {
  std::fill_n(g.o, problem.value_width * g.lanes, T(0));
  std::fill_n(g.state, kFields * g.lanes, T(0));
  std::fill_n(g.state + kRef * g.lanes, g.lanes, kNothing<T>);
  std::fill_n(g.state + kMax * g.lanes, g.lanes, kNothing<T>);
  std::fill_n(g.state + kLeast * g.lanes, g.lanes, kNothing<T>);
  for (int lane = 0; problem.listed() && lane < g.lanes; ++lane)
    list_of(problem, g, lane).clear(problem.listed());
  std::fill_n(g.masses, problem.massed() * g.lanes, T(0));
}

template <class T>
void clear(const Problem& problem, int64_t rows, char* total) {
  Queries<T> groups[kMostGroups];
  int count = lay_out<T>(problem, rows, total, groups);
  for (int i = 0; i < count; ++i) clear_group(problem, groups[i]);
}

// Numbers of any dtype, `step` bytes apart and not necessarily aligned.
template <class S, class T, class Convert>
inline void read_each(const char* from, int64_t step, int64_t count, T* to,
                      const Convert& convert) {
  for (int64_t i = 0; i < count; ++i) {
    S x;
    std::memcpy(&x, from + i * step, sizeof x);
    to[i] = convert(x);
  }
}

template <class T>
void read_row(const Problem& problem, const char* from, int64_t step, int64_t count, T* to) {
  if constexpr (sizeof(T) == 8) {
    read_each<double>(from, step, count, to, [](double x) { return x; });
  } else {
    switch (problem.dtype) {
      case Dtype::f16:
        if (step == 2) return widen_halves(from, count, to);
        return read_each<uint16_t>(from, step, count, to, from_half);
      case Dtype::bf16:
        if (step == 2) return widen_brains(from, count, to);
        return read_each<uint16_t>(from, step, count, to, from_brain);
      default:
        read_each<float>(from, step, count, to, [](float x) { return x; });
    }
  }
}

// to[c * stride + r] = rows[r][c] for as many rows as a vector has lanes. Rows need not be aligned.
template <class T>
void transpose_in(const char* const* rows, int64_t columns, T* to, int64_t stride) {
  constexpr int n = Lanes<T>::n;
  if (columns < n) {
    for (int64_t c = 0; c < columns; ++c)
      for (int r = 0; r < n; ++r)
        std::memcpy(to + c * stride + r, rows[r] + c * sizeof(T), sizeof(T));
    return;
  }
  for (int64_t c = 0; c < columns; c += n) {
    int64_t at = std::min(c, columns - n);  // some columns twice
    Vec<T> x[n];
    for (int r = 0; r < n; ++r) x[r] = read_lanes(rows[r] + at * sizeof(T), T{});
    turn_square<T>(x);
    for (int i = 0; i < n; ++i) store(to + (at + i) * stride, x[i]);
  }
}

// rows[r][c] = from[c * stride + r] for the first `count` lanes of a vector, as type S.
template <class S, class T>
void transpose_out(const T* from, int64_t stride, char* const* rows, int count, int64_t columns) {
  constexpr int n = Lanes<T>::n;
  if (columns < n) {
    for (int64_t c = 0; c < columns; ++c) {
      char numbers[n * sizeof(S)];
      write_lanes(numbers, load(from + c * stride), S{});
      for (int r = 0; r < count; ++r)
        std::memcpy(rows[r] + c * sizeof(S), numbers + r * sizeof(S), sizeof(S));
    }
    return;
  }
  for (int64_t c = 0; c < columns; c += n) {
    int64_t at = std::min(c, columns - n);
    Vec<T> x[n];
    for (int i = 0; i < n; ++i) x[i] = load(from + (at + i) * stride);
    turn_square<T>(x);
    for (int r = 0; r < count; ++r) write_lanes(rows[r] + at * sizeof(S), x[r], S{});
  }
}

// transpose_in() from rows of any dtype and step. `copy` holds as many rows.
template <class T>
void turn_rows(const Problem& problem, const char* const* rows, int64_t step, int64_t columns,
               T* to, int64_t stride, T* copy) {
  constexpr int n = Lanes<T>::n;
  if (problem.item() == sizeof(T) && step == sizeof(T))
    return transpose_in(rows, columns, to, stride);
  const char* copied[n];
  for (int r = 0; r < n; ++r) {
    read_row(problem, rows[r], step, columns, copy + r * columns);
    copied[r] = reinterpret_cast<const char*>(copy + r * columns);
  }
  transpose_in(copied, columns, to, stride);
}

// Rows of a group, turned. A lane without a row of its own has the last one's.
template <class T>
void turn_group(const Walk<T>& walk, const Queries<T>& g, const View& view, int64_t width, T* to,
                T* copy) {
  constexpr int n = Lanes<T>::n;
  for (int lane = 0; lane < g.lanes; lane += n) {
    const char* rows[n];
    for (int i = 0; i < n; ++i) {
      Row row = row_of(walk.problem, walk.panel, g.first + std::min(lane + i, g.used - 1));
      rows[i] = view.at(walk.panel.batch, row.head, row.row);
    }
    turn_rows(walk.problem, rows, view.column, width, to + lane, g.lanes, copy);
  }
}

template <class T>
Place place_of(const Walk<T>& walk, const Queries<T>& g, int lane) {
  Row row = row_of(walk.problem, walk.panel, g.first + std::min(lane, g.used - 1));
  return {walk.panel.batch, row.head, walk.problem.query_of(row.row), row.row};
}

template <class T>
struct Room {
  T *packed, *k, *v, *copy, *few_scores, *few_output;
  Buffers<T> buffers;
  typename Lanes<T>::Word* words;
  char* states[2];
  Range* ranges;  // of each lane of each group
};

// Cuts one worker's memory into its parts.
template <class T>
Room<T> room_of(const Problem& problem, int64_t rows, Scratch& scratch) {
  constexpr int64_t kItem = sizeof(T);
  int64_t lanes = 3 * Lanes<T>::n, padded = (rows + lanes - 1) / lanes * lanes;
  int64_t tile = (kTile + 8) * lanes * kItem;
  int64_t state = static_cast<int64_t>(part_bytes<T>(problem, rows));
  int64_t sizes[] = {padded * problem.width * kItem,
                     kTile * problem.width * kItem,
                     kTile * problem.value_width * kItem,
                     Lanes<T>::n * std::max<int64_t>(problem.width, kTile) * kItem,
                     tile,
                     tile,
                     problem.biased ? tile : 0,
                     4 * lanes * kItem,
                     2 * lanes * 8,
                     lanes * 8,
                     state,
                     state,
                     (kTile + 8) * Lanes<T>::n * kItem,
                     kFew<T> * problem.value_width * kItem,
                     problem.listed() ? tile : 0,
                     problem.listed() ? 3 * (kTile + 8) * 4 : 0,
                     problem.mask ? padded * static_cast<int64_t>(sizeof(Range)) : 0};
  constexpr int kParts = sizeof sizes / sizeof *sizes;
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + kLine - 1) / kLine * kLine;
  char* at = scratch.get(static_cast<size_t>(total));
  char* parts[kParts];
  for (int i = 0; i < kParts; ++i) {
    parts[i] = at;
    at += (sizes[i] + kLine - 1) / kLine * kLine;
  }
  auto numbers = [&](int i) { return reinterpret_cast<T*>(parts[i]); };
  T* per_lane = numbers(7);
  return {numbers(0),
          numbers(1),
          numbers(2),
          numbers(3),
          numbers(12),
          numbers(13),
          {numbers(4), numbers(5), numbers(6), numbers(14), numbers(5), per_lane, per_lane + lanes,
           per_lane + 2 * lanes, per_lane + 3 * lanes, reinterpret_cast<uint64_t*>(parts[8]),
           reinterpret_cast<int32_t*>(parts[15])},
          reinterpret_cast<typename Lanes<T>::Word*>(parts[9]),
          {parts[10], parts[11]},
          reinterpret_cast<Range*>(parts[16])};
}

// Where a lane's row stands among all rows of all heads.
template <class T>
int64_t index_of(const Walk<T>& walk, const Queries<T>& g, int lane) {
  Row row = row_of(walk.problem, walk.panel, g.first + lane);
  return (walk.panel.batch * walk.problem.heads + row.head) * walk.problem.rows + row.row;
}

// Which random numbers the group's lanes draw.
template <class T>
void count_lanes(const Walk<T>& walk, const Queries<T>& g, const Room<T>& room) {
  for (int lane = 0; lane < g.lanes; ++lane) {
    Place place = place_of(walk, g, lane);
    room.buffers.counters[lane] = static_cast<uint64_t>(place.query);
    room.buffers.counters[g.lanes + lane] = static_cast<uint64_t>(place.head);
  }
}

// Only the last group of a panel can be of few queries.
template <class T>
void set_few(const Problem& problem, const Room<T>& room, Queries<T>& g) {
  bool few = g.used <= kFew<T> && problem.width >= std::max<int64_t>(kFewest, Lanes<T>::n);
  g.few = few ? g.used : 0;
  g.few_scores = room.few_scores;
  g.few_spare = reinterpret_cast<char*>(room.copy);
  g.few_output = few && problem.value_width >= Lanes<T>::n ? room.few_output : nullptr;
}

// Lays out the groups, packs their queries and finds the keys they may see.
template <class T>
void begin(Walk<T>& walk, char* states, const Room<T>& room) {
  const Problem& problem = walk.problem;
  walk.count = lay_out<T>(problem, walk.panel.rows, states, walk.groups);
  walk.seen = {problem.keys, 0};
  int64_t first = 0;
  T* packed = room.packed;
  for (int i = 0; i < walk.count; ++i) {
    Queries<T>& g = walk.groups[i];
    g.first = first;
    g.q = packed;
    turn_group(walk, g, problem.query, problem.width, g.q, room.copy);
    for (int64_t j = 0; walk.plan.sign < 0 && j < problem.width * g.lanes; ++j) g.q[j] = -g.q[j];
    packed += problem.width * g.lanes;
    first += g.used;
    set_few(problem, room, g);
    g.seen = {0, problem.keys};
    g.solid = g.seen;
    g.ranges = nullptr;
    if (problem.mask) {
      bool intervals = of_intervals(*problem.mask);
      if (intervals) g.ranges = room.ranges + i * 3 * Lanes<T>::n;
      g.seen = {problem.keys, 0};
      for (int lane = 0; lane < g.used; ++lane) {
        Place place = place_of(walk, g, lane);
        Range some = hull(*problem.mask, place);
        Range all = intervals ? some : solid(*problem.mask, place);
        if (intervals) g.ranges[lane] = some;
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
const T* rows_from(const Problem& problem, const View& view, const Panel& panel,
                   const int64_t* index, int64_t first, int64_t count, int64_t width, T* copy,
                   int64_t* stride) {
  const char* from = view.at(panel.batch, panel.kv_head, 0);
  bool aligned =
      (reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(view.row)) % sizeof(T) == 0;
  if (!index && aligned && problem.item() == sizeof(T) &&
      (view.column == sizeof(T) || width == 1)) {
    *stride = view.row / static_cast<int64_t>(sizeof(T));
    return reinterpret_cast<const T*>(from + first * view.row);
  }
  *stride = width;
  for (int64_t j = 0; j < count; ++j)
    read_row(problem, from + (index ? index[first + j] : first + j) * view.row, view.column, width,
             copy + j * width);
  return copy;
}

// The same for few queries, who look at keys before `last`: where they are in any dtype.
template <class T>
Rows few_rows_from(const Problem& problem, const View& view, const Panel& panel,
                   const int64_t* index, int64_t first, int64_t count, int64_t last, int64_t width,
                   T* copy) {
  if (!index && view.column == problem.item())
    return {view.at(panel.batch, panel.kv_head, first), view.row, problem.dtype,
            first + kTile < last};
  int64_t stride;
  const T* rows = rows_from(problem, view, panel, index, first, count, width, copy, &stride);
  return {reinterpret_cast<const char*>(rows), stride * static_cast<int64_t>(sizeof(T)),
          sizeof(T) == 8 ? Dtype::f64 : Dtype::f32, false};
}

// Makes the keys of a tile ready for a group, unless they are.
template <class T>
void fetch_keys(const Walk<T>& walk, const Queries<T>& g, const int64_t* index, int64_t first,
                int64_t count, const Room<T>& room, Tile<T>* tile) {
  const Problem& problem = walk.problem;
  if (g.few && !tile->key_rows.at)
    tile->key_rows = few_rows_from(problem, problem.key, walk.panel, index, first, count,
                                   walk.seen.stop, problem.width, room.k);
  if (!g.few && !tile->k)
    tile->k = rows_from(problem, problem.key, walk.panel, index, first, count, problem.width,
                        room.k, &tile->k_stride);
}

// And the values; `plain`: as numbers of T whatever the group.
template <class T>
void fetch_values(const Walk<T>& walk, const Queries<T>& g, bool plain, int64_t first,
                  int64_t count, const Room<T>& room, Tile<T>* tile) {
  const Problem& problem = walk.problem;
  if (g.few_output && !tile->value_rows.at)
    tile->value_rows = few_rows_from(problem, problem.value, walk.panel, nullptr, first, count,
                                     walk.seen.stop, problem.value_width, room.v);
  if ((plain || !g.few_output) && !tile->v)
    tile->v = rows_from(problem, problem.value, walk.panel, nullptr, first, count,
                        problem.value_width, room.v, &tile->v_stride);
}

template <class T>
bool all_finite(const T* rows, int64_t stride, int64_t count, int64_t width) {
  constexpr int64_t n = Lanes<T>::n;
  typename Lanes<T>::M spoilt{};
  T rest = 0;
  for (int64_t j = 0; j < count; ++j) {
    const T* row = rows + j * stride;
    Vec<T> sum{};  // of one row: sums of many would wait for one another
    int64_t d = 0;
    for (; d + n <= width; d += n)
      sum += read_lanes(reinterpret_cast<const char*>(row + d), T{}) * T(0);
    for (; d < width; ++d) rest += row[d] * T(0);
    spoilt |= sum != Vec<T>{};
  }
  return rest == 0 && !any(spoilt);
}

// The bias of a tile, a row for each key. Returns whether -inf hides anything.
template <class T>
bool read_bias(const Walk<T>& walk, const Queries<T>& g, int64_t first, int count,
               const int64_t* index, T* bias, T* copy) {
  constexpr int n = Lanes<T>::n;
  const Problem& problem = walk.problem;
  const View& view = problem.bias;
  for (int lane = 0; lane < g.lanes; lane += n) {
    const char* rows[n];
    for (int i = 0; i < n; ++i) {
      Place place = place_of(walk, g, lane + i);
      rows[i] = view.at(place.batch, place.head, place.query) + (index ? 0 : first * view.column);
    }
    if (!index) {
      // Rows lie far apart, too many for the machine to foresee.
      for (int i = 0; i < n; ++i)
        for (int64_t at = 0; at < kTile * problem.item(); at += kLine)
          __builtin_prefetch(rows[i] + kTile * view.column + at);
      turn_rows(problem, rows, view.column, count, bias + lane, g.lanes, copy);
      continue;
    }
    for (int j = 0; j < count; ++j)
      for (int i = 0; i < n; ++i)
        read_row(problem, rows[i] + index[first + j] * view.column, 0, 1,
                 bias + j * g.lanes + lane + i);
  }
  typename Lanes<T>::M hides{};
  for (int64_t i = 0; i < int64_t{count} * g.lanes; i += Lanes<T>::n)
    hides |= load(bias + i) == spread(kNothing<T>);
  return any(hides);
}

// Clears the bits of keys at which a bias of -inf stands.
template <class T>
void hide_by_bias(const T* bias, int lanes, int count, typename Lanes<T>::Word* words) {
  using M = typename Lanes<T>::M;
  constexpr int kBits = 8 * sizeof(T);
  for (int at = 0; at < lanes; at += Lanes<T>::n)
    for (int first = 0; first < count; first += kBits) {
      M hidden{}, seen;
      for (int j = first; j < std::min(count, first + kBits); ++j)
        hidden |= (load(bias + j * lanes + at) == spread(kNothing<T>)) &
                  static_cast<typename Lanes<T>::Word>(uint64_t{1} << (j - first));
      typename Lanes<T>::Word* word = words + first / kBits * lanes + at;
      __builtin_memcpy(&seen, word, sizeof seen);
      seen &= ~hidden;
      __builtin_memcpy(word, &seen, sizeof seen);
    }
}

// The lanes' words for keys [first, first + count), or those of `index`.
template <class T>
void read_words(const Walk<T>& walk, const Queries<T>& g, int64_t first, int count,
                const int64_t* index, typename Lanes<T>::Word* words) {
  const Mask& mask = *walk.problem.mask;
  uint64_t whole = low_bits(count);
  for (int lane = 0; lane < g.lanes; ++lane) {
    uint64_t bits = 0;
    if (!index && g.ranges) {
      bits = range_word(g.ranges[std::min(lane, g.used - 1)], first) & whole;
    } else {
      Place place = place_of(walk, g, lane);
      if (index)
        for (int j = 0; j < count; ++j) bits |= word(mask, place, index[first + j], 1) << j;
      else
        bits = word(mask, place, first, count);
    }
    put_word<T>(words, g.lanes, lane, bits);
  }
}

static inline Range range_of(uint64_t bits) {
  if (!bits) return {};
  return {__builtin_ctzll(bits), 64 - __builtin_clzll(bits)};
}

// Cuts what is seen of a tile where a vector of lanes begins or ends to see keys.
template <class T>
void cut(const Queries<T>& g, Tile<T>* tile) {
  uint64_t edges = 0;  // bit j: a range ends before key j
  for (int v = 0; v < g.vectors; ++v) {
    const Range& seen = tile->of_vector[v];
    if (seen.empty()) continue;
    edges |= uint64_t{1} << seen.start;
    if (seen.stop < tile->high) edges |= uint64_t{1} << seen.stop;
  }
  tile->range_count = 0;
  for (; edges; edges &= edges - 1) {
    uint64_t later = edges & (edges - 1);
    tile->ranges[tile->range_count++] = {__builtin_ctzll(edges),
                                         later ? __builtin_ctzll(later) : tile->high};
  }
}

// Which keys of the tile the group's lanes see. False when none does.
template <class T>
bool look(const Walk<T>& walk, const Queries<T>& g, int64_t first, int count, const int64_t* index,
          const Room<T>& room, Tile<T>* tile) {
  bool inside = !index && g.solid.start <= first && first + count <= g.solid.stop;
  bool masked = walk.problem.mask && !inside;
  uint64_t whole = low_bits(count), every = whole, some = 0;
  auto sum_up = [&] {
    some = 0;
    for (int v = 0; v < g.vectors; ++v) {
      uint64_t mine = masked ? 0 : whole;
      for (int i = 0; masked && i < Lanes<T>::n; ++i) {
        uint64_t bits = word_of<T>(room.words, g.lanes, v * Lanes<T>::n + i);
        mine |= bits;
        every &= bits;
      }
      tile->of_vector[v] = range_of(mine);
      some |= mine;
    }
  };
  if (masked)
    read_words(walk, g, first, count, index, room.words);
  else if (count < kTile || walk.problem.biased)
    for (int lane = 0; lane < g.lanes; ++lane) put_word<T>(room.words, g.lanes, lane, whole);
  sum_up();
  tile->bias = walk.problem.biased ? room.buffers.bias : nullptr;
  if (some && tile->bias && read_bias(walk, g, first, count, index, room.buffers.bias, room.copy)) {
    hide_by_bias(room.buffers.bias, g.lanes, count, room.words);
    masked = true;
    sum_up();
  }
  tile->words = room.words;
  tile->first = first;
  tile->masked = every != whole;
  tile->low = static_cast<int>(range_of(some).start);
  tile->high = static_cast<int>(range_of(some).stop);
  if (tile->masked) cut(g, tile);
  return some != 0;
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
