#include "check.hpp"
#include "scrd/error.hpp"
#include "scrd/isa.hpp"
#include "scrd/peak.hpp"

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

TEST(peaks_that_make_no_sense) {
  CHECK_THROWS(InputError, "kind: expected one of fp32, bf16, int8, got 'fp64'",
               peak_ops("fp64", 0.1));
  CHECK_THROWS(InputError, "seconds: expected a number above 0, 60 at most, got 0.000000",
               peak_ops("fp32", 0));
}

}  // namespace
}  // namespace scrd
