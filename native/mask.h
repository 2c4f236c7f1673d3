// Masks as kernels ask them: which keys do these rows see, as ranges and as words of 64 bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"

namespace chumoku {

struct Range {
  int64_t start = 0, stop = 0;
  bool empty() const { return start >= stop; }
};

// One row as a mask sees it: its query's position, and which row of the call it is.
struct Place {
  int64_t batch, head, query, row;
};

// The smallest range that holds every key the row sees.
Range hull(const Mask& mask, const Place& place);

// Whether every row sees one interval of keys, its hull.
bool of_intervals(const Mask& mask);

// A range in which the row sees every key: exact for single intervals, else possibly empty.
Range solid(const Mask& mask, const Place& place);

// Bit j says whether the row sees key first + j, for j < count <= 64.
uint64_t word(const Mask& mask, const Place& place, int64_t first, int64_t count);

static inline uint64_t low_bits(int64_t n) {
  return n >= 64 ? ~uint64_t{0} : n <= 0 ? 0 : (uint64_t{1} << n) - 1;
}

static inline uint64_t range_word(const Range& range, int64_t first) {
  return low_bits(range.stop - first) & ~low_bits(range.start - first);
}

}  // namespace chumoku
