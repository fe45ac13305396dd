// The thread that owns a transport and moves operations on.

#ifndef WHALE_KERNELS_COMMUNICATOR_PROGRESS_H_
#define WHALE_KERNELS_COMMUNICATOR_PROGRESS_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/communicator/deadlines.h"
#include "kernels/communicator/operation.h"
#include "kernels/communicator/waiting.h"

namespace whale {

class Progress : public std::enable_shared_from_this<Progress> {
 public:
  using Start = std::function<Status(std::unique_ptr<Transport>*)>;

  // Starts the thread and waits for the transport; Abort ends the waiting.
  Status Run(Start start, double timeout_seconds);

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Begins a call. `key`: of its label and ranks; `title`: for errors; `others`: the other ranks that take part.
  // A call that cannot be told from one under way ends with kInvalidArgument, and that one too.
  void Add(uint64_t key, const Call& call, const std::string& title, std::vector<int> others,
           const std::function<std::unique_ptr<Operation>(const Admission&)>& make, Done done);
  void Abort(const Status& status);
  // Ends the calls of this label, step and iteration.
  void Cancel(const Call& call, const Status& status);
  void SetTimeout(double seconds) { timeout_ = seconds; }
  void Stop(double seconds);

 private:
  struct Entry {
    Ticket ticket;
    uint64_t label;
    int64_t step;
    uint64_t iteration;
    std::vector<int> others;
    std::unique_ptr<Operation> operation;
    Done done;
    Clock::time_point begun = Clock::now();
    int64_t moves = -1;  // when it last moved on
    Clock::time_point moved_at = begun;
    // Once it has failed: why, and what the others say of where they are.
    Status failure = Status();
    std::map<int, std::string> answers = {};
    Clock::time_point answers_by = begun;
  };
  using Entries = std::list<Entry>;
  struct Cancellation {
    std::function<bool(const Entry&)> which;
    Status status;
  };
  enum class Tell { kOthers, kNobody };

  void Loop(const Start& start);
  // Says to all ranks whether this one leaves without an error, and waits until they have said so too: at most for the
  // timeout or until an abort, and not where it makes no difference any more. Only if all are clean may the transport be
  // closed together; who waited for the others in MPI_Finalize could not be called back.
  bool AllLeaveClean();
  void TakeCalls();
  // Polls, and moves every call on.
  bool AdvanceAll();
  bool Advance(Entry* entry, bool* over);
  void ReadNotes();
  void TakeEnd(const Mail& note);
  // A call that failed because ranks do not fit together or did not come asks first where the others are.
  void Fail(Entry* entry, const Status& status);
  std::string Answers(const Entry& entry) const;
  std::string Answer(const Entry& entry, int rank) const;
  std::string Waiting() const;
  static std::string WaitingText(const Entry& entry);
  void Finish(Entries::iterator entry, Status status, Tell tell);
  void EndAll(const Status& status);
  void EndLate(Clock::time_point now);
  // Until there is news here; letters, which others may ask by, are looked for now and then. False at the end.
  bool Idle();
  // Until the time is over, or there is news here or from a rank; true for news.
  bool SleepFor(Clock::duration sleep);
  // Tells the thread of news, whatever it waits for.
  void WakeUp();

  // Shared with callers.
  std::mutex mutex_;
  std::condition_variable changed_;
  Tickets tickets_;
  int64_t numbered_ = 0;  // calls so far
  Entries added_;
  std::vector<Cancellation> cancellations_;
  Status ended_;  // not ok: aborted, or stopped
  bool abort_ = false;
  bool stop_ = false;
  bool started_ = false;
  bool closing_ = false;  // no call is in flight any more, and the other ranks are told
  bool finished_ = false;
  Status start_status_;
  Clock::time_point stop_by_ = Clock::time_point::max();
  std::atomic<bool> news_{false};  // something of the above has changed
  std::atomic<bool> asleep_{false};  // in the transport's Wait; there is a transport then
  std::atomic<bool> clean_{true};    // no call has failed
  std::atomic<double> timeout_{300};
  int rank_ = -1;
  int size_ = 0;

  // The progress thread's own. Blocks outlive the operations that hold some.
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Mailbox> mailbox_;
  Blocks blocks_;
  Entries calls_;
  std::map<Ticket, Status> ended_elsewhere_;        // calls that another rank has ended
  std::vector<std::unique_ptr<Operation>> failed_;  // the transport may still use their memory
  Recent recent_;
  std::map<int, Heard> heard_;  // by rank: where it said it was, when it asked
  std::map<int, bool> farewells_;  // by rank: whether it leaves without an error
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_PROGRESS_H_
