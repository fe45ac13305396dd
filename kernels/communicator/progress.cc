#include "kernels/communicator/progress.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "kernels/communicator/pace.h"

namespace whale {
namespace {

Status CheckTags(const Transport& transport) {
  constexpr int64_t kNeeded = kNumbers * kPhases - 1;
  if (transport.max_tag() >= kNeeded) return Status();
  return Status(Code::kUnavailable, "this MPI has too few tags: its MPI_TAG_UB is " +
                                        std::to_string(transport.max_tag()) + ", and " + std::to_string(kNeeded) +
                                        " is needed.");
}

// For a rank that waits for nobody: its word is on its way as soon as it is said.
constexpr double kFarewellSeconds = 1;
// How long the others have to say where they are.
constexpr double kAnswerSeconds = 3;
constexpr std::chrono::milliseconds kIdle(250);
constexpr std::chrono::milliseconds kShortIdle(1);  // a letter is on its way
constexpr size_t kMostRanksShown = 32;

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
  if (status.ok()) mailbox_ = std::make_unique<Mailbox>(transport_.get());
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
    if (calls_.empty() && !news_ && !moved) {
      if (!Idle()) break;
      continue;
    }
    bool late = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      late = stop_ && now >= stop_by_;
    }
    if (late) EndAll(Status(Code::kUnavailable, "the world of processes was left while the call was in flight."));
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
  for (int rank = 0; rank < size_; ++rank) {
    if (rank != rank_) mailbox_->Send(rank, {Letter::kFarewell, clean, 0, 0, {}}, Payload());
  }
  Pace pace;
  while (Clock::now() < until) {
    if (transport_->Poll() | mailbox_->Poll()) pace.Moved(Clock::now());
    ReadNotes();
    const bool all_here = !clean || static_cast<int>(farewells_.size()) == size_ - 1;
    const bool all_clean = mailbox_->lost().empty() && std::all_of(farewells_.begin(), farewells_.end(),
                                                                   [](const auto& said) { return said.second; });
    if ((all_here && mailbox_->all_sent()) || (clean && !all_clean)) return clean && all_clean;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (abort_) return false;
    }
    if (SleepFor(pace.Rest(transport_->hears_all()))) pace.Moved(Clock::now());
  }
  return false;
}

bool Progress::Idle() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, mailbox_->all_sent() ? kIdle : kShortIdle, [this] { return news_ || stop_; });
  return !stop_ || news_;
}

void Progress::TakeCalls() {
  std::vector<Cancellation> cancellations;
  Status ended;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    calls_.splice(calls_.end(), added_);
    cancellations = std::exchange(cancellations_, {});
    if (abort_) ended = ended_;
  }
  for (auto entry = calls_.begin(); entry != calls_.end();) {
    const auto each = entry++;
    const auto elsewhere = ended_elsewhere_.find(each->ticket);
    if (elsewhere != ended_elsewhere_.end()) {
      Finish(each, elsewhere->second, Tell::kNobody);
      continue;
    }
    for (const Cancellation& cancellation : cancellations) {
      if (!cancellation.which(*each)) continue;
      Finish(each, cancellation.status, Tell::kOthers);
      break;
    }
  }
  if (!ended.ok()) {
    clean_ = false;
    EndAll(ended);
  }
}

bool Progress::AdvanceAll() {
  bool moved = transport_->Poll();
  if (mailbox_->Poll()) moved = true;
  ReadNotes();
  for (auto entry = calls_.begin(); entry != calls_.end();) {
    const auto each = entry++;
    bool over = false;
    if (Advance(&*each, &over)) moved = true;
    if (over) Finish(each, each->failure, Tell::kOthers);
  }
  return moved;
}

bool Progress::Advance(Entry* entry, bool* over) {
  if (!entry->failure.ok()) {
    auto says_more = [&](int rank) { return entry->answers.count(rank) == 0 && farewells_.count(rank) == 0; };
    *over = std::none_of(entry->others.begin(), entry->others.end(), says_more) || Clock::now() >= entry->answers_by;
    if (*over) entry->failure = Status(entry->failure.code(), entry->failure.message() + Answers(*entry));
    return *over;
  }
  const Engine engine{transport_.get(), &blocks_, mailbox_.get()};
  Status status = entry->operation->Advance(engine, over);
  for (const auto& [rank, lost] : mailbox_->lost()) {
    if (!*over && status.ok() && PlaceOf(rank, entry->others) >= 0) {
      status = Status(lost.code(), entry->operation->title() + " with rank " + std::to_string(rank) + ": " +
                                       lost.message());
    }
  }
  if (!status.ok()) {
    Fail(entry, status);
    *over = status.code() != Code::kInvalidArgument;
    return true;
  }
  if (entry->operation->moves() == entry->moves) return *over;
  entry->moves = entry->operation->moves();
  entry->moved_at = Clock::now();
  return true;
}

void Progress::ReadNotes() {
  for (const Mail& note : mailbox_->TakeNotes()) {
    switch (note.letter.kind) {
      case Letter::kCall:
        break;
      case Letter::kEnded:
        TakeEnd(note);
        break;
      case Letter::kQuestion:
        heard_[note.from] = {note.text(), Clock::now()};
        mailbox_->Send(note.from, {Letter::kAnswer, 0, 0, 0, note.letter.ticket}, Waiting());
        break;
      case Letter::kAnswer:
        for (Entry& entry : calls_) {
          if (entry.ticket == note.letter.ticket) entry.answers.emplace(note.from, note.text());
        }
        break;
      case Letter::kFarewell:
        farewells_.emplace(note.from, note.letter.code != 0);
        break;
    }
  }
}

void Progress::TakeEnd(const Mail& note) {
  // That its step was cancelled is no news of this rank's step.
  const auto said = static_cast<Code>(note.letter.code);
  const Code code = said == Code::kCancelled ? Code::kUnavailable : said;
  const Status status(code, "rank " + std::to_string(note.from) + " has ended the call: " + note.text());
  for (auto entry = calls_.begin(); entry != calls_.end(); ++entry) {
    if (!(entry->ticket == note.letter.ticket)) continue;
    if (entry->failure.ok()) Finish(entry, status, Tell::kNobody);
    return;
  }
  ended_elsewhere_.emplace(note.letter.ticket, status);
}

void Progress::Fail(Entry* entry, const Status& status) {
  clean_ = false;
  entry->failure = status;
  entry->answers_by = Clock::now() + DurationOf(kAnswerSeconds);
  if (status.code() != Code::kInvalidArgument && status.code() != Code::kDeadlineExceeded) return;
  // With where this rank is: it may be gone when the others ask in turn.
  const std::string own = Waiting();
  for (const int rank : entry->others) mailbox_->Send(rank, {Letter::kQuestion, 0, 0, 0, entry->ticket}, own);
}

std::string Progress::Answers(const Entry& entry) const {
  std::vector<int> ranks = entry.others;
  ranks.push_back(rank_);
  std::sort(ranks.begin(), ranks.end());
  std::string text;
  for (size_t i = 0; i < ranks.size() && i < kMostRanksShown; ++i) {
    const std::string said = ranks[i] == rank_ ? Waiting() : Answer(entry, ranks[i]);
    text += "\n  rank " + std::to_string(ranks[i]) + ": " + said;
  }
  return ranks.size() <= kMostRanksShown ? text : text + "\n  ...";
}

std::string Progress::Answer(const Entry& entry, int rank) const {
  const auto answer = entry.answers.find(rank);
  if (answer != entry.answers.end()) return answer->second;
  const auto heard = heard_.find(rank);
  if (heard != heard_.end() && heard->second.IsRecent()) return heard->second.Text();
  return farewells_.count(rank) > 0 ? "has left" : "does not answer";
}

std::string Progress::Waiting() const {
  std::vector<std::string> texts;
  for (const Entry& entry : calls_) texts.push_back(WaitingText(entry));
  return Joined(texts.empty() ? recent_.Texts() : texts);
}

std::string Progress::WaitingText(const Entry& entry) {
  const Operation& operation = *entry.operation;
  return whale::WaitingText(operation.title(), operation.brings(), Clock::now() - entry.begun, operation.WaitsFor());
}

void Progress::Finish(Entries::iterator entry, Status status, Tell tell) {
  Entry ended = std::move(*entry);
  calls_.erase(entry);
  if (!status.ok()) {
    clean_ = false;
    mailbox_->Refuse(ended.ticket);
    const int code = static_cast<int>(status.code());
    for (const int rank : ended.others) {
      if (tell == Tell::kOthers) mailbox_->Send(rank, {Letter::kEnded, code, 0, 0, ended.ticket}, status.message());
    }
    if (status.code() == Code::kDeadlineExceeded) recent_.Add(WaitingText(ended));
    failed_.push_back(std::move(ended.operation));
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    tickets_.Over(ended.ticket);
  }
  ended.operation = nullptr;
  ended.done(status);
}

void Progress::EndAll(const Status& status) {
  while (!calls_.empty()) Finish(calls_.begin(), status, Tell::kNobody);
}

void Progress::EndLate(Clock::time_point now) {
  const double seconds = timeout_;
  const Clock::duration allowed = DurationOf(seconds);
  for (Entry& entry : calls_) {
    if (now - entry.moved_at < allowed || !entry.failure.ok()) continue;
    Fail(&entry, Status(Code::kDeadlineExceeded, entry.operation->title() + " waited " + Seconds(seconds) +
                                                     " s for " + NamesOf(entry.operation->WaitsFor()) + "."));
  }
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

void Progress::Add(uint64_t key, const Call& call, const std::string& title, std::vector<int> others,
                   const std::function<std::unique_ptr<Operation>(const Admission&)>& make, Done done) {
  Status refused;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    refused = ended_;
    const std::optional<Ticket> clash = refused.ok() ? tickets_.Clash(key, call) : std::nullopt;
    if (clash) {
      refused = Status(Code::kInvalidArgument,
                       title + ": rank " + std::to_string(rank_) +
                           " calls it while a call of the same label is under way, and the other ranks cannot tell "
                           "the two apart. Call the function from one thread at a time, or give each call a label.");
      const Ticket earlier = *clash;
      cancellations_.push_back({[earlier](const Entry& entry) { return entry.ticket == earlier; }, refused});
    } else if (refused.ok() && numbered_ >= kNumbers - 1 && !clean_) {
      // Numbers are used again; of calls that failed there may still be messages under them.
      refused = Status(Code::kUnavailable, title + ": since a call failed, numbers for calls are used up.");
    }
    if (refused.ok()) {
      const Admission own{tickets_.Next(key, call), static_cast<int>(1 + numbered_++ % (kNumbers - 1))};
      added_.push_back({own.ticket, call.label.digest, call.step, call.iteration, std::move(others), make(own),
                        std::move(done)});
    }
    news_ = true;
  }
  WakeUp();
  if (!refused.ok()) done(refused);
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

void Progress::Cancel(const Call& call, const Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto which = [label = call.label.digest, step = call.step, iteration = call.iteration](const Entry& entry) {
      return entry.label == label && entry.step == step && entry.iteration == iteration;
    };
    cancellations_.push_back({which, status});
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
