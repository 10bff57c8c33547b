// The arithmetic peak of this CPU, measured: what no network can exceed here.
#pragma once

#include <cstdint>
#include <string>

namespace scrd {

// Operations per second (a multiplication and an addition are two) of multiply-add instructions on
// registers only, by all threads of the shared pool, over at least `seconds`.
//
// kind: "fp32" (FMA; multiply and add where the CPU has none), "bf16" (vdpbf16ps) or "int8"
// (vpdpbusd). 0 where no such instruction is known for this CPU, or where it has tile instructions
// (AMX) for the kind, whose peak this would understate. Throws InputError.
double peak_ops(const std::string& kind, double seconds);

}  // namespace scrd
