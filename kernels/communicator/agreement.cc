#include "kernels/communicator/agreement.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

namespace whale {

Agreement::Agreement(const CollectiveCall& call, int rank, const Admission& own, const std::vector<int>& peers,
                     const std::vector<char>& data)
    : rank_(rank), own_(own), offer_(OfferOf(call)) {
  std::vector<char> mine(sizeof(Offer) + data.size());
  std::memcpy(mine.data(), &offer_, sizeof(Offer));
  if (!data.empty()) std::memcpy(mine.data() + sizeof(Offer), data.data(), data.size());
  mine_ = std::make_shared<const std::vector<char>>(std::move(mine));
  for (const int peer : peers) peers_.push_back({peer, {}, false});
}

Status Agreement::Advance(const Engine& engine, Operation* operation) {
  if (!told_) {
    for (const Peer& peer : peers_) engine.mailbox->Send(peer.rank, own_.letter(), mine_);
    told_ = true;
  }
  for (Peer& peer : peers_) {
    if (peer.agreed) continue;
    std::optional<Mail> mail = engine.mailbox->Take(peer.rank, own_.ticket, 0);
    if (!mail) continue;
    operation->Moved();
    const std::string difference = DifferenceFrom(*mail);
    if (!difference.empty()) {
      return Status(Code::kInvalidArgument,
                    operation->title() + ": the calls of rank " + std::to_string(std::min(rank_, peer.rank)) +
                        " and rank " + std::to_string(std::max(rank_, peer.rank)) +
                        " do not fit together: " + difference + ".");
    }
    peer.mail = std::move(*mail);
    peer.agreed = true;
    ++agreed_;
  }
  return Status();
}

std::string Agreement::DifferenceFrom(const Mail& mail) const {
  std::string difference;
  if (mail.payload.size() >= sizeof(Offer)) {
    Offer offer;
    std::memcpy(&offer, mail.payload.data(), sizeof(Offer));
    // In the order of the ranks: both say the same.
    difference = rank_ < mail.from ? Difference(offer_, rank_, offer, mail.from)
                                   : Difference(offer, mail.from, offer_, rank_);
  }
  if (!difference.empty() || mail.payload.size() == mine_->size()) return difference;
  return "rank " + std::to_string(mail.from) + " sends " + std::to_string(mail.payload.size()) + " bytes where " +
         std::to_string(mine_->size()) + " are expected";
}

int Agreement::number_of(int rank) const {
  for (const Peer& peer : peers_) {
    if (peer.rank == rank) return peer.mail.letter.number;
  }
  return own_.number;  // of this rank itself
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
