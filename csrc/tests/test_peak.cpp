#include "check.hpp"
#include "error.hpp"
#include "isa.hpp"
#include "peak.hpp"

namespace scrd {
namespace {

TEST(peaks_are_measured) {
  const double fp32 = peak_ops("fp32", 0.05), bf16 = peak_ops("bf16", 0.05),
               int8 = peak_ops("int8", 0.05);
#if defined(__x86_64__)
  CHECK(fp32 > 1e9);
#endif
  CHECK(bf16 == 0 || bf16 > 1e9);
  CHECK(int8 == 0 || int8 > 1e9);
}

TEST(a_copy_is_measured) {
  for (std::size_t bytes : {std::size_t{1}, std::size_t{1000}, std::size_t{1} << 22}) {
    const double rate = copy_rate(bytes, 0.01);
    CHECK(rate > 0 && rate < 1e13);
  }
}

TEST(copies_that_make_no_sense) {
  CHECK_THROWS(InputError, "bytes: expected 1 to 4294967296, got 0", copy_rate(0, 0.1));
  CHECK_THROWS(InputError, "seconds: expected a number above 0, 60 at most, got -1.000000",
               copy_rate(8, -1));
}

TEST(peaks_that_make_no_sense) {
  CHECK_THROWS(InputError, "kind: expected one of fp32, bf16, int8, got 'fp64'",
               peak_ops("fp64", 0.1));
  CHECK_THROWS(InputError, "seconds: expected a number above 0, 60 at most, got 0.000000",
               peak_ops("fp32", 0));
}

}  // namespace
}  // namespace scrd
