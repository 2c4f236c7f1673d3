// What each instruction set's build of tile.cc offers to attention.cc.
// Functions here are static or defined elsewhere: a shared one compiled for AVX-512 might be the
// one that the linker keeps for all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "attention.h"
#include "mask.h"

namespace chumoku {

// Memory of one worker: aligned, kept for the call, never cleared.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(); }

  char* get(size_t bytes);

 private:
  // From here on huge pages are worth their while: half of the time goes to looking up small ones.
  static constexpr size_t kLarge = size_t{2} << 20;

  void free();

  char* memory_ = nullptr;
  size_t size_ = 0;
};

// Some rows of the heads that share one key head: row r of the group is row r % rows of head
// kv_head * group + r / rows.
struct Panel {
  int64_t batch, kv_head, first, rows;
};

// Which head and which of its rows a panel's row is.
struct Row {
  int64_t head, row;
};

static inline Row row_of(const Problem& problem, const Panel& panel, int64_t r) {
  int64_t at = panel.first + r;
  if (problem.heads == problem.kv_heads) return {panel.kv_head, at};
  int64_t group = problem.heads / problem.kv_heads;
  return {panel.kv_head * group + at / problem.rows, at % problem.rows};
}

// The smallest range of keys that holds all that a panel sees.
Range seen_by(const Problem& problem, const Panel& panel);

// Bytes of weights that are kept of a panel at most.
constexpr int64_t kMostKept = int64_t{24} << 20;

// What some rows of one head add up over all keys.
struct Part {
  double* received;  // [keys], or null
  int64_t* seers;
  double* cell_sum;  // [rows of cells that these rows touch][columns], or null
  double* cell_most;
  int64_t first_row;  // of cells
};

// Which of `cells`, spread evenly over `length` places, holds a place.
static inline int64_t cell_of(int64_t place, int64_t cells, int64_t length) {
  return ((place + 1) * cells - 1) / length;
}

// Memory of one worker that adds up. The weights of its last panel wait to be added until the next
// one takes their places.
struct Adder {
  Scratch room, kept, sums, panel;
  int64_t tiles = 0;  // places for so many tiles
  int groups = 0;     // of so many groups
  bool waits = false;
};

// Some keys of one head, and the queries of its group in their order: group i is walked when turn()
// says so (or never, when it says false), and done() lets the next block come to it.
struct KeyBlock {
  int64_t batch, kv_head, first, count;
  bool opens, closes;  // the first block of its head, the last
  char* query_sums;    // [groups][width][unit], what the blocks so far add up to, if there are more
  std::function<bool(int64_t)> turn;
  std::function<void(int64_t)> done;
};

struct Table {
  const char* name;
  int64_t most_rows;  // rows of the largest panel
  int64_t unit;       // rows are dealt out in multiples of this

  // All keys of a panel, finished into the output.
  void (*whole)(const Problem&, const Panel&, Scratch&);
  // One chunk of keys of a panel, its state left in `part`.
  void (*chunk)(const Problem&, const Panel&, int64_t chunk, char* part, Scratch&);
  size_t (*part_bytes)(const Problem&, int64_t rows);
  void (*clear)(const Problem&, int64_t rows, char* total);
  // total <- total and part; parts come in the order of their chunks.
  void (*merge)(const Problem&, int64_t rows, char* total, const char* part);
  void (*finish)(const Problem&, const Panel&, char* total);
  void (*weights)(const Problem&, const Block&, const Panel&, Scratch&);
  // A panel of one head, finished unless it is already, and what its rows add to the facts: now, or
  // with the next panel.
  void (*add_totals)(const Problem&, const Panel&, const Part&, bool finished, Adder&);
  // What still waits.
  void (*add_waiting)(Adder&);
  // What a block of keys adds to the gradients.
  void (*back)(const Problem&, const Gradients&, const KeyBlock&, Scratch* two);
};

// That of the instruction set in use.
const Table& table_of(const Problem& problem);

#define CHUMOKU_DECLARE(isa)               \
  namespace isa {                          \
  extern const Table table_f32, table_f64; \
  }
CHUMOKU_DECLARE(baseline)
CHUMOKU_DECLARE(avx2)
CHUMOKU_DECLARE(avx512)
CHUMOKU_DECLARE(avx512_on_avx2)  // tests only
CHUMOKU_DECLARE(neon)
#undef CHUMOKU_DECLARE

}  // namespace chumoku
