// What the native kernel is asked and what it answers: plain structs and a few functions. No Python
// and no SIMD types here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace chumoku {

// Keys are walked in tiles of 64, one machine word of mask bits for each query; 16 tiles make a
// chunk, the unit in which work is split over keys. Both are counted from key 0, whatever the
// slice of queries, so that a row's sums are always taken in the same order.
constexpr int kTile = 64;
constexpr int64_t kChunk = 16 * kTile;

enum class Dtype { f32, f64, f16, bf16 };

// An array (batch, heads, rows, columns); strides in bytes, of any sign or zero.
struct View {
  const char* data = nullptr;
  std::vector<int64_t> batch;  // offset of each flattened batch entry
  int64_t head = 0, row = 0, column = 0;

  const char* at(int64_t b, int64_t h, int64_t r) const {
    return data + batch[static_cast<size_t>(b)] + h * head + r * row;
  }
  // The same, of memory that was given to be written to.
  char* to(int64_t b, int64_t h, int64_t r) const { return const_cast<char*>(at(b, h, r)); }
};

// A lowered mask: leaves and joins, each part's index in `parts`.
struct MaskNode {
  enum class Kind { band, runs, equal, boolean, bits, all, any } kind;
  // band: six numbers for each entry: row_start, row_stop, key_start, key_stop, low, high
  // runs: start (entries, queries, runs), stop the same; equal: query ids, key ids
  const int64_t* first = nullptr;
  const int64_t* second = nullptr;
  int64_t entries = 0, runs = 0;
  View cells;  // boolean: one byte for each key; bits: a word for each 64, by the rows of the call
  std::vector<int> parts;
};

struct Mask {
  std::vector<MaskNode> nodes;  // the last one is the root
  int64_t queries = 0, keys = 0;
};

// Where the facts go: contiguous (batch, heads, rows), null when not watched.
struct Facts {
  char* lse = nullptr;
  double* exact_lse = nullptr;    // the same, unrounded
  float* exact_output = nullptr;  // (batch, heads, rows, value_width) of 16-bit calls, unrounded
  char* max_logit = nullptr;
  char* entropy = nullptr;
  char* saturation = nullptr;
  char* flow = nullptr;
  char* distance = nullptr;
  char* sink_weight = nullptr;
  int64_t* top_keys = nullptr;  // (batch, heads, rows, top)
  char* top_weights = nullptr;
  int64_t top = 0;
  char* group_mass = nullptr;  // (batch, heads, rows, group_count), kept beside each row's state
  const int64_t* groups = nullptr;
  int64_t group_count = 0;
};

// Facts that add up over the rows, from the final weights. What is there is added to. Null when not
// watched.
struct Totals {
  double* received = nullptr;  // (batch, heads, keys)
  int64_t* seers = nullptr;    // rows that see the key
  double* cell_sum = nullptr;  // (batch, heads, cell_rows, cell_columns), the weights pooled
  double* cell_most = nullptr;
  int64_t cell_rows = 0, cell_columns = 0;
  double* masses =
      nullptr;          // (batch, heads, rows, group_count): groups too many to keep beside a row
  int64_t queries = 0;  // over which the cells are spread
};

struct Problem {
  Dtype dtype = Dtype::f32;
  int64_t batch = 0, heads = 0, kv_heads = 0, rows = 0, keys = 0, width = 0, value_width = 0;
  View query, key, value;
  char* output = nullptr;              // (batch, heads, rows, value_width), contiguous unless
  View output_rows;                    // there is a view of its rows, each contiguous
  const int64_t* row_index = nullptr;  // query position of each row; null: row r is query r
  const int64_t* position = nullptr;   // per batch entry: key position of query 0, for distance
  const Mask* mask = nullptr;
  double scale = 1.0;
  double softcap = 0;   // 0: none
  bool biased = false;  // `bias` is added to the scores: (batch, heads, queries, keys)
  View bias;
  const double* sinks = nullptr;  // one for each head
  bool dropped = false;           // weights whose random word is below the threshold count as 0,
  uint64_t seed = 0, threshold = 0;
  double kept_factor = 1;  // and the others this many times
  Facts facts;
  Totals totals;
  char* recall = nullptr;  // for the totals: reference and 1 / sum of each row

  char* output_at(int64_t b, int64_t h, int64_t r) const {
    if (output_rows.data) return output + (output_rows.at(b, h, r) - output_rows.data);
    return output + ((b * heads + h) * rows + r) * value_width * item();
  }
  int64_t query_of(int64_t row) const { return row_index ? row_index[row] : row; }
  bool wide() const { return dtype == Dtype::f64; }
  // Entries of a row's list, and groups whose masses are kept beside its state.
  int64_t listed() const { return std::min(facts.top, keys); }
  int64_t massed() const { return facts.group_mass ? facts.group_count : 0; }
  int64_t item() const { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
};

// One block of the weight matrix: exp(score - lse) for some rows and keys.
struct Block {
  const int64_t* key_index = nullptr;
  int64_t keys = 0;
  const double* lse = nullptr;  // contiguous (batch, heads, rows)
  char* output = nullptr;       // contiguous (batch, heads, rows, keys)
};

// What the gradient of a problem's output is taken from, and where the gradients of its query, key
// and value go: views of rows of the problem's dtype, without data where they are not wanted. The
// arrays of one number a row are contiguous (batch, heads, rows).
struct Gradients {
  View upstream, output;  // (batch, heads, rows, value_width): the gradient of the output, and it
  View query, key, value;
  View bias;  // numbers that sums are taken in; strides of 0 where the bias is broadcast: added to
  const float* exact_output = nullptr;  // contiguous, in place of output
  const double* lse = nullptr;
  // Pulls at all scores of a row alike, beside what the output gives: it is added here.
  double* pull = nullptr;
  const double* twist = nullptr;  // what each score gets times -weight * ln weight, or null
};

// Asked from the calling thread now and then; true stops the work.
using Interrupted = std::function<bool()>;

// Returns false when interrupted. Throws std::bad_alloc when the memory is short.
bool attention(const Problem& problem, int threads, const Interrupted& interrupted);
bool weights(const Problem& problem, const Block& block, int threads,
             const Interrupted& interrupted);
bool backward(const Problem& problem, const Gradients& gradients, int threads,
              const Interrupted& interrupted);

// Instruction sets this machine can run, best first; the one in use; pinning one by name.
std::vector<std::string> instruction_sets();
std::string instruction_set();
bool set_instruction_set(const std::string& name);
bool knows_instruction_set(const std::string& name);  // whether this machine can run it or not

// Thrown by whatever needs an instruction set first, when CHUMOKU_ISA names none of the above.
struct UnknownInstructionSet : std::invalid_argument {
  using std::invalid_argument::invalid_argument;  // what() is the name
};

}  // namespace chumoku
