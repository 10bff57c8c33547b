// The instruction sets that the kernels are compiled for, and the choice at run time.
#pragma once

#include <string>
#include <vector>

namespace scrd {

enum class Isa { plain, neon, avx2, avx512 };

// The sets that this CPU runs, slowest first: plain everywhere, which is what compilers make of
// code without intrinsics for any CPU of a kind, neon on every arm64 CPU.
const std::vector<Isa>& available_isas();

// The set in use: the fastest available, or what the environment variable SCRD_FAST_ISA (plain,
// neon, avx2 or avx512) or set_isa forces. Throws InputError where a forced one is unknown or
// cannot run here.
Isa active_isa();
void set_isa(Isa isa);

const char* isa_name(Isa isa);
// Throws InputError naming `argument` where the name is unknown.
Isa isa_from_name(const std::string& name, const char* argument = "isa");

}  // namespace scrd
