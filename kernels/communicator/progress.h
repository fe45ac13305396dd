// The thread that owns a transport and moves operations on.

#ifndef WHALE_KERNELS_COMMUNICATOR_PROGRESS_H_
#define WHALE_KERNELS_COMMUNICATOR_PROGRESS_H_

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/communicator/deadlines.h"
#include "kernels/communicator/operation.h"

namespace whale {

class Progress : public std::enable_shared_from_this<Progress> {
 public:
  // Calls of one channel follow one another. `peer` is -1 for collectives.
  struct Channel {
    enum Kind { kCollective, kSend, kReceive } kind;
    int64_t id;
    int peer;
    bool operator<(const Channel& other) const {
      return std::tie(kind, id, peer) < std::tie(other.kind, other.id, other.peer);
    }
  };
  struct Entry {
    Channel channel;
    int64_t step;
    std::unique_ptr<Operation> operation;
    Done done;
    int64_t moves = -1;  // when it last moved on
    Clock::time_point moved_at;
  };
  using Start = std::function<Status(std::unique_ptr<Transport>*)>;

  // Starts the thread and waits for the transport; Abort ends the waiting.
  Status Run(Start start, double timeout_seconds);

  int rank() const { return rank_; }
  int size() const { return size_; }

  void Add(Entry entry);
  void Abort(const Status& status);
  void Cancel(int64_t id, int64_t step, const Status& status);
  void SetTimeout(double seconds) { timeout_ = seconds; }
  void Stop(double seconds);

 private:
  struct Cancellation {
    int64_t id;
    int64_t step;
    Status status;
  };

  void Loop(const Start& start);
  // Says to all ranks whether this one leaves without an error, and waits until they have said so too: at most for the
  // timeout or until an abort, and not where it makes no difference any more. Only if all are clean may the transport be
  // closed together; who waited for the others in MPI_Finalize could not be called back.
  bool AllLeaveClean();
  void TakeCalls();
  bool AdvanceAll();
  // Ends the first entry of a channel.
  void Finish(const Channel& channel, const Status& status);
  void EndAll(const Status& status);
  void ApplyCancellation(const Cancellation& cancellation);
  void EndLate(Clock::time_point now);
  // Until the time is over, or there is news here or from a rank; true for news.
  bool SleepFor(Clock::duration sleep);
  // Tells the thread of news, whatever it waits for.
  void WakeUp();

  // Shared with callers.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Entry> added_;
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
  std::atomic<double> timeout_{300};
  int rank_ = -1;
  int size_ = 0;

  // The progress thread's own. Blocks outlive the operations that hold some.
  std::unique_ptr<Transport> transport_;
  Blocks blocks_;
  std::map<Channel, std::deque<Entry>> channels_;  // the first of each is under way
  std::map<Channel, Status> broken_;
  std::vector<std::unique_ptr<Operation>> failed_;  // the transport may still use their memory
  bool clean_ = true;
  struct Farewell {
    char mine;
    std::vector<char> theirs;
  } farewell_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_PROGRESS_H_
