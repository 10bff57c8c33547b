#include <algorithm>
#include <vector>

#include "check.hpp"
#include "scrd/error.hpp"
#include "scrd/isa.hpp"

namespace scrd {
namespace {

constexpr Isa kAll[] = {Isa::plain, Isa::neon, Isa::avx2, Isa::avx512};

bool available(Isa isa) {
  const std::vector<Isa>& isas = available_isas();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

TEST(plain_runs_everywhere_and_comes_first) { CHECK(available_isas().front() == Isa::plain); }

TEST(names_go_both_ways) {
  for (Isa isa : kAll) CHECK(isa_from_name(isa_name(isa)) == isa);
}

TEST(unknown_names) {
  CHECK_THROWS(InputError, "isa: expected one of plain, neon, avx2, avx512, got 'AVX2'",
               isa_from_name("AVX2"));
  CHECK_THROWS(InputError, "SOME: expected one of plain, neon, avx2, avx512, got ''",
               isa_from_name("", "SOME"));
}

TEST(set_isa_takes_what_the_cpu_runs) {
  const Isa before = active_isa();
  for (Isa isa : kAll) {
    if (available(isa)) {
      test::UseIsa use(isa);
      CHECK(active_isa() == isa);
    } else {
      bool threw = false;
      try {
        set_isa(isa);
      } catch (const InputError&) {
        threw = true;
      }
      CHECK(threw);
    }
    CHECK(active_isa() == before);
  }
}

}  // namespace
}  // namespace scrd
