// Cuts a call into panels, hands them to the threads, and joins chunks of keys in their order.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "memory.h"
#include "pool.h"
#include "tile.h"

namespace chumoku {
namespace {

struct Isa {
  const Table* f32;
  const Table* f64;
  bool here;
};

// Best first. Each is here only when the machine has all that CMakeLists.txt compiles it with.
const std::vector<Isa>& isas() {
#if defined(__x86_64__)
  static const bool avx2_here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                __builtin_cpu_supports("f16c");
#endif
  static const std::vector<Isa> all = {
#if defined(__x86_64__)
      {&avx512::table_f32, &avx512::table_f64,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && avx2_here},
      {&avx2::table_f32, &avx2::table_f64, avx2_here},
#if defined(CHUMOKU_LOWERED)
      {&avx512_on_avx2::table_f32, &avx512_on_avx2::table_f64, avx2_here},
#endif
#endif
#if defined(__aarch64__)
      {&neon::table_f32, &neon::table_f64, true},
#else
      {&baseline::table_f32, &baseline::table_f64, true},
#endif
  };
  return all;
}

std::atomic<const Isa*> chosen{nullptr};

const Isa& isa() {
  const Isa* now = chosen.load();
  if (!now) {
    const char* asked = std::getenv("CHUMOKU_ISA");
    std::string name = asked && *asked ? asked : instruction_sets().front();
    if (!set_instruction_set(name)) throw UnknownInstructionSet(name);
    now = chosen.load();
  }
  return *now;
}

// Rows are cut into panels of nearly equal size. With too few panels for the threads they become
// smaller: what a row gets does not depend on its neighbours.
std::vector<Panel> panels_of(const Problem& p, const Table& table, int threads) {
  int64_t rows = p.heads / p.kv_heads * p.rows;
  int64_t groups = p.batch * p.kv_heads;
  int64_t pieces =
      std::max((rows + table.most_rows - 1) / table.most_rows,
               std::min((2 * threads + groups - 1) / groups, (rows + table.unit - 1) / table.unit));
  if (threads == 1) pieces = (rows + table.most_rows - 1) / table.most_rows;
  int64_t size = (rows + pieces - 1) / pieces;
  size = std::min(table.most_rows, (size + table.unit - 1) / table.unit * table.unit);
  std::vector<Panel> panels;
  // Head by head, so that threads read the same keys; last rows first: under a causal mask they see
  // most keys, and long items are best begun early.
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.kv_heads; ++h)
      for (int64_t first = (rows - 1) / size * size; first >= 0; first -= size)
        panels.push_back({b, h, first, std::min(size, rows - first)});
  return panels;
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

Memory make(size_t bytes) {
  Memory memory(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// Few rows and many keys: chunks of keys are spread over the threads, and their states are joined
// in order. In waves, so that the states waiting to be joined stay few.
bool split_keys(const Problem& p, const Table& table, const std::vector<Panel>& panels, int threads,
                const Interrupted& interrupted) {
  Range seen{p.keys, 0};
  std::vector<Range> sights;
  for (const Panel& panel : panels) {
    Range some = sights.emplace_back(seen_by(p, panel));
    if (!some.empty()) seen = {std::min(seen.start, some.start), std::max(seen.stop, some.stop)};
  }
  int64_t first_chunk = seen.empty() ? 0 : seen.start / kChunk;
  int64_t chunks = seen.empty() ? 1 : (seen.stop + kChunk - 1) / kChunk;
  int64_t wave = std::min<int64_t>(chunks - first_chunk, 8 * threads);
  auto apart = [&](int64_t panel, int64_t c) {
    const Range& some = sights[static_cast<size_t>(panel)];
    return some.empty() || some.stop <= c * kChunk || some.start >= (c + 1) * kChunk;
  };
  std::vector<std::pair<Memory, size_t>> totals, parts;
  for (const Panel& panel : panels) {
    size_t bytes = (table.part_bytes(p, panel.rows) + 63) / 64 * 64;
    totals.emplace_back(make(bytes), bytes);
    parts.emplace_back(make(bytes * static_cast<size_t>(wave)), bytes);
    table.clear(p, panel.rows, totals.back().first.get());
  }
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  int64_t count = static_cast<int64_t>(panels.size());
  for (int64_t begin = first_chunk; begin < chunks; begin += wave) {
    int64_t now = std::min(wave, chunks - begin);
    auto part = [&](int64_t panel, int64_t c) {
      auto& memory = parts[static_cast<size_t>(panel)];
      return memory.first.get() + memory.second * static_cast<size_t>(c);
    };
    if (!parallel(
            count * now, threads,
            [&](int64_t item, int worker) {
              int64_t panel = item / now, c = item % now;
              if (apart(panel, begin + c)) return;
              table.chunk(p, panels[static_cast<size_t>(panel)], begin + c, part(panel, c),
                          scratch[static_cast<size_t>(worker)]);
            },
            interrupted))
      return false;
    if (!parallel(
            count, threads,
            [&](int64_t panel, int) {
              auto at = static_cast<size_t>(panel);
              char* total = totals[at].first.get();
              for (int64_t c = 0; c < now; ++c)
                if (!apart(panel, begin + c))
                  table.merge(p, panels[at].rows, total, part(panel, c));
              if (begin + now == chunks) table.finish(p, panels[at], total);
            },
            interrupted))
      return false;
  }
  return true;
}

// Rows of one head that are finished together when they are added up: a panel, or as few as are
// walked well where only so few rows' weights can be kept.
int64_t rows_of_item(const Problem& p, const Table& table) {
  int64_t kept_row = p.keys * (p.wide() ? 8 : 4) * 5 / 4;  // with what is kept beside the weights
  bool few = kept_row * table.most_rows > kMostKept && kept_row * table.unit <= kMostKept;
  int64_t most = few ? table.unit : table.most_rows;
  int64_t pieces = (p.rows + most - 1) / most;
  return ((p.rows + pieces - 1) / pieces + table.unit - 1) / table.unit * table.unit;
}

// Some rows of one head, and what they add up until it is joined with the others.
struct Item {
  Panel panel;
  int64_t head, keys, cells = 0;
  Part part{};

  Item(const Problem& p, int64_t index, int64_t rows) : keys(p.totals.received ? p.keys : 0) {
    int64_t per_head = (p.rows + rows - 1) / rows, group = p.heads / p.kv_heads;
    head = index / per_head;
    int64_t first = index % per_head * rows, h = head % p.heads;
    panel = {head / p.heads, h / group, h % group * p.rows + first, std::min(rows, p.rows - first)};
    const Totals& t = p.totals;
    if (!t.cell_sum) return;
    part.first_row = cell_of(p.query_of(first), t.cell_rows, t.queries);
    int64_t last = cell_of(p.query_of(first + panel.rows - 1), t.cell_rows, t.queries);
    cells = (last - part.first_row + 1) * t.cell_columns;
  }

  int64_t numbers() const { return 2 * (keys + cells); }

  void lay_out(char* memory) {
    part.received = keys ? reinterpret_cast<double*>(memory) : nullptr;
    part.seers = reinterpret_cast<int64_t*>(memory) + keys;
    part.cell_sum = cells ? reinterpret_cast<double*>(part.seers + keys) : nullptr;
    part.cell_most = part.cell_sum + cells;
  }

  void clear() const {
    std::fill_n(part.seers - keys, 2 * keys, 0);
    std::fill_n(part.cell_sum, 2 * cells, 0.0);
  }

  // One of `pieces` of the keys; the first has all cells, for items share them.
  void join(const Problem& p, int64_t piece, int64_t pieces) const {
    const Totals& t = p.totals;
    for (int64_t key = keys * piece / pieces; key < keys * (piece + 1) / pieces; ++key) {
      t.received[head * p.keys + key] += part.received[key];
      t.seers[head * p.keys + key] += part.seers[key];
    }
    int64_t start = (head * t.cell_rows + part.first_row) * t.cell_columns;
    for (int64_t cell = 0; piece == 0 && cell < cells; ++cell) {
      double& greatest = t.cell_most[start + cell];
      double here = part.cell_most[cell];
      t.cell_sum[start + cell] += part.cell_sum[cell];
      greatest = here > greatest || here != here ? here : greatest;
    }
  }
};

bool forward(const Problem& p, const Table& table, int threads, const Interrupted& interrupted) {
  std::vector<Panel> panels = panels_of(p, table, threads);
  int64_t count = static_cast<int64_t>(panels.size());
  if (threads > 1 && count < 2 * threads && p.keys > kChunk)
    return split_keys(p, table, panels, threads, interrupted);
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  return parallel(
      count, threads,
      [&](int64_t item, int worker) {
        table.whole(p, panels[static_cast<size_t>(item)], scratch[static_cast<size_t>(worker)]);
      },
      interrupted);
}

// Items in waves; those of a wave are joined in their order, so that sums are the same for any
// number of threads.
bool with_totals(const Problem& p, const Table& table, int threads,
                 const Interrupted& interrupted) {
  // A few rows are finished first, for their keys may be split over the threads. Nothing else may
  // decide it: weights kept and weights taken again differ in the last bit.
  bool finished = p.rows <= 8 && p.keys > kChunk;
  if (finished && !forward(p, table, threads, interrupted)) return false;
  int64_t rows = rows_of_item(p, table);
  int64_t items = p.batch * p.heads * ((p.rows + rows - 1) / rows);
  // Long waves leave no thread idle, short ones hold little memory.
  constexpr int64_t kHeld = int64_t{32} << 20;
  int64_t wave = std::clamp<int64_t>(kHeld / (16 * p.keys + 1), 4 * threads, 64 * threads);
  std::vector<Adder> adders(static_cast<size_t>(threads));
  Scratch memory;
  for (int64_t begin = 0; begin < items; begin += wave) {
    std::vector<Item> held;
    int64_t numbers = 0;
    for (int64_t i = begin; i < std::min(items, begin + wave); ++i)
      numbers += held.emplace_back(p, i, rows).numbers();
    char* at = memory.get(static_cast<size_t>(numbers) * 8);
    for (Item& item : held) {
      item.lay_out(at);
      at += item.numbers() * 8;
    }
    auto add = [&](int64_t i, int worker) {
      const Item& item = held[static_cast<size_t>(i)];
      item.clear();
      table.add_totals(p, item.panel, item.part, finished, adders[static_cast<size_t>(worker)]);
    };
    auto add_waiting = [&](int64_t i, int) { table.add_waiting(adders[static_cast<size_t>(i)]); };
    auto join = [&](int64_t piece, int) {
      for (const Item& item : held) item.join(p, piece, threads);
    };
    if (!parallel(static_cast<int64_t>(held.size()), threads, add, interrupted) ||
        !parallel(threads, threads, add_waiting, interrupted) ||
        !parallel(threads, threads, join, interrupted))
      return false;
  }
  return true;
}

constexpr int64_t kMany = 4096;

// Keys or values whose heads lie inside the rows are walked for every panel in steps of all heads:
// of many, a copy of each head in huge pages is read faster.
bool pack(const Problem& p, View& view, int64_t width, Scratch& memory, int threads,
          const Interrupted& interrupted) {
  constexpr int64_t kBlock = 1024;
  int64_t row = width * p.item();
  if (p.keys < kMany || p.rows < kMany || view.column != p.item() || view.row <= row) return true;
  char* to = memory.get(static_cast<size_t>(p.batch * p.kv_heads * p.keys * row));
  int64_t blocks = (p.keys + kBlock - 1) / kBlock;
  auto copy = [&](int64_t item, int) {
    int64_t head = item / blocks, first = item % blocks * kBlock;
    for (int64_t j = first; j < std::min(p.keys, first + kBlock); ++j)
      std::memcpy(to + (head * p.keys + j) * row, view.at(head / p.kv_heads, head % p.kv_heads, j),
                  static_cast<size_t>(row));
  };
  if (!parallel(p.batch * p.kv_heads * blocks, threads, copy, interrupted)) return false;
  view.data = to;
  view.head = p.keys * row;
  view.row = row;
  for (int64_t b = 0; b < p.batch; ++b)
    view.batch[static_cast<size_t>(b)] = b * p.kv_heads * view.head;
  return true;
}

}  // namespace

void Scratch::free() {
  if (memory_ && size_ >= kLarge)
    give(memory_, size_);
  else
    std::free(memory_);
  memory_ = nullptr;
  size_ = 0;
}

char* Scratch::get(size_t bytes) {
  if (bytes > size_) {
    free();
    memory_ = bytes >= kLarge ? take(bytes) : make(bytes).release();
    size_ = bytes;
  }
  return memory_;
}

const Table& table_of(const Problem& p) { return p.wide() ? *isa().f64 : *isa().f32; }

Range seen_by(const Problem& problem, const Panel& panel) {
  if (!problem.mask) return {0, problem.keys};
  Range all{problem.keys, 0};
  for (int64_t r = 0; r < panel.rows; ++r) {
    Row row = row_of(problem, panel, r);
    Range some = hull(*problem.mask, {panel.batch, row.head, problem.query_of(row.row), row.row});
    if (!some.empty()) all = {std::min(all.start, some.start), std::max(all.stop, some.stop)};
  }
  return all;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Isa& one : isas())
    if (one.here) names.push_back(one.f32->name);
  return names;
}

bool knows_instruction_set(const std::string& name) {
  for (const Isa& one : isas())
    if (name == one.f32->name) return true;
  return false;
}

std::string instruction_set() { return isa().f32->name; }

bool set_instruction_set(const std::string& name) {
  for (const Isa& one : isas())
    if (one.here && name == one.f32->name) {
      chosen = &one;
      return true;
    }
  return false;
}

bool attention(const Problem& given, int threads, const Interrupted& interrupted) {
  if (given.batch * given.heads * given.rows == 0) return true;
  const Table& table = table_of(given);
  // A thread costs some microseconds to wake; small calls stay on the caller's.
  double work = 1.0 * given.batch * given.heads * given.rows * given.keys;
  if (work * (given.width + given.value_width) < 2e5) threads = 1;
  bool adds = given.totals.received || given.totals.cell_sum || given.totals.masses;
  if (!adds && given.keys < kMany) return forward(given, table, threads, interrupted);
  Problem p = given;
  Scratch keys, values;
  if (!pack(p, p.key, p.width, keys, threads, interrupted) ||
      !pack(p, p.value, p.value_width, values, threads, interrupted))
    return false;
  if (!adds) return forward(p, table, threads, interrupted);
  size_t rows = static_cast<size_t>(p.batch * p.heads * p.rows);
  Memory recall = make(2 * rows * (p.wide() ? 8 : 4));
  p.recall = recall.get();
  return with_totals(p, table, threads, interrupted);
}

bool weights(const Problem& p, const Block& block, int threads, const Interrupted& interrupted) {
  if (p.batch * p.heads * p.rows * block.keys == 0) return true;
  const Table& table = table_of(p);
  std::vector<Panel> panels = panels_of(p, table, threads);
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  return parallel(
      static_cast<int64_t>(panels.size()), threads,
      [&](int64_t item, int worker) {
        table.weights(p, block, panels[static_cast<size_t>(item)],
                      scratch[static_cast<size_t>(worker)]);
      },
      interrupted);
}

}  // namespace chumoku
