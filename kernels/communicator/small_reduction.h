// All-reduce of few bytes, for which the number of messages in a row is what takes time.

#ifndef WHALE_KERNELS_COMMUNICATOR_SMALL_REDUCTION_H_
#define WHALE_KERNELS_COMMUNICATOR_SMALL_REDUCTION_H_

#include <memory>

#include "kernels/communicator/operation.h"

namespace whale {

// Whether it is an all-reduce of so few bytes: the same on all ranks whose calls fit together.
bool IsSmall(const CollectiveCall& call);

std::unique_ptr<Operation> MakeSmallReduction(CollectiveCall call, int rank, const Admission& own);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_SMALL_REDUCTION_H_
