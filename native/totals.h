// The second pass: facts that add up over the rows and need the final weights. Weights are taken
// from scores once more, now with what every row's weights are divided by. Included by tile.cc
// alone, once for each instruction set.
#pragma once

#include "pool.h"
#include "walk.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// Weights of a tile, 0 where nothing is seen. `recall` holds reference and share of each lane.
template <class T, int NV>
void weigh_again(const Queries<T>& g, const Tile<T>& tile, const Plan<T>& plan, int64_t width,
                 const T* recall, T* weights) {
  constexpr int n = Lanes<T>::n, kStep = NV * n;
  bool partly = tile.masked || tile.high < kTile;
  score_tile<T, NV>(g, tile, plan, width, [&](int key, int v, Vec<T> s) {
    Vec<T> ref = load(recall + v * n), share = load(recall + kStep + v * n);
    Vec<T> p = exp2_lanes<T>(s - ref, plan.unit) * share;
    // A lane of no row, or one that sees nothing, has no share: what it meets is not felt.
    p = share == Vec<T>{} ? Vec<T>{} : p;
    if (partly) p = sees(tile, kStep, v, key) ? p : Vec<T>{};
    store(weights + key * kStep + v * n, p);
  });
}

template <class T>
void add_received(const Queries<T>& g, const Tile<T>& tile, const T* weights, T* sums) {
  for (int key = tile.low; key < tile.high; ++key)
    for (int at = 0; at < g.lanes; at += Lanes<T>::n) {
      T* sum = sums + key * 3 * Lanes<T>::n + at;
      store(sum, load(sum) + load(weights + key * g.lanes + at));
    }
}

template <class T>
void add_seers(const Queries<T>& g, const Tile<T>& tile, int64_t* seers) {
  if (!tile.masked) {
    for (int key = tile.low; key < tile.high; ++key) seers[tile.first + key] += g.used;
    return;
  }
  int32_t count[kTile] = {};
  for (int lane = 0; lane < g.used; ++lane) {
    uint64_t bits = word_of<T>(tile.words, g.lanes, lane);
    for (int key = 0; key < kTile; ++key) count[key] += bits >> key & 1;
  }
  for (int key = tile.low; key < tile.high; ++key) seers[tile.first + key] += count[key];
}

// Sums and maxima of each column of cells within the tile, lane by lane into the cells.
template <class T>
void add_cells(const Problem& problem, const Queries<T>& g, const Tile<T>& tile, const T* weights,
               const int64_t* cell_row, const Part& part) {
  const Totals& t = problem.totals;
  for (int key = tile.low; key < tile.high;) {
    int64_t column = cell_of(tile.first + key, t.cell_columns, problem.keys), stop = key;
    while (stop < tile.high && cell_of(tile.first + stop, t.cell_columns, problem.keys) == column)
      ++stop;
    for (int at = 0; at < g.used; at += Lanes<T>::n) {
      Vec<T> sum{}, most{};
      for (int64_t j = key; j < stop; ++j) {
        Vec<T> p = load(weights + j * g.lanes + at);
        sum += p;
        most = larger(p, most);
      }
      for (int i = 0; i < Lanes<T>::n && at + i < g.used; ++i) {
        int64_t cell = (cell_row[at + i] - part.first_row) * t.cell_columns + column;
        double& greatest = part.cell_most[cell];
        part.cell_sum[cell] += sum[i];
        // The sum is NaN when a weight is.
        double here = sum[i] == sum[i] ? most[i] : sum[i];
        greatest = here > greatest || here != here ? here : greatest;
      }
    }
    key = static_cast<int>(stop);
  }
}

// Masses of groups too many to be kept beside a row's state, straight into the fact.
template <class T>
void add_masses(const Walk<T>& walk, const Queries<T>& g, const Tile<T>& tile, const T* weights) {
  const Facts& f = walk.problem.facts;
  for (int lane = 0; lane < g.used; ++lane) {
    double* masses = walk.problem.totals.masses + index_of(walk, g, lane) * f.group_count;
    for (int key = tile.low; key < tile.high; ++key)
      masses[f.groups[tile.first + key]] += weights[key * g.lanes + lane];
  }
}

// What is known of each lane: reference and share, [2][lanes] for each group, and its row of cells.
template <class T>
struct Known {
  T* recall;
  int64_t* cell_row;
};

template <class T>
void recall_lanes(const Walk<T>& walk, const Queries<T>& g, const Known<T>& known) {
  const Problem& problem = walk.problem;
  T* recall = known.recall + 2 * g.first;
  for (int lane = 0; lane < g.lanes; ++lane) {
    int64_t at = index_of(walk, g, std::min(lane, g.used - 1));
    const T* kept = reinterpret_cast<const T*>(problem.recall) + 2 * at;
    recall[lane] = kept[1] == 0 ? 0 : kept[0];
    recall[g.lanes + lane] = lane < g.used ? kept[1] : 0;
    if (problem.totals.cell_sum)
      known.cell_row[g.first + lane] =
          cell_of(place_of(walk, g, lane).query, problem.totals.cell_rows, problem.totals.queries);
  }
}

// One panel over one chunk of keys.
template <class T>
void add_chunk(const Walk<T>& walk, int64_t chunk, const Room<T>& room, const Known<T>& known,
               T* sums, const Part& part) {
  const Problem& problem = walk.problem;
  Range keys{std::max(walk.seen.start / kTile * kTile, chunk * kChunk),
             std::min(walk.seen.stop, (chunk + 1) * kChunk)};
  if (keys.empty()) return;
  for (int i = 0; i < walk.count; ++i) recall_lanes(walk, walk.groups[i], known);
  for (int64_t first = keys.start; first < keys.stop; first += kTile) {
    if (stopping()) return;
    int count = static_cast<int>(std::min<int64_t>(kTile, problem.keys - first));
    Tile<T> tile{};
    for (int i = 0; i < walk.count; ++i) {
      const Queries<T>& g = walk.groups[i];
      if (first >= g.seen.stop || first + count <= g.seen.start) continue;
      if (!look(walk, g, first, count, nullptr, room, &tile)) continue;
      fetch_keys(walk, g, nullptr, first, count, room, &tile);
      const T* recall = known.recall + 2 * g.first;
      T* weights = room.buffers.weights;
      if (g.vectors == 1) weigh_again<T, 1>(g, tile, walk.plan, problem.width, recall, weights);
      if (g.vectors == 2) weigh_again<T, 2>(g, tile, walk.plan, problem.width, recall, weights);
      if (g.vectors == 3) weigh_again<T, 3>(g, tile, walk.plan, problem.width, recall, weights);
      if (part.received) {
        add_received(g, tile, weights, sums + (first - chunk * kChunk) * 3 * Lanes<T>::n);
        add_seers(g, tile, part.seers);
      }
      if (problem.totals.masses) add_masses(walk, g, tile, weights);
      if (part.cell_sum) add_cells(problem, g, tile, weights, known.cell_row + g.first, part);
    }
  }
}

// All keys of some rows of one head; the panel may be larger than those that are walked at once.
template <class T>
void add_totals(const Problem& problem, const Panel& rows, const Part& part, Scratch& scratch,
                Scratch& more) {
  constexpr int64_t kLanes = 3 * Lanes<T>::n, kPadded = kMostRows + kLanes;
  Room<T> room = room_of<T>(problem, kMostRows, scratch);
  char* memory = more.get((kChunk * kLanes + 2 * kPadded) * sizeof(T) + kPadded * 8);
  T* sums = reinterpret_cast<T*>(memory);
  T* recall = sums + kChunk * kLanes;
  Known<T> known{recall, reinterpret_cast<int64_t*>(recall + 2 * kPadded)};
  // What each panel sees, so that no chunk is begun for those that see nothing of it.
  Range seen[kMostItem / kMostRows + 1], all{problem.keys, 0};
  for (int64_t r = 0; r < rows.rows; r += kMostRows) {
    Panel panel{rows.batch, rows.kv_head, rows.first + r, std::min(kMostRows, rows.rows - r)};
    Range& some = seen[r / kMostRows] = seen_by(problem, panel);
    if (!some.empty()) all = {std::min(all.start, some.start), std::max(all.stop, some.stop)};
  }
  for (int64_t chunk = all.start / kChunk; chunk * kChunk < all.stop; ++chunk) {
    std::fill_n(sums, part.received ? kChunk * kLanes : 0, T(0));
    for (int64_t r = 0; r < rows.rows; r += kMostRows) {
      const Range& some = seen[r / kMostRows];
      if (some.stop <= chunk * kChunk || some.start >= (chunk + 1) * kChunk) continue;
      Panel panel{rows.batch, rows.kv_head, rows.first + r, std::min(kMostRows, rows.rows - r)};
      Walk<T> walk(problem, panel);
      begin(walk, room.states[0], room);
      add_chunk(walk, chunk, room, known, sums, part);
      if (stopping()) return;
    }
    if (!part.received) continue;
    int64_t count = std::min(kChunk, problem.keys - chunk * kChunk);
    for (int64_t key = 0; key < count; ++key)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        part.received[chunk * kChunk + key] += sums[key * kLanes + lane];
  }
}

}  // namespace
}  // namespace chumoku::CHUMOKU_ISA
