#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "check.hpp"
#include "scrd/error.hpp"
#include "scrd/isa.hpp"
#include "scrd/peak.hpp"
#include "scrd/thread_pool.hpp"

namespace scrd {
namespace {

TEST(peaks_are_measured) {
#if defined(__x86_64__)
  CHECK(peak_ops("fp32", 0.05) > 1e9);
#endif
  const double bf16 = peak_ops("bf16", 0.05), int8 = peak_ops("int8", 0.05);
  CHECK(bf16 == 0 || bf16 > 1e9);
  CHECK(int8 == 0 || int8 > 1e9);
}

TEST(peaks_are_those_of_the_instruction_set_in_use) {
  const Isa before = active_isa();
  for (Isa isa : available_isas()) {
    set_isa(isa);
    const double bf16 = peak_ops("bf16", 0.01), int8 = peak_ops("int8", 0.01);
    CHECK(isa == Isa::avx512 || bf16 == 0);
    CHECK(isa == Isa::avx2 || isa == Isa::avx512 ? int8 > 1e9 : int8 == 0);
  }
  set_isa(before);
}

TEST(peaks_that_make_no_sense) {
  CHECK_THROWS(InputError, "kind: expected one of fp32, bf16, int8, got 'fp64'",
               peak_ops("fp64", 0.1));
  CHECK_THROWS(InputError, "seconds: expected a number above 0, 60 at most, got 0.000000",
               peak_ops("fp32", 0));
}

TEST(copies_of_every_size_are_measured) {
  const int before = shared_pool()->threads();
  std::vector<double> rates;
  for (int threads : {1, 2, 5}) {
    set_threads(threads);
    // Fewer bytes than threads, shares of unequal size, and more than a page each.
    for (std::size_t bytes : {1, 3, 7, 4096, 1000003}) rates.push_back(copy_rate(bytes, 0.002));
  }
  set_threads(before);
  for (double rate : rates) CHECK(rate > 1e3);
  CHECK(copy_rate(1 << 22, 0.05) > 1e8);
}

TEST(copies_are_timed_as_long_as_asked_for) {
  const auto start = std::chrono::steady_clock::now();
  copy_rate(1 << 16, 0.05);
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(50));
}

TEST(copies_that_make_no_sense) {
  CHECK_THROWS(InputError, "nbytes: expected a positive integer, got 0", copy_rate(0, 0.1));
  for (double seconds : {0.0, -1.0, 61.0, std::nan("")}) {
    CHECK_THROWS(InputError,
                 "seconds: expected a number above 0, 60 at most, got " + std::to_string(seconds),
                 copy_rate(1024, seconds));
  }
}

}  // namespace
}  // namespace scrd
