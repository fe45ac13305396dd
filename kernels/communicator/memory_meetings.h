// Where the calls of a process's ranks meet.

#ifndef WHALE_KERNELS_COMMUNICATOR_MEMORY_MEETINGS_H_
#define WHALE_KERNELS_COMMUNICATOR_MEMORY_MEETINGS_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/communicator/deadlines.h"
#include "kernels/communicator/memory_communicator.h"
#include "kernels/communicator/memory_work.h"

namespace whale {

class MemoryMeetings : public Expiring, public std::enable_shared_from_this<MemoryMeetings> {
 public:
  MemoryMeetings(int size, Execute execute) : size_(size), execute_(std::move(execute)) {}

  int size() const { return size_; }

  void Join(int rank, CollectiveCall call, Done done);
  void Send(int rank, const Call& call, int to, const Header& header, const void* data, Done done);
  void Receive(int rank, const Call& call, int from, std::function<void*(const Header&)> allocate, Done done);
  void Abort(const Status& status);
  void Cancel(int rank, const Call& call, const Status& status);
  void SetTimeout(double seconds);

  Clock::time_point Expire(Clock::time_point now) override;

 private:
  // The calls of several ranks that belong together, or a message and who takes it.
  struct Meeting {
    Clock::time_point begun = Clock::now();
    Calls calls;              // by place
    std::vector<Done> dones;  // by place; null where the rank has not arrived
    int arrived = 0;
    // Of a message: place 0 is the sender, place 1 the receiver.
    bool is_message = false;
    bool is_detached = false;
    Header header;
    const void* data = nullptr;
    std::function<void*(const Header&)> allocate;
  };
  // Messages have a key of their own: their ranks are (from, to), in one direction.
  struct Key {
    Key(const Call& call, std::vector<int> ranks, bool is_message)
        : label(call.label.digest),
          step(call.step),
          iteration(call.iteration),
          ranks(std::move(ranks)),
          is_message(is_message) {}

    uint64_t label;
    int64_t step;
    uint64_t iteration;
    std::vector<int> ranks;
    bool is_message;
    bool operator<(const Key& other) const {
      return std::tie(label, step, iteration, is_message, ranks) <
             std::tie(other.label, other.step, other.iteration, other.is_message, other.ranks);
    }
  };
  // Of messages that nobody waits for a rank may be some calls ahead: each meeting takes the next one.
  using Waiting = std::map<Key, std::deque<std::shared_ptr<Meeting>>>;

  // The first meeting of `key` without the rank at `place`, with that rank in it; null and `done` run with the reason
  // where nothing may begin any more, or the rank waits in a call of this key already, which ends too. `complete` says
  // whether this was the last rank; then the meeting waits no longer.
  std::shared_ptr<Meeting> Arrive(const Key& key, int place, const std::string& title, bool detached, Done* done,
                                  const std::function<void(Meeting*)>& enter, bool* complete);
  void Hold(std::shared_ptr<Meeting> meeting);
  void Deliver(std::shared_ptr<Meeting> meeting);
  static void End(Meeting* meeting, const Status& status);
  static Status Late(const Key& key, const Meeting& meeting, double seconds);
  // A line for each rank: in which calls it waits.
  std::string CallsByRank() const;
  // Takes out the meetings for which `which` holds.
  std::vector<std::pair<Key, std::shared_ptr<Meeting>>> Take(
      const std::function<bool(const Key&, const Meeting&)>& which);
  void RunParts(int64_t elements, int64_t bytes_each, std::function<void(int64_t, int64_t)> part,
                std::function<void()> done);

  const int size_;
  const Execute execute_;
  std::mutex mutex_;
  Waiting waiting_;
  Status ended_;         // not ok once aborted
  double timeout_ = 300;  // seconds
  bool watched_ = false;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MEMORY_MEETINGS_H_
