// The levels that were built, best first: FEDHQ_LEVELS is a list of FEDHQ_LEVEL(name).
#include "kernels.h"

namespace fedhq {

#define FEDHQ_LEVEL(name)         \
  namespace name {                \
  extern const Kernels kernels;   \
  }
FEDHQ_LEVELS
#undef FEDHQ_LEVEL

#define FEDHQ_LEVEL(name) &name::kernels,
const Kernels* const all_kernels[] = {FEDHQ_LEVELS nullptr};
#undef FEDHQ_LEVEL

const Kernels* chosen = nullptr;

}  // namespace fedhq
