// The walk of panels over the keys, and what comes of it; compiled once for each instruction set.
#include "tile.h"

#include <algorithm>
#include <limits>

#include "backward.h"
#include "mask.h"
#include "pool.h"
#include "step.h"
#include "totals.h"
#include "walk.h"

namespace chumoku::CHUMOKU_ISA {
namespace {

// Adds one chunk of keys to the groups' states. Its weights are kept where there is a keeper.
template <class T>
void walk_chunk(Walk<T>& walk, Queries<T>* groups, int64_t chunk, const Room<T>& room,
                const Keeper<T>* keeper = nullptr) {
  const Problem& problem = walk.problem;
  Range keys{std::max(walk.seen.start / kTile * kTile, chunk * kChunk),
             std::min(walk.seen.stop, (chunk + 1) * kChunk)};
  Queries<T>& last = groups[walk.count - 1];
  if (last.few_output) std::fill_n(last.few_output, last.few * problem.value_width, T(0));
  for (int64_t first = keys.start; first < keys.stop; first += kTile) {
    if (stopping()) return;
    int count = static_cast<int>(std::min<int64_t>(kTile, problem.keys - first));
    Tile<T> tile{};
    int checked = -1;
    if (keeper) keeper->make_way(first);
    for (int i = 0; i < walk.count; ++i) {
      Queries<T>& g = groups[i];
      if (first >= g.seen.stop || first + count <= g.seen.start) continue;
      if (!look(walk, g, first, count, nullptr, room, &tile)) continue;
      bool checks = tile.masked && checked < 0;
      fetch_keys(walk, g, nullptr, first, count, room, &tile);
      fetch_values(walk, g, checks, first, count, room, &tile);
      if (checks) checked = all_finite(tile.v, tile.v_stride, count, problem.value_width);
      tile.spoilt = checked == 0;
      for (int lane = 0; walk.plan.distance && lane < g.lanes; ++lane) {
        Place place = place_of(walk, g, lane);
        room.buffers.position[lane] =
            static_cast<T>(place.query + problem.position[place.batch] - first);
      }
      if (problem.dropped) count_lanes(walk, g, room);
      Buffers<T> buffers = room.buffers;
      if (keeper) {
        Kept<T>& kept = keeper->memory.at(first)[i];
        kept.low = tile.low, kept.high = tile.high;
        kept.partly = copy_words(g, tile, count, kept.words);
        buffers.weights = kept.weights;
        buffers.ahead = keeper->memory.at(first + kTile)[i].weights;
        buffers.ref = kept.ref;
      }
      step(g, tile, walk.plan, problem, walk.panel.batch, buffers);
    }
  }
  for (int64_t r = 0; last.few_output && r < last.few; ++r)
    for (int64_t c = 0; c < problem.value_width; ++c)
      last.o[c * last.lanes + r] = last.few_output[r * problem.value_width + c];
}

template <class T>
void merge_group(const Problem& problem, const Plan<T>& plan, Queries<T>& a, const Queries<T>& b) {
  using L = Lanes<T>;
  using V = Vec<T>;
  for (int at = 0; at < a.lanes; at += L::n) {
    auto mine = [&](int f) { return load(a.state + f * a.lanes + at); };
    auto theirs = [&](int f) { return load(b.state + f * a.lanes + at); };
    V nil{};
    auto keep = theirs(kSum) == nil, take = mine(kSum) == nil;
    V ref = larger(theirs(kRef), mine(kRef));
    V lowest = spread(plan.unit.lowest);
    V way_a = larger(lowest, mine(kRef) - ref), way_b = larger(lowest, theirs(kRef) - ref);
    V wa = exp2_lanes<T>(way_a, plan.unit), wb = exp2_lanes<T>(way_b, plan.unit);
    // A side that has seen nothing leaves the other as it is, bit for bit.
    auto join = [&](V x, V y, V both) { return keep ? x : take ? y : both; };
    auto put = [&](int f, V x) { store(a.state + f * a.lanes + at, x); };
    for (int64_t c = 0; c < problem.value_width; ++c) {
      T* o = a.o + c * a.lanes + at;
      V x = load(o), y = load(b.o + c * a.lanes + at);
      // Nothing but weights of 0: what NaN they met is felt all the same.
      store(o, join(y == y ? x : y, x == x ? y : x, fma(x, wa, y * wb)));
    }
    for (int64_t i = 0; i < problem.massed(); ++i) {
      T* mass = a.masses + i * a.lanes + at;
      V x = load(mass), y = load(b.masses + i * a.lanes + at);
      store(mass, join(x, y, fma(x, wa, y * wb)));
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
  for (int lane = 0; plan.top && lane < a.lanes; ++lane) {
    List<T> mine = list_of(problem, a, lane), theirs = list_of(problem, b, lane);
    T& least = a.state[kLeast * a.lanes + lane];
    for (int64_t i = 0; i < plan.top && theirs.scores[i] > mine.scores[plan.top - 1]; ++i) {
      if (plan.top > kLongList && stopping()) return;
      mine.insert(plan.top, theirs.scores[i], theirs.keys[i]);
    }
    least = std::max(least, mine.scores[plan.top - 1]);
  }
}

template <class T>
void merge(const Problem& problem, int64_t rows, char* total, const char* part) {
  Queries<T> a[kMostGroups], b[kMostGroups];
  int count = lay_out<T>(problem, rows, total, a);
  lay_out<T>(problem, rows, const_cast<char*>(part), b);
  for (int i = 0; i < count; ++i) merge_group(problem, plan_of<T>(problem), a[i], b[i]);
}

// What the weights of a row are divided by, its sink included: `share` is 1 / sum against the row's
// reference, `lse` the logarithm of the sum, `way` how far that is above the reference.
struct Ending {
  double share, lse, way, sink_weight;
};

// `mass` is that of the keys, `ref` the reference in nats, -inf when there is none.
Ending ending_of(const Problem& problem, int64_t head, double mass, double log_mass, double ref) {
  double sink = problem.sinks ? problem.sinks[head] : -INFINITY;
  if (sink == INFINITY) sink = NAN;
  if (mass == 0) return {0, sink, 0, sink == -INFINITY ? 0 : std::isnan(sink) ? sink : 1};
  if (sink == -INFINITY) {
    return {1 / mass, ref + log_mass, log_mass, std::isnan(mass) ? mass : 0};
  }
  double way = sink - ref, less = std::exp(-std::abs(way));
  bool above = way > 0;
  double sum = above ? mass * less + 1 : mass + less, log_sum = std::log(sum);
  // The sink or the reference, whichever is larger, is not rounded away by the other.
  return {(above ? less : 1) / sum, (above ? sink : ref) + log_sum, std::max(way, 0.0) + log_sum,
          (above ? 1 : less) / sum};
}

// With the largest weight aside, what is left of a saturated row is not rounded away.
template <class T>
double mass_of(const Plan<T>& plan, const Queries<T>& g, int lane) {
  auto field = [&](int name) { return static_cast<double>(g.state[name * g.lanes + lane]); };
  return plan.facts ? field(kLead) + field(kRest) : field(kSum);
}

// Facts of one row, from what was kept of its lane; row `at` of all, of this head.
template <class T>
void write_facts(const Problem& problem, const Plan<T>& plan, const Queries<T>& g, int lane,
                 double log_mass, int64_t head, int64_t at) {
  const Facts& f = problem.facts;
  auto field = [&](int name) { return static_cast<double>(g.state[name * g.lanes + lane]); };
  auto put = [&](char* array, int64_t i, double x) {
    if (array) reinterpret_cast<T*>(array)[i] = static_cast<T>(x);
  };
  double sum = field(kSum), ref = field(kRef) * plan.scale;
  bool none = sum == 0;  // NaN is something
  double lead = field(kLead), rest = field(kRest);
  Ending end = ending_of(problem, head, mass_of(plan, g, lane), log_mass, ref);
  put(f.lse, at, end.lse);
  if (f.exact_lse) f.exact_lse[at] = end.lse;
  double most = field(kMax);
  put(f.max_logit, at, sum == sum || most == INFINITY ? most * plan.scale : sum);
  put(f.sink_weight, at, end.sink_weight);
  put(f.distance, at, none ? 0 : field(kDistance) * end.share);
  for (int64_t i = 0; i < problem.massed(); ++i)
    put(f.group_mass, at * f.group_count + i,
        none ? 0 : static_cast<double>(g.masses[i * g.lanes + lane]) * end.share);
  if (plan.facts) {
    double away = rest * end.share + end.sink_weight;
    double squares = field(kSquares) * end.share * end.share;
    lead *= end.share;
    double nats = mass_of(plan, g, lane) * end.way - plan.scale * field(kShifted);
    put(f.entropy, at, end.share == 0 ? 0 : nats * end.share);
    put(f.saturation, at, none ? 0 : lead * lead + squares);
    put(f.flow, at, none ? 0 : lead * away + rest * end.share - squares);
  }
}

// A row's list as keys and weights; where it has no more entries, key -1 and weight 0.
template <class T>
void write_list(const Problem& problem, const Plan<T>& plan, const Queries<T>& g, int lane, T share,
                int64_t at) {
  constexpr int n = Lanes<T>::n, kStep = std::max(n, kEntries);
  const Facts& f = problem.facts;
  int64_t* keys = f.top_keys + at * f.top;
  T* weights = reinterpret_cast<T*>(f.top_weights) + at * f.top;
  List<T> list = list_of(problem, g, lane);
  T ref = g.state[kRef * g.lanes + lane];
  for (int64_t i = 0; i < plan.top; i += kEntries) {
    alignas(kBytes) T some[kStep];
    for (int j = 0; j < kEntries; j += n)
      store(some + j, exp2_lanes<T>(read_lanes(list.bytes(i + j), T{}) - ref, plan.unit) * share);
    typename Lanes<T>::Eight weight;
    typename Lanes<T>::EightWords key;
    __builtin_memcpy(&weight, some, sizeof weight);
    __builtin_memcpy(&key, list.keys + i, sizeof key);
    weight = key < 0 ? typename Lanes<T>::Eight{} : weight;
    I64x8 wide = __builtin_convertvector(key, I64x8);
    size_t count = static_cast<size_t>(std::min<int64_t>(kEntries, plan.top - i));
    std::memcpy(keys + i, &wide, count * sizeof(int64_t));
    std::memcpy(weights + i, &weight, count * sizeof(T));
  }
  std::fill(keys + plan.top, keys + f.top, -1);
  std::fill(weights + plan.top, weights + f.top, T(0));
}

// Divides by the sums. `shares` are those of the lanes.
template <class T>
void divide(const Problem& problem, const Panel& panel, const Plan<T>& plan, const Queries<T>& g,
            T* shares) {
  for (int lane = 0; lane < g.lanes; ++lane) {
    T sum = g.state[kSum * g.lanes + lane], ref = g.state[kRef * g.lanes + lane];
    shares[lane] = sum == 0 ? 0 : 1 / sum;
    if (!problem.sinks || sum == 0) continue;
    int64_t head = row_of(problem, panel, g.first + std::min(lane, g.used - 1)).head;
    Ending end =
        ending_of(problem, head, double{sum}, std::log(double{sum}), double{ref} * plan.scale);
    shares[lane] = static_cast<T>(end.share);
  }
  for (int at = 0; at < g.lanes; at += Lanes<T>::n) {
    Vec<T> share, none = load(g.state + kSum * g.lanes + at);
    __builtin_memcpy(&share, shares + at, sizeof share);
    Vec<T> factor = problem.dropped ? share * static_cast<T>(problem.kept_factor) : share;
    for (int64_t c = 0; c < problem.value_width; ++c) {
      T* o = g.o + c * g.lanes + at;
      // One zero and one NaN: their signs would tell of the neighbours.
      Vec<T> x = (none == Vec<T>{} ? load(o) : load(o) * factor) + T(0);
      store(o, x == x ? x : spread(std::numeric_limits<T>::quiet_NaN()));
    }
  }
}

template <class T>
void finish_group(const Problem& problem, const Panel& panel, const Plan<T>& plan,
                  const Queries<T>& g) {
  constexpr int n = Lanes<T>::n;
  T shares[3 * n];
  divide(problem, panel, plan, g, shares);
  bool watched = problem.facts.lse || problem.facts.exact_lse;
  alignas(kBytes) double logs[3 * n];
  for (int lane = 0; watched && lane < g.lanes; ++lane) logs[lane] = mass_of(plan, g, lane);
  for (int lane = 0; watched && lane < g.lanes; lane += kBytes / 8)
    store(logs + lane, log_lanes(load(logs + lane)));
  int64_t width = problem.value_width;
  for (int lane = 0; lane < g.used; lane += n) {
    char *to[n], *exact[n];
    int here = std::min(n, g.used - lane);
    for (int i = 0; i < here; ++i) {
      Row row = row_of(problem, panel, g.first + lane + i);
      int64_t at = (panel.batch * problem.heads + row.head) * problem.rows + row.row;
      to[i] = problem.output_at(panel.batch, row.head, row.row);
      if (problem.facts.exact_output)
        exact[i] = reinterpret_cast<char*>(problem.facts.exact_output + at * width);
      if (watched) write_facts(problem, plan, g, lane + i, logs[lane + i], row.head, at);
      if (problem.facts.top) write_list(problem, plan, g, lane + i, shares[lane + i], at);
      if (problem.recall) {
        T* recall = reinterpret_cast<T*>(problem.recall) + 2 * at;
        recall[0] = g.state[kRef * g.lanes + lane + i];
        recall[1] = shares[lane + i];
      }
    }
    const T* from = g.o + lane;
    if constexpr (sizeof(T) == 8)
      transpose_out<double>(from, g.lanes, to, here, width);
    else if (problem.dtype == Dtype::f16)
      transpose_out<Half>(from, g.lanes, to, here, width);
    else if (problem.dtype == Dtype::bf16)
      transpose_out<Brain>(from, g.lanes, to, here, width);
    else
      transpose_out<float>(from, g.lanes, to, here, width);
    if constexpr (sizeof(T) == 4)
      if (problem.facts.exact_output) transpose_out<float>(from, g.lanes, exact, here, width);
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

// The scores of one tile say what lists that are still empty will end with at least.
template <class T, int NV>
void foresee_tile(const Queries<T>& g, const Tile<T>& tile, const Walk<T>& walk,
                  const Buffers<T>& b) {
  constexpr int n = Lanes<T>::n;
  score_tile<T, NV>(g, tile, walk.plan, walk.problem.width,
                    [&](int key, int v, Vec<T> s) { store(b.scores + (key * NV + v) * n, s); });
  Candidates<T, NV> candidates{b.candidates, b.candidate_keys, {}, {}};
  candidates.begin(g.state + kLeast * NV * n);
  candidates.raise(b.scores, tile.low, tile.high, static_cast<int>(walk.plan.top));
  for (int v = 0; v < NV; ++v) store(g.state + (kLeast * NV + v) * n, candidates.least[v]);
}

// Rows of texts look most at what is near, at the end of what they see: lists that take up the keys
// in their order would drop nearly all of it again.
template <class T>
void foresee(const Walk<T>& walk, const Room<T>& room) {
  constexpr int64_t kFar = 8 * kTile;  // so many keys make one tile more cheap
  for (int i = 0; i < walk.count; ++i) {
    const Queries<T>& g = walk.groups[i];
    int64_t first = g.solid.stop - kTile;
    if (g.few || walk.plan.top > kMostParts / 2 || first - g.solid.start < kFar) continue;
    Tile<T> tile{};
    if (!look(walk, g, first, kTile, nullptr, room, &tile)) continue;
    fetch_keys(walk, g, nullptr, first, kTile, room, &tile);
    if (g.vectors == 1) foresee_tile<T, 1>(g, tile, walk, room.buffers);
    if (g.vectors == 2) foresee_tile<T, 2>(g, tile, walk, room.buffers);
    if (g.vectors == 3) foresee_tile<T, 3>(g, tile, walk, room.buffers);
  }
}

// All keys of a panel, finished into the output.
template <class T>
void walk_all(Walk<T>& walk, const Room<T>& room, const Keeper<T>* keeper = nullptr) {
  const Problem& problem = walk.problem;
  for (int i = 0; i < walk.count; ++i) clear_group(problem, walk.groups[i]);
  if (walk.plan.top) foresee(walk, room);
  Queries<T> later[kMostGroups];
  std::copy_n(walk.groups, walk.count, later);
  lay_out<T>(problem, walk.panel.rows, room.states[1], later);
  bool begun = false;
  for (int64_t c = walk.seen.start / kChunk; c * kChunk < walk.seen.stop; ++c) {
    if (stopping()) return;
    for (int i = 0; begun && i < walk.count; ++i) {
      clear_group(problem, later[i]);
      // What the lists so far would drop need not be listed again.
      const Queries<T>& g = walk.groups[i];
      std::copy_n(g.state + kLeast * g.lanes, g.lanes, later[i].state + kLeast * g.lanes);
    }
    walk_chunk(walk, begun ? later : walk.groups, c, room, keeper);
    for (int i = 0; begun && i < walk.count; ++i)
      merge_group(problem, walk.plan, walk.groups[i], later[i]);
    begun = true;
  }
  finish<T>(problem, walk.panel, room.states[0]);
}

template <class T>
void whole(const Problem& problem, const Panel& panel, Scratch& scratch) {
  Room<T> room = room_of<T>(problem, panel.rows, scratch);
  Walk<T> walk(problem, panel);
  begin(walk, room.states[0], room);
  walk_all(walk, room);
}

// A panel of one head, finished unless it is already, and what its rows add to the facts.
template <class T>
void add_totals(const Problem& problem, const Panel& panel, const Part& part, bool finished,
                Adder& adder) {
  Room<T> room = room_of<T>(problem, panel.rows, adder.room);
  Walk<T> walk(problem, panel);
  begin(walk, room.states[0], room);
  int64_t bytes = Memory<T>::bytes(Memory<T>::tiles_of(walk.seen), walk.count);
  // Masses are facts of a row: the same bits whatever rows are beside it.
  if (finished || bytes > kMostKept || problem.totals.masses) {
    if (!finished) walk_all(walk, room);
    if (stopping()) return;
    add_waiting<T>(adder);
    Finished<T> here = finished_of(walk, part, adder.sums);
    add_rest(here, [&](int64_t first) { add_again(walk, first, room, here.adding); });
    return;
  }
  Keeper<T> keeper = keeper_of(walk, adder);
  walk_all(walk, room, &keeper);
  if (stopping()) return;
  add_waiting<T>(adder);
  new (panel_of<T>(adder)) Finished<T>(finished_of(walk, part, adder.sums));
  adder.waits = true;
}

template <class T>
void chunk(const Problem& problem, const Panel& panel, int64_t which, char* part,
           Scratch& scratch) {
  Room<T> room = room_of<T>(problem, panel.rows, scratch);
  Walk<T> walk(problem, panel);
  begin(walk, part, room);
  for (int i = 0; i < walk.count; ++i) clear_group(problem, walk.groups[i]);
  walk_chunk(walk, walk.groups, which, room);
}

template <class T, int NV>
void weigh_block(const Walk<T>& walk, const Queries<T>& g, const Tile<T>& tile, const Block& block,
                 T* scores) {
  using L = Lanes<T>;
  constexpr int kStep = NV * L::n;
  const Problem& problem = walk.problem;
  score_tile<T, NV>(g, tile, walk.plan, problem.width,
                    [&](int key, int v, Vec<T> s) { store(scores + key * kStep + v * L::n, s); });
  bool partly = tile.masked || tile.high < kTile;
  for (int lane = 0; lane < g.used; ++lane) {
    int64_t at = index_of(walk, g, lane);
    double lse = block.lse[at] == -INFINITY ? 0 : block.lse[at];  // all weights are 0
    uint64_t seen = partly ? word_of<T>(tile.words, g.lanes, lane) : ~uint64_t{0};
    T* to = reinterpret_cast<T*>(block.output) + at * block.keys + tile.first;
    for (int key = tile.low; key < tile.high; ++key) {
      T s = scores[key * kStep + lane];
      to[key] = seen >> key & 1 ? static_cast<T>(std::exp(s * walk.plan.scale - lse)) : T(0);
    }
  }
}

template <class T>
void weights(const Problem& problem, const Block& block, const Panel& panel, Scratch& scratch) {
  Room<T> room = room_of<T>(problem, panel.rows, scratch);
  Walk<T> walk(problem, panel);
  begin(walk, room.states[0], room);
  for (int64_t first = 0; first < block.keys; first += kTile) {
    if (stopping()) return;
    int count = static_cast<int>(std::min<int64_t>(kTile, block.keys - first));
    Tile<T> tile{};
    for (int i = 0; i < walk.count; ++i) {
      const Queries<T>& g = walk.groups[i];
      for (int lane = 0; lane < g.used; ++lane) {
        Row row = row_of(problem, panel, g.first + lane);
        int64_t at = (panel.batch * problem.heads + row.head) * problem.rows + row.row;
        std::fill_n(reinterpret_cast<T*>(block.output) + at * block.keys + first, count, T(0));
      }
      if (!look(walk, g, first, count, block.key_index, room, &tile)) continue;
      fetch_keys(walk, g, block.key_index, first, count, room, &tile);
      if (g.vectors == 1) weigh_block<T, 1>(walk, g, tile, block, room.buffers.scores);
      if (g.vectors == 2) weigh_block<T, 2>(walk, g, tile, block, room.buffers.scores);
      if (g.vectors == 3) weigh_block<T, 3>(walk, g, tile, block, room.buffers.scores);
    }
  }
}

}  // namespace

#define CHUMOKU_TEXT_OF(x) #x
#define CHUMOKU_TEXT(x) CHUMOKU_TEXT_OF(x)

template <class T>
constexpr Table kTable = {CHUMOKU_TEXT(CHUMOKU_ISA),
                          kMostRows,
                          3 * Lanes<T>::n,
                          whole<T>,
                          chunk<T>,
                          part_bytes<T>,
                          clear<T>,
                          merge<T>,
                          finish<T>,
                          weights<T>,
                          add_totals<T>,
                          add_waiting<T>,
                          back<T>};

const Table table_f32 = kTable<float>;
const Table table_f64 = kTable<double>;

}  // namespace chumoku::CHUMOKU_ISA
