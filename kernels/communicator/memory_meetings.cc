#include "kernels/communicator/memory_meetings.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>

#include "kernels/communicator/waiting.h"

namespace whale {
namespace {

// Less than this is done sooner than another thread wakes up.
constexpr int64_t kBytesWorthAThread = 128 << 10;
// Parts are handed out as threads come free: several for each, so that a busy thread holds up no other.
constexpr int64_t kPartsPerRank = 4;

// Work cut into equal parts that any number of threads take from until none is left.
struct Parts {
  int64_t elements;
  int64_t count;
  std::function<void(int64_t, int64_t)> part;
  std::function<void()> done;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> finished{0};

  void Work() {
    for (int64_t k = next++; k < count; k = next++) {
      part(elements * k / count, elements * (k + 1) / count);
      if (++finished == count) done();
    }
  }
};

// Tells all ranks of an all-gather how many rows each of them brings.
Status TakeRowsOfAll(Calls* calls) {
  Rows rows;
  for (const CollectiveCall& call : *calls) rows.push_back(call.rows[0]);
  Status status;
  for (CollectiveCall& call : *calls) {
    if (status.ok()) status = TakeRows(rows, &call);
  }
  return status;
}

int64_t BytesOf(const Header& header) {
  return std::accumulate(header.shape.begin(), header.shape.end(), static_cast<int64_t>(SizeOf(header.type)),
                         std::multiplies<int64_t>());
}

}  // namespace

void MemoryMeetings::Join(int rank, CollectiveCall call, Done done) {
  Status status = CheckCall(call, rank, size_);
  if (!status.ok()) return done(status);
  const Key key(call.call, call.call.ranks, false);
  const std::string title = Title(call);
  const int place = PlaceOf(rank, call.call.ranks);
  bool complete = false;
  auto enter = [&](Meeting* meeting) { meeting->calls[place] = std::move(call); };
  std::shared_ptr<Meeting> meeting = Arrive(key, place, title, false, &done, enter, &complete);
  if (complete) Hold(std::move(meeting));
}

std::shared_ptr<MemoryMeetings::Meeting> MemoryMeetings::Arrive(const Key& key, int place, const std::string& title,
                                                                bool detached, Done* done,
                                                                const std::function<void(Meeting*)>& enter,
                                                                bool* complete) {
  std::shared_ptr<Meeting> meeting;
  bool watch = false;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!ended_.ok()) {
      const Status status = ended_;
      lock.unlock();
      (*done)(status);
      return nullptr;
    }
    std::deque<std::shared_ptr<Meeting>>& queue = waiting_[key];
    auto open = std::find_if(queue.begin(), queue.end(), [&](const auto& each) { return !each->dones[place]; });
    if (open != queue.begin() && !(detached && queue.front()->is_detached)) {
      const std::shared_ptr<Meeting> earlier = queue.front();
      queue.pop_front();
      if (queue.empty()) waiting_.erase(key);
      lock.unlock();
      const Status status(Code::kInvalidArgument,
                          title + ": rank " + std::to_string(key.ranks[place]) +
                              " calls it while its call of the same label is under way, and the two cannot be told "
                              "apart. Give each call a label.");
      End(earlier.get(), status);
      (*done)(status);
      return nullptr;
    }
    if (open == queue.end()) {
      queue.push_back(std::make_shared<Meeting>());
      open = std::prev(queue.end());
      (*open)->is_message = key.is_message;
      (*open)->calls.resize(key.ranks.size());
      (*open)->dones.resize(key.ranks.size());
    }
    (*open)->is_detached |= detached;
    meeting = *open;
    enter(meeting.get());
    meeting->dones[place] = std::move(*done);
    *complete = ++meeting->arrived == static_cast<int>(key.ranks.size());
    if (*complete) {
      queue.erase(open);
      if (queue.empty()) waiting_.erase(key);
    } else if (!watched_) {
      watched_ = watch = true;
    }
  }
  if (watch) Watch(weak_from_this());
  return meeting;
}

void MemoryMeetings::Hold(std::shared_ptr<Meeting> meeting) {
  const CollectiveCall& first = meeting->calls[0];
  const std::vector<int>& ranks = first.call.ranks;
  std::string differences;
  for (size_t place = 1; place < ranks.size(); ++place) {
    const std::string difference =
        Difference(OfferOf(first), ranks[0], OfferOf(meeting->calls[place]), ranks[place]);
    if (!difference.empty()) differences += (differences.empty() ? "" : "; ") + difference;
  }
  if (!differences.empty()) {
    return End(meeting.get(), Status(Code::kInvalidArgument, Title(first) + ": the calls of " + NamesOf(ranks) +
                                                                 " do not fit together: " + differences + "."));
  }
  if (first.collective == Collective::kAllGather) {
    const Status status = TakeRowsOfAll(&meeting->calls);
    if (!status.ok()) return End(meeting.get(), status);
  }
  RunParts(
      WorkElements(meeting->calls), BytesPerElement(meeting->calls),
      [meeting](int64_t begin, int64_t end) { DoWork(meeting->calls, begin, end); },
      [meeting] { End(meeting.get(), Status()); });
}

void MemoryMeetings::Send(int rank, const Call& call, int to, const Header& header, const void* data, Done done) {
  if (to < 0 || to >= size_) {
    return done(Status(Code::kInvalidArgument, "send '" + call.label.text + "': there is no rank " + std::to_string(to) +
                                                   " in a world of " + std::to_string(size_) + "."));
  }
  bool complete = false;
  auto enter = [&](Meeting* meeting) {
    meeting->calls[0].call = call;
    meeting->header = header;
    meeting->data = data;
  };
  std::shared_ptr<Meeting> meeting = 
      Arrive(Key(call, {rank, to}, true), 0, "send '" + call.label.text + "'", call.detached, &done, enter, &complete);
  if (complete) Deliver(std::move(meeting));
}

void MemoryMeetings::Receive(int rank, const Call& call, int from, std::function<void*(const Header&)> allocate,
                             Done done) {
  if (from < 0 || from >= size_) {
    return done(Status(Code::kInvalidArgument, "receive '" + call.label.text + "': there is no rank " + std::to_string(from) +
                                                   " in a world of " + std::to_string(size_) + "."));
  }
  bool complete = false;
  auto enter = [&](Meeting* meeting) {
    meeting->calls[1].call = call;
    meeting->allocate = std::move(allocate);
  };
  std::shared_ptr<Meeting> meeting = 
      Arrive(Key(call, {from, rank}, true), 1, "receive '" + call.label.text + "'", false, &done, enter, &complete);
  if (complete) Deliver(std::move(meeting));
}

void MemoryMeetings::Deliver(std::shared_ptr<Meeting> meeting) {
  const int64_t bytes = BytesOf(meeting->header);
  char* out = static_cast<char*>(meeting->allocate(meeting->header));
  if (out == nullptr && bytes > 0) {
    return End(meeting.get(), Status(Code::kInternal, "receive '" + meeting->calls[1].call.label.text + "': no memory for " +
                                                          std::to_string(bytes) + " bytes."));
  }
  const char* in = static_cast<const char*>(meeting->data);
  RunParts(
      bytes, 2, [in, out](int64_t begin, int64_t end) { std::memcpy(out + begin, in + begin, end - begin); },
      [meeting] { End(meeting.get(), Status()); });
}

void MemoryMeetings::RunParts(int64_t elements, int64_t bytes_each, std::function<void(int64_t, int64_t)> part,
                              std::function<void()> done) {
  const int64_t worth = elements * bytes_each / kBytesWorthAThread;
  if (worth < 2 || execute_ == nullptr) {
    if (elements > 0) part(0, elements);
    return done();
  }
  const int64_t threads = std::min<int64_t>(worth, size_);
  auto parts = std::make_shared<Parts>();
  parts->elements = elements;
  parts->count = std::min<int64_t>(worth, size_ * kPartsPerRank);
  parts->part = std::move(part);
  parts->done = std::move(done);
  for (int64_t i = 1; i < threads; ++i) execute_([parts] { parts->Work(); });
  parts->Work();
}

void MemoryMeetings::End(Meeting* meeting, const Status& status) {
  // Dones free what belongs to the caller, so none of it is kept for a closure that runs late and finds no part left.
  std::vector<Done> dones = std::move(meeting->dones);
  for (Done& done : dones) {
    if (done) done(status);
  }
}

std::vector<std::pair<MemoryMeetings::Key, std::shared_ptr<MemoryMeetings::Meeting>>> MemoryMeetings::Take(
    const std::function<bool(const Key&, const Meeting&)>& which) {
  std::vector<std::pair<Key, std::shared_ptr<Meeting>>> taken;
  for (auto entry = waiting_.begin(); entry != waiting_.end();) {
    auto& queue = entry->second;
    for (auto each = queue.begin(); each != queue.end();) {
      if (which(entry->first, **each)) {
        taken.emplace_back(entry->first, *each);
        each = queue.erase(each);
      } else {
        ++each;
      }
    }
    entry = queue.empty() ? waiting_.erase(entry) : std::next(entry);
  }
  return taken;
}

void MemoryMeetings::Abort(const Status& status) {
  std::vector<std::pair<Key, std::shared_ptr<Meeting>>> taken;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!ended_.ok()) return;
    ended_ = status;
    taken = Take([](const Key&, const Meeting&) { return true; });
  }
  for (auto& [key, meeting] : taken) End(meeting.get(), status);
}

void MemoryMeetings::Cancel(int rank, const Call& call, const Status& status) {
  std::vector<std::pair<Key, std::shared_ptr<Meeting>>> taken;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    taken = Take([&](const Key& key, const Meeting& meeting) {
      if (key.label != call.label.digest || key.step != call.step || key.iteration != call.iteration) return false;
      const int place = PlaceOf(rank, key.ranks);
      return place >= 0 && meeting.dones[place] != nullptr;
    });
  }
  for (auto& [key, meeting] : taken) End(meeting.get(), status);
}

void MemoryMeetings::SetTimeout(double seconds) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    timeout_ = seconds;
    watched_ = true;
  }
  Watch(weak_from_this());
}

Clock::time_point MemoryMeetings::Expire(Clock::time_point now) {
  std::vector<std::pair<Key, std::shared_ptr<Meeting>>> late;
  Clock::time_point next = Clock::time_point::max();
  double seconds = 0;
  std::string waiting;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    seconds = timeout_;
    const Clock::duration allowed = DurationOf(timeout_);
    const bool any_late = std::any_of(waiting_.begin(), waiting_.end(), [&](const auto& named) {
      return std::any_of(named.second.begin(), named.second.end(),
                         [&](const auto& meeting) { return meeting->begun + allowed <= now; });
    });
    if (any_late) waiting = CallsByRank();
    late = Take([&](const Key&, const Meeting& meeting) {
      if (meeting.begun + allowed > now) next = std::min(next, meeting.begun + allowed);
      return meeting.begun + allowed <= now;
    });
    watched_ = !waiting_.empty();
  }
  for (auto& [key, meeting] : late) {
    const Status status = Late(key, *meeting, seconds);
    End(meeting.get(), Status(status.code(), status.message() + waiting));
  }
  return next;
}

std::string MemoryMeetings::CallsByRank() const {
  std::map<int, std::vector<std::string>> by_rank;
  for (const auto& [key, queue] : waiting_) {
    for (const std::shared_ptr<Meeting>& meeting : queue) {
      for (size_t place = 0; place < key.ranks.size(); ++place) {
        std::vector<std::string>& of_rank = by_rank[key.ranks[place]];
        if (!meeting->dones[place]) continue;
        const CollectiveCall& call = meeting->calls[place];
        const std::string title = key.is_message ? (place == 0 ? "send '" : "receive '") + call.call.label.text + "'"
                                                 : Title(call);
        of_rank.push_back(WaitingText(title, Brings(call), Clock::now() - meeting->begun, {}));
      }
    }
  }
  std::string text;
  for (const auto& [rank, calls] : by_rank) {
    text += "\n  rank " + std::to_string(rank) + ": " + Joined(calls);
  }
  return text;
}

Status MemoryMeetings::Late(const Key& key, const Meeting& meeting, double seconds) {
  std::vector<int> missing;
  std::string title;
  for (size_t place = 0; place < key.ranks.size(); ++place) {
    if (!meeting.dones[place]) {
      missing.push_back(key.ranks[place]);
    } else if (title.empty()) {
      title = key.is_message ? (place == 0 ? "send '" : "receive '") + meeting.calls[place].call.label.text + "'"
                             : Title(meeting.calls[place]);
    }
  }
  return Status(Code::kDeadlineExceeded, title + " waited " + Seconds(seconds) + " s for " + NamesOf(missing) + ".");
}

}  // namespace whale
