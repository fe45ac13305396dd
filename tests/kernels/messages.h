// Messages around a ring of ranks, as a script that every rank runs.

#ifndef WHALE_TESTS_KERNELS_MESSAGES_H_
#define WHALE_TESTS_KERNELS_MESSAGES_H_

#include <memory>
#include <numeric>
#include <vector>

#include "tests/kernels/checks.h"

namespace whale {

// Sends int32 tensors of several shapes to the next rank, two of each, and takes the previous one's.
inline void RunMessages(Communicator* communicator) {
  const int rank = communicator->rank();
  const int size = communicator->size();
  if (size == 1) return;
  const std::vector<std::vector<int64_t>> shapes = {{}, {0, 3}, {5}, {2, 3, 4}, {2048}, {2049}, {700, 1001}};
  struct Exchange {
    std::vector<int32_t> sent;
    std::vector<int32_t> received;
    Header header;
    Outcome send, receive;
  };
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (size_t k = 0; k < 2 * shapes.size(); ++k) {
    const std::vector<int64_t>& shape = shapes[k / 2];
    Call call{"message " + std::to_string(k / 2), {}};
    call.iteration = k % 2;
    exchanges.push_back(std::make_unique<Exchange>());
    Exchange* exchange = exchanges.back().get();
    const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
    for (int64_t i = 0; i < count; ++i) exchange->sent.push_back(static_cast<int32_t>(rank * 1000003 + i + k));
    communicator->Send(call, (rank + 1) % size, {DataType::kInt32, shape}, exchange->sent.data(),
                       exchange->send.done());
    auto allocate = [exchange, count](const Header& header) -> void* {
      exchange->header = header;
      exchange->received.resize(count);
      return exchange->received.data();
    };
    communicator->Receive(call, (rank + size - 1) % size, allocate, exchange->receive.done());
  }
  for (size_t k = 0; k < exchanges.size(); ++k) {
    Exchange& exchange = *exchanges[k];
    CheckOk(exchange.send.Wait());
    CheckOk(exchange.receive.Wait());
    CHECK(exchange.header.type == DataType::kInt32);
    CHECK(exchange.header.shape == shapes[k / 2]);
    const int from = (rank + size - 1) % size;
    for (size_t i = 0; i < exchange.received.size(); ++i) {
      CHECK(exchange.received[i] == static_cast<int32_t>(from * 1000003 + i + k));
    }
  }
}

}  // namespace whale

#endif  // WHALE_TESTS_KERNELS_MESSAGES_H_
