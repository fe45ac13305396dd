#include "kernels/communicator/agreement.h"

#include <algorithm>

namespace whale {

Agreement::Agreement(const CollectiveCall& call, int rank, std::vector<int> peers)
    : title_(Title(call)), id_(call.call.id), rank_(rank), mine_(OfferOf(call)) {
  for (const int peer : peers) {
    peers_.emplace_back();
    peers_.back().rank = peer;
  }
}

Status Agreement::Advance(const Engine& engine, int64_t* moved) {
  for (Peer& peer : peers_) {
    if (peer.send == nullptr) {
      peer.send = engine.transport->Send(peer.rank, TagOf(id_, kOffers), &mine_, sizeof(Offer));
      peer.receive = engine.transport->Receive(peer.rank, TagOf(id_, kOffers), &peer.offer, sizeof(Offer));
    }
    if (peer.agreed || !peer.receive->done) continue;
    const Transfer& receive = *peer.receive;
    if (!receive.status.ok()) {
      return Status(receive.status.code(),
                    title_ + " with rank " + std::to_string(peer.rank) + ": " + receive.status.message());
    }
    std::string difference = receive.bytes == sizeof(Offer)
                                 ? Difference(mine_, rank_, peer.offer, peer.rank)
                                 : "rank " + std::to_string(peer.rank) + " sends " + std::to_string(receive.bytes) +
                                       " bytes where " + std::to_string(sizeof(Offer)) + " are expected";
    if (!difference.empty()) {
      return Status(Code::kInvalidArgument, title_ + ": the calls of rank " + std::to_string(rank_) + " and rank " +
                                                std::to_string(peer.rank) + " do not fit together: " + difference +
                                                ".");
    }
    peer.agreed = true;
    ++agreed_;
    ++*moved;
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
