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
// buffers, or wait for ever. A few data may come along with an offer.
class Agreement {
 public:
  static constexpr int64_t kMostData = 64 << 10;

  // `data`, at most kMostData bytes, goes to every peer.
  Agreement(const CollectiveCall& call, int rank, std::vector<int> peers, const std::vector<char>& data = {});

  // Ok while nothing speaks against it. `operation`: whose it is.
  Status Advance(const Engine& engine, Operation* operation);
  // All peers have said that they bring the same.
  bool reached() const { return agreed_ == static_cast<int>(peers_.size()); }
  // No message of its own is under way any more.
  bool sent() const;
  std::vector<int> missing() const;
  // What this rank sends, and what the peer at an index sent, once that is agreed.
  const char* data() const { return mine_.get() + sizeof(Offer); }
  const char* data_of(size_t index) const { return peers_[index].message.get() + sizeof(Offer); }

 private:
  struct Peer {
    int rank;
    // Long enough for any first message: a rank that calls something else is told apart by its offer.
    std::unique_ptr<char[]> message;
    std::shared_ptr<Transfer> send;
    std::shared_ptr<Transfer> receive;
    bool agreed = false;
  };

  const int64_t id_;
  const int rank_;
  const Offer offer_;
  const int64_t bytes_;  // of a message: offer and data
  const std::unique_ptr<char[]> mine_;
  std::vector<Peer> peers_;
  int agreed_ = 0;
};

// All of the call's ranks but `rank`.
std::vector<int> OthersOf(const CollectiveCall& call, int rank);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_AGREEMENT_H_
