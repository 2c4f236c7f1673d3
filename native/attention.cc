// Cuts a call into panels, hands them to the threads, and joins chunks of keys in their order.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <memory>

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
  // Last rows first: under a causal mask they see most keys, and long items are best begun early.
  for (int64_t first = (rows - 1) / size * size; first >= 0; first -= size)
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t h = 0; h < p.kv_heads; ++h)
        panels.push_back({b, h, first, std::min(size, rows - first)});
  return panels;
}

// Few rows and many keys: chunks of keys are spread over the threads, and their states are joined
// in order. In waves, so that the states waiting to be joined stay few.
bool split_keys(const Problem& p, const Table& table, const std::vector<Panel>& panels, int threads,
                const Interrupted& interrupted) {
  int64_t chunks = (p.keys + kChunk - 1) / kChunk;
  int64_t wave = std::min<int64_t>(chunks, 8 * threads);
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<char, Free>;
  auto make = [&](const Panel& panel, int64_t count) {
    size_t bytes = (table.part_bytes(p, panel.rows) + 63) / 64 * 64;
    Memory memory(static_cast<char*>(std::aligned_alloc(64, bytes * static_cast<size_t>(count))));
    if (!memory) throw std::bad_alloc();
    return std::pair(std::move(memory), bytes);
  };
  std::vector<std::pair<Memory, size_t>> totals, parts;
  for (const Panel& panel : panels) {
    totals.push_back(make(panel, 1));
    parts.push_back(make(panel, wave));
    table.clear(p, panel.rows, totals.back().first.get());
  }
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  int64_t count = static_cast<int64_t>(panels.size());
  for (int64_t begin = 0; begin < chunks; begin += wave) {
    int64_t now = std::min(wave, chunks - begin);
    auto part = [&](int64_t panel, int64_t c) {
      auto& memory = parts[static_cast<size_t>(panel)];
      return memory.first.get() + memory.second * static_cast<size_t>(c);
    };
    if (!parallel(
            count * now, threads,
            [&](int64_t item, int worker) {
              int64_t panel = item / now, c = item % now;
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
                table.merge(p, panels[at].rows, total, part(panel, c));
              if (begin + now == chunks) table.finish(p, panels[at], total);
            },
            interrupted))
      return false;
  }
  return true;
}

}  // namespace

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

bool attention(const Problem& p, int threads, const Interrupted& interrupted) {
  if (p.batch * p.heads * p.rows == 0) return true;
  const Table& table = p.dtype == Dtype::f32 ? *isa().f32 : *isa().f64;
  // A thread costs some microseconds to wake; small calls stay on the caller's.
  double work = 1.0 * p.batch * p.heads * p.rows * p.keys * (p.width + p.value_width);
  if (work < 2e5) threads = 1;
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

bool weights(const Problem& p, const Block& block, int threads, const Interrupted& interrupted) {
  if (p.batch * p.heads * p.rows * block.keys == 0) return true;
  const Table& table = p.dtype == Dtype::f32 ? *isa().f32 : *isa().f64;
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
