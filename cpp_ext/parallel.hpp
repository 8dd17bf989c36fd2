// A parallel loop over rows. Each row belongs to one thread, so the number of threads cannot change a bit.
#pragma once

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "arithmetic.hpp"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace unet_engine {

// The default floating-point mode for as long as it lives. A library built with -ffast-math switches the mode of the
// thread that loads it and of all threads started from there (denormals become zero): results would depend on what was
// imported.
class DefaultFloatMode {
 public:
#if defined(__SSE2__)
  DefaultFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatMode() { _mm_setcsr(saved_); }
#else
  DefaultFloatMode() = default;
#endif
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__SSE2__)
  unsigned int saved_;
#endif
};

// body(begin, end) over contiguous parts of [0, rows). A thread is only started for `kGrain` elements or more: below
// that starting it takes longer than the work.
template <typename Body>
void parallel_rows(index_t rows, index_t elements_per_row, int threads, const Body& body) {
  constexpr index_t kGrain = 1 << 14;
  const index_t useful = rows * std::max<index_t>(elements_per_row, 1) / kGrain;
  const index_t parts = std::max<index_t>(1, std::min({static_cast<index_t>(threads), useful, rows}));
  const auto run = [&](index_t part) {
    const DefaultFloatMode mode;
    body(rows * part / parts, rows * (part + 1) / parts);
  };
  std::vector<std::thread> started;
  index_t part = 1;
  try {
    started.reserve(static_cast<std::size_t>(parts - 1));
    for (; part < parts; ++part) started.emplace_back(run, part);
  } catch (const std::system_error&) {
    // The process may start no more threads: this one does the rest.
  }
  run(0);
  for (; part < parts; ++part) run(part);
  for (std::thread& thread : started) thread.join();
}

}  // namespace unet_engine
