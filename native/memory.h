// Large blocks of memory, kept for the next result of about the same size.
#pragma once

#include <cstddef>

namespace chumoku {

// `bytes` of memory at a page's begin, with anything in it. Throws std::bad_alloc.
char* take(size_t bytes);

// What `take` gave comes back. The kernel may have its pages when it needs them.
void give(char* block, size_t bytes);

// Bytes that lie idle.
size_t idle_bytes();

}  // namespace chumoku
