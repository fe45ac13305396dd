#include "kernels/communicator/mailbox.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace whale {

Mailbox::Mailbox(Transport* transport) : transport_(transport), boxes_(transport->size()) {
  for (int rank = 0; rank < transport->size(); ++rank) {
    if (rank == transport->rank()) continue;
    boxes_[rank].next.reset(new char[sizeof(Letter) + kMostBytes]);
    Listen(rank);
  }
}

void Mailbox::Listen(int from) {
  Box& box = boxes_[from];
  box.transfer = transport_->Listen(from, kLetterTag, box.next.get(), sizeof(Letter) + kMostBytes);
}

void Mailbox::Send(int to, const Letter& letter, const Payload& payload) {
  const size_t bytes = payload == nullptr ? 0 : payload->size();
  Sent sent{to, std::vector<char>(sizeof(Letter) + bytes), nullptr};
  std::memcpy(sent.bytes.data(), &letter, sizeof(Letter));
  if (bytes > 0) std::memcpy(sent.bytes.data() + sizeof(Letter), payload->data(), bytes);
  sent.transfer = transport_->Send(to, kLetterTag, sent.bytes.data(), static_cast<int64_t>(sent.bytes.size()));
  sent_.push_back(std::move(sent));
}

void Mailbox::Send(int to, const Letter& letter, const std::string& text) {
  const size_t bytes = std::min<size_t>(text.size(), kMostBytes);
  Send(to, letter, std::make_shared<const std::vector<char>>(text.begin(), text.begin() + bytes));
}

bool Mailbox::Poll() {
  for (; !sent_.empty() && sent_.front().transfer->done; sent_.pop_front()) {
    const Status& status = sent_.front().transfer->status;
    if (!status.ok()) lost_.emplace(sent_.front().to, status);
  }
  bool moved = false;
  for (int rank = 0; rank < static_cast<int>(boxes_.size()); ++rank) {
    Box& box = boxes_[rank];
    if (box.transfer == nullptr || !box.transfer->done) continue;
    moved = true;
    const std::shared_ptr<Transfer> transfer = std::exchange(box.transfer, nullptr);
    if (!transfer->status.ok()) {
      lost_.emplace(rank, transfer->status);
      continue;
    }
    Mail mail{rank, {}, {}};
    std::memcpy(&mail.letter, box.next.get(), sizeof(Letter));
    mail.payload.assign(box.next.get() + sizeof(Letter), box.next.get() + transfer->bytes);
    if (mail.letter.kind != Letter::kFarewell) Listen(rank);
    Sort(std::move(mail));
  }
  return moved;
}

void Mailbox::Sort(Mail mail) {
  if (mail.letter.kind != Letter::kCall) {
    notes_.push_back(std::move(mail));
  } else if (refused_.count(mail.letter.ticket) == 0) {
    const auto place = std::make_tuple(mail.letter.ticket, mail.from, static_cast<int>(mail.letter.round));
    calls_.emplace(place, std::move(mail));
  }
}

std::optional<Mail> Mailbox::Take(int from, const Ticket& ticket, int round) {
  auto found = calls_.find({ticket, from, round});
  if (found == calls_.end()) {
    if (boxes_[from].transfer != nullptr) boxes_[from].transfer->awaited = true;
    return std::nullopt;
  }
  Mail mail = std::move(found->second);
  calls_.erase(found);
  return mail;
}

std::deque<Mail> Mailbox::TakeNotes() { return std::exchange(notes_, {}); }

void Mailbox::Refuse(const Ticket& ticket) {
  refused_.insert(ticket);
  auto first = calls_.lower_bound({ticket, -1, 0});
  while (first != calls_.end() && std::get<0>(first->first) == ticket) first = calls_.erase(first);
}

bool Mailbox::all_sent() const {
  return std::all_of(sent_.begin(), sent_.end(), [](const Sent& sent) { return sent.transfer->done; });
}

}  // namespace whale
