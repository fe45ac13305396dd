// A barrier between processes, by dissemination: in round k each rank tells the one 2^k further and hears from the one
// 2^k before it. After log2(n) rounds everyone has heard of everyone.

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/communicator/operation.h"

namespace whale {
namespace {

class Barrier : public Operation {
 public:
  Barrier(CollectiveCall call, int rank, const Admission& own)
      : call_(std::move(call)), own_(own), place_(PlaceOf(rank, call_.call.ranks)), offer_(OfferOf(call_)) {
    const char* bytes = reinterpret_cast<const char*>(&offer_);
    mine_ = std::make_shared<const std::vector<char>>(bytes, bytes + sizeof(Offer));
  }

  std::string title() const override { return Title(call_); }
  std::string brings() const override { return Brings(call_); }

  Status Advance(const Engine& engine, bool* over) override {
    const std::vector<int>& ranks = call_.call.ranks;
    const int size = static_cast<int>(ranks.size());
    for (; distance_ < size; distance_ *= 2, ++round_, told_ = false) {
      from_ = ranks[(place_ - distance_ + size) % size];
      if (!told_) engine.mailbox->Send(ranks[(place_ + distance_) % size], own_.letter(round_), mine_);
      told_ = true;
      const std::optional<Mail> mail = engine.mailbox->Take(from_, own_.ticket, round_);
      if (!mail) return Status();
      Moved();
      Status status = CheckFits(*mail);
      if (!status.ok()) return status;
    }
    *over = true;
    return Status();
  }

  std::vector<int> WaitsFor() const override {
    return from_ < 0 ? std::vector<int>() : std::vector<int>{from_};
  }

 private:
  // Another collective may have the same label.
  Status CheckFits(const Mail& mail) const {
    Offer other;
    std::memcpy(&other, mail.payload.data(), std::min(sizeof(Offer), mail.payload.size()));
    const std::string difference = Difference(offer_, call_.call.ranks[place_], other, mail.from);
    if (difference.empty()) return Status();
    return Status(Code::kInvalidArgument, title() + ": " + difference + ".");
  }

  const CollectiveCall call_;
  const Admission own_;
  const int place_;
  const Offer offer_;
  Payload mine_;
  int distance_ = 1;
  int round_ = 0;
  int from_ = -1;
  bool told_ = false;
};

}  // namespace

std::unique_ptr<Operation> MakeBarrier(CollectiveCall call, int rank, const Admission& own) {
  return std::make_unique<Barrier>(std::move(call), rank, own);
}

}  // namespace whale
