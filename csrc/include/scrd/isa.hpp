// The instruction sets that the kernels are compiled for, and the choice at run time.
#pragma once

#include <string>
#include <vector>

namespace scrd {

enum class Isa { plain, avx2, avx512 };

// The sets that this CPU runs, slowest first. "plain" is what the compiler takes for granted:
// SSE2 on x86-64, NEON on arm64.
const std::vector<Isa>& available_isas();

// The set in use: the fastest available, or what the environment variable SCRD_FAST_ISA (plain,
// avx2 or avx512) or set_isa forces. Throws InputError where a forced one is unknown or cannot run
// here.
Isa active_isa();
void set_isa(Isa isa);

const char* isa_name(Isa isa);
// Throws InputError naming `argument` where the name is unknown.
Isa isa_from_name(const std::string& name, const char* argument = "isa");

}  // namespace scrd
