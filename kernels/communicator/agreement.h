// Before data are taken from a rank, it has said what it brings, and it fits.

#ifndef WHALE_KERNELS_COMMUNICATOR_AGREEMENT_H_
#define WHALE_KERNELS_COMMUNICATOR_AGREEMENT_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/communicator/offer.h"
#include "kernels/communicator/operation.h"

namespace whale {

// Exchanges offers with some ranks: a small message each way. Without it, ranks whose lists differ would write past
// buffers, or wait for ever.
class Agreement {
 public:
  Agreement(const CollectiveCall& call, int rank, std::vector<int> peers);

  // Ok while nothing speaks against it. `*moved` counts what has come.
  Status Advance(const Engine& engine, int64_t* moved);
  // All peers have said that they bring the same.
  bool reached() const { return agreed_ == static_cast<int>(peers_.size()); }
  // No message of its own is under way any more.
  bool sent() const;
  std::vector<int> missing() const;

 private:
  struct Peer {
    int rank;
    Offer offer;
    std::shared_ptr<Transfer> send;
    std::shared_ptr<Transfer> receive;
    bool agreed = false;
  };

  const std::string title_;
  const int64_t id_;
  const int rank_;
  const Offer mine_;
  std::vector<Peer> peers_;
  int agreed_ = 0;
};

// All of the call's ranks but `rank`.
std::vector<int> OthersOf(const CollectiveCall& call, int rank);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_AGREEMENT_H_
