// Facts that add up over the rows and need the final weights. As many weights of a panel as fit
// into the cache nearby are kept until its sums are known; of longer rows they are taken from the
// scores once more. Included by tile.cc alone, once for each instruction set.
#pragma once

#include <algorithm>

#include "pool.h"
#include "walk.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// What a group saw of a tile, and its weights against the references of that moment.
template <class T>
struct Kept {
  int low, high;  // empty: nothing
  bool partly;    // some lane has no row or does not see every key
  T *ref, *weights;
  typename Lanes<T>::Word* words;
};

// Places for what is kept of a panel, tile by tile.
template <class T>
struct Memory {
  static constexpr int64_t kRows = kTile + 8 + 1 + 8 / sizeof(T);  // weights, reference, words
  static constexpr int64_t kLanes = 3 * Lanes<T>::n;

  Kept<T>* kept = nullptr;  // null: nothing is kept
  int64_t tiles;
  int groups;

  static int64_t bytes(int64_t tiles, int groups) {
    int64_t places = tiles * groups;
    return places * kLanes * kRows * static_cast<int64_t>(sizeof(T)) + places_bytes(places);
  }
  static int64_t places_bytes(int64_t places) {
    return (places * static_cast<int64_t>(sizeof(Kept<T>)) + 63) / 64 * 64;
  }
  static int64_t tiles_of(Range seen) {
    return seen.empty() ? 0 : (seen.stop + kTile - 1) / kTile - seen.start / kTile;
  }

  void clear() const {
    T* numbers = reinterpret_cast<T*>(reinterpret_cast<char*>(kept) + places_bytes(tiles * groups));
    for (int64_t i = 0; i < tiles * groups; ++i) {
      T* at = numbers + i * kLanes * kRows;
      T* words = at + kLanes * (kTile + 9);
      kept[i] = {0, 0, false, at, at + kLanes, reinterpret_cast<typename Lanes<T>::Word*>(words)};
    }
  }

  // A tile far on has the place of one before it.
  Kept<T>* at(int64_t key) const { return kept + key / kTile % tiles * groups; }
};

// Bits of what a group's lanes see of a tile; all of them when it hides nothing.
template <class T>
bool copy_words(const Queries<T>& g, const Tile<T>& tile, int count,
                typename Lanes<T>::Word* words) {
  constexpr int kWords = 8 / sizeof(T);
  bool partly = tile.masked || count < kTile;
  if (partly)
    std::copy_n(tile.words, kWords * g.lanes, words);
  else if (g.used < g.lanes)
    std::fill_n(words, kWords * g.lanes, typename Lanes<T>::Word{-1});
  return partly || g.used < g.lanes;
}

// Weights of a tile against the rows' final references, from its scores.
template <class T, int NV>
void weigh_again(const Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, int64_t width,
                 T* weights, const T* refs) {
  constexpr int n = Lanes<T>::n, kStep = NV * n;
  score_tile<T, NV>(g, tile, plan, width, [&](int key, int v, Vec<T> s) {
    store(weights + key * kStep + v * n, exp2_lanes<T>(s - load(refs + v * n), plan.unit));
  });
}

// A tile's weights as they are in the end.
template <class T, bool kPartly>
struct Weighed {
  const Kept<T>& kept;
  int lanes;
  const T* factors;

  inline Vec<T> at(int key, int lane) const {
    Vec<T> factor = load(factors + lane), p = load(kept.weights + key * lanes + lane) * factor;
    if constexpr (kPartly) {
      // What a lane of no row meets, or a row that sees nothing, is not felt.
      Tile<T> tile{};
      tile.words = kept.words;
      auto seen = sees(tile, lanes, lane / Lanes<T>::n, key) & (factor != Vec<T>{});
      p = seen ? p : Vec<T>{};
    }
    return p;
  }
};

// What each lane of a panel has in the end, and the sums over it that are not yet in a Part.
template <class T>
struct Adding {
  const Part& part;
  T *ref, *share;     // of each lane of the panel
  int64_t* cell_row;  // the row of cells of each lane
  T* sums;            // [kTile][n] of one tile
  double* cell_sum;   // [columns][lanes of the panel], pooled over keys alone
  T* cell_most;
  int64_t lanes;
};

template <class T, bool kPartly>
void add_received(const Weighed<T, kPartly>& p, T* sums) {
  for (int key = p.kept.low; key < p.kept.high; ++key) {
    Vec<T> sum = load(sums + key * Lanes<T>::n);
    for (int lane = 0; lane < p.lanes; lane += Lanes<T>::n) sum += p.at(key, lane);
    store(sums + key * Lanes<T>::n, sum);
  }
}

template <class T>
void add_seers(const Queries<T>& g, const Kept<T>& kept, int64_t first, int64_t* seers) {
  if (!kept.partly) {
    for (int key = kept.low; key < kept.high; ++key) seers[first + key] += g.used;
    return;
  }
  int32_t count[kTile] = {};
  for (int lane = 0; lane < g.used; ++lane) {
    uint64_t bits = word_of<T>(kept.words, g.lanes, lane);
    for (int key = 0; key < kTile; ++key) count[key] += bits >> key & 1;
  }
  for (int key = kept.low; key < kept.high; ++key) seers[first + key] += count[key];
}

// The sums of a tile's keys over the lanes, into the fact.
template <class T>
void sum_lanes(const T* sums, int64_t count, double* received) {
  constexpr int n = Lanes<T>::n;
  for (int64_t key = 0; key < count; key += n) {
    Vec<T> x[n];
    for (int i = 0; i < n; ++i) x[i] = load(sums + (key + i) * n);
    turn_square<T>(x);
    for (int i = 1; i < n; ++i) x[0] += x[i];
    for (int64_t i = 0; i < std::min<int64_t>(n, count - key); ++i) received[key + i] += x[0][i];
  }
}

// Sums and maxima of each column of cells within the tile.
template <class T, bool kPartly>
void add_cells(const Problem& problem, const Queries<T>& g, const Weighed<T, kPartly>& p,
               int64_t first, const Adding<T>& adding) {
  constexpr int n = Lanes<T>::n;
  int64_t columns = problem.totals.cell_columns;
  for (int key = p.kept.low; key < p.kept.high;) {
    int64_t column = cell_of(first + key, columns, problem.keys);
    int64_t next = (column + 1) * problem.keys / columns - first;
    int stop = static_cast<int>(std::min<int64_t>(next, p.kept.high));
    for (int lane = 0; lane < g.lanes; lane += n) {
      Vec<T> sum{}, most{};
      for (int j = key; j < stop; ++j) {
        Vec<T> x = p.at(j, lane);
        sum += x;
        most = larger(x, most);
      }
      int64_t cell = column * adding.lanes + g.first + lane;
      add_wide(adding.cell_sum + cell, sum);
      T* greatest = adding.cell_most + cell;
      store(greatest, larger(most, load(greatest)));
    }
    key = stop;
  }
}

// Pooled columns of cells, lane by lane into the cells.
template <class T>
void pool_rows(const Problem& problem, const Panel& panel, const Adding<T>& adding) {
  int64_t columns = problem.totals.cell_columns;
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t lane = 0; lane < panel.rows;) {
      int64_t row = adding.cell_row[lane];
      double sum = 0, most = 0;
      for (; lane < panel.rows && adding.cell_row[lane] == row; ++lane) {
        int64_t at = column * adding.lanes + lane;
        sum += adding.cell_sum[at];
        most = std::max(most, static_cast<double>(adding.cell_most[at]));
      }
      int64_t cell = (row - adding.part.first_row) * columns + column;
      double& greatest = adding.part.cell_most[cell];
      adding.part.cell_sum[cell] += sum;
      most = sum == sum ? most : sum;  // the sum is NaN when a weight is
      greatest = most > greatest || most != most ? most : greatest;
    }
}

// Masses of groups too many to be kept beside a row's state, straight into the fact.
template <class T, bool kPartly>
void add_masses(const Walk<T>& walk, const Queries<T>& g, const Weighed<T, kPartly>& p,
                int64_t first) {
  const Facts& f = walk.problem.facts;
  for (int lane = 0; lane < g.lanes; lane += Lanes<T>::n)
    for (int key = p.kept.low; key < p.kept.high; ++key) {
      Vec<T> x = p.at(key, lane);
      for (int i = 0; i < std::min(Lanes<T>::n, g.used - lane); ++i)
        walk.problem.totals
            .masses[index_of(walk, g, lane + i) * f.group_count + f.groups[first + key]] += x[i];
    }
}

template <class T>
void recall_lanes(const Walk<T>& walk, const Adding<T>& adding) {
  const Problem& problem = walk.problem;
  for (int i = 0; i < walk.count; ++i) {
    const Queries<T>& g = walk.groups[i];
    for (int lane = 0; lane < g.lanes; ++lane) {
      int64_t at = index_of(walk, g, std::min(lane, g.used - 1));
      const T* recall = reinterpret_cast<const T*>(problem.recall) + 2 * at;
      adding.ref[g.first + lane] = recall[1] == 0 ? 0 : recall[0];
      adding.share[g.first + lane] = lane < g.used ? recall[1] : 0;
      if (problem.totals.cell_sum)
        adding.cell_row[g.first + lane] = cell_of(place_of(walk, g, lane).query,
                                                  problem.totals.cell_rows, problem.totals.queries);
    }
  }
}

// Adds one group's weights of a tile.
template <class T, bool kPartly>
void add_weights(const Walk<T>& walk, const Queries<T>& g, const Kept<T>& kept, const T* factors,
                 int64_t first, const Adding<T>& adding) {
  Weighed<T, kPartly> p{kept, g.lanes, factors};
  if (adding.part.received) {
    add_received(p, adding.sums);
    add_seers(g, kept, first, adding.part.seers);
  }
  if (walk.problem.totals.masses) add_masses(walk, g, p, first);
  if (adding.part.cell_sum) add_cells(walk.problem, g, p, first, adding);
}

template <class T>
void add_weights(const Walk<T>& walk, const Queries<T>& g, const Kept<T>& kept, const T* factors,
                 int64_t first, const Adding<T>& adding) {
  if (kept.partly)
    add_weights<T, true>(walk, g, kept, factors, first, adding);
  else
    add_weights<T, false>(walk, g, kept, factors, first, adding);
}

// Three groups at once, of which every row sees the whole tile: one sum for each key.
template <class T>
void add_three(const Kept<T>* kept, const T* factors, T* sums) {
  constexpr int n = Lanes<T>::n, kLanes = 3 * n;
  Vec<T> factor[9];
  for (int i = 0; i < 9; ++i) factor[i] = load(factors + i * n);
  for (int at = 0; at < kTile * kLanes; at += kLanes, sums += n) {
    Vec<T> some[3] = {load(sums), {}, {}};
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i)
      some[i % 3] = fma(load(kept[i / 3].weights + at + i % 3 * n), factor[i], some[i % 3]);
    store(sums, some[0] + some[1] + some[2]);
  }
}

// A tile's weights as they were kept. Their places are empty then.
template <class T>
void add_kept(const Walk<T>& walk, int64_t first, const Memory<T>& memory,
              const Adding<T>& adding) {
  constexpr int kLanes = Memory<T>::kLanes;
  Kept<T>* kept = memory.at(first);
  alignas(64) T factors[kMostGroups * kLanes];
  auto full = [&](int i) {
    return !kept[i].partly && kept[i].low == 0 && kept[i].high == kTile &&
           walk.groups[i].lanes == kLanes;
  };
  for (int i = 0; i < walk.count; ++i) {
    const Queries<T>& g = walk.groups[i];
    for (int at = 0; kept[i].high && at < g.lanes; at += Lanes<T>::n) {
      // The reference of that time is not above the last one, where there is any.
      Vec<T> way = load(kept[i].ref + at) - load(adding.ref + g.first + at);
      way = lesser(larger(spread(walk.plan.unit.lowest), way), Vec<T>{});
      store(factors + i * kLanes + at,
            exp2_lanes<T>(way, walk.plan.unit) * load(adding.share + g.first + at));
    }
  }
  bool alone = adding.part.received && !adding.part.cell_sum;
  for (int i = 0; i < walk.count;) {
    if (alone && i + 3 <= walk.count && full(i) && full(i + 1) && full(i + 2)) {
      add_three(kept + i, factors + i * kLanes, adding.sums);
      for (int64_t key = 0; key < kTile; ++key) adding.part.seers[first + key] += 3 * kLanes;
      i += 3;
    } else {
      const Queries<T>& g = walk.groups[i];
      if (kept[i].high) add_weights(walk, g, kept[i], factors + i * kLanes, first, adding);
      ++i;
    }
  }
  for (int i = 0; i < walk.count; ++i) kept[i].high = 0;
}

// A tile's weights taken again.
template <class T>
void add_again(const Walk<T>& walk, int64_t first, const Room<T>& room, const Adding<T>& adding) {
  int count = static_cast<int>(std::min<int64_t>(kTile, walk.problem.keys - first));
  Tile<T> tile{};
  typename Lanes<T>::Word words[3 * Lanes<T>::n * 8 / sizeof(T)] __attribute__((aligned(64)));
  for (int i = 0; i < walk.count; ++i) {
    const Queries<T>& g = walk.groups[i];
    if (first >= g.seen.stop || first + count <= g.seen.start) continue;
    if (!look(walk, g, first, count, nullptr, room, &tile)) continue;
    fetch_keys(walk, g, nullptr, first, count, room, &tile);
    T *weights = room.buffers.weights, *ref = adding.ref + g.first;
    int64_t width = walk.problem.width;
    if (g.vectors == 1) weigh_again<T, 1>(g, tile, walk.plan, width, weights, ref);
    if (g.vectors == 2) weigh_again<T, 2>(g, tile, walk.plan, width, weights, ref);
    if (g.vectors == 3) weigh_again<T, 3>(g, tile, walk.plan, width, weights, ref);
    bool partly = copy_words(g, tile, count, words);
    Kept<T> seen{tile.low, tile.high, partly, nullptr, weights, words};
    add_weights(walk, g, seen, adding.share + g.first, first, adding);
  }
}

// A panel whose rows are finished, and how far it has been added.
template <class T>
struct Finished {
  Walk<T> walk;
  Adding<T> adding;
  int64_t next;
};

template <class T>
Finished<T> finished_of(const Walk<T>& walk, const Part& part, Scratch& scratch) {
  constexpr int64_t kLanes = kMostRows + 3 * Lanes<T>::n;
  int64_t columns = part.cell_sum ? walk.problem.totals.cell_columns : 0;
  size_t numbers = 2 * kLanes + kTile * Lanes<T>::n + static_cast<size_t>(columns) * kLanes;
  char* at =
      scratch.get(numbers * sizeof(T) + (kLanes + static_cast<size_t>(columns) * kLanes) * 8);
  Adding<T> adding{part,  reinterpret_cast<T*>(at), nullptr, nullptr, nullptr, nullptr, nullptr,
                   kLanes};
  adding.share = adding.ref + kLanes;
  adding.sums = adding.share + kLanes;
  adding.cell_most = adding.sums + kTile * Lanes<T>::n;
  adding.cell_sum = reinterpret_cast<double*>(at + numbers * sizeof(T));
  adding.cell_row = reinterpret_cast<int64_t*>(adding.cell_sum + columns * kLanes);
  std::fill_n(adding.cell_most, columns * kLanes, T(0));
  std::fill_n(adding.cell_sum, columns * kLanes, 0.0);
  recall_lanes(walk, adding);
  return {walk, adding, walk.seen.start / kTile * kTile};
}

// Adds its tiles that begin before `stop`: each by `add`.
template <class T, class Add>
void add_tiles(Finished<T>& panel, int64_t stop, const Add& add) {
  const Walk<T>& walk = panel.walk;
  const Adding<T>& adding = panel.adding;
  for (; panel.next < std::min(stop, walk.seen.stop); panel.next += kTile) {
    if (stopping()) return;
    if (adding.part.received) std::fill_n(adding.sums, kTile * Lanes<T>::n, T(0));
    add(panel.next);
    int64_t count = std::min<int64_t>(kTile, walk.problem.keys - panel.next);
    if (adding.part.received) sum_lanes(adding.sums, count, adding.part.received + panel.next);
  }
}

// What is left of it.
template <class T, class Add>
void add_rest(Finished<T>& panel, const Add& add) {
  add_tiles(panel, panel.walk.seen.stop, add);
  if (panel.adding.part.cell_sum) pool_rows(panel.walk.problem, panel.walk.panel, panel.adding);
}

// Where the next panel keeps its weights, and the one before it that still lies there.
template <class T>
struct Keeper {
  Memory<T> memory;
  Finished<T>* waiting;  // may be null

  // Empties the places of a tile.
  void make_way(int64_t first) const {
    if (waiting)
      add_tiles(*waiting, first + 1,
                [&](int64_t tile) { add_kept(waiting->walk, tile, memory, waiting->adding); });
  }
};

template <class T>
Memory<T> memory_of(Adder& adder) {
  Memory<T> memory{};
  memory.tiles = adder.tiles;
  memory.groups = adder.groups;
  int64_t bytes = Memory<T>::bytes(adder.tiles, adder.groups);
  memory.kept = reinterpret_cast<Kept<T>*>(adder.kept.get(static_cast<size_t>(bytes)));
  return memory;
}

template <class T>
Finished<T>* panel_of(Adder& adder) {
  return reinterpret_cast<Finished<T>*>(adder.panel.get(sizeof(Finished<T>)));
}

template <class T>
void add_waiting(Adder& adder) {
  if (!adder.waits) return;
  adder.waits = false;
  Finished<T>& panel = *panel_of<T>(adder);
  Memory<T> memory = memory_of<T>(adder);
  add_rest(panel, [&](int64_t first) { add_kept(panel.walk, first, memory, panel.adding); });
}

// Memory for the weights of a walk; what waits there is added first where it would be lost.
template <class T>
Keeper<T> keeper_of(const Walk<T>& walk, Adder& adder) {
  int64_t tiles = Memory<T>::tiles_of(walk.seen);
  bool fits = tiles <= adder.tiles && walk.count == adder.groups;
  if (adder.waits) {
    int64_t last = walk.seen.start / kTile * kTile + adder.tiles * kTile;
    if (!fits || panel_of<T>(adder)->walk.seen.stop > last) add_waiting<T>(adder);
  }
  if (!fits) {
    int64_t all = Memory<T>::tiles_of({0, walk.problem.keys});
    adder.tiles = std::min(all, std::max(2 * tiles, adder.tiles));
    adder.groups = walk.count;
    memory_of<T>(adder).clear();
  }
  return {memory_of<T>(adder), adder.waits ? panel_of<T>(adder) : nullptr};
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
