// What a collective does to the buffers of all its ranks, where one thread can reach all of them.

#ifndef WHALE_KERNELS_COMMUNICATOR_MEMORY_WORK_H_
#define WHALE_KERNELS_COMMUNICATOR_MEMORY_WORK_H_

#include <cstdint>
#include <vector>

#include "kernels/communicator/offer.h"

namespace whale {

// The calls of all ranks, by place. They fit together.
using Calls = std::vector<CollectiveCall>;

// The work is cut along the flat list of the pieces' elements, in all parts where ranks have parts: this many.
int64_t WorkElements(const Calls& calls);

// Bytes that are read or written for each of these elements.
int64_t BytesPerElement(const Calls& calls);

// Does the part [begin, end) of the work. Parts that do not overlap may run at the same time, in any order.
void DoWork(const Calls& calls, int64_t begin, int64_t end);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MEMORY_WORK_H_
