#include "kernels/communicator/agreement.h"

#include <algorithm>
#include <cstring>

namespace whale {

Agreement::Agreement(const CollectiveCall& call, int rank, std::vector<int> peers, const std::vector<char>& data)
    : id_(call.call.id),
      rank_(rank),
      offer_(OfferOf(call)),
      bytes_(static_cast<int64_t>(sizeof(Offer) + data.size())),
      mine_(new char[bytes_]) {
  std::memcpy(mine_.get(), &offer_, sizeof(Offer));
  if (!data.empty()) std::memcpy(mine_.get() + sizeof(Offer), data.data(), data.size());
  for (const int peer : peers) {
    peers_.emplace_back();
    peers_.back().rank = peer;
    peers_.back().message.reset(new char[sizeof(Offer) + kMostData]);
  }
}

Status Agreement::Advance(const Engine& engine, Operation* operation) {
  for (Peer& peer : peers_) {
    if (peer.send == nullptr) {
      peer.send = engine.transport->Send(peer.rank, TagOf(id_, kOffers), mine_.get(), bytes_);
      peer.receive = engine.transport->Receive(peer.rank, TagOf(id_, kOffers), peer.message.get(),
                                               sizeof(Offer) + kMostData);
    }
    if (peer.agreed || !peer.receive->done) continue;
    const Transfer& receive = *peer.receive;
    Status status = operation->Taken(receive, peer.rank, -1);
    if (!status.ok()) return status;
    std::string difference;
    if (receive.bytes >= static_cast<int64_t>(sizeof(Offer))) {
      Offer offer;
      std::memcpy(&offer, peer.message.get(), sizeof(Offer));
      difference = Difference(offer_, rank_, offer, peer.rank);
    }
    if (difference.empty() && receive.bytes != bytes_) {
      difference = "rank " + std::to_string(peer.rank) + " sends " + std::to_string(receive.bytes) + " bytes where " +
                   std::to_string(bytes_) + " are expected";
    }
    if (!difference.empty()) {
      return Status(Code::kInvalidArgument, operation->title() + ": the calls of rank " + std::to_string(rank_) +
                                                " and rank " + std::to_string(peer.rank) +
                                                " do not fit together: " + difference + ".");
    }
    peer.agreed = true;
    ++agreed_;
  }
  return Status();
}

bool Agreement::sent() const {
  return std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.send && peer.send->done; });
}

std::vector<int> Agreement::missing() const {
  std::vector<int> ranks;
  for (const Peer& peer : peers_) {
    if (!peer.agreed) ranks.push_back(peer.rank);
  }
  return ranks;
}

std::vector<int> OthersOf(const CollectiveCall& call, int rank) {
  std::vector<int> others;
  for (const int each : call.call.ranks) {
    if (each != rank) others.push_back(each);
  }
  return others;
}

}  // namespace whale
