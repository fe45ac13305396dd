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
  Agreement(const CollectiveCall& call, int rank, const Admission& own, const std::vector<int>& peers,
            const std::vector<char>& data = {});

  // Ok while nothing speaks against it. `operation`: whose it is.
  Status Advance(const Engine& engine, Operation* operation);
  // All peers have said that they bring the same.
  bool reached() const { return agreed_ == static_cast<int>(peers_.size()); }
  std::vector<int> missing() const;
  // What the peer at an index sent, once that is agreed.
  const char* data_of(size_t index) const { return peers_[index].mail.payload.data() + sizeof(Offer); }
  // The number under which a peer sends data, once that is agreed.
  int number_of(int rank) const;

 private:
  struct Peer {
    int rank;
    Mail mail;
    bool agreed = false;
  };

  // How what a peer has sent does not fit; empty where it does.
  std::string DifferenceFrom(const Mail& mail) const;

  const int rank_;
  const Admission own_;
  const Offer offer_;
  Payload mine_;  // offer and data
  bool told_ = false;
  std::vector<Peer> peers_;
  int agreed_ = 0;
};

// All of the call's ranks but `rank`.
std::vector<int> OthersOf(const CollectiveCall& call, int rank);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_AGREEMENT_H_
