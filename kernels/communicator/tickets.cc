#include "kernels/communicator/tickets.h"

namespace whale {

std::optional<Ticket> Tickets::Clash(uint64_t key, const Call& call) const {
  const auto [first, last] = under_way_.equal_range(key);
  for (auto each = first; each != last; ++each) {
    const UnderWay& other = each->second;
    const bool told_apart = other.step == call.step && other.iteration != call.iteration;
    if (!told_apart && !(other.detached && call.detached)) return other.ticket;
  }
  return std::nullopt;
}

Ticket Tickets::Next(uint64_t key, const Call& call) {
  Series& series = series_[key];
  if (series.run < 0 || series.step != call.step) {
    ++series.run;
    series.step = call.step;
    series.made.clear();
  }
  const auto repetition = static_cast<uint64_t>(series.made[call.iteration]++);
  const Ticket ticket{key, series.run, Hash(call.iteration, repetition)};
  under_way_.emplace(key, UnderWay{ticket, call.step, call.iteration, call.detached});
  return ticket;
}

void Tickets::Over(const Ticket& ticket) {
  const auto [first, last] = under_way_.equal_range(ticket.key);
  for (auto each = first; each != last; ++each) {
    if (each->second.ticket == ticket) {
      under_way_.erase(each);
      return;
    }
  }
}

}  // namespace whale
