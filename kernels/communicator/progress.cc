#include "kernels/communicator/progress.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "kernels/communicator/pace.h"

namespace whale {
namespace {

Status CheckTags(const Transport& transport) {
  constexpr int64_t kNeeded = (int64_t{1} << 26) * kPhases - 1;
  if (transport.max_tag() >= kNeeded) return Status();
  return Status(Code::kUnavailable, "this MPI has too few tags: its MPI_TAG_UB is " +
                                        std::to_string(transport.max_tag()) + ", and " + std::to_string(kNeeded) +
                                        " is needed.");
}

// The last tag there is, on which ranks say how they leave. Calls would come to it with the very last of the ids.
constexpr int kFarewellTag = (1 << 26) * kPhases - 1;
// For a rank that waits for nobody: its word is on its way as soon as it is said.
constexpr double kFarewellSeconds = 1;

// Keeps what the transport may still use until the process ends.
void KeepForEver(std::shared_ptr<Progress> progress) {
  static std::mutex* const mutex = new std::mutex;
  static auto* const kept = new std::vector<std::shared_ptr<Progress>>;
  std::lock_guard<std::mutex> lock(*mutex);
  kept->push_back(std::move(progress));
}

}  // namespace

Status Progress::Run(Start start, double timeout_seconds) {
  timeout_ = timeout_seconds;
  // The thread holds this object, so that it may be left alone where it does not come back from the transport.
  std::thread([self = shared_from_this(), start = std::move(start)] { self->Loop(start); }).detach();
  std::unique_lock<std::mutex> lock(mutex_);
  auto decided = [this] { return started_ || abort_; };
  if (changed_.wait_until(lock, Clock::now() + DurationOf(timeout_seconds), decided)) {
    return abort_ ? ended_ : start_status_;
  }
  return Status(Code::kDeadlineExceeded,
                "the world of processes did not start within " + Seconds(timeout_seconds) +
                    " s: some ranks have not called it.");
}

void Progress::Loop(const Start& start) {
  Status status = start(&transport_);
  if (status.ok()) status = CheckTags(*transport_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (status.ok()) {
      rank_ = transport_->rank();
      size_ = transport_->size();
    }
    if (status.ok() && abort_) status = ended_;  // nobody waits any more
    start_status_ = status;
    started_ = true;
    finished_ = !status.ok();
  }
  changed_.notify_all();
  if (!status.ok()) return;
  Pace pace;
  while (true) {
    if (news_.exchange(false)) {
      TakeCalls();
      pace.Moved(Clock::now());
    }
    const bool moved = AdvanceAll();
    const Clock::time_point now = Clock::now();
    if (moved) {
      pace.Moved(now);
    } else {
      EndLate(now);
    }
    bool over = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (channels_.empty() && !news_) {
        changed_.wait(lock, [this] { return news_ || stop_; });
        over = stop_ && !news_;
        pace.Moved(Clock::now());
      } else if (stop_ && now >= stop_by_) {
        lock.unlock();
        EndAll(Status(Code::kUnavailable, "the world of processes was left while the call was in flight."));
      }
    }
    if (over) break;
    if (!moved && SleepFor(pace.Rest(transport_->hears_all()))) pace.Moved(Clock::now());
  }
  clean_ = AllLeaveClean();
  if (!clean_) KeepForEver(shared_from_this());
  transport_->Close(clean_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
  }
  changed_.notify_all();
}

bool Progress::AllLeaveClean() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  const bool clean = clean_;
  const Clock::time_point until = Clock::now() + (clean ? DurationOf(timeout_) : DurationOf(kFarewellSeconds));
  farewell_.mine = clean;
  farewell_.theirs.assign(size_, 0);
  std::vector<std::shared_ptr<Transfer>> sends, receives(size_);
  for (int rank = 0; rank < size_; ++rank) {
    if (rank == rank_) continue;
    sends.push_back(transport_->Send(rank, kFarewellTag, &farewell_.mine, 1));
    if (clean) receives[rank] = transport_->Receive(rank, kFarewellTag, &farewell_.theirs[rank], 1);
  }
  Pace pace;
  while (Clock::now() < until) {
    if (transport_->Poll()) pace.Moved(Clock::now());
    bool all = std::all_of(sends.begin(), sends.end(), [](const auto& send) { return send->done; });
    bool any_unclean = false;
    for (int rank = 0; rank < size_; ++rank) {
      if (receives[rank] == nullptr) continue;
      all = all && receives[rank]->done;
      any_unclean = any_unclean || (receives[rank]->done && farewell_.theirs[rank] == 0);
    }
    if (all || any_unclean) return clean && !any_unclean;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (abort_) return false;
    }
    if (SleepFor(pace.Rest(transport_->hears_all()))) pace.Moved(Clock::now());
  }
  return false;
}

void Progress::TakeCalls() {
  std::vector<Entry> added;
  std::vector<Cancellation> cancellations;
  Status ended;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    added = std::move(added_);
    cancellations = std::move(cancellations_);
    added_.clear();
    cancellations_.clear();
    if (abort_) ended = ended_;
  }
  for (Entry& entry : added) {
    auto broken = broken_.find(entry.channel);
    if (broken != broken_.end()) {
      entry.done(broken->second);
      continue;
    }
    entry.moved_at = Clock::now();
    channels_[entry.channel].push_back(std::move(entry));
  }
  for (const Cancellation& cancellation : cancellations) ApplyCancellation(cancellation);
  if (!ended.ok()) {
    clean_ = false;
    EndAll(ended);
  }
}

bool Progress::AdvanceAll() {
  bool moved = transport_->Poll();
  const Engine engine{transport_.get(), &blocks_};
  std::vector<std::pair<Channel, Status>> over;
  for (auto& [channel, entries] : channels_) {
    Entry& entry = entries.front();
    bool is_over = false;
    const Status status = entry.operation->Advance(engine, &is_over);
    if (entry.operation->moves() != entry.moves) {
      entry.moves = entry.operation->moves();
      entry.moved_at = Clock::now();
      moved = true;
    }
    if (is_over || !status.ok()) over.emplace_back(channel, status);
  }
  for (const auto& [channel, status] : over) Finish(channel, status);
  return moved || !over.empty();
}

void Progress::Finish(const Channel& channel, const Status& status) {
  auto found = channels_.find(channel);
  std::deque<Entry> ended;
  if (status.ok()) {
    ended.push_back(std::move(found->second.front()));
    found->second.pop_front();
    if (!found->second.empty()) found->second.front().moved_at = Clock::now();
  } else {
    clean_ = false;
    broken_.emplace(channel, status);
    ended = std::move(found->second);
    found->second.clear();
  }
  if (found->second.empty()) channels_.erase(found);
  for (Entry& entry : ended) {
    if (!status.ok()) failed_.push_back(std::move(entry.operation));
    entry.operation.reset();
    entry.done(status);
  }
}

void Progress::EndAll(const Status& status) {
  while (!channels_.empty()) Finish(channels_.begin()->first, status);
}

void Progress::ApplyCancellation(const Cancellation& cancellation) {
  std::vector<Channel> cancelled;
  for (const auto& [channel, entries] : channels_) {
    const bool has_it = channel.id == cancellation.id &&
                        std::any_of(entries.begin(), entries.end(),
                                    [&](const Entry& entry) { return entry.step == cancellation.step; });
    if (has_it) cancelled.push_back(channel);
  }
  for (const Channel& channel : cancelled) Finish(channel, cancellation.status);
}

void Progress::EndLate(Clock::time_point now) {
  const double seconds = timeout_;
  const Clock::duration allowed = DurationOf(seconds);
  std::vector<std::pair<Channel, Status>> late;
  for (const auto& [channel, entries] : channels_) {
    const Entry& entry = entries.front();
    if (now - entry.moved_at < allowed) continue;
    late.emplace_back(channel, Status(Code::kDeadlineExceeded, entry.operation->title() + " waited " +
                                                                   Seconds(seconds) + " s for " +
                                                                   NamesOf(entry.operation->WaitsFor()) + "."));
  }
  for (const auto& [channel, status] : late) Finish(channel, status);
}

bool Progress::SleepFor(Clock::duration sleep) {
  if (sleep == Clock::duration::zero()) return false;
  asleep_ = true;  // before the look at the news: who brings some looks at this after it
  const bool woken = !news_ && transport_->Wait(sleep);
  asleep_ = false;
  return woken;
}

void Progress::WakeUp() {
  changed_.notify_all();
  if (asleep_) transport_->Wake();
}

void Progress::Add(Entry entry) {
  Status ended;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended = ended_;
    if (ended.ok()) {
      added_.push_back(std::move(entry));
      news_ = true;
    }
  }
  if (ended.ok()) {
    WakeUp();
  } else {
    entry.done(ended);
  }
}

void Progress::Abort(const Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (abort_) return;
    // Of a rank that is leaving, calls end with that; but it waits for the others no longer.
    if (ended_.ok()) ended_ = status;
    abort_ = true;
    news_ = true;
  }
  WakeUp();
}

void Progress::Cancel(int64_t id, int64_t step, const Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    cancellations_.push_back({id, step, status});
    news_ = true;
  }
  WakeUp();
}

void Progress::Stop(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (ended_.ok()) ended_ = Status(Code::kUnavailable, "this process has left the world of processes.");
  if (!stop_) {
    stop_ = true;
    stop_by_ = Clock::now() + DurationOf(seconds);
  }
  WakeUp();
  // The calls end, in which the transport may lose some time.
  auto closing = [this] { return closing_ || finished_ || abort_; };
  changed_.wait_until(lock, Clock::now() + DurationOf(2 * seconds), closing);
  if (finished_) return;
  // A clean end waits for all ranks, as long as a call would: mpiexec ends those that a rank leaves behind.
  const bool waits_for_ranks = closing_ && !abort_;
  const Clock::time_point until = Clock::now() + DurationOf(waits_for_ranks ? timeout_.load() : seconds);
  changed_.wait_until(lock, until, [&] { return finished_ || (waits_for_ranks && abort_); });
}

}  // namespace whale
